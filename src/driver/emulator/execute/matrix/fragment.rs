//! Fragments: how a matrix lies in the registers of a warp's lanes.

use crate::execute::half_float::{bf16_to_f32, f16_to_f32};
use crate::lanes::{LANES, Plane, Word, store_lanes};

/// What an element of a fragment is, and how many share a 32-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
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
    pub fn parse(name: &str) -> Option<Self> {
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

    pub fn per_register(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::S8 | Self::U8 => 4,
            Self::S4 | Self::U4 => 8,
            _ => 1,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::Tf32 | Self::F32)
    }

    #[inline(always)]
    pub fn float(self, word: u32, index: usize) -> f32 {
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
    pub fn integer(self, word: u32, index: usize) -> i32 {
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
pub struct Fragment {
    pub registers: Vec<u32>,
    pub element: Element,
    /// By register, lane, element.
    places: Vec<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    A,
    B,
    Accumulator,
}

impl Role {
    /// Row and column of element `n` in the order of wmma: along k, so that elements that share a byte are neighbours in
    /// memory whenever they may be loaded.
    pub fn wmma_place(self, (rows, columns): (usize, usize), n: usize) -> (usize, usize) {
        if self == Self::B { (n % rows, n / rows) } else { (n / columns, n % columns) }
    }
}

impl Fragment {
    /// The manual's layout for mma.sync: `group` = lane / 4 and `t` = lane % 4 pick rows (or columns) and positions in k.
    pub fn of_mma(role: Role, element: Element, rows: usize, columns: usize, registers: Vec<u32>) -> Self {
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

    /// The plain layout of wmma: element `n` of the matrix, counted along k, is element `n % per_lane` of lane `n / per_lane`.
    pub fn of_wmma(role: Role, element: Element, size: (usize, usize), registers: Vec<u32>) -> Self {
        let per = element.per_register();
        let per_lane = size.0 * size.1 / LANES;
        let mut registers = registers;
        // Registers beyond the matrix (hardware keeps some elements twice) are not used.
        registers.truncate(per_lane.div_ceil(per));
        let mut places = Vec::new();
        for register in 0..registers.len() {
            for lane in 0..LANES {
                places.extend((0..per).map(|e| {
                    let (row, column) = role.wmma_place(size, lane * per_lane + register * per + e);
                    (row * size.1 + column) as u16
                }));
            }
        }
        Self { registers, element, places }
    }

    /// Reads the fragment into a row-major matrix.
    #[inline(always)]
    pub fn gather<T: Copy>(&self, planes: &[Plane], matrix: &mut [T], read: impl Fn(u32, usize) -> T) {
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

    pub fn gather_wide(&self, planes: &[Plane], matrix: &mut [f64]) {
        for (&register, places) in self.registers.iter().zip(self.places.chunks_exact(LANES)) {
            for (word, &place) in u64::view(planes, register).iter().zip(places) {
                matrix[place as usize] = f64::from_bits(*word);
            }
        }
    }

    /// Writes a row-major matrix to the fragment; `write` turns an element into its bits.
    #[inline(always)]
    pub fn scatter<T: Copy>(&self, planes: &mut [Plane], matrix: &[T], mask: u32, write: impl Fn(T) -> u32) {
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

    pub fn scatter_wide(&self, planes: &mut [Plane], matrix: &[f64], mask: u32) {
        for (&register, places) in self.registers.iter().zip(self.places.chunks_exact(LANES)) {
            let words: [u64; LANES] = std::array::from_fn(|lane| matrix[places[lane] as usize].to_bits());
            store_lanes(planes, register, &words, mask);
        }
    }
}
