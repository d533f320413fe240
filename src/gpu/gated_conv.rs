//! Launches `kernels/gated_conv.cu`: a block to a tile of channels and positions, and the workspace of the sums.

use super::rows::WARP;
use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};
use crate::ops::gated_conv::{Backward, Forward, Shape};
use crate::ops::{ViewMut, Write};

static SOURCE: Source = source!("gated_conv");

/// Positions of a tile, as in the kernel file.
const TILE: usize = 64;
/// A warp's width of channels, and the warps that share a tile's positions.
const BLOCK: [u32; 3] = [32, 8, 1];
/// Most blocks that the tiles of the backward pass are dealt to, for each 32 channels: bounds the memory for their sums.
const PARTS_MAX: usize = 64;

/// Tiles over the batch: of each row, and of the positions that lie a dilation apart.
fn tiles(shape: &Shape) -> usize {
    let Shape { batch, time, dilation, .. } = *shape;
    batch * dilation.min(time) * time.div_ceil(dilation).div_ceil(TILE)
}

/// `engine::gated_conv::Shape`.
fn with_shape(list: Arguments, shape: &Shape) -> Arguments {
    let excluded = shape.excluded().unwrap_or(u32::MAX as usize);
    [shape.batch, shape.time, shape.channels, shape.taps, shape.dilation, shape.origin(), excluded]
        .into_iter()
        .fold(list, Arguments::size)
}

/// See [`crate::ops::gated_conv::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let Forward { input, weight, bias, documents, output } = arguments;
    let config = LaunchConfig::new([tiles(shape) as u32, shape.channels.div_ceil(WARP) as u32, 1], BLOCK);
    let list = Arguments::new()
        .view(&input)
        .view(&weight)
        .optional(bias.as_ref())
        .optional(documents.as_ref())
        .view_mut(&output);
    gpu.launch(&SOURCE, "gated_conv_forward", config, with_shape(list, shape))
}

