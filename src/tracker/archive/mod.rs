//! What was saved of objects before they went, and how they come back.
//!
//! An archive is a directory. Each object in it is a document `UNIQUE.json` (schema
//! `rtrack.archive/1`) and, for each regular file of it, `UNIQUE.N.data`. The document is written
//! last and under another name until it is whole, so that a save that was interrupted leaves data
//! without a document and is known for what it is. Holes of the data stay holes.
//!
//! The checksums find damage and clumsy edits. Who may write in the directory can make new ones, so
//! it is also looked at whose it is.

mod content;
mod format;
mod read;
mod restore;
mod save;

pub use format::{Document, Entry, Moment, Type, Verdict};
pub use read::{Archived, Broken, Contents, read};
pub use restore::{Lost, Outcome, Restored, Restorer};
pub use save::{Archive, SaveError, Subject};

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};

use super::sys::{self, Stat};

/// Why a directory is no archive, or no safe place for one.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A system call failed.
    #[error("{path}: {step}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// It is something else.
    #[error("{0}: not a directory (symbolic links are not followed)")]
    NotADirectory(PathBuf),
    /// It lies where the objects lie.
    #[error("{0}: lies on the same file system as the objects: nothing would be freed")]
    SameFileSystem(PathBuf),
    /// Somebody else owns it.
    #[error("{path}: belongs to uid {owner}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others have access to it.
    #[error("{path}: has mode {mode:04o}, which lets others in")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// What is asked of the directory of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Ours and closed to everybody else: memory holds secrets.
    ToWrite,
    /// Ours or root's, and nobody else can have put anything there.
    ToRead,
}

impl Trust {
    fn check(self, path: &Path, stat: &Stat) -> Result<(), ArchiveError> {
        let own = stat.uid == nix::unistd::geteuid().as_raw();
        let (owner, closed) = match self {
            Self::ToWrite => (own, stat.mode & 0o077 == 0),
            Self::ToRead => (own || stat.uid == 0, stat.mode & 0o022 == 0),
        };
        if !owner {
            return Err(ArchiveError::Foreign { path: path.to_owned(), owner: stat.uid });
        }
        if !closed {
            return Err(ArchiveError::Open { path: path.to_owned(), mode: stat.mode & 0o7777 });
        }
        Ok(())
    }
}

/// Opens the directory of an archive. With `make` a missing one is made, with mode 0700; without it
/// that is `None`. One on the device `not_on` is refused.
fn open_directory(
    path: &Path,
    trust: Trust,
    make: bool,
    not_on: Option<u64>,
) -> Result<Option<File>, ArchiveError> {
    let fail = |step: &'static str| {
        move |source: io::Error| ArchiveError::Io { path: path.to_owned(), step, source }
    };
    let (parent, name) = split(path);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = openat(nix::fcntl::AT_FDCWD, &parent, flags, Mode::empty())
        .map_err(|errno| fail("open the directory above it")(errno.into()))?;
    let open = || -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&parent, &name, flags, Mode::empty())
    };
    let mut made = false;
    let dir = match open() {
        Err(Errno::ENOENT) if make => {
            let above = sys::device(&parent).map_err(fail("look at the directory above it"))?;
            if Some(above) == not_on {
                return Err(ArchiveError::SameFileSystem(path.to_owned()));
            }
            mkdirat(&parent, &name, Mode::S_IRWXU).map_err(|e| fail("make it")(e.into()))?;
            made = true;
            open()
        }
        Err(Errno::ENOENT) if trust == Trust::ToWrite => return Ok(None),
        opened => opened,
    };
    let dir = match dir {
        Ok(dir) => dir,
        Err(Errno::ELOOP | Errno::ENOTDIR) => {
            return Err(ArchiveError::NotADirectory(path.to_owned()));
        }
        Err(errno) => return Err(fail("open it")(errno.into())),
    };
    let stat = sys::stat(&dir, c"").map_err(fail("look at it"))?;
    if made && stat.uid == nix::unistd::geteuid().as_raw() {
        // Undoes what the umask, or a set-group-ID bit above, made of the mode.
        fchmod(&dir, Mode::S_IRWXU).map_err(|errno| fail("set its mode")(errno.into()))?;
    }
    let stat = if made { sys::stat(&dir, c"").map_err(fail("look at it"))? } else { stat };
    trust.check(path, &stat)?;
    if Some(stat.dev) == not_on {
        return Err(ArchiveError::SameFileSystem(path.to_owned()));
    }
    Ok(Some(File::from(dir)))
}

/// The directory above and the last name, without slashes at the end: those would have a symbolic
/// link followed.
fn split(path: &Path) -> (PathBuf, PathBuf) {
    let plain: PathBuf = path.components().collect();
    match (plain.parent(), plain.components().next_back()) {
        (Some(parent), Some(Component::Normal(name))) => {
            let above = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            (above.to_owned(), PathBuf::from(name))
        }
        _ => (plain, PathBuf::from(".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_is_never_followed() {
        for (path, above, name) in [
            ("a", ".", "a"),
            ("a/", ".", "a"),
            ("a/.", ".", "a"),
            ("/var/a//", "/var", "a"),
            ("..", "..", "."),
            ("/", "/", "."),
            ("a/..", "a/..", "."),
        ] {
            let expected = (PathBuf::from(above), PathBuf::from(name));
            assert_eq!(split(Path::new(path)), expected, "{path}");
        }
    }
}
