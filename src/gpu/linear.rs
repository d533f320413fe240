//! Launches `kernels/linear.cu`: linear layers, each direction one matrix product with everything else in its epilogue.
//!
//! A product is computed in tiles of 128 x 128 where that gives enough blocks to fill a GPU, else of 64 x 64. The two
//! gradients, whose results may be small and whose sums are long, are cut along those too. All of this is decided by the
//! sizes alone, so every device makes the same sums in the same order.

use super::{Arguments, Gpu, Source, source, strided};
use crate::driver::{LaunchConfig, Result};
use crate::ops::linear::{Activation, Backward, Forward, Shape};
use crate::ops::{View, ViewMut, Write};

static SOURCE: Source = source!("linear");

/// Threads of the kernels that go over elements.
const BLOCK: u32 = 256;
/// Up to so many rows, a warp per element of the output beats tiles that are mostly empty.
const FEW_ROWS: usize = 8;
/// Warps that keep any GPU busy: 8 for each of about 128 multiprocessors.
const BUSY_WARPS: usize = 1024;
/// A part of a sum is at least so long: shorter ones cost more in partial results than they gain.
const PART_DEPTH: usize = 128;
/// Depth of a stage of the kernels, of which a part is a multiple.
const STAGE_DEPTH: usize = 16;
/// Rows of one partial sum of a bias gradient.
const SUMMED_ROWS: usize = 512;

/// Computes `y = activation(x · Wᵀ + b) + residual`; see [`crate::ops::linear::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let tiling = Tiling::whole(shape.rows, shape.outputs * arguments.activation.width());
    forward_tiled(gpu, shape, arguments, (shape.rows > FEW_ROWS).then_some(tiling))
}

/// The same in tiles, or without them.
fn forward_tiled(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>, tiling: Option<Tiling>) -> Result<()> {
    let Shape { rows, inputs, outputs } = *shape;
    let Forward { input, weight, bias, residual, activation, pre_activation, output } = arguments;
    let list = Arguments::new()
        .view(&input)
        .view(&weight)
        .optional(bias.as_ref())
        .optional(residual.as_ref())
        .optional_mut(pre_activation.as_ref())
        .view_mut(&output)
        .size(rows)
        .size(outputs)
        .size(inputs)
        .code(activation);
    let Some(tiling) = tiling else {
        let config = LaunchConfig::new([blocks(outputs, BLOCK as usize / 32), rows as u32, 1], [BLOCK, 1, 1]);
        return gpu.launch(&SOURCE, "linear_forward_few_rows", config, list);
    };
    let kernel = tiling.choose("linear_forward_large", "linear_forward_small");
    // For SwiGLU a tile has the gates of half as many outputs as it has columns, and their up-projections.
    let config = tiling.config(rows, outputs, tiling.extent() / activation.width());
    gpu.launch(&SOURCE, kernel, config, list)
}

/// Computes the gradients that are asked for; see [`crate::ops::linear::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Shape { rows, inputs, outputs } = *shape;
    let Backward { input, weight, activation, pre_activation, grad_output, grad_input, grad_weight, grad_bias } =
        arguments;
    let columns = outputs * activation.width();
    let grads = Grads { rows, columns, inputs, input, weight, grad_input, grad_weight, grad_bias };
    let Some(z) = pre_activation.filter(|_| activation != Activation::Identity) else {
        let workspace = gpu.workspace(grads.workspace_bytes())?;
        return grads.compute(gpu, grad_output, workspace);
    };
    let grad_z_bytes = (rows * columns * size_of::<f32>()).next_multiple_of(256) as u64;
    let workspace = gpu.workspace(grad_z_bytes + grads.workspace_bytes())?;
    // SAFETY: the start of the workspace, which nothing else uses before the next operation.
    let mut grad_z = unsafe { ViewMut::on_device(workspace, rows * columns) };
    activation_backward(gpu, activation, [rows, outputs], z, grad_output, grad_z.reborrow())?;
    grads.compute(gpu, grad_z.as_view(), workspace + grad_z_bytes)
}

/// Computes `grad_z = grad_output ⊙ activation'(z)`.
pub(super) fn activation_backward(
    gpu: &Gpu,
    activation: Activation,
    [rows, outputs]: [usize; 2],
    z: View<'_, f32>,
    grad_output: View<'_, f32>,
    grad_z: ViewMut<'_, f32>,
) -> Result<()> {
    let list = Arguments::new().view(&z).view(&grad_output).view_mut(&grad_z);
    launch_elements(gpu, "linear_activation_backward", list, rows, outputs, activation)
}

/// Computes `output = activation(z)`, with the bits of the forward pass.
pub(super) fn activate(
    gpu: &Gpu,
    activation: Activation,
    rows: usize,
    outputs: usize,
    z: View<'_, f32>,
    output: ViewMut<'_, f32>,
) -> Result<()> {
    let list = Arguments::new().view(&z).view_mut(&output);
    launch_elements(gpu, "linear_activate", list, rows, outputs, activation)
}

