//! Embedding on the CPU. Forward: rows are copied and added, sines computed in place. Backward: the places are sorted by
//! id (stable radix sort of the ids, linear time, no memory the size of the vocabulary); then each row of the table
//! belongs to one task, which adds the gradients of its places in order. So no two threads write to a row, and the bits
//! do not depend on how rows are dealt out.

use super::rows::RowSum;
use super::simd::{Kernel, Vector, turn as sines};
use super::{Cpu, Disjoint, scratch};
use crate::ops::embedding::*;
use crate::ops::{View, Write, turn};
use std::ops::Range;

/// Values in one task of the forward pass.
const TASK_VALUES: usize = 16 * 1024;
/// Most pieces that the vocabulary is cut into.
const PIECES_MAX: usize = 256;
/// Vocabularies below this are too small, and their tokens too unevenly spread, to share out by rows alone: there
/// the channels are cut as well.
const SMALL_VOCABULARY: usize = 1024;
/// Zeros in a row from which on they are written past the caches.
const STREAMING_VALUES: usize = 16 * 1024;
/// Channels in a task where channels are cut.
const CHANNEL_BLOCK: usize = 128;
/// Lanes of the widest vector.
const LANES_MAX: usize = 16;

/// Looks up and adds.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Shape { time, channels, first_position, .. } = *shape;
    let Ids { tokens: ids, positions: position_ids, types: type_ids } = arguments.ids;
    let (ids, position_ids) = (ids.host(), position_ids.map(|ids| ids.host()));
    let tokens = arguments.token_table.host();
    let types = arguments.type_table.map(|table| table.host()).zip(type_ids.map(|ids| ids.host()));
    let output = Disjoint::new(arguments.output.host());
    let position_of = |place: usize| position_ids.map_or(first_position + place % time, |ids| ids[place] as usize);
    let (position_table, is_sinusoidal) = match arguments.positions {
        Some(Positions::Learned(table)) => (Some(table.host()), false),
        Some(Positions::Sinusoidal) => (None, true),
        None => (None, false),
    };
    let run = |sinusoids: Option<Sinusoids<'_>>| {
        cpu.pool().run_pieces(ids.len(), TASK_VALUES / channels.max(1), |_, places| {
            // SAFETY: the places of different tasks do not overlap.
            let output = unsafe { output.get(places.start * channels..places.end * channels) };
            for (place, target) in places.zip(output.chunks_exact_mut(channels.max(1))) {
                let token = row(tokens, ids[place] as usize, channels);
                let position = position_table.map(|table| row(table, position_of(place), channels));
                let kind = types.map(|(table, ids)| row(table, ids[place] as usize, channels));
                if position.is_none() && kind.is_none() && sinusoids.is_none() {
                    target.copy_from_slice(token);
                    continue;
                }
                let sinusoids = sinusoids.map(|sinusoids| (sinusoids, position_of(place) as i32));
                cpu.level().run(SetSum { token, addends: [position, kind], sinusoids, target });
            }
        });
    };
    if !is_sinusoidal {
        return run(None);
    }
    let stride = channels.next_multiple_of(LANES_MAX);
    scratch::with(3 * stride, |memory| run(Some(Sinusoids::new(channels, bytemuck::cast_slice_mut(memory)))));
}

fn row(table: &[f32], index: usize, channels: usize) -> &[f32] {
    &table[index * channels..][..channels]
}

/// Sums the gradient of each table's rows.
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let Ids { tokens, positions, types } = arguments.ids;
    let grad_output = arguments.grad_output.host();
    if let Some((grad, write)) = arguments.grad_position_table {
        match positions {
            Some(ids) => table_backward(cpu, shape.channels, shape.positions, &ids, grad_output, grad.host(), write),
            None => positions_backward(cpu, shape, grad_output, grad.host(), write),
        }
    }
    if let (Some((grad, write)), Some(ids)) = (arguments.grad_type_table, types) {
        table_backward(cpu, shape.channels, shape.types, &ids, grad_output, grad.host(), write);
    }
    if let Some((grad, write)) = arguments.grad_token_table {
        table_backward(cpu, shape.channels, shape.vocabulary, &tokens, grad_output, grad.host(), write);
    }
}

/// Sums the gradient of each of a table's `rows`, of which each place's id names one.
fn table_backward(
    cpu: &Cpu,
    channels: usize,
    rows: usize,
    ids: &View<'_, i32>,
    grad_output: &[f32],
    grad: &mut [f32],
    write: Write,
) {
    // Keys and places of the sort, each twice because it goes back and forth.
    scratch::with(4 * ids.len(), |memory| {
        let (keys, places) = sort_places(ids.host(), rows, bytemuck::cast_slice_mut(memory));
        sum_places(cpu, channels, rows, (keys, places), grad_output, grad, write);
    });
}

