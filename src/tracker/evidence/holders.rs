//! Who holds an object: mappings, descriptors, working and root directories, by device and inode.
//!
//! Never by path: a path says something only within its mount namespace, and glibc's semaphores
//! are mapped under a name that they no longer have. `maps` is read as bytes, because any user can
//! map a file whose name is not UTF-8. A descriptor is looked at through `fdinfo` (inode number
//! and mount id, since Linux 5.14) and never followed: a hung network mount behind it would hang
//! the scan.

mod maps;
mod reader;

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::Serialize;

use self::reader::{Found, Reader};
use super::mounts::Mounts;
use super::namespaces::{Namespace, Namespaces};
use super::processes::{Process, Processes};
use super::unlinked;
use crate::tracker::host::Host;

/// How a process holds an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// A mapping, shared or private.
    Map,
    /// A descriptor, `O_PATH` included.
    Fd,
    /// Its working directory.
    Cwd,
    /// Its root directory.
    Root,
}

/// One mapping or descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Detail {
    /// Which of the two, or a directory.
    pub how: How,
    /// What it may do: of a mapping its permissions (`rw-`), of a descriptor `r`, `w`, `rw` or
    /// `path`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access: String,
    /// Of a mapping: shared, or private (copy-on-write).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// Of a mapping: its length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Of a descriptor: its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<u64>,
}

/// More mappings and descriptors of one object in one process than this are not told one by one.
const MOST_DETAILS: usize = 64;

/// One process that holds an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its pid here.
    pub pid: i32,
    /// Its name.
    pub comm: Vec<u8>,
    /// Its effective uid.
    pub uid: u32,
    /// The ways it holds the object.
    pub how: BTreeSet<How>,
    /// Each mapping and descriptor, the first 64.
    pub details: Vec<Detail>,
}

impl Holder {
    /// Adds one mapping or descriptor. One of each way is always noted; of more than 64 the rest is not.
    pub(super) fn add(&mut self, detail: Detail) {
        let is_new = self.how.insert(detail.how);
        if is_new || self.details.len() < MOST_DETAILS && !self.details.contains(&detail) {
            self.details.push(detail);
        }
    }
}

/// Device and inode of each mapping of a file, by the text of `/proc/PID/maps` (proc_pid_maps(5)).
pub fn mapped_files(maps: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    maps.split(|b| *b == b'\n').filter_map(maps::parse_map).map(|map| (map.dev, map.ino))
}

/// What to look for.
#[derive(Debug, Default)]
pub struct Targets {
    /// The first object of each device and inode,
    by_inode: HashMap<(u64, u64), usize>,
    /// and all of them where it has several names, hard links.
    several: HashMap<(u64, u64), Vec<usize>>,
    /// The inode numbers alone.
    numbers: HashSet<u64>,
    /// Hashes of the names of the objects, and of what is in directories.
    names: HashSet<u64>,
    hasher: RandomState,
    /// There are directories among them.
    pub directories: bool,
    /// The devices that any of them is on.
    devices: HashSet<u64>,
    /// The device numbers of the mounts that objects are in.
    pub places: HashSet<u64>,
    /// Files without a name are looked for on these devices, if at all.
    pub unlinked: HashSet<u64>,
    /// The inodes that have a name there, whether anything is asked about them or not, in their order.
    pub named: Arc<[(u64, u64)]>,
    /// System V memory by the device that it is mapped from and its id.
    segments: HashMap<(u64, u64), Vec<Segment>>,
}

/// System V memory to look for.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// The object.
    pub index: usize,
    /// The number of its IPC namespace, in each of which ids begin anew, if that is known.
    pub namespace: Option<u64>,
}

impl Targets {
    /// Adds an inode of the object `index`. A directory is there with every inode below it.
    pub fn add(&mut self, (dev, ino): (u64, u64), index: usize) {
        match self.by_inode.entry((dev, ino)) {
            Entry::Vacant(place) => {
                place.insert(index);
            }
            Entry::Occupied(first) => {
                let all = self.several.entry((dev, ino)).or_insert_with(|| vec![*first.get()]);
                all.push(index);
            }
        }
        self.numbers.insert(ino);
        self.devices.insert(dev);
    }

    /// Whether there is anything to look for in mappings and descriptors.
    #[must_use]
    pub fn is_any(&self) -> bool {
        !(self.by_inode.is_empty() && self.segments.is_empty() && self.unlinked.is_empty())
    }

    /// Adds a name that a target has.
    pub fn add_name(&mut self, name: &[u8]) {
        self.names.insert(self.hasher.hash_one(name));
    }

    /// Whether a target may have that name.
    #[must_use]
    pub fn may_have_name(&self, name: &[u8]) -> bool {
        self.names.contains(&self.hasher.hash_one(name))
    }

    /// Adds System V memory, which is mapped from this device under its id.
    pub fn add_segment(&mut self, (dev, id): (u64, u64), segment: Segment) {
        self.segments.entry((dev, id)).or_default().push(segment);
    }

