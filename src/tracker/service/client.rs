//! The writing side, as far as operators need it: find a tracker's pipe, say something into it,
//! find out whether anybody reads it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use procfs::process::Process;
use serde::Serialize;

use super::protocol::{Form, form_for};
use crate::tracker::deadline;
use crate::tracker::host::in_first_pid_namespace;
use crate::tracker::sys;

/// Whose tracker it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `multiprocessing.resource_tracker`
    Cpython,
    /// `loky.backend.resource_tracker`
    Loky,
    /// loky as joblib carries it along
    Joblib,
    /// `rtrack daemon`
    Rtrack,
    /// Something else, or a process that could not be looked at
    Unknown,
}

impl Kind {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpython => "cpython",
            Self::Loky => "loky",
            Self::Joblib => "joblib",
            Self::Rtrack => "rtrack",
            Self::Unknown => "unknown",
        }
    }

    /// The resource types that such a tracker cleans up.
    #[must_use]
    pub const fn rtypes(self) -> &'static [&'static str] {
        match self {
            Self::Cpython | Self::Rtrack => &["semaphore", "shared_memory", "dummy", "noop"],
            Self::Loky | Self::Joblib => &["semlock", "file", "folder", "dummy", "noop"],
            Self::Unknown => {
                &["semaphore", "shared_memory", "semlock", "file", "folder", "dummy", "noop"]
            }
        }
    }
}

/// A version of Python, as far as the path of an interpreter tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 13 in 3.13.1
    pub minor: u32,
    /// 1 in 3.13.1
    pub patch: Option<u32>,
}

impl Version {
    /// Looks for `3.N.P`, else `3.N`, anywhere in `path`: `/usr/bin/python3.11`,
    /// `…/versions/3.13.0/bin/python3.13`.
    fn find(path: &[u8]) -> Option<Self> {
        fn number(digits: &[u8]) -> Option<(u32, &[u8])> {
            let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, rest) = digits.split_at_checked(length)?;
            Some((std::str::from_utf8(number).ok()?.parse().ok()?, rest))
        }
        let mut found = None;
        for (place, _) in path.windows(2).enumerate().filter(|(_, two)| two == b"3.") {
            let before = place.checked_sub(1).and_then(|index| path.get(index));
            if before.is_some_and(|byte| byte.is_ascii_digit() || *byte == b'.') {
                continue;
            }
            let Some((minor, rest)) = path.get(place + 2..).and_then(number) else { continue };
            let patch = rest.strip_prefix(b".").and_then(number).map(|(patch, _)| patch);
            found = found.max(Some(Self { minor, patch }));
        }
        found
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "3.{}", self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

/// Which forms of a message a tracker reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// ASCII only, and no colon in a name: CPython up to 3.13.9 and 3.14.0.
    Old,
    /// JSON only: CPython 3.13.10 and 3.14.1.
    JsonOnly,
    /// Both, with colons: CPython 3.13.11, 3.14.2 and newer, and rtrack.
    Dual,
    /// It could not be found out.
    Unknown,
}

