//! `rtrack daemon`: descriptors, signals, a stderr that nobody reads, and real Pythons.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, PipeWriter, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Case, Finish, Inherit, Need, Python, case, check, fuse, identity, inside, names, note, object,
    path, pythons, rtrack, scratch, sem_open, shm_open, skip, unread, validate, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("cleans_what_is_left", cleans_what_is_left),
        case("descriptors_it_refuses", descriptors_it_refuses),
        case("says_when_it_is_ready", says_when_it_is_ready),
        case("standard_descriptors_as_the_pipe", standard_descriptors_as_the_pipe),
        case("keeps_nothing_else_open", keeps_nothing_else_open),
        case("a_fifo_opened_for_both", a_fifo_opened_for_both),
        case("a_fifo_whose_client_has_gone", a_fifo_whose_client_has_gone),
        case("wrong_command_lines", wrong_command_lines),
        case("signals", signals),
        case("signals_blocked_and_pending_at_the_start", pending_signals),
        case("lists_on_request", lists_on_request),
        case("stderr_closed_or_broken", stderr_closed_or_broken),
        case("stderr_that_nobody_reads", stderr_that_nobody_reads),
        case("lines_of_any_length", lines_of_any_length),
        case("memory_is_what_is_registered", memory_is_what_is_registered),
        case("many_writers", many_writers),
        case("records_what_it_removes", records_what_it_removes),
        case("goes_on_without_its_record", goes_on_without_its_record),
        case("several_share_a_record", several_share_a_record),
        case("record_that_never_answers", record_that_never_answers).needs(&[Need::Fuse]),
        case("in_place_of_pythons_tracker", in_place_of_pythons_tracker).needs(&[Need::Python]),
    ]
}

/// A daemon that reads from descriptor 5, and its pipe.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) pipe: PipeWriter,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(more: impl FnOnce(&mut Command)) -> Self {
        let (reader, writer) = pipe().unwrap();
        let mut command = rtrack(["daemon", "--fd", "5"]);
        command.inherit(reader, 5).stderr(Stdio::piped());
        more(&mut command);
        Self { child: command.spawn().unwrap(), pipe: writer }
    }

    pub(crate) fn tell(&mut self, text: &str) -> &mut Self {
        self.pipe.write_all(text.as_bytes()).unwrap();
        self
    }

    /// Tells it something and waits until it was read.
    pub(crate) fn told(&mut self, text: &str) -> &mut Self {
        self.tell(text);
        wait_for("the daemon to read", || (unread(&self.pipe) == 0).then_some(()));
        self
    }

    pub(crate) fn signal(&mut self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child has not been waited for.
        check(unsafe { libc::kill(pid, signal) }).unwrap();
    }

    /// Closes the pipe; the exit status and what it said.
    pub(crate) fn end(self) -> (ExitStatus, String) {
        drop(self.pipe);
        let output = self.child.wait_with_output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }
}

fn cleans_what_is_left() {
    let kept = shm_open("/kept", 64);
    drop(shm_open("/psm_1", 64));
    drop(sem_open("/mp-1", 1));
    let mut daemon = Daemon::start();
    daemon.tell(
        "REGISTER:/psm_1:shared_memory\nREGISTER:/mp-1:semaphore\nREGISTER:/kept:shared_memory\n",
    );
    daemon.tell("UNREGISTER:/kept:shared_memory\nREGISTER:/gone:semaphore");
    let pid = daemon.child.id();
    let (status, said) = daemon.end();
    assert_eq!(status.code(), Some(1));
    assert_eq!(names().into_iter().collect::<Vec<_>>(), ["kept"]);
    assert_eq!(
        said.lines().map(|line| line.replace(&pid.to_string(), "PID")).collect::<Vec<_>>(),
        [
            "rtrack:PID: UserWarning: resource_tracker: There appear to be 2 leaked semaphore \
             objects to clean up at shutdown: {'/mp-1', '/gone'}",
            "rtrack:PID: UserWarning: resource_tracker: '/gone': [Errno 2] No such file or directory",
            "rtrack:PID: UserWarning: resource_tracker: There appear to be 1 leaked shared_memory \
             objects to clean up at shutdown: {'/psm_1'}",
        ]
    );
    drop(kept);
}

