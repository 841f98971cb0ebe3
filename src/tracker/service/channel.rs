//! Taking over the inherited descriptor that a tracker reads.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, fstat};

use crate::tracker::sys;

/// The read end, closed on exec. It may or may not be non-blocking.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    /// `poll` does not tell of the end until a writer has come and gone: see [`Channel::tells_end`].
    silent: bool,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Channel {
    /// Whether `poll` tells of the end of input. It does not of a FIFO that was opened anew while no
    /// writer was left: somebody may have written to it and gone before. Such a channel is private
    /// and never blocks, so it is asked by reading once anything has been read from it.
    #[must_use]
    pub fn tells_end(&self) -> bool {
        !self.silent
    }
}

/// Why a descriptor cannot be a tracker's.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Nothing is open under that number.
    #[error("descriptor {0} is not open")]
    NotOpen(RawFd),
    /// A directory.
    #[error("descriptor {0} is a directory")]
    Directory(RawFd),
    /// Open for writing only, or for neither (`O_PATH`).
    #[error("descriptor {0} is not open for reading")]
    NotReadable(RawFd),
    /// Who waits for the tracker to be ready cannot be told, and would take it for dead.
    #[error("descriptor {fd}: say that the tracker is ready: {error}")]
    NotTold {
        /// The number of the descriptor that was to be written to.
        fd: RawFd,
        /// Why it could not be.
        error: io::Error,
    },
    /// It looks readable and is not.
    #[error("descriptor {fd}: {operation}: {error}")]
    Os {
        /// The number.
        fd: RawFd,
        /// What was done.
        operation: &'static str,
        /// What came of it.
        error: io::Error,
    },
}

/// Takes over what is open under the number `fd` and lets go of everything else but stderr: a
/// tracker outlives its clients, and must not keep their files, pipes and terminals open. Least
/// of all a write end of its own pipe, whose end it would wait for in vain.
///
/// Standard input and output lead to /dev/null from then on; with `keep_stdout` the latter does not, unless it is
/// the pipe itself.
///
/// Only for a process that has opened nothing yet and has one thread. With `ready`, a newline is
/// written there when all else is done: whoever waits for it knows that from now on every message has
/// a reader. Where anything fails, nothing is written.
///
/// # Errors
/// See [`TakeError`].
pub fn take(fd: RawFd, ready: Option<RawFd>, keep_stdout: bool) -> Result<Channel, TakeError> {
    if fd < 0 || !sys::was_open_at_start(fd) {
        return Err(TakeError::NotOpen(fd));
    }
    let os = |operation| move |error: io::Error| TakeError::Os { fd, operation, error };
    let mut channel = sys::duplicate(fd).map_err(|error| match error.raw_os_error() {
        Some(nix::libc::EBADF) => TakeError::NotOpen(fd),
        _ => os("fcntl F_DUPFD_CLOEXEC")(error),
    })?;
    let stat = fstat(&channel).map_err(|error| os("fstat")(error.into()))?;
    let file_type = stat.st_mode & nix::libc::S_IFMT;
    if file_type == nix::libc::S_IFDIR {
        return Err(TakeError::Directory(fd));
    }
    let flags =
        fcntl(&channel, FcntlArg::F_GETFL).map_err(|error| os("fcntl F_GETFL")(error.into()))?;
    let flags = OFlag::from_bits_retain(flags);
    let access = flags & OFlag::O_ACCMODE;
    if flags.contains(OFlag::O_PATH) || (access != OFlag::O_RDONLY && access != OFlag::O_RDWR) {
        return Err(TakeError::NotReadable(fd));
    }
    if file_type == 0 {
        // Not every anonymous inode can be read (an epoll instance cannot); asking for nothing
        // finds out without taking anything.
        nix::unistd::read(&channel, &mut []).map_err(|error| os("read")(error.into()))?;
    }
    let not_told = |error| TakeError::NotTold { fd: ready.unwrap_or(-1), error };
    let ready = ready.map(copy).transpose().map_err(not_told)?;
    let mut quiet = if keep_stdout { vec![0] } else { vec![0, 1] };
    let mut silent = false;
    if file_type == nix::libc::S_IFIFO {
        let same = |error: nix::sys::stat::FileStat| {
            (error.st_dev, error.st_ino) == (stat.st_dev, stat.st_ino)
        };
        if fstat(io::stderr()).is_ok_and(same) {
            quiet.push(2);
        }
        if keep_stdout && fstat(io::stdout()).is_ok_and(same) {
            quiet.push(1);
        }
        if access == OFlag::O_RDWR {
            channel = only_reading(channel, ready.as_ref(), &mut quiet, fd)?;
            silent = true;
        }
    }
    let_go(&channel, ready.as_ref(), &quiet).map_err(os(LET_GO))?;
    ready.map(tell).transpose().map_err(not_told)?;
    Ok(Channel { fd: channel, silent })
}

const LET_GO: &str = "close what else was inherited";

/// A copy of the inherited descriptor `fd`, which outlives the original.
///
/// # Errors
/// `EBADF`: nothing is open under that number.
pub fn copy(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 || !sys::was_open_at_start(fd) {
        return Err(nix::Error::EBADF.into());
    }
    sys::duplicate(fd)
}

/// Says to who waits at the other end of `ready` that the tracker is ready.
///
/// # Errors
/// The errno of write(2).
pub fn tell(ready: OwnedFd) -> io::Result<()> {
    sys::interrupted(|| nix::unistd::write(&ready, b"\n"))?;
    Ok(())
}

fn let_go(channel: &OwnedFd, ready: Option<&OwnedFd>, quiet: &[RawFd]) -> io::Result<()> {
    let keep: Vec<BorrowedFd<'_>> =
        [Some(channel), ready].into_iter().flatten().map(AsFd::as_fd).collect();
    sys::let_go_of_inherited(&keep, quiet)
}

/// The read end of a FIFO that was opened for both (`exec 5<>fifo`, as shells do it to not block):
/// such a descriptor is a write end too, and whoever reads it never sees the end.
///
/// Opened with `O_NONBLOCK` while no writer is left, a FIFO has no hang-up until a writer has come
/// and gone (fifo(7), poll), so the tracker waits for its first client.
fn only_reading(
    both: OwnedFd,
    ready: Option<&OwnedFd>,
    quiet: &mut Vec<RawFd>,
    fd: RawFd,
) -> Result<OwnedFd, TakeError> {
    let os =
        |operation| move |error: nix::Error| TakeError::Os { fd, operation, error: error.into() };
    let reopen = |from: &OwnedFd| {
        let path = format!("/proc/self/fd/{}", from.as_raw_fd());
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        open(path.as_str(), flags, Mode::empty()).map_err(os("reopen it for reading only"))
    };
    let reader = reopen(&both)?;
    drop(both);
    let_go(&reader, ready, quiet).map_err(|error| TakeError::Os {
        fd,
        operation: LET_GO,
        error,
    })?;
    quiet.clear();
    reopen(&reader)
}
