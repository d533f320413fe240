//! A stream of tokens: several shards, or tokens in memory, read as one.
//!
//! Files are memory-mapped, so a data set may be larger than memory and opening it costs nothing. A [`Dataset`] is a
//! cheap handle: views of a part of the stream share its shards.

use super::error::{Error, Result};
use super::hash::Hash;
use super::manifest::{self, Manifest};
use super::pack::{Document, tokenise_files};
use super::shard::{Shard, TokenSlice, TokenType};
use super::tokenizer::Tokenizer;
use rayon::prelude::*;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use super::shard::Format;

/// Up to this many tokens the fingerprint covers every one of them.
const FULL_FINGERPRINT_TOKENS: usize = 1 << 22;

/// Beyond that it covers this many blocks, spread evenly, the first and the last included.
const FINGERPRINT_BLOCKS: usize = 1024;
const FINGERPRINT_BLOCK_TOKENS: usize = 2048;

/// Tokens per task of a parallel scan.
const SCAN_TOKENS: usize = 1 << 20;

/// Ids from here on are not counted by [`Dataset::counts`].
const LARGEST_COUNTED: usize = 1 << 22;

/// The part of a data set that a shard belongs to, told from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training: a word of the file's name is `train`.
    Train,
    /// For validation: a word of the file's name is `val`, `valid` or `validation`.
    Val,
}

impl Split {
    /// `train` or `val`: how shards of this split start when we name them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }

    /// The split that a file name tells, as in `train_000000.bin`, `val.bin` or `fineweb_train_000001.bin`.
    pub fn of(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_string_lossy().to_lowercase();
        stem.split(|c: char| !c.is_ascii_alphabetic()).find_map(|word| match word {
            "train" => Some(Self::Train),
            "val" | "valid" | "validation" => Some(Self::Val),
            _ => None,
        })
    }
}

/// A stream of tokens.
#[derive(Clone)]
pub struct Dataset {
    shards: Arc<[Shard]>,
    /// Where each shard starts in the whole stream; one more at the end.
    starts: Arc<[usize]>,
    /// The part of the stream that this view shows.
    range: Range<usize>,
}

