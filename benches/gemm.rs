//! The matrix products of the models we train, in GFLOP/s and percent of the multiply-add peak measured in the same run.
//!
//! `cargo bench --bench gemm [-- FILTER]`; `ENGINE_SIMD=avx2` for the other instruction set. Each figure is the median
//! of runs that cycle through copies of the weight and its gradient, as a training step does, so that weights larger
//! than the caches come from memory.

use engine::cpu::gemm::{Epilogue, Matrix, Product, Shape, run};
use engine::cpu::{Cpu, peak};
use engine::ops::Write;
use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

/// Rows, and the (inputs, outputs) of each layer that sees as many rows.
const LAYERS: [(usize, &[(usize, usize)]); 3] = [
    (768, &[(128, 384), (128, 128), (128, 512), (512, 128)]),
    (3072, &[(384, 1152), (384, 384), (384, 1536), (1536, 384)]),
    (256, &[(768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50257)]),
];

/// Layers that generate one token at a time: (inputs, outputs).
const DECODE: [(usize, usize); 3] = [(768, 3072), (3072, 768), (768, 50257)];

/// Weights in rotation take at least this much memory together.
const ROTATION_FLOATS: usize = 24 << 20;

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).unwrap_or_default();
    let cpu = Cpu::new().expect("a usable CPU");
    println!("{} threads, {}", cpu.pool().threads(), cpu.level().name());
    println!("{:<28} {:>9} {:>8}", "product", "GFLOP/s", "of peak");
    for (rows, layers) in LAYERS {
        for &(inputs, outputs) in layers {
            for kind in ["forward", "grad_input", "grad_weight"] {
                let name = format!("{rows} {inputs}->{outputs} {kind}");
                if name.contains(&filter) {
                    let flops = 2.0 * (rows * inputs * outputs) as f64;
                    let peak = peak::fma_flops(&cpu);
                    let seconds = layer(&cpu, rows, inputs, outputs, kind);
                    println!("{name:<28} {:>9.1} {:>7.1}%", flops / seconds / 1e9, 100.0 * flops / seconds / peak);
                }
            }
        }
    }
    for (inputs, outputs) in DECODE {
        for rows in [1, 4, 8] {
            let name = format!("{rows} {inputs}->{outputs} decode");
            if name.contains(&filter) {
                let bandwidth = peak::read_bytes_per_second(&cpu);
                let bytes = (inputs * outputs * 4) as f64;
                let seconds = layer(&cpu, rows, inputs, outputs, "forward");
                let percent = 100.0 * bytes / seconds / bandwidth;
                println!("{name:<28} {:>9.1} {percent:>7.1}% (GB/s, of the read bandwidth)", bytes / seconds / 1e9);
            }
        }
    }
}

/// Median seconds of one product of a layer.
fn layer(cpu: &Cpu, rows: usize, inputs: usize, outputs: usize, kind: &str) -> f64 {
    let copies = ROTATION_FLOATS.div_ceil(inputs * outputs).clamp(1, 64);
    let (x, dy) = (Floats::new(rows * inputs), Floats::new(rows * outputs));
    let mut weights: Vec<Floats> = (0..copies).map(|_| Floats::new(inputs * outputs)).collect();
    let mut result = Floats::new(rows * inputs.max(outputs));
    median(|index| {
        let weight = &mut weights[index % copies];
        let (shape, left, right, target, target_stride): (_, _, _, &mut [f32], _) = match kind {
            "forward" => (
                Shape { rows, columns: outputs, depth: inputs },
                Matrix::straight(&x, inputs),
                Matrix::transposed(weight, inputs),
                &mut result,
                outputs,
            ),
            "grad_input" => (
                Shape { rows, columns: inputs, depth: outputs },
                Matrix::straight(&dy, outputs),
                Matrix::straight(weight, inputs),
                &mut result,
                inputs,
            ),
            _ => (
                Shape { rows: outputs, columns: inputs, depth: rows },
                Matrix::transposed(&dy, outputs),
                Matrix::straight(&x, inputs),
                weight,
                inputs,
            ),
        };
        let epilogue = Epilogue::default();
        run(cpu, Product { shape, left, right, target, target_stride, write: Write::Set, epilogue, left_sums: None });
    })
}

/// Memory as the tape allocates it: aligned, in huge pages where the system gives them.
struct Floats {
    pages: MmapMut,
    length: usize,
}

impl Floats {
    const ALIGNMENT_BYTES: usize = 2 << 20;

    /// Some small numbers.
    fn new(length: usize) -> Self {
        let pages = MmapMut::map_anon(length * 4 + Self::ALIGNMENT_BYTES).expect("memory");
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        let mut floats = Self { pages, length };
        for (i, value) in floats.iter_mut().enumerate() {
            *value = (i % 7) as f32 * 0.125 - 0.375;
        }
        floats
    }

    fn range(&self) -> std::ops::Range<usize> {
        let start = self.pages.as_ptr().align_offset(Self::ALIGNMENT_BYTES);
        start..start + self.length * 4
    }
}

impl Deref for Floats {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.pages[self.range()])
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        let range = self.range();
        bytemuck::cast_slice_mut(&mut self.pages[range])
    }
}

/// Median seconds of a call, over a fifth of a second and at least five calls.
fn median(mut call: impl FnMut(usize)) -> f64 {
    let start = Instant::now();
    let mut times: Vec<Duration> = Vec::new();
    call(0);
    while times.len() < 5 || start.elapsed() < Duration::from_millis(200) {
        let before = Instant::now();
        call(times.len() + 1);
        times.push(before.elapsed());
    }
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
