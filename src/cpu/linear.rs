//! Linear layers on the CPU: each is one matrix product with everything else in its epilogue.
//!
//! Forward: `x · Wᵀ`, then bias, activation and residual as each tile is stored. Backward: `dx = dz · W` and
//! `dW = dzᵀ · x`, the bias gradient being summed while `dzᵀ` is packed for the second. Only SwiGLU, whose result
//! needs two columns of the product that lie far apart, takes a pass of its own.

use super::gemm::{self, Epilogue, Matrix, Product, activation};
use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::Write;
use crate::ops::linear::{Activation, Backward, Forward, Shape};

/// Elements of one task of a pass over a matrix: 64 KiB.
const PIECE: usize = 16 * 1024;

/// Computes `y = activation(x · Wᵀ + b) + residual`; see [`crate::ops::linear::forward`].
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Shape { rows, inputs, outputs } = *shape;
    let Forward { input, weight, bias, residual, activation, pre_activation, output } = arguments;
    let columns = outputs * activation.width();
    let bias = bias.map(|bias| bias.host());
    let residual = residual.map(|residual| residual.host());
    let product = |target, epilogue| Product {
        shape: gemm::Shape { rows, columns, depth: inputs },
        left: Matrix::straight(input.host(), inputs),
        right: Matrix::transposed(weight.host(), inputs),
        target,
        target_stride: columns,
        write: Write::Set,
        epilogue,
        left_sums: None,
    };
    if activation == Activation::SwiGlu {
        let z = pre_activation.expect("checked by ops: SwiGLU has a place for the pre-activation").host();
        gemm::run(cpu, product(z, Epilogue { bias, ..Epilogue::default() }));
        swiglu(cpu, rows, outputs, z, residual, output.host());
    } else {
        let pre_activation = pre_activation.map(|z| Disjoint::new(z.host()));
        let activation = (activation != Activation::Identity).then_some(activation);
        let epilogue = Epilogue { bias, pre_activation, activation, residual, ..Epilogue::default() };
        gemm::run(cpu, product(output.host(), epilogue));
    }
}

/// Computes the gradients that are asked for; see [`crate::ops::linear::backward`].
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let Shape { rows, inputs, outputs } = *shape;
    let Backward { input, weight, activation, pre_activation, grad_output, grad_input, grad_weight, grad_bias } =
        arguments;
    let columns = outputs * activation.width();
    let grads = Grads {
        shape: gemm::Shape { rows, columns, depth: inputs },
        input: input.host(),
        weight: weight.host(),
        grad_input: grad_input.map(|(grad, write)| (grad.host(), write)),
        grad_weight: grad_weight.map(|(grad, write)| (grad.host(), write)),
        grad_bias: grad_bias.map(|(grad, write)| (grad.host(), write)),
    };
    if activation == Activation::Identity {
        return grads.compute(cpu, grad_output.host());
    }
    let z = pre_activation.expect("checked by ops: the pre-activation is there").host();
    scratch::with(rows * columns, |grad_z| {
        multiply_by_derivative(cpu, activation, outputs, z, grad_output.host(), grad_z);
        grads.compute(cpu, grad_z);
    });
}

