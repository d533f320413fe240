//! What a GPU driver does: allocate, copy, load PTX, launch. The emulator here executes PTX on the CPU.

pub mod emulator;
