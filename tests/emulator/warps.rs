//! Instructions on lanes and warps together, and control flow, against plain loops.

use engine::driver::emulator::{DeviceFacts, Emulator, LaunchConfig, Params};

/// Runs `body` on `threads` threads and returns `words` 32-bit results of each, which it stores at `[%o]` and on. `%v` is
/// the thread's input; `before` stands in front of the kernel (functions).
fn run_with(before: &str, body: &str, threads: usize, words: usize, input: impl Fn(usize) -> u32) -> Vec<Vec<u32>> {
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n{before}\n.visible .entry k(.param .u64 p, .param .u64 q) {{\n\
         .shared .align 16 .b8 tile[8192];\n.reg .b64 %a<9>, %o;\n.reg .b32 %r<20>, %t, %l, %w, %v, %s;\n\
         .reg .pred %p<9>;\n.reg .b16 %h<5>;\n\
         mov.u32 %t, %tid.x;\nmov.u32 %l, %laneid;\nshr.u32 %w, %t, 5;\nld.param.u64 %a1, [p];\n\
         mad.wide.u32 %a1, %t, 4, %a1;\nld.global.u32 %v, [%a1];\nmov.u32 %s, tile;\nmad.lo.u32 %s, %t, 4, %s;\n\
         ld.param.u64 %o, [q];\nmad.wide.u32 %o, %t, {}, %o;\n{body}\nret;\n}}\n",
        4 * words
    );
    let emulator = Emulator::new(DeviceFacts::default()).with_budget(10_000_000);
    let module = emulator.load("k.ptx", &text).unwrap_or_else(|error| panic!("{body}: {error}"));
    let values: Vec<u32> = (0..threads).map(&input).collect();
    let (p, q) = (emulator.upload(&values).unwrap(), emulator.upload(&vec![0xDEAD_BEEFu32; threads * words]).unwrap());
    let config = LaunchConfig::new([1, 1, 1], [threads as u32, 1, 1]);
    emulator
        .launch(&module, "k", config, Params::new().u64(p).u64(q).as_bytes())
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    emulator.download::<u32>(q, threads * words).unwrap().chunks(words).map(<[u32]>::to_vec).collect()
}

fn run(body: &str, threads: usize, words: usize, input: impl Fn(usize) -> u32) -> Vec<Vec<u32>> {
    run_with("", body, threads, words, input)
}

fn hash(index: usize) -> u32 {
    let x = (index as u32).wrapping_mul(0x9E37_79B9) ^ 0x1234_5678;
    (x ^ (x >> 15)).wrapping_mul(0x85EB_CA6B)
}

#[test]
fn shuffles_follow_the_manuals_pseudocode() {
    for (mode, index) in [("up", 0), ("down", 1), ("bfly", 2), ("idx", 3)] {
        for b in [0u32, 1, 3, 5, 16, 31] {
            for c in [0u32, 0x1F, 0x181F, 0x1C1F, 0x0707, 0x1800, 0x1E00, 0x0012] {
                let body = format!(
                    "shfl.sync.{mode}.b32 %r1|%p1, %v, {b}, {c}, 0xffffffff;\nselp.u32 %r2, 1, 0, %p1;\n\
                     st.global.v2.u32 [%o], {{%r1, %r2}};"
                );
                let got = run(&body, 32, 2, hash);
                for lane in 0..32i64 {
                    let (bval, cval, mask) = (i64::from(b & 31), i64::from(c & 31), i64::from(c >> 8 & 31));
                    let max_lane = (lane & mask) | (cval & !mask);
                    let min_lane = lane & mask;
                    let (j, in_range) = match index {
                        0 => (lane - bval, lane - bval >= max_lane),
                        1 => (lane + bval, lane + bval <= max_lane),
                        2 => (lane ^ bval, (lane ^ bval) <= max_lane),
                        _ => {
                            let j = min_lane | (bval & !mask);
                            (j, j <= max_lane)
                        }
                    };
                    let source = if in_range { j } else { lane };
                    let expected = vec![hash(source as usize), u32::from(in_range)];
                    assert_eq!(got[lane as usize], expected, "{mode} b {b} c {c:#x} lane {lane}");
                }
            }
        }
    }
}

