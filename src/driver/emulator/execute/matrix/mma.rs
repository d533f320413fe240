//! mma.sync: which shapes there are, and what multiplies them.

use super::fragment::{Element, Fragment, Role};
use super::lane_product::{Bf16, Bits, F16, Integers, LaneProduct, Tf32};
use super::row_product::Product;
use crate::ast::{Instruction, Operand};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::lanes::{Alu, LANES, Level, at_level};

impl<'e> Decoder<'e> {
    pub(super) fn mma(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        m.flag("sync");
        m.flag("aligned");
        let (rows, columns, k) = self.shape(m)?;
        if !m.flag("row") || !m.flag("col") {
            return self.fail("mma.sync takes A by row and B by column");
        }
        let saturates = m.flag("satfinite");
        let uses_and = m.flag("and");
        m.flag("xor");
        m.flag("popc");
        let mut types = [Element::F32; 4];
        for element in &mut types {
            let Some(found) = m.find(Element::parse) else {
                return self.fail("expected the types of D, A, B and C on mma");
            };
            *element = found;
        }
        let [d_type, a_type, b_type, c_type] = types;
        let is_known = match (rows, columns, k, a_type) {
            (16, 8, 8 | 16, Element::F16 | Element::Bf16) => b_type == a_type,
            (16, 8, 4 | 8, Element::Tf32) => b_type == a_type,
            (8, 8, 4, Element::F64) => b_type == a_type,
            (8, 8, 16, Element::S8 | Element::U8) | (16, 8, 16 | 32, Element::S8 | Element::U8) => {
                matches!(b_type, Element::S8 | Element::U8)
            }
            (8, 8, 32, Element::S4 | Element::U4) | (16, 8, 32 | 64, Element::S4 | Element::U4) => {
                matches!(b_type, Element::S4 | Element::U4)
            }
            (8, 8, 128, Element::Bits) | (16, 8, 128 | 256, Element::Bits) => b_type == a_type,
            _ => false,
        };
        let accumulates = match a_type {
            Element::F64 => Element::F64,
            _ if a_type.is_float() => Element::F32,
            _ => Element::S32,
        };
        let is_half_sum = |element| element == Element::F16 && a_type == Element::F16;
        if !is_known || ![d_type, c_type].iter().all(|&ty| ty == accumulates || is_half_sum(ty)) {
            return self
                .fail(format!("unsupported mma shape or types (.m{rows}n{columns}k{k} of {a_type:?}, {b_type:?})"));
        }
        let [d, a, b, c] = self.operands(i)?;
        // One-bit matrices go by words.
        let depth = if a_type == Element::Bits { k / 32 } else { k };
        let fragment = |this: &mut Self,
                        operand: &Operand<'e>,
                        role,
                        element: Element,
                        size: (usize, usize)|
         -> Result<Fragment> {
            let registers = this.fragment_registers(operand, element, false)?;
            let expected = size.0 * size.1 / LANES / element.per_register();
            if registers.len() != expected {
                return this
                    .fail(format!("expected {expected} registers for {role:?} of mma, found {}", registers.len()));
            }
            Ok(Fragment::of_mma(role, element, size.0, size.1, registers))
        };
        let product = Product {
            m: rows,
            n: columns,
            k: depth,
            d: fragment(self, d, Role::Accumulator, d_type, (rows, columns))?,
            a: fragment(self, a, Role::A, a_type, (rows, depth))?,
            b: fragment(self, b, Role::B, b_type, (depth, columns))?,
            c: fragment(self, c, Role::Accumulator, c_type, (rows, columns))?,
            saturates,
            uses_and,
        };
        self.set_tensor_flops((2 * rows * columns * k) as u32);
        self.whole_warp(in_lanes(self.level, product))
    }
}

/// The product in the lane layout, where there is one for its types.
pub fn in_lanes(level: Level, product: Product) -> Alu {
    let (a, b) = (product.a.element, product.b.element);
    let (saturates, uses_and) = (product.saturates, product.uses_and);
    match a {
        Element::Bf16 => at_level(level, LaneProduct::<2, _>::new(product, Bf16)),
        Element::F16 => at_level(level, LaneProduct::<2, _>::new(product, F16)),
        Element::Tf32 => at_level(level, LaneProduct::<1, _>::new(product, Tf32)),
        Element::S8 | Element::U8 => at_level(level, LaneProduct::<4, _>::new(product, Integers { a, b, saturates })),
        Element::S4 | Element::U4 => at_level(level, LaneProduct::<8, _>::new(product, Integers { a, b, saturates })),
        Element::Bits => at_level(level, LaneProduct::<1, _>::new(product, Bits { uses_and, saturates })),
        _ => product.into_alu(level),
    }
}
