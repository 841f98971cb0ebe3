//! Objects in /dev/shm: made plainly, or as the C library makes them.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::check;

/// Where `name` lies.
pub(crate) fn path(name: impl AsRef<OsStr>) -> PathBuf {
    Path::new("/dev/shm").join(name.as_ref())
}

/// Everything in /dev/shm, hidden names included.
pub(crate) fn names() -> BTreeSet<OsString> {
    fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// Device and inode of `name`, which is not followed; nothing when there is no such name.
pub(crate) fn identity(name: impl AsRef<OsStr>) -> Option<(u64, u64)> {
    match fs::symlink_metadata(path(name)) {
        Ok(meta) => Some((meta.dev(), meta.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

/// An object to be made: a plain file of 4096 bytes that nobody holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Object {
    size: usize,
    mode: u32,
    owner: Option<u32>,
}

/// The description of an object of 4096 bytes, mode 0600, of this user.
pub(crate) fn object() -> Object {
    Object { size: 4096, mode: 0o600, owner: None }
}

impl Object {
    /// Of `size` bytes, all of them allocated.
    pub(crate) fn size(self, size: usize) -> Self {
        Self { size, ..self }
    }

    /// With the permissions `mode`.
    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Owned by user and group `uid` (needs real root).
    pub(crate) fn owner(self, uid: u32) -> Self {
        Self { owner: Some(uid), ..self }
    }

    /// Makes it as `name`, which must be free, and answers with its device and inode.
    pub(crate) fn make(self, name: impl AsRef<OsStr>) -> (u64, u64) {
        let place = path(&name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&place).unwrap();
        io::Write::write_all(&mut &file, &vec![0xa5; self.size]).unwrap();
        file.set_permissions(PermissionsExt::from_mode(self.mode)).unwrap();
        if let Some(uid) = self.owner {
            chown(&place, Some(uid), Some(uid)).unwrap();
        }
        identity(name).unwrap()
    }
}

/// A directory of this name and mode as a killed reaper leaves it, with these objects, which it had
/// moved there: so they are older than the directory.
pub(crate) fn leave(directory: &str, mode: u32, objects: &[&str]) {
    // Births are as coarse as the timer tick.
    thread::sleep(Duration::from_millis(20));
    fs::DirBuilder::new().mode(mode).create(path(directory)).unwrap();
    for name in objects {
        fs::rename(path(name), path(directory).join(name)).unwrap();
    }
}

/// `shm_open(3)` with `O_CREAT|O_EXCL|O_RDWR`, mode 0600, and `ftruncate` to `size`.
pub(crate) fn shm_open(name: &str, size: u64) -> File {
    let name = CString::new(name).unwrap();
    // SAFETY: the name is NUL-terminated and outlives the call; the descriptor is new.
    let fd = unsafe {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        OwnedFd::from_raw_fd(check(libc::shm_open(name.as_ptr(), flags, 0o600)).unwrap())
    };
    let file = File::from(fd);
    file.set_len(size).unwrap();
    file
}

/// A semaphore of `sem_open(3)` with `O_CREAT|O_EXCL`, mode 0600; closed, not unlinked, on drop.
#[derive(Debug)]
pub(crate) struct Semaphore(*mut libc::sem_t);

/// Makes a semaphore as the C library does.
pub(crate) fn sem_open(name: &str, value: u32) -> Semaphore {
    open_semaphore(name, libc::O_CREAT | libc::O_EXCL, value)
}

/// Opens a semaphore that exists.
pub(crate) fn sem_open_existing(name: &str) -> Semaphore {
    open_semaphore(name, 0, 0)
}

fn open_semaphore(name: &str, flags: i32, value: u32) -> Semaphore {
    let name = CString::new(name).unwrap();
    // SAFETY: the name is NUL-terminated and outlives the call.
    let semaphore = unsafe { libc::sem_open(name.as_ptr(), flags, 0o600, value) };
    assert!(semaphore != libc::SEM_FAILED, "{}", io::Error::last_os_error());
    Semaphore(semaphore)
}

impl Semaphore {
    /// Waits until it can be decremented.
    pub(crate) fn wait(&self) {
        // SAFETY: the semaphore is open until drop.
        check(unsafe { libc::sem_wait(self.0) }).unwrap();
    }

    /// Increments it.
    pub(crate) fn post(&self) {
        // SAFETY: the semaphore is open until drop.
        check(unsafe { libc::sem_post(self.0) }).unwrap();
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // SAFETY: the semaphore is open and not used after this.
        unsafe { libc::sem_close(self.0) };
    }
}
