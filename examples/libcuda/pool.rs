//! Memory in stream order, and pools.
//!
//! Streams run eagerly, so memory in stream order is there when asked for. Pools keep their attributes and count what they
//! gave; they hold nothing back, and trimming them has nothing to do. In a capture, an allocation belongs to the graph.

use std::ffi::{c_int, c_uint};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use crate::context::usable;
use crate::device::known;
use crate::errors::{Answer, Code, INVALID_VALUE, NOT_SUPPORTED, answer};
use crate::memory;
use crate::state::{driver, lock};
use crate::stream;
use crate::submit::{Operation, submit};
use crate::types::{
    AccessDescription, Device, DevicePointer, Handle, In, LOCATION_DEVICE, MemoryLocation, Out, PoolProperties,
};

pub struct Pool {
    pub handle: Handle,
    /// Attributes 1 to 3 (ints) and 4 (release threshold), by number.
    settings: Mutex<[u64; 5]>,
    /// Most bytes that were out at once.
    high: Mutex<u64>,
}

const RELEASE_THRESHOLD: c_uint = 4;
const RESERVED_CURRENT: c_uint = 5;
const RESERVED_HIGH: c_uint = 6;
const USED_CURRENT: c_uint = 7;
const USED_HIGH: c_uint = 8;
const PINNED: c_uint = 1;

/// Memory that a graph owns: freed when no graph has it any more.
pub struct GraphMemory {
    pub address: DevicePointer,
    pub bytes: usize,
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        memory::free_of_graph(self.address);
    }
}

impl Pool {
    pub fn new(handle: Handle) -> Self {
        Self { handle, settings: Mutex::new([0, 1, 1, 1, 0]), high: Mutex::new(0) }
    }

    fn used(&self) -> Answer<u64> {
        let blocks = lock(&driver()?.blocks);
        Ok(blocks.values().filter(|block| block.pool == self.handle).map(|block| block.bytes as u64).sum())
    }
}

/// The pool of a handle; 0 is the device's current one.
fn pool(handle: Handle) -> Answer<Arc<Pool>> {
    let driver = driver()?;
    let handle = if handle == 0 { driver.current_pool.load(Relaxed) } else { handle };
    driver.pools.get(handle).ok_or(INVALID_VALUE)
}

