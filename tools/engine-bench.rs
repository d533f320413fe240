//! `engine-bench`: measure training steps and single operations, alone or in turns with PyTorch.

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::cpu::Cpu;
use engine::model::LossOptions;
use engine::ops::Device;
use engine::profile::machine::{Peaks, processor_name};
use engine::profile::pytorch::{Partner, TRAIN_STEP};
use engine::profile::timing::{median, minimum, pause, seconds};
use engine::profile::training::{Shape, TrainingStep};
use engine::train::config::{self, Config, DeviceKind};
use engine::train::memory::{available_bytes, human_bytes, peak_resident_bytes};
use engine::util::atomic_file::write_atomically;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  engine-bench train --layers 4 --heads 4 --channels 128 --vocab 65 --batch 12 --time 64
  engine-bench train --layers 6 --heads 6 --channels 384 --vocab 65 --batch 12 --time 256 --compare pytorch
  engine-bench train --json step.json                 the shape of GPT-2 124M, 4 sequences of 64 tokens
  ENGINE_SIMD=avx2 engine-bench train --threads 1     one thread, without AVX-512

Percentages are of the peak that this machine showed in the same run. With --compare pytorch both sides take turns;
ENGINE_PYTHON names the Python that has PyTorch (default python3).

Exit codes: 0 done, 1 failed, 2 bad usage.";

/// Measure training steps and single operations, alone or in turns with PyTorch.
#[derive(Parser)]
#[command(name = "engine-bench", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time whole training steps of a GPT-2 shape: forward, backward, clip, AdamW.
    Train(Train),
}

/// What to compute on, what to compare with, where the figures go.
#[derive(Args)]
struct Common {
    /// auto, cpu, cuda, cuda:N or emulator.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device)]
    device: DeviceKind,
    /// Threads, PyTorch's too; all cores where it is not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Take turns with this in the same run.
    #[arg(long, value_name = "WHAT")]
    compare: Option<Reference>,
    /// Write the figures to a file as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reference {
    Pytorch,
}

#[derive(Args)]
struct Train {
    /// Transformer blocks.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    layers: u32,
    /// Attention heads; have to divide the channels.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    heads: u32,
    /// Width of the residual stream.
    #[arg(long, value_name = "N", default_value_t = 768, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    channels: u32,
    /// Number of token ids.
    #[arg(long, value_name = "N", default_value_t = 50_257, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    vocab: u32,
    /// Sequences of a step.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    time: u32,
    /// Steps that are timed.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// Steps before them that are not.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: u32,
    /// Number format of the computation.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
    /// Compute activations again in the backward pass instead of keeping them.
    #[arg(long)]
    recompute: bool,
    /// Rows of logits that exist at once; as the trainer does it where it is not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk_rows: Option<u32>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

fn parse_device(text: &str) -> Result<DeviceKind, String> {
    DeviceKind::try_from(text.to_owned()).map_err(|error| format!("{error}: use auto, cpu, cuda, cuda:N or emulator"))
}

/// A failure and the exit code that belongs to it.
struct Failure {
    code: u8,
    error: anyhow::Error,
}

/// Bad usage.
fn usage(message: String) -> Failure {
    Failure { code: 2, error: anyhow::Error::msg(message) }
}

/// Anything else.
fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure { code: 1, error: error.into() }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Train(arguments) => train(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            // One line, whatever the error holds.
            eprintln!("engine-bench: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::from(code)
        }
    }
}

fn open_device(common: &Common) -> Result<Arc<Device>, Failure> {
    let settings =
        config::Device { kind: common.device, threads: usize::from(common.threads.unwrap_or(0)), ..Default::default() };
    Ok(engine::train::device::open(&settings).map_err(failed)?.device)
}

/// What the figures were measured on.
fn machine_facts(cpu: &Cpu) -> Value {
    json!({ "cpu": processor_name(), "simd": cpu.level().name(), "threads": cpu.pool().threads() })
}

fn write_json(path: Option<&Path>, value: &Value) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    write_atomically(path, |file| writeln!(file, "{value:#}")).context("--json").map_err(failed)
}

