//! `engine-bench roofline`: what launches can reach on a GPU, from the files that `launch --json` wrote.

use super::launch::{finish, start};
use super::{Failure, failed};
use clap::Args;
use engine::profile::gpus::Gpu;
use engine::profile::launch::report::si;
use engine::profile::roofline::{Roofline, Work};
use engine::profile::roofline_plot::roofline_svg;
use engine::profile::table::Table;
use engine::util::atomic_file::plainly;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Lower bounds of the time of launches on a GPU, from what `launch --json` counted.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Files that `engine-bench launch --json` wrote.
    #[arg(value_name = "LAUNCH.json", required = true)]
    files: Vec<PathBuf>,
    /// The GPU: A100, A100-40GB, H100, H100-PCIe, H200, B200, RTX-3090, RTX-4090, RTX-5090, L40S, L4, A10.
    #[arg(long, value_name = "GPU", value_parser = Gpu::find)]
    profile: &'static Gpu,
    /// Draw all launches into one roofline.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the figures to a file as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let gpu = arguments.profile;
    let mut launches = Vec::new();
    for path in &arguments.files {
        let (kernel, work) = read(path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        launches.push((path, kernel, Roofline::new(gpu, work)));
    }
    let json = start("--json", arguments.json.as_deref())?;
    let svg = start("--svg", arguments.svg.as_deref())?;

    let mut table = Table::new(&[
        "launch", "bound by", "at least", "FLOP/B", "at most", "of peak", "DRAM", "f32", "tensor", "shared", "issue",
    ]);
    for (_, kernel, roofline) in &launches {
        let ruling = roofline.ruling();
        let mut cells = vec![
            kernel.clone(),
            ruling.name.into(),
            si(ruling.seconds, "s"),
            roofline.work.intensity().map_or("-".into(), |intensity| format!("{intensity:.2}")),
            si(roofline.attainable_flops_per_second(), "FLOP/s"),
            format!("{:.1} %", roofline.percent_of_peak()),
        ];
        cells.extend(roofline.bounds.iter().map(|bound| format!("{:.0} %", roofline.percent(bound))));
        table.row(cells);
    }
    super::print(format!("gpu      {} ({})\n\n{table}\n", gpu.name, gpu.source).as_bytes())?;

    finish("--json", json, || {
        let list: Vec<Value> = launches
            .iter()
            .map(|(path, kernel, roofline)| {
                let mut figures = roofline.to_json();
                figures["file"] = json!(path.to_string_lossy());
                figures["kernel"] = json!(kernel);
                figures
            })
            .collect();
        Ok(format!("{:#}\n", json!({ "gpu": gpu.name, "launches": list })))
    })?;
    finish("--svg", svg, || {
        let named: Vec<_> = launches.into_iter().map(|(_, kernel, roofline)| (kernel, roofline)).collect();
        roofline_svg(&named)
    })
}

/// Kernel and work of a launch.
fn read(path: &Path) -> Result<(String, Work), String> {
    let bytes = std::fs::read(path).map_err(|error| plainly(&error))?;
    let launch: Value = serde_json::from_slice(&bytes).map_err(|error| format!("not JSON: {error}"))?;
    let work = Work::from_json(&launch)?;
    Ok((launch["kernel"].as_str().unwrap_or("?").to_owned(), work))
}
