//! Names of rtrack's own files that are taken away or given: in an archive, of a journal, and while a directory
//! is put together again.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::quarantine::{For, Quarantine};
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::entries;
use crate::tracker::resource::Name;

/// Takes a file of our own away.
///
/// # Errors
/// The errno of unlinkat(2).
pub(in crate::tracker) fn discard(dir: BorrowedFd<'_>, name: &Name) -> nix::Result<()> {
    unlinkat(dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir)
}

/// Gives a file of our own, now that it is whole, the name that it is found by, which has to be free.
///
/// # Errors
/// The errno of renameat2(2), `EEXIST` if the name is taken.
pub(in crate::tracker) fn publish(
    dir: BorrowedFd<'_>,
    draft: impl AsRef<OsStr>,
    name: impl AsRef<OsStr>,
) -> nix::Result<()> {
    rename(dir, draft.as_ref(), name.as_ref(), RenameFlags::RENAME_NOREPLACE)
}

/// The same, where an older file of our own may have the name, which loses it.
///
/// # Errors
/// The errno of renameat2(2).
pub(in crate::tracker) fn replace(
    dir: BorrowedFd<'_>,
    draft: impl AsRef<OsStr>,
    name: impl AsRef<OsStr>,
) -> nix::Result<()> {
    rename(dir, draft.as_ref(), name.as_ref(), RenameFlags::empty())
}

fn rename(dir: BorrowedFd<'_>, draft: &OsStr, name: &OsStr, flags: RenameFlags) -> nix::Result<()> {
    renameat2(dir, draft, dir, name, flags)
}

/// A private directory beside the objects in which something is put together before it has its name.
/// If that is interrupted, it is a leftover that the next reap removes: it never was whole.
#[derive(Debug)]
pub(in crate::tracker) struct Building {
    quarantine: Quarantine,
}

impl Building {
    /// Makes one.
    ///
    /// # Errors
    /// The errno of mkdirat(2).
    pub(in crate::tracker) fn make(host: &Host) -> std::io::Result<Self> {
        Ok(Self { quarantine: Quarantine::make(host, For::Building)? })
    }

    /// The directory.
    pub(in crate::tracker) fn fd(&self) -> BorrowedFd<'_> {
        self.quarantine.fd()
    }

    /// Gives what is whole its name among the objects, if that is free.
    ///
    /// # Errors
    /// `EEXIST`: it is taken. Else the errno of renameat2(2).
    pub(in crate::tracker) fn release(&self, host: &Host, file: &Name) -> nix::Result<()> {
        self.quarantine.put_back(host, file)
    }

    /// Removes the directory and whatever is in it, all of which was made here.
    ///
    /// # Errors
    /// The errno of a step; the rest is a leftover for the next reap.
    pub(in crate::tracker) fn close(self, host: &Host) -> std::io::Result<()> {
        clear(self.quarantine.fd())?;
        Ok(self.quarantine.close(host)?)
    }
}

/// Empties a directory of our own, which nobody else can enter, without following anything.
fn clear(dir: BorrowedFd<'_>) -> std::io::Result<()> {
    for name in entries(dir)? {
        let name = name.as_os_str();
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Err(nix::Error::EISDIR) => {}
            other => {
                other?;
                continue;
            }
        }
        // It may have been given the mode of what it was to become; root needs none.
        fchmodat(dir, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        clear(openat(dir, name, flags, Mode::empty())?.as_fd())?;
        unlinkat(dir, name, UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}
