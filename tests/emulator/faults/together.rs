//! Lanes and warps that are not together where they must be, and wild addresses.

use engine::driver::emulator::FindingKind::{BarrierDivergence, InactiveLane, Misaligned, OutOfBounds};

use super::{Seed, seed};

pub(super) const TOGETHER: [Seed; 9] = [
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

pub(super) const WILD: [Seed; 7] = [
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
