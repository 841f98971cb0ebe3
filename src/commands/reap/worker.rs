//! Carrying out a plan, object by object, until it is done or a signal comes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::planning::Planned;
use super::progress::Progress;
use super::record::Record;
use super::signals::Signals;
use super::{Done, answer, refused, untouched};
use crate::commands::error::{CommandError, Kind as ErrorKind};
use crate::commands::surveying::Look;
use crate::commands::ui::Ui;
use crate::tracker::archive::{Archive, SaveError, Subject};
use crate::tracker::audit::Why;
use crate::tracker::evidence::lease;
use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::inventory::posix::stat_here;
use crate::tracker::plan::{self, Step};
use crate::tracker::reap::{self, Manner, Reaper, Report, Settled, Steps, Target};
use crate::tracker::resource::Kind;
use crate::tracker::survey::Survey;
use crate::tracker::sys::{Nanoseconds, Stat};
use crate::tracker::verdict::{Facts, Judgement, Verdict, judge};
use crate::tracker::world::World;

/// After so long the processes are looked at again.
const FRESH: Duration = Duration::from_secs(3);

/// What is older than this is not judged by.
const OLD: Duration = Duration::from_secs(5);

/// Why nothing is removed then.
const TOO_OLD: &str = "the look at all processes is too old: what was seen may no longer be true";

/// How long another rtrack may keep this one from starting.
const COURTESY: Duration = Duration::from_secs(2);

/// Waits for others to be done in every place: reapers work one at a time in each. But whoever is root in a
/// container can look as if one were at work there for ever: such a place is passed over, and only in
/// our own does that end this one.
///
/// # Errors
/// As [`lock`].
pub(super) fn lock_all(world: &World) -> Result<Vec<File>, CommandError> {
    let mut patience = lease::Patience::new(COURTESY / 4);
    let locks = world.wanted_shm().map(|(place, host)| match place {
        0 => lock(host),
        _ => Ok(patience.lock(host.shm())),
    });
    locks.filter_map(Result::transpose).collect()
}

/// The same in one place. A stranger's lock delays it, and is then passed over.
///
/// # Errors
/// Another reaper of this user's is still at work: status 3.
pub(super) fn lock(host: &Host) -> Result<Option<File>, CommandError> {
    let lock = lease::courtesy_lock(host.shm(), COURTESY);
    if lock.is_none()
        && let Some(place) = reap::at_work(host)?
    {
        let error = anyhow::anyhow!("another reap is at work: it has {place} locked");
        return Err(CommandError::new(ErrorKind::Failed, error)
            .hint("nothing was removed; try again when it has ended"));
    }
    Ok(lock)
}

/// Settles what interrupted reaps left behind, then does what is planned.
///
/// # Errors
/// /dev/shm cannot be read any more.
pub(super) fn carry_out(
    ui: &Ui,
    found: &mut Look,
    planned: Planned,
    archive: Option<&Archive>,
    finish: bool,
    signals: &Signals,
    mut record: Record<'_>,
) -> Result<Done, CommandError> {
    signals.working(true);
    let Look { world, survey, .. } = found;
    let assume_complete = survey.judging().assume_complete;
    let how = reap::How { assume_complete, finish };
    let mut done = Done::default();
    for (place, host) in world.wanted_shm() {
        match reap::settle(host, how, &mut record) {
            Ok(settled) => done.settled.extend(settled),
            Err(error) if place == 0 => return Err(error.into()),
            Err(error) => done.settled.push(Settled::unread(&host.shm_path, &error)),
        }
    }
    for settled in &done.settled {
        answer::say_settled(settled, ui);
    }
    let mut reapers = Reapers { world, assume_complete, by_place: BTreeMap::new() };
    let removals = planned.removals();
    let removed = planned.steps.iter().filter(|(_, step)| matches!(step, Step::Remove(..)));
    let mut by_id = HashSet::new();
    for object in removed.filter_map(|(index, _)| survey.objects.get(*index)) {
        if object.sysv.is_some() {
            by_id.insert(object.key());
        } else if world.shm(object.place).is_some() {
            reapers.of(object.place).prepare();
        }
    }
    // One that is removed need not be opened before.
    for object in reap::sysv::closed_segments(world) {
        if !by_id.contains(&object.key()) {
            let settled = reap::sysv::settle_segment(world, &object);
            answer::say_settled(&settled, ui);
            done.settled.push(settled);
        }
    }
    let progress = Progress::new(ui, removals);
    let changed_by_us = HashMap::new();
    let unrecorded = HashSet::new();
    let mut worker = Worker {
        world,
        survey,
        reapers,
        archive,
        record,
        changed_by_us,
        too_slow: false,
        unrecorded,
    };
    for (index, step) in planned.steps {
        if done.interrupted || signals.came() {
            done.interrupted = true;
            done.reports.push((index, untouched("interrupted before its turn")));
            continue;
        }
        if let (Step::Remove(..), Some(object)) = (&step, worker.survey.objects.get(index)) {
            progress.next(object.shown_id());
        }
        let force = planned.forced.contains(&index);
        done.reports.push((index, worker.carry_out(index, step, force)));
    }
    drop(progress);
    for (item, report) in &planned.absent {
        let why = Why { judgement: Some(&item.judgement), forced: item.force, ..Why::default() };
        worker.record.end(&item.object, &item.user, why, report);
    }
    (done.forced, done.absent) = (planned.forced, planned.absent);
    for (place, reaper) in worker.reapers.by_place {
        let host = world.host_of(place);
        for (name, why) in reaper.finish(&mut worker.record) {
            ui.line(format_args!("warning: {}/{name}: {why}", host.shm_path.display()));
            done.left.push((name, why));
        }
    }
    done.audit = worker.record.path().map(Into::into);
    done.audit_failed = worker.record.stops().is_some();
    done.unrecorded = worker.unrecorded;
    signals.working(false);
    Ok(done)
}

