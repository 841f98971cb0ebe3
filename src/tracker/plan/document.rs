//! A plan as a document: what `reap --dry-run --json` wrote, read back and checked whole before anything
//! of it is carried out.
//!
//! Fields that are not known are passed over, since they are only ever added; one that is known has to
//! make sense by itself and beside the others.

mod sysv;

use std::collections::{HashMap, HashSet};

use base64::Engine;
use serde_json::Value;

use crate::tracker::host::Host;
use crate::tracker::inventory::mqueue::Queue;
use crate::tracker::inventory::{Object, Tree};
use crate::tracker::reap::{Outcome, is_quarantine_name};
use crate::tracker::resource::{Kind, Name, escape};
use crate::tracker::sys::{Nanoseconds, Stat};
use crate::tracker::verdict::{Code, Evidence, Fields, Judgement, Verdict};
use crate::tracker::world::World;

/// The schema of a plan.
pub const SCHEMA: &str = "rtrack.reap/1";

/// A plan that makes sense here and now.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What names it; nothing if it was written by hand.
    pub id: Option<String>,
    /// The grace period that it was judged by, in nanoseconds.
    pub grace: Nanoseconds,
    /// The operator asserted that nothing outside the PID namespace uses the mount.
    pub assume_complete: bool,
    /// What was to be removed.
    pub items: Vec<Item>,
}

/// One object that a plan removes.
#[derive(Debug, Clone)]
pub struct Item {
    /// What it was.
    pub object: Object,
    /// Its verdict then.
    pub judgement: Judgement,
    /// The owner's name.
    pub user: String,
    /// Id and name of its producer.
    pub producer: Option<(String, String)>,
    /// The operator forced it.
    pub force: bool,
}

impl Item {
    /// Whether the object is as it was when the plan was made.
    ///
    /// # Errors
    /// What has changed.
    pub fn is_unchanged(&self, now: &Object) -> Result<(), &'static str> {
        let (then, stat) = (&self.object.stat, &now.stat);
        let access = |stat: &Stat| (stat.mode & 0o7777, stat.uid, stat.gid);
        if access(stat) != access(then) {
            return Err("its owner or mode was changed since the plan was made");
        }
        let messages = |object: &Object| object.queue.map(|queue| queue.messages);
        let content = |tree: &Tree| (tree.entries, tree.size, tree.allocated, tree.changed);
        let inside = |object: &Object| object.directory.as_deref().map(content);
        if (now.size(), stat.changed) != (self.object.size(), then.changed)
            || inside(now) != inside(&self.object)
            || messages(now) != messages(&self.object)
        {
            return Err("it was written or changed since the plan was made");
        }
        if now.sysv.is_some() && stat.modified != then.modified {
            return Err("it was used since the plan was made");
        }
        Ok(())
    }
}

/// Why a plan is refused: the field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct PlanError {
    /// Where, as `objects[3].ino`.
    pub field: String,
    /// What is wrong.
    pub what: String,
}

/// A value and where it stands.
struct At<'a> {
    value: &'a Value,
    field: String,
}

impl<'a> At<'a> {
    fn wrong(&self, what: impl Into<String>) -> PlanError {
        PlanError { field: self.field.clone(), what: what.into() }
    }

    /// A field of an object, which may be missing or null.
    fn optional(&self, key: &str) -> Option<At<'a>> {
        let dot = if self.field.is_empty() { "" } else { "." };
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(At { value, field: format!("{}{dot}{key}", self.field) })
    }

    fn get(&self, key: &str) -> Result<At<'a>, PlanError> {
        let dot = if self.field.is_empty() { "" } else { "." };
        let missing = || PlanError {
            field: format!("{}{dot}{key}", self.field),
            what: "is missing".to_owned(),
        };
        self.optional(key).ok_or_else(missing)
    }

    fn items(&self) -> Result<Vec<At<'a>>, PlanError> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("expected a list"))?;
        let at = |(index, value)| At { value, field: format!("{}[{index}]", self.field) };
        Ok(items.iter().enumerate().map(at).collect())
    }

    fn text(&self) -> Result<&'a str, PlanError> {
        self.value.as_str().ok_or_else(|| self.wrong("expected a text"))
    }

    fn number(&self) -> Result<u64, PlanError> {
        self.value.as_u64().ok_or_else(|| self.wrong("expected a whole number from 0 on"))
    }

    fn small(&self) -> Result<u32, PlanError> {
        u32::try_from(self.number()?).map_err(|_| self.wrong("is too large"))
    }

    fn flag(&self) -> Result<bool, PlanError> {
        self.value.as_bool().ok_or_else(|| self.wrong("expected true or false"))
    }

    fn time(&self) -> Result<Nanoseconds, PlanError> {
        let time: Result<jiff::Timestamp, _> = self.text()?.parse();
        let time = time.map_err(|_| self.wrong("expected a time as RFC 3339 has it"))?;
        Ok(time.as_nanosecond())
    }

    fn is(&self, expected: &str, what: &str) -> Result<(), PlanError> {
        let found = self.text()?;
        if found == expected {
            return Ok(());
        }
        let found = escape(found.as_bytes());
        Err(self
            .wrong(format!("{what}: {found}, and it has to be {}", escape(expected.as_bytes()))))
    }

    /// One of a closed list of words.
    fn word<T: Copy>(&self, all: &[T], says: impl Fn(T) -> &'static str) -> Result<T, PlanError> {
        let text = self.text()?;
        let found = all.iter().copied().find(|one| says(*one) == text);
        found.ok_or_else(|| self.wrong(format!("{} is not known", escape(text.as_bytes()))))
    }
}

