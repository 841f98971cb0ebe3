//! The client library: starting trackers, telling them, and what it survives.

mod forks;
mod hammer;
mod recorder;

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise, sigprocmask};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rtrack::tracker::service::client::{
    Builder, ClientError, Death, Dialect, End, ResourceTracker,
};

use self::recorder::{lines, ready, recorder, starts};
use crate::support::{
    Case, Finish, Inherit, binary, case, check, example, kill, names, object, path, pythons,
    rtrack, scratch, wait_for,
};

pub(crate) use self::recorder::main as record;

pub(crate) fn tests() -> Vec<Case> {
    let mut cases = vec![
        case("starts_rtrack_and_tells_it", starts_rtrack_and_tells_it),
        case("finds_rtrack", finds_rtrack),
        case("masks", masks),
        case("descriptors", descriptors),
        case("programs_that_cannot_be_executed", programs_that_cannot_be_executed),
        case("a_dead_one_is_replaced_and_waited_for", a_dead_one_is_replaced_and_waited_for),
        case("warns_as_python_does", warns_as_python_does),
        case("refused_before_a_byte_is_written", refused_before_a_byte_is_written),
        case("names_that_not_every_command_reads", names_that_not_every_command_reads),
        case("maybe_unlink_in_lokys_dialect", maybe_unlink_in_lokys_dialect),
        case("sigpipe", sigpipe),
        case("somebody_else_waits_for_it", somebody_else_waits_for_it),
        case("sigchld_is_ignored", sigchld_is_ignored),
        case("one_that_closes_its_pipe_and_lives", one_that_closes_its_pipe_and_lives),
        case("many_that_outlive_their_clients", many_that_outlive_their_clients),
        case("a_number_that_became_somebody_elses", a_number_that_became_somebody_elses),
        case("a_child_that_shares_it", a_child_that_shares_it),
        case("the_example_killed", the_example_killed),
    ];
    cases.extend(forks::tests());
    cases.extend(hammer::tests());
    cases
}

/// Deaths that were told of, and what tells of them.
fn deaths() -> (Arc<Mutex<Vec<Death>>>, impl Fn(&Death) + Send + Sync + 'static) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let copy = Arc::clone(&told);
    (told, move |death: &Death| copy.lock().unwrap().push(*death))
}

/// This process has no child, not even one that was not waited for.
#[track_caller]
fn no_child_is_left() {
    let left = waitpid(None, Some(WaitPidFlag::WNOHANG));
    assert_eq!(left, Err(Errno::ECHILD), "a child is left");
}

fn blocked() -> SigSet {
    let mut mask = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, None, Some(&mut mask)).unwrap();
    mask
}

fn starts_rtrack_and_tells_it() {
    for name in ["kept", "psm_1", "a:b", "new\nline"] {
        object().make(name);
    }
    let tracker = ResourceTracker::builder().program(binary()).build().unwrap();
    assert!(!tracker.probe() && tracker.pid().is_none());
    tracker.ensure_running().unwrap();
    let pid = tracker.pid().unwrap();
    assert!(tracker.probe());
    tracker.ensure_running().unwrap();
    for name in ["/kept", "/psm_1", "/a:b", "/new\nline"] {
        tracker.register(name, "shared_memory").unwrap();
    }
    tracker.unregister("/kept", "shared_memory").unwrap();
    assert_eq!(tracker.pid(), Some(pid));
    let end = tracker.stop().unwrap();
    assert_eq!((end.pid, end.end), (pid, End::Exited(1)));
    assert_eq!(names().into_iter().collect::<Vec<_>>(), ["kept"]);
    no_child_is_left();
}