fn train(arguments: &Train) -> Result<(), Failure> {
    if arguments.dtype == Dtype::Bf16 {
        return Err(usage("--dtype bf16: the CPU computes f32 only; use --dtype f32".to_owned()));
    }
    let shape = Shape {
        layers: arguments.layers as usize,
        heads: arguments.heads as usize,
        channels: arguments.channels as usize,
        vocabulary: arguments.vocab as usize,
        batch: arguments.batch as usize,
        time: arguments.time as usize,
    };
    if !shape.channels.is_multiple_of(shape.heads) {
        let (heads, channels) = (shape.heads, shape.channels);
        return Err(usage(format!("--heads {heads} does not divide --channels {channels}; choose a divisor")));
    }
    let device = open_device(&arguments.common)?;
    let Device::Cpu(cpu) = &*device;
    let chunk_rows = arguments.chunk_rows.map_or(Config::default().train.chunk_rows, |rows| rows as usize);
    let options = LossOptions { recompute: arguments.recompute, chunk_rows: Some(chunk_rows) };
    let memory = TrainingStep::memory(&shape, options, &device).map_err(failed)?;
    let available = available_bytes().unwrap_or(u64::MAX);
    if memory.total_bytes() > available {
        return Err(failed(anyhow::anyhow!(
            "the step needs {} of memory, but only {} are available: lower --batch, --time or --layers, or add \
             --recompute",
            human_bytes(memory.total_bytes()),
            human_bytes(available)
        )));
    }

    let mut peaks = Peaks::default();
    peaks.measure_flops(cpu);
    let mut step = TrainingStep::new(&shape, options, &device).map_err(failed)?;
    let mut first_loss = None;
    for _ in 0..arguments.warmup {
        let loss = step.run().map_err(failed)?;
        first_loss.get_or_insert(loss);
    }
    let mut partner = match arguments.common.compare {
        Some(Reference::Pytorch) => Some(start_partner(arguments, cpu)?),
        None => None,
    };
    let times = take_turns(&mut step, partner.as_mut(), arguments.steps as usize)?;
    let resident_bytes = peak_resident_bytes();
    let pytorch_resident_bytes = partner.as_ref().and_then(Partner::peak_resident_bytes);
    drop(partner);
    peaks.measure_flops(cpu);

    let median_seconds = median(&times.ours);
    let flops_per_token = step.model().flops_per_token(shape.time);
    let tokens_per_second = shape.tokens() as f64 / median_seconds;
    let flops_per_second = tokens_per_second * flops_per_token;
    let percent_of_peak = 100.0 * flops_per_second / peaks.flops_per_second;
    let memory_bytes = memory.total_bytes();
    let resident_over_table = resident_bytes.map(|bytes| bytes as f64 / memory_bytes as f64);

    println!("machine  {}, {} threads, {}", processor_name(), cpu.pool().threads(), cpu.level().name());
    println!(
        "model    {} layers, {} heads, {} channels, vocabulary {}: {:.2} M parameters",
        shape.layers,
        shape.heads,
        shape.channels,
        shape.vocabulary,
        step.parameter_count() as f64 / 1e6
    );
    let recompute = if arguments.recompute { ", recomputed activations" } else { "" };
    println!("batch    {} x {} tokens, f32{recompute}, {} steps", shape.batch, shape.time, arguments.steps);
    println!("step     {:.2} ms median, {:.2} ms least", 1e3 * median_seconds, 1e3 * minimum(&times.ours));
    println!("speed    {tokens_per_second:.0} tokens/s, {:.1} GFLOP/s", flops_per_second / 1e9);
    println!(
        "peak     {:.1} GFLOP/s measured in this run, of which {percent_of_peak:.1} %",
        peaks.flops_per_second / 1e9
    );
    if let (Some(bytes), Some(ratio)) = (resident_bytes, resident_over_table) {
        let (resident, table) = (human_bytes(bytes), human_bytes(memory_bytes));
        println!("memory   {resident} resident at most, {table} by the table: {ratio:.3}");
    }
    let pytorch = times.theirs.as_ref().map(|theirs| {
        let theirs_median = median(theirs);
        let ratio = median_seconds / theirs_median;
        println!("PyTorch  {:.2} ms median, {:.2} ms least", 1e3 * theirs_median, 1e3 * minimum(theirs));
        if let Some(bytes) = pytorch_resident_bytes {
            println!("         {} resident at most", human_bytes(bytes));
        }
        println!("ratio    {ratio:.3} of PyTorch's time");
        json!({
            "step_seconds_median": theirs_median,
            "step_seconds_min": minimum(theirs),
            "step_seconds": theirs,
            "percent_of_peak": percent_of_peak * ratio,
            "peak_resident_bytes": pytorch_resident_bytes,
            "ratio": ratio,
        })
    });

    let value = json!({
        "step_seconds_median": median_seconds,
        "step_seconds_min": minimum(&times.ours),
        "step_seconds": times.ours,
        "tokens_per_second": tokens_per_second,
        "flops_per_second": flops_per_second,
        "flops_per_token": flops_per_token,
        "peak_flops_per_second": peaks.flops_per_second,
        "percent_of_peak": percent_of_peak,
        "peak_resident_bytes": resident_bytes,
        "memory_table_bytes": memory_bytes,
        "resident_over_table": resident_over_table,
        "memory_table": memory.rows().iter().map(|(name, bytes)| json!([name, bytes])).collect::<Vec<_>>(),
        "parameters": step.parameter_count(),
        "shape": {
            "layers": shape.layers,
            "heads": shape.heads,
            "channels": shape.channels,
            "vocab": shape.vocabulary,
            "batch": shape.batch,
            "time": shape.time,
        },
        "dtype": "f32",
        "recompute": arguments.recompute,
        "chunk_rows": chunk_rows,
        "loss_first": first_loss.unwrap_or(times.first_loss),
        "loss_last": times.last_loss,
        "machine": machine_facts(cpu),
        "pytorch": pytorch,
    });
    write_json(arguments.common.json.as_deref(), &value)
}

