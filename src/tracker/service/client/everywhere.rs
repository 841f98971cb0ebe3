//! Every tracker of the machine, and who feeds it.
//!
//! The processes are looked at once for all trackers together. Nothing is asked that may never answer, and
//! nothing is written to anybody. What cannot be seen is not known, and never taken for absent. Blind
//! spots: a write end that lies in a message that nobody has received yet, or that io_uring keeps, is nobody's.

mod descriptors;
mod left;
pub(super) mod sockets;

pub use super::launch::Family;
pub(super) use descriptors::{answers, device};

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use self::descriptors::{Holdings, Inlet, Key, Wanted, holdings, inlet, link_of_socket};
use self::left::Relative;
use super::launch::{self, Launch};
use super::tracker::{Version, started_at};
use crate::tracker::evidence::mounts::Mounts;
use crate::tracker::evidence::processes::{Executable, Process, Processes, words};
use crate::tracker::evidence::sight::Sight;
use crate::tracker::host::in_first_pid_namespace;
use crate::tracker::sys;

/// A process that feeds a tracker, or could.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    /// Its pid.
    pub pid: i32,
    /// Its name, as the kernel has it.
    pub comm: Vec<u8>,
    /// Its effective uid.
    pub uid: u32,
}

/// What a tracker reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// An anonymous pipe.
    Pipe,
    /// A named pipe.
    Fifo,
    /// A socket, or several.
    Socket,
    /// A file or a device.
    File,
}

impl Reads {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pipe => "pipe",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::File => "file",
        }
    }
}

/// A tracker.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its pid.
    pub pid: i32,
    /// Whose it is.
    pub family: Family,
    /// The version of the Python that runs it, as far as it can be told without running that.
    pub version: Option<String>,
    /// The `--protocol` that an `rtrack daemon` was started with.
    pub dialect: Option<String>,
    /// Its effective uid.
    pub uid: u32,
    /// When it started.
    pub since: Option<Timestamp>,
    /// Stopped by a signal or a debugger: alive, but it reads nothing.
    pub stopped: Option<bool>,
    /// Its parent.
    pub parent: i32,
    /// What it reads; nothing if that could not be seen.
    pub reads: Option<Reads>,
    /// Who feeds it, as far as was seen, by pid; nothing where nobody can say.
    pub clients: Option<Vec<Client>>,
    /// Whether these are all.
    pub all_clients: bool,
    /// How many bytes wait in its pipe.
    pub queued: Option<u64>,
    /// How many bytes of memory it has resident.
    pub memory: Option<u64>,
    /// Whether who started it is gone and only strays keep it; nothing where that cannot be told.
    pub left_behind: Option<bool>,
    /// Why something is not known.
    pub note: Option<&'static str>,
}

/// What was found.
#[derive(Debug)]
pub struct Everywhere {
    /// The trackers, by pid.
    pub trackers: Vec<Found>,
    /// What was visible.
    pub sight: Sight,
    /// How many processes did not say what they were started as: each may be a tracker.
    pub nameless: usize,
}

/// What a tracker itself tells.
#[derive(Debug, Default)]
struct Details {
    stopped: Option<bool>,
    memory: Option<u64>,
    queued: Option<u64>,
    version: Option<String>,
}

