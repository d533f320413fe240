//! The kernels in the emulator, sanitised, against the reference.

#[cfg(test)]
use crate::driver::{DeviceFacts, Emulated};
#[cfg(test)]
use crate::gpu::Gpu;
use crate::gpu::checks::Check;
use crate::gpu::testing::Buffer;
use crate::ops::attention::cases::{Case, Data, Doubles, full, plain, shape};
use crate::ops::attention::{Backward, Forward, GradInputs, Inputs, RelativeBias, Shape, backward, forward, reference};
use crate::ops::testing::{Random, assert_close, double};
use crate::ops::{Device, Write};

/// A case's data on the device.
struct Uploaded<'d> {
    device: &'d Device,
    case: Case,
    /// Packed inputs are all in `keys`.
    queries: Buffer<'d, f32>,
    keys: Buffer<'d, f32>,
    key_lengths: Option<Buffer<'d, i32>>,
    documents: Option<Buffer<'d, i32>>,
    bias: Option<Buffer<'d, f32>>,
    relative_bias: Buffer<'d, f32>,
}

impl<'d> Uploaded<'d> {
    fn new(device: &'d Device, data: &Data) -> Self {
        let case = data.case;
        let (queries, keys) = data.layout([&data.query, &data.key, &data.value]);
        Self {
            device,
            case,
            queries: Buffer::upload(device, &queries),
            keys: Buffer::upload(device, &keys),
            key_lengths: case.key_lengths.map(|lengths| Buffer::upload(device, lengths)),
            documents: data.documents().map(|documents| Buffer::upload(device, &documents)),
            bias: case.has_bias.then(|| Buffer::upload(device, &data.bias)),
            relative_bias: Buffer::upload(device, &data.relative_bias),
        }
    }

    fn relative_bias(&self) -> Option<RelativeBias<'_>> {
        let Case { queries_are_last, .. } = self.case;
        self.case.radius().map(|radius| RelativeBias { table: self.relative_bias.view(), radius, queries_are_last })
    }

    fn inputs(&self) -> Inputs<'_> {
        let Shape { key_time, .. } = self.case.shape;
        if self.case.is_packed {
            return Inputs::Packed(self.keys.view());
        }
        Inputs::Separate {
            query: self.queries.view(),
            query_row: self.case.shape.query_columns() + self.case.spare_columns,
            key_value: self.keys.view(),
            capacity: key_time + 3,
        }
    }

    /// Output and log-sum-exp.
    fn forward(&self, data: &Data) -> (Vec<f32>, Vec<f32>) {
        let shape = self.case.shape;
        let mut output = Buffer::poisoned(self.device, data.query.len());
        let mut log_sum_exp = Buffer::poisoned(self.device, shape.batch * shape.heads * shape.query_time);
        let arguments = Forward {
            inputs: self.inputs(),
            key_lengths: self.key_lengths.as_ref().map(Buffer::view),
            documents: self.documents.as_ref().map(Buffer::view),
            bias: self.bias.as_ref().map(Buffer::view),
            relative_bias: self.relative_bias(),
            dropout: data.dropout(),
            output: output.view_mut(),
            log_sum_exp: Some(log_sum_exp.view_mut()),
        };
        forward(self.device, &shape, arguments).unwrap();
        (output.download(), log_sum_exp.download())
    }

    /// Gradients of queries, keys, values, bias and relative bias.
    fn backward(&self, data: &Data, (output, log_sum_exp): &(Vec<f32>, Vec<f32>)) -> [Vec<f32>; 5] {
        let write = self.case.write;
        let [query, key, value, bias, relative_bias] = &data.previous;
        let (queries, keys) = data.layout([query, key, value]);
        let mut grad_queries = Buffer::upload(self.device, &queries);
        let mut grad_keys = Buffer::upload(self.device, &keys);
        let mut grad_bias = Buffer::upload(self.device, bias);
        let mut grad_relative_bias = Buffer::upload(self.device, relative_bias);
        let output = Buffer::upload(self.device, output);
        let log_sum_exp = Buffer::upload(self.device, log_sum_exp);
        let grad_output = Buffer::upload(self.device, &data.grad_output);
        let grad_inputs = if self.case.is_packed {
            GradInputs::Packed(grad_keys.view_mut(), write)
        } else {
            GradInputs::Separate {
                query: Some((grad_queries.view_mut(), write)),
                key_value: Some((grad_keys.view_mut(), write)),
            }
        };
        let arguments = Backward {
            inputs: self.inputs(),
            key_lengths: self.key_lengths.as_ref().map(Buffer::view),
            documents: self.documents.as_ref().map(Buffer::view),
            bias: self.bias.as_ref().map(Buffer::view),
            relative_bias: self.relative_bias(),
            dropout: data.dropout(),
            output: output.view(),
            log_sum_exp: log_sum_exp.view(),
            grad_output: grad_output.view(),
            grad_inputs,
            grad_bias: self.case.has_grad_bias().then(|| (grad_bias.view_mut(), write)),
            grad_relative_bias: self.case.radius().map(|_| (grad_relative_bias.view_mut(), write)),
        };
        backward(self.device, &self.case.shape, arguments).unwrap();
        let [query, key, value] = data.split(&(grad_queries.download(), grad_keys.download()));
        [query, key, value, grad_bias.download(), grad_relative_bias.download()]
    }
}

