//! Result codes, their names and descriptions, and the frame around every entry point.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::driver::emulator::{EmulatorError, FaultKind};

use crate::options;
use crate::types::Out;

/// A `CUresult`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Code(pub u32);

pub type Answer<T = ()> = Result<T, Code>;

macro_rules! codes {
    ($($number:literal $name:ident $text:literal)*) => {
        // All names are the interface's; not all of them arise here.
        $(#[allow(dead_code)] pub const $name: Code = Code($number);)*

        /// Name and description of a code, both ending in a zero for C.
        const TABLE: &[(u32, &str, &str)] = &[
            $(($number, concat!("CUDA_ERROR_", stringify!($name), "\0"), concat!($text, "\0")),)*
        ];
    };
}

pub const SUCCESS: Code = Code(0);

codes! {
    1 INVALID_VALUE "invalid argument"
    2 OUT_OF_MEMORY "out of memory"
    3 NOT_INITIALIZED "initialization error"
    4 DEINITIALIZED "driver shutting down"
    5 PROFILER_DISABLED "the profiler is disabled"
    6 PROFILER_NOT_INITIALIZED "the profiler is not initialised"
    7 PROFILER_ALREADY_STARTED "the profiler is already started"
    8 PROFILER_ALREADY_STOPPED "the profiler is already stopped"
    34 STUB_LIBRARY "the driver is a stub library"
    36 CALL_REQUIRES_NEWER_DRIVER "the call needs a newer driver"
    46 DEVICE_UNAVAILABLE "the device is busy or unavailable"
    100 NO_DEVICE "no CUDA-capable device"
    101 INVALID_DEVICE "invalid device ordinal"
    102 DEVICE_NOT_LICENSED "the device has no valid licence"
    200 INVALID_IMAGE "the image is not a kernel image"
    201 INVALID_CONTEXT "no valid context is current"
    202 CONTEXT_ALREADY_CURRENT "the context is already current"
    205 MAP_FAILED "mapping failed"
    206 UNMAP_FAILED "unmapping failed"
    207 ARRAY_IS_MAPPED "the array is mapped"
    208 ALREADY_MAPPED "the resource is already mapped"
    209 NO_BINARY_FOR_GPU "no kernel image for this device; the emulator executes PTX, not SASS"
    210 ALREADY_ACQUIRED "the resource is already acquired"
    211 NOT_MAPPED "the resource is not mapped"
    212 NOT_MAPPED_AS_ARRAY "the resource is not mapped as an array"
    213 NOT_MAPPED_AS_POINTER "the resource is not mapped as a pointer"
    214 ECC_UNCORRECTABLE "uncorrectable ECC error"
    215 UNSUPPORTED_LIMIT "limit not supported by the device"
    216 CONTEXT_ALREADY_IN_USE "the context is in use by another thread"
    217 PEER_ACCESS_UNSUPPORTED "peer access is not supported between these devices"
    218 INVALID_PTX "the PTX does not compile"
    219 INVALID_GRAPHICS_CONTEXT "invalid graphics context"
    220 NVLINK_UNCORRECTABLE "uncorrectable NVLink error"
    221 JIT_COMPILER_NOT_FOUND "no PTX compiler library"
    222 UNSUPPORTED_PTX_VERSION "the PTX version is newer than the driver knows"
    223 JIT_COMPILATION_DISABLED "PTX compilation is disabled"
    224 UNSUPPORTED_EXEC_AFFINITY "execution affinity is not supported by the device"
    225 UNSUPPORTED_DEVSIDE_SYNC "the PTX has a device-side synchronisation that is not supported"
    226 CONTAINED "a contained memory error"
    300 INVALID_SOURCE "the kernel source is invalid"
    301 FILE_NOT_FOUND "file not found"
    302 SHARED_OBJECT_SYMBOL_NOT_FOUND "symbol not found in a shared object"
    303 SHARED_OBJECT_INIT_FAILED "a shared object failed to initialise"
    304 OPERATING_SYSTEM "a call to the operating system failed"
    400 INVALID_HANDLE "invalid resource handle"
    401 ILLEGAL_STATE "a resource is not in a state that permits the operation"
    402 LOSSY_QUERY "the query would lose information"
    500 NOT_FOUND "named symbol not found"
    600 NOT_READY "device not ready"
    700 ILLEGAL_ADDRESS "an illegal memory access was encountered"
    701 LAUNCH_OUT_OF_RESOURCES "too many resources requested for launch"
    702 LAUNCH_TIMEOUT "the launch timed out and was terminated"
    703 LAUNCH_INCOMPATIBLE_TEXTURING "the launch uses incompatible texturing"
    704 PEER_ACCESS_ALREADY_ENABLED "peer access is already enabled"
    705 PEER_ACCESS_NOT_ENABLED "peer access has not been enabled"
    708 PRIMARY_CONTEXT_ACTIVE "the primary context is active"
    709 CONTEXT_IS_DESTROYED "the context is destroyed"
    710 ASSERT "device-side assert triggered"
    711 TOO_MANY_PEERS "too many peer mappings"
    712 HOST_MEMORY_ALREADY_REGISTERED "part or all of the memory is already registered"
    713 HOST_MEMORY_NOT_REGISTERED "the memory is not registered"
    714 HARDWARE_STACK_ERROR "hardware stack error"
    715 ILLEGAL_INSTRUCTION "an illegal instruction was encountered"
    716 MISALIGNED_ADDRESS "misaligned address"
    717 INVALID_ADDRESS_SPACE "operation not supported on this address space"
    718 INVALID_PC "invalid program counter"
    719 LAUNCH_FAILED "unspecified launch failure"
    720 COOPERATIVE_LAUNCH_TOO_LARGE "too many blocks in a cooperative launch"
    721 TENSOR_MEMORY_LEAK "tensor memory was not freed"
    800 NOT_PERMITTED "operation not permitted"
    801 NOT_SUPPORTED "operation not supported"
    802 SYSTEM_NOT_READY "the system is not ready"
    803 SYSTEM_DRIVER_MISMATCH "unsupported combination of driver versions"
    804 COMPAT_NOT_SUPPORTED_ON_DEVICE "forward compatibility is not supported on this device"
    805 MPS_CONNECTION_FAILED "no connection to the MPS control daemon"
    806 MPS_RPC_FAILURE "a remote call to the MPS server failed"
    807 MPS_SERVER_NOT_READY "the MPS server is not ready"
    808 MPS_MAX_CLIENTS_REACHED "too many MPS clients"
    809 MPS_MAX_CONNECTIONS_REACHED "too many MPS connections"
    810 MPS_CLIENT_TERMINATED "the MPS client was terminated"
    811 CDP_NOT_SUPPORTED "device-side launches are not supported"
    812 CDP_VERSION_MISMATCH "incompatible versions of device-side launches"
    900 STREAM_CAPTURE_UNSUPPORTED "operation not permitted when a stream is capturing"
    901 STREAM_CAPTURE_INVALIDATED "a previous error invalidated the capture"
    902 STREAM_CAPTURE_MERGE "the operation would merge two independent captures"
    903 STREAM_CAPTURE_UNMATCHED "the capture was not begun in this stream"
    904 STREAM_CAPTURE_UNJOINED "the capture has a stream that was not joined to the one it began in"
    905 STREAM_CAPTURE_ISOLATION "a dependency would cross the border of the capture"
    906 STREAM_CAPTURE_IMPLICIT "the operation would depend on a capture through the legacy stream"
    907 CAPTURED_EVENT "the event was last recorded in a capture"
    908 STREAM_CAPTURE_WRONG_THREAD "a capture must end in the thread that began it"
    909 TIMEOUT "a wait timed out"
    910 GRAPH_EXEC_UPDATE_FAILURE "the graph update is not possible"
    911 EXTERNAL_DEVICE "an external device failed"
    912 INVALID_CLUSTER_SIZE "invalid cluster size"
    913 FUNCTION_NOT_LOADED "the function is not loaded"
    914 INVALID_RESOURCE_TYPE "invalid resource type"
    915 INVALID_RESOURCE_CONFIGURATION "invalid resource configuration"
    916 KEY_ROTATION "a key rotation is in progress"
    999 UNKNOWN "unknown error"
}

/// Runs the body of an entry point: a panic is an unknown error, not the caller's end; what fails is told in the log.
pub fn answer(name: &'static str, body: impl FnOnce() -> Answer) -> Code {
    let code = answer_quietly(body);
    if code != SUCCESS {
        options::log(|| format!("{name} answers {}", code.name()));
    }
    code
}

/// The same without the log, for questions that programs ask to learn what there is.
pub fn answer_quietly(body: impl FnOnce() -> Answer) -> Code {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => UNKNOWN,
    }
}

