//! Whatever becomes of the bytes: nothing panics, nothing is answered that was not registered, and
//! nothing without doubt that was taken back.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Event, SEED, header, histories, journal, model, registration};
use crate::tracker::journal::format::{Batch, HEADER, encode_header, guarded};
use crate::tracker::journal::{Damage, Entry, Owned, Record, Recovered, replay};

/// Whether `entry` of `owner` is what some event has registered, with the count of some event.
fn was_registered(events: &[Event], owner: u64, entry: &Entry) -> bool {
    let is = |by: u64, key: &(Vec<u8>, Vec<u8>)| {
        by == owner && (&key.0, &key.1) == (&entry.rtype, &entry.name)
    };
    let registered = events.iter().any(|event| match event {
        Event::Register { owner, key, identity, at, .. } => {
            is(*owner, key) && *identity == entry.identity && i128::from(*at) == entry.at
        }
        _ => false,
    });
    let counted = events.iter().any(|event| match event {
        Event::Register { owner, key, count, .. } | Event::Count { owner, key, count } => {
            is(*owner, key) && *count == entry.count
        }
        _ => false,
    });
    registered && counted
}

/// What holds of a journal of these events, `ends` being where each ends, whatever happened to it.
fn check(events: &[Event], ends: &[usize], recovered: &Recovered) -> Result<(), TestCaseError> {
    // What follows the end is as if it had never been written.
    let kept = ends.iter().filter(|end| **end as u64 <= recovered.end).count();
    let truth = model(&events[..kept]);
    for owned in &recovered.owners {
        for entry in &owned.entries {
            prop_assert!(was_registered(events, owned.id, entry), "{:?}", entry);
            if !entry.doubtful {
                let of_owner = |other: &&Owned| other.id == owned.id;
                let known = truth.iter().find(of_owner).map_or(&[][..], |other| &other.entries);
                prop_assert!(known.contains(entry), "{:?}", entry);
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn flipped_bits(
        events in histories(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..6),
    ) {
        let (mut bytes, ends) = journal(&events);
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(recovered) = replay(&bytes) {
            check(&events, &ends, &recovered)?;
        }
    }

    #[test]
    fn one_flipped_bit_costs_one_record(events in histories(), at in any::<prop::sample::Index>()) {
        let (whole, ends) = journal(&events);
        prop_assume!(whole.len() > HEADER);
        let bit = at.index((whole.len() - HEADER) * 8) + HEADER * 8;
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let recovered = replay(&bytes).unwrap();
        let hit = ends.iter().filter(|end| **end <= bit / 8).count();
        let begin = if hit == 0 { HEADER } else { ends[hit - 1] };
        let lost = (ends[hit] - begin) as u64;
        prop_assert_eq!(recovered.damage, Damage { places: 1, bytes: lost });
        prop_assert_eq!((recovered.torn, recovered.end), (0, whole.len() as u64));
        let without = [&events[..hit], &events[hit + 1..]].concat();
        let undoubted = |mut owners: Vec<Owned>| {
            owners.iter_mut().flat_map(|o| &mut o.entries).for_each(|e| e.doubtful = false);
            owners
        };
        prop_assert_eq!(undoubted(recovered.owners.clone()), model(&without));
        check(&events, &ends, &recovered)?;
    }

    #[test]
    fn a_stretch_overwritten(
        events in histories(),
        at in any::<prop::sample::Index>(),
        with in prop_oneof![
            prop::collection::vec(any::<u8>(), 1..300),
            (1..300_usize).prop_map(|length| vec![0; length]),
        ],
        cut in any::<bool>(),
    ) {
        let (mut bytes, ends) = journal(&events);
        let from = HEADER + at.index(bytes.len() - HEADER + 1);
        let to = if cut { bytes.len() } else { bytes.len().min(from + with.len()) };
        bytes.splice(from..to, with);
        let recovered = replay(&bytes).unwrap();
        // Where things are is not where they were, if what follows was cut: then all of it counts.
        let ends = if cut { ends.iter().copied().filter(|end| *end <= from).collect() } else { ends };
        check(&events, &ends, &recovered)?;
    }

    #[test]
    fn bytes_at_random(bytes in prop::collection::vec(any::<u8>(), 0..2000), headed in any::<bool>()) {
        if headed {
            let bytes = [&encode_header(&header(), SEED)[..], &bytes].concat();
            let recovered = replay(&bytes).unwrap();
            prop_assert!(recovered.is_empty());
            prop_assert_eq!(recovered.end + recovered.torn, bytes.len() as u64);
        } else {
            prop_assert!(replay(&bytes).is_err());
        }
    }
}

/// The journal of those records.
fn written(records: &[Record<'_>]) -> Vec<u8> {
    let mut batch = Batch::new(SEED);
    records.iter().for_each(|record| batch.push(record).unwrap());
    [&encode_header(&header(), SEED), batch.as_bytes()].concat()
}

fn names(recovered: &Recovered) -> Vec<(&[u8], bool)> {
    let entries = recovered.owners.iter().flat_map(|owned| &owned.entries);
    entries.map(|entry| (&*entry.name, entry.doubtful)).collect()
}

#[test]
fn doubt_is_about_what_came_before() {
    let [a, b, c] = [b"a", b"b", b"c"].map(|name| Record::Register(registration(name)));
    let gone = Record::Unregister { owner: 0, rtype: b"folder", name: b"a" };
    let before = written(&[a, b]).len();
    let mut bytes = written(&[a, b, gone, c, b]);
    assert_eq!(names(&replay(&bytes).unwrap()), [(&b"b"[..], false), (b"c", false)]);
    bytes[before + 9] ^= 4;
    let recovered = replay(&bytes).unwrap();
    assert_eq!(names(&recovered), [(&b"a"[..], true), (b"b", false), (b"c", false)]);
    assert_eq!(recovered.damage.places, 1);
}

#[test]
fn a_record_of_another_kind_is_damage_of_its_length() {
    let a = Record::Register(registration(b"a"));
    let mut bytes = written(&[a]);
    // A kind that this version does not have, and a byte.
    let rest = [&guarded(2, SEED).to_le_bytes()[..], &[99, 0]].concat();
    let mut hasher = crc32fast::Hasher::new_with_initial(SEED);
    hasher.update(&rest);
    bytes.extend_from_slice(&hasher.finalize().to_le_bytes());
    bytes.extend_from_slice(&rest);
    bytes.extend_from_slice(&written(&[Record::Register(registration(b"b"))])[HEADER..]);
    let recovered = replay(&bytes).unwrap();
    assert_eq!(names(&recovered), [(&b"a"[..], true), (b"b", false)]);
    assert_eq!(recovered.damage, Damage { places: 1, bytes: 10 });
}

#[test]
fn names_cannot_pass_for_records() {
    for forged_seed in [0, u32::MAX, 1] {
        let mut forged = Batch::new(forged_seed);
        forged.push(&Record::Register(registration(b"/home"))).unwrap();
        let name = [b"x", forged.as_bytes()].concat();
        let honest = Record::Register(registration(b"b"));
        let mut bytes = written(&[Record::Register(registration(&name)), honest]);
        bytes[HEADER] ^= 1;
        assert_eq!(names(&replay(&bytes).unwrap()), [(&b"b"[..], false)]);
    }
}

#[test]
fn a_search_ends() {
    // As far as can be seen without checksums, every fourth byte begins a record of 256 KiB: the worst that
    // somebody who knew the seed could write.
    let mut bytes = written(&[Record::Register(registration(b"a"))]);
    bytes.extend(guarded(1 << 18, SEED).to_le_bytes().repeat(1 << 19));
    let began = Instant::now();
    let recovered = replay(&bytes).unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(names(&recovered), [(&b"a"[..], true)]);
    assert_eq!(recovered.damage, Damage { places: 1, bytes: 1 << 21 });
}
