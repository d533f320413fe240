//! Memory of the device that a program runs on: allocated once, zeroed, never moved.

use crate::driver;
use crate::gpu::Gpu;
use crate::ops::{Device, View, ViewMut};
use memmap2::MmapMut;
use std::borrow::Cow;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Every allocation and every buffer inside one starts on a cache line.
pub(crate) const ALIGNMENT: usize = 64;

/// From this size on an allocation asks for huge pages: a product that walks a matrix by columns touches a page a row,
/// and 4 KiB pages would miss the TLB every time.
const HUGE_FROM_BYTES: usize = 4 << 20;
const HUGE_BYTES: usize = 2 << 20;

/// Gives the empty block an aligned address.
#[repr(align(64))]
struct Line;

/// The machine, or the device, would not give the memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot allocate {bytes} bytes for {what}{}", .device.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
pub struct OutOfMemory {
    /// What the memory was for.
    pub what: String,
    /// How much was asked for.
    pub bytes: usize,
    /// What the device said, where it is not the CPU.
    pub device: Option<driver::Error>,
}

/// A fixed block of a device's memory, zeroed when made.
///
/// Views are handed out through a shared reference: the program that owns the block knows which of its ranges are
/// alive when, and that is what makes each view exclusive.
pub(crate) struct Memory {
    /// An address of this process, or of the GPU that owns it.
    start: *mut u8,
    bytes: usize,
    owner: Owner,
}

enum Owner {
    Nobody,
    /// `start` lies inside these pages.
    Host {
        _pages: MmapMut,
    },
    Gpu(Arc<Device>),
}

// SAFETY: plain memory; who reads and writes it when is the owner's business (see `view_mut`).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// No memory at all.
    pub(crate) fn none() -> Self {
        Self { start: NonNull::<Line>::dangling().as_ptr().cast(), bytes: 0, owner: Owner::Nobody }
    }

    /// Memory of `device`.
    pub(crate) fn allocate(device: &Arc<Device>, what: &str, bytes: usize) -> Result<Self, OutOfMemory> {
        if bytes == 0 {
            return Ok(Self::none());
        }
        match &**device {
            Device::Cpu(_) => {
                Self::on_host(bytes).ok_or_else(|| OutOfMemory { what: what.to_owned(), bytes, device: None })
            }
            Device::Gpu(gpu) => Self::on_gpu(device, gpu, bytes).map_err(|error| OutOfMemory {
                what: what.to_owned(),
                bytes,
                device: Some(error),
            }),
        }
    }

    /// Memory of this process.
    pub(crate) fn on_host(bytes: usize) -> Option<Self> {
        // Fresh pages rather than the allocator: they are zero without being touched, and can still become huge.
        let mut pages = MmapMut::map_anon(bytes.checked_add(HUGE_BYTES)?).ok()?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_FROM_BYTES {
            // Only advice: without huge pages everything works, more slowly.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        let offset = pages.as_ptr().align_offset(HUGE_BYTES);
        // SAFETY: `offset < HUGE_BYTES`, so `bytes` more fit into the mapping.
        let start = unsafe { pages.as_mut_ptr().add(offset) };
        Some(Self { start, bytes, owner: Owner::Host { _pages: pages } })
    }

    fn on_gpu(device: &Arc<Device>, gpu: &Gpu, bytes: usize) -> Result<Self, driver::Error> {
        let bytes = bytes.next_multiple_of(4);
        let address = gpu.driver().allocate(bytes as u64)?;
        let start = std::ptr::without_provenance_mut(address as usize);
        let memory = Self { start, bytes, owner: Owner::Gpu(Arc::clone(device)) };
        gpu.driver().fill(gpu.stream(), address, 0, bytes as u64 / 4)?;
        Ok(memory)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn address<T>(&self, range: &Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.bytes, "bytes {range:?} of {}", self.bytes);
        assert!(range.start.is_multiple_of(size_of::<T>()), "elements at byte {}", range.start);
        self.start.wrapping_add(range.start).cast()
    }

    /// The elements in the byte range.
    ///
    /// # Safety
    /// Nobody may write to the range while the view is alive.
    pub(crate) unsafe fn view<T: bytemuck::Pod>(&self, range: Range<usize>) -> View<'_, T> {
        // SAFETY: in bounds and aligned by `address`, initialised (zeroed at first), unwritten by the caller's promise.
        unsafe { View::from_raw(self.address(&range), range.len() / size_of::<T>()) }
    }

    /// The elements in the byte range, to write.
    ///
    /// # Safety
    /// Nobody else may use the range while the view is alive.
    pub(crate) unsafe fn view_mut<T: bytemuck::Pod>(&self, range: Range<usize>) -> ViewMut<'_, T> {
        // SAFETY: in bounds and aligned by `address`, exclusive by the caller's promise.
        unsafe { ViewMut::from_raw(self.address(&range), range.len() / size_of::<T>()) }
    }

    /// What the byte range holds, once all work on the device before is done.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Safety
    /// Nobody may write to the range while the result is alive.
    pub(crate) unsafe fn read<T: bytemuck::Pod>(&self, range: Range<usize>) -> Result<Cow<'_, [T]>, driver::Error> {
        // SAFETY: the caller's promise.
        let view = unsafe { self.view(range) };
        match &self.owner {
            Owner::Nobody | Owner::Host { .. } => Ok(Cow::Borrowed(view.host())),
            Owner::Gpu(device) => device.download(view),
        }
    }

    /// Overwrites the start of the byte range.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn write<T: bytemuck::Pod>(&mut self, range: Range<usize>, values: &[T]) -> Result<(), driver::Error> {
        // SAFETY: exclusive through `&mut self`.
        let view = unsafe { self.view_mut(range) }.slice(0..values.len());
        match &self.owner {
            Owner::Nobody | Owner::Host { .. } => view.host().copy_from_slice(values),
            Owner::Gpu(device) => device.upload(values, view)?,
        }
        Ok(())
    }

    /// Lets `change` change the elements of the byte range: in place where that is this process's memory.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn modify<T: bytemuck::Pod>(
        &mut self,
        range: Range<usize>,
        change: impl FnOnce(&mut [T]),
    ) -> Result<(), driver::Error> {
        // SAFETY: exclusive through `&mut self`.
        let view = unsafe { self.view_mut(range.clone()) };
        let Owner::Gpu(device) = &self.owner else {
            change(view.host());
            return Ok(());
        };
        // SAFETY: as above; the view to write is not used meanwhile.
        let mut values = device.download(unsafe { self.view(range) })?.into_owned();
        change(&mut values);
        device.upload(&values, view)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Owner::Gpu(device) = &self.owner
            && let Device::Gpu(gpu) = &**device
        {
            // A device that was lost cannot free anything, and its memory goes with it.
            let _ = gpu.driver().free(self.start.addr() as u64);
        }
    }
}
