//! The socket that clients connect to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockType, getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};

use crate::tracker::reap::sockets;
use crate::tracker::sys;

/// Descriptors that a service manager passes begin with this one (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("{}: somebody listens there already", .0.display())]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{}: it exists, and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// What a service manager passed is of no use.
    #[error(
        "descriptor {FIRST_PASSED}, which was passed by LISTEN_FDS, is no listening unix stream socket"
    )]
    Passed,
    /// Something else.
    #[error("{operation} {}: {error}", path.display())]
    Io {
        /// What was done,
        operation: &'static str,
        /// to what,
        path: PathBuf,
        /// and what came of it.
        error: io::Error,
    },
}

/// A socket that is listened on; its name goes with it, unless a service manager made it.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    /// Path, device and inode of a name of our own.
    name: Option<(PathBuf, (u64, u64))>,
}

impl Bound {
    /// Listens at `path`, which gets the permissions `mode`; on the socket that a service manager passed instead,
    /// if one did. A socket that nobody listens on any more is replaced.
    ///
    /// Only for a process with one thread: the file mode mask is changed for a moment.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn new(path: &Path, mode: u32) -> Result<Self, BindError> {
        match passed()? {
            Some(listener) => Ok(Self { listener, name: None }),
            None => Self::at(path, mode),
        }
    }

    /// The same, whatever a service manager passed.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn at(path: &Path, mode: u32) -> Result<Self, BindError> {
        let io = |operation, error| BindError::Io { operation, path: path.into(), error };
        match std::fs::symlink_metadata(path) {
            Ok(found) => make_room(path, &found)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("look at", error)),
        }
        let before = umask(Mode::from_bits_truncate(0o777 & !mode));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse(path.into()),
            _ => io("listen at", error),
        })?;
        let found = std::fs::symlink_metadata(path).map_err(|error| io("look at", error))?;
        let path = std::path::absolute(path).map_err(|error| io("find", error))?;
        Ok(Self { listener, name: Some((path, (found.dev(), found.ino()))) })
    }

    /// The socket.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Closes every other descriptor above 2 but `ready`, and points stdin and, unless it is to be kept, stdout to
    /// /dev/null. Only for a process that has opened nothing else and has one thread.
    ///
    /// # Errors
    /// As [`sys::let_go_of_inherited`].
    pub fn let_go_of_everything_else(
        &self,
        ready: Option<&OwnedFd>,
        keep_stdout: bool,
    ) -> io::Result<()> {
        let keep: Vec<BorrowedFd<'_>> =
            [Some(self.as_fd()), ready.map(AsFd::as_fd)].into_iter().flatten().collect();
        sys::let_go_of_inherited(&keep, if keep_stdout { &[0] } else { &[0, 1] })
    }

    /// Takes the name away, unless it is another socket's by now.
    ///
    /// # Errors
    /// The errno of unlink(2).
    pub fn close(self) -> io::Result<()> {
        match &self.name {
            Some((path, inode)) => sockets::remove(path, *inode),
            None => Ok(()),
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Removes a socket that nobody listens on.
fn make_room(path: &Path, found: &std::fs::Metadata) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt;
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket(path.into()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            sockets::remove(path, (found.dev(), found.ino())).map_err(|error| BindError::Io {
                operation: "remove the socket that nobody listens on",
                path: path.into(),
                error,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Somebody does, or it cannot be told.
        _ => Err(BindError::InUse(path.into())),
    }
}

/// The socket that a service manager passed to this process, if it passed any.
fn passed() -> Result<Option<UnixListener>, BindError> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let (Some(pid), Some(count)) = (number("LISTEN_PID"), number("LISTEN_FDS")) else {
        return Ok(None);
    };
    if pid != std::process::id() || count == 0 {
        return Ok(None);
    }
    let copy = sys::duplicate(FIRST_PASSED).map_err(|_| BindError::Passed)?;
    let is_stream = getsockopt(&copy, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
    let listens = getsockopt(&copy, sockopt::AcceptConn).unwrap_or(false);
    let address = nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(copy.as_raw_fd());
    let is_unix = address.is_ok_and(|address| {
        use nix::sys::socket::SockaddrLike;
        address.family() == Some(AddressFamily::Unix)
    });
    if is_stream && listens && is_unix {
        Ok(Some(UnixListener::from(copy)))
    } else {
        Err(BindError::Passed)
    }
}
