//! What `show` says of System V objects beyond others.

use serde_json::{Value, json};

use crate::commands::values::{plural, show_age, show_size, show_time};
use crate::tracker::inventory::Object;
use crate::tracker::inventory::sysv::{Entry, Of};
use crate::tracker::reap;
use crate::tracker::survey::owner_name;
use crate::tracker::sys::Nanoseconds;
use crate::tracker::sys::ipc::Semaphore;

/// So many semaphores of a set are shown one by one: it can have 32 000.
const MOST_SHOWN: usize = 64;

/// The lines of the text, each with its key, at `now` in nanoseconds since 1970.
pub(super) fn lines(object: &Object, now: Nanoseconds) -> Vec<(&'static str, String)> {
    let Some(entry) = &object.sysv else { return Vec::new() };
    let mut lines = vec![("key", key(entry))];
    lines.extend(made(entry).map(|made| ("made by", made)));
    let ago = |time: Option<Nanoseconds>| match time {
        None => "not known".to_owned(),
        Some(0) => "never".to_owned(),
        Some(time) => {
            format!("{} ({} ago)", show_time(time).unwrap_or_default(), show_age(now - time))
        }
    };
    match &entry.of {
        Of::Shm(segment) => {
            let count = segment.attachments;
            let count = count.map_or_else(|| "not known".to_owned(), |count| count.to_string());
            let state = [
                segment.dest.then_some("removed already"),
                segment.locked.then_some("locked into memory"),
                reap::sysv::is_closed(object).then_some("closed by an interrupted reap"),
            ];
            let state: Vec<&str> = state.into_iter().flatten().collect();
            let state =
                if state.is_empty() { String::new() } else { format!("; {}", state.join(", ")) };
            lines.push(("attached", format!("{count} times, by the kernel's count{state}")));
            if let Some(swapped) = segment.swapped.filter(|swapped| *swapped > 0) {
                lines.push(("swapped", show_size(swapped)));
            }
            lines.push(("attach", format!("last: {}", ago(segment.attached))));
            lines.push(("detach", format!("last: {}", ago(segment.detached))));
            let used = segment.attached.max(segment.detached);
            lines.extend(by(segment.last, used).map(|by| ("", format!("the last of both{by}"))));
        }
        Of::Sem(set) => {
            lines.push(("operation", format!("last: {}", ago(set.operated))));
            match &set.semaphores {
                Some(all) => lines.extend(semaphores(all)),
                None => lines.push(("set", "its semaphores could not be asked about".into())),
            }
        }
        Of::Msg(queue) => {
            let count = queue.messages.and_then(|count| usize::try_from(count).ok());
            let count =
                count.map_or_else(|| "not known".into(), |n| plural(n, "message", "messages"));
            lines.push(("unread", count));
            let last =
                |time, pid| format!("last: {}{}", ago(time), by(pid, time).unwrap_or_default());
            lines.push(("sent", last(queue.sent, queue.sender)));
            lines.push(("received", last(queue.received, queue.receiver)));
        }
    }
    lines
}

fn key(entry: &Entry) -> String {
    match entry.key {
        0 => "0x00000000 (private: found by its id only)".to_owned(),
        _ => entry.shown_key(),
    }
}

/// By whom it was made; nothing where that is not known.
fn made(entry: &Entry) -> Option<String> {
    let uid = entry.creator_uid?;
    let gid = entry.creator_gid.map_or_else(String::new, |gid| format!(", gid {gid}"));
    Some(format!("{} (uid {uid}{gid})", owner_name(uid)))
}

/// By which process, unless that was never.
fn by(pid: Option<i32>, time: Option<Nanoseconds>) -> Option<String> {
    match pid? {
        _ if time == Some(0) => None,
        0 => Some(", by a process not visible here".to_owned()),
        pid => Some(format!(", by process {pid}")),
    }
}

/// The semaphores of a set, the first ones each by itself.
fn semaphores(all: &[Semaphore]) -> Vec<(&'static str, String)> {
    let mut lines = vec![("set", plural(all.len(), "semaphore", "semaphores"))];
    for (number, one) in all.iter().take(MOST_SHOWN).enumerate() {
        let waiting = match (one.waiting, one.waiting_for_zero) {
            (0, 0) => "nobody waits".to_owned(),
            (waiting, 0) => format!("{waiting} waiting"),
            (0, zero) => format!("{zero} waiting for zero"),
            (waiting, zero) => format!("{waiting} waiting, {zero} waiting for zero"),
        };
        let last = if one.pid == 0 { String::new() } else { format!(", last process {}", one.pid) };
        lines.push(("", format!("{number}: value {}, {waiting}{last}", one.value)));
    }
    if all.len() > MOST_SHOWN {
        lines.push(("", format!("and {} more", all.len() - MOST_SHOWN)));
    }
    lines
}

/// Each semaphore of a set for programs, as many as are shown to people.
pub(super) fn semaphores_value(object: &Object) -> Option<Value> {
    let Of::Sem(set) = &object.sysv.as_ref()?.of else { return None };
    let all = set.semaphores.as_ref()?.iter().take(MOST_SHOWN);
    let one = |one: &Semaphore| {
        json!({
            "value": one.value,
            "waiting": one.waiting,
            "waiting_for_zero": one.waiting_for_zero,
            "pid": one.pid,
        })
    };
    Some(all.map(one).collect())
}
