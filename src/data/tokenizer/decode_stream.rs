//! Decoding ids as they are generated: text comes out as soon as it is certain.
//!
//! Decoding one token alone is wrong in two ways: a character may be spread over several tokens, and some decoders
//! treat the start of a text differently (a leading space dropped). So a few earlier tokens stay as context; what the
//! context with the new tokens gives beyond the context alone is new text. It is held back while it ends in U+FFFD,
//! which is how half a character decodes.

use super::Tokenizer;

/// A UTF-8 character has at most four bytes, so after this many tokens U+FFFD is no half character but bad data.
const LONGEST_CHARACTER: usize = 4;

/// A decoder for ids that come one at a time: see [`Tokenizer::decode_stream`].
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The context, then the tokens whose text is held back.
    ids: Vec<u32>,
    context: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), context: 0 }
    }

    /// Adds an id and returns the text that is complete now; often empty.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        self.take(self.ids.len() - self.context >= LONGEST_CHARACTER)
    }

    /// The text still held back, at the end of the stream; U+FFFD for half a character.
    pub fn finish(&mut self) -> String {
        let text = self.take(true);
        (self.ids, self.context) = (Vec::new(), 0);
        text
    }

    fn take(&mut self, even_if_incomplete: bool) -> String {
        let known = self.tokenizer.decode(&self.ids[..self.context]);
        let all = self.tokenizer.decode(&self.ids);
        if all.ends_with('\u{FFFD}') && !even_if_incomplete {
            return String::new();
        }
        // A decoder may change the end of the known text (a space before punctuation); then the common part stands.
        let common = known.char_indices().zip(all.chars()).find(|((_, a), b)| a != b).map(|((offset, _), _)| offset);
        let new = all.get(common.unwrap_or(known.len())..).unwrap_or_default().to_string();
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "naïve — 漢字 🦀!\n  e\u{301} end";

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.decode_stream();
        let mut parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        parts.push(stream.finish());
        parts
    }

    #[test]
    fn the_parts_make_up_the_text_and_no_part_holds_half_a_character() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "the end of the naïve").unwrap();
        let bpe = Tokenizer::train_bpe(&[file.path()], 262, &|_, _| ()).unwrap();
        for tokenizer in [Tokenizer::byte(), Tokenizer::char_from(TEXT).unwrap(), bpe] {
            let parts = streamed(&tokenizer, &tokenizer.encode(TEXT).unwrap());
            assert_eq!(parts.concat(), TEXT, "{}", tokenizer.name());
            assert!(parts.iter().all(|part| !part.contains('\u{FFFD}')));
            assert!(parts.len() > 10 && parts.iter().filter(|part| !part.is_empty()).count() > 10, "{parts:?}");
        }
    }

    #[test]
    fn spaces_between_words_come_out_although_a_word_alone_has_none() {
        let json = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"one": 0, "two": 1}, "unk_token": "two"}}"#;
        let tokenizer = Tokenizer::from_json(json.into(), "words").unwrap();
        assert_eq!(streamed(&tokenizer, &[0, 1, 1, 0]), ["one", " two", " two", " one", ""]);
    }

    #[test]
    fn half_a_character_at_the_end_comes_out_at_finish() {
        assert_eq!(streamed(&Tokenizer::byte(), &[b'a'.into(), 0xE6, 0xBC]), ["a", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn bytes_that_never_become_a_character_do_not_block_the_stream() {
        let parts = streamed(&Tokenizer::byte(), &[0xFF, 0xFF, 0xFF, 0xFF, b'a'.into(), b'b'.into()]);
        assert_eq!(parts.concat(), "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}ab");
        assert!(!parts[3].is_empty() && parts[5] == "b");
    }
}