fn descriptors_it_refuses() {
    let open = |read, write| OpenOptions::new().read(read).write(write).open("/dev/null").unwrap();
    // SAFETY: the call touches no memory but the path.
    let path_only = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    // SAFETY: the call touches no memory.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    let own = |fd| {
        // SAFETY: the descriptor has just been made.
        unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(check(fd).unwrap()) }
    };
    for (what, file, said) in [
        ("nothing", None, "descriptor 5 is not open"),
        ("a directory", Some(File::open("/").unwrap().into()), "descriptor 5 is a directory"),
        ("write-only", Some(open(false, true).into()), "descriptor 5 is not open for reading"),
        ("O_PATH", Some(own(path_only)), "descriptor 5 is not open for reading"),
        ("epoll", Some(own(epoll)), "descriptor 5: read: Invalid argument"),
    ] {
        let mut command = rtrack(["daemon", "--fd", "5"]);
        if let Some(file) = file {
            command.inherit(file, 5);
        }
        let run = command.finish().expect(64);
        assert!(run.stderr.starts_with(&format!("error: {said}")), "{what}: {}", run.stderr);
        assert!(run.stderr.contains("\nhint: "), "{what}: {}", run.stderr);
    }
    for arguments in [
        &["daemon"][..],
        &["daemon", "--fd", "x"],
        &["daemon", "--fd=-1"],
        &["--quiet", "daemon", "x"],
    ] {
        rtrack(arguments).finish().expect(64);
    }
    // Rust's run-time puts /dev/null in the place of a closed one.
    let mut closed = rtrack(["daemon", "--fd", "0"]);
    // SAFETY: the closure makes one system call.
    unsafe { closed.pre_exec(|| check(libc::close(0)).map(drop)) };
    let run = closed.output().unwrap();
    assert_eq!(run.status.code(), Some(64));
    // What can be read, is: here to its end at once.
    rtrack(["daemon", "--fd", "5"]).inherit(open(true, false), 5).finish().expect(0);
}

fn says_when_it_is_ready() {
    let (mut answer, ready) = pipe().unwrap();
    let daemon = Daemon::start_with(|command| {
        command.args(["--ready-fd", "8"]).inherit(ready, 8);
    });
    // To the end: it keeps nothing of that pipe.
    let mut said = String::new();
    answer.read_to_string(&mut said).unwrap();
    assert_eq!(said, "\n");
    assert_eq!(daemon.end().0.code(), Some(0));

    // What does not come up says nothing.
    let (mut answer, ready) = pipe().unwrap();
    let mut command = rtrack(["daemon", "--fd", "5", "--ready-fd", "8"]);
    command.inherit(ready, 8).finish().expect(64);
    drop(command);
    said.clear();
    answer.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");

    // Nor does what finds out late: without /proc, a FIFO that was opened for both cannot be opened anew.
    let fifo = crate::support::scratch().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let (mut answer, ready) = pipe().unwrap();
    let mut command = rtrack(["daemon", "--fd", "5", "--ready-fd", "8"]);
    command = inside("no-proc", &command);
    let run = command.inherit(both, 5).inherit(ready, 8).finish().expect(64);
    assert!(run.stderr.contains("reopen it for reading only"), "{}", run.stderr);
    drop(command);
    answer.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");

    // And who cannot say it does not come up: another one may be there already.
    for closed in [true, false] {
        let (reader, writer) = pipe().unwrap();
        let mut command = rtrack(["daemon", "--fd", "5", "--ready-fd", "8"]);
        command.inherit(reader, 5);
        if !closed {
            command.inherit(pipe().unwrap().1, 8);
        }
        let run = command.finish().expect(64);
        assert!(run.stderr.starts_with("error: descriptor 8: say that"), "{}", run.stderr);
        drop(writer);
    }
}

fn standard_descriptors_as_the_pipe() {
    for fd in ["0", "1"] {
        object().make("psm_1");
        let (reader, mut writer) = pipe().unwrap();
        let mut command = rtrack(["daemon", "--fd", fd]);
        let command = if fd == "0" { command.stdin(reader) } else { command.stdout(reader) };
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        writer.write_all(b"REGISTER:psm_1:shared_memory\n").unwrap();
        drop(writer);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1), "--fd {fd}");
        assert!(names().is_empty(), "--fd {fd}");
    }
}

