//! Tensor-core instructions: mma.sync, wmma, movmatrix.
//!
//! A fragment spreads a matrix over the registers of a warp's lanes (`fragment`). mma.sync multiplies where the numbers lie
//! (`lane_product`); wmma and f64 gather the fragments into ordinary row-major matrices, multiply those, and scatter the
//! result (`row_product`). Products are exact; sums are taken in f32 (i32, f64) in order of k, fused. The fragment layouts
//! of mma.sync are the manual's; those of wmma are private to an implementation (a program only ever loads, uses and stores
//! them), so they are chosen to be plain: element `lane * n + e` in the order of k is element `e` of the lane.

mod fragment;
mod lane_product;
mod mma;
mod row_product;
mod wmma;

use fragment::Element;

use crate::ast::{Instruction, Operand, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::decode::program::Op;
use crate::error::Result;
use crate::lanes::{Alu, Word, store_lanes, transpose_halves, whole};

/// `m16n8k16` to its three sizes.
fn parse_shape(name: &str) -> Option<(usize, usize, usize)> {
    let (m, rest) = name.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

impl<'e> Decoder<'e> {
    pub(super) fn matrix(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        match i.opcode {
            "mma" => self.mma(i, m),
            "movmatrix" => {
                for flag in ["sync", "aligned", "m8n8", "trans", "b16"] {
                    m.flag(flag);
                }
                let [d, a] = self.operands(i)?;
                let (d, a) = (self.destination(d, Type::B32)?, self.source(a, Type::B32)?);
                let alu = whole(self.level, move |planes, mask| {
                    let result = transpose_halves(u32::view(planes, a));
                    store_lanes(planes, d, &result, mask);
                });
                self.whole_warp(alu)
            }
            _ => self.wmma(i, m),
        }
    }

    /// All lanes of the warp take part.
    fn whole_warp(&mut self, alu: Alu) -> Result<()> {
        let members = self.constant(u64::from(u32::MAX), 1)?;
        self.emit(Op::Collective { members, alu, is_barrier: false });
        Ok(())
    }

    fn shape(&self, m: &mut Modifiers<'_>) -> Result<(usize, usize, usize)> {
        match m.find(parse_shape) {
            Some(shape) => Ok(shape),
            None => self.fail("expected a shape such as .m16n8k16"),
        }
    }

    fn fragment_registers(&mut self, operand: &Operand<'e>, element: Element, is_write: bool) -> Result<Vec<u32>> {
        let ty = match element {
            Element::F64 => Type::F64,
            _ => Type::B32,
        };
        let elements = Self::elements(operand);
        elements.iter().map(|e| if is_write { self.destination(e, ty) } else { self.source(e, ty) }).collect()
    }
}
