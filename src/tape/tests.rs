//! The tape as a whole: what is kept, what is not computed, what is refused, and that the same computation gives the
//! same bits however it is run. The gradients themselves are in `gradients`.

mod gradients;

use super::*;
use crate::cpu::{Cpu, Level};
use crate::ops::IGNORED;
use crate::ops::attention::Mask;
use crate::ops::linear::Activation;
use crate::ops::testing::{Random, assert_close, double};
use std::borrow::Cow;

fn device() -> Arc<Device> {
    device_with(2)
}

fn device_with(threads: usize) -> Arc<Device> {
    Arc::new(Device::Cpu(Cpu::with(threads, Level::detect().unwrap()).unwrap()))
}

const VOCABULARY: usize = 13;
const CHANNELS: usize = 8;
const HIDDEN: usize = 20;
const LAYERS: usize = 2;

/// A tied transformer without norms, small enough to be run many times.
struct Network {
    parameters: Parameters,
    tokens: ParameterId,
    blocks: Vec<[ParameterId; 4]>,
}

/// How [`Network::record`] records.
#[derive(Clone, Copy)]
struct How {
    mode: Mode,
    batch: usize,
    time: usize,
    recompute: bool,
    dropout: f32,
}

const TRAIN: How = How { mode: Mode::Training, batch: 3, time: 6, recompute: false, dropout: 0.0 };

struct Recorded {
    program: Program,
    ids: Value,
    targets: Value,
    loss: Loss,
}

impl Network {
    /// Parameters whose names start with one of `frozen` are frozen.
    fn new(frozen: &[&str]) -> Self {
        let specification = |name: &str, shape: &[usize]| Specification {
            trainable: !frozen.iter().any(|prefix| name.starts_with(prefix)),
            ..Specification::new(name, shape, Initial::Normal(0.3))
        };
        let mut list = vec![specification("tokens", &[VOCABULARY, CHANNELS])];
        for layer in 0..LAYERS {
            list.push(specification(&format!("{layer}.qkv"), &[3 * CHANNELS, CHANNELS]));
            list.push(specification(&format!("{layer}.projection"), &[CHANNELS, CHANNELS]));
            list.push(specification(&format!("{layer}.weight_in"), &[HIDDEN, CHANNELS]));
            list.push(specification(&format!("{layer}.weight_out"), &[CHANNELS, HIDDEN]));
        }
        let parameters = Parameters::new(&device(), list, 7).unwrap();
        let ids: Vec<ParameterId> = parameters.ids().collect();
        let blocks = ids[1..].chunks(4).map(|four| four.try_into().unwrap()).collect();
        Self { parameters, tokens: ids[0], blocks }
    }

    fn tape(&self, device: Arc<Device>, how: How) -> (Tape<'_>, Value, Value, Loss) {
        let mut tape = Tape::new(device, &self.parameters, how.mode);
        let (ids, targets) =
            (tape.input_ids("ids", &[how.batch, how.time]), tape.input_ids("targets", &[how.batch, how.time]));
        let mut stream = tape.embedding(ids, self.tokens, EmbeddingInputs::default()).unwrap();
        let options = AttentionOptions { heads: 2, key_value_heads: 2, mask: Mask::Causal, dropout: how.dropout };
        for (layer, block) in self.blocks.iter().enumerate() {
            let record = |tape: &mut Tape<'_>| -> Result<Value, Error> {
                let qkv = tape.linear(stream, block[0], None, Activation::Identity, None)?;
                let mixed = tape.attention(qkv, &options, AttentionInputs::default())?;
                let branch = tape.linear(mixed, block[1], None, Activation::Identity, None)?;
                let stream = tape.dropout(branch, how.dropout, Some(stream))?;
                let ffn = FfnParameters::plain(block[2], block[3]);
                tape.ffn(stream, ffn, Activation::GeluTanh, Some(stream), how.recompute)
            };
            stream = tape
                .scoped(&layer.to_string(), |tape| if how.recompute { tape.recomputed(record) } else { record(tape) })
                .unwrap();
        }
        let loss = tape.linear_cross_entropy(stream, self.tokens, None, targets, 0.0, Some(4)).unwrap();
        (tape, ids, targets, loss)
    }

    fn record(&self, device: Arc<Device>, how: How) -> Recorded {
        let (tape, ids, targets, loss) = self.tape(device, how);
        Recorded { program: tape.finish().unwrap(), ids, targets, loss }
    }

    fn gradients(&self) -> Vec<Option<Vec<f32>>> {
        self.parameters.ids().map(|id| self.parameters.gradient(id).unwrap().map(Cow::into_owned)).collect()
    }
}

