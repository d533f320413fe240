//! The C side of the interface: pointers that callers pass, and structures as cuda.h lays them out.
//!
//! A C caller promises that each pointer argument is null or leads to memory of the documented type and direction. The
//! wrappers here carry that promise, so that it is relied on in one place: [`Out`] is written, [`In`] is read, [`Name`] is
//! a string. They are only ever made by C callers (they are the arguments of exported functions) or read out of C memory.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::errors::{Answer, Code, INVALID_VALUE};

/// An address in the device's address space.
pub type DevicePointer = u64;
/// Any opaque handle (`CUcontext`, `CUmodule`, `CUstream`, ...): a number from a [`crate::state::Table`].
pub type Handle = usize;
pub type Device = c_int;

/// A result parameter.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes the result.
    pub fn put(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, so by the caller's promise it leads to a `T` that may be written.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the result if the caller wants it.
    pub fn put_if_wanted(self, value: T) {
        let _ = self.put(value);
    }

    /// What is there now, for parameters that go both ways.
    pub fn get(self) -> Answer<T> {
        In(self.0.cast_const()).get()
    }

    /// Writes an array, of which the caller said how much fits.
    pub fn put_all(self, values: &[T]) -> Answer {
        for (index, value) in values.iter().enumerate() {
            self.at(index).put(*value)?;
        }
        Ok(())
    }

    pub fn pointer(self) -> *mut T {
        self.0
    }

    pub fn from_address(address: usize) -> Self {
        Self(address as *mut T)
    }

    /// The element `index` places on.
    pub fn at(self, index: usize) -> Self {
        Self(self.0.wrapping_add(index))
    }

    /// The same memory as another type, where an enumeration elsewhere says what it is.
    pub fn of<U: Copy>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

/// A parameter that is read through a pointer.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    pub fn get(self) -> Answer<T> {
        self.at(0)
    }

    pub fn at(self, index: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, so by the caller's promise it leads to as many `T`s as it said.
        Ok(unsafe { self.0.wrapping_add(index).read_unaligned() })
    }

    /// The first `count` elements; none where the pointer is null and the count zero.
    pub fn all(self, count: usize) -> Answer<Vec<T>> {
        (0..count).map(|index| self.at(index)).collect()
    }

    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Reads memory that another structure of the caller leads to.
    pub fn from_address(address: usize) -> Self {
        Self(address as *const T)
    }
}

impl In<u8> {
    /// The bytes there, for as long as the caller lends them.
    pub fn bytes<'a>(self, count: usize) -> Answer<&'a [u8]> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: by the caller's promise that many bytes are there while its call lasts, and so long only we keep them.
        Ok(unsafe { std::slice::from_raw_parts(self.0, count) })
    }

    /// Bytes up to a zero.
    pub fn text<'a>(self) -> Answer<&'a [u8]> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: as above; the caller promises a zero at the end.
        Ok(unsafe { CStr::from_ptr(self.0.cast()) }.to_bytes())
    }
}

/// A C string.
pub type Name = In<c_char>;

impl Name {
    pub fn string(self) -> Answer<String> {
        let bytes = In::<u8>(self.0.cast()).text()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| INVALID_VALUE)
    }
}

pub type HostFunction = extern "C" fn(*mut c_void);
pub type StreamCallback = extern "C" fn(Handle, Code, *mut c_void);
pub type BlockToShared = extern "C" fn(c_int) -> usize;

/// `CUdevprop`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct DeviceProperties {
    pub max_threads_per_block: c_int,
    pub max_threads: [c_int; 3],
    pub max_grid: [c_int; 3],
    pub shared_per_block: c_int,
    pub constant_memory: c_int,
    pub warp_size: c_int,
    pub max_pitch: c_int,
    pub registers_per_block: c_int,
    pub clock_kilohertz: c_int,
    pub texture_alignment: c_int,
}

/// `CUmemLocation`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MemoryLocation {
    pub kind: c_uint,
    pub id: c_int,
}

pub const LOCATION_DEVICE: c_uint = 1;

/// `CUmemPoolProps`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PoolProperties {
    pub allocation_type: c_uint,
    pub handle_types: c_uint,
    pub location: MemoryLocation,
    pub security: usize,
    pub max_bytes: usize,
    pub usage: u16,
    pub reserved: [u8; 54],
}

/// `CUmemAccessDesc`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AccessDescription {
    pub location: MemoryLocation,
    pub flags: c_uint,
}

/// One side of a `CUDA_MEMCPY2D`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Side2d {
    pub x_bytes: usize,
    pub y: usize,
    pub memory: c_uint,
    pub host: usize,
    pub device: DevicePointer,
    pub array: Handle,
    pub pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Copy2d {
    pub source: Side2d,
    pub target: Side2d,
    pub width_bytes: usize,
    pub height: usize,
}

/// One side of a `CUDA_MEMCPY3D` or `CUDA_MEMCPY3D_PEER`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Side3d {
    pub x_bytes: usize,
    pub y: usize,
    pub z: usize,
    pub level: usize,
    pub memory: c_uint,
    pub host: usize,
    pub device: DevicePointer,
    pub array: Handle,
    /// Reserved, or the context of a peer copy.
    pub context: Handle,
    pub pitch: usize,
    pub height: usize,
}

/// `CUDA_MEMCPY3D`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Copy3d {
    pub source: Side3d,
    pub target: Side3d,
    pub width_bytes: usize,
    pub height: usize,
    pub depth: usize,
}

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct LaunchConfiguration {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub stream: Handle,
    pub attributes: In<LaunchAttribute>,
    pub attribute_count: c_uint,
}

/// `CUlaunchAttribute`; the value's union as its first words.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct LaunchAttribute {
    pub id: c_uint,
    pub padding: [u8; 4],
    pub value: [u64; 8],
}

/// `CUDA_KERNEL_NODE_PARAMS_v1`; version 2 has more at its end.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct KernelNode {
    pub function: Handle,
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub params: In<*const u8>,
    pub extra: In<usize>,
}

/// `CUDA_KERNEL_NODE_PARAMS` (version 2): `kernel` may stand in for `function`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct KernelNode2 {
    pub node: KernelNode,
    pub kernel: Handle,
    pub context: Handle,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct FillNode {
    pub target: DevicePointer,
    pub pitch: usize,
    pub value: c_uint,
    pub element_bytes: c_uint,
    pub width: usize,
    pub height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct HostNode {
    pub function: Option<HostFunction>,
    pub data: *mut c_void,
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct InstantiateParams {
    pub flags: u64,
    pub upload_stream: Handle,
    pub error_node: Handle,
    pub result: c_uint,
}

/// `CUgraphExecUpdateResultInfo`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UpdateResult {
    pub result: c_uint,
    pub error_node: Handle,
    pub error_from_node: Handle,
}

// The sizes that cuda.h gives on 64-bit Linux.
const _: () = {
    assert!(size_of::<DeviceProperties>() == 56);
    assert!(size_of::<PoolProperties>() == 88);
    assert!(size_of::<AccessDescription>() == 12);
    assert!(size_of::<Copy2d>() == 128);
    assert!(size_of::<Copy3d>() == 200);
    assert!(size_of::<LaunchConfiguration>() == 56);
    assert!(size_of::<LaunchAttribute>() == 72);
    assert!(size_of::<KernelNode>() == 56);
    assert!(size_of::<KernelNode2>() == 72);
    assert!(size_of::<FillNode>() == 40);
    assert!(size_of::<InstantiateParams>() == 32);
    assert!(size_of::<UpdateResult>() == 24);
};
