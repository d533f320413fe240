//! An adapted network against the same network with its adapters merged: results, and gradients by the chain rule.

use super::*;
use crate::cpu::Cpu;
use crate::ops::Device;
use crate::ops::testing::{Random, assert_close, double};
use crate::tape::{Mode, Program, RunOptions};
use std::sync::Arc;

/// Few enough that no layer is merged, and enough that each is.
const ROWS: [usize; 2] = [3, 40];
const CHANNELS: usize = 12;
const HIDDEN: usize = 20;
const CLASSES: usize = 5;
const OPTIONS: LoraOptions = LoraOptions { rank: 3, alpha: 6.0, dropout: 0.0, up_learning_rate_factor: 4.0 };

/// A network of an FFN and an output projection.
struct Network {
    parameters: Parameters,
    activation: Activation,
    layers: [Adapted; 3],
}

struct Recorded {
    program: Program,
    input: Value,
    targets: Value,
}

impl Network {
    /// With the layers adapted whose names `adapts` chooses; adapters hold random values instead of zeros.
    fn new(activation: Activation, adapts: impl Fn(&str) -> bool) -> Self {
        Self::with(OPTIONS, activation, adapts)
    }

    fn with(options: LoraOptions, activation: Activation, adapts: impl Fn(&str) -> bool) -> Self {
        let device = Arc::new(Device::Cpu(Cpu::new().unwrap()));
        let matrix = |name: &str, shape: [usize; 2]| {
            let bias = Specification::new(format!("{name}.bias"), &shape[..1], Initial::Normal(0.3));
            [Specification::new(format!("{name}.weight"), &shape, Initial::Normal(0.3)), bias]
        };
        let mut list: Vec<Specification> = [
            matrix("up", [HIDDEN * activation.width(), CHANNELS]),
            matrix("down", [CHANNELS, HIDDEN]),
            matrix("head", [CLASSES, CHANNELS]),
        ]
        .into_iter()
        .flatten()
        .collect();
        Adapter::attach(&mut list, &options, adapts);
        let mut parameters = Parameters::new(&device, list, 5).unwrap();
        let layer = |name: &str| Adapted::find(&parameters, Affine::find(&parameters, name), &options);
        let layers = ["up", "down", "head"].map(layer);
        for (index, adapter) in layers.iter().enumerate().filter_map(|(i, l)| Some((i, l.adapter?))) {
            let fill = |value: &mut [f32]| {
                value.iter_mut().enumerate().for_each(|(i, v)| *v = ((i * 7 + index) as f32 * 0.61).sin() * 0.4);
            };
            parameters.modify(adapter.up, fill).unwrap();
        }
        Self { parameters, activation, layers }
    }

    fn record(&self, mode: Mode, rows: usize, differentiates_input: bool, recomputes_hidden: bool) -> Recorded {
        let device = Arc::new(Device::Cpu(Cpu::new().unwrap()));
        let mut tape = Tape::new(device, &self.parameters, mode);
        let shape = [rows, CHANNELS];
        let input =
            if differentiates_input { tape.input_with_gradient("input", &shape) } else { tape.input("input", &shape) };
        let targets = tape.input_ids("targets", &[rows]);
        let [up, down, head] = &self.layers;
        let hidden = record_ffn(&mut tape, input, up, down, self.activation, Some(input), recomputes_hidden).unwrap();
        let logits = record_linear(&mut tape, hidden, head, Activation::Tanh, None).unwrap();
        tape.softmax_cross_entropy(logits, targets, 0.0).unwrap();
        Recorded { program: tape.finish().unwrap(), input, targets }
    }

    fn run_recorded(&mut self, recorded: &mut Recorded, data: &[f32]) -> f64 {
        let Recorded { program, input, targets } = recorded;
        let rows = data.len() / CHANNELS;
        program.write(*input, data).unwrap();
        program.write_ids(*targets, &(0..rows).map(|row| (row * 3 % CLASSES) as i32).collect::<Vec<_>>()).unwrap();
        program.run(&mut self.parameters, &RunOptions::default()).unwrap();
        program.total_loss().unwrap()
    }

    /// Loss and gradient of the input, for this input.
    fn run(&mut self, data: &[f32]) -> (f64, Vec<f32>) {
        let mut recorded = self.record(Mode::Training, data.len() / CHANNELS, true, false);
        let loss = self.run_recorded(&mut recorded, data);
        (loss, recorded.program.gradient(recorded.input).unwrap().unwrap().into_owned())
    }

