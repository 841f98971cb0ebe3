//! What the operator is asked and told: on stdout the report, on stderr everything else.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStrExt;

use serde_json::json;

use super::planning::{Planned, absent_rows};
use super::{Done, ReapArgs};
use crate::commands::error::CommandError;
use crate::commands::render::{self, Row, columns, document, table};
use crate::commands::surveying::{Look, sort};
use crate::commands::ui::{Ui, not_written};
use crate::commands::values::{plural, show_size};
use crate::tracker::inventory::Object;
use crate::tracker::plan::Step;
use crate::tracker::plan::document::{Plan, SCHEMA};
use crate::tracker::reap::{self, Leftover, Outcome, Report, Settled};
use crate::tracker::resource::{Kind, Name, escape};
use crate::tracker::verdict::Verdict;

/// So many objects are shown before the question.
const MOST_SHOWN: usize = 40;

/// The columns of the question.
const ASKED: [&str; 6] = ["id", "allocated", "user", "age_s", "verdict", "reason"];

/// The columns of the report.
const REPORTED: [&str; 6] = ["id", "size", "user", "verdict", "outcome", "says"];

/// The columns of a dry run.
const FORESEEN: [&str; 7] = ["id", "size", "user", "age_s", "verdict", "outcome", "says"];

fn columns_of(keys: &[&str]) -> Vec<&'static columns::Column> {
    keys.iter().filter_map(|key| columns::by_key(key)).collect()
}

fn look(ui: &Ui) -> table::Look {
    table::Look {
        width: ui.stdout_is_terminal().then(table::terminal_width).flatten(),
        colored: ui.colored(),
        headings: true,
    }
}

