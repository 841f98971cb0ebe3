//! System V objects: what the kernel says of one by its id, and the few calls that change one.
//!
//! The `STAT_ANY` commands need no permission on the object, unlike `IPC_STAT`; they take any id that
//! has the right index and answer with that of the object there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// `SHM_DEST` of linux/shm.h, in the mode of a segment: its id is removed, and it goes with its last
/// attachment.
pub const SHM_DEST: u32 = 0o1000;

/// `SHM_LOCKED` of linux/shm.h, in the mode of a segment: it is not swapped out.
pub const SHM_LOCKED: u32 = 0o2000;

/// `SHM_STAT_ANY`, `SEM_STAT_ANY` and `MSG_STAT_ANY` of linux/shm.h, sem.h and msg.h, since Linux 4.17.
const SHM_STAT_ANY: libc::c_int = 15;
const SEM_STAT_ANY: libc::c_int = 20;
const MSG_STAT_ANY: libc::c_int = 13;

/// `MFD_HUGETLB` of linux/memfd.h.
const MFD_HUGETLB: libc::c_uint = 4;

/// The three families of System V objects, each with ids of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Shared memory.
    Shm,
    /// Sets of semaphores.
    Sem,
    /// Message queues.
    Msg,
}

/// What the kernel says of one object. Times are in seconds since 1970; 0 is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Its key; 0 is `IPC_PRIVATE`.
    pub key: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Who made it.
    pub creator_uid: u32,
    /// Permissions, and of a segment [`SHM_DEST`] and [`SHM_LOCKED`].
    pub mode: u32,
    /// The process that made a segment; 0: not visible here.
    pub creator: i32,
    /// The processes that used it last: of a segment the one that attached or detached it, of a queue
    /// the one that sent and the one that received; 0 likewise.
    pub last: [i32; 2],
    /// When it was made or changed last.
    pub changed: i64,
    /// When it was used last.
    pub used: i64,
    /// Bytes of a segment, semaphores of a set.
    pub size: u64,
    /// Attachments of a segment, messages of a queue.
    pub count: u64,
}

/// What the kernel says of the object with this id; `None` when there is none.
///
/// # Errors
/// The errno of shmctl(2), semctl(2) or msgctl(2).
pub fn state(family: Family, id: i32) -> io::Result<Option<State>> {
    match any_state(family, id) {
        Ok((found, state)) => Ok((found == id).then_some(state)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error says that there is no object with this id.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM))
}

#[allow(
    clippy::unnecessary_cast,
    clippy::useless_conversion,
    reason = "types differ by architecture"
)]
fn any_state(family: Family, id: i32) -> io::Result<(i32, State)> {
    let of = |perm: &libc::ipc_perm| State {
        key: perm.__key.cast_unsigned(),
        uid: perm.uid,
        gid: perm.gid,
        creator_uid: perm.cuid,
        mode: u32::from(perm.mode),
        creator: 0,
        last: [0, 0],
        changed: 0,
        used: 0,
        size: 0,
        count: 0,
    };
    match family {
        Family::Shm => {
            let mut raw = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
            // SAFETY: the kernel writes at most one structure to the buffer.
            let found = check(unsafe { libc::shmctl(id, SHM_STAT_ANY, raw.as_mut_ptr()) })?;
            // SAFETY: it is integers only, for which zeroes are valid, and the call succeeded.
            let raw = unsafe { raw.assume_init() };
            let state = State {
                creator: raw.shm_cpid,
                last: [raw.shm_lpid, 0],
                changed: raw.shm_ctime,
                used: raw.shm_atime.max(raw.shm_dtime),
                size: raw.shm_segsz as u64,
                count: raw.shm_nattch as u64,
                ..of(&raw.shm_perm)
            };
            Ok((found, state))
        }
        Family::Sem => {
            let mut raw = std::mem::MaybeUninit::<libc::semid_ds>::zeroed();
            // SAFETY: the command takes a pointer, and the kernel writes at most one structure to it.
            let found = check(unsafe { libc::semctl(id, 0, SEM_STAT_ANY, raw.as_mut_ptr()) })?;
            // SAFETY: as above.
            let raw = unsafe { raw.assume_init() };
            let state = State {
                changed: raw.sem_ctime,
                used: raw.sem_otime,
                size: raw.sem_nsems as u64,
                ..of(&raw.sem_perm)
            };
            Ok((found, state))
        }
        Family::Msg => {
            let mut raw = std::mem::MaybeUninit::<libc::msqid_ds>::zeroed();
            // SAFETY: the kernel writes at most one structure to the buffer.
            let found = check(unsafe { libc::msgctl(id, MSG_STAT_ANY, raw.as_mut_ptr()) })?;
            // SAFETY: as above.
            let raw = unsafe { raw.assume_init() };
            let state = State {
                changed: raw.msg_ctime,
                last: [raw.msg_lspid, raw.msg_lrpid],
                used: raw.msg_stime.max(raw.msg_rtime),
                count: raw.msg_qnum as u64,
                ..of(&raw.msg_perm)
            };
            Ok((found, state))
        }
    }
}

