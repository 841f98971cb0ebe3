//! The journal of a daemon, which never keeps it from its work: what cannot be written down is warned of.

use std::path::Path;

use super::dialect::Rtype;
use super::found;
use crate::tracker::host::{boot_id, wall_clock};
use crate::tracker::journal::{
    Batch, Header, Journal, JournalError, Owned, Owner, Record, Recovered, Registration,
};
use crate::tracker::resource::{Identity, escape};
use crate::tracker::sys::Nanoseconds;

/// What a batch may grow to while it cannot be written, in bytes. What is beyond is lost to the journal.
const BACKLOG: usize = 64 << 20;

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
    failing: bool,
}

impl Ledger {
    /// Opens the journal at `path`, and answers with what a predecessor that is dead has left.
    ///
    /// # Errors
    /// See [`JournalError`]: a live daemon has it, it is no journal, it cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Inheritance), JournalError> {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let boot_id = boot_id(Path::new("/proc"));
        let (journal, recovered) =
            Journal::open(path, Header { boot_id, made: wall_clock(), pid })?;
        let batch = journal.batch();
        let inheritance = recovered.map_or_else(
            || Inheritance { next_owner: 1, ..Inheritance::default() },
            |recovered| inherit(path, recovered),
        );
        Ok((Self { journal: Some((journal, batch)), failing: false }, inheritance))
    }

    /// Whether anything is written down.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.journal.is_some()
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
        if let Some((_, batch)) = &mut self.journal
            && batch.len() < BACKLOG
        {
            // No name that a daemon takes is too long for it.
            batch.push(record).unwrap_or(());
        }
    }

    /// Writes down what has changed since the last call; what there is to be warned of, once as long as it lasts.
    pub fn write(&mut self) -> Option<String> {
        let (journal, batch) = self.journal.as_mut()?;
        if batch.is_empty() {
            return None;
        }
        let written = journal.append(batch).and_then(|()| journal.compact_if_due());
        match written {
            Ok(compacted) => {
                self.failing = false;
                let damage = compacted.filter(|compacted| compacted.damage.places > 0)?;
                let bytes = damage.damage.bytes;
                Some(format!(
                    "the journal was damaged while it was in use: {bytes} bytes of it are lost"
                ))
            }
            Err(_) if self.failing => None,
            Err(error) => {
                self.failing = true;
                Some(format!(
                    "{error}: what is registered from now on may be lost if the daemon is killed"
                ))
            }
        }
    }
}

/// What of a journal still counts: of another boot, files and folders that are still what they were; of what was
/// damaged, what was surely not taken back.
fn inherit(path: &Path, recovered: Recovered) -> Inheritance {
    let shown = escape(path.as_os_str().as_encoded_bytes());
    let mut warnings = Vec::new();
    if recovered.is_damaged() {
        let (places, bytes) = (recovered.damage.places, recovered.damage.bytes);
        warnings.push(format!(
            "journal {shown}: damaged in {places} places, {bytes} bytes are left out"
        ));
    }
    let next_owner = recovered.next_owner;
    let mut heirs = Vec::new();
    let (mut doubtful, mut earlier, mut strange) = (0_usize, 0_usize, 0_usize);
    for Owned { id, process, earlier: owner_of_earlier, entries } in recovered.owners {
        let mut kept = Vec::new();
        for entry in entries {
            let Some(rtype) = Rtype::from_word(&entry.rtype) else {
                strange += 1;
                continue;
            };
            if entry.doubtful {
                doubtful += 1;
                continue;
            }
            let is_path = matches!(rtype, Rtype::File | Rtype::Folder);
            let is_itself = || {
                let now = found::anywhere(rtype, &entry.name);
                entry.identity.zip(now).is_some_and(|(then, now)| then.is(&now))
            };
            // What was in memory is gone with the boot; and a path alone says nothing after a death.
            if entry.earlier && !(is_path && is_itself()) || is_path && !is_itself() {
                earlier += usize::from(entry.earlier || is_path);
                continue;
            }
            let crate::tracker::journal::Entry { name, count, identity, at, .. } = entry;
            kept.push(Inherited { rtype, name, count, identity, at });
        }
        let process = process.filter(|_| !owner_of_earlier);
        heirs.push(Heir { id, process, entries: kept });
    }
    for (count, why) in [
        (doubtful, "may have been taken back in a part that is damaged"),
        (earlier, "are of an earlier boot, or files that are not known to be the same"),
        (strange, "are of a type that is not known"),
    ] {
        if count > 0 {
            warnings.push(format!("journal {shown}: {count} names {why}: they are left alone"));
        }
    }
    Inheritance { heirs, next_owner, warnings }
}
