//! Removing POSIX message queues, and what can come between.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rtrack::tracker::host::Host;
use rtrack::tracker::queues::Queues;
use rtrack::tracker::reap::{Manner, Outcome, Steps, Target, remove_queue};
use rtrack::tracker::resource::{Identity, Name};
use rtrack::tracker::sys::{self, Stat};
use serde_json::{Value, json};

use crate::killed::is_lease;
use crate::support::{
    Call, Case, Finish, Need, Queue, case, empty_dev_mqueue, give_queue, hold, identity, kill,
    leave_queue, listed, make_queue, mount, note, object, open_queue, queue_inode, queue_names,
    queues, rtrack, scratch, somebody, stopped_before_each, validate, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    const OWN_PIDS: &[Need] = &[Need::PidNamespace];
    const OWN_PIDS_AS_ROOT: &[Need] = &[Need::PidNamespace, Need::RealRoot];
    vec![
        case("empty_ones_go_and_no_others", empty_ones_go_and_no_others).needs(OWN_PIDS),
        case("force_takes_one_with_its_messages", force_takes_one_with_its_messages)
            .needs(OWN_PIDS),
        case("plan_and_what_changed_since", plan_and_what_changed_since).needs(OWN_PIDS),
        case("recorded", recorded).needs(OWN_PIDS),
        case("archive_takes_none", archive_takes_none).needs(OWN_PIDS),
        case("of_an_ordinary_user", of_an_ordinary_user).needs(OWN_PIDS_AS_ROOT),
        // Whoever waits for a lease waits for 45 s if it is not given back.
        case("opened_under_the_lease", opened_under_the_lease).needs(OWN_PIDS).seconds(40),
        case("opened_before_its_removal", opened_before_its_removal).needs(OWN_PIDS).seconds(40),
        case("opened_at_its_removal", opened_at_its_removal).needs(OWN_PIDS).seconds(40),
        case("sent_to_at_its_removal", sent_to_at_its_removal).needs(OWN_PIDS).seconds(40),
        case("replaced_at_its_removal", replaced_at_its_removal).needs(OWN_PIDS).seconds(40),
        case("killed_at_every_step", killed_at_every_step).needs(OWN_PIDS).seconds(300),
        case("nobody_loses_a_queue_unsaid", nobody_loses_a_queue_unsaid).seconds(300),
    ]
}

/// `reap` of everything that it can be asked for; not yet started.
fn reap() -> Command {
    let verdicts = ["--verdict", "orphaned,unclaimed", "--assume-complete"];
    let mut reap = rtrack(["reap", "--yes", "--json", "--grace", "0s"]);
    reap.args(verdicts);
    reap
}

#[track_caller]
fn exactly(expected: &[&str]) {
    let names: Vec<_> = queue_names().into_iter().collect();
    assert_eq!(names, expected);
}

/// The outcome for `name`, and why.
#[track_caller]
fn outcome<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let object = listed(report, name);
    (object["outcome"].as_str().unwrap(), object["says"].as_str().unwrap())
}

fn empty_ones_go_and_no_others() {
    leave_queue("empty", 0);
    leave_queue("held", 0);
    leave_queue("unread", 1);
    object().make("memory");
    let holder = hold("message-queue-in-flight", queues().join("held"));
    let report = reap().args(["--kind", "mqueue"]).finish().expect(0).json();
    assert_eq!(outcome(&report, "empty").0, "reaped");
    exactly(&["held", "unread"]);
    assert!(identity("memory").is_some());
    let run = reap().args(["--force", "mqueue:held"]).finish().expect(1);
    assert_eq!(outcome(&run.json(), "held").0, "held");
    drop(holder);
    let receiver = open_queue("unread").unwrap();
    assert_eq!(receiver.receive().unwrap(), b"hello");
    drop(receiver);
    let before = queue_names();
    let plan = reap().arg("--dry-run").finish().expect(0).json();
    assert_eq!(outcome(&plan, "unread").0, "would-reap");
    assert_eq!(queue_names(), before);
    reap().finish().expect(0);
    exactly(&[]);
    assert_eq!(identity("memory"), None);
}

fn force_takes_one_with_its_messages() {
    leave_queue("q", 2);
    leave_queue("other", 2);
    // Named, and still not removed.
    let report = reap().arg("mqueue:q").finish().expect(1).json();
    assert_eq!(outcome(&report, "q").0, "refused", "{report:#}");
    let run = reap().args(["--force", "mqueue:q"]).finish().expect(0);
    assert!(run.stderr.contains("2 messages wait in it"), "{run:?}");
    exactly(&["other"]);
}

