//! `rtrack send`: messages to a tracker by hand.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, anyhow};

use super::Status;
use super::error::{CommandError, Kind as ErrorKind};
use super::target::{TargetArgs, not_told, unreachable};
use super::ui::Ui;
use crate::tracker::resource::escape;
use crate::tracker::service::client::{
    Connection, Life, Probe, Reader, SendError, Target, Tracker,
};
use crate::tracker::service::dialect::{Command, Dialect, Rtype};
use crate::tracker::service::protocol::{self, LINE_MAX, LineError, encode};
use crate::tracker::sys;

/// Send one message to a tracker, or a stream of them
///
///   rtrack send REGISTER NAME RTYPE      remove NAME when the last client is gone
///   rtrack send UNREGISTER NAME RTYPE    no, do not
///   rtrack send MAYBE_UNLINK NAME RTYPE  one user less; with the last one it is removed
///   rtrack send PROBE                    nothing; fails if nobody reads
///   rtrack send -                        one message for each line of stdin
///
/// RTYPE is semaphore or shared_memory. The trackers of loky and joblib know semlock, file and
/// folder instead, and only they know MAYBE_UNLINK. rtrack daemon --protocol rtrack knows
/// message_queue, sysv_shm, sysv_sem, sysv_msg and file beside the first two; a System V object
/// is named by the id that ipcs shows. noop and dummy are for tests. NAME may be any bytes; write
/// -- before one that could be taken for an option.
///
/// A line of stdin is CMD:NAME:RTYPE. NAME is what lies between the first and the last colon,
/// taken as it is. A line that begins with { is the protocol's JSON form, for names with
/// newlines. The first line that cannot be sent ends the stream; those before it have been sent.
///
/// To a tracker that listens on a socket (--socket, $RTRACK_SOCKET), the message is registered for the process
/// --owner, and `send` waits until the tracker has it: 0 is said only then.
///
/// A message is one write of at most 512 bytes, so that clients never interleave. Names with
/// newlines or beyond ASCII go as JSON, which CPython reads since 3.13.10 and 3.14.1.
///
/// Exit status: 0 sent, 1 nobody reads the pipe or there is no such process, 2 the message
/// cannot be sent (command line, length), 3 it could not be sent (permission, full pipe).
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct SendArgs {
    #[command(flatten)]
    target: TargetArgs,

    /// Of a tracker on a socket: the process whose end is waited for, the parent of this one if not given
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    owner: Option<u32>,

    /// What the tracker understands, where it is not to be found out or to be believed
    #[arg(long, value_enum, value_name = "DIALECT")]
    protocol: Option<Dialect>,

    /// REGISTER, UNREGISTER, MAYBE_UNLINK, PROBE, or - for messages from stdin
    #[arg(value_name = "CMD")]
    command: OsString,

    /// The resource, e.g. /psm_1a2b3c, or the id of a System V object
    #[arg(allow_hyphen_values = true, requires = "rtype")]
    name: Option<OsString>,

    /// Its type: semaphore, shared_memory; semlock, file, folder; message_queue, sysv_shm,
    /// sysv_sem, sysv_msg
    #[arg(allow_hyphen_values = true)]
    rtype: Option<OsString>,
}

/// Sends.
///
/// # Errors
/// The message is wrong (2), nobody reads (1), it could not be sent (3).
pub fn run(args: &SendArgs, ui: &Ui) -> Result<Status, CommandError> {
    let name = args.name.as_deref().map(OsStr::as_bytes);
    let rtype = args.rtype.as_deref().map(OsStr::as_bytes);
    if args.command == "-" {
        if name.is_some() {
            return Err(CommandError::usage("messages come from stdin: no NAME and RTYPE here"));
        }
        return stream(open(args, ui)?.as_mut());
    }
    let command = command(args.command.as_bytes())?;
    let (name, rtype) = match (command, name.zip(rtype)) {
        (_, Some(resource)) => resource,
        (Command::Probe, None) => (&b"0"[..], &b"noop"[..]),
        _ => {
            return Err(CommandError::usage(format!("{} needs NAME and RTYPE", command.as_str()))
                .hint(format!("rtrack send {} /psm_1a2b3c shared_memory", command.as_str())));
        }
    };
    understood(command, name, rtype, args.protocol)?;
    let mut sender = open(args, ui)?;
    sender.send(command, name, rtype)?;
    sender.finish()?;
    Ok(0)
}

/// Where messages go.
trait Send {
    /// Sends one.
    fn send(&mut self, command: Command, name: &[u8], rtype: &[u8]) -> Result<(), CommandError>;

    /// Waits until all have arrived, where that can be known.
    fn finish(&mut self) -> Result<(), CommandError> {
        Ok(())
    }
}

