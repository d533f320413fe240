//! The backward pass: delta, then a launch for each gradient that is asked for; for a relative bias, one that adds up what
//! the queries' kernel found.

use super::{BLOCK, Kernel, Problem, Tiles, grid, kernel, kernel_for};
use crate::driver::{LaunchConfig, Result};
use crate::gpu::{Arguments, Gpu, Source, source};
use crate::ops::Write;
use crate::ops::attention::{Backward, GradInputs, Shape};

pub(super) static SOURCE: Source = source!("attention_backward");

pub(super) static KEY_VALUE: [Kernel; 4] = [
    kernel("attention_backward_key_value_32", 32, 8, 2),
    kernel("attention_backward_key_value_64", 64, 8, 2),
    kernel("attention_backward_key_value_128", 128, 4, 2),
    kernel("attention_backward_key_value_256", 256, 2, 1),
];

pub(super) static QUERY: [Kernel; 4] = [
    kernel("attention_backward_query_32", 32, 8, 2),
    kernel("attention_backward_query_64", 64, 8, 2),
    kernel("attention_backward_query_128", 128, 4, 2),
    kernel("attention_backward_query_256", 256, 2, 1),
];

pub(super) static BIAS: [Kernel; 4] = [
    kernel("attention_backward_bias_32", 32, 8, 2),
    kernel("attention_backward_bias_64", 64, 8, 2),
    kernel("attention_backward_bias_128", 128, 4, 2),
    kernel("attention_backward_bias_256", 256, 2, 1),
];

/// By the rows of the tiles of [`QUERY`].
pub(super) static RELATIVE: [Kernel; 4] = [
    kernel("attention_backward_relative_64", 32, 8, 2),
    kernel("attention_backward_relative_64", 64, 8, 2),
    kernel("attention_backward_relative_32", 128, 4, 2),
    kernel("attention_backward_relative_16", 256, 2, 1),
];

/// Numbers that the queries' kernel leaves for the gradient of a relative bias: `Diagonals` of the kernel file.
fn diagonals(problem: &Problem<'_>, tiles: &Tiles) -> usize {
    let Shape { query_time, key_time, .. } = problem.shape;
    let rows = tiles.rows();
    let group = problem.group();
    let lists = if group == 1 { 1 } else { group.min((rows + query_time).saturating_sub(2) / query_time.max(1) + 1) };
    problem.packed_rows().div_ceil(rows) * problem.pairs() * lists * (key_time + rows - 1)
}

/// Computes the gradients; see [`crate::ops::attention::backward`].
///
/// # Errors
/// The head is larger than 256, or the driver refuses.
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let problem = Problem { shape: *shape, common: arguments.common() };
    let Backward { output, log_sum_exp, grad_output, .. } = arguments;
    let float = size_of::<f32>();
    let tiles = kernel_for(&QUERY, shape.head_size)?.tiles;
    let sums = arguments.grad_relative_bias.as_ref().map_or(0, |_| diagonals(&problem, &tiles));
    let delta = gpu.workspace(((problem.rows() + sums) * float) as u64)?;
    let diagonals = if sums > 0 { delta + (problem.rows() * float) as u64 } else { 0 };
    let list = Arguments::new()
        .view(&grad_output)
        .view(&output)
        .address(delta)
        .size(shape.heads)
        .size(shape.query_time)
        .size(shape.head_size)
        .count(problem.rows());
    gpu.launch(&SOURCE, "attention_delta", grid(problem.rows().div_ceil(4))?, list)?;

    let common = || problem.arguments().view(&grad_output).view(&log_sum_exp).address(delta);
    let row_tiles = |kernel: &Kernel| problem.packed_rows().div_ceil(kernel.tiles.rows());
    let key_value = |start: u64, write: Write| {
        let kernel = kernel_for(&KEY_VALUE, shape.head_size)?;
        let [grad_key, grad_value] = problem.layout().keys_and_values(start, shape);
        let list = common().address(grad_key).address(grad_value).write(write);
        let blocks = shape.key_time.div_ceil(kernel.tiles.rows()) * problem.pairs();
        gpu.launch(&SOURCE, kernel.name, grid(blocks)?.shared(kernel.tiles.shared_bytes(2, 2)), list)
    };
    let query = |start: u64, write: Write| {
        let kernel = kernel_for(&QUERY, shape.head_size)?;
        let config = grid(row_tiles(kernel) * problem.pairs())?.shared(kernel.tiles.shared_bytes(2, 2));
        gpu.launch(&SOURCE, kernel.name, config, common().address(start).write(write).address(diagonals))
    };
    match &arguments.grad_inputs {
        GradInputs::Packed(grad, write) => {
            key_value(grad.address(), *write)?;
            query(grad.address(), *write)?;
        }
        GradInputs::Separate { query: grad_query, key_value: grad_key_value } => {
            if let Some((grad, write)) = grad_key_value {
                key_value(grad.address(), *write)?;
            }
            match grad_query {
                Some((grad, write)) => query(grad.address(), *write)?,
                None if sums > 0 => query(0, Write::Set)?,
                None => {}
            }
        }
    }
    if let Some((grad, write)) = &arguments.grad_relative_bias {
        let kernel = kernel_for(&RELATIVE, shape.head_size)?;
        let list = problem.arguments().address(diagonals).view_mut(grad).write(*write);
        let config = grid((grad.len() / shape.heads).div_ceil(BLOCK as usize))?;
        let config = LaunchConfig { grid: [config.grid[0], shape.heads as u32, 1], ..config };
        gpu.launch(&SOURCE, kernel.name, config, list)?;
    }
    if let Some((grad, write)) = &arguments.grad_bias {
        let kernel = kernel_for(&BIAS, shape.head_size)?;
        let config = grid(row_tiles(kernel) * shape.key_value_heads)?.shared(kernel.tiles.shared_bytes(2, 2));
        let key_tiles = shape.key_time.div_ceil(kernel.tiles.columns()) as u32;
        let config = LaunchConfig { grid: [config.grid[0], key_tiles, 1], ..config };
        gpu.launch(&SOURCE, kernel.name, config, common().view_mut(grad).write(*write))?;
    }
    Ok(())
}
