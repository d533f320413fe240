//! `examples.bin`: the layout of labelled examples, in a file or in memory.
//!
//! Little-endian; a header of 256 bytes, then sections, each at the next multiple of eight bytes after the one before:
//!
//! | header at | what |
//! | --- | --- |
//! | 0 | `ENGLABEL` |
//! | 8 | u32 version (1), u32 kind, u32 bytes of a token (2 or 4), u32 u64-words of a multi-label |
//! | 24 | u64 examples `n`, u64 rows, u64 tokens, u64 hash of all that follows the header |
//! | 56 | for each section u64 offset, u64 bytes |
//!
//! | section | what |
//! | --- | --- |
//! | tokens | u16 or u32: all tokens of all examples |
//! | starts | u64 `(n + 1)`: where each example starts among them |
//! | second | u32 `(n)`: where in an example its second text starts; its length where there is none |
//! | rows | u32 `(n)`: which row of the source it came from, from 0 (long rows make several examples) |
//! | labels | class: u32; multi-label: bits in u64 words; regression: f32; span: u32 first token and end of the answer |
//! | offsets | spans: u32 first character and end of each token of the context; zeros for the others |
//! | text starts | spans, pairs: u64 `(rows + 1)`: where each row's text starts |
//! | texts | the rows' texts as JSON |
//!
//! Tokens are written as they come; the rest is kept until the end. In memory the same bytes lie in an anonymous map, so
//! that there is one way to read them.

use super::super::error::{Error, Result};
use super::super::hash::Hash;
use super::super::shard::TokenType;
use super::Kind;
use memmap2::{Mmap, MmapMut};
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

const MAGIC: [u8; 8] = *b"ENGLABEL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 256;
const SECTIONS_AT: usize = 56;
const SECTIONS: usize = 8;
const AGAIN: &str = "copy it again, or make it again with `engine-data labelled`";

/// What an example is labelled with, before names of classes are numbered.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RawLabel {
    None,
    Class(u32),
    Classes(Vec<u32>),
    Value(f32),
    Span(u32, u32),
}

/// One example on its way into the file.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub tokens: Vec<u32>,
    pub second: u32,
    /// For spans: as many as tokens. Else empty.
    pub offsets: Vec<(u32, u32)>,
}

/// Writes examples one by one.
pub(super) struct Builder<W> {
    out: Hashing<W>,
    kind: Kind,
    token_type: TokenType,
    tokens: u64,
    starts: Vec<u64>,
    second: Vec<u32>,
    rows: Vec<u32>,
    labels: Vec<RawLabel>,
    offsets: Vec<u32>,
    text_starts: Vec<u64>,
    texts: Vec<u8>,
    row_count: u64,
}

/// Writes, and hashes what it writes in words of eight bytes.
struct Hashing<W> {
    out: W,
    hash: Hash,
    word: [u8; 8],
    filled: usize,
    written: u64,
}

impl<W: Write> Hashing<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        for &byte in bytes {
            self.word[self.filled] = byte;
            self.filled += 1;
            if self.filled == 8 {
                self.hash.add(u64::from_le_bytes(self.word));
                self.filled = 0;
            }
        }
        self.out.write_all(bytes)
    }
}

impl<W: Write + Seek> Builder<W> {
    pub(super) fn new(mut out: W, kind: Kind, token_type: TokenType) -> io::Result<Self> {
        out.write_all(&[0; HEADER_BYTES])?;
        let out = Hashing { out, hash: Hash::new(), word: [0; 8], filled: 0, written: 0 };
        Ok(Self {
            out,
            kind,
            token_type,
            tokens: 0,
            starts: vec![0],
            second: Vec::new(),
            rows: Vec::new(),
            labels: Vec::new(),
            offsets: Vec::new(),
            text_starts: vec![0],
            texts: Vec::new(),
            row_count: 0,
        })
    }

    pub(super) fn examples(&self) -> usize {
        self.second.len()
    }

    pub(super) fn rows(&self) -> usize {
        self.row_count as usize
    }

    /// Starts the next row, with its text where the kind keeps it.
    pub(super) fn push_row(&mut self, text: &str) {
        self.row_count += 1;
        self.texts.extend_from_slice(text.as_bytes());
        self.text_starts.push(self.texts.len() as u64);
    }

