//! What a process is as a tracker: whose, of which version, and what it reads.

use std::fs;
use std::io::Read;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use procfs::process::Process;
use serde::Serialize;

use super::descriptors::proc;
use crate::tracker::deadline;
use crate::tracker::service::dialect::Dialect;
use crate::tracker::service::protocol::{Form, form_for};

/// Whose tracker it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `multiprocessing.resource_tracker`
    Cpython,
    /// `loky.backend.resource_tracker`
    Loky,
    /// loky as joblib carries it along
    Joblib,
    /// `rtrack daemon`
    Rtrack,
    /// Something else, or a process that could not be looked at
    Unknown,
}

impl Kind {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpython => "cpython",
            Self::Loky => "loky",
            Self::Joblib => "joblib",
            Self::Rtrack => "rtrack",
            Self::Unknown => "unknown",
        }
    }
}

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
    /// It could not be found out.
    Unknown,
}

impl Reader {
    fn of(kind: Kind, version: Option<Version>) -> Self {
        match (kind, version) {
            (Kind::Rtrack, _) => Self::Dual,
            (Kind::Cpython, Some(Version { minor, patch })) => match (minor, patch) {
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
    /// Whose tracker it is.
    pub kind: Kind,
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
    /// The descriptor that its command line names.
    pub(super) fd: Option<RawFd>,
}

impl Tracker {
    /// What it reads.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::of(self.kind, self.version)
    }

    /// Looks at a process; nothing if it is gone or a zombie.
    #[must_use]
    pub fn look(pid: i32) -> Option<Self> {
        let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
        if matches!(stat.state, 'Z' | 'X' | 'x') {
            return None;
        }
        let exe = fs::read_link(proc(pid, "exe")).ok();
        let arguments = command_line(pid).unwrap_or_default();
        let (kind, fd) = kind_of(exe.as_deref(), &arguments);
        let paths = exe.iter().map(|path| path.as_os_str().as_bytes());
        let version = paths
            .chain(arguments.first().map(Vec::as_slice))
            .find_map(Version::find)
            .filter(|_| !matches!(kind, Kind::Rtrack | Kind::Unknown));
        Some(Self {
            pid,
            kind,
            dialect: dialect_of(kind, &arguments),
            version,
            comm: stat.comm,
            since: started_at(stat.starttime),
            stopped: matches!(stat.state, 'T' | 't'),
            start: stat.starttime,
            fd,
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

/// The arguments of a process; nothing if they cannot be read in time.
fn command_line(pid: i32) -> Option<Vec<Vec<u8>>> {
    let read = |path: PathBuf| {
        let mut text = Vec::new();
        let file = fs::File::open(path).ok()?;
        file.take(64 * 1024).read_to_end(&mut text).ok().map(|_| text)
    };
    let text = deadline::map(vec![proc(pid, "cmdline")], read).into_iter().next()?.ok()??;
    Some(text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect())
}

/// What a process is by its executable and command line, and the descriptor that it names.
fn kind_of(exe: Option<&Path>, arguments: &[Vec<u8>]) -> (Kind, Option<RawFd>) {
    let called = |path: &Path| {
        path.file_name()
            .is_some_and(|name| name.as_bytes().split(|&b| b == b' ').next() == Some(b"rtrack"))
    };
    let first = arguments.first().map(|path| Path::new(std::ffi::OsStr::from_bytes(path)));
    if exe.or(first).is_some_and(called) && arguments.iter().any(|word| word == b"daemon") {
        return (Kind::Rtrack, None);
    }
    const LAUNCHES: [(&str, Kind); 3] = [
        ("from multiprocessing.resource_tracker import main;", Kind::Cpython),
        ("from loky.backend.resource_tracker import main;", Kind::Loky),
        ("from joblib.externals.loky.backend.resource_tracker import main;", Kind::Joblib),
    ];
    for argument in arguments {
        for (text, kind) in LAUNCHES {
            if let Some(call) = argument.strip_prefix(text.as_bytes()) {
                let call = String::from_utf8_lossy(call);
                let number = call.trim_start().strip_prefix("main(").map(|rest| {
                    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()
                });
                return (kind, number.and_then(Result::ok));
            }
        }
    }
    (Kind::Unknown, None)
}

/// What a tracker of that kind understands, which a daemon's command line tells.
fn dialect_of(kind: Kind, arguments: &[Vec<u8>]) -> Dialect {
    match kind {
        Kind::Cpython => Dialect::Cpython,
        Kind::Loky | Kind::Joblib => Dialect::Loky,
        Kind::Unknown => Dialect::Any,
        Kind::Rtrack => {
            let joined = arguments.iter().filter_map(|word| word.strip_prefix(b"--protocol="));
            let apart = arguments.iter().skip_while(|word| *word != b"--protocol").skip(1).take(1);
            let word = joined.chain(apart.map(Vec::as_slice)).next();
            word.and_then(Dialect::from_word).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trackers_by_their_command_lines() {
        let python = "/usr/bin/python3.11";
        for (exe, arguments, kind, fd) in [
            (
                python,
                &["python3", "-c", "from multiprocessing.resource_tracker import main;main(5)"][..],
                Kind::Cpython,
                Some(5),
            ),
            (
                python,
                &[
                    "python3",
                    "-s",
                    "-E",
                    "-c",
                    "from multiprocessing.resource_tracker import main;main(41)",
                ],
                Kind::Cpython,
                Some(41),
            ),
            (
                python,
                &["p", "-c", "from loky.backend.resource_tracker import main; main(7, False)"],
                Kind::Loky,
                Some(7),
            ),
            (
                python,
                &[
                    "p",
                    "-c",
                    "from joblib.externals.loky.backend.resource_tracker import main; main(7, False)",
                ],
                Kind::Joblib,
                Some(7),
            ),
            (python, &["p", "-c", "import multiprocessing.resource_tracker"], Kind::Unknown, None),
            ("/usr/local/bin/rtrack", &["rtrack", "-q", "daemon", "--fd=5"], Kind::Rtrack, None),
            ("/usr/local/bin/rtrack (deleted)", &["rtrack", "daemon"], Kind::Rtrack, None),
            ("/usr/local/bin/rtrack", &["rtrack", "list"], Kind::Unknown, None),
            ("/bin/bash", &["bash"], Kind::Unknown, None),
        ] {
            let arguments: Vec<Vec<u8>> =
                arguments.iter().map(|word| word.as_bytes().to_vec()).collect();
            assert_eq!(kind_of(Some(Path::new(exe)), &arguments), (kind, fd), "{arguments:?}");
        }
    }

    #[test]
    fn dialects_by_command_lines() {
        for (kind, arguments, dialect) in [
            (Kind::Rtrack, &["rtrack", "daemon", "--fd", "5"][..], Dialect::Cpython),
            (Kind::Rtrack, &["rtrack", "daemon", "--protocol", "loky"], Dialect::Loky),
            (Kind::Rtrack, &["rtrack", "daemon", "--protocol=any", "--fd=5"], Dialect::Any),
            (Kind::Rtrack, &["rtrack", "daemon", "--protocol", "rtrack"], Dialect::Rtrack),
            (Kind::Rtrack, &["rtrack", "daemon", "--protocol=rtrack"], Dialect::Rtrack),
            (Kind::Cpython, &["p", "--protocol=any"], Dialect::Cpython),
            (Kind::Joblib, &[], Dialect::Loky),
            (Kind::Unknown, &[], Dialect::Any),
        ] {
            let words: Vec<Vec<u8>> =
                arguments.iter().map(|word| word.as_bytes().to_vec()).collect();
            assert_eq!(dialect_of(kind, &words), dialect, "{arguments:?}");
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
        let cpython = |minor, patch| Reader::of(Kind::Cpython, Some(Version { minor, patch }));
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
            (Reader::of(Kind::Rtrack, None), Reader::Dual),
            (Reader::of(Kind::Loky, Some(Version { minor: 11, patch: None })), Reader::Unknown),
        ] {
            assert_eq!(reader, expected);
        }
        for (reader, name, form) in [
            (Reader::Old, &b"a b"[..], Some((Form::Ascii, true))),
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
