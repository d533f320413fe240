//! Instruction forms one by one, against scalar references written independently of the emulator.
//!
//! [`check`] wraps one instruction into a kernel that loads its operands from buffers and stores the result.

use engine::driver::emulator::{DeviceFacts, Emulator, LaunchConfig, Params};

use super::body::kernel;

/// Threads of a check: several warps, the last one not full.
const COUNT: usize = 999;

pub fn width(ty: &str) -> usize {
    match ty.trim_start_matches(|c: char| c.is_ascii_alphabetic()) {
        "8" => 1,
        "16" => 2,
        "64" => 8,
        _ => 4,
    }
}

fn register(ty: &str) -> String {
    format!(".b{}", (width(ty) * 8).max(16))
}

/// Bit patterns that visit corners: small numbers, extremes, floats of all sizes, NaN, infinities.
fn patterns(salt: u64, bytes: usize) -> Vec<u64> {
    const CORNERS: [u64; 16] = [
        0,
        1,
        2,
        31,
        32,
        33,
        64,
        0x7F80_0000,
        0x8000_0000,
        0x3F80_0000,
        u64::MAX,
        0x7FFF_FFFF,
        0x7FC0_0000,
        0x8000_0000_0000_0000,
        0x3FF0_0000_0000_0000,
        0x0000_0001_0080_0000,
    ];
    (0..COUNT as u64)
        .map(|i| {
            let x = (i + salt * 7919).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let value = match (x >> 60) & 3 {
                0 => CORNERS[(x >> 8) as usize % 16],
                1 => x & 63,
                // Floats of moderate size, in both widths.
                2 if bytes == 4 => u64::from(((x as i32) as f32 / 1e7).to_bits()),
                2 if bytes == 8 => ((x as i64) as f64 / 1e15).to_bits(),
                _ => x,
            };
            if bytes == 8 { value } else { value & ((1 << (8 * bytes)) - 1) }
        })
        .collect()
}

/// Runs `instruction` (with `%d`, `%a`, `%b`, `%c` as operands) on every pattern and compares with `reference`.
pub fn check(instruction: &str, d: &str, sources: &[&str], reference: impl Fn(&[u64]) -> u64) {
    check_by(instruction, d, sources, reference, |got, expected, _| got == expected);
}

pub fn check_by(
    instruction: &str,
    d: &str,
    sources: &[&str],
    reference: impl Fn(&[u64]) -> u64,
    same: impl Fn(u64, u64, &[u64]) -> bool,
) {
    let mut text = String::from(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 pd");
    for index in 0..sources.len() {
        text += &format!(", .param .u64 p{index}");
    }
    text += &format!(") {{\n.reg {} %d;\n.reg .pred %p, %q;\n.reg .b64 %x<9>;\n.reg .b32 %i, %n, %t;\n", register(d));
    text += "mov.u32 %i, %ctaid.x;\nmov.u32 %n, %ntid.x;\nmov.u32 %t, %tid.x;\nmad.lo.u32 %i, %i, %n, %t;\n";
    for (index, ty) in sources.iter().enumerate() {
        let (name, bytes) = (["%a", "%b", "%c", "%e"][index], width(ty));
        text += &format!(
            ".reg {} {name};\nld.param.u64 %x1, [p{index}];\nmad.wide.u32 %x2, %i, {bytes}, %x1;\n",
            register(ty)
        );
        text += &format!("ld.global.u{} {name}, [%x2];\n", bytes * 8);
    }
    text += &format!(
        "{instruction}\nld.param.u64 %x1, [pd];\nmad.wide.u32 %x2, %i, {}, %x1;\nst.global.u{} [%x2], %d;\nret;\n}}\n",
        width(d),
        width(d) * 8
    );
    let emulator = Emulator::new(DeviceFacts::default()).with_threads(1);
    let module = emulator.load("check.ptx", &text).unwrap_or_else(|error| panic!("{instruction}: {error}"));
    let values: Vec<Vec<u64>> =
        sources.iter().enumerate().map(|(index, ty)| patterns(index as u64 + 1, width(ty))).collect();
    let pack = |values: &[u64], bytes: usize| -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()[..bytes].to_vec()).collect()
    };
    let out = emulator.upload(&vec![0xA5u8; (COUNT + 32) * width(d)]).unwrap();
    let mut params = Params::new().u64(out);
    for (values, ty) in values.iter().zip(sources) {
        params = params.u64(emulator.upload(&pack(values, width(ty))).unwrap());
    }
    emulator
        .launch(&module, "k", LaunchConfig::new([9, 1, 1], [111, 1, 1]), params.as_bytes())
        .unwrap_or_else(|error| panic!("{instruction}: {error}"));
    let bytes = emulator.download::<u8>(out, COUNT * width(d)).unwrap();
    for index in 0..COUNT {
        let mut word = [0; 8];
        word[..width(d)].copy_from_slice(&bytes[index * width(d)..(index + 1) * width(d)]);
        let got = u64::from_le_bytes(word);
        let inputs: Vec<u64> = values.iter().map(|values| values[index]).collect();
        let mask = if width(d) == 8 { u64::MAX } else { (1 << (8 * width(d))) - 1 };
        let expected = reference(&inputs) & mask;
        assert!(
            same(got, expected, &inputs),
            "{instruction}: inputs {inputs:x?}: got {got:#x}, expected {expected:#x}"
        );
    }
}

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn same_f32(got: u64, expected: u64, _: &[u64]) -> bool {
    got == expected || (f(got).is_nan() && f(expected).is_nan())
}

