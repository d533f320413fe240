//! Everything that can go wrong between PTX text and a finished launch, as values.
//!
//! One line each: what, where, what to do. A program's own faults carry the PTX line and the thread that made them.

use thiserror::Error;

/// An error of the emulator.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum EmulatorError {
    /// The text is not PTX.
    #[error("{file}:{line}:{column}: expected {expected}, found {found}")]
    Parse { file: String, line: u32, column: u32, expected: String, found: String },
    /// The text is PTX, but this instruction or directive is wrong, unknown or not supported; found before anything runs.
    /// `function` is where it stands; empty outside of functions.
    #[error("{file}:{line}: {message}{}", within(.function))]
    Instruction { file: String, line: u32, function: String, message: String },
    /// The module cannot be loaded as a whole.
    #[error("{file}: {message}")]
    Module { file: String, message: String },
    /// The launch exceeds the device or does not fit the kernel.
    #[error("cannot launch {kernel}: {message}")]
    Launch { kernel: String, message: String },
    /// The kernel did something that a GPU would have stopped it for.
    #[error("{0}")]
    Fault(Box<Fault>),
    /// An allocation, copy or free that the device memory cannot do.
    #[error("device memory: {0}")]
    Memory(String),
}

/// Where and why a kernel was stopped.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{file}:{line}: {kind} in {kernel}, block ({},{},{}), thread ({},{},{})", block[0], block[1], block[2],
    thread[0], thread[1], thread[2])]
pub struct Fault {
    pub kind: FaultKind,
    pub file: String,
    /// Line in the PTX text; 0 where no single line is to blame.
    pub line: u32,
    pub kernel: String,
    pub block: [u32; 3],
    /// The first thread of the warp that made it, where a whole warp did.
    pub thread: [u32; 3],
}

/// What stopped a kernel.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FaultKind {
    #[error("{access} of {bytes} bytes at {address:#x}, outside every allocation{}", hint(.near))]
    OutOfBounds { access: Access, address: u64, bytes: u32, near: Option<String> },
    #[error("{access} of {bytes} bytes at {address:#x}, which is not aligned to its size")]
    Misaligned { access: Access, address: u64, bytes: u32 },
    #[error("trap")]
    Trap,
    #[error(
        "trap (grid.sync() traps without a cooperative launch: cuLaunchCooperativeKernel; --cooperative of engine-bench launch)"
    )]
    NotCooperative,
    #[error("breakpoint")]
    Breakpoint,
    #[error("assertion failed: {0}")]
    Assertion(String),
    #[error("the instruction budget of {0} warp instructions is used up (an endless loop?)")]
    Budget(u64),
    #[error("deadlock: every thread of the block waits ({0})")]
    Deadlock(String),
    #[error("free of {address:#x}, {detail}")]
    InvalidFree { address: u64, detail: String },
    #[error("{0}")]
    Illegal(String),
}

/// The direction of a memory access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Access {
    #[error("read")]
    Read,
    #[error("write")]
    Write,
    #[error("atomic operation")]
    Atomic,
}

fn within(function: &str) -> String {
    if function.is_empty() { String::new() } else { format!(", in {function}") }
}

fn hint(near: &Option<String>) -> String {
    near.as_ref().map(|near| format!(" ({near})")).unwrap_or_default()
}

/// A result with an [`EmulatorError`].
pub type Result<T> = std::result::Result<T, EmulatorError>;
