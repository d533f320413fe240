//! Seeded faults: each is found with the right kind at the right line, and its corrected twin is silent.
//!
//! The line that must be named carries the mark `// !`; where it depends on who comes first, each of them does. Kernels run with 64 threads per block (two warps) on a buffer of
//! 4096 bytes, of which the host has written the first 2048.

use engine::driver::emulator::FindingKind::{self, *};
use engine::driver::emulator::{DeviceFacts, Emulator, Finding, LaunchConfig, Params};

use super::body::kernel;

struct Seed {
    what: &'static str,
    kind: FindingKind,
    blocks: u32,
    faulty: &'static str,
    corrected: &'static str,
}

const fn seed(what: &'static str, kind: FindingKind, faulty: &'static str, corrected: &'static str) -> Seed {
    Seed { what, kind, blocks: 1, faulty, corrected }
}

impl Seed {
    const fn over(self, blocks: u32) -> Self {
        Self { blocks, ..self }
    }
}

const RACES: [Seed; 19] = [
    seed(
        "an exchange between warps without a barrier",
        SharedRace,
        "st.shared.u32 [%s], %t;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1]; // !
         st.global.u32 [%a2], %r2;",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];
         st.global.u32 [%a2], %r2;",
    ),
    seed(
        "an exchange within a warp that counts on lockstep",
        SharedRace,
        "st.shared.u32 [%s], %t;
         xor.b32 %r1, %w, 4;
         ld.shared.u32 %r2, [%r1]; // !",
        "st.shared.u32 [%s], %t;
         bar.warp.sync 0xffffffff;
         xor.b32 %r1, %w, 4;
         ld.shared.u32 %r2, [%r1];",
    ),
    seed(
        "a tile that is overwritten before slower readers are done",
        SharedRace,
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];
         st.shared.u32 [%s], %r2; // !",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];
         bar.sync 0;
         st.shared.u32 [%s], %r2;",
    ),
    seed(
        "a counter without atomics",
        SharedRace,
        "st.shared.u32 [%s], 0;
         bar.sync 0;
         ld.shared.u32 %r1, [tile];
         add.u32 %r1, %r1, 1;
         st.shared.u32 [tile], %r1; // !",
        "st.shared.u32 [%s], 0;
         bar.sync 0;
         atom.shared.add.u32 %r1, [tile], 1;",
    ),
    seed(
        "one place that all warps write",
        SharedRace,
        "st.shared.u32 [tile], %t; // !",
        "setp.eq.u32 %p1, %t, 0;
         @%p1 st.shared.u32 [tile], %t;",
    ),
    seed(
        "a barrier for each warp where one for the block is needed",
        SharedRace,
        "shr.u32 %r3, %t, 5;
         st.shared.u32 [%s], %t;
         bar.sync %r3, 32;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1]; // !",
        "st.shared.u32 [%s], %t;
         bar.sync 1, 64;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];",
    ),
    seed(
        "ldmatrix of rows that the other warp stores",
        SharedRace,
        "st.shared.u32 [%s], %t;
         xor.b32 %r1, %t, 32;
         and.b32 %r1, %r1, 39;
         shl.b32 %r1, %r1, 2;
         and.b32 %r1, %r1, 240;
         ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1]; // !",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         xor.b32 %r1, %t, 32;
         and.b32 %r1, %r1, 39;
         shl.b32 %r1, %r1, 2;
         and.b32 %r1, %r1, 240;
         ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];",
    ),
    seed(
        "a consumer that arrives where it should wait",
        SharedRace,
        "setp.lt.u32 %p1, %t, 32;
         @%p1 bra PRODUCE;
         bar.arrive 1, 64;
         ld.shared.u32 %r2, [%s+-128];
         st.global.u32 [%a2], %r2;
         bra DONE;
         PRODUCE:
         st.shared.u32 [%s], %t;
         bar.sync 1, 64;
         bar.warp.sync 0xffffffff;
         DONE:
         bar.sync 0;
         st.shared.u32 [tile], 0; // !",
        "setp.lt.u32 %p1, %t, 32;
         @%p1 bra PRODUCE;
         bar.sync 1, 64;
         ld.shared.u32 %r2, [%s+-128];
         st.global.u32 [%a2], %r2;
         bra DONE;
         PRODUCE:
         st.shared.u32 [%s], %t;
         bar.arrive 1, 64;
         DONE:
         bar.sync 0;
         setp.eq.u32 %p2, %t, 0;
         @%p2 st.shared.u32 [tile], 0;",
    ),
    seed(
        "data behind an mbarrier that nobody waits for",
        SharedRace,
        "setp.ne.u32 %p1, %t, 0;
         @%p1 bra READY;
         mbarrier.init.shared.b64 [tile+4096], 64;
         READY:
         bar.sync 0;
         st.shared.u32 [%s], %t; // !
         mbarrier.arrive.shared.b64 %a3, [tile+4096];
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1]; // !",
        "setp.ne.u32 %p1, %t, 0;
         @%p1 bra READY;
         mbarrier.init.shared.b64 [tile+4096], 64;
         READY:
         bar.sync 0;
         st.shared.u32 [%s], %t;
         mbarrier.arrive.shared.b64 %a3, [tile+4096];
         WAIT:
         mbarrier.test_wait.shared.b64 %p2, [tile+4096], %a3;
         @!%p2 bra WAIT;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];",
    ),
    seed(
        "a vector store over words that the neighbour stores",
        SharedRace,
        "and.b32 %r1, %w, -8;
         bar.warp.sync 0xffffffff;
         st.shared.u32 [%s], %t;
         st.shared.v2.u32 [%r1], {%t, %t}; // !",
        "and.b32 %r1, %w, -8;
         setp.ne.u32 %p1, %r1, %w;
         st.shared.u32 [%s], %t;
         bar.warp.sync 0xffffffff;
         @!%p1 st.shared.v2.u32 [%r1], {%t, %t};",
    ),
    seed(
        "two blocks that write the same place",
        GlobalRace,
        "st.global.u32 [%a2], %n; // !",
        "mad.wide.u32 %a2, %n, 256, %a2;
         st.global.u32 [%a2], %n;",
    )
    .over(2),
    seed(
        "a global sum without atomics",
        GlobalRace,
        "ld.global.u32 %r1, [%a1];
         st.global.u32 [%a1], %r1; // !",
        "atom.global.add.u32 %r1, [%a1], 1;",
    )
    .over(2),
    seed(
        "a flag that is stored without release",
        GlobalRace,
        "setp.ne.u32 %p1, %t, 0;
         @%p1 bra DONE;
         setp.ne.u32 %p2, %n, 0;
         @%p2 bra READ;
         st.global.u32 [%a1], 7;
         st.global.u32 [%a1+64], 1;
         bra DONE;
         READ:
         ld.acquire.gpu.global.u32 %r1, [%a1+64];
         setp.eq.u32 %p3, %r1, 0;
         @%p3 bra READ;
         ld.global.u32 %r2, [%a1]; // !
         DONE:",
        "setp.ne.u32 %p1, %t, 0;
         @%p1 bra DONE;
         setp.ne.u32 %p2, %n, 0;
         @%p2 bra READ;
         st.global.u32 [%a1], 7;
         st.release.gpu.global.u32 [%a1+64], 1;
         bra DONE;
         READ:
         ld.acquire.gpu.global.u32 %r1, [%a1+64];
         setp.eq.u32 %p3, %r1, 0;
         @%p3 bra READ;
         ld.global.u32 %r2, [%a1];
         DONE:",
    )
    .over(2),
    seed(
        "a flag that is released before its data",
        GlobalRace,
        "setp.ne.u32 %p1, %t, 0;
         @%p1 bra DONE;
         setp.ne.u32 %p2, %n, 0;
         @%p2 bra READ;
         st.release.gpu.global.u32 [%a1+64], 1;
         st.global.u32 [%a1], 7;
         bra DONE;
         READ:
         ld.acquire.gpu.global.u32 %r1, [%a1+64];
         setp.eq.u32 %p3, %r1, 0;
         @%p3 bra READ;
         ld.global.u32 %r2, [%a1]; // !
         DONE:",
        "setp.ne.u32 %p1, %t, 0;
         @%p1 bra DONE;
         setp.ne.u32 %p2, %n, 0;
         @%p2 bra READ;
         st.global.u32 [%a1], 7;
         st.release.gpu.global.u32 [%a1+64], 1;
         bra DONE;
         READ:
         ld.acquire.gpu.global.u32 %r1, [%a1+64];
         setp.eq.u32 %p3, %r1, 0;
         @%p3 bra READ;
         ld.global.u32 %r2, [%a1];
         DONE:",
    )
    .over(2),
    seed(
        "an exchange between warps through global memory",
        GlobalRace,
        "xor.b32 %r1, %t, 32;
         mad.wide.u32 %a3, %r1, 4, %a1;
         st.global.u32 [%a2], %t;
         ld.global.u32 %r2, [%a3]; // !",
        "xor.b32 %r1, %t, 32;
         mad.wide.u32 %a3, %r1, 4, %a1;
         st.global.u32 [%a2], %t;
         bar.sync 0;
         ld.global.u32 %r2, [%a3];",
    ),
    seed(
        "a sum that some add to and one resets",
        GlobalRace,
        "setp.lt.u32 %p1, %t, 32;
         setp.eq.u32 %p2, %t, 63;
         @%p1 red.global.add.u32 [%a1], 1; // !
         @%p2 st.global.u32 [%a1], 0; // !",
        "setp.lt.u32 %p1, %t, 32;
         setp.eq.u32 %p2, %t, 63;
         @%p1 red.global.add.u32 [%a1], 1;
         bar.sync 0;
         @%p2 st.global.u32 [%a1], 0;",
    ),
    seed(
        "a copy that was waited for, but by another thread",
        SharedRace,
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.commit_group;
         cp.async.wait_group 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1]; // !",
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.commit_group;
         cp.async.wait_group 0;
         bar.sync 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];",
    ),
    seed(
        "a copy into a tile that others still read",
        SharedRace,
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];
         cp.async.ca.shared.global [%s], [%a2], 4; // !",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];
         bar.sync 0;
         cp.async.ca.shared.global [%s], [%a2], 4;",
    ),
    seed(
        "a tree reduction whose steps are not apart",
        SharedRace,
        "st.shared.u32 [%s], %t;
         mov.u32 %r1, 32;
         STEP:
         setp.lt.u32 %p1, %t, %r1;
         shl.b32 %r2, %r1, 2;
         add.u32 %r2, %r2, %s;
         @%p1 ld.shared.u32 %r3, [%r2]; // !
         @%p1 st.shared.u32 [%s], %r3;
         shr.u32 %r1, %r1, 1;
         setp.ne.u32 %p2, %r1, 0;
         @%p2 bra STEP;",
        "st.shared.u32 [%s], %t;
         mov.u32 %r1, 32;
         STEP:
         bar.sync 0;
         setp.lt.u32 %p1, %t, %r1;
         shl.b32 %r2, %r1, 2;
         add.u32 %r2, %r2, %s;
         @%p1 ld.shared.u32 %r3, [%r2];
         @%p1 st.shared.u32 [%s], %r3;
         shr.u32 %r1, %r1, 1;
         setp.ne.u32 %p2, %r1, 0;
         @%p2 bra STEP;",
    ),
];

