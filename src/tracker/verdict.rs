//! From evidence to verdict: one pure function.
//!
//! The verdicts are ordered by how much may be removed: *held*, *claimed* and *unknown* never
//! (only by name and force), *unclaimed* when asked, *orphaned* by default. More evidence of life
//! never makes an object more removable, and neither does seeing less.

mod code;
mod counts;
mod proof;

pub use code::{Code, Evidence, Fields};
pub use counts::{Counts, QueueFacts};

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

use self::proof::proving;
use super::evidence::holders::How;
use super::evidence::lease::Lease;
use super::evidence::producers::HeldWhileAlive;
use super::resource::escape;

/// May the object go?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Something in the kernel refers to it now.
    Held,
    /// Nobody holds it, but something alive, or its own design, may come back for it by name.
    Claimed,
    /// It could not be probed.
    Unknown,
    /// Nobody holds it; nothing shows that it is still wanted, nothing proves that it is not.
    Unclaimed,
    /// Nobody holds it, and nothing that could come back for it exists.
    Orphaned,
}

impl Verdict {
    /// All, in the order in which `list` counts them.
    pub const ALL: [Self; 5] =
        [Self::Held, Self::Claimed, Self::Unknown, Self::Unclaimed, Self::Orphaned];

    /// The word that tables, JSON and `--verdict` use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Claimed => "claimed",
            Self::Unknown => "unknown",
            Self::Unclaimed => "unclaimed",
            Self::Orphaned => "orphaned",
        }
    }

    /// How removable: 0 never without force, 1 if asked, 2 by default.
    #[must_use]
    pub const fn reapability(self) -> u8 {
        match self {
            Self::Held | Self::Claimed | Self::Unknown => 0,
            Self::Unclaimed => 1,
            Self::Orphaned => 2,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The verdict, the code that decided it, and everything that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// May it go?
    pub verdict: Verdict,
    /// The deciding reason.
    pub reason: Code,
    /// All the evidence, in the order of the rule.
    pub evidence: Vec<Evidence>,
}

impl Judgement {
    /// Nothing is known.
    #[must_use]
    pub const fn none() -> Self {
        Self { verdict: Verdict::Unknown, reason: Code::NoLease, evidence: Vec::new() }
    }

    /// The code of the deciding reason, and its sentence.
    #[must_use]
    pub fn explained(&self) -> String {
        format!("{}: {}", self.reason.as_str(), self.says())
    }

    /// The sentence of the deciding reason.
    #[must_use]
    pub fn says(&self) -> &str {
        self.evidence.iter().find(|e| e.code == self.reason).map_or("", |e| e.says.as_str())
    }
}

/// A live process, for a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its pid.
    pub pid: i32,
    /// Its name.
    pub comm: Vec<u8>,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]", escape(&self.comm), self.pid)
    }
}

/// What became of the pid in a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreatorState {
    /// A process has it, and did not provably start after the object was born.
    Alive(Who),
    /// Only processes that provably started after the object was born have it.
    Recycled(Who),
    /// No process has it, and all processes are visible.
    Dead,
    /// No visible process has it.
    NotVisible,
}

/// Whether anything of the producer's family lives that could open the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FamilyState {
    /// The catalogue names no family for this producer.
    NotDefined,
    /// It was not looked for: the kernel said that somebody holds the object.
    NotAsked,
    /// None lives, as far as process sight reaches.
    Gone,
    /// This one does, among so many.
    Alive(Who, usize),
    /// This process may be one: it could not be looked into.
    Unseen(Who),
}

/// Whether a process of the owner's lives, whatever program it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KinState {
    /// The owner is a system user: its services come and go, and their objects with them.
    SystemUser,
    /// None lives, as far as process sight reaches.
    Gone,
    /// This one does, among so many.
    Alive(Who, usize),
}

/// What the catalogue says of the producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerFacts {
    /// Which one.
    pub id: String,
    /// For people.
    pub software: String,
    /// What live owners do.
    pub held: HeldWhileAlive,
    /// Meant to outlive them.
    pub persistent: bool,
    /// Whether a verdict may rest on the entry.
    pub proof: bool,
    /// The catalogue's name for the programs without which nobody can come back for it.
    pub family: Option<String>,
}

/// A process that comes back for an object, or cleans it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guardian {
    /// The process.
    pub who: Who,
    /// What a guardian of such objects is, for people.
    pub what: String,
    /// It did not say what it is, and may be one.
    pub silent: bool,
}

