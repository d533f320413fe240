//! The contract: for each operation its arguments, shapes, checks, and a plain f64 reference.
//!
//! This is one of the engine's two seams (the other is the GPU driver). A backend implements each operation in a
//! module of the same name; the functions here check the arguments, then hand them to the device's backend. Nothing
//! here knows what differentiation is: forward and backward are two operations, which the tape pairs.
//!
//! Conventions: row-major, last index fastest; `B` batch, `T` sequence, `C` channels, `H` query heads, `HK` key/value
//! heads, `D` head size, `F` FFN width, `V` vocabulary. Gradients written into an argument called `grad_*` overwrite
//! it, or add to it where the call says [`Write::Add`].

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod ffn;
pub mod gated_conv;
pub mod grad_norm;
pub mod key_value_cache;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod low_rank;
pub mod mean_rows;
pub mod philox;
pub mod pointwise_loss;
pub mod relative_bias;
pub mod rotary;
pub mod scale;
pub mod sgd;
pub mod softmax_cross_entropy;
pub mod span_cross_entropy;
pub(crate) mod testing;
pub(crate) mod turn;

use crate::cpu::Cpu;
use crate::gpu::Gpu;
use crate::{cpu, driver, gpu};
use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

/// The target that marks a row as not counted in a loss, as in PyTorch.
pub const IGNORED: i32 = -100;

/// Where operations run.
pub enum Device {
    /// Multi-threaded SIMD code on this machine's processor.
    Cpu(Cpu),
    /// Kernels on a GPU, or on the emulated one.
    Gpu(Gpu),
}

impl Device {
    /// Floating-point operations per second of multiply-adds at best, measured now.
    ///
    /// # Errors
    /// The device failed.
    pub fn measure_flops(&self) -> driver::Result<f64> {
        match self {
            Self::Cpu(cpu) => Ok(cpu::peak::fma_flops(cpu)),
            Self::Gpu(gpu) => gpu::peak::fma_flops(gpu),
        }
    }

    /// Waits until all operations so far are done.
    ///
    /// # Errors
    /// The device failed, now or in one of them.
    pub fn synchronize(&self) -> driver::Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Gpu(gpu) => gpu.synchronize(),
        }
    }

    /// Copies from this process's memory to the device's, in the order of the operations before and after.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn upload<T: bytemuck::Pod>(&self, source: &[T], target: ViewMut<'_, T>) -> driver::Result<()> {
        assert_eq!(source.len(), target.len(), "elements to copy");
        match self {
            Self::Cpu(_) => target.host().copy_from_slice(source),
            Self::Gpu(gpu) if !source.is_empty() => {
                gpu.driver().write(gpu.stream(), target.address(), bytemuck::cast_slice(source))?;
            }
            Self::Gpu(_) => {}
        }
        Ok(())
    }

    /// What a view of the device's memory holds, once all operations before are done: borrowed where that is this
    /// process's memory.
    ///
    /// # Errors
    /// The device failed, now or in an operation before.
    pub fn download<'a, T: bytemuck::Pod>(&self, source: View<'a, T>) -> driver::Result<Cow<'a, [T]>> {
        match self {
            Self::Cpu(_) => Ok(Cow::Borrowed(source.host())),
            Self::Gpu(gpu) => {
                let mut values = vec![T::zeroed(); source.len()];
                if !source.is_empty() {
                    gpu.driver().read(gpu.stream(), source.address(), bytemuck::cast_slice_mut(&mut values))?;
                }
                Ok(Cow::Owned(values))
            }
        }
    }
}

/// Arguments that do not fit together, a mistake of the caller that is found before anything is computed; or a device
/// that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {what}")]
pub struct Error {
    /// Name of the operation.
    pub operation: &'static str,
    /// What does not fit, with the figures; or what the device said.
    pub what: String,
}

impl Error {
    pub(crate) fn new(operation: &'static str, what: impl Into<String>) -> Self {
        Self { operation, what: what.into() }
    }

    /// For `map_err`: what the device said, with the operation's name.
    pub(crate) fn of_device(operation: &'static str) -> impl Fn(driver::Error) -> Self {
        move |error| Self::new(operation, error.to_string())
    }
}

/// Fails unless `found == expected`; `what` names the argument.
pub(crate) fn check_len(operation: &'static str, what: &str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::new(operation, format!("{what} has {found} elements, expected {expected}")))
    }
}

/// What to do with the previous contents of a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwrite them; they may be uninitialised or NaN.
    Set,
    /// Add to them.
    Add,
}

/// Read access to a range of a device's memory.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    address: *const T,
    length: usize,
    lifetime: PhantomData<&'a [T]>,
}

/// Exclusive access to a range of a device's memory.
pub struct ViewMut<'a, T> {
    address: *mut T,
    length: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<'a, T> From<&'a [T]> for View<'a, T> {
    fn from(slice: &'a [T]) -> Self {
        Self { address: slice.as_ptr(), length: slice.len(), lifetime: PhantomData }
    }
}

