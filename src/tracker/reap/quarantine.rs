//! The private directory in which an object is between its name and its end.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::inventory::posix::{Entry, entries, entry};
use crate::tracker::resource::Name;
use crate::tracker::sys;

/// What a quarantine is for, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Objects between their name and their end.
    Removal,
    /// What counts as unlinked: its name was taken by a new object before it could be put back, and
    /// a stale object under an old name is worse than none.
    Unlinked,
    /// What was put under the name of a judged object in the last moment, and lost that name to a
    /// third one before it could be put back. It was never judged.
    Strangers,
    /// Directories that nobody used when they were moved here, and that are being taken apart: they are no
    /// longer whole.
    Begun,
    /// What is put together before it gets its name: it is not whole, and there is nothing else of it.
    Building,
}

impl For {
    /// All, the longer prefixes first.
    const ALL: [Self; 5] =
        [Self::Unlinked, Self::Strangers, Self::Begun, Self::Building, Self::Removal];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Removal => ".rtrack.",
            Self::Unlinked => ".rtrack.unlinked.",
            Self::Strangers => ".rtrack.kept.",
            Self::Begun => ".rtrack.begun.",
            Self::Building => ".rtrack.building.",
        }
    }

    /// A name that nobody can foresee.
    fn new_name(self) -> Name {
        // The standard library seeds its hashes by the kernel's random numbers.
        let random = RandomState::new().hash_one(std::process::id());
        Name::new(format!("{}{random:016x}", self.prefix()))
    }

    /// What a directory of this name is for: nothing, if it is not one that a reaper makes but that
    /// of somebody who likes the prefix.
    pub(super) fn of(name: &Name) -> Option<Self> {
        let is_random = |text: &[u8]| {
            text.len() == 16 && text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        Self::ALL.into_iter().find(|purpose| {
            name.as_bytes().strip_prefix(purpose.prefix().as_bytes()).is_some_and(is_random)
        })
    }
}

/// Whether a directory of this name is, by its name, a quarantine.
#[must_use]
pub fn is_quarantine_name(name: &Name) -> bool {
    For::of(name).is_some()
}

