//! System V objects: shared memory, sets of semaphores, message queues.
//!
//! They are read from /proc/sysvipc, which shows those of the IPC namespace of whoever opens it. The
//! tables are read as bytes, and their columns found by the line of headings: what a kernel does not
//! tell is not known, which is something else than 0.

use std::io;

use super::{Inventory, Object};
use crate::tracker::evidence::processes::words;
use crate::tracker::host::Host;
use crate::tracker::resource::{Kind, Made, Name};
use crate::tracker::sys::ipc::{self, Family, SHM_DEST, SHM_LOCKED, Semaphore, State};
use crate::tracker::sys::{Nanoseconds, Stat};
use crate::tracker::world::Ipc;

/// What only System V objects have. What the kernel does not tell is `None`; a pid that is 0 is of a
/// process that is not visible here; a time that is 0 is never.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key, by which others find it; 0 is `IPC_PRIVATE`, by which nobody does.
    pub key: u32,
    /// The user who made it, who may use it like its owner.
    pub creator_uid: Option<u32>,
    /// The group of the process that made it.
    pub creator_gid: Option<u32>,
    /// What only one family has.
    pub of: Of,
}

/// What only one family of System V objects has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// Shared memory.
    Shm(Segment),
    /// A set of semaphores.
    Sem(Set),
    /// A message queue.
    Msg(Queue),
}

/// A segment of shared memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    /// The process that made it.
    pub creator: Option<i32>,
    /// The process that attached or detached it last.
    pub last: Option<i32>,
    /// How many mappings of it there are: a child has those of its parent, and one that is split
    /// counts as two.
    pub attachments: Option<u64>,
    /// When it was attached last.
    pub attached: Option<Nanoseconds>,
    /// When it was detached last.
    pub detached: Option<Nanoseconds>,
    /// Bytes that are swapped out.
    pub swapped: Option<u64>,
    /// It is not swapped out (`SHM_LOCK`).
    pub locked: bool,
    /// Its id is removed, and it goes with its last attachment.
    pub dest: bool,
}

/// A set of semaphores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// How many there are.
    pub count: Option<u64>,
    /// When somebody operated on one last.
    pub operated: Option<Nanoseconds>,
    /// Each of them, once they were asked about.
    pub semaphores: Option<Vec<Semaphore>>,
}

/// A message queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// How many messages wait to be read.
    pub messages: Option<u64>,
    /// The process that sent the last one.
    pub sender: Option<i32>,
    /// The process that received the last one.
    pub receiver: Option<i32>,
    /// When one was sent last.
    pub sent: Option<Nanoseconds>,
    /// When one was received last.
    pub received: Option<Nanoseconds>,
}

impl Entry {
    /// What makes it this object, beside its id.
    #[must_use]
    pub fn made(&self) -> Made {
        Made { key: self.key, creator_uid: self.creator_uid, creator: self.creator() }
    }

    /// The process that made it, where the kernel records that.
    #[must_use]
    pub fn creator(&self) -> Option<i32> {
        match &self.of {
            Of::Shm(segment) => segment.creator,
            Of::Sem(_) | Of::Msg(_) => None,
        }
    }

    /// The key as tables and catalogues have it.
    #[must_use]
    pub fn shown_key(&self) -> String {
        format!("0x{:08x}", self.key)
    }

    /// `KEY:BYTES` of shared memory of this `size`, `KEY:SEMAPHORES` of a set, else `KEY`.
    #[must_use]
    pub fn catalogue_name(&self, size: u64) -> Vec<u8> {
        let key = self.shown_key();
        match &self.of {
            Of::Shm(_) => format!("{key}:{size}"),
            Of::Sem(set) => format!("{key}:{}", set.count.unwrap_or(0)),
            Of::Msg(_) => key,
        }
        .into_bytes()
    }

    /// When it was used last, as far as that is recorded; 0 is never.
    #[must_use]
    pub fn used(&self) -> Nanoseconds {
        let times = match &self.of {
            Of::Shm(segment) => [segment.attached, segment.detached],
            Of::Sem(set) => [set.operated, None],
            Of::Msg(queue) => [queue.sent, queue.received],
        };
        times.into_iter().flatten().max().unwrap_or(0)
    }

