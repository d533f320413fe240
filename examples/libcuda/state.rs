//! What the driver knows: the emulator, tables of handles, text that kernels printed.
//!
//! Handles are numbers, never addresses: each comes from one counter and is looked up before use, so a stale or foreign
//! one is an error and nothing else. Objects are shared (`Arc`): a graph keeps the module of its kernels alive.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};

use engine::driver::emulator::Emulator;

use crate::capture::Capture;
use crate::context::{Context, Primary};
use crate::errors::{Answer, INVALID_VALUE, NO_DEVICE, NOT_INITIALIZED, UNKNOWN};
use crate::event::Event;
use crate::graph::{Graph, GraphExec, NodePlace};
use crate::link::Linker;
use crate::memory::Block;
use crate::module::{Function, Module};
use crate::options::Options;
use crate::pool::Pool;
use crate::stream::Stream;
use crate::types::Handle;
use crate::user_object::UserObject;

/// Objects of one kind by handle.
pub struct Table<T> {
    entries: RwLock<BTreeMap<Handle, Arc<T>>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: RwLock::default() }
    }
}

/// A number that is no handle yet. They are multiples of 16 that no program maps memory at, and never small: some are
/// reserved by the interface (`CU_STREAM_LEGACY` is 1).
pub fn new_handle() -> Handle {
    static NEXT: AtomicUsize = AtomicUsize::new(0x00CD_A000_0000_0000);
    NEXT.fetch_add(16, Relaxed)
}

// Tables are consistent between any two statements, so a poisoned lock is still good.
impl<T> Table<T> {
    /// Adds the object that `make` makes of its handle.
    pub fn add(&self, make: impl FnOnce(Handle) -> T) -> Arc<T> {
        let handle = new_handle();
        let object = Arc::new(make(handle));
        self.put(handle, object.clone());
        object
    }

    pub fn put(&self, handle: Handle, object: Arc<T>) {
        self.entries.write().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(handle, object);
    }

    pub fn get(&self, handle: Handle) -> Option<Arc<T>> {
        self.entries.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&handle).cloned()
    }

    pub fn remove(&self, handle: Handle) -> Option<Arc<T>> {
        self.entries.write().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&handle)
    }

    /// Removes what the test names.
    pub fn remove_if(&self, mut test: impl FnMut(&T) -> bool) -> Vec<Arc<T>> {
        let mut entries = self.entries.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let gone: Vec<Handle> = entries.iter().filter(|(_, object)| test(object)).map(|(handle, _)| *handle).collect();
        gone.into_iter().filter_map(|handle| entries.remove(&handle)).collect()
    }

    pub fn any(&self, test: impl FnMut(&Arc<T>) -> bool) -> bool {
        self.entries.read().unwrap_or_else(|poisoned| poisoned.into_inner()).values().any(test)
    }
}

/// Locks, also after a panic elsewhere: see [`Table`].
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub struct Driver {
    pub options: &'static Options,
    pub emulator: Emulator,
    pub primary: Mutex<Primary>,
    pub contexts: Table<Context>,
    pub modules: Table<Module>,
    pub functions: Table<Function>,
    pub linkers: Table<Mutex<Linker>>,
    pub streams: Table<Stream>,
    pub captures: Table<Capture>,
    pub events: Table<Event>,
    pub graphs: Table<Graph>,
    pub nodes: Table<NodePlace>,
    pub graph_execs: Table<GraphExec>,
    pub user_objects: Table<UserObject>,
    pub pools: Table<Pool>,
    pub default_pool: Handle,
    pub current_pool: AtomicUsize,
    /// Everything allocated through the interface, by device address.
    pub blocks: Mutex<BTreeMap<u64, Block>>,
    /// How many of them are registered memory, which alone has another address on the host.
    pub registered: AtomicUsize,
    printed: Mutex<Vec<u8>>,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// The driver, if `cuInit` was called.
pub fn driver() -> Answer<&'static Driver> {
    DRIVER.get().ok_or(NOT_INITIALIZED)
}

/// What the environment says, read once.
pub fn options() -> Answer<&'static Options> {
    static OPTIONS: OnceLock<Option<Options>> = OnceLock::new();
    let read = || match Options::from_environment() {
        Ok(options) => Some(options),
        Err(line) => {
            // Told whether or not the log is on: without it nobody would know why there is no device.
            eprintln!("libcuda emulator: {line}");
            None
        }
    };
    OPTIONS.get_or_init(read).as_ref().ok_or(INVALID_VALUE)
}

/// Reads the environment and makes the device, once.
pub fn initialise() -> Answer {
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let options = options()?;
    if !options.has_device {
        return Err(NO_DEVICE);
    }
    let mut emulator = Emulator::new(options.facts.clone());
    if let Some(threads) = options.threads {
        emulator = emulator.with_threads(threads);
    }
    if let Some(budget) = options.budget {
        emulator = emulator.with_budget(budget);
    }
    if options.sanitizes {
        emulator = emulator.with_initialisation_tracking();
    }
    let pools = Table::default();
    let default_pool = pools.add(Pool::new).handle;
    let driver = Driver {
        options,
        emulator,
        primary: Mutex::default(),
        contexts: Table::default(),
        modules: Table::default(),
        functions: Table::default(),
        linkers: Table::default(),
        streams: Table::default(),
        captures: Table::default(),
        events: Table::default(),
        graphs: Table::default(),
        nodes: Table::default(),
        graph_execs: Table::default(),
        user_objects: Table::default(),
        pools,
        default_pool,
        current_pool: AtomicUsize::new(default_pool),
        blocks: Mutex::default(),
        registered: AtomicUsize::new(0),
        printed: Mutex::default(),
    };
    // Another thread may have been first: then its driver stands.
    let _ = DRIVER.set(driver);
    DRIVER.get().map(|_| ()).ok_or(UNKNOWN)
}

unsafe extern "C" {
    /// C's standard output: kernels print into the same buffer as the program around them.
    static mut stdout: *mut libc::FILE;
}

impl Driver {
    /// Keeps what a kernel printed until the next synchronisation.
    pub fn print(&self, text: &[u8]) {
        lock(&self.printed).extend_from_slice(text);
    }

    /// Gives what kernels printed to standard output.
    pub fn flush(&self) {
        let text = std::mem::take(&mut *lock(&self.printed));
        if !text.is_empty() {
            // SAFETY: C's library sets `stdout` before `main` and fwrite locks it; the bytes are ours.
            unsafe { libc::fwrite(text.as_ptr().cast::<c_void>(), 1, text.len(), stdout) };
        }
    }
}