const UNWRITTEN: [Seed; 18] = [
    seed(
        "shared memory that nobody wrote",
        UninitialisedShared,
        "ld.shared.u32 %r1, [%s]; // !",
        "st.shared.u32 [%s], 1;
         ld.shared.u32 %r1, [%s];",
    ),
    seed(
        "a tile of which half was written",
        UninitialisedShared,
        "setp.lt.u32 %p1, %t, 32;
         @%p1 st.shared.u32 [%s], %t;
         bar.sync 0;
         ld.shared.u32 %r1, [%s]; // !",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         ld.shared.u32 %r1, [%s];",
    ),
    seed(
        "a shared counter that starts anywhere",
        UninitialisedShared,
        "red.shared.add.u32 [tile], 1; // !",
        "setp.eq.u32 %p1, %t, 0;
         @%p1 st.shared.u32 [tile], 0;
         bar.sync 0;
         red.shared.add.u32 [tile], 1;",
    ),
    seed(
        "ldmatrix of padding",
        UninitialisedShared,
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         and.b32 %r1, %t, 7;
         shl.b32 %r1, %r1, 6;
         ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1]; // !",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         and.b32 %r1, %t, 7;
         shl.b32 %r1, %r1, 4;
         ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];",
    ),
    seed(
        "global memory that neither host nor kernel wrote",
        UninitialisedGlobal,
        "ld.global.u32 %r1, [%a2+2048]; // !",
        "ld.global.u32 %r1, [%a2+1024];",
    ),
    seed(
        "global memory that is read before it is written",
        UninitialisedGlobal,
        "ld.global.u32 %r1, [%a2+2048]; // !
         st.global.u32 [%a2+2048], 1;",
        "st.global.u32 [%a2+2048], 1;
         ld.global.u32 %r1, [%a2+2048];",
    ),
    seed(
        "a vector load over the end of what was written",
        UninitialisedGlobal,
        "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%a1+2040+8];
         ld.global.v2.u32 {%r1,%r2}, [%a1+2048]; // !",
        "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%a1+2032];",
    ),
    seed(
        "a global counter that starts anywhere",
        UninitialisedGlobal,
        "red.global.add.u32 [%a1+4000], 1; // !",
        "red.global.add.u32 [%a1+1000], 1;",
    ),
    seed(
        "a local array of which an element was not written",
        UninitialisedLocal,
        "st.local.u32 [own], %t;
         ld.local.u32 %r1, [own+4]; // !
         st.global.u32 [%a2], %r1;",
        "st.local.u32 [own], %t;
         ld.local.u32 %r1, [own];
         st.global.u32 [%a2], %r1;",
    ),
    seed(
        "a sum with a register that was never written",
        UninitialisedRegister,
        "add.u32 %r1, %r2, %t; // !
         st.global.u32 [%a2], %r1;",
        "mov.u32 %r2, 5;
         add.u32 %r1, %r2, %t;
         st.global.u32 [%a2], %r1;",
    ),
    seed(
        "an accumulator that does not start from zero",
        UninitialisedRegister,
        "mov.u32 %r1, 0;
         ADD:
         add.f32 %f1, %f1, 0f3F800000; // !
         add.u32 %r1, %r1, 1;
         setp.lt.u32 %p1, %r1, 8;
         @%p1 bra ADD;
         st.global.f32 [%a2], %f1;",
        "mov.u32 %r1, 0;
         mov.f32 %f1, 0f00000000;
         ADD:
         add.f32 %f1, %f1, 0f3F800000;
         add.u32 %r1, %r1, 1;
         setp.lt.u32 %p1, %r1, 8;
         @%p1 bra ADD;
         st.global.f32 [%a2], %f1;",
    ),
    seed(
        "an address from an unwritten index",
        UninitialisedRegister,
        "mad.wide.u32 %a3, %r3, 4, %a1; // !
         ld.global.u32 %r1, [%a3];",
        "and.b32 %r3, %t, 7;
         mad.wide.u32 %a3, %r3, 4, %a1;
         ld.global.u32 %r1, [%a3];",
    ),
    seed(
        "a branch on an unwritten value",
        UninitialisedRegister,
        "setp.eq.u32 %p1, %r5, 0; // !
         @%p1 bra DONE;
         st.global.u32 [%a2], 1;
         DONE:",
        "ld.global.u32 %r5, [%a2];
         setp.eq.u32 %p1, %r5, 0;
         @%p1 bra DONE;
         st.global.u32 [%a2], 1;
         DONE:",
    ),
    seed(
        "a guard that was never set",
        UninitialisedRegister,
        "@%p3 st.global.u32 [%a2], 1; // !",
        "setp.lt.u32 %p3, %t, 9;
         @%p3 st.global.u32 [%a2], 1;",
    ),
    seed(
        "a register that is written on one side of a branch only",
        UninitialisedRegister,
        "setp.lt.u32 %p1, %t, 50;
         @%p1 mov.u32 %r1, 3;
         st.global.u32 [%a2], %r1; // !",
        "setp.lt.u32 %p1, %t, 50;
         mov.u32 %r1, 4;
         @%p1 mov.u32 %r1, 3;
         st.global.u32 [%a2], %r1;",
    ),
    seed(
        "half of a pair that was never written",
        UninitialisedRegister,
        "mov.b64 %a3, {%t, %r7};
         shr.u64 %a4, %a3, 3; // !
         st.global.u64 [%a1], %a4;",
        "mov.b64 %a3, {%t, %r7};
         mov.b64 {%r1, %r2}, %a3;
         st.global.u32 [%a2], %r1;",
    ),
    seed(
        "an unwritten value that went through local memory",
        UninitialisedRegister,
        "st.local.u32 [own+8], %r9; // !
         ld.local.u32 %r1, [own+8];
         add.u32 %r1, %r1, 1;
         st.global.u32 [%a2], %r1;",
        "st.local.u32 [own+8], %r9;
         st.local.u32 [own+8], %t;
         ld.local.u32 %r1, [own+8];
         add.u32 %r1, %r1, 1;
         st.global.u32 [%a2], %r1;",
    ),
    seed(
        "a selection of the unwritten side",
        UninitialisedRegister,
        "setp.lt.u32 %p1, %t, 9;
         selp.u32 %r1, %r2, %t, %p1; // !
         st.global.u32 [%a2], %r1;",
        "setp.lt.u32 %p1, %t, 90;
         selp.u32 %r1, %t, %r2, %p1;
         st.global.u32 [%a2], %r1;",
    ),
];

