//! Where a fixture or a program runs: namespaces, a jail, fewer capabilities. A list of places is
//! written with colons between them, and entered from left to right.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, chroot};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, exit};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;

use super::{check, object, sandbox, scratch};

/// This process's pid where the case runs, if it is another one than its own; else 0.
static PID_OUTSIDE: AtomicU32 = AtomicU32::new(0);

/// This process's pid as the case sees it.
pub(super) fn pid_outside() -> u32 {
    match PID_OUTSIDE.load(Ordering::Relaxed) {
        0 => std::process::id(),
        pid => pid,
    }
}

/// `command`, not yet started, in these places.
pub(crate) fn inside(places: &str, command: &Command) -> Command {
    let mut inside = Command::new("/proc/self/exe");
    inside.args(["__in", places]).arg(command.get_program()).args(command.get_args());
    inside
}

/// The main function of what [`inside`] starts.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [places, program, arguments @ ..] = arguments else {
        panic!("usage: __in PLACES PROGRAM [ARGUMENT…]")
    };
    end_with_parent();
    enter(places, None);
    panic!("{program}: {}", Command::new(program).args(arguments).exec());
}

/// Asks the kernel to end this process with the one that started it.
pub(super) fn end_with_parent() {
    // SAFETY: this changes a flag of this process only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Enters `places`; `path` is what a fixture is going to hold.
pub(super) fn enter(places: &str, path: Option<&Path>) {
    for place in places.split(':') {
        match place.split_once('=').unwrap_or((place, "")) {
            ("", _) => {}
            ("own-mounts", _) => unshare(libc::CLONE_NEWNS),
            ("own-ipc", _) => unshare(libc::CLONE_NEWIPC),
            // The /proc is still that of the namespace outside.
            ("own-pids", _) => {
                unshare(libc::CLONE_NEWPID);
                go_on_in_a_child();
            }
            ("own-proc", options) => {
                unshare(libc::CLONE_NEWNS);
                sandbox::mount("proc", "/proc", "proc", 0, options).unwrap();
            }
            ("no-proc", _) => {
                unshare(libc::CLONE_NEWNS);
                sandbox::mount("tmpfs", "/proc", "tmpfs", 0, "").unwrap();
            }
            ("boot-time", offset) => {
                unshare(CLONE_NEWTIME);
                let (seconds, nanoseconds) = offset.split_once('.').unwrap();
                let line = format!("boottime {seconds} {nanoseconds}");
                fs::write("/proc/self/timens_offsets", line).unwrap();
                go_on_in_a_child();
            }
            ("equal-path", _) => another_shm(path.unwrap()),
            // A /dev/shm of its own, as a container has one, with these objects.
            ("own-shm", names) => {
                unshare(libc::CLONE_NEWNS);
                sandbox::mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777").unwrap();
                for name in names.split('+').filter(|name| !name.is_empty()) {
                    object().make(name);
                }
            }
            // An IPC namespace of its own, in which the first System V objects have the id 0.
            ("filled-ipc", queue) => {
                unshare(libc::CLONE_NEWIPC);
                super::sysv::segment(0x4242, 8192, 0o600);
                super::sysv::semaphores(0x4242, 2, 0o600);
                let full = super::sysv::queue(0x4242, 0o600);
                super::sysv::send(full);
                let name = std::ffi::CString::new(format!("/{queue}")).unwrap();
                let (flags, no_attributes) = (libc::O_CREAT | libc::O_RDWR, 0_usize);
                // SAFETY: the name is NUL-terminated, and no attributes are given.
                let made = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, no_attributes) };
                // SAFETY: the descriptor is this process's own.
                check(unsafe { libc::mq_close(check(made).unwrap()) }).unwrap();
            }
            // Message queues of its own, these among them, mounted where they usually are.
            ("own-queues", names) => {
                unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC);
                sandbox::mount("mqueue", "/dev/mqueue", "mqueue", 0, "").unwrap();
                names.split('+').for_each(|name| drop(super::mqueue::make_small_queue(name, 2)));
            }
            // The mount, IPC and PID namespace of a process.
            ("join", pid) => join(pid),
            // As `own-shm`, but what lies there is of another type, or a link, or is elsewhere as well.
            ("odd-shm", what) => odd_shm(what),
            ("jail", _) => {
                let jail = scratch().join("jail");
                let shm = jail.join("dev/shm");
                fs::create_dir_all(&shm).unwrap();
                let target = shm.to_str().unwrap();
                sandbox::mount("/dev/shm", target, "", libc::MS_BIND, "").unwrap();
                chroot(jail).unwrap();
                std::env::set_current_dir("/").unwrap();
            }
            ("own-users", _) => become_root_of_a_namespace(),
            ("new-users", _) => unshare(libc::CLONE_NEWUSER),
            ("usual-capabilities", _) => drop_capabilities(|number| !USUAL.contains(&number)),
            // Neither `CAP_LEASE` nor `CAP_SETUID`, by which the owner's name could be borrowed.
            ("no-leases", _) => drop_capabilities(|number| [7, 28].contains(&number)),
            ("user", uid) => become_user(uid.parse().unwrap()),
            ("subordinate-uid", uid) => become_root_over(uid.parse().unwrap()),
            ("thread-uid", uid) => have_a_thread_of(uid.parse().unwrap(), libc::SYS_setresuid),
            ("thread-fs-uid", uid) => have_a_thread_of(uid.parse().unwrap(), libc::SYS_setfsuid),
            ("real-uid", uid) => set_uids([uid.parse().unwrap(), 0, 0]),
            ("effective-uid", uid) => set_uids([0, uid.parse().unwrap(), 0]),
            ("saved-uid", uid) => set_uids([0, 0, uid.parse().unwrap()]),
            // SAFETY: this changes an attribute of this process, which has a single thread.
            ("fs-uid", uid) => drop(unsafe { libc::setfsuid(uid.parse().unwrap()) }),
            _ => panic!("{place} is no place"),
        }
    }
}