/// See [`crate::ops::gated_conv::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Backward { input, weight, documents, grad_output, grad_input, grad_weight, grad_bias } = arguments;
    let Shape { channels, taps, .. } = *shape;
    // By the shape alone, so that sums are taken in the same order.
    let tiles = tiles(shape);
    let tiles_per_block = tiles.div_ceil(PARTS_MAX).max(1);
    let parts = tiles.div_ceil(tiles_per_block);
    let wants_sums = grad_weight.is_some() || grad_bias.is_some();
    let partials = match wants_sums {
        true => gpu.workspace((parts * (taps + 1) * channels * size_of::<f32>()) as u64)?,
        false => 0,
    };
    let channel_blocks = channels.div_ceil(WARP) as u32;
    let list = Arguments::new()
        .view(&input)
        .view(&weight)
        .optional(documents.as_ref())
        .view(&grad_output)
        .optional_mut(grad_input.as_ref().map(|(grad, _)| grad))
        .write(grad_input.as_ref().map_or(Write::Set, |(_, write)| *write))
        .address(partials)
        .size(tiles)
        .size(tiles_per_block);
    let config = LaunchConfig::new([parts as u32, channel_blocks, 1], BLOCK);
    gpu.launch(&SOURCE, "gated_conv_backward", config, with_shape(list, shape))?;
    if !wants_sums {
        return Ok(());
    }
    let target = |gradient: Option<(ViewMut<'_, f32>, Write)>| {
        gradient.map_or((0, Write::Set), |(view, write)| (view.address(), write))
    };
    let ((weight, accumulate_weight), (bias, accumulate_bias)) = (target(grad_weight), target(grad_bias));
    let list = Arguments::new()
        .address(partials)
        .size(parts)
        .size(channels)
        .size(taps)
        .address(weight)
        .write(accumulate_weight)
        .address(bias)
        .write(accumulate_bias);
    let config = LaunchConfig::new([channel_blocks, taps as u32 + 1, 1], BLOCK);
    gpu.launch(&SOURCE, "gated_conv_backward_finish", config, list)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::gated_conv::Window;
    use crate::ops::gated_conv::cases::{Case, cases};
    use crate::ops::testing::{Random, assert_close};
    use crate::ops::{Device, gated_conv};

    /// A case's arguments on a device.
    struct OnDevice<'d> {
        input: Buffer<'d, f32>,
        weight: Buffer<'d, f32>,
        bias: Buffer<'d, f32>,
        grad_output: Buffer<'d, f32>,
        documents: Option<Buffer<'d, i32>>,
    }

    impl<'d> OnDevice<'d> {
        fn new(device: &'d Device, case: &Case) -> Self {
            let [input, weight, bias, grad_output] =
                [&case.input, &case.weight, &case.bias, &case.grad_output].map(|values| Buffer::upload(device, values));
            let documents = case.documents.as_ref().map(|documents| Buffer::upload(device, documents));
            Self { input, weight, bias, grad_output, documents }
        }
    }

    fn forward_matches_reference(device: &Device) {
        for case in cases(&mut Random::fresh()) {
            let on_device = OnDevice::new(device, &case);
            for has_bias in [false, true] {
                let expected = case.expected_output(has_bias);
                let mut output = Buffer::poisoned(device, expected.len());
                let arguments = Forward {
                    input: on_device.input.view(),
                    weight: on_device.weight.view(),
                    bias: has_bias.then(|| on_device.bias.view()),
                    documents: on_device.documents.as_ref().map(Buffer::view),
                    output: output.view_mut(),
                };
                gated_conv::forward(device, &case.shape, arguments).unwrap();
                assert_close(&format!("{case}, bias {has_bias}"), &output.download(), &expected, 2e-6, 0.0);
            }
        }
    }

    /// Gradients of input, weight and bias where they are wanted; `before` is what they hold first.
    fn run(device: &Device, case: &Case, wanted: [bool; 3], write: Write, before: &[Vec<f32>; 3]) -> [Vec<f32>; 3] {
        let on_device = OnDevice::new(device, case);
        let mut gradients = before.each_ref().map(|before| match write {
            Write::Set => Buffer::poisoned(device, before.len()),
            Write::Add => Buffer::upload(device, before),
        });
        let [input, weight, bias] = gradients.each_mut().map(|gradient| (gradient.view_mut(), write));
        let arguments = Backward {
            input: on_device.input.view(),
            weight: on_device.weight.view(),
            documents: on_device.documents.as_ref().map(Buffer::view),
            grad_output: on_device.grad_output.view(),
            grad_input: wanted[0].then_some(input),
            grad_weight: wanted[1].then_some(weight),
            grad_bias: wanted[2].then_some(bias),
        };
        gated_conv::backward(device, &case.shape, arguments).unwrap();
        gradients.map(|gradient| gradient.download())
    }

    fn backward_matches_reference_and_two_runs_have_the_same_bits(device: &Device) {
        let mut random = Random::fresh();
        for case in cases(&mut random) {
            let before = case.gradient_lengths().map(|length| random.normal(length));
            for write in [Write::Set, Write::Add] {
                let expected = case.expected_gradients(write, &before);
                let found = run(device, &case, [true; 3], write, &before);
                for (i, what) in ["input", "weight", "bias"].into_iter().enumerate() {
                    assert_close(&format!("{what}, {case}, {write:?}"), &found[i], &expected[i], 5e-6, 0.0);
                }
                assert!(found == run(device, &case, [true; 3], write, &before), "two runs differ, {case}, {write:?}");
            }
        }
    }

    /// More tiles than blocks, so that a block sums several.
    fn each_gradient_can_be_asked_for_alone_with_the_same_bits(device: &Device) {
        let window = Window::Centred { excludes_self: true };
        let shape = Shape { batch: 5, time: 300, channels: 33, taps: 5, dilation: 7, window };
        let case = Case::new(&mut Random::fresh(), shape, true);
        let before = case.gradient_lengths().map(|length| vec![0.0; length]);
        let together = run(device, &case, [true; 3], Write::Set, &before);
        let expected = case.expected_gradients(Write::Set, &before);
        for i in 0..3 {
            assert_close(&format!("gradient {i}"), &together[i], &expected[i], 5e-6, 0.0);
            let alone = run(device, &case, std::array::from_fn(|j| j == i), Write::Set, &before);
            assert!(alone[i] == together[i], "gradient {i}");
            let others_untouched = (0..3).filter(|&j| j != i).all(|j| alone[j].iter().all(|x| x.is_nan()));
            assert!(others_untouched, "more was written than gradient {i}");
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check { name: "gated_conv: forward matches reference", claim: forward_matches_reference },
        Check {
            name: "gated_conv: backward matches reference and two runs have the same bits",
            claim: backward_matches_reference_and_two_runs_have_the_same_bits,
        },
        Check {
            name: "gated_conv: each gradient can be asked for alone with the same bits",
            claim: each_gradient_can_be_asked_for_alone_with_the_same_bits,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
