//! The least time that a launch can take on a GPU, from what it counted: a roofline with more than two roofs.
//!
//! Each resource gives a lower bound, `work / rate`; they work side by side, so the longest of them is the launch's own:
//!
//! ```text
//! DRAM bytes          (read + written, each byte once) / DRAM bandwidth
//! f32 operations      f32 pipe instructions * 32 lanes * 2 / f32 peak
//! tensor operations   sum over formats of FLOPs / (bf16 peak * the format's rate)
//! shared wavefronts   wavefronts / (one per clock and multiprocessor)
//! issue slots         warp instructions / (four per clock and multiprocessor)
//! ```
//!
//! A grid of fewer blocks than the GPU has multiprocessors leaves the rest idle, which all but the first account for.
//! Latency, the launch itself, and whatever is not named above (special functions, f64, L1 and L2 bandwidth) come on top:
//! no launch is faster than this, and many are slower.
//!
//! (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.)

use super::gpus::{Gpu, ISSUE_SLOTS_PER_CLOCK, WAVEFRONTS_PER_CLOCK};
use crate::driver::emulator::Counters;
use serde_json::{Value, json};

/// Work of a launch, by resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    pub dram_bytes: u64,
    /// Floating-point operations outside the tensor cores, counted for full warps.
    pub vector_flops: u64,
    pub tensor_flops: u64,
    /// Warp instructions that the f32 pipe runs at full rate.
    pub f32_instructions: u64,
    /// Tensor-core FLOPs, each as many times as its format is slower than bf16.
    pub tensor_work: TensorWork,
    pub shared_wavefronts: u64,
    pub warp_instructions: u64,
    pub blocks: u64,
}

/// Tensor-core FLOPs in units of the rate of bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TensorWork {
    /// With f32 accumulators, and formats that run at a fixed multiple of them.
    pub f32_accumulate: f64,
    /// With f16 accumulators or in integers, which GeForce does not slow down.
    pub full_rate: f64,
}

impl Work {
    /// The work that was counted in a grid of so many blocks.
    pub fn new(counters: &Counters, blocks: u64) -> Self {
        let mut work = Self {
            dram_bytes: counters.dram_read_bytes.saturating_add(counters.dram_write_bytes),
            tensor_flops: counters.tensor_core_flops,
            shared_wavefronts: counters.shared_wavefronts,
            warp_instructions: counters.warp_instructions,
            blocks: blocks.max(1),
            ..Self::default()
        };
        let mut shapes = Vec::new();
        for (opcode, &count) in &counters.opcodes {
            let arithmetic = Arithmetic::of(opcode);
            work.vector_flops = work.vector_flops.saturating_add(count.saturating_mul(32 * arithmetic.flops_per_lane));
            if arithmetic.is_f32 {
                work.f32_instructions = work.f32_instructions.saturating_add(count);
            }
            if let Some(tensor) = Tensor::of(opcode) {
                shapes.push((count as f64 * tensor.flops, tensor));
            }
        }
        // The counters know the FLOPs in all; the opcodes how they fall to formats.
        let by_opcodes: f64 = shapes.iter().map(|(flops, _)| flops).sum();
        for (flops, tensor) in shapes {
            let share = flops / by_opcodes * counters.tensor_core_flops as f64 / tensor.rate;
            match tensor.is_full_rate {
                true => work.tensor_work.full_rate += share,
                false => work.tensor_work.f32_accumulate += share,
            }
        }
        if by_opcodes == 0.0 {
            work.tensor_work.f32_accumulate = counters.tensor_core_flops as f64;
        }
        work
    }

