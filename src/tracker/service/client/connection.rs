//! A connection to a tracker that listens on a socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::Value;

use super::super::dialect::Command;
use super::super::protocol::{EncodeError, encode, form_for};
use super::{Family, Tracker};

/// The environment variable that names the socket.
pub const SOCKET_VARIABLE: &str = "RTRACK_SOCKET";

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest answer, in bytes.
const ANSWER_MAX: u64 = 64 * 1024;

/// Why a tracker on a socket was not told something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// Nobody listens there: `ENOENT` or `ECONNREFUSED`; or the daemon has ended since.
    #[error("{}: no tracker listens there: {error}", path.display())]
    Dead {
        /// The socket.
        path: PathBuf,
        /// What the system call failed with.
        error: io::Error,
    },
    /// It could not be reached for another reason, or did not answer in time.
    #[error("{}: {operation}: {error}", path.display())]
    Io {
        /// What was done,
        operation: &'static str,
        /// with which socket,
        path: PathBuf,
        /// and what came of it.
        error: io::Error,
    },
    /// The daemon does not serve this process.
    #[error("{}", crate::tracker::resource::escape(.0.as_bytes()))]
    NotServed(String),
    /// The daemon did not accept a message: what is wrong with it, and how many were wrong since the last answer.
    #[error("the tracker refused {count}: {}", crate::tracker::resource::escape(says.as_bytes()))]
    Refused {
        /// How many messages.
        count: u64,
        /// What was wrong with the last of them.
        says: String,
    },
    /// The message is too long; nothing was written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The connection is that of the process which this one was forked from.
    #[error("the connection belongs to the process that this one was forked from")]
    Forked,
}

/// What the daemon answers to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// How many messages of this connection it understood.
    pub messages: u64,
    /// How many it refused.
    pub bad: u64,
    /// How many names the owner has registered.
    pub registered: u64,
    /// Of a daemon with a journal: whether all of that is written down, so that it outlives the daemon.
    pub journaled: Option<bool>,
}

/// A connection to `rtrack daemon --listen`. What is registered by it is removed when this process ends, or when
/// the connection is dropped, whichever is first; nobody else has to end for that.
///
/// Each call waits until the daemon has answered: what [`Connection::register`] answers `Ok` to, the daemon knows.
/// It may be used by many threads. It is not for signal handlers, and a child of `fork` has to make
/// one of its own: the daemon would take it for its parent.
///
/// ```no_run
/// use rtrack::tracker::service::client::Connection;
///
/// let tracker = Connection::open("/run/rtrack.sock")?;
/// tracker.register("/frames.4711", "shared_memory")?;
/// // after shm_unlink("/frames.4711"):
/// tracker.unregister("/frames.4711", "shared_memory")?;
/// # Ok::<(), rtrack::tracker::service::client::ConnectionError>(())
/// ```
#[derive(Debug)]
pub struct Connection {
    path: PathBuf,
    process: u32,
    stream: Mutex<Stream>,
}

#[derive(Debug)]
struct Stream {
    stream: BufReader<UnixStream>,
    /// How many messages were refused until now.
    bad: u64,
    /// The pid of the daemon, as it says itself.
    pid: Option<i32>,
}

