//! Removing objects that were judged.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directories::{self, Inside};
use super::quarantine::{For, Quarantine};
use super::{Outcome, Report, Witness};
use crate::tracker::evidence::lease::{self, LeaseError, Leased, c_name};
use crate::tracker::evidence::usage;
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::{Tree, stat_here};
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
}

/// Removes objects one by one; the private directory is made for the first and removed at the end.
#[derive(Debug)]
pub struct Reaper<'a> {
    host: &'a Host,
    /// Nothing outside this PID namespace uses the mount: the operator asserts it.
    assume_complete: bool,
    quarantine: Option<Quarantine>,
    unlinked: Option<Quarantine>,
    strangers: Option<Quarantine>,
    begun: Option<Quarantine>,
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
                let assume = self.assume_complete;
                super::leftovers::settle_all(self.host, &unlinked, For::Unlinked, assume, witness);
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
        if let Err(error) = made {
            return if error.raw_os_error() == Some(libc::ENOSPC) && target.may_go_directly {
                self.unlink_directly(target, &leased)
            } else {
                Report::failed("make a private directory", &error)
            };
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

    /// Moves a directory away, makes sure that it is the right one, as it was, and that nobody is in it,
    /// and only then takes it apart. Either way the answer is a report.
    fn remove_directory(
        &mut self,
        target: &Target<'_>,
        steps: &mut dyn Steps,
        made: io::Result<()>,
    ) -> Result<Report, Report> {
        let inside = self.look_inside(self.host.shm(), target)?;
        let refused = |why: String| Report::new(Outcome::Refused, why);
        steps.judge(&inside.stat).map_err(refused)?;
        made.map_err(|error| Report::failed("make a private directory", &error))?;
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
        let inside = match directories::look_inside(self.host, dir, target.file, &target.identity) {
            Ok(inside) => inside.ok_or_else(changed)?,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Err(gone()),
            Err(error) => return Err(Report::failed("look into it", &error)),
        };
        if let Some(file) = &inside.held {
            let says = format!("somebody has {file} in it open or mapped");
            return Err(Report::new(Outcome::Held, says));
        }
        // Of one that is too large or deep to be seen whole, as of one that nobody can look into, no two
        // looks agree: the operator forces it.
        if target.tree.is_none_or(|tree| *tree != inside.tree) && !target.force {
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
        self.look_inside(quarantine.fd(), target).map(drop)
    }

    /// Takes a directory of the quarantine apart, in a place where it never gets its name back.
    fn take_apart(&mut self, file: &Name) -> Result<Report, Report> {
        let failed = |step: &str, error: io::Error| Report::failed(step, &error);
        if self.begun.is_none() {
            match Quarantine::make(self.host, For::Begun) {
                Ok(made) => self.begun = Some(made),
                Err(error) => {
                    let report = failed("make a private directory", error);
                    return Err(self.put_back(file, report));
                }
            }
        }
        let (Some(quarantine), Some(begun)) = (&self.quarantine, &self.begun) else {
            return Err(gone());
        };
        if let Err(errno) = begun.take_in(quarantine.fd(), file) {
            let report = failed("move it to where it is taken apart", errno.into());
            return Err(self.put_back(file, report));
        }
        directories::take_apart(begun.fd(), file).map_err(|error| {
            failed(&format!("take it apart; what is left of it is in {}", begun.name()), error)
        })?;
        Ok(Report::new(Outcome::Reaped, "removed, with all that was in it"))
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
    fn put_back(&mut self, file: &Name, mut report: Report) -> Report {
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
        let (place, purpose) = if stranger {
            (&mut self.strangers, For::Strangers)
        } else {
            (&mut self.unlinked, For::Unlinked)
        };
        if place.is_none() {
            *place = Quarantine::make(self.host, purpose).ok();
        }
        let moved = place.as_ref().map(|place| place.take_in(quarantine.fd(), file));
        let place = match (moved, &*place) {
            (Some(Ok(())), Some(place)) => place.name(),
            _ => quarantine.name(),
        };
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

fn gone() -> Report {
    Report::new(Outcome::Gone, "it was gone already")
}

fn changed() -> Report {
    Report::new(Outcome::Changed, "another object has its name now")
}

fn refusal(error: LeaseError) -> Report {
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
