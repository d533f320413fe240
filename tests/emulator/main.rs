//! The emulator on whole programs: PTX that nvcc made from the `.cu` files beside this one, and hand-written PTX.

mod programs;
mod speed;
