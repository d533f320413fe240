//! Tables of relative-position biases on the tape: made once and given to the attention of every layer that shares them.
//! Nothing is kept for the backward pass.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::relative_bias::{Backward, Forward, Kind, Shape, check};

struct RelativeBias {
    shape: Shape,
}

impl Tape<'_> {
    /// Records a table of biases by distance, for [`AttentionInputs::relative_bias`](super::AttentionInputs).
    ///
    /// # Shapes
    /// weight `(buckets, heads)`, none for ALiBi; result `(heads, 2·radius - 1)`.
    ///
    /// # Errors
    /// Sizes that make no table, or a weight of other sizes, missing or too much.
    pub fn relative_bias(
        &mut self,
        kind: Kind,
        heads: usize,
        radius: usize,
        weight: Option<ParameterId>,
    ) -> Result<Value, Error> {
        let shape = Shape { kind, heads, radius };
        check(&shape)?;
        let error = |what: &str| Err(Error::Shape { operation: "relative_bias", what: what.to_owned() });
        match (kind, weight) {
            (Kind::Buckets { buckets, .. }, Some(id)) => {
                self.check_parameter("relative_bias", id, &[buckets, heads])?
            }
            (Kind::Alibi, None) => {}
            (Kind::Buckets { .. }, None) => return error("buckets need a weight"),
            (Kind::Alibi, Some(_)) => return error("ALiBi has no weight"),
        }
        let parameters: Vec<ParameterId> = weight.into_iter().collect();
        let output = [("relative_bias", vec![heads, shape.columns()], false)];
        Ok(self.push_node(RelativeBias { shape }, &[], &parameters, &output)?[0])
    }
}

impl Operation for RelativeBias {
    fn name(&self) -> &'static str {
        "relative_bias"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs::default())
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let weight = (!run.parameter_ids.is_empty()).then(|| run.parameter(0));
        ops::relative_bias::forward(run.device, &self.shape, Forward { weight, table: run.output(0) })
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        // ALiBi has nothing to learn, and a weight may be frozen.
        if run.parameter_ids.is_empty() {
            return Ok(());
        }
        let Some((grad_weight, write)) = run.grad_parameter(0) else { return Ok(()) };
        let arguments = Backward { grad_table: run.grad_output(0), grad_weight, write };
        ops::relative_bias::backward(run.device, &self.shape, arguments)
    }
}
