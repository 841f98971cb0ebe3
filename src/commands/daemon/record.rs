//! The daemon's record, which never keeps it from its work: what the file does not take in time, or
//! at all, is warned of, and that is all.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;

use crate::tracker::audit::{self, Action, Audit, AuditError, Ending, Place, Run, Why};
use crate::tracker::reap::Outcome;
use crate::tracker::reap::registered::RemoveError;
use crate::tracker::service::dialect::Rtype;
use crate::tracker::service::server::Removal;

/// How long the file may take to open: it may lie on a server that is gone, and clients wait.
const OPENING: Duration = Duration::from_secs(1);

/// How long it may take to write everything.
const WRITING: Duration = Duration::from_secs(5);

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
        let (open, error) = match within(OPENING, open) {
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
        match within(WRITING, write) {
            Ok(open) => {
                self.open = Some(open);
                None
            }
            Err(error) => Some(self.warning(&error, "not everything that was removed is recorded")),
        }
    }

    fn warning(&self, error: &Trouble, says: &str) -> String {
        let path = crate::tracker::resource::escape(self.path.as_os_str().as_encoded_bytes());
        match error {
            Trouble::Audit(error) => format!("{error}: {}: {says}", error.source),
            Trouble::Late => format!("audit {path}: no answer in time: {says}"),
            Trouble::Thread(error) => format!("audit {path}: make a thread: {error}: {says}"),
        }
    }
}

/// What can go wrong with the record.
enum Trouble {
    Audit(AuditError),
    Late,
    Thread(std::io::Error),
}

/// Does `work` on a thread, which is left behind when it takes longer than `patience`.
fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, AuditError> + Send + 'static,
) -> Result<T, Trouble> {
    // No signal is meant for that thread: some have to interrupt this one.
    let thread_failed = |errno: nix::Error| Trouble::Thread(errno.into());
    let before = SigSet::thread_get_mask().map_err(thread_failed)?;
    SigSet::all().thread_block().map_err(thread_failed)?;
    let (done, result) = mpsc::channel();
    // Whoever does not wait any more needs no answer.
    let job = move || done.send(work()).unwrap_or(());
    let spawned = thread::Builder::new().name("audit".into()).spawn(job);
    before.thread_set_mask().map_err(thread_failed)?;
    spawned.map_err(Trouble::Thread)?;
    match result.recv_timeout(patience) {
        Ok(result) => result.map_err(Trouble::Audit),
        Err(_) => Err(Trouble::Late),
    }
}

/// The line about a removal; nothing for test types, behind which there is nothing.
fn line(run: &mut Run, removal: &Removal) -> Option<Vec<u8>> {
    let Removal { rtype, name, given_up, seen, result } = removal;
    let object = match rtype {
        Rtype::Noop | Rtype::Dummy => return None,
        Rtype::Semaphore | Rtype::Semlock => audit::registered("sem", rtype.as_str(), name),
        Rtype::SharedMemory => audit::registered("shm", rtype.as_str(), name),
        Rtype::MessageQueue => audit::registered("mqueue", rtype.as_str(), name),
        Rtype::SysvShm | Rtype::SysvSem | Rtype::SysvMsg => {
            audit::registered_by_id(*rtype, name, seen.as_ref())
        }
        Rtype::File | Rtype::Folder => audit::registered_path(rtype.as_str(), name),
    };
    let error = result.as_ref().err();
    let errno = error.and_then(RemoveError::errno);
    let outcome = match (error, errno) {
        (None, _) => Outcome::Reaped,
        (_, Some(libc::ENOENT)) => Outcome::Gone,
        _ => Outcome::Failed,
    };
    let why = match given_up {
        true => "since its last user gave it up",
        false => "since it was registered and never taken back",
    };
    let attached = seen.filter(|_| *rtype == Rtype::SysvShm).map_or(0, |state| state.count);
    let says = match result {
        Ok(0) if attached > 0 => {
            format!("removed, {why}; its memory goes with the last of {attached} attachments")
        }
        Ok(0) => format!("removed, {why}"),
        Ok(1) => format!("removed with the entry that was in it, {why}"),
        Ok(entries) => format!("removed with the {entries} entries that were in it, {why}"),
        Err(error) => error.to_string(),
    };
    let entry = run.entry(Action::Clean, object, Why::default());
    let ending =
        Ending { outcome: outcome.as_str(), says: &says, errno, freed: None, archived: None };
    Some(run.outcome(&entry, ending))
}
