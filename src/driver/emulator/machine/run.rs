//! The loop over instructions of one group of lanes.

use super::access::{Nearby, lanes_of};
use super::block::SharedMemory;
use super::call::CallResult;
use super::observe::{ConvergeEvent, IssueEvent, Observe};
use super::warp::{Group, State, Warp};
use super::{Launch, Outcome, Stopped};
use crate::ast::Special;
use crate::decode::program::{AddressSpace, BarrierOp, NONE, Op};
use crate::decode::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::error::FaultKind;
use crate::lanes::{LANES, Level, Plane, Word, predicate, store_lanes, store_predicate};

/// Why a group stopped running.
pub enum Stop {
    /// Another group may be behind it now, or the slice is over.
    Reschedule,
    /// It has come to a barrier; its place is behind it.
    Barrier { op: BarrierOp, pc: u32 },
    /// It has come to the cluster's barrier; its place is behind it.
    ClusterBarrier { waits: bool },
    /// It polls: others should run.
    Yield,
    /// Its lanes have exited; the group is gone.
    Exited,
}

/// What an ordered or atomic access costs of a slice: loops that poll memory give way soon.
pub const POLL_COST: i64 = 32;

/// One host thread's part of a launch.
pub struct Worker<'l, O: Observe> {
    pub launch: &'l Launch<'l>,
    pub observer: O,
    /// Instructions that this worker has executed: its clock.
    pub clock: u64,
    /// The allocation that each memory instruction (by pc, modulo) used last.
    pub recent: [u32; 16],
    /// Where the running instruction is, for faults and observers.
    pub pc: u32,
    pub block: [u32; 3],
    pub warp: u32,
    /// What device-side printf wrote in the running block.
    pub output: Vec<u8>,
    /// Ordered loads and atomics since the block got its turn.
    pub polls: i64,
    /// All other blocks of the launch have ended.
    pub is_alone: bool,
    /// Lanes go to barriers without the rest of their warp, for nothing else goes on in the block.
    pub passes_barriers: bool,
}

impl<'l, O: Observe> Worker<'l, O> {
    pub fn new(launch: &'l Launch<'l>, observer: O) -> Self {
        Self {
            launch,
            observer,
            clock: 0,
            recent: [0; 16],
            pc: 0,
            block: [0; 3],
            warp: 0,
            output: Vec::new(),
            polls: 0,
            is_alone: false,
            passes_barriers: false,
        }
    }

