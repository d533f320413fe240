//! What a model translates by itself, greedily: for BLEU and chrF in an evaluation, and as samples. The same for an
//! encoder-decoder and for a decoder alone.

use super::Evaluation;
use crate::data::LabelledSet;
use crate::model::translate::{Method, Translator};
use crate::model::{ModelConfig, Transformer};
use crate::ops::Device;
use crate::score::prediction;
use crate::score::translation::{self, bleu, chrf};
use crate::tape::Parameters;
use crate::train::config::Config;
use crate::train::example_source::ExampleSource;
use crate::train::trainer::Error;
use std::sync::Arc;

/// Sentences that are translated at a time.
const SENTENCES: usize = 32;

/// Examples that are shown as samples.
const SAMPLES: usize = 3;

/// A model that can write.
pub(super) struct Generating<'a> {
    pub(super) device: &'a Arc<Device>,
    pub(super) model: &'a Transformer,
    pub(super) parameters: &'a mut Parameters,
    pub(super) source: &'a ExampleSource,
}

/// A translation, what it is one of, and the one that it is compared with.
struct Translated {
    source: String,
    target: String,
    text: String,
}

/// Bytes that [`judge`] takes for a set of so many examples.
pub(super) fn bytes(config: &Config, model: &ModelConfig, examples: usize) -> usize {
    Translator::bytes(model, SENTENCES.min(config.train.eval_translations).min(examples), 1)
}

/// Translates some examples and adds BLEU, chrF and the translations to an evaluation.
///
/// # Errors
/// Not enough memory.
pub(super) fn judge(
    with: &mut Generating<'_>,
    config: &Config,
    set: &LabelledSet,
    evaluation: &mut Evaluation,
) -> Result<(), Error> {
    let wanted = config.train.eval_translations.min(set.len());
    if wanted == 0 {
        return Ok(());
    }
    let found = translate(with, config, set, &spread(wanted, set.len()))?;
    let texts: Vec<&str> = found.iter().map(|found| found.text.as_str()).collect();
    let references: Vec<[&str; 1]> = found.iter().map(|found| [found.target.as_str()]).collect();
    let words = translation::Tokenizer::of_texts(references.iter().flatten().copied());
    let (bleu, chrf) = (bleu(&texts, &references, words)?, chrf(&texts, &references)?);
    evaluation.figures = vec![("bleu", bleu.score), ("chrf", chrf.score)];
    evaluation.best_by = Some("chrf");
    let line = |found: &Translated| prediction::translation(&found.source, &found.target, &found.text);
    evaluation.predictions = found.iter().map(line).collect();
    Ok(())
}

/// Some translations for a person.
///
/// # Errors
/// Not enough memory.
pub(super) fn sample(with: &mut Generating<'_>, config: &Config, set: &LabelledSet) -> Result<String, Error> {
    let found = translate(with, config, set, &spread(SAMPLES.min(set.len()), set.len()))?;
    let show = |found: &Translated| format!("{}\n  -> {}\n  ref {}", found.source, found.text, found.target);
    Ok(found.iter().map(show).collect::<Vec<_>>().join("\n"))
}

fn translate(
    with: &mut Generating<'_>,
    config: &Config,
    set: &LabelledSet,
    examples: &[usize],
) -> Result<Vec<Translated>, Error> {
    let source = |&example: &usize| {
        let mut tokens = Vec::new();
        set.tokens(example).range(0..set.second(example)).for_each(|token| tokens.push(token));
        tokens
    };
    let sources: Vec<Vec<u32>> = examples.iter().map(source).collect();
    let sentences = SENTENCES.min(examples.len());
    let mut translator = Translator::new(Arc::clone(with.device), with.model, sentences, Method::Greedy)?;
    let most = config.data.max_tokens.unwrap_or(config.model.block);
    let translations = translator.translate(with.parameters, &sources, most)?;
    let tokenizer = with.source.tokenizer()?;
    let both = translations.iter().zip(examples);
    both.map(|(found, &example)| {
        let sides = set.sides(set.row(example))?;
        let text = tokenizer.decode(&found.tokens).trim().to_owned();
        Ok(Translated { source: sides.source, target: sides.target, text })
    })
    .collect()
}

/// `wanted` of `count` examples, at even distances: the same each time.
fn spread(wanted: usize, count: usize) -> Vec<usize> {
    (0..wanted).map(|index| index * count / wanted).collect()
}
