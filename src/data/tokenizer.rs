//! Text <-> token ids: bytes, characters, or anything that a Hugging Face `tokenizer.json` describes.
//!
//! All three are saved as a `tokenizer.json` that the Hugging Face libraries load and that gives the same ids there:
//! bytes as a byte-level BPE without merges, characters as a word-level vocabulary with a split after each character.
//! On loading, files of exactly these two shapes are recognised and take a native path (a table look-up per byte or
//! character). All others go through the `tokenizers` crate, with a fast path in front of it for tokenizers like GPT-2's
//! (see `byte_level`).

mod byte_level;
mod character;
mod decode_stream;
mod encoder_training;
mod offsets;
mod special;
mod training;
mod training_text;

pub use decode_stream::DecodeStream;
pub use encoder_training::{Chinese, EncoderTraining, Model};
pub use offsets::WithOffsets;
pub use special::SpecialTokens;
pub use training_text::TrainingText;

use super::error::{Error, Result};
use super::text::piece_end;
use crate::util::atomic_file::write_atomically;
use byte_level::ByteLevel;
use character::Characters;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use tokenizers::Tokenizer as HuggingFace;

/// Names that tokenizers give to the end of a document, in the order in which they are looked for.
const END_OF_TEXT: [&str; 5] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>"];

/// Long texts go through the crate in pieces of about this size: it keeps tens of bytes per byte of text, and small
/// pieces stay in the cache. Cuts are made only where they change no token (see `text::piece_end`).
const PIECE_BYTES: usize = 1 << 14;

/// A tokenizer; cheap to use from many threads.
pub struct Tokenizer {
    kind: Kind,
}

enum Kind {
    Byte,
    Char(Characters),
    HuggingFace(Box<Loaded>),
}

/// A tokenizer of the crate, and the file it came from, which is saved as it was.
struct Loaded {
    tokenizer: HuggingFace,
    json: String,
    vocabulary: usize,
    end_of_text: Option<u32>,
    byte_level: Option<ByteLevel>,
}

impl Tokenizer {
    /// One token per byte: 256 ids, no end-of-text.
    pub fn byte() -> Self {
        Self { kind: Kind::Byte }
    }

    /// One token per character: the distinct characters of `text`, sorted.
    ///
    /// # Errors
    /// The text is empty.
    pub fn char_from(text: &str) -> Result<Self> {
        Self::from_characters(character::distinct(text))
    }

