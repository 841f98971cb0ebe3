//! What the trackers that exist understand: which commands, which types, and whether a type is a set
//! of names or a count for each.
//!
//! loky's dialect is that of `loky.backend.resource_tracker` 3.7, which joblib carries along too.

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
    pub const ALL: [Self; 7] = [
        Self::Noop,
        Self::Dummy,
        Self::Semaphore,
        Self::SharedMemory,
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
            b"file" => Some(Self::File),
            b"semlock" => Some(Self::Semlock),
            b"folder" => Some(Self::Folder),
            _ => None,
        }
    }
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
}

impl Dialect {
    /// The word on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpython => "cpython",
            Self::Loky => "loky",
            Self::Any => "any",
        }
    }

    /// The dialect of that word.
    #[must_use]
    pub fn from_word(word: &[u8]) -> Option<Self> {
        [Self::Cpython, Self::Loky, Self::Any]
            .into_iter()
            .find(|dialect| dialect.as_str().as_bytes() == word)
    }

    /// The types that it knows, in the order in which its messages list them.
    #[must_use]
    pub const fn rtypes(self) -> &'static [Rtype] {
        use Rtype::{Dummy, File, Folder, Noop, Semaphore, Semlock, SharedMemory};
        match self {
            Self::Cpython => &[Noop, Dummy, Semaphore, SharedMemory],
            Self::Loky => &[Noop, Dummy, Folder, File, Semlock],
            Self::Any => &[Noop, Dummy, Semaphore, SharedMemory, Folder, File, Semlock],
        }
    }

    /// Whether it knows that type.
    const fn knows(self, rtype: Rtype) -> bool {
        match rtype {
            Rtype::Noop | Rtype::Dummy => true,
            Rtype::Semaphore | Rtype::SharedMemory => !matches!(self, Self::Loky),
            Rtype::File | Rtype::Semlock | Rtype::Folder => !matches!(self, Self::Cpython),
        }
    }

    /// Whether resources of that type have users that are counted, so that `MAYBE_UNLINK` is
    /// understood.
    #[must_use]
    pub const fn releases(self, rtype: Rtype) -> bool {
        match self {
            Self::Cpython => false,
            Self::Loky => true,
            Self::Any => !matches!(rtype, Rtype::Semaphore | Rtype::SharedMemory),
        }
    }

    /// Whether messages about that type are loky's, with counts, and not CPython's.
    #[must_use]
    pub const fn speaks_loky(self, rtype: Rtype) -> bool {
        match self {
            Self::Cpython => false,
            Self::Loky => true,
            Self::Any => matches!(rtype, Rtype::File | Rtype::Semlock | Rtype::Folder),
        }
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
