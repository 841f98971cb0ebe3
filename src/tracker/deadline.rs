//! Reading what may never answer.
//!
//! `/proc/PID/cmdline`, and on older kernels `maps`, wait for that process's memory lock, which a
//! user with a FUSE mount can hold for ever. So such reads run on threads: one that has not
//! answered in time is left behind (it ends with the process) and its job counts as unreadable,
//! while further threads take its place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long one process may keep a reader waiting, and how much time of a processor it may cost.
pub const LIMIT: Duration = Duration::from_millis(500);

/// How often readers are looked after. One that is at the same job since the last time may be stuck, and
/// no longer counts as a worker.
const TICK: Duration = Duration::from_millis(40);

/// At most so many threads, stuck ones included: many hostile processes must not cost many times
/// the limit, and neither an unbounded number of threads.
const MOST_THREADS: usize = 192;

/// Why a job has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// It was begun, and hangs.
    Hangs,
    /// No thread was left to begin it.
    NotAsked,
}

enum Report<R> {
    Started(usize, libc::pid_t),
    Done(usize, R),
}

/// A job that a thread is at.
struct Running {
    index: usize,
    thread: libc::pid_t,
    /// The processor time that the thread had used when it was looked at first.
    before: Option<Duration>,
    /// What it has used since.
    used: Duration,
    /// For how long the thread was seen waiting.
    waited: Duration,
}

impl Running {
    /// Looks what the thread does.
    fn look(&mut self) {
        // One that cannot be looked at is one that waits.
        let (runs, used) = activity(self.thread).unwrap_or_default();
        match self.before {
            None => self.before = Some(used),
            Some(before) => {
                self.used = used.saturating_sub(before);
                self.waited += if runs { Duration::ZERO } else { TICK };
            }
        }
    }

    fn hangs(&self, limit: Duration) -> bool {
        self.waited >= limit || self.used >= limit
    }
}

/// Whether a thread of this process runs or could, and the processor time that it has used
/// (proc_pid_stat(5): fields 3, 14 and 15, in hundredths of a second).
fn activity(thread: libc::pid_t) -> Option<(bool, Duration)> {
    let text = std::fs::read(format!("/proc/self/task/{thread}/stat")).ok()?;
    // The name before them may hold anything.
    let end = text.iter().rposition(|b| *b == b')')?;
    let fields = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let runs = fields.next()? == "R";
    let mut used = fields.skip(10).map(|field| field.parse::<u64>().ok());
    let used = used.next()?? + used.next()??;
    Some((runs, Duration::from_millis(10 * used)))
}

/// Runs `work` on each of `jobs` on a few threads; one that keeps its thread waiting, or at work, for
/// longer than [`LIMIT`] has no result. The results come in the order of the jobs.
///
/// What counts is what the threads were seen to do: that this process was stopped for a while, or had
/// no processor to run on, says nothing of whom it asks.
pub fn map<J, R, F>(jobs: Vec<J>, work: F) -> Vec<Result<R, Unanswered>>
where
    J: Send + 'static,
    R: Send + 'static,
    F: Fn(J) -> R + Send + Sync + 'static,
{
    map_within(LIMIT, jobs, work)
}

/// The same for jobs that may keep their thread waiting, or at work, for `limit`.
pub fn map_within<J, R, F>(limit: Duration, jobs: Vec<J>, work: F) -> Vec<Result<R, Unanswered>>
where
    J: Send + 'static,
    R: Send + 'static,
    F: Fn(J) -> R + Send + Sync + 'static,
{
    let count = jobs.len();
    let mut results: Vec<Result<R, Unanswered>> =
        (0..count).map(|_| Err(Unanswered::NotAsked)).collect();
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
                let own = nix::unistd::gettid().as_raw();
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((index, job)) = next else { return };
                    // Nobody listens any more once every other job has its answer.
                    if sender.send(Report::Started(index, own)).is_err()
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
    let mut running: Vec<Running> = Vec::new();
    let mut settled = 0;
    let mut ticked = Instant::now();
    while settled < count && threads > 0 {
        // Everything that was said counts before anybody is given up.
        let mut report = reports.recv_timeout(TICK.saturating_sub(ticked.elapsed())).ok();
        while let Some(said) = report {
            match said {
                Report::Started(index, thread) => {
                    let (used, waited) = (Duration::ZERO, Duration::ZERO);
                    running.push(Running { index, thread, before: None, used, waited });
                }
                Report::Done(index, result) => {
                    // One that was given up before is no longer among the running.
                    if let Some(place) = running.iter().position(|job| job.index == index) {
                        running.swap_remove(place);
                        settled += 1;
                        if let Some(slot) = results.get_mut(index) {
                            *slot = Ok(result);
                        }
                    }
                }
            }
            report = if ticked.elapsed() < TICK { None } else { reports.try_recv().ok() };
        }
        if ticked.elapsed() < TICK {
            continue;
        }
        // Between two looks this process may have been stopped: no more than one tick is counted.
        ticked = Instant::now();
        for job in &mut running {
            job.look();
        }
        let before = running.len();
        running.retain(|job| {
            if job.hangs(limit)
                && let Some(slot) = results.get_mut(job.index)
            {
                *slot = Err(Unanswered::Hangs);
            }
            !job.hangs(limit)
        });
        settled += before - running.len();
        let waiting = !queue.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if waiting {
            let stuck = running.iter().filter(|job| job.waited > TICK).count();
            let stuck = stuck + (before - running.len());
            for _ in 0..stuck.min(workers) {
                if threads < MOST_THREADS {
                    threads += usize::from(spawn());
                }
            }
        }
        // Every thread hangs and no more may be made: what still waits cannot be asked.
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
            assert_eq!(answer, if n % 100 == 7 { Err(Unanswered::Hangs) } else { Ok(n * 2) });
        }
    }

    #[test]
    fn who_works_is_seen_to() {
        let own = nix::unistd::gettid().as_raw();
        let (runs, before) = activity(own).unwrap();
        assert!(runs);
        let began = Instant::now();
        while activity(own).unwrap().1 <= before {
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        let (tells, told) = mpsc::channel::<()>();
        let (says, said) = mpsc::channel();
        let other = std::thread::spawn(move || {
            says.send(nix::unistd::gettid().as_raw()).unwrap();
            told.recv().unwrap_err();
        });
        let other_thread = said.recv().unwrap();
        while activity(other_thread).unwrap().0 {
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        drop(tells);
        other.join().unwrap();
        assert!(activity(other_thread).is_none());
    }

    #[test]
    fn nothing_to_do_is_done() {
        assert!(map(Vec::<u8>::new(), |n| n).is_empty());
    }
}
