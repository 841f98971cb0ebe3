//! Many threads and a signal handler at one client, while its tracker is killed again and again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rtrack::tracker::service::client::{ClientError, Death, End, ResourceTracker};

use super::recorder::{bytes, lines, recorder, starts};
use super::{deaths, no_child_is_left};
use crate::support::{Case, case, check, note};

pub(super) fn tests() -> Vec<Case> {
    vec![
        case("re_entered_by_a_signal_handler", re_entered_by_a_signal_handler),
        case("every_message_is_delivered_or_reported", every_message_is_delivered_or_reported),
        case("trackers_that_die_at_once", trackers_that_die_at_once),
        case("a_callback_that_registers_again", a_callback_that_registers_again),
    ]
}

static TRACKER: OnceLock<ResourceTracker> = OnceLock::new();
static HANDLED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

fn tracker() -> &'static ResourceTracker {
    TRACKER.get().unwrap()
}

/// Counts what became of a message.
fn tell(name: &str) {
    match tracker().register(name, "dummy") {
        Ok(()) => HANDLED.fetch_add(1, Ordering::Relaxed),
        Err(ClientError::KeepsDying(_)) => REFUSED.fetch_add(1, Ordering::Relaxed),
        Err(_) => WRONG.fetch_add(1, Ordering::Relaxed),
    };
}

/// A program whose errno a handler must not change.
extern "C" fn registers(_: libc::c_int) {
    tell("handler1");
}

/// Has SIGALRM come every so many microseconds, and `handler` run.
fn alarm(handler: extern "C" fn(libc::c_int), microseconds: libc::suseconds_t) {
    let tick = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: tick, it_value: tick };
    // SAFETY: the handlers here call the client only, which may be called there; zeroes are valid for
    // the rest of the structure.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        check(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut())).unwrap();
        check(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut())).unwrap();
    }
}

/// The handler interrupts the client's own code wherever that has signals open.
fn re_entered_by_a_signal_handler() {
    assert!(TRACKER.set(recorder("").build().unwrap()).is_ok());
    alarm(registers, 150);
    // The first of either starts it.
    for _ in 0..20_000 {
        tell("program1");
        // SAFETY: the location is this thread's.
        unsafe { *libc::__errno_location() = 99 };
        std::hint::spin_loop();
        // SAFETY: as above.
        assert_eq!(unsafe { *libc::__errno_location() }, 99, "a handler changed errno");
    }
    alarm(registers, 0);
    let sent = HANDLED.load(Ordering::Relaxed);
    assert_eq!((WRONG.load(Ordering::Relaxed), REFUSED.load(Ordering::Relaxed)), (0, 0));
    assert!(sent > 20_000, "the handler never ran");
    let read = crate::support::wait_for("all of it", || {
        Some(lines()).filter(|lines| lines.len() as u64 >= sent)
    });
    assert_eq!(read.len() as u64, sent);
    assert!(
        read.iter()
            .all(|line| line == "REGISTER:program1:dummy" || line == "REGISTER:handler1:dummy")
    );
    assert_eq!(starts(), 1);
    note(format_args!("{} messages from the handler", sent - 20_000));
}

