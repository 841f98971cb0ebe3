//! What processes have open, asked in a way that no file system can hold up: what a descriptor leads to
//! is neither opened nor looked at before it is known to be on one that answers.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::super::launch::{Family, Launch};
use crate::tracker::evidence::mounts::{Mounts, number};
use crate::tracker::evidence::processes::{task_gone, words};
use crate::tracker::sys;

/// What a tracker reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Inlet {
    /// An anonymous pipe: the text of its link, and the number of the descriptor.
    Pipe(Vec<u8>, RawFd),
    /// A named pipe, by device and inode.
    Fifo((u64, u64)),
    /// Sockets, by their inode numbers.
    Sockets(Vec<u32>),
    /// A file, a terminal or another device.
    File,
    /// Perhaps a named pipe, on a file system that may never answer.
    MayHang,
    /// Nothing.
    Nothing,
    /// Its descriptors are not for us to see.
    Secret,
}

/// What a descriptor refers to.
enum Refers {
    /// A pipe without a name.
    Pipe(Vec<u8>),
    /// A socket.
    Socket(u32),
    /// Something with a path, by the number of its mount and its inode.
    Path(Option<(u64, u64)>),
    /// Another thing without a name.
    Other,
}

/// A descriptor as /proc shows it.
struct Descriptor {
    refers: Refers,
    reads: bool,
    writes: bool,
}

/// Looks at the descriptor `fd` of the process or thread whose directory in /proc is `task`.
fn descriptor(task: &Path, fd: &str) -> io::Result<Descriptor> {
    let link = fs::read_link(task.join("fd").join(fd))?;
    let info = fs::read(task.join("fdinfo").join(fd))?;
    let field = |key: &[u8]| {
        info.split(|byte| *byte == b'\n').find_map(|line| words(line.strip_prefix(key)?).next())
    };
    let flags = field(b"flags:")
        .and_then(|octal| i32::from_str_radix(std::str::from_utf8(octal).ok()?, 8).ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    let mode = flags & libc::O_ACCMODE;
    let link = link.as_os_str().as_bytes();
    let refers = if link.starts_with(b"pipe:[") {
        Refers::Pipe(link.to_vec())
    } else if let Some(inode) = socket(link) {
        Refers::Socket(inode)
    } else if link.starts_with(b"/") {
        Refers::Path(field(b"mnt_id:").and_then(number).zip(field(b"ino:").and_then(number)))
    } else {
        Refers::Other
    };
    // By a descriptor that was opened with O_PATH nothing is read or written.
    let usable = flags & libc::O_PATH == 0;
    Ok(Descriptor {
        refers,
        reads: usable && (mode == libc::O_RDONLY || mode == libc::O_RDWR),
        writes: usable && (mode == libc::O_WRONLY || mode == libc::O_RDWR),
    })
}

/// The inode number in the link of a socket.
fn socket(link: &[u8]) -> Option<u32> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    number(digits)?.try_into().ok()
}

/// The link of the socket with this inode number.
pub(super) fn link_of_socket(inode: u32) -> Vec<u8> {
    format!("socket:[{inode}]").into_bytes()
}

/// The mounts that a process or thread sees.
fn mounts(task: &Path) -> io::Result<Mounts> {
    fs::read(task.join("mountinfo")).map(|text| Mounts::parse(&text))
}

