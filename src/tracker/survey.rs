//! One look at the machine: the objects, what is known about each, and the verdicts.
//!
//! The order matters. Objects first, then the kernel's answer about each, then the processes; and
//! what a lease holds up is never kept waiting for any of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::evidence::clock::Clocks;
use super::evidence::holders::{self, Holder, NameFilter, Scan, Targets};
use super::evidence::lease::{self, Lease, Look};
use super::evidence::mounts::Mounts;
use super::evidence::processes::{Executable, Process, Processes};
use super::evidence::producers::{Catalogue, CatalogueError, Family, Match};
use super::evidence::sight::Sight;
use super::host::Host;
use super::inventory::posix::{self, Object, Semaphore};
use super::resource::{Kind, Name};
use super::sys::{Nanoseconds, Stat};
use super::verdict::{CreatorState, Facts, FamilyState, Judgement, ProducerFacts, Who, judge};

/// How long another rtrack may keep this one from probing.
const COURTESY: Duration = Duration::from_millis(250);

/// So many mounts of one object are told of: any user can make a hundred thousand.
const MOST_USES: usize = 16;

/// What the operator said about judging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judging {
    /// What is younger is claimed.
    pub grace: Duration,
    /// Nothing outside this PID namespace uses the mount.
    pub assume_complete: bool,
}

/// Why there is no survey.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The directory could not be read.
    #[error("read {path}: {source}")]
    Inventory {
        /// Which directory.
        path: std::path::PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// The catalogue cannot be used.
    #[error("catalogue of producers: {0}")]
    Catalogue(#[from] CatalogueError),
}

/// What is known of the processes at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Who exists.
    pub processes: Processes,
    /// Who holds what.
    pub scan: Scan,
    /// What could be seen.
    pub sight: Sight,
    clocks: Clocks,
    guardians: HashMap<String, Vec<i32>>,
    families: HashMap<String, Members>,
    /// This process and those that it was started by.
    ancestors: HashSet<i32>,
    /// Running processes by each pid that they have in any namespace.
    by_any_pid: HashMap<i32, Vec<i32>>,
    uses: HashMap<Vec<u8>, Vec<String>>,
}

/// The running processes of a family, by pid.
#[derive(Debug, Default)]
struct Members {
    alive: Vec<i32>,
    /// Those that may be: they could not be looked into.
    unseen: Vec<i32>,
}

/// Everything that one look found.
#[derive(Debug)]
pub struct Survey {
    /// The objects, in the order of the directory.
    pub objects: Vec<Object>,
    /// What the kernel said of each.
    pub leases: Vec<Lease>,
    /// The processes.
    pub snapshot: Snapshot,
    /// Whether leases tell the truth on this mount.
    pub lease_works: bool,
    /// When the objects were read.
    pub taken_at: Nanoseconds,
    /// Objects that could not be looked at, each with the reason.
    pub troubles: Vec<(String, io::Error)>,
    judging: Judging,
    catalogue: Catalogue,
    owners: HashMap<u32, Owner>,
}

impl Survey {
    /// Reads what exists. What is selected from it is then given to [`Survey::take`].
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn inventory(host: &Host) -> Result<Vec<Object>, SurveyError> {
        posix::read(host)
            .map_err(|source| SurveyError::Inventory { path: host.shm_path.clone(), source })
    }

    /// Finds out what is known about `objects`, which were read just before.
    ///
    /// # Errors
    /// The catalogue cannot be used. What goes wrong with one object is in
    /// [`Survey::troubles`].
    pub fn take(host: &Host, judging: Judging, objects: Vec<Object>) -> Result<Self, SurveyError> {
        let catalogue = Catalogue::built_in()?;
        let taken_at = (host.clock.wall)();
        let lease_works = lease::calibrate(host);
        let mut survey = Self {
            leases: vec![Lease::NotAsked; objects.len()],
            snapshot: Snapshot::empty(host),
            objects,
            lease_works,
            taken_at,
            troubles: Vec::new(),
            judging,
            catalogue,
            owners: HashMap::new(),
        };
        survey.probe_all(host);
        survey.snapshot = survey.look_at_processes(host);
        survey.probe_unexplained_again(host);
        // Looked up once, and never under a lease: a name service may take its time.
        let uids: HashSet<u32> = survey.objects.iter().map(|object| object.stat.uid).collect();
        survey.owners = uids.into_iter().map(|uid| (uid, Owner::look_up(uid))).collect();
        Ok(survey)
    }