fn same_f64(got: u64, expected: u64, _: &[u64]) -> bool {
    got == expected || (f64::from_bits(got).is_nan() && f64::from_bits(expected).is_nan())
}

#[test]
fn integer_arithmetic() {
    check("add.u16 %d, %a, %b;", "u16", &["u16", "u16"], |s| s[0].wrapping_add(s[1]));
    check("add.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| s[0] + s[1]);
    check("add.u64 %d, %a, %b;", "u64", &["u64", "u64"], |s| s[0].wrapping_add(s[1]));
    check("add.sat.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| {
        (i64::from(s[0] as i32) + i64::from(s[1] as i32)).clamp(i32::MIN.into(), i32::MAX.into()) as u64
    });
    check("sub.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| s[0].wrapping_sub(s[1]));
    check("mul.lo.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| s[0].wrapping_mul(s[1]));
    check("mul.hi.u32 %d, %a, %b;", "u32", &["u32", "u32"], |s| s[0].wrapping_mul(s[1]) >> 32);
    check("mul.hi.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| {
        ((i64::from(s[0] as i32) * i64::from(s[1] as i32)) >> 32) as u64
    });
    check("mul.hi.u64 %d, %a, %b;", "u64", &["u64", "u64"], |s| ((u128::from(s[0]) * u128::from(s[1])) >> 64) as u64);
    check("mul.wide.s16 %d, %a, %b;", "u32", &["u16", "u16"], |s| {
        (i64::from(s[0] as i16) * i64::from(s[1] as i16)) as u64
    });
    check("mul.wide.u32 %d, %a, %b;", "u64", &["u32", "u32"], |s| s[0] * s[1]);
    check("mad.lo.s32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| s[0].wrapping_mul(s[1]).wrapping_add(s[2]));
    check("mad.hi.s32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        (((i64::from(s[0] as i32) * i64::from(s[1] as i32)) >> 32) as u64).wrapping_add(s[2])
    });
    check("mad.wide.s32 %d, %a, %b, %c;", "u64", &["u32", "u32", "u64"], |s| {
        ((i64::from(s[0] as i32) * i64::from(s[1] as i32)) as u64).wrapping_add(s[2])
    });
    check("mul24.lo.u32 %d, %a, %b;", "u32", &["u32", "u32"], |s| (s[0] & 0xFF_FFFF) * (s[1] & 0xFF_FFFF));
    check("mul24.hi.u32 %d, %a, %b;", "u32", &["u32", "u32"], |s| ((s[0] & 0xFF_FFFF) * (s[1] & 0xFF_FFFF)) >> 16);
    check("div.u32 %d, %a, %b;", "u32", &["u32", "u32"], |s| s[0].checked_div(s[1]).unwrap_or(u64::MAX));
    check("rem.u32 %d, %a, %b;", "u32", &["u32", "u32"], |s| s[0].checked_rem(s[1]).unwrap_or(s[0]));
    check("sad.s32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        s[2].wrapping_add((i64::from(s[0] as i32) - i64::from(s[1] as i32)).unsigned_abs())
    });
    check("abs.s32 %d, %a;", "u32", &["u32"], |s| u64::from((s[0] as i32).unsigned_abs()));
    check("neg.s64 %d, %a;", "u64", &["u64"], |s| s[0].wrapping_neg());
    check("min.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| (s[0] as i32).min(s[1] as i32) as u64);
    check("max.u64 %d, %a, %b;", "u64", &["u64", "u64"], |s| s[0].max(s[1]));
    check(
        "{ .reg .b32 %l<4>; mov.b64 {%l0,%l1}, %a; mov.b64 {%l2,%l3}, %b; add.cc.u32 %l0, %l0, %l2; addc.u32 %l1, %l1, %l3; mov.b64 %d, {%l0,%l1}; }",
        "u64",
        &["u64", "u64"],
        |s| s[0].wrapping_add(s[1]),
    );
    check(
        "{ .reg .b32 %l<4>; mov.b64 {%l0,%l1}, %a; mov.b64 {%l2,%l3}, %b; sub.cc.u32 %l0, %l0, %l2; subc.u32 %l1, %l1, %l3; mov.b64 %d, {%l0,%l1}; }",
        "u64",
        &["u64", "u64"],
        |s| s[0].wrapping_sub(s[1]),
    );
    // An addition that reads a subtraction's bit sees hardware's "no borrow", on which nvcc's 128-bit division counts.
    check("{ .reg .b32 %l; sub.cc.u32 %l, %a, %b; addc.u32 %d, %a, 0; }", "u32", &["u32", "u32"], |s| {
        s[0].wrapping_add(u64::from(s[0] >= s[1]))
    });
    // Registers that are wider than the type of what is converted.
    check("cvt.s64.s32 %d, %a;", "u64", &["u64"], |s| i64::from(s[0] as i32) as u64);
    check("cvt.u64.u32 %d, %a;", "u64", &["u64"], |s| u64::from(s[0] as u32));
    check("cvt.u32.u32 %d, %a;", "u32", &["u64"], |s| u64::from(s[0] as u32));
    check("cvt.s64.s16 %d, %a;", "u64", &["u64"], |s| i64::from(s[0] as i16) as u64);
    check("cvt.s32.s8 %d, %a;", "u32", &["u64"], |s| i64::from(s[0] as i8) as u64);
    check("cvt.rn.f32.s32 %d, %a;", "u32", &["u64"], |s| u64::from((s[0] as i32 as f32).to_bits()));
    check(
        "{ .reg .b32 %l<2>; mad.lo.cc.u32 %l0, %a, %b, %c; madc.hi.u32 %l1, %a, %b, 0; mov.b64 %d, {%l0,%l1}; }",
        "u64",
        &["u32", "u32", "u32"],
        |s| s[0] * s[1] + s[2],
    );
    check("dp4a.s32.u32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        (0..4).fold(s[2], |sum, i| {
            sum.wrapping_add((i64::from((s[0] >> (8 * i)) as i8) * i64::from((s[1] >> (8 * i)) as u8)) as u64)
        })
    });
    check("dp2a.hi.s32.s32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        (0..2).fold(s[2], |sum, i| {
            sum.wrapping_add((i64::from((s[0] >> (16 * i)) as i16) * i64::from((s[1] >> (16 + 8 * i)) as i8)) as u64)
        })
    });
}

