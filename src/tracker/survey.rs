//! One look at the machine: the objects, what is known about each, and the verdicts.
//!
//! The order matters. Objects first, then the kernel's answer about each, then the processes; and
//! what a lease holds up is never kept waiting for any of it.

mod owners;
mod snapshot;

pub use owners::owner_name;
pub use snapshot::Snapshot;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::owners::Owners;
use self::snapshot::Matter;
use super::evidence::holders::{Holder, KEEPS_UNSEEN};
use super::evidence::lease::{self, Lease, Look};
use super::evidence::producers::{Broken, Catalogue, Match, operator_directories};
use super::host::Host;
use super::inventory::posix::{self, Object, Semaphore};
use super::reap::{at_work, is_quarantine_name};
use super::resource::{Identity, Kind};
use super::sys::Nanoseconds;
use super::verdict::{
    CreatorState, Facts, FamilyState, Guardian, Judgement, ProducerFacts, Who, judge,
};

/// How long another rtrack may keep this one from probing.
const COURTESY: Duration = Duration::from_millis(250);

/// What the operator said about judging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judging {
    /// What is younger is claimed.
    pub grace: Duration,
    /// Nothing outside this PID namespace uses the mount.
    pub assume_complete: bool,
    /// Ask the kernel also about what would be claimed anyway, and look into every thread.
    pub thorough: bool,
}

/// Why there is no survey.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The directory could not be read.
    #[error("read {path}")]
    Inventory {
        /// Which directory.
        path: std::path::PathBuf,
        /// The errno.
        source: io::Error,
    },
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
    /// Another reaper of this user's is at work, whose leases asking would break: so nothing was asked.
    pub reaper_at_work: bool,
    /// Objects that could not be looked at, each with the reason.
    pub troubles: Vec<(String, io::Error)>,
    judging: Judging,
    catalogue: Arc<Catalogue>,
    owners: Owners,
}

impl Survey {
    /// Reads what exists. What is selected from it is then given to [`Survey::take`].
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn inventory(host: &Host) -> Result<posix::Inventory, SurveyError> {
        posix::read(host)
            .map_err(|source| SurveyError::Inventory { path: host.shm_path.clone(), source })
    }

    /// Finds out what is known about the objects of `inventory`, which was read just before.
    ///
    /// One that was replaced meanwhile stays only if `wanted`, which is given the two, still selects it. What goes wrong with
    /// one object is in [`Survey::troubles`], with the operators' catalogue in
    /// [`Catalogue::broken`].
    #[must_use]
    pub fn take(
        host: &Host,
        judging: Judging,
        inventory: posix::Inventory,
        wanted: &dyn Fn(&Object, &Object) -> bool,
    ) -> Self {
        let posix::Inventory { objects, troubles } = inventory;
        let catalogue = Arc::new(Catalogue::load(&operator_directories()));
        let taken_at = (host.clock.wall)();
        let lease_works = lease::calibrate(host);
        let mut survey = Self {
            leases: vec![Lease::NotAsked; objects.len()],
            snapshot: Snapshot::default(),
            objects,
            lease_works,
            reaper_at_work: false,
            taken_at,
            troubles: troubles.into_iter().map(|(name, error)| (name.to_string(), error)).collect(),
            judging,
            catalogue,
            owners: Owners::default(),
        };
        survey.probe_all(host, wanted);
        survey.snapshot = survey.look_at_processes(host);
        survey.probe_unexplained_again(host);
        survey.owners =
            Owners::look_up(survey.objects.iter().map(|object| object.stat.uid).collect());
        survey
    }

    /// Looks at the processes again, for a judgement that is not older than a few seconds.
    pub fn refresh(&mut self, host: &Host) {
        let mut snapshot = self.look_at_processes(host);
        snapshot.remember(&self.snapshot);
        self.snapshot = snapshot;
    }

