//! What GPUs can do, as their makers state it: the figures that a roofline needs.
//!
//! Sources, all by NVIDIA, named per entry: the white papers of the architectures (GA100 "A100 Tensor Core GPU
//! Architecture", GA102 "Ampere GA102 GPU Architecture", "H100 Tensor Core GPU Architecture", "Ada GPU Architecture",
//! "RTX Blackwell GPU Architecture") and the data sheets of the products. Peaks are dense, without sparsity, at the boost
//! clock. Tensor peaks are those of bf16 with f32 accumulators.
//!
//! The same for all of them, from the CUDA Programming Guide's table of compute capabilities: four schedulers per
//! multiprocessor that issue one warp instruction per clock each, and shared memory of 32 banks of four bytes per clock.

use crate::driver::emulator::DeviceFacts;

/// Warp instructions that a multiprocessor issues per clock.
pub const ISSUE_SLOTS_PER_CLOCK: f64 = 4.0;
/// Passes over the banks of shared memory (128 bytes) that a multiprocessor makes per clock.
pub const WAVEFRONTS_PER_CLOCK: f64 = 1.0;

/// One GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    pub name: &'static str,
    /// 10 times the compute capability.
    pub architecture: u32,
    pub multiprocessors: u32,
    /// Boost clock.
    pub clock_hz: f64,
    pub dram_bytes: u64,
    pub dram_bytes_per_second: f64,
    pub l2_bytes: u64,
    pub f32_flops_per_second: f64,
    /// bf16 with f32 accumulators, dense.
    pub tensor_flops_per_second: f64,
    /// How much faster the tensor cores are with f16 accumulators: GeForce halves the rate of f32 accumulators.
    pub f16_accumulate_speedup: f64,
    pub source: &'static str,
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// All GPUs that are known, those that a short name may mean first.
pub const GPUS: [Gpu; 12] = [
    Gpu {
        name: "A100-80GB",
        architecture: 80,
        multiprocessors: 108,
        clock_hz: 1.410e9,
        dram_bytes: 80 * GIB,
        dram_bytes_per_second: 2039e9,
        l2_bytes: 40 * MIB,
        f32_flops_per_second: 19.5e12,
        tensor_flops_per_second: 312e12,
        f16_accumulate_speedup: 1.0,
        source: "A100 data sheet (SXM, 80 GB); A100 white paper",
    },
    Gpu {
        name: "A100-40GB",
        architecture: 80,
        multiprocessors: 108,
        clock_hz: 1.410e9,
        dram_bytes: 40 * GIB,
        dram_bytes_per_second: 1555e9,
        l2_bytes: 40 * MIB,
        f32_flops_per_second: 19.5e12,
        tensor_flops_per_second: 312e12,
        f16_accumulate_speedup: 1.0,
        source: "A100 white paper, table 4",
    },
    Gpu {
        name: "H100-SXM",
        architecture: 90,
        multiprocessors: 132,
        // The clock of everything but the tensor cores, whose peak is at 1.83 GHz.
        clock_hz: 1.980e9,
        dram_bytes: 80 * GIB,
        dram_bytes_per_second: 3350e9,
        l2_bytes: 50 * MIB,
        f32_flops_per_second: 66.9e12,
        tensor_flops_per_second: 989.4e12,
        f16_accumulate_speedup: 1.0,
        source: "H100 white paper, table 2 (SXM5); H100 data sheet",
    },
    Gpu {
        name: "H100-PCIe",
        architecture: 90,
        multiprocessors: 114,
        clock_hz: 1.755e9,
        dram_bytes: 80 * GIB,
        dram_bytes_per_second: 2039e9,
        l2_bytes: 50 * MIB,
        f32_flops_per_second: 51.2e12,
        tensor_flops_per_second: 756e12,
        f16_accumulate_speedup: 1.0,
        source: "H100 white paper, table 2 (PCIe)",
    },
    Gpu {
        name: "H200",
        architecture: 90,
        multiprocessors: 132,
        clock_hz: 1.980e9,
        dram_bytes: 141 * GIB,
        dram_bytes_per_second: 4800e9,
        l2_bytes: 50 * MIB,
        f32_flops_per_second: 66.9e12,
        tensor_flops_per_second: 989.4e12,
        f16_accumulate_speedup: 1.0,
        source: "H200 data sheet (SXM); the chip is the H100's",
    },
    Gpu {
        name: "B200",
        architecture: 100,
        multiprocessors: 148,
        // Not in the data sheet; what its f32 peak means for 148 multiprocessors of 128 lanes.
        clock_hz: 1.980e9,
        dram_bytes: 180 * GIB,
        // 7680 bits at twice 3996 MHz, which devices report; the data sheet rounds it up to 8 TB/s.
        dram_bytes_per_second: 7672e9,
        // "L2 cache capacity to 126 MB" (Blackwell tuning guide, 1.4.2.2, as NVIDIA/cudnn-frontend pull request 1164 has
        // it); a device reports 126.5 MiB.
        l2_bytes: 126 * MIB,
        f32_flops_per_second: 75e12,
        tensor_flops_per_second: 2250e12,
        f16_accumulate_speedup: 1.0,
        source: "DGX B200 and HGX B200 data sheets, an eighth of the system; Blackwell tuning guide, 1.4.2.2 (L2); what a \
                 device reports, in pytorch/ao pull request 4002 (bandwidth, multiprocessors)",
    },
    Gpu {
        name: "RTX-3090",
        architecture: 86,
        multiprocessors: 82,
        clock_hz: 1.695e9,
        dram_bytes: 24 * GIB,
        dram_bytes_per_second: 936e9,
        l2_bytes: 6 * MIB,
        f32_flops_per_second: 35.6e12,
        tensor_flops_per_second: 71e12,
        f16_accumulate_speedup: 2.0,
        source: "GA102 white paper, appendix A",
    },
    Gpu {
        name: "RTX-4090",
        architecture: 89,
        multiprocessors: 128,
        clock_hz: 2.520e9,
        dram_bytes: 24 * GIB,
        dram_bytes_per_second: 1008e9,
        l2_bytes: 72 * MIB,
        f32_flops_per_second: 82.6e12,
        tensor_flops_per_second: 165.2e12,
        f16_accumulate_speedup: 2.0,
        source: "Ada white paper, appendix A",
    },
    Gpu {
        name: "RTX-5090",
        architecture: 120,
        multiprocessors: 170,
        clock_hz: 2.407e9,
        dram_bytes: 32 * GIB,
        dram_bytes_per_second: 1792e9,
        l2_bytes: 96 * MIB,
        f32_flops_per_second: 104.8e12,
        tensor_flops_per_second: 209.5e12,
        f16_accumulate_speedup: 2.0,
        source: "RTX Blackwell white paper, appendix A",
    },
    Gpu {
        name: "L40S",
        architecture: 89,
        multiprocessors: 142,
        clock_hz: 2.520e9,
        dram_bytes: 48 * GIB,
        dram_bytes_per_second: 864e9,
        l2_bytes: 96 * MIB,
        f32_flops_per_second: 91.6e12,
        tensor_flops_per_second: 362.05e12,
        f16_accumulate_speedup: 1.0,
        source: "L40S data sheet",
    },
    Gpu {
        name: "L4",
        architecture: 89,
        multiprocessors: 58,
        clock_hz: 2.040e9,
        dram_bytes: 24 * GIB,
        dram_bytes_per_second: 300e9,
        l2_bytes: 48 * MIB,
        f32_flops_per_second: 30.3e12,
        tensor_flops_per_second: 121e12,
        f16_accumulate_speedup: 1.0,
        source: "L4 data sheet (which gives the sparse peak, twice this)",
    },
    Gpu {
        name: "A10",
        architecture: 86,
        multiprocessors: 72,
        clock_hz: 1.695e9,
        dram_bytes: 24 * GIB,
        dram_bytes_per_second: 600e9,
        l2_bytes: 6 * MIB,
        f32_flops_per_second: 31.2e12,
        tensor_flops_per_second: 125e12,
        f16_accumulate_speedup: 1.0,
        source: "A10 data sheet",
    },
];

