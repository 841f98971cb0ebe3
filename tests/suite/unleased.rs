//! What no lease shows: descriptors without access, mounts, directories.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::support::{
    Case, Need, case, goes, hold, identity, inside, judged, known, list, mount, named, object,
    path, rtrack, scratch, skip, stays, verdict,
};
use crate::traps::fresh_shm;

pub(crate) fn tests() -> Vec<Case> {
    const ALONE: &[Need] = &[Need::PidNamespace];
    const USERS: &[Need] = &[Need::PidNamespace, Need::RealRoot];
    vec![
        // What the lease does not see.
        case("descriptor_without_access", descriptor_without_access).needs(ALONE),
        case("bind_mount_here", bind_mount_here).needs(ALONE),
        case("bind_mount_of_another_name", bind_mount_of_another_name).needs(ALONE),
        case("bind_mount_and_a_jail", bind_mount_and_a_jail).needs(ALONE),
        case("bind_mount_and_a_root_mounted_nowhere", bind_mount_and_a_root_mounted_nowhere)
            .needs(ALONE),
        case("bind_mount_that_nobody_can_look_at", bind_mount_that_nobody_can_look_at).needs(ALONE),
        case("rtrack_stopped_while_it_looks", rtrack_stopped_while_it_looks).needs(ALONE),
        case("mount_attached_nowhere", mount_attached_nowhere).needs(ALONE),
        case("mount_of_a_part_of_a_tmpfs", mount_of_a_part_of_a_tmpfs).needs(ALONE),
        // Directories.
        case("equal_directory_elsewhere", equal_directory_elsewhere).needs(ALONE),
        case("directory_in_use", directory_in_use).needs(ALONE),
        case("directory_that_the_kernel_uses", directory_that_the_kernel_uses).needs(ALONE),
        case("directory_under_a_loop_device", directory_under_a_loop_device).needs(USERS),
        case("directory_with_odd_names_as_layer", directory_with_odd_names_as_layer).needs(ALONE),
        case("directory_as_layer_through_a_link", directory_as_layer_through_a_link).needs(ALONE),
        case("neither_leases_nor_the_owners_uid", neither_leases_nor_the_owners_uid)
            .needs(&[Need::PidNamespace, Need::RealRoot]),
        case("directory_that_a_jail_works_in", directory_that_a_jail_works_in).needs(ALONE),
    ]
}

/// A name of a producer whose live owners always hold its objects.
const ALWAYS_HELD: &str = "mpich_shar_tmpTrapA1";
/// A directory's name of which the proof needs sight of every process: joblib's, of a pid that no process has.
const DIRECTORY: &str = "joblib_memmapping_folder_4194399_0123456789abcdef_0123456789abcdef";

fn descriptor_without_access() {
    let kinds = [
        "fd-without-access",
        "fd-o-path",
        "own-mounts:fd-o-path",
        "own-pids:fd-o-path",
        "fd-o-path-by-another-name",
    ];
    for kind in kinds {
        object().make(ALWAYS_HELD);
        let holder = hold(kind, path(ALWAYS_HELD));
        let document = judged(ALWAYS_HELD, "held", "open-by");
        known(&document, ALWAYS_HELD, "lease-granted");
        named(&document, ALWAYS_HELD, holder.pid);
        stays(ALWAYS_HELD);
        drop(holder);
        goes(ALWAYS_HELD, "always-held-producer");
    }
}

/// Root whom the kernel does not answer, of somebody else's objects, judges by what is seen: nothing is left out of that.
fn neither_leases_nor_the_owners_uid() {
    for kind in ["map-private", "map-shared", "fd-read", "fd-o-path", "thread-table"] {
        object().owner(61001).mode(0o600).make(ALWAYS_HELD);
        let holder = hold(kind, path(ALWAYS_HELD));
        for whose in ["all", "some", "none"] {
            let words =
                ["list", "--json", "--grace", "0s", "--assume-complete", "--holders", whose];
            let run = inside("no-leases", &rtrack(words)).output().unwrap();
            let document: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
            let (verdict, reason) = verdict(&document, ALWAYS_HELD);
            assert_eq!(verdict, "held", "{kind} {whose}: {reason} {document:#}");
            assert!(reason == "mapped-by" || reason == "open-by", "{kind} {whose}: {reason}");
        }
        let words = ["reap", "--yes", "--grace", "0s", "--assume-complete"];
        inside("no-leases", &rtrack(words)).output().unwrap();
        assert!(identity(ALWAYS_HELD).is_some(), "{kind}");
        drop(holder);
        fs::remove_file(path(ALWAYS_HELD)).unwrap();
    }
}

