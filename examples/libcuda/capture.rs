//! Captures: streams that record what they are given into a graph, rather than run it.
//!
//! A capture begins in one stream. Others join it by waiting for an event recorded in it. For each of its streams it knows
//! the nodes that the next one depends on; an event keeps those of its moment.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ffi::c_uint;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use crate::context::usable;
use crate::errors::{
    Answer, Code, ILLEGAL_STATE, INVALID_VALUE, STREAM_CAPTURE_IMPLICIT, STREAM_CAPTURE_INVALIDATED,
    STREAM_CAPTURE_MERGE, STREAM_CAPTURE_UNJOINED, STREAM_CAPTURE_UNMATCHED, STREAM_CAPTURE_UNSUPPORTED,
    STREAM_CAPTURE_WRONG_THREAD, answer,
};
use crate::graph::Graph;
use crate::state::{Driver, driver, lock};
use crate::stream::{Stream, resolve};
use crate::submit::Operation;
use crate::types::{Handle, In, Out};

const GLOBAL: c_uint = 0;
const THREAD_LOCAL: c_uint = 1;
const RELAXED: c_uint = 2;

const ENDED: u32 = 0;
const ACTIVE: u32 = 1;
const INVALIDATED: u32 = 2;

pub struct Capture {
    handle: Handle,
    context: Handle,
    mode: c_uint,
    thread: ThreadId,
    origin: Handle,
    graph: Arc<Graph>,
    status: AtomicU32,
    heads: Mutex<HashMap<Handle, Head>>,
}

/// A stream of a capture and the nodes that its next one depends on. The list that the interface hands out by pointer is
/// kept until the next change, as it promises.
struct Head {
    stream: Arc<Stream>,
    nodes: Vec<Handle>,
}

/// A moment in a capture, as an event keeps it.
#[derive(Clone)]
pub struct Captured {
    pub capture: Arc<Capture>,
    nodes: Vec<Handle>,
}

thread_local! {
    /// How this thread may disturb captures (`cuThreadExchangeStreamCaptureMode`).
    static MODE: Cell<c_uint> = const { Cell::new(GLOBAL) };
}

impl Capture {
    pub fn is_active(&self) -> bool {
        self.status.load(Relaxed) != ENDED
    }

    pub fn invalidate(&self) {
        let _ = self.status.compare_exchange(ACTIVE, INVALIDATED, Relaxed, Relaxed);
    }

    fn check(&self) -> Answer {
        if self.status.load(Relaxed) == ACTIVE { Ok(()) } else { Err(STREAM_CAPTURE_INVALIDATED) }
    }

    /// Adds an operation behind what the stream recorded so far.
    pub fn record(&self, stream: &Stream, operation: Operation) -> Answer<Handle> {
        self.check()?;
        let mut heads = lock(&self.heads);
        let head = heads.get_mut(&stream.handle).ok_or(ILLEGAL_STATE)?;
        let node = self.graph.add(operation, head.nodes.clone())?;
        head.nodes = vec![node];
        Ok(node)
    }

    /// The present moment of a stream.
    pub fn point(self: &Arc<Self>, stream: &Stream) -> Answer<Captured> {
        self.check()?;
        let nodes = lock(&self.heads).get(&stream.handle).map(|head| head.nodes.clone()).ok_or(ILLEGAL_STATE)?;
        Ok(Captured { capture: self.clone(), nodes })
    }

    /// Lets all its streams go.
    fn end(&self, driver: &Driver) -> HashMap<Handle, Head> {
        self.status.store(ENDED, Relaxed);
        driver.captures.remove(self.handle);
        let heads = std::mem::take(&mut *lock(&self.heads));
        heads.values().for_each(|head| head.stream.set_capture(None));
        heads
    }

    /// Ends a capture whose result nobody will have.
    pub fn abandon(&self, driver: &Driver) {
        self.end(driver);
    }
}

/// Ends the captures of a context that goes away.
pub fn forget(driver: &Driver, context: Handle) {
    for capture in driver.captures.remove_if(|capture| capture.context == context) {
        capture.abandon(driver);
    }
}

