//! Asking a daemon on its `--control` socket.
//!
//! What a process's command line says may be a lie, and lead anywhere: so only a socket is connected to that belongs
//! to the process's own user and that the process itself listens at, and only what that process itself answers counts.
//! What it answers may be a lie, too, and as long as it likes: so there is an end to what is read of all
//! together.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{FileStat, Mode, fstat};

use super::super::state::TrackerState;
use super::everywhere::sockets::listening_at;
use crate::tracker::deadline;
use crate::tracker::sys;

/// How long an answer of root's or one's own daemon may take: what it has is much, perhaps.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the first byte of another one's may take, and how long the rest.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_millis(400);

/// How long a job that asks may wait, or work.
pub const LIMIT: Duration = Duration::from_millis(2500);

/// The longest answer of root's or one's own daemon that is read, in bytes, and the most names in it. As it is read
/// only what is understood is kept.
const ANSWER_MAX: usize = 256 << 20;
const NAMES_MAX: usize = 1 << 22;

/// The same for another's.
const ANSWER_OF_OTHERS_MAX: usize = 16 << 20;
const NAMES_OF_OTHERS_MAX: usize = 1 << 17;

/// What is read of a process's mounts, in bytes.
const MOUNTS_MAX: u64 = 16 << 20;

/// What may still be read of the daemons of others, together.
#[derive(Debug)]
pub struct Budget {
    bytes: AtomicUsize,
    names: AtomicUsize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: AtomicUsize::new(64 << 20), names: AtomicUsize::new(1 << 18) }
    }
}

/// Takes up to `wanted` of it; how much that is.
fn take(of: &AtomicUsize, wanted: usize) -> usize {
    let rest = |left: usize| Some(left.saturating_sub(wanted));
    of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).unwrap_or_default().min(wanted)
}

/// Why a daemon did not tell what it has.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It was not started with `--control`.
    #[error("process {0} was not started with --control")]
    NoControl(i32),
    /// It runs with the rights of several users, or a program that gives them.
    #[error("process {0} is not one user's alone")]
    NotOneUsers(i32),
    /// It answers only its own user and root.
    #[error("process {0} answers its own user and root only")]
    NotForUs(i32),
    /// It has ended.
    #[error("process {0} is gone")]
    Gone(i32),
    /// What its command line names is not its socket.
    #[error("process {pid}: {what}")]
    NotItsSocket {
        /// The process.
        pid: i32,
        /// What is there instead.
        what: &'static str,
    },
    /// It could not be reached, or did not answer in time.
    #[error("process {pid}: {operation}: {error}")]
    Io {
        /// The process,
        pid: i32,
        /// what was done,
        operation: &'static str,
        /// and what came of it.
        error: io::Error,
    },
}

/// Where an `rtrack daemon` with this command line, NUL-separated, can be asked.
#[must_use]
pub fn control_of(arguments: &[u8]) -> Option<&[u8]> {
    let mut words = arguments.split(|byte| *byte == 0).skip(1);
    words.find(|word| *word == b"daemon")?;
    while let Some(word) = words.next() {
        if word == b"--control" {
            return words.next().filter(|path| !path.is_empty());
        }
        if let Some(path) = word.strip_prefix(b"--control=") {
            return Some(path).filter(|path| !path.is_empty());
        }
    }
    None
}

/// Asks process `pid`, whatever it says that it is.
///
/// # Errors
/// See [`AskError`].
pub fn ask_process(proc: &Path, pid: i32) -> Result<(u32, TrackerState), AskError> {
    let io = move |operation| move |error: io::Error| AskError::Io { pid, operation, error };
    let directory = proc.join(pid.to_string());
    let status = std::fs::read(directory.join("status")).map_err(io("read its status"))?;
    let uids =
        uids(&status).ok_or_else(|| io("read its status")(io::ErrorKind::InvalidData.into()))?;
    let job = (proc.to_owned(), directory.join("cmdline"));
    let asked = deadline::map_within(LIMIT, vec![job], move |(proc, line)| {
        let line = std::fs::read(line).map_err(io("read its command line"))?;
        ask(&proc, pid, uids, &line, &Budget::default())
    });
    match asked.into_iter().next() {
        Some(Ok(answer)) => Ok((uids[1], answer?)),
        _ => Err(io("ask it")(io::ErrorKind::TimedOut.into())),
    }
}

/// The uids of a process, by its `status`: real, effective, saved, and that for files.
fn uids(status: &[u8]) -> Option<[u32; 4]> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let uids: Vec<u32> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    uids.try_into().ok()
}