/// Whether this kernel has System V objects at all.
#[must_use]
pub fn is_supported() -> bool {
    let mut raw = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: the kernel writes at most one structure to the buffer.
    match check(unsafe { libc::shmctl(-1, libc::IPC_STAT, raw.as_mut_ptr()) }) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() != Some(libc::ENOSYS),
    }
}

/// Gives a segment this mode, and the owner that it was `seen` with (`IPC_SET`, which takes all three).
///
/// # Errors
/// The errno of shmctl(2); [`is_gone`] tells whether there is none any more.
#[allow(clippy::cast_possible_truncation, reason = "a mode has nine bits here")]
pub fn set_mode(id: i32, seen: &State, mode: u32) -> io::Result<()> {
    let mut raw = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: it is integers only, for which zeroes are valid; the kernel reads one structure.
    check(unsafe {
        let set = raw.assume_init_mut();
        set.shm_perm.uid = seen.uid;
        set.shm_perm.gid = seen.gid;
        set.shm_perm.mode = (mode & 0o777) as _;
        libc::shmctl(id, libc::IPC_SET, set)
    })
    .map(drop)
}

/// Removes an object (`IPC_RMID`).
///
/// # Errors
/// The errno of the call; [`is_gone`] tells whether there is none any more.
pub fn remove(family: Family, id: i32) -> io::Result<()> {
    // SAFETY: the command takes no structure, so nothing is read or written.
    let result = unsafe {
        match family {
            Family::Shm => libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            Family::Sem => libc::semctl(id, 0, libc::IPC_RMID),
            Family::Msg => libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()),
        }
    };
    check(result).map(drop)
}

/// One semaphore of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Semaphore {
    /// Its value.
    pub value: i32,
    /// How many processes wait for it to grow.
    pub waiting: i32,
    /// How many processes wait for it to become 0.
    pub waiting_for_zero: i32,
    /// The process that changed it last; 0: none, or one that is not visible here.
    pub pid: i32,
}

/// The semaphore with this number in a set.
///
/// # Errors
/// The errno of semctl(2): `EACCES` without permission to read; [`is_gone`] tells whether there is none
/// any more.
pub fn semaphore(id: i32, number: i32) -> io::Result<Semaphore> {
    // SAFETY: the commands take no further argument and touch no memory.
    let get = |command| check(unsafe { libc::semctl(id, number, command) });
    Ok(Semaphore {
        value: get(libc::GETVAL)?,
        waiting: get(libc::GETNCNT)?,
        waiting_for_zero: get(libc::GETZCNT)?,
        pid: get(libc::GETPID)?,
    })
}

/// Takes the calling thread into an IPC namespace (setns(2)).
///
/// # Errors
/// The errno of the call.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call changes an attribute of this thread and touches no memory.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWIPC) }).map(drop)
}

/// The devices that System V memory is mapped from, ordinary and of huge pages: those of a memfd.
#[must_use]
pub fn memory_devices() -> Vec<u64> {
    // log2 of the page size stands in the upper bits; none is the default size.
    let huge = [0_u32, 16, 19, 20, 21, 23, 24, 25, 28, 29, 30, 31, 34];
    let huge = huge.iter().map(|size| MFD_HUGETLB | size << 26);
    let mut devices: Vec<u64> = std::iter::once(0).chain(huge).filter_map(device_of).collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// The device of a memfd that is made with these flags, if the kernel has such.
fn device_of(flags: libc::c_uint) -> Option<u64> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(c"rtrack".as_ptr(), flags | libc::MFD_CLOEXEC) };
    let fd = check(fd).ok()?;
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    super::device(&fd).ok()
}