/// Shows what would be removed, and asks.
///
/// # Errors
/// The terminal cannot be read or written.
pub(super) fn confirm(
    ui: &Ui,
    found: &Look,
    planned: &Planned,
    leftovers: &[Leftover],
) -> Result<bool, CommandError> {
    let removals = planned.steps.iter().filter(|(_, step)| matches!(step, Step::Remove(..)));
    let rows: Vec<Row<'_>> = removals
        .filter_map(|(index, _)| render::row(&found.world, &found.survey, *index))
        .collect();
    let shown = rows.get(..rows.len().min(MOST_SHOWN)).unwrap_or_default();
    let mut text = Vec::new();
    let width = table::terminal_width();
    let look = table::Look { width, colored: ui.colored(), headings: true };
    table::write(&mut text, shown, columns_of(&ASKED), look)?;
    let mut err = std::io::stderr().lock();
    err.write_all(&text)?;
    if rows.len() > shown.len() {
        writeln!(err, "... and {} more", rows.len() - shown.len())?;
    }
    drop(err);
    say_forced(ui, found, planned);
    say_leftovers(leftovers, ui);
    let (count, bytes) = document::count(rows.iter());
    let mut question =
        format!("remove {} ({})", plural(count, "object", "objects"), show_size(bytes));
    if !leftovers.is_empty() {
        let directories = plural(leftovers.len(), "directory", "directories");
        question.push_str(&format!(" and settle {directories} of interrupted reaps"));
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{question}? [y/N] ")?;
    err.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Says what the operator overrides.
pub(super) fn say_forced(ui: &Ui, found: &Look, planned: &Planned) {
    for row in planned.rows(found).iter().filter(|row| row.forced && row.report.is_none()) {
        let (object, judgement) = (row.object, row.judgement());
        if judgement.verdict != Verdict::Orphaned && judgement.verdict != Verdict::Held {
            let (verdict, says) = (judgement.verdict, judgement.explained());
            ui.line(format_args!(
                "{}: forced, although it is {verdict}: {says}",
                object.shown_id()
            ));
        }
    }
}

/// Says what interrupted reaps left behind, and what becomes of it.
pub(super) fn say_leftovers(leftovers: &[Leftover], ui: &Ui) {
    for Leftover { directory, files } in leftovers {
        for (file, fate) in files {
            ui.line(format_args!("{directory}: {file}: left by an interrupted reap; it {fate}"));
        }
        if files.is_empty() {
            ui.note(format_args!("{directory}: left by an interrupted reap, and empty"));
        }
    }
}

/// Says which segments an interrupted reap has closed, and what becomes of them.
pub(super) fn say_closed(segments: &[Object], ui: &Ui) {
    for object in segments {
        ui.line(format_args!(
            "{}: closed by an interrupted reap; it gets its permissions back",
            object.shown_id()
        ));
    }
}

/// The beginning of a report.
#[derive(Debug)]
pub(super) enum Begun {
    /// Nothing is written yet.
    Nothing,
    /// The first byte of a JSON document.
    Document,
    /// The headings of a table.
    Table(table::Frame),
}

/// Writes the beginning of the report, so that a stdout that cannot be written is found before
/// anything is removed.
///
/// # Errors
/// stdout cannot be written, or nobody reads it.
pub(super) fn begin(
    args: &ReapArgs,
    ui: &Ui,
    found: &Look,
    planned: &Planned,
) -> Result<Begun, CommandError> {
    if args.json {
        ui.write(|out| out.write_all(b"{")).map_err(not_written)?;
        return Ok(Begun::Document);
    }
    let frame = table::Frame::new(&planned.rows(found), columns_of(&REPORTED), look(ui));
    ui.write(|out| frame.head(out)).map_err(not_written)?;
    Ok(Begun::Table(frame))
}

/// The rest of the report, and a summary on stderr.
///
/// # Errors
/// stdout cannot be written; what was done is on stderr then, as it is when nobody reads stdout any more.
pub(super) fn finish(
    args: &ReapArgs,
    ui: &Ui,
    found: &Look,
    done: &Done,
    plan: Option<&Plan>,
    begun: Begun,
) -> Result<(), CommandError> {
    let mut rows = render::rows(&found.world, &found.survey);
    let mut reports: HashMap<usize, Report> = done.reports.iter().cloned().collect();
    for row in &mut rows {
        row.report = reports.remove(&row.index);
        row.forced = done.forced.contains(&row.index);
    }
    // What was settled meanwhile is told of by itself.
    let settled = |row: &Row<'_>| done.settled.iter().any(|one| one.directory == row.object.file);
    let settled = |row: &Row<'_>| !args.dry_run && settled(row);
    rows.retain(|row| row.report.is_some() || !settled(row));
    rows.retain(|row| {
        let id = row.producer.map(|(id, _)| id);
        row.report.is_some() || args.select.passes_producer(id)
    });
    let alone = alone(&rows);
    rows.retain(|row| row.report.is_some());
    rows.extend(absent_rows(&done.absent, found));
    sort(&mut rows, args.select.sort, args.select.reverse);

    let written = ui.write(|out| {
        if args.json {
            let mut head = found.head(SCHEMA);
            head.insert("plan_id".into(), json!(plan_id(args, found, plan)));
            head.insert("grace_s".into(), json!(found.survey.judging().grace.as_secs_f64()));
            let audit = done.audit.as_ref().map(|path| path.to_string_lossy());
            head.insert("audit".into(), json!(audit));
            head.insert("settled".into(), done.settled.iter().map(settled_value).collect());
            let left =
                done.left.iter().map(|(name, why)| json!({ "directory": name, "says": why }));
            head.insert("left".into(), left.collect());
            let mut text = Vec::new();
            document::write(&mut text, &document::reap(head, &rows, args.dry_run))?;
            let written = usize::from(matches!(begun, Begun::Document));
            return out.write_all(text.get(written..).unwrap_or_default());
        }
        match begun {
            Begun::Table(frame) => frame.rows(out, &rows),
            _ => table::write(out, &rows, columns_of(&FORESEEN), look(ui)),
        }
    });
    if written.is_err() && !args.dry_run {
        for row in &rows {
            if let Some(report) = &row.report {
                let (id, outcome) = (row.object.shown_id(), report.outcome.as_str());
                ui.line(format_args!("{id}: {outcome}: {}", report.says));
            }
        }
    }
    summary(args, ui, &rows, &alone, done);
    // Why something could not be recorded was said once, when it stopped the work.
    for row in rows.iter().filter(|row| !done.unrecorded.contains(&row.index)) {
        say_failed(row, ui);
    }
    match written {
        // It is on stderr.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(not_written),
    }
}

/// What names the plan that was made, or carried out.
fn plan_id(args: &ReapArgs, found: &Look, plan: Option<&Plan>) -> Option<String> {
    if let Some(plan) = plan {
        return plan.id.clone();
    }
    let random =
        found.world.host.read_proc("sys/kernel/random/uuid").ok().filter(|_| args.dry_run)?;
    Some(String::from_utf8_lossy(&random).trim().to_owned())
}

/// What was selected and not planned, by its verdict: `2 held, 1 unclaimed`.
fn alone(rows: &[Row<'_>]) -> String {
    let alone = || rows.iter().filter(|row| row.report.is_none());
    let count = |verdict| alone().filter(|row| row.verdict() == verdict).count();
    counts(Verdict::ALL.map(|verdict| (count(verdict), verdict.as_str())))
}

/// `2 held, 1 changed`, without what there is none of.
fn counts<const N: usize>(all: [(usize, &str); N]) -> String {
    let some = all.into_iter().filter(|(count, _)| *count > 0);
    some.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

fn summary(args: &ReapArgs, ui: &Ui, rows: &[Row<'_>], alone: &str, done: &Done) {
    let count = |wanted: &dyn Fn(Outcome) -> bool| {
        document::count(
            rows.iter()
                .filter(|row| row.report.as_ref().is_some_and(|report| wanted(report.outcome))),
        )
    };
    let left = Outcome::ALL.map(|outcome| {
        let (left, _) = count(&|one| one == outcome && outcome.is_left());
        (left, outcome.as_str())
    });
    let mut text = if args.dry_run {
        let (would, bytes) = count(&|outcome| outcome == Outcome::WouldReap);
        let objects = plural(would, "object", "objects");
        format!("would remove {objects} ({}); nothing was removed", show_size(bytes))
    } else {
        let (removed, bytes) = count(&Outcome::is_removed);
        format!("removed {} ({})", plural(removed, "object", "objects"), show_size(bytes))
    };
    let total: usize = left.iter().map(|(count, _)| count).sum();
    if total > 0 {
        text.push_str(&format!("; left {total}: {}", counts(left)));
    }
    let finished: usize = done.settled.iter().map(|settled| settled.finished.len()).sum();
    if finished > 0 && !args.dry_run {
        let objects = plural(finished, "object", "objects");
        text.push_str(&format!("; finished {objects} of interrupted reaps"));
    }
    if !alone.is_empty() {
        text.push_str(&format!("; left alone: {alone}"));
    }
    let finished = done.settled.iter().any(|settled| !settled.finished.is_empty());
    if let (Some(path), true) = (&done.audit, count(&Outcome::is_removed).0 > 0 || finished) {
        text.push_str(&format!("; recorded in {}", escape(path.as_os_str().as_bytes())));
    }
    ui.note(text);
}

/// Says what was done with what an interrupted reap left behind.
pub(super) fn say_settled(settled: &Settled, ui: &Ui) {
    let directory = &settled.directory;
    if directory.as_bytes() == reap::sysv::SEGMENTS.as_bytes() {
        for id in &settled.put_back {
            let kind = Kind::SysvShm;
            ui.line(format_args!(
                "{kind}:{id}: has its permissions again, which an interrupted reap took away"
            ));
        }
        for (id, why) in &settled.left {
            ui.line(format_args!("warning: {}:{id}: stays closed: {why}", Kind::SysvShm));
        }
        return;
    }
    // Said even to who wants quiet: something was removed.
    for name in &settled.finished {
        ui.line(format_args!("{directory}: {name}: removed, as an interrupted reap had begun"));
    }
    for name in &settled.put_back {
        ui.note(format_args!("{directory}: {name}: put back under its name"));
    }
    for (name, why) in &settled.left {
        ui.line(format_args!("warning: {directory}: {name}: left there: {why}"));
    }
    if let Some(trouble) = &settled.trouble {
        ui.line(format_args!("error: {directory}: {trouble}"));
    }
}

fn say_failed(row: &Row<'_>, ui: &Ui) {
    let Some(report) = row.report.as_ref().filter(|report| report.outcome == Outcome::Failed)
    else {
        return;
    };
    ui.line(format_args!("error: {}: {}", row.object.shown_id(), report.says));
    match report.errno {
        Some(libc::ENOSPC | libc::EDQUOT) if report.of_archive => {
            ui.line("hint: the archive is full; the object stays until it can be saved, or without --archive");
        }
        _ if report.of_archive => {}
        Some(libc::EPERM) if row.object.sysv.is_some() => {
            ui.line("hint: only its owner, who made it, and root may remove it");
        }
        Some(libc::EROFS) => ui.line("hint: /dev/shm is mounted read-only"),
        Some(libc::ENOSPC) => {
            ui.line("hint: the mount has no inode left; what is orphaned can go even so, other objects after it");
        }
        Some(libc::EPERM | libc::EACCES) => ui.line("hint: only its owner and root may remove it"),
        _ => {}
    }
}

fn settled_value(settled: &Settled) -> serde_json::Value {
    let names = |names: &[Name]| names.iter().map(Name::to_lossy).collect::<Vec<_>>();
    let left = settled.left.iter();
    json!({
        "directory": settled.directory,
        "finished": names(&settled.finished),
        "put_back": names(&settled.put_back),
        "trouble": settled.trouble,
        "left": left.map(|(name, why)| json!({ "name": name, "says": why })).collect::<Vec<_>>(),
    })
}
