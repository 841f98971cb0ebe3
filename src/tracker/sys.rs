//! The only place with `unsafe`: system calls that neither std nor nix wraps.

pub(crate) mod copied;
pub mod credentials;
pub mod image;
pub mod ipc;
pub(crate) mod launch;
pub mod maps;
pub mod mqueue;
pub(crate) mod pipe_end;

mod processes;
pub(crate) mod section;
pub(crate) mod signals;

pub use processes::{enter_network, same_descriptors, socket_diagnosis};

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::time::{TimeVal, TimeValLike};

/// Bit N: descriptor N (0 to 2) was open when the process started.
static OPEN_AT_START: AtomicU8 = AtomicU8::new(0);

/// Runs before Rust's run-time, which opens /dev/null in place of a standard descriptor that is
/// closed, so that afterwards nobody could tell.
extern "C" fn note_standard_descriptors() {
    for fd in 0..3 {
        // SAFETY: F_GETFD reads a flag of a descriptor number and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1 {
            OPEN_AT_START.fetch_or(1 << fd, Ordering::Relaxed);
            continue;
        }
        // Without /dev/null, as in a bare chroot, the run-time would abort. A counter nobody asks
        // takes the lowest number that is free, which is this one.
        // SAFETY: the path is NUL-terminated, and neither call touches other memory.
        unsafe {
            if libc::access(c"/dev/null".as_ptr(), libc::R_OK | libc::W_OK) == -1 {
                libc::eventfd(0, libc::EFD_NONBLOCK);
            }
        }
    }
}

// SAFETY: the section holds pointers to functions that the loader calls once before main; this
// one uses an atomic and a system call only, neither of which needs an initialised run-time.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_STANDARD_DESCRIPTORS: extern "C" fn() = note_standard_descriptors;

/// Whether the standard descriptor `fd` (0 to 2) was open when the process started; true for
/// every other number.
#[must_use]
pub fn was_open_at_start(fd: i32) -> bool {
    // The reference keeps the initialiser in the program whatever the linker drops.
    std::hint::black_box(&NOTE_STANDARD_DESCRIPTORS);
    !(0..3).contains(&fd) || OPEN_AT_START.load(Ordering::Relaxed) & (1 << fd) != 0
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `shm_unlink(3)`: glibc's rules for names, whatever they are on this machine.
///
/// # Errors
/// The errno of the C library.
pub fn shm_unlink(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    check(unsafe { libc::shm_unlink(name.as_ptr()) }).map(drop)
}

/// `sem_unlink(3)`.
///
/// # Errors
/// The errno of the C library.
pub fn sem_unlink(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    check(unsafe { libc::sem_unlink(name.as_ptr()) }).map(drop)
}

/// `F_SETSIG` of fcntl_linux.h (asm-generic): the libc crate does not have it.
const F_SETSIG: libc::c_int = 10;

/// The state of a lease, as `F_GETLEASE` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// The write lease is whole: nobody has tried to open the file since it was granted.
    Write,
    /// Somebody is opening the file, or there is no lease.
    Broken,
}

/// Takes a write lease (`F_SETLEASE`, `F_WRLCK`) on `fd`. Its break sends SIGURG, whose default
/// is to do nothing, instead of SIGIO, whose default is to kill (`F_SETSIG`).
///
/// # Errors
/// `EAGAIN`: some other open file description of the inode exists. `EACCES`: neither the owner
/// nor `CAP_LEASE`. `EINVAL`: the file system has no leases.
pub fn take_write_lease(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: both calls take an integer and touch no memory.
    check(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) }).map(drop)
}

/// As [`take_write_lease`], in the name of the file's owner: a process that may change its uids
/// (`CAP_SETUID`) need not have `CAP_LEASE`, which containers usually lack. The file-system uid of
/// this thread is `owner` for one system call.
///
/// # Errors
/// As [`take_write_lease`]; `EACCES` also where the uid cannot be taken.
pub fn take_write_lease_as(fd: impl AsFd, owner: u32) -> io::Result<()> {
    // SAFETY: setfsuid changes an attribute of this thread and touches no memory.
    let before = unsafe { libc::setfsuid(owner) };
    let result = take_write_lease(fd);
    // SAFETY: as above; it goes back to what this thread had, which is always allowed.
    unsafe { libc::setfsuid(libc::uid_t::try_from(before).unwrap_or(0)) };
    result
}

