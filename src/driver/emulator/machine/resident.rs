//! Host memory that running blocks hold for registers and local memory, and how many blocks may run at a time for it.
//!
//! What a warp takes grows in powers of two, so that it is counted as it is allocated. An observer that keeps something
//! beside each register or byte (the sanitizer does) says so by its [`Shadow`], and that counts too.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::warp::{MAX_LOCAL_BYTES, MAX_PLANES};
use super::{Launch, Outcome, Stopped};
use crate::decode::program::Frames;
use crate::error::FaultKind;
use crate::lanes::{LANES, Plane};

/// As much as the local memory of all threads that fit on an A100 at 18 KiB each.
pub const MAX_RESIDENT_BYTES: u64 = 4 << 30;

/// Least local memory of a thread that has any.
const LEAST_STRIDE: u64 = 256;

/// Threads that recurse take this part of what they could, as a rule: 32 KiB of local memory and 16384 registers are far
/// more than the stack of 1 KiB that CUDA gives a thread unless told otherwise.
const USUAL_PART: u64 = 16;

/// What an observer keeps for each byte of local memory and of registers.
#[derive(Debug, Default, Clone, Copy)]
pub struct Shadow {
    pub per_local_byte: u64,
    pub per_register_byte: u64,
}

/// Bytes that are allocated for a thread's `bytes` of local memory.
pub fn local_stride(bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { bytes.next_power_of_two().max(LEAST_STRIDE) }
}

/// Planes that are allocated for a warp's `planes` of registers.
pub fn register_room(planes: usize) -> usize {
    planes.next_power_of_two()
}

/// Host memory for the registers and local memory of the warps of a launch that are resident.
#[derive(Debug, Default)]
pub struct ResidentMemory {
    taken: AtomicU64,
    shadow: Shadow,
}

impl ResidentMemory {
    pub fn new(shadow: Shadow) -> Self {
        Self { taken: AtomicU64::new(0), shadow }
    }

    /// What `stride` bytes of local memory for each lane of a warp cost.
    fn local_cost(&self, stride: u64) -> u64 {
        stride * LANES as u64 * (1 + self.shadow.per_local_byte)
    }

    fn register_cost(&self, planes: usize) -> u64 {
        (planes * size_of::<Plane>()) as u64 * (1 + self.shadow.per_register_byte)
    }

    /// Takes local memory that grows to `stride` bytes per lane.
    pub fn take_local(&self, before: u64, stride: u64) -> Outcome<()> {
        self.take(self.local_cost(stride) - self.local_cost(before))
    }

    pub fn give_back_local(&self, stride: u64) {
        self.taken.fetch_sub(self.local_cost(stride), Relaxed);
    }

    /// Takes registers that grow to this many planes.
    pub fn take_registers(&self, before: usize, planes: usize) -> Outcome<()> {
        self.take(self.register_cost(planes) - self.register_cost(before))
    }

    pub fn give_back_registers(&self, planes: usize) {
        self.taken.fetch_sub(self.register_cost(planes), Relaxed);
    }

    pub fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    fn take(&self, bytes: u64) -> Outcome<()> {
        if self.taken.fetch_add(bytes, Relaxed) + bytes <= MAX_RESIDENT_BYTES {
            return Ok(());
        }
        self.taken.fetch_sub(bytes, Relaxed);
        let message = format!(
            "the blocks that run at the same time need more than the {} MiB that the emulator has for their local memory and \
             registers{}; use less of them per thread, or launch fewer or smaller blocks",
            MAX_RESIDENT_BYTES >> 20,
            if self.shadow.per_local_byte > 0 { " with what the sanitizer knows of them" } else { "" }
        );
        Err(Stopped::new(FaultKind::Illegal(message), 0))
    }

    /// Bytes of a block of so many warps.
    fn block_bytes(&self, frames: &Frames, warps: u64) -> u64 {
        let registers = self.register_cost(register_room(frames.planes as usize));
        warps * (self.local_cost(local_stride(frames.local_bytes)) + registers)
    }
}

/// How many blocks of a launch may be resident, so that they get the memory they need whatever the number of host threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Host threads that each run a block which takes all that it can.
    pub workers: usize,
    /// Blocks that may be started beside those, where blocks poll: they wait for others, or only have many atomics.
    pub beside: u64,
}