    /// Looks at the processes again, for a judgement that is not older than a few seconds.
    pub fn refresh(&mut self, host: &Host) {
        self.snapshot = self.look_at_processes(host);
    }

    /// The verdict on the object at `index`.
    #[must_use]
    pub fn judge(&self, host: &Host, index: usize) -> Option<Judgement> {
        Some(judge(&self.facts(host, index)?))
    }

    /// The user name of an owner.
    #[must_use]
    pub fn owner(&self, uid: u32) -> &str {
        self.owners.get(&uid).map_or("", |owner| owner.name.as_str())
    }

    /// The catalogue's entry for the object at `index`.
    #[must_use]
    pub fn producer(&self, object: &Object) -> Option<Match<'_>> {
        self.catalogue.find(object.kind, object.file.as_bytes())
    }

    /// Whether the creator that the name carries is alive, and its pid.
    #[must_use]
    pub fn creator(&self, object: &Object) -> Option<(i32, CreatorState)> {
        let pid = self.producer(object)?.pid?;
        Some((pid, self.creator_state(object, pid)))
    }

    /// Who holds the object at `index`.
    #[must_use]
    pub fn holders(&self, index: usize) -> &[Holder] {
        self.snapshot.scan.holders.get(&index).map_or(&[], Vec::as_slice)
    }

    fn probe_all(&mut self, host: &Host) {
        let lock = lease::courtesy_lock(host, COURTESY);
        let mut gone = HashSet::new();
        for index in 0..self.objects.len() {
            if !self.probe(host, index) {
                gone.insert(index);
            }
        }
        drop(lock);
        let mut index = 0;
        self.objects.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
        let mut index = 0;
        self.leases.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
    }

    /// Asks the kernel about one object; `false` when it is no longer there. One that was replaced
    /// is read anew, a few times.
    fn probe(&mut self, host: &Host, index: usize) -> bool {
        for _attempt in 0..3 {
            let Some(object) = self.objects.get(index) else { return false };
            if !matches!(object.kind, Kind::Shm | Kind::Sem) {
                return true;
            }
            // What would be claimed anyway is left in peace: a lease is felt by who opens.
            let young = quiet(host, &object.stat) < nanoseconds(self.judging.grace);
            let persistent = self.producer(object).is_some_and(|m| m.producer.persistent_by_design);
            let ask = self.lease_works && !young && !persistent;
            let head = object.may_be_semaphore();
            if !ask && !head {
                let unsupported =
                    if self.lease_works { Lease::NotAsked } else { Lease::Unsupported };
                self.set(index, unsupported, None);
                return true;
            }
            let (file, identity) = (object.file.clone(), object.identity());
            match lease::look(host, host.shm(), &file, &identity, ask, head) {
                Ok(Look::Seen { lease, head }) => {
                    let lease = match lease {
                        Lease::NotAsked if !self.lease_works => Lease::Unsupported,
                        other => other,
                    };
                    self.set(index, lease, head.as_deref().and_then(Semaphore::parse));
                    return true;
                }
                Ok(Look::Gone) => return false,
                Ok(Look::Changed) => match posix::read_one(host, &file) {
                    Ok(object) => {
                        if let Some(slot) = self.objects.get_mut(index) {
                            *slot = object;
                        }
                    }
                    Err(_) => return false,
                },
                Err(error) => {
                    self.troubles.push((object.shown_id(), error));
                    self.set(index, Lease::Unsupported, None);
                    return true;
                }
            }
        }
        // Replaced faster than it can be looked at: somebody uses the name.
        self.set(index, Lease::Refused, None);
        true
    }

    fn set(&mut self, index: usize, lease: Lease, semaphore: Option<Semaphore>) {
        if let Some(slot) = self.leases.get_mut(index) {
            *slot = lease;
        }
        if let Some(object) = self.objects.get_mut(index) {
            object.semaphore = semaphore;
        }
    }

    fn look_at_processes(&self, host: &Host) -> Snapshot {
        let mut targets = Targets::default();
        for (index, object) in self.objects.iter().enumerate() {
            targets.names.push(object.file.as_bytes().to_vec());
            targets.add((object.stat.dev, object.stat.ino), index);
            if let Some(tree) = &object.directory {
                let own = (object.stat.dev, object.stat.ino);
                for inode in tree.inodes.iter().filter(|inode| **inode != own) {
                    targets.add(*inode, index);
                }
            }
        }
        let patterns: Vec<String> =
            self.catalogue.families().iter().map(|f| f.name.clone()).collect();
        let catalogue = Catalogue::built_in().ok();
        let remember: NameFilter = Arc::new(move |name| {
            catalogue.as_ref().is_some_and(|catalogue| {
                patterns.iter().filter_map(|p| catalogue.family(p)).any(|f| f.has_mapping(name))
            })
        });
        let mut processes = Processes::read(host);
        let targets = Arc::new(targets);
        let mut scan = holders::scan(host, &mut processes, &targets, &remember, !self.lease_works);
        let unexplained =
            self.leases.iter().enumerate().any(|(index, lease)| {
                *lease == Lease::Refused && !scan.holders.contains_key(&index)
            });
        if unexplained && self.lease_works {
            // Somebody whom the first look missed: a thread with a table of its own, perhaps.
            scan = holders::scan(host, &mut processes, &targets, &remember, true);
        }
        let own = scan.mounts.first().cloned().unwrap_or_default();
        let sight =
            Sight::new(host, &own, &processes, scan.unreadable.len(), self.judging.assume_complete);
        let clocks = Clocks::read(host, &own);
        let guardians = self.find_guardians(host, &processes);
        let uses = uses(host, &scan.mounts);
        let families = self
            .catalogue
            .families()
            .iter()
            .map(|family| (family.name.clone(), members(family, &processes, &scan)))
            .collect();
        let mut by_any_pid: HashMap<i32, Vec<i32>> = HashMap::new();
        for process in processes.running() {
            let pids: BTreeSet<i32> =
                process.ns_pids.iter().copied().chain([process.pid]).collect();
            for pid in pids {
                by_any_pid.entry(pid).or_default().push(process.pid);
            }
        }
        let ancestors = ancestors(&processes);
        Snapshot {
            processes,
            scan,
            sight,
            clocks,
            guardians,
            families,
            ancestors,
            by_any_pid,
            uses,
        }
    }

    /// An object that the kernel calls held and nobody was found for may have been opened for a
    /// moment only, by another rtrack perhaps: it is asked about once more.
    fn probe_unexplained_again(&mut self, host: &Host) {
        let again: Vec<usize> = (0..self.objects.len())
            .filter(|index| {
                self.leases.get(*index) == Some(&Lease::Refused) && self.holders(*index).is_empty()
            })
            .collect();
        if again.is_empty() {
            return;
        }
        let lock = lease::courtesy_lock(host, COURTESY);
        for index in again {
            let Some(object) = self.objects.get(index) else { continue };
            let (file, identity) = (object.file.clone(), object.identity());
            if let Ok(Look::Seen { lease: Lease::Granted, .. }) =
                lease::look(host, host.shm(), &file, &identity, true, false)
                && let Some(slot) = self.leases.get_mut(index)
            {
                *slot = Lease::Granted;
            }
        }
        drop(lock);
    }

    /// The processes whose command line is one of a guardian, by the guardian's name. Command
    /// lines are read last, and only of processes that could matter.
    fn find_guardians(&self, host: &Host, processes: &Processes) -> HashMap<String, Vec<i32>> {
        let mut names = BTreeSet::new();
        let mut owners = HashSet::from([0]);
        let mut anybody = false;
        for object in &self.objects {
            if let Some(name) = self.producer(object).and_then(|m| m.producer.guardian.as_ref()) {
                names.insert(name.as_str());
                owners.insert(object.stat.uid);
                anybody |= is_shared(object.stat.mode);
            }
        }
        if names.is_empty() {
            return HashMap::new();
        }
        let pids = processes
            .running()
            .filter(|process| !matches!(process.exe, Executable::None))
            .filter(|process| {
                anybody || owners.iter().any(|uid| process.may_be_of(*uid, processes.overflow))
            })
            .map(|process| process.pid)
            .collect();
        let lines = Processes::command_lines(host, pids);
        names
            .into_iter()
            .filter_map(|name| {
                let guardian = self.catalogue.guardian(name)?;
                let mut pids: Vec<i32> = lines
                    .iter()
                    .filter(|(_, line)| guardian.has_command_line(line))
                    .map(|(pid, _)| *pid)
                    .collect();
                pids.sort_unstable();
                Some((name.to_owned(), pids))
            })
            .collect()
    }

    /// Everything that the verdict on the object at `index` depends on.
    #[must_use]
    pub fn facts(&self, host: &Host, index: usize) -> Option<Facts> {
        let object = self.objects.get(index)?;
        let snapshot = &self.snapshot;
        let found = self.producer(object);
        let shared_mode = is_shared(object.stat.mode);
        let directory = object.kind == Kind::Dir;
        let mut holder_blind: Vec<&'static str> =
            snapshot.sight.holders.iter().map(|blind| blind.says()).collect();
        if object.directory.as_ref().is_some_and(|tree| tree.truncated) {
            holder_blind.push("not everything in the directory could be read");
        }
        Some(Facts {
            known_kind: object.kind != Kind::Other,
            directory,
            lease: *self.leases.get(index)?,
            holders: self
                .holders(index)
                .iter()
                .map(|h| (Who { pid: h.pid, comm: h.comm.clone() }, h.how.clone()))
                .collect(),
            mounted: snapshot.uses.get(object.file.as_bytes()).cloned().unwrap_or_default(),
            quiet: quiet(host, &object.stat),
            grace: nanoseconds(self.judging.grace),
            producer: found.map(|m| ProducerFacts {
                id: m.producer.id.clone(),
                software: m.producer.software.clone(),
                held: m.producer.held_while_alive,
                persistent: m.producer.persistent_by_design,
                proof: m.producer.proof,
            }),
            creator: self.creator(object),
            guardian: found.and_then(|m| self.guardian(object, m.producer.guardian.as_deref()?)),
            family: found
                .and_then(|m| m.producer.family.as_deref())
                .map_or(FamilyState::NotDefined, |name| self.family(object, name)),
            shared_mode,
            owner: self.owner(object.stat.uid).to_owned(),
            process_blind: snapshot.sight.processes.iter().map(|blind| blind.says()).collect(),
            holder_blind,
            assumed_complete: snapshot.sight.assumed_complete,
        })
    }

    fn creator_state(&self, object: &Object, pid: i32) -> CreatorState {
        let processes = &self.snapshot.processes;
        let mut recycled = None;
        let candidates = self.snapshot.by_any_pid.get(&pid).map_or(&[][..], Vec::as_slice);
        for process in candidates.iter().filter_map(|pid| processes.seen.get(pid)) {
            if self.snapshot.clocks.started_after(process.start_ticks, object.stat.born) {
                recycled = Some(who(process));
            } else {
                return CreatorState::Alive(who(process));
            }
        }
        match recycled {
            Some(who) => CreatorState::Recycled(who),
            None if self.snapshot.sight.processes.is_empty() => CreatorState::Dead,
            None => CreatorState::NotVisible,
        }
    }

    /// Whether a process could open the object: it is its owner's, or the mode lets others in.
    ///
    /// A root daemon that took the owner's uid to make the object and gave it back leaves no trace
    /// of that uid, but it leaves its group: then root's processes count too, but for those that
    /// this rtrack itself was started by.
    fn may_open(&self, process: &Process, object: &Object) -> bool {
        let overflow = self.snapshot.processes.overflow;
        is_shared(object.stat.mode)
            || process.may_be_of(object.stat.uid, overflow)
            || self.bears_roots_group(object)
                && process.may_be_of(0, overflow)
                && !self.snapshot.ancestors.contains(&process.pid)
    }

    fn bears_roots_group(&self, object: &Object) -> bool {
        object.stat.uid != 0
            && object.stat.gid == 0
            && self.owners.get(&object.stat.uid).and_then(|owner| owner.gid) != Some(0)
    }

    /// A guardian that may clean the object, of those that could open it. One does not count only if it and its parent provably started after
    /// the object was born, and always counts once its own parent is gone.
    fn guardian(&self, object: &Object, name: &str) -> Option<(Who, String)> {
        let what = &self.catalogue.guardian(name)?.what;
        let snapshot = &self.snapshot;
        let late = |process: &Process| {
            snapshot.clocks.started_after(process.start_ticks, object.stat.born)
        };
        snapshot
            .guardians
            .get(name)?
            .iter()
            .filter_map(|pid| snapshot.processes.seen.get(pid))
            .filter(|process| self.may_open(process, object))
            .find(|process| {
                let parent = snapshot.processes.seen.get(&process.ppid);
                // Reparented means: the parent is none that could have started it.
                let own_parent = parent.filter(|p| p.pid != 1 && self.is_of_any_family(p));
                !(late(process) && own_parent.is_some_and(late))
            })
            .map(|process| (who(process), what.clone()))
    }

    fn is_of_any_family(&self, process: &Process) -> bool {
        self.snapshot.families.values().any(|family| family.alive.contains(&process.pid))
    }

    fn family(&self, object: &Object, name: &str) -> FamilyState {
        let processes = &self.snapshot.processes;
        let Some(members) = self.snapshot.families.get(name) else {
            return FamilyState::NotDefined;
        };
        let could_open = |pids: &[i32]| {
            let mut found = pids
                .iter()
                .filter_map(|pid| processes.seen.get(pid))
                .filter(|process| self.may_open(process, object));
            found.next().map(|first| (who(first), 1 + found.count()))
        };
        if let Some((first, count)) = could_open(&members.alive) {
            return FamilyState::Alive(first, count);
        }
        could_open(&members.unseen)
            .map(|(first, _)| first)
            .map_or(FamilyState::Gone, FamilyState::Unseen)
    }
}

