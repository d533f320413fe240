//! Bytes on disk -> batches of token ids: tokenisers, memory-mapped shards, samplers.