    /// The work of a launch as `engine-bench launch --json` wrote it.
    ///
    /// # Errors
    /// A figure that is needed is missing.
    pub fn from_json(launch: &Value) -> Result<Self, String> {
        let number = |key: &str| {
            launch[key].as_u64().ok_or_else(|| format!("no number '{key}'; it takes a file that launch --json wrote"))
        };
        let grid: Vec<u64> = launch["grid"].as_array().map_or(vec![], |g| g.iter().filter_map(Value::as_u64).collect());
        let opcodes =
            launch["opcodes"].as_object().ok_or("no object 'opcodes'; it takes a file that launch --json wrote")?;
        let counters = Counters {
            warp_instructions: number("warp_instructions")?,
            dram_read_bytes: number("dram_read_bytes")?,
            dram_write_bytes: number("dram_write_bytes")?,
            shared_wavefronts: number("shared_wavefronts")?,
            tensor_core_flops: number("tensor_core_flops")?,
            opcodes: opcodes.iter().map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0))).collect(),
            ..Counters::default()
        };
        Ok(Self::new(&counters, grid.into_iter().fold(1, u64::saturating_mul)))
    }

    /// All floating-point operations.
    pub fn flops(&self) -> u64 {
        self.vector_flops.saturating_add(self.tensor_flops)
    }

    /// FLOPs per byte of DRAM traffic; none where there is no traffic.
    pub fn intensity(&self) -> Option<f64> {
        (self.dram_bytes > 0).then(|| self.flops() as f64 / self.dram_bytes as f64)
    }
}

/// What an opcode does outside the tensor cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Arithmetic {
    flops_per_lane: u64,
    /// Takes a slot of the f32 pipe.
    is_f32: bool,
}

impl Arithmetic {
    fn of(opcode: &str) -> Self {
        let mut parts = opcode.split('.');
        let operations = match parts.next() {
            Some("add" | "sub" | "mul") => 1,
            Some("fma" | "mad") => 2,
            _ => return Self::default(),
        };
        let (elements, is_f32) = match parts.next_back() {
            Some("f32") => (1, true),
            Some("f32x2") => (2, true),
            Some("f16" | "bf16" | "f64") => (1, false),
            Some("f16x2" | "bf16x2") => (2, false),
            _ => return Self::default(),
        };
        Self { flops_per_lane: operations * elements, is_f32 }
    }
}

/// What a matrix opcode does.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tensor {
    flops: f64,
    /// Times the rate of bf16 with f32 (or, if `is_full_rate`, f16) accumulators.
    rate: f64,
    is_full_rate: bool,
}

impl Tensor {
    fn of(opcode: &str) -> Option<Self> {
        let parts: Vec<&str> = opcode.split('.').collect();
        if !matches!(parts.first(), Some(&("mma" | "wmma" | "wgmma"))) {
            return None;
        }
        let shape = parts.iter().position(|part| dimensions(part).is_some())?;
        let types = &parts[shape + 1..];
        let has = |names: &[&str]| types.iter().any(|part| names.contains(part));
        let (rate, is_full_rate) = if has(&["f64"]) {
            // A100 and H100; where others have it at all it is slower.
            (1.0 / 14.0, false)
        } else if has(&["tf32"]) {
            (0.5, false)
        } else if has(&["b1"]) {
            (16.0, true)
        } else if has(&["s4", "u4", "e2m1"]) {
            (4.0, true)
        } else if has(&["s8", "u8", "e4m3", "e5m2", "e3m2", "e2m3"]) {
            (2.0, true)
        } else {
            let accumulator = types.iter().find(|part| matches!(**part, "f16" | "f32"));
            (1.0, accumulator == Some(&"f16"))
        };
        Some(Self { flops: dimensions(parts[shape])?, rate, is_full_rate })
    }
}

/// FLOPs of `m16n8k16`.
fn dimensions(part: &str) -> Option<f64> {
    let (m, rest) = part.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    let number = |text: &str| text.parse::<u32>().ok().map(f64::from);
    Some(2.0 * number(m)? * number(n)? * number(k)?)
}

/// A resource and the least time it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    pub name: &'static str,
    /// As in JSON.
    pub key: &'static str,
    pub seconds: f64,
}

/// The bounds of a launch on a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    pub gpu: &'static Gpu,
    pub work: Work,
    /// In the order of the module's story.
    pub bounds: [Bound; 5],
    /// Multiprocessors that have a block.
    pub busy_multiprocessors: u32,
}

