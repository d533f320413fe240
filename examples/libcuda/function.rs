//! Attributes and parameters of functions, and occupancy.
//!
//! The register count is a bound, not what a compiler would allocate: declared registers, but never so many that a block of
//! the largest size would not fit. Occupancy therefore counts threads, blocks and shared memory, not registers.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::Ordering::Relaxed;

use engine::driver::emulator::{DeviceFacts, FunctionInfo};

use crate::attributes::{DEFAULT_SHARED_BYTES, REGISTERS, RESERVED_SHARED_BYTES};
use crate::device::known;
use crate::errors::{Answer, Code, INVALID_VALUE, NOT_SUPPORTED, answer};
use crate::module::{Function, function};
use crate::state::driver;
use crate::types::{BlockToShared, Device, Handle, In, LaunchConfiguration, Out};

const MAX_DYNAMIC_SHARED: c_uint = 8;
const CARVEOUT: c_uint = 9;

pub fn default_dynamic_shared(info: &FunctionInfo) -> i32 {
    (i64::from(DEFAULT_SHARED_BYTES) - info.shared_bytes as i64).max(0) as i32
}

/// Most threads of a block of the function.
pub fn max_threads(info: &FunctionInfo, facts: &DeviceFacts) -> u32 {
    let limit = info.limits.required_threads.or(info.limits.max_threads);
    limit
        .map_or(facts.max_threads_per_block, |sizes| {
            sizes.iter().fold(1u32, |product, &size| product.saturating_mul(size))
        })
        .clamp(1, facts.max_threads_per_block)
}

fn registers(info: &FunctionInfo, facts: &DeviceFacts) -> i32 {
    let fits = (REGISTERS as u32 / max_threads(info, facts)).min(255);
    let most = info.limits.max_registers.unwrap_or(fits).min(fits);
    info.register_words.clamp(16.min(most), most) as i32
}

fn attribute(function: &Function, number: c_uint) -> Answer<c_int> {
    let facts = driver()?.emulator.facts();
    let info = function.info()?;
    Ok(match number {
        0 => max_threads(info, facts) as c_int,
        1 => info.shared_bytes as c_int,
        2 => 0,
        3 => info.local_bytes as c_int,
        4 => registers(info, facts),
        // PTX and binary version, as ten times the architecture.
        5 | 6 => facts.architecture as c_int,
        7 => 0,
        MAX_DYNAMIC_SHARED => function.max_dynamic_shared.load(Relaxed),
        CARVEOUT => function.carveout.load(Relaxed),
        // Clusters: never needed, not chosen.
        10..=15 => 0,
        _ => return Err(INVALID_VALUE),
    })
}

fn set_attribute(function: &Function, number: c_uint, value: c_int) -> Answer {
    let facts = driver()?.emulator.facts();
    let most = i64::from(facts.max_shared_bytes_per_block) - function.info()?.shared_bytes as i64;
    match number {
        MAX_DYNAMIC_SHARED if (0..=most).contains(&i64::from(value)) => {
            function.max_dynamic_shared.store(value, Relaxed);
            Ok(())
        }
        CARVEOUT if (-1..=100).contains(&value) => {
            function.carveout.store(value, Relaxed);
            Ok(())
        }
        14 | 15 => Ok(()),
        10..=13 if value != 0 => Err(NOT_SUPPORTED),
        10..=13 => Ok(()),
        _ => Err(INVALID_VALUE),
    }
}

