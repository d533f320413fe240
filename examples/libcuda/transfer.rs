//! Entry points of copies and fills.

use crate::copy::{Copy, Fill, Place, Side};
use crate::errors::{Answer, Code, INVALID_VALUE, answer};
use crate::submit::{Operation, submit, submit_synchronous};
use crate::types::{Copy2d, Copy3d, DevicePointer, FillNode, Handle, In, Out};

fn linear(target: (Place, u64), source: (Place, u64), bytes: usize) -> Operation {
    Operation::Copy(Copy::linear(Side::linear(target.0, target.1), Side::linear(source.0, source.1), bytes))
}

fn copy2d(copy: In<Copy2d>) -> Answer<Operation> {
    Ok(Operation::Copy(Copy::new2d(&copy.get()?)?))
}

fn copy3d(copy: In<Copy3d>) -> Answer<Operation> {
    Ok(Operation::Copy(Copy::new3d(&copy.get()?)?))
}

fn fill(target: DevicePointer, pitch: usize, value: u32, element_bytes: u32, size: [usize; 2]) -> Answer<Operation> {
    let node = FillNode { target, pitch, value, element_bytes, width: size[0], height: size[1] };
    if size[1] > 1 && pitch < size[0].saturating_mul(element_bytes as usize) {
        return Err(INVALID_VALUE);
    }
    Ok(Operation::Fill(Fill::new(&node)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(target: DevicePointer, source: *const u8, bytes: usize) -> Code {
    answer("cuMemcpyHtoD", || submit_synchronous(linear((Place::Device, target), (Place::Host, source as u64), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(target: DevicePointer, source: *const u8, bytes: usize, stream: Handle) -> Code {
    answer("cuMemcpyHtoDAsync", || submit(stream, linear((Place::Device, target), (Place::Host, source as u64), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(target: *mut u8, source: DevicePointer, bytes: usize) -> Code {
    answer("cuMemcpyDtoH", || submit_synchronous(linear((Place::Host, target as u64), (Place::Device, source), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(target: *mut u8, source: DevicePointer, bytes: usize, stream: Handle) -> Code {
    answer("cuMemcpyDtoHAsync", || submit(stream, linear((Place::Host, target as u64), (Place::Device, source), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoD_v2(target: DevicePointer, source: DevicePointer, bytes: usize) -> Code {
    answer("cuMemcpyDtoD", || submit_synchronous(linear((Place::Device, target), (Place::Device, source), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(
    target: DevicePointer,
    source: DevicePointer,
    bytes: usize,
    stream: Handle,
) -> Code {
    answer("cuMemcpyDtoDAsync", || submit(stream, linear((Place::Device, target), (Place::Device, source), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpy(target: DevicePointer, source: DevicePointer, bytes: usize) -> Code {
    answer("cuMemcpy", || submit_synchronous(linear((Place::Unified, target), (Place::Unified, source), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyAsync(target: DevicePointer, source: DevicePointer, bytes: usize, stream: Handle) -> Code {
    answer("cuMemcpyAsync", || submit(stream, linear((Place::Unified, target), (Place::Unified, source), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyPeer(
    target: DevicePointer,
    _target_context: Handle,
    source: DevicePointer,
    _source_context: Handle,
    bytes: usize,
) -> Code {
    answer("cuMemcpyPeer", || submit_synchronous(linear((Place::Unified, target), (Place::Unified, source), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyPeerAsync(
    target: DevicePointer,
    _target_context: Handle,
    source: DevicePointer,
    _source_context: Handle,
    bytes: usize,
    stream: Handle,
) -> Code {
    answer("cuMemcpyPeerAsync", || submit(stream, linear((Place::Unified, target), (Place::Unified, source), bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpy2D_v2(copy: In<Copy2d>) -> Code {
    answer("cuMemcpy2D", || submit_synchronous(copy2d(copy)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpy2DUnaligned_v2(copy: In<Copy2d>) -> Code {
    answer("cuMemcpy2DUnaligned", || submit_synchronous(copy2d(copy)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpy3D_v2(copy: In<Copy3d>) -> Code {
    answer("cuMemcpy3D", || submit_synchronous(copy3d(copy)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpy3DPeer(copy: In<Copy3d>) -> Code {
    answer("cuMemcpy3DPeer", || submit_synchronous(copy3d(copy)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpy2DAsync_v2(copy: In<Copy2d>, stream: Handle) -> Code {
    answer("cuMemcpy2DAsync", || submit(stream, copy2d(copy)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpy3DAsync_v2(copy: In<Copy3d>, stream: Handle) -> Code {
    answer("cuMemcpy3DAsync", || submit(stream, copy3d(copy)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpy3DPeerAsync(copy: In<Copy3d>, stream: Handle) -> Code {
    answer("cuMemcpy3DPeerAsync", || submit(stream, copy3d(copy)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(target: DevicePointer, value: u8, count: usize) -> Code {
    answer("cuMemsetD8", || submit_synchronous(fill(target, 0, u32::from(value), 1, [count, 1])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(target: DevicePointer, value: u8, count: usize, stream: Handle) -> Code {
    answer("cuMemsetD8Async", || submit(stream, fill(target, 0, u32::from(value), 1, [count, 1])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD2D8_v2(target: DevicePointer, pitch: usize, value: u8, width: usize, height: usize) -> Code {
    answer("cuMemsetD2D8", || submit_synchronous(fill(target, pitch, u32::from(value), 1, [width, height])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD2D8Async(
    target: DevicePointer,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
    stream: Handle,
) -> Code {
    answer("cuMemsetD2D8Async", || submit(stream, fill(target, pitch, u32::from(value), 1, [width, height])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD16_v2(target: DevicePointer, value: u16, count: usize) -> Code {
    answer("cuMemsetD16", || submit_synchronous(fill(target, 0, u32::from(value), 2, [count, 1])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD16Async(target: DevicePointer, value: u16, count: usize, stream: Handle) -> Code {
    answer("cuMemsetD16Async", || submit(stream, fill(target, 0, u32::from(value), 2, [count, 1])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD2D16_v2(
    target: DevicePointer,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
) -> Code {
    answer("cuMemsetD2D16", || submit_synchronous(fill(target, pitch, u32::from(value), 2, [width, height])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD2D16Async(
    target: DevicePointer,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
    stream: Handle,
) -> Code {
    answer("cuMemsetD2D16Async", || submit(stream, fill(target, pitch, u32::from(value), 2, [width, height])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32_v2(target: DevicePointer, value: u32, count: usize) -> Code {
    answer("cuMemsetD32", || submit_synchronous(fill(target, 0, value, 4, [count, 1])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32Async(target: DevicePointer, value: u32, count: usize, stream: Handle) -> Code {
    answer("cuMemsetD32Async", || submit(stream, fill(target, 0, value, 4, [count, 1])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD2D32_v2(
    target: DevicePointer,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
) -> Code {
    answer("cuMemsetD2D32", || submit_synchronous(fill(target, pitch, value, 4, [width, height])?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD2D32Async(
    target: DevicePointer,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
    stream: Handle,
) -> Code {
    answer("cuMemsetD2D32Async", || submit(stream, fill(target, pitch, value, 4, [width, height])?))
}

/// Copies one by one; hints on where and in which order are taken and not needed.
fn batch(
    targets: In<DevicePointer>,
    sources: In<DevicePointer>,
    bytes: In<usize>,
    count: usize,
    stream: Handle,
) -> Result<(), (usize, Code)> {
    for index in 0..count {
        let copy = || {
            let (target, source) = ((Place::Unified, targets.at(index)?), (Place::Unified, sources.at(index)?));
            submit(stream, linear(target, source, bytes.at(index)?))
        };
        copy().map_err(|code| (index, code))?;
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyBatchAsync(
    targets: In<DevicePointer>,
    sources: In<DevicePointer>,
    bytes: In<usize>,
    count: usize,
    _attributes: In<u8>,
    _attribute_indices: In<usize>,
    _attribute_count: usize,
    failed: Out<usize>,
    stream: Handle,
) -> Code {
    answer("cuMemcpyBatchAsync", || {
        batch(targets, sources, bytes, count, stream).map_err(|(index, code)| {
            failed.put_if_wanted(index);
            code
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyBatchAsync_v2(
    targets: In<DevicePointer>,
    sources: In<DevicePointer>,
    bytes: In<usize>,
    count: usize,
    _attributes: In<u8>,
    _attribute_indices: In<usize>,
    _attribute_count: usize,
    stream: Handle,
) -> Code {
    answer("cuMemcpyBatchAsync_v2", || batch(targets, sources, bytes, count, stream).map_err(|(_, code)| code))
}