const COPIES: [Seed; 5] = [
    seed(
        "a copy that nobody waits for",
        UnwaitedCopy,
        "cp.async.ca.shared.global [%s], [%a2], 4;
         ld.shared.u32 %r1, [%s]; // !",
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.wait_all;
         ld.shared.u32 %r1, [%s];",
    ),
    seed(
        "a wait that leaves the group in flight that is read",
        UnwaitedCopy,
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.commit_group;
         cp.async.ca.shared.global [%s+256], [%a2+256], 4;
         cp.async.commit_group;
         cp.async.wait_group 1;
         ld.shared.u32 %r1, [%s];
         ld.shared.u32 %r2, [%s+256]; // !",
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.commit_group;
         cp.async.ca.shared.global [%s+256], [%a2+256], 4;
         cp.async.commit_group;
         cp.async.wait_group 1;
         ld.shared.u32 %r1, [%s];
         cp.async.wait_group 0;
         ld.shared.u32 %r2, [%s+256];",
    ),
    seed(
        "a barrier in place of a wait",
        UnwaitedCopy,
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.commit_group;
         bar.sync 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1]; // !",
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.commit_group;
         cp.async.wait_group 0;
         bar.sync 0;
         xor.b32 %r1, %w, 128;
         ld.shared.u32 %r2, [%r1];",
    ),
    seed(
        "a wait for groups, with a copy that is in none",
        UnwaitedCopy,
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.wait_group 0;
         ld.shared.u32 %r1, [%s]; // !",
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.commit_group;
         cp.async.wait_group 0;
         ld.shared.u32 %r1, [%s];",
    ),
    seed(
        "a store over a copy in flight",
        UnwaitedCopy,
        "cp.async.ca.shared.global [%s], [%a2], 4;
         st.shared.u32 [%s], 0; // !",
        "cp.async.ca.shared.global [%s], [%a2], 4;
         cp.async.wait_all;
         st.shared.u32 [%s], 0;",
    ),
];