/// Asks whether the lease taken on `fd` is still whole (`F_GETLEASE`).
///
/// # Errors
/// `EBADF`, which a borrowed descriptor excludes.
pub fn lease_state(fd: impl AsFd) -> io::Result<LeaseState> {
    // SAFETY: the call touches no memory.
    let state = check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETLEASE) })?;
    Ok(if state == libc::F_WRLCK { LeaseState::Write } else { LeaseState::Broken })
}

/// Gives the lease on `fd` back (`F_UNLCK`); without one this does nothing.
///
/// # Errors
/// `EBADF`, which a borrowed descriptor excludes.
pub fn release_lease(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    match check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) }) {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
        other => other.map(drop),
    }
}

/// Locks the open file description of `fd` (`flock(2)`, exclusive) if nobody else has; it is given
/// back when the last descriptor is closed. False: somebody has it.
///
/// # Errors
/// The errno of the call, other than `EWOULDBLOCK`.
pub fn try_lock(fd: impl AsFd) -> io::Result<bool> {
    // SAFETY: the call takes integers and touches no memory.
    match check(unsafe { libc::flock(fd.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A moment in nanoseconds since 1970, as a file system or `CLOCK_REALTIME` has it.
pub type Nanoseconds = i128;

/// What `statx(2)` says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Device number, as `st_dev`.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// File type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Apparent size in bytes.
    pub size: u64,
    /// Memory really used, in bytes.
    pub allocated: u64,
    /// When the inode was made; tmpfs knows since Linux 6.0.
    pub born: Option<Nanoseconds>,
    /// When content changed last.
    pub modified: Nanoseconds,
    /// When the inode changed last.
    pub changed: Nanoseconds,
}

impl Stat {
    /// The later of birth and last change.
    #[must_use]
    pub fn last_change(&self) -> Nanoseconds {
        self.born.unwrap_or(self.changed).max(self.changed)
    }

    /// The file type bits of the mode (`S_IFMT`).
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }
}

/// `statx(2)` of `name` in `dir`, or of `dir` itself for an empty name, as far as the kernel has it at hand: neither is
/// anything mounted for it, nor a file system asked (`AT_STATX_DONT_SYNC`).
fn statx(dir: impl AsFd, name: &CStr, flags: libc::c_int, mask: u32) -> io::Result<libc::statx> {
    let mut raw = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let at_hand = libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let (fd, name) = (dir.as_fd().as_raw_fd(), name.as_ptr());
    // SAFETY: the name is NUL-terminated, and the kernel writes at most one statx to the buffer.
    check(unsafe { libc::statx(fd, name, at_hand | flags, mask, raw.as_mut_ptr()) })?;
    // SAFETY: a statx is integers only, for which zeroes are valid, and the call succeeded.
    Ok(unsafe { raw.assume_init() })
}

/// `statx(2)` of `name` in `dir`, not following a symlink; an empty name is `dir` itself.
///
/// # Errors
/// The errno of the call: `ENOENT` when there is no such name.
pub fn stat(dir: impl AsFd, name: &CStr) -> io::Result<Stat> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let raw = statx(dir, name, libc::AT_SYMLINK_NOFOLLOW, mask)?;
    let time =
        |t: libc::statx_timestamp| i128::from(t.tv_sec) * 1_000_000_000 + i128::from(t.tv_nsec);
    Ok(Stat {
        dev: libc::makedev(raw.stx_dev_major, raw.stx_dev_minor),
        ino: raw.stx_ino,
        mode: u32::from(raw.stx_mode),
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        nlink: raw.stx_nlink,
        size: raw.stx_size,
        allocated: raw.stx_blocks.saturating_mul(512),
        born: (raw.stx_mask & libc::STATX_BTIME != 0).then(|| time(raw.stx_btime)),
        modified: time(raw.stx_mtime),
        changed: time(raw.stx_ctime),
    })
}

/// The device number of what the `O_PATH` descriptor `fd` refers to, and nothing else of it: a
/// user's FUSE mount denies root every other answer, or never gives one (statx(2), mask 0).
///
/// # Errors
/// The errno of the call.
pub fn device(fd: impl AsFd) -> io::Result<u64> {
    let raw = statx(fd, c"", 0, 0)?;
    Ok(libc::makedev(raw.stx_dev_major, raw.stx_dev_minor))
}

/// Where the symbolic link `name` in `dir` leads to, put into `target`.
///
/// # Errors
/// The errno of readlinkat(2); `ENAMETOOLONG` for what is longer than a path may be.
pub fn read_link(dir: impl AsFd, name: &CStr, target: &mut Vec<u8>) -> io::Result<()> {
    // The links of /proc are no longer (`PATH_MAX`, with the NUL that this call does not write).
    const MOST: usize = 4096;
    target.clear();
    target.reserve(MOST);
    let (fd, room) = (dir.as_fd().as_raw_fd(), target.as_mut_ptr());
    // SAFETY: the name is NUL-terminated, and the kernel writes at most as many bytes as there is room for.
    let length = unsafe { libc::readlinkat(fd, name.as_ptr(), room.cast(), MOST) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    if length == MOST {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    // SAFETY: the kernel has written so many bytes.
    unsafe { target.set_len(length) };
    Ok(())
}

/// Reads a directory from where its descriptor stands to its end, and calls `each` with every name but `.` and
/// `..`. `room` is read into. One that was removed has none.
///
/// # Errors
/// The errno of getdents64(2).
pub fn list(dir: impl AsFd, room: &mut Vec<u8>, mut each: impl FnMut(&CStr)) -> io::Result<()> {
    // `struct linux_dirent64`: inode, offset, length of the entry, type, and the name with its NUL.
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let fd = dir.as_fd().as_raw_fd();
    room.resize(32 << 10, 0);
    loop {
        let (start, most) = (room.as_mut_ptr(), room.len());
        // SAFETY: the kernel writes at most as many bytes as there is room for.
        let length = unsafe { libc::syscall(libc::SYS_getdents64, fd, start, most) };
        let length = match usize::try_from(length).map_err(|_| io::Error::last_os_error()) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut entries = room.get(..length).unwrap_or_default();
        if entries.is_empty() {
            return Ok(());
        }
        while let Some([low, high]) = entries.get(LENGTH..LENGTH + 2) {
            let length = usize::from(u16::from_ne_bytes([*low, *high]));
            let name = entries.get(NAME..length).map(CStr::from_bytes_until_nul);
            if let Some(Ok(name)) = name.filter(|_| length > NAME)
                && name != c"."
                && name != c".."
            {
                each(name);
            }
            entries = entries.get(length.max(NAME)..).unwrap_or_default();
        }
    }
}

/// The mount and the inode number of what `name` in `dir` leads to, links followed.
///
/// # Errors
/// The errno of statx(2); `EOPNOTSUPP` before Linux 5.8.
pub fn mount_and_inode(dir: impl AsFd, name: &CStr) -> io::Result<(u64, u64)> {
    let mask = libc::STATX_MNT_ID | libc::STATX_INO;
    let raw = statx(dir, name, 0, mask)?;
    if raw.stx_mask & mask != mask {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok((raw.stx_mnt_id, raw.stx_ino))
}

/// The mount that `fd` was reached by (`STATX_MNT_ID`): a bind mount of the same file system has the
/// same device and another one of these.
///
/// # Errors
/// The errno of the call; `EOPNOTSUPP` before Linux 5.8.
pub fn mount_id(fd: impl AsFd) -> io::Result<u64> {
    let raw = statx(fd, c"", 0, libc::STATX_MNT_ID)?;
    if raw.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(raw.stx_mnt_id)
}

/// `FSOPEN_CLOEXEC` and `FSMOUNT_CLOEXEC` of linux/mount.h, and the command that makes the file system
/// ready: the libc crate has none of them.
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// `MOUNT_ATTR_RDONLY`, `_NOSUID`, `_NODEV` and `_NOEXEC` of linux/mount.h.
const READ_ONLY: libc::c_uint = 1 | 2 | 4 | 8;

/// The root of the POSIX message queues of this thread's IPC namespace (mq_overview(7)), read-only, as an
/// `O_PATH` descriptor. It is mounted nowhere: nobody else can see it, and it goes with the descriptor.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN over that namespace and over the own mount namespace; `ENOSYS` before
/// Linux 5.2; `ENODEV` on a kernel without message queues.
pub fn mqueue_root() -> io::Result<OwnedFd> {
    let owned = |fd: libc::c_long| {
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        check(fd)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: the name is NUL-terminated and outlives the call.
    let context =
        owned(unsafe { libc::syscall(libc::SYS_fsopen, c"mqueue".as_ptr(), FSOPEN_CLOEXEC) })?;
    let fd = context.as_raw_fd();
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither a key nor a value, and the kernel wants null for both.
    if unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes integers and touches no memory.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, READ_ONLY) })
}

/// Has threads allocate from two heaps. glibc gives each its own, of which none has what the others need no
/// longer: that is memory for nothing. But of one they would wait for each other. Where the address space is limited
/// (`RLIMIT_AS`) there may be no room for a second, which takes up to 128 MiB of it.
pub fn two_heaps() {
    #[cfg(target_env = "gnu")]
    {
        use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
        let limited = getrlimit(Resource::RLIMIT_AS).is_ok_and(|(soft, _)| soft != RLIM_INFINITY);
        // SAFETY: the call sets a number, before there is another thread. It cannot fail with these.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, if limited { 1 } else { 2 });
        }
    }
}

/// Bytes of a page of memory.
#[must_use]
pub fn page_size() -> u64 {
    // SAFETY: the call takes an integer and touches no memory.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // Linux always answers; no page is smaller than this one.
    u64::try_from(size).unwrap_or(4096)
}

/// The names of the extended attributes (xattr(7)) of what `fd` refers to, access control lists included; it
/// may be an `O_PATH` descriptor.
///
/// # Errors
/// The errno of listxattr(2).
pub fn attribute_names(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let fd = fd.as_fd().as_raw_fd();
    let mut names = vec![0_u8; 1 << 16];
    let (at, size) = (names.as_mut_ptr().cast(), names.len());
    // SAFETY: the kernel writes at most `size` bytes to the buffer.
    let mut length = unsafe { libc::flistxattr(fd, at, size) };
    if length == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EBADF) {
        let link = std::ffi::CString::new(format!("/proc/self/fd/{fd}"))?;
        // SAFETY: as above, and the path is NUL-terminated.
        length = unsafe { libc::listxattr(link.as_ptr(), at, size) };
    }
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        let none = error.raw_os_error() == Some(libc::EOPNOTSUPP);
        return if none { Ok(Vec::new()) } else { Err(error) };
    };
    names.truncate(length);
    Ok(names.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Ignores `signal`, as `signal(2)` with `SIG_IGN` does.
///
/// # Errors
/// `EINVAL`: no such signal, or one that cannot be ignored.
pub fn ignore_signal(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: SIG_IGN is no handler, so no code of this program runs in a signal's context.
    if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether `signal` is ignored, as a program is that nohup(1) starts.
///
/// # Errors
/// `EINVAL`: no such signal.
pub fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is changed, and the kernel writes one structure to the buffer.
    check(unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) })?;
    // SAFETY: zeroes are valid for it, and the call succeeded.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Whether `signal` is held back and has come, to this thread or to the process.
