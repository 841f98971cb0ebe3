//! What the cases stand on.

mod case;
mod command;
mod expect;
pub(crate) mod fuse;
pub(crate) mod hold;
mod mqueue;
mod namespaces;
pub(crate) mod place;
mod python;
mod sandbox;
mod schema;
mod shm;
pub(crate) mod soak;
pub(crate) mod sysv;
mod trace;
pub(crate) mod truth;

pub(crate) use case::{Case, Need, case, note, run, skip};
pub(crate) use command::{
    Finish, Finished, Inherit, evidence, inventory, listed, reap_all, rtrack, verdict,
};
pub(crate) use expect::{goes, judged, known, list, named, reap, stays, stays_by_default};
pub(crate) use hold::{Holder, hold, hold_as, start};
pub(crate) use mqueue::{
    Queue, empty_dev_mqueue, give_queue, leave_queue, make_queue, open_queue, queue_inode,
    queue_names, queues,
};
pub(crate) use namespaces::check;
pub(crate) use place::inside;
pub(crate) use python::{Python, pythons};
pub(crate) use sandbox::{
    binary, example, fork, is_real_root, mount, run_directory, scratch, somebody, state_of,
    supervise,
};
pub(crate) use schema::{faults, validate};
pub(crate) use shm::{identity, leave, names, object, path, sem_open, shm_open};
pub(crate) use trace::{
    Call, stopped_before, stopped_before_any, stopped_before_each, stopped_with_arguments,
};

/// Kills a process (`SIGKILL`) that this case started and that has not been waited for.
pub(crate) fn kill(pid: u32) {
    // SAFETY: the call touches no memory, and the caller vouches for the pid.
    check(unsafe { libc::kill(pid.try_into().unwrap(), libc::SIGKILL) }).unwrap();
}

/// Calls `ready` until it answers something; the watchdog of the case bounds it.
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let mut asked = 0_u32;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        asked += 1;
        if asked.is_multiple_of(1000) {
            eprintln!("still waiting for {what}");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// How many bytes of a pipe nobody has read yet.
pub(crate) fn unread(pipe: impl std::os::fd::AsFd) -> i32 {
    use std::os::fd::AsRawFd as _;
    let mut queued = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &mut queued) }).unwrap();
    queued
}
