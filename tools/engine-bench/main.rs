//! `engine-bench`: measure training steps and single operations, alone or in turns with PyTorch; run any PTX kernel.

mod kernels;
mod launch;
mod roofline;
mod sanitize;
mod train;
mod verify;

use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::ops::Device;
use engine::profile::machine::processor_name;
use engine::train::config::{self, DeviceKind};
use engine::util::atomic_file::write_atomically;
use serde_json::{Value, json};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  engine-bench train --layers 4 --heads 4 --channels 128 --vocab 65 --batch 12 --time 64
  engine-bench train --layers 6 --heads 6 --channels 384 --vocab 65 --batch 12 --time 256 --compare pytorch
  engine-bench train --json step.json                 GPT-2 124M, 4 sequences of 64 tokens
  engine-bench kernels                                every operation, against the machine's peak
  engine-bench kernels --filter attention --compare pytorch
  ENGINE_SIMD=avx2 engine-bench kernels --threads 1   one thread, without AVX-512
  engine-bench launch --help                          how to run a kernel of any PTX file, without a GPU
  engine-bench roofline launch.json --profile A100    what it could reach on one
  engine-bench kernels --device emulator --filter layer_norm --profile A100
  engine-bench sanitize                               all kernels under the sanitizer, without a GPU
  engine-bench verify --device cuda                   all checks and benches on a real GPU, into a results file

Percentages are of the peak that this machine showed in the same run. With --compare pytorch both sides take turns
in one run and medians are compared; ENGINE_PYTHON names the Python that has PyTorch (default python3).

Exit codes: 0 done, 1 failed, 2 bad usage.";

/// Measure training steps and single operations, alone or in turns with PyTorch; run, check and profile PTX kernels.
#[derive(Parser)]
#[command(name = "engine-bench", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time whole training steps of a GPT-2 shape: forward, backward, clip, AdamW.
    Train(train::Arguments),
    /// Time single operations: milliseconds, rate, percent of the machine's peak.
    Kernels(kernels::Arguments),
    Launch(launch::Arguments),
    Roofline(roofline::Arguments),
    Sanitize(sanitize::Arguments),
    Verify(verify::Arguments),
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

/// What to compare with.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reference {
    Pytorch,
}

fn parse_device(text: &str) -> Result<DeviceKind, String> {
    DeviceKind::try_from(text.to_owned()).map_err(|error| format!("{error}: use auto, cpu, cuda, cuda:N or emulator"))
}

/// A failure and the exit code that belongs to it.
struct Failure {
    code: u8,
    message: String,
}

/// Bad usage.
fn usage(message: impl Display) -> Failure {
    Failure { code: 2, message: message.to_string() }
}

/// Anything else.
fn failed(message: impl Display) -> Failure {
    Failure { code: 1, message: message.to_string() }
}

impl Common {
    fn open_device(&self) -> Result<Arc<Device>, Failure> {
        let threads = usize::from(self.threads.unwrap_or(0));
        let settings = config::Device { kind: self.device, threads };
        Ok(engine::train::device::open(&settings).map_err(failed)?.device)
    }

    fn write_json(&self, value: &Value) -> Result<(), Failure> {
        let Some(path) = &self.json else { return Ok(()) };
        write_atomically(path, |file| writeln!(file, "{value:#}")).map_err(|error| failed(format!("--json: {error}")))
    }
}

/// What the figures are measured on, in a line and in JSON.
fn machine(device: &Device) -> (String, Value) {
    let name = processor_name();
    match device {
        Device::Cpu(cpu) => {
            let (threads, simd) = (cpu.pool().threads(), cpu.level().name());
            let plural = if threads == 1 { "" } else { "s" };
            let line = format!("machine  {name}, {threads} thread{plural}, {simd}");
            (line, json!({ "cpu": name, "threads": threads, "simd": simd }))
        }
        Device::Gpu(gpu) => {
            let facts = gpu.facts();
            let kind = if gpu.is_emulated() { ", executed by this machine's processor" } else { "" };
            let line = format!("machine  {}, {} multiprocessors{kind}, {name}", facts.name, facts.multiprocessors);
            let gpu = json!({ "name": facts.name, "architecture": facts.architecture, "emulated": gpu.is_emulated() });
            (line, json!({ "cpu": name, "gpu": gpu }))
        }
    }
}

/// PyTorch computes on the CPU here, so it is only compared with the CPU.
fn threads_for_pytorch(device: &Device) -> Result<usize, Failure> {
    match device {
        Device::Cpu(cpu) => Ok(cpu.pool().threads()),
        Device::Gpu(_) => Err(usage("--compare pytorch times PyTorch on the CPU; use --device cpu")),
    }
}

/// Prints to standard output; a reader that went away (`| head`) has seen enough, which is no failure.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Shows on a terminal what is being done; the empty text clears the line.
fn progress(text: &str) {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        // A terminal that cannot be written to loses the progress line, which is no reason to stop.
        let _ = write!(terminal, "\r\x1b[K{text}").and_then(|()| terminal.flush());
    }
}

/// Runs `work` without the text that a panic prints: a check that fails is reported by who runs it.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = work();
    std::panic::set_hook(hook);
    result
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Train(arguments) => train::run(&arguments),
        Command::Kernels(arguments) => kernels::run(&arguments),
        Command::Launch(arguments) => launch::run(&arguments),
        Command::Roofline(arguments) => roofline::run(&arguments),
        Command::Sanitize(arguments) => sanitize::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // One line, whatever the message holds.
            eprintln!("engine-bench: {}", message.replace('\n', " "));
            ExitCode::from(code)
        }
    }
}
