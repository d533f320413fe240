//! Where words begin, told from how a vocabulary spells its tokens.
//!
//! WordPiece marks what continues a word (`##ing`); byte-level and unigram vocabularies mark what follows a space (`Ġthe`,
//! `▁the`). In the latter, marks of punctuation and Chinese characters, before which nobody writes a space, are words too.

use super::super::tokenizer::Tokenizer;

/// What a token is to a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// No part of the text.
    Special,
    /// Begins a word.
    Begin,
    /// Goes on with one, where one is before it.
    Inside,
}

/// The marks of what follows a space: byte-level (a space is U+0120) and unigram.
const AFTER_SPACE: [char; 2] = ['Ġ', '▁'];

const CONTINUES: &str = "##";

/// What each id of a tokenizer is. Ids of no token count as special: nothing is drawn from them.
pub(super) fn pieces(tokenizer: &Tokenizer) -> Vec<Piece> {
    let texts: Vec<Option<String>> = (0..tokenizer.vocabulary() as u32).map(|id| tokenizer.token_text(id)).collect();
    let continues = |text: &str| text.len() > CONTINUES.len() && text.starts_with(CONTINUES);
    let has = |test: &dyn Fn(&str) -> bool| texts.iter().flatten().any(|text| test(text));
    let marks_continuations = has(&continues);
    let marks_spaces = has(&|text| text.chars().count() > 1 && text.starts_with(AFTER_SPACE));
    let is_bytes = has(&|text| text == "Ġ");
    let piece = |(id, text): (u32, &Option<String>)| match text {
        None => Piece::Special,
        Some(_) if tokenizer.is_special(id) => Piece::Special,
        Some(text) if is_unused(text) => Piece::Special,
        Some(text) => {
            let is_inside = if marks_spaces {
                !text.starts_with(AFTER_SPACE) && !begins_alone(text, is_bytes)
            } else {
                marks_continuations && continues(text)
            };
            if is_inside { Piece::Inside } else { Piece::Begin }
        }
    };
    (0..).zip(&texts).map(piece).collect()
}

/// True of the places that BERT's vocabulary keeps free.
fn is_unused(text: &str) -> bool {
    text.strip_prefix("[unused")
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|number| number.parse::<u32>().is_ok())
}

/// True of punctuation, and of characters of scripts without spaces. In byte-level vocabularies the latter are known by the
/// first of their three bytes (0xE3 to 0xE9: kana and Chinese characters), which stand for themselves.
fn begins_alone(text: &str, is_bytes: bool) -> bool {
    let Some(first) = text.chars().next() else { return false };
    let point = u32::from(first);
    let has_no_spaces = if is_bytes {
        (0xE3..=0xE9).contains(&point)
    } else {
        matches!(point, 0x3040..=0x30FF | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x2FA1F)
    };
    first.is_ascii_punctuation() || has_no_spaces
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn word_level(tokens: &[&str]) -> Tokenizer {
        let vocabulary: serde_json::Map<_, _> =
            tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "added_tokens": [{"id": 0, "content": tokens[0], "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokens[0]},
        });
        Tokenizer::from_json(json.to_string(), "words").unwrap()
    }

    #[test]
    fn each_way_of_spelling_tells_where_words_begin() {
        use Piece::{Begin, Inside, Special};
        for (tokens, expected) in [
            (
                &["[CLS]", "play", "##ing", "漢", "[unused7]", "##"][..],
                &[Special, Begin, Inside, Begin, Special, Begin][..],
            ),
            // Byte-level: é is Ã© and 漢 is æ¼¢.
            (&["<s>", "Ġplay", "ing", "Ã©", "æ¼¢", ".", "Ġ"], &[Special, Begin, Inside, Inside, Begin, Begin, Begin]),
            (&["<s>", "▁play", "ing", "é", "漢字", ","], &[Special, Begin, Inside, Inside, Begin, Begin]),
            (&["<unk>", "one", "two"], &[Special, Begin, Begin]),
        ] {
            assert_eq!(pieces(&word_level(tokens)), expected, "{tokens:?}");
        }
    }
}
