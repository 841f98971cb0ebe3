//! The journal of a daemon, which never keeps it from its work: what cannot be written down is warned of.

use std::path::Path;
use std::time::{Duration, Instant};

use super::dialect::Rtype;
use super::found;
use super::listener::Peer;
use crate::tracker::deadline;
use crate::tracker::host::{boot_id, pid_namespace, wall_clock};
use crate::tracker::journal::{
    Batch, Entry, Header, Journal, JournalError, Owned, Owner, Record, Recovered, Registration,
};
use crate::tracker::resource::{Identity, escape};
use crate::tracker::sys::{Nanoseconds, Stat};

/// What a batch may grow to while it cannot be written, in bytes. What is beyond is lost to the journal.
const BACKLOG: usize = 64 << 20;

/// How long after there was no room for a journal that is written anew this is tried again: all of it is read for that.
const AGAIN: Duration = Duration::from_secs(1);

/// What a predecessor left that is still registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// Its type.
    pub rtype: Rtype,
    /// Its name, as it was registered.
    pub name: Vec<u8>,
    /// How often it was registered.
    pub count: u64,
    /// What the name belonged to when it was registered, if that is known.
    pub identity: Option<Identity>,
    /// When it was registered.
    pub at: Nanoseconds,
}

impl Inherited {
    /// Whether it is a path of which is not known what had it: it is only left to an owner that lives.
    #[must_use]
    pub fn is_bare_path(&self) -> bool {
        self.identity.is_none() && is_path(self.rtype)
    }
}

/// An owner of a predecessor's, and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heir {
    /// Its number; 0 is everybody who writes to a pipe.
    pub id: u64,
    /// The process, if it is of this boot.
    pub process: Option<Owner>,
    /// What it has registered.
    pub entries: Vec<Inherited>,
}

/// What a journal says of a predecessor.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Who has something registered.
    pub heirs: Vec<Heir>,
    /// The least number for a new owner.
    pub next_owner: u64,
    /// What has to be said: what was damaged, and what is left alone and why.
    pub warnings: Vec<String>,
}

/// Where registrations are written down, if anywhere.
#[derive(Debug, Default)]
pub struct Ledger {
    journal: Option<(Journal, Batch)>,
    /// What was registered last is not in it, or not where the next daemon looks; that was warned of.
    failing: bool,
    /// A batch had no more room for something: it is not to be had any more.
    incomplete: bool,
    /// Writing the journal anew failed, and that was warned of.
    growing: bool,
    /// When there was last no room, not even after writing it anew.
    full: Option<Instant>,
}

