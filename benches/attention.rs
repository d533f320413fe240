//! Times fused attention on the CPU, forward and backward, and PyTorch's beside it where `ENGINE_PYTHON` names an
//! interpreter that has it: `ENGINE_PYTHON=python3 cargo bench --bench attention`. Other shapes than the usual ones can
//! be given behind `--`, each as `B,H,T,D`.
//!
//! Rounds of both alternate, so that a machine that slows down slows down both. Prints medians, the rate of useful
//! multiply-adds (masked scores are not counted), and the ratio. Last, decoding from a cache, in bytes of keys and
//! values read per second.

use engine::cpu::Cpu;
use engine::ops::attention::{Backward, Forward, GradInputs, Inputs, Mask, Shape, backward, forward};
use engine::ops::{Device, Write};
use std::process::{Command, exit};
use std::time::Instant;

/// `(B, H, T, D)`, all causal.
const SHAPES: [[usize; 4]; 4] = [[4, 6, 256, 64], [1, 12, 1024, 64], [12, 4, 64, 32], [4, 12, 64, 64]];
const ROUNDS: usize = 3;
/// Length of one round of one shape.
const ROUND_SECONDS: f64 = 0.3;

fn main() {
    let cpu = Cpu::new().unwrap_or_else(|message| {
        eprintln!("{message}");
        exit(2)
    });
    println!("{} threads, {}", cpu.pool().threads(), cpu.level().name());
    let device = Device::Cpu(cpu);
    let python = std::env::var("ENGINE_PYTHON").ok();
    println!(
        "{:>22} {:>11} {:>11} {:>9} {:>11} {:>6}",
        "B H T D", "forward us", "both us", "GFLOP/s", "PyTorch us", "ratio"
    );
    let given = given_shapes();
    let shapes = if given.is_empty() { SHAPES.to_vec() } else { given.clone() };
    for [batch, heads, time, head_size] in shapes {
        let shape = Shape {
            batch,
            query_time: time,
            key_time: time,
            heads,
            key_value_heads: heads,
            head_size,
            scale: 1.0 / (head_size as f32).sqrt(),
            mask: Mask::Causal,
        };
        let (mut ours_forward, mut ours_both, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            train(&device, &shape, &mut ours_forward, &mut ours_both);
            if let Some(python) = &python {
                theirs.push(pytorch(python, &shape));
            }
        }
        let both = median(&mut ours_both);
        // Two products of scores x D forward, five backward, two operations for each multiply-add.
        let scores = batch * heads * time * (time + 1) / 2;
        let rate = 14.0 * (scores * head_size) as f64 / both * 1e-9;
        let name = format!("{batch} {heads} {time} {head_size}");
        print!("{name:>22} {:>11.0} {:>11.0} {rate:>9.0}", 1e6 * median(&mut ours_forward), 1e6 * both);
        match theirs.is_empty() {
            true => println!(),
            false => {
                let theirs = median(&mut theirs);
                println!(" {:>11.0} {:>6.2}", 1e6 * theirs, both / theirs);
            }
        }
    }
    if !given.is_empty() {
        return;
    }
    for [batch, heads, time, head_size] in [[1, 12, 1024, 64], [1, 32, 4096, 128]] {
        decode(&device, batch, heads, time, head_size);
    }
}

/// The shapes on the command line; Cargo's own arguments start with dashes.
fn given_shapes() -> Vec<[usize; 4]> {
    let arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    arguments
        .map(|text| {
            let sizes: Vec<usize> = text.split(',').filter_map(|size| size.parse().ok()).filter(|&n| n > 0).collect();
            sizes.try_into().unwrap_or_else(|_| {
                eprintln!("{text:?} is not a shape: write B,H,T,D, as in 4,6,256,64");
                exit(2)
            })
        })
        .collect()
}

