//! What is true of all facts.

use proptest::prelude::*;

use super::*;

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
        flags in any::<[bool; 14]>(),
    ) -> Facts {
        Facts {
            known_kind: flags[0],
            directory: flags[1],
            lease,
            holders: if flags[2] { held_by(How::Map) } else { Vec::new() },
            mounted: if flags[3] { vec!["m".into()] } else { Vec::new() },
            perhaps_mounted: if flags[12] { vec!["m".into()] } else { Vec::new() },
            quiet: quiet * SECOND,
            producer,
            creator,
            family,
            kin,
            process_blind: if flags[4] { vec!["p"] } else { Vec::new() },
            holder_blind: if flags[5] { vec!["h"] } else { Vec::new() },
            nameless: false,
            shared_mode: flags[6],
            guardian: flags[7].then(tracker),
            descendant: flags[8].then(|| who(9)),
            locked: flags[9].then(|| "by 7".into()),
            registered: flags[13].then(|| (who(8), None)),
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
            Facts { perhaps_mounted: vec!["m".into()], ..facts.clone() },
            Facts { creator: Some((7, CreatorState::Alive(who(7)))), ..facts.clone() },
            Facts { guardian: Some(tracker()), ..facts.clone() },
            Facts { family: FamilyState::Alive(who(9), 1), ..facts.clone() },
            Facts { descendant: Some(who(9)), ..facts.clone() },
            Facts { locked: Some("by 7".into()), ..facts.clone() },
            Facts { registered: Some((who(8), Some(who(9)))), ..facts.clone() },
            Facts { perhaps_registered: Some(who(8)), ..facts.clone() },
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
            prop_assert!(facts.perhaps_mounted.is_empty());
            prop_assert!(facts.guardian.is_none() && facts.locked.is_none());
            prop_assert!(facts.registered.is_none());
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
