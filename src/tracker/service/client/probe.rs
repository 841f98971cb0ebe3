//! Whether a tracker is alive, and who has its pipe open.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat};
use procfs::process::Process;

use super::descriptors::{access, info, numbers, proc};
use super::everywhere::device;
use super::{Target, Tracker};
use crate::tracker::host::in_first_pid_namespace;

/// Which processes have a pipe open. This process does not count.
#[derive(Debug, Default)]
pub struct Ends {
    /// Readers, and whether each could write as well.
    pub readers: BTreeMap<i32, bool>,
    /// How many processes have the writing end.
    pub writers: usize,
    /// How many processes could not be looked into.
    pub unreadable: usize,
    /// Whether there may be processes that are not even visible: `hidepid`, or processes outside
    /// this PID namespace.
    pub hidden: bool,
}

impl Ends {
    /// Whether every process was looked into.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.unreadable == 0 && !self.hidden
    }

    pub(super) fn look(stat: &FileStat, pipe: &OwnedFd) -> Self {
        let mut ends = Self::default();
        let own = fs::read_link(format!("/proc/self/fd/{}", pipe.as_raw_fd())).unwrap_or_default();
        let own =
            Own { link: &own, device: device(Path::new("/proc/self"), pipe.as_raw_fd()), stat };
        let Ok(entries) = fs::read_dir("/proc") else {
            ends.hidden = true;
            return ends;
        };
        ends.hidden =
            fs::symlink_metadata("/proc/1").is_err() || !in_first_pid_namespace(Path::new("/proc"));
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        let pids =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids.filter(|pid| *pid != me) {
            let found = match numbers(&proc(pid, "fd")) {
                Ok(found) => found,
                Err(error) => {
                    ends.unreadable += usize::from(
                        error.kind() == io::ErrorKind::PermissionDenied
                            && may_hold_descriptors(pid),
                    );
                    continue;
                }
            };
            let (mut reads, mut writes) = (false, false);
            for access in found
                .into_iter()
                .filter(|fd| own.is_same(pid, *fd))
                .filter_map(|fd| access(pid, fd))
            {
                reads |= access.reads;
                writes |= access.writes;
            }
            if reads {
                ends.readers.insert(pid, writes);
            }
            ends.writers += usize::from(writes);
        }
        ends
    }
}

/// Whether a process whose descriptors are secret could have any. Kernel threads, whose directories
/// belong to root, and zombies have none.
fn may_hold_descriptors(pid: i32) -> bool {
    const PF_KTHREAD: u32 = 0x0020_0000;
    match Process::new(pid).and_then(|process| process.stat()) {
        Ok(stat) => stat.flags & PF_KTHREAD == 0 && stat.state != 'Z',
        Err(procfs::ProcError::NotFound(_)) => false,
        // hidepid=1 shows that there is a process, and nothing of it.
        Err(_) => true,
    }
}

/// The pipe that is asked about.
struct Own<'a> {
    link: &'a Path,
    /// The device of the mount that it was reached by, and whether that answers in time.
    device: Option<(u64, bool)>,
    stat: &'a FileStat,
}

impl Own<'_> {
    /// Whether descriptor `fd` of `pid` is that pipe. Nothing is opened before its inode number is
    /// known to fit, and then by `O_PATH` only: whatever else other processes have open is none of
    /// our business. On a file system that may never answer it is not opened at all.
    fn is_same(&self, pid: i32, fd: RawFd) -> bool {
        let path = proc(pid, "fd").join(fd.to_string());
        let Ok(link) = fs::read_link(&path) else { return false };
        let named = self.link.has_root();
        if link == self.link && !named {
            return true;
        }
        if !named || !link.has_root() || info(pid, fd, "ino:", 10) != Some(self.stat.st_ino) {
            return false;
        }
        match device(&proc(pid, ""), fd) {
            Some((_, true)) => {
                let handle = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
                handle.and_then(fstat).is_ok_and(|other| {
                    (other.st_dev, other.st_ino) == (self.stat.st_dev, self.stat.st_ino)
                })
            }
            Some((dev, false)) => self.device.is_some_and(|(own, _)| own == dev),
            None => false,
        }
    }
}

/// How many readers of one pipe are looked at.
const CANDIDATES: usize = 8;

/// Whether a tracker is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Somebody reads the pipe.
    Alive,
    /// Nobody does, or there is no such process.
    Dead,
    /// The pipe is read, but by nobody who looks like a tracker, or it could not be looked at.
    Unknown,
}

/// What was found out about a tracker.
#[derive(Debug)]
pub struct Probe {
    /// Whether it is alive.
    pub life: Life,
    /// The process.
    pub tracker: Option<Tracker>,
    /// Who has the ends.
    pub ends: Option<Ends>,
    /// Bytes in the pipe.
    pub queued: Option<u64>,
}

impl Probe {
    /// Looks at a pipe and at who has it open. Nothing is written.
    ///
    /// # Errors
    /// What `poll` failed with.
    pub fn of(target: &Target) -> io::Result<Self> {
        let queued = target.queued();
        let ends = target.ends();
        // Each look can take as long as its deadline, and anybody may read a FIFO that is open to
        // all: a few are looked at, not every one.
        let found = ends.readers.iter().take(CANDIDATES);
        let found: Vec<(Tracker, bool)> =
            found.filter_map(|(pid, writes)| Some((Tracker::look(*pid)?, *writes))).collect();
        // A shell that opened the FIFO for both is a reader too, and no tracker.
        let tracker = target.tracker.clone().or_else(|| {
            let known = found.iter().find(|(tracker, _)| tracker.family.is_some());
            let one = known.or_else(|| found.iter().find(|(_, writes)| !writes));
            one.map(|(tracker, _)| tracker.clone())
        });
        let only_clients = tracker.is_none() && !ends.readers.is_empty();
        let reads = target.is_its_own_reader()?;
        let life = match (target.is_read()?, &tracker) {
            (false, _) => Life::Dead,
            (true, Some(_)) => Life::Alive,
            (true, None)
                if reads && ends.complete() && ends.readers.values().all(|writes| *writes) =>
            {
                Life::Dead
            }
            (true, None) if only_clients || reads => Life::Unknown,
            (true, None) => Life::Alive,
        };
        let tracker = tracker.filter(|_| life == Life::Alive);
        Ok(Self { life, tracker, ends: Some(ends), queued })
    }
}
