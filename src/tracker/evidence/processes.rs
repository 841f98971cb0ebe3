//! Which processes exist: identities, executables, and where asked for, command lines.
//!
//! `stat` comes from the procfs crate. `status` is read as bytes here: a process can put any bytes
//! into its own name, and one that the crate cannot read must not be overlooked.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use procfs::FromRead as _;

use super::mounts::number;
use super::task::Task;
use crate::tracker::deadline::{self, Unanswered};
use crate::tracker::parallel;
use crate::tracker::sys;

/// What the kernel calls a tracker of rtrack's.
pub(super) const COMM: &[u8] = b"rtrack";

/// The kernel's flag for its own threads (`PF_KTHREAD`, linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// Ranges of uids: the first of each, and how many.
pub type UidRanges = Arc<[(u32, u32)]>;

/// What is mapped by each text of a `uid_map`; nothing of our own.
type UidMaps = HashMap<Vec<u8>, MappedUids>;

/// What `/proc/PID/exe` says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Executable {
    /// A path; ` (deleted)` is already taken off.
    Path(Vec<u8>),
    /// A kernel thread, or a process that is dead but for its entry.
    None,
    /// Not for us to see.
    Unreadable,
}

impl Executable {
    /// The last component of the path.
    #[must_use]
    pub fn file_name(&self) -> Option<&[u8]> {
        match self {
            Self::Path(path) => path.rsplit(|b| *b == b'/').next(),
            Self::None | Self::Unreadable => None,
        }
    }
}

/// The uids that the user namespace of a process maps, as seen from ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappedUids {
    /// Nobody has asked yet: see [`Processes::learn_uid_maps`].
    NotAsked,
    /// It is our own user namespace.
    Own,
    /// The first of each range, and how many.
    Of(UidRanges),
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid here.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// The name that the kernel has for it (`comm`): 15 bytes that the process may change.
    pub comm: Vec<u8>,
    /// Real, effective, saved and file-system uid.
    pub uids: [u32; 4],
    /// Those of its other threads, where they differ: the kernel keeps them for each thread.
    pub thread_uids: Vec<u32>,
    /// The uids that its user namespace maps: who is root in there may open the files of all of them.
    pub mapped_uids: MappedUids,
    /// Its pid in each PID namespace that it is in, outermost first.
    pub ns_pids: Vec<i32>,
    /// Its process group and its session in each PID namespace that it is in.
    pub ns_leaders: Vec<i32>,
    /// Its executable.
    pub exe: Executable,
    /// A thread of the kernel's.
    pub kernel: bool,
    /// Dead but for its entry, with no thread left that runs.
    pub dead: bool,
    /// The first thread has exited while others go on: its own `maps` and `fd` are empty.
    pub leaderless: bool,
    /// Whether its uids, its executable and its pids in other namespaces were read, too.
    pub whole: bool,
}

/// How much is read of each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// Everything but what its user namespace maps.
    #[default]
    Whole,
    /// What `stat` says; everything of those that are called like a tracker of rtrack's.
    Stat,
}

impl Process {
    /// Whether any of its uids is `uid`, or cannot be known here: in a user namespace a uid from
    /// outside reads as the overflow uid.
    #[must_use]
    pub fn may_be_of(&self, uid: u32, overflow: Option<u32>) -> bool {
        self.seems_of(uid, overflow) || self.maps_uid(uid)
    }

    /// The same without a look at what its user namespace maps.
    #[must_use]
    pub fn seems_of(&self, uid: u32, overflow: Option<u32>) -> bool {
        !self.whole
            || overflow == Some(uid)
            || self.all_uids().any(|own| own == uid || overflow == Some(own))
    }

    /// The uids of all its threads, some of them more than once.
    pub fn all_uids(&self) -> impl Iterator<Item = u32> {
        self.uids.into_iter().chain(self.thread_uids.iter().copied())
    }

