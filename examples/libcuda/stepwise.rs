//! Launches in steps, as before CUDA 4: block, shared memory and parameters are set on the function, then it is launched.
//! Deprecated since, and still what PyCUDA does.

use std::ffi::{c_int, c_uint};

use crate::errors::{Answer, Code, INVALID_VALUE, answer};
use crate::launch::launch;
use crate::module::function;
use crate::state::lock;
use crate::types::{Handle, In, KernelNode};

/// Most bytes of parameters that a kernel can have (PTX manual, `.param`, since PTX 8.1).
const MAX_PARAMETER_BYTES: usize = 32764;

/// What was set on a function.
#[derive(Default)]
pub struct Pending {
    /// Zeros until set.
    block: [c_uint; 3],
    shared_bytes: c_uint,
    params: Vec<u8>,
}

fn size(value: c_int) -> Answer<c_uint> {
    c_uint::try_from(value).map_err(|_| INVALID_VALUE)
}

fn set_parameter(handle: Handle, offset: c_int, bytes: &[u8]) -> Answer {
    let function = function(handle)?;
    let start = size(offset)? as usize;
    let end = start.checked_add(bytes.len()).filter(|&end| end <= MAX_PARAMETER_BYTES).ok_or(INVALID_VALUE)?;
    let params = &mut lock(&function.pending).params;
    if params.len() < end {
        params.resize(end, 0);
    }
    params[start..end].copy_from_slice(bytes);
    Ok(())
}

fn launch_pending(handle: Handle, width: c_int, height: c_int, stream: Handle) -> Answer {
    let function = function(handle)?;
    let (block, shared_bytes, params) = {
        let pending = lock(&function.pending);
        (pending.block, pending.shared_bytes, pending.params.clone())
    };
    let bytes = params.len();
    // The `extra` of cuLaunchKernel: a buffer, its size, the end.
    let extra = [1, params.as_ptr() as usize, 2, &raw const bytes as usize, 0];
    let node = KernelNode {
        function: handle,
        grid: [size(width)?, size(height)?, 1],
        block,
        shared_bytes,
        params: In::from_address(0),
        extra: In::from_address(extra.as_ptr() as usize),
    };
    launch(&node, false, stream)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetBlockShape(handle: Handle, x: c_int, y: c_int, z: c_int) -> Code {
    answer("cuFuncSetBlockShape", || {
        let function = function(handle)?;
        let block = [size(x)?, size(y)?, size(z)?];
        if block.contains(&0) {
            return Err(INVALID_VALUE);
        }
        lock(&function.pending).block = block;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetSharedSize(handle: Handle, bytes: c_uint) -> Code {
    answer("cuFuncSetSharedSize", || {
        lock(&function(handle)?.pending).shared_bytes = bytes;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuParamSetSize(handle: Handle, bytes: c_uint) -> Code {
    answer("cuParamSetSize", || {
        let function = function(handle)?;
        if bytes as usize > MAX_PARAMETER_BYTES {
            return Err(INVALID_VALUE);
        }
        lock(&function.pending).params.resize(bytes as usize, 0);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuParamSeti(handle: Handle, offset: c_int, value: c_uint) -> Code {
    answer("cuParamSeti", || set_parameter(handle, offset, &value.to_ne_bytes()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuParamSetf(handle: Handle, offset: c_int, value: f32) -> Code {
    answer("cuParamSetf", || set_parameter(handle, offset, &value.to_ne_bytes()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuParamSetv(handle: Handle, offset: c_int, bytes: In<u8>, count: c_uint) -> Code {
    answer("cuParamSetv", || {
        if count as usize > MAX_PARAMETER_BYTES {
            return Err(INVALID_VALUE);
        }
        set_parameter(handle, offset, bytes.bytes(count as usize)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunch(handle: Handle) -> Code {
    answer("cuLaunch", || launch_pending(handle, 1, 1, 0))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchGrid(handle: Handle, width: c_int, height: c_int) -> Code {
    answer("cuLaunchGrid", || launch_pending(handle, width, height, 0))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchGridAsync(handle: Handle, width: c_int, height: c_int, stream: Handle) -> Code {
    answer("cuLaunchGridAsync", || launch_pending(handle, width, height, stream))
}
