//! What BLEU takes for a word: sacreBLEU's tokenizers `13a`, `zh`, `char` and `none`.
//!
//! `13a` is that of NIST's `mteval-v13a`, which WMT uses: symbols stand alone, periods and commas as well except
//! between digits, and a dash does after a digit. `zh` first sets each Chinese character apart. Both are a chain of
//! regular expressions in sacreBLEU; here each is a pass over the characters that finds what the expression would,
//! from the left and without overlaps: two periods in a row are not both behind "anything but a digit".

use crate::score::Error;
use crate::score::white_space::{is_white_space, words};
use std::str::FromStr;

/// A tokenizer of [`bleu`](super::bleu).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokenizer {
    /// `13a`: for languages that set spaces between words.
    #[default]
    V13a,
    /// `zh`: each Chinese character is a word, and the rest is as `13a`.
    Zh,
    /// `char`: each character is a word.
    Char,
    /// `none`: what white space separates, for text that is tokenized already.
    None,
}

impl Tokenizer {
    pub const ALL: [Self; 4] = [Self::V13a, Self::Zh, Self::Char, Self::None];

    /// What fits references: `zh` where most of them have a Chinese character, else `13a`.
    pub fn of_texts<'a>(references: impl IntoIterator<Item = &'a str>) -> Self {
        if crate::score::are_mostly_chinese(references) { Self::Zh } else { Self::V13a }
    }

    /// As signatures and the command line of sacreBLEU have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V13a => "13a",
            Self::Zh => "zh",
            Self::Char => "char",
            Self::None => "none",
        }
    }

    /// The words of a text.
    pub fn words(self, text: &str) -> Vec<String> {
        let owned = |text: &str| words(text).map(str::to_owned).collect();
        // White space at the end goes before anything else: a line break there is not one behind a dash.
        let text = text.trim_end_matches(is_white_space);
        match self {
            Self::V13a => owned(&punctuation_apart(&unescaped(text))),
            Self::Zh => owned(&punctuation_apart(&chinese_apart(text.trim_start_matches(is_white_space)))),
            Self::Char => text.chars().filter(|&c| !is_white_space(c)).map(String::from).collect(),
            Self::None => owned(text),
        }
    }
}

impl FromStr for Tokenizer {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|tokenizer| tokenizer.name() == name);
        found.ok_or_else(|| Error::UnknownTokenizer { name: name.to_owned() })
    }
}

/// Marks of the mteval format taken out or resolved, lines joined, and a space at either end, so that punctuation
/// there has a neighbour.
fn unescaped(text: &str) -> String {
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    // In this order, so that `&amp;lt;` ends as `<`.
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    format!(" {text} ")
}

/// Spaces around symbols, and around periods, commas and dashes where they are not part of a number.
fn punctuation_apart(text: &str) -> String {
    let mut symbols_apart = Vec::with_capacity(2 * text.len());
    for character in text.chars() {
        match character {
            ' '..='&' | '('..='+' | '/' | ':'..='@' | '['..='`' | '{'..='~' => {
                symbols_apart.extend([' ', character, ' '])
            }
            other => symbols_apart.push(other),
        }
    }
    let is_digit = |character: char| character.is_ascii_digit();
    let is_point = |character: char| matches!(character, '.' | ',');
    let behind = spaced(&symbols_apart, |left, right| !is_digit(left) && is_point(right), Spaces::AroundRight);
    let before = spaced(&behind, |left, right| is_point(left) && !is_digit(right), Spaces::AroundLeft);
    spaced(&before, |left, right| is_digit(left) && right == '-', Spaces::AroundRight).into_iter().collect()
}

/// Which of two neighbours gets a space on each side.
#[derive(Clone, Copy)]
enum Spaces {
    AroundLeft,
    AroundRight,
}

/// The text with spaces at each pair of neighbours that `is_pair` accepts; a character is of one pair at most, and the
/// leftmost pairs win.
fn spaced(text: &[char], is_pair: impl Fn(char, char) -> bool, spaces: Spaces) -> Vec<char> {
    let mut result = Vec::with_capacity(text.len() + text.len() / 4);
    let mut rest = text;
    loop {
        rest = match *rest {
            [left, right, ref behind @ ..] if is_pair(left, right) => {
                match spaces {
                    Spaces::AroundLeft => result.extend([' ', left, ' ', right]),
                    Spaces::AroundRight => result.extend([left, ' ', right, ' ']),
                }
                behind
            }
            [first, ref behind @ ..] => {
                result.push(first);
                behind
            }
            [] => return result,
        };
    }
}

