//! A file whose server never answers a read, and a process that reads it with its memory lock
//! held: whoever wants that lock, to read the process's `cmdline` for instance, waits for ever.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::{Holder, check, hold, mount, scratch, wait_for};

/// Opcodes and sizes of linux/fuse.h, protocol 7.31.
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;

/// A mounted file; reads from it wait until this is dropped.
struct SilentFile {
    path: PathBuf,
}

impl SilentFile {
    fn mount() -> Self {
        let path = scratch().join("silent");
        fs::write(&path, "").unwrap();
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let fd = server.as_raw_fd();
        // The root of this file system is a regular file: there is nothing to look up.
        let options = format!("fd={fd},rootmode=100000,user_id=0,group_id=0");
        mount("silent", path.to_str().unwrap(), "fuse", 0, &options).unwrap();
        thread::spawn(move || serve(&server, true));
        Self { path }
    }
}

/// A mounted file that can be opened, and of which nothing else is ever answered until this is dropped: who
/// asks for its size or its type waits.
pub(crate) struct OpensOnly(SilentFile);

impl OpensOnly {
    /// Mounts it, over a file that is made in the scratch directory.
    pub(crate) fn mount() -> Self {
        let path = scratch().join("opens-only");
        fs::write(&path, "").unwrap();
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=100000,user_id=0,group_id=0", server.as_raw_fd());
        mount("silent", path.to_str().unwrap(), "fuse", 0, &options).unwrap();
        thread::spawn(move || serve(&server, false));
        Self(SilentFile { path })
    }

    /// Opens it.
    pub(crate) fn open(&self) -> File {
        File::open(&self.0.path).unwrap()
    }
}

/// Mounts a file whose server never answers anything, over `path`; as long as what is returned is
/// open, even to open it takes for ever.
pub(crate) fn never_opens(path: &Path) -> File {
    fs::write(path, "").unwrap();
    let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=100000,user_id=0,group_id=0", server.as_raw_fd());
    mount("silent", path.to_str().unwrap(), "fuse", 0, &options).unwrap();
    server
}

/// Mounts a directory whose server never answers anything, over `path`, for as long as what is returned
/// is open.
pub(crate) fn never_answers(path: &Path) -> File {
    let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    mount("silent", path.to_str().unwrap(), "fuse", 0, &options).unwrap();
    server
}

impl Drop for SilentFile {
    fn drop(&mut self) {
        let path = CString::new(self.path.to_str().unwrap()).unwrap();
        // SAFETY: the path is NUL-terminated. By force: every request that waits fails.
        check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) }).unwrap();
    }
}

/// Answers everything but reads, or to be opened and nothing else, until the file is unmounted.
fn serve(mut server: &File, tells_of_itself: bool) {
    let mut request = vec![0; 1 << 18];
    while let Ok(length @ 40..) = server.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        assert_eq!(word(0) as usize, length);
        let body = match word(4) {
            // Version 7.31, and a write size.
            INIT => words(16, &[(0, 7), (1, 31), (5, 4096)]),
            // One page, a regular file of mode 0600.
            GETATTR if !tells_of_itself => continue,
            GETATTR => words(26, &[(4, 1), (6, 4096), (19, 0o100_600), (20, 1), (24, 4096)]),
            // The page that somebody waits for stays (FOPEN_KEEP_CACHE): else the next one to open
            // it would wait for that.
            OPEN => words(4, &[(2, 2)]),
            READ => continue,
            _ => {
                reply(server, &request, -libc::ENOSYS, &[]);
                continue;
            }
        };
        reply(server, &request, 0, &body);
    }
}

/// `count` words of zeroes but for those given.
fn words(count: usize, set: &[(usize, u32)]) -> Vec<u8> {
    let mut words = vec![0_u32; count];
    for &(index, value) in set {
        words[index] = value;
    }
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Answers `request` with an errno, negated, or a body.
fn reply(mut server: &File, request: &[u8], error: i32, body: &[u8]) {
    let length = u32::try_from(16 + body.len()).unwrap();
    let header = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &request[8..16]].concat();
    // The request may have been given up meanwhile.
    server.write_all(&[&header, body].concat()).unwrap_or(());
}

/// Processes called python3 whose `cmdline` cannot be read; they end when this is dropped.
pub(crate) struct Unreadable {
    // Dropped first: then the processes can end.
    _file: SilentFile,
    _processes: Vec<Holder>,
}

/// Starts such a process and waits until its memory lock is taken.
pub(crate) fn process_without_cmdline() -> Unreadable {
    processes_without_cmdline(1)
}

/// The same with many.
pub(crate) fn processes_without_cmdline(count: usize) -> Unreadable {
    let file = SilentFile::mount();
    let start = |_| hold("memory-lock", &file.path);
    let processes: Vec<Holder> = (0..count).map(start).collect();
    for process in &processes {
        let tasks = format!("/proc/{}/task", process.pid);
        // The thread that wants the lock alone sleeps without being interruptible.
        wait_for("a thread to block", || {
            fs::read_dir(&tasks).unwrap().flatten().find(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.contains(") D ")
            })
        });
        // Whoever reads it waits; one that came before that thread did not.
        wait_for("a reader to block", || reader_blocks(process.pid).then_some(()));
    }
    Unreadable { _file: file, _processes: processes }
}

/// Whether who reads a process's `cmdline` waits.
fn reader_blocks(pid: u32) -> bool {
    let mut reader = Command::new("cat");
    let reader = reader.arg(format!("/proc/{pid}/cmdline")).stdout(Stdio::null()).spawn();
    let mut reader = reader.unwrap();
    let blocks = wait_for("a reader to block or to end", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", reader.id())).unwrap();
        (stat.contains(") D ") || stat.contains(") Z ")).then(|| stat.contains(") D "))
    });
    reader.kill().unwrap();
    reader.wait().unwrap();
    blocks
}

/// The fixture: one thread reads the mapped file through /proc/self/mem, which keeps the lock
/// shared while it waits, and another one maps something, which wants it alone; everybody else
/// queues behind that.
///
/// Nothing blocks before somebody else waits for the barrier that this returns: from then on no
/// thread can be started or memory be mapped.
pub(super) fn block_on(path: &Path) -> Arc<Barrier> {
    let file = File::open(path).unwrap();
    // The kernel learns the size here; beyond the end nothing would be read.
    assert_eq!(file.metadata().unwrap().len(), 4096);
    let (access, private) = (libc::PROT_READ, libc::MAP_PRIVATE);
    // SAFETY: a new mapping at an address of the kernel's choice, never dereferenced here.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, private, file.as_raw_fd(), 0) };
    assert!(address != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    let memory = File::open("/proc/self/mem").unwrap();
    let address = address as u64;
    // SAFETY: the name is NUL-terminated.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"python3".as_ptr()) };
    let go = Arc::new(Barrier::new(2));
    let gone = Arc::clone(&go);
    thread::spawn(move || {
        gone.wait();
        memory.read_at(&mut [0], address)
    });
    thread::spawn(|| {
        // Whichever thread comes first: this one tries again.
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        loop {
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, private, -1, 0) };
            thread::sleep(Duration::from_millis(10));
        }
    });
    go
}
