//! What this process has of trackers, in one place, so that `fork` can be told of all of it.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use super::death::Untold;
use crate::tracker::sys::launch::{Fate, Process};
use crate::tracker::sys::pipe_end::PipeEnd;
use crate::tracker::sys::section::{Inside, Section, at_fork};

/// How many trackers one process may have at a time.
pub(super) const SLOTS: usize = 32;

/// How many processes are waited for that closed their pipe and did not end.
const LINGERING: usize = 32;

/// How long is waited for a tracker that has closed its pipe: a process that ends does so some
/// moments before it can be waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// One client's tracker.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) taken: bool,
    /// The process whose tracker it is; a child of it has none.
    pub(super) owner: u32,
    /// How often a tracker was started, or forgotten.
    pub(super) generation: u64,
    /// Nothing before the first one.
    pub(super) pipe: Option<PipeEnd>,
    /// Nothing once it is known to be dead.
    pub(super) process: Option<Process>,
    pub(super) untold: Untold,
    /// Somebody is telling.
    pub(super) telling: bool,
}

impl Slot {
    const EMPTY: Self = Self {
        taken: false,
        owner: 0,
        generation: 0,
        pipe: None,
        process: None,
        untold: Untold::new(),
        telling: false,
    };

    /// In a child: the tracker is its parent's, which would wait for this copy of the pipe's end.
    fn forget(&mut self, pid: u32) {
        if let Some(pipe) = self.pipe.take() {
            pipe.close();
        }
        self.process = None;
        self.untold = Untold::new();
        self.telling = false;
        self.generation += 1;
        self.owner = pid;
    }
}

/// All of it.
pub(super) struct State {
    slots: [Slot; SLOTS],
    lingering: [Option<Process>; LINGERING],
}

static STATE: Section<State> =
    Section::new(State { slots: [Slot::EMPTY; SLOTS], lingering: [const { None }; LINGERING] });

impl State {
    /// Forgets what is somebody else's.
    fn mend(&mut self) {
        let pid = std::process::id();
        let mut copied = false;
        for slot in self.slots.iter_mut().filter(|slot| slot.taken && slot.owner != pid) {
            slot.forget(pid);
            copied = true;
        }
        if copied {
            self.lingering = [const { None }; LINGERING];
        }
    }

    /// A place for a client.
    pub(super) fn claim(&mut self) -> Option<usize> {
        let index = self.slots.iter().position(|slot| !slot.taken)?;
        let generation = self.slots.get(index).map_or(0, |slot| slot.generation);
        let owner = std::process::id();
        *self.slots.get_mut(index)? = Slot { taken: true, owner, generation, ..Slot::EMPTY };
        Some(index)
    }

    /// The place number `index`, which [`State::claim`] answered.
    pub(super) fn slot(&mut self, index: usize) -> &mut Slot {
        #[allow(clippy::indexing_slicing, reason = "it is one of those of `claim`")]
        &mut self.slots[index]
    }

    /// Keeps a child that has not ended, to be waited for later.
    pub(super) fn keep(&mut self, process: Process) {
        self.sweep();
        if let Some(place) = self.lingering.iter_mut().find(|place| place.is_none()) {
            *place = Some(process);
        }
    }

    /// Waits for those that have ended meanwhile.
    pub(super) fn sweep(&mut self) {
        for place in &mut self.lingering {
            if place
                .as_ref()
                .is_some_and(|process| process.reap(Some(Duration::ZERO)) != Fate::Alive)
            {
                *place = None;
            }
        }
    }
}

/// Takes the lock.
pub(super) fn enter() -> Inside<'static, State> {
    let mut state = STATE.enter();
    // Where fork's handlers have not run: those of others that are called before ours in a child, and
    // the children of a bare clone(2).
    state.mend();
    state
}

extern "C" fn prepare() {
    STATE.hold_for_fork();
}

extern "C" fn parent() {
    STATE.release_after_fork();
}

extern "C" fn child() {
    STATE.release_in_child(State::mend);
}

/// Has `fork` know of the lock, once.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            at_fork(prepare, parent, child).map_err(|error| error.raw_os_error().unwrap_or(0))
        })
        .map_err(io::Error::from_raw_os_error)
}
