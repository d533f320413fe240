//! Model folders written by `transformers` are read here, and ours are read there.
//!
//! The goldens are made by `tests/goldens/make_gpt2.py`. What needs Python with `transformers` runs where
//! `ENGINE_PYTHON` (else `python3`) has it, and says so where not.

use engine::model::ModelConfig;
use engine::model::huggingface::{ParameterSpec, Wanted, load_parameters, save_parameters};
use engine::model::weights::{Dtype, WeightFile, WeightFolder};
use std::path::{Path, PathBuf};
use std::process::Command;

const GOLDENS: [&str; 2] = ["gpt2_odd", "gpt2_head64"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn load(folder: &Path) -> (ModelConfig, Vec<ParameterSpec>, Vec<Vec<f32>>) {
    let config = ModelConfig::load(folder).unwrap();
    let specs = config.parameters();
    let mut parameters = vec![Vec::new(); specs.len()];
    load_parameters(folder, &config, Wanted::All, |index, values| {
        parameters[index] = values.to_vec();
        Ok(())
    })
    .unwrap();
    (config, specs, parameters)
}

#[test]
fn a_folder_written_by_transformers_is_read_and_conv1d_is_transposed() {
    let (config, specs, parameters) = load(&golden("gpt2_head64"));
    assert_eq!((config.channels, config.heads, config.layers, config.ffn), (128, 2, 1, 32));
    assert_eq!((config.vocabulary, config.block, config.tied, config.eos), (19, 20, true, Some(0)));
    assert_eq!(config.attention_dropout, 0.0);
    for (spec, values) in specs.iter().zip(&parameters) {
        assert_eq!(values.len(), spec.elements(), "{}", spec.name);
        assert!(values.iter().all(|value| value.is_finite() && *value != 0.0), "{}", spec.name);
    }
    let file = WeightFile::open(&golden("gpt2_head64").join("model.safetensors")).unwrap();
    let conv1d = file.get("transformer.h.0.mlp.c_fc.weight").unwrap();
    assert_eq!(conv1d.shape(), [128, 32]);
    let position = specs.iter().position(|spec| spec.name == "blocks.0.ffn.up.weight").unwrap();
    assert_eq!(specs[position].shape, [32, 128]);
    let conv1d = conv1d.to_f32().unwrap();
    for (i, &value) in parameters[position].iter().enumerate() {
        assert_eq!(value, conv1d[i % 128 * 32 + i / 128], "element {i}");
    }
}

#[test]
fn an_exported_folder_holds_the_same_tensors_bit_for_bit() {
    for name in GOLDENS {
        let (config, _, parameters) = load(&golden(name));
        let folder = tempfile::tempdir().unwrap();
        save_parameters(folder.path(), &config, |index| Ok((&parameters[index]).into())).unwrap();
        assert_eq!(ModelConfig::load(folder.path()).unwrap(), config);
        let (theirs, ours) = (WeightFolder::open(&golden(name)).unwrap(), WeightFolder::open(folder.path()).unwrap());
        assert!(theirs.names().eq(ours.names()));
        for tensor in theirs.names() {
            let (theirs, ours) = (theirs.get(tensor).unwrap(), ours.get(tensor).unwrap());
            assert_eq!((theirs.shape(), theirs.dtype()), (ours.shape(), ours.dtype()), "{tensor}");
            assert_eq!(theirs.bytes(), ours.bytes(), "{tensor}");
        }
    }
}

#[test]
fn goldens_hold_what_their_script_promises() {
    for name in GOLDENS {
        let config = ModelConfig::load(&golden(name)).unwrap();
        let file = WeightFile::open(&golden(name).join("golden.safetensors")).unwrap();
        let shape = |tensor: &str| file.get(tensor).unwrap().shape().to_vec();
        assert_eq!(shape("inputs"), [3, 17]);
        let targets = file.get("targets").unwrap().to_i64().unwrap();
        assert!(targets.iter().all(|&target| (0..config.vocabulary as i64).contains(&target)));
        for (precision, dtype) in [("f32", Dtype::F32), ("f64", Dtype::F64)] {
            assert_eq!(shape(&format!("{precision}.logits")), [3, 17, config.vocabulary]);
            assert_eq!(shape(&format!("{precision}.loss")), [0usize; 0]);
            assert_eq!(shape(&format!("{precision}.training.losses")), [10]);
            for spec in config.parameters() {
                let [stored] = &spec.stored[..] else { panic!("{} is one tensor", spec.name) };
                let grad = file.get(&format!("{precision}.grad.{}", stored.name)).unwrap();
                let found = (grad.shape().to_vec(), grad.dtype());
                assert_eq!(found, (spec.stored_shape(stored), dtype), "{}", spec.name);
            }
        }
    }
}

#[test]
fn an_exported_folder_gives_the_same_logits_in_transformers() {
    let python = std::env::var("ENGINE_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_transformers = Command::new(&python).args(["-c", "import torch, transformers, safetensors"]).output();
    if !has_transformers.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no transformers; set ENGINE_PYTHON to a Python that has");
        return;
    }
    for name in GOLDENS {
        let (config, _, parameters) = load(&golden(name));
        // Once tied and once with a head of its own, which here is the same table.
        for tied in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let config = ModelConfig { tied, ..config.clone() };
            let values = |index: usize| Ok(parameters.get(index).unwrap_or(&parameters[0]).into());
            save_parameters(folder.path(), &config, values).unwrap();
            let output = Command::new(&python)
                .arg(golden("check_export.py"))
                .args([folder.path(), &golden(name).join("golden.safetensors")])
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{errors}");
            assert!(!errors.to_lowercase().contains("warn") && !errors.contains("newly initialized"), "{errors}");
            let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(result["surprises"], serde_json::json!([]), "{name}, tied {tied}");
            let error = result["relative_error"].as_f64().unwrap();
            println!("{name}, tied {tied}: relative error of the logits {error:.2e}");
            assert!(error < 1e-6, "{name}, tied {tied}: relative error {error:.3e}");
        }
    }
}
