//! Checks of every kernel against the f64 references of `ops`, on any GPU: the emulated one under the sanitizer in
//! `cargo test` and `engine-bench sanitize`, a real one in `engine-bench verify`.

use super::span_cross_entropy;
use super::{
    activation, adamw, add, attention, dropout, embedding, ffn, gated_conv, grad_norm, key_value_cache, layer_norm,
};
use super::{
    linear, linear_cross_entropy, low_rank, mean_rows, pointwise_loss, relative_bias, rotary, scale, sgd,
    softmax_cross_entropy,
};
use crate::ops::Device;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A claim about an operation's kernels.
pub struct Check {
    /// The operation, and what is claimed.
    pub name: &'static str,
    /// Panics where the claim does not hold.
    pub(crate) claim: fn(&Device),
}

impl Check {
    /// Checks the claim on a device.
    ///
    /// # Errors
    /// It does not hold, or the device failed: what the assertion said.
    pub fn run(&self, device: &Device) -> Result<(), String> {
        // What a claim leaves behind is the device alone, which reports for itself what happened to it.
        catch_unwind(AssertUnwindSafe(|| (self.claim)(device))).map_err(|payload| {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
        })
    }
}

/// All checks, operation by operation.
pub fn all() -> impl Iterator<Item = &'static Check> {
    [
        add::checks::ALL,
        scale::checks::ALL,
        dropout::checks::ALL,
        embedding::checks::ALL,
        layer_norm::checks::ALL,
        linear::checks::ALL,
        activation::checks::ALL,
        ffn::checks::ALL,
        gated_conv::checks::ALL,
        attention::checks::ALL,
        key_value_cache::checks::ALL,
        relative_bias::checks::ALL,
        softmax_cross_entropy::checks::ALL,
        linear_cross_entropy::checks::ALL,
        low_rank::checks::ALL,
        mean_rows::checks::ALL,
        pointwise_loss::checks::ALL,
        span_cross_entropy::checks::ALL,
        rotary::checks::ALL,
        grad_norm::checks::ALL,
        adamw::checks::ALL,
        sgd::checks::ALL,
    ]
    .into_iter()
    .flatten()
}

/// Runs the checks of an operation on emulated devices under the sanitizer.
#[cfg(test)]
pub(crate) fn hold(checks: &[Check]) {
    for check in checks {
        println!("{}", check.name);
        (check.claim)(&super::testing::device());
    }
}
