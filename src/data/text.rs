//! Text files of any size, read in chunks that end where no tokenizer joins what comes before with what comes after.
//!
//! The best place to cut is after a line break between two characters that are not white space: GPT-2's pattern of
//! words and those that followed it make the break a token of its own there, and character and word tokenizers do not
//! care. Where a stretch of text has no such place, the next best is any line break, then any character. Cuts depend
//! on the text only, so the tokens are the same for any number of threads.

use super::error::{Error, Result};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Size of a chunk: large against the cost of a task, small enough that even a file of a megabyte gives work to several
/// cores.
const CHUNK_BYTES: usize = 1 << 18;

/// True where a line ends at `cut`, between two ASCII characters that are neither space nor control characters.
pub(crate) fn is_clean_cut(bytes: &[u8], cut: usize) -> bool {
    let is_visible = |byte: Option<&u8>| byte.is_some_and(|byte| (b'!'..=b'~').contains(byte));
    cut >= 2 && bytes[cut - 1] == b'\n' && is_visible(bytes.get(cut - 2)) && is_visible(bytes.get(cut))
}

/// Where to end the first piece of `text`: near `size` bytes, at the best cut at or before it; all of a short text.
pub(crate) fn piece_end(text: &str, size: usize) -> usize {
    if text.len() <= size {
        return text.len();
    }
    let bytes = text.as_bytes();
    let mut any_line = None;
    for end in (1..=size).rev() {
        if bytes[end - 1] != b'\n' {
            continue;
        }
        if is_clean_cut(bytes, end) {
            return end;
        }
        any_line = any_line.or(Some(end));
        // A clean cut is nearly always close; do not search a huge run of blank lines.
        if end + (1 << 16) < size {
            break;
        }
    }
    any_line.unwrap_or_else(|| text.floor_char_boundary(size).max(text.ceil_char_boundary(1)))
}

/// A chunk of a file.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// The text; never empty.
    pub text: String,
    /// Line of the file on which it starts, from 1.
    pub line: u64,
}

/// Reads a file, or the part of it up to a limit, as chunks of UTF-8 text.
pub(crate) struct TextReader {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Byte offset and line at which the buffer starts.
    offset: u64,
    line: u64,
    /// Byte offset that is not read beyond.
    limit: u64,
    size: u64,
}

impl TextReader {
    /// Opens a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(Error::read(&path))?;
        let metadata = file.metadata().map_err(Error::read(&path))?;
        if metadata.is_dir() {
            return Err(Error::shard(&path, "is a folder, not a text file", "name the files inside it"));
        }
        let size = metadata.len();
        Ok(Self { file, path, buffer: Vec::new(), offset: 0, line: 1, limit: u64::MAX, size })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file when it was opened; zero for pipes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes between here and the end of the file as it was when opened.
    pub(crate) fn remaining(&self) -> u64 {
        self.size.saturating_sub(self.offset)
    }

