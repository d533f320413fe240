//! Claims about model folders: they come back as they were, and whatever does not belong is refused by name.

use super::*;
use crate::ops::testing::Random;
use serde_json::{Value, json};

fn small(tied: bool) -> ModelConfig {
    ModelConfig {
        vocabulary: 11,
        block: 5,
        channels: 6,
        layers: 2,
        heads: 3,
        kv_heads: 3,
        ffn: 7,
        tied,
        bos: None,
        eos: Some(10),
        ..ModelConfig::gpt2()
    }
}

fn random_parameters(specs: &[ParameterSpec]) -> Vec<Vec<f32>> {
    let mut random = Random::fresh();
    specs.iter().map(|spec| random.normal(spec.elements())).collect()
}

fn load(folder: &Path, config: &ModelConfig) -> Result<Vec<Vec<f32>>, Error> {
    let mut found = vec![Vec::new(); config.parameters().len()];
    load_parameters(folder, config, Wanted::All, |index, values| {
        found[index] = values.to_vec();
        Ok(())
    })?;
    Ok(found)
}

/// A tensor for a file in the folder's own names.
fn raw<'a>(name: &str, shape: &[usize], values: &'a [f32]) -> NewTensor<'a> {
    NewTensor { name: name.to_owned().into(), shape: shape.to_vec(), values: values.into(), transposed: false }
}

/// The parameters as they would be in a folder, for the tests to spoil.
fn as_tensors<'a>(specs: &[ParameterSpec], parameters: &'a [Vec<f32>]) -> Vec<NewTensor<'a>> {
    let mut tensors = Vec::new();
    for (spec, values) in specs.iter().zip(parameters) {
        let mut first = 0;
        for stored in &spec.stored {
            let length = stored.rows * spec.columns();
            let part = raw(&stored.name, &spec.stored_shape(stored), &values[first..first + length]);
            tensors.push(NewTensor { transposed: stored.transposed, ..part });
            first += length;
        }
    }
    tensors
}

fn write_tensors(folder: &Path, tensors: &[NewTensor]) {
    weights::write(&folder.join(weights::WEIGHTS_FILE), tensors, &BTreeMap::new()).unwrap();
}

#[test]
fn gpt2_has_124_million_parameters() {
    let specs = ModelConfig::gpt2().parameters();
    assert_eq!(specs.len(), 148);
    assert_eq!(specs.iter().map(ParameterSpec::elements).sum::<usize>(), 124_439_808);
    let names: std::collections::HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names.len(), specs.len());
    assert_eq!(ModelConfig { tied: false, ..ModelConfig::gpt2() }.parameters().last().unwrap().name, "head.weight");
}

#[test]
fn a_saved_folder_comes_back_bit_for_bit() {
    for tied in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new").join("folder");
        let mut config = small(tied);
        config.other.insert("summary_type".into(), json!("cls_index"));
        let specs = config.parameters();
        let parameters = random_parameters(&specs);
        save_parameters(&folder, &config, |index| Ok((&parameters[index]).into())).unwrap();
        assert_eq!(ModelConfig::load(&folder).unwrap(), config);
        assert_eq!(load(&folder, &config).unwrap(), parameters);
    }
}

#[test]
fn other_spellings_of_a_folder_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let specs = small(true).parameters();
    let parameters = random_parameters(&specs);
    let mask = [1.0; 25];
    let mut tensors = as_tensors(&specs, &parameters);
    // The bare model's names, causal masks as buffers, and the tied head stored once more.
    for tensor in &mut tensors {
        tensor.name = tensor.name.strip_prefix("transformer.").unwrap().to_owned().into();
    }
    tensors.push(raw("h.0.attn.bias", &[1, 1, 5, 5], &mask));
    tensors.push(raw("h.1.attn.masked_bias", &[], &mask[..1]));
    tensors.push(raw("lm_head.weight", &[11, 6], &parameters[0]));
    write_tensors(folder.path(), &tensors);
    assert_eq!(load(folder.path(), &small(true)).unwrap(), parameters);
}

