//! Each row of the rule.

use super::*;

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
            "perhaps mounted",
            Facts { perhaps_mounted: vec!["perhaps".into()], ..always_held() },
            V::Unknown,
            C::PartialHolderSight,
        ),
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
        (
            "registered",
            Facts { registered: Some((who(8), None)), ..always_held() },
            V::Claimed,
            C::Registered,
        ),
        (
            "a tracker that does not answer may have it",
            Facts { perhaps_registered: Some(who(8)), ..always_held() },
            V::Claimed,
            C::Registered,
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
