//! Gradients of every tape operation, alone and composed, against central differences of the same computation in f64.
//!
//! Each case is written twice: as it is recorded on the tape, and as a function of all its parameters and inputs made
//! of the f64 references in `ops`. The tape runs with its arena and gradients full of NaN, so a read of what was not
//! written shows.

use super::device;
use crate::ops::attention::Mask;
use crate::ops::gated_conv::Window;
use crate::ops::layer_norm::Norm;
use crate::ops::linear::Activation;
use crate::ops::linear::cases::ACTIVATIONS;
use crate::ops::testing::{Random, assert_close, double};
use crate::ops::{
    Dropout, IGNORED, attention, dropout, embedding, ffn, gated_conv, layer_norm, linear, low_rank, mean_rows,
    pointwise_loss, rotary, softmax_cross_entropy, span_cross_entropy,
};
use crate::tape::{
    AttentionInputs, AttentionOptions, EmbeddingInputs, EmbeddingPositions as Positions, Error, FfnParameters,
    GatedConvOptions, Initial, Loss, LowRank, Mode, ParameterId, Parameters, RotaryOptions, RunOptions, Specification,
    Tape, Value,
};

mod attention_layer;
mod losses;
mod network;
mod relative_attention;

/// `B`, `T`, `H`, `D`, `C`, `F` and `V` of all cases.
const BATCH: usize = 2;
const TIME: usize = 5;
const HEADS: usize = 4;
const HEAD_SIZE: usize = 3;
const CHANNELS: usize = HEADS * HEAD_SIZE;
const HIDDEN: usize = 7;
const VOCABULARY: usize = 11;
/// Of adapters.
const RANK: usize = 3;
const ROWS: usize = BATCH * TIME;
const EPSILON: f32 = 1e-5;
/// Ranges of rows: a few, one of a single row, none, rows that no range has.
const RANGES: [i32; 2 * ROWS] = [0, 3, 0, 0, 5, 6, 6, 9, 9, 9, 0, 0, 0, 0, 9, 10, 0, 0, 10, 10];
/// Two documents; one of a single position, padding, and another.
const DOCUMENTS: [i32; 2 * ROWS] = [0, 2, 0, 2, 2, 5, 2, 5, 2, 5, 0, 1, 0, 0, 2, 5, 2, 5, 2, 5];
const SEED: u64 = 5;
const STEP: u64 = 9;

/// Name and sizes of a parameter or an input.
type Leaf = (&'static str, Vec<usize>);

/// What a case reads: parameters and inputs, by place in their lists.
type Leaves = Vec<Vec<f64>>;

/// Ids, lengths and float targets that the cases use besides their inputs.
struct Ids {
    tokens: Vec<i32>,
    key_lengths: Vec<i32>,
    targets: Vec<i32>,
    /// `(ROWS, VOCABULARY)`, in 0..1; NaN in row 3 and elsewhere.
    floats: Vec<f32>,
    /// Two answers and an empty span.
    spans: Vec<i32>,
    answers: Vec<i32>,
}

/// Values of the tape for [`Ids`].
struct IdValues {
    tokens: Value,
    key_lengths: Value,
    targets: Value,
    /// [`RANGES`]
    ranges: Value,
    floats: Value,
    spans: Value,
    answers: Value,
    /// [`DOCUMENTS`]
    documents: Value,
}

/// Records a case: its parameters and inputs come in the order of their leaves.
type Record<'c> = dyn Fn(&mut Tape<'_>, &[ParameterId], &[Value], &IdValues) -> Result<Loss, Error> + 'c;

struct Case<'c> {
    name: &'c str,
    parameters: Vec<Leaf>,
    inputs: Vec<Leaf>,
    record: &'c Record<'c>,
    /// The sum of the mean losses, each times its factor, as a function of parameters and inputs.
    compute: &'c dyn Fn(&Leaves, &Leaves, &Ids) -> f64,
}