/// A reaper for each place.
struct Reapers<'a> {
    world: &'a World,
    assume_complete: bool,
    by_place: BTreeMap<usize, Reaper<'a>>,
}

impl<'a> Reapers<'a> {
    fn of(&mut self, place: usize) -> &mut Reaper<'a> {
        let (world, assume_complete) = (self.world, self.assume_complete);
        let reaper = || Reaper::new(world.host_of(place), assume_complete);
        self.by_place.entry(place).or_insert_with(reaper)
    }
}

struct Worker<'a> {
    world: &'a World,
    survey: &'a mut Survey,
    reapers: Reapers<'a>,
    /// Where objects are saved before they go.
    archive: Option<&'a Archive>,
    record: Record<'a>,
    /// When each inode, by device and number, changed last, of which this run has removed a name.
    changed_by_us: HashMap<(u64, u64), Nanoseconds>,
    /// A look at the processes takes so long that another one is of no use.
    too_slow: bool,
    /// What was not begun, because it could not be recorded.
    unrecorded: HashSet<usize>,
}

impl Worker<'_> {
    fn carry_out(&mut self, index: usize, step: Step, force: bool) -> Report {
        let report = self.attempt(index, step, force);
        if let Some(object) = self.survey.objects.get(index) {
            let begun = self.record.is_begun();
            let judgement = if begun { None } else { self.survey.judge(self.world, index) };
            let why = self.why(judgement.as_ref(), force);
            let user = self.survey.owner(object.stat.uid);
            self.record.end(object, user, why, &report);
        }
        report
    }

    /// Why an object may go, or not.
    fn why<'b>(&self, judgement: Option<&'b Judgement>, forced: bool) -> Why<'b> {
        let assumed_complete = self.survey.snapshot.sight.assumed_complete;
        Why { judgement, forced, assumed_complete, directory: None }
    }

    fn attempt(&mut self, index: usize, step: Step, force: bool) -> Report {
        // The verdict that the operator was shown: what weaker one a newer look gives is no plan.
        let (manner, planned) = match step {
            Step::Remove(manner, planned) => (manner, planned),
            Step::Refuse(verdict, why) => return refused(verdict, why),
            Step::Leave => return untouched("not planned"),
        };
        if let Some(report) = self.record.stops() {
            self.unrecorded.insert(index);
            return report;
        }
        if self.survey.age() > FRESH && !self.too_slow {
            self.survey.refresh(self.world);
            self.too_slow = self.survey.age() > OLD;
        }
        if self.survey.age() > OLD {
            return refused(planned, TOO_OLD.into());
        }
        let (Some(object), Some(mut facts)) =
            (self.survey.objects.get(index).cloned(), self.survey.facts(self.world, index))
        else {
            return untouched("not planned");
        };
        let now = judge(&facts);
        if let Err(why) = plan::still_goes(planned, &now, force) {
            return refused(now.verdict, why);
        }
        // Before any lease, which holds openers up.
        let why = self.why(Some(&now), force);
        if let Err(report) = self.record.begin(&object, self.survey.owner(object.stat.uid), why) {
            self.unrecorded.insert(index);
            return report;
        }
        let (seen, began) = (object.stat, self.survey.snapshot.began);
        let target = Target {
            file: &object.file,
            identity: object.identity(),
            manner,
            may_go_directly: planned == Verdict::Orphaned,
            tree: object.directory.as_deref(),
            messages: object.queue.map(|queue| queue.messages),
            force,
        };
        // The removal of another name is a change of the inode too, and was this run's own.
        let inode = (seen.dev, seen.ino);
        let changed = self.changed_by_us.get(&inode).copied().unwrap_or(seen.changed);
        if manner == Manner::Leased {
            facts.lease = lease::Lease::Granted;
        }
        let saving = self.archive.map(|archive| Saving {
            archive,
            world: self.world,
            survey: self.survey,
            index,
            saved: None,
            digest: None,
        });
        let mut steps =
            Removal { planned, force, facts, seen, changed, began, object: &object, saving };
        let place = object.place;
        let report = match (self.world.queues(place), self.world.ipc(place)) {
            (Some(queues), _) => reap::remove_queue(&self.world.host, queues, &target, &mut steps),
            (_, Some(ipc)) => reap::sysv::remove(&self.world.host, ipc, &object, &mut steps),
            (None, None) => self.reapers.of(object.place).remove(&target, &mut steps),
        };
        let report = match steps.saving {
            Some(saving) => saving.settle(&object, report),
            None => report,
        };
        self.changed_by_us.extend(report.changed.map(|changed| (inode, changed)));
        report
    }
}

