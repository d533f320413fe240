//! Searches against what they stand for: a pass over whole sequences, and trying every translation.

use super::*;
use crate::cpu::Cpu;
use crate::model::config::{Convolution, Heads, LanguageHead, NormPlace};
use crate::model::transformer::Inputs;
use crate::tape::{Mode, RunOptions, Tape};

const START: u32 = 1;
const END: u32 = 2;

/// Both kinds of models that translate.
const ARCHITECTURES: [Architecture; 2] = [Architecture::EncoderDecoder, Architecture::Decoder];

/// A model of odd sizes with weights large enough that its predictions differ.
fn model(
    vocabulary: usize,
    architecture: Architecture,
    norm_place: NormPlace,
    convolution: Option<Convolution>,
) -> (Arc<Device>, Transformer, Parameters) {
    let device = Arc::new(Device::Cpu(Cpu::new().unwrap()));
    let config = ModelConfig {
        architecture,
        vocabulary,
        block: 21,
        channels: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn: 40,
        norm_place,
        convolution,
        initializer_range: 0.4,
        predictions: Heads { language: Some(LanguageHead { transform: false }), ..Heads::default() },
        bos: Some(START),
        eos: Some(END),
        other: [(PURPOSE.0.to_owned(), PURPOSE.1.into())].into_iter().collect(),
        ..ModelConfig::gpt2()
    };
    let (model, parameters) = Transformer::new(&device, config, 11).unwrap();
    (device, model, parameters)
}

fn pre_norm(vocabulary: usize) -> (Arc<Device>, Transformer, Parameters) {
    model(vocabulary, Architecture::EncoderDecoder, NormPlace::Pre, None)
}

/// A source that looks random but is the same every time.
fn source(vocabulary: usize, length: usize, seed: usize) -> Vec<u32> {
    let token = |i: usize| (3 + (i * i * 7 + i * 5 + seed * 13) % (vocabulary - 3)) as u32;
    [START].into_iter().chain((0..length).map(token)).chain([END]).collect()
}

/// `ln p` of each token that `target` predicts after the start, by one pass over all of it: `(target, V)`.
fn full_pass(
    device: &Arc<Device>,
    model: &Transformer,
    parameters: &mut Parameters,
    source: &[u32],
    target: &[u32],
) -> Vec<Vec<f64>> {
    if model.config().architecture == Architecture::Decoder {
        return pass_over_one_row(device, model, parameters, source, target);
    }
    let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Inference);
    // One row more than there is, and longer: padding must not be seen.
    let (rows, time) = (2, (source.len() + 3).min(model.config().block));
    let (ids, lengths) = (tape.input_ids("source", &[rows, time]), tape.input_ids("lengths", &[rows]));
    let documents = tape.input_ids("documents", &[rows, time, 2]);
    let read = tape.input_ids("target", &[rows, target.len()]);
    let inputs = Inputs { documents: Some(documents), ..Inputs::rows(ids) };
    let trunk = model.record_translation_trunk(&mut tape, &inputs, lengths, &Inputs::rows(read), false).unwrap();
    let logits = model.record_token_logits(&mut tape, trunk).unwrap();
    tape.keep(logits);
    let mut program = tape.finish().unwrap();
    let mut padded = vec![0; rows * time];
    padded.iter_mut().zip(source).for_each(|(id, &token)| *id = token as i32);
    let mut inside = vec![0; rows * time * 2];
    inside[..2 * source.len()].chunks_exact_mut(2).for_each(|d| d.copy_from_slice(&[0, source.len() as i32]));
    let mut tokens = vec![0; rows * target.len()];
    tokens.iter_mut().zip(target).for_each(|(id, &token)| *id = token as i32);
    program.write_ids(ids, &padded).unwrap();
    program.write_ids(documents, &inside).unwrap();
    program.write_ids(lengths, &[source.len() as i32, 0]).unwrap();
    program.write_ids(read, &tokens).unwrap();
    program.run(parameters, &RunOptions::default()).unwrap();
    let logits = program.read(logits).unwrap();
    logits.chunks_exact(model.config().vocabulary).take(target.len()).map(log_probabilities).collect()
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let total = log_sum_exp(logits);
    logits.iter().map(|&logit| f64::from(logit) - total).collect()
}

/// The same by a decoder alone: the source, and the target behind it.
fn pass_over_one_row(
    device: &Arc<Device>,
    model: &Transformer,
    parameters: &mut Parameters,
    source: &[u32],
    target: &[u32],
) -> Vec<Vec<f64>> {
    let tokens: Vec<i32> = source.iter().chain(target).map(|&token| token as i32).collect();
    let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Inference);
    let ids = tape.input_ids("ids", &[1, tokens.len()]);
    let logits = model.record_logits(&mut tape, ids).unwrap();
    tape.keep(logits);
    let mut program = tape.finish().unwrap();
    program.write_ids(ids, &tokens).unwrap();
    program.run(parameters, &RunOptions::default()).unwrap();
    let logits = program.read(logits).unwrap();
    logits.chunks_exact(model.config().vocabulary).skip(source.len()).map(log_probabilities).collect()
}