    /// Appends an example of the current row.
    pub(super) fn push(&mut self, item: &Item, label: RawLabel) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(item.tokens.len() * self.token_type.bytes());
        for &token in &item.tokens {
            match self.token_type {
                TokenType::U16 => bytes.extend_from_slice(&(token as u16).to_le_bytes()),
                TokenType::U32 => bytes.extend_from_slice(&token.to_le_bytes()),
            }
        }
        self.out.put(&bytes)?;
        self.tokens += item.tokens.len() as u64;
        self.starts.push(self.tokens);
        self.second.push(item.second);
        let row = u32::try_from(self.row_count - 1).map_err(|_| io::Error::other("more than 2^32 rows"))?;
        self.rows.push(row);
        self.labels.push(label);
        self.offsets.extend(item.offsets.iter().flat_map(|&(first, end)| [first, end]));
        Ok(())
    }

    /// Writes the other sections and the header. `number` gives each class its final number; `classes` is how many there are.
    /// Returns what it was written to, and the hash.
    pub(super) fn finish(mut self, classes: usize, number: impl Fn(u32) -> u32) -> io::Result<(W, u64)> {
        let words = if self.kind == Kind::MultiLabel { classes.div_ceil(64) } else { 0 };
        let mut labels = Vec::new();
        for label in &self.labels {
            match label {
                RawLabel::None => {}
                RawLabel::Class(class) => labels.extend_from_slice(&number(*class).to_le_bytes()),
                RawLabel::Classes(all) => {
                    let mut bits = vec![0u64; words];
                    for class in all.iter().map(|&class| number(class) as usize) {
                        bits[class / 64] |= 1 << (class % 64);
                    }
                    bits.iter().for_each(|word| labels.extend_from_slice(&word.to_le_bytes()));
                }
                RawLabel::Value(value) => labels.extend_from_slice(&value.to_le_bytes()),
                RawLabel::Span(first, end) => {
                    labels.extend_from_slice(&first.to_le_bytes());
                    labels.extend_from_slice(&end.to_le_bytes());
                }
            }
        }
        if !self.kind.keeps_texts() {
            (self.text_starts, self.texts) = (Vec::new(), Vec::new());
        }
        let u64s = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let u32s = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let mut table = vec![(HEADER_BYTES as u64, self.out.written)];
        for bytes in [
            u64s(&self.starts),
            u32s(&self.second),
            u32s(&self.rows),
            labels,
            u32s(&self.offsets),
            u64s(&self.text_starts),
            std::mem::take(&mut self.texts),
        ] {
            self.out.put(&[0; 8][..padding(self.out.written)])?;
            table.push((HEADER_BYTES as u64 + self.out.written, bytes.len() as u64));
            self.out.put(&bytes)?;
        }
        self.out.put(&[0; 8][..padding(self.out.written)])?;
        let hash = self.out.hash.finish();

        let mut header = Vec::from(MAGIC);
        for number in [VERSION, self.kind.number(), self.token_type.bytes() as u32, words as u32] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.second.len() as u64, self.row_count, self.tokens, hash] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        for (offset, bytes) in table {
            header.extend_from_slice(&offset.to_le_bytes());
            header.extend_from_slice(&bytes.to_le_bytes());
        }
        let mut out = self.out.out;
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&header)?;
        out.seek(SeekFrom::End(0))?;
        Ok((out, hash))
    }
}

fn padding(written: u64) -> usize {
    written.next_multiple_of(8) as usize - written as usize
}

/// Bytes in memory as a map, aligned as a mapped file is.
pub(super) fn in_memory(bytes: Cursor<Vec<u8>>) -> io::Result<Mmap> {
    let bytes = bytes.into_inner();
    let mut map = MmapMut::map_anon(bytes.len())?;
    map.copy_from_slice(&bytes);
    map.make_read_only()
}

/// Where everything is in a map, all of it checked.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub kind: Kind,
    pub token_type: TokenType,
    pub words: usize,
    pub examples: usize,
    pub rows: usize,
    pub hash: u64,
    sections: [Range<usize>; SECTIONS],
}

/// The sections in their order.
#[derive(Clone, Copy)]
#[repr(usize)]
pub(super) enum Section {
    Tokens,
    Starts,
    Second,
    Rows,
    Labels,
    Offsets,
    TextStarts,
    Texts,
}

