//! What a process is, by the command line that it was started with.

use std::os::fd::RawFd;

use serde::Serialize;

/// Whose tracker it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// `multiprocessing.resource_tracker`, or `semaphore_tracker` before Python 3.8.
    Cpython,
    /// loky's own.
    Loky,
    /// loky as joblib carries it along.
    Joblib,
    /// That of the package multiprocess, which pathos and dill use.
    Multiprocess,
    /// That of billiard, which Celery uses.
    Billiard,
    /// `rtrack daemon`
    Rtrack,
    /// PyTorch's manager of shared files.
    TorchShmManager,
}

impl Family {
    /// The word in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpython => "cpython",
            Self::Loky => "loky",
            Self::Joblib => "joblib",
            Self::Multiprocess => "multiprocess",
            Self::Billiard => "billiard",
            Self::Rtrack => "rtrack",
            Self::TorchShmManager => "torch_shm_manager",
        }
    }

    /// Whether a Python runs it, which the program that it works for has started itself.
    #[must_use]
    pub const fn is_python(self) -> bool {
        !matches!(self, Self::Rtrack | Self::TorchShmManager)
    }
}

/// What a command line says of a tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Launch {
    /// Whose it is.
    pub(super) family: Family,
    /// The descriptor that it was told to read.
    pub(super) fd: Option<RawFd>,
    /// The program, as it was called.
    pub(super) program: Vec<u8>,
    /// The `--protocol` of an `rtrack daemon`.
    pub(super) dialect: Option<String>,
    /// It knows semaphores only, and is told names without a type: Python's before 3.8, and billiard's.
    pub(super) untyped: bool,
}

/// The tracker that the command line `arguments`, NUL-separated, of the executable called `exe` starts.
pub(super) fn read(exe: Option<&[u8]>, arguments: &[u8]) -> Option<Launch> {
    let arguments: Vec<&[u8]> =
        arguments.strip_suffix(b"\0").unwrap_or(arguments).split(|byte| *byte == 0).collect();
    let (first, rest) = arguments.split_first()?;
    let program = first.to_vec();
    let first = first.rsplit(|byte| *byte == b'/').next();
    let called = |name: &[u8]| exe == Some(name) || first == Some(name);
    if called(b"torch_shm_manager") {
        let family = Family::TorchShmManager;
        return Some(Launch { family, fd: None, program, dialect: None, untyped: false });
    }
    if called(b"rtrack") && subcommand(rest) == Some(b"daemon") {
        return Some(Launch {
            family: Family::Rtrack,
            fd: value(rest, b"--fd").and_then(number),
            program,
            dialect: value(rest, b"--protocol")
                .map(|dialect| String::from_utf8_lossy(dialect).into_owned()),
            untyped: false,
        });
    }
    let (family, fd, untyped) = of_python(command(rest)?)?;
    Some(Launch { family, fd: Some(fd), program, dialect: None, untyped })
}

/// The first word of an rtrack command line that is no option.
fn subcommand<'a>(words: &[&'a [u8]]) -> Option<&'a [u8]> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if *word == b"--color" {
            words.next();
        } else if !word.starts_with(b"-") {
            return Some(word);
        }
    }
    None
}

/// The value of an option, after it or behind an equals sign.
fn value<'a>(words: &[&'a [u8]], option: &[u8]) -> Option<&'a [u8]> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if *word == option {
            return words.next().copied();
        }
        if let Some(value) = word.strip_prefix(option).and_then(|rest| rest.strip_prefix(b"=")) {
            return Some(value);
        }
    }
    None
}

/// What a Python with these arguments runs by `-c`. What stands behind that is the program's own.
fn command<'a>(words: &[&'a [u8]]) -> Option<&'a [u8]> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            b"-c" => return words.next().copied(),
            b"-X" | b"-W" => {
                words.next();
            }
            word if word.starts_with(b"-") => {}
            _ => return None,
        }
    }
    None
}

/// The tracker that `from MODULE import main;main(FD…)` starts, the descriptor that it reads, and whether
/// it is one for semaphores only.
fn of_python(command: &[u8]) -> Option<(Family, RawFd, bool)> {
    let command = std::str::from_utf8(command).ok()?;
    let (module, call) = command.strip_prefix("from ")?.split_once(" import main;")?;
    let (package, untyped) = match module.strip_suffix(".semaphore_tracker") {
        Some(package) => (package, true),
        None => (module.strip_suffix(".resource_tracker")?, false),
    };
    let family = match package {
        "multiprocessing" => Family::Cpython,
        "multiprocess" => Family::Multiprocess,
        "billiard" => Family::Billiard,
        "loky.backend" => Family::Loky,
        // joblib's copy, and that of a package that carries joblib along.
        package if package.ends_with(".externals.loky.backend") => Family::Joblib,
        _ => return None,
    };
    let (fd, _) = call.trim_start().strip_prefix("main(")?.split_once([',', ')'])?;
    Some((family, number(fd.as_bytes())?, untyped))
}

