//! Where message queues are: /dev/mqueue, or a mount of our own that is attached nowhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::evidence::mounts::Mounts;
use super::inventory::posix::open_directory;
use super::sys::{self, mqueue};

/// Where message queues usually are mounted.
pub const USUAL: &str = "/dev/mqueue";

/// What stands for the path where they are mounted nowhere.
const NOWHERE: &str = "message queues of this IPC namespace";

/// The message queues of one IPC namespace.
#[derive(Debug)]
pub struct Queues {
    /// The directory of the queues, open.
    dir: OwnedFd,
    /// What keeps a mount that is attached nowhere.
    mount: Option<OwnedFd>,
    /// Where it is, for messages.
    pub path: PathBuf,
    /// The device number of the file system: that of the IPC namespace.
    pub dev: u64,
}

impl Queues {
    /// The message queues of the IPC namespace that this thread is in, by a mount that is attached nowhere.
    ///
    /// # Errors
    /// As [`mqueue::detached_mount`].
    pub fn of_this_namespace() -> io::Result<Self> {
        let mount = mqueue::detached_mount()?;
        let dir = open_directory(mount.as_fd())?;
        let dev = sys::device(&dir)?;
        Ok(Self { dir, mount: Some(mount), path: NOWHERE.into(), dev })
    }

    /// Those that are mounted at `path`, by the mountinfo of this process in the procfs `proc`; nothing if what is
    /// mounted there is something else. A FUSE file system there, which may never answer, is not
    /// touched.
    ///
    /// # Errors
    /// The errno of opening it.
    pub fn mounted_at(proc: &Path, path: &Path) -> io::Result<Option<Self>> {
        let mounts = Mounts::parse(&std::fs::read(proc.join("self/mountinfo"))?);
        let at = mounts.at(path.as_os_str().as_bytes());
        let Some(mount) = at.filter(|mount| mount.fstype == b"mqueue" && mount.root == b"/") else {
            return Ok(None);
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = open(path, flags, Mode::empty())?;
        // Something else may have been mounted there, or over a directory above, since or before.
        if sys::device(&found)? != mount.dev {
            return Ok(None);
        }
        let dir = open_directory(found.as_fd())?;
        Ok(Some(Self { dir, mount: None, path: path.into(), dev: mount.dev }))
    }

    /// Those of our own IPC namespace and of [`USUAL`], which may be another one's, and whether not all of
    /// these could be opened. One file system is there once.
    #[must_use]
    pub fn own(proc: &Path) -> (Vec<Self>, bool) {
        let mounted = Self::mounted_at(proc, Path::new(USUAL));
        let unreadable = mounted.is_err();
        let mounted = mounted.ok().flatten();
        match (Self::of_this_namespace(), mounted) {
            (Ok(own), Some(mounted)) if own.dev == mounted.dev => {
                // Nothing can be mounted over what is in this one.
                (vec![Self { path: mounted.path, ..own }], false)
            }
            (Ok(own), mounted) => (std::iter::once(own).chain(mounted).collect(), unreadable),
            (Err(_), Some(mounted)) => (vec![mounted], false),
            (Err(_), None) => (Vec::new(), true),
        }
    }

    /// The directory of the queues.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Whether it is a mount of our own, which is attached nowhere.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.mount.is_some()
    }
}
