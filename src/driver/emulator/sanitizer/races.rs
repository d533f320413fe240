//! Order between accesses: races, unwaited copies and unwritten memory, by happens-before.
//!
//! Each warp has a vector clock: its own time, which steps at every synchronisation, and the latest time of every other
//! warp that it is ordered after. Barriers join the clocks of those who meet; ordered and atomic accesses join with the
//! clock kept at their address, both ways; instructions that bring a warp's lanes together step its own time. Each byte of
//! shared and global memory remembers its last write and its last reads; an access that is not ordered after them, by
//! another thread, is a race. Lanes of one warp are ordered by their warp's time only, so code that relies on lockstep
//! without `__syncwarp` is found too.
//!
//! What cp.async writes stays in flight until the thread that issued it has waited: nobody may touch it before. From the
//! wait on it counts as written by that thread, now, so that others still need a barrier.
//!
//! Two races are forgiven: plain writes by one instruction of one value, and a thread's plain read that meets others'
//! atomic operations, where its own next step at that address is atomic too. The loop around atomicCAS that the CUDA
//! guide gives (and its headers contain) starts so, and checks by the operation itself what it read.
//!
//! (Lamport 1978; Flanagan and Freund, FastTrack, 2009, for the epochs per location.)

use super::fast_map::FastMap;
use super::{Claim, FindingKind, Place, Report};
use crate::decode::program::CopyFence;
use crate::error::Access;
use crate::lanes::LANES;
use crate::machine::Launch;
use crate::machine::access::lanes_of;
use crate::machine::observe::{AccessEvent, BarrierEvent, Order, Target};

type Clock = FastMap<u32, u32>;

fn join(into: &mut Clock, other: &Clock) {
    for (&warp, &time) in other {
        let known = into.entry(warp).or_default();
        *known = (*known).max(time);
    }
}

/// An access that a byte remembers; `warp` counts from 1 over the launch, 0 is nobody.
#[derive(Debug, Clone, Copy)]
struct Mark {
    warp: u32,
    time: u32,
    pc: u32,
    lane: u8,
    order: Order,
}

const NOBODY: Mark = Mark { warp: 0, time: 0, pc: 0, lane: 0, order: Order::Plain };

#[derive(Debug, Clone, Copy)]
struct Shadow {
    write: Mark,
    /// The last reads, of different warps.
    reads: [Mark; 2],
}

const PAGE: u64 = 256;
const UNTOUCHED: Shadow = Shadow { write: NOBODY, reads: [NOBODY; 2] };

/// What each byte of a memory remembers.
#[derive(Debug, Default)]
struct Pages(FastMap<u64, Box<[Shadow; PAGE as usize]>>);

impl Pages {
    /// Calls `f` with what each byte of a range remembers.
    fn each(&mut self, address: u64, bytes: u32, mut f: impl FnMut(&mut Shadow)) {
        let (mut at, end) = (address, address + u64::from(bytes));
        while at < end {
            let page = self.0.entry(at / PAGE).or_insert_with(|| Box::new([UNTOUCHED; PAGE as usize]));
            let (first, last) = (at % PAGE, (at % PAGE + end - at).min(PAGE));
            page[first as usize..last as usize].iter_mut().for_each(&mut f);
            at += last - first;
        }
    }
}

/// A memory, and the clocks at the addresses that threads synchronise by.
#[derive(Debug, Default)]
struct Memory {
    pages: Pages,
    sync: FastMap<u64, Clock>,
}

#[derive(Debug, Default)]
struct BlockState {
    shared: Memory,
    /// Warps at each barrier, and what those knew that only arrived.
    arrived: FastMap<u32, Vec<(u32, Option<Clock>)>>,
    /// What those knew who arrived at the barrier of the cluster.
    cluster: Clock,
}

/// An asynchronous copy in flight: where it writes, and the number of its group among those of its thread.
#[derive(Debug, Clone, Copy)]
struct Copy {
    lane: u8,
    address: u64,
    bytes: u32,
    group: u32,
}

#[derive(Debug, Default)]
struct Copies {
    in_flight: Vec<Copy>,
    /// Groups that each lane has committed.
    committed: [u32; LANES],
}

