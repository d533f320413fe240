//! A tensor times a number: as fast as memory, so plain loops that LLVM vectorises.

use super::{Cpu, Disjoint};
use crate::ops::{View, ViewMut, Write};

/// Elements of a task: 64 KiB, enough to hide the cost of starting one.
const PIECE: usize = 1 << 14;

/// `target = factor · source`, or `target += factor · source`
pub fn forward(cpu: &Cpu, factor: f32, source: View<'_, f32>, target: ViewMut<'_, f32>, write: Write) {
    let source = source.host();
    let target = Disjoint::new(target.host());
    cpu.pool().run_pieces(source.len(), PIECE, |_, range| {
        // SAFETY: pieces are disjoint.
        let target = unsafe { target.get(range.clone()) }.iter_mut().zip(&source[range]);
        match write {
            Write::Set => target.for_each(|(target, source)| *target = factor * source),
            Write::Add => target.for_each(|(target, source)| *target += factor * source),
        }
    });
}
