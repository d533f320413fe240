//! The state of a warp: registers in frames, and groups of lanes with a place each.
//!
//! Lanes that go the same way form a group, which has its own place in the program, as independent thread scheduling asks.
//! The group that is furthest behind runs (deepest call first, then smallest pc: see `control_flow`), until it reaches the
//! place of another group, with which it then merges. A group that has run long while others could is passed over once in a while,
//! so a spin lock between lanes of a warp ends.
//!
//! Registers live in frames, one per function activation. Groups that came to a function by the same call share the frame:
//! their lanes are different columns of the same planes.

use super::access::lanes_of;
use super::resident::{ResidentMemory, local_stride, register_room};
use super::stack::STACK_GAP;
use super::{Launch, Outcome, Stopped};
use crate::decode::program::{BarrierReduction, FunctionInfo, PresetValue};
use crate::error::FaultKind;
use crate::lanes::{LANES, Plane, Word, store_lanes};

/// What a group waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    /// Lanes of the mask must come to the same instruction.
    Converge {
        members: u32,
        is_barrier: bool,
    },
    /// The warp's other lanes must come to the same barrier, for it takes all of them together.
    Aligned,
    /// The barrier of this number; `reduction` says where its result goes.
    Barrier {
        id: u32,
        reduction: Option<(BarrierReduction, u32)>,
    },
}

/// Lanes that go the same way.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub mask: u32,
    pub pc: u32,
    pub frame: u32,
    pub state: State,
    /// When it last ran, in turns of the warp.
    pub last_run: u64,
}

/// One activation of a function.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    pub function: u32,
    pub parent: u32,
    /// Place of the call in the parent; the frame returns behind it.
    pub call_pc: u32,
    pub depth: u32,
    pub base: u32,
    pub planes: u32,
    pub local_base: u64,
    /// Lanes that are in this frame or in one that it called; 0 when it can go.
    pub lanes: u32,
}

pub const NO_FRAME: u32 = u32::MAX;

/// Contention at which the group that has waited longest runs: 256 polls, or a million other instructions.
const CONTENTION_LIMIT: u64 = 1 << 20;
pub const POLL_WEIGHT: u64 = 1 << 12;

/// Planes of all frames of a warp: 32 MiB, 1 MiB per thread, twice the stack that hardware can have. All 32 warps of a block
/// may recurse at once, so this bounds a block to 1 GiB.
pub const MAX_PLANES: usize = 1 << 18;
/// Local memory per thread, as hardware has at most.
pub const MAX_LOCAL_BYTES: u64 = 512 << 10;

/// Local memory that is cleared by writing zeros and kept for the next block: 256 KiB, 8 KiB per thread.
const KEPT_STRIDE: u64 = 8 << 10;
/// Registers that are kept for the next block: 512 KiB.
const KEPT_PLANES: usize = 1 << 12;

/// Local memory of a warp: one stack per lane, `stride` bytes apart.
#[derive(Debug, Default)]
pub struct LocalMemory {
    pub words: Vec<u128>,
    pub stride: u64,
}

impl LocalMemory {
    /// Makes room for `bytes` per lane.
    pub fn reserve(&mut self, resident: &ResidentMemory, bytes: u64) -> Outcome<()> {
        if bytes <= self.stride {
            return Ok(());
        }
        let stride = local_stride(bytes);
        resident.take_local(self.stride, stride)?;
        let mut words = vec![0u128; (stride as usize / 16) * LANES];
        for lane in 0..LANES {
            let (old, new) = (self.stride as usize / 16, stride as usize / 16);
            words[lane * new..lane * new + old].copy_from_slice(&self.words[lane * old..(lane + 1) * old]);
        }
        (self.words, self.stride) = (words, stride);
        Ok(())
    }

    fn give_back(&mut self, resident: &ResidentMemory) {
        resident.give_back_local(self.stride);
        *self = Self::default();
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.words)
    }
}