#[test]
fn warp_reductions_votes_and_matches_over_member_masks() {
    // Two masks at once: the lower and the upper half of the warp, each with its own.
    let split = "setp.lt.u32 %p7, %l, 13;\nselp.b32 %r9, 0x1fff, 0xffffe000, %p7;\n";
    let members = |lane: usize| if lane < 13 { 0..13usize } else { 13..32 };
    type Fold = fn(u32, u32) -> u32;
    let folds: [(&str, Fold); 9] = [
        ("add.u32", |a, b| a.wrapping_add(b)),
        ("add.s32", |a, b| a.wrapping_add(b)),
        ("min.u32", u32::min),
        ("max.u32", u32::max),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
    ];
    for (name, fold) in folds {
        let got = run(&format!("{split}redux.sync.{name} %r1, %v, %r9;\nst.global.u32 [%o], %r1;"), 32, 1, hash);
        for (lane, got) in got.iter().enumerate() {
            assert_eq!(got[0], members(lane).map(hash).reduce(fold).unwrap(), "{name} lane {lane}");
        }
    }
    for threshold in [0u32, 7, 100] {
        let body = format!(
            "{split}setp.ge.u32 %p1, %l, {threshold};\nvote.sync.ballot.b32 %r1, %p1, %r9;\n\
             vote.sync.all.pred %p2, %p1, %r9;\nvote.sync.any.pred %p3, %p1, %r9;\nvote.sync.uni.pred %p4, %p1, %r9;\n\
             vote.sync.all.pred %p5, !%p1, %r9;\n\
             selp.u32 %r2, 1, 0, %p2;\nselp.u32 %r3, 2, 0, %p3;\nselp.u32 %r4, 4, 0, %p4;\nselp.u32 %r5, 8, 0, %p5;\n\
             or.b32 %r2, %r2, %r3;\nor.b32 %r4, %r4, %r5;\nor.b32 %r2, %r2, %r4;\nst.global.v2.u32 [%o], {{%r1, %r2}};"
        );
        for (lane, got) in run(&body, 32, 2, hash).iter().enumerate() {
            let votes: Vec<bool> = members(lane).map(|lane| lane as u32 >= threshold).collect();
            let ballot = members(lane).filter(|&lane| lane as u32 >= threshold).fold(0, |b, lane| b | 1u32 << lane);
            let (all, any) = (votes.iter().all(|&v| v), votes.iter().any(|&v| v));
            let flags = u32::from(all) + 2 * u32::from(any) + 4 * u32::from(all || !any) + 8 * u32::from(!any);
            assert_eq!(*got, [ballot, flags], "threshold {threshold} lane {lane}");
        }
    }
    let few = |index: usize| hash(index) % 3;
    let body = format!(
        "{split}match.any.sync.b32 %r1, %v, %r9;\ncvt.u64.u32 %a3, %v;\nshl.b64 %a3, %a3, 33;\n\
         match.any.sync.b64 %r2, %a3, %r9;\nmatch.all.sync.b32 %r3|%p1, %v, %r9;\nmatch.all.sync.b32 %r4|%p2, %w, %r9;\n\
         selp.u32 %r5, 1, 0, %p1;\nselp.u32 %r6, 2, 0, %p2;\nor.b32 %r5, %r5, %r6;\n\
         st.global.u32 [%o], %r1;\nst.global.u32 [%o+4], %r2;\nst.global.u32 [%o+8], %r3;\nst.global.u32 [%o+12], %r4;\n\
         st.global.u32 [%o+16], %r5;"
    );
    for (lane, got) in run(&body, 32, 5, few).iter().enumerate() {
        let alike = members(lane).filter(|&other| few(other) == few(lane)).fold(0, |mask, other| mask | 1u32 << other);
        let whole = members(lane).fold(0, |mask, other| mask | 1u32 << other);
        assert_eq!(*got, [alike, alike, 0, whole, 2], "lane {lane}");
    }
    let body = format!(
        "{split}elect.sync %r1|%p1, %r9;\nselp.u32 %r2, 1, 0, %p1;\nsetp.ge.u32 %p2, %l, 5;\n@!%p2 bra LOW;\n\
         activemask.b32 %r3;\nLOW:\nbar.warp.sync 0xffffffff;\n@!%p2 mov.u32 %r3, 0;\nst.global.u32 [%o], %r1;\n\
         st.global.u32 [%o+4], %r2;\nst.global.u32 [%o+8], %r3;"
    );
    for (lane, got) in run(&body, 32, 3, hash).iter().enumerate() {
        let leader = members(lane).start as u32;
        let active = if lane >= 5 { 0xFFFF_FFE0 } else { 0 };
        assert_eq!(*got, [leader, u32::from(lane as u32 == leader), active], "lane {lane}");
    }
}

