//! Handles: numbers that are given once and looked up before each use.
//!
//! The driver API trusts the pointers that it is given, and a stale one is undefined behaviour. The handles of
//! [`Driver`](super::Driver) are plain values that any safe code may keep, so they name entries of tables instead: one
//! that was destroyed is an error. Objects are shared: a call that uses one, or a graph that holds it, keeps it alive.

use super::{CAPTURED, Error, Result};
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Objects of one kind by handle.
pub(super) struct Table<T> {
    /// What messages call them.
    kind: &'static str,
    entries: RwLock<Entries<T>>,
}

struct Entries<T> {
    next: u64,
    objects: HashMap<u64, Arc<T>>,
}

impl<T> Table<T> {
    pub(super) fn new(kind: &'static str) -> Self {
        Self { kind, entries: RwLock::new(Entries { next: 0, objects: HashMap::new() }) }
    }

    /// The first handle is 0.
    pub(super) fn add(&self, object: T) -> u64 {
        let mut entries = self.write();
        let handle = entries.next;
        entries.next += 1;
        entries.objects.insert(handle, Arc::new(object));
        handle
    }

    pub(super) fn get(&self, handle: u64) -> Result<Arc<T>> {
        self.read().objects.get(&handle).cloned().ok_or_else(|| self.no_such(handle))
    }

    pub(super) fn remove(&self, handle: u64) -> Result<Arc<T>> {
        self.write().objects.remove(&handle).ok_or_else(|| self.no_such(handle))
    }

    /// Removes those that are not wanted any more.
    pub(super) fn retain(&self, mut is_wanted: impl FnMut(&T) -> bool) {
        self.write().objects.retain(|_, object| is_wanted(object));
    }

    fn no_such(&self, handle: u64) -> Error {
        Error::failed(self.kind, format!("there is no {} {handle}", self.kind))
    }

    // Entries are whole between any two statements, so a poisoned lock is still good.
    fn read(&self) -> RwLockReadGuard<'_, Entries<T>> {
        self.entries.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries<T>> {
        self.entries.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What a graph needs as long as it lives: bytes to copy, modules of its kernels, events that it records.
pub(super) type Kept = Vec<Arc<dyn Any + Send + Sync>>;

/// A driver's stream, and what its capture needs while there is one.
pub(super) struct Queue<S> {
    pub(super) stream: S,
    capture: Mutex<Option<Kept>>,
}

impl<S> Queue<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, capture: Mutex::default() }
    }

    /// The capture, if there is one. Held while work is queued, so that the work and what it needs go together.
    pub(super) fn capture(&self) -> MutexGuard<'_, Option<Kept>> {
        self.capture.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Refuses a call that waits before the driver does: the driver would give up the capture too.
    pub(super) fn check_runs(&self, call: &str) -> Result<()> {
        if self.capture().is_some() { Err(Error::failed(call, CAPTURED)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_never_given_again() {
        let table = Table::new("thing");
        assert_eq!((table.add('a'), table.add('b')), (0, 1));
        assert_eq!(*table.remove(1).unwrap(), 'b');
        assert_eq!(table.add('c'), 2);
        assert_eq!(table.get(1).unwrap_err().to_string(), "thing: there is no thing 1");
        table.retain(|&thing| thing == 'c');
        assert!(table.get(0).is_err() && table.remove(1).is_err());
        assert_eq!(*table.get(2).unwrap(), 'c');
    }
}
