//! The tracker's loop: read registrations until every writer is gone, then remove what is left.

mod cleaning;
mod journaled;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::channel::Channel;
use super::control::Control;
use super::dialect::{Command, Dialect, Rtype};
use super::found;
use super::leaks::{self, Care, Item, Owner, Seen, why_kept};
use super::ledger::{Inheritance, Inherited, Ledger};
use super::protocol::{Framer, LineError, Message, parse};
use super::python::{ReprBytes, ReprStr};
use super::registry::{Change, LeakWarning, Registry, Status};
use super::state::{Registered, TrackerState};
use crate::tracker::host::wall_clock;
use crate::tracker::reap::registered::{self, Fate, RemoveError, Repr};
use crate::tracker::resource::{Identity, escape};
use crate::tracker::sys::image::unmap_used_code;
use crate::tracker::sys::ipc::State;
use crate::tracker::sys::{self, Nanoseconds};

/// How much is read at once. A pipe holds 64 KiB unless somebody enlarged it (pipe(7)). This is more than
/// what malloc(3) takes from its heap (mallopt(3), `M_MMAP_THRESHOLD`): of pages that come from the
/// kernel, only those cost memory that something was read into.
const PIECE: usize = 256 * 1024;

/// Milliseconds without a message after which the start is over.
const QUIET: u8 = 10;

/// How much of a bad line is quoted.
const QUOTED: usize = 160;

/// Of so many failed removals it is remembered that they were warned of.
const REMEMBERED: usize = 1 << 16;

/// What would end the tracker before it has cleaned, or stop it while it does, and is not meant
/// for it: interrupts and hang-ups of the terminal that its clients run in, kills by program name,
/// and what writing to a broken, full or background stderr raises.
const IGNORED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGPIPE,
    Signal::SIGXFSZ,
    Signal::SIGTTOU,
];

/// Makes this process one that ends at the end of input only: from here on the usual signals do
/// nothing, and SIGUSR1 waits until [`run`] answers it. Clients start a tracker with some of them
/// blocked, so that none arrives before this; they are unblocked here, after they are ignored.
///
/// # Errors
/// What the system call failed with.
pub fn ignore_signals() -> io::Result<()> {
    for signal in IGNORED {
        sys::ignore_signal(signal as i32)?;
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&asked()), None)?;
    let ignored: SigSet = IGNORED.into_iter().collect();
    pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&ignored), None)?;
    Ok(())
}

/// The signals that ask for the list of what is registered.
fn asked() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGUSR1);
    set
}

/// How a tracker behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What it understands, and whose words it uses.
    pub dialect: Dialect,
    /// Whether it tells every step, as loky's does on demand.
    pub verbose: bool,
    /// Whether it warns of what was left and of what could not be removed; an interpreter that was
    /// started with `-W ignore` does not.
    pub warnings: bool,
    /// Whether a registered file that is gone already when it is to be removed is nothing to tell of, and no
    /// failure: joblib since 1.2 puts a function into loky's tracker which passes over `FileNotFoundError`.
    pub missing_files_ok: bool,
    /// What is found out about what was left, and whether it may go while somebody uses it.
    pub care: Care,
}

/// What became of something that was registered, and given up by its last user or never taken back.
#[derive(Debug)]
pub struct Removal {
    /// Its type.
    pub rtype: Rtype,
    /// Its name, as it was registered.
    pub name: Vec<u8>,
    /// Whether its last user gave it up; else it was left at the end.
    pub given_up: bool,
    /// What became of it.
    pub fate: Fate,
    /// What was seen of it just before, where that was asked for.
    pub seen: Option<Seen>,
    /// What the kernel said of it before, if it is a System V object.
    pub state: Option<State>,
    /// When it was registered, where that is known.
    pub registered_at: Option<Nanoseconds>,
}

/// Runs until the last writer of `channel` is gone, cleans, and answers with the exit status.
///
/// Complaints about lines go to `complaints`, what is said of the end to `last_words`; errors of both
/// are ignored. Whether and for how long they may block is the caller's choice, but the removals
/// come before anything is said about them, so that nobody who does not listen can hold them up.
/// So does what `record`, if there is one, is told of all of them; what it answers is said as a
/// warning. Who asks at `control` is told what is registered. It is written down in the ledger, and what a
/// predecessor has left there counts as registered.
pub fn run<'a>(
    channel: &Channel,
    options: Options,
    complaints: &'a mut dyn Write,
    last_words: &'a mut dyn Write,
    record: Option<Recorder<'a>>,
    control: Option<&'a Control>,
    ledger: (&'a mut Ledger, Inheritance),
) -> Status {
    let (ledger, inheritance) = ledger;
    let mut tracker = Tracker {
        options,
        registry: Registry::default(),
        now: 0,
        bad: 0,
        status: Status::default(),
        line: 0,
        warned: HashSet::new(),
        given_up: Vec::new(),
        messages: complaints,
        record,
        control,
        ledger,
        fresh: Vec::new(),
        started: false,
    };
    tracker.inherit(inheritance);
    tracker.tell(format_args!("Main resource tracker is running"));
    tracker.flush();
    tracker.read(channel);
    tracker.messages = last_words;
    tracker.clean();
    tracker.status
}

