//! Token and position embedding on the tape. What is kept for the backward pass: the ids.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::embedding::{Backward, Forward, Shape};
use crate::ops::{View, ViewMut};

struct Embedding {
    shape: Shape,
    has_positions: bool,
}

impl Tape<'_> {
    /// Records `token_table[ids] + position_table[first position ..]`.
    ///
    /// In inference each sequence's first position is the run's (see `RunOptions::positions`), 0 where none is given.
    ///
    /// # Shapes
    /// ids `(B, T)`, token table `(V, C)`, position table `(block, C)`, result `(B, T, C)`.
    ///
    /// # Errors
    /// Shapes that do not fit together, or more tokens than positions.
    pub fn embedding(
        &mut self,
        ids: Value,
        token_table: ParameterId,
        position_table: Option<ParameterId>,
    ) -> Result<Value, Error> {
        let operation = "embedding";
        let (&[batch, time], &[vocabulary, channels]) = (self.shape(ids), self.parameters.shape(token_table)) else {
            let what = "ids must be (batch, time) and the table (vocabulary, channels)".to_owned();
            return Err(Error::Shape { operation, what });
        };
        let positions = position_table.map_or(0, |table| self.parameters.shape(table)[0]);
        if let Some(table) = position_table {
            self.check_parameter(operation, table, &[positions, channels])?;
            if time > positions {
                let what = format!("{time} tokens, but positions for only {positions}");
                return Err(Error::Shape { operation, what });
            }
        }
        let shape = Shape { batch, time, channels, vocabulary, positions, first_position: 0 };
        let parameters: Vec<ParameterId> = std::iter::once(token_table).chain(position_table).collect();
        let node = Embedding { shape, has_positions: position_table.is_some() };
        Ok(self.push_node(node, &[ids], &parameters, &[("embedding", vec![batch, time, channels], false)])?[0])
    }
}

impl Operation for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![0], ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let call = |shape: &Shape, ids: View<'_, i32>, output: ViewMut<'_, f32>| {
            let arguments = Forward {
                ids,
                token_table: run.parameter(0),
                position_table: self.has_positions.then(|| run.parameter(1)),
                output,
            };
            ops::embedding::forward(run.device, shape, arguments)
        };
        let positions = &run.options.positions;
        if positions.is_empty() {
            return call(&self.shape, run.input_ids(0), run.output(0));
        }
        // Sequences of a batch that is being decoded stand at different positions: one call for each.
        let Shape { time, channels, .. } = self.shape;
        let (ids, mut rest) = (run.input_ids(0), run.output(0));
        for (b, &first_position) in positions.iter().enumerate().take(self.shape.batch) {
            let shape = Shape { batch: 1, first_position, ..self.shape };
            let output;
            (output, rest) = rest.split_at(time * channels);
            call(&shape, ids.slice(b * time..(b + 1) * time), output)?;
        }
        Ok(())
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Backward {
            ids: run.input_ids(0),
            grad_output: run.grad_output(0),
            grad_token_table: run.grad_parameter(0),
            grad_position_table: if self.has_positions { run.grad_parameter(1) } else { None },
        };
        ops::embedding::backward(run.device, &self.shape, arguments)
    }
}