impl Reader {
    fn of(kind: Kind, version: Option<Version>) -> Self {
        match (kind, version) {
            (Kind::Rtrack, _) => Self::Dual,
            (Kind::Cpython, Some(Version { minor, patch })) => match (minor, patch) {
                (..=12, _) | (13, Some(..=9)) | (14, Some(0)) => Self::Old,
                (13, Some(10)) | (14, Some(1)) => Self::JsonOnly,
                (15.., _) | (_, Some(_)) => Self::Dual,
                (_, None) => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }

    /// The form in which this reader takes `name`, and whether that is certain; nothing if it
    /// cannot be told that name.
    #[must_use]
    pub fn form(self, name: &[u8]) -> Option<(Form, bool)> {
        let plain = form_for(name) == Form::Ascii && !name.contains(&b':');
        match self {
            Self::Old => plain.then_some((Form::Ascii, true)),
            Self::JsonOnly => Some((Form::Json, true)),
            Self::Dual => Some((form_for(name), true)),
            Self::Unknown => Some((form_for(name), plain)),
        }
    }
}

/// A process at the reading end.
#[derive(Debug, Clone)]
pub struct Tracker {
    /// Its pid here.
    pub pid: i32,
    /// Whose tracker it is.
    pub kind: Kind,
    /// The Python that runs it.
    pub version: Option<Version>,
    /// The name of its thread, as the kernel has it.
    pub comm: String,
    /// When it started.
    pub since: Option<Timestamp>,
    /// Stopped by a signal or a debugger: alive, but it reads nothing.
    pub stopped: bool,
    /// In clock ticks since boot: with the pid, what tells it from a later process.
    start: u64,
    /// The descriptor that its command line names.
    fd: Option<RawFd>,
}

impl Tracker {
    /// What it reads.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::of(self.kind, self.version)
    }

    /// Looks at a process; nothing if it is gone or a zombie.
    #[must_use]
    pub fn look(pid: i32) -> Option<Self> {
        let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
        if matches!(stat.state, 'Z' | 'X' | 'x') {
            return None;
        }
        let exe = fs::read_link(proc(pid, "exe")).ok();
        let arguments = command_line(pid).unwrap_or_default();
        let (kind, fd) = kind_of(exe.as_deref(), &arguments);
        let paths = exe.iter().map(|path| path.as_os_str().as_bytes());
        let version = paths
            .chain(arguments.first().map(Vec::as_slice))
            .find_map(Version::find)
            .filter(|_| !matches!(kind, Kind::Rtrack | Kind::Unknown));
        Some(Self {
            pid,
            kind,
            version,
            comm: stat.comm,
            since: started_at(stat.starttime),
            stopped: matches!(stat.state, 'T' | 't'),
            start: stat.starttime,
            fd,
        })
    }
}

/// `/proc/PID/FILE`
fn proc(pid: i32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

/// When a process started that did so `ticks` after boot (proc(5), field 22 of `stat`).
fn started_at(ticks: u64) -> Option<Timestamp> {
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let start = Duration::from_millis(ticks.checked_mul(1000)? / per_second);
    let boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME).ok()?);
    let age = boot.checked_sub(start)?;
    Timestamp::from_second(now.checked_sub(age)?.as_secs().try_into().ok()?).ok()
}

/// The arguments of a process; nothing if they cannot be read in time.
fn command_line(pid: i32) -> Option<Vec<Vec<u8>>> {
    let read = |path: PathBuf| {
        let mut text = Vec::new();
        let file = fs::File::open(path).ok()?;
        file.take(64 * 1024).read_to_end(&mut text).ok().map(|_| text)
    };
    let text = deadline::map(vec![proc(pid, "cmdline")], read).into_iter().next()???;
    Some(text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect())
}

/// What a process is by its executable and command line, and the descriptor that it names.
fn kind_of(exe: Option<&Path>, arguments: &[Vec<u8>]) -> (Kind, Option<RawFd>) {
    let called = |path: &Path| {
        path.file_name()
            .is_some_and(|name| name.as_bytes().split(|&b| b == b' ').next() == Some(b"rtrack"))
    };
    let first = arguments.first().map(|path| Path::new(std::ffi::OsStr::from_bytes(path)));
    if exe.or(first).is_some_and(called) && arguments.iter().any(|word| word == b"daemon") {
        return (Kind::Rtrack, None);
    }
    const LAUNCHES: [(&str, Kind); 3] = [
        ("from multiprocessing.resource_tracker import main;", Kind::Cpython),
        ("from loky.backend.resource_tracker import main;", Kind::Loky),
        ("from joblib.externals.loky.backend.resource_tracker import main;", Kind::Joblib),
    ];
    for argument in arguments {
        for (text, kind) in LAUNCHES {
            if let Some(call) = argument.strip_prefix(text.as_bytes()) {
                let call = String::from_utf8_lossy(call);
                let number = call.trim_start().strip_prefix("main(").map(|rest| {
                    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()
                });
                return (kind, number.and_then(Result::ok));
            }
        }
    }
    (Kind::Unknown, None)
}

/// Why a tracker cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such process, or one that ended and was not waited for.
    #[error("there is no process {0}")]
    NoProcess(i32),
    /// A process that `/proc` does not show (`hidepid`).
    #[error("process {0} cannot be looked at, it belongs to another user")]
    Hidden(i32),
    /// A process that is no tracker. Nothing is written to the pipes of such.
    #[error("process {pid} ({comm}) is no resource tracker that is known here")]
    NotATracker {
        /// The process.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// A tracker whose pipe is not to be found.
    #[error("process {0} reads from no pipe, or from several")]
    NoPipe(i32),
    /// Nothing is open under that number.
    #[error("descriptor {0} is not open")]
    NotOpen(RawFd),
    /// A file, a terminal, a directory.
    #[error("descriptor {0} is not a pipe")]
    NotAPipe(RawFd),
    /// The wrong end.
    #[error("descriptor {0} is not open for writing")]
    NotWritable(RawFd),
    /// Nobody reads.
    #[error("nobody reads the pipe")]
    Dead,
    /// No permission, most often.
    #[error("{operation} {}: {error}", path.display())]
    Os {
        /// What was done,
        operation: &'static str,
        /// to what,
        path: PathBuf,
        /// and what came of it.
        error: io::Error,
    },
}

