//! What is still registered, by the records of a journal: pure.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};

use super::format::{
    FormatError, Frame, HEADER, Header, Marks, Owner, Record, Registration, decode, decode_header,
    encode, encode_header, frame,
};
use crate::tracker::resource::Identity;
use crate::tracker::sys::Nanoseconds;

/// How many bytes of candidates are looked at in search of whole records after damaged ones, in all.
/// Names could be made so that each of their bytes has to be tried; this is less than a second.
const PATIENCE: usize = 1 << 28;

/// Something that is still registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The word of its type.
    pub rtype: Vec<u8>,
    /// Its name, as it was sent.
    pub name: Vec<u8>,
    /// How often it is registered.
    pub count: u64,
    /// What the name belonged to when it was registered last, if that is known.
    pub identity: Option<Identity>,
    /// When it was registered last, in nanoseconds since 1970.
    pub at: Nanoseconds,
    /// It was registered in an earlier boot, or in one that is not known: of what was in memory then, nothing is
    /// left, and what has that name now is something else.
    pub earlier: bool,
    /// What was recorded after it is damaged: perhaps it was taken back.
    pub doubtful: bool,
}

/// An owner, and what it has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The number of the owner; 0 is everybody who writes to the pipe.
    pub id: u64,
    /// The process; nothing for those of the pipe, and where damage has swallowed the record.
    pub process: Option<Owner>,
    /// That process was of an earlier boot, or of one that is not known: it has ended.
    pub earlier: bool,
    /// The PID namespace that it has its pid in, by its inode; 0 is one that is not known.
    pub namespace: u64,
    /// What it has registered, in the order of the first registration of each.
    pub entries: Vec<Entry>,
}

/// What could not be read though it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Damage {
    /// In how many places.
    pub places: u64,
    /// How many bytes there, whole records of an unknown kind included.
    pub bytes: u64,
}

/// What a journal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Who made it, when, and in which boot.
    pub header: Header,
    /// Who has something registered, or was announced and has not ended, by number.
    pub owners: Vec<Owned>,
    /// What is not what was written. None says nothing of damage that was there before the journal was written anew
    /// for the last time; [`Entry::doubtful`] does.
    pub damage: Damage,
    /// Bytes at the end that are the beginning of a record: a write that was interrupted. What it would
    /// have said never counted.
    pub torn: u64,
    /// Bytes before those.
    pub end: u64,
    /// The least number that can be given to an owner: greater than 0 and than all that are in the
    /// journal, those of owners that ended included.
    pub next_owner: u64,
}

impl Recovered {
    /// Whether something could not be read though it was written.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damage.places > 0
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.iter().map(|owned| owned.entries.len()).sum()
    }

    /// Whether nothing is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Marks all as of an earlier boot.
    pub(super) fn age(&mut self) {
        for owned in &mut self.owners {
            owned.earlier = owned.process.is_some();
            for entry in &mut owned.entries {
                entry.earlier = true;
            }
        }
    }

    /// A journal that says this and no more, made by `header`.
    pub(super) fn rewritten(&self, header: &Header, seed: u32) -> Vec<u8> {
        let mut out = encode_header(header, seed);
        for owned in &self.owners {
            let Owned { process, earlier, namespace, .. } = *owned;
            put_owner(&mut out, seed, process, Marks { earlier, namespace, doubtful: false });
            for entry in &owned.entries {
                let registration = Registration {
                    owner: owned.id,
                    rtype: &entry.rtype,
                    name: &entry.name,
                    count: entry.count,
                    identity: entry.identity,
                    at: entry.at,
                };
                let Entry { earlier, doubtful, .. } = *entry;
                let marks = Marks { earlier, doubtful, namespace: 0 };
                encode(&mut out, seed, &Record::Register(registration), marks);
            }
        }
        out
    }
}

fn put_owner(out: &mut Vec<u8>, seed: u32, process: Option<Owner>, marks: Marks) {
    if let Some(owner) = process {
        encode(out, seed, &Record::Owner(owner), marks);
    }
}

/// What of a journal of these bytes was lost, and the bytes of one that says what it says and no more, made by `header`:
/// without a copy of all names between the two, which may be much memory.
///
/// # Errors
/// As [`replay`].
pub(super) fn condense(
    bytes: &[u8],
    header: &Header,
    seed: u32,
) -> Result<(Damage, Vec<u8>), FormatError> {
    let (history, read) = history(bytes)?;
    let lost = history.lost;
    let mut out = encode_header(header, seed);
    for (owner, state) in history.owners {
        let State { process, earlier, namespace, names } = state;
        put_owner(&mut out, seed, process, Marks { earlier, namespace, doubtful: false });
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_unstable_by_key(|(_, live)| live.order);
        for ((rtype, name), live) in names {
            let Live { count, identity, at, .. } = live;
            let registration = Registration { owner, rtype, name, count, identity, at };
            let marks = Marks { doubtful: live.is_doubtful(lost), ..live.marks };
            encode(&mut out, seed, &Record::Register(registration), marks);
        }
    }
    Ok((read.damage, out))
}

/// What a journal of these bytes says. A record that is not whole at the end is [`Recovered::torn`], unless
/// something whole comes after it; everything else that is not whole is [`Recovered::damage`], and what comes
/// after it counts.
///
/// # Errors
/// [`FormatError`]: the header does not let anything be read.
pub fn replay(bytes: &[u8]) -> Result<Recovered, FormatError> {
    let (history, read) = history(bytes)?;
    Ok(Recovered { owners: history.left(), ..read })
}