    /// Whether it is in another user namespace than ours, and that one maps `uid`, as far as is known.
    #[must_use]
    pub fn maps_uid(&self, uid: u32) -> bool {
        match &self.mapped_uids {
            MappedUids::NotAsked => true,
            MappedUids::Own => false,
            MappedUids::Of(ranges) => {
                ranges.iter().any(|(first, count)| uid >= *first && uid - first < *count)
            }
        }
    }
}

/// A process that hangs, by its pid, its start and the program that it ran then.
pub type Hung = (i32, u64, Executable);

/// The processes that were seen, and those that were not.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    /// By pid.
    pub seen: HashMap<i32, Process>,
    /// Pids whose `stat` or `status` could not be read.
    pub unreadable: HashSet<i32>,
    /// Those that did not answer in time: they are not asked again, since each question may cost a
    /// thread for ever.
    pub hung: HashSet<Hung>,
    /// Why the whole list could not be read, if so.
    pub missing: Option<String>,
    /// The uid that stands for those from outside this user namespace; `None` in the first one.
    pub overflow: Option<u32>,
    depth: Depth,
    /// Maps of uids that were met, by their text: few user namespaces hold many processes.
    uid_maps: UidMaps,
}

impl Processes {
    /// Reads the procfs at `proc`; of whom it is known that they are `hung` is not asked any more.
    #[must_use]
    pub fn read(proc: &Path, hung: &HashSet<Hung>) -> Self {
        Self::read_to(Depth::Whole, proc, hung)
    }

    /// The same, so much of each process.
    #[must_use]
    pub fn read_to(depth: Depth, proc: &Path, hung: &HashSet<Hung>) -> Self {
        let (overflow, hung) = (overflow_uid(proc), hung.clone());
        let mut list = Self { overflow, hung, depth, ..Self::default() };
        let own = std::fs::read(proc.join("self/uid_map")).unwrap_or_default();
        list.uid_maps.insert(own, MappedUids::Own);
        list.read_more(proc);
        // An empty directory, or another PID namespace's procfs, is no list of processes.
        let own = std::fs::read_link(proc.join("self")).ok();
        let own = own.and_then(|own| own.to_str()?.parse().ok());
        if list.missing.is_none() && !own.is_some_and(|own: i32| list.seen.contains_key(&own)) {
            list.missing = Some(format!("{}: this process is not in it", proc.display()));
        }
        list
    }

    /// Adds the processes that are not in the list yet, and says which. A process that forks and
    /// exits while the list is read is in it, and its child is not, unless one looks again.
    pub fn read_more(&mut self, proc: &Path) -> Vec<i32> {
        // All pids before any of them is looked at: who forks meanwhile, on and on, would be faster than who looks.
        let pids = match File::open(proc).and_then(pids) {
            Ok(pids) => pids,
            Err(error) => {
                self.missing = Some(format!("{}: {error}", proc.display()));
                return Vec::new();
            }
        };
        let pids: Vec<i32> = pids.into_iter().filter(|pid| !self.seen.contains_key(pid)).collect();
        let read = parallel::map(&pids, |pid| read_one(proc, *pid, self.depth));
        let mut new = Vec::new();
        for (pid, read) in pids.into_iter().zip(read) {
            match read {
                Ok(process) => {
                    new.push(pid);
                    self.seen.insert(pid, process);
                }
                // It ended while it was looked at.
                Err(error) if gone(&error) => {}
                Err(_) => {
                    self.unreadable.insert(pid);
                }
            }
        }
        new
    }

    /// Finds out what the user namespaces of those processes map that `wanted` says, if they were not asked yet.
    pub fn learn_uid_maps(&mut self, proc: &Path, wanted: impl Fn(&Process) -> bool) {
        let open = |process: &&Process| process.mapped_uids == MappedUids::NotAsked;
        let pids = self.running().filter(open).filter(|process| wanted(process));
        let pids: Vec<i32> = pids.map(|process| process.pid).collect();
        let read = |pid: &i32| std::fs::read(proc.join(format!("{pid}/uid_map")));
        for (pid, text) in pids.iter().zip(parallel::map(&pids, read)) {
            match text {
                Ok(text) => {
                    let ranges = |text: &Vec<u8>| MappedUids::Of(parse_uid_map(text));
                    let mapped = self.uid_maps.entry(text).or_insert_with_key(ranges).clone();
                    if let Some(process) = self.seen.get_mut(pid) {
                        process.mapped_uids = mapped;
                    }
                }
                // It has ended meanwhile, and may have a child that was not there when processes were listed: it
                // still counts by its uids.
                Err(error) if gone(&error) => {
                    if let Some(process) = self.seen.get_mut(pid) {
                        process.mapped_uids = MappedUids::Own;
                    }
                }
                Err(_) => {
                    self.unreadable.insert(*pid);
                }
            }
        }
    }

