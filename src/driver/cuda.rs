//! An NVIDIA GPU through `libcuda`, which is loaded at run time: nothing of CUDA is needed to build or to run without.
//!
//! The driver API through cudarc's bindings for CUDA 12.0, the oldest that is supported: what is in them is in every
//! later driver too (CUDA Driver API reference). The context is the device's primary one, made current before each call,
//! so that any thread may call. Arguments go to a kernel as one packed buffer, as they lie in [`Params`].
//!
//! Captures are relaxed ones: other calls, also from other threads, go on as usual meanwhile. Events and waits become
//! nodes of the graph rather than edges, so that they mean in a replay what they mean outside.

mod object;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute, CUresult};
use object::{Context, Executable, Kind, Object};
use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex};

use super::handles::{Queue, Table};
use super::requirements::{check_architecture, check_ordinal, check_version, foreign_library, no_gpu, unavailable};
use super::{
    DeviceFacts, Driver, Error, Event, Function, FunctionFacts, Graph, LaunchConfig, Module, Params, Result, Stream,
    flush_printed, refuse_default, refused_module,
};

/// A [`Driver`] on `libcuda`.
pub struct Cuda {
    context: Arc<Context>,
    facts: DeviceFacts,
    modules: Table<Object>,
    functions: Table<Kernel>,
    streams: Table<Queue<Object>>,
    events: Table<Object>,
    graphs: Table<Executable>,
    /// Held while a kernel is given more shared memory, so that no thread takes back what another just asked for.
    opts_in: Mutex<()>,
}

struct Kernel {
    module: Arc<Object>,
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

impl Cuda {
    /// The GPU of this number.
    ///
    /// # Errors
    /// What is missing: the library, a device of that number, a new enough driver or GPU.
    pub fn open(ordinal: usize) -> Result<Self> {
        unavailable(Self::find(ordinal))
    }

    fn find(ordinal: usize) -> Result<Self> {
        // SAFETY: loads the library if there is one; its initialisers are the driver's own.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Unavailable(
                "there is no libcuda.so.1 on this machine: no NVIDIA driver is installed".into(),
            ));
        }
        // cudarc panics where an entry point is missing, so ask for the one that every driver has. Those of 12.0 are
        // there if the version says so.
        // SAFETY: the symbol is not called.
        if unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cuDriverGetVersion\0") }.is_err() {
            return Err(foreign_library());
        }
        let mut version = 0;
        // SAFETY: writes one integer.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
        check_version(version)?;
        // SAFETY: no arguments but a flag that has to be 0.
        match unsafe { sys::cuInit(0) } {
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(no_gpu()),
            result => check("cuInit", result)?,
        }
        let mut count = 0;
        // SAFETY: writes one integer.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        check_ordinal(ordinal, count)?;
        let mut device = 0;
        // SAFETY: writes one handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as c_int) })?;
        let facts = facts(device)?;
        check_architecture(&facts)?;
        let context = Arc::new(Context::retain(device)?);
        let streams = Table::new("stream");
        let default = streams.add(Queue::new(Object::new(&context, Kind::Stream, std::ptr::null_mut::<c_void>())));
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
        self.context.enter()
    }

    /// An event of ours; one that needs no time is cheaper.
    fn event(&self, is_timed: bool) -> Result<Object> {
        let mut event = std::ptr::null_mut();
        let flags = if is_timed { 0 } else { sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint };
        // SAFETY: writes one handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Object::new(&self.context, Kind::Event, event))
    }

    /// Asks for dynamic shared memory that a kernel does not get as it is: by default static and dynamic memory
    /// together have 48 KiB.
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

/// The error of a call, with the driver's own words.
fn check(call: &str, result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(Error::failed(call, object::describe(result))) }
}

