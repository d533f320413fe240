//! Text in, text out: prompts become tokens, a few sequences at a time are decoded together, and text is handed on as
//! soon as it is certain.
//!
//! A sequence that ends gives its place to the next prompt. Its random numbers depend on its own number alone, and (in
//! batches of up to eight, see [`generate`](super::generate)) its logits on its own tokens alone, so its text is the
//! same whatever is decoded beside it.

use super::ModelConfig;
use super::Transformer;
use super::generate::{Generator, Sampling};
use crate::data::{self, DecodeStream, Tokenizer};
use crate::ops::Device;
use crate::tape::{self, OutOfMemory, Parameters};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to generate after each prompt.
#[derive(Clone, Debug)]
pub struct Settings {
    pub sampling: Sampling,
    /// Most tokens that are generated after a prompt.
    pub max_tokens: usize,
    /// A sequence ends before the first of these that its text contains.
    pub stop: Vec<String>,
    /// Sequences that are decoded together.
    pub batch: usize,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model chose the token that ends a text.
    EndOfText,
    /// One of [`Settings::stop`].
    Stop,
    /// [`Settings::max_tokens`].
    Length,
}

impl Finish {
    /// A word for machines to read.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A sequence that has ended.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Number of its prompt.
    pub sequence: usize,
    /// What follows the prompt.
    pub text: String,
    /// What was generated, without the token that ends the text.
    pub tokens: Vec<u32>,
    pub finish: Finish,
    /// Time to read the prompt.
    pub prompt_time: Duration,
    /// Time from then until the last token was chosen.
    pub time: Duration,
}

/// What happens while sequences are completed.
#[derive(Debug)]
pub enum Event<'a> {
    /// More text of a sequence.
    Text { sequence: usize, text: &'a str },
    /// A sequence has ended.
    Finished(&'a Completion),
}

/// Work of one call of [`complete`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub prompt_tokens: usize,
    pub prompt_time: Duration,
    pub generated_tokens: usize,
    /// All but the time to read prompts.
    pub time: Duration,
}