fn allocate(target: Out<DevicePointer>, bytes: usize, pool: &Pool, stream: Handle) -> Answer {
    let context = usable()?;
    if target.is_null() {
        return Err(INVALID_VALUE);
    }
    let is_captured = stream::resolve(stream)?.capture().is_some();
    let address = memory::allocate(context.handle, bytes, pool.handle, is_captured)?;
    if is_captured {
        submit(stream, Operation::Allocate(Arc::new(GraphMemory { address, bytes })))?;
    }
    let used = pool.used()?;
    let mut high = lock(&pool.high);
    *high = used.max(*high);
    target.put(address)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocAsync(address: Out<DevicePointer>, bytes: usize, stream: Handle) -> Code {
    answer("cuMemAllocAsync", || allocate(address, bytes, &*pool(0)?, stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocFromPoolAsync(
    address: Out<DevicePointer>,
    bytes: usize,
    handle: Handle,
    stream: Handle,
) -> Code {
    answer("cuMemAllocFromPoolAsync", || {
        if handle == 0 {
            return Err(INVALID_VALUE);
        }
        allocate(address, bytes, &*pool(handle)?, stream)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: DevicePointer, stream: Handle) -> Code {
    answer("cuMemFreeAsync", || submit(stream, Operation::Free(address)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolCreate(handle: Out<Handle>, properties: In<PoolProperties>) -> Code {
    answer("cuMemPoolCreate", || {
        let properties = properties.get()?;
        if properties.allocation_type != PINNED {
            return Err(INVALID_VALUE);
        }
        // Neither sharing between processes nor pools of host memory.
        if properties.handle_types != 0 || properties.location.kind != LOCATION_DEVICE {
            return Err(NOT_SUPPORTED);
        }
        known(properties.location.id)?;
        handle.put(driver()?.pools.add(Pool::new).handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolDestroy(handle: Handle) -> Code {
    answer("cuMemPoolDestroy", || {
        let driver = driver()?;
        if handle == driver.default_pool {
            return Err(INVALID_VALUE);
        }
        driver.pools.remove(handle).ok_or(INVALID_VALUE)?;
        let _ = driver.current_pool.compare_exchange(handle, driver.default_pool, Relaxed, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetDefaultMemPool(handle: Out<Handle>, device: Device) -> Code {
    answer("cuDeviceGetDefaultMemPool", || handle.put(known(device)?.default_pool))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetMemPool(handle: Out<Handle>, device: Device) -> Code {
    answer("cuDeviceGetMemPool", || handle.put(known(device)?.current_pool.load(Relaxed)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceSetMemPool(device: Device, handle: Handle) -> Code {
    answer("cuDeviceSetMemPool", || {
        let driver = known(device)?;
        driver.pools.get(handle).ok_or(INVALID_VALUE)?;
        driver.current_pool.store(handle, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetDefaultMemPool(handle: Out<Handle>, location: In<MemoryLocation>, kind: c_uint) -> Code {
    answer("cuMemGetDefaultMemPool", || {
        if location.get()?.kind != LOCATION_DEVICE || kind != PINNED {
            return Err(NOT_SUPPORTED);
        }
        handle.put(known(location.get()?.id)?.default_pool)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetMemPool(handle: Out<Handle>, location: In<MemoryLocation>, kind: c_uint) -> Code {
    answer("cuMemGetMemPool", || {
        if location.get()?.kind != LOCATION_DEVICE || kind != PINNED {
            return Err(NOT_SUPPORTED);
        }
        handle.put(known(location.get()?.id)?.current_pool.load(Relaxed))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemSetMemPool(location: In<MemoryLocation>, kind: c_uint, handle: Handle) -> Code {
    answer("cuMemSetMemPool", || {
        if location.get()?.kind != LOCATION_DEVICE || kind != PINNED {
            return Err(NOT_SUPPORTED);
        }
        let driver = known(location.get()?.id)?;
        driver.pools.get(handle).ok_or(INVALID_VALUE)?;
        driver.current_pool.store(handle, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(handle: Handle, _keep: usize) -> Code {
    answer("cuMemPoolTrimTo", || pool(handle).map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolSetAttribute(handle: Handle, number: c_uint, value: Out<u64>) -> Code {
    answer("cuMemPoolSetAttribute", || {
        let pool = pool(handle)?;
        match number {
            1..=3 => lock(&pool.settings)[number as usize] = u64::from(value.of::<c_int>().get()? != 0),
            RELEASE_THRESHOLD => lock(&pool.settings)[number as usize] = value.get()?,
            // The marks can only be reset.
            RESERVED_HIGH | USED_HIGH if value.get()? == 0 => *lock(&pool.high) = pool.used()?,
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolGetAttribute(handle: Handle, number: c_uint, value: Out<u64>) -> Code {
    answer("cuMemPoolGetAttribute", || {
        let pool = pool(handle)?;
        match number {
            1..=3 => value.of::<c_int>().put(lock(&pool.settings)[number as usize] as c_int),
            RELEASE_THRESHOLD => value.put(lock(&pool.settings)[number as usize]),
            RESERVED_CURRENT | USED_CURRENT => value.put(pool.used()?),
            RESERVED_HIGH | USED_HIGH => value.put(*lock(&pool.high)),
            _ => Err(INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolSetAccess(handle: Handle, list: In<AccessDescription>, count: usize) -> Code {
    answer("cuMemPoolSetAccess", || {
        pool(handle)?;
        list.all(count)?.iter().try_for_each(|access| known(access.location.id).map(|_| ()))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolGetAccess(flags: Out<c_uint>, handle: Handle, location: In<MemoryLocation>) -> Code {
    answer("cuMemPoolGetAccess", || {
        pool(handle)?;
        known(location.get()?.id)?;
        // Read and write.
        flags.put(3)
    })
}
