//! Objects that are saved before they go, and come back: byte for byte, whatever comes between.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode;
use serde_json::Value;

use crate::reaping::{end, exactly, make_orphans, orphan, start_opener};
use crate::support::{
    Case, Finish, Need, case, identity, kill, listed, mount, names, object, path, reap_all, rtrack,
    scratch, somebody, stopped_before, stopped_before_any, validate, verdict,
};
use crate::traps::{program_called, runs};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("all_sizes_come_back", all_sizes_come_back),
        case("sparse_of_100_gib", sparse_of_100_gib),
        case("odd_names_come_back", odd_names_come_back),
        case("whose_archive_it_is", whose_archive_it_is),
        case("full_archive", full_archive),
        case("read_only_archive", read_only_archive),
        case("saved_before_the_name_goes", saved_before_the_name_goes),
        case("opened_while_it_is_saved", opened_while_it_is_saved),
        case("not_removed_after_all", not_removed_after_all),
        case("a_save_that_takes_long", a_save_that_takes_long).needs(&[Need::PidNamespace]),
        case("opened_between_two_leases", opened_between_two_leases).needs(&[Need::PidNamespace]),
        case("killed_while_it_is_saved", killed_while_it_is_saved),
        case("without_a_lease", without_a_lease).needs(&[Need::RealRoot]),
        case("without_content", without_content),
    ]
}

/// Where the cases archive, unless they say otherwise.
pub(crate) fn archive() -> PathBuf {
    scratch().join("archive")
}

/// Everything in the archive, by name.
pub(crate) fn files() -> BTreeMap<String, PathBuf> {
    let all = fs::read_dir(archive()).unwrap().map(Result::unwrap);
    all.map(|entry| (entry.file_name().into_string().unwrap(), entry.path())).collect()
}

/// The only file of the archive whose name ends so.
pub(crate) fn the_file(end: &str) -> PathBuf {
    let found: Vec<_> = files().into_iter().filter(|(name, _)| name.ends_with(end)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap().1
}

/// `reap --archive` of everything that it can be asked for; not yet started.
pub(crate) fn reap_to_archive() -> Command {
    let mut reap = reap_all();
    reap.arg("--archive").arg(archive());
    reap
}

/// `rtrack restore --json` from the archive; not yet started.
pub(crate) fn restore() -> Command {
    let mut restore = rtrack(["restore", "--json"]);
    restore.arg(archive());
    restore
}

/// What became of the entry, or object, in a report of `restore`.
#[track_caller]
pub(crate) fn became<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let objects = report["objects"].as_array().unwrap();
    let found = objects.iter().find(|object| object["name"] == name || object["entry"] == name);
    let found = found.unwrap_or_else(|| panic!("{name} is not in {report:#}"));
    (found["outcome"].as_str().unwrap(), found["says"].as_str().unwrap())
}

/// Bytes that are nowhere the same.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u8::try_from(state & 0xff).unwrap()
    };
    std::iter::repeat_with(step).take(length).collect()
}

/// What an object is, but for its inode and the times of birth and change.
pub(crate) fn state(name: impl AsRef<OsStr>) -> (u32, u32, u32, u64, [i64; 2]) {
    let meta = fs::symlink_metadata(path(name)).unwrap();
    (meta.mode(), meta.uid(), meta.gid(), meta.size(), [meta.mtime(), meta.mtime_nsec()])
}

fn all_sizes_come_back() {
    let sizes = [0, 1, 4095, 4096, 4097, 8191, 262_143, 262_144, 262_145, 20 << 20];
    let mut before = BTreeMap::new();
    for (number, size) in sizes.into_iter().enumerate() {
        let (name, content) = (orphan(number), noise(size, size as u64));
        fs::write(path(&name), &content).unwrap();
        fs::set_permissions(path(&name), Permissions::from_mode(0o640)).unwrap();
        before.insert(name.clone(), (state(&name), content));
    }
    let report = reap_to_archive().finish().expect(0).json();
    exactly(&[]);
    assert_eq!(files().len(), 2 * sizes.len());
    for (name, file) in files() {
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600, "{name}");
    }
    assert_eq!(archive().metadata().unwrap().mode() & 0o7777, 0o700);
    for name in before.keys() {
        let entry = listed(&report, name)["archived"].as_str().unwrap();
        let document = fs::read(archive().join(format!("{entry}.json"))).unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        validate(&document);
        assert_eq!(document["file"].as_str(), Some(name.as_str()));
        assert_eq!(document["verdict"]["verdict"], "orphaned");
        assert_eq!(document["verdict"]["reason"], "always-held-producer");
        let evidence = document["verdict"]["evidence"].as_array().unwrap();
        assert!(evidence.iter().any(|piece| piece["code"] == "lease-granted"), "{document:#}");
    }
    // A dry run checks everything and does nothing.
    let foreseen = restore().arg("-n").finish().expect(0).json();
    assert_eq!(foreseen["totals"]["by_outcome"]["would-restore"]["objects"], sizes.len());
    exactly(&[]);
    restore().finish().expect(0).json();
    for (name, (was, content)) in &before {
        assert_eq!(&state(name), was, "{name}");
        assert!(&fs::read(path(name)).unwrap() == content, "{name}");
    }
    assert_eq!(names().len(), sizes.len(), "{:?}", names());
}

