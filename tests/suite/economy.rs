//! What `list` costs, by system calls and not by time: how many for each object, process and descriptor,
//! and that nothing is read that nobody asks about.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use crate::daemon::Daemon;
use crate::support::{
    Case, Finish, Need, case, hold, listed, object, path, rtrack, skip, validate, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    // Else what runs beside would count, too.
    const ALONE: &[Need] = &[Need::PidNamespace];
    vec![
        case("nothing_that_nobody_asks_about", nothing_that_nobody_asks_about).needs(ALONE),
        case("calls_for_each_object", calls_for_each_object).needs(ALONE),
        case("calls_for_each_process", calls_for_each_process).needs(ALONE),
        case("calls_for_each_descriptor", calls_for_each_descriptor).needs(ALONE),
        case("one_look_at_many_mappings", one_look_at_many_mappings).needs(ALONE),
        case("memory_for_processes", memory_for_processes).needs(ALONE),
        case("holders_as_asked_for", holders_as_asked_for).needs(ALONE),
        case("one_holder_is_enough", one_holder_is_enough).needs(ALONE),
        case("hard_links_by_several_threads", hard_links_by_several_threads),
        case("a_tracker_costs_little", a_tracker_costs_little),
    ]
}

/// The system calls of one run: how many of each name, and each line.
struct Calls {
    count: BTreeMap<String, i64>,
    lines: Vec<String>,
}

impl Calls {
    fn of(arguments: &[&str]) -> Self {
        Self::made_by(Command::new("strace"), arguments)
    }

    /// The same where all threads have one heap, since the address space is limited.
    fn in_one_heap(arguments: &[&str]) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "ulimit -v 1000000 && exec strace \"$@\"", "sh"]);
        Self::made_by(shell, arguments)
    }

    fn made_by(mut strace: Command, arguments: &[&str]) -> Self {
        if Command::new("strace").arg("-V").output().is_err() {
            skip("there is no strace");
        }
        let program = rtrack(arguments);
        strace.args(["-f", "-qq", "-o", "calls"]).arg(program.get_program()).args(arguments);
        let run = strace.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
        assert!(run.status.success(), "{run:?}");
        let text = fs::read(fs::canonicalize("calls").unwrap()).unwrap();
        let text = String::from_utf8_lossy(&text);
        let mut count: BTreeMap<String, i64> = BTreeMap::new();
        let mut lines = Vec::new();
        // How often threads are looked after is a matter of time: what that asks of one, up to its close, counts not.
        let mut looks_after = BTreeSet::new();
        for line in text.lines() {
            // `PID name(arguments) = result`, or its second half: `PID <... name resumed>`.
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let call = call.trim_start();
            if call.starts_with("openat(") && call.contains("\"/proc/self/task/") {
                looks_after.insert(pid);
            }
            if looks_after.contains(pid) {
                if call.starts_with("close(") {
                    looks_after.remove(pid);
                }
                continue;
            }
            if let Some((name, _)) = call.split_once('(').filter(|_| !call.starts_with('<')) {
                *count.entry(name.to_owned()).or_default() += 1;
                lines.push(call.to_owned());
            }
        }
        Self { count, lines }
    }

    /// How many calls ask for something: those by which threads start and wait and memory is had differ from run to run.
    fn all(&self) -> i64 {
        const ASKING: [&str; 12] = [
            "openat",
            "close",
            "read",
            "pread64",
            "readlink",
            "readlinkat",
            "statx",
            "newfstatat",
            "getdents64",
            "ioctl",
            "fcntl",
            "lseek",
        ];
        ASKING.iter().map(|name| self.named(name)).sum()
    }

    fn named(&self, name: &str) -> i64 {
        self.count.get(name).copied().unwrap_or(0)
    }

    /// Bytes that the heap has at the end beyond what it had first (brk(2)): the whole of it is there, if it is one.
    fn heap(&self) -> i64 {
        let end = |line: &String| {
            let result = line.strip_prefix("brk(")?.rsplit_once("= 0x")?.1;
            i64::from_str_radix(result.trim(), 16).ok()
        };
        let ends: Vec<i64> = self.lines.iter().filter_map(end).collect();
        ends.iter().max().unwrap() - ends.iter().min().unwrap()
    }

    fn with(&self, text: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(text)).count()
    }
}

/// Processes that only sleep; killed on drop.
struct Sleepers(Vec<Child>);

