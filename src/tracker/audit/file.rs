//! The file that lines are appended to: where it is, what it may be, and one write a line.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::tracker::resource::escape;
use crate::tracker::sys;

/// Root's own.
const OF_ROOT: &str = "/var/log/rtrack/reap.jsonl";

/// Anybody else's, below their directory of state.
const OF_USER: &str = "rtrack/reap.jsonl";

/// How long whoever reads a pipe may let a line wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why something could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error("audit {}: {operation}", escape(.path.as_os_str().as_bytes()))]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// What was done, or what is wrong.
    pub operation: String,
    /// The errno.
    pub source: io::Error,
}

impl AuditError {
    /// The errno, for a report.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(libc::EIO)
    }
}

/// Where the record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Where the operator says.
    Given(PathBuf),
    /// Where nobody said anything: made with its directories, and never through a symbolic link.
    Default(PathBuf),
}

impl Place {
    /// The default for a process of the effective uid `euid`, by its environment. Nothing: neither
    /// `XDG_STATE_HOME` nor `HOME` is an absolute path, and the process is not root's.
    pub fn usual(euid: u32, variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        if euid == 0 {
            return Some(Self::Default(OF_ROOT.into()));
        }
        let directory = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = directory("XDG_STATE_HOME")
            .or_else(|| directory("HOME").map(|home| home.join(".local/state")))?;
        Some(Self::Default(state.join(OF_USER)))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        let (Self::Given(path) | Self::Default(path)) = self;
        path
    }
}

/// The record, open for appending.
///
/// Lines are not forced to the disk: a machine that loses power loses /dev/shm as well, and a
/// process that is killed loses nothing that it wrote.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    file: OwnedFd,
    /// The same, to see how it ends; nothing where that makes no sense, or is not allowed.
    reader: Option<File>,
    /// Nothing is known of how it ends, and nothing has been written yet.
    suspect: bool,
}

/// Appending, never waiting for the other end of a FIFO, and no terminal of this process's own.
const FLAGS: OFlag = OFlag::O_WRONLY
    .union(OFlag::O_APPEND)
    .union(OFlag::O_CREAT)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY);

const OWNERS_ONLY: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

impl Audit {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// The errno, or why a file or directory is not trusted with the record. `ENXIO`: a FIFO that
    /// nobody reads.
    pub fn open(place: &Place) -> Result<Self, AuditError> {
        let path = place.path();
        let fail = |operation: &str, source: io::Error| AuditError {
            path: path.into(),
            operation: operation.into(),
            source,
        };
        let file = match place {
            Place::Given(path) => open(path.as_path(), FLAGS, OWNERS_ONLY),
            Place::Default(path) => {
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(fail("open", io::ErrorKind::InvalidInput.into()));
                };
                let parent = directory(parent).map_err(|(what, error)| fail(what, error))?;
                openat(&parent, name, FLAGS | OFlag::O_NOFOLLOW, OWNERS_ONLY)
            }
        };
        let file = file.map_err(|errno| match (errno, place) {
            (Errno::ELOOP, Place::Default(_)) => fail("it is a symbolic link", errno.into()),
            _ => fail("open", errno.into()),
        })?;
        let stat = sys::stat(&file, c"").map_err(|error| fail("statx", error))?;
        match (stat.file_type(), place) {
            (libc::S_IFREG, _) | (libc::S_IFCHR | libc::S_IFIFO, Place::Given(_)) => {}
            _ => return Err(fail("it is no regular file", io::ErrorKind::InvalidInput.into())),
        }
        let reader = stat.is_file().then(|| again(&file)).and_then(io::Result::ok);
        let suspect = stat.is_file() && reader.is_none() && stat.size > 0;
        Ok(Self { path: path.into(), file, reader, suspect })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line, which ends in a newline, by one write(2). What an earlier crash or a full
    /// disk has left of a line is ended first.
    ///
    /// # Errors
    /// The line is not, or not as a whole, in the file.
    pub fn append(&mut self, line: &[u8]) -> Result<(), AuditError> {
        let torn = self.reader.as_ref().map_or(self.suspect, is_torn);
        let text = if torn { [b"\n", line].concat() } else { line.to_vec() };
        let fail = |operation: String, source: Errno| AuditError {
            path: self.path.clone(),
            operation,
            source: source.into(),
        };
        let written = write(&self.file, &text).map_err(|errno| fail("write".into(), errno))?;
        if written < text.len() {
            // Whoever appends next must not add to it. On a full disk this says why.
            let errno = write(&self.file, b"\n").map_or_else(|errno| errno, |_| Errno::EIO);
            let operation = format!("only {written} of {} bytes were written", text.len());
            return Err(fail(operation, errno));
        }
        self.suspect = false;
        Ok(())
    }
}

