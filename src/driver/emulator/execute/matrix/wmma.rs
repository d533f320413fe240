//! wmma: load, store and multiply through opaque fragments.

use super::fragment::{Element, Fragment, Role};
use super::row_product::Product;
use crate::ast::{Instruction, Operand, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::decode::program::{Address, DataRegister, Extend, Load, MAX_VECTOR, Op, Store};
use crate::error::Result;
use crate::lanes::{LANES, Word, store_lanes, whole};

impl<'e> Decoder<'e> {
    pub(super) fn wmma(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let Some(action) = m.one_of(&["load", "store", "mma"]) else {
            return self.fail("expected .load, .store or .mma on wmma");
        };
        let action = action.to_owned();
        let role = m.one_of(&["a", "b", "c", "d"]).map(|name| match name {
            "a" => Role::A,
            "b" => Role::B,
            _ => Role::Accumulator,
        });
        m.flag("sync");
        m.flag("aligned");
        let uses_and = m.flag("and");
        m.flag("xor");
        m.flag("popc");
        let (rows, columns, k) = self.shape(m)?;
        let is_known =
            matches!((rows, columns, k), (16, 16, 16) | (8, 32, 16) | (32, 8, 16) | (16, 16, 8) | (8, 8, 4 | 32 | 128));
        if !is_known {
            return self.fail(format!("unsupported wmma shape .m{rows}n{columns}k{k}"));
        }
        let by_row = m.flag("row");
        let by_column = m.flag("col");
        let depth_of = |element| if element == Element::Bits { k / 32 } else { k };
        if action == "mma" {
            m.flag("row");
            m.flag("col");
            m.rounding();
            let saturates = m.flag("satfinite");
            let [d, a, b, c] = self.operands(i)?;
            let mut named = Vec::new();
            while let Some(element) = m.find(Element::parse) {
                named.push(element);
            }
            // Half-precision A and B may go unnamed: then only D and C are.
            let (d_type, a_type, b_type, c_type) = match named[..] {
                [d, a, b, c] => (d, a, b, c),
                [d, c] => (d, Element::F16, Element::F16, c),
                _ => return self.fail("expected the types of D, A, B and C on wmma.mma"),
            };
            let depth = depth_of(a_type);
            let mut fragment = |operand: &Operand<'e>, role, element, size: (usize, usize)| -> Result<Fragment> {
                let registers = self.fragment_registers(operand, element, false)?;
                if registers.len() * element.per_register() * LANES < size.0 * size.1 {
                    return self.fail("too few registers for a fragment of wmma");
                }
                Ok(Fragment::of_wmma(role, element, size, registers))
            };
            let product = Product {
                m: rows,
                n: columns,
                k: depth,
                d: fragment(d, Role::Accumulator, d_type, (rows, columns))?,
                a: fragment(a, Role::A, a_type, (rows, depth))?,
                b: fragment(b, Role::B, b_type, (depth, columns))?,
                c: fragment(c, Role::Accumulator, c_type, (rows, columns))?,
                saturates,
                uses_and,
            };
            self.set_tensor_flops((2 * rows * columns * k) as u32);
            return self.whole_warp(product.into_alu(self.level));
        }
        let Some(role) = role else { return self.fail("expected .a, .b, .c or .d on wmma") };
        if by_row == by_column {
            return self.fail("expected .row or .col on wmma");
        }
        let space = self.space(m);
        let Some(element) = m.find(Element::parse) else { return self.fail("expected an element type on wmma") };
        let depth = depth_of(element);
        let size = match role {
            Role::A => (rows, depth),
            Role::B => (depth, columns),
            Role::Accumulator => (rows, columns),
        };
        let is_store = action == "store";
        let (Some(first), Some(second)) = (i.operands.first(), i.operands.get(1)) else {
            return self.fail("wmma load and store take registers, an address and maybe a stride");
        };
        let (data, address) = if is_store { (second, first) } else { (first, second) };
        let leading = if by_row { size.1 } else { size.0 };
        let stride = match i.operands.get(2) {
            Some(stride) => self.source(stride, Type::U32)?,
            None => self.constant(leading as u64 * if element == Element::Bits { 32 } else { 1 }, 1)?,
        };
        let address = self.address(address, space)?;
        let registers = self.fragment_registers(data, element, !is_store)?;
        self.move_fragment(role, element, size, by_row, stride, address, &registers, is_store)
    }

    /// wmma.load and wmma.store: one ordinary access per element of a lane.
    #[allow(clippy::too_many_arguments)]
    fn move_fragment(
        &mut self,
        role: Role,
        element: Element,
        size: (usize, usize),
        by_row: bool,
        stride: u32,
        address: Address,
        registers: &[u32],
        is_store: bool,
    ) -> Result<()> {
        let per = element.per_register();
        // Elements of 4 bits share bytes and k runs along memory: move whole bytes, two elements at a time.
        let is_nibbles = matches!(element, Element::S4 | Element::U4);
        let step = if is_nibbles { 2 } else { 1 };
        let bytes: u64 = match element {
            Element::F64 => 8,
            Element::F16 | Element::Bf16 => 2,
            Element::S8 | Element::U8 | Element::S4 | Element::U4 => 1,
            _ => 4,
        };
        let per_lane = size.0 * size.1 / LANES;
        if registers.len() < per_lane.div_ceil(per) {
            return self.fail("too few registers for a fragment of wmma");
        }
        let planes = if element == Element::F64 { 2 } else { 1 };
        let place = self.allocate(2)?;
        let value = self.allocate(planes)?;
        let stride_unit: u64 = match element {
            Element::Bits => 32,
            _ if is_nibbles => 2,
            _ => 1,
        };
        for (index, &register) in registers.iter().enumerate() {
            if index * per >= per_lane {
                if !is_store {
                    let zero = self.constant(0, planes)?;
                    match planes {
                        2 => self.unary(register, zero, |a: u64| a),
                        _ => self.unary(register, zero, |a: u32| a),
                    }
                }
                continue;
            }
            for e in (0..per).step_by(step) {
                // Where this element of each lane lies, relative to the base.
                let alu = whole(self.level, move |planes, mask| {
                    let stride = *u32::view(planes, stride);
                    let base: [u64; LANES] = if address.is_wide {
                        *u64::view(planes, address.base)
                    } else {
                        u32::view(planes, address.base).map(u64::from)
                    };
                    let result: [u64; LANES] = std::array::from_fn(|lane| {
                        let (row, column) = role.wmma_place(size, lane * per_lane + index * per + e);
                        let (outer, inner) = if by_row { (row, column) } else { (column, row) };
                        let distance = (outer as u64 * (u64::from(stride[lane]) / stride_unit))
                            .wrapping_add(inner as u64 / step as u64);
                        base[lane].wrapping_add_signed(address.offset).wrapping_add(distance.wrapping_mul(bytes))
                    });
                    store_lanes(planes, place, &result, mask);
                });
                self.emit_alu(alu);
                let target = Address { space: address.space, base: place, is_wide: true, offset: 0 };
                let mut data = [DataRegister::SINK; MAX_VECTOR];
                data[0] = DataRegister {
                    slot: if per == 1 { register } else { value },
                    planes: planes as u8,
                    bits: 32 * planes as u8,
                };
                let shift = (e * 32 / per) as u32;
                let part = ((1u64 << (32 / per * step)) - 1) as u32;
                if is_store {
                    if per > 1 {
                        self.unary(value, register, move |word: u32| word >> shift & part);
                    }
                    self.emit(Op::Store(Store {
                        address: target,
                        bytes: bytes as u8,
                        count: 1,
                        is_volatile: false,
                        registers: data,
                    }));
                } else {
                    self.emit(Op::Load(Load {
                        address: target,
                        bytes: bytes as u8,
                        count: 1,
                        extend: Extend::Zero,
                        is_volatile: false,
                        registers: data,
                    }));
                    if per > 1 {
                        self.binary(register, [register, value], move |old: u32, new: u32| {
                            (old & !(part << shift)) | (new << shift)
                        });
                    }
                }
            }
        }
        Ok(())
    }
}
