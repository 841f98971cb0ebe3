//! What is known of the processes at one moment, and what that says of an object.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::Sought;
use super::matter::Matter;
use super::mounted::Mounted;
use super::owners::{Owners, is_system_uid};
use crate::tracker::evidence::clock::Clocks;
use crate::tracker::evidence::holders::{self, NameFilter, Scan, Search};
use crate::tracker::evidence::lease::Lease;
use crate::tracker::evidence::locks::Locks;
use crate::tracker::evidence::processes::{Depth, Executable, MappedUids, Process, Processes};
use crate::tracker::evidence::producers::{Catalogue, Family, Producer};
use crate::tracker::evidence::registrations::Registrations;
use crate::tracker::evidence::sight::{Blind, Sight};
use crate::tracker::evidence::waiters::Waiters;
use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::inventory::posix::stat_here;
use crate::tracker::resource::{Kind, Name};
use crate::tracker::sys::Nanoseconds;
use crate::tracker::verdict::{CreatorState, FamilyState, KinState, Who};
use crate::tracker::world::World;

/// What is known of the processes at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Who exists.
    pub processes: Processes,
    /// Who holds what.
    pub scan: Scan,
    /// What could be seen.
    pub sight: Sight,
    /// Who waits at System V message queues, if there are any.
    pub waiters: Waiters,
    /// When this look began: nothing of it is younger.
    pub began: Option<Instant>,
    clocks: Option<Clocks>,
    guardians: Guardians,
    families: HashMap<String, Members>,
    /// Whether it was looked who maps what of theirs.
    families_asked: bool,
    /// This process and those that it was started by.
    ancestors: HashSet<i32>,
    /// Running processes by each pid that they have in any namespace.
    by_any_pid: HashMap<i32, Vec<i32>>,
    /// Running processes by their parent and, in any namespace, the leaders of their group and
    /// session.
    by_elder: HashMap<i32, Vec<i32>>,
    /// Running processes by each uid that they have.
    by_uid: HashMap<u32, Vec<i32>>,
    /// Running processes in another user namespace.
    foreign: Vec<i32>,
    /// What was found out about the kin of owners: there are far fewer than objects.
    kin: Mutex<HashMap<(u32, bool), KinState>>,
    /// Who has what locked, if that matters; nothing inside that could not be found out.
    locks: Option<Option<Locks>>,
    /// What of the objects is mounted.
    mounted: Mounted,
    /// What is registered with live daemons.
    pub registrations: Registrations,
}

/// Who may come back for objects, or clean them.
#[derive(Debug, Default)]
struct Guardians {
    /// The processes whose command line is one of a guardian, by the guardian's name.
    known: HashMap<String, Vec<i32>>,
    /// Those that did not say what they are, lowest pid first.
    silent: Vec<i32>,
}

/// The running processes of a family, lowest pid first.
#[derive(Debug, Default)]
struct Members {
    alive: Vec<i32>,
    /// Those that may be: they could not be looked into.
    unseen: Vec<i32>,
}