/// Whether a plan is about other namespaces than the one it was made in.
#[must_use]
pub fn is_wide(text: &[u8]) -> bool {
    let document: Value = serde_json::from_slice(text).unwrap_or_default();
    let places = ["mounts", "objects"].into_iter().filter_map(|key| document.get(key)?.as_array());
    places.flatten().any(|at| at.get("namespace").is_some_and(|namespace| !namespace.is_null()))
}

/// Reads a plan for this host.
///
/// # Errors
/// The first field that does not fit: the plan is of another schema, boot, host or mount, or it was
/// edited so that it no longer makes sense.
pub fn read(text: &[u8], world: &World) -> Result<Plan, PlanError> {
    let host = &world.host;
    let document: Value = serde_json::from_slice(text).map_err(|error| PlanError {
        field: "plan".into(),
        what: format!("is not one JSON document: {error}"),
    })?;
    let top = At { value: &document, field: String::new() };
    top.get("schema")?.is(SCHEMA, "of another schema")?;
    let dry_run = top.get("dry_run")?;
    if !dry_run.flag()? {
        return Err(dry_run.wrong("this is the report of a removal, and no plan"));
    }
    let boot = top.get("boot_id")?;
    boot.is(&host.boot_id(), "made in another boot")?;
    top.get("host")?.is(&host.name(), "made on another host")?;
    let taken_at = top.get("taken_at")?;
    if taken_at.time()? > (host.clock.wall)() {
        return Err(taken_at.wrong("is in the future"));
    }
    mount(&top, host)?;
    let places = Places::of(world);
    let sight = top.get("sight")?;
    let assume_complete = sight.get("assumed_complete")?.flag()?;
    let grace = top.get("grace_s")?;
    let seconds = grace.value.as_f64().filter(|seconds| (0.0..=1e12).contains(seconds));
    let seconds = seconds.ok_or_else(|| grace.wrong("expected seconds from 0 on"))?;
    #[allow(clippy::cast_possible_truncation, reason = "it was found to be in range")]
    let grace = (seconds * 1e9) as Nanoseconds;

    let mut items = Vec::new();
    let mut seen = HashSet::new();
    for at in top.get("objects")?.items()? {
        let (item, outcome) = item(&at, &places)?;
        if !seen.insert(item.object.key()) {
            return Err(at.get("id")?.wrong("is there twice"));
        }
        if outcome == Outcome::WouldReap {
            items.push(item);
        }
    }
    let id = top.optional("plan_id").map(|id| id.text().map(str::to_owned)).transpose()?;
    Ok(Plan { id, grace, assume_complete, items })
}

/// Our own mount, if the plan is about it, has to be the one here. Those of other namespaces are known by
/// their objects.
fn mount(top: &At<'_>, host: &Host) -> Result<(), PlanError> {
    let mounts = top.get("mounts")?;
    let mut own = 0;
    for mount in mounts.items()?.iter().filter(|at| at.optional("namespace").is_none()) {
        own += 1;
        mount.get("path")?.is(&host.shm_path.to_string_lossy(), "another mount")?;
        let dev = mount.get("dev")?;
        let here = host.shm_dev().map_err(|error| dev.wrong(error.to_string()))?;
        dev.is(&show_dev(here), "another mount")?;
    }
    if own > 1 || mounts.items()?.is_empty() {
        return Err(mounts.wrong("expected one mount of this namespace"));
    }
    Ok(())
}

/// The places that the objects of a plan can be in.
struct Places {
    /// Mounts, by device, and whether they are of message queues.
    mounts: HashMap<String, (usize, u64, bool)>,
    /// IPC namespaces, by number; ours is 0.
    ipc: HashMap<u64, usize>,
}