    /// One token per character: the distinct characters of some text files, sorted.
    ///
    /// # Errors
    /// A file cannot be read or is not UTF-8, or all are empty.
    pub fn char_from_files<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        Self::from_characters(character::distinct_in_files(paths)?)
    }

    fn from_characters(characters: Vec<char>) -> Result<Self> {
        if characters.is_empty() {
            return Err(Error::tokenizer(
                "character tokenizer",
                "the text is empty; give it text to take characters from",
            ));
        }
        Ok(Self { kind: Kind::Char(Characters::new(characters)) })
    }

    /// Trains a byte-level BPE of `vocabulary` ids on text files, as GPT-2's is: its pattern of words, bytes first, then
    /// merges, `<|endoftext|>` last. Text with few distinct words may give fewer ids.
    ///
    /// # Errors
    /// A file cannot be read or is not UTF-8, all are empty, or the vocabulary is below 257.
    pub fn train_bpe<P: AsRef<Path>>(paths: &[P], vocabulary: usize, progress: super::Progress<'_>) -> Result<Self> {
        training::train_bpe(TrainingText::open(paths, None)?, vocabulary, progress)
    }

    /// As [`train_bpe`](Self::train_bpe), on text that may be columns of files of rows.
    ///
    /// # Errors
    /// As [`train_bpe`](Self::train_bpe).
    pub fn train_bpe_on(text: TrainingText, vocabulary: usize, progress: super::Progress<'_>) -> Result<Self> {
        training::train_bpe(text, vocabulary, progress)
    }

    /// Trains a tokenizer for an encoder, with `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]` as its first ids.
    ///
    /// # Errors
    /// A file cannot be read or is not UTF-8, there is no text, or the vocabulary is too small for it.
    pub fn train_encoder(
        text: TrainingText,
        training: &EncoderTraining,
        progress: super::Progress<'_>,
    ) -> Result<Self> {
        encoder_training::train(text, training, progress)
    }

    /// Loads a `tokenizer.json`, or that of a folder.
    ///
    /// # Errors
    /// The file cannot be read or is not a tokenizer.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let mut path = path.as_ref().to_path_buf();
        if path.is_dir() {
            path.push("tokenizer.json");
        }
        let bytes = std::fs::read(&path).map_err(Error::read(&path))?;
        let offset = std::str::from_utf8(&bytes).err().map(|error| error.valid_up_to() as u64);
        match String::from_utf8(bytes) {
            Ok(json) => Self::from_json(json, &path.display().to_string()),
            Err(_) => Err(Error::InvalidUtf8 { path, offset: offset.unwrap_or(0) }),
        }
    }

    /// A tokenizer from the text of a `tokenizer.json`; `place` names it in errors.
    pub(crate) fn from_json(json: String, place: &str) -> Result<Self> {
        const REMEDY: &str = "give a tokenizer.json as the Hugging Face tokenizers library writes it";
        let value: Value = serde_json::from_str(&json)
            .map_err(|error| Error::tokenizer(place, format!("not JSON ({error}); {REMEDY}")))?;
        if value == byte_json() {
            return Ok(Self::byte());
        }
        if let Some(characters) = Characters::from_json(&value) {
            return Ok(Self { kind: Kind::Char(characters) });
        }
        check_merges(&value).map_err(|what| Error::tokenizer(place, format!("{what}; {REMEDY}")))?;
        let mut tokenizer: HuggingFace =
            json.parse().map_err(|error| Error::tokenizer(place, format!("not a tokenizer ({error}); {REMEDY}")))?;
        // Saved for inference on single sentences; here they would silently drop text or add tokens.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| Error::tokenizer(place, error))?;
        // Ids may have gaps, so the number of rows that a model needs is the largest id plus one.
        let vocabulary = tokenizer.get_vocab(true).values().max().map_or(0, |&largest| largest as usize + 1);
        if vocabulary == 0 {
            return Err(Error::tokenizer(place, format!("the vocabulary is empty; {REMEDY}")));
        }
        let end_of_text = END_OF_TEXT.iter().find_map(|name| tokenizer.token_to_id(name));
        let byte_level = ByteLevel::from_json(&value);
        let loaded = Loaded { tokenizer, json, vocabulary, end_of_text, byte_level };
        Ok(Self { kind: Kind::HuggingFace(Box::new(loaded)) })
    }

    /// Saves the tokenizer as a `tokenizer.json` for this program and the Hugging Face libraries.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let json = self.to_json();
        Ok(write_atomically(path, |file| file.write_all(json.as_bytes()))?)
    }

    /// The text of its `tokenizer.json`.
    pub fn to_json(&self) -> String {
        match &self.kind {
            Kind::Byte => format!("{:#}\n", byte_json()),
            Kind::Char(characters) => format!("{:#}\n", characters.to_json()),
            Kind::HuggingFace(loaded) => loaded.json.clone(),
        }
    }

    /// `byte`, `char` or `tokenizer.json`.
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Byte => "byte",
            Kind::Char(_) => "char",
            Kind::HuggingFace(_) => "tokenizer.json",
        }
    }

    /// Number of ids: all are below it.
    pub fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Byte => 256,
            Kind::Char(characters) => characters.len(),
            Kind::HuggingFace(loaded) => loaded.vocabulary,
        }
    }

    /// The id that ends a document, where the tokenizer has one.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.kind {
            Kind::HuggingFace(loaded) => loaded.end_of_text,
            _ => None,
        }
    }

    /// The id of a token by its text, special tokens such as `[MASK]` included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Byte => match token.as_bytes() {
                [byte] => Some(u32::from(*byte)),
                _ => None,
            },
            Kind::Char(characters) => {
                let mut all = token.chars();
                all.next().filter(|_| all.next().is_none()).and_then(|character| characters.id(character))
            }
            Kind::HuggingFace(loaded) => loaded.tokenizer.token_to_id(token),
        }
    }

    /// The ids of a text. No special tokens are added around it; those that stand in it as text are recognised, as in
    /// the Hugging Face libraries.
    ///
    /// # Errors
    /// A character tokenizer meets a character that it does not know; a tokenizer without an unknown token likewise.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Byte => Ok(text.bytes().map(u32::from).collect()),
            Kind::Char(characters) => characters.encode(text),
            Kind::HuggingFace(loaded) => {
                let mut ids = Vec::with_capacity(text.len() / 3);
                let result = match &loaded.byte_level {
                    Some(fast) => {
                        fast.encode(text, loaded.tokenizer.get_model(), &mut ids, |run, ids| loaded.encode(run, ids))
                    }
                    None => loaded.encode(text, &mut ids),
                };
                result.map_err(|error| Error::tokenizer("encoding", error))?;
                Ok(ids)
            }
        }
    }

    /// The text of some ids. Ids beyond the vocabulary and bytes that are not UTF-8 come out as U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            Kind::Byte => {
                let mut text = String::new();
                for run in ids.chunk_by(|a, b| *a < 256 && *b < 256) {
                    let bytes: Vec<u8> = run.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
                    text.push_str(&String::from_utf8_lossy(&bytes));
                    if bytes.is_empty() {
                        text.push('\u{FFFD}');
                    }
                }
                text
            }
            Kind::Char(characters) => ids.iter().map(|&id| characters.character(id).unwrap_or('\u{FFFD}')).collect(),
            // The crate leaves out ids that it does not know, and fails on nothing else.
            Kind::HuggingFace(loaded) => loaded.tokenizer.decode(ids, false).unwrap_or_default(),
        }
    }

    /// A decoder for ids that come one at a time.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }
}