    /// Every process that runs and is not the kernel's.
    pub fn running(&self) -> impl Iterator<Item = &Process> {
        self.seen.values().filter(|process| !process.kernel && !process.dead)
    }

    /// Asks each of `jobs`, about the process whose pid comes with it, in time; `None` is the answer of
    /// one that hangs, or is known to.
    pub fn ask<J, R>(
        &mut self,
        jobs: Vec<(i32, J)>,
        work: impl Fn(i32, J) -> R + Send + Sync + 'static,
    ) -> Vec<(i32, Option<R>)>
    where
        J: Send + 'static,
        R: Send + 'static,
    {
        let key = |pid: i32| {
            self.seen.get(&pid).map(|process| (pid, process.start_ticks, process.exe.clone()))
        };
        let (hung, jobs): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .partition(|(pid, _)| key(*pid).is_some_and(|k| self.hung.contains(&k)));
        let pids: Vec<i32> = jobs.iter().map(|(pid, _)| *pid).collect();
        let answers = deadline::map(jobs, move |(pid, job)| work(pid, job));
        let mut all: Vec<(i32, Option<R>)> = hung.into_iter().map(|(pid, _)| (pid, None)).collect();
        let mut hung = Vec::new();
        for (pid, answer) in pids.into_iter().zip(answers) {
            if matches!(answer, Err(Unanswered::Hangs)) {
                hung.extend(key(pid));
            }
            all.push((pid, answer.ok()));
        }
        self.hung.extend(hung);
        all
    }

    /// The command lines of `pids`, NUL-separated as the kernel has them. One of which there is no
    /// answer, in time or at all, has none, unless it is gone.
    #[must_use]
    pub fn command_lines(&mut self, proc: &Path, pids: Vec<i32>) -> HashMap<i32, Option<Vec<u8>>> {
        let root = proc.to_owned();
        let lines = self.ask(pids.into_iter().map(|pid| (pid, ())).collect(), move |pid, ()| {
            match std::fs::read(root.join(format!("{pid}/cmdline"))) {
                Ok(line) => Some(Some(line)),
                Err(error) if gone(&error) => None,
                Err(_) => Some(None),
            }
        });
        // No answer in time is one of a process that is there.
        lines
            .into_iter()
            .filter_map(|(pid, line)| Some((pid, line.unwrap_or(Some(None))?)))
            .collect()
    }
}

/// Whether a file of /proc is not there because its process is not. `EINVAL` is the answer of
/// `mountinfo` and `uid_map` where the process, or the thread, has just exited.
pub(crate) fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EINVAL))
}

/// Whether something of the process or thread, whose directory in /proc is given, cannot be read because
/// that is gone: a link of a task that has exited meanwhile answers with `EACCES`.
pub(crate) fn task_gone(task: &Path, error: &io::Error) -> bool {
    gone(error)
        || error.raw_os_error() == Some(libc::EACCES)
            && std::fs::symlink_metadata(task).is_err_and(|error| gone(&error))
}

/// The pids in a procfs.
fn pids(proc: File) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    let add =
        |name: &CStr| pids.extend(name.to_str().ok().and_then(|name| name.parse::<i32>().ok()));
    sys::list(proc, &mut Vec::new(), add)?;
    Ok(pids)
}