impl Code {
    fn entry(self) -> Option<(&'static CStr, &'static CStr)> {
        if self == SUCCESS {
            return Some((c"CUDA_SUCCESS", c"no error"));
        }
        let &(_, name, text) = TABLE.iter().find(|(number, ..)| *number == self.0)?;
        Some((CStr::from_bytes_with_nul(name.as_bytes()).ok()?, CStr::from_bytes_with_nul(text.as_bytes()).ok()?))
    }

    pub fn name(self) -> String {
        self.entry().map_or_else(|| format!("CUresult {}", self.0), |(name, _)| name.to_string_lossy().into_owned())
    }

    /// The code of an emulator error that is found before anything runs.
    pub fn refused(error: &EmulatorError) -> Self {
        match error {
            EmulatorError::Parse { .. } | EmulatorError::Instruction { .. } => INVALID_PTX,
            EmulatorError::Module { message, .. } if message.contains("newer") => UNSUPPORTED_PTX_VERSION,
            EmulatorError::Module { .. } => INVALID_PTX,
            EmulatorError::Launch { .. } => INVALID_VALUE,
            EmulatorError::Fault(fault) => Self::fault(&fault.kind),
            EmulatorError::Memory(message) if message.contains("cannot allocate") => OUT_OF_MEMORY,
            EmulatorError::Memory(_) => INVALID_VALUE,
        }
    }

