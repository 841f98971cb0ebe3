//! Openers, a creator and a reaper at the same names, all at once: for the suite, and for the
//! bench target `soak`.
//!
//! From the moment when an opener has opened an object and found it under its name until it
//! closes it, the name leads to that object, which holds what its creator wrote. Nothing but the
//! reaper takes a name away, so every violation is its fault. What is no violation is counted too:
//! an opener whose `open` was on its way while the name went may get an object that has no name
//! any more, which the lease cannot exclude.
//!
//! Violations are:
//!
//! - `lost-while-held`: an object lost its name while somebody held it;
//! - `lost-though-noticed`: the reaper noticed that somebody was opening it, removed nothing, and the
//!   opener has an object without a name, although no newer one has that name;
//! - `stale`: an object was under its name after a newer one had been made there;
//! - `wrong-content`: an object did not hold what its creator wrote;
//! - `lost-too-often`: more than one of 200 opens gave an object that had lost its name;
//! - `away-too-long`: of those who were noticed more than half lost their object to a newer one, which
//!   could be made because the name was away for so long.

mod board;
mod reapers;
mod workload;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use board::{Board, Count};
use clap::ValueEnum;
pub(crate) use reapers::Kind;
pub(crate) use workload::main;

/// How many different names there are.
const NAMES: usize = 16;

/// Names of a producer whose live owners always hold its objects, so that each is orphaned
/// whenever no opener holds it.
fn objects() -> impl Iterator<Item = String> {
    (0..NAMES).map(|number| format!("mpich_shar_tmpRace{number:02}"))
}

/// When a race ends, unless something is violated before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How many objects are opened at least.
    pub(crate) opens: u64,
    /// How many are removed at least.
    pub(crate) removals: u64,
    /// It ends after so long even if that was not reached.
    pub(crate) time: Duration,
    /// How many processes open objects.
    pub(crate) openers: usize,
}

/// What reapers did.
#[derive(Debug, Default)]
struct Done {
    /// How often something was removed.
    removals: u64,
    /// How often each outcome was reported.
    outcomes: BTreeMap<String, u64>,
    /// The inodes whose last outcome was that somebody had been noticed who opens them.
    noticed: HashSet<u64>,
}

impl Done {
    fn add(&mut self, inode: u64, outcome: &str) {
        if outcome == "opened-meanwhile" {
            self.noticed.insert(inode);
        } else if matches!(outcome, "reaped" | "opened-at-removal") {
            self.removals += 1;
            self.noticed.remove(&inode);
        }
        *self.outcomes.entry(outcome.to_owned()).or_default() += 1;
    }
}

/// What a race came to.
#[derive(Debug)]
pub(crate) struct Result {
    kind: Kind,
    took: Duration,
    reached: bool,
    passes: u64,
    counts: BTreeMap<Count, u64>,
    done: Done,
    lost_though_noticed: u64,
}

/// Runs openers, a creator and, again and again, that reaper. `program` is rtrack, where it is the
/// reaper; /dev/shm has to be this process's own. Fails with what a reaper fails with.
pub(crate) fn race(kind: Kind, program: &Path, limits: Limits) -> Result {
    let (board, memory) = Board::make();
    let start = |role| start(role, memory.as_raw_fd());
    let mut creator = start("creator");
    let openers: Vec<Child> = (0..limits.openers).map(|_| start("opener")).collect();
    let began = Instant::now();
    let reaper = reapers::Reapers::new(kind, program);
    let mut result = Result {
        kind,
        took: Duration::ZERO,
        reached: false,
        passes: 0,
        counts: BTreeMap::new(),
        done: Done::default(),
        lost_though_noticed: 0,
    };
    while !result.reached && result.violations().is_empty() && began.elapsed() < limits.time {
        reaper.pass(&mut result.done);
        result.passes += 1;
        // Between two passes everything that was done is known.
        result.read(&board);
        let enough = result.count(Count::Opens) >= limits.opens;
        result.reached = enough && result.done.removals >= limits.removals;
    }
    board.stop();
    result.took = began.elapsed();
    for mut opener in openers {
        assert!(opener.wait().unwrap().success(), "an opener failed");
    }
    creator.kill().unwrap();
    creator.wait().unwrap();
    reaper.finish(&mut result.done);
    result.read(&board);
    result
}

fn start(role: &str, memory: i32) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.args(["__race", role, &memory.to_string()]);
    command.stdin(Stdio::null()).spawn().unwrap()
}

impl Result {
    fn read(&mut self, board: &Board) {
        self.counts = board.counts();
        let lost = board.lost().filter(|inode| self.done.noticed.contains(inode));
        self.lost_though_noticed = lost.count().try_into().unwrap();
    }

    fn count(&self, count: Count) -> u64 {
        self.counts.get(&count).copied().unwrap_or(0)
    }

    /// Whether it went on for as long as was asked for.
    pub(crate) fn reached(&self) -> bool {
        self.reached
    }

    /// What must never be, each with how often it was.
    pub(crate) fn violations(&self) -> Vec<(&'static str, u64)> {
        let all = self.rows().into_iter();
        all.filter(|row| row.2 == VIOLATION && row.1 > 0).map(|row| (row.0, row.1)).collect()
    }

    /// Names, numbers, and what they are.
    fn rows(&self) -> Vec<(&'static str, u64, &'static str)> {
        let lost = self.count(Count::LostAtOpen);
        let newer = self.count(Count::LostToNewer);
        let noticed = self.done.outcomes.get("opened-meanwhile").copied().unwrap_or(0);
        // Measured are 1 of 2000 and 1 of 15, where a reaper does nothing but remove.
        let often = if lost >= 50 && lost * 200 > self.count(Count::Opens) { lost } else { 0 };
        let away = if newer >= 10 && newer * 2 > noticed { newer } else { 0 };
        vec![
            ("opens", self.count(Count::Opens), "objects opened"),
            ("removals", self.done.removals, "objects removed"),
            ("missing", self.count(Count::Missing), "times when there was nothing of that name"),
            ("lost-at-open", lost, "opened, and had lost its name by then: cannot be excluded"),
            ("lost-to-newer", newer, "those of them whose name had a newer object"),
            ("lost-while-held", self.count(Count::LostWhileHeld), VIOLATION),
            ("lost-though-noticed", self.lost_though_noticed, VIOLATION),
            ("stale", self.count(Count::Stale), VIOLATION),
            ("wrong-content", self.count(Count::WrongContent), VIOLATION),
            ("lost-too-often", often, VIOLATION),
            ("away-too-long", away, VIOLATION),
        ]
    }
}

/// What is said of a number that has to be 0.
const VIOLATION: &str = "violation";

impl fmt::Display for Result {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reaper = self.kind.to_possible_value().map(|value| value.get_name().to_owned());
        let (reaper, seconds) = (reaper.unwrap_or_default(), self.took.as_secs_f64());
        writeln!(f, "{reaper}: {} passes in {seconds:.1} s", self.passes)?;
        for (name, number, says) in self.rows() {
            writeln!(f, "  {name:<20} {number:>9}  {says}")?;
        }
        for (outcome, number) in &self.done.outcomes {
            writeln!(f, "  {outcome:<20} {number:>9}  outcome")?;
        }
        Ok(())
    }
}
