//! What real Pythons leave behind when they are killed together with their resource tracker.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{
    Case, Finish, Holder, Need, Python, case, evidence, hold, hold_as, identity, is_real_root,
    kill, listed, names, note, object, path, pythons, rtrack, skip, somebody, verdict, wait_for,
};

/// Each scenario runs twice: as on a machine, where all processes can be seen and told apart, and
/// inside a PID namespace, where the operator has to vouch for what cannot be seen. In a user
/// namespace all strangers have the same uid, so the first one needs root.
pub(crate) fn tests() -> Vec<Case> {
    const MACHINE: &[Need] = &[Need::Python, Need::Alone, Need::RealRoot];
    const CONTAINER: &[Need] = &[Need::Python, Need::PidNamespace];
    vec![
        case("killed_with_its_tracker", || killed_with_its_tracker(&[])).needs(MACHINE),
        case("others_are_alive", || others_are_alive(&[])).needs(MACHINE),
        case("program_is_alive", || program_is_alive(&[])).needs(MACHINE),
        case("tracker_is_alive", || tracker_is_alive(&[])).needs(MACHINE),
        case("killed_with_its_tracker_in_a_container", || killed_with_its_tracker(VOUCH))
            .needs(CONTAINER),
        case("others_are_alive_in_a_container", || others_are_alive(VOUCH)).needs(CONTAINER),
        case("program_is_alive_in_a_container", || program_is_alive(VOUCH)).needs(CONTAINER),
        case("tracker_is_alive_in_a_container", || tracker_is_alive(VOUCH)).needs(CONTAINER),
    ]
}

/// The options with which an operator vouches.
const VOUCH: &[&str] = &["--assume-complete"];

/// Makes shared memory and a lock for spawned children, says what it made and who tracks it, and
/// waits. `close` leaves the memory without a descriptor or a mapping, as a program does that
/// passes its name on.
const PROGRAM: &str = "
import multiprocessing, sys
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=100000)
lock = multiprocessing.get_context('spawn').Lock()
tracker = resource_tracker._resource_tracker._pid
if sys.argv[1:] == ['close']:
    memory.close()
print(memory.name.strip('/'), lock._semlock.name.strip('/'), tracker, flush=True)
sys.stdin.read()
";

/// A running program, and what it made.
struct Program {
    child: Child,
    tracker: u32,
    memory: String,
    semaphore: String,
}

impl Program {
    fn start(python: &Python, arguments: &[&str]) -> Self {
        let mut command = python.program(PROGRAM);
        as_owner(&mut command).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let [memory, semaphore, tracker] = words[..] else { panic!("{python} said {line:?}") };
        // Until it is executed it is a copy of the program, which has the program's memory mapped.
        wait_for("the tracker to be one", || {
            let line = fs::read(format!("/proc/{tracker}/cmdline")).unwrap();
            let launch = b"resource_tracker import main";
            line.windows(launch.len()).any(|part| part == launch).then_some(())
        });
        Self {
            child,
            tracker: tracker.parse().unwrap(),
            memory: memory.to_owned(),
            semaphore: semaphore.to_owned(),
        }
    }

    /// `kill -9` of both: the tracker first, so that it does not clean up.
    fn kill_with_tracker(&mut self) {
        kill(self.tracker);
        self.kill();
        gone(self.tracker);
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn memory_and_semaphore(&self) -> [&str; 2] {
        [&self.memory, &self.semaphore]
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait().map(drop)).unwrap_or(());
    }
}

