//! Values that nobody wrote.

use engine::driver::emulator::FindingKind::{
    UninitialisedGlobal, UninitialisedLocal, UninitialisedRegister, UninitialisedShared,
};

use super::{Seed, seed};

/// What compilers and libraries do with what nobody wrote, and rightly.
pub(super) const RIGHT: [(&str, &str); 8] = [
    (
        "a structure of an int and a double in shared memory, copied word by word",
        "shl.b32 %r1, %t, 4;
         mov.u32 %r2, tile;
         add.u32 %r1, %r1, %r2;
         st.shared.u32 [%r1], %t;
         st.shared.u64 [%r1+8], %a1;
         bar.sync 0;
         shl.b32 %r3, %t, 4;
         cvt.u64.u32 %a3, %r3;
         add.u64 %a3, %a3, %a1;
         ld.shared.u32 %r4, [%r1];
         st.global.u32 [%a3], %r4;
         ld.shared.u32 %r4, [%r1+4];
         st.global.u32 [%a3+4], %r4;
         ld.shared.u32 %r4, [%r1+8];
         st.global.u32 [%a3+8], %r4;
         ld.shared.u32 %r4, [%r1+12];
         st.global.u32 [%a3+12], %r4;",
    ),
    (
        "the same in local memory",
        "st.local.u32 [own], %t;
         st.local.u64 [own+8], %a1;
         ld.local.u32 %r4, [own];
         st.global.u32 [%a2], %r4;
         ld.local.u32 %r4, [own+4];
         st.global.u32 [%a2+256], %r4;",
    ),
    (
        "a field that is set in a word which holds nothing yet",
        "ld.local.u32 %r1, [own];
         and.b32 %r1, %r1, -8;
         and.b32 %r2, %t, 7;
         or.b32 %r1, %r1, %r2;
         st.local.u32 [own], %r1;
         ld.local.u32 %r3, [own];
         and.b32 %r3, %r3, 7;
         st.global.u32 [%a2], %r3;",
    ),
    (
        "an element past the end that is loaded and not compared",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         ld.shared.u32 %r1, [%s+4];
         setp.lt.u32 %p1, %t, 63;
         setp.gt.u32 %p2, %r1, 5;
         and.pred %p3, %p1, %p2;
         selp.u32 %r2, 1, 0, %p3;
         st.global.u32 [%a2], %r2;",
    ),
    (
        "an element past the end that either way is as good",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         ld.shared.u32 %r1, [%s+4];
         setp.eq.u32 %p1, %t, 63;
         setp.gt.u32 %p2, %r1, 5;
         or.pred %p3, %p2, %p1;
         @%p3 st.global.u32 [%a2], %t;",
    ),
    (
        "bytes side by side with bytes that hold nothing",
        "prmt.b32 %r2, %t, %r1, 0x7610;
         and.b32 %r2, %r2, 0xffff;
         st.global.u32 [%a2], %r2;",
    ),
    (
        "a structure in shared memory with padding",
        "shl.b32 %r1, %t, 4;
         mov.u32 %r2, tile;
         add.u32 %r1, %r1, %r2;
         st.shared.u8 [%r1], %t;
         st.shared.u64 [%r1+8], %a1;
         ld.shared.v2.u64 {%a3, %a4}, [%r1];
         st.shared.v2.u64 [%r1+1024], {%a3, %a4};",
    ),
    (
        "copies of shared memory that nobody wrote, which nobody looks at",
        "ld.shared.u32 %r1, [%s+512];
         add.u32 %r1, %r1, 1;
         st.shared.u32 [%s], %r1;
         bar.sync 0;
         ld.shared.u32 %r2, [%s];
         st.shared.u32 [%s+1024], %r2;
         st.shared.u32 [%s], %t;
         ld.shared.u32 %r2, [%s];
         st.global.u32 [%a2], %r2;",
    ),
];

pub(super) const UNWRITTEN: [Seed; 21] = [
    seed(
        "a second element that was never written, and is loaded after others",
        UninitialisedShared,
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         ld.shared.u32 %r1, [%s];
         st.global.u32 [%a2], %r1;
         ld.shared.u32 %r2, [tile+260]; // !
         st.global.u32 [%a2], %r2;",
        "st.shared.u32 [%s], %t;
         st.shared.u32 [%s+256], %t;
         bar.sync 0;
         ld.shared.u32 %r1, [%s];
         st.global.u32 [%a2], %r1;
         ld.shared.u32 %r2, [tile+260];
         st.global.u32 [%a2], %r2;",
    ),
    seed(
        "a register that nobody wrote, through shared memory",
        UninitialisedRegister,
        "st.shared.u32 [%s], %r5; // !
         bar.sync 0;
         ld.shared.u32 %r1, [%s];
         st.global.u32 [%a2], %r1;",
        "mov.u32 %r5, %t;
         st.shared.u32 [%s], %r5;
         bar.sync 0;
         ld.shared.u32 %r1, [%s];
         st.global.u32 [%a2], %r1;",
    ),
    seed(
        "a counter that is a copy of shared memory that nobody wrote",
        UninitialisedShared,
        "ld.shared.u32 %r1, [%s+512]; // !
         st.shared.u32 [%s], %r1;
         bar.sync 0;
         atom.shared.add.u32 %r2, [%s], 1;",
        "st.shared.u32 [%s+512], 0;
         ld.shared.u32 %r1, [%s+512];
         st.shared.u32 [%s], %r1;
         bar.sync 0;
         atom.shared.add.u32 %r2, [%s], 1;",
    ),
    seed(
        "shared memory that nobody wrote",
        UninitialisedShared,
        "ld.shared.u32 %r1, [%s]; // !
         st.global.u32 [%a2], %r1;",
        "st.shared.u32 [%s], 1;
         ld.shared.u32 %r1, [%s];
         st.global.u32 [%a2], %r1;",
    ),
    seed(
        "a tile of which half was written",
        UninitialisedShared,
        "setp.lt.u32 %p1, %t, 32;
         @%p1 st.shared.u32 [%s], %t;
         bar.sync 0;
         ld.shared.u32 %r1, [%s]; // !
         st.global.u32 [%a2], %r1;",
        "st.shared.u32 [%s], %t;
         bar.sync 0;
         ld.shared.u32 %r1, [%s];
         st.global.u32 [%a2], %r1;",
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
