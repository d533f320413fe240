//! A kernel around a few lines of PTX, for tests that are about those lines.

use std::sync::{Mutex, MutexGuard};

/// Tests that take or measure gigabytes run one at a time while they hold this.
pub fn much_memory() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A kernel of one buffer. `%a1` is its address, `%t` the thread, `%w` the thread times 4, `%s` that offset in the shared
/// `tile`, `%a2` that element of the buffer, `%n` the block; `own` is a local array.
pub fn kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p) {{\n\
         .shared .align 16 .b8 tile[8192];\n.local .align 16 .b8 own[64];\n.reg .b64 %a<9>;\n\
         .reg .b32 %r<20>, %t, %w, %s, %n;\n.reg .pred %p<4>;\n.reg .f32 %f<9>;\n\
         ld.param.u64 %a1, [p];\nmov.u32 %t, %tid.x;\nshl.b32 %w, %t, 2;\nmov.u32 %s, tile;\nadd.u32 %s, %s, %w;\n\
         mad.wide.u32 %a2, %t, 4, %a1;\nmov.u32 %n, %ctaid.x;\n// body\n{body}\nret;\n}}\n"
    )
}
