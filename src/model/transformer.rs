//! Transformers: embeddings, one or two stacks of blocks, and what is put on top. A [`ModelConfig`] says which; the
//! parameters themselves are a [`Parameters`].

use super::block::{Affine, Block, BlockCache, BlockOptions, Surroundings, record_norm};
use super::config::{Architecture, ModelConfig, NormPlace, Positions};
use super::encoder_decoder::StackMemory;
use super::huggingface::{self, ParameterSpec, Untouched, Wanted};
use super::layout::specifications;
use super::lora::{Adapter, LoraOptions};
use super::treatment::Treatment;
use super::weights::WeightFolder;
use crate::ops::Device;
use crate::ops::attention::Mask;
use crate::ops::linear::Activation;
use crate::ops::relative_bias::Kind;
use crate::tape::{
    EmbeddingInputs, EmbeddingPositions, Error, Initial, Loss, OutOfMemory, ParameterError, ParameterId, Parameters,
    Tape, Value,
};
use std::path::Path;
use std::sync::Arc;

/// A model: its configuration, and where its parameters are.
pub struct Transformer {
    config: ModelConfig,
    specs: Vec<ParameterSpec>,
    token_embedding: ParameterId,
    /// The projection of patches, of a model of images.
    patch_embedding: Option<ParameterId>,
    /// The encoder before the decoder where there are both.
    pub(super) stacks: Vec<Stack>,
    pub(super) heads: super::heads::HeadParameters,
}

/// How the training computation is recorded. Recomputing and chunks do not change a bit of the result.
#[derive(Clone, Copy, Debug, Default)]
pub struct LossOptions {
    /// Computes each block's activations again in the backward pass.
    pub recompute: bool,
    /// Rows of logits that exist at once; `None` for 64 MiB of them.
    pub chunk_rows: Option<usize>,
    /// Share of the target that is spread over all tokens; this changes the loss.
    pub label_smoothing: f32,
}

/// What a stack of blocks is given.
#[derive(Clone, Copy)]
pub struct Inputs {
    /// `(B, T)` token ids.
    pub ids: Value,
    /// `(B, T)` ids: where each token stands in its document; else its place in the row.
    pub position_ids: Option<Value>,
    /// `(B, T)` ids: the kind of each token.
    pub type_ids: Option<Value>,
    /// `(B, T, 2)` ids: the document of each position; else the row is one.
    pub documents: Option<Value>,
    /// `(B, T, numbers)`: the patch of each place, of a model of images.
    pub patches: Option<Value>,
}

impl Inputs {
    /// Rows that are one text each.
    pub fn rows(ids: Value) -> Self {
        Self { ids, position_ids: None, type_ids: None, documents: None, patches: None }
    }
}

/// Embeddings of positions, blocks, and the last norm.
pub(super) struct Stack {
    mask: Mask,
    position_embedding: Option<ParameterId>,
    type_embedding: Option<ParameterId>,
    embedding_norm: Option<Affine>,
    position_bias: Option<ParameterId>,
    pub(super) blocks: Vec<Block>,
    final_norm: Option<Affine>,
}

impl Stack {
    fn find(config: &ModelConfig, parameters: &Parameters, prefix: &str, lora: &LoraOptions) -> Self {
        let find = |name: &str| parameters.find(&format!("{prefix}{name}.weight"));
        let norm = |name: &str| Affine::find(parameters, &format!("{prefix}{name}"));
        let is_encoder = config.architecture == Architecture::Encoder || prefix == "encoder.";
        Self {
            mask: if is_encoder { Mask::Full } else { Mask::Causal },
            position_embedding: find("position_embedding"),
            type_embedding: find("type_embedding"),
            embedding_norm: config.embedding_norm.then(|| norm("embedding_norm")),
            position_bias: find("position_bias"),
            blocks: (0..config.layers)
                .map(|layer| Block::find(parameters, &format!("{prefix}blocks.{layer}"), lora))
                .collect(),
            final_norm: (config.norm_place == NormPlace::Pre).then(|| norm("final_norm")),
        }
    }
}

