//! `engine-run`: use a checkpoint. `generate` continues text.

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use engine::cpu::peak::read_bytes_per_second;
use engine::data::Tokenizer;
use engine::model::Transformer;
use engine::model::completion::{Completion, Event, Settings, Totals, complete, encode_prompt};
use engine::model::generate::{Generator, Sampling, first_token_read};
use engine::ops::Device;
use engine::tape::Parameters;
use engine::train::config::{self, DeviceKind};
use engine::train::{checkpoint, device};
use serde_json::json;
use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  engine-run generate runs/austen --prompt \"It is a truth\"
  engine-run generate runs/austen/checkpoints/best --prompt \"Emma\" --samples 3 --temperature 1 --top-p 0.9
  engine-run generate gpt2 --input prompts.txt --max-tokens 50 --json > completions.jsonl

Exit codes: 0 done, 1 failed, 2 bad usage.";

/// Use a checkpoint: generate text.
#[derive(Parser)]
#[command(name = "engine-run", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue text.
    #[command(after_help = "\
Prompts come from --prompt (may be repeated), from --input, or else from standard input, all of which is one prompt
(a line break at its end is left out). An empty prompt starts from the token that ends a text, or from a line break.

The text goes to standard output, after its prompt, as it is generated. Several texts come in the order of their
prompts, with lines of \"---\" between them. The same command gives the same text: change --seed for another one.

Examples:
  engine-run generate runs/austen --prompt \"It is a truth\"
  engine-run generate runs/austen --prompt \"Emma\" --samples 3 --temperature 1 --top-p 0.9 --seed 7
  engine-run generate runs/austen/checkpoints/best --prompt \"Mr. \" --stop \".\" --stop \"!\"
  echo \"Once upon a time\" | engine-run generate gpt2 --top-k 40 --max-tokens 100
  engine-run generate gpt2 --input prompts.txt --batch 8 --json > completions.jsonl
  engine-run generate gpt2 --benchmark")]
    Generate(GenerateArguments),
}

#[derive(Args)]
struct GenerateArguments {
    /// A Hugging Face GPT-2 folder, a checkpoint, or a run's folder, which stands for its newest checkpoint.
    #[arg(value_name = "CHECKPOINT")]
    model: PathBuf,
    /// Text to continue. May be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "input")]
    prompt: Vec<String>,
    /// File of prompts: one a line, or a .jsonl file of objects with a "prompt".
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Most tokens to generate after each prompt.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = at_least_one)]
    max_tokens: usize,
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
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    samples: usize,
    /// End a text before it contains this. May be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = parse_stop)]
    stop: Vec<String>,
    /// Texts that are generated together: 8, or 1 with --benchmark. Up to 8, it does not change any of them.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    batch: Option<usize>,
    /// How text becomes tokens, where the folder has no tokenizer.json.
    #[arg(long, value_name = "FILE|byte")]
    tokenizer: Option<String>,
    /// auto, cpu, cuda, cuda:N or emulator.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device)]
    device: DeviceKind,
    /// Print an object for each text, one a line: prompt, text, tokens, finish, speed.
    #[arg(long)]
    json: bool,
    /// Print figures of speed to standard error at the end, also where that is not a terminal.
    #[arg(long, short)]
    verbose: bool,
    /// Measure instead: tokens per second, and how that compares with the bandwidth of memory.
    #[arg(long, conflicts_with_all = ["input", "samples", "stop"])]
    benchmark: bool,
}

/// Texts that are generated together: as many rows as a product takes without another order of its sums.
const BATCH: usize = 8;

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, 1 or more".into()),
        Ok(number) => Ok(number),
    }
}

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

fn parse_device(text: &str) -> Result<DeviceKind, String> {
    DeviceKind::try_from(text.to_owned()).map_err(str::to_owned)
}

