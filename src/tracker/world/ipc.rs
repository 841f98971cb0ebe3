//! An IPC namespace, in which System V objects are known by number.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use crate::tracker::host::Host;
use crate::tracker::sys;

/// An IPC namespace.
#[derive(Debug)]
pub struct Ipc {
    /// Another namespace than our own (`/proc/PID/ns/ipc`).
    pub namespace: Option<OwnedFd>,
}

impl Ipc {
    /// Calls `work` in this namespace: in another one than our own, in a thread that has gone there.
    ///
    /// # Errors
    /// There is no thread to be had, or it may not go there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let Some(namespace) = &self.namespace else { return Ok(work()) };
        std::thread::scope(|scope| {
            let inside = move || {
                sys::ipc::enter(namespace.as_fd())?;
                Ok(work())
            };
            let thread = std::thread::Builder::new().spawn_scoped(scope, inside)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread there has ended")))
        })
    }

    /// The number by which `/proc/PID/ns/ipc` names it, as far as it can be found out.
    #[must_use]
    pub fn number(&self, host: &Host) -> Option<u64> {
        match &self.namespace {
            None => std::fs::metadata(host.proc.join("self/ns/ipc")).ok().map(|m| m.ino()),
            Some(namespace) => sys::stat(namespace, c"").ok().map(|stat| stat.ino),
        }
    }
}