fn read_one(proc: &Path, pid: i32, depth: Depth) -> io::Result<Process> {
    let task = Task::open(proc.join(pid.to_string()))?;
    let mut room = Vec::new();
    let stat = task.read_piece(c"stat", &mut room)?;
    let stat = procfs::process::Stat::from_read(stat).map_err(io_error)?;
    if depth == Depth::Stat && stat.comm.as_bytes() != COMM {
        return Ok(by_stat(&stat));
    }
    let status = task.read_piece(c"status", &mut room)?;
    let Status { uids, ns_pids, ns_leaders, comm } = parse_status(status)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "status is not of its form"))?;
    let known = by_stat(&stat);
    let Process { kernel, dead, leaderless, .. } = known;
    let exe = match executable(&task, leaderless) {
        Ok(path) => Executable::Path(path),
        Err(_) if kernel || dead => Executable::None,
        // A process on its way out has no executable any more; one that started meanwhile under
        // its pid would be a new line in the next list.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(error),
        Err(_) => Executable::Unreadable,
    };
    let thread_uids = if stat.num_threads > 1 {
        uids_of_threads(&task.path().join("task"), uids)?
    } else {
        Vec::new()
    };
    Ok(Process { comm, uids, thread_uids, ns_pids, ns_leaders, exe, whole: true, ..known })
}

/// What `stat` says of a process.
fn by_stat(stat: &procfs::process::Stat) -> Process {
    let kernel = stat.flags & PF_KTHREAD != 0;
    let zombie = matches!(stat.state, 'Z' | 'X' | 'x');
    let leaderless = zombie && stat.num_threads > 1;
    Process {
        pid: stat.pid,
        ppid: stat.ppid,
        group: stat.pgrp,
        session: stat.session,
        start_ticks: stat.starttime,
        comm: stat.comm.clone().into_bytes(),
        uids: [u32::MAX; 4],
        thread_uids: Vec::new(),
        mapped_uids: if kernel { MappedUids::Own } else { MappedUids::NotAsked },
        ns_pids: Vec::new(),
        ns_leaders: Vec::new(),
        exe: Executable::Unreadable,
        kernel,
        dead: zombie && !leaderless,
        leaderless,
        whole: false,
    }
}

fn io_error(error: procfs::ProcError) -> io::Error {
    match error {
        procfs::ProcError::NotFound(_) => io::Error::from_raw_os_error(libc::ENOENT),
        procfs::ProcError::PermissionDenied(_) => io::Error::from_raw_os_error(libc::EACCES),
        procfs::ProcError::Io(error, _) => error,
        other => io::Error::other(other.to_string()),
    }
}

