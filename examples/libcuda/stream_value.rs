//! Streams that write a value to memory, or wait for one to be there.
//!
//! Streams run eagerly, so a wait for what is not there yet would never end if this thread is to write it: it is refused.

use std::ffi::c_uint;

use crate::copy::Fill;
use crate::errors::{Answer, Code, INVALID_VALUE, NOT_SUPPORTED, answer, refuse};
use crate::options::log;
use crate::state::driver;
use crate::stream;
use crate::submit::{Operation, submit};
use crate::types::{DevicePointer, FillNode, Handle};

fn write(stream: Handle, address: DevicePointer, value: u64, words: u64) -> Answer {
    if !address.is_multiple_of(4 * words) {
        return Err(INVALID_VALUE);
    }
    for word in 0..words {
        let value = (value >> (32 * word)) as u32;
        let target = address + 4 * word;
        let node = FillNode { target, pitch: 0, value, element_bytes: 4, width: 1, height: 1 };
        submit(stream, Operation::Fill(Fill::new(&node)?))?;
    }
    Ok(())
}

fn wait(handle: Handle, address: DevicePointer, value: u64, bits: u32, flags: c_uint) -> Answer {
    if stream::resolve(handle)?.capture().is_some() {
        return Err(NOT_SUPPORTED);
    }
    let mut bytes = [0u8; 8];
    let length = (bits / 8) as usize;
    driver()?.emulator.read(address, &mut bytes[..length]).map_err(|error| refuse(&error))?;
    let found = u64::from_le_bytes(bytes);
    // Differences and complements are those of the value's width.
    let shift = 64 - bits;
    let is_there = match flags & 3 {
        0 => (found.wrapping_sub(value) << shift) as i64 >= 0,
        1 => found << shift == value << shift,
        2 => found & value != 0,
        _ => !(found | value) << shift != 0,
    };
    if is_there {
        return Ok(());
    }
    log(|| format!("a stream would wait at {address:#x}, which has {found}, for {value}: streams run at once here"));
    Err(NOT_SUPPORTED)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWriteValue32_v2(stream: Handle, address: DevicePointer, value: u32, _flags: c_uint) -> Code {
    answer("cuStreamWriteValue32", || write(stream, address, u64::from(value), 1))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWriteValue64_v2(stream: Handle, address: DevicePointer, value: u64, _flags: c_uint) -> Code {
    answer("cuStreamWriteValue64", || write(stream, address, value, 2))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitValue32_v2(stream: Handle, address: DevicePointer, value: u32, flags: c_uint) -> Code {
    answer("cuStreamWaitValue32", || wait(stream, address, u64::from(value), 32, flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitValue64_v2(stream: Handle, address: DevicePointer, value: u64, flags: c_uint) -> Code {
    answer("cuStreamWaitValue64", || wait(stream, address, value, 64, flags))
}
