//! What is registered with live daemons of rtrack that can be asked.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::processes::{COMM, Processes};
use crate::tracker::deadline;
use crate::tracker::inventory::Object;
use crate::tracker::resource::{Identity, Kind};
use crate::tracker::service::client::asking::{self, AskError, Budget, ask, control_of};
use crate::tracker::service::dialect::Rtype;
use crate::tracker::service::ledger::Heir;
use crate::tracker::service::state::{Registered, TrackerState};

/// By what an object is found among what is registered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// A name in /dev/shm.
    File(Vec<u8>),
    /// The name of a message queue.
    Queue(Vec<u8>),
    /// The id of a System V object.
    Id(Kind, u64),
}

/// That an object is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The daemon.
    pub tracker: i32,
    /// Its effective uid.
    pub uid: u32,
    /// Who registered it, if that is known: pid and name.
    pub by: Option<(i32, Vec<u8>)>,
}

/// What is registered with all daemons that answered.
#[derive(Debug, Default)]
pub struct Registrations {
    known: HashMap<Key, Vec<Registration>>,
    /// Daemons that can be asked by us, and did not answer: each with its uid, lowest pid first. What they have is not known.
    pub silent: Vec<(i32, u32)>,
}

impl Registrations {
    /// Asks every daemon among `processes` that was started with `--control`.
    #[must_use]
    pub fn look(proc: &Path, processes: &mut Processes) -> Self {
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        let may_be = |pid: &i32| *pid != me;
        let pids: Vec<i32> = processes
            .running()
            .filter(|process| process.comm == COMM)
            .map(|process| process.pid)
            .filter(may_be)
            .collect();
        let mut found = Self::default();
        if pids.is_empty() {
            return found;
        }
        let lines = processes.command_lines(proc, pids);
        let mut jobs: Vec<(i32, [u32; 4], Vec<u8>)> = lines
            .into_iter()
            .filter_map(|(pid, line)| {
                let line = line.filter(|line| control_of(line).is_some())?;
                Some((pid, processes.seen.get(&pid)?.uids, line))
            })
            .collect();
        jobs.sort_unstable();
        let asked: Vec<(i32, u32)> = jobs.iter().map(|(pid, uids, _)| (*pid, uids[1])).collect();
        let (root, budget) = (proc.to_owned(), Arc::new(Budget::default()));
        let answers = deadline::map_within(asking::LIMIT, jobs, move |(pid, uids, line)| {
            ask(&root, pid, uids, &line, &budget)
        });
        for ((pid, uid), answer) in asked.into_iter().zip(answers) {
            match answer {
                Ok(Ok(state)) => found.add(pid, uid, state),
                // Not for us to ask, no daemon as we know them, or one that has none any more.
                Ok(Err(
                    AskError::NotForUs(_)
                    | AskError::NotOneUsers(_)
                    | AskError::NoControl(_)
                    | AskError::Gone(_),
                )) => {}
                // Whoever can keep it from answering must not take a claim away by that.
                Ok(Err(_)) | Err(_) => found.silent.push((pid, uid)),
            }
        }
        found
    }

    /// What one daemon, of user `uid`, has.
    #[must_use]
    pub fn of_one(tracker: i32, uid: u32, state: TrackerState) -> Self {
        let mut found = Self::default();
        found.add(tracker, uid, state);
        found
    }

    /// How many names of objects of the kinds that are listed are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn add(&mut self, tracker: i32, uid: u32, state: TrackerState) {
        for registered in state.registered {
            let Registered { rtype, name, .. } = &registered;
            let Some(key) = key_of(*rtype, name) else { continue };
            let by = registered.by.map(|by| (by.pid, by.comm));
            self.known.entry(key).or_default().push(Registration { tracker, uid, by });
        }
    }

    /// With which daemons an object is registered. Only a daemon of root or of the object's owner
    /// counts: others could not remove it, and may say anything.
    pub fn of(&self, object: &Object) -> impl Iterator<Item = &Registration> {
        let owner = object.stat.uid;
        let all =
            self.known.get(&Key::of(object)).filter(|_| !object.deleted).into_iter().flatten();
        all.filter(move |registration| [0, owner].contains(&registration.uid))
    }

    /// Daemons that did not answer, and with which an object may be registered: those that could remove it.
    pub fn perhaps_of(&self, object: &Object) -> impl Iterator<Item = i32> {
        let owner = object.stat.uid;
        let all = self.silent.iter().filter(|_| !object.deleted);
        all.filter(move |(_, uid)| [0, owner].contains(uid)).map(|(pid, _)| *pid)
    }
}

