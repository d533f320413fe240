//! How a kernel is launched, and with what arguments.

/// How a kernel is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// All blocks are resident at the same time and may wait for each other (cooperative groups' grid sync).
    pub is_cooperative: bool,
}

impl LaunchConfig {
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Self { grid, block, shared_bytes: 0, is_cooperative: false }
    }

    /// Enough blocks of `block` threads for `count` threads, in one dimension.
    pub fn linear(count: u32, block: u32) -> Self {
        Self::new([count.div_ceil(block.max(1)).max(1), 1, 1], [block, 1, 1])
    }

    pub fn shared(self, bytes: u32) -> Self {
        Self { shared_bytes: bytes, ..self }
    }
}

/// Kernel arguments, packed as the parameters lie: each aligned to its size.
#[derive(Debug, Clone, Default)]
pub struct Params {
    bytes: Vec<u8>,
}

macro_rules! push_param {
    ($($name:ident: $type:ty),*) => {
        $(
            #[doc = concat!("Adds a `", stringify!($type), "`.")]
            #[must_use]
            pub fn $name(self, value: $type) -> Self {
                self.bytes(&value.to_le_bytes(), size_of::<$type>())
            }
        )*
    };
}

impl Params {
    pub fn new() -> Self {
        Self::default()
    }

    push_param!(u8: u8, u16: u16, u32: u32, i32: i32, u64: u64, i64: i64, f32: f32, f64: f64);

    /// Adds raw bytes with an alignment, for structures.
    #[must_use]
    pub fn bytes(mut self, value: &[u8], align: usize) -> Self {
        let start = self.bytes.len().next_multiple_of(align.max(1));
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(value);
        self
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}
