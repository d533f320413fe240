//! Dropout on the CPU: random words come from the vector Philox, so the mask is never stored.

use super::simd::philox::{Stream, dropout_factors};
use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint};
use crate::ops::dropout::*;
use crate::ops::philox::{keep_threshold, stream};
use crate::ops::{Dropout, Write};

/// Elements in one task, a multiple of every tile of the generator.
const TASK: usize = 16 * 1024;
/// Elements whose factors are held at a time, a multiple of every tile of the generator.
const BLOCK: usize = 1024;

/// Zeroes elements at random, scales the others, adds the residual.
pub fn forward(cpu: &Cpu, dropout: &Dropout, arguments: Forward<'_>) {
    let residual = arguments.residual.map(|residual| Addend::Other(residual.host()));
    apply(cpu, dropout, arguments.input.host(), residual.unwrap_or(Addend::Nothing), arguments.output.host());
}

/// Applies the forward pass's mask and scale to the gradient.
pub fn backward(cpu: &Cpu, dropout: &Dropout, arguments: Backward<'_>) {
    let (grad_input, write) = arguments.grad_input;
    let addend = if write == Write::Add { Addend::Output } else { Addend::Nothing };
    apply(cpu, dropout, arguments.grad_output.host(), addend, grad_input.host());
}

/// What is added to the masked input.
#[derive(Clone, Copy)]
enum Addend<'a> {
    Nothing,
    /// What the output holds already.
    Output,
    Other(&'a [f32]),
}

fn apply(cpu: &Cpu, dropout: &Dropout, input: &[f32], addend: Addend<'_>, output: &mut [f32]) {
    let stream = stream(dropout.seed, dropout.step, dropout.site);
    let threshold = keep_threshold(dropout.probability);
    let scale = 1.0 / (1.0 - dropout.probability);
    let output = Disjoint::new(output);
    cpu.pool().run_pieces(input.len(), TASK, |_, range| {
        // SAFETY: the ranges of different tasks do not overlap.
        let output = unsafe { output.get(range.clone()) };
        let addend = match addend {
            Addend::Other(other) => Addend::Other(&other[range.clone()]),
            same => same,
        };
        let first = range.start as u64;
        cpu.level().run(Apply { stream, first, threshold, scale, input: &input[range], addend, output });
    });
}

struct Apply<'a> {
    stream: Stream,
    /// Index of the first element.
    first: u64,
    threshold: u32,
    scale: f32,
    input: &'a [f32],
    addend: Addend<'a>,
    output: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let mut factors = [0.0f32; BLOCK];
        for start in (0..self.input.len()).step_by(BLOCK) {
            let count = BLOCK.min(self.input.len() - start);
            let factors = &mut factors[..count];
            dropout_factors::<V>(self.stream, self.first + start as u64, self.threshold, self.scale, factors);
            for i in (0..count).step_by(V::LANES) {
                let left = count - i;
                // SAFETY: input, addend and output have the same length, of which `left` or more are left here.
                unsafe {
                    let factor = V::load_up_to(factors.as_ptr().add(i), left);
                    let x = V::load_up_to(self.input.as_ptr().add(start + i), left);
                    let target = self.output.as_mut_ptr().add(start + i);
                    let result = match self.addend {
                        Addend::Nothing => x.mul(factor),
                        Addend::Output => x.mul_add(factor, V::load_up_to(target, left)),
                        Addend::Other(other) => x.mul_add(factor, V::load_up_to(other.as_ptr().add(start + i), left)),
                    };
                    result.store_up_to(target, left);
                }
            }
        }
    }
}
