//! Launches: parameters gathered, limits checked, the kernel run by the emulator.
//!
//! What a driver refuses at the call is refused here, with a line in the log that has the figure. What stops a kernel is
//! not the call's error: as on a GPU, the next synchronisation tells it.

use std::ffi::c_uint;
use std::io::Write;
use std::sync::Arc;

use engine::driver::emulator::{Counters, EmulatorError, Fault, FaultKind, Finding, LaunchConfig, LaunchReport};

use crate::context::Context;
use crate::errors::{
    Answer, COOPERATIVE_LAUNCH_TOO_LARGE, Code, INVALID_VALUE, LAUNCH_FAILED, LAUNCH_OUT_OF_RESOURCES, NOT_SUPPORTED,
    answer,
};
use crate::event;
use crate::function::{max_threads, resident_blocks, shared_bytes};
use crate::module::{Function, function};
use crate::options::log;
use crate::state::driver;
use crate::submit::{Operation, submit};
use crate::types::{Handle, In, KernelNode, LaunchAttribute, LaunchConfiguration};

/// A kernel with everything that its launch needs.
pub struct KernelLaunch {
    pub function: Arc<Function>,
    pub config: LaunchConfig,
    params: Vec<u8>,
    /// Addresses of the parameters in `params`, for those who ask for a graph node's.
    pointers: Vec<usize>,
}

// The words of the `extra` array.
const EXTRA_END: usize = 0;
const EXTRA_BUFFER: usize = 1;
const EXTRA_BYTES: usize = 2;

impl KernelLaunch {
    /// Reads the parameters of a launch as a graph's node describes it, and checks it against the device.
    pub fn new(node: &KernelNode, is_cooperative: bool) -> Answer<Arc<Self>> {
        let function = function(node.function)?;
        let params = gather(&function, node.params, node.extra)?;
        let config =
            LaunchConfig { grid: node.grid, block: node.block, shared_bytes: node.shared_bytes, is_cooperative };
        if let Err((code, reason)) = check(&function, &config) {
            log(|| format!("cannot launch {}: {reason}", name(&function)));
            return Err(code);
        }
        Self::of(function, config, params)
    }

    fn of(function: Arc<Function>, config: LaunchConfig, params: Vec<u8>) -> Answer<Arc<Self>> {
        let start = params.as_ptr() as usize;
        let pointers = function.info()?.params.iter().map(|parameter| start + parameter.offset as usize).collect();
        Ok(Arc::new(Self { function, config, params, pointers }))
    }

    /// The same launch, cooperative or not.
    pub fn with_cooperation(&self, is_cooperative: bool) -> Answer<Arc<Self>> {
        let config = LaunchConfig { is_cooperative, ..self.config };
        check(&self.function, &config).map_err(|(code, _)| code)?;
        Self::of(self.function.clone(), config, self.params.clone())
    }

    /// The array of pointers to the parameters, good as long as the launch.
    pub fn pointers(&self) -> &[usize] {
        &self.pointers
    }

    pub fn run(&self, context: &Context) -> Answer {
        let driver = driver()?;
        let module = self.function.module.loaded()?;
        let kernel = self.function.info()?.name.as_str();
        let (emulator, options) = (&driver.emulator, &driver.options);
        let result: Result<LaunchReport, EmulatorError> = if options.sanitizes {
            emulator.launch_sanitized(module, kernel, self.config, &self.params).map(|(report, findings)| {
                findings.iter().for_each(tell_finding);
                if !findings.is_empty() {
                    context.kill(LAUNCH_FAILED);
                }
                report
            })
        } else if let Some(path) = &options.counters {
            emulator.launch_counted(module, kernel, self.config, &self.params).map(|(report, counters)| {
                let line = self.counted(kernel, &counters);
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
                if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
                    log(|| format!("cannot append to {}: {error}", path.display()));
                }
                report
            })
        } else {
            emulator.launch(module, kernel, self.config, &self.params)
        };
        match result {
            Ok(report) => {
                driver.print(&report.output);
                Ok(())
            }
            Err(EmulatorError::Fault(fault)) => {
                tell_fault(&fault);
                context.kill(Code::fault(&fault.kind));
                Ok(())
            }
            Err(error) => Err(crate::errors::refuse(&error)),
        }
    }

    fn counted(&self, kernel: &str, counters: &Counters) -> String {
        let object = serde_json::json!({
            "kernel": kernel,
            "grid": self.config.grid,
            "block": self.config.block,
            "dynamic_shared_bytes": self.config.shared_bytes,
            "warp_instructions": counters.warp_instructions,
            "thread_instructions": counters.thread_instructions,
            "global_load_requests": counters.global_load_requests,
            "global_load_sectors": counters.global_load_sectors,
            "global_store_requests": counters.global_store_requests,
            "global_store_sectors": counters.global_store_sectors,
            "global_atomic_requests": counters.global_atomic_requests,
            "dram_read_bytes": counters.dram_read_bytes,
            "dram_write_bytes": counters.dram_write_bytes,
            "shared_wavefronts": counters.shared_wavefronts,
            "shared_bank_conflicts": counters.shared_bank_conflicts,
            "tensor_core_flops": counters.tensor_core_flops,
            "barriers": counters.barriers,
            "divergent_branches": counters.divergent_branches,
            "opcodes": counters.opcodes,
        });
        format!("{object}\n")
    }
}

