//! Backward pass: tasks over (sequence, part of its keys, key/value head); FlashAttention-2's five products for each
//! tile, with the probabilities recomputed as `P = exp(S - log_sum_exp)`:
//!
//! ```text
//!   dV += Pᵀ dO    dP = dO Vᵀ    dS = P ⊙ (dP - delta), delta = rowsum(dO ⊙ O)    dQ += scale · dS K    dK += scale · dSᵀ Q
//! ```
//!
//! A task owns its rows of `dK` and `dV`, and sums them in scratch over the queries (and over the heads of its group).
//! Gradients of queries are sums over keys. Where there are enough heads one task has all keys of a head and writes
//! them in place; else the keys are cut into a few parts, each with its own partial result, added in order at the end.
//! The cut depends on the sizes alone, so any number of threads gives the same bits; a document is cut as if it were
//! alone.
//!
//! The gradient of the bias is a sum over the batch: where it is wanted, sequences are taken one after the other. That of
//! a relative bias is small: each task sums its diagonals apart, and the sums are added in the order of the batch.

use super::forward::{extras, query_product, score_product};
use super::scores::{Extras, softmax_gradient};
use super::tile::{KEY_BLOCK, Operands, QUERY_BLOCK, Start, Tile, pack, pack_transposed, prefetch, product, unpack};
use super::{Layout, Problem, Scratch, Sequence, relative, with_scratch};
use crate::cpu::simd::{Kernel, Vector};
use crate::cpu::{Cpu, Disjoint, scratch};
use crate::ops::attention::{GradInputs, Mask};
use crate::ops::{ViewMut, Write};
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Bytes of keys, values and their gradients that a task works on at a time: half of a usual second-level cache.
const RANGE_BYTES: usize = 512 << 10;
/// Tasks that are enough to leave the keys of a head in one piece: partial results cost memory traffic, and tasks of
/// the same size even out by themselves.
const ENOUGH_TASKS: usize = 8;
/// Fewest keys in a part, so that packing the queries for each part stays small change.
const LEAST_PART: usize = 2 * KEY_BLOCK;

/// What the forward pass left, and the gradient that came back.
pub(super) struct Results<'a> {
    pub output: &'a [f32],
    pub log_sum_exp: &'a [f32],
    pub grad_output: &'a [f32],
}

/// A gradient to write: where, how its rows lie, and whether to add.
#[derive(Clone, Copy)]
struct Target<'a> {
    data: Disjoint<'a, f32>,
    layout: Layout,
    write: Write,
}

/// Everything that is the same for all tasks.
#[derive(Clone, Copy)]
struct Gradients<'a> {
    problem: &'a Problem<'a>,
    results: &'a Results<'a>,
    query: Option<Target<'a>>,
    key: Option<Target<'a>>,
    value: Option<Target<'a>>,
    bias: Option<Disjoint<'a, f32>>,
    /// Partial gradients of the queries, rows of `(H·D)`; see [`Share`].
    partial: Disjoint<'a, f32>,
    /// Sums along diagonals, where the gradient of the relative bias is wanted; see [`Share`].
    diagonals: Option<Disjoint<'a, f32>>,
    /// Most keys that are worked on at a time, a whole number of blocks.
    range: usize,
    /// Head size rounded up to whole vectors.
    padded: usize,
}