    /// The System V memory that may be mapped from this device under this id.
    #[must_use]
    pub fn segments_at(&self, mapping: (u64, u64)) -> &[Segment] {
        self.segments.get(&mapping).map_or(&[], Vec::as_slice)
    }

    /// Whether this inode is one of an object, and its path tells nothing more of it.
    #[must_use]
    pub fn is_known(&self, inode: (u64, u64)) -> bool {
        self.by_inode.contains_key(&inode)
    }

    /// Whether this inode may be one to look for; its path tells of what.
    #[must_use]
    pub fn may_be(&self, inode: (u64, u64)) -> bool {
        self.is_known(inode) || self.is_unlinked(inode) || self.segments.contains_key(&inode)
    }

    /// Whether any inode of an object has this number, on whatever device.
    #[must_use]
    pub fn has_number(&self, ino: u64) -> bool {
        self.numbers.contains(&ino)
    }

    /// Whether this inode is one to look for that has no name.
    #[must_use]
    pub fn is_unlinked(&self, inode: (u64, u64)) -> bool {
        self.unlinked.contains(&inode.0) && self.named.binary_search(&inode).is_err()
    }

    /// The objects that this inode belongs to.
    #[must_use]
    pub fn at(&self, inode: (u64, u64)) -> &[usize] {
        let one = || self.by_inode.get(&inode).map_or(&[][..], std::slice::from_ref);
        self.several.get(&inode).map_or_else(one, Vec::as_slice)
    }
}

/// What one pass over the processes found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The holders of each target, by its index.
    pub holders: HashMap<usize, Vec<Holder>>,
    /// Pids whose mappings or descriptors could not all be read, or not in time.
    pub unreadable: HashSet<i32>,
    /// File names that each process has mapped, where they match what was asked for.
    pub mapped_names: HashMap<i32, BTreeSet<Vec<u8>>>,
    /// Processes whose mappings could be read whole.
    pub maps_read: HashSet<i32>,
    /// What each process sees, if that is all of its mount namespace.
    pub views: HashMap<i32, Arc<Namespace>>,
    /// The mounts of our own mount namespace.
    pub own_mounts: Mounts,
    /// A mount namespace is kept that no process is in.
    pub keeps_unseen: bool,
    /// Every mount namespace that could be seen.
    pub namespaces: Vec<Arc<Namespace>>,
    /// What has no name, where that was asked for.
    pub unlinked: unlinked::All,
}

/// Why a directory may be in use that nobody was seen to use, if [`Scan::keeps_unseen`].
pub const KEEPS_UNSEEN: &str = "a mount namespace is kept that no process is in";

/// How often the list of processes is looked at again for new ones.
const ROUNDS: usize = 4;

/// Tells which mapped file names are worth remembering.
pub type NameFilter = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// How thoroughly is looked, and for what.
#[derive(Clone, Default)]
pub struct Search {
    /// Mappings and descriptors are looked at; else mount namespaces only.
    pub holders: bool,
    /// One holder of each target is enough.
    pub enough: bool,
    /// Every thread is looked at, which can have a table of descriptors and a working directory of its own;
    /// private mappings too; and every descriptor is asked what it is of, whatever its path says.
    pub deep: bool,
    /// The file names of mappings are asked for that this says are worth remembering.
    pub names: Option<NameFilter>,
}

impl Search {
    /// Leaves nothing out.
    #[must_use]
    pub fn deep() -> Self {
        Self { holders: true, deep: true, ..Self::default() }
    }
}

/// The targets that somebody was found for.
#[derive(Debug)]
struct Enough {
    found: Vec<AtomicBool>,
    left: AtomicUsize,
}

impl Enough {
    fn new(targets: &Targets) -> Self {
        let several = targets.several.values().flatten();
        let objects = targets.by_inode.values().chain(several).copied();
        let segments = targets.segments.values().flatten().map(|segment| segment.index);
        let all: HashSet<usize> = objects.chain(segments).collect();
        let count = all.iter().max().map_or(0, |last| last + 1);
        let found = std::iter::repeat_with(AtomicBool::default).take(count).collect();
        // Of what has no name nobody knows how much there is.
        let left = if targets.unlinked.is_empty() { all.len() } else { usize::MAX };
        Self { found, left: AtomicUsize::new(left) }
    }