/// Lower case without what people write differently: `NVIDIA RTX 4090`, `rtx-4090` and `4090` are the same.
fn plain(name: &str) -> String {
    let letters: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    letters.replace("nvidia", "").replace("geforce", "").replace("rtx", "")
}

impl Gpu {
    /// The GPU that a name means: in any spelling, or its first part (`A100`, `H100`).
    ///
    /// # Errors
    /// No GPU here has that name; the message lists them.
    pub fn find(name: &str) -> Result<&'static Self, String> {
        let wanted = plain(name);
        let same = GPUS.iter().find(|gpu| plain(gpu.name) == wanted);
        let starts = || GPUS.iter().find(|gpu| wanted.len() >= 2 && plain(gpu.name).starts_with(&wanted));
        same.or_else(starts).ok_or_else(|| {
            let names: Vec<&str> = GPUS.iter().map(|gpu| gpu.name).collect();
            format!("no GPU '{name}' in the table; it has {}", names.join(", "))
        })
    }

    /// Its facts for the emulator, so that launches that it would refuse are refused.
    pub fn device_facts(&self) -> DeviceFacts {
        DeviceFacts {
            name: format!("PTX emulator as {} (sm_{})", self.name, self.architecture),
            multiprocessors: self.multiprocessors,
            memory_bytes: self.dram_bytes.min(DeviceFacts::default().memory_bytes),
            ..device_facts(self.architecture)
        }
    }
}

