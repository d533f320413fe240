//! The forward pass: one launch, or one for ranges of keys and one that merges them.

use super::{Kernel, Problem, grid, kernel, kernel_for};
use crate::driver::{LaunchConfig, Result};
use crate::gpu::{Arguments, Gpu, Source, source};
use crate::ops::attention::{Forward, Shape};

pub(super) static SOURCE: Source = source!("attention_forward");

pub(super) static FORWARD: [Kernel; 4] = [
    kernel("attention_forward_32", 32, 8, 4),
    kernel("attention_forward_64", 64, 8, 4),
    kernel("attention_forward_128", 128, 8, 2),
    kernel("attention_forward_256", 256, 4, 1),
];

/// The same with short tiles, for few queries.
pub(super) static DECODE: [Kernel; 4] = [
    kernel("attention_decode_32", 32, 1, 2),
    kernel("attention_decode_64", 64, 1, 2),
    kernel("attention_decode_128", 128, 1, 2),
    kernel("attention_decode_256", 256, 1, 1),
];

/// Blocks that fill any GPU; with fewer, the keys are cut into ranges. Not the GPU's own number, so that results do
/// not depend on it.
const ENOUGH_BLOCKS: usize = 256;
/// Keys of a range, at least: what a block reads then outweighs what the merge does.
const LEAST_RANGE: usize = 128;
const MOST_RANGES: usize = 64;

/// Computes the output of every head; see [`crate::ops::attention::forward`].
///
/// # Errors
/// The head is larger than 256, or the driver refuses.
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let problem = Problem { shape: *shape, common: arguments.common() };
    let Forward { output, log_sum_exp, .. } = arguments;
    let rows = problem.rows();
    if rows == 0 {
        return Ok(());
    }
    let family = if problem.packed_rows() <= DECODE[0].tiles.rows() { &DECODE } else { &FORWARD };
    let Kernel { tiles, name } = kernel_for(family, shape.head_size)?;
    let blocks = problem.packed_rows().div_ceil(tiles.rows()) * problem.pairs();
    let (ranges, range) = ranges(blocks, shape.key_time, tiles.columns());
    let config = grid(blocks)?.shared(tiles.shared_bytes(1, 2));
    let config = LaunchConfig { grid: [config.grid[0], ranges as u32, 1], ..config };
    if ranges == 1 {
        let list = problem.arguments().view_mut(&output).optional_mut(log_sum_exp.as_ref()).count(0).size(range);
        return gpu.launch(&SOURCE, name, config, list);
    }
    let float = size_of::<f32>() as u64;
    let outputs = (ranges * rows * shape.head_size) as u64 * float;
    let partial_output = gpu.workspace(outputs + (ranges * rows) as u64 * float)?;
    let partial_log_sum_exp = partial_output + outputs;
    let list = problem.arguments().address(partial_output).address(partial_log_sum_exp).count(rows).size(range);
    gpu.launch(&SOURCE, name, config, list)?;
    let list = Arguments::new()
        .address(partial_output)
        .address(partial_log_sum_exp)
        .view_mut(&output)
        .optional_mut(log_sum_exp.as_ref())
        .size(ranges)
        .size(shape.heads)
        .size(shape.query_time)
        .size(shape.head_size)
        .count(rows);
    gpu.launch(&SOURCE, "attention_merge", grid(rows.div_ceil(4))?, list)
}

/// Into how many ranges the keys are cut, and keys in each: whole tiles, by the problem's size only.
fn ranges(blocks: usize, key_time: usize, tile: usize) -> (usize, usize) {
    let wanted = ENOUGH_BLOCKS / blocks.max(1);
    let ranges = wanted.min(key_time / LEAST_RANGE).clamp(1, MOST_RANGES);
    let range = key_time.max(1).div_ceil(ranges).next_multiple_of(tile);
    (key_time.max(1).div_ceil(range), range)
}