/// Holes stay holes, in the archive and afterwards; what is in between is where it was.
fn sparse_of_100_gib() {
    const SIZE: u64 = 100 << 30;
    let places = [0, 4096 * 7 + 5, 50 << 30, SIZE - 3];
    let file = File::create(path(orphan(0))).unwrap();
    file.set_len(SIZE).unwrap();
    for at in places {
        file.write_all_at(b"abc", at).unwrap();
    }
    let empty = File::create(path(orphan(1))).unwrap();
    empty.set_len(SIZE).unwrap();
    drop((file, empty));
    let allocated = fs::metadata(path(orphan(0))).unwrap().blocks();
    reap_to_archive().finish().expect(0);
    exactly(&[]);
    let blocks: u64 = files().values().map(|file| file.metadata().unwrap().blocks()).sum();
    assert!(blocks < 200, "{blocks}");
    restore().finish().expect(0).json();
    let back = File::open(path(orphan(0))).unwrap();
    for at in places {
        let mut bytes = [0; 3];
        back.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(&bytes, b"abc", "{at}");
    }
    let meta = back.metadata().unwrap();
    assert_eq!((meta.size(), meta.blocks()), (SIZE, allocated));
    let empty = fs::metadata(path(orphan(1))).unwrap();
    assert_eq!((empty.size(), empty.blocks()), (SIZE, 0));
}

fn odd_names_come_back() {
    let long = "x".repeat(255);
    let odd: [&[u8]; 6] =
        [b"\xff\xfe", b"new\nline", b"psm_*", b" ", b"\xe2\x80\xae", long.as_bytes()];
    for name in odd {
        fs::write(path(OsStr::from_bytes(name)), name).unwrap();
    }
    let before = names();
    for name in names() {
        let mut reap = rtrack(["reap", "--yes", "--exact", "--force"]);
        let id = [b"shm:", name.as_bytes()].concat();
        reap.arg(OsStr::from_bytes(&id)).arg("--archive").arg(archive()).finish().expect(0);
    }
    exactly(&[]);
    restore().finish().expect(0).json();
    assert_eq!(names(), before);
    for name in odd {
        assert_eq!(fs::read(path(OsStr::from_bytes(name))).unwrap(), name);
    }
}

/// A directory that others can look into, or that would free nothing, is refused before anything is
/// looked at.
fn whose_archive_it_is() {
    make_orphans(1);
    let at = |place: &Path| {
        let mut reap = reap_all();
        reap.arg("--archive").arg(place);
        reap
    };
    let refused = |place: &Path, why: &str| {
        let run = at(place).finish().expect(3);
        assert!(run.stderr.contains(why) && run.stderr.contains("hint: "), "{run:?}");
        assert!(run.stdout.is_empty(), "{run:?}");
        assert!(identity(orphan(0)).is_some());
    };
    for mode in [0o750, 0o701, 0o770] {
        fs::create_dir_all(archive()).unwrap();
        fs::set_permissions(archive(), Permissions::from_mode(mode)).unwrap();
        refused(&archive(), "lets others in");
    }
    fs::set_permissions(archive(), Permissions::from_mode(0o700)).unwrap();
    let link = scratch().join("link");
    symlink(archive(), &link).unwrap();
    refused(&link, "not a directory");
    refused(&link.join(""), "not a directory");
    let file = scratch().join("file");
    fs::write(&file, "").unwrap();
    refused(&file, "not a directory");
    refused(&path("archive"), "same file system");
    assert!(identity("archive").is_none(), "it was made all the same");
    fs::create_dir(path("archive")).unwrap();
    fs::set_permissions(path("archive"), Permissions::from_mode(0o700)).unwrap();
    refused(&path("archive"), "same file system");
    fs::remove_dir(path("archive")).unwrap();
    refused(&scratch().join("missing/archive"), "directory above");
    // A dry run makes none, and refuses the same.
    at(&scratch().join("new")).arg("-n").finish().expect(0);
    assert!(!scratch().join("new").exists());
    at(&link).arg("-n").finish().expect(3);
    // Whatever the umask is.
    let umask = nix::sys::stat::umask(Mode::from_bits_truncate(0o277));
    at(&scratch().join("new")).finish().expect(0);
    nix::sys::stat::umask(umask);
    assert_eq!(scratch().join("new").metadata().unwrap().mode() & 0o7777, 0o700);
}

