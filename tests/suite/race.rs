//! Openers, a creator and a reaper at the same names, all at once.

use std::time::Duration;

use crate::support::soak::{Kind, Limits, Result, race};
use crate::support::{Case, binary, case, names, note};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("nobody_loses_a_name_to_reap", nobody_loses_a_name_to_reap).seconds(400),
        case("nobody_loses_a_name_to_the_engine", nobody_loses_a_name_to_the_engine).seconds(400),
        case("a_plain_unlink_fails_this_test", || {
            fails(Kind::PlainUnlink, &["lost-while-held"]);
        }),
        case("no_lease_fails_this_test", || {
            fails(Kind::NoLease, &["lost-while-held"]);
        }),
        case("no_put_back_fails_this_test", || {
            fails(Kind::NoPutBack, &["lost-though-noticed"]);
        }),
        case("a_put_back_over_a_newer_one_fails_this_test", || {
            fails(Kind::PutBackOver, &["stale", "lost-while-held"]);
        }),
        case("an_archive_after_the_rename_fails_this_test", || {
            fails(Kind::ArchiveAfterRename, &["away-too-long"]);
        }),
    ]
}

fn run(kind: Kind, opens: u64, removals: u64) -> Result {
    let limits = Limits { opens, removals, time: Duration::from_secs(100), openers: 4 };
    let result = race(kind, &binary(), limits);
    // In a line, without what never happened.
    let text = result.to_string();
    let numbers = text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    let numbers = numbers.skip(1).filter(|number| number[1] != "0");
    note(numbers.map(|number| number.join(" ")).collect::<Vec<_>>().join(", "));
    result
}

fn nobody_loses_a_name_to_reap() {
    nothing_is_lost(&run(Kind::Rtrack, 20_000, 200));
}

fn nobody_loses_a_name_to_the_engine() {
    nothing_is_lost(&run(Kind::Engine, 20_000, 2000));
}

#[track_caller]
fn nothing_is_lost(result: &Result) {
    assert!(result.violations().is_empty() && result.reached(), "{result}");
    let left = names();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

/// The race can tell: a reaper that is broken violates one of these, and soon.
#[track_caller]
fn fails(kind: Kind, expected: &[&str]) {
    let result = run(kind, u64::MAX, 0);
    let found = result.violations();
    assert!(found.iter().any(|(violation, _)| expected.contains(violation)), "{result}");
}
