//! What the tests of every backend try: cases, their random data in the layouts of the operation, and the reference's
//! view of it.

#[cfg(test)]
use super::Inputs;
use super::{Mask, Shape, documents, reference};
use crate::ops::testing::{Random, double, poisoned};
use crate::ops::{Dropout, Write};

/// What is tried at once.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub shape: Shape,
    pub is_packed: bool,
    /// Columns behind the queries, where these stand apart.
    pub spare_columns: usize,
    pub key_lengths: Option<&'static [i32]>,
    /// For each row the lengths of its documents, as [`documents::of_lengths`] takes them.
    pub documents: Option<&'static [&'static [i32]]>,
    pub has_bias: bool,
    /// With a relative bias, whose radius is larger than need be by this.
    pub relative_bias: Option<usize>,
    pub queries_are_last: bool,
    pub dropout: Option<f32>,
    pub write: Write,
}

impl Case {
    /// Documents and a gradient of the bias do not go together.
    pub fn has_grad_bias(&self) -> bool {
        self.has_bias && self.documents.is_none()
    }

    /// Radius of the relative bias.
    pub fn radius(&self) -> Option<usize> {
        self.relative_bias.map(|spare| self.shape.query_time.max(self.shape.key_time) + spare)
    }
}

pub fn shape(
    batch: usize,
    [query_time, key_time]: [usize; 2],
    [heads, key_value_heads]: [usize; 2],
    d: usize,
) -> Shape {
    let scale = 1.0 / (d as f32).sqrt();
    Shape { batch, query_time, key_time, heads, key_value_heads, head_size: d, scale, mask: Mask::Causal }
}

pub fn plain(shape: Shape) -> Case {
    let is_packed = shape.query_time == shape.key_time;
    Case {
        shape,
        is_packed,
        spare_columns: 2,
        key_lengths: None,
        documents: None,
        has_bias: false,
        relative_bias: None,
        queries_are_last: false,
        dropout: None,
        write: Write::Set,
    }
}

pub fn full(shape: Shape) -> Shape {
    Shape { mask: Mask::Full, ..shape }
}

/// Random inputs of a case. Rows of separate queries have spare columns, caches three more rows: never to be read
/// (they hold NaN) nor written.
pub struct Data {
    pub case: Case,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub bias: Vec<f32>,
    /// The table of the relative bias.
    pub relative_bias: Vec<f32>,
    pub grad_output: Vec<f32>,
    /// What gradients of queries, keys, values and biases hold before.
    pub previous: [Vec<f32>; 5],
}

impl Data {
    pub fn new(case: Case, random: &mut Random) -> Self {
        let shape = case.shape;
        let queries = shape.batch * shape.query_time * shape.query_columns();
        let keys = shape.batch * shape.key_time * shape.key_columns();
        let biases = if case.has_bias { shape.heads * shape.query_time * shape.key_time } else { 0 };
        let distances = case.radius().map_or(0, |radius| shape.heads * (2 * radius - 1));
        let sizes = [queries, keys, keys, biases, distances];
        let previous = match case.write {
            Write::Set => sizes.map(poisoned),
            Write::Add => sizes.map(|length| random.normal(length)),
        };
        Self {
            case,
            query: random.normal(queries),
            key: random.normal(keys),
            value: random.normal(keys),
            bias: random.normal(biases),
            relative_bias: random.normal(distances),
            grad_output: random.normal(queries),
            previous,
        }
    }

    pub fn dropout(&self) -> Option<Dropout> {
        self.case.dropout.map(|probability| Dropout { probability, seed: 1 << 40, step: 7, site: 3 })
    }

    pub fn documents(&self) -> Option<Vec<i32>> {
        let Case { shape, documents, .. } = self.case;
        documents.map(|rows| documents::of_lengths(shape.query_time, rows.iter().copied()))
    }

    /// Queries, keys and values (or their gradients) as the operation takes them.
    pub fn layout(&self, [query, key, value]: [&[f32]; 3]) -> (Vec<f32>, Vec<f32>) {
        let shape = self.case.shape;
        let (qc, kc) = (shape.query_columns(), shape.key_columns());
        let mut queries = Vec::new();
        for row in query.chunks_exact(qc) {
            queries.extend_from_slice(row);
            if !self.case.is_packed {
                queries.extend(vec![f32::NAN; self.case.spare_columns]);
            }
        }
        let mut keys = Vec::new();
        for b in 0..shape.batch {
            for t in b * shape.key_time..(b + 1) * shape.key_time {
                if self.case.is_packed {
                    keys.extend_from_slice(&query[t * qc..(t + 1) * qc]);
                }
                keys.extend_from_slice(&key[t * kc..(t + 1) * kc]);
                keys.extend_from_slice(&value[t * kc..(t + 1) * kc]);
            }
            if !self.case.is_packed {
                keys.extend(vec![f32::NAN; 3 * 2 * kc]);
            }
        }
        if self.case.is_packed { (Vec::new(), keys) } else { (queries, keys) }
    }

