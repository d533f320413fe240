use super::*;
use crate::data::batch::{Arrangement, BatchSize, Batcher, Halves, Visit};
use crate::data::testing::{TOKENS, documents, wordpiece};

const MASK: i32 = 4;

fn batch_of(lengths: &[usize]) -> Batch {
    let set = documents(lengths);
    let longest = *lengths.iter().max().unwrap();
    let arrangement = Arrangement::Padded { buckets: vec![longest], size: BatchSize::Rows(lengths.len()) };
    let mut batch = Batch::default();
    Batcher::new(&set, arrangement, Visit::InOrder, Halves::Together).unwrap().next_batch(&set, &mut batch).unwrap();
    batch
}

fn masker(masking: Masking) -> Masker {
    Masker::new(&wordpiece(), masking).unwrap()
}

fn apply(masker: &Masker, step: u64, original: &Batch) -> (Batch, Masked) {
    let (mut batch, mut masked) = (original.clone(), Masked::default());
    let capacity = masker.capacity(batch.rows, batch.time, batch.examples.len());
    masker.apply(step, &mut batch, capacity, &mut masked).unwrap();
    (batch, masked)
}

#[test]
fn fifteen_percent_of_the_ordinary_tokens_are_predicted_and_the_targets_are_what_stood_there() {
    let lengths = [3, 4, 12, 103, 202];
    let original = batch_of(&lengths);
    for unit in [Unit::Token, Unit::Word, Unit::Span] {
        let masker = masker(Masking { unit, ..Masking::default() });
        for step in 0..50 {
            let (batch, masked) = apply(&masker, step, &original);
            assert!(masked.positions[..masked.count].is_sorted());
            assert!(masked.targets[masked.count..].iter().all(|&target| target == IGNORED));
            let mut counts = vec![0; lengths.len()];
            for (&position, &target) in masked.positions[..masked.count].iter().zip(&masked.targets) {
                assert_eq!(original.ids[position as usize], target);
                assert!(target > MASK, "a special token is predicted");
                counts[position as usize / batch.time] += 1;
            }
            // At least one each; whole words may leave some of a document over, never more.
            let wanted = lengths.map(|length| ((0.15 * (length - 2) as f64).round() as usize).max(1));
            if unit == Unit::Token {
                assert_eq!(counts, wanted);
            } else {
                assert!(counts.iter().zip(&wanted).all(|(count, wanted)| count <= wanted), "{unit:?}: {counts:?}");
                assert!(counts[4] >= wanted[4] - 1, "{unit:?}: {} of {}", counts[4], wanted[4]);
            }
            let changed = batch.ids.iter().zip(&original.ids).enumerate().filter(|(_, (a, b))| a != b);
            let predicted: Vec<i32> = masked.positions[..masked.count].to_vec();
            assert!(changed.map(|(index, _)| index as i32).all(|index| predicted.contains(&index)));
        }
    }
}

#[test]
fn of_those_eighty_percent_are_hidden_ten_are_random_and_ten_stay() {
    let original = batch_of(&[2002]);
    for unit in [Unit::Token, Unit::Word, Unit::Span] {
        let masker = masker(Masking { unit, ..Masking::default() });
        let (mut hidden, mut same, mut all) = (0, 0, 0);
        for step in 0..60 {
            let (batch, masked) = apply(&masker, step, &original);
            all += masked.count;
            for (&position, &target) in masked.positions[..masked.count].iter().zip(&masked.targets) {
                hidden += usize::from(batch.ids[position as usize] == MASK);
                same += usize::from(batch.ids[position as usize] == target);
            }
        }
        let (hidden, same) = (hidden as f64 / all as f64, same as f64 / all as f64);
        // Of the 13 ordinary tokens one is the right one by chance.
        assert!((hidden - 0.8).abs() < 0.02 && (same - 0.1 - 0.1 / 13.0).abs() < 0.02, "{unit:?}: {hidden}, {same}");
    }
}

