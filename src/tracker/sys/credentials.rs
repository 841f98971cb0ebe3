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

/// With whose rights something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// An ordinary user's.
    User {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// Root's, with these capabilities at most.
    Root {
        /// As in /proc/PID/status.
        capabilities: u64,
    },
}

/// Does `work` on a thread that has the rights of somebody else: of a user that user's id and group for everything that
/// is done to files and IPC objects, no other groups, and no capabilities. For root only.
///
/// The thread's real uid stays root's, so that the user can neither signal nor trace it (kill(2)).
///
/// # Errors
/// No thread can be made, or it cannot give up its rights; then nothing was done.
pub fn with_rights<T: Send>(rights: Rights, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let job = || {
        take(rights)?;
        Ok(work())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("as-user".into()).spawn_scoped(scope, job)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Gives this thread other rights. The C library's functions would do it to all threads.
fn take(rights: Rights) -> io::Result<()> {
    const SAME: libc::uid_t = libc::uid_t::MAX;
    let call = |result: libc::c_long| check(i32::try_from(result).unwrap_or(-1)).map(drop);
    let most = match rights {
        Rights::User { uid, gid } => {
            // SAFETY: none of these calls touches memory: the list of groups is empty.
            unsafe {
                call(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
                call(libc::syscall(libc::SYS_setresgid, SAME, gid, SAME))?;
                call(libc::syscall(libc::SYS_setresuid, SAME, uid, SAME))?;
            }
            0
        }
        Rights::Root { capabilities } => {
            limit(capabilities)?;
            capabilities
        }
    };
    // With SECBIT_NO_SETUID_FIXUP (capabilities(7)) they would all be there still.
    if effective()? & !most == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// The effective capabilities of this thread.
fn effective() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    set.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h, with its structures: the libc crate does not have them.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Leaves this thread at most these effective capabilities; what is permitted stays.
fn limit(capabilities: u64) -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    let call = |result: libc::c_long| check(i32::try_from(result).unwrap_or(-1)).map(drop);
    // SAFETY: the kernel reads one header and writes two structures, which version 3 has.
    call(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    for (part, half) in data.iter_mut().zip([capabilities, capabilities >> 32]) {
        part.effective &= u32::try_from(half & u64::from(u32::MAX)).unwrap_or(0);
    }
    // SAFETY: the kernel reads one header and two structures.
    call(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}
