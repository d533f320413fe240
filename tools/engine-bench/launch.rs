//! `engine-bench launch`: run a kernel of any PTX file, count what it does, and check it.

use super::{Failure, failed, usage};
use clap::{Args, ValueHint, value_parser};
use engine::driver::emulator::LaunchConfig;
use engine::profile::gpus::Gpu;
use engine::profile::launch::{Argument, DeviceKind, Launch, LaunchError, Options, read_ptx, report};
use engine::profile::roofline::{Roofline, Work};
use engine::profile::roofline_plot::roofline_svg;
use engine::util::atomic_file::{AtomicFile, WriteError};
use std::io::Write;
use std::path::{Path, PathBuf};

const HELP: &str = "\
A SPEC for each parameter of the kernel, in order:
  in:FILE.npy               pointer to the elements of a file
  out:DTYPE[2,3]:FILE.npy   pointer to memory that is written to a file afterwards; filled with ones (NaN)
                            before, and under --sanitize memory that nobody wrote. Without :FILE.npy it is scratch
  inout:IN.npy:OUT.npy      both
  zeros:DTYPE[2,3]          pointer to zeros; with :FILE.npy written afterwards
  random:DTYPE[2,3]:SEED    pointer to random numbers in [-1, 1), integers from 0 to 99; the seed may be left out
  i32:5  u64:7  f32:0.5     a number of any DTYPE; integers also as 0x10
  bytes:0500803f            a structure that is passed by value, in memory order
  null                      a null pointer
DTYPE is one of u8 u16 u32 u64 i8 i16 i32 i64 f16 bf16 f32 f64 bool; bf16 is u16 in .npy files.
Quote SPECs with brackets: shells read those as patterns.

Examples, from the root of the repository:
  engine-bench launch tests/emulator/programs.ptx --entry vector_add --grid 8 --block 128 \\
      --arg 'random:f32[1000]' 'random:f32[1000]:1' 'out:f32[1000]:sum.npy' i32:1000
  engine-bench launch tests/emulator/programs.ptx --entry say --grid 2 --block 32 --arg 'random:i32[2]'
  engine-bench launch tests/emulator/triton_softmax.ptx --grid 4 --block 128 --shared 16 --sanitize \\
      --arg 'random:f32[4,200]' --arg 'out:f32[4,200]:softmax.npy' --arg i32:200 --arg null --arg null
  engine-bench launch tests/emulator/gemm.ptx --entry gemm_f32 --grid 2,2 --block 256 --profile A100 --svg gemm.svg \\
      --arg 'random:f32[128,64]' 'random:f32[64,128]' 'out:f32[128,128]' i32:128 i32:128 i32:64 --json gemm.json

The device is an emulated sm_80, or what the file or --profile asks for. Time is the emulator's, not a GPU's. With
--device cuda it is a GPU: nothing is counted or checked, and the time is the GPU's.

Exit codes: 0 done, 1 failed, stopped by a fault, or with a finding of --sanitize, 2 bad usage.";

/// Run a kernel of any PTX file, with or without a GPU: count, sanitize, profile.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    /// The PTX file.
    #[arg(value_name = "FILE.ptx", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// The kernel; may be left out where the file has only one.
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// Blocks: one to three numbers.
    #[arg(long, value_name = "X,Y,Z", value_parser = parse_size)]
    grid: [u32; 3],
    /// Threads of a block: one to three numbers.
    #[arg(long, value_name = "X,Y,Z", value_parser = parse_size)]
    block: [u32; 3],
    /// Dynamic shared memory of a block.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    shared: u32,
    /// A kernel argument; once for each parameter, or several in a row.
    #[arg(long, value_name = "SPEC", num_args = 1.., value_parser = Argument::parse)]
    arg: Vec<Argument>,
    /// emulator, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "emulator", value_parser = parse_device)]
    device: DeviceKind,
    /// Find races, reads of memory that nobody wrote, barriers that not all reach, wild accesses.
    #[arg(long)]
    sanitize: bool,
    /// Lower bounds of the time on a GPU, from the counts: A100, H100, H200, B200, RTX-4090, L4...
    #[arg(long, value_name = "GPU", value_parser = Gpu::find)]
    profile: Option<&'static Gpu>,
    /// Draw the roofline of --profile.
    #[arg(long, value_name = "FILE", requires = "profile")]
    svg: Option<PathBuf>,
    /// All blocks at once, so that they may wait for each other (grid-wide barriers).
    #[arg(long)]
    cooperative: bool,
    /// Stop after this many warp instructions: endless loops end.
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    budget: Option<u64>,
    /// Host threads of the emulator; all cores where it is not given.
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Launches that are timed, after the one that is counted.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(0..=1_000_000))]
    repeat: u32,
    /// Write counters, findings and bounds to a file as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// `4`, `4,2` or `4,2,1`.
