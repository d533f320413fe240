//! Counters against hand-computed values. (The sanitizer has its seeded faults in `faults`.)

use engine::driver::emulator::{Counters, DeviceFacts, Emulator, LaunchConfig, Params};

use super::body::kernel;

fn count(body: &str, threads: u32) -> Counters {
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &kernel(body)).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.allocate(1 << 20).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [threads, 1, 1]);
    emulator.launch_counted(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1
}

#[test]
fn coalescing_is_counted_in_sectors() {
    let sectors = |body: &str| {
        let c = count(body, 32);
        assert_eq!(c.global_load_requests, 1, "{body}");
        (c.global_load_sectors, c.dram_read_bytes)
    };
    assert_eq!(sectors("ld.global.u32 %r1, [%a2];"), (4, 128));
    assert_eq!(sectors("add.u64 %a2, %a2, 4;\nld.global.u32 %r1, [%a2];"), (5, 160));
    assert_eq!(sectors("ld.global.u32 %r1, [%a1];"), (1, 32));
    assert_eq!(sectors("mad.wide.u32 %a3, %t, 32, %a1;\nld.global.u32 %r1, [%a3];"), (32, 1024));
    assert_eq!(sectors("mad.wide.u32 %a3, %t, 8, %a1;\nld.global.u32 %r1, [%a3];"), (8, 256));
    assert_eq!(sectors("mad.wide.u32 %a3, %t, 16, %a1;\nld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%a3];"), (16, 512));
}

#[test]
fn stores_and_repeated_reads_count_their_unique_bytes_once() {
    let c = count("ld.global.u32 %r1, [%a2];\nld.global.u32 %r2, [%a2];\nst.global.u32 [%a2+4096], %r1;", 64);
    assert_eq!((c.global_load_requests, c.global_load_sectors, c.dram_read_bytes), (4, 16, 256));
    assert_eq!((c.global_store_requests, c.global_store_sectors, c.dram_write_bytes), (2, 8, 256));
}

#[test]
fn bank_conflicts_follow_the_stride() {
    let wavefronts = |body: &str| {
        let c = count(body, 32);
        (c.shared_wavefronts, c.shared_bank_conflicts)
    };
    assert_eq!(wavefronts("ld.shared.u32 %r1, [%s];"), (1, 0));
    assert_eq!(wavefronts("ld.shared.u32 %r1, [tile];"), (1, 0));
    assert_eq!(
        wavefronts("add.u32 %r1, %w, %w;\nmov.u32 %r2, tile;\nadd.u32 %r1, %r1, %r2;\nld.shared.u32 %r3, [%r1];"),
        (2, 1)
    );
    assert_eq!(wavefronts("shl.b32 %r1, %t, 7;\nld.shared.u32 %r3, [%r1];"), (32, 31));
    assert_eq!(wavefronts("mul.lo.u32 %r1, %t, 132;\nld.shared.u32 %r3, [%r1];"), (1, 0));
    assert_eq!(wavefronts("shl.b32 %r1, %t, 4;\nld.shared.v4.u32 {%r2,%r3,%r4,%r5}, [%r1];"), (4, 0));
    // An XOR swizzle makes a column walk conflict-free again.
    assert_eq!(wavefronts("shl.b32 %r1, %t, 7;\nxor.b32 %r1, %r1, %w;\nld.shared.u32 %r3, [%r1];"), (1, 0));
}

#[test]
fn instructions_branches_barriers_and_tensor_work_are_counted() {
    let plain = count("", 32);
    // The body's frame: ld.param, mov, shl, mov, add, mad, mov, ret.
    assert_eq!((plain.warp_instructions, plain.thread_instructions), (8, 256));
    let c = count("setp.lt.u32 %p1, %t, 10;\n@%p1 bra A;\nadd.u32 %r1, %t, 1;\nA:\nbar.sync 0;", 64);
    // Two warps: the first diverges, the second jumps over nothing.
    assert_eq!(c.divergent_branches, 1);
    assert_eq!(c.barriers, 2);
    assert_eq!(c.opcodes["add.u32"], 2 + 2);
    assert_eq!(c.thread_instructions, 2 * 256 + 64 + 10 + 54 + 64);
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};";
    assert_eq!(count(mma, 64).tensor_core_flops, 2 * 4096);
}