/// Waits until nothing is left of a process, not even a zombie.
fn gone(pid: u32) {
    wait_for("the end of a process", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
}

/// As whom the programs run: as root somebody who has no other process, otherwise this user.
fn as_owner(command: &mut Command) -> &mut Command {
    if is_real_root() { command.as_user(somebody()) } else { command }
}

fn hold_as_owner(kind: &str, name: &str) -> Holder {
    if is_real_root() { hold_as(somebody(), kind, path(name)) } else { hold(kind, path(name)) }
}

/// The Pythons that the owner can run. Where the owner has one running already, nothing can be
/// shown.
fn interpreters() -> Vec<Python> {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let maps = fs::read(entry.path().join("maps")).unwrap_or_default();
        let is_owners =
            is_real_root() && entry.metadata().is_ok_and(|meta| meta.uid() == somebody());
        if is_owners && String::from_utf8_lossy(&maps).contains("python") {
            skip(format_args!("its user runs a Python: {}", entry.path().display()));
        }
    }
    let all = pythons();
    let usable: Vec<Python> = all
        .iter()
        .filter_map(Python::for_everybody)
        .filter(|python| !is_real_root() || python.runs_as(somebody()))
        .collect();
    let shown: Vec<String> = usable.iter().map(Python::to_string).collect();
    if usable.is_empty() {
        skip(format_args!("none of {} Pythons can be run here", all.len()));
    }
    note(format_args!("ran {} of {} Pythons: {}", usable.len(), all.len(), shown.join(", ")));
    usable
}

/// Objects that have nothing to do with the leak: they must outlive every `reap`.
fn bystanders() -> Vec<&'static str> {
    object().make("my_cache");
    object().make("psm_not_one_of_python's");
    fs::create_dir(path("parked")).unwrap();
    object().make("parked/inside");
    vec!["my_cache", "parked", "psm_not_one_of_python's"]
}

fn list(options: &[&str]) -> Value {
    rtrack(["list", "--json", "--grace", "0s"]).args(options).finish().expect(0).json()
}

fn reap(options: &[&str], more: &[&str]) -> Value {
    let arguments = [&["reap", "--json", "--grace", "0s"], options, more].concat();
    rtrack(arguments).finish().expect(0).json()
}

fn only(expected: &[&str]) {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(names().into_iter().collect::<Vec<_>>(), expected);
}

fn killed_with_its_tracker(options: &[&str]) {
    let pythons = interpreters();
    let bystanders = bystanders();
    for python in &pythons {
        for arguments in [&[][..], &["close"]] {
            eprintln!("Python {python} {arguments:?}");
            let mut program = Program::start(python, arguments);
            program.kill_with_tracker();
            let file = format!("sem.{}", program.semaphore);

            let document = list(options);
            let memory = verdict(&document, &program.memory);
            assert_eq!(memory, ("orphaned", "no-family"), "{document:#}");
            let semaphore = verdict(&document, &program.semaphore);
            assert_eq!(semaphore, ("orphaned", "always-held-producer"), "{document:#}");
            assert_eq!(listed(&document, &program.semaphore)["file"], *file);
            let producer = &listed(&document, &program.memory)["producer"]["id"];
            assert_eq!(producer, "cpython-shared-memory");

            // The owner sees the same.
            if is_real_root() {
                let arguments = [&["list", "--json", "--grace", "0s"], options].concat();
                let theirs = as_owner(&mut rtrack(arguments)).finish().expect(0).json();
                for name in program.memory_and_semaphore() {
                    assert_eq!(verdict(&theirs, name), verdict(&document, name), "{theirs:#}");
                }
            }

            // Young objects are left alone, unless told otherwise.
            let young = rtrack(["list", "--json"]).finish().expect(0).json();
            for name in program.memory_and_semaphore() {
                assert_eq!(verdict(&young, name), ("claimed", "too-young"));
            }
            let check = || rtrack(["list", "--check", "--grace", "0s"]).args(options).finish();
            check().expect(1);

            let plan = reap(options, &["--dry-run"]);
            assert_eq!(plan["dry_run"], true);
            for name in program.memory_and_semaphore() {
                assert_eq!(listed(&plan, name)["outcome"], "would-reap", "{plan:#}");
            }
            assert!(identity(&program.memory).is_some() && identity(&file).is_some());
            let shown = rtrack(["reap", "-n", "--grace", "0s"]).args(options).finish().expect(0);
            let shown = shown.text() + &shown.stderr;
            for name in program.memory_and_semaphore() {
                assert!(shown.contains(name), "{shown}");
            }

            let report = reap(options, &["--yes"]);
            for name in program.memory_and_semaphore() {
                assert_eq!(listed(&report, name)["outcome"], "reaped", "{report:#}");
            }
            only(&bystanders);
            check().expect(0);
        }
    }
}

