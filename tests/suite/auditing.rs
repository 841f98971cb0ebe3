//! The record of what was removed: written before and after, or nothing is removed; and read back.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::sys::stat::Mode;
use serde_json::Value;

use crate::reaping::{exactly, make_orphans, orphan};
use crate::support::{
    Case, Finish, Finished, Need, case, hold, identity, kill, leave, listed, mount, names, object,
    path, reap_all, rtrack, scratch, somebody, state_of, stopped_before, stopped_with_arguments,
    validate,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("recorded_before_and_after", recorded_before_and_after),
        case("intent_before_the_lease", intent_before_the_lease),
        case("killed_in_between", killed_in_between),
        case("begun_by_an_interrupted_reap", begun_by_an_interrupted_reap),
        case("nothing_goes_without_a_record", nothing_goes_without_a_record),
        case("nothing_goes_by_a_place_that_others_have", places_that_others_have),
        case("disk_that_fills_up", disk_that_fills_up),
        case("file_that_may_not_grow", file_that_may_not_grow),
        case("outcome_that_finds_no_room", outcome_that_finds_no_room),
        case("nothing_to_record", nothing_to_record),
        case("what_was_not_even_begun", what_was_not_even_begun),
        case("plan_that_was_given", plan_that_was_given),
        case("place_of_a_user", place_of_a_user).needs(&[Need::RealRoot]),
        case("hostile_names", hostile_names),
        case("torn_line", torn_line),
        case("several_at_the_same_time", several_at_the_same_time),
        case("pipe_that_is_read", pipe_that_is_read),
        case("log_selects", log_selects),
        case("log_of_nothing", log_of_nothing),
    ]
}

/// Where root's reaps are recorded.
const USUAL: &str = "/var/log/rtrack/reap.jsonl";

/// The move into the private directory: the lease is held.
const MOVE: libc::c_long = libc::SYS_renameat2;
/// The removal: the lease is held, and the object has no name in /dev/shm.
const REMOVAL: libc::c_long = libc::SYS_unlinkat;

/// The lines of a record, each by the schema.
#[track_caller]
fn lines(file: impl AsRef<Path>) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.inspect(validate).collect()
}

/// What the lines say, in short: event, name, outcome.
fn told(lines: &[Value]) -> Vec<(&str, &str, &str)> {
    lines
        .iter()
        .map(|line| {
            let outcome = line["outcome"].as_str().unwrap_or_default();
            (line["event"].as_str().unwrap(), line["object"]["name"].as_str().unwrap(), outcome)
        })
        .collect()
}

/// `rtrack log --json` of the usual place.
#[track_caller]
fn log() -> Value {
    rtrack(["log", "--json"]).finish().expect(0).json()
}

/// `reap --yes --json`, recording in `file`.
fn reap_into(file: impl AsRef<OsStr>) -> Command {
    let mut reap = reap_all();
    reap.arg("--audit").arg(file);
    reap
}

