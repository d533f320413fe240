//! Text files -> shards: tokenised on all cores, written in order, in bounded memory.
//!
//! Files are read in chunks of a quarter of a megabyte; a batch of chunks is tokenised in parallel, and its tokens are written
//! in the order of the text. Chunks are cut by the text alone, so the shards are the same bytes for any number of
//! threads. Nothing appears under its final name before everything has been written: a run that fails or is killed
//! leaves the folder as it was.
//!
//! Where the tokenizer has an end-of-text token, one follows each document. The last fraction of *each* file is for
//! validation, so that both splits see every source.

use super::Progress;
use super::dataset::{Dataset, Format, Split, check_fraction, head_length};
use super::error::{Error, Result};
use super::manifest::{self, Manifest, ShardEntry, Source, SplitEntry};
use super::shard::{FinishedShard, ShardWriter, TokenType};
use super::text::{Chunk, TextReader};
use super::tokenizer::Tokenizer;
use crate::util::atomic_file::{WriteError, remove_abandoned, write_atomically};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Tokens of a shard where the caller does not say.
pub const DEFAULT_SHARD_TOKENS: usize = 100_000_000;

/// Chunks of a batch per thread: enough that threads which finish early find more to do.
const CHUNKS_PER_THREAD: usize = 16;

/// What a document is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Document {
    /// Each file.
    #[default]
    File,
    /// Each line that is not empty, without its line break.
    Line,
    /// Each run of lines between lines that are empty but for white space; these and the last line break are dropped.
    BlankLine,
}

/// How to pack.
#[derive(Clone, Debug)]
pub struct Options {
    /// The last fraction of each file that is for validation, in `0.0..1.0`.
    pub val_fraction: f64,
    /// Tokens of a shard; the last may have fewer.
    pub shard_tokens: usize,
    /// What a document is.
    pub document: Document,
    /// Replace a data set that the folder already holds.
    pub overwrite: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { val_fraction: 0.0, shard_tokens: DEFAULT_SHARD_TOKENS, document: Document::File, overwrite: false }
    }
}

/// Tokenises text files into `train_000000.bin`..., `val_000000.bin`..., `tokenizer.json` and `dataset.json` in the
/// folder `out`, which is created where it does not exist.
///
/// # Errors
/// An option is out of range; an input cannot be read, is not UTF-8, or holds what the tokenizer does not know; the
/// inputs hold no text; the folder already holds a data set or cannot be written.
pub fn pack<P: AsRef<Path>>(
    inputs: &[P],
    tokenizer: &Tokenizer,
    out: impl AsRef<Path>,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Manifest> {
    let out = out.as_ref();
    if inputs.is_empty() {
        return Err(Error::Argument("no text file given; name at least one".into()));
    }
    if options.shard_tokens == 0 || options.shard_tokens > i32::MAX as usize {
        let what = format!("{} tokens per shard is not in 1..=2147483647", options.shard_tokens);
        return Err(Error::Argument(what));
    }
    check_fraction(options.val_fraction)?;
    let old_files = prepare_folder(out, options.overwrite)?;

    let token_type = TokenType::for_vocabulary(tokenizer.vocabulary());
    let new_set = |split| ShardSet::new(out, split, token_type, options.shard_tokens);
    let (mut train, mut val) = (new_set(Split::Train), new_set(Split::Val));
    let sources =
        tokenise_files(inputs, tokenizer, options.val_fraction, options.document, progress, |split, tokens| {
            let set = if split == Split::Train { &mut train } else { &mut val };
            set.push(tokens)
        })?;
    let (train, val) = (train.finish()?, val.finish()?);
    if train.is_empty() {
        return Err(Error::Argument(
            "the inputs hold no text for training; give larger files or a smaller validation fraction".into(),
        ));
    }

    // Everything is on the disk; from here on there are only renames and two small files. A run that is killed among
    // them leaves the marker, and nobody takes a mixture of old and new shards, or some of them, for a data set.
    let marker = out.join(manifest::UNFINISHED_FILE);
    write_atomically(&marker, |_| Ok(()))?;
    for file in old_files {
        remove(&file)?;
    }
    let train = commit(train, out)?.ok_or_else(|| Error::Argument("the inputs hold no text".into()))?;
    let val = commit(val, out)?;
    tokenizer.save(out.join(manifest::TOKENIZER_FILE))?;
    let manifest = Manifest {
        token_type: token_type.name().into(),
        vocabulary: tokenizer.vocabulary(),
        tokenizer: tokenizer.name().into(),
        end_of_text: tokenizer.end_of_text(),
        document: options.document,
        val_fraction: options.val_fraction,
        train,
        val,
        sources,
    };
    manifest.save(out)?;
    remove(&marker)?;
    Ok(manifest)
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|cause| WriteError { path: path.to_path_buf(), cause }.into())
}

