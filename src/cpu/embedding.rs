//! Embedding on the CPU. Forward: rows are copied and added. Backward: the places are sorted by token (stable radix
//! sort of the ids, linear time, no memory the size of the vocabulary); then each row of the table belongs to one
//! task, which adds the gradients of its places in order. So no two threads write to a row, and the bits do not
//! depend on how rows are dealt out.

use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::Write;
use crate::ops::embedding::*;
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

/// Looks up and adds.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Shape { time, channels, first_position, .. } = *shape;
    let (ids, tokens) = (arguments.ids.host(), arguments.token_table.host());
    let positions = arguments.position_table.map(|table| table.host());
    let output = Disjoint::new(arguments.output.host());
    cpu.pool().run_pieces(ids.len(), TASK_VALUES / channels.max(1), |_, places| {
        // SAFETY: the places of different tasks do not overlap.
        let output = unsafe { output.get(places.start * channels..places.end * channels) };
        for (place, target) in places.zip(output.chunks_exact_mut(channels.max(1))) {
            let token = &tokens[ids[place] as usize * channels..][..channels];
            match positions {
                None => target.copy_from_slice(token),
                Some(table) => {
                    let position = &table[(first_position + place % time) * channels..][..channels];
                    cpu.level().run(SetSum { a: token, b: position, target });
                }
            }
        }
    });
}

/// Sums the gradient of each table's rows.
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let (ids, grad_output) = (arguments.ids.host(), arguments.grad_output.host());
    if let Some((grad, write)) = arguments.grad_position_table {
        positions_backward(cpu, shape, grad_output, grad.host(), write);
    }
    if let Some((grad, write)) = arguments.grad_token_table {
        // Keys and places of the sort, each twice because it goes back and forth.
        scratch::with(4 * ids.len(), |memory| {
            let (keys, places) = sort_places(ids, shape.vocabulary, bytemuck::cast_slice_mut(memory));
            tokens_backward(cpu, shape, keys, places, grad_output, grad.host(), write);
        });
    }
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

fn tokens_backward(
    cpu: &Cpu,
    shape: &Shape,
    keys: &[u32],
    places: &[u32],
    grad_output: &[f32],
    grad: &mut [f32],
    write: Write,
) {
    let Shape { channels, vocabulary, .. } = *shape;
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

/// `target = a + b`.
struct SetSum<'a> {
    a: &'a [f32],
    b: &'a [f32],
    target: &'a mut [f32],
}

impl Kernel for SetSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let length = self.target.len();
        for i in (0..length).step_by(V::LANES) {
            // SAFETY: all three have `length` elements.
            unsafe {
                let sum = V::load_up_to(self.a.as_ptr().add(i), length - i)
                    .add(V::load_up_to(self.b.as_ptr().add(i), length - i));
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
        let row = |i: usize| self.places[i] as usize;
        sum_rows::<V>(self.grad_output, self.channels, self.start, self.places.len(), row, self.target, self.write);
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
        let row = |i: usize| self.first + i * self.stride;
        sum_rows::<V>(self.grad_output, self.target.len(), 0, self.count, row, self.target, self.write);
    }
}

/// Sums columns `start .. start + target.len()` of `count` rows. Four vectors of columns at a time stay in registers
/// while the rows go by.
#[inline(always)]
fn sum_rows<V: Vector>(
    grad_output: &[f32],
    channels: usize,
    start: usize,
    count: usize,
    row: impl Fn(usize) -> usize,
    target: &mut [f32],
    write: Write,
) {
    let length = target.len();
    let mut column = 0;
    while column < length {
        let wide = column + 4 * V::LANES <= length;
        let width = if wide { 4 } else { 1 };
        let left = length - column;
        let mut sums = [V::zero(); 4];
        for i in 0..count {
            let source = &grad_output[row(i) * channels + start + column..][..left.min(width * V::LANES)];
            // SAFETY: the slice just taken covers what is read.
            unsafe {
                if wide {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = sum.add(V::load(source.as_ptr().add(j * V::LANES)));
                    }
                } else {
                    sums[0] = sums[0].add(V::load_up_to(source.as_ptr(), left));
                }
            }
        }
        for (j, sum) in sums.iter().enumerate().take(width) {
            // SAFETY: `left` values of the target are left from `column` on, and four vectors where `wide`.
            unsafe {
                let place = target.as_mut_ptr().add(column + j * V::LANES);
                let left = left - j * V::LANES;
                let sum = if write == Write::Add { sum.add(V::load_up_to(place, left)) } else { *sum };
                sum.store_up_to(place, left);
            }
        }
        column += width * V::LANES;
    }
}