/// Why prompts cannot be completed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "line {line}, column {column} of the prompt: the model's vocabulary has no {character:?} (U+{:04X}); \
         leave it out, or use a model that was trained on such text", u32::from(*character)
    )]
    UnknownCharacter { line: u64, column: u64, character: char },
    #[error(
        "the prompt's token {token} is beyond the model's vocabulary of {vocabulary}; use the tokenizer that the model \
         was trained with (--tokenizer)"
    )]
    OutOfVocabulary { token: u32, vocabulary: usize },
    #[error(
        "the model's output is not finite after {position} tokens; its weights are damaged or its training diverged: \
         use another checkpoint"
    )]
    NotFinite { position: usize },
    #[error(transparent)]
    Tokenizer(data::Error),
    #[error(transparent)]
    Tape(#[from] tape::Error),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// The tokens of a prompt. An empty one starts from the token that begins or ends a text, where there is one, else
/// from a line break.
///
/// # Errors
/// The tokenizer does not know a character, or the model does not know a token.
pub fn encode_prompt(tokenizer: &Tokenizer, config: &ModelConfig, text: &str) -> Result<Vec<u32>, Error> {
    let mut tokens = tokenizer.encode(text).map_err(|error| match error {
        data::Error::UnknownCharacter { line, column, character, .. } => {
            Error::UnknownCharacter { line, column, character }
        }
        other => Error::Tokenizer(other),
    })?;
    if tokens.is_empty() {
        tokens.push(start_token(tokenizer, config));
    }
    match tokens.iter().find(|&&token| token as usize >= config.vocabulary) {
        Some(&token) => Err(Error::OutOfVocabulary { token, vocabulary: config.vocabulary }),
        None => Ok(tokens),
    }
}

fn start_token(tokenizer: &Tokenizer, config: &ModelConfig) -> u32 {
    let newline = || tokenizer.encode("\n").ok().and_then(|tokens| tokens.first().copied());
    let known = |token: &u32| (*token as usize) < config.vocabulary;
    let special = tokenizer.end_of_text().filter(known).or(config.bos.filter(known)).or(config.eos.filter(known));
    special.or_else(newline).unwrap_or(0)
}

/// Completes prompts, which are tokens of the model, and reports on each as it goes. Stops early, without an error,
/// where `on_event` breaks.
///
/// # Errors
/// A token outside the vocabulary; not enough memory; logits that are not finite.
pub fn complete(
    device: Arc<Device>,
    model: &Transformer,
    parameters: &mut Parameters,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    settings: &Settings,
    mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Totals, Error> {
    let (config, started) = (model.config(), Instant::now());
    let is_end = |token: u32| Some(token) == tokenizer.end_of_text() || Some(token) == config.eos;
    // A model's table may have more rows than there are tokens, for the sake of round numbers: those have no text.
    let usable = config.vocabulary.min(tokenizer.vocabulary());
    let mut generator = Generator::with_capacity(device, model, settings.batch.clamp(1, prompts.len().max(1)))?;
    let mut totals = Totals::default();
    let mut active: Vec<Active<'_>> = Vec::new();
    let mut waiting = prompts.iter().enumerate();
    let mut chosen = Vec::new();
    loop {
        while let Some((sequence, prompt)) = (active.len() < generator.capacity()).then(|| waiting.next()).flatten() {
            let before = Instant::now();
            let is_same = |other: &Active<'_>| other.tokens.is_empty() && prompts[other.sequence] == *prompt;
            let prompt_time = match active.iter().position(is_same) {
                Some(other) => {
                    generator.add_copy(parameters, other)?;
                    active[other].prompt_time
                }
                None => {
                    generator.add(parameters, prompt)?;
                    totals.prompt_tokens += prompt.len();
                    before.elapsed()
                }
            };
            totals.prompt_time += before.elapsed();
            active.push(Active::new(sequence, tokenizer, settings, prompt_time));
        }
        if active.is_empty() {
            break;
        }
        chosen.clear();
        while chosen.len() < active.len() {
            let place = chosen.len();
            let sequence = &mut active[place];
            let logits = &generator.logits(place)[..usable];
            if !logits.iter().all(|logit| logit.is_finite()) {
                return Err(Error::NotFinite { position: generator.tokens(place).len() });
            }
            let token = settings.sampling.choose(logits, sequence.sequence, sequence.tokens.len() as u64);
            let (text, finish) = sequence.accept(token, is_end(token), settings.max_tokens);
            let flow = match text.as_str() {
                "" => ControlFlow::Continue(()),
                text => on_event(Event::Text { sequence: sequence.sequence, text }),
            };
            let flow = match (flow, finish) {
                (ControlFlow::Continue(()), Some(finish)) => {
                    // The last sequence takes this place, and its turn to choose comes next.
                    generator.remove(parameters, place)?;
                    let completion = active.swap_remove(place).complete(finish);
                    totals.generated_tokens += completion.tokens.len();
                    on_event(Event::Finished(&completion))
                }
                (flow, _) => {
                    chosen.push(token);
                    flow
                }
            };
            if flow.is_break() {
                totals.time = started.elapsed().saturating_sub(totals.prompt_time);
                return Ok(totals);
            }
        }
        generator.push(parameters, &chosen)?;
    }
    totals.time = started.elapsed().saturating_sub(totals.prompt_time);
    Ok(totals)
}

/// A sequence that is being decoded.
struct Active<'a> {
    sequence: usize,
    tokens: Vec<u32>,
    text: String,
    decoder: DecodeStream<'a>,
    filter: StopFilter<'a>,
    prompt_time: Duration,
    started: Instant,
}

impl<'a> Active<'a> {
    fn new(sequence: usize, tokenizer: &'a Tokenizer, settings: &'a Settings, prompt_time: Duration) -> Self {
        Self {
            sequence,
            tokens: Vec::new(),
            text: String::new(),
            decoder: tokenizer.decode_stream(),
            filter: StopFilter::new(&settings.stop),
            prompt_time,
            started: Instant::now(),
        }
    }

    /// Takes the next token; returns the text that is certain now, and whether the sequence has ended.
    fn accept(&mut self, token: u32, is_end: bool, max_tokens: usize) -> (String, Option<Finish>) {
        let mut text = String::new();
        let mut finish = None;
        if is_end {
            finish = Some(Finish::EndOfText);
        } else {
            self.tokens.push(token);
            text = self.decoder.push(token);
            if self.tokens.len() >= max_tokens {
                finish = Some(Finish::Length);
            }
        }
        if finish.is_some() {
            text.push_str(&self.decoder.finish());
        }
        let (mut ready, is_stopped) = self.filter.push(&text);
        if is_stopped {
            finish = Some(Finish::Stop);
        } else if finish.is_some() {
            ready.push_str(&self.filter.finish());
        }
        self.text.push_str(&ready);
        (ready, finish)
    }

    fn complete(self, finish: Finish) -> Completion {
        Completion {
            sequence: self.sequence,
            text: self.text,
            tokens: self.tokens,
            finish,
            prompt_time: self.prompt_time,
            time: self.started.elapsed(),
        }
    }
}

/// Cuts a stream of text before the first stop text. What may turn out to be the beginning of one is held back.
struct StopFilter<'a> {
    stop: &'a [String],
    held: String,
}