fn keeps_nothing_else_open() {
    let (mut answer, stdout) = pipe().unwrap();
    let (mut other, inherited) = pipe().unwrap();
    let mut daemon = Daemon::start_with(|command| {
        command.stdout(stdout).inherit(inherited, 8);
    });
    // Its own write end as well: it would wait for itself.
    let copy = daemon.pipe.try_clone().unwrap();
    let mut own = Daemon::start_with(|command| {
        command.inherit(copy, 9);
    });
    daemon.told("PROBE:0:noop\n");
    own.told("PROBE:0:noop\n");
    let mut nothing = Vec::new();
    answer.read_to_end(&mut nothing).unwrap();
    other.read_to_end(&mut nothing).unwrap();
    assert!(nothing.is_empty());
    assert_eq!(daemon.end().0.code(), Some(0));
    assert_eq!(own.end().0.code(), Some(0));
    // Its stderr may be its own pipe, too.
    let (reader, mut writer) = pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    let mut command = rtrack(["daemon", "--fd", "5"]);
    let mut child = command.inherit(reader, 5).stderr(stderr).spawn().unwrap();
    drop(command);
    writer.write_all(b"REGISTER:x:dummy\n").unwrap();
    drop(writer);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

fn a_fifo_opened_for_both() {
    let fifo = scratch().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // By a shell, so that nobody but the daemon ever has it open: whoever opens it for both is a
    // client, and when that one lets go, the daemon ends.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$RTRACK_BIN\" daemon --fd 5 5<>fifo"]);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    // It waits for a first client, and ends after the last one.
    thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none());
    let mut writer = OpenOptions::new().write(true).open(&fifo).unwrap();
    writer.write_all(b"REGISTER:x:dummy\n").unwrap();
    drop(writer);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

const HARMLESS: [i32; 5] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE];

/// The client wrote and went before the daemon, which inherited both ends, let go of its own.
fn a_fifo_whose_client_has_gone() {
    object().make("psm_1");
    let fifo = scratch().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let both = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    (&both).write_all(b"REGISTER:psm_1:shared_memory\n").unwrap();
    let mut command = rtrack(["daemon", "--fd", "5"]);
    command.inherit(both, 5).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(command);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(identity("psm_1").is_none());
}

fn wrong_command_lines() {
    for arguments in [
        &["daemon"][..],
        &["daemon", "--fd", "x"],
        &["-q", "daemon", "--fd", "-1"],
        &["--color", "never", "daemon"],
        &["--color=never", "daemon", "--fd", "x"],
    ] {
        rtrack(arguments).finish().expect(64);
    }
}

fn signals() {
    object().make("psm_1");
    let mut daemon = Daemon::start();
    daemon.told("REGISTER:psm_1:shared_memory\n");
    for signal in HARMLESS {
        daemon.signal(signal);
        daemon.told("PROBE:0:noop\n");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
    let blocked = u64::from_str_radix(mask, 16).unwrap();
    for signal in HARMLESS {
        assert_eq!(blocked >> (signal - 1) & 1, 0, "signal {signal} is blocked");
    }
    assert_eq!(daemon.end().0.code(), Some(1));
    assert!(names().is_empty());
}

fn pending_signals() {
    // Clients block these two around the start; they arrive before the daemon runs at all.
    object().make("psm_1");
    let mut daemon = Daemon::start_with(|command| {
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(|| {
                let mut set = std::mem::zeroed::<libc::sigset_t>();
                libc::sigaddset(&mut set, libc::SIGINT);
                libc::sigaddset(&mut set, libc::SIGTERM);
                libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
                check(libc::raise(libc::SIGINT))?;
                check(libc::raise(libc::SIGTERM)).map(drop)
            });
        }
    });
    daemon.tell("REGISTER:psm_1:shared_memory\n");
    assert_eq!(daemon.end().0.code(), Some(1));
    assert!(names().is_empty());
}

fn lists_on_request() {
    let mut daemon = Daemon::start();
    daemon.told(
        "REGISTER:b:shared_memory\nREGISTER:a\x1b[31m:shared_memory\nREGISTER:s:semaphore\nREGI",
    );
    let stderr = daemon.child.stderr.take().unwrap();
    let mut lines = BufReader::new(stderr).lines().map(Result::unwrap);
    let pid = daemon.child.id();
    for _ in 0..3 {
        daemon.signal(libc::SIGUSR1);
        assert_eq!(lines.next().unwrap(), format!("rtrack:{pid}: 3 registered"));
        assert_eq!(lines.next().unwrap(), "semaphore 's'");
        assert_eq!(lines.next().unwrap(), "shared_memory 'b'");
        assert_eq!(lines.next().unwrap(), r"shared_memory 'a\x1b[31m'");
    }
    // The line that was being read goes on where it was.
    daemon.told("STER:x:dummy\nUNREGISTER:b:shared_memory\nUNREGISTER:s:semaphore\n");
    daemon.tell("UNREGISTER:a\x1b[31m:shared_memory\n");
    assert_eq!(daemon.end().0.code(), Some(1));
    assert_eq!(lines.next(), None);
}