fn name(function: &Function) -> String {
    function.info().map_or_else(|_| "?".into(), |info| info.name.clone())
}

fn tell_finding(finding: &Finding) {
    let source = finding.source.as_ref().map(|(file, line)| format!(" ({file}:{line})")).unwrap_or_default();
    eprintln!(
        "libcuda emulator: {:?} in {}, PTX line {}{source}, block {:?}, thread {:?}, address {:#x}: {}",
        finding.kind, finding.kernel, finding.line, finding.block, finding.thread, finding.address, finding.detail
    );
}

fn tell_fault(fault: &Fault) {
    // A failed assertion is told as a GPU's driver tells it, whether or not the log is on.
    if let FaultKind::Assertion(text) = &fault.kind {
        eprintln!("block: {:?}, thread: {:?}: assertion failed: {text}", fault.block, fault.thread);
    }
    log(|| fault.to_string());
}

/// Packs the parameters as the kernel lays them out.
fn gather(function: &Function, params: In<*const u8>, extra: In<usize>) -> Answer<Vec<u8>> {
    let info = function.info()?;
    let mut packed = vec![0u8; info.param_bytes as usize];
    if !extra.is_null() {
        if !params.is_null() {
            return Err(INVALID_VALUE);
        }
        let (mut buffer, mut bytes) = (None, None);
        for index in (0..).step_by(2) {
            match extra.at(index)? {
                EXTRA_END => break,
                EXTRA_BUFFER => buffer = Some(In::<u8>::from_address(extra.at(index + 1)?)),
                EXTRA_BYTES => bytes = Some(In::<usize>::from_address(extra.at(index + 1)?).get()?),
                _ => return Err(INVALID_VALUE),
            }
        }
        let bytes = bytes.unwrap_or(0);
        // The buffer may leave out padding at its end, but no parameter.
        let least = info.params.iter().map(|parameter| (parameter.offset + parameter.bytes) as usize).max();
        if bytes < least.unwrap_or(0) {
            return Err(INVALID_VALUE);
        }
        let count = bytes.min(packed.len());
        if count > 0 {
            packed[..count].copy_from_slice(buffer.ok_or(INVALID_VALUE)?.bytes(count)?);
        }
        return Ok(packed);
    }
    for (index, parameter) in info.params.iter().enumerate() {
        let source = In::<u8>::from_address(params.at(index)? as usize);
        let (start, bytes) = (parameter.offset as usize, parameter.bytes as usize);
        packed[start..start + bytes].copy_from_slice(source.bytes(bytes)?);
    }
    Ok(packed)
}

