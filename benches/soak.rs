//! A race of openers and a creator against a reaper, for as many opens as are asked for, in
//! namespaces of its own. `cargo bench --bench soak -- --help` says what can be told to it.

#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::exit)]
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

#[path = "../tests/suite/support/namespaces.rs"]
mod namespaces;
#[path = "../tests/suite/support/soak/mod.rs"]
mod soak;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use soak::{Kind, Limits, race};

/// Races openers and a creator against a reaper, and counts what openers lose.
///
/// The exit status is 1 if something was violated, and 3 if there was not time enough for what was asked for.
#[derive(Debug, clap::Parser)]
struct Args {
    /// How many objects are opened at least
    #[arg(long, value_name = "COUNT", default_value_t = 50_000)]
    opens: u64,

    /// How many objects are removed at least; 1000 if not said, but for archive-after-rename, which goes on
    /// until its fault shows
    #[arg(long, value_name = "COUNT")]
    removals: Option<u64>,

    /// After so long it ends, whatever was reached
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    seconds: u64,

    /// How many processes open objects
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    openers: usize,

    /// Which reaper
    #[arg(long, value_enum, default_value = "rtrack")]
    reaper: Kind,

    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, rest @ ..] = &arguments[..]
        && role == "__race"
    {
        return soak::main(rest);
    }
    let args = Args::parse();
    in_namespaces(|| {
        let limits = Limits {
            opens: args.opens,
            removals: args.removals.unwrap_or(match args.reaper {
                Kind::ArchiveAfterRename => u64::MAX,
                _ => 1000,
            }),
            time: Duration::from_secs(args.seconds),
            openers: args.openers,
        };
        let result = race(args.reaper, Path::new(env!("CARGO_BIN_EXE_rtrack")), limits);
        print!("{result}");
        match (result.violations().is_empty(), result.reached()) {
            (false, _) => 1,
            (true, false) => 3,
            (true, true) => 0,
        }
    })
}

/// Runs `body` as the first process of new namespaces; its exit status.
fn in_namespaces(body: impl FnOnce() -> u8) -> ExitCode {
    namespaces::unshare(true).unwrap();
    let child = namespaces::fork();
    if child > 0 {
        let mut status = 0;
        // SAFETY: the status is one integer.
        namespaces::check(unsafe { libc::waitpid(child, &mut status, 0) }).unwrap();
        return namespaces::status_of(status).into();
    }
    // SAFETY: this changes a flag of this process only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    namespaces::private_mounts(true).unwrap();
    body().into()
}
