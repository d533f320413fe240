//! Finds what goes wrong silently: races, values from nowhere, copies that nobody waited for, barriers that not all lanes
//! reach.
//!
//! `races` orders accesses to shared and global memory by happens-before, so that a race is found whether or not it shows
//! in this run; `registers` follows values that nobody wrote to where they matter. Both only watch: the machine tells them
//! what happens ([`Observe`]), and with the sanitizer off it is compiled without them. A finding names the kernel, the
//! line in the PTX and (by `.loc`) in the source, block, thread and address.

mod fast_map;
mod races;
mod registers;

use super::decode::program::{CopyFence, Program};
use super::error::{Fault, FaultKind};
use super::heap::Heap;
use super::machine::Launch;
use super::machine::access::lanes_of;
use super::machine::observe::{
    AccessEvent, BarrierEvent, CallEvent, ConvergeEvent, IssueEvent, Observe, PassEvent, StackEvent, Target,
};
use super::machine::resident::Shadow;
use fast_map::FastMap;
use races::Races;
use registers::Registers;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindingKind {
    SharedRace,
    GlobalRace,
    UninitialisedShared,
    UninitialisedGlobal,
    /// A thread's own `.local` memory.
    UninitialisedLocal,
    UninitialisedRegister,
    /// Memory that cp.async writes was touched before the thread that issued it had waited.
    UnwaitedCopy,
    /// A value came from a lane that takes no part in a warp-level instruction, or such an instruction needs more lanes.
    InactiveLane,
    BarrierDivergence,
    OutOfBounds,
    Misaligned,
    UseAfterFree,
    /// A free of what malloc did not return, or a second one.
    InvalidFree,
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
            Self::UninitialisedLocal => "use of uninitialised local memory",
            Self::UninitialisedRegister => "use of an uninitialised register",
            Self::UnwaitedCopy => "access to an asynchronous copy that was not waited for",
            Self::InactiveLane => "use of an inactive lane",
            Self::BarrierDivergence => "barrier divergence",
            Self::OutOfBounds => "access out of bounds",
            Self::Misaligned => "misaligned access",
            Self::UseAfterFree => "use after free",
            Self::InvalidFree => "invalid free",
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

/// File and line of the source of an instruction.
fn source_of(program: &Program, source: Option<(u32, u32)>) -> Option<(String, u32)> {
    let (file, line) = source?;
    let path = program.source_files.iter().find(|(number, _)| *number == file).map(|(_, path)| path.clone());
    Some((path.unwrap_or_default(), line))
}

impl Finding {
    /// A fault as a finding.
    pub fn from_fault(fault: &Fault, program: &Program) -> Self {
        let (kind, address) = match &fault.kind {
            FaultKind::OutOfBounds { address, near: Some(near), .. } if near.contains("freed") => {
                (FindingKind::UseAfterFree, *address)
            }
            FaultKind::OutOfBounds { address, .. } => (FindingKind::OutOfBounds, *address),
            FaultKind::Misaligned { address, .. } => (FindingKind::Misaligned, *address),
            FaultKind::InvalidFree { address, .. } => (FindingKind::InvalidFree, *address),
            // Threads that wait for each other at different places.
            FaultKind::Deadlock(at) if at.contains("barrier") => (FindingKind::BarrierDivergence, 0),
            FaultKind::Deadlock(_) => (FindingKind::InactiveLane, 0),
            _ => (FindingKind::Fault, 0),
        };
        let meta = program.meta.iter().find(|meta| meta.line == fault.line && meta.source.is_some());
        Self {
            kind,
            kernel: fault.kernel.clone(),
            line: fault.line,
            source: source_of(program, meta.and_then(|meta| meta.source)),
            block: fault.block,
            thread: fault.thread,
            address,
            detail: fault.kind.to_string(),
        }
    }
}

/// Most findings that are kept; more say nothing new.
const MAX_FINDINGS: usize = 1000;

/// Where something was found; `thread` counts within the block.
#[derive(Debug, Clone, Copy)]
struct Place {
    pc: u32,
    block: [u32; 3],
    warp: u32,
    thread: u32,
    address: u64,
}

/// Kind, place and the place that it has to do with: each is told once.
type Claim = (FindingKind, u32, u32);

/// The findings so far.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Finding>,
    known: FastMap<Claim, ()>,
    /// Findings that may yet be withdrawn, and how often each was claimed.
    claimed: FastMap<Claim, (Finding, usize)>,
}

impl Report {
    fn add(&mut self, launch: &Launch<'_>, kind: FindingKind, place: Place, other_pc: u32, detail: String) {
        let is_known = self.known.insert((kind, place.pc, other_pc), ()).is_some();
        if is_known || self.findings.len() >= MAX_FINDINGS {
            return;
        }
        self.findings.push(finding(launch, kind, place, detail));
    }

    /// Adds a finding that [`Self::withdraw`] may take back.
    fn claim(&mut self, launch: &Launch<'_>, kind: FindingKind, place: Place, other_pc: u32, detail: String) -> Claim {
        let claim = (kind, place.pc, other_pc);
        self.claimed.entry(claim).or_insert_with(|| (finding(launch, kind, place, detail), 0)).1 += 1;
        claim
    }

    fn withdraw(&mut self, claim: Claim) {
        if let Some((_, count)) = self.claimed.get_mut(&claim) {
            *count -= 1;
            if *count == 0 {
                self.claimed.remove(&claim);
            }
        }
    }

