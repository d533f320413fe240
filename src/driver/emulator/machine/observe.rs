//! What the sanitizer and the counters see of a launch.
//!
//! The machine is generic over an [`Observe`]; with [`Nothing`] the calls vanish at compile time.

use super::Launch;
use crate::driver::emulator::error::Access;
use crate::driver::emulator::lanes::LANES;

/// Where an observed access went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Global,
    Shared,
    Local,
    Param,
}

/// One warp-wide access.
pub struct AccessEvent<'a> {
    pub pc: u32,
    pub target: Target,
    pub access: Access,
    /// Addresses within the target's space, by lane.
    pub addresses: &'a [u64; LANES],
    /// Lanes that take part.
    pub lanes: u32,
    /// Bytes per lane.
    pub bytes: u32,
    /// Ordered or atomic: not a data race by itself.
    pub is_synchronizing: bool,
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
    pub id: u32,
}

/// Receives what happens. All methods default to nothing.
pub trait Observe: Send {
    /// False compiles the observation out.
    const IS_ON: bool;
    /// An instruction was issued for these lanes; `group` are the lanes that came to it.
    #[inline(always)]
    fn instruction(&mut self, _pc: u32, _active: u32, _group: u32) {}
    #[inline(always)]
    fn branch(&mut self, _pc: u32, _diverged: bool) {}
    #[inline(always)]
    fn access(&mut self, _launch: &Launch<'_>, _event: &AccessEvent<'_>) {}
    /// Lanes of a warp came to barrier `id`.
    #[inline(always)]
    fn barrier(&mut self, _launch: &Launch<'_>, _event: &BarrierEvent) {}
    /// Barrier `id` of the block let its threads go.
    #[inline(always)]
    fn barrier_released(&mut self, _block: [u32; 3], _id: u32) {}
    /// Lanes of a warp ran an instruction that brings them together.
    #[inline(always)]
    fn converged(&mut self, _block: [u32; 3], _warp: u32) {}
    #[inline(always)]
    fn block_started(&mut self, _launch: &Launch<'_>, _block: [u32; 3]) {}
    #[inline(always)]
    fn block_ended(&mut self, _launch: &Launch<'_>, _block: [u32; 3]) {}
}

/// Observes nothing and costs nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Nothing;

impl Observe for Nothing {
    const IS_ON: bool = false;
}
