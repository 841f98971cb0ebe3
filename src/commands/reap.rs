//! `rtrack reap`: removes what is proven to be orphaned.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::render::{self, Row, columns, document, table};
use super::selecting::SelectArgs;
use super::surveying::{Look, sort};
use super::ui::Ui;
use super::values::{self, show_size};
use crate::tracker::evidence::lease;
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::Object;
use crate::tracker::plan::{self, Step};
use crate::tracker::reap::{self, Manner, Outcome, Reaper, Report, Settled, Target};
use crate::tracker::resource::{Kind, Name};
use crate::tracker::select;
use crate::tracker::survey::{self, Survey};
use crate::tracker::verdict::{Verdict, judge};

/// What is older than this is not judged by: between a look at the processes and a removal lie at
/// most 5 seconds.
const FRESH: Duration = Duration::from_secs(4);

/// How long another rtrack may keep this one from starting.
const COURTESY: Duration = Duration::from_secs(2);

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
}

/// Removes, or with `--dry-run` says what would be removed.
///
/// # Errors
/// The command line is wrong, /dev/shm cannot be read, or stdout cannot be written.
pub fn run(args: &ReapArgs, ui: &Ui) -> Result<Status, CommandError> {
    check(args, ui)?;
    let mut leftovers = 0;
    let mut found = Look::take(&args.select, args.select.judging(), |host, objects| {
        leftovers = objects.iter().filter(|object| reap::is_our_leftover(object)).count();
        choose(args, host, objects)
    })?;
    let looked = Instant::now();

    let Planned { steps, directories } = plan(args, &found);
    let planned = steps.iter().filter(|(_, step)| matches!(step, Step::Remove(..))).count();
    let troubled = found.say(args.strict, ui);
    if directories > 0 {
        ui.note(format_args!(
            "note: {} left: {}",
            values::plural(directories, "directory", "directories"),
            plan::DIRECTORIES
        ));
    }

    let mut interrupted = false;
    let mut settled = Vec::new();
    let mut reports: Vec<(usize, Report)> = Vec::new();
    if args.dry_run {
        for (index, step) in steps {
            reports.push((index, foresee(step)));
        }
        if leftovers > 0 {
            ui.note(format_args!(
                "{} of interrupted reaps would be settled",
                values::plural(leftovers, "directory", "directories")
            ));
        }
    } else {
        if (planned > 0 || leftovers > 0)
            && !args.yes
            && !confirm(args, ui, &found, &steps, leftovers)?
        {
            ui.line("nothing was removed");
            return Ok(ErrorKind::No.status());
        }
        let signals = Signals::block()?;
        let Look { host, survey, .. } = &mut found;
        let lock = lease::courtesy_lock(host, COURTESY);
        settled = reap::settle(host)?;
        for settled in &settled {
            say_settled(settled, ui);
        }
        let mut at = Worker {
            host,
            survey,
            looked,
            reaper: Reaper::new(host),
            names_removed: HashMap::new(),
        };
        for (index, step) in steps {
            if interrupted || signals.came() {
                interrupted = true;
                reports.push((index, untouched("interrupted before its turn")));
                continue;
            }
            let force = at.survey.objects.get(index).is_some_and(|object| is_forced(args, object));
            reports.push((index, at.carry_out(index, step, force)));
        }
        for (name, why) in at.reaper.finish() {
            ui.line(format_args!("warning: {}/{name}: {why}", host.shm_path.display()));
        }
        drop(lock);
    }

    let rows = reported(&found, reports, args);
    let mut head = found.head("rtrack.reap/1");
    head.insert("settled".into(), settled.iter().map(settled_value).collect());
    answer(args, ui, head, &rows)?;
    for row in &rows {
        say_failed(row, ui);
    }
    if interrupted {
        return Ok(ErrorKind::Interrupted.status());
    }
    let failed = rows.iter().any(|row| outcome(row) == Outcome::Failed)
        || settled.iter().any(|settled| settled.trouble.is_some());
    if failed || troubled {
        return Ok(ErrorKind::Failed.status());
    }
    let left = rows.iter().any(|row| outcome(row).is_left());
    Ok(if left && !args.dry_run { ErrorKind::No.status() } else { 0 })
}

