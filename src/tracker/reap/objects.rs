//! Removing objects that were judged.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::unistd::{UnlinkatFlags, unlinkat};

use super::leftovers::How;
use super::quarantine::{For, Quarantine};
use super::saving::{save_leased, save_unleased};
use super::{Outcome, Report, Witness};
use crate::tracker::archive::SaveError;
use crate::tracker::evidence::lease::{self, LeaseError, Leased, c_name};
use crate::tracker::host::Host;
use crate::tracker::inventory::Tree;
use crate::tracker::inventory::posix::stat_here;
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys::{self, Stat};

/// What takes longer than this between two system calls leaves time for somebody else.
const AT_ONCE: Duration = Duration::from_millis(10);

/// How an object is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Under a write lease: the kernel tells of anybody who opens it.
    Leased,
    /// Without one, for what has none or where the kernel grants none: by complete holder sight,
    /// or because the operator forces it.
    Unleased,
    /// A directory with all that is in it, by complete holder sight or because the operator forces it.
    Directory,
    /// A System V object, by its id.
    ById,
}

/// One object to remove.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its name in the directory.
    pub file: &'a Name,
    /// What it has to be.
    pub identity: Identity,
    /// How.
    pub manner: Manner,
    /// Whether it may go without the quarantine when the mount has no inode left for one.
    pub may_go_directly: bool,
    /// What was in it, if it is a directory.
    pub tree: Option<&'a Tree>,
    /// How many messages wait in it, if it is a message queue and that is known.
    pub messages: Option<u64>,
    /// Whether the operator forces it, whatever could not be seen.
    pub force: bool,
}

/// What a removal asks and does on its way.
pub trait Steps {
    /// The second judgement, which is asked under the lease and again once the name is gone, with what
    /// the object is now. It must not block, read /proc, print, or open the object.
    ///
    /// # Errors
    /// The reason why it may not go after all.
    fn judge(&mut self, now: &Stat) -> Result<(), String>;

    /// Whether objects are saved before they go.
    fn saves(&self) -> bool {
        false
    }

    /// Saves the object, which was judged and is open as `file` (a directory as well), before its
    /// name goes. Under the lease, if there is one: then `is_whole` tells whether nobody is opening it, and is asked at
    /// least every 8 MiB.
    ///
    /// # Errors
    /// Why it was not saved, and so has to stay. Nothing of it is left in the archive.
    fn save(
        &mut self,
        _file: BorrowedFd<'_>,
        _is_whole: &mut dyn FnMut() -> bool,
    ) -> Result<(), SaveError> {
        Ok(())
    }

    /// Whether a directory that was saved, and that nobody can come to any more, has the content that was
    /// saved: on tmpfs a write through a mapping need not change any time.
    ///
    /// # Errors
    /// It could not be read.
    fn is_saved(&mut self, _dir: BorrowedFd<'_>) -> Result<bool, SaveError> {
        Ok(true)
    }

    /// Whether saving has taken so long that the processes have to be looked at again.
    fn is_old(&self) -> bool {
        false
    }

    /// Looks at the processes again. Nothing is leased meanwhile.
    fn look_again(&mut self) {}
}

/// Removes objects one by one; the private directory is made for the first and removed at the end.
#[derive(Debug)]
pub struct Reaper<'a> {
    pub(super) host: &'a Host,
    /// Nothing outside this PID namespace uses the mount: the operator asserts it.
    pub(super) assume_complete: bool,
    pub(super) quarantine: Option<Quarantine>,
    unlinked: Option<Quarantine>,
    strangers: Option<Quarantine>,
    pub(super) begun: Option<Quarantine>,
}

impl<'a> Reaper<'a> {
    /// A reaper of the host's objects; with `assume_complete` the operator asserts that nothing outside
    /// this PID namespace uses the mount.
    #[must_use]
    pub fn new(host: &'a Host, assume_complete: bool) -> Self {
        let (quarantine, unlinked, strangers, begun) = (None, None, None, None);
        Self { host, assume_complete, quarantine, unlinked, strangers, begun }
    }