    /// Runs group `index` of the warp until it must stop. Uses up `slice`, in instructions.
    pub fn run(
        &mut self,
        warp: &mut Warp,
        shared: &mut SharedMemory,
        block: [u32; 3],
        index: usize,
        slice: &mut i64,
    ) -> Outcome<Stop> {
        match self.launch.level {
            Level::Portable => self.run_instructions(warp, shared, block, index, slice),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Level::detect` has seen that the machine has these features.
            Level::Avx2 => unsafe { self.run_with_avx2(warp, shared, block, index, slice) },
        }
    }

    // Addresses are checked by loops over lanes, so the instruction set matters here as it does to arithmetic.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi2,lzcnt,popcnt,f16c")]
    fn run_with_avx2(
        &mut self,
        warp: &mut Warp,
        shared: &mut SharedMemory,
        block: [u32; 3],
        index: usize,
        slice: &mut i64,
    ) -> Outcome<Stop> {
        self.run_instructions(warp, shared, block, index, slice)
    }

    #[inline(always)]
    fn run_instructions(
        &mut self,
        warp: &mut Warp,
        shared: &mut SharedMemory,
        block: [u32; 3],
        index: usize,
        slice: &mut i64,
    ) -> Outcome<Stop> {
        let launch = self.launch;
        let code = launch.program.code.as_slice();
        // With other groups about, going back means that one of them may now be ahead.
        let limit_matters = warp.groups.len() > 1;
        let limit = if limit_matters { warp.meeting_place(index) } else { u32::MAX };
        let group = warp.groups[index];
        let mask = group.mask;
        let mut pc = group.pc;
        let frame = warp.frames[group.frame as usize];
        let (first, last) = (frame.base as usize, (frame.base + frame.planes) as usize);
        let started = *slice;
        (self.block, self.warp) = (block, warp.index);
        let function = &launch.program.functions[frame.function as usize];
        let local_end = frame.local_base + function.local_bytes;
        let number = warp.index;
        let issue = |observer: &mut O, pc: u32, active: u32, planes: &[Plane]| {
            if O::IS_ON {
                let local = frame.local_base..local_end;
                let (warp, group, base) = (number, mask, frame.base);
                let stack_pointer = function.stack_pointer;
                let event = IssueEvent { pc, block, warp, active, group, base, local, stack_pointer, planes };
                observer.issued(launch, &event);
            }
        };
        let result = loop {
            if pc >= limit || *slice <= 0 {
                break Ok(Stop::Reschedule);
            }
            let instr = &code[pc as usize];
            let planes = &mut warp.planes[first..last];
            let active =
                if instr.guard == NONE { mask } else { mask & predicate(planes, instr.guard, instr.is_negated) };
            *slice -= 1;
            // What waits for lanes is seen below, when they are there.
            if O::IS_ON && (active == 0 || !instr.op.gathers()) {
                issue(&mut self.observer, pc, active, planes);
            }
            match &instr.op {
                Op::Alu(alu) => {
                    if active != 0 {
                        alu(planes, active);
                    }
                    pc += 1;
                }
                Op::Load(load) => {
                    if active != 0 {
                        self.pc = pc;
                        let nearby = &mut Nearby { shared, local: &mut warp.local };
                        if let Err(stopped) = self.load(planes, nearby, load, active) {
                            break Err(stopped);
                        }
                        if load.is_volatile {
                            self.polls += 1;
                            *slice -= POLL_COST;
                        }
                    }
                    pc += 1;
                }
                Op::Store(store) => {
                    if active != 0 {
                        self.pc = pc;
                        let nearby = &mut Nearby { shared, local: &mut warp.local };
                        if let Err(stopped) = self.store(planes, nearby, store, active) {
                            break Err(stopped);
                        }
                    }
                    pc += 1;
                }
                Op::Jump { target } => {
                    *slice += 1;
                    let is_back = *target <= pc;
                    pc = *target;
                    if is_back && limit_matters {
                        break Ok(Stop::Reschedule);
                    }
                }
                Op::Branch { target } => {
                    if O::IS_ON {
                        self.observer.branch(pc, active != 0 && active != mask);
                    }
                    if active == mask {
                        let is_back = *target <= pc;
                        pc = *target;
                        if is_back && limit_matters {
                            break Ok(Stop::Reschedule);
                        }
                    } else if active == 0 {
                        pc += 1;
                    } else {
                        split(warp, index, Group { mask: active, pc: *target, ..group }, pc + 1);
                        pc = *target;
                        break Ok(Stop::Reschedule);
                    }
                }
                Op::Atomic(atomic) => {
                    if active != 0 {
                        self.pc = pc;
                        let nearby = &mut Nearby { shared, local: &mut warp.local };
                        if let Err(stopped) = self.atomic(planes, nearby, atomic, active) {
                            break Err(stopped);
                        }
                        self.polls += 1;
                        *slice -= POLL_COST;
                    }
                    pc += 1;
                }
                Op::CopyAsync(copy) => {
                    if active != 0 {
                        self.pc = pc;
                        let nearby = &mut Nearby { shared, local: &mut warp.local };
                        if let Err(stopped) = self.copy_async(planes, nearby, copy, active) {
                            break Err(stopped);
                        }
                    }
                    pc += 1;
                }
                Op::CopyFence(fence) => {
                    if O::IS_ON {
                        self.observer.copies(block, number, active, *fence);
                    }
                    pc += 1;
                }
                Op::Mbarrier(op) => {
                    let mut polls = false;
                    if active != 0 {
                        self.pc = pc;
                        let nearby = &mut Nearby { shared, local: &mut warp.local };
                        match self.mbarrier(planes, nearby, op, active) {
                            Ok(must_wait) => polls = must_wait,
                            Err(stopped) => break Err(stopped),
                        }
                    }
                    pc += 1;
                    if polls {
                        break Ok(Stop::Yield);
                    }
                }
                Op::Stack(op) => {
                    if active != 0
                        && let Err(stopped) = self.move_stack(planes, &mut warp.local, op, local_end, active)
                    {
                        break Err(stopped);
                    }
                    pc += 1;
                }
                Op::ReadClock { d, special, is_wide } => {
                    let value = self.read_clock(*special, (started - *slice) as u64);
                    if *is_wide {
                        store_lanes(planes, *d, &[value; LANES], active);
                    } else {
                        store_lanes(planes, *d, &[value as u32; LANES], active);
                    }
                    pc += 1;
                }
                Op::AddressTest { d, address, is_wide, space, constants } => {
                    let addresses: [u64; LANES] = if *is_wide {
                        *u64::view(planes, *address)
                    } else {
                        u32::view(planes, *address).map(u64::from)
                    };
                    let is_constant =
                        |address: u64| constants.iter().any(|&(start, bytes)| address.wrapping_sub(start) < bytes);
                    let is_inside = |address: u64| match *space {
                        None => is_constant(address),
                        Some(AddressSpace::Global) => {
                            is_in_space(address, AddressSpace::Global) && !is_constant(address)
                        }
                        Some(space) => is_in_space(address, space),
                    };
                    let truth = (0..LANES).fold(0, |truth, lane| truth | u32::from(is_inside(addresses[lane])) << lane);
                    store_predicate(planes, *d, truth, active);
                    pc += 1;
                }
                Op::OwnBlock { rank } => {
                    let ranks = u32::view(planes, *rank);
                    if let Some(lane) = lanes_of(active).find(|&lane| ranks[lane] != 0) {
                        let message = format!("mapa to block {} of a cluster of one block", ranks[lane]);
                        break Err(Stopped::new(FaultKind::Illegal(message), lane as u32));
                    }
                    pc += 1;
                }
                Op::Fence => {
                    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                    pc += 1;
                }
                Op::Nothing => pc += 1,
                Op::Yield => {
                    pc += 1;
                    break Ok(Stop::Yield);
                }
                // From here on: instructions that only some lanes may reach. Those that do are a group of their own.
                _ if active == 0 => pc += 1,
                _ if active != mask => {
                    split(warp, index, Group { mask: active, pc, ..group }, pc + 1);
                    break Ok(Stop::Reschedule);
                }
                Op::Collective { members, alu, is_barrier } => {
                    let lanes = *u32::view(planes, *members);
                    let wanted = lanes[mask.trailing_zeros() as usize];
                    let same = (0..LANES).fold(0, |same, lane| same | u32::from(lanes[lane] == wanted) << lane) & mask;
                    let needed = wanted & warp.live;
                    let is_here = needed & !same == 0;
                    if is_here {
                        if O::IS_ON {
                            let event = ConvergeEvent { pc, block, warp: number, members: wanted, lanes: same };
                            self.observer.converged(launch, &event);
                            issue(&mut self.observer, pc, same, planes);
                        }
                        alu(planes, same);
                    }
                    if same != mask {
                        // Lanes with another member mask are a group of their own, and come next.
                        split(warp, index, Group { mask: same, pc, ..group }, pc);
                    }
                    if !is_here {
                        warp.groups[index].state = State::Converge { members: wanted, is_barrier: *is_barrier };
                        break Ok(Stop::Reschedule);
                    }
                    pc += 1;
                    if same != mask {
                        break Ok(Stop::Reschedule);
                    }
                }
                Op::MatrixMove(op) => {
                    if warp.live & !mask != 0 {
                        warp.groups[index].state = State::Converge { members: u32::MAX, is_barrier: false };
                        break Ok(Stop::Reschedule);
                    }
                    self.pc = pc;
                    issue(&mut self.observer, pc, mask, planes);
                    if let Err(stopped) =
                        self.matrix_move(planes, &mut Nearby { shared, local: &mut warp.local }, op, mask)
                    {
                        break Err(stopped);
                    }
                    pc += 1;
                }
                Op::BranchIndexed { index: choice, targets } => {
                    let choices = *u32::view(planes, *choice);
                    let chosen = choices[mask.trailing_zeros() as usize];
                    let same =
                        (0..LANES).fold(0, |same, lane| same | u32::from(choices[lane] == chosen) << lane) & mask;
                    let Some(&target) = targets.get(chosen as usize) else {
                        let message = format!("brx.idx with index {chosen} into {} targets", targets.len());
                        break Err(Stopped::new(FaultKind::Illegal(message), mask.trailing_zeros()));
                    };
                    issue(&mut self.observer, pc, same, planes);
                    if O::IS_ON {
                        self.observer.branch(pc, same != mask);
                    }
                    if same == mask {
                        pc = target;
                    } else {
                        // The rest stays at this instruction and chooses again.
                        split(warp, index, Group { mask: same, pc: target, ..group }, pc);
                        pc = target;
                        break Ok(Stop::Reschedule);
                    }
                }
                Op::Call(call) => {
                    self.pc = pc;
                    issue(&mut self.observer, pc, mask, planes);
                    match self.call(warp, shared, block, index, call, pc) {
                        Ok(CallResult::Continue) => pc += 1,
                        // The group has moved into the function, or was split.
                        Ok(CallResult::Moved) => {
                            pc = warp.groups[index].pc;
                            break Ok(Stop::Reschedule);
                        }
                        Err(stopped) => break Err(stopped),
                    }
                }
                Op::Return => {
                    issue(&mut self.observer, pc, mask, planes);
                    if self.return_from(warp, block, index) {
                        pc = warp.groups[index].pc;
                        break Ok(Stop::Reschedule);
                    }
                    self.clock += (started - *slice) as u64;
                    return Ok(Stop::Exited);
                }
                Op::Exit => {
                    issue(&mut self.observer, pc, mask, planes);
                    warp.groups.swap_remove(index);
                    warp.exit_lanes(group.frame, mask);
                    self.clock += (started - *slice) as u64;
                    return Ok(Stop::Exited);
                }
                Op::Barrier(op) => {
                    // Some of the others may be on their way out of the kernel, or wait in a loop for other warps.
                    if op.is_aligned && warp.live & !mask != 0 && !self.passes_barriers && warp.others_run(index) {
                        warp.groups[index].state = State::Aligned;
                        break Ok(Stop::Reschedule);
                    }
                    issue(&mut self.observer, pc, mask, &warp.planes[first..last]);
                    pc += 1;
                    break Ok(Stop::Barrier { op: **op, pc: pc - 1 });
                }
                Op::ClusterBarrier { waits } => {
                    issue(&mut self.observer, pc, mask, planes);
                    pc += 1;
                    break Ok(Stop::ClusterBarrier { waits: *waits });
                }
                Op::Trap if !launch.is_cooperative && launch.kernel_info().reads_workspace => {
                    break Err(Stopped::new(FaultKind::NotCooperative, mask.trailing_zeros()));
                }
                Op::Trap => break Err(Stopped::new(FaultKind::Trap, mask.trailing_zeros())),
                Op::Breakpoint => break Err(Stopped::new(FaultKind::Breakpoint, mask.trailing_zeros())),
            }
        };
        self.clock += (started - *slice) as u64;
        if result.is_err() {
            self.pc = pc;
        }
        if let Some(group) = warp.groups.get_mut(index) {
            group.pc = pc;
        }
        result
    }

    fn read_clock(&self, special: Special, since: u64) -> u64 {
        let cycles = self.clock + since;
        match special {
            Special::Clock | Special::Clock64 => cycles,
            Special::ClockHi => cycles >> 32,
            other => {
                let nanoseconds = self.launch.start.elapsed().as_nanos() as u64;
                if other == Special::GlobalTimerHi { nanoseconds >> 32 } else { nanoseconds }
            }
        }
    }
}

/// Leaves `group` in place of the group at `index`, and its other lanes at `rest_pc`.
fn split(warp: &mut Warp, index: usize, group: Group, rest_pc: u32) {
    let rest = Group { mask: warp.groups[index].mask & !group.mask, pc: rest_pc, ..group };
    warp.groups[index] = group;
    warp.groups.push(rest);
}

fn is_in_space(address: u64, space: AddressSpace) -> bool {
    let within = |window: u64| address.wrapping_sub(window) < WINDOW_BYTES;
    match space {
        AddressSpace::Shared => within(SHARED_WINDOW),
        AddressSpace::Local => within(LOCAL_WINDOW),
        AddressSpace::Param => within(PARAM_WINDOW),
        AddressSpace::Generic => true,
        AddressSpace::Global => !(within(SHARED_WINDOW) || within(LOCAL_WINDOW) || within(PARAM_WINDOW)),
    }
}