impl Case<'_> {
    fn check(&self) {
        let mut random = Random::fresh();
        let ids = Ids {
            tokens: (0..ROWS).map(|_| random.below(VOCABULARY) as i32).collect(),
            key_lengths: (0..BATCH).map(|_| 1 + random.below(TIME) as i32).collect(),
            targets: (0..ROWS).map(|row| if row == 3 { IGNORED } else { random.below(VOCABULARY) as i32 }).collect(),
            floats: (0..ROWS * VOCABULARY)
                .map(|i| if i / VOCABULARY == 3 || i % 7 == 5 { f32::NAN } else { random.below(5) as f32 / 4.0 })
                .collect(),
            spans: vec![0, 2, 5, -1, 6, 9, -1, 9, 9],
            answers: vec![[0, 0], [2, 4]]
                .swap_remove(random.below(2))
                .into_iter()
                .chain([7, 6, IGNORED, IGNORED])
                .collect(),
        };
        let length = |leaf: &Leaf| leaf.1.iter().product::<usize>();
        let specifications =
            self.parameters.iter().map(|(name, shape)| Specification::new(*name, shape, Initial::Normal(0.5)));
        let mut parameters = Parameters::new(&device(), specifications.collect(), u64::from(random.word())).unwrap();
        let inputs: Vec<Vec<f32>> = self.inputs.iter().map(|leaf| random.normal(length(leaf))).collect();
        let list: Vec<ParameterId> = parameters.ids().collect();

        let mut tape = Tape::new(device(), &parameters, Mode::Training);
        let values: Vec<Value> =
            self.inputs.iter().map(|(name, shape)| tape.input_with_gradient(name, shape)).collect();
        let id_values = IdValues {
            tokens: tape.input_ids("tokens", &[BATCH, TIME]),
            key_lengths: tape.input_ids("key_lengths", &[BATCH]),
            targets: tape.input_ids("targets", &[ROWS]),
            ranges: tape.input_ids("ranges", &[ROWS, 2]),
            floats: tape.input("float targets", &[ROWS, VOCABULARY]),
            spans: tape.input_ids("spans", &[3, 3]),
            answers: tape.input_ids("answers", &[3, 2]),
            documents: tape.input_ids("documents", &[BATCH, TIME, 2]),
        };
        (self.record)(&mut tape, &list, &values, &id_values).unwrap();
        let mut program = tape.finish().unwrap();
        program.poison();
        parameters.poison_gradients();
        values.iter().zip(&inputs).for_each(|(&value, data)| program.write(value, data).unwrap());
        program.write_ids(id_values.tokens, &ids.tokens).unwrap();
        program.write_ids(id_values.key_lengths, &ids.key_lengths).unwrap();
        program.write_ids(id_values.targets, &ids.targets).unwrap();
        program.write_ids(id_values.ranges, &RANGES).unwrap();
        program.write(id_values.floats, &ids.floats).unwrap();
        program.write_ids(id_values.spans, &ids.spans).unwrap();
        program.write_ids(id_values.answers, &ids.answers).unwrap();
        program.write_ids(id_values.documents, &DOCUMENTS).unwrap();
        program.run(&mut parameters, &RunOptions { seed: SEED, step: STEP, ..RunOptions::default() }).unwrap();

        let parameters64: Leaves = list.iter().map(|&id| double(&parameters.values(id).unwrap())).collect();
        let inputs64: Leaves = inputs.iter().map(|values| double(values)).collect();
        let expected = (self.compute)(&parameters64, &inputs64, &ids);
        let found = program.total_loss().unwrap() as f32;
        assert_close(&format!("{}: loss", self.name), &[found], &[expected], 2e-6, 0.0);
        for (place, (&id, leaf)) in list.iter().zip(&self.parameters).enumerate() {
            let differences = differences(&parameters64, place, |moved| (self.compute)(moved, &inputs64, &ids));
            let name = format!("{}: gradient of {}", self.name, leaf.0);
            assert_close(&name, &parameters.gradient(id).unwrap().unwrap(), &differences, 2e-5, 1e-7);
        }
        for (place, (&value, leaf)) in values.iter().zip(&self.inputs).enumerate() {
            let differences = differences(&inputs64, place, |moved| (self.compute)(&parameters64, moved, &ids));
            let name = format!("{}: gradient of {}", self.name, leaf.0);
            assert_close(&name, &program.gradient(value).unwrap().unwrap(), &differences, 2e-5, 1e-7);
        }
    }
}

/// Central differences of `function` by the elements of one leaf.
fn differences(leaves: &Leaves, place: usize, function: impl Fn(&Leaves) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let mut moved = leaves.clone();
    (0..leaves[place].len())
        .map(|index| {
            moved[place][index] = leaves[place][index] + step;
            let above = function(&moved);
            moved[place][index] = leaves[place][index] - step;
            let below = function(&moved);
            moved[place][index] = leaves[place][index];
            (above - below) / (2.0 * step)
        })
        .collect()
}

