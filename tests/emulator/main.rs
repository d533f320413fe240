//! The emulator on whole programs: PTX that nvcc made from the `.cu` files beside this one, and hand-written PTX.

mod body;
mod faults;
mod hostile;
mod instructions;
mod observers;
mod programs;
mod speed;
mod triton;