#[test]
fn tensors_that_are_not_those_of_the_model_are_refused_and_nothing_is_handed_out() {
    let specs = small(true).parameters();
    let parameters = random_parameters(&specs);
    let ones = vec![1.0; 100];
    let whole = || as_tensors(&specs, &parameters);
    let with = |tensor| whole().into_iter().chain([tensor]).collect();
    let instead = |index: usize, tensor| {
        let mut tensors = whole();
        tensors[index] = tensor;
        tensors
    };
    let refused = |tensors: Vec<NewTensor>| {
        let folder = tempfile::tempdir().unwrap();
        write_tensors(folder.path(), &tensors);
        let error = load_parameters(folder.path(), &small(true), Wanted::All, |index, _| panic!("handed out {index}"))
            .unwrap_err();
        let message = error.to_string();
        assert!(!message.contains('\n') && message.contains(folder.path().to_str().unwrap()), "{message}");
        message
    };
    let message = refused(whole().into_iter().take(26).collect());
    assert!(message.contains("transformer.ln_f.weight (6) is missing (and 1 more)"), "{message}");
    let message = refused(with(raw("transformer.h.2.ln_1.bias", &[6], &ones[..6])));
    assert!(message.contains("transformer.h.2.ln_1.bias (6) is no part of the model"), "{message}");
    let message = refused(instead(0, raw("transformer.wte.weight", &[12, 6], &ones[..72])));
    assert!(message.contains("transformer.wte.weight has shape (12, 6), but the model expects (11, 6)"), "{message}");
    // A linear weight that is not transposed, as from another kind of model.
    let message = refused(instead(4, raw(&specs[4].stored[0].name, &specs[4].shape, &parameters[4])));
    assert!(message.contains("c_attn.weight has shape (18, 6), but the model expects (6, 18)"), "{message}");
    let message = refused(with(raw("wte.weight", &[11, 6], &ones[..66])));
    assert!(message.contains("both transformer.wte.weight and wte.weight could be the same parameter"), "{message}");
    let message = refused(with(raw("lm_head.weight", &[11, 6], &ones[..66])));
    assert!(message.contains("transformer.wte.weight and lm_head.weight") && message.contains("tie_word"), "{message}");

    // An untied model needs its head.
    let folder = tempfile::tempdir().unwrap();
    write_tensors(folder.path(), &as_tensors(&specs, &parameters));
    let message = load(folder.path(), &small(false)).unwrap_err().to_string();
    assert!(message.contains("tensor lm_head.weight (11, 6) is missing;"), "{message}");
}

#[test]
fn integers_are_no_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let specs = small(true).parameters();
    write_tensors(folder.path(), &as_tensors(&specs, &random_parameters(&specs)));
    let path = folder.path().join(weights::WEIGHTS_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let find = |what: &[u8], from: usize| from + bytes[from..].windows(what.len()).position(|w| w == what).unwrap();
    let at = find(b"F32", find(b"transformer.wte.weight", 0));
    bytes[at] = b'I';
    std::fs::write(&path, bytes).unwrap();
    let message = load(folder.path(), &small(true)).unwrap_err().to_string();
    assert!(message.contains("tensor transformer.wte.weight holds I32, not F32"), "{message}");
}

#[test]
fn optimizer_state_comes_back_bit_for_bit_and_must_be_whole() {
    let folder = tempfile::tempdir().unwrap();
    let specs = small(true).parameters();
    let saved = [random_parameters(&specs), random_parameters(&specs)];
    let metadata = BTreeMap::from([("step".to_owned(), "17".to_owned())]);
    save_optimizer(folder.path(), &specs, &ADAMW_STATES, &metadata, |index, state| Ok((&saved[state][index]).into()))
        .unwrap();
    let mut count = 0;
    let found = load_optimizer(folder.path(), &specs, &ADAMW_STATES, |index, state, values| {
        assert_eq!(values, saved[state][index]);
        count += 1;
        Ok(())
    });
    assert_eq!((found.unwrap(), count), (metadata, 2 * specs.len()));

    let refuse = |specs: &[ParameterSpec], states: &[&str]| {
        let set = |index, _, _: &[f32]| panic!("handed out {index}");
        load_optimizer(folder.path(), specs, states, set).unwrap_err().to_string()
    };
    let load = |specs: &[ParameterSpec]| refuse(specs, &ADAMW_STATES);
    let message = refuse(&specs, &["velocity"]);
    assert!(message.contains("token_embedding.weight.velocity (11, 6) is missing"), "{message}");
    let message = load(&specs[1..]);
    assert!(message.contains("token_embedding.weight.first_moment (11, 6) is no part"), "{message}");
    assert!(message.contains("(and 1 more)"), "{message}");
    let message = load(&small(false).parameters());
    assert!(message.contains("head.weight.first_moment (11, 6) is missing"), "{message}");
    let message = load(&ModelConfig { block: 6, ..small(true) }.parameters());
    assert!(message.contains("has shape (5, 6), but the model expects (6, 6)"), "{message}");
}