fn chinese_apart(text: &str) -> String {
    let mut apart = String::with_capacity(2 * text.len());
    for character in text.chars() {
        if is_chinese(character) {
            apart.extend([' ', character, ' ']);
        } else {
            apart.push(character);
        }
    }
    apart
}

/// What sacreBLEU's `zh` takes for a Chinese character, as it computes it and not as its comments have it.
///
/// It means to list the ideographs beyond U+FFFF, but a Python string `"\u20000"` is U+2000 and a zero, and strings
/// compare by their first difference: the range from there to `"\u2a6d6"` is U+2001 to U+2A6D (dashes, curly
/// quotes, arrows, mathematics, ...), and no ideograph of Extension B is apart. Published figures are made that way.
fn is_chinese(character: char) -> bool {
    matches!(
        character,
        '\u{2001}'..='\u{2a6d}' // see above; holds the symbols and dingbats from U+2600 on, which are also listed
            | '\u{2e80}'..='\u{2fdf}' // radicals of both kinds, and what is between them
            | '\u{2ff0}'..='\u{303f}' // descriptions of characters, punctuation
            | '\u{3100}'..='\u{312f}' // bopomofo
            | '\u{31a0}'..='\u{31bf}'
            | '\u{31c0}'..='\u{31ef}' // strokes
            | '\u{3200}'..='\u{33ff}' // enclosed and squared characters
            | '\u{3400}'..='\u{4db5}' // ideographs, Extension A
            | '\u{4e00}'..='\u{9fbb}'
            | '\u{f900}'..='\u{fa2d}' // ideographs for compatibility
            | '\u{fa30}'..='\u{fa6a}'
            | '\u{fa70}'..='\u{fad9}'
            | '\u{fe10}'..='\u{fe1f}' // vertical forms
            | '\u{fe30}'..='\u{fe4f}'
            | '\u{ff00}'..='\u{ffef}' // full and half width
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_points_and_sentences_do_not() {
        assert_eq!(
            Tokenizer::V13a.words("It cost $1,234.56, e.g. 3-4.").join(" "),
            "It cost $ 1,234.56 , e . g . 3 - 4 ."
        );
        assert_eq!(Tokenizer::V13a.words("well-known isn't (it)?").join(" "), "well-known isn't ( it ) ?");
    }

    #[test]
    fn pairs_do_not_overlap() {
        assert_eq!(Tokenizer::V13a.words("x..5").join(" "), "x . .5");
        assert_eq!(Tokenizer::V13a.words("5--3").join(" "), "5 - -3");
    }

    #[test]
    fn marks_of_mteval_are_resolved_first() {
        assert_eq!(Tokenizer::V13a.words("&amp;lt; <skipped>a-\nb\nc-\n").join(" "), "< ab c-");
    }

    #[test]
    fn chinese_characters_are_words() {
        assert_eq!(Tokenizer::Zh.words(" 在Google，1.5年——“好”𠀀𠀁").join(" "), "在 Google ， 1.5 年 — — “ 好 ” 𠀀𠀁");
        assert_eq!(Tokenizer::Char.words("在 Go").join(" "), "在 G o");
        assert_eq!(Tokenizer::None.words(" 在Go, ok. ").join("|"), "在Go,|ok.");
    }

    #[test]
    fn nothing_has_no_words() {
        for tokenizer in Tokenizer::ALL {
            for nothing in ["", " ", "\n\t\u{3000}\u{1c}"] {
                assert!(tokenizer.words(nothing).is_empty(), "{tokenizer:?} {nothing:?}");
            }
        }
    }

    #[test]
    fn names_are_sacrebleus() {
        for tokenizer in Tokenizer::ALL {
            assert_eq!(tokenizer.name().parse(), Ok(tokenizer));
        }
        let error = "intl".parse::<Tokenizer>().unwrap_err();
        assert_eq!(error.to_string(), "no tokenizer is called \"intl\"; there are 13a, zh, char and none");
    }
}
