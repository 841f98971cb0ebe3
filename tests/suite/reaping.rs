//! Removal and what can come between: other reapers, signals, leftovers of a reaper that was
//! killed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::pty::openpty;
use serde_json::Value;

use crate::support::{
    Case, Finish, Need, case, hold, identity, inventory, kill, leave, listed, names, object, path,
    reap_all, rtrack, scratch, somebody, stopped_before, validate, verdict, wait_for,
};
use crate::traps::{program_called, runs};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("orphans_only_unless_told", orphans_only_unless_told),
        case("only_what_is_selected", only_what_is_selected),
        case("force_takes_one_object", force_takes_one_object),
        case("dry_run_changes_nothing", dry_run_changes_nothing),
        case("leftover_of_a_killed_reaper", leftover_of_a_killed_reaper),
        case("leftover_whose_name_is_taken", leftover_whose_name_is_taken),
        case("what_looks_like_a_leftover", what_looks_like_a_leftover),
        case("leftover_where_anybody_may_rename", leftover_where_anybody_may_rename),
        case("leftover_of_a_stranger", leftover_of_a_stranger).needs(&[Need::RealRoot]),
        case("leftover_is_told_of", leftover_is_told_of),
        case("leftover_is_told_of_by_its_kind", leftover_is_told_of_by_its_kind),
        case("changed_since_the_plan", changed_since_the_plan),
        case("answer_at_the_prompt", answer_at_the_prompt),
        case("opened_under_the_lease", opened_under_the_lease),
        case("opened_when_its_name_is_gone", opened_when_its_name_is_gone),
        case("name_taken_before_the_put_back", name_taken_before_the_put_back),
        case("replaced_under_the_lease", replaced_under_the_lease),
        case("moved_by_mistake_and_its_name_taken", moved_by_mistake_and_its_name_taken),
        case("look_that_is_too_old", look_that_is_too_old).needs(&[Need::PidNamespace]),
        case("look_that_grows_too_old", look_that_grows_too_old).needs(&[Need::PidNamespace]),
        case("killed_under_the_lease", killed_under_the_lease),
        case("killed_when_its_name_is_gone", killed_when_its_name_is_gone),
        case("reapers_at_the_same_time", reapers_at_the_same_time),
        case("while_another_one_is_at_work", while_another_one_is_at_work),
        case("progress", progress),
        case("killed_again_and_again", killed_again_and_again),
        case("changed_before_the_move", changed_before_the_move),
    ]
}

/// Names of a producer whose live owners always hold its objects.
pub(crate) fn orphan(number: usize) -> String {
    format!("mpich_shar_tmp{number:06}")
}

pub(crate) fn make_orphans(count: usize) {
    for number in 0..count {
        object().size(64).make(orphan(number));
    }
}

pub(crate) fn exactly(expected: &[&str]) {
    let expected: BTreeSet<OsString> = expected.iter().map(OsString::from).collect();
    assert_eq!(names(), expected);
}

fn orphans_only_unless_told() {
    make_orphans(1);
    object().make("unheard_of");
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    exactly(&["unheard_of"]);
    // Nothing to do is no failure, and without --yes nobody has to be asked about nothing.
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    reap_all().finish().expect(0);
    exactly(&[]);
}

fn only_what_is_selected() {
    make_orphans(2);
    object().size(3 << 20).make("pulse-shm-12345");
    object().size(32).make("sem.ApR.65a1b2c3Z4d5e6");
    let semaphore = "sem.ApR.65a1b2c3Z4d5e6";
    let all = [&orphan(0), &orphan(1), "pulse-shm-12345", semaphore];
    for nothing in [
        &["--older-than", "1h"][..],
        &["--min-size", "4MiB"],
        &["--kind", "dir"],
        &["psm_*"],
        &["--producer", "cpython-shared-memory"],
    ] {
        rtrack(["reap", "--yes", "--grace", "0s"]).args(nothing).finish().expect(0);
        exactly(&all);
    }
    rtrack(["reap", "--yes", "--grace", "0s", "--min-size", "3MiB"]).finish().expect(0);
    exactly(&[&orphan(0), &orphan(1), semaphore]);
    rtrack(["reap", "--yes", "--grace", "0s", "--kind", "sem"]).finish().expect(0);
    exactly(&[&orphan(0), &orphan(1)]);
    rtrack(["reap", "--yes", "--grace", "0s", "*000001"]).finish().expect(0);
    exactly(&[&orphan(0)]);
    // One that is gone stops no other, and is said.
    object().make(orphan(7));
    let names = ["gone", &orphan(7), "shm:gone.too"];
    let run = rtrack(["reap", "--yes", "--grace", "0s"]).args(names).finish().expect(1);
    assert!(run.stderr.contains("error: gone: no such object"), "{run:?}");
    assert!(run.stderr.contains("error: shm:gone.too: no such object"), "{run:?}");
    exactly(&[&orphan(0)]);
    rtrack(["reap", "--yes", "--grace", "0s", "--producer", "mpich-shar-tmp"]).finish().expect(0);
    exactly(&[]);
}

