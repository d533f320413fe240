//! Rotary positions on the CPU: the sines and cosines of a token's position are computed once and used for all heads.

use super::simd::{Kernel, Vector, turn as sines};
use super::{Cpu, Disjoint, scratch};
use crate::ops::View;
use crate::ops::rotary::*;
use crate::ops::turn;

/// Values in one task.
const TASK_VALUES: usize = 16 * 1024;
/// Lanes of the widest vector.
const LANES_MAX: usize = 16;

/// Turns queries and keys.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let input = arguments.input.host();
    turn_rows(cpu, shape, Some(input), arguments.position_ids, arguments.output.host(), false);
}

/// Turns the gradients of queries and keys back, in place.
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    turn_rows(cpu, shape, None, arguments.position_ids, arguments.gradient.host(), true);
}

/// `output` is the input turned, or itself where there is no input.
fn turn_rows(
    cpu: &Cpu,
    shape: &Shape,
    input: Option<&[f32]>,
    position_ids: Option<View<'_, i32>>,
    output: &mut [f32],
    is_backward: bool,
) {
    let columns = shape.columns();
    let pairs = shape.rotary_columns / 2;
    let stride = pairs.next_multiple_of(LANES_MAX);
    let ids = position_ids.map(|ids| ids.host());
    let output = Disjoint::new(output);
    scratch::with(2 * stride, |memory| {
        let (high, low) = bytemuck::cast_slice_mut::<f32, i32>(memory).split_at_mut(stride);
        for pair in 0..stride {
            let frequency = turn::frequency(shape.base, shape.rotary_columns, pair);
            (high[pair], low[pair]) = ((frequency >> 32) as u32 as i32, frequency as u32 as i32);
        }
        let (high, low) = (&*high, &*low);
        cpu.pool().run_pieces(shape.batch * shape.time, TASK_VALUES / columns.max(1), |_, places| {
            scratch::with(2 * stride, |memory| {
                let (cosines, sines) = memory.split_at_mut(stride);
                for place in places.clone() {
                    let row = place * columns..(place + 1) * columns;
                    let position = ids.map_or(shape.first_position + place % shape.time, |ids| ids[place] as usize);
                    cpu.level().run(TurnRow {
                        shape,
                        frequencies: (high, low),
                        position: position as i32,
                        is_backward,
                        turns: (cosines, sines),
                        input: input.map(|input| &input[row.clone()]),
                        // SAFETY: a task has its rows to itself.
                        output: unsafe { output.get(row) },
                    });
                }
            });
        });
    });
}

/// One token's queries, keys and values.
struct TurnRow<'a> {
    shape: &'a Shape,
    /// Halves of the frequencies, padded to whole vectors.
    frequencies: (&'a [i32], &'a [i32]),
    position: i32,
    is_backward: bool,
    /// Room for cosines and sines, likewise padded.
    turns: (&'a mut [f32], &'a mut [f32]),
    input: Option<&'a [f32]>,
    output: &'a mut [f32],
}

impl Kernel for TurnRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Shape { head_size, rotary_columns, .. } = *self.shape;
        let (cosines, sines_of) = self.turns;
        let position = V::int_splat(self.position);
        for i in (0..cosines.len()).step_by(V::LANES) {
            // SAFETY: all four have as many elements as cosines, a multiple of all lane counts.
            unsafe {
                let high = V::int_load(self.frequencies.0.as_ptr().add(i));
                let low = V::int_load(self.frequencies.1.as_ptr().add(i));
                let angle = sines::angle::<V>(position, high, low);
                let sine = sines::sine::<V>(angle);
                let sine = if self.is_backward { V::zero().sub(sine) } else { sine };
                sines::cosine::<V>(angle).store(cosines.as_mut_ptr().add(i));
                sine.store(sines_of.as_mut_ptr().add(i));
            }
        }
        let half = rotary_columns / 2;
        let turned = self.shape.turned_heads();
        for head in 0..turned {
            let start = head * head_size;
            let target = self.output[start..start + head_size].as_mut_ptr();
            let source = self.input.map_or(target.cast_const(), |input| input[start..start + head_size].as_ptr());
            for i in (0..half).step_by(V::LANES) {
                let left = half - i;
                // SAFETY: a head has two halves, of each of which `left` columns are left from `i` on. Both are read
                // before either is written.
                unsafe {
                    let cosine = V::load(cosines.as_ptr().add(i));
                    let sine = V::load(sines_of.as_ptr().add(i));
                    let x = V::load_up_to(source.add(i), left);
                    let y = V::load_up_to(source.add(half + i), left);
                    y.neg_mul_add(sine, x.mul(cosine)).store_up_to(target.add(i), left);
                    x.mul_add(sine, y.mul(cosine)).store_up_to(target.add(half + i), left);
                }
            }
            if let Some(input) = self.input {
                let others = start + rotary_columns..start + head_size;
                self.output[others.clone()].copy_from_slice(&input[others]);
            }
        }
        if let Some(input) = self.input {
            let values = turned * head_size;
            self.output[values..].copy_from_slice(&input[values..]);
        }
    }
}
