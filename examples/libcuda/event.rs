//! Events: the moment at which the work before them was done.

use std::ffi::c_uint;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::capture::{self, Captured};
use crate::context::{synchronize, usable};
use crate::errors::{
    Answer, CAPTURED_EVENT, Code, INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, STREAM_CAPTURE_ISOLATION, answer,
};
use crate::state::{driver, lock};
use crate::stream;
use crate::submit::{Operation, submit};
use crate::types::{Handle, Out};

const DISABLE_TIMING: c_uint = 2;
const INTERPROCESS: c_uint = 4;
const KNOWN_FLAGS: c_uint = 7;
/// Recorded or waited for as a node of a graph, rather than as an edge.
const EXTERNAL: c_uint = 1;

pub struct Event {
    pub handle: Handle,
    pub context: Handle,
    flags: c_uint,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    recorded: Option<Instant>,
    captured: Option<Captured>,
}

impl Event {
    /// Records now.
    pub fn record(&self) {
        *lock(&self.state) = State { recorded: Some(Instant::now()), captured: None };
    }

    fn was_recorded(&self) -> bool {
        lock(&self.state).recorded.is_some()
    }

    /// Where in a capture it was recorded last, if the capture goes on.
    fn captured(&self) -> Option<Captured> {
        lock(&self.state).captured.clone().filter(|captured| captured.capture.is_active())
    }
}

fn event(handle: Handle) -> Answer<Arc<Event>> {
    driver()?.events.get(handle).ok_or(INVALID_HANDLE)
}

/// The event of a handle inside a launch attribute.
pub fn of(handle: Handle) -> Answer<Arc<Event>> {
    event(handle)
}

fn record(handle: Handle, stream_handle: Handle, flags: c_uint) -> Answer {
    usable()?;
    let event = event(handle)?;
    let stream = stream::resolve(stream_handle)?;
    if flags > EXTERNAL {
        return Err(INVALID_VALUE);
    }
    match stream.capture() {
        Some(capture) if flags & EXTERNAL == 0 => {
            let captured = capture.point(&stream)?;
            *lock(&event.state) = State { recorded: None, captured: Some(captured) };
            Ok(())
        }
        _ => submit(stream_handle, Operation::Record(event)),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(handle: Out<Handle>, flags: c_uint) -> Code {
    answer("cuEventCreate", || {
        let context = usable()?;
        if handle.is_null() || flags & !KNOWN_FLAGS != 0 {
            return Err(INVALID_VALUE);
        }
        if flags & INTERPROCESS != 0 {
            return Err(NOT_SUPPORTED);
        }
        let make = |handle| Event { handle, context: context.handle, flags, state: Mutex::default() };
        handle.put(driver()?.events.add(make).handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(handle: Handle) -> Code {
    answer("cuEventDestroy", || driver()?.events.remove(handle).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(handle: Handle, stream: Handle) -> Code {
    answer("cuEventRecord", || record(handle, stream, 0))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecordWithFlags(handle: Handle, stream: Handle, flags: c_uint) -> Code {
    answer("cuEventRecordWithFlags", || record(handle, stream, flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(handle: Handle) -> Code {
    answer("cuEventQuery", || {
        if event(handle)?.captured().is_some() {
            return Err(CAPTURED_EVENT);
        }
        usable().map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(handle: Handle) -> Code {
    answer("cuEventSynchronize", || {
        if event(handle)?.captured().is_some() {
            return Err(CAPTURED_EVENT);
        }
        synchronize(&*crate::context::current()?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) -> Code {
    answer("cuEventElapsedTime", || {
        usable()?;
        let (start, end) = (event(start)?, event(end)?);
        if (start.flags | end.flags) & DISABLE_TIMING != 0 {
            return Err(INVALID_HANDLE);
        }
        if start.captured().or(end.captured()).is_some() {
            return Err(CAPTURED_EVENT);
        }
        let at = |event: &Event| lock(&event.state).recorded.ok_or(INVALID_HANDLE);
        let (start, end) = (at(&start)?, at(&end)?);
        let forwards = end.saturating_duration_since(start).as_secs_f64();
        let backwards = start.saturating_duration_since(end).as_secs_f64();
        milliseconds.put(((forwards - backwards) * 1e3) as f32)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream_handle: Handle, handle: Handle, flags: c_uint) -> Code {
    answer("cuStreamWaitEvent", || {
        usable()?;
        let event = event(handle)?;
        let stream = stream::resolve(stream_handle)?;
        if flags > EXTERNAL {
            return Err(INVALID_VALUE);
        }
        match (event.captured(), stream.capture()) {
            (Some(captured), _) => capture::join(&stream, captured),
            (None, Some(_)) if flags & EXTERNAL != 0 => submit(stream_handle, Operation::Wait(event)),
            // An event that was never recorded has nothing to wait for.
            (None, Some(_)) if !event.was_recorded() => Ok(()),
            (None, Some(capture)) => {
                capture.invalidate();
                Err(STREAM_CAPTURE_ISOLATION)
            }
            // What was recorded is done.
            (None, None) => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxRecordEvent(context: Handle, handle: Handle) -> Code {
    answer("cuCtxRecordEvent", || {
        crate::context::named(context)?.check()?;
        event(handle)?.record();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxWaitEvent(context: Handle, handle: Handle) -> Code {
    answer("cuCtxWaitEvent", || {
        crate::context::named(context)?.check()?;
        event(handle).map(|_| ())
    })
}
