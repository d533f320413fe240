//! cvt between all pairs of types, against searched neighbours and wide integers.

use super::instructions::{check, check_by, width};
use super::reference::{BF16, F16, F32, Format, MODES, Mode, TF32, of_integer, round_f64};

const INTEGERS: [&str; 8] = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"];

/// The bits of a type, as a number.
fn number(ty: &str, bits: u64) -> i128 {
    let unused = 64 - 8 * width(ty) as u32;
    if ty.starts_with('s') {
        i128::from((bits << unused) as i64 >> unused)
    } else {
        i128::from(bits << unused >> unused)
    }
}

fn bounds(ty: &str) -> (i128, i128) {
    let bits = 8 * width(ty);
    if ty.starts_with('s') { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// The unsigned type of the same width, for loads and stores.
fn plain(ty: &str) -> String {
    format!("u{}", 8 * width(ty))
}

#[test]
fn between_integers() {
    for from in INTEGERS {
        for to in INTEGERS {
            let (d, a) = (plain(to), plain(from));
            check(&format!("cvt.{to}.{from} %d, %a;"), &d, &[&a], |s| number(from, s[0]) as u64);
            let (low, high) = bounds(to);
            check(&format!("cvt.sat.{to}.{from} %d, %a;"), &d, &[&a], |s| number(from, s[0]).clamp(low, high) as u64);
        }
        // A result narrower than its register is extended by its own sign.
        for to in ["u8", "s8", "u16", "s16"] {
            let a = plain(from);
            check(&format!("cvt.{to}.{from} %d, %a;"), "u32", &[&a], |s| number(to, number(from, s[0]) as u64) as u64);
        }
    }
}

const FLOATS: [(&str, Format); 3] = [("f16", F16), ("bf16", BF16), ("f32", F32)];

#[test]
fn integers_to_floats_in_every_rounding() {
    for from in INTEGERS {
        let a = plain(from);
        for (name, mode) in MODES {
            for (to, format) in FLOATS {
                check(&format!("cvt.{name}.{to}.{from} %d, %a;"), to, &[&a], |s| {
                    let (x, tail) = of_integer(number(from, s[0]));
                    format.round(x, tail, mode)
                });
            }
            check(&format!("cvt.{name}.f64.{from} %d, %a;"), "f64", &[&a], |s| {
                let (x, tail) = of_integer(number(from, s[0]));
                round_f64(x, tail, mode).to_bits()
            });
        }
        check(&format!("cvt.rn.sat.f32.{from} %d, %a;"), "f32", &[&a], |s| {
            u64::from((number(from, s[0]).clamp(0, 1) as f32).to_bits())
        });
    }
}

fn float(ty: &str, bits: u64) -> f64 {
    match ty {
        "f16" => F16.value(bits),
        "bf16" => BF16.value(bits),
        "f32" => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

fn whole(x: f64, mode: Mode) -> f64 {
    match mode {
        Mode::Zero | Mode::Away => x.trunc(),
        Mode::Down => x.floor(),
        Mode::Up => x.ceil(),
        // Ties to even, by hand.
        Mode::Nearest => {
            let (low, rest) = (x.floor(), x - x.floor());
            let up = rest > 0.5 || (rest == 0.5 && low % 2.0 != 0.0);
            (low + f64::from(u8::from(up))).copysign(x)
        }
    }
}

#[test]
fn floats_to_integers_saturate_and_give_nan_its_value() {
    for from in ["f16", "bf16", "f32", "f64"] {
        for to in INTEGERS {
            let d = plain(to);
            for (name, mode) in MODES {
                check(&format!("cvt.{name}i.{to}.{from} %d, %a;"), &d, &[from], |s| {
                    let x = float(from, s[0]);
                    let (low, high) = bounds(to);
                    if x.is_nan() {
                        return if from == "f64" || width(to) == 8 { 1 << (8 * width(to) - 1) } else { 0 };
                    }
                    (whole(x, mode) as i128).clamp(low, high) as u64
                });
            }
        }
    }
    check("cvt.rni.ftz.s32.f32 %d, %a;", "u32", &["f32"], |s| whole(float("f32", s[0]), Mode::Nearest) as i32 as u64);
}

/// Equal, or both NaN in the format.
fn same(format: Format) -> impl Fn(u64, u64, &[u64]) -> bool {
    move |got, expected, _| got == expected || (format.is_nan(got) && format.is_nan(expected))
}

const F64: Format = Format { mantissa: 52, exponent: 11 };

#[test]
fn between_floats_in_every_rounding() {
    for from in ["f16", "bf16", "f32", "f64"] {
        for (to, format) in FLOATS {
            if width(to) >= width(from) {
                continue;
            }
            for (name, mode) in MODES {
                let convert = |s: &[u64]| format.round(float(from, s[0]), 0.0, mode);
                check_by(&format!("cvt.{name}.{to}.{from} %d, %a;"), to, &[from], convert, same(format));
                check_by(
                    &format!("cvt.{name}.sat.{to}.{from} %d, %a;"),
                    to,
                    &[from],
                    |s| {
                        let x = float(from, s[0]);
                        format.round(if x > 0.0 { x.min(1.0) } else { 0.0 }, 0.0, mode)
                    },
                    same(format),
                );
            }
        }
    }
    // Widening is exact.
    for (from, to) in [("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("bf16", "f64"), ("f32", "f64")] {
        let format = if to == "f32" { F32 } else { F64 };
        let convert = |s: &[u64]| {
            let x = float(from, s[0]);
            if to == "f32" { u64::from((x as f32).to_bits()) } else { x.to_bits() }
        };
        check_by(&format!("cvt.{to}.{from} %d, %a;"), to, &[from], convert, same(format));
    }
    // To an integer of the same format.
    for (name, mode) in MODES {
        let to_f64 = |s: &[u64]| whole(f64::from_bits(s[0]), mode).to_bits();
        check_by(&format!("cvt.{name}i.f64.f64 %d, %a;"), "f64", &["f64"], to_f64, same(F64));
        let to_f32 = |s: &[u64]| u64::from((whole(float("f32", s[0]), mode) as f32).to_bits());
        check_by(&format!("cvt.{name}i.f32.f32 %d, %a;"), "f32", &["f32"], to_f32, same(F32));
        let to_f16 = |s: &[u64]| F16.round(whole(float("f16", s[0]), mode), 0.0, Mode::Nearest);
        check_by(&format!("cvt.{name}i.f16.f16 %d, %a;"), "f16", &["f16"], to_f16, same(F16));
    }
    check_by(
        "cvt.rn.ftz.f32.f64 %d, %a;",
        "f32",
        &["f64"],
        |s| {
            let bits = F32.round(f64::from_bits(s[0]), 0.0, Mode::Nearest);
            if bits & F32.infinity() == 0 { bits & F32.sign() } else { bits }
        },
        same(F32),
    );
    check_by(
        "cvt.ftz.f64.f32 %d, %a;",
        "f64",
        &["f32"],
        |s| {
            let bits = if s[0] & F32.infinity() == 0 { s[0] & F32.sign() } else { s[0] };
            float("f32", bits).to_bits()
        },
        same(F64),
    );
}

#[test]
fn packed_and_tensor_core_formats() {
    let limited = |bits: u64, format: Format| {
        if bits & !format.sign() == format.infinity() { bits - 1 } else { bits }
    };
    for (to, format) in [("f16", F16), ("bf16", BF16)] {
        for (name, mode) in [("rn", Mode::Nearest), ("rz", Mode::Zero)] {
            let narrow = |x: u64| format.round(float("f32", x), 0.0, mode);
            let rectified = |x: u64| {
                let value = float("f32", x);
                format.round(if value <= 0.0 { 0.0 } else { value }, 0.0, mode)
            };
            let nan = |s: &[u64]| s.iter().any(|&x| F32.is_nan(x));
            let pair = |upper: u64, lower: u64| upper << 16 | lower;
            let same = move |got, expected, s: &[u64]| got == expected || nan(s);
            check_by(&format!("cvt.{name}.{to}.f32 %d, %a;"), "u16", &["f32"], |s| narrow(s[0]), same);
            check_by(&format!("cvt.{name}.relu.{to}.f32 %d, %a;"), "u16", &["f32"], |s| rectified(s[0]), same);
            check_by(
                &format!("cvt.{name}.satfinite.{to}.f32 %d, %a;"),
                "u16",
                &["f32"],
                |s| limited(narrow(s[0]), format),
                same,
            );
            check_by(
                &format!("cvt.{name}.{to}x2.f32 %d, %a, %b;"),
                "u32",
                &["f32", "f32"],
                |s| pair(narrow(s[0]), narrow(s[1])),
                same,
            );
            check_by(
                &format!("cvt.{name}.relu.{to}x2.f32 %d, %a, %b;"),
                "u32",
                &["f32", "f32"],
                |s| pair(rectified(s[0]), rectified(s[1])),
                same,
            );
        }
    }
    for (name, mode) in [("rna", Mode::Away), ("rn", Mode::Nearest), ("rz", Mode::Zero)] {
        check_by(
            &format!("cvt.{name}.tf32.f32 %d, %a;"),
            "u32",
            &["f32"],
            |s| TF32.round(float("f32", s[0]), 0.0, mode) << 13,
            |got, expected, s| got == expected || F32.is_nan(s[0]),
        );
    }
    for (to, bits) in [("u8", 8), ("s8", 8), ("u4", 4), ("s4", 4), ("u2", 2), ("s2", 2)] {
        let (low, high) =
            if to.starts_with('s') { (-(1i64 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        let pack = move |x: u64| (i64::from(x as i32)).clamp(low, high) as u64 & ((1 << bits) - 1);
        check(&format!("cvt.pack.sat.{to}.s32.b32 %d, %a, %b, %c;"), "u32", &["u32", "u32", "u32"], |s| {
            s[2] << (2 * bits) | pack(s[0]) << bits | pack(s[1])
        });
    }
    check("cvt.pack.sat.s16.s32 %d, %a, %b;", "u32", &["u32", "u32"], |s| {
        let pack = |x: u64| (x as i32).clamp(-32768, 32767) as u64 & 0xFFFF;
        pack(s[0]) << 16 | pack(s[1])
    });
}

/// The value of an 8-bit float by its definition: e5m2 as IEEE has it, e4m3 with one NaN in place of infinities.
fn eight_bit(bits: u64, is_e4m3: bool) -> f64 {
    let (mantissa, bias) = if is_e4m3 { (3, 7) } else { (2, 15) };
    let (field, fraction) =
        ((bits & 0x7F) >> mantissa, (bits & ((1 << mantissa) - 1)) as f64 / f64::from(1 << mantissa));
    let magnitude = match (is_e4m3, bits & 0x7F) {
        (true, 0x7F) | (false, 0x7D..) => f64::NAN,
        (false, 0x7C) => f64::INFINITY,
        _ if field == 0 => fraction * 2f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2f64.powi(field as i32 - bias),
    };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The finite 8-bit float nearest to a number, the even one of two: by looking at all of them.
fn nearest_eight_bit(value: f32, is_e4m3: bool) -> u64 {
    if value.is_nan() {
        return 0x7F;
    }
    let distance = |bits: &u64| (eight_bit(*bits, is_e4m3) - f64::from(value.abs())).abs();
    let finite = (0..0x80).filter(|&bits| eight_bit(bits, is_e4m3).is_finite());
    // Beyond what f64 tells apart the distances are all the same; what saturates takes the greatest.
    let best = match value.abs() > 1e9 {
        true => finite.max(),
        false => finite.min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))),
    };
    best.unwrap() | if value.is_sign_negative() { 0x80 } else { 0 }
}

#[test]
fn eight_bit_floats_round_to_the_nearest_and_saturate() {
    let float = |bits: u64| f32::from_bits(bits as u32);
    for (name, is_e4m3) in [("e4m3x2", true), ("e5m2x2", false)] {
        let narrow = |value| nearest_eight_bit(value, is_e4m3);
        check(&format!("cvt.rn.satfinite.{name}.f32 %d, %a, %b;"), "u16", &["u32", "u32"], |s| {
            narrow(float(s[0])) << 8 | narrow(float(s[1]))
        });
        check(&format!("cvt.rn.satfinite.relu.{name}.f32 %d, %a, %b;"), "u16", &["u32", "u32"], |s| {
            let narrow = |value: f32| if value <= 0.0 { 0 } else { narrow(value) };
            narrow(float(s[0])) << 8 | narrow(float(s[1]))
        });
        check(&format!("cvt.rn.satfinite.{name}.f16x2 %d, %a;"), "u16", &["u32"], |s| {
            let half = |bits: u64| F16.value(bits & 0xFFFF) as f32;
            narrow(half(s[0] >> 16)) << 8 | narrow(half(s[0]))
        });
        let widen = |bits: u64| F16.round(eight_bit(bits & 0xFF, is_e4m3), 0.0, Mode::Nearest);
        check_by(
            &format!("cvt.rn.f16x2.{name} %d, %a;"),
            "u32",
            &["u16"],
            |s| widen(s[0] >> 8) << 16 | widen(s[0]),
            |got, expected, _| {
                [0, 16].iter().all(|shift| {
                    let (got, expected) = (got >> shift & 0xFFFF, expected >> shift & 0xFFFF);
                    got == expected || (F16.is_nan(got) && F16.is_nan(expected))
                })
            },
        );
    }
}
