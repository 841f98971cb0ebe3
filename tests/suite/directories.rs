//! Directories: removed whole or not at all, and nothing outside of them is touched.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use serde_json::Value;

use crate::reaping::exactly;
use crate::support::{
    Case, Finish, Holder, Need, case, hold, identity, judged, leave, listed, mount, object, path,
    rtrack, scratch, somebody, stays, stopped_before,
};

pub(crate) fn tests() -> Vec<Case> {
    const ALONE: &[Need] = &[Need::PidNamespace];
    const USERS: &[Need] = &[Need::PidNamespace, Need::RealRoot];
    vec![
        case("removed_with_all_that_is_in_it", removed_with_all_that_is_in_it).needs(ALONE),
        case("deep_and_wide", deep_and_wide).needs(ALONE),
        case("somebody_may_wait_in_it", somebody_may_wait_in_it).needs(ALONE),
        case("mounted_by_one_thread", mounted_by_one_thread).needs(ALONE),
        case("mounted_where_no_process_is", mounted_where_no_process_is).needs(ALONE),
        case("came_to_be_used_before_the_move", came_to_be_used_before_the_move).needs(ALONE),
        case("came_to_be_used_after_the_move", came_to_be_used_after_the_move).needs(ALONE),
        case("swapped_while_it_is_taken_apart", swapped_while_it_is_taken_apart).needs(ALONE),
        case("mounted_while_it_is_taken_apart", mounted_while_it_is_taken_apart).needs(ALONE),
        case("killed_before_and_after_it_is_decided", killed_before_and_after_it_is_decided)
            .needs(ALONE),
        case("leftover_that_somebody_uses", leftover_that_somebody_uses).needs(ALONE),
        case("leftover_file_that_no_lease_shows", leftover_file_that_no_lease_shows).needs(ALONE),
        case("private_directory_of_somebody_else", private_directory_of_somebody_else).needs(USERS),
        case("saved_and_put_back", saved_and_put_back).needs(ALONE),
        case("came_to_be_used_while_it_was_saved", came_to_be_used_while_it_was_saved).needs(ALONE),
        case("written_through_a_mapping_while_it_was_saved", written_through_a_mapping)
            .needs(ALONE),
        case("leftover_that_was_not_saved", leftover_that_was_not_saved).needs(ALONE),
        case("leftover_of_a_restoration", leftover_of_a_restoration).needs(ALONE),
        case("without_sight_only_by_force", without_sight_only_by_force).needs(ALONE),
    ]
}

/// A directory's name of which the proof needs sight of every process: joblib's, of a pid that no process has.
const DIRECTORY: &str = "joblib_memmapping_folder_4194399_0123456789abcdef_0123456789abcdef";

fn make(name: &str) {
    DirBuilder::new().mode(0o700).create(path(name)).unwrap();
    fs::create_dir_all(path(name).join("below/deeper")).unwrap();
    for file in ["inside", "below/deep", "below/deeper/deepest"] {
        object().make(format!("{name}/{file}"));
    }
}

fn reap(more: &[&str]) -> Command {
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"]);
    reap.args(more);
    reap
}

