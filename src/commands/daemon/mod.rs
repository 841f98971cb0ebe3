//! `rtrack daemon`: the resource tracker.

mod listen;
mod patience;
mod plain;
mod record;
mod report;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::commands::Status;
use crate::commands::error::{CommandError, Kind};
use crate::tracker::journal::JournalError;
use crate::tracker::service::channel::{self, TakeError};
use crate::tracker::service::control::Control;
use crate::tracker::service::dialect::Dialect;
use crate::tracker::service::leaks::Care;
use crate::tracker::service::ledger::{Inheritance, Ledger};
use crate::tracker::service::server::{self, Options, Told};
use crate::tracker::sys;

pub use plain::parse as parse_plain;

/// Read registrations from a pipe until every writer is gone, then remove what is left
///
/// A resource tracker, compatible with that of CPython's multiprocessing: clients write
/// `REGISTER:NAME:RTYPE` and `UNREGISTER:NAME:RTYPE` lines, or the same as JSON. At the end of
/// input, what was registered and not taken back is removed. RTYPE is semaphore, shared_memory,
/// or one of the test types noop and dummy.
///
/// With --protocol loky it is that of loky and joblib: RTYPE is file, folder (removed with all
/// that is in it) or semlock, registrations are counted, and `MAYBE_UNLINK:NAME:RTYPE` takes one
/// back and removes with the last. With any it is both.
///
/// With --protocol rtrack it is for whatever a shell script or a program makes: RTYPE is that of
/// CPython's, or message_queue (POSIX), sysv_shm, sysv_sem or sysv_msg (by the id that ipcs
/// shows), or file (by its path).
///
/// SIGINT, SIGTERM, SIGHUP and SIGQUIT are ignored. SIGUSR1 lists on stderr what is registered.
/// Every inherited descriptor but N and stderr is closed, and with --report - stdout is kept, too.
///
/// Exit status: 0 nothing was left, 1 leftovers were removed or are in use, 2 something could not be removed,
/// 3 a line was bad (what happened last decides), 64 the tracker did not start.
#[derive(Debug, PartialEq, Eq, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct DaemonArgs {
    /// The descriptor to read, usually the read end of a pipe
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    #[arg(required_unless_present = "listen", conflicts_with = "listen")]
    fd: Option<i32>,

    #[command(flatten)]
    listen: listen::ListenArgs,

    /// Whose tracker it is
    #[arg(long, value_enum, default_value_t, value_name = "DIALECT")]
    protocol: Dialect,

    /// Tell every registration and removal on stderr, as loky's tracker does
    #[arg(long)]
    verbose: bool,

    /// Do not warn of what was left and what could not be removed, as Python does not when it is
    /// started with -W ignore; bad lines are still reported
    #[arg(long)]
    no_warnings: bool,

    /// Say nothing of a registered file that is gone when it is to be removed, as joblib's tracker does
    #[arg(long, conflicts_with = "listen")]
    missing_files_ok: bool,

    /// Record what is removed in this file, a JSON object a line; if that fails, it is warned of
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,

    /// Tell what is registered to who connects to a unix socket of this name: rtrack probe --json and
    /// rtrack list --tracker do, and list takes what is registered for claimed. For the daemon's own user and root
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Write down what is registered in this file, so that it outlives a kill -9 of the daemon: the next one with the
    /// same journal takes it over, and rtrack reap --journal cleans it by hand
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Leave what somebody still uses, and warn of it with who does: what the kernel has a write lease for is
    /// asked about by one, everything else, and folders, by a look at all processes. What cannot be told stays.
    /// It counts as left, not as a failure
    #[arg(long)]
    keep_used: bool,

    /// Nothing outside this PID namespace uses what is registered
    #[arg(long, requires = "keep_used")]
    assume_complete: bool,

    /// Append what was left, and what became of it, to this file, as JSON: at the end, or, with --listen, a line for
    /// each owner that left something. - is standard output. If that fails, it is warned of
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Write a newline to this descriptor, and close it, as soon as messages are read
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(i32).range(0..))]
    ready_fd: Option<i32>,

    /// What was to be started instead. Nothing comes of it, but it stands in the command line, by which
    /// some programs tell a tracker from workers that they count or kill
    #[arg(long, value_name = "COMMAND", conflicts_with = "listen")]
    in_place_of: Option<OsString>,
}