/// Computes the gradients of every head.
pub(super) fn run(
    cpu: &Cpu,
    problem: &Problem<'_>,
    results: Results<'_>,
    grad_inputs: GradInputs<'_>,
    grad_bias: Option<(ViewMut<'_, f32>, Write)>,
    grad_relative_bias: Option<(ViewMut<'_, f32>, Write)>,
) {
    let shape = &problem.shape;
    let (query, key, value) = targets(problem, grad_inputs);
    let bias = grad_bias.map(|(view, write)| {
        let values = view.host();
        if write == Write::Set {
            values.fill(0.0);
        }
        Disjoint::new(values)
    });
    let padded = shape.head_size.next_multiple_of(cpu.level().lanes());
    let sequences = problem.sequences();
    let together = if bias.is_some() { 1 } else { sequences.len().max(1) };
    let alone = if problem.documents.is_some() { 1 } else { together };
    let wanted = ENOUGH_TASKS.div_ceil((alone * shape.key_value_heads).max(1));
    let (mut partial_rows, mut diagonals) = (0, 0);
    let share = |sequence: Sequence| {
        let part = sequence.keys.div_ceil(wanted.min((sequence.keys / LEAST_PART).max(1)));
        let part = part.next_multiple_of(KEY_BLOCK).max(KEY_BLOCK);
        let parts = sequence.keys.div_ceil(part).max(1);
        let partial = (parts > 1 && query.is_some()).then_some(partial_rows);
        partial_rows += partial.map_or(0, |_| parts * sequence.queries);
        let first_diagonal = diagonals;
        diagonals += parts * shape.heads * relative::diagonals(&sequence);
        Share { sequence, part, parts, partial, diagonals: first_diagonal }
    };
    let shares: Vec<Share> = sequences.into_iter().map(share).collect();
    let longest = shares.iter().map(|share| share.part).max().unwrap_or(0);
    let range = (RANGE_BYTES / (4 * size_of::<f32>() * padded)).next_multiple_of(KEY_BLOCK).min(longest);

    let diagonals = if grad_relative_bias.is_some() { diagonals } else { 0 };
    let partials = partial_rows * shape.query_columns();
    scratch::with(partials.next_multiple_of(16) + diagonals, |memory| {
        let (partial, diagonals) = memory.split_at_mut(partials.next_multiple_of(16));
        let (partial, diagonals) =
            (Disjoint::new(partial), grad_relative_bias.is_some().then(|| Disjoint::new(diagonals)));
        let results = &results;
        let gradients = Gradients { problem, results, query, key, value, bias, partial, diagonals, range, padded };
        for shares in shares.chunks(together) {
            let mut parts: Vec<Part> = shares.iter().flat_map(Share::parts).collect();
            // The most work first, so that threads finish together: under a causal mask the first part is the longest.
            parts.sort_by_key(|part| std::cmp::Reverse(part.work(problem)));
            cpu.pool().run(parts.len() * shape.key_value_heads, |task| {
                let (part, key_head) = (parts[task / shape.key_value_heads], task % shape.key_value_heads);
                with_scratch(gradients.scratch_sizes(), |scratch| {
                    cpu.level().run(Task { gradients, part, key_head, scratch });
                });
            });
        }
        if let (Some((gradient, write)), Some(diagonals)) = (grad_relative_bias, diagonals) {
            sum_diagonals(cpu, problem, &shares, diagonals, gradient, write);
        }
        let Some(target) = query else { return };
        let rows: Vec<(&Share, Range<usize>)> = shares.iter().flat_map(Share::rows_to_sum).collect();
        cpu.pool().run(rows.len(), |task| {
            let (share, rows) = &rows[task];
            cpu.level().run(SumParts { problem, target, partial, share, rows: rows.clone() });
        });
    });
}

/// A sequence and how its keys are cut.
#[derive(Clone, Copy)]
struct Share {
    sequence: Sequence,
    /// Keys in each part, a whole number of blocks.
    part: usize,
    parts: usize,
    /// The first row of its partial gradients of queries, where it has any: all queries of the first part come first.
    partial: Option<usize>,
    /// The first of its sums along diagonals: rows of [`relative::diagonals`] elements, all heads of the first part first.
    diagonals: usize,
}

impl Share {
    fn parts(&self) -> impl Iterator<Item = Part> {
        let share = *self;
        (0..self.parts).map(move |index| Part { share, index })
    }

    /// Rows of queries whose partial gradients are to be added up, in pieces.
    fn rows_to_sum(&self) -> impl Iterator<Item = (&Self, Range<usize>)> {
        let queries = if self.partial.is_some() { self.sequence.queries } else { 0 };
        (0..queries).step_by(QUERY_BLOCK).map(move |first| (self, first..queries.min(first + QUERY_BLOCK)))
    }
}

/// Adds up the sums along diagonals, head by head, in the order of the batch and of the parts.
fn sum_diagonals(
    cpu: &Cpu,
    problem: &Problem<'_>,
    shares: &[Share],
    diagonals: Disjoint<'_, f32>,
    gradient: ViewMut<'_, f32>,
    write: Write,
) {
    let heads = problem.shape.heads;
    let gradient = gradient.host();
    let row = gradient.len() / heads;
    let gradient = Disjoint::new(gradient);
    cpu.pool().run(heads, |head| {
        // SAFETY: a row for each task, and the tasks that wrote the sums are done.
        let gradient = unsafe { gradient.get(head * row..(head + 1) * row) };
        if write == Write::Set {
            gradient.fill(0.0);
        }
        for share in shares {
            let width = relative::diagonals(&share.sequence);
            for part in 0..share.parts {
                let first = share.diagonals + (part * heads + head) * width;
                // SAFETY: as above.
                let sums = unsafe { diagonals.get(first..first + width) };
                relative::add_to_table(problem, &share.sequence, sums, gradient);
            }
        }
    });
}

/// One part of a sequence's keys.
#[derive(Clone, Copy)]
struct Part {
    share: Share,
    index: usize,
}

impl Part {
    fn keys(&self) -> Range<usize> {
        let Share { sequence, part, .. } = self.share;
        self.index * part..sequence.keys.min((self.index + 1) * part)
    }

    /// In proportion to the time that it takes.
    fn work(&self, problem: &Problem<'_>) -> usize {
        let Sequence { queries, keys, length, .. } = self.share.sequence;
        let Range { start, end } = self.keys();
        let unseeing = match problem.shape.mask {
            Mask::Full => 0,
            Mask::Causal => (start + queries).saturating_sub(keys),
        };
        // What is not visible is only filled with zeros.
        (end.min(length).saturating_sub(start) + 1) * (queries - unseeing)
    }
}

/// The three targets that `grad_inputs` stands for.
fn targets<'a>(
    problem: &Problem<'_>,
    grad_inputs: GradInputs<'a>,
) -> (Option<Target<'a>>, Option<Target<'a>>, Option<Target<'a>>) {
    let make = |data, layout, write| Some(Target { data, layout, write });
    match grad_inputs {
        GradInputs::Packed(view, write) => {
            let data = Disjoint::new(view.host());
            (
                make(data, problem.query_layout, write),
                make(data, problem.key_layout, write),
                make(data, problem.value_layout, write),
            )
        }
        GradInputs::Separate { query, key_value } => {
            let query = query.and_then(|(view, write)| make(Disjoint::new(view.host()), problem.query_layout, write));
            let key_value = key_value.map(|(view, write)| (Disjoint::new(view.host()), write));
            (
                query,
                key_value.and_then(|(data, write)| make(data, problem.key_layout, write)),
                key_value.and_then(|(data, write)| make(data, problem.value_layout, write)),
            )
        }
    }
}

impl Gradients<'_> {
    /// Scratch of a task, in the order in which [`Task`] names it.
    fn scratch_sizes(&self) -> [usize; 13] {
        let (range, queries, tile) = (self.range * self.padded, QUERY_BLOCK * self.padded, QUERY_BLOCK * KEY_BLOCK);
        let transposed = self.problem.shape.head_size * QUERY_BLOCK;
        let bias = if self.problem.bias.is_some() { tile } else { 0 };
        let dropout = if self.problem.dropout.is_some() { 2 * tile } else { 0 };
        [
            range,
            range,
            range,
            range,
            transposed,
            transposed,
            queries,
            queries,
            queries,
            2 * QUERY_BLOCK,
            // Sums along diagonals read a vector beyond the second tile.
            2 * tile + 16,
            bias,
            dropout,
        ]
    }
}