impl Recorded {
    /// A run on poisoned memory.
    fn run(&mut self, parameters: &mut Parameters, batch: &[i32], options: &RunOptions) -> f64 {
        self.program.poison();
        if !options.accumulate {
            parameters.poison_gradients();
        }
        let (ids, targets) = batch.split_at(batch.len() / 2);
        self.program.write_ids(self.ids, ids).unwrap();
        self.program.write_ids(self.targets, targets).unwrap();
        self.program.run(parameters, options).unwrap();
        self.program.mean_loss(self.loss).unwrap().unwrap()
    }
}

/// Ids, then targets.
fn batch(how: How) -> Vec<i32> {
    let mut random = Random::fresh();
    (0..2 * how.batch * how.time).map(|_| random.below(VOCABULARY) as i32).collect()
}

fn bits(gradients: &[Option<Vec<f32>>]) -> Vec<Vec<u32>> {
    gradients.iter().map(|gradient| gradient.iter().flatten().map(|value| value.to_bits()).collect()).collect()
}

#[test]
fn bits_do_not_depend_on_the_run_the_threads_or_recomputation() {
    let batch = batch(TRAIN);
    let options = RunOptions { seed: 3, step: 11, ..RunOptions::default() };
    for dropout in [0.0, 0.25] {
        let mut results = Vec::new();
        for (threads, recompute) in [(1, false), (2, false), (3, false), (1, true), (2, true), (3, true)] {
            let mut network = Network::new(&[]);
            let mut recorded = network.record(device_with(threads), How { recompute, dropout, ..TRAIN });
            for run in 0..2 {
                let loss = recorded.run(&mut network.parameters, &batch, &options);
                results.push((threads, recompute, run, loss.to_bits(), bits(&network.gradients())));
            }
        }
        let first = &results[0];
        for other in &results {
            let which = (other.0, other.1, other.2);
            assert!(first.3 == other.3 && first.4 == other.4, "dropout {dropout}, {which:?} differs");
        }
    }
}

#[test]
fn recomputation_takes_less_memory() {
    let network = Network::new(&[]);
    let large = How { batch: 4, time: 64, ..TRAIN };
    let use_of = |how| network.tape(device(), how).0.measure().unwrap();
    let (kept, recomputed) = (use_of(large), use_of(How { recompute: true, ..large }));
    assert!(recomputed.arena < kept.arena * 3 / 4, "{} of {} bytes", recomputed.arena, kept.arena);
    let inference = use_of(How { mode: Mode::Inference, ..large });
    assert_eq!(inference.gradients, 0);
    assert!(inference.arena < recomputed.arena, "nothing is kept: {} of {}", inference.arena, recomputed.arena);
}

