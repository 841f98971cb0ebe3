//! What could be seen at all. A verdict must never be made bolder by what nobody could look at.

use std::path::Path;

use serde::Serialize;

use super::mounts::Mounts;
use super::processes::{Processes, words};
use crate::tracker::host::in_first_pid_namespace;

/// The bit of `CAP_SYS_PTRACE` in a capability set.
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// Why sight is partial. The text is part of the JSON interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blind {
    /// /proc could not be read.
    NoProc,
    /// /proc hides other users' processes.
    Hidepid,
    /// This is not the first PID namespace: there may be processes outside it.
    PidNamespace,
    /// Some processes could not be read.
    UnreadableProcesses,
    /// The mount is idmapped somewhere: whose the processes there are says nothing of whose objects
    /// they may open.
    IdmappedMount,
    /// The message queues of this IPC namespace are mounted nowhere, and could not be mounted.
    MessageQueues,
    /// A daemon of rtrack does not tell what is registered with it.
    SilentTrackers,
}

impl Blind {
    /// For people.
    #[must_use]
    pub const fn says(self) -> &'static str {
        match self {
            Self::NoProc => "/proc cannot be read",
            Self::Hidepid => "/proc is mounted with hidepid",
            Self::PidNamespace => "processes outside this PID namespace are not visible",
            Self::UnreadableProcesses => "some processes could not be read",
            Self::IdmappedMount => "the mount has other owners where it is idmapped",
            Self::SilentTrackers => "what is registered with a tracker is not known",
            Self::MessageQueues => "message queues are not mounted at /dev/mqueue",
        }
    }
}

/// What of the processes was visible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// Why the list of processes is not complete; empty when it is.
    pub processes: Vec<Blind>,
    /// Why their mappings and descriptors are not all known; empty when they are.
    pub holders: Vec<Blind>,
    /// How many processes were seen.
    pub seen: usize,
    /// Of how many the mappings or descriptors could not be read.
    pub unreadable: usize,
    /// The operator asserted that nothing outside this PID namespace uses the mount, and it
    /// mattered.
    pub assumed_complete: bool,
    /// What objects there may be that could not be looked at, which says nothing of the others.
    pub unseen: Vec<Blind>,
}

impl Sight {
    /// Every reason why something is not known.
    #[must_use]
    pub fn reasons(&self) -> Vec<Blind> {
        let more = self.processes.iter().filter(|blind| !self.holders.contains(blind));
        self.holders.iter().chain(more).chain(&self.unseen).copied().collect()
    }

    /// Works out what was visible, in the procfs at `proc`, of the mount, which is `idmapped` somewhere; `unreadable` counts
    /// processes whose holdings could not be read.
    #[must_use]
    pub fn new(
        proc: &Path,
        mounts: &Mounts,
        idmapped: bool,
        processes: &Processes,
        unreadable: usize,
        assume_complete: bool,
    ) -> Self {
        let mut blind = Vec::new();
        if processes.missing.is_some() {
            blind.push(Blind::NoProc);
        }
        if hides_processes(proc, mounts) {
            blind.push(Blind::Hidepid);
        }
        let mut assumed_complete = false;
        if !in_first_pid_namespace(proc) {
            if assume_complete {
                assumed_complete = true;
            } else {
                blind.push(Blind::PidNamespace);
            }
        }
        if !processes.unreadable.is_empty() {
            blind.push(Blind::UnreadableProcesses);
        }
        let mut holders = blind.clone();
        if idmapped {
            blind.push(Blind::IdmappedMount);
        }
        if unreadable > 0 && !holders.contains(&Blind::UnreadableProcesses) {
            holders.push(Blind::UnreadableProcesses);
        }
        Self {
            processes: blind,
            holders,
            seen: processes.seen.len(),
            unreadable: unreadable + processes.unreadable.len(),
            assumed_complete,
            unseen: Vec::new(),
        }
    }
}

/// hidepid does not bind who may trace every process: `CAP_SYS_PTRACE` in the first user
/// namespace.
fn hides_processes(proc: &Path, mounts: &Mounts) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Some(mount) = mounts.at(proc.as_os_str().as_bytes()) else { return false };
    let hides = mount
        .options
        .split(|b| *b == b',')
        .filter_map(|option| option.strip_prefix(b"hidepid="))
        .any(|value| value != b"0" && value != b"off");
    hides && !(can_trace_all(proc))
}

fn can_trace_all(proc: &Path) -> bool {
    let capable = std::fs::read(proc.join("self/status")).is_ok_and(|status| {
        status
            .split(|b| *b == b'\n')
            .find_map(|line| line.strip_prefix(b"CapEff:"))
            .and_then(|rest| words(rest).next())
            .and_then(|hex| u64::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok())
            .is_some_and(|set| set & CAP_SYS_PTRACE != 0)
    });
    capable
        && std::fs::read(proc.join("self/uid_map"))
            .is_ok_and(|map| words(&map).eq([&b"0"[..], b"0", b"4294967295"]))
}
