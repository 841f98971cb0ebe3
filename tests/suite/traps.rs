//! Situations in which a live program's object looks dead, or a dead one's alive: each is built
//! for real, and the verdict, its reason, and what `reap` does are checked while it lasts and
//! after it has ended.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::clocks::pretend_start;
use crate::support::{
    Case, Finish, Need, Python, case, check, evidence, goes, hold, judged, kill, known, list,
    listed, mount, named, names, object, path, pythons, reap, rtrack, scratch, sem_open, skip,
    somebody, stays, stays_by_default, verdict, wait_for,
};

/// Most cases have a PID namespace of their own, and the operator vouches that nothing outside
/// uses the mount: then nothing on the machine but what the case starts is evidence.
pub(crate) fn tests() -> Vec<Case> {
    const ALONE: &[Need] = &[Need::PidNamespace];
    const PYTHON: &[Need] = &[Need::PidNamespace, Need::Python];
    const USERS: &[Need] = &[Need::PidNamespace, Need::RealRoot];
    const USERS_PYTHON: &[Need] = &[Need::PidNamespace, Need::RealRoot, Need::Python];
    vec![
        // Absence of a process proves little.
        case("memory_that_nobody_tracks", memory_that_nobody_tracks).needs(PYTHON),
        case("creator_that_forked_and_died", creator_that_forked_and_died).needs(PYTHON),
        case("child_of_another_program", child_of_another_program).needs(ALONE),
        case("root_daemon_with_a_users_uid", root_daemon_with_a_users_uid).needs(USERS_PYTHON),
        case("root_daemon_that_keeps_a_users_uid", root_daemon_that_keeps_a_users_uid).needs(USERS),
        case("wanted_by_another_user", wanted_by_another_user).needs(USERS_PYTHON),
        case("workers_that_outlive_their_parent", workers_that_outlive_their_parent).needs(PYTHON),
        case("server_that_maps_nothing", server_that_maps_nothing).needs(ALONE),
        case("server_under_another_title", server_under_another_title).needs(ALONE),
        // Guardians.
        case("tracker_younger_than_the_object", tracker_younger_than_the_object).needs(PYTHON),
        case("guardians_by_the_clock", guardians_by_the_clock).needs(ALONE),
        case("forged_command_lines", forged_command_lines).needs(ALONE),
        // Names.
        case("temporary_name_of_a_semaphore", temporary_name_of_a_semaphore).needs(ALONE),
        case("name_that_was_moved", name_that_was_moved).needs(ALONE),
        case("equal_path_elsewhere", equal_path_elsewhere).needs(ALONE),
        case("pid_of_a_nested_namespace", pid_of_a_nested_namespace).needs(ALONE),
        case("pid_of_a_namespace_without_the_mount", pid_of_a_namespace_without_the_mount)
            .needs(ALONE),
        case("descendant_in_a_nested_namespace", descendant_in_a_nested_namespace).needs(ALONE),
    ]
}

/// A name of a producer whose live owners always hold its objects.
const ALWAYS_HELD: &str = "mpich_shar_tmpTrapA1";
/// A name of Python's memory: the proof needs sight of every process.
const PYTHONS: &str = "psm_0a1b2c3d";

/// A program of several lines of output, which ends when its stdin does; killed on drop.
struct Talker {
    child: Child,
    // Apart: waiting for a child closes what it has of these.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Talker {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { stdin: child.stdin.take(), stdout, child }
    }

    #[track_caller]
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it ended");
        line.trim().to_owned()
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.hear()
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

/// The newest Python that runs here, as every user.
fn python() -> Python {
    let all = pythons();
    let usable = all.iter().rev().find_map(Python::for_everybody);
    usable.unwrap_or_else(|| skip(format_args!("none of {} Pythons can be run here", all.len())))
}

/// A copy of a small program under another name.
pub(crate) fn program_called(name: &str, original: &str) -> PathBuf {
    let copy = scratch().join(name);
    let found = ["/bin", "/usr/bin"].iter().map(|place| Path::new(place).join(original));
    fs::copy(found.into_iter().find(|place| place.exists()).unwrap(), &copy).unwrap();
    copy
}

/// Waits until nothing is left of a process, not even a zombie.
fn gone(pid: u32) {
    let entry = PathBuf::from(format!("/proc/{pid}"));
    wait_for("the end of a process", || (!entry.exists()).then_some(()));
}

