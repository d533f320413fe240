//! BERT and what shares its form: `config.json` and tensor names of `BertModel`, `BertForMaskedLM`,
//! `BertForSequenceClassification` and `BertForQuestionAnswering`.
//!
//! Queries, keys and values are three linear layers there, one here. Files of the bare encoder lack the prefix `bert.`.

use super::reader::{ConfigReader, as_typed, wrong};
use super::{Error, LIMITS, Stored};
use crate::model::config::{Heads, LanguageHead, ModelConfig, Norm, NormPlace, Pooling, Positions};
use crate::model::weights::one_line;
use crate::ops::linear::Activation;
use serde_json::{Map, Value, json};

/// Our own keys, for what a class has no word for.
const PREDICTIONS: &str = "engine_predictions";
const POOLING: &str = "engine_pooling";

const ACTIVATIONS: [(&str, Activation); 5] = [
    ("gelu", Activation::GeluErf),
    ("relu", Activation::Relu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python", Activation::GeluErf),
];

pub(super) fn read(mut reader: ConfigReader) -> Result<ModelConfig, Error> {
    reader.demand("position_embedding_type", &[json!("absolute")], "only \"absolute\" is supported")?;
    for key in ["is_decoder", "add_cross_attention"] {
        reader.demand(key, &[json!(false)], "only false is supported")?;
    }
    let usual = ModelConfig::bert();
    let vocabulary = reader.size(&["vocab_size"], usual.vocabulary, LIMITS.vocabulary)?;
    let block = reader.size(&["max_position_embeddings"], usual.block, LIMITS.block)?;
    let channels = reader.size(&["hidden_size"], usual.channels, LIMITS.channels)?;
    let layers = reader.size(&["num_hidden_layers"], usual.layers, LIMITS.layers)?;
    let heads = reader.size(&["num_attention_heads"], usual.heads, LIMITS.heads)?;
    let ffn = reader.size(&["intermediate_size"], 4 * channels, LIMITS.ffn)?;
    if channels % heads != 0 {
        let expected = format!("it must divide hidden_size, {channels}");
        return Err(wrong(&reader.path, "num_attention_heads", &heads.to_string(), &expected));
    }
    let classes = classes(&mut reader)?;
    let class = reader.class();
    let Some(heads_of_class) = class_heads(&class, classes) else {
        let expected = "BertModel, BertForMaskedLM, BertForSequenceClassification or BertForQuestionAnswering";
        return Err(wrong(&reader.path, "architectures", &one_line(&class), expected));
    };
    Ok(ModelConfig {
        vocabulary,
        block,
        channels,
        layers,
        heads,
        kv_heads: heads,
        ffn,
        norm_epsilon: reader.number("layer_norm_eps", usual.norm_epsilon, 0.0..1.0)?,
        activation: reader.choice("hidden_act", "gelu", &ACTIVATIONS)?,
        token_types: reader.size(&["type_vocab_size"], 2, LIMITS.block)?,
        tied: reader.boolean("tie_word_embeddings", true)?,
        attention_dropout: reader.number("attention_probs_dropout_prob", 0.1, 0.0..1.0)?,
        embedding_dropout: reader.number("hidden_dropout_prob", 0.1, 0.0..1.0)?,
        initializer_range: reader.number("initializer_range", usual.initializer_range, 0.0..1e6)?,
        predictions: reader.ours(PREDICTIONS)?.unwrap_or(heads_of_class),
        pooling: reader.ours(POOLING)?.unwrap_or(Pooling::First),
        other: reader.object,
        ..usual
    })
    .map(|config| ModelConfig { residual_dropout: config.embedding_dropout, ..config })
}

/// The heads that a class of `transformers` has.
fn class_heads(class: &str, classes: Option<Vec<String>>) -> Option<Heads> {
    Some(match class {
        "BertForMaskedLM" => Heads { language: Some(LanguageHead { transform: true }), ..Heads::default() },
        "BertForSequenceClassification" => {
            let two = || vec!["LABEL_0".to_owned(), "LABEL_1".to_owned()];
            Heads { pooler: true, classes: Some(classes.unwrap_or_else(two)), ..Heads::default() }
        }
        "BertForQuestionAnswering" => Heads { spans: true, ..Heads::default() },
        "BertModel" | "" => Heads { pooler: true, ..Heads::default() },
        _ => return None,
    })
}

/// Names of the classes, in the order of their ids.
fn classes(reader: &mut ConfigReader) -> Result<Option<Vec<String>>, Error> {
    reader.object.remove("label2id");
    let Some(found) = reader.object.remove("id2label") else { return Ok(None) };
    let names = found.as_object().and_then(|object| {
        (0..object.len()).map(|id| object.get(&id.to_string())?.as_str().map(str::to_owned)).collect()
    });
    match names {
        Some(names) => Ok(Some(names)),
        None => Err(reader.wrong("id2label", &found, "names of the classes under \"0\", \"1\" and so on are expected")),
    }
}

/// Whether BERT's configuration can say all that this one does.
pub(super) fn fits(config: &ModelConfig) -> bool {
    let usual = ModelConfig::bert();
    let mut same_kind = ModelConfig {
        norm_epsilon: config.norm_epsilon,
        activation: config.activation,
        token_types: config.token_types.max(1),
        tied: config.tied,
        pooling: config.pooling,
        predictions: config.predictions.clone(),
        ..usual
    };
    super::copy_sizes(config, &mut same_kind);
    same_kind.kv_heads = config.heads;
    same_kind.embedding_dropout = config.residual_dropout;
    let has_norms = config.norm == Norm::Layer && config.norm_place == NormPlace::Post;
    let has_transform = config.predictions.language.is_none_or(|head| head.transform);
    same_kind == *config
        && has_norms
        && has_transform
        && config.positions == Positions::Learned
        && ACTIVATIONS.iter().any(|&(_, known)| known == config.activation)
}

pub(super) fn write(config: &ModelConfig) -> Value {
    let Heads { language, classes, spans, .. } = &config.predictions;
    let class = match (language, classes, spans) {
        (Some(_), ..) => "BertForMaskedLM",
        (None, Some(_), _) => "BertForSequenceClassification",
        (None, None, true) => "BertForQuestionAnswering",
        (None, None, false) => "BertModel",
    };
    let activation =
        ACTIVATIONS.iter().find(|&&(_, known)| known == config.activation).map_or("gelu", |&(name, _)| name);
    let mut object = json!({
        "model_type": "bert",
        "architectures": [class],
        "dtype": "float32",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.block,
        "hidden_size": config.channels,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn,
        "hidden_act": activation,
        "layer_norm_eps": as_typed(config.norm_epsilon),
        "type_vocab_size": config.token_types,
        "tie_word_embeddings": config.tied,
        "hidden_dropout_prob": as_typed(config.residual_dropout),
        "attention_probs_dropout_prob": as_typed(config.attention_dropout),
        "initializer_range": as_typed(config.initializer_range),
        "position_embedding_type": "absolute",
        "is_decoder": false,
        "add_cross_attention": false,
    });
    if let Some(names) = classes {
        let ids = || names.iter().enumerate();
        object["id2label"] = ids().map(|(id, name)| (id.to_string(), json!(name))).collect::<Map<_, _>>().into();
        object["label2id"] = ids().map(|(id, name)| (name.clone(), json!(id))).collect::<Map<_, _>>().into();
    }
    // What a class of `transformers` has no word for.
    if config.predictions != class_heads(class, classes.clone()).expect("a class from above") {
        object[PREDICTIONS] = json!(config.predictions);
    }
    if config.pooling != Pooling::First {
        object[POOLING] = json!(config.pooling);
    }
    object
}

/// Where a folder has the parameter of this name.
pub(super) fn stored(config: &ModelConfig, name: &str, shape: &[usize]) -> Vec<Stored> {
    let (module, kind) = name.rsplit_once('.').expect("names end in .weight or .bias");
    let whole = |theirs: &str| vec![Stored::whole(format!("{theirs}.{kind}"), shape)];
    match (module, kind) {
        ("token_embedding", _) => whole("bert.embeddings.word_embeddings"),
        ("position_embedding", _) => whole("bert.embeddings.position_embeddings"),
        ("type_embedding", _) => whole("bert.embeddings.token_type_embeddings"),
        ("embedding_norm", _) => whole("bert.embeddings.LayerNorm"),
        ("pooler", _) => whole("bert.pooler.dense"),
        ("head.transform", _) => whole("cls.predictions.transform.dense"),
        ("head.norm", _) => whole("cls.predictions.transform.LayerNorm"),
        ("head", "weight") => whole("cls.predictions.decoder"),
        ("head", _) => whole("cls.predictions"),
        ("classifier", _) => whole("classifier"),
        ("spans", _) => whole("qa_outputs"),
        // No class of `transformers` has these.
        _ if module.starts_with("surroundings.") => whole(module),
        _ => {
            let (layer, part) = super::block_part(module);
            let block = format!("bert.encoder.layer.{layer}");
            if part == "attention.qkv" {
                let rows = config.channels;
                let part = |name| Stored::rows(format!("{block}.attention.self.{name}.{kind}"), rows);
                return ["query", "key", "value"].map(part).into();
            }
            let part = match part {
                "attention.projection" => "attention.output.dense",
                "attention_norm" => "attention.output.LayerNorm",
                "ffn.up" => "intermediate.dense",
                "ffn.down" => "output.dense",
                "ffn_norm" => "output.LayerNorm",
                other => unreachable!("a BERT has no {other}"),
            };
            whole(&format!("{block}.{part}"))
        }
    }
}
