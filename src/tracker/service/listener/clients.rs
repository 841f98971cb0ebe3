//! The loop: connections, the processes at their other ends, and what those leave.

mod endings;
mod messages;
mod telling;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::json;

use super::owners::{Id, Left, Owners, Then};
use super::peer::Peer;
use super::remover::{Done, Job, Remover};
use super::{LINE_MAX, Options};
use crate::tracker::host::wall_clock;
use crate::tracker::journal;
use crate::tracker::reap::registered::{Fate, RemoveError};
use crate::tracker::resource::{Identity, escape};
use crate::tracker::service::control::Control;
use crate::tracker::service::dialect::{Command, Rtype};
use crate::tracker::service::found;
use crate::tracker::service::leaks::{Owner, Seen, why_kept};
use crate::tracker::service::ledger::{Heir, Inheritance, Inherited, Ledger};
use crate::tracker::service::protocol::{Framer, LineError, Message, parse, shortened};
use crate::tracker::service::python::ReprStr;
use crate::tracker::service::registry::{Change, Status};
use crate::tracker::service::server::{Recorder, Removal, Told};
use crate::tracker::service::state::{Registered, Registrant, TrackerState};
use crate::tracker::sys;

/// How much is read of one connection before others have their turn, in bytes.
const PIECE: usize = 64 * 1024;

/// How much is still read of the connections of a process that has ended, in bytes: what it wrote lies in a
/// socket's buffer, but others may go on writing to it.
const LAST_WORDS: usize = 1024 * 1024;

/// Of so many bad messages of a connection it is told what was wrong; the others are counted.
const COMPLAINTS: u64 = 16;

/// So many names are listed in a warning.
const NAMED: usize = 20;

/// Of so many objects of one owner it is told why each was not removed.
const TOLD: usize = 100;

/// How long is waited at the end for removals that take their time.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long clients are accepted before others have their turn: to look at one may take some milliseconds.
const TURN: Duration = Duration::from_millis(5);

/// How long nobody is accepted after that could not be done, for want of descriptors for instance.
const REST: Duration = Duration::from_millis(200);

/// How often it is told that somebody was turned away.
const TURNED_AWAY: Duration = Duration::from_secs(1);

/// What an event is about; the numbers of connections and owners follow.
const SIGNALS: u64 = 0;
const LISTENER: u64 = 1;
const REMOVER: u64 = 2;
const CONTROL: u64 = 3;
const FIRST: u64 = 4;

/// A connection.
struct Client {
    stream: UnixStream,
    framer: Framer,
    peer: Peer,
    owner: Id,
    /// The number of the last line, from 1.
    line: u64,
    bad: u64,
    wrong: Option<String>,
}

/// A process that owns what is registered.
struct Watched {
    peer: Peer,
    /// Whether it is the owner for as long as its one connection lasts; else until it ends.
    by_connection: bool,
    connections: Vec<u64>,
    /// It is written down who it is.
    announced: bool,
    /// It is known from a predecessor.
    inherited: bool,
}

/// Serves until SIGTERM or SIGINT, which have to be blocked; then removes what is left, and answers with the
/// exit status: that of the end, since what single clients do wrong is their own matter.
///
/// # Errors
/// The loop cannot be set up, or waiting fails.
pub fn run<'a>(
    listener: &'a UnixListener,
    options: Options,
    messages: &'a mut dyn Write,
    record: Option<Recorder<'a>>,
    control: Option<&'a Control>,
    ledger: (&'a mut Ledger, Inheritance),
) -> io::Result<Status> {
    let (ledger, inheritance) = ledger;
    listener.set_nonblocking(true)?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&asked(), flags)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let remover = Remover::new(options.care)?;
    let mut service = Service {
        options,
        listener,
        epoll,
        signals,
        owners: Owners::new(options.limits, inheritance.next_owner),
        watched: HashMap::new(),
        clients: HashMap::new(),
        next: 0,
        of_user: HashMap::new(),
        remover,
        messages,
        record,
        control,
        ledger,
        messages_read: 0,
        bad: 0,
        status: Status::default(),
        resting: None,
        turned_away: None,
        ending: false,
    };
    service.watch(&service.signals, SIGNALS)?;
    service.watch(&service.remover, REMOVER)?;
    service.watch(service.listener, LISTENER)?;
    if let Some(control) = control {
        service.watch(control, CONTROL)?;
    }
    service.inherit(inheritance);
    service.serve()?;
    service.finish();
    Ok(service.status)
}

