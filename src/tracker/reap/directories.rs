//! Removing directories: moved away whole, looked at again, and only then taken apart.
//!
//! A directory has no lease. The files in it have, and whoever has the directory itself is found by a look
//! at all processes, once its name is gone and nobody else can come.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{UnlinkatFlags, fchown, unlinkat};

use super::objects::{Reaper, Steps, Target, changed, gone};
use super::quarantine::{For, Quarantine};
use super::saving::{check_directory, save_directory};
use super::{Outcome, Report};
use crate::tracker::evidence::lease::{self, Lease, Look};
use crate::tracker::evidence::usage;
use crate::tracker::host::Host;
use crate::tracker::inventory::Tree;
use crate::tracker::inventory::posix::{entries, tree_of};
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys::Stat;

/// What a look into a directory showed.
#[derive(Debug)]
pub(super) struct Inside {
    stat: Stat,
    pub(super) tree: Tree,
    /// A file in it that somebody holds.
    pub(super) held: Option<Name>,
}

impl Inside {
    /// Whether not all of it could be looked at.
    pub(super) fn is_truncated(&self) -> bool {
        self.tree.truncated
    }
}

/// Why such a directory stays, even by force: who has what is not known may hold it.
pub(super) const TOO_LARGE: &str = "not all of it can be looked at: there are too many entries or levels, or \
                                    something in it may not be read or is a mount";

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

impl Reaper<'_> {
    /// Moves a directory away, makes sure that it is the right one, as it was, and that nobody is in it,
    /// and only then takes it apart. Either way the answer is a report.
    pub(super) fn remove_directory(
        &mut self,
        target: &Target<'_>,
        steps: &mut dyn Steps,
        made: io::Result<()>,
    ) -> Result<Report, Report> {
        let inside = self.look_inside(self.host.shm(), target)?;
        let refused = |why: String| Report::new(Outcome::Refused, why);
        steps.judge(&inside.stat).map_err(refused)?;
        made.map_err(|error| Report::failed("make a private directory", &error))?;
        if steps.saves() {
            save_directory(self.host, target, steps)?;
            let inside = self.look_inside(self.host.shm(), target)?;
            steps.judge(&inside.stat).map_err(refused)?;
        }
        let Some(quarantine) = &self.quarantine else { return Err(gone()) };
        match quarantine.take_in(self.host.shm(), target.file) {
            Ok(()) => {}
            Err(nix::Error::ENOENT) => return Err(gone()),
            Err(errno) => return Err(Report::failed("move it away", &errno.into())),
        }
        if let Err(report) = self.look_again(quarantine, target, &inside.stat, steps) {
            return Err(self.put_back(target.file, report));
        }
        self.take_apart(target.file)
    }

    /// Looks into a directory, which has to be as it was and in nobody's hands.
    fn look_inside(&self, dir: BorrowedFd<'_>, target: &Target<'_>) -> Result<Inside, Report> {
        let inside = match look_inside(self.host, dir, target.file, &target.identity) {
            Ok(inside) => inside.ok_or_else(changed)?,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Err(gone()),
            Err(error) => return Err(Report::failed("look into it", &error)),
        };
        if let Some(file) = &inside.held {
            let says = format!("somebody has {file} in it open or mapped");
            return Err(Report::new(Outcome::Held, says));
        }
        if inside.is_truncated() {
            return Err(Report::new(Outcome::Refused, TOO_LARGE));
        }
        if target.tree.is_none_or(|tree| *tree != inside.tree) {
            let says =
                "something in it was made, written, changed or removed since it was looked at";
            return Err(Report::new(Outcome::Refused, says));
        }
        Ok(inside)
    }

    /// Once its name is gone, nobody can come to a directory who is not there yet.
    fn look_again(
        &self,
        quarantine: &Quarantine,
        target: &Target<'_>,
        judged: &Stat,
        steps: &mut dyn Steps,
    ) -> Result<(), Report> {
        let inside = self.look_inside(quarantine.fd(), target)?;
        // The move itself is a change of the inode.
        let now = Stat { changed: judged.changed, ..inside.stat };
        steps.judge(&now).map_err(|why| Report::new(Outcome::Refused, why))?;
        let (inodes, within) = (&inside.tree.inodes, quarantine.name());
        let thing = usage::Thing { inodes, directory: true, within };
        let seen = usage::look(self.host, &[thing], self.assume_complete);
        if let Some(how) = seen.by.into_iter().next().flatten() {
            return Err(Report::new(Outcome::Held, how));
        }
        if !seen.blind.is_empty() && !target.force {
            let says = format!("not all holders can be seen any more: {}", seen.blind.join("; "));
            return Err(Report::new(Outcome::Refused, says));
        }
        // Somebody may have been on the way into it before it was moved.
        self.look_inside(quarantine.fd(), target)?;
        if steps.saves() { check_directory(quarantine.fd(), target, steps) } else { Ok(()) }
    }

    fn turn_alone(&self, own: Quarantine) -> Result<Quarantine, Quarantine> {
        let alone = entries(own.fd()).is_ok_and(|names| names.len() == 1);
        if alone { own.turn_into(self.host, For::Begun) } else { Err(own) }
    }

    /// Takes a directory of the quarantine apart, in a place where it never gets its name back.
    fn take_apart(&mut self, file: &Name) -> Result<Report, Report> {
        let failed = |step: &str, error: io::Error| Report::failed(step, &error);
        if self.begun.is_none() {
            match Quarantine::make(self.host, For::Begun) {
                Ok(made) => self.begun = Some(made),
                // With no inode left for another one, the private directory, where it lies alone, becomes that.
                Err(error) => match self.quarantine.take().map(|own| self.turn_alone(own)) {
                    Some(Ok(turned)) => self.begun = Some(turned),
                    same => {
                        self.quarantine = same.and_then(Result::err);
                        let report = failed("make a private directory", error);
                        return Err(self.put_back(file, report));
                    }
                },
            }
        }
        let Some(begun) = &self.begun else { return Err(gone()) };
        if let Some(quarantine) = &self.quarantine
            && let Err(errno) = begun.take_in(quarantine.fd(), file)
        {
            let report = failed("move it to where it is taken apart", errno.into());
            return Err(self.put_back(file, report));
        }
        take_apart(begun.fd(), file).map_err(|error| {
            failed(&format!("take it apart; what is left of it is in {}", begun.name()), error)
        })?;
        Ok(Report::new(Outcome::Reaped, "removed, with all that was in it"))
    }
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
    let top = open_alone(dir, name.as_os_str())?;
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
            let below = open_alone(top.as_fd(), name.as_os_str())?;
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

/// As [`open_here`], and nobody else may make anything in it any more: whoever has it open still could.
fn open_alone(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let opened = match open_here(dir, name) {
        // Its owner may have no right to read it; root needs none.
        Err(nix::Error::EACCES) => {
            fchmodat(dir, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink)?;
            open_here(dir, name)
        }
        opened => opened,
    }?;
    // Where that is not ours to do, it is taken apart as far as it goes.
    fchown(&opened, Some(nix::unistd::geteuid()), None).unwrap_or(());
    fchmod(&opened, Mode::S_IRWXU).unwrap_or(());
    Ok(opened)
}

/// Opens the directory `name` in `dir`, unless it is a link or on another mount.
pub(super) fn open_here(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let here = ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_BENEATH;
    openat2(dir, name, OpenHow::new().flags(flags).resolve(here))
}
