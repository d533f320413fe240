//! A range of rows of a value, without a copy: the last position before the output projection when decoding.
//! Inference only, so a training tape refuses it.

use super::{Error, Mode, Tape, Value, ValueInfo};

impl Tape<'_> {
    /// Rows `start .. start + count` of a value seen as `(rows, columns)`; the result is `(count, columns)`.
    ///
    /// # Errors
    /// A range outside the value; a training tape.
    pub fn rows(&mut self, value: Value, start: usize, count: usize) -> Result<Value, Error> {
        if self.mode() == Mode::Training {
            return Err(Error::NoBackward("rows"));
        }
        let (rows, columns) = self.rows_and_columns("rows", value)?;
        if start + count > rows {
            let what = format!("rows {start}..{} of {rows}", start + count);
            return Err(Error::Shape { operation: "rows", what });
        }
        let info = &self.values[value.0];
        let (base, offset) = info.part_of.unwrap_or((value, 0));
        let part = ValueInfo {
            name: info.name.clone(),
            shape: vec![count, columns],
            kind: info.kind,
            producer: info.producer,
            needs_gradient: false,
            auxiliary: false,
            kept: false,
            constant: None,
            part_of: Some((base, offset + start * columns)),
        };
        Ok(self.push_value(part))
    }
}
