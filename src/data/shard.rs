//! Files of token ids, read by memory map and written atomically.
//!
//! The layout is llm.c's: 256 little-endian `i32` of header (magic 20240520, version, number of tokens, zeros), then
//! the tokens: `u16` in version 1, `u32` in version 2, which is ours, for vocabularies beyond 65536. nanoGPT's files
//! are bare `u16` without a header; nothing in them says so, therefore the caller must ([`Format::RawU16`]).
//!
//! Every length is checked against the file's when it is opened, so that reading tokens needs no checks. A file that
//! is cut short *while* it is mapped makes the operating system stop the process; no program can check that away.

use super::error::{Error, Result};
use super::hash::Hash;
use crate::util::atomic_file::{AtomicFile, WriteError};
use memmap2::Mmap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// First number of every shard with a header.
pub const MAGIC: i32 = 20240520;

/// Bytes of the header: 256 numbers of four bytes.
pub const HEADER_BYTES: usize = 1024;

/// How a file of tokens is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// llm.c's `.bin` with a header, of either version.
    #[default]
    Shard,
    /// nanoGPT's `.bin`: `u16` tokens and nothing else.
    RawU16,
}

/// How a token is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// Two bytes: vocabularies up to 65536.
    U16,
    /// Four bytes.
    U32,
}

impl TokenType {
    /// The smallest type that holds every id of a vocabulary.
    pub fn for_vocabulary(vocabulary: usize) -> Self {
        if vocabulary <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes of one token.
    pub fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// `u16` or `u32`.
    pub fn name(self) -> &'static str {
        match self {
            Self::U16 => "u16",
            Self::U32 => "u32",
        }
    }

    fn version(self) -> i32 {
        match self {
            Self::U16 => 1,
            Self::U32 => 2,
        }
    }
}

/// Tokens of one shard as they lie in memory, little-endian.
#[derive(Clone, Copy, Debug)]
pub enum TokenSlice<'a> {
    /// Two bytes each.
    U16(&'a [u16]),
    /// Four bytes each.
    U32(&'a [u32]),
}

impl<'a> TokenSlice<'a> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Self::U16(tokens) => tokens.len(),
            Self::U32(tokens) => tokens.len(),
        }
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of a range.
    ///
    /// # Panics
    /// Where the range is not within the tokens.
    pub fn range(self, range: std::ops::Range<usize>) -> TokenSlice<'a> {
        match self {
            Self::U16(tokens) => Self::U16(&tokens[range]),
            Self::U32(tokens) => Self::U32(&tokens[range]),
        }
    }

    /// Writes the tokens to `ids`, which has their number.
    pub fn copy_to(self, ids: &mut [i32]) {
        match self {
            Self::U16(tokens) => {
                ids.iter_mut().zip(tokens).for_each(|(id, token)| *id = i32::from(u16::from_le(*token)));
            }
            Self::U32(tokens) => ids.iter_mut().zip(tokens).for_each(|(id, token)| *id = u32::from_le(*token) as i32),
        }
    }

    /// Calls `f` with each token in order.
    pub fn for_each(self, mut f: impl FnMut(u32)) {
        match self {
            Self::U16(tokens) => tokens.iter().for_each(|token| f(u32::from(u16::from_le(*token)))),
            Self::U32(tokens) => tokens.iter().for_each(|token| f(u32::from_le(*token))),
        }
    }

    /// The largest token; None where there are none.
    pub fn largest(self) -> Option<u32> {
        match self {
            Self::U16(tokens) => tokens.iter().map(|token| u16::from_le(*token)).max().map(u32::from),
            Self::U32(tokens) => tokens.iter().map(|token| u32::from_le(*token)).max(),
        }
    }

    /// Index of the first token that is not below `vocabulary`.
    pub fn first_at_or_above(self, vocabulary: usize) -> Option<usize> {
        match self {
            Self::U16(tokens) => tokens.iter().position(|token| usize::from(u16::from_le(*token)) >= vocabulary),
            Self::U32(tokens) => tokens.iter().position(|token| u32::from_le(*token) as usize >= vocabulary),
        }
    }
}

