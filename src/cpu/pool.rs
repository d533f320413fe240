//! The thread pool of the CPU backend: parallel loops that start in about a microsecond.
//!
//! A training step of a small model is a few hundred loops of tens of microseconds each, so waking threads through
//! the kernel would cost more than the work. Workers therefore spin for a moment after each loop before they sleep.
//!
//! Tasks are claimed one at a time from a counter, so a core that is slow (or taken away by another program) does
//! not hold up the rest. Which thread runs a task is left open; *what* each task computes must not depend on it. That
//! is how results are the same bits for any number of threads: loops are cut by the problem's size, never by the
//! number of threads, and sums over tasks are taken in task order.
//!
//! Where tasks do nothing but read memory that lies one after the other, a thread claims neighbouring tasks in runs
//! ([`Pool::run_streams`]): the memory system serves two long streams better than many short ones.
//!
//! The claim word holds (epoch, next task). A worker reads it, reads the job, then advances the word by
//! compare-exchange. Before a job is overwritten, the word moves on to an epoch of its own that has no task left, so an
//! exchange that succeeds proves that the job just read was the right one, and a worker that wakes late simply fails
//! its exchange. (Without that epoch in between, a worker that read the word at the end of one loop could find the
//! next loop's larger number of tasks, and claim one of them before the loop had begun.)

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Spins before a waiting worker sleeps: some tens of microseconds, a few times the gap between two loops of a step.
const SPINS_BEFORE_SLEEP: u32 = 20_000;

/// In the claim word's place of the next task: none is left, however many there are.
const NO_TASK: u64 = u32::MAX as u64;

type Body<'a> = dyn Fn(usize) + Sync + 'a;

thread_local! {
    /// True while this thread runs a task: loops started from inside one run serially.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

struct Shared {
    /// Epoch in the high half, next unclaimed task in the low half.
    claim: AtomicU64,
    tasks: AtomicUsize,
    /// One over the share of the tasks left that a thread claims at once; 0 to claim one at a time.
    share: AtomicUsize,
    /// A `*const &Body`, alive while its epoch's tasks run.
    body: AtomicPtr<()>,
    completed: AtomicUsize,
    panicked: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

/// A fixed set of threads for parallel loops; dropping it joins them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One loop at a time: two threads that share a pool take turns.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool that runs loops on `threads` threads: the caller's own and `threads - 1` workers.
    ///
    /// # Errors
    /// The operating system refused to start a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            claim: AtomicU64::new(0),
            tasks: AtomicUsize::new(0),
            share: AtomicUsize::new(0),
            body: AtomicPtr::new(std::ptr::null_mut()),
            completed: AtomicUsize::new(0),
            panicked: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name(format!("engine-cpu-{index}")).spawn(move || worker(&shared))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { shared, workers, turn: Mutex::new(()) })
    }

    /// Number of threads that run a loop, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(task)` once for every `task` in `0..tasks`, in any order and on any thread, and returns when all
    /// calls have returned. A panic in a task is passed on to the caller after the loop.
    pub fn run(&self, tasks: usize, body: impl Fn(usize) + Sync) {
        self.run_shared(tasks, 0, body);
    }

    /// Runs the tasks; `share` as in [`Shared`].
    fn run_shared(&self, tasks: usize, share: usize, body: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            (0..tasks).for_each(body);
            return;
        }
        assert!(tasks < NO_TASK as usize, "a loop has less than 2^32 - 1 tasks");
        let _turn = self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let shared = &*self.shared;
        let body: &Body<'_> = &body;
        let body_pointer: *const &Body<'_> = &body;
        let epoch = shared.claim.load(Ordering::Relaxed) >> 32;
        let [between, epoch] = [1, 2].map(|step| epoch.wrapping_add(step) & 0xFFFF_FFFF);
        shared.claim.store(between << 32 | NO_TASK, Ordering::Relaxed);
        shared.completed.store(0, Ordering::Relaxed);
        // Release, against the acquiring loads in `work`: who sees the new job sees the epoch in between as well.
        shared.share.store(share, Ordering::Release);
        shared.tasks.store(tasks, Ordering::Release);
        shared.body.store(body_pointer.cast_mut().cast(), Ordering::Release);
        // SeqCst pairs with the sleepers' registration: either we see the sleeper, or it sees this epoch.
        shared.claim.store(epoch << 32, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = shared.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            shared.wake.notify_all();
        }
        shared.work();
        let mut spins = 0u32;
        while shared.completed.load(Ordering::Acquire) < tasks {
            spins += 1;
            if spins < SPINS_BEFORE_SLEEP {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let panic = shared.panicked.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Cuts `0..length` into pieces of `piece` (the last may be shorter) and calls `body(piece_index, range)` for each.
    pub fn run_pieces(&self, length: usize, piece: usize, body: impl Fn(usize, std::ops::Range<usize>) + Sync) {
        self.run(length.div_ceil(piece.max(1)), in_pieces(length, piece, body));
    }

    /// As [`run_pieces`](Self::run_pieces), for pieces that are read from memory in order: a thread takes runs of
    /// neighbouring pieces, long ones first, short ones at the end, when threads must finish together.
    pub fn run_streams(&self, length: usize, piece: usize, body: impl Fn(usize, std::ops::Range<usize>) + Sync) {
        // A thread takes two thirds of its fair share of what is left, so that one that is slow can be helped.
        let share = (self.threads() * 3).div_ceil(2);
        self.run_shared(length.div_ceil(piece.max(1)), share, in_pieces(length, piece, body));
    }
}

/// The body of a loop over the pieces of `0..length`.
fn in_pieces(
    length: usize,
    piece: usize,
    body: impl Fn(usize, std::ops::Range<usize>) + Sync,
) -> impl Fn(usize) + Sync {
    let piece = piece.max(1);
    move |index| {
        let start = index * piece;
        body(index, start..length.min(start + piece));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = self.shared.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so joining only fails where the process is going down anyway.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Claims and runs tasks of the current epoch until none is left.
    fn work(&self) {
        let mut claim = self.claim.load(Ordering::Acquire);
        loop {
            let task = (claim & 0xFFFF_FFFF) as usize;
            let tasks = self.tasks.load(Ordering::Acquire);
            let share = self.share.load(Ordering::Acquire);
            let body = self.body.load(Ordering::Acquire);
            if task >= tasks {
                return;
            }
            let count = (tasks - task).checked_div(share).unwrap_or(1).max(1);
            match self.claim.compare_exchange(claim, claim + count as u64, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    // SAFETY: the exchange succeeded, so `body` belongs to this epoch (see the module's story) and
                    // its owner waits in `run_shared` until `completed` counts these tasks.
                    let body: &Body<'_> = unsafe { *body.cast::<&Body<'_>>() };
                    IN_TASK.set(true);
                    let result = catch_unwind(AssertUnwindSafe(|| (task..task + count).for_each(body)));
                    IN_TASK.set(false);
                    if let Err(payload) = result {
                        *self.panicked.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(payload);
                    }
                    self.completed.fetch_add(count, Ordering::Release);
                    claim = self.claim.load(Ordering::Acquire);
                }
                Err(current) => claim = current,
            }
        }
    }
}

