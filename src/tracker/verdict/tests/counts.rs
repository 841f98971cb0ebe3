//! What the kernel counts of System V objects.

use super::*;

/// A System V object of which the kernel counts this, old, of whose owner nobody lives.
fn counted(counts: Counts) -> Facts {
    let lease = match counts {
        Counts { attachments: Some(1..), .. } | Counts { waiting: Some(1..), .. } => Lease::Refused,
        Counts { dest: true, .. } => Lease::Refused,
        Counts { attachments: None, waiting: None, unread: None, .. } => Lease::Unsupported,
        _ => Lease::Granted,
    };
    Facts { lease, kin: KinState::Gone, counts: Some(counts), ..free() }
}

fn memory() -> Counts {
    Counts { attachments: Some(0), ..Counts::default() }
}

fn set() -> Counts {
    Counts { waiting: Some(0), ..Counts::default() }
}

fn queue() -> Counts {
    Counts { unread: Some(0), ..Counts::default() }
}

#[test]
fn each_count() {
    let alive = |pid| vec![(pid, CreatorState::Alive(who(pid)))];
    let dead = vec![(7, CreatorState::Dead)];
    for (counts, verdict, reason) in [
        (memory(), Verdict::Orphaned, Code::NoKin),
        (set(), Verdict::Orphaned, Code::NoKin),
        (queue(), Verdict::Orphaned, Code::NoKin),
        (Counts { attachments: Some(2), ..memory() }, Verdict::Held, Code::Attached),
        (Counts { dest: true, ..memory() }, Verdict::Held, Code::Attached),
        (Counts { waiting: Some(1), ..set() }, Verdict::Held, Code::Attached),
        (Counts { unread: Some(1), ..queue() }, Verdict::Claimed, Code::Unread),
        (Counts { last: alive(7), ..memory() }, Verdict::Claimed, Code::CreatorAlive),
        (Counts { last: dead, ..memory() }, Verdict::Orphaned, Code::NoKin),
        (Counts::default(), Verdict::Unknown, Code::NoLease),
    ] {
        let judgement = judge(&counted(counts.clone()));
        assert_eq!((judgement.verdict, judgement.reason), (verdict, reason), "{counts:?}");
    }
}

#[test]
fn what_stands_against_a_proof() {
    let blind = Facts { process_blind: vec!["who made it"], ..counted(memory()) };
    let kin = Facts { kin: KinState::Alive(who(3), 1), ..counted(memory()) };
    let shared = Facts { shared_mode: true, ..counted(memory()) };
    let descendant = Facts { descendant: Some(who(4)), ..counted(memory()) };
    for facts in [blind, kin, shared, descendant] {
        assert_eq!(judge(&facts).verdict, Verdict::Unclaimed, "{facts:?}");
    }
    // Holder sight is not asked for, and does not help.
    let forbidden = Facts { lease: Lease::NoPermission, ..counted(set()) };
    assert_eq!(judge(&forbidden).verdict, Verdict::Unknown);
}

/// Live owners of memory have it attached; whether they use semaphores nobody counts.
#[test]
fn nobody_holds_semaphores() {
    let producer = || Some(producer(HeldWhileAlive::Mapped));
    let alive = || KinState::Alive(who(3), 1);
    let of_memory = Facts { producer: producer(), kin: alive(), ..counted(memory()) };
    assert_eq!(judge(&of_memory).reason, Code::AlwaysHeldProducer);
    for counts in [set(), queue()] {
        let facts = Facts { producer: producer(), kin: alive(), ..counted(counts) };
        assert_eq!(judge(&facts).verdict, Verdict::Unclaimed, "{facts:?}");
    }
}
