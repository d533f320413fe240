//! Embedding on the tape: tokens, positions and token types. What is kept for the backward pass: the ids.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::ViewMut;
use crate::ops::embedding::{Backward, Forward, Ids, Shape};

/// Where position vectors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// A table `(positions, C)`.
    Learned(ParameterId),
    /// Sines and cosines (Vaswani et al. 2017).
    Sinusoidal,
}

/// What an embedding adds to its tokens' vectors, each optional.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbeddingInputs {
    pub positions: Option<Positions>,
    /// `(B, T)` ids: the position of each place. Where there are none, positions count up from each sequence's first:
    /// the run's (see `RunOptions::positions`), 0 where none is given.
    pub position_ids: Option<Value>,
    /// A table `(types, C)` of token types, and `(B, T)` ids of its rows.
    pub types: Option<(ParameterId, Value)>,
}

impl EmbeddingInputs {
    /// A learned table of positions, and nothing else.
    pub fn learned(position_table: ParameterId) -> Self {
        Self { positions: Some(Positions::Learned(position_table)), ..Self::default() }
    }
}

struct Embedding {
    shape: Shape,
    positions: Option<Positions>,
    has_position_ids: bool,
    has_types: bool,
}

impl Tape<'_> {
    /// Records `token_table[ids]` plus what `inputs` says.
    ///
    /// # Shapes
    /// ids `(B, T)`, token table `(V, C)`, result `(B, T, C)`.
    ///
    /// # Errors
    /// Shapes that do not fit together, or more tokens than positions.
    pub fn embedding(&mut self, ids: Value, token_table: ParameterId, inputs: EmbeddingInputs) -> Result<Value, Error> {
        let operation = "embedding";
        let (&[batch, time], &[vocabulary, channels]) = (self.shape(ids), self.parameters.shape(token_table)) else {
            let what = "ids must be (batch, time) and the table (vocabulary, channels)".to_owned();
            return Err(Error::Shape { operation, what });
        };
        let position_table = match inputs.positions {
            Some(Positions::Learned(table)) => Some(table),
            _ => None,
        };
        let positions = position_table.map_or(0, |table| self.parameters.shape(table)[0]);
        if let Some(table) = position_table {
            self.check_parameter(operation, table, &[positions, channels])?;
            if time > positions && inputs.position_ids.is_none() {
                let what = format!("{time} tokens, but positions for only {positions}");
                return Err(Error::Shape { operation, what });
            }
        }
        if let Some(position_ids) = inputs.position_ids {
            self.check_value(operation, position_ids, &[batch, time])?;
        }
        let types = inputs.types.map_or(0, |(table, _)| self.parameters.shape(table)[0]);
        if let Some((table, type_ids)) = inputs.types {
            self.check_parameter(operation, table, &[types, channels])?;
            self.check_value(operation, type_ids, &[batch, time])?;
        }
        let shape = Shape { batch, time, channels, vocabulary, positions, types, first_position: 0 };
        let type_table = inputs.types.map(|(table, _)| table);
        let parameters: Vec<ParameterId> =
            std::iter::once(token_table).chain(position_table).chain(type_table).collect();
        let type_ids = inputs.types.map(|(_, ids)| ids);
        let values: Vec<Value> = std::iter::once(ids).chain(inputs.position_ids).chain(type_ids).collect();
        let node = Embedding {
            shape,
            positions: inputs.positions,
            has_position_ids: inputs.position_ids.is_some(),
            has_types: inputs.types.is_some(),
        };
        Ok(self.push_node(node, &values, &parameters, &[("embedding", vec![batch, time, channels], false)])?[0])
    }
}

impl Embedding {
    fn ids<'r>(&self, run: &Run<'r>) -> Ids<'r> {
        Ids {
            tokens: run.input_ids(0),
            positions: self.has_position_ids.then(|| run.input_ids(1)),
            types: self.has_types.then(|| run.input_ids(1 + usize::from(self.has_position_ids))),
        }
    }

    fn has_position_table(&self) -> bool {
        matches!(self.positions, Some(Positions::Learned(_)))
    }

    /// Where the table of types stands among the parameters.
    fn types_place(&self) -> usize {
        1 + usize::from(self.has_position_table())
    }
}

impl Operation for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn backward_needs(&self) -> Option<Needs> {
        let inputs = 1 + usize::from(self.has_position_ids) + usize::from(self.has_types);
        Some(Needs { inputs: (0..inputs).collect(), ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let call = |shape: &Shape, ids: Ids<'_>, output: ViewMut<'_, f32>| {
            let arguments = Forward {
                ids,
                token_table: run.parameter(0),
                positions: self.positions.map(|positions| match positions {
                    Positions::Learned(_) => ops::embedding::Positions::Learned(run.parameter(1)),
                    Positions::Sinusoidal => ops::embedding::Positions::Sinusoidal,
                }),
                type_table: self.has_types.then(|| run.parameter(self.types_place())),
                output,
            };
            ops::embedding::forward(run.device, shape, arguments)
        };
        let positions = &run.options.positions;
        if positions.is_empty() || self.has_position_ids {
            return call(&self.shape, self.ids(run), run.output(0));
        }
        // Sequences of a batch that is being decoded stand at different positions: one call for each.
        let Shape { time, channels, .. } = self.shape;
        let (ids, mut rest) = (self.ids(run), run.output(0));
        for (b, &first_position) in positions.iter().enumerate().take(self.shape.batch) {
            let shape = Shape { batch: 1, first_position, ..self.shape };
            let places = b * time..(b + 1) * time;
            let types = ids.types.map(|ids| ids.slice(places.clone()));
            let output;
            (output, rest) = rest.split_at(time * channels);
            call(&shape, Ids { tokens: ids.tokens.slice(places), positions: None, types }, output)?;
        }
        Ok(())
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Backward {
            ids: self.ids(run),
            grad_output: run.grad_output(0),
            grad_token_table: run.grad_parameter(0),
            grad_position_table: if self.has_position_table() { run.grad_parameter(1) } else { None },
            grad_type_table: if self.has_types { run.grad_parameter(self.types_place()) } else { None },
        };
        ops::embedding::backward(run.device, &self.shape, arguments)
    }
}