impl Roofline {
    /// The bounds of `work` on `gpu`.
    pub fn new(gpu: &'static Gpu, work: Work) -> Self {
        let busy = u64::from(gpu.multiprocessors).min(work.blocks.max(1)) as u32;
        let share = f64::from(busy) / f64::from(gpu.multiprocessors);
        let clocks = gpu.clock_hz * f64::from(busy);
        let tensor = work.tensor_work.f32_accumulate + work.tensor_work.full_rate / gpu.f16_accumulate_speedup;
        let bound = |name, key, seconds| Bound { name, key, seconds };
        let bounds = [
            bound("DRAM bytes", "dram_bytes", work.dram_bytes as f64 / gpu.dram_bytes_per_second),
            bound(
                "f32 operations",
                "f32_operations",
                64.0 * work.f32_instructions as f64 / (gpu.f32_flops_per_second * share),
            ),
            bound("tensor operations", "tensor_operations", tensor / (gpu.tensor_flops_per_second * share)),
            bound(
                "shared wavefronts",
                "shared_wavefronts",
                work.shared_wavefronts as f64 / (WAVEFRONTS_PER_CLOCK * clocks),
            ),
            bound("issue slots", "issue_slots", work.warp_instructions as f64 / (ISSUE_SLOTS_PER_CLOCK * clocks)),
        ];
        Self { gpu, work, bounds, busy_multiprocessors: busy }
    }

    /// The longest of the bounds.
    pub fn ruling(&self) -> Bound {
        self.bounds
            .into_iter()
            .fold(self.bounds[0], |most, bound| if bound.seconds > most.seconds { bound } else { most })
    }

    /// Share of the ruling bound's time that a resource is busy for, in percent.
    pub fn percent(&self, bound: &Bound) -> f64 {
        let most = self.ruling().seconds;
        if most > 0.0 { 100.0 * bound.seconds / most } else { 0.0 }
    }

    /// FLOP/s at the ruling bound: the most that the launch can reach.
    pub fn attainable_flops_per_second(&self) -> f64 {
        let seconds = self.ruling().seconds;
        if seconds > 0.0 { self.work.flops() as f64 / seconds } else { 0.0 }
    }

    /// The peak that fits the launch: the tensor cores' if they do most of its work.
    pub fn peak_flops_per_second(&self) -> f64 {
        if self.work.tensor_flops > self.work.vector_flops {
            self.gpu.tensor_flops_per_second
        } else {
            self.gpu.f32_flops_per_second
        }
    }

    /// Percent of [`Self::peak_flops_per_second`] that the launch can reach.
    pub fn percent_of_peak(&self) -> f64 {
        100.0 * self.attainable_flops_per_second() / self.peak_flops_per_second()
    }

