//! Launches `kernels/softmax_cross_entropy.cu`: which team takes a row, by the size of the vocabulary.

use super::rows::{Launch, Rows, Team};
use super::{Arguments, Gpu, Source, source};
use crate::driver::Result;
use crate::ops::softmax_cross_entropy::{Forward, ForwardBackward, Shape};

static SOURCE: Source = source!("softmax_cross_entropy");

/// Values in the packs that rows are walked in.
const PACK: usize = 4;
/// Longest row of a warp.
const WARP_LONGEST: usize = 1024;
/// Most threads to a row; long rows need more, so that enough reads are under way with few rows in flight.
const BLOCK_THREADS: usize = 256;
const LONG_THREADS: usize = 1024;

fn rows(shape: &Shape, shared_bytes: usize) -> Rows {
    Rows { length: shape.vocabulary, warp_longest: WARP_LONGEST, shared_bytes, shared_most: 48 << 10 }
}

/// See [`crate::ops::softmax_cross_entropy::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let Forward { logits, targets, class_weights, losses } = arguments;
    let row = rows(shape, 0);
    let (kernel, threads) = match Team::of(gpu, &row) {
        Team::Warp => ("softmax_cross_entropy_forward_warp", BLOCK_THREADS),
        Team::Block | Team::Long => ("softmax_cross_entropy_forward_block", LONG_THREADS),
    };
    let list = Arguments::new()
        .view(&logits)
        .view(&targets)
        .optional(class_weights.as_ref())
        .view_mut(&losses)
        .float(shape.label_smoothing)
        .int(shape.ignored)
        .size(shape.rows)
        .size(shape.vocabulary);
    gpu.launch(&SOURCE, kernel, Team::of(gpu, &row).config(shape.rows, &row, PACK, threads), list)
}

/// See [`crate::ops::softmax_cross_entropy::forward_backward`].
pub fn forward_backward(gpu: &Gpu, shape: &Shape, arguments: ForwardBackward<'_>) -> Result<()> {
    let (kernel, config, list) = forward_backward_launch(gpu, shape, &arguments);
    gpu.launch(&SOURCE, kernel, config, list)
}

fn forward_backward_launch(gpu: &Gpu, shape: &Shape, arguments: &ForwardBackward<'_>) -> Launch {
    let ForwardBackward { logits, targets, class_weights, losses, grad_loss } = arguments;
    // The row, shifted by up to three values for alignment.
    let row = rows(shape, size_of::<f32>() * ((shape.vocabulary + 6) / PACK * PACK));
    let team = Team::of(gpu, &row);
    let (kernel, threads) = match team {
        Team::Warp => ("softmax_cross_entropy_forward_backward_warp", BLOCK_THREADS),
        Team::Block => ("softmax_cross_entropy_forward_backward_block", BLOCK_THREADS),
        Team::Long => ("softmax_cross_entropy_forward_backward_long", LONG_THREADS),
    };
    let list = Arguments::new()
        .view_mut(logits)
        .view(targets)
        .optional(class_weights.as_ref())
        .view_mut(losses)
        .float(*grad_loss)
        .float(shape.label_smoothing)
        .int(shape.ignored)
        .size(shape.rows)
        .size(shape.vocabulary);
    (kernel, team.config(shape.rows, &row, PACK, threads), list)
}

