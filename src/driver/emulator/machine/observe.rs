//! What the sanitizer and the counters see of a launch.
//!
//! The machine is generic over an [`Observe`]; with [`Nothing`] the calls vanish at compile time.

use std::ops::Range;

use super::Launch;
use super::resident::Shadow;
use crate::decode::program::{CallValue, CopyFence, FunctionInfo};
use crate::error::Access;
use crate::lanes::{LANES, Plane};

/// Where an observed access went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Global,
    Shared,
    Local,
    Param,
}

/// How an access stands to those of other threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Plain,
    /// Ordered or atomic: not a data race by itself.
    Synchronizing,
    /// Done by the copy engine, some time before the thread waits for it.
    Asynchronous,
}

/// An instruction that is carried out. Those that wait for other lanes are seen once, when all are there.
pub struct IssueEvent<'a> {
    pub pc: u32,
    pub block: [u32; 3],
    pub warp: u32,
    /// Lanes that carry it out.
    pub active: u32,
    /// Lanes that came to it.
    pub group: u32,
    /// Number of the frame's first plane in the warp.
    pub base: u32,
    /// The frame's part of each thread's local memory, without what alloca added.
    pub local: Range<u64>,
    /// Plane of the thread's stack pointer in `planes`, where it moves: the end of that part with what alloca added.
    pub stack_pointer: Option<u32>,
    pub planes: &'a [Plane],
}

/// Lanes that came together for a warp-level instruction.
pub struct ConvergeEvent {
    pub pc: u32,
    pub block: [u32; 3],
    pub warp: u32,
    /// The member mask that they gave.
    pub members: u32,
    pub lanes: u32,
}

/// Lanes that begin a function.
pub struct CallEvent<'a> {
    pub block: [u32; 3],
    pub warp: u32,
    pub lanes: u32,
    pub base: u32,
    pub local_base: u64,
    pub function: &'a FunctionInfo,
}

/// A parameter or result that goes from one frame to another.
pub struct PassEvent {
    pub block: [u32; 3],
    pub warp: u32,
    pub lanes: u32,
    pub from: PassPlace,
    pub to: PassPlace,
    pub bytes: u32,
}

/// First plane and start of the local memory of a frame, and the value in it.
#[derive(Debug, Clone, Copy)]
pub struct PassPlace {
    pub base: u32,
    pub local_base: u64,
    pub value: CallValue,
}

/// Threads that grew their part of local memory, by lane.
pub struct StackEvent<'a> {
    pub block: [u32; 3],
    pub warp: u32,
    pub lanes: u32,
    /// Where their part ended before, and where the new bytes start and end.
    pub before: &'a [u64; LANES],
    pub start: &'a [u64; LANES],
    pub end: &'a [u64; LANES],
}

/// One warp-wide access.
pub struct AccessEvent<'a> {
    pub pc: u32,
    pub target: Target,
    pub access: Access,
    /// Addresses within the target's space (a thread's own, if local), by lane.
    pub addresses: &'a [u64; LANES],
    /// Lanes that take part.
    pub lanes: u32,
    /// Bytes per lane.
    pub bytes: u32,
    pub order: Order,
    /// Lanes that stored what was there already.
    pub unchanged: u32,
    pub block: [u32; 3],
    pub warp: u32,
}

/// Lanes that came to a barrier.
#[derive(Debug, Clone, Copy)]
pub struct BarrierEvent {
    pub pc: u32,
    pub block: [u32; 3],
    pub warp: u32,
    pub mask: u32,
    /// Lanes of the warp that have not exited.
    pub live: u32,
    /// The instruction demands that all lanes come to it together.
    pub is_aligned: bool,
    /// False for those that only arrive and go on.
    pub waits: bool,
    pub id: u32,
}

/// Receives what happens. All methods default to nothing.
pub trait Observe: Send {
    /// False compiles the observation out.
    const IS_ON: bool;
    /// What it keeps of the registers and local memory of blocks that run.
    const SHADOW: Shadow = Shadow { per_local_byte: 0, per_register_byte: 0 };
    /// True if stores tell where they change nothing.
    const SEES_VALUES: bool = false;
    #[inline(always)]
    fn issued(&mut self, _launch: &Launch<'_>, _event: &IssueEvent<'_>) {}
    #[inline(always)]
    fn branch(&mut self, _pc: u32, _diverged: bool) {}
    #[inline(always)]
    fn access(&mut self, _launch: &Launch<'_>, _event: &AccessEvent<'_>) {}
    #[inline(always)]
    fn called(&mut self, _event: &CallEvent<'_>) {}
    #[inline(always)]
    fn passed(&mut self, _event: &PassEvent) {}
    #[inline(always)]
    fn stack_grew(&mut self, _event: &StackEvent<'_>) {}
    /// A thread was given these bytes of the heap.
    #[inline(always)]
    fn allocated(&mut self, _address: u64, _bytes: u64) {}
    /// These lanes committed or waited for their asynchronous copies.
    #[inline(always)]
    fn copies(&mut self, _block: [u32; 3], _warp: u32, _lanes: u32, _fence: CopyFence) {}
    /// Lanes of a warp came to barrier `id`.
    #[inline(always)]
    fn barrier(&mut self, _launch: &Launch<'_>, _event: &BarrierEvent) {}
    /// Barrier `id` of the block let its threads go. `exited`: a bit for each warp that has left the kernel, and that a
    /// barrier for all threads of a block therefore counts as arrived.
    #[inline(always)]
    fn barrier_released(&mut self, _block: [u32; 3], _id: u32, _exited: u32) {}
    /// Lanes of a warp run an instruction that brings them together.
    #[inline(always)]
    fn converged(&mut self, _launch: &Launch<'_>, _event: &ConvergeEvent) {}
    /// Threads of a warp arrived at the cluster's barrier.
    #[inline(always)]
    fn cluster_arrived(&mut self, _block: [u32; 3], _warp: u32) {}
    /// Threads of a warp passed the cluster's barrier; `exited` as of [`barrier_released`](Self::barrier_released).
    #[inline(always)]
    fn cluster_passed(&mut self, _block: [u32; 3], _warp: u32, _exited: u32) {}
    #[inline(always)]
    fn block_ended(&mut self, _block: [u32; 3]) {}
}

/// Observes nothing and costs nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Nothing;

impl Observe for Nothing {
    const IS_ON: bool = false;
}
