//! Launches `kernels/layer_norm.cu`: which team takes a row, how many rows a team sums, and the workspace of the sums.

use super::rows::{Launch, Rows, Team, access_width};
use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};
use crate::ops::layer_norm::{Backward, Forward, Norm, Shape};
use crate::ops::{View, ViewMut, Write};

static SOURCE: Source = source!("layer_norm");

/// Most threads of a team that is a block, as in the kernel file.
const BLOCK_THREADS: usize = 256;
/// Most blocks that the rows of the backward pass are dealt to: bounds the memory for their sums.
const PARTS_MAX: usize = 256;
/// Fewest rows that a team of the backward pass sums, so that the sums are few beside the rows.
const TEAM_ROWS: usize = 4;
/// The kernel that adds up the sums: columns in a block, threads to a column.
const FINISH_BLOCK: [u32; 3] = [32, 8, 1];

fn forward_kernel(kind: Norm, team: Team, width: usize) -> &'static str {
    match (kind, team, width) {
        (Norm::Layer, Team::Warp, 4) => "layer_norm_forward_warp_4",
        (Norm::Layer, Team::Warp, _) => "layer_norm_forward_warp_1",
        (Norm::Layer, Team::Block, 4) => "layer_norm_forward_block_4",
        (Norm::Layer, Team::Block, _) => "layer_norm_forward_block_1",
        (Norm::Layer, Team::Long, 4) => "layer_norm_forward_long_4",
        (Norm::Layer, Team::Long, _) => "layer_norm_forward_long_1",
        (Norm::Rms, Team::Warp, 4) => "rms_norm_forward_warp_4",
        (Norm::Rms, Team::Warp, _) => "rms_norm_forward_warp_1",
        (Norm::Rms, Team::Block, 4) => "rms_norm_forward_block_4",
        (Norm::Rms, Team::Block, _) => "rms_norm_forward_block_1",
        (Norm::Rms, Team::Long, 4) => "rms_norm_forward_long_4",
        (Norm::Rms, Team::Long, _) => "rms_norm_forward_long_1",
    }
}

fn backward_kernel(kind: Norm, team: Team, width: usize) -> &'static str {
    match (kind, team, width) {
        (Norm::Layer, Team::Warp, 4) => "layer_norm_backward_warp_4",
        (Norm::Layer, Team::Warp, _) => "layer_norm_backward_warp_1",
        (Norm::Layer, Team::Block, 4) => "layer_norm_backward_block_4",
        (Norm::Layer, Team::Block, _) => "layer_norm_backward_block_1",
        (Norm::Layer, Team::Long, 4) => "layer_norm_backward_long_4",
        (Norm::Layer, Team::Long, _) => "layer_norm_backward_long_1",
        (Norm::Rms, Team::Warp, 4) => "rms_norm_backward_warp_4",
        (Norm::Rms, Team::Warp, _) => "rms_norm_backward_warp_1",
        (Norm::Rms, Team::Block, 4) => "rms_norm_backward_block_4",
        (Norm::Rms, Team::Block, _) => "rms_norm_backward_block_1",
        (Norm::Rms, Team::Long, 4) => "rms_norm_backward_long_4",
        (Norm::Rms, Team::Long, _) => "rms_norm_backward_long_1",
    }
}

/// See [`crate::ops::layer_norm::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    if shape.channels == 0 {
        return Ok(());
    }
    let (kernel, config, list) = forward_launch(gpu, shape, &arguments);
    gpu.launch(&SOURCE, kernel, config, list)
}

fn forward_launch(gpu: &Gpu, shape: &Shape, arguments: &Forward<'_>) -> Launch {
    let Shape { kind, rows, channels, epsilon } = *shape;
    let Forward { input, residual, weight, bias, output, statistics } = arguments;
    let (residual, sum) = (residual.as_ref().map(|(values, _)| values), residual.as_ref().map(|(_, sum)| sum));
    let mean = statistics.as_ref().and_then(|found| found.mean.as_ref());
    let deviation = statistics.as_ref().map(|found| &found.reciprocal_deviation);
    let addresses = [
        input.address(),
        residual.map_or(0, View::address),
        sum.map_or(0, ViewMut::address),
        weight.address(),
        bias.as_ref().map_or(0, View::address),
        output.address(),
    ];
    let width = access_width(channels, &addresses);
    // A warp keeps a row of up to 4 KiB; half of the smallest GPU's shared memory leaves room for a second block.
    let row = Rows { length: channels, warp_longest: 1024, shared_bytes: 4 * channels, shared_most: 48 << 10 };
    let team = Team::of(gpu, &row);
    let list = Arguments::new()
        .view(input)
        .optional(residual)
        .view(weight)
        .optional(bias.as_ref())
        .optional_mut(sum)
        .view_mut(output)
        .optional_mut(mean)
        .optional_mut(deviation)
        .float(epsilon)
        .size(rows)
        .size(channels);
    (forward_kernel(kind, team, width), team.config(rows, &row, width, BLOCK_THREADS), list)
}

