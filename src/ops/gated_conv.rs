//! The layer of convolutional sequence modelling: a gated linear unit (Dauphin et al. 2017) and a depthwise convolution
//! over time (Wu et al. 2019), as one operation.
//!
//! ```text
//! h[t, c] = a[t, c] · σ(g[t, c]),   a and g the halves of the input's columns
//! y[t, c] = bias[c] + Σ_{k<K} weight[c, k] · h[t + (k - o) · dilation, c]
//! ```
//!
//! with `o = K - 1` where the window is causal, `(K - 1) / 2` where it is centred. A centred window may leave out the
//! position itself, so that a token can be predicted from its surroundings and does not see itself. Taps outside the
//! row, or outside the position's document where rows hold several, count as zero.

pub(crate) mod cases;

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};
use std::ops::Range;

const NAME: &str = "gated_conv";

/// Most taps of a window.
pub const TAPS_MAX: usize = 31;
/// Most positions from one tap to the next.
pub const DILATION_MAX: usize = i32::MAX as usize;

/// Which positions a window spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The position and those before it.
    Causal,
    /// As many before the position as behind it: an odd number of taps.
    Centred {
        /// The position itself is left out: its weight is not used and has no gradient.
        excludes_self: bool,
    },
}

/// Sizes of a gated convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub time: usize,
    /// `C`: half of the input's columns.
    pub channels: usize,
    /// `K`, from 1 to [`TAPS_MAX`].
    pub taps: usize,
    /// Positions from one tap to the next, at least 1.
    pub dilation: usize,
    pub window: Window,
}

impl Shape {
    /// The tap at the position itself.
    pub(crate) fn origin(&self) -> usize {
        match self.window {
            Window::Causal => self.taps - 1,
            Window::Centred { .. } => (self.taps - 1) / 2,
        }
    }

    /// The tap that is left out.
    pub(crate) fn excluded(&self) -> Option<usize> {
        (self.window == Window::Centred { excludes_self: true }).then(|| self.origin())
    }

    fn rows(&self) -> usize {
        self.batch * self.time
    }
}