fn force_takes_one_object() {
    make_orphans(1);
    object().make("libpod_lock");
    object().make("unheard_of");
    assert_eq!(verdict(&inventory(), "libpod_lock"), ("claimed", "persistent"));
    reap_all().finish().expect(0);
    exactly(&["libpod_lock"]);
    make_orphans(1);
    rtrack(["reap", "--yes", "--force", "libpod_lock"]).finish().expect(0);
    exactly(&[&orphan(0)]);
    // Young, and so claimed: by force only.
    rtrack(["reap", "--yes"]).finish().expect(0);
    exactly(&[&orphan(0)]);
    let holder = hold("map-shared", path(orphan(0)));
    let run = rtrack(["reap", "--yes", "--json", "--force", &orphan(0)]).finish().expect(1);
    assert_eq!(listed(&run.json(), &orphan(0))["outcome"], "held");
    exactly(&[&orphan(0)]);
    drop(holder);
    rtrack(["reap", "--yes", "--force", &orphan(0)]).finish().expect(0);
    exactly(&[]);
}

fn dry_run_changes_nothing() {
    make_orphans(3);
    object().make("unheard_of");
    let before: Vec<_> = names().into_iter().map(|name| (identity(&name), name)).collect();
    for more in [&[][..], &["--yes"], &["--force", "unheard_of"], &["--json"]] {
        rtrack(["reap", "-n", "--grace", "0s"]).args(more).finish().expect(0);
        let after: Vec<_> = names().into_iter().map(|name| (identity(&name), name)).collect();
        assert_eq!(before, after, "{more:?}");
    }
}

/// A directory as a reaper makes it, with `mode`.
fn quarantine(name: &str, mode: u32) {
    fs::DirBuilder::new().mode(mode).create(path(name)).unwrap();
}

/// What is held goes back under its name, the rest is finished.
fn leftover_of_a_killed_reaper() {
    object().make(orphan(0));
    let moved = object().make(orphan(1));
    leave(".rtrack.0123456789abcdef", 0o700, &[&orphan(0), &orphan(1)]);
    let holder = hold("map-shared", path(".rtrack.0123456789abcdef").join(orphan(1)));
    rtrack(["reap", "-n", "--grace", "0s"]).finish().expect(0);
    exactly(&[".rtrack.0123456789abcdef"]);
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    exactly(&[&orphan(1)]);
    assert_eq!(identity(orphan(1)), Some(moved));
    drop(holder);
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    exactly(&[]);
}

/// An object whose name has a new owner counts as unlinked: it never comes back.
fn leftover_whose_name_is_taken() {
    object().make(orphan(0));
    leave(".rtrack.0123456789abcdef", 0o700, &[&orphan(0)]);
    let holder = hold("map-shared", path(".rtrack.0123456789abcdef").join(orphan(0)));
    let new = object().make(orphan(0));
    let new_holder = hold("fd-read", path(orphan(0)));
    rtrack(["reap", "--yes", "--grace", "0s"]).finish();
    assert_eq!(identity(orphan(0)), Some(new));
    // Now the name is free, and must stay free.
    drop(new_holder);
    fs::remove_file(path(orphan(0))).unwrap();
    rtrack(["reap", "--yes", "--grace", "0s"]).finish();
    assert_eq!(identity(orphan(0)), None, "{:?}", names());
    drop(holder);
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    exactly(&[]);
}