fn start_partner(arguments: &Train, cpu: &Cpu) -> Result<Partner, Failure> {
    let options = [
        ("--layers", arguments.layers),
        ("--heads", arguments.heads),
        ("--channels", arguments.channels),
        ("--vocab", arguments.vocab),
        ("--batch", arguments.batch),
        ("--time", arguments.time),
        ("--warmup", arguments.warmup),
        ("--threads", cpu.pool().threads() as u32),
    ];
    let mut words: Vec<String> = options.iter().flat_map(|(name, value)| [(*name).into(), value.to_string()]).collect();
    words.push("--serve".into());
    Partner::start(&TRAIN_STEP, &words).map_err(failed)
}

/// What the steps took.
struct Times {
    ours: Vec<f64>,
    theirs: Option<Vec<f64>>,
    first_loss: f64,
    last_loss: f64,
}

/// Steps shorter than this follow an untimed one in a comparison: the other side's turn has emptied the caches, which
/// would weigh on a short step, and which does not happen to steps that follow each other.
const SHORT_STEP_SECONDS: f64 = 0.1;

/// Times `steps` steps of each side, in turns.
fn take_turns(step: &mut TrainingStep, mut partner: Option<&mut Partner>, steps: usize) -> Result<Times, Failure> {
    let (mut ours, mut theirs) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    let (mut first_loss, mut last_loss) = (f64::NAN, f64::NAN);
    for index in 0..steps {
        if let Some(partner) = &mut partner {
            let mut last = partner.seconds("go").map_err(failed)?;
            if last < SHORT_STEP_SECONDS {
                last = partner.seconds("go").map_err(failed)?;
            }
            theirs.push(last);
            pause();
            if ours.last().is_none_or(|&seconds| seconds < SHORT_STEP_SECONDS) {
                step.run().map_err(failed)?;
            }
        }
        ours.push(seconds(|| step.run().map(|loss| last_loss = loss)).map_err(failed)?);
        if index == 0 {
            first_loss = last_loss;
        }
        if partner.is_some() {
            pause();
        }
    }
    Ok(Times { ours, theirs: partner.is_some().then_some(theirs), first_loss, last_loss })
}
