//! Training tokenizers for encoders: WordPiece, byte-level BPE and unigram, with `[PAD] [UNK] [CLS] [SEP] [MASK]` as the
//! first five ids and BERT's frame around texts, so that the file works in the Hugging Face libraries as it is.
//!
//! The trainers are the crate's, but it keeps words in hash maps whose order changes from run to run. So words are counted
//! here and sorted, and WordPiece is trained as BPE over letters that know whether they begin a word (`a` and `##a`): the
//! crate numbers such letters as they come, here each gets a code point of its own in advance. A text then gives the same
//! WordPiece or BPE every time. Unigram (Kudo 2018) is the exception: its seed pieces come out of the crate's hash maps, and
//! two runs may differ in some pieces; keep the file.

use super::super::Progress;
use super::super::error::{Error, Result};
use super::Tokenizer;
use super::training_text::TrainingText;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NFKC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{
    AddedToken, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as HuggingFace, Trainer,
};

/// The first ids.
pub const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// What continues a word in WordPiece.
const CONTINUES: &str = "##";

/// Longer words are unknown: BERT's bound.
const LONGEST_WORD: usize = 100;

/// A character of a script without spaces.
const CHINESE: &str = "[\\p{Han}]";

/// Code points for letters: those for private use of the planes 15 and 16, which texts have no reason to hold.
const LETTERS: std::ops::Range<u32> = 0xF0000..0x10FFFE;

/// How a vocabulary cuts words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The longest pieces of a word from its start, as BERT.
    WordPiece,
    /// Merges of bytes, as GPT-2.
    Bpe,
    /// The most likely pieces, as T5 and ALBERT.
    Unigram,
}

/// What Chinese text is cut into before the vocabulary cuts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chinese {
    /// Characters, as BERT: each is a word of its own.
    #[default]
    Characters,
    /// Nothing: the vocabulary learns pieces of several characters.
    Subword,
}

/// How to train a tokenizer for an encoder.
#[derive(Clone, Copy, Debug)]
pub struct EncoderTraining {
    /// How words are cut.
    pub model: Model,
    /// Number of ids, special ones included; a text with few distinct words may give fewer.
    pub vocabulary: usize,
    /// All text becomes lower-case.
    pub lower_case: bool,
    /// What becomes of Chinese text.
    pub chinese: Chinese,
}

pub(super) fn train(text: TrainingText, training: &EncoderTraining, progress: Progress<'_>) -> Result<Tokenizer> {
    let failed = |error: tokenizers::Error| Error::tokenizer("training", error);
    if training.vocabulary <= SPECIAL.len() || u32::try_from(training.vocabulary).is_err() {
        let what = format!("a vocabulary of {} ids is not above {}", training.vocabulary, SPECIAL.len());
        return Err(Error::Argument(what));
    }
    let (normalizer, pre_tokenizer) = pipeline(training).map_err(failed)?;
    let counts = count_words(text, &normalizer, &pre_tokenizer, progress)?;
    let size = training.vocabulary - SPECIAL.len();
    let model = match training.model {
        Model::WordPiece => ModelWrapper::WordPiece(word_piece(&counts, size)?),
        Model::Bpe => ModelWrapper::BPE(bpe(&counts, size)?),
        Model::Unigram => ModelWrapper::Unigram(unigram(counts, size)?),
    };
    let mut tokenizer = HuggingFace::new(model);
    tokenizer.with_normalizer(Some(normalizer)).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    match training.model {
        Model::WordPiece => {
            tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::new(CONTINUES.into(), true)))
        }
        Model::Bpe => tokenizer.with_decoder(Some(ByteLevel::default())),
        Model::Unigram => tokenizer.with_decoder(Some(Metaspace::default())),
    };
    tokenizer.add_special_tokens(SPECIAL.map(|token| AddedToken::from(token, true))).map_err(failed)?;
    tokenizer.with_post_processor(Some(BertProcessing::new(("[SEP]".into(), 3), ("[CLS]".into(), 2))));
    Tokenizer::from_json(tokenizer.to_string(true).map_err(failed)?, "trained tokenizer")
}