const TOGETHER: [Seed; 9] = [
    seed(
        "a shuffle from a lane that another branch took away",
        InactiveLane,
        "and.b32 %r2, %t, 31;
         setp.ge.u32 %p1, %r2, 16;
         @%p1 bra DONE;
         shfl.sync.idx.b32 %r1, %t, 20, 31, 0xffff; // !
         st.global.u32 [%a2], %r1;
         DONE:",
        "and.b32 %r2, %t, 31;
         setp.ge.u32 %p1, %r2, 16;
         @%p1 bra DONE;
         shfl.sync.idx.b32 %r1, %t, 10, 31, 0xffff;
         st.global.u32 [%a2], %r1;
         DONE:",
    ),
    seed(
        "a shuffle from a lane that has exited",
        InactiveLane,
        "and.b32 %r2, %t, 31;
         setp.ge.u32 %p1, %r2, 16;
         @%p1 exit;
         shfl.sync.bfly.b32 %r1, %t, 16, 31, 0xffffffff; // !
         st.global.u32 [%a2], %r1;",
        "and.b32 %r2, %t, 31;
         setp.ge.u32 %p1, %r2, 16;
         shfl.sync.bfly.b32 %r1, %t, 16, 31, 0xffffffff;
         @%p1 exit;
         st.global.u32 [%a2], %r1;",
    ),
    seed(
        "a half-warp sum of which the upper lanes use what they read beyond it",
        InactiveLane,
        "and.b32 %r2, %t, 31;
         setp.ge.u32 %p1, %r2, 16;
         @%p1 bra DONE;
         shfl.sync.down.b32 %r1, %t, 8, 31, 0xffff; // !
         add.u32 %r1, %r1, %t;
         st.global.u32 [%a2], %r1;
         DONE:",
        "and.b32 %r2, %t, 31;
         setp.ge.u32 %p1, %r2, 16;
         @%p1 bra DONE;
         shfl.sync.down.b32 %r1, %t, 8, 31, 0xffff;
         add.u32 %r1, %r1, %t;
         setp.lt.u32 %p2, %r2, 8;
         @%p2 st.global.u32 [%a2], %r1;
         DONE:",
    ),
    seed(
        "a vote by a thread that its mask does not name",
        InactiveLane,
        "setp.lt.u32 %p1, %t, 5;
         vote.sync.ballot.b32 %r1, %p1, 0x0000ffff; // !",
        "setp.lt.u32 %p1, %t, 5;
         vote.sync.ballot.b32 %r1, %p1, 0xffffffff;",
    ),
    seed(
        "a reduction whose members are in another branch",
        InactiveLane,
        "setp.lt.u32 %p1, %t, 8;
         @%p1 bra FEW;
         redux.sync.add.u32 %r1, %t, 0xffffffff; // !
         bra DONE;
         FEW:
         redux.sync.add.u32 %r1, %t, 0xffffffff; // !
         DONE:",
        "setp.lt.u32 %p1, %t, 8;
         redux.sync.add.u32 %r1, %t, 0xffffffff;",
    ),
    seed(
        "tensor-core work by half a warp",
        InactiveLane,
        "mov.u32 %r1, 0;
         mov.f32 %f1, 0f00000000;
         setp.ge.u32 %p1, %t, 48;
         @%p1 exit;
         mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1,%f1,%f1,%f1}, {%r1,%r1}, {%r1}, {%f1,%f1,%f1,%f1}; // !",
        "mov.u32 %r1, 0;
         mov.f32 %f1, 0f00000000;
         setp.ge.u32 %p1, %t, 32;
         @%p1 exit;
         mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r1}, {%r1}, {%f1,%f1,%f1,%f1};",
    ),
    seed(
        "a barrier in a branch that a warp takes in part",
        BarrierDivergence,
        "setp.lt.u32 %p1, %t, 10;
         @%p1 bra A;
         bar.sync 0; // !
         bra B;
         A:
         bar.sync 0;
         B:",
        "setp.lt.u32 %p1, %t, 10;
         @%p1 bra A;
         add.u32 %r1, %t, 1;
         A:
         bar.sync 0;",
    ),
    seed(
        "warps that wait at different barriers",
        BarrierDivergence,
        "setp.lt.u32 %p1, %t, 32;
         @%p1 bra A;
         bar.sync 1; // !
         bra B;
         A:
         bar.sync 2; // !
         B:",
        "setp.lt.u32 %p1, %t, 32;
         @%p1 bra A;
         bar.sync 1, 32;
         bra B;
         A:
         bar.sync 2, 32;
         B:",
    ),
    seed("a barrier for more threads than come", BarrierDivergence, "bar.sync 0, 96; // !", "bar.sync 0, 64;"),
];

