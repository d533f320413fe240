//! `engine-bench train`: whole training steps of a GPT-2 shape.

use super::{Common, Failure, Reference, failed, machine, threads_for_pytorch, usage};
use clap::{Args, ValueEnum, value_parser};
use engine::model::LossOptions;
use engine::ops::Device;
use engine::profile::machine::Peaks;
use engine::profile::pytorch::{Partner, TRAIN_STEP};
use engine::profile::timing::{median, minimum, pause, seconds};
use engine::profile::training::{Shape, TrainingStep};
use engine::train::config::Config;
use engine::train::memory::{MemoryTable, available_bytes_of, human_bytes, peak_resident_bytes};
use serde_json::{Value, json};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Transformer blocks.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = value_parser!(u32).range(1..=10_000))]
    layers: u32,
    /// Attention heads; have to divide the channels.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = value_parser!(u32).range(1..=10_000))]
    heads: u32,
    /// Width of the residual stream.
    #[arg(long, value_name = "N", default_value_t = 768, value_parser = value_parser!(u32).range(1..=100_000))]
    channels: u32,
    /// Number of token ids.
    #[arg(long, value_name = "N", default_value_t = 50_257, value_parser = value_parser!(u32).range(1..=10_000_000))]
    vocab: u32,
    /// Sequences of a step.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=1_000_000))]
    time: u32,
    /// Steps that are timed, of each side.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// Steps before them that are not.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u32).range(0..=1_000_000))]
    warmup: u32,
    /// Number format of the computation.
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
    /// Compute activations again in the backward pass instead of keeping them.
    #[arg(long)]
    recompute: bool,
    /// Rows of logits that exist at once; the trainer's default where it is not given.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    chunk_rows: Option<u32>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

impl Arguments {
    fn shape(&self) -> Shape {
        Shape {
            layers: self.layers as usize,
            heads: self.heads as usize,
            channels: self.channels as usize,
            vocabulary: self.vocab as usize,
            batch: self.batch as usize,
            time: self.time as usize,
        }
    }

    fn loss_options(&self) -> LossOptions {
        let chunk_rows = self.chunk_rows.map_or(Config::default().train.chunk_rows, |rows| rows as usize);
        LossOptions { recompute: self.recompute, chunk_rows: Some(chunk_rows), ..LossOptions::default() }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.dtype == Dtype::Bf16 {
        return Err(usage("--dtype bf16: kernels and CPU compute f32 only; use --dtype f32"));
    }
    let (shape, options) = (arguments.shape(), arguments.loss_options());
    if !shape.channels.is_multiple_of(shape.heads) {
        let (heads, channels) = (shape.heads, shape.channels);
        return Err(usage(format!("--heads {heads} does not divide --channels {channels}; choose a divisor")));
    }
    let device = arguments.common.open_device()?;
    let memory = TrainingStep::memory(&shape, options, &device).map_err(failed)?;
    check_memory(&memory, &device)?;

    let mut peaks = Peaks::default();
    peaks.measure_flops(&device).map_err(failed)?;
    let mut step = TrainingStep::new(&shape, options, &device).map_err(failed)?;
    let mut losses = Vec::new();
    for _ in 0..arguments.warmup {
        losses.push(step.run().map_err(failed)?);
    }
    let mut partner = match arguments.common.compare {
        Some(Reference::Pytorch) => Some(start_partner(arguments, threads_for_pytorch(&device)?)?),
        None => None,
    };
    let times = take_turns(&mut step, partner.as_mut(), arguments.steps as usize, &mut losses)?;
    let pytorch_resident_bytes = partner.as_ref().and_then(Partner::peak_resident_bytes);
    drop(partner);
    peaks.measure_flops(&device).map_err(failed)?;

    let figures = Figures {
        times,
        losses,
        tokens: shape.tokens(),
        flops_per_token: step.model().flops_per_token(shape.time, 1.0),
        parameters: step.parameter_count(),
        peak_flops_per_second: peaks.flops_per_second,
        memory,
        resident_bytes: peak_resident_bytes(),
        pytorch_resident_bytes,
    };
    let (line, facts) = machine(&device);
    println!("{line}");
    figures.print(arguments);
    arguments.common.write_json(&figures.json(arguments, facts))
}

fn check_memory(memory: &MemoryTable, device: &Device) -> Result<(), Failure> {
    let (needed, available) = (memory.total_bytes(), available_bytes_of(device).unwrap_or(u64::MAX));
    if needed <= available {
        return Ok(());
    }
    Err(failed(format!(
        "the step needs {} of memory, but only {} are available: lower --batch, --time or --layers, or add --recompute",
        human_bytes(needed),
        human_bytes(available)
    )))
}

fn start_partner(arguments: &Arguments, threads: usize) -> Result<Partner, Failure> {
    let options = [
        ("--layers", arguments.layers),
        ("--heads", arguments.heads),
        ("--channels", arguments.channels),
        ("--vocab", arguments.vocab),
        ("--batch", arguments.batch),
        ("--time", arguments.time),
        ("--warmup", arguments.warmup),
        ("--threads", threads as u32),
    ];
    let mut words: Vec<String> = options.iter().flat_map(|(name, value)| [(*name).into(), value.to_string()]).collect();
    words.push("--serve".into());
    Partner::start(&TRAIN_STEP, &words).map_err(failed)
}

/// Seconds of each timed step.
struct Times {
    ours: Vec<f64>,
    theirs: Option<Vec<f64>>,
}

/// Steps shorter than this follow an untimed one in a comparison: the other side's turn has emptied the caches, which
/// would weigh on a short step, and which does not happen to steps that follow each other.
const SHORT_STEP_SECONDS: f64 = 0.1;

/// Times `steps` steps of each side, in turns.
fn take_turns(
    step: &mut TrainingStep,
    mut partner: Option<&mut Partner>,
    steps: usize,
    losses: &mut Vec<f64>,
) -> Result<Times, Failure> {
    let (mut ours, mut theirs) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    for _ in 0..steps {
        if let Some(partner) = &mut partner {
            let mut answer = partner.seconds("go").map_err(failed)?;
            if answer[0] < SHORT_STEP_SECONDS {
                answer = partner.seconds("go").map_err(failed)?;
            }
            theirs.push(answer[0]);
            pause();
            if ours.last().is_none_or(|&seconds| seconds < SHORT_STEP_SECONDS) {
                losses.push(step.run().map_err(failed)?);
            }
        }
        ours.push(seconds(|| step.run().map(|loss| losses.push(loss))).map_err(failed)?);
        if partner.is_some() {
            pause();
        }
    }
    Ok(Times { ours, theirs: partner.is_some().then_some(theirs) })
}

/// All that was measured.
struct Figures {
    times: Times,
    losses: Vec<f64>,
    /// Tokens of a step.
    tokens: usize,
    flops_per_token: f64,
    parameters: usize,
    peak_flops_per_second: f64,
    memory: MemoryTable,
    resident_bytes: Option<u64>,
    pytorch_resident_bytes: Option<u64>,
}

impl Figures {
    fn flops_per_second(&self, step_seconds: f64) -> f64 {
        self.tokens as f64 * self.flops_per_token / step_seconds
    }

