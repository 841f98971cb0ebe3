//! `rtrack probe --all`: every tracker, and who feeds it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::hold::start;
use crate::support::{
    Case, Finish, Inherit, Need, Python, case, check, fuse, hold, kill, note, path, pythons,
    rtrack, scratch, somebody, wait_for,
};
use crate::traps::program_called;

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("every_python", every_python).needs(&[Need::Python, Need::PidNamespace]),
        case("other_trackers_of_python", other_trackers_of_python)
            .needs(&[Need::Python, Need::PidNamespace]),
        case("left_behind", left_behind).needs(&[Need::Python, Need::PidNamespace]),
        case("a_program_that_became_a_daemon", a_program_that_became_a_daemon)
            .needs(&[Need::Python, Need::PidNamespace]),
        case("workers_and_daemons", workers_and_daemons).needs(&[Need::Python, Need::PidNamespace]),
        case("rtrack_on_a_pipe", rtrack_on_a_pipe).needs(&[Need::PidNamespace]),
        case("a_fifo_and_a_threads_own_table", a_fifo_and_a_threads_own_table)
            .needs(&[Need::PidNamespace]),
        case("sockets", sockets).needs(&[Need::PidNamespace]),
        case("a_program_that_looks_like_one", a_program_that_looks_like_one)
            .needs(&[Need::PidNamespace]),
        case("files_that_never_answer", files_that_never_answer)
            .needs(&[Need::Fuse, Need::PidNamespace]),
        case("command_lines_that_never_come", command_lines_that_never_come)
            .needs(&[Need::Fuse, Need::PidNamespace]),
        case("of_other_users", of_other_users).needs(&[Need::RealRoot, Need::PidNamespace]),
        case("what_waits_is_asked_at_the_write_end", what_waits_is_asked_at_the_write_end)
            .needs(&[Need::RealRoot, Need::PidNamespace]),
        case("table_and_options", table_and_options).needs(&[Need::PidNamespace]),
    ]
}

/// A program that ends with the case's patience, not before.
const SLEEP: &str = "1000";

/// `rtrack probe --all --json`, with the assertion that the PID namespace is all there is.
#[track_caller]
fn trackers() -> Vec<Value> {
    let mut command = rtrack(["probe", "--all", "--json", "--assume-complete"]);
    let answer = command.finish().expect(0).json();
    answer["trackers"].as_array().unwrap().clone()
}

/// The tracker `pid`, once it is there and `ready`.
fn tracker(pid: u32, mut ready: impl FnMut(&Value) -> bool) -> Value {
    wait_for("the tracker", || trackers().into_iter().find(|one| one["pid"] == pid && ready(one)))
}

fn pids(tracker: &Value) -> Vec<u32> {
    let clients = tracker["clients"].as_array().unwrap();
    let pid = |client: &Value| u32::try_from(client["pid"].as_u64().unwrap()).unwrap();
    clients.iter().map(pid).collect()
}

/// A Python program, and the pids that it printed.
struct Program {
    child: Child,
    pids: Vec<u32>,
}

impl Program {
    fn start(python: &Python, source: &str) -> Self {
        let mut child =
            python.program(source).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert!(!pids.is_empty(), "{python} said nothing");
        Self { child, pids }
    }

    fn kill(&mut self) {
        kill(self.child.id());
        self.child.wait().unwrap();
    }
}

const ENSURE: &str = "\
import os, signal, subprocess, sys, time
from multiprocessing import resource_tracker as r
r.ensure_running()
tracker = r._resource_tracker
";