    /// The code of what stopped a kernel.
    pub fn fault(kind: &FaultKind) -> Self {
        match kind {
            FaultKind::OutOfBounds { .. } => ILLEGAL_ADDRESS,
            FaultKind::Misaligned { .. } => MISALIGNED_ADDRESS,
            FaultKind::InvalidFree { .. } => LAUNCH_FAILED,
            FaultKind::Assertion(_) => ASSERT,
            FaultKind::Budget(_) | FaultKind::Deadlock(_) => LAUNCH_TIMEOUT,
            FaultKind::Illegal(_) => ILLEGAL_INSTRUCTION,
            FaultKind::Trap | FaultKind::NotCooperative | FaultKind::Breakpoint => LAUNCH_FAILED,
        }
    }
}

/// Tells an emulator error in the log and gives its code.
pub fn refuse(error: &EmulatorError) -> Code {
    options::log(|| error.to_string());
    Code::refused(error)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(code: Code, text: Out<*const c_char>) -> Code {
    answer("cuGetErrorName", || match code.entry() {
        Some((name, _)) => text.put(name.as_ptr()),
        None => text.put(std::ptr::null()).and(Err(INVALID_VALUE)),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(code: Code, text: Out<*const c_char>) -> Code {
    answer("cuGetErrorString", || match code.entry() {
        Some((_, description)) => text.put(description.as_ptr()),
        None => text.put(std::ptr::null()).and(Err(INVALID_VALUE)),
    })
}
