//! The JSON documents.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};
use serde_json::{Map, Value, json};

use super::columns::{self, COLUMNS, Column, OUTCOME, Shown};
use super::{Group, Lines, Row};
use crate::commands::surveying::Filled;
use crate::commands::values::show_time;
use crate::tracker::evidence::holders::{Holder, How};
use crate::tracker::evidence::sight::{Blind, Sight};
use crate::tracker::host::Host;
use crate::tracker::reap::Outcome;
use crate::tracker::resource::harmless;
use crate::tracker::survey::{Sought, Survey};
use crate::tracker::world::World;

/// One object, with the given columns.
#[must_use]
pub fn object(row: &Row<'_>, columns: &[&'static Column]) -> Value {
    serde_json::to_value(Cells(row, columns)).unwrap_or_default()
}

/// One object, to be written with these columns.
#[derive(Debug)]
pub struct Cells<'a>(pub &'a Row<'a>, pub &'a [&'static Column]);

impl Serialize for Cells<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(row, columns) = self;
        let mut map = serializer.serialize_map(None)?;
        for column in *columns {
            match column.value {
                Shown::Holders if row.sought() => {
                    map.serialize_entry(column.key, &Holders(row.holders))?;
                }
                Shown::Holders => map.serialize_entry(column.key, &())?,
                Shown::Evidence => map.serialize_entry(column.key, &row.judgement().evidence)?,
                Shown::Value(of) => {
                    let value = of(row);
                    if !(column.optional && value.is_null()) {
                        map.serialize_entry(column.key, &value)?;
                    }
                }
            }
        }
        map.end()
    }
}

/// Who holds an object.
struct Holders<'a>(&'a [Holder]);

#[derive(Serialize)]
struct OneHolder<'a> {
    pid: i32,
    comm: Cow<'a, str>,
    uid: u32,
    how: &'a BTreeSet<How>,
}

impl Serialize for Holders<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|holder| OneHolder {
            pid: holder.pid,
            comm: String::from_utf8_lossy(&holder.comm),
            uid: holder.uid,
            how: &holder.how,
        }))
    }
}

/// All the columns of `list`, and with `outcome` those of `reap`.
#[must_use]
pub fn all_columns(outcome: bool) -> Vec<&'static Column> {
    COLUMNS.iter().chain(OUTCOME.iter().filter(|_| outcome)).collect()
}