/// This process, its parent, and so on.
fn ancestors(processes: &Processes) -> HashSet<i32> {
    let mut line = HashSet::new();
    let mut pid = nix::unistd::getpid().as_raw();
    while let Some(process) = processes.seen.get(&pid)
        && line.insert(pid)
    {
        pid = process.ppid;
    }
    line
}

/// The members of a family among the running processes, lowest pid first.
fn members(family: &Family, processes: &Processes, scan: &Scan) -> Members {
    let mut members = Members::default();
    for process in processes.running() {
        // Its own word counts too: a name can be forged, but a forged one only protects.
        let named = family.has_executable(&process.comm)
            || process.exe.file_name().is_some_and(|name| family.has_executable(name));
        let maps = scan.mapped_names.get(&process.pid);
        if named || maps.is_some_and(|names| names.iter().any(|name| family.has_mapping(name))) {
            members.alive.push(process.pid);
        } else if process.exe == Executable::Unreadable || !scan.maps_read.contains(&process.pid) {
            members.unseen.push(process.pid);
        }
    }
    members.alive.sort_unstable();
    members.unseen.sort_unstable();
    members
}

impl Snapshot {
    fn empty(host: &Host) -> Self {
        Self {
            processes: Processes::default(),
            scan: Scan::default(),
            sight: Sight::default(),
            clocks: Clocks::read(host, &Mounts::default()),
            guardians: HashMap::new(),
            families: HashMap::new(),
            ancestors: HashSet::new(),
            by_any_pid: HashMap::new(),
            uses: HashMap::new(),
        }
    }
}

