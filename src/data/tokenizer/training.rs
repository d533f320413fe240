//! Training a byte-level BPE with the `tokenizers` crate, on text that is streamed in and checked on the way.

use super::super::Progress;
use super::super::error::{Error, Result};
use super::Tokenizer;
use super::byte_level::{for_each_run, spell, word_length};
use super::training_text::TrainingText;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer as HuggingFace, Trainer,
};

const END_OF_TEXT: &str = "<|endoftext|>";

/// The 256 bytes and the end of text.
const SMALLEST_VOCABULARY: usize = 257;

pub(super) fn train_bpe(mut texts: TrainingText, vocabulary: usize, progress: Progress<'_>) -> Result<Tokenizer> {
    if vocabulary < SMALLEST_VOCABULARY || u32::try_from(vocabulary).is_err() {
        let what = format!(
            "a byte-level vocabulary has at least {SMALLEST_VOCABULARY} ids (256 bytes and {END_OF_TEXT}), not {vocabulary}"
        );
        return Err(Error::Argument(what));
    }
    let byte_level = ByteLevel::default().add_prefix_space(false).trim_offsets(false);
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocabulary - 1)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();

    // The trainer takes an iterator that cannot fail: a reading error ends it and is kept aside.
    let (mut failure, mut is_empty) = (None, true);
    let chunks = std::iter::from_fn(|| {
        let next = texts.next_text().unwrap_or_else(|error| {
            failure = Some(error);
            None
        });
        let (done, total) = texts.progress();
        progress(done, total);
        is_empty &= next.is_none();
        next
    });
    let fed = trainer.feed(chunks, |text| words(text, byte_level));
    if let Some(error) = failure {
        return Err(error);
    }
    fed.map_err(|error| Error::tokenizer("training", error))?;
    if is_empty {
        return Err(Error::tokenizer("training", "the text is empty; give it text to learn from"));
    }
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(|error| Error::tokenizer("training", error))?;
    let mut tokenizer = HuggingFace::new(model);
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_post_processor(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    tokenizer
        .add_special_tokens([AddedToken::from(END_OF_TEXT, true)])
        .map_err(|error| Error::tokenizer("training", error))?;
    let json = tokenizer.to_string(true).map_err(|error| Error::tokenizer("training", error))?;
    Tokenizer::from_json(json, "trained tokenizer")
}

/// The words of a text, spelt in the characters that stand for bytes: natively where it is ASCII, else by the crate.
fn words(text: &str, byte_level: ByteLevel) -> tokenizers::Result<Vec<String>> {
    let mut words = Vec::with_capacity(text.len() / 4);
    for_each_run(text, |run, is_ascii| -> tokenizers::Result<()> {
        let mut rest = run.as_bytes();
        while is_ascii && !rest.is_empty() {
            let (word, later) = rest.split_at(word_length(rest));
            words.push(spell(word));
            rest = later;
        }
        if !is_ascii {
            let mut split = PreTokenizedString::from(run);
            byte_level.pre_tokenize(&mut split)?;
            let pieces = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
            words.extend(pieces.into_iter().map(|(word, _, _)| word.to_string()));
        }
        Ok(())
    })?;
    Ok(words)
}