/// `ln p` of a translation, its end included where it has one.
fn log_probability(
    device: &Arc<Device>,
    model: &Transformer,
    parameters: &mut Parameters,
    source: &[u32],
    found: &Translation,
) -> f64 {
    let ends = found.is_complete.then_some(END);
    let predicted: Vec<u32> = found.tokens.iter().copied().chain(ends).collect();
    let read: Vec<u32> = [START].into_iter().chain(predicted.iter().copied()).take(predicted.len()).collect();
    let each = full_pass(device, model, parameters, source, &read);
    predicted.iter().zip(each).map(|(&token, row)| row[token as usize]).sum()
}

#[test]
fn decoding_step_by_step_is_a_pass_over_whole_sequences() {
    let convolution = Some(Convolution { taps: 3, dilation: 2 });
    let choices = [(NormPlace::Pre, None), (NormPlace::Post, None), (NormPlace::Pre, convolution)];
    let kinds = ARCHITECTURES.map(|architecture| choices.map(|(place, layer)| (architecture, place, layer)));
    for (architecture, norm_place, convolution) in kinds.into_iter().flatten() {
        let (device, model, mut parameters) = model(30, architecture, norm_place, convolution);
        let sources: Vec<Vec<u32>> = (0..5).map(|i| source(30, [6, 1, 17, 3, 9][i], i)).collect();
        for method in [
            Method::Greedy,
            Method::Sample(Sampling { temperature: 1.0, seed: 3, ..Sampling::default() }),
            Method::Beam { width: 3, length_penalty: 0.6 },
        ] {
            let mut translator = Translator::new(Arc::clone(&device), &model, 3, method).unwrap();
            let found = translator.translate(&mut parameters, &sources, 12).unwrap();
            for (source, found) in sources.iter().zip(&found) {
                let expected = log_probability(&device, &model, &mut parameters, source, found);
                let error = (found.log_probability - expected).abs();
                assert!(error < 1e-3, "{method:?}: {} is not {expected}", found.log_probability);
                let room = if architecture == Architecture::Decoder { 21 - source.len() } else { 21 };
                assert!(found.is_complete || found.tokens.len() == room.min(12), "{architecture:?}: {found:?}");
            }
        }
    }
}

#[test]
fn the_loss_of_translations_is_what_full_passes_give() {
    for architecture in ARCHITECTURES {
        let (device, model, mut parameters) = model(30, architecture, NormPlace::Pre, None);
        // More than a batch, of lengths from 2 to 9 and 3 to 11.
        let pairs: Vec<[Vec<u32>; 2]> =
            (0..40).map(|i| [source(30, (i * 5) % 8, i), source(30, 1 + (i * 7) % 9, i + 50)]).collect();
        let (sum, count) = loss(&device, &model, &mut parameters, &pairs).unwrap();
        let mut expected = 0.0;
        for [source, target] in &pairs {
            let found = Translation {
                tokens: target[1..target.len() - 1].to_vec(),
                is_complete: true,
                ..Translation::default()
            };
            expected -= log_probability(&device, &model, &mut parameters, source, &found);
        }
        assert_eq!(count as usize, pairs.iter().map(|[_, target]| target.len() - 1).sum::<usize>());
        assert!((sum - expected).abs() < 1e-5 * expected, "{architecture:?}: {sum} is not {expected}");
        let long = [source(30, 9, 0), source(30, 21, 0)];
        assert!(matches!(loss(&device, &model, &mut parameters, &[long]), Err(Error::TooLong { .. })));
    }
}

#[test]
fn greedy_takes_the_likeliest_token_of_the_full_pass() {
    let (device, model, mut parameters) = pre_norm(30);
    let source = source(30, 7, 1);
    let mut translator = Translator::new(Arc::clone(&device), &model, 1, Method::Greedy).unwrap();
    let found = translator.translate(&mut parameters, std::slice::from_ref(&source), 9).unwrap().remove(0);
    let read: Vec<u32> = [START].into_iter().chain(found.tokens.iter().copied()).collect();
    let each = full_pass(&device, &model, &mut parameters, &source, &read);
    let likeliest = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
    for (token, row) in found.tokens.iter().zip(&each) {
        assert_eq!(*token, likeliest(row));
    }
    if found.is_complete {
        assert_eq!(likeliest(&each[found.tokens.len()]), END);
    }
}

