//! PTX text to tokens. A modifier (`.global`, `.L1::no_allocate`, `.2d`) is one token; `%` before a name belongs to it.

use super::error::{EmulatorError, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TokenKind<'a> {
    Word(&'a str),
    /// `.word`, without its dot.
    Dotted(&'a str),
    Integer(u64),
    /// A decimal floating-point literal or `0d...`.
    Float(f64),
    /// `0f...`.
    FloatBits(u32),
    Text(&'a str),
    /// One- or two-character punctuation.
    Punctuation(&'a str),
    End,
}

impl TokenKind<'_> {
    /// How an error message names it; long texts are cut.
    pub fn describe(&self) -> String {
        let cut = |text: &str| text.chars().take(40).collect::<String>();
        match self {
            Self::Word(word) => format!("'{}'", cut(word)),
            Self::Dotted(word) => format!("'.{}'", cut(word)),
            Self::Integer(value) => format!("{value}"),
            Self::Float(value) => format!("{value}"),
            Self::FloatBits(bits) => format!("0f{bits:08X}"),
            Self::Text(text) => format!("\"{}\"", cut(text)),
            Self::Punctuation(text) => format!("'{text}'"),
            Self::End => "the end of the text".into(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    pub kind: TokenKind<'a>,
    pub offset: u32,
    pub line: u32,
}

/// Line and column (both from 1, columns in characters) of a byte offset.
pub fn position(text: &str, offset: usize) -> (u32, u32) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |index| index + 1);
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before[line_start..].iter().filter(|&&byte| byte & 0xC0 != 0x80).count() + 1;
    (line as u32, column as u32)
}

/// Cuts `text` into tokens, ending with [`TokenKind::End`].
///
/// # Errors
/// A character or literal that PTX does not have, with its place; a text of 4 GiB or more.
pub fn tokenize<'a>(file: &str, text: &'a str) -> Result<Vec<Token<'a>>> {
    if u32::try_from(text.len()).is_err() {
        return Err(EmulatorError::Module { file: file.into(), message: "the PTX text is 4 GiB or longer".into() });
    }
    let mut lexer = Lexer { text, bytes: text.as_bytes(), at: 0, line: 1 };
    let mut tokens = Vec::with_capacity(text.len() / 4);
    loop {
        match lexer.next() {
            Ok(token) => {
                tokens.push(token);
                if token.kind == TokenKind::End {
                    return Ok(tokens);
                }
            }
            Err((offset, expected, found)) => {
                let (line, column) = position(text, offset);
                return Err(EmulatorError::Parse { file: file.into(), line, column, expected: expected.into(), found });
            }
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

type Failure = (usize, &'static str, String);

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn found_here(&self) -> String {
        self.text
            .get(self.at..)
            .and_then(|rest| rest.chars().next())
            .map_or("the end of the text".into(), |character| format!("'{}'", character.escape_debug()))
    }

    fn skip_blank(&mut self) -> std::result::Result<(), Failure> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r' | 0x0B | 0x0C, _) => self.at += 1,
                (b'/', b'/') => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    let start = self.at;
                    self.at += 2;
                    while !(self.peek(0) == b'*' && self.peek(1) == b'/') {
                        if self.at >= self.bytes.len() {
                            return Err((start, "'*/' after this", "the end of the text".into()));
                        }
                        self.line += u32::from(self.peek(0) == b'\n');
                        self.at += 1;
                    }
                    self.at += 2;
                }
                // C preprocessor leftovers such as `#line` carry no meaning.
                (b'#', _) => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn word_from(&mut self, start: usize, accept: impl Fn(u8) -> bool) -> &'a str {
        while self.at < self.bytes.len() && accept(self.peek(0)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn next(&mut self) -> std::result::Result<Token<'a>, Failure> {
        self.skip_blank()?;
        let (offset, line) = (self.at as u32, self.line);
        let start = self.at;
        let first = self.peek(0);
        let kind = match first {
            _ if self.at >= self.bytes.len() => TokenKind::End,
            b'0'..=b'9' => self.number()?,
            b'%' if is_word(self.peek(1)) => {
                self.at += 1;
                TokenKind::Word(self.word_from(start, is_word))
            }
            _ if is_word(first) => TokenKind::Word(self.word_from(start, is_word)),
            b'.' if is_word(self.peek(1)) => {
                self.at += 1;
                TokenKind::Dotted(self.modifier())
            }
            b'"' => {
                self.at += 1;
                let inside = self.at;
                while self.peek(0) != b'"' {
                    if self.at >= self.bytes.len() {
                        return Err((start, "a closing '\"' after this", "the end of the text".into()));
                    }
                    self.line += u32::from(self.peek(0) == b'\n');
                    self.at += 1 + usize::from(self.peek(0) == b'\\' && self.at + 1 < self.bytes.len());
                }
                let text = self.text.get(inside..self.at).unwrap_or("");
                self.at += 1;
                TokenKind::Text(text)
            }
            _ => {
                const TWO: [&str; 8] = ["<<", ">>", "<=", ">=", "==", "!=", "&&", "||"];
                const ONE: &[u8] = b",;:[]{}()<>+-*/%&|^~!?=@";
                let two = self.text.get(start..start + 2).filter(|pair| TWO.contains(pair));
                if let Some(pair) = two {
                    self.at += 2;
                    TokenKind::Punctuation(pair)
                } else if ONE.contains(&first) {
                    self.at += 1;
                    TokenKind::Punctuation(&self.text[start..self.at])
                } else {
                    return Err((start, "a PTX token", self.found_here()));
                }
            }
        };
        Ok(Token { kind, offset, line })
    }

    /// The rest of a modifier; `::` joins its parts.
    fn modifier(&mut self) -> &'a str {
        let start = self.at;
        loop {
            self.word_from(start, is_word);
            if self.peek(0) == b':' && self.peek(1) == b':' && is_word(self.peek(2)) {
                self.at += 2;
            } else {
                return &self.text[start..self.at];
            }
        }
    }

    fn number(&mut self) -> std::result::Result<TokenKind<'a>, Failure> {
        let start = self.at;
        let second = self.peek(1);
        let (radix, digits) = match (self.peek(0), second) {
            (b'0', b'x' | b'X') => (16, 2),
            (b'0', b'b' | b'B') => (2, 2),
            (b'0', b'f' | b'F' | b'd' | b'D') => {
                self.at += 2;
                let inside = self.at;
                let word = self.word_from(inside, |byte| byte.is_ascii_hexdigit());
                let wanted = if second.eq_ignore_ascii_case(&b'f') { 8 } else { 16 };
                if word.len() != wanted {
                    let expected =
                        if wanted == 8 { "8 hexadecimal digits after 0f" } else { "16 hexadecimal digits after 0d" };
                    return Err((start, expected, format!("{} digits", word.len())));
                }
                let bits = u64::from_str_radix(word, 16).unwrap_or(0);
                return Ok(if wanted == 8 {
                    TokenKind::FloatBits(bits as u32)
                } else {
                    TokenKind::Float(f64::from_bits(bits))
                });
            }
            (b'0', b'0'..=b'9') => (8, 1),
            _ => (10, 0),
        };
        self.at += digits;
        let inside = self.at;
        let word = self.word_from(inside, |byte| byte.is_ascii_hexdigit() && (radix == 16 || byte.is_ascii_digit()));
        let is_decimal_point = radix != 16
            && radix != 2
            && self.peek(0) == b'.'
            && (self.peek(1).is_ascii_digit() || !is_word(self.peek(1)));
        let is_exponent = radix != 16 && radix != 2 && matches!(self.peek(0), b'e' | b'E');
        if is_decimal_point || is_exponent {
            if is_decimal_point {
                self.at += 1;
                self.word_from(start, |byte| byte.is_ascii_digit());
            }
            if matches!(self.peek(0), b'e' | b'E') {
                self.at += 1 + usize::from(matches!(self.peek(1), b'+' | b'-'));
                self.word_from(start, |byte| byte.is_ascii_digit());
            }
            let word = &self.text[start..self.at];
            return match word.parse::<f64>() {
                Ok(value) => Ok(TokenKind::Float(value)),
                Err(_) => {
                    Err((start, "a floating-point literal", format!("'{}'", word.chars().take(40).collect::<String>())))
                }
            };
        }
        let value = if word.is_empty() && radix == 8 { Ok(0) } else { u64::from_str_radix(word, radix) };
        self.at += usize::from(matches!(self.peek(0), b'U' | b'u'));
        match value {
            Ok(value) if !is_word(self.peek(0)) => Ok(TokenKind::Integer(value)),
            Ok(_) => Err((start, "an integer literal", format!("a literal that runs into {}", self.found_here()))),
            Err(_) => Err((
                start,
                "an integer of at most 64 bits",
                format!("'{}'", self.text[start..self.at].chars().take(40).collect::<String>()),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<TokenKind<'_>> {
        tokenize("t.ptx", text).unwrap().into_iter().map(|token| token.kind).collect()
    }

    #[test]
    fn literals_of_every_radix_and_float_form_are_read() {
        use TokenKind::*;
        assert_eq!(
            kinds("10 0x1F 017 0b101 7U 1.5 2e3 0f3F800000 0d3FF0000000000000 0"),
            vec![
                Integer(10),
                Integer(31),
                Integer(15),
                Integer(5),
                Integer(7),
                Float(1.5),
                Float(2000.0),
                FloatBits(0x3F80_0000),
                Float(1.0),
                Integer(0),
                End
            ]
        );
    }

    #[test]
    fn modifiers_keep_their_colons_and_registers_their_percent() {
        use TokenKind::*;
        assert_eq!(
            kinds("ld.global.L1::no_allocate.L2::128B.v4 %r1, [%rd2+4]; // end\n/* x */ $L_1:"),
            vec![
                Word("ld"),
                Dotted("global"),
                Dotted("L1::no_allocate"),
                Dotted("L2::128B"),
                Dotted("v4"),
                Word("%r1"),
                Punctuation(","),
                Punctuation("["),
                Word("%rd2"),
                Punctuation("+"),
                Integer(4),
                Punctuation("]"),
                Punctuation(";"),
                Word("$L_1"),
                Punctuation(":"),
                End
            ]
        );
    }

    #[test]
    fn a_wrong_character_is_named_with_line_and_column() {
        let error = tokenize("t.ptx", "add.s32 a,\n  é;").unwrap_err();
        assert_eq!(error.to_string(), "t.ptx:2:3: expected a PTX token, found 'é'");
        assert!(tokenize("t.ptx", "0f12").unwrap_err().to_string().contains("8 hexadecimal digits"));
        assert!(tokenize("t.ptx", "/* no end").unwrap_err().to_string().contains("'*/'"));
    }
}
