//! Whoever holds an object, in whatever way, keeps it. Each object here has the name of a
//! producer whose live owners always hold it, so that nothing but the holder stands between it
//! and `reap`.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::support::{
    Case, Finish, Holder, Need, case, evidence, hold, hold_as, identity, inventory, is_real_root,
    listed, names, object, path, reap_all, rtrack, sem_open, shm_open, skip, somebody, verdict,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("nobody", nobody),
        case("descriptor_to_read", || held_and_named("fd-read")),
        case("descriptor_to_write", || held_and_named("fd-write")),
        case("descriptor_with_o_path", descriptor_with_o_path),
        case("mapping_without_descriptor", || held_and_named("map-shared")),
        case("private_mapping", || held_and_named("map-private")),
        case("mapping_without_access", || held_and_named("map-no-access")),
        case("descriptor_in_flight", || held_by_the_invisible("in-flight")),
        case("descriptor_of_one_thread", || held_and_named("thread-table")),
        case("threads_without_their_leader", || held_and_named("leader-gone")),
        case("other_pid_namespace", || held_and_named("own-pids:map-shared")),
        case("stopped_process", stopped_process),
        case("running_executable", running_executable),
        case("hard_link", hard_link),
        case("bind_mount", bind_mount),
        case("loop_device", loop_device).needs(&[Need::RealRoot]),
        case("other_user", other_user).needs(&[Need::RealRoot]),
        case("seen_by_an_ordinary_user", seen_by_an_ordinary_user).needs(&[Need::RealRoot]),
        case("inside_a_pid_namespace", || held_and_named("map-shared"))
            .needs(&[Need::PidNamespace]),
        case("memory_of_the_c_library", memory_of_the_c_library),
        // Its name is Python's: a Python's tracker elsewhere on the machine would be evidence.
        case("semaphore_of_the_c_library", semaphore_of_the_c_library).needs(&[Need::PidNamespace]),
        case("working_directory", || held_directory("working-directory", "")),
        case("descriptor_of_a_directory", || held_directory("fd-read", "")),
        case("file_in_a_directory", || held_directory("map-shared", "inside")),
        case("lock_on_the_directory", lock_on_the_directory),
    ]
}

const NAME: &str = "mpich_shar_tmpAbC123";

/// The control: what the other cases make goes away when nobody holds it.
fn nobody() {
    object().make(NAME);
    assert_eq!(verdict(&inventory(), NAME), ("orphaned", "always-held-producer"));
    goes();
}

#[track_caller]
fn goes() {
    let report = reap_all().finish().expect(0).json();
    assert_eq!(listed(&report, NAME)["outcome"], "reaped", "{report:#}");
    assert!(names().is_empty(), "{:?}", names());
}

/// `reap` leaves everything that is there now, and the same inodes.
#[track_caller]
fn stays() {
    let before: Vec<_> = names().into_iter().map(|name| (identity(&name), name)).collect();
    reap_all().finish().expect(0).json();
    rtrack(["reap", "--yes", "--grace", "0s", "--force", NAME]).finish();
    let after: Vec<_> = names().into_iter().map(|name| (identity(&name), name)).collect();
    assert_eq!(before, after);
}

/// `NAME` is held, by the kernel's word; `reap` leaves it until the holder is gone.
#[track_caller]
fn held(holder: Holder) {
    let inventory = inventory();
    assert_eq!(verdict(&inventory, NAME).0, "held", "{inventory:#}");
    let evidence = evidence(&inventory, NAME);
    assert!(evidence.contains(&"lease-refused"), "{evidence:?}");
    stays();
    drop(holder);
    goes();
}

/// Whether the document names `holder` as one of the object's.
fn is_named(object: &serde_json::Value, holder: &Holder) -> bool {
    object["holders"].as_array().unwrap().iter().any(|named| named["pid"] == holder.pid)
}

/// Held in the way called `kind` by a process that the list can name.
#[track_caller]
fn held_and_named(kind: &str) {
    object().make(NAME);
    let holder = hold(kind, path(NAME));
    let inventory = inventory();
    assert!(is_named(listed(&inventory, NAME), &holder), "{} in {inventory:#}", holder.pid);
    held(holder);
}

/// Held in the way called `kind` by nobody whom /proc shows.
#[track_caller]
fn held_by_the_invisible(kind: &str) {
    object().make(NAME);
    let holder = hold(kind, path(NAME));
    let inventory = inventory();
    assert!(listed(&inventory, NAME)["holders"].as_array().unwrap().is_empty(), "{inventory:#}");
    held(holder);
}

/// The lease does not see such a descriptor, the scan of /proc does.
fn descriptor_with_o_path() {
    object().make(NAME);
    let holder = hold("fd-o-path", path(NAME));
    let inventory = inventory();
    assert_eq!(verdict(&inventory, NAME).0, "held", "{inventory:#}");
    assert!(is_named(listed(&inventory, NAME), &holder), "{inventory:#}");
    stays();
    drop(holder);
    goes();
}

