//! `libcuda.so.1` on the emulator: the CUDA driver API for programs that bring PTX, on machines without a GPU.
//!
//! `cargo build --release --example cuda` makes `target/release/examples/libcuda.so`. Put it into a folder under the name
//! `libcuda.so.1`, and that folder first into `LD_LIBRARY_PATH`. [`options`] lists the environment variables.
//!
//! One file per family of the interface. Entry points take what C passes ([`types`]), run inside [`errors::answer`], and
//! do their work on [`state`]. Work for streams is an [`submit::Operation`]: run at once, or recorded by a capture.
//! What is not supported answers so, and is named in the log ([`not_supported`]).
//!
//! Not here: textures and arrays, virtual memory management, sharing between processes, several devices, clusters of
//! blocks, machine code. Memory of one context can be reached from another of the same device.

#![cfg(target_os = "linux")]

mod aliases;
mod attributes;
mod capture;
mod context;
mod copy;
mod device;
mod errors;
mod event;
mod function;
mod graph;
mod graph_any;
mod graph_node;
mod image;
mod jit;
mod launch;
mod link;
mod memory;
mod module;
mod not_supported;
mod options;
mod pointer;
mod pool;
mod proc_address;
mod state;
mod stepwise;
mod stream;
mod stream_value;
mod submit;
mod transfer;
mod types;
mod user_object;
