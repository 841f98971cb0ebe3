//! System V objects for programs.

use serde_json::{Map, Value, json};

use super::Row;
use crate::commands::values::show_exact_time;
use crate::tracker::inventory::sysv::{Entry, Of};
use crate::tracker::sys::Nanoseconds;

/// What only System V objects have. What is not known is left out; `null` is never.
pub(super) fn value(row: &Row<'_>) -> Value {
    row.object.sysv.as_ref().map_or(Value::Null, |entry| Value::Object(fields(entry)))
}

/// The same for people: the key, and what tells most of each kind.
pub(super) fn text(row: &Row<'_>) -> String {
    let Some(entry) = &row.object.sysv else { return String::new() };
    let count = |count: Option<u64>, what: &str| {
        count.map_or_else(|| format!("{what} not known"), |count| format!("{count} {what}"))
    };
    let more = match &entry.of {
        Of::Shm(segment) => count(segment.attachments, "attached"),
        Of::Sem(set) => count(set.count, "semaphores"),
        Of::Msg(queue) => count(queue.messages, "messages"),
    };
    format!("{} ({more})", entry.shown_key())
}

fn fields(entry: &Entry) -> Map<String, Value> {
    let mut map = Map::new();
    let mut known = |key: &str, value: Option<Value>| {
        map.extend(value.map(|value| (key.to_owned(), value)));
    };
    known("key", Some(json!(entry.shown_key())));
    known("creator_uid", entry.creator_uid.map(Value::from));
    known("creator_gid", entry.creator_gid.map(Value::from));
    match &entry.of {
        Of::Shm(segment) => {
            known("creator_pid", segment.creator.map(Value::from));
            known("last_pid", segment.last.map(Value::from));
            known("attachments", segment.attachments.map(Value::from));
            known("attached_at", segment.attached.map(time));
            known("detached_at", segment.detached.map(time));
            known("swapped", segment.swapped.map(Value::from));
            known("locked", Some(json!(segment.locked)));
        }
        Of::Sem(set) => {
            known("semaphores", set.count.map(Value::from));
            known("waiting", entry.waiting().map(Value::from));
            known("operated_at", set.operated.map(time));
        }
        Of::Msg(queue) => {
            known("messages", queue.messages.map(Value::from));
            known("sender_pid", queue.sender.map(Value::from));
            known("receiver_pid", queue.receiver.map(Value::from));
            known("sent_at", queue.sent.map(time));
            known("received_at", queue.received.map(time));
        }
    }
    map
}

fn time(time: Nanoseconds) -> Value {
    json!(show_exact_time(time).filter(|_| time != 0))
}