impl Dataset {
    /// Opens files and folders as one stream. Of a folder, its `.bin` files in the order of their names, without
    /// those whose name says that they are for validation.
    ///
    /// # Errors
    /// A path cannot be read, a folder has no such file, or a shard is damaged.
    pub fn open<P: AsRef<Path>>(paths: &[P], format: Format) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            let path = path.as_ref();
            if path.is_dir() { files.extend(split_files(path)?.0) } else { files.push(path.to_path_buf()) }
        }
        Self::open_files(&files, format)
    }

    /// Opens a folder's shards by split; the second is None where no name says `val`. A single file is all training.
    ///
    /// # Errors
    /// As [`open`](Self::open); or a folder holds other numbers of tokens than its `dataset.json` says.
    pub fn open_splits(path: impl AsRef<Path>, format: Format) -> Result<(Self, Option<Self>)> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Ok((Self::open_files(&[path], format)?, None));
        }
        let (train, val) = split_files(path)?;
        let train = Self::open_files(&train, format)?;
        let val = if val.is_empty() { None } else { Some(Self::open_files(&val, format)?) };
        if let Some(manifest) = Manifest::load(path)? {
            let held = [train.len(), val.as_ref().map_or(0, Self::len)];
            let named = [manifest.train.tokens, manifest.val.as_ref().map_or(0, |val| val.tokens)];
            if held != named {
                let what =
                    format!("its shards hold {held:?} tokens (train, val), but {} names {named:?}", manifest::FILE);
                return Err(Error::shard(path, what, "see `engine-data verify`; copy the folder again, or pack again"));
            }
        }
        Ok((train, val))
    }

    /// Opens a list of files as one stream, in the order given.
    ///
    /// # Errors
    /// The list is empty, or a file cannot be opened.
    pub fn open_files<P: AsRef<Path>>(files: &[P], format: Format) -> Result<Self> {
        if files.is_empty() {
            return Err(Error::Argument("no file of tokens given; name at least one".into()));
        }
        Ok(Self::from_shards(files.iter().map(|file| Shard::open(file, format)).collect::<Result<_>>()?))
    }

    /// Tokens in memory.
    pub fn from_tokens(tokens: Vec<u32>) -> Self {
        Self::from_shards(vec![Shard::from_tokens(tokens)])
    }

    /// Shards as one stream.
    pub fn from_shards(shards: Vec<Shard>) -> Self {
        let mut starts = vec![0];
        for shard in &shards {
            starts.push(starts[starts.len() - 1] + shard.tokens().len());
        }
        let range = 0..starts[shards.len()];
        Self { shards: shards.into(), starts: starts.into(), range }
    }

    /// Tokenises text files on all cores into (train, val): the last `val_fraction` of each file is validation, exactly
    /// as [`pack`](super::pack::pack) would write it.
    ///
    /// # Errors
    /// A file cannot be read, is not UTF-8, or holds a character that the tokenizer does not know; the fraction is not
    /// in `0.0..1.0`.
    pub fn from_text_files<P: AsRef<Path>>(
        paths: &[P],
        tokenizer: &Tokenizer,
        val_fraction: f64,
    ) -> Result<(Self, Self)> {
        let (mut train, mut val) = (Vec::new(), Vec::new());
        tokenise_files(paths, tokenizer, val_fraction, Document::File, &|_, _| (), |split, tokens| {
            match split {
                Split::Train => train.extend_from_slice(tokens),
                Split::Val => val.extend_from_slice(tokens),
            }
            Ok(())
        })?;
        Ok((Self::from_tokens(train), Self::from_tokens(val)))
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The shards behind this stream.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// How tokens are stored: the widest of the shards' types.
    pub fn token_type(&self) -> TokenType {
        let is_wide = self.shards.iter().any(|shard| shard.token_type() == TokenType::U32);
        if is_wide { TokenType::U32 } else { TokenType::U16 }
    }

    /// Copies the tokens from position `start` on into `ids`, across shard boundaries. Tokens of 2^31 and more come out
    /// negative: [`check_vocabulary`](Self::check_vocabulary) first.
    ///
    /// # Panics
    /// Where the tokens asked for are not all there.
    pub fn read(&self, start: usize, ids: &mut [i32]) {
        let mut rest = ids;
        for part in self.parts(start..start + rest.len()) {
            let (now, later) = rest.split_at_mut(part.len());
            part.copy_to(now);
            rest = later;
        }
    }

    /// The largest token, found by a parallel scan; None where there are no tokens.
    pub fn largest_token(&self) -> Option<u32> {
        self.scan_tasks().filter_map(|range| self.parts(range).filter_map(TokenSlice::largest).max()).max()
    }

    /// Checks that every token is below `vocabulary`, by a parallel scan.
    ///
    /// # Errors
    /// Names the first token that is not, its shard and its position there.
    pub fn check_vocabulary(&self, vocabulary: usize) -> Result<()> {
        if self.token_type() == TokenType::U16 && vocabulary > usize::from(u16::MAX) {
            return Ok(());
        }
        let first = self
            .scan_tasks()
            .filter_map(|range| {
                let mut start = range.start;
                self.parts(range).find_map(|part| {
                    let found = part.first_at_or_above(vocabulary).map(|index| start + index);
                    start += part.len();
                    found
                })
            })
            .min();
        let Some(position) = first else { return Ok(()) };
        let (shard, offset) = self.locate(position);
        let mut token = 0;
        self.shards[shard].tokens().range(offset..offset + 1).for_each(|found| token = found);
        let place = self.shards[shard].name();
        Err(Error::TokenOutOfVocabulary { place, position: offset, token, vocabulary })
    }

    /// How often each token occurs, indexed by token, by a parallel scan. Ids beyond four million, which no vocabulary
    /// has, are not counted: a damaged file must not ask for a table of any size.
    pub fn counts(&self) -> Vec<u64> {
        let size = self.largest_token().map_or(0, |largest| (largest as usize + 1).min(LARGEST_COUNTED));
        // One table per thread, not per task: ids may be many and tasks more.
        self.scan_tasks()
            .fold(
                || vec![0u64; size],
                |mut counts, range| {
                    self.parts(range).for_each(|part| {
                        part.for_each(|token| {
                            if let Some(count) = counts.get_mut(token as usize) {
                                *count += 1;
                            }
                        })
                    });
                    counts
                },
            )
            .reduce(
                || vec![0u64; size],
                |mut counts, other| {
                    counts.iter_mut().zip(other).for_each(|(count, more)| *count += more);
                    counts
                },
            )
    }

    /// A short text that changes when the data does: number of tokens, shard sizes, and a hash of the content (all of
    /// it up to four million tokens, two million spread evenly beyond). A resumed run compares it.
    pub fn fingerprint(&self) -> String {
        let mut hash = Hash::new();
        for window in self.starts.windows(2) {
            hash.add(
                (window[1].clamp(self.range.start, self.range.end) - window[0].clamp(self.range.start, self.range.end))
                    as u64,
            );
        }
        let mut add = |range: Range<usize>| {
            self.parts(range).for_each(|part| part.for_each(|token| hash.add(u64::from(token))));
        };
        if self.len() <= FULL_FINGERPRINT_TOKENS {
            add(0..self.len());
        } else {
            let last = self.len() - FINGERPRINT_BLOCK_TOKENS;
            for block in 0..FINGERPRINT_BLOCKS {
                let start = (last as u128 * block as u128 / (FINGERPRINT_BLOCKS as u128 - 1)) as usize;
                add(start..start + FINGERPRINT_BLOCK_TOKENS);
            }
        }
        format!("{}-{}-{}", self.len(), self.shards.len(), hash.text())
    }

    /// Cuts off the last `fraction` of the stream: (the rest, the tail).
    ///
    /// # Errors
    /// The fraction is not in `0.0..1.0`.
    pub fn split_tail(&self, fraction: f64) -> Result<(Self, Self)> {
        check_fraction(fraction)?;
        let head = head_length(self.len() as u64, fraction) as usize;
        let middle = self.range.start + head;
        let view = |range| Self { shards: Arc::clone(&self.shards), starts: Arc::clone(&self.starts), range };
        Ok((view(self.range.start..middle), view(middle..self.range.end)))
    }

    /// Shard and offset of a position of this view.
    fn locate(&self, position: usize) -> (usize, usize) {
        let position = self.range.start + position;
        // The last start that is not beyond the position: empty shards are passed over.
        let shard = self.starts.partition_point(|&start| start <= position) - 1;
        (shard, position - self.starts[shard])
    }

    /// The pieces of shards that a range of this view is made of.
    fn parts(&self, range: Range<usize>) -> impl Iterator<Item = TokenSlice<'_>> {
        assert!(range.end <= self.len(), "tokens {range:?} of a data set of {}", self.len());
        let mut rest = range.len();
        let (mut shard, mut offset) = if rest == 0 { (0, 0) } else { self.locate(range.start) };
        std::iter::from_fn(move || {
            while rest > 0 {
                let tokens = self.shards[shard].tokens();
                let take = rest.min(tokens.len() - offset);
                let part = tokens.range(offset..offset + take);
                (shard, offset, rest) = (shard + 1, 0, rest - take);
                if take > 0 {
                    return Some(part);
                }
            }
            None
        })
    }

    fn scan_tasks(&self) -> impl ParallelIterator<Item = Range<usize>> + '_ {
        let length = self.len();
        (0..length.div_ceil(SCAN_TOKENS))
            .into_par_iter()
            .map(move |task| task * SCAN_TOKENS..length.min((task + 1) * SCAN_TOKENS))
    }
}

