//! AdamW on the CPU: one pass that reads four streams and writes three, 28 bytes for each parameter. That is
//! all the time it takes: software prefetching, 1 or 4 KB ahead, and larger pieces changed nothing.

use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint};
use crate::ops::adamw::*;

/// Parameters in one task.
const PIECE: usize = 32 * 1024;

/// Updates parameters and moments in place.
pub fn update(cpu: &Cpu, hyper: &Hyper, arguments: Update<'_>) {
    let gradient = arguments.gradient.host();
    let parameter = Disjoint::new(arguments.parameter.host());
    let first_moment = Disjoint::new(arguments.first_moment.host());
    let second_moment = Disjoint::new(arguments.second_moment.host());
    let factors = Factors::new(hyper);
    cpu.pool().run_pieces(gradient.len(), PIECE, |_, range| {
        // SAFETY: the ranges of different tasks do not overlap.
        let (parameter, first_moment, second_moment) = unsafe {
            (parameter.get(range.clone()), first_moment.get(range.clone()), second_moment.get(range.clone()))
        };
        let gradient = &gradient[range];
        cpu.level().run(Piece { factors, parameter, gradient, first_moment, second_moment });
    });
}

struct Piece<'a> {
    factors: Factors,
    parameter: &'a mut [f32],
    gradient: &'a [f32],
    first_moment: &'a mut [f32],
    second_moment: &'a mut [f32],
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let f = self.factors;
        let [beta1, one_minus_beta1] = [f.beta1, f.one_minus_beta1].map(V::splat);
        let [beta2, one_minus_beta2] = [f.beta2, f.one_minus_beta2].map(V::splat);
        let [grad_factor, keep, step_size] = [f.grad, f.keep, f.step_size].map(V::splat);
        let [reciprocal_correction, epsilon] = [f.reciprocal_correction, f.epsilon].map(V::splat);
        let length = self.parameter.len();
        for i in (0..length).step_by(V::LANES) {
            let left = length - i;
            // SAFETY: all four have `length` elements, of which `left` are left here.
            unsafe {
                let p_place = self.parameter.as_mut_ptr().add(i);
                let m_place = self.first_moment.as_mut_ptr().add(i);
                let v_place = self.second_moment.as_mut_ptr().add(i);
                let g = V::load_up_to(self.gradient.as_ptr().add(i), left).mul(grad_factor);
                let m = V::load_up_to(m_place, left).mul(beta1);
                let m = g.mul_add(one_minus_beta1, m);
                let v = V::load_up_to(v_place, left).mul(beta2);
                let v = g.mul(g).mul_add(one_minus_beta2, v);
                let denominator = v.sqrt().mul_add(reciprocal_correction, epsilon);
                let p = V::load_up_to(p_place, left).mul(keep);
                let p = p.sub(m.mul(step_size).div(denominator));
                m.store_up_to(m_place, left);
                v.store_up_to(v_place, left);
                p.store_up_to(p_place, left);
            }
        }
    }
}
