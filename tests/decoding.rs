//! Decoding token by token from a key/value cache computes what a pass over the whole sequence does, for each sequence
//! of a batch as if it were alone.

use engine::cpu::{Cpu, Level};
use engine::model::Transformer;
use engine::model::generate::{Generator, Sampling, first_token_read};
use engine::ops::Device;
use engine::tape::{Mode, Parameters, RunOptions, Tape};
use std::path::Path;
use std::sync::Arc;

/// The golden model: odd sizes, and a block of a few tokens, so that sliding past it is cheap to test.
fn load() -> (Transformer, Parameters) {
    Transformer::load(&best_device(), &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/gpt2_odd")).unwrap()
}

fn device(threads: usize, level: Level) -> Arc<Device> {
    Arc::new(Device::Cpu(Cpu::with(threads, level).unwrap()))
}

/// A device for each SIMD level of this machine.
fn devices() -> impl Iterator<Item = (&'static str, Arc<Device>)> {
    Level::available().into_iter().map(|level| (level.name(), device(2, level)))
}

fn best_device() -> Arc<Device> {
    device(2, Level::detect().unwrap())
}

/// Tokens that look random but are the same every time.
fn tokens(model: &Transformer, length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * i * 7 + i * 13 + seed * 31 + 5) % model.config().vocabulary) as u32).collect()
}

/// The logits after the last of `tokens`, by a pass over all of them.
fn full_pass(device: &Arc<Device>, model: &Transformer, parameters: &mut Parameters, tokens: &[u32]) -> Vec<f32> {
    let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Inference);
    let ids = tape.input_ids("ids", &[1, tokens.len()]);
    let logits = model.record_logits(&mut tape, ids).unwrap();
    tape.keep(logits);
    let mut program = tape.finish().unwrap();
    let values: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    program.write_ids(ids, &values).unwrap();
    program.run(parameters, &RunOptions::default()).unwrap();
    program.read(logits).unwrap()[(tokens.len() - 1) * model.config().vocabulary..].to_vec()
}

/// Relative in norm.
#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let error = difference / norm(&mut expected.iter().map(|&value| f64::from(value)));
    assert!(error <= 1e-5, "{what}: relative error {error:.2e}");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_step_gives_the_logits_of_a_full_pass() {
    let (model, mut parameters) = load();
    let block = model.config().block;
    for (level, device) in devices() {
        for prompt_length in [1, 2, 5, block - 1] {
            let all = tokens(&model, block, prompt_length);
            let prompt = all[..prompt_length].to_vec();
            let mut generator = Generator::new(Arc::clone(&device), &model, &mut parameters, &[prompt]).unwrap();
            for length in prompt_length..=block {
                let expected = full_pass(&device, &model, &mut parameters, &all[..length]);
                assert_close(&format!("{level}, {length} tokens"), generator.logits(0), &expected);
                if length < block {
                    generator.push(&mut parameters, &all[length..length + 1]).unwrap();
                }
            }
            assert_eq!(generator.tokens(0), all);
        }
    }
}

#[test]
fn past_the_block_a_sequence_goes_on_from_its_last_half_block() {
    let (model, mut parameters) = load();
    let block = model.config().block;
    let device = best_device();
    let all = tokens(&model, 3 * block, 1);
    let mut generator = Generator::new(Arc::clone(&device), &model, &mut parameters, &[all[..3].to_vec()]).unwrap();
    let mut start = 0;
    for length in 4..=all.len() {
        generator.push(&mut parameters, &all[length - 1..length]).unwrap();
        if length - start > block {
            start = length - 1 - block / 2;
        }
        let expected = full_pass(&device, &model, &mut parameters, &all[start..length]);
        assert_close(&format!("{length} tokens"), generator.logits(0), &expected);
    }
    assert!(start > block, "the sequence slid at least twice");
}