///
/// # Errors
/// `EINVAL`: no such signal.
pub fn is_pending(signal: libc::c_int) -> io::Result<bool> {
    let mut pending = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the kernel writes one set to the buffer, which both calls only use.
    unsafe {
        check(libc::sigpending(pending.as_mut_ptr()))?;
        check(libc::sigismember(pending.as_ptr(), signal)).map(|member| member == 1)
    }
}

/// Does nothing: that a handler runs at all is what ends a blocking system call with `EINTR`.
extern "C" fn interrupt(_signal: libc::c_int) {}

/// Calls `work` while SIGALRM interrupts whatever system call it blocks in, every 50 ms. The caller's
/// own alarm, if it has one, goes on afterwards.
///
/// The only bound there is on a write to a descriptor that others share: making it non-blocking
/// would change it for them, and what `poll` said can be untrue by the time of the write.
pub fn interrupted<T>(work: impl FnOnce() -> T) -> T {
    const TICK: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
    let began = std::time::Instant::now();
    // SAFETY: zeroes are valid for all three: an empty mask and no flags (SA_RESTART must not be
    // set), no timer. The handler touches nothing, so it may run at any point of the program. Each
    // call reads and writes one structure that outlives it.
    let (timer, action, mask) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = interrupt as *const () as libc::sighandler_t;
        let mut alarm: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut alarm, libc::SIGALRM);
        let tick = libc::itimerval { it_interval: TICK, it_value: TICK };
        let mut before: (libc::itimerval, libc::sigaction, libc::sigset_t) = std::mem::zeroed();
        libc::sigaction(libc::SIGALRM, &action, &mut before.1);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &alarm, &mut before.2);
        libc::setitimer(libc::ITIMER_REAL, &tick, &mut before.0);
        before
    };
    let result = work();
    let timer = less(timer, began.elapsed());
    // SAFETY: as above. First the timer, so that none of its ticks meets what was there before.
    unsafe {
        let stopped: libc::itimerval = std::mem::zeroed();
        libc::setitimer(libc::ITIMER_REAL, &stopped, std::ptr::null_mut());
        libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut());
    }
    result
}