/// The products of a linear layer's backward pass, once the gradient of `z` is there.
pub(super) struct Grads<'a> {
    /// Rows, outputs (as columns) and inputs (as depth) of the forward product.
    pub shape: gemm::Shape,
    /// `(rows, depth)`
    pub input: &'a [f32],
    /// `(columns, depth)`
    pub weight: &'a [f32],
    /// `(rows, depth)`
    pub grad_input: Option<(&'a mut [f32], Write)>,
    /// `(columns, depth)`
    pub grad_weight: Option<(&'a mut [f32], Write)>,
    /// `(columns)`
    pub grad_bias: Option<(&'a mut [f32], Write)>,
}

impl Grads<'_> {
    /// Computes them from `grad_z (rows, columns)`.
    pub fn compute(self, cpu: &Cpu, grad_z: &[f32]) {
        let gemm::Shape { rows, columns, depth: inputs } = self.shape;
        if let Some((grad, write)) = self.grad_weight {
            gemm::run(
                cpu,
                Product {
                    shape: gemm::Shape { rows: columns, columns: inputs, depth: rows },
                    left: Matrix::transposed(grad_z, columns),
                    right: Matrix::straight(self.input, inputs),
                    target: grad,
                    target_stride: inputs,
                    write,
                    epilogue: Epilogue::default(),
                    left_sums: self.grad_bias,
                },
            );
        } else if let Some((grad, write)) = self.grad_bias {
            column_sums(cpu, columns, grad_z, grad, write);
        }
        if let Some((grad, write)) = self.grad_input {
            gemm::run(
                cpu,
                Product {
                    shape: gemm::Shape { rows, columns: inputs, depth: columns },
                    left: Matrix::straight(grad_z, columns),
                    right: Matrix::straight(self.weight, inputs),
                    target: grad,
                    target_stride: inputs,
                    write,
                    epilogue: Epilogue::default(),
                    left_sums: None,
                },
            );
        }
    }
}

/// `y = silu(gate) · up + residual` from `z (rows, 2·outputs)`, gates first.
pub(super) fn swiglu(cpu: &Cpu, rows: usize, outputs: usize, z: &[f32], residual: Option<&[f32]>, y: &mut [f32]) {
    let y = Disjoint::new(y);
    by_rows(cpu, rows, outputs, |range| {
        for row in range {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.get(row * outputs..(row + 1) * outputs) };
            let (gate, up) = z[row * 2 * outputs..][..2 * outputs].split_at(outputs);
            let residual = residual.map(|residual| &residual[row * outputs..][..outputs]);
            cpu.level().run(SwiGlu { gate, up, residual, y });
        }
    });
}

/// Gradient of `z (rows, 2·outputs)` for SwiGLU. `grad_y` is `(rows, outputs)`, rows `grad_stride` apart; it may be
/// the left half of `grad_z` itself.
///
/// # Safety
/// `grad_y` must be readable for its rows; no one else may write to it or use `grad_z`.
pub(super) unsafe fn swiglu_backward(
    cpu: &Cpu,
    rows: usize,
    outputs: usize,
    z: &[f32],
    grad_y: *const f32,
    grad_stride: usize,
    grad_z: Disjoint<'_, f32>,
) {
    assert!(z.len() >= rows * 2 * outputs && grad_z.len() >= rows * 2 * outputs);
    let grad_y = Shared(grad_y);
    by_rows(cpu, rows, outputs, |range| {
        for row in range {
            let (gate, up) = z[row * 2 * outputs..][..2 * outputs].split_at(outputs);
            // SAFETY: this task alone uses the row; the kernel reads each element of `grad_y` before it writes there.
            unsafe {
                let grad_y = grad_y.at(row * grad_stride);
                let grad_z = grad_z.as_ptr().add(row * 2 * outputs);
                cpu.level().run(SwiGluBackward { gate, up, grad_y, grad_z });
            }
        }
    });
}

/// A pointer that tasks read through.
struct Shared(*const f32);
// SAFETY: `swiglu_backward` makes its caller promise that nothing else uses the memory.
unsafe impl Sync for Shared {}
impl Shared {
    unsafe fn at(&self, offset: usize) -> *const f32 {
        // SAFETY: the caller's: inside the allocation.
        unsafe { self.0.add(offset) }
    }
}

/// `y = activation(z)`, any activation but SwiGLU: the same function as in the product's epilogue, so the same bits.
pub(super) fn activate(cpu: &Cpu, activation: Activation, z: &[f32], y: &mut [f32]) {
    let y = Disjoint::new(y);
    cpu.pool().run_pieces(z.len(), PIECE, |_, range| {
        // SAFETY: pieces are disjoint.
        let y = unsafe { y.get(range.clone()) };
        cpu.level().run(Activate { activation, z: &z[range], y });
    });
}

/// `grad_z = grad_y ⊙ activation'(z)`.
pub(super) fn multiply_by_derivative(
    cpu: &Cpu,
    activation: Activation,
    outputs: usize,
    z: &[f32],
    grad_y: &[f32],
    grad_z: &mut [f32],
) {
    let grad_z = Disjoint::new(grad_z);
    if activation == Activation::SwiGlu {
        let rows = grad_y.len().checked_div(outputs).unwrap_or(0);
        // SAFETY: `grad_y` is a slice of its own.
        return unsafe { swiglu_backward(cpu, rows, outputs, z, grad_y.as_ptr(), outputs, grad_z) };
    }
    cpu.pool().run_pieces(z.len(), PIECE, |_, range| {
        // SAFETY: pieces are disjoint.
        let grad_z = unsafe { grad_z.get(range.clone()) };
        cpu.level().run(Derivative { activation, z: &z[range.clone()], grad_y: &grad_y[range], grad_z });
    });
}

