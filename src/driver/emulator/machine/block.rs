//! One block: its warps take turns, its barriers bring them together.

use super::observe::{BarrierEvent, Observe};
use super::run::{POLL_COST, Stop, Worker};
use super::warp::{POLL_WEIGHT, State, Warp};
use super::{Launch, Outcome, Stopped};
use crate::decode::program::{BarrierOp, BarrierReduction, NONE};
use crate::error::FaultKind;
use crate::lanes::{LANES, Plane, Word, predicate, store_lanes, store_predicate};

/// Instructions that a warp runs before the next one gets a turn. Long, because its registers are warm in the cache.
const WARP_SLICE: i64 = 1 << 14;
/// Instructions of a group before the warp looks for one that waits.
const GROUP_SLICE: i64 = 1 << 11;
/// Turns of each warp in which nothing but polling went on, after which a block that is alone counts as stuck.
const STUCK_ROUNDS: usize = 64;
/// Hardware barriers of a block.
const BARRIERS: usize = 16;
/// What groups that wait at the cluster's barrier have for its number.
const CLUSTER: u32 = BARRIERS as u32;

/// The shared memory of a block.
#[derive(Debug, Default)]
pub struct SharedMemory {
    words: Vec<u128>,
    bytes: usize,
}

impl SharedMemory {
    pub fn reset(&mut self, bytes: usize) {
        self.words.clear();
        self.words.resize(bytes.div_ceil(16), 0);
        self.bytes = bytes;
    }

    #[inline(always)]
    pub fn bytes(&mut self) -> &mut [u8] {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
        &mut bytes[..self.bytes]
    }
}

/// Warps of the largest block.
const MAX_WARPS: usize = 32;

#[derive(Debug, Clone, Copy, Default)]
struct Barrier {
    /// Lanes that have arrived, by warp.
    arrived: [u32; MAX_WARPS],
    /// Threads that it takes; none for all of the block.
    expected: Option<u32>,
    /// Threads whose predicate was true, and whose was false.
    truths: u32,
    falsehoods: u32,
}

impl Barrier {
    /// Threads that have arrived. A warp that is there with all the lanes that it has left counts in full, as barriers with
    /// a thread count ask.
    fn threads(&self, warps: &[Warp]) -> u32 {
        let arrived = self.arrived.iter().zip(warps).filter(|(lanes, _)| **lanes != 0);
        arrived.map(|(lanes, warp)| if warp.live & !lanes == 0 { 32 } else { lanes.count_ones() }).sum()
    }

    /// True if no thread of the block is missing.
    fn has_all(&self, warps: &[Warp]) -> bool {
        self.arrived.iter().zip(warps).all(|(lanes, warp)| warp.live & !lanes == 0)
    }
}

/// A bit for each warp that has left the kernel.
fn exited(warps: &[Warp]) -> u32 {
    let bit = |(index, warp): (usize, &Warp)| u32::from(warp.live == 0) << (index % MAX_WARPS);
    warps.iter().enumerate().map(bit).sum()
}

/// The barrier of the cluster, of which the block is all: who arrives goes on, and waits later for the others' arrival.
#[derive(Debug, Clone, Copy, Default)]
struct ClusterBarrier {
    /// Lanes that have arrived, by warp.
    arrived: [u32; MAX_WARPS],
    /// Lanes that need not wait: all others arrived after them.
    may_pass: [u32; MAX_WARPS],
}

/// How a block's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// Its slice is used up.
    Paused,
    /// It polls memory that another block may have to write.
    Polling,
}

pub struct Block {
    pub index: [u32; 3],
    pub shared: SharedMemory,
    pub warps: Vec<Warp>,
    barriers: [Barrier; BARRIERS],
    cluster: ClusterBarrier,
    next_warp: usize,
    /// Turns since something went on that was no polling.
    idle_turns: usize,
    pub clock: u64,
    pub output: Vec<u8>,
    /// The warp that ran last and its place, for faults.
    pub last_warp: u32,
    pub last_pc: u32,
}

