//! Attention over documents, and with biases by distance: gradients, and decoding.

use super::*;
use crate::ops::relative_bias::{self, Kind};
use crate::tape::Cache;
use std::ops::Range;

const BUCKETS: Kind = Kind::Buckets { buckets: 6, max_distance: 4, bidirectional: true };

fn table64(kind: Kind, weight: &[f64]) -> Vec<f64> {
    relative_bias::reference::forward(&relative_bias::Shape { kind, heads: HEADS, radius: TIME }, weight)
}

/// One table for two layers, so that its gradient has two sources; the second layer reads the first.
#[test]
fn of_a_relative_bias_that_two_layers_share_over_documents() {
    for (mask, is_recomputed) in [(Mask::Full, false), (Mask::Causal, true)] {
        let options = AttentionOptions { heads: HEADS, key_value_heads: 2, mask, dropout: 0.0 };
        let packed = CHANNELS + 2 * 2 * HEAD_SIZE;
        Case {
            name: &format!("relative bias, {mask:?}, recomputed {is_recomputed}"),
            parameters: vec![
                leaf("position_bias", &[6, HEADS]),
                leaf("qkv", &[packed, CHANNELS]),
                leaf("head", &[VOCABULARY, CHANNELS]),
            ],
            inputs: vec![leaf("input", &[BATCH, TIME, packed])],
            record: &|tape, p, v, ids| {
                let relative_bias = Some(tape.relative_bias(BUCKETS, HEADS, TIME, Some(p[0]))?);
                let documents = Some(ids.documents);
                let inputs = AttentionInputs { documents, relative_bias, ..AttentionInputs::default() };
                let layers = |tape: &mut Tape<'_>| {
                    let mixed = tape.attention(v[0], &options, inputs)?;
                    let qkv = tape.linear(mixed, p[1], None, Activation::Identity, None)?;
                    tape.attention(qkv, &options, inputs)
                };
                let mixed = if is_recomputed { tape.recomputed(layers) } else { layers(tape) }?;
                let logits = tape.linear(mixed, p[2], None, Activation::Identity, None)?;
                tape.softmax_cross_entropy(logits, ids.targets, 0.0)
            },
            compute: &|p, v, ids| {
                let table = table64(BUCKETS, &p[0]);
                let attention = |qkv: &[f64]| {
                    let relative_bias = Some(bias64(&table));
                    let around = Around { documents: Some(&DOCUMENTS), relative_bias, ..Around::default() };
                    attention64(&options, 1, qkv, around)
                };
                let qkv = linear64(Activation::Identity, &attention(&v[0]), &p[1], None, None);
                mean_loss(&linear64(Activation::Identity, &attention(&qkv), &p[2], None, None), ids, 0.0)
            },
        }
        .check();
    }
}

fn bias64(table: &[f64]) -> attention::reference::RelativeBias<'_> {
    attention::reference::RelativeBias { table, radius: TIME, queries_are_last: false }
}

/// Its table has neither inputs nor parameters.
#[test]
fn of_attention_with_alibi() {
    let options = AttentionOptions { heads: HEADS, key_value_heads: HEADS, mask: Mask::Causal, dropout: 0.0 };
    Case {
        name: "ALiBi",
        parameters: vec![leaf("head", &[VOCABULARY, CHANNELS])],
        inputs: vec![leaf("qkv", &[BATCH, TIME, 3 * CHANNELS])],
        record: &|tape, p, v, ids| {
            let relative_bias = Some(tape.relative_bias(Kind::Alibi, HEADS, TIME, None)?);
            let inputs = AttentionInputs { relative_bias, ..AttentionInputs::default() };
            let mixed = tape.attention(v[0], &options, inputs)?;
            let logits = tape.linear(mixed, p[0], None, Activation::Identity, None)?;
            tape.softmax_cross_entropy(logits, ids.targets, 0.0)
        },
        compute: &|p, v, ids| {
            let table = table64(Kind::Alibi, &[]);
            let around = Around { relative_bias: Some(bias64(&table)), ..Around::default() };
            let mixed = attention64(&options, 1, &v[0], around);
            mean_loss(&linear64(Activation::Identity, &mixed, &p[0], None, None), ids, 0.0)
        },
    }
    .check();
}

