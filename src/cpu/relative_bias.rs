//! Tables of relative-position biases: a few kilobytes, a head to each task.

use super::{Cpu, Disjoint};
use crate::ops::Write;
use crate::ops::relative_bias::{Backward, Forward, Kind, Shape, buckets, slope};

/// See [`crate::ops::relative_bias::forward`].
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Shape { kind, heads, radius } = *shape;
    let ranges = buckets(shape);
    let weight = arguments.weight.map(|view| view.host());
    let table = Disjoint::new(arguments.table.host());
    cpu.pool().run(heads, |head| {
        // SAFETY: a row for each task.
        let row = unsafe { table.get(head * shape.columns()..(head + 1) * shape.columns()) };
        match (kind, weight) {
            (Kind::Buckets { .. }, Some(weight)) => {
                for (bucket, range) in ranges.iter().enumerate() {
                    row[range.clone()].fill(weight[bucket * heads + head]);
                }
            }
            _ => {
                let slope = slope(head, heads) as f32;
                for (column, value) in row.iter_mut().enumerate() {
                    *value = -slope * (radius - 1).abs_diff(column) as f32;
                }
            }
        }
    });
}

/// See [`crate::ops::relative_bias::backward`].
pub fn backward(_cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let Backward { grad_table, grad_weight, write } = arguments;
    let (grad_table, grad_weight) = (grad_table.host(), grad_weight.host());
    for (bucket, range) in buckets(shape).into_iter().enumerate() {
        for head in 0..shape.heads {
            let row = &grad_table[head * shape.columns()..][range.clone()];
            // Runs are long: a sum in f32 would lose what a short one keeps.
            let sum = row.iter().map(|&value| f64::from(value)).sum::<f64>() as f32;
            let target = &mut grad_weight[bucket * shape.heads + head];
            *target = if write == Write::Add { *target + sum } else { sum };
        }
    }
}