fn every_python() {
    let pythons = pythons();
    let shown: Vec<String> = pythons.iter().map(ToString::to_string).collect();
    note(format_args!("{}: {}", pythons.len(), shown.join(", ")));
    for python in pythons {
        let source = format!("{ENSURE}print(tracker._pid, flush=True)\nsys.stdin.read()");
        let mut program = Program::start(&python, &source);
        let found = tracker(program.pids[0], |_| true);
        let (major, minor, _) = python.version;
        let version = found["version"].as_str().unwrap();
        let expected = format!("{major}.{minor}");
        assert!(version == expected || version.starts_with(&format!("{expected}.")), "{found}");
        assert_eq!((&found["kind"], &found["reads"]), (&json!("cpython"), &json!("pipe")));
        assert_eq!(pids(&found), [program.child.id()]);
        assert_eq!((&found["all_clients"], &found["orphaned"]), (&json!(true), &json!(false)));
        assert_eq!((&found["queued"], &found["stopped"]), (&json!(0), &json!(false)));
        assert_eq!(found["parent"], program.child.id());
        assert!(found["memory"].as_u64().unwrap() > 1 << 20, "{found}");
        // Nobody says so without having seen everything.
        let answer = rtrack(["probe", "--all", "--json"]).finish().expect(0);
        assert!(answer.stderr.contains("--assume-complete"), "{answer:?}");
        let answer = answer.json();
        assert_eq!(answer["sight"]["descriptors"], "partial");
        let blind = &answer["trackers"][0];
        assert_eq!((&blind["all_clients"], &blind["orphaned"]), (&json!(false), &Value::Null));
        assert_eq!(pids(blind), [program.child.id()]);
        drop(program.child.stdin.take());
        program.child.wait().unwrap();
        wait_for("the tracker's end", || trackers().is_empty().then_some(()));
    }
}

/// Packages with trackers of the same names as the real ones, which only read.
fn packages() -> PathBuf {
    let root = scratch().join("packages");
    for module in [
        "loky/backend/resource_tracker.py",
        "joblib/externals/loky/backend/resource_tracker.py",
        "multiprocess/resource_tracker.py",
        "billiard/semaphore_tracker.py",
    ] {
        let file = root.join(module);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let source =
            "import os\ndef main(fd, verbose=0):\n    os.read(fd, 1)\n    os.read(fd, 1)\n";
        fs::write(&file, source).unwrap();
        for directory in file.ancestors().skip(1).take_while(|directory| **directory != *root) {
            fs::write(directory.join("__init__.py"), "").unwrap();
        }
    }
    root
}

/// A tracker in Python that reads `inlet` as descriptor 7.
fn launch(python: &Python, command: &str, inlet: impl Into<OwnedFd>) -> Child {
    let mut tracker = python.program(command);
    tracker.env("PYTHONPATH", packages()).inherit(inlet, 7).spawn().unwrap()
}

fn other_trackers_of_python() {
    let python = pythons().pop().unwrap();
    for (kind, command) in [
        ("loky", "from loky.backend.resource_tracker import main; main(7, False)"),
        (
            "joblib",
            "from joblib.externals.loky.backend.resource_tracker import main; main(7, True)",
        ),
        ("multiprocess", "from multiprocess.resource_tracker import main;main(7)"),
        ("billiard", "from billiard.semaphore_tracker import main;main(7)"),
    ] {
        let (reader, writer) = pipe().unwrap();
        let mut child = launch(&python, command, reader);
        let found = tracker(child.id(), |one| one["clients"] != json!([]));
        assert_eq!(found["kind"], kind);
        assert_eq!(pids(&found), [std::process::id()]);
        assert_eq!(found["orphaned"], false);
        // To one tracker by its pid, it is the same.
        let pid = child.id().to_string();
        let probe = rtrack(["probe", "--json", "--pid", &pid]).finish().expect(0).json();
        assert_eq!((&probe["kind"], &probe["pid"]), (&json!(kind), &json!(child.id())));
        // billiard's would be told a name with its type, which it does not understand.
        let told = rtrack(["send", "--pid", &pid, "PROBE"]).finish();
        let told = told.expect(if kind == "billiard" { 2 } else { 0 });
        assert_eq!(told.stderr.contains("without a type"), kind == "billiard", "{}", told.stderr);
        drop(writer);
        child.wait().unwrap();
    }
    // The same command line with something else to read is none.
    let null = File::open("/dev/zero").unwrap();
    let forever = "from loky.backend.resource_tracker import main; main(7, sys) or 1";
    let forever = forever.replace("main(7, sys) or 1", "main(7); import time; time.sleep(1000)");
    let mut child = launch(&python, &forever, null);
    let line = format!("/proc/{}/cmdline", child.id());
    wait_for("the program", || {
        fs::read(&line).unwrap().windows(7).any(|part| part == b"main(7)").then_some(())
    });
    assert_eq!(trackers(), [] as [Value; 0]);
    kill(child.id());
    child.wait().unwrap();
}