/// The same, as it is read, and the rest of the answer.
fn history(bytes: &[u8]) -> Result<(History<'_>, Recovered), FormatError> {
    let (header, seed) = decode_header(bytes)?;
    let mut history = History::default();
    let mut damage = Damage::default();
    let mut lose = |from: usize, to: usize| {
        damage.places += 1;
        damage.bytes += (to - from) as u64;
        damage.places
    };
    let mut patience = PATIENCE;
    let mut torn = 0;
    let mut at = HEADER;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let found = frame(rest, seed);
        if let Frame::Whole(body) = found {
            let next = at + Frame::length(body);
            match decode(body) {
                Some((record, marks)) => history.apply(&record, marks),
                None => history.lost = lose(at, next),
            }
            at = next;
            continue;
        }
        match search(rest, seed, &mut patience) {
            Search::Found(distance) => {
                history.lost = lose(at, at + distance);
                at += distance;
            }
            Search::Nothing if found == Frame::Cut => {
                torn = rest.len();
                break;
            }
            Search::Nothing | Search::GaveUp => {
                history.lost = lose(at, bytes.len());
                break;
            }
        }
    }
    let read = Recovered {
        header,
        next_owner: history.greatest.saturating_add(1),
        owners: Vec::new(),
        damage,
        torn: torn as u64,
        end: (bytes.len() - torn) as u64,
    };
    Ok((history, read))
}

enum Search {
    Found(usize),
    Nothing,
    GaveUp,
}

/// How far it is to the next whole record in `bytes`, which begin with none.
fn search(bytes: &[u8], seed: u32, patience: &mut usize) -> Search {
    for distance in 1..bytes.len() {
        match frame(bytes.get(distance..).unwrap_or_default(), seed) {
            Frame::Whole(_) => return Search::Found(distance),
            Frame::Cut => {}
            Frame::Bad(looked_at) => match patience.checked_sub(looked_at) {
                Some(left) => *patience = left,
                None => return Search::GaveUp,
            },
        }
    }
    Search::Nothing
}

/// What is registered while records are read. Names are borrowed from them.
#[derive(Default)]
struct History<'a> {
    owners: BTreeMap<u64, State<'a>>,
    /// How many entries there were.
    registered: u64,
    /// In how many places something was lost so far.
    lost: u64,
    /// The greatest number of an owner.
    greatest: u64,
}

#[derive(Default)]
struct State<'a> {
    process: Option<Owner>,
    earlier: bool,
    namespace: u64,
    names: HashMap<(&'a [u8], &'a [u8]), Live>,
}

struct Live {
    order: u64,
    count: u64,
    identity: Option<Identity>,
    at: Nanoseconds,
    marks: Marks,
    /// In how many places something had been lost when it was registered last.
    lost: u64,
}

impl Live {
    /// Whether damage may have swallowed that it was taken back, if something was lost in so many places.
    fn is_doubtful(&self, lost: u64) -> bool {
        self.marks.doubtful || self.lost < lost
    }
}

impl<'a> History<'a> {
    fn apply(&mut self, record: &Record<'a>, marks: Marks) {
        let (Record::Register(Registration { owner, .. })
        | Record::Count { owner, .. }
        | Record::Unregister { owner, .. }
        | Record::Owner(Owner { id: owner, .. })
        | Record::Ended { owner }) = *record;
        self.greatest = self.greatest.max(owner);
        match *record {
            Record::Register(Registration { rtype, name, count, identity, at, .. }) => {
                let names = &mut self.owners.entry(owner).or_default().names;
                let mut live =
                    Live { order: self.registered, count, identity, at, marks, lost: self.lost };
                match names.entry((rtype, name)) {
                    Slot::Occupied(mut slot) => {
                        live.order = slot.get().order;
                        slot.insert(live);
                    }
                    Slot::Vacant(slot) => {
                        slot.insert(live);
                        self.registered += 1;
                    }
                }
            }
            Record::Count { rtype, name, count, .. } => {
                let state = self.owners.get_mut(&owner);
                if let Some(live) = state.and_then(|state| state.names.get_mut(&(rtype, name))) {
                    live.count = count;
                }
            }
            Record::Unregister { rtype, name, .. } => {
                if let Some(state) = self.owners.get_mut(&owner) {
                    state.names.remove(&(rtype, name));
                }
            }
            Record::Owner(process) => {
                // A number is given once. If it had something, damage has swallowed that it ended,
                // when all of that was dealt with.
                let names = HashMap::new();
                let Marks { earlier, namespace, .. } = marks;
                let state = State { process: Some(process), earlier, namespace, names };
                self.owners.insert(owner, state);
            }
            Record::Ended { .. } => {
                self.owners.remove(&owner);
            }
        }
    }

    /// What is left.
    fn left(self) -> Vec<Owned> {
        let lost = self.lost;
        let entry = |((rtype, name), live): ((&[u8], &[u8]), Live)| Entry {
            rtype: rtype.to_vec(),
            name: name.to_vec(),
            count: live.count,
            identity: live.identity,
            at: live.at,
            earlier: live.marks.earlier,
            doubtful: live.is_doubtful(lost),
        };
        let owners = self.owners.into_iter().map(|(id, mut state)| {
            let mut names: Vec<_> = std::mem::take(&mut state.names).into_iter().collect();
            names.sort_unstable_by_key(|(_, live)| live.order);
            let entries = names.into_iter().map(entry).collect();
            let State { process, earlier, namespace, .. } = state;
            Owned { id, process, earlier, namespace, entries }
        });
        owners.filter(|owned| owned.process.is_some() || !owned.entries.is_empty()).collect()
    }
}