/// Makes a plan, calls `change`, and carries the plan out.
#[track_caller]
fn after(code: i32, more: &[&str], change: impl FnOnce()) -> Value {
    let plan = reap().args(["--dry-run", "mqueue:q"]).args(more).finish().expect(0);
    plan.json();
    let place = scratch().join("plan.json");
    fs::write(&place, &plan.stdout).unwrap();
    change();
    let place = place.to_str().unwrap();
    rtrack(["reap", "--yes", "--json", "--from", place]).finish().expect(code).json()
}

fn plan_and_what_changed_since() {
    leave_queue("q", 0);
    let report = after(0, &[], || ());
    assert_eq!(outcome(&report, "q").0, "reaped", "{report:#}");
    exactly(&[]);

    leave_queue("q", 0);
    let report = after(1, &[], || open_queue("q").unwrap().send("more").unwrap());
    assert_eq!(outcome(&report, "q").0, "refused", "{report:#}");
    // What was forced with one message is not with two.
    let report = after(1, &["--force", "mqueue:q"], || {
        open_queue("q").unwrap().send("more").unwrap();
    });
    assert_eq!(outcome(&report, "q").0, "refused", "{report:#}");
    let report = after(0, &["--force", "mqueue:q"], || ());
    assert_eq!(outcome(&report, "q").0, "reaped", "{report:#}");

    leave_queue("q", 0);
    let report = after(1, &[], || {
        fs::remove_file(queues().join("q")).unwrap();
        leave_queue("q", 0);
    });
    assert_eq!(outcome(&report, "q").0, "changed", "{report:#}");
    let report = after(0, &[], || fs::remove_file(queues().join("q")).unwrap());
    assert_eq!(outcome(&report, "q").0, "gone", "{report:#}");
    leave_queue("q", 0);
    let holder = Mutex::new(None);
    let report = after(1, &[], || {
        *holder.lock().unwrap() = Some(open_queue("q").unwrap());
    });
    assert_eq!(outcome(&report, "q").0, "held", "{report:#}");
    exactly(&["q"]);
}

fn recorded() {
    leave_queue("q", 0);
    leave_queue("full", 3);
    let record = scratch().join("record");
    let record = record.to_str().unwrap();
    reap().args(["--audit", record]).finish().expect(0);
    reap().args(["--audit", record, "--force", "mqueue:full"]).finish().expect(0);
    let text = fs::read_to_string(record).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = lines.iter().map(|line| {
        validate(line);
        let object = &line["object"];
        json!([line["event"], object["id"], object["messages"], line["outcome"], line["freed"]])
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            json!(["intent", "mqueue:q", 0, null, null]),
            json!(["outcome", "mqueue:q", 0, "reaped", 0]),
            json!(["intent", "mqueue:full", 3, null, null]),
            json!(["outcome", "mqueue:full", 3, "reaped", 15]),
        ]
    );
    let log = rtrack(["log", "--audit", record]).finish().expect(0);
    assert!(log.text().contains("mqueue:full"), "{log:?}");
}

/// To save a queue would be to receive its messages: it stays, and what can be saved goes.
fn archive_takes_none() {
    leave_queue("q", 0);
    leave_queue("full", 1);
    object().make("memory");
    // Not on the same file system.
    let archive = crate::support::run_directory().join(format!("archive-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&archive).unwrap();
    let with = ["--archive", archive.to_str().unwrap(), "--force", "mqueue:full"];
    for more in [&["--dry-run"][..], &[]] {
        let run = reap().args(with).args(["q", "memory"]).args(more).finish();
        let report = run.json();
        for name in ["q", "full"] {
            let (outcome, says) = outcome(&report, name);
            assert!(outcome == "refused" && says.contains("--archive"), "{report:#}");
        }
        assert_eq!(run.code, Some(i32::from(more.is_empty())));
    }
    exactly(&["full", "q"]);
    assert_eq!(identity("memory"), None);
    fs::remove_dir_all(archive).unwrap();
}

fn of_an_ordinary_user() {
    mount("mqueue", empty_dev_mqueue().to_str().unwrap(), "mqueue", 0, "").unwrap();
    for name in ["own", "of_root"] {
        leave_queue(name, 0);
    }
    give_queue("own", somebody(), 0o600);
    give_queue("of_root", 0, 0o644);
    let report = reap().as_user(somebody()).finish().expect(0).json();
    assert_eq!(outcome(&report, "own").0, "reaped", "{report:#}");
    exactly(&["of_root"]);
    let run = reap().args(["--force", "of_root"]).as_user(somebody()).finish().expect(3);
    assert_eq!(outcome(&run.json(), "of_root").0, "failed");
    exactly(&["of_root"]);
}

/// A thread that has called mq_open(3) and waits for a lease to be given back.
struct Opener(JoinHandle<Queue>);

impl Opener {
    fn start(name: &'static str) -> Self {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::spawn(move || {
            // SAFETY: the call has no arguments and cannot fail.
            sender.send(unsafe { libc::gettid() }).unwrap();
            open_queue(name).unwrap()
        });
        let system_call = format!("/proc/self/task/{}/syscall", receiver.recv().unwrap());
        wait_for("the opener to wait for the lease", || {
            let call = fs::read_to_string(&system_call).unwrap();
            call.starts_with(&format!("{} ", libc::SYS_mq_open)).then_some(())
        });
        Self(thread)
    }
}