/// These columns and, where holders are among them, whether those are all.
#[must_use]
pub fn with_whether_complete(columns: &[&'static Column]) -> Vec<&'static Column> {
    let has = |key| columns.iter().any(|column| column.key == key);
    let tells = if has("holders") && !has(COMPLETE) { columns::by_key(COMPLETE) } else { None };
    columns.iter().copied().chain(tells).collect()
}

/// The key of whether the holders are all, which is there only where they are not.
const COMPLETE: &str = "holders_complete";

/// What was seen of the processes.
#[must_use]
pub fn sight(sight: &Sight, lease_works: bool) -> Value {
    let word = |blind: &[Blind]| if blind.is_empty() { "complete" } else { "partial" };
    json!({
        "processes": word(&sight.processes),
        "holders": word(&sight.holders),
        "reasons": sight.reasons(),
        "seen": sight.seen,
        "unreadable": sight.unreadable,
        "assumed_complete": sight.assumed_complete,
        "lease": if lease_works { "working" } else { "not-working" },
    })
}

/// How full a mount is; `visible` bytes belong to objects that have a name.
#[must_use]
pub fn mount(world: &World, filled: &Filled) -> Value {
    let Filled { place, dev, usage, visible, deleted } = *filled;
    json!({
        "path": world.host_of(place).shm_path.to_string_lossy(),
        "namespace": world.namespace(place).map(columns::namespace_value),
        "dev": format!("{}:{}", libc::major(dev), libc::minor(dev)),
        "size": usage.size,
        "used": usage.used,
        "visible": visible,
        "hidden": usage.used.saturating_sub(visible),
        "deleted": deleted,
        "inodes": usage.inodes,
        "inodes_free": usage.inodes_free,
    })
}

/// What of the other namespaces was looked at.
#[must_use]
pub fn namespaces(world: &World) -> Value {
    let unseen = &world.unseen;
    json!({
        "places": world.places.iter().filter(|place| place.wanted).count(),
        "left_out": unseen.left_out,
        "unseen_processes": unseen.processes,
        "ended": unseen.ended,
    })
}

/// What stands at the head of every document.
#[must_use]
pub fn head(schema: &str, host: &Host, survey: &Survey, mounts: Vec<Value>) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("schema".into(), json!(schema));
    map.insert("host".into(), json!(host.name()));
    map.insert("boot_id".into(), json!(Some(host.boot_id()).filter(|id| !id.is_empty())));
    map.insert("taken_at".into(), json!(show_time(survey.taken_at)));
    let mut sight = sight(&survey.snapshot.sight, !survey.lease_works.contains(&false));
    if survey.judging().sought == Sought::None {
        sight["holders"] = json!("not-sought");
    }
    map.insert("sight".into(), sight);
    map.insert("mounts".into(), json!(mounts));
    map
}

/// Writes the document of `list --json`, and a newline: as [`write`] would, but bit by bit.
///
/// # Errors
/// Whatever writing failed with.
pub fn write_inventory(
    out: &mut dyn Write,
    head: &Map<String, Value>,
    rows: &Lines<'_>,
    columns: &[&'static Column],
) -> io::Result<()> {
    // Strings hold no newlines.
    let inner = |text: &str, by: &str| text.replace('\n', &format!("\n{by}"));
    writeln!(out, "{{")?;
    for (key, value) in head {
        writeln!(out, "  {}: {},", json!(key), inner(&pretty(value), "  "))?;
    }
    write!(out, "  \"objects\": [")?;
    let mut begun = false;
    rows.render(
        |rows| {
            let object = |row| format!(",\n    {}", inner(&pretty(&Cells(row, columns)), "    "));
            rows.iter().map(object).collect::<String>()
        },
        |objects| {
            // Before the first there is no comma.
            let comma = usize::from(!std::mem::replace(&mut begun, true));
            out.write_all(objects.as_bytes().get(comma..).unwrap_or_default())
        },
    )?;
    let end = if rows.is_empty() { "]" } else { "\n  ]" };
    writeln!(out, "{end},\n  \"totals\": {}\n}}", inner(&pretty(&sums(&rows.totals())), "  "))
}

/// A value as text of several lines.
fn pretty(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    harmless(&text).into_owned()
}

/// A value as text, with a newline.
#[must_use]
pub fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    if let Cow::Owned(harmless) = harmless(&text) {
        text = harmless;
    }
    text.push('\n');
    text
}

/// Writes each object on a line of its own.
///
/// # Errors
/// Whatever writing failed with.
pub fn write_objects(
    out: &mut dyn Write,
    rows: &Lines<'_>,
    columns: &[&'static Column],
) -> io::Result<()> {
    rows.render(
        |rows| rows.iter().map(|row| line(&Cells(row, columns))).collect::<String>(),
        |lines| out.write_all(lines.as_bytes()),
    )
}

/// One group of `list --group-by`.
#[must_use]
pub fn group(key: &str, group: &Group) -> Value {
    let mut map = Map::new();
    map.insert(key.to_owned(), json!(group.name));
    map.extend(sums(group));
    Value::Object(map)
}

/// How many objects a group has, how much memory they use, and the same of each verdict.
fn sums(group: &Group) -> Map<String, Value> {
    let sum = |(objects, bytes)| json!({ "objects": objects, "bytes": bytes });
    let by_verdict: Map<String, Value> = group
        .by_verdict
        .iter()
        .map(|(verdict, one)| (verdict.as_str().to_owned(), sum(*one)))
        .collect();
    let mut map = Map::new();
    map.insert("objects".into(), json!(group.objects));
    map.insert("bytes".into(), json!(group.bytes));
    map.insert("by_verdict".into(), json!(by_verdict));
    map
}

/// The document of `list --group-by KEY --json`.
#[must_use]
pub fn groups(mut head: Map<String, Value>, key: &str, groups: &[Group]) -> Value {
    head.insert("group_by".into(), json!(key));
    head.insert("groups".into(), groups.iter().map(|one| group(key, one)).collect());
    Value::Object(head)
}

/// The document of `reap --json`.
#[must_use]
pub fn reap(mut head: Map<String, Value>, rows: &[Row<'_>], dry_run: bool) -> Value {
    let mut by_outcome: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for row in rows {
        let outcome = row.report.as_ref().map_or(Outcome::Refused, |report| report.outcome);
        let sum = by_outcome.entry(outcome.as_str()).or_default();
        sum.0 += 1;
        sum.1 += row.object.allocated();
    }
    let by_outcome: BTreeMap<&str, Value> = by_outcome
        .into_iter()
        .map(|(outcome, (objects, bytes))| (outcome, json!({ "objects": objects, "bytes": bytes })))
        .collect();
    let total = count(rows.iter());
    head.insert("dry_run".into(), json!(dry_run));
    let columns = all_columns(true);
    head.insert("objects".into(), rows.iter().map(|row| object(row, &columns)).collect());
    head.insert(
        "totals".into(),
        json!({ "objects": total.0, "bytes": total.1, "by_outcome": by_outcome }),
    );
    Value::Object(head)
}

/// Objects and the memory they use.
pub fn count<'a, 'b: 'a>(rows: impl Iterator<Item = &'a Row<'b>>) -> (usize, u64) {
    rows.fold((0, 0), |(objects, bytes), row| (objects + 1, bytes + row.object.allocated()))
}

/// Writes a document and a newline.
///
/// # Errors
/// Whatever writing failed with.
pub fn write(out: &mut dyn Write, document: &Value) -> io::Result<()> {
    writeln!(out, "{}", harmless(&serde_json::to_string_pretty(document)?))
}

/// Writes a value on a line.
///
/// # Errors
/// Whatever writing failed with.
pub fn write_line(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    out.write_all(line(value).as_bytes())
}
