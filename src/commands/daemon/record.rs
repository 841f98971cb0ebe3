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
use crate::tracker::service::protocol::Rtype;
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

    /// Writes what was removed, and says what went wrong with that.
    pub(super) fn write(&mut self, removals: Vec<Removal>) -> Option<String> {
        let (mut audit, mut run) = self.open.take()?;
        let write = move || {
            removals.iter().try_for_each(|removal| match line(&mut run, removal) {
                Some(line) => audit.append(&line),
                None => Ok(()),
            })
        };
        let error = within(WRITING, write).err()?;
        Some(self.warning(&error, "not everything that was removed is recorded"))
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
    let kind = match removal.rtype {
        Rtype::Noop | Rtype::Dummy => return None,
        Rtype::Semaphore => "sem",
        Rtype::SharedMemory => "shm",
    };
    let errno = match &removal.error {
        Some(RemoveError::Os { error, .. }) => error.raw_os_error(),
        _ => None,
    };
    let outcome = match (&removal.error, errno) {
        (None, _) => Outcome::Reaped,
        (_, Some(libc::ENOENT)) => Outcome::Gone,
        _ => Outcome::Failed,
    };
    let says = match &removal.error {
        None => "removed, since it was registered and never taken back".to_owned(),
        Some(error) => error.to_string(),
    };
    let object = audit::registered(kind, removal.rtype.as_str(), &removal.name);
    let entry = run.entry(Action::Clean, object, Why::default());
    let ending =
        Ending { outcome: outcome.as_str(), says: &says, errno, freed: None, archived: None };
    Some(run.outcome(&entry, ending))
}
