//! The operations on a GPU: one launcher per kernel file, through [`Driver`].
//!
//! A launcher turns the checked arguments of `ops` into launches of the kernels in the `.cu` file of its name, all on
//! one stream. Views hold device addresses. Nothing here waits, except where an operation returns a number to the host.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
pub mod checks;
#[cfg(test)]
mod counting;
pub mod dropout;
pub mod embedding;
pub mod ffn;
pub mod gated_conv;
pub mod grad_norm;
pub mod key_value_cache;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod low_rank;
pub mod mean_rows;
pub mod peak;
pub mod pointwise_loss;
pub mod relative_bias;
pub mod rotary;
mod rows;
pub mod scale;
pub mod sgd;
pub mod softmax_cross_entropy;
pub mod span_cross_entropy;
pub(crate) mod testing;

use crate::driver::{DeviceFacts, Driver, Function, FunctionFacts, LaunchConfig, Module, Params, Result, Stream};
use crate::ops::philox::{keep_threshold, stream};
use crate::ops::{Dropout, View, ViewMut, Write};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

/// A kernel file's PTX, as `build.rs` left it.
pub(crate) struct Source {
    /// Name of the `.cu` file, without its ending.
    pub(crate) name: &'static str,
    pub(crate) ptx: &'static str,
}

