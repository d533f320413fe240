//! The tokens that frame an encoder's input, found in a tokenizer by the names that they usually have.

use super::{Kind, Tokenizer};
use crate::data::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Names in the order in which they are looked for: BERT's, RoBERTa's and T5's, then what decoders have.
const START: [&str; 4] = ["[CLS]", "<s>", "<bos>", "<|endoftext|>"];
const END: [&str; 4] = ["[SEP]", "</s>", "<eos>", "<|endoftext|>"];
const MASK: [&str; 2] = ["[MASK]", "<mask>"];
const PAD: [&str; 2] = ["[PAD]", "<pad>"];

/// Ids of the tokens around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// `[CLS]` or `<s>`: starts a sequence; an encoder's state there stands for the whole of it.
    pub start: u32,
    /// `[SEP]` or `</s>`: ends each text.
    pub end: u32,
    /// `[MASK]` or `<mask>`, where there is one.
    pub mask: Option<u32>,
    /// `[PAD]` or `<pad>`; 0 where there is none: padding is never looked at.
    pub pad: u32,
}

impl SpecialTokens {
    /// Those of a tokenizer; None where nothing starts or nothing ends a text.
    pub fn find(tokenizer: &Tokenizer) -> Option<Self> {
        let find = |names: &[&str]| names.iter().find_map(|name| tokenizer.token_id(name));
        Some(Self { start: find(&START)?, end: find(&END)?, mask: find(&MASK), pad: find(&PAD).unwrap_or(0) })
    }

    /// Those of a tokenizer.
    ///
    /// # Errors
    /// The tokenizer has none: those of bytes and of characters.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        Self::find(tokenizer).ok_or_else(|| {
            let what = "it has no [CLS] and [SEP], nor <s> and </s>, to frame texts with; \
                        train one that has with `engine-data tokenizer --model wordpiece`";
            Error::tokenizer(format!("tokenizer {}", tokenizer.name()), what)
        })
    }
}

impl Tokenizer {
    /// True of ids that stand for no text: `[CLS]`, `<|endoftext|>` and the like.
    pub fn is_special(&self, id: u32) -> bool {
        let Kind::HuggingFace(loaded) = &self.kind else { return false };
        let added = loaded.tokenizer.get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    }

    /// A token as the vocabulary spells it (`##ing`, `Ġthe`, `▁the`); None where no token has this id.
    pub fn token_text(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::Byte => u8::try_from(id).ok().map(|byte| super::BYTE_CHARACTERS[usize::from(byte)].to_string()),
            Kind::Char(characters) => characters.character(id).map(String::from),
            Kind::HuggingFace(loaded) => loaded.tokenizer.id_to_token(id),
        }
    }
}