/// Runs the tracker to its end.
///
/// # Errors
/// It could not start: status 64.
pub fn run(args: &DaemonArgs) -> Result<Status, CommandError> {
    // That nobody listened for a while is no reason not to say what has leaked.
    let (mut complaints, mut last_words) = (PatientStderr::new(), PatientStderr::new());
    if let Some(path) = &args.listen.listen {
        let bound = listen::bind(path, args)?;
        let records = Records::open(args, &mut complaints, true);
        let control = open_control(args)?;
        let (mut ledger, inheritance) = open_ledger(args)?;
        let ledger = (&mut ledger, inheritance);
        let status = listen::run(bound, args, &mut complaints, records, control.as_ref(), ledger);
        close_control(control);
        return status;
    }
    let fd = args.fd.unwrap_or(-1);
    if fd == 1 && args.reports_to_stdout() {
        return Err(not_started(anyhow::anyhow!("descriptor 1 cannot be read and be written to"))
            .hint("pass the pipe under another number, or name a file to --report"));
    }
    server::ignore_signals()
        .map_err(|error| not_started(anyhow::Error::new(error).context("set up signals")))?;
    let channel = channel::take(fd, args.ready_fd, args.reports_to_stdout()).map_err(|error| {
        let hint = hint(&error, fd);
        not_started(error.into()).hint(hint)
    })?;
    // Only now: everything that was open before is closed.
    let mut records = Records::open(args, &mut complaints, false);
    let control = open_control(args)?;
    let (mut ledger, inheritance) = open_ledger(args)?;
    let options = Options {
        dialect: args.protocol,
        verbose: args.verbose,
        warnings: !args.no_warnings,
        missing_files_ok: args.missing_files_ok,
        care: args.care(),
    };
    let mut tell = |told| records.take(told);
    let recorder: Option<server::Recorder<'_>> =
        if args.audit.is_some() || args.report.is_some() { Some(&mut tell) } else { None };
    let (complaints, last_words) = (&mut complaints, &mut last_words);
    let status = server::run(
        &channel,
        options,
        complaints,
        last_words,
        recorder,
        control.as_ref(),
        (&mut ledger, inheritance),
    );
    close_control(control);
    Ok(status.code())
}

fn not_started(error: anyhow::Error) -> CommandError {
    CommandError::new(Kind::NotStarted, error)
}

fn open_control(args: &DaemonArgs) -> Result<Option<Control>, CommandError> {
    let control = args.control.as_deref().map(Control::new).transpose();
    control.map_err(|error| not_started(error.into()))
}

fn open_ledger(args: &DaemonArgs) -> Result<(Ledger, Inheritance), CommandError> {
    let Some(path) = &args.journal else {
        return Ok((Ledger::default(), Inheritance { next_owner: 1, ..Inheritance::default() }));
    };
    Ledger::open(path).map_err(|error| {
        let hint = match &error {
            JournalError::InUse { .. } => Some("a live daemon has it: give this one another"),
            JournalError::Format { .. } => Some("it is left as it is; give another file"),
            _ => None,
        };
        let error = not_started(error.into());
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    })
}

fn close_control(control: Option<Control>) {
    // The next daemon replaces a name that stays.
    control.map_or(Ok(()), Control::close).unwrap_or(());
}

impl DaemonArgs {
    fn care(&self) -> Care {
        Care {
            keep_used: self.keep_used,
            report: self.report.is_some(),
            assume_complete: self.assume_complete,
        }
    }

