//! Small things that every part may use and that know none of them.

pub mod atomic_file;
pub mod edit_distance;
pub mod html;
