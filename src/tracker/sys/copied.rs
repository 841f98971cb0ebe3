//! Whether this process is a copy of the one that set a mark: the child of a fork.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// A mark that children do not have. A pid tells as much, but for the first process of a PID namespace
/// whose child is the first one of another: both are number 1.
pub(crate) struct Mark(AtomicPtr<AtomicBool>);

impl Mark {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Sets it, in memory that is zero in each child. Before Linux 4.14 there is none, and nobody is ever
    /// called a copy. Only once, and by one thread.
    pub(crate) fn set_up(&self) {
        let (protection, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let length = size_of::<AtomicBool>();
        // SAFETY: a mapping at a place of the kernel's choice replaces nothing, and nobody else knows it.
        // It is a page, which is aligned and large enough for the mark, and stays for good.
        unsafe {
            let page = libc::mmap(ptr::null_mut(), length, protection, kind, -1, 0);
            if page == libc::MAP_FAILED {
                return;
            }
            if libc::madvise(page, length, libc::MADV_WIPEONFORK) == -1 {
                libc::munmap(page, length);
                return;
            }
            let mark: *mut AtomicBool = page.cast();
            (*mark).store(true, Ordering::Relaxed);
            self.0.store(mark, Ordering::Release);
        }
    }

    fn get(&self) -> Option<&AtomicBool> {
        // SAFETY: it is null or the mark, whose page is never unmapped. Zeroes are valid for it.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Whether it was set in another process, of which this is a copy.
    pub(crate) fn is_gone(&self) -> bool {
        self.get().is_some_and(|mark| !mark.load(Ordering::Relaxed))
    }

    /// Sets it again, in a copy that has been told.
    pub(crate) fn renew(&self) {
        if let Some(mark) = self.get() {
            mark.store(true, Ordering::Relaxed);
        }
    }
}
