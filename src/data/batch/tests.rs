use super::*;
use crate::data::labelled::{Options, Task};
use crate::data::testing::{documents, wordpiece};

const SEED: u64 = 11;

/// Lengths of documents between 3 and 40, most of them short.
fn lengths(count: usize) -> Vec<usize> {
    (0..count).map(|index| 3 + (index * index * 7 + index) % (if index % 4 == 0 { 38 } else { 12 })).collect()
}

fn arrangements() -> [Arrangement; 4] {
    [
        Arrangement::Padded { buckets: vec![16, 8, 40], size: BatchSize::Tokens(120) },
        Arrangement::Padded { buckets: vec![40], size: BatchSize::Rows(4) },
        Arrangement::Packed { rows: 3, time: 64, max_documents: 100 },
        Arrangement::Packed { rows: 3, time: 64, max_documents: 5 },
    ]
}

const VISITS: [Visit; 2] = [Visit::InOrder, Visit::Shuffled { seed: SEED }];

fn epoch(batcher: &mut Batcher, set: &LabelledSet) -> Vec<Batch> {
    let mut batches = Vec::new();
    loop {
        let mut batch = Batch::default();
        batcher.next_batch(set, &mut batch).unwrap();
        batches.push(batch);
        if batcher.batch_of_epoch() == batcher.batches_of_epoch() {
            return batches;
        }
    }
}

fn examples(batches: &[Batch]) -> Vec<usize> {
    batches.iter().flat_map(|batch| &batch.examples).map(|placed| placed.example).collect()
}

fn tokens(set: &LabelledSet, example: usize) -> Vec<i32> {
    let mut ids = vec![0; set.length(example)];
    set.tokens(example).copy_to(&mut ids);
    ids
}

#[test]
fn every_example_comes_once_an_epoch_and_lies_where_it_is_said_to() {
    let set = documents(&lengths(203));
    for arrangement in arrangements() {
        for visit in VISITS {
            let mut batcher = Batcher::new(&set, arrangement.clone(), visit, Halves::Together).unwrap();
            for _ in 0..2 {
                let batches = epoch(&mut batcher, &set);
                let mut seen = examples(&batches);
                seen.sort_unstable();
                assert_eq!(seen, (0..set.len()).collect::<Vec<_>>(), "{arrangement:?} {visit:?}");
                for batch in &batches {
                    assert!(batcher.state().arrangement.shapes().contains(&(batch.rows, batch.time)));
                    assert!(batch.examples.len() <= arrangement.most_examples() && !batch.examples.is_empty());
                    check_batch(&set, batch);
                }
            }
        }
    }
}

fn check_batch(set: &LabelledSet, batch: &Batch) {
    let mut is_token = vec![false; batch.rows * batch.time];
    for placed in &batch.examples {
        let at = placed.row * batch.time + placed.start;
        let range = at..at + placed.end - placed.start;
        assert!(placed.end <= batch.time && placed.row < batch.rows);
        assert_eq!(batch.ids[range.clone()], tokens(set, placed.example));
        for (index, position) in range.enumerate() {
            assert!(!std::mem::replace(&mut is_token[position], true), "two tokens at {position}");
            assert_eq!(batch.positions[position], index as i32);
            assert_eq!(batch.documents[2 * position..][..2], [placed.start as i32, placed.end as i32]);
        }
    }
    for position in (0..is_token.len()).filter(|&position| !is_token[position]) {
        assert_eq!((batch.ids[position], batch.positions[position], batch.token_types[position]), (0, 0, 0));
        assert_eq!(batch.documents[2 * position..][..2], [0, 0]);
    }
    let order: Vec<_> = batch.examples.iter().map(|placed| (placed.row, placed.start)).collect();
    assert!(order.is_sorted());
    assert_eq!(batch.tokens(), is_token.iter().filter(|&&is_token| is_token).count());
}

