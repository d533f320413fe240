//! Copies and fills as operations: boxes of rows, between places that are the device's or the host's.

use crate::errors::{Answer, INVALID_VALUE, NOT_SUPPORTED, refuse};
use crate::memory::block_of_host;
use crate::state::{Driver, driver};
use crate::types::{Copy2d, Copy3d, FillNode, Side2d, Side3d};

/// Where one side of a copy lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Host,
    Device,
    /// Either: the address tells.
    Unified,
}

/// One side of a copy: the address of its first byte, and bytes from row to row and from slice to slice.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    pub place: Place,
    pub address: u64,
    pub row_pitch: usize,
    pub slice_pitch: usize,
}

/// A copy of `depth` slices of `height` rows of `width` bytes.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    pub target: Side,
    pub source: Side,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
const UNIFIED: u32 = 4;

impl Side {
    pub fn linear(place: Place, address: u64) -> Self {
        Self { place, address, row_pitch: 0, slice_pitch: 0 }
    }

    fn of(memory: u32, host: usize, device: u64) -> Answer<(Place, u64)> {
        match memory {
            HOST => Ok((Place::Host, host as u64)),
            DEVICE => Ok((Place::Device, device)),
            UNIFIED => Ok((Place::Unified, device)),
            ARRAY => Err(NOT_SUPPORTED),
            _ => Err(INVALID_VALUE),
        }
    }

    fn new2d(side: &Side2d, width: usize, height: usize) -> Answer<Self> {
        let (place, address) = Self::of(side.memory, side.host, side.device)?;
        // One row needs no pitch.
        let pitch = if side.pitch == 0 { width } else { side.pitch };
        if height > 1 && pitch < width {
            return Err(INVALID_VALUE);
        }
        let start = (side.y as u64).wrapping_mul(pitch as u64).wrapping_add(side.x_bytes as u64);
        Ok(Self { place, address: address.wrapping_add(start), row_pitch: pitch, slice_pitch: 0 })
    }

    fn new3d(side: &Side3d, copy: &Copy3d) -> Answer<Self> {
        let (place, address) = Self::of(side.memory, side.host, side.device)?;
        let pitch = if side.pitch == 0 { copy.width_bytes } else { side.pitch };
        let rows = if side.height == 0 { copy.height } else { side.height };
        if side.level != 0 || (copy.height > 1 && pitch < copy.width_bytes) || (copy.depth > 1 && rows < copy.height) {
            return Err(INVALID_VALUE);
        }
        let slice_pitch = pitch.checked_mul(rows).ok_or(INVALID_VALUE)?;
        let start = (side.z as u64)
            .wrapping_mul(slice_pitch as u64)
            .wrapping_add((side.y as u64).wrapping_mul(pitch as u64))
            .wrapping_add(side.x_bytes as u64);
        Ok(Self { place, address: address.wrapping_add(start), row_pitch: pitch, slice_pitch })
    }
}

impl Copy {
    pub fn linear(target: Side, source: Side, bytes: usize) -> Self {
        Self { target, source, width: bytes, height: 1, depth: 1 }
    }

    pub fn new2d(copy: &Copy2d) -> Answer<Self> {
        let (width, height) = (copy.width_bytes, copy.height);
        Ok(Self {
            target: Side::new2d(&copy.target, width, height)?,
            source: Side::new2d(&copy.source, width, height)?,
            width,
            height,
            depth: 1,
        })
    }

    pub fn new3d(copy: &Copy3d) -> Answer<Self> {
        Ok(Self {
            target: Side::new3d(&copy.target, copy)?,
            source: Side::new3d(&copy.source, copy)?,
            width: copy.width_bytes,
            height: copy.height,
            depth: copy.depth,
        })
    }

