//! Launches `kernels/mean_rows.cu`: a block to a range and a warp's width of its columns.

use super::rows::{WARP, access_width};
use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};
use crate::ops::Write;
use crate::ops::mean_rows::{Backward, Forward, Shape};

static SOURCE: Source = source!("mean_rows");

/// Most warps that share the rows of a range, as in the kernel file.
const RANGE_WARPS: usize = 16;

/// By the shape alone, so that sums are taken in the same order: where ranges are long on average, warps share them.
fn config(shape: &Shape, width: usize) -> LaunchConfig {
    let Shape { rows, channels, ranges } = *shape;
    let warps = (rows / (4 * ranges.max(1))).next_power_of_two().clamp(1, RANGE_WARPS);
    let columns = channels.div_ceil(width * WARP);
    LaunchConfig::new([ranges as u32, columns as u32, 1], [WARP as u32, warps as u32, 1])
}

/// See [`crate::ops::mean_rows::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let Forward { input, ranges, output } = arguments;
    let width = access_width(shape.channels, &[input.address(), output.address()]);
    let kernel = if width == 4 { "mean_rows_forward_4" } else { "mean_rows_forward_1" };
    let list = Arguments::new().view(&input).view(&ranges).view_mut(&output).size(shape.rows).size(shape.channels);
    gpu.launch(&SOURCE, kernel, config(shape, width), list)
}

/// See [`crate::ops::mean_rows::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Backward { ranges, grad_output, grad_input: (grad, write) } = arguments;
    if write == Write::Set && !grad.is_empty() {
        gpu.driver().fill(gpu.stream(), grad.address(), 0, grad.len() as u64)?;
    }
    let width = access_width(shape.channels, &[grad_output.address(), grad.address()]);
    let kernel = if width == 4 { "mean_rows_backward_4" } else { "mean_rows_backward_1" };
    let list = Arguments::new()
        .view(&ranges)
        .view(&grad_output)
        .view_mut(&grad)
        .write(write)
        .size(shape.rows)
        .size(shape.channels);
    gpu.launch(&SOURCE, kernel, config(shape, width), list)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::mean_rows::cases::cases;
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, mean_rows};

    fn gradient(
        device: &Device,
        shape: &Shape,
        ranges: &[i32],
        grad_output: &[f32],
        before: Option<&[f32]>,
    ) -> Vec<f32> {
        let (ranges, grad_output) = (Buffer::upload(device, ranges), Buffer::upload(device, grad_output));
        let length = shape.rows * shape.channels;
        let mut grad = before.map_or_else(|| Buffer::poisoned(device, length), |before| Buffer::upload(device, before));
        let write = if before.is_some() { Write::Add } else { Write::Set };
        let arguments =
            Backward { ranges: ranges.view(), grad_output: grad_output.view(), grad_input: (grad.view_mut(), write) };
        mean_rows::backward(device, shape, arguments).unwrap();
        grad.download()
    }

    fn both_passes_match_reference(device: &Device) {
        let mut random = Random::fresh();
        for (shape, ranges) in cases(&mut random) {
            let [input, before] = [0; 2].map(|_| random.normal(shape.rows * shape.channels));
            let grad_output = random.normal(shape.ranges * shape.channels);
            let expected = mean_rows::reference::forward(&shape, &double(&input), &ranges);
            let (on_input, on_ranges) = (Buffer::upload(device, &input), Buffer::upload(device, &ranges));
            let mut output = Buffer::poisoned(device, expected.len());
            let arguments = Forward { input: on_input.view(), ranges: on_ranges.view(), output: output.view_mut() };
            mean_rows::forward(device, &shape, arguments).unwrap();
            assert_close(&format!("forward, {shape:?}"), &output.download(), &expected, 1e-6, 0.0);

            let expected = mean_rows::reference::backward(&shape, &ranges, &double(&grad_output));
            let set = gradient(device, &shape, &ranges, &grad_output, None);
            assert_close(&format!("set, {shape:?}"), &set, &expected, 1e-6, 0.0);
            let expected: Vec<f64> = expected.iter().zip(&before).map(|(g, &b)| g + f64::from(b)).collect();
            let added = gradient(device, &shape, &ranges, &grad_output, Some(&before));
            assert_close(&format!("added, {shape:?}"), &added, &expected, 1e-6, 0.0);
        }
    }

    fn ranges_that_are_not_inside_count_as_empty(device: &Device) {
        let shape = Shape { rows: 3, channels: 4, ranges: 4 };
        let ranges = [-1, 1, 1, 4, 2, 1, 2, 3];
        let (input, on_ranges) = (Buffer::upload(device, &[1.0f32; 12]), Buffer::upload(device, &ranges));
        let mut output = Buffer::poisoned(device, 16);
        let arguments = Forward { input: input.view(), ranges: on_ranges.view(), output: output.view_mut() };
        mean_rows::forward(device, &shape, arguments).unwrap();
        let output = output.download();
        assert!(output[..12] == [0.0; 12] && output[12..] == [1.0; 4], "{output:?}");
        let found = gradient(device, &shape, &ranges, &[2.0; 16], None);
        assert!(found[..8] == [0.0; 8] && found[8..] == [2.0; 4], "{found:?}");
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check { name: "mean_rows: both passes match reference", claim: both_passes_match_reference },
        Check {
            name: "mean_rows: ranges that are not inside count as empty",
            claim: ranges_that_are_not_inside_count_as_empty,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
