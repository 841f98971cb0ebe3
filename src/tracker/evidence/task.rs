//! One process, or one of its threads, by its directory in /proc.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::processes::task_gone;
use crate::tracker::sys;

/// An open directory of a process or thread. When that is gone, nothing can be read in it any more,
/// whoever has its number then.
#[derive(Debug)]
pub struct Task {
    path: PathBuf,
    dir: OwnedFd,
}

impl AsFd for Task {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Task {
    /// Opens it.
    ///
    /// # Errors
    /// The errno of open(2).
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(&path, flags, Mode::empty())?;
        Ok(Self { path, dir })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something of it could not be read because it is gone.
    #[must_use]
    pub fn is_gone(&self, error: &io::Error) -> bool {
        task_gone(&self.path, error)
    }

    /// One of its files, open for reading.
    ///
    /// # Errors
    /// The errno of openat(2).
    pub fn file(&self, name: &CStr) -> io::Result<File> {
        Ok(File::from(openat(&self.dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?))
    }

    /// Reads one of its files into `text`, in place of what was there.
    ///
    /// # Errors
    /// The errno of openat(2) or read(2).
    pub fn read(&self, name: &CStr, text: &mut Vec<u8>) -> io::Result<()> {
        text.clear();
        // Not read_to_end of std, which first asks for the size: that is always 0.
        let mut file = self.file(name)?;
        loop {
            let length = text.len();
            text.resize(length + ROOM.max(length), 0);
            let read = file.read(text.get_mut(length..).unwrap_or_default());
            text.truncate(length + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The same of a file that the kernel writes in one piece: a short read is the whole.
    ///
    /// # Errors
    /// As [`Task::read`].
    pub fn read_piece(&self, name: &CStr, text: &mut Vec<u8>) -> io::Result<()> {
        let mut file = self.file(name)?;
        text.clear();
        text.resize(ROOM, 0);
        match file.read(text) {
            Ok(length) if length < ROOM => {
                text.truncate(length);
                Ok(())
            }
            _ => self.read(name, text),
        }
    }

    /// Where one of its links leads to, put into `target`.
    ///
    /// # Errors
    /// The errno of readlinkat(2).
    pub fn link(&self, name: &CStr, target: &mut Vec<u8>) -> io::Result<()> {
        sys::read_link(&self.dir, name, target)
    }
}

/// Bytes that a file has room for at first: as much as most of them have.
const ROOM: usize = 4096;