#[test]
fn bit_fields() {
    check("popc.b64 %d, %a;", "u32", &["u64"], |s| u64::from(s[0].count_ones()));
    check("clz.b32 %d, %a;", "u32", &["u32"], |s| u64::from((s[0] as u32).leading_zeros()));
    check("brev.b32 %d, %a;", "u32", &["u32"], |s| u64::from((s[0] as u32).reverse_bits()));
    check("bfind.s32 %d, %a;", "u32", &["u32"], |s| {
        let v = s[0] as i32;
        let v = if v < 0 { !v } else { v };
        (0..32).rev().find(|bit| v >> bit & 1 != 0).map_or(u64::MAX, |bit| bit as u64)
    });
    check("bfind.shiftamt.u64 %d, %a;", "u32", &["u64"], |s| {
        if s[0] == 0 { u64::MAX } else { u64::from(s[0].leading_zeros()) }
    });
    // The manual's own loops, bit by bit.
    let extract = |value: u64, position: u64, length: u64, bits: u64, is_signed: bool| {
        let (position, length) = (position & 255, length & 255);
        let sign_at = (position + length).wrapping_sub(1).min(bits - 1);
        let sign = if !is_signed || length == 0 { 0 } else { value >> sign_at & 1 };
        (0..bits).fold(0, |d, i| {
            d | (if i < length && position + i < bits { value >> (position + i) & 1 } else { sign }) << i
        })
    };
    check("bfe.u32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], move |s| extract(s[0], s[1], s[2], 32, false));
    check("bfe.s32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], move |s| extract(s[0], s[1], s[2], 32, true));
    check("bfe.s64 %d, %a, %b, %c;", "u64", &["u64", "u32", "u32"], move |s| extract(s[0], s[1], s[2], 64, true));
    check("bfe.u64 %d, %a, %b, %c;", "u64", &["u64", "u32", "u32"], move |s| extract(s[0], s[1], s[2], 64, false));
    check("bfi.b32 %d, %a, %b, %c, %e;", "u32", &["u32", "u32", "u32", "u32"], |s| {
        let (position, length) = (s[2] & 255, s[3] & 255);
        (0..32).fold(0, |d, i| {
            d | (if i >= position && i < position + length { s[0] >> (i - position) & 1 } else { s[1] >> i & 1 }) << i
        })
    });
    check("bmsk.clamp.b32 %d, %a, %b;", "u32", &["u32", "u32"], |s| {
        if s[0] >= 32 || s[1] == 0 {
            0
        } else {
            (0..32).fold(0, |d, i| d | u64::from(i >= s[0] && i < s[0] + s[1]) << i)
        }
    });
    check("szext.clamp.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| {
        let n = s[1];
        if n == 0 {
            0
        } else if n >= 32 {
            s[0]
        } else {
            ((s[0] << (64 - n)) as i64 >> (64 - n)) as u64
        }
    });
}

#[test]
fn logic_and_shifts() {
    check("and.b32 %d, %a, %b;", "u32", &["u32", "u32"], |s| s[0] & s[1]);
    check("xor.b64 %d, %a, %b;", "u64", &["u64", "u64"], |s| s[0] ^ s[1]);
    check("not.b16 %d, %a;", "u16", &["u16"], |s| !s[0]);
    check("cnot.b32 %d, %a;", "u32", &["u32"], |s| u64::from(s[0] == 0));
    for table in 0x00u64..=0xFF {
        check(&format!("lop3.b32 %d, %a, %b, %c, {table};"), "u32", &["u32", "u32", "u32"], move |s| {
            (0..32)
                .fold(0, |d, i| d | (table >> ((s[0] >> i & 1) * 4 + (s[1] >> i & 1) * 2 + (s[2] >> i & 1)) & 1) << i)
        });
    }
    check("shl.b32 %d, %a, %b;", "u32", &["u32", "u32"], |s| if s[1] > 31 { 0 } else { s[0] << s[1] });
    check("shr.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| (i64::from(s[0] as i32) >> s[1].min(31)) as u64);
    check("shr.u64 %d, %a, %b;", "u64", &["u64", "u32"], |s| if s[1] > 63 { 0 } else { s[0] >> s[1] });
    check("shr.s16 %d, %a, %b;", "u16", &["u16", "u32"], |s| (i64::from(s[0] as i16) >> s[1].min(15)) as u64);
    check("shf.l.wrap.b32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        ((s[1] << 32 | s[0]) << (s[2] & 31)) >> 32
    });
    check("shf.r.clamp.b32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| (s[1] << 32 | s[0]) >> s[2].min(32));
    check("prmt.b32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        (0..4).fold(0, |d, i| {
            let n = s[2] >> (4 * i) & 15;
            let byte = (s[1] << 32 | s[0]) >> (8 * (n & 7)) & 255;
            d | (if n & 8 != 0 { if byte & 128 != 0 { 255 } else { 0 } } else { byte }) << (8 * i)
        })
    });
    // The manual's table of modes: for each value of the selector's two bits, the bytes of the result from the top.
    for (mode, bytes) in [
        ("f4e", [0x3210, 0x4321, 0x5432, 0x6543]),
        ("b4e", [0x5670, 0x6701, 0x7012, 0x0123]),
        ("rc8", [0x0000, 0x1111, 0x2222, 0x3333]),
        ("ecl", [0x3210, 0x3211, 0x3222, 0x3333]),
        ("ecr", [0x0000, 0x1110, 0x2210, 0x3210]),
        ("rc16", [0x1010, 0x3232, 0x1010, 0x3232]),
    ] {
        check(&format!("prmt.b32.{mode} %d, %a, %b, %c;"), "u32", &["u32", "u32", "u32"], move |s| {
            let selected: u64 = bytes[(s[2] & 3) as usize];
            (0..4).fold(0, |d, i| d | ((s[1] << 32 | s[0]) >> (8 * (selected >> (4 * i) & 7)) & 255) << (8 * i))
        });
    }
    check(
        "{ setp.lt.s32 %p|%q, %a, %b; selp.b32 %d, 1, 2, %p; @%q add.u32 %d, %d, 8; }",
        "u32",
        &["u32", "u32"],
        |s| {
            if (s[0] as i32) < s[1] as i32 { 1 } else { 10 }
        },
    );
    check(
        "{ setp.gt.u32 %q, %a, 100; setp.eq.and.u32 %p, %b, 1, !%q; selp.u32 %d, %a, %b, %p; }",
        "u32",
        &["u32", "u32"],
        |s| {
            if s[1] == 1 && s[0] <= 100 { s[0] } else { s[1] }
        },
    );
    check("set.ltu.u32.f32 %d, %a, %b;", "u32", &["u32", "u32"], |s| if f(s[0]) >= f(s[1]) { 0 } else { u64::MAX });
    check(
        "slct.u32.s32 %d, %a, %b, %c;",
        "u32",
        &["u32", "u32", "u32"],
        |s| if (s[2] as i32) >= 0 { s[0] } else { s[1] },
    );
}

