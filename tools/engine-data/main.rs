//! `engine-data`: text -> shards of tokens, rows -> labelled examples, and a look into both.

mod labelled;
mod tokenizer;

use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::data::pack::{self, DEFAULT_SHARD_TOKENS, Document};
use engine::data::{Error, Format, LabelledSet, Tokenizer, inspect, verify};
use engine::util::atomic_file::plainly;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Time between two progress lines where standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  engine-data pack --input book.txt --tokenizer char --out data/book --val-fraction 0.1
  engine-data tokenizer --input wiki.txt --vocab-size 32000 --out wiki.json
  engine-data pack --input wiki.txt --tokenizer wiki.json --document blank-line --out data/wiki --val-fraction 0.001
  engine-data labelled --input train.tsv.gz --task classification --tokenizer bert/tokenizer.json --out data/reviews
  engine-data inspect data/wiki
  engine-data verify data/wiki
  engine-data inspect --raw-u16 nanogpt/data/shakespeare/train.bin

Exit codes: 0 done, 1 failed (or verify found something), 2 bad usage.";

/// Tokenise text, pack memory-mapped shards, inspect and verify them.
#[derive(Parser)]
#[command(name = "engine-data", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Threads to use; all cores where it is not given. The output does not depend on it.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Print the result as one JSON object.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Tokenise text files into a folder of shards.
    #[command(after_help = "\
The folder gets train_000000.bin..., val_000000.bin... (llm.c's format: u16 tokens, or u32 for vocabularies beyond
65536), tokenizer.json and dataset.json. Where the tokenizer has an end-of-text token, one follows each document.

Examples:
  engine-data pack --input book.txt --tokenizer char --out data/book --val-fraction 0.1
  engine-data pack --input part1.txt part2.txt --tokenizer gpt2/tokenizer.json --document line --out data/parts")]
    Pack(PackArguments),
    /// Train a tokenizer: a byte-level BPE laid out as GPT-2's, or one for encoders.
    #[command(after_help = tokenizer::EXAMPLES)]
    Tokenizer(tokenizer::TokenizerArguments),
    /// Tokenise rows of TSV, CSV, JSONL or text into a folder of labelled examples.
    #[command(after_help = labelled::EXAMPLES)]
    Labelled(labelled::LabelledArguments),
    /// Show what a shard, a folder of shards, or a folder of labelled examples holds.
    #[command(after_help = "\
Examples:
  engine-data inspect data/book
  engine-data inspect data/reviews --sample 3
  engine-data inspect --raw-u16 train.bin --tokenizer gpt2/tokenizer.json")]
    Inspect(InspectArguments),
    /// Check all lengths, ids and checksums of a shard, a folder of shards or of labelled examples; exit code 1 where
    /// something is wrong.
    #[command(after_help = "\
Examples:
  engine-data verify data/book
  engine-data verify fineweb_train_000001.bin --vocab-size 50257")]
    Verify(VerifyArguments),
}

#[derive(Args)]
struct PackArguments {
    /// Text files, UTF-8.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    /// `byte`, `char` (the characters of the input), or a tokenizer.json.
    #[arg(long, value_name = "byte|char|FILE.json")]
    tokenizer: String,
    /// Folder for the shards; created where it does not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The last fraction of each input file that is kept for validation.
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    val_fraction: f64,
    /// Tokens per shard.
    #[arg(long, default_value_t = DEFAULT_SHARD_TOKENS, value_name = "N")]
    shard_tokens: usize,
    /// What a document is: it is followed by the end-of-text token, where the tokenizer has one.
    #[arg(long, value_enum, default_value_t = DocumentArgument::File)]
    document: DocumentArgument,
    /// Replace a data set that the folder holds.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DocumentArgument {
    /// Each input file.
    File,
    /// Each line that is not empty.
    Line,
    /// Each run of lines between blank lines.
    BlankLine,
}

impl From<DocumentArgument> for Document {
    fn from(argument: DocumentArgument) -> Self {
        match argument {
            DocumentArgument::File => Self::File,
            DocumentArgument::Line => Self::Line,
            DocumentArgument::BlankLine => Self::BlankLine,
        }
    }
}

