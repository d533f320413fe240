//! The emulator on whole programs: PTX that nvcc made from the `.cu` files beside this one, and hand-written PTX.

mod atomics;
mod body;
mod clusters;
mod conversions;
mod faults;
mod floats;
mod heap;
mod hostile;
mod instructions;
mod libraries;
mod matrices;
mod observers;
mod programs;
mod reference;
mod resident;
mod scheduling;
mod speed;
mod stack;
mod triton;
mod video;
mod warps;
