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
