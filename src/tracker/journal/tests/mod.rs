//! Histories at random against a model that knows nothing of bytes.

mod bytes;
mod damage;
mod on_disk;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::format::{Batch, HEADER, encode_header};
use super::replay::{Entry, Owned, condense, replay};
use super::{FormatError, Header, Owner, Record, Registration};
use crate::tracker::resource::{Identity, Made};

pub(super) const SEED: u32 = 0x1234_5678;

pub(super) fn header() -> Header {
    Header { boot_id: "a boot".into(), made: 1_700_000_000_000_000_000, pid: 77 }
}

/// A [`Record`] with names of its own.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Register { owner: u64, key: Key, count: u64, identity: Option<Identity>, at: i64 },
    Count { owner: u64, key: Key, count: u64 },
    Unregister { owner: u64, key: Key },
    Owner(Owner, u64),
    Ended { owner: u64 },
}

pub(super) type Key = (Vec<u8>, Vec<u8>);

impl Event {
    pub(super) fn record(&self) -> Record<'_> {
        match self {
            Self::Register { owner, key: (rtype, name), count, identity, at } => {
                Record::Register(Registration {
                    owner: *owner,
                    rtype,
                    name,
                    count: *count,
                    identity: *identity,
                    at: i128::from(*at),
                })
            }
            Self::Count { owner, key: (rtype, name), count } => {
                Record::Count { owner: *owner, rtype, name, count: *count }
            }
            Self::Unregister { owner, key: (rtype, name) } => {
                Record::Unregister { owner: *owner, rtype, name }
            }
            Self::Owner(owner, _) => Record::Owner(*owner),
            Self::Ended { owner } => Record::Ended { owner: *owner },
        }
    }
}

fn keys() -> impl Strategy<Value = Key> {
    let rtypes = prop::sample::select(vec![&b"shared_memory"[..], b"semaphore", b"file", b""]);
    let any_name = prop::collection::vec(any::<u8>(), 0..40);
    let name = prop_oneof![
        // Few, so that they are met again.
        4 => prop::sample::select(vec![&b"/psm_1"[..], b"/psm_2", b"", b"\0\n:"]).prop_map(<[u8]>::to_vec),
        1 => any_name.clone(),
        // What is a record, if one does not know the seed.
        1 => any_name.prop_map(|name| {
            let mut forged = Batch::new(0);
            forged.push(&Record::Register(registration(&name))).unwrap();
            forged.as_bytes().to_vec()
        }),
    ];
    (rtypes.prop_map(<[u8]>::to_vec), name)
}

pub(super) fn registration(name: &[u8]) -> Registration<'_> {
    Registration { owner: 0, rtype: b"folder", name, count: 1, identity: None, at: 5 }
}

fn identities() -> impl Strategy<Value = Identity> {
    let made = (any::<u32>(), any::<Option<u32>>(), any::<Option<i32>>());
    let made = made.prop_map(|(key, creator_uid, creator)| Made { key, creator_uid, creator });
    (any::<u64>(), any::<u64>(), any::<Option<i64>>(), prop::option::of(made))
        .prop_map(|(dev, ino, born, sysv)| Identity { dev, ino, born: born.map(i128::from), sysv })
}

fn events() -> impl Strategy<Value = Event> {
    let owner = prop_oneof![8 => 0..4_u64, 1 => any::<u64>()];
    let counts = prop_oneof![1..4_u64, any::<u64>()];
    let process = (any::<i32>(), 0..2_u64, any::<u32>(), any::<u32>());
    prop_oneof![
        8 => (owner.clone(), keys(), counts.clone(), prop::option::of(identities()), any::<i64>())
            .prop_map(|(owner, key, count, identity, at)| {
                Event::Register { owner, key, count, identity, at }
            }),
        2 => (owner.clone(), keys(), counts)
            .prop_map(|(owner, key, count)| Event::Count { owner, key, count }),
        4 => (owner.clone(), keys()).prop_map(|(owner, key)| Event::Unregister { owner, key }),
        1 => (owner.clone(), process, 0..3_u64).prop_map(|(id, (pid, start_ticks, uid, gid), namespace)| {
            Event::Owner(Owner { id, pid, start_ticks, uid, gid }, namespace)
        }),
        1 => owner.prop_map(|owner| Event::Ended { owner }),
    ]
}

pub(super) fn histories() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(events(), 0..30)
}

