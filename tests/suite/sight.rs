//! Whoever looks, from wherever, whatever they can see: what is in use is never called anything
//! but held, claimed or unknown, and stays; and what is dead, of a producer whose live owners
//! always hold it, is orphaned.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::process::Command;

use serde_json::Value;

use crate::support::{
    Case, Finish, Holder, Need, case, hold, identity, inside, object, path, rtrack, somebody,
    verdict,
};

pub(crate) fn tests() -> Vec<Case> {
    const ROOT: &[Need] = &[Need::RealRoot];
    vec![
        case("who_sees_everything", || seen_from(&[], &["own-mounts"])),
        case("ordinary_user", ordinary_user).needs(ROOT),
        case("another_users_objects", another_users_objects).needs(ROOT),
        case("root_looks_at_users_objects", root_looks_at_users_objects).needs(ROOT),
        case("hidden_processes", hidden_processes).needs(ROOT),
        case("nested_pid_namespace", || seen_from(CONTAINER, &["own-mounts"])),
        case("two_pid_namespaces", || seen_from(CONTAINER, &["own-pids", "own-proc"])),
        case("usual_capabilities", || seen_from(&["usual-capabilities"], &["own-mounts"])),
        case("usual_capabilities_in_a_container", usual_capabilities_in_a_container),
        case("container_of_another_user", container_of_another_user).needs(ROOT),
        case("user_namespace", user_namespace).needs(ROOT),
    ]
}

/// A PID namespace with its own /proc, which shares /dev/shm with everybody else.
const CONTAINER: &[&str] = &["own-pids", "own-proc"];

/// Every way to use a file that one process has, and another cannot always see.
const WAYS: &[&str] = &[
    "fd-read",
    "fd-write",
    "map-shared",
    "map-private",
    "map-no-access",
    "in-flight",
    "thread-table",
    "leader-gone",
];
/// Names of which each is judged by another rule: always held, known by its family, by a guardian,
/// by a pid (one that no process can have), not at all.
const NAMES: &[&str] = &[
    "psm_0a1b2c3d",
    "sem.mp-abcdefgh",
    "PostgreSQL.541706152",
    "torch_4194399_1_0",
    "pym-4194399-abcdefgh",
    "nobody_knows_it",
];
/// Directories: of one a file is in use, of the other only itself, which no lease tells of.
const DIRECTORY: &str = "joblib_memmapping_folder_4194399_0123456789abcdef_0123456789abcdef";
const WORKED_IN: &str = "joblib_memmapping_folder_4194399_fedcba9876543210_fedcba9876543210";

/// A name of a producer whose live owners always hold its objects, of no other case: these look at
/// the whole machine, and a process on its way from one mount namespace to another is known by the
/// name and the inode number of what it has open.
fn always_held(number: usize) -> String {
    format!("mpich_shar_tmp{:04}{number:02}", std::process::id() % 10_000)
}

/// What nobody uses.
fn dead_name() -> String {
    always_held(99)
}

/// Objects in use, and one that is not.
struct Scene {
    in_use: Vec<String>,
    holders: Vec<Holder>,
}

impl Scene {
    /// Objects of `owner`, or this user, of which each is held by a process in `places`.
    fn set(owner: Option<u32>, mode: u32, places: &[&str]) -> Self {
        let described = match owner {
            Some(uid) => object().mode(mode).owner(uid),
            None => object().mode(mode),
        };
        described.make(dead_name());
        let mut scene = Self { in_use: Vec::new(), holders: Vec::new() };
        let mut add = |name: &str, file: &str, way: &str| {
            let kind = [places, &[way]].concat().join(":");
            scene.holders.push(hold(&kind, path(file)));
            scene.in_use.push(name.to_owned());
        };
        for (number, way) in WAYS.iter().enumerate() {
            let name = always_held(number);
            described.make(&name);
            add(&name, &name, way);
        }
        for name in NAMES {
            described.make(name);
            add(name, name, "map-shared");
        }
        for directory in [DIRECTORY, WORKED_IN] {
            fs::DirBuilder::new().mode(mode | 0o100).create(path(directory)).unwrap();
            described.make(format!("{directory}/inside"));
            chown(path(directory), owner, owner).unwrap();
        }
        add(WORKED_IN, WORKED_IN, "working-directory");
        add(DIRECTORY, &format!("{DIRECTORY}/inside"), "map-shared");
        scene
    }

    /// Whoever runs `looks` leaves what is in use, and takes what is dead if that is said to be
    /// `orphaned`.
    #[track_caller]
    fn is_judged_right(&self, places: &[&str], dead: (&str, &str)) {
        let before: Vec<_> = self.in_use.iter().map(identity).collect();
        let document = list(places);
        for name in &self.in_use {
            let (verdict, reason) = verdict(&document, name);
            assert!(
                ["held", "claimed", "unknown"].contains(&verdict),
                "{name}, which is in use, is {verdict} ({reason}), seen from {places:?}"
            );
        }
        assert_eq!(verdict(&document, &dead_name()), dead, "seen from {places:?}: {document:#}");
        reap(places);
        let after: Vec<_> = self.in_use.iter().map(identity).collect();
        assert_eq!(before, after, "seen from {places:?}");
        assert!(identity(format!("{DIRECTORY}/inside")).is_some());
        assert_eq!(identity(dead_name()).is_none(), dead.0 == "orphaned", "seen from {places:?}");
    }