impl Connection {
    /// Connects to the daemon at `path`; this process is the owner of what is registered.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ConnectionError> {
        let path = path.as_ref().to_owned();
        let io = |operation| {
            let path = path.clone();
            move |error: io::Error| ConnectionError::Io { operation, path, error }
        };
        let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ConnectionError::Dead { path: path.clone(), error }
            }
            _ => io("connect")(error),
        })?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io("set a time limit"))?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(io("set a time limit"))?;
        let stream = Mutex::new(Stream { stream: BufReader::new(stream), bad: 0, pid: None });
        Ok(Self { path, process: std::process::id(), stream })
    }

    /// Connects to the daemon that `$RTRACK_SOCKET` names; nothing if that is not set, or empty.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    #[must_use = "a connection that is dropped takes what it registered with it"]
    pub fn from_environment() -> Option<Result<Self, ConnectionError>> {
        let path = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty())?;
        Some(Self::open(path))
    }

    /// Connects and makes the process `pid` the owner: what is registered goes when that one ends, and the end
    /// of the connection means nothing.
    ///
    /// # Errors
    /// See [`ConnectionError`]: the daemon refuses processes of others.
    pub fn open_for(path: impl AsRef<Path>, pid: u32) -> Result<Self, ConnectionError> {
        let connection = Self::open(path)?;
        connection.exchange(format!("{{\"cmd\":\"OWNER\",\"pid\":{pid}}}\n").as_bytes())?;
        Ok(connection)
    }

    /// Has the resource `name` of type `rtype` removed when the owner is gone.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub fn register(&self, name: impl AsRef<[u8]>, rtype: &str) -> Result<(), ConnectionError> {
        self.tell(Command::Register, name.as_ref(), rtype)
    }

    /// Takes that back.
    ///
    /// # Errors
    /// See [`ConnectionError`]: it is refused if this owner has not registered it.
    pub fn unregister(&self, name: impl AsRef<[u8]>, rtype: &str) -> Result<(), ConnectionError> {
        self.tell(Command::Unregister, name.as_ref(), rtype)
    }

    /// Asks whether the daemon is alive, and what it has.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub fn probe(&self) -> Result<Answer, ConnectionError> {
        self.exchange(b"")
    }

    /// Writes messages, newlines included, and waits until the daemon has done them.
    ///
    /// # Errors
    /// See [`ConnectionError`].
    pub fn exchange(&self, messages: &[u8]) -> Result<Answer, ConnectionError> {
        if self.process != std::process::id() {
            return Err(ConnectionError::Forked);
        }
        let io = |operation| {
            move |error: io::Error| match error.kind() {
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::UnexpectedEof => {
                    ConnectionError::Dead { path: self.path.clone(), error }
                }
                _ => ConnectionError::Io { operation, path: self.path.clone(), error },
            }
        };
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let wrote = send(stream.stream.get_ref(), &[messages, b"PROBE:0:noop\n"].concat());
        let mut line = Vec::new();
        let read = stream.stream.by_ref().take(ANSWER_MAX).read_until(b'\n', &mut line);
        // Why it hung up is worth more than that it did.
        if line.is_empty() {
            wrote.map_err(io("write"))?;
            read.map_err(io("read the answer"))?;
            return Err(io("read the answer")(io::ErrorKind::UnexpectedEof.into()));
        }
        let value: Value = serde_json::from_slice(&line)
            .map_err(|_| io("read the answer")(io::ErrorKind::InvalidData.into()))?;
        if let Some(says) = value.get("error").and_then(Value::as_str) {
            return Err(ConnectionError::NotServed(says.to_owned()));
        }
        let number = |key| value.get(key).and_then(Value::as_u64).unwrap_or(0);
        let answer = Answer {
            messages: number("messages"),
            bad: number("bad"),
            registered: number("registered"),
            journaled: value.get("journaled").and_then(Value::as_bool),
        };
        let count = answer.bad.saturating_sub(stream.bad);
        stream.bad = answer.bad;
        let pid = value.get("pid").and_then(Value::as_i64);
        stream.pid = pid.and_then(|pid| pid.try_into().ok()).filter(|pid| *pid > 0);
        if count > 0 {
            let says = value.get("wrong").and_then(Value::as_str).unwrap_or("?").to_owned();
            return Err(ConnectionError::Refused { count, says });
        }
        Ok(answer)
    }

    /// The pid of the daemon, if it can be seen from here. Of one whose socket a service manager made, it is known once
    /// it has answered something; until then it is the pid of the manager.
    #[must_use]
    pub fn daemon(&self) -> Option<i32> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let credentials = getsockopt(stream.stream.get_ref(), PeerCredentials).ok()?;
        let maker = Some(credentials.pid()).filter(|pid| *pid > 0)?;
        // What the daemon says is its pid where it lives, which need not be the one here.
        let is_daemon =
            |pid| Tracker::look(pid).is_some_and(|tracker| tracker.family == Some(Family::Rtrack));
        let says = stream.pid.filter(|pid| *pid != maker && !is_daemon(maker) && is_daemon(*pid));
        Some(says.unwrap_or(maker))
    }

    fn tell(&self, command: Command, name: &[u8], rtype: &str) -> Result<(), ConnectionError> {
        let message = encode(command, name, rtype, form_for(name))?;
        self.exchange(&message).map(drop)
    }
}

/// Writes everything; that nobody reads is an error and no signal.
fn send(mut stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut left = bytes;
    while !left.is_empty() {
        let flags = nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
        match nix::sys::socket::send(stream.as_raw_fd(), left, flags) {
            Ok(length) => left = left.get(length..).unwrap_or_default(),
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    stream.flush()
}