fn stopped_process() {
    object().make(NAME);
    let holder = hold("map-shared", path(NAME));
    holder.stop();
    held(holder);
}

fn running_executable() {
    let binary = ["/bin/sleep", "/usr/bin/sleep"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(binary.unwrap(), path(NAME)).unwrap();
    fs::set_permissions(path(NAME), PermissionsExt::from_mode(0o700)).unwrap();
    let mut child = Command::new(path(NAME)).arg("1000").spawn().unwrap();
    assert_eq!(verdict(&inventory(), NAME).0, "held");
    stays();
    child.kill().unwrap();
    child.wait().unwrap();
    goes();
}

/// The holder opened the object by another name.
fn hard_link() {
    object().make(NAME);
    fs::hard_link(path(NAME), path("mpich_shar_tmpDeF456")).unwrap();
    let holder = hold("fd-read", path("mpich_shar_tmpDeF456"));
    assert_eq!(verdict(&inventory(), NAME).0, "held");
    stays();
    drop(holder);
    // The removal of the first name changes the inode that the second one has: that is no reason
    // to stop, and does not make it young.
    std::thread::sleep(Duration::from_millis(100));
    rtrack(["reap", "--yes", "--grace", "90ms"]).finish().expect(0);
    assert!(names().is_empty());
}

/// Mounted elsewhere, in a mount namespace that is not this one.
fn bind_mount() {
    object().make(NAME);
    let holder = hold("bind-mount", path(NAME));
    let inventory = inventory();
    assert_eq!(verdict(&inventory, NAME), ("held", "mounted"), "{inventory:#}");
    stays();
    drop(holder);
    goes();
}

fn loop_device() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/loop-control") {
        skip(format_args!("no loop devices: /dev/loop-control: {error}"));
    }
    object().size(1 << 20).make(NAME);
    held(hold("loop-device", path(NAME)));
}

fn other_user() {
    object().mode(0o666).make(NAME);
    held(hold_as(somebody(), "map-shared", path(NAME)));
}

/// Their own object, held by a process whose descriptors they may not see.
fn seen_by_an_ordinary_user() {
    assert!(is_real_root());
    object().owner(somebody()).make(NAME);
    let holder = hold("fd-read", path(NAME));
    let mut list = rtrack(["list", "--json", "--grace", "0s"]);
    let inventory = list.as_user(somebody()).finish().expect(0).json();
    assert_eq!(verdict(&inventory, NAME), ("held", "lease-refused"), "{inventory:#}");
    assert_eq!(inventory["sight"]["holders"], "partial");
    reap_all().as_user(somebody()).finish().expect(0);
    assert!(identity(NAME).is_some());
    drop(holder);
    reap_all().as_user(somebody()).finish().expect(0);
    assert!(names().is_empty());
}

fn memory_of_the_c_library() {
    let memory = shm_open(&format!("/{NAME}"), 4096);
    assert_eq!(verdict(&inventory(), NAME).0, "held");
    stays();
    drop(memory);
    goes();
}

/// The creator maps a semaphore under a name that it no longer has.
fn semaphore_of_the_c_library() {
    let semaphore = sem_open("/mp-abcdefgh", 3);
    let document = inventory();
    assert_eq!(verdict(&document, "mp-abcdefgh").0, "held");
    assert_eq!(listed(&document, "mp-abcdefgh")["semaphore"]["value"], 3);
    assert_eq!(listed(&document, "mp-abcdefgh")["id"], "sem:mp-abcdefgh");
    stays();
    drop(semaphore);
    let inventory = inventory();
    assert_eq!(verdict(&inventory, "mp-abcdefgh"), ("orphaned", "always-held-producer"));
    reap_all().finish().expect(0);
    assert!(names().is_empty());
}

/// Directories have no lease: here the scan of /proc has to find the holder.
#[track_caller]
fn held_directory(kind: &str, inside: &str) {
    fs::create_dir(path("parked")).unwrap();
    object().make("parked/inside");
    let holder = hold(kind, path("parked").join(inside));
    let inventory = inventory();
    assert_eq!(verdict(&inventory, "parked").0, "held", "{inventory:#}");
    assert!(is_named(listed(&inventory, "parked"), &holder), "{inventory:#}");
    stays();
    assert!(identity("parked/inside").is_some());
}

/// Whoever locks /dev/shm itself may delay us, and no more.
fn lock_on_the_directory() {
    object().make(NAME);
    let _holder = hold("directory-lock", "/dev/shm");
    let lock = Flock::lock(File::open("/dev/shm").unwrap(), FlockArg::LockExclusiveNonblock);
    assert!(lock.is_err(), "the fixture has the lock");
    assert_eq!(verdict(&inventory(), NAME).0, "orphaned");
    goes();
}
