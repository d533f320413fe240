//! Llama and what shares its form: `config.json` and tensor names of a `LlamaForCausalLM`.
//!
//! Queries, keys and values are three linear layers there, one here; so are gate and up of the feed-forward layer.

use super::reader::{ConfigReader, as_typed, wrong};
use super::{Error, LIMITS, Stored};
use crate::model::config::{ModelConfig, Positions};
use serde_json::{Value, json};

pub(super) fn read(mut reader: ConfigReader) -> Result<ModelConfig, Error> {
    reader.demand("hidden_act", &[json!("silu")], "only \"silu\" is supported")?;
    for key in ["attention_bias", "mlp_bias"] {
        reader.demand(key, &[json!(false)], "only false is supported")?;
    }
    reader.demand("rope_scaling", &[Value::Null], "scaled rotary positions are not supported")?;
    let usual = ModelConfig::llama();
    // Newer files keep the base of the wavelengths in an object.
    let theta = match reader.object.remove("rope_parameters") {
        Some(Value::Object(rope)) => {
            let kind = rope.get("rope_type").cloned().unwrap_or_else(|| json!("default"));
            if kind != json!("default") {
                return Err(reader.wrong("rope_parameters.rope_type", &kind, "only \"default\" is supported"));
            }
            rope.get("rope_theta").and_then(Value::as_f64)
        }
        _ => None,
    };
    let theta = match theta {
        Some(theta) => theta as f32,
        None => reader.number("rope_theta", 10000.0, 1.0..1e12)?,
    };
    reader.class();
    let vocabulary = reader.size(&["vocab_size"], usual.vocabulary, LIMITS.vocabulary)?;
    let block = reader.size(&["max_position_embeddings"], usual.block, LIMITS.block)?;
    let channels = reader.size(&["hidden_size"], usual.channels, LIMITS.channels)?;
    let layers = reader.size(&["num_hidden_layers"], usual.layers, LIMITS.layers)?;
    let heads = reader.size(&["num_attention_heads"], usual.heads, LIMITS.heads)?;
    let kv_heads = reader.size(&["num_key_value_heads"], heads, LIMITS.heads)?;
    let ffn = reader.size(&["intermediate_size"], usual.ffn, LIMITS.ffn)?;
    for (key, found, whole, whole_key) in [
        ("num_attention_heads", heads, channels, "hidden_size"),
        ("num_key_value_heads", kv_heads, heads, "num_attention_heads"),
    ] {
        if whole % found != 0 {
            return Err(wrong(&reader.path, key, &found.to_string(), &format!("it must divide {whole_key}, {whole}")));
        }
    }
    let head_size = channels / heads;
    reader.demand(
        "head_dim",
        &[Value::Null, json!(head_size)],
        "only hidden_size / num_attention_heads is supported",
    )?;
    Ok(ModelConfig {
        vocabulary,
        block,
        channels,
        layers,
        heads,
        kv_heads,
        ffn,
        positions: Positions::Rotary { theta },
        norm_epsilon: reader.number("rms_norm_eps", usual.norm_epsilon, 0.0..1.0)?,
        tied: reader.boolean("tie_word_embeddings", usual.tied)?,
        attention_dropout: reader.number("attention_dropout", 0.0, 0.0..1.0)?,
        initializer_range: reader.number("initializer_range", usual.initializer_range, 0.0..1e6)?,
        bos: reader.token("bos_token_id", usual.bos)?,
        eos: reader.token("eos_token_id", usual.eos)?,
        other: reader.object,
        ..usual
    })
}

/// Whether Llama's configuration can say all that this one does.
pub(super) fn fits(config: &ModelConfig) -> bool {
    let usual = ModelConfig::llama();
    let mut same_kind = ModelConfig {
        norm_epsilon: config.norm_epsilon,
        tied: config.tied,
        positions: config.positions,
        pooling: config.pooling,
        ..usual
    };
    super::copy_sizes(config, &mut same_kind);
    (same_kind.embedding_dropout, same_kind.residual_dropout) = (0.0, 0.0);
    same_kind == *config && matches!(config.positions, Positions::Rotary { .. })
}

pub(super) fn write(config: &ModelConfig) -> Value {
    let Positions::Rotary { theta } = config.positions else { unreachable!("a Llama has rotary positions") };
    json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.block,
        "hidden_size": config.channels,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size(),
        "intermediate_size": config.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": as_typed(config.norm_epsilon),
        "rope_theta": as_typed(theta),
        "tie_word_embeddings": config.tied,
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": as_typed(config.attention_dropout),
        "initializer_range": as_typed(config.initializer_range),
        "bos_token_id": config.bos,
        "eos_token_id": config.eos,
    })
}

/// Where a folder has the parameter of this name.
pub(super) fn stored(config: &ModelConfig, name: &str, shape: &[usize]) -> Vec<Stored> {
    let (module, kind) = name.rsplit_once('.').expect("names end in .weight");
    let whole = |theirs: &str| vec![Stored::whole(format!("{theirs}.{kind}"), shape)];
    match module {
        "token_embedding" => whole("model.embed_tokens"),
        "final_norm" => whole("model.norm"),
        "head" => whole("lm_head"),
        _ => {
            let (layer, part) = super::block_part(module);
            let block = format!("model.layers.{layer}");
            let rows = |name: &str, rows| Stored::rows(format!("{block}.{name}.{kind}"), rows);
            let keys = config.kv_heads * config.head_size();
            match part {
                "attention_norm" => whole(&format!("{block}.input_layernorm")),
                "attention.qkv" => vec![
                    rows("self_attn.q_proj", config.channels),
                    rows("self_attn.k_proj", keys),
                    rows("self_attn.v_proj", keys),
                ],
                "attention.projection" => whole(&format!("{block}.self_attn.o_proj")),
                "ffn_norm" => whole(&format!("{block}.post_attention_layernorm")),
                "ffn.up" => vec![rows("mlp.gate_proj", config.ffn), rows("mlp.up_proj", config.ffn)],
                "ffn.down" => whole(&format!("{block}.mlp.down_proj")),
                other => unreachable!("a Llama has no {other}"),
            }
        }
    }
}
