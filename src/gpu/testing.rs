//! For the tests of launchers: an emulated device whose launches are sanitised, and buffers on it.

use super::Gpu;
use crate::driver::Stream;
#[cfg(test)]
use crate::driver::{DeviceFacts, Emulated};
use crate::ops::{Device, View, ViewMut};
use std::marker::PhantomData;

/// An emulated GPU. Every launch goes through the sanitizer, and a finding fails the launch.
#[cfg(test)]
pub fn device() -> Device {
    let driver = Emulated::new(DeviceFacts::default()).sanitized();
    Device::Gpu(Gpu::new(Box::new(driver)).expect("the emulator makes streams"))
}

/// Memory of a device, freed when dropped.
pub struct Buffer<'d, T> {
    gpu: &'d Gpu,
    address: u64,
    length: usize,
    element: PhantomData<T>,
}

impl<'d, T: bytemuck::Pod> Buffer<'d, T> {
    fn allocate(device: &'d Device, length: usize) -> Self {
        let Device::Gpu(gpu) = device else { panic!("buffers are on a GPU") };
        let bytes = (length * size_of::<T>()) as u64;
        let address = if bytes == 0 { 0 } else { gpu.driver().allocate(bytes).expect("memory") };
        Self { gpu, address, length, element: PhantomData }
    }

    /// A copy of `values` on the device.
    pub fn upload(device: &'d Device, values: &[T]) -> Self {
        let buffer = Self::allocate(device, values.len());
        if !values.is_empty() {
            let bytes = bytemuck::cast_slice(values);
            buffer.gpu.driver().write(Stream::DEFAULT, buffer.address, bytes).expect("a buffer of that size");
        }
        buffer
    }

    /// `length` elements of all ones: NaN for floats, so that an element left out is seen.
    pub fn poisoned(device: &'d Device, length: usize) -> Self {
        let mut poison = vec![T::zeroed(); length];
        bytemuck::cast_slice_mut::<T, u8>(&mut poison).fill(0xFF);
        Self::upload(device, &poison)
    }

    /// The elements, to read.
    pub fn view(&self) -> View<'_, T> {
        // SAFETY: the range is the buffer's, and writing takes `&mut self`.
        unsafe { View::on_device(self.address, self.length) }
    }

    /// The elements, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        // SAFETY: the range is the buffer's, exclusively through `&mut self`.
        unsafe { ViewMut::on_device(self.address, self.length) }
    }

    /// The elements, copied from the device.
    pub fn download(&self) -> Vec<T> {
        let mut values = vec![T::zeroed(); self.length];
        if self.length > 0 {
            let bytes = bytemuck::cast_slice_mut(&mut values);
            self.gpu.driver().read(self.gpu.stream(), self.address, bytes).expect("a buffer of that size");
        }
        values
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        if self.address != 0 {
            // The emulated device may have been lost by a failed launch, which the test reports.
            let _ = self.gpu.driver().free(self.address);
        }
    }
}
