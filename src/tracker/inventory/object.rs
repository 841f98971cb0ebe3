//! One object, of whatever kind, and what it is known by.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::OnceLock;

use super::mqueue::Queue;
use super::posix::classify;
use super::sysv::Entry;
use crate::tracker::evidence::producers::Found;
use crate::tracker::evidence::unlinked::Unlinked;
use crate::tracker::resource::{Identity, Kind, Name};
use crate::tracker::sys::{Nanoseconds, Stat};

/// The size of a semaphore (`sem_t`) on this architecture.
pub const SEMAPHORE_SIZE: u64 = size_of::<libc::sem_t>() as u64;

/// One object, of whatever kind.
#[derive(Debug, Clone)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Its name as its users know it: a semaphore's without `sem.`.
    pub name: Name,
    /// Its name in the directory.
    pub file: Name,
    /// What statx(2) said.
    pub stat: Stat,
    /// For [`Kind::Other`]: symlink, fifo, socket, device.
    pub file_type: Option<&'static str>,
    /// For a directory: what is in it.
    pub directory: Option<Box<Tree>>,
    /// For a semaphore, once it was looked at.
    pub semaphore: Option<Semaphore>,
    /// For a message queue that could be opened: what is in it.
    pub queue: Option<Queue>,
    /// Where it is: an index into the places of the [`World`](crate::tracker::world::World).
    pub place: usize,
    /// Its name is gone; it lives as long as somebody holds it.
    pub deleted: bool,
    /// Of a System V object: what only such have.
    pub sysv: Option<Box<Entry>>,
    /// What the catalogue says of its name, once it was asked.
    pub entry: OnceLock<Option<Found>>,
}

/// By what an object is known among all objects: where it is and its name there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The index of its place.
    pub place: usize,
    /// Its kind: System V objects of each kind count by themselves.
    pub kind: Kind,
    /// Its name in the directory.
    pub file: Name,
}

/// What a directory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// Entries, at all levels.
    pub entries: usize,
    /// Apparent bytes of the files.
    pub size: u64,
    /// Bytes really used.
    pub allocated: u64,
    /// When anything in it was last changed, in nanoseconds since 1970; 0 when there is nothing.
    pub changed: Nanoseconds,
    /// Not all of it was counted: too many entries or levels, unreadable, or on another mount.
    pub truncated: bool,
    /// There is a FIFO, a socket or a device in it: who waits at one, nothing tells.
    pub special: bool,
    /// The names of what is counted in it.
    pub names: HashSet<Name>,
    /// Device and inode of the directory and everything counted in it.
    pub inodes: HashSet<(u64, u64)>,
}

/// The state of a named semaphore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Semaphore {
    /// Its value.
    pub value: u32,
    /// How many threads wait for it.
    pub waiters: u32,
}

impl Object {
    /// What `stat` says of `file`: neither what is in a directory nor the value of a semaphore.
    #[must_use]
    pub fn of(file: &Name, stat: Stat) -> Self {
        let (kind, name, file_type) = classify(file, stat.file_type());
        let file = file.clone();
        Self {
            kind,
            name,
            file,
            stat,
            file_type,
            directory: None,
            semaphore: None,
            queue: None,
            sysv: None,
            deleted: false,
            place: 0,
            entry: OnceLock::new(),
        }
    }

    /// What has no name any more and is still held, if that is what it is: what has other names is none.
    #[must_use]
    pub fn unlinked((dev, ino): (u64, u64), unlinked: &Unlinked, place: usize) -> Option<Self> {
        let unknown = Stat {
            dev,
            ino,
            mode: libc::S_IFREG,
            uid: u32::MAX,
            gid: u32::MAX,
            nlink: 0,
            size: unlinked.mapped,
            allocated: 0,
            born: None,
            modified: 0,
            changed: 0,
        };
        let stat = unlinked.stat.unwrap_or(unknown);
        if stat.nlink > 0 || !stat.is_file() {
            return None;
        }
        let before = Self::of(&Name::new(unlinked.name.clone()), stat);
        // Several can have had one name, and another one has it now.
        let mark = format!(" (deleted {ino})").into_bytes();
        let name = Name::new([before.name.as_bytes(), &mark].concat());
        Some(Self { name, deleted: true, place, ..before })
    }