/// Removals that are done.
#[derive(Debug)]
pub struct Told {
    /// Whose registrations they were, where each connection is an owner.
    pub owner: Option<Owner>,
    /// Whether that owner, or the last client of a pipe, is gone; else its last user gave something up.
    pub end: bool,
    /// What was removed, or was to be.
    pub removals: Vec<Removal>,
}

/// Is told of removals once they are done; answers with what has to be said of that.
pub type Recorder<'a> = &'a mut dyn FnMut(Told) -> Vec<String>;

struct Tracker<'a> {
    options: Options,
    /// What is registered.
    registry: Registry<Then>,
    /// When the piece arrived that is read.
    now: i64,
    status: Status,
    /// The number of the last line, from 1.
    line: u64,
    /// How many lines were bad.
    bad: u64,
    /// Hashes of the warnings about what could not be removed when it was given up: Python shows
    /// equal ones once, as long as they come from the same place in the source. At the end is another.
    warned: HashSet<u64>,
    /// What was given up and is not recorded yet.
    given_up: Vec<Removal>,
    messages: &'a mut dyn Write,
    record: Option<Recorder<'a>>,
    control: Option<&'a Control>,
    ledger: &'a mut Ledger,
    /// What was registered since the journal was last written to.
    fresh: Vec<(Rtype, Vec<u8>)>,
    /// The start is over: there was time to let go of what only that needed.
    started: bool,
}

/// What is known of a registration beside its name.
#[derive(Debug, Clone, Default)]
struct Then {
    /// When the piece arrived that it was in, in nanoseconds since 1970; 0 if nobody can ask for it.
    at: i64,
    /// What the name belonged to then, where there is a journal: most have none, and it is large.
    identity: Option<Box<Identity>>,
    /// Whether the journal knows of it.
    written: bool,
}

