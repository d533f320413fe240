//! The driver's objects, owned: the context, and what lives in it.

use super::super::Result;
use super::super::handles::Kept;
use super::check;
use cudarc::driver::sys::{self, CUresult};
use std::sync::Arc;

/// The primary context of a device, retained.
pub(super) struct Context {
    device: sys::CUdevice,
    /// Kept as a number: the driver's own locks make it usable from every thread.
    raw: usize,
}

impl Context {
    pub(super) fn retain(device: sys::CUdevice) -> Result<Self> {
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one handle; released when dropped.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        Ok(Self { device, raw: context as usize })
    }

    /// Makes the context current on this thread.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw as sys::CUcontext) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once when opened. There is nobody to tell of an error.
        unsafe {
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// How an object is destroyed.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Module,
    Stream,
    Event,
    Graph,
}

/// A module, stream, event or executable graph, destroyed when nobody uses it any more.
pub(super) struct Object {
    context: Arc<Context>,
    kind: Kind,
    /// 0 for the default stream, and for what is destroyed.
    raw: usize,
}

impl Object {
    /// Takes over what the driver made.
    pub(super) fn new<T>(context: &Arc<Context>, kind: Kind, raw: *mut T) -> Self {
        Self { context: Arc::clone(context), kind, raw: raw as usize }
    }

    /// The driver's pointer to it.
    pub(super) fn raw<T>(&self) -> *mut T {
        self.raw as *mut T
    }

    /// Destroys it, unless somebody else still uses it: the last one destroys it then.
    pub(super) fn end(this: Arc<Self>) -> Result<()> {
        Arc::into_inner(this).map_or(Ok(()), |mut object| object.destroy())
    }

    pub(super) fn destroy(&mut self) -> Result<()> {
        let raw = std::mem::take(&mut self.raw);
        if raw == 0 {
            return Ok(());
        }
        self.context.enter()?;
        // SAFETY: the driver made it, this is the one place that destroys it, and it is not used afterwards.
        unsafe {
            match self.kind {
                Kind::Module => check("cuModuleUnload", sys::cuModuleUnload(raw as sys::CUmodule)),
                Kind::Stream => check("cuStreamDestroy", sys::cuStreamDestroy_v2(raw as sys::CUstream)),
                Kind::Event => check("cuEventDestroy", sys::cuEventDestroy_v2(raw as sys::CUevent)),
                Kind::Graph => check("cuGraphExecDestroy", sys::cuGraphExecDestroy(raw as sys::CUgraphExec)),
            }
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // There is nobody to tell of an error.
        let _ = self.destroy();
    }
}

/// A graph that is ready to be launched.
pub(super) struct Executable {
    pub(super) object: Object,
    /// Recorded behind each launch.
    pub(super) done: Object,
    /// Only held.
    _kept: Kept,
}

impl Executable {
    pub(super) fn new(object: Object, done: Object, kept: Kept) -> Self {
        Self { object, done, _kept: kept }
    }

    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive; one that was never recorded has nothing to wait for.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.done.raw()) })
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // A launch that is under way may still read the bytes that are freed next. There is nobody to tell of an error.
        let _ = self.object.context.enter().and_then(|()| self.wait());
    }
}

/// The error of a call, with the driver's own words.
pub(super) fn describe(result: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver hands out a static string, or nothing.
        unsafe {
            let known = get(result, &mut text) == CUresult::CUDA_SUCCESS && !text.is_null();
            known.then(|| std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("error {}", result as u32));
    let words = text(sys::cuGetErrorString).unwrap_or_else(|| "unknown to the driver".into());
    format!("{name} ({words})")
}
