//! `rtrack daemon --protocol loky` and `any`: counts, and paths that are removed.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::support::{
    Case, Finish, Need, case, check, mount, names, path, rtrack, scratch, sem_open, shm_open,
    somebody, validate, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("counts", counts),
        case("the_last_user", the_last_user),
        case("folders_last", folders_last),
        case("both_dialects_at_once", both_dialects_at_once),
        case("links_are_not_followed", links_are_not_followed),
        case("mounts_are_not_entered", mounts_are_not_entered),
        case("deep_trees", deep_trees),
        case("what_is_no_folder", what_is_no_folder),
        case("what_cannot_go_does_not_keep_the_rest", what_cannot_go_does_not_keep_the_rest)
            .needs(&[Need::RealRoot]),
        case("directories_swapped_for_links", directories_swapped_for_links),
        case("verbose", verbose),
        case("without_warnings", without_warnings),
        case("missing_files", missing_files),
        case("records_each_removal", records_each_removal),
    ]
}

fn daemon(arguments: &[&str]) -> Daemon {
    Daemon::start_with(|command| {
        command.args(arguments);
    })
}

fn loky() -> Daemon {
    daemon(&["--protocol", "loky"])
}

/// What was said, without where from; the lines about what was left without their beginning.
fn lines(said: &str) -> Vec<String> {
    let line = |line: &str| {
        let text = line.split_once(": UserWarning: resource_tracker: ").map_or(line, |(_, t)| t);
        text.replace("There appear to be ", "").replace(" to clean up at shutdown", "")
    };
    said.lines().map(line).collect()
}

/// Tells a daemon something, and ends it; its status and the lines that it said.
fn told(mut daemon: Daemon, text: &str) -> (i32, Vec<String>) {
    daemon.tell(text);
    let (status, said) = daemon.end();
    (status.code().unwrap(), lines(&said))
}

fn exists(path: impl AsRef<Path>) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn counts() {
    fs::write("f", "").unwrap();
    fs::write("kept", "").unwrap();
    drop(sem_open("/s", 1));
    let mut daemon = loky();
    daemon.told("REGISTER:f:file\nREGISTER:f:file\nREGISTER:kept:file\nREGISTER:kept:file\n");
    daemon.told("REGISTER:/s:semlock\nMAYBE_UNLINK:f:file\nUNREGISTER:kept:file\n");
    // Read, and acted upon: the answer comes after.
    daemon.signal(libc::SIGUSR1);
    let stderr = daemon.child.stderr.take().unwrap();
    let mut said = std::io::BufRead::lines(std::io::BufReader::new(stderr)).map(Result::unwrap);
    assert!(said.next().unwrap().ends_with(": 2 registered"));
    assert_eq!(said.next().unwrap(), "file 'f' 1");
    assert_eq!(said.next().unwrap(), "semlock '/s' 1");
    assert!(exists("f") && exists("kept"));
    daemon.tell("MAYBE_UNLINK:f:file\nMAYBE_UNLINK:/s:semlock\n");
    wait_for("what nobody uses to go", || (!exists("f") && names().is_empty()).then_some(()));
    // Not registered any more, whichever way that was.
    daemon.tell("MAYBE_UNLINK:f:file\nUNREGISTER:f:file\nMAYBE_UNLINK:kept:file\n");
    assert_eq!(daemon.end().0.code(), Some(3));
    let said: Vec<String> = said.filter(|line| line.starts_with("KeyError")).collect();
    assert_eq!(said, ["KeyError: 'f'", "KeyError: 'f'", "KeyError: 'kept'"]);
    assert!(exists("kept"));
}

