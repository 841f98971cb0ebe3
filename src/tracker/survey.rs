//! One look at the machine: the objects, what is known about each, and the verdicts.
//!
//! The order matters. Objects first, then the kernel's answer about each, then the processes; and
//! what a lease holds up is never kept waiting for any of it.

mod matter;
mod mounted;
mod owners;
mod snapshot;
mod sysv;

pub use owners::owner_name;
pub use snapshot::Snapshot;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::matter::Matter;
use self::owners::Owners;
use super::evidence::holders::{Holder, KEEPS_UNSEEN};
use super::evidence::lease::{self, Lease, Look};
use super::evidence::producers::{Broken, Catalogue, Match, operator_directories};
use super::host::Host;
use super::inventory::{self, Inventory, Object, SEMAPHORE_SIZE, Semaphore, posix};
use super::parallel;
use super::reap::{at_work, is_quarantine_name};
use super::resource::{Identity, Kind};
use super::sys::Nanoseconds;
use super::verdict::{
    CreatorState, Facts, FamilyState, Guardian, Judgement, ProducerFacts, QueueFacts, Who, judge,
};
use super::world::World;

/// How long another rtrack may keep this one from probing.
const COURTESY: Duration = Duration::from_millis(250);

/// Whose mappings and descriptors are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Sought {
    /// Every process that has an object open or mapped
    #[default]
    All,
    /// One process for each object
    Some,
    /// Nobody's, where the kernel itself says whether an object is in use
    None,
}

/// What the operator said about judging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judging {
    /// What is younger is claimed.
    pub grace: Duration,
    /// Nothing outside this PID namespace uses the mount.
    pub assume_complete: bool,
    /// Ask the kernel also about what would be claimed anyway, and look into every thread.
    pub thorough: bool,
    /// Whose mappings and descriptors are looked at.
    pub sought: Sought,
}

/// What belongs to what was selected although it is not in the inventory.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Whether what has taken the name of an object meanwhile does; it is given the two.
    pub instead: &'a dyn Fn(&Object, &Object) -> bool,
    /// Whether an object without a name does, that somebody still holds; nothing if none does.
    pub unlinked: Option<&'a dyn Fn(&Object) -> bool>,
}

impl Sought {
    /// Whether holders of such an object are looked for: a directory, and what the kernel does not answer about,
    /// have nothing else to be judged by.
    fn seeks(self, object: &Object, lease: Lease) -> bool {
        let undecided = matches!(lease, Lease::NoPermission | Lease::Unsupported);
        self != Self::None || object.sysv.is_none() && (undecided || object.kind == Kind::Dir)
    }
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
    /// Of each place: whether leases tell the truth there.
    pub lease_works: Vec<bool>,
    /// When the objects were read.
    pub taken_at: Nanoseconds,
    /// Places where another reaper of this user's is at work, whose leases asking would break: so nothing
    /// was asked there.
    pub reapers_at_work: HashSet<usize>,
    /// Objects that could not be looked at, each with the reason.
    pub troubles: Vec<(String, io::Error)>,
    judging: Judging,
    catalogue: Arc<Catalogue>,
    owners: Owners,
}

impl Survey {
    /// Finds out what is known about the objects of `inventory`, which was read just before.
    ///
    /// What else belongs to it, `wanted` says. What goes wrong with
    /// one object is in [`Survey::troubles`], with the operators' catalogue in
    /// [`Catalogue::broken`].
    #[must_use]
    pub fn take(world: &World, judging: Judging, inventory: Inventory, wanted: Wanted<'_>) -> Self {
        let named = wanted.unlinked.map(|_| Arc::clone(&inventory.named));
        let Inventory { objects, troubles, .. } = inventory;
        let catalogue = Arc::new(Catalogue::load(&operator_directories()));
        let taken_at = (world.host.clock.wall)();
        let lease_works = (0..world.places.len())
            .map(|place| world.shm(place).is_none_or(lease::calibrate))
            .collect();
        let mut survey = Self {
            leases: vec![Lease::NotAsked; objects.len()],
            snapshot: Snapshot::default(),
            objects,
            lease_works,
            reapers_at_work: HashSet::new(),
            taken_at,
            troubles,
            judging,
            catalogue,
            owners: Owners::default(),
        };
        parallel::map(&survey.objects, |object| survey.catalogue.of(object).is_some());
        survey.probe_all(world, wanted.instead);
        survey.snapshot = survey.look_at_processes(world, named.as_ref());
        if let Some(unlinked) = wanted.unlinked {
            survey.add_unlinked(world, unlinked);
        }
        survey.probe_unexplained_again(world);
        survey.owners =
            Owners::look_up(survey.objects.iter().map(|object| object.stat.uid).collect());
        survey
    }

