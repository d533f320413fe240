//! The blocks of a launch, spread over host threads.
//!
//! A thread takes the next block, runs it to its end, takes the next. Only where a block polls memory (it waits for
//! another block) are more blocks started beside it, and take turns. What a launch computes does not depend on the number
//! of threads, unless blocks race; output is put together in block order, and of several faults the lowest block's counts.
//! Atomic additions of floats are no race, but their order shows in the last bits: a kernel that makes them in global memory
//! has one thread for all its blocks. (Kernels that take their place in line by an atomic counter, or add by
//! compare-and-swap, see the order of blocks as they would on a GPU.)

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::block::{Block, Progress};
use super::observe::Observe;
use super::run::Worker;
use super::{Launch, Stopped};
use crate::error::{Fault, FaultKind};

/// Instructions before a block is asked whether others should run.
const BLOCK_SLICE: i64 = 1 << 20;
/// The same where blocks are known to wait for each other.
const COOPERATIVE_SLICE: i64 = 1 << 13;
/// Most blocks that one host thread keeps started.
const MAX_RESIDENT: usize = 4096;

/// What a finished launch leaves.
pub struct GridResult<O> {
    /// Text that the kernel printed, in block order.
    pub output: Vec<u8>,
    pub warp_instructions: u64,
    /// One observer per host thread.
    pub observers: Vec<O>,
    pub fault: Option<Fault>,
}

struct Progresses<'l, 'p> {
    launch: &'l Launch<'p>,
    next: AtomicU64,
    spent: AtomicU64,
    /// Blocks from here on need not start any more.
    first_fault: AtomicU64,
    faults: Mutex<Vec<(u64, Fault)>>,
    outputs: Mutex<Vec<(u64, Vec<u8>)>>,
}

/// Runs all blocks on as many threads as there are observers.
pub fn run<O: Observe>(launch: &Launch<'_>, observers: Vec<O>) -> GridResult<O> {
    let shared = Progresses {
        launch,
        next: AtomicU64::new(0),
        spent: AtomicU64::new(0),
        first_fault: AtomicU64::new(u64::MAX),
        faults: Mutex::new(Vec::new()),
        outputs: Mutex::new(Vec::new()),
    };
    let blocks: u64 = launch.grid.iter().map(|&size| u64::from(size)).product();
    let mut observers = observers;
    if launch.program.functions[launch.kernel as usize].sums_floats {
        observers.truncate(1);
    }
    let finished: Vec<O> = if observers.len() <= 1 || blocks <= 1 {
        let rest = if observers.is_empty() { Vec::new() } else { observers.split_off(1) };
        let mut first: Vec<O> = observers.into_iter().map(|observer| shared.work(blocks, observer)).collect();
        first.extend(rest);
        first
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                observers.into_iter().map(|observer| scope.spawn(|| shared.work(blocks, observer))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    };
    let unlocked = |poisoned: std::sync::PoisonError<_>| poisoned.into_inner();
    let mut outputs = shared.outputs.into_inner().unwrap_or_else(unlocked);
    outputs.sort_by_key(|(block, _)| *block);
    let faults = shared.faults.into_inner().unwrap_or_default();
    GridResult {
        output: outputs.into_iter().flat_map(|(_, text)| text).collect(),
        warp_instructions: shared.spent.into_inner(),
        observers: finished,
        fault: faults.into_iter().min_by_key(|(block, _)| *block).map(|(_, fault)| fault),
    }
}

impl Progresses<'_, '_> {
    fn coordinates(&self, linear: u64) -> [u32; 3] {
        let [x, y, _] = self.launch.grid.map(u64::from);
        [(linear % x) as u32, (linear / x % y) as u32, (linear / (x * y)) as u32]
    }

    fn fault(&self, block: &Block, linear: u64, stopped: Stopped) {
        let launch = self.launch;
        let meta = launch.program.meta.get(block.last_pc as usize).copied().unwrap_or_default();
        let fault = Fault {
            kind: stopped.kind,
            file: launch.file.into(),
            line: meta.line,
            kernel: launch.program.functions[launch.kernel as usize].name.clone(),
            block: block.index,
            thread: launch.thread(block.last_warp * 32 + stopped.lane),
        };
        self.first_fault.fetch_min(linear, Relaxed);
        if let Ok(mut faults) = self.faults.lock() {
            faults.push((linear, fault));
        }
    }

    fn work<O: Observe>(&self, blocks: u64, observer: O) -> O {
        let launch = self.launch;
        let mut worker = Worker::new(launch, observer);
        let mut resident: VecDeque<(u64, Block)> = VecDeque::new();
        let mut spare = Vec::new();
        let mut wants_more = true;
        loop {
            if (resident.is_empty() || wants_more) && resident.len() < MAX_RESIDENT {
                let linear = self.next.fetch_add(1, Relaxed);
                if linear < blocks && linear < self.first_fault.load(Relaxed) {
                    let mut block: Block = spare.pop().unwrap_or_default();
                    let index = self.coordinates(linear);
                    match block.start(launch, index) {
                        Ok(()) => {
                            resident.push_front((linear, block));
                        }
                        Err(stopped) => self.fault(&block, linear, stopped),
                    }
                }
            }
            let Some((linear, mut block)) = resident.pop_front() else { break };
            if linear > self.first_fault.load(Relaxed) {
                continue;
            }
            let is_shared = launch.is_cooperative || !resident.is_empty();
            // One more than is left, so that a program that ends with its last instruction does not fail.
            let affordable = launch.budget.saturating_sub(self.spent.load(Relaxed)).saturating_add(1);
            let slice = if is_shared { COOPERATIVE_SLICE } else { BLOCK_SLICE };
            let slice = slice.min(i64::try_from(affordable).unwrap_or(i64::MAX));
            let mut left = slice;
            let result = block.run(&mut worker, &mut left);
            let spent = self.spent.fetch_add((slice - left).max(0) as u64, Relaxed) + (slice - left).max(0) as u64;
            wants_more = launch.is_cooperative;
            match result {
                Ok(Progress::Done) => {
                    if O::IS_ON {
                        worker.observer.block_ended(block.index);
                    }
                    if !block.output.is_empty()
                        && let Ok(mut outputs) = self.outputs.lock()
                    {
                        outputs.push((linear, std::mem::take(&mut block.output)));
                    }
                    spare.push(block);
                }
                Ok(progress) if spent < launch.budget => {
                    wants_more |= progress == Progress::Polling;
                    if progress == Progress::Paused && !is_shared {
                        resident.push_front((linear, block));
                    } else {
                        resident.push_back((linear, block));
                    }
                }
                Ok(_) => self.fault(&block, linear, Stopped { kind: FaultKind::Budget(launch.budget), lane: 0 }),
                Err(stopped) => self.fault(&block, linear, stopped),
            }
        }
        worker.observer
    }
}
