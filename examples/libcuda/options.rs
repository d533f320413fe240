//! What the environment chooses.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `ENGINE_EMULATOR_DEVICE` | the pretended device, as `name=A100,sm=80,memory=40GiB,multiprocessors=108`; all parts optional; `driver=12.2` pretends a driver for that CUDA, `count=0` a machine without a GPU |
//! | `ENGINE_EMULATOR_LOG=1` | tells on standard error what failed and why, and what was asked but is not supported |
//! | `ENGINE_EMULATOR_SANITIZE=1` | runs launches under the sanitizer; findings go to standard error, the launch fails |
//! | `ENGINE_EMULATOR_COUNTERS=FILE` | appends one JSON object per launch to the file (not together with the sanitizer) |
//! | `ENGINE_EMULATOR_BUDGET=N` | most warp instructions of a launch before it times out |
//! | `ENGINE_THREADS=N` | host threads that a launch may use |

use std::path::PathBuf;
use std::sync::OnceLock;

use engine::driver::emulator::DeviceFacts;

pub struct Options {
    pub facts: DeviceFacts,
    /// As `cuDriverGetVersion` tells it: 1000 times the major version and 10 times the minor one.
    pub driver_version: i32,
    pub has_device: bool,
    pub sanitizes: bool,
    pub counters: Option<PathBuf>,
    pub budget: Option<u64>,
    pub threads: Option<usize>,
}

fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Writes a line to standard error if the log is on.
pub fn log(line: impl FnOnce() -> String) {
    static IS_ON: OnceLock<bool> = OnceLock::new();
    if *IS_ON.get_or_init(|| is_set("ENGINE_EMULATOR_LOG")) {
        eprintln!("libcuda emulator: {}", line());
    }
}

impl Options {
    /// Reads the environment.
    ///
    /// # Errors
    /// The line to print: which variable is wrong, and how it is spelt.
    pub fn from_environment() -> Result<Self, String> {
        let (facts, driver_version, has_device) = device(&std::env::var("ENGINE_EMULATOR_DEVICE").unwrap_or_default())?;
        Ok(Self {
            facts,
            driver_version,
            has_device,
            sanitizes: is_set("ENGINE_EMULATOR_SANITIZE"),
            counters: std::env::var_os("ENGINE_EMULATOR_COUNTERS").filter(|path| !path.is_empty()).map(PathBuf::from),
            budget: number("ENGINE_EMULATOR_BUDGET")?,
            threads: number("ENGINE_THREADS")?.map(|threads| threads as usize),
        })
    }
}

fn number(name: &str) -> Result<Option<u64>, String> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => match value.parse() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(format!("{name}={value}: expected a number greater than 0")),
        },
        _ => Ok(None),
    }
}

/// Facts of an architecture that differ from those of sm_80 (CUDA programming guide, table of compute capabilities).
fn architecture(sm: u32) -> Option<DeviceFacts> {
    // Threads and blocks per multiprocessor, KiB of shared memory per multiprocessor.
    let (threads, blocks, shared) = match sm {
        70 | 75 => (if sm == 70 { 2048 } else { 1024 }, if sm == 70 { 32 } else { 16 }, if sm == 70 { 97 } else { 65 }),
        80 | 87 => (if sm == 80 { 2048 } else { 1536 }, if sm == 80 { 32 } else { 16 }, 164),
        86 => (1536, 16, 100),
        89 => (1536, 24, 100),
        90 | 100 | 103 => (2048, 32, 228),
        120 | 121 => (1536, 24, 100),
        _ => return None,
    };
    Some(DeviceFacts {
        name: format!("PTX emulator (sm_{sm})"),
        architecture: sm,
        max_threads_per_multiprocessor: threads,
        max_blocks_per_multiprocessor: blocks,
        shared_bytes_per_multiprocessor: shared << 10,
        max_shared_bytes_per_block: (shared - 1) << 10,
        ..DeviceFacts::default()
    })
}

/// CUDA 13.0.
const DRIVER_VERSION: i32 = 13_000;

/// `12.2` as `cuDriverGetVersion` tells it.
fn version(text: &str) -> Option<i32> {
    let (major, minor) = text.split_once('.')?;
    let (major, minor): (i32, i32) = (major.parse().ok()?, minor.parse().ok()?);
    ((1..100).contains(&major) && (0..100).contains(&minor)).then_some(1000 * major + 10 * minor)
}

fn device(text: &str) -> Result<(DeviceFacts, i32, bool), String> {
    let wrong = |part: &str, expected: &str| {
        Err(format!(
            "ENGINE_EMULATOR_DEVICE: '{part}': expected {expected}, as in name=A100,sm=80,memory=40GiB,multiprocessors=108"
        ))
    };
    let parts: Vec<(&str, &str)> = match text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').ok_or(part))
        .collect()
    {
        Ok(parts) => parts,
        Err(part) => return wrong(part, "KEY=VALUE"),
    };
    let mut facts = DeviceFacts::default();
    let (mut driver_version, mut has_device) = (DRIVER_VERSION, true);
    // The architecture first: the others change single facts of it.
    if let Some((_, sm)) = parts.iter().find(|(key, _)| *key == "sm") {
        facts = match sm.trim_start_matches("sm_").parse().ok().and_then(architecture) {
            Some(facts) => facts,
            None => return wrong(sm, "an architecture: 70, 75, 80, 86, 87, 89, 90, 100, 103, 120 or 121"),
        };
    }
    for (key, value) in parts {
        match key {
            "sm" => {}
            "name" => facts.name = value.into(),
            "memory" => match bytes(value) {
                Some(bytes) => facts.memory_bytes = bytes,
                None => return wrong(value, "a size: bytes, or KiB, MiB, GiB"),
            },
            "multiprocessors" => match value.parse() {
                Ok(count) if (1..=1024).contains(&count) => facts.multiprocessors = count,
                _ => return wrong(value, "1 to 1024 multiprocessors"),
            },
            "driver" => match version(value) {
                Some(version) => driver_version = version,
                None => return wrong(value, "a version of CUDA, as 12.2"),
            },
            "count" => match value {
                "0" | "1" => has_device = value == "1",
                _ => return wrong(value, "0 or 1 devices"),
            },
            _ => return wrong(key, "name, sm, memory, multiprocessors, driver or count"),
        }
    }
    Ok((facts, driver_version, has_device))
}

fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    // At most 1 TiB: the rest of the address space is the emulator's.
    digits.trim().parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| (1..=1 << 40).contains(bytes))
}