/// The private directory of another reaper of this user's that is at work now.
///
/// # Errors
/// The directory of the objects could not be read.
pub fn at_work(host: &Host) -> io::Result<Option<Name>> {
    let locked = |name: &Name| -> io::Result<bool> {
        let Entry::Here(path) = entry(host.shm(), name, host.shm_dev()?)? else { return Ok(false) };
        if !is_ours(&sys::stat(&path, c"")?) {
            return Ok(false);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        sys::try_lock(&openat(&path, c".", flags, Mode::empty())?).map(|taken| !taken)
    };
    let mut names = entries(host.shm())?.into_iter();
    // One that cannot be looked at is gone, or nobody's who cooperates.
    Ok(names.find(|name| For::of(name) == Some(For::Removal) && locked(name).unwrap_or(false)))
}

/// Whether this is a directory that [`settle`](super::settle) would settle, unless a reaper that
/// works has it locked.
#[must_use]
pub fn is_our_leftover(object: &Object) -> bool {
    is_quarantine_name(&object.file) && is_ours(&object.stat)
}

/// Whether others may rename everything in the directory of the objects: then a directory of ours
/// that looks like a quarantine may be any directory of ours.
///
/// # Errors
/// The errno of statx(2).
pub(super) fn others_may_rename(host: &Host) -> io::Result<bool> {
    let stat = sys::stat(host.shm(), c"")?;
    // Its owner may rename everything in it, sticky bit or not.
    let somebody_elses = stat.uid != 0 && stat.uid != nix::unistd::geteuid().as_raw();
    Ok(somebody_elses || stat.mode & 0o022 != 0 && stat.mode & libc::S_ISVTX == 0)
}

/// A private directory beside the objects, locked by this reaper for as long as it exists.
#[derive(Debug)]
pub(super) struct Quarantine {
    name: Name,
    /// Open, and locked for as long.
    dir: File,
}

impl Quarantine {
    /// Makes one.
    ///
    /// # Errors
    /// The errno of mkdirat(2): `ENOSPC` when the mount has no inode left, `EROFS`, `EACCES`.
    pub(super) fn make(host: &Host, purpose: For) -> io::Result<Self> {
        for _attempt in 0..16 {
            let name = purpose.new_name();
            match mkdirat(host.shm(), name.as_os_str(), Mode::S_IRWXU) {
                Ok(()) => {}
                Err(nix::Error::EEXIST) => continue,
                Err(errno) => return Err(errno.into()),
            }
            // Another reaper may take a directory without a lock for a leftover and remove it.
            match Self::set_mode(host, &name).and_then(|()| Self::open(host, &name)) {
                Ok(Some(own)) => return Ok(own),
                other => {
                    // Empty, and no use to anybody.
                    unlinkat(host.shm(), name.as_os_str(), UnlinkatFlags::RemoveDir).unwrap_or(());
                    other?;
                }
            }
        }
        Err(io::Error::other("no private directory could be made and locked"))
    }

    /// Makes this one, with what is in it, one for another purpose: that takes no inode.
    ///
    /// # Errors
    /// It stays what it was: the errno of renameat2(2) is of no use to anybody.
    pub(super) fn turn_into(self, host: &Host, purpose: For) -> Result<Self, Self> {
        let name = purpose.new_name();
        let (from, to) = (self.name.as_os_str(), name.as_os_str());
        match renameat2(host.shm(), from, host.shm(), to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => Ok(Self { name, ..self }),
            Err(_) => Err(self),
        }
    }

    /// Undoes what the umask, or a set-group-ID bit of the directory above, made of the mode.
    fn set_mode(host: &Host, name: &Name) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = match openat(host.shm(), name.as_os_str(), flags, Mode::empty()) {
            Err(nix::Error::ENOENT) => return Ok(()),
            dir => dir?,
        };
        let stat = sys::stat(&dir, c"")?;
        let own = stat.uid == nix::unistd::geteuid().as_raw();
        // Where others may rename, another directory of ours may be here instead.
        if own && stat.mode & 0o7777 != 0o700 && !others_may_rename(host)? {
            fchmod(&dir, Mode::S_IRWXU)?;
        }
        Ok(())
    }

    /// Opens and locks the quarantine of this name, if it is one of ours: a directory, not a
    /// symlink, owned by our effective uid, mode 0700, still there, and nobody has it locked.
    ///
    /// # Errors
    /// The errno of a step that failed for another reason.
    pub(super) fn open(host: &Host, name: &Name) -> io::Result<Option<Self>> {
        // Looked at before it is opened: it may be anybody's FUSE mount, which never answers.
        let path = match entry(host.shm(), name, host.shm_dev()?) {
            Ok(Entry::Here(path)) => path,
            Ok(Entry::OtherMount) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_ours(&sys::stat(&path, c"")?) {
            return Ok(None);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&path, c".", flags, Mode::empty())?;
        if !sys::try_lock(&fd)? {
            return Ok(None);
        }
        let dir = File::from(fd);
        let still_there = sys::stat(&dir, c"")?.nlink > 0;
        Ok(still_there.then(|| Self { name: name.clone(), dir }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub(super) fn name(&self) -> &Name {
        &self.name
    }

    /// Moves an object in, under its own name.
    ///
    /// # Errors
    /// The errno of renameat2(2).
    pub(super) fn take_in(&self, from: BorrowedFd<'_>, file: &Name) -> nix::Result<()> {
        let name = file.as_os_str();
        renameat2(from, name, self.fd(), name, RenameFlags::RENAME_NOREPLACE)
    }

    /// Gives an object its name back, unless that is taken.
    ///
    /// # Errors
    /// `EEXIST`: the name was taken meanwhile. Else the errno of renameat2(2).
    pub(super) fn put_back(&self, host: &Host, file: &Name) -> nix::Result<()> {
        let name = file.as_os_str();
        renameat2(self.fd(), name, host.shm(), name, RenameFlags::RENAME_NOREPLACE)
    }

    /// Removes an object that is in it.
    ///
    /// # Errors
    /// The errno of unlinkat(2).
    pub(super) fn unlink(&self, file: &Name) -> nix::Result<()> {
        unlinkat(self.fd(), file.as_os_str(), UnlinkatFlags::NoRemoveDir)
    }

    /// Removes the directory itself, if it is empty.
    ///
    /// # Errors
    /// `ENOTEMPTY`: something in it is left for the next reaper.
    pub(super) fn close(self, host: &Host) -> nix::Result<()> {
        unlinkat(host.shm(), self.name.as_os_str(), UnlinkatFlags::RemoveDir)
    }
}

fn is_ours(stat: &sys::Stat) -> bool {
    stat.is_dir() && stat.uid == nix::unistd::geteuid().as_raw() && stat.mode & 0o7777 == 0o700
}