#[test]
fn barrier_reductions_count_and_combine_over_the_block() {
    // 100 threads: the last warp is not full.
    for (limit, of) in [(0u32, 100u32), (37, 100), (100, 100)] {
        let body = format!(
            "setp.lt.u32 %p1, %t, {limit};\nbar.red.popc.u32 %r1, 0, %p1;\nbar.red.popc.u32 %r2, 0, !%p1;\n\
             bar.red.and.pred %p2, 1, %p1;\nbarrier.cta.red.or.aligned.pred %p3, 1, 128, %p1;\n\
             selp.u32 %r3, 1, 0, %p2;\nselp.u32 %r4, 2, 0, %p3;\nor.b32 %r3, %r3, %r4;\n\
             st.global.u32 [%o], %r1;\nst.global.u32 [%o+4], %r2;\nst.global.u32 [%o+8], %r3;"
        );
        let flags = u32::from(limit == of) + 2 * u32::from(limit > 0);
        assert_eq!(run(&body, of as usize, 3, hash), vec![vec![limit, of - limit, flags]; of as usize]);
    }
}

#[test]
fn barriers_with_thread_counts_join_the_warps_that_they_name() {
    // Pairs of warps exchange through barriers of their own; a warp that is not full counts as 32.
    let body = "shr.u32 %r1, %w, 1;\nadd.u32 %r1, %r1, 3;\nst.shared.u32 [%s], %v;\nbarrier.cta.sync.aligned %r1, 64;\n\
                xor.b32 %r2, %t, 32;\nmin.u32 %r2, %r2, 119;\nmov.u32 %r3, tile;\nmad.lo.u32 %r3, %r2, 4, %r3;\n\
                ld.shared.u32 %r4, [%r3];\nst.global.u32 [%o], %r4;";
    for (thread, got) in run(body, 120, 1, hash).iter().enumerate() {
        assert_eq!(got[0], hash((thread ^ 32).min(119)), "{thread}");
    }
    // Producer and consumer: one warp arrives and goes on, the other waits.
    let body = "setp.ne.u32 %p1, %w, 0;\n@%p1 bra CONSUME;\nst.shared.u32 [%s], %v;\nbarrier.cta.arrive 5, 64;\n\
                st.global.u32 [%o], 1;\nbarrier.cta.sync 6, 64;\nld.shared.u32 %r1, [%s+1024];\nst.global.u32 [%o], %r1;\n\
                bra DONE;\nCONSUME:\nbarrier.cta.sync 5, 64;\nld.shared.u32 %r2, [%s+-128];\nadd.u32 %r2, %r2, 1;\n\
                st.shared.u32 [%s+896], %r2;\nbarrier.cta.arrive 6, 64;\nst.global.u32 [%o], %r2;\nDONE:";
    for (thread, got) in run(body, 64, 1, hash).iter().enumerate() {
        assert_eq!(got[0], hash(thread % 32).wrapping_add(1), "{thread}");
    }
    // Threads that have exited are not waited for.
    let body = "setp.ge.u32 %p1, %t, 40;\nst.global.u32 [%o], 7;\n@%p1 exit;\nst.shared.u32 [%s], %v;\nbar.sync 0;\n\
                sub.u32 %r1, 39, %t;\nmov.u32 %r3, tile;\nmad.lo.u32 %r3, %r1, 4, %r3;\nld.shared.u32 %r2, [%r3];\n\
                st.global.u32 [%o], %r2;";
    for (thread, got) in run(body, 96, 1, hash).iter().enumerate() {
        assert_eq!(got[0], if thread < 40 { hash(39 - thread) } else { 7 }, "{thread}");
    }
    // Without .aligned, lanes may come to a barrier by different ways.
    let body = "setp.lt.u32 %p1, %l, 11;\nst.shared.u32 [%s], %v;\n@%p1 bra OTHER;\nbarrier.sync 0;\nbra JOIN;\n\
                OTHER:\nbarrier.sync 0;\nJOIN:\nxor.b32 %r1, %t, 63;\nmov.u32 %r3, tile;\nmad.lo.u32 %r3, %r1, 4, %r3;\n\
                ld.shared.u32 %r2, [%r3];\nst.global.u32 [%o], %r2;";
    for (thread, got) in run(body, 64, 1, hash).iter().enumerate() {
        assert_eq!(got[0], hash(63 - thread), "{thread}");
    }
}