    /// All figures, for scripts.
    pub fn to_json(&self) -> Value {
        let bounds: serde_json::Map<String, Value> = self
            .bounds
            .iter()
            .map(|bound| {
                let figures = json!({ "seconds": bound.seconds, "percent": self.percent(bound) });
                (bound.key.to_owned(), figures)
            })
            .collect();
        let ruling = self.ruling();
        json!({
            "gpu": self.gpu.name,
            "bound": ruling.key,
            "seconds": ruling.seconds,
            "bounds": bounds,
            "flops": self.work.flops(),
            "dram_bytes": self.work.dram_bytes,
            "arithmetic_intensity": self.work.intensity(),
            "attainable_flops_per_second": self.attainable_flops_per_second(),
            "percent_of_peak": self.percent_of_peak(),
            "busy_multiprocessors": self.busy_multiprocessors,
            "multiprocessors": self.gpu.multiprocessors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(opcodes: &[(&str, u64)]) -> Counters {
        Counters {
            opcodes: opcodes.iter().map(|&(name, count)| (name.to_owned(), count)).collect(),
            warp_instructions: opcodes.iter().map(|(_, count)| count).sum(),
            ..Counters::default()
        }
    }

    fn a100() -> &'static Gpu {
        Gpu::find("a100-80gb").unwrap()
    }

    #[test]
    fn operations_are_counted_by_opcode() {
        let work = Work::new(
            &counters(&[
                ("fma.rn.f32", 10),
                ("add.f32", 3),
                ("mul.ftz.f32", 2),
                ("fma.rn.f16x2", 1),
                ("add.s32", 100),
                ("mov.f32", 100),
                ("atom.global.add.f32", 100),
                ("setp.lt.f32", 100),
                ("add.f64", 1),
            ]),
            1,
        );
        assert_eq!(work.vector_flops, 32 * (20 + 3 + 2 + 4 + 1));
        assert_eq!(work.f32_instructions, 15);
    }

    #[test]
    fn a_copy_is_bound_by_dram_and_the_time_is_bytes_over_bandwidth() {
        let mut counted = counters(&[("ld.global.v4.f32", 1000), ("st.global.v4.f32", 1000)]);
        (counted.dram_read_bytes, counted.dram_write_bytes) = (2_000_000_000, 2_078_000_000);
        let roofline = Roofline::new(a100(), Work::new(&counted, 5000));
        assert_eq!(roofline.ruling().key, "dram_bytes");
        assert!((roofline.ruling().seconds - 2e-3).abs() < 1e-9);
        assert_eq!((roofline.work.intensity(), roofline.attainable_flops_per_second()), (Some(0.0), 0.0));
    }

    #[test]
    fn full_multiprocessors_reach_exactly_the_peak_and_few_blocks_their_share() {
        // A second of nothing but fused multiply-adds.
        let count = (19.5e12 / 64.0) as u64;
        let full = Roofline::new(a100(), Work::new(&counters(&[("fma.rn.f32", count)]), 108));
        assert_eq!(full.ruling().key, "f32_operations");
        assert!((full.ruling().seconds - 1.0).abs() < 1e-9 && (full.percent_of_peak() - 100.0).abs() < 1e-9);
        assert_eq!(full.work.intensity(), None);
        // An A100 starts two f32 instructions per clock, of the four that it could issue.
        assert!((full.percent(&full.bounds[4]) - 50.0).abs() < 0.2, "{}", full.percent(&full.bounds[4]));
        let few = Roofline::new(a100(), Work::new(&counters(&[("fma.rn.f32", count)]), 27));
        assert!((few.ruling().seconds - 4.0).abs() < 1e-9 && few.busy_multiprocessors == 27);
    }

    #[test]
    fn formats_of_the_tensor_cores_have_their_rates() {
        let seconds = |gpu: &'static Gpu, opcode: &str| {
            let mut counted = counters(&[(opcode, 7)]);
            counted.tensor_core_flops = 312_000_000;
            Roofline::new(gpu, Work::new(&counted, 1000)).bounds[2].seconds
        };
        let bf16 = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
        let tf32 = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32";
        let half = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16";
        let wmma = "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32";
        let bytes = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32";
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
        assert!(near(seconds(a100(), bf16), 1e-6) && near(seconds(a100(), wmma), 1e-6));
        assert!(near(seconds(a100(), tf32), 2e-6) && near(seconds(a100(), bytes), 0.5e-6));
        assert!(near(seconds(a100(), half), 1e-6));
        let geforce = Gpu::find("4090").unwrap();
        assert!(near(seconds(geforce, half), 0.5 * seconds(geforce, bf16)));
        assert!(near(seconds(geforce, bytes), 0.25 * seconds(geforce, bf16)));
    }

    #[test]
    fn a_launch_that_did_nothing_has_no_time_and_no_nan() {
        let roofline = Roofline::new(a100(), Work::new(&Counters::default(), 0));
        let text = roofline.to_json().to_string();
        assert_eq!(roofline.ruling().seconds, 0.0);
        assert!(text.contains("\"percent_of_peak\":0.0") && text.contains("\"arithmetic_intensity\":null"), "{text}");
    }
}
