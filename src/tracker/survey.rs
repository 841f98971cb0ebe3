//! One look at the machine: the objects, what is known about each, and the verdicts.
//!
//! The order matters. Objects first, then the kernel's answer about each, then the processes; and
//! what a lease holds up is never kept waiting for any of it.

mod matter;
mod mounted;
mod owners;
mod probing;
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
use super::evidence::lease::{self, Lease};
use super::evidence::producers::{Broken, Catalogue, Match, operator_directories};
use super::host::Host;
use super::inventory::{self, Inventory, InventoryError, Object, SEMAPHORE_SIZE};
use super::parallel;
use super::resource::Kind;
use super::sys::Nanoseconds;
use super::verdict::{
    CreatorState, Facts, FamilyState, Guardian, Judgement, ProducerFacts, QueueFacts, Who, judge,
};
use super::world::World;

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
        let needs_sight = is_undecided(&lease) || object.kind == Kind::Dir;
        self != Self::None || object.sysv.is_none() && needs_sight
    }
}

/// Whether the kernel could not be asked: then whoever is not found does not hold the object, so that nothing may be
/// left out.
fn is_undecided(lease: &Lease) -> bool {
    matches!(lease, Lease::NoPermission | Lease::Unsupported)
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
    /// Reads what exists, and the catalogue to judge it by.
    ///
    /// # Errors
    /// Those of [`inventory::read`].
    pub fn begin(world: &World) -> Result<(Inventory, Catalogue), InventoryError> {
        let load = || {
            let catalogue = Catalogue::load(&operator_directories());
            // That takes as long as to read a few thousand names.
            if world.wanted_shm().any(|(_, host)| host.may_have_objects()) {
                catalogue.prepare(Kind::Shm);
            }
            catalogue
        };
        let (inventory, catalogue) = parallel::both(|| inventory::read(world), load);
        Ok((inventory?, catalogue))
    }

    /// Finds out what is known about the objects of an inventory, which was read just before, with a catalogue.
    ///
    /// What else belongs to it, `wanted` says. What goes wrong with
    /// one object is in [`Survey::troubles`], with the operators' catalogue in
    /// [`Catalogue::broken`].
    #[must_use]
    pub fn take(
        world: &World,
        judging: Judging,
        (inventory, catalogue): (Inventory, Catalogue),
        wanted: Wanted<'_>,
    ) -> Self {
        let named = wanted.unlinked.map(|_| Arc::clone(&inventory.named));
        let Inventory { objects, troubles, .. } = inventory;
        let catalogue = Arc::new(catalogue);
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
        // Each object remembers what the catalogue says of its name.
        parallel::each(&survey.objects, |object| survey.catalogue.of(object).is_some(), |_| {});
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

    fn look_at_processes(&self, world: &World, named: Option<&Arc<[(u64, u64)]>>) -> Snapshot {
        let matter = Matter {
            objects: &self.objects,
            leases: &self.leases,
            assume_complete: self.judging.assume_complete,
            thorough: self.judging.thorough,
            sought: self.judging.sought,
            threads: self.judging.thorough
                || self.lease_works.contains(&false)
                || self.leases.iter().any(is_undecided),
            hung: &self.snapshot.processes.hung,
            named,
        };
        Snapshot::take(world, &self.catalogue, matter)
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
