//! Signals of the calling thread, and of nobody else: what is blocked, and the SIGPIPE of one write.

use std::marker::PhantomData;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::is_pending;

/// While it lives, signals of this thread wait; then they are as they were before.
#[derive(Debug)]
pub(crate) struct Blocked {
    before: SigSet,
    /// A mask is that of one thread.
    of_this_thread: PhantomData<*const ()>,
}

impl Blocked {
    /// Blocks `set`, beside what is blocked already.
    pub(crate) fn new(set: &SigSet) -> Self {
        let mut before = SigSet::empty();
        // It fails for an invalid `how` only.
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(set), Some(&mut before)).unwrap_or(());
        Self { before, of_this_thread: PhantomData }
    }

    /// What was blocked before.
    pub(crate) fn before(&self) -> SigSet {
        self.before
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None).unwrap_or(());
    }
}

/// Calls `write`, and takes the SIGPIPE back that it raises where it answers `EPIPE`: the program's
/// disposition stays what it is, and one that waited already is left to the program.
pub(crate) fn without_sigpipe<T>(write: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let blocked = Blocked::new(&pipe);
    let was_pending = is_pending(libc::SIGPIPE).unwrap_or(true);
    let result = write();
    if result.as_ref().err() == Some(&Errno::EPIPE) && !was_pending {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the set and the time outlive the call, and nothing is asked about the signal. That
        // none waits is no error: it is for this thread, and only this function consumes it.
        unsafe { libc::sigtimedwait(pipe.as_ref(), std::ptr::null_mut(), &at_once) };
    }
    drop(blocked);
    result
}

/// Gives the caller's `errno` back at its end: a signal handler must not change that of the code
/// which it interrupts.
pub(crate) struct KeptErrno(i32);

impl KeptErrno {
    pub(crate) fn new() -> Self {
        Self(Errno::last_raw())
    }
}

impl Drop for KeptErrno {
    fn drop(&mut self) {
        Errno::set_raw(self.0);
    }
}