impl Loaded {
    /// Appends the ids of a text, by the crate.
    fn encode(&self, text: &str, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(piece_end(rest, PIECE_BYTES));
            ids.extend_from_slice(self.tokenizer.encode_fast(piece, false)?.get_ids());
            rest = later;
        }
        Ok(())
    }
}

/// The visible characters that stand for bytes in byte-level vocabularies (GPT-2's choice: printable bytes stand for
/// themselves, the others are counted off from U+0100 on).
const BYTE_CHARACTERS: [char; 256] = {
    let mut characters = ['\0'; 256];
    let (mut byte, mut hidden) = (0usize, 0u8);
    while byte < 256 {
        characters[byte] = if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            byte as u8 as char
        } else {
            hidden += 1;
            // U+0100 is the first of a block of letters, so every value here is a character.
            char::from_u32(0xFF + hidden as u32).unwrap()
        };
        byte += 1;
    }
    characters
};

fn byte_json() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (BYTE_CHARACTERS[usize::from(byte)].to_string(), json!(byte))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

/// The crate panics on a merge whose result is longer than every token of the vocabulary, so merges are checked here.
fn check_merges(value: &Value) -> std::result::Result<(), String> {
    let model = &value["model"];
    let (Some(vocabulary), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array()) else {
        return Ok(());
    };
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    for merge in merges {
        let pair = match merge {
            Value::String(pair) => pair.split_once(' '),
            Value::Array(pair) => pair.first().and_then(Value::as_str).zip(pair.get(1).and_then(Value::as_str)),
            _ => None,
        };
        let result = pair.and_then(|(a, b)| b.strip_prefix(prefix).map(|b| format!("{a}{b}")));
        if !result.is_some_and(|result| vocabulary.contains_key(&result)) {
            return Err(format!("merge {merge} gives no token of the vocabulary"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 5] = [
        "",
        "To be, or not to be:\n\n  that is the question.\n",
        "naïve café — 漢字 🦀\u{301}",
        "\0\t\r\n\u{7f}",
        "   ",
    ];

    fn gpt2_like(texts: &str, vocabulary: usize) -> Tokenizer {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), texts).unwrap();
        Tokenizer::train_bpe(&[file.path()], vocabulary, &|_, _| ()).unwrap()
    }

    #[test]
    fn every_kind_decodes_what_it_encoded_before_and_after_saving() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let all = TEXTS.concat();
        for tokenizer in [Tokenizer::byte(), Tokenizer::char_from(&all).unwrap(), gpt2_like(&all, 300)] {
            tokenizer.save(&path).unwrap();
            let loaded = Tokenizer::load(&path).unwrap();
            assert_eq!(loaded.name(), tokenizer.name());
            assert_eq!(loaded.vocabulary(), tokenizer.vocabulary());
            for text in TEXTS {
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(tokenizer.decode(&ids), text);
                assert_eq!(loaded.encode(text).unwrap(), ids);
                assert_eq!(loaded.decode(&ids), text);
                assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary()));
            }
        }
    }

    /// The native paths are only right if the `tokenizers` crate makes the same of the files we write.
    #[test]
    fn the_native_paths_give_what_the_crate_gives_for_the_saved_file() {
        let all = TEXTS.concat();
        for tokenizer in [Tokenizer::byte(), Tokenizer::char_from(&all).unwrap()] {
            let crate_tokenizer: HuggingFace = tokenizer.to_json().parse().unwrap();
            for text in TEXTS {
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(
                    crate_tokenizer.encode_fast(text, true).unwrap().get_ids(),
                    ids,
                    "{}: {text:?}",
                    tokenizer.name()
                );
                assert_eq!(crate_tokenizer.decode(&ids, false).unwrap(), text);
            }
        }
    }

    #[test]
    fn character_ids_are_in_the_order_of_the_characters() {
        let tokenizer = Tokenizer::char_from("hello world\n").unwrap();
        assert_eq!(tokenizer.vocabulary(), 9);
        assert_eq!(tokenizer.encode("\n dehlorw").unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((tokenizer.token_id("d"), tokenizer.token_id("de"), tokenizer.end_of_text()), (Some(2), None, None));
    }

    #[test]
    fn an_unknown_character_is_named_with_its_place() {
        let tokenizer = Tokenizer::char_from("abc\n").unwrap();
        let message = tokenizer.encode("ab\nab\u{1F980}c").unwrap_err().to_string();
        assert!(message.contains("line 2, column 3: character '🦀' (U+1F980)"), "{message}");
        assert!(Tokenizer::char_from("").is_err());
    }

    #[test]
    fn a_trained_bpe_is_laid_out_as_gpt2s() {
        let tokenizer = gpt2_like(&"the cat sat on the mat. ".repeat(50), 280);
        let end = tokenizer.end_of_text().unwrap();
        assert_eq!(end as usize, tokenizer.vocabulary() - 1);
        assert_eq!(tokenizer.token_id("!"), Some(0));
        assert_eq!(tokenizer.encode("!").unwrap(), [0]);
        assert_eq!(tokenizer.encode("<|endoftext|>").unwrap(), [end]);
        assert!(tokenizer.encode(" the").unwrap().len() == 1);
        assert_eq!(tokenizer.decode(&tokenizer.encode("漢字 unseen").unwrap()), "漢字 unseen");
    }

    #[test]
    fn long_texts_get_the_tokens_of_a_single_piece() {
        let text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n\n\tAll:  Speak, \u{a0} speak. "
            .repeat(900);
        let tokenizer = gpt2_like(&text, 300);
        let Kind::HuggingFace(loaded) = &tokenizer.kind else { panic!("not a BPE") };
        assert!(text.len() > 4 * PIECE_BYTES);
        let whole = loaded.tokenizer.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(tokenizer.encode(&text).unwrap(), whole.get_ids());
    }

    #[test]
    fn ids_out_of_range_never_panic() {
        for tokenizer in [Tokenizer::byte(), Tokenizer::char_from("ab").unwrap(), gpt2_like("abc abc", 258)] {
            let text = tokenizer.decode(&[0, u32::MAX, 1, 100_000]);
            assert!(text.chars().count() >= 2, "{text:?}");
        }
        assert_eq!(Tokenizer::byte().decode(&[104, 105, 256, 0xC3, 0xA9, 0xFF]), "hi\u{FFFD}é\u{FFFD}");
    }

    #[test]
    fn files_that_are_no_tokenizer_say_what_is_wrong() {
        let byte = Tokenizer::byte().to_json();
        let mut merged: Value = serde_json::from_str(&byte).unwrap();
        merged["model"]["merges"] = json!([["a", "b"]]);
        for (json, expected) in [
            ("".to_string(), "not JSON"),
            ("[1, 2".to_string(), "not JSON"),
            ("{}".to_string(), "not a tokenizer"),
            (r#"{"model": {"type": "BPE"}}"#.to_string(), "not a tokenizer"),
            (merged.to_string(), "merge [\"a\",\"b\"] gives no token"),
        ] {
            let message = Tokenizer::from_json(json, "t.json").err().unwrap().to_string();
            assert!(message.starts_with("t.json: ") && message.contains(expected), "{message}");
            assert!(!message.contains('\n'));
        }
        assert!(Tokenizer::load("no/such.json").err().unwrap().to_string().contains("no such file"));
    }

    #[test]
    fn padding_and_truncation_of_a_file_do_not_touch_the_data() {
        let mut value: Value = serde_json::from_str(&gpt2_like("ab ab ab", 258).to_json()).unwrap();
        value["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        value["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                                  "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
        let tokenizer = Tokenizer::from_json(value.to_string(), "t.json").unwrap();
        assert_eq!(tokenizer.decode(&tokenizer.encode("ab ab ab ab").unwrap()), "ab ab ab ab");
        assert!(tokenizer.to_json().contains("truncation"));
    }
}