fn recorded_before_and_after() {
    object().size(5000).make(orphan(0));
    let inode = identity(orphan(0)).unwrap().1;
    let run = reap_all().finish().expect(0);
    assert!(run.stderr.contains("removed 1 object (8.0 KiB); recorded in /var/log/"), "{run:?}");
    assert_eq!(run.json()["audit"], USUAL);
    let lines = lines(USUAL);
    assert_eq!(told(&lines), [("intent", &*orphan(0), ""), ("outcome", &*orphan(0), "reaped")]);
    for line in &lines {
        assert_eq!((&line["run"], &line["seq"]), (&lines[0]["run"], &1.into()), "{line:#}");
        assert_eq!(line["object"]["ino"], inode);
        assert_eq!(
            (line["object"]["size"].as_u64(), &line["verdict"]),
            (Some(5000), &"orphaned".into())
        );
        assert_eq!(line["reason"], "always-held-producer");
        assert!(line["evidence"].as_array().unwrap().len() > 1, "{line:#}");
        let command: Vec<_> = line["who"]["command"].as_array().unwrap().iter().skip(1).collect();
        assert_eq!(command[..2], ["reap", "--yes"]);
        assert_eq!((&line["who"]["euid"], &line["forced"]), (&0.into(), &false.into()));
        assert_eq!(line["plan"], Value::Null);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(line["boot_id"], boot.trim());
    }
    assert_eq!(lines[1]["freed"], 8192);
    let modes = [Path::new(USUAL), Path::new(USUAL).parent().unwrap()]
        .map(|place| fs::metadata(place).unwrap().permissions().mode() & 0o7777);
    assert_eq!(modes, [0o600, 0o700]);

    let table = rtrack(["log"]).finish().expect(0);
    let fields: Vec<_> =
        table.text().lines().nth(1).unwrap().split_whitespace().map(str::to_owned).collect();
    let id = format!("shm:{}", orphan(0));
    assert_eq!(fields[1..5], ["reaped", &id, "4.9", "KiB"], "{table:?}");
    assert!(table.text().ends_with("orphaned, always-held-producer\n"), "{table:?}");
    // The second run adds, and -q says nothing of it.
    make_orphans(1);
    let run = rtrack(["reap", "-q", "--yes", "--grace", "0s"]).finish().expect(0);
    assert!(!run.stderr.contains("recorded"), "{run:?}");
    assert_eq!(self::lines(USUAL).len(), 4);
    assert_eq!(log()["totals"]["by_outcome"]["reaped"], 2);
}

/// When the lease is taken, and until it is given back, the record has the intent and nothing else.
fn intent_before_the_lease() {
    for call in [libc::SYS_fcntl, MOVE, REMOVAL] {
        make_orphans(1);
        fs::write(scratch().join("audit"), "").unwrap();
        // The lease of the removal is the last that is taken: those of the probing come before.
        let mut at_the_last = Vec::new();
        let is_lease = |args: [u64; 6]| args[1..3] == [SET_LEASE, WRITE_LEASE];
        let meanwhile = |_: u32, _: u32, args: [u64; 6]| {
            if call == libc::SYS_fcntl && is_lease(args) || call == MOVE {
                at_the_last = lines("audit");
            } else if call == REMOVAL && at_the_last.is_empty() {
                // Further ones are those of the private directory.
                at_the_last = lines("audit");
            }
        };
        let status = stopped_with_arguments(call, &mut reap_into("audit"), meanwhile);
        assert_eq!(status.code(), Some(0));
        assert_eq!(told(&at_the_last), [("intent", &*orphan(0), "")], "{call}");
        assert_eq!(lines("audit").len(), 2);
    }
}

/// `F_SETLEASE` and `F_WRLCK`, as arguments of fcntl(2).
const SET_LEASE: u64 = libc::F_SETLEASE as u64;
const WRITE_LEASE: u64 = libc::F_WRLCK as u64;

/// Of what was in hand when it was killed, the record has the beginning, and says so.
fn killed_in_between() {
    make_orphans(2);
    let status = stopped_before(REMOVAL, &mut reap_all(), |_, pid| kill(pid));
    assert_eq!(status.code(), None);
    let first = lines(USUAL);
    assert_eq!(first.len(), 1);
    let name = first[0]["object"]["name"].as_str().unwrap().to_owned();
    assert_eq!(identity(&name), None);

    let run = rtrack(["log"]).finish().expect(0);
    assert!(run.text().contains("  interrupted  shm:mpich"), "{run:?}");
    assert!(run.stderr.contains("warning: 1 object was begun, and no outcome"), "{run:?}");
    let document = log();
    assert_eq!(document["records"][0]["outcome"], "interrupted", "{document:#}");
    assert_eq!(document["records"][0]["later"], Value::Null);
    let raw = rtrack(["log", "--ndjson"]).finish().expect(0);
    assert_eq!(serde_json::from_slice::<Value>(&raw.stdout).unwrap(), first[0]);

    // The next one finishes it, and that is in the record as well.
    reap_all().finish().expect(0);
    exactly(&[]);
    let all = lines(USUAL);
    let settled: Vec<_> = all.iter().filter(|line| line["action"] == "settle").cloned().collect();
    assert_eq!(told(&settled), [("intent", &*name, ""), ("outcome", &*name, "finished")]);
    assert!(settled[0]["directory"].as_str().unwrap().starts_with(".rtrack."), "{settled:?}");
    assert_eq!(settled[0]["object"]["ino"], first[0]["object"]["ino"]);
    let run = rtrack(["log"]).finish().expect(0);
    assert!(!run.stderr.contains("warning"), "{run:?}");
    assert!(run.text().contains("a later run at 2"), "{run:?}");
    let run = rtrack(["log", "--json", "--outcome", "interrupted"]).finish().expect(0).json();
    assert_eq!(run["records"][0]["later"]["outcome"], "finished", "{run:#}");
}

