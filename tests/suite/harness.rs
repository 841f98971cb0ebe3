//! The harness itself.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::MODULES;
use crate::support::{
    Case, Finish, Need, case, faults, hold, identity, is_real_root, names, note, object, path,
    pythons, rtrack, sem_open, shm_open, skip,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("every_file_is_listed", every_file_is_listed),
        case("the_machine_is_out_of_reach", the_machine_is_out_of_reach),
        case("pid_namespace", pid_namespace).needs(&[Need::PidNamespace]),
        case("objects_as_the_c_library_makes_them", objects_as_the_c_library_makes_them),
        case("holders_come_and_go", holders_come_and_go),
        case("rtrack_runs", rtrack_runs),
        case("rtrack_runs_as_another_user", rtrack_runs_as_another_user).needs(&[Need::RealRoot]),
        case("what_a_case_leaves_is_ended", what_a_case_leaves_is_ended),
        case("schemas_tell_right_from_wrong", schemas_tell_right_from_wrong),
        case("interpreters", interpreters).needs(&[Need::Python]),
    ]
}

/// Cases that other cases run, and nobody else.
pub(crate) fn hidden() -> Vec<Case> {
    vec![
        case("hangs", hangs).seconds(1),
        case("leaves_a_process", || println!("left {}", leave_a_process())),
    ]
}

/// A process that nobody waits for, and that changed its process group.
fn leave_a_process() -> u32 {
    let sleep = Command::new("sleep").arg("1000").process_group(0).stdout(Stdio::null()).spawn();
    sleep.unwrap().id()
}

fn hangs() {
    println!("left {}", leave_a_process());
    loop {
        thread::park();
    }
}

fn what_a_case_leaves_is_ended() {
    for (name, code, said) in [("hangs", 1, "watchdog"), ("leaves_a_process", 0, "")] {
        let case = format!("harness::{name}");
        let run = Command::new("/proc/self/exe").args(["__case", &case]).finish().expect(code);
        assert!(run.stderr.contains(said), "{run:?}");
        let text = run.text();
        let pid = text.lines().find_map(|line| line.strip_prefix("left ")).unwrap();
        assert!(!Path::new("/proc").join(pid).exists(), "{pid} is alive");
    }
}

/// A file in this directory that `main.rs` does not list would silently not be tested.
fn every_file_is_listed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite");
    let Ok(entries) = fs::read_dir(&directory) else {
        skip(format_args!("{} is not readable for this user", directory.display()));
    };
    let files: BTreeSet<String> = entries
        .map(|entry| Path::new(&entry.unwrap().file_name()).file_stem().unwrap().to_owned())
        .map(|stem| stem.into_string().unwrap())
        .filter(|stem| stem != "main" && stem != "support")
        .collect();
    let listed = MODULES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, listed, "MODULES in main.rs and the files beside it differ");
}

