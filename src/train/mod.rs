//! The training loop and all that belongs to a run.

pub mod config;
pub mod optimizer;
pub mod presets;
pub mod schedule;
