//! Activations and their derivatives on vectors.
//!
//! GELU's tanh form is computed as `z · σ(2u)`, because `(1 + tanh u) / 2 = 1 / (1 + e^(-2u))` exactly: one
//! exponential and one division, and no cancellation for negative `z`, where `1 + tanh u` would lose every digit.
//! Each function works lane by lane, so an element's bits do not depend on its place in a vector: that is what makes
//! a recomputed activation equal to the one that was kept.

use crate::cpu::simd::{Vector, math::exp};
use crate::ops::linear::Activation;

/// √(2/π)
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// Cubic coefficient of GELU's tanh approximation.
const GELU_CUBIC: f32 = 0.044_715;
/// 1/√(2π)
const INVERSE_SQRT_2_PI: f32 = 0.398_942_3;

/// `activation(z)`; SwiGLU, which takes two operands, has [`swiglu`].
#[inline(always)]
pub fn apply<V: Vector>(activation: Activation, z: V) -> V {
    match activation {
        Activation::Identity | Activation::SwiGlu => z,
        // NaN must stay NaN, so zero is the first operand: max gives the second where either is NaN.
        Activation::Relu => V::zero().max(z),
        Activation::GeluTanh => z.mul(gelu_gate(z)),
        Activation::GeluErf => z.mul(normal_distribution(z)),
    }
}

/// `d activation / dz` at `z`; SwiGLU has [`swiglu_gradient`].
#[inline(always)]
pub fn derivative<V: Vector>(activation: Activation, z: V) -> V {
    let one = V::splat(1.0);
    match activation {
        Activation::Identity | Activation::SwiGlu => one,
        Activation::Relu => V::select(V::zero().less(z), one, V::zero()),
        Activation::GeluTanh => {
            // y = z s(2u): y' = s + z s (1 - s) 2u'.
            let gate = gelu_gate(z);
            let slope = V::splat(2.0 * SQRT_2_OVER_PI * 3.0 * GELU_CUBIC)
                .mul_add(z.mul(z), V::splat(2.0 * SQRT_2_OVER_PI))
                .mul(gate.mul(one.sub(gate)));
            z.mul_add(slope, gate)
        }
        Activation::GeluErf => {
            let density = exp(z.mul(z).mul(V::splat(-0.5))).mul(V::splat(INVERSE_SQRT_2_PI));
            z.mul_add(density, normal_distribution(z))
        }
    }
}

/// `silu(gate) · up`.
#[inline(always)]
pub fn swiglu<V: Vector>(gate: V, up: V) -> V {
    gate.mul(sigmoid(gate)).mul(up)
}

/// Gradients of `silu(gate) · up` with respect to `gate` and `up`, for the gradient `grad` of the result.
#[inline(always)]
pub fn swiglu_gradient<V: Vector>(gate: V, up: V, grad: V) -> (V, V) {
    let s = sigmoid(gate);
    let slope = gate.mul_add(s.mul(V::splat(1.0).sub(s)), s);
    (grad.mul(up).mul(slope), grad.mul(gate.mul(s)))
}

/// 1 / (1 + e^-x)
#[inline(always)]
fn sigmoid<V: Vector>(x: V) -> V {
    let one = V::splat(1.0);
    one.div(one.add(exp(V::zero().sub(x))))
}

/// `(1 + tanh u) / 2 = σ(2u)` with `u = √(2/π) (z + 0.044715 z³)`.
#[inline(always)]
fn gelu_gate<V: Vector>(z: V) -> V {
    let scale = V::splat(2.0 * SQRT_2_OVER_PI * GELU_CUBIC).mul_add(z.mul(z), V::splat(2.0 * SQRT_2_OVER_PI));
    sigmoid(z.mul(scale))
}

/// `Φ(z) = (1 + erf(z/√2)) / 2`.
#[inline(always)]
fn normal_distribution<V: Vector>(z: V) -> V {
    erf(z.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2))).mul_add(V::splat(0.5), V::splat(0.5))
}

/// The error function within 5e-7 (Abramowitz and Stegun, formula 7.1.26).
#[inline(always)]
fn erf<V: Vector>(x: V) -> V {
    let one = V::splat(1.0);
    let magnitude = x.abs();
    let t = one.div(magnitude.mul_add(V::splat(0.327_591_1), one));
    let mut p = V::splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = p.mul_add(t, V::splat(c));
    }
    let result = p.mul(t).neg_mul_add(exp(V::zero().sub(x.mul(x))), one);
    V::select(x.less(V::zero()), V::zero().sub(result), result)
}