fn stderr_closed_or_broken() {
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let broken = || Stdio::from(pipe().unwrap().1);
    for what in ["closed", "full", "broken"] {
        object().make("psm_1");
        let mut daemon = Daemon::start_with(|command| {
            match what {
                "full" => command.stderr(full()),
                "broken" => command.stderr(broken()),
                // SAFETY: the closure makes one system call.
                _ => unsafe { command.pre_exec(|| check(libc::close(2)).map(drop)) },
            };
        });
        daemon.told("nonsense\nREGISTER:psm_1:shared_memory\nnonsense\n");
        daemon.signal(libc::SIGUSR1);
        assert_eq!(daemon.end().0.code(), Some(1), "{what}");
        assert!(names().is_empty(), "{what}");
    }
}

fn stderr_that_nobody_reads() {
    object().make("psm_1");
    let (silent, stderr) = pipe().unwrap();
    let mut daemon = Daemon::start_with(|command| {
        command.stderr(stderr);
    });
    let noise = "nonsense\n".repeat(20_000);
    daemon.tell(&noise).tell("REGISTER:psm_1:shared_memory\n").tell(&noise);
    assert_eq!(daemon.end().0.code(), Some(1));
    assert!(names().is_empty());
    drop(silent);
}

fn lines_of_any_length() {
    object().make("psm_1");
    let mut daemon = Daemon::start();
    let long = "x".repeat(3 << 20);
    daemon.tell(&format!("REGISTER:{long}:dummy\nREGISTER:psm_1:shared_memory\n{long}"));
    let (status, said) = daemon.end();
    assert_eq!(status.code(), Some(1));
    assert!(names().is_empty());
    let complaints =
        said.lines().filter(|line| *line == "ValueError: line longer than 1048576 bytes");
    assert_eq!(complaints.count(), 2, "{said}");
}

fn memory_is_what_is_registered() {
    let mut daemon = Daemon::start();
    let mut piece = String::new();
    for number in 0..400_000 {
        let name = format!("psm_{number:0200}");
        piece.push_str(&format!("REGISTER:{name}:dummy\nUNREGISTER:{name}:dummy\n"));
        if piece.len() > 1 << 20 {
            daemon.tell(&piece);
            piece.clear();
        }
    }
    daemon.told(&piece);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 40_000, "{peak} kB at most were resident");
    assert_eq!(daemon.end().0.code(), Some(0));
}