impl Places {
    fn of(world: &World) -> Self {
        let places = (0..world.places.len()).rev();
        let devices = places.filter_map(|place| Some((place, world.device_of(place).ok()?)));
        let is_queues = |place| world.queues(place).is_some();
        let devices = devices.map(|(place, dev)| (show_dev(dev), (place, dev, is_queues(place))));
        let namespaces = (0..world.places.len()).filter(|place| world.ipc(*place).is_some());
        let number = |place| world.namespace(place).map_or(0, |namespace| namespace.ipc);
        let ipc = namespaces.map(|place| (number(place), place)).collect();
        Self { mounts: devices.collect(), ipc }
    }

    /// The place and the device of an object.
    fn find(&self, at: &At<'_>, kind: Kind) -> Result<(usize, u64), PlanError> {
        let dev = at.get("dev")?;
        let namespace = at.optional("namespace");
        if kind.family().is_some() {
            dev.is(&show_dev(0), "a System V object is on no mount")?;
            let number = namespace.as_ref().map_or(Ok(0), |at| at.get("ipc")?.number())?;
            // Another namespace may have ended since.
            let ended = (number != 0).then_some(usize::MAX);
            let place = self.ipc.get(&number).copied().or(ended);
            let none = || at.wrong("there are no System V objects here");
            return place.map(|place| (place, 0)).ok_or_else(none);
        }
        let found = self.mounts.get(dev.text()?).copied();
        let found = found.filter(|(_, _, queues)| *queues == (kind == Kind::Mqueue));
        let found = found.map(|(place, dev, _)| (place, dev));
        let elsewhere = namespace.and_then(|_| Some((usize::MAX, parse_dev(dev.text().ok()?)?)));
        found.or(elsewhere).ok_or_else(|| dev.wrong("is not on the mount"))
    }
}

