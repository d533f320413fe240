//! Transformer blocks and whole models out of tape operations; import and export.

pub mod huggingface;
pub mod lora;
pub mod weights;

pub mod block;
pub mod completion;
pub mod config;
mod convolution;
pub mod encode;
mod encoder_decoder;
pub mod generate;
mod heads;
pub mod image;
mod layout;
pub mod sampling;
pub mod transformer;
pub mod translate;
pub mod treatment;
pub use config::ModelConfig;
pub use transformer::{LossOptions, Transformer};
