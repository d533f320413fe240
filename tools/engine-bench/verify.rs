//! `engine-bench verify`: all checks and benches on a real GPU, into a results file.

use super::sanitize::select;
use super::{Failure, failed, kernels, machine, print, progress, quietly, usage};
use clap::Args;
use engine::cpu::Cpu;
use engine::gpu::checks::Check;
use engine::model::LossOptions;
use engine::ops::Device;
use engine::profile::cases;
use engine::profile::machine::Peaks;
use engine::profile::table::Table;
use engine::profile::training::{Shape, TrainingStep};
use engine::train::config::{self, DeviceKind};
use engine::train::run_folder::today;
use engine::util::atomic_file::write_atomically;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Run all kernel checks, a training run and the benches on a GPU; write the results to a file.
///
/// The first thing to do with a GPU at hand. Checks hold every kernel against f64 references; the training run must
/// follow the CPU's losses within 1e-4; the benches time every operation against the GPU's own peaks. With --device
/// emulator the same runs without a GPU, slowly, and its times say nothing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  engine-bench verify --device cuda
  engine-bench verify --device cuda:1 --out results
  engine-bench verify --device emulator --quick --filter add")]
pub(crate) struct Arguments {
    /// cuda, cuda:N or emulator.
    #[arg(long, value_name = "DEVICE", default_value = "cuda", value_parser = super::parse_device)]
    device: DeviceKind,
    /// Folder for the results: DATE-DEVICE.md and .json.
    #[arg(long, value_name = "FOLDER", default_value = "benches/results")]
    out: PathBuf,
    /// Only checks whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Without the benches.
    #[arg(long)]
    quick: bool,
}

/// A model that an emulator trains in seconds.
const MODEL: Shape = Shape { layers: 2, heads: 2, channels: 64, vocabulary: 65, batch: 4, time: 64 };
const STEPS: usize = 30;
/// How far a loss may be from the CPU's.
const TOLERANCE: f64 = 1e-4;

/// What came out of a check.
struct Checked {
    name: &'static str,
    seconds: f64,
    failure: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if !matches!(arguments.device, DeviceKind::Cuda(_) | DeviceKind::Emulator) {
        return Err(usage(format!(
            "--device {}: verify checks GPU kernels; use cuda, cuda:N or emulator",
            arguments.device
        )));
    }
    let list = select(&arguments.filter)?;
    let device = open(arguments.device)?;
    let (line, facts) = machine(&device);
    print(format!("{line}\n").as_bytes())?;

    let (checked, device) = check(&list, arguments.device, device)?;
    let wrong: Vec<&Checked> = checked.iter().filter(|check| check.failure.is_some()).collect();
    for check in &wrong {
        let message = check.failure.as_deref().unwrap_or_default().replace('\n', " ");
        print(format!("FAILED   {}: {message}\n", check.name).as_bytes())?;
    }
    print(format!("checks   {} of {} hold\n", checked.len() - wrong.len(), checked.len()).as_bytes())?;

    progress("training");
    let (worst, losses) = train(&device)?;
    progress("");
    let follows = worst <= TOLERANCE;
    let verdict = if follows { "follows" } else { "DOES NOT FOLLOW" };
    let training = format!("{STEPS} steps of a small model: the loss {verdict} the CPU's, {worst:.1e} apart at most");
    print(format!("training {training}\n").as_bytes())?;

    let benched = if arguments.quick { None } else { Some(kernels::time(cases::all(), &device, None)?) };
    let tabled = benched.as_ref().map(|(results, peaks)| (kernels::table(results, peaks, false), peaks));
    if let Some((table, _)) = &tabled {
        print(format!("\n{table}\n").as_bytes())?;
    }