    /// Looks at the processes again, for a judgement that is not older than a few seconds.
    pub fn refresh(&mut self, world: &World) {
        let mut snapshot = self.look_at_processes(world, None);
        snapshot.remember(&self.snapshot);
        self.snapshot = snapshot;
    }

    /// Looks at the processes again, and at every holder, where that was not done.
    pub fn look_closer(&mut self, world: &World) {
        if self.judging.sought != Sought::All {
            self.judging.sought = Sought::All;
            self.refresh(world);
            self.probe_unexplained_again(world);
        }
    }

    /// The same while this process itself has the object at `index` open, to save it: that makes it no
    /// holder.
    pub fn refresh_beside(&mut self, world: &World, index: usize) {
        self.refresh(world);
        let Some(open) = self.objects.get(index).map(Object::identity) else { return };
        let own = std::fs::read_link(world.host.proc.join("self")).ok();
        let Some(own) = own.and_then(|pid| pid.to_str()?.parse::<i32>().ok()) else { return };
        let objects = &self.objects;
        self.snapshot.scan.holders.retain(|index, holders| {
            // By whatever name it is in the survey.
            if objects.get(*index).is_some_and(|object| object.identity() == open) {
                holders.retain(|holder| holder.pid != own);
            }
            !holders.is_empty()
        });
    }

