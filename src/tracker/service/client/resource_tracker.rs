//! The client: one tracker, kept alive and told.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::builder::{Builder, OnDeath};
use super::death::{Death, End};
use super::failure::{ClientError, Shortened};
use super::state::{PATIENCE, SLOTS, State, claim, enter, install};
use super::tracker::Reader;
use crate::tracker::service::dialect::{Command, Dialect, Rtype};
use crate::tracker::service::protocol::{self, Excess, Form, MESSAGE_MAX};
use crate::tracker::sys::launch::{self, NotStarted, Process, Program};
use crate::tracker::sys::pipe_end::PipeEnd;
use crate::tracker::sys::signals::KeptErrno;

/// How many trackers in a row may die of one message.
const ATTEMPTS: usize = 8;

/// How many deaths are told at the end of one call.
const TOLD_AT_ONCE: usize = 8;

/// A resource tracker of this process: started when it is needed, started again when it died, told
/// what to clean up.
///
/// The tracker, `rtrack daemon` unless the [`Builder`] says otherwise, removes what is registered with
/// it and was not taken back, as soon as every process is gone that has the writing end of its pipe:
/// this one, and whatever was given a copy of it ([`ResourceTracker::fd`]). However this process ends,
/// by `SIGKILL` as well, what it registered goes.
///
/// ```no_run
/// use rtrack::tracker::service::client::ResourceTracker;
///
/// let tracker = ResourceTracker::new()?;
/// // After shm_open("/frames.4711", O_CREAT | O_EXCL …):
/// tracker.register("/frames.4711", "shared_memory")?;
/// // Before shm_unlink("/frames.4711"):
/// tracker.unregister("/frames.4711", "shared_memory")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A tracker removes by name, whatever is there by then. So register what this process has made, and not
/// what it is about to make; and take it back before it is removed, not after. A kill in between leaves the
/// object, for `rtrack reap` to judge; the other order could cost somebody else's of the same name.
///
/// **Threads and signal handlers.** All methods take `&self`, from any thread, and those that tell the
/// tracker something from a signal handler too: all signals are blocked while the client's lock is
/// held, nothing within allocates, and `errno` is kept. A message waits while the pipe is full, as any
/// write to a pipe does, without the lock and with signals as they are.
///
/// **A dead tracker.** The message itself finds out: it fails with `EPIPE`, without a `SIGPIPE` for this
/// program. The next tracker is started and gets the message, the dead one is waited for, by its pid
/// and no other, and [`Builder::on_death`] is called. What the dead one knew is lost, and what it had
/// not read is counted in [`Death::unread`].
///
/// **`fork`.** A child does not keep its parent's tracker alive: it has no copy of the pipe's end, and its
/// first message starts a tracker of its own. That is done by handlers of pthread_atfork(3), which the
/// first [`Builder::build`] installs. Handlers of the program may use the client. Those that were installed
/// before run while the lock is held for the fork, and are let in; in a child, each of them already
/// finds a client without a tracker. None of them may wait for another thread that uses the client.
/// A child of vfork(2) must not use it.
///
/// **Descriptors.** Two are open for each tracker, closed on exec, above 2. A program that closes
/// descriptors which it does not know ends its tracker by that, and is told so with the next message, as
/// of a death; its other files are never written to.
pub struct ResourceTracker {
    slot: usize,
    name: Arc<Path>,
    program: Program,
    speech: Speech,
    on_death: OnDeath,
    /// There may be deaths to be told.
    untold: AtomicBool,
}

impl fmt::Debug for ResourceTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceTracker")
            .field("program", &self.name)
            .field("dialect", &self.speech.dialect)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

/// What a tracker understands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speech {
    pub(super) dialect: Dialect,
    /// Which forms of a message it reads, as far as its command tells.
    pub(super) reader: Reader,
}

/// A tracker that was found dead by a call, and how many bytes it had not read.
type Found = (Process, Option<u64>);

/// What a call found, to be waited for when it is done: trackers that died, and a child that could not
/// become one.
#[derive(Default)]
struct Findings([Option<Found>; ATTEMPTS], Option<Process>);

impl Findings {
    fn add(&mut self, found: Found) {
        if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
            *place = Some(found);
        }
    }
}

impl ResourceTracker {
    /// An `rtrack daemon` that is started when it is needed.
    ///
    /// # Errors
    /// This process has too many trackers.
    pub fn new() -> Result<Self, ClientError> {
        Self::builder().build()
    }

