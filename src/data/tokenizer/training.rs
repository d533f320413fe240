//! Training a byte-level BPE with the `tokenizers` crate, on text that is streamed in and checked on the way.

use super::super::Progress;
use super::super::error::{Error, Result};
use super::super::text::TextReader;
use super::Tokenizer;
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as HuggingFace};

const END_OF_TEXT: &str = "<|endoftext|>";

/// The 256 bytes and the end of text.
const SMALLEST_VOCABULARY: usize = 257;

pub(super) fn train_bpe<P: AsRef<Path>>(paths: &[P], vocabulary: usize, progress: Progress<'_>) -> Result<Tokenizer> {
    if vocabulary < SMALLEST_VOCABULARY || u32::try_from(vocabulary).is_err() {
        let what = format!(
            "a byte-level vocabulary has at least {SMALLEST_VOCABULARY} ids (256 bytes and {END_OF_TEXT}), not {vocabulary}"
        );
        return Err(Error::Argument(what));
    }
    let mut readers = paths.iter().map(TextReader::open).collect::<Result<Vec<_>>>()?;
    let total: u64 = readers.iter().map(TextReader::remaining).sum();
    let byte_level = ByteLevel::default().add_prefix_space(false).trim_offsets(false);
    let mut tokenizer = HuggingFace::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_post_processor(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocabulary - 1)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();

    // The trainer takes an iterator that cannot fail: a reading error ends it and is kept aside.
    let (mut failure, mut done, mut reader) = (None, 0, 0);
    let chunks = std::iter::from_fn(|| {
        while reader < readers.len() {
            match readers[reader].next_chunk() {
                Ok(Some(chunk)) => {
                    done += chunk.text.len() as u64;
                    progress(done, total);
                    return Some(chunk.text);
                }
                Ok(None) => reader += 1,
                Err(error) => {
                    failure = Some(error);
                    return None;
                }
            }
        }
        None
    });
    let trained = tokenizer.train(&mut trainer, chunks).map(|_| ());
    if let Some(error) = failure {
        return Err(error);
    }
    trained.map_err(|error| Error::tokenizer("training", error))?;
    if done == 0 {
        return Err(Error::tokenizer("training", "the text is empty; give it text to learn from"));
    }
    tokenizer
        .add_special_tokens([AddedToken::from(END_OF_TEXT, true)])
        .map_err(|error| Error::tokenizer("training", error))?;
    let json = tokenizer.to_string(true).map_err(|error| Error::tokenizer("training", error))?;
    Tokenizer::from_json(json, "trained tokenizer")
}
