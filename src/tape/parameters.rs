//! Parameters: named tensors that live as long as the run, their gradients beside them, each in one block of memory.
//!
//! Tensors of one optimizer group lie next to each other, so that clipping and the optimizer walk a few long ranges
//! instead of a hundred short ones. The padding between tensors is zero and stays zero.

use super::memory::{ALIGNMENT, Memory, OutOfMemory};
use crate::driver;
use crate::ops::philox::{philox, stream, uniform};
use crate::ops::{Device, View, ViewMut};
use rayon::prelude::*;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Names one parameter of a [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParameterId(pub(crate) usize);

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// All elements this value.
    Constant(f32),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// Uniform between minus and plus this bound.
    Uniform(f32),
}

/// Describes a parameter before memory is allocated.
#[derive(Clone, Debug)]
pub struct Specification {
    /// Unique name, for example `blocks.0.attention.qkv.weight`.
    pub name: String,
    /// Sizes, last index fastest.
    pub shape: Vec<usize>,
    /// Values at the start.
    pub initial: Initial,
    /// Whether the optimizer applies weight decay.
    pub decays: bool,
    /// Frozen parameters have no gradient.
    pub trainable: bool,
    /// Of the optimizer's learning rate: layer-wise decay, for example (Howard and Ruder 2018).
    pub learning_rate_factor: f32,
}

impl Specification {
    /// A trainable parameter at the full learning rate, whose matrices decay and whose vectors do not.
    pub fn new(name: impl Into<String>, shape: &[usize], initial: Initial) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            initial,
            decays: shape.len() > 1,
            trainable: true,
            learning_rate_factor: 1.0,
        }
    }
}

struct Parameter {
    specification: Specification,
    /// In elements, of the block of values.
    values: Range<usize>,
    /// In elements, of the block of gradients.
    gradients: Option<Range<usize>>,
}

/// A set of parameters with their memory.
pub struct Parameters {
    list: Vec<Parameter>,
    by_name: HashMap<String, ParameterId>,
    values: Memory,
    gradients: Memory,
    /// Bytes of the two blocks, which are there unless this is only a layout.
    bytes: (usize, usize),
    runs: Vec<Run>,
}

/// A range of parameters next to each other that the optimizer treats alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// In elements, of the block of values.
    pub values: Range<usize>,
    /// In elements, of the block of gradients; as long as `values`.
    pub gradients: Range<usize>,
    /// Whether weight decay applies.
    pub decays: bool,
    /// Of the learning rate.
    pub learning_rate_factor: f32,
}

impl Run {
    /// Whether the optimizer treats a parameter as this run.
    fn takes(&self, specification: &Specification) -> bool {
        (self.decays, self.learning_rate_factor) == (specification.decays, specification.learning_rate_factor)
    }
}

/// Parameters that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("two parameters are called {0}")]
    Duplicate(String),
    #[error("parameter {name} of {shape:?} is larger than any memory: make the model smaller")]
    TooLarge { name: String, shape: Vec<usize> },
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Device(#[from] driver::Error),
}

/// Elements of all parameters together, at most: a bound under which no size in bytes overflows.
const LARGEST: usize = 1 << 44;

const PAD: usize = ALIGNMENT / size_of::<f32>();

impl Parameters {
    /// Allocates and fills parameters on `device`. Each tensor's initial values depend on `seed` and its name's place in the list
    /// alone, so they are the same on every machine.
    ///
    /// # Errors
    /// Two parameters of one name, or not enough memory.
    pub fn new(device: &Arc<Device>, specifications: Vec<Specification>, seed: u64) -> Result<Self, Error> {
        let mut parameters = Self::unallocated(specifications)?;
        parameters.values = Memory::allocate(device, "the parameters", parameters.bytes.0)?;
        parameters.gradients = Memory::allocate(device, "the gradients", parameters.bytes.1)?;
        for index in 0..parameters.list.len() {
            let initial = parameters.list[index].specification.initial;
            if initial != Initial::Constant(0.0) {
                parameters.modify(ParameterId(index), |values| fill(values, initial, seed, index))?;
            }
        }
        Ok(parameters)
    }

