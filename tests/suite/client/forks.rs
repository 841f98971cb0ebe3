//! The client and `fork`: children do not keep the tracker, and have one of their own.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rtrack::tracker::service::client::{End, ResourceTracker};

use super::recorder::{leave, lines, recorder, starts, went_well};
use crate::support::{Case, case, check, fork, wait_for};

pub(super) fn tests() -> Vec<Case> {
    vec![
        case("a_forked_child_does_not_keep_it", a_forked_child_does_not_keep_it),
        case("a_forked_child_has_its_own", a_forked_child_has_its_own),
        case(
            "both_are_the_first_of_their_pid_namespace",
            both_are_the_first_of_their_pid_namespace,
        ),
        case("handlers_of_fork_use_it", handlers_of_fork_use_it),
        case("forks_while_others_are_at_it", forks_while_others_are_at_it),
        case("closed_standard_descriptors", closed_standard_descriptors),
    ]
}

static TRACKER: OnceLock<ResourceTracker> = OnceLock::new();

/// The child lives until the parent's tracker has ended.
fn a_forked_child_does_not_keep_it() {
    let tracker = recorder("").build().unwrap();
    tracker.register("x", "dummy").unwrap();
    let (mut gate, opener) = std::io::pipe().unwrap();
    let child = fork();
    if child == 0 {
        drop(opener);
        gate.read_to_end(&mut Vec::new()).unwrap();
        leave(!tracker.probe() && tracker.pid().is_none());
    }
    drop(gate);
    // It ends only when nobody has the writing end any more.
    assert_eq!(tracker.stop().unwrap().end, End::Exited(0));
    drop(opener);
    assert!(went_well(child));
}

/// `fork`, and clone(2) by itself, which calls no handlers.
fn a_forked_child_has_its_own() {
    let tracker = recorder("").build().unwrap();
    tracker.register("parents", "dummy").unwrap();
    let pid = tracker.pid();
    // SAFETY: this process has a single thread.
    let bare = || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    for (name, child) in [("fork", fork as fn() -> i32), ("clone", || -1)] {
        let child = if name == "clone" { i32::try_from(bare()).unwrap() } else { child() };
        if child == 0 {
            let told = tracker.register(name, "dummy").is_ok() && tracker.pid() != pid;
            leave(told && tracker.stop().is_some_and(|end| end.end == End::Exited(0)));
        }
        assert!(went_well(child), "{name}");
        assert!(tracker.probe() && tracker.pid() == pid);
    }
    tracker.register("parents", "dummy").unwrap();
    assert_eq!(tracker.stop().unwrap().end, End::Exited(0));
    let mut read = lines();
    read.sort();
    let parents = "REGISTER:parents:dummy";
    assert_eq!(read, ["REGISTER:clone:dummy", "REGISTER:fork:dummy", parents, parents]);
    assert_eq!(starts(), 3);
}

/// A pid does not tell the child from its parent then: both are number 1.
fn both_are_the_first_of_their_pid_namespace() {
    // SAFETY: this process has a single thread, and so have its children.
    let leave_pids = || check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).is_ok();
    // SAFETY: as above.
    let bare = || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    for by in ["fork", "clone"] {
        let outside = fork();
        if outside == 0 {
            assert!(leave_pids());
            let parent = fork();
            if parent != 0 {
                leave(went_well(parent));
            }
            let tracker = recorder("").build().unwrap();
            tracker.register("x", "dummy").unwrap();
            let (mut gate, opener) = std::io::pipe().unwrap();
            let first = std::process::id() == 1 && leave_pids();
            let child = if by == "fork" { fork() } else { i32::try_from(bare()).unwrap() };
            if child == 0 {
                drop(opener);
                let none = std::process::id() == 1 && tracker.pid().is_none() && !tracker.probe();
                gate.read_to_end(&mut Vec::new()).unwrap();
                leave(none);
            }
            drop(gate);
            // It ends only when nobody has the writing end any more.
            let ended = tracker.stop().unwrap().end == End::Exited(0);
            drop(opener);
            leave(first && ended && went_well(child));
        }
        assert!(went_well(outside), "{by}");
    }
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn handler() {
    if let Some(tracker) = TRACKER.get() {
        CALLS.fetch_add(1, Ordering::Relaxed);
        tracker.register("handler", "dummy").unwrap();
    }
}

/// Those that were installed before the client's run while the lock is held for the fork, the others
/// while it is not.
fn handlers_of_fork_use_it() {
    // SAFETY: the functions live as long as the program.
    let install = || unsafe { libc::pthread_atfork(Some(handler), Some(handler), Some(handler)) };
    assert_eq!(install(), 0);
    let tracker = recorder("").build().unwrap();
    assert_eq!(install(), 0);
    tracker.register("x", "dummy").unwrap();
    let pid = tracker.pid();
    assert!(TRACKER.set(tracker).is_ok());
    let tracker = TRACKER.get().unwrap();
    for round in 1..=3 {
        let child = fork();
        if child == 0 {
            let own = tracker.pid() != pid && tracker.probe();
            leave(own && blocks_nothing() && tracker.register("child", "dummy").is_ok());
        }
        assert!(went_well(child), "round {round}");
        assert_eq!(CALLS.load(Ordering::Relaxed), 4 * round);
        assert!(blocks_nothing());
    }
    assert_eq!(tracker.pid(), pid);
    let told = || lines().iter().filter(|line| line.contains(":handler:")).count();
    // Twice two in the parent, and two in each child.
    wait_for("what was told", || (told() == 3 * 6).then_some(()));
    assert_eq!(starts(), 4);
}

fn blocks_nothing() -> bool {
    super::blocked() == nix::sys::signal::SigSet::empty()
}

/// No child ever finds the lock held by a thread that it does not have.
fn forks_while_others_are_at_it() {
    let tracker = recorder("").on_death(|_| {}).build().unwrap();
    let stop = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while stop.load(Ordering::Relaxed) == 0 {
                    tracker.register("x", "dummy").unwrap();
                }
            });
        }
        let mut wrong = 0;
        for _ in 0..50 {
            // SAFETY: the child only uses the client, which allocates nothing, and leaves.
            let child = check(unsafe { libc::fork() }).unwrap();
            if child == 0 {
                leave(!tracker.probe() && tracker.register("y", "dummy").is_ok());
            }
            wrong += usize::from(!went_well(child));
        }
        stop.store(1, Ordering::Relaxed);
        assert_eq!(wrong, 0);
    });
    assert_eq!(tracker.stop().unwrap().end, End::Exited(0));
    wait_for("the children's trackers", || {
        (lines().iter().filter(|line| line.contains(":y:")).count() == 50).then_some(())
    });
}

/// The pipe's ends must not become the tracker's stdin, or the program's stderr.
fn closed_standard_descriptors() {
    let tracker = recorder("").build().unwrap();
    let child = fork();
    if child == 0 {
        for number in 0..3 {
            // SAFETY: this process uses none of them any more.
            unsafe { libc::close(number) };
        }
        let told = tracker.register("x", "dummy").is_ok();
        let null = std::fs::File::open("/dev/null").unwrap();
        leave(told && null.as_raw_fd() == 0 && tracker.stop().unwrap().end == End::Exited(0));
    }
    assert!(went_well(child));
    assert_eq!(lines(), ["REGISTER:x:dummy"]);
}
