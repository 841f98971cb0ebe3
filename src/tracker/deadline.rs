//! Reading what may never answer.
//!
//! `/proc/PID/cmdline`, and on older kernels `maps`, wait for that process's memory lock, which a
//! user with a FUSE mount can hold for ever. So such reads run on threads: one that has not
//! answered in time is left behind (it ends with the process) and its job counts as unreadable,
//! while further threads take its place.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

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

/// What became of a job.
enum Job<J, R> {
    /// It waits.
    Waiting(J),
    /// A thread is at it.
    Begun,
    /// It has an answer.
    Done(R),
    /// Its answer does not count any more.
    GivenUp,
}

/// What the threads share.
struct Shared<J, R> {
    jobs: Vec<Mutex<Job<J, R>>>,
    /// The first job that nobody has taken.
    next: AtomicUsize,
    /// How many have an answer.
    done: AtomicUsize,
    /// Whether all of them have, which is told once.
    all: Mutex<bool>,
    all_done: Condvar,
}

impl<J, R> Shared<J, R> {
    fn job(&self, index: usize) -> Option<MutexGuard<'_, Job<J, R>>> {
        self.jobs.get(index).map(|job| job.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts the next state in the place of that of a job that has begun; else nothing is changed.
    fn settle(&self, index: usize, state: Job<J, R>) -> bool {
        let Some(mut job) = self.job(index) else { return false };
        let begun = matches!(*job, Job::Begun);
        if begun {
            *job = state;
        }
        begun
    }

    /// Waits until every job has an answer, but no longer than `time`.
    fn wait(&self, time: Duration) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.all_done.wait_timeout_while(all, time, |all| !*all);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes job after job. `at` is told of each: its number from 1 on, or 0.
    fn work(&self, at: &AtomicUsize, work: &impl Fn(J) -> R) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(mut job) = self.job(index) else { return };
            let Job::Waiting(input) = std::mem::replace(&mut *job, Job::Begun) else { return };
            drop(job);
            at.store(index + 1, Ordering::Relaxed);
            let answer = work(input);
            at.store(0, Ordering::Relaxed);
            // One that was left behind has been replaced.
            if !self.settle(index, Job::Done(answer)) {
                return;
            }
            if self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.jobs.len() {
                *self.all.lock().unwrap_or_else(PoisonError::into_inner) = true;
                self.all_done.notify_all();
            }
        }
    }
}

/// A thread, and the job that it was seen at.
struct Worker {
    thread: libc::pid_t,
    at: Arc<AtomicUsize>,
    running: Option<Running>,
}

impl Worker {
    /// Looks what it does; the job, if it is at one.
    fn look(&mut self) -> Option<&Running> {
        let index = self.at.load(Ordering::Relaxed).checked_sub(1);
        let known = self.running.take().filter(|running| Some(running.index) == index);
        self.running = index.map(|index| {
            let (used, waited) = (Duration::ZERO, Duration::ZERO);
            let new = Running { index, thread: self.thread, before: None, used, waited };
            let mut running = known.unwrap_or(new);
            running.look();
            running
        });
        self.running.as_ref()
    }
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
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    let shared = Arc::new(Shared {
        jobs: jobs.into_iter().map(|job| Mutex::new(Job::Waiting(job))).collect(),
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        all: Mutex::new(false),
        all_done: Condvar::new(),
    });
    let work = Arc::new(work);
    // A thread that cannot be made is one worker less; with none at all the jobs stay
    // unanswered, and unanswered counts as unreadable.
    let spawn = || {
        let (shared, work, at) = (Arc::clone(&shared), Arc::clone(&work), Arc::default());
        let (own, id) = (Arc::clone(&at), mpsc::sync_channel(1));
        let tell = id.0;
        let spawned = std::thread::Builder::new()
            .name("reader".into())
            .stack_size(256 << 10)
            .spawn(move || {
                // Signals are for the thread that acts on them; one that is left behind here must
                // not take a SIGINT that the main thread holds back. It cannot fail.
                nix::sys::signal::SigSet::all().thread_block().unwrap_or(());
                if tell.send(nix::unistd::gettid().as_raw()).is_ok() {
                    shared.work(&own, &*work);
                }
            });
        let thread = spawned.ok().and_then(|_| id.1.recv().ok())?;
        Some(Worker { thread, at, running: None })
    };

    let mut threads: Vec<Worker> = (0..workers.min(count)).map_while(|_| spawn()).collect();
    // Those that are left behind count, too.
    let mut made = threads.len();
    let mut given_up = 0;
    while !threads.is_empty() || made < MOST_THREADS {
        let settled = || shared.done.load(Ordering::Acquire) + given_up >= count;
        if !settled() {
            shared.wait(TICK);
        }
        if settled() || made == 0 {
            break;
        }
        // Between two looks this process may have been stopped: no more than one tick is counted.
        let mut stuck = 0;
        threads.retain_mut(|worker| {
            let Some(running) = worker.look() else { return true };
            let waits = running.waited > TICK;
            let left_behind = running.hangs(limit) && shared.settle(running.index, Job::GivenUp);
            stuck += usize::from(waits || left_behind);
            given_up += usize::from(left_behind);
            !left_behind
        });
        if shared.next.load(Ordering::Relaxed) < count {
            // Somebody has to go on.
            let idle = usize::from(threads.is_empty());
            for _ in 0..stuck.max(idle).min(workers).min(MOST_THREADS - made) {
                let more = spawn();
                made += usize::from(more.is_some());
                threads.extend(more);
            }
        }
        // Nobody is left, and nobody can be made.
        if threads.is_empty() {
            break;
        }
    }
    // What a thread is still at has no answer here: it was given up.
    let states = shared.jobs.iter().map(|job| {
        std::mem::replace(&mut *job.lock().unwrap_or_else(PoisonError::into_inner), Job::GivenUp)
    });
    let answers = states.map(|state| match state {
        Job::Done(answer) => Ok(answer),
        Job::Waiting(_) => Err(Unanswered::NotAsked),
        Job::Begun | Job::GivenUp => Err(Unanswered::Hangs),
    });
    answers.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