pub struct Warp {
    pub index: u32,
    /// Lanes that exist and have not exited.
    pub live: u32,
    pub planes: Vec<Plane>,
    pub frames: Vec<Frame>,
    pub groups: Vec<Group>,
    pub local: LocalMemory,
    /// Planes that are allocated.
    room: usize,
    pub turn: u64,
    /// What groups did while others could have run: instructions, and [`POLL_WEIGHT`] for each access that may be a poll.
    pub contention: u64,
}

impl Warp {
    pub fn new(index: u32) -> Self {
        Self {
            index,
            live: 0,
            planes: Vec::new(),
            frames: Vec::new(),
            groups: Vec::new(),
            local: LocalMemory::default(),
            room: 0,
            turn: 0,
            contention: 0,
        }
    }

    /// Starts the kernel on this warp.
    pub fn start(&mut self, launch: &Launch<'_>, block: [u32; 3]) -> Outcome<()> {
        let threads = launch.threads_per_block() - self.index * 32;
        self.live = if threads >= 32 { u32::MAX } else { (1 << threads) - 1 };
        self.planes.clear();
        self.frames.clear();
        self.groups.clear();
        self.contention = 0;
        self.local.words.fill(0);
        let frame = self.push_frame(launch, block, launch.kernel, NO_FRAME, 0, self.live)?;
        let pc = launch.program.functions[launch.kernel as usize].entry_pc;
        self.groups.push(Group { mask: self.live, pc, frame, state: State::Ready, last_run: 0 });
        Ok(())
    }

    /// After a block: gives back what is much, and keeps the rest for the next one. Fresh pages are zeros and cost nothing
    /// until touched, but those that are kept must be cleared.
    pub fn trim(&mut self, resident: &ResidentMemory) {
        if self.local.stride > KEPT_STRIDE {
            self.local.give_back(resident);
        }
        if self.room > KEPT_PLANES {
            self.give_back_planes(resident);
        }
    }

    /// Gives back all memory; the warp does not run again.
    pub fn give_back(&mut self, resident: &ResidentMemory) {
        self.local.give_back(resident);
        self.give_back_planes(resident);
    }

    fn give_back_planes(&mut self, resident: &ResidentMemory) {
        resident.give_back_registers(self.room);
        (self.planes, self.room) = (Vec::new(), 0);
    }

    /// The frame of a call: the one that other lanes already made by the same call, or a new one.
    pub fn push_frame(
        &mut self,
        launch: &Launch<'_>,
        block: [u32; 3],
        function: u32,
        parent: u32,
        call_pc: u32,
        lanes: u32,
    ) -> Outcome<u32> {
        let local_base = self.stack_end(launch, parent);
        let info = &launch.program.functions[function as usize];
        let known = self.frames.iter().rposition(|frame| {
            frame.lanes != 0 && frame.parent == parent && frame.call_pc == call_pc && frame.function == function
                // With what the caller took from the stack since, it may reach into that frame.
                && local_base <= frame.local_base
        });
        if let (Some(index), true) = (known, parent != NO_FRAME) {
            let frame = &mut self.frames[index];
            frame.lanes |= lanes;
            // Who was in it before takes nothing along from then.
            if let Some(pointer) = info.stack_pointer {
                let start = (frame.local_base + info.local_bytes) as u32;
                store_lanes(&mut self.planes[frame.base as usize..], pointer, &[start; LANES], lanes);
            }
            return Ok(index as u32);
        }
        let depth = self.frames.get(parent as usize).map_or(0, |frame| frame.depth + 1);
        let base = self.planes.len();
        let local_end = local_base + info.local_bytes;
        if base + info.planes as usize > MAX_PLANES || local_end > MAX_LOCAL_BYTES || depth > 100_000 {
            let message = format!("stack overflow: calls nested {depth} deep (endless recursion?)");
            return Err(Stopped::new(FaultKind::Illegal(message), lanes.trailing_zeros()));
        }
        self.local.reserve(&launch.resident, local_end)?;
        let end = base + info.planes as usize;
        if end > self.room {
            let room = register_room(end);
            launch.resident.take_registers(self.room, room)?;
            self.planes.reserve_exact(room - base);
            self.room = room;
        }
        self.planes.resize(end, Plane::ZERO);
        fill_presets(&mut self.planes[base..], launch, info, block, self.index, local_base);
        let frame =
            Frame { function, parent, call_pc, depth, base: base as u32, planes: info.planes, local_base, lanes };
        // A frame's number may be used again once nobody is in it, but only from the end: planes are a stack.
        self.frames.push(frame);
        Ok(self.frames.len() as u32 - 1)
    }

