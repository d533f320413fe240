//! Launches `kernels/rotary.cu`: one kernel, since the backward pass is the forward pass with the angles negated.

use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};
use crate::ops::rotary::{Backward, Forward, Shape};
use crate::ops::{View, turn};

static SOURCE: Source = source!("rotary");

/// Threads of a block, as in the kernel file.
const THREADS: usize = 128;
/// Heads that a thread turns with one set of sines: many enough that these cost little, few enough that a batch of a
/// few tokens still has work for a whole GPU.
const HEADS_OF_THREAD: usize = 4;

/// See [`crate::ops::rotary::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let addresses = [arguments.input.address(), arguments.output.address()];
    let heads = shape.heads + 2 * shape.key_value_heads;
    apply(gpu, shape, addresses, heads, arguments.position_ids.as_ref(), false)
}

/// See [`crate::ops::rotary::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let addresses = [arguments.gradient.address(); 2];
    apply(gpu, shape, addresses, shape.turned_heads(), arguments.position_ids.as_ref(), true)
}

/// The first `heads` of each row.
fn apply(
    gpu: &Gpu,
    shape: &Shape,
    [input, output]: [u64; 2],
    heads: usize,
    position_ids: Option<&View<'_, i32>>,
    is_backward: bool,
) -> Result<()> {
    let (rows, pairs) = (shape.batch * shape.time, shape.rotary_columns / 2);
    let is_aligned = shape.head_size.is_multiple_of(4) && pairs.is_multiple_of(4);
    let is_wide = is_aligned && input.is_multiple_of(16) && output.is_multiple_of(16);
    let (kernel, width) = if is_wide { ("rotary_apply_4", 4) } else { ("rotary_apply_1", 1) };
    let threads = rows * (pairs / width).max(1);
    let grid = [threads.div_ceil(THREADS) as u32, heads.div_ceil(HEADS_OF_THREAD) as u32, 1];
    let list = Arguments::new()
        .address(input)
        .address(output)
        .optional(position_ids)
        .size(rows)
        .size(shape.time)
        .size(heads)
        .size(shape.turned_heads())
        .size(HEADS_OF_THREAD)
        .size(shape.head_size)
        .size(pairs)
        .size(shape.first_position)
        .flag(is_backward)
        .counts(&turn::powers(shape.base, shape.rotary_columns.max(1)));
    gpu.launch(&SOURCE, kernel, LaunchConfig::new(grid, [THREADS as u32, 1, 1]), list)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::rotary::cases::{cases, shape};
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, rotary};

    fn run(device: &Device, shape: &Shape, input: &[f32], ids: Option<&[i32]>) -> [Vec<f32>; 2] {
        let on_ids = Buffer::upload(device, ids.unwrap_or_default());
        let on_input = Buffer::upload(device, input);
        let position_ids = ids.map(|_| on_ids.view());
        let mut output = Buffer::poisoned(device, input.len());
        let arguments = Forward { input: on_input.view(), position_ids, output: output.view_mut() };
        rotary::forward(device, shape, arguments).unwrap();
        let mut gradient = Buffer::upload(device, input);
        let position_ids = ids.map(|_| on_ids.view());
        rotary::backward(device, shape, Backward { position_ids, gradient: gradient.view_mut() }).unwrap();
        [output.download(), gradient.download()]
    }

    fn both_passes_match_reference(device: &Device) {
        let mut random = Random::fresh();
        for (shape, position_ids) in cases(&mut random) {
            let input = random.normal(shape.batch * shape.time * shape.columns());
            let ids = position_ids.as_deref();
            let [output, gradient] = run(device, &shape, &input, ids);
            let expected = rotary::reference::forward(&shape, &double(&input), ids);
            assert_close(&format!("forward, {shape:?}"), &output, &expected, 3e-7, 0.0);
            let expected = rotary::reference::backward(&shape, &double(&input), ids);
            assert_close(&format!("backward, {shape:?}"), &gradient, &expected, 3e-7, 0.0);
        }
    }

    fn a_negative_position_gives_nan_and_zero_leaves_things_as_they_are(device: &Device) {
        let shape = shape((1, 2, 2, 1, 8, 8, 10_000.0, 0));
        let input = Random::fresh().normal(2 * shape.columns());
        let [output, _] = run(device, &shape, &input, Some(&[0, -1]));
        let (first, second) = output.split_at(shape.columns());
        assert!(first == &input[..first.len()], "{first:?}");
        assert!(second[..24].iter().all(|y| y.is_nan()) && second[24..] == input[32 + 24..], "{second:?}");
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check { name: "rotary: both passes match reference", claim: both_passes_match_reference },
        Check {
            name: "rotary: a negative position gives nan and zero leaves things as they are",
            claim: a_negative_position_gives_nan_and_zero_leaves_things_as_they_are,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
