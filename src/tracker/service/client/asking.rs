//! Asking a daemon on its `--control` socket.
//!
//! What a process's command line says may be a lie, and lead anywhere: so only a socket is connected to that belongs
//! to the process's own user, and only what that process itself answers counts.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, fstat};

use super::super::state::TrackerState;
use crate::tracker::deadline;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(400);

/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 256 << 20;

/// Why a daemon did not tell what it has.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It was not started with `--control`.
    #[error("process {0} was not started with --control")]
    NoControl(i32),
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
    let uids = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"));
    let uid = uids
        .and_then(|uids| {
            std::str::from_utf8(uids).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
        })
        .ok_or_else(|| io("read its status")(io::ErrorKind::InvalidData.into()))?;
    let job = (proc.to_owned(), directory.join("cmdline"));
    let asked = deadline::map(vec![job], move |(proc, line)| {
        let line = std::fs::read(line).map_err(io("read its command line"))?;
        ask(&proc, pid, uid, &line)
    });
    match asked.into_iter().next() {
        Some(Ok(answer)) => Ok((uid, answer?)),
        _ => Err(io("ask it")(io::ErrorKind::TimedOut.into())),
    }
}

/// Asks process `pid` of user `uid`, whose command line is `arguments`. It may take as long as its file systems make
/// it; its own answer is waited for less than a second.
///
/// # Errors
/// See [`AskError`].
pub fn ask(proc: &Path, pid: i32, uid: u32, arguments: &[u8]) -> Result<TrackerState, AskError> {
    let path = control_of(arguments).ok_or(AskError::NoControl(pid))?;
    let io = |operation| move |error: io::Error| AskError::Io { pid, operation, error };
    let socket = find(&proc.join(pid.to_string()), path)
        .map_err(|errno| io("open its control socket")(errno.into()))?;
    let stat = fstat(&socket).map_err(|errno| io("look at its control socket")(errno.into()))?;
    let wrong = |what| Err(AskError::NotItsSocket { pid, what });
    if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return wrong("what its command line names is no socket");
    }
    if stat.st_uid != uid {
        return wrong("the socket that its command line names belongs to another user");
    }
    let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let mut stream = UnixStream::connect(link).map_err(io("connect to its control socket"))?;
    if getsockopt(&stream, PeerCredentials).map(|peer| peer.pid()) != Ok(pid) {
        return wrong("another process listens at the socket that its command line names");
    }
    let bytes = read_within(&mut stream).map_err(io("read its answer"))?;
    TrackerState::parse(&bytes)
        .ok_or_else(|| io("read its answer")(io::ErrorKind::InvalidData.into()))
}

/// What a path means to a process, as an `O_PATH` descriptor.
fn find(process: &Path, path: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let directory = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
    if path.first() != Some(&b'/') {
        let cwd = open(&process.join("cwd"), directory, Mode::empty())?;
        return nix::fcntl::openat(&cwd, OsStr::from_bytes(path), flags, Mode::empty());
    }
    let root = open(&process.join("root"), directory, Mode::empty())?;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(&root, OsStr::from_bytes(path), OpenHow::new().flags(flags).resolve(resolve))
}

fn read_within(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let began = Instant::now();
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        let left = PATIENCE.saturating_sub(began.elapsed());
        if left.is_zero() || bytes.len() > ANSWER_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend_from_slice(piece.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