    /// The inverse of [`Data::layout`]; checks that what the operation has no business with is still NaN.
    pub fn split(&self, (queries, keys): &(Vec<f32>, Vec<f32>)) -> [Vec<f32>; 3] {
        let shape = self.case.shape;
        let (qc, kc) = (shape.query_columns(), shape.key_columns());
        let [mut query, mut key, mut value] = [Vec::new(), Vec::new(), Vec::new()];
        if self.case.is_packed {
            for row in keys.chunks_exact(qc + 2 * kc) {
                query.extend_from_slice(&row[..qc]);
                key.extend_from_slice(&row[qc..qc + kc]);
                value.extend_from_slice(&row[qc + kc..]);
            }
            return [query, key, value];
        }
        for row in queries.chunks_exact(qc + self.case.spare_columns) {
            query.extend_from_slice(&row[..qc]);
            assert!(row[qc..].iter().all(|value| value.is_nan()), "columns behind the queries were written");
        }
        for (index, row) in keys.chunks_exact(2 * kc).enumerate() {
            if index % (shape.key_time + 3) < shape.key_time {
                key.extend_from_slice(&row[..kc]);
                value.extend_from_slice(&row[kc..]);
            } else {
                assert!(row.iter().all(|value| value.is_nan()), "rows behind the keys were written");
            }
        }
        [query, key, value]
    }

    /// What a document is by itself: a batch of one sequence.
    #[cfg(test)]
    pub fn cut(&self, run: &documents::Run) -> Self {
        let Case { shape, .. } = self.case;
        let time = run.positions.len();
        let alone = Shape { batch: 1, query_time: time, key_time: time, ..shape };
        let spare = self.case.radius().map(|radius| radius - time);
        let case = Case { shape: alone, documents: None, relative_bias: spare, ..self.case };
        let rows = |values: &Vec<f32>| self.rows_of(run, values);
        let [query, key, value, _, relative_bias] = &self.previous;
        Self {
            case,
            query: rows(&self.query),
            key: rows(&self.key),
            value: rows(&self.value),
            bias: Vec::new(),
            relative_bias: self.relative_bias.clone(),
            grad_output: rows(&self.grad_output),
            previous: [rows(query), rows(key), rows(value), Vec::new(), relative_bias.clone()],
        }
    }

    /// The document's rows of `(B, T, columns)` values.
    #[cfg(test)]
    pub fn rows_of(&self, run: &documents::Run, values: &[f32]) -> Vec<f32> {
        let Shape { batch, query_time, .. } = self.case.shape;
        let columns = values.len() / (batch * query_time);
        let first = run.row * query_time + run.positions.start;
        values[first * columns..][..run.positions.len() * columns].to_vec()
    }

    /// The document's part of `(B, H, T)` values.
    #[cfg(test)]
    pub fn statistics_of(&self, run: &documents::Run, values: &[f32]) -> Vec<f32> {
        let Shape { heads, query_time, .. } = self.case.shape;
        let of_row = values.chunks(query_time).skip(run.row * heads).take(heads);
        of_row.flat_map(|values| &values[run.positions.clone()]).copied().collect()
    }

    #[cfg(test)]
    pub fn inputs<'a>(&self, (queries, keys): &'a (Vec<f32>, Vec<f32>)) -> Inputs<'a> {
        let shape = self.case.shape;
        if self.case.is_packed {
            return Inputs::Packed(keys.into());
        }
        let query_row = shape.query_columns() + self.case.spare_columns;
        Inputs::Separate { query: queries.into(), query_row, key_value: keys.into(), capacity: shape.key_time + 3 }
    }
}

/// Inputs of the reference, in f64.
pub struct Doubles {
    pub documents: Option<Vec<i32>>,
    pub query: Vec<f64>,
    pub key: Vec<f64>,
    pub value: Vec<f64>,
    pub bias: Vec<f64>,
    pub relative_bias: Vec<f64>,
}

impl Doubles {
    pub fn new(data: &Data) -> Self {
        let [query, key, value] = [&data.query, &data.key, &data.value].map(|values| double(values));
        let [bias, relative_bias] = [&data.bias, &data.relative_bias].map(|values| double(values));
        Self { documents: data.documents(), query, key, value, bias, relative_bias }
    }

    pub fn inputs(&self, data: &Data) -> reference::Inputs<'_> {
        reference::Inputs {
            shape: data.case.shape,
            query: &self.query,
            key: &self.key,
            value: &self.value,
            key_lengths: data.case.key_lengths,
            documents: self.documents.as_deref(),
            bias: data.case.has_bias.then_some(&self.bias),
            relative_bias: data.case.radius().map(|radius| {
                let queries_are_last = data.case.queries_are_last;
                reference::RelativeBias { table: &self.relative_bias, radius, queries_are_last }
            }),
            dropout: data.dropout(),
        }
    }
}