// The operations in f64, with the sizes of the cases.

fn mean_loss(logits: &[f64], ids: &Ids, label_smoothing: f32) -> f64 {
    let shape = softmax_cross_entropy::Shape { rows: ROWS, vocabulary: VOCABULARY, label_smoothing, ignored: IGNORED };
    let losses = softmax_cross_entropy::reference::forward(&shape, logits, &ids.targets, None);
    losses.iter().sum::<f64>() / ids.targets.iter().filter(|&&target| target != IGNORED).count() as f64
}

fn linear64(activation: Activation, x: &[f64], weight: &[f64], bias: Option<&[f64]>, plus: Option<&[f64]>) -> Vec<f64> {
    let inputs = x.len() / ROWS;
    let shape = linear::Shape { rows: ROWS, inputs, outputs: weight.len() / inputs / activation.width() };
    linear::reference::forward(&shape, activation, x, weight, bias, plus).1
}

fn norm64(kind: Norm, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let shape = layer_norm::Shape { kind, rows: ROWS, channels: x.len() / ROWS, epsilon: EPSILON };
    layer_norm::reference::forward(&shape, x, None, weight, bias).output
}

fn dropout64(probability: f32, site: u32, x: &[f64], plus: Option<&[f64]>) -> Vec<f64> {
    dropout::reference::forward(&Dropout { probability, seed: SEED, step: STEP, site }, x, plus)
}

fn embedding64(ids: embedding::reference::Ids<'_>, tables: embedding::reference::Tables<'_>) -> Vec<f64> {
    let shape = embedding::Shape { batch: BATCH, time: TIME, channels: CHANNELS, ..embedding::Shape::default() };
    embedding::reference::forward(&shape, &ids, &tables)
}

/// Of tokens and their places in their sequences.
fn plain_embedding64(ids: &Ids, tokens: &[f64], positions: &[f64]) -> Vec<f64> {
    let positions = Some(embedding::reference::Positions::Learned(positions));
    let ids = embedding::reference::Ids { tokens: &ids.tokens, ..embedding::reference::Ids::default() };
    embedding64(ids, embedding::reference::Tables { tokens, positions, types: None })
}

/// What an attention reads besides qkv.
#[derive(Default)]
struct Around<'a> {
    key_lengths: Option<&'a [i32]>,
    documents: Option<&'a [i32]>,
    relative_bias: Option<attention::reference::RelativeBias<'a>>,
}

fn attention64(options: &AttentionOptions, site: u32, qkv: &[f64], around: Around<'_>) -> Vec<f64> {
    let Around { key_lengths, documents, relative_bias } = around;
    let AttentionOptions { heads, key_value_heads, mask, dropout: probability } = *options;
    let columns = qkv.len() / ROWS;
    let head_size = columns / (heads + 2 * key_value_heads);
    let part = |from: usize, count: usize| -> Vec<f64> {
        let columns_of = |row: &[f64]| row[from * head_size..(from + count) * head_size].to_vec();
        qkv.chunks(columns).flat_map(columns_of).collect()
    };
    let (query, key) = (part(0, heads), part(heads, key_value_heads));
    let inputs = attention::reference::Inputs {
        shape: attention::Shape {
            batch: BATCH,
            query_time: TIME,
            key_time: TIME,
            heads,
            key_value_heads,
            head_size,
            scale: 1.0 / (head_size as f32).sqrt(),
            mask,
        },
        query: &query,
        key: &key,
        value: &part(heads + key_value_heads, key_value_heads),
        key_lengths,
        documents,
        bias: None,
        relative_bias,
        dropout: (probability > 0.0).then_some(Dropout { probability, seed: SEED, step: STEP, site }),
    };
    attention::reference::forward(&inputs).0
}

fn ffn64(activation: Activation, x: &[f64], leaves: &[Vec<f64>], plus: Option<&[f64]>) -> Vec<f64> {
    let channels = x.len() / ROWS;
    let shape = ffn::Shape { rows: ROWS, channels, hidden: leaves[2].len() / channels };
    let parameters = ffn::reference::Parameters {
        weight_in: &leaves[0],
        bias_in: Some(&leaves[1]),
        weight_out: &leaves[2],
        bias_out: Some(&leaves[3]),
    };
    ffn::reference::forward(&shape, activation, x, parameters, plus).output
}