/// The uids of threads that are none of `known`.
fn uids_of_threads(tasks: &Path, known: [u32; 4]) -> io::Result<Vec<u32>> {
    let mut found = BTreeSet::new();
    for task in std::fs::read_dir(tasks)? {
        match task.and_then(|task| std::fs::read(task.path().join("status"))) {
            Ok(status) => found.extend(parse_status(&status).map_or([0; 4], |status| status.uids)),
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found.into_iter().filter(|uid| !known.contains(uid)).collect())
}

/// The second and third column of `uid_map` (user_namespaces(7)): as seen from our own namespace.
fn parse_uid_map(text: &[u8]) -> UidRanges {
    let number = |word: &[u8]| u32::try_from(number(word)?).ok();
    let range = |line: &[u8]| {
        let mut fields = words(line).skip(1);
        Some((number(fields.next()?)?, number(fields.next()?)?))
    };
    text.split(|b| *b == b'\n').filter_map(range).collect()
}

/// The executable of the process or, if its first thread has exited, of a thread that has not.
fn executable(task: &Task, leaderless: bool) -> io::Result<Vec<u8>> {
    let read = |task: &Task| -> io::Result<Vec<u8>> {
        let mut target = Vec::new();
        task.link(c"exe", &mut target)?;
        if target.ends_with(b" (deleted)") {
            target.truncate(target.len() - b" (deleted)".len());
        }
        target.shrink_to_fit();
        Ok(target)
    };
    if !leaderless {
        return read(task);
    }
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for thread in std::fs::read_dir(task.path().join("task"))?.flatten() {
        match Task::open(thread.path()).and_then(|thread| read(&thread)) {
            Ok(target) => return Ok(target),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What is read of a `status` file.
struct Status {
    uids: [u32; 4],
    ns_pids: Vec<i32>,
    ns_leaders: Vec<i32>,
    comm: Vec<u8>,
}

/// Parses a `status` file. The name is the first line, in which the kernel escapes newlines, so no
/// name can pretend to be another line.
fn parse_status(status: &[u8]) -> Option<Status> {
    let mut uids = None;
    let mut ns_pids = Vec::new();
    let mut ns_leaders = Vec::new();
    let mut comm = Vec::new();
    let pids = |rest| words(rest).filter_map(|word| i32::try_from(number(word)?).ok());
    for line in status.split(|b| *b == b'\n') {
        if let Some(name) = line.strip_prefix(b"Name:\t") {
            comm = name.to_vec();
        } else if let Some(rest) = line.strip_prefix(b"Uid:") {
            let mut fields = words(rest).filter_map(|word| u32::try_from(number(word)?).ok());
            uids = Some([fields.next()?, fields.next()?, fields.next()?, fields.next()?]);
        } else if let Some(rest) = line.strip_prefix(b"NSpid:") {
            ns_pids = pids(rest).collect();
        } else if let Some(rest) =
            line.strip_prefix(b"NSpgid:").or_else(|| line.strip_prefix(b"NSsid:"))
        {
            ns_leaders.extend(pids(rest));
        }
    }
    Some(Status { uids: uids?, ns_pids, ns_leaders, comm })
}

/// The blank-separated words of `text`.
pub(crate) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

/// The overflow uid, unless this is the first user namespace, where every uid is itself.
fn overflow_uid(proc: &Path) -> Option<u32> {
    let identity = std::fs::read(proc.join("self/uid_map")).is_ok_and(|map| {
        let fields: Vec<&[u8]> = words(&map).collect();
        fields == [&b"0"[..], b"0", b"4294967295"]
    });
    if identity {
        return None;
    }
    let text = std::fs::read(proc.join("sys/kernel/overflowuid")).unwrap_or_default();
    // 65534 is the kernel's default where the setting cannot be read.
    Some(std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(65534))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_status_with_any_name() {
        let status = b"Name:\tp\xff\\nUid:\t0\nUmask:\t0022\nState:\tS (sleeping)\nPid:\t7\n\
            Uid:\t1000\t0\t1001\t4294967294\nGid:\t1\t1\t1\t1\nNStgid:\t700\t7\n\
            NSpid:\t700\t7\nNSpgid:\t600\t6\nNSsid:\t500\t0\n";
        let read = parse_status(status).unwrap();
        assert_eq!(read.uids, [1000, 0, 1001, 4_294_967_294]);
        assert_eq!(read.ns_pids, [700, 7]);
        assert_eq!(read.ns_leaders, [600, 6, 500, 0]);
        assert_eq!(read.comm, b"p\xff\\nUid:\t0");
        assert!(parse_status(b"Name:\tx\nUid:\t1 2\n").is_none());
    }

    #[test]
    fn a_uid_from_outside_may_be_anybodys() {
        let process = Process {
            pid: 1,
            ppid: 0,
            group: 1,
            session: 1,
            start_ticks: 0,
            comm: Vec::new(),
            uids: [0, 65534, 0, 0],
            thread_uids: vec![7],
            mapped_uids: MappedUids::Of(parse_uid_map(
                b"         0      61001          1\n 1 100000 65536\n",
            )),
            ns_pids: Vec::new(),
            ns_leaders: Vec::new(),
            exe: Executable::None,
            kernel: false,
            dead: false,
            leaderless: false,
            whole: true,
        };
        assert!(process.may_be_of(1000, Some(65534)));
        assert!(!process.may_be_of(1000, None));
        assert!(process.may_be_of(0, None));
        assert!(process.may_be_of(7, None));
        for (uid, may) in
            [(61001, true), (61002, false), (100_000, true), (165_535, true), (165_536, false)]
        {
            assert_eq!(process.may_be_of(uid, None), may, "{uid}");
        }
    }
}