/// A descriptor.
fn number(text: &[u8]) -> Option<RawFd> {
    std::str::from_utf8(text).ok()?.trim().parse().ok().filter(|fd| *fd >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(exe: &str, words: &[&str]) -> Option<Launch> {
        let line: Vec<u8> =
            words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        read(Some(exe.as_bytes()), &line)
    }

    fn of(exe: &str, words: &[&str]) -> Option<(Family, Option<RawFd>, Option<String>)> {
        launch(exe, words).map(|launch| (launch.family, launch.fd, launch.dialect))
    }

    #[test]
    fn trackers_by_their_command_lines() {
        const CPYTHON: &str = "from multiprocessing.resource_tracker import main;main(5)";
        for (words, family, fd) in [
            (&["/usr/bin/python3", "-c", CPYTHON][..], Family::Cpython, 5),
            (&["p", "-s", "-E", "-X", "dev", "-Wignore", "-c", CPYTHON], Family::Cpython, 5),
            (
                &["p", "-c", "from multiprocessing.semaphore_tracker import main;main(41)"],
                Family::Cpython,
                41,
            ),
            (
                &["p", "-c", "from loky.backend.resource_tracker import main; main(7, False)"],
                Family::Loky,
                7,
            ),
            (
                &[
                    "p",
                    "-c",
                    "from joblib.externals.loky.backend.resource_tracker import main; main(7, True)",
                ],
                Family::Joblib,
                7,
            ),
            (
                &["p", "-c", "from multiprocess.resource_tracker import main;main(0)"],
                Family::Multiprocess,
                0,
            ),
            (
                &["p", "-c", "from billiard.semaphore_tracker import main;main(3)"],
                Family::Billiard,
                3,
            ),
        ] {
            assert_eq!(of("python3.11", words), Some((family, Some(fd), None)), "{words:?}");
            let untyped = words.last().unwrap().contains("semaphore_tracker");
            assert_eq!(launch("python3.11", words).unwrap().untyped, untyped, "{words:?}");
        }
        for words in [
            &["sh", "-c", "sleep 1000", CPYTHON][..],
            &[
                "sh",
                "-c",
                "python3 -c \"from multiprocessing.resource_tracker import main;main(5)\"",
            ],
            &["grep", "-r", CPYTHON],
            &["p", "script.py", "-c", CPYTHON],
            &["p", "-X", "-c", CPYTHON],
            &["p", "-c", "from multiprocessing.resource_tracker import main;main()"],
            &["p", "-c", "from my.resource_tracker import main;main(5)"],
            &["p", "-c", "from multiprocessing.resource_tracker import main; print(5)"],
            &["p", "-c"],
            &[""],
        ] {
            assert_eq!(of("python3.11", words), None, "{words:?}");
        }
    }

    #[test]
    fn other_trackers() {
        for (exe, words, found) in [
            ("rtrack", &["x", "daemon", "--fd", "5"][..], Some((Some(5), None))),
            ("python3", &["/opt/rtrack", "-q", "daemon", "--fd=5"], Some((Some(5), None))),
            (
                "rtrack",
                &["rtrack", "--color", "never", "daemon", "--protocol=loky", "--fd", "6"],
                Some((Some(6), Some("loky"))),
            ),
            (
                "rtrack",
                &["rtrack", "daemon", "--fd", "7", "--protocol", "rtrack"],
                Some((Some(7), Some("rtrack"))),
            ),
            ("rtrack", &["rtrack", "daemon"], Some((None, None))),
            ("rtrack", &["rtrack", "show", "daemon"], None),
            ("rtrack", &["rtrack"], None),
            ("bash", &["bash", "rtrack", "daemon", "--fd", "5"], None),
        ] {
            let found = found.map(|(fd, dialect)| (Family::Rtrack, fd, dialect.map(str::to_owned)));
            assert_eq!(of(exe, words), found, "{words:?}");
        }
        let torch = Some((Family::TorchShmManager, None, None));
        assert_eq!(of("torch_shm_manager", &["/x/torch/bin/torch_shm_manager"]), torch);
        assert_eq!(of("vi", &["vi", "torch_shm_manager"]), None);
    }
}