#[test]
fn a_beam_of_one_is_greedy_and_batches_change_no_token() {
    ARCHITECTURES.into_iter().for_each(check_beams_of_one_and_batches);
}

fn check_beams_of_one_and_batches(architecture: Architecture) {
    let (device, model, mut parameters) = model(30, architecture, NormPlace::Pre, None);
    let sources: Vec<Vec<u32>> = (0..9).map(|i| source(30, 1 + (i * 5) % 11, i)).collect();
    let mut translate = |method: Method, sentences: usize| {
        let mut translator = Translator::new(Arc::clone(&device), &model, sentences, method).unwrap();
        translator.translate(&mut parameters, &sources, 14).unwrap()
    };
    let greedy = translate(Method::Greedy, 8);
    let alone = translate(Method::Greedy, 1);
    let beam = translate(Method::Beam { width: 1, length_penalty: 1.0 }, 8);
    let tokens = |list: &[Translation]| list.iter().map(|found| found.tokens.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&beam), tokens(&greedy));
    assert_eq!(tokens(&alone), tokens(&greedy));
    for (alone, together) in alone.iter().zip(&greedy) {
        // The encoder's products add up in another order where they have more rows.
        let error = (alone.log_probability - together.log_probability).abs();
        assert!(error < 1e-4, "{} alone, {} in a batch", alone.log_probability, together.log_probability);
    }
    let wide = Method::Beam { width: 2, length_penalty: 0.6 };
    assert_eq!(tokens(&translate(wide, 4)), tokens(&translate(wide, 1)));
}

#[test]
fn a_wide_beam_finds_the_best_of_all_translations() {
    let (device, model, mut parameters) = pre_norm(5);
    const LIMIT: usize = 3;
    for length_penalty in [0.0, 1.0, -0.5] {
        for seed in 0..3 {
            let source = source(5, 4 + seed, seed);
            // Everything of at most LIMIT tokens, the end included; what has LIMIT tokens may lack it.
            let mut best = Translation { score: f64::NEG_INFINITY, ..Translation::default() };
            let mut open = vec![Vec::new()];
            while let Some(tokens) = open.pop() {
                for token in 0..5u32 {
                    let is_complete = token == END;
                    let mut longer = tokens.clone();
                    if !is_complete {
                        longer.push(token);
                    }
                    let length = tokens.len() + 1;
                    if !is_complete && length < LIMIT {
                        open.push(longer);
                        continue;
                    }
                    let mut found = Translation { tokens: longer, is_complete, ..Translation::default() };
                    found.log_probability = log_probability(&device, &model, &mut parameters, &source, &found);
                    found.score = found.log_probability / ((5.0 + length as f64) / 6.0).powf(length_penalty);
                    if found.score > best.score {
                        best = found;
                    }
                }
            }
            let method = Method::Beam { width: 5usize.pow(LIMIT as u32), length_penalty };
            let mut translator = Translator::new(Arc::clone(&device), &model, 1, method).unwrap();
            let found = translator.translate(&mut parameters, std::slice::from_ref(&source), LIMIT).unwrap();
            assert_eq!(found[0].tokens, best.tokens, "{:?} {best:?}", found[0]);
            assert_eq!(found[0].is_complete, best.is_complete);
            assert!((found[0].score - best.score).abs() < 1e-4, "{:?} {best:?}", found[0]);
        }
    }
}

#[test]
fn what_cannot_be_translated_is_refused_in_one_line() {
    let (device, model, mut parameters) = pre_norm(30);
    let mut translator = Translator::new(Arc::clone(&device), &model, 2, Method::Greedy).unwrap();
    let long = source(30, 20, 0);
    let message = translator.translate(&mut parameters, &[source(30, 2, 0), long], 5).unwrap_err().to_string();
    assert_eq!(message, "sentence 1 has 22 tokens, special ones included, but the model reads at most 21; split it");
    assert!(translator.translate(&mut parameters, &[vec![START, 77, END]], 5).is_err(), "a token outside");
    assert!(translator.translate(&mut parameters, &[], 5).unwrap().is_empty());
    let (device, alone, mut of_decoder) = self::model(30, Architecture::Decoder, NormPlace::Pre, None);
    let mut translator = Translator::new(Arc::clone(&device), &alone, 2, Method::Greedy).unwrap();
    let message = translator.translate(&mut of_decoder, &[source(30, 19, 0)], 5).unwrap_err().to_string();
    assert!(message.contains("21 tokens") && message.contains("at most 20"), "{message}");
    let (other, _) =
        Transformer::new(&device, ModelConfig { layers: 1, channels: 12, ..ModelConfig::gpt2() }, 0).unwrap();
    assert!(matches!(Translator::new(device, &other, 1, Method::Greedy), Err(Error::Model)));
}