/// Looks at all processes of the procfs at `proc`. With `assume_complete` the operator asserts that nothing
/// outside this PID namespace feeds a tracker.
#[must_use]
pub fn look(proc: &Path, assume_complete: bool) -> Everywhere {
    let mut processes = Processes::read(proc, &HashSet::new());
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    let pids: Vec<i32> =
        processes.running().map(|process| process.pid).filter(|pid| *pid != me).collect();
    let (launches, nameless) = launches(proc, &mut processes, pids.clone());
    let inlets = inlets(proc, &mut processes, &launches);

    let is_socket = |inlet: &Inlet| matches!(inlet, Inlet::Sockets(_));
    let peers = if inlets.values().any(is_socket) { sockets::peers().ok() } else { None };
    let keys: HashMap<i32, Option<Vec<Key>>> =
        inlets.iter().map(|(pid, inlet)| (*pid, keys(proc, *pid, inlet, peers.as_ref()))).collect();
    let (holders, unreadable) = holders(proc, &mut processes, pids, me, &keys);

    let mounts = Mounts::parse(&fs::read(proc.join("self/mountinfo")).unwrap_or_default());
    let sight = Sight::new(proc, &mounts, false, &processes, unreadable, assume_complete);
    let complete = sight.holders.is_empty();
    let mut details = details(proc, &mut processes, &launches, &inlets);
    let relatives = relatives(proc, &processes);
    let mut trackers: Vec<Found> = Vec::new();
    for (pid, inlet) in &inlets {
        let (Some(process), Some(launch)) = (processes.seen.get(pid), launches.get(pid)) else {
            continue;
        };
        let Some(details) = details.remove(pid) else { continue };
        let keys = keys.get(pid).and_then(Option::as_ref);
        let clients = keys.map(|keys| {
            let found: BTreeSet<i32> =
                keys.iter().filter_map(|key| holders.get(key)).flatten().copied().collect();
            let others = found.into_iter().filter(|client| client != pid);
            others.filter_map(|client| processes.seen.get(&client)).map(client).collect()
        });
        let pids = clients.as_ref().map(|clients: &Vec<Client>| {
            clients.iter().map(|client| client.pid).collect::<Vec<i32>>()
        });
        let left_behind = pids
            .filter(|_| complete && matches!(inlet, Inlet::Pipe(..)))
            .and_then(|pids| left::behind(launch.family, *pid, &pids, &relatives));
        trackers.push(Found {
            pid: *pid,
            family: launch.family,
            version: version(process, launch).or(details.version),
            dialect: launch.dialect.clone(),
            uid: effective(process),
            since: started_at(process.start_ticks),
            stopped: details.stopped,
            parent: process.ppid,
            reads: reads(inlet),
            all_clients: complete && clients.is_some(),
            clients,
            queued: details.queued,
            memory: details.memory,
            left_behind,
            note: note(inlet, keys.is_some()),
        });
    }
    trackers.sort_by_key(|tracker| tracker.pid);
    Everywhere { trackers, sight, nameless }
}

/// Those of `pids` that look like trackers by their command lines, and how many did not tell theirs.
fn launches(
    proc: &Path,
    processes: &mut Processes,
    pids: Vec<i32>,
) -> (HashMap<i32, Launch>, usize) {
    let lines = processes.command_lines(proc, pids);
    let nameless = lines.values().filter(|line| line.is_none()).count();
    let found = lines.into_iter().filter_map(|(pid, line)| {
        let exe = processes.seen.get(&pid).and_then(|process| process.exe.file_name());
        Some((pid, launch::read(exe, &line?)?))
    });
    (found.collect(), nameless)
}

/// What each of them reads. A Python that reads no pipe where its command line says so only looks like a
/// tracker, as does a program without any descriptor to read.
fn inlets(
    proc: &Path,
    processes: &mut Processes,
    launches: &HashMap<i32, Launch>,
) -> HashMap<i32, Inlet> {
    let root = proc.to_owned();
    let jobs = launches.iter().map(|(pid, launch)| (*pid, launch.clone())).collect();
    let found = processes.ask(jobs, move |pid, launch| inlet(&root.join(pid.to_string()), &launch));
    // One that does not answer keeps its descriptors to itself.
    let found = found.into_iter().map(|(pid, inlet)| (pid, inlet.unwrap_or(Inlet::Secret)));
    found
        .filter(|(pid, inlet)| match inlet {
            Inlet::Pipe(..) | Inlet::Secret => true,
            Inlet::Nothing => false,
            _ => launches.get(pid).is_some_and(|launch| !launch.family.is_python()),
        })
        .collect()
}

