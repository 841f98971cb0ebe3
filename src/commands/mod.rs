//! The command line (clap derive) and the dispatch.

pub mod completions;
pub mod daemon;
pub mod error;
pub mod limits;
pub mod list;
pub mod log;
pub mod probe;
pub mod producers;
pub mod reap;
pub mod render;
pub mod restore;
pub mod selecting;
pub mod send;
pub mod show;
pub mod surveying;
pub mod target;
pub mod ui;
pub mod values;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::{CommandError, Kind};
use ui::{ColorChoice, Ui};

use crate::tracker::resource::escape;

/// Inspect and reap leaked IPC resources, with proof
#[derive(Debug, Parser)]
#[command(name = "rtrack", version, max_term_width = 100)]
pub struct Cli {
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: ColorChoice,

    /// Print answers, warnings and errors, but no notes and summaries
    #[arg(short, long, global = true)]
    pub quiet: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Daemon(daemon::DaemonArgs),
    Send(send::SendArgs),
    Probe(probe::ProbeArgs),
    /// List IPC objects: size, owner, holders, verdict and why
    List(list::ListArgs),
    /// Show everything that is known about an object
    Show(show::ShowArgs),
    /// Remove what is proven to be orphaned
    Reap(reap::ReapArgs),
    /// Put back what reap --archive saved
    Restore(restore::RestoreArgs),
    /// Show what the kernel allows of IPC objects, and how much of it is used
    Limits(limits::LimitsArgs),
    /// Show what was reaped: when, by whom and why
    Log(log::LogArgs),
    /// List the known producers, explain a name, or check a catalogue file
    Producers(producers::ProducersArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
}

/// What a command that ran to its end tells the caller: 0, or a status of its own.
pub type Status = u8;

/// Parses `arguments`, runs the command, and says what went wrong on stderr.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(args) = daemon::parse_plain(&arguments) {
        return finish(daemon::run(&args), || Ui::new(false, ColorChoice::default()));
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&arguments, &error),
    };
    let ui = Ui::new(cli.quiet, cli.color);
    let result = match cli.command {
        Command::Daemon(args) => daemon::run(&args),
        Command::Send(args) => send::run(&args, &ui),
        Command::Probe(args) => probe::run(&args, &ui),
        Command::List(args) => list::run(&args, &ui),
        Command::Show(args) => show::run(&args, &ui),
        Command::Reap(args) => reap::run(&args, &ui),
        Command::Restore(args) => restore::run(&args, &ui),
        Command::Limits(args) => limits::run(&args, &ui),
        Command::Log(args) => log::run(&args, &ui),
        Command::Producers(args) => producers::run(&args, &ui),
        Command::Completions(args) => completions::run(&args, &ui),
    };
    finish(result, || ui)
}

/// The exit status, once an error has been said: `error: …` and `hint: …`.
fn finish(result: Result<Status, CommandError>, ui: impl FnOnce() -> Ui) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|error| {
        ui().errors(std::slice::from_ref(&error));
        error.kind.status()
    }))
}

/// Prints help, the version, or what is wrong with the command line.
fn refuse(arguments: &[OsString], error: &clap::Error) -> ExitCode {
    // A closed stream has nobody left to be told.
    if !error.use_stderr() {
        error.print().unwrap_or(());
        return ExitCode::SUCCESS;
    }
    // What it quotes may be the name of a file that a pattern of the shell brought in.
    for line in error.render().to_string().lines() {
        writeln!(std::io::stderr().lock(), "{}", escape(line.as_bytes())).unwrap_or(());
    }
    let mut words = arguments.iter().skip(1);
    let mut command = None;
    while let Some(word) = words.next() {
        if word == "--color" {
            // Its value is the next word.
            words.next();
        } else if !word.as_encoded_bytes().starts_with(b"-") {
            command = Some(word);
            break;
        }
    }
    let kind = match command {
        Some(name) if name == "daemon" => Kind::NotStarted,
        _ => Kind::Usage,
    };
    ExitCode::from(kind.status())
}
