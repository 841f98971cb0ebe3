//! What a process is as a tracker: whose, of which version, and what it reads.

use std::fs;
use std::io::Read;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use procfs::process::Process;

use super::descriptors::proc;
use super::launch::{self, Family, Launch};
use crate::tracker::deadline;
use crate::tracker::service::dialect::Dialect;
use crate::tracker::service::protocol::{Form, form_for};

/// A version of Python, as far as the path of an interpreter tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 13 in 3.13.1
    pub minor: u32,
    /// 1 in 3.13.1
    pub patch: Option<u32>,
}

impl Version {
    /// Looks for `3.N.P`, else `3.N`, anywhere in `path`: `/usr/bin/python3.11`,
    /// `…/versions/3.13.0/bin/python3.13`.
    pub(super) fn find(path: &[u8]) -> Option<Self> {
        fn number(digits: &[u8]) -> Option<(u32, &[u8])> {
            let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, rest) = digits.split_at_checked(length)?;
            Some((std::str::from_utf8(number).ok()?.parse().ok()?, rest))
        }
        let mut found = None;
        for (place, _) in path.windows(2).enumerate().filter(|(_, two)| two == b"3.") {
            let before = place.checked_sub(1).and_then(|index| path.get(index));
            if before.is_some_and(|byte| byte.is_ascii_digit() || *byte == b'.') {
                continue;
            }
            let Some((minor, rest)) = path.get(place + 2..).and_then(number) else { continue };
            let patch = rest.strip_prefix(b".").and_then(number).map(|(patch, _)| patch);
            found = found.max(Some(Self { minor, patch }));
        }
        found
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "3.{}", self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

/// Which forms of a message a tracker reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// ASCII only, and no colon in a name: CPython up to 3.13.9 and 3.14.0.
    Old,
    /// JSON only: CPython 3.13.10 and 3.14.1.
    JsonOnly,
    /// Both, with colons: CPython 3.13.11, 3.14.2 and newer, and rtrack.
    Dual,
    /// None of them: names of semaphores without a type, as Python's before 3.8 and billiard's.
    Untyped,
    /// It could not be found out.
    Unknown,
}

impl Reader {
    /// What a tracker reads that was started so, by a Python of that version.
    pub(super) fn of(launch: Option<&Launch>, version: Option<Version>) -> Self {
        let Some(launch) = launch else { return Self::Unknown };
        match (launch.family, version) {
            _ if launch.untyped => Self::Untyped,
            (Family::Rtrack, _) => Self::Dual,
            (Family::Cpython, Some(Version { minor, patch })) => match (minor, patch) {
                (..=12, _) | (13, Some(..=9)) | (14, Some(0)) => Self::Old,
                (13, Some(10)) | (14, Some(1)) => Self::JsonOnly,
                (15.., _) | (_, Some(_)) => Self::Dual,
                (_, None) => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }

    /// The form in which this reader takes `name`, and whether that is certain; nothing if it
    /// cannot be told that name.
    #[must_use]
    pub fn form(self, name: &[u8]) -> Option<(Form, bool)> {
        let plain = form_for(name) == Form::Ascii && !name.contains(&b':');
        match self {
            Self::Untyped => None,
            Self::Old => plain.then_some((Form::Ascii, true)),
            Self::JsonOnly => Some((Form::Json, true)),
            Self::Dual => Some((form_for(name), true)),
            Self::Unknown => Some((form_for(name), plain)),
        }
    }
}

/// A process at the reading end.
#[derive(Debug, Clone)]
pub struct Tracker {
    /// Its pid here.
    pub pid: i32,
    /// Whose tracker it is; nothing for something else, and for a process that could not be looked at.
    pub family: Option<Family>,
    /// What it understands; all that a Python's tracker may, if that is not known.
    pub dialect: Dialect,
    /// The Python that runs it.
    pub version: Option<Version>,
    /// The name of its thread, as the kernel has it.
    pub comm: String,
    /// When it started.
    pub since: Option<Timestamp>,
    /// Stopped by a signal or a debugger: alive, but it reads nothing.
    pub stopped: bool,
    /// In clock ticks since boot: with the pid, what tells it from a later process.
    pub(super) start: u64,
    /// The descriptor that a Python reads, which its command line names. rtrack reads a copy.
    pub(super) fd: Option<RawFd>,
    reader: Reader,
}

impl Tracker {
    /// What it reads.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.reader
    }

    /// Whose tracker it is, as a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.family.map_or("unknown", Family::as_str)
    }

    /// Looks at a process; nothing if it is gone or a zombie.
    #[must_use]
    pub fn look(pid: i32) -> Option<Self> {
        let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
        if matches!(stat.state, 'Z' | 'X' | 'x') {
            return None;
        }
        let exe = fs::read_link(proc(pid, "exe")).ok().map(PathBuf::into_os_string);
        let exe = exe.as_ref().map(|path| path.as_bytes());
        // Such a path belongs to an executable that was removed, or replaced by a newer one.
        let exe = exe.map(|path| path.strip_suffix(b" (deleted)").unwrap_or(path));
        let called = exe.and_then(|path| path.rsplit(|byte| *byte == b'/').next());
        let launch = command_line(pid).and_then(|line| launch::read(called, &line));
        let launch = launch.as_ref();
        let python = launch.filter(|launch| launch.family.is_python());
        let version = python.and_then(|launch| {
            exe.and_then(Version::find).or_else(|| Version::find(&launch.program))
        });
        Some(Self {
            pid,
            family: launch.map(|launch| launch.family),
            dialect: dialect_of(launch),
            version,
            comm: stat.comm,
            since: started_at(stat.starttime),
            stopped: matches!(stat.state, 'T' | 't'),
            start: stat.starttime,
            fd: python.and_then(|launch| launch.fd),
            reader: Reader::of(launch, version),
        })
    }
}

