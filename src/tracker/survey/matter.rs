//! What a look at the processes is for: the objects, and what their verdicts depend on.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Sought;
use super::owners::is_system_uid;
use super::snapshot::owners_of;
use crate::tracker::evidence::holders::{Segment, Targets};
use crate::tracker::evidence::lease::Lease;
use crate::tracker::evidence::processes::Hung;
use crate::tracker::evidence::producers::{Catalogue, Match};
use crate::tracker::evidence::unlinked::memfd_device;
use crate::tracker::inventory::Object;
use crate::tracker::resource::Kind;
use crate::tracker::sys;
use crate::tracker::world::World;

/// The objects of a survey, as far as the processes are concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matter<'a> {
    pub(super) objects: &'a [Object],
    pub(super) leases: &'a [Lease],
    pub(super) assume_complete: bool,
    /// Whether everything is looked at, whether a verdict depends on it or not.
    pub(super) thorough: bool,
    /// Whose mappings and descriptors are looked at.
    pub(super) sought: Sought,
    /// Whether to look into every thread from the start.
    pub(super) threads: bool,
    /// Processes that did not answer an earlier look.
    pub(super) hung: &'a HashSet<Hung>,
    /// The inodes that have a name, if what has none is looked for.
    pub(super) named: Option<&'a Arc<[(u64, u64)]>>,
}

impl Matter<'_> {
    /// Whether it matters of anybody who it is: to tell of a holder, or of who may come back for an object.
    pub(super) fn asks_for_people(&self, catalogue: &Catalogue) -> bool {
        let mut all = self.objects.iter().zip(self.leases);
        self.sought != Sought::None
            || self.asks_for_kin()
            || all.any(|(object, lease)| {
                let named = |found: Match<'_>| {
                    let producer = found.producer;
                    found.pid.is_some() || producer.guardian.is_some() || producer.family.is_some()
                };
                let decided = matches!(lease, Lease::Granted | Lease::Refused);
                !decided || catalogue.of(object).is_some_and(named)
            })
    }

    /// Whether the verdict on any object depends on who has it, or a file beside it, locked. Whoever has a lock on
    /// the object itself has it open, too, and to list all locks the kernel stops everybody who takes one.
    pub(super) fn asks_for_locks(&self, catalogue: &Catalogue) -> bool {
        let mut all = self.objects.iter().zip(self.leases);
        self.thorough
            || all.any(|(object, lease)| match lease {
                // What is refused may be granted when it is asked about once more.
                Lease::Refused | Lease::Granted => {
                    let found = catalogue.of(object);
                    found.is_some_and(|found| !found.producer.lock_suffixes.is_empty())
                }
                _ => object.sysv.is_none(),
            })
    }

    /// Whether it is told of any object whether a process of its owner's lives.
    pub(super) fn asks_for_kin(&self) -> bool {
        let may_be = |object: &Object| owners_of(object).any(|uid| !is_system_uid(uid));
        self.objects.iter().any(|object| !super::is_shared(object.stat.mode) && may_be(object))
    }

    /// Whether the verdict on any object depends on who maps what of a family's: nothing else would come back
    /// for one that the kernel says nobody holds.
    pub(super) fn asks_for_family(&self, catalogue: &Catalogue) -> bool {
        let mut all = self.objects.iter().zip(self.leases);
        all.any(|(object, lease)| {
            let found = catalogue.of(object);
            *lease != Lease::Refused && found.is_some_and(|found| found.producer.family.is_some())
        })
    }

    /// What to look for.
    pub(super) fn targets(&self, world: &World) -> Targets {
        let mut targets = Targets::default();
        let places = (0..world.places.len()).filter_map(|place| world.device_of(place).ok());
        targets.places.extend(places);
        if let Some(named) = self.named.filter(|_| self.sought != Sought::None) {
            targets.named = Arc::clone(named);
            targets.unlinked.extend(world.wanted_shm().filter_map(|(_, host)| host.shm_dev().ok()));
            // A memfd belongs to no mount.
            targets.unlinked.extend(memfd_device().ok().filter(|_| world.whole));
        }
        let namespaces: HashMap<usize, Option<u64>> = (0..world.places.len())
            .filter_map(|place| Some((place, world.ipc(place)?.number(&world.host))))
            .collect();
        let devices = OnceCell::new();
        let sought = self.objects.iter().zip(self.leases).enumerate();
        let sought = sought.filter(|(_, (object, lease))| self.sought.seeks(object, **lease));
        for (index, (object, _)) in sought {
            if object.kind == Kind::SysvShm {
                let namespace = namespaces.get(&object.place).copied().flatten();
                for dev in devices.get_or_init(sys::ipc::memory_devices) {
                    targets.add_segment((*dev, object.stat.ino), Segment { index, namespace });
                }
            }
            if object.sysv.is_some() {
                continue;
            }
            let own = (object.stat.dev, object.stat.ino);
            targets.add(own, index);
            targets.add_name(object.file.as_bytes());
            if let Some(tree) = &object.directory {
                targets.directories = true;
                tree.names.iter().for_each(|name| targets.add_name(name.as_bytes()));
                for inode in tree.inodes.iter().filter(|inode| **inode != own) {
                    targets.add(*inode, index);
                }
            }
        }
        targets
    }
}
