//! The training loop and all that belongs to a run.

pub mod checkpoint;
pub mod config;
pub mod device;
pub mod estimate;
mod example_source;
mod job;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod outliers;
mod pictures;
pub mod plot;
pub mod presets;
pub mod progress;
pub mod report;
pub mod run_folder;
pub mod schedule;
pub mod signals;
pub mod source;
pub mod tensorboard;
pub mod trainer;

pub use crate::util::atomic_file::WriteError;
use crate::util::atomic_file::write_atomically;
pub use job::Amount;
pub use trainer::{Observer, Outcome, StepReport, Trainer};
