//! GPT-2 (Radford et al. 2019) exactly: pre-norm blocks, tanh GELU, learned positions, output projection tied to the
//! token embedding. Initialised as the paper says: weights from N(0, 0.02²), those that write to the residual stream
//! scaled by `1/√(2·layers)`.

use super::block::{Affine, Block, BlockOptions};
use super::huggingface::{self, Gpt2Config, ParameterSpec};
use crate::ops::Device;
use crate::ops::attention::Mask;
use crate::ops::linear::Activation;
use crate::tape::{
    Cache, Error, Initial, Loss, OutOfMemory, ParameterError, ParameterId, Parameters, Specification, Tape, Value,
};
use std::path::Path;
use std::sync::Arc;

/// A GPT-2: its sizes, and where its parameters are. The parameters themselves are a [`Parameters`].
pub struct Gpt {
    config: Gpt2Config,
    specs: Vec<ParameterSpec>,
    token_embedding: ParameterId,
    position_embedding: ParameterId,
    blocks: Vec<Block>,
    final_norm: Affine,
    head: ParameterId,
}

/// How the training computation is recorded; none of it changes a bit of the result.
#[derive(Clone, Copy, Debug, Default)]
pub struct LossOptions {
    /// Computes each block's activations again in the backward pass.
    pub recompute: bool,
    /// Rows of logits that exist at once; `None` for 64 MiB of them.
    pub chunk_rows: Option<usize>,
}