fn os(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> TargetError {
    move |error| TargetError::Os { operation, path: path.to_owned(), error }
}

/// Why there is nothing to be seen of `pid`. A process that is hidden still has its pid.
fn missing(pid: i32) -> TargetError {
    let zombie = Process::new(pid).and_then(|process| process.stat()).is_ok();
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) {
        Ok(()) | Err(Errno::EPERM) if !zombie => TargetError::Hidden(pid),
        _ => TargetError::NoProcess(pid),
    }
}

/// The writing end of a tracker's pipe.
#[derive(Debug)]
pub struct Target {
    pipe: OwnedFd,
    stat: FileStat,
    /// Who reads, where that is known without looking at every process.
    pub tracker: Option<Tracker>,
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Target {
    /// The pipe that this process inherited as descriptor `fd`.
    ///
    /// # Errors
    /// It is not open, not for writing, or neither a pipe nor a socket.
    pub fn inherited(fd: RawFd) -> Result<Self, TargetError> {
        if fd < 0 || !sys::was_open_at_start(fd) {
            return Err(TargetError::NotOpen(fd));
        }
        let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
        let pipe = sys::duplicate(fd).map_err(|error| match error.raw_os_error() {
            Some(nix::libc::EBADF) => TargetError::NotOpen(fd),
            _ => os("duplicate", &path)(error),
        })?;
        let stat = fstat(&pipe).map_err(|error| os("fstat", &path)(error.into()))?;
        let file_type = stat.st_mode & nix::libc::S_IFMT;
        if file_type != nix::libc::S_IFIFO && file_type != nix::libc::S_IFSOCK {
            return Err(TargetError::NotAPipe(fd));
        }
        let flags = fcntl(&pipe, FcntlArg::F_GETFL)
            .map_err(|error| os("fcntl F_GETFL", &path)(error.into()))?;
        let flags = OFlag::from_bits_retain(flags);
        if flags.intersects(OFlag::O_PATH) || flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
            return Err(TargetError::NotWritable(fd));
        }
        Ok(Self { pipe, stat, tracker: None })
    }

