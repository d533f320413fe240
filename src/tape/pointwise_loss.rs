//! Binary cross-entropy and the squared error on the tape: losses against float targets, computed together with their
//! gradients when the backward pass reaches them.

use super::loss::values_to_replace;
use super::run::Run;
use super::{Error, Loss, Needs, Operation, Tape, Targets, Value};
use crate::ops;
use crate::ops::pointwise_loss::{Forward, ForwardBackward, Kind, Shape};

struct PointwiseLoss {
    shape: Shape,
}

impl Tape<'_> {
    /// Records the binary cross-entropy of every row of `logits` against its labels, the mean over labels, and makes
    /// it one of the tape's losses.
    ///
    /// # Shapes
    /// logits and targets `(.., V)`; targets are floats in 0..=1, and NaN where a label is unknown. A row without any
    /// is not counted.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn binary_cross_entropy(&mut self, logits: Value, targets: Value) -> Result<Loss, Error> {
        self.push_pointwise_loss(logits, targets, Kind::BinaryCrossEntropy)
    }

    /// Records the squared error of every row of `predictions`, the mean over its columns, and makes it one of the
    /// tape's losses.
    ///
    /// # Shapes
    /// predictions and targets `(.., V)`; targets are floats, and NaN where there is none. A row without any is not
    /// counted.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn squared_error(&mut self, predictions: Value, targets: Value) -> Result<Loss, Error> {
        self.push_pointwise_loss(predictions, targets, Kind::SquaredError)
    }

    fn push_pointwise_loss(&mut self, predictions: Value, targets: Value, kind: Kind) -> Result<Loss, Error> {
        let operation = PointwiseLoss::name_of(kind);
        let (rows, columns) = self.rows_and_columns(operation, predictions)?;
        let shape = self.shape(predictions).to_vec();
        self.check_value(operation, targets, &shape)?;
        let node = PointwiseLoss { shape: Shape { rows, columns, kind } };
        let losses = self.push_node(node, &[predictions, targets], &[], &[("loss", vec![rows], false)])?[0];
        Ok(self.push_loss(losses, targets))
    }
}

impl PointwiseLoss {
    fn name_of(kind: Kind) -> &'static str {
        match kind {
            Kind::BinaryCrossEntropy => "binary_cross_entropy",
            Kind::SquaredError => "squared_error",
        }
    }
}

impl Operation for PointwiseLoss {
    fn name(&self) -> &'static str {
        Self::name_of(self.shape.kind)
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![0, 1], is_loss: true, in_place: Some(0), ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward { predictions: run.input(0), targets: run.input(1), losses: run.output(0) };
        ops::pointwise_loss::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some(predictions) = values_to_replace(run, self.name())? else { return self.forward(run) };
        let (targets, losses) = (run.input(1), run.output(0));
        let arguments = ForwardBackward { predictions, targets, losses, grad_loss: run.grad_loss };
        ops::pointwise_loss::forward_backward(run.device, &self.shape, arguments)
    }

    fn weigh(&self, targets: Targets<'_>) -> f64 {
        let rows = targets.floats().chunks(self.shape.columns);
        rows.filter(|row| row.iter().any(|target| !target.is_nan())).count() as f64
    }
}
