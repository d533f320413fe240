//! `engine-run generate`: text that continues a prompt.

use crate::model::{Loaded, ModelArguments};
use crate::output::Output;
use anyhow::{Context, bail};
use clap::Args;
use engine::model::Transformer;
use engine::model::completion::{Completion, Event, Settings, Totals, complete, encode_prompt};
use engine::model::config::Architecture;
use engine::model::generate::{Sampling, first_token_read};
use serde_json::json;
use std::io::{self, IsTerminal, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Args)]
pub struct GenerateArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Text to continue. May be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "input")]
    pub prompt: Vec<String>,
    /// File of prompts: one a line, or a .jsonl file of objects with a "prompt".
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Most tokens to generate after each prompt.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = crate::at_least_one)]
    pub max_tokens: usize,
    /// Below 1 safer, above 1 wilder; 0 always takes the likeliest token.
    #[arg(long, value_name = "X", default_value_t = 0.8, value_parser = parse_temperature)]
    temperature: f64,
    /// Choose among the K likeliest tokens only; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the likeliest tokens that together have probability P only; 1 for all.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = parse_top_p)]
    top_p: f64,
    /// Same seed, same text.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Texts for each prompt.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = crate::at_least_one)]
    samples: usize,
    /// End a text before it contains this. May be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = parse_stop)]
    stop: Vec<String>,
    /// Texts that are generated together: 8, or 1 with --benchmark. Up to 8, it does not change any of them.
    #[arg(long, value_name = "N", value_parser = crate::at_least_one)]
    pub batch: Option<usize>,
    /// Print an object for each text, one a line: prompt, text, tokens, finish, speed.
    #[arg(long)]
    pub json: bool,
    /// Print figures of speed to standard error at the end, also where that is not a terminal.
    #[arg(long, short)]
    verbose: bool,
    /// Measure instead: tokens per second, and how that compares with the bandwidth of memory.
    #[arg(long, conflicts_with_all = ["input", "samples", "stop"])]
    pub benchmark: bool,
}

/// Texts that are generated together: as many rows as a product takes without another order of its sums.
const BATCH: usize = 8;

fn parse_temperature(text: &str) -> Result<f64, String> {
    let expected = || "expected a number, 0 or more".to_owned();
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0).ok_or_else(expected)
}

fn parse_top_p(text: &str) -> Result<f64, String> {
    let expected = || "expected a number above 0 and up to 1".to_owned();
    text.parse().ok().filter(|value: &f64| *value > 0.0 && *value <= 1.0).ok_or_else(expected)
}

fn parse_stop(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("an empty text would stop at once".into()) } else { Ok(text.to_owned()) }
}

/// All prompts, from wherever they come.
fn prompts(arguments: &GenerateArguments) -> anyhow::Result<Vec<String>> {
    if !arguments.prompt.is_empty() {
        return Ok(arguments.prompt.clone());
    }
    if let Some(path) = &arguments.input {
        let shown = path.display();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let text = crate::utf8(bytes, &shown.to_string())?;
        let is_json = path.extension().is_some_and(|extension| extension == "jsonl");
        let prompts = text
            .lines()
            .enumerate()
            .map(|(number, line)| if is_json { json_prompt(line, path, number + 1) } else { Ok(line.to_owned()) })
            .collect::<anyhow::Result<Vec<String>>>()?;
        if prompts.is_empty() {
            bail!("{shown}: the file is empty; put one prompt on each line");
        }
        return Ok(prompts);
    }
    if io::stdin().is_terminal() {
        eprintln!("Type the prompt; end it with Ctrl-D. (Or use --prompt.)");
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    let text = crate::utf8(bytes, "standard input")?;
    let line = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(vec![line.to_owned()])
}

fn json_prompt(line: &str, path: &Path, number: usize) -> anyhow::Result<String> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|error| {
        anyhow::anyhow!("{}, line {number}: not JSON ({error}); put one object a line", path.display())
    })?;
    let Some(prompt) = value["prompt"].as_str() else {
        bail!("{}, line {number}: no text called \"prompt\"; write {{\"prompt\": \"...\"}}", path.display());
    };
    Ok(prompt.to_owned())
}

pub fn sampling(arguments: &GenerateArguments) -> Sampling {
    Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: arguments.seed,
    }
}

pub fn generate(arguments: &GenerateArguments) -> anyhow::Result<()> {
    // Whatever can be refused without the weights comes first: they take a while to load.
    let folder = arguments.model.folder()?;
    let tokenizer = arguments.model.tokenizer(&folder)?;
    let texts = prompts(arguments)?;
    let Loaded { model, mut parameters, device, description, .. } = arguments.model.load(&folder)?;
    match model.config().architecture {
        Architecture::Decoder => {}
        Architecture::Encoder => bail!("{}: an encoder writes no text; use fill", folder.display()),
        Architecture::EncoderDecoder => {
            bail!("{}: an encoder-decoder goes on from no prompt; use translate", folder.display())
        }
    }
    let mut sequences = Vec::new();
    let mut tokens = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let encoded = encode_prompt(&tokenizer, model.config(), text);
        let encoded = match texts.len() {
            1 => encoded?,
            _ => encoded.with_context(|| format!("prompt {}", number + 1))?,
        };
        note_long_prompt(number, &encoded, &model);
        for sample in 0..arguments.samples {
            sequences.push(Sequence { number, sample, text, tokens: encoded.len() });
            tokens.push(encoded.clone());
        }
    }
    let settings = Settings {
        sampling: sampling(arguments),
        max_tokens: arguments.max_tokens,
        stop: arguments.stop.clone(),
        batch: arguments.batch.unwrap_or(BATCH),
    };
    let mut printer = Printer::new(&sequences, arguments.json);
    if printer.begin().is_break() {
        return printer.output.outcome();
    }
    let totals =
        complete(device, &model, &mut parameters, &tokenizer, &tokens, &settings, |event| printer.show(event))?;
    printer.output.outcome()?;
    if arguments.verbose || (io::stderr().is_terminal() && !arguments.json) {
        eprintln!("{}", figures(&totals, sequences.len(), &description));
    }
    Ok(())
}

