//! `rtrack reap`: removes what is proven to be orphaned.

mod answer;
pub(super) mod record;
mod signals;
mod worker;

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::render::{self, Row};
use super::selecting::SelectArgs;
use super::surveying::{Chosen, Look, sort};
use super::ui::Ui;
use super::values;
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::Object;
use crate::tracker::plan::{self, Step};
use crate::tracker::reap::{self, Outcome, Report, Settled};
use crate::tracker::resource::{Kind, Name};
use crate::tracker::select;
use crate::tracker::verdict::Verdict;

/// The arguments of `rtrack reap`.
#[derive(Debug, clap::Args)]
pub struct ReapArgs {
    #[command(flatten)]
    select: SelectArgs,

    /// What to remove: orphaned, and if asked for, unclaimed
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "orphaned",
        value_name = "VERDICT"
    )]
    verdict: Vec<Verdict>,

    /// Remove this one object whatever its verdict, unless it is held; without other names,
    /// nothing else is removed
    #[arg(long, value_name = "NAME")]
    force: Vec<OsString>,

    /// Print what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Remove without asking
    #[arg(short, long)]
    yes: bool,

    /// Print one JSON document, with all the evidence
    #[arg(long)]
    json: bool,

    /// Exit with status 3 if not everything could be seen; what is orphaned goes all the same
    #[arg(long)]
    strict: bool,

    #[command(flatten)]
    record: record::AuditArgs,
}

/// Removes, or with `--dry-run` says what would be removed.
///
/// # Errors
/// The command line is wrong, /dev/shm cannot be read, or stdout or the record cannot be written.
pub fn run(args: &ReapArgs, ui: &Ui) -> Result<Status, CommandError> {
    check(args, ui)?;
    let (mut forced, mut missing) = (HashSet::new(), Vec::new());
    let mut found = Look::take(&args.select, args.select.judging(), |host, objects| {
        choose(args, host, objects, &mut forced, &mut missing)
    })?;
    let leftovers = reap::leftovers(&found.host)?;

    let planned = plan(args, &found, &forced);
    let troubled = found.say(args.strict, ui);
    // Said before anything can stop it from being said.
    ui.errors(&missing);
    if !found.survey.catalogue().broken().is_empty() && args.verdict.contains(&Verdict::Unclaimed) {
        return Err(CommandError::new(
            ErrorKind::Failed,
            anyhow::anyhow!("what is unclaimed may be claimed by the catalogue that is broken"),
        )
        .hint("mend it first, or name single objects: --force NAME"));
    }
    if planned.directories > 0 {
        ui.note(format_args!(
            "note: {} left: {}",
            values::plural(planned.directories, "directory", "directories"),
            plan::DIRECTORIES
        ));
    }

    let mut done = Done::default();
    let mut begun = answer::Begun::Nothing;
    let mut signals = None;
    if args.dry_run {
        answer::say_leftovers(&leftovers, ui);
        done.reports.extend(planned.steps.iter().map(|(index, step)| {
            let row = planned_row(&found, *index);
            (*index, foresee(step, row.as_ref()))
        }));
        done.settled = leftovers.iter().map(reap::foresee).collect();
    } else {
        let anything = planned.removals() > 0 || !leftovers.is_empty();
        if anything && !args.yes && !answer::confirm(ui, &found, &planned, &leftovers)? {
            ui.line("nothing was removed");
            return Ok(ErrorKind::No.status());
        }
        let mut record = record::Record::new(ui, &args.record, None, &found.host.proc);
        if anything {
            record.open()?;
        }
        let held_back = signals.insert(signals::Signals::block()?);
        // Whoever cannot be answered must not find out afterwards.
        begun = answer::begin(args, ui, &found, &planned)?;
        done = worker::carry_out(ui, &mut found, planned, held_back, record)?;
    }
    answer::finish(args, ui, &found, &done, begun)?;
    done.interrupted |= signals.is_some_and(|signals| signals.came());

    Ok(done.status(troubled, args.dry_run, !missing.is_empty()))
}

/// What was done, or would be.
#[derive(Debug, Default)]
struct Done {
    /// With each object, by its place in the survey.
    reports: Vec<(usize, Report)>,
    /// With what interrupted reaps left behind.
    settled: Vec<Settled>,
    /// Directories of this reap that could not be removed at its end, each with the reason.
    left: Vec<(Name, String)>,
    /// Whether a signal came.
    interrupted: bool,
    /// The file in which it is recorded.
    audit: Option<PathBuf>,
    /// Whether something could not be recorded, and what was not begun for it.
    audit_failed: bool,
    unrecorded: HashSet<usize>,
}

impl Done {
    /// The exit status. What could not be found out, or done, beats a no.
    fn status(&self, troubled: bool, dry_run: bool, missing: bool) -> Status {
        if self.interrupted {
            return ErrorKind::Interrupted.status();
        }
        let outcomes = || self.reports.iter().map(|(_, report)| report.outcome);
        let failed = outcomes().any(|outcome| outcome == Outcome::Failed)
            || self.settled.iter().any(|settled| settled.trouble.is_some())
            || self.audit_failed;
        if failed || troubled {
            return ErrorKind::Failed.status();
        }
        let left = outcomes().any(|outcome| outcome.is_left())
            || !self.left.is_empty()
            || self.settled.iter().any(|settled| !settled.left.is_empty());
        if missing || left && !dry_run { ErrorKind::No.status() } else { 0 }
    }
}

