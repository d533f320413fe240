//! atom and red in all operations, widths, spaces and vector forms, against a sequential loop in lane order.

use engine::driver::emulator::{DeviceFacts, Emulator, LaunchConfig, Params};

use super::reference::{BF16, F16, Format, Mode, sum};

/// One warp: its lanes take their turns in order.
const THREADS: usize = 32;

fn hash(index: usize) -> u64 {
    let x = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

struct Case {
    /// With its modifiers after the space, for example `add.u32`.
    operation: String,
    /// Bytes of an element, elements of a vector.
    bytes: usize,
    count: usize,
    /// Spelling of the vector modifier, if any.
    vector: &'static str,
    start: u64,
    operand: fn(usize) -> u64,
}

/// Runs the operation in each thread on one place, in global and shared memory, as atom and as red; every thread's old
/// value and the end must be those of a loop. `next` gives the new value of an element from the old one and the operand.
fn check(case: &Case, is_compare: bool, has_red: bool, next: impl Fn(u64, u64) -> u64) {
    let Case { operation, bytes, count, vector, start, operand } = case;
    let bits = 8 * bytes;
    let ty = if bits == 16 { ".b16" } else { &format!(".b{bits}") };
    let mask = if *bytes == 8 { u64::MAX } else { (1 << bits) - 1 };
    let list = |prefix: &str| {
        let names: Vec<String> = (0..*count).map(|element| format!("%{prefix}{element}")).collect();
        if *count == 1 { names.concat() } else { format!("{{{}}}", names.join(", ")) }
    };
    let spaces: &[&str] = if *count > 1 {
        &["global", ""]
    } else {
        &["global", "shared", "", "relaxed.gpu.global", "acq_rel.sys.global", "release.cta.shared"]
    };
    for space in spaces {
        for opcode in if has_red && !space.starts_with("acq") { &["atom", "red"][..] } else { &["atom"] } {
            let dot = if space.is_empty() { String::new() } else { format!(".{space}") };
            let is_shared = space.ends_with("shared");
            let place = if is_shared { "[tile]" } else { "[%a1]" };
            let compare = if is_compare { format!("{}, ", start & mask) } else { String::new() };
            let result = if *opcode == "atom" { format!("{}, ", list("d")) } else { String::new() };
            let vector = if vector.is_empty() { String::new() } else { format!(".{vector}") };
            let (name, tail) = operation.rsplit_once('.').unwrap_or((operation, ""));
            let mut text = format!(
                ".version 8.1\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u64 q, .param .u64 r) {{\n\
                 .shared .align 16 .b8 tile[64];\n.reg .b64 %a<9>;\n.reg .b32 %t;\n.reg {ty} %d<8>, %b<8>, %x;\n.reg .pred %p;\n\
                 ld.param.u64 %a1, [p];\nld.param.u64 %a2, [q];\nld.param.u64 %a3, [r];\nmov.u32 %t, %tid.x;\n\
                 mad.wide.u32 %a2, %t, {0}, %a2;\nmad.wide.u32 %a3, %t, {0}, %a3;\n",
                bytes * count
            );
            for element in 0..*count {
                text += &format!("ld.global.b{bits} %b{element}, [%a2+{}];\n", element * bytes);
            }
            if is_shared {
                text += &format!(
                    "ld.global.b{bits} %x, [%a1];\nsetp.eq.u32 %p, %t, 0;\n@%p st.shared.b{bits} [tile], %x;\nbar.sync 0;\n"
                );
            }
            text += &format!("{opcode}{dot}.{name}{vector}.{tail} {result}{place}, {compare}{};\n", list("b"));
            if *opcode == "atom" {
                for element in 0..*count {
                    text += &format!("st.global.b{bits} [%a3+{}], %d{element};\n", element * bytes);
                }
            }
            if is_shared {
                text += &format!("bar.sync 0;\nld.shared.b{bits} %x, [tile];\nst.global.b{bits} [%a1], %x;\n");
            }
            text += "ret;\n}\n";
            let emulator = Emulator::new(DeviceFacts::default());
            let module = emulator.load("atom.ptx", &text).unwrap_or_else(|error| panic!("{text}\n{error}"));
            let pack =
                |values: &[u64]| values.iter().flat_map(|v| v.to_le_bytes()[..*bytes].to_vec()).collect::<Vec<u8>>();
            let operands: Vec<u64> = (0..THREADS * count).map(operand).collect();
            let p = emulator.upload(&pack(&vec![*start; *count])).unwrap();
            let q = emulator.upload(&pack(&operands)).unwrap();
            let r = emulator.upload(&vec![0u8; THREADS * count * bytes]).unwrap();
            let config = LaunchConfig::new([1, 1, 1], [THREADS as u32, 1, 1]);
            emulator.launch(&module, "k", config, Params::new().u64(p).u64(q).u64(r).as_bytes()).unwrap();
            let unpack = |address: u64, count: usize| -> Vec<u64> {
                let packed = emulator.download::<u8>(address, count * bytes).unwrap();
                packed
                    .chunks(*bytes)
                    .map(|chunk| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
                    .collect()
            };
            let (end, olds) = (unpack(p, *count), unpack(r, THREADS * count));
            let mut value = vec![start & mask; *count];
            for thread in 0..THREADS {
                for (element, value) in value.iter_mut().enumerate() {
                    let index = thread * count + element;
                    if *opcode == "atom" {
                        assert_eq!(olds[index], *value, "{opcode}{dot}.{operation} thread {thread} element {element}");
                    }
                    *value = next(*value, operands[index] & mask) & mask;
                }
            }
            assert_eq!(end, value, "{opcode}{dot}.{operation}");
        }
    }
}

fn scalar(operation: &str, bytes: usize, start: u64, operand: fn(usize) -> u64) -> Case {
    Case { operation: operation.into(), bytes, count: 1, vector: "", start, operand }
}

#[test]
fn integers_of_both_widths() {
    type Next = fn(u64, u64) -> u64;
    let both: [(&str, Next); 3] = [("add.u", |a, b| a.wrapping_add(b)), ("min.u", u64::min), ("max.u", u64::max)];
    for (name, next) in both {
        for bits in [32usize, 64] {
            check(&scalar(&format!("{name}{bits}"), bits / 8, 1 << (bits - 2), hash), false, true, next);
        }
    }
    for (name, is_least) in [("min.s", true), ("max.s", false)] {
        for bits in [32u32, 64] {
            let signed = move |x: u64| (x << (64 - bits)) as i64 >> (64 - bits);
            let next = move |a, b| {
                if is_least { signed(a).min(signed(b)) as u64 } else { signed(a).max(signed(b)) as u64 }
            };
            check(&scalar(&format!("{name}{bits}"), bits as usize / 8, 5, hash), false, true, next);
        }
    }
    check(&scalar("add.s32", 4, 5, hash), false, true, |a, b| a.wrapping_add(b));
    let bitwise: [(&str, u64, Next); 3] =
        [("and.b", u64::MAX, |a, b| a & (b | 0xF0F0)), ("or.b", 0, |a, b| a | b), ("xor.b", 9, |a, b| a ^ b)];
    for (name, start, next) in bitwise {
        for bits in [32usize, 64] {
            let operand = if name == "and.b" { |index| hash(index) | 0xF0F0 } else { hash as fn(usize) -> u64 };
            check(&scalar(&format!("{name}{bits}"), bits / 8, start, operand), false, true, next);
        }
    }
    for bits in [32usize, 64] {
        check(&scalar(&format!("exch.b{bits}"), bits / 8, 3, hash), false, false, |_, b| b);
    }
    let small = |index: usize| hash(index) % 20;
    check(&scalar("inc.u32", 4, 3, small), false, true, |a, b| if a >= b { 0 } else { a + 1 });
    check(&scalar("dec.u32", 4, 3, small), false, true, |a, b| if a == 0 || a > b { b } else { a - 1 });
    for bits in [16usize, 32, 64] {
        let start = 0x1234;
        check(
            &scalar(&format!("cas.b{bits}"), bits / 8, start, hash),
            true,
            false,
            move |a, b| {
                if a == start { b } else { a }
            },
        );
    }
}

#[test]
fn floats_and_pairs_of_halves() {
    let f32_of = |index: usize| u64::from((hash(index) as i32 as f32 / 1e6).to_bits());
    let add_f32 = |a: u64, b: u64| u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits());
    check(&scalar("add.f32", 4, 0, f32_of), false, true, add_f32);
    let f64_of = |index: usize| (hash(index) as i64 as f64 / 1e9).to_bits();
    check(&scalar("add.f64", 8, 0, f64_of), false, true, |a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits());
    fn half_of(index: usize) -> u64 {
        // Moderate values in both halves, in either format.
        (hash(index) & 0x8FFF_8FFF) | 0x3000_3000
    }
    fn add(format: Format, a: u64, b: u64) -> u64 {
        let (x, tail) = sum(format.value(a), format.value(b), Mode::Nearest);
        format.round(x, tail, Mode::Nearest)
    }
    fn both(format: Format, a: u64, b: u64) -> u64 {
        add(format, a & 0xFFFF, b & 0xFFFF) | add(format, a >> 16, b >> 16) << 16
    }
    check(&scalar("add.noftz.f16", 2, 0, half_of), false, true, |a, b| add(F16, a, b));
    check(&scalar("add.noftz.bf16", 2, 0, half_of), false, true, |a, b| add(BF16, a, b));
    check(&scalar("add.noftz.f16x2", 4, 0, half_of), false, true, |a, b| both(F16, a, b));
    check(&scalar("add.noftz.bf16x2", 4, 0, half_of), false, true, |a, b| both(BF16, a, b));
    let vector = |operation: &str, bytes, count, vector, operand| Case {
        operation: operation.into(),
        bytes,
        count,
        vector,
        start: 0,
        operand,
    };
    for (name, count) in [("v2", 2), ("v4", 4)] {
        check(&vector("add.f32", 4, count, name, f32_of), false, true, add_f32);
        check(&vector("add.noftz.f16x2", 4, count, name, half_of), false, true, |a, b| both(F16, a, b));
    }
    for (name, count) in [("v2", 2), ("v4", 4), ("v8", 8)] {
        check(&vector("add.noftz.bf16", 2, count, name, half_of), false, true, |a, b| add(BF16, a, b));
        check(&vector("max.noftz.f16", 2, count, name, half_of), false, true, |a, b| {
            if F16.value(a) > F16.value(b) { a } else { b }
        });
    }
}

#[test]
fn sums_of_floats_over_blocks_do_not_depend_on_the_number_of_threads() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u64 q) {\n\
        .reg .b64 %a<4>;\n.reg .b32 %r<5>;\n.reg .f32 %f<3>;\nld.param.u64 %a1, [p];\nld.param.u64 %a2, [q];\n\
        mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %tid.x;\nmad.lo.u32 %r1, %r1, 64, %r2;\nmad.wide.u32 %a2, %r1, 4, %a2;\n\
        ld.global.f32 %f1, [%a2];\natom.global.add.f32 %f2, [%a1], %f1;\nret;\n}\n";
    let values: Vec<f32> = (0..64 * 200).map(|i| hash(i) as i32 as f32 / 1e3).collect();
    let run = |threads| {
        let emulator = Emulator::new(DeviceFacts::default()).with_threads(threads);
        let module = emulator.load("sum.ptx", text).unwrap();
        let (p, q) = (emulator.upload(&[0f32]).unwrap(), emulator.upload(&values).unwrap());
        let config = LaunchConfig::new([200, 1, 1], [64, 1, 1]);
        emulator.launch(&module, "k", config, Params::new().u64(p).u64(q).as_bytes()).unwrap();
        emulator.download::<u32>(p, 1).unwrap()[0]
    };
    let one = run(1);
    assert!((2..6).all(|threads| run(threads) == one));
}