/// What was sent is what trackers took, and what is told of as unread, to the message.
fn every_message_is_delivered_or_reported() {
    const THREADS: usize = 4;
    const KILLS: usize = 60;
    let (told, tell_of) = deaths();
    assert!(TRACKER.set(recorder("").on_death(tell_of).build().unwrap()).is_ok());
    let stop = AtomicBool::new(false);
    let two_at_a_time = AtomicUsize::new(0);
    // This thread kills; the others, and their signal handler, tell.
    let mut alarms = nix::sys::signal::SigSet::empty();
    alarms.add(nix::sys::signal::Signal::SIGALRM);
    alarms.thread_block().unwrap();
    alarm(registers, 300);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                alarms.thread_unblock().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    tell("program1");
                }
                // A scope does not wait for what handlers do after its closures.
                alarms.thread_block().unwrap();
            });
        }
        let mut last = 0;
        for round in 0..KILLS {
            let pid = crate::support::wait_for("the next one", || {
                tracker().pid().filter(|pid| *pid != last)
            });
            // At every age: before it has executed, before it reads, while it reads.
            thread::sleep(Duration::from_micros(u64::try_from(round % 6).unwrap() * 2500));
            two_at_a_time.fetch_max(readers(), Ordering::Relaxed);
            crate::support::kill(pid.unsigned_abs());
            last = pid;
        }
        crate::support::wait_for("the last end", || {
            (!tracker().probe() || tracker().pid() != Some(last)).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
    });
    alarm(registers, 0);
    // What was told of with the last messages, and the last death.
    tracker().ensure_running().unwrap();
    tracker().ensure_running().unwrap();
    let sent = HANDLED.load(Ordering::Relaxed);
    assert_eq!(WRONG.load(Ordering::Relaxed), 0);
    let told = told.lock().unwrap().clone();
    let died: usize = told.iter().map(|death| 1 + death.more as usize).sum();
    assert_eq!(died, KILLS, "one tracker a kill, and each told of once");
    assert!(told.iter().all(|death| death.end == End::Killed(libc::SIGKILL)), "{told:?}");
    // In bytes, since the kernel may be stopped in the middle of a message.
    let sent = sent * "REGISTER:program1:dummy\n".len() as u64;
    let unread: u64 = told.iter().map(|death| death.unread.unwrap()).sum();
    let read = crate::support::wait_for("what is to be read", || {
        Some(bytes()).filter(|read| read + unread >= sent)
    });
    assert_eq!(read + unread, sent);
    assert!(two_at_a_time.load(Ordering::Relaxed) <= 1, "two trackers at the same time");
    note(format_args!(
        "{sent} bytes to {} trackers: {read} read, {unread} told of as unread, {} refused",
        died + 1,
        REFUSED.load(Ordering::Relaxed),
    ));
    crate::support::kill(tracker().pid().unwrap().unsigned_abs());
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(tracker().pid().unwrap()), None).unwrap();
    no_child_is_left();
}

/// How many children read the pipe at the same time. What is killed may be seen dying.
fn readers() -> usize {
    let children = std::fs::read_dir("/proc/self/task").unwrap().map(|task| {
        let file = task.unwrap().path().join("children");
        std::fs::read_to_string(file).unwrap_or_default()
    });
    let children = children.collect::<String>();
    let reads = |pid: &&str| std::fs::symlink_metadata(format!("/proc/{pid}/fd/3")).is_ok();
    let seen: Vec<&str> = children.split_whitespace().filter(reads).collect();
    // Whoever still does was one of them when the last one was seen.
    seen.iter().filter(|pid| reads(pid)).count()
}

/// Comes when a tracker has just been started, and waits until it is dead: what is written next finds
/// out, each time.
extern "C" fn outlives(_: libc::c_int) {
    for _ in 0..10_000 {
        if !tracker().probe() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn trackers_that_die_at_once() {
    let (told, tell_of) = deaths();
    assert!(TRACKER.set(recorder("dies").on_death(tell_of).build().unwrap()).is_ok());
    alarm(outlives, 50);
    let refused = (0..50).find_map(|_| tracker().register("x", "dummy").err());
    alarm(outlives, 0);
    let error = refused.expect("each message was taken by a tracker that dies at once");
    assert!(matches!(error, ClientError::KeepsDying(8)), "{error}");
    assert_eq!(error.to_string(), "the tracker died 8 times in a row");
    let told: Vec<Death> = told.lock().unwrap().clone();
    assert!(told.len() >= 8 && told.iter().all(|death| death.end == End::Exited(0)), "{told:?}");
}

static DEPTH: AtomicI32 = AtomicI32::new(0);
static DEEPEST: AtomicI32 = AtomicI32::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// With trackers that die at once, each call of the callback is the cause of more.
fn a_callback_that_registers_again() {
    let again = |_: &Death| {
        DEEPEST.fetch_max(1 + DEPTH.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        CALLS.fetch_add(1, Ordering::Relaxed);
        tracker().register("again", "dummy").unwrap_or(());
        DEPTH.fetch_sub(1, Ordering::Relaxed);
    };
    assert!(TRACKER.set(recorder("dies").on_death(again).build().unwrap()).is_ok());
    alarm(outlives, 50);
    for _ in 0..3 {
        let before = CALLS.load(Ordering::Relaxed);
        tracker().register("x", "dummy").unwrap_or(());
        let calls = CALLS.load(Ordering::Relaxed) - before;
        assert!(calls <= 8, "{calls} calls of one message");
    }
    alarm(outlives, 0);
    assert!(CALLS.load(Ordering::Relaxed) > 8, "{}", CALLS.load(Ordering::Relaxed));
    assert_eq!(DEEPEST.load(Ordering::Relaxed), 1);
}
