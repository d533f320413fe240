//! Work for a stream: operations that run at once, or that a capture records.
//!
//! Streams run eagerly, in the order of submission. That is a legal schedule: whatever a program may assume about order
//! holds, and nothing is ever pending. So waiting for an event has nothing to do outside a capture.

use std::ffi::c_void;
use std::sync::Arc;

use crate::capture;
use crate::context::{Context, usable};
use crate::copy::{Copy, Fill};
use crate::errors::Answer;
use crate::event::Event;
use crate::graph::GraphExec;
use crate::launch::KernelLaunch;
use crate::memory;
use crate::pool::GraphMemory;
use crate::state::driver;
use crate::stream;
use crate::types::{DevicePointer, Handle, HostFunction};

#[derive(Clone)]
pub enum Operation {
    Kernel(Arc<KernelLaunch>),
    Copy(Copy),
    Fill(Fill),
    Host(HostCall),
    Record(Arc<Event>),
    Wait(Arc<Event>),
    Graph(Arc<GraphExec>),
    Allocate(Arc<GraphMemory>),
    Free(DevicePointer),
    Empty,
}

/// A function of the program, to be called in stream order.
#[derive(Clone, Copy)]
pub struct HostCall {
    pub function: HostFunction,
    pub data: *mut c_void,
}

// SAFETY: the program gives function and data to be called from a thread of the driver's choice.
unsafe impl Send for HostCall {}
// SAFETY: as above.
unsafe impl Sync for HostCall {}

/// Runs an operation in a stream, or records it if the stream is capturing.
pub fn submit(stream: Handle, operation: Operation) -> Answer {
    usable()?;
    let stream = stream::resolve(stream)?;
    // A stream may be used while another context is current.
    let context = stream::context_of(&stream)?;
    context.check()?;
    match stream.capture() {
        Some(capture) => capture.record(&stream, operation).map(|_| ()),
        None => {
            capture::refuse_implicit(&stream)?;
            execute(&context, &operation)
        }
    }
}

/// Runs an operation of a call that returns when it is done: it goes to the legacy stream, and gives out what was printed.
pub fn submit_synchronous(operation: Operation) -> Answer {
    let context = usable()?;
    capture::refuse_implicit(&*stream::resolve(stream::LEGACY)?)?;
    let result = execute(&context, &operation);
    driver()?.flush();
    result
}

/// Runs an operation. A kernel's fault is not an error here: it kills the context.
pub fn execute(context: &Context, operation: &Operation) -> Answer {
    match operation {
        Operation::Kernel(launch) => launch.run(context),
        Operation::Copy(copy) => copy.run(),
        Operation::Fill(fill) => fill.run(),
        Operation::Host(call) => {
            // What the kernels before it printed comes before what it prints.
            driver()?.flush();
            (call.function)(call.data);
            Ok(())
        }
        Operation::Record(event) => {
            event.record();
            Ok(())
        }
        Operation::Graph(graph) => graph.run(context),
        Operation::Free(address) => memory::free(*address),
        Operation::Wait(_) | Operation::Allocate(_) | Operation::Empty => Ok(()),
    }
}