/// What can be wrong before anything is read.
fn check(args: &ReapArgs, ui: &Ui) -> Result<(), CommandError> {
    args.select.check_exact(&args.force)?;
    args.select.filter()?;
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

/// The objects that the names and options select, and those to force.
fn choose(args: &ReapArgs, host: &Host, all: Vec<Object>) -> Result<Vec<Object>, CommandError> {
    let now = (host.clock.wall)();
    if args.force.is_empty() {
        return args.select.select(all, now);
    }
    // A name to force is checked as any other; alone it selects nothing else.
    let forced = args.select.indices(&all, &args.force)?;
    let mut chosen: Vec<_> = forced.iter().filter_map(|index| all.get(*index)).cloned().collect();
    if !args.select.names.is_empty() {
        let files: std::collections::HashSet<_> =
            chosen.iter().map(|object| object.file.clone()).collect();
        let selected = args.select.select(all, now)?;
        chosen.extend(selected.into_iter().filter(|object| !files.contains(&object.file)));
    }
    Ok(chosen)
}

fn is_forced(args: &ReapArgs, object: &Object) -> bool {
    !select::named(std::slice::from_ref(object), &args.force).is_empty()
}

/// What is to be done, in the order of `--sort`.
struct Planned {
    /// With each object, by its place in the survey; what was neither planned nor named is left out.
    steps: Vec<(usize, Step)>,
    /// How many directories would go if this version removed any.
    directories: usize,
}

fn plan(args: &ReapArgs, found: &Look) -> Planned {
    let survey = &found.survey;
    let mut rows = render::rows(&found.host, survey);
    sort(&mut rows, args.select.sort, args.select.reverse);
    let named = select::named(&survey.objects, &args.select.names);
    let mut planned = Planned { steps: Vec::new(), directories: 0 };
    for row in rows {
        let force = is_forced(args, row.object);
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

fn foresee(step: Step) -> Report {
    match step {
        Step::Remove(..) => {
            Report { outcome: Outcome::WouldReap, says: "would be removed".into(), errno: None }
        }
        Step::Refuse(verdict, why) => refused(verdict, why),
        Step::Leave => untouched("not planned"),
    }
}

fn refused(verdict: Verdict, says: String) -> Report {
    let outcome = if verdict == Verdict::Held { Outcome::Held } else { Outcome::Refused };
    Report { outcome, says, errno: None }
}

fn untouched(says: &str) -> Report {
    Report { outcome: Outcome::Refused, says: says.into(), errno: None }
}

struct Worker<'a> {
    host: &'a Host,
    survey: &'a mut Survey,
    looked: Instant,
    reaper: Reaper<'a>,
    /// How many names of each inode, by device and number, this run has removed.
    names_removed: HashMap<(u64, u64), u32>,
}

impl Worker<'_> {
    fn carry_out(&mut self, index: usize, step: Step, force: bool) -> Report {
        // The verdict that the operator was shown: what weaker one a newer look gives is no plan.
        let (manner, planned) = match step {
            Step::Remove(manner, planned) => (manner, planned),
            Step::Refuse(verdict, why) => return refused(verdict, why),
            Step::Leave => return untouched("not planned"),
        };
        if self.looked.elapsed() > FRESH {
            self.survey.refresh(self.host);
            self.looked = Instant::now();
        }
        let (Some(object), Some(mut facts)) =
            (self.survey.objects.get(index), self.survey.facts(self.host, index))
        else {
            return untouched("not planned");
        };
        let now = judge(&facts);
        if let Err(why) = plan::still_goes(planned, &now, force) {
            return refused(now.verdict, why);
        }
        let (host, seen) = (self.host, object.stat);
        let target = Target {
            file: &object.file,
            identity: object.identity(),
            manner,
            may_go_directly: planned == Verdict::Orphaned,
        };
        // The removal of another name is a change of the inode too, and was this run's own.
        let names_removed = self.names_removed.entry((seen.dev, seen.ino)).or_default();
        let report = self.reaper.remove(&target, &mut |now| {
            if (now.mode, now.uid, now.gid) != (seen.mode, seen.uid, seen.gid) {
                return Err("its owner or mode was changed since it was looked at".into());
            }
            let change_is_ours = *names_removed > 0 && now.nlink + *names_removed == seen.nlink;
            if (now.size, now.modified) != (seen.size, seen.modified)
                || now.changed != seen.changed && !change_is_ours
            {
                return Err("it was written or changed since it was looked at".into());
            }
            if manner == Manner::Leased {
                facts.lease = lease::Lease::Granted;
            }
            if !change_is_ours {
                facts.quiet = survey::quiet(host, now);
            }
            plan::still_goes(planned, &judge(&facts), force)
        });
        *names_removed += u32::from(report.outcome.is_removed());
        report
    }
}

/// SIGINT, SIGTERM and SIGHUP wait until the object in hand is done with.
struct Signals {
    set: SigSet,
    fd: SignalFd,
}

impl Drop for Signals {
    fn drop(&mut self) {
        // A second one, while the report is written, ends the program as usual.
        self.set.thread_unblock().unwrap_or(());
    }
}

impl Signals {
    fn block() -> Result<Self, CommandError> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGHUP);
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { set, fd })
    }

    fn came(&self) -> bool {
        matches!(self.fd.read_signal(), Ok(Some(_)))
    }
}