    fn findings(mut self) -> Vec<Finding> {
        let mut claimed: Vec<(Claim, Finding)> = self
            .claimed
            .into_iter()
            .filter(|(claim, _)| !self.known.contains_key(claim))
            .map(|(claim, (finding, _))| (claim, finding))
            .collect();
        claimed.sort_by_key(|((_, pc, other_pc), _)| (*pc, *other_pc));
        self.findings.extend(claimed.into_iter().map(|(_, finding)| finding));
        self.findings.truncate(MAX_FINDINGS);
        self.findings
    }
}

fn finding(launch: &Launch<'_>, kind: FindingKind, place: Place, detail: String) -> Finding {
    let program = launch.program;
    let meta = program.meta.get(place.pc as usize).copied().unwrap_or_default();
    Finding {
        kind,
        kernel: program.functions[launch.kernel as usize].name.clone(),
        line: meta.line,
        source: source_of(program, meta.source),
        block: place.block,
        thread: launch.thread(place.thread),
        address: place.address,
        detail,
    }
}

/// The sanitizer of a launch; runs on one host thread, so that it sees all blocks.
#[derive(Debug, Default)]
pub struct Sanitizer {
    report: Report,
    races: Races,
    registers: Registers,
}

impl Sanitizer {
    pub fn new(grid: [u32; 3]) -> Self {
        Self { races: Races::new(grid), ..Self::default() }
    }

    pub fn findings(self) -> Vec<Finding> {
        self.report.findings()
    }
}

/// Reports accesses to the heap outside of what malloc returned.
fn check_heap(report: &mut Report, launch: &Launch<'_>, event: &AccessEvent<'_>, heap: &Heap) {
    for lane in lanes_of(event.lanes) {
        let address = event.addresses[lane];
        if heap.contains(address)
            && let Some(detail) = heap.complaint(address, event.bytes)
        {
            let is_freed = detail.ends_with("freed");
            let kind = if is_freed { FindingKind::UseAfterFree } else { FindingKind::OutOfBounds };
            let thread = event.warp * 32 + lane as u32;
            let place = Place { pc: event.pc, block: event.block, warp: event.warp, thread, address };
            let detail = format!("{} of {} bytes {detail}", event.access, event.bytes);
            report.add(launch, kind, place, 0, detail);
        }
    }
}

impl Observe for Sanitizer {
    const IS_ON: bool = true;
    const SHADOW: Shadow = registers::SHADOW;
    const SEES_VALUES: bool = true;

    fn issued(&mut self, launch: &Launch<'_>, event: &IssueEvent<'_>) {
        self.registers.issued(&mut self.report, launch, event);
    }

    fn access(&mut self, launch: &Launch<'_>, event: &AccessEvent<'_>) {
        if let (Some(heap), Target::Global) = (launch.memory.heap(), event.target) {
            check_heap(&mut self.report, launch, event, heap);
        }
        self.registers.access(&mut self.report, launch, event);
        if let Some(unwritten) = self.races.access(&mut self.report, launch, event) {
            self.registers.read_unwritten(&mut self.report, launch, event, &unwritten);
        }
    }

    fn called(&mut self, event: &CallEvent<'_>) {
        self.registers.called(event);
    }

    fn stack_grew(&mut self, event: &StackEvent<'_>) {
        self.registers.stack_grew(event);
    }

    fn allocated(&mut self, address: u64, bytes: u64) {
        self.races.forget_global(address, bytes);
    }

    fn copies(&mut self, block: [u32; 3], warp: u32, lanes: u32, fence: CopyFence) {
        self.races.copies(block, warp, lanes, fence);
    }

    fn converged(&mut self, launch: &Launch<'_>, event: &ConvergeEvent) {
        let strangers = event.lanes & !event.members;
        if strangers != 0 {
            let thread = event.warp * 32 + strangers.trailing_zeros();
            let place = Place { pc: event.pc, block: event.block, warp: event.warp, thread, address: 0 };
            let detail = format!("the thread is not in its own member mask {:#x}", event.members);
            self.report.add(launch, FindingKind::InactiveLane, place, 0, detail);
        }
        self.races.converged(event.block, event.warp);
    }

    fn barrier(&mut self, launch: &Launch<'_>, event: &BarrierEvent) {
        if event.is_aligned && event.mask != event.live {
            let missing = (event.live & !event.mask).count_ones();
            let thread = event.warp * 32 + event.mask.trailing_zeros();
            let place = Place { pc: event.pc, block: event.block, warp: event.warp, thread, address: 0 };
            let detail = format!("{missing} live lanes of the warp are not at this barrier");
            self.report.add(launch, FindingKind::BarrierDivergence, place, 0, detail);
        }
        self.races.arrived(event);
    }

    fn barrier_released(&mut self, block: [u32; 3], id: u32, exited: u32) {
        self.races.barrier_released(block, id, exited);
    }

    fn cluster_arrived(&mut self, block: [u32; 3], warp: u32) {
        self.races.cluster_arrived(block, warp);
    }

    fn cluster_passed(&mut self, block: [u32; 3], warp: u32, exited: u32) {
        self.races.cluster_passed(block, warp, exited);
    }

    fn passed(&mut self, event: &PassEvent) {
        self.registers.passed(event);
    }

    fn block_ended(&mut self, block: [u32; 3]) {
        self.races.block_ended(block);
        self.registers.block_ended(block);
    }
}