/// The same file, open for reading.
fn again(file: &OwnedFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether the last line has no end, and nobody is writing it. That cannot be read: it may have none.
fn is_torn(file: &File) -> bool {
    let mut before = None;
    for _attempt in 0..10 {
        let mut last = [0];
        let length = match file.metadata().map(|meta| meta.len()) {
            Ok(0) => return false,
            Ok(length) => length,
            Err(_) => return true,
        };
        if file.read_exact_at(&mut last, length - 1).is_ok() && last == *b"\n" {
            return false;
        }
        // A file grows page by page while another process writes a line. To be wrong about it costs
        // an empty line.
        if before == Some(length) {
            return true;
        }
        before = Some(length);
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// One write, as soon as whoever reads a pipe has made room for it.
fn write(file: &OwnedFd, text: &[u8]) -> nix::Result<usize> {
    let began = Instant::now();
    loop {
        match nix::unistd::write(file, text) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let left = PATIENCE.saturating_sub(began.elapsed());
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                let mut room = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut room, timeout) {
                    Ok(0) => return Err(Errno::EAGAIN),
                    Ok(_) | Err(Errno::EINTR) if !left.is_zero() => {}
                    Ok(_) => return Err(Errno::EAGAIN),
                    Err(errno) => return Err(errno),
                }
            }
            done => return done,
        }
    }
}

/// Makes and opens the directory of a default place, for its owner only.
///
/// # Errors
/// What was done, and the errno.
fn directory(path: &Path) -> Result<OwnedFd, (&'static str, io::Error)> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| ("make its directory", error))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = openat(AT_FDCWD, path, flags, Mode::empty())
        .map_err(|errno| ("open its directory", errno.into()))?;
    if nix::unistd::geteuid().is_root() {
        let stat = sys::stat(&directory, c"").map_err(|error| ("statx", error))?;
        if stat.uid != 0 || stat.mode & 0o022 != 0 {
            let denied = io::Error::from_raw_os_error(libc::EPERM);
            return Err(("others may write to its directory", denied));
        }
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_places() {
        let place = |euid, state: Option<&str>, home: Option<&str>| {
            let variable = |name: &str| match name {
                "XDG_STATE_HOME" => state.map(OsString::from),
                _ => home.map(OsString::from),
            };
            Place::usual(euid, variable).map(|place| place.path().to_str().unwrap().to_owned())
        };
        let home = Some("/home/a");
        for (found, expected) in [
            (place(0, Some("/s"), home), Some("/var/log/rtrack/reap.jsonl")),
            (place(7, Some("/s"), home), Some("/s/rtrack/reap.jsonl")),
            (place(7, Some("s"), home), Some("/home/a/.local/state/rtrack/reap.jsonl")),
            (place(7, Some(""), home), Some("/home/a/.local/state/rtrack/reap.jsonl")),
            (place(7, None, Some("a")), None),
            (place(7, None, None), None),
        ] {
            assert_eq!(found.as_deref(), expected);
        }
    }
}