    /// The pipe that the tracker `pid` reads; its write end is opened through /proc.
    ///
    /// # Errors
    /// There is no such process, it is no tracker, its pipe is not to be found, or its
    /// descriptors are somebody else's business (`EACCES`).
    pub fn of_process(pid: i32) -> Result<Self, TargetError> {
        let tracker = Tracker::look(pid).ok_or_else(|| missing(pid))?;
        if tracker.kind == Kind::Unknown {
            return Err(TargetError::NotATracker { pid, comm: tracker.comm });
        }
        let directory = proc(pid, "fd");
        let list = || numbers(&directory).map_err(os("read", &directory));
        let candidates = match tracker.fd {
            Some(fd) => vec![fd],
            None => list()?,
        };
        // Look before opening: the descriptor may be another one by now, and opening a device for
        // writing can have consequences. What O_PATH refers to stays what it is.
        let mut pipes = Vec::new();
        for fd in candidates {
            let path = directory.join(fd.to_string());
            let handle = match open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
                Ok(handle) => handle,
                Err(Errno::ENOENT) => continue,
                Err(error) => return Err(os("open", &path)(error.into())),
            };
            let stat = fstat(&handle).map_err(|error| os("fstat", &path)(error.into()))?;
            let reads = access(pid, fd).is_none_or(|access| access.reads);
            if stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFIFO && reads {
                pipes.push((handle, stat, path));
            }
        }
        pipes.dedup_by_key(|(_, stat, _)| (stat.st_dev, stat.st_ino));
        // Its own stdin and stdout are pipes often enough.
        if pipes.len() > 1 {
            pipes.retain(|(_, _, path)| {
                !matches!(path.file_name().map(OsStrExt::as_bytes), Some(b"0" | b"1" | b"2"))
            });
        }
        let [(handle, stat, path)] =
            <[_; 1]>::try_from(pipes).map_err(|_| TargetError::NoPipe(pid))?;
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let own = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let pipe = open(own.as_str(), flags, Mode::empty()).map_err(|error| match error {
            Errno::ENXIO => TargetError::Dead,
            _ => os("open for writing", &path)(error.into()),
        })?;
        match Tracker::look(pid) {
            Some(now) if now.start == tracker.start => {
                Ok(Self { pipe, stat, tracker: Some(tracker) })
            }
            _ => Err(missing(pid)),
        }
    }

    /// Whether anybody has the reading end open. A write would find out too, but leave a trace.
    ///
    /// # Errors
    /// What `poll` failed with.
    pub fn is_read(&self) -> io::Result<bool> {
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO)?;
        Ok(!fds.iter().any(|fd| fd.revents().is_some_and(|events| events.intersects(gone))))
    }

    /// Whether this process itself can read what it writes (a FIFO that was opened for both): such a
    /// pipe always has a reader, and no write to it ever fails.
    ///
    /// # Errors
    /// The errno of fcntl(2).
    pub fn is_its_own_reader(&self) -> io::Result<bool> {
        let flags = fcntl(&self.pipe, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)?;
        Ok(flags & OFlag::O_ACCMODE == OFlag::O_RDWR
            && self.stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFIFO)
    }

    /// Writes one message, at once and whole.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, message: &[u8]) -> Result<(), SendError> {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PollTimeout::from(FULL_PIPE_MS));
        if ready.map_err(|error| SendError::Os(error.into()))? == 0 {
            return Err(SendError::Full);
        }
        // Others may fill the pipe between the question and the write, and whether this descriptor
        // blocks is not ours to change.
        let began = Instant::now();
        let patience = Duration::from_millis(FULL_PIPE_MS.into());
        let written = sys::interrupted(|| {
            loop {
                match nix::unistd::write(&self.pipe, message) {
                    Err(Errno::EINTR) if began.elapsed() < patience => {}
                    Err(Errno::EINTR) => return Err(Errno::EAGAIN),
                    other => return other,
                }
            }
        });
        match written {
            Ok(length) if length == message.len() => Ok(()),
            Ok(length) => Err(SendError::Short { length, of: message.len() }),
            Err(Errno::EPIPE) => Err(SendError::Dead),
            Err(Errno::EAGAIN) => Err(SendError::Full),
            Err(error) => Err(SendError::Os(error.into())),
        }
    }

    /// Who has which end open, as far as this process may see.
    #[must_use]
    pub fn ends(&self) -> Ends {
        Ends::look(&self.stat, &self.pipe)
    }

    /// How many bytes nobody has read yet.
    #[must_use]
    pub fn queued(&self) -> Option<u64> {
        sys::queued(&self.pipe).ok()
    }
}

/// How long a full pipe is waited for, in milliseconds.
const FULL_PIPE_MS: u16 = 5000;

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// `EPIPE`
    #[error("nobody reads the pipe (EPIPE)")]
    Dead,
    /// A tracker that is stopped, or reads slower than others write.
    #[error("the pipe is full and was not read for {} s (EAGAIN)", FULL_PIPE_MS / 1000)]
    Full,
    /// Pipes take up to 512 bytes whole, so this was none.
    #[error("only {length} of {of} bytes were taken")]
    Short {
        /// What was taken.
        length: usize,
        /// The length of the message.
        of: usize,
    },
    /// Anything else.
    #[error("write to the pipe: {0}")]
    Os(io::Error),
}

/// Which processes have a pipe open. This process does not count.
#[derive(Debug, Default)]
pub struct Ends {
    /// Readers, and whether each could write as well.
    pub readers: BTreeMap<i32, bool>,
    /// How many processes have the writing end.
    pub writers: usize,
    /// How many processes could not be looked into.
    pub unreadable: usize,
    /// Whether there may be processes that are not even visible: `hidepid`, or processes outside
    /// this PID namespace.
    pub hidden: bool,
}

impl Ends {
    /// Whether every process was looked into.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.unreadable == 0 && !self.hidden
    }

    fn look(stat: &FileStat, pipe: &OwnedFd) -> Self {
        let mut ends = Self::default();
        let own = fs::read_link(format!("/proc/self/fd/{}", pipe.as_raw_fd())).unwrap_or_default();
        let Ok(entries) = fs::read_dir("/proc") else {
            ends.hidden = true;
            return ends;
        };
        ends.hidden =
            fs::symlink_metadata("/proc/1").is_err() || !in_first_pid_namespace(Path::new("/proc"));
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        let pids =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids.filter(|pid| *pid != me) {
            let found = match numbers(&proc(pid, "fd")) {
                Ok(found) => found,
                Err(error) => {
                    ends.unreadable += usize::from(
                        error.kind() == io::ErrorKind::PermissionDenied
                            && may_hold_descriptors(pid),
                    );
                    continue;
                }
            };
            let (mut reads, mut writes) = (false, false);
            for access in found
                .into_iter()
                .filter(|fd| is_same(pid, *fd, &own, stat))
                .filter_map(|fd| access(pid, fd))
            {
                reads |= access.reads;
                writes |= access.writes;
            }
            if reads {
                ends.readers.insert(pid, writes);
            }
            ends.writers += usize::from(writes);
        }
        ends
    }
}

