//! `rtrack probe`: is a tracker alive? Which are there?

mod everywhere;

use std::path::Path;

use serde::Serialize;

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::render::document;
use super::target::{TargetArgs, not_told, unreachable};
use super::ui::Ui;
use super::values;
use crate::tracker::resource::escape;
use crate::tracker::service::client::{
    Connection, ConnectionError, Family, Life, Probe, TargetError, Tracker, asking,
};

/// Is a tracker alive? The exit status is the answer
///
/// Looks at the pipe and at who has it open. Nothing is written to it, so nothing is disturbed.
///
/// Exit status: 0 alive, 1 dead, 2 the command line is wrong, 3 it cannot be told. With --all: 0, or 3
/// with --strict if not everything could be seen.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct ProbeArgs {
    #[command(flatten)]
    target: TargetArgs,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    all: everywhere::AllArgs,
}

/// The answer for programs.
#[derive(Debug, Serialize)]
struct Answer {
    schema: &'static str,
    /// Nothing when it cannot be told.
    alive: Option<bool>,
    pid: Option<i32>,
    kind: Option<&'static str>,
    /// The version of Python that runs it, as far as its path tells.
    version: Option<String>,
    /// When the process started.
    since: Option<String>,
    stopped: Option<bool>,
    /// How many processes read the pipe; nothing when not all of them could be seen.
    readers: Option<usize>,
    /// How many processes hold the write end; nothing when not all of them could be seen.
    writers: Option<usize>,
    /// How many of them were seen.
    writers_seen: Option<usize>,
    /// How many bytes wait to be read.
    queued: Option<u64>,
    /// The same as a sentence.
    says: String,
    /// Of an `rtrack daemon` that can be asked: what it answers.
    tracker: Option<serde_json::Value>,
}

/// Probes.
///
/// # Errors
/// The command line is wrong, or stdout could not be written.
pub fn run(args: &ProbeArgs, ui: &Ui) -> Result<Status, CommandError> {
    if args.all.all {
        return everywhere::run(&args.all, args.json, ui);
    }
    if let Some(path) = args.target.socket() {
        return of_socket(&path, args.json, ui);
    }
    let result = args.target.open()?.and_then(|target| {
        Probe::of(&target).map_err(|error| TargetError::Os {
            operation: "poll",
            path: "the pipe".into(),
            error,
        })
    });
    // One that listens reads no pipe.
    if let Err(TargetError::NoPipe(pid)) = &result
        && let Some(answer) = of_listener(*pid)
    {
        return tell(Life::Alive, &answer, args.json, ui);
    }
    let (life, answer) = match result {
        Ok(probe) => (probe.life, of_probe(&probe)),
        Err(error) => {
            let error = unreachable(error);
            let life = if error.kind == ErrorKind::No { Life::Dead } else { Life::Unknown };
            if life == Life::Unknown && !args.json {
                return Err(CommandError { source: error.source.context("cannot tell"), ..error });
            }
            (life, of_life(life, format!("{:#}", error.source)))
        }
    };
    tell(life, &answer, args.json, ui)
}

fn registered(count: usize) -> String {
    values::plural(count, "name is registered", "names are registered")
}

/// What a daemon that listens, and can be asked, answers.
fn of_listener(pid: i32) -> Option<Answer> {
    let (_, state) = asking::ask_process(Path::new("/proc"), pid).ok()?;
    let count = registered(state.registered.len());
    let tracker = Tracker::look(pid);
    Some(Answer {
        pid: Some(pid),
        kind: Some(Family::Rtrack.as_str()),
        since: tracker.and_then(|tracker| tracker.since).map(|since| since.to_string()),
        tracker: Some(state.document()),
        ..of_life(
            Life::Alive,
            format!("process {pid} (rtrack) listens on a socket, and answers; {count}"),
        )
    })
}

fn tell(life: Life, answer: &Answer, json: bool, ui: &Ui) -> Result<Status, CommandError> {
    ui.answer(|out| {
        if json {
            document::write(out, &serde_json::to_value(answer)?)
        } else {
            writeln!(out, "{}", answer.says)
        }
    })?;
    Ok(match life {
        Life::Alive => 0,
        Life::Dead => ErrorKind::No.status(),
        Life::Unknown => ErrorKind::Failed.status(),
    })
}