/// The numbers of the open descriptors, as /proc has them.
fn open_in(task: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(task.join("fd"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
    names.collect()
}

/// What the tracker `process`, a directory in /proc, reads.
pub(super) fn inlet(process: &Path, launch: &Launch) -> Inlet {
    let numbers = match (launch.family, launch.fd) {
        // rtrack closes what it was given, once it has a copy that is its own.
        (Family::Rtrack | Family::TorchShmManager, _) | (_, None) => open_in(process),
        (_, Some(fd)) => Ok(vec![fd.to_string()]),
    };
    let numbers = match numbers {
        Ok(numbers) => numbers,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Inlet::Secret,
        Err(_) => return Inlet::Nothing,
    };
    let mut found: Vec<(RawFd, Inlet)> = Vec::new();
    let mut sockets = Vec::new();
    for fd in numbers {
        let descriptor = match descriptor(process, &fd) {
            Ok(descriptor) => descriptor,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Inlet::Secret,
            Err(_) => continue,
        };
        let number = fd.parse().unwrap_or(-1);
        let inlet = match descriptor.refers {
            Refers::Socket(inode) => {
                sockets.push(inode);
                Inlet::Sockets(vec![inode])
            }
            _ if !descriptor.reads => continue,
            Refers::Pipe(link) => Inlet::Pipe(link, number),
            Refers::Path(at) => named(process, &fd, at),
            Refers::Other => continue,
        };
        found.push((number, inlet));
    }
    if launch.family == Family::TorchShmManager {
        return Inlet::Sockets(sockets);
    }
    // Its own stdin, stdout and stderr are pipes and files often enough.
    let rank = |(number, inlet): &(RawFd, Inlet)| {
        let kind = match inlet {
            Inlet::Pipe(..) => 0,
            Inlet::Fifo(_) => 1,
            Inlet::Sockets(_) => 2,
            Inlet::MayHang => 3,
            _ => 4,
        };
        let is_other = Some(*number) != launch.fd;
        (*number <= 2 && is_other, kind, is_other, *number)
    };
    found.into_iter().min_by_key(rank).map_or(Inlet::Nothing, |(_, inlet)| inlet)
}

/// What the descriptor `fd`, which has a path, is: only on a file system that answers is it asked.
fn named(process: &Path, fd: &str, at: Option<(u64, u64)>) -> Inlet {
    let inode = at.and_then(|(_, ino)| Some((device(process, fd.parse().ok()?)?, ino)));
    let Some(((dev, true), ino)) = inode else { return Inlet::MayHang };
    let Ok(handle) = hold(process, fd) else { return Inlet::Nothing };
    // It may be another one by now.
    if !sys::device(&handle).is_ok_and(|now| now == dev) {
        return Inlet::MayHang;
    }
    match sys::stat(&handle, c"") {
        Ok(stat) if stat.file_type() == libc::S_IFIFO => Inlet::Fifo((dev, ino)),
        Ok(_) => Inlet::File,
        Err(_) => Inlet::Nothing,
    }
}

/// A descriptor by which nothing can be done but ask what it is.
fn hold(process: &Path, fd: &str) -> nix::Result<OwnedFd> {
    open(&process.join("fd").join(fd), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

/// Whether it is known, without asking it, that the file system answers which the descriptor `fd` of
/// `process`, a directory in /proc, leads to. One that is not open is on none.
pub(in crate::tracker::service::client) fn answers(process: &Path, fd: RawFd) -> bool {
    match descriptor(process, &fd.to_string()).map(|descriptor| descriptor.refers) {
        Ok(Refers::Path(_)) => device(process, fd).is_some_and(|(_, local)| local),
        Ok(_) | Err(_) => true,
    }
}

/// The device of the mount that the descriptor `fd` of `process`, a directory in /proc, was reached by, and
/// whether that answers in time. Nothing if it has no path, or its mount is not seen there.
pub(in crate::tracker::service::client) fn device(
    process: &Path,
    fd: RawFd,
) -> Option<(u64, bool)> {
    let Refers::Path(Some((mount, _))) = descriptor(process, &fd.to_string()).ok()?.refers else {
        return None;
    };
    let mounts = mounts(process).ok()?;
    let dev = mounts.dev_of(mount)?;
    Some((dev, mounts.is_local(dev)))
}

/// How many bytes wait in the pipe that descriptor `fd` of `process` should be, by its link. Its write end is
/// opened for that, for a moment by which the tracker may see the end of input later. With its read end open,
/// a client that writes when the tracker has just died would not be told, and its message would be lost.
pub(super) fn queued(proc: &Path, process: &Path, fd: RawFd, link: &[u8]) -> Option<u64> {
    let handle = hold(process, &fd.to_string()).ok()?;
    let own = proc.join(format!("self/fd/{}", handle.as_raw_fd()));
    if fs::read_link(&own).ok()?.as_os_str().as_bytes() != link {
        return None;
    }
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    sys::queued(open(&own, flags, Mode::empty()).ok()?).ok()
}

/// What is looked for.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Links of pipes, of which the write end counts, and of sockets.
    pub(super) links: HashSet<Vec<u8>>,
    /// Named pipes, by device and inode.
    pub(super) fifos: HashSet<(u64, u64)>,
}

/// One of the things that are looked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// By its link.
    Link(Vec<u8>),
    /// By device and inode.
    Inode((u64, u64)),
}

/// What a process holds of what is looked for.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// What it holds so that it can write to it.
    pub(super) writes: HashSet<Key>,
    /// Whether there was something that could not be looked at.
    pub(super) incomplete: bool,
}

/// More tables of descriptors than this are not compared with each other.
const MOST_TABLES: usize = 32;

/// What `process`, a directory in /proc, and its threads hold of `wanted`.
pub(super) fn holdings(process: &Path, pid: i32, wanted: &Wanted) -> Holdings {
    let mut held = Holdings::default();
    for task in tables(process, pid, &mut held) {
        look_into(&task, wanted, &mut held);
    }
    held
}

/// The tables of descriptors that a process has: its own, and those of threads that have another one.
fn tables(process: &Path, pid: i32, held: &mut Holdings) -> Vec<PathBuf> {
    let mut found = vec![process.to_owned()];
    let tasks = match fs::read_dir(process.join("task")) {
        Ok(tasks) => tasks,
        Err(error) => {
            held.incomplete |= !task_gone(process, &error);
            return found;
        }
    };
    let mut known = vec![pid];
    for task in tasks {
        let Ok(task) = task else { break };
        let name = task.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let same = |other: &i32| sys::same_descriptors(*other, thread).unwrap_or(false);
        if thread == pid || (known.len() <= MOST_TABLES && known.iter().any(same)) {
            continue;
        }
        known.push(thread);
        found.push(task.path());
    }
    found
}

fn look_into(task: &Path, wanted: &Wanted, held: &mut Holdings) {
    let numbers = match open_in(task) {
        Ok(numbers) => numbers,
        Err(error) => {
            held.incomplete |= !task_gone(task, &error);
            return;
        }
    };
    let mut mounts_here: Option<HashMap<u64, u64>> = None;
    for fd in numbers {
        let link = match fs::read_link(task.join("fd").join(&fd)) {
            Ok(link) => link,
            Err(error) => {
                held.incomplete |= !task_gone(task, &error);
                continue;
            }
        };
        let link = link.as_os_str().as_bytes();
        let is_named = link.starts_with(b"/") && !wanted.fifos.is_empty();
        if !is_named && !wanted.links.contains(link) {
            continue;
        }
        let found = match descriptor(task, &fd) {
            Ok(found) => found,
            Err(error) => {
                held.incomplete |= !task_gone(task, &error);
                continue;
            }
        };
        match found.refers {
            Refers::Pipe(link) if found.writes && wanted.links.contains(&link) => {
                held.writes.insert(Key::Link(link));
            }
            Refers::Socket(inode) => {
                held.writes.insert(Key::Link(link_of_socket(inode)));
            }
            Refers::Path(Some((mount, ino)))
                if found.writes && wanted.fifos.iter().any(|fifo| fifo.1 == ino) =>
            {
                let devices = mounts_here.get_or_insert_with(|| {
                    let mounts = mounts(task).unwrap_or_default();
                    mounts.0.iter().map(|mount| (mount.id, mount.dev)).collect()
                });
                match devices.get(&mount) {
                    Some(dev) if wanted.fifos.contains(&(*dev, ino)) => {
                        held.writes.insert(Key::Inode((*dev, ino)));
                    }
                    Some(_) => {}
                    // A mount that it does not see any more: perhaps that one.
                    None => held.incomplete = true,
                }
            }
            _ => {}
        }
    }
}
