//! The emulator on whole programs: PTX that nvcc made from the `.cu` files beside this one, and hand-written PTX.

mod hostile;
mod instructions;
mod programs;
mod speed;
