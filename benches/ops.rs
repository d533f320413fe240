//! Times layer norm, softmax cross-entropy and AdamW, each against the least memory traffic it needs and, where asked,
//! against PyTorch: the two take turns, each 20 ms of warm-up and one run that counts, and medians are
//! compared.
//!
//! ```text
//! cargo bench --bench ops                          the engine alone
//! ENGINE_PYTHON=python3 cargo bench --bench ops    against PyTorch in that Python
//! cargo bench --bench ops -- layer_norm            only this one (several may be named)
//! ```
//!
//! `ENGINE_SIMD` and `ENGINE_THREADS` choose the level and the threads (PyTorch takes as many).

use engine::cpu::Cpu;
use engine::ops::{Device, Write, adamw, layer_norm, softmax_cross_entropy};
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 25;
/// Lets the threads of one side stop spinning before the other side starts.
const PAUSE: Duration = Duration::from_millis(30);

/// Untimed runs at the start of each turn go on for this long; `ops.py` has the same figure.
const WARM_UP: Duration = Duration::from_millis(20);

/// One run of an operation on arrays that it keeps.
type Run = Box<dyn FnMut(&Device)>;

struct Operation {
    name: &'static str,
    /// Bytes that must move between memory and the cores, if each array is read and written once.
    least_bytes: f64,
    prepare: fn() -> Run,
}

const OPERATIONS: [Operation; 3] = [
    // Forward reads x and writes y; backward reads x and dy and writes dx.
    Operation { name: "layer_norm", least_bytes: 5.0 * 4.0 * 8192.0 * 768.0, prepare: prepare_layer_norm },
    Operation { name: "softmax_cross_entropy", least_bytes: 2.0 * 4.0 * 2048.0 * 50257.0, prepare: prepare_loss },
    Operation { name: "adamw", least_bytes: 28.0 * 124_439_808.0, prepare: prepare_adamw },
];

/// Memory that starts at a cache line, as all tensors of a training step and PyTorch's do. Kept until the end.
fn aligned(values: &[f32]) -> &'static mut [f32] {
    const LINE: usize = 16;
    let memory = vec![0.0f32; values.len() + LINE].leak();
    let start = memory.as_ptr().align_offset(4 * LINE);
    let memory = &mut memory[start..start + values.len()];
    memory.copy_from_slice(values);
    memory
}

fn zeros(length: usize) -> &'static mut [f32] {
    aligned(&vec![0.0; length])
}

/// Cheap numbers in -1..1: what they are does not matter, but denormals and constants might.
fn numbers(length: usize) -> &'static mut [f32] {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as i32 as f32 / 2_147_483_648.0
    };
    aligned(&(0..length).map(|_| next()).collect::<Vec<f32>>())
}

fn prepare_layer_norm() -> Run {
    let shape = layer_norm::Shape { rows: 8192, channels: 768, epsilon: 1e-5 };
    let values = shape.rows * shape.channels;
    let (input, grad_output) = (numbers(values), numbers(values));
    let (weight, bias) = (numbers(shape.channels), numbers(shape.channels));
    let (output, grad_input) = (zeros(values), zeros(values));
    let (grad_weight, grad_bias) = (zeros(shape.channels), zeros(shape.channels));
    let (mean, reciprocal_deviation) = (zeros(shape.rows), zeros(shape.rows));
    Box::new(move |device| {
        let arguments = layer_norm::Forward {
            input: (&*input).into(),
            residual: None,
            weight: (&*weight).into(),
            bias: Some((&*bias).into()),
            output: (&mut *output).into(),
            statistics: Some(((&mut *mean).into(), (&mut *reciprocal_deviation).into())),
        };
        layer_norm::forward(device, &shape, arguments).expect("arguments fit");
        let arguments = layer_norm::Backward {
            input: (&*input).into(),
            weight: (&*weight).into(),
            mean: (&*mean).into(),
            reciprocal_deviation: (&*reciprocal_deviation).into(),
            grad_output: (&*grad_output).into(),
            grad_input: Some(((&mut *grad_input).into(), Write::Set)),
            grad_weight: Some(((&mut *grad_weight).into(), Write::Set)),
            grad_bias: Some(((&mut *grad_bias).into(), Write::Set)),
        };
        layer_norm::backward(device, &shape, arguments).expect("arguments fit");
    })
}

