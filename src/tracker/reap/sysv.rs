//! Removing System V objects, which have neither names nor leases.
//!
//! Shared memory is closed first: its permissions to read become permissions to execute, which nobody can
//! attach it by but root, and of which it can be told what they were. What nobody has attached then is
//! removed; else the permissions are given back, by the next reap if this one is interrupted.
//! Semaphores and message queues are looked at again right before they are removed, and no more can be
//! done.

use std::io;

use super::objects::{changed, gone};
use super::{Outcome, Report, Settled, Steps};
use crate::tracker::evidence::waiters::Waiters;
use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::inventory::sysv::{self, Of, id_of};
use crate::tracker::resource::{Kind, Name};
use crate::tracker::sys::Stat;
use crate::tracker::sys::ipc::{self, Family, SHM_DEST, Semaphore, State};
use crate::tracker::world::{Ipc, World};

/// What [`Settled::directory`] says of segments that were closed by an interrupted reap.
pub const SEGMENTS: &str = "/proc/sysvipc/shm";

/// Permissions to read, to write and to execute, of all three classes.
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
const EXECUTE: u32 = 0o111;

/// The uid and gid that stand for those which a user namespace does not know.
const OVERFLOW: u32 = 65534;

/// Whether a segment is closed: its permissions to read were made permissions to execute by a reap that
/// was interrupted. Nobody could use one that was made so.
#[must_use]
pub fn is_closed(object: &Object) -> bool {
    object.kind == Kind::SysvShm && is_closed_mode(object.stat.mode)
}

const fn is_closed_mode(mode: u32) -> bool {
    mode & READ == 0 && mode & EXECUTE != 0
}

/// The permissions by which nobody but root can attach a segment of these; `None` where it could not be
/// told afterwards what they were.
const fn closed(mode: u32) -> Option<u32> {
    match (mode & READ, mode & EXECUTE) {
        (0, _) => Some(mode & 0o777),
        (_, 0) => Some((mode & WRITE) | (mode & READ) >> 2),
        _ => None,
    }
}

/// The permissions of a closed segment before it was closed.
const fn opened(mode: u32) -> u32 {
    if is_closed_mode(mode) { (mode & WRITE) | (mode & EXECUTE) << 2 } else { mode & 0o777 }
}

/// Whether this process may remove a System V object, and close a segment: its owner and who made it
/// may, and root.
#[must_use]
pub fn may_remove(object: &Object) -> bool {
    let euid = nix::unistd::geteuid().as_raw();
    let creator = object.sysv.as_ref().and_then(|entry| entry.creator_uid);
    euid == 0 || euid == object.stat.uid || Some(euid) == creator
}

/// Removes a System V object, as [`Steps`] say.
pub fn remove(host: &Host, ipc: &Ipc, object: &Object, steps: &mut dyn Steps) -> Report {
    let (Some(entry), Some((family, id))) = (&object.sysv, id_of(object)) else {
        return Report::new(Outcome::Refused, "it is no System V object");
    };
    let state = match look(ipc, family, id) {
        Ok(Some(state)) => state,
        Ok(None) => return gone(),
        Err(error) => return Report::failed("look at it", &error),
    };
    if !entry.is(object.stat.size, &state) {
        return changed();
    }
    if family == Family::Shm && (state.count > 0 || state.mode & SHM_DEST != 0) {
        return Report::new(Outcome::Held, "somebody has attached it");
    }
    if !entry.is_unused_since(&state) {
        return Report::new(Outcome::Refused, "somebody used it since it was looked at");
    }
    let semaphores = match &entry.of {
        Of::Sem(set) => set.semaphores.as_deref().unwrap_or_default(),
        Of::Shm(_) | Of::Msg(_) => &[],
    };
    if let Err(why) = steps.judge(&stat_of(object, &state)) {
        return Report::new(Outcome::Refused, why);
    }
    // Asked as late as can be: no time and no count of a queue tells of one who came to wait.
    if family == Family::Msg
        && ipc.number(host).is_some_and(|namespace| Waiters::read(host).at(namespace, id) > 0)
    {
        return Report::new(Outcome::Held, "somebody waits at it");
    }
    let removed = ipc.run(|| match family {
        Family::Shm => remove_segment(id, &state),
        Family::Sem | Family::Msg => remove_at_once(family, id, &state, semaphores),
    });
    removed.unwrap_or_else(|error| Report::failed("enter its namespace", &error))
}