/// Asks process `pid` with these `uids`, whose command line is `arguments`. It may take as long as its file systems
/// make it; its own answer is waited for two seconds at most. It comes out of `budget` if it is another user's
/// and not root's.
///
/// # Errors
/// See [`AskError`].
pub fn ask(
    proc: &Path,
    pid: i32,
    uids: [u32; 4],
    arguments: &[u8],
    budget: &Budget,
) -> Result<TrackerState, AskError> {
    let path = control_of(arguments).ok_or(AskError::NoControl(pid))?;
    let own = nix::unistd::geteuid().as_raw();
    let uid = uids[1];
    let process = proc.join(pid.to_string());
    // A program that gives others' rights was started by anybody, with any command line. One that cannot be
    // looked at is not asked before its socket is known to be its own.
    let executable = std::fs::metadata(process.join("exe")).ok();
    let gives =
        executable.as_ref().is_some_and(|file| file.mode() & (libc::S_ISUID | libc::S_ISGID) != 0);
    if uids != [uid; 4] || gives {
        return Err(AskError::NotOneUsers(pid));
    }
    if own != 0 && uid != own {
        return Err(AskError::NotForUs(pid));
    }
    ask_at(&process, pid, uid, path, executable.as_ref(), budget).map_err(|error| {
        // Of one that has ended there is no command line, even while it is not waited for.
        match std::fs::read(process.join("cmdline")) {
            Ok(line) if line.is_empty() => AskError::Gone(pid),
            Err(why) if [Some(libc::ENOENT), Some(libc::ESRCH)].contains(&why.raw_os_error()) => {
                AskError::Gone(pid)
            }
            _ => error,
        }
    })
}

fn ask_at(
    process: &Path,
    pid: i32,
    uid: u32,
    path: &[u8],
    executable: Option<&std::fs::Metadata>,
    budget: &Budget,
) -> Result<TrackerState, AskError> {
    let io = |operation| move |error: io::Error| AskError::Io { pid, operation, error };
    let socket =
        find(process, path).map_err(|errno| io("open its control socket")(errno.into()))?;
    let stat = fstat(&socket).map_err(|errno| io("look at its control socket")(errno.into()))?;
    let wrong = |what| Err(AskError::NotItsSocket { pid, what });
    if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return wrong("what its command line names is no socket");
    }
    if stat.st_uid != uid {
        return wrong("the socket that its command line names belongs to another user");
    }
    let listens = listens_at(process, &socket, &stat).unwrap_or_else(|_| {
        // Where the kernel does not tell: that nobody else could have started it as what it is.
        executable.is_some_and(|file| [0, uid].contains(&file.uid()))
    });
    if !listens {
        return wrong("it does not listen at the socket that its command line names");
    }
    let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let stream = UnixStream::connect(link).map_err(io("connect to its control socket"))?;
    if getsockopt(&stream, PeerCredentials).map(|peer| peer.pid()) != Ok(pid) {
        return wrong("another process listens at the socket that its command line names");
    }
    let trusted = [0, nix::unistd::geteuid().as_raw()].contains(&uid);
    let names = if trusted { NAMES_MAX } else { take(&budget.names, NAMES_OF_OTHERS_MAX) };
    let answer = Within {
        stream,
        until: Instant::now() + if trusted { PATIENCE } else { PATIENCE_WITH_OTHERS },
        began: trusted,
        left: if trusted { ANSWER_MAX } else { ANSWER_OF_OTHERS_MAX },
        budget: (!trusted).then_some(budget),
    };
    let read = TrackerState::read(BufReader::with_capacity(64 << 10, answer), names);
    if !trusted && let Ok(state) = &read {
        // What was not needed is there for the next one.
        budget.names.fetch_add(names.saturating_sub(state.registered.len()), Ordering::Relaxed);
    }
    read.map_err(|error| io("read its answer")(error.into()))
}