    /// Sets all B to zero.
    fn clear(&mut self) {
        for adapter in self.layers.iter().filter_map(|layer| layer.adapter) {
            self.parameters.modify(adapter.up, |values| values.fill(0.0)).unwrap();
        }
    }

    fn values(&self, id: ParameterId) -> Vec<f32> {
        self.parameters.values(id).unwrap().into_owned()
    }

    fn gradient(&self, id: ParameterId) -> Vec<f32> {
        self.parameters.gradient(id).unwrap().expect("a trainable parameter").into_owned()
    }
}

/// `left (rows, depth) · right (depth, columns) · scale`, in f64.
fn product(left: &[f64], right: &[f64], depth: usize, scale: f64) -> Vec<f64> {
    let columns = right.len() / depth;
    let element = |row: &[f64], column: usize| -> f64 {
        scale * row.iter().enumerate().map(|(k, value)| value * right[k * columns + column]).sum::<f64>()
    };
    left.chunks(depth).flat_map(|row| (0..columns).map(move |column| element(row, column))).collect()
}

fn transposed(matrix: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

#[test]
fn an_adapter_that_starts_at_zero_changes_nothing() {
    for rows in ROWS {
        let data = Random::fresh().normal(rows * CHANNELS);
        let mut plain = Network::new(Activation::GeluErf, |_| false);
        let mut adapted = Network::new(Activation::GeluErf, |_| true);
        adapted.clear();
        for adapter in adapted.layers.map(|layer| layer.adapter.unwrap()) {
            let (bound, down) = (1.0 / (CHANNELS as f32).sqrt(), adapted.values(adapter.down));
            assert!(down.iter().all(|a| a.abs() <= bound) && down.iter().any(|a| a.abs() > 0.5 * bound));
        }
        let ((plain, plain_gradient), (adapted, gradient)) = (plain.run(&data), adapted.run(&data));
        assert_close("loss", &[adapted as f32], &[plain], 1e-6, 0.0);
        assert_close("gradient of the input", &gradient, &double(&plain_gradient), 1e-6, 0.0);
    }
}

/// dA = s · Bᵀ · dW and dB = s · dW · Aᵀ, where dW is the gradient of the merged weight.
#[test]
fn results_and_gradients_are_those_of_the_merged_weight() {
    let mut random = Random::fresh();
    for (rows, activation) in ROWS.into_iter().flat_map(|rows| {
        [Activation::GeluErf, Activation::Relu, Activation::SwiGlu, Activation::Identity].map(|each| (rows, each))
    }) {
        let data = random.normal(rows * CHANNELS);
        let mut adapted = Network::new(activation, |name| name != "head.weight");
        let mut merged = Network::new(activation, |_| false);
        for (with, without) in adapted.layers.into_iter().zip(merged.layers) {
            // Merged into the weight of a network that has no adapters.
            if let Some(adapter) = with.adapter {
                adapter.merge(&mut adapted.parameters, with.layer.weight).unwrap();
            }
            let values = adapted.values(with.layer.weight);
            merged.parameters.set_values(without.layer.weight, &values).unwrap();
            if let Some(adapter) = with.adapter {
                adapter.unmerge(&mut adapted.parameters, with.layer.weight).unwrap();
            }
        }
        let ((loss, gradient), (expected, expected_gradient)) = (adapted.run(&data), merged.run(&data));
        let name = |what: &str| format!("{rows} rows, {activation:?}: {what}");
        assert_close(&name("loss"), &[loss as f32], &[expected], 1e-6, 0.0);
        assert_close(&name("input"), &gradient, &double(&expected_gradient), 1e-5, 1e-7);
        for (with, without) in adapted.layers.into_iter().zip(merged.layers) {
            let Some(adapter) = with.adapter else { continue };
            assert!(adapted.parameters.gradient(with.layer.weight).unwrap().is_none(), "the weight is frozen");
            let (a, b) = (double(&adapted.values(adapter.down)), double(&adapted.values(adapter.up)));
            let grad_weight = double(&merged.gradient(without.layer.weight));
            let inputs = adapted.parameters.shape(with.layer.weight)[1];
            let scale = f64::from(adapter.scale);
            let grad_down = product(&transposed(&b, OPTIONS.rank), &grad_weight, grad_weight.len() / inputs, scale);
            let grad_up = product(&grad_weight, &transposed(&a, inputs), inputs, scale);
            assert_close(&name("A"), &adapted.gradient(adapter.down), &grad_down, 1e-5, 1e-7);
            assert_close(&name("B"), &adapted.gradient(adapter.up), &grad_up, 1e-5, 1e-7);
        }
    }
}

/// Of the first block of a frozen model nobody asks for the gradient of the input; a recomputed hidden layer has to be there
/// for the adapter alone.
#[test]
fn adapters_learn_the_same_without_a_gradient_of_the_input_and_with_a_recomputed_hidden_layer() {
    for (rows, activation) in
        ROWS.into_iter().flat_map(|rows| [(rows, Activation::GeluErf), (rows, Activation::SwiGlu)])
    {
        let data = Random::fresh().normal(rows * CHANNELS);
        let mut network = Network::new(activation, |_| true);
        let found = [(true, false), (false, false), (true, true), (false, true)].map(|(differentiates, recomputes)| {
            let mut recorded = network.record(Mode::Training, rows, differentiates, recomputes);
            let loss = network.run_recorded(&mut recorded, &data);
            let adapters = network.layers.map(|layer| layer.adapter.unwrap());
            (loss, adapters.map(|adapter| [adapter.down, adapter.up].map(|id| network.gradient(id))))
        });
        assert!(found.iter().all(|each| *each == found[0]), "{rows} rows, {activation:?}: bits differ");
    }
}

#[test]
fn dropout_is_for_the_adapters_input_and_for_training_alone() {
    let options = LoraOptions { dropout: 0.5, ..OPTIONS };
    for rows in ROWS {
        let data = Random::fresh().normal(rows * CHANNELS);
        let [mut kept, mut dropped] =
            [OPTIONS, options].map(|options| Network::with(options, Activation::GeluErf, |_| true));
        let difference = |kept: &mut Network, dropped: &mut Network, mode| {
            let [kept, dropped] = [kept, dropped].map(|network| {
                let mut recorded = network.record(mode, rows, false, false);
                network.run_recorded(&mut recorded, &data)
            });
            (kept - dropped).abs() / kept
        };
        assert!(difference(&mut kept, &mut dropped, Mode::Training) > 1e-3, "{rows} rows: the adapter sees it");
        let in_use = difference(&mut kept, &mut dropped, Mode::Inference);
        assert!(in_use < 1e-6, "{rows} rows: not in use, where it is {in_use}");
        kept.clear();
        dropped.clear();
        let frozen = difference(&mut kept, &mut dropped, Mode::Training);
        assert!(frozen < 1e-6, "{rows} rows: not the frozen layer, where it is {frozen}");
    }
}

#[test]
fn what_was_merged_can_be_taken_out_again() {
    let mut network = Network::new(Activation::GeluErf, |_| true);
    for layer in network.layers {
        let (weight, adapter) = (layer.layer.weight, layer.adapter.unwrap());
        let before = network.values(weight);
        adapter.merge(&mut network.parameters, weight).unwrap();
        let merged = network.values(weight);
        let change = merged.iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(change > 0.1, "it changes the weight: by {change}");
        adapter.unmerge(&mut network.parameters, weight).unwrap();
        assert_close("unmerged", &network.values(weight), &double(&before), 0.0, 1e-6);
    }
}

#[test]
fn only_adapters_and_what_is_not_adapted_train() {
    let network = Network::new(Activation::GeluErf, |name| name.ends_with("up.weight"));
    let trainable: Vec<&str> = network
        .parameters
        .ids()
        .map(|id| network.parameters.specification(id))
        .filter(|specification| specification.trainable)
        .map(|specification| specification.name.as_str())
        .collect();
    let expected =
        ["up.bias", "down.weight", "down.bias", "head.weight", "head.bias", "up.lora_a.weight", "up.lora_b.weight"];
    assert_eq!(trainable, expected);
    let factor =
        |name: &str| network.parameters.specification(network.parameters.find(name).unwrap()).learning_rate_factor;
    assert_eq!((factor("up.lora_a.weight"), factor("up.lora_b.weight")), (1.0, 4.0));
    assert!(network.layers[1].adapter.is_none());
    assert_eq!(network.layers[0].adapter.unwrap().scale, 2.0);
}