impl Tracker<'_> {
    fn read(&mut self, channel: &Channel) {
        // Without it (a full descriptor table), SIGUSR1 stays blocked and unanswered.
        let questions =
            SignalFd::with_flags(&asked(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).ok();
        let mut framer = Framer::new();
        let mut piece = vec![0; PIECE];
        let mut ask = true;
        loop {
            if ask {
                match self.wait(channel, questions.as_ref()) {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(error) => return self.broken("poll", error),
                }
            }
            ask = true;
            match nix::unistd::read(channel, &mut piece) {
                Ok(0) => break,
                Ok(length) => {
                    if self.control.is_some() || self.ledger.is_kept() {
                        self.now = i64::try_from(wall_clock()).unwrap_or(0);
                    }
                    framer.push(piece.get(..length).unwrap_or_default(), |line| self.take(line));
                    ask = channel.tells_end();
                }
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => {
                    framer.finish(|line| self.take(line));
                    self.record_given_up();
                    return self.broken("read", error);
                }
            }
            self.write_down();
            self.record_given_up();
            self.flush();
        }
        framer.finish(|line| self.take(line));
        self.write_down();
        self.record_given_up();
        self.flush();
    }

    /// Waits until `channel` is to be read; false when only a question arrived, or nothing
    /// did.
    fn wait(&mut self, channel: &Channel, questions: Option<&SignalFd>) -> nix::Result<bool> {
        let mut sources = vec![PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        sources.extend(questions.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        let asking = sources.len();
        sources.extend(self.control.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        let patience = if self.started { PollTimeout::NONE } else { PollTimeout::from(QUIET) };
        match poll(&mut sources, patience) {
            Err(Errno::EINTR) => return Ok(false),
            Ok(0) => {
                self.started = true;
                unmap_used_code();
                return Ok(false);
            }
            other => other?,
        };
        let ready = |source: Option<&PollFd<'_>>| source.and_then(PollFd::any).unwrap_or(true);
        let to_read = ready(sources.first());
        if let Some(questions) = questions
            && ready(sources.get(1))
        {
            while let Ok(Some(_)) = questions.read_signal() {}
            self.list();
        }
        if let Some(control) = self.control
            && ready(sources.get(asking))
        {
            control.answer(|| self.state());
        }
        Ok(to_read)
    }

    /// One line: a bad one is reported, and the next one is read.
    fn take(&mut self, line: Result<&[u8], LineError<'_>>) {
        self.line += 1;
        let line = match line {
            Ok(line) => line,
            Err(error) => return self.refuse(&[], error.class(), &error),
        };
        match parse(line, self.options.dialect) {
            Ok(message) => {
                let kept = self.ledger.is_kept();
                let known = || self.registry.get(message.rtype, &message.name);
                let written = kept && known().is_some_and(|entry| entry.more.written);
                let at = self.now;
                match self.registry.apply_with(&message, || Then { at, ..Then::default() }) {
                    Ok(change) => {
                        self.follow(&message, change);
                        if kept {
                            self.note(&message, change, written);
                        }
                    }
                    Err(error) => self.refuse(line, "KeyError", &error),
                }
            }
            Err(error) => self.refuse(line, error.class(), &error),
        }
    }

    /// Reports a bad line, in the shape in which Python's tracker reports an exception, with the
    /// line of input where a line of source would be.
    #[cold]
    fn refuse(&mut self, line: &[u8], class: &str, error: &dyn std::fmt::Display) {
        self.status.bad_line();
        self.bad += 1;
        let (quoted, more) = match line.get(..QUOTED) {
            Some(beginning) if line.len() > QUOTED => (beginning, "..."),
            _ => (line, ""),
        };
        let number = self.line;
        self.say(format_args!(
            "Traceback (most recent call last):\n  line {number}: {}{more}\n{class}: {error}\n",
            ReprBytes(quoted),
        ));
    }

    /// What follows from a good line.
    fn follow(&mut self, message: &Message<'_>, change: Change) {
        if let Change::Released(0) = change {
            return self.give_up(message.rtype, &message.name);
        }
        if self.options.verbose {
            let (rtype, name) = (message.rtype, escape(&message.name));
            match change {
                Change::None => {}
                Change::Registered(count) => self.tell(format_args!(
                    "[ResourceTracker] incremented refcount of {rtype} {name} (current {count})"
                )),
                Change::Released(count) => self.tell(format_args!(
                    "[ResourceTracker] decremented refcount of {rtype} {name} (current {count})"
                )),
                Change::Forgotten => {
                    // How many types there are, as loky's own.
                    let types = self.options.dialect.rtypes().len();
                    self.tell(format_args!(
                        "[ResourceTracker] unregister {name} {rtype}: cache({types})"
                    ));
                }
            }
        }
    }

    /// Input ended by an error instead: what was registered is cleaned all the same.
    fn broken(&mut self, operation: &str, error: Errno) {
        self.status.bad_line();
        let number = error as i32;
        let text = error.desc();
        self.say(format_args!(
            "OSError: [Errno {number}] {text}: {operation} of the tracker's input\n"
        ));
        self.flush();
    }

    /// What it has, for who asks.
    fn state(&self) -> TrackerState {
        let types = self.registry.iter();
        let registered = types.flat_map(|(rtype, names)| {
            names.entries().into_iter().map(move |(name, entry)| Registered {
                rtype,
                name: name.to_vec(),
                count: entry.count,
                at: Some(entry.more.at).filter(|at| *at != 0).map(Nanoseconds::from),
                by: None,
            })
        });
        TrackerState {
            pid: std::process::id(),
            dialect: self.options.dialect,
            listens: false,
            messages: self.line,
            bad: self.bad,
            registered: registered.collect(),
        }
    }

    /// Answers SIGUSR1.
    fn list(&mut self) {
        self.say(format_args!(
            "rtrack:{}: {} registered\n",
            std::process::id(),
            self.registry.len()
        ));
        for (rtype, names) in self.registry.iter() {
            let counts = self.options.dialect.releases(rtype);
            for (name, count) in names.in_order() {
                let name = ReprStr(name);
                let written = match counts {
                    true => writeln!(self.messages, "{rtype} {name} {count}"),
                    false => writeln!(self.messages, "{rtype} {name}"),
                };
                written.unwrap_or(());
            }
        }
        self.flush();
    }

    /// A warning that Python's trackers give too.
    fn warn(&mut self, text: std::fmt::Arguments<'_>) {
        if self.options.warnings {
            warning_of(self.messages, text);
        }
    }

    /// A step, in the form of Python's `multiprocessing.util.debug`.
    fn tell(&mut self, text: std::fmt::Arguments<'_>) {
        if self.options.verbose {
            self.say(format_args!("[DEBUG/MainProcess] {text}\n"));
        }
    }

    fn say(&mut self, text: std::fmt::Arguments<'_>) {
        // Whoever closed stderr does not want to know.
        self.messages.write_fmt(text).unwrap_or(());
    }

    fn flush(&mut self) {
        self.messages.flush().unwrap_or(());
    }
}

/// A warning as Python prints it: where from, the category, the text.
fn warning_of(messages: &mut dyn Write, text: std::fmt::Arguments<'_>) {
    // Whoever closed stderr does not want to know.
    messages
        .write_fmt(format_args!("rtrack:{}: UserWarning: {text}\n", std::process::id()))
        .unwrap_or(());
}

/// The same, written at once: what has to be said before the loop begins.
pub fn warn(messages: &mut dyn Write, text: std::fmt::Arguments<'_>) {
    warning_of(messages, text);
    messages.flush().unwrap_or(());
}
