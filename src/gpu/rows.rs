//! Launch geometry of the kernels that work row by row: which team takes a row (`kernels/row.cuh`), and how wide its
//! accesses are; and of those that walk flat arrays in packs (`kernels/pack.cuh`).

use super::{Arguments, Gpu, strided};
use crate::driver::LaunchConfig;

/// A launch that is prepared, for `Gpu::launch` or to be counted: kernel, geometry, arguments.
pub(crate) type Launch = (&'static str, LaunchConfig, Arguments);

/// Threads of a warp.
pub(crate) const WARP: usize = 32;
/// Rows in a block where a warp takes a row.
const WARP_ROWS: usize = 4;

/// Who works on one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Team {
    /// A warp, which keeps the row in shared memory.
    Warp,
    /// A block, which keeps the row in shared memory.
    Block,
    /// A block, which reads the row anew for each pass: it does not fit.
    Long,
}

/// What decides on the team.
pub(crate) struct Rows {
    pub(crate) length: usize,
    /// Longest row that is left to a single warp.
    pub(crate) warp_longest: usize,
    /// Shared memory that a team needs for a row.
    pub(crate) shared_bytes: usize,
    /// Most shared memory that a block should take, so that others fit beside it.
    pub(crate) shared_most: usize,
}

impl Team {
    pub(crate) fn of(gpu: &Gpu, rows: &Rows) -> Self {
        // What the kernels take for their sums.
        const STATIC_BYTES: usize = 1024;
        let most = rows.shared_most.min((gpu.facts().max_shared_bytes_per_block as usize).saturating_sub(STATIC_BYTES));
        if rows.length <= rows.warp_longest {
            Self::Warp
        } else if rows.shared_bytes <= most {
            Self::Block
        } else {
            Self::Long
        }
    }

    /// Teams in a block, for `count` teams in all.
    pub(crate) fn per_block(self, count: usize) -> usize {
        if self == Self::Warp { count.clamp(1, WARP_ROWS) } else { 1 }
    }

    /// `count` teams; those that are a block have up to `threads_most` threads, one for each pack of `width`.
    pub(crate) fn config(self, count: usize, rows: &Rows, width: usize, threads_most: usize) -> LaunchConfig {
        let per_block = self.per_block(count);
        let threads = match self {
            Self::Warp => WARP,
            Self::Block | Self::Long => rows.length.div_ceil(width).next_multiple_of(WARP).clamp(WARP, threads_most),
        };
        let shared_bytes = if self == Self::Long { 0 } else { per_block * rows.shared_bytes };
        let block = [threads as u32, per_block as u32, 1];
        LaunchConfig::new([count.div_ceil(per_block) as u32, 1, 1], block).shared(shared_bytes as u32)
    }
}

/// Values in one access to rows of this length in arrays at these addresses (null: not there): 4, or 1 where a row's
/// start may not be a multiple of 16 bytes.
pub(crate) fn access_width(length: usize, addresses: &[u64]) -> usize {
    let is_aligned = length.is_multiple_of(4) && addresses.iter().all(|address| address.is_multiple_of(16));
    if is_aligned { 4 } else { 1 }
}

/// Threads that stride over a flat array in packs of four (`for_each_pack` in `kernels/pack.cuh`).
pub(crate) fn packed(count: usize) -> LaunchConfig {
    const BLOCK: usize = 256;
    let packs = count.div_ceil(4);
    strided(packs, packs.next_multiple_of(WARP).clamp(WARP, BLOCK) as u32)
}
