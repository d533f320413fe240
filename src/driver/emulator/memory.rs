//! Device memory: allocations at 64-bit virtual addresses that no host pointer has.
//!
//! Addresses start beyond what a host process can map, grow and are never used again, so a stale or foreign pointer
//! cannot hit a live allocation by chance. Each allocation has its own host buffer, with a gap behind it in the address space.
//!
//! Kernels reach the buffers through raw pointers, from several threads at once, as a GPU's blocks do. The host program
//! only touches them between launches: `&mut` for whatever changes the set of allocations.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::error::{Access, EmulatorError, FaultKind, Result};
use super::heap::Heap;

/// The first device address.
pub const DEVICE_BASE: u64 = 0x0001_0000_0000_0000;
/// Alignment of small allocations. CUDA promises 256 bytes; its drivers give 512, and programs have come to rely on that.
pub const ALIGNMENT: u64 = 512;
/// Allocations of at least [`LARGE`] bytes start on a page of the device, as a driver's do: Taichi, for one, makes its first
/// allocation just large enough for parts that start at multiples of 4 KiB.
const PAGE: u64 = 2 << 20;
const LARGE: u64 = 1 << 20;
/// How many freed ranges are remembered, to say that an address was freed.
const FREED_REMEMBERED: usize = 4096;

/// One live allocation.
pub struct Allocation {
    pub start: u64,
    pub bytes: u64,
    /// First byte; aligned to [`ALIGNMENT`] inside `buffer`.
    pointer: *mut u8,
    /// Owns the memory; only ever reached through `pointer`. Empty for host memory of somebody else.
    buffer: Vec<u8>,
    /// Which bytes anybody wrote, where that is tracked.
    initialised: Option<Initialised>,
}

/// One bit per byte of an allocation.
pub struct Initialised {
    start: u64,
    words: Vec<AtomicU64>,
}

