//! Finds what goes wrong silently: races, reads of memory that nobody wrote, barriers that not all lanes reach.
//!
//! Races are found by happens-before, not by luck. Each warp has a vector clock: its own time, which steps at every
//! synchronisation, and the latest time of every other warp that it is ordered after. Barriers join the clocks of those
//! who meet; ordered and atomic accesses join with the clock kept at their address, both ways; instructions that bring a
//! warp's lanes together step its own time. Each byte of shared and global memory remembers its last write and its last
//! reads; an access that is not ordered after them, by another thread, is a race. Lanes of one warp are ordered by their
//! warp's time only, so code that relies on lockstep without `__syncwarp` is found too.
//!
//! (Lamport 1978; Flanagan and Freund, FastTrack, 2009, for the epochs per location.)

use std::collections::HashMap;

use super::error::{Access, Fault, FaultKind};
use super::machine::Launch;
use super::machine::access::lanes_of;
use super::machine::observe::{AccessEvent, BarrierEvent, Observe, Target};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindingKind {
    SharedRace,
    GlobalRace,
    UninitialisedShared,
    UninitialisedGlobal,
    BarrierDivergence,
    OutOfBounds,
    Misaligned,
    UseAfterFree,
    /// Anything else that stopped the kernel.
    Fault,
}

/// One finding: the first of its kind at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub kernel: String,
    /// Line in the PTX text.
    pub line: u32,
    /// File and line of the source, where the PTX carries them.
    pub source: Option<(String, u32)>,
    pub block: [u32; 3],
    pub thread: [u32; 3],
    pub address: u64,
    /// What it conflicts with, and more.
    pub detail: String,
}

impl std::fmt::Display for FindingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SharedRace => "race in shared memory",
            Self::GlobalRace => "race in global memory",
            Self::UninitialisedShared => "read of uninitialised shared memory",
            Self::UninitialisedGlobal => "read of uninitialised global memory",
            Self::BarrierDivergence => "barrier divergence",
            Self::OutOfBounds => "access out of bounds",
            Self::Misaligned => "misaligned access",
            Self::UseAfterFree => "use after free",
            Self::Fault => "fault",
        })
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, kernel, line, source, block, thread, address, detail } = self;
        let [block, thread] = [block, thread].map(|[x, y, z]| format!("({x},{y},{z})"));
        write!(f, "{kind} in {kernel}, PTX line {line}")?;
        if let Some((file, line)) = source {
            write!(f, " ({file}:{line})")?;
        }
        write!(f, ", block {block}, thread {thread}, address {address:#x}: {detail}")
    }
}

impl Finding {
    /// A fault as a finding.
    pub fn from_fault(fault: &Fault) -> Self {
        let (kind, address) = match &fault.kind {
            FaultKind::OutOfBounds { address, near: Some(near), .. } if near.contains("freed") => {
                (FindingKind::UseAfterFree, *address)
            }
            FaultKind::OutOfBounds { address, .. } => (FindingKind::OutOfBounds, *address),
            FaultKind::Misaligned { address, .. } => (FindingKind::Misaligned, *address),
            _ => (FindingKind::Fault, 0),
        };
        Self {
            kind,
            kernel: fault.kernel.clone(),
            line: fault.line,
            source: None,
            block: fault.block,
            thread: fault.thread,
            address,
            detail: fault.kind.to_string(),
        }
    }
}

/// Most findings that are kept; more say nothing new.
const MAX_FINDINGS: usize = 1000;

type Clock = HashMap<u32, u32>;

fn join(into: &mut Clock, other: &Clock) {
    for (&warp, &time) in other {
        let known = into.entry(warp).or_default();
        *known = (*known).max(time);
    }
}

/// An access that a byte remembers; `warp` counts from 1 over the launch, 0 is nobody.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    warp: u32,
    time: u32,
    pc: u32,
    lane: u8,
    is_synchronizing: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Shadow {
    write: Mark,
    /// The last reads, of different warps.
    reads: [Mark; 2],
}

const PAGE: u64 = 256;
type Pages = HashMap<u64, Box<[Shadow; PAGE as usize]>>;

#[derive(Debug, Default)]
struct BlockState {
    shared: Pages,
    /// Clocks of sync variables in shared memory.
    sync: HashMap<u64, Clock>,
    /// Warps at each barrier.
    arrived: HashMap<u32, Vec<u32>>,
}