/// The report of a `reap` that is stopped before each system call `number`.
fn reap_stopped_before(number: libc::c_long, mut meanwhile: impl FnMut(u32, u32)) -> Value {
    let file = scratch().join("report");
    let mut reap = reap(&[]);
    reap.stdout(File::create(&file).unwrap());
    stopped_before(number, &mut reap, &mut meanwhile);
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

fn outcome(report: &Value) -> &str {
    listed(report, DIRECTORY)["outcome"].as_str().unwrap()
}

fn removed_with_all_that_is_in_it() {
    make(DIRECTORY);
    let inside = path(DIRECTORY);
    fs::write(scratch().join("kept"), "kept").unwrap();
    fs::create_dir(scratch().join("directory")).unwrap();
    fs::write(scratch().join("directory/kept"), "kept").unwrap();
    symlink(scratch().join("kept"), inside.join("link")).unwrap();
    symlink(scratch().join("directory"), inside.join("below/link")).unwrap();
    symlink("..", inside.join("below/up")).unwrap();
    object().make(std::ffi::OsString::from(format!("{DIRECTORY}/\u{9b}31m\n")));
    fs::set_permissions(inside.join("below/deeper"), Permissions::from_mode(0o000)).unwrap();
    // Another name of a file in it goes on.
    fs::hard_link(inside.join("inside"), path("another")).unwrap();
    let report = reap(&[]).finish().expect(0).json();
    assert_eq!(outcome(&report), "reaped", "{report:#}");
    exactly(&["another"]);
    for kept in ["kept", "directory/kept"] {
        assert_eq!(fs::read(scratch().join(kept)).unwrap(), b"kept");
    }
}

fn deep_and_wide() {
    make("deep");
    let mut below = path("deep");
    for _ in 0..60 {
        below.push("d");
    }
    fs::create_dir_all(&below).unwrap();
    fs::write(below.join("deepest"), "").unwrap();
    for number in 0..20_000 {
        File::create(below.join(number.to_string())).unwrap();
    }
    // Of what is deeper, nobody knows who uses it: not even force takes that.
    DirBuilder::new().mode(0o700).create(path("deeper")).unwrap();
    std::env::set_current_dir(path("deeper")).unwrap();
    for _ in 0..3000 {
        fs::create_dir("d").unwrap();
        std::env::set_current_dir("d").unwrap();
    }
    std::env::set_current_dir("/").unwrap();
    judged("deeper", "unknown", "no-lease");
    reap(&["--verdict", "orphaned,unclaimed"]).finish().expect(0);
    exactly(&["deeper"]);
    let report = reap(&["--force", "deeper"]).finish().expect(1).json();
    assert_eq!(listed(&report, "deeper")["outcome"], "refused", "{report:#}");
    exactly(&["deeper"]);
}

/// Who waits at a FIFO or a socket holds nothing that anybody could see.
fn somebody_may_wait_in_it() {
    make(DIRECTORY);
    judged(DIRECTORY, "orphaned", "no-family");
    let fifo = path(DIRECTORY).join("below/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    judged(DIRECTORY, "unknown", "no-lease");
    fs::remove_file(fifo).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(path(DIRECTORY).join("socket")).unwrap();
    judged(DIRECTORY, "unknown", "no-lease");
    stays(DIRECTORY);
    reap(&["--force", DIRECTORY]).finish().expect(0);
    exactly(&[]);
}

/// A thread alone has it mounted, in a mount namespace of its own.
fn mounted_by_one_thread() {
    make(DIRECTORY);
    judged(DIRECTORY, "orphaned", "no-family");
    let holder = hold("thread-mount", path(DIRECTORY));
    judged(DIRECTORY, "held", "mounted");
    stays(DIRECTORY);
    drop(holder);
    judged(DIRECTORY, "orphaned", "no-family");
}

/// A mount namespace goes on without a process, as long as a descriptor or a mount keeps it.
fn mounted_where_no_process_is() {
    make(DIRECTORY);
    judged(DIRECTORY, "orphaned", "no-family");
    let holder = hold("own-mounts:nothing", path(DIRECTORY));
    let link = format!("/proc/{}/ns/mnt", holder.pid);
    let kept = File::open(&link).unwrap();
    judged(DIRECTORY, "orphaned", "no-family");
    drop(holder);
    judged(DIRECTORY, "unknown", "no-lease");
    stays(DIRECTORY);
    drop(kept);
    judged(DIRECTORY, "orphaned", "no-family");
}

/// Between the last look and the move.
fn came_to_be_used_before_the_move() {
    type Change = fn() -> Option<Holder>;
    let changes: [(&str, Change); 5] = [
        ("held", || Some(hold("working-directory", path(DIRECTORY).join("below")))),
        ("held", || Some(hold("fd-o-path", path(DIRECTORY).join("below/deep")))),
        ("held", || Some(hold("map-shared", path(DIRECTORY).join("below/deep")))),
        ("refused", || {
            fs::write(path(DIRECTORY).join("below/new"), "").unwrap();
            None
        }),
        ("refused", || {
            let file = path(DIRECTORY).join("below/deep");
            fs::set_permissions(file, Permissions::from_mode(0o666)).unwrap();
            None
        }),
    ];
    for (expected, change) in changes {
        make(DIRECTORY);
        let before = identity(DIRECTORY);
        let mut kept = None;
        let report = reap_stopped_before(libc::SYS_renameat2, |turn, _| {
            if turn == 0 {
                kept = change();
            }
        });
        assert_eq!(outcome(&report), expected, "{report:#}");
        assert_eq!(identity(DIRECTORY), before);
        exactly(&[DIRECTORY]);
        for file in ["inside", "below/deep", "below/deeper/deepest"] {
            assert!(path(DIRECTORY).join(file).exists(), "{file}");
        }
        drop(kept);
        reap(&[]).finish().expect(0);
        exactly(&[]);
    }
}

/// Somebody is in it before it is moved, and somebody else takes its name before it can go back.
fn came_to_be_used_after_the_move() {
    make(DIRECTORY);
    let before = identity(DIRECTORY).unwrap();
    let mut holder = None;
    let report = reap_stopped_before(libc::SYS_renameat2, |turn, _| match turn {
        0 => holder = Some(hold("working-directory", path(DIRECTORY).join("below"))),
        // The move is done, and this is the way back.
        1 => fs::create_dir(path(DIRECTORY)).unwrap(),
        _ => {}
    });
    assert_eq!(outcome(&report), "held", "{report:#}");
    let new = identity(DIRECTORY).unwrap();
    assert_ne!(new, before, "the new one has the name");
    let place = report["left"][0]["directory"].as_str().unwrap().to_owned();
    assert!(place.starts_with(".rtrack.unlinked."), "{place}");
    assert_eq!(identity(format!("{place}/{DIRECTORY}")), Some(before));
    // It stays as long as somebody is in it, and never comes back.
    fs::remove_dir(path(DIRECTORY)).unwrap();
    reap(&[]).finish().expect(1);
    assert_eq!(identity(format!("{place}/{DIRECTORY}")), Some(before));
    drop(holder);
    reap(&[]).finish().expect(0);
    exactly(&[]);
}

/// Whoever can still write in it puts a link where a directory was.
fn swapped_while_it_is_taken_apart() {
    make(DIRECTORY);
    let outside = scratch().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let mut swapped = false;
    let report = reap_stopped_before(libc::SYS_openat2, |_, _| {
        for private in begun() {
            let below = private.join("below");
            if !swapped && below.is_dir() {
                fs::rename(&below, private.join("aside")).unwrap();
                symlink(&outside, &below).unwrap();
                swapped = true;
            }
        }
    });
    assert!(swapped);
    assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
    // Refused by the kernel, or gone with the rest.
    let again = reap(&[]).finish();
    assert!(matches!(outcome(&report), "failed" | "reaped"), "{report:#}");
    assert_eq!(again.code, Some(0), "{again:?}");
    exactly(&[]);
    assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
}

/// The directory, where it is taken apart.
fn begun() -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".rtrack.begun."))
        .map(|entry| entry.path().join(DIRECTORY))
        .collect()
}