/// Everything a verdict depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// A kind that can be judged: not a symlink, FIFO, socket or device.
    pub known_kind: bool,
    /// A directory: it has no lease.
    pub directory: bool,
    /// The kernel's answer; about a directory, that some file in it is held, or nothing.
    pub lease: Lease,
    /// Whether it was looked who holds it.
    pub holders_sought: bool,
    /// Who was found, and how they hold it.
    pub holders: Vec<(Who, std::collections::BTreeSet<How>)>,
    /// Mounts that it is part of.
    pub mounted: Vec<String>,
    /// Mounts and layers that could not be looked at, and that it may be part of.
    pub perhaps_mounted: Vec<String>,
    /// Nanoseconds since birth or last change, whichever is shorter; negative when in the future.
    pub quiet: i128,
    /// The grace period in nanoseconds.
    pub grace: i128,
    /// Who makes objects of this name.
    pub producer: Option<ProducerFacts>,
    /// The pid in the name.
    pub creator: Option<(i32, CreatorState)>,
    /// A process that comes back for it or cleans it.
    pub guardian: Option<Guardian>,
    /// What lives of the family.
    pub family: FamilyState,
    /// A live process of the creator's session or group, or its child.
    pub descendant: Option<Who>,
    /// A live daemon of rtrack with which it is registered, and who registered it.
    pub registered: Option<(Who, Option<Who>)>,
    /// One that does not answer, with which it may be.
    pub perhaps_registered: Option<Who>,
    /// The producer's own lock on it, or beside it, that somebody holds.
    pub locked: Option<String>,
    /// Whether anybody lives who could come back for it as its owner.
    pub kin: KinState,
    /// It has no name any more, by which anybody could come back for it.
    pub nameless: bool,
    /// The mode grants something to group or others.
    pub shared_mode: bool,
    /// Name of the owner, for sentences.
    pub owner: String,
    /// Why the processes are not all known; empty when they are.
    pub process_blind: Vec<&'static str>,
    /// Why their mappings and descriptors are not all known; empty when they are.
    pub holder_blind: Vec<&'static str>,
    /// The operator asserted that nothing outside uses the mount, and it mattered.
    pub assumed_complete: bool,
    /// What there is to say of a message queue.
    pub queue: Option<QueueFacts>,
    /// An operator's file that could not be used: the catalogue proves nothing until it is mended.
    pub catalogue_broken: Option<String>,
    /// Of a System V object: what the kernel counts.
    pub counts: Option<Counts>,
}

/// The rule, in order: held, claimed, unknown, orphaned, unclaimed.
#[must_use]
pub fn judge(facts: &Facts) -> Judgement {
    let mut found = Vec::new();
    holding(facts, &mut found);
    let held = first_of(
        &found,
        &[Code::LeaseRefused, Code::MappedBy, Code::OpenBy, Code::Attached, Code::Mounted],
    );
    claims(facts, &mut found);
    let claimed = first_of(
        &found,
        &[
            Code::Persistent,
            Code::CreatorAlive,
            Code::GuardianAlive,
            Code::Registered,
            Code::Unread,
            Code::TooYoung,
            Code::Locked,
        ],
    );
    let probed = probing(facts, &mut found);
    // Nothing has to be proven of what goes by itself with the last of its holders.
    let proof = if facts.nameless { Err(Code::NoLease) } else { proving(facts, &mut found) };

    let (verdict, reason) = if let Some(code) = held {
        (Verdict::Held, code)
    } else if let Some(code) = claimed {
        (Verdict::Claimed, code)
    } else if let Err(code) = probed {
        (Verdict::Unknown, code)
    } else {
        match proof {
            Ok(code) => (Verdict::Orphaned, code),
            Err(code) => (Verdict::Unclaimed, code),
        }
    };
    Judgement { verdict, reason, evidence: found }
}

fn first_of(found: &[Evidence], codes: &[Code]) -> Option<Code> {
    codes.iter().copied().find(|code| found.iter().any(|evidence| evidence.code == *code))
}