/// What happens to a text before the vocabulary cuts its words.
fn pipeline(training: &EncoderTraining) -> tokenizers::Result<(NormalizerWrapper, PreTokenizerWrapper)> {
    let by_character = training.chinese == Chinese::Characters;
    let characters = || Split::new(SplitPattern::Regex(CHINESE.into()), SplitDelimiterBehavior::Isolated, false);
    let in_order = |last: PreTokenizerWrapper, split_first: bool| -> tokenizers::Result<PreTokenizerWrapper> {
        if !by_character {
            return Ok(last);
        }
        let split: PreTokenizerWrapper = characters()?.into();
        let both = if split_first { vec![split, last] } else { vec![last, split] };
        Ok(PreTokenizers::new(both).into())
    };
    Ok(match training.model {
        Model::WordPiece => {
            (BertNormalizer::new(true, by_character, None, training.lower_case).into(), BertPreTokenizer.into())
        }
        Model::Bpe => {
            let normalizers = if training.lower_case { vec![Lowercase.into()] } else { vec![] };
            let byte_level = ByteLevel::default().add_prefix_space(false).trim_offsets(true);
            (Normalizers::new(normalizers).into(), in_order(byte_level.into(), true)?)
        }
        Model::Unigram => {
            let mut normalizers: Vec<NormalizerWrapper> = vec![NFKC.into()];
            normalizers.extend(training.lower_case.then(|| Lowercase.into()));
            let spaces = Metaspace::new('▁', PrependScheme::Always, true);
            (Normalizers::new(normalizers).into(), in_order(spaces.into(), false)?)
        }
    })
}

/// How often each word occurs, sorted by word.
fn count_words(
    mut text: TrainingText,
    normalizer: &NormalizerWrapper,
    pre_tokenizer: &PreTokenizerWrapper,
    progress: Progress<'_>,
) -> Result<BTreeMap<String, u64>> {
    let words = |text: &String| -> tokenizers::Result<Vec<String>> {
        let mut normalized = NormalizedString::from(text.as_str());
        normalizer.normalize(&mut normalized)?;
        let mut split = PreTokenizedString::from(normalized);
        pre_tokenizer.pre_tokenize(&mut split)?;
        let pieces = split.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Ok(pieces.into_iter().filter(|(word, _, _)| !word.is_empty()).map(|(word, _, _)| word.to_string()).collect())
    };
    let mut counts: HashMap<String, u64> = HashMap::new();
    loop {
        let batch = text.next_batch()?;
        if batch.is_empty() {
            break;
        }
        let found: Vec<tokenizers::Result<Vec<String>>> = batch.par_iter().map(words).collect();
        for words in found {
            for word in words.map_err(|error| Error::tokenizer("training", error))? {
                *counts.entry(word).or_default() += 1;
            }
        }
        let (done, total) = text.progress();
        progress(done, total);
    }
    if counts.is_empty() {
        return Err(Error::tokenizer("training", "the text has no words; give it text to learn from"));
    }
    Ok(counts.into_iter().collect())
}

/// Merges learned from counted words, which are spelt by `spell`.
fn merges(
    counts: &BTreeMap<String, u64>,
    trainer: &mut BpeTrainer,
    spell: impl Fn(&str) -> String + Sync,
) -> Result<BPE> {
    let failed = |error: tokenizers::Error| Error::tokenizer("training", error);
    let spelt = |word: &str| {
        let count = counts.get(word).copied().unwrap_or(0) as usize;
        Ok(vec![spell(word); count])
    };
    trainer.feed(counts.keys(), spelt).map_err(failed)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(failed)?;
    Ok(model)
}

fn bpe(counts: &BTreeMap<String, u64>, size: usize) -> Result<BPE> {
    if size < 256 {
        let what = format!("a byte-level vocabulary has at least {} ids", 256 + SPECIAL.len());
        return Err(Error::Argument(what));
    }
    let alphabet = ByteLevel::alphabet().into_iter().collect();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(size + SPECIAL.len())
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .initial_alphabet(alphabet)
        .build();
    merges(counts, &mut trainer, str::to_string)
}