#[derive(Args)]
struct InspectArguments {
    /// A .bin file, a folder of them, or a folder of labelled examples.
    path: PathBuf,
    /// The file is headerless u16, as nanoGPT writes it.
    #[arg(long)]
    raw_u16: bool,
    /// Tokenizer to show text with; else the tokenizer.json beside the tokens.
    #[arg(long, value_name = "byte|FILE.json")]
    tokenizer: Option<String>,
    /// How many of the most frequent tokens to show.
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,
    /// How many of the first tokens to show (100), or of labelled examples (3).
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
}

#[derive(Args)]
struct VerifyArguments {
    /// A .bin file, a folder of them, or a folder of labelled examples.
    path: PathBuf,
    /// The file is headerless u16, as nanoGPT writes it.
    #[arg(long)]
    raw_u16: bool,
    /// Ids must be below this; else it is that of the tokenizer.json beside the tokens.
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            let is_usage = matches!(error.downcast_ref(), Some(Error::Argument(_)));
            eprintln!("engine-data: {error:#}");
            ExitCode::from(if is_usage { 2 } else { 1 })
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if let Some(threads) = arguments.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    match &arguments.command {
        Command::Pack(command) => pack_command(command, arguments.json),
        Command::Tokenizer(command) => tokenizer::tokenizer_command(command, arguments.json),
        Command::Labelled(command) => labelled::labelled_command(command, arguments.json),
        Command::Inspect(command) => inspect_command(command, arguments.json),
        Command::Verify(command) => verify_command(command, arguments.json),
    }
}

fn pack_command(arguments: &PackArguments, as_json: bool) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let tokenizer = match arguments.tokenizer.as_str() {
        "byte" => Tokenizer::byte(),
        "char" => Tokenizer::char_from_files(&arguments.input)?,
        file => Tokenizer::load(file)?,
    };
    let options = pack::Options {
        val_fraction: arguments.val_fraction,
        shard_tokens: arguments.shard_tokens,
        document: arguments.document.into(),
        overwrite: arguments.overwrite,
    };
    let progress = ProgressReport::new("packing");
    let manifest =
        pack::pack(&arguments.input, &tokenizer, &arguments.out, &options, &|done, total| progress.show(done, total))?;
    progress.finish();
    let seconds = start.elapsed().as_secs_f64();
    let bytes: u64 = manifest.sources.iter().map(|source| source.bytes).sum();
    let megabytes_per_second = bytes as f64 / 1e6 / seconds;
    if as_json {
        return print_json(&json!({
            "out": arguments.out.display().to_string(), "dataset": manifest,
            "seconds": seconds, "megabytes_per_second": megabytes_per_second,
        }));
    }
    let mut text = format!(
        "{}: {} tokenizer, {} ids, {} tokens\n",
        arguments.out.display(),
        manifest.tokenizer,
        manifest.vocabulary,
        manifest.token_type
    );
    for (name, split) in manifest.splits() {
        writeln!(text, "  {name:<5} {} tokens in {}", split.tokens, counted(split.shards.len(), "shard"))?;
    }
    let files = counted(manifest.sources.len(), "file");
    writeln!(text, "  {files}, {} in {seconds:.2} s, {megabytes_per_second:.1} MB/s", HumanBytes(bytes))?;
    print(&text)
}

