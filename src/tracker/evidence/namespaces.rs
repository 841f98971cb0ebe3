//! Mount namespaces, as processes see them: what of the objects' file system is mounted there, and
//! what the overlays are made of.
//!
//! Paths are followed with care. A user's own mounts can be in the way, and whoever serves one may
//! never answer: so first only what the kernel has at hand is followed, and then name by name, as
//! long as each is on a file system that answers in time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::Mode;

use super::mounts::{Mounts, number};
use super::processes::words;
use super::task::Task;
use crate::tracker::resource::escape;
use crate::tracker::sys;

/// What one process sees of its mount namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// The mounts.
    pub mounts: Mounts,
    /// The device of each mount, by its id.
    pub devices: HashMap<u64, u64>,
    /// Which of the devices that were asked about are mounted in it.
    pub places: HashSet<u64>,
    /// Where they are.
    pub points: Vec<Vec<u8>>,
    /// Layers of overlays, by device and inode, on one of those devices.
    pub layers: HashSet<(u64, u64)>,
    /// Layers that could not be found, as their overlays were told of them.
    pub unknown_layers: Vec<Vec<u8>>,
    /// What of those devices is mounted, by device and inode, and where: a name
    /// that it was mounted by may be gone while it has others.
    pub mounted: Vec<((u64, u64), String)>,
    /// Where something of one of those devices is mounted that has lost the name it was mounted by, and that
    /// could not be looked at: any object on that device may be it.
    pub lost: Vec<(u64, String)>,
}

impl Namespace {
    /// Whether a layer that could not be found may be, or lie in, what is called `name`: a relative
    /// path, or one that leads elsewhere now.
    #[must_use]
    pub fn may_be_layer(&self, name: &[u8]) -> bool {
        self.unknown_layers.iter().any(|path| path.split(|b| *b == b'/').any(|part| part == name))
    }

    /// Looks at what `mounts`, as seen from `root`, have to do with the devices `places`.
    fn new(mounts: Mounts, root: BorrowedFd<'_>, places: &HashSet<u64>) -> Self {
        let (mut mounted, mut lost) = (Vec::new(), Vec::new());
        let (mut layers, mut unknown_layers) = (HashSet::new(), Vec::new());
        for mount in mounts.0.iter().filter(|m| places.contains(&m.dev) && m.root != b"/") {
            let at = || escape(&mount.point);
            match inode_below(root, &mounts, &mount.point, places) {
                Ok(Some(inode)) => mounted.push((inode, format!("mounted at {}", at()))),
                // One that another mount covers, or that lies where nobody may answer, is known by its
                // name.
                Ok(None) | Err(_) if mount.lost_its_name() => {
                    let says =
                        format!("perhaps what is mounted at {}, which cannot be looked at", at());
                    lost.push((mount.dev, says));
                }
                Ok(None) | Err(_) => {}
            }
        }
        for path in mounts.layers() {
            match inode_below(root, &mounts, &path, places) {
                Ok(inode) => layers.extend(inode),
                Err(_) => unknown_layers.push(path),
            }
        }
        let own = || mounts.0.iter().filter(|mount| places.contains(&mount.dev));
        Self {
            devices: mounts.0.iter().map(|mount| (mount.id, mount.dev)).collect(),
            places: own().map(|mount| mount.dev).collect(),
            points: own().map(|mount| mount.point.clone()).collect(),
            mounts,
            layers,
            unknown_layers,
            mounted,
            lost,
        }
    }
}

/// The namespaces that were met, by what they are seen from; shared by the threads of a scan.
#[derive(Debug, Default)]
pub struct Namespaces(Mutex<Met>);

#[derive(Debug, Default)]
struct Met {
    /// Each with whether not all of the namespace is seen from there.
    views: HashMap<From, (Arc<Namespace>, bool)>,
    /// The processes that see a part of their namespace only, by pid.
    jailed: BTreeMap<i32, OsString>,
    /// Namespaces that a descriptor or a mount keeps, whether a process is in them or not.
    kept: HashSet<OsString>,
}

