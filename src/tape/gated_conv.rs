//! The gated convolution on the tape. What is kept for the backward pass: the input.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::gated_conv::{Backward, DILATION_MAX, Forward, Shape, TAPS_MAX, Window};

/// What a gated convolution needs to know besides its input.
#[derive(Clone, Copy, Debug)]
pub struct GatedConvOptions {
    pub window: Window,
    /// Positions from one tap to the next.
    pub dilation: usize,
}

struct GatedConv {
    shape: Shape,
    has_bias: bool,
    has_documents: bool,
}

impl Tape<'_> {
    /// Records `bias + Σ_k weight[k] · (a ⊙ σ(g))[t + (k - o) · dilation]`, see [`ops::gated_conv`].
    ///
    /// # Shapes
    /// input `(B, T, 2·C)`, weight `(C, K)`, bias `(C)`; documents ids `(B, T, 2)`: first position and end of each
    /// position's document, `(0, 0)` for padding. Result `(B, T, C)`.
    ///
    /// # Errors
    /// Shapes that do not fit together; more taps than there may be, or an even number in a centred window; no dilation.
    pub fn gated_conv(
        &mut self,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        options: &GatedConvOptions,
        documents: Option<Value>,
    ) -> Result<Value, Error> {
        let operation = "gated_conv";
        let shape = self.gated_conv_shape(operation, input, weight, bias, options)?;
        let Shape { batch, time, channels, .. } = shape;
        if let Some(documents) = documents {
            self.check_value(operation, documents, &[batch, time, 2])?;
        }
        let node = GatedConv { shape, has_bias: bias.is_some(), has_documents: documents.is_some() };
        let values: Vec<Value> = std::iter::once(input).chain(documents).collect();
        let parameters: Vec<ParameterId> = std::iter::once(weight).chain(bias).collect();
        let results = [("gated_conv", vec![batch, time, channels], false)];
        Ok(self.push_node(node, &values, &parameters, &results)?[0])
    }

    /// The sizes of a gated convolution of these, for an operation of this name.
    ///
    /// # Errors
    /// As [`gated_conv`](Self::gated_conv).
    pub(super) fn gated_conv_shape(
        &self,
        operation: &'static str,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        options: &GatedConvOptions,
    ) -> Result<Shape, Error> {
        let error = |what: String| Err(Error::Shape { operation, what });
        let &[batch, time, columns] = self.shape(input) else {
            return error(format!("the input is {:?}, expected (batch, time, columns)", self.shape(input)));
        };
        if !columns.is_multiple_of(2) {
            return error(format!("the input has {columns} columns, which are not two halves"));
        }
        let channels = columns / 2;
        let &[_, taps] = self.parameters.shape(weight) else {
            return error(format!("the weight is {:?}, expected (channels, taps)", self.parameters.shape(weight)));
        };
        self.check_parameter(operation, weight, &[channels, taps])?;
        if let Some(bias) = bias {
            self.check_parameter(operation, bias, &[channels])?;
        }
        let GatedConvOptions { window, dilation } = *options;
        let needs_odd = window != Window::Causal;
        if !(1..=TAPS_MAX).contains(&taps) || (needs_odd && taps.is_multiple_of(2)) {
            let kind = if needs_odd { "an odd number of taps" } else { "taps" };
            return error(format!("{taps} taps: this window has {kind}, 1 to {TAPS_MAX}"));
        }
        if !(1..=DILATION_MAX).contains(&dilation) {
            return error(format!("a dilation of {dilation}: use 1 to {DILATION_MAX}"));
        }
        Ok(Shape { batch, time, channels, taps, dilation, window })
    }
}

impl Operation for GatedConv {
    fn name(&self) -> &'static str {
        "gated_conv"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: (0..1 + usize::from(self.has_documents)).collect(), ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            input: run.input(0),
            weight: run.parameter(0),
            bias: self.has_bias.then(|| run.parameter(1)),
            documents: self.has_documents.then(|| run.input_ids(1)),
            output: run.output(0),
        };
        ops::gated_conv::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Backward {
            input: run.input(0),
            weight: run.parameter(0),
            documents: self.has_documents.then(|| run.input_ids(1)),
            grad_output: run.grad_output(0),
            grad_input: run.grad_input(0),
            grad_weight: run.grad_parameter(0),
            grad_bias: if self.has_bias { run.grad_parameter(1) } else { None },
        };
        ops::gated_conv::backward(run.device, &self.shape, arguments)
    }
}