/// Whether the process itself listens at the socket with that name, by what the kernel says of both.
///
/// # Errors
/// It does not say it.
fn listens_at(process: &Path, socket: &OwnedFd, stat: &FileStat) -> io::Result<bool> {
    let dev = device(process, socket)?;
    // The kernel tells 32 bits of the inode.
    let inode = (stat.st_ino & u64::from(u32::MAX)) as u32;
    let network = process.join("ns/net");
    let sockets = if std::fs::read_link(&network)? == std::fs::read_link("/proc/self/ns/net")? {
        listening_at(dev, inode)?
    } else {
        let network = File::open(network)?;
        // On a thread of its own, which does not come back.
        let there = std::thread::Builder::new().spawn(move || {
            nix::sys::signal::SigSet::all().thread_block().unwrap_or(());
            sys::enter_network(network.as_fd())?;
            listening_at(dev, inode)
        })?;
        there.join().map_err(|_| io::Error::other("the thread that asks has panicked"))??
    };
    let links: Vec<String> = sockets.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for entry in std::fs::read_dir(process.join("fd"))? {
        let link = std::fs::read_link(entry?.path());
        if link.is_ok_and(|link| links.iter().any(|socket| link.as_os_str() == OsStr::new(socket)))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The device of the file system that a descriptor is on, as the kernel numbers it. What stat(2) says is another one
/// on overlayfs and btrfs, so the mount is asked for (proc_pid_mountinfo(5)).
fn device(process: &Path, socket: &OwnedFd) -> io::Result<u32> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", socket.as_raw_fd()))?;
    let mount = about.lines().find_map(|line| line.strip_prefix("mnt_id:")).ok_or_else(invalid)?;
    let mut text = Vec::new();
    File::open(process.join("mountinfo"))?.take(MOUNTS_MAX).read_to_end(&mut text)?;
    let number = |line: &[u8]| {
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        words.next().filter(|id| *id == mount.trim())?;
        let (major, minor) = words.nth(1)?.split_once(':')?;
        Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
    };
    text.split(|byte| *byte == b'\n').find_map(number).ok_or_else(invalid)
}

/// What a path means to a process, as an `O_PATH` descriptor.
fn find(process: &Path, path: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let directory = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
    if path.first() != Some(&b'/') {
        let cwd = open(&process.join("cwd"), directory, Mode::empty())?;
        // A link of /proc on the way would lead to what somebody else has open.
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        return openat2(&cwd, OsStr::from_bytes(path), how);
    }
    let root = open(&process.join("root"), directory, Mode::empty())?;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(&root, OsStr::from_bytes(path), OpenHow::new().flags(flags).resolve(resolve))
}

/// An answer, as far as it comes in time and is not too long.
struct Within<'a> {
    stream: UnixStream,
    until: Instant,
    /// Whether the first byte has come, or makes no difference.
    began: bool,
    left: usize,
    budget: Option<&'a Budget>,
}

impl Read for Within<'_> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        loop {
            let patience = self.until.saturating_duration_since(Instant::now());
            if patience.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(patience))?;
            match self.stream.read(piece) {
                Ok(length) => {
                    if !std::mem::replace(&mut self.began, true) {
                        self.until = Instant::now() + PATIENCE_WITH_OTHERS;
                    }
                    let granted = self.budget.is_none_or(|all| take(&all.bytes, length) == length);
                    self.left =
                        self.left.checked_sub(length).filter(|_| granted).ok_or_else(|| {
                            io::Error::new(io::ErrorKind::FileTooLarge, "it is too long")
                        })?;
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::service::dialect::Rtype;

    #[test]
    fn links_of_proc_lead_nowhere() {
        let process = Path::new("/proc/self");
        let up = b"../../../../../../../../..";
        for (there, error) in [
            (&b"/dev/null"[..], None),
            (b"/proc/self/root/dev/null", Some(nix::errno::Errno::ELOOP)),
        ] {
            assert_eq!(find(process, there).err(), error);
            assert_eq!(find(process, &[up, there].concat()).err(), error);
        }
    }

    #[test]
    fn whose_it_is() {
        let status = b"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n";
        assert_eq!(uids(status), Some([1000, 0, 0, 0]));
        assert_eq!(uids(b"Uid:\t1\t2\n"), None);
    }

    #[test]
    fn the_socket_of_a_process() {
        let path = std::env::temp_dir().join(format!("rtrack-asking-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let own = Path::new("/proc/self");
        let node = find(own, path.as_os_str().as_bytes()).unwrap();
        let stat = fstat(&node).unwrap();
        // A kernel that does not tell is asked nothing.
        if let Ok(listens) = listens_at(own, &node, &stat) {
            assert!(listens);
            drop(listener);
            assert!(!listens_at(own, &node, &stat).unwrap());
        }
        let path = path.as_os_str().as_bytes();
        crate::tracker::reap::registered::remove(Rtype::File, path).unwrap();
    }

    #[test]
    fn where_it_can_be_asked() {
        for (line, path) in [
            (&b"rtrack\0daemon\0--fd\x005\0--control\0/run/c\0"[..], Some(&b"/run/c"[..])),
            (b"rtrack\0-q\0daemon\0--control=c\0--fd\x005\0", Some(b"c")),
            (b"rtrack\0daemon\0--control\0", None),
            (b"rtrack\0daemon\0--control=\0", None),
            (b"rtrack\0send\0--control\0x\0", None),
            (b"daemon\0--control\0x\0", None),
            (b"", None),
        ] {
            assert_eq!(control_of(line), path);
        }
    }
}
