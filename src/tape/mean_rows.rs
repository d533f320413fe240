//! Means of ranges of rows on the tape. What is kept for the backward pass: the ranges.

use super::run::Run;
use super::{Error, Needs, Operation, Tape, Value};
use crate::ops;
use crate::ops::mean_rows::{Backward, Forward, Shape};

struct MeanRows {
    shape: Shape,
}

impl Tape<'_> {
    /// Records the means of ranges of rows of a value seen as `(rows, columns)`: sentence vectors, or with ranges of one
    /// row, a choice of rows. Ranges that are not empty must be in order and not overlap.
    ///
    /// # Shapes
    /// input `(.., C)`, ranges ids `(M, 2)` of first rows and the rows behind the last; result `(M, C)`.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn mean_rows(&mut self, input: Value, ranges: Value) -> Result<Value, Error> {
        let (rows, channels) = self.rows_and_columns("mean_rows", input)?;
        let &[count, 2] = self.shape(ranges) else {
            let what = format!("ranges are {:?}, expected (ranges, 2)", self.shape(ranges));
            return Err(Error::Shape { operation: "mean_rows", what });
        };
        let shape = Shape { rows, channels, ranges: count };
        let results = [("mean_rows", vec![count, channels], false)];
        Ok(self.push_node(MeanRows { shape }, &[input, ranges], &[], &results)?[0])
    }
}

impl Operation for MeanRows {
    fn name(&self) -> &'static str {
        "mean_rows"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![1], ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward { input: run.input(0), ranges: run.input_ids(1), output: run.output(0) };
        ops::mean_rows::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some(grad_input) = run.grad_input(0) else { return Ok(()) };
        let arguments = Backward { ranges: run.input_ids(1), grad_output: run.grad_output(0), grad_input };
        ops::mean_rows::backward(run.device, &self.shape, arguments)
    }
}
