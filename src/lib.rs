//! `engine`: a compute engine for transformers. See ARCHITECTURE.md for the map.

pub mod cpu;
pub mod data;
pub mod driver;
pub mod gpu;
pub mod model;
pub mod ops;
pub mod profile;
pub mod score;
pub mod tape;
pub mod train;
pub mod util;
