//! Removing directories: moved away whole, looked at again, and only then taken apart.
//!
//! A directory has no lease. The files in it have, and whoever has the directory itself is found by a look
//! at all processes, once its name is gone and nobody else can come.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::tracker::evidence::lease::{self, Lease, Look};
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::{Tree, entries, tree_of};
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys::Stat;

/// What a look into a directory showed.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) stat: Stat,
    pub(super) tree: Tree,
    /// A file in it that somebody holds.
    pub(super) held: Option<Name>,
}

/// Looks into the directory `name` in `dir`, if it is the `expected` one, and asks the kernel about each
/// file in it.
///
/// # Errors
/// The errno of openat(2) or statx(2).
pub(super) fn look_inside(
    host: &Host,
    dir: BorrowedFd<'_>,
    name: &Name,
    expected: &Identity,
) -> io::Result<Option<Inside>> {
    let mut held = None;
    let seen = tree_of(dir, name, expected, &mut |within, file, stat| {
        if held.is_some() {
            return;
        }
        let look = lease::look(host, within, file, &Identity::of(stat), true, false);
        // What the kernel cannot be asked about is known by sight, as the directory is.
        if matches!(look, Ok(Look::Seen { lease: Lease::Refused, .. })) {
            held = Some(file.clone());
        }
    })?;
    Ok(seen.map(|(stat, tree)| Inside { stat, tree, held }))
}

/// More passes than this are not made: each removes a level, unless somebody goes on making them.
const MOST_PASSES: usize = 100_000;

/// Removes the directory `name` in `dir` with all that is in it. Nothing is followed, neither a link nor
/// into another mount, and however deep it is, two descriptors are enough: what is deeper than the first
/// level is moved up before it is removed.
///
/// # Errors
/// `EBUSY` or `EXDEV`: something is mounted in it. Else the errno of unlinkat(2), openat2(2) or
/// renameat2(2). What could be removed until then is.
pub(super) fn take_apart(dir: BorrowedFd<'_>, name: &Name) -> io::Result<()> {
    let top = open_here(dir, name.as_os_str())?;
    let mut moved = 0_u64;
    for _pass in 0..MOST_PASSES {
        let names = entries(top.as_fd())?;
        if names.is_empty() {
            break;
        }
        for name in names {
            if removed(top.as_fd(), &name)? {
                continue;
            }
            let below = open_here(top.as_fd(), name.as_os_str())?;
            for inner in entries(below.as_fd())? {
                while !removed(below.as_fd(), &inner)? {
                    let up = format!("{moved}");
                    moved += 1;
                    let (from, to) = (inner.as_os_str(), up.as_str());
                    match renameat2(&below, from, &top, to, RenameFlags::RENAME_NOREPLACE) {
                        Ok(()) => break,
                        Err(nix::Error::EEXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
            }
            removed(top.as_fd(), &name)?;
        }
    }
    Ok(unlinkat(dir, name.as_os_str(), UnlinkatFlags::RemoveDir)?)
}

/// Removes `name` in `dir`; `false` if it is a directory with something in it.
fn removed(dir: BorrowedFd<'_>, name: &Name) -> nix::Result<bool> {
    let name = name.as_os_str();
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => return Ok(true),
        Err(nix::Error::EISDIR) => {}
        Err(errno) => return Err(errno),
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => Ok(true),
        Err(nix::Error::ENOTEMPTY) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens the directory `name` in `dir`, unless it is a link or on another mount.
fn open_here(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let here = ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_BENEATH;
    openat2(dir, name, OpenHow::new().flags(flags).resolve(here))
}
