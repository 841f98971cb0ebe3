//! `rtrack probe --all`: every tracker of the machine.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde_json::json;

use crate::commands::Status;
use crate::commands::error::{CommandError, Kind as ErrorKind};
use crate::commands::render::trackers::{self, Row};
use crate::commands::render::{columns, document, table};
use crate::commands::ui::Ui;
use crate::commands::values::{plural, show_time};
use crate::tracker::evidence::sight::{Blind, Sight};
use crate::tracker::host::{Clock, boot_id, host_name};
use crate::tracker::service::client::everywhere::{Everywhere, look};
use crate::tracker::survey::owner_name;

/// Where procfs is.
const PROC: &str = "/proc";

/// The options of `rtrack probe --all`
#[derive(Debug, clap::Args)]
pub(super) struct AllArgs {
    /// List every tracker of the machine, and who feeds it
    #[arg(long, conflicts_with_all = ["fd", "pid"])]
    pub(super) all: bool,

    /// With --all, print these columns, e.g. pid,kind,clients
    #[arg(
        short,
        long,
        value_delimiter = ',',
        value_name = "COLUMNS",
        long_help = columns_help(),
        requires = "all",
        conflicts_with_all = ["json", "fd", "pid"]
    )]
    output: Vec<String>,

    /// With --all, print no line of headings
    #[arg(long, requires = "all", conflicts_with_all = ["fd", "pid"])]
    no_headings: bool,

    /// With --all, exit with status 3 if not everything could be seen
    #[arg(long, requires = "all", conflicts_with_all = ["fd", "pid"])]
    strict: bool,

    /// With --all, assert that nothing outside this PID namespace feeds a tracker
    #[arg(long, requires = "all", conflicts_with_all = ["fd", "pid"])]
    assume_complete: bool,
}

fn columns_help() -> String {
    columns::help(trackers::COLUMNS, "pid,kind,clients")
}

/// Lists the trackers.
///
/// # Errors
/// The command line is wrong, or stdout cannot be written.
pub(super) fn run(args: &AllArgs, json: bool, ui: &Ui) -> Result<Status, CommandError> {
    let chosen = columns::chosen(trackers::COLUMNS, &args.output, &trackers::DEFAULT)?;
    let proc = Path::new(PROC);
    let now = (Clock::default().wall)();
    let found = look(proc, args.assume_complete);
    let names = names(&found);
    let rows: Vec<Row<'_>> =
        found.trackers.iter().map(|tracker| Row { tracker, names: &names, now }).collect();
    let look = table::Look {
        width: ui.stdout_is_terminal().then(table::terminal_width).flatten(),
        colored: ui.colored(),
        headings: !args.no_headings,
    };
    ui.answer(|out| {
        if !json {
            return trackers::write(out, &rows, &chosen, look);
        }
        let answer = json!({
            "schema": "rtrack.trackers/1",
            "host": host_name(),
            "boot_id": Some(boot_id(proc)).filter(|id| !id.is_empty()),
            "taken_at": show_time(now),
            "sight": sight(&found),
            "trackers": rows.iter().map(trackers::document).collect::<Vec<_>>(),
        });
        document::write(out, &answer)
    })?;
    let partial = say_what_was_not_seen(&found, ui);
    Ok(if partial && args.strict { ErrorKind::Failed.status() } else { 0 })
}

/// The names of the users that are met. A name service may take its time: each is asked for once.
fn names(found: &Everywhere) -> HashMap<u32, String> {
    let clients = found.trackers.iter().flat_map(|tracker| tracker.clients.iter().flatten());
    let mut uids: BTreeSet<u32> = clients.map(|client| client.uid).collect();
    uids.extend(found.trackers.iter().map(|tracker| tracker.uid));
    uids.into_iter().map(|uid| (uid, owner_name(uid))).collect()
}

/// What was visible, for programs.
fn sight(found: &Everywhere) -> serde_json::Value {
    let Sight { processes, holders, seen, unreadable, assumed_complete, unseen: _ } = &found.sight;
    let word = |complete: bool| if complete { "complete" } else { "partial" };
    json!({
        "processes": word(processes.is_empty() && found.nameless == 0),
        "descriptors": word(holders.is_empty()),
        "reasons": found.sight.reasons(),
        "seen": seen,
        "unreadable": unreadable,
        "nameless": found.nameless,
        "assumed_complete": assumed_complete,
    })
}

/// Says it, and whether there is something to say.
fn say_what_was_not_seen(found: &Everywhere, ui: &Ui) -> bool {
    let sight = &found.sight;
    if sight.assumed_complete {
        ui.note("note: assuming that nothing outside this PID namespace feeds a tracker");
    }
    if found.nameless > 0 {
        let count = plural(found.nameless, "process does not say", "processes do not say");
        ui.note(format_args!("note: {count} what was started: each may be a tracker"));
    }
    let reasons: Vec<&str> = sight.reasons().iter().map(|blind| blind.says()).collect();
    if reasons.is_empty() {
        return found.nameless > 0;
    }
    let count = plural(sight.unreadable, "process", "processes");
    ui.note(format_args!(
        "note: not everything could be seen: {} ({count} could not be looked into): there may be more clients, \
         and whether a tracker is orphaned is not known",
        reasons.join("; ")
    ));
    if sight.processes.contains(&Blind::PidNamespace) {
        ui.note("hint: --assume-complete if nothing outside this PID namespace feeds a tracker");
    } else if !nix::unistd::geteuid().is_root() {
        ui.note("hint: root sees all processes");
    }
    true
}