/// What is done with leftovers is recorded, or is not done.
fn begun_by_an_interrupted_reap() {
    let leftover = ".rtrack.0123456789abcdef";
    let inside = |number| format!("{leftover}/{}", orphan(number));
    make_orphans(3);
    leave(leftover, 0o700, &[&orphan(0), &orphan(1), &orphan(2)]);
    let before = (0..3).map(|number| identity(inside(number))).collect::<Vec<_>>();
    let holder = hold("map-shared", path(inside(1)));
    let _other = hold("map-shared", path(inside(2)));
    object().make(orphan(2));

    let run = reap_into("/dev/full").finish().expect(3);
    assert!(run.stderr.contains("error: audit /dev/full: write: No space"), "{run:?}");
    assert_eq!((0..3).map(|number| identity(inside(number))).collect::<Vec<_>>(), before);
    assert!(identity(orphan(2)).is_some());

    rtrack(["reap", "--yes", "nothing*"]).finish();
    let lines = lines(USUAL);
    let outcomes: BTreeMap<_, _> = told(&lines)
        .into_iter()
        .filter(|(event, _, _)| *event == "outcome")
        .map(|(_, name, outcome)| (name.to_owned(), outcome.to_owned()))
        .collect();
    let expected = [(0, "finished"), (1, "put-back"), (2, "left")];
    let expected = expected.map(|(number, outcome)| (orphan(number), outcome.to_owned()));
    assert_eq!(outcomes, BTreeMap::from(expected));
    assert_eq!(lines.len(), 6);
    for line in lines.iter().filter(|line| line["event"] == "outcome") {
        let finished = line["outcome"] == "finished";
        assert_eq!(line["freed"], if finished { 4096 } else { 0 }, "{line:#}");
    }
    drop(holder);
}

/// Nothing is touched when nothing can be recorded, and the error says what helps.
fn nothing_goes_without_a_record() {
    make_orphans(3);
    let before: Vec<_> = names().into_iter().map(|name| (identity(&name), name)).collect();
    fs::create_dir("directory").unwrap();
    nix::unistd::mkfifo("fifo", Mode::S_IRWXU).unwrap();
    fs::create_dir("read-only").unwrap();
    let read_only = scratch().join("read-only");
    mount("tmpfs", read_only.to_str().unwrap(), "tmpfs", libc::MS_RDONLY, "").unwrap();
    for (file, why) in [
        ("/dev/full", "write: No space left on device"),
        ("missing/audit", "open: No such file or directory"),
        ("directory", "open: Is a directory"),
        ("fifo", "open: No such device or address"),
        ("read-only/audit", "open: Read-only file system"),
        ("/dev/shm/missing/audit\x1b", "open: No such file or directory"),
    ] {
        let run = reap_into(file).finish().expect(3);
        let said = format!("error: audit {}: {why}", file.replace('\x1b', "\\x1b"));
        assert!(run.stderr.contains(&said), "{said}: {run:?}");
        assert!(
            run.stderr.contains("hint: --audit FILE records it elsewhere, --no-audit"),
            "{run:?}"
        );
        assert!(!run.stderr.contains("inode"), "{run:?}");
        let after: Vec<_> = names().into_iter().map(|name| (identity(&name), name)).collect();
        assert_eq!(before, after, "{file}");
        if file == "/dev/full" {
            let report = run.json();
            assert_eq!(report["totals"]["by_outcome"]["failed"]["objects"], 3, "{report:#}");
            assert_eq!(listed(&report, &orphan(2))["errno"], libc::ENOSPC);
        }
    }
    let mut reap = reap_all();
    reap.args(["--no-audit", "--audit", "x"]).finish().expect(2);
    let run = reap_all().arg("--no-audit").finish().expect(0);
    assert_eq!(run.json()["audit"], Value::Null);
    exactly(&[]);
    assert!(!Path::new(USUAL).exists());
}

