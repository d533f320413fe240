//! Every choice that a model can be made of trains, on the CPU and by the GPU kernels in the emulator alike, and decodes
//! from a cache what a pass over the whole sequence gives.

use engine::cpu::Cpu;
use engine::driver::{DeviceFacts, Emulated};
use engine::gpu::Gpu;
use engine::model::config::{Architecture, Convolution, Heads, LanguageHead, Norm, NormPlace, Pooling, Positions};
use engine::model::generate::Generator;
use engine::model::image::ImageInput;
use engine::model::transformer::Inputs;
use engine::model::{ModelConfig, Transformer};
use engine::ops::Device;
use engine::ops::linear::Activation;
use engine::tape::{Mode, Parameters, RunOptions, Tape};
use engine::train::config;
use engine::train::optimizer::Optimizer;
use std::sync::Arc;

const BATCH: usize = 2;
const TIME: usize = 11;
const STEPS: usize = 20;
/// Most that the loss of a step may differ between the devices, relative to it.
const TOLERANCE: f64 = 1e-4;

/// A decoder of odd sizes.
fn decoder() -> ModelConfig {
    ModelConfig {
        vocabulary: 23,
        block: 16,
        channels: 12,
        layers: 2,
        heads: 2,
        kv_heads: 2,
        ffn: 10,
        embedding_dropout: 0.0,
        attention_dropout: 0.0,
        residual_dropout: 0.0,
        initializer_range: 0.2,
        bos: None,
        eos: None,
        ..ModelConfig::gpt2()
    }
}

/// A BERT of those sizes, with kinds of tokens and the head of a masked language model.
fn encoder() -> ModelConfig {
    let usual = ModelConfig::bert();
    ModelConfig {
        architecture: Architecture::Encoder,
        norm_place: usual.norm_place,
        norm_epsilon: usual.norm_epsilon,
        activation: usual.activation,
        token_types: usual.token_types,
        embedding_norm: usual.embedding_norm,
        predictions: usual.predictions,
        ..decoder()
    }
}

/// An encoder and a decoder of those sizes.
fn encoder_decoder() -> ModelConfig {
    ModelConfig { architecture: Architecture::EncoderDecoder, ..decoder() }
}

