//! Layer norm and RMS norm on the tape, alone or with a residual added first. What is kept for the backward pass: what
//! was normalised, and one or two numbers a row.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::layer_norm::{Backward, Forward, Norm, Shape, Statistics};
use crate::ops::{View, ViewMut};

struct LayerNorm {
    shape: Shape,
    has_bias: bool,
}

/// Outputs: the sum, its norm, and the statistics.
struct LayerNormResidual(LayerNorm);

impl Tape<'_> {
    /// Records a norm over the last axis.
    ///
    /// # Errors
    /// Parameters that do not have as many elements as the input has columns; an RMS norm with a bias.
    pub fn layer_norm(
        &mut self,
        kind: Norm,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        epsilon: f32,
    ) -> Result<Value, Error> {
        let (operation, parameters) = self.new_layer_norm(kind, input, weight, bias, epsilon)?;
        let mut results = vec![("output", self.shape(input).to_vec(), false)];
        results.extend(operation.statistics());
        Ok(self.push_node(operation, &[input], &parameters, &results)?[0])
    }

    /// Records `input + residual` and the norm of that sum, as one operation; returns both, the sum first.
    ///
    /// # Errors
    /// Shapes that do not fit together; an RMS norm with a bias.
    pub fn layer_norm_residual(
        &mut self,
        kind: Norm,
        input: Value,
        residual: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        epsilon: f32,
    ) -> Result<(Value, Value), Error> {
        let shape = self.shape(input).to_vec();
        self.check_value("layer_norm", residual, &shape)?;
        let (operation, parameters) = self.new_layer_norm(kind, input, weight, bias, epsilon)?;
        let mut results = vec![("sum", shape.clone(), false), ("output", shape, false)];
        results.extend(operation.statistics());
        let values = self.push_node(LayerNormResidual(operation), &[input, residual], &parameters, &results)?;
        Ok((values[0], values[1]))
    }

    fn new_layer_norm(
        &self,
        kind: Norm,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        epsilon: f32,
    ) -> Result<(LayerNorm, Vec<ParameterId>), Error> {
        let (rows, channels) = self.rows_and_columns("layer_norm", input)?;
        if kind == Norm::Rms && bias.is_some() {
            return Err(Error::Shape { operation: "layer_norm", what: "an RMS norm has no bias".to_owned() });
        }
        let parameters: Vec<ParameterId> = std::iter::once(weight).chain(bias).collect();
        for &parameter in &parameters {
            self.check_parameter("layer_norm", parameter, &[channels])?;
        }
        Ok((LayerNorm { shape: Shape { kind, rows, channels, epsilon }, has_bias: bias.is_some() }, parameters))
    }
}

impl LayerNorm {
    /// The outputs that are for the backward pass: the reciprocal deviation, and of a layer norm the mean.
    fn statistics(&self) -> impl Iterator<Item = (&'static str, Vec<usize>, bool)> {
        let names: &[&str] = match self.shape.kind {
            Norm::Layer => &["reciprocal_deviation", "mean"],
            Norm::Rms => &["reciprocal_deviation"],
        };
        let rows = self.shape.rows;
        names.iter().map(move |name| (*name, vec![rows], true))
    }

    /// Where the mean stands among the outputs whose statistics begin at `first`.
    fn mean_place(&self, first: usize) -> Option<usize> {
        (self.shape.kind == Norm::Layer).then_some(first + 1)
    }

    /// The statistics to write, in the outputs from `first` on, where the backward pass wants them.
    fn written<'r>(&self, run: &Run<'r>, first: usize) -> Option<Statistics<ViewMut<'r, f32>>> {
        let reciprocal_deviation = run.output_or_none(first)?;
        Some(Statistics { mean: self.mean_place(first).map(|place| run.output(place)), reciprocal_deviation })
    }

    /// The statistics that were written.
    fn saved<'r>(&self, run: &Run<'r>, first: usize) -> Statistics<View<'r, f32>> {
        let mean = self.mean_place(first).map(|place| run.saved_output(place));
        Statistics { mean, reciprocal_deviation: run.saved_output(first) }
    }

    /// All that the backward pass needs of the outputs: of those before `first`, the ones in `also`; the statistics.
    fn saved_outputs(&self, also: &[usize], first: usize) -> Vec<usize> {
        also.iter().copied().chain([first]).chain(self.mean_place(first)).collect()
    }
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![0], outputs: self.saved_outputs(&[], 1), ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            input: run.input(0),
            residual: None,
            weight: run.parameter(0),
            bias: self.has_bias.then(|| run.parameter(1)),
            output: run.output(0),
            statistics: self.written(run, 1),
        };
        ops::layer_norm::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Backward {
            input: run.input(0),
            weight: run.parameter(0),
            statistics: self.saved(run, 1),
            grad_output: run.grad_output(0),
            grad_input: run.grad_input(0),
            grad_weight: run.grad_parameter(0),
            grad_bias: if self.has_bias { run.grad_parameter(1) } else { None },
        };
        ops::layer_norm::backward(run.device, &self.shape, arguments)
    }
}

impl Operation for LayerNormResidual {
    fn name(&self) -> &'static str {
        "layer_norm_residual"
    }

    fn backward_needs(&self) -> Option<Needs> {
        // Both inputs get the gradient of the sum, which is what arrives there plus what the norm adds.
        let passes_gradient_to = vec![0, 1];
        let outputs = self.0.saved_outputs(&[0], 2);
        Some(Needs { outputs, passes_gradient_to, completes_gradient: true, ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            input: run.input(0),
            residual: Some((run.input(1), run.output(0))),
            weight: run.parameter(0),
            bias: self.0.has_bias.then(|| run.parameter(1)),
            output: run.output(1),
            statistics: self.0.written(run, 2),
        };
        ops::layer_norm::forward(run.device, &self.0.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some(grad_output) = run.grad_output_or_none(1) else {
            let what = "no loss depends on the norm, only on the sum: record an add instead";
            return Err(ops::Error { operation: self.name(), what: what.to_owned() });
        };
        let arguments = Backward {
            input: run.saved_output(0),
            weight: run.parameter(0),
            statistics: self.0.saved(run, 2),
            grad_output,
            grad_input: Some(run.completed_gradient()),
            grad_weight: run.grad_parameter(0),
            grad_bias: if self.0.has_bias { run.grad_parameter(1) } else { None },
        };
        ops::layer_norm::backward(run.device, &self.0.shape, arguments)
    }
}