/// What others could have put at the usual place is not written to.
fn places_that_others_have() {
    let refused = |why: &str| {
        make_orphans_again();
        let run = reap_all().finish().expect(3);
        assert!(run.stderr.contains(&format!("error: audit {USUAL}: {why}")), "{run:?}");
        assert!(run.stderr.contains("--no-audit"), "{run:?}");
        exactly(&[&orphan(0)]);
    };
    let directory = Path::new(USUAL).parent().unwrap();
    let precious = scratch().join("precious");
    fs::write(&precious, "precious").unwrap();

    fs::create_dir(directory).unwrap();
    symlink(&precious, USUAL).unwrap();
    refused("it is a symbolic link");
    fs::remove_file(USUAL).unwrap();
    fs::create_dir(USUAL).unwrap();
    refused("open: Is a directory");
    fs::remove_dir(USUAL).unwrap();
    nix::unistd::mkfifo(USUAL, Mode::S_IRWXU).unwrap();
    let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(USUAL).unwrap();
    refused("it is no regular file");
    fs::remove_file(USUAL).unwrap();

    for mode in [0o777, 0o1777, 0o720] {
        fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
        refused("others may write to its directory");
        assert!(!Path::new(USUAL).exists());
    }
    fs::remove_dir(directory).unwrap();
    let elsewhere = scratch().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, directory).unwrap();
    refused("open its directory");
    fs::remove_file(directory).unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    // A place that the operator names may be a link.
    symlink(&precious, "link").unwrap();
    fs::write(&precious, "").unwrap();
    reap_into("link").finish().expect(0);
    assert_eq!(lines(&precious).len(), 2);
}

fn make_orphans_again() {
    if identity(orphan(0)).is_none() {
        make_orphans(1);
    }
}

/// A tmpfs that has room for a few lines only.
fn small_disk() -> PathBuf {
    let place = scratch().join("small");
    fs::create_dir(&place).unwrap();
    mount("tmpfs", place.to_str().unwrap(), "tmpfs", 0, "size=16k").unwrap();
    place
}

/// Whoever went was recorded before, whoever could not be recorded is still there.
fn disk_that_fills_up() {
    const COUNT: usize = 20;
    make_orphans(COUNT);
    let disk = small_disk();
    let audit = disk.join("audit");
    let run = reap_into(&audit).finish().expect(3);
    let report = run.json();
    assert!(run.stderr.contains("No space left on device"), "{run:?}");
    assert_eq!(run.stderr.matches("--no-audit").count(), 1, "{run:?}");
    let left = names();
    assert!(left.len() > 5 && left.len() < COUNT, "{left:?}");
    let text = fs::read_to_string(&audit).unwrap();
    let whole: Vec<Value> = text.lines().flat_map(serde_json::from_str).collect();
    whole.iter().for_each(validate);
    let begun: BTreeSet<_> = told(&whole)
        .into_iter()
        .filter(|(event, _, _)| *event == "intent")
        .map(|(_, name, _)| name.to_owned())
        .collect();
    for number in 0..COUNT {
        let gone = identity(orphan(number)).is_none();
        let outcome = listed(&report, &orphan(number))["outcome"].as_str().unwrap();
        assert_eq!(outcome, if gone { "reaped" } else { "failed" }, "{report:#}");
        assert!(!gone || begun.contains(&orphan(number)), "{} was not recorded", orphan(number));
    }
    assert!(left.iter().all(|name| !name.as_bytes().starts_with(b".")), "{left:?}");

    // With room again, nothing is added to what is left of a line.
    mount("tmpfs", disk.to_str().unwrap(), "tmpfs", libc::MS_REMOUNT, "size=1M").unwrap();
    reap_into(&audit).finish().expect(0);
    exactly(&[]);
    let mut log = rtrack(["log", "--json", "--file"]);
    let document = log.arg(&audit).finish().expect(0).json();
    let not_understood = document["not_understood"]["lines"].as_u64().unwrap();
    assert!(not_understood <= 1, "{document:#}");
    let outcomes = &document["totals"]["by_outcome"];
    let reaped = outcomes["reaped"].as_u64().unwrap();
    let interrupted = outcomes["interrupted"].as_u64().unwrap_or(0);
    assert_eq!(reaped + interrupted, COUNT as u64, "{document:#}");
}