enum Storage {
    Mapped { map: Mmap, offset: usize, token_type: TokenType },
    U16(Vec<u16>),
    U32(Vec<u32>),
}

/// A run of tokens: a mapped file, or tokens in memory.
pub struct Shard {
    path: Option<PathBuf>,
    storage: Storage,
}

impl Shard {
    /// Maps a file of tokens and checks its header and length.
    ///
    /// # Errors
    /// The file cannot be read, is empty or cut short, has an odd length or a foreign magic or version, or its header
    /// names another number of tokens than it holds.
    pub fn open(path: impl AsRef<Path>, format: Format) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::read(path))?;
        let metadata = file.metadata().map_err(Error::read(path))?;
        if metadata.is_dir() {
            return Err(Error::shard(path, "is a folder, not a file of tokens", "name the .bin files inside it"));
        }
        if metadata.len() == 0 {
            return Err(Error::shard(path, "the file is empty", "write it again with `engine-data pack`"));
        }
        // SAFETY: the map is read-only. Another process that changes the file meanwhile changes token values, which
        // are plain numbers and checked again wherever they index anything; one that cuts it short ends this process.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::read(path))?;
        let (offset, token_type) = match format {
            Format::Shard => (HEADER_BYTES, check_header(path, &map)?),
            Format::RawU16 if map.len() % 2 == 1 => {
                let what = format!("raw u16 tokens take two bytes each, but the file has {} bytes", map.len());
                return Err(Error::shard(path, what, "it is cut short or of another format; make it again"));
            }
            Format::RawU16 => (0, TokenType::U16),
        };
        Ok(Self { path: Some(path.to_path_buf()), storage: Storage::Mapped { map, offset, token_type } })
    }

    /// Tokens in memory, in two bytes each where they fit.
    pub fn from_tokens(tokens: Vec<u32>) -> Self {
        let fits = tokens.iter().max().is_none_or(|&token| token <= u32::from(u16::MAX));
        let storage = if fits {
            Storage::U16(tokens.into_iter().map(|token| (token as u16).to_le()).collect())
        } else {
            Storage::U32(tokens.into_iter().map(u32::to_le).collect())
        };
        Self { path: None, storage }
    }

    /// The tokens.
    pub fn tokens(&self) -> TokenSlice<'_> {
        match &self.storage {
            // The header has a multiple of four bytes and maps start at a page, so the casts are aligned; `open`
            // checked that the length is whole.
            Storage::Mapped { map, offset, token_type: TokenType::U16 } => {
                TokenSlice::U16(bytemuck::cast_slice(&map[*offset..]))
            }
            Storage::Mapped { map, offset, token_type: TokenType::U32 } => {
                TokenSlice::U32(bytemuck::cast_slice(&map[*offset..]))
            }
            Storage::U16(tokens) => TokenSlice::U16(tokens),
            Storage::U32(tokens) => TokenSlice::U32(tokens),
        }
    }

    /// How a token is stored.
    pub fn token_type(&self) -> TokenType {
        match self.tokens() {
            TokenSlice::U16(_) => TokenType::U16,
            TokenSlice::U32(_) => TokenType::U32,
        }
    }

    /// The file, or None for tokens in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What to call this shard in a message.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "tokens in memory".into(), |path| path.display().to_string())
    }

    /// Hash of all tokens, as [`ShardWriter::finish`] reports it for what it wrote.
    pub fn checksum(&self) -> String {
        let mut hash = Hash::new();
        self.tokens().for_each(|token| hash.add(u64::from(token)));
        hash.text()
    }
}

