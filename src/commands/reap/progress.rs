//! What is told while it takes long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::commands::ui::Ui;

/// What is done sooner is not worth a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a line on a terminal is written anew.
const ON_A_TERMINAL: Duration = Duration::from_millis(500);

/// How often a line is added to a log.
const IN_A_LOG: Duration = Duration::from_secs(10);

/// Tells on stderr how far it is, from a second on, until it is dropped. It does so on a thread of its own:
/// nothing is written under a lease, and one large object is no reason for silence.
#[derive(Debug)]
pub(super) struct Progress {
    shared: Arc<Shared>,
    teller: Option<(Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct Shared {
    total: usize,
    done: AtomicUsize,
    /// The object in hand.
    current: Mutex<String>,
}

impl Progress {
    /// Of `total` objects.
    pub(super) fn new(ui: &Ui, total: usize) -> Self {
        let current = Mutex::default();
        let shared = Arc::new(Shared { total, done: AtomicUsize::new(0), current });
        let teller = (!ui.quiet).then(|| tell(&shared, ui.stderr_is_terminal())).flatten();
        Self { shared, teller }
    }

    /// One more object comes into hand.
    pub(super) fn next(&self, id: String) {
        *self.shared.current.lock().unwrap_or_else(PoisonError::into_inner) = id;
        self.shared.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, teller)) = self.teller.take() {
            drop(end);
            // It does nothing that could fail, and a line on the terminal is taken away before others.
            teller.join().unwrap_or(());
        }
    }
}

/// Starts to tell; nobody does if no thread can be made.
fn tell(shared: &Arc<Shared>, terminal: bool) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (end, ended) = mpsc::channel();
    let shared = Arc::clone(shared);
    let work = move || {
        let began = Instant::now();
        let mut pause = PATIENCE;
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let (before, after) = if terminal { ("\r\x1b[K", "") } else { ("", "\n") };
            let current = shared.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (done, total) = (shared.done.load(Ordering::Relaxed), shared.total);
            let seconds = began.elapsed().as_secs();
            Ui::raw(&format!("{before}{done} of {total} objects, {seconds} s: {current}{after}"));
            pause = if terminal { ON_A_TERMINAL } else { IN_A_LOG };
        }
        if terminal && began.elapsed() >= PATIENCE {
            Ui::raw("\r\x1b[K");
        }
    };
    let teller = std::thread::Builder::new().name("progress".into()).spawn(work).ok()?;
    Some((end, teller))
}