/// Fails unless a validation fraction is at least zero and below one.
pub(crate) fn check_fraction(fraction: f64) -> Result<()> {
    if (0.0..1.0).contains(&fraction) {
        return Ok(());
    }
    Err(Error::Argument(format!("validation fraction {fraction} is not in 0..1; pass for example 0.1")))
}

/// Length of what is left of `length` after its last `fraction` is cut off; rounds down, as nanoGPT's scripts do.
pub(crate) fn head_length(length: u64, fraction: f64) -> u64 {
    if fraction == 0.0 { length } else { ((length as f64 * (1.0 - fraction)) as u64).min(length) }
}

/// The `.bin` files of a folder, sorted by name: (for training, for validation).
pub(crate) fn split_files(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    if folder.join(manifest::UNFINISHED_FILE).exists() {
        return Err(Error::shard(folder, "a run of `engine-data pack` was killed here", "pack again with --overwrite"));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::read(folder))? {
        let path = entry.map_err(Error::read(folder))?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|extension| extension == "bin") {
            files.push(path);
        }
    }
    files.sort();
    let (val, train): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| Split::of(path) == Some(Split::Val));
    if train.is_empty() {
        let what = "the folder has no .bin file for training";
        return Err(Error::shard(folder, what, "make one with `engine-data pack --out`, or name another folder"));
    }
    Ok((train, val))
}

