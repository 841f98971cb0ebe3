//! The bytes of a journal: pure.
//!
//! A header of [`HEADER`] bytes, then records. All numbers are little-endian, those of no fixed length
//! in groups of seven bits, the lowest first, each but the last with its highest bit set.
//!
//! | header | bytes |
//! |---|---|
//! | magic | 8 |
//! | version | 4 |
//! | seed: where the checksums of records begin | 4 |
//! | when it was made, in nanoseconds since 1970 | 8 |
//! | who made it, a pid | 4 |
//! | boot id, filled up with zeroes | 36 |
//! | CRC-32 of all before | 4 |
//!
//! | record | bytes |
//! |---|---|
//! | CRC-32 of all that follows, begun with the seed | 4 |
//! | length of what follows this field, and in its highest byte a check of that | 4 |
//! | kind | 1 |
//! | fields of the kind; a name is always the last, and goes up to the end | |
//!
//! The length has a check of its own because it alone tells a record that was not written to its end from
//! one that was damaged.

use crc32fast::Hasher;

use crate::tracker::resource::{Identity, Made};
use crate::tracker::sys::Nanoseconds;

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// Bytes of the header.
pub const HEADER: usize = 68;

/// The most bytes of a record after its frame that a [`Batch`] takes: twice the longest line that clients
/// can send.
pub const LONGEST: usize = 1 << 21;

/// The first bytes of a journal. The newline shows that nobody has taken it for text.
pub(super) const MAGIC: [u8; 8] = *b"rtrackJ\n";

/// Bytes of a boot id, as /proc/sys/kernel/random/boot_id has it.
const BOOT_ID: usize = 36;

/// Bytes before the kind of a record: checksum and length.
const FRAME: usize = 8;

/// The bits of the second field of a frame that are the length.
pub(super) const LENGTH: u32 = (1 << 24) - 1;

/// Kinds.
const REGISTER: u8 = 1;
const COUNT: u8 = 2;
const UNREGISTER: u8 = 3;
const OWNER: u8 = 4;
const ENDED: u8 = 5;

/// What fields there are, and what is marked. [`IS_EARLIER`] and [`HAS_NAMESPACE`] are those of an owner.
const HAS_IDENTITY: u8 = 1;
const HAS_BIRTH: u8 = 1 << 1;
const IS_SYSV: u8 = 1 << 2;
const HAS_CREATOR_UID: u8 = 1 << 3;
const HAS_CREATOR: u8 = 1 << 4;
const IS_EARLIER: u8 = 1 << 5;
const IS_DOUBTFUL: u8 = 1 << 6;
const ALL_FLAGS: u8 = (1 << 7) - 1;
const HAS_NAMESPACE: u8 = 1 << 7;

/// Who writes a journal, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The boot id; empty when it is not known. One of more than 36 bytes counts as not known.
    pub boot_id: String,
    /// When the file was made, in nanoseconds since 1970; kept from the year 1677 to 2262.
    pub made: Nanoseconds,
    /// The process that made it.
    pub pid: i32,
}

impl Header {
    /// Whether both are of one boot, and both know which.
    #[must_use]
    pub fn same_boot(&self, other: &Self) -> bool {
        !self.boot_id.is_empty() && self.boot_id == other.boot_id
    }
}

/// Why bytes are no journal that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They do not begin as one does.
    #[error("it is no journal")]
    Foreign,
    /// A later version of this program wrote it.
    #[error("it is a journal of version {found}, and this program knows version {VERSION} only")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// The header is not what was written.
    #[error("its header is damaged")]
    Damaged,
    /// The header was not written to its end: nothing was recorded yet.
    #[error("its header is not complete")]
    Unfinished,
}

/// Who registers: a process, told apart by when it started from others of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Its number in this journal, given once. 0 is everybody who writes to the pipe, who need no record.
    pub id: u64,
    /// The process.
    pub pid: i32,
    /// When it started, in clock ticks since boot, as in /proc/PID/stat.
    pub start_ticks: u64,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Registration<'a> {
    /// Who registers it.
    pub owner: u64,
    /// The word of its type.
    pub rtype: &'a [u8],
    /// Its name, as it was sent.
    pub name: &'a [u8],
    /// How often it is registered now, this time included.
    pub count: u64,
    /// What the name belonged to when it was registered, if that is known.
    pub identity: Option<Identity>,
    /// When, in nanoseconds since 1970; kept from the year 1677 to 2262.
    pub at: Nanoseconds,
}

