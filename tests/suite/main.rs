//! The OS-level tests: one binary, whose tests run in namespaces of their own.
//!
//! Every test is a [`Case`](support::Case): a function that runs alone in a process which has a
//! private mount and IPC namespace, a fresh tmpfs on /dev/shm and an empty scratch directory as
//! its working directory. Nothing here touches the machine's own /dev/shm. To add one, write a
//! function that panics when something is wrong, and list it in its module's `tests()`.

#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::exit)]
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

mod anything;
mod archiving;
mod asking;
mod auditing;
mod client;
mod clocks;
mod containers;
mod daemon;
mod deleted;
mod directories;
mod economy;
mod exhausted;
mod harness;
mod hostile;
mod journal;
mod keeping;
mod killed;
mod leaks;
mod lease;
mod limits;
mod listening;
mod loky;
mod mqueue;
mod mqueue_reaping;
mod owners;
mod plans;
mod probe;
mod producers;
mod race;
mod reaping;
mod restoring;
mod send;
mod show;
mod sight;
mod signals;
mod support;
mod sysv;
mod sysv_reaping;
mod table;
mod tampering;
mod trackers;
mod traps;
mod trees;
mod truth;
mod units;
mod unleased;
mod vectors;
mod verdicts;

use std::process::ExitCode;

use support::{Case, hold, place, run, soak, supervise, truth as workload};

/// A module's name and its cases.
type Module = (&'static str, fn() -> Vec<Case>);

/// Every module with tests: one that is not named here is found by `harness::every_file_is_listed`.
const MODULES: &[Module] = &[
    ("anything", anything::tests),
    ("archiving", archiving::tests),
    ("asking", asking::tests),
    ("auditing", auditing::tests),
    ("client", client::tests),
    ("clocks", clocks::tests),
    ("containers", containers::tests),
    ("daemon", daemon::tests),
    ("deleted", deleted::tests),
    ("directories", directories::tests),
    ("economy", economy::tests),
    ("exhausted", exhausted::tests),
    ("harness", harness::tests),
    ("hostile", hostile::tests),
    ("journal", journal::tests),
    ("keeping", keeping::tests),
    ("killed", killed::tests),
    ("leaks", leaks::tests),
    ("lease", lease::tests),
    ("limits", limits::tests),
    ("listening", listening::tests),
    ("mqueue", mqueue::tests),
    ("mqueue_reaping", mqueue_reaping::tests),
    ("loky", loky::tests),
    ("owners", owners::tests),
    ("plans", plans::tests),
    ("probe", probe::tests),
    ("producers", producers::tests),
    ("race", race::tests),
    ("reaping", reaping::tests),
    ("restoring", restoring::tests),
    ("send", send::tests),
    ("show", show::tests),
    ("sight", sight::tests),
    ("signals", signals::tests),
    ("sysv", sysv::tests),
    ("sysv_reaping", sysv_reaping::tests),
    ("table", table::tests),
    ("tampering", tampering::tests),
    ("trackers", trackers::tests),
    ("traps", traps::tests),
    ("trees", trees::tests),
    ("truth", truth::tests),
    ("units", units::tests),
    ("unleased", unleased::tests),
    ("vectors", vectors::tests),
    ("verdicts", verdicts::tests),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("__case") => supervise(&arguments.next().unwrap()),
        Some("__record") => client::record(&arguments.collect::<Vec<_>>()),
        Some("__race") => soak::main(&arguments.collect::<Vec<_>>()),
        Some("__in") => place::main(&arguments.collect::<Vec<_>>()),
        Some("__truth") => workload::main(),
        Some("__hold") => hold::main(&arguments.collect::<Vec<_>>()),
        _ => run(),
    }
}
