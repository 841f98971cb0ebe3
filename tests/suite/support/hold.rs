//! Processes that refer to a file in one particular way, as fixtures: this binary, run as
//! `__hold KIND PATH`, takes hold, prints `ready PID` and stays until its stdin ends. Places in
//! front of the kind (`own-mounts:fd-read`) say where it does so.

use std::any::Any;
use std::env;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio, exit};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;

use super::shm::sem_open_existing;
use super::{Finish, check, fuse, mqueue, place, sandbox, scratch, sysv, wait_for};

/// What keeps the hold: dropped when the fixture ends.
type Kept = Box<dyn Any>;

/// Takes hold of a file.
type Take = fn(&Path) -> Kept;

/// Every way to take hold that needs one process with one thread.
const KINDS: &[(&str, Take)] = &[
    ("nothing", |_| Box::new(())),
    // The path of these is the id of a System V object.
    ("sysv-attached", |id| attached(number(id))),
    ("sysv-attached-by-a-child-too", |id| {
        let kept = attached(number(id));
        if sandbox::fork() == 0 {
            place::end_with_parent();
            wait_for_the_end();
            exit(0);
        }
        kept
    }),
    ("sysv-attached-and-detached", |id| {
        sysv::detach(sysv::attach(number(id)).unwrap());
        Box::new(())
    }),
    ("sysv-made-and-attached", |id| {
        assert_eq!(sysv::segment(0, 4096, 0o600), number(id));
        attached(number(id))
    }),
    ("sysv-waiting", |id| {
        let id = number(id);
        Box::new(thread::spawn(move || sysv::operate(id, 0, -1)))
    }),
    ("sysv-receiving", |id| {
        let id = number(id);
        Box::new(thread::spawn(move || sysv::receive(id)))
    }),
    ("sysv-sending", |id| {
        sysv::send(number(id));
        Box::new(())
    }),
    // The path is a uid: a segment of its is made, with the key 0x66, as a daemon does that is root again.
    ("effective-uid-for-a-moment", |uid| {
        let uid = number(uid).unsigned_abs().into();
        nix::unistd::setegid(nix::unistd::Gid::from_raw(nix::unistd::Uid::as_raw(uid))).unwrap();
        nix::unistd::seteuid(uid).unwrap();
        sysv::segment(0x66, 4096, 0o600);
        nix::unistd::seteuid(0.into()).unwrap();
        nix::unistd::setegid(0.into()).unwrap();
        Box::new(())
    }),
    // Memfds are on the device of System V memory, and number their inodes by themselves.
    ("memfd-under-the-number", |id| {
        let wanted = u64::from(number(id).unsigned_abs());
        let files = (0..10_000).map(|_| {
            nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::empty()).unwrap()
        });
        Box::new(files.take(1 + usize::try_from(wanted).unwrap()).collect::<Vec<_>>())
    }),
    // The path is the name that the kernel shows of it.
    ("memfd", |name| {
        let flags = nix::sys::memfd::MFdFlags::empty();
        let file = nix::sys::memfd::memfd_create(&*c_path(name), flags).unwrap();
        nix::unistd::ftruncate(&file, 8192).unwrap();
        Box::new(file)
    }),
    ("fd-and-map", |path| {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Box::new((read_write(path), map(path, protection, libc::MAP_SHARED)))
    }),
    ("fd-read", |path| Box::new(File::open(path).unwrap())),
    ("fd-write", |path| Box::new(read_write(path))),
    ("fd-o-path", |path| {
        Box::new(OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap())
    }),
    ("fd-o-path-among-many", |path| {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let many = (0..most.min(10_000) - 50)
            .map(|_| File::open("/dev/null").unwrap())
            .collect::<Vec<_>>();
        let last = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap();
        Box::new((many, last))
    }),
    ("fd-without-access", |path| Box::new(without_access(path))),
    ("map-shared", |path| map(path, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)),
    ("map-shared-and-deleted", |path| {
        let kept = map(path, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        fs::remove_file(path).unwrap();
        kept
    }),
    ("map-private", |path| map(path, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)),
    ("map-no-access", |path| map(path, libc::PROT_NONE, libc::MAP_SHARED)),
    ("in-flight", |path| Box::new(in_flight(read_write(path)))),
    ("working-directory", |path| {
        env::set_current_dir(path).unwrap();
        Box::new(())
    }),
    ("root-directory", |path| {
        std::os::unix::fs::chroot(path).unwrap();
        env::set_current_dir("/").unwrap();
        Box::new(())
    }),
    ("covered-working-directory", |path| {
        env::set_current_dir(path).unwrap();
        sandbox::mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777").unwrap();
        Box::new(())
    }),
    ("message-queue", |path| Box::new(queue(path))),
    ("message-queue-in-flight", |path| Box::new(in_flight(queue(path).file()))),
    ("told-of-messages", |path| {
        let queue = queue(path);
        queue.notify(false);
        Box::new(queue)
    }),
    ("told-of-messages-by-signal", |path| {
        let queue = queue(path);
        queue.notify(true);
        Box::new(queue)
    }),
    ("bind-mount", bind_mount),
    ("open-tree", |path| Box::new(open_tree(path))),
    // The mount goes on as long as the descriptor does.
    ("fd-in-open-tree", |path| {
        let shm = open_tree(Path::new("/dev/shm"));
        let below = path.strip_prefix("/dev/shm").unwrap();
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        Box::new(nix::fcntl::openat(&shm, below, flags, Mode::empty()).unwrap())
    }),
    // The path of the descriptor, `/foo`, says nothing of what it is of.
    ("fd-o-path-by-another-name", |path| {
        // SAFETY: this process has a single thread.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).unwrap();
        let directory = scratch().join("tree-with-another-name");
        fs::create_dir_all(&directory).unwrap();
        let place = directory.join("foo");
        fs::write(&place, "").unwrap();
        let (source, target) = (path.to_str().unwrap(), place.to_str().unwrap());
        sandbox::mount(source, target, "", libc::MS_BIND, "").unwrap();
        let tree = open_tree_with(&directory, libc::AT_RECURSIVE.unsigned_abs());
        nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH).unwrap();
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        Box::new((nix::fcntl::openat(&tree, "foo", flags, Mode::empty()).unwrap(), tree))
    }),
    ("idmapped-mount", |path| {
        let target = scratch().join("idmapped-in-a-fixture");
        idmapped_mount(path, &target).unwrap();
        Box::new(())
    }),
    ("mount-point", |path| {
        sandbox::mount("tmpfs", path.to_str().unwrap(), "tmpfs", 0, "").unwrap();
        Box::new(())
    }),
    ("overlay-lower", |path| overlay(path.to_str().unwrap(), None)),
    ("overlay-lower-relative", |path| {
        env::set_current_dir("/dev/shm").unwrap();
        overlay(path.file_name().unwrap().to_str().unwrap(), None)
    }),
    ("overlay-upper", |path| {
        let lower = scratch().join("lower");
        fs::create_dir_all(&lower).unwrap();
        overlay(lower.to_str().unwrap(), Some(path))
    }),
    ("overlay-alone", |path| {
        let overlay = overlay(path.to_str().unwrap(), None);
        place::leave_shm();
        overlay
    }),
    ("loop-device", loop_device),
    ("server-of-one", |path| {
        let server = UnixListener::bind(path).unwrap();
        // Whoever waits for this process to be ready connects later.
        thread::spawn(move || {
            let client = server.accept().unwrap();
            thread::sleep(Duration::MAX);
            drop((server, client));
        });
        Box::new(())
    }),
    ("file-lock", |path| {
        Box::new(Flock::lock(read_write(path), FlockArg::LockExclusiveNonblock).unwrap())
    }),
    ("directory-lock", |path| {
        let directory = File::open(path).unwrap();
        Box::new(Flock::lock(directory, FlockArg::LockExclusiveNonblock).unwrap())
    }),
];

