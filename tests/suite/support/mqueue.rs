//! Message queues of a case's own IPC namespace.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::{check, mount, scratch};

/// Where the queues are mounted for this case: not at /dev/mqueue.
pub(crate) fn queues() -> PathBuf {
    let path = scratch().join("queues");
    if !path.exists() {
        fs::create_dir(&path).unwrap();
        mount("mqueue", path.to_str().unwrap(), "mqueue", 0, "").unwrap();
    }
    path
}

/// The names of all queues.
pub(crate) fn queue_names() -> BTreeSet<OsString> {
    fs::read_dir(queues()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// The inode number of a queue; nothing when there is no such name.
pub(crate) fn queue_inode(name: impl AsRef<OsStr>) -> Option<u64> {
    match fs::symlink_metadata(queues().join(name.as_ref())) {
        Ok(meta) => Some(meta.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
    }
}

/// A queue that is open as mq_open(3) opens it.
#[derive(Debug)]
pub(crate) struct Queue(OwnedFd);

/// Makes a queue of mode 0600, which must not exist, and opens it without blocking.
pub(crate) fn make_queue(name: impl AsRef<OsStr>) -> Queue {
    open_with(name.as_ref(), libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK).unwrap()
}

/// The same with room for so many messages of eight bytes: what the kernel reserves for the queues of a user is
/// limited.
pub(crate) fn make_small_queue(name: impl AsRef<OsStr>, messages: i64) -> Queue {
    // SAFETY: the structure is integers only.
    let mut attributes = unsafe { std::mem::zeroed::<libc::mq_attr>() };
    attributes.mq_maxmsg = messages;
    attributes.mq_msgsize = 8;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK;
    open_as(name.as_ref(), flags, &raw const attributes).unwrap()
}

/// As `make_queue`, with `messages` in it, of five bytes each, and nobody who has it open.
pub(crate) fn leave_queue(name: impl AsRef<OsStr>, messages: usize) -> u64 {
    let queue = make_queue(&name);
    for _message in 0..messages {
        queue.send("hello").unwrap();
    }
    queue_inode(name).unwrap()
}

/// Gives a queue another owner, who is in a group of the same number (needs real root), and mode.
pub(crate) fn give_queue(name: &str, owner: u32, mode: u32) {
    let path = queues().join(name);
    chown(&path, Some(owner), Some(owner)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Opens a queue that exists, blocking.
pub(crate) fn open_queue(name: impl AsRef<OsStr>) -> io::Result<Queue> {
    open_with(name.as_ref(), 0)
}

/// `mq_open(3)` for reading and writing with `flags` beside.
fn open_with(name: &OsStr, flags: i32) -> io::Result<Queue> {
    open_as(name, flags, std::ptr::null())
}

/// The same with these attributes, or the usual ones.
fn open_as(name: &OsStr, flags: i32, attributes: *const libc::mq_attr) -> io::Result<Queue> {
    let name = [b"/", name.as_encoded_bytes()].concat();
    let name = CString::new(name).unwrap();
    // SAFETY: the name is NUL-terminated, and it and the attributes outlive the call; a descriptor that is
    // answered is new.
    unsafe {
        let mode = 0o600 as libc::c_uint;
        let fd = check(libc::mq_open(name.as_ptr(), libc::O_RDWR | flags, mode, attributes))?;
        Ok(Queue(OwnedFd::from_raw_fd(fd)))
    }
}

impl Queue {
    /// Sends a message.
    pub(crate) fn send(&self, text: &str) -> io::Result<()> {
        // SAFETY: the text outlives the call.
        let sent =
            unsafe { libc::mq_send(self.0.as_raw_fd(), text.as_ptr().cast(), text.len(), 0) };
        check(sent).map(drop)
    }

    /// Receives a message.
    pub(crate) fn receive(&self) -> io::Result<Vec<u8>> {
        let mut text = vec![0_u8; 1 << 16];
        let (at, room) = (text.as_mut_ptr().cast(), text.len());
        // SAFETY: the kernel writes at most `room` bytes to the buffer.
        let length =
            unsafe { libc::mq_receive(self.0.as_raw_fd(), at, room, std::ptr::null_mut()) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        text.truncate(length);
        Ok(text)
    }

    /// Asks to be told of the next message by nothing but the fact that others cannot ask
    /// (`SIGEV_NONE`), or by a signal that does nothing.
    pub(crate) fn notify(&self, by_signal: bool) {
        // SAFETY: the structure is integers and pointers, for which zeroes are valid, and outlives the call.
        unsafe {
            let mut event = std::mem::zeroed::<libc::sigevent>();
            event.sigev_notify = if by_signal { libc::SIGEV_SIGNAL } else { libc::SIGEV_NONE };
            event.sigev_signo = libc::SIGURG;
            let asked =
                libc::syscall(libc::SYS_mq_notify, self.0.as_raw_fd(), std::ptr::from_ref(&event));
            check(asked.try_into().unwrap()).unwrap();
        }
    }

    /// The same descriptor as a file.
    pub(crate) fn file(self) -> File {
        self.0.into()
    }
}

/// Has a directory /dev/mqueue, on which nothing is mounted; where the machine has none, this case gets a
/// /dev of its own.
pub(crate) fn empty_dev_mqueue() -> &'static Path {
    let path = Path::new("/dev/mqueue");
    if path.is_dir() {
        mount("tmpfs", "/dev/mqueue", "tmpfs", 0, "").unwrap();
        return path;
    }
    let new = scratch().join("dev");
    fs::create_dir(&new).unwrap();
    mount("tmpfs", new.to_str().unwrap(), "tmpfs", 0, "mode=755").unwrap();
    for name in ["null", "zero", "urandom", "fuse", "shm"] {
        let (from, to) = (Path::new("/dev").join(name), new.join(name));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
        } else if from.exists() {
            fs::write(&to, "").unwrap();
        } else {
            continue;
        }
        mount(from.to_str().unwrap(), to.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
    }
    fs::create_dir(new.join("mqueue")).unwrap();
    mount(new.to_str().unwrap(), "/dev", "", libc::MS_BIND | libc::MS_REC, "").unwrap();
    path
}
