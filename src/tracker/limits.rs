//! What the kernel allows of IPC objects, and how much of that is used.
//!
//! `/proc/sys` and `/proc/sysvipc` answer for the IPC namespace of the thread that reads, whatever
//! `/proc` it reads them in. So there is no state here: whoever wants to know of another namespace
//! calls [`of_namespace`] in a thread that has entered it, and [`of_mount`] for its mounts.

pub mod parse;

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::evidence::mounts::Mounts;
use super::host::{Host, HostError, Usage};
use super::resource::escape;
use super::sys;
use parse::{Summed, Tally, Unread};

/// From here on `kernel.shmmax` and `kernel.shmall` are no limit: what they are unless somebody sets
/// them (`SHMMAX` and `SHMALL` of linux/shm.h, since Linux 3.16).
const NO_LIMIT: u64 = (usize::MAX - (1 << 24)) as u64;

/// A file of `/proc/sys` is no longer than this.
const LONGEST_SYSCTL: u64 = 4096;

/// Where the message queues of a namespace are mounted, if they are.
const MQUEUE: &str = "/dev/mqueue";

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Pages of so many bytes.
    Pages(u64),
    /// Bytes.
    Bytes,
    /// Anything else, by the word for it.
    Things(&'static str),
}

impl Unit {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pages(_) => "pages",
            Self::Bytes => "bytes",
            Self::Things(word) => word,
        }
    }

    /// How many bytes one of them is, if it is memory.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        match self {
            Self::Pages(size) => Some(size),
            Self::Bytes => Some(1),
            Self::Things(_) => None,
        }
    }
}

/// A number, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Known(u64),
    /// There is none: of a use, that nothing is counted against the limit; of a limit, that
    /// there is no limit.
    Absent,
    /// It could not be read, for this reason.
    Unknown(String),
}

impl Amount {
    /// The number.
    #[must_use]
    pub const fn known(&self) -> Option<u64> {
        match self {
            Self::Known(number) => Some(*number),
            Self::Absent | Self::Unknown(_) => None,
        }
    }

    fn of<E: fmt::Display>(read: &Result<u64, E>) -> Self {
        match read {
            Ok(number) => Self::Known(*number),
            Err(why) => Self::Unknown(why.to_string()),
        }
    }
}

/// Whose limit it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// An IPC namespace, as `/proc/PID/ns/ipc` names it, if that could be read.
    Namespace(Option<String>),
    /// A file system, and where it is mounted.
    Mount {
        /// Where.
        path: PathBuf,
        /// Its device number, if that could be read.
        dev: Option<u64>,
    },
}

/// One limit and its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The file of `/proc/sys` with dots, and of several numbers in it which one; or the mount, and
    /// of what.
    pub name: String,
    /// What it limits.
    pub what: &'static str,
    /// What both numbers count.
    pub unit: Unit,
    /// How much is used.
    pub used: Amount,
    /// Whether more may be used than can be seen.
    pub at_least: bool,
    /// How much is allowed.
    pub limit: Amount,
    /// Whose limit it is.
    pub scope: Scope,
    /// What else there is to know about the use.
    pub note: Option<String>,
}

impl Limit {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        match self.limit {
            Amount::Known(limit) => {
                let memory =
                    matches!(self.scope, Scope::Namespace(_)) && self.unit.bytes().is_some();
                memory && limit >= NO_LIMIT
            }
            Amount::Absent => true,
            Amount::Unknown(_) => false,
        }
    }

    /// Use and limit, where there are both.
    #[must_use]
    pub fn both(&self) -> Option<(u64, u64)> {
        if self.is_unlimited() { None } else { self.used.known().zip(self.limit.known()) }
    }

    /// The use in tenths of a percent of the limit, rounded down: above 1000 where the limit was
    /// lowered since. `None` where one of them is missing, and for a limit of 0.
    #[must_use]
    pub fn permille(&self) -> Option<u64> {
        let (used, limit) = self.both()?;
        let permille = (u128::from(used) * 1000).checked_div(u128::from(limit))?;
        Some(u64::try_from(permille).unwrap_or(u64::MAX))
    }

    /// Whether more than `percent` of the limit is used.
    #[must_use]
    pub fn is_above(&self, percent: u8) -> bool {
        self.both().is_some_and(|(used, limit)| {
            u128::from(used) * 100 > u128::from(limit) * u128::from(percent)
        })
    }

    /// Why its use or the limit itself could not be read.
    #[must_use]
    pub fn unknown(&self) -> Option<String> {
        match (&self.limit, &self.used) {
            (Amount::Unknown(limit), Amount::Unknown(used)) if limit != used => {
                Some(format!("{limit}; {used}"))
            }
            (Amount::Unknown(why), _) | (_, Amount::Unknown(why)) => Some(why.clone()),
            _ => None,
        }
    }
}

