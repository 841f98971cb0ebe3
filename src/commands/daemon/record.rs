//! The daemon's record, which never keeps it from its work: what the file does not take in time, or
//! at all, is warned of, and that is all.

use std::path::{Path, PathBuf};

use super::patience::{OPENING, Trouble, WRITING, within};

use crate::tracker::audit::{self, Action, Audit, AuditError, Ending, Place, Run, Why};
use crate::tracker::reap::Outcome;
use crate::tracker::reap::registered::{Fate, RemoveError};
use crate::tracker::service::dialect::Rtype;
use crate::tracker::service::server::Removal;

/// The record, as long as nothing has gone wrong with it.
pub(super) struct Record {
    path: PathBuf,
    open: Option<(Audit, Run)>,
}

impl Record {
    /// Opens it, and says what went wrong with that.
    pub(super) fn open(path: &Path) -> (Self, Option<String>) {
        let place = Place::Given(path.into());
        let open = move || Ok((Audit::open(&place)?, Run::new(Path::new("/proc"), None)));
        let (open, error) = match within(OPENING, "audit", open) {
            Ok(open) => (Some(open), None),
            Err(error) => (None, Some(error)),
        };
        let record = Self { path: path.into(), open };
        let error = error.map(|error| record.warning(&error, "nothing is recorded"));
        (record, error)
    }

    /// Writes what was removed, and says what went wrong with that. Nothing more is written then.
    pub(super) fn write(&mut self, removals: Vec<Removal>) -> Option<String> {
        let (mut audit, mut run) = self.open.take()?;
        let write = move || {
            for line in removals.iter().filter_map(|removal| line(&mut run, removal)) {
                audit.append(&line)?;
            }
            Ok((audit, run))
        };
        match within(WRITING, "audit", write) {
            Ok(open) => {
                self.open = Some(open);
                None
            }
            Err(error) => Some(self.warning(&error, "not everything that was removed is recorded")),
        }
    }

    fn warning(&self, error: &Trouble<AuditError>, says: &str) -> String {
        let path = crate::tracker::resource::escape(self.path.as_os_str().as_encoded_bytes());
        match error {
            Trouble::Failed(error) => format!("{error}: {}: {says}", error.source),
            Trouble::Late => format!("audit {path}: no answer in time: {says}"),
            Trouble::Thread(error) => format!("audit {path}: make a thread: {error}: {says}"),
        }
    }
}

/// The line about a removal; nothing for test types, behind which there is nothing.
fn line(run: &mut Run, removal: &Removal) -> Option<Vec<u8>> {
    let Removal { rtype, name, given_up, fate, state, .. } = removal;
    let object = match rtype {
        Rtype::Noop | Rtype::Dummy => return None,
        Rtype::Semaphore | Rtype::Semlock => audit::registered("sem", rtype.as_str(), name),
        Rtype::SharedMemory => audit::registered("shm", rtype.as_str(), name),
        Rtype::MessageQueue => audit::registered("mqueue", rtype.as_str(), name),
        Rtype::SysvShm | Rtype::SysvSem | Rtype::SysvMsg => {
            audit::registered_by_id(*rtype, name, state.as_ref())
        }
        Rtype::File | Rtype::Folder => audit::registered_path(rtype.as_str(), name),
    };
    let errno = match fate {
        Fate::Failed(error) => RemoveError::errno(error),
        Fate::Removed(_) | Fate::Kept(_) | Fate::Changed => None,
    };
    let outcome = match fate {
        Fate::Removed(_) => Outcome::Reaped,
        Fate::Kept(_) => Outcome::Held,
        // What is there now was never registered.
        Fate::Changed => return None,
        Fate::Failed(_) if errno == Some(libc::ENOENT) => Outcome::Gone,
        Fate::Failed(_) => Outcome::Failed,
    };
    let why = match given_up {
        true => "since its last user gave it up",
        false => "since it was registered and never taken back",
    };
    let attached = state.filter(|_| *rtype == Rtype::SysvShm).map_or(0, |state| state.count);
    let says = match fate {
        Fate::Removed(0) if attached > 0 => {
            format!("removed, {why}; its memory goes with the last of {attached} attachments")
        }
        Fate::Removed(0) => format!("removed, {why}"),
        Fate::Removed(1) => format!("removed with the entry that was in it, {why}"),
        Fate::Removed(entries) => {
            format!("removed with the {entries} entries that were in it, {why}")
        }
        Fate::Kept(why) => format!("not removed: {why}"),
        Fate::Changed => return None,
        Fate::Failed(error) => error.to_string(),
    };
    let entry = run.entry(Action::Clean, object, Why::default());
    let ending =
        Ending { outcome: outcome.as_str(), says: &says, errno, freed: None, archived: None };
    Some(run.outcome(&entry, ending))
}
