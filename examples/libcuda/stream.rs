//! Streams.
//!
//! Every context has a legacy default stream (handle 0 or 1) and one default stream per thread (handle 2, and handle 0 of
//! programs compiled for it). The two meanings of 0 differ only in captures, so they are told apart there alone: 0 is the
//! thread's stream while that is capturing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Mutex};

use crate::capture::{self, Capture};
use crate::context::{Context, current, synchronize, usable};
use crate::errors::{Answer, Code, INVALID_HANDLE, INVALID_VALUE, STREAM_CAPTURE_UNSUPPORTED, SUCCESS, answer};
use crate::state::{driver, lock, new_handle};
use crate::submit::{HostCall, Operation, submit};
use crate::types::{Device, Handle, HostFunction, In, Out, StreamCallback};

pub const LEAST_PRIORITY: c_int = 0;
pub const GREATEST_PRIORITY: c_int = -5;
pub const LEGACY: Handle = 1;
pub const PER_THREAD: Handle = 2;
const NON_BLOCKING: c_uint = 1;

pub struct Stream {
    pub handle: Handle,
    pub context: Handle,
    flags: c_uint,
    priority: c_int,
    id: u64,
    pub is_legacy: bool,
    capture: Mutex<Option<Arc<Capture>>>,
}

impl Stream {
    fn new(handle: Handle, context: Handle, flags: c_uint, priority: c_int) -> Self {
        let id = handle as u64;
        Self { handle, context, flags, priority, id, is_legacy: false, capture: Mutex::default() }
    }

    /// The capture that records this stream.
    pub fn capture(&self) -> Option<Arc<Capture>> {
        lock(&self.capture).clone()
    }

    pub fn set_capture(&self, capture: Option<Arc<Capture>>) {
        *lock(&self.capture) = capture;
    }

    /// True if the legacy stream waits for this one and the other way round.
    pub fn is_blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }
}

thread_local! {
    /// This thread's default streams by context, and its views of the legacy streams.
    static DEFAULTS: RefCell<HashMap<(Handle, bool), Arc<Stream>>> = RefCell::default();
}

fn default_stream(context: Handle, is_legacy: bool) -> Arc<Stream> {
    DEFAULTS.with_borrow_mut(|streams| {
        let make = || {
            let stream = Stream { is_legacy, ..Stream::new(new_handle(), context, 0, LEAST_PRIORITY) };
            // Its number within the context.
            Arc::new(if is_legacy { Stream { id: 1, ..stream } } else { stream })
        };
        streams.entry((context, is_legacy)).or_insert_with(make).clone()
    })
}

/// The stream of a handle.
pub fn resolve(handle: Handle) -> Answer<Arc<Stream>> {
    match handle {
        0 | LEGACY | PER_THREAD => {
            let context = current()?.handle;
            let of_thread = default_stream(context, false);
            if handle == PER_THREAD || (handle == 0 && of_thread.capture().is_some()) {
                return Ok(of_thread);
            }
            Ok(default_stream(context, true))
        }
        handle => driver()?.streams.get(handle).ok_or(INVALID_HANDLE),
    }
}

/// The context of a stream's work.
pub fn context_of(stream: &Stream) -> Answer<Arc<Context>> {
    driver()?.contexts.get(stream.context).ok_or(INVALID_HANDLE)
}

fn create(handle: Out<Handle>, flags: c_uint, priority: c_int) -> Answer {
    let context = usable()?;
    if handle.is_null() || flags & !NON_BLOCKING != 0 {
        return Err(INVALID_VALUE);
    }
    let priority = priority.clamp(GREATEST_PRIORITY, LEAST_PRIORITY);
    handle.put(driver()?.streams.add(|handle| Stream::new(handle, context.handle, flags, priority)).handle)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(handle: Out<Handle>, flags: c_uint) -> Code {
    answer("cuStreamCreate", || create(handle, flags, LEAST_PRIORITY))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreateWithPriority(handle: Out<Handle>, flags: c_uint, priority: c_int) -> Code {
    answer("cuStreamCreateWithPriority", || create(handle, flags, priority))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(handle: Handle) -> Code {
    answer("cuStreamDestroy", || {
        let driver = driver()?;
        let stream = driver.streams.remove(handle).ok_or(INVALID_HANDLE)?;
        if let Some(capture) = stream.capture() {
            capture.abandon(driver);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(handle: Handle) -> Code {
    answer("cuStreamQuery", || {
        let stream = resolve(handle)?;
        if let Some(capture) = stream.capture() {
            capture.invalidate();
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        context_of(&stream)?.check()
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(handle: Handle) -> Code {
    answer("cuStreamSynchronize", || {
        let stream = resolve(handle)?;
        if let Some(capture) = stream.capture() {
            capture.invalidate();
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        capture::refuse_implicit(&stream)?;
        synchronize(&*context_of(&stream)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetFlags(handle: Handle, flags: Out<c_uint>) -> Code {
    answer("cuStreamGetFlags", || flags.put(resolve(handle)?.flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetPriority(handle: Handle, priority: Out<c_int>) -> Code {
    answer("cuStreamGetPriority", || priority.put(resolve(handle)?.priority))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetId(handle: Handle, id: Out<u64>) -> Code {
    answer("cuStreamGetId", || id.put(resolve(handle)?.id))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetDevice(handle: Handle, device: Out<Device>) -> Code {
    answer("cuStreamGetDevice", || resolve(handle).and_then(|_| device.put(0)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetCtx(handle: Handle, context: Out<Handle>) -> Code {
    answer("cuStreamGetCtx", || context.put(resolve(handle)?.context))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetCtx_v2(handle: Handle, context: Out<Handle>, green: Out<Handle>) -> Code {
    answer("cuStreamGetCtx_v2", || {
        green.put_if_wanted(0);
        context.put(resolve(handle)?.context)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetGreenCtx(handle: Handle, green: Out<Handle>) -> Code {
    // None is.
    answer("cuStreamGetGreenCtx", || resolve(handle).and_then(|_| green.put(0)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCopyAttributes(target: Handle, source: Handle) -> Code {
    answer("cuStreamCopyAttributes", || {
        resolve(target)?;
        resolve(source).map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetAttribute(handle: Handle, number: c_uint, value: Out<[u64; 8]>) -> Code {
    answer("cuStreamGetAttribute", || {
        let priority = resolve(handle)?.priority;
        // Priority is the only one that has a value; the others are at their zeros.
        let word = if number == 8 { u64::from(priority as u32) } else { 0 };
        value.put([word, 0, 0, 0, 0, 0, 0, 0])
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSetAttribute(handle: Handle, _number: c_uint, _value: In<[u64; 8]>) -> Code {
    // Hints on caches and scheduling.
    answer("cuStreamSetAttribute", || resolve(handle).map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchHostFunc(stream: Handle, function: Option<HostFunction>, data: *mut c_void) -> Code {
    answer("cuLaunchHostFunc", || {
        let function = function.ok_or(INVALID_VALUE)?;
        submit(stream, Operation::Host(HostCall { function, data }))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamAddCallback(
    handle: Handle,
    callback: Option<StreamCallback>,
    data: *mut c_void,
    flags: c_uint,
) -> Code {
    answer("cuStreamAddCallback", || {
        let callback = callback.ok_or(INVALID_VALUE)?;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let stream = resolve(handle)?;
        if let Some(capture) = stream.capture() {
            capture.invalidate();
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        // A callback is called after a fault too, and is told of it.
        let status = current()?.check().err().unwrap_or(SUCCESS);
        driver()?.flush();
        callback(handle, status, data);
        Ok(())
    })
}