fn check(device: &Device, case: Case, random: &mut Random) {
    check_data(device, &Data::new(case, random));
}

/// Compares both directions with the reference; returns output and log-sum-exp.
fn check_data(device: &Device, data: &Data) -> (Vec<f32>, Vec<f32>) {
    let case = data.case;
    let doubles = Doubles::new(data);
    let inputs = doubles.inputs(data);
    let (output, log_sum_exp) = reference::forward(&inputs);
    let uploaded = Uploaded::new(device, data);
    let found = uploaded.forward(data);
    let name = |what: &str| format!("{what} of {case:?}");
    assert_close(&name("output"), &found.0, &output, 1e-5, 1e-7);
    assert_close(&name("log-sum-exp"), &found.1, &log_sum_exp, 1e-5, 1e-6);

    let gradients = reference::backward(&inputs, &double(&data.grad_output));
    // See the tests of `ops::attention`: the rounding of `dP - delta` where the true gradient is 0.
    let floor = 2.0 * f64::from(f32::EPSILON) * (case.shape.head_size * case.shape.batch) as f64;
    let grads = uploaded.backward(data, &found);
    let expected = [gradients.query, gradients.key, gradients.value, gradients.bias, gradients.relative_bias];
    let whats = ["grad query", "grad key", "grad value", "grad bias", "grad relative bias"];
    for (index, (what, mut expected)) in whats.into_iter().zip(expected).enumerate() {
        if what == "grad bias" && !case.has_grad_bias() {
            continue;
        }
        if case.write == Write::Add {
            expected.iter_mut().zip(&data.previous[index]).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        // A distance is that of up to `query_time` pairs.
        let terms = if what == "grad relative bias" { case.shape.query_time } else { 1 };
        assert_close(&name(what), &grads[index], &expected, 1e-5, floor * terms as f64);
    }
    found
}

fn matches_reference_for_odd_lengths_and_head_sizes(device: &Device) {
    let mut random = Random::fresh();
    let tries = [
        (1, 8),
        (3, 1),
        (3, 3),
        (17, 7),
        (17, 17),
        (113, 16),
        (203, 8),
        (70, 33),
        (113, 64),
        (33, 80),
        (17, 96),
        (33, 128),
        (17, 129),
        (33, 256),
    ];
    for (index, (time, head_size)) in tries.into_iter().enumerate() {
        let causal = shape(1 + index % 2, [time, time], [1, 1], head_size);
        check(device, plain(if index % 3 == 1 { full(causal) } else { causal }), &mut random);
    }
}

/// Sizes at which the sanitizer would take too long.
#[test]
fn matches_reference_for_larger_problems() {
    let gpu = Gpu::new(Box::new(Emulated::new(DeviceFacts::default()))).unwrap();
    let (device, mut random) = (Device::Gpu(gpu), Random::fresh());
    for (time, head_size) in [(113, 32), (203, 64), (203, 80), (113, 96), (113, 128), (113, 256)] {
        let causal = shape(2, [time, time], [2, 1], head_size);
        check(&device, plain(causal), &mut random);
        check(&device, Case { has_bias: true, dropout: Some(0.3), ..plain(full(causal)) }, &mut random);
        let documents: &'static [&'static [i32]] =
            if time == 203 { &[&[30, -3, 17, 153], &[90]] } else { &[&[112], &[5, 70]] };
        check(&device, Case { documents: Some(documents), relative_bias: Some(0), ..plain(full(causal)) }, &mut random);
        check(&device, Case { relative_bias: Some(7), ..plain(causal) }, &mut random);
    }
}