/// A timer that has run for `elapsed` more; one that would have ended goes off at once.
fn less(mut timer: libc::itimerval, elapsed: std::time::Duration) -> libc::itimerval {
    let left = TimeVal::from(timer.it_value).num_microseconds();
    if left > 0 {
        let elapsed = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
        timer.it_value = *TimeVal::microseconds((left - elapsed).max(1)).as_ref();
    }
    timer
}

/// Another descriptor, above 2 and closed on exec, of what the inherited number `fd` refers to.
/// A number says nothing about who owns it, which is why the original is left alone.
///
/// # Errors
/// `EBADF`: nothing is open under that number.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call touches no memory, and fails on a number that is not open.
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Closes every descriptor above 2 except those of `keep`, and points those of `quiet` (among 0 to 2) to
/// /dev/null. Only for a process that has opened nothing but `keep` so far and has one thread.
///
/// # Errors
/// What /proc/self/fd failed with on a kernel without `close_range` (before 5.9). That /dev/null
/// cannot be opened is no error: the descriptors stay as they are.
pub fn let_go_of_inherited(keep: &[BorrowedFd<'_>], quiet: &[RawFd]) -> io::Result<()> {
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        for &fd in quiet.iter().filter(|fd| (0..3).contains(*fd)) {
            // SAFETY: the standard descriptors have no owner in Rust; both numbers are valid.
            check(unsafe { libc::dup2(null.as_raw_fd(), fd) })?;
        }
    }
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let close = |first: RawFd, last: libc::c_uint| {
        // SAFETY: the caller has opened nothing but `keep`, of which none is in the range.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    let (mut first, mut closed) = (3, Ok(()));
    for fd in keep.iter().copied().filter(|fd| *fd > 2) {
        if fd > first {
            closed = closed.and_then(|()| close(first, fd.unsigned_abs() - 1));
        }
        first = fd + 1;
    }
    if closed.and_then(|()| close(first, libc::c_uint::MAX)).is_ok() {
        return Ok(());
    }
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !keep.contains(fd)) {
        // SAFETY: as above. The descriptor that listed the directory is closed already: EBADF.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// How many bytes wait to be read (`FIONREAD`), from either end of a pipe.
///
/// # Errors
/// `ENOTTY`: not a thing that has a queue.
pub fn queued(fd: impl AsFd) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to the variable, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}
