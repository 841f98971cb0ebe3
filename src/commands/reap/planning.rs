//! What is to be done with each object: by its verdict, or by a plan that was made before.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use super::ReapArgs;
use crate::commands::error::{CommandError, Kind as ErrorKind};
use crate::commands::render::{self, Row};
use crate::commands::selecting::{SelectArgs, explain};
use crate::commands::surveying::{Chosen, Look, sort};
use crate::tracker::inventory::posix::stat_here;
use crate::tracker::inventory::{Key, Object, sysv};
use crate::tracker::plan::document::{self, Item, Plan};
use crate::tracker::plan::{self, Step};
use crate::tracker::reap::{self, Outcome, Report};
use crate::tracker::resource::{Kind, Name};
use crate::tracker::select;
use crate::tracker::survey::{Judging, Sought};
use crate::tracker::sys::ipc;
use crate::tracker::verdict::Verdict;
use crate::tracker::world::World;

/// What is to be done, in the order of `--sort`.
#[derive(Debug, Default)]
pub(super) struct Planned {
    /// With each object, by its place in the survey; what was neither planned nor named is left out.
    pub(super) steps: Vec<(usize, Step)>,
    /// Those of them that are forced.
    pub(super) forced: HashSet<usize>,
    /// What a plan says of objects that are there no longer.
    pub(super) absent: Vec<(Item, Report)>,
}

impl Planned {
    /// How many objects are to be removed.
    pub(super) fn removals(&self) -> usize {
        self.steps.iter().filter(|(_, step)| matches!(step, Step::Remove(..))).count()
    }

    /// The segments of System V memory that an interrupted reap has closed, but for those that are to be
    /// removed.
    pub(super) fn closed_segments(&self, found: &Look) -> Vec<Object> {
        let removed = self.steps.iter().filter(|(_, step)| matches!(step, Step::Remove(..)));
        let removed = removed.filter_map(|(index, _)| found.survey.objects.get(*index));
        let removed: HashSet<Key> = removed.map(Object::key).collect();
        let mut closed = reap::sysv::closed_segments(&found.world);
        closed.retain(|object| !removed.contains(&object.key()));
        closed
    }

    /// The rows of what is planned, and of what is there no longer.
    pub(super) fn rows<'a>(&'a self, found: &'a Look) -> Vec<Row<'a>> {
        let here = self.steps.iter().filter_map(|(index, _)| {
            let mut row = render::row(&found.world, &found.survey, *index)?;
            row.forced = self.forced.contains(index);
            Some(row)
        });
        here.chain(absent_rows(&self.absent, found)).collect()
    }
}

/// The rows of what is there no longer.
pub(super) fn absent_rows<'a>(
    absent: &'a [(Item, Report)],
    found: &'a Look,
) -> impl Iterator<Item = Row<'a>> {
    absent.iter().map(|(item, report)| {
        let judgement = item.judgement.clone();
        let mut row = Row::absent(&found.world, &found.survey, &item.object, judgement);
        row.producer =
            item.producer.as_ref().map(|(id, software)| (id.as_str(), software.as_str()));
        row.user = &item.user;
        row.report = Some(report.clone());
        row.forced = item.force;
        row
    })
}

/// What was chosen to be looked at, and how it is planned then.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// What is forced.
    forced: HashSet<Key>,
    /// For each name that no object has, the error.
    pub(super) missing: Vec<CommandError>,
    /// The plan to carry out.
    pub(super) plan: Option<Plan>,
}

