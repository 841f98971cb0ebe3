//! The harness itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::MODULES;
use crate::support::{
    Case, Finish, Need, case, hold, identity, is_real_root, names, note, object, path, pythons,
    rtrack, sem_open, shm_open, skip,
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
        case("interpreters", interpreters).needs(&[Need::Python]),
    ]
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
    assert_eq!(std::process::id(), 1);
    assert_eq!(fs::read_link("/proc/self").unwrap(), Path::new("1"));
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
    if pythons.is_empty() {
        skip("no Python from 3.8 on was found");
    }
    let shown: Vec<String> = pythons
        .iter()
        .map(|python| match python.for_everybody() {
            Some(shared) if !is_real_root() || shared.runs_as(4242) => python.to_string(),
            _ => format!("{python} (for its owner only)"),
        })
        .collect();
    note(format_args!("{} Pythons: {}", shown.len(), shown.join(", ")));
}
