//! One token per character: a sorted list one way, a table indexed by code point the other.

use super::super::error::{Error, Result};
use super::super::text::TextReader;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

/// Marks a code point that is not in the vocabulary.
const UNKNOWN: u32 = u32::MAX;

/// Splits after every character, line breaks included, in every regex library that loads the file; `.` would not.
const ANY_CHARACTER: &str = "[\\s\\S]";

/// Named by the word-level model where it meets an unknown character; not in the vocabulary, so that it fails there.
const UNKNOWN_TOKEN: &str = "[UNK]";

/// A vocabulary of characters.
pub(super) struct Characters {
    characters: Vec<char>,
    /// Id by code point, up to the largest character: at most 4.4 MB.
    ids: Vec<u32>,
}

impl Characters {
    /// Ids in the order given; every character once.
    pub(super) fn new(characters: Vec<char>) -> Self {
        let size = characters.iter().map(|&character| u32::from(character) as usize + 1).max().unwrap_or(0);
        let mut ids = vec![UNKNOWN; size];
        for (id, &character) in characters.iter().enumerate() {
            ids[u32::from(character) as usize] = id as u32;
        }
        Self { characters, ids }
    }

    pub(super) fn len(&self) -> usize {
        self.characters.len()
    }

    pub(super) fn character(&self, id: u32) -> Option<char> {
        self.characters.get(id as usize).copied()
    }

    pub(super) fn id(&self, character: char) -> Option<u32> {
        self.ids.get(u32::from(character) as usize).copied().filter(|&id| id != UNKNOWN)
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        for (offset, character) in text.char_indices() {
            match self.id(character) {
                Some(id) => ids.push(id),
                None => return Err(unknown(text, offset, character)),
            }
        }
        Ok(ids)
    }

    pub(super) fn to_json(&self) -> Value {
        let vocabulary: serde_json::Map<String, Value> =
            self.characters.iter().enumerate().map(|(id, character)| (character.to_string(), json!(id))).collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {
                "type": "Split", "pattern": {"Regex": ANY_CHARACTER}, "behavior": "Isolated", "invert": false,
            },
            "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN_TOKEN},
        })
    }

    /// The vocabulary of a file that [`to_json`](Self::to_json) could have written; None of any other.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let vocabulary = value["model"]["vocab"].as_object()?;
        let mut characters = vec![None; vocabulary.len()];
        for (token, id) in vocabulary {
            let mut all = token.chars();
            let character = all.next().filter(|_| all.next().is_none())?;
            *characters.get_mut(usize::try_from(id.as_u64()?).ok()?)? = Some(character);
        }
        let characters = Self::new(characters.into_iter().collect::<Option<Vec<char>>>()?);
        (characters.len() > 0 && characters.to_json() == *value).then_some(characters)
    }
}

fn unknown(text: &str, offset: usize, character: char) -> Error {
    let before = &text[..offset];
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.chars().rev().take_while(|&character| character != '\n').count() as u64 + 1;
    Error::UnknownCharacter { path: None, line, column, character }
}

/// A set of code points.
struct Set(Vec<u64>);

impl Set {
    fn of(text: &str) -> Self {
        let mut set = Self(vec![0; (u32::from(char::MAX) as usize + 1).div_ceil(64)]);
        text.chars()
            .for_each(|character| set.0[u32::from(character) as usize / 64] |= 1 << (u32::from(character) % 64));
        set
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }

    fn sorted(&self) -> Vec<char> {
        (0..=u32::from(char::MAX))
            .filter(|&point| self.0[point as usize / 64] >> (point % 64) & 1 == 1)
            .filter_map(char::from_u32)
            .collect()
    }
}

/// The distinct characters of a text, sorted.
pub(super) fn distinct(text: &str) -> Vec<char> {
    Set::of(text).sorted()
}

/// The distinct characters of some files, sorted.
pub(super) fn distinct_in_files<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<char>> {
    let mut all = Set::of("");
    for path in paths {
        let mut reader = TextReader::open(path)?;
        loop {
            let chunks = reader.next_batch(4 * rayon::current_num_threads())?;
            if chunks.is_empty() {
                break;
            }
            let sets: Vec<Set> = chunks.par_iter().map(|chunk| Set::of(&chunk.text)).collect();
            sets.iter().for_each(|set| all.add(set));
        }
    }
    Ok(all.sorted())
}