/// A pid that no process has any more.
fn dead_pid() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

// ---------------------------------------------------------------- absence of a process

/// Makes memory of which no resource tracker knows, and lets go of it; opens it again when asked.
const UNTRACKED: &str = "
import os, sys
try:
    from multiprocessing import shared_memory
    memory = shared_memory.SharedMemory(create=True, size=4096, track=False)
    memory.close()
    name = '/' + memory.name.strip('/')
except TypeError:  # before 3.13
    import _posixshmem
    name = '/psm_' + os.urandom(4).hex()
    memory = _posixshmem.shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
    os.close(memory)
print(name[1:], flush=True)
for line in sys.stdin:
    os.close(os.open('/dev/shm' + name, os.O_RDWR))
    print('opened', flush=True)
";

/// CPython with `track=False`: nobody holds the memory, no tracker exists, the program wants it.
fn memory_that_nobody_tracks() {
    let mut program = Talker::start(&mut python().program(UNTRACKED));
    let name = program.hear();
    let document = judged(&name, "unclaimed", "family-alive");
    known(&document, &name, "lease-granted");
    assert!(!evidence(&document, &name).contains(&"guardian-alive"), "there is no tracker");
    stays_by_default(&name);
    assert_eq!(program.ask("open"), "opened");
    drop(program);
    goes(&name, "no-family");
}