fn matches_reference_with_grouped_heads_and_other_numbers_of_keys(device: &Device) {
    let mut random = Random::fresh();
    let tries = [
        ([1, 1], [4, 2], 8),
        ([2, 5], [4, 1], 33),
        ([2, 5], [3, 3], 16),
        ([3, 70], [4, 2], 12),
        ([17, 113], [4, 1], 16),
        ([17, 33], [4, 4], 8),
        ([70, 75], [2, 1], 8),
    ];
    for (times, heads, head_size) in tries {
        let causal = shape(2, times, heads, head_size);
        check(device, plain(causal), &mut random);
        check(device, Case { write: Write::Add, spare_columns: 4, ..plain(full(causal)) }, &mut random);
    }
    // More queries than keys.
    check(device, plain(full(shape(2, [70, 3], [2, 1], 20))), &mut random);
}

/// Few queries and enough keys that these are cut into ranges, of which short sequences leave some empty.
fn matches_reference_over_ranges_of_keys(device: &Device) {
    let mut random = Random::fresh();
    check(device, plain(shape(1, [1, 530], [1, 1], 64)), &mut random);
    check(device, plain(shape(1, [40, 301], [1, 1], 8)), &mut random);
    let case = Case { key_lengths: Some(&[0, 41, 600]), ..plain(shape(3, [2, 600], [4, 2], 16)) };
    check(device, Case { has_bias: true, ..case }, &mut random);
    check(device, Case { dropout: Some(0.2), ..case }, &mut random);
}

fn the_output_is_the_same_without_a_log_sum_exp(device: &Device) {
    let mut random = Random::fresh();
    for times in [[3, 33], [2, 300]] {
        let data = Data::new(plain(shape(1, times, [2, 1], 8)), &mut random);
        let uploaded = Uploaded::new(device, &data);
        let mut output = Buffer::poisoned(device, data.query.len());
        let arguments = Forward {
            inputs: uploaded.inputs(),
            key_lengths: None,
            documents: None,
            bias: None,
            relative_bias: None,
            dropout: None,
            output: output.view_mut(),
            log_sum_exp: None,
        };
        forward(device, &data.case.shape, arguments).unwrap();
        assert!(output.download() == uploaded.forward(&data).0);
    }
}

