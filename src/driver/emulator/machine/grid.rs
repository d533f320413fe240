//! The blocks of a launch, spread over host threads.
//!
//! A thread takes the next block, runs it to its end, takes the next. Only where a block polls memory (it waits for
//! another block) are more blocks started beside it, and take turns. What a launch computes does not depend on the number
//! of threads, unless blocks race; output is put together in block order, and of several faults the lowest block's counts.
//! Nor does it depend on it whether their memory suffices: no more blocks run at a time than fit ([`Room`]).
//! Atomic additions of floats are no race, but their order shows in the last bits: a kernel that makes them in global memory
//! has one thread for all its blocks. (Kernels that take their place in line by an atomic counter, or add by
//! compare-and-swap, see the order of blocks as they would on a GPU.)

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::block::{Block, Progress};
use super::observe::Observe;
use super::resident::{MAX_RESIDENT_BYTES, Room};
use super::run::Worker;
use super::{Launch, Stopped};
use crate::error::{Fault, FaultKind};

/// Instructions before a block is asked whether others should run.
const BLOCK_SLICE: i64 = 1 << 20;
/// The same where blocks are known to wait for each other.
const COOPERATIVE_SLICE: i64 = 1 << 13;
/// Most blocks that one host thread keeps started.
const MAX_RESIDENT: usize = 4096;

/// Instructions for which blocks only poll after another one was stopped, until they are taken to wait for that one.
const PATIENCE: i64 = 1 << 22;

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
    room: Room,
    next: AtomicU64,
    /// Blocks that have not ended.
    unfinished: AtomicU64,
    spent: AtomicU64,
    /// Blocks that run beside the first one of their thread.
    beside: AtomicU64,
    /// A block that polled would have had another one started, if there had been room.
    lacked_room: AtomicBool,
    /// Blocks from here on need not start any more.
    first_fault: AtomicU64,
    faults: Mutex<Vec<(u64, Fault)>>,
    outputs: Mutex<Vec<(u64, Vec<u8>)>>,
}