/// Checks a header against the file's length and returns how tokens are stored.
fn check_header(path: &Path, bytes: &[u8]) -> Result<TokenType> {
    const AGAIN: &str = "copy it again, or write it again with `engine-data pack`";
    let word = |index: usize| {
        bytes.get(index * 4..index * 4 + 4).map(|word| i32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    };
    let magic = word(0);
    if magic.is_some_and(|magic| magic != MAGIC) {
        let what = format!("not a token shard: it starts with {}, not {MAGIC}", magic.unwrap_or_default());
        return Err(Error::shard(path, what, "headerless u16 files as nanoGPT writes them need the raw-u16 format"));
    }
    if bytes.len() < HEADER_BYTES {
        let what = format!("cut short: {} bytes, but the header alone has {HEADER_BYTES}", bytes.len());
        return Err(Error::shard(path, what, AGAIN));
    }
    let token_type = match word(1).unwrap_or_default() {
        1 => TokenType::U16,
        2 => TokenType::U32,
        version => {
            let what = format!("shard version {version} is unknown (1 is u16 tokens, 2 is u32)");
            return Err(Error::shard(path, what, "write it again with `engine-data pack`"));
        }
    };
    let count = word(2).unwrap_or_default();
    let data = bytes.len() - HEADER_BYTES;
    let Ok(count) = usize::try_from(count) else {
        return Err(Error::shard(path, format!("the header names {count} tokens"), AGAIN));
    };
    let held = data / token_type.bytes();
    if !data.is_multiple_of(token_type.bytes()) || held != count {
        let state = if held < count { "cut short" } else { "length and header differ" };
        let what = format!(
            "{state}: the header names {count} {} tokens ({} bytes), but {data} bytes follow it",
            token_type.name(),
            count as u64 * token_type.bytes() as u64
        );
        return Err(Error::shard(path, what, AGAIN));
    }
    Ok(token_type)
}

/// Writes one shard; it appears under its name only when [`FinishedShard::commit`] is called.
pub struct ShardWriter {
    file: AtomicFile,
    token_type: TokenType,
    tokens: usize,
    hash: Hash,
}

/// A shard that is on the disk but not yet under its name.
pub struct FinishedShard {
    file: AtomicFile,
    /// Number of tokens.
    pub tokens: usize,
    /// Hash of all tokens: see [`Shard::checksum`].
    pub checksum: String,
}

impl ShardWriter {
    /// Starts a shard.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: impl AsRef<Path>, token_type: TokenType) -> Result<Self> {
        let mut writer = Self { file: AtomicFile::create(path)?, token_type, tokens: 0, hash: Hash::new() };
        writer.write(&[0; HEADER_BYTES])?;
        Ok(writer)
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// The disk fails, a token does not fit the shard's type, or the count would not fit the header.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        if self.tokens + tokens.len() > i32::MAX as usize {
            return Err(Error::Argument("a shard holds at most 2147483647 tokens; ask for smaller shards".into()));
        }
        let mut bytes = Vec::with_capacity(tokens.len() * self.token_type.bytes());
        match self.token_type {
            TokenType::U16 => {
                for &token in tokens {
                    let Ok(short) = u16::try_from(token) else {
                        let what = format!("token {token} does not fit u16");
                        return Err(Error::shard(self.file.path(), what, "use u32 tokens"));
                    };
                    bytes.extend_from_slice(&short.to_le_bytes());
                }
            }
            TokenType::U32 => tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes())),
        }
        self.hash.add_tokens(tokens.iter().copied());
        self.tokens += tokens.len();
        self.write(&bytes)
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Writes the header and brings everything to the disk.
    ///
    /// # Errors
    /// The disk fails.
    pub fn finish(mut self) -> Result<FinishedShard> {
        let mut header = [0u8; 12];
        header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&self.token_type.version().to_le_bytes());
        header[8..12].copy_from_slice(&(self.tokens as i32).to_le_bytes());
        let path = self.file.path().to_path_buf();
        self.file.seek(SeekFrom::Start(0)).map_err(|cause| WriteError { path, cause })?;
        self.write(&header)?;
        self.file.seal()?;
        Ok(FinishedShard { file: self.file, tokens: self.tokens, checksum: self.hash.text() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.file.write_all(bytes);
        result.map_err(|cause| WriteError { path: self.file.path().to_path_buf(), cause }.into())
    }
}

impl FinishedShard {
    /// Gives the shard its name.
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn commit(self) -> Result<()> {
        Ok(self.file.commit()?)
    }