/// Whether a process whose descriptors are secret could have any. Kernel threads, whose directories
/// belong to root, and zombies have none.
fn may_hold_descriptors(pid: i32) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    match Process::new(pid).and_then(|process| process.stat()) {
        Ok(stat) => stat.flags & PF_KTHREAD == 0 && stat.state != 'Z',
        Err(procfs::ProcError::NotFound(_)) => false,
        // hidepid=1 shows that there is a process, and nothing of it.
        Err(_) => true,
    }
}

/// Whether descriptor `fd` of `pid` is the pipe with that `stat`, which `own` is the link of.
/// Nothing is opened before its inode number is known to fit, and then by `O_PATH` only: whatever
/// else other processes have open is none of our business.
fn is_same(pid: i32, fd: RawFd, own: &Path, stat: &FileStat) -> bool {
    let path = proc(pid, "fd").join(fd.to_string());
    let Ok(link) = fs::read_link(&path) else { return false };
    if link == own && !own.has_root() {
        return true;
    }
    if !own.has_root() || !link.has_root() || info(pid, fd, "ino:", 10) != Some(stat.st_ino) {
        return false;
    }
    let handle = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let other = handle.and_then(fstat);
    other.is_ok_and(|other| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino))
}

struct Access {
    reads: bool,
    writes: bool,
}

/// What descriptor `fd` of `pid` was opened for.
fn access(pid: i32, fd: RawFd) -> Option<Access> {
    let mode = info(pid, fd, "flags:", 8)? & 0o3;
    Some(Access { reads: mode == 0 || mode == 2, writes: mode == 1 || mode == 2 })
}

/// A number in `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)); `ino` is there since Linux 5.14.
fn info(pid: i32, fd: RawFd, key: &str, radix: u32) -> Option<u64> {
    let text = fs::read_to_string(proc(pid, "fdinfo").join(fd.to_string())).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    u64::from_str_radix(value.trim(), radix).ok()
}

/// The names in a directory that are numbers.
fn numbers(directory: &Path) -> io::Result<Vec<RawFd>> {
    let entries = fs::read_dir(directory)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// How many readers of one pipe are looked at.
const CANDIDATES: usize = 8;

/// Whether a tracker is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Somebody reads the pipe.
    Alive,
    /// Nobody does, or there is no such process.
    Dead,
    /// The pipe is read, but by nobody who looks like a tracker, or it could not be looked at.
    Unknown,
}

/// What was found out about a tracker.
#[derive(Debug)]
pub struct Probe {
    /// Whether it is alive.
    pub life: Life,
    /// The process.
    pub tracker: Option<Tracker>,
    /// Who has the ends.
    pub ends: Option<Ends>,
    /// Bytes in the pipe.
    pub queued: Option<u64>,
}