fn confirm(
    args: &ReapArgs,
    ui: &Ui,
    found: &Look,
    steps: &[(usize, Step)],
    leftovers: usize,
) -> Result<bool, CommandError> {
    let rows = render::rows(&found.host, &found.survey);
    let by_index: HashMap<usize, &Row<'_>> = rows.iter().map(|row| (row.index, row)).collect();
    let mut bytes = 0;
    let mut count = 0;
    for (index, step) in steps {
        let (Some(row), Step::Remove(..)) = (by_index.get(index), step) else {
            continue;
        };
        count += 1;
        bytes += row.object.allocated();
        let judgement = &row.judgement;
        let overridden = if is_forced(args, row.object) { "forced although " } else { "" };
        ui.line(format_args!(
            "  {}  {}  {overridden}{}: {}",
            row.object.shown_id(),
            show_size(row.object.size()),
            judgement.verdict,
            judgement.says()
        ));
    }
    if leftovers > 0 {
        ui.line(format_args!(
            "  and {} of interrupted reaps to settle",
            values::plural(leftovers, "directory", "directories")
        ));
    }
    let mut err = std::io::stderr().lock();
    write!(
        err,
        "remove {} ({})? [y/N] ",
        values::plural(count, "object", "objects"),
        show_size(bytes)
    )?;
    err.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn say_settled(settled: &Settled, ui: &Ui) {
    let Some(directory) = &settled.directory else { return };
    // Said even to who wants quiet: something was removed.
    for name in &settled.finished {
        ui.line(format_args!("{directory}: {name}: removed, as an interrupted reap had begun"));
    }
    for name in &settled.put_back {
        ui.note(format_args!("{directory}: {name}: put back, somebody holds it"));
    }
    for (name, why) in &settled.left {
        ui.line(format_args!("warning: {directory}: {name}: left there: {why}"));
    }
    if let Some(trouble) = &settled.trouble {
        ui.line(format_args!("error: {directory}: {trouble}"));
    }
}

fn reported<'a>(found: &'a Look, reports: Vec<(usize, Report)>, args: &ReapArgs) -> Vec<Row<'a>> {
    let mut rows = render::rows(&found.host, &found.survey);
    let mut reports: HashMap<usize, Report> = reports.into_iter().collect();
    for row in &mut rows {
        row.report = reports.remove(&row.index);
    }
    rows.retain(|row| row.report.is_some());
    sort(&mut rows, args.select.sort, args.select.reverse);
    rows
}

fn say_failed(row: &Row<'_>, ui: &Ui) {
    let Some(report) = row.report.as_ref().filter(|report| report.outcome == Outcome::Failed)
    else {
        return;
    };
    ui.line(format_args!("error: {}: {}", row.object.shown_id(), report.says));
    match report.errno {
        Some(libc::EROFS) => ui.line("hint: /dev/shm is mounted read-only"),
        Some(libc::ENOSPC) => {
            ui.line("hint: the mount has no inode left; what is orphaned can go even so, other objects after it");
        }
        Some(libc::EPERM | libc::EACCES) => ui.line("hint: only its owner and root may remove it"),
        _ => {}
    }
}

fn outcome(row: &Row<'_>) -> Outcome {
    row.report.as_ref().map_or(Outcome::Refused, |report| report.outcome)
}

fn settled_value(settled: &Settled) -> serde_json::Value {
    let names = |names: &[Name]| names.iter().map(Name::to_lossy).collect::<Vec<_>>();
    let left = settled.left.iter();
    serde_json::json!({
        "directory": settled.directory.as_ref().map(Name::to_lossy),
        "finished": names(&settled.finished),
        "put_back": names(&settled.put_back),
        "trouble": settled.trouble,
        "left": left.map(|(name, why)| serde_json::json!({ "name": name, "says": why })).collect::<Vec<_>>(),
    })
}

fn answer(
    args: &ReapArgs,
    ui: &Ui,
    head: serde_json::Map<String, serde_json::Value>,
    rows: &[Row<'_>],
) -> Result<(), CommandError> {
    let keys: &[&str] = if args.dry_run {
        &["id", "size", "user", "age_s", "verdict", "outcome", "reason"]
    } else {
        &["id", "size", "user", "verdict", "outcome", "says"]
    };
    let columns: Vec<_> = keys.iter().filter_map(|key| columns::by_key(key)).collect();
    let look = table::Look {
        width: ui.stdout_is_terminal().then(table::terminal_width).flatten(),
        colored: ui.colored(),
        headings: true,
    };
    ui.answer(|out| {
        if args.json {
            document::write(out, &document::reap(head, rows, args.dry_run))
        } else {
            table::write(out, rows, &columns, look)
        }
    })?;
    let count = |wanted: &dyn Fn(Outcome) -> bool| {
        document::count(rows.iter().filter(|row| wanted(outcome(row))))
    };
    let (would, bytes) = count(&|o| o == Outcome::WouldReap);
    if args.dry_run {
        ui.note(format_args!(
            "would remove {} ({}); nothing was removed",
            values::plural(would, "object", "objects"),
            show_size(bytes)
        ));
        return Ok(());
    }
    let (removed, bytes) = count(&Outcome::is_removed);
    let (left, _) = count(&Outcome::is_left);
    let mut text =
        format!("removed {} ({})", values::plural(removed, "object", "objects"), show_size(bytes));
    if left > 0 {
        text.push_str(&format!(", left {left}"));
    }
    ui.note(text);
    Ok(())
}
