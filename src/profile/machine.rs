//! What the machine is, and what it can do at best.

use crate::ops::Device;
use crate::{cpu, driver, gpu};

/// The name of the processor, as the system tells it.
pub fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    // Virtual machines often hide the model's name; family and model number still tell the generation.
    match (field("cpu family"), field("model\t")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name,
    }
}

/// The highest rates that were seen so far. They are measured several times in a run, before, between and after what
/// is compared with them, because the clock moves; the highest counts, so percentages err on the low side.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peaks {
    /// Floating-point operations per second of multiply-adds on the widest vectors.
    pub flops_per_second: f64,
    /// Bytes per second read from memory.
    pub read_bytes_per_second: f64,
    /// Bytes per second of a copy, read and written bytes together.
    pub copy_bytes_per_second: f64,
}

impl Peaks {
    /// Measures multiply-adds alone. Takes no memory, so that a process's peak memory stays its own.
    ///
    /// # Errors
    /// The device failed.
    pub fn measure_flops(&mut self, device: &Device) -> driver::Result<()> {
        self.flops_per_second = self.flops_per_second.max(device.measure_flops()?);
        Ok(())
    }

    /// Measures everything.
    ///
    /// # Errors
    /// The device failed.
    pub fn measure(&mut self, device: &Device) -> driver::Result<()> {
        self.measure_flops(device)?;
        let (read, copied) = match device {
            Device::Cpu(cpu) => (cpu::peak::read_bytes_per_second(cpu), cpu::peak::copy_bytes_per_second(cpu)),
            Device::Gpu(gpu) => (gpu::peak::read_bytes_per_second(gpu)?, gpu::peak::copy_bytes_per_second(gpu)?),
        };
        self.read_bytes_per_second = self.read_bytes_per_second.max(read);
        self.copy_bytes_per_second = self.copy_bytes_per_second.max(copied);
        Ok(())
    }
}
