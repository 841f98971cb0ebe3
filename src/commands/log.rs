//! `rtrack log`: what was reaped, when, by whom and why.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::reap::record::usual_place;
use super::render::records::{self, INTERRUPTED, Records};
use super::render::{document, table};
use super::selecting::explain;
use super::ui::Ui;
use super::values::{self, plural, show_size};
use crate::tracker::audit::read::{Entry, Fault, Later, Lines, Pairs};
use crate::tracker::host::Clock;
use crate::tracker::resource::{escape, harmless};
use crate::tracker::select;

/// So many of the lines that were not understood are named.
const MOST_FAULTS: usize = 10;

/// What can have become of an object: the outcomes of a reap, of its leftovers, and none at all.
const OUTCOMES: [&str; 12] = [
    "reaped",
    "held",
    "changed",
    "opened-meanwhile",
    "opened-at-removal",
    "refused",
    "gone",
    "failed",
    "finished",
    "put-back",
    "left",
    INTERRUPTED,
];

/// The arguments of `rtrack log`.
#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// Names: psm_x, /psm_x, /dev/shm/psm_x, shm:psm_x, folder:/tmp/x, or globs of these; all
    /// objects if none
    #[arg(value_name = "NAME")]
    names: Vec<OsString>,

    /// Read this file, or with - the standard input; by default what reap writes by default
    #[arg(long, alias = "audit", value_name = "FILE")]
    file: Option<PathBuf>,

    /// Only what happened since then: an age such as 2h30m, or a time such as 2026-11-24T10:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = since)]
    since: Option<Since>,

    /// Only objects of which this became; interrupted: begun, and no outcome is recorded
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "OUTCOME",
        value_parser = PossibleValuesParser::new(OUTCOMES)
    )]
    outcome: Vec<String>,

    /// Only objects that belonged to these users (names as they were recorded, or uids)
    #[arg(long, value_delimiter = ',', value_name = "USER")]
    user: Vec<String>,

    /// Only these runs, as --json names them
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    run: Vec<String>,

    /// Print one JSON document
    #[arg(long, group = "format")]
    json: bool,

    /// Print the lines of the record, one for each object
    #[arg(long, group = "format")]
    ndjson: bool,

    /// Print no line of headings
    #[arg(long)]
    no_headings: bool,

    /// Exit with status 3 if lines were not understood
    #[arg(long)]
    strict: bool,
}

impl LogArgs {
    fn is_stdin(&self) -> bool {
        self.file.as_deref() == Some(Path::new("-"))
    }
}

/// From when on.
#[derive(Debug, Clone, Copy)]
enum Since {
    Age(Duration),
    Time(jiff::Timestamp),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(age) = values::duration(text) {
        return Ok(Since::Age(age));
    }
    let time = text.parse().map(Since::Time);
    time.map_err(|_| "expected an age such as 2h30m or a time such as 2026-11-24T10:00:00Z".into())
}

/// Shows what is recorded.
///
/// # Errors
/// The command line is wrong: status 2. The file cannot be read, or stdout not written: status 3.
pub fn run(args: &LogArgs, ui: &Ui) -> Result<Status, CommandError> {
    let filter = Filter::new(args)?;
    let (name, source) = open(args, ui)?;
    let mut reading =
        Reading { filter, faults: Vec::new(), unread: 0, failed: None, totals: Totals::default() };
    let look = table::Look {
        width: ui.stdout_is_terminal().then(table::terminal_width).flatten(),
        colored: false,
        headings: !args.no_headings,
    };
    ui.answer(|out| {
        let lines = Lines::new(source);
        if args.json {
            return write_document(out, (!args.is_stdin()).then_some(&*name), lines, &mut reading);
        }
        if args.ndjson {
            return reading.read(lines, &mut |entry| {
                document::write_line(out, &Value::Object(entry.record.value.clone()))
            });
        }
        let mut table = Records::new(look);
        reading.read(lines, &mut |entry| table.add(out, entry))?;
        table.flush(out)
    })?;
    let Reading { unread, failed, totals, .. } = &mut reading;
    if let Some(error) = failed.take() {
        return Err(anyhow::Error::new(error).context(format!("read {name}")).into());
    }
    let unread = *unread;
    if ui.stdout_is_terminal() && !args.json && !args.ndjson {
        let objects = plural(totals.objects(), "object", "objects");
        ui.note(format_args!("{name}: {objects}, {} freed", show_size(totals.freed)));
    }
    reading.say(&name, ui);
    Ok(if unread > 0 && args.strict { ErrorKind::Failed.status() } else { 0 })
}

