//! An NVIDIA GPU through `libcuda`, which is loaded at run time: nothing of CUDA is needed to build or to run without.
//!
//! The driver API through cudarc's bindings for CUDA 12.0, the oldest that is supported: what is in them is in every
//! later driver too (CUDA Driver API reference). The context is the device's
//! primary one, made current before each call, so that any thread may call. Arguments go to a kernel as one packed
//! buffer, as they lie in [`Params`].

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute, CUresult};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::sync::Mutex;

use super::{
    DeviceFacts, Driver, Error, Event, Function, FunctionFacts, Graph, LaunchConfig, Module, Params, Result, Stream,
};

/// The oldest driver that loads our PTX: 12.0, the 525 series.
const OLDEST_VERSION: c_int = 12_000;
/// 10 times the compute capability that the kernels are compiled for.
const OLDEST_ARCHITECTURE: u32 = 80;
/// Shared memory that a kernel gets without asking for more.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// A [`Driver`] on `libcuda`.
pub struct Cuda {
    device: sys::CUdevice,
    /// Kept as a number: the driver's own locks make it usable from every thread.
    context: usize,
    facts: DeviceFacts,
    copies: Mutex<Copies>,
}

/// Bytes that captured copies will read whenever their graph is launched.
#[derive(Default)]
struct Copies {
    of_captures: HashMap<Stream, Vec<Box<[u8]>>>,
    of_graphs: HashMap<Graph, Vec<Box<[u8]>>>,
}

impl Cuda {
    /// The GPU of this number.
    ///
    /// # Errors
    /// What is missing: the library, a device of that number, a new enough driver or GPU.
    pub fn open(ordinal: usize) -> Result<Self> {
        // SAFETY: loads the library if there is one; its initialisers are the driver's own.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Unavailable(
                "there is no libcuda.so.1 on this machine: no NVIDIA driver is installed".into(),
            ));
        }
        let mut version = 0;
        // SAFETY: writes one integer.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
        if version < OLDEST_VERSION {
            return Err(Error::Unavailable(format!(
                "the NVIDIA driver is for CUDA {}.{}: install one for CUDA {}.{} or newer",
                version / 1000,
                version % 1000 / 10,
                OLDEST_VERSION / 1000,
                OLDEST_VERSION % 1000 / 10
            )));
        }
        let unavailable = |error: Error| match error {
            Error::Failed { call, message } => Error::Unavailable(format!("{call}: {message}")),
            other => other,
        };
        // SAFETY: no arguments but a flag that has to be 0.
        check("cuInit", unsafe { sys::cuInit(0) }).map_err(unavailable)?;
        let mut count = 0;
        // SAFETY: writes one integer.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        if ordinal >= count.max(0) as usize {
            let plural = if count == 1 { "" } else { "s" };
            return Err(Error::Unavailable(format!("this machine has {count} GPU{plural}, numbered from 0")));
        }
        let mut device = 0;
        // SAFETY: writes one handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as c_int) })?;
        let facts = facts(device)?;
        if facts.architecture < OLDEST_ARCHITECTURE {
            let (major, minor) = (facts.architecture / 10, facts.architecture % 10);
            return Err(Error::Unavailable(format!(
                "{} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer",
                facts.name
            )));
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one handle; released when dropped.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })
            .map_err(unavailable)?;
        Ok(Self { device, context: context as usize, facts, copies: Mutex::default() })
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context as sys::CUcontext) })
    }

    fn copies(&self) -> std::sync::MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The error of a call, with the driver's own words.
