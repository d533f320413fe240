//! GPT-2's configuration: `config.json` of a `GPT2LMHeadModel`, and the parameters that it implies.

use super::{CONFIG_FILE, Error, HEAD, PREFIX, ParameterSpec, TOKEN_EMBEDDING};
use crate::model::weights::{self, one_line};
use crate::util::atomic_file::write_atomically;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// GPT-2's hyperparameters, as `config.json` of a `GPT2LMHeadModel` has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// `V`: number of token ids (`vocab_size`).
    pub vocabulary: usize,
    /// Longest sequence: rows of the table of positions (`n_positions`).
    pub block: usize,
    /// `C` (`n_embd`).
    pub channels: usize,
    /// `L` (`n_layer`).
    pub layers: usize,
    /// `H` (`n_head`).
    pub heads: usize,
    /// `F` (`n_inner`; four times the channels where that is null).
    pub ffn: usize,
    /// Added to the variance in every layer norm (`layer_norm_epsilon`).
    pub layer_norm_epsilon: f32,
    /// The output projection is the token embedding (`tie_word_embeddings`).
    pub tied: bool,
    /// Dropout of the embeddings' sum (`embd_pdrop`).
    pub embedding_dropout: f32,
    /// Dropout of attention probabilities (`attn_pdrop`).
    pub attention_dropout: f32,
    /// Dropout of each branch before it joins the residual stream (`resid_pdrop`).
    pub residual_dropout: f32,
    /// Standard deviation of fresh weights (`initializer_range`).
    pub initializer_range: f32,
    /// Token that begins a text, if any. It may lie outside a small vocabulary: `transformers` allows that.
    pub bos: Option<u32>,
    /// Token that ends a text, if any; as `bos`.
    pub eos: Option<u32>,
    /// Keys of `config.json` that mean nothing here; written back as they were.
    pub other: Map<String, Value>,
}

impl Gpt2Config {
    /// The configuration of GPT-2 (124M), also what keys that are absent from a file stand for.
    pub fn gpt2() -> Self {
        Self {
            vocabulary: 50257,
            block: 1024,
            channels: 768,
            layers: 12,
            heads: 12,
            ffn: 3072,
            layer_norm_epsilon: 1e-5,
            tied: true,
            embedding_dropout: 0.1,
            attention_dropout: 0.1,
            residual_dropout: 0.1,
            initializer_range: 0.02,
            bos: Some(50256),
            eos: Some(50256),
            other: Map::new(),
        }
    }

