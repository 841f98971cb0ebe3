//! /dev/shm: memory objects, named semaphores, directories, and whatever else lies there.
//!
//! Nothing is opened here but directories: opening a FIFO, even without blocking, can kill the
//! writer that waits at it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::{Inventory, Object, Tree};
use crate::tracker::evidence::lease;
use crate::tracker::host::Host;
use crate::tracker::parallel;
use crate::tracker::resource::{Identity, Kind, Name};
use crate::tracker::sys::{self, Nanoseconds, Stat};

/// At most so many entries of one directory are counted: a directory is as large as its owner
/// likes.
pub const MOST_ENTRIES: usize = 100_000;

/// At most so many levels.
const MOST_LEVELS: usize = 64;

/// Adds what lies in the directory of the POSIX objects of a place to the inventory.
///
/// # Errors
/// The directory itself could not be read. What vanishes meanwhile is not there.
pub fn read(host: &Host, place: usize, inventory: &mut Inventory) -> io::Result<()> {
    // All names before anything is looked at: who renames things meanwhile puts them at the end once more, and
    // would be faster than who looks.
    let (names, dev) = (entries(host.shm())?, host.shm_dev()?);
    inventory.objects.reserve_exact(names.len());
    let read =
        |name: &Name| read_on(host, place, name, dev).map_err(|error| (name.to_string(), error));
    parallel::each(&names, read, |read| match read {
        Ok(object) => inventory.objects.push(object),
        Err((_, error)) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(trouble) => inventory.troubles.push(trouble),
    });
    Ok(())
}

/// Reads one entry.
///
/// # Errors
/// The errno of statx(2); `ENOENT` when there is no such name.
pub fn read_one(host: &Host, place: usize, file: &Name) -> io::Result<Object> {
    read_on(host, place, file, host.shm_dev()?)
}

/// The same where the device of the place is known.
fn read_on(host: &Host, place: usize, file: &Name, dev: u64) -> io::Result<Object> {
    // One system call does where it is on our file system and is all there is to look at. What a user's
    // FUSE mount lies over denies it, and is not asked (`AT_STATX_DONT_SYNC`).
    if let Ok(stat) = sys::stat(host.shm(), &lease::c_name(file)?)
        && stat.dev == dev
        && !stat.is_dir()
    {
        return Ok(Object { place, ..Object::of(file, stat) });
    }
    let Entry::Here(path) = entry(host.shm(), file, dev)? else {
        return Ok(Object { place, ..mount_point(file, (host.clock.wall)()) });
    };
    let stat = sys::stat(&path, c"")?;
    let mut object = Object { place, ..Object::of(file, stat) };
    object.directory =
        (object.kind == Kind::Dir).then(|| count(path.as_fd(), &stat, &mut |_, _, _| {}).into());
    Ok(object)
}

/// The kind of what is called `file` and has this file type (`S_IFMT`), its name as its users know it,
/// and of [`Kind::Other`] what it is.
#[must_use]
pub fn classify(file: &Name, file_type: u32) -> (Kind, Name, Option<&'static str>) {
    let semaphore = file.as_bytes().strip_prefix(b"sem.").filter(|rest| !rest.is_empty());
    match (file_type, semaphore) {
        (libc::S_IFREG, Some(name)) => (Kind::Sem, Name::new(name), None),
        (libc::S_IFREG, None) => (Kind::Shm, file.clone(), None),
        (libc::S_IFDIR, _) => (Kind::Dir, file.clone(), None),
        (libc::S_IFLNK, _) => (Kind::Other, file.clone(), Some("symlink")),
        (libc::S_IFIFO, _) => (Kind::Other, file.clone(), Some("fifo")),
        (libc::S_IFSOCK, _) => (Kind::Other, file.clone(), Some("socket")),
        _ => (Kind::Other, file.clone(), Some("device")),
    }
}

/// One name of a directory.
#[derive(Debug)]
pub enum Entry {
    /// An `O_PATH` descriptor of what lies there.
    Here(OwnedFd),
    /// Another file system is mounted over it. Any user can mount a FUSE file system over what is
    /// his: nothing of it may be asked, since that can fail or never return.
    OtherMount,
}

/// Looks at what `name` in `dir` is, on the file system `dev`, without following a symlink.
///
/// # Errors
/// The errno of openat(2) or statx(2).
pub fn entry(dir: BorrowedFd<'_>, name: &Name, dev: u64) -> io::Result<Entry> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let path = openat(dir, name.as_os_str(), flags, Mode::empty())?;
    Ok(if sys::device(&path)? == dev { Entry::Here(path) } else { Entry::OtherMount })
}

