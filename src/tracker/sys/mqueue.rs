//! POSIX message queues: a mount that is attached nowhere, and the attributes of a queue.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `FSOPEN_CLOEXEC`, `FSCONFIG_CMD_CREATE`, `FSMOUNT_CLOEXEC` and `MOUNT_ATTR_*` of linux/mount.h: the libc
/// crate does not have them.
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const NOSUID_NODEV_NOEXEC: libc::c_uint = 0x2 | 0x4 | 0x8;

/// What `mq_getattr(3)` says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Messages that wait in it.
    pub messages: u64,
    /// So many may.
    pub max_messages: u64,
    /// So many bytes each may have.
    pub message_size: u64,
}

/// `mq_unlink(3)`: the C library's rules for names, whatever they are on this machine. No mount is needed.
///
/// # Errors
/// The errno of the C library, which has `EACCES` where the kernel says `EPERM`.
pub fn unlink(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    super::check(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop)
}

/// Mounts the message queues of the IPC namespace that this thread is in, in no tree: the mount is gone when the
/// last descriptor of it is closed, whatever becomes of this process. The descriptor is an `O_PATH` one.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` in the user namespace of that IPC namespace, `ENODEV` on a kernel
/// without message queues, `ENOSYS` before Linux 5.2.
pub fn detached_mount() -> io::Result<OwnedFd> {
    let kind = c"mqueue".as_ptr();
    // SAFETY: the name is NUL-terminated; a descriptor that is answered is new.
    let context = unsafe { descriptor(libc::syscall(libc::SYS_fsopen, kind, FSOPEN_CLOEXEC)) }?;
    let none = std::ptr::null::<libc::c_char>();
    let fd = context.as_raw_fd();
    // SAFETY: this command takes neither key nor value.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) };
    if made == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call touches no memory; a descriptor that is answered is new.
    unsafe {
        let (flags, attributes) = (FSMOUNT_CLOEXEC, NOSUID_NODEV_NOEXEC);
        descriptor(libc::syscall(libc::SYS_fsmount, fd, flags, attributes))
    }
}

/// The new descriptor that a system call answered.
///
/// # Safety
/// It has no other owner.
unsafe fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(answer) {
        // SAFETY: the caller vouches for it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The attributes of the queue that is open as `queue`, from whatever mount. No time of the queue changes
/// by that, and no message.
///
/// # Errors
/// `EBADF`: not a message queue, or an `O_PATH` descriptor.
pub fn attributes(queue: impl AsFd) -> io::Result<Attributes> {
    let mut raw = MaybeUninit::<libc::mq_attr>::zeroed();
    let fd = queue.as_fd().as_raw_fd();
    let none = std::ptr::null::<libc::mq_attr>();
    // SAFETY: nothing is set, and the kernel writes at most one structure to the buffer.
    let answer = unsafe { libc::syscall(libc::SYS_mq_getsetattr, fd, none, raw.as_mut_ptr()) };
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is integers only, for which zeroes are valid, and the call succeeded.
    let raw = unsafe { raw.assume_init() };
    let number = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
    #[allow(clippy::useless_conversion, reason = "the fields' type differs by architecture")]
    Ok(Attributes {
        messages: number(raw.mq_curmsgs.into()),
        max_messages: number(raw.mq_maxmsg.into()),
        message_size: number(raw.mq_msgsize.into()),
    })
}
