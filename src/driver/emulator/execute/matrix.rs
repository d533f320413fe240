//! Tensor-core instructions: mma.sync, wmma, movmatrix.
//!
//! A fragment spreads a matrix over the registers of a warp's lanes. The operation gathers the fragments into ordinary
//! row-major matrices, multiplies those, and scatters the result. Products are exact; sums are taken in f32 (i32, f64)
//! in order of k, fused. The fragment layouts of mma.sync are the manual's; those of wmma are private to an
//! implementation (a program only ever loads, uses and stores them), so they are chosen to be plain: element
//! `lane * n + e` in row-major order is element `e` of the lane.

use super::half_float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::driver::emulator::ast::{Base, Instruction, Operand, Type};
use crate::driver::emulator::decode::Decoder;
use crate::driver::emulator::decode::modifiers::Modifiers;
use crate::driver::emulator::decode::program::{Address, DataRegister, Extend, Load, MAX_VECTOR, Op, Store};
use crate::driver::emulator::error::Result;
use crate::driver::emulator::lanes::{Alu, LANES, LaneLoop, Plane, Word, at_level, store_lanes, whole};

/// What an element of a fragment is, and how many share a 32-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
    S8,
    U8,
    S4,
    U4,
    S32,
    /// 32 one-bit elements, handled as a word.
    Bits,
}

impl Element {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "s8" => Self::S8,
            "u8" => Self::U8,
            "s4" => Self::S4,
            "u4" => Self::U4,
            "s32" => Self::S32,
            "b1" => Self::Bits,
            _ => return None,
        })
    }

    fn per_register(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::S8 | Self::U8 => 4,
            Self::S4 | Self::U4 => 8,
            _ => 1,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::Tf32 | Self::F32)
    }

    #[inline(always)]
    fn float(self, word: u32, index: usize) -> f32 {
        let half = (word >> (16 * (index & 1))) as u16;
        match self {
            Self::F16 => f16_to_f32(half),
            Self::Bf16 => bf16_to_f32(half),
            // The tensor cores ignore the low 13 bits.
            Self::Tf32 => f32::from_bits(word & 0xFFFF_E000),
            _ => f32::from_bits(word),
        }
    }

    #[inline(always)]
    fn integer(self, word: u32, index: usize) -> i32 {
        match self {
            Self::S8 => i32::from((word >> (8 * index)) as i8),
            Self::U8 => i32::from((word >> (8 * index)) as u8),
            Self::S4 => ((word >> (4 * index)) << 28) as i32 >> 28,
            Self::U4 => (word >> (4 * index) & 0xF) as i32,
            _ => word as i32,
        }
    }
}

/// The registers of a fragment and where each of their elements lies in the row-major matrix.
#[derive(Debug, Clone)]
struct Fragment {
    registers: Vec<u32>,
    element: Element,
    /// By register, lane, element.
    places: Vec<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    A,
    B,
    Accumulator,
}

impl Fragment {
    /// The manual's layout for mma.sync: `group` = lane / 4 and `t` = lane % 4 pick rows (or columns) and positions in k.
    fn of_mma(role: Role, element: Element, rows: usize, columns: usize, registers: Vec<u32>) -> Self {
        let per = element.per_register();
        let mut places = Vec::with_capacity(registers.len() * LANES * per);
        for register in 0..registers.len() {
            for lane in 0..LANES {
                let (group, t) = (lane / 4, lane % 4);
                for e in 0..per {
                    let (row, column) = match role {
                        Role::A if rows == 16 => (group + 8 * (register & 1), t * per + e + (register >> 1) * 4 * per),
                        Role::A => (group, t * per + e + register * 4 * per),
                        Role::B => (t * per + e + register * 4 * per, group),
                        // Two neighbours in a row: one packed register, or two.
                        Role::Accumulator if per == 2 => (group + 8 * register, 2 * t + e),
                        Role::Accumulator => (group + 8 * (register >> 1), 2 * t + (register & 1)),
                    };
                    places.push((row * columns + column) as u16);
                }
            }
        }
        Self { registers, element, places }
    }

    /// The plain layout of wmma.
    fn of_wmma(element: Element, size: usize, registers: Vec<u32>) -> Self {
        let per = element.per_register();
        let per_lane = size / LANES;
        let mut registers = registers;
        // Registers beyond the matrix (hardware keeps some elements twice) are not used.
        registers.truncate(per_lane.div_ceil(per));
        let mut places = Vec::new();
        for register in 0..registers.len() {
            for lane in 0..LANES {
                places.extend((0..per).map(|e| (lane * per_lane + register * per + e) as u16));
            }
        }
        Self { registers, element, places }
    }

