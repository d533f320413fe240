//! What launches on a watched emulator did, for tools that count or sanitise more than one kernel.

use super::emulator::{Counters, Finding};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a launch did.
#[derive(Clone, Debug)]
pub struct LaunchRecord {
    pub kernel: String,
    pub blocks: u64,
    /// Where launches are counted.
    pub counters: Option<Counters>,
    /// Where they are sanitised.
    pub findings: Vec<Finding>,
}

/// What launches did, in order: filled by the driver, emptied by who made it.
#[derive(Clone, Debug, Default)]
pub struct LaunchLog(Arc<Mutex<Vec<LaunchRecord>>>);

impl LaunchLog {
    /// The records since the last call.
    pub fn take(&self) -> Vec<LaunchRecord> {
        std::mem::take(&mut *self.records())
    }

    pub(super) fn push(&self, record: LaunchRecord) {
        self.records().push(record);
    }

    // A record is pushed or taken whole, so a poisoned lock is still good.
    fn records(&self) -> MutexGuard<'_, Vec<LaunchRecord>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
