//! Rotary positions on the tape. What is kept for the backward pass: the position ids. The gradient is turned back where
//! it lies, and handed on.

use super::run::Run;
use super::{Error, Needs, Operation, Tape, Value};
use crate::ops;
use crate::ops::rotary::{Backward, Forward, Shape};
use crate::ops::{View, ViewMut};

/// What rotary positions need to know besides their input.
#[derive(Clone, Copy, Debug)]
pub struct RotaryOptions {
    /// `H`
    pub heads: usize,
    /// `HK`
    pub key_value_heads: usize,
    /// Columns of each head that are turned, an even number; `None` for all.
    pub rotary_columns: Option<usize>,
    /// Base of the frequencies, 10,000 in the paper.
    pub base: f64,
}

struct Rotary {
    shape: Shape,
    has_position_ids: bool,
}

impl Tape<'_> {
    /// Records the turning of queries and keys by their positions: those of `position_ids`, ids `(B, T)`, or else
    /// counted from each sequence's first: the run's (see `RunOptions::positions`), 0 where none is given.
    ///
    /// # Shapes
    /// qkv `(B, T, (H + 2·HK)·D)`, and so the result.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn rotary(&mut self, qkv: Value, options: &RotaryOptions, position_ids: Option<Value>) -> Result<Value, Error> {
        let RotaryOptions { heads, key_value_heads, rotary_columns, base } = *options;
        let name = &self.values[qkv.0].name;
        let error = |what: String| Err(Error::Shape { operation: "rotary", what });
        let &[batch, time, columns] = self.shape(qkv) else {
            return error(format!("{name} is {:?}, expected (batch, time, columns)", self.shape(qkv)));
        };
        let parts = heads + 2 * key_value_heads;
        if columns == 0 || parts == 0 || !columns.is_multiple_of(parts) {
            return error(format!("{name} has {columns} columns, which {parts} heads do not divide"));
        }
        let head_size = columns / parts;
        let rotary_columns = rotary_columns.unwrap_or(head_size);
        if !rotary_columns.is_multiple_of(2) || rotary_columns > head_size {
            return error(format!("{rotary_columns} of {head_size} columns of a head cannot be turned in pairs"));
        }
        if let Some(position_ids) = position_ids {
            self.check_value("rotary", position_ids, &[batch, time])?;
        }
        let shape = Shape { batch, time, heads, key_value_heads, head_size, rotary_columns, base, first_position: 0 };
        let values: Vec<Value> = std::iter::once(qkv).chain(position_ids).collect();
        let node = Rotary { shape, has_position_ids: position_ids.is_some() };
        Ok(self.push_node(node, &values, &[], &[("rotary", vec![batch, time, columns], false)])?[0])
    }
}

impl Rotary {
    fn position_ids<'r>(&self, run: &Run<'r>) -> Option<View<'r, i32>> {
        self.has_position_ids.then(|| run.input_ids(1))
    }
}

impl Operation for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn backward_needs(&self) -> Option<Needs> {
        let inputs = if self.has_position_ids { vec![1] } else { vec![] };
        Some(Needs { inputs, passes_gradient_to: vec![0], completes_gradient: true, ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let call = |shape: &Shape, input: View<'_, f32>, output: ViewMut<'_, f32>| {
            ops::rotary::forward(run.device, shape, Forward { input, position_ids: self.position_ids(run), output })
        };
        let positions = &run.options.positions;
        if positions.is_empty() || self.has_position_ids {
            return call(&self.shape, run.input(0), run.output(0));
        }
        // Sequences of a batch that is being decoded stand at different positions: one call for each.
        let length = self.shape.time * self.shape.columns();
        let (input, mut rest) = (run.input(0), run.output(0));
        for (b, &first_position) in positions.iter().enumerate().take(self.shape.batch) {
            let shape = Shape { batch: 1, first_position, ..self.shape };
            let output;
            (output, rest) = rest.split_at(length);
            call(&shape, input.slice(b * length..(b + 1) * length), output)?;
        }
        Ok(())
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        // All of the gradient has arrived: there is something in it to turn.
        let (gradient, _) = run.completed_gradient();
        ops::rotary::backward(run.device, &self.shape, Backward { position_ids: self.position_ids(run), gradient })
    }
}
