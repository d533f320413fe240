//! What tests of this part share.

use super::labelled::{LabelledSet, Long, Options, Task};
use super::tokenizer::Tokenizer;
use serde_json::json;

/// Tokens of [`wordpiece`]; the first five are special.
pub(super) const TOKENS: [&str; 18] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "a", "dog", "##s", "##ting", "猫",
    ".", "—", "play",
];

/// A small lower-casing tokenizer laid out as BERT's.
pub(super) fn wordpiece() -> Tokenizer {
    let vocabulary: serde_json::Map<_, _> =
        TOKENS.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
    let added: Vec<_> = TOKENS[..5]
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    Tokenizer::from_json(json.to_string(), "test").unwrap()
}

/// Documents of these numbers of tokens, framing included: 3 at least.
pub(super) fn documents(lengths: &[usize]) -> LabelledSet {
    let words = &TOKENS[5..12];
    let line = |(index, length): (usize, &usize)| {
        let words: Vec<&str> = (0..length - 2).map(|word| words[(index + word * 3) % words.len()]).collect();
        words.join(" ") + "\n"
    };
    let file = tempfile::Builder::new().suffix(".txt").tempfile().unwrap();
    std::fs::write(file.path(), lengths.iter().enumerate().map(line).collect::<String>()).unwrap();
    let task = Task::Text { text: "text".into(), long: Long::Cut };
    LabelledSet::from_files(&[file.path()], &wordpiece(), &Options::new(task, 1 << 20), &|_, _| ()).unwrap()
}