    /// Lays parameters out without their memory, to record and measure a computation before it is known to fit.
    /// Everything but values and gradients can be asked for.
    ///
    /// # Errors
    /// Two parameters of one name, or sizes beyond all memory.
    pub fn unallocated(specifications: Vec<Specification>) -> Result<Self, Error> {
        let mut by_name = HashMap::new();
        let mut lengths = Vec::with_capacity(specifications.len());
        let mut total = 0usize;
        for (index, specification) in specifications.iter().enumerate() {
            if by_name.insert(specification.name.clone(), ParameterId(index)).is_some() {
                return Err(Error::Duplicate(specification.name.clone()));
            }
            let too_large = || Error::TooLarge { name: specification.name.clone(), shape: specification.shape.clone() };
            let length = specification.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
            let length = length.filter(|&length| length <= LARGEST).ok_or_else(too_large)?;
            total = total.checked_add(length).filter(|&total| total <= LARGEST).ok_or_else(too_large)?;
            lengths.push(length);
        }
        // Groups in order: decayed, not decayed, each by its factors, frozen; gradients have the same offsets as values,
        // as frozen is last.
        let group = |s: &Specification| if s.trainable { usize::from(!s.decays) } else { 2 };
        let mut order: Vec<usize> = (0..specifications.len()).collect();
        order.sort_by(|&left, &right| {
            let (left, right) = (&specifications[left], &specifications[right]);
            let by_factor = || left.learning_rate_factor.total_cmp(&right.learning_rate_factor);
            group(left).cmp(&group(right)).then_with(|| if left.trainable { by_factor() } else { Ordering::Equal })
        });
        let mut ranges = vec![0..0; specifications.len()];
        let mut runs: Vec<Run> = Vec::new();
        let (mut offset, mut trainable) = (0usize, 0usize);
        for &index in &order {
            let specification = &specifications[index];
            let end = offset + lengths[index].next_multiple_of(PAD);
            ranges[index] = offset..offset + lengths[index];
            if specification.trainable {
                match runs.last_mut() {
                    Some(run) if run.takes(specification) => {
                        (run.values.end, run.gradients.end) = (end, end);
                    }
                    _ => {
                        runs.push(Run {
                            values: offset..end,
                            gradients: offset..end,
                            decays: specification.decays,
                            learning_rate_factor: specification.learning_rate_factor,
                        });
                    }
                }
                trainable = end;
            }
            offset = end;
        }
        let list = specifications
            .into_iter()
            .zip(ranges)
            .map(|(specification, range)| Parameter {
                gradients: specification.trainable.then(|| range.clone()),
                values: range,
                specification,
            })
            .collect();
        let bytes = (offset * size_of::<f32>(), trainable * size_of::<f32>());
        Ok(Self { list, by_name, values: Memory::none(), gradients: Memory::none(), bytes, runs })
    }

    /// All parameters, in the order in which they were specified.
    pub fn ids(&self) -> impl Iterator<Item = ParameterId> + use<> {
        (0..self.list.len()).map(ParameterId)
    }

    /// The parameter of this name.
    pub fn find(&self, name: &str) -> Option<ParameterId> {
        self.by_name.get(name).copied()
    }

    /// What was specified.
    pub fn specification(&self, id: ParameterId) -> &Specification {
        &self.list[id.0].specification
    }

    /// The parameter's sizes.
    pub fn shape(&self, id: ParameterId) -> &[usize] {
        &self.list[id.0].specification.shape
    }

    /// Number of elements of all parameters.
    pub fn count(&self) -> usize {
        self.list.iter().map(|parameter| parameter.values.len()).sum()
    }

    /// Bytes of the values and of the gradients.
    pub fn bytes(&self) -> (usize, usize) {
        self.bytes
    }