impl Room {
    /// With at most `workers` host threads.
    pub fn new(launch: &Launch<'_>, workers: usize) -> Self {
        let kernel = launch.kernel_info();
        let warps = u64::from(launch.threads_per_block().div_ceil(32));
        let own = kernel.own_frame();
        let unbounded = Frames { local_bytes: MAX_LOCAL_BYTES, planes: MAX_PLANES as u32 };
        let usual = kernel.deepest.unwrap_or(Frames {
            local_bytes: own.local_bytes.max(MAX_LOCAL_BYTES / USUAL_PART),
            planes: own.planes.max(MAX_PLANES as u32 / USUAL_PART as u32),
        });
        // Lanes that diverged have frames of their own for what they call.
        let most = kernel.deepest.map_or(unbounded, |deepest| Frames {
            planes: own.planes.saturating_add((deepest.planes - own.planes).saturating_mul(LANES as u32)),
            ..deepest
        });
        let fitting = |frames: &Frames| {
            let frames = Frames {
                local_bytes: frames.local_bytes.min(MAX_LOCAL_BYTES),
                planes: frames.planes.min(MAX_PLANES as u32),
            };
            MAX_RESIDENT_BYTES / launch.resident.block_bytes(&frames, warps).max(1)
        };
        let workers = workers.min(usize::try_from(fitting(&most)).unwrap_or(usize::MAX)).max(1);
        Self { workers, beside: fitting(&usual).saturating_sub(workers as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Level;
    use crate::memory::DeviceMemory;
    use crate::module::load;

    #[test]
    fn resident_memory_ends_with_a_line_that_says_so() {
        let memory = ResidentMemory::default();
        memory.take(MAX_RESIDENT_BYTES).unwrap();
        let message = memory.take_local(0, LEAST_STRIDE).unwrap_err().kind.to_string();
        assert!(message.contains("need more than the 4096 MiB") && !message.contains("sanitizer"), "{message}");
        memory.give_back_local(LEAST_STRIDE);
        memory.take_local(0, LEAST_STRIDE).unwrap();
    }

    /// The room of a launch of 1024 threads a block on 16 host threads.
    fn room(kernel: &str, shadow: Shadow) -> Room {
        let text = ".version 8.0\n.target sm_80\n.address_size 64\n.func f(.reg .b32 n) { call f, (n); ret; }\n\
                    .visible .entry small() { ret; }\n.visible .entry large() { .local .b8 x[524288]; ret; }\n\
                    .visible .entry middle() { .local .b8 x[30000]; ret; }\n\
                    .visible .entry recursive() { .reg .b32 %r; call f, (%r); ret; }\n";
        let mut memory = DeviceMemory::new(1 << 20);
        let module = load("k.ptx", text, &mut memory, Level::Portable, 80).unwrap();
        let launch = Launch {
            program: &module.program,
            file: "k.ptx",
            level: Level::Portable,
            kernel: module.kernel(kernel).unwrap(),
            memory: &memory,
            params: &[],
            grid: [100, 1, 1],
            block: [256, 2, 2],
            dynamic_shared_bytes: 0,
            multiprocessors: 1,
            grid_id: 0,
            is_cooperative: false,
            workspace: 0,
            budget: 1,
            resident: ResidentMemory::new(shadow),
            start: std::time::Instant::now(),
        };
        Room::new(&launch, 16)
    }

    #[test]
    fn as_many_blocks_run_as_have_room_for_all_that_they_may_take() {
        let plain = |kernel| room(kernel, Shadow::default());
        assert_eq!(plain("small").workers, 16);
        assert!(plain("small").beside > 4096);
        assert_eq!(plain("large"), Room { workers: 7, beside: 0 });
        // 32 KiB for each of 1024 threads, and little for registers.
        assert_eq!(plain("middle"), Room { workers: 16, beside: 127 - 16 });
        // 512 KiB of local memory and a MiB of registers for each thread at the most, and a 16th as a rule.
        assert_eq!(plain("recursive"), Room { workers: 2, beside: 42 - 2 });
        let sanitized = |kernel| room(kernel, Shadow { per_local_byte: 4, per_register_byte: 1 });
        assert_eq!(sanitized("middle"), Room { workers: 16, beside: 25 - 16 });
        assert_eq!(sanitized("large"), Room { workers: 1, beside: 0 });
        // More than there is, but a block that is alone is tried.
        assert_eq!(sanitized("recursive"), Room { workers: 1, beside: 14 - 1 });
    }

    #[test]
    fn what_an_observer_keeps_counts_as_well() {
        let memory = ResidentMemory::new(Shadow { per_local_byte: 4, per_register_byte: 1 });
        memory.take_local(0, 1024).unwrap();
        memory.take_local(1024, 4096).unwrap();
        memory.take_registers(0, 8).unwrap();
        assert_eq!(memory.taken(), 5 * 32 * 4096 + 2 * 8 * 128);
        memory.give_back_local(4096);
        memory.give_back_registers(8);
        assert_eq!(memory.taken(), 0);
        let message = memory.take_local(0, MAX_RESIDENT_BYTES / 32 / 4).unwrap_err().kind.to_string();
        assert!(message.contains("with what the sanitizer knows"), "{message}");
    }
}
