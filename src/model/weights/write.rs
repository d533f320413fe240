//! Writing a safetensors file as a stream, transposing on the way, all of it or nothing.

use super::{Error, MOST_DIMENSIONS, one_line, show_shape};
use crate::util::atomic_file::write_atomically;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::Path;

/// Where the values start: a multiple of this, so that a mapped tensor is aligned for SIMD.
const ALIGNMENT_BYTES: usize = 64;

/// A tensor to be written: described as the file will hold it, values where they are now.
pub struct NewTensor<'a> {
    /// Name in the file.
    pub name: Cow<'a, str>,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// The values: row-major in `shape`, or in the transpose of it where `transposed`.
    pub values: Cow<'a, [f32]>,
    /// The file holds the transpose of `values`; `shape` has two dimensions.
    pub transposed: bool,
}

/// Writes `tensors`, in this order, as F32, and the header's `metadata`; all of it or nothing.
///
/// The same arguments give the same bytes. Memory beyond the arguments is a few hundred kB whatever the sizes.
///
/// # Errors
/// [`Error::Write`] where the file cannot be written; [`Error::Unwritable`] where shape and values do not match or a name
/// is taken. Then nothing is left behind, and a file that was there before stays as it was.
pub fn write(path: &Path, tensors: &[NewTensor], metadata: &BTreeMap<String, String>) -> Result<(), Error> {
    let header = header_of(path, tensors, metadata)?;
    Ok(write_atomically(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(header.as_bytes())?;
        for tensor in tensors {
            if tensor.transposed {
                write_transposed(writer, &tensor.values, tensor.shape[0], tensor.shape[1])?;
            } else {
                writer.write_all(bytemuck::cast_slice(&tensor.values))?;
            }
        }
        Ok(())
    })?)
}

/// The JSON header, padded so that the values start at a multiple of [`ALIGNMENT_BYTES`].
fn header_of(path: &Path, tensors: &[NewTensor], metadata: &BTreeMap<String, String>) -> Result<String, Error> {
    let json = |result: serde_json::Result<String>| result.expect("strings and numbers always have a JSON form");
    let mut header = format!("{{\"__metadata__\":{}", json(serde_json::to_string(metadata)));
    let mut taken = HashSet::from(["__metadata__"]);
    let mut start = 0;
    for NewTensor { name, shape, values, transposed } in tensors {
        let wrong = |what: String| Error::Unwritable { path: path.to_owned(), tensor: one_line(name), what };
        if !taken.insert(name.as_ref()) {
            return Err(wrong("the name is taken; give each tensor its own".into()));
        }
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if elements != Some(values.len()) || (*transposed && shape.len() != 2) || shape.len() > MOST_DIMENSIONS {
            let (length, shape) = (values.len(), show_shape(shape));
            return Err(wrong(format!("{length} values do not fill shape {shape}; give the shape that they have")));
        }
        let end = start + size_of_val(&**values);
        let described = TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (start, end) };
        header.push_str(&format!(",{}:{}", json(serde_json::to_string(name)), json(serde_json::to_string(&described))));
        start = end;
    }
    header.push('}');
    let padded = (8 + header.len()).next_multiple_of(ALIGNMENT_BYTES) - 8;
    header.push_str(&" ".repeat(padded - header.len()));
    Ok(header)
}

/// Writes the transpose, `(rows, columns)`, of `values`, which is `(columns, rows)`, a panel of rows at a time.
fn write_transposed(writer: &mut impl Write, values: &[f32], rows: usize, columns: usize) -> io::Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    // 64 rows take whole cache lines of `values`, and a panel of GPT-2 stays in the second cache.
    let panel_rows = 64.min(rows);
    let mut panel = vec![0.0; panel_rows * columns];
    for first in (0..rows).step_by(panel_rows) {
        let count = panel_rows.min(rows - first);
        let panel = &mut panel[..count * columns];
        transpose_part(&values[first..], rows, panel, columns);
        writer.write_all(bytemuck::cast_slice(panel))?;
    }
    Ok(())
}

/// `destination (columns, rows)` becomes the transpose of `source (rows, columns)`.
pub(crate) fn transpose(source: &[f32], rows: usize, columns: usize, destination: &mut [f32]) {
    assert!(source.len() == rows * columns && destination.len() == rows * columns, "transpose of {rows} x {columns}");
    if !source.is_empty() {
        transpose_part(source, columns, destination, rows);
    }
}

/// `destination[j][i] = source[i][j]`, in blocks, for all `j` and `i` of `destination`, whose rows are `width` long and
/// those of `source` `source_width`.
fn transpose_part(source: &[f32], source_width: usize, destination: &mut [f32], width: usize) {
    // 16 floats are a cache line: a block reads and writes whole lines, all of which fit the first cache.
    const BLOCK: usize = 16;
    let height = destination.len() / width;
    for left in (0..width).step_by(BLOCK) {
        let right = (left + BLOCK).min(width);
        for top in (0..height).step_by(BLOCK) {
            for j in top..(top + BLOCK).min(height) {
                let row = &mut destination[j * width + left..j * width + right];
                for (i, element) in (left..right).zip(row) {
                    *element = source[i * source_width + j];
                }
            }
        }
    }
}