/// The file, its name for messages, and nothing when no record was ever made.
fn open(args: &LogArgs, ui: &Ui) -> Result<(String, Box<dyn BufRead>), CommandError> {
    let shown = |path: &Path| escape(path.as_os_str().as_bytes());
    if args.is_stdin() {
        return Ok(("standard input".into(), Box::new(io::stdin().lock())));
    }
    let (path, usual) = match &args.file {
        Some(path) => (path.clone(), false),
        None => (usual_place("--file FILE names the record")?.path().to_owned(), true),
    };
    let name = shown(&path);
    match File::open(&path) {
        Ok(file) => Ok((name, Box::new(BufReader::with_capacity(1 << 16, file)))),
        Err(error) if usual && error.kind() == io::ErrorKind::NotFound => {
            ui.note(format_args!("nothing has been recorded: there is no {name}"));
            Ok((name, Box::new(io::empty())))
        }
        Err(error) => Err(anyhow::Error::new(error).context(format!("open {name}")).into()),
    }
}

/// What is asked of an object.
struct Filter<'a> {
    args: &'a LogArgs,
    names: select::Names,
    /// Names of kinds that only trackers have.
    paths: Vec<(&'static str, select::Names)>,
    /// In nanoseconds since 1970.
    since: Option<i128>,
}

impl<'a> Filter<'a> {
    fn new(args: &'a LogArgs) -> Result<Self, CommandError> {
        let since = args.since.map(|since| match since {
            Since::Time(time) => time.as_nanosecond(),
            Since::Age(age) => {
                let age = i128::try_from(age.as_nanos()).unwrap_or(i128::MAX);
                (Clock::default().wall)().saturating_sub(age)
            }
        });
        let mut paths = Vec::new();
        for (kind, prefix) in [("file", &b"file:"[..]), ("folder", b"folder:")] {
            let path = args.names.iter().filter_map(|name| name.as_bytes().strip_prefix(prefix));
            let path: Vec<&OsStr> = path.map(OsStr::from_bytes).collect();
            if !path.is_empty() {
                paths.push((kind, select::Names::new(&path).map_err(explain)?));
            }
        }
        Ok(Self { args, names: select::Names::new(&args.names).map_err(explain)?, paths, since })
    }

    fn passes(&self, entry: &Entry) -> bool {
        let any = |wanted: &[String], test: &dyn Fn(&String) -> bool| {
            wanted.is_empty() || wanted.iter().any(test)
        };
        let outcome = entry.outcome().unwrap_or(INTERRUPTED);
        let uid = entry.number("/object/uid").map(|uid| uid.to_string());
        let user = entry.text("/object/user");
        self.since.is_none_or(|since| entry.record.time >= since)
            && any(&self.args.outcome, &|wanted| wanted == outcome)
            && any(&self.args.run, &|wanted| *wanted == entry.record.key.0)
            && any(&self.args.user, &|wanted| {
                Some(wanted) == uid.as_ref() || Some(&**wanted) == user
            })
            && self.means(entry)
    }

    fn means(&self, entry: &Entry) -> bool {
        let (object, word) = (entry.object(), entry.text("/object/kind"));
        let as_path =
            |(kind, names): &(&str, select::Names)| word == Some(kind) && names.mean(&object);
        self.names.mean(&object) || self.paths.iter().any(as_path)
    }
}

/// What was shown.
#[derive(Debug, Default)]
struct Totals {
    freed: u64,
    by_outcome: BTreeMap<String, usize>,
    /// Of those without an outcome, what no later run has dealt with.
    unsettled: usize,
}

