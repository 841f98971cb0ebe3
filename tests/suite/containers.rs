//! Other namespaces: what is in the /dev/shm of a container is listed, judged and reaped by the same rules as
//! what is in our own, and who is root in there gains nothing.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;

use crate::support::place::SOMEBODYS;
use crate::support::{
    Case, Finish, Holder, Need, case, hold, identity, inside, kill, object, path, rtrack, scratch,
    stopped_before, validate,
};

pub(crate) fn tests() -> Vec<Case> {
    const PIDS: &[Need] = &[Need::PidNamespace];
    const FUSE: &[Need] = &[Need::PidNamespace, Need::Fuse];
    vec![
        case("everything_is_listed", everything_is_listed).needs(PIDS),
        case("a_mount_counts_once", a_mount_counts_once).needs(PIDS),
        case("one_of_them", one_of_them).needs(PIDS),
        case("reaped", reaped).needs(PIDS),
        case("one_name_in_several", one_name_in_several).needs(PIDS),
        case("planned", planned).needs(PIDS),
        case("a_plan_for_what_has_ended", a_plan_for_what_has_ended).needs(PIDS),
        case("ends_meanwhile", ends_meanwhile).needs(PIDS),
        case("a_pid_of_its_own", a_pid_of_its_own).needs(PIDS),
        case("seen_from_a_jail", seen_from_a_jail).needs(PIDS),
        case("other_ipc_namespaces", other_ipc_namespaces)
            .needs(&[Need::PidNamespace, Need::RealRoot]),
        case("reaped_in_other_ipc_namespaces", reaped_in_other_ipc_namespaces)
            .needs(&[Need::PidNamespace, Need::RealRoot]),
        case("of_a_user_namespace", of_a_user_namespace)
            .needs(&[Need::PidNamespace, Need::RealRoot]),
        case("another_type", || left_out("ramfs", "it is no tmpfs but ramfs")).needs(PIDS),
        case("a_link", || left_out("link", "it is a symbolic link")).needs(PIDS),
        case("mounted_elsewhere", || left_out("elsewhere", "it is mounted at")).needs(PIDS),
        case("part_of_ours", || part_of_ours("part")).needs(PIDS),
        case("part_of_ours_moved", || part_of_ours("part-moved")).needs(PIDS),
        case("never_answers", || left_out("fuse", "it is no tmpfs but fuse")).needs(FUSE),
        case("way_to_it_never_answers", || {
            left_out("fuse-above", "a file system that may never answer")
        })
        .needs(FUSE),
        case("a_reaper_that_never_ends", a_reaper_that_never_ends).needs(PIDS),
        case("more_than_files_may_be_open", more_than_files_may_be_open).needs(PIDS),
        case("odd_files", odd_files).needs(PIDS),
        case("somebody_elses", somebody_elses).needs(&[Need::PidNamespace, Need::RealRoot]),
    ]
}

/// Names of a producer whose live owners always hold its objects.
const DEAD: &str = "pulse-shm-4194304001";
const USED: &str = "pulse-shm-4194304002";

fn container(objects: &[&str]) -> Holder {
    hold(&format!("own-shm={}:nothing", objects.join("+")), path(DEAD))
}

#[track_caller]
fn list(options: &[&str]) -> Value {
    let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let document = list.args(options).finish().expect(0).json();
    validate(&document);
    document
}