    /// Whether nobody was found for this target before. It is noted.
    fn is_first_of(&self, target: usize) -> bool {
        let first =
            self.found.get(target).is_some_and(|found| !found.swap(true, Ordering::Relaxed));
        if first {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
        first
    }

    fn is_reached(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

/// Looks through every running process for holders of `targets`.
#[must_use]
pub fn scan(
    host: &Host,
    processes: &mut Processes,
    targets: &Arc<Targets>,
    search: &Search,
) -> Scan {
    let namespaces: Arc<Namespaces> = Arc::default();
    let own_mounts = Mounts::parse(&host.read_proc("self/mountinfo").unwrap_or_default());
    let enough = search.enough.then(|| Arc::new(Enough::new(targets)));
    let own = own_mounts.0.iter().filter(|mount| targets.places.contains(&mount.dev));
    let own_points: Arc<[Vec<u8>]> = own.map(|mount| mount.point.clone()).collect();
    let mut scan = Scan { own_mounts, ..Scan::default() };
    let mut new: HashSet<i32> = processes.seen.keys().copied().collect();
    for _round in 0..ROUNDS {
        let jobs: Vec<(i32, bool)> = processes
            .running()
            .filter(|process| new.contains(&process.pid))
            .map(|process| (process.pid, search.deep || process.leaderless))
            .collect();
        let work = {
            let (root, targets) = (host.proc.clone(), Arc::clone(targets));
            let (namespaces, own_points) = (Arc::clone(&namespaces), Arc::clone(&own_points));
            let (enough, search) = (enough.clone(), search.clone());
            move |pid, threads| {
                let enough = enough.as_deref();
                let (targets, search, own_points) = (&*targets, &search, &*own_points);
                let reader = Reader { root: &root, targets, search, own_points, enough };
                reader.read(pid, threads, &namespaces)
            }
        };
        for (pid, found) in processes.ask(jobs, work) {
            if let Some(process) = processes.seen.get(&pid) {
                scan.add(process, found);
            }
        }
        new = processes.read_more(&host.proc).into_iter().collect();
        if new.is_empty() {
            break;
        }
    }
    // Somebody forks faster than one can look: who is still there was not looked into.
    let unseen = processes.running().map(|process| process.pid).filter(|pid| new.contains(pid));
    scan.unreadable.extend(unseen.filter(|pid| host.proc.join(pid.to_string()).exists()));
    let unlinked = scan.unlinked.values_mut().map(|unlinked| &mut unlinked.holders);
    for holders in scan.holders.values_mut().chain(unlinked) {
        holders.sort_by_key(|holder| holder.pid);
    }
    // What is mounted outside of their jails in a namespace of which nobody sees all is not known.
    scan.unreadable.extend(namespaces.unseen());
    scan.keeps_unseen = namespaces.keeps_unseen();
    scan.namespaces = namespaces.views();
    scan
}

impl Scan {
    /// Whether a mount of one of `devices` that could be seen shows other owners than the file system has.
    #[must_use]
    pub fn maps_owners_of(&self, devices: &HashSet<u64>) -> bool {
        let namespaces = self.namespaces.iter().map(|namespace| &namespace.mounts);
        namespaces.chain([&self.own_mounts]).any(|mounts| mounts.maps_owners_of(devices))
    }

    /// Whether a process can reach the mount `dev`, as far as is known.
    #[must_use]
    pub fn may_see(&self, pid: i32, dev: u64) -> bool {
        self.views.get(&pid).is_none_or(|view| view.places.contains(&dev))
    }

    /// What part of the file system `dev` a directory of objects is, as mountinfo has it.
    #[must_use]
    pub fn base<'a>(&'a self, host: &'a Host, dev: u64) -> &'a [u8] {
        if let Some(base) = &host.base {
            return base;
        }
        let whole = self.own_mounts.at(host.shm_path.as_os_str().as_bytes());
        whole.filter(|mount| mount.dev == dev).map_or(&b"/"[..], |mount| &mount.root)
    }

    fn add(&mut self, process: &Process, found: Option<Found>) {
        let Some(found) = found else {
            self.unreadable.insert(process.pid);
            return;
        };
        if found.incomplete {
            self.unreadable.insert(process.pid);
        }
        if found.maps_read {
            self.maps_read.insert(process.pid);
        }
        self.views.extend(found.view.map(|view| (process.pid, view)));
        if !found.mapped_names.is_empty() {
            self.mapped_names.insert(process.pid, found.mapped_names);
        }
        let nothing = || Holder {
            pid: process.pid,
            comm: process.comm.clone(),
            uid: process.uids[1],
            how: BTreeSet::new(),
            details: Vec::new(),
        };
        if !found.unlinked.is_empty() {
            unlinked::add(&mut self.unlinked, &nothing(), found.unlinked);
        }
        for (target, details) in found.holds {
            let how = details.iter().map(|detail| detail.how).collect();
            let holder = Holder { how, details, ..nothing() };
            self.holders.entry(target).or_insert_with(|| Vec::with_capacity(1)).push(holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_an_inode_is_a_target() {
        let mut targets = Targets::default();
        targets.add((1, 7), 0);
        targets.add((1, 7), 2);
        targets.add((2, 7), 1);
        assert_eq!(targets.at((1, 7)), [0, 2]);
        assert_eq!(targets.at((2, 7)), [1]);
        assert!(targets.at((3, 7)).is_empty());
    }
}