impl Block {
    pub fn new() -> Self {
        Self {
            index: [0; 3],
            shared: SharedMemory::default(),
            warps: Vec::new(),
            barriers: [Barrier::default(); BARRIERS],
            cluster: ClusterBarrier::default(),
            next_warp: 0,
            idle_turns: 0,
            clock: 0,
            output: Vec::new(),
            last_warp: 0,
            last_pc: 0,
        }
    }

    /// Makes it the block at `index` of the launch, about to start. Reuses what memory it has.
    pub fn start(&mut self, launch: &Launch<'_>, index: [u32; 3]) -> Outcome<()> {
        self.index = index;
        self.shared.reset(launch.all_shared_bytes() as usize);
        self.barriers = [Barrier::default(); BARRIERS];
        self.cluster = ClusterBarrier::default();
        (self.next_warp, self.idle_turns, self.clock, self.last_warp) = (0, 0, 0, 0);
        self.last_pc = launch.program.functions[launch.kernel as usize].entry_pc;
        self.output.clear();
        let count = launch.threads_per_block().div_ceil(32);
        self.warps.truncate(count as usize);
        for warp in self.warps.len() as u32..count {
            self.warps.push(Warp::new(warp));
        }
        self.warps.iter_mut().try_for_each(|warp| warp.start(launch, index))
    }

    /// After it has ended: keeps a little memory for the next block, and gives back the rest.
    pub fn trim(&mut self, launch: &Launch<'_>) {
        self.warps.iter_mut().for_each(|warp| warp.trim(&launch.resident));
    }

    /// Gives back all memory; the block does not run again.
    pub fn give_back(&mut self, launch: &Launch<'_>) {
        self.warps.iter_mut().for_each(|warp| warp.give_back(&launch.resident));
    }

    /// Runs until all threads have exited or `slice` instructions are used up.
    pub fn run<O: Observe>(&mut self, worker: &mut Worker<'_, O>, slice: &mut i64) -> Outcome<Progress> {
        worker.clock = self.clock;
        worker.polls = 0;
        let given = *slice;
        std::mem::swap(&mut worker.output, &mut self.output);
        let result = self.turns(worker, slice);
        std::mem::swap(&mut worker.output, &mut self.output);
        self.clock = worker.clock;
        match result {
            // More than half of the slice went to accesses that may be waiting for somebody.
            Ok(Progress::Paused) if 2 * POLL_COST * worker.polls > given => Ok(Progress::Polling),
            other => other,
        }
    }

    fn turns<O: Observe>(&mut self, worker: &mut Worker<'_, O>, slice: &mut i64) -> Outcome<Progress> {
        let mut idle = 0;
        let mut polling = 0;
        loop {
            if self.warps.iter().all(|warp| warp.live == 0) {
                return Ok(Progress::Done);
            }
            if *slice <= 0 {
                return Ok(Progress::Paused);
            }
            let index = self.next_warp;
            self.next_warp = (index + 1) % self.warps.len();
            let before = *slice;
            // What a lane waits for can be behind a barrier only if no other block and no other warp can bring it.
            let is_stuck = worker.is_alone && self.idle_turns > STUCK_ROUNDS * self.warps.len();
            worker.passes_barriers = is_stuck;
            if is_stuck {
                self.release_aligned();
            }
            let (polls, works) = self.turn(worker, index, slice)?;
            self.idle_turns = if works { 0 } else { self.idle_turns + 1 };
            idle = if *slice == before { idle + 1 } else { 0 };
            if idle > self.warps.len() {
                if !self.release_aligned() {
                    return self.deadlock();
                }
                idle = 0;
            }
            polling = if polls || *slice == before { polling + usize::from(polls) } else { 0 };
            if polling > 4 * self.warps.len() {
                return Ok(Progress::Polling);
            }
        }
    }

    fn deadlock<T>(&mut self) -> Outcome<T> {
        let mut waiting = Vec::new();
        for warp in &self.warps {
            for group in &warp.groups {
                // The place of a group at a barrier is behind it.
                let (what, pc) = match group.state {
                    State::Barrier { id: CLUSTER, .. } => ("at barrier.cluster.wait".into(), group.pc - 1),
                    State::Barrier { id, .. } => (format!("at barrier {id}"), group.pc - 1),
                    _ => ("for other lanes of its warp".into(), group.pc),
                };
                waiting.push(what);
                (self.last_warp, self.last_pc) = (warp.index, pc);
            }
        }
        waiting.sort();
        waiting.dedup();
        Err(Stopped::new(FaultKind::Deadlock(waiting.join(", ")), 0))
    }