/// Clocks and shadows of a launch.
#[derive(Debug, Default)]
pub struct Races {
    grid: [u32; 3],
    blocks: FastMap<[u32; 3], BlockState>,
    clocks: FastMap<u32, Clock>,
    copies: FastMap<u32, Copies>,
    global: Memory,
    /// Races of plain reads with atomic operations, by the reader's warp and lane and the address: forgiven if an atomic
    /// operation of the reader follows.
    guesses: FastMap<(u32, u8, u64), Vec<Claim>>,
}

/// Most of them that are kept.
const MAX_GUESSES: usize = 1 << 20;

/// True if `mark` is ordered before an access of this warp and lane now.
fn is_ordered(mark: &Mark, warp: u32, lane: u8, clock: &Clock) -> bool {
    if mark.warp == 0 || (mark.warp == warp && mark.lane == lane) {
        return true;
    }
    let seen = clock.get(&mark.warp).copied().unwrap_or(0);
    // A warp's own time is what it is now: an access of the same time has had no synchronisation since.
    if mark.warp == warp { mark.time < seen } else { mark.time <= seen }
}

/// For each lane a bit for each byte that it read before anybody wrote it.
pub type Unwritten = Option<Box<[u32; LANES]>>;

/// What is said of such bytes.
pub const NEVER_WRITTEN: &str = "nothing in the block wrote this shared memory before";

/// What one lane's access found in the shadow.
#[derive(Default)]
struct Found {
    conflict: Option<(Mark, &'static str)>,
    in_flight: Option<Mark>,
    /// A bit for each byte that was read before anybody wrote it.
    unwritten: u32,
}

impl Races {
    pub fn new(grid: [u32; 3]) -> Self {
        Self { grid, ..Self::default() }
    }

    fn warp_id(&self, block: [u32; 3], warp: u32) -> u32 {
        let linear = block[0]
            .wrapping_add(self.grid[0].wrapping_mul(block[1].wrapping_add(self.grid[1].wrapping_mul(block[2]))));
        linear.wrapping_mul(32).wrapping_add(warp).wrapping_add(1)
    }

    /// Lanes of a warp came together.
    pub fn converged(&mut self, block: [u32; 3], warp: u32) {
        let warp = self.warp_id(block, warp);
        self.step(warp);
    }

    fn step(&mut self, warp: u32) {
        *self.clocks.entry(warp).or_default().entry(warp).or_insert(1) += 1;
    }

    pub fn arrived(&mut self, event: &BarrierEvent) {
        let warp = self.warp_id(event.block, event.warp);
        // Who only arrives tells the others what it has done so far, and learns nothing.
        let given = (!event.waits).then(|| {
            let clock = self.clocks.entry(warp).or_default();
            clock.entry(warp).or_insert(1);
            clock.clone()
        });
        if given.is_some() {
            self.step(warp);
        }
        self.blocks.entry(event.block).or_default().arrived.entry(event.id).or_default().push((warp, given));
    }

    /// `exited` has a bit for each warp that left the kernel, where the barrier is one for the whole block: such a barrier
    /// counts them as arrived (PTX manual, `exit`), so what they did before is done. Dr.Jit's reductions build on that.
    pub fn barrier_released(&mut self, block: [u32; 3], id: u32, exited: u32) {
        let Some(arrived) = self.blocks.get_mut(&block).and_then(|state| state.arrived.remove(&id)) else { return };
        let mut joined = Clock::default();
        self.join_exited(block, exited, &mut joined);
        for (warp, given) in &arrived {
            match given {
                Some(clock) => join(&mut joined, clock),
                None => {
                    let clock = self.clocks.entry(*warp).or_default();
                    clock.entry(*warp).or_insert(1);
                    join(&mut joined, clock);
                }
            }
        }
        for (warp, _) in arrived.into_iter().filter(|(_, given)| given.is_none()) {
            let own = joined.get(&warp).copied().unwrap_or(1) + 1;
            let clock = self.clocks.entry(warp).or_default();
            *clock = joined.clone();
            clock.insert(warp, own);
        }
    }

    pub fn cluster_arrived(&mut self, block: [u32; 3], warp: u32) {
        let warp = self.warp_id(block, warp);
        let clock = self.clocks.entry(warp).or_default();
        clock.entry(warp).or_insert(1);
        join(&mut self.blocks.entry(block).or_default().cluster, clock);
        self.step(warp);
    }