/// Mounts `source` on a file of the scratch directory, as long as the answer lives.
struct Bound(PathBuf);

impl Bound {
    fn new(source: &Path) -> Self {
        fs::create_dir_all(scratch().join("bound")).unwrap();
        let target = scratch().join("bound/here");
        fs::write(&target, "").unwrap();
        mount(source.to_str().unwrap(), target.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
        Self(target)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).unwrap();
    }
}

fn bind_mount_here() {
    object().make(ALWAYS_HELD);
    let bound = Bound::new(&path(ALWAYS_HELD));
    let document = judged(ALWAYS_HELD, "held", "mounted");
    known(&document, ALWAYS_HELD, "lease-granted");
    stays(ALWAYS_HELD);
    drop(bound);
    goes(ALWAYS_HELD, "always-held-producer");
}

/// The mount is of another name of the same inode.
fn bind_mount_of_another_name() {
    object().make(ALWAYS_HELD);
    fs::hard_link(path(ALWAYS_HELD), path("mpich_shar_tmpTrapB2")).unwrap();
    let bound = Bound::new(&path("mpich_shar_tmpTrapB2"));
    for name in [ALWAYS_HELD, "mpich_shar_tmpTrapB2"] {
        judged(name, "held", "mounted");
        stays(name);
    }
    // The name that it was mounted by goes, and it has another one.
    fs::remove_file(path("mpich_shar_tmpTrapB2")).unwrap();
    judged(ALWAYS_HELD, "held", "mounted");
    stays(ALWAYS_HELD);
    drop(bound);
    goes(ALWAYS_HELD, "always-held-producer");
}

/// In that mount namespace there is also a process in a jail, which sees no mount outside of it.
fn bind_mount_and_a_jail() {
    object().make(ALWAYS_HELD);
    let pair = hold("mount-beside-a-jail", path(ALWAYS_HELD));
    // Whichever of the two is looked at first.
    for _ in 0..10 {
        judged(ALWAYS_HELD, "held", "mounted");
        stays(ALWAYS_HELD);
    }
    drop(pair);
    goes(ALWAYS_HELD, "always-held-producer");
}

/// In that mount namespace there is also a process whose root directory is `/` of a mount that was
/// taken away: it sees no mount at all, and says so of the same namespace.
fn bind_mount_and_a_root_mounted_nowhere() {
    object().make(ALWAYS_HELD);
    let pair = hold("mount-beside-a-lost-root", path(ALWAYS_HELD));
    for _ in 0..10 {
        judged(ALWAYS_HELD, "held", "mounted");
        stays(ALWAYS_HELD);
    }
    drop(pair);
    goes(ALWAYS_HELD, "always-held-producer");
}

/// What is mounted there has lost the name that it was mounted by, and another mount covers it: it may
/// be any object that has another name.
fn bind_mount_that_nobody_can_look_at() {
    object().make(ALWAYS_HELD);
    fs::hard_link(path(ALWAYS_HELD), path("mpich_shar_tmpTrapB2")).unwrap();
    let bound = Bound::new(&path("mpich_shar_tmpTrapB2"));
    fs::remove_file(path("mpich_shar_tmpTrapB2")).unwrap();
    let above = bound.0.parent().unwrap();
    mount("tmpfs", above.to_str().unwrap(), "tmpfs", 0, "").unwrap();
    judged(ALWAYS_HELD, "unknown", "partial-holder-sight");
    stays(ALWAYS_HELD);
    nix::mount::umount(above).unwrap();
    judged(ALWAYS_HELD, "held", "mounted");
    drop(bound);
    goes(ALWAYS_HELD, "always-held-producer");
}