    pub fn run(&self) -> Answer {
        let driver = driver()?;
        let (mut rows, mut width) = (self.height, self.width);
        if width == 0 || rows == 0 {
            return Ok(());
        }
        let is_dense = |side: &Side| side.row_pitch == width;
        if rows > 1 && is_dense(&self.target) && is_dense(&self.source) {
            (rows, width) = (1, width.checked_mul(rows).ok_or(INVALID_VALUE)?);
        }
        for slice in 0..self.depth as u64 {
            for row in 0..rows as u64 {
                let at = |side: &Side| {
                    let offset = slice
                        .wrapping_mul(side.slice_pitch as u64)
                        .wrapping_add(row.wrapping_mul(side.row_pitch as u64));
                    (side.place, side.address.wrapping_add(offset))
                };
                copy_row(driver, at(&self.target), at(&self.source), width)?;
            }
        }
        Ok(())
    }
}

/// The device address of a place, `None` if the bytes are only the host's. Pinned and registered memory that is named by
/// its host address counts as the device's: it may be either side's at once.
fn on_device(driver: &Driver, place: Place, address: u64) -> Answer<Option<u64>> {
    if address == 0 {
        return Err(INVALID_VALUE);
    }
    match place {
        Place::Device => Ok(Some(address)),
        Place::Host | Place::Unified => {
            if let Some((start, block)) = block_of_host(driver, address as usize) {
                return Ok(Some(start + (address - block.host as u64)));
            }
            let is_known = place == Place::Unified && driver.emulator.allocation(address).is_some();
            Ok(is_known.then_some(address))
        }
    }
}

fn copy_row(driver: &Driver, target: (Place, u64), source: (Place, u64), bytes: usize) -> Answer {
    let emulator = &driver.emulator;
    let to = on_device(driver, target.0, target.1)?;
    let from = on_device(driver, source.0, source.1)?;
    let result = match (to, from) {
        (Some(to), Some(from)) => emulator.copy(to, from, bytes),
        (Some(to), None) => {
            // SAFETY: the program promises that many bytes at the host address it copies from. Nothing of the device
            // lies there, so no kernel writes them.
            let source = unsafe { std::slice::from_raw_parts(source.1 as *const u8, bytes) };
            emulator.write(to, source)
        }
        (None, Some(from)) => {
            // SAFETY: as above, for the host address it copies to.
            let target = unsafe { std::slice::from_raw_parts_mut(target.1 as *mut u8, bytes) };
            emulator.read(from, target)
        }
        (None, None) => {
            // SAFETY: as above, for both; they may overlap.
            unsafe { std::ptr::copy(source.1 as *const u8, target.1 as *mut u8, bytes) };
            Ok(())
        }
    };
    result.map_err(|error| refuse(&error))
}

/// Fills `height` rows of `width` elements, `pitch` bytes apart.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    pub target: u64,
    pub pitch: usize,
    pub value: u32,
    pub element_bytes: usize,
    pub width: usize,
    pub height: usize,
}

impl Fill {
    pub fn new(node: &FillNode) -> Answer<Self> {
        let fill = Self {
            target: node.target,
            pitch: node.pitch,
            value: node.value,
            element_bytes: node.element_bytes as usize,
            width: node.width,
            height: node.height,
        };
        if matches!(fill.element_bytes, 1 | 2 | 4) && node.target.is_multiple_of(u64::from(node.element_bytes)) {
            Ok(fill)
        } else {
            Err(INVALID_VALUE)
        }
    }

    /// As the interface describes a graph's node.
    pub fn node(&self) -> FillNode {
        FillNode {
            target: self.target,
            pitch: self.pitch,
            value: self.value,
            element_bytes: self.element_bytes as u32,
            width: self.width,
            height: self.height,
        }
    }

    pub fn run(&self) -> Answer {
        let driver = driver()?;
        let pattern = &self.value.to_le_bytes()[..self.element_bytes];
        for row in 0..self.height as u64 {
            let at = self.target.wrapping_add(row.wrapping_mul(self.pitch as u64));
            driver.emulator.fill(at, pattern, self.width).map_err(|error| refuse(&error))?;
        }
        Ok(())
    }
}
