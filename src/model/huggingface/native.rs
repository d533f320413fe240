//! Models that no class of `transformers` is: all of our own configuration in `config.json`, parameters under our own
//! names and in our own layout.

use super::reader::ConfigReader;
use super::{Error, LIMITS};
use crate::model::config::{Architecture, Convolution, ModelConfig};
use crate::model::image::ImageInput;
use crate::ops::gated_conv::{DILATION_MAX, TAPS_MAX};
use serde_json::{Value, json};

/// What `model_type` says of them.
pub(super) const MODEL_TYPE: &str = "engine";

pub(super) fn read(mut reader: ConfigReader) -> Result<ModelConfig, Error> {
    reader.class();
    let fields = match serde_json::to_value(ModelConfig::gpt2()) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("a configuration is a JSON object"),
    };
    let ours = fields.keys().filter_map(|key| reader.object.remove_entry(key)).collect();
    let mut config: ModelConfig = serde_json::from_value(Value::Object(ours)).map_err(|error| {
        super::reader::wrong(&reader.path, "the whole file", &format!("no model ({error})"), "export it again")
    })?;
    for (key, found, limit) in [
        ("vocabulary", config.vocabulary, LIMITS.vocabulary),
        ("block", config.block, LIMITS.block),
        ("channels", config.channels, LIMITS.channels),
        ("layers", config.layers, LIMITS.layers),
        ("heads", config.heads, LIMITS.heads),
        ("kv_heads", config.kv_heads, LIMITS.heads),
        ("ffn", config.ffn, LIMITS.ffn),
    ] {
        if found == 0 || found as u64 > limit {
            return Err(reader.wrong(key, &json!(found), &format!("it must be a whole number from 1 to {limit}")));
        }
    }
    for (key, convolution) in
        [("convolution", config.convolution), ("predictions.surroundings", config.predictions.surroundings)]
    {
        let is_sound = |c: Convolution| (1..=TAPS_MAX).contains(&c.taps) && (1..=DILATION_MAX).contains(&c.dilation);
        if !convolution.is_none_or(is_sound) {
            let remedy = format!("1 to {TAPS_MAX} taps, 1 to {DILATION_MAX} positions apart");
            return Err(reader.wrong(key, &json!(convolution), &remedy));
        }
    }
    if !config.channels.is_multiple_of(config.heads) || !config.heads.is_multiple_of(config.kv_heads) {
        let found = json!([config.channels, config.heads, config.kv_heads]);
        return Err(reader.wrong("channels, heads, kv_heads", &found, "each must divide the one before"));
    }
    if let Some(image) = &config.image {
        let found = serde_json::to_value(image).unwrap_or_default();
        if let Some(fault) = image.fault() {
            return Err(reader.wrong("image", &found, fault));
        }
        if image.places(config.pooling) > config.block {
            return Err(reader.wrong("image", &found, &format!("it has more places than block = {}", config.block)));
        }
        if config.architecture != Architecture::Encoder || config.vocabulary != ImageInput::vocabulary(config.pooling) {
            return Err(reader.wrong("image", &found, "only an encoder with ids for patches alone reads images"));
        }
    }
    config.other = reader.object;
    Ok(config)
}

pub(super) fn write(config: &ModelConfig) -> Value {
    let mut object = serde_json::to_value(config).expect("a configuration has a JSON form");
    object["model_type"] = json!(MODEL_TYPE);
    object
}
