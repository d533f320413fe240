//! Launches `kernels/pointwise_loss.cu`: a warp takes a row, or a block where rows are long.

use super::rows::{Rows, Team};
use super::{Arguments, Gpu, Source, source};
use crate::driver::Result;
use crate::ops::pointwise_loss::{Forward, ForwardBackward, Kind, Shape};

static SOURCE: Source = source!("pointwise_loss");

/// Longest row of a warp, and most threads to a longer one.
const WARP_LONGEST: usize = 1024;
const BLOCK_THREADS: usize = 256;

/// Names of the kernels of one direction: for warps and for blocks.
type Kernels = [&'static str; 2];

fn launch(gpu: &Gpu, shape: &Shape, [of_warps, of_blocks]: Kernels, list: Arguments) -> Result<()> {
    let row = Rows { length: shape.columns, warp_longest: WARP_LONGEST, shared_bytes: 0, shared_most: 0 };
    let team = Team::of(gpu, &row);
    let kernel = if team == Team::Warp { of_warps } else { of_blocks };
    let kind = match shape.kind {
        Kind::BinaryCrossEntropy => 0,
        Kind::SquaredError => 1,
    };
    let list = list.size(kind).size(shape.rows).size(shape.columns);
    gpu.launch(&SOURCE, kernel, team.config(shape.rows, &row, 1, BLOCK_THREADS), list)
}

/// See [`crate::ops::pointwise_loss::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let Forward { predictions, targets, losses } = arguments;
    let list = Arguments::new().view(&predictions).view(&targets).view_mut(&losses);
    launch(gpu, shape, ["pointwise_loss_forward_warp", "pointwise_loss_forward_block"], list)
}

/// See [`crate::ops::pointwise_loss::forward_backward`].
pub fn forward_backward(gpu: &Gpu, shape: &Shape, arguments: ForwardBackward<'_>) -> Result<()> {
    let ForwardBackward { predictions, targets, losses, grad_loss } = arguments;
    let list = Arguments::new().view_mut(&predictions).view(&targets).view_mut(&losses).float(grad_loss);
    let kernels = ["pointwise_loss_forward_backward_warp", "pointwise_loss_forward_backward_block"];
    launch(gpu, shape, kernels, list)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::pointwise_loss::{cases, reference};
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, pointwise_loss};

    const KINDS: [Kind; 2] = [Kind::BinaryCrossEntropy, Kind::SquaredError];

    /// Losses of both passes, and the gradients.
    fn run(device: &Device, shape: &Shape, predictions: &[f32], targets: &[f32]) -> [Vec<f32>; 3] {
        let (mut x, t) = (Buffer::upload(device, predictions), Buffer::upload(device, targets));
        let [mut losses, mut both] = [0; 2].map(|_| Buffer::poisoned(device, shape.rows));
        let arguments = Forward { predictions: x.view(), targets: t.view(), losses: losses.view_mut() };
        pointwise_loss::forward(device, shape, arguments).unwrap();
        let (targets, losses_of_both) = (t.view(), both.view_mut());
        let arguments =
            ForwardBackward { predictions: x.view_mut(), targets, losses: losses_of_both, grad_loss: 0.125 };
        pointwise_loss::forward_backward(device, shape, arguments).unwrap();
        [losses.download(), both.download(), x.download()]
    }

    fn losses_and_gradients_match_reference_over_odd_sizes(device: &Device) {
        let mut random = Random::fresh();
        for kind in KINDS {
            for (rows, columns) in cases::SIZES {
                let shape = Shape { rows, columns, kind };
                let (predictions, targets) = cases::operands(&mut random, &shape);
                let (x, t) = (double(&predictions), double(&targets));
                let expected = reference::forward(&shape, &x, &t);
                let slopes = reference::backward(&shape, &x, &t, 0.125);
                let [losses, both, gradient] = run(device, &shape, &predictions, &targets);
                let name = format!("{kind:?}, {rows}x{columns}");
                assert_close(&format!("losses, {name}"), &losses, &expected, 1e-5, 0.0);
                assert_close(&format!("losses with gradient, {name}"), &both, &expected, 1e-5, 0.0);
                assert_close(&format!("gradient, {name}"), &gradient, &slopes, 1e-5, 0.0);
            }
        }
    }

    fn what_must_not_go_unnoticed_gives_no_finite_loss(device: &Device) {
        let (far, none) = ([100.0, -1e30, 20.0, 0.5, f32::NAN, f32::NAN], f32::NAN);
        let shape = Shape { rows: 6, columns: 1, kind: Kind::BinaryCrossEntropy };
        let [losses, _, gradient] = run(device, &shape, &far, &[1.0, 1.0, 1.0, -1.0, 1.0, none]);
        assert!(losses[0] < 1e-37 && losses[1] == 1e30, "{losses:?}");
        assert!((f64::from(losses[2]) / (-20f64).exp().ln_1p() - 1.0).abs() < 1e-5, "{losses:?}");
        assert!(losses[3].is_nan() && losses[4].is_nan() && gradient[4].is_nan(), "{losses:?}");
        assert!(losses[5] == 0.0 && gradient[5] == 0.0, "a prediction without a target: {losses:?}");
        let shape = Shape { kind: Kind::SquaredError, ..shape };
        let [losses, ..] = run(device, &shape, &far, &[0.0, 0.0, f32::INFINITY, 0.0, 1.0, none]);
        assert!(!losses[2].is_finite() && losses[3] == 0.25 && losses[4].is_nan() && losses[5] == 0.0, "{losses:?}");
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check {
            name: "pointwise_loss: losses and gradients match reference over odd sizes",
            claim: losses_and_gradients_match_reference_over_odd_sizes,
        },
        Check {
            name: "pointwise_loss: what must not go unnoticed gives no finite loss",
            claim: what_must_not_go_unnoticed_gives_no_finite_loss,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
