//! A mount without a free inode or a free byte: what is orphaned goes all the same, and nothing
//! is lost on the way.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::process::Command;

use serde_json::Value;

use crate::killed::{Opener, is_lease, is_there, make_with};
use crate::reaping::{exactly, orphan};
use crate::support::{
    Call, Case, Finish, Need, case, identity, leave, listed, mount, names, object, path, reap_all,
    rtrack, stopped_before_each,
};

pub(crate) fn tests() -> Vec<Case> {
    // Tracing makes a look at many processes slow.
    const FEW_PROCESSES: &[Need] = &[Need::PidNamespace];
    vec![
        case("no_inode_for_what_is_unclaimed", no_inode_for_what_is_unclaimed).needs(FEW_PROCESSES),
        case("no_inode_and_an_opener", no_inode_and_an_opener).needs(FEW_PROCESSES),
        case("no_inode_and_a_late_opener", no_inode_and_a_late_opener).needs(FEW_PROCESSES),
        case("no_inode_and_a_newer_object", no_inode_and_a_newer_object).needs(FEW_PROCESSES),
        case("no_inode_to_set_aside", no_inode_to_set_aside).needs(FEW_PROCESSES),
        case("one_inode_and_a_directory", one_inode_and_a_directory).needs(FEW_PROCESSES),
        case("no_room_to_settle", no_room_to_settle).needs(FEW_PROCESSES),
    ]
}

/// There is room for one private directory, and a directory wants two.
fn one_inode_and_a_directory() {
    few_inodes();
    let directory = "joblib_memmapping_folder_4194399_0123456789abcdef_0123456789abcdef";
    DirBuilder::new().mode(0o700).create(path(directory)).unwrap();
    object().make(format!("{directory}/inside"));
    let filled = fill();
    fs::remove_file(path("fill-0")).unwrap();
    let report = reap().arg("--assume-complete").finish().expect(0).json();
    assert_eq!(listed(&report, directory)["outcome"], "reaped", "{report:#}");
    make_room_after(1, filled);
    exactly(&[]);
}

/// A /dev/shm of few inodes.
fn few_inodes() {
    mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777,size=16M,nr_inodes=20").unwrap();
}

/// Uses up every inode; how many objects that took.
fn fill() -> usize {
    (0..100).find(|number| File::create_new(path(format!("fill-{number}"))).is_err()).unwrap()
}

/// Ends it again, but for the first that are gone already.
fn make_room_after(gone: usize, filled: usize) {
    for number in gone..filled {
        fs::remove_file(path(format!("fill-{number}"))).unwrap();
    }
}

fn make_room(filled: usize) {
    make_room_after(0, filled);
}

fn reap() -> Command {
    rtrack(["reap", "--yes", "--json", "--grace", "0s"])
}

/// Runs `reap` and calls `meanwhile` before each system call that `marks` names; its report.
fn reap_stopped_at(marks: impl Fn(&Call) -> bool, mut meanwhile: impl FnMut(usize)) -> Value {
    let mut reap = reap();
    reap.stdout(File::create("report").unwrap());
    let mut turn = 0;
    stopped_before_each(&mut reap, |call, _| {
        if marks(&call) {
            meanwhile(turn);
            turn += 1;
        }
    });
    assert!(turn > 0, "it never came there");
    serde_json::from_slice(&fs::read("report").unwrap()).unwrap()
}

/// The lease is asked whether it is whole: before the removal, and once more after it.
fn asks_the_lease(call: &Call) -> bool {
    call.number == libc::SYS_fcntl && call.arguments[1] == u64::try_from(libc::F_GETLEASE).unwrap()
}

/// Without a private directory only what is orphaned goes; with the inode that this frees there is
/// one again, and what comes after it goes as always.
fn no_inode_for_what_is_unclaimed() {
    few_inodes();
    object().make("unheard_of");
    fill();
    let run = reap_all().arg("unheard_of").finish().expect(3);
    let report = run.json();
    let unclaimed = listed(&report, "unheard_of");
    let (outcome, errno) = (&unclaimed["outcome"], &unclaimed["errno"]);
    assert_eq!((outcome, errno), (&"failed".into(), &libc::ENOSPC.into()), "{report:#}");
    assert!(run.stderr.contains("hint: the mount has no inode left"), "{run:?}");
    assert!(identity("unheard_of").is_some());

    fs::rename(path("fill-0"), path(orphan(0))).unwrap();
    let report = reap_all().args([&*orphan(0), "unheard_of", "--sort", "name"]).finish().expect(0);
    assert_eq!(report.json()["totals"]["by_outcome"]["reaped"]["objects"], 2);
    assert!(identity("unheard_of").is_none() && identity(orphan(0)).is_none());
}

