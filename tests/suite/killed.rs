//! `kill -9` at every step of a reap, and what the next one makes of what is left.
//!
//! The program knows nothing of this: it is traced, and killed before each of its system calls in
//! turn, which is after the one before it as well. Whatever the step, once the next `reap` is
//! through, what is held has its name, what is wanted was never touched, what is stale is not back
//! under its old name, and no private directory is left.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use serde_json::Value;

use crate::reaping::{exactly, orphan};
use crate::support::{
    Call, Case, Finish, Holder, Need, case, hold, identity, kill, leave, list, listed, names, note,
    object, path, rtrack, stopped_before_each, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    const OWN_PIDS: &[Need] = &[Need::PidNamespace];
    vec![
        case("while_it_looks", while_it_looks).needs(OWN_PIDS),
        case("while_it_removes", while_it_removes).needs(OWN_PIDS),
        case("while_it_is_noticed", while_it_is_noticed).needs(OWN_PIDS),
        case("after_it_was_noticed_too_late", after_it_was_noticed_too_late).needs(OWN_PIDS),
        case("and_the_name_is_taken", and_the_name_is_taken).needs(OWN_PIDS),
        case("and_what_is_held_lost_its_name", and_what_is_held_lost_its_name).needs(OWN_PIDS),
        case("while_it_sets_aside", while_it_sets_aside).needs(OWN_PIDS),
        case("while_it_settles", while_it_settles).needs(OWN_PIDS),
        case("after_a_move_by_mistake", after_a_move_by_mistake).needs(OWN_PIDS),
    ]
}

/// The move into the private directory, and every way back.
const MOVE: libc::c_long = libc::SYS_renameat2;
/// The removal of an object, or of the private directory.
const REMOVAL: libc::c_long = libc::SYS_unlinkat;
/// An orphan of another kind, which nobody has mapped.
const SEMAPHORE: &str = "sem.mp-abcdefgh";

fn reap() -> Command {
    rtrack(["reap", "--yes", "--json", "--grace", "0s", "--assume-complete"])
}

/// Which system calls are steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Steps {
    /// Every one.
    All,
    /// Those that follow on one by which directories or leases change: what a kill before any other
    /// one leaves is the same.
    Changes,
}

/// Runs `reap` and kills it before its step `step`. Before each system call that `marks` names
/// `disturb` happens, with how many of them there were before; steps count from the one with the
/// number `from`. Whether it was killed: false when it had ended before.
fn killed_at(
    (steps, step): (Steps, usize),
    marks: impl Fn(&Call) -> bool,
    from: usize,
    mut disturb: impl FnMut(usize),
) -> bool {
    let (mut marked, mut made, mut counts) = (0, None, true);
    let mut command = reap();
    command.stdout(File::create("report").unwrap()).stderr(File::create("errors").unwrap());
    let status = stopped_before_each(&mut command, |call, pid| {
        if marks(&call) {
            disturb(marked);
            made = made.or((marked == from).then_some(0));
            marked += 1;
        }
        if counts && made == Some(step) {
            kill(pid);
        }
        made = made.map(|made| made + usize::from(counts));
        counts = steps == Steps::All || changes(&call);
    });
    let errors = fs::read_to_string("errors").unwrap();
    assert!(made.is_some(), "it ended before its first step: {errors}");
    assert!(matches!(status.code(), None | Some(0 | 1)), "{status:?}: {errors}");
    status.code().is_none()
}

/// Whether a directory or a lease may be another after this call.
fn changes(call: &Call) -> bool {
    let changing = [
        libc::SYS_mkdirat,
        libc::SYS_fchmod,
        libc::SYS_renameat2,
        libc::SYS_unlinkat,
        libc::SYS_flock,
        libc::SYS_fcntl,
    ];
    let asks = u64::try_from(libc::F_GETFD).unwrap();
    changing.contains(&call.number) && (call.number != libc::SYS_fcntl || call.arguments[1] != asks)
}

/// That system call, whatever it is given.
fn is(number: libc::c_long) -> impl Fn(&Call) -> bool {
    move |call| call.number == number
}

/// A lease is asked for.
pub(crate) fn is_lease(call: &Call) -> bool {
    let [_, command, lease, ..] = call.arguments;
    let asks = [libc::F_SETLEASE, libc::F_WRLCK].map(|number| u64::try_from(number).unwrap());
    call.number == libc::SYS_fcntl && [command, lease] == asks
}