#[cfg(test)]
mod tests {
    use super::super::shard::write_shard;
    use super::*;

    fn read(dataset: &Dataset, range: Range<usize>) -> Vec<i32> {
        let mut ids = vec![-1; range.len()];
        dataset.read(range.start, &mut ids);
        ids
    }

    fn folder_with(files: &[(&str, &[u32])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, tokens) in files {
            write_shard(folder.path().join(name), TokenType::U16, tokens).unwrap();
        }
        folder
    }

    #[test]
    fn several_shards_read_as_one_stream() {
        let shards = [vec![0, 1, 2], vec![], vec![3], vec![4, 70000, 6]];
        let dataset = Dataset::from_shards(shards.into_iter().map(Shard::from_tokens).collect());
        let all = [0, 1, 2, 3, 4, 70000, 6];
        assert_eq!(dataset.len(), 7);
        for start in 0..=7 {
            for end in start..=7 {
                assert_eq!(read(&dataset, start..end), all[start..end], "{start}..{end}");
            }
        }
        assert_eq!(dataset.largest_token(), Some(70000));
        assert_eq!(dataset.counts()[70000], 1);
    }

    #[test]
    fn a_folder_is_opened_by_split_and_in_the_order_of_names() {
        let folder =
            folder_with(&[("train_000001.bin", &[3]), ("train_000000.bin", &[1, 2]), ("val_000000.bin", &[9])]);
        std::fs::write(folder.path().join(".train_000002.bin.partial"), b"half").unwrap();
        let (train, val) = Dataset::open_splits(folder.path(), Format::Shard).unwrap();
        assert_eq!(read(&train, 0..3), [1, 2, 3]);
        assert_eq!(read(&val.unwrap(), 0..1), [9]);
        assert_eq!(Dataset::open(&[folder.path()], Format::Shard).unwrap().len(), 3);
        let file = folder.path().join("val_000000.bin");
        assert_eq!(Dataset::open(&[file], Format::Shard).unwrap().len(), 1);
    }

    #[test]
    fn names_of_other_tools_tell_their_split() {
        for (name, split) in [
            ("fineweb_train_000001.bin", Some(Split::Train)),
            ("TinyStories_val.bin", Some(Split::Val)),
            ("validation-00.bin", Some(Split::Val)),
            ("trainer.bin", None),
            ("data.bin", None),
        ] {
            assert_eq!(Split::of(Path::new(name)), split, "{name}");
        }
    }