/// linux/sched.h; the value also means something else, so the libc crate leaves it out.
const CLONE_NEWTIME: i32 = 0x80;

fn unshare(flags: i32) {
    // SAFETY: this process has a single thread.
    check(unsafe { libc::unshare(flags) }).unwrap();
}

fn join(pid: &str) {
    let namespace = |name: &str| fs::File::open(format!("/proc/{pid}/ns/{name}")).unwrap();
    // Once the mounts are others, so is /proc.
    for file in ["pid", "ipc", "mnt"].map(namespace) {
        // SAFETY: this process has a single thread.
        check(unsafe { libc::setns(file.as_raw_fd(), 0) }).unwrap();
    }
    go_on_in_a_child();
}

/// New namespaces for PIDs and time are entered by children only.
pub(super) fn go_on_in_a_child() {
    let (mut told, mut tells) = std::io::pipe().unwrap();
    let child = sandbox::fork();
    if child == 0 {
        end_with_parent();
        drop(tells);
        let mut pid = [0; 4];
        told.read_exact(&mut pid).unwrap();
        PID_OUTSIDE.store(u32::from_ne_bytes(pid), Ordering::Relaxed);
        return;
    }
    tells.write_all(&child.to_ne_bytes()).unwrap();
    let mut status = 0;
    // SAFETY: the status is one integer.
    check(unsafe { libc::waitpid(child, &mut status, 0) }).unwrap();
    exit(sandbox::status_of(status).into());
}

/// Another tmpfs on /dev/shm, in a mount namespace of this process's own, with an object of the
/// same name, content and inode number.
fn another_shm(path: &Path) {
    unshare(libc::CLONE_NEWNS);
    let name = path.strip_prefix("/dev/shm").unwrap();
    let before = fs::metadata(path).unwrap();
    sandbox::mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777").unwrap();
    if before.is_dir() {
        fs::create_dir(path).unwrap();
    } else {
        object().make(name);
    }
    assert_eq!(fs::metadata(path).unwrap().ino(), before.ino(), "only the device differs");
}

/// A directory in the case's /dev/shm, for `odd-shm=part`.
pub(crate) const SOMEBODYS: &str = "/dev/shm/somebodys";