fn left_behind() {
    let sleep = format!(
        "{ENSURE}time.sleep(0.05)\nfd = tracker._fd\n\
         other = subprocess.Popen(['sleep', '{SLEEP}'], pass_fds=[fd])\n\
         print(tracker._pid, other.pid, flush=True)\nsys.stdin.read()"
    );
    let worker = format!(
        "{ENSURE}time.sleep(0.05)\nother = os.fork()\n\
         if not other:\n    time.sleep({SLEEP})\n\
         print(tracker._pid, other, flush=True)\nsys.stdin.read()"
    );
    let python = pythons().pop().unwrap();
    for source in [sleep, worker] {
        let mut program = Program::start(&python, &source);
        let (pid, stray) = (program.pids[0], program.pids[1]);
        let found = tracker(pid, |one| pids(one).len() == 2);
        assert_eq!(found["orphaned"], false, "{found}");
        program.kill();
        let found = tracker(pid, |one| pids(one).len() == 1);
        assert_eq!(pids(&found), [stray]);
        assert_eq!(found["orphaned"], true, "{found}");
        // A client that is no stray: this one was there before.
        let inlet = format!("/proc/{stray}/fd");
        let write_end = fs::read_dir(inlet).unwrap().flatten().find_map(|fd| {
            let link = fs::read_link(fd.path()).ok()?;
            let tracker_reads = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let mut links = tracker_reads.filter_map(|fd| fs::read_link(fd.path()).ok());
            let number = fd.file_name().to_str()?.parse::<i32>().ok()?;
            (number > 2 && links.any(|other| other == link)).then(|| fd.path())
        });
        let write_end = fs::OpenOptions::new().write(true).open(write_end.unwrap()).unwrap();
        let found = tracker(pid, |one| pids(one).len() == 2);
        assert_eq!(found["orphaned"], false, "{found}");
        drop(write_end);
        assert_eq!(tracker(pid, |_| true)["orphaned"], true);
        // Not ours to wait for: the first process of the namespace does.
        kill(stray);
        wait_for("the tracker's end", || trackers().is_empty().then_some(()));
    }
}

/// A service that leaves its session after it has started its tracker, as daemon(3) does, and one that a
/// killed program has left in its own session.
fn a_program_that_became_a_daemon() {
    let daemon = format!(
        "{ENSURE}time.sleep(0.05)\n\
         if os.fork(): os._exit(0)\n\
         os.setsid()\n\
         if os.fork(): os._exit(0)\n\
         print(tracker._pid, os.getpid(), flush=True)\ntime.sleep({SLEEP})"
    );
    let worker = format!(
        "{ENSURE}time.sleep(0.05)\nother = os.fork()\n\
         if not other:\n    print(tracker._pid, os.getpid(), flush=True)\n    time.sleep({SLEEP})\n"
    );
    let worker = format!("os = __import__('os')\nos.setsid()\n{worker}os.kill(os.getpid(), 9)");
    let python = pythons().pop().unwrap();
    for (source, orphaned) in [(daemon, Value::Null), (worker, json!(true))] {
        let mut program = Program::start(&python, &source);
        program.child.wait().unwrap();
        let service = program.pids[1];
        let found = tracker(program.pids[0], |one| pids(one) == [service]);
        assert_eq!(found["orphaned"], orphaned, "{found}");
        // Not ours to wait for: the first process of the namespace does.
        kill(service);
        wait_for("the tracker's end", || trackers().is_empty().then_some(()));
    }
}