    /// One with another program, dialect, or warning.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(super) fn with(
        name: Arc<Path>,
        program: Program,
        speech: Speech,
        on_death: OnDeath,
    ) -> Result<Self, ClientError> {
        install().map_err(ClientError::AtFork)?;
        let slot = claim().ok_or(ClientError::TooMany(SLOTS))?;
        Ok(Self { slot, name, program, speech, on_death, untold: AtomicBool::new(false) })
    }

    /// Starts a tracker if there is none that reads.
    ///
    /// # Errors
    /// It cannot be started, or dies as soon as it was.
    pub fn ensure_running(&self) -> Result<(), ClientError> {
        self.attempt(|pipe| match pipe.is_read() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Errno::EPIPE),
            Err(error) => Err(Errno::try_from(error).unwrap_or(Errno::EIO)),
        })
    }

    /// Has the tracker remove `name` when this process and everybody else with a copy of the pipe's
    /// end is gone. In loky's dialect: takes one more reference to it.
    ///
    /// `name` is what `shm_open`, `sem_open` or `mq_open` is given, the path of a `file` or `folder`, or the
    /// decimal digits of the id of a System V object.
    ///
    /// # Errors
    /// The message cannot be carried, and nothing of it was written; or there is no tracker that takes it.
    pub fn register(&self, name: impl AsRef<[u8]>, rtype: &str) -> Result<(), ClientError> {
        self.tell(Command::Register, name.as_ref(), rtype)
    }

    /// Has the tracker forget `name`.
    ///
    /// # Errors
    /// As [`ResourceTracker::register`].
    pub fn unregister(&self, name: impl AsRef<[u8]>, rtype: &str) -> Result<(), ClientError> {
        self.tell(Command::Unregister, name.as_ref(), rtype)
    }

    /// Gives one reference to `name` back; with the last one the tracker removes it at once. Trackers of
    /// loky's dialect only, or of both.
    ///
    /// # Errors
    /// As [`ResourceTracker::register`].
    pub fn maybe_unlink(&self, name: impl AsRef<[u8]>, rtype: &str) -> Result<(), ClientError> {
        self.tell(Command::MaybeUnlink, name.as_ref(), rtype)
    }

    /// Whether this process has a tracker that reads its pipe. Nothing is written, and nothing started.
    #[must_use]
    pub fn probe(&self) -> bool {
        let _errno = KeptErrno::new();
        let pipe = enter().slot(self.slot).pipe;
        pipe.is_some_and(|pipe| pipe.is_read().unwrap_or(false))
    }

    /// Another descriptor of the pipe's writing end, closed on exec, for a child that is to share this
    /// tracker: it keeps the tracker waiting until it is closed everywhere. Starts the tracker if there
    /// is none.
    ///
    /// Of a tracker that dies it stays the end, so take it anew for each child.
    ///
    /// ```
    /// use std::process::Command;
    /// use rtrack::tracker::service::client::ResourceTracker;
    ///
    /// # let count = ["sh", "-c", "test $(grep -c ^REGISTER <&{fd}) = 2"];
    /// # let tracker = ResourceTracker::builder().command(count).build()?;
    /// # let _ = r#"
    /// let tracker = ResourceTracker::new()?;
    /// # "#;
    /// tracker.register("/parents", "shared_memory")?;
    /// let script = "echo REGISTER:/childs:shared_memory >&0";
    /// let child = Command::new("sh").args(["-c", script]).stdin(tracker.fd()?).status()?;
    /// # assert!(child.success());
    /// # use rtrack::tracker::service::client::End;
    /// # assert_eq!(tracker.stop().map(|death| death.end), Some(End::Exited(0)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// There is no tracker to be had, or no descriptor.
    pub fn fd(&self) -> Result<OwnedFd, ClientError> {
        self.ensure_running()?;
        let pipe = enter().slot(self.slot).pipe;
        let copy = pipe.map_or(Err(Errno::EBADF.into()), |pipe| pipe.duplicate());
        copy.map_err(ClientError::Resources)
    }

    /// The pid of the tracker, if one was started and is not known to be dead.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        let _errno = KeptErrno::new();
        enter().slot(self.slot).process.as_ref().map(|process| process.pid)
    }

    /// Closes the pipe, and waits until the tracker has cleaned up and ended: when nobody else has a copy
    /// of its end. One that is dead already is waited for too. Nothing where none was started.
    ///
    /// ```
    /// use rtrack::tracker::service::client::{End, ResourceTracker};
    ///
    /// // A tracker that only counts, to see what it is told.
    /// let count = ["sh", "-c", "test $(grep -c ^REGISTER <&{fd}) = 2"];
    /// let tracker = ResourceTracker::builder().command(count).build()?;
    /// tracker.register("/one", "shared_memory")?;
    /// tracker.register("/two", "semaphore")?;
    /// assert_eq!(tracker.stop().map(|death| death.end), Some(End::Exited(0)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "it says how the tracker ended"]
    pub fn stop(self) -> Option<Death> {
        let (pipe, process) = self.let_go();
        let process = process?;
        let is_read = pipe.is_some_and(|pipe| pipe.is_read().unwrap_or(false));
        // One that reads comes to the end; what a dead one has left is what it was not to read any more.
        let unread = pipe.filter(|_| !is_read).and_then(|pipe| pipe.queued());
        if let Some(pipe) = pipe {
            pipe.close();
        }
        let pid = process.pid;
        let end = process.reap((!is_read).then_some(PATIENCE)).into();
        if end == End::Lives {
            enter().keep(process);
        }
        Some(Death { pid, end, unread, more: 0 })
    }

    /// Takes pipe and process out of the place, so that nobody else finds them.
    fn let_go(&self) -> (Option<PipeEnd>, Option<Process>) {
        let mut state = enter();
        state.sweep();
        let slot = state.slot(self.slot);
        slot.generation += 1;
        (slot.pipe.take(), slot.process.take())
    }

    /// Whether a message can be carried, and how.
    fn form(&self, command: Command, name: &[u8], rtype: &str) -> Result<Form, ClientError> {
        let Speech { dialect, reader } = self.speech;
        let known = |rtype: &Rtype| dialect.command(command.as_str().as_bytes(), *rtype).is_some();
        let Some(known) = dialect.rtype(rtype.as_bytes()).filter(known) else {
            return Err(ClientError::UnknownType(Shortened::new(rtype.as_bytes())));
        };
        if name.contains(&0) {
            return Err(ClientError::NulInName(Shortened::new(name)));
        }
        if command == Command::Register && !known.may_have(name) {
            return Err(ClientError::NotAnId(Shortened::new(name)));
        }
        match (reader.form(name), protocol::form_for(name)) {
            (Some((form, true)), _) => Ok(form),
            // loky's own reads colons, and has no second form.
            (_, Form::Ascii) if dialect == Dialect::Loky => Ok(Form::Ascii),
            _ if dialect == Dialect::Loky => Err(ClientError::NotPlain(Shortened::new(name))),
            _ => Err(ClientError::NotRead(Shortened::new(name))),
        }
    }

    fn tell(&self, command: Command, name: &[u8], rtype: &str) -> Result<(), ClientError> {
        let form = self.form(command, name, rtype)?;
        let mut buffer = [0; MESSAGE_MAX];
        let message =
            protocol::encode_into(&mut buffer, command, name, rtype, form).map_err(|excess| {
                match excess {
                    Excess::Name => ClientError::NameTooLong(Shortened::new(name)),
                    Excess::Message(length) => {
                        ClientError::MessageTooLong { name: Shortened::new(name), length }
                    }
                }
            })?;
        self.attempt(|pipe| match pipe.write(message) {
            Ok(length) if length == message.len() => Ok(()),
            // Pipes take a message whole or not at all.
            Ok(_) => Err(Errno::EIO),
            Err(Errno::EAGAIN) => {
                pipe.wait();
                Err(Errno::EINTR)
            }
            Err(error) => Err(error),
        })
    }

    /// Has a tracker for `work`, another one each time that this one is found dead, and waits for the dead
    /// when it is done.
    fn attempt(&self, work: impl Fn(&PipeEnd) -> nix::Result<()>) -> Result<(), ClientError> {
        let _errno = KeptErrno::new();
        let mut findings = Findings::default();
        let result = self.attempts(work, &mut findings);
        self.bury(findings);
        self.tell_of_deaths();
        result
    }

    fn attempts(
        &self,
        work: impl Fn(&PipeEnd) -> nix::Result<()>,
        findings: &mut Findings,
    ) -> Result<(), ClientError> {
        let (mut dead, mut times) = (None, 0);
        loop {
            let (pipe, generation) = self.current(dead, findings)?;
            match work(&pipe) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::EBADF) if times < ATTEMPTS => {
                    dead = Some(generation);
                    times += 1;
                }
                Err(Errno::EPIPE | Errno::EBADF) => {
                    return Err(ClientError::KeepsDying(u32::try_from(times).unwrap_or(u32::MAX)));
                }
                Err(error) => return Err(ClientError::Write(error.into())),
            }
        }
    }

    /// The pipe of the present tracker, and which one that is. It is started where there is none, or
    /// where it is the one that was found `dead`: whoever comes first does that, and the others find the
    /// next one.
    fn current(
        &self,
        dead: Option<u64>,
        findings: &mut Findings,
    ) -> Result<(PipeEnd, u64), ClientError> {
        let mut state = enter();
        let mut mask = state.mask_outside();
        let slot = state.slot(self.slot);
        if let Some(pipe) = slot.pipe
            && dead != Some(slot.generation)
        {
            return Ok((pipe, slot.generation));
        }
        if let Some(process) = slot.process.take() {
            findings.add((process, slot.pipe.and_then(|pipe| pipe.queued())));
        }
        // What a terminal sends is meant for this program; the tracker unblocks them when it ignores
        // them.
        mask.add(Signal::SIGINT);
        mask.add(Signal::SIGTERM);
        let started = launch::start(&self.program, mask).map_err(|failure| {
            let NotStarted { before_exec, error, process } = failure;
            findings.1 = process;
            match before_exec {
                true => ClientError::Resources(error),
                false => ClientError::Start { program: Arc::clone(&self.name), error },
            }
        })?;
        let pipe = match slot.pipe {
            Some(pipe) => pipe.replaced_by(started.writer),
            None => PipeEnd::new(started.writer),
        };
        match pipe {
            Ok(pipe) => {
                slot.pipe = Some(pipe);
                slot.process = Some(started.process);
                slot.generation += 1;
                Ok((pipe, slot.generation))
            }
            Err(error) => {
                findings.1 = Some(started.process);
                Err(ClientError::Resources(error))
            }
        }
    }

    /// Waits for what was found dead, without the lock, and a bounded time.
    fn bury(&self, findings: Findings) {
        let Findings(dead, failed) = findings;
        let lives = |process: Process| {
            let fate = process.reap(Some(PATIENCE));
            let pid = process.pid;
            if fate == launch::Fate::Alive {
                enter().keep_useless(process);
            }
            (pid, End::from(fate))
        };
        if let Some(process) = failed {
            lives(process);
        }
        for (process, unread) in dead.into_iter().flatten() {
            let (pid, end) = lives(process);
            enter().slot(self.slot).untold.push(Death { pid, end, unread, more: 0 });
            self.untold.store(true, Ordering::Release);
        }
    }

    /// Tells of deaths, unless that is being done already: by another thread, or further down in this one.
    fn tell_of_deaths(&self) {
        if !self.untold.load(Ordering::Acquire) {
            return;
        }
        for _ in 0..TOLD_AT_ONCE {
            let death = {
                let mut state = enter();
                let slot = state.slot(self.slot);
                if slot.telling {
                    return;
                }
                let death = slot.untold.pop();
                slot.telling = death.is_some();
                if death.is_none() {
                    self.untold.store(false, Ordering::Release);
                }
                death
            };
            let Some(death) = death else { return };
            let _telling = Telling(self.slot);
            (self.on_death)(&death);
        }
    }
}

/// Says at its end, by a panic as well, that nobody is telling any more.
struct Telling(usize);

impl Drop for Telling {
    fn drop(&mut self) {
        enter().slot(self.0).telling = false;
    }
}

/// Closes the pipe: the tracker cleans up and ends, when nobody else has a copy of its end. It is not
/// waited for; see [`ResourceTracker::stop`].
impl Drop for ResourceTracker {
    fn drop(&mut self) {
        let (pipe, process) = self.let_go();
        if let Some(pipe) = pipe {
            pipe.close();
        }
        let mut state = enter();
        if let Some(process) = process {
            state.keep(process);
        }
        release(&mut state, self.slot);
    }
}

fn release(state: &mut State, index: usize) {
    let slot = state.slot(index);
    slot.taken = false;
    slot.untold = super::death::Untold::new();
}