    /// The parameter's values, once all work on the device before is done.
    ///
    /// # Errors
    /// The device failed.
    pub fn values(&self, id: ParameterId) -> Result<Cow<'_, [f32]>, driver::Error> {
        // SAFETY: writing values takes `&mut self`, or happens inside `Program::run`, which holds `&mut Parameters`.
        unsafe { self.values.read(bytes(&self.list[id.0].values)) }
    }

    /// Replaces the parameter's values.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// There are more or fewer values than it has elements.
    pub fn set_values(&mut self, id: ParameterId, values: &[f32]) -> Result<(), driver::Error> {
        let range = &self.list[id.0].values;
        assert_eq!(values.len(), range.len(), "elements of {}", self.list[id.0].specification.name);
        self.values.write(bytes(range), values)
    }

    /// Lets `change` change the parameter's values.
    ///
    /// # Errors
    /// The device failed.
    pub fn modify(&mut self, id: ParameterId, change: impl FnOnce(&mut [f32])) -> Result<(), driver::Error> {
        self.values.modify(bytes(&self.list[id.0].values), change)
    }

    /// The parameter's gradient, once all work on the device before is done; `None` where it is frozen.
    ///
    /// # Errors
    /// The device failed.
    pub fn gradient(&self, id: ParameterId) -> Result<Option<Cow<'_, [f32]>>, driver::Error> {
        let Some(range) = &self.list[id.0].gradients else { return Ok(None) };
        // SAFETY: as for `values`.
        unsafe { self.gradients.read(bytes(range)) }.map(Some)
    }

    /// Sets all gradients to zero. A program overwrites those of the parameters that it uses; this is for several
    /// programs that add up theirs and use different ones.
    ///
    /// # Errors
    /// The device failed.
    pub fn clear_gradients(&mut self) -> Result<(), driver::Error> {
        self.gradients.modify(0..self.gradients.bytes(), |gradients| gradients.fill(0.0))
    }

    /// Fills all gradients with NaN, so that one that is read before it is written shows.
    #[cfg(test)]
    pub(super) fn poison_gradients(&mut self) {
        for range in self.list.iter().filter_map(|parameter| parameter.gradients.as_ref()) {
            let poison = vec![f32::NAN; range.len()];
            self.gradients.write(bytes(range), &poison).expect("the device works");
        }
    }

    /// Where the parameter's gradient lies in the block of gradients; `None` where it is frozen. The optimizer's state
    /// is laid out the same way.
    pub(crate) fn gradient_bytes(&self, id: ParameterId) -> Option<Range<usize>> {
        self.list[id.0].gradients.as_ref().map(bytes)
    }

    /// Ranges that the optimizer treats alike; together they hold every trainable parameter.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// All gradients as one vector, padding (zeros) included.
    pub fn all_gradients(&self) -> View<'_, f32> {
        // SAFETY: as for `values`.
        unsafe { self.gradients.view(0..self.gradients.bytes()) }
    }

    /// Values and gradients of a run, for the optimizer.
    pub(crate) fn run_views(&mut self, run: &Run) -> (ViewMut<'_, f32>, View<'_, f32>) {
        // SAFETY: two blocks, and exclusive through `&mut self`.
        unsafe { (self.values.view_mut(bytes(&run.values)), self.gradients.view(bytes(&run.gradients))) }
    }

    pub(crate) fn view(&self, id: ParameterId) -> View<'_, f32> {
        // SAFETY: as for `values`.
        unsafe { self.values.view(bytes(&self.list[id.0].values)) }
    }

    /// # Safety
    /// The caller must hold the parameters exclusively and have no other view of this gradient.
    pub(crate) unsafe fn gradient_view_mut(&self, id: ParameterId) -> Option<ViewMut<'_, f32>> {
        let range = self.list[id.0].gradients.as_ref()?;
        // SAFETY: the caller's promise.
        Some(unsafe { self.gradients.view_mut(bytes(range)) })
    }
}

fn bytes(elements: &Range<usize>) -> Range<usize> {
    elements.start * size_of::<f32>()..elements.end * size_of::<f32>()
}