/// One task: a part of a sequence's keys, for one key/value head.
struct Task<'a> {
    gradients: Gradients<'a>,
    part: Part,
    key_head: usize,
    scratch: [Scratch; 13],
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Range { start, end } = self.part.keys();
        for head in self.heads() {
            if let Some(row) = self.diagonals(head) {
                // SAFETY: only this task has this row.
                unsafe {
                    std::slice::from_raw_parts_mut(row, relative::diagonals(&self.part.share.sequence)).fill(0.0)
                };
            }
        }
        let mut first = start;
        // Once at least, even without keys, so that the gradient of the queries is written.
        loop {
            let last = end.min(first + self.gradients.range);
            // SAFETY: see `range`; only this task has these rows.
            unsafe { self.range::<V>(first, last, first == start) };
            first = last;
            if first >= end {
                break;
            }
        }
    }
}

impl Task<'_> {
    /// Query heads of this task.
    fn heads(&self) -> Range<usize> {
        let group = self.gradients.problem.group();
        self.key_head * group..(self.key_head + 1) * group
    }

    /// Where this task sums the diagonals of a head, if they are wanted.
    #[inline(always)]
    fn diagonals(&self, head: usize) -> Option<*mut f32> {
        let Part { share, index } = self.part;
        let row = index * self.gradients.problem.shape.heads + head;
        let at = share.diagonals + row * relative::diagonals(&share.sequence);
        Some(self.gradients.diagonals?.as_ptr().wrapping_add(at))
    }

    /// The keys `first..last` against all queries.
    ///
    /// # Safety
    /// No other task may have the same rows of the gradients.
    #[inline(always)]
    unsafe fn range<V: Vector>(&self, first: usize, last: usize, is_first: bool) {
        let Self { gradients: tasks, part, key_head, .. } = *self;
        let Gradients { problem, padded, .. } = tasks;
        let sequence = part.share.sequence;
        let shape = &problem.shape;
        let head_size = shape.head_size;
        let [keys, values, grad_keys, grad_values, ..] = self.scratch;
        let visible = last.min(sequence.length).max(first);
        let key_factor = shape.scale * LOG2_E;
        // SAFETY: scratch is sized by `scratch_sizes`; input indices are in bounds because `ops` checked the lengths.
        unsafe {
            for (layout, factor, target) in
                [(&problem.key_layout, key_factor, keys), (&problem.value_layout, 1.0, values)]
            {
                if visible > first {
                    let source = problem.key_value.as_ptr().add(layout.at(&sequence, first, key_head));
                    pack::<V>(source, layout.row, [visible - first, head_size], factor, target, padded);
                }
            }
            // The others are overwritten by the first block of queries that sees them, and the last one sees them all.
            let unseen = if sequence.queries == 0 { first } else { visible };
            for gradient in [grad_keys, grad_values] {
                for at in ((unseen - first) * padded..(last - first) * padded).step_by(V::LANES) {
                    V::zero().store(gradient.add(at));
                }
            }
            for head in self.heads() {
                for query in (0..sequence.queries).step_by(QUERY_BLOCK) {
                    let queries = QUERY_BLOCK.min(sequence.queries - query);
                    self.query_block::<V>(head, query, queries, first..visible, is_first);
                }
            }
            let size = [last - first, head_size];
            for (target, factor, gradient) in [(tasks.key, shape.scale, grad_keys), (tasks.value, 1.0, grad_values)] {
                if let Some(target) = target
                    && last > first
                {
                    let to = target.data.as_ptr().add(target.layout.at(&sequence, first, key_head));
                    unpack::<V>(gradient, padded, size, factor, target.write, to, target.layout.row);
                }
            }
        }
    }

    /// One block of queries against the keys of a range.
    #[inline(always)]
    unsafe fn query_block<V: Vector>(
        &self,
        head: usize,
        query: usize,
        queries: usize,
        key_range: Range<usize>,
        is_first: bool,
    ) {
        let Self { gradients: tasks, part, .. } = *self;
        let Gradients { problem, results, padded, .. } = tasks;
        let sequence = part.share.sequence;
        let shape = &problem.shape;
        let head_size = shape.head_size;
        let [
            keys,
            values,
            grad_keys,
            grad_values,
            query_transposed,
            grad_output_transposed,
            query_rows,
            grad_output_rows,
            grad_query,
            statistics,
            scores,
            bias,
            dropout,
        ] = self.scratch;
        let gradients = scores.wrapping_add(QUERY_BLOCK * KEY_BLOCK);
        let (log_sum_exp, delta) = (statistics, statistics.wrapping_add(QUERY_BLOCK));
        let key_end = key_range.end.min(problem.seen(&sequence, query + queries - 1));
        // SAFETY: scratch is sized by `scratch_sizes`; indices are in bounds because `ops` checked the lengths.
        unsafe {
            if key_end > key_range.start {
                let size = [queries, head_size];
                let columns = shape.query_columns();
                let row = problem.output(&sequence, head, query);
                let (output, grad_output) = (results.output.as_ptr().add(row), results.grad_output.as_ptr().add(row));
                prefetch(grad_output, columns, size);
                let source = problem.query.as_ptr().add(problem.query_layout.at(&sequence, query, head));
                pack::<V>(source, problem.query_layout.row, size, 1.0, query_rows, padded);
                pack_transposed::<V>(query_rows, padded, queries, head_size, query_transposed);
                prefetch(output, columns, size);
                pack::<V>(grad_output, columns, size, 1.0, grad_output_rows, padded);
                pack_transposed::<V>(grad_output_rows, padded, queries, head_size, grad_output_transposed);
                let row = problem.statistic(&sequence, head, query);
                for i in 0..queries {
                    *delta.add(i) = dot::<V>(grad_output_rows.add(i * padded), output.add(i * columns), head_size);
                    let value = results.log_sum_exp[row + i];
                    // A row that sees nothing: any score minus infinity has the exponential zero.
                    *log_sum_exp.add(i) = if value == f32::NEG_INFINITY { f32::INFINITY } else { value * LOG2_E };
                }
            }
            for key in (key_range.start..key_end).step_by(KEY_BLOCK) {
                // All rows of the block, even those that only later queries see: the first visit overwrites the sums.
                let tile = problem.tile(&sequence, [query, queries], [key, KEY_BLOCK.min(key_range.end - key)]);
                let at = (key - key_range.start) * padded;
                score_product::<V>(&tile, keys.add(at), padded, query_transposed, head_size, scores);
                score_product::<V>(&tile, values.add(at), padded, grad_output_transposed, head_size, gradients);
                let extras: Extras = extras::<V>(problem, &sequence, &tile, [head, query, key], bias, dropout);
                softmax_gradient::<V>(&tile, scores, gradients, extras, log_sum_exp, delta);
                let is_seen_first =
                    head.is_multiple_of(problem.group()) && (query == 0 || problem.seen(&sequence, query - 1) <= key);
                let start = if is_seen_first { Start::Zero } else { Start::Keep };
                key_product::<V>(&tile, scores, grad_output_rows, grad_values.add(at), padded, start);
                key_product::<V>(&tile, gradients, query_rows, grad_keys.add(at), padded, start);
                let operands = Operands {
                    a: gradients,
                    a_stride: QUERY_BLOCK,
                    b: keys.add(at),
                    b_stride: padded,
                    c: grad_query,
                    c_stride: padded,
                    start: if key == key_range.start { Start::Zero } else { Start::Keep },
                };
                query_product::<V>(&tile, &operands);
                if let Some(row) = self.diagonals(head) {
                    // Of the tile's first query and key.
                    let first = row.add(sequence.keys - 1 + query).sub(key);
                    relative::add_diagonals::<V>(&tile, gradients, first);
                }
                if let Some(grad_bias) = tasks.bias {
                    let target = grad_bias.as_ptr().add(problem.bias_element(&sequence, head, query, key));
                    add_transposed(&tile, gradients, target, shape.key_time);
                }
            }
            let Some(target) = tasks.query else { return };
            let (to, row, write) = match part.share.partial {
                None => (
                    target.data.as_ptr().add(target.layout.at(&sequence, query, head)),
                    target.layout.row,
                    target.write,
                ),
                Some(first) => {
                    let row = shape.query_columns();
                    let at = (first + part.index * sequence.queries + query) * row + head * head_size;
                    (tasks.partial.as_ptr().add(at), row, Write::Set)
                }
            };
            let write = if is_first { write } else { Write::Add };
            if key_end > key_range.start {
                // The packed keys carry `scale · log2 e`.
                unpack::<V>(grad_query, padded, [queries, head_size], LN_2, write, to, row);
            } else if write == Write::Set {
                for i in 0..queries {
                    std::slice::from_raw_parts_mut(to.add(i * row), head_size).fill(0.0);
                }
            }
        }
    }
}