/// The [`Source`] of `kernels/NAME.cu`.
macro_rules! source {
    ($name:literal) => {
        $crate::gpu::Source { name: $name, ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")) }
    };
}
pub(crate) use source;

/// A GPU as a compute device: a driver, the kernels loaded so far, and workspace.
pub struct Gpu {
    driver: Box<dyn Driver>,
    /// All work goes here: a stream of its own rather than the default one, so that it can be captured.
    stream: Stream,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    modules: HashMap<&'static str, Module>,
    functions: HashMap<(&'static str, &'static str), Function>,
    /// Address and bytes of the workspace.
    workspace: (u64, u64),
}

impl Gpu {
    /// A compute device on the driver's GPU. Kernels are loaded when they are first used.
    ///
    /// # Errors
    /// The driver cannot make a stream.
    pub fn new(driver: Box<dyn Driver>) -> Result<Self> {
        let stream = driver.create_stream()?;
        Ok(Self { driver, stream, state: Mutex::default() })
    }

    /// The driver, for memory and timing.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The stream that all work goes to.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// The device's name and limits.
    pub fn facts(&self) -> &DeviceFacts {
        self.driver.facts()
    }

    /// Whether the GPU is this machine's processor in disguise.
    pub fn is_emulated(&self) -> bool {
        self.driver.is_emulated()
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// Work that was queued failed.
    pub fn synchronize(&self) -> Result<()> {
        self.driver.synchronize(self.stream)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn function(&self, source: &Source, kernel: &'static str) -> Result<Function> {
        let mut state = self.state();
        if let Some(&function) = state.functions.get(&(source.name, kernel)) {
            return Ok(function);
        }
        let module = match state.modules.get(source.name) {
            Some(&module) => module,
            None => self.driver.load(&format!("kernels/ptx/{}.ptx", source.name), source.ptx)?,
        };
        state.modules.insert(source.name, module);
        let function = self.driver.function(module, kernel)?;
        state.functions.insert((source.name, kernel), function);
        Ok(function)
    }

    /// What the driver knows of a kernel.
    #[allow(dead_code)]
    pub(crate) fn function_facts(&self, source: &Source, kernel: &'static str) -> Result<FunctionFacts> {
        self.driver.function_facts(self.function(source, kernel)?)
    }

    /// Queues a launch of a kernel. A grid without blocks is no work.
    pub(crate) fn launch(
        &self,
        source: &Source,
        kernel: &'static str,
        config: LaunchConfig,
        arguments: Arguments,
    ) -> Result<()> {
        if config.grid.contains(&0) {
            return Ok(());
        }
        self.driver.launch(self.stream, self.function(source, kernel)?, config, &arguments.params)
    }

    /// Address of memory for the intermediate results of one operation. The next operation gets the same memory: work
    /// on one stream is in order.
    #[allow(dead_code)]
    pub(crate) fn workspace(&self, bytes: u64) -> Result<u64> {
        let mut state = self.state();
        let (address, capacity) = state.workspace;
        if bytes <= capacity {
            return Ok(address);
        }
        if capacity > 0 {
            state.workspace = (0, 0);
            self.driver.free(address)?;
        }
        let capacity = bytes.next_power_of_two().max(1 << 16);
        state.workspace = (self.driver.allocate(capacity)?, capacity);
        Ok(state.workspace.0)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let (address, capacity) = self.state().workspace;
        // A device that was lost cannot free anything, and its memory goes with the context.
        if capacity > 0 {
            let _ = self.driver.free(address);
        }
        let _ = self.driver.destroy_stream(self.stream);
    }
}

/// Arguments of a kernel, in the order of its parameters.
#[derive(Default)]
pub(crate) struct Arguments {
    params: Params,
}

#[allow(dead_code)]
impl Arguments {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// `const T*`
    pub(crate) fn view<T>(self, view: &View<'_, T>) -> Self {
        self.address(view.address())
    }

    /// `const T*`, null where there is none.
    pub(crate) fn optional<T>(self, view: Option<&View<'_, T>>) -> Self {
        self.address(view.map_or(0, View::address))
    }

    /// `T*`
    pub(crate) fn view_mut<T>(self, view: &ViewMut<'_, T>) -> Self {
        self.address(view.address())
    }

    /// `T*`, null where there is none.
    pub(crate) fn optional_mut<T>(self, view: Option<&ViewMut<'_, T>>) -> Self {
        self.address(view.map_or(0, ViewMut::address))
    }

    /// `T*`
    pub(crate) fn address(self, address: u64) -> Self {
        Self { params: self.params.u64(address) }
    }

    /// `unsigned`: a size along one axis.
    ///
    /// # Panics
    /// It does not fit 32 bits: `ops` bounds every axis.
    pub(crate) fn size(self, size: usize) -> Self {
        Self { params: self.params.u32(u32::try_from(size).expect("an axis has fewer than 2^32 elements")) }
    }

    /// `unsigned long long`: a number of elements.
    pub(crate) fn count(self, count: usize) -> Self {
        Self { params: self.params.u64(count as u64) }
    }

    /// A struct of `unsigned long long`.
    pub(crate) fn counts(self, counts: &[u64]) -> Self {
        Self { params: counts.iter().fold(self.params, |params, &count| params.u64(count)) }
    }

    /// `unsigned`: 1 to add to what is there, 0 to overwrite.
    pub(crate) fn write(self, write: Write) -> Self {
        self.flag(write == Write::Add)
    }

    /// `unsigned`: 1 or 0.
    pub(crate) fn flag(self, flag: bool) -> Self {
        Self { params: self.params.u32(u32::from(flag)) }
    }

    /// `int`
    pub(crate) fn int(self, value: i32) -> Self {
        Self { params: self.params.i32(value) }
    }

    /// `float`
    pub(crate) fn float(self, value: f32) -> Self {
        Self { params: self.params.f32(value) }
    }

    /// `engine::Dropout` of `common.cuh`; one that keeps everything where there is none.
    pub(crate) fn dropout(self, dropout: Option<&Dropout>) -> Self {
        let (key, upper) = dropout.map_or(([0; 2], [0; 2]), |d| stream(d.seed, d.step, d.site));
        let threshold = dropout.map_or(0, |d| keep_threshold(d.probability));
        let scale = dropout.map_or(1.0, |d| 1.0 / (1.0 - d.probability));
        let params = [key[0], key[1], upper[0], upper[1], threshold].into_iter().fold(self.params, Params::u32);
        Self { params: params.f32(scale) }
    }
}

/// Blocks of `block` threads for a kernel whose threads stride over `count` elements: enough to fill any GPU, no more.
#[allow(dead_code)]
pub(crate) fn strided(count: usize, block: u32) -> LaunchConfig {
    const MOST_BLOCKS: usize = 1 << 12;
    let blocks = count.div_ceil(block as usize).min(MOST_BLOCKS);
    LaunchConfig::new([blocks as u32, 1, 1], [block, 1, 1])
}