#[test]
fn resuming_gives_the_batches_of_a_straight_run() {
    let set = documents(&lengths(53));
    for arrangement in arrangements() {
        let new = || Batcher::new(&set, arrangement.clone(), VISITS[1], Halves::Together).unwrap();
        let mut straight = new();
        let mut expected = epoch(&mut straight, &set);
        let first_epoch = expected.len();
        expected.extend(epoch(&mut straight, &set));
        assert_ne!(
            examples(&expected[..first_epoch]),
            examples(&expected[first_epoch..]),
            "two epochs in the same order"
        );
        for stop in 0..expected.len() {
            let mut first = new();
            let mut batch = Batch::default();
            (0..stop).for_each(|_| first.next_batch(&set, &mut batch).unwrap());
            let saved = serde_json::to_string(&first.state()).unwrap();
            let mut second = new();
            second.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
            for expected in &expected[stop..] {
                second.next_batch(&set, &mut batch).unwrap();
                assert_eq!(batch, *expected, "{arrangement:?} stopped at {stop}");
            }
        }
    }
}

#[test]
fn a_state_of_other_data_or_settings_is_refused() {
    let set = documents(&lengths(53));
    let new = |count, arrangement: usize, visit| {
        let set = documents(&lengths(count));
        Batcher::new(&set, arrangements()[arrangement].clone(), visit, Halves::Together).unwrap()
    };
    let mut batcher = new(53, 0, VISITS[1]);
    for (other, expected) in [
        (new(52, 0, VISITS[1]), "the number of examples was 52 and is now 53"),
        (new(53, 1, VISITS[1]), "the layout of batches"),
        (new(53, 0, VISITS[0]), "the order of examples"),
        (new(53, 0, Visit::Shuffled { seed: 1 }), "the order of examples"),
    ] {
        let message = batcher.restore(&other.state()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let mut state = batcher.state();
    state.batch = 10_000;
    assert!(batcher.restore(&state).is_err());
    assert!(batcher.next_batch(&documents(&[3]), &mut Batch::default()).is_err());
    let message = batcher.next_batch(&documents(&[3; 53]), &mut Batch::default()).unwrap_err().to_string();
    assert!(message.contains("is not as long as when the batcher was made"), "{message}");
    batcher.next_batch(&set, &mut Batch::default()).unwrap();
}

#[test]
fn padded_examples_take_the_smallest_bucket_but_for_what_is_left_at_the_end() {
    let set = documents(&lengths(1000));
    let arrangement = Arrangement::Padded { buckets: vec![8, 16, 24, 32, 40], size: BatchSize::Tokens(160) };
    let mut batcher = Batcher::new(&set, arrangement.clone(), VISITS[1], Halves::Together).unwrap();
    let batches = epoch(&mut batcher, &set);
    let partial = batches.iter().filter(|batch| batch.examples.len() < batch.rows).count();
    assert!(partial <= 5, "{partial} batches with empty rows");
    let shapes = arrangement.shapes();
    assert_eq!(shapes, [(20, 8), (10, 16), (6, 24), (5, 32), (4, 40)]);
    let misplaced = batches.iter().flat_map(|batch| batch.examples.iter().map(move |placed| (batch.time, placed)));
    let misplaced = misplaced.filter(|(time, placed)| placed.end + 8 <= *time).count();
    assert!(misplaced < 30, "{misplaced} examples in rows that are a bucket too long");
    // Batches of all lengths are mixed: the first half of the epoch has about half of the short ones.
    let short = |batches: &[Batch]| batches.iter().filter(|batch| batch.time == 8).count();
    let (first, all) = (short(&batches[..batches.len() / 2]), short(&batches));
    assert!(first * 4 > all && first * 4 < all * 3, "{first} of {all} short batches in the first half");
}

#[test]
fn packed_rows_are_nearly_full() {
    let set = documents(&lengths(2000));
    let arrangement = Arrangement::Packed { rows: 4, time: 128, max_documents: 128 };
    for visit in VISITS {
        let mut batcher = Batcher::new(&set, arrangement.clone(), visit, Halves::Together).unwrap();
        // Most of it in the last of 35 batches.
        assert!(batcher.padding() < 0.03, "{visit:?}: {} padding", batcher.padding());
        let batches = epoch(&mut batcher, &set);
        let positions: usize = batches.iter().map(|batch| batch.rows * batch.time).sum();
        let padding = 1.0 - batches.iter().map(Batch::tokens).sum::<usize>() as f64 / positions as f64;
        assert_eq!(padding, batcher.padding());
    }
}

#[test]
fn evaluation_keeps_the_order_of_the_data_where_the_layout_allows_it() {
    let set = documents(&lengths(50));
    let one_bucket = Arrangement::Padded { buckets: vec![40], size: BatchSize::Rows(8) };
    let mut batcher = Batcher::new(&set, one_bucket, Visit::InOrder, Halves::Together).unwrap();
    let batches = epoch(&mut batcher, &set);
    assert_eq!(examples(&batches), (0..50).collect::<Vec<_>>());
    assert_eq!((batches.len(), batches[6].rows, batches[6].examples.len()), (7, 8, 2));
    assert_eq!(epoch(&mut batcher, &set), batches);
}

#[test]
fn sides_of_translations_are_laid_out_alike_and_apart() {
    let file = tempfile::Builder::new().suffix(".tsv").tempfile().unwrap();
    let text = |words: usize| vec!["cat"; words].join(" ");
    let rows: String = (0..60).map(|row| format!("{}\t{}\n", text(1 + row % 7), text(1 + row % 5))).collect();
    std::fs::write(file.path(), format!("a\tb\n{rows}")).unwrap();
    let task = Task::Pair { source: "a".into(), target: "b".into() };
    let set = LabelledSet::from_files(&[file.path()], &wordpiece(), &Options::new(task, 16), &|_, _| ()).unwrap();
    for arrangement in arrangements() {
        let mut batcher = Batcher::new(&set, arrangement, VISITS[1], Halves::Apart).unwrap();
        let batches = epoch(&mut batcher, &set);
        let mut seen = examples(&batches);
        seen.sort_unstable();
        assert_eq!(seen, (0..60).collect::<Vec<_>>());
        for batch in &batches {
            let target = batch.target.as_ref().unwrap();
            assert_eq!((batch.rows, batch.time), (target.rows, target.time));
            for (source, target_place) in batch.examples.iter().zip(&target.examples) {
                assert_eq!((source.example, source.row), (target_place.example, target_place.row));
                let both = [(batch, source), (&**target, target_place)].map(|(batch, placed)| {
                    let at = placed.row * batch.time;
                    batch.ids[at + placed.start..at + placed.end].to_vec()
                });
                assert_eq!(both.concat(), tokens(&set, source.example));
            }
            assert!(target.token_types.iter().all(|&token_type| token_type == 0));
        }
    }
    let together = Arrangement::Padded { buckets: vec![32], size: BatchSize::Rows(1) };
    let mut batcher = Batcher::new(&set, together, Visit::InOrder, Halves::Together).unwrap();
    let mut batch = Batch::default();
    batcher.next_batch(&set, &mut batch).unwrap();
    assert_eq!(batch.token_types[..7], [0, 0, 0, 1, 1, 1, 0]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let set = documents(&[5, 41]);
    let fail = |arrangement, halves, expected: &str| {
        let message = Batcher::new(&set, arrangement, Visit::InOrder, halves).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
    };
    let [padded, .., packed] = arrangements();
    fail(padded.clone(), Halves::Together, "example 1 has 41 tokens, but the longest rows have 40");
    fail(packed, Halves::Apart, "only texts of pairs can be kept apart, not those for text");
    for zero in [
        Arrangement::Padded { buckets: vec![], size: BatchSize::Rows(1) },
        Arrangement::Padded { buckets: vec![0, 64], size: BatchSize::Rows(1) },
        Arrangement::Padded { buckets: vec![64], size: BatchSize::Tokens(0) },
        Arrangement::Packed { rows: usize::MAX, time: 64, max_documents: 1 },
    ] {
        fail(zero, Halves::Together, "all numbers must be at least 1");
    }
}

#[test]
fn things_that_are_not_tokens_are_placed_too() {
    let rows = Arrangement::Padded { buckets: vec![49], size: BatchSize::Rows(4) };
    let mut batcher = Batcher::of_lengths(&[49; 10], rows, VISITS[1]).unwrap();
    let (mut batch, mut seen) = (Batch::default(), Vec::new());
    for _ in 0..batcher.batches_of_epoch() {
        batcher.next_places(&mut batch);
        assert_eq!((batch.rows, batch.time), (4, 49));
        seen.extend(batch.examples.iter().map(|placed| placed.example));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}
