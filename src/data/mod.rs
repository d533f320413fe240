//! Bytes on disk -> batches of token ids: tokenisers, memory-mapped shards, samplers.
//!
//! The way of the data: `text` cuts files into chunks of whole lines, a [`Tokenizer`] turns them into ids, [`pack`]
//! does so on all cores and writes [`shard`]s; a [`Dataset`] maps shards as one stream, and a [`Sampler`] draws
//! `(B, T)` windows from it. Nothing here knows what a model is: what leaves are `i32` ids and targets.

pub mod batch;
pub mod dataset;
pub mod error;
mod hash;
pub mod images;
pub mod inspect;
pub mod labelled;
pub mod manifest;
pub mod masking;
pub mod pack;
mod permutation;
pub mod sampler;
pub mod shard;
pub mod table;
#[cfg(test)]
mod testing;
mod text;
pub mod tokenizer;
pub mod verify;

pub use batch::{Batch, Batcher, BatcherState};
pub use dataset::{Dataset, Format, Split};
pub use error::{Error, Result};
pub use labelled::LabelledSet;
pub use sampler::{Order, Sampler, SamplerState};
pub use tokenizer::{DecodeStream, SpecialTokens, Tokenizer};

/// Told how many bytes of text have been worked off, and of how many.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);