impl Choice {
    /// The objects that the names and options select, and those to force.
    pub(super) fn select(
        &mut self,
        args: &ReapArgs,
        world: &World,
        all: Vec<Object>,
    ) -> Result<Chosen, CommandError> {
        let chosen = |objects, forced: &HashSet<Key>| {
            // What the kernel says is in use stays, whoever uses it. Of what is named, it is told who does.
            let named = !forced.is_empty() || args.select.narrows();
            let sought = if named { Sought::All } else { Sought::None };
            let judging = Judging { sought, ..args.select.judging() };
            Chosen { objects, forced: forced.clone(), judging, by_plan: false }
        };
        let mut objects = Vec::new();
        if !args.force.is_empty() {
            let indices = args.select.indices(&all, &args.force)?;
            objects.extend(indices.iter().filter_map(|index| all.get(*index)).cloned());
            self.forced.extend(objects.iter().map(Object::key));
            // A name to force selects nothing else.
            if args.select.names.is_empty() {
                return Ok(chosen(objects, &self.forced));
            }
        }
        let (selected, mut missing) = args.select.select(all, (world.host.clock.wall)())?;
        objects.extend(selected.into_iter().filter(|object| !self.forced.contains(&object.key())));
        if objects.is_empty() && !missing.is_empty() {
            return Err(explain(missing.remove(0)));
        }
        self.missing = missing.into_iter().map(explain).collect();
        Ok(chosen(objects, &self.forced))
    }

    /// The objects of a plan that are still there.
    pub(super) fn follow(
        &mut self,
        plan: Plan,
        select: &SelectArgs,
        all: Vec<Object>,
    ) -> Result<Chosen, CommandError> {
        let items = by_key(&plan.items);
        let of_plan = |object: &Object| {
            items.get(&object.key()).is_some_and(|item| is_same(&item.object, object))
        };
        let grace = u64::try_from(plan.grace).unwrap_or(u64::MAX);
        let judging = Judging {
            grace: std::time::Duration::from_nanos(grace),
            assume_complete: plan.assume_complete,
            ..select.judging()
        };
        let objects = all.into_iter().filter(of_plan).collect();
        drop(items);
        self.plan = Some(plan);
        Ok(Chosen { objects, forced: HashSet::new(), judging, by_plan: true })
    }

    /// What is to be done with what was found.
    pub(super) fn plan(&mut self, args: &ReapArgs, found: &Look) -> Planned {
        match &self.plan {
            Some(plan) => by_plan(plan, args, found),
            None => by_verdict(args, found, &self.forced),
        }
    }
}

/// The items of a plan by what they are known by; no two have the same.
fn by_key(items: &[Item]) -> HashMap<Key, &Item> {
    items.iter().map(|item| (item.object.key(), item)).collect()
}

fn is_same(planned: &Object, object: &Object) -> bool {
    planned.key() == object.key() && planned.identity() == object.identity()
}

/// Reads a plan; `-` is stdin.
///
/// # Errors
/// It cannot be read, or does not fit: status 3, and it is refused whole.
pub(super) fn read_plan(from: &OsStr) -> Result<Vec<u8>, CommandError> {
    let mut text = Vec::new();
    let read = if from == "-" {
        std::io::stdin().lock().read_to_end(&mut text)
    } else {
        std::fs::File::open(Path::new(from)).and_then(|mut file| file.read_to_end(&mut text))
    };
    let context = format!("read the plan {}", Name::from(from.to_owned()));
    read.map_err(|error| CommandError::from(anyhow::Error::new(error).context(context)))?;
    Ok(text)
}

/// Checks a plan whole.
///
/// # Errors
/// As [`read_plan`].
pub(super) fn check_plan(text: &[u8], world: &World) -> Result<Plan, CommandError> {
    document::read(text, world).map_err(|error| {
        let error = anyhow::Error::new(error).context("the plan is refused");
        CommandError::new(ErrorKind::Failed, error)
            .hint("nothing was removed; rtrack reap --dry-run --json makes a new one")
    })
}

/// Why a directory of that name is no object to remove.
const PRIVATE: &str =
    "it has the name of a private directory of a reap: only the next reap of its owner settles it";

/// Why a message queue does not go with `--archive`.
const NOT_SAVED: &str = "a message queue cannot be saved, and goes only without --archive";