/// Makes two objects, forks, and ends; the child, younger than both, wants them.
const FORKED: &str = "
import os, sys
names = [f'torch_{os.getpid()}_1_0', 'psm_' + os.urandom(4).hex()]
for name in names:
    os.close(os.open('/dev/shm/' + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
if os.fork() > 0:
    os._exit(0)
print(*names, flush=True)
for line in sys.stdin:
    for name in names:
        os.close(os.open('/dev/shm/' + name, os.O_RDWR))
    print('opened', flush=True)
";

fn creator_that_forked_and_died() {
    let mut program = Talker::start(&mut python().program(FORKED));
    let line = program.hear();
    let (of_torch, of_python) = line.split_once(' ').unwrap();
    program.child.wait().unwrap();
    let document = judged(of_torch, "unclaimed", "family-alive");
    known(&document, of_torch, "creator-dead");
    judged(of_python, "unclaimed", "family-alive");
    stays_by_default(of_torch);
    stays_by_default(of_python);
    assert_eq!(program.ask("open"), "opened");
    // The child ends with its stdin.
    drop(program.stdin.take());
    program.stdout.read_to_end(&mut Vec::new()).unwrap();
    wait_for("the child's end", || (verdict(&list(), of_torch).0 == "orphaned").then_some(()));
    judged(of_python, "orphaned", "no-family");
    goes(of_torch, "no-family");
    assert!(names().is_empty());
}

/// The creator's child runs another program than its family; what tells is its session or group.
fn child_of_another_program() {
    for lead in [lead_a_session, lead_a_group] {
        let script =
            "umask 077; echo > /dev/shm/torch_$$_1_0; sleep 1000 > /dev/null 2>&1 & echo $!";
        let mut creator = Command::new("sh");
        creator.args(["-c", script]);
        lead(&mut creator);
        let run = creator.finish().expect(0);
        let child = run.text().trim().parse::<u32>().unwrap();
        let name = names().pop_first().unwrap().into_string().unwrap();
        let document = judged(&name, "unclaimed", "family-alive");
        known(&document, &name, "creator-dead");
        stays_by_default(&name);
        kill(child);
        gone(child);
        goes(&name, "no-family");
    }
}

fn lead_a_group(command: &mut Command) {
    command.process_group(0);
}

fn lead_a_session(command: &mut Command) {
    // SAFETY: between fork and exec one system call is made.
    unsafe { command.pre_exec(|| check(libc::setsid()).map(drop)) };
}

/// Root takes a user's uid to make an object, and gives it back; `both` takes the group as well.
const DAEMON: &str = "
import os, sys
uid = int(sys.argv[1])
if sys.argv[2] == 'both':
    os.setgroups([])
    os.setegid(uid)
os.seteuid(uid)
for name in sys.argv[3:]:
    os.close(os.open('/dev/shm/' + name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
os.seteuid(0)
os.setegid(0)
print('made', flush=True)
sys.stdin.read()
";

fn root_daemon_with_a_users_uid() {
    let user = somebody();
    let daemon = |what: &str| {
        let mut command = python().program(DAEMON);
        command.args([&user.to_string(), what, PYTHONS, "unheard_of"]);
        let mut daemon = Talker::start(&mut command);
        assert_eq!(daemon.hear(), "made");
        daemon
    };
    // It left its group on them: root's processes count.
    let running = daemon("uid");
    assert_eq!(
        fs::metadata(path(PYTHONS)).map(|meta| (meta.uid(), meta.gid())).unwrap(),
        (user, 0)
    );
    let document = judged(PYTHONS, "unclaimed", "family-alive");
    assert_eq!(verdict(&document, "unheard_of"), ("unclaimed", "unknown-producer"));
    known(&document, "unheard_of", "kin-alive");
    stays_by_default(PYTHONS);
    stays_by_default("unheard_of");
    drop(running);
    let document = judged(PYTHONS, "orphaned", "no-family");
    assert_eq!(verdict(&document, "unheard_of"), ("orphaned", "no-kin"));
    reap("orphaned");
    assert!(names().is_empty());
    // One that takes the group, too, leaves no trace. That is a limit, and documented as one: what
    // protects such objects is the grace period, or an entry of the operator's own.
    let _running = daemon("both");
    let document = judged(PYTHONS, "orphaned", "no-family");
    assert_eq!(verdict(&document, "unheard_of"), ("orphaned", "no-kin"));
    let mut young = rtrack(["list", "--json", "--assume-complete"]);
    assert_eq!(verdict(&young.finish().expect(0).json(), PYTHONS), ("claimed", "too-young"));
}

/// As long as any of its four uids is the user's, a process is the user's.
fn root_daemon_that_keeps_a_users_uid() {
    let user = somebody();
    object().owner(user).make("unheard_of");
    for which in ["real-uid", "effective-uid", "saved-uid", "fs-uid"] {
        judged("unheard_of", "orphaned", "no-kin");
        let daemon = hold(&format!("{which}={user}:nothing"), "/");
        let document = judged("unheard_of", "unclaimed", "unknown-producer");
        known(&document, "unheard_of", "kin-alive");
        stays_by_default("unheard_of");
        drop(daemon);
    }
    goes("unheard_of", "no-kin");
}

/// The mode lets everybody in, and somebody else's Python may open it.
fn wanted_by_another_user() {
    let (owner, other) = (somebody(), somebody() + 1);
    object().owner(owner).mode(0o666).make(PYTHONS);
    object().owner(owner).mode(0o666).make("unheard_of");
    let mut command = python().program("import sys; print('up', flush=True); sys.stdin.read()");
    let mut program = Talker::start(command.as_user(other));
    program.hear();
    let document = judged(PYTHONS, "unclaimed", "family-alive");
    known(&document, PYTHONS, "shared-mode");
    stays_by_default(PYTHONS);
    stays_by_default("unheard_of");
    drop(program);
    judged("unheard_of", "unclaimed", "unknown-producer");
    goes(PYTHONS, "no-family");
    // Private, it would be nobody's.
    fs::set_permissions(path("unheard_of"), Permissions::from_mode(0o600)).unwrap();
    goes("unheard_of", "no-kin");
}

/// As loky names and keeps things: a worker whose parent died has the semaphore mapped, and will
/// open the arrays by name; loky's tracker outlives them all.
fn workers_that_outlive_their_parent() {
    let parent = dead_pid();
    let semaphore = format!("sem.loky-{parent}-abcdefgh");
    let arrays = format!("joblib_memmapping_folder_{parent}_0123456789abcdef_0123456789abcdef");
    object().size(32).make(&semaphore);
    DirBuilder::new().mode(0o700).create(path(&arrays)).unwrap();
    object().make(format!("{arrays}/{parent}-140000000000000-abc.pkl"));

    let worker = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 32)
os.close(fd)
print('mapped', flush=True)
sys.stdin.read()
";
    let mut worker = python().program(worker);
    let mut worker = Talker::start(worker.arg(path(&semaphore)));
    worker.hear();
    let document = judged(&semaphore, "held", "lease-refused");
    known(&document, &semaphore, "creator-dead");
    named(&document, &semaphore, worker.pid());
    assert_eq!(verdict(&document, &arrays), ("unclaimed", "family-alive"), "{document:#}");
    known(&document, &arrays, "creator-dead");
    stays_by_default(&semaphore);
    stays_by_default(&arrays);

    let tracker = "import sys; print('up', flush=True); sys.stdin.read()\n\
         if 0: from joblib.externals.loky.backend.resource_tracker import main";
    let mut tracker = Talker::start(&mut python().program(tracker));
    tracker.hear();
    drop(worker);
    for name in [&semaphore, &arrays] {
        judged(name, "claimed", "guardian-alive");
        stays(name);
    }
    drop(tracker);
    judged(&arrays, "orphaned", "no-family");
    goes(&semaphore, "always-held-producer");
}

/// A PostgreSQL server keeps segments that no process has mapped; without them it goes down.
fn server_that_maps_nothing() {
    object().make("PostgreSQL.541706152");
    let mut server = Command::new(program_called("postgres", "sleep"));
    let mut server = server.arg("1000").spawn().unwrap();
    runs(server.id(), "postgres");
    let document = judged("PostgreSQL.541706152", "claimed", "guardian-alive");
    known(&document, "PostgreSQL.541706152", "lease-granted");
    stays("PostgreSQL.541706152");
    server.kill().unwrap();
    server.wait().unwrap();
    goes("PostgreSQL.541706152", "no-family");
}

/// One that calls itself something else is known by its executable, one whose executable has
/// another name by what it calls itself.
fn server_under_another_title() {
    object().make("PostgreSQL.541706152");
    let mut server = Command::new(program_called("postgres", "sleep"));
    let mut server = server.arg0("main: database").arg("1000").spawn().unwrap();
    runs(server.id(), "postgres");
    judged("PostgreSQL.541706152", "unclaimed", "family-alive");
    stays_by_default("PostgreSQL.541706152");
    server.kill().unwrap();
    server.wait().unwrap();

    let mut server = Command::new("sleep");
    let mut server = server.arg0("postgres: checkpointer").arg("1000").spawn().unwrap();
    runs(server.id(), "sleep");
    judged("PostgreSQL.541706152", "claimed", "guardian-alive");
    stays("PostgreSQL.541706152");
    server.kill().unwrap();
    server.wait().unwrap();
    goes("PostgreSQL.541706152", "no-family");
}

/// Waits until a process runs the program of this name.
pub(crate) fn runs(pid: u32, name: &str) {
    wait_for("the program", || {
        let executable = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (executable.file_name()?.to_str()? == name).then_some(())
    });
}

// ---------------------------------------------------------------- guardians

/// CPython starts its tracker when the first object exists already.
fn tracker_younger_than_the_object() {
    let source = "
import sys
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=4096)
memory.close()
print(memory.name.strip('/'), resource_tracker._resource_tracker._pid, flush=True)
sys.stdin.read()
";
    for python in pythons() {
        let mut program = Talker::start(&mut python.program(source));
        let line = program.hear();
        let (name, tracker) = line.split_once(' ').unwrap();
        let tracker: u32 = tracker.parse().unwrap();
        // Until its program runs, it still has what its parent had open.
        wait_for("the tracker", || {
            let line = fs::read(format!("/proc/{tracker}/cmdline")).unwrap();
            String::from_utf8_lossy(&line).contains("resource_tracker import main").then_some(())
        });
        // The tracker has nothing to do until its pipe ends.
        let own = i32::try_from(tracker).unwrap();
        // SAFETY: the process belongs to a child that has not been waited for.
        check(unsafe { libc::kill(own, libc::SIGSTOP) }).unwrap();
        judged(name, "claimed", "guardian-alive");
        stays(name);
        // Its parent is gone: it will clean up, so it counts, whoever adopted it.
        program.child.kill().unwrap();
        program.child.wait().unwrap();
        judged(name, "claimed", "guardian-alive");
        stays(name);
        // SAFETY: the process is stopped, so the pid is still its own.
        check(unsafe { libc::kill(own, libc::SIGCONT) }).unwrap();
        gone(tracker);
        assert!(names().is_empty(), "{python}: its tracker cleans up");
    }
}

/// A shell called `python3` (that makes it one of the family) or otherwise, and its child with a
/// tracker's command line.
struct Trackers {
    parent: Talker,
    tracker: u32,
}

impl Trackers {
    fn start(parent: &Path) -> Self {
        // A script in a file: the parent's own command line must say nothing of trackers.
        let script = scratch().join("start");
        let tracker = "sh -c 'sleep 1000; : from multiprocessing.resource_tracker import main'";
        fs::write(&script, format!("{tracker} > /dev/null & echo $!; read end")).unwrap();
        let mut parent = Talker::start(Command::new(parent).arg(script));
        let tracker = parent.hear().parse().unwrap();
        wait_for("the tracker", || {
            let line = fs::read(format!("/proc/{tracker}/cmdline")).unwrap();
            String::from_utf8_lossy(&line).starts_with("sh\0").then_some(())
        });
        Self { parent, tracker }
    }
}

impl Drop for Trackers {
    fn drop(&mut self) {
        // Its own child is adopted, and belongs to nothing.
        kill(self.tracker);
        self.parent.child.kill().unwrap_or(());
        self.parent.child.wait().map(drop).unwrap_or(());
        gone(self.tracker);
    }
}

/// A guardian counts unless both it and its parent, a program of the family, are younger than the
/// object beyond doubt: then it is another program's.
fn guardians_by_the_clock() {
    object().make(PYTHONS);
    let family = program_called("python3", "sh");
    let stranger = program_called("stranger", "sh");
    let (before, after) = (-1_000_000_000, 1_000_000_000);
    for (parent, of_tracker, of_parent, reason) in [
        (&family, before, before, "guardian-alive"),
        (&family, after, before, "guardian-alive"),
        (&family, before, after, "guardian-alive"),
        (&family, after, after, "family-alive"),
        (&stranger, after, after, "guardian-alive"),
    ] {
        let running = Trackers::start(parent);
        pretend_start(running.tracker, PYTHONS, of_tracker);
        pretend_start(running.parent.pid(), PYTHONS, of_parent);
        let wanted = if reason == "family-alive" { "unclaimed" } else { "claimed" };
        judged(PYTHONS, wanted, reason);
        stays_by_default(PYTHONS);
    }
    // Adopted, it counts whatever its age.
    let mut running = Trackers::start(&family);
    running.parent.child.kill().unwrap();
    running.parent.child.wait().unwrap();
    pretend_start(running.tracker, PYTHONS, after);
    judged(PYTHONS, "claimed", "guardian-alive");
    stays(PYTHONS);
    drop(running);
    goes(PYTHONS, "no-family");
}

/// Whatever a process calls itself, that can only protect.
fn forged_command_lines() {
    object().make(PYTHONS);
    object().size(32).make("sem.mp-abcdefgh");
    object().make(ALWAYS_HELD);
    let mut forger = Command::new("sleep");
    forger.arg0("python3 -c from multiprocessing.resource_tracker import main; main(7)");
    let mut forger = forger.arg("1000").spawn().unwrap();
    runs(forger.id(), "sleep");
    let document = list();
    for (name, wanted, reason) in [
        (PYTHONS, "claimed", "guardian-alive"),
        ("mp-abcdefgh", "claimed", "guardian-alive"),
        (ALWAYS_HELD, "orphaned", "always-held-producer"),
    ] {
        assert_eq!(verdict(&document, name), (wanted, reason), "{document:#}");
    }
    stays(PYTHONS);
    stays("sem.mp-abcdefgh");
    forger.kill().unwrap();
    forger.wait().unwrap();

    // A name of its own protects, too: any program can take the name of another.
    let mut forger =
        Command::new(program_called("python3.13", "sleep")).arg("1000").spawn().unwrap();
    runs(forger.id(), "python3.13");
    judged(PYTHONS, "unclaimed", "family-alive");
    // And one that looks like rtrack's own tracker.
    let mut second = Command::new("sleep").arg0("rtrack daemon").arg("1000").spawn().unwrap();
    runs(second.id(), "sleep");
    judged(PYTHONS, "claimed", "guardian-alive");
    stays(PYTHONS);
    for forger in [&mut forger, &mut second] {
        forger.kill().unwrap();
        forger.wait().unwrap();
    }
    goes(PYTHONS, "no-family");
    reap("orphaned");
    assert!(names().is_empty());
}

// ---------------------------------------------------------------- names

/// The C library makes a semaphore under another name: that is the name in its creator's maps.
fn temporary_name_of_a_semaphore() {
    let semaphore = sem_open("/mp-abcdefgh", 1);
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains("/dev/shm/sem.")).unwrap();
    if !line.ends_with(" (deleted)") || line.contains("sem.mp-abcdefgh") {
        skip(format_args!("this C library makes semaphores otherwise: {line}"));
    }
    let document = judged("mp-abcdefgh", "held", "lease-refused");
    known(&document, "mp-abcdefgh", "mapped-by");
    named(&document, "mp-abcdefgh", std::process::id());
    stays("sem.mp-abcdefgh");
    drop(semaphore);
    goes("mp-abcdefgh", "always-held-producer");
}

/// The holder opened it under a name that it no longer has; `O_PATH`, so that only the scan tells.
fn name_that_was_moved() {
    object().make("once");
    for kind in ["fd-o-path", "own-mounts:fd-o-path", "own-pids:own-proc:fd-o-path"] {
        let holder = hold(kind, path("once"));
        fs::rename(path("once"), path(ALWAYS_HELD)).unwrap();
        object().make("once");
        let document = judged(ALWAYS_HELD, "held", "open-by");
        named(&document, ALWAYS_HELD, holder.pid);
        assert_eq!(verdict(&document, "once"), ("unclaimed", "unknown-producer"));
        stays_by_default(ALWAYS_HELD);
        drop(holder);
        goes(ALWAYS_HELD, "always-held-producer");
    }
}

/// A file of the same path, inode number and content, but on another tmpfs, is another object.
fn equal_path_elsewhere() {
    for kind in ["fd-read", "fd-o-path", "map-shared", "map-private"] {
        object().make(ALWAYS_HELD);
        let other = hold(&format!("equal-path:{kind}"), path(ALWAYS_HELD));
        let document = judged(ALWAYS_HELD, "orphaned", "always-held-producer");
        assert!(listed(&document, ALWAYS_HELD)["holders"].as_array().unwrap().is_empty());
        // And the right one counts beside it.
        let holder = hold(kind, path(ALWAYS_HELD));
        let document = list();
        assert_eq!(verdict(&document, ALWAYS_HELD).0, "held", "{document:#}");
        named(&document, ALWAYS_HELD, holder.pid);
        assert_eq!(listed(&document, ALWAYS_HELD)["holders"].as_array().map(Vec::len), Some(1));
        stays(ALWAYS_HELD);
        drop(holder);
        goes(ALWAYS_HELD, "always-held-producer");
        drop(other);
        fresh_shm();
    }
}

/// Another tmpfs in the place of the last one, so that the next object's inode number is the first.
pub(crate) fn fresh_shm() {
    mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=256M").unwrap();
}

/// The pid in a name is that of the creator's own PID namespace.
fn pid_of_a_nested_namespace() {
    let creator = hold("own-pids:creator", path("pym-@-abcdefgh"));
    let name = names().pop_first().unwrap().into_string().unwrap();
    let pid = name.split('-').nth(1).unwrap();
    assert!(!Path::new("/proc").join(pid).exists(), "{pid} is taken here, too");
    judged(&name, "claimed", "creator-alive");
    stays(&name);
    drop(creator);
    let document = judged(&name, "orphaned", "always-held-producer");
    known(&document, &name, "creator-dead");
    goes(&name, "always-held-producer");
}

/// Where the mount is not to be seen, such a pid belongs to somebody else.
fn pid_of_a_namespace_without_the_mount() {
    let stranger = hold("own-mounts:own-pids:creator-without-mount", path("pym-@-abcdefgh"));
    let name = names().pop_first().unwrap().into_string().unwrap();
    let document = judged(&name, "orphaned", "always-held-producer");
    known(&document, &name, "creator-dead");
    goes(&name, "always-held-producer");
    drop(stranger);
}

/// So are the numbers of its session and group.
fn descendant_in_a_nested_namespace() {
    let descendant = hold("own-pids:descendant", path("torch_@_1_0"));
    let name = names().pop_first().unwrap().into_string().unwrap();
    let document = judged(&name, "unclaimed", "family-alive");
    known(&document, &name, "creator-dead");
    stays_by_default(&name);
    drop(descendant);
    goes(&name, "no-family");
}
