//! What a transformer is made of. Every model here is a choice of these, out of the same blocks; which of them a
//! Hugging Face `config.json` can express is the business of [`huggingface`](super::huggingface).

use super::image::ImageInput;
use crate::data::labelled::Keep;
use crate::ops::linear::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which stacks of blocks there are, and what they may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// One stack with a causal mask (Radford et al. 2018).
    Decoder,
    /// One stack that sees both directions (Devlin et al. 2019).
    Encoder,
    /// An encoder, and a decoder with cross-attention to it (Vaswani et al. 2017).
    EncoderDecoder,
}

/// Kinds of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Layer norm (Ba et al. 2016), with a bias.
    Layer,
    /// RMS norm (Zhang and Sennrich 2019), without.
    Rms,
}

/// Where a block normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormPlace {
    /// The input of each branch; and the stream once more after the last block.
    Pre,
    /// The sum of each branch and the stream, as in the original transformer.
    Post,
}

/// How a model knows where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// A table, added to the embeddings.
    Learned,
    /// Sines and cosines, added to the embeddings (Vaswani et al. 2017).
    Sinusoidal,
    /// Queries and keys are rotated (Su et al. 2021); `theta` is the base of the wavelengths.
    Rotary { theta: f32 },
    /// A penalty on distance in each head (Press et al. 2022).
    Alibi,
    /// A learned bias for each head and bucket of distances (Raffel et al. 2020).
    Relative { buckets: usize, max_distance: usize },
    /// Not at all.
    None,
}

/// What turns the stream into predictions of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanguageHead {
    /// A linear layer, the activation and a norm come before the output projection, and a bias after it (BERT).
    pub transform: bool,
}

/// Which vector stands for a whole text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// That of the first token.
    First,
    /// The mean of all.
    Mean,
}

/// A gated depthwise convolution over time; see [`gated_conv`](crate::ops::gated_conv).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Convolution {
    /// Positions that it looks at; odd where they lie around the position itself.
    pub taps: usize,
    /// Positions from one tap to the next.
    pub dilation: usize,
}

/// What is put on top of the last block. A model may have several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heads {
    /// Predicts tokens.
    pub language: Option<LanguageHead>,
    /// Predicts tokens from their surroundings alone (convolutional sequence modelling), through the head `language`.
    #[serde(default)]
    pub surroundings: Option<Convolution>,
    /// A linear layer and tanh on the pooled vector, before the classes (BERT's pooler).
    pub pooler: bool,
    /// Names of the classes, or of the figures of a regression.
    pub classes: Option<Vec<String>>,
    /// Start and end of an answer.
    pub spans: bool,
}

/// Sizes and choices of a transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub architecture: Architecture,
    /// What is read besides token ids; an encoder of images.
    #[serde(default)]
    pub image: Option<ImageInput>,
    /// `V`: number of token ids.
    pub vocabulary: usize,
    /// Longest sequence.
    pub block: usize,
    /// `C`
    pub channels: usize,
    /// `L`: blocks of each stack.
    pub layers: usize,
    /// `H`
    pub heads: usize,
    /// `HK`, which divides `H`.
    pub kv_heads: usize,
    /// `F`
    pub ffn: usize,
    pub norm: Norm,
    pub norm_place: NormPlace,
    /// Added to the variance, or to the mean square, in every norm.
    pub norm_epsilon: f32,
    #[serde(with = "activation_name")]
    pub activation: Activation,
    pub positions: Positions,
    /// A convolution at the start of each block.
    #[serde(default)]
    pub convolution: Option<Convolution>,
    /// Whether linear layers have biases.
    pub biases: bool,
    /// Kinds of tokens that a table of their own tells apart (first and second text); 0 for no such table.
    pub token_types: usize,
    /// Whether the sum of embeddings is normalised.
    pub embedding_norm: bool,
    /// The output projection is the token embedding.
    pub tied: bool,
    /// Dropout of the embeddings' sum.
    pub embedding_dropout: f32,
    /// Dropout of attention probabilities.
    pub attention_dropout: f32,
    /// Dropout of each branch before it joins the residual stream.
    pub residual_dropout: f32,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
    /// What represents a text for the classes.
    pub pooling: Pooling,
    pub predictions: Heads,
    /// Token that begins a text, if any. It may lie outside a small vocabulary: `transformers` allows that.
    pub bos: Option<u32>,
    /// Token that ends a text, if any; as `bos`.
    pub eos: Option<u32>,
    /// Keys of `config.json` that mean nothing here; written back as they were.
    #[serde(skip)]
    pub other: Map<String, Value>,
}