    /// How long ago the look at the processes began that this survey judges by.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.snapshot.began.map_or(Duration::MAX, |began| began.elapsed())
    }

    /// The verdict on the object at `index`.
    #[must_use]
    pub fn judge(&self, world: &World, index: usize) -> Option<Judgement> {
        Some(judge(&self.facts(world, index)?))
    }

    /// What the operator said about judging.
    #[must_use]
    pub fn judging(&self) -> Judging {
        self.judging
    }

    /// The user name of an owner.
    #[must_use]
    pub fn owner(&self, uid: u32) -> &str {
        self.owners.name(uid)
    }

    /// The catalogue of producers that this survey judges by.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The catalogue's entry for the object at `index`.
    #[must_use]
    pub fn producer(&self, object: &Object) -> Option<Match<'_>> {
        self.catalogue.of(object)
    }

    /// Whether the creator that the name carries, or the kernel records, is alive, and its pid.
    #[must_use]
    pub fn creator(&self, object: &Object) -> Option<(i32, CreatorState)> {
        if let Some(entry) = &object.sysv {
            let pid = entry.creator().filter(|pid| *pid != 0)?;
            return Some((pid, self.snapshot.recorded(pid, object.stat.changed)));
        }
        let pid = self.producer(object)?.pid?;
        Some((pid, self.snapshot.creator(object, pid)))
    }

    /// Who holds the object at `index`.
    #[must_use]
    pub fn holders(&self, index: usize) -> &[Holder] {
        self.snapshot.scan.holders.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Whether it was looked who holds the object at `index`.
    #[must_use]
    pub fn sought(&self, index: usize) -> bool {
        let object = self.objects.get(index).zip(self.leases.get(index));
        object.is_some_and(|(object, lease)| self.judging.sought.seeks(object, *lease))
    }

    fn probe_all(&mut self, world: &World, wanted: &dyn Fn(&Object, &Object) -> bool) {
        let mut gone = HashSet::new();
        let mut patience = lease::Patience::new(COURTESY);
        for (place, indices) in self.by_place(|_| true) {
            if let Some(ipc) = world.ipc(place) {
                gone.extend(self.count_users(ipc, &indices));
                continue;
            }
            let lock = patience.lock(world.directory_of(place));
            // What cannot be found out here is found out again by whoever relies on it.
            if lock.is_none() && matches!(world.shm(place).map(at_work), Some(Ok(Some(_)))) {
                self.reapers_at_work.insert(place);
            }
            // Two leases on one file, by two of its names, would refuse each other.
            let several =
                |index: &usize| self.objects.get(*index).is_some_and(|o| o.stat.nlink > 1);
            let (linked, single): (Vec<usize>, Vec<usize>) = indices.into_iter().partition(several);
            let mut looked = parallel::map(&single, |index| self.look(world, *index));
            looked.extend(linked.iter().map(|index| self.look(world, *index)));
            for (index, looked) in single.into_iter().chain(linked).zip(looked) {
                if !self.probe(world, index, wanted, looked) {
                    gone.insert(index);
                }
            }
        }
        if !gone.is_empty() {
            let mut here = (0..).map(|index: usize| !gone.contains(&index));
            self.objects.retain(|_| here.next().unwrap_or(true));
            let mut here = (0..).map(|index: usize| !gone.contains(&index));
            self.leases.retain(|_| here.next().unwrap_or(true));
        }
    }

    /// What the kernel says of one object, if it is one to be asked about.
    fn look(&self, world: &World, index: usize) -> Option<io::Result<Look>> {
        let object = self.objects.get(index)?;
        if object.kind == Kind::Other {
            return None;
        }
        let (host, dir) = (world.host_of(object.place), world.directory_of(object.place));
        let unread = object.queue.is_some_and(|queue| queue.messages > 0);
        // What would be claimed anyway is left in peace: a lease is felt by who opens.
        let young = self.quiet(host, object) < nanoseconds(self.judging.grace);
        let persistent = || self.producer(object).is_some_and(|m| m.producer.persistent_by_design);
        let lease_works = self.lease_works(object.place);
        let ask = lease_works
            && !self.reapers_at_work.contains(&object.place)
            && (self.judging.thorough || !young && !unread && !persistent());
        let (file, identity) = (&object.file, object.identity());
        let head = object.may_be_semaphore();
        let told = |lease| Some(Ok(Look::Seen { lease, head: None }));
        match object.kind {
            Kind::Dir if ask => told(lease_inside(host, object)),
            Kind::Dir => told(Lease::NotAsked),
            _ if !ask && !head => {
                told(if lease_works { Lease::NotAsked } else { Lease::Unsupported })
            }
            Kind::Mqueue => Some(lease::look_tested(host, dir, file, &identity)),
            _ => Some(lease::look(host, dir, file, &identity, ask, head)),
        }
    }

    /// Notes what the kernel said of one object; `false` when it is no longer there. One that was replaced
    /// is read and asked about anew, a few times, if it is still `wanted`.
    fn probe(
        &mut self,
        world: &World,
        index: usize,
        wanted: &dyn Fn(&Object, &Object) -> bool,
        mut looked: Option<io::Result<Look>>,
    ) -> bool {
        for _attempt in 0..3 {
            let Some(object) = self.objects.get(index) else { return false };
            let Some(look) = looked.take() else { return true };
            let (file, place) = (object.file.clone(), object.place);
            let lease_works = self.lease_works(place);
            match look {
                Ok(Look::Seen { lease, head }) => {
                    let lease = match lease {
                        Lease::NotAsked if !lease_works && object.kind != Kind::Dir => {
                            Lease::Unsupported
                        }
                        other => other,
                    };
                    if object.kind == Kind::Mqueue && lease == Lease::Unsupported {
                        self.distrust_leases(place);
                    }
                    self.set(index, lease, head.as_deref().and_then(Semaphore::parse));
                    return true;
                }
                Ok(Look::Gone) => return false,
                Ok(Look::Changed) => match inventory::read_one(world, place, &file) {
                    Ok(now) if !wanted(object, &now) => {
                        if now.kind != object.kind {
                            let error = io::Error::other("it was replaced while it was looked at");
                            self.troubles.push((object.shown_id(), error));
                        }
                        return false;
                    }
                    Ok(object) => {
                        if let Some(slot) = self.objects.get_mut(index) {
                            *slot = object;
                        }
                        looked = self.look(world, index);
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

    /// Leases do not tell the truth in a place, as one object there has shown.
    fn distrust_leases(&mut self, place: usize) {
        if let Some(works) = self.lease_works.get_mut(place) {
            *works = false;
        }
    }

    fn set(&mut self, index: usize, lease: Lease, semaphore: Option<Semaphore>) {
        if let Some(slot) = self.leases.get_mut(index) {
            *slot = lease;
        }
        if let Some(object) = self.objects.get_mut(index) {
            object.semaphore = semaphore;
        }
    }

    /// Adds what has no name and is still held.
    fn add_unlinked(&mut self, world: &World, wanted: &dyn Fn(&Object) -> bool) {
        let places: HashMap<u64, usize> = world
            .wanted_shm()
            .filter_map(|(place, host)| Some((host.shm_dev().ok()?, place)))
            .collect();
        let unlinked = std::mem::take(&mut self.snapshot.scan.unlinked);
        let mut found: Vec<_> = unlinked.into_iter().collect();
        found.sort_unstable_by_key(|(inode, _)| *inode);
        for (inode, unlinked) in found {
            let place = places.get(&inode.0).copied().unwrap_or(0);
            let Some(object) = Object::unlinked(inode, &unlinked, place) else { continue };
            if wanted(&object) {
                self.snapshot.scan.holders.insert(self.objects.len(), unlinked.holders);
                self.objects.push(object);
                self.leases.push(Lease::NotAsked);
            }
        }
    }

    /// The objects that pass `test`, by their place.
    fn by_place(&self, test: impl Fn(usize) -> bool) -> BTreeMap<usize, Vec<usize>> {
        let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, object) in self.objects.iter().enumerate().filter(|(index, _)| test(*index)) {
            places.entry(object.place).or_default().push(index);
        }
        places
    }

    /// Whether leases tell the truth in a place.
    #[must_use]
    pub fn lease_works(&self, place: usize) -> bool {
        self.lease_works.get(place).copied().unwrap_or(false)
    }

    fn look_at_processes(
        &self,
        world: &World,
        named: Option<&Arc<HashSet<(u64, u64)>>>,
    ) -> Snapshot {
        let matter = Matter {
            objects: &self.objects,
            leases: &self.leases,
            assume_complete: self.judging.assume_complete,
            thorough: self.judging.thorough,
            sought: self.judging.sought,
            threads: self.judging.thorough || self.lease_works.contains(&false),
            hung: &self.snapshot.processes.hung,
            named,
        };
        Snapshot::take(world, &self.catalogue, matter)
    }

    /// An object that the kernel calls held and nobody was found for may have been opened for a
    /// moment only, by another rtrack perhaps: it is asked about once more.
    fn probe_unexplained_again(&mut self, world: &World) {
        if self.judging.sought == Sought::None {
            return;
        }
        let unexplained = |index: usize| {
            self.leases.get(index) == Some(&Lease::Refused) && self.holders(index).is_empty()
        };
        let mut patience = lease::Patience::new(COURTESY);
        for (place, indices) in self.by_place(unexplained) {
            // Of these the kernel keeps count.
            if world.ipc(place).is_some() {
                continue;
            }
            let (host, dir) = (world.host_of(place), world.directory_of(place));
            let _lock = patience.lock(dir);
            for index in indices {
                let Some(object) = self.objects.get(index) else { continue };
                let again = if object.kind == Kind::Dir {
                    lease_inside(host, object)
                } else {
                    let (file, identity) = (&object.file, object.identity());
                    let looked = if object.kind == Kind::Mqueue {
                        lease::look_tested(host, dir, file, &identity)
                    } else {
                        lease::look(host, dir, file, &identity, true, false)
                    };
                    match looked {
                        Ok(Look::Seen { lease: Lease::Granted, .. }) => Lease::Granted,
                        _ => Lease::Refused,
                    }
                };
                if let Some(slot) = self.leases.get_mut(index) {
                    *slot = again;
                }
            }
        }
    }

    /// For how long it had been left in peace when this survey was taken: what was too young then to
    /// be asked about stays so, however long the survey takes.
    fn quiet(&self, host: &Host, object: &Object) -> Nanoseconds {
        let last_change = object.last_change();
        ((host.clock.wall)() - last_change).min((self.taken_at - last_change).max(0))
    }

    /// Everything that the verdict on the object at `index` depends on.
    #[must_use]
    pub fn facts(&self, world: &World, index: usize) -> Option<Facts> {
        let object = self.objects.get(index)?;
        let host = world.host_of(object.place);
        let snapshot = &self.snapshot;
        let found = self.producer(object);
        let producer = found.map(|found| found.producer);
        let directory = object.kind == Kind::Dir;
        let mut holder_blind: Vec<&'static str> =
            snapshot.sight.holders.iter().map(|blind| blind.says()).collect();
        if object.directory.as_ref().is_some_and(|tree| tree.truncated) {
            holder_blind.push("not everything in the directory could be read");
        }
        if directory && snapshot.scan.keeps_unseen {
            holder_blind.push(KEEPS_UNSEEN);
        }
        if object.directory.as_ref().is_some_and(|tree| tree.special) {
            holder_blind.push("who waits at a FIFO, a socket or a device in it is not known");
        }
        let mut process_blind: Vec<&'static str> =
            snapshot.sight.processes.iter().map(|blind| blind.says()).collect();
        let unknown = object.sysv.as_ref().and_then(|entry| entry.unknown_users());
        process_blind.extend(unknown);
        if object.kind == Kind::SysvMsg && snapshot.waiters.incomplete {
            process_blind.push("who waits at message queues is not all known");
        }
        let creator = self.creator(object);
        let maker = match object.sysv {
            Some(_) => creator.as_ref().map(|(pid, _)| *pid),
            None => found.and_then(|found| found.pid),
        };
        Some(Facts {
            known_kind: object.kind != Kind::Other,
            directory,
            lease: *self.leases.get(index)?,
            holders_sought: self.sought(index),
            holders: self
                .holders(index)
                .iter()
                .map(|h| (Who { pid: h.pid, comm: h.comm.clone() }, h.how.clone()))
                .collect(),
            mounted: snapshot.mounted(object),
            perhaps_mounted: snapshot.perhaps_mounted(object),
            quiet: self.quiet(host, object),
            grace: nanoseconds(self.judging.grace),
            producer: producer.map(|producer| ProducerFacts {
                id: producer.id.clone(),
                software: producer.software.clone(),
                held: producer.held_while_alive,
                persistent: producer.persistent_by_design,
                proof: producer.proof && found.is_some_and(|found| fits(&found, object)),
                family: producer.family.clone(),
            }),
            creator,
            guardian: producer.and_then(|producer| {
                let name = producer.guardian.as_deref()?;
                let what = self.catalogue.guardian(name)?.what.clone();
                let (who, silent) = snapshot.guardian(object, &self.owners, name)?;
                Some(Guardian { who, what, silent })
            }),
            family: producer
                .and_then(|producer| producer.family.as_deref())
                .map_or(FamilyState::NotDefined, |name| {
                    snapshot.family(object, &self.owners, name)
                }),
            descendant: maker.and_then(|pid| snapshot.descendant(object, pid)),
            registered: snapshot.registered(object),
            perhaps_registered: snapshot.perhaps_registered(object),
            locked: snapshot.locked(world.directory_of(object.place), object, producer),
            kin: snapshot.kin(object, &self.owners),
            nameless: object.deleted,
            shared_mode: is_shared(object.stat.mode),
            owner: self.owners.says(object.stat.uid),
            process_blind,
            holder_blind,
            assumed_complete: snapshot.sight.assumed_complete,
            queue: (object.kind == Kind::Mqueue).then(|| queue_facts(object, snapshot)),
            catalogue_broken: self.catalogue.broken().first().map(Broken::place),
            counts: self.counts(world, object),
        })
    }
}

/// A directory has no lease. What is in it has, and what the kernel says of one file there is true of
/// the directory; that no file is held says nothing of the directory itself.
fn lease_inside(host: &Host, object: &Object) -> Lease {
    let mut answer = Lease::NotAsked;
    // What a reaper has moved away is under a lease of its own, which asking would break.
    if is_quarantine_name(&object.file) {
        return answer;
    }
    posix::files_in(host, object, &mut |directory, name, stat| {
        let identity = Identity::of(stat);
        if answer != Lease::Refused
            && let Ok(Look::Seen { lease: Lease::Refused, .. }) =
                lease::look(host, directory, name, &identity, true, false)
        {
            answer = Lease::Refused;
        }
    })
    // Holder sight decides about what cannot be looked into, as it does about the directory.
    .unwrap_or(());
    answer
}

/// What a message queue itself says of those who want it.
fn queue_facts(object: &Object, snapshot: &Snapshot) -> QueueFacts {
    let who = |pid: i32| {
        let process = snapshot.processes.seen.get(&pid);
        let comm = process.map_or_else(Vec::new, |process| process.comm.clone());
        Who { pid, comm }
    };
    QueueFacts {
        messages: object.queue.map(|queue| queue.messages),
        notified: object.queue.and_then(|queue| queue.notify_pid).map(who),
    }
}

/// Whether the object can be what the entry is about. Without glibc's prefix, as musl names them, only
/// its size tells a semaphore from somebody's file; and a uid in a name is its owner's.
fn fits(found: &Match<'_>, object: &Object) -> bool {
    let semaphore = object.kind == Kind::Sem || object.stat.size == SEMAPHORE_SIZE;
    (found.producer.kind != "sem" || semaphore)
        && found.uid.is_none_or(|uid| uid == object.stat.uid)
}

/// Whether a mode grants anything to group or others.
#[must_use]
pub fn is_shared(mode: u32) -> bool {
    mode & 0o077 != 0
}

fn nanoseconds(duration: Duration) -> Nanoseconds {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}
