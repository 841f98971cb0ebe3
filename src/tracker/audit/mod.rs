//! The record of what was removed: a JSON object a line, an intent before and an outcome after.
//!
//! Every line is complete in itself, so that one that survives its neighbours still says what
//! happened, when, by whom and why. [`Run`] makes the lines, [`Audit`] appends them, `read` takes
//! them apart again.

mod file;
pub mod read;

pub use file::{Audit, AuditError, Place};

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::host::{Clock, host_name, show_exact_time, show_time};
use super::inventory::Object;
use super::resource::{Kind, Name, harmless, insert_name};
use super::service::dialect::Rtype;
use super::survey::owner_name;
use super::sys::Nanoseconds;
use super::sys::ipc::State;
use super::verdict::Judgement;

/// What each line says that it is.
pub const SCHEMA: &str = "rtrack.audit/1";

/// So many bytes of the command line are recorded with each object: xargs(1) fills command lines
/// up to a hundred thousand and more.
const MOST_ARGUMENTS: usize = 4096;

/// `(uid_t) -1`: nobody has logged in (loginuid of proc(5)).
const NO_LOGIN: u32 = u32::MAX;

/// What an object was about to be removed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `rtrack reap`, by its verdict.
    Reap,
    /// `rtrack reap`, since an interrupted one had begun it.
    Settle,
    /// `rtrack daemon`, at the end of its input.
    Clean,
}

impl Action {
    /// The word in the record.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reap => "reap",
            Self::Settle => "settle",
            Self::Clean => "clean",
        }
    }
}

/// Why an object may go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Why<'a> {
    /// Its verdict, unless none is asked for.
    pub judgement: Option<&'a Judgement>,
    /// The operator overrides it.
    pub forced: bool,
    /// The operator asserts that nothing outside of what can be seen uses the mount.
    pub assumed_complete: bool,
    /// The private directory that an interrupted reap left it in.
    pub directory: Option<&'a Name>,
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending<'a> {
    /// The word for it.
    pub outcome: &'a str,
    /// The same in a sentence.
    pub says: &'a str,
    /// The errno, where the system refused.
    pub errno: Option<i32>,
    /// Bytes of memory that are free now; `None` when that is not known.
    pub freed: Option<u64>,
    /// The entry of an archive that has its content.
    pub archived: Option<&'a str>,
}

/// One object of a run: what both its lines say, as the members of a JSON object.
#[derive(Debug, Clone)]
pub struct Entry(String);

/// The members of a JSON object without its braces.
fn members(map: Map<String, Value>) -> String {
    let mut text = harmless(&Value::Object(map).to_string()).into_owned();
    text.pop();
    text.remove(0);
    text
}

/// One run of a program that removes: who, where and when.
#[derive(Debug)]
pub struct Run {
    id: String,
    /// What all lines say, as the members of a JSON object.
    head: String,
    objects: u64,
    wall: fn() -> Nanoseconds,
}

impl Run {
    /// This process; `proc` is where procfs is, `plan` the identity of the plan that it carries
    /// out, if it was given one. Asks the user database, which may take its time.
    #[must_use]
    pub fn new(proc: &Path, plan: Option<&str>) -> Self {
        // The standard library seeds its hashes by the kernel's random numbers.
        let random = RandomState::new().hash_one(std::process::id());
        let boot_id = std::fs::read_to_string(proc.join("sys/kernel/random/boot_id")).ok();
        let mut head = Map::new();
        head.insert("host".into(), json!(host_name()));
        head.insert("boot_id".into(), json!(boot_id.as_deref().map(str::trim)));
        head.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
        head.insert("who".into(), who(proc, std::env::args_os()));
        head.insert("plan".into(), json!(plan));
        let wall = Clock::default().wall;
        Self { id: format!("{random:016x}"), head: members(head), objects: 0, wall }
    }