/// How a link to a mount namespace begins, and the root of a mount of one.
pub(super) const KEPT: &[u8] = b"mnt:[";

/// What a namespace is seen from. The path of a root directory would not do: that of a mount that was
/// taken away is `/` too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct From {
    /// What `/proc/PID/ns/mnt` leads to.
    namespace: OsString,
    /// The mount that the root directory is on, and its inode number.
    root: (u64, u64),
}

impl Namespaces {
    /// What `task`, of process `pid`, sees, read once for each root that it is seen from, and whether that is
    /// not all of its namespace.
    ///
    /// # Errors
    /// The errno of looking at its root directory and its mounts.
    pub fn of(
        &self,
        proc: &Path,
        task: &Task,
        pid: i32,
        places: &HashSet<u64>,
    ) -> io::Result<(Arc<Namespace>, bool)> {
        let mut link = Vec::new();
        task.link(c"ns/mnt", &mut link)?;
        let namespace = OsString::from_vec(std::mem::take(&mut link));
        let from = From { namespace, root: root_of(proc, task)? };
        if let Some((known, jailed)) = self.lock().views.get(&from).cloned() {
            if jailed {
                self.lock().jailed.insert(pid, from.namespace);
            }
            return Ok((known, jailed));
        }
        task.link(c"root", &mut link)?;
        let root = open_root(task)?;
        let mounts = Mounts::parse(task.read(c"mountinfo", &mut Vec::new())?);
        // A root that is mounted nowhere shows nothing.
        let jailed = link != b"/" || !mounts.seen_from(from.root.0);
        let kept: Vec<OsString> = mounts.namespaces().map(OsString::from_vec).collect();
        let view = Arc::new(Namespace::new(mounts, root.as_fd(), places));
        // What it has seen since it changed its root is no other process's view.
        let same = root_of(proc, task)? == from.root;
        let mut met = self.lock();
        met.kept.extend(kept);
        if jailed || !same {
            met.jailed.insert(pid, from.namespace.clone());
        }
        if !same {
            return Ok((view, true));
        }
        Ok(met.views.entry(from).or_insert((view, jailed)).clone())
    }

    /// Everything that was seen.
    pub fn views(&self) -> Vec<Arc<Namespace>> {
        self.lock().views.values().map(|(view, _)| Arc::clone(view)).collect()
    }

    /// Notes what a descriptor's link leads to, if that is a mount namespace.
    pub fn note_kept(&self, link: &[u8]) {
        if link.starts_with(KEPT) {
            self.lock().kept.insert(OsStr::from_bytes(link).to_owned());
        }
    }

    /// Whether a mount namespace is kept in which no process was met: nobody can say what is mounted there.
    pub fn keeps_unseen(&self) -> bool {
        let met = self.lock();
        let seen: HashSet<&OsString> = met.views.keys().map(|from| &from.namespace).collect();
        met.kept.iter().any(|kept| !seen.contains(kept))
    }