#[test]
fn selection_by_sign_takes_every_type() {
    let by_integer = |s: &[u64]| if (s[2] as i32) >= 0 { s[0] } else { s[1] };
    for ty in ["b16", "u16", "s16", "b32", "s32", "b64", "u64", "s64", "f32", "f64"] {
        let bits = &format!("u{}", 8 * width(ty));
        check(&format!("slct.{ty}.s32 %d, %a, %b, %c;"), bits, &[bits, bits, "u32"], by_integer);
    }
    // NaN takes the second, -0 the first.
    let by_float = |s: &[u64]| if f(s[2]) >= 0.0 { s[0] } else { s[1] };
    check("slct.f64.f32 %d, %a, %b, %c;", "u64", &["u64", "u64", "u32"], by_float);
    check("slct.f32.f32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], by_float);
    check("slct.u16.f32 %d, %a, %b, %c;", "u16", &["u16", "u16", "u32"], by_float);
    check("slct.ftz.s64.f32 %d, %a, %b, %c;", "u64", &["u64", "u64", "u32"], |s| {
        if f(s[2]) >= 0.0 || f(s[2]).is_subnormal() { s[0] } else { s[1] }
    });
}

#[test]
fn carries_run_through_all_forms() {
    // Three words, the carry written and read by each in the middle.
    check(
        "{ .reg .b32 %l<2>; add.cc.u32 %l0, %a, %b; addc.cc.u32 %l1, %c, 0xffffffff; addc.u32 %d, 0, 0; }",
        "u32",
        &["u32", "u32", "u32"],
        |s| u64::from(s[2] + 0xFFFF_FFFF + ((s[0] + s[1]) >> 32) > 0xFFFF_FFFF),
    );
    check("{ .reg .b64 %l; add.cc.s64 %l, %a, %b; addc.s64 %d, %a, 0; }", "u64", &["u64", "u64"], |s| {
        s[0].wrapping_add(u64::from(s[0].checked_add(s[1]).is_none()))
    });
    check("{ .reg .b64 %l; sub.cc.u64 %l, %a, %b; subc.u64 %d, %a, %b; }", "u64", &["u64", "u64"], |s| {
        s[0].wrapping_sub(s[1]).wrapping_sub(u64::from(s[0] < s[1]))
    });
    check(
        "{ .reg .b32 %l<2>; sub.cc.u32 %l0, %a, %b; subc.cc.u32 %l1, %a, %c; subc.u32 %d, 0, 0; }",
        "u32",
        &["u32"; 3],
        |s| 0u64.wrapping_sub(u64::from(s[0] < s[2] + u64::from(s[0] < s[1]))),
    );
    check("{ .reg .b32 %l; mad.hi.cc.u32 %l, %a, %b, %c; addc.u32 %d, 0, 0; }", "u32", &["u32"; 3], |s| {
        (((s[0] * s[1]) >> 32) + s[2]) >> 32
    });
    check("{ .reg .b32 %l; mad.lo.cc.s32 %l, %a, %b, %c; madc.hi.s32 %d, %a, %b, %c; }", "u32", &["u32"; 3], |s| {
        let product = i64::from(s[0] as i32) * i64::from(s[1] as i32);
        let carry = ((product as u64 & 0xFFFF_FFFF) + s[2]) >> 32;
        ((product >> 32) as u64).wrapping_add(s[2]).wrapping_add(carry)
    });
    check("{ .reg .b64 %l; mad.lo.cc.u64 %l, %a, %b, %b; madc.hi.u64 %d, %a, %b, 0; }", "u64", &["u64"; 2], |s| {
        let product = u128::from(s[0]) * u128::from(s[1]);
        let carry = (product as u64).checked_add(s[1]).is_none();
        ((product >> 64) as u64).wrapping_add(u64::from(carry))
    });
    check(
        "{ .reg .b32 %l; add.cc.u32 %l, %a, %b; madc.lo.cc.u32 %l, %a, %b, 0; addc.u32 %d, 0, %c; }",
        "u32",
        &["u32"; 3],
        |s| {
            let carry = (s[0] + s[1]) >> 32;
            s[2] + ((((s[0] * s[1]) & 0xFFFF_FFFF) + carry) >> 32)
        },
    );
}

#[test]
fn floating_point() {
    check_by("add.f32 %d, %a, %b;", "f32", &["f32", "f32"], |s| u64::from((f(s[0]) + f(s[1])).to_bits()), same_f32);
    check_by("mul.rn.f32 %d, %a, %b;", "f32", &["f32", "f32"], |s| u64::from((f(s[0]) * f(s[1])).to_bits()), same_f32);
    check_by(
        "fma.rn.f32 %d, %a, %b, %c;",
        "f32",
        &["f32", "f32", "f32"],
        |s| u64::from(f(s[0]).mul_add(f(s[1]), f(s[2])).to_bits()),
        same_f32,
    );
    check_by("div.rn.f32 %d, %a, %b;", "f32", &["f32", "f32"], |s| u64::from((f(s[0]) / f(s[1])).to_bits()), same_f32);
    check_by("sqrt.rn.f64 %d, %a;", "f64", &["f64"], |s| f64::from_bits(s[0]).sqrt().to_bits(), same_f64);
    check_by(
        "fma.rn.f64 %d, %a, %b, %c;",
        "f64",
        &["f64", "f64", "f64"],
        |s| f64::from_bits(s[0]).mul_add(f64::from_bits(s[1]), f64::from_bits(s[2])).to_bits(),
        same_f64,
    );
    // Rounding down: the nearest result, or its lower neighbour where that is above the exact one.
    check_by(
        "mul.rm.f32 %d, %a, %b;",
        "f32",
        &["f32", "f32"],
        |s| {
            let exact = f64::from(f(s[0])) * f64::from(f(s[1]));
            let near = exact as f32;
            u64::from(if f64::from(near) > exact && exact.is_finite() { near.next_down() } else { near }.to_bits())
        },
        |got, expected, s| same_f32(got, expected, s) || (f64::from(f(s[0])) * f64::from(f(s[1]))).abs() < 1e-37,
    );
    let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x };
    check_by(
        "add.ftz.f32 %d, %a, %b;",
        "f32",
        &["f32", "f32"],
        move |s| u64::from(flush(flush(f(s[0])) + flush(f(s[1]))).to_bits()),
        same_f32,
    );
    check("mul.sat.f32 %d, %a, %b;", "f32", &["f32", "f32"], |s| {
        let product = f(s[0]) * f(s[1]);
        u64::from(if product.is_nan() || product <= 0.0 { 0f32 } else { product.min(1.0) }.to_bits())
    });
    check_by(
        "min.f32 %d, %a, %b;",
        "f32",
        &["f32", "f32"],
        |s| {
            let (a, b) = (f(s[0]), f(s[1]));
            u64::from(
                match (a.is_nan(), b.is_nan()) {
                    (true, _) => b,
                    (_, true) => a,
                    _ if a < b || (a == b && a.is_sign_negative()) => a,
                    _ => b,
                }
                .to_bits(),
            )
        },
        same_f32,
    );
    check("abs.f32 %d, %a;", "f32", &["f32"], |s| s[0] & 0x7FFF_FFFF);
    check("neg.f64 %d, %a;", "f64", &["f64"], |s| s[0] ^ 1 << 63);
    check("copysign.f32 %d, %a, %b;", "f32", &["f32", "f32"], |s| s[1] & 0x7FFF_FFFF | s[0] & 0x8000_0000);
    // Approximations: within the manual's bounds (2 ulp of 2^-22 relative, or absolute where it says so).
    let near = |bound: f64, reference: fn(f64) -> f64| {
        move |got: u64, _: u64, s: &[u64]| {
            let exact = reference(f64::from(f(s[0])));
            let got = f64::from(f(got));
            let both_nan = got.is_nan() && exact.is_nan();
            both_nan
                || got == exact
                || (exact as f32).is_infinite() && got.is_infinite()
                || (got - exact).abs() <= bound * exact.abs().max(1e-38)
        }
    };
    check_by("rcp.approx.f32 %d, %a;", "f32", &["f32"], |_| 0, near(1.2e-7, |x| 1.0 / x));
    check_by("rsqrt.approx.f32 %d, %a;", "f32", &["f32"], |_| 0, near(2e-7, |x| 1.0 / x.sqrt()));
    check_by("ex2.approx.f32 %d, %a;", "f32", &["f32"], |_| 0, near(2.4e-7, f64::exp2));
    check_by("lg2.approx.f32 %d, %a;", "f32", &["f32"], |_| 0, near(1e-7, f64::log2));
    check_by("tanh.approx.f32 %d, %a;", "f32", &["f32"], |_| 0, near(5e-4, f64::tanh));
}

