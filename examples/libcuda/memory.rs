//! Memory: device, managed, pinned and registered.
//!
//! The emulator's device memory lies at addresses that no host pointer has. Managed and pinned memory must have one address
//! for both sides: it is mapped at low host addresses that kernels do not use for shared or local memory, and the emulator
//! is told to reach it there. So host and kernels see the same bytes, at once. Memory that the program registers lies
//! where the program put it; kernels reach it at another address, which `cuMemHostGetDevicePointer` tells (the device
//! attribute CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM is 0).

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::capture;
use crate::context::usable;
use crate::errors::{
    Answer, Code, HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED, INVALID_VALUE, NOT_FOUND, OUT_OF_MEMORY,
    answer, refuse,
};
use crate::state::{Driver, driver, lock};
use crate::types::{DevicePointer, Handle, Out};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Device,
    Managed,
    Pinned,
    Registered,
}

/// One allocation of the interface.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    pub bytes: usize,
    pub kind: Kind,
    pub context: Handle,
    pub flags: c_uint,
    /// The host's address, or 0.
    pub host: usize,
    /// The pool it came from, or 0.
    pub pool: Handle,
    /// Belongs to a graph, which frees it.
    pub is_of_graph: bool,
}

/// Host addresses that are given to managed and pinned memory: below what the system gives by itself, and below the
/// windows through which kernels reach shared and local memory.
const HOST_BASE: usize = 0x2000_0000_0000;
const PAGE: usize = 4096;
/// Rows of a pitched allocation begin at multiples of this, as on current devices.
const PITCH: usize = 512;