fn look(ipc: &Ipc, family: Family, id: i32) -> io::Result<Option<State>> {
    ipc.run(|| ipc::state(family, id))?
}

/// What the kernel's `state` is in the terms in which `object` was seen.
fn stat_of(object: &Object, state: &State) -> Stat {
    let time = |seconds: i64| i128::from(seconds) * 1_000_000_000;
    let (uid, gid, mode) = (state.uid, state.gid, state.mode & 0o777);
    let (modified, changed) = (time(state.used), time(state.changed));
    Stat { uid, gid, mode, modified, changed, ..object.stat }
}

/// Whether nothing has changed between two looks but what giving it the permissions `mode` changes.
fn same(now: &State, before: &State, mode: u32) -> bool {
    let own = State { mode: before.mode, changed: before.changed, ..*now };
    own == *before && now.mode & 0o777 == mode
}

fn remove_segment(id: i32, before: &State) -> Report {
    let mapped = before.uid != OVERFLOW && before.gid != OVERFLOW;
    let set = closed(before.mode).filter(|mode| mapped && *mode != before.mode & 0o777);
    if let Some(mode) = set {
        match ipc::set_mode(id, before, mode) {
            Ok(()) => {}
            Err(error) if ipc::is_gone(&error) => return gone(),
            Err(error) => return Report::failed("close it (IPC_SET)", &error),
        }
    }
    let open_again = |report| open_again(id, before, report);
    match ipc::state(Family::Shm, id) {
        Ok(Some(now)) if now.count > 0 => {
            return open_again(Report::new(
                Outcome::OpenedMeanwhile,
                "somebody attached it meanwhile; it has its permissions again",
            ));
        }
        Ok(Some(now)) if now == *before || set.is_some_and(|mode| same(&now, before, mode)) => {}
        Ok(Some(_)) => {
            let says = "somebody changed or used it meanwhile; it stays";
            return open_again(Report::new(Outcome::Refused, says));
        }
        Ok(None) => return gone(),
        Err(error) => return open_again(Report::failed("look at it", &error)),
    }
    match ipc::remove(Family::Shm, id) {
        Ok(()) => {}
        Err(error) if ipc::is_gone(&error) => return gone(),
        Err(error) => return open_again(Report::failed("remove it (IPC_RMID)", &error)),
    }
    // One that somebody has attached stays under its id until the last has detached it.
    match ipc::state(Family::Shm, id) {
        Ok(Some(now)) if now.mode & SHM_DEST != 0 => Report::new(
            Outcome::OpenedAtRemoval,
            "removed, and somebody attached it in that very moment: that process has memory which nobody else can find",
        ),
        _ => Report::new(Outcome::Reaped, "removed"),
    }
}

/// Gives a segment that stays its permissions back, unless somebody gave it others meanwhile.
fn open_again(id: i32, before: &State, report: Report) -> Report {
    match reopen(id, before) {
        Ok(_) => report,
        Err(error) => {
            let says = format!(
                "{}; its permissions could not be given back, the next reap does that: {error}",
                report.says
            );
            Report { says, ..report }
        }
    }
}