fn workers_and_daemons() {
    let pool = "\
import os, sys, multiprocessing as m
from multiprocessing import resource_tracker as r
if __name__ == '__main__':
    r.ensure_running()
    pool = m.get_context('fork').Pool(2)
    print(r._resource_tracker._pid, flush=True)
    sys.stdin.read()
    pool.terminate()
";
    let python = pythons().pop().unwrap();
    let mut program = Program::start(&python, pool);
    let found = tracker(program.pids[0], |one| pids(one).len() == 3);
    assert_eq!(found["orphaned"], false, "{found}");
    drop(program.child.stdin.take());
    program.child.wait().unwrap();
    let daemon = "\
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
from multiprocessing import resource_tracker as r
r.ensure_running()
print(r._resource_tracker._pid, os.getpid(), flush=True)
time.sleep(1000)
";
    let mut program = Program::start(&python, daemon);
    program.child.wait().unwrap();
    let found = tracker(program.pids[0], |_| true);
    assert_eq!(pids(&found), [program.pids[1]]);
    assert_eq!(found["orphaned"], false, "{found}");
    kill(program.pids[1]);
    wait_for("the tracker's end", || trackers().is_empty().then_some(()));
}

/// `rtrack daemon`, which reads `inlet`.
fn daemon(inlet: impl Into<OwnedFd>) -> Child {
    let mut command = rtrack(["daemon", "--fd", "5"]);
    command.inherit(inlet, 5).stderr(Stdio::null()).spawn().unwrap()
}

fn end(mut child: Child) {
    kill(child.id());
    child.wait().unwrap();
}

fn rtrack_on_a_pipe() {
    let (reader, mut writer) = pipe().unwrap();
    let child = daemon(reader);
    let found = tracker(child.id(), |one| one["reads"] == "pipe");
    assert_eq!((&found["kind"], &found["version"]), (&json!("rtrack"), &Value::Null));
    assert_eq!(pids(&found), [std::process::id()]);
    assert_eq!(found["orphaned"], false);
    assert_eq!(found["clients"][0]["uid"], nix::unistd::geteuid().as_raw());
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the call touches no memory, and the child has not been waited for.
    check(unsafe { libc::kill(pid, libc::SIGSTOP) }).unwrap();
    tracker(child.id(), |one| one["stopped"] == true);
    writer.write_all(b"PROBE:0:noop\n").unwrap();
    assert_eq!(tracker(child.id(), |_| true)["queued"], 13);
    // SAFETY: as above.
    check(unsafe { libc::kill(pid, libc::SIGCONT) }).unwrap();
    drop(writer);
    // That it was looked at has not kept it from the end of input.
    let mut child = child;
    assert!(child.wait().unwrap().success());
    assert_eq!(trackers(), [] as [Value; 0]);
}

fn a_fifo_and_a_threads_own_table() {
    let fifo = path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let holder = hold("thread-table", &fifo);
    let child = daemon(File::open(&fifo).unwrap());
    let found = tracker(child.id(), |one| one["reads"] == "fifo");
    assert_eq!(pids(&found), [holder.pid]);
    assert_eq!((&found["orphaned"], &found["all_clients"]), (&Value::Null, &json!(true)));
    drop(holder);
    end(child);
}

