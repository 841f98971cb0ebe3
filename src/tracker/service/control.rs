//! The socket on which a daemon tells what it has, to its own user and to root.
//!
//! Who connects is sent a document and the end. Nothing is read: there is nothing to ask for.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// A socket that is listened on.
#[derive(Debug)]
pub struct Control {
    bound: Bound,
    answering: Arc<AtomicUsize>,
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
        Ok(Self { bound, answering: Arc::default() })
    }

    /// Answers everybody who waits. The answer is made once, and written on threads, so that nobody keeps the
    /// daemon waiting.
    pub fn answer(&self, state: impl Fn() -> TrackerState) {
        let mut document: Option<Arc<Vec<u8>>> = None;
        // Whatever else accept fails with, poll tells of it again.
        while let Ok((stream, _)) = self.bound.listener().accept() {
            if !is_welcome(&stream) || self.answering.load(Ordering::Relaxed) >= MOST {
                continue;
            }
            let document = document.get_or_insert_with(|| {
                let mut bytes = serde_json::to_vec(&state().document()).unwrap_or_default();
                bytes.push(b'\n');
                Arc::new(bytes)
            });
            let (document, answering) = (Arc::clone(document), Arc::clone(&self.answering));
            answering.fetch_add(1, Ordering::Relaxed);
            let write = move || {
                // No signal is meant for this thread; and a reader that is gone raises none.
                SigSet::all().thread_block().unwrap_or(());
                write_within(stream, &document).unwrap_or(());
                answering.fetch_sub(1, Ordering::Relaxed);
            };
            if thread::Builder::new().name("control".into()).spawn(write).is_err() {
                self.answering.fetch_sub(1, Ordering::Relaxed);
            }
        }
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

fn is_welcome(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| [own, 0].contains(&peer.uid()))
}

fn write_within(mut stream: UnixStream, document: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(document)
}
