//! Same seed, configuration and device: same bits, whatever the number of threads, however often the run was stopped
//! and resumed, with or without recomputation. Compared are weights, optimizer state, position and records.

mod common;

use common::{Scratch, metrics, resume, state, succeed, tiny};
use engine::data::shard::{TokenType, write_shard};
use std::path::{Path, PathBuf};

/// Three small shards: 700 tokens for training make 43 windows an epoch, about ten updates, and the shards end inside
/// windows.
fn shards(scratch: &Scratch) -> PathBuf {
    let folder = scratch.path("shards");
    std::fs::create_dir_all(&folder).unwrap();
    let mut token = 0u32;
    for (index, length) in [301, 207, 367].into_iter().enumerate() {
        let tokens: Vec<u32> = (0..length)
            .map(|_| {
                token = token.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (token >> 20) % 29
            })
            .collect();
        write_shard(folder.join(format!("train_{index:06}.bin")), TokenType::U16, &tokens).unwrap();
    }
    folder
}

const HARD: [&str; 4] = ["model.vocabulary=29", "model.dropout=0.1", "train.accumulate=2", "train.eval_every=20"];

/// A run of 40 updates with a checkpoint after 20.
fn straight(data: &Path, out: &Path, sets: &[&str]) {
    let sets: Vec<&str> = HARD.iter().chain(&["train.checkpoint_every=20"]).chain(sets).copied().collect();
    succeed(tiny(data, out, &sets, &["--steps", "40"]));
}

#[track_caller]
fn assert_same(what: &str, one: &Path, other: &Path, step: usize) {
    let (one_state, other_state) = (state(one, step), state(other, step));
    assert!(one_state.0 == other_state.0, "{what}: weights after {step} updates differ");
    assert!(one_state.1 == other_state.1, "{what}: optimizer state after {step} updates differs");
    assert_eq!(one_state.2, other_state.2, "{what}: trainer.json after {step} updates");
}

#[test]
fn two_runs_and_any_number_of_threads_give_the_same_bits() {
    let scratch = Scratch::new();
    let data = shards(&scratch);
    let reference = scratch.path("reference");
    straight(&data, &reference, &["device.threads=1"]);
    for (name, set) in [
        ("again", "device.threads=1"),
        ("2 threads", "device.threads=2"),
        ("3 threads", "device.threads=3"),
        ("recomputed", "train.recompute=true"),
    ] {
        let out = scratch.path(name);
        straight(&data, &out, &[set]);
        assert_same(name, &reference, &out, 20);
        assert_same(name, &reference, &out, 40);
        assert_eq!(metrics(&reference), metrics(&out), "{name}: records");
    }
}

#[test]
fn another_seed_gives_other_bits() {
    let scratch = Scratch::new();
    let data = shards(&scratch);
    let (one, other) = (scratch.path("one"), scratch.path("other"));
    straight(&data, &one, &[]);
    straight(&data, &other, &["train.seed=1338"]);
    assert!(state(&one, 40).0 != state(&other, 40).0);
}

/// Stopped after 20 updates and resumed, in the middle of an epoch and of a shard; and twice more in between.
#[test]
fn a_run_that_was_resumed_gives_the_bits_and_records_of_a_straight_one() {
    let scratch = Scratch::new();
    let data = shards(&scratch);
    for order in ["shuffled", "random", "sequential"] {
        let order_set = format!("data.order={order}");
        let (whole, parts) = (scratch.path(&format!("{order} whole")), scratch.path(&format!("{order} parts")));
        straight(&data, &whole, &[&order_set]);
        let sets: Vec<&str> = HARD.iter().copied().chain(["train.checkpoint_every=20", &order_set]).collect();
        succeed(tiny(&data, &parts, &sets, &["--steps", "20"]));
        assert_same(order, &whole, &parts, 20);
        succeed(resume(&parts, &["train.steps=40"]));
        assert_same(order, &whole, &parts, 40);
        assert_eq!(metrics(&whole), metrics(&parts), "{order}: records");
        // As a machine that goes down leaves it: records and checkpoints beyond the one to resume from.
        std::fs::remove_dir_all(common::checkpoint(&parts, 40)).unwrap();
        succeed(resume(&parts, &["device.threads=3", "train.recompute=true"]));
        assert_same(order, &whole, &parts, 40);
        assert_eq!(metrics(&whole), metrics(&parts), "{order}: records");
    }
}

#[test]
fn sgd_with_momentum_resumes_to_the_same_bits() {
    let scratch = Scratch::new();
    let sets = ["optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.learning_rate=0.1", "train.eval_every=3"];
    succeed(scratch.tiny("whole", &sets, &["--steps", "6"]));
    succeed(scratch.tiny("parts", &sets, &["--steps", "3"]));
    succeed(resume(&scratch.path("parts"), &["train.steps=6"]));
    assert_same("sgd", &scratch.path("whole"), &scratch.path("parts"), 6);
}
