//! What this process has of trackers, in one place, so that `fork` can be told of all of it.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use super::death::Untold;
use crate::tracker::sys::copied::Mark;
use crate::tracker::sys::launch::{Fate, Process};
use crate::tracker::sys::pipe_end::PipeEnd;
use crate::tracker::sys::section::{Inside, Section, at_fork};

/// How many trackers one process may have at a time.
pub(super) const SLOTS: usize = 32;

/// How many processes are waited for that closed their pipe and live on while their client lives as well.
const LINGERING: usize = 32;

/// How long is waited for a tracker that has closed its pipe: a process that ends does so some
/// moments before it can be waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// One client's tracker.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) taken: bool,
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
        generation: 0,
        pipe: None,
        process: None,
        untold: Untold::new(),
        telling: false,
    };

    /// In a child: the tracker is its parent's, which would wait for this copy of the pipe's end.
    fn forget(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipe.close();
        }
        self.process = None;
        self.untold = Untold::new();
        self.telling = false;
        self.generation += 1;
    }
}

/// All of it.
pub(super) struct State {
    /// The process whose trackers these are; a child of it has none.
    owner: u32,
    slots: [Slot; SLOTS],
    /// Those that are still to be waited for. There is always room for the tracker of each client, since
    /// whoever claims a place for one makes it before; nothing grows in the lock.
    lingering: Vec<Process>,
}

static STATE: Section<State> =
    Section::new(State { owner: 0, slots: [Slot::EMPTY; SLOTS], lingering: Vec::new() });

/// That the state is this process's own, and no copy.
static OWN: Mark = Mark::new();

impl State {
    /// Forgets what is somebody else's.
    fn mend(&mut self) {
        let pid = std::process::id();
        if self.owner == pid && !OWN.is_gone() {
            return;
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.taken) {
            slot.forget();
        }
        self.lingering.clear();
        self.owner = pid;
        OWN.renew();
    }

    fn clients(&self) -> usize {
        self.slots.iter().filter(|slot| slot.taken).count()
    }

    fn has_room_for(&self, more: usize) -> bool {
        self.lingering.len() + more <= self.lingering.capacity()
    }

    fn claim(&mut self) -> Option<usize> {
        let index = self.slots.iter().position(|slot| !slot.taken)?;
        let generation = self.slots.get(index).map_or(0, |slot| slot.generation);
        *self.slots.get_mut(index)? = Slot { taken: true, generation, ..Slot::EMPTY };
        Some(index)
    }

    /// The place number `index`, which [`claim`] answered.
    pub(super) fn slot(&mut self, index: usize) -> &mut Slot {
        #[allow(clippy::indexing_slicing, reason = "it is one of those of `claim`")]
        &mut self.slots[index]
    }

    /// Keeps the tracker of a client that is done with it, to be waited for later.
    pub(super) fn keep(&mut self, process: Process) {
        self.sweep();
        if self.has_room_for(1) {
            self.lingering.push(process);
        }
    }

    /// Keeps a child that was found not to read, while its client lives and has another one: not in the
    /// room that is for the trackers of clients.
    pub(super) fn keep_useless(&mut self, process: Process) {
        self.sweep();
        if self.has_room_for(1 + self.clients()) {
            self.lingering.push(process);
        }
    }

    /// Waits for those that have ended meanwhile.
    pub(super) fn sweep(&mut self) {
        self.lingering.retain(|process| process.reap(Some(Duration::ZERO)) == Fate::Alive);
    }
}

/// A place for a client, and room for its tracker to be waited for. It is made outside the lock, where
/// what was there before is given back as well.
pub(super) fn claim() -> Option<usize> {
    let mut room = Vec::new();
    loop {
        let mut state = enter();
        state.sweep();
        let more = state.clients() + 1 + LINGERING;
        let needed = state.lingering.len() + more;
        if !state.has_room_for(more) && room.capacity() >= needed {
            room.append(&mut state.lingering);
            std::mem::swap(&mut room, &mut state.lingering);
        }
        if state.has_room_for(more) {
            return state.claim();
        }
        drop(state);
        room = Vec::with_capacity(needed.next_power_of_two());
    }
}

/// Takes the lock.
pub(super) fn enter() -> Inside<'static, State> {
    let mut state = STATE.enter();
    // Where fork's handlers have not run, too: those of others that are called before ours in a child,
    // and the children of a bare clone(2).
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

/// Has `fork` know of the lock, and children that they are such, once.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            OWN.set_up();
            at_fork(prepare, parent, child).map_err(|error| error.raw_os_error().unwrap_or(0))
        })
        .map_err(io::Error::from_raw_os_error)
}