#[test]
fn mbarriers_count_phases() {
    let init = "setp.eq.u32 %p8, %t, 0;\n@%p8 mbarrier.init.shared.b64 [tile], 3;\nbar.sync 0;\n@!%p8 bra DONE;\n";
    let test =
        |wait: &str, d: u32| format!("mbarrier.{wait}\nselp.u32 %r1, 1, 0, %p1;\nst.global.u32 [%o+{}], %r1;\n", 4 * d);
    // One thread makes all arrivals: pending counts and phases step by step.
    let body = [
        init,
        &test("test_wait.parity.shared.b64 %p1, [tile], 0;", 0),
        &test("test_wait.parity.shared.b64 %p1, [tile], 1;", 1),
        "mbarrier.arrive.shared.b64 %a3, [tile];\nmbarrier.pending_count.b64 %r2, %a3;\nst.global.u32 [%o+8], %r2;\n",
        "mbarrier.arrive.noComplete.shared.b64 %a4, [tile], 1;\nmbarrier.pending_count.b64 %r2, %a4;\nst.global.u32 [%o+12], %r2;\n",
        &test("test_wait.shared.b64 %p1, [tile], %a3;", 4),
        "mbarrier.arrive.release.cta.shared::cta.b64 %a5, [tile], 1;\n",
        &test("test_wait.acquire.cta.shared::cta.b64 %p1, [tile], %a3;", 5),
        &test("test_wait.parity.shared.b64 %p1, [tile], 0;", 6),
        &test("try_wait.parity.shared.b64 %p1, [tile], 1;", 7),
        // Second phase: one participant drops out, so that the third needs two arrivals only.
        "mbarrier.arrive_drop.shared.b64 %a3, [tile];\nmbarrier.arrive.shared.b64 %a4, [tile], 2;\n",
        &test("test_wait.parity.shared.b64 %p1, [tile], 1;", 8),
        "mbarrier.arrive.shared.b64 %a3, [tile], 2;\n",
        &test("test_wait.shared.b64 %p1, [tile], %a3;", 9),
        "mbarrier.inval.shared.b64 [tile];\nmbarrier.init.shared.b64 [tile], 1;\n",
        &test("test_wait.parity.shared.b64 %p1, [tile], 0;", 10),
        "mbarrier.arrive.shared.b64 _, [tile];\n",
        &test("test_wait.parity.shared.b64 %p1, [tile], 0;", 11),
        "DONE:",
    ]
    .concat();
    assert_eq!(run(&body, 32, 12, hash)[0], [0, 1, 3, 2, 0, 1, 1, 0, 1, 1, 0, 1]);
    // All threads of a block pass data through it, round after round.
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra READY;\nmbarrier.init.shared.b64 [tile+4096], 96;\nREADY:\nbar.sync 0;\n\
                mov.u32 %r1, 0;\nmov.u32 %r9, %v;\nROUND:\nst.shared.u32 [%s], %r9;\nmbarrier.arrive.shared.b64 %a3, [tile+4096];\n\
                and.b32 %r2, %r1, 1;\nWAIT:\nmbarrier.try_wait.parity.shared.b64 %p2, [tile+4096], %r2;\n@!%p2 bra WAIT;\n\
                add.u32 %r3, %t, 1;\nrem.u32 %r3, %r3, 96;\nmov.u32 %r4, tile;\nmad.lo.u32 %r4, %r3, 4, %r4;\n\
                ld.shared.u32 %r9, [%r4];\nbar.sync 1;\nadd.u32 %r1, %r1, 1;\nsetp.lt.u32 %p3, %r1, 7;\n@%p3 bra ROUND;\n\
                st.global.u32 [%o], %r9;";
    for (thread, got) in run(body, 96, 1, hash).iter().enumerate() {
        assert_eq!(got[0], hash((thread + 7) % 96), "{thread}");
    }
    // Copies report to it.
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra READY;\nmbarrier.init.shared.b64 [tile+4096], 64;\nREADY:\nbar.sync 0;\n\
                cp.async.ca.shared.global [%s], [%a1], 4;\ncp.async.mbarrier.arrive.noinc.shared.b64 [tile+4096];\n\
                WAIT:\nmbarrier.test_wait.parity.shared.b64 %p2, [tile+4096], 0;\n@!%p2 bra WAIT;\n\
                sub.u32 %r3, 63, %t;\nmov.u32 %r4, tile;\nmad.lo.u32 %r4, %r3, 4, %r4;\nld.shared.u32 %r9, [%r4];\n\
                st.global.u32 [%o], %r9;";
    for (thread, got) in run(body, 64, 1, hash).iter().enumerate() {
        assert_eq!(got[0], hash(63 - thread), "{thread}");
    }
}

