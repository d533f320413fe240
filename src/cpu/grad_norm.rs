//! Gradient norm on the CPU: squares summed in f64, in fixed lanes over fixed pieces, at the speed of the memory.

use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::View;

/// Elements in one task.
const PIECE: usize = 64 * 1024;
/// Running sums in a task. A fixed number, so that every level adds in the same order and gives the same bits.
const SUMS: usize = 32;

/// Norm of all `gradients` as if they were one vector.
pub fn forward(cpu: &Cpu, gradients: &[View<'_, f32>]) -> f64 {
    let mut total = 0.0f64;
    for gradient in gradients {
        let gradient = gradient.host();
        // An f64 for each piece, in the space of two f32.
        scratch::with(2 * gradient.len().div_ceil(PIECE), |memory| {
            let sums: &mut [f64] = bytemuck::cast_slice_mut(memory);
            let shared = Disjoint::new(sums);
            cpu.pool().run_pieces(gradient.len(), PIECE, |piece, range| {
                let sum = cpu.level().run(SquareSum(&gradient[range]));
                // SAFETY: every task has its own place.
                unsafe { shared.get(piece..piece + 1)[0] = sum };
            });
            total = sums.iter().fold(total, |total, sum| total + sum);
        });
    }
    total.sqrt()
}

struct SquareSum<'a>(&'a [f32]);

impl Kernel for SquareSum<'_> {
    type Output = f64;

    /// Plain loops over arrays: LLVM turns them into conversions to f64 and multiply-adds of the instruction set
    /// that this is compiled for.
    #[inline(always)]
    fn run<V: Vector>(self) -> f64 {
        let mut sums = [0.0f64; SUMS];
        let (blocks, rest) = self.0.as_chunks::<SUMS>();
        for block in blocks {
            for (sum, &value) in sums.iter_mut().zip(block) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        for (sum, &value) in sums.iter_mut().zip(rest) {
            *sum += f64::from(value) * f64::from(value);
        }
        sums.iter().sum()
    }
}