fn mount_archive(options: &str) {
    fs::create_dir(archive()).unwrap();
    let target = archive();
    let options = format!("mode=0700,{options}");
    mount("tmpfs", target.to_str().unwrap(), "tmpfs", 0, &options).unwrap();
}

/// The disk is full: the object stays, and nothing half is left.
fn full_archive() {
    mount_archive("size=1M");
    let before = object().size(3 << 20).make(orphan(0));
    object().size(100).make(orphan(1));
    let run = reap_to_archive().finish().expect(3);
    let report = run.json();
    let failed = listed(&report, &orphan(0));
    assert_eq!((&failed["outcome"], &failed["errno"]), (&"failed".into(), &libc::ENOSPC.into()));
    assert!(failed["says"].as_str().unwrap().contains("archive"), "{failed:#}");
    assert!(run.stderr.contains("hint: the archive is full"), "{run:?}");
    assert!(!run.stderr.contains("inode"), "{run:?}");
    assert_eq!(failed["archived"], Value::Null);
    // What there is room for goes.
    assert_eq!(listed(&report, &orphan(1))["outcome"], "reaped");
    exactly(&[&orphan(0)]);
    assert_eq!(identity(orphan(0)), Some(before));
    assert_eq!(files().len(), 2, "{:?}", files());
    restore().finish().expect(0);
}

fn read_only_archive() {
    mount_archive("size=1M");
    let target = archive();
    let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
    mount("tmpfs", target.to_str().unwrap(), "", flags, "").unwrap();
    let before = object().make(orphan(0));
    let run = reap_to_archive().finish().expect(3);
    let report = run.json();
    let failed = listed(&report, &orphan(0));
    assert_eq!((&failed["outcome"], &failed["errno"]), (&"failed".into(), &libc::EROFS.into()));
    assert!(!run.stderr.contains("/dev/shm is mounted"), "{run:?}");
    exactly(&[&orphan(0)]);
    assert_eq!(identity(orphan(0)), Some(before));
}

/// Runs `reap --archive` and calls `meanwhile` before each system call `number`; its status and
/// report.
fn archive_stopped_before(
    number: libc::c_long,
    meanwhile: impl FnMut(u32, u32),
) -> (Option<i32>, Value) {
    let file = scratch().join("report");
    let mut reap = reap_to_archive();
    reap.stdout(File::create(&file).unwrap());
    let status = stopped_before(number, &mut reap, meanwhile);
    let report = serde_json::from_slice(&fs::read(file).unwrap()).unwrap_or(Value::Null);
    (status.code(), report)
}

/// The copy is whole, and the document there, while the object still has its name.
fn saved_before_the_name_goes() {
    let content = noise(1 << 20, 5);
    fs::write(path(orphan(0)), &content).unwrap();
    let was = identity(orphan(0));
    let (mut writes, mut moves) = (0, Vec::new());
    archive_stopped_before(libc::SYS_pwrite64, |_, _| {
        writes += 1;
        assert_eq!(identity(orphan(0)), was);
    });
    assert!(writes >= 4, "{writes}");
    restore().finish().expect(0);
    fs::remove_dir_all(archive()).unwrap();
    // The first is that of the document in the archive, the second that of the object.
    archive_stopped_before(libc::SYS_renameat2, |turn, _| {
        let whole = files().keys().filter(|name| name.ends_with(".json")).count();
        moves.push((turn, whole, identity(orphan(0)).is_some()));
        let data = fs::read(the_file(".data")).unwrap();
        assert!(data == content);
    });
    assert_eq!(moves, [(0, 0, true), (1, 1, true)]);
}