/// Runs all blocks on as many threads as there are observers.
pub fn run<O: Observe>(launch: &Launch<'_>, observers: Vec<O>) -> GridResult<O> {
    let blocks: u64 = launch.grid.iter().map(|&size| u64::from(size)).product();
    let room = Room::new(launch, observers.len());
    let shared = Progresses {
        launch,
        room,
        next: AtomicU64::new(0),
        unfinished: AtomicU64::new(blocks),
        spent: AtomicU64::new(0),
        beside: AtomicU64::new(0),
        lacked_room: AtomicBool::new(false),
        first_fault: AtomicU64::new(u64::MAX),
        faults: Mutex::new(Vec::new()),
        outputs: Mutex::new(Vec::new()),
    };
    let mut observers = observers;
    observers.truncate(if launch.kernel_info().sums_floats { 1 } else { room.workers });
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
    debug_assert_eq!(launch.resident.taken(), 0, "what blocks took must have come back");
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

    /// True if another block may be started beside the `beside` + 1 that the thread runs; it counts as started then.
    fn may_start(&self, beside: &mut u64) -> bool {
        // Blocks of a cooperative launch wait for all others: there is no doing with fewer.
        if !self.launch.is_cooperative && self.beside.fetch_add(1, Relaxed) >= self.room.beside {
            self.beside.fetch_sub(1, Relaxed);
            self.lacked_room.store(true, Relaxed);
            return false;
        }
        *beside += 1;
        true
    }

    /// What is wrong with blocks that have used up the budget.
    fn exhausted(&self) -> FaultKind {
        let budget = self.launch.budget;
        if !self.lacked_room.load(Relaxed) {
            return FaultKind::Budget(budget);
        }
        FaultKind::Illegal(format!(
            "the instruction budget of {budget} warp instructions is used up while blocks poll memory; if they wait for other \
             blocks: only {} fit at the same time into the {} MiB that the emulator has for local memory and registers",
            self.room.workers as u64 + self.room.beside,
            MAX_RESIDENT_BYTES >> 20
        ))
    }

    fn work<O: Observe>(&self, blocks: u64, observer: O) -> O {
        let launch = self.launch;
        let mut worker = Worker::new(launch, observer);
        let mut resident: VecDeque<(u64, Block)> = VecDeque::new();
        // What the last block has left for the next one; and the blocks in `resident` but one, as `self.beside` knows them.
        let mut spare: Option<Block> = None;
        let (mut beside, mut wants_more) = (0, true);
        let mut patience = PATIENCE;
        loop {
            let needed = (resident.len() as u64).saturating_sub(1);
            if beside > needed {
                if !launch.is_cooperative {
                    self.beside.fetch_sub(beside - needed, Relaxed);
                }
                beside = needed;
            }
            let starts = resident.is_empty()
                || (wants_more
                    && resident.len() < MAX_RESIDENT
                    && self.next.load(Relaxed) < blocks
                    && self.may_start(&mut beside));
            if starts {
                let linear = self.next.fetch_add(1, Relaxed);
                if linear < blocks && linear < self.first_fault.load(Relaxed) {
                    let mut block: Block = spare.take().unwrap_or_default();
                    let index = self.coordinates(linear);
                    match block.start(launch, index) {
                        Ok(()) => {
                            resident.push_front((linear, block));
                        }
                        Err(stopped) => {
                            self.fault(&block, linear, stopped);
                            block.give_back(launch);
                        }
                    }
                }
            }
            let Some((linear, mut block)) = resident.pop_front() else { break };
            if linear > self.first_fault.load(Relaxed) {
                drop_block(&mut worker, block);
                continue;
            }
            let is_shared = launch.is_cooperative || !resident.is_empty();
            // One more than is left, so that a program that ends with its last instruction does not fail.
            let affordable = launch.budget.saturating_sub(self.spent.load(Relaxed)).saturating_add(1);
            let slice = if is_shared { COOPERATIVE_SLICE } else { BLOCK_SLICE };
            let slice = slice.min(i64::try_from(affordable).unwrap_or(i64::MAX));
            let mut left = slice;
            worker.is_alone = self.unfinished.load(Relaxed) == 1;
            let result = block.run(&mut worker, &mut left);
            let spent = self.spent.fetch_add((slice - left).max(0) as u64, Relaxed) + (slice - left).max(0) as u64;
            wants_more = launch.is_cooperative;
            let stopped = match result {
                Ok(Progress::Done) => {
                    self.unfinished.fetch_sub(1, Relaxed);
                    if !block.output.is_empty()
                        && let Ok(mut outputs) = self.outputs.lock()
                    {
                        outputs.push((linear, std::mem::take(&mut block.output)));
                    }
                    if resident.is_empty() {
                        if O::IS_ON {
                            worker.observer.block_ended(block.index);
                        }
                        block.trim(launch);
                        spare = Some(block);
                    } else {
                        drop_block(&mut worker, block);
                    }
                    continue;
                }
                Ok(progress) if spent < launch.budget => {
                    // Lower blocks go on after a fault, for theirs would count. But they may wait for the one that it
                    // stopped.
                    let is_bereft = progress == Progress::Polling && self.first_fault.load(Relaxed) != u64::MAX;
                    patience = if is_bereft { patience - slice } else { PATIENCE };
                    if patience < 0 {
                        drop_block(&mut worker, block);
                        continue;
                    }
                    wants_more |= progress == Progress::Polling;
                    if progress == Progress::Paused && !is_shared {
                        resident.push_front((linear, block));
                    } else {
                        resident.push_back((linear, block));
                    }
                    continue;
                }
                Ok(_) => Stopped { kind: self.exhausted(), lane: 0 },
                Err(stopped) => stopped,
            };
            self.fault(&block, linear, stopped);
            drop_block(&mut worker, block);
        }
        if let Some(mut block) = spare {
            block.give_back(launch);
        }
        worker.observer
    }
}

/// Gives back what a block has that does not run any more, the observer's part too.
fn drop_block<O: Observe>(worker: &mut Worker<'_, O>, mut block: Block) {
    if O::IS_ON {
        worker.observer.block_ended(block.index);
    }
    block.give_back(worker.launch);
}
