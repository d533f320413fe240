//! Low-rank adaptation (Hu et al. 2021): a frozen layer learns by a product of two small matrices beside its weight,
//!
//! ```text
//! y = x · Wᵀ + b + s · (x · Aᵀ) · Bᵀ        A (rank, inputs), B (outputs, rank), s = alpha / rank
//! ```
//!
//! B starts at zero, so that the adapted model starts as the one that it adapts; A as in the `peft` library. After
//! training `s · B · A` can be merged into the weight, and taken out of it again.
//!
//! Over many rows a layer computes with the merged weight `W + s · B · A`, made anew in each pass: that is as fast as the
//! frozen layer, and leaves the gradients of A and B alone to be computed (`ops::low_rank`). Over few rows merging would
//! cost more than the layer, and with dropout on the adapter's input the two do not share one: then it is a composition of
//! the tape's operations, in which the second product adds the frozen layer's result as its residual. Either way the frozen
//! weight's gradient is never computed.

mod folder;
pub use folder::{LORA_FILE, load, save};

use super::block::Affine;
use crate::driver;
use crate::ops::linear::Activation;
use crate::tape::{Error, FfnParameters, Initial, LowRank, Mode, ParameterId, Parameters, Specification, Tape, Value};

/// How adapters are made and trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraOptions {
    /// Rows of A: 8 is usual.
    pub rank: usize,
    /// What the adapter's result is scaled by, times the rank.
    pub alpha: f32,
    /// On the adapter's input.
    pub dropout: f32,
    /// Of B's learning rate over that of A (Hayou et al. 2024); 1 in the original.
    pub up_learning_rate_factor: f32,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, dropout: 0.0, up_learning_rate_factor: 1.0 }
    }
}

/// An adapter of one linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adapter {
    /// A: `(rank, inputs)`
    pub down: ParameterId,
    /// B: `(outputs, rank)`
    pub up: ParameterId,
    /// `s`
    pub scale: f32,
    /// On the adapter's input.
    pub dropout: f32,
    /// From so many rows on, products of the rows with A and B, `rows · (inputs + outputs) · rank` multiply-adds, are more
    /// work than merging, `inputs · outputs · rank`.
    pub merged_from: usize,
}

/// Names of the two matrices of the layer whose weight has this name: `layer.weight` has `layer.lora_a.weight` and
/// `layer.lora_b.weight`.
fn names(weight: &str) -> [String; 2] {
    let layer = weight.strip_suffix(".weight").unwrap_or(weight);
    ["a", "b"].map(|matrix| format!("{layer}.lora_{matrix}.weight"))
}

impl Adapter {
    /// The two matrices for a weight `(outputs, inputs)`; `None` where it is no matrix.
    pub fn specifications(weight: &Specification, options: &LoraOptions) -> Option<[Specification; 2]> {
        let &[outputs, inputs] = weight.shape.as_slice() else { return None };
        let [a, b] = names(&weight.name);
        // Kaiming's uniform distribution (He et al. 2015) for a slope of √5, as linear layers start in PyTorch.
        let bound = 1.0 / (inputs.max(1) as f32).sqrt();
        let factor = weight.learning_rate_factor;
        let down = Specification::new(a, &[options.rank, inputs], Initial::Uniform(bound));
        let up = Specification::new(b, &[outputs, options.rank], Initial::Constant(0.0));
        Some([
            Specification { learning_rate_factor: factor, ..down },
            Specification { learning_rate_factor: factor * options.up_learning_rate_factor, ..up },
        ])
    }

    /// Freezes the weights that `adapts` chooses by name, and appends their adapters' matrices.
    pub fn attach(specifications: &mut Vec<Specification>, options: &LoraOptions, adapts: impl Fn(&str) -> bool) {
        let mut added = Vec::new();
        for specification in specifications.iter_mut().filter(|specification| adapts(&specification.name)) {
            if let Some(pair) = Self::specifications(specification, options) {
                specification.trainable = false;
                added.extend(pair);
            }
        }
        specifications.extend(added);
    }

    /// The adapter of a weight; `None` where the parameters hold none.
    pub fn find(parameters: &Parameters, weight: ParameterId, options: &LoraOptions) -> Option<Self> {
        let [a, b] = names(&parameters.specification(weight).name);
        let (down, up) = (parameters.find(&a)?, parameters.find(&b)?);
        let rank = parameters.shape(down).first().copied().unwrap_or(0);
        let &[outputs, inputs] = parameters.shape(weight) else { return None };
        let merged_from = (inputs * outputs).div_ceil((inputs + outputs).max(1));
        Some(Self { down, up, scale: options.alpha / rank.max(1) as f32, dropout: options.dropout, merged_from })
    }

    /// The matrices, where a layer over this input computes with the merged weight.
    fn merged_over(&self, tape: &Tape<'_>, input: Value) -> Option<LowRank> {
        let rows: usize = tape.shape(input).split_last().map_or(0, |(_, rows)| rows.iter().product());
        let drops = self.dropout > 0.0 && tape.mode() == Mode::Training;
        let Self { down, up, scale, .. } = *self;
        (!drops && rows >= self.merged_from).then_some(LowRank { down, up, scale })
    }

