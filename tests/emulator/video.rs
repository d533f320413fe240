//! Video instructions: against references that pick parts out of bytes.

use super::instructions::check;

/// Part `index` of `bits` bits, by the signedness of its type.
fn part(word: u64, index: u64, bits: u64, is_signed: bool) -> i64 {
    let value = (word >> (index * bits)) & ((1 << bits) - 1);
    if is_signed && value >> (bits - 1) & 1 != 0 { value as i64 - (1 << bits) } else { value as i64 }
}

/// `f` on each of the `count` parts of `a` and `b`, put side by side.
fn each(s: &[u64], count: u64, is_signed: bool, f: impl Fn(i64, i64) -> i64) -> u64 {
    let bits = 32 / count;
    (0..count)
        .map(|index| {
            let result = f(part(s[0], index, bits, is_signed), part(s[1], index, bits, is_signed));
            (result as u64 & ((1 << bits) - 1)) << (index * bits)
        })
        .sum()
}

fn total(s: &[u64], count: u64, is_signed: bool, f: impl Fn(i64, i64) -> i64) -> u64 {
    let bits = 32 / count;
    let parts = (0..count).map(|index| f(part(s[0], index, bits, is_signed), part(s[1], index, bits, is_signed)));
    s[2].wrapping_add(parts.sum::<i64>() as u64)
}

const THREE: [&str; 3] = ["u32"; 3];

#[test]
fn packed_forms_compute_each_part() {
    check("vadd4.u32.u32.u32 %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 4, false, |a, b| a + b));
    check("vadd2.s32.s32.s32.sat %d, %a, %b, %c;", "u32", &THREE, |s| {
        each(s, 2, true, |a, b| (a + b).clamp(-32768, 32767))
    });
    check("vsub4.u32.u32.u32.sat %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 4, false, |a, b| (a - b).max(0)));
    check("vsub2.s32.u32.u32 %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 2, false, |a, b| a - b));
    check("vavrg4.u32.u32.u32 %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 4, false, |a, b| (a + b + 1) / 2));
    check("vavrg2.s32.s32.s32 %d, %a, %b, %c;", "u32", &THREE, |s| {
        each(s, 2, true, |a, b| if a + b >= 0 { (a + b + 1) >> 1 } else { (a + b) >> 1 })
    });
    check("vabsdiff4.u32.u32.u32 %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 4, false, |a, b| (a - b).abs()));
    check("vmin4.s32.s32.s32 %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 4, true, i64::min));
    check("vmax2.u32.u32.u32 %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 2, false, i64::max));
    check("vset4.s32.s32.lt %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 4, true, |a, b| i64::from(a < b)));
    check("vset2.u32.u32.ge %d, %a, %b, %c;", "u32", &THREE, |s| each(s, 2, false, |a, b| i64::from(a >= b)));
}

#[test]
fn packed_forms_add_up() {
    check("vabsdiff4.u32.u32.u32.add %d, %a, %b, %c;", "u32", &THREE, |s| total(s, 4, false, |a, b| (a - b).abs()));
    check("vabsdiff2.s32.s32.s32.add %d, %a, %b, %c;", "u32", &THREE, |s| total(s, 2, true, |a, b| (a - b).abs()));
    check("vset4.u32.u32.ne.add %d, %a, %b, %c;", "u32", &THREE, |s| total(s, 4, false, |a, b| i64::from(a != b)));
}

#[test]
fn packed_forms_take_parts_as_they_are_selected() {
    // The parts of a and b are numbered through; what the mask leaves out comes from c.
    check("vadd4.u32.u32.u32 %d.b20, %a.b7012, %b.b4444, %c;", "u32", &THREE, |s| {
        let byte = |word: u64, index: u64| part(word, index, 8, false) as u64;
        let (low, high) = (byte(s[0], 2) + byte(s[1], 0), byte(s[0], 0) + byte(s[1], 0));
        (s[2] & 0xFF00_FF00) | (low & 0xFF) | (high & 0xFF) << 16
    });
    check("vmax2.s32.s32.s32 %d.h1, %a.h30, %b.h12, %c;", "u32", &THREE, |s| {
        let greatest = part(s[1], 1, 16, true).max(part(s[0], 1, 16, true));
        (s[2] & 0xFFFF) | (greatest as u64 & 0xFFFF) << 16
    });
}

#[test]
fn scalar_forms_take_parts_and_follow_up() {
    let signed = |word: u64| i64::from(word as i32);
    let two = ["u32", "u32"];
    check("vadd.s32.u32.s32 %d, %a.b1, %b.h1;", "u32", &two, |s| {
        (part(s[0], 1, 8, false) + part(s[1], 1, 16, true)) as u64
    });
    check("vsub.s32.s32.s32.sat %d, %a, %b;", "u32", &two, |s| {
        (signed(s[0]) - signed(s[1])).clamp(i32::MIN.into(), i32::MAX.into()) as u64
    });
    check("vabsdiff.u32.s32.s32.add %d, %a, %b, %c;", "u32", &THREE, |s| {
        ((signed(s[0]) - signed(s[1])).unsigned_abs()).wrapping_add(s[2])
    });
    check("vmin.s32.s32.s32.max %d, %a.b3, %b.b0, %c;", "u32", &THREE, |s| {
        part(s[0], 3, 8, true).min(part(s[1], 0, 8, true)).max(signed(s[2])) as u64
    });
    check("vadd.u32.u32.u32.sat %d.b2, %a.b0, %b.b1, %c;", "u32", &THREE, |s| {
        let sum = (part(s[0], 0, 8, false) + part(s[1], 1, 8, false)).min(255) as u64;
        (s[2] & 0xFF00_FFFF) | sum << 16
    });
    check("vset.s32.u32.gt %d, %a.h0, %b.b3;", "u32", &two, |s| {
        u64::from(part(s[0], 0, 16, true) > part(s[1], 3, 8, false))
    });
    check("vshl.u32.u32.u32.clamp %d, %a, %b;", "u32", &two, |s| if s[1] >= 32 { 0 } else { s[0] << s[1] });
    check("vshr.s32.s32.u32.wrap %d, %a, %b;", "u32", &two, |s| (signed(s[0]) >> (s[1] & 31)) as u64);
    check("vmad.s32.s32.u32.sat.shr7 %d, %a.h1, %b.b2, %c;", "u32", &THREE, |s| {
        let sum = part(s[0], 1, 16, true) * part(s[1], 2, 8, false) + signed(s[2]);
        (sum >> 7).clamp(i32::MIN.into(), i32::MAX.into()) as u64
    });
}