/// A /dev/shm as somebody may make it who wants whoever looks to hang, or to take other files for
/// objects.
fn odd_shm(what: &str) {
    unshare(libc::CLONE_NEWNS);
    let tmpfs = |at: &str| sandbox::mount("tmpfs", at, "tmpfs", 0, "mode=1777").unwrap();
    let silent = |at: &str| std::mem::forget(super::fuse::never_answers(Path::new(at)));
    match what {
        "ramfs" => sandbox::mount("ramfs", "/dev/shm", "ramfs", 0, "").unwrap(),
        "fuse" => silent("/dev/shm"),
        // Only what is below it is asked for.
        "fuse-above" => silent("/dev"),
        "link" => {
            leave_shm();
            tmpfs("/dev");
            let target = scratch().join("target");
            fs::create_dir_all(&target).unwrap();
            tmpfs(target.to_str().unwrap());
            std::os::unix::fs::symlink(target, "/dev/shm").unwrap();
        }
        "elsewhere" => {
            tmpfs("/dev/shm");
            object().make("psm_0a1b2c3d");
            let target = scratch().join("private");
            fs::create_dir_all(&target).unwrap();
            let target = target.to_str().unwrap();
            sandbox::mount("/dev/shm", target, "", libc::MS_BIND, "").unwrap();
        }
        "part" => sandbox::mount(SOMEBODYS, "/dev/shm", "", libc::MS_BIND, "").unwrap(),
        // The same; but in the list of mounts another one comes last.
        "part-moved" => {
            let beside = scratch().join("beside");
            fs::create_dir_all(&beside).unwrap();
            let beside = beside.to_str().unwrap();
            sandbox::mount(SOMEBODYS, beside, "", libc::MS_BIND, "").unwrap();
            sandbox::mount("/dev/shm", "/dev/shm", "", libc::MS_BIND, "").unwrap();
            sandbox::mount(beside, "/dev/shm", "", libc::MS_MOVE, "").unwrap();
        }
        "fifo" => {
            tmpfs("/dev/shm");
            nix::unistd::mkfifo("/dev/shm/psm_0a1b2c3d", Mode::from_bits_truncate(0o600)).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", "/dev/shm/psm_11111111").unwrap();
        }
        _ => panic!("{what} is no odd /dev/shm"),
    }
}

/// Takes the case's /dev/shm out of this process's mount namespace.
pub(super) fn leave_shm() {
    umount2("/dev/shm", MntFlags::MNT_DETACH).unwrap();
}

/// What container engines leave to root in a container, by linux/capability.h: CHOWN,
/// DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
/// SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const USUAL: &[libc::c_ulong] = &[0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

/// The next program does not have those capabilities.
fn drop_capabilities(test: impl Fn(libc::c_ulong) -> bool) {
    for capability in (0..64).filter(|number| test(*number)) {
        // SAFETY: this changes an attribute of this process only; there are fewer than 64.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == -1 {
            assert!(capability > 31, "{}", std::io::Error::last_os_error());
        }
    }
}

fn become_user(uid: u32) {
    nix::unistd::setgroups(&[]).unwrap();
    nix::unistd::setgid(uid.into()).unwrap();
    nix::unistd::setuid(uid.into()).unwrap();
    // SAFETY: this process has a single thread.
    unsafe { std::env::set_var("XDG_STATE_HOME", sandbox::state_of(uid)) };
    // With other uids the request is forgotten, and the files in /proc are root's.
    end_with_parent();
    nix::sys::prctl::set_dumpable(true).unwrap();
}

/// A user namespace in which this user is root.
fn become_root_of_a_namespace() {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(libc::CLONE_NEWUSER);
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
}

/// Root of a user namespace that somebody made, as engines without root do, in which user 1 is
/// `subordinate`.
fn become_root_over(subordinate: u32) {
    let process = std::process::id();
    let (mut told, tells) = std::io::pipe().unwrap();
    // Who writes the maps is root outside: newuidmap(1) is.
    let helper = sandbox::fork();
    if helper == 0 {
        drop(tells);
        told.read_to_end(&mut Vec::new()).unwrap();
        for file in ["uid_map", "gid_map"] {
            let map = format!("0 {} 1\n1 {subordinate} 1", sandbox::somebody());
            fs::write(format!("/proc/{process}/{file}"), map).unwrap();
        }
        exit(0);
    }
    become_user(sandbox::somebody());
    unshare(libc::CLONE_NEWUSER);
    drop(tells);
    let mut status = 0;
    // SAFETY: the status is one integer.
    check(unsafe { libc::waitpid(helper, &mut status, 0) }).unwrap();
    assert_eq!(status, 0, "the maps were not written");
    assert!(nix::unistd::geteuid().is_root());
}

/// One thread, and no other, takes a user's uid by the system call `number`: the C library would
/// ask all of them to.
fn have_a_thread_of(uid: u32, number: libc::c_long) {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // SAFETY: these calls change attributes of this thread only; setfsuid ignores what follows.
        unsafe { libc::syscall(number, uid, uid, uid) };
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        done.send(status.contains(&format!("\t{uid}\n"))).unwrap();
        loop {
            std::thread::park();
        }
    });
    assert!(wait.recv().unwrap(), "the thread has other uids");
}

/// Real, effective and saved uid.
fn set_uids([real, effective, saved]: [u32; 3]) {
    nix::unistd::setresuid(real.into(), effective.into(), saved.into()).unwrap();
}