/// Directories that no reaper of ours made, or that one is working in.
fn what_looks_like_a_leftover() {
    let precious = scratch().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join(orphan(0)), "precious").unwrap();
    symlink(&precious, path(".rtrack.00000000000000aa")).unwrap();
    let like = [(".rtrack.00000000000000bb", 0o755), (".rtrack.00000000000000cc", 0o700)];
    for (name, mode) in like {
        quarantine(name, mode);
        object().make(format!("{name}/{}", orphan(0)));
    }
    let locked = File::open(path(".rtrack.00000000000000cc")).unwrap();
    let _lock = Flock::lock(locked, FlockArg::LockExclusiveNonblock).unwrap();
    object().make(".rtrack.00000000000000dd");
    inventory();
    rtrack(["reap", "--yes", "--grace", "0s"]).finish();
    for (name, _) in like {
        assert!(identity(format!("{name}/{}", orphan(0))).is_some(), "{name} was emptied");
    }
    assert!(precious.join(orphan(0)).exists());
    assert_eq!(names().len(), 4, "{:?}", names());
}

/// Without a sticky bit anybody may give any directory of ours the name of a leftover.
fn leftover_where_anybody_may_rename() {
    for mode in [0o777, 0o1777] {
        fs::set_permissions("/dev/shm", PermissionsExt::from_mode(mode)).unwrap();
        object().make(orphan(0));
        leave(".rtrack.0123456789abcdef", 0o700, &[&orphan(0)]);
        let run = rtrack(["reap", "--yes", "--json", "--grace", "0s"]).finish();
        let kept = identity(format!(".rtrack.0123456789abcdef/{}", orphan(0))).is_some();
        assert_eq!(
            (run.code, kept),
            if mode == 0o777 { (Some(3), true) } else { (Some(0), false) }
        );
        let document = run.json();
        let trouble = document["settled"][0]["trouble"].as_str();
        assert_eq!(trouble.is_some_and(|said| said.contains("sticky")), kept, "{document:#}");
        if kept {
            fs::remove_dir_all(path(".rtrack.0123456789abcdef")).unwrap();
        }
    }
    // A name that no reaper makes.
    quarantine(".rtrack.mine", 0o700);
    object().make(format!(".rtrack.mine/{}", orphan(0)));
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    assert!(identity(format!(".rtrack.mine/{}", orphan(0))).is_some());
}

fn leftover_of_a_stranger() {
    object().owner(somebody()).make(orphan(0));
    leave(".rtrack.0123456789abcdef", 0o700, &[&orphan(0)]);
    chown(path(".rtrack.0123456789abcdef"), Some(somebody()), Some(somebody())).unwrap();
    listed(&inventory(), ".rtrack.0123456789abcdef");
    rtrack(["reap", "--yes", "--grace", "0s"]).finish();
    assert!(identity(format!(".rtrack.0123456789abcdef/{}", orphan(0))).is_some());
    let mut reap = rtrack(["reap", "--yes", "--grace", "0s"]);
    reap.as_user(somebody()).finish().expect(0);
    exactly(&[]);
}

/// Whoever is asked, or only looks, is told what an interrupted reap left, and what becomes of it.
fn leftover_is_told_of() {
    let leftover = ".rtrack.0123456789abcdef";
    let inside = format!("{leftover}/{}", orphan(0));
    object().make(orphan(0));
    leave(leftover, 0o700, &[&orphan(0)]);
    let told = format!("{leftover}: {}: left by an interrupted reap", orphan(0));

    let show = rtrack(["show", leftover]).finish().expect(0).text();
    assert!(show.contains("  reap      settles it: "), "{show}");
    let show = rtrack(["show", "--json", leftover]).finish().expect(0).json();
    let does = listed(&show, leftover)["reap"]["does"].as_str().unwrap();
    assert!(does.starts_with("settles it: "), "{does}");

    let run = rtrack(["reap", "-n"]).finish().expect(0);
    assert!(run.stderr.contains(&told), "{run:?}");
    let run = rtrack(["reap", "-n", "--json"]).finish().expect(0);
    assert!(run.stderr.contains(&told), "{run:?}");
    let report = run.json();
    let settled = &report["settled"][0];
    assert_eq!(settled["directory"], leftover, "{report:#}");
    assert_eq!(settled["left"][0]["name"], orphan(0), "{report:#}");
    assert_eq!(settled["finished"].as_array().map(Vec::len), Some(0), "{report:#}");
    // Named objects or none: it is settled all the same, so it is asked about.
    let (code, _, shown) = at_the_prompt(|| {}, "n\n");
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains(&told), "{shown}");
    assert!(shown.contains("remove 0 objects (0 B) and settle 1 directory of"), "{shown}");
    assert!(identity(&inside).is_some());

    let (code, report, shown) = at_the_prompt(|| {}, "y\n");
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!(report["settled"][0]["finished"][0], orphan(0), "{report:#}");
    exactly(&[]);
}