fn matches_reference_with_padding_and_empty_sequences(device: &Device) {
    let mut random = Random::fresh();
    let tries: [([usize; 2], &'static [i32]); 3] =
        [([1, 70], &[0, 1, 64, 70, 41]), ([70, 70], &[0, 70, 41]), ([17, 113], &[1, 0, 64])];
    for (times, lengths) in tries {
        let causal = shape(lengths.len(), times, [2, 1], 8);
        let case = Case { key_lengths: Some(lengths), ..plain(causal) };
        check(device, case, &mut random);
        let case = Case { shape: full(causal), write: Write::Add, has_bias: true, ..case };
        check(device, case, &mut random);
    }
}

fn matches_reference_with_bias_and_dropout(device: &Device) {
    let mut random = Random::fresh();
    for times in [[1, 1], [3, 3], [1, 64], [17, 17], [33, 65]] {
        for (has_bias, dropout) in [(true, None), (false, Some(0.1)), (true, Some(0.5))] {
            let causal = shape(2, times, [2, 1], 16);
            let case = Case { has_bias, dropout, ..plain(causal) };
            check(device, if has_bias { case } else { Case { shape: full(causal), ..case } }, &mut random);
            if dropout.is_some() {
                check(device, Case { write: Write::Add, ..case }, &mut random);
            }
        }
    }
}

/// Heads of every size that has kernels of its own, with the gradient of the bias and with decoding.
fn matches_reference_with_large_heads_bias_and_decoding(device: &Device) {
    let mut random = Random::fresh();
    for head_size in [40, 72, 130] {
        let with_bias = plain(shape(2, [5, 9], [2, 1], head_size));
        check(device, Case { has_bias: true, ..with_bias }, &mut random);
        check(device, plain(shape(1, [1, 70], [2, 1], head_size)), &mut random);
    }
}

/// Documents of length 1, longer than a tile, and padding at the end, in the middle and in front; rows without any.
fn matches_reference_over_documents(device: &Device) {
    let mut random = Random::fresh();
    let tries: [(usize, &'static [&'static [i32]]); 5] = [
        (1, &[&[1], &[]]),
        (3, &[&[3], &[1, 2], &[1, -1, 1]]),
        (17, &[&[17], &[5, 1, 1, 6], &[-3, 4, -5, 5]]),
        (113, &[&[70, 1, 42], &[], &[-1, 40, -2, 66]]),
        (203, &[&[17, 113, 1, 3]]),
    ];
    for (index, (time, rows)) in tries.into_iter().enumerate() {
        let (heads, head_size) = [([2, 2], 8), ([4, 2], 16), ([3, 1], 40), ([4, 2], 8), ([2, 1], 8)][index];
        let causal = shape(rows.len(), [time, time], heads, head_size);
        let case = Case { documents: Some(rows), ..plain(causal) };
        check(device, case, &mut random);
        let case = Case { is_packed: false, has_bias: true, dropout: Some(0.2), write: Write::Add, ..case };
        check(device, Case { shape: full(causal), relative_bias: Some(1), ..case }, &mut random);
    }
    // The other sizes of tiles; few blocks, so that the keys are cut into ranges.
    let rows: &'static [&'static [i32]] = &[&[-1, 30, 9]];
    for head_size in [72, 130] {
        check(
            device,
            Case { documents: Some(rows), ..plain(full(shape(1, [40, 40], [2, 1], head_size))) },
            &mut random,
        );
    }
    let rows: &'static [&'static [i32]] = &[&[130, -20, 131]];
    check(device, Case { documents: Some(rows), ..plain(full(shape(1, [300, 300], [1, 1], 8))) }, &mut random);
}

fn padding_of_documents_is_zero(device: &Device) {
    let mut random = Random::fresh();
    let rows: &'static [&'static [i32]] = &[&[-2, 60, -9, 40], &[]];
    let case = Case { documents: Some(rows), relative_bias: Some(0), ..plain(full(shape(2, [113, 113], [1, 1], 8))) };
    let data = Data::new(case, &mut random);
    let documents = data.documents().unwrap();
    let uploaded = Uploaded::new(device, &data);
    let found = uploaded.forward(&data);
    let gradients = uploaded.backward(&data, &found);
    for values in [&found.0, &gradients[0], &gradients[1], &gradients[2]] {
        for (position, row) in values.chunks(8).enumerate() {
            let is_padding = documents[2 * position..][..2] == [0, 0];
            assert!(row.iter().all(|&value| (value == 0.0) == is_padding), "position {position}: {row:?}");
        }
    }
    for (position, &value) in found.1.iter().enumerate() {
        assert_eq!(value == f32::NEG_INFINITY, documents[2 * position..][..2] == [0, 0], "position {position}");
    }
}

/// What nobody has checked must not make a kernel leave its memory.
fn documents_that_make_no_sense_stay_in_bounds(device: &Device) {
    let mut random = Random::fresh();
    let data = Data::new(Case { relative_bias: Some(0), ..plain(shape(2, [70, 70], [4, 2], 8)) }, &mut random);
    let mut uploaded = Uploaded::new(device, &data);
    let nonsense: Vec<i32> = (0..280).map(|_| random.word() as i32 >> random.below(32)).collect();
    uploaded.documents = Some(Buffer::upload(device, &nonsense));
    let found = uploaded.forward(&data);
    uploaded.backward(&data, &found);
}