/// When a process started that did so `ticks` after boot (proc(5), field 22 of `stat`).
pub(super) fn started_at(ticks: u64) -> Option<Timestamp> {
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let start = Duration::from_millis(ticks.checked_mul(1000)? / per_second);
    let boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME).ok()?);
    let age = boot.checked_sub(start)?;
    Timestamp::from_second(now.checked_sub(age)?.as_secs().try_into().ok()?).ok()
}

/// The arguments of a process, NUL-separated; nothing if they cannot be read in time.
fn command_line(pid: i32) -> Option<Vec<u8>> {
    let read = |path: PathBuf| {
        let mut text = Vec::new();
        let file = fs::File::open(path).ok()?;
        file.take(64 * 1024).read_to_end(&mut text).ok().map(|_| text)
    };
    deadline::map(vec![proc(pid, "cmdline")], read).into_iter().next()?.ok()?
}

/// What a tracker that was started so understands.
fn dialect_of(launch: Option<&Launch>) -> Dialect {
    let Some(launch) = launch else { return Dialect::Any };
    match launch.family {
        Family::Cpython | Family::Multiprocess | Family::Billiard => Dialect::Cpython,
        Family::Loky | Family::Joblib => Dialect::Loky,
        Family::TorchShmManager => Dialect::Any,
        Family::Rtrack => {
            let word = launch.dialect.as_deref();
            word.and_then(|word| Dialect::from_word(word.as_bytes())).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(words: &[&str]) -> Option<Launch> {
        launch::read(None, words.join("\0").as_bytes())
    }

    #[test]
    fn dialects_by_command_lines() {
        const OF_JOBLIB: &str =
            "from joblib.externals.loky.backend.resource_tracker import main; main(7, False)";
        const OF_PYTHON: &str = "from multiprocessing.resource_tracker import main;main(5)";
        for (words, dialect) in [
            (&["rtrack", "daemon", "--fd", "5"][..], Dialect::Cpython),
            (&["rtrack", "daemon", "--protocol", "loky"], Dialect::Loky),
            (&["rtrack", "daemon", "--protocol=any", "--fd=5"], Dialect::Any),
            (&["rtrack", "daemon", "--protocol", "rtrack"], Dialect::Rtrack),
            (&["rtrack", "daemon", "--protocol=rtrack"], Dialect::Rtrack),
            (&["p", "-c", OF_PYTHON, "--protocol=any"], Dialect::Cpython),
            (&["p", "-c", OF_JOBLIB], Dialect::Loky),
            (&["p"], Dialect::Any),
        ] {
            assert_eq!(dialect_of(launch(words).as_ref()), dialect, "{words:?}");
        }
    }

    #[test]
    fn versions_in_paths() {
        for (path, version) in [
            ("/usr/bin/python3.11", Some("3.11")),
            ("/home/a/.pyenv/versions/3.13.0/bin/python3.13", Some("3.13.0")),
            ("/opt/cpython-3.14.2-linux/bin/python3.14", Some("3.14.2")),
            ("/usr/bin/python3", None),
            ("/opt/13.3.7/python", None),
        ] {
            assert_eq!(Version::find(path.as_bytes()).map(|v| v.to_string()).as_deref(), version);
        }
    }

    #[test]
    fn who_reads_what() {
        let of = |module: &str, version| {
            let command = format!("from {module} import main;main(5)");
            Reader::of(launch(&["p", "-c", &command]).as_ref(), version)
        };
        let cpython =
            |minor, patch| of("multiprocessing.resource_tracker", Some(Version { minor, patch }));
        for (reader, expected) in [
            (cpython(8, None), Reader::Old),
            (cpython(12, Some(13)), Reader::Old),
            (cpython(13, Some(9)), Reader::Old),
            (cpython(13, Some(10)), Reader::JsonOnly),
            (cpython(13, Some(11)), Reader::Dual),
            (cpython(13, None), Reader::Unknown),
            (cpython(14, Some(0)), Reader::Old),
            (cpython(14, Some(1)), Reader::JsonOnly),
            (cpython(14, Some(2)), Reader::Dual),
            (cpython(15, None), Reader::Dual),
            (Reader::of(launch(&["rtrack", "daemon"]).as_ref(), None), Reader::Dual),
            (
                of("loky.backend.resource_tracker", Some(Version { minor: 11, patch: None })),
                Reader::Unknown,
            ),
            (of("billiard.semaphore_tracker", None), Reader::Untyped),
            (
                of("multiprocessing.semaphore_tracker", Some(Version { minor: 7, patch: None })),
                Reader::Untyped,
            ),
            (Reader::of(None, None), Reader::Unknown),
        ] {
            assert_eq!(reader, expected);
        }
        for (reader, name, form) in [
            (Reader::Old, &b"a b"[..], Some((Form::Ascii, true))),
            (Reader::Untyped, b"a", None),
            (Reader::Old, b"a:b", None),
            (Reader::Old, b"a\nb", None),
            (Reader::JsonOnly, b"a", Some((Form::Json, true))),
            (Reader::Dual, b"a:b", Some((Form::Ascii, true))),
            (Reader::Dual, b"\xff", Some((Form::Json, true))),
            (Reader::Unknown, b"a", Some((Form::Ascii, true))),
            (Reader::Unknown, b"a:b", Some((Form::Ascii, false))),
            (Reader::Unknown, b"\n", Some((Form::Json, false))),
        ] {
            assert_eq!(reader.form(name), form, "{reader:?} {name:?}");
        }
    }
}