/// Beside the program's own executable, or else in `PATH`, where what is not absolute is passed over.
fn finds_rtrack() {
    let directory = binary().parent().unwrap().to_owned();
    fs::write("rtrack", "").unwrap();
    let look_in = |path: &str| {
        // SAFETY: this process has a single thread.
        unsafe { std::env::set_var("PATH", path) };
        ResourceTracker::new().unwrap()
    };
    let tracker = look_in(&format!(".:/nowhere:{}", directory.display()));
    tracker.ensure_running().unwrap();
    let executable = fs::read_link(format!("/proc/{}/exe", tracker.pid().unwrap())).unwrap();
    assert_eq!(executable, fs::canonicalize(binary()).unwrap());
    assert_eq!(tracker.stop().unwrap().end, End::Exited(0));

    let found = look_in("/nowhere").ensure_running().map_err(|error| error.to_string());
    // Where an ordinary user runs copies, it is beside.
    let beside = std::env::current_exe().unwrap().with_file_name("rtrack").exists();
    let not_found = "start rtrack: No such file or directory (os error 2)".to_owned();
    assert_eq!(found, if beside { Ok(()) } else { Err(not_found) });
}

extern "C" fn nothing(_: libc::c_int) {}

/// SIGINT and SIGTERM wait in the child until it ignores them; here everything is as it was.
fn masks() {
    let mut own = SigSet::empty();
    own.add(Signal::SIGUSR1);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&own), None).unwrap();
    // SAFETY: the handler does nothing.
    unsafe {
        libc::signal(libc::SIGHUP, nothing as *const () as libc::sighandler_t);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGUSR2, libc::SIG_IGN);
    }
    let tracker = recorder("").build().unwrap();
    tracker.ensure_running().unwrap();
    assert_eq!(blocked(), own);
    let set = |key: &str| {
        let text = ready(&tracker);
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        let bits = u64::from_str_radix(line.trim(), 16).unwrap();
        // Real-time signals are what whoever runs the tests made of them.
        (1..32).filter(|signal| bits & (1 << (signal - 1)) != 0).collect::<Vec<i32>>()
    };
    assert_eq!(set("SigBlk:"), [libc::SIGINT, libc::SIGUSR1, libc::SIGTERM]);
    // Rust's run-time ignores SIGPIPE in the recorder, too.
    assert_eq!(set("SigIgn:"), [libc::SIGUSR2, libc::SIGPIPE]);
    assert!(!set("SigCgt:").contains(&libc::SIGHUP));

    // The next one is started in the middle of a message.
    kill(tracker.pid().unwrap().unsigned_abs());
    wait_for("its end", || (!tracker.probe()).then_some(()));
    tracker.register("x", "dummy").unwrap();
    assert_eq!(blocked(), own);
    assert_eq!(set("SigBlk:"), [libc::SIGINT, libc::SIGUSR1, libc::SIGTERM]);
    let _ended = tracker.stop();
}

/// The numbers that are open in this process, and whether each is closed on exec.
fn open_numbers() -> Vec<(i32, bool)> {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let numbers =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let numbers: Vec<i32> = numbers.collect();
    // SAFETY: the call touches no memory.
    let flags = |number| unsafe { libc::fcntl(number, libc::F_GETFD) };
    let open = numbers.into_iter().map(|number| (number, flags(number)));
    open.filter(|(_, flags)| *flags != -1)
        .map(|(n, flags)| (n, flags & libc::FD_CLOEXEC != 0))
        .collect()
}

fn descriptors() {
    // What a careless program leaves open over exec, at the number which the tracker gets, too.
    let careless = File::open("/dev/null").unwrap();
    for number in [3, 9, 200] {
        // SAFETY: nothing of this process is at these numbers but what the harness left behind.
        check(unsafe { libc::dup2(careless.as_raw_fd(), number) }).unwrap();
    }
    let before = open_numbers();
    let tracker = recorder("").build().unwrap();
    assert_eq!(open_numbers(), before);
    tracker.register("x", "dummy").unwrap();
    let mut new = open_numbers();
    new.retain(|open| !before.contains(open));
    assert!(
        !new.is_empty() && new.iter().all(|(number, closed)| *number > 2 && *closed),
        "{new:?}"
    );
    let text = ready(&tracker);
    let open = text.lines().find_map(|line| line.strip_prefix("open: ")).unwrap();
    assert_eq!(open, "0 1 2 3", "what the tracker has");
    let _ended = tracker.stop();
    assert_eq!(open_numbers(), before);
}

