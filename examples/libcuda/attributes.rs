//! The table of device attributes.
//!
//! What depends on the pretended device comes from its facts; the rest are an A100's figures where they have a meaning
//! here, and 0 ("not supported") for what the emulator does not have: textures, peers, virtual memory management.

use engine::driver::emulator::DeviceFacts;

/// Registers of a multiprocessor and most of a block: the same for all architectures from 8.0 on.
pub const REGISTERS: i32 = 65536;
pub const CONSTANT_BYTES: i32 = 65536;
pub const MAX_PITCH: i32 = i32::MAX;
/// Dynamic shared memory of a block unless its kernel opted in for more.
pub const DEFAULT_SHARED_BYTES: u32 = 48 << 10;
pub const TEXTURE_ALIGNMENT: i32 = 512;
/// What the system keeps of shared memory, per block.
pub const RESERVED_SHARED_BYTES: i32 = 1024;
/// Largest known attribute number and a margin for newer programs, which are told 0.
const NEWEST: u32 = 200;

/// The value of `CUdevice_attribute` number `attribute`, `None` if there is no such.
pub fn attribute(facts: &DeviceFacts, attribute: u32) -> Option<i32> {
    let [block_x, block_y, block_z] = facts.max_block.map(|size| size as i32);
    let [grid_x, grid_y, grid_z] = facts.max_grid.map(|size| size as i32);
    Some(match attribute {
        1 => facts.max_threads_per_block as i32,
        2 => block_x,
        3 => block_y,
        4 => block_z,
        5 => grid_x,
        6 => grid_y,
        7 => grid_z,
        8 => facts.max_shared_bytes_per_block.min(DEFAULT_SHARED_BYTES) as i32,
        9 => CONSTANT_BYTES,
        // Warp size.
        10 => 32,
        11 => MAX_PITCH,
        12 => REGISTERS,
        // Clock rate in kHz.
        13 => 1_410_000,
        14 => TEXTURE_ALIGNMENT,
        // Copies overlap kernels.
        15 => 1,
        16 => facts.multiprocessors as i32,
        // Kernel time-out, integrated.
        17 | 18 => 0,
        // Maps host memory; default compute mode.
        19 => 1,
        20 => 0,
        // Sizes of textures and surfaces: there are none.
        21..=29 | 42..=49 | 52..=74 | 77 => 0,
        30 => 512,
        // Concurrent kernels, ECC.
        31 => 1,
        32 => 0,
        // PCI bus, device, domain; TCC driver.
        33 => 1,
        34 | 35 | 50 => 0,
        // Memory clock in kHz, bus width in bits, L2 bytes.
        36 => 1_215_000,
        37 => 5120,
        38 => 40 << 20,
        39 => facts.max_threads_per_multiprocessor as i32,
        // Copy engines, unified addresses.
        40 | 41 => 1,
        51 => 32,
        75 => (facts.architecture / 10) as i32,
        76 => (facts.architecture % 10) as i32,
        // Stream priorities, L1 caches.
        78..=80 => 1,
        81 => facts.shared_bytes_per_multiprocessor as i32,
        82 => REGISTERS,
        // Managed memory.
        83 => 1,
        84 | 85 => 0,
        // Host atomics: kernels and host are the same processor.
        86 => 1,
        // Single to double precision.
        87 => 2,
        // Kernels cannot reach memory that was not allocated or registered here.
        88 => 0,
        // Concurrent managed access, preemption.
        89 | 90 => 1,
        // A registered buffer has another address on the device.
        91 => 0,
        // Stream memory operations.
        92..=94 | 122 | 123 => 0,
        // Cooperative launch, on one device.
        95 => 1,
        96 => 0,
        97 => facts.max_shared_bytes_per_block as i32,
        98 => 0,
        // Host registration.
        99 => 1,
        100 => 0,
        // The host reads managed memory directly.
        101 => 1,
        // Virtual memory management and handles of it.
        102..=105 => 0,
        106 => facts.max_blocks_per_multiprocessor as i32,
        107..=110 => 0,
        111 => RESERVED_SHARED_BYTES,
        112 => 0,
        // Read-only registration.
        113 => 1,
        114 => 0,
        // Memory pools.
        115 => 1,
        116..=121 => 0,
        124..=129 => 0,
        // NUMA: none; -1 is "no node".
        130 => 0,
        131 | 134 => -1,
        132 | 133 => 0,
        // Total memory is asked elsewhere; newer attributes name features that are absent.
        0 => return None,
        135..=NEWEST => 0,
        _ => return None,
    })
}
