//! Accesses without order, and asynchronous copies that are touched before they are waited for.

use engine::driver::emulator::FindingKind::{GlobalRace, SharedRace, UnwaitedCopy};

use super::{Seed, seed};

pub(super) const RACES: [Seed; 20] = [
    seed(
        "a sum that is read before all have added to it",
        SharedRace,
        "setp.eq.u32 %p1, %t, 0;
         @%p1 st.shared.u32 [tile], 0;
         bar.sync 0;
         atom.shared.add.u32 %r1, [tile], 1; // !
         ld.shared.u32 %r2, [tile]; // !
         st.global.u32 [%a2], %r2;",
        "setp.eq.u32 %p1, %t, 0;
         @%p1 st.shared.u32 [tile], 0;
         bar.sync 0;
         atom.shared.add.u32 %r1, [tile], 1;
         bar.sync 0;
         ld.shared.u32 %r2, [tile];
         st.global.u32 [%a2], %r2;",
    ),
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

pub(super) const COPIES: [Seed; 5] = [
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

/// Meetings of threads that are no mistakes.
pub(super) const RIGHT: [(&str, &str); 3] = [
    (
        "the loop around atomicCAS that begins with a plain read",
        "ld.global.u32 %r1, [%a1];
         LOOP:
         add.u32 %r2, %r1, 3;
         mov.u32 %r3, %r1;
         atom.global.cas.b32 %r1, [%a1], %r3, %r2;
         setp.ne.u32 %p1, %r1, %r3;
         @%p1 bra LOOP;",
    ),
    (
        "two warps that write what both computed",
        "and.b32 %r1, %t, 31;
         mul.lo.u32 %r2, %r1, 5;
         shl.b32 %r1, %r1, 2;
         mov.u32 %r3, tile;
         add.u32 %r1, %r1, %r3;
         st.shared.u32 [%r1], %r2;
         bar.sync 0;
         ld.shared.u32 %r4, [%r1];
         st.global.u32 [%a2], %r4;",
    ),
    (
        "the same in a shared counter of 64 bits",
        "setp.eq.u32 %p1, %t, 0;
         @%p1 st.shared.u64 [tile], 0;
         bar.sync 0;
         ld.shared.u64 %a3, [tile];
         LOOP:
         add.u64 %a4, %a3, 1;
         mov.u64 %a5, %a3;
         atom.shared.cas.b64 %a3, [tile], %a5, %a4;
         setp.ne.u64 %p1, %a3, %a5;
         @%p1 bra LOOP;",
    ),
];