fn is(number: libc::c_long) -> impl Fn(&Call) -> bool {
    move |call| call.number == number
}

/// Whether a lease is given back.
fn is_release(call: &Call) -> bool {
    let [_, command, lease, ..] = call.arguments;
    let asks = [libc::F_SETLEASE, libc::F_UNLCK].map(|number| u64::try_from(number).unwrap());
    call.number == libc::SYS_fcntl && [command, lease] == asks
}

/// Whether it is recorded that a removal begins.
fn is_begun() -> bool {
    fs::metadata("record").is_ok_and(|meta| meta.len() > 0)
}

/// Runs `reap` and calls `meanwhile` once, before the first system call that is `at`, or the one after
/// that if `next`, after the record was written that the removal begins; answers with the report.
fn disturbed(at: impl Fn(&Call) -> bool, next: bool, mut meanwhile: impl FnMut()) -> Value {
    let mut command = reap();
    command.args(["--audit", "record"]);
    command.stdout(File::create("report").unwrap()).stderr(File::create("errors").unwrap());
    let (mut found, mut done) = (false, false);
    stopped_before_each(&mut command, |call, _| {
        let begun = is_begun();
        if !done && begun && (found || !next && at(&call)) {
            meanwhile();
            done = true;
        }
        found |= begun && at(&call);
    });
    let errors = fs::read_to_string("errors").unwrap();
    assert!(done, "{errors}");
    let report: Value = serde_json::from_slice(&fs::read("report").unwrap()).unwrap();
    validate(&report);
    report
}

/// The kernel lets mq_open(3) wait with the directory locked: the removal must not wait for that.
fn opened_under_the_lease() {
    let before = leave_queue("q", 0);
    let mut opener = None;
    let asks_again = |call: &Call| {
        let state = u64::try_from(libc::F_GETLEASE).unwrap();
        call.number == libc::SYS_fcntl && call.arguments[1] == state
    };
    let report = disturbed(asks_again, false, || opener = Some(Opener::start("q")));
    assert_eq!(outcome(&report, "q").0, "opened-meanwhile", "{report:#}");
    assert_eq!(queue_inode("q"), Some(before));
    let queue = opener.unwrap().0.join().unwrap();
    queue.send("one").unwrap();
    assert_eq!(open_queue("q").unwrap().receive().unwrap(), b"one");
}

/// Between the lease and the removal.
fn opened_before_its_removal() {
    let before = leave_queue("q", 0);
    let watched = Cell::new(0);
    // The watches are made under the lease; the release after them is the one that gives it back.
    let gives_back = |call: &Call| {
        watched.set(watched.get() + u32::from(call.number == libc::SYS_inotify_add_watch));
        watched.get() == 2 && is_release(call)
    };
    let report = disturbed(gives_back, true, || drop(open_queue("q").unwrap()));
    assert_eq!(outcome(&report, "q").0, "opened-meanwhile", "{report:#}");
    assert_eq!(queue_inode("q"), Some(before));
    // Who has gone again may have left a message.
    fs::remove_file("record").unwrap();
    watched.set(0);
    let report = disturbed(gives_back, true, || open_queue("q").unwrap().send("one").unwrap());
    assert_eq!(outcome(&report, "q").0, "refused", "{report:#}");
    assert_eq!(queue_inode("q"), Some(before));
    assert_eq!(open_queue("q").unwrap().receive().unwrap(), b"one");
}

/// Too late to be noticed before: it is told of.
fn opened_at_its_removal() {
    leave_queue("q", 0);
    let mut opened = None;
    let report = disturbed(is(libc::SYS_unlinkat), false, || opened = open_queue("q").ok());
    let (outcome, says) = outcome(&report, "q");
    assert!(outcome == "opened-at-removal" && !says.contains("message"), "{report:#}");
    exactly(&[]);
    assert!(opened.is_some());
}

fn sent_to_at_its_removal() {
    leave_queue("q", 0);
    let report = disturbed(is(libc::SYS_unlinkat), false, || {
        open_queue("q").unwrap().send("late").unwrap();
    });
    let (outcome, says) = outcome(&report, "q");
    assert!(outcome == "opened-at-removal" && says.contains("1 message"), "{report:#}");
    exactly(&[]);
}

