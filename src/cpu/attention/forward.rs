//! Forward pass: tasks over (sequence, chunk of queries, head), with the state of a few blocks of queries in scratch.
//! Tasks with the most work come first, so that threads finish together where documents are long and short.
//!
//! Blocks of keys are the outer loop, so that a key and a value are copied out of the packed projection once for the
//! whole chunk (rows of the projection are often a multiple of 1 KiB apart, and would fight for a few cache sets).

use super::scores::{self, Extras, FLOOR, Statistics};
use super::tile::{
    KEY_BLOCK, Operands, QUERY_BLOCK, Start, Tile, pack, pack_transposed, prefetch, product, transpose, unpack,
};
use super::{Problem, Scratch, Sequence, with_scratch};
use crate::cpu::simd::{Kernel, Vector};
use crate::cpu::{Cpu, Disjoint};
use crate::ops::Write;
use std::f32::consts::LOG2_E;

/// Tasks that are enough to share copies of the keys; under a causal mask they are uneven, and several for each core
/// even that out.
const ENOUGH_TASKS: usize = 16;
/// Blocks of queries that share a copy of the keys and values, where that leaves enough tasks.
const MOST_BLOCKS: usize = 4;

/// Computes the output of every head.
pub(super) fn run(cpu: &Cpu, problem: &Problem<'_>, output: &mut [f32], log_sum_exp: Option<&mut [f32]>) {
    let shape = &problem.shape;
    let sequences = problem.sequences();
    let blocks: usize = sequences.iter().map(|sequence| sequence.queries.div_ceil(QUERY_BLOCK)).sum();
    let chunk_blocks = (shape.heads * blocks / ENOUGH_TASKS).clamp(1, MOST_BLOCKS);
    let mut chunks = Vec::with_capacity(sequences.len() + blocks / chunk_blocks);
    for sequence in sequences {
        for first in (0..sequence.queries).step_by(chunk_blocks * QUERY_BLOCK) {
            let queries = (chunk_blocks * QUERY_BLOCK).min(sequence.queries - first);
            let key_end = problem.seen(&sequence, first + queries - 1);
            chunks.push(Chunk { sequence, first, queries, key_end });
        }
    }
    // Stable: the order of the batch among equals.
    chunks.sort_by_key(|chunk| std::cmp::Reverse(chunk.queries.div_ceil(QUERY_BLOCK) * (chunk.key_end + 1)));
    let padded = shape.head_size.next_multiple_of(cpu.level().lanes());
    let tile = QUERY_BLOCK * KEY_BLOCK;
    let sizes = [
        chunk_blocks * shape.head_size * QUERY_BLOCK,
        chunk_blocks * QUERY_BLOCK * padded,
        2 * chunk_blocks * QUERY_BLOCK,
        QUERY_BLOCK,
        KEY_BLOCK * padded,
        KEY_BLOCK * padded,
        tile,
        if problem.bias.is_some() { tile } else { 0 },
        if problem.dropout.is_some() { 2 * tile } else { 0 },
    ];
    let output = Disjoint::new(output);
    let log_sum_exp = log_sum_exp.map(Disjoint::new);
    cpu.pool().run(chunks.len() * shape.heads, |task| {
        let (chunk, head) = (chunks[task / shape.heads], task % shape.heads);
        with_scratch(sizes, |scratch| {
            cpu.level().run(Task { problem, chunk, head, output, log_sum_exp, padded, scratch });
        });
    });
}

/// Some queries of a sequence.
#[derive(Clone, Copy)]
struct Chunk {
    sequence: Sequence,
    /// First query.
    first: usize,
    queries: usize,
    /// Keys that its last query sees.
    key_end: usize,
}