/// Opens a segment again, if it still is the one that was `seen`, and closed.
fn reopen(id: i32, seen: &State) -> io::Result<bool> {
    match ipc::state(Family::Shm, id)? {
        // Such were never closed; and to set a mode sets the owner as well.
        Some(now) if now.uid == OVERFLOW || now.gid == OVERFLOW => Ok(false),
        Some(now)
            if (now.key, now.creator, now.creator_uid)
                == (seen.key, seen.creator, seen.creator_uid)
                && is_closed_mode(now.mode) =>
        {
            ipc::set_mode(id, &now, opened(now.mode))?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Removes semaphores or a message queue, right after a last look; the `semaphores` of a set have to be as
/// they were seen.
fn remove_at_once(family: Family, id: i32, before: &State, semaphores: &[Semaphore]) -> Report {
    for (number, seen) in (0..).zip(semaphores) {
        match ipc::semaphore(id, number) {
            Ok(one) if one.waiting > 0 || one.waiting_for_zero > 0 => {
                return Report::new(Outcome::Held, "somebody waits at it");
            }
            Ok(one) if one == *seen => {}
            Ok(_) => {
                return Report::new(Outcome::Refused, "somebody used it since it was looked at");
            }
            Err(error) if ipc::is_gone(&error) => return gone(),
            Err(error) => return Report::failed("look at its semaphores", &error),
        }
    }
    match ipc::state(family, id) {
        Ok(Some(now)) if now == *before => {}
        Ok(Some(_)) => {
            return Report::new(Outcome::Refused, "somebody changed or used it meanwhile");
        }
        Ok(None) => return gone(),
        Err(error) => return Report::failed("look at it", &error),
    }
    match ipc::remove(family, id) {
        Ok(()) => Report::new(Outcome::Reaped, "removed"),
        Err(error) if ipc::is_gone(&error) => gone(),
        Err(error) => Report::failed("remove it (IPC_RMID)", &error),
    }
}

/// The segments that an interrupted reap has closed and that this process may open again. A table that
/// cannot be read is among the troubles of the inventory already.
#[must_use]
pub fn closed_segments(world: &World) -> Vec<Object> {
    let mut found = Vec::new();
    for place in 0..world.places.len() {
        let Some(ipc) = world.ipc(place) else { continue };
        let objects = sysv::read_kind(&world.host, ipc, place, Kind::SysvShm);
        found.extend(objects.unwrap_or_default());
    }
    found.retain(|object| is_closed(object) && may_remove(object));
    found
}

/// What becomes of a closed segment, without doing it.
#[must_use]
pub fn foresee_segment(object: &Object) -> Settled {
    settled(object, Ok(true))
}

/// Gives a segment the permissions back that an interrupted reap took away.
pub fn settle_segment(world: &World, object: &Object) -> Settled {
    let (Some(ipc), Some((_, id))) = (world.ipc(object.place), id_of(object)) else {
        return settled(object, Ok(false));
    };
    let opened = ipc.run(|| match ipc::state(Family::Shm, id) {
        Ok(Some(state)) if object.sysv.as_ref().is_some_and(|e| e.is(object.stat.size, &state)) => {
            reopen(id, &state)
        }
        Ok(_) => Ok(false),
        Err(error) => Err(error),
    });
    settled(object, opened.and_then(|opened| opened))
}

fn settled(object: &Object, opened: io::Result<bool>) -> Settled {
    let mut settled = Settled { directory: Name::new(SEGMENTS), ..Settled::default() };
    let name = object.file.clone();
    match opened {
        Ok(true) => settled.put_back.push(name),
        Ok(false) => settled.left.push((name, "it is no longer as it was found".into())),
        Err(error) => settled.left.push((name, format!("give it its permissions back: {error}"))),
    }
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_closed_can_be_opened_again() {
        for mode in 0..=0o777 {
            match closed(mode) {
                Some(closed) => {
                    assert_eq!(closed & READ, 0, "{mode:o}");
                    let same = mode & READ == 0 || opened(closed) == mode;
                    assert!(same, "{mode:o}: {closed:o}");
                    assert!(mode & READ == 0 || is_closed_mode(closed), "{mode:o}");
                }
                None => assert!(mode & READ != 0 && mode & EXECUTE != 0, "{mode:o}"),
            }
        }
        assert_eq!(closed(0o640), Some(0o310));
        assert!(!is_closed_mode(0o600) && !is_closed_mode(0o200) && !is_closed_mode(0));
    }
}
