//! What a pointer is: attributes of addresses, and hints about managed memory.

use std::ffi::{c_int, c_uint};

use crate::context::usable;
use crate::device::known;
use crate::errors::{Answer, Code, INVALID_VALUE, NOT_SUPPORTED, answer, answer_quietly};
use crate::memory::{Block, Kind, block_at, block_of_host};
use crate::state::{Driver, driver};
use crate::stream;
use crate::types::{Device, DevicePointer, Handle, In, MemoryLocation, Out};

const TYPE_HOST: c_uint = 1;
const TYPE_DEVICE: c_uint = 2;

/// The allocation of an address, be it the device's or the host's, and the address on the device.
fn find(driver: &Driver, address: DevicePointer) -> Option<(u64, Block, DevicePointer)> {
    if let Some((start, block)) = block_at(driver, address) {
        return Some((start, block, address));
    }
    if let Some((start, block)) = block_of_host(driver, address as usize) {
        return Some((start, block, start + (address - block.host as u64)));
    }
    // A variable of a module.
    let (start, bytes) = driver.emulator.allocation(address)?;
    let block =
        Block { bytes: bytes as usize, kind: Kind::Device, context: 0, flags: 0, host: 0, pool: 0, is_of_graph: false };
    Some((start, block, address))
}

fn put_attribute(data: Out<u64>, number: c_uint, address: DevicePointer) -> Answer {
    let driver = driver()?;
    let (start, block, on_device) = find(driver, address).ok_or(INVALID_VALUE)?;
    let is_host = matches!(block.kind, Kind::Pinned | Kind::Registered);
    match number {
        1 => data.put(block.context as u64),
        2 => data.of::<c_uint>().put(if is_host { TYPE_HOST } else { TYPE_DEVICE }),
        3 => data.put(on_device),
        4 if block.host != 0 => data.put(block.host as u64 + (on_device - start)),
        4 => Err(INVALID_VALUE),
        // Synchronous memory operations, as all are.
        6 => data.of::<c_uint>().put(1),
        // An identifier that is never used again, as device addresses are not.
        7 | 20 => data.put(start),
        8 => data.of::<u8>().put(u8::from(block.kind == Kind::Managed)),
        9 => data.of::<c_int>().put(0),
        10 | 15 | 21 => data.of::<u8>().put(0),
        11 => data.put(if is_host { block.host as u64 } else { start }),
        12 | 18 => data.put(block.bytes as u64),
        13 => data.of::<u8>().put(1),
        14 => data.put(0),
        // Read and write.
        16 => data.of::<c_uint>().put(3),
        17 => data.put(block.pool as u64),
        19 => data.put(start),
        _ => Err(INVALID_VALUE),
    }
}

/// What an attribute of an unknown pointer is, in a list: a null of its type.
fn put_nothing(data: Out<u64>, number: c_uint) {
    match number {
        2 | 6 | 16 => data.of::<c_uint>().put_if_wanted(0),
        8 | 10 | 13 | 15 | 21 => data.of::<u8>().put_if_wanted(0),
        9 => data.of::<c_int>().put_if_wanted(-2),
        5 => {}
        _ => data.put_if_wanted(0),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuPointerGetAttribute(data: Out<u64>, number: c_uint, address: DevicePointer) -> Code {
    answer_quietly(|| put_attribute(data, number, address))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuPointerGetAttributes(
    count: c_uint,
    numbers: In<c_uint>,
    data: In<usize>,
    address: DevicePointer,
) -> Code {
    answer("cuPointerGetAttributes", || {
        driver()?;
        for index in 0..count as usize {
            let (number, target) = (numbers.at(index)?, Out::from_address(data.at(index)?));
            if put_attribute(target, number, address).is_err() {
                put_nothing(target, number);
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuPointerSetAttribute(_value: In<u8>, number: c_uint, address: DevicePointer) -> Code {
    answer("cuPointerSetAttribute", || {
        find(driver()?, address).ok_or(INVALID_VALUE)?;
        // Synchronous memory operations: they are.
        if number == 6 { Ok(()) } else { Err(INVALID_VALUE) }
    })
}

/// A hint about a range: taken if it is one of managed memory, and without effect.
fn hint(address: DevicePointer, bytes: usize) -> Answer {
    usable()?;
    match block_at(driver()?, address) {
        Some((start, block)) if block.kind == Kind::Managed => {
            let left = block.bytes as u64 - (address - start);
            if bytes > 0 && bytes as u64 <= left { Ok(()) } else { Err(INVALID_VALUE) }
        }
        _ => Err(INVALID_VALUE),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAdvise(address: DevicePointer, bytes: usize, _advice: c_uint, _device: Device) -> Code {
    answer("cuMemAdvise", || hint(address, bytes))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAdvise_v2(
    address: DevicePointer,
    bytes: usize,
    _advice: c_uint,
    _location: MemoryLocation,
) -> Code {
    answer("cuMemAdvise_v2", || hint(address, bytes))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPrefetchAsync(address: DevicePointer, bytes: usize, device: Device, stream: Handle) -> Code {
    answer("cuMemPrefetchAsync", || {
        // -1 is the host.
        if device != -1 {
            known(device)?;
        }
        stream::resolve(stream)?;
        hint(address, bytes)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPrefetchAsync_v2(
    address: DevicePointer,
    bytes: usize,
    _location: MemoryLocation,
    _flags: c_uint,
    stream: Handle,
) -> Code {
    answer("cuMemPrefetchAsync_v2", || {
        stream::resolve(stream)?;
        hint(address, bytes)
    })
}

fn put_range_attribute(data: Out<u8>, data_bytes: usize, number: c_uint, range: (DevicePointer, usize)) -> Answer {
    hint(range.0, range.1)?;
    // Not read-mostly; no preferred, last or accessing location: the "invalid device".
    let word: c_int = match number {
        1 => 0,
        2..=4 => -2,
        5..=8 => return Err(NOT_SUPPORTED),
        _ => return Err(INVALID_VALUE),
    };
    if data_bytes == 0 || !data_bytes.is_multiple_of(4) {
        return Err(INVALID_VALUE);
    }
    data.of::<c_int>().put_all(&vec![word; data_bytes / 4])
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemRangeGetAttribute(
    data: Out<u8>,
    data_bytes: usize,
    number: c_uint,
    address: DevicePointer,
    bytes: usize,
) -> Code {
    answer("cuMemRangeGetAttribute", || put_range_attribute(data, data_bytes, number, (address, bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemRangeGetAttributes(
    data: In<usize>,
    data_bytes: In<usize>,
    numbers: In<c_uint>,
    count: usize,
    address: DevicePointer,
    bytes: usize,
) -> Code {
    answer("cuMemRangeGetAttributes", || {
        (0..count).try_for_each(|index| {
            let target = Out::from_address(data.at(index)?);
            put_range_attribute(target, data_bytes.at(index)?, numbers.at(index)?, (address, bytes))
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamAttachMemAsync(
    stream: Handle,
    address: DevicePointer,
    _bytes: usize,
    _flags: c_uint,
) -> Code {
    answer("cuStreamAttachMemAsync", || {
        usable()?;
        stream::resolve(stream)?;
        match find(driver()?, address) {
            Some((_, block, _)) if block.kind == Kind::Managed => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    })
}
