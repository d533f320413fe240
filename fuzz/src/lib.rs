//! What the fuzz targets share: an emulator with little memory, and launches of everything in a module.

use ptx_emulator::{DeviceFacts, Emulator, LaunchConfig, Module};

/// Warp instructions that a launch may issue.
const BUDGET: u64 = 20_000;
/// Bytes of the buffer that pointer parameters lead to.
const BUFFER_BYTES: u64 = 4096;
/// Kernels of a module that are launched.
const MOST_KERNELS: usize = 4;

/// A device with 64 MiB, so that what a program asks for is bounded.
pub fn emulator() -> Emulator {
    let facts = DeviceFacts { memory_bytes: 64 << 20, ..DeviceFacts::default() };
    Emulator::new(facts).with_threads(1).with_budget(BUDGET)
}

/// Repeatable noise, keyed by the text.
struct Noise(u64);

impl Noise {
    fn of(text: &str) -> Self {
        Self(
            text.bytes()
                .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)),
        )
    }

    fn next(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

/// Loads the text and runs its kernels plainly, counted and sanitised. Errors are fine; panics, hangs and floods are not.
pub fn load_and_launch(text: &str) {
    let emulator = emulator().with_initialisation_tracking();
    let Ok(module) = emulator.load("fuzz.ptx", text) else { return };
    let mut noise = Noise::of(text);
    let kernels: Vec<(String, u32)> =
        module.kernels().map(|kernel| (kernel.name.clone(), kernel.param_bytes)).take(MOST_KERNELS).collect();
    for (kernel, param_bytes) in kernels {
        launch(&emulator, &module, &kernel, param_bytes, &mut noise);
    }
    emulator.unload(module);
}

fn launch(emulator: &Emulator, module: &Module, kernel: &str, param_bytes: u32, noise: &mut Noise) {
    let Ok(buffer) = emulator.allocate(BUFFER_BYTES) else { return };
    let words = (param_bytes as usize).div_ceil(8).min(1 << 16);
    let params: Vec<u8> = (0..words)
        .flat_map(|_| {
            match noise.next(8) {
                0 => 0,
                1 => noise.next(64),
                2 => noise.next(u64::MAX),
                3 => buffer + noise.next(BUFFER_BYTES),
                _ => buffer,
            }
            .to_le_bytes()
        })
        .collect();
    let block = [[32, 1, 1], [1, 1, 1], [45, 1, 1], [4, 4, 4]][noise.next(4) as usize];
    let config = LaunchConfig {
        is_cooperative: noise.next(4) == 0,
        ..LaunchConfig::new([1 + noise.next(3) as u32, 1, 1], block).shared([0, 1024, 16384][noise.next(3) as usize])
    };
    let _ = emulator.launch(module, kernel, config, &params);
    let _ = emulator.launch_counted(module, kernel, config, &params);
    let _ = emulator.launch_sanitized(module, kernel, config, &params);
    let _ = emulator.free(buffer);
}
