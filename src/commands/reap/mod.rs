//! `rtrack reap`: removes what is proven to be orphaned.

mod answer;
mod journal;
mod planning;
mod progress;
pub(super) mod record;
mod signals;
mod worker;

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use self::planning::Choice;
use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::render::{self, Lines, Row};
use super::selecting::SelectArgs;
use super::surveying::Look;
use super::ui::Ui;
use crate::tracker::archive::{Archive, ArchiveError};
use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::plan::Step;
use crate::tracker::plan::document::{self, Item};
use crate::tracker::reap::{self, Outcome, Report, Settled};
use crate::tracker::resource::Name;
use crate::tracker::select;
use crate::tracker::verdict::Verdict;
use crate::tracker::world::Scope;

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

    /// Print what would be removed, and remove nothing; with --json that is a plan
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Carry out exactly this plan of an earlier --dry-run --json (- is stdin)
    #[arg(long, value_name = "PLAN", conflicts_with_all = [
        "names", "exact", "kind", "user", "producer", "older_than", "min_size", "grace",
        "assume_complete", "verdict", "force", "all_namespaces", "namespace",
    ])]
    from: Option<OsString>,

    /// Only what a daemon that was killed had registered in this journal, and still is what was registered: all of it
    /// that is orphaned or unclaimed, but for what processes registered that live
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "force"])]
    journal: Option<PathBuf>,

    /// Remove without asking
    #[arg(short, long)]
    yes: bool,

    /// Save each object in this directory before it goes; rtrack restore brings it back
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,

    /// Print one JSON document, with all the evidence
    #[arg(long)]
    json: bool,

    /// Exit with status 3 if not everything could be seen; what is orphaned goes all the same
    #[arg(long)]
    strict: bool,

    #[command(flatten)]
    record: record::AuditArgs,
}

impl ReapArgs {
    /// The verdicts that go. What is registered in a journal was to go: nothing has to prove that.
    fn wanted(&self) -> &[Verdict] {
        if self.journal.is_some() {
            &[Verdict::Orphaned, Verdict::Unclaimed]
        } else {
            &self.verdict
        }
    }
}