/// The main function of a fixture.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [kind, path] = arguments else { panic!("usage: __hold [PLACE:]KIND PATH") };
    let path = Path::new(path);
    place::end_with_parent();
    let kind = match kind.rsplit_once(':') {
        Some((places, kind)) => {
            place::enter(places, Some(path));
            kind
        }
        None => kind,
    };
    match kind {
        "semaphore" => sem_open_existing(path.to_str().unwrap()).wait(),
        "thread-table" => thread_alone(path, false),
        "thread-working-directory" => thread_alone(path, true),
        "thread-mount" => thread_with_a_mount(path),
        "memory-lock" => {
            let go = fuse::block_on(path);
            ready();
            go.wait();
            wait_for_the_end();
        }
        "leader-gone" => leader_gone(path),
        "creator" => creator(path, false, || {}),
        "creator-without-mount" => creator(path, false, place::leave_shm),
        "descendant" => creator(path, true, || {}),
        "mount-beside-a-jail" => mount_beside_a_prisoner(path, || {
            let jail = scratch().join("empty");
            fs::create_dir_all(&jail).unwrap();
            std::os::unix::fs::chroot(jail).unwrap();
        }),
        "mount-beside-a-lost-root" => mount_beside_a_prisoner(path, || {
            let lost = scratch().join("lost");
            fs::create_dir_all(&lost).unwrap();
            sandbox::mount("tmpfs", lost.to_str().unwrap(), "tmpfs", 0, "").unwrap();
            env::set_current_dir(&lost).unwrap();
            nix::mount::umount2(&lost, nix::mount::MntFlags::MNT_DETACH).unwrap();
            std::os::unix::fs::chroot(".").unwrap();
        }),
        kind => {
            let (_, take) = KINDS.iter().find(|(name, _)| *name == kind).unwrap();
            let kept = take(path);
            ready();
            wait_for_the_end();
            drop(kept);
        }
    }
    ExitCode::SUCCESS
}

