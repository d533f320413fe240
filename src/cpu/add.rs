//! Element-wise sum: as fast as memory, so plain loops that LLVM vectorises.

use super::{Cpu, Disjoint};
use crate::ops::add::Forward;
use crate::ops::{View, ViewMut, Write};

/// Elements of a task: 64 KiB, enough to hide the cost of starting one.
const PIECE: usize = 1 << 14;

/// `output = left + right`
pub fn forward(cpu: &Cpu, arguments: Forward<'_>) {
    let (left, right) = (arguments.left.host(), arguments.right.host());
    let output = Disjoint::new(arguments.output.host());
    cpu.pool().run_pieces(left.len(), PIECE, |_, range| {
        // SAFETY: pieces are disjoint.
        let output = unsafe { output.get(range.clone()) };
        for ((output, left), right) in output.iter_mut().zip(&left[range.clone()]).zip(&right[range]) {
            *output = left + right;
        }
    });
}

/// `target = source`, or `target += source`
pub fn accumulate(cpu: &Cpu, source: View<'_, f32>, target: ViewMut<'_, f32>, write: Write) {
    let source = source.host();
    let target = Disjoint::new(target.host());
    cpu.pool().run_pieces(source.len(), PIECE, |_, range| {
        // SAFETY: pieces are disjoint.
        let target = unsafe { target.get(range.clone()) };
        match write {
            Write::Set => target.copy_from_slice(&source[range]),
            Write::Add => target.iter_mut().zip(&source[range]).for_each(|(target, source)| *target += source),
        }
    });
}