/// The limits of this thread's IPC namespace and of the mount of the POSIX objects, read by the procfs
/// at `proc`. What cannot be read is in its row.
#[must_use]
pub fn read(proc: &Path, host: Result<&Host, &HostError>) -> Vec<Limit> {
    let mut limits = of_namespace(proc, Some(Path::new(MQUEUE)));
    limits.extend(match host {
        Ok(host) => {
            let usage = host.usage().map_err(|error| error.to_string());
            of_mount(&host.shm_path, host.shm_dev().ok(), usage)
        }
        Err(error) => of_mount(error.path(), None, Err(whole(error))),
    });
    limits
}

/// An error with its causes.
fn whole(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The limits of the IPC namespace of this thread, which is entered; `mqueue` is where its message
/// queues are mounted if anywhere, for those who may not mount them themselves.
#[must_use]
pub fn of_namespace(proc: &Path, mqueue: Option<&Path>) -> Vec<Limit> {
    of_tables(proc, queues(proc, mqueue))
}

/// The message queues that have a name: how many, and a note about the count.
type Queues = Result<(u64, Option<String>), String>;

fn of_tables(proc: &Path, queues: Queues) -> Vec<Limit> {
    let page = sys::page_size();
    let pages = |size: u64| size.div_ceil(page);
    let shm = tally(proc, "shm", "shmid", Some(("size", &pages)));
    let sem = tally(proc, "sem", "semid", Some(("nsems", &|count| count)));
    let msg = tally(proc, "msg", "msqid", None);
    let objects =
        |table: &Result<Tally, String>| Amount::of(&table.as_ref().map(|tally| tally.objects));
    let sum = |table: &Result<Tally, String>| Amount::of(&table.as_ref().map(|tally| tally.sum));
    let [segments, sets, queues_of_sysv] = ["segments", "sets", "queues"].map(Unit::Things);
    let none = Amount::Absent;

    let mut rows = Rows::new(proc);
    rows.add("kernel/shmmni", "System V shared memory segments", segments, objects(&shm));
    rows.add("kernel/shmall", "memory of all System V segments", Unit::Pages(page), sum(&shm));
    rows.add("kernel/shmmax", "size of a System V segment", Unit::Bytes, none.clone());
    rows.add_all(
        "kernel/sem",
        [
            ("semmsl", "System V semaphores in a set", Unit::Things("semaphores"), none.clone()),
            ("semmns", "System V semaphores in all sets", Unit::Things("semaphores"), sum(&sem)),
            ("semopm", "operations in a semop call", Unit::Things("operations"), none.clone()),
            ("semmni", "System V semaphore sets", sets, objects(&sem)),
        ],
    );
    rows.add("kernel/msgmni", "System V message queues", queues_of_sysv, objects(&msg));
    rows.add(
        "kernel/msgmnb",
        "bytes in a System V queue, unless set for it",
        Unit::Bytes,
        none.clone(),
    );
    rows.add("kernel/msgmax", "size of a System V message", Unit::Bytes, none.clone());
    let (used, note) = match queues {
        Ok((count, note)) => (Amount::Known(count), note),
        Err(why) => (Amount::Unknown(why), None),
    };
    // A queue without a name counts for the kernel as long as somebody has it open.
    rows.add("fs/mqueue/queues_max", "POSIX message queues", Unit::Things("queues"), used);
    if let Some(row) = rows.limits.last_mut() {
        row.at_least = true;
        row.note = note;
    }
    let messages = Unit::Things("messages");
    rows.add("fs/mqueue/msg_max", "messages in a POSIX queue", messages, none.clone());
    rows.add("fs/mqueue/msgsize_max", "size of a POSIX message", Unit::Bytes, none);
    rows.limits
}

/// The rows of a namespace, as far as they are made.
struct Rows<'a> {
    proc: &'a Path,
    scope: Scope,
    limits: Vec<Limit>,
}

impl<'a> Rows<'a> {
    fn new(proc: &'a Path) -> Self {
        let link = std::fs::read_link(proc.join("thread-self/ns/ipc"));
        let name = link.ok().map(|link| link.to_string_lossy().into_owned());
        Self { proc, scope: Scope::Namespace(name), limits: Vec::new() }
    }

    /// A file with one number.
    fn add(&mut self, file: &str, what: &'static str, unit: Unit, used: Amount) {
        self.add_all(file, [("", what, unit, used)]);
    }

    /// A file with several numbers, each with its name, in their order.
    fn add_all<const N: usize>(
        &mut self,
        file: &str,
        fields: [(&'static str, &'static str, Unit, Amount); N],
    ) {
        let numbers = sysctl(self.proc, file, N);
        let name = file.replace('/', ".");
        for (place, (field, what, unit, used)) in fields.into_iter().enumerate() {
            let limit = match &numbers {
                Ok(numbers) => numbers.get(place).copied().map_or(Amount::Absent, Amount::Known),
                Err(why) => Amount::Unknown(why.clone()),
            };
            self.limits.push(Limit {
                name: format!("{name} {field}").trim_end().to_owned(),
                what,
                unit,
                used,
                at_least: false,
                limit,
                scope: self.scope.clone(),
                note: None,
            });
        }
    }
}