/// One change of what is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Record<'a> {
    /// It is registered. If it was before, this takes the place of all that was known of it but its
    /// place in the order.
    Register(Registration<'a>),
    /// It is registered so often now, and nothing else of it changes. Nothing follows for what is not
    /// registered.
    Count {
        /// Who has registered it.
        owner: u64,
        /// The word of its type.
        rtype: &'a [u8],
        /// Its name.
        name: &'a [u8],
        /// How often, now.
        count: u64,
    },
    /// It is no longer registered, whether it was taken back, was removed or could not be.
    Unregister {
        /// Who has registered it.
        owner: u64,
        /// The word of its type.
        rtype: &'a [u8],
        /// Its name.
        name: &'a [u8],
    },
    /// Somebody who will register. What was registered under that number before is forgotten.
    Owner(Owner),
    /// All that this owner has registered is dealt with.
    Ended {
        /// Which.
        owner: u64,
    },
}

/// What a record says about an entry or an owner beside what is in [`Record`]. The first two are only in a journal that
/// is written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Marks {
    /// It is not of the boot that the header names.
    pub(super) earlier: bool,
    /// Damage may have swallowed that it was taken back.
    pub(super) doubtful: bool,
    /// The PID namespace in which an owner has its pid, by its inode; 0 is one that is not known. It is with the owner and
    /// not in the header, because a daemon of another namespace goes on with the same file.
    pub(super) namespace: u64,
}

/// A record is longer than [`LONGEST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("longer than {LONGEST} bytes, which the journal does not take")]
pub struct TooLong;

/// Records for one write, from [`Journal::batch`](super::Journal::batch). It keeps its memory when it is emptied.
#[derive(Debug, Clone)]
pub struct Batch {
    seed: u32,
    namespace: u64,
    bytes: Vec<u8>,
}

impl Batch {
    pub(super) fn new(seed: u32) -> Self {
        Self { seed, namespace: 0, bytes: Vec::new() }
    }

    /// Owners that are added have their pids in the PID namespace of that inode; 0 is not known.
    #[must_use]
    pub fn in_namespace(self, namespace: u64) -> Self {
        Self { namespace, ..self }
    }

    /// Adds a record. Memory is allocated only while the batch grows beyond what it ever was.
    ///
    /// # Errors
    /// [`TooLong`]; the batch is as it was.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), TooLong> {
        let names = match record {
            Record::Register(Registration { rtype, name, .. })
            | Record::Count { rtype, name, .. }
            | Record::Unregister { rtype, name, .. } => rtype.len().saturating_add(name.len()),
            Record::Owner(_) | Record::Ended { .. } => 0,
        };
        // The other fields have less than 128 bytes.
        if names > LONGEST - 128 {
            return Err(TooLong);
        }
        let marks = Marks { namespace: self.namespace, ..Marks::default() };
        encode(&mut self.bytes, self.seed, record, marks);
        Ok(())
    }

    /// The bytes that will be written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes that are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no record in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets the records that are in it.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Forgets them, and has these instead, which begin with the same seed.
    pub(super) fn refill(&mut self, records: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(records);
    }

    /// Where its checksums begin.
    pub(super) fn seed(&self) -> u32 {
        self.seed
    }
}