fn by_verdict(args: &ReapArgs, found: &Look, forced: &HashSet<Key>) -> Planned {
    let survey = &found.survey;
    let mut rows = render::rows(&found.world, survey);
    sort(&mut rows, args.select.sort, args.select.reverse);
    let named = select::named(&survey.objects, &args.select.names);
    let mut planned = Planned::default();
    for row in rows {
        let force = forced.contains(&row.object.key());
        if force {
            planned.forced.insert(row.index);
        }
        if !force && !args.select.passes_producer(row.producer.map(|(id, _)| id)) {
            continue;
        }
        let verdict = row.verdict();
        match step(args, found, &row, args.wanted(), force) {
            // Somebody who names an object is told why it stays.
            Step::Leave if force || named.contains(&row.index) => {
                let why = if reap::is_quarantine_name(&row.object.file) {
                    PRIVATE.to_owned()
                } else if row.object.sysv.is_some() && !reap::sysv::may_remove(row.object) {
                    STRANGE.to_owned()
                } else {
                    format!("{verdict}: {}", row.judgement().says())
                };
                planned.steps.push((row.index, Step::Refuse(verdict, why)));
            }
            Step::Leave => {}
            step => planned.steps.push((row.index, step)),
        }
    }
    planned
}

/// Why a System V object of somebody else's is left.
const STRANGE: &str = "only its owner, who made it, and root may remove it";

fn step(args: &ReapArgs, found: &Look, row: &Row<'_>, verdicts: &[Verdict], force: bool) -> Step {
    if row.object.sysv.is_some() && !reap::sysv::may_remove(row.object) {
        return Step::Leave;
    }
    let step = match found.survey.leases.get(row.index) {
        // A reaper's own, or of somebody who likes the name.
        Some(_) if reap::is_quarantine_name(&row.object.file) => Step::Leave,
        Some(lease) => plan::step(row.object.kind, *lease, row.judgement(), verdicts, force),
        None => Step::Leave,
    };
    match step {
        Step::Remove(_, verdict) if args.archive.is_some() && row.object.sysv.is_some() => {
            Step::Refuse(verdict, "--archive cannot save it: it stays, or goes without".into())
        }
        Step::Remove(_, verdict) if args.archive.is_some() && row.object.kind == Kind::Mqueue => {
            Step::Refuse(verdict, NOT_SAVED.into())
        }
        step => step,
    }
}

fn by_plan(plan: &Plan, args: &ReapArgs, found: &Look) -> Planned {
    let mut rows = render::rows(&found.world, &found.survey);
    sort(&mut rows, args.select.sort, args.select.reverse);
    let mut planned = Planned::default();
    let mut left = by_key(&plan.items);
    for row in &rows {
        let here = left.get(&row.object.key()).filter(|item| is_same(&item.object, row.object));
        let Some(item) = here.copied() else { continue };
        left.remove(&row.object.key());
        if item.force {
            planned.forced.insert(row.index);
        }
        planned.steps.push((row.index, planned_step(args, found, row, item)));
    }
    for item in plan.items.iter().filter(|item| left.contains_key(&item.object.key())) {
        let object = &item.object;
        let report = if found.world.places.get(object.place).is_none() {
            Report::new(Outcome::Gone, "its namespace has ended, or cannot be seen")
        } else if is_gone(&found.world, object) {
            Report::new(Outcome::Gone, "it was gone already")
        } else {
            Report::new(Outcome::Changed, "another object has its name now")
        };
        planned.absent.push((item.clone(), report));
    }
    planned
}

/// Whether no object has the name, or the id, of this one.
fn is_gone(world: &World, object: &Object) -> bool {
    if let (Some(ipc), Some((family, id))) = (world.ipc(object.place), sysv::id_of(object)) {
        let state = ipc.run(|| ipc::state(family, id));
        return matches!(state, Ok(Ok(None)));
    }
    let dir = world.directory_of(object.place);
    let stat = stat_here(dir, &object.file, object.stat.dev);
    stat.is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
}

/// A plan never does more than it says: what is not as it was stays.
fn planned_step(args: &ReapArgs, found: &Look, row: &Row<'_>, item: &Item) -> Step {
    let now = row.verdict();
    if let Err(why) = plan::still_goes(item.judgement.verdict, row.judgement(), item.force) {
        return Step::Refuse(now, why);
    }
    if let Err(why) = item.is_unchanged(row.object) {
        return Step::Refuse(now, why.to_owned());
    }
    match step(args, found, row, &Verdict::ALL, item.force) {
        Step::Remove(manner, _) => Step::Remove(manner, item.judgement.verdict),
        Step::Leave => Step::Refuse(now, format!("{now}: {}", row.judgement().says())),
        refused @ Step::Refuse(..) => refused,
    }
}