#[test]
fn conversions() {
    check("cvt.u64.u32 %d, %a;", "u64", &["u32"], |s| s[0]);
    check("cvt.s64.s32 %d, %a;", "u64", &["u32"], |s| s[0] as i32 as u64);
    check("cvt.u32.u64 %d, %a;", "u32", &["u64"], |s| s[0]);
    check("cvt.s32.s8 %d, %a;", "u32", &["u32"], |s| s[0] as i8 as u64);
    check("cvt.sat.u8.s32 %d, %a;", "u32", &["u32"], |s| (s[0] as i32).clamp(0, 255) as u64);
    check("cvt.rn.f32.s32 %d, %a;", "f32", &["u32"], |s| u64::from((s[0] as i32 as f32).to_bits()));
    check("cvt.rn.f32.u64 %d, %a;", "f32", &["u64"], |s| u64::from((s[0] as f32).to_bits()));
    check("cvt.rzi.s32.f32 %d, %a;", "u32", &["f32"], |s| f(s[0]) as i32 as u64);
    check("cvt.rni.s32.f32 %d, %a;", "u32", &["f32"], |s| f(s[0]).round_ties_even() as i32 as u64);
    check_by(
        "cvt.rn.f32.f64 %d, %a;",
        "f32",
        &["f64"],
        |s| u64::from((f64::from_bits(s[0]) as f32).to_bits()),
        same_f32,
    );
    check_by("cvt.f64.f32 %d, %a;", "f64", &["f32"], |s| f64::from(f(s[0])).to_bits(), same_f64);
    let same_half = |got: u64, expected: u64, _: &[u64]| {
        got == expected || (half::f16::from_bits(got as u16).is_nan() && half::f16::from_bits(expected as u16).is_nan())
    };
    check_by(
        "cvt.rn.f16.f32 %d, %a;",
        "u16",
        &["f32"],
        |s| u64::from(half::f16::from_f32(f(s[0])).to_bits()),
        same_half,
    );
    check_by(
        "cvt.f32.f16 %d, %a;",
        "f32",
        &["u16"],
        |s| u64::from(half::f16::from_bits(s[0] as u16).to_f32().to_bits()),
        same_f32,
    );
    let nan = |x: u64| f(x).is_nan();
    check_by(
        "cvt.rn.bf16x2.f32 %d, %a, %b;",
        "u32",
        &["f32", "f32"],
        |s| {
            let bits = |x| u64::from(half::bf16::from_f32(f(x)).to_bits());
            bits(s[0]) << 16 | bits(s[1])
        },
        move |got, expected, s| got == expected || nan(s[0]) || nan(s[1]),
    );
    check_by(
        "cvt.rna.tf32.f32 %d, %a;",
        "u32",
        &["f32"],
        |s| (s[0] + 0x1000) & !0x1FFF,
        move |got, expected, s| got == expected || nan(s[0]) || s[0] & 0x7F80_0000 == 0x7F80_0000,
    );
    check_by("cvt.rni.f32.f32 %d, %a;", "f32", &["f32"], |s| u64::from(f(s[0]).round_ties_even().to_bits()), same_f32);
    check("cvt.pack.sat.u8.s32.b32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        let byte = |x: u64| (x as i32).clamp(0, 255) as u64;
        s[2] << 16 | byte(s[0]) << 8 | byte(s[1])
    });
}

