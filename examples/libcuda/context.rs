//! Contexts: the primary one of the device, own ones, and each thread's stack of current contexts.
//!
//! A kernel that was stopped by a fault kills its context, as on a GPU: from then on every call that works in the context
//! answers with the fault's code, until the context is destroyed or the primary context is reset.

use std::cell::RefCell;
use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::device::known;
use crate::errors::{
    Answer, CONTEXT_IS_DESTROYED, Code, INVALID_CONTEXT, INVALID_VALUE, NOT_SUPPORTED, PEER_ACCESS_NOT_ENABLED,
    PEER_ACCESS_UNSUPPORTED, UNSUPPORTED_LIMIT, answer,
};
use crate::state::{Driver, driver, lock, new_handle};
use crate::types::{Device, Handle, Out};
use crate::{capture, memory};

pub struct Context {
    pub handle: Handle,
    flags: AtomicU32,
    /// Code of the fault that killed the context, or 0.
    fault: AtomicU32,
    limits: Mutex<[usize; LIMITS]>,
    cache_config: AtomicU32,
    version: c_uint,
    /// Who uses the context: its creator, and those who attached to it.
    users: AtomicU32,
}

/// Limits by `CUlimit`: stack, printf buffer, heap, nesting and pending launches of device-side launches, L2 fetch
/// granularity, persisting L2, then limits of graphics interoperation. But for the heap they are kept and otherwise without
/// effect: the emulator's stacks grow as needed.
const LIMITS: usize = 10;
/// `CU_LIMIT_MALLOC_HEAP_SIZE`: what kernels may allocate, fixed once one has run that may.
const HEAP_LIMIT: c_uint = 2;
const DEFAULT_LIMITS: [usize; LIMITS] = [1024, 1 << 20, 8 << 20, 2, 2048, 64, 0, 0, 0, 0];
const VERSION: c_uint = 3020;
/// Flags that a context may have: scheduling, mapped host memory, local memory, core dumps, synchronous memory operations.
const KNOWN_FLAGS: c_uint = 0xff;

/// The primary context of the device.
#[derive(Default)]
pub struct Primary {
    /// Given once, and kept over resets.
    handle: Handle,
    retained: u32,
    flags: c_uint,
}