impl<'a> StopFilter<'a> {
    fn new(stop: &'a [String]) -> Self {
        Self { stop, held: String::new() }
    }

    /// Adds text; returns what is certain now, and whether a stop text follows it.
    fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(offset) = found {
            self.held.truncate(offset);
            return (std::mem::take(&mut self.held), true);
        }
        let might_begin = |offset: &usize| self.stop.iter().any(|stop| stop.starts_with(&self.held[*offset..]));
        let offset = self.held.char_indices().map(|(offset, _)| offset).find(might_begin).unwrap_or(self.held.len());
        let held = self.held.split_off(offset);
        (std::mem::replace(&mut self.held, held), false)
    }

    /// What is still held back, at the end of the stream.
    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(stop: &[&str], parts: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<String> = stop.iter().map(|&text| text.into()).collect();
        let mut filter = StopFilter::new(&stop);
        let mut ready = Vec::new();
        for part in parts {
            let (text, is_stopped) = filter.push(part);
            ready.push(text);
            if is_stopped {
                return (ready, true);
            }
        }
        ready.push(filter.finish());
        (ready, false)
    }

    #[test]
    fn text_is_cut_before_the_first_stop_even_across_parts() {
        assert_eq!(filtered(&["END", "."], &["one E", "N", "D two."]).0.concat(), "one ");
        assert_eq!(filtered(&["END", "."], &["one. END"]), (vec!["one".into()], true));
        assert_eq!(filtered(&["\n\n"], &["a\n", "b\n", "\nc"]).0.concat(), "a\nb");
    }

    #[test]
    fn only_what_may_begin_a_stop_text_is_held_back() {
        let (ready, is_stopped) = filtered(&["漢字!"], &["x漢", "字", "?漢"]);
        assert_eq!((ready, is_stopped), (vec!["x".into(), "".into(), "漢字?".into(), "漢".into()], false));
        assert_eq!(filtered(&[], &["a", "b"]).0, ["a", "b", ""]);
    }

    #[test]
    fn an_empty_prompt_starts_from_what_begins_a_text() {
        let config = ModelConfig { vocabulary: 256, bos: None, eos: None, ..ModelConfig::gpt2() };
        assert_eq!(encode_prompt(&Tokenizer::byte(), &config, "").unwrap(), [u32::from(b'\n')]);
        let with_end = ModelConfig { eos: Some(7), ..config.clone() };
        assert_eq!(encode_prompt(&Tokenizer::byte(), &with_end, "").unwrap(), [7]);
        let outside = ModelConfig { bos: Some(256), ..config.clone() };
        assert_eq!(encode_prompt(&Tokenizer::byte(), &outside, "").unwrap(), [u32::from(b'\n')]);
        let no_newline = Tokenizer::char_from("abc").unwrap();
        assert_eq!(encode_prompt(&no_newline, &config, "").unwrap(), [0]);
    }

    #[test]
    fn prompts_that_the_model_cannot_read_are_refused_with_the_reason() {
        let config = ModelConfig { vocabulary: 100, ..ModelConfig::gpt2() };
        let message = encode_prompt(&Tokenizer::byte(), &config, "abz").unwrap_err().to_string();
        assert!(message.contains("token 122 is beyond the model's vocabulary of 100"), "{message}");
        let letters = Tokenizer::char_from("abc\n").unwrap();
        let message = encode_prompt(&letters, &config, "ab\nxc").unwrap_err().to_string();
        assert!(message.contains("line 2, column 1") && message.contains("'x' (U+0078)"), "{message}");
    }
}