#[test]
fn a_mask_depends_on_seed_step_and_example_alone() {
    let lengths = [30, 40, 50, 40, 30, 21];
    let set = documents(&lengths);
    let padded = Arrangement::Padded { buckets: vec![50], size: BatchSize::Rows(2) };
    let packed = Arrangement::Packed { rows: 1, time: 300, max_documents: 10 };
    let masks = |arrangement, masking, step| {
        let mut batcher = Batcher::new(&set, arrangement, Visit::InOrder, Halves::Together).unwrap();
        let masker = masker(masking);
        let mut found = vec![Vec::new(); lengths.len()];
        for _ in 0..batcher.batches_of_epoch() {
            let mut batch = Batch::default();
            batcher.next_batch(&set, &mut batch).unwrap();
            let (batch, masked) = apply(&masker, step, &batch);
            for placed in &batch.examples {
                let first = placed.row * batch.time + placed.start;
                let range = first as i32..(first + placed.end - placed.start) as i32;
                let mine = masked.positions[..masked.count].iter().filter(|position| range.contains(position));
                found[placed.example] =
                    mine.map(|&position| (position - first as i32, batch.ids[position as usize])).collect();
            }
        }
        found
    };
    for unit in [Unit::Token, Unit::Word, Unit::Span] {
        let masking = Masking { unit, seed: 5, ..Masking::default() };
        let base = masks(padded.clone(), masking, 7);
        assert_eq!(masks(packed.clone(), masking, 7), base);
        assert_ne!(masks(padded.clone(), masking, 8), base);
        assert_ne!(masks(padded.clone(), masking, 7 + (1 << 32)), base);
        assert_ne!(masks(padded.clone(), Masking { seed: 6, ..masking }, 7), base);
        assert!(base[1] != base[3], "two examples of one length have one mask");
    }
}

/// A batch of one document with these tokens, by name.
fn spelled(tokens: &[&str]) -> Batch {
    let mut batch = batch_of(&[tokens.len()]);
    let id = |token: &&str| TOKENS.iter().position(|known| known == token).unwrap() as i32;
    batch.ids = tokens.iter().map(id).collect();
    batch
}

#[test]
fn whole_words_are_hidden_together() {
    let words = ["cat", "##s", "the", "play", "##ting", "##s", "猫", "on"];
    let text: Vec<&str> =
        ["[CLS]"].into_iter().chain(words.iter().copied().cycle().take(80)).chain(["[SEP]"]).collect();
    let original = spelled(&text);
    for unit in [Unit::Word, Unit::Span] {
        let masker = masker(Masking { unit, ..Masking::default() });
        let mut longest_run = 0;
        for step in 0..100 {
            let (_, masked) = apply(&masker, step, &original);
            let is_masked = |index: usize| masked.positions[..masked.count].contains(&(index as i32));
            for (index, piece) in text.iter().enumerate().skip(2) {
                if piece.starts_with("##") {
                    assert_eq!(is_masked(index), is_masked(index - 1), "{unit:?}: half of a word at {index}");
                }
            }
            let runs = masked.positions[..masked.count].chunk_by(|a, b| b - a == 1);
            longest_run = longest_run.max(runs.map(<[i32]>::len).max().unwrap_or(0));
        }
        assert!(unit == Unit::Word || longest_run >= 8, "the longest span has {longest_run} tokens");
    }
}

#[test]
fn a_full_batch_keeps_to_its_capacity() {
    let original = batch_of(&[102, 102]);
    let masker = masker(Masking::default());
    let mut masked = Masked::default();
    let mut batch = original.clone();
    masker.apply(0, &mut batch, 10, &mut masked).unwrap();
    assert_eq!((masked.count, masked.positions.len(), masked.targets.len()), (10, 10, 10));
    let changed = batch.ids.iter().zip(&original.ids).filter(|(a, b)| a != b).count();
    assert!(changed <= 10, "{changed} tokens changed that nothing predicts");
}

#[test]
fn shares_out_of_range_and_tokenizers_without_a_mask_are_refused() {
    for masking in [
        Masking { probability: 0.0, ..Masking::default() },
        Masking { probability: f32::NAN, ..Masking::default() },
        Masking { mask: 0.8, random: 0.3, ..Masking::default() },
    ] {
        assert!(matches!(Masker::new(&wordpiece(), masking), Err(Error::Argument(_))));
    }
    let message = Masker::new(&Tokenizer::byte(), Masking::default()).err().unwrap().to_string();
    assert!(message.contains("no [MASK] or <mask>"), "{message}");
    let mut batch = spelled(&["[CLS]", "cat", "[SEP]"]);
    batch.ids[1] = 99;
    let error = masker(Masking::default()).apply(0, &mut batch, 9, &mut Masked::default()).unwrap_err();
    assert!(error.to_string().contains("token 99"), "{error}");
}
