//! Removing a folder that was registered by its path, with all that is in it: one level at a time, by
//! descriptors, and nothing outside of it, whatever somebody puts in the place of its parts meanwhile.
//!
//! The way up is `..`, and the directory found there has to be the one that was left: so neither the stack
//! nor the table of descriptors limits the depth, and nothing is moved. What cannot be removed does not keep
//! the rest from going.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::tracker::evidence::lease::c_name;
use crate::tracker::inventory::posix::entries;
use crate::tracker::resource::{Identity, Name, escape};
use crate::tracker::sys;

/// Why a folder is still there, or some of it.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Its path ends with `.` or `..`, or is `/`: no entry of a directory that could be removed.
    #[error("Cannot call rmtree on {}", escape(.0))]
    Unnamed(Vec<u8>),
    /// It is a symbolic link; neither the link nor what it leads to is touched.
    #[error("Cannot call rmtree on a symbolic link")]
    Link,
    /// It is a mount, or one is in it: what is mounted is not looked at.
    #[error("Cannot call rmtree on a mount: {}", escape(.0))]
    Mount(Vec<u8>),
    /// Something in it, or itself, could not be removed.
    #[error("{error}{}", Where(.within))]
    Os {
        /// The first error,
        error: io::Error,
        /// and where in the folder it was met; empty if it was the folder itself.
        within: Vec<u8>,
    },
}

/// Where an error was met, for people.
struct Where<'a>(&'a [u8]);

impl std::fmt::Display for Where<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", escape(self.0)) }
    }
}

impl TreeError {
    /// The errno, where a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }

    fn of(errno: Errno) -> Self {
        Self::Os { error: errno.into(), within: Vec::new() }
    }
}

/// Removes the folder at `path`, which is relative to the working directory, and answers how many entries
/// it had, at all levels. Links above the folder are followed, as whoever named the path meant them; the
/// folder itself and all below is neither a link nor beyond a mount.
///
/// # Errors
/// The first that was met. Everything that could be removed is gone all the same.
pub(super) fn remove(path: &[u8]) -> Result<u64, TreeError> {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
    let trimmed = path.get(..end).unwrap_or_default();
    let (parent, last) = match trimmed.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => trimmed.split_at(slash + 1),
        None => (&b"."[..], trimmed),
    };
    match last {
        b"" if path.is_empty() => return Err(TreeError::of(Errno::ENOENT)),
        b"" | b"." | b".." => return Err(TreeError::Unnamed(path.to_vec())),
        _ => {}
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent =
        openat(AT_FDCWD, OsStr::from_bytes(parent), flags, Mode::empty()).map_err(TreeError::of)?;
    let name = Name::new(last);
    let stat = c_name(&name).and_then(|name| sys::stat(&parent, &name));
    let stat = stat.map_err(|error| TreeError::Os { error, within: Vec::new() })?;
    if stat.file_type() == libc::S_IFLNK {
        return Err(TreeError::Link);
    }
    if !stat.is_dir() {
        return Err(TreeError::of(Errno::ENOTDIR));
    }
    let top = match open_below(parent.as_fd(), name.as_os_str()) {
        // A link or something else took its place.
        Err(Errno::ELOOP) => return Err(TreeError::Link),
        Err(Errno::EXDEV) => return Err(TreeError::Mount(path.to_vec())),
        opened => opened.map_err(TreeError::of)?,
    };
    let mut walk = Walk { path, levels: Vec::new(), removed: 0, trouble: None };
    walk.empty(top);
    let Walk { removed, trouble, .. } = walk;
    let gone = match unlinkat(&parent, name.as_os_str(), UnlinkatFlags::RemoveDir) {
        // Somebody else was faster, and that is what was wanted.
        Ok(()) | Err(Errno::ENOENT) => return Ok(removed),
        Err(errno) => TreeError::of(errno),
    };
    Err(trouble.unwrap_or(gone))
}

/// More levels than this are not entered: somebody goes on making them.
const MOST_LEVELS: usize = 1_000_000;

/// How often a directory that was emptied is looked into again, since somebody put more into it.
const MOST_RETURNS: u8 = 3;