/// A limit to the size of files is an error as any other: the signal that comes with it ends nobody.
fn file_that_may_not_grow() {
    make_orphans(5);
    fs::write("audit", [b'\n'; 4096 + 1024]).unwrap();
    let mut reap = Command::new("sh");
    // Units of 512 bytes.
    reap.args(["-c", "ulimit -f 11; exec \"$@\"", "sh"]);
    let inner = reap_into("audit");
    let run = reap.arg(inner.get_program()).args(inner.get_args()).finish().expect(3);
    assert!(run.stderr.contains("error: audit audit: "), "{run:?}");
    assert!(run.stderr.contains("File too large"), "{run:?}");
    assert_eq!(names().len(), 5, "{run:?}");
    assert_eq!(run.json()["totals"]["by_outcome"]["failed"]["objects"], 5);
}

/// What was done and could not be recorded is said, and nothing else is done.
fn outcome_that_finds_no_room() {
    make_orphans(3);
    let disk = small_disk();
    let audit = disk.join("audit");
    let file = scratch().join("report");
    let said = scratch().join("said");
    let mut reap = reap_into(&audit);
    reap.stdout(File::create(&file).unwrap()).stderr(File::create(&said).unwrap());
    let status = stopped_before(REMOVAL, &mut reap, |turn, _| {
        if turn == 0 {
            // Nothing of the second line finds room.
            let length = fs::metadata(&audit).unwrap().len();
            let mut audit = OpenOptions::new().append(true).open(&audit).unwrap();
            let filler = vec![b' '; usize::try_from(4096 - 1 - length % 4096).unwrap()];
            audit.write_all(&filler).unwrap();
            audit.write_all(b"\n").unwrap();
            let mut rest = File::create(disk.join("rest")).unwrap();
            while rest.write_all(&[0; 4096]).is_ok() {}
        }
    });
    assert_eq!(status.code(), Some(3));
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    validate(&report);
    let by_outcome = &report["totals"]["by_outcome"];
    assert_eq!(by_outcome["reaped"]["objects"], 1, "{report:#}");
    assert_eq!(by_outcome["failed"]["objects"], 2, "{report:#}");
    let said = fs::read_to_string(said).unwrap();
    assert!(said.contains("reaped, and that is not recorded"), "{said}");
    assert_eq!(names().len(), 2);
    // The record tells that it does not tell everything.
    let run = rtrack(["log", "--file"]).arg(&audit).finish().expect(0);
    assert!(run.text().contains("  interrupted  "), "{run:?}");
}

/// No file is made when there is nothing to record.
fn nothing_to_record() {
    rtrack(["reap", "--yes", "--grace", "0s", "--audit", "audit"]).finish().expect(0);
    make_orphans(1);
    rtrack(["reap", "-n", "--grace", "0s", "--audit", "audit"]).finish().expect(0);
    let run = rtrack(["reap", "-n", "--json", "--grace", "0s"]).finish().expect(0).json();
    assert_eq!(run["audit"], Value::Null);
    // A dry run does not even look whether it could be recorded.
    rtrack(["reap", "-n", "--grace", "0s", "--audit", "/dev/full"]).finish().expect(0);
    reap_all().arg("nothing*").finish().expect(0);
    assert!(!Path::new("audit").exists() && !Path::new(USUAL).exists());
}