/// PTX manual, "Arrays as operands": what ptxas makes of each of these is in the comments.
#[test]
fn elements_of_arrays_are_operands() {
    let emulator = Emulator::new(DeviceFacts::default());
    let module = |body: &str| {
        let arrays = ".global .align 4 .u32 many[6] = {10, 11, 12, 13, 14, 15};\n.const .align 2 .u16 few[3] = {7, 8, 9};\n\
                      .global .align 4 .u32 matrix[2][3] = {{1, 2, 3}, {4, 5, 6}};\n\
                      .global .v2 .u32 pairs[2] = {{1, 2}, {3, 4}};\n\
                      .shared .align 4 .u32 common[8];\n.visible .entry";
        emulator.load("k.ptx", &kernel(body).replace(".visible .entry", arrays))
    };
    for (body, expected) in [
        // LDG [many+0x14], many+0xc, matrix+0x4 (rows do not count), pairs+0x4 (nor do vectors).
        ("mov.u64 %a3, many[5];\nld.global.u32 %r1, [%a3];", 15),
        ("ld.global.u32 %r1, many[1+2];", 13),
        ("mov.u64 %a3, matrix[1];\nld.global.u32 %r1, [%a3];", 2),
        ("mov.u64 %a3, pairs[1];\nld.global.u32 %r1, [%a3];", 2),
        ("cvta.global.u64 %a3, many[2];\nld.u32 %r1, [%a3];", 12),
        ("ld.const.u16 %r1, few[2];", 9),
        ("st.global.u32 many[0], 77;\nld.global.u32 %r1, [many];", 77),
        (
            ".shared .align 4 .u32 own32[8];\nst.shared.u32 own32[2], 99;\nst.shared.u32 common[2], 7;\nld.shared.u32 %r1, own32[2];",
            99,
        ),
        ("st.shared.u32 common[2], 7;\nld.shared.u32 %r1, [common+4*2];", 7),
        ("ld.global.u32 %r1, [many+4*2+(3-1)*2];", 13),
        // 0xc, LDS [own+-0x4].
        (".shared .align 4 .u32 own32[8];\nmov.u32 %r2, own32[3];\nmov.u32 %r3, own32;\nsub.u32 %r1, %r2, %r3;", 12),
        (
            ".shared .align 4 .u32 own32[8];\nst.shared.u32 [own32+8], 5;\nmov.u32 %r2, own32+12;\nld.shared.u32 %r1, [%r2-4];",
            5,
        ),
        (".shared .align 4 .u32 own32[8];\nst.shared.u32 own32[2], 6;\nld.shared.u32 %r1, own32[2];", 6),
    ] {
        let module = module(&format!("{body}\nst.global.u32 [%a2], %r1;")).unwrap_or_else(|e| panic!("{body}: {e}"));
        let out = emulator.upload(&[0u32]).unwrap();
        let one = LaunchConfig::new([1, 1, 1], [1, 1, 1]);
        emulator.launch(&module, "k", one, Params::new().u64(out).as_bytes()).unwrap_or_else(|e| panic!("{body}: {e}"));
        assert_eq!(emulator.download::<u32>(out, 1).unwrap(), [expected], "{body}");
    }
    for (body, message) in [
        ("ld.global.u32 %r1, many;", "expected an address in brackets"),
        ("ld.global.u32 %r1, [many[1]];", "expected a register or variable in an address"),
        ("mov.u64 %a3, many[%r1];", "expected an index that is a constant"),
    ] {
        let error = module(body).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(message), "{body}: {error}");
    }
}

