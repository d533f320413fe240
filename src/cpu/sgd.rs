//! SGD on the CPU: one pass over parameters, gradients and momentum.

use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint};
use crate::ops::sgd::*;

/// Parameters in one task.
const PIECE: usize = 32 * 1024;

/// Updates parameters and momentum in place.
pub fn update(cpu: &Cpu, hyper: &Hyper, arguments: Update<'_>) {
    let gradient = arguments.gradient.host();
    let parameter = Disjoint::new(arguments.parameter.host());
    // Plain descent leaves a buffer alone that it was given all the same.
    let momentum = arguments.momentum.filter(|_| hyper.momentum != 0.0).map(|momentum| Disjoint::new(momentum.host()));
    cpu.pool().run_pieces(gradient.len(), PIECE, |_, range| {
        // SAFETY: the ranges of different tasks do not overlap.
        let (parameter, momentum) =
            unsafe { (parameter.get(range.clone()), momentum.as_ref().map(|momentum| momentum.get(range.clone()))) };
        cpu.level().run(Piece { hyper, parameter, gradient: &gradient[range], momentum });
    });
}

struct Piece<'a> {
    hyper: &'a Hyper,
    parameter: &'a mut [f32],
    gradient: &'a [f32],
    momentum: Option<&'a mut [f32]>,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let [grad_factor, decay] = [self.hyper.grad_factor, self.hyper.weight_decay].map(V::splat);
        let [rate, keep] = [self.hyper.learning_rate, self.hyper.momentum].map(V::splat);
        let length = self.parameter.len();
        for i in (0..length).step_by(V::LANES) {
            let left = length - i;
            // SAFETY: all have `length` elements, of which `left` are left here.
            unsafe {
                let place = self.parameter.as_mut_ptr().add(i);
                let p = V::load_up_to(place, left);
                let g = V::load_up_to(self.gradient.as_ptr().add(i), left).mul(grad_factor);
                let mut direction = p.mul_add(decay, g);
                if let Some(momentum) = &mut self.momentum {
                    let momentum = momentum.as_mut_ptr().add(i);
                    direction = V::load_up_to(momentum, left).mul_add(keep, direction);
                    direction.store_up_to(momentum, left);
                }
                direction.neg_mul_add(rate, p).store_up_to(place, left);
            }
        }
    }
}