#[test]
fn indexed_branches_calls_and_recursion() {
    let body = "and.b32 %r1, %v, 3;\nmov.u32 %r2, 0;\nLIST: .branchtargets L0, L1, L2, L3;\nbrx.idx %r1, LIST;\n\
                L0:\nmov.u32 %r2, 10;\nbra JOIN;\nL1:\nmul.lo.u32 %r2, %t, 3;\nbra JOIN;\nL2:\nadd.u32 %r2, %t, 1000;\n\
                L3:\nadd.u32 %r2, %r2, 5;\nJOIN:\nshfl.sync.idx.b32 %r3, %r2, 0, 31, 0xffffffff;\n\
                st.global.v2.u32 [%o], {%r2, %r3};";
    let value = |thread: usize| match hash(thread) & 3 {
        0 => 10,
        1 => 3 * thread as u32,
        2 => thread as u32 + 1005,
        _ => 5,
    };
    for (thread, got) in run(body, 64, 2, hash).iter().enumerate() {
        assert_eq!(*got, [value(thread), value(thread / 32 * 32)], "{thread}");
    }
    // Ackermann-like recursion of different depth per lane, by .param and by .reg parameters, with a local variable.
    let functions = ".func (.param .b32 result) depth(.param .b32 n) {\n.reg .b32 %r<6>;\n.reg .pred %p;\n.local .b32 kept;\n\
                     ld.param.u32 %r1, [n];\nst.local.u32 [kept], %r1;\nsetp.eq.u32 %p, %r1, 0;\n@%p bra BASE;\n\
                     sub.u32 %r2, %r1, 1;\n{ .param .b32 in; .param .b32 out; st.param.b32 [in], %r2;\n\
                     call (out), depth, (in);\nld.param.b32 %r3, [out]; }\nld.local.u32 %r4, [kept];\n\
                     mad.lo.u32 %r3, %r3, 3, %r4;\nst.param.b32 [result], %r3;\nret;\nBASE:\nst.param.b32 [result], 1;\nret;\n}\n\
                     .func (.reg .b32 %sum) twice(.reg .b32 %x, .reg .b32 %y) {\nmad.lo.u32 %sum, %x, 2, %y;\nret;\n}";
    let body = "and.b32 %r1, %v, 15;\n{ .param .b32 in; .param .b32 out; st.param.b32 [in], %r1;\ncall (out), depth, (in);\n\
                ld.param.b32 %r2, [out]; }\nsetp.lt.u32 %p1, %t, 20;\n@%p1 call (%r3), twice, (%r2, %t);\n\
                @!%p1 mov.u32 %r3, 0;\nst.global.v2.u32 [%o], {%r2, %r3};";
    fn depth(n: u32) -> u32 {
        if n == 0 { 1 } else { depth(n - 1).wrapping_mul(3).wrapping_add(n) }
    }
    for (thread, got) in run_with(functions, body, 64, 2, hash).iter().enumerate() {
        let deep = depth(hash(thread) & 15);
        let doubled = if thread < 20 { deep.wrapping_mul(2).wrapping_add(thread as u32) } else { 0 };
        assert_eq!(*got, [deep, doubled], "{thread}");
    }
}
