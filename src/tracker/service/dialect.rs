//! What the trackers that exist understand: which commands, which types, and whether a type is a set
//! of names or a count for each.
//!
//! loky's dialect is that of `loky.backend.resource_tracker` 3.7, which joblib carries along too. rtrack's
//! is spoken by no other tracker: CPython's, with types for what shell scripts and C programs leave.

use std::fmt;

/// What a tracker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Remember a resource.
    Register,
    /// Forget it, however often it was registered.
    Unregister,
    /// One user of it less; with the last one it is removed. Known to loky only.
    MaybeUnlink,
    /// Nothing: the writer only wants to know whether the pipe is still read.
    Probe,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 4] = [Self::Register, Self::Unregister, Self::MaybeUnlink, Self::Probe];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Register => "REGISTER",
            Self::Unregister => "UNREGISTER",
            Self::MaybeUnlink => "MAYBE_UNLINK",
            Self::Probe => "PROBE",
        }
    }

    /// The command of that word; case matters.
    #[must_use]
    pub const fn from_word(word: &[u8]) -> Option<Self> {
        match word {
            b"REGISTER" => Some(Self::Register),
            b"UNREGISTER" => Some(Self::Unregister),
            b"MAYBE_UNLINK" => Some(Self::MaybeUnlink),
            b"PROBE" => Some(Self::Probe),
            _ => None,
        }
    }
}

/// The resource types of all trackers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rtype {
    /// What probes carry. It can be registered, but cleaning it up is an error.
    Noop,
    /// A resource of the trackers' own tests, whose removal does nothing and which leaks silently.
    Dummy,
    /// CPython's name for a POSIX named semaphore.
    Semaphore,
    /// A POSIX shared memory object.
    SharedMemory,
    /// A POSIX message queue.
    MessageQueue,
    /// System V shared memory, by its id.
    SysvShm,
    /// A set of System V semaphores, by its id.
    SysvSem,
    /// A System V message queue, by its id.
    SysvMsg,
    /// A file, by its path.
    File,
    /// loky's name for a POSIX named semaphore.
    Semlock,
    /// A directory with all that is in it, by its path.
    Folder,
}

impl Rtype {
    /// Every type, in the order of cleaning: folders last, since what else is registered may lie in
    /// them.
    pub const ALL: [Self; 11] = [
        Self::Noop,
        Self::Dummy,
        Self::Semaphore,
        Self::SharedMemory,
        Self::MessageQueue,
        Self::SysvShm,
        Self::SysvSem,
        Self::SysvMsg,
        Self::File,
        Self::Semlock,
        Self::Folder,
    ];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Dummy => "dummy",
            Self::Semaphore => "semaphore",
            Self::SharedMemory => "shared_memory",
            Self::MessageQueue => "message_queue",
            Self::SysvShm => "sysv_shm",
            Self::SysvSem => "sysv_sem",
            Self::SysvMsg => "sysv_msg",
            Self::File => "file",
            Self::Semlock => "semlock",
            Self::Folder => "folder",
        }
    }

    /// The type of that word; case matters.
    #[must_use]
    pub const fn from_word(word: &[u8]) -> Option<Self> {
        match word {
            b"noop" => Some(Self::Noop),
            b"dummy" => Some(Self::Dummy),
            b"semaphore" => Some(Self::Semaphore),
            b"shared_memory" => Some(Self::SharedMemory),
            b"message_queue" => Some(Self::MessageQueue),
            b"sysv_shm" => Some(Self::SysvShm),
            b"sysv_sem" => Some(Self::SysvSem),
            b"sysv_msg" => Some(Self::SysvMsg),
            b"file" => Some(Self::File),
            b"semlock" => Some(Self::Semlock),
            b"folder" => Some(Self::Folder),
            _ => None,
        }
    }

    /// Whether a resource of this type may have that name at all. A tracker removes nothing by one that
    /// none can have, so it is no use to register it.
    #[must_use]
    pub const fn may_have(self, name: &[u8]) -> bool {
        match self {
            Self::SysvShm | Self::SysvSem | Self::SysvMsg => system_v_id(name).is_some(),
            _ => true,
        }
    }
}

/// The id of a System V object that `name` is: as ipcs(1) shows it, in decimal digits and nothing else.
/// Whatever else a C library would read a number from (blanks, signs, zeros in front, `0x`) names
/// nothing, since one program would take it for another number than the next one.
#[must_use]
pub const fn system_v_id(name: &[u8]) -> Option<i32> {
    if let [] | [b'0', _, ..] = name {
        return None;
    }
    let (mut rest, mut id) = (name, 0_i32);
    while let [digit @ b'0'..=b'9', behind @ ..] = rest {
        let Some(shifted) = id.checked_mul(10) else { return None };
        let Some(more) = shifted.checked_add((*digit - b'0') as i32) else { return None };
        (rest, id) = (behind, more);
    }
    if rest.is_empty() { Some(id) } else { None }
}

impl fmt::Display for Rtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whose tracker is spoken to, or is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, clap::ValueEnum)]
pub enum Dialect {
    /// multiprocessing: semaphore and shared_memory, each registered or not
    #[default]
    Cpython,
    /// loky and joblib: file, folder and semlock, with counts and MAYBE_UNLINK
    Loky,
    /// Both at once, each type as its own tracker has it
    Any,
    /// cpython, and message_queue, sysv_shm, sysv_sem, sysv_msg and file, each registered or not
    Rtrack,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: [Self; 4] = [Self::Cpython, Self::Loky, Self::Any, Self::Rtrack];

