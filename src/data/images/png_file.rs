//! One PNG file -> grey or RGB bytes.

use super::super::error::{Error, Result};
use super::Image;
use png::{ColorType, Decoder, Transformations};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Pixels of an image at most: a small file may claim any size.
const MOST_PIXELS: usize = 1 << 28;

/// Reads an image. Palettes become RGB, 16 bits become 8, transparency is left out.
pub(super) fn read(path: &Path) -> Result<Image> {
    let broken = |error: png::DecodingError| {
        Error::table(path, format!("not a whole PNG file ({error})"), "save it as PNG again")
    };
    let file = File::open(path).map_err(Error::read(path))?;
    let mut decoder = Decoder::new(BufReader::new(file));
    decoder.set_transformations(Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(broken)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let bytes = reader.output_buffer_size().filter(|_| width.saturating_mul(height) <= MOST_PIXELS);
    let Some(bytes) = bytes else {
        let what = format!("an image of {width} x {height} pixels is too large");
        return Err(Error::table(path, what, "scale it down"));
    };
    let mut buffer = vec![0; bytes];
    let frame = reader.next_frame(&mut buffer).map_err(broken)?;
    buffer.truncate(frame.buffer_size());
    let (stored, channels) = match frame.color_type {
        ColorType::Grayscale => (1, 1),
        ColorType::GrayscaleAlpha => (2, 1),
        ColorType::Rgba => (4, 3),
        ColorType::Rgb | ColorType::Indexed => (3, 3),
    };
    let pixels = if stored == channels {
        buffer
    } else {
        buffer.chunks_exact(stored).flat_map(|pixel| &pixel[..channels]).copied().collect()
    };
    Ok(Image { width, height, channels, pixels })
}
