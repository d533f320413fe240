//! Transformer blocks and whole models out of tape operations; import and export.

pub mod huggingface;
pub mod lora;
pub mod weights;

pub mod block;
pub mod completion;
pub mod generate;
pub mod gpt;
pub mod sampling;
pub use gpt::{Gpt, LossOptions};
