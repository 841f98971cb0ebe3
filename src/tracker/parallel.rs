//! The same work on many things, by all processors at once.
//!
//! For what cannot hang: see [`super::deadline`] for what can.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// At most so many threads.
const MOST_THREADS: usize = 8;

/// So many things are taken at once, and of fewer no thread is worth its start.
const PIECE: usize = 64;

/// So far ahead of what was taken last is worked: what waits to be taken does not grow with how much there is.
const AHEAD: usize = 8;

/// What `work` answers for each of `items`, in their order.
pub fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let mut all = Vec::with_capacity(items.len());
    each(items, work, |answer| all.push(answer));
    all
}

/// Gives `take`, on this thread and in their order, what `work` answers for each of `items`.
pub fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync, mut take: impl FnMut(R)) {
    let pieces: Vec<&[T]> = items.chunks(PIECE).collect();
    let piece = |items: &&[T]| items.iter().map(&work).collect::<Vec<R>>();
    let Ok(()) = in_order(&pieces, piece, |answers| {
        answers.into_iter().for_each(&mut take);
        Ok::<(), Infallible>(())
    });
}

/// The same where each has to be worth the hand-over to another thread, and `take` can fail.
///
/// # Errors
/// That of `take`, after which nothing more is begun.
pub fn in_order<T: Sync, R: Send, E>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(MOST_THREADS).min(items.len());
    let queue = Queue { items, state: Mutex::new(State::default()), changed: Condvar::new() };
    let help = || {
        let _ends = Ends { queue: &queue, takes: false };
        while let Turn::Work(index, item) = queue.turn(false) {
            queue.put(index, work(item));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without another thread this one does it all.
            if worker(scope, help).is_err() {
                break;
            }
        }
        let _ends = Ends { queue: &queue, takes: true };
        loop {
            match queue.turn(true) {
                Turn::Take(answer) => take(answer)?,
                Turn::Work(index, item) => queue.put(index, work(item)),
                Turn::Over => return Ok(()),
            }
        }
    })
}

/// What both answer, of which `beside` is called on a thread of its own, if one can be had.
pub fn both<A, B: Send>(here: impl FnOnce() -> A, beside: impl Fn() -> B + Sync) -> (A, B) {
    std::thread::scope(|scope| {
        let other = worker(scope, &beside);
        let here = here();
        let beside = match other.map(|other| other.join()) {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => beside(),
        };
        (here, beside)
    })
}

/// A thread that calls `work`.
fn worker<'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> R + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, R>> {
    // With the usual stack: operators' patterns are compiled here, too, and may be nested.
    let thread = Builder::new().name("worker".into());
    thread.spawn_scoped(scope, || {
        // Signals are for the thread that acts on them. It cannot fail.
        nix::sys::signal::SigSet::all().thread_block().unwrap_or(());
        work()
    })
}

/// Things to be worked on, and answers to be taken.
struct Queue<'a, T, R> {
    items: &'a [T],
    state: Mutex<State<R>>,
    changed: Condvar,
}

struct State<R> {
    /// How many items were begun.
    begun: usize,
    /// How many answers were taken.
    taken: usize,
    /// Answers, by the number of the item.
    ready: BTreeMap<usize, R>,
    /// Nobody takes any more, or not every answer will come.
    over: bool,
}

impl<R> Default for State<R> {
    fn default() -> Self {
        Self { begun: 0, taken: 0, ready: BTreeMap::new(), over: false }
    }
}

/// What a thread does next.
enum Turn<'a, T, R> {
    Take(R),
    Work(usize, &'a T),
    Over,
}

impl<'a, T, R> Queue<'a, T, R> {
    /// What there is to do, waiting for it if there is nothing yet; only one thread takes.
    fn turn(&self, takes: bool) -> Turn<'a, T, R> {
        let mut state = locked(&self.state);
        loop {
            let at = state.taken;
            if takes && let Some(answer) = state.ready.remove(&at) {
                state.taken += 1;
                self.changed.notify_all();
                return Turn::Take(answer);
            }
            let index = state.begun;
            let item = self.items.get(index);
            if state.over || item.is_none() && (!takes || at == index) {
                return Turn::Over;
            }
            if let Some(item) = item.filter(|_| index < at + AHEAD) {
                state.begun += 1;
                return Turn::Work(index, item);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put(&self, index: usize, answer: R) {
        locked(&self.state).ready.insert(index, answer);
        self.changed.notify_all();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody waits for a thread that has panicked, nor for answers to be taken when nobody takes any more.
struct Ends<'a, 'b, T, R> {
    queue: &'a Queue<'b, T, R>,
    takes: bool,
}

impl<T, R> Drop for Ends<'_, '_, T, R> {
    fn drop(&mut self) {
        if self.takes || std::thread::panicking() {
            locked(&self.queue.state).over = true;
            self.queue.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn everything_once_and_in_order() {
        for count in [0, 1, PIECE - 1, PIECE, PIECE + 1, 10 * PIECE + 7] {
            let items: Vec<usize> = (0..count).collect();
            let twice: Vec<usize> = items.iter().map(|n| 2 * n).collect();
            assert_eq!(map(&items, |n| 2 * n), twice);
            let mut taken = Vec::new();
            in_order(
                &items,
                |n| 2 * n,
                |n| {
                    taken.push(n);
                    Ok::<_, ()>(())
                },
            )
            .unwrap();
            assert_eq!(taken, twice);
        }
    }

    #[test]
    fn no_more_waits_than_is_allowed() {
        let (begun, mut taken) = (AtomicUsize::new(0), 0);
        let items: Vec<usize> = (0..20 * AHEAD).collect();
        let work = |n: &usize| {
            begun.fetch_max(*n + 1, Ordering::Relaxed);
            *n
        };
        in_order(&items, work, |n| {
            assert_eq!(n, taken);
            std::thread::sleep(std::time::Duration::from_millis(1));
            taken += 1;
            assert!(begun.load(Ordering::Relaxed) <= taken + AHEAD);
            Ok::<_, ()>(())
        })
        .unwrap();
        assert_eq!(taken, items.len());
    }

    #[test]
    fn an_error_ends_it() {
        let items: Vec<usize> = (0..20 * AHEAD).collect();
        let mut taken = 0;
        let ended = in_order(
            &items,
            |n| *n,
            |n| {
                taken += 1;
                if n < 7 { Ok(()) } else { Err(n) }
            },
        );
        assert_eq!((ended, taken), (Err(7), 8));
    }

    #[test]
    fn a_panic_ends_it() {
        let items: Vec<usize> = (0..20 * AHEAD).collect();
        for at in [0, 5 * AHEAD, 20 * AHEAD - 1] {
            let work = |n: &usize| assert!(*n != at, "asked for");
            let ended = std::panic::catch_unwind(|| in_order(&items, work, |()| Ok::<_, ()>(())));
            assert!(ended.is_err());
        }
        let take = |n| if n == 9 { panic!("asked for") } else { Ok::<_, ()>(()) };
        assert!(std::panic::catch_unwind(|| in_order(&items, |n| *n, take)).is_err());
    }
}