/// A model for each choice, all others as usual; and some choices together.
fn choices() -> Vec<(&'static str, ModelConfig)> {
    let relative = Positions::Relative { buckets: 8, max_distance: 9 };
    let rotary = Positions::Rotary { theta: 100.0 };
    let llama = ModelConfig {
        norm: Norm::Rms,
        activation: Activation::SwiGlu,
        positions: rotary,
        biases: false,
        tied: false,
        heads: 6,
        kv_heads: 2,
        ..decoder()
    };
    vec![
        ("GPT-2", decoder()),
        ("post-norm", ModelConfig { norm_place: NormPlace::Post, ..decoder() }),
        ("RMS norm", ModelConfig { norm: Norm::Rms, ..decoder() }),
        ("RMS post-norm", ModelConfig { norm: Norm::Rms, norm_place: NormPlace::Post, ..decoder() }),
        ("norm of the embeddings", ModelConfig { embedding_norm: true, ..decoder() }),
        ("ReLU", ModelConfig { activation: Activation::Relu, ..decoder() }),
        ("GELU", ModelConfig { activation: Activation::GeluErf, ..decoder() }),
        ("SwiGLU", ModelConfig { activation: Activation::SwiGlu, ..decoder() }),
        ("sinusoidal positions", ModelConfig { positions: Positions::Sinusoidal, ..decoder() }),
        ("rotary positions", ModelConfig { positions: rotary, ..decoder() }),
        ("ALiBi", ModelConfig { positions: Positions::Alibi, ..decoder() }),
        ("relative positions", ModelConfig { positions: relative, ..decoder() }),
        ("no positions", ModelConfig { positions: Positions::None, ..decoder() }),
        ("a head of its own", ModelConfig { tied: false, ..decoder() }),
        ("a head with a transform", {
            let mut config = decoder();
            config.predictions.language = Some(LanguageHead { transform: true });
            config
        }),
        ("one key/value head", ModelConfig { heads: 3, kv_heads: 1, ..decoder() }),
        ("no biases", ModelConfig { biases: false, ..decoder() }),
        ("Llama", llama),
        ("BERT", encoder()),
        ("encoder with pre-norm and sinusoids", {
            ModelConfig { norm_place: NormPlace::Pre, positions: Positions::Sinusoidal, tied: false, ..encoder() }
        }),
        ("encoder with relative positions", ModelConfig { positions: relative, kv_heads: 1, ..encoder() }),
        ("encoder with ALiBi", ModelConfig { positions: Positions::Alibi, ..encoder() }),
        ("encoder with rotary positions", ModelConfig { positions: rotary, norm: Norm::Rms, ..encoder() }),
        (
            "decoder with convolutions",
            ModelConfig { convolution: Some(Convolution { taps: 4, dilation: 2 }), ..decoder() },
        ),
        (
            "encoder with convolutions",
            ModelConfig { convolution: Some(Convolution { taps: 5, dilation: 1 }), ..encoder() },
        ),
        ("encoder-decoder", encoder_decoder()),
        (
            "encoder-decoder with post-norm",
            ModelConfig { norm_place: NormPlace::Post, tied: false, ..encoder_decoder() },
        ),
        ("T5", {
            ModelConfig {
                positions: relative,
                norm: Norm::Rms,
                activation: Activation::Relu,
                biases: false,
                kv_heads: 1,
                ..encoder_decoder()
            }
        }),
        ("encoder-decoder with convolutions", {
            ModelConfig { convolution: Some(Convolution { taps: 3, dilation: 1 }), ..encoder_decoder() }
        }),
    ]
}

fn cpu() -> Arc<Device> {
    Arc::new(Device::Cpu(Cpu::new().unwrap()))
}

fn emulator() -> Arc<Device> {
    let driver = Emulated::new(DeviceFacts::default());
    Arc::new(Device::Gpu(Gpu::new(Box::new(driver)).expect("the driver makes streams")))
}

/// Ids that look random but are the same every time.
fn ids(count: usize, vocabulary: usize) -> Vec<i32> {
    (0..count).map(|i| ((i * i * 7 + i * 13 + 5) % vocabulary) as i32).collect()
}