fn worker(shared: &Shared) {
    let mut seen = 0u64;
    let mut spins = 0u32;
    loop {
        let epoch = shared.claim.load(Ordering::Acquire) >> 32;
        if epoch != seen {
            seen = epoch;
            spins = 0;
            shared.work();
            continue;
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        spins += 1;
        if spins < SPINS_BEFORE_SLEEP {
            std::hint::spin_loop();
            continue;
        }
        spins = 0;
        let mut guard = shared.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.sleepers.fetch_add(1, Ordering::SeqCst);
        while shared.claim.load(Ordering::SeqCst) >> 32 == seen && !shared.stop.load(Ordering::SeqCst) {
            guard = shared.wake.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        shared.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_exactly_once_over_many_loops() {
        let pool = Pool::new(4).unwrap();
        for round in 0..20_000usize {
            let tasks = round % 37;
            let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            pool.run(tasks, |task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "round {round}");
        }
    }

    #[test]
    fn streams_cover_every_piece_once_however_they_are_claimed() {
        for threads in [1, 2, 4, 7] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2000usize {
                let (length, piece) = (round % 97, 1 + round % 5);
                let counts: Vec<AtomicU32> = (0..length).map(|_| AtomicU32::new(0)).collect();
                pool.run_streams(length, piece, |index, range| {
                    assert_eq!(range, index * piece..length.min((index + 1) * piece));
                    for count in &counts[range] {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "round {round}");
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_for_the_next_loop() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let sum = AtomicUsize::new(0);
            pool.run(100, |task| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_loop_inside_a_task_runs_serially() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(8, |_| {
            pool.run(10, |inner| {
                sum.fetch_add(inner, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.into_inner(), 8 * 45);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(16, |task| assert!(task != 7, "task seven"));
        }));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(4, |task| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 6);
    }
}