/// Creates the folder, refuses one that holds a data set unless it may be replaced, removes what killed runs left, and
/// returns the files that the new set replaces.
fn prepare_folder(out: &Path, overwrite: bool) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(out).map_err(|cause| WriteError { path: out.to_path_buf(), cause })?;
    remove_abandoned(out)?;
    let mut old_files = Vec::new();
    for entry in std::fs::read_dir(out).map_err(Error::read(out))? {
        let path = entry.map_err(Error::read(out))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.strip_suffix(".bin").filter(|stem| !stem.starts_with('.'));
        let number = stem.and_then(|stem| stem.strip_prefix("train_").or(stem.strip_prefix("val_")));
        let is_ours = number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        if stem.is_some() && !is_ours {
            // Whoever opens the folder would take it for a part of the new set.
            let remedy = "choose another output folder, or move it away";
            return Err(Error::shard(path, "lies in the output folder but is not ours to replace", remedy));
        }
        if is_ours || name == manifest::FILE {
            old_files.push(path);
        }
    }
    if !old_files.is_empty() && !overwrite {
        return Err(Error::OutputExists { path: out.to_path_buf() });
    }
    Ok(old_files)
}

/// Gives a split's shards their names and describes them.
fn commit(shards: Vec<FinishedShard>, out: &Path) -> Result<Option<SplitEntry>> {
    let (mut entries, mut paths) = (Vec::new(), Vec::new());
    for shard in shards {
        let file = shard.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        paths.push(out.join(&file));
        entries.push(ShardEntry { file, tokens: shard.tokens, checksum: shard.checksum.clone() });
        shard.commit()?;
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let dataset = Dataset::open_files(&paths, Format::Shard)?;
    Ok(Some(SplitEntry { tokens: dataset.len(), fingerprint: dataset.fingerprint(), shards: entries }))
}

/// The shards of one split while they are written.
struct ShardSet<'a> {
    folder: &'a Path,
    split: Split,
    token_type: TokenType,
    shard_tokens: usize,
    current: Option<ShardWriter>,
    finished: Vec<FinishedShard>,
}

impl<'a> ShardSet<'a> {
    fn new(folder: &'a Path, split: Split, token_type: TokenType, shard_tokens: usize) -> Self {
        Self { folder, split, token_type, shard_tokens, current: None, finished: Vec::new() }
    }