/// One head of a chunk.
struct Task<'a> {
    problem: &'a Problem<'a>,
    chunk: Chunk,
    head: usize,
    output: Disjoint<'a, f32>,
    log_sum_exp: Option<Disjoint<'a, f32>>,
    /// Head size rounded up to whole vectors.
    padded: usize,
    scratch: [Scratch; 9],
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { problem, head, padded, .. } = self;
        let Chunk { sequence, first, queries, key_end } = self.chunk;
        let shape = &problem.shape;
        let head_size = shape.head_size;
        let key_head = head / problem.group();
        let [query_transposed, output, statistics, rescale, keys, values, scores, bias, dropout] = self.scratch;
        let statistics = |block: usize| Statistics {
            maximum: statistics.wrapping_add(2 * block * QUERY_BLOCK),
            sum: statistics.wrapping_add((2 * block + 1) * QUERY_BLOCK),
            rescale,
        };
        let blocks = queries.div_ceil(QUERY_BLOCK);
        let block_queries = |block: usize| QUERY_BLOCK.min(queries - block * QUERY_BLOCK);
        // SAFETY: `run` sized the scratch pieces for `blocks` blocks; indices of inputs and outputs are in bounds
        // because `ops` checked the lengths, and no other task has these rows of this head.
        unsafe {
            for block in 0..blocks {
                let row = problem.query_layout.at(&sequence, first + block * QUERY_BLOCK, head);
                pack_transposed::<V>(
                    problem.query.as_ptr().add(row),
                    problem.query_layout.row,
                    block_queries(block),
                    head_size,
                    query_transposed.add(block * head_size * QUERY_BLOCK),
                );
                for start in (0..QUERY_BLOCK).step_by(V::LANES) {
                    V::splat(FLOOR).store(statistics(block).maximum.add(start));
                    V::zero().store(statistics(block).sum.add(start));
                }
            }
            for key in (0..key_end).step_by(KEY_BLOCK) {
                let count = KEY_BLOCK.min(key_end - key);
                let size = [count, head_size];
                let (key_row, value_row) = (problem.key_layout.row, problem.value_layout.row);
                let source = problem.key_value.as_ptr().add(problem.key_layout.at(&sequence, key, key_head));
                pack::<V>(source, key_row, size, shape.scale * LOG2_E, keys, padded);
                let source = problem.key_value.as_ptr().add(problem.value_layout.at(&sequence, key, key_head));
                prefetch(source, value_row, size);
                let mut has_values = false;
                for block in 0..blocks {
                    let query = first + block * QUERY_BLOCK;
                    let tile = problem.tile(&sequence, [query, block_queries(block)], [key, count]);
                    if tile.seen(tile.queries - 1) == 0 {
                        continue;
                    }
                    let query_transposed = query_transposed.add(block * head_size * QUERY_BLOCK);
                    score_product::<V>(&tile, keys, padded, query_transposed, head_size, scores);
                    let extras = extras::<V>(problem, &sequence, &tile, [head, query, key], bias, dropout);
                    scores::softmax::<V>(&tile, scores, extras, statistics(block));
                    if !has_values {
                        pack::<V>(source, value_row, size, 1.0, values, padded);
                        has_values = true;
                    }
                    let operands = Operands {
                        a: scores,
                        a_stride: QUERY_BLOCK,
                        b: values,
                        b_stride: padded,
                        c: output.add(block * QUERY_BLOCK * padded),
                        c_stride: padded,
                        start: if key == 0 { Start::Zero } else { Start::Scale(rescale) },
                    };
                    query_product::<V>(&tile, &operands);
                }
            }
            for block in 0..blocks {
                let Statistics { maximum, sum, .. } = statistics(block);
                let query = first + block * QUERY_BLOCK;
                let output = output.add(block * QUERY_BLOCK * padded);
                for i in 0..block_queries(block) {
                    let (source, sum) = (output.add(i * padded), *sum.add(i));
                    let to = self.output.as_ptr().add(problem.output(&sequence, head, query + i));
                    if key_end > 0 && sum != 0.0 {
                        unpack::<V>(source, padded, [1, head_size], 1.0 / sum, Write::Set, to, 0);
                    } else {
                        std::slice::from_raw_parts_mut(to, head_size).fill(0.0);
                    }
                }
                if let Some(log_sum_exp) = self.log_sum_exp {
                    let row = problem.statistic(&sequence, head, query);
                    for i in (0..block_queries(block)).step_by(V::LANES) {
                        let value = scores::log_sum_exp(V::load(maximum.add(i)), V::load(sum.add(i)));
                        value.store_partial(log_sum_exp.as_ptr().add(row + i), V::LANES.min(block_queries(block) - i));
                    }
                }
            }
        }
    }
}

/// `C[key][query] = Σ_d rows[key][d] · transposed[d][query]` wherever the query sees the key: scores from keys and
/// queries, gradients of probabilities from values and output gradients.
///
/// # Safety
/// `rows` must have the tile's keys, `transposed` its queries (see [`pack_transposed`]); `target` must be a tile.
#[inline(always)]
pub(super) unsafe fn score_product<V: Vector>(
    tile: &Tile,
    rows: *const f32,
    stride: usize,
    transposed: *const f32,
    head_size: usize,
    target: *mut f32,
) {
    let operands = Operands {
        a: rows,
        a_stride: stride,
        b: transposed,
        b_stride: QUERY_BLOCK,
        c: target,
        c_stride: QUERY_BLOCK,
        start: Start::Zero,
    };
    let vectors = tile.queries.div_ceil(V::LANES);
    // SAFETY: the caller's contract.
    unsafe {
        product::<V, false>(&operands, tile.keys, vectors, |key| tile.first_query(key) / V::LANES, |_, _| 0..head_size);
    }
}

/// `C[query][d] (+)= Σ_key A[key][query] · B[key][d]` over the keys that the query sees: output from probabilities and
/// values, gradients of queries from gradients of scores and keys.
///
/// # Safety
/// The operands must have the tile's queries and keys; rows of `B` and `C` are whole vectors.
#[inline(always)]
pub(super) unsafe fn query_product<V: Vector>(tile: &Tile, operands: &Operands) {
    let vectors = operands.b_stride / V::LANES;
    // SAFETY: the caller's contract.
    unsafe {
        product::<V, true>(operands, tile.queries, vectors, |_| 0, |query, rows| 0..tile.seen(query + rows - 1));
    }
}

/// Brings the bias and the dropout mask of a tile into scratch, in the layout of the scores, and finds the relative bias.
///
/// # Safety
/// `bias` must be a tile and `dropout` two, where the problem has them.
#[inline(always)]
pub(super) unsafe fn extras<V: Vector>(
    problem: &Problem<'_>,
    sequence: &Sequence,
    tile: &Tile,
    [head, query, key]: [usize; 3],
    bias: Scratch,
    dropout: Scratch,
) -> Extras {
    let key_time = problem.shape.key_time;
    let mut extras = Extras { bias: None, relative: None, dropout: None };
    if let Some(relative) = problem.relative {
        extras.relative = Some(relative.tile(problem.shape.mask, sequence, [head, query, key]));
    }
    // SAFETY: the caller's contract; the bias was checked to have heads x query_time x key_time values.
    unsafe {
        if let Some(values) = problem.bias {
            let source = values.as_ptr().add(problem.bias_element(sequence, head, query, key));
            transpose::<V>(source, key_time, tile.queries, tile.keys, bias, QUERY_BLOCK);
            extras.bias = Some(bias);
        }
        if let Some(mask) = problem.dropout {
            let first = problem.element(sequence, head, query, key) as u64;
            mask.fill::<V>(tile, first, key_time, dropout, dropout.add(QUERY_BLOCK * KEY_BLOCK));
            extras.dropout = Some(dropout);
        }
    }
    extras
}