/// The bytes of a header, for records whose checksums begin with `seed`.
pub(super) fn encode_header(header: &Header, seed: u32) -> Vec<u8> {
    let mut boot_id = [0; BOOT_ID];
    if let Some(field) = boot_id.get_mut(..header.boot_id.len()) {
        field.copy_from_slice(header.boot_id.as_bytes());
    }
    let mut out = Vec::with_capacity(HEADER);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&seed.to_le_bytes());
    put_time(&mut out, header.made);
    out.extend_from_slice(&header.pid.to_le_bytes());
    out.extend_from_slice(&boot_id);
    let checksum = crc32fast::hash(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// The header that `bytes` begin with, and the seed.
///
/// # Errors
/// [`FormatError`]. Which version it is counts before anything else of it: another may look different.
pub(super) fn decode_header(bytes: &[u8]) -> Result<(Header, u32), FormatError> {
    let mut fields = Fields(bytes);
    let Some(magic) = fields.take(MAGIC.len()) else {
        let begun = MAGIC.starts_with(bytes);
        return Err(if begun { FormatError::Unfinished } else { FormatError::Foreign });
    };
    if magic != MAGIC {
        return Err(FormatError::Foreign);
    }
    match fields.fixed().map(u32::from_le_bytes) {
        None | Some(VERSION) => {}
        Some(found) if found > VERSION => return Err(FormatError::Newer { found }),
        Some(_) => return Err(FormatError::Damaged),
    }
    let mut rest = || {
        let seed = u32::from_le_bytes(fields.fixed()?);
        let made = fields.time()?;
        let pid = i32::from_le_bytes(fields.fixed()?);
        let boot_id = fields.take(BOOT_ID)?;
        Some((seed, made, pid, boot_id, u32::from_le_bytes(fields.fixed()?)))
    };
    let (seed, made, pid, boot_id, checksum) = rest().ok_or(FormatError::Unfinished)?;
    if crc32fast::hash(bytes.get(..HEADER - 4).unwrap_or_default()) != checksum {
        return Err(FormatError::Damaged);
    }
    let boot_id = boot_id.split(|byte| *byte == 0).next().unwrap_or_default();
    let boot_id = String::from_utf8_lossy(boot_id).into_owned();
    Ok((Header { boot_id, made, pid }, seed))
}

/// Adds a record.
pub(super) fn encode(out: &mut Vec<u8>, seed: u32, record: &Record<'_>, marks: Marks) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    match record {
        Record::Register(registration) => put_registration(out, registration, marks),
        Record::Count { owner, rtype, name, count } => {
            out.push(COUNT);
            put(out, *owner);
            put(out, *count);
            put_name(out, rtype, name);
        }
        Record::Unregister { owner, rtype, name } => {
            out.push(UNREGISTER);
            put(out, *owner);
            put_name(out, rtype, name);
        }
        Record::Owner(owner) => {
            let known = if marks.namespace == 0 { 0 } else { HAS_NAMESPACE };
            out.extend_from_slice(&[OWNER, marks.flags() | known]);
            put(out, owner.id);
            put(out, owner.pid.cast_unsigned().into());
            put(out, owner.start_ticks);
            put(out, owner.uid.into());
            put(out, owner.gid.into());
            if marks.namespace != 0 {
                put(out, marks.namespace);
            }
        }
        Record::Ended { owner } => {
            out.push(ENDED);
            put(out, *owner);
        }
    }
    if let Some((checksum, rest)) = out.get_mut(start..).and_then(<[u8]>::split_first_chunk_mut)
        && let Some((length, body)) = rest.split_first_chunk_mut()
    {
        // A batch takes nothing that does not fit; a count that has changed adds nine bytes at most.
        let word = guarded(u32::try_from(body.len()).unwrap_or(LENGTH), seed);
        *length = u32::to_le_bytes(word);
        *checksum = u32::to_le_bytes(crc(rest, seed));
    }
}

fn put_registration(out: &mut Vec<u8>, registration: &Registration<'_>, marks: Marks) {
    let Registration { owner, rtype, name, count, identity, at } = registration;
    let sysv = identity.and_then(|identity| identity.sysv);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let flags = marks.flags()
        | flag(identity.is_some(), HAS_IDENTITY)
        | flag(identity.is_some_and(|identity| identity.born.is_some()), HAS_BIRTH)
        | flag(sysv.is_some(), IS_SYSV)
        | flag(sysv.is_some_and(|made| made.creator_uid.is_some()), HAS_CREATOR_UID)
        | flag(sysv.is_some_and(|made| made.creator.is_some()), HAS_CREATOR);
    out.extend_from_slice(&[REGISTER, flags]);
    put(out, *owner);
    put(out, *count);
    put_time(out, *at);
    if let Some(Identity { dev, ino, born, sysv }) = identity {
        put(out, *dev);
        put(out, *ino);
        if let Some(born) = born {
            put_time(out, *born);
        }
        if let Some(Made { key, creator_uid, creator }) = sysv {
            put(out, u64::from(*key));
            if let Some(uid) = creator_uid {
                put(out, u64::from(*uid));
            }
            if let Some(pid) = creator {
                put(out, u64::from(pid.cast_unsigned()));
            }
        }
    }
    put_name(out, rtype, name);
}

impl Marks {
    fn flags(self) -> u8 {
        (if self.earlier { IS_EARLIER } else { 0 }) | (if self.doubtful { IS_DOUBTFUL } else { 0 })
    }

    fn of(flags: u8) -> Self {
        let (earlier, doubtful) = (flags & IS_EARLIER != 0, flags & IS_DOUBTFUL != 0);
        Self { earlier, doubtful, namespace: 0 }
    }
}

/// A number in groups of seven bits.
#[allow(clippy::cast_possible_truncation, reason = "a group of seven bits fits a byte")]
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A moment. One beyond the range becomes the nearest end of it, which no file is as old or young as.
fn put_time(out: &mut Vec<u8>, time: Nanoseconds) {
    let nearest = if time < 0 { i64::MIN } else { i64::MAX };
    out.extend_from_slice(&i64::try_from(time).unwrap_or(nearest).to_le_bytes());
}