fn programs_that_cannot_be_executed() {
    fs::write("text", "no program").unwrap();
    fs::create_dir("directory").unwrap();
    object().mode(0o755).make("empty");
    let before = open_numbers();
    for (program, errno) in [
        (scratch().join("nothing"), libc::ENOENT),
        (scratch().join("text"), libc::EACCES),
        (scratch().join("directory"), libc::EACCES),
        (scratch().join("text/below"), libc::ENOENT),
        (path("empty"), libc::ENOEXEC),
    ] {
        let tracker = ResourceTracker::builder().program(&program).build().unwrap();
        for _ in 0..3 {
            let error = tracker.register("x", "dummy").unwrap_err();
            let ClientError::Start { program: named, error } = error else { panic!("{error}") };
            assert_eq!((&*named, error.raw_os_error()), (program.as_path(), Some(errno)));
        }
        no_child_is_left();
    }
    assert_eq!(open_numbers(), before);
}

fn a_dead_one_is_replaced_and_waited_for() {
    let (told, tell) = deaths();
    let tracker = recorder("").on_death(tell).build().unwrap();
    let mut pids = Vec::new();
    for round in 0..4_usize {
        tracker.register(format!("{round}"), "dummy").unwrap();
        let pid = tracker.pid().unwrap();
        assert_eq!(
            waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)),
            Ok(nix::sys::wait::WaitStatus::StillAlive)
        );
        pids.push(pid);
        wait_for("the message", || {
            lines().contains(&format!("REGISTER:{round}:dummy")).then_some(())
        });
        assert_eq!(told.lock().unwrap().len(), round);
        kill(pid.unsigned_abs());
        wait_for("its end", || (!tracker.probe()).then_some(()));
    }
    // Of the last one, asking for one finds out.
    tracker.ensure_running().unwrap();
    let told = told.lock().unwrap().clone();
    assert_eq!(told.iter().map(|death| death.pid).collect::<Vec<_>>(), pids);
    for death in told {
        assert_eq!((death.end, death.unread, death.more), (End::Killed(libc::SIGKILL), Some(0), 0));
    }
    let last = tracker.stop().unwrap();
    assert_eq!(last.end, End::Exited(0));
    no_child_is_left();
    assert_eq!(starts(), 5);
}

/// Without a callback; and what the dead one had not read is counted with one.
fn warns_as_python_does() {
    let mut said =
        File::options().read(true).write(true).create(true).truncate(true).open("said").unwrap();
    let tracker = recorder("").build().unwrap();
    tracker.ensure_running().unwrap();
    kill(tracker.pid().unwrap().unsigned_abs());
    wait_for("its end", || (!tracker.probe()).then_some(()));
    // SAFETY: stderr has no owner in Rust; it is put back.
    let own = unsafe {
        let own = check(libc::dup(2)).unwrap();
        check(libc::dup2(said.as_raw_fd(), 2)).unwrap();
        own
    };
    tracker.register("x", "dummy").unwrap();
    // SAFETY: as above.
    unsafe { check(libc::dup2(own, 2)).unwrap() };
    let mut text = String::new();
    said.rewind().unwrap();
    said.read_to_string(&mut text).unwrap();
    let warning = format!(
        "rtrack:{}: UserWarning: resource_tracker: process died unexpectedly, relaunching.  Some \
         resources might leak.\n",
        std::process::id()
    );
    assert_eq!(text, warning);
    let _ended = tracker.stop();

    // One that never reads, and nine bytes a message.
    let (told, tell) = deaths();
    let tracker = recorder("deaf").on_death(tell).build().unwrap();
    for _ in 0..100 {
        tracker.register("", "noop").unwrap();
    }
    kill(tracker.pid().unwrap().unsigned_abs());
    wait_for("its end", || (!tracker.probe()).then_some(()));
    tracker.register("", "noop").unwrap();
    assert_eq!(told.lock().unwrap()[0].unread, Some(100 * 15));
    kill(tracker.pid().unwrap().unsigned_abs());
    wait_for("its end", || (!tracker.probe()).then_some(()));
    assert_eq!(tracker.stop().unwrap().unread, Some(15));
}

