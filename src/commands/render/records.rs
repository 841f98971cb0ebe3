//! The record of removals, as a table and as JSON. Both are written piece by piece: a record can
//! be of any length.

use std::io::{self, Write};

use serde_json::{Map, Value, json};
use unicode_width::UnicodeWidthStr;

use super::grid::{GAP, Look, NARROWEST, cut};
use crate::commands::values::{show_size, show_time};
use crate::tracker::audit::read::Entry;
use crate::tracker::resource::escape;

/// What became of an object of which only the intent is recorded.
pub const INTERRUPTED: &str = "interrupted";

/// What that means.
const NO_OUTCOME: &str = "begun, and no outcome is recorded: it was killed, or is still at it";

/// Rows whose widths are found out at once.
const CHUNK: usize = 500;

const HEADINGS: [&str; 7] = ["TIME", "OUTCOME", "NAME", "SIZE", "USER", "BY", "WHY"];

/// The place of SIZE, whose numbers stand to the right.
const SIZE: usize = 3;

/// A table whose columns get wider as it goes on.
#[derive(Debug)]
pub struct Records {
    look: Look,
    rows: Vec<[String; 7]>,
    widths: [usize; 7],
    begun: bool,
}

impl Records {
    /// An empty one.
    #[must_use]
    pub fn new(look: Look) -> Self {
        let widths = HEADINGS.map(|heading| if look.headings { heading.width() } else { 1 });
        Self { look, rows: Vec::new(), widths, begun: false }
    }

    /// Adds an object.
    ///
    /// # Errors
    /// Whatever writing failed with.
    pub fn add(&mut self, out: &mut dyn Write, entry: &Entry) -> io::Result<()> {
        self.rows.push(cells(entry));
        if self.rows.len() < CHUNK { Ok(()) } else { self.flush(out) }
    }

    /// Writes what was added since the last time.
    ///
    /// # Errors
    /// Whatever writing failed with.
    pub fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        if !self.begun && self.look.headings && !rows.is_empty() {
            self.write(out, &HEADINGS.map(ToOwned::to_owned))?;
        }
        self.begun |= !rows.is_empty();
        rows.iter().try_for_each(|row| self.write(out, row))
    }

    fn write(&self, out: &mut dyn Write, row: &[String; 7]) -> io::Result<()> {
        let (mut line, mut used) = (String::new(), 0);
        for (place, (cell, width)) in row.iter().zip(self.widths).enumerate() {
            if place + 1 == row.len() {
                let room = self.look.width.map(|all| all.saturating_sub(used).max(NARROWEST));
                line.push_str(&room.map_or_else(|| cell.clone(), |room| cut(cell, room)));
                break;
            }
            let fill = " ".repeat(width.saturating_sub(cell.width()));
            let (left, right) = if place == SIZE { (&*fill, "") } else { ("", &*fill) };
            line.push_str(&format!("{left}{cell}{right}{}", " ".repeat(GAP)));
            used += width + GAP;
        }
        writeln!(out, "{}", line.trim_end())
    }
}

fn cells(entry: &Entry) -> [String; 7] {
    let shown = |pointer| escape(entry.text(pointer).unwrap_or_default().as_bytes());
    [
        time(entry),
        escape(entry.outcome().unwrap_or(INTERRUPTED).as_bytes()),
        shown("/object/id"),
        entry.number("/object/size").map_or_else(String::new, show_size),
        shown("/object/user"),
        by(entry),
        escape(why(entry).as_bytes()),
    ]
}

/// To the second, as it is read by people.
fn time(entry: &Entry) -> String {
    let time = show_time(entry.record.time).unwrap_or_default();
    time.split('.').next().map(|time| format!("{time}Z")).unwrap_or_default()
}

/// Who ran it, and who had logged in, if that is somebody else.
fn by(entry: &Entry) -> String {
    let user = escape(entry.text("/who/user").unwrap_or_default().as_bytes());
    let login = entry.number("/who/login_uid").filter(|uid| Some(*uid) != entry.number("/who/uid"));
    match (login, entry.text("/who/login_user")) {
        (Some(_), Some(login)) => format!("{} as {user}", escape(login.as_bytes())),
        _ => user,
    }
}

/// The verdict and its reason; what else there is to say where it did not simply go.
fn why(entry: &Entry) -> String {
    let forced = entry.record.value.get("forced").and_then(Value::as_bool) == Some(true);
    let words = [entry.text("/verdict"), entry.text("/reason"), forced.then_some("forced")];
    let mut why = words.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let says = match entry.outcome() {
        Some("reaped") if !why.is_empty() => None,
        Some(_) => entry.text("/says"),
        None => Some(NO_OUTCOME),
    };
    let later = entry.later.as_ref().and_then(|later| {
        Some(format!("a later run at {}: {}", show_time(later.time)?, later.outcome))
    });
    if let Some(says) = later.as_deref().or(says) {
        let separator = if why.is_empty() { "" } else { ": " };
        why = format!("{why}{separator}{says}");
    }
    why
}

/// One object, as `--json` has it.
#[must_use]
pub fn document(entry: &Entry) -> Value {
    let mut map = Map::new();
    let whole = entry.record.value.iter();
    let kept = whole.filter(|(key, _)| !["schema", "event"].contains(&key.as_str()));
    map.extend(kept.map(|(key, value)| (key.clone(), value.clone())));
    map.insert("begun_at".into(), json!(entry.begun.and_then(show_time)));
    let later = entry.later.as_ref().map(|later| {
        json!({ "run": later.run, "outcome": later.outcome, "time": show_time(later.time) })
    });
    map.insert("later".into(), json!(later));
    if entry.outcome().is_none() {
        map.insert("outcome".into(), json!(INTERRUPTED));
        map.insert("says".into(), json!(NO_OUTCOME));
        map.insert("errno".into(), Value::Null);
        map.insert("freed".into(), Value::Null);
    }
    Value::Object(map)
}
