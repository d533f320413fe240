//! Launches `kernels/key_value_cache.cu`.

use super::{Arguments, Gpu, Source, source};
use crate::driver::{Error, LaunchConfig, Result};
use crate::ops::key_value_cache::{Append, Shape};

static SOURCE: Source = source!("key_value_cache");
const BLOCK: usize = 256;
/// Sequences whose positions a launch takes.
const SEQUENCES: usize = 256;

/// See [`crate::ops::key_value_cache::append`].
///
/// # Errors
/// More tokens than a launch takes, or the driver refuses.
pub fn append(gpu: &Gpu, shape: &Shape, arguments: Append<'_>) -> Result<()> {
    let Shape { time, query_columns, key_columns, capacity, .. } = *shape;
    let columns = 2 * key_columns;
    let blocks = i32::try_from(time * columns.div_ceil(BLOCK))
        .map_err(|_| Error::failed("key_value_cache", format!("{time} tokens at once: append fewer")))?;
    for (index, positions) in arguments.positions.chunks(SEQUENCES).enumerate() {
        let first = index * SEQUENCES;
        let address = |start: u64, elements: usize| start + (elements * size_of::<f32>()) as u64;
        let list = Arguments::new()
            .address(address(arguments.qkv.address(), first * time * (query_columns + columns)))
            .address(address(arguments.cache.address(), first * capacity * columns))
            .size(time)
            .size(query_columns)
            .size(columns)
            .size(capacity);
        let list = (0..SEQUENCES).fold(list, |list, i| list.size(positions.get(i).copied().unwrap_or(0)));
        let config = LaunchConfig::new([blocks as u32, positions.len() as u32, 1], [BLOCK as u32, 1, 1]);
        gpu.launch(&SOURCE, "key_value_cache_append", config, list)?;
    }
    Ok(())
}

pub(crate) mod checks {
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::Device;
    use crate::ops::key_value_cache::{Append, Shape, append};
    use crate::ops::testing::Random;

    fn append_writes_keys_and_values_at_each_sequence_s_position_and_nothing_else(device: &Device) {
        let mut random = Random::fresh();
        // The second has more sequences than one launch takes, the third more columns than a block; the last two are an
        // encoder's, without queries beside the keys.
        for (batch, time, query_columns, key_columns, capacity) in
            [(2, 3, 8, 5, 7), (300, 1, 8, 3, 4), (3, 17, 8, 203, 40), (2, 9, 0, 7, 9), (257, 2, 0, 3, 5)]
        {
            let shape = Shape { batch, time, query_columns, key_columns, capacity };
            let (row, columns) = (query_columns + 2 * key_columns, 2 * key_columns);
            let values = random.normal(batch * time * row);
            let before = random.normal(batch * capacity * columns);
            let positions: Vec<usize> = (0..batch).map(|_| random.below(capacity - time + 1)).collect();
            let qkv = Buffer::upload(device, &values);
            let mut cache = Buffer::upload(device, &before);
            let arguments = Append { qkv: qkv.view(), positions: &positions, cache: cache.view_mut() };
            append(device, &shape, arguments).unwrap();
            let mut expected = before;
            for (b, position) in positions.iter().enumerate() {
                for t in 0..time {
                    let source = &values[(b * time + t) * row + query_columns..][..columns];
                    expected[(b * capacity + position + t) * columns..][..columns].copy_from_slice(source);
                }
            }
            assert!(cache.download() == expected, "{shape:?}");
        }
    }

    fn a_full_cache_is_refused(device: &Device) {
        let shape = Shape { batch: 1, time: 2, query_columns: 4, key_columns: 4, capacity: 3 };
        let (qkv, mut cache) = (Buffer::poisoned(device, 24), Buffer::poisoned(device, 24));
        let arguments = Append { qkv: qkv.view(), positions: &[2], cache: cache.view_mut() };
        assert!(append(device, &shape, arguments).unwrap_err().to_string().contains("position 2 of a cache of 3"));
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check {
            name: "key_value_cache: append writes keys and values at each sequence s position and nothing else",
            claim: append_writes_keys_and_values_at_each_sequence_s_position_and_nothing_else,
        },
        Check { name: "key_value_cache: a full cache is refused", claim: a_full_cache_is_refused },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