/// Sorts the places by id, keeping the order of equal ids: one counting pass for each byte of the largest id.
fn sort_places<'a>(ids: &[i32], vocabulary: usize, memory: &'a mut [u32]) -> (&'a [u32], &'a [u32]) {
    let (mut from, mut to) = memory.split_at_mut(2 * ids.len());
    for (place, &id) in ids.iter().enumerate() {
        from[place] = id as u32;
        from[ids.len() + place] = place as u32;
    }
    let mut shift = 0;
    while shift == 0 || vocabulary.saturating_sub(1) >> shift > 0 {
        let digit = |key: u32| (key >> shift) as usize & 0xFF;
        let (keys, places) = from.split_at(ids.len());
        let (sorted_keys, sorted_places) = to.split_at_mut(ids.len());
        let mut next = [0usize; 257];
        for &key in keys {
            next[digit(key) + 1] += 1;
        }
        for value in 0..256 {
            next[value + 1] += next[value];
        }
        for (&key, &place) in keys.iter().zip(places) {
            let slot = &mut next[digit(key)];
            sorted_keys[*slot] = key;
            sorted_places[*slot] = place;
            *slot += 1;
        }
        std::mem::swap(&mut from, &mut to);
        shift += 8;
    }
    let from: &[u32] = from;
    from.split_at(ids.len())
}

/// Adds up the gradients of each row's places; the places come sorted by their keys, the rows.
fn sum_places(
    cpu: &Cpu,
    channels: usize,
    vocabulary: usize,
    (keys, places): (&[u32], &[u32]),
    grad_output: &[f32],
    grad: &mut [f32],
    write: Write,
) {
    let grad = Disjoint::new(grad);
    let piece = vocabulary.div_ceil(PIECES_MAX).max(1);
    let channel_block = if vocabulary < SMALL_VOCABULARY { CHANNEL_BLOCK } else { channels.max(1) };
    let blocks = channels.div_ceil(channel_block);
    cpu.pool().run(vocabulary.div_ceil(piece) * blocks, |task| {
        let rows = task / blocks * piece..vocabulary.min((task / blocks + 1) * piece);
        let start = task % blocks * channel_block;
        let columns = start..channels.min(start + channel_block);
        let mut at = keys.partition_point(|&key| (key as usize) < rows.start);
        if write == Write::Add {
            // Only rows that occur are touched.
            while let Some(&key) = keys.get(at).filter(|&&key| (key as usize) < rows.end) {
                let occurrences = occurrences(&keys[at..], key);
                // SAFETY: a task has its rows and columns to itself.
                let target = unsafe { grad.get(row_part(key as usize, channels, &columns)) };
                let places = &places[at..at + occurrences];
                cpu.level().run(SumRows { grad_output, places, channels, start, target, write });
                at += occurrences;
            }
            return;
        }
        let mut row = rows.start;
        while row < rows.end {
            let occurrences = occurrences(&keys[at..], row as u32);
            if occurrences > 0 {
                // SAFETY: a task has its rows and columns to itself.
                let target = unsafe { grad.get(row_part(row, channels, &columns)) };
                let places = &places[at..at + occurrences];
                cpu.level().run(SumRows { grad_output, places, channels, start, target, write });
                at += occurrences;
                row += 1;
                continue;
            }
            // Rows that do not occur lie next to each other, unless only some of their columns are ours.
            let next = keys.get(at).map_or(rows.end, |&key| rows.end.min(key as usize));
            let absent = row..if blocks == 1 { next } else { row + 1 };
            let part = absent.start * channels + columns.start..(absent.end - 1) * channels + columns.end;
            // SAFETY: as above.
            cpu.level().run(Zero(unsafe { grad.get(part) }));
            row = absent.end;
        }
    });
}

/// How many entries at the start of the sorted `keys` are `key`.
fn occurrences(keys: &[u32], key: u32) -> usize {
    keys.iter().take_while(|&&other| other == key).count()
}

fn row_part(row: usize, channels: usize, columns: &Range<usize>) -> Range<usize> {
    row * channels + columns.start..row * channels + columns.end
}

fn positions_backward(cpu: &Cpu, shape: &Shape, grad_output: &[f32], grad: &mut [f32], write: Write) {
    let Shape { batch, time, channels, first_position, .. } = *shape;
    let used = first_position * channels..(first_position + time) * channels;
    if write == Write::Set {
        grad[..used.start].fill(0.0);
        grad[used.end..].fill(0.0);
    }
    let grad = Disjoint::new(&mut grad[used]);
    cpu.pool().run_pieces(time, TASK_VALUES / (channels * batch).max(1), |_, times| {
        for t in times {
            // SAFETY: a task has its positions to itself.
            let target = unsafe { grad.get(t * channels..(t + 1) * channels) };
            cpu.level().run(SumStrided { grad_output, first: t, stride: time, count: batch, target, write });
        }
    });
}

/// Sets to zero, past the caches where there is much of it: nearly all of a large table's gradient is zero.
struct Zero<'a>(&'a mut [f32]);