impl Transformer {
    /// A model with fresh parameters on `device`.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(device: &Arc<Device>, config: ModelConfig, seed: u64) -> Result<(Self, Parameters), ParameterError> {
        Self::treated(device, config, &Treatment::default(), seed)
    }

    /// A model with fresh parameters, and how they are trained.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn treated(
        device: &Arc<Device>,
        config: ModelConfig,
        treatment: &Treatment,
        seed: u64,
    ) -> Result<(Self, Parameters), ParameterError> {
        let mut list = specifications(&config);
        treatment.apply(&config, &mut list);
        let parameters = Parameters::new(device, list, seed)?;
        Ok((Self::bind(config, treatment, &parameters), parameters))
    }

    /// A model whose parameters have no memory, to measure what it would need.
    ///
    /// # Errors
    /// Sizes beyond all memory.
    pub fn unallocated(config: ModelConfig, treatment: &Treatment) -> Result<(Self, Parameters), ParameterError> {
        let mut list = specifications(&config);
        treatment.apply(&config, &mut list);
        let parameters = Parameters::unallocated(list)?;
        Ok((Self::bind(config, treatment, &parameters), parameters))
    }

    fn bind(config: ModelConfig, treatment: &Treatment, parameters: &Parameters) -> Self {
        let lora = treatment.lora.map_or_else(LoraOptions::default, |lora| lora.options);
        let prefixes = super::layout::stack_prefixes(config.architecture);
        Self {
            token_embedding: parameters.find("token_embedding.weight").expect("a name of every model"),
            patch_embedding: parameters.find("patch_embedding.weight"),
            stacks: prefixes.iter().map(|prefix| Stack::find(&config, parameters, prefix, &lora)).collect(),
            heads: super::heads::HeadParameters::find(parameters),
            specs: config.parameters(),
            config,
        }
    }

    /// A model on `device` with the parameters of a Hugging Face folder, which a checkpoint is too.
    ///
    /// # Errors
    /// A folder of no model that is known here, or one that is damaged or incomplete; not enough memory.
    pub fn load(device: &Arc<Device>, folder: &Path) -> Result<(Self, Parameters), LoadError> {
        let config = ModelConfig::load(folder)?;
        // Before memory is taken for what may not be there.
        WeightFolder::open(folder).map_err(huggingface::Error::from)?;
        let mut list = specifications(&config);
        // Every value is about to be replaced; drawing random ones first takes seconds for a large model.
        list.iter_mut().for_each(|specification| specification.initial = Initial::Constant(0.0));
        let mut parameters = Parameters::new(device, list, 0)?;
        let model = Self::bind(config, &Treatment::default(), &parameters);
        model.load_parameters(folder, Wanted::All, &mut parameters)?;
        Ok((model, parameters))
    }

    /// Replaces the parameters by those of a folder of the same sizes; the names of those that it has not.
    ///
    /// # Errors
    /// A folder that is damaged, incomplete, or of other sizes; the parameters are then unchanged.
    pub fn load_parameters(
        &self,
        folder: &Path,
        wanted: Wanted,
        parameters: &mut Parameters,
    ) -> Result<Untouched, huggingface::Error> {
        let ids: Vec<ParameterId> = parameters.ids().collect();
        huggingface::load_parameters(folder, &self.config, wanted, |index, values| {
            Ok(parameters.set_values(ids[index], values)?)
        })
    }

    /// Writes `config.json` and `model.safetensors` as `transformers` reads them; adapters are merged into their weights.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, folder: &Path, parameters: &Parameters) -> Result<(), huggingface::Error> {
        let ids: Vec<ParameterId> = parameters.ids().collect();
        huggingface::save_parameters(folder, &self.config, |index| match self.adapter_of(ids[index]) {
            Some(adapter) => Ok(adapter.merged(parameters, ids[index])?.into()),
            None => Ok(parameters.values(ids[index])?),
        })
    }

    fn adapter_of(&self, weight: ParameterId) -> Option<&Adapter> {
        self.adapted().find(|(adapted, _)| *adapted == weight).map(|(_, adapter)| adapter)
    }

    /// The weights that have an adapter, and these.
    pub fn adapted(&self) -> impl Iterator<Item = (ParameterId, &Adapter)> {
        let linears = self.stacks.iter().flat_map(|stack| stack.blocks.iter().flat_map(Block::linears));
        linears.filter_map(|linear| Some((linear.layer.weight, linear.adapter.as_ref()?)))
    }

    /// The model's sizes and choices.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names and shapes of the parameters, in the order of [`Parameters::ids`].
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Floating-point operations of training on one token of a sequence of `time`: `6·N + 6·L·C·T`, where N counts
    /// all parameters but the tables of tokens, positions and kinds (tied, that of tokens counts as the head); forward
    /// is 2, backward 4 of the 6. Attention is counted as causal in a decoder, and twice that where it sees both
    /// directions. A token of an encoder-decoder passes one of two stacks, so half the parameters count, and the mean
    /// of an encoder's attention and a decoder's two. The product with the vocabulary counts for the share `predicted`
    /// of the tokens.
    pub fn flops_per_token(&self, time: usize, predicted: f64) -> f64 {
        let config = &self.config;
        let of = |wanted: &dyn Fn(&str) -> bool| -> f64 {
            self.specs.iter().filter(|spec| wanted(&spec.name)).map(|spec| spec.elements() as f64).sum()
        };
        let has_output = config.predictions.language.is_some();
        let output = if config.tied { "token_embedding.weight" } else { "head.weight" };
        let is_table = |name: &str| name.ends_with("embedding.weight") && name != "patch_embedding.weight";
        let inside = of(&|name| name != output && !is_table(name));
        let parameters = inside + if has_output { predicted * of(&|name| name == output) } else { 0.0 };
        let (share, attention) = match config.architecture {
            Architecture::Decoder => (1.0, 1.0),
            Architecture::Encoder => (1.0, 2.0),
            Architecture::EncoderDecoder => (0.5, 2.5),
        };
        6.0 * (share * parameters + attention * (config.layers * config.channels * time) as f64)
    }

    /// Records one stack; the result is `(B, T, C)`.
    pub(super) fn record_stack(
        &self,
        tape: &mut Tape<'_>,
        stack: &Stack,
        inputs: &Inputs,
        recompute: bool,
        caches: Option<&[BlockCache]>,
        memory: Option<StackMemory<'_>>,
    ) -> Result<Value, Error> {
        let config = &self.config;
        let positions = match config.positions {
            Positions::Learned => stack.position_embedding.map(EmbeddingPositions::Learned),
            Positions::Sinusoidal => Some(EmbeddingPositions::Sinusoidal),
            _ => None,
        };
        if stack.type_embedding.is_some() && inputs.type_ids.is_none() {
            let what = "this model tells kinds of tokens apart: give the kind of each".to_owned();
            return Err(Error::Shape { operation: "embedding", what });
        }
        let types = stack.type_embedding.zip(inputs.type_ids);
        let embedding = EmbeddingInputs { positions, position_ids: inputs.position_ids, types };
        let mut stream = tape.embedding(inputs.ids, self.token_embedding, embedding)?;
        if let Some(weight) = self.patch_embedding {
            let patches = inputs.patches.ok_or_else(|| {
                let what = "this model reads images: give the patch of each place".to_owned();
                Error::Shape { operation: "embedding", what }
            })?;
            stream = tape.linear(patches, weight, None, Activation::Identity, Some(stream))?;
        }
        if let Some(norm) = &stack.embedding_norm {
            stream = record_norm(tape, config, stream, norm)?;
        }
        stream = tape.dropout(stream, config.embedding_dropout, None)?;
        // A step of decoding may look back over all of a cache.
        let time = tape.shape(inputs.ids).last().copied().unwrap_or(0);
        let radius = if caches.is_some() { config.block } else { time };
        let relative_bias = match config.positions {
            Positions::Relative { buckets, max_distance } => {
                let kind = Kind::Buckets { buckets, max_distance, bidirectional: stack.mask == Mask::Full };
                Some(tape.relative_bias(kind, config.heads, radius, stack.position_bias)?)
            }
            Positions::Alibi => Some(tape.relative_bias(Kind::Alibi, config.heads, radius, None)?),
            _ => None,
        };
        let options = BlockOptions { mask: stack.mask, recomputes_hidden: recompute };
        let around = Surroundings {
            documents: inputs.documents,
            position_ids: inputs.position_ids,
            relative_bias,
            memory: None,
            cache: None,
        };
        for (layer, block) in stack.blocks.iter().enumerate() {
            let memory = memory.map(|memory| memory.of_layer(layer));
            let around = Surroundings { cache: caches.map(|caches| &caches[layer]), memory, ..around };
            stream = tape.scoped(&format!("blocks.{layer}"), |tape| {
                let record = |tape: &mut Tape<'_>| block.record(tape, stream, config, &options, &around);
                if recompute { tape.recomputed(record) } else { record(tape) }
            })?;
        }
        match &stack.final_norm {
            Some(norm) => tape.scoped("final_norm", |tape| record_norm(tape, config, stream, norm)),
            None => Ok(stream),
        }
    }

    /// Records all that comes before the heads, of a model of one stack; the result is `(B, T, C)`.
    ///
    /// # Errors
    /// More tokens than the model has positions.
    pub fn record_trunk(&self, tape: &mut Tape<'_>, inputs: &Inputs, recompute: bool) -> Result<Value, Error> {
        self.record_stack(tape, &self.stacks[0], inputs, recompute, None, None)
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
        let trunk = self.record_trunk(tape, &Inputs::rows(ids), options.recompute)?;
        self.record_token_loss(tape, trunk, targets, 0.0, options.chunk_rows)
    }

    /// Records the logits of all positions, `(B, T, V)`.
    ///
    /// # Errors
    /// More tokens than the model has positions.
    pub fn record_logits(&self, tape: &mut Tape<'_>, ids: Value) -> Result<Value, Error> {
        let trunk = self.record_trunk(tape, &Inputs::rows(ids), false)?;
        self.record_token_logits(tape, trunk)
    }

    /// Records a step of decoding: the logits that follow the last of the new tokens, `(B, V)`. One token of each of
    /// several sequences, or several tokens of one.
    ///
    /// # Errors
    /// Several tokens of several sequences; a training tape.
    pub fn record_next(&self, tape: &mut Tape<'_>, ids: Value, caches: &[BlockCache]) -> Result<Value, Error> {
        let &[batch, time] = tape.shape(ids) else {
            let what = format!("ids are {:?}, expected (batch, time)", tape.shape(ids));
            return Err(Error::Shape { operation: "record_next", what });
        };
        let inputs = Inputs::rows(ids);
        let trunk = self.record_stack(tape, &self.stacks[0], &inputs, false, Some(caches), None)?;
        let last = if time == 1 { tape.rows(trunk, 0, batch)? } else { tape.rows(trunk, time - 1, 1)? };
        self.record_token_logits(tape, last)
    }

    /// The table that turns the stream into logits of tokens.
    pub(super) fn output_projection(&self) -> ParameterId {
        self.heads.output_projection.unwrap_or(self.token_embedding)
    }

    /// An empty cache for each layer.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn caches(
        &self,
        device: &Arc<Device>,
        sequences: usize,
        capacity: usize,
    ) -> Result<Vec<BlockCache>, OutOfMemory> {
        (0..self.config.layers).map(|_| BlockCache::new(device, &self.config, sequences, capacity)).collect()
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