fn check(call: &str, result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver hands out a static string, or nothing.
        unsafe {
            let known = get(result, &mut text) == CUresult::CUDA_SUCCESS && !text.is_null();
            known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("error {}", result as u32));
    let words = text(sys::cuGetErrorString).unwrap_or_else(|| "unknown to the driver".into());
    Err(Error::failed(call, format!("{name} ({words})")))
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

fn stream_of(stream: Stream) -> sys::CUstream {
    stream.0 as sys::CUstream
}

fn event_of(event: Event) -> sys::CUevent {
    event.0 as sys::CUevent
}

fn function_of(function: Function) -> sys::CUfunction {
    function.0 as sys::CUfunction
}

fn is_capturing(stream: Stream) -> Result<bool> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: writes the status; the driver checks the handle.
    check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(stream_of(stream), &mut status) })?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
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
        let mut bytes = source.as_ptr();
        if is_capturing(stream)? {
            // A graph reads the bytes when it is launched, so it needs its own.
            let copy: Box<[u8]> = source.into();
            bytes = copy.as_ptr();
            self.copies().of_captures.entry(stream).or_default().push(copy);
        }
        // SAFETY: of pageable memory the driver takes a copy before the call returns ("API synchronization behavior",
        // CUDA Driver API), and captured bytes live as long as their graph.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(address, bytes.cast(), source.len(), stream_of(stream)) };
        check("cuMemcpyHtoDAsync", result)
    }

    fn read(&self, stream: Stream, address: u64, target: &mut [u8]) -> Result<()> {
        self.synchronize(stream)?;
        // SAFETY: the target is exclusively ours, and the call returns when the copy is done.
        check("cuMemcpyDtoH", unsafe { sys::cuMemcpyDtoH_v2(target.as_mut_ptr().cast(), address, target.len()) })
    }

    fn copy(&self, stream: Stream, target: u64, source: u64, bytes: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: device memory only; a bad address is the device's fault to report.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, bytes as usize, stream_of(stream)) };
        check("cuMemcpyDtoDAsync", result)
    }

    fn fill(&self, stream: Stream, address: u64, word: u32, count: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: as for `copy`.
        check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(address, word, count as usize, stream_of(stream)) })
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
        check("cuModuleLoadData", result).map_err(|error| {
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            match log.lines().find(|line| !line.trim().is_empty()) {
                Some(line) => Error::failed(name, format!("{error}: {}", line.trim())),
                None => Error::failed(name, error),
            }
        })?;
        Ok(Module(module as u64))
    }

    fn unload(&self, module: Module) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the handle.
        check("cuModuleUnload", unsafe { sys::cuModuleUnload(module.0 as sys::CUmodule) })
    }

    fn function(&self, module: Module, name: &str) -> Result<Function> {
        self.enter()?;
        let text = CString::new(name).map_err(|_| Error::failed("cuModuleGetFunction", "a name with a zero byte"))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: writes one handle; the name ends with a zero.
        let result = unsafe { sys::cuModuleGetFunction(&mut function, module.0 as sys::CUmodule, text.as_ptr()) };
        check(&format!("cuModuleGetFunction of {name}"), result)?;
        Ok(Function(function as u64))
    }

    fn function_facts(&self, function: Function) -> Result<FunctionFacts> {
        self.enter()?;
        let attribute = |attribute| {
            let mut value: c_int = 0;
            // SAFETY: writes one integer; the driver checks the handle.
            let result = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, function_of(function)) };
            check("cuFuncGetAttribute", result).map(|()| value.max(0) as u32)
        };
        use FunctionAttribute::*;
        Ok(FunctionFacts {
            registers: attribute(CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            shared_bytes: attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            local_bytes: attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            max_threads: attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }

    fn launch(&self, stream: Stream, function: Function, config: LaunchConfig, params: &Params) -> Result<()> {
        self.enter()?;
        let function = function_of(function);
        if config.shared_bytes > SHARED_WITHOUT_ASKING {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the driver checks the handle and the size.
            let result = unsafe { sys::cuFuncSetAttribute(function, attribute, config.shared_bytes as c_int) };
            check("cuFuncSetAttribute", result)?;
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
        let ([x, y, z], [a, b, c]) = (config.grid, config.block);
        if !config.is_cooperative {
            // SAFETY: `extra` describes the packed arguments, which the driver copies before the call returns.
            let result = unsafe {
                let (none, extra) = (std::ptr::null_mut(), extra.as_mut_ptr());
                sys::cuLaunchKernel(function, x, y, z, a, b, c, config.shared_bytes, stream_of(stream), none, extra)
            };
            return check("cuLaunchKernel", result);
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
            hStream: stream_of(stream),
            attrs: &mut attribute,
            numAttrs: 1,
        };
        // SAFETY: as above; the one attribute outlives the call.
        let result = unsafe { sys::cuLaunchKernelEx(&launch, function, std::ptr::null_mut(), extra.as_mut_ptr()) };
        check("cuLaunchKernelEx", result)
    }

    fn create_stream(&self) -> Result<Stream> {
        self.enter()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: writes one handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        Ok(Stream(stream as u64))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        self.copies().of_captures.remove(&stream);
        // SAFETY: the driver checks the handle.
        check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(stream_of(stream)) })
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the handle.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream_of(stream)) })
    }

    fn create_event(&self) -> Result<Event> {
        self.enter()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, 0) })?;
        Ok(Event(event as u64))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the handle.
        check("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(event_of(event)) })
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the handles.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event_of(event), stream_of(stream)) })
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the handles.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream_of(stream), event_of(event), 0) })
    }

    fn elapsed_seconds(&self, start: Event, end: Event) -> Result<f64> {
        self.enter()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: writes one number; the driver checks the handles.
        unsafe {
            check("cuEventSynchronize", sys::cuEventSynchronize(event_of(end)))?;
            check("cuEventElapsedTime", sys::cuEventElapsedTime(&mut milliseconds, event_of(start), event_of(end)))?;
        }
        Ok(f64::from(milliseconds) * 1e-3)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        self.copies().of_captures.remove(&stream);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the driver checks the handle.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream_of(stream), mode) })
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.enter()?;
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: writes handles; what was captured is destroyed once there is an executable form of it.
        unsafe {
            check("cuStreamEndCapture", sys::cuStreamEndCapture(stream_of(stream), &mut graph))?;
            let result = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
            check("cuGraphDestroy", sys::cuGraphDestroy(graph))?;
            result?;
        }
        let graph = Graph(executable as u64);
        let mut copies = self.copies();
        let bytes = copies.of_captures.remove(&stream).unwrap_or_default();
        copies.of_graphs.insert(graph, bytes);
        Ok(graph)
    }

    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the handles; bytes that it copies live as long as it.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0 as sys::CUgraphExec, stream_of(stream)) })
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        self.enter()?;
        // SAFETY: the driver checks the handle, and keeps what is running until it is done; host memory that it may
        // still copy is freed after waiting.
        unsafe {
            check("cuCtxSynchronize", sys::cuCtxSynchronize())?;
            check("cuGraphExecDestroy", sys::cuGraphExecDestroy(graph.0 as sys::CUgraphExec))?;
        }
        self.copies().of_graphs.remove(&graph);
        Ok(())
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: retained once when opened. There is nobody to tell of an error.
        unsafe {
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}
