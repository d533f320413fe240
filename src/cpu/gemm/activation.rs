//! Activations and their derivatives on vectors, by name: the functions are those of [`crate::cpu::simd::math`].
//!
//! Each works lane by lane, so an element's bits do not depend on its place in a vector: that is what makes a
//! recomputed activation equal to the one that was kept.

use crate::cpu::simd::{Vector, math};
use crate::ops::linear::Activation;

/// `activation(z)`; SwiGLU, which takes two operands, has [`swiglu`].
#[inline(always)]
pub fn apply<V: Vector>(activation: Activation, z: V) -> V {
    match activation {
        Activation::Identity | Activation::SwiGlu => z,
        // NaN must stay NaN, so zero is the first operand: max gives the second where either is NaN.
        Activation::Relu => V::zero().max(z),
        Activation::GeluTanh => math::gelu_tanh(z),
        Activation::GeluErf => math::gelu_erf(z),
        Activation::Tanh => math::tanh(z),
    }
}

/// `d activation / dz` at `z`; SwiGLU has [`swiglu_gradient`].
#[inline(always)]
pub fn derivative<V: Vector>(activation: Activation, z: V) -> V {
    match activation {
        Activation::Identity | Activation::SwiGlu => V::splat(1.0),
        Activation::Relu => V::select(V::zero().less(z), V::splat(1.0), V::zero()),
        Activation::GeluTanh => math::gelu_tanh_gradient(z),
        Activation::GeluErf => math::gelu_erf_gradient(z),
        Activation::Tanh => math::tanh_gradient(z),
    }
}

/// `silu(gate) · up`.
#[inline(always)]
pub fn swiglu<V: Vector>(gate: V, up: V) -> V {
    math::silu(gate).mul(up)
}

/// Gradients of `silu(gate) · up` with respect to `gate` and `up`, for the gradient `grad` of the result.
#[inline(always)]
pub fn swiglu_gradient<V: Vector>(gate: V, up: V, grad: V) -> (V, V) {
    (grad.mul(up).mul(math::silu_gradient(gate)), grad.mul(math::silu(gate)))
}