    /// Reads `config.json` of `folder`. The activation is always tanh-GELU, whichever of its names is used.
    ///
    /// # Errors
    /// [`Error::Weights`] where the file cannot be read; [`Error::Config`] where it is not JSON, describes another kind
    /// of model or an option that changes the mathematics, or has a value of the wrong type or out of range.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(CONFIG_FILE);
        let text = weights::read_limited(&path, 16 << 20)?;
        let object = match serde_json::from_slice(&text) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(wrong(&path, "the whole file", "no JSON object", "export it again")),
            Err(error) => {
                let found = format!("not JSON ({})", one_line(&error.to_string()));
                return Err(wrong(&path, "the whole file", &found, "export it again"));
            }
        };
        ConfigReader { path, object }.read()
    }

    /// Writes `config.json` into `folder`, as `transformers` writes it.
    ///
    /// # Errors
    /// [`Error::Weights`] where the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let mut object = self.other.clone();
        let Value::Object(ours) = json!({
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "dtype": "float32",
            "vocab_size": self.vocabulary,
            "n_positions": self.block,
            "n_embd": self.channels,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_inner": if self.ffn == 4 * self.channels { Value::Null } else { json!(self.ffn) },
            "activation_function": "gelu_new",
            "layer_norm_epsilon": as_typed(self.layer_norm_epsilon),
            "tie_word_embeddings": self.tied,
            "embd_pdrop": as_typed(self.embedding_dropout),
            "attn_pdrop": as_typed(self.attention_dropout),
            "resid_pdrop": as_typed(self.residual_dropout),
            "initializer_range": as_typed(self.initializer_range),
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
            "scale_attn_weights": true,
            "scale_attn_by_inverse_layer_idx": false,
            "reorder_and_upcast_attn": false,
            "add_cross_attention": false,
        }) else {
            unreachable!("the literal above is an object")
        };
        object.extend(ours);
        let mut text = serde_json::to_string_pretty(&object).expect("a JSON value has a JSON form");
        text.push('\n');
        let path = folder.join(CONFIG_FILE);
        Ok(write_atomically(&path, |writer| writer.write_all(text.as_bytes())).map_err(weights::Error::from)?)
    }

    /// The model's parameters, in the order in which they are used: names and shapes here and in the folder.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let (channels, ffn) = (self.channels, self.ffn);
        let mut list = Vec::with_capacity(12 * self.layers + 5);
        let table = |ours: &str, rows, theirs: &str| ParameterSpec {
            name: ours.into(),
            shape: vec![rows, channels],
            huggingface_name: theirs.into(),
            transposed: false,
        };
        list.push(table("token_embedding.weight", self.vocabulary, TOKEN_EMBEDDING));
        list.push(table("position_embedding.weight", self.block, "transformer.wpe.weight"));
        for layer in 0..self.layers {
            let (ours, theirs) = (format!("blocks.{layer}"), format!("{PREFIX}h.{layer}"));
            push_norm(&mut list, channels, &format!("{ours}.attention_norm"), &format!("{theirs}.ln_1"));
            for (part, from, to, conv1d) in [
                ("attention.qkv", channels, 3 * channels, "attn.c_attn"),
                ("attention.projection", channels, channels, "attn.c_proj"),
            ] {
                push_linear(&mut list, from, to, &format!("{ours}.{part}"), &format!("{theirs}.{conv1d}"));
            }
            push_norm(&mut list, channels, &format!("{ours}.ffn_norm"), &format!("{theirs}.ln_2"));
            push_linear(&mut list, channels, ffn, &format!("{ours}.ffn.up"), &format!("{theirs}.mlp.c_fc"));
            push_linear(&mut list, ffn, channels, &format!("{ours}.ffn.down"), &format!("{theirs}.mlp.c_proj"));
        }
        push_norm(&mut list, channels, "final_norm", "transformer.ln_f");
        if !self.tied {
            list.push(table("head.weight", self.vocabulary, HEAD));
        }
        list
    }
}

/// The shortest decimal that is this f32, as an f64: `0.1`, not `0.10000000149`.
fn as_typed(value: f32) -> f64 {
    value.to_string().parse().expect("a number's decimal form is a number")
}

fn push_norm(list: &mut Vec<ParameterSpec>, channels: usize, ours: &str, theirs: &str) {
    for part in ["weight", "bias"] {
        list.push(ParameterSpec {
            name: format!("{ours}.{part}"),
            shape: vec![channels],
            huggingface_name: format!("{theirs}.{part}"),
            transposed: false,
        });
    }
}

/// A `Conv1D` there, `(from, to)`; a linear here, `(to, from)`.
fn push_linear(list: &mut Vec<ParameterSpec>, from: usize, to: usize, ours: &str, theirs: &str) {
    for (part, shape) in [("weight", vec![to, from]), ("bias", vec![to])] {
        list.push(ParameterSpec {
            name: format!("{ours}.{part}"),
            transposed: shape.len() == 2,
            shape,
            huggingface_name: format!("{theirs}.{part}"),
        });
    }
}

fn wrong(path: &Path, key: &str, found: &str, expected: &str) -> Error {
    Error::Config { path: path.to_owned(), key: key.into(), found: found.into(), expected: expected.into() }
}

/// `config.json` while it is read: what is understood is taken out, what remains is kept for writing back.
struct ConfigReader {
    path: PathBuf,
    object: Map<String, Value>,
}

impl ConfigReader {
    fn read(mut self) -> Result<Gpt2Config, Error> {
        self.demand("model_type", &[json!("gpt2")], "only \"gpt2\" is read here")?;
        // Both names mean the tanh approximation; plain "gelu" is the exact one.
        let activations = [json!("gelu_new"), json!("gelu_pytorch_tanh")];
        self.demand("activation_function", &activations, "only \"gelu_new\" (tanh-GELU) is supported")?;
        self.demand("scale_attn_weights", &[json!(true)], "only true is supported (scores scaled by 1/sqrt(D))")?;
        for key in ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"] {
            self.demand(key, &[json!(false)], "only false is supported")?;
        }
        self.demand("quantization_config", &[Value::Null], "quantized weights are not read: use the original ones")?;
        self.demand("pruned_heads", &[Value::Null, json!({})], "pruned heads are not supported")?;
        for key in ["architectures", "dtype", "torch_dtype", "n_ctx"] {
            self.object.remove(key);
        }

