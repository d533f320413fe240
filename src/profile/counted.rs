//! What the kernels of an operation do, counted by the emulator, against the least that they could do.

use super::cases::{self, Case, Work};
use super::gpus::Gpu;
use super::roofline::{self, Roofline};
use crate::driver::emulator::Counters;
use crate::driver::{DeviceFacts, Emulated, LaunchLog};
use crate::gpu;
use crate::ops::Device;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The counts of one call.
pub struct Counted {
    name: String,
    work: Work,
    /// Kernels and how often each was launched.
    pub launches: BTreeMap<String, u64>,
    /// All launches together.
    pub total: Counters,
    /// What each launch asks of a GPU, in order.
    works: Vec<roofline::Work>,
}

/// Runs a case once on a counting emulator.
///
/// # Errors
/// The case cannot be set up or run.
pub fn count_case(case: &Case, gpu: Option<&'static Gpu>) -> Result<Counted, cases::Error> {
    let log = LaunchLog::default();
    let facts = gpu.map_or_else(DeviceFacts::default, Gpu::device_facts);
    let driver = Emulated::new(facts).counted().logged(&log);
    let device = Arc::new(Device::Gpu(gpu::Gpu::new(Box::new(driver))?));
    let mut call = case.prepare(&device)?;
    log.take();
    call()?;
    device.synchronize()?;
    let mut counted = Counted {
        name: case.full_name(),
        work: case.work,
        launches: BTreeMap::new(),
        total: Counters::default(),
        works: Vec::new(),
    };
    for record in log.take() {
        *counted.launches.entry(record.kernel).or_default() += 1;
        if let Some(counters) = record.counters {
            counted.works.push(roofline::Work::new(&counters, record.blocks));
            counted.total += &counters;
        }
    }
    Ok(counted)
}

impl Counted {
    /// Bytes of DRAM traffic, each launch by itself.
    pub fn dram_bytes(&self) -> u64 {
        self.total.dram_read_bytes + self.total.dram_write_bytes
    }

    /// DRAM traffic over the least possible, where the case says what that is.
    pub fn over_least_traffic(&self) -> Option<f64> {
        match self.work {
            Work::Flops(_) => None,
            Work::Read(bytes) | Work::Moved(bytes) => Some(self.dram_bytes() as f64 / bytes),
        }
    }

    /// Thread instructions for each floating-point operation of the case; 0.5 is a loop of nothing but multiply-adds.
    pub fn instructions_per_flop(&self) -> Option<f64> {
        match self.work {
            Work::Flops(flops) => Some(self.total.thread_instructions as f64 / flops),
            Work::Read(_) | Work::Moved(_) => None,
        }
    }

    /// Sectors of 32 bytes for each request to global memory: 4 where a warp's floats lie side by side.
    pub fn sectors_per_request(&self) -> f64 {
        let sectors = self.total.global_load_sectors + self.total.global_store_sectors;
        let requests = self.total.global_load_requests + self.total.global_store_requests;
        sectors as f64 / requests.max(1) as f64
    }

    /// Least time on a GPU, one launch after the other, and what bounds most of it.
    pub fn least_seconds(&self, gpu: &'static Gpu) -> (f64, String) {
        let mut by_bound: BTreeMap<String, f64> = BTreeMap::new();
        for work in &self.works {
            let bound = Roofline::new(gpu, work.clone()).ruling();
            *by_bound.entry(bound.name.to_owned()).or_default() += bound.seconds;
        }
        let total = by_bound.values().sum();
        let largest = by_bound.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        (total, largest.map(|(name, _)| name).unwrap_or_default())
    }

    /// A row of the table.
    pub fn cells(&self, gpu: Option<&'static Gpu>) -> Vec<String> {
        let total = &self.total;
        let optional = |value: Option<f64>| value.map(|value| format!("{value:.2}")).unwrap_or_default();
        let mut cells = vec![
            self.name.clone(),
            format!("{:.1} M", total.thread_instructions as f64 / 1e6),
            optional(self.instructions_per_flop()),
            format!("{:.1} M", self.dram_bytes() as f64 / 1e6),
            optional(self.over_least_traffic()),
            format!("{:.1}", self.sectors_per_request()),
            total.shared_bank_conflicts.to_string(),
        ];
        if let Some(gpu) = gpu {
            let (seconds, bound) = self.least_seconds(gpu);
            cells.extend([format!("{:.1} us", seconds * 1e6), bound]);
        }
        cells
    }

    /// The same for scripts.
    pub fn to_json(&self, gpu: Option<&'static Gpu>) -> Value {
        let total = &self.total;
        let least = gpu.map(|gpu| {
            let (seconds, bound) = self.least_seconds(gpu);
            json!({ "gpu": gpu.name, "seconds": seconds, "bound": bound })
        });
        json!({
            "name": self.name,
            "launches": self.launches,
            "warp_instructions": total.warp_instructions,
            "thread_instructions": total.thread_instructions,
            "instructions_per_flop": self.instructions_per_flop(),
            "dram_read_bytes": total.dram_read_bytes,
            "dram_write_bytes": total.dram_write_bytes,
            "over_least_traffic": self.over_least_traffic(),
            "sectors_per_request": self.sectors_per_request(),
            "shared_wavefronts": total.shared_wavefronts,
            "shared_bank_conflicts": total.shared_bank_conflicts,
            "divergent_branches": total.divergent_branches,
            "barriers": total.barriers,
            "opcodes": total.opcodes,
            "least_time": least,
        })
    }
}