/// Beside what is removed, what was asked for and stays is recorded too.
fn what_was_not_even_begun() {
    make_orphans(2);
    object().make("unheard_of");
    let _holder = hold("map-shared", path(orphan(1)));
    let mut reap = rtrack(["reap", "--yes", "--grace", "0s", "--force", &orphan(1)]);
    reap.args(["--force", "unheard_of"]).finish().expect(1);
    let lines = lines(USUAL);
    let mut told = told(&lines);
    told.sort_unstable();
    let [held, name] = [&*orphan(1), "unheard_of"];
    let expected = [("intent", name, ""), ("outcome", held, "held"), ("outcome", name, "reaped")];
    assert_eq!(told, expected);
    let forced = lines.iter().all(|line| line["forced"] == true);
    assert!(forced && lines.iter().any(|line| line["verdict"] == "unclaimed"), "{lines:#?}");
    let run = rtrack(["log", "unheard*"]).finish().expect(0);
    assert!(run.text().contains("unclaimed, unknown-producer, forced"), "{run:?}");
}

/// Of a plan that was given, each object is recorded, with the plan.
fn plan_that_was_given() {
    make_orphans(3);
    let plan = rtrack(["reap", "-n", "--json", "--grace", "0s"]).finish().expect(0);
    fs::write("plan", &plan.stdout).unwrap();
    let id = &plan.json()["plan_id"];
    assert!(id.is_string(), "{plan:?}");
    fs::remove_file(path(orphan(0))).unwrap();
    fs::set_permissions(path(orphan(1)), PermissionsExt::from_mode(0o644)).unwrap();
    let run = rtrack(["reap", "--yes", "--json", "--from", "plan"]).finish().expect(1);
    let lines = lines(USUAL);
    let ends = told(&lines).into_iter().filter(|(event, _, _)| *event == "outcome");
    let ends: BTreeMap<_, _> = ends.map(|(_, name, outcome)| (name, outcome)).collect();
    for number in 0..3 {
        let name = orphan(number);
        assert_eq!(ends[&*name], listed(&run.json(), &name)["outcome"], "{run:?}");
    }
    assert_eq!((ends[&*orphan(0)], ends[&*orphan(2)]), ("gone", "reaped"));
    assert!(lines.iter().all(|line| line["plan"] == *id), "{lines:#?}");
    let begun = told(&lines).into_iter().filter(|(event, _, _)| *event == "intent");
    assert_eq!(begun.map(|(_, name, _)| name).collect::<Vec<_>>(), [orphan(2)]);
}

/// An ordinary user's own place, and that nobody knows where it is.
fn place_of_a_user() {
    let user = somebody();
    let as_user = |more: &[&str]| {
        let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s"]);
        reap.args(more).as_user(user);
        reap
    };
    object().owner(user).make(orphan(0));
    for (home, state) in [(None, None), (Some("relative"), Some("")), (Some(""), Some("x/y"))] {
        let mut reap = as_user(&[]);
        reap.env_remove("HOME").env_remove("XDG_STATE_HOME");
        reap.envs(home.map(|home| ("HOME", home)));
        let run = reap.envs(state.map(|state| ("XDG_STATE_HOME", state))).finish().expect(3);
        assert!(run.stderr.contains("HOME") && run.stderr.contains("--no-audit"), "{run:?}");
        assert!(identity(orphan(0)).is_some());
    }
    let run = as_user(&[]).finish().expect(0);
    let file = state_of(user).join("rtrack/reap.jsonl");
    assert_eq!(run.json()["audit"], file.to_str().unwrap());
    let told = lines(&file);
    assert_eq!((&told[0]["who"]["uid"], told.len()), (&user.into(), 2));
    let mode = |place: &Path| fs::metadata(place).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode(&file), mode(file.parent().unwrap()), mode(&state_of(user))),
        (0o600, 0o700, 0o700)
    );

    // Below the home directory, where nothing else is said.
    object().owner(user).make(orphan(0));
    let home = scratch().join("home");
    fs::create_dir(&home).unwrap();
    nix::unistd::chown(&home, Some(user.into()), None).unwrap();
    let mut reap = as_user(&[]);
    reap.env_remove("XDG_STATE_HOME").env("HOME", &home).finish().expect(0);
    assert_eq!(lines(home.join(".local/state/rtrack/reap.jsonl")).len(), 2);
    let run = rtrack(["log"]).as_user(user).finish().expect(0);
    assert!(run.text().contains(&orphan(0)), "{run:?}");
    assert!(!Path::new(USUAL).exists());
}

