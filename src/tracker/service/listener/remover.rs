//! Removes what owners left, with the owners' own rights, and without keeping anybody waiting.
//!
//! What is registered may lie on a file system that never answers. So each user has a thread while there is
//! something of that user's to remove, and what one user registers holds up nobody else.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;

use super::super::found;
use super::owners::{Id, Left};
use super::peer::Peer;
use crate::tracker::reap::registered::{self, RemoveError};
use crate::tracker::sys::credentials;

/// What became of something that was left.
#[derive(Debug)]
pub(super) enum Fate {
    /// It is removed, with so many entries that were in it.
    Removed(u64),
    /// Another object has its name now, which nobody registered: it stays.
    Changed,
    /// It could not be removed.
    Failed(RemoveError),
}

/// What one owner left, or gave up.
#[derive(Debug)]
pub(super) struct Job {
    /// The number of its owner.
    pub(super) id: Id,
    /// Whose it is.
    pub(super) owner: Peer,
    /// What is to be removed.
    pub(super) left: Vec<Left>,
    /// Its last user gave it up; else it was left.
    pub(super) given_up: bool,
}

/// A job that is done: a fate for each, in order.
#[derive(Debug)]
pub(super) struct Done {
    /// What there was to do.
    pub(super) job: Job,
    /// What became of it; or why nothing could be done.
    pub(super) fates: io::Result<Vec<Fate>>,
}

/// Removes on threads.
#[derive(Debug)]
pub(super) struct Remover {
    /// What waits for a user's thread. A user that is not here has none.
    waiting: HashMap<u32, VecDeque<Job>>,
    /// Tells of what is done.
    wake: Arc<EventFd>,
    sender: Sender<Done>,
    receiver: Receiver<Done>,
}

impl Remover {
    /// One with nothing to do.
    ///
    /// # Errors
    /// The errno of eventfd(2).
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let (sender, receiver) = mpsc::channel();
        Ok(Self { waiting: HashMap::new(), wake, sender, receiver })
    }

    /// Has something removed.
    pub(super) fn add(&mut self, job: Job) {
        match self.waiting.get_mut(&job.owner.uid) {
            Some(queue) => queue.push_back(job),
            None => {
                self.waiting.insert(job.owner.uid, VecDeque::new());
                self.start(job);
            }
        }
    }

    /// What is done since the last call.
    pub(super) fn done(&mut self) -> Vec<Done> {
        // Nothing to read is no error.
        self.wake.read().map(drop).unwrap_or(());
        let all: Vec<Done> = self.receiver.try_iter().collect();
        for done in &all {
            let uid = done.job.owner.uid;
            match self.waiting.get_mut(&uid).and_then(VecDeque::pop_front) {
                Some(next) => self.start(next),
                None => drop(self.waiting.remove(&uid)),
            }
        }
        all
    }

    /// Whether everything is done, and answered by [`Remover::done`].
    #[must_use]
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    fn start(&self, job: Job) {
        let (sender, wake) = (self.sender.clone(), Arc::clone(&self.wake));
        let tell = move |done: Done| {
            // Who does not wait any more needs no answer, and a full counter wakes as well.
            sender.send(done).unwrap_or(());
            wake.write(1).map(drop).unwrap_or(());
        };
        let (given, taken) = mpsc::channel();
        let told = tell.clone();
        let work = move || {
            // No signal is meant for this thread.
            SigSet::all().thread_block().unwrap_or(());
            if let Ok(job) = taken.recv() {
                let fates = carry_out(&job);
                told(Done { job, fates });
            }
        };
        match thread::Builder::new().name("remove".into()).spawn(work) {
            Ok(_) => given.send(job).unwrap_or(()),
            Err(error) => tell(Done { job, fates: Err(error) }),
        }
    }
}

impl AsFd for Remover {
    /// It is readable when something is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

fn carry_out(job: &Job) -> io::Result<Vec<Fate>> {
    let all = || job.left.iter().map(remove).collect();
    let root = nix::unistd::geteuid().is_root();
    match job.owner.uid {
        uid if root && uid != 0 => credentials::as_user(uid, job.owner.gid, all),
        _ => Ok(all()),
    }
}

fn remove(left: &Left) -> Fate {
    let then = left.then.identity;
    if then.is_some_and(|then| found::is_another(left.rtype, &left.name, &then)) {
        return Fate::Changed;
    }
    match registered::remove(left.rtype, &left.name) {
        Ok(entries) => Fate::Removed(entries),
        Err(error) => Fate::Failed(error),
    }
}