impl Sleepers {
    fn new(count: usize) -> Self {
        let sleep = || Command::new("sleep").arg("300").stdin(Stdio::null()).spawn().unwrap();
        let all: Vec<Child> = (0..count).map(|_| sleep()).collect();
        for child in &all {
            let exe = format!("/proc/{}/cmdline", child.id());
            wait_for("the program", || fs::read(&exe).unwrap().starts_with(b"sleep").then_some(()));
        }
        Self(all)
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn make(from: usize, to: usize) {
    for number in from..to {
        object().size(1).make(format!("economy-{number}"));
    }
}

/// The standard library asks of each descriptor whether it is open before it closes it, if it is built to check itself.
const ASKED_AT_CLOSE: f64 = if cfg!(debug_assertions) { 1.0 } else { 0.0 };

const VERDICTS: [&str; 6] = ["list", "--ndjson", "--grace", "0s", "--holders", "none"];
const HOLDERS: [&str; 4] = ["list", "--ndjson", "--grace", "0s"];

/// Where the kernel's answer decides, neither mappings nor descriptors are read, and no command lines; what
/// is too young is not even asked about.
fn nothing_that_nobody_asks_about() {
    make(0, 20);
    let holders = [hold("map-shared", path("economy-1")), hold("fd-read", path("economy-2"))];
    for arguments in [
        &VERDICTS[..],
        &["list", "-0", "--grace", "0s"],
        &["list", "-o", "id,verdict", "--grace", "0s"],
    ] {
        let calls = Calls::of(arguments);
        for file in ["\"maps\"", "\"fd\"", "fdinfo", "\"status\"", "cmdline", "/locks\""] {
            let lines = || calls.lines.iter().filter(|line| line.contains(file));
            // Our own standard streams and memory map are the runtime's business.
            let others = lines().filter(|line| !line.contains("/proc/self/")).count();
            // A process that is called rtrack may be a tracker: it is one itself.
            let most = if file == "\"status\"" { 1 } else { 0 };
            assert!(others <= most, "{arguments:?} {file}: {:?}", lines().next());
        }
        assert!(calls.with("F_SETLEASE, F_WRLCK") >= 20, "{arguments:?}");
        assert!(calls.with("\"stat\"") > 0, "{arguments:?}");
    }
    let calls = Calls::of(&HOLDERS);
    assert!(calls.with("\"maps\"") > 0 && calls.with("\"fd\"") > 0 && calls.with("fdinfo") > 0);
    let young = Calls::of(&["list", "--ndjson", "--holders", "none", "--grace", "1h"]);
    // Leases are tried out on a file of our own.
    assert!(young.with("F_SETLEASE, F_WRLCK") <= 3);
    drop(holders);
}

/// What a look at one more object costs: one statx; an `O_PATH` descriptor with another, a second one with its
/// lease, which is given back.
fn calls_for_each_object() {
    make(0, 100);
    let few = Calls::of(&VERDICTS);
    make(100, 300);
    let many = Calls::of(&VERDICTS);
    for (name, expected) in
        [("statx", 2.0), ("openat", 2.0), ("close", 2.0), ("fcntl", 3.0 + 2.0 * ASKED_AT_CLOSE)]
    {
        let each = (many.named(name) - few.named(name)) as f64 / 200.0;
        // What threads open for themselves is no object's.
        assert!((each - expected).abs() < 0.1, "{each} {name} for each object");
    }
    let all = (many.all() - few.all()) as f64 / 200.0;
    assert!(all < 10.5 + 2.0 * ASKED_AT_CLOSE, "{all} calls for each object");
    // To find out who holds them takes no more for each of them.
    let (verdicts, holders) = (Calls::of(&VERDICTS).all(), Calls::of(&HOLDERS).all());
    let before = few.all();
    assert!(holders - verdicts < before + 20 * 200, "{verdicts} {holders}");
}

fn calls_for_each_process() {
    make(0, 10);
    let few = (Calls::of(&VERDICTS), Calls::of(&HOLDERS));
    let sleepers = Sleepers::new(50);
    let many = (Calls::of(&VERDICTS), Calls::of(&HOLDERS));
    let each = |many: &Calls, few: &Calls| (many.all() - few.all()) as f64 / 50.0;
    let (verdicts, holders) = (each(&many.0, &few.0), each(&many.1, &few.1));
    // Its directory twice, `stat`, its namespace and its root; and what else it has to tell with its
    // mappings and its three descriptors.
    let counts = (&few.0.count, &many.0.count);
    assert!(verdicts < 12.0 + 3.0 * ASKED_AT_CLOSE, "{verdicts} for each process: {counts:?}");
    let counts = (&few.1.count, &many.1.count);
    assert!(holders < 36.0 + 8.0 * ASKED_AT_CLOSE, "{holders} for each process: {counts:?}");
    drop(sleepers);
}

/// One `readlink`, and whether it can be read or written at all, since no lease tells of one that cannot; only
/// where it may lead to an object is more asked.
fn calls_for_each_descriptor() {
    make(0, 10);
    let open = |count: usize| -> Vec<File> {
        (0..count).map(|_| File::open("/proc/self/exe").unwrap()).collect()
    };
    let before = open(20);
    let few = Calls::of(&HOLDERS);
    let more = open(200);
    let many = Calls::of(&HOLDERS);
    let each = (many.all() - few.all()) as f64 / 200.0;
    // What two threads both find out first, each for itself, makes a few more or less; a third call each would be 3.
    assert!((1.7..2.3).contains(&each), "{each} for each: {:?} {:?}", few.count, many.count);
    drop((before, more));
}

/// Private mappings cost nothing where the kernel finds the shared ones by itself.
fn one_look_at_many_mappings() {
    make(0, 10);
    let few = Calls::of(&HOLDERS);
    if few.with("PROCMAP_QUERY") == 0 && few.named("ioctl") < 5 {
        skip("the kernel is older than Linux 6.11");
    }
    let file = File::open("/proc/self/exe").unwrap();
    let length = std::num::NonZeroUsize::new(4096).unwrap();
    let (flags, read) =
        (nix::sys::mman::MapFlags::MAP_PRIVATE, nix::sys::mman::ProtFlags::PROT_READ);
    for number in 0..500 {
        let more = if number % 2 == 0 { nix::sys::mman::ProtFlags::PROT_WRITE } else { read };
        // SAFETY: the mapping is not used, and goes with the process.
        unsafe { nix::sys::mman::mmap(None, length, read | more, flags, &file, 0) }.unwrap();
    }
    let more = Calls::of(&HOLDERS).all() - few.all();
    // A call for each mapping would be 500 more.
    assert!(more < 100, "{more} more calls");
}

/// A process costs what is known of it, and nothing for what it has open and mapped.
fn memory_for_processes() {
    make(0, 10);
    let open = |count: usize| -> Vec<File> {
        (0..count).map(|_| File::open("/proc/self/exe").unwrap()).collect()
    };
    for arguments in [&VERDICTS[..], &HOLDERS] {
        let first = Calls::in_one_heap(arguments).heap();
        let files = open(400);
        let with_files = Calls::in_one_heap(arguments).heap();
        drop(files);
        let sleepers = Sleepers::new(100);
        let with_processes = Calls::in_one_heap(arguments).heap();
        drop(sleepers);
        let (files, processes) = (with_files - first, with_processes - first);
        assert!(files < 160 << 10, "{arguments:?}: {files} bytes for 400 descriptors");
        assert!(processes < 400 << 10, "{arguments:?}: {processes} bytes for 100 processes");
    }
}

/// `--holders` says what it does: a `null`, one, or all.
fn holders_as_asked_for() {
    make(0, 3);
    let holders: Vec<_> = (0..3).map(|_| hold("map-shared", path("economy-1"))).collect();
    let list = |whose: &str| -> serde_json::Value {
        let run = rtrack(["list", "--json", "--grace", "0s", "--holders", whose]).output().unwrap();
        serde_json::from_slice(&run.stdout).unwrap()
    };
    for (whose, count, complete) in
        [("all", Some(3), None), ("some", Some(1), Some(false)), ("none", None, None)]
    {
        let found = list(whose);
        validate(&found);
        assert_eq!(found["sight"]["holders"] == "not-sought", whose == "none");
        let one = listed(&found, "economy-1");
        assert_eq!(one["verdict"], "held", "{whose}");
        assert_eq!(one["holders"].as_array().map(Vec::len), count, "{whose}: {one:#}");
        assert_eq!(one.get("holders_complete").and_then(|c| c.as_bool()), complete, "{whose}");
        let free = listed(&found, "economy-2");
        assert_eq!(free["holders"].is_null(), whose == "none", "{whose}: {free:#}");
        assert!(!one["evidence"].to_string().contains("not visible here"), "{whose}: {one:#}");
    }
    let complete_of = |whose: &str, more: &[&str]| -> String {
        let words = ["list", "--grace", "0s", "--holders", whose, "-o", "holders_complete"];
        let run = rtrack(words).args(["economy-1", "--no-headings"]).args(more).finish();
        run.expect(0).text().trim().to_owned()
    };
    // Nobody sees out of a PID namespace.
    for (whose, complete) in [("all", "?"), ("some", "false"), ("none", "?")] {
        assert_eq!(complete_of(whose, &[]), complete, "{whose}");
    }
    assert_eq!(complete_of("all", &["--assume-complete"]), "true");
    assert_eq!(complete_of("none", &["--assume-complete"]), "?");
    let mut run = rtrack(["list", "--ndjson", "-o", "holders", "--holders", "some", "economy-1"]);
    let found = run.finish().expect(0).text();
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["holders_complete"], false, "{found:#}");
    drop(holders);
}

/// That one holder is enough hides none of another object, nor of what has no name.
fn one_holder_is_enough() {
    make(0, 3);
    object().size(1).make("economy-deleted");
    let holders = [
        hold("fd-o-path", path("economy-0")),
        hold("map-shared", path("economy-1")),
        hold("map-private", path("economy-2")),
        hold("map-shared-and-deleted", path("economy-deleted")),
    ];
    let list = |whose: &str| -> serde_json::Value {
        let run = rtrack(["list", "--json", "--grace", "0s", "--holders", whose]).output().unwrap();
        serde_json::from_slice(&run.stdout).unwrap()
    };
    let (all, some) = (list("all"), list("some"));
    for name in ["economy-0", "economy-1", "economy-2"] {
        let (all, some) = (listed(&all, name), listed(&some, name));
        assert_eq!(
            (&some["verdict"], &some["reason"]),
            (&all["verdict"], &all["reason"]),
            "{some:#}"
        );
        assert_eq!(some["holders"].as_array().map(Vec::len), Some(1), "{some:#}");
    }
    let deleted = |document: &serde_json::Value| {
        let objects = document["objects"].as_array().unwrap().iter();
        objects.filter(|object| object["deleted"] == true).count()
    };
    assert_eq!((deleted(&all), deleted(&some)), (1, 1));
    drop(holders);
}

/// Two names of one file are not asked about at once: each lease would refuse the other.
fn hard_links_by_several_threads() {
    // Two threads take a piece each, one with the files and one with their links.
    for block in 0..40 {
        make(64 * block, 64 * (block + 1));
        for number in 64 * block..64 * (block + 1) {
            let name = format!("economy-{number}");
            fs::hard_link(path(&name), path(format!("link-{name}"))).unwrap();
        }
    }
    for _ in 0..10 {
        let run = rtrack(VERDICTS).output().unwrap();
        let text = String::from_utf8(run.stdout).unwrap();
        assert_eq!(text.lines().count(), 2 * 64 * 40);
        assert!(!text.contains(r#""verdict":"held""#));
    }
}

/// A tracker that has nothing to do for a moment lets go of what only its start needed, and keeps less than 150 bytes
/// beyond the name for each that is registered.
fn a_tracker_costs_little() {
    let mut daemon = Daemon::start();
    let kib = |pid: u32, key: &str| -> i64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    daemon.told("PROBE:0:noop\n");
    let pid = daemon.child.id();
    let idle = wait_for("the code that starts to be gone", || {
        let now = kib(pid, "VmRSS:");
        (now + 512 < kib(pid, "VmHWM:")).then_some(now)
    });
    assert!(idle > 0);
    let mut register = |from: i64, to: i64| {
        let lines = (from..to).map(|n| format!("REGISTER:/economy-{n:08}:dummy\n"));
        daemon.told(&lines.collect::<String>());
        // That the pipe is empty does not say that the last of it was taken.
        daemon.told("PROBE:0:noop\n");
        kib(pid, "VmRSS:")
    };
    let names = 50_000;
    // What it takes to read lines at all is there then.
    let few = register(0, 5000);
    let each = (register(5000, 5000 + names) - few) * 1024 / names;
    assert!(each < 150 + 17, "{each} bytes for each of {names} names of 17 bytes");
    daemon.end();
}