impl Gpt {
    /// A model with fresh parameters on `device`.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(device: &Arc<Device>, config: Gpt2Config, seed: u64) -> Result<(Self, Parameters), ParameterError> {
        let parameters = Parameters::new(device, specifications(&config), seed)?;
        Ok((Self::bind(config, &parameters), parameters))
    }

    /// A model whose parameters have no memory, to measure what it would need.
    ///
    /// # Errors
    /// Sizes beyond all memory.
    pub fn unallocated(config: Gpt2Config) -> Result<(Self, Parameters), ParameterError> {
        let parameters = Parameters::unallocated(specifications(&config))?;
        Ok((Self::bind(config, &parameters), parameters))
    }

    fn bind(config: Gpt2Config, parameters: &Parameters) -> Self {
        let find = |name: &str| parameters.find(name).expect("a name of this model");
        let token_embedding = find("token_embedding.weight");
        Self {
            token_embedding,
            position_embedding: find("position_embedding.weight"),
            blocks: (0..config.layers).map(|layer| Block::find(parameters, &format!("blocks.{layer}"))).collect(),
            final_norm: Affine::find(parameters, "final_norm"),
            head: if config.tied { token_embedding } else { find("head.weight") },
            specs: config.parameters(),
            config,
        }
    }

    /// A model on `device` with the parameters of a Hugging Face folder, which a checkpoint is too.
    ///
    /// # Errors
    /// A folder that is not a GPT-2, is damaged or incomplete; not enough memory.
    pub fn load(device: &Arc<Device>, folder: &Path) -> Result<(Self, Parameters), LoadError> {
        let config = Gpt2Config::load(folder)?;
        let mut list = specifications(&config);
        // Every value is about to be replaced; drawing random ones first takes seconds for a large model.
        list.iter_mut().for_each(|specification| specification.initial = Initial::Constant(0.0));
        let mut parameters = Parameters::new(device, list, 0)?;
        let model = Self::bind(config, &parameters);
        model.load_parameters(folder, &mut parameters)?;
        Ok((model, parameters))
    }

    /// Replaces the parameters by those of a folder of the same sizes.
    ///
    /// # Errors
    /// A folder that is damaged, incomplete, or of other sizes; the parameters are then unchanged.
    pub fn load_parameters(&self, folder: &Path, parameters: &mut Parameters) -> Result<(), huggingface::Error> {
        let ids: Vec<ParameterId> = parameters.ids().collect();
        huggingface::load_parameters(
            folder,
            &self.specs,
            |index, values| Ok(parameters.set_values(ids[index], values)?),
        )
    }

    /// Writes `config.json` and `model.safetensors` as `transformers` reads them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, folder: &Path, parameters: &Parameters) -> Result<(), huggingface::Error> {
        let ids: Vec<ParameterId> = parameters.ids().collect();
        huggingface::save_parameters(folder, &self.config, &self.specs, |index| Ok(parameters.values(ids[index])?))
    }

    /// The model's sizes.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// Names and shapes of the parameters, in the order of [`Parameters::ids`].
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Floating-point operations of training on one token of a sequence of `time`: `6·N + 6·L·C·T`, where N counts
    /// all parameters but the table of positions. Forward is 2, backward 4 of the 6; attention is counted as causal.
    pub fn flops_per_token(&self, time: usize) -> f64 {
        let is_position = |spec: &&ParameterSpec| spec.name != "position_embedding.weight";
        let parameters: usize = self.specs.iter().filter(is_position).map(ParameterSpec::elements).sum();
        6.0 * (parameters + self.config.layers * self.config.channels * time) as f64
    }

    fn block_options(&self, recomputes_hidden: bool) -> BlockOptions {
        BlockOptions {
            heads: self.config.heads,
            key_value_heads: self.config.heads,
            mask: Mask::Causal,
            activation: Activation::GeluTanh,
            norm_epsilon: self.config.layer_norm_epsilon,
            attention_dropout: self.config.attention_dropout,
            residual_dropout: self.config.residual_dropout,
            recomputes_hidden,
        }
    }

    /// Records all but the output projection; the result is the last norm's, `(B, T, C)`.
    fn record_trunk(
        &self,
        tape: &mut Tape<'_>,
        ids: Value,
        recompute: bool,
        caches: Option<&[Arc<Cache>]>,
    ) -> Result<Value, Error> {
        let embedded = tape.embedding(ids, self.token_embedding, Some(self.position_embedding))?;
        let mut stream = tape.dropout(embedded, self.config.embedding_dropout, None)?;
        let options = self.block_options(recompute);
        for (layer, block) in self.blocks.iter().enumerate() {
            let cache = caches.map(|caches| &caches[layer]);
            stream = tape.scoped(&format!("blocks.{layer}"), |tape| {
                let record = |tape: &mut Tape<'_>| block.record(tape, stream, &options, cache);
                if recompute { tape.recomputed(record) } else { record(tape) }
            })?;
        }
        tape.scoped("final_norm", |tape| {
            tape.layer_norm(stream, self.final_norm.weight, self.final_norm.bias, options.norm_epsilon)
        })
    }

    /// Records the loss of predicting `targets` from `ids`, both `(B, T)`.
    ///
    /// # Errors
    /// More tokens than the model has positions.
    pub fn record_loss(
        &self,
        tape: &mut Tape<'_>,
        ids: Value,
        targets: Value,
        options: LossOptions,
    ) -> Result<Loss, Error> {
        let trunk = self.record_trunk(tape, ids, options.recompute, None)?;
        tape.linear_cross_entropy(trunk, self.head, None, targets, 0.0, options.chunk_rows)
    }

    /// Records the logits of all positions, `(B, T, V)`.
    ///
    /// # Errors
    /// More tokens than the model has positions.
    pub fn record_logits(&self, tape: &mut Tape<'_>, ids: Value) -> Result<Value, Error> {
        let trunk = self.record_trunk(tape, ids, false, None)?;
        tape.linear(trunk, self.head, None, Activation::Identity, None)
    }

    /// Records a step of decoding: the logits that follow the last of the new tokens, `(B, V)`. One token of each of
    /// several sequences, or several tokens of one.
    ///
    /// # Errors
    /// Several tokens of several sequences; a training tape.
    pub fn record_next(&self, tape: &mut Tape<'_>, ids: Value, caches: &[Arc<Cache>]) -> Result<Value, Error> {
        let &[batch, time] = tape.shape(ids) else {
            let what = format!("ids are {:?}, expected (batch, time)", tape.shape(ids));
            return Err(Error::Shape { operation: "record_next", what });
        };
        let trunk = self.record_trunk(tape, ids, false, Some(caches))?;
        let last = if time == 1 { tape.rows(trunk, 0, batch)? } else { tape.rows(trunk, time - 1, 1)? };
        tape.linear(last, self.head, None, Activation::Identity, None)
    }

    /// An empty key/value cache for each layer.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn caches(
        &self,
        device: &Arc<Device>,
        sequences: usize,
        capacity: usize,
    ) -> Result<Vec<Arc<Cache>>, OutOfMemory> {
        (0..self.config.layers).map(|_| Cache::new(device, sequences, capacity, self.config.channels)).collect()
    }
}

/// What can go wrong while loading a model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Folder(#[from] huggingface::Error),
    #[error(transparent)]
    Parameters(#[from] ParameterError),
}

fn specifications(config: &Gpt2Config) -> Vec<Specification> {
    let branch_deviation = config.initializer_range / (2.0 * config.layers.max(1) as f32).sqrt();
    let specification = |spec: &ParameterSpec| specification(spec, config.initializer_range, branch_deviation);
    config.parameters().iter().map(specification).collect()
}

/// Initial values and weight decay by what a parameter is: decay is for matrices only.
fn specification(spec: &ParameterSpec, deviation: f32, branch_deviation: f32) -> Specification {
    let is_matrix = spec.shape.len() > 1;
    let writes_to_stream = spec.name.ends_with("projection.weight") || spec.name.ends_with("down.weight");
    let initial = match (is_matrix, spec.name.ends_with("norm.weight")) {
        (true, _) if writes_to_stream => Initial::Normal(branch_deviation),
        (true, _) => Initial::Normal(deviation),
        (false, true) => Initial::Constant(1.0),
        (false, false) => Initial::Constant(0.0),
    };
    Specification::new(spec.name.clone(), &spec.shape, initial)
}
