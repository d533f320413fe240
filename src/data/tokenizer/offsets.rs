//! Tokens with their places in the text, so that an answer can be cut out of it.

use super::{Kind, Tokenizer};
use crate::data::error::{Error, Result};

/// The tokens of a text and where each comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WithOffsets {
    /// The ids, as [`Tokenizer::encode`] gives them.
    pub ids: Vec<u32>,
    /// First character and end of each, counted in characters (Unicode scalar values) of the text.
    pub characters: Vec<(u32, u32)>,
}

impl Tokenizer {
    /// The ids of a text, each with its characters. Tokens that share a character (bytes of it) all name it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); or the text has more than `u32::MAX` characters.
    pub fn encode_with_offsets(&self, text: &str) -> Result<WithOffsets> {
        if u32::try_from(text.len()).is_err() {
            return Err(Error::Argument("a text of more than 4 GiB has no offsets; cut it into documents".into()));
        }
        match &self.kind {
            Kind::Byte => {
                let characters = (0u32..)
                    .zip(text.chars())
                    .flat_map(|(index, character)| std::iter::repeat_n((index, index + 1), character.len_utf8()));
                Ok(WithOffsets { ids: text.bytes().map(u32::from).collect(), characters: characters.collect() })
            }
            Kind::Char(characters) => {
                let ids = characters.encode(text)?;
                let characters = (0..ids.len() as u32).map(|index| (index, index + 1)).collect();
                Ok(WithOffsets { ids, characters })
            }
            Kind::HuggingFace(loaded) => {
                let encoding = loaded
                    .tokenizer
                    .encode_char_offsets(text, false)
                    .map_err(|error| Error::tokenizer("encoding", error))?;
                let offsets = encoding.get_offsets().iter();
                Ok(WithOffsets {
                    ids: encoding.get_ids().to_vec(),
                    characters: offsets.map(|&(first, end)| (first as u32, end as u32)).collect(),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "naïve — 漢字 🦀 e\u{301}nd";

    #[test]
    fn every_token_names_the_characters_that_it_came_from() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), TEXT.repeat(3)).unwrap();
        let bpe = Tokenizer::train_bpe(&[file.path()], 270, &|_, _| ()).unwrap();
        let text: Vec<char> = TEXT.chars().collect();
        for tokenizer in [Tokenizer::byte(), Tokenizer::char_from(TEXT).unwrap(), bpe] {
            let encoded = tokenizer.encode_with_offsets(TEXT).unwrap();
            assert_eq!(encoded.ids, tokenizer.encode(TEXT).unwrap(), "{}", tokenizer.name());
            assert_eq!(encoded.ids.len(), encoded.characters.len());
            for (&id, &(first, end)) in encoded.ids.iter().zip(&encoded.characters) {
                let piece: String = text[first as usize..end as usize].iter().collect();
                let token = tokenizer.decode(&[id]);
                assert!(token.contains('\u{FFFD}') || token.trim() == piece.trim(), "{token:?} is not {piece:?}");
            }
            assert_eq!(encoded.characters.last().unwrap().1 as usize, text.len());
        }
    }
}