/// A tracker on a socket is asked, and answers.
fn of_socket(path: &Path, json: bool, ui: &Ui) -> Result<Status, CommandError> {
    let asked = Connection::open(path).and_then(|connection| {
        connection.probe()?;
        Ok(connection.daemon())
    });
    let (life, answer) = match asked {
        Ok(pid) => {
            let tracker = pid.and_then(Tracker::look);
            let state = pid
                .and_then(|pid| asking::ask_process(Path::new("/proc"), pid).ok())
                .map(|(_, state)| state);
            let path = escape(path.as_os_str().as_encoded_bytes());
            let who = match &tracker {
                Some(tracker) => {
                    let since = tracker.since.map(|since| format!(" since {since}"));
                    format!("process {}{}", tracker.pid, since.unwrap_or_default())
                }
                None => "a process that cannot be seen from here".to_owned(),
            };
            let count = state.as_ref().map(|state| state.registered.len());
            let more = count.map(|count| format!("; {}", registered(count)));
            let more = more.unwrap_or_default();
            let answer = Answer {
                tracker: state.map(|state| state.document()),
                pid,
                kind: Some(Family::Rtrack.as_str()),
                since: tracker.and_then(|tracker| tracker.since).map(|since| since.to_string()),
                ..of_life(Life::Alive, format!("{who} listens at {path}, and answers{more}"))
            };
            (Life::Alive, answer)
        }
        Err(error @ ConnectionError::Dead { .. }) => {
            (Life::Dead, of_life(Life::Dead, error.to_string()))
        }
        Err(error) if json => (Life::Unknown, of_life(Life::Unknown, error.to_string())),
        Err(error) => {
            let error = not_told(error);
            return Err(CommandError { source: error.source.context("cannot tell"), ..error });
        }
    };
    tell(life, &answer, json, ui)
}

/// An answer of which only this much is known.
fn of_life(life: Life, why: String) -> Answer {
    let (alive, word) = match life {
        Life::Alive => (Some(true), "alive"),
        Life::Dead => (Some(false), "dead"),
        Life::Unknown => (None, "cannot tell"),
    };
    Answer {
        schema: "rtrack.probe/1",
        alive,
        pid: None,
        kind: None,
        version: None,
        since: None,
        stopped: None,
        readers: None,
        writers: None,
        writers_seen: None,
        queued: None,
        says: format!("{word}: {why}"),
        tracker: None,
    }
}

fn of_probe(probe: &Probe) -> Answer {
    let ends = probe.ends.as_ref();
    let complete = ends.is_some_and(|ends| ends.complete());
    let tracker = probe.tracker.as_ref();
    let writers_seen = ends.map(|ends| ends.writers);
    let mut says = match (probe.life, tracker) {
        (Life::Alive, Some(tracker)) => reader(tracker),
        (Life::Alive, None) => {
            "the pipe is read, by a process that cannot be seen from here".to_owned()
        }
        (Life::Dead, _) => "no tracker reads the pipe".to_owned(),
        (Life::Unknown, _) => {
            "the pipe is read, but only by processes that also write to it".to_owned()
        }
    };
    if let Some(count) = writers_seen {
        says.push_str(&match (count, complete) {
            (0, _) => "; no other process is seen to hold the write end".to_owned(),
            (1, true) => "; 1 other process holds the write end".to_owned(),
            (_, true) => format!("; {count} other processes hold the write end"),
            (_, false) => format!("; at least {count} other processes hold the write end"),
        });
    }
    if let Some(ends) = ends {
        if ends.hidden {
            says.push_str(" (not all processes are visible here)");
        } else if ends.unreadable > 0 {
            let count = ends.unreadable;
            says.push_str(&format!(" ({count} processes could not be looked into)"));
        }
    }
    if let Some(bytes) = probe.queued {
        says.push_str(&format!("; {bytes} bytes are queued"));
    }
    let state = tracker
        .filter(|tracker| tracker.family == Some(Family::Rtrack))
        .and_then(|tracker| asking::ask_process(std::path::Path::new("/proc"), tracker.pid).ok())
        .map(|(_, state)| state);
    if let Some(state) = &state {
        says.push_str(&format!("; {}", registered(state.registered.len())));
    }
    Answer {
        pid: tracker.map(|tracker| tracker.pid),
        kind: tracker.map(Tracker::kind).or((probe.life == Life::Alive).then_some("unknown")),
        version: tracker.and_then(|tracker| tracker.version).map(|version| version.to_string()),
        since: tracker.and_then(|tracker| tracker.since).map(|since| since.to_string()),
        stopped: tracker.map(|tracker| tracker.stopped),
        readers: ends.filter(|_| complete).map(|ends| ends.readers.len()),
        writers: writers_seen.filter(|_| complete),
        writers_seen,
        queued: probe.queued,
        tracker: state.map(|state| state.document()),
        ..of_life(probe.life, says)
    }
}

/// What reads the pipe, in words.
fn reader(tracker: &Tracker) -> String {
    let Tracker { pid, family, version, since, comm, stopped, .. } = tracker;
    let what = match (family, version) {
        (None, _) => format!("{}, which is no tracker that is known here", escape(comm.as_bytes())),
        (Some(family), Some(version)) => format!("{} on Python {version}", family.as_str()),
        (Some(family), None) => family.as_str().to_owned(),
    };
    let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
    let stopped = if *stopped { ", but it is stopped" } else { "" };
    format!("process {pid} ({what}) reads the pipe{since}{stopped}")
}
