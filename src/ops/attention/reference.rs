//! What attention means, in f64 and one score at a time: the measure of every backend, itself checked by finite
//! differences. Queries, keys and values stand apart here, each `(B, T, heads · D)`.

use super::{Mask, Shape};
use crate::ops::{Dropout, philox};

/// Arguments of both directions.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Sizes, scale and mask.
    pub shape: Shape,
    /// `(B, query_time, H·D)`
    pub query: &'a [f64],
    /// `(B, key_time, HK·D)`
    pub key: &'a [f64],
    /// `(B, key_time, HK·D)`
    pub value: &'a [f64],
    /// `(B)`
    pub key_lengths: Option<&'a [i32]>,
    /// `(B, T, 2)`
    pub documents: Option<&'a [i32]>,
    /// `(H, query_time, key_time)`
    pub bias: Option<&'a [f64]>,
    pub relative_bias: Option<RelativeBias<'a>>,
    /// Of the probabilities.
    pub dropout: Option<Dropout>,
}

/// As [`super::RelativeBias`].
#[derive(Clone, Copy)]
pub struct RelativeBias<'a> {
    /// `(H, 2·radius - 1)`
    pub table: &'a [f64],
    pub radius: usize,
    pub queries_are_last: bool,
}

/// Gradients, in the shapes of the inputs.
pub struct Gradients {
    pub query: Vec<f64>,
    pub key: Vec<f64>,
    pub value: Vec<f64>,
    /// Empty where there is no bias.
    pub bias: Vec<f64>,
    /// Empty where there is no relative bias.
    pub relative_bias: Vec<f64>,
}

/// The probabilities of one row, what they are multiplied by (dropout), and the log-sum-exp.
struct Row {
    probabilities: Vec<f64>,
    factors: Vec<f64>,
    log_sum_exp: f64,
}

