//! MNIST's idx format: two zero bytes, the type of a number (8 is a byte), the number of sizes, the sizes as big-endian u32,
//! then the numbers.

use super::super::error::{Error, Result};
use super::super::table::open_bytes;
use std::io::Read;
use std::path::Path;

const BYTES: u8 = 8;

/// The sizes and the bytes of a file, which may be gzipped.
pub(super) fn read(path: &Path) -> Result<(Vec<usize>, Vec<u8>)> {
    const AGAIN: &str = "copy or download the file again";
    let mut read = open_bytes(path)?;
    let mut take = |count: usize| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&mut read)
            .take(count as u64)
            .read_to_end(&mut bytes)
            .map_err(|cause| Error::table(path, format!("cannot be read on ({cause})"), AGAIN))?;
        Ok(bytes)
    };
    let magic = take(4)?;
    let &[0, 0, BYTES, dimensions @ 1..=4] = magic.as_slice() else {
        let what = format!("not an idx file of bytes: it starts with {magic:?}");
        return Err(Error::table(path, what, "name a file such as train-images-idx3-ubyte.gz"));
    };
    let header = take(4 * usize::from(dimensions))?;
    let sizes: Vec<usize> =
        header.chunks_exact(4).map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize).collect();
    let total = sizes.iter().try_fold(1usize, |total, &size| total.checked_mul(size));
    let total = total.filter(|&total| sizes.len() == usize::from(dimensions) && total < 1 << 40);
    let Some(total) = total else {
        return Err(Error::table(path, format!("its header names sizes {sizes:?}"), AGAIN));
    };
    let bytes = take(total + 1)?;
    if bytes.len() != total {
        let state = if bytes.len() < total { "cut short" } else { "longer than it says" };
        let what = format!("{state}: its header names {total} bytes, of sizes {sizes:?}");
        return Err(Error::table(path, what, AGAIN));
    }
    Ok((sizes, bytes))
}
