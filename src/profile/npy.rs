//! NumPy's `.npy` files: one array, its element type and shape in a header, the elements behind it.
//!
//! Format 1.0, 2.0 and 3.0 are read and the lowest that holds the header is written; always little-endian, C order
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>). NumPy has no bf16: such arrays are written
//! as `u16`, and the two bytes without a meaning (`V2`) that `ml_dtypes` writes for bf16 are read as bf16.
//!
//! Nothing in a file is believed: a header is read within the bounds of the file, and what it claims of the data must be
//! exactly what is there, so a hostile file costs no more memory than its own size.

use crate::util::atomic_file::{AtomicFile, WriteError, plainly};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Type of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Dtype {
    /// All types, with the names that users type and NumPy's description of them.
    const ALL: [(Self, &'static str, &'static str); 13] = [
        (Self::Bool, "bool", "|b1"),
        (Self::U8, "u8", "|u1"),
        (Self::I8, "i8", "|i1"),
        (Self::U16, "u16", "<u2"),
        (Self::I16, "i16", "<i2"),
        (Self::U32, "u32", "<u4"),
        (Self::I32, "i32", "<i4"),
        (Self::U64, "u64", "<u8"),
        (Self::I64, "i64", "<i8"),
        (Self::F16, "f16", "<f2"),
        (Self::Bf16, "bf16", "<u2"),
        (Self::F32, "f32", "<f4"),
        (Self::F64, "f64", "<f8"),
    ];

    /// The names, for messages.
    pub const NAMES: &'static str = "u8 u16 u32 u64 i8 i16 i32 i64 f16 bf16 f32 f64 bool";

    /// The type of this name: `f32`, `bf16`, `u8`...
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|entry| entry.1 == name).map(|entry| entry.0)
    }

    fn entry(self) -> (&'static str, &'static str) {
        Self::ALL.iter().find(|entry| entry.0 == self).map_or(("u8", "|u1"), |entry| (entry.1, entry.2))
    }

    /// The name that [`Self::parse`] knows.
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// True for f16, bf16, f32 and f64.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// What NumPy calls it: byte order, kind, bytes.
    fn from_description(text: &str) -> Result<Self, String> {
        if let Some(entry) = Self::ALL.iter().find(|entry| entry.2 == text) {
            return Ok(entry.0);
        }
        match text {
            "<V2" | "|V2" => Ok(Self::Bf16),
            // A single byte has no order, whatever the header says.
            "<u1" | ">u1" | "=u1" => Ok(Self::U8),
            "<i1" | ">i1" | "=i1" => Ok(Self::I8),
            _ if text.starts_with('>') => {
                Err(format!("its elements are big-endian ({text}); save array.astype(array.dtype.newbyteorder('<'))"))
            }
            _ => Err(format!("elements of type {text} are not supported; use one of {}", Self::NAMES)),
        }
    }
}

/// An array as it lies in a file: row-major, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// A file that is not a `.npy` file, or not one that can be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", path.display())]
pub struct NpyError {
    pub path: PathBuf,
    pub message: String,
}

const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header that is read; NumPy's own limit is 10,000 characters.
const MAX_HEADER_BYTES: usize = 1 << 20;

/// Elements of a shape, or none where they are more than fit into memory addresses.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |count, &length| count.checked_mul(length))
}

/// A shape as users write it: `[2,3]`.
pub fn shape_text(shape: &[usize]) -> String {
    let lengths: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("[{}]", lengths.join(","))
}

/// Reads an array.
///
/// # Errors
/// The file cannot be read, is not a whole `.npy` file, has an element type that [`Dtype`] lacks, or is in Fortran order.
pub fn read(path: &Path) -> Result<Array, NpyError> {
    let fail = |message: String| NpyError { path: path.into(), message };
    let facts = std::fs::metadata(path).map_err(|error| fail(plainly(&error)))?;
    // Pipes and devices have no length that would bound what is read.
    if !facts.is_file() {
        return Err(fail("not a file; give a .npy file".into()));
    }
    let file = std::fs::read(path).map_err(|error| fail(plainly(&error)))?;
    parse(&file).map_err(fail)
}

