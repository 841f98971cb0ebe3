//! The tracker's loop: read registrations until every writer is gone, then remove what is left.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::channel::Channel;
use super::protocol::{Framer, LineError, Rtype, parse};
use super::python::{ReprBytes, ReprStr};
use super::registry::{LeakWarning, Registry, Status};
use crate::tracker::reap::registered::{self, RemoveError};
use crate::tracker::sys;

/// What a pipe holds at most unless somebody enlarged it (pipe(7)); more would only cost memory.
const PIECE: usize = 64 * 1024;

/// How much of a bad line is quoted.
const QUOTED: usize = 160;

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

/// What became of something that was registered and never taken back.
#[derive(Debug)]
pub struct Removal {
    /// Its type.
    pub rtype: Rtype,
    /// Its name, as it was registered.
    pub name: Vec<u8>,
    /// Why it could not be removed.
    pub error: Option<RemoveError>,
}

/// Runs until the last writer of `channel` is gone, cleans, and answers with the exit status.
///
/// Complaints about lines go to `complaints`, what is said of the end to `last_words`; errors of both
/// are ignored. Whether and for how long they may block is the caller's choice, but the removals
/// come before anything is said about them, so that nobody who does not listen can hold them up.
/// So does what `record`, if there is one, is told of all of them; what it answers is said as a
/// warning.
pub fn run(
    channel: &Channel,
    complaints: &mut dyn Write,
    last_words: &mut dyn Write,
    record: Option<Recorder<'_>>,
) -> Status {
    let (registry, status) = (Registry::new(), Status::default());
    let mut tracker = Tracker { registry, status, line: 0, messages: complaints };
    tracker.read(channel);
    tracker.messages = last_words;
    tracker.clean(record);
    tracker.status
}

/// Is told of all removals once they are done; answers with what has to be said of that.
pub type Recorder<'a> = &'a mut dyn FnMut(Vec<Removal>) -> Option<String>;

struct Tracker<'a> {
    registry: Registry,
    status: Status,
    /// The number of the last line, from 1.
    line: u64,
    messages: &'a mut dyn Write,
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
                    framer.push(piece.get(..length).unwrap_or_default(), |line| self.take(line));
                    ask = channel.tells_end();
                }
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => {
                    framer.finish(|line| self.take(line));
                    return self.broken("read", error);
                }
            }
            self.flush();
        }
        framer.finish(|line| self.take(line));
        self.flush();
    }

    /// Waits until `channel` is to be read; false when only a question arrived.
    fn wait(&mut self, channel: &Channel, questions: Option<&SignalFd>) -> nix::Result<bool> {
        let mut sources = vec![PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        sources.extend(questions.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
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
        Ok(to_read)
    }

    /// One line: a bad one is reported, and the next one is read.
    fn take(&mut self, line: Result<&[u8], LineError<'_>>) {
        self.line += 1;
        let quoted = line.as_ref().copied().unwrap_or_default();
        let (class, text) = match line.and_then(parse) {
            Ok(message) => match self.registry.apply(message) {
                Ok(()) => return,
                Err(error) => ("KeyError", error.to_string()),
            },
            Err(error) => (error.class(), error.to_string()),
        };
        self.status.bad_line();
        // The shape in which Python's tracker reports an exception, with the line of input where
        // a line of source would be.
        let (quoted, more) = match quoted.get(..QUOTED) {
            Some(beginning) if quoted.len() > QUOTED => (beginning, "..."),
            _ => (quoted, ""),
        };
        let number = self.line;
        self.say(format_args!(
            "Traceback (most recent call last):\n  line {number}: {}{more}\n{class}: {text}\n",
            ReprBytes(quoted),
        ));
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

    /// Answers SIGUSR1.
    fn list(&mut self) {
        self.say(format_args!(
            "rtrack:{}: {} registered\n",
            std::process::id(),
            self.registry.len()
        ));
        for (rtype, names) in self.registry.iter() {
            for name in names {
                let written = writeln!(self.messages, "{rtype} {}", ReprStr(name));
                written.unwrap_or(());
            }
        }
        self.flush();
    }

    /// Removes what is left, then says what was and what could not be removed.
    fn clean(&mut self, record: Option<Recorder<'_>>) {
        let registry = std::mem::take(&mut self.registry);
        let mut removals = Vec::new();
        let mut failures: Vec<(Rtype, &[u8], String)> = Vec::new();
        for (rtype, names) in registry.iter().filter(|(_, names)| !names.is_empty()) {
            self.status.leftovers();
            for name in names {
                let error = registered::remove(rtype, name).err();
                if let Some(error) = &error {
                    self.status.failed_removal();
                    failures.push((rtype, name, error.to_string()));
                }
                if record.is_some() {
                    removals.push(Removal { rtype, name: name.to_vec(), error });
                }
            }
        }
        let warning = record.and_then(|record| record(removals));
        let mut failures = failures.into_iter().peekable();
        for (rtype, names) in registry.iter() {
            if let Some(warning) = LeakWarning::new(rtype, names) {
                self.warn(format_args!("{warning}"));
            }
            while let Some((_, name, error)) = failures.next_if(|(of, _, _)| *of == rtype) {
                self.warn(format_args!("resource_tracker: {}: {error}", ReprStr(name)));
            }
        }
        if let Some(warning) = warning {
            self.warn(format_args!("{warning}"));
        }
        self.flush();
    }

    fn warn(&mut self, text: std::fmt::Arguments<'_>) {
        warning(self.messages, text);
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
fn warning(messages: &mut dyn Write, text: std::fmt::Arguments<'_>) {
    // Whoever closed stderr does not want to know.
    messages
        .write_fmt(format_args!("rtrack:{}: UserWarning: {text}\n", std::process::id()))
        .unwrap_or(());
}

/// The same, written at once: what has to be said before the loop begins.
pub fn warn(messages: &mut dyn Write, text: std::fmt::Arguments<'_>) {
    warning(messages, text);
    messages.flush().unwrap_or(());
}
