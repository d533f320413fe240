//! Appending to a key/value cache: a copy of a few kilobytes, done on the calling thread.

use super::Cpu;
use crate::ops::key_value_cache::{Append, Shape};

/// See [`crate::ops::key_value_cache::append`].
pub fn append(_cpu: &Cpu, shape: &Shape, arguments: Append<'_>) {
    let Shape { time, query_columns, key_columns, capacity, .. } = *shape;
    let qkv = arguments.qkv.host();
    let cache = arguments.cache.host();
    let (row, cached) = (query_columns + 2 * key_columns, 2 * key_columns);
    for (sequence, &position) in arguments.positions.iter().enumerate() {
        for t in 0..time {
            let source = &qkv[(sequence * time + t) * row + query_columns..][..cached];
            cache[(sequence * capacity + position + t) * cached..][..cached].copy_from_slice(source);
        }
    }
}
