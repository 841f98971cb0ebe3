//! A lock that signal handlers and `fork` can live with.
//!
//! While a thread is inside, all of its signals are blocked, so that a handler never finds the lock
//! held by the code which it interrupts; nothing is allocated, neither for taking it nor for waiting.

use std::cell::UnsafeCell;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::gettid;

use super::signals::Blocked;

/// Somebody waits: whoever leaves has to wake them. Thread ids are below it.
const WAITED_FOR: u32 = 1 << 31;

/// A value that one thread at a time may touch.
pub(crate) struct Section<T> {
    /// The thread id of whoever is inside, with [`WAITED_FOR`]; 0: nobody.
    owner: AtomicU32,
    /// It is held from `prepare` of a fork to its end, by a thread that has no reference to the value.
    for_fork: AtomicBool,
    /// Forks within the handlers of that fork.
    nested: AtomicU32,
    /// What the thread that forks had blocked before.
    mask: UnsafeCell<Option<SigSet>>,
    value: UnsafeCell<T>,
}

// SAFETY: the value, and the mask, are touched only by the thread that `owner` names: see `enter`.
unsafe impl<T: Send> Sync for Section<T> {}

/// The calling thread's id.
fn me() -> u32 {
    gettid().as_raw().unsigned_abs()
}

/// Whether a thread of this process has that id. In a child of `fork`, those of its parent have none.
fn is_thread(id: u32) -> bool {
    let pid = libc::c_long::from(std::process::id());
    // SAFETY: signal 0 is sent to nobody, and the call touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, pid, libc::c_long::from(id), 0) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

impl<T> Section<T> {
    /// One that nobody is inside.
    pub(crate) const fn new(value: T) -> Self {
        Self {
            owner: AtomicU32::new(0),
            for_fork: AtomicBool::new(false),
            nested: AtomicU32::new(0),
            mask: UnsafeCell::new(None),
            value: UnsafeCell::new(value),
        }
    }

    fn take(&self, from: u32, me: u32) -> Result<u32, u32> {
        self.owner.compare_exchange(from, me, Ordering::Acquire, Ordering::Relaxed)
    }

    /// Waits until the lock is to be had. Signals are blocked while it is held, not while it is
    /// waited for.
    ///
    /// Code that `fork` runs in the thread that forks, while the lock is held for it, gets in too.
    pub(crate) fn enter(&self) -> Inside<'_, T> {
        let me = me();
        loop {
            let blocked = Blocked::new(&SigSet::all());
            let found = match self.take(0, me) {
                Ok(_) => return Inside { section: self, blocked, owns: true },
                Err(found) => found,
            };
            let owner = found & !WAITED_FOR;
            if owner == me && self.for_fork.load(Ordering::Relaxed) {
                return Inside { section: self, blocked, owns: false };
            }
            // The child of a fork whose handlers have not run here, or will never run.
            if !is_thread(owner) {
                if self.take(found, me).is_ok() {
                    self.for_fork.store(false, Ordering::Relaxed);
                    self.nested.store(0, Ordering::Relaxed);
                    return Inside { section: self, blocked, owns: true };
                }
                continue;
            }
            drop(blocked);
            self.wait(found);
        }
    }

    /// Sleeps until whoever is inside leaves, or a signal comes.
    fn wait(&self, found: u32) {
        let expected = found | WAITED_FOR;
        if found == expected
            || self
                .owner
                .compare_exchange(found, expected, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
            let no_end = std::ptr::null::<libc::timespec>();
            // SAFETY: the word outlives the call; the kernel reads it and compares.
            unsafe {
                libc::syscall(libc::SYS_futex, self.owner.as_ptr(), operation, expected, no_end)
            };
        }
    }

    fn leave(&self) {
        if self.owner.swap(0, Ordering::Release) & WAITED_FOR != 0 {
            let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
            // SAFETY: only the word's address is used.
            unsafe {
                libc::syscall(libc::SYS_futex, self.owner.as_ptr(), operation, libc::c_int::MAX)
            };
        }
    }

    /// The `prepare` handler of [`at_fork`]: nobody is inside when the process is copied.
    pub(crate) fn hold_for_fork(&self) {
        let inside = ManuallyDrop::new(self.enter());
        if !inside.owns {
            self.nested.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // SAFETY: this thread is inside, and touches nothing else meanwhile.
        unsafe { *self.mask.get() = Some(inside.blocked.before()) };
        self.for_fork.store(true, Ordering::Relaxed);
    }

    /// The `parent` handler of [`at_fork`].
    pub(crate) fn release_after_fork(&self) {
        if self.owner.load(Ordering::Relaxed) & !WAITED_FOR != me()
            || !self.for_fork.load(Ordering::Relaxed)
        {
            return;
        }
        if self.nested.load(Ordering::Relaxed) > 0 {
            self.nested.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        // SAFETY: this thread is inside since `hold_for_fork`.
        let mask = unsafe { (*self.mask.get()).take() };
        self.for_fork.store(false, Ordering::Relaxed);
        self.leave();
        if let Some(mask) = mask {
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).unwrap_or(());
        }
    }

    /// The `child` handler of [`at_fork`]: `forget` mends the value, which is a copy of the parent's.
    pub(crate) fn release_in_child(&self, forget: impl FnOnce(&mut T)) {
        let found = self.owner.load(Ordering::Relaxed);
        let held = found != 0 && !is_thread(found & !WAITED_FOR);
        if held && self.for_fork.load(Ordering::Relaxed) {
            // The parent's thread is this one here; nobody waits in a copy.
            self.owner.store(me(), Ordering::Relaxed);
        }
        forget(&mut self.enter());
        // SAFETY: nobody else is inside, for this thread is or was a moment ago, and a child has no
        // second one yet.
        let mask = unsafe { *self.mask.get() };
        self.release_after_fork();
        // Where other handlers of the child had to take the lock over, the mask is still that of
        // `hold_for_fork`.
        if let (false, Some(mask)) = (self.for_fork.load(Ordering::Relaxed), mask) {
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).unwrap_or(());
        }
    }
}

/// The lock is held, and the value to be used, while this lives.
pub(crate) struct Inside<'a, T> {
    section: &'a Section<T>,
    blocked: Blocked,
    /// False within handlers of a fork: the lock stays with it.
    owns: bool,
}

impl<T> Inside<'_, T> {
    /// What the thread has blocked outside.
    pub(crate) fn mask_outside(&self) -> SigSet {
        // SAFETY: this thread is inside.
        let of_fork = if self.owns { None } else { unsafe { *self.section.mask.get() } };
        of_fork.unwrap_or_else(|| self.blocked.before())
    }
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread is inside, and has no second reference: what holds the lock for a fork
        // keeps none, and nothing else lets a thread in that is inside already.
        unsafe { &*self.section.value.get() }
    }
}

impl<T> DerefMut for Inside<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.section.value.get() }
    }
}

impl<T> Drop for Inside<'_, T> {
    fn drop(&mut self) {
        if self.owns {
            self.section.leave();
        }
    }
}

/// Has `fork(3)` call these three: `prepare` before, the others after it (pthread_atfork(3)).
///
/// # Errors
/// `ENOMEM`
pub(crate) fn at_fork(
    prepare: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
) -> io::Result<()> {
    // SAFETY: the functions are part of the program and take nothing.
    match unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
