//! Fragment layouts of ldmatrix, stmatrix, movmatrix and mma.sync, written from the manual's tables, and wmma by products.

use engine::driver::emulator::{DeviceFacts, Emulator, LaunchConfig, Params};

fn hash(index: usize) -> u32 {
    let x = (index as u32).wrapping_mul(0x9E37_79B9) ^ 0x1234_5678;
    (x ^ (x >> 15)).wrapping_mul(0x85EB_CA6B)
}

/// Runs `body` on one warp: `%p0`, `%p1`, `%p2` point to `inputs`, `%o` to the results, whose bytes it returns.
fn run(body: &str, inputs: &[Vec<u8>], result_bytes: usize) -> Vec<u8> {
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 q0, .param .u64 q1, .param .u64 q2, .param .u64 q3) {{\n\
         .shared .align 128 .b8 tile[8192];\n.reg .b64 %p<3>, %o, %x<9>;\n.reg .b32 %l, %r<80>;\n.reg .f64 %d<9>;\n\
         ld.param.u64 %p0, [q0];\nld.param.u64 %p1, [q1];\nld.param.u64 %p2, [q2];\nld.param.u64 %o, [q3];\n\
         mov.u32 %l, %laneid;\n{body}\nret;\n}}\n"
    );
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    let mut params = Params::new();
    for index in 0..3 {
        params = params.u64(inputs.get(index).map_or(0, |bytes| emulator.upload(bytes).unwrap()));
    }
    let out = emulator.upload(&vec![0xA5u8; result_bytes]).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [32, 1, 1]);
    emulator.launch(&module, "k", config, params.u64(out).as_bytes()).unwrap_or_else(|error| panic!("{text}\n{error}"));
    emulator.download::<u8>(out, result_bytes).unwrap()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

fn halves(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks(2).map(|chunk| u16::from_le_bytes(chunk.try_into().unwrap())).collect()
}

/// Registers `%r0`, `%r1`... in braces.
fn registers(first: usize, count: usize) -> String {
    let names: Vec<String> = (first..first + count).map(|index| format!("%r{index}")).collect();
    format!("{{{}}}", names.join(", "))
}

