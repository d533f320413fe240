//! The emulator as a device: memory, modules, launches.

use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::counters::{Counters, Counting};
use super::error::{EmulatorError, Fault, Result};
use super::heap::DEFAULT_HEAP_BYTES;
use super::lanes::Level;
use super::machine::observe::{Nothing, Observe};
use super::machine::resident::ResidentMemory;
use super::machine::{Launch, grid};
use super::memory::DeviceMemory;
use super::module::{self, Module};
use super::sanitizer::{Finding, Sanitizer};
use crate::{DeviceFacts, LaunchConfig};

/// What a launch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchReport {
    /// Text that the kernel printed, blocks in order.
    pub output: Vec<u8>,
    /// Instructions issued, counted per warp.
    pub warp_instructions: u64,
}

/// The grid barrier of cooperative groups keeps its ticket here.
const WORKSPACE_BYTES: usize = 256;

/// Warp instructions of a launch unless told otherwise: some minutes, so an endless loop ends.
const DEFAULT_BUDGET: u64 = 1 << 36;

/// A GPU that executes PTX on the CPU.
pub struct Emulator {
    facts: DeviceFacts,
    memory: RwLock<DeviceMemory>,
    level: Level,
    threads: usize,
    budget: u64,
    launches: AtomicU64,
    heap_bytes: AtomicU64,
    start: std::time::Instant,
}