/// A part of the same file system is mounted in it in the last moment: by its device it looks the same.
fn mounted_while_it_is_taken_apart() {
    make(DIRECTORY);
    DirBuilder::new().mode(0o700).create(path("outside")).unwrap();
    object().make("outside/kept");
    let (mut point, mut opened) = (None, 0);
    let report = reap_stopped_before(libc::SYS_openat2, |_, _| {
        for private in begun() {
            let below = private.join("below");
            // First the whole is opened; and what is below only once it could not be removed.
            opened += 1;
            if opened == 2 && below.is_dir() {
                let from = path("outside");
                let (from, to) = (from.to_str().unwrap(), below.to_str().unwrap());
                mount(from, to, "", libc::MS_BIND, "").unwrap();
                point = Some(below);
            }
        }
    });
    assert_eq!(outcome(&report), "failed", "{report:#}");
    assert!(identity("outside/kept").is_some());
    let again = reap(&[]).finish().json();
    assert_eq!(again["settled"][0]["finished"], serde_json::json!([]), "{again:#}");
    assert!(identity("outside/kept").is_some());
    umount2(&point.unwrap(), MntFlags::MNT_DETACH).unwrap();
    reap(&["sem.*"]).finish().expect(0);
    exactly(&["outside"]);
    assert!(identity("outside/kept").is_some());
}

/// Killed at each renaming: before the first it has its name, then it is whole in a private directory, then
/// it is being taken apart.
fn killed_before_and_after_it_is_decided() {
    for step in 0..4 {
        make(DIRECTORY);
        let mut kill_at = reap(&[]);
        stopped_before(libc::SYS_renameat2, &mut kill_at, |turn, pid| {
            if turn == step {
                let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            }
        });
        reap(&[]).finish().expect(0);
        exactly(&[]);
    }
}