/// Somebody removes it and makes another one, which then loses the name: that is told of too.
fn replaced_at_its_removal() {
    leave_queue("q", 0);
    let mut new = None;
    let report = disturbed(is(libc::SYS_unlinkat), false, || {
        fs::remove_file(queues().join("q")).unwrap();
        new = Some(make_queue("q"));
    });
    let (outcome, says) = outcome(&report, "q");
    assert!(outcome == "opened-at-removal" && says.contains("a new queue took its name"), "{says}");
    exactly(&[]);
}

/// The queue is there, whole, or gone; and what is wanted was never touched.
fn killed_at_every_step() {
    leave_queue("wanted", 2);
    let held = leave_queue("held", 0);
    let _holder = hold("message-queue", queues().join("held"));
    let mut gone = 0;
    let steps = (1..).take_while(|step| {
        if queue_inode("q").is_none() {
            leave_queue("q", 0);
        }
        let before = queue_inode("q");
        let mut made = None;
        let mut command = reap();
        File::create("record").unwrap();
        command.args(["--audit", "record"]);
        command.stdout(File::create("report").unwrap()).stderr(File::create("errors").unwrap());
        let status = stopped_before_each(&mut command, |call, pid| {
            if made == Some(*step) {
                kill(pid);
            }
            let begins = made.is_none() && is_lease(&call) && is_begun();
            made = made.map(|made| made + 1).or(begins.then_some(1));
        });
        assert!(matches!(status.code(), None | Some(0)), "{status:?}");
        let now = queue_inode("q");
        assert!(now.is_none() || now == before);
        gone += usize::from(now.is_none());
        // Nobody is kept waiting, and nothing keeps the next one from going on.
        if now.is_some() {
            open_queue("q").unwrap().send("still whole").unwrap();
            assert_eq!(open_queue("q").unwrap().receive().unwrap(), b"still whole");
        }
        assert_eq!(queue_inode("held"), Some(held));
        status.code().is_none()
    });
    let steps = steps.count();
    note(format_args!("killed at {steps} steps, the queue was gone after {gone}"));
    assert!(steps > 30 && gone > 1, "{steps} {gone}");
    reap().finish().expect(0);
    exactly(&["held", "wanted"]);
    assert_eq!(open_queue("wanted").unwrap().receive().unwrap(), b"hello");
}

/// Judges nothing: whoever holds it is what is asked about.
struct Always;

impl Steps for Always {
    fn judge(&mut self, _now: &Stat) -> Result<(), String> {
        Ok(())
    }
}

/// Openers and a reaper at the same name. Whoever has it open while its name goes, or sent a message to
/// one that is gone, was told of.
fn nobody_loses_a_queue_unsaid() {
    const OPENS: u64 = 1000;
    const REMOVALS: u64 = 500;
    let until = Instant::now() + Duration::from_secs(60);
    queues();
    let (host, place) = (Host::real().unwrap(), Queues::of_this_namespace().unwrap());
    let (stop, opens) = (AtomicBool::new(false), AtomicU64::new(0));
    let lost = Mutex::new(HashSet::new());
    let (mut removals, mut told, mut noticed) = (0, HashSet::new(), 0);
    thread::scope(|scope| {
        for _opener in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(queue) = open_queue("q") else { continue };
                    opens.fetch_add(1, Ordering::Relaxed);
                    let file = queue.file();
                    thread::sleep(Duration::from_micros(200));
                    let stat = sys::stat(&file, c"").unwrap();
                    if stat.nlink == 0 {
                        lost.lock().unwrap().insert(stat.ino);
                    }
                    drop(file);
                    thread::sleep(Duration::from_micros(200));
                }
            });
        }
        while Instant::now() < until
            && (opens.load(Ordering::Relaxed) < OPENS || removals < REMOVALS)
        {
            if queue_inode("q").is_none() {
                drop(make_queue("q"));
            }
            let Ok(stat) = sys::stat(place.dir(), c"q") else { continue };
            let target = Target {
                file: &Name::new(&b"q"[..]),
                identity: Identity::of(&stat),
                manner: Manner::Leased,
                may_go_directly: true,
                tree: None,
                messages: Some(0),
                force: false,
            };
            let report = remove_queue(&host, &place, &target, &mut Always);
            match report.outcome {
                Outcome::Reaped => removals += 1,
                Outcome::OpenedAtRemoval => {
                    removals += 1;
                    told.insert(stat.ino);
                }
                Outcome::Held | Outcome::OpenedMeanwhile => noticed += 1,
                other => panic!("{other:?}: {}", report.says),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let lost = lost.into_inner().unwrap();
    note(format_args!(
        "{} opens, {removals} removals, {noticed} noticed before, {} told of, {} lost",
        opens.into_inner(),
        told.len(),
        lost.len()
    ));
    assert!(removals > 20 && noticed > 20, "{removals} {noticed}");
    assert!(lost.is_subset(&told), "{lost:?} and {told:?}");
}