/// What a daemon that was killed had registered, by its journal.
#[derive(Debug, Default)]
pub struct Left(HashMap<Key, Vec<Option<Identity>>>);

impl Left {
    /// What the heirs have.
    #[must_use]
    pub fn new(heirs: &[Heir]) -> Self {
        let mut left: HashMap<Key, Vec<Option<Identity>>> = HashMap::new();
        for entry in heirs.iter().flat_map(|heir| &heir.entries) {
            if let Some(key) = key_of(entry.rtype, &entry.name) {
                left.entry(key).or_default().push(entry.identity);
            }
        }
        Self(left)
    }

    /// Whether the name of an object is among them, whatever had it then.
    #[must_use]
    pub fn names(&self, object: &Object) -> bool {
        self.0.contains_key(&Key::of(object))
    }

    /// Whether an object is one of them: it has the name, and is what had it then, if that is known.
    #[must_use]
    pub fn has(&self, object: &Object) -> bool {
        let known = self.0.get(&Key::of(object)).filter(|_| !object.deleted);
        let is = |then: &Option<Identity>| then.is_none_or(|then| then == object.identity());
        known.is_some_and(|known| known.iter().any(is))
    }
}

impl Key {
    fn of(object: &Object) -> Self {
        match object.kind {
            Kind::Shm | Kind::Sem | Kind::Dir | Kind::Other => {
                Self::File(object.file.as_bytes().to_vec())
            }
            Kind::Mqueue => Self::Queue(object.file.as_bytes().to_vec()),
            kind => Self::Id(kind, object.stat.ino),
        }
    }
}

/// What a registered name means. The C library's rules for names: leading slashes count for nothing.
fn key_of(rtype: Rtype, name: &[u8]) -> Option<Key> {
    let bare = || {
        let first = name.iter().position(|byte| *byte != b'/')?;
        name.get(first..).filter(|rest| !rest.contains(&b'/'))
    };
    let id = |kind| Some(Key::Id(kind, std::str::from_utf8(name).ok()?.parse().ok()?));
    match rtype {
        Rtype::SharedMemory => Some(Key::File(bare()?.to_vec())),
        Rtype::Semaphore | Rtype::Semlock => Some(Key::File([b"sem.", bare()?].concat())),
        Rtype::File | Rtype::Folder => {
            let inside = name.strip_prefix(b"/dev/shm/")?;
            let inside = inside.strip_suffix(b"/").unwrap_or(inside);
            (!inside.is_empty() && !inside.contains(&b'/')).then(|| Key::File(inside.to_vec()))
        }
        Rtype::MessageQueue => Some(Key::Queue(bare()?.to_vec())),
        Rtype::SysvShm => id(Kind::SysvShm),
        Rtype::SysvSem => id(Kind::SysvSem),
        Rtype::SysvMsg => id(Kind::SysvMsg),
        Rtype::Noop | Rtype::Dummy => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_mean() {
        for (rtype, name, key) in [
            (Rtype::SharedMemory, &b"//psm_1"[..], Some(Key::File(b"psm_1".to_vec()))),
            (Rtype::SharedMemory, b"sem.x", Some(Key::File(b"sem.x".to_vec()))),
            (Rtype::SharedMemory, b"a/b", None),
            (Rtype::SharedMemory, b"/", None),
            (Rtype::Semaphore, b"/mp-1", Some(Key::File(b"sem.mp-1".to_vec()))),
            (Rtype::Folder, b"/dev/shm/joblib_1/", Some(Key::File(b"joblib_1".to_vec()))),
            (Rtype::File, b"/dev/shm/a/b", None),
            (Rtype::File, b"/tmp/a", None),
            (Rtype::MessageQueue, b"/q", Some(Key::Queue(b"q".to_vec()))),
            (Rtype::SysvShm, b"32768", Some(Key::Id(Kind::SysvShm, 32768))),
            (Rtype::SysvMsg, b"x", None),
            (Rtype::Dummy, b"x", None),
        ] {
            assert_eq!(key_of(rtype, name), key, "{rtype} {name:?}");
        }
    }
}
