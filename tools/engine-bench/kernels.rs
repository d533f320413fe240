//! `engine-bench kernels`: a table of single operations.

use super::{Common, Failure, Reference, failed, machine, progress, threads_for_pytorch, usage};
use clap::Args;
use engine::ops::Device;
use engine::profile::cases::{self, Case};
use engine::profile::counted::count_case;
use engine::profile::gpus;
use engine::profile::kernels::{Times, measure};
use engine::profile::machine::Peaks;
use engine::profile::pytorch::{KERNELS, Partner};
use engine::profile::table::Table;
use engine::profile::timing::{median, minimum};
use engine::train::config::DeviceKind;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only operations whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// List the operations and stop.
    #[arg(long)]
    list: bool,
    /// With --device emulator: the least time on this GPU (A100, H100, ...), by what each kernel did.
    #[arg(long, value_name = "GPU")]
    profile: Option<String>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let filter = &arguments.filter;
    let cases: Vec<Case> = cases::all().into_iter().filter(|case| case.full_name().contains(filter)).collect();
    if cases.is_empty() {
        return Err(usage(format!("--filter {filter:?} matches no operation; --list shows them all")));
    }
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.full_name()));
        return Ok(());
    }
    if arguments.common.device == DeviceKind::Emulator {
        return count(arguments, &cases);
    }
    if arguments.profile.is_some() {
        return Err(usage("--profile goes with --device emulator"));
    }
    let device = arguments.common.open_device()?;
    let mut partner = match arguments.common.compare {
        Some(Reference::Pytorch) => {
            let words = ["--serve".to_owned(), "--threads".to_owned(), threads_for_pytorch(&device)?.to_string()];
            Some(Partner::start(&KERNELS, &words).map_err(failed)?)
        }
        None => None,
    };
    let (results, peaks) = time(cases, &device, partner.as_mut())?;

    let (line, facts) = machine(&device);
    println!("{line}");
    println!(
        "peak     {:.1} GFLOP/s of multiply-adds, {:.1} GB/s read, {:.1} GB/s copied (read + written)\n",
        peaks.flops_per_second / 1e9,
        peaks.read_bytes_per_second / 1e9,
        peaks.copy_bytes_per_second / 1e9
    );
    println!("{}", table(&results, &peaks, partner.is_some()));
    let list = results_json(&results, &peaks);
    let value = json!({
        "machine": facts,
        "peak_flops_per_second": peaks.flops_per_second,
        "peak_read_bytes_per_second": peaks.read_bytes_per_second,
        "peak_copy_bytes_per_second": peaks.copy_bytes_per_second,
        "kernels": list,
    });
    arguments.common.write_json(&value)
}

/// A case and its times.
pub(crate) type Timed = (Case, Times);

/// Times all cases, and measures the device's peaks before, between and after them.
pub(crate) fn time(
    cases: Vec<Case>,
    device: &Arc<Device>,
    mut partner: Option<&mut Partner>,
) -> Result<(Vec<Timed>, Peaks), Failure> {
    let mut peaks = Peaks::default();
    peaks.measure(device).map_err(failed)?;
    let mut results: Vec<Timed> = Vec::with_capacity(cases.len());
    for case in cases {
        progress(&case.full_name());
        if results.last().is_some_and(|(last, _)| last.family != case.family) {
            peaks.measure(device).map_err(failed)?;
        }
        let times = measure(&case, device, partner.as_deref_mut()).map_err(failed)?;
        results.push((case, times));
    }
    peaks.measure(device).map_err(failed)?;
    progress("");
    Ok((results, peaks))
}

/// Runs each case once on the emulator and prints what its kernels did, counted.
fn count(arguments: &Arguments, cases: &[Case]) -> Result<(), Failure> {
    let gpu = arguments.profile.as_deref().map(gpus::Gpu::find).transpose().map_err(usage)?;
    let mut header =
        vec!["operation", "instructions", "per flop", "DRAM bytes", "of least", "sectors/request", "conflicts"];
    header.extend(gpu.map(|_| "least time"));
    header.extend(gpu.map(|_| "bound by"));
    let (mut table, mut list) = (Table::new(&header), Vec::new());
    for case in cases {
        progress(&case.full_name());
        let counted = count_case(case, gpu).map_err(failed)?;
        table.row(counted.cells(gpu));
        list.push(counted.to_json(gpu));
    }
    progress("");
    println!("counted  by the emulator; times would be the processor's, so none are given\n\n{table}");
    arguments.common.write_json(&json!({ "kernels": list }))
}

/// The times for a person.
pub(crate) fn table(results: &[Timed], peaks: &Peaks, with_pytorch: bool) -> Table {
    let mut header = vec!["operation", "ms", "rate", "", "of peak"];
    if with_pytorch {
        header.extend(["PyTorch ms", "ratio"]);
    }
    let mut table = Table::new(&header);
    for (case, times) in results {
        let seconds = median(&times.ours);
        let rate = case.work.amount() / seconds;
        let mut cells = vec![
            case.full_name(),
            format!("{:.3}", 1e3 * seconds),
            format!("{:.1}", rate / 1e9),
            case.work.unit().to_owned(),
            format!("{:.1} %", 100.0 * rate / case.work.peak(peaks)),
        ];
        if let Some(theirs) = &times.theirs {
            cells.push(format!("{:.3}", 1e3 * median(theirs)));
            cells.push(format!("{:.3}", seconds / median(theirs)));
        }
        table.row(cells);
    }
    table
}

/// The times for scripts.
pub(crate) fn results_json(results: &[Timed], peaks: &Peaks) -> Vec<Value> {
    results.iter().map(|(case, times)| result_json(case, times, peaks)).collect()
}

fn result_json(case: &Case, times: &Times, peaks: &Peaks) -> Value {
    let seconds = median(&times.ours);
    let rate = case.work.amount() / seconds;
    let pytorch = times.theirs.as_ref().map(|theirs| {
        json!({
            "seconds_median": median(theirs),
            "seconds_min": minimum(theirs),
            "calls": theirs.len(),
            "ratio": seconds / median(theirs),
        })
    });
    json!({
        "name": case.full_name(),
        "family": case.family.name(),
        "seconds_median": seconds,
        "seconds_min": minimum(&times.ours),
        "calls": times.ours.len(),
        "rate": rate / 1e9,
        "unit": case.work.unit(),
        "percent_of_peak": 100.0 * rate / case.work.peak(peaks),
        "pytorch": pytorch,
    })
}
