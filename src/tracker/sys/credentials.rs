//! Who is at the other end of a socket, and doing something with somebody else's rights.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use super::check;

/// `SO_PEERPIDFD` of asm-generic/socket.h (Linux 6.5): the libc crate does not have it.
const SO_PEERPIDFD: libc::c_int = 77;

/// A descriptor of the process that connected the socket `stream`.
///
/// # Errors
/// `ENOPROTOOPT`: a kernel before 6.5. `ESRCH` or `EINVAL`: it is gone, and was waited for.
pub fn peer_process(stream: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the variable, which is an int.
    check(unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor of the process `pid` (pidfd_open(2)), which is readable once it has ended.
///
/// # Errors
/// `ESRCH`: there is none. `EINVAL`: it is a thread, not a process.
pub fn process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    check(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Does `work` on a thread that has the rights of a user: that user's id and group for everything that is
/// done to files and IPC objects, no other groups, and no capabilities. For root only.
///
/// The thread's real uid stays root's, so that the user can neither signal nor trace it (kill(2)).
///
/// # Errors
/// No thread can be made, or it cannot give up its rights; then nothing was done.
pub fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let job = || {
        take_rights(uid, gid)?;
        Ok(work())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("as-user".into()).spawn_scoped(scope, job)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Gives this thread the rights of a user. The C library's functions would do it to all threads.
fn take_rights(uid: u32, gid: u32) -> io::Result<()> {
    const SAME: libc::uid_t = libc::uid_t::MAX;
    let call = |result: libc::c_long| check(i32::try_from(result).unwrap_or(-1)).map(drop);
    // SAFETY: none of these calls touches memory: the list of groups is empty.
    unsafe {
        call(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        call(libc::syscall(libc::SYS_setresgid, SAME, gid, SAME))?;
        call(libc::syscall(libc::SYS_setresuid, SAME, uid, SAME))?;
    }
    // With SECBIT_NO_SETUID_FIXUP (capabilities(7)) they would all be there still.
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let left = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    match left.map(str::trim).map(|digits| u64::from_str_radix(digits, 16)) {
        Some(Ok(0)) => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}