/// Both sequences are read by themselves up to different lengths, then decoded together.
#[test]
fn decoding_from_a_cache_with_a_relative_bias_is_what_whole_sequences_give() {
    const CAPACITY: usize = 9;
    const LENGTH: usize = 6;
    let options = AttentionOptions { heads: HEADS, key_value_heads: 2, mask: Mask::Causal, dropout: 0.0 };
    let row = CHANNELS + 2 * 2 * HEAD_SIZE;
    let qkv = Random::fresh().normal(2 * LENGTH * row);
    let mut parameters = Parameters::new(&device(), Vec::new(), 0).unwrap();
    let cache = Cache::new(&device(), 2, CAPACITY, 2 * HEAD_SIZE).unwrap();
    // Positions and the first row, where the cache is used.
    let mut run = |batch: usize, time: usize, cached: Option<(&[usize], usize)>, data: &[f32]| {
        let mut tape = Tape::new(device(), &parameters, Mode::Inference);
        let input = tape.input("qkv", &[batch, time, row]);
        let table = Some(tape.relative_bias(Kind::Alibi, HEADS, CAPACITY, None).unwrap());
        let inputs = AttentionInputs { relative_bias: table, ..AttentionInputs::default() };
        let output = match cached {
            Some(_) => tape.attention_cached(input, &options, &cache, table),
            None => tape.attention(input, &options, inputs),
        };
        let output = output.unwrap();
        tape.keep(output);
        let mut program = tape.finish().unwrap();
        program.write(input, data).unwrap();
        let (positions, cache_row) = cached.map_or((Vec::new(), 0), |(positions, row)| (positions.to_vec(), row));
        program.run(&mut parameters, &RunOptions { positions, cache_row, ..RunOptions::default() }).unwrap();
        program.read(output).unwrap().into_owned()
    };
    let cut = |values: &[f32], sequence: usize, positions: Range<usize>| {
        let columns = values.len() / (2 * LENGTH);
        values[(sequence * LENGTH + positions.start) * columns..(sequence * LENGTH + positions.end) * columns].to_vec()
    };
    let whole = run(2, LENGTH, None, &qkv);
    for (sequence, length) in [(0, 5), (1, 2)] {
        let read = run(1, length, Some((&[0], sequence)), &cut(&qkv, sequence, 0..length));
        let expected = double(&cut(&whole, sequence, 0..length));
        assert_close(&format!("sequence {sequence}"), &read, &expected, 1e-5, 0.0);
    }
    let next = |values: &[f32]| [cut(values, 0, 5..6), cut(values, 1, 2..3)].concat();
    let decoded = run(2, 1, Some((&[5, 2], 0)), &next(&qkv));
    assert_close("both together", &decoded, &double(&next(&whole)), 1e-5, 0.0);
}

#[test]
fn inputs_that_do_not_fit_are_refused_as_they_are_recorded() {
    let parameters = Parameters::new(&device(), Vec::new(), 0).unwrap();
    let mut tape = Tape::new(device(), &parameters, Mode::Training);
    let qkv = tape.input_with_gradient("qkv", &[1, 4, 3 * CHANNELS]);
    let documents = Some(tape.input_ids("documents", &[1, 4, 2]));
    let key_lengths = Some(tape.input_ids("lengths", &[1]));
    let bias = Some(tape.input_with_gradient("bias", &[HEADS, 4, 4]));
    let relative_bias = Some(tape.relative_bias(Kind::Alibi, HEADS, 3, None).unwrap());
    let options = AttentionOptions { heads: HEADS, key_value_heads: HEADS, mask: Mask::Full, dropout: 0.0 };
    let none = AttentionInputs::default();
    let tries = [
        (AttentionInputs { documents, key_lengths, ..none }, "without key_lengths"),
        (AttentionInputs { documents, bias, ..none }, "use a relative bias"),
        (
            AttentionInputs { relative_bias, ..none },
            "relative_bias is [4, 5], expected (4, 2 * radius - 1) with a radius of at least 4",
        ),
    ];
    for (inputs, expected) in tries {
        let message = tape.attention(qkv, &options, inputs).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let message = tape.relative_bias(BUCKETS, HEADS, 4, None).unwrap_err().to_string();
    assert!(message.contains("buckets need a weight"), "{message}");
}
