//! The tracker's loop: read registrations until every writer is gone, then remove what is left.

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
use crate::tracker::sys::ipc::State;
use crate::tracker::sys::{self, Nanoseconds};

/// How much is read at once. A pipe holds 64 KiB unless somebody enlarged it (pipe(7)). This is more than
/// what malloc(3) takes from its heap (mallopt(3), `M_MMAP_THRESHOLD`): of pages that come from the
/// kernel, only those cost memory that something was read into.
const PIECE: usize = 256 * 1024;

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
    /// Takes over what a predecessor left.
    fn inherit(&mut self, inheritance: Inheritance) {
        for warning in inheritance.warnings {
            self.warn(format_args!("{warning}"));
        }
        let heirs = inheritance.heirs;
        let known = |rtype: Rtype| self.options.dialect.rtypes().contains(&rtype);
        let mut count = 0_usize;
        let (mut strange, mut bare) = (0_usize, 0_usize);
        for (heir, entry) in
            heirs.iter().flat_map(|heir| heir.entries.iter().map(move |e| (heir, e)))
        {
            if !known(entry.rtype) {
                strange += 1;
                continue;
            }
            // It was left to a process that lives, and the end of a pipe is not its end.
            if entry.is_bare_path() {
                bare += 1;
                continue;
            }
            count += 1;
            let then = Then {
                at: i64::try_from(entry.at).unwrap_or(0),
                identity: entry.identity.map(Box::new),
                written: true,
            };
            for _ in 0..entry.count.max(1) {
                let (command, rtype) = (Command::Register, entry.rtype);
                let message = Message { command, name: entry.name.as_slice().into(), rtype };
                // A registration is never refused.
                self.registry.apply_with(&message, || then.clone()).map(drop).unwrap_or(());
            }
            // From now on it is the pipe's, whosever it was.
            if heir.id != 0 {
                self.ledger.registered(0, entry);
                self.ledger.taken_back(heir.id, entry.rtype, &entry.name);
            }
        }
        if bare > 0 {
            self.warn(format_args!("{bare} names of the journal are files that are not known to be the same: they are left alone"));
        }
        if strange > 0 {
            self.warn(format_args!("{strange} names of the journal are of types that this tracker does not know: they are left alone"));
        }
        if count > 0 {
            self.warn(format_args!("{count} names are taken over from a tracker that was killed"));
        }
        self.write_down();
        self.flush();
    }

    /// Writes down in the journal what has changed since the last time. What was registered and taken back since
    /// then has left no trace, and is not even looked for.
    fn write_down(&mut self) {
        for (rtype, name) in std::mem::take(&mut self.fresh) {
            let Some(entry) = self.registry.get_mut(rtype, &name) else { continue };
            if std::mem::replace(&mut entry.more.written, true) {
                continue;
            }
            let identity = found::anywhere(rtype, &name).map(|stat| Identity::of(&stat));
            entry.more.identity = identity.map(Box::new);
            let (count, at) = (entry.count, Nanoseconds::from(entry.more.at));
            self.ledger.registered(0, &Inherited { rtype, name, count, identity, at });
        }
        if let Some(warning) = self.ledger.write() {
            self.warn(format_args!("{warning}"));
        }
    }

    /// What follows for the journal from a message; `written` is whether it knew of the name before.
    fn note(&mut self, message: &Message<'_>, change: Change, written: bool) {
        let (rtype, name) = (message.rtype, &*message.name);
        match change {
            Change::Registered(1) => self.fresh.push((rtype, name.to_vec())),
            Change::Registered(count) if written && self.options.dialect.releases(rtype) => {
                self.ledger.counted(0, rtype, name, count);
            }
            Change::Released(count) if written && count > 0 => {
                self.ledger.counted(0, rtype, name, count);
            }
            Change::Released(0) | Change::Forgotten if written => {
                self.ledger.taken_back(0, rtype, name);
            }
            Change::Registered(_) | Change::Released(_) | Change::Forgotten | Change::None => {}
        }
    }

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

    /// Waits until `channel` is to be read; false when only a question arrived.
    fn wait(&mut self, channel: &Channel, questions: Option<&SignalFd>) -> nix::Result<bool> {
        let mut sources = vec![PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        sources.extend(questions.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        let asking = sources.len();
        sources.extend(self.control.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut sources, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(false),
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

    /// Removes what its last user gave up. That it cannot be removed changes no exit status.
    fn give_up(&mut self, rtype: Rtype, name: &[u8]) {
        let (fate, seen) =
            self.clean_all(&[Item { rtype, name, registered: None }], true).pop().unzip();
        let (fate, seen) = (fate.unwrap_or(Fate::Removed(0)), seen.flatten());
        if self.options.verbose {
            let name = escape(name);
            self.tell(format_args!(
                "[ResourceTracker] decremented refcount of {rtype} {name} (current 0)"
            ));
            self.tell(format_args!("[ResourceTracker] unlink {name}"));
        }
        if let Some(text) = self.stays(rtype, name, &fate, seen.as_ref()) {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            let is_new = self.warned.len() >= REMEMBERED || self.warned.insert(hasher.finish());
            if is_new {
                self.warn(format_args!("{text}"));
            }
        }
        if self.record.is_some() {
            let (name, registered_at, state) = (name.to_vec(), None, None);
            let given_up = true;
            let removal = Removal { rtype, name, given_up, fate, seen, state, registered_at };
            self.given_up.push(removal);
        }
    }

    fn record_given_up(&mut self) {
        if self.given_up.is_empty() {
            return;
        }
        let removals = std::mem::take(&mut self.given_up);
        for text in self.record(removals, false) {
            warning_of(self.messages, format_args!("{text}"));
        }
    }

    fn record(&mut self, removals: Vec<Removal>, end: bool) -> Vec<String> {
        let told = Told { owner: None, end, removals };
        self.record.as_mut().map_or_else(Vec::new, |record| record(told))
    }

    /// Removes, with the care that was asked for.
    fn clean_all(&self, items: &[Item<'_>], given_up: bool) -> Vec<(Fate, Option<Seen>)> {
        // Only other rights than the own could be refused.
        leaks::clean(items, self.options.care, given_up, None).unwrap_or_default()
    }

    /// What is said of something that is not removed.
    fn stays(&self, rtype: Rtype, name: &[u8], fate: &Fate, seen: Option<&Seen>) -> Option<String> {
        let stays = |why: &str| format!("resource_tracker: {} stays: {why}", ReprStr(name));
        match fate {
            Fate::Removed(_) => None,
            Fate::Kept(why) => Some(stays(&why_kept(why, seen))),
            Fate::Changed => Some(stays("another object has its name now")),
            Fate::Failed(error) => Some(self.failure(rtype, name, error)),
        }
    }

    /// The warning about what could not be removed, in the words of the tracker whose type it is.
    fn failure(&self, rtype: Rtype, name: &[u8], error: &RemoveError) -> String {
        if self.options.dialect.speaks_loky(rtype) {
            format!("resource_tracker: {}: {}", escape(name), Repr { error, name })
        } else {
            format!("resource_tracker: {}: {error}", ReprStr(name))
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

    /// Removes what is left, then says what was and what could not be removed.
    fn clean(&mut self) {
        let registry = std::mem::take(&mut self.registry);
        let left: Vec<_> = registry
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(rtype, names)| (rtype, names.in_order()))
            .collect();
        let mut removals = Vec::new();
        // What will be said of each: of failures always, of others only if everything is told.
        let mut said: Vec<(Rtype, &[u8], Option<String>)> = Vec::new();
        let items: Vec<Item<'_>> = left
            .iter()
            .flat_map(|(rtype, names)| {
                let then = |name| registry.get(*rtype, name)?.more.identity.as_deref();
                let item =
                    move |name| Item { rtype: *rtype, name, registered: then(name).copied() };
                names.iter().map(move |(name, _)| item(*name))
            })
            .collect();
        // What is recorded of System V objects is there before they go only.
        let recorded = self.record.is_some();
        let state = |item: &Item<'_>| registered::state(item.rtype, item.name).filter(|_| recorded);
        let states: Vec<Option<State>> = items.iter().map(state).collect();
        let mut done = self.clean_all(&items, false).into_iter().zip(states);
        for (rtype, names) in &left {
            self.status.leftovers();
            for ((name, _), ((fate, seen), state)) in names.iter().zip(&mut done) {
                if matches!(fate, Fate::Failed(_)) {
                    self.status.failed_removal();
                }
                match self.stays(*rtype, name, &fate, seen.as_ref()) {
                    Some(text) => said.push((*rtype, name, Some(text))),
                    None if self.options.verbose => said.push((*rtype, name, None)),
                    None => {}
                }
                if recorded {
                    let at = registry.get(*rtype, name).map_or(0, |entry| entry.more.at);
                    let registered_at = Some(Nanoseconds::from(at)).filter(|at| *at != 0);
                    let (rtype, name, given_up) = (*rtype, name.to_vec(), false);
                    let removal =
                        Removal { rtype, name, given_up, fate, seen, state, registered_at };
                    removals.push(removal);
                }
            }
        }
        self.ledger.ended(0);
        self.write_down();
        let warnings = self.record(removals, true);
        let mut said = said.into_iter().peekable();
        // The name may be registered under several types, and fail alike under each.
        let mut warned = HashSet::new();
        for (rtype, names) in &left {
            let counts = self.options.dialect.speaks_loky(*rtype);
            if let Some(warning) = LeakWarning::new(*rtype, names, counts) {
                self.warn(format_args!("{warning}"));
            }
            while let Some((_, name, failure)) = said.next_if(|(of, ..)| of == rtype) {
                match failure {
                    Some(failure) => {
                        if warned.insert(failure.clone()) {
                            self.warn(format_args!("{failure}"));
                        }
                    }
                    None => self.tell(format_args!("[ResourceTracker] unlink {}", escape(name))),
                }
            }
        }
        for text in warnings {
            warning_of(self.messages, format_args!("{text}"));
        }
        self.tell(format_args!("resource tracker shut down"));
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