fn sockets() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = daemon(theirs);
    let found = tracker(child.id(), |one| one["reads"] == "socket" && pids(one).len() == 1);
    assert_eq!(pids(&found), [std::process::id()]);
    assert_eq!(found["orphaned"], Value::Null);
    drop(ours);
    end(child);
    let socket = path("manager.sock");
    let mut command = Command::new("/proc/self/exe");
    command.arg0("/opt/torch/bin/torch_shm_manager").args(["__hold", "server-of-one"]);
    let manager = start(command.arg(&socket));
    let found = tracker(manager.pid, |_| true);
    assert_eq!((&found["kind"], &found["clients"]), (&json!("torch_shm_manager"), &json!([])));
    let client = UnixStream::connect(&socket).unwrap();
    let found = tracker(manager.pid, |one| pids(one).len() == 1);
    assert_eq!(pids(&found), [std::process::id()]);
    assert_eq!((&found["reads"], &found["orphaned"]), (&json!("socket"), &Value::Null));
    drop(client);
}

fn a_program_that_looks_like_one() {
    let text = "from multiprocessing.resource_tracker import main;main(5)";
    let (reader, _writer) = pipe().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("sleep {SLEEP}; true"), text]).inherit(reader, 5);
    let mut child = command.process_group(0).spawn().unwrap();
    drop(command);
    let line = format!("/proc/{}/cmdline", child.id());
    wait_for("the shell", || fs::read(&line).unwrap().starts_with(b"sh\0-c").then_some(()));
    assert_eq!(trackers(), [] as [Value; 0]);
    let group = i32::try_from(child.id()).unwrap();
    // SAFETY: the call touches no memory, and the group is the child's own.
    check(unsafe { libc::kill(-group, libc::SIGKILL) }).unwrap();
    child.wait().unwrap();
}

/// A program that is called as `rtrack daemon` is, but a script, and reads `inlet` as descriptor 5.
fn called_rtrack(inlet: impl Into<OwnedFd>) -> Child {
    fs::write(scratch().join("daemon"), format!("sleep {SLEEP} 5<&-\ntrue\n")).unwrap();
    let mut command = Command::new(program_called("rtrack", "sh"));
    command.args(["daemon", "--fd", "5"]).current_dir(scratch());
    command.inherit(inlet, 5).process_group(0).spawn().unwrap()
}

fn files_that_never_answer() {
    let file = fuse::OpensOnly::mount();
    let mut child = called_rtrack(file.open());
    let found = tracker(child.id(), |one| one["kind"] == "rtrack" && one["note"] != Value::Null);
    assert_eq!((&found["reads"], &found["clients"]), (&Value::Null, &Value::Null));
    assert!(found["note"].as_str().unwrap().contains("never answer"), "{found}");
    let pid = child.id().to_string();
    let answer = rtrack(["probe", "--json", "--pid", &pid]).finish().expect(3).json();
    assert!(answer["says"].as_str().unwrap().contains("never answer"), "{answer}");
    // Neither is it looked at for being a client, or a reader, of a named pipe.
    let fifo = path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let holder = hold("fd-write", &fifo);
    let reads_fifo = daemon(File::open(&fifo).unwrap());
    let found = tracker(reads_fifo.id(), |one| one["reads"] == "fifo");
    assert_eq!(pids(&found), [holder.pid]);
    end(reads_fifo);
    let group = i32::try_from(child.id()).unwrap();
    // SAFETY: the call touches no memory, and the group is the child's own.
    check(unsafe { libc::kill(-group, libc::SIGKILL) }).unwrap();
    child.wait().unwrap();
    drop(file);
}

fn command_lines_that_never_come() {
    let _silent = fuse::process_without_cmdline();
    let (reader, writer) = pipe().unwrap();
    let child = daemon(reader);
    let found = tracker(child.id(), |one| one["reads"] == "pipe");
    assert_eq!(pids(&found), [std::process::id()]);
    let mut command = rtrack(["probe", "--all", "--json", "--assume-complete", "--strict"]);
    let answer = command.finish().expect(3);
    assert!(answer.stderr.contains("1 process does not say"), "{answer:?}");
    assert_eq!(answer.json()["sight"]["nameless"], 1);
    drop(writer);
    let mut child = child;
    child.wait().unwrap();
}