        let usual = Gpt2Config::gpt2();
        // Bounds far above any model, so that no product of sizes overflows and no list of layers fills the memory.
        let vocabulary = self.size(&["vocab_size"], usual.vocabulary, 1 << 28)?;
        let block = self.size(&["n_positions", "max_position_embeddings"], usual.block, 1 << 28)?;
        let channels = self.size(&["n_embd", "hidden_size"], usual.channels, 1 << 20)?;
        let layers = self.size(&["n_layer", "num_hidden_layers"], usual.layers, 1 << 14)?;
        let heads = self.size(&["n_head", "num_attention_heads"], usual.heads, 1 << 20)?;
        let ffn = self.size(&["n_inner"], 4 * channels, 1 << 24)?;
        if channels % heads != 0 {
            let expected = format!("it must divide n_embd, {channels}");
            return Err(wrong(&self.path, "n_head", &heads.to_string(), &expected));
        }
        Ok(Gpt2Config {
            vocabulary,
            block,
            channels,
            layers,
            heads,
            ffn,
            layer_norm_epsilon: self.number("layer_norm_epsilon", usual.layer_norm_epsilon, 0.0..1.0)?,
            tied: self.boolean("tie_word_embeddings", usual.tied)?,
            embedding_dropout: self.number("embd_pdrop", usual.embedding_dropout, 0.0..1.0)?,
            attention_dropout: self.number("attn_pdrop", usual.attention_dropout, 0.0..1.0)?,
            residual_dropout: self.number("resid_pdrop", usual.residual_dropout, 0.0..1.0)?,
            initializer_range: self.number("initializer_range", usual.initializer_range, 0.0..1e6)?,
            bos: self.token("bos_token_id", usual.bos)?,
            eos: self.token("eos_token_id", usual.eos)?,
            other: self.object,
        })
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> Error {
        wrong(&self.path, key, &one_line(&found.to_string()), expected)
    }

    /// Absent, or one of `allowed`.
    fn demand(&mut self, key: &str, allowed: &[Value], expected: &str) -> Result<(), Error> {
        match self.object.remove(key) {
            Some(found) if !allowed.contains(&found) => Err(self.wrong(key, &found, expected)),
            _ => Ok(()),
        }
    }

    /// A size from 1 to `limit`, under the first of `keys` that is there; null counts as absent.
    fn size(&mut self, keys: &[&str], default: usize, limit: u64) -> Result<usize, Error> {
        let mut size = None;
        for &key in keys {
            let Some(found) = self.object.remove(key).filter(|found| !found.is_null()) else { continue };
            match found.as_u64() {
                Some(number) if (1..=limit).contains(&number) => size = size.or(Some(number as usize)),
                _ => return Err(self.wrong(key, &found, &format!("it must be a whole number from 1 to {limit}"))),
            }
        }
        Ok(size.unwrap_or(default))
    }

    fn number(&mut self, key: &str, default: f32, range: std::ops::Range<f64>) -> Result<f32, Error> {
        let Some(found) = self.object.remove(key) else { return Ok(default) };
        match found.as_f64() {
            Some(number) if range.contains(&number) => Ok(number as f32),
            _ => Err(self.wrong(key, &found, &format!("it must be at least {} and below {}", range.start, range.end))),
        }
    }

    fn boolean(&mut self, key: &str, default: bool) -> Result<bool, Error> {
        match self.object.remove(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(found) => Err(self.wrong(key, &found, "it must be true or false")),
        }
    }

    fn token(&mut self, key: &str, default: Option<u32>) -> Result<Option<u32>, Error> {
        match self.object.remove(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(found) => match found.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => Ok(Some(id)),
                None => Err(self.wrong(key, &found, "it must be one token id or null")),
            },
        }
    }
}