/// A journal, and where each record ends in it.
pub(super) fn journal(events: &[Event]) -> (Vec<u8>, Vec<usize>) {
    let mut batch = Batch::new(SEED);
    let ends = events.iter().map(|event| {
        let namespace = if let Event::Owner(_, namespace) = event { *namespace } else { 0 };
        batch = std::mem::replace(&mut batch, Batch::new(SEED)).in_namespace(namespace);
        batch.push(&event.record()).unwrap();
        HEADER + batch.len()
    });
    let ends = ends.collect();
    ([&encode_header(&header(), SEED), batch.as_bytes()].concat(), ends)
}

/// What is registered after these events: lists that are searched.
pub(super) fn model(events: &[Event]) -> Vec<Owned> {
    let mut owners: BTreeMap<u64, Owned> = BTreeMap::new();
    for event in events {
        let empty = |id| {
            let (process, earlier, namespace) = (None, false, 0);
            Owned { id, process, earlier, namespace, entries: Vec::new() }
        };
        let is = |entry: &Entry, key: &Key| (&entry.rtype, &entry.name) == (&key.0, &key.1);
        match event {
            Event::Register { owner, key, count, identity, at } => {
                let entries = &mut owners.entry(*owner).or_insert_with(|| empty(*owner)).entries;
                let new = Entry {
                    rtype: key.0.clone(),
                    name: key.1.clone(),
                    count: *count,
                    identity: *identity,
                    at: i128::from(*at),
                    earlier: false,
                    doubtful: false,
                };
                match entries.iter_mut().find(|entry| is(entry, key)) {
                    Some(entry) => *entry = new,
                    None => entries.push(new),
                }
            }
            Event::Count { owner, key, count } => {
                let entries = owners.get_mut(owner).map(|owned| &mut owned.entries);
                let mut entries = entries.into_iter().flatten();
                if let Some(entry) = entries.find(|entry| is(entry, key)) {
                    entry.count = *count;
                }
            }
            Event::Unregister { owner, key } => {
                if let Some(owned) = owners.get_mut(owner) {
                    owned.entries.retain(|entry| !is(entry, key));
                }
            }
            Event::Owner(process, namespace) => {
                let process = *process;
                let namespace = *namespace;
                let new = Owned { process: Some(process), namespace, ..empty(process.id) };
                owners.insert(process.id, new);
            }
            Event::Ended { owner } => {
                owners.remove(owner);
            }
        }
    }
    let left = owners.into_values();
    left.filter(|owned| owned.process.is_some() || !owned.entries.is_empty()).collect()
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(events in histories()) {
        let (bytes, _) = journal(&events);
        let recovered = replay(&bytes).unwrap();
        prop_assert_eq!(&recovered.owners, &model(&events));
        prop_assert_eq!(recovered.header, header());
        prop_assert_eq!((recovered.torn, recovered.end), (0, bytes.len() as u64));
        prop_assert!(recovered.damage.places == 0);
        for owned in recovered.owners {
            prop_assert!(owned.id < recovered.next_owner || owned.id == u64::MAX);
        }
    }

}

proptest! {
    // Each reads hundreds of prefixes.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_prefix_is_what_was_true_then(events in histories()) {
        let (bytes, ends) = journal(&events);
        for length in 0..bytes.len() {
            let read = replay(&bytes[..length]);
            if length < HEADER {
                prop_assert_eq!(read, Err(FormatError::Unfinished));
                continue;
            }
            let recovered = read.unwrap();
            let whole = ends.iter().filter(|end| **end <= length).count();
            let end = if whole == 0 { HEADER } else { ends[whole - 1] };
            prop_assert_eq!(&recovered.owners, &model(&events[..whole]), "{} bytes", length);
            prop_assert_eq!((recovered.end, recovered.torn), (end as u64, (length - end) as u64));
            prop_assert!(!recovered.is_damaged());
        }
    }
}

proptest! {
    #[test]
    fn written_anew_it_says_the_same(events in histories(), early in any::<bool>()) {
        let (bytes, ends) = journal(&events);
        // Damage in the middle, for marks.
        let mut bytes = bytes;
        if let Some(end) = ends.get(ends.len() / 2) {
            bytes[end - 1] ^= 1;
        }
        let mut before = replay(&bytes).unwrap();
        let later = Header { pid: 78, ..header() };
        let condensed = condense(&bytes, &later, 99).unwrap();
        prop_assert_eq!(condensed, (before.damage, before.rewritten(&later, 99)));
        if early {
            before.age();
        }
        let anew = before.rewritten(&later, 99);
        let after = replay(&anew).unwrap();
        prop_assert_eq!(&after.owners, &before.owners);
        prop_assert_eq!(&after.header, &later);
        prop_assert!(after.torn == 0 && !after.is_damaged());
        prop_assert_eq!(after.rewritten(&later, 99), anew);
    }
}