pub(crate) mod checks {
    #[cfg(test)]
    use super::super::counting::CountingDevice;
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::softmax_cross_entropy::reference;
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, softmax_cross_entropy};

    fn shape(rows: usize, vocabulary: usize, label_smoothing: f32) -> Shape {
        Shape { rows, vocabulary, label_smoothing, ignored: -100 }
    }

    fn targets(random: &mut Random, shape: &Shape) -> Vec<i32> {
        let one = |row: usize| if row % 5 == 3 { shape.ignored } else { random.below(shape.vocabulary) as i32 };
        (0..shape.rows).map(one).collect()
    }

    /// Losses of both passes, and the gradients.
    fn run(
        device: &Device,
        shape: &Shape,
        logits: &[f32],
        targets: &[i32],
        class_weights: Option<&[f32]>,
        grad_loss: f32,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (mut on_logits, on_targets) = (Buffer::upload(device, logits), Buffer::upload(device, targets));
        let weights = class_weights.map(|weights| Buffer::upload(device, weights));
        let weights = weights.as_ref().map(Buffer::view);
        let [mut losses, mut both] = [0; 2].map(|_| Buffer::poisoned(device, shape.rows));
        let arguments = Forward {
            logits: on_logits.view(),
            targets: on_targets.view(),
            class_weights: weights,
            losses: losses.view_mut(),
        };
        softmax_cross_entropy::forward(device, shape, arguments).unwrap();
        let arguments = ForwardBackward {
            logits: on_logits.view_mut(),
            targets: on_targets.view(),
            class_weights: weights,
            losses: both.view_mut(),
            grad_loss,
        };
        softmax_cross_entropy::forward_backward(device, shape, arguments).unwrap();
        (losses.download(), both.download(), on_logits.download())
    }

    fn losses_and_gradients_match_reference_over_odd_sizes_and_options(device: &Device) {
        let mut random = Random::fresh();
        // Rows of a warp, of a block, and of a block that does not hold them.
        let sizes = [(1, 1), (3, 3), (17, 17), (113, 65), (9, 203), (5, 1023), (4, 1025), (4, 2048), (3, 12_291)];
        for (rows, vocabulary) in sizes.into_iter().chain([(2, 50_257)]) {
            for (smoothing, spread, weighs) in
                [(0.0, 1.0, false), (0.1, 1.0, false), (0.0, 30.0, false), (0.0, 1.0, true), (0.1, 1.0, true)]
            {
                let shape = shape(rows, vocabulary, smoothing);
                let targets = targets(&mut random, &shape);
                let logits: Vec<f32> = random.normal(rows * vocabulary).iter().map(|x| x * spread - 3.0).collect();
                // One class weighs nothing.
                let weight = |class| if class == 1 { 0.0 } else { random.below(64) as f32 / 16.0 };
                let weights: Option<Vec<f32>> = weighs.then(|| (0..vocabulary).map(weight).collect());
                let (doubles, weights64) = (double(&logits), weights.as_ref().map(|weights| double(weights)));
                let expected = reference::forward(&shape, &doubles, &targets, weights64.as_deref());
                let expected_gradient = reference::backward(&shape, &doubles, &targets, weights64.as_deref(), 0.125);
                let (losses, both, gradient) = run(device, &shape, &logits, &targets, weights.as_deref(), 0.125);
                let name = format!("{rows}x{vocabulary}, smoothing {smoothing}, spread {spread}, weights {weighs}");
                assert_close(&format!("losses, {name}"), &losses, &expected, 1e-5, 1e-6);
                assert_close(&format!("losses with gradient, {name}"), &both, &expected, 1e-5, 1e-6);
                // Where every target is certain, the gradients are what rounding leaves of 1/8 - 1/8.
                assert_close(&format!("gradient, {name}"), &gradient, &expected_gradient, 1e-5, 2e-8);
            }
        }
    }

    fn gradients_of_a_row_sum_to_zero_shifting_the_logits_changes_nothing_and_two_runs_have_the_same_bits(
        device: &Device,
    ) {
        let mut random = Random::fresh();
        for vocabulary in [203, 5003, 12_293] {
            let shape = shape(3, vocabulary, 0.1);
            // Steps of 1/64 and a shift of 1024 are exact in f32.
            let normal = random.normal(3 * vocabulary);
            let logits: Vec<f32> = normal.iter().map(|x| (x * 64.0).round() / 64.0).collect();
            let shifted: Vec<f32> = logits.iter().map(|x| x + 1024.0).collect();
            let (_, losses, gradient) = run(device, &shape, &logits, &[1, 0, 2], None, 1.0);
            let (_, again, gradient_again) = run(device, &shape, &logits, &[1, 0, 2], None, 1.0);
            assert!(losses == again && gradient == gradient_again, "two runs differ, {vocabulary} classes");
            assert!(
                gradient == run(device, &shape, &shifted, &[1, 0, 2], None, 1.0).2,
                "shifted, {vocabulary} classes"
            );
            for row in gradient.chunks(vocabulary) {
                let sum: f64 = row.iter().map(|&g| f64::from(g)).sum();
                assert!(sum.abs() < 1e-5, "a row's gradients sum to {sum}, {vocabulary} classes");
            }
        }
    }

    fn masked_huge_and_nan_logits_give_what_they_should(device: &Device) {
        for classes in [1000, 3000, 13_000] {
            let (shape, masked) = (shape(4, classes, 0.0), classes - 500);
            let mut logits = vec![0.0f32; 4 * classes];
            // Row 0: most classes masked. Row 1: huge. Row 2: one NaN. Row 3: an infinite logit.
            logits[..masked].fill(f32::NEG_INFINITY);
            logits[classes..2 * classes].fill(-1e30);
            logits[classes] = 1e30;
            logits[2 * classes + 100] = f32::NAN;
            logits[3 * classes + 100] = f32::INFINITY;
            let (_, losses, gradient) = run(device, &shape, &logits, &[classes as i32 - 1, 0, 5, 5], None, 1.0);
            assert!((losses[0] - 500f32.ln()).abs() < 1e-5, "{classes}: {}", losses[0]);
            assert!(gradient[..masked].iter().all(|&g| g == 0.0), "{classes}");
            assert!((gradient[masked] - 0.002).abs() < 1e-8, "{classes}: {}", gradient[masked]);
            assert!(losses[1] == 0.0 && gradient[classes..2 * classes].iter().all(|&g| g == 0.0), "{classes}");
            assert!(losses[2].is_nan() && losses[3].is_nan(), "{classes}: {losses:?}");
            assert!(gradient[2 * classes].is_nan() && gradient[3 * classes].is_nan(), "{classes}");
        }
    }

    fn a_target_outside_the_classes_gives_nan_in_its_row_only(device: &Device) {
        for classes in [7, 1500, 13_001] {
            let logits = Random::fresh().normal(4 * classes);
            let targets = [classes as i32, 2, -1, -100];
            let (losses, both, gradient) = run(device, &shape(4, classes, 0.0), &logits, &targets, None, 1.0);
            for losses in [losses, both] {
                assert!(losses[0].is_nan() && losses[1].is_finite() && losses[2].is_nan() && losses[3] == 0.0);
            }
            let rows: Vec<&[f32]> = gradient.chunks(classes).collect();
            assert!(rows[0].iter().chain(rows[2]).all(|g| g.is_nan()), "{classes}");
            assert!(rows[1].iter().all(|g| g.is_finite()) && rows[3].iter().all(|&g| g == 0.0), "{classes}");
        }
    }

    #[test]
    fn every_logit_is_moved_once_where_the_row_fits() {
        let Device::Gpu(gpu) = crate::gpu::testing::device() else { unreachable!() };
        let counting = CountingDevice::new();
        for (rows, vocabulary) in [(64, 1024), (8, 4096), (2, 16_384)] {
            let mut targets = vec![5; rows];
            targets[1] = -100;
            let arguments = ForwardBackward {
                logits: counting.upload_mut(&vec![1.0f32; rows * vocabulary]),
                targets: counting.upload(&targets),
                class_weights: None,
                losses: counting.upload_mut(&vec![0.0f32; rows]),
                grad_loss: 1.0,
            };
            let launch = forward_backward_launch(&gpu, &shape(rows, vocabulary, 0.0), &arguments);
            let warps_of_row = u64::from(launch.1.block[0] / 32);
            let counts = counting.count(&SOURCE, launch);
            let (row_bytes, counted) = (4 * vocabulary as u64, rows as u64 - 1);
            let target_bytes = (4 * rows as u64).next_multiple_of(32);
            assert_eq!(counts.dram_read_bytes, counted * row_bytes + target_bytes);
            assert_eq!(counts.dram_write_bytes, rows as u64 * row_bytes + target_bytes);
            // Each warp reads its row's target, and one thread the target's logit.
            let passes = if vocabulary > 12_000 { 2 } else { 1 };
            let sectors_for_targets = 32 * (rows as u64 * warps_of_row + counted);
            assert_eq!(32 * counts.global_load_sectors, passes * counted * row_bytes + sectors_for_targets);
            assert_eq!(32 * counts.global_store_sectors, rows as u64 * (row_bytes + 32));
            assert_eq!(counts.shared_bank_conflicts, 0);
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check {
            name: "softmax_cross_entropy: losses and gradients match reference over odd sizes and options",
            claim: losses_and_gradients_match_reference_over_odd_sizes_and_options,
        },
        Check {
            name: "softmax_cross_entropy: gradients of a row sum to zero shifting the logits changes nothing and two runs have the same bits",
            claim: gradients_of_a_row_sum_to_zero_shifting_the_logits_changes_nothing_and_two_runs_have_the_same_bits,
        },
        Check {
            name: "softmax_cross_entropy: masked huge and nan logits give what they should",
            claim: masked_huge_and_nan_logits_give_what_they_should,
        },
        Check {
            name: "softmax_cross_entropy: a target outside the classes gives nan in its row only",
            claim: a_target_outside_the_classes_gives_nan_in_its_row_only,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
