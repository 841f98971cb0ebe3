//! A test for each row of the rule, for pairs of rows that could conflict, and properties.

use std::collections::BTreeSet;

use proptest::prelude::*;

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
        lease: Lease::Granted,
        holders: Vec::new(),
        mounted: Vec::new(),
        quiet: 3600 * SECOND,
        grace: 60 * SECOND,
        producer: None,
        creator: None,
        guardian: None,
        family: FamilyState::NotDefined,
        descendant: None,
        locked: None,
        kin: KinState::Alive(who(3), 1),
        shared_mode: false,
        owner: "alice".into(),
        process_blind: Vec::new(),
        holder_blind: Vec::new(),
        assumed_complete: false,
        catalogue_broken: None,
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
fn each_row_of_the_rule() {
    use Code as C;
    use Verdict as V;
    let blind = || vec!["somewhere"];
    let rows: Vec<(&str, Facts, Verdict, Code)> = vec![
        ("refused", Facts { lease: Lease::Refused, ..always_held() }, V::Held, C::LeaseRefused),
        ("mapped", Facts { holders: held_by(How::Map), ..always_held() }, V::Held, C::MappedBy),
        ("open", Facts { holders: held_by(How::Fd), ..always_held() }, V::Held, C::OpenBy),
        (
            "cwd",
            Facts { holders: held_by(How::Cwd), directory: true, ..free() },
            V::Held,
            C::OpenBy,
        ),
        ("mounted", Facts { mounted: vec!["at /x".into()], ..always_held() }, V::Held, C::Mounted),
        (
            "persistent",
            Facts {
                producer: Some(ProducerFacts {
                    persistent: true,
                    ..producer(HeldWhileAlive::Mapped)
                }),
                ..free()
            },
            V::Claimed,
            C::Persistent,
        ),
        (
            "creator alive",
            Facts { creator: Some((7, CreatorState::Alive(who(7)))), ..always_held() },
            V::Claimed,
            C::CreatorAlive,
        ),
        (
            "pid recycled is no claim",
            Facts { creator: Some((7, CreatorState::Recycled(who(7)))), ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "a dead creator is no proof",
            Facts { creator: Some((7, CreatorState::Dead)), ..free() },
            V::Unclaimed,
            C::UnknownProducer,
        ),
        (
            "guardian",
            Facts { guardian: Some(tracker()), ..always_held() },
            V::Claimed,
            C::GuardianAlive,
        ),
        ("young", Facts { quiet: 59 * SECOND, ..always_held() }, V::Claimed, C::TooYoung),
        (
            "just old enough",
            Facts { quiet: 60 * SECOND, ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "born in the future, whatever the grace",
            Facts { quiet: -1, grace: 0, ..always_held() },
            V::Claimed,
            C::TooYoung,
        ),
        (
            "no grace",
            Facts { quiet: 0, grace: 0, ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "no permission, partial sight",
            Facts { lease: Lease::NoPermission, holder_blind: blind(), ..always_held() },
            V::Unknown,
            C::NoPermission,
        ),
        (
            "no permission, complete sight",
            Facts { lease: Lease::NoPermission, ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "no leases, partial sight",
            Facts { lease: Lease::Unsupported, holder_blind: blind(), ..always_held() },
            V::Unknown,
            C::NoLease,
        ),
        (
            "a fifo",
            Facts { known_kind: false, lease: Lease::NotAsked, ..free() },
            V::Unknown,
            C::NoLease,
        ),
        (
            "a directory, partial sight",
            Facts { directory: true, lease: Lease::NotAsked, holder_blind: blind(), ..by_name() },
            V::Unknown,
            C::NoLease,
        ),
        (
            "a directory, complete sight",
            Facts { directory: true, lease: Lease::NotAsked, ..by_name() },
            V::Orphaned,
            C::NoFamily,
        ),
        ("locked", Facts { locked: Some("by 7".into()), ..always_held() }, V::Claimed, C::Locked),
        (
            "a descendant of the creator",
            Facts { descendant: Some(who(9)), ..by_name() },
            V::Unclaimed,
            C::FamilyAlive,
        ),
        ("no kin", Facts { kin: KinState::Gone, ..free() }, V::Orphaned, C::NoKin),
        (
            "no kin, whatever the catalogue cannot prove",
            Facts {
                kin: KinState::Gone,
                producer: Some(producer(HeldWhileAlive::Unknown)),
                ..free()
            },
            V::Orphaned,
            C::NoKin,
        ),
        (
            "no kin, but others may open it",
            Facts { kin: KinState::Gone, shared_mode: true, ..free() },
            V::Unclaimed,
            C::UnknownProducer,
        ),
        (
            "no kin seen, partial sight",
            Facts { kin: KinState::Gone, process_blind: blind(), ..free() },
            V::Unclaimed,
            C::UnknownProducer,
        ),
        (
            "a system user",
            Facts { kin: KinState::SystemUser, ..free() },
            V::Unclaimed,
            C::UnknownProducer,
        ),
        (
            "no kin, but a descendant of the creator under another uid",
            Facts { kin: KinState::Gone, descendant: Some(who(9)), ..free() },
            V::Unclaimed,
            C::UnknownProducer,
        ),
        ("always held", always_held(), V::Orphaned, C::AlwaysHeldProducer),
        (
            "always open",
            Facts { producer: Some(producer(HeldWhileAlive::Open)), ..free() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "always held needs no sight of processes",
            Facts { process_blind: blind(), holder_blind: blind(), ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        ("no family", by_name(), V::Orphaned, C::NoFamily),
        (
            "no family seen, partial sight",
            Facts { process_blind: blind(), ..by_name() },
            V::Unclaimed,
            C::PartialProcessSight,
        ),
        (
            "a family that could not be looked into",
            Facts { family: FamilyState::Unseen(who(9)), ..by_name() },
            V::Unclaimed,
            C::PartialProcessSight,
        ),
        (
            "family alive",
            Facts { family: FamilyState::Alive(who(9), 2), ..by_name() },
            V::Unclaimed,
            C::FamilyAlive,
        ),
        (
            "by name without a family",
            Facts { family: FamilyState::NotDefined, ..by_name() },
            V::Unclaimed,
            C::WeakProducer,
        ),
        (
            "how it is held is not known",
            Facts { producer: Some(producer(HeldWhileAlive::Unknown)), ..free() },
            V::Unclaimed,
            C::WeakProducer,
        ),
        (
            "an entry that proves nothing",
            Facts {
                producer: Some(ProducerFacts { proof: false, ..producer(HeldWhileAlive::Mapped) }),
                ..free()
            },
            V::Unclaimed,
            C::WeakProducer,
        ),
        (
            "a broken file of the operators' catalogue",
            Facts { catalogue_broken: Some("x.toml:3".into()), ..always_held() },
            V::Unclaimed,
            C::WeakProducer,
        ),
        ("nobody knows", free(), V::Unclaimed, C::UnknownProducer),
        (
            "a root directory",
            Facts { holders: held_by(How::Root), directory: true, ..free() },
            V::Held,
            C::OpenBy,
        ),
        (
            "a file in a directory is held",
            Facts { directory: true, lease: Lease::Refused, ..by_name() },
            V::Held,
            C::LeaseRefused,
        ),
        (
            "a directory of whose owner nothing lives, partial sight",
            Facts {
                directory: true,
                lease: Lease::NotAsked,
                kin: KinState::Gone,
                holder_blind: blind(),
                ..free()
            },
            V::Unknown,
            C::NoLease,
        ),
        (
            "a directory that is mounted",
            Facts {
                directory: true,
                lease: Lease::NotAsked,
                mounted: vec!["at /x".into()],
                ..by_name()
            },
            V::Held,
            C::Mounted,
        ),
        (
            "a directory nobody knows",
            Facts { directory: true, lease: Lease::NotAsked, ..free() },
            V::Unclaimed,
            C::UnknownProducer,
        ),
        (
            "a file that was not asked about, complete sight",
            Facts { lease: Lease::NotAsked, ..always_held() },
            V::Unknown,
            C::NoLease,
        ),
        (
            "no leases, complete sight",
            Facts { lease: Lease::Unsupported, ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "a fifo of whose owner nothing lives",
            Facts { known_kind: false, lease: Lease::NotAsked, kin: KinState::Gone, ..free() },
            V::Unknown,
            C::NoLease,
        ),
        (
            "a creator that may be hidden is no claim",
            Facts { creator: Some((7, CreatorState::NotVisible)), ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "a dead creator and no family",
            Facts { creator: Some((7, CreatorState::Dead)), ..by_name() },
            V::Orphaned,
            C::NoFamily,
        ),
        (
            "a dead creator and a family",
            Facts {
                creator: Some((7, CreatorState::Dead)),
                family: FamilyState::Alive(who(9), 1),
                ..by_name()
            },
            V::Unclaimed,
            C::FamilyAlive,
        ),
        (
            "open to others, but always held",
            Facts { shared_mode: true, ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "open to others, and no family of anybody's",
            Facts { shared_mode: true, ..by_name() },
            V::Orphaned,
            C::NoFamily,
        ),
        (
            "by the operator's word",
            Facts { assumed_complete: true, ..by_name() },
            V::Orphaned,
            C::NoFamily,
        ),
        (
            "the operator's word is about the namespace only",
            Facts { assumed_complete: true, process_blind: blind(), ..by_name() },
            V::Unclaimed,
            C::PartialProcessSight,
        ),
        (
            "a broken catalogue may have said that it is kept, whoever lives",
            Facts { catalogue_broken: Some("x.toml:3".into()), kin: KinState::Gone, ..by_name() },
            V::Unclaimed,
            C::WeakProducer,
        ),
        (
            "a broken catalogue does not matter to claims",
            Facts {
                catalogue_broken: Some("x.toml:3".into()),
                guardian: Some(tracker()),
                ..by_name()
            },
            V::Claimed,
            C::GuardianAlive,
        ),
        (
            "an entry without proof, and no kin",
            Facts {
                producer: Some(ProducerFacts { proof: false, ..producer(HeldWhileAlive::Mapped) }),
                kin: KinState::Gone,
                ..free()
            },
            V::Orphaned,
            C::NoKin,
        ),
        (
            "a descendant is no holder",
            Facts { descendant: Some(who(9)), ..always_held() },
            V::Orphaned,
            C::AlwaysHeldProducer,
        ),
        (
            "a system user's by-name object without a family",
            Facts { kin: KinState::SystemUser, ..by_name() },
            V::Orphaned,
            C::NoFamily,
        ),
    ];
    for (what, facts, verdict, reason) in rows {
        let judged = judge(&facts);
        assert_eq!((judged.verdict, judged.reason), (verdict, reason), "{what}");
        assert!(!judged.says().is_empty(), "{what}: the reason has a sentence");
    }
}

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

#[test]
fn every_code_is_listed_once() {
    let words: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(words.len(), Code::ALL.len());
    for code in Code::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
    }
}

fn leases() -> impl Strategy<Value = Lease> {
    prop_oneof![
        Just(Lease::Granted),
        Just(Lease::Refused),
        Just(Lease::NoPermission),
        Just(Lease::Unsupported),
        Just(Lease::NotAsked),
    ]
}

fn producers() -> impl Strategy<Value = Option<ProducerFacts>> {
    let held = prop_oneof![
        Just(HeldWhileAlive::Mapped),
        Just(HeldWhileAlive::Open),
        Just(HeldWhileAlive::ByName),
        Just(HeldWhileAlive::Unknown),
    ];
    proptest::option::of((held, any::<bool>(), any::<bool>()).prop_map(
        |(held, persistent, proof)| ProducerFacts { persistent, proof, ..producer(held) },
    ))
}

fn families() -> impl Strategy<Value = FamilyState> {
    prop_oneof![
        Just(FamilyState::NotDefined),
        Just(FamilyState::Gone),
        Just(FamilyState::Alive(who(9), 1)),
        Just(FamilyState::Unseen(who(9))),
    ]
}

fn kin() -> impl Strategy<Value = KinState> {
    prop_oneof![Just(KinState::SystemUser), Just(KinState::Gone), Just(KinState::Alive(who(3), 1)),]
}

fn creators() -> impl Strategy<Value = Option<(i32, CreatorState)>> {
    proptest::option::of(prop_oneof![
        Just((7, CreatorState::Alive(who(7)))),
        Just((7, CreatorState::Recycled(who(7)))),
        Just((7, CreatorState::Dead)),
        Just((7, CreatorState::NotVisible)),
    ])
}

prop_compose! {
    fn facts()(
        lease in leases(),
        producer in producers(),
        family in families(),
        creator in creators(),
        kin in kin(),
        quiet in -2i128..120,
        flags in any::<[bool; 12]>(),
    ) -> Facts {
        Facts {
            known_kind: flags[0],
            directory: flags[1],
            lease,
            holders: if flags[2] { held_by(How::Map) } else { Vec::new() },
            mounted: if flags[3] { vec!["m".into()] } else { Vec::new() },
            quiet: quiet * SECOND,
            producer,
            creator,
            family,
            kin,
            process_blind: if flags[4] { vec!["p"] } else { Vec::new() },
            holder_blind: if flags[5] { vec!["h"] } else { Vec::new() },
            shared_mode: flags[6],
            guardian: flags[7].then(tracker),
            descendant: flags[8].then(|| who(9)),
            locked: flags[9].then(|| "by 7".into()),
            assumed_complete: flags[10],
            catalogue_broken: flags[11].then(|| "x.toml".into()),
            ..free()
        }
    }
}

proptest! {
    #[test]
    fn more_evidence_of_life_never_raises_it(facts in facts()) {
        let before = judge(&facts).verdict.reapability();
        let livelier = [
            Facts { lease: Lease::Refused, ..facts.clone() },
            Facts { holders: held_by(How::Fd), ..facts.clone() },
            Facts { mounted: vec!["m".into()], ..facts.clone() },
            Facts { creator: Some((7, CreatorState::Alive(who(7)))), ..facts.clone() },
            Facts { guardian: Some(tracker()), ..facts.clone() },
            Facts { family: FamilyState::Alive(who(9), 1), ..facts.clone() },
            Facts { descendant: Some(who(9)), ..facts.clone() },
            Facts { locked: Some("by 7".into()), ..facts.clone() },
            Facts { kin: KinState::Alive(who(3), 1), ..facts.clone() },
            Facts { kin: KinState::SystemUser, ..facts.clone() },
            Facts { holders: held_by(How::Cwd), ..facts.clone() },
            Facts { quiet: -1, ..facts.clone() },
            Facts { shared_mode: true, ..facts.clone() },
            Facts { quiet: 0, ..facts.clone() },
        ];
        for more in livelier {
            prop_assert!(judge(&more).verdict.reapability() <= before, "{:?}", more);
        }
    }

    #[test]
    fn less_sight_never_raises_it(facts in facts()) {
        let before = judge(&facts).verdict.reapability();
        let dimmer = [
            Facts { process_blind: vec!["p"], ..facts.clone() },
            Facts { holder_blind: vec!["h"], ..facts.clone() },
            Facts { lease: Lease::NoPermission, holder_blind: vec!["h"], ..facts.clone() },
            Facts { lease: Lease::Unsupported, holder_blind: vec!["h"], ..facts.clone() },
            Facts { lease: Lease::NotAsked, holder_blind: vec!["h"], ..facts.clone() },
            Facts {
                assumed_complete: false,
                process_blind: vec!["p"],
                holder_blind: vec!["h"],
                ..facts.clone()
            },
            Facts { family: FamilyState::Unseen(who(9)), ..facts.clone() },
            Facts { catalogue_broken: Some("x".into()), ..facts.clone() },
            Facts { producer: None, family: FamilyState::NotDefined, ..facts.clone() },
        ];
        for less in dimmer {
            // A producer that is persistent by design is a claim; not to know it is less evidence
            // of life, not less sight.
            if less.producer.is_none() && facts.producer.as_ref().is_some_and(|p| p.persistent) {
                continue;
            }
            // A refused lease is evidence of life, and no lease at all is less of it.
            if facts.lease == Lease::Refused && less.lease != Lease::Refused {
                continue;
            }
            prop_assert!(judge(&less).verdict.reapability() <= before, "{:?}", less);
        }
    }

    #[test]
    fn a_file_that_was_not_asked_about_is_never_removable(facts in facts()) {
        let unasked = Facts { lease: Lease::NotAsked, directory: false, ..facts };
        prop_assert_eq!(judge(&unasked).verdict.reapability(), 0);
    }

    #[test]
    fn orphaned_is_what_has_a_proof_and_no_sign_of_life(facts in facts()) {
        let judged = judge(&facts);
        let proofs = [Code::AlwaysHeldProducer, Code::NoFamily, Code::NoKin];
        prop_assert_eq!(judged.verdict == Verdict::Orphaned, proofs.contains(&judged.reason));
        if judged.verdict == Verdict::Orphaned {
            prop_assert!(facts.known_kind);
            prop_assert!(facts.mounted.is_empty() && facts.holders.is_empty());
            prop_assert!(facts.guardian.is_none() && facts.locked.is_none());
            prop_assert!(!matches!(facts.creator, Some((_, CreatorState::Alive(_)))));
            prop_assert!(facts.quiet >= facts.grace);
            prop_assert!(facts.lease == Lease::Granted || facts.holder_blind.is_empty());
            prop_assert!(
                judged.reason == Code::AlwaysHeldProducer
                    || facts.process_blind.is_empty() && facts.descendant.is_none()
            );
        }
    }

    #[test]
    fn what_is_held_is_never_removable(facts in facts()) {
        let held = !facts.holders.is_empty() || facts.lease == Lease::Refused || !facts.mounted.is_empty();
        let judged = judge(&facts);
        prop_assert_eq!(held, judged.verdict == Verdict::Held);
        prop_assert!(judged.evidence.iter().any(|e| e.code == judged.reason));
    }
}