/// Removes, or with `--dry-run` says what would be removed.
///
/// # Errors
/// The command line is wrong, /dev/shm cannot be read, or stdout or the record cannot be written.
pub fn run(args: &ReapArgs, ui: &Ui) -> Result<Status, CommandError> {
    check(args, ui)?;
    let archive = open_archive(args)?;
    let plan = args.from.as_ref().map(|from| planning::read_plan(from)).transpose()?;
    let journal = args.journal.as_deref().map(|path| journal::Journal::open(path, ui));
    let journal = journal.transpose()?;
    if !args.dry_run {
        // What another one has in hand cannot be judged.
        drop(worker::lock(&Host::real()?)?);
    }
    let mut choice = Choice::default();
    let wide = plan.as_deref().is_some_and(document::is_wide);
    let scope = if wide { Scope::All } else { args.select.scope() };
    let mut found = Look::take(&args.select, scope, false, |world, objects| match &plan {
        Some(text) => choice.follow(planning::check_plan(text, world)?, &args.select, objects),
        None => {
            let of_journal =
                |object: &Object| journal.as_ref().is_none_or(|journal| journal.has(object));
            choice.select(args, world, objects.into_iter().filter(of_journal).collect())
        }
    })?;
    // Who uses what is looked for only if anything may go.
    let lines = Lines::new(&found.world, &found.survey, true);
    let any = lines.iter().any(|row| args.wanted().contains(&row.verdict()));
    if any {
        found.survey.look_closer(&found.world);
    }
    // What a plan does not name, or was not saved, goes back instead.
    let finish = plan.is_none() && archive.is_none();
    let how = reap::How { assume_complete: found.survey.judging().assume_complete, finish };
    let mut leftovers = Vec::new();
    for (place, host) in found.world.wanted_shm() {
        match reap::leftovers(host, how) {
            Ok(some) => leftovers.extend(some),
            Err(error) if place == 0 => return Err(error.into()),
            // Said when it is to be settled.
            Err(_) => {}
        }
    }

    let planned = choice.plan(args, &found);
    let closed = planned.closed_segments(&found);
    let troubled = found.say(args.strict, ui);
    // Said before anything can stop it from being said.
    ui.errors(&choice.missing);
    let unclaimed = |step: &Step| matches!(step, Step::Remove(_, Verdict::Unclaimed));
    let unclaimed = planned
        .steps
        .iter()
        .any(|(index, step)| unclaimed(step) && !planned.forced.contains(index));
    if !found.survey.catalogue().broken().is_empty() && unclaimed {
        return Err(CommandError::new(
            ErrorKind::Failed,
            anyhow::anyhow!("what is unclaimed may be claimed by the catalogue that is broken"),
        )
        .hint("mend it first, or name single objects: --force NAME"));
    }
    let mut done = Done::default();
    let mut begun = answer::Begun::Nothing;
    let mut signals = None;
    if args.dry_run {
        answer::say_forced(ui, &found, &planned);
        answer::say_leftovers(&leftovers, ui);
        answer::say_closed(&closed, ui);
        done.reports.extend(planned.steps.iter().map(|(index, step)| {
            let row = render::row(&found.world, &found.survey, *index);
            (*index, foresee(step, row.as_ref()))
        }));
        (done.forced, done.absent) = (planned.forced, planned.absent);
        done.settled = leftovers.iter().map(reap::foresee).collect();
        done.settled.extend(closed.iter().map(reap::sysv::foresee_segment));
    } else {
        let anything = planned.removals() > 0 || !leftovers.is_empty();
        // Giving something back is not asked about.
        if anything && !args.yes && !answer::confirm(ui, &found, &planned, &leftovers)? {
            ui.line("nothing was removed");
            return Ok(ErrorKind::No.status());
        }
        if args.yes {
            answer::say_forced(ui, &found, &planned);
        }
        let _locks = worker::lock_all(&found.world)?;
        let plan = choice.plan.as_ref().and_then(|plan| plan.id.clone());
        let mut record = record::Record::new(ui, &args.record, plan, &found.world.host.proc);
        // Of a plan that is given, also what cannot be carried out.
        if anything || !planned.absent.is_empty() {
            record.open()?;
        }
        let held_back = signals.insert(signals::Signals::block()?);
        // Whoever cannot be answered must not find out afterwards.
        begun = answer::begin(args, ui, &found, &planned)?;
        done = worker::carry_out(
            ui,
            &mut found,
            planned,
            archive.as_ref(),
            finish,
            held_back,
            record,
        )?;
    }
    answer::finish(args, ui, &found, &done, choice.plan.as_ref(), begun)?;
    done.interrupted |= signals.is_some_and(|signals| signals.came());
    if let Some(journal) = journal.filter(|_| !args.dry_run) {
        journal.settle(ui);
    }

    Ok(done.status(troubled, args.dry_run, !choice.missing.is_empty()))
}

/// What was done, or would be.
#[derive(Debug, Default)]
struct Done {
    /// With each object, by its place in the survey.
    reports: Vec<(usize, Report)>,
    /// Those of them that were forced.
    forced: HashSet<usize>,
    /// What a plan says of objects that were there no longer.
    absent: Vec<(Item, Report)>,
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
        let absent = || self.absent.iter().map(|(_, report)| report.outcome);
        let outcomes = || self.reports.iter().map(|(_, report)| report.outcome).chain(absent());
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

/// Opens the directory of `--archive`, which a dry run does not make.
fn open_archive(args: &ReapArgs) -> Result<Option<Archive>, CommandError> {
    let Some(path) = &args.archive else { return Ok(None) };
    let host = Host::real()?;
    Archive::open(&host, path, !args.dry_run).map_err(|error| {
        let hint = match &error {
            ArchiveError::SameFileSystem(_) => "name a directory on a disk",
            ArchiveError::Foreign { .. } | ArchiveError::Open { .. } => {
                "memory holds secrets: it has to be your own directory, of mode 0700"
            }
            ArchiveError::NotADirectory(_) => "name a directory; a missing one is made",
            ArchiveError::Io { .. } => "a missing directory is made, those above it are not",
        };
        CommandError::from(error).hint(hint)
    })
}

fn foresee(step: &Step, row: Option<&Row<'_>>) -> Report {
    match step {
        Step::Remove(..) => {
            let says = row.map_or_else(String::new, |row| row.judgement().explained());
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
