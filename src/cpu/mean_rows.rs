//! Means of ranges of rows on the CPU: a sum over rows that lie one after the other, and a copy of a scaled row to many.

use super::rows::RowSum;
use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::Write;
use crate::ops::mean_rows::*;

/// Values in one task.
const TASK_VALUES: usize = 16 * 1024;
/// Channels in a task: a few long ranges are shared out by their columns too.
const CHANNEL_BLOCK: usize = 128;

/// Takes the mean of each range.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Shape { rows, channels, ranges: count } = *shape;
    let (input, ranges) = (arguments.input.host(), arguments.ranges.host());
    let output = Disjoint::new(arguments.output.host());
    let blocks = channels.div_ceil(CHANNEL_BLOCK);
    let mean_length = rows.div_ceil(count.max(1)).max(1);
    cpu.pool().run_pieces(count * blocks, TASK_VALUES / (CHANNEL_BLOCK * mean_length), |_, parts| {
        for part in parts {
            let (m, start) = (part / blocks, part % blocks * CHANNEL_BLOCK);
            let end = channels.min(start + CHANNEL_BLOCK);
            // SAFETY: a part has its row and columns to itself.
            let target = unsafe { output.get(m * channels + start..m * channels + end) };
            let (first, end) = (ranges[2 * m] as usize, ranges[2 * m + 1] as usize);
            if first == end {
                target.fill(0.0);
                continue;
            }
            cpu.level().run(Mean { input, channels, start, first, count: end - first, target });
        }
    });
}

/// Gives each row its share of its range's gradient.
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let channels = shape.channels;
    let (ranges, grad_output) = (arguments.ranges.host(), arguments.grad_output.host());
    let (grad_input, write) = (Disjoint::new(arguments.grad_input.0.host()), arguments.grad_input.1);
    // The ranges that are not empty, which are in order, so that each task finds its own: first row, end, number.
    scratch::with(3 * shape.ranges, |memory| {
        let memory: &mut [u32] = bytemuck::cast_slice_mut(memory);
        let mut count = 0;
        for (m, range) in ranges.chunks_exact(2).enumerate().filter(|(_, range)| range[0] < range[1]) {
            memory[3 * count..3 * count + 3].copy_from_slice(&[range[0] as u32, range[1] as u32, m as u32]);
            count += 1;
        }
        let (filled, _) = memory[..3 * count].as_chunks::<3>();
        cpu.pool().run_pieces(shape.rows, TASK_VALUES / channels.max(1), |_, rows| {
            let mut next = filled.partition_point(|range| range[1] as usize <= rows.start);
            for row in rows {
                // SAFETY: a task has its rows to itself.
                let target = unsafe { grad_input.get(row * channels..(row + 1) * channels) };
                while filled.get(next).is_some_and(|range| range[1] as usize <= row) {
                    next += 1;
                }
                match filled.get(next).filter(|range| range[0] as usize <= row) {
                    Some(&[first, end, m]) => {
                        let source = &grad_output[m as usize * channels..][..channels];
                        cpu.level().run(Share { source, length: (end - first) as f32, target, write });
                    }
                    None if write == Write::Set => target.fill(0.0),
                    None => {}
                }
            }
        });
    });
}

/// The mean of `count` rows from `first` on, of the columns from `start` on.
struct Mean<'a> {
    input: &'a [f32],
    channels: usize,
    start: usize,
    first: usize,
    count: usize,
    target: &'a mut [f32],
}

impl Kernel for Mean<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { input: matrix, channels, start, first, count, target } = self;
        let length = V::splat(count as f32);
        let sum = RowSum { matrix, channels, start, columns: target.len(), count, row: |i| first + i };
        sum.run::<V>(|column, sum, left| {
            // SAFETY: `left` values of the target are left from `column` on.
            unsafe { sum.div(length).store_up_to(target.as_mut_ptr().add(column), left) }
        });
    }
}

/// `target = source / length`, set or added.
struct Share<'a> {
    source: &'a [f32],
    length: f32,
    target: &'a mut [f32],
    write: Write,
}

impl Kernel for Share<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let length = V::splat(self.length);
        for i in (0..self.target.len()).step_by(V::LANES) {
            let left = self.target.len() - i;
            // SAFETY: source and target have the same length.
            unsafe {
                let target = self.target.as_mut_ptr().add(i);
                let mut share = V::load_up_to(self.source.as_ptr().add(i), left).div(length);
                if self.write == Write::Add {
                    share = share.add(V::load_up_to(target, left));
                }
                share.store_up_to(target, left);
            }
        }
    }
}