fn evidence(code: Code, says: impl Into<String>, fields: &[(&'static str, Value)]) -> Evidence {
    let fields = fields.iter().map(|(key, value)| (Cow::Borrowed(*key), value.clone())).collect();
    Evidence { code, says: says.into(), fields: Fields(fields) }
}

fn list_of(who: &[&Who]) -> String {
    let mut text = who.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if who.len() > 3 {
        text.push_str(&format!(" and {} more", who.len() - 3));
    }
    text
}

/// What in the kernel refers to it.
fn holding(facts: &Facts, found: &mut Vec<Evidence>) {
    let what = if facts.directory { "a file in it" } else { "it" };
    match facts.lease {
        _ if facts.counts.is_some() => {}
        Lease::Refused if facts.holders.is_empty() && facts.holders_sought => found.push(evidence(
            Code::LeaseRefused,
            format!("the kernel says that {what} is open or mapped, by a process not visible here"),
            &[],
        )),
        Lease::Refused => found.push(evidence(
            Code::LeaseRefused,
            format!("the kernel says that somebody has {what} open or mapped"),
            &[],
        )),
        Lease::Granted => found.push(evidence(
            Code::LeaseGranted,
            "no process anywhere has it open or mapped",
            &[],
        )),
        Lease::NoPermission | Lease::Unsupported | Lease::NotAsked => {}
    }
    found.extend(facts.counts.as_ref().and_then(Counts::of_use));
    let by = |wanted: fn(&How) -> bool| -> Vec<&Who> {
        facts.holders.iter().filter(|(_, how)| how.iter().any(wanted)).map(|(who, _)| who).collect()
    };
    let pids = |who: &[&Who]| json!(who.iter().map(|who| who.pid).collect::<Vec<_>>());
    let mappers = by(|how| *how == How::Map);
    if !mappers.is_empty() {
        let says = format!("mapped by {}", list_of(&mappers));
        found.push(evidence(Code::MappedBy, says, &[("pids", pids(&mappers))]));
    }
    let openers = by(|how| *how != How::Map);
    if !openers.is_empty() {
        let says = format!("open in {}", list_of(&openers));
        found.push(evidence(Code::OpenBy, says, &[("pids", pids(&openers))]));
    }
    // It has it open, normally; the kernel forgets a registration with the descriptor.
    if let Some(who) = facts.queue.as_ref().and_then(|queue| queue.notified.as_ref())
        && openers.iter().all(|opener| opener.pid != who.pid)
    {
        let says = if who.pid == 0 {
            "a process not visible here waits to be told of a message".to_owned()
        } else {
            format!("{who} waits to be told of a message")
        };
        found.push(evidence(Code::OpenBy, says, &[("pids", pids(&[who]))]));
    }
    for mount in &facts.mounted {
        found.push(evidence(Code::Mounted, mount.clone(), &[]));
    }
}

/// What may come back for it.
fn claims(facts: &Facts, found: &mut Vec<Evidence>) {
    if let Some(producer) = facts.producer.as_ref().filter(|producer| producer.persistent) {
        let says = format!("{} keeps it by design", producer.software);
        found.push(evidence(Code::Persistent, says, &[("producer", json!(producer.id))]));
    }
    let known_by = match facts.counts {
        Some(_) => "which made it",
        None => "which its name names",
    };
    found.extend(facts.creator.as_ref().and_then(|creator| life(creator, known_by)));
    if let Some(counts) = &facts.counts {
        let others = counts.last.iter().filter(|last| Some(*last) != facts.creator.as_ref());
        found.extend(others.filter_map(|last| life(last, "which used it last")));
        found.extend(counts.unread_messages());
    }
    if let Some(Guardian { who, what, silent }) = &facts.guardian {
        let says = if *silent {
            format!("{who} does not say what it is, and may be {what}, which may clean it")
        } else {
            format!("{what} is alive and may clean it: {who}")
        };
        found.push(evidence(Code::GuardianAlive, says, &[("pid", json!(who.pid))]));
    }
    if let Some((tracker, by)) = &facts.registered {
        let by_whom = by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        let says = format!("registered with the tracker {tracker}{by_whom}, which will clean it");
        found.push(evidence(Code::Registered, says, &[("pid", json!(tracker.pid))]));
    } else if let Some(tracker) = &facts.perhaps_registered {
        let says = format!("the tracker {tracker} does not answer, and may have it registered");
        found.push(evidence(Code::Registered, says, &[("pid", json!(tracker.pid))]));
    }
    if let Some(messages) = unread(facts) {
        let wait = if messages == 1 { "message waits" } else { "messages wait" };
        let says = format!("{messages} {wait} in it: a queue that is not empty is data");
        found.push(evidence(Code::Unread, says, &[("messages", json!(messages))]));
    }
    if facts.quiet < facts.grace || facts.quiet < 0 {
        let says = if facts.quiet < 0 {
            "born or changed in the future, by the clock".to_owned()
        } else {
            format!(
                "born or changed {} ago, less than the grace period of {}",
                seconds_text(facts.quiet),
                seconds_text(facts.grace)
            )
        };
        let fields =
            [("quiet_s", json!(seconds(facts.quiet))), ("grace_s", json!(seconds(facts.grace)))];
        found.push(evidence(Code::TooYoung, says, &fields));
    }
    if let Some(lock) = &facts.locked {
        found.push(evidence(Code::Locked, lock.clone(), &[]));
    }
}

/// How many messages wait in it, if any is known to.
fn unread(facts: &Facts) -> Option<u64> {
    facts.queue.as_ref()?.messages.filter(|messages| *messages > 0)
}

/// Whether a process lives that the object is connected with, as far as that can be told.
fn life((pid, state): &(i32, CreatorState), known_by: &str) -> Option<Evidence> {
    let (code, says) = match state {
        CreatorState::Alive(who) => {
            (Code::CreatorAlive, format!("process {pid}, {known_by}, is alive: {who}"))
        }
        CreatorState::Recycled(who) => (
            Code::PidRecycled,
            format!("process {pid} is another one now: {who} started after the object was born"),
        ),
        CreatorState::Dead => (Code::CreatorDead, format!("process {pid}, {known_by}, is gone")),
        CreatorState::NotVisible => return None,
    };
    Some(evidence(code, says, &[("pid", json!(pid))]))
}

#[allow(clippy::cast_precision_loss, reason = "a display of seconds needs no 53 bits")]
fn seconds(nanoseconds: i128) -> f64 {
    (nanoseconds / 1_000_000) as f64 / 1000.0
}

fn seconds_text(nanoseconds: i128) -> String {
    format!("{} s", nanoseconds / 1_000_000_000)
}

/// Whether it could be found out that nobody holds it, and of a message queue, that nothing waits in it; if
/// not, the reason.
fn probing(facts: &Facts, found: &mut Vec<Evidence>) -> Result<(), Code> {
    let asked = asking(facts, found);
    let unknown = facts.queue.as_ref().is_some_and(|queue| queue.messages.is_none());
    if unknown && asked != Err(Code::NoPermission) {
        let says = "whether messages wait in it could not be read";
        found.push(evidence(Code::NoPermission, says, &[]));
        return asked.and(Err(Code::NoPermission));
    }
    asked
}

/// Whether it could be found out that nobody holds it; if not, the reason.
fn asking(facts: &Facts, found: &mut Vec<Evidence>) -> Result<(), Code> {
    let partial = |found: &mut Vec<Evidence>| {
        if !facts.holder_blind.is_empty() {
            found.push(evidence(
                Code::PartialHolderSight,
                format!("not all holders can be seen: {}", facts.holder_blind.join("; ")),
                &[],
            ));
        }
    };
    if !facts.known_kind {
        // What such a file is for, and who waits at it, no lease and no scan can tell.
        found.push(evidence(
            Code::NoLease,
            "neither memory, semaphore nor directory: the kernel cannot be asked who uses it",
            &[],
        ));
        return Err(Code::NoLease);
    }
    // No lease tells of mounts.
    for says in &facts.perhaps_mounted {
        found.push(evidence(Code::PartialHolderSight, says.clone(), &[]));
    }
    if !facts.perhaps_mounted.is_empty() {
        return Err(Code::PartialHolderSight);
    }
    let reason = match facts.lease {
        Lease::Granted | Lease::Refused => return Ok(()),
        Lease::NoPermission => {
            found.push(evidence(
                Code::NoPermission,
                "the kernel lets only its owner and root ask who uses it",
                &[],
            ));
            Code::NoPermission
        }
        Lease::Unsupported | Lease::NotAsked => {
            let says = if facts.directory {
                "the kernel cannot be asked who uses a directory"
            } else if facts.counts.is_some() {
                "the kernel does not tell whether it is in use, or there is too much to ask"
            } else {
                "the kernel was not asked, or cannot be asked, who uses it"
            };
            found.push(evidence(Code::NoLease, says, &[]));
            Code::NoLease
        }
    };
    if facts.counts.is_some() {
        return Err(reason);
    }
    partial(found);
    // A file that could have been asked about is not judged by what a scan finds.
    let judged_by_sight = facts.directory || facts.lease != Lease::NotAsked;
    if judged_by_sight && facts.holder_blind.is_empty() { Ok(()) } else { Err(reason) }
}

#[cfg(test)]
mod tests;