/// `sums (columns) = Σ_rows matrix`, each task taking columns of its own.
fn column_sums(cpu: &Cpu, columns: usize, matrix: &[f32], sums: &mut [f32], write: Write) {
    const COLUMNS: usize = 64;
    let sums = Disjoint::new(sums);
    cpu.pool().run_pieces(columns, COLUMNS, |_, range| {
        let mut totals = [0.0f32; COLUMNS];
        // Blocks of rows are summed by themselves first: errors grow with the longest chain of additions.
        for rows in matrix.chunks(256 * columns) {
            let mut block = [0.0f32; COLUMNS];
            for row in rows.chunks_exact(columns) {
                for (sum, value) in block.iter_mut().zip(&row[range.clone()]) {
                    *sum += value;
                }
            }
            for (total, sum) in totals.iter_mut().zip(block) {
                *total += sum;
            }
        }
        // SAFETY: ranges are disjoint.
        let sums = unsafe { sums.get(range) };
        for (sum, total) in sums.iter_mut().zip(totals) {
            *sum = if write == Write::Add { *sum + total } else { total };
        }
    });
}

fn by_rows(cpu: &Cpu, rows: usize, columns: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
    cpu.pool().run_pieces(rows, PIECE.div_ceil(columns.max(1)), |_, range| body(range));
}

/// Calls `each(index, lanes)` for the vectors that cover `0..length`.
macro_rules! for_vectors {
    ($V:ident, $length:expr, |$i:ident, $lanes:ident| $body:block) => {
        let length = $length;
        let mut $i = 0;
        while $i < length {
            let $lanes = $V::LANES.min(length - $i);
            $body
            $i += $V::LANES;
        }
    };
}

struct Activate<'a> {
    activation: Activation,
    z: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Activate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for_vectors!(V, self.z.len().min(self.y.len()), |i, lanes| {
            // SAFETY: `lanes` elements from `i` are inside both slices.
            unsafe {
                let z = V::load_partial(self.z.as_ptr().add(i), lanes);
                activation::apply(self.activation, z).store_partial(self.y.as_mut_ptr().add(i), lanes);
            }
        });
    }
}

struct Derivative<'a> {
    activation: Activation,
    z: &'a [f32],
    grad_y: &'a [f32],
    grad_z: &'a mut [f32],
}

impl Kernel for Derivative<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for_vectors!(V, self.z.len().min(self.grad_y.len()).min(self.grad_z.len()), |i, lanes| {
            // SAFETY: `lanes` elements from `i` are inside all three slices.
            unsafe {
                let z = V::load_partial(self.z.as_ptr().add(i), lanes);
                let grad = V::load_partial(self.grad_y.as_ptr().add(i), lanes);
                let result = grad.mul(activation::derivative(self.activation, z));
                result.store_partial(self.grad_z.as_mut_ptr().add(i), lanes);
            }
        });
    }
}

struct SwiGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    residual: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for_vectors!(V, self.y.len(), |i, lanes| {
            // SAFETY: gate, up, residual and y have one row's length each.
            unsafe {
                let gate = V::load_partial(self.gate.as_ptr().add(i), lanes);
                let up = V::load_partial(self.up.as_ptr().add(i), lanes);
                let mut y = activation::swiglu(gate, up);
                if let Some(residual) = self.residual {
                    y = y.add(V::load_partial(residual.as_ptr().add(i), lanes));
                }
                y.store_partial(self.y.as_mut_ptr().add(i), lanes);
            }
        });
    }
}

struct SwiGluBackward<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    grad_y: *const f32,
    grad_z: *mut f32,
}

impl Kernel for SwiGluBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let outputs = self.gate.len();
        for_vectors!(V, outputs, |i, lanes| {
            // SAFETY: one row each: `outputs` elements of gate, up and grad_y, twice that of grad_z.
            unsafe {
                let gate = V::load_partial(self.gate.as_ptr().add(i), lanes);
                let up = V::load_partial(self.up.as_ptr().add(i), lanes);
                let grad = V::load_partial(self.grad_y.add(i), lanes);
                let (grad_gate, grad_up) = activation::swiglu_gradient(gate, up, grad);
                grad_gate.store_partial(self.grad_z.add(i), lanes);
                grad_up.store_partial(self.grad_z.add(outputs + i), lanes);
            }
        });
    }
}