/// What a driver refuses, with the reason.
fn check(function: &Function, config: &LaunchConfig) -> Result<(), (Code, String)> {
    let emulator = &driver().map_err(|code| (code, String::new()))?.emulator;
    let facts = emulator.facts();
    let info = function.info().map_err(|code| (code, "its module is unloaded".into()))?;
    for axis in 0..3 {
        let (grid, block) = (config.grid[axis], config.block[axis]);
        if grid == 0 || grid > facts.max_grid[axis] || block == 0 || block > facts.max_block[axis] {
            let reason = format!(
                "grid {:?}, block {:?}; the device takes 1 to {:?} and 1 to {:?}",
                config.grid, config.block, facts.max_grid, facts.max_block
            );
            return Err((INVALID_VALUE, reason));
        }
    }
    let threads: u32 = config.block.iter().product();
    if threads > facts.max_threads_per_block {
        return Err((INVALID_VALUE, format!("{threads} threads; a block has at most {}", facts.max_threads_per_block)));
    }
    let most = max_threads(info, facts);
    if threads > most {
        return Err((LAUNCH_OUT_OF_RESOURCES, format!("{threads} threads; the kernel is compiled for at most {most}")));
    }
    if let Some(required) = info.limits.required_threads
        && required != config.block
    {
        return Err((INVALID_VALUE, format!("block {:?}; the kernel is compiled for {required:?}", config.block)));
    }
    let allowed = function.max_dynamic_shared.load(std::sync::atomic::Ordering::Relaxed);
    if i64::from(config.shared_bytes) > i64::from(allowed) {
        let reason = format!(
            "{} bytes of dynamic shared memory; {allowed} are allowed (cuFuncSetAttribute with \
             MAX_DYNAMIC_SHARED_SIZE_BYTES raises it)",
            config.shared_bytes
        );
        return Err((INVALID_VALUE, reason));
    }
    let shared = shared_bytes(info, u64::from(config.shared_bytes));
    if shared > u64::from(facts.max_shared_bytes_per_block) {
        let reason = format!("{shared} bytes of shared memory; a block has {}", facts.max_shared_bytes_per_block);
        return Err((INVALID_VALUE, reason));
    }
    if config.is_cooperative {
        let blocks: u64 = config.grid.iter().map(|&size| u64::from(size)).product();
        let resident = u64::from(resident_blocks(info, facts, threads, u64::from(config.shared_bytes)))
            * u64::from(facts.multiprocessors);
        if blocks > resident {
            let reason = format!("{blocks} blocks in a cooperative launch; {resident} fit on the device at once");
            return Err((COOPERATIVE_LAUNCH_TOO_LARGE, reason));
        }
    }
    Ok(())
}

pub fn launch(node: &KernelNode, is_cooperative: bool, stream: Handle) -> Answer {
    crate::context::usable()?;
    submit(stream, Operation::Kernel(KernelLaunch::new(node, is_cooperative)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    params: In<*const u8>,
    extra: In<usize>,
) -> Code {
    answer("cuLaunchKernel", || {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        launch(&KernelNode { function, grid, block, shared_bytes, params, extra }, false, stream)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchCooperativeKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    params: In<*const u8>,
) -> Code {
    answer("cuLaunchCooperativeKernel", || {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let extra = In::from_address(0);
        launch(&KernelNode { function, grid, block, shared_bytes, params, extra }, true, stream)
    })
}

/// What the attributes of an extended launch ask for.
#[derive(Default)]
struct Asked {
    is_cooperative: bool,
    /// Events to record once the kernel has run.
    events: Vec<Handle>,
}

impl Asked {
    /// Takes an attribute; hints on caches, order and priority have no effect here.
    fn take(&mut self, attribute: &LaunchAttribute) -> Answer {
        const COOPERATIVE: c_uint = 2;
        const CLUSTER: c_uint = 4;
        const PROGRAMMATIC_EVENT: c_uint = 7;
        const PREFERRED_CLUSTER: c_uint = 11;
        const COMPLETION_EVENT: c_uint = 12;
        const NEWEST: c_uint = 16;
        let words = [attribute.value[0] as u32, (attribute.value[0] >> 32) as u32, attribute.value[1] as u32];
        match attribute.id {
            COOPERATIVE => self.is_cooperative = words[0] != 0,
            CLUSTER | PREFERRED_CLUSTER if words.iter().any(|&size| size > 1) => {
                log(|| format!("clusters of blocks {words:?} are not supported"));
                return Err(NOT_SUPPORTED);
            }
            PROGRAMMATIC_EVENT | COMPLETION_EVENT => self.events.push(attribute.value[0] as Handle),
            0..=NEWEST => {}
            id => {
                log(|| format!("launch attribute {id} is not known"));
                return Err(NOT_SUPPORTED);
            }
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernelEx(
    config: In<LaunchConfiguration>,
    function: Handle,
    params: In<*const u8>,
    extra: In<usize>,
) -> Code {
    answer("cuLaunchKernelEx", || {
        let config = config.get()?;
        let mut asked = Asked::default();
        for attribute in config.attributes.all(config.attribute_count as usize)? {
            asked.take(&attribute)?;
        }
        let events: Vec<_> = asked.events.iter().map(|&handle| event::of(handle)).collect::<Answer<_>>()?;
        let node = KernelNode {
            function,
            grid: config.grid,
            block: config.block,
            shared_bytes: config.shared_bytes,
            params,
            extra,
        };
        launch(&node, asked.is_cooperative, config.stream)?;
        events.into_iter().try_for_each(|event| submit(config.stream, Operation::Record(event)))
    })
}