/// What becomes of a leftover depends on why it was left; that is what is said, and true.
fn leftover_is_told_of_by_its_kind() {
    for (kind, mode, says, does) in [
        ("", 0o1777, "goes back if somebody uses it, else it is removed", "finished"),
        ("unlinked.", 0o1777, "is removed unless somebody uses it", "finished"),
        ("kept.", 0o1777, "goes back if its name is free, else it stays", "put_back"),
        ("", 0o777, "stays", "trouble"),
    ] {
        fs::set_permissions("/dev/shm", PermissionsExt::from_mode(mode)).unwrap();
        let leftover = format!(".rtrack.{kind}0123456789abcdef");
        object().make(orphan(0));
        leave(&leftover, 0o700, &[&orphan(0)]);
        let show = rtrack(["show", "--json", &leftover]).finish().expect(0).json();
        let said = listed(&show, &leftover)["reap"]["does"].as_str().unwrap();
        assert!(said.ends_with(says), "{said}");
        let run = rtrack(["reap", "-n", "--json"]).finish().expect(0);
        assert!(run.stderr.contains(&format!("reap; it {says}\n")), "{run:?}");
        assert_eq!(run.json()["settled"][0]["left"][0]["says"], says);
        let (_, _, shown) = at_the_prompt(|| {}, "n\n");
        assert!(shown.contains(&format!("reap; it {says}\r\n")), "{shown}");
        let report = rtrack(["reap", "--yes", "--json"]).finish().json();
        let settled = &report["settled"][0];
        match does {
            "trouble" => assert!(settled["trouble"].is_string(), "{report:#}"),
            does => assert_eq!(settled[does][0], orphan(0), "{report:#}"),
        }
        match does {
            "finished" => exactly(&[]),
            "put_back" => {
                exactly(&[&orphan(0)]);
                fs::remove_file(path(orphan(0))).unwrap();
            }
            _ => exactly(&[&leftover]),
        }
    }
}

/// Runs `rtrack reap` at a terminal. When it has printed its plan and asks, `disturb` happens,
/// and then `answer` is typed. Its status, its report, and what the terminal showed.
fn at_the_prompt(disturb: impl FnOnce(), answer: &str) -> (Option<i32>, Value, String) {
    let pty = openpty(None, None).unwrap();
    let mut command = rtrack(["reap", "--json", "--grace", "0s"]);
    command.stdin(pty.slave.try_clone().unwrap()).stderr(pty.slave).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The command has copies of the terminal: only the child's may stay open.
    drop(command);
    let mut terminal = File::from(pty.master);
    let mut shown = Vec::new();
    let mut disturb = Some(disturb);
    let mut chunk = [0; 4096];
    // A terminal that nobody has open any more fails with EIO.
    while let Ok(length @ 1..) = terminal.read(&mut chunk) {
        shown.extend_from_slice(&chunk[..length]);
        if shown.ends_with(b"[y/N] ")
            && let Some(disturb) = disturb.take()
        {
            disturb();
            terminal.write_all(answer.as_bytes()).unwrap();
        }
    }
    let mut report = String::new();
    child.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    let report = serde_json::from_str(&report).unwrap_or(Value::Null);
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(disturb.is_none(), "nobody was asked: {shown}");
    (child.wait().unwrap().code(), report, shown)
}

