//! Openers, a creator and a reaper at the same names, all at once.
//!
//! The invariant: from the moment when an opener has opened an object and found it under its name
//! until it closes it, the name leads to the same inode. Nothing but the reaper takes a name
//! away, so every violation is its fault.
//!
//! An opener whose `open` was on its way while the name went may get an inode that has no name
//! any more: the lease cannot exclude that, and this is counted apart (`lost_at_open`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Case, Finish, case, identity, note, path, reap_all, validate};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("nobody_loses_a_name_to_reap", nobody_loses_a_name_to_reap).seconds(400),
        case("a_plain_unlink_fails_this_test", a_plain_unlink_fails_this_test).seconds(400),
    ]
}

/// Opens in a run that shows that nothing is lost.
const OPENS: u64 = 20_000;
const OPENERS: u64 = 4;
/// Exists, in the working directory, when there were removals enough.
const ENOUGH: &str = "enough";

/// Names of a producer whose live owners always hold its objects, so that each is orphaned
/// whenever no opener holds it.
fn objects() -> impl Iterator<Item = String> {
    (0..16).map(|number| format!("mpich_shar_tmpRace{number:02}"))
}

/// What one opener counted, or all of them.
#[derive(Debug, Default)]
struct Count {
    /// Objects opened.
    opens: u64,
    /// Times when there was nothing of that name, which is no fault.
    missing: u64,
    /// Opens that gave an inode which the name no longer led to.
    lost_at_open: u64,
    /// Violations: the name went while the object was held.
    lost_while_held: u64,
}

fn nobody_loses_a_name_to_reap() {
    let mut outcomes = BTreeMap::<String, u64>::new();
    let mut reaped = 0;
    let count = race(OPENS, || {
        let run = reap_all().finish();
        assert!(matches!(run.code, Some(0 | 1)), "{run:?}");
        let report: Value = serde_json::from_slice(&run.stdout).unwrap();
        if outcomes.is_empty() {
            validate(&report);
        }
        for object in report["objects"].as_array().unwrap() {
            let outcome = object["outcome"].as_str().unwrap().to_owned();
            assert!(outcome != "failed", "{object:#}");
            reaped += u32::from(outcome == "reaped");
            *outcomes.entry(outcome).or_default() += 1;
        }
        // Without these the race would not have been run.
        reaped >= 200
    });
    note(format_args!("{count:?}, outcomes {outcomes:?}"));
    assert_eq!(count.lost_while_held, 0, "{count:?}, {outcomes:?}");
    // Far above what was ever measured for lease and rename, far below what an unlink does.
    assert!(count.lost_at_open * 200 <= count.opens, "{count:?}, {outcomes:?}");
    let left: Vec<_> = fs::read_dir("/dev/shm").unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

/// The test can tell: removal without a lease breaks the invariant.
fn a_plain_unlink_fails_this_test() {
    let count = race(OPENS / 10, || {
        for name in objects() {
            fs::remove_file(path(name)).unwrap_or(());
        }
        thread::sleep(Duration::from_millis(1));
        true
    });
    assert!(count.lost_while_held > 0, "{count:?}");
}

/// Runs openers, a creator and, again and again, `remove`, until there were `opens` opens and
/// `remove` says that it has done enough.
fn race(opens: u64, mut remove: impl FnMut() -> bool) -> Count {
    let mut creator = start("creator", 0);
    let mut openers: Vec<Child> = (0..OPENERS).map(|_| start("opener", opens / OPENERS)).collect();
    while openers.iter_mut().any(|opener| opener.try_wait().unwrap().is_none()) {
        if remove() && !Path::new(ENOUGH).exists() {
            File::create(ENOUGH).unwrap();
        }
    }
    creator.kill().unwrap();
    creator.wait().unwrap();
    let mut sum = Count::default();
    for mut opener in openers {
        let mut text = String::new();
        opener.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(opener.wait().unwrap().success(), "an opener failed");
        let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let [opens, missing, lost_at_open, lost_while_held] = numbers[..] else { panic!("{text}") };
        sum.opens += opens;
        sum.missing += missing;
        sum.lost_at_open += lost_at_open;
        sum.lost_while_held += lost_while_held;
    }
    sum
}

fn start(role: &str, count: u64) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.args(["__race", role, &count.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

/// The main function of the processes that race.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    // SAFETY: this changes a flag of this process only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    match arguments {
        [role, _] if role == "creator" => create(),
        [role, count] if role == "opener" => {
            let count = open(count.parse().unwrap());
            let Count { opens, missing, lost_at_open, lost_while_held } = count;
            println!("{opens} {missing} {lost_at_open} {lost_while_held}");
            ExitCode::SUCCESS
        }
        _ => panic!("usage: __race creator|opener COUNT"),
    }
}

/// Makes whatever is missing, for ever. Each object holds its own inode number.
fn create() -> ! {
    loop {
        for name in objects() {
            let mut options = File::options();
            match options.read(true).write(true).create_new(true).open(path(name)) {
                Ok(file) => {
                    let inode = file.metadata().unwrap().ino();
                    file.set_len(4096).unwrap();
                    file.write_all_at(&inode.to_ne_bytes(), 0).unwrap();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
            }
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// Opens at least `count` objects, one after the other; maps, verifies and holds each for a moment.
fn open(count: u64) -> Count {
    let mut counted = Count::default();
    let start = usize::try_from(std::process::id()).unwrap();
    for name in objects().collect::<Vec<_>>().iter().cycle().skip(start % 16) {
        if counted.opens >= count && Path::new(ENOUGH).exists() {
            break;
        }
        let file = match File::options().read(true).write(true).open(path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                counted.missing += 1;
                thread::yield_now();
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        counted.opens += 1;
        let opened = file.metadata().map(|meta| (meta.dev(), meta.ino())).unwrap();
        let mapping = Mapping::of(&file);
        drop(file);
        if identity(name) != Some(opened) {
            counted.lost_at_open += 1;
            continue;
        }
        for _ in 0..5 {
            thread::sleep(Duration::from_micros(20));
            if identity(name) != Some(opened) {
                counted.lost_while_held += 1;
                break;
            }
        }
        // Nothing there yet: the creator is between its two steps.
        let content = mapping.inode();
        assert!(content == 0 || content == opened.1, "{name} holds {content}, not {opened:?}");
    }
    counted
}

/// A shared mapping of an object's page, which is all that holds it.
struct Mapping(*mut libc::c_void, bool);

impl Mapping {
    fn of(file: &File) -> Self {
        let (access, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        let whole = file.metadata().unwrap().len() >= 4096;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, shared, file.as_raw_fd(), 0) };
        assert!(address != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(address, whole)
    }

    /// The number at its start; 0 while there is none.
    fn inode(&self) -> u64 {
        // SAFETY: the page lies inside the file, which never shrinks, and others may write it.
        if self.1 { unsafe { self.0.cast::<u64>().read_volatile() } } else { 0 }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own.
        unsafe { libc::munmap(self.0, 4096) };
    }
}
