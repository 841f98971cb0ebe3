//! Which program a tracker is, and with which arguments it is started.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::death::{Death, warn};
use super::failure::ClientError;
use super::launch;
use super::resource_tracker::{ResourceTracker, Speech};
use super::tracker::{Reader, Version};
use crate::tracker::service::dialect::Dialect;
use crate::tracker::sys::launch::{INPUT, Program};

/// Is told of deaths.
pub(super) type OnDeath = Box<dyn Fn(&Death) + Send + Sync>;

/// How a [`ResourceTracker`] is to be.
///
/// ```
/// use rtrack::tracker::service::client::{Dialect, ResourceTracker};
///
/// // Nothing is started by this.
/// let tracker = ResourceTracker::builder()
///     .program("/opt/rtrack/bin/rtrack")
///     .dialect(Dialect::Loky)
///     .on_death(|death| eprintln!("tracker {} {}", death.pid, death.end))
///     .build()?;
/// assert_eq!(tracker.pid(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Builder {
    program: Option<PathBuf>,
    command: Option<Vec<OsString>>,
    any_name: bool,
    dialect: Dialect,
    on_death: OnDeath,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("program", &self.program)
            .field("command", &self.command)
            .field("any_name", &self.any_name)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            program: None,
            command: None,
            any_name: false,
            dialect: Dialect::default(),
            on_death: Box::new(warn),
        }
    }

    /// The `rtrack` to start: a path, or a name that is looked for in `PATH`.
    ///
    /// Without this it is the one beside this program's own executable, or else the first in `PATH`.
    /// Entries of `PATH` that are not absolute are passed over. A program that has more rights than
    /// whoever calls it must not leave the choice to the environment: it gives the path.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Any command in place of `rtrack daemon --fd N`: the program and its arguments, in which each
    /// `{fd}` is replaced by the number of the descriptor to read. [`Builder::program`] overrules
    /// which file is executed.
    ///
    /// Python's own trackers before 3.13.11 and 3.14.2 cannot be told each name: of one with a colon, a
    /// newline or a byte beyond ASCII they complain, and forget it. So such a name is refused
    /// ([`ClientError::NotRead`]), unless the command is seen to be an `rtrack daemon`, or a Python whose
    /// version stands in its path and is new enough. Where it is one of them and that is not to be seen,
    /// as behind a wrapper, say so by [`Builder::any_name`]. In loky's dialect colons are no matter, and
    /// its own tracker reads nothing of the rest.
    ///
    /// ```
    /// use rtrack::tracker::service::client::ResourceTracker;
    ///
    /// let launch = "from multiprocessing.resource_tracker import main;main({fd})";
    /// let tracker = ResourceTracker::builder().command(["python3", "-c", launch]).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn command<A: Into<OsString>>(mut self, command: impl IntoIterator<Item = A>) -> Self {
        self.command = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Asserts that the [`Builder::command`] reads names with colons, and the JSON form for those with
    /// newlines and bytes beyond ASCII, as `rtrack daemon` does.
    pub fn any_name(mut self) -> Self {
        self.any_name = true;
        self
    }

    /// What the tracker is told, and, where it is an `rtrack daemon`, asked to understand. The one of
    /// CPython is the default.
    ///
    /// [`Dialect::Rtrack`] has types for all that a program may leave: beside `semaphore` and
    /// `shared_memory`, `message_queue`, `sysv_shm`, `sysv_sem`, `sysv_msg` and `file`.
    ///
    /// ```no_run
    /// use rtrack::tracker::service::client::{Dialect, ResourceTracker};
    ///
    /// let tracker = ResourceTracker::builder().dialect(Dialect::Rtrack).build()?;
    /// # let id = 5;
    /// // After shmget(IPC_PRIVATE, …):
    /// tracker.register(id.to_string(), "sysv_shm")?;
    /// // After mq_open("/jobs", O_CREAT | O_EXCL …):
    /// tracker.register("/jobs", "message_queue")?;
    /// // After binding a socket:
    /// tracker.register("/run/user/1000/jobs.sock", "file")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Is called for each tracker that died, in whichever thread noticed it, after its message has
    /// been sent to the next one. Without this, a line on stderr says what CPython says then.
    ///
    /// It may use the tracker, for instance to register again what the dead one had been told; where
    /// that finds the next one dead as well, it is told when this call is done, and after some such
    /// calls in a row with the next message. Two calls never run at the same time. Where the tracker
    /// is used in signal handlers, this may run in one.
    pub fn on_death(mut self, on_death: impl Fn(&Death) + Send + Sync + 'static) -> Self {
        self.on_death = Box::new(on_death);
        self
    }

    /// Looks for the program, and starts nothing. The tracker will find the environment of now.
    ///
    /// # Errors
    /// The command is none, or this process has too many trackers.
    pub fn build(self) -> Result<ResourceTracker, ClientError> {
        let is_own = self.command.is_none();
        let command = self.command.unwrap_or_else(|| own_command(self.dialect));
        let first = command.first().ok_or(ClientError::EmptyCommand)?;
        let (name, candidates) = match (&self.program, first) {
            (Some(program), _) => (program.clone(), in_path(program)),
            (None, first) if first == OWN => {
                let mut candidates = vec![];
                candidates.extend(beside_this());
                candidates.extend(in_path(Path::new(OWN)));
                (OWN.into(), candidates)
            }
            (None, first) => (first.into(), in_path(Path::new(first))),
        };
        let strings = |strings: Vec<OsString>| -> Result<Vec<CString>, ClientError> {
            let strings = strings.into_iter().map(|string| CString::new(string.into_vec()));
            strings.collect::<Result<_, _>>().map_err(|_| ClientError::NulInCommand)
        };
        let candidates = strings(candidates.into_iter().map(PathBuf::into_os_string).collect())?;
        let arguments = strings(command.iter().map(|argument| with_number(argument)).collect())?;
        let environment = env::vars_os().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        });
        let program = Program::new(candidates, arguments, strings(environment.collect())?);
        let reader = match is_own || self.any_name {
            true => Reader::Dual,
            false => reader_of(&name, &command),
        };
        let speaks = Speech { dialect: self.dialect, reader };
        ResourceTracker::with(Arc::from(name), program, speaks, self.on_death)
    }
}