/// Between the plan and its execution everything can happen to an object.
fn changed_since_the_plan() {
    make_orphans(6);
    let target = scratch().join("precious");
    fs::write(&target, "precious").unwrap();
    let mut holders = Vec::new();
    let mut replaced = None;
    let disturb = || {
        holders.push(hold("map-shared", path(orphan(1))));
        fs::remove_file(path(orphan(2))).unwrap();
        fs::remove_file(path(orphan(3))).unwrap();
        replaced = Some(object().size(1).make(orphan(3)));
        fs::remove_file(path(orphan(4))).unwrap();
        symlink(&target, path(orphan(4))).unwrap();
        fs::remove_file(path(orphan(5))).unwrap();
        fs::create_dir(path(orphan(5))).unwrap();
        object().make(orphan(6));
    };
    let (code, report, shown) = at_the_prompt(disturb, "y\n");
    assert_eq!(code, Some(1), "{shown}{report:#}");
    validate(&report);
    for (number, outcome) in
        [(0, "reaped"), (1, "held"), (2, "gone"), (3, "changed"), (4, "changed"), (5, "changed")]
    {
        assert_eq!(listed(&report, &orphan(number))["outcome"], outcome, "{number}: {report:#}");
    }
    let left: Vec<_> = [1, 3, 4, 5, 6].map(orphan).into();
    exactly(&left.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(identity(orphan(3)), replaced);
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

fn answer_at_the_prompt() {
    make_orphans(2);
    object().make("unheard_of");
    for answer in ["n\n", "\n", "yikes\n", "\x04"] {
        let (code, _, shown) = at_the_prompt(|| {}, answer);
        assert_eq!(code, Some(1), "{shown}");
        assert!(shown.contains(&orphan(0)) && shown.contains(&orphan(1)), "{shown}");
        assert!(!shown.contains("unheard_of"), "{shown}");
        assert_eq!(names().len(), 3);
    }
    let (code, report, shown) = at_the_prompt(|| {}, "y\n");
    assert_eq!((code, &report["dry_run"]), (Some(0), &false.into()), "{shown}");
    exactly(&["unheard_of"]);
}

/// Runs `reap` and calls `meanwhile` before each system call `number`, with how many there were
/// before, and its pid; its status and report.
fn reap_stopped_before(
    number: libc::c_long,
    meanwhile: impl FnMut(u32, u32),
) -> (Option<i32>, Value) {
    let report = scratch().join("report");
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s"]);
    reap.stdout(File::create(&report).unwrap());
    let status = stopped_before(number, &mut reap, meanwhile);
    let report = serde_json::from_slice(&fs::read(report).unwrap()).unwrap_or(Value::Null);
    (status.code(), report)
}

/// The move into the private directory: the lease is held.
const MOVE: libc::c_long = libc::SYS_renameat2;
/// The removal: the lease is held, and the object has no name in /dev/shm.
const REMOVAL: libc::c_long = libc::SYS_unlinkat;

/// A process that opens the object and, as long as a lease is held, waits for its end.
pub(crate) fn start_opener(name: &str) -> Child {
    let mut opener = Command::new("tail");
    opener.args(["-c", "1", "-f", "-s", "1000"]).arg(path(name));
    let opener = opener.stdout(Stdio::null()).spawn().unwrap();
    let system_call = format!("/proc/{}/syscall", opener.id());
    wait_for("the opener to wait for the lease", || {
        let call = fs::read_to_string(&system_call).unwrap();
        call.starts_with(&format!("{} ", libc::SYS_openat)).then_some(())
    });
    opener
}

pub(crate) fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Whoever opens it while it is examined gets it, and it keeps its name.
fn opened_under_the_lease() {
    let identity_before = object().make(orphan(0));
    let mut opener = None;
    let (code, report) = reap_stopped_before(MOVE, |turn, _| {
        if turn == 0 {
            opener = Some(start_opener(&orphan(0)));
        }
    });
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(listed(&report, &orphan(0))["outcome"], "opened-meanwhile");
    exactly(&[&orphan(0)]);
    assert_eq!(identity(orphan(0)), Some(identity_before));
    end(opener.unwrap());
    reap_all().finish().expect(0);
    exactly(&[]);
}

/// The same right before the removal, after the last look: the opener came by another name.
fn opened_when_its_name_is_gone() {
    let identity_before = object().make(orphan(0));
    fs::hard_link(path(orphan(0)), path("another-name")).unwrap();
    let mut opener = None;
    let (code, report) = reap_stopped_before(REMOVAL, |turn, _| {
        if turn == 0 {
            assert_eq!(identity(orphan(0)), None);
            opener = Some(start_opener("another-name"));
        }
    });
    // Too late to keep the name: that is said, and nothing that was planned is still there.
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(listed(&report, &orphan(0))["outcome"], "opened-at-removal", "{report:#}");
    assert_eq!(identity("another-name"), Some(identity_before));
    end(opener.unwrap());
}

/// A new object has taken the name when the old one would have to go back: the old one counts as
/// unlinked, is kept for its opener, and never returns.
fn name_taken_before_the_put_back() {
    object().make(orphan(0));
    let (mut opener, mut new) = (None, None);
    let (_, report) = reap_stopped_before(MOVE, |turn, _| match turn {
        0 => opener = Some(start_opener(&orphan(0))),
        1 => new = Some(object().make(orphan(0))),
        _ => {}
    });
    assert_eq!(listed(&report, &orphan(0))["outcome"], "opened-meanwhile", "{report:#}");
    assert_eq!(identity(orphan(0)), new);
    // Even when the name is free again.
    fs::remove_file(path(orphan(0))).unwrap();
    reap_all().finish();
    assert_eq!(identity(orphan(0)), None);
    end(opener.unwrap());
    reap_all().finish().expect(0);
    exactly(&[]);
}

/// Another object lies under the name when it is moved: it goes back, whatever it is.
fn replaced_under_the_lease() {
    object().make(orphan(0));
    let mut new = None;
    let (code, report) = reap_stopped_before(MOVE, |turn, _| {
        if turn == 0 {
            fs::remove_file(path(orphan(0))).unwrap();
            new = Some(object().size(1).make(orphan(0)));
        }
    });
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(listed(&report, &orphan(0))["outcome"], "changed");
    exactly(&[&orphan(0)]);
    assert_eq!(identity(orphan(0)), new);
}

/// Between the last look and the move somebody puts an object of their own under the name, and
/// before it can go back the name is taken by a third one: what was never judged is never removed.
fn moved_by_mistake_and_its_name_taken() {
    let content = b"somebody's, and never judged";
    object().make(orphan(0));
    let (mut stranger, mut third) = (None, None);
    let (code, report) = reap_stopped_before(MOVE, |turn, _| match turn {
        0 => {
            fs::remove_file(path(orphan(0))).unwrap();
            fs::write(path(orphan(0)), content).unwrap();
            stranger = identity(orphan(0));
        }
        1 => third = Some(object().make(orphan(0))),
        _ => {}
    });
    assert_eq!(code, Some(1), "{report:#}");
    validate(&report);
    assert_eq!(listed(&report, &orphan(0))["outcome"], "changed", "{report:#}");
    let kept = report["left"][0]["directory"].as_str().unwrap();
    assert!(kept.starts_with(".rtrack.kept."), "{report:#}");
    assert_eq!(report["left"].as_array().map(Vec::len), Some(1), "{report:#}");
    let inside = format!("{kept}/{}", orphan(0));
    let is_kept = || {
        exactly(&[kept, &orphan(0)]);
        assert_eq!((identity(orphan(0)), identity(&inside)), (third, stranger));
        assert_eq!(fs::read(path(&inside)).unwrap(), content);
    };
    is_kept();

    // The next one cannot give it back either, though nothing of it is planned.
    let holder = hold("map-shared", path(orphan(0)));
    for _ in 0..2 {
        let report = reap_all().finish().expect(1).json();
        let settled = &report["settled"][0];
        assert_eq!(settled["directory"], kept, "{report:#}");
        assert_eq!(settled["left"][0]["name"], orphan(0), "{report:#}");
        is_kept();
    }
    drop(holder);
    fs::remove_file(path(orphan(0))).unwrap();
    let report = reap_all().finish().expect(0).json();
    assert_eq!(report["settled"][0]["put_back"][0], orphan(0), "{report:#}");
    exactly(&[&orphan(0)]);
    assert_eq!(identity(orphan(0)), stranger);
    assert_eq!(fs::read(path(orphan(0))).unwrap(), content);
}

/// Nothing is removed by a look at processes that is too old: whoever has started since counts.
fn look_that_is_too_old() {
    const PYTHONS: &str = "psm_0a1b2c3d";
    let before = object().make(PYTHONS);
    make_orphans(1);
    let python = program_called("python3", "sleep");
    let mut started: Option<Child> = None;
    let file = scratch().join("report");
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"]);
    reap.stdout(File::create(&file).unwrap());
    // The directory is locked to see whether another one is at work, for the probing, and for the
    // execution of the plan.
    let status = stopped_before(libc::SYS_flock, &mut reap, |turn, _| {
        if turn != 2 {
            return;
        }
        let child = Command::new(&python).arg("1000").spawn().unwrap();
        runs(child.id(), "python3");
        started = Some(child);
        thread::sleep(Duration::from_secs(6));
    });
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(status.code(), Some(1), "{report:#}");
    let object = listed(&report, PYTHONS);
    assert_eq!(object["outcome"], "refused", "{object:#}");
    assert_eq!(verdict(&report, PYTHONS), ("unclaimed", "family-alive"), "{object:#}");
    assert_eq!(listed(&report, &orphan(0))["outcome"], "reaped");
    assert_eq!(identity(PYTHONS), Some(before));
    end(started.unwrap());
    let again = ["reap", "--yes", "--grace", "0s", "--assume-complete"];
    rtrack(again).finish().expect(0);
    exactly(&[]);
}

/// Nor when the time went by between the last look at the clock and the lease.
fn look_that_grows_too_old() {
    const PYTHONS: &str = "psm_0a1b2c3d";
    let before = object().make(PYTHONS);
    let python = program_called("python3", "sleep");
    let mut started: Option<Child> = None;
    let file = scratch().join("report");
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"]);
    reap.stdout(File::create(&file).unwrap());
    // The quarantine is made right before the lease.
    let status = stopped_before(libc::SYS_mkdirat, &mut reap, |turn, _| {
        if turn == 0 {
            started = Some(Command::new(&python).arg("1000").spawn().unwrap());
            thread::sleep(Duration::from_secs(6));
        }
    });
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(status.code(), Some(1), "{report:#}");
    assert_eq!(listed(&report, PYTHONS)["outcome"], "refused", "{report:#}");
    assert_eq!(identity(PYTHONS), Some(before));
    exactly(&[PYTHONS]);
    end(started.unwrap());
}

/// Dead before the move: nothing has happened.
fn killed_under_the_lease() {
    let identity_before = object().make(orphan(0));
    let (code, _) = reap_stopped_before(MOVE, |_, pid| kill(pid));
    assert_eq!(code, None);
    assert_eq!(identity(orphan(0)), Some(identity_before));
    // The kernel ended the lease with the process.
    fs::read(path(orphan(0))).unwrap();
    reap_all().finish().expect(0);
    exactly(&[]);
}

/// Dead between the move and the removal: the next reaper finishes, or gives back what is held.
fn killed_when_its_name_is_gone() {
    for is_opened in [false, true] {
        let identity_before = object().make(orphan(0));
        let (code, _) = reap_stopped_before(REMOVAL, |_, pid| kill(pid));
        assert_eq!((code, identity(orphan(0))), (None, None));
        let all = names();
        let quarantine = all.first().unwrap().to_str().unwrap();
        assert!(all.len() == 1 && quarantine.starts_with(".rtrack."), "{all:?}");
        let moved = path(quarantine).join(orphan(0));
        let holder = is_opened.then(|| hold("map-shared", &moved));
        rtrack(["reap", "--yes"]).finish().expect(0);
        if let Some(holder) = holder {
            exactly(&[&orphan(0)]);
            assert_eq!(identity(orphan(0)), Some(identity_before));
            drop(holder);
            reap_all().finish().expect(0);
        }
        exactly(&[]);
    }
}

fn reapers_at_the_same_time() {
    make_orphans(400);
    let kept = object().make("pulse-shm-12345");
    let _holder = hold("map-shared", path("pulse-shm-12345"));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let run = reap_all().finish();
                // One that had to wait too long for the others has done nothing.
                if run.code == Some(3) && run.stderr.contains("another reap is at work") {
                    return;
                }
                // What another one took is gone: nothing that was planned is still there.
                let report = run.expect(0).json();
                for object in report["objects"].as_array().unwrap() {
                    assert_ne!(object["outcome"], "failed", "{object:#}");
                }
            });
        }
    });
    exactly(&["pulse-shm-12345"]);
    assert_eq!(identity("pulse-shm-12345"), Some(kept));
}

