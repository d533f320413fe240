//! A gated convolution as a layer: `y = W₂ · conv(W₁ · x)`, of which the depthwise convolution and its gate are one fused
//! operation (Dauphin et al. 2017; depthwise-separable as in Wu et al. 2019).

use super::block::{Affine, record_linear};
use super::config::Convolution;
use crate::ops::gated_conv::Window;
use crate::tape::{Cache, Error, GatedConvOptions, Parameters, Tape, Value};
use std::sync::Arc;

/// Parameters of a gated convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvolutionLayer {
    gate: Affine,
    depthwise: Affine,
    projection: Affine,
}

impl ConvolutionLayer {
    /// The layer whose parameters' names start with `prefix`, where there is one.
    pub(super) fn find(parameters: &Parameters, prefix: &str) -> Option<Self> {
        let part = |name: &str| Affine::find(parameters, &format!("{prefix}.{name}"));
        let has_layer = parameters.find(&format!("{prefix}.gate.weight")).is_some();
        has_layer.then(|| Self { gate: part("gate"), depthwise: part("depthwise"), projection: part("projection") })
    }

    /// Records the layer on `input`, `(B, T, C)`, inside each document.
    ///
    /// # Errors
    /// An even number of taps in a centred window.
    pub(super) fn record(
        &self,
        tape: &mut Tape<'_>,
        input: Value,
        convolution: Convolution,
        window: Window,
        documents: Option<Value>,
        residual: Option<Value>,
    ) -> Result<Value, Error> {
        let gated = record_linear(tape, input, &self.gate, None)?;
        let options = GatedConvOptions { window, dilation: convolution.dilation };
        let mixed = tape.gated_conv(gated, self.depthwise.weight, self.depthwise.bias, &options, documents)?;
        record_linear(tape, mixed, &self.projection, residual)
    }

    /// Records a step of decoding: the layer, in a causal window, on new tokens behind those in `cache`.
    ///
    /// # Errors
    /// A cache of another layer; a training tape.
    pub(super) fn record_next(
        &self,
        tape: &mut Tape<'_>,
        input: Value,
        convolution: Convolution,
        cache: &Arc<Cache>,
        residual: Option<Value>,
    ) -> Result<Value, Error> {
        let gated = record_linear(tape, input, &self.gate, None)?;
        let Affine { weight, bias } = self.depthwise;
        let mixed = tape.gated_conv_cached(gated, weight, bias, convolution.dilation, cache)?;
        record_linear(tape, mixed, &self.projection, residual)
    }
}