#[test]
fn a_prompt_longer_than_the_block_is_read_from_its_last_half_block_on() {
    let (model, mut parameters) = load();
    let block = model.config().block;
    let device = best_device();
    for length in [block, block + 1, 2 * block + 3] {
        let all = tokens(&model, length, 4);
        let start = first_token_read(length, block);
        assert_eq!(start, if length == block { 0 } else { length - block / 2 });
        let generator =
            Generator::new(Arc::clone(&device), &model, &mut parameters, std::slice::from_ref(&all)).unwrap();
        let expected = full_pass(&device, &model, &mut parameters, &all[start..]);
        assert_close(&format!("{length} tokens"), generator.logits(0), &expected);
    }
}

/// The logits of one sequence after each of `steps` tokens, alone.
fn alone(
    device: &Arc<Device>,
    model: &Transformer,
    parameters: &mut Parameters,
    all: &[u32],
    prompt_length: usize,
) -> Vec<Vec<u32>> {
    let prompt = all[..prompt_length].to_vec();
    let mut generator = Generator::new(Arc::clone(device), model, parameters, &[prompt]).unwrap();
    let mut logits = vec![bits(generator.logits(0))];
    for token in &all[prompt_length..] {
        generator.push(parameters, &[*token]).unwrap();
        logits.push(bits(generator.logits(0)));
    }
    logits
}

#[test]
fn up_to_eight_sequences_together_get_the_bits_of_each_alone() {
    let (model, mut parameters) = load();
    let steps = model.config().block + 4;
    for (level, device) in devices() {
        for batch in [2, 3, 8] {
            // Prompts of different lengths, so that the sequences reach the end of the block at different times.
            let lengths: Vec<usize> = (0..batch).map(|i| 1 + 2 * i).collect();
            let all: Vec<Vec<u32>> = (0..batch).map(|i| tokens(&model, lengths[i] + steps, i)).collect();
            let prompts: Vec<Vec<u32>> = (0..batch).map(|i| all[i][..lengths[i]].to_vec()).collect();
            let expected: Vec<Vec<Vec<u32>>> =
                (0..batch).map(|i| alone(&device, &model, &mut parameters, &all[i], lengths[i])).collect();
            let mut generator = Generator::new(Arc::clone(&device), &model, &mut parameters, &prompts).unwrap();
            for step in 0..=steps {
                for (i, expected) in expected.iter().enumerate() {
                    let found = bits(generator.logits(i));
                    assert_eq!(found, expected[step], "{level}: sequence {i} of {batch}, step {step}");
                }
                if step < steps {
                    let next: Vec<u32> = (0..batch).map(|i| all[i][lengths[i] + step]).collect();
                    generator.push(&mut parameters, &next).unwrap();
                }
            }
        }
    }
}

#[test]
fn more_than_eight_sequences_are_close_to_each_alone() {
    let (model, mut parameters) = load();
    let device = best_device();
    let batch = 11;
    let all: Vec<Vec<u32>> = (0..batch).map(|i| tokens(&model, 9, i)).collect();
    let prompts: Vec<Vec<u32>> = all.iter().enumerate().map(|(i, all)| all[..1 + i % 3].to_vec()).collect();
    let mut generator = Generator::new(Arc::clone(&device), &model, &mut parameters, &prompts).unwrap();
    for step in 0..5 {
        let next: Vec<u32> = (0..batch).map(|i| all[i][1 + i % 3 + step]).collect();
        generator.push(&mut parameters, &next).unwrap();
    }
    for (i, all) in all.iter().enumerate() {
        let expected = full_pass(&device, &model, &mut parameters, &all[..6 + i % 3]);
        assert_close(&format!("sequence {i}"), generator.logits(i), &expected);
    }
}