/// That what was given up cannot be removed is warned of once, and changes no status.
fn the_last_user() {
    let again = "REGISTER:no:file\nMAYBE_UNLINK:no:file\n".repeat(3);
    let text = format!(
        "{again}REGISTER:x:noop\nMAYBE_UNLINK:x:noop\nREGISTER:d:dummy\nMAYBE_UNLINK:d:dummy\n"
    );
    let missing = "no: FileNotFoundError(2, 'No such file or directory')";
    let noop = "x: RuntimeError('noop should never be registered or cleaned up')";
    assert_eq!(told(loky(), &text), (0, vec![missing.into(), noop.into()]));
    // Left at the end it is another warning, even if it reads the same; once for all types.
    let (status, said) = told(
        loky(),
        &format!("{again}REGISTER:no:file\nREGISTER:no:folder\nREGISTER:/no:semlock\n"),
    );
    let expected = [
        missing,
        "1 leaked file objects: {'no': 1}",
        missing,
        "1 leaked semlock objects: {'/no': 1}",
        "/no: FileNotFoundError(2, 'No such file or directory')",
        "1 leaked folder objects: {'no': 1}",
    ];
    assert_eq!((status, said), (2, expected.map(String::from).to_vec()));
    // Whoever goes away early is no reason to wait for the others' end.
    fs::create_dir_all("d/e/f").unwrap();
    fs::write("d/e/x", "").unwrap();
    let mut daemon = loky();
    daemon.tell("REGISTER:d:folder\nMAYBE_UNLINK:d:folder\n");
    wait_for("the folder to go", || (!exists("d")).then_some(()));
    assert_eq!(daemon.end().0.code(), Some(0));
}

fn folders_last() {
    fs::create_dir("d").unwrap();
    fs::create_dir("e").unwrap();
    for file in ["d/2", "d/1", "d/0"] {
        fs::write(file, "").unwrap();
    }
    drop(sem_open("/s", 1));
    let (status, said) = told(
        loky(),
        "REGISTER:e:folder\nREGISTER:d:folder\nREGISTER:d/2:file\nREGISTER:/s:semlock\n\
         REGISTER:d/1:file\nREGISTER:d:folder\n",
    );
    let expected = [
        "2 leaked file objects: {'d/2': 1, 'd/1': 1}",
        "1 leaked semlock objects: {'/s': 1}",
        "2 leaked folder objects: {'e': 1, 'd': 2}",
    ];
    assert_eq!((status, said), (1, expected.map(String::from).to_vec()));
    assert!(!exists("d") && !exists("e") && names().is_empty());
}

fn both_dialects_at_once() {
    drop(shm_open("/m", 64));
    drop(sem_open("/a", 1));
    drop(sem_open("/b", 1));
    fs::write("f", "").unwrap();
    fs::create_dir("d").unwrap();
    let text = "REGISTER:d:folder\nREGISTER:/b:semlock\nREGISTER:f:file\nREGISTER:/a:semaphore\n\
                REGISTER:/m:shared_memory\nREGISTER:/m:shared_memory\nREGISTER:f:file\n\
                REGISTER:/k:shared_memory\nREGISTER:/k:shared_memory\nUNREGISTER:/k:shared_memory\n\
                MAYBE_UNLINK:f:file\nPROBE::\nPROBE:0:noop\n";
    let any = || daemon(&["--protocol", "any"]);
    let (status, said) = told(any(), text);
    let expected = [
        "1 leaked semaphore objects: {'/a'}",
        "1 leaked shared_memory objects: {'/m'}",
        "1 leaked file objects: {'f': 1}",
        "1 leaked semlock objects: {'/b': 1}",
        "1 leaked folder objects: {'d': 1}",
    ];
    assert_eq!((status, said), (1, expected.map(String::from).to_vec()));
    assert!(names().is_empty() && !exists("f") && !exists("d"));
    // What neither tracker takes.
    for (line, error) in [
        ("MAYBE_UNLINK:/m:shared_memory", "RuntimeError: unrecognized command 'MAYBE_UNLINK'"),
        ("REGISTER:x:bogus", "ValueError: Cannot register x for automatic cleanup: unknown"),
    ] {
        let (status, said) = told(any(), line);
        assert_eq!(status, 3);
        assert!(said.last().unwrap().starts_with(error), "{said:?}");
    }
    // What only the other one takes.
    for (protocol, line) in [
        ("cpython", "REGISTER:f:file"),
        ("cpython", "MAYBE_UNLINK:f:dummy"),
        ("cpython", "PROBE::"),
        ("loky", "REGISTER:/m:shared_memory"),
    ] {
        assert_eq!(told(daemon(&["--protocol", protocol]), line).0, 3, "{protocol}: {line}");
    }
    rtrack(["daemon", "--fd", "5", "--protocol", "perl"]).finish().expect(64);
}

/// A directory that must survive, with a file in it.
fn outside() -> PathBuf {
    let outside = scratch().join("outside");
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("file"), "").unwrap();
    outside
}