/// Whoever opens the object before the last look at the lease keeps it, with its name.
fn no_inode_and_an_opener() {
    few_inodes();
    let before = make_with(&orphan(0), "wanted again");
    let filled = fill();
    let mut opener = None;
    let report = reap_stopped_at(asks_the_lease, |turn| {
        if turn == 0 {
            opener = Some(Opener::start(&orphan(0)));
        }
    });
    assert_eq!(listed(&report, &orphan(0))["outcome"], "opened-meanwhile", "{report:#}");
    is_there(&orphan(0), before, "wanted again");
    drop(opener.unwrap().file());
    make_room(filled);
    exactly(&[&orphan(0)]);
}

/// Whoever comes after it keeps it without a name, and that is said.
fn no_inode_and_a_late_opener() {
    few_inodes();
    let before = make_with(&orphan(0), "wanted again");
    let filled = fill();
    let mut opener = None;
    let report = reap_stopped_at(
        |call| call.number == libc::SYS_unlinkat,
        |turn| {
            if turn == 0 {
                opener = Some(Opener::start(&orphan(0)));
            }
        },
    );
    assert_eq!(listed(&report, &orphan(0))["outcome"], "opened-at-removal", "{report:#}");
    assert_eq!(opener.unwrap().file().metadata().unwrap().ino(), before.1);
    make_room(filled);
    exactly(&[]);
}

/// Another object that is moved to the name, which takes no inode, is not removed for the old one.
fn no_inode_and_a_newer_object() {
    few_inodes();
    make_with(&orphan(0), "stale");
    let newer = make_with("newer", "newer");
    let filled = fill();
    // Right before the name is looked at once more, under the lease.
    let expected = [libc::SYS_mkdirat, libc::SYS_fcntl, libc::SYS_statx, libc::SYS_openat];
    let steps = Cell::new(0);
    let marks = |call: &Call| {
        let leases = call.number != libc::SYS_fcntl || is_lease(call);
        let next = expected.get(steps.get()) == Some(&call.number) && leases;
        steps.set(steps.get() + usize::from(next));
        next && steps.get() == expected.len()
    };
    let replace = |_| fs::rename(path("newer"), path(orphan(0))).unwrap();
    let report = reap_stopped_at(marks, replace);
    assert_eq!(listed(&report, &orphan(0))["outcome"], "changed", "{report:#}");
    is_there(&orphan(0), newer, "newer");
    make_room(filled);
    exactly(&[&orphan(0)]);
}

/// What counts as unlinked, and what was moved by mistake, needs another private directory: where
/// there is no inode for it, the one in which it is becomes that.
fn no_inode_to_set_aside() {
    for is_stranger in [false, true] {
        few_inodes();
        make_with(&orphan(0), "stale");
        let stranger = make_with("stranger", "somebody's, and never judged");
        let newer = make_with("newer", "newer");
        let filled = fill();
        fs::remove_file(path("fill-0")).unwrap();
        let mut opener = None;
        let moves = |call: &Call| call.number == libc::SYS_renameat2;
        let report = reap_stopped_at(moves, |turn| match turn {
            0 if is_stranger => fs::rename(path("stranger"), path(orphan(0))).unwrap(),
            0 => opener = Some(Opener::start(&orphan(0))),
            1 => fs::rename(path("newer"), path(orphan(0))).unwrap(),
            _ => {}
        });
        let outcome = if is_stranger { "changed" } else { "opened-meanwhile" };
        assert_eq!(listed(&report, &orphan(0))["outcome"], outcome, "{report:#}");
        is_there(&orphan(0), newer, "newer");
        let file = opener.map(Opener::file);
        // The name is free again, and somebody reaps.
        fs::remove_file(path(orphan(0))).unwrap();
        reap().finish();
        assert_eq!(identity(orphan(0)), is_stranger.then_some(stranger), "{:?}", names());
        drop(file);
        // Back under its name, the other one is an orphan in its own right.
        reap().finish().expect(0);
        make_room_after(1, filled);
        fs::remove_file(path("stranger")).unwrap_or(());
        exactly(&[]);
    }
}

/// Neither inodes nor bytes are needed to give back what is held of a leftover, and to finish the rest.
fn no_room_to_settle() {
    few_inodes();
    let directory = ".rtrack.0123456789abcdef";
    let before = make_with(&orphan(0), "wanted again");
    make_with(&orphan(1), "stale");
    leave(directory, 0o700, &[&orphan(0), &orphan(1)]);
    let filled = fill();
    fs::write(path("fill-0"), vec![1; 32 << 20]).unwrap_err();
    let file = File::open(path(directory).join(orphan(0))).unwrap();
    reap().finish().expect(0);
    is_there(&orphan(0), before, "wanted again");
    drop(file);
    make_room(filled);
    exactly(&[&orphan(0)]);
}
