//! Objects of the program that graphs keep alive: when nobody refers to one any more, its destructor is called.

use std::ffi::{c_uint, c_void};
use std::sync::{Arc, Mutex};

use crate::errors::{Answer, Code, INVALID_VALUE, answer};
use crate::graph::graph;
use crate::state::{driver, lock};
use crate::types::{Handle, HostFunction, Out};

/// References of the program itself; graphs and their executables have theirs in [`Retained`].
pub struct UserObject {
    object: Arc<Object>,
    references: Mutex<c_uint>,
}

/// References of a graph.
#[derive(Clone)]
pub struct Retained {
    handle: Handle,
    count: c_uint,
    _object: Arc<Object>,
}

struct Object {
    data: *mut c_void,
    destroy: HostFunction,
}

// SAFETY: the program gives data and destructor to be called from a thread of the driver's choice.
unsafe impl Send for Object {}
// SAFETY: as above; nothing is done with them before.
unsafe impl Sync for Object {}

impl Drop for Object {
    fn drop(&mut self) {
        (self.destroy)(self.data);
    }
}

fn user_object(handle: Handle) -> Answer<Arc<UserObject>> {
    driver()?.user_objects.get(handle).ok_or(INVALID_VALUE)
}

/// Takes references of the program away; with the last one the handle ends.
fn release(handle: Handle, count: c_uint) -> Answer {
    let object = user_object(handle)?;
    let left = {
        let mut references = lock(&object.references);
        *references = references.checked_sub(count).filter(|_| count > 0).ok_or(INVALID_VALUE)?;
        *references
    };
    if left == 0 {
        driver()?.user_objects.remove(handle);
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuUserObjectCreate(
    handle: Out<Handle>,
    data: *mut c_void,
    destroy: Option<HostFunction>,
    references: c_uint,
    flags: c_uint,
) -> Code {
    answer("cuUserObjectCreate", || {
        const NO_DESTRUCTOR_SYNC: c_uint = 1;
        let destroy = destroy.ok_or(INVALID_VALUE)?;
        if handle.is_null() || references == 0 || flags != NO_DESTRUCTOR_SYNC {
            return Err(INVALID_VALUE);
        }
        let new = crate::state::new_handle();
        let object = UserObject { object: Arc::new(Object { data, destroy }), references: Mutex::new(references) };
        driver()?.user_objects.put(new, Arc::new(object));
        handle.put(new)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuUserObjectRetain(handle: Handle, count: c_uint) -> Code {
    answer("cuUserObjectRetain", || {
        let object = user_object(handle)?;
        let mut references = lock(&object.references);
        *references = references.checked_add(count).filter(|_| count > 0).ok_or(INVALID_VALUE)?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuUserObjectRelease(handle: Handle, count: c_uint) -> Code {
    answer("cuUserObjectRelease", || release(handle, count))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphRetainUserObject(graph_handle: Handle, handle: Handle, count: c_uint, flags: c_uint) -> Code {
    answer("cuGraphRetainUserObject", || {
        /// The references are the caller's, not new ones.
        const MOVE: c_uint = 1;
        let graph = graph(graph_handle)?;
        let object = user_object(handle)?;
        if count == 0 || flags > MOVE {
            return Err(INVALID_VALUE);
        }
        if flags == MOVE {
            release(handle, count)?;
        }
        let mut retained = lock(&graph.retained);
        match retained.iter_mut().find(|known| known.handle == handle) {
            Some(known) => known.count = known.count.saturating_add(count),
            None => retained.push(Retained { handle, count, _object: object.object.clone() }),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphReleaseUserObject(graph_handle: Handle, handle: Handle, count: c_uint) -> Code {
    answer("cuGraphReleaseUserObject", || {
        let graph = graph(graph_handle)?;
        let gone = {
            let mut retained = lock(&graph.retained);
            let index = retained.iter().position(|known| known.handle == handle).ok_or(INVALID_VALUE)?;
            let left = retained[index].count.checked_sub(count).filter(|_| count > 0).ok_or(INVALID_VALUE)?;
            retained[index].count = left;
            (left == 0).then(|| retained.swap_remove(index))
        };
        // The destructor runs outside the lock: it is the program's.
        drop(gone);
        Ok(())
    })
}