fn is_whole(outside: &Path) -> bool {
    exists(outside.join("file")) && exists(outside.join("sub"))
}

fn links_are_not_followed() {
    let outside = outside();
    symlink(&outside, "link").unwrap();
    symlink("nowhere", "dangling").unwrap();
    fs::create_dir_all("d/sub").unwrap();
    symlink(&outside, "d/to-a-directory").unwrap();
    symlink(outside.join("file"), "d/sub/to-a-file").unwrap();
    symlink("nowhere", "d/sub/dangling").unwrap();
    fs::hard_link(outside.join("file"), "d/sub/hard").unwrap();
    let refused = "OSError('Cannot call rmtree on a symbolic link')";
    let (status, said) = told(
        loky(),
        "REGISTER:link:folder\nREGISTER:link/:folder\nREGISTER:dangling:folder\nREGISTER:d//:folder\n",
    );
    assert_eq!(status, 2, "{said:?}");
    let expected = ["link", "link/", "dangling"].map(|name| format!("{name}: {refused}"));
    assert_eq!(said[1..], expected);
    assert!(is_whole(&outside) && exists("link") && exists("dangling") && !exists("d"));
    assert_eq!(fs::metadata(outside.join("file")).unwrap().nlink(), 1);
    // A link that is registered as a file goes itself; one on the way is what was meant.
    let (status, said) =
        told(loky(), "REGISTER:link/sub:folder\nREGISTER:link/file:file\nREGISTER:dangling:file\n");
    assert_eq!(status, 1, "{said:?}");
    assert!(!exists(outside.join("sub")) && !exists(outside.join("file")) && exists(&outside));
    assert!(!exists("dangling"));
    assert_eq!(told(loky(), "REGISTER:link:file\n").0, 1);
    assert!(!exists("link") && exists(&outside));
}

fn mounts_are_not_entered() {
    let outside = outside();
    let bind = |from: &Path, to: &str| {
        fs::create_dir_all(to).unwrap();
        mount(from.to_str().unwrap(), to, "", libc::MS_BIND, "").unwrap();
    };
    // Of the same file system, so that only the mount tells it apart, and of another one.
    bind(&outside, "bound");
    fs::create_dir_all("d/a/b").unwrap();
    bind(&outside, "d/a/b/bound");
    fs::create_dir_all("d/z/tmpfs").unwrap();
    mount("tmpfs", "d/z/tmpfs", "tmpfs", 0, "").unwrap();
    fs::write("d/z/tmpfs/file", "").unwrap();
    for file in ["d/0", "d/a/0", "d/a/b/0", "d/a/b/z", "d/z/z", "d/zz"] {
        fs::write(file, "").unwrap();
    }
    let (status, said) = told(loky(), "REGISTER:bound:folder\nREGISTER:d:folder\n");
    assert_eq!(status, 2);
    assert_eq!(said[1], "bound: OSError('Cannot call rmtree on a mount: bound')");
    let either = ["d/a/b/bound", "d/z/tmpfs"]
        .map(|place| format!("d: OSError('Cannot call rmtree on a mount: {place}')"));
    assert!(either.contains(&said[2]) && said.len() == 3, "{said:?}");
    // Everything around them is gone.
    let mut left = Vec::new();
    let mut places = vec![PathBuf::from("d")];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(&place).unwrap() {
            let entry = entry.unwrap().path();
            left.push(entry.to_str().unwrap().to_owned());
            if entry.file_name().is_none_or(|name| name != "bound" && name != "tmpfs") {
                places.push(entry);
            }
        }
    }
    left.sort();
    assert_eq!(left, ["d/a", "d/a/b", "d/a/b/bound", "d/z", "d/z/tmpfs"]);
    assert!(is_whole(&outside) && exists("d/z/tmpfs/file"));
}

/// Makes directories in one another below `top`, with a file in each tenth, and two branches at the end.
fn make_deep(top: &Path, levels: usize) {
    fs::create_dir(top).unwrap();
    let mut dir = File::open(top).unwrap();
    let c = |text: &str| CString::new(text).unwrap();
    for level in 0..levels {
        let make = |name: &str| {
            // SAFETY: the path is NUL-terminated.
            check(unsafe { libc::mkdirat(dir.as_raw_fd(), c(name).as_ptr(), 0o700) }).unwrap();
        };
        make("a");
        if level % 10 == 0 {
            make("b");
        }
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the path is NUL-terminated.
        let below = unsafe { libc::openat(dir.as_raw_fd(), c("a").as_ptr(), flags) };
        // SAFETY: the descriptor has just been made.
        dir = unsafe { std::os::fd::FromRawFd::from_raw_fd(check(below).unwrap()) };
    }
}