fn put_parameter(function: &Function, index: usize, offset: Out<usize>, bytes: Out<usize>) -> Answer {
    let parameter = function.info()?.params.get(index).ok_or(INVALID_VALUE)?;
    offset.put(parameter.offset as usize)?;
    bytes.put_if_wanted(parameter.bytes as usize);
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetAttribute(value: Out<c_int>, number: c_uint, handle: Handle) -> Code {
    answer("cuFuncGetAttribute", || value.put(attribute(&*function(handle)?, number)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(handle: Handle, number: c_uint, value: c_int) -> Code {
    answer("cuFuncSetAttribute", || set_attribute(&*function(handle)?, number, value))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetCacheConfig(handle: Handle, _config: c_uint) -> Code {
    answer("cuFuncSetCacheConfig", || function(handle).map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetSharedMemConfig(handle: Handle, _config: c_uint) -> Code {
    answer("cuFuncSetSharedMemConfig", || function(handle).map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetParamInfo(handle: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>) -> Code {
    answer("cuFuncGetParamInfo", || put_parameter(&*function(handle)?, index, offset, bytes))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuKernelGetParamInfo(kernel: Handle, index: usize, offset: Out<usize>, bytes: Out<usize>) -> Code {
    answer("cuKernelGetParamInfo", || put_parameter(&*function(kernel)?, index, offset, bytes))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetParamCount(handle: Handle, count: Out<usize>) -> Code {
    answer("cuFuncGetParamCount", || count.put(function(handle)?.info()?.params.len()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuKernelGetParamCount(kernel: Handle, count: Out<usize>) -> Code {
    answer("cuKernelGetParamCount", || count.put(function(kernel)?.info()?.params.len()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuKernelGetAttribute(value: Out<c_int>, number: c_uint, kernel: Handle, device: Device) -> Code {
    answer("cuKernelGetAttribute", || {
        known(device)?;
        value.put(attribute(&*function(kernel)?, number)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuKernelSetAttribute(number: c_uint, value: c_int, kernel: Handle, device: Device) -> Code {
    answer("cuKernelSetAttribute", || {
        known(device)?;
        set_attribute(&*function(kernel)?, number, value)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuKernelSetCacheConfig(kernel: Handle, _config: c_uint, device: Device) -> Code {
    answer("cuKernelSetCacheConfig", || {
        known(device)?;
        function(kernel).map(|_| ())
    })
}

/// Bytes of shared memory that a block takes, without what the system keeps.
pub fn shared_bytes(info: &FunctionInfo, dynamic: u64) -> u64 {
    if dynamic == 0 {
        return info.shared_bytes;
    }
    info.shared_bytes.next_multiple_of(info.dynamic_shared_align.clamp(1, 1024)) + dynamic
}

/// Blocks that are resident on a multiprocessor at once.
pub fn resident_blocks(info: &FunctionInfo, facts: &DeviceFacts, threads: u32, dynamic: u64) -> u32 {
    let shared = shared_bytes(info, dynamic);
    if threads == 0 || threads > max_threads(info, facts) || shared > u64::from(facts.max_shared_bytes_per_block) {
        return 0;
    }
    let by_threads = facts.max_threads_per_multiprocessor / threads.next_multiple_of(32);
    let by_shared = u64::from(facts.shared_bytes_per_multiprocessor) / (shared + RESERVED_SHARED_BYTES as u64);
    by_threads.min(facts.max_blocks_per_multiprocessor).min(u32::try_from(by_shared).unwrap_or(u32::MAX))
}

fn put_active_blocks(blocks: Out<c_int>, handle: Handle, threads: c_int, dynamic: usize) -> Answer {
    let facts = driver()?.emulator.facts();
    let function = function(handle)?;
    let threads = u32::try_from(threads).ok().filter(|&threads| threads > 0).ok_or(INVALID_VALUE)?;
    blocks.put(resident_blocks(function.info()?, facts, threads, dynamic as u64) as c_int)
}

/// The block size that fills a multiprocessor best, and the grid that fills the device with it. Larger blocks win ties.
fn put_potential_block(
    grid: Out<c_int>,
    block: Out<c_int>,
    handle: Handle,
    dynamic: impl Fn(c_int) -> usize,
    limit: c_int,
) -> Answer {
    let facts = driver()?.emulator.facts();
    let function = function(handle)?;
    let info = function.info()?;
    let most = match u32::try_from(limit).map_err(|_| INVALID_VALUE)? {
        0 => max_threads(info, facts),
        limit => limit.min(max_threads(info, facts)),
    };
    let candidates = (1..=most / 32).rev().map(|warps| warps * 32).chain((most < 32).then_some(most));
    let mut best = (0, 0, 0);
    for threads in candidates {
        let blocks = resident_blocks(info, facts, threads, dynamic(threads as c_int) as u64);
        if blocks * threads > best.0 {
            best = (blocks * threads, threads, blocks);
        }
    }
    grid.put((best.2 * facts.multiprocessors) as c_int)?;
    block.put(best.1 as c_int)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: Out<c_int>,
    handle: Handle,
    threads: c_int,
    dynamic: usize,
) -> Code {
    answer("cuOccupancyMaxActiveBlocksPerMultiprocessor", || put_active_blocks(blocks, handle, threads, dynamic))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: Out<c_int>,
    handle: Handle,
    threads: c_int,
    dynamic: usize,
    flags: c_uint,
) -> Code {
    answer("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", || {
        if flags > 1 { Err(INVALID_VALUE) } else { put_active_blocks(blocks, handle, threads, dynamic) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: Out<c_int>,
    block: Out<c_int>,
    handle: Handle,
    block_to_shared: Option<BlockToShared>,
    dynamic: usize,
    limit: c_int,
) -> Code {
    answer("cuOccupancyMaxPotentialBlockSize", || {
        let shared = |threads| block_to_shared.map_or(dynamic, |function| function(threads));
        put_potential_block(grid, block, handle, shared, limit)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: Out<c_int>,
    block: Out<c_int>,
    handle: Handle,
    block_to_shared: Option<BlockToShared>,
    dynamic: usize,
    limit: c_int,
    flags: c_uint,
) -> Code {
    if flags > 1 {
        return INVALID_VALUE;
    }
    cuOccupancyMaxPotentialBlockSize(grid, block, handle, block_to_shared, dynamic, limit)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: Out<usize>,
    handle: Handle,
    blocks: c_int,
    _threads: c_int,
) -> Code {
    answer("cuOccupancyAvailableDynamicSMemPerBlock", || {
        let facts = driver()?.emulator.facts();
        let function = function(handle)?;
        let blocks = u64::try_from(blocks).ok().filter(|&blocks| blocks > 0).ok_or(INVALID_VALUE)?;
        let share = (u64::from(facts.shared_bytes_per_multiprocessor) / blocks)
            .saturating_sub(RESERVED_SHARED_BYTES as u64)
            .min(u64::from(facts.max_shared_bytes_per_block));
        bytes.put(share.saturating_sub(function.info()?.shared_bytes) as usize)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxPotentialClusterSize(
    _size: Out<c_int>,
    handle: Handle,
    _config: In<LaunchConfiguration>,
) -> Code {
    answer("cuOccupancyMaxPotentialClusterSize", || function(handle).and(Err(NOT_SUPPORTED)))
}