    fn push(&mut self, mut tokens: &[u32]) -> Result<()> {
        while !tokens.is_empty() {
            let mut writer = match self.current.take() {
                Some(writer) => writer,
                None => {
                    let name = format!("{}_{:06}.bin", self.split.name(), self.finished.len());
                    ShardWriter::create(self.folder.join(name), self.token_type)?
                }
            };
            let (now, later) = tokens.split_at(tokens.len().min(self.shard_tokens - writer.len()));
            writer.push(now)?;
            tokens = later;
            if writer.len() == self.shard_tokens {
                self.finished.push(writer.finish()?);
            } else {
                self.current = Some(writer);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<FinishedShard>> {
        if let Some(writer) = self.current.take() {
            self.finished.push(writer.finish()?);
        }
        Ok(self.finished)
    }
}

/// Tokenises text files in parallel and hands the tokens of each split to `sink` in the order of the text.
pub(crate) fn tokenise_files<P: AsRef<Path>>(
    inputs: &[P],
    tokenizer: &Tokenizer,
    val_fraction: f64,
    document: Document,
    progress: Progress<'_>,
    mut sink: impl FnMut(Split, &[u32]) -> Result<()>,
) -> Result<Vec<Source>> {
    check_fraction(val_fraction)?;
    // Sizes first: a missing file is found before hours of work, and progress needs the total.
    let mut sources = Vec::new();
    for input in inputs {
        let reader = TextReader::open(input)?;
        let name = reader.path().display().to_string();
        sources.push(Source { name, bytes: reader.size() });
    }
    let total = sources.iter().map(|source| source.bytes).sum();
    let mut done = 0;
    let end = tokenizer.end_of_text();
    for input in inputs {
        let mut reader = TextReader::open(input)?;
        let cut = if val_fraction == 0.0 {
            u64::MAX
        } else {
            let head = head_length(reader.size(), val_fraction);
            reader.cut_at(head, document != Document::File)?
        };
        for (split, limit) in [(Split::Train, cut), (Split::Val, u64::MAX)] {
            reader.set_limit(limit);
            // The document that the last chunk left open, by the line break held back there.
            let mut open = None;
            loop {
                let batch = reader.next_batch(CHUNKS_PER_THREAD * rayon::current_num_threads())?;
                if batch.is_empty() {
                    break;
                }
                let encoded: Vec<Result<Encoded>> =
                    batch.par_iter().map(|chunk| encode_chunk(chunk, tokenizer, document)).collect();
                for (chunk, encoded) in batch.iter().zip(encoded) {
                    let encoded = encoded.map_err(|error| error.within(reader.path(), chunk.line))?;
                    if encoded.starts_with_break || !encoded.tokens.is_empty() {
                        match open {
                            Some(_) if encoded.starts_with_break => sink(split, end.as_slice())?,
                            Some(line_break) => sink(split, &tokenizer.encode(line_break)?)?,
                            None => {}
                        }
                        sink(split, &encoded.tokens)?;
                        open = encoded.open;
                    }
                    done += chunk.text.len() as u64;
                    progress(done, total);
                }
            }
            if open.is_some() {
                sink(split, end.as_slice())?;
            }
        }
    }
    Ok(sources)
}

/// The tokens of a chunk, and how its documents join those of the chunks beside it.
#[derive(Default)]
struct Encoded {
    /// The document that the chunk before left open ends before these tokens.
    starts_with_break: bool,
    tokens: Vec<u32>,
    /// The last document may go on in the next chunk; then with this line break, which a document's end would drop.
    open: Option<&'static str>,
}

fn encode_chunk(chunk: &Chunk, tokenizer: &Tokenizer, document: Document) -> Result<Encoded> {
    // Without a token to part documents there are none: the text stays as it is.
    let Some(end) = tokenizer.end_of_text().filter(|_| document != Document::File) else {
        return Ok(Encoded { tokens: tokenizer.encode(&chunk.text)?, open: Some(""), ..Encoded::default() });
    };
    let mut encoded = Encoded::default();
    // Where the current document starts, if there is one.
    let mut start = None;
    let mut offset = 0;
    for line in chunk.text.split_inclusive('\n') {
        let next = offset + line.len();
        let is_blank = line.trim().is_empty();
        let is_whole = line.ends_with('\n');
        if is_blank && start.is_none() {
            encoded.starts_with_break |= is_whole && encoded.tokens.is_empty();
        } else if !is_blank {
            start = start.or(Some(offset));
        }
        let is_end = if document == Document::Line { is_whole } else { is_blank };
        if let Some(first) = start.filter(|_| is_end) {
            let text = &chunk.text[first..if is_blank { offset } else { next }];
            encoded.tokens.extend(tokenizer.encode(without_line_break(text))?);
            encoded.tokens.push(end);
            start = None;
        }
        offset = next;
    }
    if let Some(first) = start {
        let text = &chunk.text[first..];
        let kept = without_line_break(text);
        encoded.tokens.extend(tokenizer.encode(kept)?);
        encoded.open =
            Some(if text.ends_with("\r\n") { "\r\n" } else { &"\n"[..usize::from(kept.len() < text.len())] });
    }
    Ok(encoded)
}

fn without_line_break(text: &str) -> &str {
    text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte-level tokenizer with an end-of-text token and no merges.
    fn bytes_with_end() -> Tokenizer {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a").unwrap();
        Tokenizer::train_bpe(&[file.path()], 257, &|_, _| ()).unwrap()
    }

    fn tokenised(text: &str, tokenizer: &Tokenizer, document: Document, val_fraction: f64) -> (String, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let (mut train, mut val) = (Vec::new(), Vec::new());
        tokenise_files(&[file.path()], tokenizer, val_fraction, document, &|_, _| (), |split, tokens| {
            if split == Split::Train { &mut train } else { &mut val }.extend_from_slice(tokens);
            Ok(())
        })
        .unwrap();
        (tokenizer.decode(&train).replace("<|endoftext|>", "|"), tokenizer.decode(&val).replace("<|endoftext|>", "|"))
    }

    #[test]
    fn documents_end_with_end_of_text() {
        let tokenizer = bytes_with_end();
        let text = "\n\none\ntwo\n\n \t\nthree\r\n\nfour";
        for (document, expected) in [
            (Document::File, "\n\none\ntwo\n\n \t\nthree\r\n\nfour|"),
            (Document::Line, "one|two|three|four|"),
            (Document::BlankLine, "one\ntwo|three|four|"),
        ] {
            assert_eq!(tokenised(text, &tokenizer, document, 0.0).0, expected, "{document:?}");
        }
        assert_eq!(tokenised(text, &Tokenizer::byte(), Document::Line, 0.0).0, text);
    }

    #[test]
    fn documents_longer_than_a_chunk_end_once() {
        let tokenizer = bytes_with_end();
        let long = "x".repeat(2_500_000);
        for document in [Document::File, Document::Line, Document::BlankLine] {
            for tail in ["", "\n", "\n\n\n"] {
                let (train, _) = tokenised(&format!("{long}{tail}"), &tokenizer, document, 0.0);
                let kept = if document == Document::File { tail } else { "" };
                assert!(train == format!("{long}{kept}|"), "{document:?} {tail:?}: {} characters", train.len());
            }
        }
    }

    #[test]
    fn a_document_of_many_lines_keeps_its_line_breaks_across_chunks() {
        for line_break in ["\n", "\r\n"] {
            let text = format!("some words here{line_break}").repeat(150_000);
            let (train, _) = tokenised(&format!("{text}{line_break}end"), &bytes_with_end(), Document::BlankLine, 0.0);
            assert!(train == format!("{}|end|", text.trim_end()), "{} characters", train.len());
        }
    }

    #[test]
    fn a_blank_run_longer_than_a_chunk_parts_two_documents() {
        let text = format!("one\n{}two\n", "\n".repeat(2_500_000));
        let tokenizer = bytes_with_end();
        for document in [Document::Line, Document::BlankLine] {
            assert_eq!(tokenised(&text, &tokenizer, document, 0.0).0, "one|two|");
        }
    }

    #[test]
    fn the_last_fraction_of_each_file_is_for_validation() {
        let (train, val) = tokenised("0123456789", &Tokenizer::byte(), Document::File, 0.3);
        assert_eq!((train.as_str(), val.as_str()), ("0123456", "789"));
        let (train, val) = tokenised("one\ntwo\nthree\nfour\n", &bytes_with_end(), Document::Line, 0.3);
        assert_eq!((train.as_str(), val.as_str()), ("one|two|three|", "four|"));
    }
}
