//! The trackers of the machine, as a table and as JSON.

use std::io::{self, Write};

use comfy_table::Color;
use serde_json::{Map, Value, json};

use super::columns::{Field, column, right};
use super::grid::{self, Look};
use crate::commands::values::{show_age, show_size};
use crate::tracker::resource::{Name, escape};
use crate::tracker::service::client::everywhere::{Client, Found};

/// A tracker, the names of its users, and what time it is.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The tracker.
    pub tracker: &'a Found,
    /// The user names of uids.
    pub names: &'a std::collections::HashMap<u32, String>,
    /// Wall time in nanoseconds since 1970.
    pub now: i128,
}

impl Row<'_> {
    fn user(&self, uid: u32) -> String {
        self.names.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    fn clients(&self) -> &[Client] {
        self.tracker.clients.as_deref().unwrap_or_default()
    }
}

/// A column of the trackers.
pub type Column = Field<fn(&Row<'_>) -> String, fn(&Row<'_>) -> Value>;

/// The columns that the table shows unless `-o` says otherwise.
pub const DEFAULT: [&str; 8] =
    ["pid", "kind", "user", "since", "queued", "memory", "orphaned", "clients"];

/// The column that shrinks to the width of the terminal.
const SHRINKS: &str = "clients";

/// Every column, in the order of the JSON document.
pub static COLUMNS: &[Column] = &[
    right(column(
        "pid",
        "PID",
        "of the tracker",
        |r| r.tracker.pid.to_string(),
        |r| json!(r.tracker.pid),
    )),
    column("kind", "KIND", "whose tracker it is, and on which Python", kind, |r| {
        json!(r.tracker.family.as_str())
    }),
    column(
        "version",
        "VERSION",
        "of the Python that runs it",
        |r| r.tracker.version.clone().unwrap_or_default(),
        |r| json!(r.tracker.version),
    ),
    column(
        "dialect",
        "DIALECT",
        "the --protocol of an rtrack daemon",
        |r| escape(r.tracker.dialect.as_deref().unwrap_or_default().as_bytes()),
        |r| json!(r.tracker.dialect),
    ),
    right(column(
        "uid",
        "UID",
        "of its user",
        |r| r.tracker.uid.to_string(),
        |r| json!(r.tracker.uid),
    )),
    column(
        "user",
        "USER",
        "who runs it",
        |r| r.user(r.tracker.uid),
        |r| json!(r.user(r.tracker.uid)),
    ),
    right(column("since", "SINCE", "for how long it runs; when it started", since, |r| {
        json!(r.tracker.since.map(|since| since.to_string()))
    })),
    column(
        "stopped",
        "STOPPED",
        "whether it is stopped and reads nothing",
        |r| unless_unknown(r.tracker.stopped),
        |r| json!(r.tracker.stopped),
    ),
    right(column(
        "parent",
        "PARENT",
        "the pid of its parent",
        |r| r.tracker.parent.to_string(),
        |r| json!(r.tracker.parent),
    )),
    column(
        "reads",
        "READS",
        "what it reads",
        |r| r.tracker.reads.map_or(UNKNOWN, |reads| reads.as_str()).to_owned(),
        |r| json!(r.tracker.reads.map(|reads| reads.as_str())),
    ),
    column("clients", "CLIENTS", "who holds the write end", clients, |r| {
        let known = r.tracker.clients.as_ref();
        json!(known.map(|all| all.iter().map(|one| client(r, one)).collect::<Vec<_>>()))
    }),
    column(
        "all_clients",
        "ALL CLIENTS",
        "whether these are all of them",
        |r| r.tracker.all_clients.to_string(),
        |r| json!(r.tracker.all_clients),
    ),
    right(column("queued", "QUEUED", "bytes that nobody has read yet", queued, |r| {
        json!(r.tracker.queued)
    })),
    right(column(
        "memory",
        "MEMORY",
        "resident",
        |r| r.tracker.memory.map_or_else(|| UNKNOWN.to_owned(), show_size),
        |r| json!(r.tracker.memory),
    )),
    column(
        "orphaned",
        "ORPHANED",
        "whether who started it is gone and only strays keep it",
        |r| unless_unknown(r.tracker.left_behind),
        |r| json!(r.tracker.left_behind),
    ),
    column(
        "note",
        "NOTE",
        "why something is not known",
        |r| r.tracker.note.unwrap_or_default().to_owned(),
        |r| json!(r.tracker.note),
    ),
];

/// What is said of what is not known.
const UNKNOWN: &str = "?";

fn unless_unknown(answer: Option<bool>) -> String {
    match answer {
        Some(true) => "yes",
        Some(false) => "no",
        None => UNKNOWN,
    }
    .to_owned()
}

fn kind(row: &Row<'_>) -> String {
    let Found { family, version, dialect, stopped, .. } = row.tracker;
    let mut text = family.as_str().to_owned();
    for more in [version, dialect].into_iter().flatten() {
        text.push(' ');
        text.push_str(&escape(more.as_bytes()));
    }
    if *stopped == Some(true) {
        text.push_str(", stopped");
    }
    text
}

fn since(row: &Row<'_>) -> String {
    let since = row.tracker.since.map(|since| show_age(row.now - since.as_nanosecond()));
    since.unwrap_or_else(|| UNKNOWN.to_owned())
}

fn queued(row: &Row<'_>) -> String {
    row.tracker.queued.map_or_else(|| UNKNOWN.to_owned(), |bytes| bytes.to_string())
}

/// The number of clients, each with its name and pid; more than are known have an `at least`.
fn clients(row: &Row<'_>) -> String {
    if row.tracker.clients.is_none() {
        return row.tracker.note.map_or_else(|| UNKNOWN.to_owned(), |note| format!("? ({note})"));
    }
    let all = row.clients();
    let least = if row.tracker.all_clients { "" } else { "≥ " };
    let mut text = format!("{least}{}", all.len());
    if !all.is_empty() {
        let names = all.iter().map(|one| format!("{} {}", escape(&one.comm), one.pid));
        text.push_str(&format!(": {}", names.collect::<Vec<_>>().join(", ")));
    }
    text
}

fn client(row: &Row<'_>, client: &Client) -> Value {
    json!({
        "pid": client.pid,
        "comm": Name::new(client.comm.clone()).to_lossy(),
        "uid": client.uid,
        "user": row.user(client.uid),
    })
}

/// Writes the trackers as a table.
///
/// # Errors
/// Whatever writing failed with.
pub fn write(
    out: &mut dyn Write,
    rows: &[Row<'_>],
    columns: &[&Column],
    look: Look,
) -> io::Result<()> {
    let cells = rows.iter().map(|row| {
        let color = |column: &Column| match (column.key, row.tracker.left_behind) {
            ("orphaned", Some(true)) => Some(Color::Red),
            ("orphaned", None) => Some(Color::Magenta),
            _ => None,
        };
        columns.iter().map(|column| ((column.text)(row), color(column))).collect()
    });
    grid::write(out, cells.collect(), columns, SHRINKS, look)
}

/// One tracker, as `--json` has it.
#[must_use]
pub fn document(row: &Row<'_>) -> Value {
    let fields = COLUMNS.iter().map(|column| (column.key.to_owned(), (column.value)(row)));
    Value::Object(fields.collect::<Map<_, _>>())
}