    /// The processes that used it last, each once, 0 left out.
    #[must_use]
    pub fn last_users(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = match &self.of {
            Of::Shm(segment) => segment.last.into_iter().collect(),
            Of::Sem(set) => set.semaphores.iter().flatten().map(|one| one.pid).collect(),
            Of::Msg(queue) => [queue.sender, queue.receiver].into_iter().flatten().collect(),
        };
        pids.retain(|pid| *pid != 0);
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Why not everybody is known who made it or used it last: nothing may be concluded from whom
    /// nobody sees.
    #[must_use]
    pub fn unknown_users(&self) -> Option<&'static str> {
        let hidden = |pid: Option<i32>, time: Option<Nanoseconds>| {
            pid.is_none() || pid == Some(0) && time != Some(0)
        };
        let last = match &self.of {
            Of::Shm(segment) if segment.creator.is_none_or(|pid| pid == 0) => {
                return Some("the process that made it is not visible here");
            }
            Of::Shm(segment) => hidden(segment.last, segment.attached.max(segment.detached)),
            Of::Sem(set) => {
                let known = set.semaphores.iter().flatten().any(|one| one.pid != 0);
                !known && set.operated != Some(0)
            }
            Of::Msg(queue) => {
                hidden(queue.sender, queue.sent) || hidden(queue.receiver, queue.received)
            }
        };
        let made = self.creator_uid.is_none() || self.creator_gid.is_none();
        match (last, made) {
            (true, _) => Some("the process that used it last is not visible here"),
            (false, true) => Some("who made it is not known"),
            (false, false) => None,
        }
    }

    /// How many processes wait at a set of semaphores, if it could be asked.
    #[must_use]
    pub fn waiting(&self) -> Option<u64> {
        let Of::Sem(Set { semaphores: Some(all), .. }) = &self.of else { return None };
        let waiting = |one: &Semaphore| i64::from(one.waiting) + i64::from(one.waiting_for_zero);
        Some(all.iter().map(|one| waiting(one).unsigned_abs()).sum())
    }

    /// Whether nobody has used it since, as far as the kernel's `state` of it tells: its times are in whole
    /// seconds.
    #[must_use]
    pub fn is_unused_since(&self, state: &State) -> bool {
        match &self.of {
            Of::Shm(segment) => segment.last == Some(state.last[0]),
            Of::Sem(_) => true,
            Of::Msg(queue) => {
                [queue.sender, queue.receiver] == state.last.map(Some)
                    && queue.messages == Some(state.count)
            }
        }
    }

    /// Whether the kernel's `state` is that of this object, of this size.
    #[must_use]
    pub fn is(&self, size: u64, state: &State) -> bool {
        let made = (self.key, self.creator_uid) == (state.key, Some(state.creator_uid));
        made && match &self.of {
            Of::Shm(segment) => segment.creator == Some(state.creator) && size == state.size,
            Of::Sem(set) => set.count == Some(state.size),
            Of::Msg(_) => true,
        }
    }
}

/// The id of a System V object, if `object` is one.
#[must_use]
pub fn id_of(object: &Object) -> Option<(Family, i32)> {
    Some((object.kind.family()?, i32::try_from(object.stat.ino).ok()?))
}

/// Adds the System V objects of a namespace to the inventory.
///
/// # Errors
/// The namespace cannot be entered, or one of its tables not be read. A kernel without such objects
/// has none.
pub fn read(host: &Host, ipc: &Ipc, place: usize, inventory: &mut Inventory) -> io::Result<()> {
    for kind in [Kind::SysvShm, Kind::SysvSem, Kind::SysvMsg] {
        inventory.objects.extend(read_kind(host, ipc, place, kind)?);
    }
    Ok(())
}