/// A directory on the way down.
struct Level {
    /// Which one it is.
    identity: Identity,
    /// Its name in the one above; empty for the folder itself.
    name: Name,
    /// What is in it and was not looked at yet, the last first.
    pending: Vec<Name>,
    /// Whether something stays in it.
    keeps: bool,
    /// How often one of the directories in it turned out not to be empty.
    returns: u8,
}

struct Walk<'a> {
    path: &'a [u8],
    levels: Vec<Level>,
    removed: u64,
    /// The first thing that went wrong.
    trouble: Option<TreeError>,
}

/// What became of an entry.
enum Entry {
    Gone,
    /// A directory with something in it, or that cannot be removed and perhaps emptied.
    Directory,
}

impl Walk<'_> {
    /// Removes what is in `current`.
    fn empty(&mut self, mut current: OwnedFd) {
        if let Err(error) = self.enter(&current, Name::new(&b""[..])) {
            return self.note(&[], error);
        }
        loop {
            let Some(level) = self.levels.last_mut() else { return };
            let Some(name) = level.pending.pop() else {
                match self.leave(&current) {
                    Ok(Some(above)) => current = above,
                    Ok(None) => return,
                    Err(error) => return self.note(b"..", error),
                }
                continue;
            };
            match self.unlink(current.as_fd(), &name) {
                Ok(Entry::Gone) => {}
                Ok(Entry::Directory) => match self.descend(current.as_fd(), &name) {
                    Ok(below) => current = below,
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => self.note(name.as_bytes(), error),
                },
                Err(errno) => self.note(name.as_bytes(), errno.into()),
            }
        }
    }

    fn unlink(&mut self, dir: BorrowedFd<'_>, name: &Name) -> nix::Result<Entry> {
        match unlinkat(dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => {
                self.removed += 1;
                return Ok(Entry::Gone);
            }
            Err(Errno::ENOENT) => return Ok(Entry::Gone),
            Err(Errno::EISDIR) => {}
            // Said of directories too: where they themselves stay, what is in them may go.
            Err(Errno::EPERM | Errno::EACCES) if is_directory(dir, name) => {}
            Err(errno) => return Err(errno),
        }
        match unlinkat(dir, name.as_os_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => {
                self.removed += 1;
                Ok(Entry::Gone)
            }
            Err(Errno::ENOENT) => Ok(Entry::Gone),
            // A mount.
            Err(Errno::EBUSY) => Err(Errno::EXDEV),
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EACCES | Errno::EPERM) => {
                Ok(Entry::Directory)
            }
            Err(errno) => Err(errno),
        }
    }

    fn descend(&mut self, dir: BorrowedFd<'_>, name: &Name) -> io::Result<OwnedFd> {
        if self.levels.len() >= MOST_LEVELS {
            return Err(Errno::ELOOP.into());
        }
        let below = open_below(dir, name.as_os_str())?;
        self.enter(&below, name.clone())?;
        Ok(below)
    }

    fn enter(&mut self, dir: &OwnedFd, name: Name) -> io::Result<()> {
        let identity = Identity::of(&sys::stat(dir, c"")?);
        let mut pending = entries(dir.as_fd())?;
        pending.reverse();
        self.levels.push(Level { identity, name, pending, keeps: false, returns: 0 });
        Ok(())
    }

    /// Goes back up from `current`, and removes it there; nothing if it is the folder itself.
    fn leave(&mut self, current: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        let Some(left) = self.levels.pop() else { return Ok(None) };
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        let above = open_below(current.as_fd(), OsStr::new(".."))?;
        if Identity::of(&sys::stat(&above, c"")?) != level.identity {
            // It was moved away: where it is now is none of our business.
            return Err(Errno::ESTALE.into());
        }
        match unlinkat(&above, left.name.as_os_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => self.removed += 1,
            Err(Errno::ENOENT) => {}
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if left.keeps => level.keeps = true,
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if level.returns < MOST_RETURNS => {
                level.returns += 1;
                level.pending.push(left.name);
            }
            Err(errno) => self.note(left.name.as_bytes(), errno.into()),
        }
        Ok(Some(above))
    }

    /// Remembers what went wrong with `name` in the current directory.
    fn note(&mut self, name: &[u8], error: io::Error) {
        if let Some(level) = self.levels.last_mut() {
            level.keeps = true;
        }
        if self.trouble.is_some() {
            return;
        }
        let mut within = Vec::new();
        for part in self.levels.iter().map(|level| level.name.as_bytes()).chain([name]) {
            if !part.is_empty() {
                within.extend_from_slice(if within.is_empty() { b"" } else { b"/" });
                within.extend_from_slice(part);
            }
        }
        self.trouble = Some(match error.raw_os_error() {
            Some(libc::EXDEV) => TreeError::Mount([self.path, b"/", &*within].concat()),
            _ => TreeError::Os { error, within },
        });
    }
}