/// Names cannot forge lines, in the record or on a terminal.
fn hostile_names() {
    let forged = "{\"schema\":\"rtrack.audit\",\"event\":\"outcome\"}";
    let hostile: Vec<Vec<u8>> = vec![
        format!("{}\n{forged}\n", orphan(0)).into_bytes(),
        format!("{}\x1b]0;x\x07\x1b[31m", orphan(1)).into_bytes(),
        [orphan(2).as_bytes(), b"\xff\xfe\n"].concat(),
        format!("{}\u{202e}\u{9b}31m\u{2028}", orphan(3)).into_bytes(),
        format!("{}\",\"x\":\"\\", orphan(4)).into_bytes(),
    ];
    for name in &hostile {
        object().make(OsStr::from_bytes(name));
    }
    let audit = OsStr::from_bytes(b"audit\x1b[31m\xff");
    let mut reap = reap_into(audit);
    let run = reap.arg(OsStr::from_bytes(&hostile[2])).arg("*").finish().expect(0);
    assert!(!run.stderr.contains('\x1b'), "{run:?}");
    let text = fs::read(audit).unwrap();
    let text = String::from_utf8(text).unwrap();
    let odd = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2028}".contains(c));
    assert!(!text.contains(odd), "{text}");
    let lines = lines(audit);
    assert_eq!(lines.len(), 2 * hostile.len());
    let exact: BTreeSet<Vec<u8>> = lines
        .iter()
        .map(|line| match line["object"]["name_base64"].as_str() {
            Some(name) => decoded(name),
            None => line["object"]["name"].as_str().unwrap().as_bytes().to_vec(),
        })
        .collect();
    assert_eq!(exact, hostile.iter().cloned().collect());
    let command = lines[0]["who"]["command_base64"].as_array().unwrap();
    assert!(command.iter().any(|word| decoded(word.as_str().unwrap()) == hostile[2]));

    for more in [&[][..], &["--json"], &["--ndjson"]] {
        let run = rtrack(["log", "--file"]).arg(audit).args(more).finish().expect(0);
        let shown = run.text();
        assert!(!shown.contains(odd) && !run.stderr.contains(odd), "{run:?}");
        let rows = shown.lines().filter(|line| line.contains("mpich_shar_tmp")).count();
        assert_eq!(rows, hostile.len(), "{run:?}");
    }
    // As they are, and as they are shown; and by patterns.
    let shown = format!("shm:{}\\xff\\xfe\\n", orphan(2));
    for (name, count) in [
        (OsStr::from_bytes(&hostile[2]), 1),
        (OsStr::new(&shown), 1),
        (OsStr::new("shm:*tmp00000[34]*"), 2),
        (OsStr::new("*forged*"), 0),
    ] {
        let mut log = rtrack(["log", "--no-headings", "--file"]);
        let run = log.arg(audit).arg(name).finish().expect(0);
        assert_eq!(run.text().lines().count(), count, "{run:?}");
    }
}

fn decoded(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

/// What a crash left of a line swallows no other.
fn torn_line() {
    make_orphans(1);
    reap_into("audit").finish().expect(0);
    let whole = fs::read("audit").unwrap();
    for torn in [1, 100, whole.len() - 1] {
        make_orphans(1);
        fs::write("audit", &whole[..torn]).unwrap();
        reap_into("audit").finish().expect(0);
        let after = fs::read("audit").unwrap();
        assert_eq!(&after[..=torn], [&whole[..torn], b"\n"].concat());
        let added = String::from_utf8(after[torn + 1..].to_vec()).unwrap();
        assert_eq!(
            added.lines().map(serde_json::from_str::<Value>).filter(Result::is_ok).count(),
            2
        );
    }
    fs::write("audit", "{\"schema\":\"rtrack.audit/2\"}\nnonsense\n").unwrap();
    let run = rtrack(["log", "--file", "audit"]).finish().expect(0);
    assert!(
        run.stderr
            .contains("audit: 2 lines not understood: line 1: of schema rtrack.audit/2; line 2"),
        "{run:?}"
    );
    fs::write("audit", [&whole[..], &whole[..50]].concat()).unwrap();
    for (more, code) in [(&[][..], 0), (&["--strict"], 3), (&["--strict", "--json"], 3)] {
        let run = rtrack(["log", "--file", "audit"]).args(more).finish().expect(code);
        assert!(run.stderr.contains("line 3: torn") && run.text().contains("reaped"), "{run:?}");
    }
    let document = rtrack(["log", "--json", "--file", "audit"]).finish().expect(0).json();
    assert_eq!(document["not_understood"]["first"][0]["line"], 3, "{document:#}");
}

/// Several reaps share a record: every line is whole, and every removal is in it once.
fn several_at_the_same_time() {
    const COUNT: usize = 300;
    make_orphans(COUNT);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| reap_all().finish().expect(0));
        }
    });
    let text = fs::read_to_string(USUAL).unwrap();
    let mut reaped = BTreeSet::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["outcome"] == "reaped" {
            let name = line["object"]["name"].as_str().unwrap().to_owned();
            assert!(reaped.insert(name), "{line:#}");
        }
    }
    assert_eq!(reaped.len(), COUNT);
    let document = log();
    assert_eq!(document["totals"]["by_outcome"]["interrupted"], Value::Null);
    assert_eq!(document["not_understood"]["lines"], 0);
}