/// The System V objects of one kind.
///
/// # Errors
/// As [`read`].
pub fn read_kind(host: &Host, ipc: &Ipc, place: usize, kind: Kind) -> io::Result<Vec<Object>> {
    let table = match kind {
        Kind::SysvShm => "shm",
        Kind::SysvSem => "sem",
        _ => "msg",
    };
    let path = host.proc.join("sysvipc").join(table);
    let text = match ipc.run(|| std::fs::read(&path))? {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !ipc::is_supported() => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let objects = parse(kind, &text)?.into_iter();
    Ok(objects.map(|object| Object { place, ..object }).collect())
}

/// The objects of a table of this kind.
///
/// # Errors
/// `InvalidData`: there is no such column, or a line has not one word for each.
pub fn parse(kind: Kind, text: &[u8]) -> io::Result<Vec<Object>> {
    let mut lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let columns: Vec<&[u8]> = lines.next().map_or_else(Vec::new, |line| words(line).collect());
    lines.map(|line| Line::new(&columns, line).and_then(|line| line.object(kind))).collect()
}

/// One line of a table.
struct Line<'a> {
    columns: &'a [&'a [u8]],
    words: Vec<&'a [u8]>,
}

impl<'a> Line<'a> {
    fn new(columns: &'a [&'a [u8]], line: &'a [u8]) -> io::Result<Self> {
        let words: Vec<&[u8]> = words(line).collect();
        if words.len() != columns.len() {
            return Err(invalid("a line has more or fewer words than there are headings"));
        }
        Ok(Self { columns, words })
    }

    fn word(&self, column: &str) -> Option<&'a str> {
        let at = self.columns.iter().position(|name| *name == column.as_bytes())?;
        std::str::from_utf8(self.words.get(at)?).ok()
    }

    fn get<T: std::str::FromStr>(&self, column: &str) -> Option<T> {
        self.word(column)?.parse().ok()
    }

    fn need<T: std::str::FromStr>(&self, column: &str) -> io::Result<T> {
        let missing = || invalid(format!("there is no column {column}, or no number in it"));
        self.get(column).ok_or_else(missing)
    }

    /// A time in whole seconds.
    fn time(&self, column: &str) -> Option<Nanoseconds> {
        self.get::<i64>(column).map(|seconds| i128::from(seconds) * 1_000_000_000)
    }

    fn object(&self, kind: Kind) -> io::Result<Object> {
        let id = match kind {
            Kind::SysvShm => "shmid",
            Kind::SysvSem => "semid",
            _ => "msqid",
        };
        let id: u32 = self.need(id)?;
        // Keys are printed with a sign.
        let key: i64 = self.need("key")?;
        let key = i32::try_from(key).map(i32::cast_unsigned).or_else(|_| u32::try_from(key));
        let key = key.map_err(|_| invalid("a key is too large"))?;
        let mode = self.word("perms").and_then(|octal| u32::from_str_radix(octal, 8).ok());
        let mode = mode.ok_or_else(|| invalid("there is no column perms, or no octal in it"))?;
        let (of, size, allocated) = match kind {
            Kind::SysvShm => {
                let size = self.need("size")?;
                (Of::Shm(self.segment(mode)), size, self.get("rss").unwrap_or(size))
            }
            Kind::SysvSem => (Of::Sem(self.set()), 0, 0),
            _ => {
                let bytes = self.need("cbytes")?;
                (Of::Msg(self.queue()), bytes, bytes)
            }
        };
        let (creator_uid, creator_gid) = (self.get("cuid"), self.get("cgid"));
        let entry = Entry { key, creator_uid, creator_gid, of };
        let changed = self.time("ctime").ok_or_else(|| invalid("there is no column ctime"))?;
        let stat = Stat {
            dev: 0,
            ino: id.into(),
            mode: mode & 0o777,
            uid: self.need("uid")?,
            gid: self.need("gid")?,
            nlink: 1,
            size,
            allocated,
            born: None,
            modified: entry.used(),
            changed,
        };
        let name = Name::new(id.to_string());
        let deleted = matches!(&entry.of, Of::Shm(segment) if segment.dest);
        let sysv = Some(Box::new(entry));
        let object = Object::of(&name, stat);
        Ok(Object { kind, name, file_type: None, deleted, sysv, ..object })
    }

    fn segment(&self, mode: u32) -> Segment {
        Segment {
            creator: self.get("cpid"),
            last: self.get("lpid"),
            attachments: self.get("nattch"),
            attached: self.time("atime"),
            detached: self.time("dtime"),
            swapped: self.get("swap"),
            locked: mode & SHM_LOCKED != 0,
            dest: mode & SHM_DEST != 0,
        }
    }

    fn set(&self) -> Set {
        Set { count: self.get("nsems"), operated: self.time("otime"), semaphores: None }
    }

    fn queue(&self) -> Queue {
        Queue {
            messages: self.get("qnum"),
            sender: self.get("lspid"),
            receiver: self.get("lrpid"),
            sent: self.time("stime"),
            received: self.time("rtime"),
        }
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHM: &str = "\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
      5678         32  3600                  4096   117     0      2 4294967294   100 100000   100          7          9          8                  8192                     0
        -2         -0     0  18446744073709551615     0     0      0     0     0     0     0          0          0          0                     0                     0
";

    fn segment(object: &Object) -> &Segment {
        match &object.sysv.as_ref().unwrap().of {
            Of::Shm(segment) => segment,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn any_key_any_uid_any_size() {
        let text = SHM.replace("-0 ", " 0 ");
        let [first, second] = parse(Kind::SysvShm, text.as_bytes()).unwrap().try_into().unwrap();
        assert_eq!(first.id(), "sysv-shm:32");
        assert_eq!((first.stat.uid, first.stat.mode), (u32::MAX - 1, 0o600));
        let entry = first.sysv.as_ref().unwrap();
        assert_eq!((entry.key, entry.creator_uid), (5678, Some(100_000)));
        assert!(segment(&first).locked && segment(&first).dest && first.deleted);
        assert_eq!((first.stat.allocated, first.last_change()), (8192, 9_000_000_000));
        assert_eq!(entry.catalogue_name(4096), b"0x0000162e:4096");
        assert_eq!(second.sysv.as_ref().unwrap().shown_key(), "0xfffffffe");
        assert_eq!(second.stat.size, u64::MAX);
    }

    #[test]
    fn what_is_missing_is_not_known() {
        let text = "key shmid perms size uid gid ctime new\n1 2 600 3 4 5 6 ?\n";
        let [object] = parse(Kind::SysvShm, text.as_bytes()).unwrap().try_into().unwrap();
        let entry = object.sysv.as_ref().unwrap();
        assert_eq!(segment(&object), &Segment::default());
        assert_eq!((entry.creator_uid, entry.unknown_users().is_some()), (None, true));
        // The columns may stand in any order.
        let text = "ctime uid gid cbytes perms msqid key qnum\n1 2 3 4 660 5 6 7\n";
        let [object] = parse(Kind::SysvMsg, text.as_bytes()).unwrap().try_into().unwrap();
        assert_eq!((object.id().as_str(), object.stat.size), ("sysv-msg:5", 4));
    }

    #[test]
    fn a_table_that_is_none_is_an_error() {
        assert!(parse(Kind::SysvShm, b"").unwrap().is_empty());
        for text in [
            &b"key shmid perms size uid gid ctime\n1 2 600 3 4 5\n"[..],
            b"key shmid perms size uid gid ctime\n1 2 600 3 4 5 6 7\n",
            b"key shmid perms size uid gid ctime\n1 -2 600 3 4 5 6\n",
            b"key shmid perms size uid gid ctime\n1 2 800 3 4 5 6\n",
            b"key shmid perms size uid gid ctime\n1 2 600 3 4294967296 5 6\n",
            b"key shmid perms size uid gid ctime\n9999999999 2 600 3 4 5 6\n",
            b"key shmid perms size uid gid ctime\n1 2 600 \xff 4 5 6\n",
            b"shmid perms size uid gid ctime\n2 600 3 4 5 6\n",
            b"key shmid perms size uid gid\n1 2 600 3 4 5\n",
        ] {
            assert!(parse(Kind::SysvShm, text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn who_is_not_visible_is_not_gone() {
        let mut object =
            parse(Kind::SysvShm, SHM.replace("-0 ", " 0 ").as_bytes()).unwrap().remove(0);
        let entry = object.sysv.as_mut().unwrap();
        assert!(entry.unknown_users().unwrap().contains("used it last"));
        let Of::Shm(segment) = &mut entry.of else { panic!() };
        segment.last = Some(7);
        assert_eq!(entry.unknown_users(), None);
        assert_eq!(entry.last_users(), [7]);
        let Of::Shm(segment) = &mut entry.of else { panic!() };
        segment.creator = Some(0);
        assert!(entry.unknown_users().unwrap().contains("made it"));
    }
}