/// What can be wrong before anything is read.
fn check(args: &ReapArgs, ui: &Ui) -> Result<(), CommandError> {
    args.select.check(&args.force)?;
    if let Some(verdict) = args.verdict.iter().find(|verdict| verdict.reapability() == 0) {
        return Err(CommandError::usage(format_args!(
            "--verdict {verdict}: only orphaned and unclaimed can be reaped"
        ))
        .hint("--force NAME removes one object whatever its verdict, unless it is held"));
    }
    if let Some(name) = args.force.iter().find(|name| !args.select.exact && select::is_glob(name)) {
        let name = crate::tracker::resource::escape(name.as_bytes());
        return Err(CommandError::usage(format_args!(
            "--force {name}: takes one exact name, no glob"
        )));
    }
    if !args.dry_run && !args.yes && !ui.can_ask() {
        return Err(CommandError::usage("there is no terminal to ask at")
            .hint("--yes removes without asking, --dry-run only says what would be removed"));
    }
    Ok(())
}

/// The objects that the names and options select, and those to force, whose names in the directory
/// are added to `forced`; to `none`, the names that no object has.
fn choose(
    args: &ReapArgs,
    host: &Host,
    all: Vec<Object>,
    forced: &mut HashSet<Name>,
    none: &mut Vec<CommandError>,
) -> Result<Chosen, CommandError> {
    let mut chosen = Vec::new();
    if !args.force.is_empty() {
        let indices = args.select.indices(&all, &args.force)?;
        chosen.extend(indices.iter().filter_map(|index| all.get(*index)).cloned());
        forced.extend(chosen.iter().map(|object| object.file.clone()));
        // A name to force selects nothing else.
        if args.select.names.is_empty() {
            return Ok(Chosen { objects: chosen, forced: forced.clone() });
        }
    }
    let (selected, mut missing) = args.select.select(all, (host.clock.wall)())?;
    chosen.extend(selected.into_iter().filter(|object| !forced.contains(&object.file)));
    if chosen.is_empty() && !missing.is_empty() {
        return Err(missing.remove(0));
    }
    none.extend(missing);
    Ok(Chosen { objects: chosen, forced: forced.clone() })
}

/// What is to be done, in the order of `--sort`.
struct Planned {
    /// With each object, by its place in the survey; what was neither planned nor named is left out.
    steps: Vec<(usize, Step)>,
    /// Those of them that are forced.
    forced: HashSet<usize>,
    /// How many directories would go if this version removed any.
    directories: usize,
}

impl Planned {
    /// How many objects are to be removed.
    fn removals(&self) -> usize {
        self.steps.iter().filter(|(_, step)| matches!(step, Step::Remove(..))).count()
    }
}

fn plan(args: &ReapArgs, found: &Look, forced: &HashSet<Name>) -> Planned {
    let survey = &found.survey;
    let mut rows = render::rows(&found.host, survey);
    sort(&mut rows, args.select.sort, args.select.reverse);
    let named = select::named(&survey.objects, &args.select.names);
    let mut planned = Planned { steps: Vec::new(), forced: HashSet::new(), directories: 0 };
    for row in rows {
        let force = forced.contains(&row.object.file);
        if force {
            planned.forced.insert(row.index);
        }
        if !force && !args.select.passes_producer(row.producer.map(|(id, _)| id)) {
            continue;
        }
        let Some(lease) = survey.leases.get(row.index) else { continue };
        let verdict = row.judgement.verdict;
        let directory = row.object.kind == Kind::Dir && verdict.reapability() > 0;
        match plan::step(row.object.kind, *lease, &row.judgement, &args.verdict, force) {
            // Somebody who names an object is told why it stays.
            Step::Leave if named.contains(&row.index) => {
                let why = if directory {
                    plan::DIRECTORIES.to_owned()
                } else {
                    format!("{verdict}: {}", row.judgement.says())
                };
                planned.steps.push((row.index, Step::Refuse(verdict, why)));
            }
            Step::Leave if directory && args.verdict.contains(&verdict) => planned.directories += 1,
            Step::Leave => {}
            step => planned.steps.push((row.index, step)),
        }
    }
    planned
}

fn planned_row(found: &Look, index: usize) -> Option<Row<'_>> {
    render::row(&found.host, &found.survey, index)
}

fn foresee(step: &Step, row: Option<&Row<'_>>) -> Report {
    match step {
        Step::Remove(..) => {
            let says = row.map_or_else(String::new, |row| row.judgement.explained());
            Report::new(Outcome::WouldReap, says)
        }
        Step::Refuse(verdict, why) => refused(*verdict, why.clone()),
        Step::Leave => untouched("not planned"),
    }
}

fn refused(verdict: Verdict, says: String) -> Report {
    let outcome = if verdict == Verdict::Held { Outcome::Held } else { Outcome::Refused };
    Report::new(outcome, says)
}

fn untouched(says: &str) -> Report {
    Report::new(Outcome::Refused, says)
}
