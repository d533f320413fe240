//! Output projection and cross-entropy on the tape: a loss whose logits exist a chunk of rows at a time. In training
//! losses and gradients come from one pass, when the backward pass reaches it.

use super::run::Run;
use super::softmax_cross_entropy::counted;
use super::{Error, Loss, Needs, Operation, ParameterId, Tape, Targets, Value};
use crate::ops;
use crate::ops::IGNORED;
use crate::ops::linear_cross_entropy::{Forward, Gradients, Shape};
use crate::ops::softmax_cross_entropy::Shape as LossShape;

struct LinearCrossEntropy {
    shape: Shape,
    has_bias: bool,
}

impl Tape<'_> {
    /// Records the loss of every row of `input · weightᵀ + bias` against `targets`, and makes it one of the tape's losses.
    ///
    /// # Shapes
    /// input `(.., C)`, weight `(V, C)`, bias `(V)`, targets as many ids as there are rows; [`IGNORED`] marks rows that are not
    /// counted. `chunk_rows`: how many rows of logits exist at once; `None` for 64 MiB of them.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn linear_cross_entropy(
        &mut self,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        targets: Value,
        label_smoothing: f32,
        chunk_rows: Option<usize>,
    ) -> Result<Loss, Error> {
        let operation = "linear_cross_entropy";
        let (rows, channels) = self.rows_and_columns(operation, input)?;
        let vocabulary = self.parameters.shape(weight).first().copied().unwrap_or(0);
        self.check_parameter(operation, weight, &[vocabulary, channels])?;
        if let Some(bias) = bias {
            self.check_parameter(operation, bias, &[vocabulary])?;
        }
        self.check_rows(operation, targets, rows)?;
        let loss = LossShape { rows, vocabulary, label_smoothing, ignored: IGNORED };
        let chunk_rows = chunk_rows.unwrap_or_else(|| default_chunk_rows(rows, vocabulary)).clamp(1, rows.max(1));
        let node = LinearCrossEntropy { shape: Shape { loss, channels, chunk_rows }, has_bias: bias.is_some() };
        let parameters: Vec<ParameterId> = std::iter::once(weight).chain(bias).collect();
        let losses = self.push_node(node, &[input, targets], &parameters, &[("loss", vec![rows], false)])?[0];
        Ok(self.push_loss(losses, targets))
    }
}

impl LinearCrossEntropy {
    fn chunk_length(&self) -> usize {
        self.shape.chunk_rows.min(self.shape.loss.rows) * self.shape.loss.vocabulary
    }
}

impl Operation for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn forward_scratch(&self, _has_output: &[bool]) -> usize {
        self.chunk_length()
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![0, 1], scratch: self.chunk_length(), is_loss: true, ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        self.call(run, None)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let gradients = Gradients {
            grad_loss: run.grad_loss,
            grad_input: run.grad_input(0),
            grad_weight: run.grad_parameter(0),
            grad_bias: if self.has_bias { run.grad_parameter(1) } else { None },
        };
        self.call(run, Some(gradients))
    }

    fn weigh(&self, targets: Targets<'_>) -> f64 {
        counted(targets)
    }
}

impl LinearCrossEntropy {
    fn call(&self, run: &Run<'_>, gradients: Option<Gradients<'_>>) -> Result<(), ops::Error> {
        let arguments = Forward {
            input: run.input(0),
            weight: run.parameter(0),
            bias: self.has_bias.then(|| run.parameter(1)),
            targets: run.input_ids(1),
            logits: run.scratch_of(self.chunk_length()),
            losses: run.output(0),
            gradients,
        };
        ops::linear_cross_entropy::forward(run.device, &self.shape, arguments)
    }
}

/// Rows of logits that exist at once in a chunked loss: 64 MiB of them, but enough rows for an efficient product.
fn default_chunk_rows(rows: usize, vocabulary: usize) -> usize {
    const CHUNK_FLOATS: usize = 16 << 20;
    (CHUNK_FLOATS / vocabulary.max(1)).next_multiple_of(64).clamp(64, rows.max(64)).min(rows.max(1))
}
