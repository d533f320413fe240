//! The same GPU through cust, for programs that live in its ecosystem: the cargo feature `cust`.
//!
//! cust 0.3.2 links `libcuda` when it is built (`CUDA_LIBRARY_PATH` names the toolkit), so a program with this feature
//! starts only where the driver is installed. Contexts, modules, streams and memory are cust's own types. Events and
//! graphs are raw calls, because cust hides the handles that captures need, and so are launches with packed arguments,
//! asynchronous copies and what the compiler says of PTX.
//!
//! cust makes blocking streams only, which may not touch the null stream during a capture. So the default stream of this
//! driver is one of cust's too, and nothing here uses the null stream.

use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::error::CudaError;
use cust::memory::{DevicePointer, cuda_free, cuda_malloc, mem_get_info};
use cust::stream::StreamFlags;
use cust::sys::{self, CUfunction_attribute as FunctionAttribute, CUresult};
use cust::{CudaApiVersion, CudaFlags};
use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex};

use super::handles::{Kept, Queue, Table};
use super::requirements::{check_architecture, check_ordinal, check_version, no_gpu, unavailable};
use super::{
    DeviceFacts, Driver, Error, Event, Function, FunctionFacts, Graph, LaunchConfig, Module, Params, Result, Stream,
    flush_printed, refuse_default, refused_module,
};

/// A [`Driver`] on cust.
pub struct Cust {
    context: Context,
    facts: DeviceFacts,
    modules: Table<cust::module::Module>,
    functions: Table<Kernel>,
    streams: Table<Queue<cust::stream::Stream>>,
    events: Table<RawEvent>,
    graphs: Table<Executable>,
    /// Held while a kernel is given more shared memory, so that no thread takes back what another just asked for.
    opts_in: Mutex<()>,
}

struct Kernel {
    module: Arc<cust::module::Module>,
    /// A `CUfunction`, as a number: cust's own type borrows the module.
    raw: usize,
    name: String,
}

impl Kernel {
    fn raw(&self) -> sys::CUfunction {
        self.raw as sys::CUfunction
    }

    fn attribute(&self, attribute: FunctionAttribute) -> Result<u32> {
        let mut value: c_int = 0;
        // SAFETY: writes one integer; the module, and so the function, is alive.
        let result = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, self.raw()) };
        check("cuFuncGetAttribute", result).map(|()| value.max(0) as u32)
    }
}

/// A `CUevent`, as a number: the driver's own locks make it usable from every thread. Dropped where the context is
/// current, as everything here.
struct RawEvent(usize);

impl RawEvent {
    fn new(is_timed: bool) -> Result<Self> {
        let mut event = std::ptr::null_mut();
        let flags = if is_timed { 0 } else { sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint };
        // SAFETY: writes one handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Self(event as usize))
    }

    fn raw(&self) -> sys::CUevent {
        self.0 as sys::CUevent
    }
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        // SAFETY: ours alone. There is nobody to tell of an error.
        unsafe {
            let _ = sys::cuEventDestroy_v2(self.raw());
        }
    }
}

/// A graph that is ready to be launched.
struct Executable {
    raw: usize,
    /// Recorded behind each launch.
    done: RawEvent,
    /// Only held.
    _kept: Kept,
}

impl Executable {
    fn raw(&self) -> sys::CUgraphExec {
        self.raw as sys::CUgraphExec
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: ours alone. A launch that is under way may still read the bytes that are freed next, so wait for it.
        // There is nobody to tell of an error.
        unsafe {
            let _ = sys::cuEventSynchronize(self.done.raw());
            let _ = sys::cuGraphExecDestroy(self.raw());
        }
    }
}

/// The error of a raw call.
fn check(call: &str, result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut words = std::ptr::null();
    // SAFETY: the driver hands out a static string, or nothing.
    let words = unsafe {
        let is_known = sys::cuGetErrorString(result, &mut words) == CUresult::CUDA_SUCCESS && !words.is_null();
        is_known.then(|| CStr::from_ptr(words).to_string_lossy().into_owned())
    };
    let words = words.unwrap_or_else(|| "unknown to the driver".into());
    Err(Error::failed(call, format!("{result:?} ({words})")))
}

