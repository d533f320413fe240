//! Transformer blocks and whole models out of tape operations; import and export.

pub mod huggingface;
pub mod weights;

pub mod block;
pub mod completion;
pub mod config;
mod encoder_decoder;
pub mod generate;
mod heads;
mod layout;
pub mod sampling;
pub mod transformer;
pub mod translate;
pub use config::ModelConfig;
pub use transformer::{LossOptions, Transformer};