    /// Removes one object, as [`Steps`] say.
    pub fn remove(&mut self, target: &Target<'_>, steps: &mut dyn Steps) -> Report {
        // Made before the lease, which holds openers up.
        let made = self.make_quarantine();
        match target.manner {
            Manner::Leased => self.remove_leased(target, steps, made),
            Manner::Unleased => self.remove_unleased(target, steps, made),
            Manner::Directory => {
                self.remove_directory(target, steps, made).unwrap_or_else(|report| report)
            }
            Manner::ById => Report::new(Outcome::Refused, "it is no object of /dev/shm"),
        }
    }

    /// Finishes what counts as unlinked and nobody holds any more, and removes the private
    /// directories. Those that stay are returned, each with the reason. `witness` is told of each
    /// object at each attempt.
    #[must_use]
    pub fn finish(mut self, witness: &mut dyn Witness) -> Vec<(Name, String)> {
        let mut left = Vec::new();
        if let Some(unlinked) = self.unlinked.take() {
            // Whoever was opening it had microseconds to go; waiting long for one that keeps it
            // would gain nothing.
            for _attempt in 0..10 {
                let how = How { assume_complete: self.assume_complete, finish: true };
                super::leftovers::settle_all(self.host, &unlinked, For::Unlinked, how, witness);
                match entries_left(&unlinked) {
                    Ok(0) | Err(_) => break,
                    Ok(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
            close(self.host, unlinked, &mut left);
        }
        let others = [self.strangers.take(), self.begun.take(), self.quarantine.take()];
        for quarantine in others.into_iter().flatten() {
            close(self.host, quarantine, &mut left);
        }
        left
    }

    /// Makes the private directory at once, which shows others that a reaper is at work. What goes wrong
    /// with it goes wrong again, and is told, with the first object.
    pub fn prepare(&mut self) {
        self.make_quarantine().unwrap_or(());
    }

    fn make_quarantine(&mut self) -> io::Result<()> {
        if self.quarantine.is_none() {
            self.quarantine = Some(Quarantine::make(self.host, For::Removal)?);
        }
        Ok(())
    }

    fn remove_leased(
        &mut self,
        target: &Target<'_>,
        steps: &mut dyn Steps,
        made: io::Result<()>,
    ) -> Report {
        let leased = match lease::take(self.host, self.host.shm(), target.file, &target.identity) {
            Ok(leased) => leased,
            Err(error) => return refusal(error),
        };
        let stat = match leased.stat() {
            Ok(stat) => stat,
            Err(error) => return Report::failed("statx", &error),
        };
        if let Err(why) = steps.judge(&stat) {
            return Report::new(Outcome::Refused, why);
        }
        let directly = match made {
            Ok(()) => false,
            // No inode is left, or root of outside is nobody in the user namespace that this mount is of.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EOVERFLOW))
                    && target.may_go_directly =>
            {
                true
            }
            Err(error) => return Report::failed("make a private directory", &error),
        };
        if let Err(report) = save_leased(self.host, &leased, steps) {
            return report;
        }
        if directly {
            return self.unlink_directly(target, &leased);
        }
        self.remove_by_quarantine(target, &stat, steps, Some(&leased))
    }

    fn remove_unleased(
        &mut self,
        target: &Target<'_>,
        steps: &mut dyn Steps,
        made: io::Result<()>,
    ) -> Report {
        let stat = match stat_here(self.host.shm(), target.file, target.identity.dev) {
            Ok(Some(stat)) => stat,
            Ok(None) => return changed(),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return gone(),
            Err(error) => return Report::failed("statx", &error),
        };
        if !target.identity.is(&stat) {
            return changed();
        }
        if let Err(why) = steps.judge(&stat) {
            return Report::new(Outcome::Refused, why);
        }
        if let Err(error) = made {
            return Report::failed("make a private directory", &error);
        }
        if let Err(report) = save_unleased(self.host, target, &stat, steps) {
            return report;
        }
        self.remove_by_quarantine(target, &stat, steps, None)
    }

    /// Moves the object, which was `judged`, away, makes sure that it is the right one, as it was, and
    /// that nobody has tried to open it since, and only then removes it.
    fn remove_by_quarantine(
        &mut self,
        target: &Target<'_>,
        judged: &Stat,
        steps: &mut dyn Steps,
        leased: Option<&Leased>,
    ) -> Report {
        let whole = || leased.is_none_or(Leased::is_whole);
        let Some(quarantine) = &self.quarantine else {
            return Report::failed(
                "make a private directory",
                &io::Error::from_raw_os_error(libc::ENOENT),
            );
        };
        if !whole() {
            return Report::new(Outcome::OpenedMeanwhile, "somebody is opening it");
        }
        match quarantine.take_in(self.host.shm(), target.file) {
            Ok(()) => {}
            Err(nix::Error::ENOENT) => return gone(),
            Err(errno) => return Report::failed("move it away", &errno.into()),
        }
        // Leases do not see renames: between the look and the move somebody may have put another
        // object under this name.
        let looked = Instant::now();
        let moved = c_name(target.file).and_then(|name| sys::stat(quarantine.fd(), &name));
        let Ok(moved) = moved
            .map_err(drop)
            .and_then(|stat| target.identity.is(&stat).then_some(stat).ok_or(()))
        else {
            return self.put_back(target.file, changed());
        };
        // Nor do they see other changes, and this process may have been stopped. The move itself is a
        // change of the inode.
        let mut still = steps.judge(&Stat { changed: judged.changed, ..moved });
        if moved.nlink != judged.nlink {
            still = Err("it was given another name since it was looked at".into());
        }
        if let Err(why) = still {
            return self.put_back(target.file, Report::new(Outcome::Refused, why));
        }
        if !whole() {
            let report = Report::new(
                Outcome::OpenedMeanwhile,
                "somebody opened it; it is back under its name",
            );
            return self.put_back(target.file, report);
        }
        if let Err(errno) = quarantine.unlink(target.file) {
            return self.put_back(target.file, Report::failed("unlink", &errno.into()));
        }
        removed(whole(), leased, &moved, looked)
    }

    /// With no inode left for a directory: lease, identity and unlink follow each other directly.
    fn unlink_directly(&self, target: &Target<'_>, leased: &Leased) -> Report {
        let looked = Instant::now();
        let stat = match stat_here(self.host.shm(), target.file, target.identity.dev) {
            Ok(Some(stat)) if target.identity.is(&stat) => stat,
            Ok(_) => return changed(),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return gone(),
            Err(error) => return Report::failed("statx", &error),
        };
        if !leased.is_whole() {
            return Report::new(Outcome::OpenedMeanwhile, "somebody is opening it");
        }
        match unlinkat(self.host.shm(), target.file.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => removed(leased.is_whole(), Some(leased), &stat, looked),
            Err(nix::Error::ENOENT) => gone(),
            Err(errno) => Report::failed("unlink", &errno.into()),
        }
    }

    /// Gives an object its name back. If that was taken again, the object counts as unlinked: it
    /// stays where nobody finds it until nobody holds it. One that is not the planned one was never
    /// judged, and stays until its name is free.
    pub(super) fn put_back(&mut self, file: &Name, mut report: Report) -> Report {
        let Some(quarantine) = &self.quarantine else { return report };
        match quarantine.put_back(self.host, file) {
            Ok(()) => return report,
            Err(nix::Error::EEXIST) => {}
            Err(errno) => {
                let step = format!("put it back from {}", quarantine.name());
                return Report::failed(&step, &errno.into());
            }
        }
        let stranger = report.outcome == Outcome::Changed;
        let purpose = if stranger { For::Strangers } else { For::Unlinked };
        let Some(place) = self.set_aside(file, purpose) else { return report };
        report.says = if stranger {
            format!(
                "another object had its name, was moved away by mistake, and lost its name to a third one: it is in {place}, and goes back when its name is free"
            )
        } else {
            format!(
                "a new object has taken its name meanwhile, so the old one counts as unlinked; it is in {place} until nobody holds it"
            )
        };
        report
    }

    /// Moves an object from the quarantine to where the next reaper knows what it is; the name of that
    /// directory, or of the quarantine, if it had to stay there.
    fn set_aside(&mut self, file: &Name, purpose: For) -> Option<Name> {
        let quarantine = self.quarantine.as_ref()?;
        let place = match purpose {
            For::Strangers => &mut self.strangers,
            _ => &mut self.unlinked,
        };
        if place.is_none() {
            *place = Quarantine::make(self.host, purpose).ok();
        }
        if let Some(place) = place {
            let moved = place.take_in(quarantine.fd(), file);
            return Some(moved.map_or(quarantine.name(), |()| place.name()).clone());
        }
        // With no inode left for another directory, this one becomes that.
        if entries_left(quarantine).is_ok_and(|count| count == 1) {
            match self.quarantine.take()?.turn_into(self.host, purpose) {
                Ok(turned) => *place = Some(turned),
                Err(same) => self.quarantine = Some(same),
            }
        }
        let place = place.as_ref().or(self.quarantine.as_ref());
        place.map(|place| place.name().clone())
    }
}

fn entries_left(quarantine: &Quarantine) -> io::Result<usize> {
    crate::tracker::inventory::posix::entries(quarantine.fd()).map(|names| names.len())
}

fn close(host: &Host, quarantine: Quarantine, left: &mut Vec<(Name, String)>) {
    let name = quarantine.name().clone();
    match quarantine.close(host) {
        Ok(()) => {}
        Err(nix::Error::ENOTEMPTY) => {
            left.push((name, "left for the next reap, what is in it could not go yet".into()));
        }
        Err(errno) => {
            left.push((name, format!("remove the directory: {}", io::Error::from(errno))))
        }
    }
}

/// What was `before`, when it was `looked` at last, is removed.
fn removed(whole: bool, leased: Option<&Leased>, before: &Stat, looked: Instant) -> Report {
    let now = leased.and_then(|leased| leased.stat().ok());
    // The last change was this one, unless there was time for another.
    let own = |now: &Stat| {
        let same = |of: &Stat| (of.mode, of.uid, of.gid, of.size, of.modified);
        same(now) == same(before) && now.nlink + 1 == before.nlink && looked.elapsed() < AT_ONCE
    };
    let changed = now.filter(own).map(|stat| stat.changed);
    let report = if whole {
        Report::new(Outcome::Reaped, "removed")
    } else {
        Report::new(
            Outcome::OpenedAtRemoval,
            "removed, and somebody opened it in that very moment: that process has an object without a name",
        )
    };
    Report { changed, ..report }
}

pub(super) fn gone() -> Report {
    Report::new(Outcome::Gone, "it was gone already")
}

pub(super) fn changed() -> Report {
    Report::new(Outcome::Changed, "another object has its name now")
}

pub(super) fn refusal(error: LeaseError) -> Report {
    match error {
        LeaseError::Gone => gone(),
        LeaseError::Changed => changed(),
        LeaseError::Held => Report::new(Outcome::Held, "somebody has it open or mapped"),
        LeaseError::NoPermission => {
            Report::failed("lease", &io::Error::from_raw_os_error(libc::EACCES))
        }
        LeaseError::Unsupported => {
            Report::failed("lease", &io::Error::from_raw_os_error(libc::EINVAL))
        }
        LeaseError::Reopen { link, source } => {
            Report::failed(&format!("open it through {}", link.display()), &source)
        }
        LeaseError::Io(error) => Report::failed("lease", &error),
    }
}
