//! Where objects are: our own /dev/shm and message queues and, as far as they were asked for, the
//! other places of the machine.

mod elsewhere;
mod ipc;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub use self::elsewhere::Elsewhere;
pub use self::ipc::Ipc;
use super::evidence::container::Container;
use super::evidence::sight::Blind;
use super::host::{Host, HostError};
use super::queues::Queues;
use super::sys;

/// The machine as it is looked at: how it is seen from here, and the places that objects are in.
#[derive(Debug)]
pub struct World {
    /// Our own view: /proc, /dev/shm and the clock.
    pub host: Host,
    /// The places, our own /dev/shm first.
    pub places: Vec<Place>,
    /// What else there is that could not be looked at.
    pub unseen: Unseen,
    /// The whole machine is looked at.
    pub whole: bool,
}

/// What of the other namespaces is not known.
#[derive(Debug, Default)]
pub struct Unseen {
    /// What of our own namespaces could not be looked at.
    pub own: Vec<Blind>,
    /// Places that were left out, and why: for people.
    pub left_out: Vec<String>,
    /// Processes whose namespaces may not be seen.
    pub processes: usize,
    /// Namespaces that ended while they were looked at.
    pub ended: usize,
}

/// A place that objects are in: one mount, or one IPC namespace.
#[derive(Debug)]
pub struct Place {
    /// What it is.
    pub root: Root,
    /// Where it is, unless it is ours.
    pub namespace: Option<Arc<Namespace>>,
    /// Whether what is in it was asked for.
    pub wanted: bool,
}

/// What a place is.
#[derive(Debug)]
pub enum Root {
    /// Our own /dev/shm, which is the [`World::host`].
    Own,
    /// The /dev/shm of another mount namespace.
    Shm(Host),
    /// The message queues of an IPC namespace.
    Queues(Queues),
    /// An IPC namespace, with its System V objects.
    Ipc(Ipc),
}

/// Namespaces other than ours, as one process is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// The inode number of the mount namespace, as `/proc/PID/ns/mnt` shows it.
    pub mnt: u64,
    /// That of the IPC namespace.
    pub ipc: u64,
    /// A process inside, by its pid here.
    pub pid: i32,
    /// The container that it is in.
    pub container: Option<Container>,
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.container {
            Some(container) => f.pad(&container.to_string()),
            None => f.pad(&format!("pid {}", self.pid)),
        }
    }
}

/// Which places are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// Our own namespaces.
    #[default]
    Own,
    /// Every namespace that can be reached.
    All,
    /// Those of which one of these is a name: the number of a namespace, the pid of a process inside, the id of a
    /// container or the first digits of it, or its name.
    Named(Vec<String>),
}

impl World {
    /// Our own namespaces only.
    ///
    /// # Errors
    /// As [`Host::real`].
    pub fn own() -> Result<Self, HostError> {
        let mut world = Self::of(Host::real()?);
        let (queues, incomplete) = Queues::own(&world.host.proc);
        world.places.extend(queues.into_iter().map(|queues| Place::own(Root::Queues(queues))));
        world.unseen.own.extend(incomplete.then_some(Blind::MessageQueues));
        world.places.push(Place::own(Root::Ipc(Ipc { namespace: None })));
        Ok(world)
    }

    /// What `host` shows, and nothing else.
    #[must_use]
    pub fn of(host: Host) -> Self {
        let own = Place::own(Root::Own);
        Self { host, places: vec![own], unseen: Unseen::default(), whole: false }
    }

