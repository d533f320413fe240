//! The operations that are measured, at the sizes that matter: the layers of the three models of our training-step
//! figures, and of GPT-2 124M while it writes.
//!
//! `engine-bench kernels` and the criterion benches run the same cases. Each says how much work it is: floating-point
//! operations for what the multiply-add units limit, else the bytes that must move if every array is read once and
//! written once. The PyTorch side of each is in `benches/pytorch/kernels.py`, under the same words.

mod attention;
mod decode;
mod linear;
mod optimizer;
mod rowwise;

use super::machine::Peaks;
use super::training;
use crate::driver;
use crate::ops::{self, Device, View, ViewMut};
use crate::tape::{Memory, OutOfMemory};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Cases that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Matrix products of linear layers.
    Linear,
    Attention,
    /// Layer norm, loss, embedding, dropout: each row by itself, limited by memory.
    Rowwise,
    /// Gradient norm and AdamW over all parameters.
    Optimizer,
    /// One token at a time: matrix-vector products and the key/value cache.
    Decode,
}

impl Family {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Family; 5] =
        [Family::Linear, Family::Attention, Family::Rowwise, Family::Optimizer, Family::Decode];

    /// The first word of its cases' names.
    pub fn name(self) -> &'static str {
        match self {
            Family::Linear => "linear",
            Family::Attention => "attention",
            Family::Rowwise => "rowwise",
            Family::Optimizer => "optimizer",
            Family::Decode => "decode",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much a call does, and so which of the machine's peaks it is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Floating-point operations, against the multiply-add peak.
    Flops(f64),
    /// Bytes that are only read, against the read bandwidth.
    Read(f64),
    /// Bytes read and written, against the bandwidth of a copy.
    Moved(f64),
}

impl Work {
    /// Operations or bytes of a call.
    pub fn amount(self) -> f64 {
        match self {
            Work::Flops(amount) | Work::Read(amount) | Work::Moved(amount) => amount,
        }
    }

    /// Unit of [`amount`](Self::amount) per second, in thousands of millions.
    pub fn unit(self) -> &'static str {
        if matches!(self, Work::Flops(_)) { "GFLOP/s" } else { "GB/s" }
    }

    /// The most that the machine can do of it in a second.
    pub fn peak(self, peaks: &Peaks) -> f64 {
        match self {
            Work::Flops(_) => peaks.flops_per_second,
            Work::Read(_) => peaks.read_bytes_per_second,
            Work::Moved(_) => peaks.copy_bytes_per_second,
        }
    }
}

/// A case cannot be set up or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Operation(#[from] ops::Error),
    #[error(transparent)]
    Model(#[from] training::Error),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Device(#[from] driver::Error),
}

/// One call of the operation, on memory that it owns.
pub type Call = Box<dyn FnMut() -> Result<(), Error>>;

/// An operation at one size.
pub struct Case {
    pub family: Family,
    /// Words that say what it is, without the family.
    pub name: String,
    pub work: Work,
    /// Words by which `kernels.py` knows it; `None` where PyTorch has nothing to compare.
    pub pytorch: Option<String>,
    prepare: Box<Prepare>,
}

type Prepare = dyn Fn(&Arc<Device>) -> Result<Call, Error>;

impl Case {
    /// Family and name.
    pub fn full_name(&self) -> String {
        format!("{} {}", self.family, self.name)
    }

    /// Allocates and fills what a call needs.
    ///
    /// # Errors
    /// Only a bug of ours, or too little memory.
    pub fn prepare(&self, device: &Arc<Device>) -> Result<Call, Error> {
        (self.prepare)(device)
    }
}

/// All cases, family by family.
pub fn all() -> Vec<Case> {
    [linear::cases(), attention::cases(), rowwise::cases(), optimizer::cases(), decode::cases()]
        .into_iter()
        .flatten()
        .collect()
}

/// Elements in a device's memory as a program of the engine has it: zeroed, aligned, in huge pages where there is much
/// of it on the CPU.
struct Buffer<T> {
    memory: Memory,
    length: usize,
    element: PhantomData<T>,
}

type Floats = Buffer<f32>;
type Ids = Buffer<i32>;

impl<T: bytemuck::Pod> Buffer<T> {
    fn zeros(device: &Arc<Device>, length: usize) -> Result<Self, Error> {
        let memory = Memory::allocate(device, "a measurement", length * size_of::<T>())?;
        Ok(Self { memory, length, element: PhantomData })
    }

    fn of(device: &Arc<Device>, values: &[T]) -> Result<Self, Error> {
        let mut buffer = Self::zeros(device, values.len())?;
        buffer.memory.write(buffer.bytes(), values)?;
        Ok(buffer)
    }

    fn len(&self) -> usize {
        self.length
    }

    fn bytes(&self) -> Range<usize> {
        0..self.length * size_of::<T>()
    }
}

impl Floats {
    /// Cheap numbers in -1..1: what they are does not matter, but denormals and constants might.
    fn numbers(device: &Arc<Device>, length: usize) -> Result<Self, Error> {
        let mut floats = Self::zeros(device, length)?;
        let mut state = 1u32;
        let range = floats.bytes();
        floats.memory.modify(range, |values| {
            values.fill_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state as i32 as f32 / 2_147_483_648.0
            });
        })?;
        Ok(floats)
    }

    /// So many times `length` numbers.
    fn many(device: &Arc<Device>, count: usize, length: usize) -> Result<Vec<Self>, Error> {
        (0..count).map(|_| Self::numbers(device, length)).collect()
    }
}

impl<'a, T: bytemuck::Pod> From<&'a Buffer<T>> for View<'a, T> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        // SAFETY: writing takes `&mut Buffer`.
        unsafe { buffer.memory.view(buffer.bytes()) }
    }
}

impl<'a, T: bytemuck::Pod> From<&'a mut Buffer<T>> for ViewMut<'a, T> {
    fn from(buffer: &'a mut Buffer<T>) -> Self {
        // SAFETY: exclusive through `&mut Buffer`.
        unsafe { buffer.memory.view_mut(buffer.bytes()) }
    }
}

/// Weights in rotation take at least so many floats together: 96 MiB, more than the caches hold. In a model the next
/// call is another layer's, so a weight that is used over and over would look faster than it is.
const ROTATION_FLOATS: usize = 24 << 20;

/// How many copies of a weight of so many floats a rotation of `together` floats has.
fn rotation(floats: usize, together: usize) -> usize {
    together.div_ceil(floats).clamp(1, 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_its_own_name_and_some_work() {
        let mut names: Vec<String> = all().iter().map(Case::full_name).collect();
        assert!(all().iter().all(|case| case.work.amount() > 0.0));
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(Family::ALL.iter().all(|family| all().iter().any(|case| case.family == *family)));
    }

    #[test]
    fn every_kind_of_case_is_known_to_the_script() {
        let script = include_str!("../../../benches/pytorch/kernels.py");
        for words in all().iter().filter_map(|case| case.pytorch.as_deref()) {
            let kind: Vec<&str> = words.split(' ').take_while(|word| word.parse::<usize>().is_err()).collect();
            assert!(script.contains(&format!("\"{}\":", kind.join(" "))), "{words}");
        }
    }
}
