//! Appending to a key/value cache: the keys and values of new tokens are copied from packed qkv behind those of
//! earlier tokens, so that decoding a token costs one row of attention instead of all of them. Inference only.

use super::{Device, Error, View, ViewMut, check_len};
use crate::{cpu, gpu};

const NAME: &str = "key_value_cache";

/// Sizes of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences in this batch.
    pub batch: usize,
    /// New tokens of each sequence.
    pub time: usize,
    /// `H·D`: columns of qkv before the keys.
    pub query_columns: usize,
    /// `HK·D`: columns of the keys, and of the values.
    pub key_columns: usize,
    /// Rows of the cache for each sequence.
    pub capacity: usize,
}

/// Arguments of [`append`].
pub struct Append<'a> {
    /// `(B, T, H·D + 2·HK·D)`
    pub qkv: View<'a, f32>,
    /// `(B)`: how many rows of each sequence are filled already.
    pub positions: &'a [usize],
    /// `(B, capacity, 2·HK·D)`: keys and values side by side.
    pub cache: ViewMut<'a, f32>,
}

/// Copies keys and values into the cache.
///
/// # Errors
/// An argument's length does not fit `shape`, or a sequence would outgrow the cache.
pub fn append(device: &Device, shape: &Shape, arguments: Append<'_>) -> Result<(), Error> {
    let Shape { batch, time, query_columns, key_columns, capacity } = *shape;
    check_len(NAME, "qkv", arguments.qkv.len(), batch * time * (query_columns + 2 * key_columns))?;
    check_len(NAME, "cache", arguments.cache.len(), batch * capacity * 2 * key_columns)?;
    check_len(NAME, "positions", arguments.positions.len(), batch)?;
    if let Some(position) = arguments.positions.iter().find(|&&position| position + time > capacity) {
        return Err(Error::new(NAME, format!("{time} tokens at position {position} of a cache of {capacity}")));
    }
    match device {
        Device::Cpu(cpu) => cpu::key_value_cache::append(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::key_value_cache::append(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Random, cpu_devices};

    #[test]
    fn append_writes_keys_and_values_at_each_sequence_s_position_and_nothing_else() {
        let shape = Shape { batch: 2, time: 3, query_columns: 8, key_columns: 5, capacity: 7 };
        let qkv = Random::fresh().normal(2 * 3 * 18);
        for (name, device) in cpu_devices() {
            let mut cache = vec![9.0; 2 * 7 * 10];
            let arguments = Append { qkv: (&qkv).into(), positions: &[4, 1], cache: (&mut cache).into() };
            append(&device, &shape, arguments).unwrap();
            for (b, start) in [(0, 4), (1, 1)] {
                for row in 0..7 {
                    let found = &cache[(b * 7 + row) * 10..][..10];
                    if (start..start + 3).contains(&row) {
                        assert_eq!(found, &qkv[(b * 3 + row - start) * 18 + 8..][..10], "{name}: row {row} of {b}");
                    } else {
                        assert!(found.iter().all(|&v| v == 9.0), "{name}: row {row} of {b}");
                    }
                }
            }
            let arguments = Append { qkv: (&qkv).into(), positions: &[5, 1], cache: (&mut cache).into() };
            assert!(append(&device, &shape, arguments).is_err(), "{name}: a full cache must be refused");
        }
    }
}