#[test]
fn ldmatrix_and_stmatrix_move_rows_and_columns() {
    // Rows lie apart and out of order: row r of matrix m is at byte 16 * ((8 m + r) * 5 mod 32).
    let values: Vec<u16> = (0..256).map(|i| hash(i) as u16).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let element = |matrix: usize, row: usize, column: usize| ((8 * matrix + row) * 5 % 32) * 8 + column;
    let address = "mul.lo.u32 %r70, %l, 5;\nand.b32 %r70, %r70, 31;\nshl.b32 %r70, %r70, 4;\nmov.u32 %r71, tile;\nadd.u32 %r70, %r70, %r71;\n";
    let fill = "shl.b32 %r60, %l, 4;\ncvt.u64.u32 %x1, %r60;\nadd.u64 %x1, %p0, %x1;\nld.global.v4.u32 {%r61,%r62,%r63,%r64}, [%x1];\n\
                add.u32 %r60, %r60, %r71;\nst.shared.v4.u32 [%r60], {%r61,%r62,%r63,%r64};\nbar.warp.sync 0xffffffff;\n";
    for count in [1usize, 2, 4] {
        for trans in ["", ".trans"] {
            // The manual: lane l holds elements 2 (l mod 4) and the next of row l / 4; transposed, of column l / 4.
            let place = |matrix, lane: usize, half| {
                let (a, b) = (lane / 4, 2 * (lane % 4) + half);
                if trans.is_empty() { element(matrix, a, b) } else { element(matrix, b, a) }
            };
            let mut body = format!(
                "{address}{fill}ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {}, [%r70];\n",
                registers(0, count)
            );
            body += &format!("mul.wide.u32 %x2, %l, {};\nadd.u64 %x2, %o, %x2;\n", 4 * count);
            (0..count).for_each(|m| body += &format!("st.global.u32 [%x2+{}], %r{m};\n", 4 * m));
            let got = halves(&run(&body, std::slice::from_ref(&bytes), 128 * count));
            for lane in 0..32 {
                for (matrix, half) in (0..2 * count).map(|i| (i / 2, i % 2)) {
                    let index = 2 * (lane * count + matrix) + half;
                    assert_eq!(got[index], values[place(matrix, lane, half)], "ldmatrix x{count}{trans} lane {lane}");
                }
            }
            // Back: lane l gives the register m that it finds at input word l * count + m.
            let mut body = format!("{address}mul.wide.u32 %x2, %l, {};\nadd.u64 %x2, %p0, %x2;\n", 4 * count);
            (0..count).for_each(|m| body += &format!("ld.global.u32 %r{m}, [%x2+{}];\n", 4 * m));
            body += &format!(
                "stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r70], {};\nbar.warp.sync 0xffffffff;\n",
                registers(0, count)
            );
            body += "shl.b32 %r60, %l, 4;\nadd.u32 %r60, %r60, %r71;\nld.shared.v4.u32 {%r61,%r62,%r63,%r64}, [%r60];\n\
                     mul.wide.u32 %x2, %l, 16;\nadd.u64 %x2, %o, %x2;\nst.global.v4.u32 [%x2], {%r61,%r62,%r63,%r64};\n";
            let got = halves(&run(&body, std::slice::from_ref(&bytes), 512));
            for lane in 0..32 {
                for (matrix, half) in (0..2 * count).map(|i| (i / 2, i % 2)) {
                    let given = values[2 * (lane * count + matrix) + half];
                    assert_eq!(got[place(matrix, lane, half)], given, "stmatrix x{count}{trans} lane {lane}");
                }
            }
        }
    }
    let body = "mul.wide.u32 %x2, %l, 4;\nadd.u64 %x1, %p0, %x2;\nadd.u64 %x2, %o, %x2;\nld.global.u32 %r1, [%x1];\n\
                movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1;\nst.global.u32 [%x2], %r2;\n";
    let got = halves(&run(body, &[bytes[..128].to_vec()], 128));
    for (row, column) in (0..64).map(|i| (i / 8, i % 8)) {
        assert_eq!(got[8 * row + column], values[8 * column + row]);
    }
}

/// One shape of mma.sync, as the manual's tables have it.
struct Shape {
    /// m, n, k.
    size: [usize; 3],
    /// Type of A (and of B), and what D and C may be.
    types: &'static [(&'static str, &'static str)],
    sums: &'static [&'static str],
    /// Row and column of element i of a lane: A, then B.
    a: fn(usize, usize) -> (usize, usize),
    b: fn(usize, usize) -> (usize, usize),
    modifiers: &'static [&'static str],
}

fn bits_of(ty: &str) -> usize {
    match ty {
        "b1" => 1,
        "s4" | "u4" => 4,
        "s8" | "u8" => 8,
        "f16" | "bf16" => 16,
        "f64" => 64,
        _ => 32,
    }
}

/// A small number and its bits in the type.
fn number(ty: &str, seed: usize) -> (i64, u64) {
    let small = i64::from(hash(seed) % 9) - 4;
    match ty {
        "f16" => (small, half::f16::from_f32(small as f32).to_bits().into()),
        "bf16" => (small, half::bf16::from_f32(small as f32).to_bits().into()),
        "tf32" | "f32" => (small, u64::from((small as f32).to_bits())),
        "f64" => (small, (small as f64).to_bits()),
        "b1" => (i64::from(hash(seed) >> 7 & 1), u64::from(hash(seed) >> 7 & 1)),
        "u8" => (i64::from(hash(seed) as u8), u64::from(hash(seed) as u8)),
        "s8" => (i64::from(hash(seed) as i8), u64::from(hash(seed) as u8)),
        "u4" => (i64::from(hash(seed) & 15), u64::from(hash(seed) & 15)),
        "s4" => (i64::from((hash(seed) << 28) as i32 >> 28), u64::from(hash(seed) & 15)),
        _ => (i64::from(hash(seed) as i32 >> 12), u64::from((hash(seed) as i32 >> 12) as u32)),
    }
}