fn refused_before_a_byte_is_written() {
    let tracker = recorder("").build().unwrap();
    // REGISTER, two colons, dummy and a newline are 16 bytes of 512.
    let longest = "x".repeat(512 - 16);
    tracker.register(&longest, "dummy").unwrap();
    let json = |length: usize| format!("\n{}", "y".repeat(length - 1));
    tracker.register(json(255), "dummy").unwrap();
    let accepted = lines_after(2);
    assert_eq!(accepted[0], format!("REGISTER:{longest}:dummy"));
    assert!(
        accepted[1].starts_with("{\"cmd\":\"REGISTER\",\"rtype\":\"dummy\",\"base64_name\":\"Cnl5")
    );

    let refused = |name: &str, rtype: &str| tracker.register(name, rtype).unwrap_err().to_string();
    let name = "x".repeat(32);
    assert_eq!(
        refused(&format!("{longest}x"), "dummy"),
        format!(
            "the message for \"{name}...\" would be 513 bytes long, and no writer may exceed 512"
        )
    );
    assert_eq!(
        refused(&json(256), "dummy"),
        format!(
            "the name \"\\n{}...\" is 256 bytes long, and the JSON form takes at most 255",
            "y".repeat(31)
        )
    );
    assert_eq!(refused("a\0b", "dummy"), "the name \"a\\x00b\" has a NUL in it");
    for rtype in ["", "file", "dummy\n", "a:dummy", "Dummy"] {
        assert!(
            refused("x", rtype)
                .starts_with("a tracker of this dialect cannot be told that of type")
        );
    }
    assert!(matches!(tracker.maybe_unlink("x", "file"), Err(ClientError::UnknownType(_))));
    tracker.register("last", "dummy").unwrap();
    assert_eq!(lines_after(3)[2], "REGISTER:last:dummy");
    let _ended = tracker.stop();
    assert_eq!(lines().len(), 3);
}

/// What the tracker has read, once that are `count` lines.
fn lines_after(count: usize) -> Vec<String> {
    wait_for("what was written", || Some(lines()).filter(|lines| lines.len() >= count))
}

/// A command of which nothing is known.
fn wrapped(script: &str) -> Builder {
    ResourceTracker::builder().command(["sh", "-c", script])
}

/// What an older Python would complain of, and forget.
fn names_that_not_every_command_reads() {
    const NAMES: [&str; 3] = ["/co:lon", "/new\nline", "/é"];
    let tracker = wrapped("cat <&{fd} >said").build().unwrap();
    for name in NAMES {
        let refused = tracker.register(name, "shared_memory").unwrap_err();
        assert!(matches!(refused, ClientError::NotRead(_)), "{refused}");
    }
    assert_eq!(tracker.pid(), None);
    tracker.register("/plain", "shared_memory").unwrap();
    let _ended = tracker.stop();
    assert_eq!(fs::read_to_string("said").unwrap(), "REGISTER:/plain:shared_memory\n");
    // A wrapper that is vouched for, and a command that can be seen to be rtrack's.
    let script = format!("{} daemon --fd {{fd}} 2>/dev/null", binary().display());
    let seen = ["rtrack", "daemon", "--no-warnings", "--fd", "{fd}"];
    let seen = ResourceTracker::builder().program(binary()).command(seen);
    for builder in [wrapped(&script).any_name(), seen] {
        let tracker = builder.build().unwrap();
        for name in ["co:lon", "new\nline", "é"] {
            object().make(name);
            tracker.register(format!("/{name}"), "shared_memory").unwrap();
        }
        assert_eq!(tracker.stop().unwrap().end, End::Exited(1));
        assert!(names().is_empty());
    }
    // Python's own, of each version: what was accepted is removed.
    let launch = "from multiprocessing.resource_tracker import main;main({fd})";
    for python in pythons() {
        let builder = ResourceTracker::builder().command(["python3", "-W", "ignore", "-c", launch]);
        let tracker = builder.program(&python.path).build().unwrap();
        for name in ["co:lon", "new\nline", "é", "plain"] {
            object().make(name);
            if tracker.register(format!("/{name}"), "shared_memory").is_err() {
                fs::remove_file(path(name)).unwrap();
            }
        }
        let _ended = tracker.stop();
        assert!(names().is_empty(), "{python} forgot {:?}", names());
    }
}

