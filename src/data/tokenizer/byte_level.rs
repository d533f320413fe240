//! The fast path of byte-level BPE tokenizers as GPT-2's: split into words, look each word up.
//!
//! Nearly all the time of a general tokenizer goes into the regular expression that splits text into words and into
//! keeping track of where each piece came from. For text in ASCII, GPT-2's pattern is a page of plain code; and text
//! is made of few different words, so a cache answers for nearly all of them. What is left to the `tokenizers` crate:
//! words that are not in the cache yet, words with other characters (the pattern needs Unicode's tables there), and
//! runs of words in which a special token stands as text. The result is the crate's, token for token.

use super::super::text::is_clean_cut;
use serde_json::Value;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Mutex;
use tokenizers::{Model, ModelWrapper};

/// Words that are kept in one cache; each takes about a hundred bytes.
const CACHED_WORDS: usize = 1 << 17;

/// Longer words (hashes, rules made of dashes) are rarely seen twice.
const LONGEST_CACHED_WORD: usize = 48;

/// Each of these is searched for in the text; with many of them, the general path is no slower.
const MOST_ADDED_TOKENS: usize = 16;

/// The pattern `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` for ASCII: the length of
/// the word at the start of `text`, which is not empty.
pub(super) fn word_length(text: &[u8]) -> usize {
    for suffix in [&b"'s"[..], b"'t", b"'re", b"'ve", b"'m", b"'ll", b"'d"] {
        if text[0] == b'\'' && text.starts_with(suffix) {
            return suffix.len();
        }
    }
    let run = |start: usize, is_in: fn(u8) -> bool| {
        start + text[start..].iter().position(|&byte| !is_in(byte)).unwrap_or(text.len() - start)
    };
    let start = usize::from(text[0] == b' ' && text.len() > 1);
    match text[start] {
        byte if byte.is_ascii_alphabetic() => run(start, |byte| byte.is_ascii_alphabetic()),
        byte if byte.is_ascii_digit() => run(start, |byte| byte.is_ascii_digit()),
        byte if !is_space(byte) => run(start, |byte| !is_space(byte) && !byte.is_ascii_alphanumeric()),
        _ => {
            // White space: all of it at the end of the text; else the last one is left to the word that follows.
            let end = run(0, is_space);
            if end == text.len() || end == 1 { end } else { end - 1 }
        }
    }
}

/// What `\s` matches in ASCII.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}

/// True where no word, as the pattern has them, goes across `cut`, whatever else the text holds: after a line, or before
/// a space that a visible ASCII character follows, since white space always leaves its last space to such a word.
fn is_between_words(text: &[u8], cut: usize) -> bool {
    let leads_word = || text.get(cut) == Some(&b' ') && text.get(cut + 1).is_some_and(u8::is_ascii_graphic);
    is_clean_cut(text, cut) || leads_word()
}

/// Cuts a text between words into runs that are all ASCII, and as little as possible around other characters:
/// `f(run, is_ascii)`.
pub(super) fn for_each_run<E>(text: &str, mut f: impl FnMut(&str, bool) -> Result<(), E>) -> Result<(), E> {
    let bytes = text.as_bytes();
    let mut start = 0;
    while start < bytes.len() {
        let Some(other) = bytes[start..].iter().position(|byte| !byte.is_ascii()) else {
            return f(&text[start..], true);
        };
        let other = start + other;
        let cut = (start + 1..other).rev().find(|&cut| is_between_words(bytes, cut)).unwrap_or(start);
        if cut > start {
            f(&text[start..cut], true)?;
        }
        let end = (other + 1..bytes.len()).find(|&cut| is_between_words(bytes, cut)).unwrap_or(bytes.len());
        f(&text[cut..end], false)?;
        start = end;
    }
    Ok(())
}

/// What is needed to tokenise ASCII text natively.
pub(super) struct ByteLevel {
    added_tokens: Vec<String>,
    /// Those of them that swallow the white space beside them, so that words cannot be told apart near them.
    stripping_tokens: Vec<String>,
    /// Caches that no thread uses at the moment; there are never more than threads.
    caches: Mutex<Vec<Cache>>,
}