/// Names, places (0 is here) and verdicts, sorted.
fn seen(document: &Value) -> Vec<(String, u64, String)> {
    let objects = document["objects"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut seen: Vec<_> = objects
        .map(|o| {
            (text(&o["name"]), o["namespace"]["pid"].as_u64().unwrap_or(0), text(&o["verdict"]))
        })
        .collect();
    seen.sort();
    seen
}

fn row(name: &str, holder: Option<&Holder>, verdict: &str) -> (String, u64, String) {
    (name.to_owned(), holder.map_or(0, |holder| holder.pid.into()), verdict.to_owned())
}

/// Where the objects of a container are, seen from here.
fn there(holder: &Holder, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/dev/shm", holder.pid)).join(name)
}

fn everything_is_listed() {
    object().make(DEAD);
    let first = container(&[DEAD, "unknown"]);
    let second = hold(&format!("own-shm={DEAD}+{USED}:map-shared"), path(USED));
    let document = list(&["-A"]);
    let mut expected = vec![
        row(DEAD, None, "orphaned"),
        row(DEAD, Some(&first), "orphaned"),
        row(DEAD, Some(&second), "orphaned"),
        row(USED, Some(&second), "held"),
        row("unknown", Some(&first), "unclaimed"),
    ];
    expected.sort();
    assert_eq!(seen(&document), expected, "{document:#}");
    let held = document["objects"].as_array().unwrap().iter().find(|o| o["verdict"] == "held");
    assert_eq!(held.unwrap()["holders"][0]["pid"], second.pid, "{document:#}");
    assert_eq!(document["mounts"].as_array().unwrap().len(), 3, "{document:#}");
    // Who did not ask sees what is here.
    assert_eq!(seen(&list(&[])), [row(DEAD, None, "orphaned")]);
    let mut table = rtrack(["list", "-A", "--grace", "0s", "--assume-complete"]);
    let table = String::from_utf8(table.finish().expect(0).stdout).unwrap();
    assert!(table.contains(&format!("pid {}", first.pid)), "{table}");
}

fn a_mount_counts_once() {
    let first = container(&[DEAD]);
    // Another mount namespace with the same mounts, and processes beside them.
    let _second = hold("own-mounts:nothing", path(DEAD));
    let _third = hold("nothing", path(DEAD));
    assert_eq!(seen(&list(&["-A"])), [row(DEAD, Some(&first), "orphaned")]);
}

fn one_of_them() {
    object().make(DEAD);
    let (first, second) = (container(&[DEAD]), container(&[DEAD]));
    let of = |name: String| seen(&list(&["--namespace", &name]));
    let only = [row(DEAD, Some(&second), "orphaned")];
    assert_eq!(of(second.pid.to_string()), only);
    let link = fs::read_link(format!("/proc/{}/ns/mnt", second.pid)).unwrap();
    let link = link.to_str().unwrap().trim_start_matches("mnt:[").trim_end_matches(']');
    assert_eq!(of(link.to_owned()), only);
    let both = format!("{},{}", first.pid, second.pid);
    assert_eq!(of(both).len(), 2);
    let mut wrong = rtrack(["list", "--namespace", "nobody", "--assume-complete"]);
    let wrong = wrong.finish().expect(1);
    assert!(wrong.stderr.contains("--namespace nobody: no such namespace"), "{wrong:?}");
}

#[track_caller]
fn reap(options: &[&str], status: i32) -> Value {
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"]);
    reap.args(options).finish().expect(status).json()
}

fn reaped() {
    object().make(DEAD);
    let first = container(&[DEAD, "unknown"]);
    let second = hold(&format!("own-shm={DEAD}+{USED}:in-flight"), path(USED));
    let report = reap(&["--namespace", &first.pid.to_string()], 0);
    validate(&report);
    assert!(!there(&first, DEAD).exists() && there(&first, "unknown").exists(), "{report:#}");
    assert!(identity(DEAD).is_some() && there(&second, DEAD).exists(), "{report:#}");
    reap(&["-A", "--verdict", "orphaned,unclaimed"], 0);
    assert_eq!(identity(DEAD), None);
    assert!(!there(&second, DEAD).exists() && there(&second, USED).exists());
    // Nothing of the reaper stays.
    assert_eq!(fs::read_dir(there(&first, "")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(there(&second, "")).unwrap().count(), 1);
}

fn one_name_in_several() {
    let (first, second) = (container(&["unknown"]), container(&["unknown"]));
    let force = ["reap", "--yes", "-A", "--assume-complete", "--force", "unknown"];
    let refused = rtrack(force).finish().expect(2);
    assert!(refused.stderr.contains("hint: it is in several namespaces"), "{refused:?}");
    let pid = second.pid.to_string();
    reap(&["--namespace", &pid, "--force", "unknown"], 0);
    assert!(there(&first, "unknown").exists() && !there(&second, "unknown").exists());
    // Named, each is judged by itself.
    assert_eq!(list(&["-A", "unknown"])["objects"].as_array().unwrap().len(), 1);
}

fn plan(options: &[&str]) -> PathBuf {
    let file = scratch().join("plan");
    let mut plan = rtrack(["reap", "-n", "--json", "--grace", "0s", "--assume-complete"]);
    let plan = plan.args(options).finish().expect(0);
    validate(&plan.json());
    fs::write(&file, plan.stdout).unwrap();
    file
}

fn planned() {
    object().make(DEAD);
    let (first, second) = (container(&[DEAD]), container(&[DEAD]));
    let plan = plan(&["--namespace", &first.pid.to_string()]);
    rtrack(["reap", "--yes", "--from"]).arg(&plan).finish().expect(0);
    assert!(identity(DEAD).is_some() && there(&second, DEAD).exists());
    assert!(!there(&first, DEAD).exists());
}

fn a_plan_for_what_has_ended() {
    object().make(DEAD);
    let first = container(&[DEAD]);
    let plan = plan(&["-A"]);
    drop(first);
    let mut from = rtrack(["reap", "--yes", "--json", "--from"]);
    let report = from.arg(&plan).finish().expect(0).json();
    let mut outcomes: Vec<&str> = report["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["outcome"].as_str().unwrap())
        .collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["gone", "reaped"], "{report:#}");
}

fn ends_meanwhile() {
    object().make(DEAD);
    let first = container(&[DEAD]);
    let pid = first.pid;
    let file = scratch().join("list");
    let mut list = rtrack(["list", "-A", "--json", "--grace", "0s", "--assume-complete"]);
    list.stdout(fs::File::create(&file).unwrap());
    // Killed when its namespaces are known and its root is about to be opened.
    let mut killed = false;
    let status = stopped_before(libc::SYS_openat, &mut list, |_, _| {
        if !killed && fs::read_dir(format!("/proc/{pid}")).is_ok() {
            kill(pid);
            killed = true;
        }
    });
    assert_eq!(status.code(), Some(0));
    let document: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(seen(&document).first(), Some(&row(DEAD, None, "orphaned")), "{document:#}");
}

/// A pid in a name is one of the container's PID namespace.
fn a_pid_of_its_own() {
    let first = hold("own-shm=:own-pids:creator", path("pym-1-abcdefgh"));
    let document = list(&["-A"]);
    let objects = document["objects"].as_array().unwrap();
    let found = objects.iter().find(|o| o["name"] == "pym-1-abcdefgh");
    assert_eq!(found.unwrap()["creator"]["alive"], true, "{document:#}");
    drop(first);
}

/// What a process in a jail sees at /dev/shm is not what is there outside.
fn seen_from_a_jail() {
    object().make(DEAD);
    let _jailed = hold("own-mounts:jail:nothing", path(DEAD));
    assert_eq!(seen(&list(&["-A"])), [row(DEAD, None, "orphaned")]);
}

#[track_caller]
fn left_out(what: &str, why: &str) {
    object().make(DEAD);
    let _odd = hold(&format!("odd-shm={what}:nothing"), path(DEAD));
    let document = list(&["-A"]);
    assert_eq!(seen(&document), [row(DEAD, None, "orphaned")], "{document:#}");
    let left_out = document["namespaces"]["left_out"].to_string();
    assert!(left_out.contains(why), "{left_out}");
    assert!(left_out.contains("/dev/shm of mount namespace"), "{left_out}");
    reap(&["-A"], 0);
    rtrack(["list", "-A", "--strict", "--assume-complete"]).finish().expect(3);
}

/// Somebody's directory, which anybody can mount at the /dev/shm of a namespace of his own, holds what
/// its owner put there, and no objects of that namespace.
#[track_caller]
fn part_of_ours(what: &str) {
    let kept = PathBuf::from(SOMEBODYS).join(USED);
    fs::create_dir(SOMEBODYS).unwrap();
    fs::write(&kept, "kept").unwrap();
    object().make(DEAD);
    let _odd = hold(&format!("odd-shm={what}:nothing"), path(DEAD));
    let document = list(&["-A"]);
    let names: Vec<String> = seen(&document).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, [DEAD, "somebodys"], "{document:#}");
    let left_out = document["namespaces"]["left_out"].to_string();
    assert!(left_out.contains("it is /somebodys of a tmpfs"), "{left_out}");
    reap(&["-A"], 0);
    assert!(kept.exists() && identity(DEAD).is_none());
}

/// Whoever is root in a container can make it look as if a reaper were at work there: nothing is removed
/// there then, and everything elsewhere is.
fn a_reaper_that_never_ends() {
    object().make(DEAD);
    let (first, second) = (container(&[DEAD]), container(&[DEAD]));
    let private = there(&first, ".rtrack.0123456789abcdef");
    fs::DirBuilder::new().mode(0o700).create(&private).unwrap();
    let _locked = [private, there(&first, "")].map(|path| {
        let directory = fs::File::open(path).unwrap();
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).unwrap()
    });
    let report = reap(&["-A"], 0);
    assert!(identity(DEAD).is_none() && !there(&second, DEAD).exists(), "{report:#}");
    assert!(there(&first, DEAD).exists(), "{report:#}");
}

