//! From the configuration's `[device]` to a compute device, with the reason for the choice.

use super::config::{self, DeviceKind};
use crate::cpu::{Cpu, Level};
use crate::ops::Device;
use std::sync::Arc;

/// A device, and in a few words which one it is and why.
pub struct Chosen {
    pub device: Arc<Device>,
    pub description: String,
}

/// The device cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("device {wanted}: {why}; use --device cpu")]
pub struct Error {
    wanted: String,
    why: String,
}

const NO_CUDA: &str = "this version computes on the CPU only";

/// Opens what `settings` ask for. `auto` takes the CPU.
///
/// # Errors
/// A device that this machine or this version does not have.
pub fn open(settings: &config::Device) -> Result<Chosen, Error> {
    let error = |why: String| Error { wanted: settings.kind.to_string(), why };
    let reason = match settings.kind {
        DeviceKind::Auto => format!(" (auto: {NO_CUDA})"),
        DeviceKind::Cpu => String::new(),
        DeviceKind::Cuda(_) | DeviceKind::Emulator => return Err(error(NO_CUDA.to_owned())),
    };
    let cpu = match settings.threads {
        0 => Cpu::new(),
        threads => Level::detect().and_then(|level| Cpu::with(threads, level)),
    };
    let cpu = cpu.map_err(error)?;
    let threads = cpu.pool().threads();
    let plural = if threads == 1 { "" } else { "s" };
    let description = format!("cpu, {threads} thread{plural}, {}{reason}", cpu.level().name());
    Ok(Chosen { device: Arc::new(Device::Cpu(cpu)), description })
}