/// One that works long keeps another one of the same user from starting; a stranger's lock does not.
fn while_another_one_is_at_work() {
    make_orphans(2);
    let file = scratch().join("report");
    let mut first = reap_all();
    first.stdout(File::create(&file).unwrap());
    let status = stopped_before(MOVE, &mut first, |turn, _| {
        if turn == 0 {
            let run = reap_all().finish().expect(3);
            assert!(
                run.stderr.contains("error: another reap is at work: it has .rtrack."),
                "{run:?}"
            );
            assert!(run.stdout.is_empty(), "{run:?}");
            assert!(identity(orphan(0)).is_some() && identity(orphan(1)).is_some());
            // Who only looks does not get in its way either: asking would break its lease.
            let list = rtrack(["list", "--json", "--grace", "0s"]).finish().expect(0);
            assert!(list.stderr.contains("note: another reap is at work"), "{list:?}");
            assert_eq!(verdict(&list.json(), &orphan(1)), ("unknown", "no-lease"));
        }
    });
    assert_eq!(status.code(), Some(0), "{status:?}");
    exactly(&[]);
    make_orphans(1);
    let _stranger = hold("directory-lock", path(""));
    reap_all().finish().expect(0);
    exactly(&[]);
}

/// What takes longer than a second says how far it is.
fn progress() {
    make_orphans(2);
    let errors = scratch().join("errors");
    let mut reap = reap_all();
    reap.stdout(Stdio::null()).stderr(File::create(&errors).unwrap());
    stopped_before(MOVE, &mut reap, |turn, _| {
        if turn == 1 {
            thread::sleep(Duration::from_millis(2500));
        }
    });
    let said = fs::read_to_string(errors).unwrap();
    assert!(said.contains("2 of 2 objects, 1 s: shm:mpich_shar_tmp"), "{said}");
}