fn parse_size(text: &str) -> Result<[u32; 3], String> {
    let wrong = || "write one to three numbers from 1, as in 4,2,1".to_owned();
    let mut size = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err(wrong());
    }
    for (axis, part) in size.iter_mut().zip(parts) {
        *axis = part.trim().parse().ok().filter(|length| *length > 0).ok_or_else(wrong)?;
    }
    Ok(size)
}

fn parse_device(text: &str) -> Result<DeviceKind, String> {
    let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    match (text, number) {
        ("emulator", _) => Ok(DeviceKind::Emulator),
        ("cuda", _) => Ok(DeviceKind::Cuda(0)),
        (_, Some(number)) => Ok(DeviceKind::Cuda(number)),
        _ => Err("use emulator, cuda or cuda:N".into()),
    }
}

impl Arguments {
    fn options(&self) -> Options {
        Options {
            device: self.device,
            config: LaunchConfig {
                grid: self.grid,
                block: self.block,
                shared_bytes: self.shared,
                is_cooperative: self.cooperative,
            },
            gpu: self.profile,
            is_sanitized: self.sanitize,
            budget: self.budget,
            threads: self.threads.map(usize::from),
            repeat: self.repeat as usize,
        }
    }
}

/// The exit code that belongs to an error.
fn failure(error: LaunchError) -> Failure {
    if error.is_usage() { usage(error) } else { failed(error) }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let file = arguments.file.display().to_string();
    let text = read_ptx(&arguments.file).map_err(failure)?;
    let launch = Launch::new(&file, text, arguments.entry.as_deref(), arguments.arg.clone(), arguments.options())
        .map_err(failure)?;
    for warning in &launch.warnings {
        eprintln!("engine-bench: note: {warning}");
    }
    // Before the launch, which may take long, as its own outputs are.
    let json = start("--json", arguments.json.as_deref())?;
    let svg = start("--svg", arguments.svg.as_deref())?;
    let outcome = launch.run().map_err(failure)?;

    let blocks = arguments.grid.iter().map(|&length| u64::from(length)).fold(1, u64::saturating_mul);
    let roofline = match (arguments.profile, &outcome.counters) {
        (Some(gpu), Some(counters)) => Some(Roofline::new(gpu, Work::new(counters, blocks))),
        _ => None,
    };
    let mut out = outcome.printed.clone();
    out.extend(report::to_text(&launch, &outcome, roofline.as_ref()).into_bytes());
    super::print(&out)?;
    finish("--json", json, || Ok(format!("{:#}\n", report::to_json(&launch, &outcome, roofline.as_ref()))))?;
    if let Some(roofline) = roofline {
        finish("--svg", svg, || roofline_svg(&[(launch.kernel().to_owned(), roofline)]))?;
    }
    match outcome.findings.map_or(0, |findings| findings.len()) {
        0 => Ok(()),
        1 => Err(failed("the sanitizer has a finding")),
        count => Err(failed(format!("the sanitizer has {count} findings"))),
    }
}

/// Starts the file of an option, where it was given.
pub(crate) fn start<'a>(option: &str, path: Option<&'a Path>) -> Result<Option<(&'a Path, AtomicFile)>, Failure> {
    let Some(path) = path else { return Ok(None) };
    Ok(Some((path, AtomicFile::create(path).map_err(|error| failed(format!("{option}: {error}")))?)))
}

/// Writes the file of an option, where it was started.
pub(crate) fn finish(
    option: &str,
    file: Option<(&Path, AtomicFile)>,
    text: impl FnOnce() -> Result<String, String>,
) -> Result<(), Failure> {
    let Some((path, mut file)) = file else { return Ok(()) };
    let text = text().map_err(|error| failed(format!("{option}: {error}")))?;
    let written = file.write_all(text.as_bytes()).map_err(|cause| WriteError { path: path.into(), cause });
    written.and_then(|()| file.commit()).map_err(|error| failed(format!("{option}: {error}")))
}