impl Inputs<'_> {
    fn query_row(&self, b: usize, h: usize, i: usize) -> std::ops::Range<usize> {
        let d = self.shape.head_size;
        let start = ((b * self.shape.query_time + i) * self.shape.heads + h) * d;
        start..start + d
    }

    /// Of the keys, and of the values, that query head `h` uses.
    fn key_row(&self, b: usize, h: usize, j: usize) -> std::ops::Range<usize> {
        let Shape { heads, key_value_heads, head_size, key_time, .. } = self.shape;
        let start = ((b * key_time + j) * key_value_heads + h / (heads / key_value_heads)) * head_size;
        start..start + head_size
    }

    fn sees(&self, b: usize, i: usize, j: usize) -> bool {
        let Shape { query_time, key_time, mask, .. } = self.shape;
        let is_before_end = self.key_lengths.is_none_or(|lengths| (j as i64) < i64::from(lengths[b]));
        // The first position and the end of the query's document: none in padding.
        let is_same_document = self.documents.is_none_or(|documents| {
            let pair = &documents[2 * (b * key_time + i)..][..2];
            (i64::from(pair[0])..i64::from(pair[1])).contains(&(j as i64))
        });
        is_before_end && is_same_document && (mask == Mask::Full || j + query_time <= i + key_time)
    }

    /// Where the relative bias of a query and a key that it sees stands in its table, if there is one.
    fn relative_place(&self, b: usize, h: usize, i: usize, j: usize) -> usize {
        let Shape { query_time, key_time, mask, .. } = self.shape;
        let Some(RelativeBias { radius, queries_are_last, .. }) = self.relative_bias else { return 0 };
        let length = self.key_lengths.map_or(key_time, |lengths| key_time.min(lengths[b].max(0) as usize));
        // The distance is `j - (i + end - query_time)`.
        let end = if queries_are_last {
            length
        } else if mask == Mask::Causal {
            key_time
        } else {
            query_time
        };
        h * (2 * radius - 1) + (j + query_time + radius - 1) - (i + end)
    }

    fn row(&self, b: usize, h: usize, i: usize) -> Row {
        let Shape { heads, query_time, key_time, scale, .. } = self.shape;
        let query = &self.query[self.query_row(b, h, i)];
        let scores: Vec<f64> = (0..key_time)
            .map(|j| {
                if !self.sees(b, i, j) {
                    return f64::NEG_INFINITY;
                }
                let product = dot(query, &self.key[self.key_row(b, h, j)]);
                let bias = self.bias.map_or(0.0, |bias| bias[(h * query_time + i) * key_time + j]);
                let relative = self.relative_bias.map_or(0.0, |bias| bias.table[self.relative_place(b, h, i, j)]);
                f64::from(scale) * product + bias + relative
            })
            .collect();
        let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| if maximum.is_finite() { (score - maximum).exp() } else { 0.0 }).sum();
        let log_sum_exp = if sum > 0.0 { maximum + sum.ln() } else { f64::NEG_INFINITY };
        let probabilities =
            scores.iter().map(|score| if sum > 0.0 { (score - log_sum_exp).exp() } else { 0.0 }).collect();
        let first = ((b * heads + h) * query_time + i) * key_time;
        let factors = (0..key_time)
            .map(|j| match self.dropout {
                None => 1.0,
                Some(Dropout { probability, seed, step, site }) => {
                    let word = philox::word(philox::stream(seed, step, site), (first + j) as u64);
                    if word >= philox::keep_threshold(probability) { 1.0 / (1.0 - f64::from(probability)) } else { 0.0 }
                }
            })
            .collect();
        Row { probabilities, factors, log_sum_exp }
    }

    fn for_each_row(&self, mut body: impl FnMut(usize, usize, usize)) {
        for b in 0..self.shape.batch {
            for h in 0..self.shape.heads {
                (0..self.shape.query_time).for_each(|i| body(b, h, i));
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(target: &mut [f64], factor: f64, source: &[f64]) {
    target.iter_mut().zip(source).for_each(|(target, source)| *target += factor * source);
}

/// The output `(B, query_time, H·D)` and the log-sum-exp `(B, H, query_time)`.
pub fn forward(inputs: &Inputs<'_>) -> (Vec<f64>, Vec<f64>) {
    let mut output = vec![0.0; inputs.query.len()];
    let mut log_sum_exp = Vec::new();
    inputs.for_each_row(|b, h, i| {
        let row = inputs.row(b, h, i);
        for (j, (probability, factor)) in row.probabilities.iter().zip(&row.factors).enumerate() {
            let value = &inputs.value[inputs.key_row(b, h, j)];
            add_scaled(&mut output[inputs.query_row(b, h, i)], probability * factor, value);
        }
        log_sum_exp.push(row.log_sum_exp);
    });
    (output, log_sum_exp)
}

/// The gradients for `grad_output`, which has the output's shape.
pub fn backward(inputs: &Inputs<'_>, grad_output: &[f64]) -> Gradients {
    let scale = f64::from(inputs.shape.scale);
    let mut gradients = Gradients {
        query: vec![0.0; inputs.query.len()],
        key: vec![0.0; inputs.key.len()],
        value: vec![0.0; inputs.value.len()],
        bias: vec![0.0; inputs.bias.map_or(0, <[f64]>::len)],
        relative_bias: vec![0.0; inputs.relative_bias.map_or(0, |bias| bias.table.len())],
    };
    inputs.for_each_row(|b, h, i| {
        let Row { probabilities, factors, .. } = inputs.row(b, h, i);
        let query_row = inputs.query_row(b, h, i);
        let grad_output = &grad_output[query_row.clone()];
        let grad_probabilities: Vec<f64> = (0..probabilities.len())
            .map(|j| factors[j] * dot(grad_output, &inputs.value[inputs.key_row(b, h, j)]))
            .collect();
        let mean = dot(&probabilities, &grad_probabilities);
        for j in 0..probabilities.len() {
            let key_row = inputs.key_row(b, h, j);
            let grad_score = probabilities[j] * (grad_probabilities[j] - mean);
            add_scaled(&mut gradients.value[key_row.clone()], probabilities[j] * factors[j], grad_output);
            add_scaled(&mut gradients.query[query_row.clone()], scale * grad_score, &inputs.key[key_row.clone()]);
            add_scaled(&mut gradients.key[key_row], scale * grad_score, &inputs.query[query_row.clone()]);
            if inputs.bias.is_some() {
                let Shape { query_time, key_time, .. } = inputs.shape;
                gradients.bias[(h * query_time + i) * key_time + j] += grad_score;
            }
            if inputs.relative_bias.is_some() && inputs.sees(b, i, j) {
                gradients.relative_bias[inputs.relative_place(b, h, i, j)] += grad_score;
            }
        }
    });
    gradients
}
