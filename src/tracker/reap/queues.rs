//! Removing message queues that were judged.
//!
//! mqueuefs has no rename, so there is no private directory. Nor may a lease be held at the unlink:
//! mq_open(3) waits for a lease to be given back with the directory locked, and unlinkat(2) waits for
//! that lock, for as long as the kernel lets a lease last (45 s). So what is judged under the lease is
//! watched from before it is given back, and whoever opens it between that and the removal is told of.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::objects::{Steps, Target, changed, gone, refusal};
use super::{Manner, Outcome, Report};
use crate::tracker::evidence::lease::{self, LeaseError, Leased};
use crate::tracker::host::Host;
use crate::tracker::inventory::mqueue::without_reads;
use crate::tracker::inventory::posix::stat_here;
use crate::tracker::queues::Queues;
use crate::tracker::resource::Name;
use crate::tracker::sys::{Stat, mqueue};

/// How long another rtrack that looks may keep this one from removing.
const COURTESY: Duration = Duration::from_millis(250);

/// Removes one message queue, as [`Steps`] say. It cannot be saved: to take its messages would be to
/// receive them.
pub fn remove_queue(
    host: &Host,
    queues: &Queues,
    target: &Target<'_>,
    steps: &mut dyn Steps,
) -> Report {
    if steps.saves() {
        return Report::new(Outcome::Refused, "a message queue cannot be saved");
    }
    // Else a look would count as somebody's opening.
    let _lock = lease::courtesy_lock(queues.dir(), COURTESY);
    let removal = Removal { host, queues, target };
    let report = match target.manner {
        Manner::Leased => removal.leased(steps),
        Manner::Unleased | Manner::Directory | Manner::ById => removal.unleased(steps),
    };
    report.unwrap_or_else(|report| report)
}

/// The removal of one queue.
#[derive(Clone, Copy)]
struct Removal<'a> {
    host: &'a Host,
    queues: &'a Queues,
    target: &'a Target<'a>,
}

impl Removal<'_> {
    fn leased(self, steps: &mut dyn Steps) -> Result<Report, Report> {
        let Target { file, identity, .. } = self.target;
        let leased = lease::take_tested(self.host, self.queues.dir(), file, identity);
        let leased = leased.map_err(refusal)?;
        // Nothing here looks up a name: whoever waits for the lease may have the directory locked.
        let stat = leased.stat().map_err(|error| Report::failed("statx", &error))?;
        judge(steps, &stat)?;
        self.has_its_messages(leased.as_fd())?;
        let watch = Watch::on(self.host, leased.as_fd(), self.queues.dir());
        let mut watch = watch.map_err(|error| Report::failed("inotify", &error))?;
        // When the watch is there, so that between the two there is no gap.
        leased.give_back().map_err(|error| match error {
            LeaseError::Held => opened(),
            error => refusal(error),
        })?;
        self.is_still_here()?;
        // Those that somebody sent who has gone again.
        self.has_its_messages(leased.as_fd())?;
        watch.read(file).map_err(|error| Report::failed("inotify", &error))?;
        if watch.opened {
            return Err(opened());
        }
        self.unlink()?;
        Ok(self.removed(&leased, watch))
    }

    /// Without a lease, for what has none: by complete holder sight, or because the operator forces it.
    fn unleased(self, steps: &mut dyn Steps) -> Result<Report, Report> {
        let Target { file, identity, messages, .. } = self.target;
        // What is in it was either known, and is known again, or is not: then it is forced.
        if messages.is_some() {
            let open = lease::open_expected(self.host, self.queues.dir(), file, identity);
            self.has_its_messages(open.map_err(refusal)?.as_fd())?;
        }
        let stat = self.is_still_here()?;
        judge(steps, &stat)?;
        self.unlink()?;
        Ok(Report::new(Outcome::Reaped, "removed"))
    }

    /// Whether as many messages wait as when it was judged.
    fn has_its_messages(&self, queue: BorrowedFd<'_>) -> Result<(), Report> {
        let now =
            mqueue::attributes(queue).map_err(|error| Report::failed("mq_getattr", &error))?;
        if Some(now.messages) == self.target.messages {
            return Ok(());
        }
        let says = "messages were sent or received since it was looked at";
        Err(Report::new(Outcome::Refused, says))
    }

    /// Whether its name is still that of the planned queue.
    fn is_still_here(&self) -> Result<Stat, Report> {
        let Target { file, identity, .. } = self.target;
        match stat_here(self.queues.dir(), file, identity.dev) {
            Ok(Some(stat)) if identity.is(&stat) => Ok(stat),
            Ok(_) => Err(changed()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(gone()),
            Err(error) => Err(Report::failed("statx", &error)),
        }
    }

    fn unlink(&self) -> Result<(), Report> {
        let file = self.target.file.as_os_str();
        match unlinkat(self.queues.dir(), file, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(()),
            Err(nix::Error::ENOENT) => Err(gone()),
            Err(errno) => Err(Report::failed("unlink", &errno.into())),
        }
    }

    /// What became of a queue whose name is gone. Nobody can open it any more; who has opened it since
    /// the lease was given back either has it open still, or was seen by the watch, or has left a
    /// message in it.
    fn removed(&self, leased: &Leased, mut watch: Watch) -> Report {
        let read = watch.read(self.target.file);
        if read.is_err() || watch.retaken {
            let says = "removed, and a new queue took its name in that very moment: that one may have lost its name instead";
            return Report::new(Outcome::OpenedAtRemoval, says);
        }
        let messages = mqueue::attributes(leased).ok().map(|now| now.messages);
        let opened = watch.opened || !leased.is_alone();
        if !opened && messages == self.target.messages {
            return Report::new(Outcome::Reaped, "removed");
        }
        let left = match messages {
            Some(messages) if messages > 0 => format!(", and {messages} messages are in it"),
            _ => String::new(),
        };
        let says = format!(
            "removed, and somebody opened it in that very moment: that process has a queue without a name{left}"
        );
        Report::new(Outcome::OpenedAtRemoval, says)
    }
}