/// Calls `run` with each step of a reap, from 0 until it answers that there is no such step.
fn at_every_step(steps: Steps, mut run: impl FnMut((Steps, usize)) -> bool) {
    // After so many changes it only waits, in the same way again and again.
    let alike = if steps == Steps::Changes { 25 } else { usize::MAX };
    let all = (0..alike).chain((alike..usize::MAX).step_by(13));
    let runs = all.take_while(|step| run((steps, *step))).count();
    // Fewer, and it would not have been at work.
    assert!(runs >= 5, "{runs}");
    note(format_args!("killed at {runs} steps, of {steps:?}"));
}

/// What nobody may touch: claimed, unclaimed and held objects.
struct Wanted {
    objects: Vec<(&'static str, (u64, u64))>,
    _holder: Holder,
}

impl Wanted {
    fn make() -> Self {
        let names = ["libpod_lock", "unheard_of", "mpich_shar_tmpWanted"];
        let objects = names.map(|name| (name, make_with(name, name)));
        Self { objects: objects.to_vec(), _holder: hold("map-shared", path(names[2])) }
    }

    /// They are there, as they were, and nothing else is but `others`.
    #[track_caller]
    fn remain_with(&self, others: &[&str]) {
        let mut all = others.to_vec();
        for (name, identity_before) in &self.objects {
            is_there(name, *identity_before, name);
            all.push(name);
        }
        exactly(&all);
    }
}

/// Makes an object with this content.
pub(crate) fn make_with(name: &str, content: &str) -> (u64, u64) {
    fs::write(path(name), content).unwrap();
    identity(name).unwrap()
}

/// The name leads to that object, with its content.
#[track_caller]
pub(crate) fn is_there(name: &str, expected: (u64, u64), content: &str) {
    assert_eq!(identity(name), Some(expected), "{name} in {:?}", names());
    assert_eq!(fs::read_to_string(path(name)).unwrap(), content, "{name}");
}

/// A thread that opens an object and, as long as a lease is held, waits for its end.
pub(crate) struct Opener(JoinHandle<File>);

impl Opener {
    pub(crate) fn start(name: &str) -> Self {
        let (place, (sender, receiver)) = (path(name), mpsc::channel());
        let thread = thread::spawn(move || {
            // SAFETY: the call has no arguments and cannot fail.
            sender.send(unsafe { libc::gettid() }).unwrap();
            File::open(place).unwrap()
        });
        let system_call = format!("/proc/self/task/{}/syscall", receiver.recv().unwrap());
        wait_for("the opener to wait for the lease", || {
            let call = fs::read_to_string(&system_call).unwrap();
            call.starts_with(&format!("{} ", libc::SYS_openat)).then_some(())
        });
        Self(thread)
    }