/// A second object is mapped, a third is open and was never mapped, and a Python of that user
/// lives that has nothing to do with any of it.
fn others_are_alive(options: &[&str]) {
    let pythons = interpreters();
    let python = pythons.last().unwrap();
    let mut program = Program::start(python, &[]);
    let mut second = Program::start(python, &[]);
    let mut third = Program::start(python, &[]);
    let mapped = hold_as_owner("map-shared", &second.memory);
    let opened = hold_as_owner("fd-read", &third.memory);
    for program in [&mut program, &mut second, &mut third] {
        program.kill_with_tracker();
    }
    let mut sleep = python.program("import sys; sys.stdin.read()");
    let mut sleeper = as_owner(&mut sleep).stdin(Stdio::piped()).spawn().unwrap();
    wait_for("a Python", || {
        let maps = fs::read(format!("/proc/{}/maps", sleeper.id())).unwrap_or_default();
        String::from_utf8_lossy(&maps).contains("python").then_some(())
    });

    let document = list(options);
    let memory = verdict(&document, &program.memory);
    assert_eq!(memory, ("unclaimed", "family-alive"), "{document:#}");
    for (program, holder) in [(&second, &mapped), (&third, &opened)] {
        assert_eq!(verdict(&document, &program.memory).0, "held", "{document:#}");
        let holders = &listed(&document, &program.memory)["holders"];
        assert_eq!(holders[0]["pid"], holder.pid, "{document:#}");
    }
    reap(options, &["--yes"]);
    // The semaphores' proof needs no sight of processes; everything else stays.
    only(&[&program.memory, &second.memory, &third.memory]);
    rtrack(["reap", "--yes", "--grace", "0s", "--force", &second.memory]).finish();
    only(&[&program.memory, &second.memory, &third.memory]);

    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert_eq!(verdict(&list(options), &program.memory), ("orphaned", "no-family"));
    reap(options, &["--yes", "--verdict", "orphaned,unclaimed"]);
    only(&[&second.memory, &third.memory]);
    drop((mapped, opened));
    reap(options, &["--yes"]);
    only(&[]);
}

/// The program lives and holds nothing: it can come back by name.
fn program_is_alive(options: &[&str]) {
    for python in interpreters() {
        let mut program = Program::start(&python, &["close"]);
        let document = list(options);
        let memory = verdict(&document, &program.memory);
        assert_eq!(memory, ("claimed", "guardian-alive"), "{python}: {document:#}");
        assert_eq!(verdict(&document, &program.semaphore).0, "held", "{python}: {document:#}");
        let file = format!("sem.{}", program.semaphore);
        reap(options, &["--yes", "--verdict", "orphaned,unclaimed"]);
        only(&[&program.memory, &file]);
        program.kill_with_tracker();
        reap(options, &["--yes"]);
        only(&[]);
    }
}

/// The program is dead, its tracker is stopped and will clean up when it goes on: that is its
/// business.
fn tracker_is_alive(options: &[&str]) {
    for python in interpreters() {
        let mut program = Program::start(&python, &[]);
        let tracker = i32::try_from(program.tracker).unwrap();
        // SAFETY: the process belongs to a child that has not been waited for.
        unsafe { libc::kill(tracker, libc::SIGSTOP) };
        program.kill();
        let document = list(options);
        for name in program.memory_and_semaphore() {
            assert_eq!(verdict(&document, name).0, "claimed", "{python}: {document:#}");
            let evidence = evidence(&document, name);
            assert!(evidence.contains(&"guardian-alive"), "{python}: {evidence:?}");
        }
        reap(options, &["--yes", "--verdict", "orphaned,unclaimed"]);
        only(&[&program.memory, &format!("sem.{}", program.semaphore)]);
        // SAFETY: the process is stopped, so the pid is still its own.
        unsafe { libc::kill(tracker, libc::SIGCONT) };
        gone(program.tracker);
        only(&[]);
    }
}