/// Whoever opens it while it is copied does not wait for all of it, and nothing half is left.
fn opened_while_it_is_saved() {
    let before = object().size(8 << 20).make(orphan(0));
    let (mut opener, mut writes) = (None, 0);
    let (code, report) = archive_stopped_before(libc::SYS_pwrite64, |turn, _| {
        writes += 1;
        if turn == 1 {
            opener = Some(start_opener(&orphan(0)));
        }
    });
    assert_eq!(code, Some(1), "{report:#}");
    let left = listed(&report, &orphan(0));
    assert_eq!(left["outcome"], "opened-meanwhile");
    assert_eq!(left["archived"], Value::Null);
    assert!(writes < 10, "{writes}");
    assert_eq!(identity(orphan(0)), Some(before));
    assert!(files().is_empty(), "{:?}", files());
    end(opener.unwrap());
}

/// What stays after all has no entry: it would say nothing of what the object is when it goes.
fn not_removed_after_all() {
    for what in ["opened", "replaced", "changed"] {
        object().make(orphan(0));
        let mut opener = None;
        let (code, report) = archive_stopped_before(libc::SYS_renameat2, |turn, _| {
            // The first is that of the document in the archive.
            if turn != 1 {
                return;
            }
            match what {
                "opened" => opener = Some(start_opener(&orphan(0))),
                "replaced" => {
                    fs::remove_file(path(orphan(0))).unwrap();
                    object().size(1).make(orphan(0));
                }
                _ => fs::set_permissions(path(orphan(0)), Permissions::from_mode(0o606)).unwrap(),
            }
        });
        assert_eq!(code, Some(1), "{what}: {report:#}");
        exactly(&[&orphan(0)]);
        let entry = &listed(&report, &orphan(0))["archived"];
        if what == "replaced" {
            // What was saved is the one that is gone: by another hand, but its content is kept.
            assert!(entry.is_string(), "{report:#}");
            fs::remove_dir_all(archive()).unwrap();
        } else {
            assert_eq!(entry, &Value::Null, "{what}: {report:#}");
            assert!(files().is_empty(), "{what}: {:?}", files());
        }
        opener.into_iter().for_each(end);
        fs::remove_file(path(orphan(0))).unwrap();
    }
}

/// Runs `reap --archive` of a Python's object, whose copy takes long enough for `meanwhile` to
/// change who could come back for it.
fn slow_save(name: &str, mut meanwhile: impl FnMut()) -> (Option<i32>, Value) {
    let file = scratch().join("report");
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"]);
    reap.arg("--archive").arg(archive()).arg(name).stdout(File::create(&file).unwrap());
    let status = stopped_before(libc::SYS_pwrite64, &mut reap, |turn, _| {
        if turn == 0 {
            meanwhile();
            thread::sleep(Duration::from_secs(6));
        }
    });
    (status.code(), serde_json::from_slice(&fs::read(file).unwrap()).unwrap())
}

/// The look at the processes is renewed, and counts.
fn a_save_that_takes_long() {
    const PYTHONS: &str = "psm_0a1b2c3d";
    let content = noise(1 << 20, 8);
    fs::write(path(PYTHONS), &content).unwrap();
    fs::set_permissions(path(PYTHONS), Permissions::from_mode(0o600)).unwrap();
    let python = program_called("python3", "sleep");
    let mut started: Option<Child> = None;
    let (code, report) = slow_save(PYTHONS, || {
        let child = Command::new(&python).arg("1000").spawn().unwrap();
        runs(child.id(), "python3");
        started = Some(child);
    });
    assert_eq!(code, Some(1), "{report:#}");
    let left = listed(&report, PYTHONS);
    assert_eq!(left["outcome"], "refused", "{left:#}");
    assert!(left["says"].as_str().unwrap().starts_with("unclaimed now"), "{left:#}");
    assert!(files().is_empty(), "{:?}", files());
    end(started.unwrap());
    let (code, report) = slow_save(PYTHONS, || {});
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(listed(&report, PYTHONS)["outcome"], "reaped");
    // That rtrack had it open is no news.
    assert_eq!(verdict(&report, PYTHONS), ("orphaned", "no-family"));
    exactly(&[]);
    restore().finish().expect(0);
    assert!(fs::read(path(PYTHONS)).unwrap() == content);
}

