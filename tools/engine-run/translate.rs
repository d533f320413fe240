//! `engine-run translate`: texts in another language.

use crate::model::{Loaded, ModelArguments, check_vocabulary};
use crate::output::{Output, Progress};
use crate::texts::{TextArguments, open};
use anyhow::{Context, bail};
use clap::Args;
use engine::model::sampling::Sampling;
use engine::model::translate::{Error, Method, Translator, framed};
use serde_json::json;
use std::sync::Arc;

#[derive(Args)]
pub struct TranslateArguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    texts: TextArguments,
    /// Hypotheses of each text that are followed together; 1 takes the likeliest token each time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = crate::at_least_one)]
    beam: usize,
    /// Longer translations if higher: log-probabilities are divided by ((5 + length) / 6) to this power.
    #[arg(long, value_name = "A", default_value_t = 0.6, allow_hyphen_values = true, value_parser = parse_penalty)]
    length_penalty: f64,
    /// Choose tokens by chance instead: below 1 safer, above 1 wilder.
    #[arg(long, value_name = "X", conflicts_with_all = ["beam", "length_penalty"], value_parser = parse_temperature)]
    temperature: Option<f64>,
    /// With --temperature: same seed, same translations.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "temperature")]
    seed: u64,
    /// Tokens of a translation at most. The model's own limit if not given.
    #[arg(long, value_name = "N", value_parser = crate::at_least_one)]
    max_tokens: Option<usize>,
    /// Texts that are translated together.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = crate::at_least_one)]
    batch: usize,
    /// Print a JSON object for each text, one a line: text, translation, tokens, log_probability, score, is_complete.
    #[arg(long)]
    json: bool,
}

/// Texts that are translated before the first of them is printed: enough that batches hold texts of like lengths.
pub const TOGETHER: usize = 256;

pub fn parse_penalty(text: &str) -> Result<f64, String> {
    let expected = || "expected a number from -10 to 10".to_owned();
    text.parse().ok().filter(|value: &f64| value.abs() <= 10.0).ok_or_else(expected)
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    let expected = || "expected a number above 0".to_owned();
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0).ok_or_else(expected)
}

pub fn translate(arguments: &TranslateArguments) -> anyhow::Result<()> {
    let (tokenizer, folder) = open(&arguments.model)?;
    let texts = arguments.texts.read()?;
    let Loaded { model, mut parameters, device, .. } = arguments.model.load(&folder)?;
    check_vocabulary(&tokenizer, model.config())?;
    let method = match arguments.temperature {
        Some(temperature) => Method::Sample(Sampling { temperature, seed: arguments.seed, ..Sampling::default() }),
        None if arguments.beam == 1 => Method::Greedy,
        None => Method::Beam { width: arguments.beam, length_penalty: arguments.length_penalty },
    };
    let mut sources = Vec::with_capacity(texts.len());
    for (number, text) in texts.iter().enumerate() {
        let place = || format!("text {}", number + 1);
        if text.second.is_some() {
            bail!("{}: a second text cannot be translated beside the first; leave it out", place());
        }
        let tokens = tokenizer.encode(&text.first).with_context(place)?;
        sources.push(framed(model.config(), &tokens));
    }
    let sentences = arguments.batch.min(texts.len());
    let mut translator = Translator::new(Arc::clone(&device), &model, sentences, method)
        .with_context(|| folder.display().to_string())?;
    let max_tokens = arguments.max_tokens.unwrap_or(model.config().block);
    let (mut lines, mut progress) = (Output::default(), Progress::new("texts", texts.len()));
    for (part, chunk) in sources.chunks(TOGETHER).enumerate() {
        let before = part * TOGETHER;
        let found = translator
            .translate(&mut parameters, chunk, max_tokens)
            .map_err(|error| counted_from_one(error, before))?;
        for (text, found) in texts[before..].iter().zip(&found) {
            let translation = tokenizer.decode(&found.tokens);
            let translation = translation.trim();
            let line = if arguments.json {
                let object = json!({
                    "text": text.first,
                    "translation": translation,
                    "tokens": found.tokens.len(),
                    "log_probability": found.log_probability,
                    "score": found.score,
                    "is_complete": found.is_complete,
                });
                object.to_string()
            } else {
                // One line for one text, so that the lines of a file stay those of another.
                translation.replace(['\n', '\r'], " ")
            };
            if lines.print(&format!("{line}\n")).is_break() {
                return lines.outcome();
            }
        }
        progress.show(before + chunk.len());
    }
    lines.outcome()
}

/// People count texts from 1, and over all chunks.
fn counted_from_one(mut error: Error, before: usize) -> Error {
    if let Error::TooLong { sentence, .. } = &mut error {
        *sentence += before + 1;
    }
    error
}
