//! From the configuration's `[device]` to a compute device, with the reason for the choice.

use super::config::{self, DeviceKind};
use crate::cpu::{Cpu, Level};
use crate::driver::emulator::Emulator;
use crate::driver::{self, Cuda, DeviceFacts, Driver, Emulated};
use crate::gpu::Gpu;
use crate::ops::Device;
use std::sync::Arc;

/// A device, and in a few words which one it is and why.
pub struct Chosen {
    pub device: Arc<Device>,
    pub description: String,
}

/// The device cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("device {wanted}: {why}{advice}")]
pub struct Error {
    wanted: String,
    why: String,
    advice: &'static str,
}

/// What to do where a GPU cannot be had.
const USE_CPU: &str = "; use --device cpu";

/// Opens what `settings` ask for. `auto` takes a GPU where a usable one is found, else the CPU.
///
/// # Errors
/// A device that this machine does not have.
pub fn open(settings: &config::Device) -> Result<Chosen, Error> {
    let error = |why: String, advice| Error { wanted: settings.kind.to_string(), why, advice };
    let gpu_error = |why: driver::Error| error(why.to_string(), USE_CPU);
    let cpu_error = |why: String| error(why, "");
    match settings.kind {
        DeviceKind::Cpu => open_cpu(settings.threads, "").map_err(cpu_error),
        DeviceKind::Emulator => {
            let facts = DeviceFacts::default();
            let description = format!("emulator, {}", facts.name);
            let mut emulator = Emulator::new(facts);
            if settings.threads > 0 {
                emulator = emulator.with_threads(settings.threads);
            }
            chosen(Box::new(Emulated::from_emulator(emulator)), description).map_err(gpu_error)
        }
        DeviceKind::Cuda(number) => {
            let (driver, description) = open_cuda(number.unwrap_or(0)).map_err(gpu_error)?;
            chosen(driver, description).map_err(gpu_error)
        }
        DeviceKind::Auto => {
            match open_cuda(0).and_then(|(driver, name)| chosen(driver, format!("{name} (auto: a usable GPU)"))) {
                Ok(chosen) => Ok(chosen),
                Err(why) => open_cpu(settings.threads, &format!(" (auto: {why})")).map_err(cpu_error),
            }
        }
    }
}

fn chosen(driver: Box<dyn Driver>, description: String) -> driver::Result<Chosen> {
    Ok(Chosen { device: Arc::new(Device::Gpu(Gpu::new(driver)?)), description })
}

/// The driver of a GPU, and its name.
fn open_cuda(number: usize) -> driver::Result<(Box<dyn Driver>, String)> {
    let driver = Cuda::open(number)?;
    let name = format!("cuda:{number}, {}", driver.facts().name);
    Ok((Box::new(driver), name))
}

fn open_cpu(threads: usize, reason: &str) -> Result<Chosen, String> {
    let cpu = match threads {
        0 => Cpu::new(),
        threads => Level::detect().and_then(|level| Cpu::with(threads, level)),
    }?;
    let threads = cpu.pool().threads();
    let plural = if threads == 1 { "" } else { "s" };
    let description = format!("cpu, {threads} thread{plural}, {}{reason}", cpu.level().name());
    Ok(Chosen { device: Arc::new(Device::Cpu(cpu)), description })
}