fn parse_dev(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// As mountinfo has it.
fn show_dev(dev: u64) -> String {
    format!("{}:{}", libc::major(dev), libc::minor(dev))
}

fn item(at: &At<'_>, places: &Places) -> Result<(Item, Outcome), PlanError> {
    let outcome_at = at.get("outcome")?;
    let outcome = outcome_at.word(&Outcome::ALL, Outcome::as_str)?;
    if outcome.is_removed() || outcome == Outcome::OpenedMeanwhile || outcome == Outcome::Failed {
        return Err(outcome_at.wrong("is no answer of a dry run"));
    }
    let object = object(at, places)?;
    let judgement = judgement(at)?;
    let force = at.optional("forced").map_or(Ok(false), |forced| forced.flag())?;
    let verdict = judgement.verdict;
    if outcome == Outcome::WouldReap {
        let at = at.get("verdict")?;
        if verdict == Verdict::Held || verdict.reapability() == 0 && !force {
            return Err(at.wrong(format!("what is {verdict} is not removed")));
        }
        if is_quarantine_name(&object.file) {
            return Err(at.wrong("a private directory of a reap is not removed"));
        }
    }
    let producer = at.optional("producer").map(|producer| {
        let text = |key| Ok::<_, PlanError>(producer.get(key)?.text()?.to_owned());
        Ok((text("id")?, text("software")?))
    });
    let (producer, user) = (producer.transpose()?, at.get("user")?.text()?.to_owned());
    Ok((Item { object, judgement, user, producer, force }, outcome))
}

fn object(at: &At<'_>, places: &Places) -> Result<Object, PlanError> {
    let kind = at.get("kind")?.word(&Kind::ALL, Kind::as_str)?;
    let name = name(at)?;
    let prefix: &[u8] = if kind == Kind::Sem { b"sem." } else { b"" };
    let file = Name::new([prefix, name.as_bytes()].concat());
    at.get("file")?.is(&file.to_lossy(), "is not what the name says")?;
    let (place, dev) = places.find(at, kind)?;
    let mode_at = at.get("mode")?;
    let permissions = u32::from_str_radix(mode_at.text()?, 8).ok().filter(|mode| *mode <= 0o7777);
    let permissions = permissions.ok_or_else(|| mode_at.wrong("expected permissions, octal"))?;
    let type_bits = match kind {
        Kind::Shm | Kind::Sem | Kind::Mqueue => libc::S_IFREG,
        Kind::Dir => libc::S_IFDIR,
        Kind::Other | Kind::SysvShm | Kind::SysvSem | Kind::SysvMsg => 0,
    };
    let sysv = kind.family().map(|family| sysv::entry(&at.get("sysv")?, family)).transpose()?;
    let ino_at = at.get("ino")?;
    let ino = ino_at.number()?;
    match sysv {
        Some(_) => at.get("name")?.is(&ino.to_string(), "is not what ino says")?,
        None if ino == 0 => return Err(ino_at.wrong("no inode has this number")),
        None => {}
    }
    // Null for a message queue of which they are not known.
    let bytes = |key| match at.optional(key) {
        None if kind == Kind::Mqueue => Ok(0),
        _ => at.get(key)?.number(),
    };
    let (size, allocated) = (bytes("size")?, bytes("allocated")?);
    let changed = at.get("changed_at")?.time()?;
    let born = at.optional("born_at").map(|born| born.time()).transpose()?;
    let directory = if kind == Kind::Dir {
        let entries_at = at.get("entries")?;
        let entries = usize::try_from(entries_at.number()?);
        let inside = at.optional("content_changed_at").map_or(Ok(0), |time| time.time())?;
        Some(Tree {
            entries: entries.map_err(|_| entries_at.wrong("is too large"))?,
            truncated: at.get("truncated")?.flag()?,
            changed: inside,
            size,
            allocated,
            ..Tree::default()
        })
    } else {
        None
    };
    let stat = Stat {
        dev,
        ino,
        mode: type_bits | permissions,
        uid: at.get("uid")?.small()?,
        gid: at.get("gid")?.small()?,
        nlink: 1,
        size,
        allocated,
        born,
        modified: sysv.as_ref().map_or(changed, |entry| entry.used()),
        changed,
    };
    const TYPES: [&str; 4] = ["symlink", "fifo", "socket", "device"];
    let file_type = at.optional("file_type").map(|at| at.word(&TYPES, |one| one)).transpose()?;
    let queue = queue(at, kind)?;
    let sysv = sysv.map(Box::new);
    let object = Object::of(&file, stat);
    let object = Object {
        kind,
        name,
        file_type,
        directory: directory.map(Box::new),
        queue,
        sysv,
        place,
        ..object
    };
    at.get("id")?.is(&object.id(), "is not what kind and name say")?;
    Ok(object)
}

/// What was in a message queue, if that was known.
fn queue(at: &At<'_>, kind: Kind) -> Result<Option<Queue>, PlanError> {
    if kind != Kind::Mqueue {
        return Ok(None);
    }
    let queue = at.get("queue")?;
    if queue.optional("messages").is_none() {
        return Ok(None);
    }
    Ok(Some(Queue {
        messages: queue.get("messages")?.number()?,
        bytes: queue.get("bytes")?.number()?,
        max_messages: queue.get("max_messages")?.number()?,
        message_size: queue.get("message_size")?.number()?,
        notify_pid: None,
    }))
}

/// The exact name: `name`, or `name_base64` where that is not UTF-8.
fn name(at: &At<'_>) -> Result<Name, PlanError> {
    let shown = at.get("name")?;
    let (from, bytes) = match at.optional("name_base64") {
        None => {
            let bytes = shown.text()?.as_bytes().to_vec();
            (shown, bytes)
        }
        Some(exact) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(exact.text()?);
            let bytes = bytes.map_err(|_| exact.wrong("is not base64"))?;
            shown.is(&String::from_utf8_lossy(&bytes), "is not what name_base64 says")?;
            (exact, bytes)
        }
    };
    if bytes.is_empty() || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(from.wrong("no object can have this name"));
    }
    if bytes == b"." || bytes == b".." {
        return Err(from.wrong("no object can have this name"));
    }
    Ok(Name::new(bytes))
}

fn judgement(at: &At<'_>) -> Result<Judgement, PlanError> {
    let verdict = at.get("verdict")?.word(&Verdict::ALL, Verdict::as_str)?;
    let reason_at = at.get("reason")?;
    let reason = reason_at.word(&Code::ALL, Code::as_str)?;
    let mut evidence = Vec::new();
    for piece in at.get("evidence")?.items()? {
        let code = piece.get("code")?.word(&Code::ALL, Code::as_str)?;
        let says = piece.get("says")?.text()?.to_owned();
        let fields = piece.value.as_object().cloned().unwrap_or_default().into_iter();
        let fields = fields.filter(|(key, _)| key != "code" && key != "says");
        let fields = Fields(fields.map(|(key, value)| (key.into(), value)).collect());
        evidence.push(Evidence { code, says, fields });
    }
    if evidence.iter().all(|piece| piece.code != reason) {
        return Err(reason_at.wrong("is not among the evidence"));
    }
    let proof = matches!(reason, Code::AlwaysHeldProducer | Code::NoFamily | Code::NoKin);
    if proof != (verdict == Verdict::Orphaned) {
        return Err(reason_at.wrong(format!("is no reason for {verdict}")));
    }
    Ok(Judgement { verdict, reason, evidence })
}