const WILD: [Seed; 7] = [
    seed("a store behind the buffer", OutOfBounds, "st.global.u32 [%a2+4000], 1; // !", "st.global.u32 [%a2+3840], 1;"),
    seed("a load before the buffer", OutOfBounds, "ld.global.u32 %r1, [%a2+-4]; // !", "ld.global.u32 %r1, [%a2];"),
    seed(
        "a store behind shared memory",
        OutOfBounds,
        "st.shared.u32 [%s+8000], 1; // !",
        "st.shared.u32 [%s+7936], 1;",
    ),
    seed("a local array that is too short", OutOfBounds, "st.local.u32 [own+64], 1; // !", "st.local.u32 [own+60], 1;"),
    seed(
        "a copy from behind the buffer",
        OutOfBounds,
        "cp.async.ca.shared.global [%s], [%a2+4096], 4; // !",
        "cp.async.ca.shared.global [%s], [%a2], 4;",
    ),
    seed("a word at an odd address", Misaligned, "ld.global.u32 %r1, [%a2+2]; // !", "ld.global.u32 %r1, [%a2+4];"),
    seed(
        "a vector at the address of a word",
        Misaligned,
        "st.shared.v4.u32 [%s], {%t,%t,%t,%t}; // !",
        "shl.b32 %r1, %t, 4;
         st.shared.v4.u32 [%r1], {%t,%t,%t,%t};",
    ),
];