    /// Adds `s · B · A` to the weight: from then on the layer does by itself what it did with the adapter.
    ///
    /// # Errors
    /// The device failed.
    pub fn merge(&self, parameters: &mut Parameters, weight: ParameterId) -> Result<(), driver::Error> {
        let merged = self.sum(parameters, weight, f64::from(self.scale))?;
        parameters.set_values(weight, &merged)
    }

    /// Takes out of the weight what [`merge`](Self::merge) added, but for rounding.
    ///
    /// # Errors
    /// The device failed.
    pub fn unmerge(&self, parameters: &mut Parameters, weight: ParameterId) -> Result<(), driver::Error> {
        let frozen = self.sum(parameters, weight, -f64::from(self.scale))?;
        parameters.set_values(weight, &frozen)
    }

    /// What [`merge`](Self::merge) would make of the weight.
    ///
    /// # Errors
    /// The device failed.
    pub fn merged(&self, parameters: &Parameters, weight: ParameterId) -> Result<Vec<f32>, driver::Error> {
        self.sum(parameters, weight, f64::from(self.scale))
    }

    /// The weight and `scale · B · A`, summed in f64.
    fn sum(&self, parameters: &Parameters, weight: ParameterId, scale: f64) -> Result<Vec<f32>, driver::Error> {
        let mut values = parameters.values(weight)?.into_owned();
        let &[rank, inputs] = parameters.shape(self.down) else { return Ok(values) };
        if rank == 0 || inputs == 0 {
            return Ok(values);
        }
        let (down, up) = (parameters.values(self.down)?, parameters.values(self.up)?);
        let mut sums = vec![0.0f64; inputs];
        for (row, up) in values.chunks_mut(inputs).zip(up.chunks(rank)) {
            sums.fill(0.0);
            for (&factor, down) in up.iter().zip(down.chunks(inputs)) {
                sums.iter_mut().zip(down).for_each(|(sum, &a)| *sum += f64::from(factor) * f64::from(a));
            }
            row.iter_mut().zip(&sums).for_each(|(w, sum)| *w = (f64::from(*w) + scale * sum) as f32);
        }
        Ok(values)
    }
}

/// A linear layer, and its adapter where it has one.
#[derive(Clone, Copy, Debug)]
pub struct Adapted {
    pub layer: Affine,
    pub adapter: Option<Adapter>,
}

impl Adapted {
    /// A layer and what the parameters hold of an adapter for it.
    pub fn find(parameters: &Parameters, layer: Affine, options: &LoraOptions) -> Self {
        Self { layer, adapter: Adapter::find(parameters, layer.weight, options) }
    }
}

/// Records `activation(x · Wᵀ + b + s · (x · Aᵀ) · Bᵀ) + residual`: as one operation where there is no adapter.
///
/// # Errors
/// Parameters that do not fit together.
pub fn record_linear(
    tape: &mut Tape<'_>,
    input: Value,
    linear: &Adapted,
    activation: Activation,
    residual: Option<Value>,
) -> Result<Value, Error> {
    let Affine { weight, bias } = linear.layer;
    let Some(adapter) = &linear.adapter else {
        return tape.linear(input, weight, bias, activation, residual);
    };
    // With an activation the residual comes behind it, else it goes in with the layer.
    let (inner, outer) = if activation == Activation::Identity { (residual, None) } else { (None, residual) };
    let sum = match adapter.merged_over(tape, input) {
        Some(low_rank) => tape.adapted_linear(input, weight, low_rank, bias, inner)?,
        None => {
            let frozen = tape.linear(input, weight, bias, Activation::Identity, inner)?;
            tape.scoped("lora", |tape| {
                let dropped = tape.dropout(input, adapter.dropout, None)?;
                let narrow = tape.linear(dropped, adapter.down, None, Activation::Identity, None)?;
                let scaled = tape.scale(narrow, adapter.scale)?;
                tape.linear(scaled, adapter.up, None, Activation::Identity, Some(frozen))
            })?
        }
    };
    let activated = tape.activation(sum, activation)?;
    outer.map_or(Ok(activated), |residual| tape.add(activated, residual))
}

/// Records `down(activation(up(x))) + residual` of two layers that may have adapters: as one operation,
/// [`Tape::ffn`], unless an adapter is not merged.
///
/// # Errors
/// Parameters that do not fit together.
pub fn record_ffn(
    tape: &mut Tape<'_>,
    input: Value,
    up: &Adapted,
    down: &Adapted,
    activation: Activation,
    residual: Option<Value>,
    recomputes_hidden: bool,
) -> Result<Value, Error> {
    // The hidden layer has the input's rows.
    let [low_rank_in, low_rank_out] =
        [up, down].map(|layer| layer.adapter.and_then(|adapter| adapter.merged_over(tape, input)));
    if low_rank_in.is_some() == up.adapter.is_some() && low_rank_out.is_some() == down.adapter.is_some() {
        let parameters = FfnParameters {
            weight_in: up.layer.weight,
            bias_in: up.layer.bias,
            weight_out: down.layer.weight,
            bias_out: down.layer.bias,
            low_rank_in,
            low_rank_out,
        };
        return tape.ffn(input, parameters, activation, residual, recomputes_hidden);
    }
    let hidden = tape.scoped("up", |tape| record_linear(tape, input, up, activation, None))?;
    tape.scoped("down", |tape| record_linear(tape, hidden, down, Activation::Identity, residual))
}

#[cfg(test)]
mod tests;