    /// Reads the fragment into a row-major matrix.
    #[inline(always)]
    fn gather<T: Copy>(&self, planes: &[Plane], matrix: &mut [T], read: impl Fn(u32, usize) -> T) {
        let per = self.element.per_register();
        for (&register, places) in self.registers.iter().zip(self.places.chunks_exact(LANES * per)) {
            let words = u32::view(planes, register);
            for (word, places) in words.iter().zip(places.chunks_exact(per)) {
                for (e, &place) in places.iter().enumerate() {
                    matrix[place as usize] = read(*word, e);
                }
            }
        }
    }

    fn gather_wide(&self, planes: &[Plane], matrix: &mut [f64]) {
        for (&register, places) in self.registers.iter().zip(self.places.chunks_exact(LANES)) {
            for (word, &place) in u64::view(planes, register).iter().zip(places) {
                matrix[place as usize] = f64::from_bits(*word);
            }
        }
    }

    /// Writes a row-major matrix to the fragment; `write` turns an element into its bits.
    #[inline(always)]
    fn scatter<T: Copy>(&self, planes: &mut [Plane], matrix: &[T], mask: u32, write: impl Fn(T) -> u32) {
        let per = self.element.per_register();
        let bits = 32 / per as u32;
        for (&register, places) in self.registers.iter().zip(self.places.chunks_exact(LANES * per)) {
            let mut words = [0u32; LANES];
            for (word, places) in words.iter_mut().zip(places.chunks_exact(per)) {
                for (e, &place) in places.iter().enumerate() {
                    *word |= write(matrix[place as usize]) << (e as u32 * bits % 32);
                }
            }
            store_lanes(planes, register, &words, mask);
        }
    }

    fn scatter_wide(&self, planes: &mut [Plane], matrix: &[f64], mask: u32) {
        for (&register, places) in self.registers.iter().zip(self.places.chunks_exact(LANES)) {
            let words: [u64; LANES] = std::array::from_fn(|lane| matrix[places[lane] as usize].to_bits());
            store_lanes(planes, register, &words, mask);
        }
    }
}

/// The largest integer matrix: 16x64 of 4-bit elements.
const MOST: usize = 16 * 64;

/// Columns that are multiplied at once: one vector of the host.
const STRIP: usize = 8;

struct Product {
    m: usize,
    n: usize,
    k: usize,
    a: Fragment,
    b: Fragment,
    c: Fragment,
    d: Fragment,
    saturates: bool,
    /// For one-bit matrices: combine with AND instead of XOR.
    uses_and: bool,
}

impl Product {
    /// `SIZE` bounds the elements of each matrix.
    #[inline(always)]
    fn floats<const SIZE: usize>(&self, planes: &mut [Plane], mask: u32) {
        let (mut a, mut b, mut c) = ([0f32; SIZE], [0f32; SIZE], [0f32; SIZE]);
        macro_rules! gather {
            ($fragment:expr, $matrix:expr) => {
                match $fragment.element {
                    Element::Bf16 => $fragment.gather(planes, $matrix, |word, e| Element::Bf16.float(word, e)),
                    Element::F16 => $fragment.gather(planes, $matrix, |word, e| Element::F16.float(word, e)),
                    Element::Tf32 => $fragment.gather(planes, $matrix, |word, e| Element::Tf32.float(word, e)),
                    _ => $fragment.gather(planes, $matrix, |word, _| f32::from_bits(word)),
                }
            };
        }
        gather!(self.a, &mut a);
        gather!(self.b, &mut b);
        gather!(self.c, &mut c);
        for row in 0..self.m {
            for strip in (0..self.n).step_by(STRIP) {
                let place = row * self.n + strip;
                let Some(target) = c[place..].first_chunk_mut::<STRIP>() else { continue };
                let mut sums = *target;
                for k in 0..self.k {
                    let left = a[row * self.k + k];
                    let Some(right) = b[k * self.n + strip..].first_chunk::<STRIP>() else { continue };
                    for column in 0..STRIP {
                        sums[column] = left.mul_add(right[column], sums[column]);
                    }
                }
                *target = sums;
            }
        }
        match self.d.element {
            Element::F16 => self.d.scatter(planes, &c, mask, |value| u32::from(f32_to_f16(value))),
            _ => self.d.scatter(planes, &c, mask, f32::to_bits),
        }
    }