/// Any user can make more namespaces than a process may have open files: our own is looked at, and what is
/// left out is told of.
fn more_than_files_may_be_open() {
    object().make(DEAD);
    let _containers: Vec<Holder> = (0..8).map(|_| container(&[DEAD])).collect();
    let mut list = rtrack(["list", "-A", "--json", "--grace", "0s", "--assume-complete"]);
    // Four are left for namespaces, with what each may take.
    let most = 256 + 4 * 8;
    // SAFETY: between fork and exec one system call is made.
    unsafe { list.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, 64, most)?)) };
    let document = list.finish().expect(0).json();
    assert!(seen(&document).contains(&row(DEAD, None, "orphaned")), "{document:#}");
    let left_out = document["namespaces"]["left_out"].to_string();
    assert!(left_out.contains("more views of mount namespaces"), "{left_out}");
}

/// Nothing but regular files is opened, wherever it lies.
fn odd_files() {
    let odd = hold("odd-shm=fifo:nothing", path(DEAD));
    let document = list(&["-A"]);
    for object in document["objects"].as_array().unwrap() {
        assert_eq!((&object["kind"], &object["verdict"]), (&"other".into(), &"unknown".into()));
    }
    reap(&["-A", "--verdict", "orphaned,unclaimed"], 0);
    assert!(there(&odd, "psm_0a1b2c3d").symlink_metadata().is_ok());
}