/// Tells of everybody who opens a queue, and of the names that are made and removed in its directory: no
/// lease tells of those, and who removes a queue and makes another one of its name need not open it.
struct Watch {
    inotify: Inotify,
    queue: WatchDescriptor,
    /// Somebody has opened the queue.
    opened: bool,
    /// Its name was made.
    made: bool,
    /// Its name was made and removed after that: then what was made may be what this process has
    /// removed.
    retaken: bool,
}

impl Watch {
    fn on(host: &Host, queue: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> io::Result<Self> {
        // One for both: to close one takes the kernel milliseconds.
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let link = |fd: BorrowedFd<'_>| host.proc.join(format!("self/fd/{}", fd.as_raw_fd()));
        let names = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE;
        inotify.add_watch(&link(dir), names)?;
        // The link leads to the queue itself, which this does not open.
        let queue = inotify.add_watch(&link(queue), AddWatchFlags::IN_OPEN)?;
        Ok(Self { inotify, queue, opened: false, made: false, retaken: false })
    }

    /// Takes note of what has happened, to the queue and to its name.
    fn read(&mut self, name: &Name) -> io::Result<()> {
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            for InotifyEvent { wd, mask, name: of, .. } in events {
                let lost = mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let named = of.as_deref() == Some(name.as_os_str());
                self.opened |= lost || wd == self.queue && mask.contains(AddWatchFlags::IN_OPEN);
                let removed = named && mask.contains(AddWatchFlags::IN_DELETE);
                self.retaken |= lost || removed && self.made;
                self.made |= named && mask.contains(AddWatchFlags::IN_CREATE);
            }
        }
    }
}

fn judge(steps: &mut dyn Steps, stat: &Stat) -> Result<(), Report> {
    let judged = steps.judge(&without_reads(*stat));
    judged.map_err(|why| Report::new(Outcome::Refused, why))
}

fn opened() -> Report {
    Report::new(Outcome::OpenedMeanwhile, "somebody opened it; it was not removed")
}
