//! A GPU that executes PTX on the CPU.
//!
//! PTX text goes through `lexer` and `parser` to `ast`, through `decode` to a program of closures and data, and `machine`
//! runs it: warps of 32 lanes with independent scheduling, blocks in parallel on all cores. What instructions mean lies in
//! `execute`, one file per family of the ISA manual; what a driver does around it (memory, modules, launches) in `device`. `execute/refused`
//! lists what it does not have.
//!
//! ```
//! use ptx_emulator::{DeviceFacts, Emulator, LaunchConfig, Params};
//!
//! let emulator = Emulator::new(DeviceFacts::default());
//! let module = emulator.load("double.ptx", "
//!     .version 8.0
//!     .target sm_80
//!     .address_size 64
//!     .visible .entry double(.param .u64 data) {
//!         .reg .b32 %r<3>;
//!         .reg .b64 %a<3>;
//!         ld.param.u64 %a1, [data];
//!         mov.u32 %r1, %tid.x;
//!         mad.wide.u32 %a2, %r1, 4, %a1;
//!         ld.global.u32 %r2, [%a2];
//!         add.u32 %r2, %r2, %r2;
//!         st.global.u32 [%a2], %r2;
//!         ret;
//!     }
//! ")?;
//! let data = emulator.upload(&[1u32, 2, 3])?;
//! emulator.launch(&module, "double", LaunchConfig::new([1, 1, 1], [3, 1, 1]), Params::new().u64(data).as_bytes())?;
//! assert_eq!(emulator.download::<u32>(data, 3)?, [2, 4, 6]);
//! # Ok::<(), ptx_emulator::EmulatorError>(())
//! ```

mod ast;
mod counters;
mod decode;
mod device;
mod error;
mod execute;
mod facts;
mod heap;
mod lanes;
mod launch;
mod lexer;
mod machine;
mod memory;
mod module;
mod parser;
mod sanitizer;
mod soft_float;

pub use counters::Counters;
pub use decode::program::{FormalParameter, Frames, FunctionInfo, HostFunction, Meta, Program};
pub use device::{Emulator, LaunchReport};
pub use error::{Access, EmulatorError, Fault, FaultKind, Result};
pub use facts::DeviceFacts;
pub use launch::{LaunchConfig, Params};
pub use module::Module;
pub use sanitizer::{Finding, FindingKind};
