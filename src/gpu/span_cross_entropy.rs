//! Launches `kernels/span_cross_entropy.cu`: a block for each span.

use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};
use crate::ops::span_cross_entropy::{Forward, ForwardBackward, Shape};

static SOURCE: Source = source!("span_cross_entropy");

const BLOCK: u32 = 256;

/// See [`crate::ops::span_cross_entropy::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let Forward { logits, spans, targets, losses } = arguments;
    let list = Arguments::new().view(&logits).view(&spans).view(&targets).view_mut(&losses);
    let list = list.int(shape.ignored).size(shape.positions).size(shape.spans);
    let config = LaunchConfig::new([shape.spans as u32, 1, 1], [BLOCK, 1, 1]);
    gpu.launch(&SOURCE, "span_cross_entropy_forward", config, list)
}

/// See [`crate::ops::span_cross_entropy::forward_backward`].
pub fn forward_backward(gpu: &Gpu, shape: &Shape, arguments: ForwardBackward<'_>) -> Result<()> {
    let ForwardBackward { logits, spans, targets, losses, grad_loss } = arguments;
    let list = Arguments::new().view_mut(&logits).view(&spans).view(&targets).view_mut(&losses).float(grad_loss);
    let list = list.int(shape.ignored).size(shape.positions).size(shape.spans);
    // One block more, for what lies behind all spans.
    let config = LaunchConfig::new([shape.spans as u32 + 1, 1, 1], [BLOCK, 1, 1]);
    gpu.launch(&SOURCE, "span_cross_entropy_forward_backward", config, list)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::span_cross_entropy::cases::{Case, LENGTHS};
    use crate::ops::testing::{Random, assert_close};
    use crate::ops::{Device, span_cross_entropy};

    /// Losses of both passes, and the gradients.
    fn run(device: &Device, case: &Case) -> [Vec<f32>; 3] {
        let mut logits = Buffer::upload(device, &case.logits);
        let [spans, targets] = [&case.spans, &case.targets].map(|ids| Buffer::upload(device, ids));
        let [mut losses, mut both] = [0; 2].map(|_| Buffer::poisoned(device, case.shape.spans));
        let (spans, targets) = (spans.view(), targets.view());
        let arguments = Forward { logits: logits.view(), spans, targets, losses: losses.view_mut() };
        span_cross_entropy::forward(device, &case.shape, arguments).unwrap();
        let arguments =
            ForwardBackward { logits: logits.view_mut(), spans, targets, losses: both.view_mut(), grad_loss: 0.25 };
        span_cross_entropy::forward_backward(device, &case.shape, arguments).unwrap();
        [losses.download(), both.download(), logits.download()]
    }

    fn losses_and_gradients_match_reference_over_odd_lengths(device: &Device) {
        let mut random = Random::fresh();
        for lengths in LENGTHS {
            for spread in [1.0, 30.0] {
                let case = Case::new(&mut random, lengths, spread);
                let (losses, gradient) = case.reference();
                let [found, both, found_gradient] = run(device, &case);
                let name = format!("{lengths:?}, spread {spread}");
                assert_close(&format!("losses, {name}"), &found, &losses, 1e-5, 1e-6);
                assert_close(&format!("losses with gradient, {name}"), &both, &losses, 1e-5, 1e-6);
                assert_close(&format!("gradient, {name}"), &found_gradient, &gradient, 1e-5, 2e-8);
                case.assert_zero_outside(&found_gradient);
            }
        }
    }

    fn spans_and_targets_that_do_not_fit_give_nan_and_touch_nothing_else(device: &Device) {
        let good = Case::new(&mut Random::fresh(), &[5, 3, 4], 1.0);
        let [expected, ..] = run(device, &good);
        let (positions, middle) = (good.shape.positions as i32, 3..6);
        let [before, first] = [good.spans[2], good.spans[7]];
        for span in [[-1, -5, 3], [-7, before, first], [-1, before, positions + 1], [-1, first, before - 1], [-1, 0, 3]]
        {
            let mut spans = good.spans.clone();
            spans[middle.clone()].copy_from_slice(&span);
            let case = Case { spans, targets: good.targets.clone(), logits: good.logits.clone(), ..good };
            let [losses, both, _] = run(device, &case);
            assert!(losses[1].is_nan() && both[1].is_nan() && losses[0] == expected[0], "{span:?}: {losses:?}");
        }
        for target in [-2, positions, i32::MAX, good.spans[5]] {
            let mut targets = good.targets.clone();
            targets[3] = target;
            let case = Case { targets, spans: good.spans.clone(), logits: good.logits.clone(), ..good };
            let [losses, both, gradient] = run(device, &case);
            assert!(losses[1].is_nan() && both[1].is_nan(), "{target}: {losses:?}");
            assert!(losses[0] == expected[0] && losses[2] == expected[2], "{target}: {losses:?}");
            assert!(gradient[2 * good.spans[4] as usize].is_nan(), "{target}");
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check {
            name: "span_cross_entropy: losses and gradients match reference over odd lengths",
            claim: losses_and_gradients_match_reference_over_odd_lengths,
        },
        Check {
            name: "span_cross_entropy: spans and targets that do not fit give nan and touch nothing else",
            claim: spans_and_targets_that_do_not_fit_give_nan_and_touch_nothing_else,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
