//! Floating point in every rounding mode and format, against error-free transformations; approximations within the
//! manual's stated error.

use std::cmp::Ordering::{self, Equal, Greater, Less};

use super::instructions::{check, check_by};
use super::reference::{BF16, F16, F32, Format, MODES, Mode, of_integer, quotient, root, round_f64, sum};

fn f(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

fn same_f32(got: u64, expected: u64, _: &[u64]) -> bool {
    got == expected || (F32.is_nan(got) && F32.is_nan(expected))
}

fn flushed(bits: u64) -> u64 {
    if bits & F32.infinity() == 0 { bits & F32.sign() } else { bits }
}

#[test]
fn f32_in_every_rounding_with_and_without_flushing() {
    // f64 holds the product of two f32 exactly, and with its rest the sum.
    type Exact = fn(&[f64], Mode) -> (f64, f64);
    let operations: [(&str, usize, Exact); 7] = [
        ("add", 2, |x, mode| sum(x[0], x[1], mode)),
        ("sub", 2, |x, mode| sum(x[0], -x[1], mode)),
        ("mul", 2, |x, _| (x[0] * x[1], 0.0)),
        ("fma", 3, |x, mode| sum(x[0] * x[1], x[2], mode)),
        ("div", 2, |x, _| quotient(x[0], x[1])),
        ("rcp", 1, |x, _| quotient(1.0, x[0])),
        ("sqrt", 1, |x, _| root(x[0])),
    ];
    for (opcode, count, exact) in operations {
        for (name, mode) in MODES {
            let (types, operands) = (&["f32", "f32", "f32"][..count], &[", %a", ", %b", ", %c"][..count]);
            let instruction = |modifiers: &str| format!("{opcode}.{name}{modifiers}.f32 %d{};", operands.concat());
            let result = move |s: &[u64]| {
                let (x, tail) = exact(&s.iter().map(|&bits| f(bits)).collect::<Vec<_>>(), mode);
                F32.round(x, tail, mode)
            };
            let flushing = move |s: &[u64]| flushed(result(&s.iter().map(|&bits| flushed(bits)).collect::<Vec<_>>()));
            let limited = move |s: &[u64]| {
                let bits = result(s);
                let value = f(bits);
                u64::from(if value > 0.0 { value.min(1.0) as f32 } else { 0.0 }.to_bits())
            };
            check_by(&instruction(""), "f32", types, result, same_f32);
            check_by(&instruction(".ftz"), "f32", types, flushing, same_f32);
            if matches!(opcode, "add" | "sub" | "mul" | "fma") {
                check_by(&instruction(".sat"), "f32", types, limited, same_f32);
            }
        }
    }
}

#[test]
fn f64_in_every_rounding() {
    // Where the rest would be subnormal it is not exact: such cases say nothing.
    fn same(got: u64, expected: u64, s: &[u64]) -> bool {
        let tiny = |x: f64| x != 0.0 && x.abs() < 1e-280;
        got == expected
            || (d(got).is_nan() && d(expected).is_nan())
            || tiny(d(expected))
            || s.iter().any(|&bits| tiny(d(bits)))
            || !d(expected).is_finite()
            || d(expected).abs() == f64::MAX
    }
    let product = |a: f64, b: f64| (a * b, if (a * b).is_finite() { a.mul_add(b, -(a * b)) } else { 0.0 });
    for (name, mode) in MODES {
        let two: &[&str] = &["f64", "f64"];
        let round = move |(x, tail)| round_f64(x, tail, mode).to_bits();
        check_by(&format!("add.{name}.f64 %d, %a, %b;"), "f64", two, |s| round(sum(d(s[0]), d(s[1]), mode)), same);
        check_by(&format!("sub.{name}.f64 %d, %a, %b;"), "f64", two, |s| round(sum(d(s[0]), -d(s[1]), mode)), same);
        check_by(&format!("mul.{name}.f64 %d, %a, %b;"), "f64", two, |s| round(product(d(s[0]), d(s[1]))), same);
        check_by(&format!("div.{name}.f64 %d, %a, %b;"), "f64", two, |s| round(quotient(d(s[0]), d(s[1]))), same);
        check_by(&format!("rcp.{name}.f64 %d, %a;"), "f64", &["f64"], |s| round(quotient(1.0, d(s[0]))), same);
        check_by(&format!("sqrt.{name}.f64 %d, %a;"), "f64", &["f64"], |s| round(root(d(s[0]))), same);
        // Integers, so that the exact sum fits 128 bits: a * b + c * 2^-20.
        check(
            &format!(
                "{{ .reg .f64 %x0, %y0, %z0; .reg .b64 %w0; cvt.rn.f64.s32 %x0, %a; cvt.rn.f64.s32 %y0, %b;\n\
                 shr.s64 %w0, %c, 12; cvt.rn.f64.s64 %z0, %w0; mul.rn.f64 %z0, %z0, 0d3EB0000000000000;\n\
                 fma.{name}.f64 %d, %x0, %y0, %z0; }}"
            ),
            "f64",
            &["u32", "u32", "u64"],
            |s| {
                let exact = ((i128::from(s[0] as i32) * i128::from(s[1] as i32)) << 20) + i128::from(s[2] as i64 >> 12);
                let (x, tail) = of_integer(exact);
                // Exact cancellation, and zeros of either sign, add up to -0 only when rounding down.
                let (a, b) = (s[0] as i32, s[1] as i32);
                let is_positive_zero = (a == 0 && b >= 0) || (b == 0 && a >= 0);
                let signed = if x == 0.0 && mode == Mode::Down && !is_positive_zero { -0.0 } else { x };
                (round_f64(signed, tail, mode) * 2f64.powi(-20)).to_bits()
            },
        );
    }
}

fn halves() -> [(&'static str, Format); 2] {
    [("f16", F16), ("bf16", BF16)]
}

#[test]
fn half_precision_rounds_once_alone_and_in_pairs() {
    type Exact = fn(&[f64]) -> (f64, f64);
    let operations: [(&str, usize, Exact); 4] = [
        ("add", 2, |x| sum(x[0], x[1], Mode::Nearest)),
        ("sub", 2, |x| sum(x[0], -x[1], Mode::Nearest)),
        ("mul", 2, |x| (x[0] * x[1], 0.0)),
        ("fma", 3, |x| sum(x[0] * x[1], x[2], Mode::Nearest)),
    ];
    for (ty, format) in halves() {
        let same = move |got: u64, expected: u64| got == expected || format.is_nan(got) && format.is_nan(expected);
        let same_pair = move |got: u64, expected: u64, _: &[u64]| {
            same(got & 0xFFFF, expected & 0xFFFF) && same(got >> 16, expected >> 16)
        };
        for (opcode, count, exact) in operations {
            let operands = [", %a", ", %b", ", %c"][..count].concat();
            let result = move |s: &[u64]| {
                let (x, tail) = exact(&s.iter().map(|&bits| format.value(bits)).collect::<Vec<_>>());
                format.round(x, tail, Mode::Nearest)
            };
            let pair = move |s: &[u64], f: &dyn Fn(&[u64]) -> u64| {
                let part = |shift: u32| s.iter().map(|&bits| bits >> shift & 0xFFFF).collect::<Vec<_>>();
                f(&part(16)) << 16 | f(&part(0))
            };
            let one = &["u16", "u16", "u16"][..count];
            let two = &["u32", "u32", "u32"][..count];
            check_by(&format!("{opcode}.rn.{ty} %d{operands};"), "u16", one, result, move |g, e, _| same(g, e));
            check_by(&format!("{opcode}.rn.{ty}x2 %d{operands};"), "u32", two, |s| pair(s, &result), same_pair);
            if ty == "f16" {
                let limited = move |s: &[u64]| {
                    let x = format.value(result(s));
                    if x > 0.0 { format.round(x.min(1.0), 0.0, Mode::Nearest) } else { 0 }
                };
                check_by(&format!("{opcode}.sat.f16x2 %d{operands};"), "u32", two, |s| pair(s, &limited), same_pair);
                let flush = |bits: u64| if bits & 0x7C00 == 0 { bits & 0x8000 } else { bits };
                let flushing = move |s: &[u64]| flush(result(&s.iter().map(|&b| flush(b)).collect::<Vec<_>>()));
                check_by(&format!("{opcode}.ftz.f16 %d{operands};"), "u16", one, flushing, move |g, e, _| same(g, e));
            }
            if opcode == "fma" {
                let rectified = move |s: &[u64]| {
                    let bits = result(s);
                    if format.value(bits) <= 0.0 { 0 } else { bits }
                };
                check_by(&format!("fma.rn.relu.{ty}x2 %d{operands};"), "u32", two, |s| pair(s, &rectified), same_pair);
            }
        }
        check(&format!("abs.{ty}x2 %d, %a;"), "u32", &["u32"], |s| s[0] & 0x7FFF_7FFF);
        check(&format!("neg.{ty} %d, %a;"), "u16", &["u16"], |s| s[0] ^ 0x8000);
        for (opcode, is_least) in [("min", true), ("max", false)] {
            let choose = move |a: u64, b: u64| {
                let (x, y) = (format.value(a), format.value(b));
                match (x.is_nan(), y.is_nan()) {
                    (true, _) => b,
                    (_, true) => a,
                    _ if x == y && (a & 0x8000 != 0) == is_least => a,
                    _ if x == y => b,
                    _ if (x < y) == is_least => a,
                    _ => b,
                }
            };
            let two: &[&str] = &["u16", "u16"];
            check_by(
                &format!("{opcode}.{ty} %d, %a, %b;"),
                "u16",
                two,
                |s| choose(s[0], s[1]),
                move |g, e, _| same(g, e),
            );
            check_by(
                &format!("{opcode}.NaN.{ty} %d, %a, %b;"),
                "u16",
                two,
                |s| if s.iter().any(|&x| format.is_nan(x)) { 0x7FFF } else { choose(s[0], s[1]) },
                |got, expected, _| got == expected,
            );
            check_by(
                &format!("{opcode}.xorsign.abs.{ty} %d, %a, %b;"),
                "u16",
                two,
                |s| choose(s[0] & 0x7FFF, s[1] & 0x7FFF) | (s[0] ^ s[1]) & 0x8000,
                move |got, expected, _| same(got, expected),
            );
        }
    }
}

#[test]
fn extremes_of_f32_and_f64_with_their_modifiers() {
    for (opcode, is_least) in [("min", true), ("max", false)] {
        let choose = move |x: f64, y: f64| {
            if x.is_nan() {
                y
            } else if y.is_nan() || (x < y) == is_least && x != y || x == y && x.is_sign_negative() == is_least {
                x
            } else {
                y
            }
        };
        let as_f32 = |x: f64| u64::from((x as f32).to_bits());
        check_by(
            &format!("{opcode}.f64 %d, %a, %b;"),
            "f64",
            &["f64", "f64"],
            |s| choose(d(s[0]), d(s[1])).to_bits(),
            |got, expected, _| got == expected || d(got).is_nan() && d(expected).is_nan(),
        );
        let two: &[&str] = &["f32", "f32"];
        check_by(
            &format!("{opcode}.ftz.f32 %d, %a, %b;"),
            "f32",
            two,
            |s| as_f32(choose(f(flushed(s[0])), f(flushed(s[1])))),
            same_f32,
        );
        check_by(
            &format!("{opcode}.NaN.f32 %d, %a, %b;"),
            "f32",
            two,
            |s| if s.iter().any(|&x| F32.is_nan(x)) { 0x7FFF_FFFF } else { as_f32(choose(f(s[0]), f(s[1]))) },
            |got, expected, _| got == expected,
        );
        check_by(
            &format!("{opcode}.xorsign.abs.f32 %d, %a, %b;"),
            "f32",
            two,
            |s| as_f32(choose(f(s[0]).abs(), f(s[1]).abs())) | (s[0] ^ s[1]) & F32.sign(),
            same_f32,
        );
    }
    for (property, holds) in [
        ("finite", (|x| x.is_finite()) as fn(f32) -> bool),
        ("infinite", |x| x.is_infinite()),
        ("number", |x| !x.is_nan()),
        ("notanumber", |x| x.is_nan()),
        ("normal", |x| x.is_normal() || x == 0.0),
        ("subnormal", |x| x.is_subnormal()),
    ] {
        check(&format!("{{ testp.{property}.f32 %p, %a; selp.u32 %d, 1, 0, %p; }}"), "u32", &["f32"], |s| {
            u64::from(holds(f32::from_bits(s[0] as u32)))
        });
    }
}

#[test]
fn approximations_stay_within_the_manuals_error() {
    // Relative error, and an absolute one that is enough.
    let near = |relative: f64, absolute: f64, is_flushed: bool, exact: fn(f64) -> f64| {
        move |got: u64, _: u64, s: &[u64]| {
            let input = if is_flushed { f(flushed(s[0])) } else { f(s[0]) };
            let (exact, got) = (exact(input), f(got));
            let rounded = exact as f32;
            let is_gone = is_flushed && rounded.abs() < f32::MIN_POSITIVE && got == 0.0;
            (got.is_nan() && exact.is_nan())
                || got == f64::from(rounded)
                || is_gone
                || (got - exact).abs() <= (relative * exact.abs()).max(absolute).max(1.5e-45)
        }
    };
    let bound = |exponent: f64| 2f64.powf(-exponent);
    type Function = (&'static str, f64, f64, fn(f64) -> f64);
    let functions: [Function; 6] = [
        ("rcp", bound(23.0), 0.0, |x| 1.0 / x),
        ("sqrt", bound(23.0), 0.0, f64::sqrt),
        ("rsqrt", bound(22.9), 0.0, |x| 1.0 / x.sqrt()),
        ("ex2", bound(22.0), 0.0, f64::exp2),
        ("lg2", bound(22.0), bound(22.0), f64::log2),
        ("tanh", bound(11.0), 0.0, f64::tanh),
    ];
    for (opcode, relative, absolute, exact) in functions {
        check_by(
            &format!("{opcode}.approx.f32 %d, %a;"),
            "f32",
            &["f32"],
            |_| 0,
            near(relative, absolute, false, exact),
        );
        if opcode != "tanh" {
            check_by(
                &format!("{opcode}.approx.ftz.f32 %d, %a;"),
                "f32",
                &["f32"],
                |_| 0,
                near(relative, absolute, true, exact),
            );
        }
    }
    for (opcode, exact) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
        check_by(&format!("{opcode}.approx.f32 %d, %a;"), "f32", &["f32"], |_| 0, near(0.0, bound(20.5), false, exact));
    }
    for form in ["div.approx.f32", "div.full.f32"] {
        check_by(
            &format!("{form} %d, %a, %b;"),
            "f32",
            &["f32", "f32"],
            |_| 0,
            |got, _, s| {
                let (exact, got, divisor) = (f(s[0]) / f(s[1]), f(got), f(s[1]).abs());
                let in_range = (2f64.powi(-126)..=2f64.powi(126)).contains(&divisor);
                !in_range
                    || got.is_nan() && exact.is_nan()
                    || got == f64::from(exact as f32)
                    || (got - exact).abs() <= 2f64.powi(-22) * exact.abs() + 1.5e-45
            },
        );
    }
    let half = |format: Format, relative: f64, absolute: f64, exact: fn(f64) -> f64| {
        move |got: u64, _: u64, s: &[u64]| {
            let (got, exact) = (format.value(got), exact(format.value(s[0])));
            got.is_nan() && exact.is_nan()
                || got == format.value(format.round(exact, 0.0, Mode::Nearest))
                || (got - exact).abs() <= (relative * exact.abs()).max(absolute)
        }
    };
    let one: &[&str] = &["u16"];
    check_by("ex2.approx.f16 %d, %a;", "u16", one, |_| 0, half(F16, bound(9.9), 0.0, f64::exp2));
    check_by("tanh.approx.f16 %d, %a;", "u16", one, |_| 0, half(F16, 0.0, bound(10.987), f64::tanh));
    check_by("ex2.approx.ftz.bf16 %d, %a;", "u16", one, |_| 0, half(BF16, bound(7.0), 1.2e-38, f64::exp2));
    check_by("tanh.approx.bf16 %d, %a;", "u16", one, |_| 0, half(BF16, bound(8.0), 0.0, f64::tanh));
    let top = |got: u64, exact: f64| {
        d(got).is_nan() && exact.is_nan()
            || got & 0xFFFF_FFFF == 0 && (d(got) == exact || (d(got) - exact).abs() <= 2f64.powi(-20) * exact.abs())
    };
    check_by(
        "rcp.approx.ftz.f64 %d, %a;",
        "f64",
        &["f64"],
        |_| 0,
        move |got, _, s| d(s[0]).is_subnormal() || (1.0 / d(s[0])).is_subnormal() || top(got, 1.0 / d(s[0])),
    );
    check_by(
        "rsqrt.approx.ftz.f64 %d, %a;",
        "f64",
        &["f64"],
        |_| 0,
        move |got, _, s| d(s[0]).is_subnormal() || top(got, 1.0 / d(s[0]).sqrt()),
    );
}

#[test]
fn comparisons_of_every_type_and_kind() {
    // None where a NaN makes them unordered.
    type Test = fn(Option<Ordering>) -> bool;
    let tests: [(&str, Test); 14] = [
        ("eq", |order| order == Some(Equal)),
        ("ne", |order| matches!(order, Some(Less | Greater))),
        ("lt", |order| order == Some(Less)),
        ("le", |order| matches!(order, Some(Less | Equal))),
        ("gt", |order| order == Some(Greater)),
        ("ge", |order| matches!(order, Some(Greater | Equal))),
        ("equ", |order| matches!(order, None | Some(Equal))),
        ("neu", |order| order != Some(Equal)),
        ("ltu", |order| matches!(order, None | Some(Less))),
        ("leu", |order| order != Some(Greater)),
        ("gtu", |order| matches!(order, None | Some(Greater))),
        ("geu", |order| order != Some(Less)),
        ("num", |order| order.is_some()),
        ("nan", |order| order.is_none()),
    ];
    for (name, test) in tests {
        for (ty, value) in [
            ("f16", (|bits| F16.value(bits)) as fn(u64) -> f64),
            ("bf16", |bits| BF16.value(bits)),
            ("f32", f),
            ("f64", d),
        ] {
            check(
                &format!("{{ setp.{name}.{ty} %p|%q, %a, %b; selp.u32 %d, 1, 0, %p; @%q add.u32 %d, %d, 2; }}"),
                "u32",
                &[ty, ty],
                |s| if test(value(s[0]).partial_cmp(&value(s[1]))) { 1 } else { 2 },
            );
        }
        check(&format!("set.{name}.f32.f32 %d, %a, %b;"), "f32", &["f32", "f32"], |s| {
            if test(f(s[0]).partial_cmp(&f(s[1]))) { 0x3F80_0000 } else { 0 }
        });
    }
    type Order = fn(i128, i128) -> bool;
    let orders: [(&str, &str, Order); 6] = [
        ("eq", "eq", |a, b| a == b),
        ("ne", "ne", |a, b| a != b),
        ("lt", "lo", |a, b| a < b),
        ("le", "ls", |a, b| a <= b),
        ("gt", "hi", |a, b| a > b),
        ("ge", "hs", |a, b| a >= b),
    ];
    for (name, unsigned_name, order) in orders {
        for bits in [16u32, 32, 64] {
            let plain = format!("u{bits}");
            let two = [plain.as_str(), plain.as_str()];
            let signed = move |x: u64| i128::from((x << (64 - bits)) as i64 >> (64 - bits));
            check(&format!("{{ setp.{name}.s{bits} %p, %a, %b; selp.u32 %d, 1, 0, %p; }}"), "u32", &two, |s| {
                u64::from(order(signed(s[0]), signed(s[1])))
            });
            for spelling in [name, unsigned_name] {
                check(&format!("{{ setp.{spelling}.u{bits} %p, %a, %b; selp.u32 %d, 1, 0, %p; }}"), "u32", &two, |s| {
                    u64::from(order(s[0].into(), s[1].into()))
                });
            }
        }
    }
}