fn open<'a>(args: &SendArgs, ui: &'a Ui) -> Result<Box<dyn Send + 'a>, CommandError> {
    match args.target.socket() {
        Some(path) => Ok(Box::new(OnSocket::open(&path, args, ui)?)),
        None if args.owner.is_some() => {
            Err(CommandError::usage("an owner is for trackers on a socket")
                .hint("name one by --socket PATH or $RTRACK_SOCKET"))
        }
        None => Ok(Box::new(Sender::open(args, ui)?)),
    }
}

/// A tracker on a socket.
struct OnSocket<'a> {
    connection: Connection,
    ui: &'a Ui,
    dialect: Option<Dialect>,
    /// Messages that are not sent yet.
    waiting: Vec<u8>,
    /// It was said that the tracker could not write something down.
    doubted: bool,
}

/// So many bytes are sent at once.
const BATCH: usize = 32 * 1024;

impl<'a> OnSocket<'a> {
    fn open(path: &Path, args: &SendArgs, ui: &'a Ui) -> Result<Self, CommandError> {
        let owner = args.owner.unwrap_or_else(std::os::unix::process::parent_id);
        let connection = Connection::open_for(path, owner).map_err(not_told)?;
        let (dialect, waiting, doubted) = (args.protocol, Vec::new(), false);
        Ok(Self { connection, ui, dialect, waiting, doubted })
    }
}

impl Send for OnSocket<'_> {
    fn send(&mut self, command: Command, name: &[u8], rtype: &[u8]) -> Result<(), CommandError> {
        let rtype = understood(command, name, rtype, self.dialect)?;
        let message = encode(command, name, rtype, protocol::form_for(name))
            .map_err(|error| CommandError::new(ErrorKind::Usage, error))?;
        self.waiting.extend(message);
        if self.waiting.len() >= BATCH { self.finish() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        let messages = std::mem::take(&mut self.waiting);
        let answer = self.connection.exchange(&messages).map_err(not_told)?;
        // It is registered all the same.
        if answer.journaled == Some(false) && !std::mem::replace(&mut self.doubted, true) {
            self.ui.note("note: the tracker has it, but could not write it down: if it is killed, it is lost");
        }
        Ok(())
    }
}

/// The command of that word, which has to be in capitals as on the wire.
fn command(word: &[u8]) -> Result<Command, CommandError> {
    Command::from_word(word).ok_or_else(|| {
        CommandError::usage(format!("\"{}\" is no command", escape(word)))
            .hint("REGISTER, UNREGISTER, MAYBE_UNLINK or PROBE, in capitals")
    })
}

/// The type of that word, if trackers of that dialect, or of any if it is not known, clean it, can be told
/// that of it, and can remove something of that name.
fn understood(
    command: Command,
    name: &[u8],
    word: &[u8],
    dialect: Option<Dialect>,
) -> Result<&'static str, CommandError> {
    let dialects = dialect.as_slice();
    let dialects = if dialects.is_empty() { &Dialect::ALL } else { dialects };
    let Some(rtype) = dialects.iter().find_map(|dialect| dialect.rtype(word)) else {
        return Err(no_type(word, dialect));
    };
    let takes = |dialect: &Dialect| {
        let rtype = dialect.rtype(word)?;
        dialect.command(command.as_str().as_bytes(), rtype)
    };
    if dialects.iter().find_map(takes).is_none() {
        let command = command.as_str();
        return Err(CommandError::usage(format!(
            "this tracker does not know {command} of a {rtype}"
        ))
        .hint("only loky's trackers and joblib's do, and rtrack daemon --protocol loky or any"));
    }
    // What is registered already can still be taken back.
    if command == Command::Register && !rtype.may_have(name) {
        return Err(CommandError::usage(format!(
            "\"{}\" is not the id of a System V object",
            protocol::shortened(name)
        ))
        .hint("the number that ipcs shows, and shmget, semget or msgget answered; not the key"));
    }
    Ok(rtype.as_str())
}

fn no_type(word: &[u8], dialect: Option<Dialect>) -> CommandError {
    let known = dialect.map_or(&Rtype::ALL[..], Dialect::rtypes);
    let known: Vec<&str> = known.iter().map(|rtype| rtype.as_str()).collect();
    let whose = if dialect.is_some() { "this tracker" } else { "any tracker" };
    CommandError::usage(format!("\"{}\" is no resource type of {whose}", escape(word)))
        .hint(format!("one of {}", known.join(", ")))
}

/// A tracker, and what is known about what it reads.
struct Sender<'a> {
    target: Target,
    ui: &'a Ui,
    /// Set when it was looked for.
    tracker: Option<Option<Tracker>>,
    /// What the command line says that it understands.
    dialect: Option<Dialect>,
    doubted: bool,
    /// Whether a tracker reads a pipe of which a write would not tell.
    life: Life,
}

impl<'a> Sender<'a> {
    fn open(args: &SendArgs, ui: &'a Ui) -> Result<Self, CommandError> {
        let target = args.target.open()?.map_err(unreachable)?;
        let life = match target.is_its_own_reader()? {
            true => Probe::of(&target)?.life,
            // A write tells.
            false => Life::Alive,
        };
        let tracker = target.tracker.clone().map(Some);
        Ok(Self { target, ui, tracker, dialect: args.protocol, doubted: false, life })
    }
}