/// Blocks the signals that [`run`] waits for. Those that would end the tracker before it has cleaned are ignored, as
/// a tracker at a pipe does, but for the two which mean that it is to end.
///
/// # Errors
/// What the system call failed with.
pub fn block_signals() -> io::Result<()> {
    asked().thread_block()?;
    for signal in IGNORED {
        sys::ignore_signal(signal as i32)?;
    }
    // The program that started it may have blocked more.
    let rest: SigSet = IGNORED.into_iter().collect();
    rest.thread_unblock()?;
    Ok(())
}

/// What is not meant for it: hang-ups of a terminal, and what writing to a broken, full or background stderr
/// or to a client that is gone raises.
const IGNORED: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE, Signal::SIGXFSZ, Signal::SIGTTOU];

/// The signals that are waited for: the end, and the question what is registered.
fn asked() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1].into_iter().collect()
}

struct Service<'a> {
    options: Options,
    listener: &'a UnixListener,
    epoll: Epoll,
    signals: SignalFd,
    owners: Owners,
    watched: HashMap<Id, Watched>,
    clients: HashMap<u64, Client>,
    /// The number of the next connection.
    next: u64,
    /// How many connections a user has.
    of_user: HashMap<u32, usize>,
    remover: Remover,
    messages: &'a mut dyn Write,
    record: Option<Recorder<'a>>,
    control: Option<&'a Control>,
    ledger: &'a mut Ledger,
    /// How many messages were read, and how many of them were bad.
    messages_read: u64,
    bad: u64,
    status: Status,
    /// Until when nobody is accepted.
    resting: Option<Instant>,
    /// When it was last told that somebody was turned away.
    turned_away: Option<Instant>,
    /// The daemon ends: from now on what is left counts for the exit status.
    ending: bool,
}

const fn connection_token(number: u64) -> u64 {
    FIRST + 2 * number
}