impl Probe {
    /// Looks at a pipe and at who has it open. Nothing is written.
    ///
    /// # Errors
    /// What `poll` failed with.
    pub fn of(target: &Target) -> io::Result<Self> {
        let queued = target.queued();
        let ends = target.ends();
        // Each look can take as long as its deadline, and anybody may read a FIFO that is open to
        // all: a few are looked at, not every one.
        let found = ends.readers.iter().take(CANDIDATES);
        let found: Vec<(Tracker, bool)> =
            found.filter_map(|(pid, writes)| Some((Tracker::look(*pid)?, *writes))).collect();
        // A shell that opened the FIFO for both is a reader too, and no tracker.
        let tracker = target.tracker.clone().or_else(|| {
            let known = found.iter().find(|(tracker, _)| tracker.kind != Kind::Unknown);
            let one = known.or_else(|| found.iter().find(|(_, writes)| !writes));
            one.map(|(tracker, _)| tracker.clone())
        });
        let only_clients = tracker.is_none() && !ends.readers.is_empty();
        let reads = target.is_its_own_reader()?;
        let life = match (target.is_read()?, &tracker) {
            (false, _) => Life::Dead,
            (true, Some(_)) => Life::Alive,
            (true, None)
                if reads && ends.complete() && ends.readers.values().all(|writes| *writes) =>
            {
                Life::Dead
            }
            (true, None) if only_clients || reads => Life::Unknown,
            (true, None) => Life::Alive,
        };
        let tracker = tracker.filter(|_| life == Life::Alive);
        Ok(Self { life, tracker, ends: Some(ends), queued })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trackers_by_their_command_lines() {
        let python = "/usr/bin/python3.11";
        for (exe, arguments, kind, fd) in [
            (
                python,
                &["python3", "-c", "from multiprocessing.resource_tracker import main;main(5)"][..],
                Kind::Cpython,
                Some(5),
            ),
            (
                python,
                &[
                    "python3",
                    "-s",
                    "-E",
                    "-c",
                    "from multiprocessing.resource_tracker import main;main(41)",
                ],
                Kind::Cpython,
                Some(41),
            ),
            (
                python,
                &["p", "-c", "from loky.backend.resource_tracker import main; main(7, False)"],
                Kind::Loky,
                Some(7),
            ),
            (
                python,
                &[
                    "p",
                    "-c",
                    "from joblib.externals.loky.backend.resource_tracker import main; main(7, False)",
                ],
                Kind::Joblib,
                Some(7),
            ),
            (python, &["p", "-c", "import multiprocessing.resource_tracker"], Kind::Unknown, None),
            ("/usr/local/bin/rtrack", &["rtrack", "-q", "daemon", "--fd=5"], Kind::Rtrack, None),
            ("/usr/local/bin/rtrack (deleted)", &["rtrack", "daemon"], Kind::Rtrack, None),
            ("/usr/local/bin/rtrack", &["rtrack", "list"], Kind::Unknown, None),
            ("/bin/bash", &["bash"], Kind::Unknown, None),
        ] {
            let arguments: Vec<Vec<u8>> =
                arguments.iter().map(|word| word.as_bytes().to_vec()).collect();
            assert_eq!(kind_of(Some(Path::new(exe)), &arguments), (kind, fd), "{arguments:?}");
        }
    }

    #[test]
    fn versions_in_paths() {
        for (path, version) in [
            ("/usr/bin/python3.11", Some("3.11")),
            ("/home/a/.pyenv/versions/3.13.0/bin/python3.13", Some("3.13.0")),
            ("/opt/cpython-3.14.2-linux/bin/python3.14", Some("3.14.2")),
            ("/usr/bin/python3", None),
            ("/opt/13.3.7/python", None),
        ] {
            assert_eq!(Version::find(path.as_bytes()).map(|v| v.to_string()).as_deref(), version);
        }
    }

    #[test]
    fn who_reads_what() {
        let cpython = |minor, patch| Reader::of(Kind::Cpython, Some(Version { minor, patch }));
        for (reader, expected) in [
            (cpython(8, None), Reader::Old),
            (cpython(12, Some(13)), Reader::Old),
            (cpython(13, Some(9)), Reader::Old),
            (cpython(13, Some(10)), Reader::JsonOnly),
            (cpython(13, Some(11)), Reader::Dual),
            (cpython(13, None), Reader::Unknown),
            (cpython(14, Some(0)), Reader::Old),
            (cpython(14, Some(1)), Reader::JsonOnly),
            (cpython(14, Some(2)), Reader::Dual),
            (cpython(15, None), Reader::Dual),
            (Reader::of(Kind::Rtrack, None), Reader::Dual),
            (Reader::of(Kind::Loky, Some(Version { minor: 11, patch: None })), Reader::Unknown),
        ] {
            assert_eq!(reader, expected);
        }
        for (reader, name, form) in [
            (Reader::Old, &b"a b"[..], Some((Form::Ascii, true))),
            (Reader::Old, b"a:b", None),
            (Reader::Old, b"a\nb", None),
            (Reader::JsonOnly, b"a", Some((Form::Json, true))),
            (Reader::Dual, b"a:b", Some((Form::Ascii, true))),
            (Reader::Dual, b"\xff", Some((Form::Json, true))),
            (Reader::Unknown, b"a", Some((Form::Ascii, true))),
            (Reader::Unknown, b"a:b", Some((Form::Ascii, false))),
            (Reader::Unknown, b"\n", Some((Form::Json, false))),
        ] {
            assert_eq!(reader.form(name), form, "{reader:?} {name:?}");
        }
    }
}