    /// Where the local memory of what the frame calls starts: behind its own, and what any of its lanes took by alloca.
    fn stack_end(&self, launch: &Launch<'_>, frame: u32) -> u64 {
        let Some(frame) = self.frames.get(frame as usize) else { return 0 };
        let function = &launch.program.functions[frame.function as usize];
        match function.stack_pointer {
            None => frame.local_base + function.local_bytes,
            Some(pointer) => {
                let pointers = u32::view(&self.planes[frame.base as usize..], pointer);
                let highest = lanes_of(frame.lanes).map(|lane| u64::from(pointers[lane])).max().unwrap_or(0);
                (highest + STACK_GAP).next_multiple_of(16)
            }
        }
    }

    /// Takes lanes out of a frame, and drops the frames at the end that are empty.
    pub fn leave_frame(&mut self, frame: u32, lanes: u32) {
        self.frames[frame as usize].lanes &= !lanes;
        while let Some(last) = self.frames.last()
            && last.lanes == 0
        {
            self.planes.truncate(last.base as usize);
            self.frames.pop();
        }
    }

    /// Ends lanes for good, out of every frame above `frame` too.
    pub fn exit_lanes(&mut self, frame: u32, lanes: u32) {
        self.live &= !lanes;
        let mut at = frame;
        while at != NO_FRAME {
            self.frames[at as usize].lanes &= !lanes;
            at = self.frames[at as usize].parent;
        }
        while let Some(last) = self.frames.last()
            && last.lanes == 0
        {
            self.planes.truncate(last.base as usize);
            self.frames.pop();
        }
        // Who waits for lanes that are gone must look again.
        for group in &mut self.groups {
            if matches!(group.state, State::Converge { .. } | State::Aligned) {
                group.state = State::Ready;
            }
        }
    }

    /// Priority: deepest call, then the smallest place.
    fn key(&self, group: &Group) -> (u32, u32) {
        (u32::MAX - self.frames[group.frame as usize].depth, group.pc)
    }

    /// The group to run next, or none if all wait.
    pub fn choose(&mut self) -> Option<usize> {
        self.turn += 1;
        if self.groups.len() == 1 {
            return (self.groups[0].state == State::Ready).then_some(0);
        }
        let ready = (0..self.groups.len()).filter(|&index| self.groups[index].state == State::Ready);
        // Only a group that looks like it waits for another one is passed over: otherwise lanes would run past the place
        // where they meet again.
        let chosen = if self.contention > CONTENTION_LIMIT {
            self.contention = 0;
            ready.min_by_key(|&index| self.groups[index].last_run)
        } else {
            ready.min_by_key(|&index| self.key(&self.groups[index]))
        }?;
        self.groups[chosen].last_run = self.turn;
        Some(chosen)
    }

    /// True if other lanes than those of the group can run.
    pub fn others_run(&self, index: usize) -> bool {
        self.groups.iter().enumerate().any(|(other, group)| other != index && group.state == State::Ready)
    }

    /// The place at which the group meets the next one, if any is ahead in the same frame.
    pub fn meeting_place(&self, index: usize) -> u32 {
        let own = &self.groups[index];
        let others = self.groups.iter().enumerate().filter(|(other, group)| {
            *other != index
                && group.frame == own.frame
                && group.pc > own.pc
                && !matches!(group.state, State::Barrier { .. })
        });
        others.map(|(_, group)| group.pc).min().unwrap_or(u32::MAX)
    }

