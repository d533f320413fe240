//! The driver library, driven as programs drive it: loaded at run time, entry points by name.

#![cfg(target_os = "linux")]

mod calls;
mod capture;
mod driver;
mod environment;
mod foreign;
mod modules;

const KERNELS: &str = include_str!("kernels.ptx");