/// The numbers of a file of `/proc/sys`.
fn sysctl(proc: &Path, file: &str, expected: usize) -> Result<Vec<u64>, String> {
    let path = proc.join("sys").join(file);
    let read = || {
        let mut text = Vec::new();
        File::open(&path)?.take(LONGEST_SYSCTL).read_to_end(&mut text)?;
        parse::numbers(&text, expected)
    };
    read().map_err(|error| format!("{}: {error}", path.display()))
}

/// What a table of `/proc/sysvipc` adds up to.
fn tally(
    proc: &Path,
    table: &str,
    id: &'static str,
    summed: Option<Summed<'_>>,
) -> Result<Tally, String> {
    let path = proc.join("sysvipc").join(table);
    let read = || {
        let file = File::open(&path).map_err(Unread::Os)?;
        parse::tally(BufReader::with_capacity(1 << 16, file), id, summed)
    };
    read().map_err(|error| format!("{}: {error}", path.display()))
}

/// Counts the message queues of this thread's namespace that have a name.
fn queues(proc: &Path, mqueue: Option<&Path>) -> Queues {
    let refused = match sys::mqueue_root() {
        Ok(root) => {
            let count = entries(root.as_fd());
            return count.map(|count| (count, None)).map_err(|error| format!("mqueue: {error}"));
        }
        Err(error) => error,
    };
    let mounted = mqueue.map(|path| mounted(proc, path).map(|count| (path, count)));
    match mounted {
        // Which namespace a mount belongs to, only those who may mount it can compare.
        Some(Ok((path, count))) => {
            let path = path.display();
            Ok((count, Some(format!("as {path} shows them, if that is this namespace's"))))
        }
        Some(Err(why)) => Err(format!("{why}, and mounting them failed: {refused}")),
        None => Err(format!("mounting the message queues failed: {refused}")),
    }
}

/// Counts the message queues that are mounted at `path`.
fn mounted(proc: &Path, path: &Path) -> Result<u64, String> {
    let info = proc.join("thread-self/mountinfo");
    let text = std::fs::read(&info).map_err(|error| format!("{}: {error}", info.display()))?;
    let mounts = Mounts::parse(&text);
    let point = path.as_os_str().as_encoded_bytes();
    // What else may be mounted there need not ever answer.
    match mounts.at(point) {
        Some(mount) if mount.fstype == b"mqueue" && mount.root == b"/" => {}
        Some(mount) => {
            return Err(format!("{} is {}, no mqueue", path.display(), escape(&mount.fstype)));
        }
        None => return Err(format!("no message queues are mounted at {}", path.display())),
    }
    let directory = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path);
    let count = directory.and_then(|directory| entries(directory.as_fd()));
    count.map_err(|error| format!("{}: {error}", path.display()))
}

/// How many names there are in a directory, without `.` and `..`.
fn entries(directory: BorrowedFd<'_>) -> io::Result<u64> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut own = Dir::from_fd(openat(directory, c".", flags, Mode::empty())?)?;
    let mut count = 0;
    for entry in own.iter() {
        let name = entry?;
        count += u64::from(![c".", c".."].contains(&name.file_name()));
    }
    Ok(count)
}

/// The bytes and inodes of a tmpfs.
#[must_use]
pub fn of_mount(path: &Path, dev: Option<u64>, usage: Result<Usage, String>) -> Vec<Limit> {
    let row = |of: &str, what, unit, amounts: Result<(u64, u64), &String>| {
        let (used, limit) = match amounts {
            // Where there is no limit, the file system does not tell its use either.
            Ok((_, 0)) => (Amount::Absent, Amount::Absent),
            Ok((used, limit)) => (Amount::Known(used), Amount::Known(limit)),
            Err(why) => (Amount::Unknown(why.clone()), Amount::Unknown(why.clone())),
        };
        let name = format!("{} {of}", escape(path.as_os_str().as_encoded_bytes()));
        let scope = Scope::Mount { path: path.into(), dev };
        Limit { name, what, unit, used, at_least: false, limit, scope, note: None }
    };
    let usage = usage.as_ref();
    vec![
        row("bytes", "memory of the file system", Unit::Bytes, usage.map(|u| (u.used, u.size))),
        row(
            "inodes",
            "files and directories in it",
            Unit::Things("inodes"),
            usage.map(|u| (u.inodes.saturating_sub(u.inodes_free), u.inodes)),
        ),
    ]
}

#[cfg(test)]
mod tests;