/// What is whole goes back to who uses it, or if not everybody can be seen.
fn leftover_that_somebody_uses() {
    const LEFTOVER: &str = ".rtrack.0123456789abcdef";
    make(DIRECTORY);
    leave(LEFTOVER, 0o700, &[DIRECTORY]);
    let before = identity(format!("{LEFTOVER}/{DIRECTORY}"));
    let holder = hold("working-directory", path(LEFTOVER).join(DIRECTORY).join("below"));
    reap(&[]).finish().expect(0);
    exactly(&[DIRECTORY]);
    assert_eq!(identity(DIRECTORY), before);
    drop(holder);

    leave(LEFTOVER, 0o700, &[DIRECTORY]);
    // Without the operator's word, who is outside is not known.
    rtrack(["reap", "--yes", "--grace", "0s"]).finish().expect(0);
    exactly(&[DIRECTORY]);
    assert_eq!(identity(DIRECTORY), before);
    reap(&[]).finish().expect(0);
    exactly(&[]);
}

/// The look at all processes is for what no lease shows.
fn leftover_file_that_no_lease_shows() {
    const LEFTOVER: &str = ".rtrack.0123456789abcdef";
    for kind in ["fd-o-path", "bind-mount"] {
        let before = object().make("mpich_shar_tmpTrapA1");
        leave(LEFTOVER, 0o700, &["mpich_shar_tmpTrapA1"]);
        let holder = hold(kind, path(LEFTOVER).join("mpich_shar_tmpTrapA1"));
        reap(&[]).finish().expect(0);
        exactly(&["mpich_shar_tmpTrapA1"]);
        assert_eq!(identity("mpich_shar_tmpTrapA1"), Some(before), "{kind}");
        drop(holder);
        reap(&[]).finish().expect(0);
        exactly(&[]);
    }
}

/// It has a private directory's name, and is another user's: it is listed, and not touched.
fn private_directory_of_somebody_else() {
    const PLANTED: &str = ".rtrack.0123456789abcdef";
    make(PLANTED);
    chown(path(PLANTED), Some(somebody()), Some(somebody())).unwrap();
    listed(&crate::support::inventory(), PLANTED);
    reap(&["--verdict", "orphaned,unclaimed"]).finish().expect(0);
    let report = reap(&["--force", PLANTED]).finish().expect(1).json();
    assert_eq!(listed(&report, PLANTED)["outcome"], "refused", "{report:#}");
    assert!(identity(format!("{PLANTED}/below/deep")).is_some());
}

