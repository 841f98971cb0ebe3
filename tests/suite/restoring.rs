//! What was archived comes back, to its name if that is free, and with what it had; what does not is
//! said.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde_json::Value;

use crate::archiving::{archive, became, files, noise, reap_to_archive, restore, state, the_file};
use crate::reaping::{exactly, make_orphans, orphan};
use crate::support::{
    Case, Finish, Finished, Need, case, identity, mount, names, object, path, rtrack, scratch,
    somebody, stopped_before,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("owner_mode_and_times_come_back", owner_mode_and_times_come_back)
            .needs(&[Need::RealRoot]),
        case("what_does_not_come_back_is_said", what_does_not_come_back_is_said),
        case("others_objects_as_an_ordinary_user", others_objects_as_an_ordinary_user)
            .needs(&[Need::RealRoot]),
        case("a_program_goes_on", a_program_goes_on),
        case("semaphore_comes_back", semaphore_comes_back),
        case("archive_of_a_stranger", archive_of_a_stranger).needs(&[Need::RealRoot]),
        case("never_over_what_exists", never_over_what_exists),
        case("name_taken_in_the_last_moment", name_taken_in_the_last_moment),
        case("names_of_what_is_archived", names_of_what_is_archived),
        case("archived_several_times", archived_several_times),
        case("no_room_to_restore", no_room_to_restore),
    ]
}

fn owner_mode_and_times_come_back() {
    object().mode(0o646).owner(somebody()).make(orphan(0));
    let (read, written) = (TimeSpec::new(-5, 7), TimeSpec::new(9_000_000_000_000, 999_999_999));
    let follow = UtimensatFlags::FollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, &path(orphan(0)), &read, &written, follow).unwrap();
    let (was, meta) = (state(orphan(0)), fs::metadata(path(orphan(0))).unwrap());
    let accessed = (meta.atime(), meta.atime_nsec());
    reap_to_archive().finish().expect(0);
    exactly(&[]);
    let report = restore().finish().expect(0).json();
    assert_eq!(report["objects"][0]["not_restored"].as_array().map(Vec::len), Some(0));
    assert_eq!(state(orphan(0)), was);
    let meta = fs::metadata(path(orphan(0))).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec()), accessed);
}

/// Set-uid bits are never brought back; that, and lost names, are said.
fn what_does_not_come_back_is_said() {
    object().mode(0o4755).make(orphan(0));
    fs::hard_link(path(orphan(0)), path("other-name")).unwrap();
    make_orphans_from(1, 2);
    let mut reap = rtrack(["reap", "--yes", "--grace", "0s", "mpich*"]);
    reap.arg("--archive").arg(archive()).finish().expect(0);
    exactly(&["other-name"]);
    let run = rtrack(["restore"]).arg(archive()).finish().expect(0);
    assert!(
        run.stderr.contains(&format!("{}: it had the special bits 4000", orphan(0))),
        "{run:?}"
    );
    assert!(run.stderr.contains(&format!("{}: it had 2 names", orphan(0))), "{run:?}");
    assert!(!run.stderr.contains(&format!("{}: it", orphan(1))), "{run:?}");
    assert!(run.stderr.contains("times of birth"), "{run:?}");
    assert_eq!(fs::metadata(path(orphan(0))).unwrap().mode() & 0o7777, 0o755);
}

