//! Cross-attention when decoding: an encoder's tokens become keys and values once, in a cache, and every step of the
//! decoder looks at them there. Several hypotheses of one translation are several queries over the same keys, so a beam
//! neither copies nor reads them more than once.

use super::super::run::Run;
use super::super::{AttentionOptions, Error, Needs, Operation, Tape, Value};
use super::Cache;
use crate::ops;
use crate::ops::attention::{Forward, Inputs, Mask, Shape};
use crate::ops::key_value_cache::{self, Append};
use std::sync::Arc;

struct Store {
    shape: key_value_cache::Shape,
    cache: Arc<Cache>,
}

struct CachedCrossAttention {
    /// `query_time` counts hypotheses of each sequence; `key_time` is that of the run.
    shape: Shape,
    cache: Arc<Cache>,
}

impl Tape<'_> {
    /// Records that the keys and values of whole sequences go into a cache, that of sequence `b` into row `b`.
    ///
    /// # Shapes
    /// key_value `(B, S, 2·HK·D)` with the keys first.
    ///
    /// # Errors
    /// More or longer sequences than the cache has room for; a training tape.
    pub fn store_keys_and_values(&mut self, key_value: Value, cache: &Arc<Cache>) -> Result<(), Error> {
        let found = self.shape(key_value);
        let &[batch, time, columns] = found else {
            return Err(misfit("store_keys_and_values", format!("{found:?} is not (batch, time, columns)")));
        };
        if columns != cache.columns || batch > cache.sequences || time > cache.capacity {
            let room = [cache.sequences, cache.capacity, cache.columns];
            return Err(misfit("store_keys_and_values", format!("{found:?} into a cache of {room:?}")));
        }
        let capacity = cache.capacity;
        let shape = key_value_cache::Shape { batch, time, query_columns: 0, key_columns: columns / 2, capacity };
        self.push_node(Store { shape, cache: Arc::clone(cache) }, &[key_value], &[], &[])?;
        Ok(())
    }

    /// Records cross-attention, with scale `1/√D`, over what [`store_keys_and_values`](Self::store_keys_and_values)
    /// has left in a cache. How many sequences there are, and how many tokens each has, are options of the run
    /// (`memory_lengths`): their number divides that of the queries, and neighbouring queries share a sequence.
    ///
    /// # Shapes
    /// query `(N, 1, H·D)`; result the same.
    ///
    /// # Errors
    /// Shapes that do not fit together; a training tape.
    pub fn cross_attention_cached(
        &mut self,
        query: Value,
        options: &AttentionOptions,
        cache: &Arc<Cache>,
    ) -> Result<Value, Error> {
        let name = "cross_attention_cached";
        let AttentionOptions { heads, key_value_heads, .. } = *options;
        let found = self.shape(query);
        let &[queries, 1, columns] = found else {
            return Err(misfit(name, format!("the query is {found:?}, expected (queries, 1, columns)")));
        };
        if heads == 0
            || key_value_heads == 0
            || !heads.is_multiple_of(key_value_heads)
            || !columns.is_multiple_of(heads)
        {
            let what = format!("{heads} heads with {key_value_heads} key/value heads over {columns} columns");
            return Err(misfit(name, what));
        }
        let head_size = columns / heads;
        if cache.columns != 2 * key_value_heads * head_size {
            let what = format!("the cache has {} columns for {}", cache.columns, 2 * key_value_heads * head_size);
            return Err(misfit(name, what));
        }
        let scale = 1.0 / (head_size as f32).sqrt();
        let (batch, query_time, key_time, mask) = (queries, 1, 0, Mask::Full);
        let shape = Shape { batch, query_time, key_time, heads, key_value_heads, head_size, scale, mask };
        let output = [("output", vec![queries, 1, columns], false)];
        let operation = CachedCrossAttention { shape, cache: Arc::clone(cache) };
        Ok(self.push_node(operation, &[query], &[], &output)?[0])
    }
}

fn misfit(operation: &'static str, what: String) -> Error {
    Error::Shape { operation, what }
}

impl Cache {
    /// Bytes of the first `sequences` rows.
    fn first_rows(&self, sequences: usize) -> std::ops::Range<usize> {
        0..sequences * self.capacity * self.columns * 4
    }
}

impl Operation for Store {
    fn name(&self) -> &'static str {
        "store_keys_and_values"
    }

    fn backward_needs(&self) -> Option<Needs> {
        None
    }

    fn backward(&self, _run: &Run<'_>) -> Result<(), ops::Error> {
        unreachable!("an operation without a backward pass is not recorded for training")
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        // SAFETY: runs over one cache take turns (see `Cache`), and no other view is alive here.
        let cache = unsafe { self.cache.memory.view_mut(self.cache.first_rows(self.shape.batch)) };
        let positions = vec![0; self.shape.batch];
        key_value_cache::append(run.device, &self.shape, Append { qkv: run.input(0), positions: &positions, cache })
    }
}

