//! What the racing processes share: counters in memory that all of them have mapped.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::NAMES;

/// What openers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Count {
    /// Objects opened.
    Opens,
    /// Times when there was nothing of that name.
    Missing,
    /// Objects that their name no longer led to when they had been opened.
    LostAtOpen,
    /// Those of them whose name had a newer object by then.
    LostToNewer,
    /// Objects that lost their name while they were held.
    LostWhileHeld,
    /// Objects that were under their name after a newer one had been made there.
    Stale,
    /// Objects that held something else than what their creator wrote.
    WrongContent,
}

impl Count {
    pub(super) const ALL: [Self; 7] = [
        Self::Opens,
        Self::Missing,
        Self::LostAtOpen,
        Self::LostToNewer,
        Self::LostWhileHeld,
        Self::Stale,
        Self::WrongContent,
    ];
}

/// So many lost objects are remembered; more are as good as that.
const LOST: usize = 4096;

/// All zero at first.
#[repr(C)]
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    counts: [AtomicU64; Count::ALL.len()],
    /// By name, the number of the newest object that was made and written.
    latest: [AtomicU64; NAMES],
    /// How many places of `lost` are taken.
    lost_count: AtomicU64,
    /// Inodes of objects that were lost at open and that no newer one had replaced.
    lost: [AtomicU64; LOST],
}

/// The mapped memory, which stays until the process ends.
#[derive(Debug)]
pub(super) struct Board(&'static Shared);

impl Board {
    /// A new one, and the memory by which children find it, which they inherit.
    pub(super) fn make() -> (Self, OwnedFd) {
        let flags = nix::sys::memfd::MFdFlags::empty();
        let memory = nix::sys::memfd::memfd_create(c"race", flags).unwrap();
        let memory = File::from(memory);
        memory.set_len(size_of::<Shared>().try_into().unwrap()).unwrap();
        (Self::map(&memory), memory.into())
    }

    /// That of the parent.
    pub(super) fn inherited(number: i32) -> Self {
        // SAFETY: the parent says that this descriptor is the memory, and nothing else here uses it.
        Self::map(&unsafe { File::from_raw_fd(number) })
    }

    fn map(memory: &File) -> Self {
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let (size, fd) = (size_of::<Shared>(), memory.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size, access, shared, fd, 0) };
        assert!(address != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: the mapping is never removed, large enough, aligned to pages, and everything in
        // it is an atomic integer or a flag that is only ever set to true.
        Self(unsafe { &*address.cast::<Shared>() })
    }

    pub(super) fn add(&self, count: Count) {
        self.0.counts[count as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> BTreeMap<Count, u64> {
        let count = |count: Count| self.0.counts[count as usize].load(Ordering::Relaxed);
        Count::ALL.into_iter().map(|which| (which, count(which))).collect()
    }

    pub(super) fn stop(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.0.stop.load(Ordering::SeqCst)
    }

    /// The number of the newest object of the name with this index; 0 while there was none.
    pub(super) fn latest(&self, index: usize) -> u64 {
        self.0.latest[index].load(Ordering::SeqCst)
    }

    pub(super) fn set_latest(&self, index: usize, number: u64) {
        self.0.latest[index].store(number, Ordering::SeqCst);
    }

    /// Remembers a lost object.
    pub(super) fn lose(&self, inode: u64) {
        let place = self.0.lost_count.fetch_add(1, Ordering::SeqCst);
        if let Some(lost) = self.0.lost.get(usize::try_from(place).unwrap()) {
            lost.store(inode, Ordering::SeqCst);
        }
    }

    /// Every lost object.
    pub(super) fn lost(&self) -> impl Iterator<Item = u64> {
        let inodes = self.0.lost.iter().map(|inode| inode.load(Ordering::SeqCst));
        inodes.filter(|inode| *inode != 0)
    }
}