fn prepare_loss() -> Run {
    let shape = softmax_cross_entropy::Shape { rows: 2048, vocabulary: 50257, label_smoothing: 0.0, ignored: -100 };
    // The gradient replaces the logits, so every run but the first has other logits; the work is the same.
    let logits = numbers(shape.rows * shape.vocabulary);
    let targets: Vec<i32> = (0..shape.rows as i32).map(|row| row * 24).collect();
    let losses = zeros(shape.rows);
    Box::new(move |device| {
        let arguments = softmax_cross_entropy::ForwardBackward {
            logits: (&mut *logits).into(),
            targets: (&targets).into(),
            losses: (&mut *losses).into(),
            grad_loss: 1.0,
        };
        softmax_cross_entropy::forward_backward(device, &shape, arguments).expect("arguments fit");
    })
}

fn prepare_adamw() -> Run {
    let c = 768;
    let block = [c, c, 3 * c * c, 3 * c, c * c, c, c, c, 4 * c * c, 4 * c, 4 * c * c, c];
    let lengths = [vec![50257 * c, 1024 * c], block.repeat(12), vec![c, c]].concat();
    let mut tensors: Vec<[&mut [f32]; 4]> =
        lengths.iter().map(|&length| [numbers(length), numbers(length), zeros(length), zeros(length)]).collect();
    let mut step = 0;
    Box::new(move |device| {
        step += 1;
        let hyper = adamw::Hyper {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
            grad_factor: 1.0,
        };
        for [parameter, gradient, first_moment, second_moment] in &mut tensors {
            let arguments = adamw::Update {
                parameter: (&mut **parameter).into(),
                gradient: (&**gradient).into(),
                first_moment: (&mut **first_moment).into(),
                second_moment: (&mut **second_moment).into(),
            };
            adamw::update(device, &hyper, arguments).expect("arguments fit");
        }
    })
}

/// PyTorch in a process of its own, which runs an operation when told to.
struct PyTorch {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl PyTorch {
    fn start(python: &str, operation: &str) -> std::io::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/pytorch/ops.py");
        let mut process = Command::new(python)
            .args([script, "--serve", operation])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let mut started = Self { process, input, output };
        started.line()?;
        Ok(started)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }

    fn seconds(&mut self, operation: &str) -> std::io::Result<f64> {
        writeln!(self.input, "{operation}")?;
        self.input.flush()?;
        let line = self.line()?;
        line.trim().parse().map_err(|_| std::io::Error::other(format!("PyTorch answered {line:?}")))
    }
}

impl Drop for PyTorch {
    fn drop(&mut self) {
        // It ends by itself when its input closes; this only makes sure.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> std::io::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let cpu = Cpu::new().map_err(std::io::Error::other)?;
    println!("engine: {}, {} threads", cpu.level().name(), cpu.pool().threads());
    let device = Device::Cpu(cpu);
    let python = std::env::var("ENGINE_PYTHON").ok();
    println!("{:24} {:>10} {:>8} {:>12} {:>8}", "", "engine ms", "GB/s", "PyTorch ms", "ratio");
    for operation in OPERATIONS {
        let name = operation.name;
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let mut run = (operation.prepare)();
        let mut pytorch = python.as_deref().map(|python| PyTorch::start(python, name)).transpose()?;
        run(&device);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            std::thread::sleep(PAUSE);
            // A turn starts with untimed runs, as PyTorch's does: the cores wake, the scheduler spreads the threads.
            let turn = Instant::now();
            while turn.elapsed() < WARM_UP {
                run(&device);
            }
            let start = Instant::now();
            run(&device);
            ours.push(start.elapsed().as_secs_f64());
            if let Some(pytorch) = &mut pytorch {
                std::thread::sleep(PAUSE);
                theirs.push(pytorch.seconds(name)?);
            }
        }
        let ours = median(ours);
        let rate = operation.least_bytes / ours / 1e9;
        print!("{name:24} {:10.3} {rate:8.1}", ours * 1e3);
        if !theirs.is_empty() {
            let theirs = median(theirs);
            print!(" {:12.3} {:8.3}", theirs * 1e3, ours / theirs);
        }
        println!();
    }
    Ok(())
}
