//! The place of a journal: a name in a directory, and which files may have it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use super::file::JournalError;
use super::format::FormatError;
use crate::tracker::reap::{discard, publish, replace};
use crate::tracker::resource::Name;
use crate::tracker::sys::{self, Stat};

/// How often the file at the path may turn out to be another one than that which was opened.
const ATTEMPTS: usize = 100;

/// For reading and appending, never waiting for the other end of a FIFO, and no terminal of this
/// process's own.
const FLAGS: OFlag = OFlag::O_RDWR
    .union(OFlag::O_APPEND)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY);

const OWNER_ONLY: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    directory: Arc<OwnedFd>,
    name: OsString,
}

impl Place {
    /// The place of that path.
    pub(super) fn of(path: &Path) -> Result<Self, JournalError> {
        let error = |operation, source| JournalError::Io { path: path.into(), operation, source };
        let Some(name) = path.file_name() else {
            return Err(error("open", Errno::EISDIR.into()));
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())
            .map_err(|errno| error("open its directory", errno.into()))?;
        Ok(Self { path: path.into(), directory: Arc::new(directory), name: name.into() })
    }

    /// The directory.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn io(&self, operation: &'static str, source: impl Into<io::Error>) -> JournalError {
        JournalError::Io { path: self.path.clone(), operation, source: source.into() }
    }

    pub(super) fn format(&self, reason: FormatError) -> JournalError {
        JournalError::Format { path: self.path.clone(), reason }
    }

    pub(super) fn moved(&self) -> JournalError {
        JournalError::Moved { path: self.path.clone() }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What has the name.
    pub(super) fn look(&self) -> Result<Option<Stat>, JournalError> {
        let name = std::ffi::CString::new(self.name.as_bytes())
            .map_err(|error| self.io("statx", io::Error::from(error)))?;
        match sys::stat(&*self.directory, &name) {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(self.io("statx", error)),
        }
    }

    /// Whether `file` has the name.
    pub(super) fn is(&self, file: &File) -> Result<bool, JournalError> {
        let stat = sys::stat(file, c"").map_err(|error| self.io("statx", error))?;
        Ok(self.look()?.is_some_and(|there| (there.dev, there.ino) == (stat.dev, stat.ino)))
    }

    /// Whether `stat` is a file that registrations are entrusted to.
    fn trust(&self, stat: &Stat) -> Result<(), JournalError> {
        let reason = if !stat.is_file() {
            "it is no regular file"
        } else if stat.uid != geteuid().as_raw() && stat.uid != 0 {
            "it belongs to another user"
        } else if stat.mode & 0o022 != 0 {
            "others may write to it"
        } else if stat.nlink > 1 {
            "it has another name as well"
        } else {
            return Ok(());
        };
        Err(JournalError::Untrusted { path: self.path.clone(), reason })
    }

    /// The file that has the name, or a new one, locked.
    pub(super) fn lock(&self) -> Result<File, JournalError> {
        for _attempt in 0..ATTEMPTS {
            let Some(file) = self.open()? else { continue };
            let stat = sys::stat(&file, c"").map_err(|error| self.io("statx", error))?;
            self.trust(&stat)?;
            let locked = sys::try_lock(&file).map_err(|error| self.io("flock", error))?;
            // Between the two a daemon may have put another file in its place, and may have it.
            if !self.is(&file)? {
                continue;
            }
            if locked {
                return Ok(file);
            }
            return Err(JournalError::InUse { path: self.path.clone() });
        }
        // Who changes it so often lives.
        Err(JournalError::InUse { path: self.path.clone() })
    }

    /// Opens or makes it; nothing when it came or went meanwhile.
    fn open(&self) -> Result<Option<File>, JournalError> {
        let there = self.look()?;
        let flags = match &there {
            Some(stat) => {
                self.trust(stat)?;
                FLAGS
            }
            None => FLAGS | OFlag::O_CREAT | OFlag::O_EXCL,
        };
        match openat(&*self.directory, self.name.as_os_str(), flags, OWNER_ONLY) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::ENOENT) if there.is_some() => Ok(None),
            Err(Errno::EEXIST) if there.is_none() => Ok(None),
            Err(errno) => Err(self.io("open", errno)),
        }
    }

    /// Where the file is written that will take this name. There is only one for each journal, so that nothing
    /// piles up: whoever has the lock of the journal may take it.
    pub(super) fn draft(&self) -> Self {
        let name = OsString::from_vec([b".", self.name.as_bytes(), b".rtrack-draft"].concat());
        let path = self.path.with_file_name(&name);
        Self { path, directory: Arc::clone(&self.directory), name }
    }

    /// Makes it, locked before it has any content. What a crash has left there goes.
    pub(super) fn make(&self) -> Result<File, JournalError> {
        let make = || {
            let flags = FLAGS | OFlag::O_CREAT | OFlag::O_EXCL;
            openat(&*self.directory, self.name.as_os_str(), flags, OWNER_ONLY)
        };
        let made = match make() {
            Err(Errno::EEXIST) => {
                if let Some(stat) = self.look()? {
                    self.trust(&stat)?;
                    self.discard().map_err(|errno| self.io("unlink", errno))?;
                }
                make()
            }
            made => made,
        };
        let file = File::from(made.map_err(|errno| self.io("open", errno))?);
        match sys::try_lock(&file) {
            Ok(true) => Ok(file),
            Ok(false) => Err(self.io("flock", Errno::EWOULDBLOCK)),
            Err(error) => Err(self.io("flock", error)),
        }
    }

    pub(super) fn discard(&self) -> nix::Result<()> {
        discard(self.directory.as_fd(), &Name::from(self.name.clone()))
    }

    pub(super) fn take_name_of(&self, draft: &Self) -> Result<(), JournalError> {
        replace(self.directory.as_fd(), &draft.name, &self.name)
            .map_err(|errno| self.io("rename", errno))
    }

    /// The same, if nothing has the name.
    pub(super) fn take_free_name_of(&self, draft: &Self) -> Result<(), JournalError> {
        match publish(self.directory.as_fd(), &draft.name, &self.name) {
            Err(Errno::EEXIST) => Err(self.moved()),
            renamed => renamed.map_err(|errno| self.io("rename", errno)),
        }
    }
}