/// The command of this project.
const OWN: &str = "rtrack";

fn own_command(dialect: Dialect) -> Vec<OsString> {
    let mut command = vec![OWN, "daemon", "--fd", "{fd}"];
    // Older ones know no other and do not know the option.
    if dialect != Dialect::Cpython {
        command.extend(["--protocol", dialect.as_str()]);
    }
    command.into_iter().map(Into::into).collect()
}

/// What is read by a command that somebody else gave, as far as it can be seen.
fn reader_of(program: &Path, command: &[OsString]) -> Reader {
    let words: Vec<Vec<u8>> = command.iter().map(|word| with_number(word).into_vec()).collect();
    let launch = launch::read(program.file_name().map(OsStr::as_bytes), &words.join(&0));
    Reader::of(launch.as_ref(), Version::find(program.as_os_str().as_bytes()))
}

fn beside_this() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.parent()?.join(OWN))
}

/// Where a program may be: at its path, or under its name in the directories of `PATH`.
fn in_path(program: &Path) -> Vec<PathBuf> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .collect()
}

/// `argument` with the number of the tracker's descriptor.
fn with_number(argument: &OsStr) -> OsString {
    const PLACE: &[u8] = b"{fd}";
    let number = INPUT.to_string();
    let mut rest = argument.as_bytes();
    let mut result = Vec::new();
    while let Some((first, behind)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(PLACE) {
            result.extend_from_slice(number.as_bytes());
            rest = behind;
        } else {
            result.push(*first);
            rest = behind;
        }
    }
    OsString::from_vec(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_put_in() {
        for (argument, result) in [("{fd}", "3"), ("main({fd}, {fd})", "main(3, 3)"), ("{f", "{f")]
        {
            assert_eq!(with_number(OsStr::new(argument)), result);
        }
    }

    #[test]
    fn what_a_command_reads() {
        const LAUNCH: &str = "from multiprocessing.resource_tracker import main;main({fd})";
        let python = &["python3", "-c", LAUNCH][..];
        for (program, command, reader) in [
            ("python3", python, Reader::Unknown),
            ("/usr/bin/python3.8", python, Reader::Old),
            ("/opt/3.13.0/bin/python3", python, Reader::Old),
            ("/opt/3.13.10/bin/python3", python, Reader::JsonOnly),
            ("/opt/3.14.2/bin/python3", python, Reader::Dual),
            ("/opt/3.14.2/bin/python3", &["python3", "my.py", "{fd}"], Reader::Unknown),
            ("/opt/rtrack", &["x", "daemon", "--fd", "{fd}"], Reader::Dual),
            ("nice", &["nice", "rtrack", "daemon", "--fd", "{fd}"], Reader::Unknown),
        ] {
            let command: Vec<OsString> = command.iter().map(Into::into).collect();
            assert_eq!(reader_of(Path::new(program), &command), reader, "{program} {command:?}");
        }
    }

    #[test]
    fn only_what_needs_the_option_gets_it() {
        assert_eq!(own_command(Dialect::Cpython), ["rtrack", "daemon", "--fd", "{fd}"]);
        assert_eq!(own_command(Dialect::Any).last().unwrap(), "any");
        assert_eq!(own_command(Dialect::Rtrack)[4..], ["--protocol", "rtrack"]);
    }
}