/// What each says of addresses of every kind: global, constant, shared, local, parameter.
#[test]
fn isspacep_tells_spaces_apart() {
    let emulator = Emulator::new(DeviceFacts::default());
    let asked = ["global", "const", "shared", "local", "param"];
    let tests: String = asked
        .iter()
        .map(|space| {
            let bit = "selp.u32 %r2, 1, 0, %p1;\nshl.b32 %r1, %r1, 1;\nor.b32 %r1, %r1, %r2;\n";
            format!("isspacep.{space} %p1, %a3;\n{bit}")
        })
        .collect();
    for (place, expected) in [
        ("mov.u64 %a3, %a1;", 0b10000),
        ("mov.u64 %a3, variable;\ncvta.global.u64 %a3, %a3;", 0b10000),
        ("mov.u64 %a3, constant;\ncvta.const.u64 %a3, %a3;\nadd.u64 %a3, %a3, 4;", 0b01000),
        ("mov.u64 %a3, tile;\ncvta.shared.u64 %a3, %a3;", 0b00100),
        ("mov.u64 %a3, own;\ncvta.local.u64 %a3, %a3;", 0b00010),
    ] {
        let body = format!("{place}\nmov.u32 %r1, 0;\n{tests}st.global.u32 [%a2], %r1;");
        let variables = ".const .u32 constant[2];\n.global .u32 variable;\n.visible .entry";
        let text = kernel(&body).replace(".visible .entry", variables);
        let module = emulator.load("k.ptx", &text).unwrap_or_else(|error| panic!("{place}: {error}"));
        let out = emulator.upload(&[0u32]).unwrap();
        let one = LaunchConfig::new([1, 1, 1], [1, 1, 1]);
        emulator.launch(&module, "k", one, Params::new().u64(out).as_bytes()).unwrap();
        assert_eq!(emulator.download::<u32>(out, 1).unwrap(), [expected], "{place}");
    }
}

