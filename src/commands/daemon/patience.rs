//! Files that must not keep the daemon from its work: what they do not take in time is left.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;

/// How long a file may take to open: it may lie on a server that is gone, and clients wait.
pub(super) const OPENING: Duration = Duration::from_secs(1);

/// How long it may take to write everything.
pub(super) const WRITING: Duration = Duration::from_secs(5);

/// What can go wrong with such a file.
pub(super) enum Trouble<E> {
    /// It answered with an error.
    Failed(E),
    /// It did not answer.
    Late,
    /// No thread could be made to wait for it.
    Thread(std::io::Error),
}

/// Does `work` on a thread, which is left behind when it takes longer than `patience`.
pub(super) fn within<T: Send + 'static, E: Send + 'static>(
    patience: Duration,
    name: &str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Trouble<E>> {
    // No signal is meant for that thread: some have to interrupt this one.
    let thread_failed = |errno: nix::Error| Trouble::Thread(errno.into());
    let before = SigSet::thread_get_mask().map_err(thread_failed)?;
    SigSet::all().thread_block().map_err(thread_failed)?;
    let (done, result) = mpsc::channel();
    // Whoever does not wait any more needs no answer.
    let job = move || done.send(work()).unwrap_or(());
    let spawned = thread::Builder::new().name(name.into()).spawn(job);
    before.thread_set_mask().map_err(thread_failed)?;
    spawned.map_err(Trouble::Thread)?;
    match result.recv_timeout(patience) {
        Ok(result) => result.map_err(Trouble::Failed),
        Err(_) => Err(Trouble::Late),
    }
}