fn load_config(config: &Value) -> Result<ModelConfig, Error> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(CONFIG_FILE), config.to_string()).unwrap();
    ModelConfig::load(folder.path())
}

#[test]
fn absent_keys_mean_what_transformers_means() {
    assert_eq!(load_config(&json!({})).unwrap(), ModelConfig::gpt2());
    let config = json!({"hidden_size": 64, "num_hidden_layers": 3, "n_head": 4, "n_inner": null, "n_ctx": 1024,
        "max_position_embeddings": 32, "activation_function": "gelu_pytorch_tanh", "eos_token_id": null, "mine": [1]});
    let found = load_config(&config).unwrap();
    assert_eq!((found.channels, found.layers, found.heads, found.ffn, found.block), (64, 3, 4, 256, 32));
    assert_eq!((found.eos, found.other.len(), &found.other["mine"]), (None, 1, &json!([1])));
}

#[test]
fn options_that_change_the_mathematics_are_refused_by_name() {
    for (key, value) in [
        ("model_type", json!("t5")),
        ("activation_function", json!("gelu")),
        ("activation_function", json!(null)),
        ("scale_attn_weights", json!(false)),
        ("scale_attn_by_inverse_layer_idx", json!(true)),
        ("reorder_and_upcast_attn", json!(true)),
        ("add_cross_attention", json!(true)),
        ("quantization_config", json!({"bits": 4})),
        ("pruned_heads", json!({"0": [1]})),
        ("vocab_size", json!(0)),
        ("vocab_size", json!("50257")),
        ("n_positions", json!(-1)),
        ("n_embd", json!(768.0)),
        ("n_layer", json!(1u64 << 60)),
        ("n_head", json!(7)),
        ("n_inner", json!(u64::MAX)),
        ("layer_norm_epsilon", json!(-1e-5)),
        ("attn_pdrop", json!(1.0)),
        ("resid_pdrop", json!("0.1")),
        ("tie_word_embeddings", json!(1)),
        ("eos_token_id", json!([50256])),
        ("bos_token_id", json!(-1)),
    ] {
        let message = load_config(&json!({key: value})).unwrap_err().to_string();
        let expected = format!("config.json: {key} is {value}: ");
        assert!(message.contains(&expected) && !message.contains('\n'), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(CONFIG_FILE);
    let message = || ModelConfig::load(folder.path()).unwrap_err().to_string();
    assert!(message().contains("cannot read"), "{}", message());
    for text in ["", "{", "[]", "7", "\u{0}"] {
        std::fs::write(&path, text).unwrap();
        assert!(message().contains("config.json: the whole file is no"), "{}", message());
    }
    std::fs::write(&path, "[".repeat(100_000)).unwrap();
    assert!(message().contains("not JSON"), "{}", message());
    // Long enough to be refused by its length alone; the file has holes, so it takes no room.
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(message().contains("not a regular file of at most"), "{}", message());
}

#[test]
fn no_mutation_of_a_configuration_panics() {
    let mut random = Random::fresh();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(CONFIG_FILE);
    small(true).save(folder.path()).unwrap();
    let valid = std::fs::read(&path).unwrap();
    for _ in 0..3000 {
        let mut bytes = valid.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = b"0123456789eE-+.\"{}[],:"[random.below(22)],
                1 => bytes[at] = random.word() as u8,
                _ => bytes.truncate(at.max(1)),
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        match ModelConfig::load(folder.path()) {
            Ok(config) if config.layers < 100 => {
                // Sizes are bounded, so their products do not overflow; tests check that.
                assert!(config.parameters().iter().map(ParameterSpec::elements).sum::<usize>() > 0);
            }
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
}