thread_local! {
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

impl Context {
    fn new(handle: Handle, flags: c_uint) -> Self {
        Self {
            handle,
            flags: AtomicU32::new(flags),
            fault: AtomicU32::new(0),
            limits: Mutex::new(DEFAULT_LIMITS),
            cache_config: AtomicU32::new(0),
            version: VERSION,
            users: AtomicU32::new(1),
        }
    }

    /// Notes that a kernel was stopped; the first fault stays.
    pub fn kill(&self, code: Code) {
        let _ = self.fault.compare_exchange(0, code.0, Relaxed, Relaxed);
    }

    /// # Errors
    /// The fault that killed the context.
    pub fn check(&self) -> Answer {
        match self.fault.load(Relaxed) {
            0 => Ok(()),
            code => Err(Code(code)),
        }
    }
}

fn top() -> Handle {
    STACK.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

/// The context that is current in this thread, dead or alive.
pub fn current() -> Answer<Arc<Context>> {
    let driver = driver()?;
    match top() {
        0 => Err(INVALID_CONTEXT),
        handle => driver.contexts.get(handle).ok_or(CONTEXT_IS_DESTROYED),
    }
}

/// The current context, if no fault has killed it.
pub fn usable() -> Answer<Arc<Context>> {
    let context = current()?;
    context.check()?;
    Ok(context)
}

/// The context of a handle, where 0 is the current one.
pub fn named(handle: Handle) -> Answer<Arc<Context>> {
    if handle == 0 { current() } else { driver()?.contexts.get(handle).ok_or(INVALID_CONTEXT) }
}

/// Ends everything that lives in a context.
fn empty(driver: &Driver, context: Handle) {
    driver.flush();
    capture::forget(driver, context);
    driver.functions.remove_if(|function| function.module.context == context);
    driver.modules.remove_if(|module| module.context == context);
    driver.streams.remove_if(|stream| stream.context == context);
    driver.events.remove_if(|event| event.context == context);
    memory::free_all(driver, context);
}

/// Waits for the work of a context, which is done already: gives out what kernels printed and tells of faults.
pub fn synchronize(context: &Context) -> Answer {
    driver()?.flush();
    context.check()
}

fn push(handle: Handle) {
    STACK.with_borrow_mut(|stack| stack.push(handle));
}

fn create(handle: Out<Handle>, flags: c_uint, device: Device) -> Answer {
    let driver = known(device)?;
    if flags & !KNOWN_FLAGS != 0 || handle.is_null() {
        return Err(INVALID_VALUE);
    }
    let context = driver.contexts.add(|handle| Context::new(handle, flags));
    push(context.handle);
    handle.put(context.handle)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxCreate_v2(handle: Out<Handle>, flags: c_uint, device: Device) -> Code {
    answer("cuCtxCreate", || create(handle, flags, device))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxCreate_v3(
    handle: Out<Handle>,
    affinities: Out<u8>,
    count: c_int,
    flags: c_uint,
    device: Device,
) -> Code {
    answer("cuCtxCreate_v3", || {
        if !affinities.is_null() && count != 0 {
            return Err(NOT_SUPPORTED);
        }
        create(handle, flags, device)
    })
}

/// `CUctxCreateParams`: execution affinities, their count, sharing with graphics.
type CreateParams = [usize; 3];

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxCreate_v4(
    handle: Out<Handle>,
    params: Out<CreateParams>,
    flags: c_uint,
    device: Device,
) -> Code {
    answer("cuCtxCreate_v4", || {
        if !params.is_null() && params.get()?.iter().any(|&word| word != 0) {
            return Err(NOT_SUPPORTED);
        }
        create(handle, flags, device)
    })
}

fn destroy(handle: Handle) -> Answer {
    let driver = driver()?;
    if handle == lock(&driver.primary).handle {
        return Err(INVALID_CONTEXT);
    }
    driver.contexts.remove(handle).ok_or(INVALID_CONTEXT)?;
    empty(driver, handle);
    STACK.with_borrow_mut(|stack| {
        if stack.last() == Some(&handle) {
            stack.pop();
        }
    });
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxDestroy_v2(handle: Handle) -> Code {
    answer("cuCtxDestroy", || destroy(handle))
}

/// Deprecated, as is [`cuCtxDetach`]; PyCUDA uses both.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxAttach(handle: Out<Handle>, flags: c_uint) -> Code {
    answer("cuCtxAttach", || {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let context = current()?;
        handle.put(context.handle)?;
        context.users.fetch_add(1, Relaxed);
        Ok(())
    })
}

/// The last user destroys the context.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxDetach(handle: Handle) -> Code {
    answer("cuCtxDetach", || {
        let driver = driver()?;
        let context = driver.contexts.get(handle).ok_or(INVALID_CONTEXT)?;
        if handle == lock(&driver.primary).handle {
            return Err(INVALID_CONTEXT);
        }
        match context.users.fetch_sub(1, Relaxed) {
            1 => destroy(handle),
            _ => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPushCurrent_v2(handle: Handle) -> Code {
    answer("cuCtxPushCurrent", || {
        driver()?.contexts.get(handle).ok_or(INVALID_CONTEXT)?;
        push(handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPopCurrent_v2(handle: Out<Handle>) -> Code {
    answer("cuCtxPopCurrent", || {
        driver()?;
        let popped = STACK.with_borrow_mut(Vec::pop).filter(|&popped| popped != 0).ok_or(INVALID_CONTEXT)?;
        handle.put_if_wanted(popped);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(handle: Handle) -> Code {
    answer("cuCtxSetCurrent", || {
        let driver = driver()?;
        if handle != 0 && driver.contexts.get(handle).is_none() {
            return Err(INVALID_CONTEXT);
        }
        STACK.with_borrow_mut(|stack| {
            stack.pop();
            if handle != 0 {
                stack.push(handle);
            }
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCurrent(handle: Out<Handle>) -> Code {
    answer("cuCtxGetCurrent", || driver().and_then(|_| handle.put(top())))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetDevice(device: Out<Device>) -> Code {
    answer("cuCtxGetDevice", || current().and_then(|_| device.put(0)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetDevice_v2(device: Out<Device>, handle: Handle) -> Code {
    answer("cuCtxGetDevice_v2", || named(handle).and_then(|_| device.put(0)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetFlags(flags: Out<c_uint>) -> Code {
    answer("cuCtxGetFlags", || flags.put(current()?.flags.load(Relaxed)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetFlags(flags: c_uint) -> Code {
    answer("cuCtxSetFlags", || {
        if flags & !KNOWN_FLAGS != 0 {
            return Err(INVALID_VALUE);
        }
        current()?.flags.store(flags, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetId(handle: Handle, id: Out<u64>) -> Code {
    answer("cuCtxGetId", || id.put(named(handle)?.handle as u64))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetApiVersion(handle: Handle, version: Out<c_uint>) -> Code {
    answer("cuCtxGetApiVersion", || version.put(named(handle)?.version))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    answer("cuCtxSynchronize", || {
        capture::refuse_unsafe_call()?;
        synchronize(&*current()?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize_v2(handle: Handle) -> Code {
    answer("cuCtxSynchronize_v2", || {
        capture::refuse_unsafe_call()?;
        synchronize(&*named(handle)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetLimit(limit: c_uint, value: usize) -> Code {
    answer("cuCtxSetLimit", || {
        let context = usable()?;
        let mut limits = lock(&context.limits);
        let kept = limits.get_mut(limit as usize).ok_or(UNSUPPORTED_LIMIT)?;
        if limit == HEAP_LIMIT {
            driver()?.emulator.set_malloc_heap(value as u64).map_err(|_| INVALID_VALUE)?;
        }
        *kept = value;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetLimit(value: Out<usize>, limit: c_uint) -> Code {
    answer("cuCtxGetLimit", || {
        let context = usable()?;
        let known = lock(&context.limits).get(limit as usize).copied();
        value.put(known.ok_or(UNSUPPORTED_LIMIT)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCacheConfig(config: Out<c_uint>) -> Code {
    answer("cuCtxGetCacheConfig", || config.put(usable()?.cache_config.load(Relaxed)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCacheConfig(config: c_uint) -> Code {
    answer("cuCtxSetCacheConfig", || {
        let context = usable()?;
        if config > 3 {
            return Err(INVALID_VALUE);
        }
        context.cache_config.store(config, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetSharedMemConfig(config: Out<c_uint>) -> Code {
    // Banks of four bytes.
    answer("cuCtxGetSharedMemConfig", || usable().and_then(|_| config.put(1)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetSharedMemConfig(_config: c_uint) -> Code {
    answer("cuCtxSetSharedMemConfig", || usable().map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) -> Code {
    answer("cuCtxGetStreamPriorityRange", || {
        usable()?;
        least.put_if_wanted(crate::stream::LEAST_PRIORITY);
        greatest.put_if_wanted(crate::stream::GREATEST_PRIORITY);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxResetPersistingL2Cache() -> Code {
    answer("cuCtxResetPersistingL2Cache", || usable().map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxEnablePeerAccess(peer: Handle, _flags: c_uint) -> Code {
    answer("cuCtxEnablePeerAccess", || named(peer).and(Err(PEER_ACCESS_UNSUPPORTED)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxDisablePeerAccess(peer: Handle) -> Code {
    answer("cuCtxDisablePeerAccess", || named(peer).and(Err(PEER_ACCESS_NOT_ENABLED)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(handle: Out<Handle>, device: Device) -> Code {
    answer("cuDevicePrimaryCtxRetain", || {
        let driver = known(device)?;
        let mut primary = lock(&driver.primary);
        if primary.handle == 0 {
            primary.handle = new_handle();
        }
        if driver.contexts.get(primary.handle).is_none() {
            driver.contexts.put(primary.handle, Arc::new(Context::new(primary.handle, primary.flags)));
        }
        handle.put(primary.handle)?;
        primary.retained += 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: Device) -> Code {
    answer("cuDevicePrimaryCtxRelease", || {
        let driver = known(device)?;
        let mut primary = lock(&driver.primary);
        primary.retained = primary.retained.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        if primary.retained == 0 && driver.contexts.remove(primary.handle).is_some() {
            empty(driver, primary.handle);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxReset_v2(device: Device) -> Code {
    answer("cuDevicePrimaryCtxReset", || {
        let driver = known(device)?;
        let primary = lock(&driver.primary);
        if driver.contexts.remove(primary.handle).is_some() {
            empty(driver, primary.handle);
            if primary.retained > 0 {
                driver.contexts.put(primary.handle, Arc::new(Context::new(primary.handle, primary.flags)));
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: Device, flags: c_uint) -> Code {
    answer("cuDevicePrimaryCtxSetFlags", || {
        let driver = known(device)?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(INVALID_VALUE);
        }
        let mut primary = lock(&driver.primary);
        primary.flags = flags;
        if let Some(context) = driver.contexts.get(primary.handle) {
            context.flags.store(flags, Relaxed);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxGetState(device: Device, flags: Out<c_uint>, active: Out<c_int>) -> Code {
    answer("cuDevicePrimaryCtxGetState", || {
        let driver = known(device)?;
        let primary = lock(&driver.primary);
        flags.put_if_wanted(primary.flags);
        active.put_if_wanted(c_int::from(driver.contexts.get(primary.handle).is_some()));
        Ok(())
    })
}
