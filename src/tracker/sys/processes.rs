//! What the kernel is asked about processes and their sockets.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;

/// `KCMP_FILES` of linux/kcmp.h.
const KCMP_FILES: libc::c_int = 2;

/// Whether two threads, by their ids, have one table of descriptors (kcmp(2)).
///
/// # Errors
/// `EPERM` or `EACCES`: not for us to ask. `ENOSYS`: a kernel without it. `ESRCH`: one of them is gone.
pub fn same_descriptors(one: i32, other: i32) -> io::Result<bool> {
    // SAFETY: with KCMP_FILES the last two arguments are not looked at, and no memory is touched.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0_u64, 0_u64) };
    if order < 0 { Err(io::Error::last_os_error()) } else { Ok(order == 0) }
}

/// Takes the calling thread into a network namespace (setns(2)).
///
/// # Errors
/// `EPERM`: not with our rights. `EINVAL`: it is none.
pub fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// A socket that asks the kernel about the sockets of this network namespace (sock_diag(7)). It never
/// blocks; what is written to it goes to the kernel.
///
/// # Errors
/// The errno of socket(2): `EPROTONOSUPPORT` on a kernel without it.
pub fn socket_diagnosis() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call touches no memory.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