    /// The processes in a namespace that nobody sees all of.
    pub fn unseen(&self) -> Vec<i32> {
        let met = self.lock();
        let whole: HashSet<&OsString> = met
            .views
            .iter()
            .filter(|(_, (_, jailed))| !jailed)
            .map(|(from, _)| &from.namespace)
            .collect();
        let jailed = met.jailed.iter().filter(|(_, namespace)| !whole.contains(namespace));
        jailed.map(|(pid, _)| *pid).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Met> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mount that the root directory of a task is on, and its inode number.
fn root_of(proc: &Path, task: &Task) -> io::Result<(u64, u64)> {
    // A user's FUSE file system denies even that.
    sys::mount_and_inode(task, c"root").or_else(|_| mount_and_inode(proc, open_root(task)?.as_fd()))
}

fn open_root(task: &Task) -> io::Result<OwnedFd> {
    Ok(openat(task, c"root", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The id of the mount that `fd` is on, and its inode number, as the kernel itself has them: no file
/// system is asked.
fn mount_and_inode(proc: &Path, fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let info = std::fs::read(proc.join(format!("thread-self/fdinfo/{}", fd.as_raw_fd())))?;
    let field = |key: &[u8]| {
        info.split(|b| *b == b'\n').find_map(|line| number(words(line.strip_prefix(key)?).next()?))
    };
    let found = field(b"mnt_id:").zip(field(b"ino:"));
    found.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "fdinfo has no inode number"))
}

/// So often is a path tried that the kernel has at hand: whoever mounts something meanwhile, anywhere,
/// makes it look again.
const ATTEMPTS: usize = 64;

/// So many symbolic links are followed, as many as the kernel does.
const MOST_LINKS: usize = 40;

/// Device and inode of `path` below `root`, if it is on one of the devices `places`.
///
/// # Errors
/// It cannot be found: it is relative, or the errno of openat2(2) or statx(2); `EAGAIN` when somebody
/// would have to be asked.
fn inode_below(
    root: BorrowedFd<'_>,
    mounts: &Mounts,
    path: &[u8],
    places: &HashSet<u64>,
) -> io::Result<Option<(u64, u64)>> {
    if path.first() != Some(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let found = match at_hand(root, path, ResolveFlag::empty()) {
        Err(nix::Error::EAGAIN) => name_by_name(root, mounts, path, MOST_LINKS)?,
        found => found?,
    };
    if !places.contains(&sys::device(&found)?) {
        return Ok(None);
    }
    let stat = sys::stat(&found, c"")?;
    Ok(Some((stat.dev, stat.ino)))
}

/// What `path` leads to, if the kernel need ask no file system for it.
fn at_hand(root: BorrowedFd<'_>, path: &[u8], more: ResolveFlag) -> nix::Result<OwnedFd> {
    let cached = ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | cached | more);
    let mut found = openat2(root, OsStr::from_bytes(path), how);
    for _attempt in 1..ATTEMPTS {
        if !matches!(found, Err(nix::Error::EAGAIN)) {
            break;
        }
        found = openat2(root, OsStr::from_bytes(path), how);
    }
    found
}

/// An `O_PATH` descriptor of the directory `path` below `root`, without following any link.
///
/// # Errors
/// The errno of openat2(2): `ELOOP` where there is a link, `EAGAIN` when a file system would have to be
/// asked that may never answer.
pub fn directory_below(root: BorrowedFd<'_>, mounts: &Mounts, path: &[u8]) -> io::Result<OwnedFd> {
    let no_links = ResolveFlag::RESOLVE_NO_SYMLINKS;
    match at_hand(root, path, no_links) {
        Err(nix::Error::EAGAIN) => name_by_name(root, mounts, path, 0),
        found => Ok(found?),
    }
}

/// The same by asking the file systems, none but such as answer; at most `most_links` links are followed.
fn name_by_name(
    root: BorrowedFd<'_>,
    mounts: &Mounts,
    path: &[u8],
    most_links: usize,
) -> io::Result<OwnedFd> {
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".");
        names.map(<[u8]>::to_vec).rev().collect()
    };
    let mut rest = names(path);
    let mut at = root.try_clone_to_owned()?;
    let mut links = 0;
    while let Some(name) = rest.pop() {
        // Upwards there may be a way out of the root.
        if name == b".." || !mounts.is_local(sys::device(&at)?) {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
        let next = openat2(&at, OsStr::from_bytes(&name), how)?;
        let local = mounts.is_local(sys::device(&next)?);
        if !local || sys::stat(&next, c"")?.file_type() != libc::S_IFLNK {
            at = next;
            continue;
        }
        links += 1;
        if links > most_links {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = readlinkat(&next, "")?.into_vec();
        rest.extend(names(&target));
        if target.first() == Some(&b'/') {
            at = root.try_clone_to_owned()?;
        }
    }
    Ok(at)
}