/// An emulated device of an architecture, with its limits (CUDA Programming Guide, table of compute capabilities).
pub fn device_facts(architecture: u32) -> DeviceFacts {
    let (threads, blocks, shared_kib) = match architecture {
        86 | 87 => (1536, 16, 100),
        89 => (1536, 24, 100),
        90..=119 => (2048, 32, 228),
        120.. => (1536, 24, 100),
        _ => (2048, 32, 164),
    };
    DeviceFacts {
        name: format!("PTX emulator (sm_{architecture})"),
        architecture,
        max_threads_per_multiprocessor: threads,
        max_blocks_per_multiprocessor: blocks,
        shared_bytes_per_multiprocessor: shared_kib << 10,
        // The system keeps 1 KiB per block.
        max_shared_bytes_per_block: (shared_kib - 1) << 10,
        ..DeviceFacts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_spelling() {
        for (name, found) in [
            ("A100", "A100-80GB"),
            ("a100 40gb", "A100-40GB"),
            ("NVIDIA H100 PCIe", "H100-PCIe"),
            ("h100", "H100-SXM"),
            ("GeForce RTX 4090", "RTX-4090"),
            ("4090", "RTX-4090"),
            ("L4", "L4"),
            ("l40s", "L40S"),
        ] {
            assert_eq!(Gpu::find(name).unwrap().name, found, "{name}");
        }
        for name in ["", "nvidia", "V100", "4"] {
            assert!(Gpu::find(name).unwrap_err().contains("RTX-5090"), "{name}");
        }
    }

    /// The published f32 peak is lanes times clock: an entry with a typing error does not pass.
    #[test]
    fn the_peaks_follow_from_multiprocessors_and_clock() {
        for gpu in &GPUS {
            let lanes = if gpu.architecture == 80 { 64.0 } else { 128.0 };
            let peak = f64::from(gpu.multiprocessors) * lanes * 2.0 * gpu.clock_hz;
            assert!((peak / gpu.f32_flops_per_second - 1.0).abs() < 0.01, "{}: {peak:e}", gpu.name);
            let tensor_per_clock = gpu.tensor_flops_per_second * gpu.f16_accumulate_speedup
                / f64::from(gpu.multiprocessors)
                / gpu.clock_hz;
            let known = [1024.0, 2048.0, 4096.0, 8192.0];
            assert!(known.iter().any(|rate| (tensor_per_clock / rate - 1.0).abs() < 0.1), "{tensor_per_clock}");
        }
    }

    #[test]
    fn the_default_device_is_the_emulators() {
        let default = DeviceFacts::default();
        assert_eq!(device_facts(80), default);
        assert_eq!(Gpu::find("a100").unwrap().device_facts().multiprocessors, default.multiprocessors);
    }
}