impl Ledger {
    /// Opens the journal at `path`, and answers with what a predecessor that is dead has left.
    ///
    /// # Errors
    /// See [`JournalError`]: a live daemon has it, it is no journal, it cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Inheritance), JournalError> {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let proc = Path::new("/proc");
        let (boot_id, namespace) = (boot_id(proc), pid_namespace(proc));
        let (journal, recovered) =
            Journal::open(path, Header { boot_id, made: wall_clock(), pid })?;
        let batch = journal.batch().in_namespace(namespace);
        let sight = Sight { namespace, lives: &lives, look: &look };
        let inheritance = recovered.map_or_else(
            || Inheritance { next_owner: 1, ..Inheritance::default() },
            |recovered| inherit(path, recovered, &sight),
        );
        Ok((Self { journal: Some((journal, batch)), ..Self::default() }, inheritance))
    }

    /// Whether anything is written down.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.journal.is_some()
    }

    /// Whether there is a journal, and something that is registered is not in it, or would not be found there.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing || self.incomplete
    }

    /// It is registered.
    pub fn registered(&mut self, owner: u64, entry: &Inherited) {
        let rtype = entry.rtype.as_str().as_bytes();
        let Inherited { name, count, identity, at, .. } = entry;
        let (count, identity, at) = (*count, *identity, *at);
        self.push(&Record::Register(Registration { owner, rtype, name, count, identity, at }));
    }

    /// It is registered so often now.
    pub fn counted(&mut self, owner: u64, rtype: Rtype, name: &[u8], count: u64) {
        let rtype = rtype.as_str().as_bytes();
        self.push(&Record::Count { owner, rtype, name, count });
    }

    /// It was taken back, or dealt with.
    pub fn taken_back(&mut self, owner: u64, rtype: Rtype, name: &[u8]) {
        let rtype = rtype.as_str().as_bytes();
        self.push(&Record::Unregister { owner, rtype, name });
    }

    /// Somebody who will register.
    pub fn announced(&mut self, owner: Owner) {
        self.push(&Record::Owner(owner));
    }

    /// All of an owner's is dealt with.
    pub fn ended(&mut self, owner: u64) {
        self.push(&Record::Ended { owner });
    }

    fn push(&mut self, record: &Record<'_>) {
        if let Some((_, batch)) = &mut self.journal {
            if batch.len() < BACKLOG {
                // No name that a daemon takes is too long for it.
                batch.push(record).unwrap_or(());
            } else {
                self.incomplete = true;
            }
        }
    }

    /// Writes down what has changed since the last call; what there is to be warned of, once as long as it lasts.
    pub fn write(&mut self) -> Option<String> {
        let (journal, batch) = self.journal.as_mut()?;
        if batch.is_empty() {
            return None;
        }
        // First, so that what follows is in the new file.
        let named = journal.keep_name();
        let mut written = journal.append(batch).map(|()| None);
        if matches!(&written, Err(error) if error.lacks_room())
            && self.full.is_none_or(|at| at.elapsed() >= AGAIN)
        {
            written = journal.make_room(batch).map(Some);
            self.full = written.is_err().then(Instant::now);
        }
        let anew = match written {
            Ok(Some(compacted)) => Ok(Some(compacted)),
            Ok(None) => {
                self.full = None;
                journal.compact_if_due()
            }
            Err(error) => return self.warn_of(&error),
        };
        let named = match named {
            Ok(named) => named,
            Err(error) => return self.warn_of(&error),
        };
        self.failing = false;
        let anew = match anew {
            Ok(anew) => anew,
            // It is all there, in more bytes than it needs. Room is made when there is none left to append.
            Err(error) if self.growing || error.lacks_room() => None,
            Err(error) => {
                self.growing = true;
                return Some(format!("{error}: it grows, and is not written anew"));
            }
        };
        self.growing &= anew.is_none();
        let bytes: u64 = anew.iter().chain(&named).map(|compacted| compacted.damage.bytes).sum();
        if bytes > 0 {
            return Some(format!(
                "the journal was damaged while it was in use: {bytes} bytes of it are lost"
            ));
        }
        let path = escape(journal.path().as_os_str().as_encoded_bytes());
        named.map(|_| format!("journal {path}: it was removed or moved away while it was in use, and is written anew"))
    }

    fn warn_of(&mut self, error: &JournalError) -> Option<String> {
        let before = std::mem::replace(&mut self.failing, true);
        (!before).then(|| {
            format!("{error}: what is registered from now on may be lost if the daemon is killed")
        })
    }
}

/// A type and a name.
type Place = (Rtype, Vec<u8>);

/// What can be found out of what was registered.
struct Sight<'a> {
    /// The PID namespace of this process; 0 is not known.
    namespace: u64,
    /// Whether that process of it lives.
    lives: &'a dyn Fn(&Owner) -> bool,
    /// What has these paths; nothing for one that has no answer in time.
    look: &'a dyn Fn(Vec<Place>) -> Vec<Option<Stat>>,
}

fn lives(owner: &Owner) -> bool {
    Peer::of_the_past(owner).is_ok_and(|peer| !peer.has_ended())
}

/// Whoever registered a path may have chosen a file system that never answers.
fn look(paths: Vec<Place>) -> Vec<Option<Stat>> {
    let found = deadline::map(paths, |(rtype, name)| found::anywhere(rtype, &name));
    found.into_iter().map(|found| found.ok().flatten()).collect()
}