fn value_of(ty: &str, bits: u64) -> i64 {
    match ty {
        "f16" => half::f16::from_bits(bits as u16).to_f64() as i64,
        "f32" => f32::from_bits(bits as u32) as i64,
        "f64" => f64::from_bits(bits) as i64,
        _ => i64::from(bits as i32),
    }
}

/// Packs `elements` of `bits` bits each, lowest first.
fn pack(elements: &[u64], bits: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; elements.len() * bits / 8];
    for (index, element) in elements.iter().enumerate() {
        for bit in 0..bits {
            let at = index * bits + bit;
            bytes[at / 8] |= ((element >> bit & 1) as u8) << (at % 8);
        }
    }
    bytes
}

fn shapes() -> Vec<Shape> {
    const INTEGER: &[&str] = &["", ".satfinite"];
    const BYTES: &[(&str, &str)] = &[("s8", "s8"), ("u8", "u8"), ("s8", "u8"), ("u8", "s8")];
    const NIBBLES: &[(&str, &str)] = &[("s4", "s4"), ("u4", "u4"), ("s4", "u4"), ("u4", "s4")];
    const BITS: &[&str] = &[".xor.popc", ".and.popc"];
    const PLAIN: &[&str] = &[""];
    // g is the lane's group of four, t its place in the group.
    vec![
        Shape {
            size: [8, 8, 4],
            types: &[("f64", "f64")],
            sums: &["f64"],
            a: |l, _| (l / 4, l % 4),
            b: |l, _| (l % 4, l / 4),
            modifiers: PLAIN,
        },
        Shape {
            size: [16, 8, 8],
            types: &[("f16", "f16")],
            sums: &["f32", "f16"],
            a: |l, i| (l / 4 + 8 * (i / 2), 2 * (l % 4) + i % 2),
            b: |l, i| (2 * (l % 4) + i, l / 4),
            modifiers: PLAIN,
        },
        Shape {
            size: [16, 8, 8],
            types: &[("bf16", "bf16")],
            sums: &["f32"],
            a: |l, i| (l / 4 + 8 * (i / 2), 2 * (l % 4) + i % 2),
            b: |l, i| (2 * (l % 4) + i, l / 4),
            modifiers: PLAIN,
        },
        Shape {
            size: [16, 8, 16],
            types: &[("f16", "f16")],
            sums: &["f32", "f16"],
            a: |l, i| {
                (
                    if i < 2 || (4..6).contains(&i) { l / 4 } else { l / 4 + 8 },
                    2 * (l % 4) + i % 2 + if i < 4 { 0 } else { 8 },
                )
            },
            b: |l, i| (2 * (l % 4) + i % 2 + if i < 2 { 0 } else { 8 }, l / 4),
            modifiers: PLAIN,
        },
        Shape {
            size: [16, 8, 16],
            types: &[("bf16", "bf16")],
            sums: &["f32"],
            a: |l, i| {
                (
                    if i < 2 || (4..6).contains(&i) { l / 4 } else { l / 4 + 8 },
                    2 * (l % 4) + i % 2 + if i < 4 { 0 } else { 8 },
                )
            },
            b: |l, i| (2 * (l % 4) + i % 2 + if i < 2 { 0 } else { 8 }, l / 4),
            modifiers: PLAIN,
        },
        Shape {
            size: [16, 8, 4],
            types: &[("tf32", "tf32")],
            sums: &["f32"],
            a: |l, i| (l / 4 + 8 * i, l % 4),
            b: |l, _| (l % 4, l / 4),
            modifiers: PLAIN,
        },
        Shape {
            size: [16, 8, 8],
            types: &[("tf32", "tf32")],
            sums: &["f32"],
            a: |l, i| (l / 4 + 8 * (i % 2), l % 4 + 4 * (i / 2)),
            b: |l, i| (l % 4 + 4 * i, l / 4),
            modifiers: PLAIN,
        },
        Shape {
            size: [8, 8, 16],
            types: BYTES,
            sums: &["s32"],
            a: |l, i| (l / 4, 4 * (l % 4) + i),
            b: |l, i| (4 * (l % 4) + i, l / 4),
            modifiers: INTEGER,
        },
        Shape {
            size: [16, 8, 16],
            types: BYTES,
            sums: &["s32"],
            a: |l, i| (if i < 4 { l / 4 } else { l / 4 + 8 }, 4 * (l % 4) + i % 4),
            b: |l, i| (4 * (l % 4) + i, l / 4),
            modifiers: INTEGER,
        },
        Shape {
            size: [16, 8, 32],
            types: BYTES,
            sums: &["s32"],
            a: |l, i| {
                (
                    if i < 4 || (8..12).contains(&i) { l / 4 } else { l / 4 + 8 },
                    4 * (l % 4) + i % 4 + if i < 8 { 0 } else { 16 },
                )
            },
            b: |l, i| (4 * (l % 4) + i % 4 + if i < 4 { 0 } else { 16 }, l / 4),
            modifiers: INTEGER,
        },
        Shape {
            size: [8, 8, 32],
            types: NIBBLES,
            sums: &["s32"],
            a: |l, i| (l / 4, 8 * (l % 4) + i),
            b: |l, i| (8 * (l % 4) + i, l / 4),
            modifiers: INTEGER,
        },
        Shape {
            size: [16, 8, 32],
            types: NIBBLES,
            sums: &["s32"],
            a: |l, i| (if i < 8 { l / 4 } else { l / 4 + 8 }, 8 * (l % 4) + i % 8),
            b: |l, i| (8 * (l % 4) + i, l / 4),
            modifiers: INTEGER,
        },
        Shape {
            size: [16, 8, 64],
            types: NIBBLES,
            sums: &["s32"],
            a: |l, i| {
                (
                    if i < 8 || (16..24).contains(&i) { l / 4 } else { l / 4 + 8 },
                    8 * (l % 4) + i % 8 + if i < 16 { 0 } else { 32 },
                )
            },
            b: |l, i| (8 * (l % 4) + i % 8 + if i < 8 { 0 } else { 32 }, l / 4),
            modifiers: INTEGER,
        },
        Shape {
            size: [8, 8, 128],
            types: &[("b1", "b1")],
            sums: &["s32"],
            a: |l, i| (l / 4, 32 * (l % 4) + i),
            b: |l, i| (32 * (l % 4) + i, l / 4),
            modifiers: BITS,
        },
        Shape {
            size: [16, 8, 128],
            types: &[("b1", "b1")],
            sums: &["s32"],
            a: |l, i| (if i < 32 { l / 4 } else { l / 4 + 8 }, 32 * (l % 4) + i % 32),
            b: |l, i| (32 * (l % 4) + i, l / 4),
            modifiers: BITS,
        },
        Shape {
            size: [16, 8, 256],
            types: &[("b1", "b1")],
            sums: &["s32"],
            a: |l, i| {
                (
                    if i < 32 || (64..96).contains(&i) { l / 4 } else { l / 4 + 8 },
                    32 * (l % 4) + i % 32 + if i < 64 { 0 } else { 128 },
                )
            },
            b: |l, i| (32 * (l % 4) + i % 32 + if i < 32 { 0 } else { 128 }, l / 4),
            modifiers: BITS,
        },
    ]
}