    fn percent_of_peak(&self, step_seconds: f64) -> f64 {
        100.0 * self.flops_per_second(step_seconds) / self.peak_flops_per_second
    }

    /// Peak resident memory for each byte of the table.
    fn resident_over_table(&self) -> Option<f64> {
        self.resident_bytes.map(|bytes| bytes as f64 / self.memory.total_bytes() as f64)
    }

    fn print(&self, arguments: &Arguments) {
        let (ours, recompute) = (&self.times.ours, if arguments.recompute { ", recomputed activations" } else { "" });
        let seconds = median(ours);
        println!(
            "model    {} layers, {} heads, {} channels, vocabulary {}: {:.2} M parameters",
            arguments.layers,
            arguments.heads,
            arguments.channels,
            arguments.vocab,
            self.parameters as f64 / 1e6
        );
        println!("batch    {} x {} tokens, f32{recompute}", arguments.batch, arguments.time);
        println!(
            "step     {:.2} ms, median of {}; least {:.2} ms",
            1e3 * seconds,
            arguments.steps,
            1e3 * minimum(ours)
        );
        println!(
            "speed    {:.0} tokens/s, {:.1} GFLOP/s: {:.1} % of the {:.1} GFLOP/s measured in this run",
            self.tokens as f64 / seconds,
            self.flops_per_second(seconds) / 1e9,
            self.percent_of_peak(seconds),
            self.peak_flops_per_second / 1e9
        );
        if let (Some(bytes), Some(ratio)) = (self.resident_bytes, self.resident_over_table()) {
            let (resident, table) = (human_bytes(bytes), human_bytes(self.memory.total_bytes()));
            println!("memory   {resident} resident at most, {ratio:.3} of the {table} planned");
        }
        if let Some(theirs) = &self.times.theirs {
            let resident = self
                .pytorch_resident_bytes
                .map_or(String::new(), |bytes| format!(", {} resident at most", human_bytes(bytes)));
            println!(
                "PyTorch  {:.2} ms, least {:.2} ms, {:.1} % of the peak{resident}",
                1e3 * median(theirs),
                1e3 * minimum(theirs),
                self.percent_of_peak(median(theirs))
            );
            println!("ratio    {:.3} of PyTorch's time", seconds / median(theirs));
        }
    }

    fn json(&self, arguments: &Arguments, machine: Value) -> Value {
        let ours = &self.times.ours;
        let seconds = median(ours);
        let pytorch = self.times.theirs.as_ref().map(|theirs| {
            json!({
                "step_seconds_median": median(theirs),
                "step_seconds_min": minimum(theirs),
                "step_seconds": theirs,
                "percent_of_peak": self.percent_of_peak(median(theirs)),
                "peak_resident_bytes": self.pytorch_resident_bytes,
                "ratio": seconds / median(theirs),
            })
        });
        let memory: serde_json::Map<String, Value> =
            self.memory.rows().iter().map(|(name, bytes)| (name.clone(), json!(bytes))).collect();
        json!({
            "step_seconds_median": seconds,
            "step_seconds_min": minimum(ours),
            "step_seconds": ours,
            "tokens_per_second": self.tokens as f64 / seconds,
            "flops_per_second": self.flops_per_second(seconds),
            "flops_per_token": self.flops_per_token,
            "peak_flops_per_second": self.peak_flops_per_second,
            "percent_of_peak": self.percent_of_peak(seconds),
            "memory_bytes": memory,
            "memory_total_bytes": self.memory.total_bytes(),
            "peak_resident_bytes": self.resident_bytes,
            "resident_over_table": self.resident_over_table(),
            "parameters": self.parameters,
            "loss_first": self.losses.first(),
            "loss_last": self.losses.last(),
            "shape": {
                "layers": arguments.layers,
                "heads": arguments.heads,
                "channels": arguments.channels,
                "vocab": arguments.vocab,
                "batch": arguments.batch,
                "time": arguments.time,
            },
            "dtype": "f32",
            "recompute": arguments.recompute,
            "machine": machine,
            "pytorch": pytorch,
        })
    }
}