/// Computes `target = (grad · weight) ⊙ activation'(z)`: the gradient of a hidden layer's pre-activation `z (rows,
/// hidden · width)`, from `grad (rows, outputs)` of the layer behind it and its `weight (outputs, hidden)`.
pub(super) fn grad_hidden(
    gpu: &Gpu,
    [rows, outputs, hidden]: [usize; 3],
    grad: View<'_, f32>,
    weight: View<'_, f32>,
    (activation, z): (Activation, View<'_, f32>),
    target: ViewMut<'_, f32>,
) -> Result<()> {
    let tiling = Tiling::whole(rows, hidden);
    let kernel = tiling.choose("linear_grad_input_large", "linear_grad_input_small");
    let list = Arguments::new()
        .view(&grad)
        .view(&weight)
        .view(&z)
        .view_mut(&target)
        .size(rows)
        .size(hidden)
        .size(outputs)
        .size(outputs)
        .code(activation)
        .write(Write::Set);
    gpu.launch(&SOURCE, kernel, tiling.config(rows, hidden, tiling.extent()), list)
}

/// The products of a linear layer's backward pass, once the gradient of `z` is there.
pub(super) struct Grads<'a> {
    pub rows: usize,
    /// Of `z`.
    pub columns: usize,
    pub inputs: usize,
    /// `(rows, inputs)`
    pub input: View<'a, f32>,
    /// `(columns, inputs)`
    pub weight: View<'a, f32>,
    /// `(rows, inputs)`
    pub grad_input: Option<(ViewMut<'a, f32>, Write)>,
    /// `(columns, inputs)`
    pub grad_weight: Option<(ViewMut<'a, f32>, Write)>,
    /// `(columns)`
    pub grad_bias: Option<(ViewMut<'a, f32>, Write)>,
}

impl Grads<'_> {
    /// Bytes that [`compute`](Self::compute) needs for partial results.
    pub fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes_tiled(Tiling::new)
    }

    /// Computes them from `grad_z (rows, columns)`. Partial results go to `workspace`, one product's after the other's.
    pub fn compute(&self, gpu: &Gpu, grad_z: View<'_, f32>, workspace: u64) -> Result<()> {
        self.compute_tiled(gpu, grad_z, workspace, Tiling::new)
    }

    fn workspace_bytes_tiled(&self, tiling: fn(usize, usize, usize) -> Tiling) -> u64 {
        let Self { rows, columns, inputs, .. } = *self;
        let input = self.grad_input.as_ref().map_or(0, |_| tiling(rows, inputs, columns).floats(rows * inputs));
        let weight = self.grad_weight.as_ref().map_or(0, |_| tiling(columns, inputs, rows).floats(columns * inputs));
        let bias = self.grad_bias.as_ref().map_or(0, |_| rows.div_ceil(SUMMED_ROWS) * columns);
        (input.max(weight).max(bias) * size_of::<f32>()) as u64
    }

    /// `tiling` is of rows, columns and depth of a product.
    fn compute_tiled(
        &self,
        gpu: &Gpu,
        grad_z: View<'_, f32>,
        workspace: u64,
        tiling: fn(usize, usize, usize) -> Tiling,
    ) -> Result<()> {
        let Self { rows, columns, inputs, .. } = *self;
        if let Some((grad, write)) = &self.grad_weight {
            let tiling = tiling(columns, inputs, rows);
            let kernel = tiling.choose("linear_grad_weight_large", "linear_grad_weight_small");
            let operands = Arguments::new().view(&grad_z).view(&self.input);
            tiling.launch(gpu, [columns, inputs], grad.address(), *write, workspace, |target, write| {
                let list = operands.address(target).size(columns).size(inputs).size(rows).size(tiling.part_depth);
                (kernel, list.write(write))
            })?;
        }
        if let Some((grad, write)) = &self.grad_bias {
            column_sums(gpu, [rows, columns], &grad_z, grad.address(), *write, workspace)?;
        }
        if let Some((grad, write)) = &self.grad_input {
            let tiling = tiling(rows, inputs, columns);
            let kernel = tiling.choose("linear_grad_input_large", "linear_grad_input_small");
            let operands = Arguments::new().view(&grad_z).view(&self.weight).address(0);
            tiling.launch(gpu, [rows, inputs], grad.address(), *write, workspace, |target, write| {
                let list = operands.address(target).size(rows).size(inputs).size(columns).size(tiling.part_depth);
                (kernel, list.code(Activation::Identity).write(write))
            })?;
        }
        Ok(())
    }
}

/// How a product is cut: its tiles' size, and the parts of its depth.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tiling {
    is_large: bool,
    parts: usize,
    part_depth: usize,
}

impl Tiling {
    const LARGE: usize = 128;
    const SMALL: usize = 64;

    /// For a product whose epilogue needs the whole sum.
    fn whole(rows: usize, columns: usize) -> Self {
        Self { parts: 1, ..Self::of_parts(rows, columns, 0, 1) }
    }

    /// For a product that may be cut along its depth.
    fn new(rows: usize, columns: usize, depth: usize) -> Self {
        Self::of_parts(rows, columns, depth, (depth / PART_DEPTH).max(1))
    }