/// loky's own tracker, and an `rtrack daemon` of that dialect.
fn maybe_unlink_in_lokys_dialect() {
    let tracker = wrapped("cat <&{fd} >said").dialect(Dialect::Loky).build().unwrap();
    tracker.register("/tmp/a:b", "folder").unwrap();
    tracker.maybe_unlink("/tmp/a:b", "folder").unwrap();
    assert!(matches!(tracker.register("new\nline", "file"), Err(ClientError::NotPlain(_))));
    assert!(matches!(tracker.register("é", "file"), Err(ClientError::NotPlain(_))));
    assert!(matches!(tracker.register("x", "semaphore"), Err(ClientError::UnknownType(_))));
    let _ended = tracker.stop();
    let said = fs::read_to_string("said").unwrap();
    assert_eq!(said, "REGISTER:/tmp/a:b:folder\nMAYBE_UNLINK:/tmp/a:b:folder\n");

    let file = scratch().join("counted \n é");
    let name = file.to_str().unwrap();
    for dialect in [Dialect::Loky, Dialect::Any] {
        fs::write(&file, "").unwrap();
        let tracker =
            ResourceTracker::builder().program(binary()).dialect(dialect).build().unwrap();
        tracker.register(name, "file").unwrap();
        tracker.register(name, "file").unwrap();
        tracker.maybe_unlink(name, "file").unwrap();
        tracker.maybe_unlink(name, "file").unwrap();
        wait_for("its removal", || (!file.exists()).then_some(()));
        assert_eq!(tracker.stop().unwrap().end, End::Exited(0), "{dialect}");
    }
}

/// The program's own disposition stays, which ends it here; and a SIGPIPE of its own stays as well.
fn sigpipe() {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let tracker = recorder("").on_death(|_| {}).build().unwrap();
    let die = || {
        tracker.ensure_running().unwrap();
        kill(tracker.pid().unwrap().unsigned_abs());
        wait_for("its end", || (!tracker.probe()).then_some(()));
    };
    die();
    tracker.register("x", "dummy").unwrap();
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&pipe), None).unwrap();
    let pending = || {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the kernel writes one set.
        unsafe {
            libc::sigpending(set.as_mut_ptr());
            libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1
        }
    };
    die();
    tracker.register("y", "dummy").unwrap();
    assert!(!pending(), "the client's SIGPIPE is left");
    raise(Signal::SIGPIPE).unwrap();
    die();
    tracker.register("z", "dummy").unwrap();
    assert!(pending(), "the program's SIGPIPE was taken");
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let _ended = tracker.stop();
    assert!(lines().ends_with(&["REGISTER:z:dummy".to_owned()]));
}

fn somebody_else_waits_for_it() {
    let (told, tell) = deaths();
    let tracker = recorder("").on_death(tell).build().unwrap();
    tracker.ensure_running().unwrap();
    kill(tracker.pid().unwrap().unsigned_abs());
    waitpid(None, None).unwrap();
    // A child of the program, which must not be waited for in its place.
    let mut other = Command::new("true").spawn().unwrap();
    tracker.register("x", "dummy").unwrap();
    assert_eq!(told.lock().unwrap()[0].end, End::Gone);
    assert!(other.wait().unwrap().success());
    let _ended = tracker.stop();
}

fn sigchld_is_ignored() {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let (told, tell) = deaths();
    let tracker = recorder("").on_death(tell).build().unwrap();
    for _ in 0..3 {
        tracker.register("x", "dummy").unwrap();
        kill(tracker.pid().unwrap().unsigned_abs());
        wait_for("its end", || (!tracker.probe()).then_some(()));
    }
    tracker.register("x", "dummy").unwrap();
    assert!(told.lock().unwrap().iter().map(|death| death.end).eq([End::Gone; 3]));
    assert_eq!(tracker.stop().unwrap().end, End::Gone);
    let program = scratch().join("nothing");
    let tracker = ResourceTracker::builder().program(program).build().unwrap();
    assert!(matches!(tracker.ensure_running(), Err(ClientError::Start { .. })));
}

