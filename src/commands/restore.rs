//! `rtrack restore`: puts back what `rtrack reap --archive` saved.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::render::document;
use super::ui::{Ui, not_written};
use super::values::{plural, show_size};
use crate::tracker::archive::{
    self, ArchiveError, Archived, Broken, Contents, Outcome, Restored, Restorer,
};
use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::resource::{Name, escape};
use crate::tracker::select::{self, SelectError};

/// The arguments of `rtrack restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// The directory that was given to rtrack reap --archive
    #[arg(value_name = "DIR")]
    archive: PathBuf,

    /// What to restore: psm_x, /psm_x, shm:psm_x, a pattern such as 'psm_*', or the name of an entry;
    /// everything if not given
    #[arg(value_name = "NAME")]
    names: Vec<OsString>,

    /// Check the archive and print what would be restored, and restore nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What became of one entry.
struct Report<'a> {
    entry: &'a str,
    archived: Option<(&'a Archived, Object)>,
    restored: Restored,
}

impl Report<'_> {
    /// The id, safe on a terminal, or the entry's name where the id is not known.
    fn shown(&self) -> String {
        match &self.archived {
            Some((_, object)) => object.shown_id(),
            None => self.entry.to_owned(),
        }
    }

    fn size(&self) -> u64 {
        self.archived.as_ref().map_or(0, |(archived, _)| archived.size())
    }
}

/// Restores, or with `--dry-run` says what would be restored.
///
/// # Errors
/// The archive or /dev/shm cannot be read or trusted: status 3. A name that fits several objects, or a
/// pattern that is none: status 2. stdout could not be written: status 3.
pub fn run(args: &RestoreArgs, ui: &Ui) -> Result<Status, CommandError> {
    let host = Host::real()?;
    let contents = archive::read(&host, &args.archive).map_err(|error| {
        let hint = match &error {
            ArchiveError::Foreign { .. } | ArchiveError::Open { .. } => Some(
                "it has to be yours or root's, and writable by nobody else: others could have put there \
                 what they like",
            ),
            _ => None,
        };
        let error = CommandError::from(error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    })?;
    let (chosen, missing) = choose(&contents, &args.names)?;
    let restorer = Restorer { host: &host, contents: &contents };
    let reports: Vec<Report<'_>> = chosen
        .into_iter()
        .map(|chosen| {
            let restored = match chosen.newest {
                None => restorer.restore(chosen.archived, args.dry_run),
                Some(newest) => older(newest),
            };
            let entry = chosen.archived.entry.as_str();
            Report { entry, archived: Some((chosen.archived, chosen.object)), restored }
        })
        .chain(contents.broken.iter().map(broken))
        .collect();
    let written = ui.write(|out| {
        if args.json {
            document::write(out, &answer(args, &host, &reports))
        } else {
            out.write_all(table(&reports).as_bytes())
        }
    });
    if written.is_err() && !args.dry_run {
        for report in &reports {
            let Restored { outcome, says, .. } = &report.restored;
            let says = escape(says.as_bytes());
            ui.line(format_args!("{}: {}: {says}", report.shown(), outcome.as_str()));
        }
    }
    say(&reports, args.dry_run, ui);
    ui.errors(&missing);
    match written {
        // It is on stderr.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other.map_err(not_written)?,
    }
    Ok(status(&reports, !missing.is_empty()))
}

/// An entry that was selected.
struct Chosen<'a> {
    archived: &'a Archived,
    object: Object,
    /// The newer entry of the same name, which is restored in its place.
    newest: Option<&'a Archived>,
}

fn older(newest: &Archived) -> Restored {
    let says = format!("a newer one was taken, {}, of {}", newest.entry, newest.saved_at);
    Restored::new(Outcome::Older, says)
}

fn broken(broken: &Broken) -> Report<'_> {
    let says = escape(broken.why.as_bytes());
    let restored = Restored::new(Outcome::Refused, says);
    Report { entry: &broken.entry, archived: None, restored }
}