/// The error of one of cust's calls.
fn wrapped<T>(call: &str, result: std::result::Result<T, CudaError>) -> Result<T> {
    result.map_err(|error| Error::failed(call, format!("{error:?} ({})", error.to_string().trim_matches('"'))))
}

/// `CUlaunchAttribute` and `CUlaunchConfig` of the driver API 12.0, which cust's bindings do not have.
#[repr(C)]
struct LaunchAttribute {
    id: c_uint,
    padding: u32,
    value: [u64; 8],
}

#[repr(C)]
struct LaunchConfiguration {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: sys::CUstream,
    attributes: *mut LaunchAttribute,
    attribute_count: c_uint,
}

/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE`
const COOPERATIVE: c_uint = 2;

// SAFETY: as the driver API declares it.
unsafe extern "C" {
    fn cuLaunchKernelEx(
        config: *const LaunchConfiguration,
        function: sys::CUfunction,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> CUresult;
}

impl Cust {
    /// The GPU of this number.
    ///
    /// # Errors
    /// What is missing: a device of that number, a new enough driver or GPU.
    pub fn open(ordinal: usize) -> Result<Self> {
        unavailable(Self::find(ordinal))
    }

    fn find(ordinal: usize) -> Result<Self> {
        let version = wrapped("cuDriverGetVersion", CudaApiVersion::get())?;
        check_version(1000 * version.major() + 10 * version.minor())?;
        match cust::init(CudaFlags::empty()) {
            Err(CudaError::NoDevice) => return Err(no_gpu()),
            result => wrapped("cuInit", result)?,
        }
        let count = wrapped("cuDeviceGetCount", Device::num_devices())?;
        check_ordinal(ordinal, count as i32)?;
        let device = wrapped("cuDeviceGet", Device::get_device(ordinal as u32))?;
        let facts = facts(device)?;
        check_architecture(&facts)?;
        let context = wrapped("cuDevicePrimaryCtxRetain", Context::new(device))?;
        let streams = Table::new("stream");
        let default = streams.add(new_stream()?);
        debug_assert_eq!(Stream(default), Stream::DEFAULT);
        Ok(Self {
            context,
            facts,
            modules: Table::new("module"),
            functions: Table::new("function"),
            streams,
            events: Table::new("event"),
            graphs: Table::new("graph"),
            opts_in: Mutex::default(),
        })
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<()> {
        wrapped("cuCtxSetCurrent", CurrentContext::set_current(&self.context))
    }

    /// Asks for dynamic shared memory that a kernel does not get as it is.
    fn opt_in(&self, kernel: &Kernel, shared_bytes: u32) -> Result<()> {
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        if shared_bytes == 0 || kernel.attribute(attribute)? >= shared_bytes {
            return Ok(());
        }
        let _alone = self.opts_in.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if kernel.attribute(attribute)? >= shared_bytes {
            return Ok(());
        }
        let Ok(bytes) = c_int::try_from(shared_bytes) else {
            return Err(Error::failed("cuFuncSetAttribute", "more than any device has"));
        };
        // SAFETY: the function is alive, and the driver checks the size.
        check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(kernel.raw(), attribute, bytes) })
    }
}

impl Drop for Cust {
    fn drop(&mut self) {
        // What is in the tables is dropped next, and the context after it.
        let _ = self.enter();
    }
}

fn new_stream() -> Result<Queue<cust::stream::Stream>> {
    wrapped("cuStreamCreate", cust::stream::Stream::new(StreamFlags::DEFAULT, None)).map(Queue::new)
}

fn facts(device: Device) -> Result<DeviceFacts> {
    let attribute = |attribute| {
        let value = wrapped("cuDeviceGetAttribute", device.get_attribute(attribute))?;
        Ok::<u32, Error>(value.max(0) as u32)
    };
    // What cust has no name for.
    let raw_attribute = |attribute| {
        let mut value: c_int = 0;
        // SAFETY: writes one integer.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device.as_raw()) })?;
        Ok::<u32, Error>(value.max(0) as u32)
    };
    use DeviceAttribute::*;
    use sys::CUdevice_attribute::*;
    Ok(DeviceFacts {
        name: wrapped("cuDeviceGetName", device.name())?,
        architecture: 10 * attribute(ComputeCapabilityMajor)? + attribute(ComputeCapabilityMinor)?,
        multiprocessors: attribute(MultiprocessorCount)?,
        memory_bytes: wrapped("cuDeviceTotalMem", device.total_memory())? as u64,
        max_threads_per_block: attribute(MaxThreadsPerBlock)?,
        max_block: [attribute(MaxBlockDimX)?, attribute(MaxBlockDimY)?, attribute(MaxBlockDimZ)?],
        max_grid: [attribute(MaxGridDimX)?, attribute(MaxGridDimY)?, attribute(MaxGridDimZ)?],
        max_shared_bytes_per_block: raw_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        max_threads_per_multiprocessor: attribute(MaxThreadsPerMultiprocessor)?,
        max_blocks_per_multiprocessor: raw_attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR)?,
        shared_bytes_per_multiprocessor: attribute(MaxSharedMemoryPerMultiprocessor)?,
    })
}

/// What the compiler says of PTX that does not load: cust has no option for it, so load it once more.
fn compiler_log(text: &CStr) -> Vec<u8> {
    let mut log = vec![0u8; 8 << 10];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: two options with a value each; the log's size is the buffer's; the text ends with a zero.
    unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        if sys::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, options, values) == CUresult::CUDA_SUCCESS {
            let _ = sys::cuModuleUnload(module);
        }
    }
    log
}

impl Driver for Cust {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn memory_info(&self) -> Result<(u64, u64)> {
        self.enter()?;
        wrapped("cuMemGetInfo", mem_get_info()).map(|(free, total)| (free as u64, total as u64))
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        self.enter()?;
        // SAFETY: the address is only ever given to the device.
        match unsafe { cuda_malloc::<u8>(bytes as usize) } {
            Err(CudaError::OutOfMemory) => {
                let (free, total) = self.memory_info()?;
                Err(Error::OutOfMemory { bytes, free, total })
            }
            result => wrapped("cuMemAlloc", result).map(|pointer| pointer.as_raw()),
        }
    }

    fn free(&self, address: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the address, and waits for what uses it.
        wrapped("cuMemFree", unsafe { cuda_free(DevicePointer::<u8>::from_raw(address)) })
    }

    fn write(&self, stream: Stream, address: u64, source: &[u8]) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        let mut capture = queue.capture();
        let mut bytes = source.as_ptr();
        if let Some(kept) = &mut *capture {
            // A graph reads the bytes when it is launched, so it needs its own.
            let copy: Arc<Box<[u8]>> = Arc::new(source.into());
            bytes = copy.as_ptr();
            kept.push(copy);
        }
        // SAFETY: of pageable memory the driver takes a copy before the call returns, and captured bytes live as long as
        // their graph.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(address, bytes.cast(), source.len(), queue.stream.as_inner()) };
        check("cuMemcpyHtoDAsync", result)
    }

    fn read(&self, stream: Stream, address: u64, target: &mut [u8]) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        queue.check_runs("read")?;
        // SAFETY: the target is exclusively ours until the stream's work, and so the copy, is done.
        let result = unsafe {
            let target_bytes = target.len();
            sys::cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), address, target_bytes, queue.stream.as_inner())
        };
        check("cuMemcpyDtoHAsync", result)?;
        wrapped("cuStreamSynchronize", queue.stream.synchronize())
    }

    fn copy(&self, stream: Stream, target: u64, source: u64, bytes: u64) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        // SAFETY: device memory only; a bad address is the device's fault to report.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, bytes as usize, queue.stream.as_inner()) };
        check("cuMemcpyDtoDAsync", result)
    }

    fn fill(&self, stream: Stream, address: u64, word: u32, count: u64) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        // SAFETY: as for `copy`.
        let result = unsafe { sys::cuMemsetD32Async(address, word, count as usize, queue.stream.as_inner()) };
        check("cuMemsetD32Async", result)
    }

    fn load(&self, name: &str, ptx: &str) -> Result<Module> {
        self.enter()?;
        let text = CString::new(ptx).map_err(|_| Error::failed(name, "PTX text with a zero byte in it"))?;
        let loaded = wrapped("cuModuleLoadData", cust::module::Module::from_ptx_cstr(&text, &[]));
        loaded
            .map(|module| Module(self.modules.add(module)))
            .map_err(|error| refused_module(name, &error, &compiler_log(&text)))
    }

    fn unload(&self, module: Module) -> Result<()> {
        self.enter()?;
        let module = self.modules.remove(module.0)?;
        self.functions.retain(|kernel| !Arc::ptr_eq(&kernel.module, &module));
        // A graph that holds it unloads it when it goes.
        let Some(module) = Arc::into_inner(module) else { return Ok(()) };
        wrapped("cuModuleUnload", cust::module::Module::drop(module).map_err(|(error, _)| error))
    }

    fn function(&self, module: Module, name: &str) -> Result<Function> {
        self.enter()?;
        let module = self.modules.get(module.0)?;
        if name.contains('\0') {
            return Err(Error::failed("cuModuleGetFunction", "a name with a zero byte"));
        }
        let call = format!("cuModuleGetFunction of {name}");
        let raw = wrapped(&call, module.get_function(name).map(|function| function.to_raw() as usize))?;
        Ok(Function(self.functions.add(Kernel { module, raw, name: name.to_owned() })))
    }

    fn function_facts(&self, function: Function) -> Result<FunctionFacts> {
        self.enter()?;
        let kernel = self.functions.get(function.0)?;
        use FunctionAttribute::*;
        Ok(FunctionFacts {
            registers: kernel.attribute(CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            shared_bytes: kernel.attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            local_bytes: kernel.attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            max_threads: kernel.attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }

    fn launch(&self, stream: Stream, function: Function, config: LaunchConfig, params: &Params) -> Result<()> {
        self.enter()?;
        let (queue, kernel) = (self.streams.get(stream.0)?, self.functions.get(function.0)?);
        let ([x, y, z], [a, b, c]) = (config.grid, config.block);
        let (name, shared_bytes) = (&kernel.name, config.shared_bytes);
        let call =
            || format!("launch of {name} (grid {x},{y},{z}, block {a},{b},{c}, shared memory {shared_bytes} bytes)");
        self.opt_in(&kernel, shared_bytes).map_err(|error| match error {
            Error::Failed { message, .. } => Error::failed(call(), message),
            other => other,
        })?;
        let bytes = params.as_bytes();
        let mut size = bytes.len();
        // `CU_LAUNCH_PARAM_BUFFER_POINTER`, `_SIZE` and `_END`.
        let mut extra: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(1),
            bytes.as_ptr().cast_mut().cast(),
            std::ptr::without_provenance_mut(2),
            (&raw mut size).cast(),
            std::ptr::null_mut(),
        ];
        let mut cooperative = LaunchAttribute { id: COOPERATIVE, padding: 0, value: [1, 0, 0, 0, 0, 0, 0, 0] };
        let launch = LaunchConfiguration {
            grid: config.grid,
            block: config.block,
            shared_bytes,
            stream: queue.stream.as_inner(),
            attributes: &mut cooperative,
            attribute_count: c_uint::from(config.is_cooperative),
        };
        let mut capture = queue.capture();
        if let Some(kept) = &mut *capture {
            kept.push(Arc::<cust::module::Module>::clone(&kernel.module));
        }
        // SAFETY: `extra` describes the packed arguments, which the driver copies before the call returns; it compares
        // their size with what the kernel takes. The attribute outlives the call.
        let result = unsafe { cuLaunchKernelEx(&launch, kernel.raw(), std::ptr::null_mut(), extra.as_mut_ptr()) };
        check("", result).map_err(|error| match error {
            Error::Failed { message, .. } => Error::failed(call(), message),
            other => other,
        })
    }

    fn create_stream(&self) -> Result<Stream> {
        self.enter()?;
        Ok(Stream(self.streams.add(new_stream()?)))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        refuse_default(stream, "destroy_stream")?;
        // One that a call is just using is destroyed when that returns.
        let Some(queue) = Arc::into_inner(self.streams.remove(stream.0)?) else { return Ok(()) };
        wrapped("cuStreamDestroy", cust::stream::Stream::drop(queue.stream).map_err(|(error, _)| error))
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        queue.check_runs("synchronize")?;
        let result = wrapped("cuStreamSynchronize", queue.stream.synchronize());
        flush_printed();
        result
    }

    fn create_event(&self) -> Result<Event> {
        self.enter()?;
        Ok(Event(self.events.add(RawEvent::new(true)?)))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        self.enter()?;
        self.events.remove(event.0).map(|_| ())
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        self.enter()?;
        let (event, queue) = (self.events.get(event.0)?, self.streams.get(stream.0)?);
        let mut capture = queue.capture();
        let flags = match &mut *capture {
            Some(kept) => {
                kept.push(Arc::<RawEvent>::clone(&event));
                sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL
            }
            None => sys::CUevent_record_flags_enum::CU_EVENT_RECORD_DEFAULT,
        };
        // SAFETY: both are alive.
        let result = unsafe { sys::cuEventRecordWithFlags(event.raw(), queue.stream.as_inner(), flags as c_uint) };
        check("cuEventRecord", result)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        self.enter()?;
        let (event, queue) = (self.events.get(event.0)?, self.streams.get(stream.0)?);
        let mut capture = queue.capture();
        let flags = match &mut *capture {
            Some(kept) => {
                kept.push(Arc::<RawEvent>::clone(&event));
                sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_EXTERNAL
            }
            None => sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT,
        };
        // SAFETY: both are alive.
        let result = unsafe { sys::cuStreamWaitEvent(queue.stream.as_inner(), event.raw(), flags as c_uint) };
        check("cuStreamWaitEvent", result)
    }

    fn elapsed_seconds(&self, start: Event, end: Event) -> Result<f64> {
        self.enter()?;
        let (start, end) = (self.events.get(start.0)?, self.events.get(end.0)?);
        let mut milliseconds = 0.0f32;
        // SAFETY: writes one number; both events are alive.
        unsafe {
            check("cuEventSynchronize", sys::cuEventSynchronize(end.raw()))?;
            check("cuEventElapsedTime", sys::cuEventElapsedTime(&mut milliseconds, start.raw(), end.raw()))?;
        }
        Ok(f64::from(milliseconds) * 1e-3)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        refuse_default(stream, "begin_capture")?;
        let queue = self.streams.get(stream.0)?;
        queue.check_runs("begin_capture")?;
        let mut capture = queue.capture();
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(queue.stream.as_inner(), mode) })?;
        *capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        let kept = queue.capture().take();
        let kept = kept.ok_or_else(|| Error::failed("end_capture", "the stream is not being captured"))?;
        let done = RawEvent::new(false)?;
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: writes handles; what was captured is destroyed once there is an executable form of it.
        unsafe {
            check("cuStreamEndCapture", sys::cuStreamEndCapture(queue.stream.as_inner(), &mut graph))?;
            let result = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
            check("cuGraphDestroy", sys::cuGraphDestroy(graph))?;
            result?;
        }
        Ok(Graph(self.graphs.add(Executable { raw: executable as usize, done, _kept: kept })))
    }

    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        self.enter()?;
        let (graph, queue) = (self.graphs.get(graph.0)?, self.streams.get(stream.0)?);
        let mut capture = queue.capture();
        // SAFETY: both are alive, and what the graph needs lives as long as it.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.raw(), queue.stream.as_inner()) })?;
        match &mut *capture {
            // A part of another graph now.
            Some(kept) => {
                kept.push(graph);
                Ok(())
            }
            // SAFETY: both are alive.
            None => check("cuEventRecord", unsafe { sys::cuEventRecord(graph.done.raw(), queue.stream.as_inner()) }),
        }
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        self.enter()?;
        self.graphs.remove(graph.0).map(|_| ())
    }
}