/// The sanitizer of a launch; runs on one host thread, so that it sees all blocks.
#[derive(Debug, Default)]
pub struct Sanitizer {
    blocks: HashMap<[u32; 3], BlockState>,
    clocks: HashMap<u32, Clock>,
    global: Pages,
    sync: HashMap<u64, Clock>,
    findings: Vec<Finding>,
    known: HashMap<(FindingKind, u32, u32), u32>,
    /// Barriers are told by block; needed to name warps.
    grid: [u32; 3],
}

impl Sanitizer {
    pub fn new(grid: [u32; 3]) -> Self {
        Self { grid, ..Self::default() }
    }

    pub fn findings(self) -> Vec<Finding> {
        self.findings
    }

    fn warp_id(&self, block: [u32; 3], warp: u32) -> u32 {
        let linear = block[0]
            .wrapping_add(self.grid[0].wrapping_mul(block[1].wrapping_add(self.grid[1].wrapping_mul(block[2]))));
        linear.wrapping_mul(32).wrapping_add(warp).wrapping_add(1)
    }

    fn step(&mut self, warp: u32) {
        *self.clocks.entry(warp).or_default().entry(warp).or_insert(1) += 1;
    }

    #[allow(clippy::too_many_arguments)]
    fn report(
        &mut self,
        launch: &Launch<'_>,
        kind: FindingKind,
        pc: u32,
        other: u32,
        block: [u32; 3],
        thread: u32,
        address: u64,
        detail: String,
    ) {
        let times = self.known.entry((kind, pc, other)).or_default();
        *times += 1;
        if *times > 1 || self.findings.len() >= MAX_FINDINGS {
            return;
        }
        let meta = launch.program.meta.get(pc as usize).copied().unwrap_or_default();
        let source = meta.source.map(|(file, line)| {
            let path =
                launch.program.source_files.iter().find(|(number, _)| *number == file).map(|(_, path)| path.clone());
            (path.unwrap_or_default(), line)
        });
        self.findings.push(Finding {
            kind,
            kernel: launch.program.functions[launch.kernel as usize].name.clone(),
            line: meta.line,
            source,
            block,
            thread: launch.thread(thread),
            address,
            detail,
        });
    }
}

/// True if `mark` is ordered before an access of this warp and lane now.
fn is_ordered(mark: &Mark, warp: u32, lane: u8, clock: &Clock) -> bool {
    if mark.warp == 0 || (mark.warp == warp && mark.lane == lane) {
        return true;
    }
    let seen = clock.get(&mark.warp).copied().unwrap_or(0);
    // A warp's own time is what it is now: an access of the same time has had no synchronisation since.
    if mark.warp == warp { mark.time < seen } else { mark.time <= seen }
}

impl Observe for Sanitizer {
    const IS_ON: bool = true;

    fn converged(&mut self, block: [u32; 3], warp: u32) {
        let warp = self.warp_id(block, warp);
        self.step(warp);
    }

    fn barrier(&mut self, launch: &Launch<'_>, event: &BarrierEvent) {
        if event.is_aligned && event.mask != event.live {
            let missing = (event.live & !event.mask).count_ones();
            let thread = event.warp * 32 + event.mask.trailing_zeros();
            let detail = format!("{missing} live lanes of the warp are not at this barrier");
            self.report(launch, FindingKind::BarrierDivergence, event.pc, 0, event.block, thread, 0, detail);
        }
        let warp = self.warp_id(event.block, event.warp);
        self.blocks.entry(event.block).or_default().arrived.entry(event.id).or_default().push(warp);
    }

    fn barrier_released(&mut self, block: [u32; 3], id: u32) {
        let Some(arrived) = self.blocks.get_mut(&block).and_then(|state| state.arrived.remove(&id)) else { return };
        let mut joined = Clock::new();
        for warp in &arrived {
            let clock = self.clocks.entry(*warp).or_default();
            clock.entry(*warp).or_insert(1);
            join(&mut joined, clock);
        }
        for warp in arrived {
            let own = joined.get(&warp).copied().unwrap_or(1) + 1;
            let clock = self.clocks.entry(warp).or_default();
            *clock = joined.clone();
            clock.insert(warp, own);
        }
    }

    fn block_ended(&mut self, _launch: &Launch<'_>, block: [u32; 3]) {
        self.blocks.remove(&block);
    }