fn ffn_parameters(ids: &[ParameterId]) -> FfnParameters {
    FfnParameters { bias_in: Some(ids[1]), bias_out: Some(ids[3]), ..FfnParameters::plain(ids[0], ids[2]) }
}

/// `weight + s · B · A`
fn merged64(weight: &[f64], [down, up]: [&[f64]; 2], scale: f32) -> Vec<f64> {
    let rank = RANK;
    let shape = low_rank::Shape { rows: ROWS, inputs: down.len() / rank, outputs: up.len() / rank, rank };
    low_rank::reference::merge(&shape, weight, down, up, f64::from(scale))
}

fn leaf(name: &'static str, shape: &[usize]) -> Leaf {
    (name, shape.to_vec())
}

#[test]
fn of_linear_with_every_activation_a_bias_and_a_residual() {
    for activation in ACTIVATIONS {
        Case {
            name: &format!("linear, {activation:?}"),
            parameters: vec![
                leaf("weight", &[VOCABULARY * activation.width(), CHANNELS]),
                leaf("bias", &[VOCABULARY * activation.width()]),
            ],
            inputs: vec![leaf("input", &[BATCH, TIME, CHANNELS]), leaf("residual", &[BATCH, TIME, VOCABULARY])],
            record: &|tape, p, v, ids| {
                let logits = tape.linear(v[0], p[0], Some(p[1]), activation, Some(v[1]))?;
                tape.softmax_cross_entropy(logits, ids.targets, 0.0)
            },
            compute: &|p, v, ids| mean_loss(&linear64(activation, &v[0], &p[0], Some(&p[1]), Some(&v[1])), ids, 0.0),
        }
        .check();
    }
}

#[test]
fn of_a_residual_that_is_also_the_layers_input() {
    Case {
        name: "linear(x) + x",
        parameters: vec![leaf("weight", &[VOCABULARY, VOCABULARY])],
        inputs: vec![leaf("input", &[ROWS, VOCABULARY])],
        record: &|tape, p, v, ids| {
            let hidden = tape.linear(v[0], p[0], None, Activation::GeluTanh, Some(v[0]))?;
            let logits = tape.linear(hidden, p[0], None, Activation::Identity, Some(hidden))?;
            tape.softmax_cross_entropy(logits, ids.targets, 0.0)
        },
        compute: &|p, v, ids| {
            let hidden = linear64(Activation::GeluTanh, &v[0], &p[0], None, Some(&v[0]));
            mean_loss(&linear64(Activation::Identity, &hidden, &p[0], None, Some(&hidden)), ids, 0.0)
        },
    }
    .check();
}

#[test]
fn of_sums_of_a_value_with_itself_and_with_others() {
    Case {
        name: "(x + x) + (y + x)",
        parameters: vec![leaf("weight", &[VOCABULARY, CHANNELS])],
        inputs: vec![leaf("x", &[ROWS, CHANNELS]), leaf("y", &[ROWS, CHANNELS])],
        record: &|tape, p, v, ids| {
            let twice = tape.add(v[0], v[0])?;
            let both = tape.add(v[1], v[0])?;
            let sum = tape.add(twice, both)?;
            let logits = tape.linear(sum, p[0], None, Activation::Identity, None)?;
            tape.softmax_cross_entropy(logits, ids.targets, 0.0)
        },
        compute: &|p, v, ids| {
            let sum: Vec<f64> = v[0].iter().zip(&v[1]).map(|(x, y)| 3.0 * x + y).collect();
            mean_loss(&linear64(Activation::Identity, &sum, &p[0], None, None), ids, 0.0)
        },
    }
    .check();
}

#[test]
fn of_ffn_with_every_activation_kept_or_recomputed() {
    for activation in ACTIVATIONS {
        for recomputes in [false, true] {
            let width = activation.width();
            Case {
                name: &format!("ffn, {activation:?}, recomputes {recomputes}"),
                parameters: vec![
                    leaf("weight_in", &[HIDDEN * width, VOCABULARY]),
                    leaf("bias_in", &[HIDDEN * width]),
                    leaf("weight_out", &[VOCABULARY, HIDDEN]),
                    leaf("bias_out", &[VOCABULARY]),
                ],
                inputs: vec![leaf("input", &[ROWS, VOCABULARY])],
                record: &|tape, p, v, ids| {
                    let parameters = ffn_parameters(p);
                    let logits = tape.ffn(v[0], parameters, activation, Some(v[0]), recomputes)?;
                    tape.softmax_cross_entropy(logits, ids.targets, 0.0)
                },
                compute: &|p, v, ids| mean_loss(&ffn64(activation, &v[0], p, Some(&v[0])), ids, 0.0),
            }
            .check();
        }
    }
}

