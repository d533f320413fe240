//! Self-attention over a key/value cache, for decoding: inference only, so a training tape refuses it.

mod convolution;
mod cross;

use super::memory::{Memory, OutOfMemory};
use super::run::Run;
use super::{AttentionOptions, Error, Needs, Operation, Parameters, Tape, Value};
use crate::ops::attention::{Forward, Inputs, Mask, RelativeBias, Shape};
use crate::ops::key_value_cache::{self, Append};
use crate::ops::{self, Device, Write};
use std::ops::Range;
use std::sync::Arc;

/// Keys and values of earlier tokens, of one layer, for a batch of sequences: `(sequences, capacity, 2·HK·D)`. Or what a
/// convolution reads of them: its two halves in place of keys and values.
///
/// Programs that share a cache (one that reads prompts, one that decodes token by token) must run one at a time;
/// a run holds the parameters exclusively, and that is what keeps them apart.
pub struct Cache {
    device: Arc<Device>,
    memory: Memory,
    sequences: usize,
    capacity: usize,
    columns: usize,
}

impl Cache {
    /// Room for `capacity` tokens of each of `sequences` sequences; `key_columns` is `HK·D`.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(
        device: &Arc<Device>,
        sequences: usize,
        capacity: usize,
        key_columns: usize,
    ) -> Result<Arc<Self>, OutOfMemory> {
        let columns = 2 * key_columns;
        let memory = Memory::allocate(device, "the key/value cache", sequences * capacity * columns * 4)?;
        Ok(Arc::new(Self { device: Arc::clone(device), memory, sequences, capacity, columns }))
    }

    /// Copies the first `tokens` tokens of sequence `from` to sequence `to`. Takes the parameters, unused, for the
    /// reason above: no program that works on this cache can run meanwhile.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// There are no such sequences, or fewer tokens.
    pub fn copy_sequence(
        &self,
        _parameters: &mut Parameters,
        from: usize,
        to: usize,
        tokens: usize,
    ) -> Result<(), ops::Error> {
        assert!(from < self.sequences && to < self.sequences && tokens <= self.capacity, "inside the cache");
        if from == to {
            return Ok(());
        }
        let bytes = |sequence: usize| {
            let start = sequence * self.capacity * self.columns * 4;
            start..start + tokens * self.columns * 4
        };
        // SAFETY: nothing runs, and the rows of two sequences do not overlap.
        let (source, target) =
            unsafe { (self.memory.view::<f32>(bytes(from)), self.memory.view_mut::<f32>(bytes(to))) };
        ops::add::accumulate(&self.device, source, target, Write::Set)
    }

    /// Appends the columns behind the first `query_columns` of a run's first input, for `time` new tokens of each of
    /// `batch` sequences, where the options of the run say. Returns the bytes of these sequences.
    fn append(
        &self,
        run: &Run<'_>,
        operation: &'static str,
        [batch, time]: [usize; 2],
        query_columns: usize,
    ) -> Result<Range<usize>, ops::Error> {
        let Self { sequences, capacity, columns, .. } = *self;
        let (positions, first) = (&run.options.positions, run.options.cache_row);
        if positions.len() != batch || first + batch > sequences {
            let what = format!("{} positions and rows {first}.. of {sequences} for {batch} sequences", positions.len());
            return Err(ops::Error { operation, what });
        }
        let row_bytes = capacity * columns * 4;
        let bytes = first * row_bytes..(first + batch) * row_bytes;
        let shape = key_value_cache::Shape { batch, time, query_columns, key_columns: columns / 2, capacity };
        // SAFETY: runs over one cache take turns (see the type), and no other view is alive here.
        let cache = unsafe { self.memory.view_mut(bytes.clone()) };
        key_value_cache::append(run.device, &shape, Append { qkv: run.input(0), positions, cache })?;
        Ok(bytes)
    }
}

struct CachedAttention {
    shape: Shape,
    /// Radius of the relative bias, which is the second input.
    radius: Option<usize>,
    cache: Arc<Cache>,
}

impl Tape<'_> {
    /// Records causal self-attention of new tokens over themselves and all that is in the cache, to which their keys
    /// and values are added. Sequence `b` of the batch uses row `cache_row + b` of the cache and stands at
    /// `positions[b]`, both options of the run. Several tokens at a time for one sequence, one token at a time for
    /// several.
    ///
    /// `relative_bias` is `(H, 2·radius - 1)` as for [`Tape::attention`], with a radius of at least the cache's
    /// capacity.
    ///
    /// # Errors
    /// Shapes that do not fit together; a training tape.
    pub fn attention_cached(
        &mut self,
        qkv: Value,
        options: &AttentionOptions,
        cache: &Arc<Cache>,
        relative_bias: Option<Value>,
    ) -> Result<Value, Error> {
        let shape = self.self_attention_shape(qkv, options)?;
        let error = |what| Err(Error::Shape { operation: "attention_cached", what });
        if cache.columns != 2 * shape.key_columns() {
            return error(format!("the cache has {} columns for {}", cache.columns, 2 * shape.key_columns()));
        }
        if shape.batch > 1 && shape.query_time > 1 {
            return error(format!("{} tokens of {} sequences at once", shape.query_time, shape.batch));
        }
        let radius = relative_bias
            .map(|table| self.relative_radius("attention_cached", table, shape.heads, cache.capacity))
            .transpose()?;
        let output = [("output", vec![shape.batch, shape.query_time, shape.query_columns()], false)];
        let operation = CachedAttention { shape, radius, cache: Arc::clone(cache) };
        let inputs: Vec<Value> = [qkv].into_iter().chain(relative_bias).collect();
        Ok(self.push_node(operation, &inputs, &[], &output)?[0])
    }
}

impl Operation for CachedAttention {
    fn name(&self) -> &'static str {
        "attention_cached"
    }

    /// The lengths of the sequences, which the kernel reads.
    fn forward_scratch(&self, _has_output: &[bool]) -> usize {
        self.shape.batch
    }

    fn backward_needs(&self) -> Option<Needs> {
        None
    }

    fn backward(&self, _run: &Run<'_>) -> Result<(), ops::Error> {
        unreachable!("an operation without a backward pass is not recorded for training")
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let (batch, time, capacity) = (self.shape.batch, self.shape.query_time, self.cache.capacity);
        let bytes = self.cache.append(run, self.name(), [batch, time], self.shape.query_columns())?;
        let positions = &run.options.positions;

        let key_time = positions.iter().max().map_or(0, |&position| position + time);
        let lengths: Vec<i32> = positions.iter().map(|&position| (position + time) as i32).collect();
        let mut key_lengths = run.scratch_ids(batch);
        run.device.upload(&lengths, key_lengths.reborrow()).map_err(ops::Error::of_device("attention_cached"))?;
        let shape = Shape { key_time, mask: if time > 1 { Mask::Causal } else { Mask::Full }, ..self.shape };
        let arguments = Forward {
            inputs: Inputs::Separate {
                query: run.input(0),
                query_row: self.shape.query_columns() + 2 * self.shape.key_columns(),
                // SAFETY: nothing writes to the cache until this call returns.
                key_value: unsafe { self.cache.memory.view(bytes) },
                capacity,
            },
            key_lengths: Some(key_lengths.into()),
            documents: None,
            bias: None,
            relative_bias: self.radius.map(|radius| RelativeBias {
                table: run.input(1),
                radius,
                // Sequences of different lengths are decoded together.
                queries_are_last: true,
            }),
            dropout: None,
            output: run.output(0),
            log_sum_exp: None,
        };
        ops::attention::forward(run.device, &shape, arguments)
    }
}
