//! Softmax cross-entropy on the tape: a loss, computed together with its gradient when the backward pass reaches it,
//! in the memory of the logits where nobody else needs them.

use super::loss::values_to_replace;
use super::run::Run;
use super::{Error, Loss, Needs, Operation, Tape, Targets, Value};
use crate::ops::softmax_cross_entropy::{Forward, ForwardBackward, Shape};
use crate::ops::{self, IGNORED};

struct SoftmaxCrossEntropy {
    shape: Shape,
    class_weights: Option<Vec<f32>>,
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
        self.push_softmax_cross_entropy(logits, targets, label_smoothing, None)
    }

    /// As [`softmax_cross_entropy`](Self::softmax_cross_entropy), with a weight for each class: a row's loss is scaled
    /// by the weight of its target, and the mean divides by the sum of those weights, as in PyTorch.
    ///
    /// # Errors
    /// Shapes that do not fit together; weights that are not one for each class, finite and not negative.
    pub fn softmax_cross_entropy_weighted(
        &mut self,
        logits: Value,
        targets: Value,
        label_smoothing: f32,
        class_weights: &[f32],
    ) -> Result<Loss, Error> {
        self.push_softmax_cross_entropy(logits, targets, label_smoothing, Some(class_weights))
    }

    fn push_softmax_cross_entropy(
        &mut self,
        logits: Value,
        targets: Value,
        label_smoothing: f32,
        class_weights: Option<&[f32]>,
    ) -> Result<Loss, Error> {
        let name = "softmax_cross_entropy";
        let (rows, vocabulary) = self.rows_and_columns(name, logits)?;
        self.check_rows(name, targets, rows)?;
        if let Some(weights) = class_weights {
            check_class_weights(weights, vocabulary).map_err(|what| Error::Shape { operation: name, what })?;
        }
        let operation = SoftmaxCrossEntropy {
            shape: Shape { rows, vocabulary, label_smoothing, ignored: IGNORED },
            class_weights: class_weights.map(<[f32]>::to_vec),
        };
        let weights = class_weights.map(|weights| self.constant("class weights", &[vocabulary], weights));
        let inputs: Vec<Value> = [logits, targets].into_iter().chain(weights).collect();
        let losses = self.push_node(operation, &inputs, &[], &[("loss", vec![rows], false)])?[0];
        Ok(self.push_loss(losses, targets))
    }
}

fn check_class_weights(weights: &[f32], classes: usize) -> Result<(), String> {
    if weights.len() != classes {
        return Err(format!("{} weights for {classes} classes", weights.len()));
    }
    match weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0)) {
        Some(class) => Err(format!("the weight of class {class} is {}: it must be 0 or more", weights[class])),
        None => Ok(()),
    }
}

/// How many targets are not ignored.
pub(super) fn counted(targets: Targets<'_>) -> f64 {
    targets.ids().iter().filter(|&&id| id != IGNORED).count() as f64
}

impl Operation for SoftmaxCrossEntropy {
    fn name(&self) -> &'static str {
        "softmax_cross_entropy"
    }

    fn backward_needs(&self) -> Option<Needs> {
        let inputs = if self.class_weights.is_some() { vec![0, 1, 2] } else { vec![0, 1] };
        Some(Needs { inputs, is_loss: true, in_place: Some(0), ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            logits: run.input(0),
            targets: run.input_ids(1),
            class_weights: self.class_weights.is_some().then(|| run.input(2)),
            losses: run.output(0),
        };
        ops::softmax_cross_entropy::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let targets = run.input_ids(1);
        let Some(logits) = values_to_replace(run, self.name())? else { return self.forward(run) };
        let arguments = ForwardBackward {
            logits,
            targets,
            class_weights: self.class_weights.is_some().then(|| run.input(2)),
            losses: run.output(0),
            grad_loss: run.grad_loss,
        };
        ops::softmax_cross_entropy::forward_backward(run.device, &self.shape, arguments)
    }

    fn weigh(&self, targets: Targets<'_>) -> f64 {
        let Some(weights) = &self.class_weights else { return counted(targets) };
        // An id that is no class is refused as the operation runs.
        let weight = |&id: &i32| usize::try_from(id).ok().and_then(|class| weights.get(class));
        targets.ids().iter().filter_map(weight).map(|&weight| f64::from(weight)).sum()
    }
}