impl Layout {
    /// Bytes of a section.
    pub(super) fn bytes<'a>(&self, map: &'a Mmap, section: Section) -> &'a [u8] {
        &map[self.sections[section as usize].clone()]
    }

    /// Values of a section. Sections start at multiples of eight bytes and have whole lengths: [`read`](Self::read) saw to it.
    pub(super) fn values<'a, T: bytemuck::AnyBitPattern>(&self, map: &'a Mmap, section: Section) -> &'a [T] {
        bytemuck::cast_slice(self.bytes(map, section))
    }

    /// Reads and checks a header and every length, offset and index against the size of the map and the number of
    /// classes; token ids are not looked at. `path` names it in errors.
    pub(super) fn read(path: &Path, map: &Mmap, classes: usize) -> Result<Self> {
        let damaged = |what: String| Error::shard(path, what, AGAIN);
        if map.len() < HEADER_BYTES {
            return Err(damaged(format!("cut short: {} bytes, but the header alone has {HEADER_BYTES}", map.len())));
        }
        if map[..8] != MAGIC {
            return Err(damaged("not a file of labelled examples: it does not start with ENGLABEL".into()));
        }
        let u32_at = |at: usize| u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(8) != VERSION {
            return Err(damaged(format!("version {} is unknown (this is version {VERSION})", u32_at(8))));
        }
        let kind = Kind::from_number(u32_at(12)).ok_or_else(|| damaged(format!("unknown kind {}", u32_at(12))))?;
        let token_type = match u32_at(16) {
            2 => TokenType::U16,
            4 => TokenType::U32,
            bytes => return Err(damaged(format!("tokens of {bytes} bytes (2 or 4 are possible)"))),
        };
        let words = u32_at(20) as usize;
        let expected_words = if kind == Kind::MultiLabel { classes.div_ceil(64) } else { 0 };
        if words != expected_words {
            return Err(damaged(format!("labels of {words} words, but {classes} classes take {expected_words}")));
        }
        let [examples, rows, tokens, hash] = [24, 32, 40, 48].map(u64_at);
        let label_bytes = match kind {
            Kind::Text | Kind::Pair => 0,
            Kind::Classification | Kind::Regression => 4,
            Kind::MultiLabel => 8 * words as u64,
            Kind::Span => 8,
        };
        let times = |count: u64, bytes: u64| count.checked_mul(bytes);
        let texts = u64_at(SECTIONS_AT + 16 * Section::Texts as usize + 8);
        let lengths = [
            times(tokens, token_type.bytes() as u64),
            examples.checked_add(1).and_then(|count| times(count, 8)),
            times(examples, 4),
            times(examples, 4),
            times(examples, label_bytes),
            times(tokens, if kind == Kind::Span { 8 } else { 0 }),
            if kind.keeps_texts() { rows.checked_add(1).and_then(|count| times(count, 8)) } else { Some(0) },
            Some(texts),
        ];
        let mut sections: [Range<usize>; SECTIONS] = Default::default();
        let mut at = HEADER_BYTES as u64;
        for (index, length) in lengths.into_iter().enumerate() {
            let offset = u64_at(SECTIONS_AT + 16 * index);
            let bytes = u64_at(SECTIONS_AT + 16 * index + 8);
            let end = offset.checked_add(bytes).filter(|&end| end <= map.len() as u64);
            let (Some(end), true) = (end, offset == at && Some(bytes) == length) else {
                return Err(damaged(format!(
                    "cut short or damaged: section {index} is {bytes} bytes at {offset}, of {} bytes",
                    map.len()
                )));
            };
            sections[index] = offset as usize..end as usize;
            at = end.next_multiple_of(8);
        }
        if at != map.len() as u64 {
            return Err(damaged(format!("its sections end at {at}, but it has {} bytes", map.len())));
        }
        let layout = Self { kind, token_type, words, examples: examples as usize, rows: rows as usize, hash, sections };
        layout.check_indices(map, tokens, classes).map_err(damaged)?;
        Ok(layout)
    }

    fn check_indices(&self, map: &Mmap, tokens: u64, classes: usize) -> std::result::Result<(), String> {
        let starts: &[u64] = self.values(map, Section::Starts);
        let start = |index: usize| u64::from_le(starts[index]);
        if start(0) != 0 || start(self.examples) != tokens {
            return Err(format!("its examples span {}..{} of {tokens} tokens", start(0), start(self.examples)));
        }
        let second: &[u32] = self.values(map, Section::Second);
        let rows: &[u32] = self.values(map, Section::Rows);
        for example in 0..self.examples {
            let length =
                start(example + 1).checked_sub(start(example)).filter(|&length| (1..1 << 31).contains(&length));
            let Some(length) = length else {
                return Err(format!("example {example} spans tokens {}..{}", start(example), start(example + 1)));
            };
            let (second, row) = (u32::from_le(second[example]), u32::from_le(rows[example]));
            if u64::from(second) > length || row as usize >= self.rows {
                return Err(format!("example {example} has its second text at {second} and comes from row {row}"));
            }
            let is_good = match self.kind {
                Kind::Classification => (self.word(map, example) as usize) < classes,
                Kind::Regression => f32::from_bits(self.word(map, example)).is_finite(),
                Kind::Span => {
                    let (first, end) = (self.word(map, 2 * example), self.word(map, 2 * example + 1));
                    (first, end) == (0, 0) || (second <= first && first < end && u64::from(end) <= length)
                }
                Kind::Text | Kind::Pair | Kind::MultiLabel => true,
            };
            if !is_good {
                return Err(format!("the label of example {example} is out of range"));
            }
        }
        let text_starts: &[u64] = self.values(map, Section::TextStarts);
        let is_sorted = text_starts.windows(2).all(|pair| u64::from_le(pair[0]) <= u64::from_le(pair[1]));
        let ends = text_starts.first().zip(text_starts.last());
        let texts = self.bytes(map, Section::Texts).len() as u64;
        let expected = if text_starts.is_empty() { texts == 0 } else { ends == Some((&0, &texts.to_le())) };
        if !is_sorted || !expected {
            return Err("the places of its texts are out of order".into());
        }
        Ok(())
    }

    /// A word of the labels.
    pub(super) fn word(&self, map: &Mmap, index: usize) -> u32 {
        u32::from_le(self.values::<u32>(map, Section::Labels)[index])
    }

    /// Hash of all that follows the header, as the header should name it.
    pub(super) fn hash_of(map: &Mmap) -> u64 {
        let mut hash = Hash::new();
        map[HEADER_BYTES..].chunks_exact(8).for_each(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            hash.add(u64::from_le_bytes(bytes));
        });
        hash.finish()
    }
}