impl Totals {
    fn objects(&self) -> usize {
        self.by_outcome.values().sum()
    }

    fn add(&mut self, entry: &Entry) {
        self.freed = self.freed.saturating_add(entry.number("/freed").unwrap_or(0));
        let outcome = entry.outcome().unwrap_or(INTERRUPTED);
        *self.by_outcome.entry(outcome.to_owned()).or_default() += 1;
        let still = |later: &Later| later.outcome == "left";
        if entry.outcome().is_none() && entry.later.as_ref().is_none_or(still) {
            self.unsettled += 1;
        }
    }
}

/// A record that is being read.
struct Reading<'a> {
    filter: Filter<'a>,
    /// The first lines that were not understood.
    faults: Vec<(u64, Fault)>,
    /// How many there were.
    unread: u64,
    /// What reading ended with.
    failed: Option<io::Error>,
    totals: Totals,
}

impl Reading<'_> {
    /// Gives each object that passes to `show`: first those with an outcome, in the order of the
    /// record, then the others.
    fn read(
        &mut self,
        mut lines: Lines<Box<dyn BufRead>>,
        show: &mut dyn FnMut(&Entry) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut pairs = Pairs::default();
        loop {
            match lines.read() {
                Ok(Some((_, Ok(record)))) => {
                    if let Some(entry) = pairs.take(record) {
                        self.show(&entry, show)?;
                    }
                }
                Ok(Some((number, Err(fault)))) => {
                    self.unread += 1;
                    if self.faults.len() < MOST_FAULTS {
                        self.faults.push((number, fault));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        pairs.interrupted().iter().try_for_each(|entry| self.show(entry, show))
    }

    fn show(
        &mut self,
        entry: &Entry,
        show: &mut dyn FnMut(&Entry) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.filter.passes(entry) {
            return Ok(());
        }
        self.totals.add(entry);
        show(entry)
    }

    /// Says what needs somebody's attention.
    fn say(&self, name: &str, ui: &Ui) {
        if self.totals.unsettled > 0 {
            let objects = plural(self.totals.unsettled, "object was", "objects were");
            ui.line(format_args!(
                "warning: {objects} begun, and no outcome is recorded: rtrack was killed, or is still at it"
            ));
            ui.line(
                "hint: rtrack list shows what is left of them, the next rtrack reap settles it",
            );
        }
        if self.unread == 0 {
            return;
        }
        let lines = plural(usize::try_from(self.unread).unwrap_or(usize::MAX), "line", "lines");
        let mut text = format!("warning: {name}: {lines} not understood: ");
        let faults = self.faults.iter().map(|(number, fault)| {
            let fault = escape(fault.to_string().as_bytes());
            format!("line {number}: {fault}")
        });
        text.push_str(&faults.collect::<Vec<_>>().join("; "));
        if self.unread > MOST_FAULTS as u64 {
            text.push_str("; and more");
        }
        ui.line(text);
    }
}

/// The document of `--json`, an object at a time.
fn write_document(
    out: &mut dyn Write,
    file: Option<&str>,
    lines: Lines<Box<dyn BufRead>>,
    reading: &mut Reading<'_>,
) -> io::Result<()> {
    let text = |value: Value| harmless(&value.to_string()).into_owned();
    writeln!(out, "{{\"schema\": \"rtrack.log/1\", \"file\": {},", text(json!(file)))?;
    write!(out, "\"records\": [")?;
    let mut separator = "\n";
    reading.read(lines, &mut |entry| {
        write!(out, "{separator}{}", text(records::document(entry)))?;
        separator = ",\n";
        Ok(())
    })?;
    let Reading { totals, unread, faults, .. } = reading;
    let totals = json!({ "objects": totals.objects(), "freed": totals.freed, "by_outcome": totals.by_outcome });
    let faults: Vec<_> = faults
        .iter()
        .map(|(number, fault)| json!({ "line": number, "says": fault.to_string() }))
        .collect();
    let unread = json!({ "lines": unread, "first": faults });
    writeln!(out, "\n],\n\"totals\": {},\n\"not_understood\": {}}}", text(totals), text(unread))
}
