//! The writing end of a tracker's pipe, as a number that several threads write to at once.
//!
//! The number stays the same for all of the trackers that follow one another: a new pipe is put in
//! the place of the old one in one step, so that no thread ever writes to a number that has become
//! somebody else's file. What other code has done to the number is noticed by the pipe's identity.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::check;
use super::signals::without_sigpipe;

/// A pipe's number, and which pipe it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PipeEnd {
    number: RawFd,
    dev: u64,
    ino: u64,
}

/// Which file a number refers to.
fn identity(number: RawFd) -> io::Result<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the kernel writes one structure to the buffer.
    check(unsafe { libc::fstat(number, stat.as_mut_ptr()) })?;
    // SAFETY: zeroes are valid for it, and the call succeeded.
    let stat = unsafe { stat.assume_init() };
    Ok((stat.st_dev, stat.st_ino))
}

impl PipeEnd {
    /// Takes the end over.
    pub(crate) fn new(end: OwnedFd) -> io::Result<Self> {
        let (dev, ino) = identity(end.as_raw_fd())?;
        Ok(Self { number: end.into_raw_fd(), dev, ino })
    }

    /// Whether the number is still that pipe: other code may have closed what it does not know, and
    /// opened something else.
    pub(crate) fn is_intact(&self) -> bool {
        identity(self.number).is_ok_and(|found| found == (self.dev, self.ino))
    }

    /// The end of another pipe, under this one's number where that is still its own.
    pub(crate) fn replaced_by(self, end: OwnedFd) -> io::Result<Self> {
        if !self.is_intact() {
            return Self::new(end);
        }
        let (dev, ino) = identity(end.as_raw_fd())?;
        // SAFETY: the number is one that this type owns; the call touches no memory.
        check(unsafe { libc::dup3(end.as_raw_fd(), self.number, libc::O_CLOEXEC) })?;
        Ok(Self { number: self.number, dev, ino })
    }

    /// Closes it, unless it has become something else.
    pub(crate) fn close(self) {
        if self.is_intact() {
            // SAFETY: the number is one that this type owns, and `self` was the last to know it.
            drop(unsafe { OwnedFd::from_raw_fd(self.number) });
        }
    }

    /// Another descriptor of the same end, closed on exec.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        if !self.is_intact() {
            return Err(Errno::EBADF.into());
        }
        super::duplicate(self.number)
    }

    /// Writes a message that a pipe takes whole. `EPIPE` where nobody reads, and without a SIGPIPE;
    /// `EBADF` where the number has become something else, or the end of a newer pipe.
    pub(crate) fn write(&self, message: &[u8]) -> nix::Result<usize> {
        if !self.is_intact() {
            return Err(Errno::EBADF);
        }
        without_sigpipe(|| {
            // SAFETY: the kernel reads that many bytes of the slice.
            let written =
                unsafe { libc::write(self.number, message.as_ptr().cast(), message.len()) };
            usize::try_from(written).map_err(|_| Errno::last())
        })
    }

    fn poll(&self, timeout: libc::c_int) -> io::Result<libc::c_short> {
        let mut asked = libc::pollfd { fd: self.number, events: libc::POLLOUT, revents: 0 };
        // SAFETY: the kernel reads and writes one structure.
        check(unsafe { libc::poll(&mut asked, 1, timeout) })?;
        Ok(asked.revents)
    }

    /// Whether anybody has the reading end open. Nothing is written.
    pub(crate) fn is_read(&self) -> io::Result<bool> {
        let broken = libc::POLLERR | libc::POLLNVAL;
        Ok(self.is_intact() && self.poll(0)? & broken == 0)
    }

    /// Waits, a second at most, until something can be written or nobody reads any more. Only for
    /// an end that somebody has made non-blocking: the flag is shared with everybody who has a copy.
    pub(crate) fn wait(&self) {
        // Whatever it is, the next write will tell.
        self.poll(1000).map(drop).unwrap_or(());
    }

    /// How many bytes nobody has read.
    pub(crate) fn queued(&self) -> Option<u64> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one int.
        let asked = unsafe { libc::ioctl(self.number, libc::FIONREAD, &mut bytes) };
        (self.is_intact() && asked == 0).then(|| u64::try_from(bytes).unwrap_or(0))
    }
}

/// Writes to stderr, past every buffer and lock, as a signal handler may. Nobody waits for the outcome.
pub(crate) fn to_stderr(text: &[u8]) {
    let written = without_sigpipe(|| {
        // SAFETY: the kernel reads that many bytes of the slice.
        Errno::result(unsafe { libc::write(2, text.as_ptr().cast(), text.len()) })
    });
    written.map(drop).unwrap_or(());
}
