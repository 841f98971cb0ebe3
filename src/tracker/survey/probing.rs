//! The kernel's answer about each object.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use super::{Sought, Survey, nanoseconds};
use crate::tracker::evidence::lease::{self, Lease, Look};
use crate::tracker::host::Host;
use crate::tracker::inventory::{self, Object, Semaphore, posix};
use crate::tracker::parallel;
use crate::tracker::reap::{at_work, is_quarantine_name};
use crate::tracker::resource::{Identity, Kind};
use crate::tracker::world::World;

/// How long another rtrack may keep this one from probing.
const COURTESY: Duration = Duration::from_millis(250);

impl Survey {
    pub(super) fn probe_all(&mut self, world: &World, wanted: &dyn Fn(&Object, &Object) -> bool) {
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

    /// An object that the kernel calls held and nobody was found for may have been opened for a
    /// moment only, by another rtrack perhaps: it is asked about once more.
    pub(super) fn probe_unexplained_again(&mut self, world: &World) {
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
