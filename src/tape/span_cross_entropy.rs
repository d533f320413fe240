//! The loss of extractive question answering on the tape, computed together with its gradient when the backward pass
//! reaches it.

use super::loss::values_to_replace;
use super::run::Run;
use super::{Error, Loss, Needs, Operation, Tape, Targets, Value};
use crate::ops::span_cross_entropy::{Forward, ForwardBackward, Shape};
use crate::ops::{self, IGNORED};

struct SpanCrossEntropy {
    shape: Shape,
}

impl Tape<'_> {
    /// Records, for each span of positions, the mean of the cross-entropies of where its answer starts and ends, and
    /// makes it one of the tape's losses. Each softmax runs over the span's own positions alone.
    ///
    /// # Shapes
    /// logits `(.., 2)`: of a start and of an end at each position of the flattened batch. spans `(M, 3)`, ids: position
    /// of "no answer" or -1, first position, the one behind the last; in order and apart. targets `(M, 2)`, ids:
    /// positions of the answer's first and last token, the one of "no answer" twice, or [`IGNORED`] twice for a span
    /// that is not counted. To fill a batch up, `(-1, end, end)` is an empty span.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn span_cross_entropy(&mut self, logits: Value, spans: Value, targets: Value) -> Result<Loss, Error> {
        let operation = "span_cross_entropy";
        let (positions, sides) = self.rows_and_columns(operation, logits)?;
        if sides != 2 {
            let what = format!("logits are {:?}, expected (.., 2)", self.shape(logits));
            return Err(Error::Shape { operation, what });
        }
        let count = self.shape(spans).first().copied().unwrap_or(0);
        self.check_value(operation, spans, &[count, 3])?;
        self.check_value(operation, targets, &[count, 2])?;
        let node = SpanCrossEntropy { shape: Shape { positions, spans: count, ignored: IGNORED } };
        let losses = self.push_node(node, &[logits, spans, targets], &[], &[("loss", vec![count], false)])?[0];
        Ok(self.push_loss(losses, targets))
    }
}

impl Operation for SpanCrossEntropy {
    fn name(&self) -> &'static str {
        "span_cross_entropy"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![0, 1, 2], is_loss: true, in_place: Some(0), ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let (spans, targets, losses) = (run.input_ids(1), run.input_ids(2), run.output(0));
        let arguments = Forward { logits: run.input(0), spans, targets, losses };
        ops::span_cross_entropy::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some(logits) = values_to_replace(run, self.name())? else { return self.forward(run) };
        let (spans, targets, losses) = (run.input_ids(1), run.input_ids(2), run.output(0));
        let arguments = ForwardBackward { logits, spans, targets, losses, grad_loss: run.grad_loss };
        ops::span_cross_entropy::forward_backward(run.device, &self.shape, arguments)
    }

    fn weigh(&self, targets: Targets<'_>) -> f64 {
        targets.ids().chunks(2).filter(|pair| pair.iter().any(|&target| target != IGNORED)).count() as f64
    }
}