/// The weight learns beside its adapter here, so that nothing of either is left out.
#[test]
fn of_a_linear_layer_with_an_adapted_weight() {
    Case {
        name: "adapted linear",
        parameters: vec![
            leaf("weight", &[VOCABULARY, CHANNELS]),
            leaf("bias", &[VOCABULARY]),
            leaf("down", &[RANK, CHANNELS]),
            leaf("up", &[VOCABULARY, RANK]),
        ],
        inputs: vec![leaf("input", &[BATCH, TIME, CHANNELS]), leaf("residual", &[BATCH, TIME, VOCABULARY])],
        record: &|tape, p, v, ids| {
            let low_rank = LowRank { down: p[2], up: p[3], scale: 0.7 };
            let logits = tape.adapted_linear(v[0], p[0], low_rank, Some(p[1]), Some(v[1]))?;
            tape.softmax_cross_entropy(logits, ids.targets, 0.0)
        },
        compute: &|p, v, ids| {
            let weight = merged64(&p[0], [&p[2], &p[3]], 0.7);
            mean_loss(&linear64(Activation::Identity, &v[0], &weight, Some(&p[1]), Some(&v[1])), ids, 0.0)
        },
    }
    .check();
}

#[test]
fn of_ffn_with_adapted_weights_kept_or_recomputed() {
    let adapts = [(true, true), (true, false), (false, true)];
    let cases = ACTIVATIONS.into_iter().flat_map(|activation| adapts.map(|adapts| (activation, adapts)));
    for (activation, (adapts_in, adapts_out)) in cases {
        for recomputes in [false, true] {
            let width = activation.width();
            Case {
                name: &format!("ffn, {activation:?}, recomputes {recomputes}, adapts {adapts_in} {adapts_out}"),
                parameters: [
                    Some(leaf("weight_in", &[HIDDEN * width, VOCABULARY])),
                    Some(leaf("bias_in", &[HIDDEN * width])),
                    Some(leaf("weight_out", &[VOCABULARY, HIDDEN])),
                    Some(leaf("bias_out", &[VOCABULARY])),
                    adapts_in.then(|| leaf("down_in", &[RANK, VOCABULARY])),
                    adapts_in.then(|| leaf("up_in", &[HIDDEN * width, RANK])),
                    adapts_out.then(|| leaf("down_out", &[RANK, HIDDEN])),
                    adapts_out.then(|| leaf("up_out", &[VOCABULARY, RANK])),
                ]
                .into_iter()
                .flatten()
                .collect(),
                inputs: vec![leaf("input", &[ROWS, VOCABULARY])],
                record: &|tape, p, v, ids| {
                    let mut rest =
                        p[4..].chunks_exact(2).map(|pair| LowRank { down: pair[0], up: pair[1], scale: 0.7 });
                    let low_rank_in = if adapts_in { rest.next() } else { None };
                    let low_rank_out = if adapts_out { rest.next() } else { None };
                    let parameters = FfnParameters { low_rank_in, low_rank_out, ..ffn_parameters(p) };
                    let logits = tape.ffn(v[0], parameters, activation, Some(v[0]), recomputes)?;
                    tape.softmax_cross_entropy(logits, ids.targets, 0.0)
                },
                compute: &|p, v, ids| {
                    let mut weights = p[..4].to_vec();
                    let mut rest = p[4..].chunks_exact(2);
                    for place in [adapts_in.then_some(0), adapts_out.then_some(2)].into_iter().flatten() {
                        let pair = rest.next().unwrap();
                        weights[place] = merged64(&p[place], [&pair[0], &pair[1]], 0.7);
                    }
                    mean_loss(&ffn64(activation, &v[0], &weights, Some(&v[0])), ids, 0.0)
                },
            }
            .check();
        }
    }
}