    /// Lets lanes of every warp go on that wait for others of their warp at a barrier.
    fn release_aligned(&mut self) -> bool {
        // Every warp, also behind one that was released.
        self.warps.iter_mut().map(|warp| warp.release_aligned()).filter(|&released| released).count() > 0
    }

    /// One warp's turn. Returns whether it ended because a group polls, and whether something went on beside polling.
    fn turn<O: Observe>(&mut self, worker: &mut Worker<'_, O>, index: usize, slice: &mut i64) -> Outcome<(bool, bool)> {
        let mut left = WARP_SLICE.min(*slice);
        let started = left;
        let (mut polls, mut has_moved) = (false, false);
        let (mut yields, polls_before_turn) = (0, worker.polls);
        self.last_warp = index as u32;
        while left > 0 && !polls {
            let warp = &mut self.warps[index];
            let Some(group) = warp.choose() else {
                if warp.release_stuck() {
                    left -= 1;
                    continue;
                }
                break;
            };
            let mut quantum = if warp.groups.len() > 1 { GROUP_SLICE.min(left) } else { left };
            let given = quantum;
            let polls_before = worker.polls;
            let is_contended = warp.groups.len() > 1;
            let result = worker.run(warp, &mut self.shared, self.index, group, &mut quantum);
            left -= given - quantum;
            if is_contended {
                warp.contention += (given - quantum) as u64 + POLL_WEIGHT * (worker.polls - polls_before) as u64;
            } else {
                warp.contention = 0;
            }
            self.last_pc =
                if result.is_err() { worker.pc } else { warp.groups.get(group).map_or(self.last_pc, |group| group.pc) };
            match result? {
                Stop::Reschedule => {
                    if warp.groups.len() > 1 {
                        warp.merge(group);
                    }
                }
                Stop::Yield => {
                    (left, yields) = (left - 1, yields + 1);
                    if warp.groups.len() > 1 {
                        // Who gives way is a group that may be waiting: those behind it must get their turn, and those
                        // at the place to which it has come go on with it.
                        warp.contention += POLL_WEIGHT;
                        warp.merge(group);
                    }
                    polls = warp.groups.iter().filter(|group| group.state == State::Ready).count() < 2;
                }
                Stop::Exited => {
                    has_moved = true;
                    self.complete_barriers(worker);
                }
                Stop::ClusterBarrier { waits } => {
                    has_moved = true;
                    self.meet_cluster(worker, index, group, waits);
                }
                Stop::Barrier { op, pc } => {
                    has_moved = true;
                    self.arrive(worker, index, group, &op, pc)?;
                }
            }
        }
        *slice -= started - left;
        let polling = 2 * POLL_COST * (yields + worker.polls - polls_before_turn);
        Ok((polls, has_moved || started - left > polling))
    }

    fn meet_cluster<O: Observe>(&mut self, worker: &mut Worker<'_, O>, index: usize, group: usize, waits: bool) {
        let warp = &mut self.warps[index];
        if waits {
            warp.groups[group].state = State::Barrier { id: CLUSTER, reduction: None };
        } else {
            self.cluster.arrived[index % MAX_WARPS] |= warp.groups[group].mask;
            warp.merge(group);
            if O::IS_ON {
                worker.observer.cluster_arrived(self.index, index as u32);
            }
        }
        self.complete_cluster(worker);
    }

    /// Lets those pass the cluster's barrier that have waited for the last arrival.
    fn complete_cluster<O: Observe>(&mut self, worker: &mut Worker<'_, O>) {
        let ClusterBarrier { arrived, may_pass } = &mut self.cluster;
        if arrived.iter().zip(&self.warps).all(|(lanes, warp)| warp.live & !lanes == 0) {
            may_pass.iter_mut().zip(arrived.iter()).for_each(|(pass, arrived)| *pass |= arrived);
            *arrived = [0; MAX_WARPS];
        }
        let exited = exited(&self.warps);
        for (warp, may_pass) in self.warps.iter_mut().zip(may_pass) {
            let mut has_passed = false;
            for group in &mut warp.groups {
                if matches!(group.state, State::Barrier { id: CLUSTER, .. }) && group.mask & !*may_pass == 0 {
                    *may_pass &= !group.mask;
                    group.state = State::Ready;
                    has_passed = true;
                    if O::IS_ON {
                        worker.observer.cluster_passed(self.index, warp.index, exited);
                    }
                }
            }
            if has_passed {
                warp.merge_all();
            }
        }
    }