impl ByteLevel {
    /// The fast path for a `tokenizer.json`; None where it is not one like GPT-2's.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let (model, pre_tokenizer) = (&value["model"], &value["pre_tokenizer"]);
        let is_plain_bpe = model["type"].as_str().is_none_or(|name| name == "BPE")
            && model["merges"].is_array()
            && model["dropout"].as_f64().is_none_or(|dropout| dropout == 0.0);
        let is_byte_level = pre_tokenizer["type"] == "ByteLevel"
            && pre_tokenizer["add_prefix_space"] == false
            && pre_tokenizer["use_regex"].as_bool().unwrap_or(true);
        if !is_plain_bpe || !is_byte_level || !value["normalizer"].is_null() {
            return None;
        }
        let (mut added_tokens, mut stripping_tokens) = (Vec::new(), Vec::new());
        for token in value["added_tokens"].as_array().into_iter().flatten() {
            let content = token["content"].as_str()?.to_string();
            // A cut between words could go through it, and it would not be found.
            if content.contains(char::is_whitespace) {
                return None;
            }
            if token["lstrip"] == true || token["rstrip"] == true {
                stripping_tokens.push(content.clone());
            }
            added_tokens.push(content);
        }
        let caches = Mutex::new(Vec::new());
        (added_tokens.len() <= MOST_ADDED_TOKENS).then_some(Self { added_tokens, stripping_tokens, caches })
    }

    /// Appends the ids of a text; runs that are not for the fast path go through `general`.
    pub(super) fn encode(
        &self,
        text: &str,
        model: &ModelWrapper,
        ids: &mut Vec<u32>,
        mut general: impl FnMut(&str, &mut Vec<u32>) -> tokenizers::Result<()>,
    ) -> tokenizers::Result<()> {
        if self.stripping_tokens.iter().any(|token| text.contains(token)) {
            return general(text, ids);
        }
        let lock = || self.caches.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut cache = lock().pop().unwrap_or_default();
        let result = for_each_run(text, |run, is_ascii| {
            if !is_ascii || self.added_tokens.iter().any(|token| run.contains(token)) {
                return general(run, ids);
            }
            let mut rest = run.as_bytes();
            while !rest.is_empty() {
                let (word, later) = rest.split_at(word_length(rest));
                cache.encode(word, model, ids)?;
                rest = later;
            }
            Ok(())
        });
        lock().push(cache);
        result
    }
}

/// The text of a word as byte-level vocabularies spell it.
pub(super) fn spell(word: &[u8]) -> String {
    word.iter().map(|&byte| super::BYTE_CHARACTERS[usize::from(byte)]).collect()
}

/// Words seen so far and where their ids are.
#[derive(Default)]
struct Cache {
    words: HashMap<Box<[u8]>, (u32, u32), BuildHasherDefault<WordHasher>>,
    ids: Vec<u32>,
}

impl Cache {
    fn encode(&mut self, word: &[u8], model: &ModelWrapper, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        if let Some(&(start, end)) = self.words.get(word) {
            ids.extend_from_slice(&self.ids[start as usize..end as usize]);
            return Ok(());
        }
        let first = ids.len();
        ids.extend(model.tokenize(&spell(word))?.iter().map(|token| token.id));
        if word.len() <= LONGEST_CACHED_WORD && self.words.len() < CACHED_WORDS {
            // 2^17 words of at most 48 ids stay far below 2^32.
            let start = self.ids.len() as u32;
            self.ids.extend_from_slice(&ids[first..]);
            self.words.insert(word.into(), (start, self.ids.len() as u32));
        }
        Ok(())
    }
}

