//! Reading what may never answer.
//!
//! `/proc/PID/cmdline`, and on older kernels `maps`, wait for that process's memory lock, which a
//! user with a FUSE mount can hold for ever. So such reads run on threads: one that has not
//! answered in time is left behind (it ends with the process) and its job counts as unreadable,
//! while further threads take its place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long one process may take to answer.
pub const LIMIT: Duration = Duration::from_millis(500);

/// A job that runs this long is taken for stuck and no longer counts as a worker.
const STUCK: Duration = Duration::from_millis(40);

/// At most so many threads, stuck ones included: many hostile processes must not cost many times
/// the limit, and neither an unbounded number of threads.
const MOST_THREADS: usize = 192;

enum Report<R> {
    Started(usize),
    Done(usize, R),
}

/// Runs `work` on each of `jobs` on a few threads; a job that takes longer than [`LIMIT`] gives
/// `None`. The results come in the order of the jobs.
pub fn map<J, R, F>(jobs: Vec<J>, work: F) -> Vec<Option<R>>
where
    J: Send + 'static,
    R: Send + 'static,
    F: Fn(J) -> R + Send + Sync + 'static,
{
    let count = jobs.len();
    let mut results: Vec<Option<R>> = (0..count).map(|_| None).collect();
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    let queue: Arc<Mutex<VecDeque<(usize, J)>>> =
        Arc::new(Mutex::new(jobs.into_iter().enumerate().collect()));
    let work = Arc::new(work);
    let (sender, reports) = mpsc::channel();

    // A thread that cannot be made is one worker less; with none at all the jobs stay
    // unanswered, and unanswered counts as unreadable.
    let spawn = || {
        let (queue, work, sender) = (Arc::clone(&queue), Arc::clone(&work), sender.clone());
        std::thread::Builder::new()
            .name("reader".into())
            .stack_size(256 << 10)
            .spawn(move || {
                // Signals are for the thread that acts on them; one that is left behind here must
                // not take a SIGINT that the main thread holds back. It cannot fail.
                nix::sys::signal::SigSet::all().thread_block().unwrap_or(());
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((index, job)) = next else { return };
                    // Nobody listens any more once every other job has its answer.
                    if sender.send(Report::Started(index)).is_err()
                        || sender.send(Report::Done(index, work(job))).is_err()
                    {
                        return;
                    }
                }
            })
            .is_ok()
    };

    let mut threads = 0;
    for _ in 0..workers.min(count) {
        threads += usize::from(spawn());
    }
    let mut running: Vec<(usize, Instant)> = Vec::new();
    let mut settled = 0;
    while settled < count && threads > 0 {
        match reports.recv_timeout(STUCK) {
            Ok(Report::Started(index)) => running.push((index, Instant::now())),
            Ok(Report::Done(index, result)) => {
                // One that was given up before is no longer among the running.
                if let Some(place) = running.iter().position(|(i, _)| *i == index) {
                    running.swap_remove(place);
                    settled += 1;
                    if let Some(slot) = results.get_mut(index) {
                        *slot = Some(result);
                    }
                }
            }
            Err(_) => {
                let waiting = !queue.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
                let stuck = running.iter().filter(|(_, since)| since.elapsed() > STUCK).count();
                if waiting && stuck > 0 {
                    for _ in 0..stuck.min(workers) {
                        if threads < MOST_THREADS {
                            threads += usize::from(spawn());
                        }
                    }
                }
            }
        }
        let before = running.len();
        running.retain(|(_, since)| since.elapsed() < LIMIT);
        settled += before - running.len();
        // Every thread hangs and no more may be made: what still waits cannot be read.
        if running.is_empty() && threads >= MOST_THREADS {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            settled += queue.len();
            queue.clear();
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_and_gives_up_on_what_hangs() {
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let shared = Arc::clone(&gate);
        let answers = map((0..300).collect(), move |n: u32| {
            if n % 100 == 7 {
                drop(shared.lock());
            }
            n * 2
        });
        drop(closed);
        for (n, answer) in (0..300).zip(answers) {
            assert_eq!(answer, (n % 100 != 7).then_some(n * 2));
        }
    }

    #[test]
    fn nothing_to_do_is_done() {
        assert!(map(Vec::<u8>::new(), |n| n).is_empty());
    }
}
