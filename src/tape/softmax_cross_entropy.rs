//! Softmax cross-entropy on the tape: a loss, computed together with its gradient when the backward pass reaches it,
//! in the memory of the logits where nobody else needs them.

use super::run::Run;
use super::{Error, Loss, Needs, Operation, Tape, Value};
use crate::ops;
use crate::ops::softmax_cross_entropy::{Forward, ForwardBackward, Shape};
use crate::ops::{IGNORED, Write};

struct SoftmaxCrossEntropy {
    shape: Shape,
}

impl Tape<'_> {
    /// Records the loss of every row of `logits` against `targets`, and makes it one of the tape's losses.
    ///
    /// # Shapes
    /// logits `(.., V)`, targets as many ids as there are rows; [`IGNORED`] marks rows that are not counted.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn softmax_cross_entropy(
        &mut self,
        logits: Value,
        targets: Value,
        label_smoothing: f32,
    ) -> Result<Loss, Error> {
        let (rows, vocabulary) = self.rows_and_columns("softmax_cross_entropy", logits)?;
        self.check_rows("softmax_cross_entropy", targets, rows)?;
        let operation = SoftmaxCrossEntropy { shape: Shape { rows, vocabulary, label_smoothing, ignored: IGNORED } };
        let losses = self.push_node(operation, &[logits, targets], &[], &[("loss", vec![rows], false)])?[0];
        Ok(self.push_loss(losses, targets))
    }

    /// Fails unless the value holds one element a row.
    pub(super) fn check_rows(&self, operation: &'static str, value: Value, rows: usize) -> Result<(), Error> {
        let info = &self.values[value.0];
        if info.length() == rows {
            return Ok(());
        }
        let what = format!("{} has {} elements for {rows} rows", info.name, info.length());
        Err(Error::Shape { operation, what })
    }

    pub(super) fn push_loss(&mut self, losses: Value, targets: Value) -> Loss {
        let loss = Loss { losses, targets };
        self.losses.push(loss);
        loss
    }
}

impl Operation for SoftmaxCrossEntropy {
    fn name(&self) -> &'static str {
        "softmax_cross_entropy"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![0, 1], is_loss: true, in_place: Some(0), ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward { logits: run.input(0), targets: run.input_ids(1), losses: run.output(0) };
        ops::softmax_cross_entropy::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let targets = run.input_ids(1);
        let Some((mut grad_logits, write)) = run.grad_input(0) else { return self.forward(run) };
        if write == Write::Add {
            let what = "these logits have a gradient from elsewhere already: give each loss logits of its own";
            return Err(ops::Error { operation: self.name(), what: what.to_owned() });
        }
        if !run.is_in_place(0) {
            ops::add::accumulate(run.device, run.input(0), grad_logits.reborrow(), Write::Set)?;
        }
        let grad_loss = run.grad_loss(1);
        let arguments = ForwardBackward { logits: grad_logits, targets, losses: run.output(0), grad_loss };
        ops::softmax_cross_entropy::forward_backward(run.device, &self.shape, arguments)
    }
}