fn inspect_command(arguments: &InspectArguments, as_json: bool) -> anyhow::Result<ExitCode> {
    if LabelledSet::is_folder_of(&arguments.path) {
        return labelled::inspect_command(&arguments.path, arguments.sample.unwrap_or(3), as_json);
    }
    let tokenizer = match arguments.tokenizer.as_deref() {
        Some("byte") => Some(Tokenizer::byte()),
        Some(file) => Some(Tokenizer::load(file)?),
        None => inspect::find_tokenizer(&arguments.path)?,
    };
    let format = format_of(arguments.raw_u16);
    let report =
        inspect::inspect(&arguments.path, format, tokenizer.as_ref(), arguments.top, arguments.sample.unwrap_or(100))?;
    if as_json {
        return print_json(&report);
    }
    let mut text = report.path.clone();
    match (report.tokenizer, report.vocabulary) {
        (Some(name), Some(vocabulary)) => writeln!(text, ": {name} tokenizer, {vocabulary} ids")?,
        _ => writeln!(text, ": no tokenizer.json beside it")?,
    }
    for split in &report.splits {
        let shards = counted(split.shards.len(), "shard");
        writeln!(text, "\n{}: {} {} tokens in {shards}", split.name, split.tokens, split.token_type)?;
        for shard in &split.shards {
            writeln!(text, "  {}  {} {} tokens", shard.file, shard.tokens, shard.token_type)?;
        }
        let largest = split.largest_token.map_or("none".into(), |token| token.to_string());
        writeln!(text, "  {} different tokens, the largest is {largest}", split.distinct_tokens)?;
        writeln!(text, "  fingerprint {}", split.fingerprint)?;
        if !split.most_frequent.is_empty() {
            writeln!(text, "  most frequent:")?;
        }
        for frequency in &split.most_frequent {
            let percent = 100.0 * frequency.count as f64 / split.tokens as f64;
            let shown = frequency.text.as_ref().map(|text| format!("  {text:?}")).unwrap_or_default();
            writeln!(text, "    {:>8}  {:>12}  {percent:5.2} %{shown}", frequency.token, frequency.count)?;
        }
        match &split.sample {
            Some(sample) => writeln!(text, "  starts with: {sample:?}")?,
            None => writeln!(text, "  starts with: {:?}", split.sample_ids)?,
        }
    }
    print(&text)
}

fn verify_command(arguments: &VerifyArguments, as_json: bool) -> anyhow::Result<ExitCode> {
    if LabelledSet::is_folder_of(&arguments.path) {
        return labelled::verify_command(&arguments.path, arguments.vocab_size, as_json);
    }
    let report = verify::verify(&arguments.path, format_of(arguments.raw_u16), arguments.vocab_size)?;
    let is_good = report.findings.is_empty();
    let code = if as_json {
        print_json(&report)?
    } else {
        let mut text = String::new();
        for finding in &report.findings {
            writeln!(text, "{finding}")?;
        }
        let ids = match report.vocabulary {
            Some(vocabulary) => format!("ids checked against {vocabulary}"),
            None => "ids not checked (no tokenizer beside them; pass --vocab-size)".into(),
        };
        let outcome = if is_good { "good".into() } else { counted(report.findings.len(), "finding") };
        let shards = counted(report.shards, "shard");
        writeln!(text, "{}: {shards}, {} tokens, {ids}: {outcome}", report.path, report.tokens)?;
        print(&text)?
    };
    Ok(if is_good { code } else { ExitCode::from(1) })
}

fn format_of(raw_u16: bool) -> Format {
    if raw_u16 { Format::RawU16 } else { Format::Shard }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn print_json(value: &impl Serialize) -> anyhow::Result<ExitCode> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

/// Writes to standard output. A reader that went away early (`| head`) has what it wanted.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            anyhow::bail!("cannot write to standard output: {}", plainly(&error))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Progress on standard error: a bar on a terminal, now and then a line elsewhere.
struct ProgressReport {
    what: &'static str,
    bar: Option<ProgressBar>,
    start: Instant,
    last_line: Mutex<Instant>,
}

impl ProgressReport {
    fn new(what: &'static str) -> Self {
        let template = "{msg} {bar:30} {bytes} of {total_bytes}, {binary_bytes_per_sec}, ETA {eta}";
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style).with_message(what)
        });
        Self { what, bar, start: Instant::now(), last_line: Mutex::new(Instant::now()) }
    }

    fn show(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            if done >= total && self.what == "counting words" {
                bar.set_message("merging (the bar stays full)");
            }
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if last.elapsed() < LINE_EVERY || done == 0 {
            return;
        }
        *last = Instant::now();
        let seconds = self.start.elapsed().as_secs_f64();
        let rest = Duration::from_secs_f64(seconds * total.saturating_sub(done) as f64 / done as f64);
        eprintln!(
            "{} {} of {}, {}/s, ETA {}",
            self.what,
            HumanBytes(done),
            HumanBytes(total),
            HumanBytes((done as f64 / seconds) as u64),
            HumanDuration(rest)
        );
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