/// Makes the stream depend on a moment of a capture, and so part of it.
pub fn join(stream: &Arc<Stream>, moment: Captured) -> Answer {
    let capture = moment.capture;
    capture.check()?;
    match stream.capture() {
        None if stream.is_legacy => {
            capture.invalidate();
            Err(STREAM_CAPTURE_IMPLICIT)
        }
        None => {
            lock(&capture.heads).insert(stream.handle, Head { stream: stream.clone(), nodes: moment.nodes });
            stream.set_capture(Some(capture));
            Ok(())
        }
        Some(own) if own.handle == capture.handle => {
            let mut heads = lock(&capture.heads);
            let head = heads.get_mut(&stream.handle).ok_or(ILLEGAL_STATE)?;
            for node in moment.nodes {
                if !head.nodes.contains(&node) {
                    head.nodes.push(node);
                }
            }
            Ok(())
        }
        Some(own) => {
            own.invalidate();
            capture.invalidate();
            Err(STREAM_CAPTURE_MERGE)
        }
    }
}

/// Refuses a call that might disturb a capture under way, by the rule of the capture modes.
pub fn refuse_unsafe_call() -> Answer {
    let mode = MODE.get();
    if mode == RELAXED {
        return Ok(());
    }
    let here = std::thread::current().id();
    let disturbs = |capture: &Arc<Capture>| {
        let is_disturbed = match capture.thread == here {
            true => capture.mode != RELAXED,
            false => mode == GLOBAL && capture.mode == GLOBAL,
        };
        if is_disturbed {
            capture.invalidate();
        }
        is_disturbed
    };
    if driver()?.captures.any(disturbs) { Err(STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
}

/// Refuses work in the legacy stream while a stream that it would wait for is capturing.
pub fn refuse_implicit(stream: &Stream) -> Answer {
    if !stream.is_legacy {
        return Ok(());
    }
    let disturbs = |capture: &Arc<Capture>| {
        let is_disturbed =
            capture.context == stream.context && lock(&capture.heads).values().any(|head| head.stream.is_blocking());
        if is_disturbed {
            capture.invalidate();
        }
        is_disturbed
    };
    if driver()?.captures.any(disturbs) { Err(STREAM_CAPTURE_IMPLICIT) } else { Ok(()) }
}

fn begin(stream: Handle, mode: c_uint, graph: Option<Arc<Graph>>, nodes: Vec<Handle>) -> Answer {
    let context = usable()?;
    if mode > RELAXED {
        return Err(INVALID_VALUE);
    }
    let driver = driver()?;
    let stream = resolve(stream)?;
    if stream.is_legacy {
        return Err(STREAM_CAPTURE_UNSUPPORTED);
    }
    if stream.capture().is_some() {
        return Err(ILLEGAL_STATE);
    }
    let graph = match graph {
        Some(graph) => graph,
        None => Graph::register()?,
    };
    let head = Head { stream: stream.clone(), nodes };
    let capture = driver.captures.add(|handle| Capture {
        handle,
        context: context.handle,
        mode,
        thread: std::thread::current().id(),
        origin: stream.handle,
        graph,
        status: AtomicU32::new(ACTIVE),
        heads: Mutex::new(HashMap::from([(stream.handle, head)])),
    });
    stream.set_capture(Some(capture));
    Ok(())
}

/// True if all that other streams recorded comes before what the first stream recorded last.
fn is_joined(capture: &Capture, heads: &HashMap<Handle, Head>) -> bool {
    let mut before: HashSet<Handle> = HashSet::new();
    let mut open: Vec<Handle> = heads.get(&capture.origin).map_or_else(Vec::new, |head| head.nodes.clone());
    while let Some(node) = open.pop() {
        if before.insert(node) {
            open.extend(capture.graph.dependencies(node).unwrap_or_default());
        }
    }
    heads.values().flat_map(|head| &head.nodes).all(|node| before.contains(node))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) -> Code {
    answer("cuStreamBeginCapture", || begin(stream, mode, None, Vec::new()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture(stream: Handle) -> Code {
    cuStreamBeginCapture_v2(stream, GLOBAL)
}

/// Begins in the thread's default stream where the stream is 0: for programs compiled for that.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2_ptsz(stream: Handle, mode: c_uint) -> Code {
    cuStreamBeginCapture_v2(if stream == 0 { crate::stream::PER_THREAD } else { stream }, mode)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_ptsz(stream: Handle) -> Code {
    cuStreamBeginCapture_v2_ptsz(stream, GLOBAL)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCaptureToGraph(
    stream: Handle,
    graph: Handle,
    dependencies: In<Handle>,
    _edges: In<u64>,
    count: usize,
    mode: c_uint,
) -> Code {
    answer("cuStreamBeginCaptureToGraph", || {
        let graph = driver()?.graphs.get(graph).ok_or(INVALID_VALUE)?;
        begin(stream, mode, Some(graph), dependencies.all(count)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) -> Code {
    answer("cuStreamEndCapture", || {
        let driver = driver()?;
        let stream = resolve(stream)?;
        let capture = stream.capture().ok_or(ILLEGAL_STATE)?;
        if capture.origin != stream.handle {
            capture.invalidate();
            return Err(STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
            return Err(STREAM_CAPTURE_WRONG_THREAD);
        }
        let valid = capture.check();
        let heads = capture.end(driver);
        let result =
            valid.and_then(|()| if is_joined(&capture, &heads) { Ok(()) } else { Err(STREAM_CAPTURE_UNJOINED) });
        if result.is_err() {
            driver.graphs.remove(capture.graph.handle);
        }
        graph.put_if_wanted(if result.is_ok() { capture.graph.handle } else { 0 });
        result
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamIsCapturing(stream: Handle, status: Out<c_uint>) -> Code {
    answer("cuStreamIsCapturing", || {
        let stream = resolve(stream)?;
        refuse_implicit(&stream)?;
        status.put(stream.capture().map_or(ENDED, |capture| capture.status.load(Relaxed)))
    })
}

fn put_info(
    stream: Handle,
    status: Out<c_uint>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Out<*const Handle>,
    count: Out<usize>,
) -> Answer {
    let stream = resolve(stream)?;
    refuse_implicit(&stream)?;
    let Some(capture) = stream.capture() else { return status.put(ENDED) };
    status.put(capture.status.load(Relaxed))?;
    id.put_if_wanted(capture.handle as u64);
    graph.put_if_wanted(capture.graph.handle);
    if let Some(head) = lock(&capture.heads).get(&stream.handle) {
        dependencies.put_if_wanted(head.nodes.as_ptr());
        count.put_if_wanted(head.nodes.len());
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetCaptureInfo(stream: Handle, status: Out<c_uint>, id: Out<u64>) -> Code {
    let nothing = Out::from_address(0);
    answer("cuStreamGetCaptureInfo", || {
        put_info(stream, status, id, nothing, Out::from_address(0), Out::from_address(0))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: Handle,
    status: Out<c_uint>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Out<*const Handle>,
    count: Out<usize>,
) -> Code {
    answer("cuStreamGetCaptureInfo_v2", || put_info(stream, status, id, graph, dependencies, count))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamGetCaptureInfo_v3(
    stream: Handle,
    status: Out<c_uint>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Out<*const Handle>,
    edges: Out<*const u64>,
    count: Out<usize>,
) -> Code {
    answer("cuStreamGetCaptureInfo_v3", || {
        // No edge has data.
        edges.put_if_wanted(std::ptr::null());
        put_info(stream, status, id, graph, dependencies, count)
    })
}

fn update_dependencies(stream: Handle, nodes: Vec<Handle>, flags: c_uint) -> Answer {
    const SET: c_uint = 1;
    let stream = resolve(stream)?;
    let capture = stream.capture().ok_or(ILLEGAL_STATE)?;
    capture.check()?;
    let mut heads = lock(&capture.heads);
    let head = heads.get_mut(&stream.handle).ok_or(ILLEGAL_STATE)?;
    if flags == SET {
        head.nodes.clear();
    }
    for node in nodes {
        capture.graph.dependencies(node).ok_or(INVALID_VALUE)?;
        if !head.nodes.contains(&node) {
            head.nodes.push(node);
        }
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamUpdateCaptureDependencies(
    stream: Handle,
    nodes: In<Handle>,
    count: usize,
    flags: c_uint,
) -> Code {
    answer("cuStreamUpdateCaptureDependencies", || update_dependencies(stream, nodes.all(count)?, flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamUpdateCaptureDependencies_v2(
    stream: Handle,
    nodes: In<Handle>,
    _edges: In<u64>,
    count: usize,
    flags: c_uint,
) -> Code {
    answer("cuStreamUpdateCaptureDependencies_v2", || update_dependencies(stream, nodes.all(count)?, flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuThreadExchangeStreamCaptureMode(mode: Out<c_uint>) -> Code {
    answer("cuThreadExchangeStreamCaptureMode", || {
        let wanted = mode.get()?;
        if !matches!(wanted, GLOBAL | THREAD_LOCAL | RELAXED) {
            return Err(INVALID_VALUE);
        }
        mode.put(MODE.replace(wanted))
    })
}