#[test]
fn of_layer_norm() {
    Case {
        name: "layer norm",
        parameters: vec![leaf("weight", &[VOCABULARY]), leaf("bias", &[VOCABULARY])],
        inputs: vec![leaf("input", &[ROWS, VOCABULARY])],
        record: &|tape, p, v, ids| {
            let logits = tape.layer_norm(Norm::Layer, v[0], p[0], Some(p[1]), EPSILON)?;
            tape.softmax_cross_entropy(logits, ids.targets, 0.0)
        },
        compute: &|p, v, ids| mean_loss(&norm64(Norm::Layer, &v[0], &p[0], Some(&p[1])), ids, 0.0),
    }
    .check();
}

#[test]
fn of_rms_norm_alone_and_with_a_residual() {
    for has_residual in [false, true] {
        Case {
            name: &format!("RMS norm, residual {has_residual}"),
            parameters: vec![leaf("weight", &[VOCABULARY])],
            inputs: vec![leaf("input", &[ROWS, VOCABULARY]), leaf("residual", &[ROWS, VOCABULARY])],
            record: &|tape, p, v, ids| {
                if has_residual {
                    let (_, logits) = tape.layer_norm_residual(Norm::Rms, v[0], v[1], p[0], None, EPSILON)?;
                    return tape.softmax_cross_entropy(logits, ids.targets, 0.0);
                }
                let normed = tape.layer_norm(Norm::Rms, v[0], p[0], None, EPSILON)?;
                let logits = tape.add(normed, v[1])?;
                tape.softmax_cross_entropy(logits, ids.targets, 0.0)
            },
            compute: &|p, v, ids| {
                let plus = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
                let norm = |x: &[f64]| norm64(Norm::Rms, x, &p[0], None);
                let logits = if has_residual { norm(&plus(&v[0], &v[1])) } else { plus(&norm(&v[0]), &v[1]) };
                mean_loss(&logits, ids, 0.0)
            },
        }
        .check();
    }
}

/// The sum is used once or twice, so its gradient arrives before the norm adds to it, or not at all.
#[test]
fn of_layer_norm_with_a_residual() {
    for uses_sum in [false, true] {
        Case {
            name: &format!("layer norm with a residual, sum used: {uses_sum}"),
            parameters: vec![leaf("weight", &[VOCABULARY]), leaf("bias", &[VOCABULARY])],
            inputs: vec![leaf("input", &[ROWS, VOCABULARY]), leaf("residual", &[ROWS, VOCABULARY])],
            record: &|tape, p, v, ids| {
                let (sum, normed) = tape.layer_norm_residual(Norm::Layer, v[0], v[1], p[0], Some(p[1]), EPSILON)?;
                let logits = if uses_sum { tape.add(normed, sum)? } else { normed };
                tape.softmax_cross_entropy(logits, ids.targets, 0.0)
            },
            compute: &|p, v, ids| {
                let sum: Vec<f64> = v[0].iter().zip(&v[1]).map(|(a, b)| a + b).collect();
                let mut logits = norm64(Norm::Layer, &sum, &p[0], Some(&p[1]));
                if uses_sum {
                    logits.iter_mut().zip(&sum).for_each(|(logit, sum)| *logit += sum);
                }
                mean_loss(&logits, ids, 0.0)
            },
        }
        .check();
    }
}

#[test]
fn of_dropout_with_and_without_a_residual() {
    Case {
        name: "dropout",
        parameters: vec![leaf("weight", &[VOCABULARY, VOCABULARY])],
        inputs: vec![leaf("input", &[ROWS, VOCABULARY])],
        record: &|tape, p, v, ids| {
            let dropped = tape.dropout(v[0], 0.4, None)?;
            let hidden = tape.linear(dropped, p[0], None, Activation::GeluErf, None)?;
            let logits = tape.dropout(hidden, 0.2, Some(v[0]))?;
            tape.softmax_cross_entropy(logits, ids.targets, 0.0)
        },
        compute: &|p, v, ids| {
            let dropped = dropout64(0.4, 1, &v[0], None);
            let hidden = linear64(Activation::GeluErf, &dropped, &p[0], None, None);
            mean_loss(&dropout64(0.2, 2, &hidden, Some(&v[0])), ids, 0.0)
        },
    }
    .check();
}