/// Where root of outside is nobody, no private directory can be made; what is orphaned goes without one.
fn of_a_user_namespace() {
    let uid = crate::support::somebody();
    let way = format!("user={uid}:own-users:own-shm={DEAD}+{USED}:map-shared");
    let rootless = hold(&way, path(USED));
    reap(&["-A"], 0);
    assert!(!there(&rootless, DEAD).exists() && there(&rootless, USED).exists());
    assert_eq!(fs::read_dir(there(&rootless, "")).unwrap().count(), 1);
}

/// The ids of everything in the IPC namespace of a process, with their verdicts; sorted.
fn of_ipc(document: &Value, holder: &Holder) -> Vec<(String, String)> {
    let objects = document["objects"].as_array().unwrap().iter();
    let of = objects.filter(|object| object["namespace"]["pid"] == holder.pid);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut found: Vec<_> = of.map(|o| (text(&o["id"]), text(&o["verdict"]))).collect();
    found.sort();
    found
}

fn other_ipc_namespaces() {
    let uid = crate::support::somebody();
    // Nobody of that user lives but those who made them.
    let first = hold(&format!("user={uid}:own-users:filled-ipc=first:nothing"), path(DEAD));
    let second = hold("filled-ipc=second:nothing", path(DEAD));
    let document = list(&["-A"]);
    for (holder, queue) in [(&first, "first"), (&second, "second")] {
        let ids: Vec<String> = of_ipc(&document, holder).into_iter().map(|(id, _)| id).collect();
        let expected = [&format!("mqueue:{queue}"), "sysv-msg:0", "sysv-sem:0", "sysv-shm:0"]
            .map(String::from);
        assert_eq!(ids, expected, "{document:#}");
    }
    // A process of another namespace does not hold what has the same id here.
    let attached = hold("filled-ipc=third:sysv-attached", "0");
    let document = list(&["-A"]);
    let verdict = |holder: &Holder| {
        let found = of_ipc(&document, holder).into_iter().find(|(id, _)| id == "sysv-shm:0");
        found.unwrap().1
    };
    assert_eq!(verdict(&attached), "held", "{document:#}");
    assert_ne!(verdict(&second), "held", "{document:#}");
    assert!(list(&[])["objects"].as_array().unwrap().is_empty());
}

