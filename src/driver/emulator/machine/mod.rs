//! The machine: runs the blocks of a launch.
//!
//! `grid` hands blocks to threads; `block` gives the warps of a block their turns and keeps its barriers; `warp` keeps the
//! groups of lanes that diverged; `run` is the loop over instructions; `access`, `shared_load`, `atomic`, `copy_async`,
//! `matrix_move` and `mbarrier` reach memory; `call` makes and ends frames, `stack` grows them, `resident` bounds what they take. Whatever stops a kernel travels as a [`Stopped`] and becomes a [`Fault`] with its place.

pub mod access;
pub mod atomic;
pub mod block;
pub mod call;
pub mod copy_async;
pub mod grid;
pub mod host_call;
pub mod matrix_move;
pub mod mbarrier;
pub mod observe;
pub mod resident;
pub mod run;
pub mod shared_load;
pub mod stack;
pub mod warp;

use super::ast::{RESERVED_SHARED_BYTES, Special};
use super::decode::program::{FunctionInfo, Program};
use super::error::FaultKind;
use super::lanes::Level;
use super::memory::DeviceMemory;

/// What every thread of a launch shares.
pub struct Launch<'l> {
    pub program: &'l Program,
    pub file: &'l str,
    /// The instruction set that the machine's own loops over lanes use.
    pub level: Level,
    pub kernel: u32,
    pub memory: &'l DeviceMemory,
    pub params: &'l [u8],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared_bytes: u32,
    pub multiprocessors: u32,
    pub grid_id: u64,
    /// Blocks take turns often, and all of them are resident.
    pub is_cooperative: bool,
    /// Device memory for the grid barrier of a cooperative launch, else 0.
    pub workspace: u64,
    pub budget: u64,
    /// What the warps that are resident take of host memory for registers and local memory.
    pub resident: resident::ResidentMemory,
    pub start: std::time::Instant,
}

impl Launch<'_> {
    pub fn kernel_info(&self) -> &FunctionInfo {
        &self.program.functions[self.kernel as usize]
    }

    pub fn threads_per_block(&self) -> u32 {
        self.block.iter().product()
    }

    /// Where dynamic shared memory starts: behind the static part, aligned.
    pub fn dynamic_shared_start(&self) -> u64 {
        let kernel = self.kernel_info();
        kernel.shared_bytes.next_multiple_of(kernel.dynamic_shared_align.clamp(16, 1024))
    }

    pub fn shared_bytes(&self) -> u64 {
        self.dynamic_shared_start() + u64::from(self.dynamic_shared_bytes)
    }

    /// Where the shared memory starts that is the system's.
    pub fn reserved_shared_start(&self) -> u64 {
        self.shared_bytes().next_multiple_of(128)
    }

    /// Shared memory with the system's part.
    pub fn all_shared_bytes(&self) -> u64 {
        if self.kernel_info().reads_reserved_shared {
            self.reserved_shared_start() + u64::from(RESERVED_SHARED_BYTES)
        } else {
            self.shared_bytes()
        }
    }

    /// Coordinates of a thread of the block.
    pub fn thread(&self, linear: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [linear % x, linear / x % y, linear / (x * y)]
    }

    /// The value of a special register that does not change while the block runs.
    pub fn special(&self, special: Special, block: [u32; 3], warp: u32, lane: u32) -> u64 {
        let thread = self.thread((warp * 32 + lane).min(self.threads_per_block().saturating_sub(1)));
        let at = |values: [u32; 3], axis: u8| u64::from(values[axis as usize % 3]);
        match special {
            Special::Tid(axis) => at(thread, axis),
            Special::Ntid(axis) => at(self.block, axis),
            Special::Ctaid(axis) => at(block, axis),
            Special::Nctaid(axis) => at(self.grid, axis),
            Special::LaneId => u64::from(lane),
            Special::WarpId => u64::from(warp),
            Special::WarpCount => 64,
            Special::SmId => {
                let [x, y, _] = self.grid;
                let linear =
                    u64::from(block[0]) + u64::from(x) * (u64::from(block[1]) + u64::from(y) * u64::from(block[2]));
                linear % u64::from(self.multiprocessors)
            }
            Special::SmCount => u64::from(self.multiprocessors),
            Special::GridId => self.grid_id,
            Special::LaneMaskEq => 1 << lane,
            Special::LaneMaskLe => (2u64 << lane) - 1,
            Special::LaneMaskLt => (1u64 << lane) - 1,
            Special::LaneMaskGe => u64::from(u32::MAX << lane),
            Special::LaneMaskGt => u64::from(((u64::from(u32::MAX) << 1) << lane) as u32),
            Special::DynamicSharedBytes => u64::from(self.dynamic_shared_bytes),
            Special::TotalSharedBytes => self.shared_bytes(),
            Special::AggregateSharedBytes => self.all_shared_bytes(),
            Special::ReservedSharedBytes => u64::from(RESERVED_SHARED_BYTES),
            Special::ReservedShared(offset) => self.reserved_shared_start() + u64::from(offset),
            Special::WorkspaceHi => self.workspace >> 32,
            Special::WorkspaceLo => self.workspace & 0xFFFF_FFFF,
            Special::One => 1,
            _ => 0,
        }
    }
}

/// A fault, before it is known where: the lane (if one lane is to blame) and the reason.
#[derive(Debug)]
pub struct Stopped {
    pub kind: FaultKind,
    pub lane: u32,
}

impl Stopped {
    pub fn new(kind: FaultKind, lane: u32) -> Self {
        Self { kind, lane }
    }
}

pub type Outcome<T> = std::result::Result<T, Stopped>;