/// What root archived and handed over: the owner is another one then, and what its group might do,
/// another group may not.
fn others_objects_as_an_ordinary_user() {
    object().mode(0o664).make(orphan(0));
    reap_to_archive().finish().expect(0);
    for file in files().values().chain([&archive()]) {
        std::os::unix::fs::chown(file, Some(somebody()), Some(somebody())).unwrap();
    }
    let report = restore().as_user(somebody()).finish().expect(0).json();
    let lost = report["objects"][0]["not_restored"].as_array().unwrap();
    let codes: Vec<_> = lost.iter().map(|lost| lost["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["owner", "group"], "{report:#}");
    let meta = fs::metadata(path(orphan(0))).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (somebody(), 0o604));
}

/// A program that maps it by name finds what it left.
fn a_program_goes_on() {
    let script = "import mmap, os, sys\n\
        fd = os.open('/dev/shm/' + sys.argv[1], os.O_RDWR)\n\
        m = mmap.mmap(fd, 0)\n\
        m[0:1] = bytes([m[0] + 1])\n\
        print(m[0], m[-1])\n";
    let mut content = noise(100_000, 3);
    (content[0], content[99_999]) = (41, 99);
    fs::write(path(orphan(0)), &content).unwrap();
    reap_to_archive().finish().expect(0);
    restore().finish().expect(0);
    let run = Command::new("python3").args(["-c", script, &orphan(0)]).finish().expect(0);
    assert_eq!(run.text(), "42 99\n");
    content[0] = 42;
    assert!(fs::read(path(orphan(0))).unwrap() == content);
}

fn semaphore_comes_back() {
    drop(crate::support::sem_open("/rtrack-test", 3));
    let mut reap = rtrack(["reap", "--yes", "--force", "sem:rtrack-test", "--archive"]);
    reap.arg(archive()).finish().expect(0);
    exactly(&[]);
    let report = restore().arg("sem:rtrack-test").finish().expect(0).json();
    assert_eq!(report["objects"][0]["id"], "sem:rtrack-test");
    let value = fs::read(path("sem.rtrack-test")).unwrap();
    assert_eq!((value.len(), value[0]), (size_of::<libc::sem_t>(), 3));
}

/// What somebody else may have put there is not put into /dev/shm by root.
fn archive_of_a_stranger() {
    make_orphans(1);
    reap_to_archive().finish().expect(0);
    let refused = |why: &str| {
        let run = restore().finish().expect(3);
        assert!(run.stderr.contains(why) && run.stderr.contains("hint: "), "{run:?}");
        exactly(&[]);
    };
    let give = |file: &Path, uid| std::os::unix::fs::chown(file, Some(uid), None).unwrap();
    give(&archive(), somebody());
    refused("belongs to uid");
    reap_to_archive().finish().expect(3);
    give(&archive(), 0);
    fs::set_permissions(archive(), Permissions::from_mode(0o720)).unwrap();
    refused("lets others in");
    fs::set_permissions(archive(), Permissions::from_mode(0o700)).unwrap();
    for end in [".json", ".data"] {
        give(&the_file(end), somebody());
        let run = restore().finish().expect(3);
        assert!(run.stderr.contains("others may have written it"), "{run:?}");
        exactly(&[]);
        give(&the_file(end), 0);
    }
    // Others may read it: it is not theirs.
    fs::set_permissions(archive(), Permissions::from_mode(0o755)).unwrap();
    restore().finish().expect(0);
    exactly(&[&orphan(0)]);
}

fn never_over_what_exists() {
    make_orphans(2);
    reap_to_archive().finish().expect(0);
    let precious = scratch().join("precious");
    fs::write(&precious, "precious").unwrap();
    for kind in ["file", "link", "directory"] {
        match kind {
            "file" => drop(object().make(orphan(0))),
            "link" => symlink(&precious, path(orphan(0))).unwrap(),
            _ => fs::create_dir(path(orphan(0))).unwrap(),
        }
        let was = identity(orphan(0));
        for more in [&["-n"][..], &[]] {
            let report = restore().args(more).arg(orphan(0)).finish().expect(1).json();
            assert_eq!(became(&report, &orphan(0)).0, "exists", "{report:#}");
        }
        assert_eq!(identity(orphan(0)), was);
        exactly(&[&orphan(0)]);
        fs::remove_file(path(orphan(0))).or_else(|_| fs::remove_dir(path(orphan(0)))).unwrap();
    }
    object().make(orphan(0));
    // The others come back.
    restore().finish().expect(1);
    exactly(&[&orphan(0), &orphan(1)]);
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
}

/// The name appears when everything is done, and not over what has taken it meanwhile.
fn name_taken_in_the_last_moment() {
    make_orphans(1);
    reap_to_archive().finish().expect(0);
    let mut taken = None;
    let report = scratch().join("report");
    let mut restore = restore();
    restore.stdout(File::create(&report).unwrap());
    let status = stopped_before(libc::SYS_linkat, &mut restore, |turn, _| {
        if turn == 0 {
            exactly(&[]);
            taken = Some(object().make(orphan(0)));
        }
    });
    assert_eq!(status.code(), Some(1));
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(became(&report, &orphan(0)).0, "exists");
    exactly(&[&orphan(0)]);
    assert_eq!(identity(orphan(0)), taken);
}

fn names_of_what_is_archived() {
    make_orphans(3);
    object().size(32).make("sem.ApR.65a1b2c3Z4d5e6");
    reap_to_archive().finish().expect(0);
    let restored = |arguments: &[&str]| {
        restore().args(arguments).finish().expect(0).json();
        let found = names();
        for name in &found {
            fs::remove_file(path(name)).unwrap();
        }
        found.len()
    };
    let (first, slash) = (orphan(0), format!("/{}", orphan(1)));
    assert_eq!(restored(&[&first]), 1);
    assert_eq!(restored(&[&slash, &format!("shm:{first}")]), 2);
    assert_eq!(restored(&["sem:ApR.65a1b2c3Z4d5e6"]), 1);
    assert_eq!(restored(&["mpich_*"]), 3);
    assert_eq!(restored(&["nothing*"]), 0);
    assert_eq!(restored(&[]), 4);
    let run = restore().args(["mpich_shar_tmp00000", &first]).finish().expect(1);
    assert!(run.stderr.contains("did you mean"), "{run:?}");
    exactly(&[&first]);
    let empty = scratch().join("empty");
    fs::create_dir(&empty).unwrap();
    rtrack(["restore"]).arg(&empty).finish().expect(0);
    rtrack(["restore"]).arg(&empty).arg("x").finish().expect(1);
    rtrack(["restore"]).arg(scratch().join("missing")).finish().expect(3);
    rtrack(["restore"]).finish().expect(2);
}

fn archived_several_times() {
    for content in ["first", "second", "third"] {
        fs::write(path(orphan(0)), content).unwrap();
        reap_to_archive().finish().expect(0);
    }
    let run = restore().finish().expect(0);
    let report = run.json();
    assert_eq!(report["totals"]["by_outcome"]["older"]["objects"], 2, "{report:#}");
    assert!(run.stderr.contains("archived several times"), "{run:?}");
    assert_eq!(fs::read(path(orphan(0))).unwrap(), b"third");
    // An older one by its entry's name.
    fs::remove_file(path(orphan(0))).unwrap();
    let objects = report["objects"].as_array().unwrap();
    let entry = objects.last().unwrap()["entry"].as_str().unwrap();
    restore().arg(entry).finish().expect(0);
    assert_eq!(fs::read(path(orphan(0))).unwrap(), b"first");
}

/// With no room for it nothing of it is there afterwards.
fn no_room_to_restore() {
    object().size(6 << 20).make(orphan(0));
    object().size(64).make(orphan(1));
    reap_to_archive().finish().expect(0);
    let flags = libc::MS_REMOUNT;
    mount("tmpfs", "/dev/shm", "", flags, "size=4M").unwrap();
    let used = || nix::sys::statvfs::statvfs("/dev/shm").unwrap().blocks_free();
    let before = used();
    let run: Finished = restore().arg(orphan(0)).finish().expect(3);
    let report = run.json();
    let failed = &report["objects"][0];
    assert_eq!((&failed["outcome"], &failed["errno"]), (&"failed".into(), &libc::ENOSPC.into()));
    assert!(run.stderr.contains("hint: /dev/shm is full"), "{run:?}");
    exactly(&[]);
    assert_eq!(used(), before);
    mount("tmpfs", "/dev/shm", "", flags, "size=64M").unwrap();
    restore().finish().expect(0);
    exactly(&[&orphan(0), &orphan(1)]);
}

fn make_orphans_from(first: usize, end: usize) {
    for number in first..end {
        object().size(64).make(orphan(number));
    }
}