/// The table's gradient is the sum of what comes through the embedding and through the output projection.
#[test]
fn of_tables_that_are_tied_to_the_output_projection() {
    for label_smoothing in [0.0, 0.1] {
        for chunk_rows in [1, 4, ROWS] {
            Case {
                name: &format!("embedding and linear cross-entropy, smoothing {label_smoothing}, chunks {chunk_rows}"),
                parameters: vec![
                    leaf("tokens", &[VOCABULARY, CHANNELS]),
                    leaf("positions", &[TIME + 2, CHANNELS]),
                    leaf("bias", &[VOCABULARY]),
                ],
                inputs: vec![],
                record: &|tape, p, _, ids| {
                    let embedded = tape.embedding(ids.tokens, p[0], EmbeddingInputs::learned(p[1]))?;
                    tape.linear_cross_entropy(
                        embedded,
                        p[0],
                        Some(p[2]),
                        ids.targets,
                        label_smoothing,
                        Some(chunk_rows),
                    )
                },
                compute: &|p, _, ids| {
                    let embedded = plain_embedding64(ids, &p[0], &p[1]);
                    mean_loss(
                        &linear64(Activation::Identity, &embedded, &p[0], Some(&p[2]), None),
                        ids,
                        label_smoothing,
                    )
                },
            }
            .check();
        }
    }
}

/// The tokens also serve as the ids of positions and types: they repeat and are not in order.
#[test]
fn of_an_embedding_with_positions_and_types_by_id() {
    for is_learned in [false, true] {
        Case {
            name: &format!("embedding, learned positions {is_learned}"),
            parameters: vec![
                leaf("tokens", &[VOCABULARY, CHANNELS]),
                leaf("types", &[VOCABULARY + 2, CHANNELS]),
                leaf("positions", &[VOCABULARY, CHANNELS]),
            ],
            inputs: vec![],
            record: &|tape, p, _, ids| {
                let inputs = EmbeddingInputs {
                    positions: Some(if is_learned { Positions::Learned(p[2]) } else { Positions::Sinusoidal }),
                    position_ids: Some(ids.tokens),
                    types: Some((p[1], ids.tokens)),
                };
                let embedded = tape.embedding(ids.tokens, p[0], inputs)?;
                // The table of positions has a gradient in either case.
                tape.linear_cross_entropy(embedded, p[2], None, ids.targets, 0.0, None)
            },
            compute: &|p, _, ids| {
                let reference_ids = embedding::reference::Ids {
                    tokens: &ids.tokens,
                    positions: Some(&ids.tokens),
                    types: Some(&ids.tokens),
                };
                let positions = Some(match is_learned {
                    true => embedding::reference::Positions::Learned(&p[2]),
                    false => embedding::reference::Positions::Sinusoidal,
                });
                let tables = embedding::reference::Tables { tokens: &p[0], positions, types: Some(&p[1]) };
                let embedded = embedding64(reference_ids, tables);
                mean_loss(&linear64(Activation::Identity, &embedded, &p[2], None, None), ids, 0.0)
            },
        }
        .check();
    }
}

/// The input is used beside as well, so that its gradient is added to as well as set.
#[test]
fn of_means_of_rows() {
    for is_used_beside in [false, true] {
        Case {
            name: &format!("means of rows, input used beside {is_used_beside}"),
            parameters: vec![leaf("weight", &[VOCABULARY, CHANNELS])],
            inputs: vec![leaf("input", &[BATCH, TIME, CHANNELS])],
            record: &|tape, p, v, ids| {
                let mut rows = tape.mean_rows(v[0], ids.ranges)?;
                if is_used_beside {
                    let input = tape.linear(v[0], p[0], None, Activation::Identity, None)?;
                    tape.softmax_cross_entropy(input, ids.targets, 0.0)?;
                    rows = tape.add(rows, rows)?;
                }
                tape.linear_cross_entropy(rows, p[0], None, ids.targets, 0.0, None)
            },
            compute: &|p, v, ids| {
                let shape = mean_rows::Shape { rows: ROWS, channels: CHANNELS, ranges: ROWS };
                let means = mean_rows::reference::forward(&shape, &v[0], &RANGES);
                let loss = |rows: &[f64]| mean_loss(&linear64(Activation::Identity, rows, &p[0], None, None), ids, 0.0);
                if !is_used_beside {
                    return loss(&means);
                }
                loss(&v[0]) + loss(&means.iter().map(|mean| 2.0 * mean).collect::<Vec<f64>>())
            },
        }
        .check();
    }
}