/// What `names` mean: of each name the newest entry, and the older ones, which are only told of; and
/// the names that nothing in the archive has.
fn choose<'a>(
    contents: &'a Contents,
    names: &[OsString],
) -> Result<(Vec<Chosen<'a>>, Vec<CommandError>), CommandError> {
    let entries: HashSet<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    let by_entry = |archived: &Archived| entries.contains(archived.entry.as_bytes());
    let known: HashSet<&[u8]> =
        contents.archived.iter().map(|archived| archived.entry.as_bytes()).collect();
    // The newest come first.
    let mut newest: HashMap<&Name, &Archived> = HashMap::new();
    for archived in &contents.archived {
        newest.entry(&archived.file).or_insert(archived);
    }
    let heads: Vec<&Archived> = contents
        .archived
        .iter()
        .filter(|archived| newest.get(&archived.file).is_some_and(|n| n.entry == archived.entry))
        .collect();
    let objects: Vec<Object> = heads.iter().map(|archived| archived.object()).collect();
    let plain: Vec<&OsString> =
        names.iter().filter(|name| !known.contains(name.as_bytes())).collect();
    let found = if plain.is_empty() && !names.is_empty() {
        select::Found::default()
    } else {
        select::by_names(&objects, &plain).map_err(super::selecting::explain)?
    };
    let selected: BTreeSet<&Name> =
        found.indices.iter().filter_map(|index| Some(&heads.get(*index)?.file)).collect();
    let chosen = contents.archived.iter().filter_map(|archived| {
        let first = newest.get(&archived.file).filter(|first| first.entry != archived.entry);
        let own = by_entry(archived);
        (own || selected.contains(&archived.file)).then(|| Chosen {
            archived,
            object: archived.object(),
            newest: first.copied().filter(|_| !own),
        })
    });
    let missing = found.missing.into_iter().map(explain).collect();
    Ok((chosen.collect(), missing))
}

/// A name that nothing in the archive has.
fn explain(error: SelectError) -> CommandError {
    let hint = match &error {
        SelectError::Missing { nearest, .. } if !nearest.is_empty() => {
            format!("did you mean {}?", nearest.join(" or "))
        }
        _ => "rtrack restore --dry-run DIR shows what is in the archive".to_owned(),
    };
    CommandError::new(ErrorKind::No, anyhow::Error::new(error).context("in the archive")).hint(hint)
}