impl Snapshot {
    /// Looks at every process.
    pub(super) fn take(world: &World, catalogue: &Arc<Catalogue>, matter: Matter<'_>) -> Self {
        let began = Some(Instant::now());
        let host = &world.host;
        let targets = Arc::new(matter.targets(world));
        let names: NameFilter = {
            let catalogue = Arc::clone(catalogue);
            Arc::new(move |name| catalogue.families().iter().any(|f| f.has_mapping(name)))
        };
        let names = matter.asks_for_family(catalogue).then_some(names);
        let search = Search {
            holders: targets.is_any(),
            enough: matter.sought == Sought::Some,
            deep: matter.threads,
            names,
        };
        let depth = if matter.asks_for_people(catalogue) { Depth::Whole } else { Depth::Stat };
        let mut processes = Processes::read_to(depth, &host.proc, matter.hung);
        let mut scan = holders::scan(host, &mut processes, &targets, &search);
        // A directory that nobody holds has only this look to show it.
        let mut asked = matter.objects.iter().zip(matter.leases).enumerate();
        let unexplained = asked.any(|(index, (object, lease))| {
            (*lease == Lease::Refused && object.sysv.is_none() || object.directory.is_some())
                && matter.sought.seeks(object, *lease)
                && !scan.holders.contains_key(&index)
        });
        if unexplained && !matter.threads {
            // Somebody whom the first look missed: a thread with a table or a working directory of
            // its own, perhaps.
            let deep = Search { deep: true, ..search.clone() };
            scan = holders::scan(host, &mut processes, &targets, &deep);
        }
        let guardians = find_guardians(host, catalogue, matter.objects, &mut processes);
        let families_asked = search.names.is_some();
        let of_family = |family: &Family| {
            (family.name.clone(), members(family, &processes, &scan, families_asked))
        };
        let families: HashMap<String, Members> =
            catalogue.families().iter().map(of_family).collect();
        // Of whom it may matter whose objects they may open.
        let anybody = matter.asks_for_kin();
        let of_guardians = guardians.known.values().flatten().chain(&guardians.silent);
        let of_families =
            families.values().flat_map(|members| members.alive.iter().chain(&members.unseen));
        let openers: HashSet<i32> = of_guardians.chain(of_families).copied().collect();
        processes.learn_uid_maps(&host.proc, |process| anybody || openers.contains(&process.pid));
        let sight = Sight::new(
            &host.proc,
            &scan.own_mounts,
            scan.maps_owners_of(&targets.places),
            &processes,
            scan.unreadable.len(),
            matter.assume_complete,
        );
        let queues = matter.objects.iter().any(|object| object.kind == Kind::SysvMsg);
        let registrations = Registrations::look(&host.proc, &mut processes);
        let mut unseen = world.unseen.own.clone();
        if !registrations.silent.is_empty() {
            unseen.push(Blind::SilentTrackers);
        }
        let mut snapshot = Self {
            began,
            registrations,
            sight: Sight { unseen, ..sight },
            clocks: Some(Clocks::read(host, &scan.own_mounts)),
            guardians,
            families_asked,
            families,
            ancestors: ancestors(&processes),
            locks: matter.asks_for_locks(catalogue).then(|| Locks::read(host)),
            mounted: Mounted::new(world, matter.objects, &targets, &scan),
            waiters: if queues { Waiters::read(host) } else { Waiters::default() },
            by_any_pid: HashMap::new(),
            by_elder: HashMap::new(),
            by_uid: HashMap::new(),
            foreign: Vec::new(),
            kin: Mutex::default(),
            processes,
            scan,
        };
        snapshot.index();
        snapshot
    }

    /// What `earlier` saw in the hands of a process that this look could not read has not left them.
    pub(super) fn remember(&mut self, earlier: &Self) {
        let start = |of: &Processes, pid| of.seen.get(&pid).map(|process| process.start_ticks);
        let goes_on = |pid| {
            let now = start(&self.processes, pid);
            now.is_some() && now == start(&earlier.processes, pid)
        };
        for (index, holders) in &earlier.scan.holders {
            for holder in holders.iter().filter(|holder| goes_on(holder.pid)) {
                let known = self.scan.holders.entry(*index).or_default();
                if self.scan.unreadable.contains(&holder.pid)
                    && known.iter().all(|other| other.pid != holder.pid)
                {
                    known.push(holder.clone());
                }
            }
        }
        self.scan.holders.retain(|_, holders| !holders.is_empty());
    }

    fn index(&mut self) {
        for process in self.processes.running() {
            let mut own = BTreeSet::from_iter(process.ns_pids.iter().copied());
            own.insert(process.pid);
            for pid in own {
                self.by_any_pid.entry(pid).or_default().push(process.pid);
            }
            let mut elders = BTreeSet::from_iter(process.ns_leaders.iter().copied());
            elders.extend([process.ppid, process.group, process.session]);
            for pid in elders {
                self.by_elder.entry(pid).or_default().push(process.pid);
            }
            for uid in process.all_uids().collect::<BTreeSet<u32>>() {
                self.by_uid.entry(uid).or_default().push(process.pid);
            }
            if !matches!(process.mapped_uids, MappedUids::Own) {
                self.foreign.push(process.pid);
            }
        }
    }

    fn started_after(&self, process: &Process, object: &Object) -> bool {
        self.clocks
            .as_ref()
            .is_some_and(|clocks| clocks.started_after(process.start_ticks, object.stat.born))
    }

    /// Mounts that the object is part of.
    pub(super) fn mounted(&self, object: &Object) -> Vec<String> {
        self.mounted.of(object)
    }

    /// Mounts and layers that nobody can look at, and that the object may be part of.
    pub(super) fn perhaps_mounted(&self, object: &Object) -> Vec<String> {
        self.mounted.perhaps(object, &self.scan)
    }