fn sanitize(body: &str, blocks: u32) -> (String, Vec<Finding>) {
    let emulator = Emulator::new(DeviceFacts::default()).with_initialisation_tracking();
    let text = kernel(body);
    let module = emulator.load("k.ptx", &text).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.allocate(4096).unwrap();
    emulator.fill(data, &[0], 2048).unwrap();
    let config = LaunchConfig::new([blocks, 1, 1], [64, 1, 1]);
    let findings = emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1;
    (text, findings)
}

/// Lines with the mark, from 1.
fn marked_lines(text: &str) -> Vec<u32> {
    (1..).zip(text.lines()).filter(|(_, line)| line.ends_with("// !")).map(|(number, _)| number).collect()
}

fn check(seeds: &[Seed]) {
    for Seed { what, kind, blocks, faulty, corrected } in seeds {
        let (text, findings) = sanitize(faulty, *blocks);
        let lines = marked_lines(&text);
        let found = findings.iter().any(|finding| finding.kind == *kind && lines.contains(&finding.line));
        assert!(found, "{what}: not found at line {lines:?} of\n{text}\nbut {findings:#?}");
        let (text, findings) = sanitize(corrected, *blocks);
        assert!(findings.is_empty(), "{what}, corrected:\n{text}\n{findings:#?}");
    }
}

