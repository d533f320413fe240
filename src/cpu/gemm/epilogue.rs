//! What happens to a tile as it leaves the registers.
//!
//! Sums over the depth are taken block by block: a tile of the first block overwrites the target (or adds to it), one
//! of a later block adds. With the last block the value is complete, and everything that a layer does to it is done
//! while it is there, instead of in passes of their own over memory.

use super::activation::{apply, derivative};
use super::prefetch::prefetch_l2;
use crate::cpu::Disjoint;
use crate::cpu::simd::Vector;
use crate::ops::linear::Activation;

/// Steps applied to each complete element, in this order. All matrices are rows x columns of the product, row-major
/// without gaps.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `(columns)`: added.
    pub bias: Option<&'a [f32]>,
    /// Stores the value before the activation.
    pub pre_activation: Option<Disjoint<'a, f32>>,
    /// Applied; SwiGLU is not a function of one element and is not done here.
    pub activation: Option<Activation>,
    /// Multiplies by the activation's derivative at these pre-activations.
    pub derivative_at: Option<(Activation, &'a [f32])>,
    /// Added.
    pub residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// True where a complete element is stored as it is.
    pub fn is_empty(&self) -> bool {
        self.bias.is_none()
            && self.pre_activation.is_none()
            && self.activation.is_none()
            && self.derivative_at.is_none()
            && self.residual.is_none()
    }
}

/// Where tiles go.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub elements: Disjoint<'a, f32>,
    /// Distance between rows of `elements`.
    pub stride: usize,
    /// Columns of the whole product: the distance between rows of the epilogue's matrices.
    pub columns: usize,
    pub epilogue: Epilogue<'a>,
}

/// A tile's place in the product.
#[derive(Clone, Copy)]
pub struct Place {
    pub row: usize,
    pub column: usize,
    pub rows: usize,
    pub columns: usize,
    /// The target holds a partial sum (or a gradient to add to).
    pub accumulate: bool,
    /// The sums are complete.
    pub complete: bool,
}

/// Asks for what [`finish`] will read and write: called before a tile's sums are computed, so that memory answers
/// meanwhile. Rows of a wide target lie pages apart, where the machine does not see a pattern.
#[inline(always)]
pub fn prepare(target: &Target<'_>, place: Place) {
    let epilogue = &target.epilogue;
    prefetch_rows(target.elements.as_ptr(), target.stride, place);
    if place.complete {
        if let Some(pre_activation) = epilogue.pre_activation {
            prefetch_rows(pre_activation.as_ptr(), target.columns, place);
        }
        if let Some((_, at)) = epilogue.derivative_at {
            prefetch_rows(at.as_ptr(), target.columns, place);
        }
        if let Some(residual) = epilogue.residual {
            prefetch_rows(residual.as_ptr(), target.columns, place);
        }
    }
}

#[inline(always)]
fn prefetch_rows(matrix: *const f32, stride: usize, place: Place) {
    const LINE: usize = 16;
    for i in 0..place.rows {
        for j in (0..place.columns).step_by(LINE) {
            prefetch_l2(matrix.wrapping_add((place.row + i) * stride + place.column + j));
        }
    }
}

/// Stores a tile whose rows start `tile_stride` apart at `tile`.
///
/// # Safety
/// `tile` must be readable for the place's rows and whole vectors of columns, the place must be inside the product,
/// and no other thread may use that place.
#[inline(always)]
pub unsafe fn finish<V: Vector>(target: &Target<'_>, place: Place, tile: *const f32, tile_stride: usize) {
    // Two loops, so that the plain store, which every block but the last takes, has no branches in it.
    let plain = !place.complete || target.epilogue.is_empty();
    for i in 0..place.rows {
        let mut j = 0;
        while j < place.columns {
            let lanes = V::LANES.min(place.columns - j);
            // SAFETY: the caller's contract; `lanes` keeps to the columns of the place.
            unsafe {
                let out = target.elements.as_ptr().add((place.row + i) * target.stride + place.column + j);
                let mut value = V::load(tile.add(i * tile_stride + j));
                if place.accumulate {
                    value = value.add(load::<V>(out, lanes));
                }
                if !plain {
                    value = complete(&target.epilogue, value, target.columns, place.row + i, place.column + j, lanes);
                }
                store(value, out, lanes);
            }
            j += V::LANES;
        }
    }
}

#[inline(always)]
unsafe fn complete<V: Vector>(
    epilogue: &Epilogue<'_>,
    mut value: V,
    columns: usize,
    row: usize,
    column: usize,
    lanes: usize,
) -> V {
    let index = row * columns + column;
    // SAFETY: the epilogue's matrices have the product's shape (asserted where the product starts), and the place is
    // inside it.
    unsafe {
        if let Some(bias) = epilogue.bias {
            value = value.add(load(bias.as_ptr().add(column), lanes));
        }
        if let Some(pre_activation) = epilogue.pre_activation {
            store(value, pre_activation.as_ptr().add(index), lanes);
        }
        if let Some(activation) = epilogue.activation {
            value = apply(activation, value);
        }
        if let Some((activation, at)) = epilogue.derivative_at {
            value = value.mul(derivative(activation, load(at.as_ptr().add(index), lanes)));
        }
        if let Some(residual) = epilogue.residual {
            value = value.add(load(residual.as_ptr().add(index), lanes));
        }
    }
    value
}

/// Reads a vector's first `lanes` values.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub unsafe fn load<V: Vector>(pointer: *const f32, lanes: usize) -> V {
    // SAFETY: the caller's: `lanes` readable values.
    unsafe { if lanes == V::LANES { V::load(pointer) } else { V::load_partial(pointer, lanes) } }
}

#[inline(always)]
unsafe fn store<V: Vector>(value: V, pointer: *mut f32, lanes: usize) {
    // SAFETY: the caller's: `lanes` writable values.
    unsafe { if lanes == V::LANES { value.store(pointer) } else { value.store_partial(pointer, lanes) } }
}
