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

    /// Reads one of its files. `room` is read into, and grows as it has to.
    ///
    /// # Errors
    /// The errno of openat(2) or read(2).
    pub fn read<'a>(&self, name: &CStr, room: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        self.read_until(name, room, |read, _| read == 0)
    }

    /// The same of a file that the kernel writes in one piece: a short read is the whole.
    ///
    /// # Errors
    /// As [`Task::read`].
    pub fn read_piece<'a>(&self, name: &CStr, room: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        self.read_until(name, room, |read, asked| read < asked)
    }

    /// Reads until `is_last` says so, which is told how much was read and how much could have been.
    fn read_until<'a>(
        &self,
        name: &CStr,
        room: &'a mut Vec<u8>,
        is_last: impl Fn(usize, usize) -> bool,
    ) -> io::Result<&'a [u8]> {
        // Not read_to_end of std, which first asks for the size: that is always 0.
        let mut file = self.file(name)?;
        let mut length = 0;
        loop {
            if room.len() - length < ROOM {
                // What is there is not zeroed again, the next time.
                room.resize(2 * room.len() + ROOM, 0);
            }
            let rest = room.get_mut(length..).unwrap_or_default();
            let asked = rest.len();
            match file.read(rest) {
                Ok(read) => {
                    length += read;
                    if is_last(read, asked) {
                        return Ok(room.get(..length).unwrap_or_default());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
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

/// Bytes that there is room for at least: as much as most files have.
const ROOM: usize = 4096;
