//! GPT-2: `config.json` and tensor names of a `GPT2LMHeadModel`.
//!
//! Its linear weights are `Conv1D`, that is `(in, out)`, the transpose of ours; names may lack the prefix
//! `transformer.` (files of the bare `GPT2Model`).

use super::reader::{ConfigReader, as_typed, wrong};
use super::{Error, LIMITS, Stored};
use crate::model::config::ModelConfig;
use crate::ops::linear::Activation;
use serde_json::{Value, json};

pub(super) fn read(mut reader: ConfigReader) -> Result<ModelConfig, Error> {
    // Both names mean the tanh approximation; plain "gelu" is the exact one.
    let activations = [json!("gelu_new"), json!("gelu_pytorch_tanh")];
    reader.demand("activation_function", &activations, "only \"gelu_new\" (tanh-GELU) is supported")?;
    reader.demand("scale_attn_weights", &[json!(true)], "only true is supported (scores scaled by 1/sqrt(D))")?;
    for key in ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"] {
        reader.demand(key, &[json!(false)], "only false is supported")?;
    }
    reader.class();
    reader.object.remove("n_ctx");
    let usual = ModelConfig::gpt2();
    let vocabulary = reader.size(&["vocab_size"], usual.vocabulary, LIMITS.vocabulary)?;
    let block = reader.size(&["n_positions", "max_position_embeddings"], usual.block, LIMITS.block)?;
    let channels = reader.size(&["n_embd", "hidden_size"], usual.channels, LIMITS.channels)?;
    let layers = reader.size(&["n_layer", "num_hidden_layers"], usual.layers, LIMITS.layers)?;
    let heads = reader.size(&["n_head", "num_attention_heads"], usual.heads, LIMITS.heads)?;
    let ffn = reader.size(&["n_inner"], 4 * channels, LIMITS.ffn)?;
    if channels % heads != 0 {
        let expected = format!("it must divide n_embd, {channels}");
        return Err(wrong(&reader.path, "n_head", &heads.to_string(), &expected));
    }
    Ok(ModelConfig {
        vocabulary,
        block,
        channels,
        layers,
        heads,
        kv_heads: heads,
        ffn,
        norm_epsilon: reader.number("layer_norm_epsilon", usual.norm_epsilon, 0.0..1.0)?,
        tied: reader.boolean("tie_word_embeddings", usual.tied)?,
        embedding_dropout: reader.number("embd_pdrop", usual.embedding_dropout, 0.0..1.0)?,
        attention_dropout: reader.number("attn_pdrop", usual.attention_dropout, 0.0..1.0)?,
        residual_dropout: reader.number("resid_pdrop", usual.residual_dropout, 0.0..1.0)?,
        initializer_range: reader.number("initializer_range", usual.initializer_range, 0.0..1e6)?,
        bos: reader.token("bos_token_id", usual.bos)?,
        eos: reader.token("eos_token_id", usual.eos)?,
        other: reader.object,
        ..usual
    })
}

/// Whether GPT-2's configuration can say all that this one does.
pub(super) fn fits(config: &ModelConfig) -> bool {
    let usual = ModelConfig::gpt2();
    let mut same_kind =
        ModelConfig { norm_epsilon: config.norm_epsilon, tied: config.tied, pooling: config.pooling, ..usual };
    super::copy_sizes(config, &mut same_kind);
    same_kind.kv_heads = config.heads;
    same_kind == *config && config.activation == Activation::GeluTanh
}

pub(super) fn write(config: &ModelConfig) -> Value {
    json!({
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "dtype": "float32",
        "vocab_size": config.vocabulary,
        "n_positions": config.block,
        "n_embd": config.channels,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": if config.ffn == 4 * config.channels { Value::Null } else { json!(config.ffn) },
        "activation_function": "gelu_new",
        "layer_norm_epsilon": as_typed(config.norm_epsilon),
        "tie_word_embeddings": config.tied,
        "embd_pdrop": as_typed(config.embedding_dropout),
        "attn_pdrop": as_typed(config.attention_dropout),
        "resid_pdrop": as_typed(config.residual_dropout),
        "initializer_range": as_typed(config.initializer_range),
        "bos_token_id": config.bos,
        "eos_token_id": config.eos,
        "scale_attn_weights": true,
        "scale_attn_by_inverse_layer_idx": false,
        "reorder_and_upcast_attn": false,
        "add_cross_attention": false,
    })
}

/// Where a folder has the parameter of this name.
pub(super) fn stored(name: &str, shape: &[usize]) -> Vec<Stored> {
    let (module, kind) = name.rsplit_once('.').expect("names end in .weight or .bias");
    let theirs = match module {
        "token_embedding" => "transformer.wte".to_owned(),
        "position_embedding" => "transformer.wpe".to_owned(),
        "final_norm" => "transformer.ln_f".to_owned(),
        "head" => "lm_head".to_owned(),
        _ => {
            let (layer, part) = super::block_part(module);
            let part = match part {
                "attention_norm" => "ln_1",
                "attention.qkv" => "attn.c_attn",
                "attention.projection" => "attn.c_proj",
                "ffn_norm" => "ln_2",
                "ffn.up" => "mlp.c_fc",
                "ffn.down" => "mlp.c_proj",
                other => unreachable!("a GPT-2 has no {other}"),
            };
            format!("transformer.h.{layer}.{part}")
        }
    };
    let transposed = shape.len() == 2 && module.starts_with("blocks.");
    vec![Stored { name: format!("{theirs}.{kind}"), rows: shape[0], transposed }]
}