fn ready() {
    println!("ready {}", place::pid_outside());
    io::stdout().flush().unwrap();
}

pub(super) fn wait_for_the_end() {
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// As mq_open(3) opens it, whatever mount `path` says.
fn queue(path: &Path) -> mqueue::Queue {
    mqueue::open_queue(path.file_name().unwrap()).unwrap()
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// The number that stands in the place of a path.
fn number(path: &Path) -> i32 {
    path.to_str().unwrap().parse().unwrap()
}

fn attached(id: i32) -> Kept {
    sysv::attach(id).unwrap();
    Box::new(())
}

/// A mapping of the first page whose descriptor is closed.
fn map(path: &Path, protection: i32, flags: i32) -> Kept {
    let file = read_write(path);
    // SAFETY: a new mapping at an address of the kernel's choice, used by nobody; it lasts until
    // the process ends.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, file.as_raw_fd(), 0) };
    assert!(address != libc::MAP_FAILED, "{}", io::Error::last_os_error());
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

/// A descriptor of access mode 3: neither reading nor writing, but for ioctls.
fn without_access(path: &Path) -> OwnedFd {
    let path = c_path(path);
    // SAFETY: the path is NUL-terminated and outlives the call; the descriptor is new.
    unsafe { OwnedFd::from_raw_fd(check(libc::open(path.as_ptr(), libc::O_ACCMODE)).unwrap()) }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A mount of the file that is attached nowhere, behind a descriptor.
fn open_tree(path: &Path) -> OwnedFd {
    open_tree_with(path, 0)
}

fn open_tree_with(path: &Path, more: u32) -> OwnedFd {
    let path = c_path(path);
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | more;
    // SAFETY: the path is NUL-terminated and outlives the call; the descriptor is new.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        OwnedFd::from_raw_fd(check(fd.try_into().unwrap()).unwrap())
    }
}

/// linux/mount.h; the libc crate does not have these.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// Mounts the directory `path` on `target` too, where its files have other owners.
pub(crate) fn idmapped_mount(path: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let users = another_user_namespace()?;
    let tree = open_tree(path);
    let attributes = MountAttr {
        set: MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        user_namespace: users.as_raw_fd().try_into().unwrap(),
    };
    let target = c_path(target);
    // SAFETY: the strings are NUL-terminated, and they and the structure, which has the kernel's
    // layout, outlive the calls.
    unsafe {
        let (tree, empty) = (tree.as_raw_fd(), c"".as_ptr());
        let size = size_of::<MountAttr>();
        let set = libc::syscall(
            libc::SYS_mount_setattr,
            tree,
            empty,
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        );
        check(set.try_into().unwrap())?;
        let moved = libc::syscall(
            libc::SYS_move_mount,
            tree,
            empty,
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        );
        check(moved.try_into().unwrap()).map(drop)
    }
}

/// A user namespace in which nobody is who they are here; for root of one that maps a single uid,
/// in which they are.
fn another_user_namespace() -> io::Result<File> {
    let ((mut said, says), (mut told, tells)) = (io::pipe()?, io::pipe()?);
    let child = sandbox::fork();
    if child == 0 {
        place::end_with_parent();
        drop(tells);
        place::enter("new-users", None);
        drop(says);
        told.read_to_end(&mut Vec::new()).unwrap();
        exit(0);
    }
    drop(says);
    said.read_to_end(&mut Vec::new())?;
    let first = if sandbox::is_real_root() { sandbox::somebody() } else { 0 };
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{child}/{file}"), format!("0 {first} 1"))?;
    }
    let users = File::open(format!("/proc/{child}/ns/user"))?;
    drop(tells);
    // SAFETY: waiting without a status touches no memory.
    check(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) })?;
    Ok(users)
}