    /// The same while this process itself has the object at `index` open, to save it: that makes it no
    /// holder.
    pub fn refresh_beside(&mut self, host: &Host, index: usize) {
        self.refresh(host);
        let Some(open) = self.objects.get(index).map(Object::identity) else { return };
        let own = std::fs::read_link(host.proc.join("self")).ok();
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
    pub fn judge(&self, host: &Host, index: usize) -> Option<Judgement> {
        Some(judge(&self.facts(host, index)?))
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
        self.catalogue.find(object.kind, object.file.as_bytes())
    }

    /// Whether the creator that the name carries is alive, and its pid.
    #[must_use]
    pub fn creator(&self, object: &Object) -> Option<(i32, CreatorState)> {
        let pid = self.producer(object)?.pid?;
        Some((pid, self.snapshot.creator(object, pid)))
    }

    /// Who holds the object at `index`.
    #[must_use]
    pub fn holders(&self, index: usize) -> &[Holder] {
        self.snapshot.scan.holders.get(&index).map_or(&[], Vec::as_slice)
    }

    fn probe_all(&mut self, host: &Host, wanted: &dyn Fn(&Object, &Object) -> bool) {
        let lock = lease::courtesy_lock(host, COURTESY);
        // What cannot be found out here is found out again by whoever relies on it.
        self.reaper_at_work = lock.is_none() && matches!(at_work(host), Ok(Some(_)));
        let mut gone = HashSet::new();
        for index in 0..self.objects.len() {
            if !self.probe(host, index, wanted) {
                gone.insert(index);
            }
        }
        drop(lock);
        let all =
            std::mem::take(&mut self.objects).into_iter().zip(std::mem::take(&mut self.leases));
        let here = all.enumerate().filter(|(index, _)| !gone.contains(index));
        (self.objects, self.leases) = here.map(|(_, object)| object).unzip();
    }

    /// Asks the kernel about one object; `false` when it is no longer there. One that was replaced
    /// is read anew, a few times, if it is still `wanted`.
    fn probe(
        &mut self,
        host: &Host,
        index: usize,
        wanted: &dyn Fn(&Object, &Object) -> bool,
    ) -> bool {
        for _attempt in 0..3 {
            let Some(object) = self.objects.get(index) else { return false };
            if object.kind == Kind::Other {
                return true;
            }
            // What would be claimed anyway is left in peace: a lease is felt by who opens.
            let young = self.quiet(host, object) < nanoseconds(self.judging.grace);
            let persistent = self.producer(object).is_some_and(|m| m.producer.persistent_by_design);
            let ask = self.lease_works
                && !self.reaper_at_work
                && (self.judging.thorough || !young && !persistent);
            if object.kind == Kind::Dir {
                let lease = if ask { lease_inside(host, object) } else { Lease::NotAsked };
                self.set(index, lease, None);
                return true;
            }
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
        let matter = Matter {
            objects: &self.objects,
            leases: &self.leases,
            assume_complete: self.judging.assume_complete,
            threads: self.judging.thorough || !self.lease_works,
            hung: &self.snapshot.processes.hung,
        };
        Snapshot::take(host, &self.catalogue, matter)
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
            let again = if object.kind == Kind::Dir {
                lease_inside(host, object)
            } else {
                match lease::look(host, host.shm(), &object.file, &object.identity(), true, false) {
                    Ok(Look::Seen { lease: Lease::Granted, .. }) => Lease::Granted,
                    _ => Lease::Refused,
                }
            };
            if let Some(slot) = self.leases.get_mut(index) {
                *slot = again;
            }
        }
        drop(lock);
    }

    /// For how long it had been left in peace when this survey was taken: what was too young then to
    /// be asked about stays so, however long the survey takes.
    fn quiet(&self, host: &Host, object: &Object) -> Nanoseconds {
        let last_change = object.last_change();
        ((host.clock.wall)() - last_change).min((self.taken_at - last_change).max(0))
    }

    /// Everything that the verdict on the object at `index` depends on.
    #[must_use]
    pub fn facts(&self, host: &Host, index: usize) -> Option<Facts> {
        let object = self.objects.get(index)?;
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
        Some(Facts {
            known_kind: object.kind != Kind::Other,
            directory,
            lease: *self.leases.get(index)?,
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
            creator: self.creator(object),
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
            descendant: found.and_then(|found| snapshot.descendant(found.pid?)),
            locked: snapshot.locked(host, object, producer),
            kin: snapshot.kin(object, &self.owners),
            shared_mode: is_shared(object.stat.mode),
            owner: self.owners.says(object.stat.uid),
            process_blind: snapshot.sight.processes.iter().map(|blind| blind.says()).collect(),
            holder_blind,
            assumed_complete: snapshot.sight.assumed_complete,
            catalogue_broken: self.catalogue.broken().first().map(Broken::place),
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

/// Whether the object can be what the entry is about. Without glibc's prefix, as musl names them, only
/// its size tells a semaphore from somebody's file; and a uid in a name is its owner's.
fn fits(found: &Match<'_>, object: &Object) -> bool {
    let semaphore = object.kind == Kind::Sem || object.stat.size == posix::SEMAPHORE_SIZE;
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