    /// What became of the pid in the object's name.
    pub(super) fn creator(&self, object: &Object, pid: i32) -> CreatorState {
        let candidates = self.by_any_pid.get(&pid).map_or(&[][..], Vec::as_slice);
        let mut recycled = None;
        let candidates = candidates.iter().filter_map(|pid| self.processes.seen.get(pid));
        // A pid of another PID namespace means something only where the object is in reach.
        let candidates =
            candidates.filter(|process| process.pid == pid || self.may_reach(process.pid, object));
        for process in candidates {
            if self.started_after(process, object) {
                recycled = Some(who(process));
            } else {
                return CreatorState::Alive(who(process));
            }
        }
        match recycled {
            Some(who) => CreatorState::Recycled(who),
            None if self.sight.processes.is_empty() => CreatorState::Dead,
            None => CreatorState::NotVisible,
        }
    }

    /// What became of a process that the kernel records with a System V object, which it was connected
    /// with until `last`; times of such objects are in whole seconds.
    pub(super) fn recorded(&self, pid: i32, last: Nanoseconds) -> CreatorState {
        let later = last + 1_000_000_000;
        let started_after = |process: &Process| {
            let clocks = self.clocks.as_ref();
            clocks.is_some_and(|clocks| clocks.started_after(process.start_ticks, Some(later)))
        };
        let known = self.by_any_pid.get(&pid).into_iter().flatten().any(|known| *known == pid);
        match self.processes.seen.get(&pid).filter(|_| known) {
            Some(process) if started_after(process) => CreatorState::Recycled(who(process)),
            Some(process) => CreatorState::Alive(who(process)),
            None if self.sight.processes.is_empty() => CreatorState::Dead,
            None => CreatorState::NotVisible,
        }
    }

    /// A process of the session or the group that the creator led, or a child of it.
    pub(super) fn descendant(&self, object: &Object, pid: i32) -> Option<Who> {
        let descendants = self.by_elder.get(&pid)?.iter().filter(|descendant| **descendant != pid);
        let mut descendants = descendants.filter_map(|pid| self.processes.seen.get(pid));
        let own = |process: &Process| [process.ppid, process.group, process.session].contains(&pid);
        // The kernel tells the pid that the creator has here.
        let may_be =
            |process: &Process| object.sysv.is_none() && self.may_reach(process.pid, object);
        let seen = descendants.find(|process| own(process) || may_be(process));
        seen.map(who)
    }

    /// Whether a process can reach the object, as far as is known. A message queue is reached without any
    /// mount.
    fn may_reach(&self, pid: i32, object: &Object) -> bool {
        object.kind == Kind::Mqueue || self.scan.may_see(pid, object.stat.dev)
    }

    /// A live daemon with which the object is registered, and who registered it, if that is known.
    pub(super) fn registered(&self, object: &Object) -> Option<(Who, Option<Who>)> {
        let mut all = self.registrations.of(object);
        // A name of another namespace is another object's.
        let found = all.find(|one| object.sysv.is_some() || self.may_reach(one.tracker, object))?;
        let tracker = self.processes.seen.get(&found.tracker).map(who)?;
        let by = found.by.as_ref().map(|(pid, comm)| Who { pid: *pid, comm: comm.clone() });
        Some((tracker, by))
    }

    /// A daemon with which the object may be registered: it does not answer.
    pub(super) fn perhaps_registered(&self, object: &Object) -> Option<Who> {
        let mut all = self.registrations.perhaps_of(object);
        let found = all.find(|pid| object.sysv.is_some() || self.may_reach(*pid, object))?;
        self.processes.seen.get(&found).map(who)
    }

    /// The producer's own lock on the object or on a lock file beside it.
    pub(super) fn locked(
        &self,
        dir: BorrowedFd<'_>,
        object: &Object,
        producer: Option<&Producer>,
    ) -> Option<String> {
        if object.sysv.is_some() {
            return None;
        }
        let says = |pid: i32, what: &str| match pid {
            0 => format!("somebody has a lock on {what}"),
            pid => format!("process {pid} has a lock on {what}"),
        };
        let locks = self.locks.as_ref()?;
        let holder = |dev, ino| locks.as_ref().map(|locks| locks.holder(dev, ino));
        // Whoever has a lock on the object itself has it open: the lease says so, too.
        if let Some(Some(pid)) = holder(object.stat.dev, object.stat.ino) {
            return Some(says(pid, "it"));
        }
        producer?.lock_suffixes.iter().find_map(|suffix| {
            let name = Name::new([object.file.as_bytes(), suffix.as_bytes()].concat());
            let stat = stat_here(dir, &name, object.stat.dev).ok()??;
            match holder(stat.dev, stat.ino) {
                Some(pid) => Some(says(pid?, &name.to_string())),
                None => {
                    Some(format!("{name} may be locked: /proc/locks could not be read in time"))
                }
            }
        })
    }