/// An overlay with `lower` as a lower layer, or with the upper layer in the directory `inside`.
fn overlay(lower: &str, inside: Option<&Path>) -> Kept {
    let own = scratch().join(format!("overlay-{}", std::process::id()));
    let inside: PathBuf = inside.map_or_else(|| own.join("layers"), Path::to_owned);
    let (upper, work, merged) = (inside.join("upper"), inside.join("work"), own.join("merged"));
    for directory in [&upper, &work, &merged] {
        fs::create_dir_all(directory).unwrap();
    }
    let (upper, work) = (upper.to_str().unwrap(), work.to_str().unwrap());
    let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let merged = merged.to_str().unwrap();
    let mount = |options: &str| sandbox::mount("overlay", merged, "overlay", 0, options);
    // In a user namespace its notes go into attributes of users.
    mount(&layers).or_else(|_| mount(&format!("{layers},userxattr"))).unwrap();
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

/// Only a thread's private descriptor table has the file; or it alone works in the directory.
fn thread_alone(path: &Path, works_in: bool) {
    let path = path.to_owned();
    thread::spawn(move || {
        let own = if works_in { libc::CLONE_FS } else { libc::CLONE_FILES };
        // SAFETY: gives this thread a table, or a working directory, of its own.
        check(unsafe { libc::unshare(own) }).unwrap();
        let _file = if works_in {
            env::set_current_dir(&path).unwrap();
            None
        } else if path.is_dir() {
            Some(File::open(&path).unwrap())
        } else {
            Some(read_write(&path))
        };
        ready();
        wait_for_the_end();
    })
    .join()
    .unwrap();
}

/// Only a thread has the directory mounted, in a mount namespace of its own.
fn thread_with_a_mount(path: &Path) {
    let path = path.to_owned();
    thread::spawn(move || {
        // SAFETY: gives this thread mounts and directories of its own.
        check(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) }).unwrap();
        let target = scratch().join("thread-mount");
        fs::create_dir_all(&target).unwrap();
        let (path, target) = (path.to_str().unwrap(), target.to_str().unwrap());
        sandbox::mount(path, target, "", libc::MS_BIND, "").unwrap();
        ready();
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
        ready();
        wait_for_the_end();
        drop(kept);
        exit(0);
    });
    // SAFETY: ends this thread only, and nothing on its stack is used by the other one.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Makes the file, with this process's own pid in place of the `@` in its name, as the leader of a
/// session; or leaves it to a child that is younger than the file.
///
/// The pid is one that the PID namespace outside, if there is one, has used up.
fn creator(pattern: &Path, dies: bool, then: fn()) {
    const USED_UP: i32 = 400;
    loop {
        let (mut said, says) = io::pipe().unwrap();
        let child = sandbox::fork();
        if child == 0 {
            // SAFETY: the call reads the process's own pid.
            let pid = unsafe { libc::getpid() };
            if pid < USED_UP {
                exit(0);
            }
            place::end_with_parent();
            // SAFETY: the child of a fork leads no group yet.
            check(unsafe { libc::setsid() }).unwrap();
            let path = pattern.to_str().unwrap().replace('@', &pid.to_string());
            drop(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap());
            if dies && sandbox::fork() > 0 {
                exit(0);
            }
            drop(says);
            wait_for_the_end();
            exit(0);
        }
        drop(says);
        // Until the creator, or its child, has come so far; or at once, when there is none yet.
        said.read_to_end(&mut Vec::new()).unwrap();
        if child < USED_UP || dies {
            // SAFETY: waiting without a status touches no memory.
            check(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }).unwrap();
        }
        if child >= USED_UP {
            then();
            ready();
            wait_for_the_end();
            return;
        }
    }
}

/// A bind mount of the file, and a process that sees no mount at all, in one mount namespace.
fn mount_beside_a_prisoner(path: &Path, go_to_jail: fn()) {
    place::enter("own-mounts", None);
    let (mut said, says) = io::pipe().unwrap();
    let prisoner = sandbox::fork();
    if prisoner == 0 {
        place::end_with_parent();
        go_to_jail();
        drop(says);
        wait_for_the_end();
        exit(0);
    }
    drop(says);
    said.read_to_end(&mut Vec::new()).unwrap();
    let target = scratch().join("bound");
    fs::write(&target, "").unwrap();
    let (path, target) = (path.to_str().unwrap(), target.to_str().unwrap());
    sandbox::mount(path, target, "", libc::MS_BIND, "").unwrap();
    ready();
    wait_for_the_end();
    // SAFETY: waiting without a status touches no memory.
    check(unsafe { libc::waitpid(prisoner, std::ptr::null_mut(), 0) }).unwrap();
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
        // It may have ended by itself; and what holds the file may be a child, which ends with it.
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
        let held_by = PathBuf::from(format!("/proc/{}", self.pid));
        wait_for("the holder's end", || (!held_by.exists()).then_some(()));
    }
}