fn start_reaping() -> Child {
    let mut command: Command = reap_all();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Whenever a reaper is killed, what is held keeps its name, or gets it back from the next one.
fn killed_again_and_again() {
    let held: Vec<String> = (0..5).map(|number| format!("pulse-shm-{number}")).collect();
    let identities: Vec<_> = held.iter().map(|name| object().make(name)).collect();
    let _holders: Vec<_> = held.iter().map(|name| hold("fd-read", path(name))).collect();
    let mut killed = 0;
    // From the start of the process to well after the middle of its work.
    for delay in (0..60).map(|step| Duration::from_micros(500 * step)) {
        make_missing(200);
        let mut reaper = start_reaping();
        thread::sleep(delay);
        reaper.kill().unwrap();
        killed += u32::from(!reaper.wait().unwrap().success());
        for (name, identity_before) in held.iter().zip(&identities) {
            assert_eq!(identity(name).as_ref(), Some(identity_before), "{name}, {delay:?}");
        }
    }
    assert!(killed > 0, "no reaper was killed before its end");
    reap_all().finish().expect(0);
    exactly(&held.iter().map(String::as_str).collect::<Vec<_>>());
}

fn make_missing(count: usize) {
    for number in 0..count {
        if identity(orphan(number)).is_none() {
            object().size(64).make(orphan(number));
        }
    }
}

/// What happens between the last judgement and the move is seen after it, and it goes back.
fn changed_before_the_move() {
    for (what, change) in [
        (
            "mode",
            (|| fs::set_permissions(path(orphan(0)), Permissions::from_mode(0o666)).unwrap())
                as fn(),
        ),
        ("link", || fs::hard_link(path(orphan(0)), path("another")).unwrap()),
        ("time", || thread::sleep(Duration::from_secs(6))),
    ] {
        let before = object().make(orphan(0));
        let mut reap = reap_all();
        let status = stopped_before(libc::SYS_renameat2, &mut reap, |turn, _| {
            if turn == 0 {
                change();
            }
        });
        assert_eq!(status.code(), Some(1), "{what}");
        assert_eq!(identity(orphan(0)), Some(before), "{what}");
        for name in names() {
            fs::remove_file(path(name)).unwrap();
        }
    }
}