/// Between the two leases of a long save somebody opens it and is gone again: no time of the file
/// tells of it, and it is noticed all the same.
fn opened_between_two_leases() {
    let before = object().size(1 << 20).make(orphan(0));
    let times = state(orphan(0));
    let (mut slept, mut opened) = (false, false);
    let file = scratch().join("report");
    let mut reap = reap_to_archive();
    reap.stdout(File::create(&file).unwrap());
    // The first is made while it is saved, the second in every look at the processes.
    let calls = [libc::SYS_pwrite64, libc::SYS_getdents64];
    let status = stopped_before_any(&calls, &mut reap, |number, _, _| {
        let leased = fs::read_to_string("/proc/locks").unwrap().contains("LEASE");
        if number == libc::SYS_pwrite64 && !slept {
            assert!(leased, "it is saved without a lease");
            thread::sleep(Duration::from_secs(4));
            slept = true;
        } else if number == libc::SYS_getdents64 && slept && !opened {
            assert!(!leased, "processes are looked at under a lease");
            drop(File::open(path(orphan(0))).unwrap());
            opened = true;
        }
    });
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert!(opened, "{report:#}");
    assert_eq!(status.code(), Some(1), "{report:#}");
    assert_eq!(listed(&report, &orphan(0))["outcome"], "opened-meanwhile", "{report:#}");
    assert_eq!(identity(orphan(0)), Some(before));
    assert_eq!(state(orphan(0)), times);
    assert!(files().is_empty(), "{:?}", files());
}

/// What a killed `reap` left in the archive is known for incomplete, and the object is there.
fn killed_while_it_is_saved() {
    let before = object().size(1 << 20).make(orphan(0));
    for number in [libc::SYS_pwrite64, libc::SYS_fsync, libc::SYS_renameat2] {
        let (code, _) = archive_stopped_before(number, |_, pid| kill(pid));
        assert_eq!(code, None);
        assert_eq!(identity(orphan(0)), Some(before));
        assert!(!files().is_empty());
        let run = restore().finish().expect(3);
        let report = run.json();
        assert_eq!(report["totals"]["by_outcome"]["refused"]["objects"], 1, "{report:#}");
        assert!(run.stderr.contains("incomplete"), "{run:?}");
        fs::remove_dir_all(archive()).unwrap();
        reap_empty_leftovers();
    }
    reap_to_archive().finish().expect(0);
    restore().finish().expect(0);
}

/// The private directory of a reaper that was killed before it moved anything.
fn reap_empty_leftovers() {
    rtrack(["reap", "--yes", "--kind", "sem"]).finish().expect(0);
    exactly(&[&orphan(0)]);
}

/// Files for which there is no lease are saved too, and who opens one meanwhile is noticed.
fn without_a_lease() {
    // Where anybody may rename, the objects of others can be forced.
    fs::set_permissions("/dev/shm", Permissions::from_mode(0o777)).unwrap();
    let before = object().size(1 << 20).mode(0o644).make("foreign");
    let forced = || {
        let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s", "--force", "foreign"]);
        reap.arg("--archive").arg(archive()).as_user(somebody());
        reap
    };
    let file = scratch().join("report");
    let mut reap = forced();
    reap.stdout(File::create(&file).unwrap());
    let status = stopped_before(libc::SYS_pwrite64, &mut reap, |turn, _| {
        if turn == 1 {
            drop(File::open(path("foreign")).unwrap());
        }
    });
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(status.code(), Some(1), "{report:#}");
    assert_eq!(listed(&report, "foreign")["outcome"], "opened-meanwhile", "{report:#}");
    assert_eq!(identity("foreign"), Some(before));
    assert!(files().is_empty(), "{:?}", files());
    forced().finish().expect(0);
    exactly(&[]);
    restore().as_user(somebody()).finish().expect(0);
    assert_eq!(fs::read(path("foreign")).unwrap(), vec![0xa5; 1 << 20]);
}

/// What has no content is refused and stays.
fn without_content() {
    symlink("target", path("link")).unwrap();
    nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
    for name in ["link", "fifo"] {
        let mut reap = rtrack(["reap", "--yes", "--json", "--force", name, "--archive"]);
        let report = reap.arg(archive()).finish().expect(1).json();
        let left = listed(&report, name);
        assert_eq!(left["outcome"], "refused", "{left:#}");
        assert!(left["says"].as_str().unwrap().contains("cannot be archived"), "{left:#}");
    }
    exactly(&["fifo", "link"]);
    assert!(files().is_empty(), "{:?}", files());
}