    fn integers(&self, planes: &mut [Plane], mask: u32) {
        let (mut a, mut b, mut c) = ([0i32; MOST], [0i32; MOST], [0i32; MOST]);
        let (a_element, b_element) = (self.a.element, self.b.element);
        self.a.gather(planes, &mut a, |word, e| a_element.integer(word, e));
        self.b.gather(planes, &mut b, |word, e| b_element.integer(word, e));
        self.c.gather(planes, &mut c, |word, _| word as i32);
        let is_bits = a_element == Element::Bits;
        for row in 0..self.m {
            for column in 0..self.n {
                let mut sum = i64::from(c[row * self.n + column]);
                for k in 0..self.k {
                    let (left, right) = (a[row * self.k + k], b[k * self.n + column]);
                    sum += match (is_bits, self.uses_and) {
                        (false, _) => i64::from(left) * i64::from(right),
                        (true, true) => i64::from((left & right).count_ones()),
                        (true, false) => i64::from((left ^ right).count_ones()),
                    };
                }
                c[row * self.n + column] =
                    if self.saturates { sum.clamp(i32::MIN.into(), i32::MAX.into()) as i32 } else { sum as i32 };
            }
        }
        self.d.scatter(planes, &c, mask, |value| value as u32);
    }

    fn doubles(&self, planes: &mut [Plane], mask: u32) {
        let (mut a, mut b, mut c) = ([0f64; 64], [0f64; 64], [0f64; 64]);
        self.a.gather_wide(planes, &mut a);
        self.b.gather_wide(planes, &mut b);
        self.c.gather_wide(planes, &mut c);
        for row in 0..self.m {
            for column in 0..self.n {
                let place = row * self.n + column;
                c[place] =
                    (0..self.k).fold(c[place], |sum, k| a[row * self.k + k].mul_add(b[k * self.n + column], sum));
            }
        }
        self.d.scatter_wide(planes, &c, mask);
    }
}

/// A product in f32 whose matrices have at most `SIZE` elements.
struct FloatProduct<const SIZE: usize>(Product);

impl<const SIZE: usize> LaneLoop for FloatProduct<SIZE> {
    #[inline(always)]
    fn run(&self, planes: &mut [Plane], mask: u32) {
        self.0.floats::<SIZE>(planes, mask);
    }
}

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
                    let words = *u32::view(planes, a);
                    let half = |row: usize, column: usize| words[row * 4 + column / 2] >> (16 * (column % 2)) & 0xFFFF;
                    let result: [u32; LANES] = std::array::from_fn(|lane| {
                        let (row, column) = (lane / 4, 2 * (lane % 4));
                        half(column, row) | half(column + 1, row) << 16
                    });
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

    fn mma(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
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
        self.product(product)
    }

    fn product(&mut self, product: Product) -> Result<()> {
        let element = product.a.element;
        let level = self.level;
        let alu = if element == Element::F64 {
            whole(level, move |planes, mask| product.doubles(planes, mask))
        } else if element.is_float() {
            let largest = (product.m * product.k).max(product.k * product.n).max(product.m * product.n);
            if largest <= 256 {
                at_level(level, FloatProduct::<256>(product))
            } else {
                at_level(level, FloatProduct::<512>(product))
            }
        } else {
            whole(level, move |planes, mask| product.integers(planes, mask))
        };
        self.whole_warp(alu)
    }

    fn wmma(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
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
            let mut fragment = |operand: &Operand<'e>, element, size: usize| -> Result<Fragment> {
                let registers = self.fragment_registers(operand, element, false)?;
                if registers.len() * element.per_register() * LANES < size {
                    return self.fail("too few registers for a fragment of wmma");
                }
                Ok(Fragment::of_wmma(element, size, registers))
            };
            let product = Product {
                m: rows,
                n: columns,
                k: depth,
                d: fragment(d, d_type, rows * columns)?,
                a: fragment(a, a_type, rows * depth)?,
                b: fragment(b, b_type, depth * columns)?,
                c: fragment(c, c_type, rows * columns)?,
                saturates,
                uses_and,
            };
            self.set_tensor_flops((2 * rows * columns * k) as u32);
            return self.product(product);
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
        let address = match address {
            Operand::Address(Base::Register(_) | Base::Variable(_) | Base::Name(_), _) => {
                self.plain_address(address, space)?
            }
            _ => return self.fail("expected an address in brackets"),
        };
        let registers = self.fragment_registers(data, element, !is_store)?;
        self.move_fragment(element, size, by_row, stride, address, &registers, is_store)
    }

    /// wmma.load and wmma.store: one ordinary access per element of a lane.
    #[allow(clippy::too_many_arguments)]
    fn move_fragment(
        &mut self,
        element: Element,
        (rows, columns): (usize, usize),
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
        let per_lane = rows * columns / LANES;
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
                        let linear = lane * per_lane + index * per + e;
                        let (row, column) = (linear / columns, linear % columns);
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