    fn of_parts(rows: usize, columns: usize, depth: usize, most_parts: usize) -> Self {
        let warps = |extent: usize| rows.div_ceil(extent) * columns.div_ceil(extent) * warps_of(extent);
        let is_large = warps(Self::LARGE) * most_parts >= BUSY_WARPS;
        let warps = warps(if is_large { Self::LARGE } else { Self::SMALL });
        let wanted = BUSY_WARPS.div_ceil(warps.max(1)).min(most_parts);
        let part_depth = depth.div_ceil(wanted).next_multiple_of(STAGE_DEPTH).max(STAGE_DEPTH);
        Self { is_large, parts: depth.div_ceil(part_depth).max(1), part_depth }
    }

    fn extent(self) -> usize {
        if self.is_large { Self::LARGE } else { Self::SMALL }
    }

    fn choose(self, large: &'static str, small: &'static str) -> &'static str {
        if self.is_large { large } else { small }
    }

    /// One block per tile and part; a tile has `columns_of_tile` of the result's columns.
    fn config(self, rows: usize, columns: usize, columns_of_tile: usize) -> LaunchConfig {
        let threads = 32 * warps_of(self.extent()) as u32;
        let grid = [blocks(rows, self.extent()), blocks(columns, columns_of_tile), self.parts as u32];
        LaunchConfig::new(grid, [threads, 1, 1])
    }

    /// Elements of the partial results of a product of `count` elements.
    fn floats(self, count: usize) -> usize {
        if self.parts > 1 { self.parts * count } else { 0 }
    }

    /// Launches a product of rows and columns; `arguments` makes its kernel's arguments for a target and what to
    /// do with it. Partial results are added in order.
    fn launch(
        self,
        gpu: &Gpu,
        [rows, columns]: [usize; 2],
        target: u64,
        write: Write,
        workspace: u64,
        arguments: impl FnOnce(u64, Write) -> (&'static str, Arguments),
    ) -> Result<()> {
        let config = self.config(rows, columns, self.extent());
        if self.parts == 1 {
            let (kernel, list) = arguments(target, write);
            return gpu.launch(&SOURCE, kernel, config, list);
        }
        let (kernel, list) = arguments(workspace, Write::Set);
        gpu.launch(&SOURCE, kernel, config, list)?;
        sum_parts(gpu, workspace, self.parts, rows * columns, target, write)
    }
}

/// Warps of a block with tiles of this size: 32 x 64 results each.
fn warps_of(extent: usize) -> usize {
    extent / 32 * (extent / 64)
}

fn blocks(length: usize, each: usize) -> u32 {
    // Axes have fewer than 2^32 elements, which `Arguments::size` demands.
    length.div_ceil(each) as u32
}

/// `sums (columns) = Σ_rows matrix (rows, columns)`.
fn column_sums(
    gpu: &Gpu,
    [rows, columns]: [usize; 2],
    matrix: &View<'_, f32>,
    sums: u64,
    write: Write,
    workspace: u64,
) -> Result<()> {
    let parts = rows.div_ceil(SUMMED_ROWS).max(1);
    let (target, part_write) = if parts == 1 { (sums, write) } else { (workspace, Write::Set) };
    let config = LaunchConfig::new([blocks(columns, 32), parts as u32, 1], [BLOCK, 1, 1]);
    let list = Arguments::new().view(matrix).address(target).size(rows).size(columns).size(SUMMED_ROWS);
    gpu.launch(&SOURCE, "linear_column_sums", config, list.write(part_write))?;
    if parts == 1 {
        return Ok(());
    }
    sum_parts(gpu, workspace, parts, columns, sums, write)
}

/// `target (count) = Σ_parts`, in order.
fn sum_parts(gpu: &Gpu, workspace: u64, parts: usize, count: usize, target: u64, write: Write) -> Result<()> {
    let list = Arguments::new().address(workspace).address(target).size(parts).write(write).count(count);
    gpu.launch(&SOURCE, "linear_sum_parts", strided(count, BLOCK), list)
}

/// Launches a kernel over `(rows, outputs)`. Only SwiGLU's gates and up-projections make rows matter.
fn launch_elements(
    gpu: &Gpu,
    kernel: &'static str,
    list: Arguments,
    rows: usize,
    outputs: usize,
    activation: Activation,
) -> Result<()> {
    let (rows, outputs) = if activation == Activation::SwiGlu { (rows, outputs) } else { (1, rows * outputs) };
    let mut config = strided(outputs, BLOCK);
    config.grid[1] = rows.min(1 << 12) as u32;
    gpu.launch(&SOURCE, kernel, config, list.size(rows).count(outputs).code(activation))
}

impl Arguments {
    /// `unsigned`: an activation, as `linear.cu` numbers them.
    fn code(self, activation: Activation) -> Self {
        self.size(match activation {
            Activation::Identity => 0,
            Activation::Relu => 1,
            Activation::GeluTanh => 2,
            Activation::GeluErf => 3,
            Activation::SwiGlu => 4,
            Activation::Tanh => 5,
        })
    }
}

pub(crate) mod checks;