    fn arrive<O: Observe>(
        &mut self,
        worker: &mut Worker<'_, O>,
        index: usize,
        group: usize,
        op: &BarrierOp,
        pc: u32,
    ) -> Outcome<()> {
        let warp = &mut self.warps[index];
        let frame = warp.frames[warp.groups[group].frame as usize];
        let planes: &[Plane] = &warp.planes[frame.base as usize..(frame.base + frame.planes) as usize];
        let mask = warp.groups[group].mask;
        let lane = mask.trailing_zeros() as usize % LANES;
        let id = u32::view(planes, op.id)[lane];
        if id as usize >= BARRIERS {
            return Err(Stopped::new(FaultKind::Illegal(format!("barrier {id}: a block has 16")), lane as u32));
        }
        if O::IS_ON {
            let (live, is_aligned, waits) = (warp.live, op.is_aligned, op.waits);
            let event = BarrierEvent { pc, block: self.index, warp: index as u32, mask, live, is_aligned, waits, id };
            worker.observer.barrier(worker.launch, &event);
        }
        let barrier = &mut self.barriers[id as usize];
        barrier.expected = (op.count != NONE).then(|| u32::view(planes, op.count)[lane]);
        barrier.arrived[index % MAX_WARPS] |= mask;
        if let Some((_, _, p, negated)) = op.reduction {
            let truth = predicate(planes, p, negated) & mask;
            barrier.truths += truth.count_ones();
            barrier.falsehoods += (mask & !truth).count_ones();
        }
        if op.waits {
            let reduction = op.reduction.map(|(operation, d, ..)| (operation, d));
            warp.groups[group].state = State::Barrier { id, reduction };
        } else {
            warp.merge(group);
        }
        self.complete_barriers(worker);
        Ok(())
    }

    /// Opens every barrier at which enough threads are.
    fn complete_barriers<O: Observe>(&mut self, worker: &mut Worker<'_, O>) {
        self.complete_cluster(worker);
        for (id, barrier) in self.barriers.iter_mut().enumerate() {
            let is_complete = match barrier.expected {
                Some(expected) => barrier.threads(&self.warps) >= expected,
                None => barrier.has_all(&self.warps),
            };
            if barrier.arrived == [0; MAX_WARPS] || !is_complete {
                continue;
            }
            let done = std::mem::take(barrier);
            if O::IS_ON {
                let exited = if done.expected.is_none() { exited(&self.warps) } else { 0 };
                worker.observer.barrier_released(self.index, id as u32, exited);
            }
            for warp in &mut self.warps {
                for index in 0..warp.groups.len() {
                    let group = warp.groups[index];
                    let State::Barrier { id: waits_at, reduction } = group.state else { continue };
                    if waits_at as usize != id {
                        continue;
                    }
                    let frame = warp.frames[group.frame as usize];
                    let planes = &mut warp.planes[frame.base as usize..];
                    match reduction {
                        Some((BarrierReduction::Popcount, d)) => {
                            store_lanes(planes, d, &[done.truths; LANES], group.mask)
                        }
                        Some((BarrierReduction::And, d)) => {
                            store_predicate(planes, d, if done.falsehoods == 0 { u32::MAX } else { 0 }, group.mask);
                        }
                        Some((BarrierReduction::Or, d)) => {
                            store_predicate(planes, d, if done.truths > 0 { u32::MAX } else { 0 }, group.mask);
                        }
                        None => {}
                    }
                    warp.groups[index].state = State::Ready;
                }
                warp.merge_all();
            }
        }
    }
}

impl Default for Block {
    fn default() -> Self {
        Self::new()
    }
}