/// It is not waited for without end, and not forgotten.
fn one_that_closes_its_pipe_and_lives() {
    let (told, tell) = deaths();
    let tracker = recorder("first-closes").on_death(tell).build().unwrap();
    tracker.register("first", "dummy").unwrap();
    let first = tracker.pid().unwrap();
    wait_for("the closed pipe", || (!tracker.probe()).then_some(()));
    tracker.register("x", "dummy").unwrap();
    assert_eq!(told.lock().unwrap()[0].end, End::Lives);
    assert_eq!(told.lock().unwrap()[0].pid, first);
    kill(first.unsigned_abs());
    wait_for("its end", || {
        let stat = fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
        stat.contains(") Z ").then_some(())
    });
    assert_eq!(tracker.stop().unwrap().end, End::Exited(0));
    no_child_is_left();
    assert_eq!(lines(), ["REGISTER:x:dummy"]);
}

/// Trackers that somebody else keeps, more than there may be clients: each is waited for once it has ended.
fn many_that_outlive_their_clients() {
    let mut kept = Vec::new();
    for _ in 0..80 {
        let tracker = recorder("").build().unwrap();
        kept.push((tracker.fd().unwrap(), tracker.pid().unwrap()));
    }
    let pids: Vec<i32> = kept.into_iter().map(|(_, pid)| pid).collect();
    for pid in pids {
        wait_for("its end", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.contains(") Z ").then_some(())
        });
    }
    let tracker = recorder("").build().unwrap();
    tracker.ensure_running().unwrap();
    assert_eq!(tracker.stop().unwrap().end, End::Exited(0));
    no_child_is_left();
}

/// As by a program that closes what it does not know, and opens something of its own.
fn a_number_that_became_somebody_elses() {
    let tracker = recorder("").on_death(|_| {}).build().unwrap();
    let before = open_numbers();
    tracker.register("x", "dummy").unwrap();
    let mut victim =
        File::options().read(true).write(true).create(true).truncate(true).open("victim").unwrap();
    for (number, _) in open_numbers() {
        if !before.iter().any(|(old, _)| *old == number) && number != victim.as_raw_fd() {
            // SAFETY: it is the client's, which this is about.
            check(unsafe { libc::dup2(victim.as_raw_fd(), number) }).unwrap();
        }
    }
    for name in ["y", "z"] {
        tracker.register(name, "dummy").unwrap();
    }
    let _ended = tracker.stop();
    let mut text = String::new();
    victim.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    let mut read = lines_after(3);
    read.sort();
    assert_eq!(read, ["REGISTER:x:dummy", "REGISTER:y:dummy", "REGISTER:z:dummy"]);
}

/// A child that was given a copy of the end speaks to the same tracker, and keeps it.
fn a_child_that_shares_it() {
    object().make("childs");
    let tracker = ResourceTracker::builder().program(binary()).build().unwrap();
    let end = tracker.fd().unwrap();
    let pid = tracker.pid().unwrap();
    let share = |command: &mut Command| {
        command.inherit(end.try_clone().unwrap(), 7);
    };
    let mut sleeper = {
        let mut command = Command::new("sleep");
        share(command.arg("1000"));
        command.spawn().unwrap()
    };
    {
        let mut send = rtrack(["send", "--fd", "7", "REGISTER", "/childs", "shared_memory"]);
        share(&mut send);
        send.finish().expect(0);
    }
    drop(end);
    drop(tracker);
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(names().len(), 1);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    wait_for("the tracker", || names().is_empty().then_some(()));
    waitpid(Pid::from_raw(pid), None).unwrap_or(nix::sys::wait::WaitStatus::StillAlive);
}

/// Left to itself, it cleans up; killed, its tracker does.
fn the_example_killed() {
    for end in ["killed", "ends"] {
        let mut example = Command::new(example());
        example.args(["--program", binary().to_str().unwrap(), "--size", "100000"]);
        let mut running = example.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut name = [0; 9];
        running.stdout.as_mut().unwrap().read_exact(&mut name).unwrap();
        assert_eq!((&name, names().len()), (b"/register", 1));
        if end == "killed" {
            running.kill().unwrap();
            running.wait().unwrap();
            wait_for("the tracker", || names().is_empty().then_some(()));
        } else {
            drop(running.stdin.take());
            assert!(running.wait().unwrap().success());
            assert!(names().is_empty());
        }
    }
}

/// Where recorders write.
fn records() -> PathBuf {
    scratch().join("records")
}