#[test]
fn sequences_that_leave_join_or_are_copied_do_not_disturb_the_others() {
    let (model, mut parameters) = load();
    let device = best_device();
    let texts: Vec<Vec<u32>> = (0..4).map(|i| tokens(&model, 12, i)).collect();
    let expected: Vec<Vec<Vec<u32>>> =
        texts.iter().map(|text| alone(&device, &model, &mut parameters, text, 2)).collect();
    let mut generator = Generator::with_capacity(Arc::clone(&device), &model, 3).unwrap();
    // Which text is where, and how many tokens of it are pushed.
    let mut places: Vec<(usize, usize)> = Vec::new();
    let check = |generator: &mut Generator<'_>, parameters: &mut Parameters, places: &mut Vec<(usize, usize)>| {
        for _ in 0..2 {
            let next: Vec<u32> = places.iter().map(|&(text, pushed)| texts[text][2 + pushed]).collect();
            generator.push(parameters, &next).unwrap();
            for (place, (text, pushed)) in places.iter_mut().enumerate() {
                *pushed += 1;
                assert_eq!(bits(generator.logits(place)), expected[*text][*pushed], "text {text}, {pushed} pushed");
            }
        }
    };
    for (text, tokens) in texts.iter().take(3).enumerate() {
        generator.add(&mut parameters, &tokens[..2]).unwrap();
        places.push((text, 0));
    }
    check(&mut generator, &mut parameters, &mut places);
    generator.remove(&mut parameters, 0).unwrap();
    places.swap_remove(0);
    check(&mut generator, &mut parameters, &mut places);
    generator.add(&mut parameters, &texts[3][..2]).unwrap();
    places.push((3, 0));
    check(&mut generator, &mut parameters, &mut places);
    generator.remove(&mut parameters, 2).unwrap();
    places.swap_remove(2);
    generator.add_copy(&mut parameters, 1).unwrap();
    places.push(places[1]);
    assert_eq!(generator.logits(1), generator.logits(2));
    check(&mut generator, &mut parameters, &mut places);
    while !generator.is_empty() {
        generator.remove(&mut parameters, 0).unwrap();
    }
    assert_eq!(generator.capacity(), 3);
}

/// Tokens chosen one after the other.
fn chosen(device: &Arc<Device>, sampling: Sampling) -> Vec<u32> {
    let (model, mut parameters) = load();
    let mut generator = Generator::new(Arc::clone(device), &model, &mut parameters, &[vec![3, 1]]).unwrap();
    for draw in 0..30 {
        let token = sampling.choose(generator.logits(0), 0, draw);
        generator.push(&mut parameters, &[token]).unwrap();
    }
    generator.tokens(0).to_vec()
}

#[test]
fn one_and_two_threads_choose_the_same_tokens() {
    for level in Level::available() {
        for temperature in [0.0, 1.5] {
            let sampling = Sampling { temperature, seed: 11, ..Sampling::default() };
            let once = chosen(&device(1, level), sampling);
            assert_eq!(once, chosen(&device(2, level), sampling), "{}, temperature {temperature}", level.name());
            assert_eq!(once, chosen(&device(2, level), sampling), "{}, temperature {temperature}", level.name());
        }
    }
}

#[test]
fn seeds_matter_where_there_is_a_choice() {
    let device = best_device();
    let with_seed = |temperature, seed| chosen(&device, Sampling { temperature, seed, ..Sampling::default() });
    assert_ne!(with_seed(1.5, 1), with_seed(1.5, 2));
    assert_eq!(with_seed(0.0, 1), with_seed(0.0, 2));
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let (model, mut parameters) = load();
    let vocabulary = model.config().vocabulary as u32;
    for token in [vocabulary, u32::MAX] {
        let refused = Generator::new(best_device(), &model, &mut parameters, &[vec![0, token]]);
        let message = refused.err().unwrap().to_string();
        assert!(message.contains("outside the vocabulary"), "{message}");
        let mut generator = Generator::new(best_device(), &model, &mut parameters, &[vec![0]]).unwrap();
        assert!(generator.push(&mut parameters, &[token]).is_err());
    }
}