/// Hashes short words eight bytes at a time. The words come from the user's own files, so nobody is kept from
/// choosing ones that collide; that would only cost time.
#[derive(Default)]
struct WordHasher(u64);

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..part.len()].copy_from_slice(part);
            let mixed = (self.0.rotate_left(23) ^ u64::from_le_bytes(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            self.0 = mixed ^ (mixed >> 32);
        }
    }

    fn finish(&self) -> u64 {
        // The table takes its bucket from the low bits and a tag from the high ones.
        self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::philox::philox;

    fn words(text: &str) -> Vec<&str> {
        let (mut words, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let (word, later) = rest.split_at(word_length(rest.as_bytes()));
            words.push(word);
            rest = later;
        }
        words
    }

    #[test]
    fn words_are_those_of_gpt2s_pattern() {
        assert_eq!(words("Hello world  it's 42nd!?"), ["Hello", " world", " ", " it", "'s", " 42", "nd", "!?"]);
        assert_eq!(words("a\n\n b \n"), ["a", "\n\n", " b", " \n"]);
        assert_eq!(words("'twas 'll'x"), ["'t", "was", " '", "ll", "'", "x"]);
        assert_eq!(words("\t\tx\u{b}\u{c}"), ["\t", "\t", "x", "\u{b}\u{c}"]);
        assert_eq!(words(" "), [" "]);
    }

    /// The crate is the judge, over random texts of the characters that the pattern treats differently.
    #[test]
    fn random_texts_get_the_ids_of_the_crate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "the cat's hat they'll re've 123 12 !! ??  \n\n\t <|end of it all\n".repeat(20))
            .unwrap();
        let tokenizer = super::super::Tokenizer::train_bpe(&[file.path()], 330, &|_, _| ()).unwrap();
        // One more special token, which swallows what is before it, as RoBERTa's mask does.
        let mut value: Value = serde_json::from_str(&tokenizer.to_json()).unwrap();
        value["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
            "id": 330, "content": "<mask>", "single_word": false, "lstrip": true, "rstrip": false,
            "normalized": false, "special": true,
        }));
        let tokenizer = super::super::Tokenizer::from_json(value.to_string(), "masked").unwrap();
        let reference: tokenizers::Tokenizer = value.to_string().parse().unwrap();
        let plain = "'§s§t§re§ll§'§ § §\n§\n§\t§\r§\u{b}§\u{1c}§1§23§!§-§the§cat§\0";
        let special = "é§漢§\u{a0}§\u{2028}§²§\u{301}§<|endoftext|>§<|§\u{7f}§word\nword§ <mask>§<mask>§x\n";
        let alphabet: Vec<&str> = plain.split('§').chain(special.split('§')).collect();
        for text_number in 0..3000u32 {
            let length = philox([text_number, 0, 0, 1], [7, 7])[0] % 40;
            // Half of the texts are ASCII only.
            let choices = if text_number % 2 == 0 { 21 } else { alphabet.len() as u32 };
            let text: String = (0..length)
                .map(|index| alphabet[(philox([text_number, index, 0, 2], [7, 7])[0] % choices) as usize])
                .collect();
            let expected = reference.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(tokenizer.encode(&text).unwrap(), expected.get_ids(), "{text:?}");
        }
    }

    #[test]
    fn tokenizers_that_split_otherwise_do_not_take_the_fast_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "ab ab").unwrap();
        let json = super::super::Tokenizer::train_bpe(&[file.path()], 258, &|_, _| ()).unwrap().to_json();
        let value: Value = serde_json::from_str(&json).unwrap();
        assert!(ByteLevel::from_json(&value).is_some());
        for (pointer, other) in [
            ("/pre_tokenizer/add_prefix_space", Value::Bool(true)),
            ("/pre_tokenizer/use_regex", Value::Bool(false)),
            ("/pre_tokenizer/type", Value::String("Whitespace".into())),
            ("/normalizer", serde_json::json!({"type": "NFC"})),
            ("/model/type", Value::String("Unigram".into())),
            ("/model/dropout", serde_json::json!(0.1)),
        ] {
            let mut changed = value.clone();
            *changed.pointer_mut(pointer).unwrap() = other;
            assert!(ByteLevel::from_json(&changed).is_none(), "{pointer}");
        }
    }
}