/// By what the clients of a tracker are known; nothing if by nothing.
fn keys(
    proc: &Path,
    pid: i32,
    inlet: &Inlet,
    peers: Option<&HashMap<u32, Option<u32>>>,
) -> Option<Vec<Key>> {
    match inlet {
        Inlet::Pipe(link, _) => Some(vec![Key::Link(link.clone())]),
        Inlet::Fifo(inode) => Some(vec![Key::Inode(*inode)]),
        Inlet::Sockets(inodes) => {
            // The kernel tells of those of our own network namespace.
            let network = |who: &str| fs::read_link(proc.join(who).join("ns/net")).ok();
            let ours = network("self")?;
            if network(&pid.to_string())? != ours {
                return None;
            }
            // One that is not in the list is no unix socket, or new.
            let found: Option<Vec<Option<u32>>> =
                inodes.iter().map(|inode| peers?.get(inode).copied()).collect();
            Some(found?.into_iter().flatten().map(|peer| Key::Link(link_of_socket(peer))).collect())
        }
        Inlet::File | Inlet::MayHang | Inlet::Nothing | Inlet::Secret => None,
    }
}

/// Which processes hold what of `keys`, and how many could not be looked into. Every process is looked at
/// once, those that came meanwhile too.
fn holders(
    proc: &Path,
    processes: &mut Processes,
    mut pids: Vec<i32>,
    me: i32,
    keys: &HashMap<i32, Option<Vec<Key>>>,
) -> (HashMap<Key, Vec<i32>>, usize) {
    let mut wanted = Wanted::default();
    for key in keys.values().flatten().flatten() {
        match key {
            Key::Link(link) => wanted.links.insert(link.clone()),
            Key::Inode(inode) => wanted.fifos.insert(*inode),
        };
    }
    let wanted = Arc::new(wanted);
    let mut holders: HashMap<Key, Vec<i32>> = HashMap::new();
    let mut unreadable = HashSet::new();
    for _look in 0..2 {
        let (root, wanted) = (proc.to_owned(), Arc::clone(&wanted));
        let jobs = pids.into_iter().map(|pid| (pid, ())).collect();
        let found =
            processes.ask(jobs, move |pid, ()| holdings(&root.join(pid.to_string()), pid, &wanted));
        for (pid, held) in found {
            // Who does not answer may hold anything.
            let held = held.unwrap_or(Holdings { incomplete: true, ..Holdings::default() });
            if held.incomplete {
                unreadable.insert(pid);
            }
            for key in held.writes {
                holders.entry(key).or_default().push(pid);
            }
        }
        pids = processes.read_more(proc).into_iter().filter(|pid| *pid != me).collect();
        let runs = |pid: &i32| processes.seen.get(pid).is_some_and(|p| !p.kernel && !p.dead);
        pids.retain(runs);
    }
    (holders, unreadable.len())
}

/// Asks each tracker for what it alone tells; those that are gone have no answer.
fn details(
    proc: &Path,
    processes: &mut Processes,
    launches: &HashMap<i32, Launch>,
    inlets: &HashMap<i32, Inlet>,
) -> HashMap<i32, Details> {
    let jobs = inlets.iter().filter_map(|(pid, inlet)| {
        let (process, launch) = (processes.seen.get(pid)?, launches.get(pid)?);
        let asks_maps = launch.family.is_python() && version(process, launch).is_none();
        Some((*pid, (process.start_ticks, inlet.clone(), asks_maps)))
    });
    let (jobs, root) = (jobs.collect(), proc.to_owned());
    let answers = processes.ask(jobs, move |pid, (start, inlet, asks_maps)| {
        let own = root.join(pid.to_string());
        let stat =
            procfs::process::Process::new_with_root(own.clone()).and_then(|p| p.stat()).ok()?;
        if stat.starttime != start || matches!(stat.state, 'Z' | 'X' | 'x') {
            return None;
        }
        Some(Details {
            stopped: Some(matches!(stat.state, 'T' | 't')),
            memory: resident(&own),
            queued: match &inlet {
                Inlet::Pipe(link, fd) => descriptors::queued(&root, &own, *fd, link),
                _ => None,
            },
            version: if asks_maps { mapped_version(&own) } else { None },
        })
    });
    // One that does not answer is still there.
    answers
        .into_iter()
        .filter_map(|(pid, details)| {
            Some((pid, details.unwrap_or_else(|| Some(Details::default()))?))
        })
        .collect()
}