#[test]
fn sixteen_bytes_are_exchanged_and_compared_whole() {
    let text = ".version 8.4\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p) {
        .reg .b64 %a<9>;\n.reg .b128 %q<6>;\n.reg .b32 %t;
        ld.param.u64 %a1, [p];\nmov.u32 %t, %tid.x;\ncvt.u64.u32 %a2, %t;\nadd.u64 %a3, %a2, 1;
        mov.b128 %q1, {%a2, %a2};\nmov.b128 %q2, {%a3, %a3};
        atom.global.cas.b128 %q3, [%a1], %q1, %q2;
        atom.global.exch.b128 %q4, [%a1+16], %q2;
        mad.wide.u32 %a4, %t, 32, %a1;\nst.global.b128 [%a4+32], %q3;\nst.global.b128 [%a4+48], %q4;\nret;\n}\n";
    let emulator = Emulator::new(DeviceFacts { architecture: 90, ..DeviceFacts::default() });
    let module = emulator.load("wide.ptx", text).unwrap();
    let data = emulator.upload(&[0u64; 4 + 4 * THREADS]).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [THREADS as u32, 1, 1]);
    emulator.launch(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap();
    let words: Vec<u64> = emulator.download(data, 4 + 4 * THREADS).unwrap();
    // Each lane finds what the one before it left.
    assert_eq!(words[..4], [THREADS as u64; 4]);
    for lane in 0..THREADS {
        assert_eq!(words[4 + 4 * lane..][..4], [lane as u64; 4], "lane {lane}");
    }
}
