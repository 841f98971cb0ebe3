//! `rtrack limits`: what the kernel allows of IPC objects, and how much of it is used.

use std::path::Path;

use serde_json::json;

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::render::limits::{self, Row, THRESHOLD};
use super::render::{columns, document, table};
use super::ui::Ui;
use super::values::show_time;
use crate::tracker::host::{Clock, Host, boot_id, host_name};
use crate::tracker::limits::read;

/// Where procfs is.
const PROC: &str = "/proc";

/// The arguments of `rtrack limits`.
#[derive(Debug, clap::Args)]
pub struct LimitsArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Print these columns, e.g. name,used,limit
    #[arg(
        short,
        long,
        value_delimiter = ',',
        value_name = "COLUMNS",
        long_help = columns_help(),
        conflicts_with = "json"
    )]
    output: Vec<String>,

    /// Print no line of headings
    #[arg(long)]
    no_headings: bool,

    /// Exit with status 1 if more of a limit is used than the threshold
    #[arg(long)]
    check: bool,

    /// Above how many percent of use a limit is marked
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = THRESHOLD,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    threshold: u8,
}

fn columns_help() -> String {
    columns::help(limits::COLUMNS, "name,used,limit")
}

/// Shows the limits.
///
/// # Errors
/// The command line is wrong, or stdout cannot be written.
pub fn run(args: &LimitsArgs, ui: &Ui) -> Result<Status, CommandError> {
    let chosen = columns::chosen(limits::COLUMNS, &args.output, &limits::DEFAULT)?;
    let clock = Clock::default();
    let taken_at = (clock.wall)();
    let proc = Path::new(PROC);
    let all = read(proc, Host::real().as_ref());
    let rows: Vec<Row<'_>> =
        all.iter().map(|limit| Row { limit, threshold: args.threshold }).collect();
    let look = table::Look {
        width: ui.stdout_is_terminal().then(table::terminal_width).flatten(),
        colored: ui.colored(),
        headings: !args.no_headings,
    };
    ui.answer(|out| {
        if !args.json {
            return limits::write(out, &rows, &chosen, look);
        }
        let answer = json!({
            "schema": "rtrack.limits/1",
            "host": host_name(),
            "boot_id": Some(boot_id(proc)).filter(|id| !id.is_empty()),
            "taken_at": show_time(taken_at),
            "threshold": args.threshold,
            "limits": rows.iter().map(limits::document).collect::<Vec<_>>(),
        });
        document::write(out, &answer)
    })?;
    let mut unknown = false;
    for limit in &all {
        if let Some(why) = limit.unknown() {
            ui.line(format_args!("error: {}: {why}", limit.name));
            unknown = true;
        }
    }
    let above = all.iter().any(|limit| limit.is_above(args.threshold));
    Ok(if unknown {
        ErrorKind::Failed.status()
    } else if args.check && above {
        ErrorKind::No.status()
    } else {
        0
    })
}
