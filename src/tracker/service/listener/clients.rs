//! The loop: connections, the processes at their other ends, and what those leave.

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
        if self.clients.len() >= limits.clients {
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
        while all < most {
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

    /// One line of a connection.
    fn take(&mut self, number: u64, line: Result<&[u8], LineError<'_>>) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.line += 1;
        self.messages_read += 1;
        let line = match line {
            Ok(line) => line,
            Err(error) => return self.refuse(number, &[], &error),
        };
        if let Some(pid) = owner_of(line) {
            return match pid {
                Some(pid) => self.change_owner(number, line, pid),
                None => self.refuse(number, line, &"OWNER needs a pid"),
            };
        }
        let owner = client.owner;
        let message = match parse(line, self.options.dialect) {
            Ok(message) => message,
            Err(error) => return self.refuse(number, line, &error),
        };
        if message.command == Command::Probe {
            return self.reply(number);
        }
        let is_path = matches!(message.rtype, Rtype::File | Rtype::Folder);
        if is_path && message.name.first() != Some(&b'/') {
            // This process's directory is not the client's.
            return self.refuse(number, line, &"a path has to begin with / here");
        }
        let of_owner = self.watched.get(&owner).and_then(|watched| watched.peer.elsewhere);
        if let Some(elsewhere) = client.peer.elsewhere.or(of_owner).filter(|_| is_path) {
            return self.refuse(number, line, &elsewhere);
        }
        let found = match message.command {
            Command::Register => found::in_shm(message.rtype, &message.name),
            _ => None,
        };
        let uid = client.peer.uid;
        if let Some(other) = found.map(|stat| stat.uid).filter(|owner| uid != 0 && *owner != uid) {
            return self.refuse(number, line, &format_args!("it belongs to uid {other}"));
        }
        let then = Then { at: wall_clock(), identity: found.map(|stat| Identity::of(&stat)) };
        match self.owners.apply(owner, &message, || then) {
            Ok((change, given_up)) => {
                self.note(owner, &message, change, then);
                if let Some(given_up) = given_up
                    && let Some(watched) = self.watched.get(&owner)
                {
                    let (id, owner) = (owner, watched.peer.clone());
                    self.remover.add(Job { id, owner, left: vec![given_up], given_up: true });
                }
            }
            Err(error) => self.refuse(number, line, &error),
        }
    }

    /// What follows for the journal from a message of an owner.
    fn note(&mut self, owner: Id, message: &Message<'_>, change: Change, then: Then) {
        if !self.ledger.is_kept() {
            return;
        }
        let (rtype, name) = (message.rtype, &*message.name);
        match change {
            Change::Registered(1) => {
                if let Some(watched) = self.watched.get_mut(&owner)
                    && !std::mem::replace(&mut watched.announced, true)
                {
                    let Peer { pid, started: start_ticks, uid, gid, .. } = watched.peer;
                    let id = owner;
                    self.ledger.announced(journal::Owner { id, pid, start_ticks, uid, gid });
                }
                let Then { at, identity } = then;
                let name = name.to_vec();
                self.ledger.registered(owner, &Inherited { rtype, name, count: 1, identity, at });
            }
            Change::Registered(count) if self.options.dialect.releases(rtype) => {
                self.ledger.counted(owner, rtype, name, count);
            }
            Change::Released(count) if count > 0 => {
                self.ledger.counted(owner, rtype, name, count);
            }
            Change::Forgotten => self.ledger.taken_back(owner, rtype, name),
            // What was given up is written down when it is removed.
            Change::Released(_) | Change::Registered(_) | Change::None => {}
        }
    }

    /// Writes down in the journal what has changed.
    fn write_down(&mut self) {
        if let Some(warning) = self.ledger.write() {
            self.warn(format_args!("{warning}"));
        }
    }

    /// Takes over what a predecessor left: what is of living processes stays theirs, the rest is removed.
    fn inherit(&mut self, inheritance: Inheritance) {
        for warning in inheritance.warnings {
            self.warn(format_args!("{warning}"));
        }
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let mut count = 0_usize;
        for Heir { id, process, entries } in inheritance.heirs {
            // What was registered at a pipe is this daemon's own user's.
            let of_pipe = journal::Owner { id: 0, pid: 0, start_ticks: 0, uid: own.0, gid: own.1 };
            let process = process.or((id == 0).then_some(of_pipe));
            let peer = process.as_ref().map(Peer::of_the_past);
            let Some(Ok(peer)) = peer else {
                let left = entries.len();
                if left > 0 {
                    self.warn(format_args!(
                        "{left} names of the journal are of an owner that is not known: they are left alone"
                    ));
                }
                self.ledger.ended(id);
                continue;
            };
            count += entries.len();
            self.owners.restore(id, peer.uid, &entries);
            let has_ended = peer.has_ended();
            let lives = !has_ended && self.watch(&peer, process_token(id)).is_ok();
            let (by_connection, connections) = (false, Vec::new());
            let announced = true;
            let watched = Watched { peer, by_connection, connections, announced, inherited: true };
            self.watched.insert(id, watched);
            if !lives {
                self.end(id);
            }
        }
        if count > 0 {
            self.warn(format_args!("{count} names are taken over from a tracker that was killed"));
        }
        self.write_down();
        self.flush();
    }

    /// Counts a bad message, and tells what is wrong with it.
    fn refuse(&mut self, number: u64, line: &[u8], why: &dyn fmt::Display) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.bad += 1;
        self.bad += 1;
        client.wrong = Some(why.to_string());
        if client.bad > COMPLAINTS {
            return;
        }
        let more = if client.bad == COMPLAINTS { "; what follows is only counted" } else { "" };
        let text = format!(
            "{}: line {}: {}: {why}{more}",
            client.peer,
            client.line,
            shortened(line.strip_suffix(b"\n").unwrap_or(line)),
        );
        self.warn(format_args!("{text}"));
    }

    fn reply(&mut self, number: u64) {
        // What is answered for outlives the daemon.
        self.write_down();
        let Some(client) = self.clients.get_mut(&number) else { return };
        let answer = json!({
            "pid": std::process::id(),
            "messages": client.line - client.bad,
            "bad": client.bad,
            "registered": self.owners.len_of(client.owner),
            "wrong": client.wrong,
        });
        // Who does not read answers gets none when the socket is full.
        client.stream.write_all(format!("{answer}\n").as_bytes()).unwrap_or(());
    }

    /// From now on the connection registers for the process `pid`.
    fn change_owner(&mut self, number: u64, line: &[u8], pid: i32) {
        let Some(client) = self.clients.get(&number) else { return };
        let before = client.owner;
        let fresh = self.owners.len_of(before) == 0
            && self.watched.get(&before).is_some_and(|watched| watched.by_connection);
        if !fresh {
            return self.refuse(number, line, &"the owner is to be said first, and once");
        }
        let peer = match client.peer.on_behalf_of(pid) {
            Ok(peer) => peer,
            Err(unfit) => {
                return self.refuse(
                    number,
                    line,
                    &format_args!("process {pid} cannot own: {unfit}"),
                );
            }
        };
        let known = self.watched.iter().find(|(_, watched)| {
            !watched.by_connection && watched.peer.is(&peer) && watched.peer.uid == peer.uid
        });
        let owner = match known {
            Some((id, _)) => *id,
            None => {
                let id = self.owners.add(peer.uid);
                if let Err(errno) = self.watch(&peer, process_token(id)) {
                    self.owners.end(id);
                    return self.refuse(number, line, &errno);
                }
                let (by_connection, announced, inherited) = (false, false, false);
                let connections = Vec::new();
                let watched = Watched { peer, by_connection, connections, announced, inherited };
                self.watched.insert(id, watched);
                id
            }
        };
        self.forget(before);
        if let Some(watched) = self.watched.get_mut(&owner) {
            watched.connections.push(number);
        }
        if let Some(client) = self.clients.get_mut(&number) {
            client.owner = owner;
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
            if watched.by_connection {
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

    /// An owner is gone: what it left is removed.
    fn end(&mut self, owner: Id) {
        let left = self.owners.end(owner);
        let Some(watched) = self.watched.remove(&owner) else { return };
        self.epoll.delete(&watched.peer).unwrap_or(());
        self.tell(format_args!("{} is gone", watched.peer));
        if left.is_empty() {
            if watched.announced {
                self.ledger.ended(owner);
            }
            return;
        }
        self.warn_of_leaks(&watched.peer, &left);
        if self.ending {
            self.status.leftovers();
        }
        self.remover.add(Job { id: owner, owner: watched.peer, left, given_up: false });
    }

    /// Forgets an owner that has nothing.
    fn forget(&mut self, owner: Id) {
        self.owners.end(owner);
        if let Some(watched) = self.watched.remove(&owner) {
            self.epoll.delete(&watched.peer).unwrap_or(());
        }
    }

    fn warn_of_leaks(&mut self, peer: &Peer, left: &[Left]) {
        for rtype in self.options.dialect.rtypes() {
            let of_type = || left.iter().filter(|left| left.rtype == *rtype);
            let count = of_type().count();
            // As of Python's trackers, dummies leak silently.
            if count == 0 || *rtype == Rtype::Dummy {
                continue;
            }
            let names: Vec<String> =
                of_type().take(NAMED).map(|left| ReprStr(&left.name).to_string()).collect();
            let more =
                if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
            self.warn(format_args!(
                "{peer} left {count} {rtype} objects to clean up: {}{more}",
                names.join(", ")
            ));
        }
    }

    /// Says what could not be removed, and records everything.
    fn report_done(&mut self) {
        for Done { job, fates, .. } in self.remover.done() {
            let Job { id, owner, left, given_up } = job;
            if given_up {
                for left in &left {
                    self.ledger.taken_back(id, left.rtype, &left.name);
                }
            } else {
                self.ledger.ended(id);
            }
            let fates = match fates {
                Ok(fates) => fates,
                Err(error) => {
                    let count = left.len();
                    self.failed();
                    self.warn(format_args!(
                        "{owner}: {count} objects could not be removed: {error}"
                    ));
                    if !self.options.care.looks() {
                        continue;
                    }
                    let errno = error.raw_os_error().unwrap_or(libc::EPERM);
                    let says = "take the rights of its owner";
                    let failed = || {
                        let says = says.to_owned();
                        (Fate::Failed(RemoveError::Step { errno, says }), None)
                    };
                    let told = left.iter().map(|left| removal(left, given_up, failed()));
                    let removals = told.collect();
                    self.record(&owner, given_up, removals);
                    continue;
                }
            };
            let mut removals = Vec::new();
            for (left, (fate, seen)) in left.iter().zip(fates) {
                let name = ReprStr(&left.name);
                match &fate {
                    Fate::Removed(_) => {}
                    Fate::Kept(why) => {
                        let why = why_kept(why, seen.as_ref());
                        self.warn(format_args!("{owner}: {name} stays: {why}"));
                    }
                    Fate::Changed => {
                        self.warn(format_args!(
                            "{owner}: {name} stays: it is another object than was registered"
                        ));
                    }
                    Fate::Failed(error) => {
                        // What is gone already needed no removal; but for Python's words it would be one.
                        self.failed();
                        self.warn(format_args!("{owner}: {name}: {error}"));
                    }
                }
                removals.push(removal(left, given_up, (fate, seen)));
            }
            self.record(&owner, given_up, removals);
        }
    }

    fn record(&mut self, owner: &Peer, given_up: bool, removals: Vec<Removal>) {
        let Some(record) = &mut self.record else { return };
        let owner = Owner { pid: owner.pid, comm: owner.comm.clone(), uid: owner.uid };
        let warnings = record(Told { owner: Some(owner), end: !given_up, removals });
        for text in warnings {
            self.warn(format_args!("{text}"));
        }
    }

    fn failed(&mut self) {
        if self.ending {
            self.status.failed_removal();
        }
    }

    /// The end: what was written is still read, then everything goes that is registered.
    fn finish(&mut self) {
        self.ending = true;
        let connections: Vec<u64> = self.clients.keys().copied().collect();
        for number in &connections {
            self.read(*number, LAST_WORDS);
        }
        for number in connections {
            self.hang_up(number);
        }
        let owners: Vec<Id> = self.owners.ids().collect();
        for owner in owners {
            self.end(owner);
        }
        let began = Instant::now();
        while !self.remover.is_idle() && began.elapsed() < PATIENCE {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let mut ready =
                [nix::poll::PollFd::new(self.remover.as_fd(), nix::poll::PollFlags::POLLIN)];
            let timeout =
                nix::poll::PollTimeout::try_from(left).unwrap_or(nix::poll::PollTimeout::ZERO);
            // Whatever it answers, what is done is asked for next.
            nix::poll::poll(&mut ready, timeout).map(drop).unwrap_or(());
            self.report_done();
        }
        if !self.remover.is_idle() {
            self.failed();
            self.warn(format_args!("not everything that was left could be removed in time"));
        }
        self.write_down();
        self.tell(format_args!("resource tracker shut down"));
        self.flush();
    }

    /// What it has, for who asks.
    fn state(&self) -> TrackerState {
        let mut registered = Vec::new();
        for (id, watched) in &self.watched {
            let Peer { pid, uid, comm, .. } = &watched.peer;
            let by = Registrant { pid: *pid, uid: *uid, comm: comm.clone() };
            for (rtype, name, count, then) in self.owners.of(*id) {
                let (name, at, by) = (name.to_vec(), Some(then.at), Some(by.clone()));
                registered.push(Registered { rtype, name, count, at, by });
            }
        }
        TrackerState {
            pid: std::process::id(),
            dialect: self.options.dialect,
            listens: true,
            messages: self.messages_read,
            bad: self.bad,
            registered,
        }
    }

    /// Answers SIGUSR1.
    fn list(&mut self) {
        let ids: Vec<Id> = self.owners.ids().filter(|id| self.owners.len_of(*id) > 0).collect();
        let count: usize = ids.iter().map(|id| self.owners.len_of(*id)).sum();
        let mut text = format!("rtrack:{}: {count} registered\n", std::process::id());
        for id in ids {
            let Some(watched) = self.watched.get(&id) else { continue };
            for (rtype, name, ..) in self.owners.of(id) {
                text.push_str(&format!("{rtype} {} {}\n", ReprStr(name), watched.peer));
            }
        }
        self.say(format_args!("{text}"));
    }

    /// That somebody was turned away, now and then: anybody can cause it.
    fn turn_away(&mut self, why: fmt::Arguments<'_>) {
        if self.turned_away.is_none_or(|last| last.elapsed() >= TURNED_AWAY) {
            self.turned_away = Some(Instant::now());
            self.warn(why);
        }
    }

    fn warn(&mut self, text: fmt::Arguments<'_>) {
        if self.options.warnings {
            self.say(format_args!("rtrack:{}: UserWarning: {text}\n", std::process::id()));
        }
    }

    fn tell(&mut self, text: fmt::Arguments<'_>) {
        if self.options.verbose {
            self.say(format_args!("[DEBUG/MainProcess] {text}\n"));
        }
    }

    fn say(&mut self, text: fmt::Arguments<'_>) {
        // Whoever closed stderr does not want to know.
        self.messages.write_fmt(text).unwrap_or(());
    }

    fn flush(&mut self) {
        self.messages.flush().unwrap_or(());
    }
}

/// What became of something that was left.
fn removal(left: &Left, given_up: bool, (fate, seen): (Fate, Option<Seen>)) -> Removal {
    let Left { rtype, name, then, .. } = left;
    // 0 is the time of what was never noted.
    let registered_at = (then.at > 0).then_some(then.at);
    Removal { rtype: *rtype, name: name.clone(), given_up, fate, seen, state: None, registered_at }
}

/// The pid in a line that names an owner; nothing inside if there is none in it.
fn owner_of(line: &[u8]) -> Option<Option<i32>> {
    if line.first() != Some(&b'{') {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    if value.get("cmd")?.as_str()? != "OWNER" {
        return None;
    }
    let pid = value.get("pid").and_then(serde_json::Value::as_i64);
    Some(pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", escape(&self.peer.comm))
    }
}