fn main() -> ExitCode {
    let Command::Generate(arguments) = Arguments::parse().command;
    let outcome = if arguments.benchmark { benchmark(&arguments) } else { generate(&arguments) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the error holds.
            eprintln!("engine-run: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// A model that is ready to use.
struct Loaded {
    folder: PathBuf,
    model: Transformer,
    parameters: Parameters,
    device: Arc<Device>,
    /// Which device, and why.
    description: String,
}

fn load(arguments: &GenerateArguments) -> anyhow::Result<Loaded> {
    let folder = model_folder(&arguments.model)?;
    let chosen = device::open(&config::Device { kind: arguments.device, ..config::Device::default() })?;
    let (model, parameters) = Transformer::load(&chosen.device, &folder)?;
    Ok(Loaded { folder, model, parameters, device: chosen.device, description: chosen.description })
}

/// The folder of the model that a path of the user means.
fn model_folder(path: &Path) -> anyhow::Result<PathBuf> {
    const WANTED: &str = "give a Hugging Face model folder, a checkpoint, or a run's folder";
    let shown = path.display();
    if !path.exists() {
        bail!("{shown}: there is no such folder; {WANTED}");
    }
    if !path.is_dir() {
        bail!("{shown} is a file; {WANTED}");
    }
    let folder = checkpoint::resolve(path).map_err(|error| match error {
        checkpoint::Error::None(_) => anyhow::anyhow!("{shown}: this run has no checkpoint yet; {WANTED}"),
        other => other.into(),
    })?;
    if !folder.join("config.json").is_file() {
        bail!("{shown}: no config.json, so this is no model; {WANTED}");
    }
    Ok(folder)
}

/// The tokenizer that was asked for, or the folder's own.
fn tokenizer(arguments: &GenerateArguments, folder: &Path) -> anyhow::Result<Tokenizer> {
    match arguments.tokenizer.as_deref() {
        Some("byte") => Ok(Tokenizer::byte()),
        Some(path) => Ok(Tokenizer::load(path)?),
        None => checkpoint::tokenizer(folder)?.with_context(|| {
            format!(
                "{}: no tokenizer.json; give the model's own with --tokenizer FILE, or --tokenizer byte if it was \
                 trained on bytes",
                folder.display()
            )
        }),
    }
}

/// All prompts, from wherever they come.
fn prompts(arguments: &GenerateArguments) -> anyhow::Result<Vec<String>> {
    if !arguments.prompt.is_empty() {
        return Ok(arguments.prompt.clone());
    }
    if let Some(path) = &arguments.input {
        let shown = path.display();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
        let text = utf8(bytes, &shown.to_string())?;
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
    let text = utf8(bytes, "standard input")?;
    let line = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(vec![line.to_owned()])
}

fn utf8(bytes: Vec<u8>, place: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{place}: not UTF-8 at byte {offset}; convert it (for example with iconv)")
    })
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

fn sampling(arguments: &GenerateArguments) -> Sampling {
    Sampling {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: arguments.seed,
    }
}

fn generate(arguments: &GenerateArguments) -> anyhow::Result<()> {
    // Whatever can be refused without the weights comes first: they take a while to load.
    let folder = model_folder(&arguments.model)?;
    let tokenizer = tokenizer(arguments, &folder)?;
    let texts = prompts(arguments)?;
    let Loaded { model, mut parameters, device, description, .. } = load(arguments)?;
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
        return printer.outcome();
    }
    let totals =
        complete(device, &model, &mut parameters, &tokenizer, &tokens, &settings, |event| printer.show(event))?;
    printer.outcome()?;
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
    /// Why printing stopped.
    error: Option<io::Error>,
}

#[derive(Default)]
struct Waiting {
    text: String,
    is_finished: bool,
}

impl<'a> Printer<'a> {
    fn new(sequences: &'a [Sequence<'a>], is_json: bool) -> Self {
        let waiting = sequences.iter().map(|_| Waiting::default()).collect();
        Self { sequences, is_json, waiting, current: 0, error: None }
    }

    /// Prints the first prompt.
    fn begin(&mut self) -> ControlFlow<()> {
        let text = self.opening(0);
        self.print(&text)
    }

    fn show(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Text { .. } if self.is_json => ControlFlow::Continue(()),
            Event::Text { sequence, text } if sequence == self.current => self.print(text),
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
        self.print(&text)
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

    fn print(&mut self, text: &str) -> ControlFlow<()> {
        let mut output = io::stdout().lock();
        match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// A reader that went away early (`| head`) has what it wanted.
    fn outcome(&mut self) -> anyhow::Result<()> {
        match self.error.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(anyhow::Error::new(error).context("cannot write to standard output"))
            }
            _ => Ok(()),
        }
    }
}

/// Tokens before the clock starts: they fault pages in and wake the threads.
const WARM_UP_TOKENS: usize = 4;
/// Tokens between two measurements of the bandwidth: a shared machine's is not the same from second to second.
const TOKENS_PER_BANDWIDTH: usize = 25;

fn benchmark(arguments: &GenerateArguments) -> anyhow::Result<()> {
    let Loaded { folder, model, mut parameters, device, description } = load(arguments)?;
    let config = model.config();
    let prompt = match arguments.prompt.as_slice() {
        [] => vec![0],
        [text] => encode_prompt(&tokenizer(arguments, &folder)?, config, text)?,
        _ => bail!("--benchmark takes one --prompt"),
    };
    let Device::Cpu(cpu) = &*device else {
        bail!("--benchmark compares with the bandwidth of this machine's memory; use --device cpu")
    };
    let batch = arguments.batch.unwrap_or(1);
    let sampling = sampling(arguments);
    let mut generator = Generator::with_capacity(Arc::clone(&device), &model, batch)?;
    let before = Instant::now();
    generator.add(&mut parameters, &prompt)?;
    let prompt_time = before.elapsed();
    for _ in 1..batch {
        generator.add_copy(&mut parameters, 0)?;
    }

    let mut step_seconds = Vec::with_capacity(arguments.max_tokens);
    let mut cached_tokens = 0;
    let mut draw = 0;
    let mut step = |generator: &mut Generator<'_>| -> anyhow::Result<f64> {
        let before = Instant::now();
        let tokens: Vec<u32> = (0..batch).map(|place| sampling.choose(generator.logits(place), place, draw)).collect();
        draw += 1;
        generator.push(&mut parameters, &tokens)?;
        Ok(before.elapsed().as_secs_f64())
    };
    for _ in 0..WARM_UP_TOKENS {
        step(&mut generator)?;
    }
    // What could have been read in the time that the steps took.
    let mut readable_bytes = 0.0;
    let mut bandwidth_before = read_bytes_per_second(cpu);
    while step_seconds.len() < arguments.max_tokens {
        let first = step_seconds.len();
        for _ in 0..TOKENS_PER_BANDWIDTH.min(arguments.max_tokens - first) {
            step_seconds.push(step(&mut generator)?);
            cached_tokens += generator.cached_tokens();
        }
        let bandwidth_after = read_bytes_per_second(cpu);
        readable_bytes += bandwidth_before.max(bandwidth_after) * step_seconds[first..].iter().sum::<f64>();
        bandwidth_before = bandwidth_after;
    }

    let total: f64 = step_seconds.iter().sum();
    let bandwidth = readable_bytes / total;
    step_seconds.sort_unstable_by(f64::total_cmp);
    let median = step_seconds[step_seconds.len() / 2];
    let steps_per_second = step_seconds.len() as f64 / total;
    let weight_bytes = weight_bytes_per_step(&model);
    let cache_bytes = (cached_tokens * 2 * config.channels * config.layers * 4) as f64 / step_seconds.len() as f64;
    // The weights alone: what decoding cannot do without, however short the text.
    let percent = 100.0 * steps_per_second * weight_bytes / bandwidth;
    let percent_with_cache = 100.0 * steps_per_second * (weight_bytes + cache_bytes) / bandwidth;
    let text = if arguments.json {
        json!({
            "device": description,
            "batch": batch,
            "prompt_tokens": prompt.len(),
            "prompt_seconds": prompt_time.as_secs_f64(),
            "generated_tokens": batch * step_seconds.len(),
            "tokens_per_second": batch as f64 * steps_per_second,
            "step_seconds_median": median,
            "weight_bytes_per_step": weight_bytes,
            "cache_bytes_per_step": cache_bytes,
            "read_bytes_per_second": bandwidth,
            "percent_of_bandwidth": percent,
            "percent_of_bandwidth_with_cache": percent_with_cache,
        })
        .to_string()
    } else {
        format!(
            "device     {description}\n\
             prompt     {} tokens in {:.1} ms\n\
             generated  {} tokens, {batch} at a time: {:.2} tokens/s, median step {:.2} ms\n\
             read       {:.1} MB of weights and {:.1} MB of the key/value cache each step\n\
             bandwidth  {:.1} GB/s measured: {percent:.1} % of what it allows for the weights alone, {percent_with_cache:.1} % with the cache",
            prompt.len(),
            prompt_time.as_secs_f64() * 1e3,
            batch * step_seconds.len(),
            batch as f64 * steps_per_second,
            median * 1e3,
            weight_bytes / 1e6,
            cache_bytes / 1e6,
            bandwidth / 1e9,
        )
    };
    let mut printer = Printer::new(&[], true);
    let _ = printer.print(&format!("{text}\n"));
    printer.outcome()
}

/// Bytes of parameters that a step reads: all but the tables of which it takes a row.
fn weight_bytes_per_step(model: &Transformer) -> f64 {
    let is_table = |name: &str| match name {
        "position_embedding.weight" => true,
        "token_embedding.weight" => !model.config().tied,
        _ => false,
    };
    let read = model.specs().iter().filter(|spec| !is_table(&spec.name));
    4.0 * read.map(|spec| spec.elements()).sum::<usize>() as f64
}