/// What statx(2) says of `name` in `dir`; `None` when another file system is mounted over it.
///
/// # Errors
/// As [`entry`].
pub fn stat_here(dir: BorrowedFd<'_>, name: &Name, dev: u64) -> io::Result<Option<Stat>> {
    match entry(dir, name, dev)? {
        Entry::Here(path) => sys::stat(&path, c"").map(Some),
        Entry::OtherMount => Ok(None),
    }
}

/// Opens the directory that a descriptor refers to, to be read: nobody else moves the position of this one.
///
/// # Errors
/// The errno of openat(2).
pub fn open_directory(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(directory, c".", flags, Mode::empty())?)
}

/// What is known of a name that another file system is mounted over: the name, now.
pub(super) fn mount_point(file: &Name, now: Nanoseconds) -> Object {
    let stat = Stat {
        dev: 0,
        ino: 0,
        mode: 0,
        uid: u32::MAX,
        gid: u32::MAX,
        nlink: 1,
        size: 0,
        allocated: 0,
        born: None,
        modified: 0,
        changed: now,
    };
    Object { kind: Kind::Other, file_type: Some("mount"), ..Object::of(file, stat) }
}

/// The names in a directory, without `.` and `..`.
///
/// # Errors
/// The errno of opening or reading it.
pub fn entries(dir: BorrowedFd<'_>) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    sys::list(open_directory(dir)?, &mut Vec::new(), |name| {
        names.push(Name::new(name.to_bytes()))
    })?;
    Ok(names)
}

/// What each regular file in a directory is given to: its directory, its name and its state.
pub type Visit<'a> = dyn FnMut(BorrowedFd<'_>, &Name, &Stat) + 'a;

/// Calls `visit` for each regular file in the directory `object`, at all levels, as far as they are
/// counted; not at all if another one has its name now.
///
/// # Errors
/// The errno of looking at it.
pub fn files_in(host: &Host, object: &Object, visit: &mut Visit<'_>) -> io::Result<()> {
    tree_of(host.shm(), &object.file, &object.identity(), visit).map(drop)
}

/// What the directory `name` in `dir` is and holds, if it is the `expected` one; `visit` is called for each
/// regular file in it.
///
/// # Errors
/// The errno of openat(2) or statx(2).
pub fn tree_of(
    dir: BorrowedFd<'_>,
    name: &Name,
    expected: &Identity,
    visit: &mut Visit<'_>,
) -> io::Result<Option<(Stat, Tree)>> {
    let Entry::Here(path) = entry(dir, name, expected.dev)? else { return Ok(None) };
    let stat = sys::stat(&path, c"")?;
    if !stat.is_dir() || !expected.is(&stat) {
        return Ok(None);
    }
    let tree = count(path.as_fd(), &stat, visit);
    Ok(Some((stat, tree)))
}

/// What is in the directory that an `O_PATH` descriptor refers to.
fn count(path: BorrowedFd<'_>, stat: &Stat, visit: &mut Visit<'_>) -> Tree {
    let mut tree = Tree::default();
    tree.inodes.insert((stat.dev, stat.ino));
    match open_directory(path) {
        Ok(dir) => walk(dir.as_fd(), stat.dev, &mut tree, 0, visit),
        Err(_) => tree.truncated = true,
    }
    tree
}

fn walk(dir: BorrowedFd<'_>, dev: u64, tree: &mut Tree, level: usize, visit: &mut Visit<'_>) {
    let Ok(names) = entries(dir) else {
        tree.truncated = true;
        return;
    };
    for name in names {
        if tree.entries >= MOST_ENTRIES {
            tree.truncated = true;
            return;
        }
        let seen = entry(dir, &name, dev).and_then(|entry| match entry {
            Entry::Here(path) => sys::stat(&path, c"").map(|stat| Some((path, stat))),
            Entry::OtherMount => Ok(None),
        });
        let (path, stat) = match seen {
            Ok(Some(seen)) => seen,
            Ok(None) => {
                tree.entries += 1;
                tree.truncated = true;
                continue;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(_) => {
                tree.truncated = true;
                continue;
            }
        };
        tree.entries += 1;
        tree.changed = tree.changed.max(stat.changed);
        tree.names.insert(name.clone());
        // A file with several names inside is there once.
        if tree.inodes.insert((stat.dev, stat.ino)) && !stat.is_dir() {
            tree.size = tree.size.saturating_add(stat.size);
            tree.allocated = tree.allocated.saturating_add(stat.allocated);
        }
        if stat.is_dir() {
            match open_directory(path.as_fd()) {
                Ok(sub) if level < MOST_LEVELS => walk(sub.as_fd(), dev, tree, level + 1, visit),
                _ => tree.truncated = true,
            }
        } else if stat.is_file() {
            visit(dir, &name, &stat);
        } else if stat.file_type() != libc::S_IFLNK {
            tree.special = true;
        }
    }
}