    /// The word on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpython => "cpython",
            Self::Loky => "loky",
            Self::Any => "any",
            Self::Rtrack => "rtrack",
        }
    }

    /// The dialect of that word.
    #[must_use]
    pub fn from_word(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.as_str().as_bytes() == word)
    }

    /// The types that it knows, in the order in which its messages list them.
    #[must_use]
    pub const fn rtypes(self) -> &'static [Rtype] {
        use Rtype::{
            Dummy, File, Folder, MessageQueue, Noop, Semaphore, Semlock, SharedMemory, SysvMsg,
            SysvSem, SysvShm,
        };
        match self {
            Self::Cpython => &[Noop, Dummy, Semaphore, SharedMemory],
            Self::Loky => &[Noop, Dummy, Folder, File, Semlock],
            Self::Any => &[Noop, Dummy, Semaphore, SharedMemory, Folder, File, Semlock],
            Self::Rtrack => &[
                Noop,
                Dummy,
                Semaphore,
                SharedMemory,
                MessageQueue,
                SysvShm,
                SysvSem,
                SysvMsg,
                File,
            ],
        }
    }

    /// Whether it knows that type.
    const fn knows(self, rtype: Rtype) -> bool {
        match rtype {
            Rtype::Noop | Rtype::Dummy => true,
            Rtype::Semaphore | Rtype::SharedMemory => !matches!(self, Self::Loky),
            Rtype::MessageQueue | Rtype::SysvShm | Rtype::SysvSem | Rtype::SysvMsg => {
                matches!(self, Self::Rtrack)
            }
            Rtype::File => !matches!(self, Self::Cpython),
            Rtype::Semlock | Rtype::Folder => matches!(self, Self::Loky | Self::Any),
        }
    }

    /// Whether resources of that type have users that are counted, so that `MAYBE_UNLINK` is
    /// understood.
    #[must_use]
    pub const fn releases(self, rtype: Rtype) -> bool {
        match self {
            Self::Cpython | Self::Rtrack => false,
            Self::Loky => true,
            Self::Any => !matches!(rtype, Rtype::Semaphore | Rtype::SharedMemory),
        }
    }

    /// Whether messages about that type are loky's, with counts, and not CPython's.
    #[must_use]
    pub const fn speaks_loky(self, rtype: Rtype) -> bool {
        match self {
            Self::Cpython | Self::Rtrack => false,
            Self::Loky => true,
            Self::Any => matches!(rtype, Rtype::File | Rtype::Semlock | Rtype::Folder),
        }
    }

    /// Whether it takes the probes of loky up to 3.4 (joblib up to 1.4), which have no type.
    #[must_use]
    pub const fn takes_probes_without_type(self) -> bool {
        matches!(self, Self::Loky | Self::Any)
    }

    /// The command of that word, if it can be said of that type.
    #[must_use]
    pub fn command(self, word: &[u8], rtype: Rtype) -> Option<Command> {
        Command::from_word(word)
            .filter(|command| *command != Command::MaybeUnlink || self.releases(rtype))
    }

    /// The type of that word, if it is known.
    #[must_use]
    pub fn rtype(self, word: &[u8]) -> Option<Rtype> {
        Rtype::from_word(word).filter(|rtype| self.knows(*rtype))
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn types_stand_where_their_numbers_say() {
        for (index, rtype) in Rtype::ALL.into_iter().enumerate() {
            assert_eq!(
                (rtype as usize, Rtype::from_word(rtype.as_str().as_bytes())),
                (index, Some(rtype))
            );
        }
        for dialect in Dialect::ALL {
            assert_eq!(Dialect::from_word(dialect.as_str().as_bytes()), Some(dialect));
            for rtype in Rtype::ALL {
                let listed = dialect.rtypes().contains(&rtype);
                assert_eq!(dialect.knows(rtype), listed, "{dialect} {rtype}");
                assert_eq!(dialect.rtype(rtype.as_str().as_bytes()), listed.then_some(rtype));
            }
        }
    }

    #[test]
    fn only_an_id_is_an_id() {
        for (name, id) in [
            (&b"0"[..], Some(0)),
            (b"7", Some(7)),
            (b"32768", Some(32768)),
            (b"2147483647", Some(i32::MAX)),
            (b"2147483648", None),
            (b"4294967296", None),
            (b"99999999999999999999", None),
            (b"", None),
            (b"00", None),
            (b"07", None),
            (b"-1", None),
            (b"-0", None),
            (b"+7", None),
            (b" 7", None),
            (b"7 ", None),
            (b"7\n", None),
            (b"7\0", None),
            (b"7a", None),
            (b"0x7", None),
            (b"1e3", None),
            (b"1_0", None),
            (b"/7", None),
            (b"7.", None),
            ("\u{0667}".as_bytes(), None),
        ] {
            assert_eq!(system_v_id(name), id, "{name:?}");
            for rtype in Rtype::ALL {
                let sysv = rtype.as_str().starts_with("sysv_");
                assert_eq!(rtype.may_have(name), !sysv || id.is_some(), "{rtype} {name:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_id_is_its_own_digits(id in any::<i32>(), name in "[-+ 0-9x]{0,11}") {
            prop_assert_eq!(system_v_id(id.to_string().as_bytes()), (id >= 0).then_some(id));
            if let Some(id) = system_v_id(name.as_bytes()) {
                prop_assert_eq!(id.to_string(), name);
            }
        }
    }
}