    /// Merges groups at the same place.
    pub fn merge(&mut self, index: usize) {
        let own = self.groups[index];
        // A group that has just begun to wait has not met anybody.
        if own.state != State::Ready {
            return;
        }
        let mut merged = own.mask;
        let mut kept = index;
        let mut other = 0;
        while other < self.groups.len() {
            let group = self.groups[other];
            let same = other != kept
                && group.pc == own.pc
                && group.frame == own.frame
                && !matches!(group.state, State::Barrier { .. });
            if same {
                merged |= group.mask;
                let last = self.groups.len() - 1;
                self.groups.swap_remove(other);
                if kept == last {
                    kept = other;
                }
                continue;
            }
            other += 1;
        }
        if merged != own.mask {
            let group = &mut self.groups[kept];
            group.mask = merged;
            group.state = State::Ready;
        }
    }

    /// Merges all groups that are at the same place as another one.
    pub fn merge_all(&mut self) {
        let mut index = 0;
        while index < self.groups.len() && self.groups.len() > 1 {
            self.merge(index);
            index += 1;
        }
    }

    /// When every group waits for others: lets those go that have waited for each other at different places.
    /// Returns false if there is nobody to let go.
    pub fn release_stuck(&mut self) -> bool {
        let waiting: Vec<usize> = (0..self.groups.len())
            .filter(|&index| matches!(self.groups[index].state, State::Converge { .. }))
            .collect();
        let present = waiting.iter().fold(0, |mask, &index| mask | self.groups[index].mask);
        for &index in &waiting {
            if let State::Converge { members, is_barrier: true } = self.groups[index].state
                && members & self.live & !present == 0
            {
                // bar.warp.sync at different places: all are here, so all go on.
                for &other in &waiting {
                    let group = &mut self.groups[other];
                    if matches!(group.state, State::Converge { members: same, is_barrier: true } if same == members) {
                        group.state = State::Ready;
                        group.pc += 1;
                    }
                }
                return true;
            }
        }
        false
    }

    /// Lets lanes go to their barrier without those that they wait for. Returns false if there are none.
    pub fn release_aligned(&mut self) -> bool {
        let waiting = self.groups.iter_mut().find(|group| group.state == State::Aligned);
        waiting.map(|group| group.state = State::Ready).is_some()
    }
}

/// Writes the registers of a new frame that have values from the start.
fn fill_presets(
    planes: &mut [Plane],
    launch: &Launch<'_>,
    info: &FunctionInfo,
    block: [u32; 3],
    warp: u32,
    local_base: u64,
) {
    let dynamic = launch.dynamic_shared_start();
    for preset in &info.presets {
        let slot = preset.slot;
        match preset.value {
            PresetValue::Word32(value) => *u32::view_mut(planes, slot) = [value; LANES],
            PresetValue::Word64(value) => *u64::view_mut(planes, slot) = [value; LANES],
            PresetValue::Predicate(value) => u32::view_mut(planes, slot)[0] = if value { u32::MAX } else { 0 },
            PresetValue::Special32(special) => {
                *u32::view_mut(planes, slot) =
                    std::array::from_fn(|lane| launch.special(special, block, warp, lane as u32) as u32);
            }
            PresetValue::Special64(special) => {
                *u64::view_mut(planes, slot) =
                    std::array::from_fn(|lane| launch.special(special, block, warp, lane as u32));
            }
            PresetValue::Local32(offset) => *u32::view_mut(planes, slot) = [(local_base + offset) as u32; LANES],
            PresetValue::Local64(offset) => *u64::view_mut(planes, slot) = [local_base + offset; LANES],
            PresetValue::DynamicShared32(offset) => {
                *u32::view_mut(planes, slot) = [dynamic.wrapping_add_signed(offset) as u32; LANES]
            }
            PresetValue::DynamicShared64(offset) => {
                *u64::view_mut(planes, slot) = [dynamic.wrapping_add_signed(offset); LANES]
            }
        }
    }
}
