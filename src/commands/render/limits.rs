//! The limits, as a table, as JSON and as sentences.

use std::io::{self, Write};

use comfy_table::Color;
use serde_json::{Map, Value, json};

use super::columns::{Field, column, right, show_dev};
use super::grid::{self, Look};
use crate::commands::values::show_size;
use crate::tracker::limits::{Amount, Limit, Scope, Unit};

/// Above how many percent of use a limit is marked, unless the operator says otherwise.
pub const THRESHOLD: u8 = 80;

/// What is said of a number that could not be read.
const UNKNOWN: &str = "unknown";

/// A limit, and above how many percent it is marked.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The limit.
    pub limit: &'a Limit,
    /// The threshold.
    pub threshold: u8,
}

impl Row<'_> {
    fn is_above(&self) -> bool {
        self.limit.is_above(self.threshold)
    }
}

/// A column of the limits.
pub type Column = Field<fn(&Row<'_>) -> String, fn(&Row<'_>) -> Value>;

/// The columns that the table shows unless `-o` says otherwise.
pub const DEFAULT: [&str; 6] = ["name", "used", "limit", "percent", "scope", "what"];

/// The column that shrinks to the width of the terminal.
const SHRINKS: &str = "what";

/// The columns that have a colour where something is to be seen.
const COLORED: [&str; 3] = ["used", "limit", "percent"];

/// Every column, in the order of the JSON document.
pub static COLUMNS: &[Column] = &[
    column(
        "name",
        "NAME",
        "of the sysctl, or of the mount",
        |r| r.limit.name.clone(),
        |r| json!(r.limit.name),
    ),
    right(column("used", "USED", "how much is used", used, |r| json!(r.limit.used.known()))),
    column(
        "at_least",
        "AT LEAST",
        "whether more may be used than can be seen",
        |r| r.limit.at_least.to_string(),
        |r| json!(r.limit.at_least),
    ),
    right(column("limit", "LIMIT", "how much is allowed", allowed, |r| {
        json!(r.limit.limit.known())
    })),
    column(
        "unlimited",
        "UNLIMITED",
        "whether there is no limit",
        |r| r.limit.is_unlimited().to_string(),
        |r| json!(r.limit.is_unlimited()),
    ),
    column(
        "unit",
        "UNIT",
        "what both count",
        |r| r.limit.unit.as_str().to_owned(),
        |r| json!(r.limit.unit.as_str()),
    ),
    column(
        "unit_bytes",
        "BYTES OF UNIT",
        "bytes of one of them, if it is memory",
        |r| r.limit.unit.bytes().map_or_else(String::new, |bytes| bytes.to_string()),
        |r| json!(r.limit.unit.bytes()),
    ),
    right(column("percent", "%", "how much of it that is", percent, |r| {
        json!(r.limit.permille().map(tenths))
    })),
    column(
        "above",
        "ABOVE",
        "whether that is above the threshold",
        |r| r.is_above().to_string(),
        |r| json!(r.is_above()),
    ),
    column("scope", "SCOPE", "whose limit it is", scope, scope_value),
    column("what", "WHAT", "what is limited, and what else there is to know", explained, |r| {
        json!(r.limit.what)
    }),
    column(
        "note",
        "NOTE",
        "what there is to know about the use",
        |r| r.limit.note.clone().unwrap_or_default(),
        |r| json!(r.limit.note),
    ),
    column(
        "unknown",
        "UNKNOWN",
        "why it could not be read",
        |r| r.limit.unknown().unwrap_or_default(),
        |r| json!(r.limit.unknown()),
    ),
];

/// A number for people, of memory with its unit.
fn shown(number: u64, unit: Unit) -> String {
    match unit.bytes() {
        Some(bytes) => show_size(number.saturating_mul(bytes)),
        None => number.to_string(),
    }
}

fn used(row: &Row<'_>) -> String {
    match row.limit.used {
        Amount::Known(used) => {
            let used = shown(used, row.limit.unit);
            if row.limit.at_least { format!("≥ {used}") } else { used }
        }
        Amount::Absent => String::new(),
        Amount::Unknown(_) => UNKNOWN.to_owned(),
    }
}

fn allowed(row: &Row<'_>) -> String {
    match row.limit.limit {
        _ if row.limit.is_unlimited() => "unlimited".to_owned(),
        Amount::Known(limit) => shown(limit, row.limit.unit),
        Amount::Absent => String::new(),
        Amount::Unknown(_) => UNKNOWN.to_owned(),
    }
}

/// In whole percent, rounded down: 100 is all of it. With a mark above the threshold.
fn percent(row: &Row<'_>) -> String {
    let mark = if row.is_above() { "!" } else { "" };
    row.limit
        .permille()
        .map_or_else(|| mark.to_owned(), |permille| format!("{mark}{}", permille / 10))
}

/// Tenths of a percent as percent.
#[allow(clippy::cast_precision_loss, reason = "more than 53 bits of percent are no different")]
fn tenths(permille: u64) -> f64 {
    permille as f64 / 10.0
}

fn scope(row: &Row<'_>) -> String {
    match &row.limit.scope {
        Scope::Namespace(name) => name.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
        Scope::Mount { dev, .. } => {
            dev.map_or_else(|| UNKNOWN.to_owned(), |dev| format!("mount {}", show_dev(dev)))
        }
    }
}

fn scope_value(row: &Row<'_>) -> Value {
    match &row.limit.scope {
        Scope::Namespace(name) => json!({ "kind": "ipc-namespace", "id": name }),
        Scope::Mount { path, dev } => json!({
            "kind": "mount",
            "id": dev.map(show_dev),
            "path": path.to_string_lossy(),
        }),
    }
}

/// What is limited, and what else there is to know.
fn explained(row: &Row<'_>) -> String {
    let mut text = row.limit.what.to_owned();
    for more in [row.limit.note.clone(), row.limit.unknown()].into_iter().flatten() {
        text.push_str(&format!("; {more}"));
    }
    text
}

/// Writes the limits as a table.
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
        let cells = columns.iter().map(|column| {
            let cell = (column.text)(row);
            let color = color(row, column, &cell);
            (cell, color)
        });
        cells.collect()
    });
    grid::write(out, cells.collect(), columns, SHRINKS, look)
}

fn color(row: &Row<'_>, column: &Column, cell: &str) -> Option<Color> {
    if !COLORED.contains(&column.key) {
        None
    } else if cell == UNKNOWN {
        Some(Color::Magenta)
    } else {
        (column.key == "percent" && row.is_above()).then_some(Color::Red)
    }
}

/// One limit, as `--json` has it.
#[must_use]
pub fn document(row: &Row<'_>) -> Value {
    let fields = COLUMNS.iter().map(|column| (column.key.to_owned(), (column.value)(row)));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// The limits of which more than `percent` is used, each as a sentence.
#[must_use]
pub fn above(limits: &[Limit], percent: u8) -> Vec<String> {
    let above = limits.iter().filter(|limit| limit.is_above(percent));
    above
        .map(|limit| {
            let row = Row { limit, threshold: percent };
            let share = limit
                .permille()
                .map_or_else(String::new, |permille| format!(" ({} %)", permille / 10));
            format!("{}: {} of {}{share}", limit.name, used(&row), allowed(&row))
        })
        .collect()
}