/// The exit status. What could not be done beats a no.
fn status(reports: &[Report<'_>], missing: bool) -> Status {
    let any = |wanted: &[Outcome]| reports.iter().any(|r| wanted.contains(&r.restored.outcome));
    if any(&[Outcome::Refused, Outcome::Failed]) {
        ErrorKind::Failed.status()
    } else if missing || any(&[Outcome::Exists]) {
        ErrorKind::No.status()
    } else {
        0
    }
}

/// A line for each entry.
fn table(reports: &[Report<'_>]) -> String {
    let mut rows = vec![["NAME", "SIZE", "SAVED", "OUTCOME", "WHY"].map(str::to_owned)];
    rows.extend(reports.iter().map(|report| {
        let saved = report
            .archived
            .as_ref()
            .map_or_else(String::new, |(archived, _)| format!("{:.0}", archived.saved_at));
        let Restored { outcome, says, .. } = &report.restored;
        let size = report.archived.as_ref().map_or_else(String::new, |_| show_size(report.size()));
        [report.shown(), size, saved, outcome.as_str().to_owned(), escape(says.as_bytes())]
    }));
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let [name, size, saved, outcome] = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
    let line = |[a, b, c, d, e]: [String; 5]| {
        format!("{a:<name$}  {b:>size$}  {c:<saved$}  {d:<outcome$}  {e}\n")
    };
    rows.into_iter().map(line).collect()
}

/// What went wrong, what does not come back, and a summary.
fn say(reports: &[Report<'_>], dry_run: bool, ui: &Ui) {
    for report in reports {
        let Restored { outcome, says, errno, lost } = &report.restored;
        let shown = report.shown();
        match outcome {
            Outcome::Refused | Outcome::Failed => {
                ui.line(format_args!("error: {shown}: {}", escape(says.as_bytes())));
            }
            Outcome::Older => ui.note(format_args!(
                "note: {shown} is archived several times: {says}; {} names this one",
                report.entry
            )),
            _ => {}
        }
        match errno {
            Some(libc::ENOSPC) => ui.line("hint: /dev/shm is full: rtrack list says of what"),
            Some(libc::EROFS) => ui.line("hint: /dev/shm is mounted read-only"),
            _ => {}
        }
        for lost in lost {
            ui.line(format_args!("note: {shown}: {}", escape(lost.says.as_bytes())));
        }
    }
    let wanted = if dry_run { Outcome::WouldRestore } else { Outcome::Restored };
    let back = || reports.iter().filter(|report| report.restored.outcome == wanted);
    let (count, bytes) = (back().count(), back().map(Report::size).sum());
    if count > 0 && !dry_run {
        ui.note("note: times of birth and last change are those of the restoration");
    }
    let objects = plural(count, "object", "objects");
    let bytes = show_size(bytes);
    if dry_run {
        ui.note(format_args!("would restore {objects} ({bytes}); nothing was restored"));
        return;
    }
    let left = reports.iter().filter(|r| r.restored.outcome != Outcome::Older).count() - count;
    let more = if left > 0 { format!(", left {left}") } else { String::new() };
    ui.note(format_args!("restored {objects} ({bytes}){more}"));
}

/// The document of `--json`.
fn answer(args: &RestoreArgs, host: &Host, reports: &[Report<'_>]) -> Value {
    let mut by_outcome: Map<String, Value> = Map::new();
    for outcome in reports.iter().map(|report| report.restored.outcome) {
        let of: Vec<_> = reports.iter().filter(|r| r.restored.outcome == outcome).collect();
        let bytes: u64 = of.iter().map(|report| report.size()).sum();
        by_outcome.insert(outcome.as_str().into(), json!({ "objects": of.len(), "bytes": bytes }));
    }
    json!({
        "schema": "rtrack.restore/1",
        "host": host.name(),
        "archive": args.archive.to_string_lossy(),
        "dry_run": args.dry_run,
        "objects": reports.iter().map(object).collect::<Vec<_>>(),
        "totals": {
            "objects": reports.len(),
            "bytes": reports.iter().map(Report::size).sum::<u64>(),
            "by_outcome": by_outcome,
        },
    })
}

fn object(report: &Report<'_>) -> Value {
    let mut map = Map::new();
    if let Some((archived, object)) = &report.archived {
        map.insert("id".into(), json!(object.id()));
        map.insert("kind".into(), json!(object.kind));
        map.insert("name".into(), json!(object.name));
        if !object.name.is_utf8() {
            use base64::Engine;
            let exact = base64::engine::general_purpose::STANDARD.encode(object.name.as_bytes());
            map.insert("name_base64".into(), json!(exact));
        }
        map.insert("size".into(), json!(report.size()));
        map.insert("saved_at".into(), json!(archived.document.saved_at));
    }
    let Restored { outcome, says, errno, lost } = &report.restored;
    map.insert("entry".into(), json!(report.entry));
    map.insert("outcome".into(), json!(outcome.as_str()));
    map.insert("says".into(), json!(says));
    if let Some(errno) = errno {
        map.insert("errno".into(), json!(errno));
    }
    let lost = lost.iter().map(|lost| json!({ "code": lost.code, "says": lost.says }));
    map.insert("not_restored".into(), lost.collect());
    Value::Object(map)
}