fn note_long_prompt(number: usize, tokens: &[u32], model: &Transformer) {
    let block = model.config().block;
    let start = first_token_read(tokens.len(), block);
    if start > 0 {
        eprintln!(
            "engine-run: prompt {} has {} tokens, more than the model's {block}; only the last {} are used",
            number + 1,
            tokens.len(),
            tokens.len() - start
        );
    }
}

fn figures(totals: &Totals, sequences: usize, device: &str) -> String {
    let rate = |count: usize, time: Duration| {
        per_second(count, time).map_or(String::new(), |rate| format!(" at {rate:.1} a second"))
    };
    // The first token of each text comes with its prompt.
    let steps = totals.generated_tokens.saturating_sub(sequences);
    format!(
        "prompts {} tokens{}, generated {} tokens{}, on {device}",
        totals.prompt_tokens,
        rate(totals.prompt_tokens, totals.prompt_time),
        totals.generated_tokens,
        rate(steps, totals.time)
    )
}

fn per_second(count: usize, time: Duration) -> Option<f64> {
    (count > 0 && !time.is_zero()).then(|| count as f64 / time.as_secs_f64())
}

/// One text to be generated.
struct Sequence<'a> {
    /// Number of the prompt.
    number: usize,
    sample: usize,
    text: &'a str,
    /// Tokens of the prompt.
    tokens: usize,
}

/// Prints texts in the order of their prompts. The first one that is not finished is shown as it comes; what comes of
/// later ones meanwhile waits.
struct Printer<'a> {
    sequences: &'a [Sequence<'a>],
    is_json: bool,
    /// What waits of each, from `current` on.
    waiting: Vec<Waiting>,
    current: usize,
    output: Output,
}

#[derive(Default)]
struct Waiting {
    text: String,
    is_finished: bool,
}

impl<'a> Printer<'a> {
    fn new(sequences: &'a [Sequence<'a>], is_json: bool) -> Self {
        let waiting = sequences.iter().map(|_| Waiting::default()).collect();
        Self { sequences, is_json, waiting, current: 0, output: Output::default() }
    }

    /// Prints the first prompt.
    fn begin(&mut self) -> ControlFlow<()> {
        let text = self.opening(0);
        self.output.print(&text)
    }

    fn show(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Text { .. } if self.is_json => ControlFlow::Continue(()),
            Event::Text { sequence, text } if sequence == self.current => self.output.print(text),
            Event::Text { sequence, text } => {
                self.waiting[sequence].text.push_str(text);
                ControlFlow::Continue(())
            }
            Event::Finished(completion) => {
                if self.is_json {
                    self.waiting[completion.sequence].text = self.json(completion);
                }
                self.waiting[completion.sequence].is_finished = true;
                self.advance()
            }
        }
    }

    /// Prints all that is finished, and as much as there is of the one after.
    fn advance(&mut self) -> ControlFlow<()> {
        let mut text = String::new();
        while self.current < self.waiting.len() {
            let Waiting { text: own, is_finished } = std::mem::take(&mut self.waiting[self.current]);
            text.push_str(&own);
            if !is_finished {
                break;
            }
            text.push('\n');
            self.current += 1;
            text.push_str(&self.opening(self.current));
        }
        self.output.print(&text)
    }

    /// What stands before the text of a sequence.
    fn opening(&self, sequence: usize) -> String {
        match self.sequences.get(sequence) {
            Some(Sequence { text, .. }) if !self.is_json => {
                format!("{}{text}", if sequence == 0 { "" } else { "---\n" })
            }
            _ => String::new(),
        }
    }

    fn json(&self, completion: &Completion) -> String {
        let Sequence { number, sample, text, tokens } = self.sequences[completion.sequence];
        // The first token comes with the prompt, so a text of n tokens takes n - 1 steps.
        let steps = completion.tokens.len().saturating_sub(1);
        let object = json!({
            "prompt_number": number,
            "sample": sample,
            "prompt": text,
            "text": completion.text,
            "tokens": completion.tokens,
            "finish": completion.finish.name(),
            "prompt_tokens": tokens,
            "generated_tokens": completion.tokens.len(),
            "prompt_seconds": completion.prompt_time.as_secs_f64(),
            "seconds": completion.time.as_secs_f64(),
            "prompt_tokens_per_second": per_second(tokens, completion.prompt_time),
            "tokens_per_second": per_second(steps, completion.time),
        });
        object.to_string()
    }
}
