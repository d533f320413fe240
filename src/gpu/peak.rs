//! What a GPU can do at best, measured by `kernels/peak.cu`: see [`cpu::peak`](crate::cpu::peak) for why.

use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};

static SOURCE: Source = source!("peak");
const BLOCK: u32 = 256;
/// Multiply-adds of one round of the kernel, per thread.
const PER_ROUND: u64 = 16 * 8;
/// A launch grows until it lasts this long, so that the cost of launching it is lost in it.
const SECONDS: f64 = 0.02;
/// Bytes that one pass over memory touches at most: more than any cache holds.
const MEMORY_BYTES: u64 = 256 << 20;

/// Floating-point operations per second of f32 multiply-adds.
///
/// # Errors
/// The device failed.
pub fn fma_flops(gpu: &Gpu) -> Result<f64> {
    let blocks = gpu.facts().multiprocessors * (gpu.facts().max_threads_per_multiprocessor / BLOCK).max(1);
    let threads = u64::from(blocks) * u64::from(BLOCK);
    let sink = gpu.workspace(4)?;
    let mut rounds = 1u32;
    loop {
        let seconds = best_seconds(gpu, || {
            let arguments = Arguments::new().size(rounds as usize).float(0.5).address(sink);
            gpu.launch(&SOURCE, "peak_multiply_add", LaunchConfig::new([blocks, 1, 1], [BLOCK, 1, 1]), arguments)
        })?;
        if seconds >= SECONDS || rounds >= 1 << 24 {
            return Ok((2 * PER_ROUND * u64::from(rounds) * threads) as f64 / seconds);
        }
        rounds *= if seconds < SECONDS / 8.0 { 8 } else { 2 };
    }
}

/// Bytes per second read from memory.
///
/// # Errors
/// The device failed, or has too little memory left.
pub fn read_bytes_per_second(gpu: &Gpu) -> Result<f64> {
    pass_bytes_per_second(gpu, 1)
}

/// Bytes per second, read and written together, of a copy from memory to memory.
///
/// # Errors
/// The device failed, or has too little memory left.
pub fn copy_bytes_per_second(gpu: &Gpu) -> Result<f64> {
    pass_bytes_per_second(gpu, 2)
}

/// One pass over `MEMORY_BYTES`, or a quarter of what is free, in `parts` parts: one to read, or one to copy to another.
fn pass_bytes_per_second(gpu: &Gpu, parts: u64) -> Result<f64> {
    let (free, _) = gpu.driver().memory_info()?;
    let part = (MEMORY_BYTES.min(free / 4) / parts).max(1 << 16) & !255;
    let count = (part / 16) as usize;
    let memory = gpu.workspace(part * parts + 256)?;
    gpu.driver().fill(gpu.stream(), memory, 0, part * parts / 4)?;
    let blocks = gpu.facts().multiprocessors * 8;
    let config = LaunchConfig::new([blocks, 1, 1], [BLOCK, 1, 1]);
    let seconds = best_seconds(gpu, || {
        let (kernel, arguments) = match parts {
            1 => ("peak_read", Arguments::new().address(memory).count(count).address(memory + part)),
            _ => ("peak_copy", Arguments::new().address(memory).address(memory + part).count(count)),
        };
        gpu.launch(&SOURCE, kernel, config, arguments)
    })?;
    Ok((part * parts) as f64 / seconds)
}

/// Shortest time of three, after one that loads the kernel, as the device measures it.
fn best_seconds(gpu: &Gpu, mut queue: impl FnMut() -> Result<()>) -> Result<f64> {
    let driver = gpu.driver();
    queue()?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let (start, end) = (driver.create_event()?, driver.create_event()?);
        driver.record(start, gpu.stream())?;
        queue()?;
        driver.record(end, gpu.stream())?;
        best = best.min(driver.elapsed_seconds(start, end)?);
        driver.destroy_event(start)?;
        driver.destroy_event(end)?;
    }
    Ok(best.max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::super::Gpu;
    use super::*;
    use crate::driver::{DeviceFacts, Emulated};

    #[test]
    fn peaks_are_measured_on_the_emulator_too() {
        let facts = DeviceFacts { multiprocessors: 2, memory_bytes: 16 << 20, ..DeviceFacts::default() };
        let gpu = Gpu::new(Box::new(Emulated::new(facts))).unwrap();
        for peak in [fma_flops(&gpu), read_bytes_per_second(&gpu), copy_bytes_per_second(&gpu)] {
            let peak = peak.unwrap();
            assert!(peak.is_finite() && peak > 1e6, "{peak}");
        }
    }
}
