//! The kernels in the emulator, sanitised, against the reference.

use crate::gpu::testing::{Buffer, device};
use crate::ops::attention::cases::{Case, Data, Doubles, full, plain, shape};
use crate::ops::attention::{Backward, Forward, GradInputs, Inputs, Shape, backward, forward, reference};
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
    bias: Option<Buffer<'d, f32>>,
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
            bias: case.has_bias.then(|| Buffer::upload(device, &data.bias)),
        }
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
            bias: self.bias.as_ref().map(Buffer::view),
            dropout: data.dropout(),
            output: output.view_mut(),
            log_sum_exp: Some(log_sum_exp.view_mut()),
        };
        forward(self.device, &shape, arguments).unwrap();
        (output.download(), log_sum_exp.download())
    }

    /// Gradients of queries, keys, values and bias.
    fn backward(&self, data: &Data, (output, log_sum_exp): &(Vec<f32>, Vec<f32>)) -> [Vec<f32>; 4] {
        let write = self.case.write;
        let [query, key, value, bias] = &data.previous;
        let (queries, keys) = data.layout([query, key, value]);
        let mut grad_queries = Buffer::upload(self.device, &queries);
        let mut grad_keys = Buffer::upload(self.device, &keys);
        let mut grad_bias = Buffer::upload(self.device, bias);
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
            bias: self.bias.as_ref().map(Buffer::view),
            dropout: data.dropout(),
            output: output.view(),
            log_sum_exp: log_sum_exp.view(),
            grad_output: grad_output.view(),
            grad_inputs,
            grad_bias: self.case.has_bias.then(|| (grad_bias.view_mut(), write)),
        };
        backward(self.device, &self.case.shape, arguments).unwrap();
        let [query, key, value] = data.split(&(grad_queries.download(), grad_keys.download()));
        [query, key, value, grad_bias.download()]
    }
}

fn check(device: &Device, case: Case, random: &mut Random) {
    let data = Data::new(case, random);
    let doubles = Doubles::new(&data);
    let inputs = doubles.inputs(&data);
    let (output, log_sum_exp) = reference::forward(&inputs);
    let uploaded = Uploaded::new(device, &data);
    let found = uploaded.forward(&data);
    let name = |what: &str| format!("{what} of {case:?}");
    assert_close(&name("output"), &found.0, &output, 1e-5, 1e-7);
    assert_close(&name("log-sum-exp"), &found.1, &log_sum_exp, 1e-5, 1e-6);

    let gradients = reference::backward(&inputs, &double(&data.grad_output));
    // See the tests of `ops::attention`: the rounding of `dP - delta` where the true gradient is 0.
    let floor = 2.0 * f64::from(f32::EPSILON) * (case.shape.head_size * case.shape.batch) as f64;
    let grads = uploaded.backward(&data, &found);
    let expected = [gradients.query, gradients.key, gradients.value, gradients.bias];
    let whats = ["grad query", "grad key", "grad value", "grad bias"];
    for (index, (what, mut expected)) in whats.into_iter().zip(expected).enumerate() {
        if case.write == Write::Add {
            expected.iter_mut().zip(&data.previous[index]).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        assert_close(&name(what), &grads[index], &expected, 1e-5, floor);
    }
}

#[test]
fn matches_reference_for_odd_lengths_and_head_sizes() {
    let (device, mut random) = (device(), Random::fresh());
    let tries = [
        (1, 8),
        (3, 1),
        (3, 3),
        (17, 7),
        (17, 16),
        (17, 17),
        (113, 32),
        (70, 33),
        (203, 64),
        (65, 80),
        (33, 96),
        (113, 128),
        (17, 129),
        (40, 256),
    ];
    for (time, head_size) in tries {
        let causal = shape(1 + head_size % 2, [time, time], [2, 2], head_size);
        let start = std::time::Instant::now();
        check(&device, plain(causal), &mut random);
        check(&device, plain(full(causal)), &mut random);
        println!("{time} {head_size} {:?}", start.elapsed());
    }
}

#[test]
fn matches_reference_with_grouped_heads_and_other_numbers_of_keys() {
    let (device, mut random) = (device(), Random::fresh());
    for (times, head_size) in [([1, 1], 8), ([1, 203], 64), ([2, 5], 33), ([3, 70], 12), ([17, 113], 16), ([70, 75], 8)]
    {
        for heads in [[4, 4], [4, 2], [3, 1]] {
            let causal = shape(2, times, heads, head_size);
            check(&device, plain(causal), &mut random);
            check(&device, Case { write: Write::Add, spare_columns: 4, ..plain(full(causal)) }, &mut random);
        }
    }
    // More queries than keys.
    check(&device, plain(full(shape(2, [113, 3], [2, 1], 20))), &mut random);
}

#[test]
fn matches_reference_with_padding_and_empty_sequences() {
    let (device, mut random) = (device(), Random::fresh());
    let tries: [([usize; 2], &'static [i32]); 3] =
        [([1, 70], &[0, 1, 64, 70, 41]), ([70, 70], &[0, 1, 64, 70, 41]), ([17, 203], &[0, 1, 64, 203, 41])];
    for (times, lengths) in tries {
        let causal = shape(5, times, [4, 2], 8);
        let case = Case { key_lengths: Some(lengths), ..plain(causal) };
        check(&device, case, &mut random);
        let case = Case { shape: full(causal), write: Write::Add, has_bias: true, ..case };
        check(&device, case, &mut random);
    }
}

#[test]
fn matches_reference_with_bias_and_dropout() {
    let (device, mut random) = (device(), Random::fresh());
    for times in [[1, 1], [3, 3], [1, 64], [17, 17], [113, 113], [65, 203]] {
        for (has_bias, dropout) in [(true, None), (false, Some(0.1)), (true, Some(0.5))] {
            let causal = shape(3, times, [4, 2], 16);
            check(&device, Case { has_bias, dropout, ..plain(causal) }, &mut random);
            check(&device, Case { has_bias, dropout, write: Write::Add, ..plain(full(causal)) }, &mut random);
        }
    }
}