    /// Reads no further than this byte offset, until it is moved again.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// The first offset at or after `offset` that starts a character, or a line where `whole_lines` is set.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn cut_at(&mut self, offset: u64, whole_lines: bool) -> Result<u64> {
        let position = self.file.stream_position().map_err(Error::read(&self.path))?;
        let cut = self.find_cut(offset, whole_lines).map_err(Error::read(&self.path))?;
        self.file.seek(SeekFrom::Start(position)).map_err(Error::read(&self.path))?;
        Ok(cut)
    }

    fn find_cut(&mut self, offset: u64, whole_lines: bool) -> io::Result<u64> {
        if offset == 0 {
            return Ok(0);
        }
        // A line starts after a line break, a character at a byte that continues none: the byte before a cut tells the
        // one, the byte after it the other.
        self.file.seek(SeekFrom::Start(if whole_lines { offset - 1 } else { offset }))?;
        let mut cut = offset;
        let mut buffer = [0u8; 4096];
        loop {
            let count = self.file.read(&mut buffer)?;
            let is_cut = |&byte: &u8| if whole_lines { byte == b'\n' } else { byte & 0b1100_0000 != 0b1000_0000 };
            match buffer[..count].iter().position(is_cut) {
                Some(index) => return Ok(cut + index as u64),
                None if count == 0 => return Ok(cut),
                None => cut += count as u64,
            }
        }
    }

    /// The next chunk, or None at the end.
    ///
    /// # Errors
    /// The file cannot be read, or is not UTF-8: the error names the byte.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        // One byte more than a chunk, to see what follows a line break at its end.
        let wanted = ((CHUNK_BYTES + 1 - self.buffer.len().min(CHUNK_BYTES)) as u64)
            .min(self.limit.saturating_sub(self.offset + self.buffer.len() as u64));
        (&mut self.file).take(wanted).read_to_end(&mut self.buffer).map_err(Error::read(&self.path))?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let is_last = self.buffer.len() <= CHUNK_BYTES;
        let text = match std::str::from_utf8(&self.buffer) {
            Ok(text) => text,
            // A character cut by the end of the buffer is no error unless the file ends there.
            Err(error) if error.error_len().is_none() && !is_last => {
                std::str::from_utf8(&self.buffer[..error.valid_up_to()]).unwrap_or_default()
            }
            Err(error) => {
                let offset = self.offset + error.valid_up_to() as u64;
                return Err(Error::InvalidUtf8 { path: self.path.clone(), offset });
            }
        };
        let end = if is_last { text.len() } else { piece_end(text, CHUNK_BYTES.min(text.len() - 1)) };
        let chunk = Chunk { text: text[..end].to_string(), line: self.line };
        self.line += chunk.text.bytes().filter(|&byte| byte == b'\n').count() as u64;
        self.offset += end as u64;
        self.buffer.drain(..end);
        Ok(Some(chunk))
    }

    /// Up to `count` chunks; none at the end.
    ///
    /// # Errors
    /// As [`next_chunk`](Self::next_chunk).
    pub(crate) fn next_batch(&mut self, count: usize) -> Result<Vec<Chunk>> {
        let mut chunks = Vec::new();
        while chunks.len() < count.max(1) {
            match self.next_chunk()? {
                Some(chunk) => chunks.push(chunk),
                None => break,
            }
        }
        Ok(chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn chunks(bytes: &[u8]) -> Vec<Chunk> {
        let file = file_with(bytes);
        TextReader::open(file.path()).unwrap().next_batch(usize::MAX).unwrap()
    }

    #[test]
    fn pieces_end_after_a_line_between_words_where_there_is_one() {
        assert_eq!(piece_end("ab\ncd\n\nef", 9), 9);
        assert_eq!(piece_end("ab\ncd\n\nef", 8), 3);
        assert_eq!(piece_end("ab\n\n  cd", 6), 4);
        assert_eq!(piece_end("abcdef", 4), 4);
        assert_eq!(piece_end("aé漢🦀", 4), 3);
        assert_eq!(piece_end("🦀🦀", 1), 4);
    }

    #[test]
    fn chunks_make_up_the_file_and_know_their_lines() {
        let line = "It is a truth universally acknowledged — 漢字\n";
        let text = line.repeat(20_000);
        let chunks = chunks(text.as_bytes());
        assert!(chunks.len() >= 3);
        let mut lines = 1;
        for chunk in &chunks {
            assert!(chunk.text.len() <= CHUNK_BYTES && chunk.text.ends_with('\n'));
            assert_eq!(chunk.line, lines);
            lines += chunk.text.lines().count() as u64;
        }
        assert_eq!(chunks.into_iter().map(|chunk| chunk.text).collect::<String>(), text);
    }

    #[test]
    fn a_line_longer_than_a_chunk_is_cut_between_characters() {
        let text = "漢".repeat(CHUNK_BYTES);
        assert_eq!(chunks(text.as_bytes()).into_iter().map(|chunk| chunk.text).collect::<String>(), text);
        assert!(chunks(b"").is_empty());
    }

    #[test]
    fn the_byte_that_is_not_utf8_is_named_even_beyond_the_first_chunk() {
        for (before, bytes) in [(3, &b"\xFF"[..]), (CHUNK_BYTES + 100, b"\xC3("), (CHUNK_BYTES, b"\xE6\xBC")] {
            let mut data = b"a\n".repeat(before.div_ceil(2));
            data.truncate(before);
            data.extend_from_slice(bytes);
            let file = file_with(&data);
            let error = TextReader::open(file.path()).unwrap().next_batch(usize::MAX).unwrap_err();
            assert!(matches!(error, Error::InvalidUtf8 { offset, .. } if offset == before as u64), "{error}");
        }
    }

    #[test]
    fn a_limit_cuts_the_file_in_two_at_a_character_or_a_line() {
        let file = file_with("ab漢c\nde\n".as_bytes());
        for (offset, whole_lines, expected) in [
            (0, true, 0),
            (2, false, 2),
            (3, false, 5),
            (4, false, 5),
            (1, true, 7),
            (7, true, 7),
            (8, true, 10),
            (99, true, 99),
        ] {
            let mut reader = TextReader::open(file.path()).unwrap();
            assert_eq!(reader.cut_at(offset, whole_lines).unwrap(), expected, "{offset}, {whole_lines}");
        }
        let mut reader = TextReader::open(file.path()).unwrap();
        reader.set_limit(5);
        assert_eq!(reader.next_chunk().unwrap().unwrap().text, "ab漢");
        assert!(reader.next_chunk().unwrap().is_none());
        reader.set_limit(u64::MAX);
        assert_eq!(reader.next_chunk().unwrap().unwrap().text, "c\nde\n");
    }
}
