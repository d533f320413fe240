//! What a GPU driver does: memory, modules, launches, streams, events, graphs.
//!
//! The engine's second seam. [`Driver`] has the semantics of the CUDA driver API, cut down to what a compute engine
//! needs. [`Cuda`] implements it with `libcuda`, [`Emulated`] by executing PTX on the CPU. A stream is an order of work,
//! as in CUDA: what is queued on one stream runs in order, and only [`Driver::synchronize`] and [`Driver::read`] wait
//! for it. `tests/driver` holds what the implementations have in common.

pub mod cuda;
#[cfg(feature = "cust")]
mod cust;
mod emulated;
mod handles;
mod launch_log;
mod requirements;

pub use cuda::Cuda;
#[cfg(feature = "cust")]
pub use cust::Cust;
pub use emulated::Emulated;
pub use launch_log::{LaunchLog, LaunchRecord};
pub use ptx_emulator as emulator;
pub use ptx_emulator::{DeviceFacts, LaunchConfig, Params};

use std::ffi::CStr;

/// What a driver refuses or a device reports.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// There is no such driver or device on this machine, or it cannot be used: which is missing.
    #[error("{0}")]
    Unavailable(String),
    /// The device has not that much memory left.
    #[error("the device cannot allocate {bytes} bytes: {free} of {total} are free")]
    OutOfMemory { bytes: u64, free: u64, total: u64 },
    /// A call that the driver refused, or a fault of an earlier launch that it reports now.
    #[error("{call}: {message}")]
    Failed {
        /// What was asked for.
        call: String,
        /// What the driver said.
        message: String,
    },
}

impl Error {
    pub(crate) fn failed(call: impl Into<String>, message: impl ToString) -> Self {
        Self::Failed { call: call.into(), message: message.to_string() }
    }
}

/// A result with a driver's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

macro_rules! handle {
    ($(#[$documentation:meta] $name:ident),*) => {
        $(
            #[$documentation]
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
            pub struct $name(pub(crate) u64);
        )*
    };
}

handle!(
    /// A loaded PTX module.
    Module,
    /// A kernel of a loaded module.
    Function,
    /// An order of work.
    Stream,
    /// A moment on a stream.
    Event,
    /// Work that was captured, ready to be launched again and again.
    Graph
);

/// Why a call on a stream that is being captured is refused.
const CAPTURED: &str = "not permitted while the stream is captured";

/// Brings what kernels printed to standard output: drivers print through C's library, which keeps text for later where
/// that is no terminal.
fn flush_printed() {
    // SAFETY: flushes all of C's streams; it takes their locks.
    unsafe { libc::fflush(std::ptr::null_mut()) };
}

/// Refuses what cannot be done with the stream that always exists.
fn refuse_default(stream: Stream, call: &str) -> Result<()> {
    if stream == Stream::DEFAULT { Err(Error::failed(call, "not permitted on the default stream")) } else { Ok(()) }
}

/// The error of a module that does not load, with the first line of what the compiler wrote into `log`.
fn refused_module(name: &str, error: &Error, log: &[u8]) -> Error {
    let log = CStr::from_bytes_until_nul(log).unwrap_or_default().to_string_lossy();
    match log.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => Error::failed(name, format!("{error}: {line}")),
        None => Error::failed(name, error),
    }
}

impl Stream {
    /// The stream that always exists.
    pub const DEFAULT: Self = Self(0);
}

/// What the driver knows of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionFacts {
    /// 32-bit registers per thread.
    pub registers: u32,
    /// Static shared memory per block, in bytes.
    pub shared_bytes: u32,
    /// Local memory per thread, in bytes: register spills, arrays that are indexed, stack.
    pub local_bytes: u32,
    /// Threads per block that it was compiled for, at most.
    pub max_threads: u32,
}