/// With all that is in it, and whatever that is called.
fn saved_and_put_back() {
    make(DIRECTORY);
    let odd = path(DIRECTORY).join("below/\u{9b}31m\n ");
    fs::write(&odd, "odd").unwrap();
    symlink("../inside", path(DIRECTORY).join("below/link")).unwrap();
    let sparse = File::create(path(DIRECTORY).join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    drop(sparse);
    let content = fs::read(path(DIRECTORY).join("below/deeper/deepest")).unwrap();
    let archive = scratch().join("archive");
    let archive = archive.to_str().unwrap();
    let report = reap(&["--archive", archive]).finish().expect(0).json();
    assert_eq!(outcome(&report), "reaped", "{report:#}");
    assert!(listed(&report, DIRECTORY)["archived"].is_string(), "{report:#}");
    exactly(&[]);
    rtrack(["restore", archive]).finish().expect(0);
    exactly(&[DIRECTORY]);
    assert_eq!(fs::read(path(DIRECTORY).join("below/deeper/deepest")).unwrap(), content);
    assert_eq!(fs::read(odd).unwrap(), b"odd");
    let link = fs::read_link(path(DIRECTORY).join("below/link")).unwrap();
    assert_eq!(link, std::path::Path::new("../inside"));
    let sparse = fs::metadata(path(DIRECTORY).join("sparse")).unwrap();
    assert_eq!((sparse.len(), std::os::unix::fs::MetadataExt::blocks(&sparse)), (1 << 40, 0));
    let mode = fs::metadata(path(DIRECTORY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

/// Nothing is left in the archive of what did not go.
fn came_to_be_used_while_it_was_saved() {
    make(DIRECTORY);
    let before = identity(DIRECTORY);
    let archive = scratch().join("archive");
    let file = scratch().join("report");
    let mut reap = reap(&["--archive", archive.to_str().unwrap()]);
    reap.stdout(File::create(&file).unwrap());
    let mut holder = None;
    stopped_before(libc::SYS_fsync, &mut reap, |turn, _| {
        if turn == 0 {
            holder = Some(hold("working-directory", path(DIRECTORY).join("below")));
        }
    });
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(outcome(&report), "held", "{report:#}");
    assert!(listed(&report, DIRECTORY)["archived"].is_null(), "{report:#}");
    assert_eq!(identity(DIRECTORY), before);
    assert_eq!(fs::read_dir(&archive).unwrap().count(), 0);
}

/// A write through a mapping that was read first leaves no time behind.
fn written_through_a_mapping() {
    make(DIRECTORY);
    let file = path(DIRECTORY).join("below/deep");
    let archive = scratch().join("archive");
    let report = scratch().join("report");
    let mut reap = reap(&["--archive", archive.to_str().unwrap()]);
    reap.stdout(File::create(&report).unwrap());
    // The directory is moved when it is saved.
    stopped_before(libc::SYS_renameat2, &mut reap, |_, _| {
        if archive.is_dir() && fs::read_dir(&archive).unwrap().count() > 1 && file.exists() {
            write_by_mapping(&file);
        }
    });
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(outcome(&report), "opened-meanwhile", "{report:#}");
    assert_eq!(fs::read(&file).unwrap().first(), Some(&b'!'));
    assert_eq!(fs::read_dir(&archive).unwrap().count(), 0);
}

fn write_by_mapping(path: &std::path::Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let length = std::num::NonZeroUsize::new(4096).unwrap();
    let protection = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
    let shared = nix::sys::mman::MapFlags::MAP_SHARED;
    // SAFETY: a mapping of 4096 bytes at an address of the kernel's choice, which nobody else uses.
    unsafe {
        let memory = nix::sys::mman::mmap(None, length, protection, shared, &file, 0).unwrap();
        let first: *mut u8 = memory.as_ptr().cast();
        std::hint::black_box(first.read_volatile());
        first.write_volatile(b'!');
        nix::sys::mman::munmap(memory, 4096).unwrap();
    }
}

/// What is to be saved, or is not in the plan, goes back instead.
fn leftover_that_was_not_saved() {
    const LEFTOVER: &str = ".rtrack.0123456789abcdef";
    make(DIRECTORY);
    let before = identity(DIRECTORY);
    let plan = scratch().join("plan.json");
    let mut made = rtrack(["reap", "--dry-run", "--json", "--grace", "0s", "sem.*"]);
    fs::write(&plan, made.finish().expect(0).stdout).unwrap();
    leave(LEFTOVER, 0o700, &[DIRECTORY]);
    rtrack(["reap", "--yes", "--from", plan.to_str().unwrap()]).finish().expect(0);
    exactly(&[DIRECTORY]);
    leave(LEFTOVER, 0o700, &[DIRECTORY]);
    let archive = scratch().join("archive");
    let archive = archive.to_str().unwrap();
    reap(&["--archive", archive]).finish().expect(0);
    exactly(&[DIRECTORY]);
    assert_eq!(identity(DIRECTORY), before);
    reap(&["--archive", archive]).finish().expect(0);
    exactly(&[]);
    rtrack(["restore", archive]).finish().expect(0);
    exactly(&[DIRECTORY]);
}

/// What was never whole never gets a name.
fn leftover_of_a_restoration() {
    make(DIRECTORY);
    let archive = scratch().join("archive");
    let archive = archive.to_str().unwrap();
    reap(&["--archive", archive]).finish().expect(0);
    let mut restore = rtrack(["restore", archive]);
    stopped_before(libc::SYS_fchownat, &mut restore, |turn, pid| {
        if turn == 1 {
            let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    });
    assert!(identity(DIRECTORY).is_none());
    rtrack(["reap", "--yes"]).finish().expect(0);
    exactly(&[]);
    rtrack(["restore", archive]).finish().expect(0);
    exactly(&[DIRECTORY]);
}

fn without_sight_only_by_force() {
    make(DIRECTORY);
    let mut reap = rtrack(["reap", "--yes", "--grace", "0s", "--verdict", "orphaned,unclaimed"]);
    reap.finish().expect(0);
    exactly(&[DIRECTORY]);
    let holder = hold("working-directory", path(DIRECTORY).join("below"));
    rtrack(["reap", "--yes", "--grace", "0s", "--force", DIRECTORY]).finish().expect(1);
    exactly(&[DIRECTORY]);
    drop(holder);
    rtrack(["reap", "--yes", "--grace", "0s", "--force", DIRECTORY]).finish().expect(0);
    exactly(&[]);
}
