//! The reference against finite differences, then every CPU device against the reference.

use super::cases::{Case, Data, Doubles, full, plain, shape};
use super::reference;
use super::*;
use crate::ops::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};

impl Data {
    fn relative_bias(&self) -> Option<RelativeBias<'_>> {
        let queries_are_last = self.case.queries_are_last;
        self.case.radius().map(|radius| RelativeBias { table: (&self.relative_bias).into(), radius, queries_are_last })
    }

    /// Output and log-sum-exp on a device.
    fn forward(&self, device: &Device) -> (Vec<f32>, Vec<f32>) {
        let shape = self.case.shape;
        let mut output = poisoned(self.query.len());
        let mut log_sum_exp = poisoned(shape.batch * shape.heads * shape.query_time);
        let documents = self.documents();
        let data = self.layout([&self.query, &self.key, &self.value]);
        let arguments = Forward {
            inputs: self.inputs(&data),
            key_lengths: self.case.key_lengths.map(View::from),
            documents: documents.as_ref().map(View::from),
            bias: self.case.has_bias.then(|| (&self.bias).into()),
            relative_bias: self.relative_bias(),
            dropout: self.dropout(),
            output: (&mut output).into(),
            log_sum_exp: Some((&mut log_sum_exp).into()),
        };
        forward(device, &shape, arguments).unwrap();
        (output, log_sum_exp)
    }

    /// Gradients of queries, keys, values, bias and relative bias on a device.
    fn backward(&self, device: &Device, (output, log_sum_exp): &(Vec<f32>, Vec<f32>)) -> [Vec<f32>; 5] {
        let documents = self.documents();
        let data = self.layout([&self.query, &self.key, &self.value]);
        let [query, key, value, mut grad_bias, mut grad_relative_bias] = self.previous.clone();
        let mut gradients = self.layout([&query, &key, &value]);
        let write = self.case.write;
        let grad_inputs = if self.case.is_packed {
            GradInputs::Packed((&mut gradients.1).into(), write)
        } else {
            GradInputs::Separate {
                query: Some(((&mut gradients.0).into(), write)),
                key_value: Some(((&mut gradients.1).into(), write)),
            }
        };
        let arguments = Backward {
            inputs: self.inputs(&data),
            key_lengths: self.case.key_lengths.map(View::from),
            documents: documents.as_ref().map(View::from),
            bias: self.case.has_bias.then(|| (&self.bias).into()),
            relative_bias: self.relative_bias(),
            dropout: self.dropout(),
            output: output.into(),
            log_sum_exp: log_sum_exp.into(),
            grad_output: (&self.grad_output).into(),
            grad_inputs,
            grad_bias: self.case.has_grad_bias().then(|| ((&mut grad_bias).into(), write)),
            grad_relative_bias: self.case.radius().map(|_| ((&mut grad_relative_bias).into(), write)),
        };
        backward(device, &self.case.shape, arguments).unwrap();
        let [query, key, value] = self.split(&gradients);
        [query, key, value, grad_bias, grad_relative_bias]
    }
}

