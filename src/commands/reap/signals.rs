//! SIGINT, SIGTERM and SIGHUP while objects are removed, and while it is told.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::commands::error::{CommandError, Kind};
use crate::tracker::sys;

/// So long the telling may take before a signal ends it: whoever reads may have stopped to.
const PATIENCE: Duration = Duration::from_secs(1);

/// Holds the signals that would end the program back: the object in hand is done with, and what was
/// done is told, as long as somebody listens.
#[derive(Debug)]
pub(super) struct Signals {
    set: SigSet,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    came: AtomicBool,
    /// Since when it has not been at work, but telling.
    telling: Mutex<Option<Instant>>,
}

impl State {
    fn telling(&self) -> MutexGuard<'_, Option<Instant>> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Signals {
    /// Holds them back from now on, but for those that this program was started to ignore.
    ///
    /// # Errors
    /// The signals cannot be held back, or no thread can be made to wait for them.
    pub(super) fn block() -> Result<Self, CommandError> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            if !sys::is_ignored(signal as i32)? {
                set.add(signal);
            }
        }
        set.thread_block()?;
        let state = Arc::new(State::default());
        *state.telling() = Some(Instant::now());
        if set != SigSet::empty() {
            let (set, state) = (set, Arc::clone(&state));
            let wait = move || {
                while set.wait().is_ok() {
                    state.came.store(true, Ordering::SeqCst);
                    if state.telling().is_some_and(|since| since.elapsed() > PATIENCE) {
                        process::exit(Kind::Interrupted.status().into());
                    }
                }
            };
            std::thread::Builder::new().name("signals".into()).spawn(wait)?;
        }
        Ok(Self { set, state })
    }

    /// While `working`, no signal ends the program, however many there are.
    pub(super) fn working(&self, working: bool) {
        *self.state.telling() = (!working).then(Instant::now);
    }

    /// Whether one came.
    pub(super) fn came(&self) -> bool {
        // The thread that waits for it may not have run yet.
        let pending = |signal| sys::is_pending(signal as i32).unwrap_or(false);
        self.set.iter().any(pending) || self.state.came.load(Ordering::SeqCst)
    }
}
