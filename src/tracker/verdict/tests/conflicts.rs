//! Each pair of rows that could conflict, and what stands in the way of each proof.

use super::*;

type Change = fn(&mut Facts);

/// What makes a row of the rule apply, in the order of the rule.
fn conditions() -> Vec<(Change, Verdict, Code)> {
    use Code as C;
    use Verdict as V;
    let claimed: [(Change, Verdict, Code); 5] = [
        (
            |facts| {
                let kept = producer(HeldWhileAlive::Mapped);
                facts.producer = Some(ProducerFacts { persistent: true, ..kept });
            },
            V::Claimed,
            C::Persistent,
        ),
        (
            |facts| facts.creator = Some((7, CreatorState::Alive(who(7)))),
            V::Claimed,
            C::CreatorAlive,
        ),
        (|facts| facts.guardian = Some(tracker()), V::Claimed, C::GuardianAlive),
        (|facts| facts.quiet = 0, V::Claimed, C::TooYoung),
        (|facts| facts.locked = Some("by 7".into()), V::Claimed, C::Locked),
    ];
    let mut rows: Vec<(Change, Verdict, Code)> = vec![
        (|facts| facts.lease = Lease::Refused, V::Held, C::LeaseRefused),
        (|facts| facts.holders.extend(held_by(How::Map)), V::Held, C::MappedBy),
        (|facts| facts.holders.extend(held_by(How::Fd)), V::Held, C::OpenBy),
        (|facts| facts.mounted = vec!["at /x".into()], V::Held, C::Mounted),
    ];
    rows.extend(claimed);
    rows.extend::<[(Change, Verdict, Code); 11]>([
        (
            |facts| {
                facts.known_kind = false;
                facts.lease = Lease::NotAsked;
            },
            V::Unknown,
            C::NoLease,
        ),
        (
            |facts| {
                facts.lease = Lease::NoPermission;
                facts.holder_blind = vec!["h"];
            },
            V::Unknown,
            C::NoPermission,
        ),
        (|facts| facts.lease = Lease::NotAsked, V::Unknown, C::NoLease),
        (
            |facts| facts.producer = Some(producer(HeldWhileAlive::Open)),
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            |facts| {
                facts.producer = Some(producer(HeldWhileAlive::ByName));
                facts.family = FamilyState::Gone;
            },
            V::Orphaned,
            C::NoFamily,
        ),
        (|facts| facts.kin = KinState::Gone, V::Orphaned, C::NoKin),
        (
            |facts| {
                let weak = producer(HeldWhileAlive::Open);
                facts.producer = Some(ProducerFacts { proof: false, ..weak });
            },
            V::Unclaimed,
            C::WeakProducer,
        ),
        (
            |facts| {
                facts.producer = Some(producer(HeldWhileAlive::ByName));
                facts.family = FamilyState::Alive(who(9), 1);
            },
            V::Unclaimed,
            C::FamilyAlive,
        ),
        (
            |facts| {
                facts.producer = Some(producer(HeldWhileAlive::ByName));
                facts.family = FamilyState::Unseen(who(9));
            },
            V::Unclaimed,
            C::PartialProcessSight,
        ),
        (
            |facts| {
                facts.producer = Some(producer(HeldWhileAlive::ByName));
                facts.family = FamilyState::NotDefined;
            },
            V::Unclaimed,
            C::WeakProducer,
        ),
        (|_| {}, V::Unclaimed, C::UnknownProducer),
    ]);
    rows
}

#[test]
fn where_rows_conflict_the_earlier_one_wins() {
    let rows = conditions();
    for (place, (applies, verdict, reason)) in rows.iter().enumerate() {
        for (later, _, other) in rows.iter().skip(place) {
            let mut facts = free();
            later(&mut facts);
            applies(&mut facts);
            let judged = judge(&facts);
            let found = (judged.verdict, judged.reason);
            assert_eq!(found, (*verdict, *reason), "{reason:?} before {other:?}: {facts:?}");
        }
    }
}

/// What keeps a proof from being one, whichever proof it is.
#[test]
fn obstacles_to_each_proof() {
    let proofs: [(Facts, Code); 3] = [
        (always_held(), Code::AlwaysHeldProducer),
        (by_name(), Code::NoFamily),
        (Facts { kin: KinState::Gone, ..free() }, Code::NoKin),
    ];
    let obstacles: [(&str, Change, [bool; 3]); 7] = [
        ("nothing", |_| {}, [false; 3]),
        ("not all processes are seen", |f| f.process_blind = vec!["p"], [false, true, true]),
        ("not all holders are seen", |f| f.holder_blind = vec!["h"], [false; 3]),
        ("a descendant", |f| f.descendant = Some(who(9)), [false, true, true]),
        ("a broken catalogue", |f| f.catalogue_broken = Some("x".into()), [true; 3]),
        ("others may open it", |f| f.shared_mode = true, [false, false, true]),
        ("a system user", |f| f.kin = KinState::SystemUser, [false, false, true]),
    ];
    for (what, apply, hinders) in obstacles {
        for ((facts, proof), hinders) in proofs.iter().zip(hinders) {
            let mut facts = facts.clone();
            apply(&mut facts);
            let judged = judge(&facts);
            let expected = if hinders { Verdict::Unclaimed } else { Verdict::Orphaned };
            assert_eq!(judged.verdict, expected, "{what} against {proof:?}");
            assert_eq!(judged.reason == *proof, !hinders, "{what} against {proof:?}");
        }
    }
}

/// The proof is half of what is known: its other half is that nobody holds the object.
#[test]
fn the_sentence_of_a_proof_is_true_or_is_not_there() {
    let changes: [(&str, Change, bool); 6] = [
        ("granted", |_| {}, true),
        ("refused", |f| f.lease = Lease::Refused, false),
        ("not asked", |f| f.lease = Lease::NotAsked, true),
        (
            "not asked, not seen",
            |f| (f.lease, f.holder_blind) = (Lease::NotAsked, vec!["h"]),
            false,
        ),
        (
            "no permission, not seen",
            |f| (f.lease, f.holder_blind) = (Lease::NoPermission, vec!["h"]),
            false,
        ),
        ("mounted", |f| f.mounted = vec!["at".into()], false),
    ];
    for (what, apply, there) in changes {
        let mut facts = always_held();
        apply(&mut facts);
        let evidence = judge(&facts).evidence;
        assert_eq!(evidence.iter().any(|e| e.code == Code::AlwaysHeldProducer), there, "{what}");
    }
}
