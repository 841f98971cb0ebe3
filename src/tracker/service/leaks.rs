//! What was left: looked at, where that is asked for, removed with the rights that it is to be removed with, and
//! told of as a document.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::dialect::Rtype;
use super::found;
use super::server::Removal;
use crate::tracker::evidence::holders::Holder;
use crate::tracker::evidence::lease;
use crate::tracker::evidence::users::{self, Thing, Use, in_use_by};
use crate::tracker::host::{Host, boot_id, host_name, show_time, wall_clock};
use crate::tracker::reap::keeping::{Found, Keeper, find};
use crate::tracker::reap::registered::{self, Fate};
use crate::tracker::resource::Identity;
use crate::tracker::sys::Nanoseconds;
use crate::tracker::sys::credentials::{self, Rights};

/// More processes than this are not told of with one object.
const MOST_HOLDERS: usize = 64;

/// How much is found out about what was left, before it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Care {
    /// What somebody uses stays, and what cannot be told to be unused.
    pub keep_used: bool,
    /// Size, age and holders are told of.
    pub report: bool,
    /// The operator asserts that nothing outside of this PID namespace uses what is registered.
    pub assume_complete: bool,
}

impl Care {
    /// Whether anything has to be looked at.
    #[must_use]
    pub const fn looks(self) -> bool {
        self.keep_used || self.report
    }
}

/// Something to remove.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Its type.
    pub rtype: Rtype,
    /// Its name, as it was registered.
    pub name: &'a [u8],
    /// What the name belonged to when it was registered, if that is known: another object of its name stays.
    pub registered: Option<Identity>,
}

/// What was seen of something just before.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Bytes, if it was there.
    pub size: Option<u64>,
    /// When it was made, where that is known.
    pub born: Option<Nanoseconds>,
    /// Who held it.
    pub holders: Vec<Holder>,
}

/// Who registered it, as far as connections tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The process.
    pub pid: i32,
    /// Its name, as the kernel has it.
    pub comm: Vec<u8>,
    /// The user with whose rights is removed.
    pub uid: u32,
}

/// Removes `items`, in order, with the rights of a user and group if they are given, and answers with what became
/// of each. What their last user gave up is looked for in the processes only where a lease does not tell, or
/// for whoever it has to stay for: programs give up many things, one by one.
///
/// # Errors
/// The rights cannot be taken. Then nothing was removed; but for what was removed before they could not be
/// taken once more, none of which is told.
pub fn clean(
    items: &[Item<'_>],
    care: Care,
    given_up: bool,
    rights: Option<Rights>,
) -> io::Result<Vec<(Fate, Option<Seen>)>> {
    if !care.looks() || given_up && !care.keep_used {
        let all = || items.iter().map(|item| (remove(item), None)).collect();
        return with(rights, all);
    }
    let host = Host::real().ok();
    let calibrated = host.as_ref().map(|host| (host, lease::calibrate(host)));
    let found: Vec<Found> = with(rights, || {
        let found = |item: &Item<'_>| find(calibrated, item.rtype, item.name, care.keep_used);
        items.iter().map(found).collect()
    })?;
    // Processes are looked at with this process's own rights: a user's see less.
    let look = |found: &[Found]| -> Option<Vec<Use>> {
        let things: Vec<Thing> = found.iter().map(|found| found.thing().clone()).collect();
        let host = host.as_ref()?;
        let any = things.iter().any(|thing| !thing.inodes.is_empty());
        any.then(|| users::look(host, &things, care.assume_complete))
    };
    let mut seen = match given_up && !found.iter().any(Found::needs_sight) {
        true => None,
        false => look(&found),
    };
    let of = |seen: &Option<Vec<Use>>, index: usize| -> Option<Use> {
        seen.as_ref().and_then(|seen| seen.get(index)).cloned()
    };
    let fates: Vec<Fate> = if care.keep_used {
        with(rights, || {
            let mut keeper = Keeper::new(host.as_ref());
            let all = items.iter().zip(&found).enumerate();
            let fates = all.map(|(index, (item, found))| {
                if item.is_another() {
                    return Fate::Changed;
                }
                keeper.remove(item.rtype, item.name, found, of(&seen, index).as_ref())
            });
            let fates = fates.collect();
            keeper.finish();
            fates
        })?
    } else {
        with(rights, || items.iter().map(remove).collect())?
    };
    if seen.is_none() && fates.iter().any(|fate| matches!(fate, Fate::Kept(_))) {
        seen = look(&found);
    }
    let all = fates.into_iter().zip(&found).enumerate();
    let all = all.map(|(index, (fate, found))| {
        let holders = of(&seen, index).unwrap_or_default().holders;
        (fate, Some(Seen { size: found.size(), born: found.born(), holders }))
    });
    Ok(all.collect())
}

impl Item<'_> {
    /// Whether its name is another object's than when it was registered.
    fn is_another(&self) -> bool {
        self.registered.is_some_and(|then| found::is_another(self.rtype, self.name, &then))
    }
}