fn facts(device: sys::CUdevice) -> Result<DeviceFacts> {
    let mut name = [0u8; 256];
    // SAFETY: the length is the array's; the driver ends the text with a zero.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device) })?;
    let name = CStr::from_bytes_until_nul(&name).map_or_else(|_| "GPU".into(), |text| text.to_string_lossy().into());
    let mut memory_bytes = 0;
    // SAFETY: writes one integer.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory_bytes, device) })?;
    let attribute = |attribute| {
        let mut value: c_int = 0;
        // SAFETY: writes one integer.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
        Ok::<u32, Error>(value.max(0) as u32)
    };
    use Attribute::*;
    Ok(DeviceFacts {
        name,
        architecture: 10 * attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory_bytes as u64,
        max_threads_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        max_block: [
            attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
            attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
            attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
        ],
        max_grid: [
            attribute(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
            attribute(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
            attribute(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
        ],
        max_shared_bytes_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        max_threads_per_multiprocessor: attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
        max_blocks_per_multiprocessor: attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR)?,
        shared_bytes_per_multiprocessor: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
    })
}

impl Driver for Cuda {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn memory_info(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: writes one address.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes as usize) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.memory_info()?;
                Err(Error::OutOfMemory { bytes, free, total })
            }
            result => check("cuMemAlloc", result).map(|()| address),
        }
    }

    fn free(&self, address: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the address, and waits for what uses it.
        check("cuMemFree", unsafe { sys::cuMemFree_v2(address) })
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
        // SAFETY: of pageable memory the driver takes a copy before the call returns ("API synchronization behavior",
        // CUDA Driver API), and captured bytes live as long as their graph.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(address, bytes.cast(), source.len(), queue.stream.raw()) };
        check("cuMemcpyHtoDAsync", result)
    }

    fn read(&self, stream: Stream, address: u64, target: &mut [u8]) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        queue.check_runs("read")?;
        // SAFETY: the target is exclusively ours until the stream's work, and so the copy, is done.
        unsafe {
            let result =
                sys::cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), address, target.len(), queue.stream.raw());
            check("cuMemcpyDtoHAsync", result)?;
            check("cuStreamSynchronize", sys::cuStreamSynchronize(queue.stream.raw()))
        }
    }

    fn copy(&self, stream: Stream, target: u64, source: u64, bytes: u64) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        // SAFETY: device memory only; a bad address is the device's fault to report.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, bytes as usize, queue.stream.raw()) };
        check("cuMemcpyDtoDAsync", result)
    }

    fn fill(&self, stream: Stream, address: u64, word: u32, count: u64) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        // SAFETY: as for `copy`.
        check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(address, word, count as usize, queue.stream.raw()) })
    }

    fn load(&self, name: &str, ptx: &str) -> Result<Module> {
        self.enter()?;
        let text = CString::new(ptx).map_err(|_| Error::failed(name, "PTX text with a zero byte in it"))?;
        let mut log = vec![0u8; 8 << 10];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: two options with a value each; the log's size is the buffer's; the text ends with a zero.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                text.as_ptr().cast(),
                options.len() as c_uint,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        check("cuModuleLoadData", result).map_err(|error| refused_module(name, &error, &log))?;
        Ok(Module(self.modules.add(Object::new(&self.context, Kind::Module, module))))
    }

    fn unload(&self, module: Module) -> Result<()> {
        self.enter()?;
        let module = self.modules.remove(module.0)?;
        self.functions.retain(|kernel| !Arc::ptr_eq(&kernel.module, &module));
        Object::end(module)
    }

    fn function(&self, module: Module, name: &str) -> Result<Function> {
        self.enter()?;
        let module = self.modules.get(module.0)?;
        let text = CString::new(name).map_err(|_| Error::failed("cuModuleGetFunction", "a name with a zero byte"))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: writes one handle; the name ends with a zero.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, module.raw(), text.as_ptr()) };
        check(&format!("cuModuleGetFunction of {name}"), result)?;
        Ok(Function(self.functions.add(Kernel { module, raw: function as usize, name: name.to_owned() })))
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
        // What was asked for: the driver's own words have no figures.
        let refused = |result: CUresult| {
            let (name, shared) = (&kernel.name, config.shared_bytes);
            let call = format!("launch of {name} (grid {x},{y},{z}, block {a},{b},{c}, shared memory {shared} bytes)");
            check(&call, result)
        };
        if let Err(Error::Failed { message, .. }) = self.opt_in(&kernel, config.shared_bytes) {
            return Err(Error::failed(
                format!("launch of {} with {} bytes of dynamic shared memory", kernel.name, config.shared_bytes),
                message,
            ));
        }
        let bytes = params.as_bytes();
        let mut size = bytes.len();
        let mut extra = [
            sys::CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT as usize as *mut c_void,
            bytes.as_ptr().cast_mut().cast(),
            sys::CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT as usize as *mut c_void,
            (&raw mut size).cast(),
            sys::CU_LAUNCH_PARAM_END_AS_INT as usize as *mut c_void,
        ];
        let mut capture = queue.capture();
        if let Some(kept) = &mut *capture {
            kept.push(Arc::<Object>::clone(&kernel.module));
        }
        if !config.is_cooperative {
            // SAFETY: `extra` describes the packed arguments, which the driver copies before the call returns. The driver
            // compares their size with what the kernel takes.
            return refused(unsafe {
                let (none, extra) = (std::ptr::null_mut(), extra.as_mut_ptr());
                sys::cuLaunchKernel(
                    kernel.raw(),
                    x,
                    y,
                    z,
                    a,
                    b,
                    c,
                    config.shared_bytes,
                    queue.stream.raw(),
                    none,
                    extra,
                )
            });
        }
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { cooperative: 1 },
        };
        let launch = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: a,
            blockDimY: b,
            blockDimZ: c,
            sharedMemBytes: config.shared_bytes,
            hStream: queue.stream.raw(),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        // SAFETY: as above; the one attribute outlives the call.
        refused(unsafe { sys::cuLaunchKernelEx(&launch, kernel.raw(), std::ptr::null_mut(), extra.as_mut_ptr()) })
    }

    fn create_stream(&self) -> Result<Stream> {
        self.enter()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: writes one handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        Ok(Stream(self.streams.add(Queue::new(Object::new(&self.context, Kind::Stream, stream)))))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        refuse_default(stream, "destroy_stream")?;
        // One that a call is just using is destroyed when that returns.
        Arc::into_inner(self.streams.remove(stream.0)?).map_or(Ok(()), |mut queue| queue.stream.destroy())
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        queue.check_runs("synchronize")?;
        // SAFETY: the stream is alive.
        let result = check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(queue.stream.raw()) });
        flush_printed();
        result
    }

    fn create_event(&self) -> Result<Event> {
        self.enter()?;
        Ok(Event(self.events.add(self.event(true)?)))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        self.enter()?;
        Object::end(self.events.remove(event.0)?)
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        self.enter()?;
        let (event, queue) = (self.events.get(event.0)?, self.streams.get(stream.0)?);
        let mut capture = queue.capture();
        let flags = match &mut *capture {
            Some(kept) => {
                kept.push(Arc::<Object>::clone(&event));
                sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL
            }
            None => sys::CUevent_record_flags_enum::CU_EVENT_RECORD_DEFAULT,
        };
        // SAFETY: both are alive.
        let result = unsafe { sys::cuEventRecordWithFlags(event.raw(), queue.stream.raw(), flags as c_uint) };
        check("cuEventRecord", result)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        self.enter()?;
        let (event, queue) = (self.events.get(event.0)?, self.streams.get(stream.0)?);
        let mut capture = queue.capture();
        let flags = match &mut *capture {
            Some(kept) => {
                kept.push(Arc::<Object>::clone(&event));
                sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_EXTERNAL
            }
            None => sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT,
        };
        // SAFETY: both are alive.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(queue.stream.raw(), event.raw(), flags as c_uint) })
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
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(queue.stream.raw(), mode) })?;
        *capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.enter()?;
        let queue = self.streams.get(stream.0)?;
        let kept = queue.capture().take();
        let kept = kept.ok_or_else(|| Error::failed("end_capture", "the stream is not being captured"))?;
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: writes handles; what was captured is destroyed once there is an executable form of it.
        let object = unsafe {
            check("cuStreamEndCapture", sys::cuStreamEndCapture(queue.stream.raw(), &mut graph))?;
            let result = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
            check("cuGraphDestroy", sys::cuGraphDestroy(graph))?;
            result.map(|()| Object::new(&self.context, Kind::Graph, executable))?
        };
        Ok(Graph(self.graphs.add(Executable::new(object, self.event(false)?, kept))))
    }

    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        self.enter()?;
        let (graph, queue) = (self.graphs.get(graph.0)?, self.streams.get(stream.0)?);
        let mut capture = queue.capture();
        // SAFETY: both are alive, and what the graph needs lives as long as it.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.object.raw(), queue.stream.raw()) })?;
        match &mut *capture {
            // A part of another graph now.
            Some(kept) => {
                kept.push(graph);
                Ok(())
            }
            // SAFETY: both are alive.
            None => check("cuEventRecord", unsafe { sys::cuEventRecord(graph.done.raw(), queue.stream.raw()) }),
        }
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        self.enter()?;
        match Arc::into_inner(self.graphs.remove(graph.0)?) {
            Some(mut graph) => graph.wait().and_then(|()| graph.object.destroy()),
            None => Ok(()),
        }
    }
}
