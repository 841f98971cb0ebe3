//! System V objects as programs make and use them.

use std::io;

use super::check;
use super::namespaces::fork;

/// Makes a segment of shared memory; key 0 is a private one.
pub(crate) fn segment(key: i32, size: usize, mode: i32) -> i32 {
    // SAFETY: the call takes integers.
    check(unsafe { libc::shmget(key, size, libc::IPC_CREAT | libc::IPC_EXCL | mode) }).unwrap()
}

/// The id of the segment that has this key.
pub(crate) fn segment_of(key: i32) -> i32 {
    // SAFETY: the call takes integers.
    check(unsafe { libc::shmget(key, 0, 0) }).unwrap()
}

/// Makes a set of semaphores, all 0.
pub(crate) fn semaphores(key: i32, count: i32, mode: i32) -> i32 {
    // SAFETY: the call takes integers.
    check(unsafe { libc::semget(key, count, libc::IPC_CREAT | libc::IPC_EXCL | mode) }).unwrap()
}

/// Makes a message queue.
pub(crate) fn queue(key: i32, mode: i32) -> i32 {
    // SAFETY: the call takes integers.
    check(unsafe { libc::msgget(key, libc::IPC_CREAT | libc::IPC_EXCL | mode) }).unwrap()
}

/// Attaches a segment, until [`detach`] or the end of the process.
pub(crate) fn attach(id: i32) -> io::Result<*const libc::c_void> {
    // SAFETY: a new mapping at an address of the kernel's choice, used by nobody.
    let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if address.addr() == usize::MAX { Err(io::Error::last_os_error()) } else { Ok(address) }
}

pub(crate) fn detach(address: *const libc::c_void) {
    // SAFETY: it was attached there and nobody uses it.
    check(unsafe { libc::shmdt(address) }).unwrap();
}

/// Adds to a semaphore of a set; less than nothing waits until there is as much.
pub(crate) fn operate(id: i32, number: u16, add: i16) {
    let mut operation = libc::sembuf { sem_num: number, sem_op: add, sem_flg: 0 };
    // SAFETY: the kernel reads one structure.
    check(unsafe { libc::semop(id, &mut operation, 1) }).unwrap();
}

/// Sends a message of five bytes.
pub(crate) fn send(id: i32) {
    let message = (1_i64, *b"hello\0\0\0");
    // SAFETY: the kernel reads the type and five bytes after it.
    let sent = unsafe { libc::msgsnd(id, (&raw const message).cast(), 5, 0) };
    check(sent).unwrap();
}

/// Sends messages until the queue takes no more; answers with how many bytes they have.
pub(crate) fn fill(id: i32) -> u64 {
    let message = (1_i64, [0_u8; 1024]);
    let mut bytes = 0;
    loop {
        // SAFETY: the kernel reads the type and 1024 bytes after it.
        let sent = unsafe { libc::msgsnd(id, (&raw const message).cast(), 1024, libc::IPC_NOWAIT) };
        match check(sent) {
            Ok(_) => bytes += 1024,
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Receives a message.
pub(crate) fn receive(id: i32) {
    let mut message = (0_i64, [0_u8; 8]);
    // SAFETY: the kernel writes the type and at most eight bytes after it.
    let received = unsafe { libc::msgrcv(id, (&raw mut message).cast(), 8, 0, 0) };
    assert_eq!(received, 5, "{}", io::Error::last_os_error());
}

/// Removes the id of a segment.
pub(crate) fn remove_segment(id: i32) {
    // SAFETY: the command takes no structure.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).unwrap();
}

/// Gives a segment a mode.
pub(crate) fn set_mode(id: i32, mode: u32) {
    let mut raw = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: the structure is integers only, and the kernel reads or writes one.
    unsafe {
        check(libc::shmctl(id, libc::IPC_STAT, raw.as_mut_ptr())).unwrap();
        raw.assume_init_mut().shm_perm.mode = mode.try_into().unwrap();
        check(libc::shmctl(id, libc::IPC_SET, raw.as_mut_ptr())).unwrap();
    }
}

/// The words of the line about the object with this id in one of the kernel's tables.
pub(crate) fn line(table: &str, id: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/sysvipc/{table}")).unwrap();
    let mut lines = text.lines().skip(1);
    let line = lines.find(|line| line.split_whitespace().nth(1) == Some(&id.to_string()))?;
    Some(line.split_whitespace().map(str::to_owned).collect())
}

/// The mode of a segment, as the kernel's table has it.
pub(crate) fn mode(id: i32) -> Option<String> {
    line("shm", id)?.get(2).cloned()
}

/// Does `work` in a process of another user (needs real root), which ends then; answers with what that
/// answered, in a byte.
pub(crate) fn by(uid: u32, work: impl FnOnce() -> u8) -> u8 {
    let child = fork();
    if child == 0 {
        nix::unistd::setgroups(&[]).unwrap();
        nix::unistd::setgid(uid.into()).unwrap();
        nix::unistd::setuid(uid.into()).unwrap();
        std::process::exit(work().into());
    }
    let mut status = 0;
    // SAFETY: the status is one integer.
    check(unsafe { libc::waitpid(child, &mut status, 0) }).unwrap();
    assert!(libc::WIFEXITED(status), "{status}");
    libc::WEXITSTATUS(status).try_into().unwrap()
}