/// Reads an array from the bytes of a file.
///
/// # Errors
/// As [`read`], without the file's name.
pub fn parse(file: &[u8]) -> Result<Array, String> {
    let (header, data) = split(file)?;
    let Header { description, is_fortran, shape } = HeaderParser { rest: header }.parse()?;
    let dtype = Dtype::from_description(&description)?;
    if is_fortran && shape.iter().filter(|&&length| length != 1).count() > 1 {
        return Err("it is in Fortran order; save numpy.ascontiguousarray(array)".into());
    }
    let bytes = element_count(&shape).and_then(|count| count.checked_mul(dtype.bytes()));
    match bytes {
        Some(bytes) if bytes == data.len() => Ok(Array { dtype, shape, data: data.to_vec() }),
        _ => {
            let needed = bytes.map_or("more bytes than memory has".into(), |bytes| format!("{bytes} bytes"));
            let shape = shape_text(&shape);
            Err(format!("{}{shape} takes {needed}, but {} follow the header", dtype.name(), data.len()))
        }
    }
}

/// Header text and data of a file.
fn split(file: &[u8]) -> Result<(&str, &[u8]), String> {
    let rest = file.strip_prefix(MAGIC).ok_or("not a .npy file (its first bytes are not \\x93NUMPY)")?;
    let (length, rest) = match rest {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        [major, ..] if !(1..=3).contains(major) => {
            return Err(format!("version {major} of the format is not known here (1 to 3 are)"));
        }
        _ => return Err("the file ends within its header".into()),
    };
    if length > MAX_HEADER_BYTES {
        return Err(format!("a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"));
    }
    let (header, data) = rest.split_at_checked(length).ok_or("the file ends within its header")?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is not text")?;
    Ok((header, data))
}

struct Header {
    description: String,
    is_fortran: bool,
    shape: Vec<usize>,
}

/// Reads the header, a Python dictionary of exactly three entries.
struct HeaderParser<'a> {
    rest: &'a str,
}