impl Kernel for Zero<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        if self.0.len() < STREAMING_VALUES {
            self.0.fill(0.0);
            return;
        }
        let vector_bytes = 4 * V::LANES;
        let head = (self.0.as_ptr().addr().wrapping_neg() % vector_bytes) / 4;
        let (head, body) = self.0.split_at_mut(head);
        let (body, tail) = body.split_at_mut(body.len() / V::LANES * V::LANES);
        head.fill(0.0);
        for vector in body.chunks_exact_mut(V::LANES) {
            // SAFETY: aligned, since `head` ends where a vector may start, and as long as a vector.
            unsafe { V::zero().store_streaming(vector.as_mut_ptr()) };
        }
        tail.fill(0.0);
        V::streaming_fence();
    }
}

/// What the sinusoidal vectors of all positions are made of, column by column: the two halves of the frequency, and the
/// angle at position 0, which makes a cosine of every other sine.
#[derive(Clone, Copy)]
struct Sinusoids<'a> {
    high: &'a [i32],
    low: &'a [i32],
    start: &'a [i32],
}

impl<'a> Sinusoids<'a> {
    /// In `memory` of three times as many columns, padded to whole vectors.
    fn new(channels: usize, memory: &'a mut [i32]) -> Self {
        let stride = memory.len() / 3;
        let (high, rest) = memory.split_at_mut(stride);
        let (low, start) = rest.split_at_mut(stride);
        for c in 0..stride {
            let frequency = turn::frequency(SINUSOIDAL_BASE, channels, c / 2);
            high[c] = (frequency >> 32) as u32 as i32;
            low[c] = frequency as u32 as i32;
            start[c] = if c.is_multiple_of(2) { 0 } else { turn::QUARTER as i32 };
        }
        Self { high, low, start }
    }

    /// Columns from `column` on of a position's vector.
    #[inline(always)]
    fn at<V: Vector>(&self, position: V::Int, column: usize) -> V {
        let load = |values: &[i32]| {
            let values = &values[column..column + V::LANES];
            // SAFETY: a whole vector is there.
            unsafe { V::int_load(values.as_ptr()) }
        };
        let angle = sines::angle::<V>(position, load(self.high), load(self.low));
        sines::sine(V::int_add(angle, load(self.start)))
    }
}

/// `target = token + addends`, of which some may be absent.
struct SetSum<'a> {
    token: &'a [f32],
    /// Each as long as the token's row.
    addends: [Option<&'a [f32]>; 2],
    /// And the position whose vector is added.
    sinusoids: Option<(Sinusoids<'a>, i32)>,
    target: &'a mut [f32],
}

impl Kernel for SetSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let length = self.target.len();
        for i in (0..length).step_by(V::LANES) {
            // SAFETY: all have `length` elements.
            unsafe {
                let mut sum = V::load_up_to(self.token.as_ptr().add(i), length - i);
                for addend in self.addends.into_iter().flatten() {
                    sum = sum.add(V::load_up_to(addend.as_ptr().add(i), length - i));
                }
                if let Some((sinusoids, position)) = &self.sinusoids {
                    sum = sum.add(sinusoids.at::<V>(V::int_splat(*position), i));
                }
                sum.store_up_to(self.target.as_mut_ptr().add(i), length - i);
            }
        }
    }
}

/// Sums columns `start ..` of the rows that `places` names, in their order.
struct SumRows<'a> {
    grad_output: &'a [f32],
    places: &'a [u32],
    channels: usize,
    start: usize,
    target: &'a mut [f32],
    write: Write,
}

impl Kernel for SumRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { grad_output: matrix, places, channels, start, target, write } = self;
        let row = |i: usize| places[i] as usize;
        let sum = RowSum { matrix, channels, start, columns: target.len(), count: places.len(), row };
        write_sum::<V>(&sum, target, write);
    }
}

/// Sums `count` whole rows from `first` on, `stride` rows apart, in order.
struct SumStrided<'a> {
    grad_output: &'a [f32],
    first: usize,
    stride: usize,
    count: usize,
    target: &'a mut [f32],
    write: Write,
}

impl Kernel for SumStrided<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { grad_output: matrix, first, stride, count, target, write } = self;
        let (channels, row) = (target.len(), |i: usize| first + i * stride);
        write_sum::<V>(&RowSum { matrix, channels, start: 0, columns: channels, count, row }, target, write);
    }
}

/// Sets `target`, as long as the sum has columns, or adds to it.
#[inline(always)]
fn write_sum<V: Vector>(sum: &RowSum<'_, impl Fn(usize) -> usize>, target: &mut [f32], write: Write) {
    debug_assert_eq!(sum.columns, target.len());
    sum.run::<V>(|column, sum, left| {
        // SAFETY: `left` values of the target, at most, are left from `column` on.
        unsafe {
            let place = target.as_mut_ptr().add(column);
            let sum = if write == Write::Add { sum.add(V::load_up_to(place, left)) } else { sum };
            sum.store_up_to(place, left);
        }
    });
}