    /// `kind:name`, with bytes that are not UTF-8 as `\xff` and a backslash doubled, so that no two
    /// objects have the same.
    #[must_use]
    pub fn id(&self) -> String {
        let mut id = format!("{}:", self.kind);
        for chunk in self.name.as_bytes().utf8_chunks() {
            id.push_str(&chunk.valid().replace('\\', "\\\\"));
            for byte in chunk.invalid() {
                id.push_str(&format!("\\x{byte:02x}"));
            }
        }
        id
    }

    /// `kind:name`, safe on a terminal.
    #[must_use]
    pub fn shown_id(&self) -> String {
        format!("{}:{}", self.kind, self.name)
    }

    /// The exact bytes of `kind:name`.
    #[must_use]
    pub fn id_bytes(&self) -> Vec<u8> {
        let mut id = format!("{}:", self.kind).into_bytes();
        id.extend_from_slice(self.name.as_bytes());
        id
    }

    /// By what it is known among all objects of all places.
    #[must_use]
    pub fn key(&self) -> Key {
        Key { place: self.place, kind: self.kind, file: self.file.clone() }
    }

    /// What makes it this object.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let sysv = self.sysv.as_ref().map(|entry| entry.made());
        Identity { sysv, ..Identity::of(&self.stat) }
    }

    /// The name that the catalogue of producers knows such objects by.
    #[must_use]
    pub fn catalogue_name(&self) -> Cow<'_, [u8]> {
        match &self.sysv {
            Some(entry) => entry.catalogue_name(self.stat.size).into(),
            None => self.file.as_bytes().into(),
        }
    }

    /// Apparent size in bytes; of a directory, that of the files in it, of a message queue, that of the
    /// messages in it, 0 if that is not known. Of what only a mapping was seen of, so many at least.
    #[must_use]
    pub fn size(&self) -> u64 {
        if self.kind == Kind::Mqueue {
            return self.queue.map_or(0, |queue| queue.bytes);
        }
        self.directory.as_ref().map_or(self.stat.size, |tree| tree.size)
    }

    /// Memory used, in bytes; of a message queue, that of the content of its messages.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        if self.kind == Kind::Mqueue {
            return self.size();
        }
        self.directory.as_ref().map_or(self.stat.allocated, |tree| tree.allocated)
    }

    /// The latest of its birth, its last change, and that of anything in it; of a System V object, of
    /// its last use as well.
    #[must_use]
    pub fn last_change(&self) -> Nanoseconds {
        let inside = self.directory.as_ref().map_or(0, |tree| tree.changed);
        let used = if self.sysv.is_some() { self.stat.modified } else { 0 };
        self.stat.last_change().max(inside).max(used)
    }

    /// Whether its size could not be found out.
    #[must_use]
    pub fn is_of_unknown_size(&self) -> bool {
        self.kind == Kind::Mqueue && self.queue.is_none() || self.is_known_by_mapping_only()
    }

    /// Whether only a mapping of it was seen: it has no name any more, and the process's mappings may be
    /// listed and not followed. Then owner, group, mode, times and size are not known. No file has this owner.
    #[must_use]
    pub fn is_known_by_mapping_only(&self) -> bool {
        self.deleted && self.stat.uid == u32::MAX
    }

    /// Whether it is a file that has the size of a semaphore and may be one.
    #[must_use]
    pub fn may_be_semaphore(&self) -> bool {
        self.kind == Kind::Sem && self.stat.size == SEMAPHORE_SIZE
    }
}

impl Semaphore {
    /// Reads the state from the first bytes of a semaphore. glibc and musl keep the value in the
    /// first word and the number of waiters in the second, on 64-bit machines.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if cfg!(not(target_pointer_width = "64")) || bytes.len() as u64 != SEMAPHORE_SIZE {
            return None;
        }
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        // musl marks waiters by the sign bit of the value, which itself is at most INT_MAX.
        Some(Self { value: word(0)? & 0x7fff_ffff, waiters: word(4)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semaphores_as_both_libraries_lay_them_out() {
        let mut bytes = [0u8; 32];
        bytes[0] = 3;
        bytes[4] = 2;
        assert_eq!(Semaphore::parse(&bytes), Some(Semaphore { value: 3, waiters: 2 }));
        bytes[3] = 0x80;
        assert_eq!(Semaphore::parse(&bytes).map(|s| s.value), Some(3));
        assert_eq!(Semaphore::parse(&bytes[..31]), None);
    }
}
