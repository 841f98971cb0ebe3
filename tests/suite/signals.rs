//! Signals to a reaper: what was done is told, and nothing is left half done.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::reaping::{exactly, make_orphans};
use crate::support::{Case, case, check, names, reap_all, scratch, stopped_before, validate};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("interrupted", interrupted),
        case("interrupted_while_it_tells", interrupted_while_it_tells),
        case("ignored_signal", ignored_signal),
    ]
}

/// SIGINT ends it between two objects: nothing is left half done.
fn interrupted() {
    make_orphans(5000);
    let file = scratch().join("report");
    let mut reap = reap_all();
    let mut reaper =
        reap.stdout(File::create(&file).unwrap()).stderr(Stdio::null()).spawn().unwrap();
    while names().len() == 5000 {
        assert!(reaper.try_wait().unwrap().is_none(), "nothing was reaped");
        thread::sleep(Duration::from_millis(1));
    }
    // An impatient operator, and a system that shuts down: what was done is said all the same.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the child has not been waited for.
        check(unsafe { libc::kill(reaper.id().try_into().unwrap(), signal) }).unwrap();
    }
    let status = reaper.wait().unwrap();
    let left = names();
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    validate(&report);
    let outcomes = report["objects"].as_array().unwrap().iter();
    let reaped = outcomes.filter(|object| object["outcome"] == "reaped").count();
    assert_eq!(reaped, 5000 - left.len());
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
    assert_eq!(status.code(), Some(130), "{}", left.len());
}

/// A signal that comes while the report is written does not end it.
fn interrupted_while_it_tells() {
    make_orphans(3);
    let file = scratch().join("report");
    let mut reap = reap_all();
    reap.stdout(File::create(&file).unwrap());
    let status = stopped_before(libc::SYS_write, &mut reap, |_, pid| {
        if names().is_empty() {
            for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
                kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
            }
        }
    });
    assert_eq!(status.code(), Some(130));
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    validate(&report);
    assert_eq!(report["objects"].as_array().unwrap().len(), 3, "{report:#}");
    exactly(&[]);
}

/// What the program was started to ignore does not interrupt it, as nohup(1) has it.
fn ignored_signal() {
    make_orphans(3);
    let mut reap = reap_all();
    // SAFETY: between fork and exec a disposition is changed, and nothing else.
    unsafe {
        reap.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let status = stopped_before(libc::SYS_mkdirat, &mut reap, |_, pid| {
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGHUP).unwrap();
    });
    assert_eq!(status.code(), Some(0));
    exactly(&[]);
}