impl Operation for CachedCrossAttention {
    fn name(&self) -> &'static str {
        "cross_attention_cached"
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
        let (lengths, queries) = (&run.options.memory_lengths, self.shape.batch);
        let (batch, key_time) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        if batch == 0
            || !queries.is_multiple_of(batch)
            || batch > self.cache.sequences
            || key_time > self.cache.capacity
        {
            let Cache { sequences, capacity, .. } = *self.cache;
            let what = format!(
                "{queries} queries over {batch} sequences of up to {key_time} in a cache of {sequences} of {capacity}"
            );
            return Err(ops::Error { operation: self.name(), what });
        }
        let lengths: Vec<i32> = lengths.iter().map(|&length| length as i32).collect();
        let mut key_lengths = run.scratch_ids(batch);
        run.device.upload(&lengths, key_lengths.reborrow()).map_err(ops::Error::of_device(self.name()))?;
        let shape = Shape { batch, query_time: queries / batch, key_time, ..self.shape };
        let arguments = Forward {
            inputs: Inputs::Separate {
                query: run.input(0),
                query_row: shape.query_columns(),
                // SAFETY: nothing writes to the cache until this call returns.
                key_value: unsafe { self.cache.memory.view(self.cache.first_rows(batch)) },
                capacity: self.cache.capacity,
            },
            key_lengths: Some(key_lengths.into()),
            documents: None,
            bias: None,
            relative_bias: None,
            dropout: None,
            output: run.output(0),
            log_sum_exp: None,
        };
        ops::attention::forward(run.device, &shape, arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Device;
    use crate::ops::attention::reference;
    use crate::ops::testing::{Random, assert_close, cpu_devices, double};
    use crate::tape::{Mode, Parameters, RunOptions};

    /// Sizes of a case: each sentence has `width` queries, and as many tokens as `lengths` says.
    #[derive(Clone, Copy, Debug)]
    struct Case {
        lengths: &'static [usize],
        width: usize,
        heads: usize,
        key_value_heads: usize,
        head_size: usize,
    }

    const CASES: [Case; 3] = [
        Case { lengths: &[5, 1, 3], width: 2, heads: 4, key_value_heads: 2, head_size: 3 },
        Case { lengths: &[7], width: 1, heads: 1, key_value_heads: 1, head_size: 17 },
        Case { lengths: &[2, 40, 9, 33], width: 5, heads: 6, key_value_heads: 2, head_size: 8 },
    ];

    fn check(name: &str, device: Device, case: Case) {
        let device = Arc::new(device);
        let Case { lengths, width, heads, key_value_heads, head_size } = case;
        let parameters = &mut Parameters::new(&device, Vec::new(), 0).unwrap();
        let (batch, longest) = (lengths.len(), lengths.iter().copied().max().unwrap());
        // The batch that was encoded is padded, and the cache has room for more of everything.
        let (padded, key_columns, columns) = (longest + 2, key_value_heads * head_size, heads * head_size);
        let cache = Cache::new(&device, batch + 1, padded + 3, key_columns).unwrap();
        let mut random = Random::fresh();
        let keys_and_values = random.normal(batch * padded * 2 * key_columns);
        let queries = random.normal(batch * width * columns);

        let mut tape = Tape::new(Arc::clone(&device), parameters, Mode::Inference);
        let key_value = tape.input("key_value", &[batch, padded, 2 * key_columns]);
        tape.store_keys_and_values(key_value, &cache).unwrap();
        let mut store = tape.finish().unwrap();
        let mut tape = Tape::new(Arc::clone(&device), parameters, Mode::Inference);
        let query = tape.input("query", &[batch * width, 1, columns]);
        let options = AttentionOptions { heads, key_value_heads, mask: Mask::Full, dropout: 0.0 };
        let mixed = tape.cross_attention_cached(query, &options, &cache).unwrap();
        tape.keep(mixed);
        let mut attend = tape.finish().unwrap();

        store.write(key_value, &keys_and_values).unwrap();
        store.run(parameters, &RunOptions::default()).unwrap();
        attend.write(query, &queries).unwrap();
        let options = RunOptions { memory_lengths: lengths.to_vec(), ..RunOptions::default() };
        attend.run(parameters, &options).unwrap();

        let half = |second: usize| -> Vec<f32> {
            let rows = keys_and_values.chunks_exact(2 * key_columns);
            rows.flat_map(|row| row[second * key_columns..][..key_columns].to_vec()).collect()
        };
        let key_lengths: Vec<i32> = lengths.iter().map(|&length| length as i32).collect();
        let shape = Shape {
            batch,
            query_time: width,
            key_time: padded,
            heads,
            key_value_heads,
            head_size,
            scale: 1.0 / (head_size as f32).sqrt(),
            mask: Mask::Full,
        };
        let (expected, _) = reference::forward(&reference::Inputs {
            shape,
            query: &double(&queries),
            key: &double(&half(0)),
            value: &double(&half(1)),
            key_lengths: Some(&key_lengths),
            documents: None,
            bias: None,
            relative_bias: None,
            dropout: None,
        });
        assert_close(&format!("{name}, {case:?}"), &attend.read(mixed).unwrap(), &expected, 1e-5, 1e-7);

        // One sequence more than the cache has room for, a sequence that is longer, queries that cannot be shared out.
        for wrong in [vec![1; batch + 2], vec![padded + 4], vec![1; batch * width + 1]] {
            let options = RunOptions { memory_lengths: wrong, ..RunOptions::default() };
            assert!(attend.run(parameters, &options).is_err(), "{name}, {case:?}");
        }
    }

    #[test]
    fn what_is_stored_is_attended_to_on_every_cpu() {
        for case in CASES {
            cpu_devices().into_iter().for_each(|(name, device)| check(&name, device, case));
        }
    }

    #[test]
    fn what_is_stored_is_attended_to_by_the_kernels_of_the_gpu() {
        // Sanitised: what lies behind a sentence's tokens in the cache is never read.
        CASES.into_iter().for_each(|case| check("the emulator", crate::gpu::testing::device(), case));
    }
}
