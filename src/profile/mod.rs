//! Measuring: whole training steps and single operations, against what the machine can do and against PyTorch.
//!
//! A figure is only worth something beside another one from the same minute on the same cores. So every measurement
//! here comes with the machine's peak, measured in the same run, and a comparison takes turns with the other program
//! instead of running after it. Medians are compared, never bests.
//!
//! Nothing here prints, except through what it returns; nothing in the engine depends on this part.

pub mod cases;
pub mod counted;
pub mod gpus;
pub mod kernels;
pub mod launch;
pub mod machine;
pub mod npy;
pub mod pytorch;
pub mod roofline;
pub mod roofline_plot;
pub mod table;
pub mod timing;
pub mod training;
