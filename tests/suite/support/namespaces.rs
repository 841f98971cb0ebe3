//! Leaving the machine's namespaces, for the cases of the suite and for benchmarks.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;

use nix::mount::{MntFlags, umount2};
use nix::sys::statfs::{FsType, Statfs, statfs};

/// `MQUEUE_MAGIC` of ipc/mqueue.c.
const MQUEUE_MAGIC: FsType = FsType(0x1980_0202);

/// The result of a system call that answers -1 with an errno.
pub(crate) fn check(result: i32) -> io::Result<i32> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// 128 + N for a process that signal N ended, as shells have it.
pub(crate) fn status_of(status: i32) -> u8 {
    let status = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    };
    u8::try_from(status).unwrap()
}

/// `fork(2)`, in a process with one thread.
pub(crate) fn fork() -> i32 {
    // SAFETY: this process has a single thread, so the child may go on as if nothing had happened.
    check(unsafe { libc::fork() }).unwrap()
}

/// Leaves the machine's mount and IPC namespaces: as root directly, as anybody else through a
/// user namespace in which this user is root.
pub(crate) fn unshare(own_pids: bool) -> io::Result<()> {
    let flags =
        libc::CLONE_NEWNS | libc::CLONE_NEWIPC | if own_pids { libc::CLONE_NEWPID } else { 0 };
    // SAFETY: the calls change the namespaces of this process, which has a single thread.
    if unsafe { libc::unshare(flags) } == 0 {
        return Ok(());
    }
    // SAFETY: as above.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: as above.
    check(unsafe { libc::unshare(flags | libc::CLONE_NEWUSER) })?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// A fresh /dev/shm, seen by nobody outside, and in a new PID namespace its /proc.
pub(crate) fn private_mounts(own_pids: bool) -> io::Result<()> {
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    if own_pids {
        mount("proc", "/proc", "proc", 0, "")?;
    }
    // The machine's message queues are none of this IPC namespace's, which has none mounted, or, where those may not
    // be unmounted, its own over them.
    let is_of_queues = |mount: Statfs| mount.filesystem_type() == MQUEUE_MAGIC;
    if statfs("/dev/mqueue").is_ok_and(is_of_queues)
        && umount2("/dev/mqueue", MntFlags::MNT_DETACH).is_err()
    {
        mount("mqueue", "/dev/mqueue", "mqueue", 0, "")?;
    }
    mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=256M")
}

/// `mount(2)`; an error names the place.
pub(crate) fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let text = |text: &str| CString::new(text).unwrap();
    let (source, place, kind, options) = (text(source), text(target), text(kind), text(options));
    let pointer = |text: &CStr| if text.is_empty() { std::ptr::null() } else { text.as_ptr() };
    // SAFETY: each string is NUL-terminated and outlives the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), place.as_ptr(), pointer(&kind), flags, options.as_ptr().cast())
    };
    check(result).map(drop).map_err(|error| io::Error::other(format!("mount on {target}: {error}")))
}
