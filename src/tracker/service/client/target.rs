//! The pipe of a tracker that somebody else started.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, fstat};
use procfs::process::Process;

use super::descriptors::{access, numbers, proc};
use super::everywhere;
use super::launch::Family;
use super::probe::Ends;
use super::tracker::Tracker;
use crate::tracker::resource::escape;
use crate::tracker::sys;

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
    #[error("process {pid} ({}) is no resource tracker that is known here", escape(.comm.as_bytes()))]
    NotATracker {
        /// The process.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// A tracker whose pipe is not to be found.
    #[error("process {0} reads from no pipe, or from several")]
    NoPipe(i32),
    /// The same, where one of its descriptors could not be looked at.
    #[error(
        "process {0} reads from no pipe, unless from one on a file system that may never answer"
    )]
    MayHang(i32),
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
        match tracker.family {
            None => return Err(TargetError::NotATracker { pid, comm: tracker.comm }),
            // It serves sockets; a pipe that it may have as its stdin is something else.
            Some(Family::TorchShmManager) => return Err(TargetError::NoPipe(pid)),
            Some(_) => {}
        }
        let directory = proc(pid, "fd");
        let list = || numbers(&directory).map_err(os("read", &directory));
        let candidates = match tracker.fd {
            Some(fd) => vec![fd],
            None => list()?,
        };
        // Look before opening: the descriptor may be another one by now, and opening a device for
        // writing can have consequences. What O_PATH refers to stays what it is.
        // Not even that is done on a file system that may never answer.
        let mut pipes = Vec::new();
        let mut may_hang = false;
        for fd in candidates {
            let path = directory.join(fd.to_string());
            if !everywhere::answers(&proc(pid, ""), fd) {
                may_hang |= access(pid, fd).is_none_or(|access| access.reads);
                continue;
            }
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
        let [(handle, stat, path)] = <[_; 1]>::try_from(pipes).map_err(|pipes| {
            if pipes.is_empty() && may_hang {
                TargetError::MayHang(pid)
            } else {
                TargetError::NoPipe(pid)
            }
        })?;
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