/// A GPU, as a driver presents it.
///
/// Addresses are of device memory. Launches, copies and fills on a stream may still be running when a call returns;
/// a fault of theirs is then reported by a later call, and the device is lost from then on. What is refused does not run,
/// and changes nothing. Handles that were destroyed are refused. Any number of threads may use one driver.
///
/// # Errors
/// Each method fails where the driver refuses the call, and where an earlier launch failed.
pub trait Driver: Send + Sync {
    /// The device's name and limits.
    fn facts(&self) -> &DeviceFacts;

    /// Whether kernels are executed by this process's emulator: device memory is then this machine's memory.
    fn is_emulated(&self) -> bool {
        false
    }

    /// Free and total bytes of device memory.
    fn memory_info(&self) -> Result<(u64, u64)>;

    /// Allocates uninitialised memory, aligned to 256 bytes. `bytes` is not 0.
    fn allocate(&self, bytes: u64) -> Result<u64>;

    /// Frees what [`allocate`](Self::allocate) gave, once all work queued so far is done.
    fn free(&self, address: u64) -> Result<()>;

    /// Copies to the device, in the order of the stream; `source` may be reused when the call returns.
    fn write(&self, stream: Stream, address: u64, source: &[u8]) -> Result<()>;

    /// Waits for the stream, then copies from the device.
    fn read(&self, stream: Stream, address: u64, target: &mut [u8]) -> Result<()>;

    /// Copies within the device.
    fn copy(&self, stream: Stream, target: u64, source: u64, bytes: u64) -> Result<()>;

    /// Writes `count` copies of a 32-bit word. `address` is a multiple of 4.
    fn fill(&self, stream: Stream, address: u64, word: u32, count: u64) -> Result<()>;

    /// Loads PTX text; `name` is what messages call it.
    fn load(&self, name: &str, ptx: &str) -> Result<Module>;

    /// Unloads a module; its functions are invalid from then on.
    fn unload(&self, module: Module) -> Result<()>;

    /// The kernel of this name.
    fn function(&self, module: Module, name: &str) -> Result<Function>;

    /// What the kernel needs.
    fn function_facts(&self, function: Function) -> Result<FunctionFacts>;

    /// Launches a kernel. More than 48 KiB of dynamic shared memory is opted in to where that is needed.
    fn launch(&self, stream: Stream, function: Function, config: LaunchConfig, params: &Params) -> Result<()>;

    /// A new stream, independent of all others.
    fn create_stream(&self) -> Result<Stream>;

    /// Destroys a stream once its work is done.
    fn destroy_stream(&self, stream: Stream) -> Result<()>;

    /// Waits until the stream's work is done. What its kernels printed is on standard output then.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// A new event, not yet recorded.
    fn create_event(&self) -> Result<Event>;

    /// Destroys an event.
    fn destroy_event(&self, event: Event) -> Result<()>;

    /// Marks the moment when all work queued on the stream so far is done; in a capture, when the graph has done it.
    fn record(&self, event: Event, stream: Stream) -> Result<()>;

    /// Lets the stream's further work wait for the event as it was recorded last. One never recorded is not waited for.
    fn wait(&self, stream: Stream, event: Event) -> Result<()>;

    /// Seconds between two events on the device, waiting for the second; negative where they came the other way round.
    fn elapsed_seconds(&self, start: Event, end: Event) -> Result<f64>;

    /// From now on, work queued on this stream (not the default one) is captured rather than run. Reading from this
    /// stream and waiting for it are refused meanwhile, and the capture goes on; all else works as usual.
    fn begin_capture(&self, stream: Stream) -> Result<()>;

    /// Ends the capture: what was queued, as a graph. It keeps the modules and events that it uses, and the bytes that it
    /// writes.
    fn end_capture(&self, stream: Stream) -> Result<Graph>;

    /// Queues all the work of a graph; where the stream is being captured, it becomes part of that graph.
    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()>;

    /// Destroys a graph.
    fn destroy_graph(&self, graph: Graph) -> Result<()>;
}