    /// What it got.
    pub(crate) fn file(self) -> File {
        self.0.join().unwrap()
    }
}

/// Starts an opener before the first system call that marks it.
fn opens(name: &str, opener: &mut Option<Opener>) -> impl FnMut(usize) {
    move |turn| {
        if turn == 0 {
            *opener = Some(Opener::start(name));
        }
    }
}

/// Every private directory, and what is in it.
fn leftovers() -> Vec<(String, BTreeSet<String>)> {
    let text = |name: std::ffi::OsString| name.into_string().unwrap();
    let private = names().into_iter().map(text).filter(|name| name.starts_with(".rtrack."));
    let inside = |name: &String| {
        let entries = fs::read_dir(path(name)).unwrap();
        entries.map(|entry| text(entry.unwrap().file_name())).collect()
    };
    private.map(|name| (name.clone(), inside(&name))).collect()
}

/// The list shows every private directory with what is in it.
#[track_caller]
fn list_shows_what_is_left() {
    let left = leftovers();
    let document = (!left.is_empty()).then(list);
    for (directory, files) in &left {
        let document = document.as_ref().unwrap();
        let entries = listed(document, directory)["entries"].as_u64();
        assert_eq!(entries, u64::try_from(files.len()).ok(), "{document:#}");
    }
}

/// Runs `reap`, which has to say what it does with all that is left; its report.
#[track_caller]
fn reap_again(code: i32) -> Value {
    let left = leftovers();
    let report = reap().finish().expect(code).json();
    assert_eq!(settled(&report), left, "{report:#}");
    report
}

/// The directories that a report calls settled, each with all the objects that it tells of.
fn settled(report: &Value) -> Vec<(String, BTreeSet<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut all: Vec<_> = report["settled"]
        .as_array()
        .unwrap()
        .iter()
        .map(|settled| {
            let left = settled["left"].as_array().unwrap().iter().map(|left| &left["name"]);
            let lists = ["put_back", "finished"].map(|list| settled[list].as_array().unwrap());
            let files = lists.into_iter().flatten().chain(left).map(text).collect();
            assert!(settled["trouble"].is_null(), "{report:#}");
            (text(&settled["directory"]), files)
        })
        .collect();
    all.sort();
    all
}

/// Nothing is changed by looking: a reaper that dies before its first change was never there.
fn while_it_looks() {
    let wanted = Wanted::make();
    let before = object().make(orphan(0));
    let mut looked = 0;
    // It begins with the test whether leases work.
    for step in (0..).step_by(17) {
        assert!(
            killed_at((Steps::All, step), is_lease, 0, |_| {}),
            "it ended before it changed anything"
        );
        if identity(orphan(0)).is_none() || !leftovers().is_empty() {
            break;
        }
        assert_eq!(identity(orphan(0)), Some(before));
        wanted.remain_with(&[&orphan(0)]);
        // The kernel has ended every lease of the dead, or this would wait.
        fs::read(path(orphan(0))).unwrap();
        looked += 1;
    }
    assert!(looked >= 5, "{looked}");
    reap_again(0);
    wanted.remain_with(&[]);
}

/// Objects of several kinds that nobody holds, beside those that are wanted.
fn while_it_removes() {
    let wanted = Wanted::make();
    let orphans = [orphan(0), SEMAPHORE.to_owned()];
    at_every_step(Steps::All, |step| {
        let before = orphans.each_ref().map(|name| make_with(name, "stale"));
        let killed = killed_at(step, is(libc::SYS_mkdirat), 0, |_| {});
        let left = leftovers();
        assert!(left.len() <= 1, "{left:?}");
        for (name, identity_before) in orphans.iter().zip(before) {
            let inside = left.iter().filter(|(_, files)| files.contains(name));
            let places = inside.map(|(directory, _)| format!("{directory}/{name}"));
            let places: Vec<_> = places.chain([name.clone()]).filter_map(identity).collect();
            assert!(places.is_empty() || places == [identity_before], "{name}: {places:?}");
        }
        list_shows_what_is_left();
        let report = reap_again(0);
        for settled in report["settled"].as_array().unwrap() {
            assert_eq!(settled["put_back"].as_array().map(Vec::len), Some(0), "{report:#}");
        }
        wanted.remain_with(&[]);
        killed
    });
}

/// Somebody opens the object after it was judged, and waits for the lease: whenever the reaper dies,
/// they get that object, and have it by its name after the next reap.
fn while_it_is_noticed() {
    let wanted = Wanted::make();
    let name = &orphan(0);
    at_every_step(Steps::All, |step| {
        let before = make_with(name, "wanted again");
        let mut opener = None;
        let killed = killed_at(step, is(MOVE), 0, opens(name, &mut opener));
        let file = opener.unwrap().file();
        assert_eq!(file.metadata().unwrap().ino(), before.1);
        list_shows_what_is_left();
        reap_again(0);
        is_there(name, before, "wanted again");
        wanted.remain_with(&[name]);
        drop(file);
        fs::remove_file(path(name)).unwrap();
        killed
    });
}

/// Somebody opens it by another name after the last look at the lease: the object is never lost,
/// and a name of it that was only moved away comes back.
fn after_it_was_noticed_too_late() {
    let wanted = Wanted::make();
    let name = &orphan(0);
    at_every_step(Steps::All, |step| {
        let before = make_with(name, "wanted again");
        fs::hard_link(path(name), path("another-name")).unwrap();
        let mut opener = None;
        let killed = killed_at(step, is(REMOVAL), 0, opens("another-name", &mut opener));
        let file = opener.unwrap().file();
        let removed = file.metadata().unwrap().nlink() == 1;
        reap_again(0);
        is_there("another-name", before, "wanted again");
        assert_eq!(identity(name), (!removed).then_some(before));
        fs::remove_file(path("another-name")).unwrap();
        fs::remove_file(path(name)).unwrap_or(());
        wanted.remain_with(&[]);
        killed
    });
}

/// Makes an object under the name that the dead reaper took away, unless it had not done so yet.
fn make_new(name: &str) -> Option<(File, (u64, u64))> {
    let new = identity(name).is_none().then(|| make_with(name, "new"));
    new.map(|new| (File::open(path(name)).unwrap(), new))
}

/// Somebody makes a new object of that name before the next reap: it stays, the old one goes.
fn and_the_name_is_taken() {
    let wanted = Wanted::make();
    let name = &orphan(0);
    let mut taken = 0;
    at_every_step(Steps::Changes, |step| {
        make_with(name, "stale");
        let killed = killed_at(step, is(MOVE), 0, |_| {});
        if let Some((file, new)) = make_new(name) {
            reap_again(0);
            is_there(name, new, "new");
            wanted.remain_with(&[name]);
            drop(file);
            taken += 1;
        }
        reap_again(0);
        wanted.remain_with(&[]);
        killed
    });
    assert!(taken > 0);
}

/// The same, and somebody holds the old one: it counts as unlinked, and never returns.
fn and_what_is_held_lost_its_name() {
    let wanted = Wanted::make();
    let name = &orphan(0);
    let mut taken = 0;
    at_every_step(Steps::Changes, |step| {
        let before = make_with(name, "stale");
        let mut opener = None;
        let killed = killed_at(step, is(MOVE), 0, opens(name, &mut opener));
        let file = opener.unwrap().file();
        assert_eq!(file.metadata().unwrap().ino(), before.1);
        if let Some(new) = make_new(name) {
            taken += 1;
            never_returns(&wanted, name, new, file);
        } else {
            is_there(name, before, "stale");
            drop(file);
        }
        reap_again(0);
        wanted.remain_with(&[]);
        killed
    });
    assert!(taken > 0);
}

/// The old object of that name, which `file` is, stays without a name for as long as it is held,
/// whether there is a new one or no more.
#[track_caller]
fn never_returns(wanted: &Wanted, name: &str, (new_file, new): (File, (u64, u64)), file: File) {
    reap_again(1);
    is_there(name, new, "new");
    // Held, so it must not be lost either: where it is, nobody finds it by its name.
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    drop(new_file);
    fs::remove_file(path(name)).unwrap();
    reap_again(1);
    assert_eq!(identity(name), None, "{:?}", names());
    drop(file);
    reap_again(0);
    wanted.remain_with(&[]);
}

/// The name is taken while the reaper lives, before it can put back what somebody opens: it dies
/// while it sets that one aside, or waits for its end.
fn while_it_sets_aside() {
    let wanted = Wanted::make();
    let name = &orphan(0);
    at_every_step(Steps::Changes, |step| {
        make_with(name, "stale");
        let (mut opener, mut new) = (None, None);
        let killed = killed_at(step, is(MOVE), 1, |turn| match turn {
            0 => opener = Some(Opener::start(name)),
            1 => new = make_new(name),
            _ => {}
        });
        never_returns(&wanted, name, new.unwrap(), opener.unwrap().file());
        killed
    });
}

/// A reaper that settles what another one left dies as well: what is held of it comes back, what
/// lost its name to a new object stays without one, the rest goes.
fn while_it_settles() {
    let wanted = Wanted::make();
    let [held, stale, nobodys] = &[orphan(0), orphan(1), orphan(2)];
    let directory = ".rtrack.0123456789abcdef";
    let inside = |name: &str| format!("{directory}/{name}");
    // The directory is locked for the probing, and again to carry out what is planned.
    let locks = |call: &Call| {
        let blocking = u64::try_from(libc::LOCK_EX).unwrap();
        call.number == libc::SYS_flock && call.arguments[1] & blocking != 0
    };
    at_every_step(Steps::Changes, |step| {
        let before = make_with(held, "wanted again");
        make_with(stale, "stale");
        make_with(nobodys, "stale");
        leave(directory, 0o700, &[held, stale, nobodys]);
        let new = (make_with(stale, "new"), File::open(path(stale)).unwrap());
        let files = [held, stale].map(|name| File::open(path(inside(name))).unwrap());
        let killed = killed_at(step, locks, 1, |_| {});
        list_shows_what_is_left();
        reap_again(1);
        is_there(held, before, "wanted again");
        is_there(stale, new.0, "new");
        assert!(files.iter().all(|file| file.metadata().unwrap().nlink() == 1));
        assert_eq!(identity(nobodys), None);
        drop((files, new));
        reap_again(0);
        wanted.remain_with(&[]);
        killed
    });
}

/// Between the last look and the move somebody puts a new object under the name, and the reaper dies
/// before it can go back: nobody has judged that one, and the next reap does not take it for judged.
fn after_a_move_by_mistake() {
    let wanted = Wanted::make();
    let name = &orphan(0);
    for is_taken in [false, true] {
        let mut moved = 0;
        at_every_step(Steps::Changes, |step| {
            make_with(name, "stale");
            let mut stranger = None;
            let killed = killed_at(step, is(MOVE), 0, |turn| {
                if turn == 0 {
                    fs::remove_file(path(name)).unwrap();
                    stranger = Some(make_with(name, "never judged"));
                }
            });
            let stranger = stranger.unwrap();
            if identity(name).is_none() {
                moved += 1;
                let new = is_taken.then(|| make_new(name).unwrap());
                reap_again(i32::from(is_taken));
                if let Some((file, new)) = new {
                    is_there(name, new, "new");
                    drop(file);
                    fs::remove_file(path(name)).unwrap();
                    reap_again(0);
                }
            }
            is_there(name, stranger, "never judged");
            fs::remove_file(path(name)).unwrap();
            reap_again(0);
            wanted.remain_with(&[]);
            killed
        });
        assert!(moved > 0);
    }
}