#[test]
fn races_are_found_and_their_corrections_silent() {
    check(&RACES);
}

#[test]
fn reads_of_what_nobody_wrote_are_found_where_they_matter() {
    check(&UNWRITTEN);
}

#[test]
fn copies_that_nobody_waited_for_are_found() {
    check(&COPIES);
}

#[test]
fn lanes_and_warps_that_are_not_together_are_found() {
    check(&TOGETHER);
}

#[test]
fn wild_addresses_are_found() {
    check(&WILD);
}

#[test]
fn a_use_after_free_is_named_as_such() {
    let emulator = Emulator::new(DeviceFacts::default());
    let text = kernel("ld.global.u32 %r1, [%a2]; // !");
    let module = emulator.load("k.ptx", &text).unwrap();
    let data = emulator.allocate(4096).unwrap();
    emulator.free(data).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [32, 1, 1]);
    let findings = emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1;
    assert_eq!(findings[0].kind, UseAfterFree);
    assert_eq!((findings[0].line, findings[0].thread), (marked_lines(&text)[0], [0, 0, 0]));
}

#[test]
fn a_finding_says_where_it_is() {
    let body = "setp.ne.u32 %p1, %t, 37;
        setp.ne.u32 %p2, %n, 1;
        or.pred %p1, %p1, %p2;
        @%p1 bra DONE;
        .loc 1 77 0
        ld.shared.u32 %r1, [tile+64]; // !
        .loc 1 78 0
        ld.global.u32 %r1, [%a1+8192];
        DONE:";
    let emulator = Emulator::new(DeviceFacts::default());
    let text = kernel(body) + "\n.file 1 \"tile.cu\"\n";
    let module = emulator.load("k.ptx", &text).unwrap();
    let data = emulator.allocate(4096).unwrap();
    let config = LaunchConfig::new([2, 1, 1], [64, 1, 1]);
    let findings = emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1;
    let [unwritten, outside] = findings.as_slice() else { panic!("{findings:#?}") };
    assert_eq!((unwritten.kind, unwritten.kernel.as_str()), (UninitialisedShared, "k"));
    assert_eq!((unwritten.block, unwritten.thread, unwritten.address), ([1, 0, 0], [37, 0, 0], 64));
    assert_eq!(
        (unwritten.line, unwritten.source.as_ref()),
        (marked_lines(&text)[0], Some(&("tile.cu".to_owned(), 77)))
    );
    assert_eq!((outside.kind, outside.block, outside.thread), (OutOfBounds, [1, 0, 0], [37, 0, 0]));
    assert_eq!((outside.address, outside.source.as_ref()), (data + 8192, Some(&("tile.cu".to_owned(), 78))));
}
