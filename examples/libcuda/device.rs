//! Initialisation and the one device.

use std::ffi::{c_char, c_int, c_uint};

use crate::attributes::{CONSTANT_BYTES, DEFAULT_SHARED_BYTES, MAX_PITCH, REGISTERS, TEXTURE_ALIGNMENT, attribute};
use crate::errors::{Answer, Code, INVALID_DEVICE, INVALID_VALUE, NOT_SUPPORTED, answer};
use crate::state::{Driver, driver, initialise, options};
use crate::types::{Device, DeviceProperties, Name, Out};

const PCI_BUS: &str = "0000:01:00.0";

/// The driver, if `device` is its device.
pub fn known(device: Device) -> Answer<&'static Driver> {
    let driver = driver()?;
    if device == 0 { Ok(driver) } else { Err(INVALID_DEVICE) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> Code {
    answer("cuInit", || if flags == 0 { initialise() } else { Err(INVALID_VALUE) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: Out<c_int>) -> Code {
    answer("cuDriverGetVersion", || version.put(options()?.driver_version))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: Out<Device>, ordinal: c_int) -> Code {
    answer("cuDeviceGet", || known(ordinal).and_then(|_| device.put(ordinal)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: Out<c_int>) -> Code {
    answer("cuDeviceGetCount", || driver().and_then(|_| count.put(1)))
}

/// Writes as much of `text` as fits, with a zero at the end.
fn put_text(target: Out<c_char>, room: c_int, text: &str) -> Answer {
    let room = usize::try_from(room).ok().filter(|&room| room > 0).ok_or(INVALID_VALUE)?;
    let mut bytes: Vec<u8> = text.bytes().take(room - 1).collect();
    bytes.push(0);
    target.of::<u8>().put_all(&bytes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetName(name: Out<c_char>, room: c_int, device: Device) -> Code {
    answer("cuDeviceGetName", || put_text(name, room, &known(device)?.emulator.facts().name))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: Device) -> Code {
    answer("cuDeviceGetUuid", || known(device).and_then(|_| uuid.put(*b"engine-emulator0")))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: Device) -> Code {
    cuDeviceGetUuid(uuid, device)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: Device) -> Code {
    answer("cuDeviceTotalMem", || bytes.put(known(device)?.emulator.facts().memory_bytes as usize))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: Out<c_int>, number: c_uint, device: Device) -> Code {
    answer("cuDeviceGetAttribute", || {
        value.put(attribute(known(device)?.emulator.facts(), number).ok_or(INVALID_VALUE)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: Device) -> Code {
    answer("cuDeviceComputeCapability", || {
        let architecture = known(device)?.emulator.facts().architecture as c_int;
        major.put(architecture / 10)?;
        minor.put(architecture % 10)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetProperties(properties: Out<DeviceProperties>, device: Device) -> Code {
    answer("cuDeviceGetProperties", || {
        let facts = known(device)?.emulator.facts();
        properties.put(DeviceProperties {
            max_threads_per_block: facts.max_threads_per_block as c_int,
            max_threads: facts.max_block.map(|size| size as c_int),
            max_grid: facts.max_grid.map(|size| size as c_int),
            shared_per_block: facts.max_shared_bytes_per_block.min(DEFAULT_SHARED_BYTES) as c_int,
            constant_memory: CONSTANT_BYTES,
            warp_size: 32,
            max_pitch: MAX_PITCH,
            registers_per_block: REGISTERS,
            clock_kilohertz: 1_410_000,
            texture_alignment: TEXTURE_ALIGNMENT,
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetPCIBusId(text: Out<c_char>, room: c_int, device: Device) -> Code {
    answer("cuDeviceGetPCIBusId", || known(device).and_then(|_| put_text(text, room, PCI_BUS)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetByPCIBusId(device: Out<Device>, text: Name) -> Code {
    answer("cuDeviceGetByPCIBusId", || {
        driver()?;
        let text = text.string()?;
        // The domain and the function may be left out.
        if ["0000:01:00.0", "01:00.0", "0000:01:00", "00000000:01:00.0"].contains(&text.as_str()) {
            device.put(0)
        } else {
            Err(INVALID_DEVICE)
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetExecAffinitySupport(value: Out<c_int>, _kind: c_uint, device: Device) -> Code {
    answer("cuDeviceGetExecAffinitySupport", || known(device).and_then(|_| value.put(0)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetLuid(_luid: Out<c_char>, _nodes: Out<c_uint>, device: Device) -> Code {
    // Only Windows has them.
    answer("cuDeviceGetLuid", || known(device).and(Err(NOT_SUPPORTED)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceCanAccessPeer(can: Out<c_int>, device: Device, peer: Device) -> Code {
    answer("cuDeviceCanAccessPeer", || {
        known(device)?;
        known(peer)?;
        can.put(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetP2PAttribute(value: Out<c_int>, number: c_uint, source: Device, target: Device) -> Code {
    answer("cuDeviceGetP2PAttribute", || {
        known(source)?;
        known(target)?;
        // A device is no peer of itself.
        if source == target || !(1..=5).contains(&number) {
            return Err(INVALID_VALUE);
        }
        value.put(0)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGraphMemTrim(device: Device) -> Code {
    answer("cuDeviceGraphMemTrim", || known(device).map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuProfilerStart() -> Code {
    answer("cuProfilerStart", || driver().map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuProfilerStop() -> Code {
    answer("cuProfilerStop", || driver().map(|_| ()))
}
