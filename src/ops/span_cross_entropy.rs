//! Loss of extractive question answering: where in its context an answer starts, and where it ends.
//!
//! Each span of positions has its own softmax over the starts and another over the ends, of its positions alone: those
//! of the context, and where the span has one, the position that stands for "no answer" (the row's first token). The
//! loss is the mean of both cross-entropies (Devlin et al. 2019); the gradient is zero at all other positions and
//! replaces the logits in place. Positions are rows of the flattened batch, so documents may be padded or packed.

use super::{Device, Error, View, ViewMut, check_len};
use crate::{cpu, gpu};

pub(crate) mod cases;

const NAME: &str = "span_cross_entropy";

/// The position of "no answer" of a span that has none.
pub const NO_POSITION: i32 = -1;

/// Sizes and options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `N`: rows of the logits, over all documents.
    pub positions: usize,
    /// `M`: one for each question.
    pub spans: usize,
    /// Target that marks a span as not counted, in both of its places.
    pub ignored: i32,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(N, 2)`: of a start, and of an end, at each position.
    pub logits: View<'a, f32>,
    /// `(M, 3)`: position of "no answer" or [`NO_POSITION`], first position, and the one behind the last. In order and
    /// apart: `no answer < first <= end`, all from the end of the span before on.
    pub spans: View<'a, i32>,
    /// `(M, 2)`: positions of the answer's first and last token, of the span; both the one of "no answer"; or ignored.
    pub targets: View<'a, i32>,
    /// `(M)`
    pub losses: ViewMut<'a, f32>,
}

/// Arguments of [`forward_backward`].
pub struct ForwardBackward<'a> {
    /// `(N, 2)`: logits before, their gradients after.
    pub logits: ViewMut<'a, f32>,
    /// `(M, 3)`
    pub spans: View<'a, i32>,
    /// `(M, 2)`
    pub targets: View<'a, i32>,
    /// `(M)`
    pub losses: ViewMut<'a, f32>,
    /// Gradient of every counted span's loss: `1 / counted spans` for the mean.
    pub grad_loss: f32,
}

/// A span, as [`Forward::spans`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) no_answer: Option<usize>,
    pub(crate) first: usize,
    pub(crate) end: usize,
}

impl Span {
    /// Of a span that was checked.
    pub(crate) fn of(three: &[i32]) -> Self {
        let no_answer = (three[0] != NO_POSITION).then_some(three[0] as usize);
        Self { no_answer, first: three[1] as usize, end: three[2] as usize }
    }

    /// Its first position of all.
    pub(crate) fn start(&self) -> usize {
        self.no_answer.unwrap_or(self.first)
    }

    fn contains(&self, position: i32) -> bool {
        usize::try_from(position).is_ok_and(|p| (self.first..self.end).contains(&p) || self.no_answer == Some(p))
    }
}

/// Fails where spans overlap or targets lie outside of them. A GPU's are not read back for that: its kernels write
/// inside the logits whatever they are given, and give such a span a loss of NaN.
fn check(
    device: &Device,
    shape: &Shape,
    logits: usize,
    spans: &View<'_, i32>,
    targets: &View<'_, i32>,
    losses: usize,
) -> Result<(), Error> {
    check_len(NAME, "logits", logits, 2 * shape.positions)?;
    check_len(NAME, "spans", spans.len(), 3 * shape.spans)?;
    check_len(NAME, "targets", targets.len(), 2 * shape.spans)?;
    check_len(NAME, "losses", losses, shape.spans)?;
    if let Device::Gpu(_) = device {
        return Ok(());
    }
    let mut behind = 0i32;
    for (index, (span, target)) in spans.host().chunks(3).zip(targets.host().chunks(2)).enumerate() {
        let &[no_answer, first, end] = span else { unreachable!("chunks of three") };
        let start = if no_answer == NO_POSITION { first } else { no_answer };
        let is_in_order = behind <= start && (no_answer == NO_POSITION || no_answer < first) && first <= end;
        if !is_in_order || end as usize > shape.positions {
            let places = format!("between {behind}, where the one before ends, and {}", shape.positions);
            return Err(Error::new(NAME, format!("span {index} is {span:?}: it must lie in order {places}")));
        }
        behind = end;
        let is_ignored = target.iter().all(|&target| target == shape.ignored);
        let span = Span::of(span);
        if !is_ignored && !target.iter().all(|&target| span.contains(target)) {
            let range = format!("{}..{}", span.first, span.end);
            return Err(Error::new(NAME, format!("targets {target:?} of span {index} are outside its range {range}")));
        }
    }
    Ok(())
}

/// Computes the loss of every span; the logits stay as they are.
///
/// # Errors
/// An argument's length does not fit `shape`, spans that are not in order, or targets outside of them.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    let Forward { logits, spans, targets, losses } = &arguments;
    check(device, shape, logits.len(), spans, targets, losses.len())?;
    match device {
        Device::Cpu(cpu) => cpu::span_cross_entropy::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::span_cross_entropy::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes the loss of every span, and replaces the logits by their gradients.
///
/// # Errors
/// As [`forward`].
pub fn forward_backward(device: &Device, shape: &Shape, arguments: ForwardBackward<'_>) -> Result<(), Error> {
    let ForwardBackward { logits, spans, targets, losses, .. } = &arguments;
    check(device, shape, logits.len(), spans, targets, losses.len())?;
    match device {
        Device::Cpu(cpu) => cpu::span_cross_entropy::forward_backward(cpu, shape, arguments),
        Device::Gpu(gpu) => {
            gpu::span_cross_entropy::forward_backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?
        }
    }
    Ok(())
}

/// The operation in plain f64 loops.
pub mod reference {
    use super::{Shape, Span};

    /// `(M)` losses, and the `(N, 2)` gradient of the logits where each counted span's loss has gradient `grad_loss`.
    pub fn forward_backward(
        shape: &Shape,
        logits: &[f64],
        spans: &[i32],
        targets: &[i32],
        grad_loss: f64,
    ) -> (Vec<f64>, Vec<f64>) {
        let (mut losses, mut gradient) = (vec![0.0; shape.spans], vec![0.0; logits.len()]);
        for (index, (span, target)) in spans.chunks(3).zip(targets.chunks(2)).enumerate() {
            if target[0] == shape.ignored {
                continue;
            }
            let span = Span::of(span);
            let positions: Vec<usize> = span.no_answer.into_iter().chain(span.first..span.end).collect();
            for side in [0, 1] {
                let logit = |position: usize| logits[2 * position + side];
                let largest = positions.iter().map(|&p| logit(p)).fold(f64::NEG_INFINITY, f64::max);
                let total = largest + positions.iter().map(|&p| (logit(p) - largest).exp()).sum::<f64>().ln();
                losses[index] += 0.5 * (total - logit(target[side] as usize));
                for &position in &positions {
                    let wanted = if position == target[side] as usize { 1.0 } else { 0.0 };
                    gradient[2 * position + side] += 0.5 * grad_loss * ((logit(position) - total).exp() - wanted);
                }
            }
        }
        (losses, gradient)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::Case;
    use super::*;

    /// Losses of both passes, and the gradients.
    fn run(device: &Device, case: &Case) -> [Vec<f32>; 3] {
        let [mut losses, mut both] = [0; 2].map(|_| poisoned(case.shape.spans));
        let arguments = Forward {
            logits: (&case.logits).into(),
            spans: (&case.spans).into(),
            targets: (&case.targets).into(),
            losses: (&mut losses).into(),
        };
        forward(device, &case.shape, arguments).unwrap();
        let mut gradient = case.logits.clone();
        let arguments = ForwardBackward {
            logits: (&mut gradient).into(),
            spans: (&case.spans).into(),
            targets: (&case.targets).into(),
            losses: (&mut both).into(),
            grad_loss: 0.25,
        };
        forward_backward(device, &case.shape, arguments).unwrap();
        [losses, both, gradient]
    }

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let case = Case::new(&mut Random::fresh(), &[5, 3, 9], 1.0);
        let logits = double(&case.logits);
        let at = |x: &[f64]| reference::forward_backward(&case.shape, x, &case.spans, &case.targets, 0.25);
        let gradient = at(&logits).1;
        assert_gradient("logits", |x| 0.25 * at(x).0.iter().sum::<f64>(), &logits, &gradient);
    }

    #[test]
    fn losses_and_gradients_match_reference_over_odd_lengths() {
        let mut random = Random::fresh();
        for lengths in cases::LENGTHS {
            for spread in [1.0, 30.0] {
                let case = Case::new(&mut random, lengths, spread);
                let (losses, gradient) = case.reference();
                for (name, device) in cpu_devices() {
                    let name = format!("{lengths:?}, spread {spread}, {name}");
                    let [found, both, found_gradient] = run(&device, &case);
                    assert_eq!(found, both, "both ways give the same losses, {name}");
                    assert_close(&format!("losses, {name}"), &found, &losses, 1e-5, 1e-6);
                    assert_close(&format!("gradient, {name}"), &found_gradient, &gradient, 1e-5, 2e-8);
                    case.assert_zero_outside(&found_gradient);
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let case = Case::new(&mut Random::fresh(), &[203, 1, 1023, 17, 64], 1.0);
        for pair in cpu_devices().chunks(2) {
            let [one, three] = [0, 1].map(|index| run(&pair[index].1, &case));
            assert!(one == three, "{} and {}", pair[0].0, pair[1].0);
        }
    }

    /// A document's loss does not depend on what it is packed with.
    #[test]
    fn packed_documents_have_the_bits_that_they_have_apart() {
        let packed = Case::new(&mut Random::fresh(), &[50, 7, 113], 1.0);
        for (name, device) in cpu_devices() {
            let [losses, _, gradient] = run(&device, &packed);
            for (index, loss) in losses.iter().enumerate() {
                let apart = packed.alone(index);
                let [alone, _, gradient_alone] = run(&device, &apart);
                assert_eq!(alone[0], *loss, "{name}");
                let start = Span::of(&packed.spans[3 * index..][..3]).start();
                assert_eq!(gradient_alone, gradient[2 * start..][..gradient_alone.len()], "{name}");
            }
        }
    }

    #[test]
    fn spans_and_targets_that_do_not_fit_are_named() {
        let (_, device) = cpu_devices().remove(0);
        let message = |spans: [i32; 6], targets: [i32; 4]| {
            let (logits, mut losses) = (vec![0.0; 20], vec![0.0; 2]);
            let arguments = Forward {
                logits: (&logits).into(),
                spans: spans[..].into(),
                targets: targets[..].into(),
                losses: (&mut losses).into(),
            };
            let shape = Shape { positions: 10, spans: 2, ignored: -100 };
            forward(&device, &shape, arguments).map_err(|error| error.to_string())
        };
        assert_eq!(message([0, 2, 5, -1, 6, 9], [0, 0, 6, 8]), Ok(()));
        assert_eq!(message([-1, 0, 0, -1, 0, 10], [-100, -100, 9, 9]), Ok(()), "an empty span");
        let far = message([0, 2, 5, -1, 6, 11], [0, 0, 6, 8]).unwrap_err();
        let places = "it must lie in order between 5, where the one before ends, and 10";
        assert_eq!(far, format!("span_cross_entropy: span 1 is [-1, 6, 11]: {places}"));
        for spans in [[0, 2, 5, -1, 4, 9], [2, 2, 5, -1, 6, 9], [0, 6, 5, -1, 6, 9], [-2, 2, 5, -1, 6, 9]] {
            assert!(message(spans, [3, 3, 7, 7]).is_err(), "{spans:?}");
        }
        let outside = message([0, 2, 5, -1, 6, 9], [0, 1, 6, 8]).unwrap_err();
        assert_eq!(outside, "span_cross_entropy: targets [0, 1] of span 0 are outside its range 2..5");
        for targets in [[3, 3, -100, 7], [3, 3, 7, -100], [3, 5, 7, 7], [3, 3, -1, -1]] {
            assert!(message([0, 2, 5, -1, 6, 9], targets).is_err(), "{targets:?}");
        }
    }
}