#[test]
fn what_is_measured_is_what_is_allocated_and_buffers_keep_their_addresses() {
    let mut network = Network::new(&[]);
    let measured = network.tape(device(), TRAIN).0.measure().unwrap();
    let mut recorded = network.record(device(), TRAIN);
    assert_eq!(recorded.program.memory(), measured);
    assert_eq!(recorded.program.state.arena.bytes(), measured.arena);
    assert!(measured.activations + measured.gradients + measured.scratch <= measured.arena);
    let batch = batch(TRAIN);
    let mut addresses = Vec::new();
    for _ in 0..3 {
        recorded.run(&mut network.parameters, &batch, &RunOptions::default());
        addresses.push((
            recorded.program.row_losses(recorded.loss).unwrap().as_ptr() as usize,
            network.parameters.gradient(network.tokens).unwrap().unwrap().as_ptr() as usize,
        ));
    }
    assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn inference_gives_the_losses_of_training_without_dropout_and_touches_no_gradient() {
    let mut network = Network::new(&[]);
    let batch = batch(TRAIN);
    let trained = network.record(device(), TRAIN).run(&mut network.parameters, &batch, &RunOptions::default());
    let how = How { mode: Mode::Inference, dropout: 0.5, ..TRAIN };
    let mut recorded = network.record(device(), how);
    let evaluated = recorded.run(&mut network.parameters, &batch, &RunOptions::default());
    assert_close("loss", &[evaluated as f32], &[trained], 1e-6, 0.0);
    assert!(network.gradients().iter().flatten().flatten().all(|value| value.is_nan()), "still the poison");
}

#[test]
fn frozen_parameters_have_no_gradient_and_leave_those_of_others_as_they_are() {
    let batch = batch(TRAIN);
    let run = |frozen: &[&str]| {
        let mut network = Network::new(frozen);
        network.record(device(), TRAIN).run(&mut network.parameters, &batch, &RunOptions::default());
        network
    };
    let all = run(&[]);
    for frozen in [&["0."][..], &["tokens"], &["tokens", "0."], &["1."]] {
        let some = run(frozen);
        assert!(some.parameters.bytes().1 < all.parameters.bytes().1, "less gradient memory");
        for ((id, free), partly) in some.parameters.ids().zip(all.gradients()).zip(some.gradients()) {
            let specification = some.parameters.specification(id);
            let expected = free.filter(|_| specification.trainable);
            assert_eq!(bits(&[partly]), bits(&[expected]), "{} with {frozen:?} frozen", specification.name);
        }
    }
}

/// Where everything below a layer is frozen, the backward pass ends there.
#[test]
fn the_backward_pass_does_no_work_below_the_lowest_trainable_parameter() {
    let steps = |frozen: &[&str]| {
        let network = Network::new(frozen);
        let recorded = network.record(device(), TRAIN);
        let is_backward = |step: &&plan::Step| step.direction == plan::Direction::Backward;
        let memory = recorded.program.memory();
        (recorded.program.steps.iter().filter(is_backward).count(), memory.activations)
    };
    let ((all, all_bytes), (upper, upper_bytes)) = (steps(&[]), steps(&["tokens", "0."]));
    // Embedding, qkv, attention, projection, residual and ffn of the lower block.
    assert_eq!(all - upper, 6, "of {all} steps");
    assert!(upper_bytes < all_bytes, "{upper_bytes} of {all_bytes} bytes kept");
}

#[test]
fn a_network_that_is_frozen_altogether_still_gives_its_loss() {
    let batch = batch(TRAIN);
    let mut free = Network::new(&[]);
    let expected = free.record(device(), TRAIN).run(&mut free.parameters, &batch, &RunOptions::default());
    let mut frozen = Network::new(&["tokens", "0.", "1."]);
    let loss = frozen.record(device(), TRAIN).run(&mut frozen.parameters, &batch, &RunOptions::default());
    assert_close("loss", &[loss as f32], &[expected], 1e-6, 0.0);
    assert_eq!(frozen.parameters.bytes().1, 0);
}

#[test]
fn accumulated_micro_batches_give_the_gradient_of_the_whole_batch() {
    let whole = How { batch: 6, ..TRAIN };
    let batch = batch(whole);
    let mut network = Network::new(&[]);
    network.record(device(), whole).run(&mut network.parameters, &batch, &RunOptions::default());
    let expected = network.gradients();
    let half = How { batch: 3, ..TRAIN };
    let mut recorded = network.record(device(), half);
    let (ids, targets) = batch.split_at(batch.len() / 2);
    for micro in 0..2 {
        let size = half.batch * half.time;
        let part = [&ids[micro * size..][..size], &targets[micro * size..][..size]].concat();
        let options = RunOptions { accumulate: micro > 0, loss_factor: 0.5, ..RunOptions::default() };
        recorded.run(&mut network.parameters, &part, &options);
    }
    for (found, expected) in network.gradients().iter().flatten().zip(expected.iter().flatten()) {
        assert_close("gradient", found, &double(expected), 2e-6, 0.0);
    }
}

/// Micro-batches of different lengths: what each is divided by is the weight of all of them.
#[test]
fn accumulation_by_rows_gives_the_gradient_of_the_whole_batch_however_it_is_cut() {
    let whole = How { batch: 6, ..TRAIN };
    let mut batch = batch(whole);
    let rows = batch.len() / 2;
    batch[rows..rows + 14].fill(IGNORED);
    let mut network = Network::new(&[]);
    network.record(device(), whole).run(&mut network.parameters, &batch, &RunOptions::default());
    let expected = network.gradients();
    let (ids, targets) = batch.split_at(rows);
    let mut start = 0;
    for sequences in [4, 2] {
        let mut recorded = network.record(device(), How { batch: sequences, ..TRAIN });
        let weight = recorded.program.weigh(recorded.loss, Targets::Ids(targets));
        assert_eq!(weight, rows as f64 - 14.0);
        let range = start..start + sequences * TRAIN.time;
        let part = [&ids[range.clone()], &targets[range.clone()]].concat();
        let loss_weights = vec![(recorded.loss, weight)];
        let options = RunOptions { accumulate: start > 0, loss_weights, ..RunOptions::default() };
        recorded.run(&mut network.parameters, &part, &options);
        start = range.end;
    }
    for (found, expected) in network.gradients().iter().flatten().zip(expected.iter().flatten()) {
        assert_close("gradient", found, &double(expected), 2e-6, 0.0);
    }
}

#[test]
fn constants_are_there_in_every_run_and_weights_of_classes_are_checked() {
    let network = Network::new(&[]);
    let mut tape = Tape::new(device(), &network.parameters, Mode::Training);
    let (logits, targets) = (tape.input_with_gradient("logits", &[2, 3]), tape.input_ids("targets", &[2]));
    for (weights, part) in [(&[1.0, 2.0][..], "2 weights for 3 classes"), (&[1.0, -2.0, f32::NAN], "class 1 is -2")] {
        let error = tape.softmax_cross_entropy_weighted(logits, targets, 0.0, weights).unwrap_err().to_string();
        assert!(error.starts_with("softmax_cross_entropy") && error.contains(part), "{error}");
    }
    let loss = tape.softmax_cross_entropy_weighted(logits, targets, 0.0, &[1.0, 2.0, 4.0]).unwrap();
    assert!(tape.scale_loss(loss, f64::NAN).is_err());
    let mut program = tape.finish().unwrap();
    let mut parameters = network.parameters;
    for _ in 0..2 {
        program.write(logits, &[0.0; 6]).unwrap();
        program.write_ids(targets, &[2, 0]).unwrap();
        program.run(&mut parameters, &RunOptions::default()).unwrap();
        assert_close("losses", &program.row_losses(loss).unwrap(), &[4.0 * 3f64.ln(), 3f64.ln()], 1e-6, 0.0);
        assert_close("mean", &[program.mean_loss(loss).unwrap().unwrap() as f32], &[3f64.ln()], 1e-6, 0.0);
    }
}

#[test]
fn a_loss_overwrites_its_logits_unless_they_are_kept() {
    let specification = Specification::new("weight", &[VOCABULARY, CHANNELS], Initial::Normal(0.5));
    let mut parameters = Parameters::new(&device(), vec![specification], 1).unwrap();
    let weight = parameters.find("weight").unwrap();
    let mut random = Random::fresh();
    let (data, mut targets_data) = (random.normal(50 * CHANNELS), vec![2; 50]);
    targets_data[7] = IGNORED;
    let mut run = |keeps: bool| {
        let mut tape = Tape::new(device(), &parameters, Mode::Training);
        let (input, targets) = (tape.input("input", &[50, CHANNELS]), tape.input_ids("targets", &[50]));
        let logits = tape.linear(input, weight, None, Activation::Identity, None).unwrap();
        if keeps {
            tape.keep(logits);
        }
        let loss = tape.softmax_cross_entropy(logits, targets, 0.0).unwrap();
        let mut program = tape.finish().unwrap();
        program.poison();
        parameters.poison_gradients();
        program.write(input, &data).unwrap();
        program.write_ids(targets, &targets_data).unwrap();
        program.run(&mut parameters, &RunOptions::default()).unwrap();
        assert_eq!(program.row_losses(loss).unwrap()[7], 0.0, "an ignored row has no loss");
        let kept = keeps.then(|| program.read(logits).unwrap().to_vec());
        (program.memory().arena, parameters.gradient(weight).unwrap().unwrap().to_vec(), kept)
    };
    let ((small, gradient, _), (large, same_gradient, kept)) = (run(false), run(true));
    assert!(small + 50 * VOCABULARY * 4 <= large, "in place: {small} of {large} bytes");
    assert_eq!(gradient, same_gradient);
    let product = crate::ops::linear::reference::forward(
        &crate::ops::linear::Shape { rows: 50, inputs: CHANNELS, outputs: VOCABULARY },
        Activation::Identity,
        &double(&data),
        &double(&parameters.values(weight).unwrap()),
        None,
        None,
    );
    assert_close("kept logits", &kept.unwrap(), &product.1, 1e-6, 0.0);
}

#[test]
fn an_operation_without_a_backward_pass_is_refused_by_name() {
    let network = Network::new(&[]);
    let mut tape = Tape::new(device(), &network.parameters, Mode::Training);
    let qkv = tape.input("qkv", &[1, 1, 3 * CHANNELS]);
    let options = AttentionOptions { heads: 2, key_value_heads: 2, mask: Mask::Causal, dropout: 0.0 };
    let cache = Cache::new(&device(), 1, 4, CHANNELS).unwrap();
    let error = tape.attention_cached(qkv, &options, &cache, None).unwrap_err().to_string();
    assert_eq!(error, "attention_cached has no backward pass, so it cannot be recorded for training");
    let error = tape.rows(qkv, 0, 1).unwrap_err().to_string();
    assert!(error.starts_with("rows has no backward pass"), "{error}");
    assert!(matches!(tape.finish(), Err(Error::NoLoss)));
}

#[test]
fn shapes_that_do_not_fit_are_refused_as_they_are_recorded() {
    let network = Network::new(&[]);
    let mut tape = Tape::new(device(), &network.parameters, Mode::Training);
    let (input, ids) = (tape.input("input", &[4, CHANNELS + 1]), tape.input_ids("ids", &[4]));
    let [qkv, ..] = network.blocks[0];
    let message = |result: Result<Value, Error>| result.unwrap_err().to_string();
    let linear = message(tape.linear(input, qkv, None, Activation::Identity, None));
    assert!(linear.contains("linear: parameter 0.qkv is [24, 8], expected [24, 9]"), "{linear}");
    assert!(message(tape.embedding(ids, network.tokens, EmbeddingInputs::default())).contains("(batch, time)"));
    assert!(message(tape.add(input, ids)).contains("ids is [4], expected [4, 9]"));
    let options = AttentionOptions { heads: 2, key_value_heads: 2, mask: Mask::Causal, dropout: 0.0 };
    assert!(
        message(tape.attention(input, &options, AttentionInputs::default())).contains("attention: input is [4, 9]")
    );
    assert!(message(tape.dropout(input, 1.0, None)).contains("probability 1 is not in 0..1"));
}

#[test]
fn sizes_beyond_all_memory_are_refused_without_overflow() {
    let network = Network::new(&[]);
    let mut tape = Tape::new(device(), &network.parameters, Mode::Training);
    let [qkv, _, weight_in, weight_out] = network.blocks[0];
    for rows in [1 << 45, 1 << 60, usize::MAX] {
        let input = tape.input("input", &[rows, CHANNELS]);
        let linear = tape.linear(input, qkv, None, Activation::Identity, None);
        assert!(matches!(linear, Err(Error::TooLarge { .. })), "{linear:?}");
        let parameters = FfnParameters::plain(weight_in, weight_out);
        let ffn = tape.ffn(input, parameters, Activation::GeluTanh, None, true);
        assert!(matches!(ffn, Err(Error::TooLarge { .. })), "{ffn:?}");
    }
    // An input that fits, of an operation whose result does not.
    let ids = tape.input_ids("ids", &[1 << 20, 1 << 22]);
    let embedded = tape.embedding(ids, network.tokens, EmbeddingInputs::default()).unwrap_err().to_string();
    assert!(embedded.contains("larger than any memory"), "{embedded}");
    let mut tape = Tape::new(device(), &network.parameters, Mode::Inference);
    tape.input("input", &[usize::MAX, 2]);
    assert!(matches!(tape.measure(), Err(Error::TooLarge { .. })));
}

#[test]
fn the_first_tensor_that_is_not_finite_is_named() {
    let batch = batch(TRAIN);
    let find = |change: &dyn Fn(&mut Network)| {
        let mut network = Network::new(&[]);
        change(&mut network);
        let mut recorded = network.record(device(), TRAIN);
        recorded.program.poison();
        let (ids, targets) = batch.split_at(batch.len() / 2);
        recorded.program.write_ids(recorded.ids, ids).unwrap();
        recorded.program.write_ids(recorded.targets, targets).unwrap();
        recorded.program.find_non_finite(&mut network.parameters, &RunOptions::default()).unwrap()
    };
    assert_eq!(find(&|_| ()), None);
    let found =
        find(&|network| network.parameters.modify(network.blocks[1][0], |values| values[3] = f32::NAN).unwrap())
            .unwrap();
    assert_eq!((found.tensor.as_str(), found.index), ("1.qkv", 3), "a parameter");
    assert!(found.value.is_nan());
    // Finite itself, but its product overflows.
    let found =
        find(&|network| network.parameters.modify(network.blocks[1][2], |values| values.fill(3e38)).unwrap()).unwrap();
    assert!(found.tensor.starts_with("1."), "{found:?}");
    let found =
        find(&|network| network.parameters.modify(network.tokens, |values| values.fill(1e30)).unwrap()).unwrap();
    assert!(found.tensor.starts_with("0."), "{found:?}");
}

#[test]
fn a_row_that_sees_no_key_is_not_taken_for_a_fault() {
    let parameters = Parameters::new(&device(), Vec::new(), 0).unwrap();
    let mut tape = Tape::new(device(), &parameters, Mode::Training);
    let qkv = tape.input_with_gradient("qkv", &[2, 3, 3 * 8]);
    let lengths = tape.input_ids("lengths", &[2]);
    let options = AttentionOptions { heads: 2, key_value_heads: 2, mask: Mask::Full, dropout: 0.0 };
    let inputs = AttentionInputs { key_lengths: Some(lengths), ..AttentionInputs::default() };
    let mixed = tape.attention(qkv, &options, inputs).unwrap();
    let targets = tape.input_ids("targets", &[2, 3]);
    tape.softmax_cross_entropy(mixed, targets, 0.0).unwrap();
    let mut program = tape.finish().unwrap();
    let mut parameters = parameters;
    let mut find = |length: i32, value: f32| {
        program.write(qkv, &vec![value; 2 * 3 * 3 * 8]).unwrap();
        program.write_ids(lengths, &[3, length]).unwrap();
        program.write_ids(targets, &[1; 6]).unwrap();
        program.find_non_finite(&mut parameters, &RunOptions::default()).unwrap()
    };
    assert_eq!(find(2, 0.5), None);
    assert_eq!(find(0, 0.5), None, "its log-sum-exp is minus infinity");
    assert!(find(0, f32::NAN).is_some());
}

#[test]
fn ids_outside_their_table_are_an_error_of_the_run() {
    let mut network = Network::new(&[]);
    let mut recorded = network.record(device(), TRAIN);
    for bad in [-1, VOCABULARY as i32, i32::MAX] {
        let size = TRAIN.batch * TRAIN.time;
        let mut ids = vec![1; size];
        ids[5] = bad;
        recorded.program.write_ids(recorded.ids, &ids).unwrap();
        recorded.program.write_ids(recorded.targets, &vec![1; size]).unwrap();
        let error = recorded.program.run(&mut network.parameters, &RunOptions::default()).unwrap_err().to_string();
        assert!(error.contains("embedding") && error.contains(&bad.to_string()), "{error}");
        recorded.program.write_ids(recorded.ids, &vec![1; size]).unwrap();
        recorded.program.write_ids(recorded.targets, &ids).unwrap();
        let error = recorded.program.run(&mut network.parameters, &RunOptions::default()).unwrap_err().to_string();
        assert!(error.contains("linear_cross_entropy") && error.contains(&bad.to_string()), "{error}");
    }
}

/// An input that no loss depends on has no gradient, and one with a gradient lets it through frozen layers.
#[test]
fn gradients_of_inputs_are_there_where_a_loss_depends_on_them() {
    let network = Network::new(&["tokens", "0.", "1."]);
    let mut tape = Tape::new(device(), &network.parameters, Mode::Training);
    let (used, unused) =
        (tape.input_with_gradient("used", &[4, CHANNELS]), tape.input_with_gradient("unused", &[4, CHANNELS]));
    let targets = tape.input_ids("targets", &[4]);
    let hidden = tape.linear(used, network.blocks[0][1], None, Activation::Relu, Some(used)).unwrap();
    let logits = tape.linear(hidden, network.tokens, None, Activation::Identity, None).unwrap();
    tape.softmax_cross_entropy(logits, targets, 0.0).unwrap();
    let mut program = tape.finish().unwrap();
    program.poison();
    program.write(used, &Random::fresh().normal(4 * CHANNELS)).unwrap();
    program.write_ids(targets, &[0, 1, 2, 3]).unwrap();
    let mut parameters = network.parameters;
    program.run(&mut parameters, &RunOptions::default()).unwrap();
    let gradient = program.gradient(used).unwrap().unwrap();
    assert!(gradient.iter().all(|value| value.is_finite()) && gradient.iter().any(|&value| value != 0.0));
    assert!(program.gradient(unused).unwrap().is_none());
}