impl Initialised {
    fn new(start: u64, bytes: u64) -> Self {
        Self { start, words: (0..bytes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Notes that the bytes were written.
    pub fn mark(&self, address: u64, bytes: u32) {
        self.mark_range(address, u64::from(bytes));
    }

    /// Notes that the bytes hold nothing: they are somebody else's from now on.
    pub fn clear(&self, address: u64, bytes: u64) {
        for bit in address - self.start..address - self.start + bytes {
            if let Some(word) = self.words.get((bit / 64) as usize) {
                word.fetch_and(!(1 << (bit % 64)), Relaxed);
            }
        }
    }

    fn mark_range(&self, address: u64, bytes: u64) {
        let mut bit = address - self.start;
        let end = bit + bytes;
        while bit < end {
            let Some(word) = self.words.get((bit / 64) as usize) else { return };
            let count = (64 - bit % 64).min(end - bit);
            let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << (bit % 64) };
            word.fetch_or(mask, Relaxed);
            bit += count;
        }
    }

    /// True if all the bytes were written.
    pub fn covers(&self, address: u64, bytes: u32) -> bool {
        (address - self.start..address - self.start + u64::from(bytes)).all(|bit| {
            self.words.get((bit / 64) as usize).is_some_and(|word| word.load(Relaxed) >> (bit % 64) & 1 != 0)
        })
    }
}

// SAFETY: the pointer leads into a heap buffer that the allocation owns and that does not move.
unsafe impl Send for Allocation {}
// SAFETY: as above; concurrent access through it is the emulated program's, see the module's story.
unsafe impl Sync for Allocation {}

impl Allocation {
    pub fn pointer(&self) -> *mut u8 {
        self.pointer
    }
}

/// All allocations of a device.
pub struct DeviceMemory {
    /// By address.
    allocations: Vec<Allocation>,
    freed: Vec<(u64, u64)>,
    next: u64,
    used: u64,
    capacity: u64,
    /// New allocations remember which of their bytes were written.
    pub tracks_initialisation: bool,
    heap: Option<Heap>,
}

impl DeviceMemory {
    pub fn new(capacity: u64) -> Self {
        Self {
            allocations: Vec::new(),
            freed: Vec::new(),
            next: DEVICE_BASE,
            used: 0,
            capacity,
            tracks_initialisation: false,
            heap: None,
        }
    }

    pub fn used(&self) -> u64 {
        self.used
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Allocates `bytes` zeroed bytes.
    ///
    /// # Errors
    /// More than the device (or the host) has left.
    pub fn allocate(&mut self, bytes: u64) -> Result<u64> {
        let free = self.capacity - self.used;
        if bytes > free {
            return Err(EmulatorError::Memory(format!(
                "cannot allocate {bytes} bytes: {free} of {} are free",
                self.capacity
            )));
        }
        let length = bytes.max(1) as usize + ALIGNMENT as usize;
        let mut buffer: Vec<u8> = Vec::new();
        if buffer.try_reserve_exact(length).is_err() {
            return Err(EmulatorError::Memory(format!("cannot allocate {bytes} bytes: the host has no more memory")));
        }
        drop(buffer);
        // `vec!` of zeros comes from the system's zeroed pages, which cost nothing until touched.
        buffer = vec![0u8; length];
        let base = buffer.as_mut_ptr();
        let pointer = base.wrapping_add(base.align_offset(ALIGNMENT as usize));
        let start = self.next.next_multiple_of(if bytes < LARGE { ALIGNMENT } else { PAGE });
        self.next = start + (bytes.max(1) + ALIGNMENT).next_multiple_of(ALIGNMENT);
        self.used += bytes;
        let initialised = self.tracks_initialisation.then(|| Initialised::new(start, bytes));
        self.allocations.push(Allocation { start, bytes, pointer, buffer, initialised });
        Ok(start)
    }

    /// Lets the device reach host memory, at the device address `at` or at a new one; [`Self::free`] ends that. It takes
    /// nothing of the device's capacity, and counts as written by the host.
    ///
    /// # Safety
    /// The bytes must stay valid until then, and `at` must not be an address of a generic window (shared, local, param).
    ///
    /// # Errors
    /// The range overlaps another allocation.
    pub unsafe fn map_host(&mut self, at: Option<u64>, pointer: *mut u8, bytes: u64) -> Result<u64> {
        let start = match at {
            Some(start) => start,
            None => {
                // The same offset within a page-like unit as on the host, so that alignment is what the host gave.
                let start = self.next + pointer as u64 % ALIGNMENT;
                self.next = (start + bytes + ALIGNMENT).next_multiple_of(ALIGNMENT);
                start
            }
        };
        let index = self.allocations.partition_point(|allocation| allocation.start < start);
        let before = index.checked_sub(1).map(|index| &self.allocations[index]);
        if before.is_some_and(|before| start - before.start < before.bytes)
            || self.allocations.get(index).is_some_and(|after| after.start - start < bytes)
        {
            return Err(EmulatorError::Memory(format!("{bytes} bytes at {start:#x} overlap an allocation")));
        }
        self.allocations.insert(index, Allocation { start, bytes, pointer, buffer: Vec::new(), initialised: None });
        Ok(start)
    }

    /// Where kernels allocate from, if any of them may.
    pub fn heap(&self) -> Option<&Heap> {
        self.heap.as_ref()
    }

    /// Makes the heap, unless there is one.
    ///
    /// # Errors
    /// More than the device (or the host) has left.
    pub fn make_heap(&mut self, bytes: u64) -> Result<()> {
        if self.heap.is_none() {
            // A gap before the first block: no address that malloc returns is one that the host could free.
            let start = self.allocate(bytes + ALIGNMENT)?;
            self.heap = Some(Heap::new(start + ALIGNMENT, bytes));
        }
        Ok(())
    }

    /// Frees the allocation that starts at `address`.
    ///
    /// # Errors
    /// No allocation starts there.
    pub fn free(&mut self, address: u64) -> Result<()> {
        match self.allocations.binary_search_by_key(&address, |allocation| allocation.start) {
            Ok(index) => {
                let allocation = self.allocations.remove(index);
                if !allocation.buffer.is_empty() {
                    self.used -= allocation.bytes;
                }
                if self.freed.len() == FREED_REMEMBERED {
                    self.freed.remove(0);
                }
                self.freed.push((allocation.start, allocation.bytes));
                Ok(())
            }
            Err(_) => Err(EmulatorError::Memory(format!("free of {address:#x}, where no allocation starts"))),
        }
    }

    /// The allocation that holds `address`.
    pub fn find(&self, address: u64) -> Option<&Allocation> {
        let index = self.allocations.partition_point(|allocation| allocation.start <= address).checked_sub(1)?;
        let allocation = &self.allocations[index];
        (address - allocation.start < allocation.bytes).then_some(allocation)
    }

    pub fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    /// Index of the allocation that holds `address`.
    pub fn find_index(&self, address: u64) -> Option<usize> {
        let index = self.allocations.partition_point(|allocation| allocation.start <= address).checked_sub(1)?;
        let allocation = &self.allocations[index];
        (address - allocation.start < allocation.bytes).then_some(index)
    }

    /// What to tell about an address that no allocation holds.
    pub fn out_of_bounds(&self, access: Access, address: u64, bytes: u32) -> FaultKind {
        let freed = self.freed.iter().find(|(start, length)| address.wrapping_sub(*start) < *length);
        let near = match freed {
            Some((start, length)) => Some(format!("in the {length} bytes at {start:#x} that were freed")),
            None => {
                let before = self.allocations.partition_point(|allocation| allocation.start <= address).checked_sub(1);
                before.map(|index| &self.allocations[index]).filter(|a| address - a.start < a.bytes + (1 << 20)).map(
                    |a| {
                        let past = (address + u64::from(bytes)).saturating_sub(a.start + a.bytes);
                        format!("{past} bytes past the end of the {} bytes at {:#x}", a.bytes, a.start)
                    },
                )
            }
        };
        FaultKind::OutOfBounds { access, address, bytes, near }
    }

    /// The record of written bytes of the allocation that holds `address`, if there is one.
    pub fn initialised(&self, address: u64) -> Option<&Initialised> {
        self.find(address)?.initialised.as_ref()
    }

    /// Notes that the bytes were written, where that is tracked.
    pub fn mark(&self, address: u64, bytes: usize) {
        if let Some(initialised) = self.initialised(address) {
            initialised.mark_range(address, bytes as u64);
        }
    }

    fn range(&self, address: u64, bytes: usize, what: &str) -> Result<*mut u8> {
        if bytes == 0 {
            return Ok(std::ptr::null_mut());
        }
        match self.find(address) {
            Some(allocation) if bytes as u64 <= allocation.bytes - (address - allocation.start) => {
                Ok(allocation.pointer.wrapping_add((address - allocation.start) as usize))
            }
            _ => {
                Err(EmulatorError::Memory(format!("{what} of {bytes} bytes at {address:#x}, outside every allocation")))
            }
        }
    }

    /// Copies device memory to the host.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn read(&self, address: u64, target: &mut [u8]) -> Result<()> {
        let source = self.range(address, target.len(), "copy from the device")?;
        if !target.is_empty() {
            // SAFETY: `range` checked that this many bytes lie in the allocation; a host slice cannot overlap it.
            unsafe { std::ptr::copy_nonoverlapping(source, target.as_mut_ptr(), target.len()) };
        }
        Ok(())
    }

    /// Copies host memory to the device.
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn write(&mut self, address: u64, source: &[u8]) -> Result<()> {
        let target = self.range(address, source.len(), "copy to the device")?;
        self.mark(address, source.len());
        if !source.is_empty() {
            // SAFETY: as in `read`; `&mut self` keeps launches and other copies away.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target, source.len()) };
        }
        Ok(())
    }

    /// Copies within the device; the ranges may overlap.
    ///
    /// # Errors
    /// A range is not inside one allocation.
    pub fn copy(&mut self, target: u64, source: u64, bytes: usize) -> Result<()> {
        let from = self.range(source, bytes, "copy from the device")?;
        let to = self.range(target, bytes, "copy to the device")?;
        self.mark(target, bytes);
        if bytes > 0 {
            // SAFETY: both ranges were checked, and `copy` allows overlap.
            unsafe { std::ptr::copy(from, to, bytes) };
        }
        Ok(())
    }

    /// Fills with repetitions of `pattern` (1, 2 or 4 bytes).
    ///
    /// # Errors
    /// The range is not inside one allocation.
    pub fn fill(&mut self, address: u64, pattern: &[u8], count: usize) -> Result<()> {
        let bytes = pattern.len().saturating_mul(count);
        let target = self.range(address, bytes, "fill")?;
        self.mark(address, bytes);
        if bytes > 0 {
            // SAFETY: the range was checked; `&mut self` makes it exclusive.
            let target = unsafe { std::slice::from_raw_parts_mut(target, bytes) };
            for chunk in target.chunks_exact_mut(pattern.len()) {
                chunk.copy_from_slice(pattern);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_memory_is_reached_where_it_was_mapped_and_takes_no_capacity() {
        let mut memory = DeviceMemory::new(1 << 10);
        let a = memory.allocate(64).unwrap();
        let mut host = vec![1u8; 100];
        // SAFETY: `host` outlives its mappings; 2^45 is no address of a window.
        let (low, high) = unsafe {
            let mut map = |at| memory.map_host(at, host.as_mut_ptr(), 100);
            (map(Some(1 << 45)).unwrap(), map(None).unwrap())
        };
        assert!(low < a && a < high);
        assert_eq!(memory.used(), 64);
        memory.write(low + 10, &[7; 10]).unwrap();
        memory.copy(a, high, 64).unwrap();
        let mut back = [0; 30];
        memory.read(a, &mut back).unwrap();
        assert_eq!((back[9], back[10], back[19], back[20]), (1, 7, 7, 1));
        // SAFETY: as above.
        let mut overlaps =
            |at: u64, memory: &mut DeviceMemory| unsafe { memory.map_host(Some(at), host.as_mut_ptr(), 8) };
        assert!(overlaps(low - 4, &mut memory).is_err() && overlaps(low + 96, &mut memory).is_err());
        memory.free(low).unwrap();
        assert!(memory.read(low, &mut back).is_err());
        assert_eq!((host[9], host[10], memory.used()), (1, 7, 64));
    }

    #[test]
    fn allocations_start_where_a_driver_lets_them_start() {
        let mut memory = DeviceMemory::new(4 << 20);
        let starts = [1, LARGE - 1, LARGE, 1, LARGE].map(|bytes| memory.allocate(bytes).unwrap());
        assert!(starts.is_sorted());
        assert!(starts.iter().all(|start| start % ALIGNMENT == 0));
        assert_eq!((starts[2] % PAGE, starts[4] % PAGE), (0, 0));
        assert_ne!(starts[3] % PAGE, 0);
    }

    #[test]
    fn freed_and_foreign_addresses_are_refused_and_named() {
        let mut memory = DeviceMemory::new(1 << 20);
        let a = memory.allocate(100).unwrap();
        let b = memory.allocate(100).unwrap();
        assert_eq!(a % ALIGNMENT, 0);
        memory.write(a, &[7; 100]).unwrap();
        memory.copy(b, a, 50).unwrap();
        let mut back = [0; 60];
        memory.read(b, &mut back).unwrap();
        assert_eq!((back[49], back[50]), (7, 0));
        assert!(memory.read(a + 50, &mut back).is_err());
        memory.free(a).unwrap();
        assert!(memory.free(a).is_err());
        assert!(memory.out_of_bounds(Access::Read, a + 4, 4).to_string().contains("freed"));
        assert!(
            memory.out_of_bounds(Access::Write, b + 100, 4).to_string().contains("4 bytes past the end of the 100")
        );
        assert!(memory.allocate(1 << 21).is_err());
        memory.fill(b, &[1, 2], 50).unwrap();
        assert!(memory.fill(b, &[1, 2], 51).is_err());
    }
}