fn the_machine_is_out_of_reach() {
    assert!(names().is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let last = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/dev/shm")).unwrap();
    assert!(last.contains("size=262144k"), "{last}");
    // No optional field (`shared:N`): nothing that is mounted here is seen elsewhere.
    assert_eq!(last.split(' ').nth(6), Some("-"), "{last}");
}

fn pid_namespace() {
    assert_eq!(std::process::id(), 2);
    assert_eq!(fs::read_link("/proc/self").unwrap(), Path::new("2"));
}

fn objects_as_the_c_library_makes_them() {
    let memory = shm_open("/psm_0a1b2c3d", 8192);
    assert_eq!(memory.metadata().unwrap().len(), 8192);
    sem_open("/mp-abcdefgh", 1).wait();
    object().size(10).mode(0o640).make("plain");
    let all: Vec<_> = names().into_iter().collect();
    assert_eq!(all, ["plain", "psm_0a1b2c3d", "sem.mp-abcdefgh"]);
    assert!(identity("plain").is_some() && identity("other").is_none());
}

fn holders_come_and_go() {
    object().make("held");
    let mut holder = hold("map-shared", path("held"));
    let maps = fs::read_to_string(format!("/proc/{}/maps", holder.pid)).unwrap();
    assert!(maps.contains("/dev/shm/held"), "{maps}");
    assert!(holder.is_alive());
    let pid = holder.pid;
    drop(holder);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

fn rtrack_runs() {
    let version = rtrack(["--version"]).finish().expect(0);
    assert!(version.text().starts_with("rtrack "), "{version:?}");
}

fn rtrack_runs_as_another_user() {
    assert!(is_real_root());
    rtrack(["--version"]).as_user(4242).finish().expect(0);
}

fn interpreters() {
    let pythons = pythons();
    let shown: Vec<String> = pythons
        .iter()
        .map(|python| match python.for_everybody() {
            Some(shared) if !is_real_root() || shared.runs_as(4242) => python.to_string(),
            _ => format!("{python} (for its owner only)"),
        })
        .collect();
    note(format_args!("{} Pythons: {}", shown.len(), shown.join(", ")));
}

/// The documents of the design, and each with one thing wrong.
fn schemas_tell_right_from_wrong() {
    let object = json!({
        "id": "shm:psm_0a1b2c3d", "kind": "shm", "name": "psm_0a1b2c3d", "file": "psm_0a1b2c3d",
        "dev": "0:27", "ino": 12, "mode": "0600", "uid": 1000, "user": "alice", "gid": 1000,
        "size": 4096, "allocated": 4096, "born_at": "2026-11-22T06:00:00.5Z",
        "changed_at": "2026-11-22T06:00:00Z", "age_s": 3600.5,
        "producer": { "id": "cpython-shared-memory", "software": "CPython" },
        "creator": { "pid": 4711, "alive": false, "from": "name" },
        "namespace": null, "deleted": false,
        "holders": [{ "pid": 815, "comm": "python3", "uid": 1000, "how": ["map", "fd"] }],
        "verdict": "orphaned", "reason": "no-family",
        "evidence": [{ "code": "lease-granted", "says": "nobody has it open or mapped" }],
    });
    let mut inventory = json!({
        "schema": "rtrack.inventory/1", "host": "n1",
        "boot_id": "01234567-89ab-cdef-0123-456789abcdef", "taken_at": "2026-11-22T07:00:00.123Z",
        "sight": {
            "processes": "complete", "holders": "partial", "reasons": ["unreadable-processes"],
            "seen": 312, "unreadable": 40, "lease": "working",
        },
        "mounts": [{
            "path": "/dev/shm", "dev": "0:27", "size": 25_165_824_000_u64, "used": 3_145_728,
            "visible": 2_097_152, "hidden": 1_048_576,
        }],
        "objects": [object],
        "totals": {
            "objects": 1, "bytes": 4096,
            "by_verdict": { "orphaned": { "objects": 1, "bytes": 4096 } },
        },
    });
    assert_eq!(faults(&inventory), [""; 0]);
    let mut reap = inventory.clone();
    reap["schema"] = json!("rtrack.reap/1");
    reap["dry_run"] = json!(false);
    reap["objects"][0]["outcome"] = json!("failed");
    reap["objects"][0]["errno"] = json!(30);
    reap["objects"][0]["error"] = json!("Read-only file system");
    reap["totals"]["by_outcome"] = json!({ "failed": { "objects": 1, "bytes": 4096 } });
    assert_eq!(faults(&reap), [""; 0]);
    // Fields are added: that is no fault.
    inventory["objects"][0]["new"] = json!(1);
    assert_eq!(faults(&inventory), [""; 0]);

    for (document, place, wrong) in [
        (&inventory, "/schema", json!("rtrack.inventory/2")),
        (&inventory, "/taken_at", json!("yesterday")),
        (&inventory, "/sight/processes", json!("some")),
        (&inventory, "/objects/0/kind", json!("file")),
        (&inventory, "/objects/0/kind", json!("other")),
        (&inventory, "/objects/0/verdict", json!("dead")),
        (&inventory, "/objects/0/reason", json!("because")),
        (&inventory, "/objects/0/evidence/0/code", json!("because")),
        (&inventory, "/objects/0/mode", json!(384)),
        (&inventory, "/objects/0/changed_at", Value::Null),
        (&inventory, "/objects/0/holders/0", json!({})),
        (&inventory, "/totals/by_verdict", json!({ "dead": { "objects": 1, "bytes": 1 } })),
        (&reap, "/objects/0/outcome", json!("removed")),
        (&reap, "/objects/0/outcome", json!("would-reap")),
        (&reap, "/objects/0/errno", json!("EROFS")),
        (&reap, "/objects/0", json!({ "outcome": "reaped" })),
        (&reap, "/dry_run", Value::Null),
    ] {
        let mut document = document.clone();
        *document.pointer_mut(place).unwrap() = wrong.clone();
        assert!(!faults(&document).is_empty(), "{wrong} is allowed at {place}");
    }
}