    pub fn cluster_passed(&mut self, block: [u32; 3], warp: u32, exited: u32) {
        let warp = self.warp_id(block, warp);
        let mut known = self.blocks.entry(block).or_default().cluster.clone();
        self.join_exited(block, exited, &mut known);
        let clock = self.clocks.entry(warp).or_default();
        let own = *clock.entry(warp).or_insert(1);
        join(clock, &known);
        clock.insert(warp, own);
        self.step(warp);
    }

    fn join_exited(&self, block: [u32; 3], exited: u32, into: &mut Clock) {
        for warp in lanes_of(exited) {
            if let Some(clock) = self.clocks.get(&self.warp_id(block, warp as u32)) {
                join(into, clock);
            }
        }
    }

    /// Bytes of global memory that are somebody else's from now on.
    pub fn forget_global(&mut self, address: u64, bytes: u64) {
        let mut at = address;
        while at < address + bytes {
            let part = (address + bytes - at).min(PAGE);
            self.global.pages.each(at, part as u32, |shadow| *shadow = UNTOUCHED);
            at += part;
        }
    }

    pub fn block_ended(&mut self, block: [u32; 3]) {
        self.blocks.remove(&block);
        for warp in 0..32 {
            let warp = self.warp_id(block, warp);
            self.copies.remove(&warp);
        }
    }

    pub fn copies(&mut self, block: [u32; 3], warp: u32, lanes: u32, fence: CopyFence) {
        let warp = self.warp_id(block, warp);
        let Some(copies) = self.copies.get_mut(&warp) else { return };
        if fence == CopyFence::Commit {
            lanes_of(lanes).for_each(|lane| copies.committed[lane] += 1);
            return;
        }
        let now = self.clocks.get(&warp).and_then(|clock| clock.get(&warp)).copied().unwrap_or(1);
        let shared = &mut self.blocks.entry(block).or_default().shared;
        let committed = copies.committed;
        copies.in_flight.retain(|copy| {
            let is_done = match fence {
                CopyFence::WaitGroups(groups) => copy.group.saturating_add(groups) < committed[usize::from(copy.lane)],
                _ => true,
            };
            if lanes >> copy.lane & 1 == 0 || !is_done {
                return true;
            }
            shared.pages.each(copy.address, copy.bytes, |shadow| {
                let write = &mut shadow.write;
                if write.order == Order::Asynchronous && write.warp == warp && write.lane == copy.lane {
                    (write.order, write.time) = (Order::Plain, now);
                }
            });
            false
        });
    }