/// Turned once, twice, and beside what is not turned, so that the gradient that is turned in place is set and added to.
#[test]
fn of_rotary_positions() {
    let options = RotaryOptions { heads: 2, key_value_heads: 1, rotary_columns: Some(2), base: 100.0 };
    for (has_ids, is_used_beside) in [(false, false), (true, false), (true, true)] {
        Case {
            name: &format!("rotary, ids {has_ids}, input used beside {is_used_beside}"),
            parameters: vec![leaf("weight", &[VOCABULARY, CHANNELS])],
            inputs: vec![leaf("qkv", &[BATCH, TIME, CHANNELS])],
            record: &|tape, p, v, ids| {
                let once = tape.rotary(v[0], &options, has_ids.then_some(ids.tokens))?;
                let twice = tape.rotary(once, &options, None)?;
                let sum = tape.add(twice, if is_used_beside { v[0] } else { once })?;
                tape.linear_cross_entropy(sum, p[0], None, ids.targets, 0.0, None)
            },
            compute: &|p, v, ids| {
                let shape = rotary::Shape {
                    batch: BATCH,
                    time: TIME,
                    heads: 2,
                    key_value_heads: 1,
                    head_size: CHANNELS / 4,
                    rotary_columns: 2,
                    base: 100.0,
                    first_position: 0,
                };
                let once = rotary::reference::forward(&shape, &v[0], has_ids.then_some(&ids.tokens));
                let twice = rotary::reference::forward(&shape, &once, None);
                let other = if is_used_beside { &v[0] } else { &once };
                let sum: Vec<f64> = twice.iter().zip(other).map(|(a, b)| a + b).collect();
                mean_loss(&linear64(Activation::Identity, &sum, &p[0], None, None), ids, 0.0)
            },
        }
        .check();
    }
}

#[test]
fn of_a_gated_convolution() {
    let windows = [Window::Causal, Window::Centred { excludes_self: false }, Window::Centred { excludes_self: true }];
    for (window, has_documents) in windows.into_iter().flat_map(|window| [(window, false), (window, true)]) {
        Case {
            name: &format!("gated convolution, {window:?}, documents {has_documents}"),
            parameters: vec![
                leaf("weight", &[CHANNELS, 3]),
                leaf("bias", &[CHANNELS]),
                leaf("head", &[VOCABULARY, CHANNELS]),
            ],
            inputs: vec![leaf("input", &[BATCH, TIME, 2 * CHANNELS])],
            record: &|tape, p, v, ids| {
                let options = GatedConvOptions { window, dilation: 2 };
                let documents = has_documents.then_some(ids.documents);
                let mixed = tape.gated_conv(v[0], p[0], Some(p[1]), &options, documents)?;
                tape.linear_cross_entropy(mixed, p[2], None, ids.targets, 0.0, None)
            },
            compute: &|p, v, ids| {
                let shape =
                    gated_conv::Shape { batch: BATCH, time: TIME, channels: CHANNELS, taps: 3, dilation: 2, window };
                let documents = has_documents.then_some(&DOCUMENTS[..]);
                let mixed = gated_conv::reference::forward(&shape, &v[0], &p[0], Some(&p[1]), documents);
                mean_loss(&linear64(Activation::Identity, &mixed, &p[2], None, None), ids, 0.0)
            },
        }
        .check();
    }
}

/// The sum is an input of the activation and of the residual, so its gradient comes from two places.
#[test]
fn of_activations_by_themselves_and_of_a_scale() {
    for activation in ACTIVATIONS {
        Case {
            name: &format!("scale and {activation:?}"),
            parameters: vec![leaf("weight", &[VOCABULARY * activation.width(), CHANNELS])],
            inputs: vec![leaf("input", &[ROWS, CHANNELS])],
            record: &|tape, p, v, ids| {
                let z = tape.linear(v[0], p[0], None, Activation::Identity, None)?;
                let scaled = tape.scale(z, 0.3)?;
                let activated = tape.activation(scaled, activation)?;
                let logits = match activation {
                    Activation::SwiGlu => activated,
                    _ => tape.add(activated, scaled)?,
                };
                tape.softmax_cross_entropy(logits, ids.targets, 0.0)
            },
            compute: &|p, v, ids| {
                let z = linear64(Activation::Identity, &v[0], &p[0], None, None);
                let scaled: Vec<f64> = z.iter().map(|z| z * f64::from(0.3f32)).collect();
                let mut logits = linear::reference::activate(activation, VOCABULARY, &scaled);
                if activation != Activation::SwiGlu {
                    logits.iter_mut().zip(&scaled).for_each(|(logit, scaled)| *logit += scaled);
                }
                mean_loss(&logits, ids, 0.0)
            },
        }
        .check();
    }
}