fn matches_reference_with_a_relative_bias(device: &Device) {
    let mut random = Random::fresh();
    let tries = [
        ([1, 1], [1, 1], 8),
        ([3, 3], [4, 2], 33),
        ([17, 17], [2, 2], 72),
        ([17, 17], [3, 1], 130),
        ([33, 33], [4, 1], 16),
        ([113, 113], [2, 1], 8),
        ([1, 70], [4, 2], 8),
        ([17, 113], [4, 2], 16),
        ([70, 33], [2, 2], 8),
    ];
    for (times, heads, head_size) in tries {
        let causal = shape(2, times, heads, head_size);
        let case = Case { relative_bias: Some(0), ..plain(full(causal)) };
        check(device, case, &mut random);
        if times[0] <= times[1] {
            let case = Case { shape: causal, relative_bias: Some(5), write: Write::Add, dropout: Some(0.1), ..case };
            check(device, case, &mut random);
        }
    }
    let case = Case { key_lengths: Some(&[0, 70, 41]), relative_bias: Some(0), ..plain(shape(3, [70, 70], [2, 1], 8)) };
    check(device, case, &mut random);
    check(device, Case { shape: full(case.shape), has_bias: true, ..case }, &mut random);
    let lengths: [([usize; 2], &'static [i32]); 2] = [([1, 300], &[1, 64, 300, 41]), ([3, 70], &[3, 64, 70, 2])];
    for (times, lengths) in lengths {
        let case =
            Case { key_lengths: Some(lengths), relative_bias: Some(3), ..plain(full(shape(4, times, [4, 2], 8))) };
        check(device, Case { queries_are_last: true, ..case }, &mut random);
    }
}

fn large_scores_do_not_overflow(device: &Device) {
    let mut random = Random::fresh();
    let data = Data::new(plain(Shape { scale: 20.0, ..shape(1, [33, 33], [2, 2], 32) }), &mut random);
    let uploaded = Uploaded::new(device, &data);
    let found = uploaded.forward(&data);
    let gradients = uploaded.backward(&data, &found);
    let is_finite = |values: &Vec<f32>| values.iter().all(|value| value.is_finite());
    assert!(is_finite(&found.0) && is_finite(&found.1) && gradients.iter().all(is_finite));
}

fn minus_infinity_as_bias_masks_and_a_row_of_it_gives_zero(device: &Device) {
    let mut random = Random::fresh();
    for times in [[2, 70], [33, 33]] {
        let case = Case { has_bias: true, is_packed: false, ..plain(full(shape(2, times, [2, 2], 16))) };
        let mut data = Data::new(case, &mut random);
        for value in data.bias.iter_mut().step_by(3) {
            *value = f32::NEG_INFINITY;
        }
        data.bias[..times[1]].fill(f32::NEG_INFINITY);
        let found = check_data(device, &data);
        assert!(found.0[..16].iter().all(|&value| value == 0.0) && found.1[0] == f32::NEG_INFINITY);
    }
}

fn a_nan_among_the_inputs_reaches_the_output(device: &Device) {
    let mut random = Random::fresh();
    for times in [[1, 70], [1, 300], [33, 33]] {
        let mut data = Data::new(plain(full(shape(1, times, [1, 1], 16))), &mut random);
        data.key[20 * 16 + 3] = f32::NAN;
        let (output, _) = Uploaded::new(device, &data).forward(&data);
        assert!(output.iter().all(|value| value.is_nan()));
    }
}

/// What lies behind a sequence's length is not read, let alone multiplied by zero.
fn a_nan_in_the_padding_does_not_reach_the_output(device: &Device) {
    let mut random = Random::fresh();
    let case = Case { key_lengths: Some(&[20]), ..plain(full(shape(1, [3, 70], [1, 1], 16))) };
    let mut data = Data::new(case, &mut random);
    data.key[20 * 16..].fill(f32::NAN);
    data.value[20 * 16..].fill(f32::NAN);
    let (output, _) = Uploaded::new(device, &data).forward(&data);
    assert!(output.iter().all(|value| value.is_finite()));
}

fn gradients_of_only_queries_or_only_keys_are_the_same_bits(device: &Device) {
    let mut random = Random::fresh();
    let data = Data::new(plain(shape(2, [17, 70], [2, 1], 24)), &mut random);
    let uploaded = Uploaded::new(device, &data);
    let found = uploaded.forward(&data);
    let both = uploaded.backward(&data, &found);
    let [query, key, value, ..] = &data.previous;
    let (queries, keys) = data.layout([query, key, value]);
    let (mut grad_queries, mut grad_keys) = (Buffer::upload(device, &queries), Buffer::upload(device, &keys));
    let [output, log_sum_exp, grad_output] =
        [&found.0, &found.1, &data.grad_output].map(|values| Buffer::upload(device, values));
    for grad_inputs in [
        GradInputs::Separate { query: Some((grad_queries.view_mut(), Write::Set)), key_value: None },
        GradInputs::Separate { query: None, key_value: Some((grad_keys.view_mut(), Write::Set)) },
    ] {
        let arguments = Backward {
            inputs: uploaded.inputs(),
            key_lengths: None,
            documents: None,
            bias: None,
            relative_bias: None,
            dropout: None,
            output: output.view(),
            log_sum_exp: log_sum_exp.view(),
            grad_output: grad_output.view(),
            grad_inputs,
            grad_bias: None,
            grad_relative_bias: None,
        };
        backward(device, &data.case.shape, arguments).unwrap();
    }
    assert!(data.split(&(grad_queries.download(), grad_keys.download()))[..] == both[..3]);
}

fn a_head_larger_than_the_kernels_take_is_refused(device: &Device) {
    let shape = shape(1, [1, 1], [1, 1], 257);
    let (qkv, mut output) = (Buffer::poisoned(device, 3 * 257), Buffer::poisoned(device, 257));
    let arguments = Forward {
        inputs: Inputs::Packed(qkv.view()),
        key_lengths: None,
        documents: None,
        bias: None,
        relative_bias: None,
        dropout: None,
        output: output.view_mut(),
        log_sum_exp: None,
    };
    let message = forward(device, &shape, arguments).unwrap_err().to_string();
    assert!(message.contains("heads of size 257"), "{message}");
}

/// What holds on every GPU.
pub(crate) const ALL: &[Check] = &[
    Check {
        name: "attention: matches reference for odd lengths and head sizes",
        claim: matches_reference_for_odd_lengths_and_head_sizes,
    },
    Check {
        name: "attention: matches reference with grouped heads and other numbers of keys",
        claim: matches_reference_with_grouped_heads_and_other_numbers_of_keys,
    },
    Check { name: "attention: matches reference over ranges of keys", claim: matches_reference_over_ranges_of_keys },
    Check {
        name: "attention: the output is the same without a log sum exp",
        claim: the_output_is_the_same_without_a_log_sum_exp,
    },
    Check {
        name: "attention: matches reference with padding and empty sequences",
        claim: matches_reference_with_padding_and_empty_sequences,
    },
    Check {
        name: "attention: matches reference with bias and dropout",
        claim: matches_reference_with_bias_and_dropout,
    },
    Check {
        name: "attention: matches reference with large heads bias and decoding",
        claim: matches_reference_with_large_heads_bias_and_decoding,
    },
    Check { name: "attention: matches reference over documents", claim: matches_reference_over_documents },
    Check { name: "attention: padding of documents is zero", claim: padding_of_documents_is_zero },
    Check {
        name: "attention: documents that make no sense stay in bounds",
        claim: documents_that_make_no_sense_stay_in_bounds,
    },
    Check { name: "attention: matches reference with a relative bias", claim: matches_reference_with_a_relative_bias },
    Check { name: "attention: large scores do not overflow", claim: large_scores_do_not_overflow },
    Check {
        name: "attention: minus infinity as bias masks and a row of it gives zero",
        claim: minus_infinity_as_bias_masks_and_a_row_of_it_gives_zero,
    },
    Check {
        name: "attention: a nan among the inputs reaches the output",
        claim: a_nan_among_the_inputs_reaches_the_output,
    },
    Check {
        name: "attention: a nan in the padding does not reach the output",
        claim: a_nan_in_the_padding_does_not_reach_the_output,
    },
    Check {
        name: "attention: gradients of only queries or only keys are the same bits",
        claim: gradients_of_only_queries_or_only_keys_are_the_same_bits,
    },
    Check {
        name: "attention: a head larger than the kernels take is refused",
        claim: a_head_larger_than_the_kernels_take_is_refused,
    },
];

#[test]
fn hold_on_the_emulator() {
    crate::gpu::checks::hold(ALL);
}