/// The removal of one object.
struct Removal<'a> {
    /// The verdict that it was planned by.
    planned: Verdict,
    force: bool,
    /// What is known about it now.
    facts: Facts,
    /// What it was when it was looked at.
    seen: Stat,
    /// When it changed last, but for what this run did.
    changed: Nanoseconds,
    /// When the look at the processes began.
    began: Option<Instant>,
    object: &'a Object,
    saving: Option<Saving<'a>>,
}

/// How an object is saved before it goes.
struct Saving<'a> {
    archive: &'a Archive,
    world: &'a World,
    survey: &'a mut Survey,
    /// The object's place in the survey.
    index: usize,
    /// The entry that was made.
    saved: Option<String>,
    /// What it has of a directory.
    digest: Option<String>,
}

impl Saving<'_> {
    /// What was saved of an object that is still there is taken away again: it says nothing of what the
    /// object will be when it goes. In doubt it is kept, and said.
    fn settle(self, object: &Object, report: Report) -> Report {
        let Some(entry) = self.saved else { return report };
        let here = self.world.directory_of(object.place);
        let here = stat_here(here, &object.file, object.stat.dev);
        let is_there = matches!(here, Ok(Some(stat)) if object.identity().is(&stat));
        if report.outcome.is_removed() || !is_there {
            return Report { archived: Some(entry), ..report };
        }
        match self.archive.forget(&entry) {
            Ok(()) => report,
            Err(error) => {
                let says = format!("{}; what was saved of it stays: {error}", report.says);
                Report { archived: Some(entry), says, ..report }
            }
        }
    }
}

impl Steps for Removal<'_> {
    fn judge(&mut self, now: &Stat) -> Result<(), String> {
        let seen = &self.seen;
        // This process may have been stopped since the last look at the clock.
        if self.began.is_none_or(|began| began.elapsed() > OLD) {
            return Err(TOO_OLD.into());
        }
        if (now.mode, now.uid, now.gid) != (seen.mode, seen.uid, seen.gid) {
            return Err("its owner or mode was changed since it was looked at".into());
        }
        if (now.size, now.modified, now.changed) != (seen.size, seen.modified, self.changed) {
            return Err("it was written or changed since it was looked at".into());
        }
        plan::still_goes(self.planned, &judge(&self.facts), self.force)
    }

    fn saves(&self) -> bool {
        self.saving.is_some()
    }

    fn save(
        &mut self,
        file: BorrowedFd<'_>,
        is_whole: &mut dyn FnMut() -> bool,
    ) -> Result<(), SaveError> {
        let judgement = judge(&self.facts);
        let Some(saving) = &mut self.saving else { return Ok(()) };
        let subject = Subject { object: self.object, judgement: &judgement, forced: self.force };
        let (archive, host) = (saving.archive, &saving.world.host);
        saving.saved = Some(match self.object.kind {
            Kind::Dir => {
                let (entry, digest) = archive.save_tree(host, &subject, file, is_whole)?;
                saving.digest = Some(digest);
                entry
            }
            _ => archive.save_file(&subject, file, is_whole)?,
        });
        Ok(())
    }

    fn is_saved(&mut self, dir: BorrowedFd<'_>) -> Result<bool, SaveError> {
        let Some(saving) = &self.saving else { return Ok(true) };
        let now = saving.archive.digest_tree(&saving.world.host, dir)?;
        Ok(saving.digest.as_ref() == Some(&now))
    }

    fn is_old(&self) -> bool {
        self.began.is_none_or(|began| began.elapsed() > FRESH)
    }

    fn look_again(&mut self) {
        let Some(saving) = &mut self.saving else { return };
        saving.survey.refresh_beside(saving.world, saving.index);
        if let Some(facts) = saving.survey.facts(saving.world, saving.index) {
            self.facts = Facts { lease: self.facts.lease, ..facts };
            self.began = saving.survey.snapshot.began;
        }
    }
}