/// `C[key][d] (+)= Σ_query A[key][query] · B[query][d]` over the queries that see the key: gradients of values from
/// probabilities and output gradients, of keys from gradients of scores and queries.
///
/// # Safety
/// `a` must be a tile, `b` have the tile's queries and `c` its keys, in rows of `padded` values.
#[inline(always)]
unsafe fn key_product<V: Vector>(tile: &Tile, a: *const f32, b: *const f32, c: *mut f32, padded: usize, start: Start) {
    let operands = Operands { a, a_stride: QUERY_BLOCK, b, b_stride: padded, c, c_stride: padded, start };
    // SAFETY: the caller's contract.
    unsafe {
        product::<V, false>(
            &operands,
            tile.keys,
            padded / V::LANES,
            |_| 0,
            |key, _| tile.first_query(key).min(tile.queries)..tile.queries,
        );
    }
}

/// `target[query * stride + key] += tile[key][query]` wherever the query sees the key.
///
/// # Safety
/// `gradients` must be a tile, `target` valid for the tile's queries and keys.
#[inline(always)]
unsafe fn add_transposed(tile: &Tile, gradients: *const f32, target: *mut f32, stride: usize) {
    for i in 0..tile.queries {
        for j in 0..tile.seen(i) {
            // SAFETY: the caller's contract.
            unsafe { *target.add(i * stride + j) += *gradients.add(j * QUERY_BLOCK + i) };
        }
    }
}