impl<'a, T> From<&'a Vec<T>> for View<'a, T> {
    fn from(vector: &'a Vec<T>) -> Self {
        Self::from(vector.as_slice())
    }
}

impl<'a, T> From<&'a mut [T]> for ViewMut<'a, T> {
    fn from(slice: &'a mut [T]) -> Self {
        Self { address: slice.as_mut_ptr(), length: slice.len(), lifetime: PhantomData }
    }
}

impl<'a, T> From<&'a mut Vec<T>> for ViewMut<'a, T> {
    fn from(vector: &'a mut Vec<T>) -> Self {
        Self::from(vector.as_mut_slice())
    }
}

impl<'a, T> From<ViewMut<'a, T>> for View<'a, T> {
    fn from(view: ViewMut<'a, T>) -> Self {
        Self { address: view.address, length: view.length, lifetime: PhantomData }
    }
}

impl<'a, T> View<'a, T> {
    /// A view of `length` elements at `address`.
    ///
    /// # Safety
    /// The range must be valid for reads on the device that the view is used with, for the lifetime `'a`.
    pub unsafe fn from_raw(address: *const T, length: usize) -> Self {
        Self { address, length, lifetime: PhantomData }
    }

    /// A view of `length` elements at `address` of a GPU's memory.
    ///
    /// # Safety
    /// As for [`from_raw`](Self::from_raw).
    pub unsafe fn on_device(address: u64, length: usize) -> Self {
        // SAFETY: the caller's promise; the address is only ever handed to the device.
        unsafe { Self::from_raw(std::ptr::without_provenance(address as usize), length) }
    }

    /// Where it starts, for a GPU.
    pub(crate) fn address(&self) -> u64 {
        self.address.addr() as u64
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// True where there are no elements.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A part of it.
    ///
    /// # Panics
    /// The range is not inside.
    pub fn slice(&self, range: Range<usize>) -> Self {
        check_range(&range, self.length);
        Self { address: self.address.wrapping_add(range.start), length: range.len(), lifetime: PhantomData }
    }

    /// The elements, for the CPU backend: every view it is handed lies in this process's memory.
    pub(crate) fn host(&self) -> &'a [T] {
        // SAFETY: made from a slice, or valid by the promise made to `from_raw`.
        unsafe { std::slice::from_raw_parts(self.address, self.length) }
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// A view of `length` elements at `address`.
    ///
    /// # Safety
    /// The range must be valid for reads and writes on the device that the view is used with, and not be used
    /// through anything else, for the lifetime `'a`.
    pub unsafe fn from_raw(address: *mut T, length: usize) -> Self {
        Self { address, length, lifetime: PhantomData }
    }

    /// A view of `length` elements at `address` of a GPU's memory.
    ///
    /// # Safety
    /// As for [`from_raw`](Self::from_raw).
    pub unsafe fn on_device(address: u64, length: usize) -> Self {
        // SAFETY: the caller's promise; the address is only ever handed to the device.
        unsafe { Self::from_raw(std::ptr::without_provenance_mut(address as usize), length) }
    }

    /// Where it starts, for a GPU.
    pub(crate) fn address(&self) -> u64 {
        self.address.addr() as u64
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// True where there are no elements.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The elements, to read, for as long as this view is not used.
    pub fn as_view(&self) -> View<'_, T> {
        View { address: self.address, length: self.length, lifetime: PhantomData }
    }

    /// The same elements again, for as long as this view is not used.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, length: self.length, lifetime: PhantomData }
    }

    /// A part of it.
    ///
    /// # Panics
    /// The range is not inside.
    pub fn slice(self, range: Range<usize>) -> Self {
        check_range(&range, self.length);
        Self { address: self.address.wrapping_add(range.start), length: range.len(), lifetime: PhantomData }
    }

    /// The first `middle` elements, and the others.
    ///
    /// # Panics
    /// There are fewer.
    pub fn split_at(self, middle: usize) -> (Self, Self) {
        check_range(&(middle..self.length), self.length);
        let right = self.address.wrapping_add(middle);
        (
            Self { address: self.address, length: middle, lifetime: PhantomData },
            Self { address: right, length: self.length - middle, lifetime: PhantomData },
        )
    }

    /// The elements, for the CPU backend: every view it is handed lies in this process's memory.
    pub(crate) fn host(self) -> &'a mut [T] {
        // SAFETY: made from an exclusive slice, or valid and exclusive by the promise made to `from_raw`.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.length) }
    }
}

#[track_caller]
fn check_range(range: &Range<usize>, length: usize) {
    assert!(range.start <= range.end && range.end <= length, "elements {range:?} of {length}");
}

/// Dropout as every operation that has it takes it: each element is kept with probability `1 - probability` and
/// scaled by `1 / (1 - probability)`. Whether element `i` is kept is a pure function of `(seed, step, site, i)`, so
/// the backward pass and a recomputed forward pass see the same mask without storing it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Chance that an element is zeroed, in `0.0..1.0`.
    pub probability: f32,
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step and micro-batch, counted together.
    pub step: u64,
    /// Which dropout of the model this is.
    pub site: u32,
}