impl<'a> HeaderParser<'a> {
    fn parse(mut self) -> Result<Header, String> {
        let (mut description, mut is_fortran, mut shape) = (None, None, None);
        self.expect("{")?;
        while !self.take("}") {
            let key = self.string()?;
            self.expect(":")?;
            match key {
                "descr" => description = Some(self.description()?),
                "fortran_order" => is_fortran = Some(self.boolean()?),
                "shape" => shape = Some(self.tuple()?),
                _ => return Err(format!("its header has an unknown entry '{}'", key.escape_debug())),
            }
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        match (description, is_fortran, shape) {
            (Some(description), Some(is_fortran), Some(shape)) => Ok(Header { description, is_fortran, shape }),
            _ => Err("its header lacks one of 'descr', 'fortran_order' and 'shape'".into()),
        }
    }

    fn take(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.take(token) { Ok(()) } else { Err(format!("its header is damaged: '{token}' expected")) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.take("'") {
            '\''
        } else {
            self.expect("\"")?;
            '"'
        };
        let (text, rest) = self.rest.split_once(quote).ok_or("its header is damaged: a text does not end")?;
        self.rest = rest;
        Ok(text)
    }

    fn description(&mut self) -> Result<String, String> {
        if self.take("[") {
            return Err("its elements are structures; save one field at a time".into());
        }
        self.string().map(str::to_owned)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.take("True") {
            return Ok(true);
        }
        self.expect("False").map(|()| false)
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut lengths = Vec::new();
        self.expect("(")?;
        while !self.take(")") {
            self.rest = self.rest.trim_start();
            let digits = self.rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(self.rest.len());
            let (number, rest) = self.rest.split_at(digits);
            lengths.push(number.parse().map_err(|_| "its header is damaged: the shape is not a list of lengths")?);
            self.rest = rest;
            // Python 2 wrote long integers with a suffix.
            self.take("L");
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(lengths)
    }
}

/// The bytes in front of the data. Their number is a multiple of 64, so that mapped data is aligned.
fn header(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let lengths: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let mut text = format!(
        "{{'descr': '{}', 'fortran_order': False, 'shape': ({}{comma}), }}",
        dtype.entry().1,
        lengths.join(", ")
    );
    let padded = |prefix: usize| (prefix + text.len() + 1).next_multiple_of(64) - prefix;
    let mut bytes = MAGIC.to_vec();
    let length = padded(10);
    let length = if let Ok(short) = u16::try_from(length) {
        bytes.extend([1, 0]);
        bytes.extend(short.to_le_bytes());
        length
    } else {
        let length = padded(12);
        bytes.extend([2, 0]);
        bytes.extend((length as u32).to_le_bytes());
        length
    };
    text.extend(std::iter::repeat_n(' ', length - 1 - text.len()));
    text.push('\n');
    bytes.extend(text.as_bytes());
    bytes
}

/// Writes `data` as an array into a file that was started; bf16 as `u16`.
///
/// # Errors
/// The disk's.
pub fn write_into(file: &mut AtomicFile, dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<(), WriteError> {
    let result = file.write_all(&header(dtype, shape)).and_then(|()| file.write_all(data));
    result.map_err(|cause| WriteError { path: file.path().into(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (dtype, name, _) in Dtype::ALL {
            assert_eq!(Dtype::parse(name), Some(dtype));
            for shape in [vec![], vec![0], vec![5], vec![2, 3], vec![1, 2, 3, 4]] {
                let data = vec![7; element_count(&shape).unwrap() * dtype.bytes()];
                let mut bytes = header(dtype, &shape);
                assert_eq!(bytes.len() % 64, 0);
                bytes.extend(&data);
                let read_as = if dtype == Dtype::Bf16 { Dtype::U16 } else { dtype };
                assert_eq!(parse(&bytes), Ok(Array { dtype: read_as, shape, data }));
            }
        }
    }

    #[test]
    fn long_shapes_take_the_second_version() {
        let shape = vec![1usize; 40_000];
        let mut bytes = header(Dtype::F32, &shape);
        assert_eq!((bytes[6], bytes.len() % 64), (2, 0));
        bytes.extend([0; 4]);
        assert_eq!(parse(&bytes).unwrap().shape, shape);
    }

    #[test]
    fn headers_as_other_programs_write_them_are_read() {
        let read = |header: &str, bytes: usize| parse(&file(header, &vec![0; bytes])).unwrap();
        let plain = read("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n", 24);
        assert_eq!((plain.dtype, plain.shape), (Dtype::F32, vec![2, 3]));
        let terse = read("{\"shape\":(4L,),\"descr\":\"|V2\",\"fortran_order\":True}", 8);
        assert_eq!((terse.dtype, terse.shape), (Dtype::Bf16, vec![4]));
        let row = read("{'descr': '<i8', 'fortran_order': True, 'shape': (1, 3, 1), }", 24);
        assert_eq!((row.dtype, row.shape), (Dtype::I64, vec![1, 3, 1]));
        for version in [2, 3] {
            let text = "{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n";
            let mut bytes = [MAGIC, &[version, 0], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
            bytes.extend([0; 8]);
            assert!(parse(&bytes).unwrap().shape.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let refusal = |header: &str, bytes: usize| parse(&file(header, &vec![0; bytes])).unwrap_err();
        let with = |descr: &str, order: &str, shape: &str| {
            refusal(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"), 24)
        };
        for (message, part) in [
            (with("'<f4'", "True", "(2, 3)"), "Fortran order"),
            (with("'>f4'", "False", "(6,)"), "big-endian"),
            (with("'<c8'", "False", "(3,)"), "<c8"),
            (with("[('a', '<f4')]", "False", "(6,)"), "structures"),
            (with("'<f4'", "False", "(7,)"), "28 bytes, but 24"),
            (with("'<f4'", "False", "(5,)"), "20 bytes, but 24"),
            (with("'<f4'", "False", "(18446744073709551615, 4)"), "more bytes than memory has"),
            (with("'<f4'", "False", "(99999999999999999999999,)"), "shape"),
            (with("'<f4'", "False", "(-1,)"), "shape"),
            (with("'<f4'", "Maybe", "(6,)"), "'False' expected"),
            (refusal("{'descr': '<f4', 'shape': (6,)}", 24), "lacks"),
            (refusal("{'descr': '<f4', 'other': 3}", 24), "unknown entry 'other'"),
            (parse(b"PK\x03\x04").unwrap_err(), "not a .npy file"),
            (parse(b"\x93NUMPY\x09\x00").unwrap_err(), "version 9"),
            (parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").unwrap_err(), "header of 4294967295 bytes"),
        ] {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let whole = [header(Dtype::F32, &[2, 3]), vec![1; 24]].concat();
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length} bytes");
        }
        for position in 0..whole.len() {
            for flip in [1u8, 0x10, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] ^= flip;
                let _ = parse(&damaged);
            }
        }
    }
}