/// What of a journal still counts: of another boot, files and folders that are still what they were; of what was
/// damaged, what was surely not taken back; of owners, those of which is known whether they live.
fn inherit(path: &Path, recovered: Recovered, sight: &Sight<'_>) -> Inheritance {
    let shown = escape(path.as_os_str().as_encoded_bytes());
    let mut warnings = Vec::new();
    if recovered.is_damaged() {
        let (places, bytes) = (recovered.damage.places, recovered.damage.bytes);
        warnings.push(format!(
            "journal {shown}: damaged in {places} places, {bytes} bytes are left out"
        ));
    }
    let next_owner = recovered.next_owner;
    let mut same = still_the_same(&recovered.owners, sight).into_iter();
    let mut heirs = Vec::new();
    let (mut doubtful, mut earlier, mut strange, mut foreign) =
        (0_usize, 0_usize, 0_usize, 0_usize);
    for owned in recovered.owners {
        let Owned { id, process, earlier: owner_of_earlier, namespace, entries } = owned;
        let is_foreign = process.is_some()
            && !owner_of_earlier
            && (namespace == 0 || namespace != sight.namespace);
        let process = process.filter(|_| !owner_of_earlier && !is_foreign);
        let lives = process.as_ref().is_some_and(sight.lives);
        let mut kept = Vec::new();
        for entry in entries {
            let is_same = has_to_be_the_same(&entry) && same.next().unwrap_or(false);
            let Some(rtype) = Rtype::from_word(&entry.rtype) else {
                strange += 1;
                continue;
            };
            if entry.doubtful {
                doubtful += 1;
                continue;
            }
            if is_foreign {
                foreign += 1;
                continue;
            }
            // What was in memory is gone with the boot. And after a death a path alone says nothing; but of who lives,
            // it is what a daemon that was not killed would have.
            let is_bare = is_path(rtype) && entry.identity.is_none();
            let counts = match (is_path(rtype), entry.earlier) {
                (true, true) => is_same,
                (true, false) => is_same || is_bare && lives,
                (false, earlier) => !earlier,
            };
            if !counts {
                earlier += 1;
                continue;
            }
            let Entry { name, count, identity, at, .. } = entry;
            kept.push(Inherited { rtype, name, count, identity, at });
        }
        heirs.push(Heir { id, process, entries: kept });
    }
    for (count, why) in [
        (doubtful, "may have been taken back in a part that is damaged"),
        (earlier, "are of an earlier boot, or files that are not known to be the same"),
        (strange, "are of a type that is not known"),
        (foreign, "are of processes that are not known in this PID namespace"),
    ] {
        if count > 0 {
            warnings.push(format!("journal {shown}: {count} names {why}: they are left alone"));
        }
    }
    Inheritance { heirs, next_owner, warnings }
}

fn is_path(rtype: Rtype) -> bool {
    matches!(rtype, Rtype::File | Rtype::Folder)
}

/// Whether that is a path that belonged to something when it was registered. Of no others it is even looked what has them.
fn has_to_be_the_same(entry: &Entry) -> bool {
    entry.identity.is_some() && Rtype::from_word(&entry.rtype).is_some_and(is_path)
}