/// Those that move no data where a program can see it, and the 24-bit forms.
#[test]
fn hints_change_nothing_and_24_bits_are_multiplied() {
    check("mad24.lo.u32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        ((s[0] & 0xFF_FFFF) * (s[1] & 0xFF_FFFF) + s[2]) & 0xFFFF_FFFF
    });
    check("mad24.hi.s32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        let low = |x: u64| i64::from(((x as u32) << 8) as i32 >> 8);
        ((low(s[0]) * low(s[1])) >> 16).wrapping_add(s[2] as i64) as u64 & 0xFFFF_FFFF
    });
    let hints = "prefetch.global.L2 [%a2];\nprefetchu.L1 [%a2];\nprefetch.L1 [%a2];\nmembar.cta;\nmembar.gl;\nmembar.sys;\n\
                 fence.acq_rel.gpu;\npmevent 3;\ncreatepolicy.fractional.L2::evict_last.b64 %a4, 1.0;\n\
                 applypriority.global.L2::evict_normal [%a1], 128;\nldu.global.u32 %r1, [%a2];\nadd.u32 %r1, %r1, 1;\n\
                 st.global.L2::cache_hint.u32 [%a2], %r1, %a4;";
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &kernel(hints)).unwrap_or_else(|error| panic!("{error}"));
    let data = emulator.upload(&(0..32).collect::<Vec<u32>>()).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [32, 1, 1]);
    emulator.launch(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap();
    assert_eq!(emulator.download::<u32>(data, 32).unwrap(), (1..33).collect::<Vec<u32>>());
}

/// The n-th set bit from a base on, counted upwards or downwards (PTX manual, `fns`).
#[test]
fn fns_finds_the_nth_set_bit() {
    check("and.b32 %b, %b, 31;\nrem.s32 %c, %c, 40;\nfns.b32 %d, %a, %b, %c;", "u32", &["u32", "u32", "u32"], |s| {
        let (mask, base, offset) = (s[0] as u32, s[1] as u32 % 32, s[2] as i32 % 40);
        let up: Vec<u32> = (base..32).filter(|bit| mask >> bit & 1 != 0).collect();
        let down: Vec<u32> = (0..=base).rev().filter(|bit| mask >> bit & 1 != 0).collect();
        let found = match offset {
            0 => (mask >> base & 1 != 0).then_some(base),
            1.. => up.get(offset as usize - 1).copied(),
            _ => down.get(offset.unsigned_abs() as usize - 1).copied(),
        };
        u64::from(found.unwrap_or(u32::MAX))
    });
}