fn deep_trees() {
    let few_descriptors = |command: &mut Command| {
        // SAFETY: the closure makes one system call, on memory of its own.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: 50, rlim_max: 50 };
                check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit)).map(drop)
            });
        }
        command.args(["--protocol", "loky", "--audit", "audit"]);
    };
    for levels in [3_000, 20_000] {
        make_deep(&path("deep"), levels);
        let daemon = Daemon::start_with(few_descriptors);
        let (status, said) = told(daemon, "REGISTER:/dev/shm/deep:folder\n");
        assert_eq!(status, 1, "{levels}: {said:?}");
        assert!(!exists(path("deep")), "{levels}");
        let audit = fs::read_to_string("audit").unwrap();
        let entries = format!("the {} entries", levels + levels / 10);
        assert!(audit.contains(&entries), "{entries}: {audit}");
    }
}

fn what_is_no_folder() {
    nix::unistd::mkfifo("fifo", nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write("file", "").unwrap();
    fs::create_dir_all("d/e").unwrap();
    let _socket = UnixListener::bind("d/socket").unwrap();
    nix::unistd::mkfifo("d/fifo", nix::sys::stat::Mode::S_IRWXU).unwrap();
    let not = "NotADirectoryError(20, 'Not a directory')";
    let missing = "FileNotFoundError(2, 'No such file or directory')";
    let rmtree = |name: &str| format!("OSError('Cannot call rmtree on {name}')");
    for (name, error) in [
        ("fifo", not.into()),
        ("file", not.into()),
        ("file/x", not.into()),
        ("", missing.into()),
        ("no", missing.into()),
        ("no/", missing.into()),
        (".", rmtree(".")),
        ("..", rmtree("..")),
        ("d/.", rmtree("d/.")),
        ("d/e/..", rmtree("d/e/..")),
        ("d/e/../", rmtree("d/e/../")),
        ("/", rmtree("/")),
        ("//", rmtree("//")),
        ("a\0b", "ValueError('embedded null byte')".into()),
    ] {
        let (status, said) = told(loky(), &format!("REGISTER:{name}:folder\n"));
        assert_eq!(status, 2, "{name}");
        let shown = name.replace('\0', "\\x00");
        assert_eq!(said[1..], [format!("{shown}: {error}")]);
    }
    assert!(exists("fifo") && exists("file") && exists("d/e") && exists("d/fifo"));
    // As files they are what they are; in a folder they go with it.
    let (status, said) =
        told(loky(), "REGISTER:fifo:file\nREGISTER:d:file\nREGISTER:d/../d:folder\n");
    assert_eq!(status, 1, "{said:?}");
    assert_eq!(said[1], "d: IsADirectoryError(21, 'Is a directory')");
    assert!(!exists("fifo") && !exists("d") && exists("file"));
}

fn what_cannot_go_does_not_keep_the_rest() {
    let uid = somebody();
    let top = path("d");
    let own = |place: &Path, mode| {
        chown(place, Some(uid), Some(uid)).unwrap();
        fs::set_permissions(place, Permissions::from_mode(mode)).unwrap();
    };
    for place in ["0", "closed", "closed/open", "unreadable", "unreadable/x", "z", "z/z"] {
        fs::create_dir_all(top.join(place)).unwrap();
        own(&top.join(place), 0o700);
    }
    own(&top, 0o700);
    for file in ["closed/file", "closed/open/file", "z/file"] {
        fs::write(top.join(file), "").unwrap();
        own(&top.join(file), 0o600);
    }
    own(&top.join("closed"), 0o500);
    own(&top.join("unreadable"), 0o300);
    let daemon = Daemon::start_with(|command| {
        command.args(["--protocol", "loky"]).as_user(uid).current_dir("/");
    });
    let (status, said) = told(daemon, "REGISTER:/dev/shm/d:folder\n");
    let denied = "/dev/shm/d: PermissionError(13, 'Permission denied')";
    assert_eq!((status, said[1..].to_vec()), (2, vec![denied.to_owned()]));
    for (place, there) in [
        ("0", false),
        ("z", false),
        ("closed/file", true),
        ("closed/open", true),
        ("closed/open/file", false),
        ("unreadable/x", true),
    ] {
        assert_eq!(exists(top.join(place)), there, "{place}");
    }
}

/// Somebody puts links in the place of directories while they are removed: nothing is lost to which they
/// lead.
fn directories_swapped_for_links() {
    const ROUNDS: usize = 300;
    let outside = outside();
    let stop = AtomicBool::new(false);
    let folder = path("d");
    let swap = || {
        let c = |place: PathBuf| CString::new(place.into_os_string().into_encoded_bytes()).unwrap();
        let (one, other) = (c(folder.join("a/b")), c(path("link")));
        while !stop.load(Ordering::Relaxed) {
            let (at, flags) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
            // Mostly one of them is missing.
            // SAFETY: both paths are NUL-terminated.
            unsafe { libc::renameat2(at, one.as_ptr(), at, other.as_ptr(), flags) };
        }
    };
    let mut daemon = loky();
    thread::scope(|scope| {
        scope.spawn(swap);
        for _ in 0..ROUNDS {
            for place in ["a/b/c/d", "a/b/sub"] {
                // The link may lie in the way already.
                fs::create_dir_all(folder.join(place)).unwrap_or(());
            }
            symlink(&outside, path("link")).unwrap_or(());
            daemon.told("REGISTER:/dev/shm/d:folder\nMAYBE_UNLINK:/dev/shm/d:folder\n");
            if !exists(outside.join("file")) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (status, said) = daemon.end();
    assert!(is_whole(&outside), "{said}");
    assert_eq!(status.code(), Some(0), "{said}");
}

fn verbose() {
    fs::write("f", "").unwrap();
    fs::write("g", "").unwrap();
    let (status, said) = told(
        daemon(&["--protocol", "loky", "--verbose"]),
        "REGISTER:f:file\nREGISTER:f:file\nMAYBE_UNLINK:f:file\nMAYBE_UNLINK:f:file\n\
         REGISTER:x:semlock\nUNREGISTER:x:semlock\nREGISTER:no:file\nREGISTER:g\x1b:folder\n\
         PROBE:0:noop\nREGISTER:g:file\nREGISTER:d:dummy\n",
    );
    let told = |text: &str| format!("[DEBUG/MainProcess] {text}");
    let step = |text: &str| format!("[DEBUG/MainProcess] [ResourceTracker] {text}");
    let expected = [
        told("Main resource tracker is running"),
        step("incremented refcount of file f (current 1)"),
        step("incremented refcount of file f (current 2)"),
        step("decremented refcount of file f (current 1)"),
        step("decremented refcount of file f (current 0)"),
        step("unlink f"),
        step("incremented refcount of semlock x (current 1)"),
        step("unregister x semlock: cache(5)"),
        step("incremented refcount of file no (current 1)"),
        step("incremented refcount of folder g\\x1b (current 1)"),
        step("incremented refcount of file g (current 1)"),
        step("incremented refcount of dummy d (current 1)"),
        step("unlink d"),
        "2 leaked file objects: {'no': 1, 'g': 1}".into(),
        "no: FileNotFoundError(2, 'No such file or directory')".into(),
        step("unlink g"),
        "1 leaked folder objects: {'g\\x1b': 1}".into(),
        "g\\x1b: FileNotFoundError(2, 'No such file or directory')".into(),
        told("resource tracker shut down"),
    ];
    assert_eq!((status, said), (2, expected.to_vec()));
}

/// `-W ignore` silences warnings, in both dialects, and nothing else.
fn without_warnings() {
    for (protocol, text) in [
        ("loky", "REGISTER:no:file\nMAYBE_UNLINK:no:file\nREGISTER:no:file\nbad\n"),
        ("cpython", "REGISTER:/no:semaphore\nbad\n"),
    ] {
        let arguments = ["--protocol", protocol, "--no-warnings", "--audit", "/no/audit"];
        let (status, said) = told(daemon(&arguments), text);
        assert_eq!(status, 2, "{said:?}");
        // That there is no record is no warning of Python's.
        assert!(said[0].contains("UserWarning: audit /no/audit: open: "), "{said:?}");
        let error = "ValueError: not enough values to unpack (expected 2, got 1)";
        assert!(said.len() == 4 && said[3] == error, "{said:?}");
    }
}

/// joblib's tracker says nothing of files that are gone, and of nothing else.
fn missing_files() {
    let text = "REGISTER:no:file\nMAYBE_UNLINK:no:file\nREGISTER:no:file\n";
    let options = ["--protocol", "loky", "--missing-files-ok"];
    let leaked = "1 leaked file objects: {'no': 1}";
    assert_eq!(told(daemon(&options), text), (1, vec![leaked.into()]));
    let no = "no: FileNotFoundError(2, 'No such file or directory')";
    assert_eq!(told(daemon(&options[..2]), text), (2, vec![no.into(), leaked.into(), no.into()]));
    fs::create_dir("d").unwrap();
    let (status, said) =
        told(daemon(&options), "REGISTER:no:folder\nREGISTER:/no:semlock\nREGISTER:d:file\n");
    assert_eq!((status, said.len()), (2, 6), "{said:?}");
    let (status, said) = told(
        daemon(&["--protocol", "loky", "--missing-files-ok", "--verbose"]),
        "REGISTER:no:file\n",
    );
    assert_eq!(
        (status, said[3].as_str()),
        (1, "[DEBUG/MainProcess] [ResourceTracker] unlink no"),
        "{said:?}"
    );
}

fn records_each_removal() {
    fs::create_dir_all("d/e").unwrap();
    fs::write("d/x", "").unwrap();
    fs::write("f", "").unwrap();
    symlink("d", "link").unwrap();
    drop(sem_open("/s", 1));
    let mut daemon = daemon(&["--protocol", "any", "--audit", "audit"]);
    daemon.tell("REGISTER:d:folder\nREGISTER:f:file\nREGISTER:f:file\nMAYBE_UNLINK:f:file\n");
    daemon.tell("REGISTER:link:folder\nREGISTER:/no/x:file\nREGISTER:/s:semlock\n");
    daemon.told("REGISTER:x:noop\nMAYBE_UNLINK:x:noop\n");
    assert_eq!(fs::read("audit").unwrap(), b"");
    // What is given up is recorded when it has gone, not only at the end.
    daemon.tell("MAYBE_UNLINK:d:folder\n");
    let recorded = || fs::read_to_string("audit").unwrap();
    wait_for("the record", || recorded().ends_with('\n').then_some(()));
    daemon.tell("MAYBE_UNLINK:f:file\n");
    wait_for("the record", || (recorded().lines().count() == 2).then_some(()));
    assert_eq!(daemon.end().0.code(), Some(2));
    let lines: Vec<Value> = recorded()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .inspect(validate)
        .collect();
    let here = scratch();
    let (here, none) = (Value::from(here.to_str().unwrap()), Value::Null);
    for (line, (id, outcome, says, errno, directory)) in lines.iter().zip([
        (
            "folder:d",
            "reaped",
            "removed with the 2 entries that were in it, since its last",
            none.clone(),
            &here,
        ),
        ("file:f", "reaped", "removed, since its last user gave it up", none.clone(), &here),
        ("file:/no/x", "gone", "[Errno 2] No such file or directory", libc::ENOENT.into(), &none),
        ("sem:s", "reaped", "removed, since it was registered and never", none.clone(), &none),
        ("folder:link", "failed", "Cannot call rmtree on a symbolic link", none.clone(), &here),
    ]) {
        assert_eq!((&line["object"]["id"], &line["outcome"]), (&id.into(), &outcome.into()));
        assert!(line["says"].as_str().unwrap().starts_with(says), "{line}");
        assert_eq!((&line["errno"], &line["object"]["directory"]), (&errno, directory), "{line}");
        assert_eq!(line["action"], "clean");
    }
    assert_eq!(lines.len(), 5);
    for (name, found) in [
        ("folder:link", 1),
        ("folder:*", 2),
        ("d", 1),
        ("file:/no/x", 1),
        ("/no/x", 1),
        ("/no/*", 1),
        ("/no/y", 0),
    ] {
        let log = rtrack(["log", "--json", "--file", "audit", name]).finish().expect(0).json();
        assert_eq!(log["records"].as_array().unwrap().len(), found, "{name}: {log}");
    }
}
