//! The same work on many things, by all processors at once.
//!
//! For what cannot hang: see [`super::deadline`] for what can.

use std::sync::atomic::{AtomicUsize, Ordering};

/// At most so many threads.
const MOST_THREADS: usize = 8;

/// So many things are taken at once, and of fewer no thread is worth its start.
const PIECE: usize = 64;

/// What `work` answers for each of `items`, in their order.
pub fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    by_pieces(items, PIECE, work)
}

/// The same where each of them is worth a thread.
pub fn map_each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    by_pieces(items, 1, work)
}

fn by_pieces<T: Sync, R: Send>(items: &[T], size: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let pieces = items.len().div_ceil(size);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(MOST_THREADS).min(pieces);
    let next = AtomicUsize::new(0);
    let take = || {
        let mut answers = Vec::new();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            let Some(rest) = items.get(piece * size..).filter(|rest| !rest.is_empty()) else {
                return answers;
            };
            let items = rest.get(..size).unwrap_or(rest);
            answers.push((piece, items.iter().map(&work).collect::<Vec<R>>()));
        }
    };
    let mut answers: Vec<(usize, Vec<R>)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map_while(|_| {
                let thread = std::thread::Builder::new().name("worker".into());
                let take = &take;
                // Signals are for the thread that acts on them. It cannot fail.
                let own = move || {
                    nix::sys::signal::SigSet::all().thread_block().unwrap_or(());
                    take()
                };
                thread.stack_size(256 << 10).spawn_scoped(scope, own).ok()
            })
            .collect();
        let mut answers = take();
        for other in others {
            match other.join() {
                Ok(more) => answers.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        answers
    });
    answers.sort_unstable_by_key(|(piece, _)| *piece);
    answers.into_iter().flat_map(|(_, answers)| answers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_once_and_in_order() {
        for count in [0, 1, PIECE - 1, PIECE, PIECE + 1, 10 * PIECE + 7] {
            let items: Vec<usize> = (0..count).collect();
            let twice: Vec<usize> = items.iter().map(|n| 2 * n).collect();
            assert_eq!(map(&items, |n| 2 * n), twice);
            assert_eq!(map_each(&items, |n| 2 * n), twice);
        }
    }
}