fn is_directory(dir: BorrowedFd<'_>, name: &Name) -> bool {
    c_name(name).and_then(|name| sys::stat(dir, &name)).is_ok_and(|stat| stat.is_dir())
}

/// Opens the directory `name` in `dir`, or `..`, unless it is a link (`ELOOP`, `ENOTDIR`) or on another
/// mount (`EXDEV`).
fn open_below(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    match openat2(dir, name, OpenHow::new().flags(DIRECTORY).resolve(resolve)) {
        // Before Linux 5.6, or a sandbox that does not know it.
        Err(Errno::ENOSYS | Errno::EPERM) => open_compared(dir, name),
        opened => opened,
    }
}

/// No right to read it is needed, and nothing is awakened by it.
const DIRECTORY: OFlag =
    OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The same without openat2(2): which mount it is on is asked afterwards.
fn open_compared(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let opened = openat(dir, name, DIRECTORY, Mode::empty())?;
    if mount_of(dir)? == mount_of(opened.as_fd())? { Ok(opened) } else { Err(Errno::EXDEV) }
}

/// The number of the mount, which Linux before 5.8 tells in `/proc` only.
fn mount_of(fd: BorrowedFd<'_>) -> nix::Result<u64> {
    if let Ok(id) = sys::mount_id(fd) {
        return Ok(id);
    }
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let line = info.ok().and_then(|info| {
        info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
    });
    line.ok_or(Errno::EXDEV)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    /// A directory of its own for each test.
    fn place(name: &str) -> PathBuf {
        let place =
            std::env::temp_dir().join(format!("rtrack-trees-{}-{name}", std::process::id()));
        fs::create_dir(&place).unwrap();
        place
    }

    #[test]
    fn without_openat2_links_are_refused_as_well() {
        let place = place("compared");
        fs::create_dir(place.join("a")).unwrap();
        symlink("a", place.join("link")).unwrap();
        File::create(place.join("file")).unwrap();
        let dir = File::open(&place).unwrap();
        for open in [open_below, open_compared] {
            let below = open(dir.as_fd(), OsStr::new("a")).unwrap();
            let above = open(below.as_fd(), OsStr::new("..")).unwrap();
            let identity = |fd: &OwnedFd| Identity::of(&sys::stat(fd, c"").unwrap());
            assert_eq!(identity(&above), identity(&dir.try_clone().unwrap().into()));
            for other in ["link", "file"] {
                let error = open(dir.as_fd(), OsStr::new(other)).unwrap_err();
                assert!(matches!(error, Errno::ELOOP | Errno::ENOTDIR), "{other}: {error}");
            }
            // Another mount than that of the root directory.
            let root = File::open("/").unwrap();
            assert_eq!(open(root.as_fd(), OsStr::new("proc")).unwrap_err(), Errno::EXDEV);
        }
        assert_eq!(remove(place.as_os_str().as_bytes()).unwrap(), 3);
        assert!(!place.exists());
    }

    #[test]
    fn paths_that_name_no_entry_are_refused() {
        let place = place("unnamed");
        fs::create_dir_all(place.join("a/b")).unwrap();
        for end in ["a/b/.", "a/b/..", "a/..//", "."] {
            let path = place.join("x").into_os_string().into_string().unwrap().replace("/x", "/");
            let error = remove(format!("{path}{end}").as_bytes()).unwrap_err();
            assert!(matches!(error, TreeError::Unnamed(_)), "{end}: {error}");
        }
        for path in ["/", "//", ".", "..", "./", "../"] {
            let error = remove(path.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), format!("Cannot call rmtree on {path}"));
        }
        assert_eq!(remove(b"").unwrap_err().errno(), Some(libc::ENOENT));
        let (path, slashes) = (place.as_os_str().as_bytes(), b"///");
        assert_eq!(remove(&[path, slashes].concat()).unwrap(), 2);
    }
}