/// Zeroed pages of the host at an address of our choice.
fn map_pages(bytes: usize) -> Answer<usize> {
    static NEXT: AtomicUsize = AtomicUsize::new(HOST_BASE);
    let length = bytes.checked_next_multiple_of(PAGE).ok_or(OUT_OF_MEMORY)?;
    let step = length.checked_add(PAGE).filter(|&step| step < HOST_BASE).ok_or(OUT_OF_MEMORY)?;
    // Somebody else may have mapped there: try further on.
    for _ in 0..64 {
        let at = NEXT.fetch_add(step, Relaxed);
        // SAFETY: a new anonymous mapping that replaces no other.
        let mapped = unsafe {
            libc::mmap(
                at as *mut c_void,
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if mapped as usize == at {
            return Ok(at);
        }
        if mapped != libc::MAP_FAILED {
            // An old kernel took the address as a hint only.
            unmap_pages(mapped as usize, bytes);
        }
    }
    Err(OUT_OF_MEMORY)
}

fn unmap_pages(address: usize, bytes: usize) {
    // SAFETY: our own mapping, which nobody reaches any more: it left the emulator's memory before.
    unsafe { libc::munmap(address as *mut c_void, bytes.next_multiple_of(PAGE)) };
}

/// Allocates device memory.
pub fn allocate(context: Handle, bytes: usize, pool: Handle, is_of_graph: bool) -> Answer<DevicePointer> {
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let driver = driver()?;
    let address = driver.emulator.allocate(bytes as u64).map_err(|error| refuse(&error))?;
    let block = Block { bytes, kind: Kind::Device, context, flags: 0, host: 0, pool, is_of_graph };
    lock(&driver.blocks).insert(address, block);
    Ok(address)
}

/// Allocates memory that host and device have at the same address.
fn allocate_shared(bytes: usize, kind: Kind, flags: c_uint) -> Answer<usize> {
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let context = usable()?.handle;
    let driver = driver()?;
    let host = map_pages(bytes)?;
    // SAFETY: the pages stay until `release`, which takes them out of the emulator first; their address is below the
    // windows of kernels.
    let mapped = unsafe { driver.emulator.map_host(Some(host as u64), host as *mut u8, bytes as u64) };
    if let Err(error) = mapped {
        unmap_pages(host, bytes);
        return Err(refuse(&error));
    }
    lock(&driver.blocks).insert(host as u64, Block { bytes, kind, context, flags, host, pool: 0, is_of_graph: false });
    Ok(host)
}

/// Ends an allocation that was taken out of the table.
fn release(driver: &Driver, address: u64, block: &Block) -> Answer {
    if block.kind == Kind::Registered {
        driver.registered.fetch_sub(1, Relaxed);
    }
    let freed = driver.emulator.free(address).map_err(|error| refuse(&error));
    if matches!(block.kind, Kind::Managed | Kind::Pinned) {
        unmap_pages(block.host, block.bytes);
    }
    freed
}

/// Frees the allocation at `address` if the test agrees to its kind.
fn free_if(address: u64, test: impl Fn(&Block) -> bool, otherwise: Code) -> Answer {
    let driver = driver()?;
    let block = {
        let mut blocks = lock(&driver.blocks);
        match blocks.get(&address) {
            // A graph's memory is there again at the graph's next launch.
            Some(block) if block.is_of_graph => return Ok(()),
            Some(block) if test(block) => blocks.remove(&address),
            _ => None,
        }
    };
    release(driver, address, &block.ok_or(otherwise)?)
}

pub fn free(address: DevicePointer) -> Answer {
    free_if(address, |block| matches!(block.kind, Kind::Device | Kind::Managed), INVALID_VALUE)
}

/// Frees what belonged to a graph.
pub fn free_of_graph(address: DevicePointer) {
    let Ok(driver) = driver() else { return };
    let block = lock(&driver.blocks).remove(&address);
    if let Some(block) = block {
        // Only fails if the context freed it before.
        let _ = release(driver, address, &block);
    }
}

/// Frees everything of a context.
pub fn free_all(driver: &Driver, context: Handle) {
    let gone: Vec<(u64, Block)> = {
        let mut blocks = lock(&driver.blocks);
        let gone: Vec<(u64, Block)> =
            blocks.iter().filter(|(_, block)| block.context == context).map(|(at, block)| (*at, *block)).collect();
        gone.iter().for_each(|(address, _)| {
            blocks.remove(address);
        });
        gone
    };
    for (address, block) in gone {
        // Each was live until now.
        let _ = release(driver, address, &block);
    }
}

/// The allocation that holds a device address, with its start.
pub fn block_at(driver: &Driver, address: DevicePointer) -> Option<(u64, Block)> {
    let blocks = lock(&driver.blocks);
    let (start, block) = blocks.range(..=address).next_back()?;
    (address - start < block.bytes as u64).then_some((*start, *block))
}

/// The allocation that holds a host address: managed, pinned or registered.
pub fn block_of_host(driver: &Driver, host: usize) -> Option<(u64, Block)> {
    // All but registered memory has the same address on both sides.
    if let Some((start, block)) = block_at(driver, host as u64)
        && block.host != 0
    {
        return Some((start, block));
    }
    if driver.registered.load(Relaxed) == 0 {
        return None;
    }
    let blocks = lock(&driver.blocks);
    let found = blocks.iter().find(|(_, block)| block.host != 0 && host.wrapping_sub(block.host) < block.bytes);
    found.map(|(start, block)| (*start, *block))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Code {
    answer("cuMemGetInfo", || {
        usable()?;
        let (left, all) = driver()?.emulator.memory_info();
        free.put_if_wanted(left as usize);
        total.put_if_wanted(all as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(address: Out<DevicePointer>, bytes: usize) -> Code {
    answer("cuMemAlloc", || {
        let context = usable()?;
        capture::refuse_unsafe_call()?;
        if address.is_null() {
            return Err(INVALID_VALUE);
        }
        address.put(allocate(context.handle, bytes, 0, false)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocPitch_v2(
    address: Out<DevicePointer>,
    pitch: Out<usize>,
    width_bytes: usize,
    height: usize,
    element_bytes: c_uint,
) -> Code {
    answer("cuMemAllocPitch", || {
        let context = usable()?;
        capture::refuse_unsafe_call()?;
        if address.is_null() || pitch.is_null() || !matches!(element_bytes, 4 | 8 | 16) {
            return Err(INVALID_VALUE);
        }
        let row = width_bytes.checked_next_multiple_of(PITCH).ok_or(OUT_OF_MEMORY)?;
        let bytes = row.checked_mul(height).ok_or(OUT_OF_MEMORY)?;
        address.put(allocate(context.handle, bytes, 0, false)?)?;
        pitch.put(row)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: DevicePointer) -> Code {
    answer("cuMemFree", || {
        if address == 0 {
            return Ok(());
        }
        usable()?;
        capture::refuse_unsafe_call()?;
        free(address)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetAddressRange_v2(
    start: Out<DevicePointer>,
    bytes: Out<usize>,
    address: DevicePointer,
) -> Code {
    answer("cuMemGetAddressRange", || {
        usable()?;
        // The emulator also knows the variables of modules.
        let (at, length) = driver()?.emulator.allocation(address).ok_or(NOT_FOUND)?;
        start.put_if_wanted(at);
        bytes.put_if_wanted(length as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocManaged(address: Out<DevicePointer>, bytes: usize, flags: c_uint) -> Code {
    answer("cuMemAllocManaged", || {
        // Attached to all streams or to the host only.
        if address.is_null() || !matches!(flags, 1 | 2) {
            return Err(INVALID_VALUE);
        }
        address.put(allocate_shared(bytes, Kind::Managed, flags)? as DevicePointer)
    })
}

const HOST_FLAGS: c_uint = 0x7;
const REGISTER_FLAGS: c_uint = 0xf;
/// Mapped into the device: all pinned memory is.
const MAPPED: c_uint = 2;

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostAlloc(host: Out<*mut c_void>, bytes: usize, flags: c_uint) -> Code {
    answer("cuMemHostAlloc", || {
        if host.is_null() || flags & !HOST_FLAGS != 0 {
            return Err(INVALID_VALUE);
        }
        host.put(allocate_shared(bytes, Kind::Pinned, flags | MAPPED)? as *mut c_void)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocHost_v2(host: Out<*mut c_void>, bytes: usize) -> Code {
    cuMemHostAlloc(host, bytes, 0)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(host: *mut c_void) -> Code {
    answer("cuMemFreeHost", || {
        usable()?;
        free_if(host as u64, |block| block.kind == Kind::Pinned, INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostGetDevicePointer_v2(address: Out<DevicePointer>, host: *mut c_void, flags: c_uint) -> Code {
    answer("cuMemHostGetDevicePointer", || {
        usable()?;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let (start, block) = block_of_host(driver()?, host as usize).ok_or(INVALID_VALUE)?;
        address.put(start + (host as usize - block.host) as u64)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostGetFlags(flags: Out<c_uint>, host: *mut c_void) -> Code {
    answer("cuMemHostGetFlags", || {
        usable()?;
        let (_, block) = block_of_host(driver()?, host as usize).ok_or(INVALID_VALUE)?;
        flags.put(block.flags)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostRegister_v2(host: *mut c_void, bytes: usize, flags: c_uint) -> Code {
    answer("cuMemHostRegister", || {
        let context = usable()?.handle;
        let driver = driver()?;
        let start = host as usize;
        if start == 0 || bytes == 0 || start.checked_add(bytes).is_none() || flags & !REGISTER_FLAGS != 0 {
            return Err(INVALID_VALUE);
        }
        let overlaps =
            |block: &Block| block.host != 0 && block.host < start + bytes && start < block.host + block.bytes;
        if lock(&driver.blocks).values().any(overlaps) {
            return Err(HOST_MEMORY_ALREADY_REGISTERED);
        }
        // SAFETY: the program promises by registering that the bytes stay until it unregisters them.
        let mapped = unsafe { driver.emulator.map_host(None, host.cast(), bytes as u64) };
        let address = mapped.map_err(|error| refuse(&error))?;
        let block = Block {
            bytes,
            kind: Kind::Registered,
            context,
            flags: flags | MAPPED,
            host: start,
            pool: 0,
            is_of_graph: false,
        };
        driver.registered.fetch_add(1, Relaxed);
        lock(&driver.blocks).insert(address, block);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostUnregister(host: *mut c_void) -> Code {
    answer("cuMemHostUnregister", || {
        usable()?;
        let (start, block) = block_of_host(driver()?, host as usize).ok_or(HOST_MEMORY_NOT_REGISTERED)?;
        if block.host != host as usize {
            return Err(HOST_MEMORY_NOT_REGISTERED);
        }
        free_if(start, |block| block.kind == Kind::Registered, HOST_MEMORY_NOT_REGISTERED)
    })
}