/// Compares every device with the reference, and demands the same bits for one and three threads.
fn check(case: Case, random: &mut Random) {
    let data = Data::new(case, random);
    let doubles = Doubles::new(&data);
    let inputs = doubles.inputs(&data);
    let (output, log_sum_exp) = reference::forward(&inputs);
    let gradients = reference::backward(&inputs, &double(&data.grad_output));
    let expected = [gradients.query, gradients.key, gradients.value, gradients.bias, gradients.relative_bias];
    // Where one key has all the weight the true gradient is 0, and `dP - delta` is the rounding of two products of D
    // terms of size 1: partial sums reach 2 √D, so √D roundings of half a unit of that make ε D each, in each sequence.
    let floor = 2.0 * f64::from(f32::EPSILON) * (case.shape.head_size * case.shape.batch) as f64;
    let mut single = None;
    for (device_name, device) in cpu_devices() {
        let name = |what: &str| format!("{device_name}: {what} of {case:?}");
        let found = data.forward(&device);
        assert_close(&name("output"), &found.0, &output, 1e-5, 1e-7);
        assert_close(&name("log-sum-exp"), &found.1, &log_sum_exp, 1e-5, 1e-6);
        let grads = data.backward(&device, &found);
        let whats = ["grad query", "grad key", "grad value", "grad bias", "grad relative bias"];
        for (index, what) in whats.into_iter().enumerate() {
            if what == "grad bias" && !case.has_grad_bias() {
                continue;
            }
            let mut expected = expected[index].clone();
            if case.write == Write::Add {
                expected.iter_mut().zip(&data.previous[index]).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            // A distance is that of up to `query_time` pairs.
            let terms = if what == "grad relative bias" { case.shape.query_time } else { 1 };
            assert_close(&name(what), &grads[index], &expected, 1e-5, floor * terms as f64);
        }
        let bits: Vec<Vec<u32>> = [&found.0, &found.1]
            .into_iter()
            .chain(&grads)
            .map(|values| values.iter().map(|value| value.to_bits()).collect())
            .collect();
        if device_name.contains(" 1 threads") {
            single = Some(bits);
        } else {
            assert!(single.as_ref() == Some(&bits), "{}", name("bits with three threads"));
        }
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    let mut random = Random::fresh();
    let features = [
        plain(shape(2, [5, 5], [2, 2], 3)),
        plain(full(shape(1, [4, 6], [2, 2], 3))),
        plain(shape(1, [3, 7], [4, 2], 2)),
        Case { key_lengths: Some(&[3, 0]), ..plain(full(shape(2, [4, 4], [2, 1], 3))) },
        Case { has_bias: true, ..plain(shape(2, [4, 4], [2, 2], 3)) },
        Case { dropout: Some(0.4), ..plain(shape(2, [4, 4], [2, 2], 3)) },
        Case { dropout: Some(0.3), has_bias: true, key_lengths: Some(&[4, 2]), ..plain(shape(2, [3, 5], [4, 2], 2)) },
        Case { documents: Some(&[&[2, -1, 3], &[1, 4]]), ..plain(shape(2, [6, 6], [2, 1], 3)) },
        Case { documents: Some(&[&[2, -1, 3]]), dropout: Some(0.2), ..plain(full(shape(1, [6, 6], [2, 2], 3))) },
        Case { relative_bias: Some(0), ..plain(shape(2, [3, 5], [4, 2], 2)) },
        Case { relative_bias: Some(2), key_lengths: Some(&[4, 2]), ..plain(full(shape(2, [5, 4], [2, 1], 2))) },
        Case { relative_bias: Some(0), documents: Some(&[&[2, -1, 3]]), ..plain(shape(1, [6, 6], [2, 2], 3)) },
        Case {
            relative_bias: Some(1),
            queries_are_last: true,
            key_lengths: Some(&[5, 2]),
            ..plain(full(shape(2, [2, 5], [2, 2], 3)))
        },
    ];
    for case in features {
        let data = Data::new(case, &mut random);
        let doubles = Doubles::new(&data);
        let inputs = doubles.inputs(&data);
        let weights = double(&data.grad_output);
        let gradients = reference::backward(&inputs, &weights);
        let loss = |inputs: reference::Inputs<'_>| -> f64 {
            reference::forward(&inputs).0.iter().zip(&weights).map(|(value, weight)| value * weight).sum()
        };
        let name = |what| format!("{what} of {case:?}");
        assert_gradient(
            &name("query"),
            |query| loss(reference::Inputs { query, ..inputs }),
            &doubles.query,
            &gradients.query,
        );
        assert_gradient(&name("key"), |key| loss(reference::Inputs { key, ..inputs }), &doubles.key, &gradients.key);
        assert_gradient(
            &name("value"),
            |value| loss(reference::Inputs { value, ..inputs }),
            &doubles.value,
            &gradients.value,
        );
        if case.has_bias {
            assert_gradient(
                &name("bias"),
                |bias| loss(reference::Inputs { bias: Some(bias), ..inputs }),
                &doubles.bias,
                &gradients.bias,
            );
        }
        if let Some(bias) = inputs.relative_bias {
            assert_gradient(
                &name("relative bias"),
                |table| {
                    let relative_bias = Some(reference::RelativeBias { table, ..bias });
                    loss(reference::Inputs { relative_bias, ..inputs })
                },
                &doubles.relative_bias,
                &gradients.relative_bias,
            );
        }
    }
}

#[test]
fn matches_reference_for_odd_lengths_and_head_sizes() {
    let mut random = Random::fresh();
    for time in [1, 3, 17, 64, 113, 203] {
        for head_size in [1, 8, 33, 64, 80, 128] {
            let causal = shape(1 + head_size % 2, [time, time], [2, 2], head_size);
            check(plain(causal), &mut random);
            check(plain(full(causal)), &mut random);
        }
    }
}

#[test]
fn matches_reference_with_grouped_heads_and_other_numbers_of_keys() {
    let mut random = Random::fresh();
    for times in [[1, 1], [1, 203], [2, 5], [3, 70], [17, 113], [64, 128], [70, 203], [113, 114]] {
        for heads in [[4, 4], [6, 2], [3, 1]] {
            for head_size in [8, 33, 64] {
                let causal = shape(2, times, heads, head_size);
                check(plain(causal), &mut random);
                check(Case { write: Write::Add, ..plain(full(causal)) }, &mut random);
            }
        }
    }
    // More queries than keys.
    check(plain(full(shape(2, [113, 3], [2, 1], 20))), &mut random);
}

#[test]
fn matches_reference_with_padding_and_empty_sequences() {
    let mut random = Random::fresh();
    let tries: [([usize; 2], &'static [i32]); 4] = [
        ([1, 70], &[0, 1, 64, 70, 41]),
        ([3, 70], &[0, 1, 64, 70, 41]),
        ([70, 70], &[0, 1, 64, 70, 41]),
        ([17, 203], &[0, 1, 64, 203, 41]),
    ];
    for (times, lengths) in tries {
        for write in [Write::Set, Write::Add] {
            let causal = shape(5, times, [4, 2], 24);
            check(Case { key_lengths: Some(lengths), write, ..plain(causal) }, &mut random);
            check(Case { key_lengths: Some(lengths), write, has_bias: true, ..plain(full(causal)) }, &mut random);
        }
    }
}

#[test]
fn matches_reference_with_bias_and_dropout() {
    let mut random = Random::fresh();
    for times in [[1, 1], [3, 3], [1, 64], [17, 17], [113, 113], [65, 203]] {
        for (has_bias, dropout) in [(true, None), (false, Some(0.1)), (true, Some(0.5))] {
            for write in [Write::Set, Write::Add] {
                let causal = shape(3, times, [4, 2], 32);
                check(Case { has_bias, dropout, write, ..plain(causal) }, &mut random);
                check(Case { has_bias, dropout, write, ..plain(full(causal)) }, &mut random);
            }
        }
    }
}

/// Enough keys that the backward pass cuts them into parts, and each part into ranges.
#[test]
fn matches_reference_over_parts_of_the_keys() {
    let mut random = Random::fresh();
    check(plain(shape(1, [600, 600], [2, 1], 16)), &mut random);
    check(Case { write: Write::Add, ..plain(shape(1, [40, 2100], [1, 1], 128)) }, &mut random);
    check(Case { key_lengths: Some(&[100, 700]), ..plain(full(shape(2, [70, 900], [2, 2], 8))) }, &mut random);
}

/// Documents of length 1, longer than a tile, and padding at the end, in the middle and in front; rows without any.
const DOCUMENTS: [(usize, &[&[i32]]); 6] = [
    (1, &[&[1], &[]]),
    (3, &[&[3], &[1, 2], &[1, -1, 1]]),
    (17, &[&[17], &[5, 1, 1, 6], &[-3, 4, -5, 5]]),
    (113, &[&[70, 1, 42], &[], &[-1, 40, -2, 66]]),
    (203, &[&[203], &[17, 113, 1, 3], &[64, 65, -10, 64]]),
    (600, &[&[300, -7, 1, 290]]),
];

#[test]
fn matches_reference_over_documents() {
    let mut random = Random::fresh();
    for (time, rows) in DOCUMENTS {
        for (heads, head_size) in [([2, 2], 8), ([4, 2], 33), ([3, 1], 64)] {
            let causal = shape(rows.len(), [time, time], heads, head_size);
            let case = Case { documents: Some(rows), ..plain(causal) };
            check(case, &mut random);
            check(Case { shape: full(causal), write: Write::Add, ..case }, &mut random);
            check(Case { is_packed: false, has_bias: true, dropout: Some(0.2), ..case }, &mut random);
            check(Case { shape: full(causal), relative_bias: Some(0), ..case }, &mut random);
        }
    }
}

#[test]
fn matches_reference_with_a_relative_bias() {
    let mut random = Random::fresh();
    for times in [[1, 1], [3, 3], [17, 17], [113, 113], [203, 203], [1, 70], [3, 70], [17, 113], [65, 203], [113, 17]] {
        for (heads, head_size) in [([2, 2], 8), ([4, 2], 33)] {
            let causal = shape(2, times, heads, head_size);
            let case = Case { relative_bias: Some(0), ..plain(full(causal)) };
            check(case, &mut random);
            check(Case { relative_bias: Some(9), write: Write::Add, has_bias: true, ..case }, &mut random);
            if times[0] <= times[1] {
                check(Case { shape: causal, dropout: Some(0.1), ..case }, &mut random);
                check(Case { shape: causal, relative_bias: Some(40), ..case }, &mut random);
            }
        }
    }
    check(Case { relative_bias: Some(1), ..plain(shape(1, [600, 600], [2, 1], 16)) }, &mut random);
    check(Case { relative_bias: Some(0), ..plain(full(shape(1, [70, 2100], [1, 1], 128))) }, &mut random);
    let lengths = Case {
        key_lengths: Some(&[0, 1, 64, 70, 41]),
        relative_bias: Some(0),
        ..plain(shape(5, [70, 70], [4, 2], 24))
    };
    check(lengths, &mut random);
    check(Case { shape: full(lengths.shape), write: Write::Add, ..lengths }, &mut random);
}

/// Decoding sequences of different lengths together.
#[test]
fn matches_reference_with_a_relative_bias_of_queries_that_are_last() {
    let mut random = Random::fresh();
    for (times, lengths) in [([1, 70], &[1, 64, 70, 41]), ([3, 70], &[3, 64, 70, 2]), ([17, 203], &[17, 203, 90, 0])] {
        let case = Case {
            key_lengths: Some(lengths),
            relative_bias: Some(3),
            queries_are_last: true,
            ..plain(full(shape(4, times, [4, 2], 24)))
        };
        check(case, &mut random);
    }
}

#[test]
fn a_document_has_the_same_bits_in_a_row_of_others_and_by_itself() {
    let mut random = Random::fresh();
    for (time, rows) in DOCUMENTS {
        for (is_causal, is_packed) in [(false, true), (true, true), (true, false)] {
            let causal = shape(rows.len(), [time, time], [4, 2], 24);
            let case = Case {
                documents: Some(rows),
                is_packed,
                relative_bias: is_packed.then_some(2),
                write: if is_causal { Write::Set } else { Write::Add },
                ..plain(if is_causal { causal } else { full(causal) })
            };
            let data = Data::new(case, &mut random);
            for (name, device) in cpu_devices() {
                let found = data.forward(&device);
                let gradients = data.backward(&device, &found);
                let documents = data.documents().unwrap();
                for run in documents::runs(&documents, time).filter(|run| !run.is_padding) {
                    let alone = data.cut(&run);
                    let found_alone = alone.forward(&device);
                    let gradients_alone = alone.backward(&device, &found_alone);
                    let name = format!("{name}: {run:?} of {case:?}");
                    let positions = |values: &[f32]| data.rows_of(&run, values);
                    assert!(positions(&found.0) == found_alone.0, "output of {name}");
                    assert!(data.statistics_of(&run, &found.1) == found_alone.1, "log-sum-exp of {name}");
                    for (i, what) in ["query", "key", "value"].into_iter().enumerate() {
                        assert!(positions(&gradients[i]) == gradients_alone[i], "gradient of {what} of {name}");
                    }
                }
            }
        }
    }
}

#[test]
fn padding_between_documents_is_zero_and_never_read() {
    let mut random = Random::fresh();
    let rows: &[&[i32]] = &[&[-2, 60, -9, 40], &[]];
    let case = Case { documents: Some(rows), ..plain(full(shape(2, [113, 113], [2, 1], 16))) };
    let mut data = Data::new(case, &mut random);
    let documents = data.documents().unwrap();
    let is_padding: Vec<bool> = documents.chunks(2).map(|pair| pair == [0, 0]).collect();
    for (t, _) in is_padding.iter().enumerate().filter(|(_, is_padding)| **is_padding) {
        data.query[t * 32..(t + 1) * 32].fill(f32::NAN);
        data.key[t * 16..(t + 1) * 16].fill(f32::NAN);
        data.value[t * 16..(t + 1) * 16].fill(f32::NAN);
        data.grad_output[t * 32..(t + 1) * 32].fill(f32::NAN);
    }
    for (name, device) in cpu_devices() {
        let found = data.forward(&device);
        let gradients = data.backward(&device, &found);
        let per_position = [&found.0, &gradients[0], &gradients[1], &gradients[2]];
        for values in per_position {
            let columns = values.len() / is_padding.len();
            for (t, row) in values.chunks(columns).enumerate() {
                assert!(row.iter().all(|&v| v.is_finite() && (v == 0.0) == is_padding[t]), "{name}: position {t}");
            }
        }
        for (index, &value) in found.1.iter().enumerate() {
            let (b, t) = (index / (2 * 113), index % 113);
            assert_eq!(value == f32::NEG_INFINITY, is_padding[b * 113 + t], "{name}: position {t} of {b}");
        }
    }
}

#[test]
fn documents_that_contradict_themselves_are_refused_with_their_place() {
    let (_, device) = cpu_devices().remove(0);
    let shape = shape(2, [4, 4], [1, 1], 2);
    let refused = |documents: [i32; 16]| {
        let (qkv, mut output) = (vec![0.0; 48], vec![0.0; 16]);
        let arguments = Forward {
            inputs: Inputs::Packed((&qkv).into()),
            key_lengths: None,
            documents: Some((&documents[..]).into()),
            bias: None,
            relative_bias: None,
            dropout: None,
            output: (&mut output).into(),
            log_sum_exp: None,
        };
        forward(&device, &shape, arguments).map_err(|error| error.to_string())
    };
    let good = [0, 3, 0, 3, 0, 3, 0, 0, 0, 1, 1, 3, 1, 3, 3, 4];
    refused(good).unwrap();
    let tries: [(usize, [i32; 2], &str); 6] = [
        (0, [0, 2], "position 0 of row 0 belongs to 0..2"),
        (2, [0, 4], "position 0 of row 0 belongs to 0..3"),
        (3, [3, 5], "position 3 of row 0 belongs to 3..5"),
        (4, [-1, 1], "position 0 of row 1 belongs to -1..1"),
        (7, [2, 4], "position 3 of row 1 belongs to 2..4"),
        (7, [3, 3], "position 3 of row 1 belongs to 3..3"),
    ];
    for (position, pair, expected) in tries {
        let mut documents = good;
        documents[2 * position..2 * position + 2].copy_from_slice(&pair);
        let message = refused(documents).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let mut random = Random::fresh();
    let case = plain(Shape { scale: 20.0, ..shape(1, [70, 70], [2, 2], 32) });
    let data = Data::new(case, &mut random);
    for (name, device) in cpu_devices() {
        let found = data.forward(&device);
        let gradients = data.backward(&device, &found);
        let is_finite = |values: &Vec<f32>| values.iter().all(|value| value.is_finite());
        assert!(is_finite(&found.0) && is_finite(&found.1) && gradients.iter().all(is_finite), "{name}");
    }
}

#[test]
fn minus_infinity_as_bias_masks_and_a_row_of_it_gives_zero() {
    let mut random = Random::fresh();
    for times in [[2, 70], [70, 70]] {
        let case = Case { has_bias: true, is_packed: false, ..plain(full(shape(2, times, [2, 2], 16))) };
        let mut data = Data::new(case, &mut random);
        for value in data.bias.iter_mut().step_by(3) {
            *value = f32::NEG_INFINITY;
        }
        data.bias[..times[1]].fill(f32::NEG_INFINITY);
        let doubles = Doubles::new(&data);
        let (output, log_sum_exp) = reference::forward(&doubles.inputs(&data));
        let expected = reference::backward(&doubles.inputs(&data), &double(&data.grad_output));
        for (name, device) in cpu_devices() {
            let found = data.forward(&device);
            assert_close(&name, &found.0, &output, 1e-5, 1e-7);
            assert_close(&name, &found.1, &log_sum_exp, 1e-5, 1e-6);
            assert!(found.0[..16].iter().all(|&value| value == 0.0) && found.1[0] == f32::NEG_INFINITY, "{name}");
            let gradients = data.backward(&device, &found);
            assert_close(&name, &gradients[0], &expected.query, 1e-5, 1e-6);
            assert_close(&name, &gradients[1], &expected.key, 1e-5, 1e-6);
            assert_close(&name, &gradients[2], &expected.value, 1e-5, 1e-6);
            assert_close(&name, &gradients[3], &expected.bias, 1e-5, 1e-6);
        }
    }
}

#[test]
fn a_nan_among_the_inputs_reaches_the_output() {
    let mut random = Random::fresh();
    for times in [[1, 70], [70, 70]] {
        let mut data = Data::new(plain(full(shape(1, times, [1, 1], 16))), &mut random);
        data.key[20 * 16 + 3] = f32::NAN;
        for (name, device) in cpu_devices() {
            assert!(data.forward(&device).0.iter().all(|value| value.is_nan()), "{name}");
        }
    }
}

#[test]
fn gradients_of_only_queries_or_only_keys_are_the_same_bits() {
    let mut random = Random::fresh();
    let data = Data::new(plain(shape(2, [17, 300], [2, 1], 24)), &mut random);
    let inputs = data.layout([&data.query, &data.key, &data.value]);
    for (name, device) in cpu_devices() {
        let found = data.forward(&device);
        let both = data.backward(&device, &found);
        let [query, key, value, ..] = data.previous.clone();
        let mut gradients = data.layout([&query, &key, &value]);
        let (grad_query, grad_key_value) = (&mut gradients.0, &mut gradients.1);
        for grad_inputs in [
            GradInputs::Separate { query: Some((grad_query.into(), Write::Set)), key_value: None },
            GradInputs::Separate { query: None, key_value: Some((grad_key_value.into(), Write::Set)) },
        ] {
            let arguments = Backward {
                inputs: data.inputs(&inputs),
                key_lengths: None,
                documents: None,
                bias: None,
                relative_bias: None,
                dropout: None,
                output: (&found.0).into(),
                log_sum_exp: (&found.1).into(),
                grad_output: (&data.grad_output).into(),
                grad_inputs,
                grad_bias: None,
                grad_relative_bias: None,
            };
            backward(&device, &data.case.shape, arguments).unwrap();
        }
        assert!(data.split(&gradients)[..] == both[..3], "{name}");
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused_by_name() {
    let (_, device) = cpu_devices().remove(0);
    let refused = |shape: Shape, length: usize| {
        let qkv = vec![0.0; length];
        let mut output = vec![0.0; shape.batch * shape.query_time * shape.query_columns()];
        let arguments = Forward {
            inputs: Inputs::Packed((&qkv).into()),
            key_lengths: None,
            documents: None,
            bias: None,
            relative_bias: None,
            dropout: None,
            output: (&mut output).into(),
            log_sum_exp: None,
        };
        forward(&device, &shape, arguments).unwrap_err().to_string()
    };
    assert!(refused(shape(1, [4, 4], [3, 2], 8), 4 * 7 * 8).contains("cannot share"));
    assert!(refused(shape(1, [4, 3], [2, 2], 8), 0).contains("causal mask over 4 queries"));
    assert!(refused(shape(1, [4, 4], [2, 2], 8), 5).contains("qkv has 5 elements, expected 192"));
}