/// See [`crate::ops::layer_norm::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Shape { rows, channels, .. } = *shape;
    if channels == 0 {
        return Ok(());
    }
    let plan = BackwardPlan::new(gpu, shape, &arguments);
    let wants_sums = arguments.grad_weight.is_some() || arguments.grad_bias.is_some();
    let partials = if wants_sums { gpu.workspace(plan.partials_bytes(channels))? } else { 0 };
    if rows > 0 {
        let (kernel, config, list) = plan.launch(shape, &arguments, partials);
        gpu.launch(&SOURCE, kernel, config, list)?;
    }
    if wants_sums {
        let (weight, accumulate_weight) = target(arguments.grad_weight);
        let (bias, accumulate_bias) = target(arguments.grad_bias);
        let config = LaunchConfig::new([(channels as u32).div_ceil(FINISH_BLOCK[0]), 2, 1], FINISH_BLOCK);
        let list = Arguments::new()
            .address(partials)
            .size(plan.parts)
            .size(channels)
            .address(weight)
            .write(accumulate_weight)
            .address(bias)
            .write(accumulate_bias);
        gpu.launch(&SOURCE, "layer_norm_backward_finish", config, list)?;
    }
    Ok(())
}

/// Address of a gradient, or null.
fn target(gradient: Option<(ViewMut<'_, f32>, Write)>) -> (u64, Write) {
    gradient.map_or((0, Write::Set), |(view, write)| (view.address(), write))
}

/// How the rows of the backward pass are dealt out; by the shape alone, so that sums are taken in the same order.
struct BackwardPlan {
    row: Rows,
    team: Team,
    width: usize,
    /// Teams in all.
    teams: usize,
    rows_per_team: usize,
    /// Blocks, each of which leaves its sums.
    parts: usize,
}

impl BackwardPlan {
    fn new(gpu: &Gpu, shape: &Shape, arguments: &Backward<'_>) -> Self {
        let Shape { rows, channels, .. } = *shape;
        let addresses = [
            arguments.input.address(),
            arguments.weight.address(),
            arguments.grad_output.address(),
            arguments.grad_input.as_ref().map_or(0, |(grad, _)| grad.address()),
        ];
        let width = access_width(channels, &addresses);
        // A team needs four rows' memory: with more channels to a warp, too few warps would share a multiprocessor.
        let row = Rows { length: channels, warp_longest: 512, shared_bytes: 16 * channels, shared_most: 160 << 10 };
        let team = Team::of(gpu, &row);
        let teams = rows.div_ceil(TEAM_ROWS).min(PARTS_MAX * team.per_block(rows)).max(1);
        let rows_per_team = rows.div_ceil(teams).max(1);
        let teams = rows.div_ceil(rows_per_team);
        let parts = teams.div_ceil(team.per_block(teams));
        Self { row, team, width, teams, rows_per_team, parts }
    }

    fn partials_bytes(&self, channels: usize) -> u64 {
        (2 * self.parts * channels * size_of::<f32>()) as u64
    }

    fn launch(&self, shape: &Shape, arguments: &Backward<'_>, partials: u64) -> Launch {
        let Backward { input, weight, statistics, grad_output, grad_input, .. } = arguments;
        let list = Arguments::new()
            .view(input)
            .view(weight)
            .optional(statistics.mean.as_ref())
            .view(&statistics.reciprocal_deviation)
            .view(grad_output)
            .optional_mut(grad_input.as_ref().map(|(grad, _)| grad))
            .write(grad_input.as_ref().map_or(Write::Set, |(_, write)| *write))
            .address(partials)
            .size(shape.rows)
            .size(shape.channels)
            .size(self.rows_per_team);
        let config = self.team.config(self.teams, &self.row, self.width, BLOCK_THREADS);
        (backward_kernel(shape.kind, self.team, self.width), config, list)
    }
}

pub(crate) mod checks {
    #[cfg(test)]
    use super::super::counting::CountingDevice;
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::layer_norm::Statistics;
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, layer_norm};

    const EPSILON: f32 = 1e-5;

    /// One value, odd sizes, each team with both widths of access; 12,289 channels fit no shared memory.
    const SIZES: [(usize, usize); 11] = [
        (1, 1),
        (3, 3),
        (113, 64),
        (7, 113),
        (5, 203),
        (2, 1023),
        (3, 1025),
        (3, 1028),
        (1, 12_289),
        (37, 516),
        (2, 12_292),
    ];

    fn normal(random: &mut Random, shape: &Shape) -> Vec<f32> {
        random.normal(shape.rows * shape.channels)
    }

    fn forward_matches_reference_over_odd_sizes_and_options(device: &Device) {
        let mut random = Random::fresh();
        for (rows, channels) in SIZES {
            // A mean far from zero is where a one-pass variance would lose its digits.
            let shift = if channels > 3 { 8.0 } else { 0.0 };
            let input: Vec<f32> = random.normal(rows * channels).iter().map(|x| x + shift).collect();
            let residual = random.normal(rows * channels);
            let [weight, bias] = [0; 2].map(|_| random.normal(channels));
            let [on_input, on_residual] = [&input, &residual].map(|values| Buffer::upload(device, values));
            let [on_weight, on_bias] = [&weight, &bias].map(|values| Buffer::upload(device, values));
            for options in 0..12 {
                let (has_residual, has_statistics) = (options & 1 > 0, options & 2 > 0);
                let (kind, has_bias) = [(Norm::Layer, false), (Norm::Layer, true), (Norm::Rms, false)][options / 4];
                let shape = Shape { kind, rows, channels, epsilon: EPSILON };
                let (residual, bias) = (double(&residual), double(&bias));
                let expected = layer_norm::reference::forward(
                    &shape,
                    &double(&input),
                    has_residual.then_some(&residual),
                    &double(&weight),
                    has_bias.then_some(&bias),
                );
                let [mut output, mut sum] = [0; 2].map(|_| Buffer::poisoned(device, rows * channels));
                let [mut mean, mut rstd] = [0; 2].map(|_| Buffer::poisoned(device, rows));
                let arguments = Forward {
                    input: on_input.view(),
                    residual: has_residual.then(|| (on_residual.view(), sum.view_mut())),
                    weight: on_weight.view(),
                    bias: has_bias.then(|| on_bias.view()),
                    output: output.view_mut(),
                    statistics: has_statistics.then(|| Statistics {
                        mean: (kind == Norm::Layer).then(|| mean.view_mut()),
                        reciprocal_deviation: rstd.view_mut(),
                    }),
                };
                layer_norm::forward(device, &shape, arguments).unwrap();
                let name = format!("{rows}x{channels}, options {options}");
                assert_close(&format!("output, {name}"), &output.download(), &expected.output, 1e-5, 0.0);
                if has_residual {
                    assert_close(&format!("sum, {name}"), &sum.download(), &expected.sum, 1e-6, 0.0);
                }
                if has_statistics {
                    let deviation = &expected.reciprocal_deviation;
                    if kind == Norm::Layer {
                        assert_close(&format!("mean, {name}"), &mean.download(), &expected.mean, 1e-6, 0.0);
                    }
                    assert_close(&format!("deviation, {name}"), &rstd.download(), deviation, 1e-5, 0.0);
                }
            }
        }
    }

    /// What the backward pass takes, on the host and on a device.
    struct Case<'d> {
        device: &'d Device,
        shape: Shape,
        input: Vec<f32>,
        weight: Vec<f32>,
        grad_output: Vec<f32>,
        on_device: [Buffer<'d, f32>; 5],
    }

    impl<'d> Case<'d> {
        fn new(device: &'d Device, random: &mut Random, (kind, rows, channels): (Norm, usize, usize)) -> Self {
            let shape = Shape { kind, rows, channels, epsilon: EPSILON };
            let [input, grad_output] = [0; 2].map(|_| normal(random, &shape));
            let weight = random.normal(channels);
            let statistics = layer_norm::reference::forward(&shape, &double(&input), None, &double(&weight), None);
            let single = |values: &[f64]| -> Vec<f32> { values.iter().map(|&value| value as f32).collect() };
            let (mean, deviation) = (single(&statistics.mean), single(&statistics.reciprocal_deviation));
            let on_device = [&input, &weight, &mean, &deviation, &grad_output].map(|v| Buffer::upload(device, v));
            Self { device, shape, input, weight, grad_output, on_device }
        }

        /// Gradients of input, weight and bias where they are wanted; `before` is what they hold first.
        fn run(&self, wanted: [bool; 3], write: Write, before: &[Vec<f32>; 3]) -> [Vec<f32>; 3] {
            let mut gradients: [Buffer<'_, f32>; 3] = std::array::from_fn(|i| match write {
                Write::Set => Buffer::poisoned(self.device, before[i].len()),
                Write::Add => Buffer::upload(self.device, &before[i]),
            });
            let [input, weight, mean, reciprocal_deviation, grad_output] = self.on_device.each_ref().map(Buffer::view);
            let [grad_input, grad_weight, grad_bias] =
                gradients.each_mut().map(|gradient| (gradient.view_mut(), write));
            let arguments = Backward {
                input,
                weight,
                statistics: Statistics { mean: (self.shape.kind == Norm::Layer).then_some(mean), reciprocal_deviation },
                grad_output,
                grad_input: wanted[0].then_some(grad_input),
                grad_weight: wanted[1].then_some(grad_weight),
                grad_bias: (wanted[2] && self.shape.kind == Norm::Layer).then_some(grad_bias),
            };
            layer_norm::backward(self.device, &self.shape, arguments).unwrap();
            gradients.map(|gradient| gradient.download())
        }
    }

    fn backward_matches_reference_over_odd_sizes_and_options(device: &Device) {
        let mut random = Random::fresh();
        let sizes = SIZES.into_iter().chain([(1023, 12)]);
        for (kind, rows, channels) in sizes.flat_map(|(r, c)| [(Norm::Layer, r, c), (Norm::Rms, r, c)]) {
            let case = Case::new(device, &mut random, (kind, rows, channels));
            let (input, weight) = (double(&case.input), double(&case.weight));
            let expected = layer_norm::reference::backward(&case.shape, &input, &weight, &double(&case.grad_output));
            let before = [normal(&mut random, &case.shape), random.normal(channels), random.normal(channels)];
            // With few channels everything cancels: the floor is what rounding leaves of the reciprocal deviation.
            let deviation = case.on_device[3].download();
            let floor = 1e-6 * f64::from(deviation.iter().fold(0.0f32, |most, &value| most.max(value)));
            for write in [Write::Set, Write::Add] {
                let found = case.run([true; 3], write, &before);
                let names = ["input", "weight", "bias"];
                for (i, gradient) in [&expected.input, &expected.weight, &expected.bias].into_iter().enumerate() {
                    if kind == Norm::Rms && i == 2 {
                        continue;
                    }
                    let expected: Vec<f64> = match write {
                        Write::Set => gradient.clone(),
                        Write::Add => gradient.iter().zip(&before[i]).map(|(g, &b)| g + f64::from(b)).collect(),
                    };
                    let name = format!("{}, {kind:?}, {rows}x{channels}, {write:?}", names[i]);
                    assert_close(&name, &found[i], &expected, 1e-5, floor);
                }
            }
        }
    }

    fn each_gradient_can_be_asked_for_alone_with_the_same_bits(device: &Device) {
        let mut random = Random::fresh();
        for (rows, channels) in [(67, 48), (13, 516), (3, 12_289)] {
            let case = Case::new(device, &mut random, (Norm::Layer, rows, channels));
            let before = [vec![0.0; rows * channels], vec![0.0; channels], vec![0.0; channels]];
            let bits = |gradient: &[f32]| -> Vec<u32> { gradient.iter().map(|x| x.to_bits()).collect() };
            let together = case.run([true; 3], Write::Set, &before);
            for (i, expected) in together.iter().enumerate() {
                let alone = case.run(std::array::from_fn(|j| j == i), Write::Set, &before);
                assert_eq!(bits(&alone[i]), bits(expected), "gradient {i} of {rows}x{channels}");
                let others_untouched = (0..3).filter(|&j| j != i).all(|j| alone[j].iter().all(|x| x.is_nan()));
                assert!(others_untouched, "{rows}x{channels}: more was written than gradient {i}");
            }
        }
    }

    fn no_rows_have_gradients_of_zero(device: &Device) {
        let case = Case::new(device, &mut Random::fresh(), (Norm::Layer, 0, 5));
        let [_, weight, bias] = case.run([true; 3], Write::Set, &[vec![], vec![0.0; 5], vec![0.0; 5]]);
        assert!(weight == [0.0; 5] && bias == [0.0; 5]);
    }

    #[test]
    fn every_value_is_moved_once() {
        let Device::Gpu(gpu) = crate::gpu::testing::device() else { unreachable!() };
        let counting = CountingDevice::new();
        let values = |count: usize| vec![1.0f32; count];
        // A warp's rows and a block's.
        for (rows, channels) in [(64, 128), (64, 1536)] {
            let shape = Shape { kind: Norm::Layer, rows, channels, epsilon: EPSILON };
            let (row_bytes, all_bytes, statistic_bytes) = (4 * channels as u64, 4 * (rows * channels) as u64, 4 * 64);
            let arguments = Forward {
                input: counting.upload(&values(rows * channels)),
                residual: Some((
                    counting.upload(&values(rows * channels)),
                    counting.upload_mut(&values(rows * channels)),
                )),
                weight: counting.upload(&values(channels)),
                bias: Some(counting.upload(&values(channels))),
                output: counting.upload_mut(&values(rows * channels)),
                statistics: Some(Statistics {
                    mean: Some(counting.upload_mut(&values(rows))),
                    reciprocal_deviation: counting.upload_mut(&values(rows)),
                }),
            };
            let counts = counting.count(&SOURCE, forward_launch(&gpu, &shape, &arguments));
            assert_eq!(counts.dram_read_bytes, 2 * all_bytes + 2 * row_bytes);
            assert_eq!(counts.dram_write_bytes, 2 * all_bytes + 2 * statistic_bytes);
            // Nothing is read twice but the weight and the bias, once for each row; every access is coalesced.
            assert_eq!(32 * counts.global_load_sectors, 4 * all_bytes);
            assert_eq!(32 * counts.global_store_sectors, 2 * all_bytes + 2 * 32 * rows as u64);
            assert_eq!(counts.shared_bank_conflicts, 0);

            let arguments = Backward {
                input: counting.upload(&values(rows * channels)),
                weight: counting.upload(&values(channels)),
                statistics: Statistics {
                    mean: Some(counting.upload(&values(rows))),
                    reciprocal_deviation: counting.upload(&values(rows)),
                },
                grad_output: counting.upload(&values(rows * channels)),
                grad_input: Some((counting.upload_mut(&values(rows * channels)), Write::Set)),
                grad_weight: None,
                grad_bias: None,
            };
            let plan = BackwardPlan::new(&gpu, &shape, &arguments);
            let partials = counting.upload_mut(&values(2 * plan.parts * channels));
            let launch = plan.launch(&shape, &arguments, partials.address());
            // Each warp reads the two statistics of its row.
            let warps_of_row = u64::from(launch.1.block[0] / 32);
            let counts = counting.count(&SOURCE, launch);
            assert_eq!(counts.dram_read_bytes, 2 * all_bytes + row_bytes + 2 * statistic_bytes);
            assert_eq!(counts.dram_write_bytes, all_bytes + plan.partials_bytes(channels));
            assert_eq!(32 * counts.global_load_sectors, 3 * all_bytes + 2 * 32 * rows as u64 * warps_of_row);
            assert_eq!(counts.shared_bank_conflicts, 0);
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check {
            name: "layer_norm: forward matches reference over odd sizes and options",
            claim: forward_matches_reference_over_odd_sizes_and_options,
        },
        Check {
            name: "layer_norm: backward matches reference over odd sizes and options",
            claim: backward_matches_reference_over_odd_sizes_and_options,
        },
        Check {
            name: "layer_norm: each gradient can be asked for alone with the same bits",
            claim: each_gradient_can_be_asked_for_alone_with_the_same_bits,
        },
        Check { name: "layer_norm: no rows have gradients of zero", claim: no_rows_have_gradients_of_zero },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
