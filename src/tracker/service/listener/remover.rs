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
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;

use super::super::leaks::{self, Care, Item, Seen};
use super::owners::{Id, Left};
use super::peer::Peer;
use crate::tracker::reap::registered::Fate;
use crate::tracker::sys::credentials::Rights;

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
    /// What became of each, and what was seen of it before; or why nothing could be done.
    pub(super) fates: io::Result<Vec<(Fate, Option<Seen>)>>,
    /// Whether the thread goes on with what else there was for this user.
    more: bool,
}

/// Removes on threads.
#[derive(Debug)]
pub(super) struct Remover {
    /// What waits for a user's thread. A user that is not here has none.
    waiting: HashMap<u32, VecDeque<Job>>,
    care: Care,
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
    pub(super) fn new(care: Care) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let (sender, receiver) = mpsc::channel();
        Ok(Self { waiting: HashMap::new(), care, wake, sender, receiver })
    }

    /// Has something removed.
    pub(super) fn add(&mut self, job: Job) {
        match self.waiting.get_mut(&job.owner.uid) {
            Some(queue) => queue.push_back(job),
            None => {
                self.waiting.insert(job.owner.uid, VecDeque::new());
                self.start(vec![job]);
            }
        }
    }

    /// What is done since the last call.
    pub(super) fn done(&mut self) -> Vec<Done> {
        // Nothing to read is no error.
        self.wake.read().map(drop).unwrap_or(());
        let all: Vec<Done> = self.receiver.try_iter().collect();
        for done in all.iter().filter(|done| !done.more) {
            let uid = done.job.owner.uid;
            match self.waiting.get_mut(&uid).map(std::mem::take) {
                Some(next) if !next.is_empty() => self.start(next.into()),
                _ => drop(self.waiting.remove(&uid)),
            }
        }
        all
    }

    /// Whether everything is done, and answered by [`Remover::done`].
    #[must_use]
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Has the jobs of one user done, all with one look at the processes if one is needed.
    fn start(&self, jobs: Vec<Job>) {
        let (sender, wake) = (self.sender.clone(), Arc::clone(&self.wake));
        let tell = move |done: Done| {
            // Who does not wait any more needs no answer, and a full counter wakes as well.
            sender.send(done).unwrap_or(());
            wake.write(1).map(drop).unwrap_or(());
        };
        let (given, taken) = mpsc::channel::<Vec<Job>>();
        let (told, care) = (tell.clone(), self.care);
        let work = move || {
            // No signal is meant for this thread.
            SigSet::all().thread_block().unwrap_or(());
            if let Ok(jobs) = taken.recv() {
                carry_out_all(jobs, care, &told);
            }
        };
        match thread::Builder::new().name("remove".into()).spawn(work) {
            Ok(_) => given.send(jobs).unwrap_or(()),
            Err(error) => {
                let mut left = jobs.len();
                for job in jobs {
                    left -= 1;
                    let fates = Err(io::Error::new(error.kind(), error.to_string()));
                    tell(Done { job, fates, more: left > 0 });
                }
            }
        }
    }
}

impl AsFd for Remover {
    /// It is readable when something is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// How often, and after how long, it is tried again when descriptors, threads or memory are short.
const RETRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

fn is_shortage(error: &io::Error) -> bool {
    let short = [libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::ENOMEM];
    error.raw_os_error().is_some_and(|errno| short.contains(&errno))
}

/// Carries jobs of one user out, and tells of each. Those that need a look at the processes share one with those
/// that follow and have the same group: many owners may end at the same time.
fn carry_out_all(jobs: Vec<Job>, care: Care, tell: &dyn Fn(Done)) {
    let mut jobs = VecDeque::from(jobs);
    while let Some(first) = jobs.pop_front() {
        let mut together = vec![first];
        while care.looks()
            && let Some(next) = jobs.front()
            && let Some(last) = together.last()
            && (next.owner.gid, next.owner.capabilities, next.given_up)
                == (last.owner.gid, last.owner.capabilities, last.given_up)
        {
            together.extend(jobs.pop_front());
        }
        // What is short now may be there in a moment; what is never removed would be forgotten.
        let mut patience = RETRIES;
        let fates = loop {
            match carry_out(&together, care) {
                Err(error) if patience > 0 && is_shortage(&error) => {
                    patience -= 1;
                    thread::sleep(PAUSE);
                }
                result => break result,
            }
        };
        let (mut fates, error) = match fates {
            Ok(fates) => (fates.into_iter(), None),
            Err(error) => (Vec::new().into_iter(), Some(error)),
        };
        let mut left = together.len() + jobs.len();
        for job in together {
            left -= 1;
            let fates = match &error {
                None => Ok(fates.by_ref().take(job.left.len()).collect()),
                Some(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            tell(Done { job, fates, more: left > 0 });
        }
    }
}

/// Carries jobs of one user and group out, and answers with what became of everything in them.
fn carry_out(jobs: &[Job], care: Care) -> io::Result<Vec<(Fate, Option<Seen>)>> {
    let Some(Job { owner, given_up, .. }) = jobs.first() else { return Ok(Vec::new()) };
    let root = nix::unistd::geteuid().is_root();
    let rights = match (root, owner.uid, owner.capabilities) {
        (false, ..) => None,
        (true, 0, None) => None,
        (true, 0, Some(capabilities)) => Some(Rights::Root { capabilities }),
        (true, uid, _) => Some(Rights::User { uid, gid: owner.gid }),
    };
    let all = jobs.iter().flat_map(|job| &job.left);
    let items: Vec<Item<'_>> = all
        .map(|left| Item { rtype: left.rtype, name: &left.name, registered: left.then.identity })
        .collect();
    leaks::clean(&items, care, *given_up, rights)
}