    /// A guardian that may clean the object, of those that could open it. One does not count only
    /// if it and its parent provably started after the object was born, and always counts once its
    /// own parent is gone.
    ///
    /// A process that did not tell its command line may be one: whoever can keep it from answering
    /// must not take a claim away by that. It is answered with `true`.
    pub(super) fn guardian(
        &self,
        object: &Object,
        owners: &Owners,
        name: &str,
    ) -> Option<(Who, bool)> {
        let known = self.known_guardian(object, owners, name).map(|who| (who, false));
        known.or_else(|| {
            let silent = self.guardians.silent.iter();
            let mut silent = silent.filter_map(|pid| self.processes.seen.get(pid));
            let process = silent.find(|process| self.may_open(process, object, owners))?;
            Some((who(process), true))
        })
    }

    fn known_guardian(&self, object: &Object, owners: &Owners, name: &str) -> Option<Who> {
        let guardians = self.guardians.known.get(name)?;
        guardians
            .iter()
            .filter_map(|pid| self.processes.seen.get(pid))
            .filter(|process| self.may_open(process, object, owners))
            .find(|process| {
                // Reparented means: its parent is none that could have started it.
                let parent = self.processes.seen.get(&process.ppid);
                let own_parent = parent.filter(|p| p.pid != 1 && self.is_of_any_family(p));
                !(self.started_after(process, object)
                    && own_parent.is_some_and(|parent| self.started_after(parent, object)))
            })
            .map(who)
    }

    fn is_of_any_family(&self, process: &Process) -> bool {
        self.families.values().any(|family| family.alive.contains(&process.pid))
    }

    /// What lives of the family that could open the object.
    pub(super) fn family(&self, object: &Object, owners: &Owners, name: &str) -> FamilyState {
        let Some(members) = self.families.get(name) else { return FamilyState::NotDefined };
        if !self.families_asked {
            return FamilyState::NotAsked;
        }
        // Neither cloned nor counted one by one for each object: any user can make many of both.
        let could_open = |pids: &[i32]| {
            let mut found = pids
                .iter()
                .filter_map(|pid| self.processes.seen.get(pid))
                .filter(|process| self.may_open(process, object, owners));
            found.next().map(|first| (who(first), 1 + found.count()))
        };
        if let Some((first, count)) = could_open(&members.alive) {
            return FamilyState::Alive(first, count);
        }
        could_open(&members.unseen)
            .map_or(FamilyState::Gone, |(first, _)| FamilyState::Unseen(first))
    }

    /// Whether a process lives that has the owner's uid, in any thread, or whose user namespace maps
    /// it, whatever its age.
    pub(super) fn kin(&self, object: &Object, owners: &Owners) -> KinState {
        let roots_too = bears_roots_group(object, owners);
        let mut known = self.kin.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kin = KinState::Gone;
        for uid in owners_of(object) {
            let of_one = known.entry((uid, roots_too));
            let of_one = of_one.or_insert_with(|| self.kin_of(uid, roots_too));
            if *of_one != KinState::Gone && kin != KinState::SystemUser {
                kin = of_one.clone();
            }
        }
        kin
    }

    fn kin_of(&self, uid: u32, roots_too: bool) -> KinState {
        let overflow = self.processes.overflow;
        if is_system_uid(uid) || overflow == Some(uid) {
            return KinState::SystemUser;
        }
        let of = |uid: u32| self.by_uid.get(&uid).into_iter().flatten().copied();
        let mut pids: BTreeSet<i32> = of(uid).chain(overflow.into_iter().flat_map(of)).collect();
        let strangers = self.foreign.iter().filter_map(|pid| self.processes.seen.get(pid));
        pids.extend(strangers.filter(|process| process.maps_uid(uid)).map(|process| process.pid));
        if roots_too {
            pids.extend(of(0).filter(|pid| !self.ancestors.contains(pid)));
        }
        match pids.first().and_then(|pid| self.processes.seen.get(pid)) {
            Some(process) => KinState::Alive(who(process), pids.len()),
            None => KinState::Gone,
        }
    }