fn remove(item: &Item<'_>) -> Fate {
    if item.is_another() {
        return Fate::Changed;
    }
    registered::remove(item.rtype, item.name).into()
}

fn with<T: Send>(rights: Option<Rights>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    match rights {
        Some(rights) => credentials::with_rights(rights, work),
        None => Ok(work()),
    }
}

/// Why something stays, with who uses it if anybody was seen to.
#[must_use]
pub fn why_kept(why: &str, seen: Option<&Seen>) -> String {
    match seen.map(|seen| &seen.holders[..]) {
        Some(holders) if !holders.is_empty() => in_use_by(holders),
        _ => why.to_owned(),
    }
}

/// Whether a removal is one of a leak: of what was left, or was given up and is there still.
#[must_use]
pub fn is_leak(removal: &Removal) -> bool {
    !removal.given_up
        || match &removal.fate {
            Fate::Removed(_) => false,
            Fate::Kept(_) | Fate::Changed => true,
            Fate::Failed(error) => error.errno() != Some(libc::ENOENT),
        }
}

/// The document about what was left, by one owner or by all clients of a pipe.
#[must_use]
pub fn document(owner: Option<&Owner>, care: Care, leaks: Vec<Value>) -> Value {
    json!({
        "schema": "rtrack.leaks/1",
        "version": env!("CARGO_PKG_VERSION"),
        "time": show_time(wall_clock()),
        "host": host_name(),
        "boot_id": boot_id(std::path::Path::new("/proc")),
        "daemon": std::process::id(),
        "keep_used": care.keep_used,
        "owner": owner.map(|owner| process(owner.pid, &owner.comm, owner.uid)),
        "leaks": leaks,
    })
}

/// What is told of one leak.
#[must_use]
pub fn leak(removal: &Removal) -> Value {
    let Removal { rtype, name, given_up, fate, seen, registered_at, .. } = removal;
    let nothing = Seen::default();
    let seen = seen.as_ref().unwrap_or(&nothing);
    let errno = match fate {
        Fate::Failed(error) => error.errno(),
        Fate::Removed(_) | Fate::Kept(_) | Fate::Changed => None,
    };
    let (outcome, says) = match fate {
        Fate::Removed(_) => ("removed", None),
        Fate::Kept(why) => ("kept", Some(why.clone())),
        Fate::Changed => ("changed", Some("another object has its name now".to_owned())),
        Fate::Failed(_) if errno == Some(libc::ENOENT) => ("gone", None),
        Fate::Failed(error) => ("failed", Some(error.to_string())),
    };
    let mut map = Map::new();
    map.insert("rtype".into(), json!(rtype.as_str()));
    insert(&mut map, "name", name);
    map.insert("given_up".into(), json!(given_up));
    map.insert("size".into(), json!(seen.size));
    map.insert("age_s".into(), json!(seen.born.and_then(age)));
    map.insert("registered_at".into(), json!(registered_at.and_then(show_time)));
    let told = seen.holders.iter().take(MOST_HOLDERS).map(|holder| {
        let mut told = process(holder.pid, &holder.comm, holder.uid);
        if let Some(map) = told.as_object_mut() {
            map.insert("how".into(), json!(holder.how));
        }
        told
    });
    map.insert("holders".into(), told.collect());
    let more = seen.holders.len().saturating_sub(MOST_HOLDERS);
    if more > 0 {
        map.insert("holders_left_out".into(), json!(more));
    }
    map.insert("outcome".into(), json!(outcome));
    map.insert("errno".into(), json!(errno));
    map.insert("says".into(), json!(says));
    Value::Object(map)
}

/// Seconds since then. A clock that was set back makes nothing older than it is.
fn age(born: Nanoseconds) -> Option<u64> {
    u64::try_from((wall_clock() - born).max(0) / 1_000_000_000).ok()
}

fn process(pid: i32, comm: &[u8], uid: u32) -> Value {
    let mut map = Map::new();
    map.insert("pid".into(), json!(pid));
    insert(&mut map, "comm", comm);
    map.insert("uid".into(), json!(uid));
    Value::Object(map)
}

/// A text, and its exact bytes where it is none.
fn insert(map: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    map.insert(key.into(), json!(String::from_utf8_lossy(bytes)));
    if std::str::from_utf8(bytes).is_err() {
        map.insert(format!("{key}_base64"), json!(STANDARD.encode(bytes)));
    }
}