    /// Returns the bytes of shared memory that each lane read though nobody had written them.
    pub fn access(&mut self, report: &mut Report, launch: &Launch<'_>, event: &AccessEvent<'_>) -> Unwritten {
        let mut unwritten = None;
        let is_shared = match event.target {
            Target::Shared => true,
            Target::Global => false,
            Target::Local | Target::Param => return None,
        };
        let warp = self.warp_id(event.block, event.warp);
        let mut clock = self.clocks.remove(&warp).unwrap_or_default();
        let time = *clock.entry(warp).or_insert(1);
        let synchronizes = event.order == Order::Synchronizing;
        let block = self.blocks.entry(event.block).or_default();
        let memory = if is_shared { &mut block.shared } else { &mut self.global };
        for lane in lanes_of(event.lanes) {
            let address = event.addresses[lane];
            if synchronizes && let Some(kept) = memory.sync.get(&address) {
                // What earlier holders of this address knew, this warp knows now.
                join(&mut clock, kept);
                clock.insert(warp, time);
            }
            let mark = Mark { warp, time, pc: event.pc, lane: lane as u8, order: event.order };
            let found = meet(&mut memory.pages, event, address, mark, &clock);
            if event.access != Access::Atomic && !self.guesses.is_empty() {
                // The thread went on with what it had read: that race stands.
                self.guesses.remove(&(warp, lane as u8, address));
            }
            let thread = event.warp * 32 + lane as u32;
            let place = Place { pc: event.pc, block: event.block, warp: event.warp, thread, address };
            let line = |pc: u32| launch.program.meta.get(pc as usize).map_or(0, |meta| meta.line);
            let who = |mark: &Mark| {
                let (block, warp) = ((mark.warp - 1) / 32, (mark.warp - 1) % 32);
                format!("at line {} by lane {} of warp {warp} of block {block}", line(mark.pc), mark.lane)
            };
            if let Some(copy) = found.in_flight {
                let detail = format!("{} while the cp.async {} may not be done", event.access, who(&copy));
                report.add(launch, FindingKind::UnwaitedCopy, place, copy.pc, detail);
            } else if let Some((other, what)) = found.conflict {
                let kind = if is_shared { FindingKind::SharedRace } else { FindingKind::GlobalRace };
                let mut detail = format!("{} without order after the {what} {}", event.access, who(&other));
                let (reader, writer) = if event.access == Access::Read { (mark, other) } else { (other, mark) };
                let is_read = event.access == Access::Read || what == "read";
                if is_read && (reader.order, writer.order) == (Order::Plain, Order::Synchronizing) {
                    detail.push_str("; make the read volatile or atomic");
                }
                let may_be_guess = (event.access == Access::Read || (what == "read" && event.access == Access::Atomic))
                    && (reader.order, writer.order) == (Order::Plain, Order::Synchronizing)
                    && self.guesses.len() < MAX_GUESSES;
                if may_be_guess {
                    let claim = report.claim(launch, kind, place, other.pc, detail);
                    self.guesses.entry((reader.warp, reader.lane, address)).or_default().push(claim);
                } else {
                    report.add(launch, kind, place, other.pc, detail);
                }
            }
            if event.access == Access::Atomic {
                let claims = self.guesses.remove(&(warp, lane as u8, address)).unwrap_or_default();
                claims.into_iter().for_each(|claim| report.withdraw(claim));
            }
            if is_shared && found.unwritten != 0 && address < launch.shared_bytes() {
                if event.access == Access::Read {
                    unwritten.get_or_insert_with(|| Box::new([0; LANES]))[lane] = found.unwritten;
                } else {
                    report.add(launch, FindingKind::UninitialisedShared, place, 0, NEVER_WRITTEN.into());
                }
            }
            if !is_shared && let Some(bits) = launch.memory.initialised(address) {
                if event.access != Access::Write && !bits.covers(address, event.bytes) {
                    let detail = "neither the host nor a kernel wrote this memory before".into();
                    report.add(launch, FindingKind::UninitialisedGlobal, place, 0, detail);
                }
                if event.access != Access::Read {
                    bits.mark(address, event.bytes);
                }
            }
            if event.order == Order::Asynchronous {
                let copies = self.copies.entry(warp).or_default();
                let group = copies.committed[lane];
                copies.in_flight.push(Copy { lane: lane as u8, address, bytes: event.bytes, group });
            }
            // A polling read takes what a plain but ordered write left; it has nothing to give.
            if synchronizes && event.access != Access::Read {
                join(memory.sync.entry(address).or_default(), &clock);
            }
        }
        self.clocks.insert(warp, clock);
        if synchronizes {
            self.step(warp);
        }
        unwritten
    }
}

/// Compares an access with what its bytes remember, and makes them remember it.
fn meet(pages: &mut Pages, event: &AccessEvent<'_>, address: u64, mark: Mark, clock: &Clock) -> Found {
    let mut found = Found::default();
    let is_together = |other: &Mark| other.warp == mark.warp && other.pc == mark.pc && other.time == mark.time;
    let races = |other: &Mark| {
        let both_synchronize = other.order == Order::Synchronizing && mark.order == Order::Synchronizing;
        !is_ordered(other, mark.warp, mark.lane, clock) && !both_synchronize && !is_together(other)
    };
    // Compilers have several warps write what each of them computed alike: whoever comes last, the same is there.
    let is_alike = event.unchanged >> mark.lane & 1 != 0 && event.order == Order::Plain;
    let mut byte = 0;
    pages.each(address, event.bytes, |shadow| {
        if shadow.write.order == Order::Asynchronous
            && !(is_together(&shadow.write) && mark.order == shadow.write.order)
        {
            found.in_flight = Some(shadow.write);
        } else if races(&shadow.write) && !(is_alike && shadow.write.pc == mark.pc) {
            found.conflict = Some((shadow.write, "write"));
        }
        found.unwritten |= u32::from(event.access != Access::Write && shadow.write.warp == 0) << byte;
        byte = (byte + 1) & 31;
        if event.access == Access::Read {
            let place = usize::from(shadow.reads[0].warp != 0 && shadow.reads[0].warp != mark.warp);
            shadow.reads[place] = mark;
        } else {
            if let Some(read) = shadow.reads.iter().find(|read| races(read)) {
                found.conflict = Some((*read, "read"));
            }
            shadow.write = mark;
            shadow.reads = [NOBODY; 2];
        }
    });
    found
}
