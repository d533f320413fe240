//! Transformer blocks and whole models out of tape operations; import and export.

pub mod huggingface;
pub mod weights;