    fn reports_to_stdout(&self) -> bool {
        self.report.as_deref().is_some_and(|path| path.as_os_str() == "-")
    }
}

/// What is told of removals, where that is asked for.
struct Records {
    record: Option<record::Record>,
    report: Option<report::Report>,
}

impl Records {
    /// Opens them, and says what went wrong with that.
    fn open(args: &DaemonArgs, complaints: &mut PatientStderr, lines: bool) -> Self {
        let mut warn = |warning: Option<String>| {
            if let Some(warning) = warning {
                server::warn(complaints, format_args!("{warning}"));
            }
        };
        let record = args.audit.as_deref().map(|path| {
            let (record, warning) = record::Record::open(path);
            warn(warning);
            record
        });
        let report = args.report.as_deref().map(|path| {
            let (report, warning) = report::Report::open(path, args.care(), lines);
            warn(warning);
            report
        });
        Self { record, report }
    }

    /// Tells of removals; what has to be said of that is answered.
    fn take(&mut self, told: Told) -> Vec<String> {
        let reported = self.report.as_mut().and_then(|report| report.take(&told));
        let recorded = self.record.as_mut().and_then(|record| record.write(told.removals));
        recorded.into_iter().chain(reported).collect()
    }
}

fn hint(error: &TakeError, fd: i32) -> String {
    match error {
        TakeError::NotReadable(_) => {
            format!("pass the end that is read: rtrack daemon --fd {fd} {fd}<FIFO")
        }
        TakeError::NotTold { .. } => "pass the end of a pipe that is written to".to_owned(),
        _ => format!("open a pipe or FIFO under that number: rtrack daemon --fd {fd} {fd}<FIFO"),
    }
}

/// stderr for a process that must not be held up by it. What it does not take within [`STALL`] is
/// dropped, as is everything for as long again; [`PATIENCE`] bounds the waiting of the whole run.
/// Errors are nobody's concern.
struct PatientStderr {
    buffer: Vec<u8>,
    /// When it last took nothing.
    stalled: Option<Instant>,
    left: Duration,
}

/// How long one piece may take, and how long nothing is tried after one was not taken.
const STALL: Duration = Duration::from_secs(1);

/// How long is waited in all for whoever should read stderr: while reading, and once more at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes that take no longer are not counted as waiting.
const AT_ONCE: Duration = Duration::from_millis(5);

/// What a pipe takes in one piece or not at all: `PIPE_BUF` of pipe(7).
const PIECE: usize = 4096;

impl PatientStderr {
    fn new() -> Self {
        Self { buffer: Vec::new(), stalled: None, left: PATIENCE }
    }

    /// Writes a piece, or gives up and drops it.
    fn deliver(&mut self, mut piece: &[u8]) {
        let resting = self.stalled.is_some_and(|since| since.elapsed() < STALL);
        if resting || self.left.is_zero() || !sys::was_open_at_start(2) {
            return;
        }
        let began = Instant::now();
        let patience = STALL.min(self.left);
        while !piece.is_empty() {
            match write_within(piece, patience.saturating_sub(began.elapsed())) {
                Ok(length) => piece = piece.get(length..).unwrap_or_default(),
                Err(Errno::EINTR) if began.elapsed() < patience => {}
                Err(_) => break,
            }
        }
        let took = began.elapsed();
        self.stalled = (!piece.is_empty() && took > AT_ONCE).then(Instant::now);
        if took > AT_ONCE {
            self.left = self.left.saturating_sub(took);
        }
    }
}

/// Writes what stderr takes, waiting for it to take anything.
fn write_within(piece: &[u8], patience: Duration) -> nix::Result<usize> {
    let stderr = io::stderr();
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    let mut target = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut target, timeout)? == 0 {
        return Err(Errno::EAGAIN);
    }
    // Somebody else may fill the pipe between the question and the write.
    sys::interrupted(|| nix::unistd::write(&stderr, piece))
}

impl Write for PatientStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE.saturating_sub(self.buffer.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.deliver(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }
}