/// Calls `body` until the round is over; returns the seconds of each call.
fn measure(mut body: impl FnMut()) -> Vec<f64> {
    let start = Instant::now();
    let mut seconds = Vec::new();
    while start.elapsed().as_secs_f64() < ROUND_SECONDS || seconds.len() < 5 {
        let start = Instant::now();
        body();
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn numbers(length: usize) -> Vec<f32> {
    (0..length).map(|i| ((i * 7919 + 13) % 1000) as f32 / 500.0 - 1.0).collect()
}

fn train(device: &Device, shape: &Shape, forwards: &mut Vec<f64>, both: &mut Vec<f64>) {
    let rows = shape.batch * shape.query_time;
    let (packed, columns) = (shape.query_columns() + 2 * shape.key_columns(), shape.query_columns());
    let qkv = numbers(rows * packed);
    let grad_output = numbers(rows * columns);
    let mut output = vec![0.0; rows * columns];
    let mut log_sum_exp = vec![0.0; rows * shape.heads];
    let mut grad_qkv = vec![0.0; rows * packed];
    both.extend(measure(|| {
        let start = Instant::now();
        let arguments = Forward {
            inputs: Inputs::Packed((&qkv).into()),
            key_lengths: None,
            bias: None,
            dropout: None,
            output: (&mut output).into(),
            log_sum_exp: Some((&mut log_sum_exp).into()),
        };
        forward(device, shape, arguments).expect("arguments fit");
        forwards.push(start.elapsed().as_secs_f64());
        let arguments = Backward {
            inputs: Inputs::Packed((&qkv).into()),
            key_lengths: None,
            bias: None,
            dropout: None,
            output: (&output).into(),
            log_sum_exp: (&log_sum_exp).into(),
            grad_output: (&grad_output).into(),
            grad_inputs: GradInputs::Packed((&mut grad_qkv).into(), Write::Set),
            grad_bias: None,
        };
        backward(device, shape, arguments).expect("arguments fit");
    }));
}

/// Seconds of PyTorch's forward and backward pass.
fn pytorch(python: &str, shape: &Shape) -> f64 {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/pytorch/attention.py");
    let sizes = [shape.batch, shape.heads, shape.query_time, shape.head_size].map(|size| size.to_string());
    let output = Command::new(python).arg(script).args(&sizes).arg("--seconds").arg(ROUND_SECONDS.to_string()).output();
    let text = match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => {
            eprintln!("{python} {script} failed: {}", String::from_utf8_lossy(&output.stderr));
            exit(1)
        }
        Err(error) => {
            eprintln!("cannot start {python}, which ENGINE_PYTHON names: {error}");
            exit(2)
        }
    };
    serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|value| value["seconds_median"].as_f64())
        .expect("the script prints seconds_median")
}

fn decode(device: &Device, batch: usize, heads: usize, time: usize, head_size: usize) {
    let shape = Shape {
        batch,
        query_time: 1,
        key_time: time,
        heads,
        key_value_heads: heads,
        head_size,
        scale: 1.0 / (head_size as f32).sqrt(),
        mask: Mask::Causal,
    };
    let query = numbers(batch * shape.query_columns());
    // Several caches in turn, as the layers of a model have them, so that none is still in the processor's caches.
    let bytes = batch * time * 2 * shape.key_columns() * 4;
    let layers: Vec<Vec<f32>> = (0..(256 << 20) / bytes).map(|_| numbers(bytes / 4)).collect();
    let mut output = vec![0.0; query.len()];
    let mut layer = 0;
    let mut seconds = measure(|| {
        layer = (layer + 1) % layers.len();
        let inputs = Inputs::Separate {
            query: (&query).into(),
            query_row: shape.query_columns(),
            key_value: (&layers[layer]).into(),
            capacity: time,
        };
        let output = (&mut output).into();
        let arguments = Forward { inputs, key_lengths: None, bias: None, dropout: None, output, log_sum_exp: None };
        forward(device, &shape, arguments).expect("arguments fit");
    });
    let seconds = median(&mut seconds);
    println!(
        "decode, {heads} heads, {time} keys, D {head_size}: {:.0} us, {:.1} GB/s",
        1e6 * seconds,
        bytes as f64 / seconds * 1e-9
    );
}