    /// The next object, as [`object`] or [`registered`] describe it.
    #[must_use]
    pub fn entry(&mut self, action: Action, object: Value, why: Why<'_>) -> Entry {
        self.objects += 1;
        let mut map = Map::new();
        map.insert("run".into(), json!(self.id));
        map.insert("seq".into(), json!(self.objects));
        map.insert("action".into(), json!(action.as_str()));
        let which = members(map);
        let mut map = Map::new();
        map.insert("object".into(), object);
        map.insert("directory".into(), json!(why.directory));
        map.insert("verdict".into(), json!(why.judgement.map(|judgement| judgement.verdict)));
        map.insert("reason".into(), json!(why.judgement.map(|judgement| judgement.reason)));
        let evidence = why.judgement.map(|judgement| judgement.evidence.as_slice());
        map.insert("evidence".into(), json!(evidence.unwrap_or_default()));
        map.insert("forced".into(), json!(why.forced));
        map.insert("assumed_complete".into(), json!(why.assumed_complete));
        Entry(format!("{which},{},{}", self.head, members(map)))
    }

    /// The line to be written before the object is touched.
    #[must_use]
    pub fn intent(&self, entry: &Entry) -> Vec<u8> {
        self.line("intent", entry, "")
    }

    /// The line to be written when it is known what became of it.
    #[must_use]
    pub fn outcome(&self, entry: &Entry, ending: Ending<'_>) -> Vec<u8> {
        let mut map = Map::new();
        map.insert("outcome".into(), json!(ending.outcome));
        map.insert("says".into(), json!(ending.says));
        map.insert("errno".into(), json!(ending.errno));
        map.insert("freed".into(), json!(ending.freed));
        map.extend(ending.archived.map(|entry| ("archived".to_owned(), json!(entry))));
        self.line("outcome", entry, &format!(",{}", members(map)))
    }

    fn line(&self, event: &str, Entry(entry): &Entry, ending: &str) -> Vec<u8> {
        let mut line = Map::new();
        line.insert("schema".into(), json!(SCHEMA));
        line.insert("event".into(), json!(event));
        line.insert("time".into(), json!(show_time((self.wall)())));
        format!("{{{},{entry}{ending}}}\n", members(line)).into_bytes()
    }
}

/// An object as the inventory knows it; `user` is its owner's name.
#[must_use]
pub fn object(object: &Object, user: &str) -> Value {
    let stat = &object.stat;
    let mut map = Map::new();
    map.insert("id".into(), json!(object.id()));
    map.insert("kind".into(), json!(object.kind));
    insert_name(&mut map, object.name.as_bytes());
    map.insert("file".into(), json!(object.file));
    map.insert("dev".into(), json!(format!("{}:{}", libc::major(stat.dev), libc::minor(stat.dev))));
    map.insert("ino".into(), json!(stat.ino));
    map.insert("born_at".into(), json!(stat.born.and_then(show_exact_time)));
    map.insert("mode".into(), json!(format!("{:04o}", stat.mode & 0o7777)));
    map.insert("uid".into(), json!(stat.uid));
    map.insert("user".into(), json!(user));
    map.insert("gid".into(), json!(stat.gid));
    let known = |size: u64| json!((!object.is_of_unknown_size()).then_some(size));
    map.insert("size".into(), known(object.size()));
    map.insert("allocated".into(), known(object.allocated()));
    if let Some(queue) = object.queue {
        map.insert("messages".into(), json!(queue.messages));
    }
    if let Some(entry) = &object.sysv {
        map.insert("key".into(), json!(entry.shown_key()));
        map.insert("creator_uid".into(), json!(entry.creator_uid));
        map.insert("creator_pid".into(), json!(entry.creator()));
        map.insert("changed_at".into(), json!(show_exact_time(stat.changed)));
    }
    Value::Object(map)
}

/// What a tracker knows of something that was registered: `kind` as in ids, and the name.
#[must_use]
pub fn registered(kind: &str, rtype: &str, name: &[u8]) -> Value {
    let plain = name.strip_prefix(b"/").unwrap_or(name);
    let mut map = Map::new();
    map.insert("id".into(), json!(format!("{kind}:{}", String::from_utf8_lossy(plain))));
    map.insert("kind".into(), json!(kind));
    insert_name(&mut map, plain);
    map.insert("rtype".into(), json!(rtype));
    Value::Object(map)
}