/// Fills with Philox numbers of the stream `(seed, 0, index)`; normal ones by Box and Muller (1958).
fn fill(values: &mut [f32], initial: Initial, seed: u64, index: usize) {
    /// Elements that a thread fills at a time, a multiple of the four that one Philox call gives.
    const PIECE: usize = 1 << 16;
    if let Initial::Constant(value) = initial {
        return values.fill(value);
    }
    let (key, upper) = stream(seed, 0, index as u32);
    values.par_chunks_mut(PIECE).enumerate().for_each(|(piece, values)| {
        for (block, four) in values.chunks_mut(4).enumerate() {
            let block = (piece * PIECE / 4 + block) as u64;
            let words = philox([block as u32, (block >> 32) as u32, upper[0], upper[1]], key);
            if let Initial::Uniform(bound) = initial {
                four.iter_mut().zip(words).for_each(|(value, word)| *value = (2.0 * uniform(word) - 1.0) * bound);
            }
            let Initial::Normal(deviation) = initial else { continue };
            for (pair, words) in four.chunks_mut(2).zip(words.chunks(2)) {
                // 1 - u lies in (0, 1], so the logarithm is finite.
                let radius = (-2.0 * (1.0 - f64::from(uniform(words[0]))).ln()).sqrt();
                let angle = std::f64::consts::TAU * f64::from(uniform(words[1]));
                for (value, part) in pair.iter_mut().zip([angle.cos(), angle.sin()]) {
                    *value = (radius * part) as f32 * deviation;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    fn device() -> Arc<Device> {
        Arc::new(Device::Cpu(Cpu::new().unwrap()))
    }

    fn specification(name: &str, length: usize, decays: bool, trainable: bool) -> Specification {
        Specification { decays, trainable, ..Specification::new(name, &[length], Initial::Normal(0.5)) }
    }

    #[test]
    fn groups_are_contiguous_and_frozen_parameters_have_no_gradient() {
        let list = vec![
            specification("a", 5, true, true),
            specification("b", 3, false, true),
            specification("c", 17, true, true),
            specification("d", 9, true, false),
        ];
        let parameters = Parameters::new(&device(), list, 1).unwrap();
        assert_eq!(parameters.runs().len(), 2);
        assert_eq!(parameters.runs()[0].values, 0..48);
        assert_eq!(parameters.runs()[1].values, 48..64);
        assert!(parameters.gradient(parameters.find("d").unwrap()).unwrap().is_none());
        assert_eq!(parameters.gradient(parameters.find("c").unwrap()).unwrap().unwrap().len(), 17);
        assert_eq!(parameters.count(), 34);
    }

    #[test]
    fn runs_are_cut_by_learning_rate_factor_too() {
        let with = |name: &str, decays, factor| Specification {
            learning_rate_factor: factor,
            ..specification(name, 16, decays, true)
        };
        let list = vec![
            with("a", true, 1.0),
            with("b", false, 1.0),
            with("c", true, 0.5),
            with("d", false, 0.5),
            with("e", true, 1.0),
            Specification { trainable: false, ..with("f", true, 0.1) },
        ];
        let parameters = Parameters::new(&device(), list, 1).unwrap();
        let found: Vec<_> =
            parameters.runs().iter().map(|run| (run.decays, run.learning_rate_factor, run.values.len())).collect();
        assert_eq!(found, [(true, 0.5, 16), (true, 1.0, 32), (false, 0.5, 16), (false, 1.0, 16)]);
        assert_eq!(parameters.bytes(), (6 * 64, 5 * 64), "frozen parameters have no gradient");
    }

    #[test]
    fn uniform_values_fill_their_range() {
        let list = vec![Specification::new("a", &[100_001], Initial::Uniform(0.25))];
        let parameters = Parameters::new(&device(), list, 1).unwrap();
        let values = parameters.values(ParameterId(0)).unwrap();
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 1e-3 && (variance - 0.0625 / 3.0).abs() < 5e-4, "mean {mean}, variance {variance}");
        assert!(values.iter().all(|v| v.abs() <= 0.25) && values.iter().any(|v| *v > 0.249));
    }

    #[test]
    fn normal_values_have_the_deviation_asked_for_and_depend_on_the_seed() {
        let make = |seed| Parameters::new(&device(), vec![specification("a", 100_001, true, true)], seed).unwrap();
        let (one, two) = (make(1), make(2));
        let values = one.values(ParameterId(0)).unwrap();
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 0.25).abs() < 0.01, "mean {mean}, variance {variance}");
        assert_ne!(values, two.values(ParameterId(0)).unwrap());
        assert_eq!(values, make(1).values(ParameterId(0)).unwrap());
    }

    #[test]
    fn two_parameters_of_one_name_are_refused() {
        let list = vec![specification("a", 5, true, true), specification("a", 3, false, true)];
        assert!(Parameters::new(&device(), list, 1).is_err_and(|error| error.to_string().contains("a")));
    }
}