    let name = format!("{}-{}", today(), file_name(&device));
    let markdown = markdown(&line, &checked, &training, tabled.as_ref());
    let value = json!({
        "machine": facts,
        "checks": checked.iter().map(Checked::to_json).collect::<Vec<_>>(),
        "training": { "losses": losses, "worst_relative_difference": worst },
        "kernels": benched.as_ref().map(|(results, peaks)| kernels::results_json(results, peaks)),
    });
    std::fs::create_dir_all(&arguments.out)
        .map_err(|error| failed(format!("--out {}: {error}", arguments.out.display())))?;
    let path = arguments.out.join(name);
    for (path, text) in [(path.with_extension("md"), markdown), (path.with_extension("json"), format!("{value:#}\n"))] {
        write_atomically(&path, |file| file.write_all(text.as_bytes())).map_err(failed)?;
        print(format!("written  {}\n", path.display()).as_bytes())?;
    }
    match (wrong.len(), follows) {
        (0, true) => Ok(()),
        (wrong, _) => Err(failed(format!("{wrong} checks failed, and the training run {verdict} the CPU"))),
    }
}

fn open(kind: DeviceKind) -> Result<Arc<Device>, Failure> {
    let settings = config::Device { kind, ..config::Device::default() };
    Ok(engine::train::device::open(&settings).map_err(failed)?.device)
}

/// Runs the checks, on a new device after one that failed: it may be lost. Returns the last one.
fn check(
    list: &[&'static Check],
    kind: DeviceKind,
    mut device: Arc<Device>,
) -> Result<(Vec<Checked>, Arc<Device>), Failure> {
    let mut checked = Vec::with_capacity(list.len());
    quietly(|| -> Result<(), Failure> {
        for (index, check) in list.iter().enumerate() {
            progress(&format!("check {} of {}: {}", index + 1, list.len(), check.name));
            let start = Instant::now();
            let failure = check.run(&device).err();
            if failure.is_some() {
                device = open(kind)?;
            }
            checked.push(Checked { name: check.name, seconds: start.elapsed().as_secs_f64(), failure });
        }
        Ok(())
    })?;
    progress("");
    Ok((checked, device))
}

/// Trains on the device and on the CPU: the largest relative difference of a loss, and the device's losses.
fn train(device: &Arc<Device>) -> Result<(f64, Vec<f64>), Failure> {
    let cpu = Arc::new(Device::Cpu(Cpu::new().map_err(failed)?));
    let losses = |device: &Arc<Device>| -> Result<Vec<f64>, Failure> {
        let mut step = TrainingStep::new(&MODEL, LossOptions::default(), device).map_err(failed)?;
        (0..STEPS).map(|_| step.run().map_err(failed)).collect()
    };
    let (found, expected) = (losses(device)?, losses(&cpu)?);
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / b);
    Ok((differences.fold(0.0, f64::max), found))
}

impl Checked {
    fn to_json(&self) -> Value {
        json!({ "name": self.name, "seconds": self.seconds, "failure": self.failure })
    }
}

/// The results for a person.
fn markdown(machine: &str, checked: &[Checked], training: &str, benched: Option<&(Table, &Peaks)>) -> String {
    let mut text = format!("# engine-bench verify, {}\n\n{machine}\n\n## Checks\n\n", today());
    for Checked { name, seconds, failure } in checked {
        let outcome = failure.as_ref().map_or_else(|| "holds".to_owned(), |message| format!("**failed**: {message}"));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "- {name}: {outcome} ({seconds:.2} s)");
    }
    let _ = write!(text, "\n## Training\n\n{training}\n");
    if let Some((table, peaks)) = benched {
        let _ = write!(
            text,
            "\n## Kernels\n\npeak: {:.0} GFLOP/s of f32 multiply-adds, {:.0} GB/s read, {:.0} GB/s copied\n\n```\n{table}\n```\n",
            peaks.flops_per_second / 1e9,
            peaks.read_bytes_per_second / 1e9,
            peaks.copy_bytes_per_second / 1e9
        );
    }
    text
}

/// The device's name as part of a file name.
fn file_name(device: &Device) -> String {
    let Device::Gpu(gpu) = device else { return "cpu".to_owned() };
    let words = gpu.facts().name.to_lowercase();
    let words = words.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}