fn many_writers() {
    let mut daemon = Daemon::start();
    thread::scope(|scope| {
        for writer in 0..8 {
            let mut pipe = daemon.pipe.try_clone().unwrap();
            scope.spawn(move || {
                let filler = "x".repeat(400);
                for number in 0..2000 {
                    let name = format!("{writer}-{number}-{filler}");
                    for command in ["REGISTER", "UNREGISTER"] {
                        pipe.write_all(format!("{command}:{name}:dummy\n").as_bytes()).unwrap();
                    }
                }
            });
        }
    });
    daemon.tell("PROBE:0:noop\n");
    let (status, said) = daemon.end();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

/// Starts `$RTRACK_BIN daemon` where `multiprocessing` would start its own tracker, makes shared
/// memory and a lock for spawned children, has such a child use both, and waits.
const PROGRAM: &str = "
import multiprocessing, os, re, sys
from multiprocessing import resource_tracker, shared_memory, util
spawn = util.spawnv_passfds
def spawnv_passfds(path, args, passfds):
    call = re.match(r'from multiprocessing\\.resource_tracker import main;main\\((\\d+)\\)$', args[-1])
    if call:
        path, args = os.environ['RTRACK_BIN'], ['rtrack', 'daemon', '--fd', call.group(1)]
    return spawn(os.fsencode(path), args, passfds)
def use(name, lock):
    with lock:
        memory = shared_memory.SharedMemory(name=name)
        memory.buf[0] = 42
        memory.close()
if __name__ == '__main__':
    util.spawnv_passfds = spawnv_passfds
    memory = shared_memory.SharedMemory(create=True, size=100000)
    context = multiprocessing.get_context('spawn')
    lock = context.Lock()
    child = context.Process(target=use, args=(memory.name, lock))
    child.start()
    child.join()
    assert child.exitcode == 0 and memory.buf[0] == 42
    print(resource_tracker._resource_tracker._pid, memory.name.strip('/'), lock._semlock.name.strip('/'), flush=True)
    sys.stdin.read()
    if sys.argv[1:] == ['unlink']:
        memory.close()
        memory.unlink()
";

fn in_place_of_pythons_tracker() {
    let pythons = pythons();
    if pythons.is_empty() {
        skip("there is no Python of version 3.8 or later");
    }
    let script = scratch().join("program.py");
    fs::write(&script, PROGRAM).unwrap();
    for python in &pythons {
        for killed in [true, false] {
            one_python(python, &script, killed);
        }
    }
    let versions: Vec<String> = pythons.iter().map(ToString::to_string).collect();
    note(format_args!("{} interpreters: {}", versions.len(), versions.join(", ")));
}

fn one_python(python: &Python, script: &std::path::Path, killed: bool) {
    let mut command = python.script(script);
    command.args(if killed { &[][..] } else { &["unlink"] });
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [tracker, memory, lock] = words[..] else {
        let output = child.wait_with_output().unwrap();
        panic!("{python} said {line:?}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    let comm = fs::read_to_string(format!("/proc/{tracker}/comm")).unwrap();
    assert_eq!(comm.trim(), "rtrack");
    assert!(names().contains(std::ffi::OsStr::new(memory)), "{python}: {memory}");
    let probe = rtrack(["probe", "--json", "--pid", tracker]).finish().expect(0).json();
    assert_eq!(probe["kind"], "rtrack");
    assert_eq!(probe["writers_seen"], 1);
    if killed {
        // SIGKILL
        child.kill().unwrap();
    } else {
        drop(child.stdin.take());
    }
    let output = child.wait_with_output().unwrap();
    // The pipe of stderr ended, so the tracker has ended too.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(names().is_empty(), "{python} left {:?}\n{said}", names());
    let complains = said.contains("There appear to be 1 leaked shared_memory objects");
    assert_eq!(complains, killed, "{python}:\n{said}");
    assert!(!said.contains("Traceback"), "{python}:\n{said}");
    assert!(!lock.is_empty());
}

/// Starts a daemon that records in `file`.
fn recording(file: &str) -> Daemon {
    Daemon::start_with(|command| {
        command.args(["--audit", file]);
    })
}

fn records_what_it_removes() {
    drop(shm_open("/psm_1", 64));
    drop(sem_open("/mp-1", 1));
    fs::create_dir(path("folder")).unwrap();
    let mut daemon = recording("audit");
    daemon.tell("REGISTER:/psm_1:shared_memory\nREGISTER:/mp-1:semaphore\n");
    daemon.tell("REGISTER:/gone:shared_memory\nREGISTER:x:dummy\nREGISTER:folder:shared_memory\n");
    // Nothing is recorded before the end.
    daemon.told("REGISTER:/psm_2:shared_memory\nUNREGISTER:/psm_2:shared_memory\n");
    assert_eq!(fs::read("audit").unwrap(), b"");
    let pid = daemon.child.id();
    let (status, said) = daemon.end();
    assert_eq!(status.code(), Some(2));
    assert!(!said.contains("audit"), "{said}");
    let lines: Vec<Value> = fs::read_to_string("audit")
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .inspect(validate)
        .collect();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let told: Vec<_> = lines
        .iter()
        .map(|line| (word(&line["object"]["id"]), word(&line["outcome"]), &line["errno"]))
        .collect();
    let (none, missing) = (&Value::Null, &Value::from(libc::ENOENT));
    let is_directory = &Value::from(libc::EISDIR);
    let expected = [
        ("sem:mp-1", "reaped", none),
        ("shm:psm_1", "reaped", none),
        ("shm:gone", "gone", missing),
        ("shm:folder", "failed", is_directory),
    ];
    let expected = expected.map(|(id, outcome, errno)| (id.to_owned(), outcome.to_owned(), errno));
    assert_eq!(told, expected);
    for line in &lines {
        assert_eq!((&line["event"], &line["action"]), (&"outcome".into(), &"clean".into()));
        assert_eq!((&line["who"]["pid"], &line["who"]["euid"]), (&pid.into(), &0.into()));
        assert_eq!((&line["verdict"], &line["freed"]), (none, none));
    }
    let run = rtrack(["log", "--file", "audit", "sem:*", "gone"]).finish().expect(0);
    assert_eq!(run.text().lines().count(), 3, "{run:?}");
    assert!(run.text().contains("registered and never taken back"), "{run:?}");
}

/// Whatever becomes of the record: what was registered goes, and the exit status is what it would be.
fn goes_on_without_its_record() {
    nix::unistd::mkfifo("unread", nix::sys::stat::Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo("full", nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = OpenOptions::new().read(true).write(true).open("full").unwrap();
    for (file, warning) in [
        ("/dev/full", "write: No space left on device (os error 28): not everything that was"),
        ("missing/audit", "open: No such file or directory (os error 2): nothing is recorded"),
        (".", "open: Is a directory"),
        ("unread", "open: No such device or address"),
        ("full", "not everything that was removed is recorded"),
    ] {
        drop(shm_open("/psm_1", 64));
        let mut daemon = recording(file);
        if file == "full" {
            for number in 0..200 {
                drop(shm_open(&format!("/psm_1{number}"), 64));
                daemon.tell(&format!("REGISTER:/psm_1{number}:shared_memory\n"));
            }
        }
        daemon.told("REGISTER:/psm_1:shared_memory\n").signal(libc::SIGTERM);
        let (status, said) = daemon.end();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(names().is_empty(), "{file}: {:?}", names());
        assert_eq!(said.matches(&format!("UserWarning: audit {file}: ")).count(), 1, "{said}");
        assert!(said.contains(warning), "{said}");
    }
    drop(reader);
    // Nothing was left: nothing is written, and nothing is said of it.
    let (status, said) = recording("/dev/full").end();
    assert_eq!((status.code(), &*said), (Some(0), ""));
    // A client's descriptors are closed all the same, and the record is not what is read.
    let mut daemon = Daemon::start_with(|command| {
        command.args(["--audit", "audit"]).inherit(File::create("inherited").unwrap(), 9);
    });
    daemon.told("REGISTER:/psm_1:shared_memory\n");
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap();
    let open: Vec<_> = open.flat_map(|fd| fs::read_link(fd.unwrap().path())).collect();
    // For appending, and to see how it ends.
    assert_eq!(open.iter().filter(|link| link.ends_with("audit")).count(), 2, "{open:?}");
    assert!(!open.iter().any(|link| link.ends_with("inherited")), "{open:?}");
    assert_eq!(daemon.end().0.code(), Some(2));
}

/// A record on a server that is gone keeps nobody waiting.
fn record_that_never_answers() {
    let silent = scratch().join("silent");
    let server = fuse::never_opens(&silent);
    drop(shm_open("/psm_1", 64));
    let mut daemon = recording(silent.to_str().unwrap());
    daemon.told("REGISTER:/psm_1:shared_memory\n").signal(libc::SIGTERM);
    let (status, said) = daemon.end();
    assert_eq!((status.code(), names().len()), (Some(1), 0), "{said}");
    assert_eq!(said.matches("no answer in time: nothing is recorded").count(), 1, "{said}");
    drop(server);
}

/// Whoever appends at the same time as others adds whole lines.
fn several_share_a_record() {
    const DAEMONS: usize = 6;
    const NAMES: usize = 300;
    let mut daemons: Vec<_> = (0..DAEMONS).map(|_| recording("audit")).collect();
    for daemon in &mut daemons {
        for number in 0..NAMES {
            daemon.tell(&format!("REGISTER:/gone-{number}:shared_memory\n"));
        }
        daemon.told("REGISTER:x:dummy\n");
    }
    let ends = daemons.into_iter().map(|daemon| thread::spawn(|| daemon.end()));
    for end in ends.collect::<Vec<_>>() {
        let (status, said) = end.join().unwrap();
        assert!(status.code() == Some(2) && !said.contains("audit"), "{said}");
    }
    let text = fs::read_to_string("audit").unwrap();
    // An empty line is what a look at the file in the middle of somebody's write can cost.
    let lines = || text.lines().filter(|line| !line.is_empty());
    let whole = lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
    assert_eq!((whole, lines().count()), (DAEMONS * NAMES, DAEMONS * NAMES));
    let log = rtrack(["log", "--json", "--file", "audit"]).finish().expect(0).json();
    assert_eq!(log["not_understood"]["lines"], 0);
}