const fn process_token(owner: Id) -> u64 {
    FIRST + 2 * owner + 1
}
impl Service<'_> {
    fn watch(&self, what: impl AsFd, token: u64) -> nix::Result<()> {
        self.epoll.add(what, EpollEvent::new(EpollFlags::EPOLLIN, token))
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let timeout = match self.resting {
                Some(until) => until.saturating_duration_since(Instant::now()),
                None => Duration::MAX,
            };
            let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::NONE);
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if self.resting.is_some_and(|until| Instant::now() >= until) {
                self.resting = None;
                self.watch(self.listener, LISTENER)?;
            }
            for token in events.iter().take(ready).map(EpollEvent::data) {
                match token {
                    SIGNALS => {
                        if self.answer_signals() {
                            return Ok(());
                        }
                    }
                    LISTENER => self.accept(),
                    REMOVER => self.report_done(),
                    CONTROL => {
                        if let Some(control) = self.control {
                            control.answer(|| self.state());
                        }
                    }
                    // What was ended by an event before this one is not there any more.
                    token if token % 2 == FIRST % 2 => self.read((token - FIRST) / 2, PIECE),
                    token => self.process_ended((token - FIRST) / 2),
                }
            }
            self.write_down();
            self.flush();
        }
    }

    /// Whether it is the end.
    fn answer_signals(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if i32::try_from(signal.ssi_signo) == Ok(Signal::SIGUSR1 as i32) {
                self.list();
            } else {
                return true;
            }
        }
        false
    }

    fn accept(&mut self) {
        // Others have to have their turn.
        let began = Instant::now();
        for _ in 0..64 {
            if began.elapsed() >= TURN {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return,
                    Some(libc::EINTR | libc::ECONNABORTED) => {}
                    _ => {
                        self.turn_away(format_args!("accept: {error}"));
                        // It would be told of at once again.
                        self.epoll.delete(self.listener).unwrap_or(());
                        self.resting = Some(Instant::now() + REST);
                        return;
                    }
                },
            }
        }
    }

    fn welcome(&mut self, stream: UnixStream) {
        let refused = match Peer::of(&stream) {
            Ok(peer) => match self.take_in(stream, peer) {
                Ok(()) => return,
                Err((stream, why)) => (stream, why),
            },
            Err(unfit) => (stream, format!("a client is not served: {unfit}")),
        };
        let (mut stream, why) = refused;
        stream.set_nonblocking(true).unwrap_or(());
        let answer = format!("{}\n", json!({ "error": why }));
        // Who does not read it sees the end.
        stream.write_all(answer.as_bytes()).unwrap_or(());
        self.turn_away(format_args!("{why}"));
    }

    fn take_in(&mut self, stream: UnixStream, peer: Peer) -> Result<(), (UnixStream, String)> {
        let limits = self.options.limits;
        let of_user = self.of_user.get(&peer.uid).copied().unwrap_or(0);
        // Some are root's: no number of other users takes them all.
        let most = if peer.uid == 0 { limits.clients } else { limits.clients - limits.clients / 8 };
        if self.clients.len() >= most {
            let count = self.clients.len();
            return Err((stream, format!("{count} clients are connected, and no more may be")));
        }
        if of_user >= limits.clients_of(peer.uid) {
            let uid = peer.uid;
            let why = format!("{of_user} clients of uid {uid} are connected, and no more may be");
            return Err((stream, why));
        }
        let number = self.next;
        // Who registered with a predecessor goes on with what is registered.
        let inherited = self.watched.iter().find(|(_, watched)| {
            watched.inherited && watched.peer.is(&peer) && watched.peer.uid == peer.uid
        });
        let inherited = inherited.map(|(id, _)| *id);
        let owner = inherited.unwrap_or_else(|| self.owners.add(peer.uid));
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| Ok(self.watch(&stream, connection_token(number))?))
            .and_then(|()| match inherited {
                Some(_) => Ok(()),
                None => Ok(self.watch(&peer, process_token(owner))?),
            });
        if let Err(error) = watched {
            if inherited.is_none() {
                self.owners.end(owner);
            }
            return Err((stream, format!("a client is not served: {error}")));
        }
        self.next += 1;
        *self.of_user.entry(peer.uid).or_insert(0) += 1;
        self.tell(format_args!("{peer} has connected"));
        match self.watched.get_mut(&owner) {
            // The end of this connection means nothing: nobody knows what the one before it was for.
            Some(watched) => watched.connections.push(number),
            None => {
                let connections = vec![number];
                let (by_connection, announced, inherited) = (true, false, false);
                let peer = peer.clone();
                let watched = Watched { peer, by_connection, connections, announced, inherited };
                self.watched.insert(owner, watched);
            }
        }
        let framer = Framer::with_bound(LINE_MAX);
        let client = Client { stream, framer, peer, owner, line: 0, bad: 0, wrong: None };
        self.clients.insert(number, client);
        Ok(())
    }

    /// Reads what a connection has to say, up to `most` bytes.
    fn read(&mut self, number: u64, most: usize) {
        let mut piece = [0; 4096];
        let mut all = 0;
        let began = Instant::now();
        // Neither much nor what takes long keeps others waiting; what is said last is read whole.
        while all < most && (most > PIECE || began.elapsed() < TURN) {
            // It may be gone after any line.
            let Some(client) = self.clients.get_mut(&number) else { return };
            match client.stream.read(&mut piece) {
                Ok(0) => {
                    let mut framer = std::mem::take(&mut client.framer);
                    // A line that was cut off was not meant to end there: half a name is another name.
                    let cut = |line: Result<&[u8], LineError<'_>>| {
                        self.refuse(number, line.unwrap_or_default(), &"it was cut off");
                    };
                    framer.finish(cut);
                    return self.hang_up(number);
                }
                Ok(length) => {
                    all += length;
                    let mut framer = std::mem::take(&mut client.framer);
                    framer.push(piece.get(..length).unwrap_or_default(), |line| {
                        self.take(number, line);
                    });
                    if let Some(client) = self.clients.get_mut(&number) {
                        client.framer = framer;
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return,
                    // Such as ECONNRESET: it is gone with things unread.
                    _ => return self.hang_up(number),
                },
            }
        }
    }

    /// A connection has ended, by whoever ended it.
    fn hang_up(&mut self, number: u64) {
        let Some(client) = self.clients.remove(&number) else { return };
        self.epoll.delete(&client.stream).unwrap_or(());
        if let Some(count) = self.of_user.get_mut(&client.peer.uid) {
            *count -= 1;
            if *count == 0 {
                self.of_user.remove(&client.peer.uid);
            }
        }
        if client.bad > COMPLAINTS {
            let (peer, bad) = (&client.peer, client.bad);
            let text = format!("{peer}: {bad} messages were bad");
            self.warn(format_args!("{text}"));
        }
        if let Some(watched) = self.watched.get_mut(&client.owner) {
            watched.connections.retain(|other| *other != number);
            // Who has nothing and nobody registers for is not waited for.
            let idle = watched.connections.is_empty() && !watched.inherited;
            if watched.by_connection || idle && self.owners.len_of(client.owner) == 0 {
                self.end(client.owner);
            }
        }
    }

    /// A process has ended, and with it the connections that are its own, whoever else has copies of them.
    fn process_ended(&mut self, owner: Id) {
        let Some(watched) = self.watched.get(&owner) else { return };
        let connections = watched.connections.clone();
        for number in &connections {
            self.read(*number, LAST_WORDS);
        }
        // Who registered for it has nobody to register for any more.
        for number in connections {
            self.hang_up(number);
        }
        self.end(owner);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", escape(&self.peer.comm))
    }
}