/// `Σ a[d] · b[d]`.
#[inline(always)]
unsafe fn dot<V: Vector>(a: *const f32, b: *const f32, length: usize) -> f32 {
    let whole = length - length % V::LANES;
    let mut sum = V::zero();
    // SAFETY: the caller's: `length` values each.
    unsafe {
        for d in (0..whole).step_by(V::LANES) {
            sum = V::load(a.add(d)).mul_add(V::load(b.add(d)), sum);
        }
        if whole < length {
            let (a, b) = (a.add(whole), b.add(whole));
            sum = V::load_partial(a, length - whole).mul_add(V::load_partial(b, length - whole), sum);
        }
    }
    sum.reduce_add()
}

/// Adds up the partial gradients of some rows of a sequence's queries, in the order of the parts.
struct SumParts<'a> {
    problem: &'a Problem<'a>,
    target: Target<'a>,
    partial: Disjoint<'a, f32>,
    share: &'a Share,
    rows: Range<usize>,
}

impl Kernel for SumParts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { problem, target, partial, share, rows } = self;
        let columns = problem.shape.query_columns();
        let Share { sequence, parts, partial: Some(first), .. } = *share else { return };
        for query in rows {
            // SAFETY: both were sized for these rows, and no other task has them.
            unsafe {
                let to = target.data.as_ptr().add(target.layout.at(&sequence, query, 0));
                for column in (0..columns).step_by(V::LANES) {
                    let lanes = V::LANES.min(columns - column);
                    let mut sum = V::zero();
                    if target.write == Write::Add {
                        sum = V::load_partial(to.add(column), lanes);
                    }
                    for part in 0..parts {
                        let from = (first + part * sequence.queries + query) * columns + column;
                        sum = sum.add(V::load_partial(partial.as_ptr().add(from), lanes));
                    }
                    sum.store_partial(to.add(column), lanes);
                }
            }
        }
    }
}