    #[test]
    fn a_folder_without_shards_is_an_error_that_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let message = Dataset::open(&[folder.path()], Format::Shard).err().unwrap().to_string();
        assert!(message.contains("no .bin file for training"), "{message}");
    }

    #[test]
    fn a_token_beyond_the_vocabulary_is_named_with_its_shard_and_position() {
        let folder = folder_with(&[("train_0.bin", &[1, 2]), ("train_1.bin", &[3, 64, 65, 99])]);
        let dataset = Dataset::open(&[folder.path()], Format::Shard).unwrap();
        dataset.check_vocabulary(100).unwrap();
        let message = dataset.check_vocabulary(65).unwrap_err().to_string();
        assert!(message.contains("train_1.bin: token 65 at position 2 is not below the vocabulary of 65"), "{message}");
    }

    #[test]
    fn a_vocabulary_check_finds_the_first_of_many_over_several_scan_tasks() {
        let mut tokens = vec![1u32; 3 * SCAN_TOKENS + 5];
        for position in [SCAN_TOKENS + 3, 2 * SCAN_TOKENS, 3 * SCAN_TOKENS + 4] {
            tokens[position] = 7;
        }
        let dataset = Dataset::from_tokens(tokens);
        let error = dataset.check_vocabulary(7).unwrap_err();
        assert!(matches!(error, Error::TokenOutOfVocabulary { position, token: 7, .. } if position == SCAN_TOKENS + 3));
        assert_eq!(dataset.counts(), [0, 3 * SCAN_TOKENS as u64 + 2, 0, 0, 0, 0, 0, 3]);
    }

    #[test]
    fn the_fingerprint_sees_content_length_and_shards_but_not_the_width() {
        let of = |shards: &[&[u32]]| {
            Dataset::from_shards(shards.iter().map(|tokens| Shard::from_tokens(tokens.to_vec())).collect())
                .fingerprint()
        };
        let base = of(&[&[1, 2, 3, 4]]);
        assert_eq!(base, of(&[&[1, 2, 3, 4]]));
        for other in [of(&[&[1, 2, 3, 5]]), of(&[&[1, 2], &[3, 4]]), of(&[&[1, 2, 3]]), of(&[&[2, 1, 3, 4]])] {
            assert_ne!(base, other);
        }
        let folder = tempfile::tempdir().unwrap();
        write_shard(folder.path().join("wide.bin"), TokenType::U32, &[1, 2, 3, 4]).unwrap();
        assert_eq!(base, Dataset::open(&[folder.path()], Format::Shard).unwrap().fingerprint());
    }

    #[test]
    fn the_fingerprint_of_a_large_set_sees_its_ends_and_length() {
        let mut tokens = vec![5u32; FULL_FINGERPRINT_TOKENS + 999];
        let base = Dataset::from_tokens(tokens.clone()).fingerprint();
        let last = tokens.len() - 1;
        tokens[last] = 6;
        assert_ne!(base, Dataset::from_tokens(tokens.clone()).fingerprint());
        tokens.pop();
        assert_ne!(base, Dataset::from_tokens(tokens).fingerprint());
    }

    #[test]
    fn the_tail_is_cut_where_nanogpt_cuts_it() {
        let dataset = Dataset::from_tokens((0..100u32).collect());
        let (train, val) = dataset.split_tail(0.1).unwrap();
        assert_eq!((train.len(), val.len()), (90, 10));
        assert_eq!(read(&val, 0..10), (90..100).collect::<Vec<i32>>());
        assert_eq!(val.largest_token(), Some(99));
        assert_eq!(train.largest_token(), Some(89));
        assert_ne!(train.fingerprint(), dataset.fingerprint());
        // tinyshakespeare: int(1115394 * 0.9)
        assert_eq!(head_length(1_115_394, 0.1), 1_003_854);
        assert!(dataset.split_tail(1.0).is_err() && dataset.split_tail(f64::NAN).is_err());
    }
}