/// The exact product plus C; one-bit elements combine as the modifier says.
fn product(size: [usize; 3], a: &[i64], b: &[i64], c: &[i64], modifier: &str) -> Vec<i64> {
    let [m, n, k] = size;
    let combine = |x: i64, y: i64| match modifier {
        ".xor.popc" => x ^ y,
        ".and.popc" => x & y,
        _ => x * y,
    };
    let at = |index: usize| (0..k).map(|i| combine(a[index / n * k + i], b[i * n + index % n])).sum::<i64>() + c[index];
    (0..m * n).map(at).collect()
}

#[test]
fn mma_fragments_lie_as_the_manual_says() {
    for Shape { size, types, sums, a, b, modifiers } in shapes() {
        let [m, n, k] = size;
        for (a_type, b_type) in types {
            for sum in sums {
                for modifier in modifiers {
                    let matrix = |ty: &str, count: usize, seed: usize| {
                        let numbers: Vec<(i64, u64)> = (0..count).map(|i| number(ty, i + seed)).collect();
                        (
                            numbers.iter().map(|n| n.0).collect::<Vec<_>>(),
                            numbers.iter().map(|n| n.1).collect::<Vec<_>>(),
                        )
                    };
                    let (a_values, a_bits) = matrix(a_type, m * k, 1);
                    let (b_values, b_bits) = matrix(b_type, k * n, 5000);
                    let (c_values, c_bits) = matrix(sum, m * n, 9000);
                    // Row of C: the group, 8 further for the second half of the elements.
                    let c_place = |lane: usize, i: usize| (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                    let spread = |bits: &[u64],
                                  per_lane: usize,
                                  columns: usize,
                                  place: &dyn Fn(usize, usize) -> (usize, usize)| {
                        let mut elements = Vec::new();
                        for (lane, i) in (0..32 * per_lane).map(|i| (i / per_lane, i % per_lane)) {
                            let (row, column) = place(lane, i);
                            elements.push(bits[row * columns + column]);
                        }
                        elements
                    };
                    let per_lane = [m * k / 32, k * n / 32, m * n / 32];
                    let inputs = [
                        pack(&spread(&a_bits, per_lane[0], k, &a), bits_of(a_type)),
                        pack(&spread(&b_bits, per_lane[1], n, &b), bits_of(b_type)),
                        pack(&spread(&c_bits, per_lane[2], n, &c_place), bits_of(sum)),
                    ];
                    let is_wide = *a_type == "f64";
                    let mut body = String::new();
                    let mut lists = Vec::new();
                    let mut next = 0;
                    for (index, ty) in [a_type, b_type, sum].into_iter().enumerate() {
                        let register_bits = if is_wide { 64 } else { 32 };
                        let count = per_lane[index] * bits_of(ty) / register_bits;
                        body += &format!(
                            "mul.wide.u32 %x1, %l, {};\nadd.u64 %x1, %p{index}, %x1;\n",
                            count * register_bits / 8
                        );
                        let prefix = if is_wide { "d" } else { "r" };
                        let names: Vec<String> = (next..next + count).map(|i| format!("%{prefix}{i}")).collect();
                        for (offset, name) in names.iter().enumerate() {
                            body +=
                                &format!("ld.global.b{register_bits} {name}, [%x1+{}];\n", offset * register_bits / 8);
                        }
                        lists.push(names);
                        next += count;
                    }
                    let list = |names: &[String]| format!("{{{}}}", names.join(", "));
                    let (op, tail) = if modifier.ends_with("popc") { (*modifier, "") } else { ("", *modifier) };
                    // D over C, so that reading all before writing is seen too.
                    body += &format!(
                        "mma.sync.aligned.m{m}n{n}k{k}.row.col{tail}.{sum}.{a_type}.{b_type}.{sum}{op} {}, {}, {}, {};\n",
                        list(&lists[2]),
                        list(&lists[0]),
                        list(&lists[1]),
                        list(&lists[2])
                    );
                    let result_bytes = per_lane[2] * bits_of(sum) / 8;
                    body += &format!("mul.wide.u32 %x1, %l, {result_bytes};\nadd.u64 %x1, %o, %x1;\n");
                    let register_bytes = if is_wide { 8 } else { 4 };
                    for (offset, name) in lists[2].iter().enumerate() {
                        body +=
                            &format!("st.global.b{} [%x1+{}], {name};\n", 8 * register_bytes, offset * register_bytes);
                    }
                    let got = run(&body, &inputs, 32 * result_bytes);
                    let exact = product(size, &a_values, &b_values, &c_values, modifier);
                    for (index, chunk) in got.chunks(bits_of(sum) / 8).enumerate() {
                        let (row, column) = c_place(index / per_lane[2], index % per_lane[2]);
                        let bits = chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
                        assert_eq!(
                            value_of(sum, bits),
                            exact[row * n + column],
                            "m{m}n{n}k{k} {a_type} {b_type} {sum}{modifier}: row {row}, column {column}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn integer_products_wrap_or_saturate() {
    for (modifier, expected) in [("", i32::MIN + 16129 * 16 - 1), (".satfinite", i32::MAX)] {
        let body = format!(
            "mov.u32 %r0, 0x7f7f7f7f;\nmov.u32 %r1, 0x7fffffff;\n\
             mma.sync.aligned.m8n8k16.row.col{modifier}.s32.s8.s8.s32 {{%r2, %r3}}, {{%r0}}, {{%r0}}, {{%r1, %r1}};\n\
             mul.wide.u32 %x1, %l, 8;\nadd.u64 %x1, %o, %x1;\nst.global.v2.u32 [%x1], {{%r2, %r3}};\n"
        );
        assert!(words(&run(&body, &[], 256)).iter().all(|&word| word as i32 == expected), "{modifier}");
    }
}

#[test]
fn wmma_multiplies_every_type_and_shape_by_row_and_by_column() {
    // Shape, types of A/B and of C/D, registers of A, B and C, as the manual lists them.
    type Case = ([usize; 3], &'static str, &'static str, [usize; 3]);
    let cases: [Case; 22] = [
        ([16, 16, 16], "f16", "f32", [8, 8, 8]),
        ([32, 8, 16], "f16", "f32", [8, 8, 8]),
        ([8, 32, 16], "f16", "f32", [8, 8, 8]),
        ([16, 16, 16], "f16", "f16", [8, 8, 4]),
        ([32, 8, 16], "f16", "f16", [8, 8, 4]),
        ([8, 32, 16], "f16", "f16", [8, 8, 4]),
        ([16, 16, 16], "bf16", "f32", [4, 4, 8]),
        ([32, 8, 16], "bf16", "f32", [8, 2, 8]),
        ([8, 32, 16], "bf16", "f32", [2, 8, 8]),
        ([16, 16, 8], "tf32", "f32", [4, 4, 8]),
        ([8, 8, 4], "f64", "f64", [1, 1, 2]),
        ([16, 16, 16], "s8", "s32", [2, 2, 8]),
        ([32, 8, 16], "s8", "s32", [4, 1, 8]),
        ([8, 32, 16], "s8", "s32", [1, 4, 8]),
        ([16, 16, 16], "u8", "s32", [2, 2, 8]),
        ([32, 8, 16], "u8", "s32", [4, 1, 8]),
        ([8, 32, 16], "u8", "s32", [1, 4, 8]),
        ([8, 8, 32], "s4", "s32", [1, 1, 2]),
        ([8, 8, 32], "u4", "s32", [1, 1, 2]),
        ([8, 8, 128], "b1", "s32", [1, 1, 2]),
        ([8, 8, 128], "b1.and", "s32", [1, 1, 2]),
        ([16, 16, 16], "f16", "f32.f16", [8, 8, 8]),
    ];
    for (size, ty, sum, counts) in cases {
        let [m, n, k] = size;
        let (ty, is_and) = ty.split_once('.').map_or((ty, false), |(ty, _)| (ty, true));
        let (sum, c_type) = sum.split_once('.').unwrap_or((sum, sum));
        let is_small = bits_of(ty) < 8;
        for (a_layout, b_layout) in [("row", "col"), ("row", "row"), ("col", "col"), ("col", "row")] {
            if is_small && (a_layout, b_layout) != ("row", "col") {
                continue;
            }
            // A padded leading dimension, as a multiple of what the types ask for.
            let padding = if is_small { if ty == "b1" { 128 } else { 32 } } else { 16 };
            let matrix = |ty: &str, rows: usize, columns: usize, layout: &str, seed: usize| {
                let leading = if layout == "row" { columns } else { rows } + padding;
                let outer = if layout == "row" { rows } else { columns };
                let (mut values, mut memory) = (vec![0; rows * columns], vec![0; outer * leading]);
                for (row, column) in (0..rows * columns).map(|i| (i / columns, i % columns)) {
                    let (value, bits) = number(ty, row * columns + column + seed);
                    values[row * columns + column] = value;
                    memory[if layout == "row" { row * leading + column } else { column * leading + row }] = bits;
                }
                (values, pack(&memory, bits_of(ty)), leading)
            };
            let (a, a_bytes, a_stride) = matrix(ty, m, k, a_layout, 1);
            let (b, b_bytes, b_stride) = matrix(ty, k, n, b_layout, 5000);
            let (c, c_bytes, c_stride) = matrix(c_type, m, n, "col", 9000);
            let prefix = |ty: &str| if ty == "f64" { "d" } else { "r" };
            let list = |ty: &str, first: usize, count: usize| {
                let names: Vec<String> = (first..first + count).map(|i| format!("%{}{i}", prefix(ty))).collect();
                format!("{{{}}}", names.join(", "))
            };
            let c_count = if c_type == "f16" { 4 } else { counts[2] };
            let fragments = [list(ty, 0, counts[0]), list(ty, counts[0], counts[1])];
            let c_list = list(c_type, counts[0] + counts[1], c_count);
            let d_list = list(sum, counts[0] + counts[1] + c_count, counts[2]);
            let shape = format!("m{m}n{n}k{k}");
            let types = if ty == "f16" { format!("{sum}.{c_type}") } else { format!("{sum}.{ty}.{ty}.{c_type}") };
            let op = match (ty, is_and) {
                ("b1", false) => ".xor.popc",
                ("b1", true) => ".and.popc",
                _ => "",
            };
            let body = format!(
                "wmma.load.a.sync.aligned.{a_layout}.{shape}.global.{ty} {}, [%p0], {a_stride};\n\
                 wmma.load.b.sync.aligned.{b_layout}.{shape}.global.{ty} {}, [%p1], {b_stride};\n\
                 wmma.load.c.sync.aligned.col.{shape}.global.{c_type} {c_list}, [%p2], {c_stride};\n\
                 wmma.mma{op}.sync.aligned.{a_layout}.{b_layout}.{shape}.{types} {d_list}, {}, {}, {c_list};\n\
                 wmma.store.d.sync.aligned.row.{shape}.global.{sum} [%o], {d_list}, {};\n",
                fragments[0],
                fragments[1],
                fragments[0],
                fragments[1],
                n + 8
            );
            let bytes = bits_of(sum) / 8;
            let got = run(&body, &[a_bytes, b_bytes, c_bytes], m * (n + 8) * bytes);
            let exact = product(size, &a, &b, &c, op);
            for (row, column) in (0..m * n).map(|i| (i / n, i % n)) {
                let at = (row * (n + 8) + column) * bytes;
                let bits = got[at..at + bytes].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
                assert_eq!(
                    value_of(sum, bits),
                    exact[row * n + column],
                    "{shape} {ty} {sum} {a_layout} {b_layout}{op}: row {row}, column {column}"
                );
            }
        }
    }
}
