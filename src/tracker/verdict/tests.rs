//! A test for each row of the rule, for pairs of rows that could conflict, and properties.

mod conflicts;
mod counts;
mod properties;
mod rows;

use std::collections::BTreeSet;

use super::*;

const SECOND: i128 = 1_000_000_000;

fn who(pid: i32) -> Who {
    Who { pid, comm: b"python3".to_vec() }
}

fn producer(held: HeldWhileAlive) -> ProducerFacts {
    let (id, software) = ("p".into(), "P".into());
    ProducerFacts { id, software, held, persistent: false, proof: true, family: None }
}

fn tracker() -> Guardian {
    Guardian { who: who(8), what: "a tracker".into(), silent: false }
}

/// An old object of an unknown producer that nobody holds, with complete sight.
fn free() -> Facts {
    Facts {
        known_kind: true,
        directory: false,
        holders_sought: true,
        lease: Lease::Granted,
        holders: Vec::new(),
        mounted: Vec::new(),
        perhaps_mounted: Vec::new(),
        quiet: 3600 * SECOND,
        grace: 60 * SECOND,
        producer: None,
        creator: None,
        guardian: None,
        family: FamilyState::NotDefined,
        descendant: None,
        registered: None,
        perhaps_registered: None,
        locked: None,
        kin: KinState::Alive(who(3), 1),
        nameless: false,
        shared_mode: false,
        owner: "alice".into(),
        process_blind: Vec::new(),
        holder_blind: Vec::new(),
        assumed_complete: false,
        queue: None,
        catalogue_broken: None,
        counts: None,
    }
}

/// One whose producer's owners always map it: orphaned unless something else is known.
fn always_held() -> Facts {
    Facts { producer: Some(producer(HeldWhileAlive::Mapped)), ..free() }
}

/// One that is opened by name, and of whose family nothing lives.
fn by_name() -> Facts {
    Facts { producer: Some(producer(HeldWhileAlive::ByName)), family: FamilyState::Gone, ..free() }
}

fn held_by(how: How) -> Vec<(Who, BTreeSet<How>)> {
    vec![(who(7), BTreeSet::from([how]))]
}

#[test]
fn every_code_is_listed_once() {
    let words: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(words.len(), Code::ALL.len());
    for code in Code::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
    }
}