fn put_name(out: &mut Vec<u8>, rtype: &[u8], name: &[u8]) {
    put(out, rtype.len() as u64);
    out.extend_from_slice(rtype);
    out.extend_from_slice(name);
}

fn crc(bytes: &[u8], seed: u32) -> u32 {
    let mut hasher = Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// A length with its check in the highest byte. The product changes in that byte with every bit of the
/// length; a test tries them all.
pub(super) fn guarded(length: u32, seed: u32) -> u32 {
    let check = ((length ^ seed) & LENGTH).wrapping_mul(0x9e37_79b1) & !LENGTH;
    (length & LENGTH) | check
}

/// What bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A record that is what was written: all but its frame. There are [`Frame::length`] bytes of it.
    Whole(&'a [u8]),
    /// Perhaps a record that was not written to its end.
    Cut,
    /// Neither, after so many bytes were looked at.
    Bad(usize),
}

impl Frame<'_> {
    /// Bytes of a whole record with its frame.
    pub(super) fn length(body: &[u8]) -> usize {
        FRAME + body.len()
    }
}

/// Looks at what `bytes` begin with.
pub(super) fn frame(bytes: &[u8], seed: u32) -> Frame<'_> {
    let mut fields = Fields(bytes);
    let (Some(checksum), Some(word)) = (fields.fixed(), fields.fixed()) else {
        return Frame::Cut;
    };
    let word = u32::from_le_bytes(word);
    let length = word & LENGTH;
    if length == 0 || guarded(length, seed) != word {
        return Frame::Bad(FRAME);
    }
    let Some(body) = fields.take(length as usize) else {
        return Frame::Cut;
    };
    let covered = bytes.get(4..FRAME + body.len()).unwrap_or_default();
    if crc(covered, seed) == u32::from_le_bytes(checksum) {
        Frame::Whole(body)
    } else {
        Frame::Bad(covered.len())
    }
}

/// The record that `body` is; nothing when it is none of this version.
pub(super) fn decode(body: &[u8]) -> Option<(Record<'_>, Marks)> {
    let mut fields = Fields(body);
    let kind = fields.byte()?;
    let flags = if matches!(kind, REGISTER | OWNER) { fields.byte()? } else { 0 };
    let owner = fields.number()?;
    let mut marks = Marks::of(flags);
    let record = match kind {
        REGISTER => {
            if flags & !ALL_FLAGS != 0 {
                return None;
            }
            let (count, at) = (fields.number()?, fields.time()?);
            let identity =
                if flags & HAS_IDENTITY == 0 { None } else { Some(fields.identity(flags)?) };
            let (rtype, name) = fields.name()?;
            Record::Register(Registration { owner, rtype, name, count, identity, at })
        }
        COUNT => {
            let count = fields.number()?;
            let (rtype, name) = fields.name()?;
            Record::Count { owner, rtype, name, count }
        }
        UNREGISTER => {
            let (rtype, name) = fields.name()?;
            Record::Unregister { owner, rtype, name }
        }
        OWNER if flags & !(IS_EARLIER | HAS_NAMESPACE) == 0 => {
            let (pid, start_ticks) = (fields.id()?.cast_signed(), fields.number()?);
            let (uid, gid) = (fields.id()?, fields.id()?);
            if flags & HAS_NAMESPACE != 0 {
                marks.namespace = fields.number()?;
            }
            Record::Owner(Owner { id: owner, pid, start_ticks, uid, gid })
        }
        ENDED => Record::Ended { owner },
        _ => return None,
    };
    fields.0.is_empty().then_some((record, marks))
}

/// What is left to read of a record.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn byte(&mut self) -> Option<u8> {
        self.fixed().map(|[byte]| byte)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let group = u64::from(byte & 0x7f);
            if group << shift >> shift != group {
                return None;
            }
            number |= group << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn id(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    fn time(&mut self) -> Option<Nanoseconds> {
        Some(i64::from_le_bytes(self.fixed()?).into())
    }

    fn identity(&mut self, flags: u8) -> Option<Identity> {
        let has = |flag| flags & flag != 0;
        let (dev, ino) = (self.number()?, self.number()?);
        let born = if has(HAS_BIRTH) { Some(self.time()?) } else { None };
        let sysv = if has(IS_SYSV) {
            Some(Made {
                key: self.id()?,
                creator_uid: if has(HAS_CREATOR_UID) { Some(self.id()?) } else { None },
                creator: if has(HAS_CREATOR) { Some(self.id()?.cast_signed()) } else { None },
            })
        } else {
            None
        };
        Some(Identity { dev, ino, born, sysv })
    }

    fn name(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let length = usize::try_from(self.number()?).ok()?;
        Some((self.take(length)?, std::mem::take(&mut self.0)))
    }
}