/// The loss before each of the steps. Rows hold two documents each, of 4 and 6 tokens, and a place of padding.
fn train(device: &Arc<Device>, config: &ModelConfig) -> Vec<f64> {
    let settings = config::Optimizer { learning_rate: 3e-3, ..Default::default() };
    let (model, mut parameters) = Transformer::new(device, config.clone(), 7).unwrap();
    let mut optimizer = Optimizer::new(device, &settings, &parameters).unwrap();
    let mut tape = Tape::new(Arc::clone(device), &parameters, Mode::Training);
    let size = [BATCH, TIME];
    let (id_values, targets) = (tape.input_ids("ids", &size), tape.input_ids("targets", &size));
    let documents = tape.input_ids("documents", &[BATCH, TIME, 2]);
    let positions = tape.input_ids("positions", &size);
    let types = (config.token_types > 0).then(|| tape.input_ids("types", &size));
    let inputs = Inputs {
        position_ids: Some(positions),
        type_ids: types,
        documents: Some(documents),
        ..Inputs::rows(id_values)
    };
    // An encoder-decoder translates each row to what follows it; sources are of different lengths.
    let apart = (config.architecture == Architecture::EncoderDecoder).then(|| tape.input_ids("lengths", &[BATCH]));
    let trunk = match apart {
        Some(lengths) => {
            let target = Inputs::rows(id_values);
            let source = Inputs { position_ids: None, ..inputs };
            model.record_translation_trunk(&mut tape, &source, lengths, &target, false).unwrap()
        }
        None => model.record_trunk(&mut tape, &inputs, false).unwrap(),
    };
    let loss = model.record_token_loss(&mut tape, trunk, targets, 0.0, None).unwrap();
    let mut program = tape.finish().unwrap();
    let row = |at: usize| -> (i32, [i32; 2]) {
        match at {
            0..4 => (at as i32, [0, 4]),
            4..10 => (at as i32 - 4, [4, 10]),
            _ => (0, [0, 0]),
        }
    };
    let places = || (0..BATCH * TIME).map(|place| place % TIME);
    (0..STEPS)
        .map(|_| {
            let all = ids(BATCH * TIME + 1, config.vocabulary);
            program.write_ids(id_values, &all[..BATCH * TIME]).unwrap();
            program.write_ids(targets, &all[1..]).unwrap();
            if let Some(lengths) = apart {
                program.write_ids(lengths, &[10, 4]).unwrap();
            }
            program.write_ids(positions, &places().map(|at| row(at).0).collect::<Vec<i32>>()).unwrap();
            program.write_ids(documents, &places().flat_map(|at| row(at).1).collect::<Vec<i32>>()).unwrap();
            if let Some(types) = types {
                program.write_ids(types, &places().map(|at| i32::from(at % 4 > 1)).collect::<Vec<i32>>()).unwrap();
            }
            program.run(&mut parameters, &RunOptions::default()).unwrap();
            optimizer.update(device, &mut parameters, settings.learning_rate, 1.0).unwrap();
            program.mean_loss(loss).unwrap().unwrap()
        })
        .collect()
}

#[test]
fn every_choice_trains_alike_on_the_cpu_and_by_the_kernels_of_the_gpu() {
    let (cpu, emulator) = (cpu(), emulator());
    for (name, config) in choices() {
        assert_alike(name, &train(&cpu, &config), &train(&emulator, &config));
    }
}

/// Asserts that losses fall, and that they are the same on both devices.
#[track_caller]
fn assert_alike(name: &str, ours: &[f64], emulated: &[f64]) {
    let (first, last) = (ours[0], ours[STEPS - 1]);
    assert!(last < 0.9 * first, "{name}: the loss goes from {first} to {last}");
    for (step, (a, b)) in ours.iter().zip(emulated).enumerate() {
        let error = (a - b).abs() / a;
        assert!(error < TOLERANCE, "{name}, step {step}: {a} on the CPU, {b} in the emulator");
    }
}

/// The loss before each of the steps, of three images that are classified.
fn train_on_images(device: &Arc<Device>, config: &ModelConfig) -> Vec<f64> {
    let image = config.image.unwrap();
    let settings = config::Optimizer { learning_rate: 3e-3, ..Default::default() };
    let (model, mut parameters) = Transformer::new(device, config.clone(), 7).unwrap();
    let mut optimizer = Optimizer::new(device, &settings, &parameters).unwrap();
    let mut tape = Tape::new(Arc::clone(device), &parameters, Mode::Training);
    let (rows, places) = (3, image.ids(config.pooling));
    let id_values = tape.input_ids("ids", &[rows, places.len()]);
    let patches = tape.input("patches", &[rows, places.len(), image.numbers()]);
    let trunk = model.record_trunk(&mut tape, &Inputs { patches: Some(patches), ..Inputs::rows(id_values) }, false);
    let (ranges, targets) = (tape.input_ids("ranges", &[rows, 2]), tape.input_ids("targets", &[rows]));
    let pooled = model.record_pooled(&mut tape, trunk.unwrap(), ranges).unwrap();
    let logits = model.record_class_logits(&mut tape, pooled).unwrap();
    let loss = tape.softmax_cross_entropy(logits, targets, 0.1).unwrap();
    let mut program = tape.finish().unwrap();
    let all: Vec<i32> = (0..rows).flat_map(|_| places.iter().map(|&id| id as i32)).collect();
    let pixels = ids(rows * places.len() * image.numbers(), 17);
    let pixels: Vec<f32> = pixels.into_iter().map(|pixel| pixel as f32 / 8.0 - 1.0).collect();
    let range = |row: usize| config.pooling.range(row * places.len(), (row + 1) * places.len());
    let pooled: Vec<i32> = (0..rows).flat_map(range).collect();
    (0..STEPS)
        .map(|_| {
            program.write_ids(id_values, &all).unwrap();
            program.write(patches, &pixels).unwrap();
            program.write_ids(ranges, &pooled).unwrap();
            program.write_ids(targets, &[2, 0, 1]).unwrap();
            program.run(&mut parameters, &RunOptions::default()).unwrap();
            optimizer.update(device, &mut parameters, settings.learning_rate, 1.0).unwrap();
            program.mean_loss(loss).unwrap().unwrap()
        })
        .collect()
}