/// How long rtrack itself could not run says nothing of whom it asks.
fn rtrack_stopped_while_it_looks() {
    object().make(ALWAYS_HELD);
    let _holder = hold("fd-o-path-among-many", path(ALWAYS_HELD));
    for milliseconds in [15, 30, 45, 60, 75, 90] {
        let mut command = rtrack(["list", "--json", "--grace", "0s"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        thread::sleep(Duration::from_millis(milliseconds));
        kill(pid, Signal::SIGSTOP).unwrap();
        thread::sleep(Duration::from_millis(700));
        kill(pid, Signal::SIGCONT).unwrap();
        let answer = child.wait_with_output().unwrap();
        let document = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(verdict(&document, ALWAYS_HELD), ("held", "open-by"), "{milliseconds} ms");
    }
}

/// A clone of the mount that `open_tree` made, and that nothing lists.
fn mount_attached_nowhere() {
    object().make(ALWAYS_HELD);
    let holder = hold("open-tree", path(ALWAYS_HELD));
    let document = judged(ALWAYS_HELD, "held", "open-by");
    named(&document, ALWAYS_HELD, holder.pid);
    stays(ALWAYS_HELD);
    drop(holder);
    goes(ALWAYS_HELD, "always-held-producer");
}

/// /dev/shm itself is a directory of a larger tmpfs, as container engines and systemd make it: what
/// is mounted elsewhere is known by a longer path than its name, and that directory's own name is
/// none of an object.
fn mount_of_a_part_of_a_tmpfs() {
    let whole = scratch().join("whole");
    let part = whole.join("app");
    DirBuilder::new().recursive(true).create(&whole).unwrap();
    mount("tmpfs", whole.to_str().unwrap(), "tmpfs", 0, "mode=755").unwrap();
    fs::create_dir(&part).unwrap();
    fs::set_permissions(&part, Permissions::from_mode(0o1777)).unwrap();
    mount(part.to_str().unwrap(), "/dev/shm", "", libc::MS_BIND, "").unwrap();

    object().make("app");
    object().make(ALWAYS_HELD);
    private_directory();
    let document = judged(ALWAYS_HELD, "orphaned", "always-held-producer");
    assert_eq!(verdict(&document, "app"), ("unclaimed", "unknown-producer"));
    assert_eq!(verdict(&document, DIRECTORY), ("orphaned", "no-family"));

    let bound = Bound::new(&path(ALWAYS_HELD));
    judged(ALWAYS_HELD, "held", "mounted");
    stays(ALWAYS_HELD);
    // Covered, the file cannot be looked at: there is its path only.
    let cover = scratch().join("cover");
    fs::write(&cover, "").unwrap();
    let (from, to) = (cover.to_str().unwrap(), bound.0.to_str().unwrap());
    mount(from, to, "", libc::MS_BIND, "").unwrap();
    object().make("app");
    let document = judged(ALWAYS_HELD, "held", "mounted");
    assert_eq!(verdict(&document, "app"), ("unclaimed", "unknown-producer"));
    stays(ALWAYS_HELD);
    nix::mount::umount(&bound.0).unwrap();
    drop(bound);

    // By whichever of its paths.
    private_directory();
    for place in [path(DIRECTORY), part.join(DIRECTORY)] {
        let inside = hold("own-mounts:mount-point", place.join("below"));
        judged(DIRECTORY, "held", "mounted");
        drop(inside);
        judged(DIRECTORY, "orphaned", "no-family");
    }
    goes(ALWAYS_HELD, "always-held-producer");
}

// ---------------------------------------------------------------- directories

/// A directory of a producer whose family is dead: orphaned, unless something is known of it.
fn private_directory() {
    DirBuilder::new().mode(0o700).create(path(DIRECTORY)).unwrap();
    for below in ["below", "upper", "work"] {
        fs::create_dir(path(DIRECTORY).join(below)).unwrap();
    }
    object().make(format!("{DIRECTORY}/inside"));
    object().make(format!("{DIRECTORY}/below/deep"));
}

fn equal_directory_elsewhere() {
    for kind in ["working-directory", "fd-read", "fd-o-path"] {
        private_directory();
        let _other = hold(&format!("equal-path:{kind}"), path(DIRECTORY));
        judged(DIRECTORY, "orphaned", "no-family");
        let holder = hold(kind, path(DIRECTORY));
        let document = judged(DIRECTORY, "held", "open-by");
        named(&document, DIRECTORY, holder.pid);
        fresh_shm();
    }
}

/// No lease, and nothing that the kernel says of the files inside: a descriptor elsewhere, a
/// working directory, a mount in it, a layer of an overlay, in whatever mount namespace.
fn directory_in_use() {
    private_directory();
    for (kind, inside, reason) in [
        ("fd-read", "", "open-by"),
        ("fd-o-path", "", "open-by"),
        ("fd-o-path", "inside", "open-by"),
        ("fd-read", "below", "open-by"),
        ("own-mounts:fd-read", "below", "open-by"),
        ("own-pids:own-proc:fd-read", "", "open-by"),
        ("working-directory", "", "open-by"),
        ("working-directory", "below", "open-by"),
        ("own-mounts:working-directory", "below", "open-by"),
        ("own-pids:own-proc:working-directory", "below", "open-by"),
        ("own-mounts:covered-working-directory", "below", "open-by"),
        ("root-directory", "", "open-by"),
        ("root-directory", "below", "open-by"),
        ("own-mounts:root-directory", "below", "open-by"),
        ("open-tree", "", "open-by"),
        ("fd-in-open-tree", "below", "open-by"),
        ("map-shared", "below/deep", "lease-refused"),
        ("own-pids:own-proc:map-private", "below/deep", "lease-refused"),
        ("thread-table", "inside", "lease-refused"),
        ("thread-table", "below", "open-by"),
        ("thread-working-directory", "below", "open-by"),
        ("bind-mount", "below/deep", "mounted"),
        ("own-mounts:mount-point", "below", "mounted"),
        ("own-mounts:overlay-lower", "", "mounted"),
        ("own-mounts:overlay-lower", "below", "mounted"),
        ("own-mounts:overlay-upper", "", "mounted"),
    ] {
        eprintln!("{kind} {inside}");
        judged(DIRECTORY, "orphaned", "no-family");
        let holder = hold(kind, path(DIRECTORY).join(inside));
        let document = judged(DIRECTORY, "held", reason);
        if reason != "mounted" {
            named(&document, DIRECTORY, holder.pid);
        }
        stays(DIRECTORY);
        assert!(identity(format!("{DIRECTORY}/below/deep")).is_some());
    }
    judged(DIRECTORY, "orphaned", "no-family");
}

/// What no process has: a descriptor in flight, a layer that nobody can place.
fn directory_that_the_kernel_uses() {
    private_directory();
    judged(DIRECTORY, "orphaned", "no-family");
    let in_flight = hold("in-flight", path(DIRECTORY).join("below/deep"));
    judged(DIRECTORY, "held", "lease-refused");
    stays(DIRECTORY);
    drop(in_flight);
    // The layer's path says nothing without the working directory of who mounted it, or where its
    // /dev/shm is not.
    for kind in ["own-mounts:overlay-lower-relative", "own-mounts:overlay-alone"] {
        let layer = hold(kind, path(DIRECTORY));
        judged(DIRECTORY, "unknown", "partial-holder-sight");
        stays(DIRECTORY);
        drop(layer);
    }
    judged(DIRECTORY, "orphaned", "no-family");
}

fn directory_under_a_loop_device() {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/loop-control") {
        skip(format_args!("no loop devices: /dev/loop-control: {error}"));
    }
    private_directory();
    object().size(1 << 20).make(format!("{DIRECTORY}/image"));
    // The device outlives the descriptor that the fixture has of the file.
    let holder = hold("loop-device", path(DIRECTORY).join("image"));
    let document = list();
    assert_eq!(verdict(&document, DIRECTORY).0, "held", "{document:#}");
    stays(DIRECTORY);
    drop(holder);
}

/// The characters that separate the layers of an overlay, and those that are escaped.
fn directory_with_odd_names_as_layer() {
    for odd in ["a:b", "a,b", "a b", "a\\b", "a=b"] {
        DirBuilder::new().mode(0o700).create(path(odd)).unwrap();
        let escaped = odd.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
        let layer = hold("own-mounts:overlay-lower", path(escaped));
        judged(odd, "held", "mounted");
        drop(layer);
    }
}

/// The overlay was told a symbolic link, and the time when that was read last is due to be noted.
fn directory_as_layer_through_a_link() {
    private_directory();
    let linked = scratch().join("linked");
    fs::create_dir(&linked).unwrap();
    mount("tmpfs", linked.to_str().unwrap(), "tmpfs", libc::MS_STRICTATIME, "").unwrap();
    let link = linked.join("link");
    std::os::unix::fs::symlink(path(DIRECTORY), &link).unwrap();
    let layer = hold("own-mounts:overlay-lower", link);
    judged(DIRECTORY, "held", "mounted");
    stays(DIRECTORY);
    drop(layer);
    judged(DIRECTORY, "orphaned", "no-family");
}

/// Who is in a jail has other paths than who looks at it.
fn directory_that_a_jail_works_in() {
    private_directory();
    for kind in ["jail:working-directory", "own-mounts:jail:working-directory"] {
        judged(DIRECTORY, "orphaned", "no-family");
        let holder = hold(kind, path(DIRECTORY).join("below"));
        let document = judged(DIRECTORY, "held", "open-by");
        named(&document, DIRECTORY, holder.pid);
        stays(DIRECTORY);
    }
    judged(DIRECTORY, "orphaned", "no-family");
}