/// A pipe to a program that reads it slowly is as good as a file.
fn pipe_that_is_read() {
    make_orphans(100);
    nix::unistd::mkfifo("fifo", Mode::S_IRWXU).unwrap();
    let reader = thread::spawn(|| {
        thread::sleep(std::time::Duration::from_millis(300));
        fs::read("fifo").unwrap()
    });
    // A reader has to be there.
    let other = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("fifo").unwrap();
    reap_into("fifo").finish().expect(0);
    drop(other);
    let text = String::from_utf8(reader.join().unwrap()).unwrap();
    assert_eq!(text.lines().count(), 200);
    exactly(&[]);
}

/// By name, time, outcome, owner and run, from a file or the standard input.
fn log_selects() {
    make_orphans(2);
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    object().size(32).make("sem.ApR.65a1b2c3Z4d5e6");
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    let first = log()["records"][0]["run"].as_str().unwrap().to_owned();
    let count = |more: &[&str]| -> usize {
        let run = rtrack(["log", "--no-headings"]).args(more).finish().expect(0);
        run.text().lines().count()
    };
    for (more, expected) in [
        (&[][..], 3),
        (&["mpich*"], 2),
        (&["sem:*"], 1),
        (&["sem.ApR.65a1b2c3Z4d5e6"], 1),
        (&["/dev/shm/mpich_shar_tmp000001", "nothing"], 1),
        (&["--run", &first], 2),
        (&["--outcome", "reaped"], 3),
        (&["--outcome", "failed,interrupted"], 0),
        (&["--user", "0"], 3),
        (&["--user", "nobody-of-that-name"], 0),
        (&["--since", "1h"], 3),
        (&["--since", "0s"], 0),
        (&["--since", "2001-01-01T00:00:00Z", "--ndjson"], 3),
        (&["--since", "2201-01-01T00:00:00Z"], 0),
    ] {
        assert_eq!(count(more), expected, "{more:?}");
    }
    for wrong in [
        &["--since", "yesterday"][..],
        &["--outcome", "removed"],
        &["a[*"],
        &["--json", "--ndjson"],
    ] {
        rtrack(["log"]).args(wrong).finish().expect(2);
    }
    let mut log = rtrack(["log", "--json", "--file", "-"]);
    // `finish` has its own idea of stdin.
    let output = log.stdin(File::open(USUAL).unwrap()).output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    validate(&document);
    assert_eq!((&document["file"], &document["totals"]["objects"]), (&Value::Null, &3.into()));
}

fn log_of_nothing() {
    let run: Finished = rtrack(["log"]).finish().expect(0);
    assert!(run.stderr.contains("nothing has been recorded"), "{run:?}");
    assert_eq!(run.stdout, b"");
    assert_eq!(log()["records"], Value::Array(Vec::new()));
    for (file, why) in [("missing", "open missing: No such file"), (".", "read .: Is a directory")]
    {
        let run = rtrack(["log", "--file", file]).finish().expect(3);
        assert!(run.stderr.contains(&format!("error: {why}")), "{run:?}");
    }
}