    fn access(&mut self, launch: &Launch<'_>, event: &AccessEvent<'_>) {
        let is_shared = match event.target {
            Target::Shared => true,
            Target::Global => false,
            Target::Local | Target::Param => return,
        };
        let warp = self.warp_id(event.block, event.warp);
        self.clocks.entry(warp).or_default().entry(warp).or_insert(1);
        let mut state = self.blocks.remove(&event.block).unwrap_or_default();
        let mut global = std::mem::take(&mut self.global);
        let pages = if is_shared { &mut state.shared } else { &mut global };
        for lane in lanes_of(event.lanes) {
            let address = event.addresses[lane];
            if event.is_synchronizing {
                // What earlier holders of this address knew, this warp knows now.
                let sync = if is_shared { &mut state.sync } else { &mut self.sync };
                if let (Some(kept), Some(own)) = (sync.get(&address), self.clocks.get_mut(&warp)) {
                    let time = own.get(&warp).copied().unwrap_or(1);
                    join(own, kept);
                    own.insert(warp, time);
                }
            }
            let clock = self.clocks.get(&warp).cloned().unwrap_or_default();
            let time = clock.get(&warp).copied().unwrap_or(1);
            let mark = Mark { warp, time, pc: event.pc, lane: lane as u8, is_synchronizing: event.is_synchronizing };
            let mut conflict: Option<(Mark, &str)> = None;
            let mut is_unwritten = false;
            for byte in address..address + u64::from(event.bytes) {
                let page = pages.entry(byte / PAGE).or_insert_with(|| Box::new([Shadow::default(); PAGE as usize]));
                let shadow = &mut page[(byte % PAGE) as usize];
                let both_synchronize = |other: &Mark| other.is_synchronizing && event.is_synchronizing;
                let same_instruction = |other: &Mark| other.warp == warp && other.pc == event.pc && other.time == time;
                let races = |other: &Mark| {
                    !is_ordered(other, warp, lane as u8, &clock) && !both_synchronize(other) && !same_instruction(other)
                };
                if races(&shadow.write) {
                    conflict = Some((shadow.write, "write"));
                }
                if event.access == Access::Read {
                    is_unwritten |= is_shared && shadow.write.warp == 0;
                    let place = usize::from(shadow.reads[0].warp != 0 && shadow.reads[0].warp != warp);
                    shadow.reads[place] = mark;
                } else {
                    if let Some(read) = shadow.reads.iter().find(|read| races(read)) {
                        conflict = Some((*read, "read"));
                    }
                    shadow.write = mark;
                    shadow.reads = [Mark::default(); 2];
                }
            }
            let thread = event.warp * 32 + lane as u32;
            if let Some((other, what)) = conflict {
                let kind = if is_shared { FindingKind::SharedRace } else { FindingKind::GlobalRace };
                let line = launch.program.meta.get(other.pc as usize).map_or(0, |meta| meta.line);
                let (other_block, other_warp) = ((other.warp - 1) / 32, (other.warp - 1) % 32);
                let detail = format!(
                    "{} without order after the {what} at line {line} by lane {} of warp {other_warp} of block {other_block}",
                    event.access, other.lane
                );
                self.report(launch, kind, event.pc, other.pc, event.block, thread, address, detail);
            }
            if is_unwritten {
                let detail = "nothing in the block wrote this shared memory before".into();
                self.report(
                    launch,
                    FindingKind::UninitialisedShared,
                    event.pc,
                    0,
                    event.block,
                    thread,
                    address,
                    detail,
                );
            }
            if !is_shared {
                match (event.access, launch.memory.initialised(address)) {
                    (Access::Write | Access::Atomic, Some(bits)) => bits.mark(address, event.bytes),
                    (Access::Read, Some(bits)) if !bits.covers(address, event.bytes) => {
                        let detail = "neither the host nor a kernel wrote this memory before".into();
                        self.report(
                            launch,
                            FindingKind::UninitialisedGlobal,
                            event.pc,
                            0,
                            event.block,
                            thread,
                            address,
                            detail,
                        );
                    }
                    _ => {}
                }
            }
            if event.is_synchronizing && event.access != Access::Read {
                let sync = if is_shared { &mut state.sync } else { &mut self.sync };
                join(sync.entry(address).or_default(), &clock);
            } else if event.is_synchronizing {
                // A polling read takes what a plain but ordered write left; nothing to give.
            }
        }
        if event.is_synchronizing {
            self.step(warp);
        }
        self.global = global;
        self.blocks.insert(event.block, state);
    }
}
