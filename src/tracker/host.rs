//! The world as one plain struct: where /proc and /dev/shm are, and what time it is. Tests build
//! one over a tree of their own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::fstatvfs;

use super::sys::{self, Nanoseconds};

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The directory cannot be opened.
    #[error("open {path}")]
    Open {
        /// Which directory.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// The directory is not on tmpfs, where alone POSIX shared memory and semaphores live.
    #[error("{path}: not a tmpfs (file system type {magic:#x})")]
    NotTmpfs {
        /// Which directory.
        path: PathBuf,
        /// `f_type` of statfs(2).
        magic: i64,
    },
}

impl HostError {
    /// Which directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Open { path, .. } | Self::NotTmpfs { path, .. } => path,
        }
    }
}

/// Where things are and what time it is.
#[derive(Debug)]
pub struct Host {
    /// The root of procfs, normally `/proc`.
    pub proc: PathBuf,
    /// The mount of POSIX objects, normally `/dev/shm`, for messages.
    pub shm_path: PathBuf,
    /// The same, open: every object is reached through this descriptor.
    shm: OwnedFd,
    /// What part of its file system that directory is, where it is known from another namespace's
    /// mountinfo.
    pub base: Option<Vec<u8>>,
    /// The clocks.
    pub clock: Clock,
}

/// The clocks, replaceable in tests where the clock is the matter.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Wall time in nanoseconds since 1970 (`CLOCK_REALTIME`).
    pub wall: fn() -> Nanoseconds,
    /// Nanoseconds since the machine booted, suspend included (`CLOCK_BOOTTIME`), the clock that
    /// the start times in `/proc/PID/stat` count by.
    pub since_boot: fn() -> Nanoseconds,
}

impl Default for Clock {
    fn default() -> Self {
        Self { wall: wall_clock, since_boot: || read_clock(nix::time::ClockId::CLOCK_BOOTTIME) }
    }
}

/// Now, by `CLOCK_REALTIME`.
#[must_use]
pub fn wall_clock() -> Nanoseconds {
    read_clock(nix::time::ClockId::CLOCK_REALTIME)
}

fn read_clock(id: nix::time::ClockId) -> Nanoseconds {
    // Both clocks exist on every Linux that this program runs on; were one missing, its zero
    // would make every object look too young, which is the safe side.
    nix::time::clock_gettime(id)
        .map_or(0, |t| i128::from(t.tv_sec()) * 1_000_000_000 + i128::from(t.tv_nsec()))
}

/// A moment in nanoseconds since 1970 as RFC 3339 in UTC, to the millisecond.
#[must_use]
pub fn show_time(nanoseconds: Nanoseconds) -> Option<String> {
    let time = jiff::Timestamp::from_nanosecond(nanoseconds).ok()?;
    Some(format!("{time:.3}"))
}

/// The same to the nanosecond.
#[must_use]
pub fn show_exact_time(nanoseconds: Nanoseconds) -> Option<String> {
    let time = jiff::Timestamp::from_nanosecond(nanoseconds).ok()?;
    Some(format!("{time:.9}"))
}

impl Host {
    /// The machine as it is: `/proc` and `/dev/shm`.
    ///
    /// # Errors
    /// /dev/shm is missing, unreadable or not a tmpfs.
    pub fn real() -> Result<Self, HostError> {
        Self::open(Path::new("/proc"), Path::new("/dev/shm"), Clock::default())
    }

