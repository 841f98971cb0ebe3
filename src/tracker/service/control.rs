//! The socket on which a daemon tells what it has, to its own user and to root.
//!
//! Who connects is sent a document and the end. Nothing is read: there is nothing to ask for.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::listener::{BindError, Bound};
use super::state::TrackerState;

/// How long an answer may take; who does not read it by then gets a part of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many are answered at a time. Others see the end at once.
const MOST: usize = 8;

/// What is waited where not even the spare descriptor is to be had.
const REST: Duration = Duration::from_millis(20);

/// A socket that is listened on.
#[derive(Debug)]
pub struct Control {
    bound: Bound,
    answering: Arc<AtomicUsize>,
    /// A descriptor that is given up to accept who cannot be accepted otherwise: poll would tell of
    /// them for ever.
    spare: RefCell<Option<File>>,
}

impl Control {
    /// Listens at `path`, for its own user and root.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn new(path: &Path) -> Result<Self, BindError> {
        let bound = Bound::at(path, 0o600)?;
        let io = |error| BindError::Io { operation: "listen at", path: path.into(), error };
        bound.listener().set_nonblocking(true).map_err(io)?;
        Ok(Self { bound, answering: Arc::default(), spare: RefCell::new(spare()) })
    }

    /// Answers everybody who waits. The answer is made once, and written on threads, so that nobody keeps the
    /// daemon waiting. Where there is no descriptor to be had, who waits sees the end at once.
    pub fn answer(&self, state: impl Fn() -> TrackerState) {
        let mut snapshot: Option<Arc<(TrackerState, OnceLock<Vec<u8>>)>> = None;
        loop {
            let stream = match self.bound.listener().accept() {
                Ok((stream, _)) => stream,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    if self.turn_away() {
                        continue;
                    }
                    return;
                }
                // Whatever else accept fails with, poll tells of it again.
                Err(_) => return,
            };
            if !is_welcome(&stream) || self.answering.load(Ordering::Relaxed) >= MOST {
                continue;
            }
            let snapshot = snapshot.get_or_insert_with(|| Arc::new((state(), OnceLock::new())));
            let (snapshot, answering) = (Arc::clone(snapshot), Arc::clone(&self.answering));
            answering.fetch_add(1, Ordering::Relaxed);
            let write = move || {
                // No signal is meant for this thread; and a reader that is gone raises none.
                SigSet::all().thread_block().unwrap_or(());
                let (state, document) = &*snapshot;
                let document = document.get_or_init(|| {
                    let mut bytes = serde_json::to_vec(state).unwrap_or_default();
                    bytes.push(b'\n');
                    bytes
                });
                write_within(stream, document).unwrap_or(());
                answering.fetch_sub(1, Ordering::Relaxed);
            };
            if thread::Builder::new().name("control".into()).spawn(write).is_err() {
                self.answering.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Ends a connection that there is no descriptor for; whether there was one that could be.
    fn turn_away(&self) -> bool {
        let mut kept = self.spare.borrow_mut();
        drop(kept.take());
        let ended = self.bound.listener().accept().map(drop);
        *kept = spare();
        if ended.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            // Another thread was faster. To try without a rest would take a whole processor.
            thread::sleep(REST);
        }
        ended.is_ok()
    }

    /// Takes the name away.
    ///
    /// # Errors
    /// The errno of unlink(2).
    pub fn close(self) -> io::Result<()> {
        self.bound.close()
    }
}

impl AsFd for Control {
    /// It is readable when somebody asks.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bound.as_fd()
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

fn is_welcome(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| [own, 0].contains(&peer.uid()))
}

fn write_within(mut stream: UnixStream, document: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(document)
}