fn of_other_users() {
    let (reader, writer) = pipe().unwrap();
    let child = daemon(reader);
    tracker(child.id(), |one| one["reads"] == "pipe");
    let all = ["probe", "--all", "--json", "--assume-complete"];
    let answer = rtrack(all).as_user(somebody()).finish().expect(0);
    assert!(answer.stderr.contains("could not be looked into"), "{answer:?}");
    let answer = answer.json();
    let found = &answer["trackers"][0];
    assert_eq!(found["pid"], child.id());
    for unknown in ["reads", "clients", "queued", "orphaned"] {
        assert_eq!(found[unknown], Value::Null, "{unknown}: {found}");
    }
    assert!(found["note"].as_str().unwrap().contains("descriptors"), "{found}");
    assert!(found["memory"].as_u64().unwrap() > 0);
    assert_eq!((&found["uid"], &found["all_clients"]), (&json!(0), &json!(false)));
    rtrack(all).arg("--strict").as_user(somebody()).finish().expect(3);
    rtrack(all).arg("--strict").finish().expect(0);
    drop(writer);
    let mut child = child;
    child.wait().unwrap();
}

/// Whoever has the read end open, for a moment only, takes messages that nobody reads any more. Here it
/// cannot be opened.
fn what_waits_is_asked_at_the_write_end() {
    let (reader, writer) = pipe().unwrap();
    let mut writer = File::from(OwnedFd::from(writer));
    fchown(&writer, Some(somebody()), None).unwrap();
    writer.set_permissions(fs::Permissions::from_mode(0o200)).unwrap();
    let mut command = rtrack(["daemon", "--fd", "5"]);
    let mut child = command.inherit(reader, 5).as_user(somebody()).spawn().unwrap();
    drop(command);
    tracker(child.id(), |one| one["reads"] == "pipe");
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the call touches no memory, and the child has not been waited for.
    check(unsafe { libc::kill(pid, libc::SIGSTOP) }).unwrap();
    tracker(child.id(), |one| one["stopped"] == true);
    writer.write_all(b"PROBE:0:noop\n").unwrap();
    let all = ["probe", "--all", "--json", "--assume-complete"];
    let answer = rtrack(all).as_user(somebody()).finish().expect(0).json();
    assert_eq!(answer["trackers"][0]["queued"], 13, "{answer}");
    // SAFETY: as above.
    check(unsafe { libc::kill(pid, libc::SIGCONT) }).unwrap();
    drop(writer);
    assert!(child.wait().unwrap().success());
}

fn table_and_options() {
    let (reader, writer) = pipe().unwrap();
    let child = daemon(reader);
    tracker(child.id(), |one| one["reads"] == "pipe");
    let text = rtrack(["probe", "--all", "--assume-complete"]).finish().expect(0).text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let headings: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(
        headings,
        ["PID", "KIND", "USER", "SINCE", "QUEUED", "MEMORY", "ORPHANED", "CLIENTS"]
    );
    assert!(lines[1].contains(&format!(" {}", std::process::id())), "{text}");
    assert!(lines[1].contains(" no "), "{text}");
    let chosen = ["probe", "--all", "-o", "kind,pid,reads", "--no-headings"];
    let text = rtrack(chosen).finish().expect(0).text();
    assert_eq!(text, format!("rtrack  {}  pipe\n", child.id()));
    for wrong in [
        &["probe", "--all", "--pid", "1"][..],
        &["probe", "--all", "--fd", "1"],
        &["probe", "--all", "-o", "nothing"],
        &["probe", "--all", "--json", "-o", "pid"],
        &["probe", "--pid", "1", "--strict"],
        &["probe", "--pid", "1", "--assume-complete"],
    ] {
        rtrack(wrong).finish().expect(2);
    }
    assert!(Path::new("/proc").join(child.id().to_string()).exists());
    drop(writer);
    let mut child = child;
    assert!(child.wait().unwrap().success());
    let answer = rtrack(["probe", "--all", "--json"]).finish().expect(0).json();
    assert_eq!(answer["trackers"], json!([]));
}