    /// Adds the places of other namespaces, as far as `scope` says.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn widen(&mut self, scope: &Scope) -> io::Result<()> {
        if *scope == Scope::Own {
            return Ok(());
        }
        self.whole = *scope == Scope::All;
        let most = elsewhere::most_namespaces();
        let own = sys::stat(self.host.shm(), c"")?;
        let found = elsewhere::find(&self.host, &HashSet::from([(own.dev, own.ino)]), most)?;
        self.places.extend(found.places);
        let known = self.places.iter().filter_map(|place| match &place.root {
            Root::Queues(queues) => Some(queues.dev),
            Root::Own | Root::Shm(_) | Root::Ipc(_) => None,
        });
        let known = known.collect();
        let Elsewhere { mut left_out, unseen, ended, ipc, .. } = found;
        self.places.extend(elsewhere::find_ipc(&self.host, ipc, known, most, &mut left_out));
        self.unseen =
            Unseen { left_out, processes: unseen, ended, ..std::mem::take(&mut self.unseen) };
        if let Scope::Named(names) = scope {
            let wanted = self.places.iter().map(|place| self.is_named(place, names));
            let wanted: Vec<bool> = wanted.collect();
            for (place, wanted) in self.places.iter_mut().zip(wanted) {
                place.wanted = wanted;
            }
        }
        Ok(())
    }

    /// Whether one of `names` means the namespaces of a place.
    fn is_named(&self, place: &Place, names: &[String]) -> bool {
        let id = |pid: &str, kind: &str| {
            elsewhere::namespace_id(&self.host.proc.join(pid).join("ns").join(kind)).ok()
        };
        let (mnt, ipc) = match &place.namespace {
            Some(namespace) => (Some(namespace.mnt), Some(namespace.ipc)),
            None => (id("self", "mnt"), id("self", "ipc")),
        };
        let container = place.namespace.as_ref().and_then(|namespace| namespace.container.as_ref());
        names.iter().any(|name| {
            let is_number = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
            let is_mount = matches!(place.root, Root::Own | Root::Shm(_));
            let ours = if is_mount { mnt } else { ipc };
            let by_number = is_number
                && (name.parse().ok() == ours
                    || id(name, if is_mount { "mnt" } else { "ipc" })
                        .is_some_and(|id| Some(id) == ours));
            by_number || container.is_some_and(|container| container.is_called(name))
        })
    }

    /// The directory of the POSIX objects that the place with this index is. Of one that is none, our
    /// own view.
    #[must_use]
    pub fn host_of(&self, place: usize) -> &Host {
        self.shm(place).unwrap_or(&self.host)
    }

    /// The same, if the place is one.
    #[must_use]
    pub fn shm(&self, place: usize) -> Option<&Host> {
        match &self.places.get(place)?.root {
            Root::Own => Some(&self.host),
            Root::Shm(host) => Some(host),
            Root::Queues(_) | Root::Ipc(_) => None,
        }
    }

    /// The IPC namespace that the place with this index is, if it is one.
    #[must_use]
    pub fn ipc(&self, place: usize) -> Option<&Ipc> {
        match &self.places.get(place)?.root {
            Root::Ipc(ipc) => Some(ipc),
            Root::Own | Root::Shm(_) | Root::Queues(_) => None,
        }
    }

    /// The message queues that the place with this index is, if it is such a place.
    #[must_use]
    pub fn queues(&self, place: usize) -> Option<&Queues> {
        match &self.places.get(place)?.root {
            Root::Queues(queues) => Some(queues),
            Root::Own | Root::Shm(_) | Root::Ipc(_) => None,
        }
    }

    /// The directory that the objects of the place with this index are in.
    #[must_use]
    pub fn directory_of(&self, place: usize) -> BorrowedFd<'_> {
        match self.queues(place) {
            Some(queues) => queues.dir(),
            None => self.host_of(place).shm(),
        }
    }

    /// The device number that the objects of the place with this index are on.
    ///
    /// # Errors
    /// As [`Host::shm_dev`].
    pub fn device_of(&self, place: usize) -> io::Result<u64> {
        match self.queues(place) {
            Some(queues) => Ok(queues.dev),
            None => self.host_of(place).shm_dev(),
        }
    }

    /// The directories of POSIX objects that were asked for, each with the index of its place.
    pub fn wanted_shm(&self) -> impl Iterator<Item = (usize, &Host)> {
        let places = self.places.iter().enumerate().filter(|(_, place)| place.wanted);
        places.filter_map(|(index, _)| Some((index, self.shm(index)?)))
    }

    /// The namespaces of a place, unless they are ours.
    #[must_use]
    pub fn namespace(&self, place: usize) -> Option<&Namespace> {
        self.places.get(place)?.namespace.as_deref()
    }
}

impl Place {
    /// A place of our own namespaces.
    fn own(root: Root) -> Self {
        Self { root, namespace: None, wanted: true }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn path(&self, world: &World) -> PathBuf {
        match &self.root {
            Root::Own => world.host.shm_path.clone(),
            Root::Shm(host) => host.shm_path.clone(),
            Root::Queues(queues) => queues.path.clone(),
            Root::Ipc(_) => world.host.proc.join("sysvipc"),
        }
    }
}