impl Emulator {
    /// A device with these facts, whose launches use all cores.
    pub fn new(facts: DeviceFacts) -> Self {
        let memory = RwLock::new(DeviceMemory::new(facts.memory_bytes));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            facts,
            memory,
            level: Level::detect(),
            threads,
            budget: DEFAULT_BUDGET,
            launches: AtomicU64::new(0),
            heap_bytes: AtomicU64::new(DEFAULT_HEAP_BYTES),
            start: std::time::Instant::now(),
        }
    }

    /// Uses this many host threads.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads: threads.max(1), ..self }
    }

    /// Stops launches that issue more warp instructions than this.
    #[must_use]
    pub fn with_budget(self, warp_instructions: u64) -> Self {
        Self { budget: warp_instructions, ..self }
    }

    /// Sets how much kernels may allocate with malloc: 8 MiB unless told otherwise.
    ///
    /// # Errors
    /// A kernel that may allocate has run already.
    pub fn set_malloc_heap(&self, bytes: u64) -> Result<()> {
        if self.read_memory().heap().is_some() {
            let message = "the heap cannot change after a kernel that uses malloc has run".into();
            return Err(EmulatorError::Memory(message));
        }
        self.heap_bytes.store(bytes, Relaxed);
        Ok(())
    }

    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Free and total bytes of device memory.
    pub fn memory_info(&self) -> (u64, u64) {
        let memory = self.read_memory();
        (memory.capacity() - memory.used(), memory.capacity())
    }

    // A launch that panicked has changed no bookkeeping, so a poisoned lock is still good.
    fn read_memory(&self) -> std::sync::RwLockReadGuard<'_, DeviceMemory> {
        self.memory.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write_memory(&self) -> std::sync::RwLockWriteGuard<'_, DeviceMemory> {
        self.memory.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Allocates device memory, zeroed.
    ///
    /// # Errors
    /// The device has not that much left.
    pub fn allocate(&self, bytes: u64) -> Result<u64> {
        self.write_memory().allocate(bytes)
    }

    /// Lets kernels and copies reach host memory, at the device address `at` or at a new one, until [`Self::free`].
    ///
    /// # Safety
    /// The bytes must stay valid until then, and `at` must not be an address that kernels use for shared, local or
    /// parameter memory (0x7F00_0000_0000 to 0x7F50_0000_0000).
    ///
    /// # Errors
    /// The range overlaps another allocation.
    pub unsafe fn map_host(&self, at: Option<u64>, pointer: *mut u8, bytes: u64) -> Result<u64> {
        // SAFETY: the caller's promise.
        unsafe { self.write_memory().map_host(at, pointer, bytes) }
    }

    /// Start and size of the allocation that holds `address`.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        self.read_memory().find(address).map(|allocation| (allocation.start, allocation.bytes))
    }

    /// # Errors
    /// No allocation starts at `address`.
    pub fn free(&self, address: u64) -> Result<()> {
        self.write_memory().free(address)
    }

    /// Copies from the device.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn read(&self, address: u64, target: &mut [u8]) -> Result<()> {
        self.read_memory().read(address, target)
    }

    /// Copies to the device.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn write(&self, address: u64, source: &[u8]) -> Result<()> {
        self.write_memory().write(address, source)
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// A range is not inside one allocation.
    pub fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        self.write_memory().copy(target, source, bytes)
    }

    /// Fills with `count` repetitions of `pattern`.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn fill(&self, address: u64, pattern: &[u8], count: usize) -> Result<()> {
        self.write_memory().fill(address, pattern, count)
    }

    /// Allocates and fills a buffer with `values`.
    ///
    /// # Errors
    /// The device has not that much left.
    pub fn upload<T: bytemuck::Pod>(&self, values: &[T]) -> Result<u64> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut memory = self.write_memory();
        let address = memory.allocate(bytes.len() as u64)?;
        memory.write(address, bytes)?;
        Ok(address)
    }

    /// Copies `count` values from the device.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn download<T: bytemuck::Pod>(&self, address: u64, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); count];
        self.read(address, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Loads a PTX module; `file` is the name that messages carry.
    ///
    /// # Errors
    /// The text is not PTX, or uses what the emulator does not have: named with its line.
    pub fn load(&self, file: &str, text: &str) -> Result<Module> {
        module::load(file, text, &mut self.write_memory(), self.level, self.facts.architecture)
    }

    /// Frees a module's variables.
    pub fn unload(&self, module: Module) {
        module::release(&module, &mut self.write_memory());
    }

    /// Refuses a launch as a driver refuses it at the call, and runs nothing.
    ///
    /// # Errors
    /// The launch exceeds the device, or the parameters do not fit.
    pub fn check_launch(&self, module: &Module, kernel: &str, config: LaunchConfig, params: &[u8]) -> Result<()> {
        self.check(module, module.kernel(kernel)?, config, params)
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// The launch exceeds the device, the parameters do not fit, or the kernel was stopped by a fault.
    pub fn launch(&self, module: &Module, kernel: &str, config: LaunchConfig, params: &[u8]) -> Result<LaunchReport> {
        let threads = self.threads;
        let (report, _) = self.launch_observed(module, kernel, config, params, vec![Nothing; threads])?;
        Ok(report)
    }

    /// Runs a kernel and counts what it does.
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub fn launch_counted(
        &self,
        module: &Module,
        kernel: &str,
        config: LaunchConfig,
        params: &[u8],
    ) -> Result<(LaunchReport, Counters)> {
        let observers = (0..self.threads).map(|_| Counting::new(&module.program)).collect();
        let (report, parts) = self.launch_observed(module, kernel, config, params, observers)?;
        Ok((report, Counting::total(&module.program, parts)))
    }

    /// Runs a kernel under the sanitizer, on one thread. Reads of memory that nobody wrote are found in allocations made
    /// after [`Self::with_initialisation_tracking`].
    ///
    /// # Errors
    /// The launch exceeds the device or does not fit the kernel. A fault of the kernel is a finding.
    pub fn launch_sanitized(
        &self,
        module: &Module,
        kernel: &str,
        config: LaunchConfig,
        params: &[u8],
    ) -> Result<(LaunchReport, Vec<Finding>)> {
        let index = module.kernel(kernel)?;
        self.check(module, index, config, params)?;
        let (report, observers, fault) = self.run(module, index, config, params, vec![Sanitizer::new(config.grid)])?;
        let mut findings: Vec<Finding> = observers.into_iter().flat_map(Sanitizer::findings).collect();
        findings.extend(fault.as_ref().map(|fault| Finding::from_fault(fault, &module.program)));
        Ok((report, findings))
    }

    /// Allocations from now on remember which of their bytes were written, for the sanitizer.
    #[must_use]
    pub fn with_initialisation_tracking(self) -> Self {
        self.write_memory().tracks_initialisation = true;
        self
    }

    /// Runs a kernel with one observer per host thread.
    pub(super) fn launch_observed<O: Observe>(
        &self,
        module: &Module,
        kernel: &str,
        config: LaunchConfig,
        params: &[u8],
        observers: Vec<O>,
    ) -> Result<(LaunchReport, Vec<O>)> {
        let index = module.kernel(kernel)?;
        self.check(module, index, config, params)?;
        match self.run(module, index, config, params, observers)? {
            (_, _, Some(fault)) => Err(EmulatorError::Fault(Box::new(fault))),
            (report, observers, None) => Ok((report, observers)),
        }
    }

    /// Runs a launch that was checked, with a workspace for its grid barrier where it is cooperative.
    fn run<O: Observe>(
        &self,
        module: &Module,
        kernel: u32,
        config: LaunchConfig,
        params: &[u8],
        observers: Vec<O>,
    ) -> Result<(LaunchReport, Vec<O>, Option<Fault>)> {
        if module.uses_heap() && self.read_memory().heap().is_none() {
            self.write_memory().make_heap(self.heap_bytes.load(Relaxed))?;
        }
        let workspace = if config.is_cooperative { self.upload(&[0u8; WORKSPACE_BYTES])? } else { 0 };
        let result = self.run_with(module, kernel, config, params, observers, workspace);
        if workspace != 0 {
            self.free(workspace)?;
        }
        Ok(result)
    }

    fn run_with<O: Observe>(
        &self,
        module: &Module,
        kernel: u32,
        config: LaunchConfig,
        params: &[u8],
        observers: Vec<O>,
        workspace: u64,
    ) -> (LaunchReport, Vec<O>, Option<Fault>) {
        let memory = self.read_memory();
        let launch = Launch {
            program: &module.program,
            file: &module.file,
            level: self.level,
            kernel,
            memory: &memory,
            params,
            grid: config.grid,
            block: config.block,
            dynamic_shared_bytes: config.shared_bytes,
            multiprocessors: self.facts.multiprocessors,
            grid_id: self.launches.fetch_add(1, Relaxed),
            is_cooperative: config.is_cooperative,
            workspace,
            budget: self.budget,
            resident: ResidentMemory::new(O::SHADOW),
            start: self.start,
        };
        let result = grid::run(&launch, observers);
        let report = LaunchReport { output: result.output, warp_instructions: result.warp_instructions };
        (report, result.observers, result.fault)
    }

    /// Refuses what a driver would refuse, with the figure.
    fn check(&self, module: &Module, kernel: u32, config: LaunchConfig, params: &[u8]) -> Result<()> {
        let info = &module.program.functions[kernel as usize];
        let refuse = |message: String| Err(EmulatorError::Launch { kernel: info.name.clone(), message });
        let facts = &self.facts;
        for (axis, name) in ["x", "y", "z"].iter().enumerate() {
            let (block, grid) = (config.block[axis], config.grid[axis]);
            if block == 0 || block > facts.max_block[axis] {
                return refuse(format!("block {name} is {block}; the device takes 1 to {}", facts.max_block[axis]));
            }
            if grid == 0 || grid > facts.max_grid[axis] {
                return refuse(format!("grid {name} is {grid}; the device takes 1 to {}", facts.max_grid[axis]));
            }
        }
        let threads: u32 = config.block.iter().product();
        if threads > facts.max_threads_per_block {
            return refuse(format!(
                "{threads} threads per block; the device has at most {}",
                facts.max_threads_per_block
            ));
        }
        if let Some(most) = info.limits.max_threads
            && threads > most.iter().product()
        {
            return refuse(format!(
                "{threads} threads per block; the kernel is compiled for at most {}",
                most.iter().product::<u32>()
            ));
        }
        if let Some(required) = info.limits.required_threads
            && config.block != required
        {
            return refuse(format!("block {:?}; the kernel is compiled for exactly {required:?}", config.block));
        }
        if let Some(cluster) = info.limits.required_cluster
            && cluster != [1; 3]
        {
            return refuse(format!(
                "the kernel runs in clusters of {cluster:?} blocks; the emulator has clusters of one"
            ));
        }
        let fixed = info.shared_bytes.next_multiple_of(info.dynamic_shared_align.clamp(1, 1024));
        let shared = fixed + u64::from(config.shared_bytes);
        if shared > u64::from(facts.max_shared_bytes_per_block) {
            return refuse(format!(
                "{shared} bytes of shared memory ({fixed} static, {} dynamic); the device has {} per block",
                config.shared_bytes, facts.max_shared_bytes_per_block
            ));
        }
        if (params.len() as u64) < u64::from(info.param_bytes) {
            return refuse(format!("{} bytes of parameters; the kernel takes {}", params.len(), info.param_bytes));
        }
        if config.is_cooperative {
            let by_threads = facts.max_threads_per_multiprocessor / threads.next_multiple_of(32);
            let by_shared = u64::from(facts.shared_bytes_per_multiprocessor) / (shared + 1024);
            let resident = u64::from(by_threads.min(facts.max_blocks_per_multiprocessor)).min(by_shared)
                * u64::from(facts.multiprocessors);
            let blocks: u64 = config.grid.iter().map(|&size| u64::from(size)).product();
            if blocks > resident {
                return refuse(format!(
                    "{blocks} blocks in a cooperative launch; {resident} fit on the device at once"
                ));
            }
        }
        Ok(())
    }
}
