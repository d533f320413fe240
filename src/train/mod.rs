//! The training loop and all that belongs to a run.

pub mod checkpoint;
pub mod config;
pub mod device;
pub mod estimate;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod outliers;
pub mod plot;
pub mod presets;
pub mod progress;
mod recorded;
pub mod report;
pub mod run_folder;
pub mod schedule;
pub mod signals;
pub mod source;
pub mod tensorboard;
pub mod trainer;

pub use crate::util::atomic_file::WriteError;
use crate::util::atomic_file::write_atomically;
pub use trainer::{Observer, Outcome, StepReport, Trainer};