    /// A host with roots of its own.
    ///
    /// # Errors
    /// As [`Host::real`].
    pub fn open(proc: &Path, shm: &Path, clock: Clock) -> Result<Self, HostError> {
        let open_error = |source| HostError::Open { path: shm.into(), source };
        let dir = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(shm)
            .map_err(open_error)?;
        let magic = nix::sys::statfs::fstatfs(&dir)
            .map_err(|errno| open_error(errno.into()))?
            .filesystem_type();
        if magic != nix::sys::statfs::TMPFS_MAGIC {
            #[allow(
                clippy::unnecessary_cast,
                reason = "the field's type differs by architecture"
            )]
            return Err(HostError::NotTmpfs { path: shm.into(), magic: magic.0 as i64 });
        }
        Ok(Self { proc: proc.into(), shm_path: shm.into(), shm: dir.into(), base: None, clock })
    }

    /// The same machine with the objects of another `directory`, a tmpfs, which is the part `base` of
    /// its file system and called `path` in messages.
    #[must_use]
    pub fn in_directory(&self, path: PathBuf, directory: OwnedFd, base: Vec<u8>) -> Self {
        let (proc, clock) = (self.proc.clone(), self.clock);
        Self { proc, shm_path: path, shm: directory, base: Some(base), clock }
    }

    /// The directory of the POSIX objects.
    #[must_use]
    pub fn shm(&self) -> BorrowedFd<'_> {
        self.shm.as_fd()
    }

    /// Whether anything lies in it: a directory of tmpfs has 20 bytes for each entry, `.` and `..` included
    /// (`BOGO_DIRENT_SIZE` of mm/shmem.c).
    #[must_use]
    pub fn may_have_objects(&self) -> bool {
        !sys::stat(&self.shm, c"").is_ok_and(|stat| stat.size <= 40)
    }

    /// The device number of the mount.
    ///
    /// # Errors
    /// The errno of statx(2).
    pub fn shm_dev(&self) -> io::Result<u64> {
        sys::stat(&self.shm, c"").map(|stat| stat.dev)
    }

    /// How full the mount is.
    ///
    /// # Errors
    /// The errno of fstatvfs(3).
    pub fn usage(&self) -> io::Result<Usage> {
        let s = fstatvfs(&self.shm)?;
        let unit = s.fragment_size();
        Ok(Usage {
            size: s.blocks().saturating_mul(unit),
            used: s.blocks().saturating_sub(s.blocks_free()).saturating_mul(unit),
            inodes: s.files(),
            inodes_free: s.files_free(),
        })
    }

    /// A file of procfs, whole; `name` is relative to its root.
    ///
    /// # Errors
    /// The errno of reading it.
    pub fn read_proc(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.proc.join(name))
    }

    /// The boot id, by which a plan knows the boot it was made in; empty when it cannot be read.
    #[must_use]
    pub fn boot_id(&self) -> String {
        boot_id(&self.proc)
    }

    /// The host name.
    #[must_use]
    pub fn name(&self) -> String {
        host_name()
    }
}

/// The boot id that the procfs at `proc` has; empty when it cannot be read.
#[must_use]
pub fn boot_id(proc: &Path) -> String {
    std::fs::read(proc.join("sys/kernel/random/boot_id"))
        .map(|id| String::from_utf8_lossy(&id).trim().to_owned())
        .unwrap_or_default()
}

/// The PID namespace of this process by the procfs at `proc`: its inode, which is not 0; 0 when it cannot be read.
#[must_use]
pub fn pid_namespace(proc: &Path) -> u64 {
    std::fs::metadata(proc.join("self/ns/pid"))
        .map_or(0, |namespace| std::os::unix::fs::MetadataExt::ino(&namespace))
}

/// The host name; empty when there is none.
#[must_use]
pub fn host_name() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| String::new(), |name| super::resource::Name::from(name).to_lossy())
}

/// The first PID namespace (`PROC_PID_INIT_INO` of linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Whether the procfs at `proc` is seen from the first PID namespace, where every process is; false
/// if that cannot be found out.
#[must_use]
pub fn in_first_pid_namespace(proc: &Path) -> bool {
    std::fs::read_link(proc.join("self/ns/pid"))
        .is_ok_and(|link| link.as_os_str() == FIRST_PID_NAMESPACE)
}

/// How full a mount is. A size of 0 means without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes it may hold.
    pub size: u64,
    /// Bytes in use, deleted files that are still open included.
    pub used: u64,
    /// Inodes it may hold.
    pub inodes: u64,
    /// Inodes left.
    pub inodes_free: u64,
}