    /// When its users are gone, each object whose verdict nothing else on the machine can change is
    /// orphaned.
    #[track_caller]
    fn ends(self, places: &[&str]) {
        drop(self.holders);
        let document = list(places);
        for name in self.in_use.iter().filter(|name| name.starts_with("mpich")) {
            let judged = verdict(&document, name);
            assert_eq!(judged, ("orphaned", "always-held-producer"), "{name} from {places:?}");
        }
    }
}

const ORPHANED: (&str, &str) = ("orphaned", "always-held-producer");

fn looking(places: &[&str], arguments: &[&str]) -> Command {
    let rtrack = rtrack(arguments);
    if places.is_empty() { rtrack } else { inside(&places.join(":"), &rtrack) }
}

#[track_caller]
fn list(places: &[&str]) -> Value {
    looking(places, &["list", "--json", "--grace", "0s"]).finish().expect(0).json()
}

#[track_caller]
fn reap(places: &[&str]) {
    // Some of the places are those of a root who may write nowhere.
    let both = ["reap", "--yes", "--no-audit", "--grace", "0s", "--verdict", "orphaned,unclaimed"];
    let run = looking(places, &both).finish();
    assert!(matches!(run.code, Some(0 | 1)), "{run:?}");
}

/// This user's objects, in use in `places_of_use`, and looked at from `places`.
fn seen_from(places: &[&str], places_of_use: &[&str]) {
    let scene = Scene::set(None, 0o600, places_of_use);
    scene.is_judged_right(places, ORPHANED);
    scene.ends(places);
}

/// `uid` as a place.
fn as_user(uid: u32) -> String {
    format!("user={uid}")
}

/// Their own objects, in use by themselves, and by root, whose descriptors they cannot see.
fn ordinary_user() {
    let user = as_user(somebody());
    for places_of_use in [&[&*user][..], &["own-mounts"], &["own-pids", "own-proc", &user]] {
        for mode in [0o600, 0o666] {
            let scene = Scene::set(Some(somebody()), mode, places_of_use);
            scene.is_judged_right(&[&user], ORPHANED);
            scene.ends(&[&user]);
            clear();
        }
    }
}

/// Somebody else's objects: the kernel tells nothing about them.
fn another_users_objects() {
    let (owner, other) = (as_user(somebody()), as_user(somebody() + 1));
    for mode in [0o600, 0o666] {
        let scene = Scene::set(Some(somebody()), mode, &[&owner]);
        scene.is_judged_right(&[&other], ("unknown", "no-permission"));
        let users = [&["own-pids", "own-proc", &*other][..], &["own-proc=hidepid=2", &other]];
        for places in users {
            scene.is_judged_right(places, ("unknown", "no-permission"));
        }
        clear();
    }
}

fn root_looks_at_users_objects() {
    let owner = as_user(somebody());
    for mode in [0o600, 0o666] {
        let scene = Scene::set(Some(somebody()), mode, &[&owner]);
        scene.is_judged_right(&[], ORPHANED);
        scene.ends(&[]);
        clear();
    }
}

fn hidden_processes() {
    let user = as_user(somebody());
    for hidepid in ["1", "2", "4"] {
        let place = format!("own-proc=hidepid={hidepid}");
        for places_of_use in [&["own-mounts"][..], &[&user]] {
            let scene = Scene::set(Some(somebody()), 0o600, places_of_use);
            scene.is_judged_right(&[&place, &user], ORPHANED);
            scene.ends(&[&place, &user]);
            clear();
        }
    }
}

/// Root without `CAP_LEASE` and `CAP_SYS_PTRACE`; its own objects, in use inside and outside.
fn usual_capabilities_in_a_container() {
    let places = [CONTAINER, &["usual-capabilities"]].concat();
    for places_of_use in [&["own-mounts"][..], CONTAINER] {
        seen_from(&places, places_of_use);
        clear();
    }
}

/// The same, and objects of users in the container.
fn container_of_another_user() {
    let user = as_user(somebody());
    let root = [CONTAINER, &["usual-capabilities"]].concat();
    let ordinary = [CONTAINER, &["usual-capabilities", &*user]].concat();
    for places in [&root, &ordinary, &vec!["usual-capabilities"]] {
        for places_of_use in [&[&*user][..], &["own-pids", "own-proc", &user]] {
            let scene = Scene::set(Some(somebody()), 0o600, places_of_use);
            scene.is_judged_right(places, ORPHANED);
            scene.ends(places);
            clear();
        }
    }
}

/// A container without root: its root is an ordinary user, who cannot tell other users apart.
fn user_namespace() {
    let user = as_user(somebody());
    let places = [&[&*user, "own-users"], CONTAINER].concat();
    for places_of_use in [&[&*user][..], &["own-mounts"], &places] {
        let scene = Scene::set(Some(somebody()), 0o600, places_of_use);
        scene.is_judged_right(&places, ORPHANED);
        scene.ends(&places);
        clear();
    }
}

/// Another tmpfs for the next scene.
fn clear() {
    crate::support::mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=256M").unwrap();
}