/// The taps of position `t` that lie in `document`, where tap `k` is at `t + (k - origin) · dilation`.
#[inline(always)]
pub(crate) fn taps_inside(
    t: usize,
    document: &Range<usize>,
    taps: usize,
    origin: usize,
    dilation: usize,
) -> Range<usize> {
    let before = (t - document.start) / dilation;
    let behind = (document.end - 1 - t) / dilation;
    origin.saturating_sub(before)..taps.min(origin + behind + 1)
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(B, T, 2·C)`
    pub input: View<'a, f32>,
    /// `(C, K)`
    pub weight: View<'a, f32>,
    /// `(C)`
    pub bias: Option<View<'a, f32>>,
    /// `(B, T, 2)`: first position and end of the document of each position, inside its row; `(0, 0)` marks padding,
    /// whose output is zero. The row is the document where there are none.
    pub documents: Option<View<'a, i32>>,
    /// `(B, T, C)`
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// `(B, T, 2·C)`
    pub input: View<'a, f32>,
    /// `(C, K)`
    pub weight: View<'a, f32>,
    /// As in the forward pass.
    pub documents: Option<View<'a, i32>>,
    /// `(B, T, C)`
    pub grad_output: View<'a, f32>,
    /// `(B, T, 2·C)`
    pub grad_input: Option<(ViewMut<'a, f32>, Write)>,
    /// `(C, K)`
    pub grad_weight: Option<(ViewMut<'a, f32>, Write)>,
    /// `(C)`
    pub grad_bias: Option<(ViewMut<'a, f32>, Write)>,
}

/// Documents of a GPU are not read back for a check: its kernels take a position outside its own for padding.
fn check(device: &Device, shape: &Shape, documents: Option<&View<'_, i32>>) -> Result<(), Error> {
    let Shape { time, taps, dilation, window, .. } = *shape;
    if !(1..=TAPS_MAX).contains(&taps) {
        return Err(Error::new(NAME, format!("{taps} taps: use 1 to {TAPS_MAX}")));
    }
    if window != Window::Causal && taps.is_multiple_of(2) {
        return Err(Error::new(NAME, format!("{taps} taps: a centred window has an odd number")));
    }
    if !(1..=DILATION_MAX).contains(&dilation) {
        return Err(Error::new(NAME, format!("a dilation of {dilation}: use 1 to {DILATION_MAX}")));
    }
    let Some(documents) = documents else { return Ok(()) };
    check_len(NAME, "documents", documents.len(), 2 * shape.rows())?;
    if let Device::Gpu(_) = device {
        return Ok(());
    }
    for (b, row) in documents.host().chunks_exact((2 * time).max(1)).enumerate() {
        let at = |t: usize| (row[2 * t], row[2 * t + 1]);
        for t in 0..time {
            let (first, end) = at(t);
            let fits = |place: usize| first <= place as i32 && (place as i32) < end;
            let agrees = |other: usize| !fits(other) || at(other) == at(t);
            let is_inside = first >= 0 && end as i64 <= time as i64 && fits(t);
            if (first, end) != (0, 0) && !(is_inside && agrees(t.saturating_sub(1)) && agrees((t + 1).min(time - 1))) {
                let what = format!(
                    "position {t} of row {b} has the document {first}..{end} of {time}: it must hold the position, \
                     and be that of all its positions"
                );
                return Err(Error::new(NAME, what));
            }
        }
    }
    Ok(())
}

/// Gates and convolves.
///
/// # Errors
/// An argument's length does not fit `shape`; no taps or too many; an even number of them in a centred window; no
/// dilation; documents that overlap or do not hold their positions.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check(device, shape, arguments.documents.as_ref())?;
    check_len(NAME, "input", arguments.input.len(), 2 * shape.rows() * shape.channels)?;
    check_len(NAME, "weight", arguments.weight.len(), shape.channels * shape.taps)?;
    check_len(NAME, "output", arguments.output.len(), shape.rows() * shape.channels)?;
    if let Some(bias) = &arguments.bias {
        check_len(NAME, "bias", bias.len(), shape.channels)?;
    }
    match device {
        Device::Cpu(cpu) => cpu::gated_conv::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::gated_conv::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes the gradients that are asked for.
///
/// # Errors
/// As [`forward`].
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    check(device, shape, arguments.documents.as_ref())?;
    check_len(NAME, "input", arguments.input.len(), 2 * shape.rows() * shape.channels)?;
    check_len(NAME, "weight", arguments.weight.len(), shape.channels * shape.taps)?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), shape.rows() * shape.channels)?;
    for (name, grad, expected) in [
        ("grad_input", &arguments.grad_input, 2 * shape.rows() * shape.channels),
        ("grad_weight", &arguments.grad_weight, shape.channels * shape.taps),
        ("grad_bias", &arguments.grad_bias, shape.channels),
    ] {
        if let Some((view, _)) = grad {
            check_len(NAME, name, view.len(), expected)?;
        }
    }
    match device {
        Device::Cpu(cpu) => cpu::gated_conv::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::gated_conv::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// The gated convolution in f64, from the formulas: what every backend is measured against.
pub mod reference {
    use super::Shape;

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// Where tap `k` of position `t` of a row lies, unless it is outside the document or left out.
    fn tap(shape: &Shape, documents: Option<&[i32]>, place: usize, k: usize) -> Option<usize> {
        let (row, t) = (place / shape.time * shape.time, (place % shape.time) as i64);
        let (first, end) = documents.map_or((0, shape.time as i64), |documents| {
            (i64::from(documents[2 * place]), i64::from(documents[2 * place + 1]))
        });
        let source = t + (k as i64 - shape.origin() as i64) * shape.dilation as i64;
        let is_used = first <= source && source < end && shape.excluded() != Some(k);
        is_used.then(|| row + source as usize)
    }

    fn is_padding(documents: Option<&[i32]>, place: usize) -> bool {
        documents.is_some_and(|documents| documents[2 * place + 1] == 0)
    }

    /// `(B, T, C)`; see [`super::forward`].
    pub fn forward(
        shape: &Shape,
        input: &[f64],
        weight: &[f64],
        bias: Option<&[f64]>,
        documents: Option<&[i32]>,
    ) -> Vec<f64> {
        let channels = shape.channels;
        let gated = |place: usize, c: usize| {
            input[place * 2 * channels + c] * sigmoid(input[place * 2 * channels + channels + c])
        };
        let value = |place: usize, c: usize| {
            if is_padding(documents, place) {
                return 0.0;
            }
            let sum = (0..shape.taps).filter_map(|k| {
                tap(shape, documents, place, k).map(|source| weight[c * shape.taps + k] * gated(source, c))
            });
            bias.map_or(0.0, |bias| bias[c]) + sum.sum::<f64>()
        };
        (0..shape.rows() * channels).map(|i| value(i / channels, i % channels)).collect()
    }

    /// What the backward pass gives.
    pub struct Gradients {
        /// `(B, T, 2·C)`
        pub input: Vec<f64>,
        /// `(C, K)`
        pub weight: Vec<f64>,
        /// `(C)`
        pub bias: Vec<f64>,
    }

    /// See [`super::backward`].
    pub fn backward(
        shape: &Shape,
        input: &[f64],
        weight: &[f64],
        documents: Option<&[i32]>,
        grad_output: &[f64],
    ) -> Gradients {
        let (channels, taps) = (shape.channels, shape.taps);
        let mut gradients =
            Gradients { input: vec![0.0; input.len()], weight: vec![0.0; weight.len()], bias: vec![0.0; channels] };
        for (i, grad) in grad_output.iter().enumerate() {
            let (place, c) = (i / channels, i % channels);
            if is_padding(documents, place) {
                continue;
            }
            gradients.bias[c] += grad;
            for k in 0..taps {
                let Some(source) = tap(shape, documents, place, k) else { continue };
                let (a, g) = (source * 2 * channels + c, source * 2 * channels + channels + c);
                let gate = sigmoid(input[g]);
                gradients.weight[c * taps + k] += grad * input[a] * gate;
                gradients.input[a] += grad * weight[c * taps + k] * gate;
                gradients.input[g] += grad * weight[c * taps + k] * input[a] * gate * (1.0 - gate);
            }
        }
        gradients
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::{Case, cases};
    use super::*;

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        for window in
            [Window::Causal, Window::Centred { excludes_self: false }, Window::Centred { excludes_self: true }]
        {
            for has_documents in [false, true] {
                let shape = Shape { batch: 2, time: 7, channels: 2, taps: 3, dilation: 2, window };
                let case = Case::new(&mut random, shape, has_documents);
                let documents = case.documents.as_deref();
                let [input, weight, bias, grad_output] =
                    [&case.input, &case.weight, &case.bias, &case.grad_output].map(|values| double(values));
                let loss = |input: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
                    let output = reference::forward(&shape, input, weight, Some(bias), documents);
                    output.iter().zip(&grad_output).map(|(y, g)| y * g).sum()
                };
                let gradients = reference::backward(&shape, &input, &weight, documents, &grad_output);
                assert_gradient("input", |x| loss(x, &weight, &bias), &input, &gradients.input);
                assert_gradient("weight", |w| loss(&input, w, &bias), &weight, &gradients.weight);
                assert_gradient("bias", |b| loss(&input, &weight, b), &bias, &gradients.bias);
            }
        }
    }

    #[test]
    fn forward_matches_reference_and_threads_do_not_change_a_bit() {
        for case in cases(&mut Random::fresh()) {
            for has_bias in [false, true] {
                let expected = case.expected_output(has_bias);
                let mut previous: Option<Vec<f32>> = None;
                for (index, (name, device)) in cpu_devices().into_iter().enumerate() {
                    let name = format!("{case}, bias {has_bias}, {name}");
                    let mut output = poisoned(expected.len());
                    let arguments = Forward {
                        input: (&case.input).into(),
                        weight: (&case.weight).into(),
                        bias: has_bias.then(|| (&case.bias).into()),
                        documents: case.documents.as_ref().map(View::from),
                        output: (&mut output).into(),
                    };
                    forward(&device, &case.shape, arguments).unwrap();
                    assert_close(&name, &output, &expected, 2e-6, 0.0);
                    // Devices come in pairs, with one and with three threads.
                    if let Some(previous) = previous.filter(|_| index % 2 == 1) {
                        assert!(previous == output, "{name}: bits differ");
                    }
                    previous = Some(output);
                }
            }
        }
    }

    fn gradients(
        device: &Device,
        case: &Case,
        wanted: [bool; 3],
        write: Write,
        before: &[Vec<f32>; 3],
    ) -> [Vec<f32>; 3] {
        let mut gradients = before.each_ref().map(|before| match write {
            Write::Set => poisoned(before.len()),
            Write::Add => before.clone(),
        });
        let [input, weight, bias] = gradients.each_mut().map(|gradient| (gradient.into(), write));
        let arguments = Backward {
            input: (&case.input).into(),
            weight: (&case.weight).into(),
            documents: case.documents.as_ref().map(View::from),
            grad_output: (&case.grad_output).into(),
            grad_input: wanted[0].then_some(input),
            grad_weight: wanted[1].then_some(weight),
            grad_bias: wanted[2].then_some(bias),
        };
        backward(device, &case.shape, arguments).unwrap();
        gradients
    }

    #[test]
    fn backward_matches_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for case in cases(&mut random) {
            let mut before = case.gradient_lengths().map(|length| random.normal(length));
            // Of the sign of what is added to it: where the two nearly cancel, as they can where there is but one element,
            // a bound that is relative to their sum asks for more digits than f32 has.
            let added = case.expected_gradients(Write::Set, &before);
            for (before, added) in before.iter_mut().flatten().zip(added.iter().flatten()) {
                *before = before.abs().copysign(*added as f32);
            }
            for write in [Write::Set, Write::Add] {
                let expected = case.expected_gradients(write, &before);
                let mut previous: Option<[Vec<f32>; 3]> = None;
                for (index, (name, device)) in cpu_devices().into_iter().enumerate() {
                    let name = format!("{case}, {write:?}, {name}");
                    let found = gradients(&device, &case, [true; 3], write, &before);
                    for (i, what) in ["input", "weight", "bias"].into_iter().enumerate() {
                        assert_close(&format!("{what}, {name}"), &found[i], &expected[i], 5e-6, 0.0);
                    }
                    if let Some(previous) = previous.filter(|_| index % 2 == 1) {
                        assert!(previous == found, "{name}: bits differ");
                    }
                    previous = Some(found);
                }
            }
        }
    }

    #[test]
    fn each_gradient_can_be_asked_for_alone() {
        let shape = Shape { batch: 3, time: 40, channels: 70, taps: 5, dilation: 1, window: Window::Causal };
        let case = Case::new(&mut Random::fresh(), shape, true);
        let before = case.gradient_lengths().map(|length| vec![0.0; length]);
        for (name, device) in cpu_devices() {
            let together = gradients(&device, &case, [true; 3], Write::Set, &before);
            for i in 0..3 {
                let alone = gradients(&device, &case, std::array::from_fn(|j| j == i), Write::Set, &before);
                assert!(alone[i] == together[i], "gradient {i}, {name}");
            }
        }
    }

    /// Packing documents into one row is the same bits as each in a row of its own.
    #[test]
    fn documents_do_not_see_each_other() {
        let mut random = Random::fresh();
        let window = Window::Centred { excludes_self: false };
        let shape = Shape { batch: 1, time: 50, channels: 9, taps: 7, dilation: 2, window };
        let mut case = Case::new(&mut random, shape, true);
        let documents = [0..13, 13..14, 14..45];
        let of = |t: usize| documents.iter().find(|document| document.contains(&t)).cloned().unwrap_or(0..0);
        case.documents = Some((0..50).map(of).flat_map(|d| [d.start as i32, d.end as i32]).collect());
        for (name, device) in cpu_devices() {
            let run = |shape: &Shape, input: &[f32], documents: Option<&[i32]>| {
                let mut output = poisoned(shape.time * 9);
                let arguments = Forward {
                    input: input.into(),
                    weight: (&case.weight).into(),
                    bias: Some((&case.bias).into()),
                    documents: documents.map(View::from),
                    output: (&mut output).into(),
                };
                forward(&device, shape, arguments).unwrap();
                output
            };
            let packed = run(&shape, &case.input, case.documents.as_deref());
            for document in &documents {
                let alone = Shape { time: document.len(), ..shape };
                let alone = run(&alone, &case.input[document.start * 18..document.end * 18], None);
                assert!(packed[document.start * 9..document.end * 9] == alone, "{document:?}, {name}");
            }
            assert!(packed[45 * 9..].iter().all(|&y| y == 0.0), "padding, {name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (_, device) = cpu_devices().remove(0);
        let causal = Shape { batch: 1, time: 4, channels: 1, taps: 2, dilation: 1, window: Window::Causal };
        let message = |shape: Shape, documents: Option<&[i32]>| {
            let mut output = vec![0.0; 4];
            let (input, weight) = (vec![0.0; 8], vec![0.0; shape.taps]);
            let arguments = Forward {
                input: (&input).into(),
                weight: (&weight).into(),
                bias: None,
                documents: documents.map(View::from),
                output: (&mut output).into(),
            };
            forward(&device, &shape, arguments).unwrap_err().to_string()
        };
        assert_eq!(message(Shape { taps: 32, ..causal }, None), "gated_conv: 32 taps: use 1 to 31");
        let centred = Shape { window: Window::Centred { excludes_self: true }, ..causal };
        assert_eq!(message(centred, None), "gated_conv: 2 taps: a centred window has an odd number");
        assert_eq!(message(Shape { dilation: 0, ..causal }, None), "gated_conv: a dilation of 0: use 1 to 2147483647");
        for (documents, t, found) in [
            ([0, 2, 0, 2, 1, 3, 3, 4], 2, "1..3"),
            ([0, 2, 0, 2, 2, 5, 3, 4], 2, "2..5"),
            ([0, 2, 0, 0, 2, 3, 3, 4], 0, "0..2"),
            ([0, 1, 2, 3, 2, 3, 3, 4], 1, "2..3"),
        ] {
            let rule = "it must hold the position, and be that of all its positions";
            let expected = format!("gated_conv: position {t} of row 0 has the document {found} of 4: {rule}");
            assert_eq!(message(causal, Some(&documents)), expected);
        }
    }
}
