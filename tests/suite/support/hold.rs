//! Processes that refer to a file in one particular way, as fixtures: this binary, run as
//! `__hold KIND PATH`, takes hold, prints `ready PID` and stays until its stdin ends.

use std::any::Any;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio, exit};
use std::thread;

use nix::fcntl::{Flock, FlockArg};

use super::shm::sem_open_existing;
use super::{Finish, check, fuse, sandbox, scratch, wait_for};

/// What keeps the hold: dropped when the fixture ends.
type Kept = Box<dyn Any>;

/// Takes hold of a file.
type Take = fn(&Path) -> Kept;

/// Every way to take hold that needs one process with one thread.
const KINDS: &[(&str, Take)] = &[
    ("fd-read", |path| Box::new(File::open(path).unwrap())),
    ("fd-write", |path| Box::new(read_write(path))),
    ("fd-o-path", |path| {
        Box::new(OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap())
    }),
    ("map-shared", |path| map(path, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)),
    ("map-private", |path| map(path, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)),
    ("map-no-access", |path| map(path, libc::PROT_NONE, libc::MAP_SHARED)),
    ("in-flight", |path| Box::new(in_flight(read_write(path)))),
    ("working-directory", |path| {
        env::set_current_dir(path).unwrap();
        Box::new(())
    }),
    ("bind-mount", bind_mount),
    ("loop-device", loop_device),
    ("memory-lock", |path| {
        fuse::block_on(path);
        Box::new(())
    }),
    ("directory-lock", |path| {
        let directory = File::open(path).unwrap();
        Box::new(Flock::lock(directory, FlockArg::LockExclusiveNonblock).unwrap())
    }),
];

/// The main function of a fixture.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [kind, path] = arguments else { panic!("usage: __hold KIND PATH") };
    let path = Path::new(path);
    // SAFETY: this changes a flag of this process only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    match kind.as_str() {
        "semaphore" => sem_open_existing(path.to_str().unwrap()).wait(),
        "thread-table" => thread_table(path),
        "leader-gone" => leader_gone(path),
        "other-pid-namespace" => other_pid_namespace(path),
        kind => {
            let (_, take) = KINDS.iter().find(|(name, _)| *name == kind).unwrap();
            let kept = take(path);
            ready(std::process::id());
            wait_for_the_end();
            drop(kept);
        }
    }
    ExitCode::SUCCESS
}

fn ready(pid: u32) {
    println!("ready {pid}");
    std::io::stdout().flush().unwrap();
}

fn wait_for_the_end() {
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// A mapping of the first page whose descriptor is closed.
fn map(path: &Path, protection: i32, flags: i32) -> Kept {
    let file = read_write(path);
    // SAFETY: a new mapping at an address of the kernel's choice, used by nobody; it lasts until
    // the process ends.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, file.as_raw_fd(), 0) };
    assert!(address != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    Box::new(())
}

/// The file's only descriptor is in a message that nobody has received.
fn in_flight(file: File) -> (UnixStream, UnixStream) {
    let (sender, receiver) = UnixStream::pair().unwrap();
    let mut byte = 0_u8;
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0_u64; 4];
    // SAFETY: the message and what it points to live until the call returns; the control buffer
    // is aligned and large enough for one descriptor.
    unsafe {
        let mut message = std::mem::zeroed::<libc::msghdr>();
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let rights = libc::CMSG_FIRSTHDR(&message);
        (*rights).cmsg_level = libc::SOL_SOCKET;
        (*rights).cmsg_type = libc::SCM_RIGHTS;
        (*rights).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(rights).cast::<i32>().write_unaligned(file.as_raw_fd());
        assert_eq!(libc::sendmsg(sender.as_raw_fd(), &message, 0), 1);
    }
    (sender, receiver)
}

/// The file is also mounted elsewhere, in a mount namespace of this process only.
fn bind_mount(path: &Path) -> Kept {
    // SAFETY: this process has a single thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).unwrap();
    let target = scratch().join("bound");
    fs::write(&target, "").unwrap();
    let (path, target) = (path.to_str().unwrap(), target.to_str().unwrap());
    sandbox::mount(path, target, "", libc::MS_BIND, "").unwrap();
    Box::new(())
}

/// The argument of `LOOP_CONFIGURE` (linux/loop.h): file, block size, `struct loop_info64`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    before_flags: [u8; 52],
    flags: u32,
    after_flags: [u8; 176],
    reserved: [u64; 8],
}
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// A loop device on the file, which the kernel frees when this process ends.
fn loop_device(path: &Path) -> Kept {
    let control = read_write(Path::new("/dev/loop-control"));
    let file = read_write(path);
    // Somebody else may take the free number first: ask again then.
    let device = wait_for("a loop device", || {
        // SAFETY: the call takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }).unwrap();
        let device = read_write(Path::new(&format!("/dev/loop{number}")));
        let config = LoopConfig {
            fd: file.as_raw_fd().try_into().unwrap(),
            block_size: 0,
            before_flags: [0; 52],
            flags: LO_FLAGS_AUTOCLEAR,
            after_flags: [0; 176],
            reserved: [0; 8],
        };
        // SAFETY: the structure has the kernel's layout and outlives the call.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) };
        (result == 0).then_some(device)
    });
    Box::new(device)
}