/// The objects that are mounted somewhere, under a mount, or a layer of an overlay.
fn uses(host: &Host, namespaces: &[Arc<Mounts>]) -> HashMap<Vec<u8>, Vec<String>> {
    let mut uses: HashMap<Vec<u8>, Vec<String>> = HashMap::new();
    let Ok(dev) = host.shm_dev() else { return uses };
    for mounts in namespaces {
        for (name, says) in mounts.uses_of(dev) {
            let known = uses.entry(name).or_default();
            if known.len() < MOST_USES && !known.contains(&says) {
                known.push(says);
            }
        }
    }
    uses
}

fn who(process: &Process) -> Who {
    Who { pid: process.pid, comm: process.comm.clone() }
}

/// Whether a mode grants anything to group or others.
#[must_use]
pub fn is_shared(mode: u32) -> bool {
    mode & 0o077 != 0
}

fn nanoseconds(duration: Duration) -> Nanoseconds {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

/// Nanoseconds since the later of birth and last change.
#[must_use]
pub fn quiet(host: &Host, stat: &Stat) -> Nanoseconds {
    (host.clock.wall)() - stat.born.unwrap_or(stat.changed).max(stat.changed)
}

/// What the user database says of an owner.
#[derive(Debug)]
struct Owner {
    /// The name, or `uid N` where there is none.
    name: String,
    /// The primary group.
    gid: Option<u32>,
}

impl Owner {
    fn look_up(uid: u32) -> Self {
        match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
            Ok(Some(user)) => {
                Self { name: Name::new(user.name).to_string(), gid: Some(user.gid.as_raw()) }
            }
            _ => Self { name: format!("uid {uid}"), gid: None },
        }
    }
}
