//! What the kernel counts of System V objects, which have no lease that could be asked for.

use std::io;

use super::Survey;
use crate::tracker::evidence::lease::Lease;
use crate::tracker::inventory::Object;
use crate::tracker::inventory::sysv::{Of, id_of};
use crate::tracker::sys::ipc::{self, Semaphore};
use crate::tracker::verdict::{Counts, CreatorState};
use crate::tracker::world::{Ipc, World};

/// So many semaphores are asked about in one look, each by four system calls: a set can have 32 000,
/// and any user can make as many sets as the kernel has room for.
const MOST_SEMAPHORES: u64 = 100_000;

/// So many processes that used an object last are told of, those that live first.
const MOST_USERS: usize = 8;

impl Survey {
    /// Finds out whether the System V objects at `indices` are in use; answers with those that are no
    /// longer there.
    pub(super) fn count_users(&mut self, ipc: &Ipc, indices: &[usize]) -> Vec<usize> {
        let mut gone = Vec::new();
        let mut left = MOST_SEMAPHORES;
        for index in indices {
            let Some(object) = self.objects.get_mut(*index) else { continue };
            let (lease, trouble) = match count(ipc, object, &mut left) {
                Ok(lease) => (lease, None),
                Err(error) if ipc::is_gone(&error) => {
                    gone.push(*index);
                    continue;
                }
                Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                    (Lease::NoPermission, None)
                }
                Err(error) => (Lease::Unsupported, Some((object.shown_id(), error))),
            };
            self.troubles.extend(trouble);
            if let Some(slot) = self.leases.get_mut(*index) {
                *slot = lease;
            }
        }
        gone
    }

    /// What the verdict on a System V object depends on beyond that on others.
    pub(super) fn counts(&self, world: &World, object: &Object) -> Option<Counts> {
        let entry = object.sysv.as_ref()?;
        let used = object.last_change();
        let last = entry.last_users().into_iter();
        let mut last: Vec<(i32, CreatorState)> =
            last.map(|pid| (pid, self.snapshot.recorded(pid, used))).collect();
        last.sort_by_key(|(_, state)| !matches!(state, CreatorState::Alive(_)));
        last.truncate(MOST_USERS);
        let mut counts = Counts { last, waiting: entry.waiting(), ..Counts::default() };
        match &entry.of {
            Of::Shm(segment) => {
                (counts.attachments, counts.dest) = (segment.attachments, segment.dest);
            }
            Of::Sem(_) => {}
            Of::Msg(queue) => {
                counts.unread = queue.messages;
                let namespace = world.ipc(object.place).and_then(|ipc| ipc.number(&world.host));
                counts.waiting = id_of(object)
                    .zip(namespace)
                    .map(|((_, id), namespace)| self.snapshot.waiters.at(namespace, id));
            }
        }
        Some(counts)
    }
}

/// Whether an object is in use, as far as the kernel counts that; fills in what it says of semaphores, as
/// long as there are any `left` to ask about.
fn count(ipc: &Ipc, object: &mut Object, left: &mut u64) -> io::Result<Lease> {
    let id = id_of(object);
    let (Some(entry), Some((_, id))) = (&mut object.sysv, id) else {
        return Ok(Lease::Unsupported);
    };
    let used = match &mut entry.of {
        Of::Shm(segment) => segment.attachments.map(|count| count > 0 || segment.dest),
        Of::Sem(set) => match (set.count, set.count.and_then(|count| left.checked_sub(count))) {
            (Some(count), Some(rest)) => {
                *left = rest;
                set.semaphores = Some(ipc.run(|| semaphores(id, count))??);
                entry.waiting().map(|count| count > 0)
            }
            _ => None,
        },
        Of::Msg(queue) => queue.messages.map(|_| false),
    };
    Ok(match used {
        Some(true) => Lease::Refused,
        Some(false) => Lease::Granted,
        None => Lease::Unsupported,
    })
}

fn semaphores(id: i32, count: u64) -> io::Result<Vec<Semaphore>> {
    (0..i32::try_from(count).unwrap_or(i32::MAX)).map(|number| ipc::semaphore(id, number)).collect()
}
