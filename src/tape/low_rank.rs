//! Adapted weights on the tape: a layer whose weight is frozen computes with `W + s · B · A`, made anew in scratch memory for
//! each pass, and its backward pass adds the gradients of A and B. What is kept for that is what the layer keeps itself.

use super::run::Run;
use super::{Error, ParameterId, Tape};
use crate::ops;
use crate::ops::low_rank::{Backward, Factors, Shape};
use crate::ops::{View, ViewMut};

/// The two matrices of low-rank adaptation beside a weight `(outputs, inputs)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank {
    /// A: `(rank, inputs)`
    pub down: ParameterId,
    /// B: `(outputs, rank)`
    pub up: ParameterId,
    /// `s`
    pub scale: f32,
}

/// The adapted weight of an operation.
pub(super) struct AdaptedWeight {
    shape: Shape,
    scale: f32,
    /// Where the weight stands among the operation's parameters, and where A does, with B behind it.
    weight: usize,
    factors: usize,
}

impl AdaptedWeight {
    /// For a layer of `rows`, whose weight is `parameters[weight]`. Appends the two matrices to these.
    ///
    /// # Errors
    /// Matrices that do not fit the weight, or of which one alone learns.
    pub(super) fn record(
        tape: &Tape<'_>,
        operation: &'static str,
        rows: usize,
        weight: usize,
        low_rank: LowRank,
        parameters: &mut Vec<ParameterId>,
    ) -> Result<Self, Error> {
        let &[outputs, inputs] = tape.parameters.shape(parameters[weight]) else {
            return Err(Error::Shape { operation, what: "the weight that is adapted is no matrix".to_owned() });
        };
        let LowRank { down, up, scale } = low_rank;
        let rank = tape.parameters.shape(down).first().copied().unwrap_or(0);
        tape.check_parameter(operation, down, &[rank, inputs])?;
        tape.check_parameter(operation, up, &[outputs, rank])?;
        let [learns, other] = [down, up].map(|id| tape.parameters.specification(id).trainable);
        if learns != other {
            let what = "of the two matrices of an adapter one is frozen: both learn, or none".to_owned();
            return Err(Error::Shape { operation, what });
        }
        let factors = parameters.len();
        parameters.extend([down, up]);
        Ok(Self { shape: Shape { rows, inputs, outputs, rank }, scale, weight, factors })
    }

    /// Floats of the merged weight.
    pub(super) fn length(&self) -> usize {
        self.shape.outputs * self.shape.inputs
    }

    fn factors<'r>(&self, run: &Run<'r>) -> Factors<'r> {
        Factors { down: run.parameter(self.factors), up: run.parameter(self.factors + 1), scale: self.scale }
    }

    /// Makes the merged weight in `memory`.
    pub(super) fn merge<'r>(&self, run: &Run<'r>, mut memory: ViewMut<'r, f32>) -> Result<View<'r, f32>, ops::Error> {
        let weight = run.parameter(self.weight);
        ops::low_rank::merge(run.device, &self.shape, self.factors(run), weight, memory.reborrow())?;
        Ok(memory.into())
    }

    /// Computes the gradients of the two matrices from the layer's input and the gradient of its product with the weight.
    pub(super) fn backward(
        &self,
        run: &Run<'_>,
        input: View<'_, f32>,
        grad_output: View<'_, f32>,
    ) -> Result<(), ops::Error> {
        let grads = (run.grad_parameter(self.factors), run.grad_parameter(self.factors + 1));
        let (Some(grad_down), Some(grad_up)) = grads else { return Ok(()) };
        let factors = self.factors(run);
        ops::low_rank::backward(run.device, &self.shape, Backward { factors, input, grad_output, grad_down, grad_up })
    }
}

/// The weight that a layer computes with: the parameter at `place`, or the merged one where it is adapted.
pub(super) fn weight<'r>(
    run: &Run<'r>,
    place: usize,
    adapted: Option<&AdaptedWeight>,
    memory: ViewMut<'r, f32>,
) -> Result<View<'r, f32>, ops::Error> {
    adapted.map_or(Ok(run.parameter(place)), |adapted| adapted.merge(run, memory))
}
