//! Running rtrack and other programs to their end.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{check, sandbox, validate};

/// `rtrack ARGUMENTS…`, not yet started.
pub(crate) fn rtrack<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(sandbox::binary());
    command.args(arguments);
    command
}

/// How long one program may take before it is killed; the case fails then.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the cases do with a `Command`.
pub(crate) trait Finish {
    /// Runs it to its end with an empty stdin, keeping what it printed (where its stdout or
    /// stderr is sent elsewhere, set that up and use `status()` instead).
    fn finish(&mut self) -> Finished;
    /// Runs it as another user, in that user's group only (needs real root).
    fn as_user(&mut self, uid: u32) -> &mut Self;
}

impl Finish for Command {
    fn finish(&mut self) -> Finished {
        let shown = format!("{self:?}");
        self.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        let pid = i32::try_from(child.id()).unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let (ended, end) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let late = end.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
                if late {
                    // SAFETY: the child has not been waited for yet, so the pid is still its own.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
                late
            });
            let errors = scope.spawn(move || {
                let mut text = Vec::new();
                stderr.read_to_end(&mut text).unwrap();
                text
            });
            let mut answer = Vec::new();
            stdout.read_to_end(&mut answer).unwrap();
            let errors = String::from_utf8_lossy(&errors.join().unwrap()).into_owned();
            drop(ended);
            let late = watch.join().unwrap();
            let status = child.wait().unwrap();
            assert!(!late, "{shown} did not end within {PATIENCE:?}; stderr:\n{errors}");
            Finished {
                command: shown,
                code: status.code(),
                signal: status.signal(),
                stdout: answer,
                stderr: errors,
            }
        })
    }

    fn as_user(&mut self, uid: u32) -> &mut Self {
        self.uid(uid).gid(uid).env("XDG_STATE_HOME", sandbox::state_of(uid))
    }
}

/// A program that ran to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    command: String,
    /// The exit status, unless a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// What it printed, as bytes.
    pub(crate) stdout: Vec<u8>,
    /// What it said on stderr.
    pub(crate) stderr: String,
}

impl Finished {
    /// Fails the case unless the program ended with `code`.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        let Self { command, signal, stderr, .. } = &self;
        assert!(
            self.code == Some(code),
            "{command}: expected status {code}, found {:?}, signal {signal:?}\n{}{stderr}",
            self.code,
            self.text(),
        );
        self
    }

    /// stdout as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// stdout as a JSON document, checked against the schema that it names.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let document: Value = serde_json::from_slice(&self.stdout).unwrap_or_else(|error| {
            panic!("{}: not JSON: {error}\n{}\n{}", self.command, self.text(), self.stderr)
        });
        validate(&document);
        document
    }
}

/// What `rtrack list` shows, as a document, with no grace for young objects.
#[track_caller]
pub(crate) fn inventory() -> Value {
    rtrack(["list", "--json", "--grace", "0s"]).finish().expect(0).json()
}

/// `rtrack reap --yes` of everything that it can be asked for, with no grace for young objects;
/// not yet started.
pub(crate) fn reap_all() -> Command {
    rtrack(["reap", "--yes", "--json", "--grace", "0s", "--verdict", "orphaned,unclaimed"])
}

/// The verdict on `name` in a document, and the reason for it.
#[track_caller]
pub(crate) fn verdict<'a>(document: &'a Value, name: &str) -> (&'a str, &'a str) {
    let object = listed(document, name);
    (object["verdict"].as_str().unwrap(), object["reason"].as_str().unwrap())
}

/// The codes of the evidence about `name` in a document.
#[track_caller]
pub(crate) fn evidence<'a>(document: &'a Value, name: &str) -> Vec<&'a str> {
    let evidence = listed(document, name)["evidence"].as_array().unwrap();
    evidence.iter().map(|piece| piece["code"].as_str().unwrap()).collect()
}

/// The object called `name` in a document of `list` or `reap`.
#[track_caller]
pub(crate) fn listed<'a>(document: &'a Value, name: &str) -> &'a Value {
    let objects = document["objects"].as_array().unwrap();
    objects
        .iter()
        .find(|object| object["name"] == name || object["file"] == name)
        .unwrap_or_else(|| panic!("{name} is not in {document:#}"))
}

/// What tests of inherited descriptors do with a `Command`.
pub(crate) trait Inherit {
    /// Has the program find `file` as its descriptor `number`.
    fn inherit(&mut self, file: impl Into<OwnedFd>, number: RawFd) -> &mut Self;
}

impl Inherit for Command {
    fn inherit(&mut self, file: impl Into<OwnedFd>, number: RawFd) -> &mut Self {
        let file = file.into();
        // SAFETY: the closure runs between fork and exec and makes system calls only.
        unsafe {
            self.pre_exec(move || {
                let from = file.as_raw_fd();
                if from == number {
                    check(libc::fcntl(from, libc::F_SETFD, 0)).map(drop)
                } else {
                    check(libc::dup2(from, number)).map(drop)
                }
            })
        }
    }
}