    /// Whether a process could open the object: it is its owner's, or the mode lets others in.
    ///
    /// A root daemon that took the owner's uid to make the object and gave it back leaves no trace
    /// of that uid, but it leaves its group: then root's processes count too, but for those that
    /// this rtrack itself was started by.
    fn may_open(&self, process: &Process, object: &Object, owners: &Owners) -> bool {
        let overflow = self.processes.overflow;
        super::is_shared(object.stat.mode)
            || owners_of(object).any(|uid| process.may_be_of(uid, overflow))
            || bears_roots_group(object, owners)
                && process.may_be_of(0, overflow)
                && !self.ancestors.contains(&process.pid)
    }
}

/// Who may use the object as its owner: of a System V object also who made it, if that is another one.
pub(super) fn owners_of(object: &Object) -> impl Iterator<Item = u32> {
    let own = object.stat.uid;
    let creator = object.sysv.as_ref().and_then(|entry| entry.creator_uid);
    std::iter::once(own).chain(creator.filter(|uid| *uid != own))
}

/// Whether the object has root's group and its owner does not.
fn bears_roots_group(object: &Object, owners: &Owners) -> bool {
    let creators = object.sysv.as_ref().and_then(|entry| entry.creator_gid);
    let roots = object.stat.gid == 0 || creators == Some(0);
    object.stat.uid != 0 && roots && owners.primary_group(object.stat.uid) != Some(0)
}

/// Who may be a guardian of any of `objects`. Command lines are read last, and only of processes that could matter.
fn find_guardians(
    host: &Host,
    catalogue: &Catalogue,
    objects: &[Object],
    processes: &mut Processes,
) -> Guardians {
    let mut names = BTreeSet::new();
    let mut owners = HashSet::from([0]);
    let mut anybody = false;
    for object in objects {
        let found = catalogue.of(object);
        if let Some(name) = found.and_then(|found| found.producer.guardian.as_ref()) {
            names.insert(name.as_str());
            owners.extend(owners_of(object));
            anybody |= super::is_shared(object.stat.mode);
        }
    }
    if names.is_empty() {
        return Guardians::default();
    }
    let overflow = processes.overflow;
    // Of whom its uids say it already, nothing else has to be known.
    let seems = |process: &Process| owners.iter().any(|uid| process.seems_of(*uid, overflow));
    processes.learn_uid_maps(&host.proc, |process| !anybody && !seems(process));
    let pids = processes
        .running()
        .filter(|process| !matches!(process.exe, Executable::None))
        .filter(|process| {
            anybody || owners.iter().any(|uid| process.may_be_of(*uid, processes.overflow))
        })
        .map(|process| process.pid)
        .collect();
    let lines = processes.command_lines(&host.proc, pids);
    let of = |name: &str| -> Option<Vec<i32>> {
        let guardian = catalogue.guardian(name)?;
        let lines = lines.iter().filter(|(_, line)| {
            line.as_deref().is_some_and(|line| guardian.has_command_line(line))
        });
        let mut pids: Vec<i32> = lines.map(|(pid, _)| *pid).collect();
        pids.sort_unstable();
        Some(pids)
    };
    let known = names.into_iter().filter_map(|name| Some((name.to_owned(), of(name)?))).collect();
    let silent = lines.iter().filter(|(_, line)| line.is_none());
    let mut silent: Vec<i32> = silent.map(|(pid, _)| *pid).collect();
    silent.sort_unstable();
    Guardians { known, silent }
}

/// The members of a family among the running processes.
fn members(family: &Family, processes: &Processes, scan: &Scan, asked: bool) -> Members {
    let mut members = Members::default();
    // Many processes have few names.
    let mut known: HashMap<&[u8], bool> = HashMap::new();
    let mut has = |name| *known.entry(name).or_insert_with_key(|name| family.has_executable(name));
    for process in processes.running() {
        // Its own word counts too: a name can be forged, but a forged one only protects.
        let named = has(&process.comm) || process.exe.file_name().is_some_and(&mut has);
        let maps = scan.mapped_names.get(&process.pid);
        if named || maps.is_some_and(|names| names.iter().any(|name| family.has_mapping(name))) {
            members.alive.push(process.pid);
        } else if !asked {
            // By what else it may be known was not looked at.
        } else if process.exe == Executable::Unreadable || !scan.maps_read.contains(&process.pid) {
            members.unseen.push(process.pid);
        }
    }
    members.alive.sort_unstable();
    members.unseen.sort_unstable();
    members
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

fn who(process: &Process) -> Who {
    Who { pid: process.pid, comm: process.comm.clone() }
}
