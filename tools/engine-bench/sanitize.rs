//! `engine-bench sanitize`: every kernel of the engine under the emulator's sanitizer.

use super::{Failure, failed, usage};
use clap::Args;
use engine::driver::{DeviceFacts, Emulated, LaunchLog};
use engine::gpu::Gpu;
use engine::gpu::checks::{self, Check};
use engine::ops::Device;
use engine::profile::table::Table;
use engine::util::atomic_file::write_atomically;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// Run every kernel of the engine under the sanitizer, over odd sizes, against f64 references.
///
/// Looks for races, reads of memory that nobody wrote, accesses out of bounds, barriers and shuffles that not all
/// threads reach. Needs no GPU. Exit code 1 where anything is found.
#[derive(Args)]
#[command(after_help = "\
Examples:
  engine-bench sanitize
  engine-bench sanitize --filter attention --json findings.json")]
pub(crate) struct Arguments {
    /// Only checks whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// List the checks and stop.
    #[arg(long)]
    list: bool,
    /// Write the figures to a file as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The checks whose names contain `filter`.
pub(crate) fn select(filter: &str) -> Result<Vec<&'static Check>, Failure> {
    let list: Vec<_> = checks::all().filter(|check| check.name.contains(filter)).collect();
    if list.is_empty() {
        return Err(usage(format!("--filter {filter:?} matches no check; --list shows them all")));
    }
    Ok(list)
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let list = select(&arguments.filter)?;
    if arguments.list {
        return list.iter().try_for_each(|check| super::print(format!("{}\n", check.name).as_bytes()));
    }
    let log = LaunchLog::default();
    let mut kernels: BTreeMap<String, u64> = BTreeMap::new();
    let (mut findings, mut failures) = (Vec::new(), Vec::new());
    super::quietly(|| -> Result<(), Failure> {
        for check in &list {
            super::progress(check.name);
            // A device of its own for each: a finding loses the device.
            let driver = Emulated::new(DeviceFacts::default()).sanitized().logged(&log);
            let device = Device::Gpu(Gpu::new(Box::new(driver)).map_err(failed)?);
            let result = check.run(&device);
            let records = log.take();
            super::progress("");
            let outcome = if result.is_ok() { "holds " } else { "FAILED" };
            super::print(format!("{outcome} {}, {} launches\n", check.name, records.len()).as_bytes())?;
            for record in &records {
                *kernels.entry(record.kernel.clone()).or_default() += 1;
            }
            let found: Vec<_> = records.into_iter().flat_map(|record| record.findings).collect();
            if let (Err(message), true) = (result, found.is_empty()) {
                failures.push((check.name, message));
            }
            findings.extend(found.into_iter().map(|finding| (check.name, finding)));
        }
        Ok(())
    })?;
    super::progress("");

    super::print(b"\n")?;
    let mut table = Table::new(&["kernel", "launches"]);
    for (kernel, launches) in &kernels {
        table.row(vec![kernel.clone(), launches.to_string()]);
    }
    super::print(format!("{table}\n").as_bytes())?;
    for (check, finding) in &findings {
        super::print(format!("{finding} (in the check {check})\n").as_bytes())?;
    }
    for (check, message) in &failures {
        super::print(format!("{check}: {}\n", message.replace('\n', " ")).as_bytes())?;
    }
    if let Some(path) = &arguments.json {
        let found: Vec<Value> = findings
            .iter()
            .map(|(check, finding)| {
                json!({
                    "check": check,
                    "kind": finding.kind.to_string(),
                    "kernel": finding.kernel,
                    "line": finding.line,
                    "block": finding.block,
                    "thread": finding.thread,
                    "address": finding.address,
                    "detail": finding.detail,
                })
            })
            .collect();
        let failed_checks: Vec<Value> =
            failures.iter().map(|(check, message)| json!({ "check": check, "message": message })).collect();
        let value = json!({
            "checks": list.len(), "launches": kernels, "findings": found, "failures": failed_checks,
        });
        write_atomically(path, |file| writeln!(file, "{value:#}"))
            .map_err(|error| failed(format!("--json: {error}")))?;
    }
    let (launches, kinds) = (kernels.values().sum::<u64>(), kernels.len());
    match (findings.len(), failures.len()) {
        (0, 0) => {
            let text = format!("{} checks, {launches} launches of {kinds} kernels: nothing found\n", list.len());
            super::print(text.as_bytes())
        }
        (found, wrong) => Err(failed(format!("{found} findings, {wrong} wrong results in {} checks", list.len()))),
    }
}