fn word_piece(counts: &BTreeMap<String, u64>, size: usize) -> Result<WordPiece> {
    let mut letters: BTreeSet<(bool, char)> = BTreeSet::new();
    for word in counts.keys() {
        letters.extend(word.chars().enumerate().map(|(index, character)| (index > 0, character)));
    }
    // Each character may also stand inside a word that has not been seen.
    if letters.len() > size || letters.len() > LETTERS.len() {
        return Err(too_small(letters.len()));
    }
    let letters: Vec<(bool, char)> = letters.into_iter().collect();
    let codes: HashMap<(bool, char), char> = letters.iter().copied().zip(LETTERS.filter_map(char::from_u32)).collect();
    let spell = |word: &str| -> String {
        word.chars().enumerate().filter_map(|(index, character)| codes.get(&(index > 0, character))).collect()
    };
    let mut trainer = BpeTrainer::builder().show_progress(false).vocab_size(size).build();
    let model = merges(counts, &mut trainer, spell)?;
    let mut pieces: Vec<(u32, String)> = model.get_vocab().into_iter().map(|(piece, id)| (id, piece)).collect();
    pieces.sort_unstable();
    let letter = |code: char| letters[(u32::from(code) - LETTERS.start) as usize];
    let plain = |piece: &String| -> String {
        let is_inside = piece.chars().next().is_some_and(|code| letter(code).0);
        let prefix = if is_inside { CONTINUES } else { "" };
        prefix.chars().chain(piece.chars().map(|code| letter(code).1)).collect()
    };
    let mut names: Vec<String> = SPECIAL.map(String::from).to_vec();
    let mut seen: BTreeSet<String> = names.iter().cloned().collect();
    // A text with "#" in it may spell a piece in two ways; one id is enough.
    names.extend(pieces.iter().map(|(_, piece)| plain(piece)).filter(|name| seen.insert(name.clone())));
    let vocabulary: serde_json::Map<String, Value> = names.into_iter().zip((0..).map(|id: u32| json!(id))).collect();
    let model = json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": CONTINUES,
        "max_input_chars_per_word": LONGEST_WORD, "vocab": vocabulary,
    });
    // Only from text: the crate's reader borrows the name of the model.
    serde_json::from_str(&model.to_string()).map_err(|error| Error::tokenizer("training", error))
}

fn unigram(counts: BTreeMap<String, u64>, size: usize) -> Result<Unigram> {
    let failed = |error: String| Error::tokenizer("training", error);
    let characters: BTreeSet<char> = counts.keys().flat_map(|word| word.chars()).collect();
    // The crate's trainer does not stop at the size where the characters alone exceed it.
    if characters.len() > size {
        return Err(too_small(characters.len()));
    }
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size((size + SPECIAL.len()) as u32)
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .unk_token(Some("[UNK]".into()))
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let sentences: Vec<(String, u32)> =
        counts.into_iter().map(|(word, count)| (word, u32::try_from(count).unwrap_or(u32::MAX))).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| failed(error.to_string()))?;
    let mut model = Unigram::default();
    pool.install(|| trainer.do_train(sentences, &mut model)).map_err(|error| failed(error.to_string()))?;

    // Pieces of one score come in the order of a hash map.
    let mut pieces: Vec<(String, f64)> = model.iter().skip(SPECIAL.len()).cloned().collect();
    pieces.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| a.cmp(b)));
    let special = SPECIAL.map(|token| (token.to_string(), 0.0));
    Unigram::from(special.into_iter().chain(pieces).collect(), Some(1), false)
        .map_err(|error| failed(error.to_string()))
}

fn too_small(letters: usize) -> Error {
    let least = letters + SPECIAL.len();
    let what = format!("the text has {letters} different letters, so the vocabulary needs at least {least} ids");
    Error::Argument(format!("{what}; ask for more, or train a byte-level BPE"))
}

#[cfg(test)]
mod tests;