#[test]
fn images_train_alike_on_the_cpu_and_by_the_kernels_of_the_gpu() {
    let (cpu, emulator) = (cpu(), emulator());
    let image = ImageInput { height: 6, width: 9, colors: 3, patch: 3, mean: 0.5, deviation: 0.5 };
    for pooling in [Pooling::First, Pooling::Mean] {
        let config = ModelConfig {
            image: Some(image),
            vocabulary: ImageInput::vocabulary(pooling),
            block: image.places(pooling),
            token_types: 0,
            pooling,
            predictions: Heads { classes: Some(["a", "b", "c"].map(String::from).to_vec()), ..Heads::default() },
            ..encoder()
        };
        assert_alike(&format!("{pooling:?}"), &train_on_images(&cpu, &config), &train_on_images(&emulator, &config));
    }
}

/// The logits that follow the last of `tokens`, by a pass over all of them.
fn full_pass(device: &Arc<Device>, model: &Transformer, parameters: &mut Parameters, tokens: &[u32]) -> Vec<f32> {
    let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Inference);
    let ids = tape.input_ids("ids", &[1, tokens.len()]);
    let logits = model.record_logits(&mut tape, ids).unwrap();
    tape.keep(logits);
    let mut program = tape.finish().unwrap();
    program.write_ids(ids, &tokens.iter().map(|&token| token as i32).collect::<Vec<i32>>()).unwrap();
    program.run(parameters, &RunOptions::default()).unwrap();
    program.read(logits).unwrap()[(tokens.len() - 1) * model.config().vocabulary..].to_vec()
}

#[test]
fn every_decoder_decodes_from_its_cache_what_a_pass_over_all_tokens_gives() {
    for device in [cpu(), emulator()] {
        for (name, config) in choices() {
            if config.architecture != Architecture::Decoder {
                continue;
            }
            let vocabulary = config.vocabulary;
            let (model, mut parameters) = Transformer::new(&device, config, 7).unwrap();
            let text: Vec<u32> = ids(14, vocabulary).into_iter().map(|id| id as u32).collect();
            // Two sequences of different lengths, side by side.
            let prompts = [text[..5].to_vec(), text[3..6].to_vec()];
            let mut generator = Generator::new(Arc::clone(&device), &model, &mut parameters, &prompts).unwrap();
            for step in 0..8 {
                for sequence in 0..2 {
                    let tokens = generator.tokens(sequence).to_vec();
                    let expected = full_pass(&device, &model, &mut parameters, &tokens);
                    let found = generator.logits(sequence);
                    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    let largest = expected.iter().map(|value| value.abs()).fold(0.0, f32::max);
                    assert!(worst <= 1e-5 * largest.max(1.0), "{name}, sequence {sequence}, step {step}: {worst:.2e}");
                }
                generator.push(&mut parameters, &[text[5 + step], text[6 + step]]).unwrap();
            }
        }
    }
}
