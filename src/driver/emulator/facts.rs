//! What a device is: its limits, by which launches are checked and occupancy is computed.

/// A device's name and limits. The defaults are an A100's (compute capability 8.0), with less memory, for the emulator.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFacts {
    pub name: String,
    /// 10 times the compute capability: 80 for 8.0.
    pub architecture: u32,
    pub multiprocessors: u32,
    pub memory_bytes: u64,
    pub max_threads_per_block: u32,
    pub max_block: [u32; 3],
    pub max_grid: [u32; 3],
    pub max_shared_bytes_per_block: u32,
    pub max_threads_per_multiprocessor: u32,
    pub max_blocks_per_multiprocessor: u32,
    pub shared_bytes_per_multiprocessor: u32,
}

impl Default for DeviceFacts {
    fn default() -> Self {
        Self {
            name: "PTX emulator (sm_80)".into(),
            architecture: 80,
            multiprocessors: 108,
            memory_bytes: 16 << 30,
            max_threads_per_block: 1024,
            max_block: [1024, 1024, 64],
            max_grid: [i32::MAX as u32, 65535, 65535],
            // 164 KiB per multiprocessor, of which the system keeps 1 KiB per block.
            max_shared_bytes_per_block: 163 << 10,
            max_threads_per_multiprocessor: 2048,
            max_blocks_per_multiprocessor: 32,
            shared_bytes_per_multiprocessor: 164 << 10,
        }
    }
}