impl Send for Sender<'_> {
    fn send(&mut self, command: Command, name: &[u8], rtype: &[u8]) -> Result<(), CommandError> {
        match (self.life, command) {
            (Life::Alive, _) => {}
            (Life::Dead, Command::Probe) => {
                return Err(CommandError::new(ErrorKind::No, anyhow!("no tracker reads the pipe")));
            }
            (Life::Unknown, Command::Probe) => {
                return Err(anyhow!("cannot tell whether a tracker reads the pipe").into());
            }
            _ => {
                self.life = Life::Alive;
                self.ui.note("note: no tracker is seen to read the pipe; the message waits in it");
            }
        }
        // Every reader takes a plain name; only for others is it worth a look at every process.
        if Reader::Old.form(name).is_none() && self.tracker.is_none() {
            let readers = self.target.ends().readers;
            let known = readers.keys().filter_map(|pid| Tracker::look(*pid));
            self.tracker = Some({ known }.find(|tracker| tracker.family.is_some()));
        }
        let tracker = self.tracker.as_ref().and_then(Option::as_ref);
        let dialect = self.dialect.or(tracker.map(|tracker| tracker.dialect));
        let rtype = understood(command, name, rtype, dialect)?;
        let reader = tracker.map_or(Reader::Unknown, Tracker::reader);
        let who = || match tracker {
            Some(tracker) => {
                let version = tracker.version.map(|version| format!(" {version}"));
                format!("{}{}, pid {}", tracker.kind(), version.unwrap_or_default(), tracker.pid)
            }
            None => "unknown".to_owned(),
        };
        if reader == Reader::Untyped {
            return Err(CommandError::usage(format!(
                "this tracker ({}) is told names of semaphores without a type, and nothing else",
                who()
            )));
        }
        let Some((form, certain)) = reader.form(name) else {
            return Err(CommandError::usage(format!(
                "this tracker ({}) cannot be told the name \"{}\": newlines, colons and bytes \
                 beyond ASCII need a newer one",
                who(),
                escape(name)
            ))
            .hint("CPython 3.13.11, 3.14.2 and rtrack daemon read such names"));
        };
        let message = encode(command, name, rtype, form)
            .map_err(|error| CommandError::new(ErrorKind::Usage, error))?;
        if !certain && !self.doubted {
            self.doubted = true;
            self.ui.note(format_args!(
                "note: it is not known whether this tracker ({}) reads names with newlines, \
                 colons or bytes beyond ASCII",
                who()
            ));
        }
        self.target.send(&message).map_err(|error| match error {
            SendError::Dead => CommandError::new(ErrorKind::No, error),
            _ => CommandError::new(ErrorKind::Failed, error),
        })
    }
}

/// One message for each line of stdin.
fn stream(sender: &mut dyn Send) -> Result<Status, CommandError> {
    if !sys::was_open_at_start(0) {
        return Err(anyhow!("stdin is not open").into());
    }
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let bound = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
        let length = input.by_ref().take(bound).read_until(b'\n', &mut line);
        if length.context("read stdin")? == 0 {
            break;
        }
        let sent = send_line(sender, line.strip_suffix(b"\n").unwrap_or(&line));
        if let Err(mut error) = sent {
            // Those before it have been sent.
            sender.finish()?;
            error.source = error.source.context(format!("line {number}"));
            return Err(error);
        }
    }
    sender.finish()?;
    Ok(0)
}

fn send_line(sender: &mut dyn Send, line: &[u8]) -> Result<(), CommandError> {
    if line.first() == Some(&b'{') {
        // Each type is known to one of the two, and whether this tracker knows it is seen to below.
        let message = match protocol::parse(line, Dialect::Any) {
            Err(LineError::UnknownRtype { .. }) => protocol::parse(line, Dialect::Rtrack),
            other => other,
        };
        let message = message.map_err(|error| match error {
            LineError::UnknownRtype { rtype, .. } => no_type(&rtype, None),
            _ => CommandError::usage(format!("{}: {error}", error.class())),
        })?;
        return sender.send(message.command, &message.name, message.rtype.as_str().as_bytes());
    }
    let wrong = || {
        CommandError::usage(format!("\"{}\" is no CMD:NAME:RTYPE", protocol::shortened(line)))
            .hint("for example REGISTER:/psm_1a2b3c:shared_memory")
    };
    let colon = |&byte: &u8| byte == b':';
    let (first, last) =
        line.iter().position(colon).zip(line.iter().rposition(colon)).ok_or_else(wrong)?;
    let (Some(word), Some(name), Some(rtype)) =
        (line.get(..first), line.get(first + 1..last), line.get(last + 1..))
    else {
        return Err(wrong());
    };
    sender.send(command(word)?, name, rtype)
}