/// How long texts were cut for training: what is asked later has to be cut alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextCut {
    /// Tokens of a text at most, special ones included.
    pub max_tokens: usize,
    /// Which part is kept.
    pub keep: Keep,
    /// Tokens by which windows over the context of a question overlap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
}

/// The key of `config.json` for [`TextCut`].
const TEXT_CUT: &str = "engine_texts";

impl TextCut {
    /// The key and its value for [`ModelConfig::other`].
    pub(crate) fn entry(self) -> (String, Value) {
        (TEXT_CUT.into(), serde_json::json!(self))
    }
}

impl ModelConfig {
    /// How texts were cut for training, where the folder says.
    pub fn text_cut(&self) -> Option<TextCut> {
        self.other.get(TEXT_CUT).and_then(|value| TextCut::deserialize(value).ok())
    }

    /// GPT-2 (124M; Radford et al. 2019).
    pub fn gpt2() -> Self {
        Self {
            architecture: Architecture::Decoder,
            image: None,
            vocabulary: 50257,
            block: 1024,
            channels: 768,
            layers: 12,
            heads: 12,
            kv_heads: 12,
            ffn: 3072,
            norm: Norm::Layer,
            norm_place: NormPlace::Pre,
            norm_epsilon: 1e-5,
            activation: Activation::GeluTanh,
            positions: Positions::Learned,
            convolution: None,
            biases: true,
            token_types: 0,
            embedding_norm: false,
            tied: true,
            embedding_dropout: 0.1,
            attention_dropout: 0.1,
            residual_dropout: 0.1,
            initializer_range: 0.02,
            pooling: Pooling::First,
            predictions: Heads { language: Some(LanguageHead { transform: false }), ..Heads::default() },
            bos: Some(50256),
            eos: Some(50256),
            other: Map::new(),
        }
    }

    /// BERT base, uncased (Devlin et al. 2019), with the head of its masked language model.
    pub fn bert() -> Self {
        Self {
            architecture: Architecture::Encoder,
            vocabulary: 30522,
            block: 512,
            norm_place: NormPlace::Post,
            norm_epsilon: 1e-12,
            activation: Activation::GeluErf,
            token_types: 2,
            embedding_norm: true,
            predictions: Heads { language: Some(LanguageHead { transform: true }), ..Heads::default() },
            bos: None,
            eos: None,
            ..Self::gpt2()
        }
    }

    /// Llama 2 with 7 thousand million parameters (Touvron et al. 2023).
    pub fn llama() -> Self {
        Self {
            vocabulary: 32000,
            block: 4096,
            channels: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 32,
            ffn: 11008,
            norm: Norm::Rms,
            norm_epsilon: 1e-6,
            activation: Activation::SwiGlu,
            positions: Positions::Rotary { theta: 10000.0 },
            biases: false,
            tied: false,
            embedding_dropout: 0.0,
            attention_dropout: 0.0,
            residual_dropout: 0.0,
            bos: Some(1),
            eos: Some(2),
            ..Self::gpt2()
        }
    }

    /// `D`
    pub fn head_size(&self) -> usize {
        self.channels / self.heads
    }
}

/// Names of activations in configurations.
pub const ACTIVATIONS: [(&str, Activation); 4] = [
    ("relu", Activation::Relu),
    ("gelu", Activation::GeluErf),
    ("gelu-tanh", Activation::GeluTanh),
    ("swiglu", Activation::SwiGlu),
];

mod activation_name {
    use super::{ACTIVATIONS, Activation};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(activation: &Activation, serializer: S) -> Result<S::Ok, S::Error> {
        let name = ACTIVATIONS.iter().find(|(_, known)| known == activation).map_or("gelu", |(name, _)| name);
        serializer.serialize_str(name)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Activation, D::Error> {
        let found = String::deserialize(deserializer)?;
        let known = ACTIVATIONS.iter().find(|(name, _)| *name == found);
        known.map(|&(_, activation)| activation).ok_or_else(|| D::Error::custom(format!("unknown activation {found}")))
    }
}