/// Only a thread's private descriptor table has the file.
fn thread_table(path: &Path) {
    let path = path.to_owned();
    thread::spawn(move || {
        // SAFETY: gives this thread a table of its own.
        check(unsafe { libc::unshare(libc::CLONE_FILES) }).unwrap();
        let _file = read_write(&path);
        ready(std::process::id());
        wait_for_the_end();
    })
    .join()
    .unwrap();
}

/// The thread that gave the process its number has exited; another one maps the file.
fn leader_gone(path: &Path) {
    let path = path.to_owned();
    thread::spawn(move || {
        let kept = map(&path, libc::PROT_READ, libc::MAP_SHARED);
        let state = format!("/proc/{}/stat", std::process::id());
        wait_for("the leader's end", || {
            fs::read_to_string(&state).unwrap().contains(") Z ").then_some(())
        });
        ready(std::process::id());
        wait_for_the_end();
        drop(kept);
        exit(0);
    });
    // SAFETY: ends this thread only, and nothing on its stack is used by the other one.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// A process in a PID namespace of its own maps the file.
fn other_pid_namespace(path: &Path) {
    // SAFETY: this process has a single thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).unwrap();
    let (mut taken, takes) = std::io::pipe().unwrap();
    let child = sandbox::fork();
    if child == 0 {
        // SAFETY: this changes a flag of this process only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let kept = map(path, libc::PROT_READ, libc::MAP_SHARED);
        drop(takes);
        wait_for_the_end();
        drop(kept);
        exit(0);
    }
    drop(takes);
    taken.read_to_end(&mut Vec::new()).unwrap();
    ready(child.try_into().unwrap());
    let mut status = 0;
    // SAFETY: the status is one integer.
    check(unsafe { libc::waitpid(child, &mut status, 0) }).unwrap();
    assert_eq!(status, 0);
}

/// A running fixture; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Holder {
    child: Child,
    /// The process that holds the file.
    pub(crate) pid: u32,
}

/// Starts a fixture that holds `path` in the way called `kind`, and waits until it does.
pub(crate) fn hold(kind: &str, path: impl AsRef<Path>) -> Holder {
    start(Command::new("/proc/self/exe").args(["__hold", kind]).arg(path.as_ref()))
}

/// The same as another user (needs real root).
pub(crate) fn hold_as(uid: u32, kind: &str, path: impl AsRef<Path>) -> Holder {
    let mut command = Command::new("/proc/self/exe");
    start(command.args(["__hold", kind]).arg(path.as_ref()).as_user(uid))
}

/// Starts any program that prints `ready PID` and stays until its stdin ends.
pub(crate) fn start(command: &mut Command) -> Holder {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let pid = line.strip_prefix("ready ").and_then(|pid| pid.trim().parse().ok());
    Holder { pid: pid.unwrap_or_else(|| panic!("{command:?} said {line:?}")), child }
}

impl Holder {
    /// Stops the process (`SIGSTOP`) and waits until it has stopped.
    pub(crate) fn stop(&self) {
        let pid = i32::try_from(self.pid).unwrap();
        // SAFETY: the process is a child that has not been waited for.
        check(unsafe { libc::kill(pid, libc::SIGSTOP) }).unwrap();
        let stat = format!("/proc/{pid}/stat");
        wait_for("the stop", || fs::read_to_string(&stat).unwrap().contains(") T ").then_some(()));
    }

    /// Whether the process is still there and no zombie.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended by itself; and a fixture in another PID namespace ends with its parent.
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}