/// Of each entry that [`has_to_be_the_same`], in their order, whether it is.
fn still_the_same(owners: &[Owned], sight: &Sight<'_>) -> Vec<bool> {
    let entries = || {
        let entries = owners.iter().flat_map(|owned| &owned.entries);
        entries.filter(|entry| has_to_be_the_same(entry))
    };
    let paths = entries().filter_map(|entry| {
        Rtype::from_word(&entry.rtype).map(|rtype| (rtype, entry.name.clone()))
    });
    let now = (sight.look)(paths.collect());
    let is_same = |(entry, now): (&Entry, Option<Stat>)| {
        entry.identity.zip(now).is_some_and(|(then, now)| then.is(&now))
    };
    entries().zip(now).map(is_same).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::tracker::journal::Damage;
    use crate::tracker::sys;

    const OURS: u64 = 5;

    /// The number of an owner, and the names that it keeps.
    type Kept = (u64, Vec<String>);

    fn owned(id: u64, namespace: u64, entries: &[(&str, &str, Option<u64>)]) -> Owned {
        let pid = i32::try_from(id).unwrap();
        let process = Owner { id, pid, start_ticks: 1, uid: 0, gid: 0 };
        let entries = entries.iter().map(|(rtype, name, ino)| Entry {
            rtype: rtype.as_bytes().to_vec(),
            name: name.as_bytes().to_vec(),
            count: 1,
            identity: ino.map(|ino| Identity { dev: 1, ino, born: None, sysv: None }),
            at: 1,
            earlier: false,
            doubtful: false,
        });
        let entries = entries.collect();
        Owned { id, process: (id > 0).then_some(process), earlier: false, namespace, entries }
    }

    /// What is left of it where the processes of odd pids live, and the names of what was looked at.
    fn left(owners: Vec<Owned>) -> (Vec<Kept>, String, Vec<String>) {
        let header = Header { boot_id: "b".into(), made: 1, pid: 1 };
        let damage = Damage::default();
        let recovered = Recovered { header, owners, damage, torn: 0, end: 0, next_owner: 9 };
        let looked = RefCell::new(Vec::new());
        let look = |paths: Vec<Place>| {
            let now = |name: &[u8]| (name == b"/same").then(|| Stat { dev: 1, ino: 7, ..blank() });
            let found = paths.iter().map(|(_, name)| now(name)).collect();
            let paths = paths.into_iter().map(|(_, name)| String::from_utf8(name).unwrap());
            looked.borrow_mut().extend(paths);
            found
        };
        let lives = |owner: &Owner| owner.pid % 2 == 1;
        let sight = Sight { namespace: OURS, lives: &lives, look: &look };
        let inheritance = inherit(Path::new("j"), recovered, &sight);
        let heirs = inheritance.heirs.into_iter().map(|heir| {
            let names = heir.entries.into_iter();
            (heir.id, names.map(|entry| String::from_utf8(entry.name).unwrap()).collect())
        });
        (heirs.collect(), inheritance.warnings.join("\n"), looked.into_inner())
    }

    fn blank() -> Stat {
        let mut stat = sys::stat(nix::fcntl::AT_FDCWD, c"/").unwrap();
        stat.born = None;
        stat
    }

    #[test]
    fn paths_without_an_identity_are_of_owners_that_live() {
        let entries =
            [("file", "/bare", None), ("shared_memory", "/m", None), ("file", "/same", Some(7))];
        let (heirs, said, looked) = left((0..3).map(|id| owned(id, OURS, &entries)).collect());
        let dead = vec!["/m".to_owned(), "/same".to_owned()];
        let alive = vec!["/bare".to_owned(), "/m".to_owned(), "/same".to_owned()];
        assert_eq!(heirs, [(0, dead.clone()), (1, alive), (2, dead)]);
        assert!(said.contains("2 names are of an earlier boot, or files"), "{said}");
        // Nobody's path is looked at for nothing.
        assert_eq!(looked, ["/same"; 3]);
    }

    #[test]
    fn another_file_is_left_alone_even_of_who_lives() {
        let entries = [("file", "/same", Some(8)), ("folder", "/gone", Some(7))];
        let (heirs, said, _) = left(vec![owned(1, OURS, &entries)]);
        assert_eq!(heirs, [(1, vec![])]);
        assert!(said.contains("2 names are of an earlier boot, or files"), "{said}");
    }

    #[test]
    fn who_is_of_another_pid_namespace_may_live() {
        let entries = [("shared_memory", "/m", None)];
        for namespace in [0, OURS + 1] {
            let (heirs, said, _) = left(vec![owned(0, 0, &entries), owned(2, namespace, &entries)]);
            assert_eq!(heirs, [(0, vec!["/m".to_owned()]), (2, vec![])]);
            assert!(said.contains("1 names are of processes that are not known"), "{said}");
        }
    }
}