    /// The name that the shard will have.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

/// Writes tokens as one whole shard.
///
/// # Errors
/// As [`ShardWriter`].
pub fn write_shard(path: impl AsRef<Path>, token_type: TokenType, tokens: &[u32]) -> Result<()> {
    let mut writer = ShardWriter::create(path, token_type)?;
    writer.push(tokens)?;
    writer.finish()?.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens_of(shard: &Shard) -> Vec<u32> {
        let mut all = Vec::new();
        shard.tokens().for_each(|token| all.push(token));
        all
    }

    /// The bytes of a shard as llm.c's Python tools write them with numpy, built here by hand.
    fn llm_c_bytes(magic: i32, version: i32, count: i32, data: &[u8]) -> Vec<u8> {
        let mut header = [0i32; 256];
        (header[0], header[1], header[2]) = (magic, version, count);
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn shards_of_both_types_come_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        for (token_type, tokens) in [
            (TokenType::U16, vec![0, 1, 65535, 7]),
            (TokenType::U32, vec![0, 65536, u32::MAX, 7]),
            (TokenType::U16, vec![]),
        ] {
            let path = folder.path().join("a.bin");
            write_shard(&path, token_type, &tokens).unwrap();
            let shard = Shard::open(&path, Format::Shard).unwrap();
            assert_eq!(tokens_of(&shard), tokens);
            assert_eq!(shard.token_type(), token_type);
            assert_eq!(shard.tokens().largest(), tokens.iter().copied().max());
            assert_eq!(shard.checksum(), Shard::from_tokens(tokens).checksum());
        }
    }

    #[test]
    fn a_shard_has_the_bytes_that_llm_c_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_shard(&path, TokenType::U16, &[50256, 464, 3290]).unwrap();
        let data = [0x50, 0xC4, 0xD0, 0x01, 0xDA, 0x0C];
        assert_eq!(std::fs::read(&path).unwrap(), llm_c_bytes(20240520, 1, 3, &data));
    }

    #[test]
    fn raw_u16_files_are_read_without_a_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.bin");
        std::fs::write(&path, [1, 0, 0, 1, 255, 255]).unwrap();
        assert_eq!(tokens_of(&Shard::open(&path, Format::RawU16).unwrap()), [1, 256, 65535]);
    }

    #[test]
    fn every_kind_of_damage_has_its_own_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.bin");
        let raw = Format::RawU16;
        let cases: [(&str, Format, Vec<u8>, &str); 9] = [
            ("empty", Format::Shard, vec![], "the file is empty"),
            ("three bytes", Format::Shard, vec![1, 2, 3], "cut short: 3 bytes"),
            ("magic", Format::Shard, llm_c_bytes(20240521, 1, 1, &[0; 2]), "starts with 20240521"),
            ("version", Format::Shard, llm_c_bytes(MAGIC, 7, 1, &[0; 2]), "shard version 7 is unknown"),
            ("short header", Format::Shard, llm_c_bytes(MAGIC, 1, 0, &[])[..1000].to_vec(), "cut short: 1000 bytes"),
            ("truncated", Format::Shard, llm_c_bytes(MAGIC, 1, 4, &[0; 6]), "cut short: the header names 4 u16"),
            ("odd", Format::Shard, llm_c_bytes(MAGIC, 1, 3, &[0; 7]), "length and header differ"),
            ("negative", Format::Shard, llm_c_bytes(MAGIC, 2, -1, &[0; 8]), "the header names -1 tokens"),
            ("odd raw", raw, vec![1, 2, 3], "take two bytes each, but the file has 3 bytes"),
        ];
        for (name, format, bytes, expected) in cases {
            std::fs::write(&path, bytes).unwrap();
            let message = Shard::open(&path, format).err().unwrap().to_string();
            assert!(message.contains(expected), "{name}: {message}");
            assert!(message.contains("bad.bin") && message.contains("; ") && !message.contains('\n'), "{message}");
        }
        let message = Shard::open(folder.path().join("none.bin"), raw).err().unwrap().to_string();
        assert!(message.contains("none.bin: no such file"), "{message}");
        assert!(Shard::open(folder.path(), Format::Shard).err().unwrap().to_string().contains("is a folder"));
    }

    #[test]
    fn a_token_too_large_for_its_shard_is_refused_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let message = write_shard(&path, TokenType::U16, &[65536]).err().unwrap().to_string();
        assert!(message.contains("token 65536 does not fit u16"), "{message}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