fn reaped_in_other_ipc_namespaces() {
    let first = hold("filled-ipc=first:nothing", path(DEAD));
    let second = hold("filled-ipc=second:nothing", path(DEAD));
    let own = crate::support::sysv::segment(0x4242, 4096, 0o600);
    let pid = first.pid.to_string();
    // One that is forced, where others have its id.
    let force = ["reap", "--yes", "-A", "--assume-complete", "--force", "sysv-shm:0"];
    let refused = rtrack(force).finish().expect(2);
    assert!(refused.stderr.contains("several namespaces"), "{refused:?}");
    reap(&["--namespace", &pid, "--force", "sysv-shm:0"], 0);
    reap(&["--namespace", &pid, "--verdict", "orphaned,unclaimed"], 0);
    // Messages that nobody has read are a claim.
    let document = list(&["-A"]);
    let claimed = [("sysv-msg:0".to_owned(), "claimed".to_owned())];
    assert_eq!(of_ipc(&document, &first), claimed, "{document:#}");
    assert_eq!(of_ipc(&document, &second).len(), 4, "{document:#}");
    assert!(crate::support::sysv::line("shm", own).is_some());
    // By a plan, which knows in which namespace an id was meant.
    let plan = plan(&["--namespace", &second.pid.to_string(), "--verdict", "orphaned,unclaimed"]);
    rtrack(["reap", "--yes", "--from"]).arg(&plan).finish().expect(0);
    let document = list(&["-A"]);
    let left: Vec<String> = of_ipc(&document, &second).into_iter().map(|(id, _)| id).collect();
    // Who made the memory is alive.
    assert_eq!(left, ["sysv-msg:0", "sysv-shm:0"], "{document:#}");
    assert!(crate::support::sysv::line("shm", own).is_some());
}

/// An ordinary user sees what is his, and is told of the rest.
fn somebody_elses() {
    let _root = container(&[DEAD]);
    let list = rtrack(["list", "-A", "--json", "--grace", "0s", "--assume-complete"]);
    let run = inside(&format!("user={}", crate::support::somebody()), &list).finish().expect(0);
    let document = run.json();
    assert_eq!(seen(&document), [], "{document:#}");
    assert!(document["namespaces"]["unseen_processes"].as_u64().unwrap() > 0, "{document:#}");
    assert!(run.stderr.contains("may not be seen"), "{run:?}");
}
