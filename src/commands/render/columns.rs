//! The columns: key, heading, help, and how a cell looks to people and to programs.

use serde_json::{Value, json};

use super::{Row, sysv};
use crate::commands::error::CommandError;
use crate::commands::values::{show_age, show_exact_time, show_size};
use crate::tracker::inventory::mqueue::Queue;
use crate::tracker::resource::{Kind, escape};
use crate::tracker::verdict::CreatorState;
use crate::tracker::world::Namespace;

/// One column of a table: `T` shows a cell to people, `V` to programs.
#[derive(Debug, Clone, Copy)]
pub struct Field<T, V> {
    /// As `-o` and JSON name it.
    pub key: &'static str,
    /// As the table heads it.
    pub heading: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Numbers stand to the right.
    pub right: bool,
    /// Whether objects without a value have the key in JSON at all.
    pub optional: bool,
    /// For people.
    pub text: T,
    /// For programs.
    pub value: V,
}

/// A column of the objects.
pub type Column = Field<fn(&Row<'_>) -> String, Shown>;

/// How a cell looks to programs. Lists, which hold most of a document, are written as they are, and not made into
/// values first.
#[derive(Debug, Clone, Copy)]
pub enum Shown {
    /// As this.
    Value(fn(&Row<'_>) -> Value),
    /// As who holds the object; null if nobody looked.
    Holders,
    /// As why it has its verdict.
    Evidence,
}

/// The columns that the table shows unless `-o` says otherwise.
pub const DEFAULT: [&str; 7] = ["id", "size", "user", "age_s", "verdict", "holders", "reason"];

/// The same where objects of several namespaces are looked at.
pub const DEFAULT_OF_ALL: [&str; 8] =
    ["id", "namespace", "size", "user", "age_s", "verdict", "holders", "reason"];

/// The column that shrinks to the width of the terminal.
pub const SHRINKS: &str = "reason";

/// A column of whatever table.
pub const fn column<T: Copy, V: Copy>(
    key: &'static str,
    heading: &'static str,
    help: &'static str,
    text: T,
    value: V,
) -> Field<T, V> {
    Field { key, heading, help, right: false, optional: false, text, value }
}

/// The same column, its cells at the right.
pub const fn right<T: Copy, V: Copy>(column: Field<T, V>) -> Field<T, V> {
    Field { right: true, ..column }
}

/// One of the objects, with a value for programs.
const fn plain(
    key: &'static str,
    heading: &'static str,
    help: &'static str,
    text: fn(&Row<'_>) -> String,
    value: fn(&Row<'_>) -> Value,
) -> Column {
    column(key, heading, help, text, Shown::Value(value))
}

const fn optional(column: Column) -> Column {
    Column { optional: true, ..column }
}

/// Every column, in the order of the JSON document.
pub static COLUMNS: &[Column] = &[
    plain("id", "NAME", "kind and name", |r| r.object.shown_id(), |r| json!(r.object.id())),
    plain(
        "kind",
        "KIND",
        "shm, sem, dir, mqueue, sysv-shm, sysv-sem, sysv-msg or other",
        |r| r.object.kind.to_string(),
        |r| json!(r.object.kind),
    ),
    plain(
        "name",
        "BARE NAME",
        "the name as its users know it",
        |r| r.object.name.to_string(),
        |r| json!(r.object.name),
    ),
    optional(plain(
        "name_base64",
        "NAME (BASE64)",
        "the exact name, where it is not UTF-8",
        |r| base64_name(r).unwrap_or_default(),
        |r| json!(base64_name(r)),
    )),
    plain(
        "file",
        "FILE",
        "the name in /dev/shm or of the queue, or the id",
        |r| r.object.file.to_string(),
        |r| json!(r.object.file),
    ),
    optional(plain(
        "file_type",
        "FILE TYPE",
        "of kind other: symlink, fifo, socket, device or mount",
        |r| r.object.file_type.unwrap_or_default().to_owned(),
        |r| json!(r.object.file_type),
    )),
    plain(
        "dev",
        "DEV",
        "device number of the mount; 0:0 for System V objects",
        |r| show_dev(r.object.stat.dev),
        |r| json!(show_dev(r.object.stat.dev)),
    ),
    right(plain(
        "ino",
        "INODE",
        "inode number, or the id of a System V object",
        |r| r.object.stat.ino.to_string(),
        |r| json!(r.object.stat.ino),
    )),
    plain("mode", "MODE", "permissions, octal", mode, |r| owned(r, json!(mode(r)))),
    right(plain(
        "uid",
        "UID",
        "owner, as a number",
        |r| shown_owned(r, r.object.stat.uid.to_string()),
        |r| owned(r, json!(r.object.stat.uid)),
    )),
    plain(
        "user",
        "USER",
        "owner",
        |r| shown_owned(r, r.user.to_owned()),
        |r| owned(r, json!(r.user)),
    ),
    right(plain(
        "gid",
        "GID",
        "group, as a number",
        |r| shown_owned(r, r.object.stat.gid.to_string()),
        |r| owned(r, json!(r.object.stat.gid)),
    )),
    right(plain(
        "size",
        "SIZE",
        "apparent size",
        |r| counted(r, show_size(r.object.size())),
        |r| known_size(r, r.object.size()),
    )),
    right(plain(
        "allocated",
        "USED",
        "memory in use",
        |r| counted(r, show_size(r.object.allocated())),
        |r| known_size(r, r.object.allocated()),
    )),
    plain(
        "born_at",
        "BORN",
        "when it was made",
        |r| time(r.object.stat.born).unwrap_or_default(),
        |r| json!(time(r.object.stat.born)),
    ),
    plain(
        "changed_at",
        "CHANGED",
        "when its inode changed last",
        |r| changed(r).unwrap_or_default(),
        |r| json!(changed(r)),
    ),
    right(plain(
        "age_s",
        "AGE",
        "time since it was made",
        |r| r.age().map_or_else(|| "?".to_owned(), show_age),
        |r| json!(r.age().map(seconds)),
    )),
    optional(plain(
        "semaphore",
        "VALUE",
        "of a semaphore: value and waiters",
        |r| {
            r.object
                .semaphore
                .map_or_else(String::new, |s| format!("{} ({} waiting)", s.value, s.waiters))
        },
        |r| {
            r.object
                .semaphore
                .map_or(Value::Null, |s| json!({ "value": s.value, "waiters": s.waiters }))
        },
    )),
    optional(plain(
        "queue",
        "MESSAGES",
        "of a message queue: messages waiting, and how many may",
        |r| {
            let shown = |q: Queue| format!("{} of {}", q.messages, q.max_messages);
            r.object.queue.map_or_else(String::new, shown)
        },
        queue_value,
    )),
    optional(plain(
        "entries",
        "ENTRIES",
        "of a directory: entries at all levels",
        |r| r.object.directory.as_ref().map_or_else(String::new, |t| t.entries.to_string()),
        |r| json!(r.object.directory.as_ref().map(|t| t.entries)),
    )),
    optional(plain(
        "content_changed_at",
        "CONTENT CHANGED",
        "of a directory: when anything in it changed last",
        |r| time(content_changed(r)).unwrap_or_default(),
        |r| json!(time(content_changed(r))),
    )),
    optional(plain(
        "truncated",
        "TRUNCATED",
        "of a directory: not everything in it was counted",
        |r| r.object.directory.as_ref().map_or_else(String::new, |t| t.truncated.to_string()),
        |r| json!(r.object.directory.as_ref().map(|t| t.truncated)),
    )),
    optional(plain(
        "sysv",
        "SYSTEM V",
        "of a System V object: its key, and what the kernel counts",
        sysv::text,
        sysv::value,
    )),
    plain(
        "producer",
        "PRODUCER",
        "who makes objects of this name",
        |r| r.producer.map_or_else(String::new, |(id, _)| id.to_owned()),
        |r| {
            r.producer
                .map_or(Value::Null, |(id, software)| json!({ "id": id, "software": software }))
        },
    ),
    plain(
        "creator",
        "CREATOR",
        "the pid in the name, or that the kernel records",
        creator_text,
        creator_value,
    ),
    plain(
        "namespace",
        "NAMESPACE",
        "where it is: a container, or a process inside; nothing (null) is here",
        |r| {
            r.namespace
                .map_or_else(String::new, |namespace| escape(namespace.to_string().as_bytes()))
        },
        |r| json!(r.namespace.map(namespace_value)),
    ),
    plain(
        "deleted",
        "DELETED",
        "whether its name is gone",
        |r| r.object.deleted.to_string(),
        |r| json!(r.object.deleted),
    ),
    column("holders", "HOLDERS", "who has it open or mapped", holders_text, Shown::Holders),
    optional(plain(
        "holders_complete",
        "ALL HOLDERS",
        "whether those are all: ? where that cannot be known, false where one is enough",
        |r| r.has_all_holders().map_or_else(|| "?".to_owned(), |all| all.to_string()),
        |r| json!(r.may_have_more_holders().then_some(false)),
    )),
    plain("verdict", "VERDICT", "may it go?", |r| r.verdict().to_string(), |r| json!(r.verdict())),
    plain(
        "reason",
        "REASON",
        "what decided the verdict",
        |r| r.judgement().explained(),
        |r| json!(r.judgement().reason),
    ),
    column(
        "evidence",
        "EVIDENCE",
        "everything that is known",
        |r| r.judgement().evidence.iter().map(|e| e.code.as_str()).collect::<Vec<_>>().join(","),
        Shown::Evidence,
    ),
];

/// The columns of `reap` beyond those of `list`.
pub static OUTCOME: &[Column] = &[
    plain(
        "outcome",
        "OUTCOME",
        "what became of it",
        |r| r.report.as_ref().map_or_else(String::new, |report| report.outcome.as_str().to_owned()),
        |r| json!(r.report.as_ref().map(|report| report.outcome)),
    ),
    plain(
        "says",
        "WHY",
        "why",
        |r| r.report.as_ref().map_or_else(String::new, |report| report.says.clone()),
        |r| json!(r.report.as_ref().map(|report| &report.says)),
    ),
    optional(plain(
        "forced",
        "FORCED",
        "whether the operator forced it",
        |_| String::new(),
        |r| json!(r.forced.then_some(true)),
    )),
    optional(plain(
        "archived",
        "ARCHIVED",
        "its entry in the archive",
        |r| r.report.as_ref().and_then(|report| report.archived.clone()).unwrap_or_default(),
        |r| json!(r.report.as_ref().and_then(|report| report.archived.as_ref())),
    )),
    optional(plain(
        "errno",
        "ERRNO",
        "of a failure",
        |_| String::new(),
        |r| json!(r.report.as_ref().and_then(|report| report.errno)),
    )),
    optional(plain(
        "error",
        "ERROR",
        "of a failure",
        |_| String::new(),
        |r| {
            json!(
                r.report
                    .as_ref()
                    .filter(|report| report.errno.is_some())
                    .map(|report| &report.says)
            )
        },
    )),
];

/// The column of this key.
#[must_use]
pub fn by_key(key: &str) -> Option<&'static Column> {
    COLUMNS.iter().chain(OUTCOME).find(|column| column.key == key)
}

/// Those of `columns` that `-o` names, or else those of the keys in `usual`.
///
/// # Errors
/// A key that is none.
pub fn chosen<T, V>(
    columns: &'static [Field<T, V>],
    keys: &[String],
    usual: &[&str],
) -> Result<Vec<&'static Field<T, V>>, CommandError> {
    let find = |key: &str| columns.iter().find(|column| column.key == key);
    if keys.is_empty() {
        return Ok(usual.iter().filter_map(|key| find(key)).collect());
    }
    let found = keys.iter().map(|key| {
        find(key).ok_or_else(|| {
            let name = escape(key.as_bytes());
            CommandError::usage(format_args!("-o {name}: no such column")).hint("--help names them")
        })
    });
    found.collect()
}

/// The help of `-o`, of which `example` is one.
#[must_use]
pub fn help<T, V>(columns: &[Field<T, V>], example: &str) -> String {
    let mut help = format!("Print these columns, e.g. {example}:\n");
    for column in columns {
        help.push_str(&format!("  {:<12} {}\n", column.key, column.help));
    }
    help
}

/// A device number as `MAJOR:MINOR`.
pub(super) fn show_dev(dev: u64) -> String {
    format!("{}:{}", libc::major(dev), libc::minor(dev))
}

fn mode(row: &Row<'_>) -> String {
    shown_owned(row, format!("{:04o}", row.object.stat.mode & 0o7777))
}

/// Owner, group or mode, unless they are not known.
fn shown_owned(row: &Row<'_>, text: String) -> String {
    if row.object.is_known_by_mapping_only() { "?".to_owned() } else { text }
}

/// The same in a document.
fn owned(row: &Row<'_>, value: Value) -> Value {
    if row.object.is_known_by_mapping_only() { Value::Null } else { value }
}

/// To the nanosecond: a plan knows by it what it was made for.
fn time(nanoseconds: Option<i128>) -> Option<String> {
    show_exact_time(nanoseconds?)
}

fn changed(row: &Row<'_>) -> Option<String> {
    let known = !row.object.is_known_by_mapping_only();
    time(known.then_some(row.object.stat.changed))
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds of an age fit into 53 bits")]
fn seconds(nanoseconds: i128) -> f64 {
    (nanoseconds / 1_000_000) as f64 / 1000.0
}

fn content_changed(row: &Row<'_>) -> Option<i128> {
    row.object.directory.as_ref().map(|tree| tree.changed).filter(|changed| *changed != 0)
}

/// A size that is only a part of it, because not everything could be counted, says so.
fn counted(row: &Row<'_>, size: String) -> String {
    let unseen = row.object.is_known_by_mapping_only();
    if row.object.is_of_unknown_size() && !unseen {
        return "?".into();
    }
    let truncated = unseen || row.object.directory.as_ref().is_some_and(|tree| tree.truncated);
    if truncated { format!("≥ {size}") } else { size }
}

/// A size in bytes; null when it could not be found out.
fn known_size(row: &Row<'_>, size: u64) -> Value {
    json!((!row.object.is_of_unknown_size()).then_some(size))
}

/// What is in a message queue: nulls when that could not be found out.
fn queue_value(row: &Row<'_>) -> Value {
    if row.object.kind != Kind::Mqueue {
        return Value::Null;
    }
    let queue = row.object.queue;
    json!({
        "messages": queue.map(|queue| queue.messages),
        "max_messages": queue.map(|queue| queue.max_messages),
        "message_size": queue.map(|queue| queue.message_size),
        "bytes": queue.map(|queue| queue.bytes),
        "notify_pid": queue.and_then(|queue| queue.notify_pid),
    })
}

fn base64_name(row: &Row<'_>) -> Option<String> {
    use base64::Engine;
    let name = &row.object.name;
    (!name.is_utf8()).then(|| base64::engine::general_purpose::STANDARD.encode(name.as_bytes()))
}

fn creator_text(row: &Row<'_>) -> String {
    match row.creator() {
        None => String::new(),
        Some((pid, CreatorState::Alive(_))) => format!("{pid} (alive)"),
        Some((pid, CreatorState::Dead | CreatorState::Recycled(_))) => format!("{pid} (dead)"),
        Some((pid, CreatorState::NotVisible)) => format!("{pid} (not visible)"),
    }
}

fn creator_value(row: &Row<'_>) -> Value {
    let Some((pid, state)) = row.creator() else { return Value::Null };
    let alive = match state {
        CreatorState::Alive(_) => Some(true),
        CreatorState::Dead | CreatorState::Recycled(_) => Some(false),
        CreatorState::NotVisible => None,
    };
    let from = if row.object.sysv.is_some() { "ipc" } else { "name" };
    json!({ "pid": pid, "alive": alive, "from": from })
}

/// Where an object is, for programs.
pub(super) fn namespace_value(namespace: &Namespace) -> Value {
    let container = namespace.container.as_ref().map(|container| {
        json!({ "runtime": container.runtime, "id": container.id, "pod": container.pod })
    });
    json!({
        "mnt": namespace.mnt,
        "ipc": namespace.ipc,
        "pid": namespace.pid,
        "container": container,
    })
}

/// The first holder, and how many more.
fn holders_text(row: &Row<'_>) -> String {
    match row.holders {
        [] if !row.sought() => "?".to_owned(),
        [one] if row.may_have_more_holders() => {
            format!("{}[{}] +?", escape(&one.comm), one.pid)
        }
        [] => String::new(),
        [one] => format!("{}[{}]", escape(&one.comm), one.pid),
        [first, rest @ ..] => format!("{}[{}] +{}", escape(&first.comm), first.pid, rest.len()),
    }
}