/// Bytes of memory that a process has resident: the second field of `statm` (proc_pid_statm(5)).
fn resident(process: &Path) -> Option<u64> {
    let text = fs::read(process.join("statm")).ok()?;
    let pages = crate::tracker::evidence::mounts::number(words(&text).nth(1)?)?;
    pages.checked_mul(sys::page_size())
}

/// The version of Python in the name of something that a process has mapped: its library, or a module
/// below `lib/python3.N`.
fn mapped_version(process: &Path) -> Option<String> {
    version_in(&fs::read(process.join("maps")).ok()?)
}

fn version_in(maps: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"python3.";
    let mut rest = maps;
    while let Some(at) = rest.windows(BEFORE.len()).position(|window| window == BEFORE) {
        rest = rest.get(at + BEFORE.len()..)?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            return Some(format!("3.{}", std::str::from_utf8(rest.get(..digits)?).ok()?));
        }
    }
    None
}

/// The version of Python in the path of its executable, or in what it was called.
fn version(process: &Process, launch: &Launch) -> Option<String> {
    if !launch.family.is_python() {
        return None;
    }
    let exe = match &process.exe {
        Executable::Path(path) => Version::find(path),
        Executable::None | Executable::Unreadable => None,
    };
    exe.or_else(|| Version::find(&launch.program)).map(|version| version.to_string())
}

fn effective(process: &Process) -> u32 {
    let [_real, effective, ..] = process.uids;
    effective
}

fn client(process: &Process) -> Client {
    Client { pid: process.pid, comm: process.comm.clone(), uid: effective(process) }
}

fn reads(inlet: &Inlet) -> Option<Reads> {
    match inlet {
        Inlet::Pipe(..) => Some(Reads::Pipe),
        Inlet::Fifo(_) => Some(Reads::Fifo),
        Inlet::Sockets(_) => Some(Reads::Socket),
        Inlet::File => Some(Reads::File),
        Inlet::MayHang | Inlet::Nothing | Inlet::Secret => None,
    }
}

fn note(inlet: &Inlet, clients_are_known: bool) -> Option<&'static str> {
    match inlet {
        Inlet::Secret => Some("its descriptors could not be looked at"),
        Inlet::MayHang => {
            Some("reads from no pipe, unless from one on a file system that may never answer")
        }
        Inlet::File => Some("reads a file, to which anybody may write"),
        Inlet::Sockets(_) if !clients_are_known => {
            Some("who is at the other end of its sockets cannot be seen from here")
        }
        _ => None,
    }
}

/// What decides whether a tracker was left behind, of every process.
fn relatives(proc: &Path, processes: &Processes) -> HashMap<i32, Relative> {
    let is_first = in_first_pid_namespace(proc);
    let mut exes: HashMap<&[u8], usize> = HashMap::new();
    let mut all = HashMap::new();
    for process in processes.seen.values() {
        let exe = match &process.exe {
            Executable::Path(path) => {
                let next = exes.len() + 1;
                *exes.entry(path).or_insert(next)
            }
            Executable::None | Executable::Unreadable => 0,
        };
        let relative = Relative {
            parent: process.ppid,
            session: process.session,
            start: process.start_ticks,
            first: process.ns_pids.last() == Some(&1),
            of_machine: process.pid == 1 && is_first,
            systemd: process.exe.file_name() == Some(b"systemd"),
            exe,
        };
        all.insert(process.pid, relative);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_maps() {
        for (maps, version) in [
            ("7f-80 r--p 0 0:1 5 /usr/lib/libpython3.11.so.1.0\n", Some("3.11")),
            ("x /opt/python3.x/y\nz /usr/lib/python3.8/lib-dynload/_json.so\n", Some("3.8")),
            ("x /usr/bin/python3\n", None),
            ("", None),
        ] {
            assert_eq!(version_in(maps.as_bytes()).as_deref(), version, "{maps}");
        }
    }
}