/// The same of a file or folder, which was registered by its path: the name is that path. If it is relative,
/// `directory` tells what to.
#[must_use]
pub fn registered_path(rtype: &str, path: &[u8]) -> Value {
    let mut map = Map::new();
    map.insert("id".into(), json!(format!("{rtype}:{}", String::from_utf8_lossy(path))));
    map.insert("kind".into(), json!(rtype));
    insert_name(&mut map, path);
    map.insert("rtype".into(), json!(rtype));
    if !path.starts_with(b"/")
        && let Ok(directory) = std::env::current_dir()
    {
        map.insert("directory".into(), json!(directory.to_string_lossy()));
    }
    Value::Object(map)
}

/// The same of a System V object, which was registered by its id, with what the kernel said of it before.
#[must_use]
pub fn registered_by_id(rtype: Rtype, name: &[u8], state: Option<&State>) -> Value {
    let kind = match rtype {
        Rtype::SysvShm => Kind::SysvShm,
        Rtype::SysvSem => Kind::SysvSem,
        _ => Kind::SysvMsg,
    };
    let mut map = Map::new();
    map.insert("id".into(), json!(format!("{kind}:{}", String::from_utf8_lossy(name))));
    map.insert("kind".into(), json!(kind));
    insert_name(&mut map, name);
    map.insert("rtype".into(), json!(rtype.as_str()));
    if let Some(state) = state {
        map.insert("mode".into(), json!(format!("{:04o}", state.mode & 0o777)));
        map.insert("uid".into(), json!(state.uid));
        map.insert("user".into(), json!(owner_name(state.uid)));
        map.insert("gid".into(), json!(state.gid));
        // Of a set it is how many semaphores there are, and of a queue it is not told.
        if kind == Kind::SysvShm {
            map.insert("size".into(), json!(state.size));
            map.insert("creator_pid".into(), json!(state.creator));
        }
        map.insert("key".into(), json!(format!("0x{:08x}", state.key)));
        map.insert("creator_uid".into(), json!(state.creator_uid));
        let changed = Nanoseconds::from(state.changed) * 1_000_000_000;
        map.insert("changed_at".into(), json!(show_exact_time(changed)));
    }
    Value::Object(map)
}

/// Who runs this process.
fn who(proc: &Path, arguments: impl Iterator<Item = OsString>) -> Value {
    let uid = nix::unistd::getuid().as_raw();
    let login = std::fs::read_to_string(proc.join("self/loginuid")).ok();
    let login = login.and_then(|text| text.trim().parse().ok()).filter(|uid| *uid != NO_LOGIN);
    let mut map = Map::new();
    map.insert("uid".into(), json!(uid));
    map.insert("euid".into(), json!(nix::unistd::geteuid().as_raw()));
    map.insert("user".into(), json!(owner_name(uid)));
    map.insert("login_uid".into(), json!(login));
    map.insert("login_user".into(), json!(login.map(owner_name)));
    map.insert("pid".into(), json!(std::process::id()));
    insert_command(&mut map, arguments);
    Value::Object(map)
}

/// The arguments, as many as there is room for, and how many were left out.
fn insert_command(map: &mut Map<String, Value>, arguments: impl Iterator<Item = OsString>) {
    let (mut kept, mut left_out, mut room) = (Vec::new(), 0_usize, MOST_ARGUMENTS);
    for argument in arguments {
        match room.checked_sub(argument.len()) {
            Some(rest) if left_out == 0 => {
                room = rest;
                kept.push(argument);
            }
            _ => left_out += 1,
        }
    }
    let lossy: Vec<_> = kept.iter().map(|argument| argument.to_string_lossy()).collect();
    map.insert("command".into(), json!(lossy));
    if kept.iter().any(|argument| argument.to_str().is_none()) {
        let exact = kept.iter().map(|argument| STANDARD.encode(argument.as_bytes()));
        let exact: Vec<_> = exact.collect();
        map.insert("command_base64".into(), json!(exact));
    }
    if left_out > 0 {
        map.insert("arguments_left_out".into(), json!(left_out));
    }
}
