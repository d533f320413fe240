//! Kernel arguments as users write them: `in:x.npy`, `out:f32[2,3]:y.npy`, `i32:5`, `null`.
//!
//! A SPEC says two things: what the kernel gets (a pointer to a buffer, a number, a structure's bytes), and, for a
//! buffer, where its elements come from and where they go after the launch.

use crate::profile::npy::{self, Array, Dtype, element_count, shape_text};
use half::{bf16, f16};
use std::path::{Path, PathBuf};

/// One SPEC, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    /// As it was written.
    pub text: String,
    pub value: Value,
}

/// What a kernel gets for a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A pointer to device memory.
    Buffer { content: Content, output: Option<PathBuf> },
    /// A number, in memory order.
    Scalar { dtype: Dtype, bytes: Vec<u8> },
    /// A structure, byte by byte.
    Bytes(Vec<u8>),
    /// A null pointer.
    Null,
}

/// What a buffer holds before the launch.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    File(PathBuf),
    /// Nothing: filled with ones (NaN), and under the sanitizer memory that nobody wrote.
    Unwritten(Dtype, Vec<usize>),
    Zeros(Dtype, Vec<usize>),
    /// Uniform in [-1, 1), or integers from 0 to 99; the same for the same seed.
    Random(Dtype, Vec<usize>, u64),
}

/// The forms of a SPEC, for messages.
pub const FORMS: &str = "in:FILE.npy, out:DTYPE[SHAPE]:FILE.npy, inout:IN.npy:OUT.npy, zeros:DTYPE[SHAPE], \
    random:DTYPE[SHAPE], DTYPE:NUMBER, bytes:HEX or null";

impl Argument {
    /// Parses a SPEC.
    ///
    /// # Errors
    /// It has none of the [`FORMS`], or its number does not fit its type.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |message: String| format!("'{text}': {message}");
        let value = if text == "null" {
            Value::Null
        } else {
            let (kind, rest) = text.split_once(':').ok_or_else(|| wrong(format!("not an argument; write {FORMS}")))?;
            Value::parse(kind, rest).map_err(wrong)?
        };
        Ok(Self { text: text.into(), value })
    }

    /// The file that the buffer goes to after the launch.
    pub fn output(&self) -> Option<&Path> {
        match &self.value {
            Value::Buffer { output, .. } => output.as_deref(),
            _ => None,
        }
    }
}

impl Value {
    fn parse(kind: &str, rest: &str) -> Result<Self, String> {
        let buffer = |content, output| Self::Buffer { content, output };
        match kind {
            "in" => Ok(buffer(Content::File(path(rest)?), None)),
            "out" => {
                let (dtype, shape, rest) = typed_shape(rest)?;
                let output = if rest.is_empty() { None } else { Some(path(after_colon(rest)?)?) };
                Ok(buffer(Content::Unwritten(dtype, shape), output))
            }
            "inout" => match rest.split_once(':') {
                Some((from, to)) if !to.contains(':') => Ok(buffer(Content::File(path(from)?), Some(path(to)?))),
                _ => Err("write inout:IN.npy:OUT.npy, with no further ':' in the names".into()),
            },
            "zeros" => {
                let (dtype, shape, rest) = typed_shape(rest)?;
                let output = if rest.is_empty() { None } else { Some(path(after_colon(rest)?)?) };
                Ok(buffer(Content::Zeros(dtype, shape), output))
            }
            "random" => {
                let (dtype, shape, rest) = typed_shape(rest)?;
                let seed = match rest {
                    "" => 0,
                    _ => after_colon(rest)?.parse().map_err(|_| "the seed must be a number: random:f32[2,3]:7")?,
                };
                Ok(buffer(Content::Random(dtype, shape, seed), None))
            }
            "bytes" => hexadecimal(rest).map(Self::Bytes),
            _ => match Dtype::parse(kind) {
                Some(dtype) => Ok(Self::Scalar { dtype, bytes: number(dtype, rest)? }),
                None => Err(format!("'{kind}' is neither a form nor a type; write {FORMS}")),
            },
        }
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("the name of a file is missing".into()) } else { Ok(Path::new(text).into()) }
}

fn after_colon(rest: &str) -> Result<&str, String> {
    rest.strip_prefix(':').ok_or_else(|| format!("':' expected before '{rest}'"))
}

/// `f32[2,3]`, and what follows it.
fn typed_shape(text: &str) -> Result<(Dtype, Vec<usize>, &str), String> {
    let wrong = || format!("write a type and a shape, as in f32[2,3]; types are {}", Dtype::NAMES);
    let (name, rest) = text.split_once('[').ok_or_else(wrong)?;
    let (lengths, rest) = rest.split_once(']').ok_or_else(wrong)?;
    let dtype = Dtype::parse(name).ok_or_else(|| format!("unknown type '{name}'; types are {}", Dtype::NAMES))?;
    let mut shape = Vec::new();
    if !lengths.trim().is_empty() {
        for length in lengths.split(',') {
            let length = length.trim();
            shape.push(length.parse().map_err(|_| format!("'{length}' in the shape is not a length"))?);
        }
    }
    match element_count(&shape).and_then(|count| count.checked_mul(dtype.bytes())) {
        // Half of the address space leaves room for the arithmetic of allocators.
        Some(bytes) if bytes <= isize::MAX as usize / 2 => Ok((dtype, shape, rest)),
        _ => Err(format!("{}{} has more bytes than memory has addresses", dtype.name(), shape_text(&shape))),
    }
}

/// A number in the memory order of its type. Integers may be hexadecimal.
fn number(dtype: Dtype, text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("'{text}' is not a number of type {}", dtype.name());
    if dtype.is_float() {
        let value: f64 = text.parse().map_err(|_| wrong())?;
        return Ok(match dtype {
            Dtype::F16 => f16::from_f64(value).to_le_bytes().to_vec(),
            Dtype::Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
            // Not by way of f64, which would round twice.
            Dtype::F32 => text.parse::<f32>().map_err(|_| wrong())?.to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        });
    }
    if dtype == Dtype::Bool {
        return match text {
            "false" | "0" => Ok(vec![0]),
            "true" | "1" => Ok(vec![1]),
            _ => Err(wrong()),
        };
    }
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        // `from_str_radix` would take a second sign.
        Some(digits) if !digits.starts_with(['+', '-']) => i128::from_str_radix(digits, 16),
        Some(_) => return Err(wrong()),
        None if digits.starts_with(['+', '-']) => return Err(wrong()),
        None => digits.parse(),
    };
    let value = sign * magnitude.map_err(|_| wrong())?;
    let bits = 8 * dtype.bytes() as u32;
    let is_signed = matches!(dtype, Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
    let range = if is_signed { -(1i128 << (bits - 1))..1i128 << (bits - 1) } else { 0..1i128 << bits };
    if !range.contains(&value) {
        return Err(format!("{text} is outside {} ({} to {})", dtype.name(), range.start, range.end - 1));
    }
    Ok(value.to_le_bytes()[..dtype.bytes()].to_vec())
}

fn hexadecimal(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || "write two hexadecimal digits per byte, in memory order: bytes:0500803f".to_owned();
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())).collect()
}

impl Content {
    /// Reads or makes the elements; none for a buffer without any.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn load(&self) -> Result<Buffer, npy::NpyError> {
        let (dtype, shape, data) = match self {
            Self::File(path) => {
                let Array { dtype, shape, data } = npy::read(path)?;
                (dtype, shape, Some(data))
            }
            Self::Unwritten(dtype, shape) => (*dtype, shape.clone(), None),
            Self::Zeros(dtype, shape) => {
                let bytes = element_count(shape).unwrap_or(0) * dtype.bytes();
                (*dtype, shape.clone(), Some(vec![0; bytes]))
            }
            Self::Random(dtype, shape, seed) => {
                let count = element_count(shape).unwrap_or(0);
                (*dtype, shape.clone(), Some(random(*dtype, count, *seed)))
            }
        };
        Ok(Buffer { dtype, shape, data })
    }

    /// Bytes that a buffer made here (not read) will take.
    pub fn made_bytes(&self) -> usize {
        match self {
            Self::File(_) => 0,
            Self::Unwritten(dtype, shape) | Self::Zeros(dtype, shape) | Self::Random(dtype, shape, _) => {
                element_count(shape).unwrap_or(usize::MAX).saturating_mul(dtype.bytes())
            }
        }
    }
}

/// A buffer before the launch.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// None where nothing was written yet.
    pub data: Option<Vec<u8>>,
}

impl Buffer {
    pub fn bytes(&self) -> usize {
        self.data.as_ref().map_or_else(|| element_count(&self.shape).unwrap_or(0) * self.dtype.bytes(), Vec::len)
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014), a step per element.
fn random(dtype: Dtype, count: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * dtype.bytes());
    let mut state = seed;
    for _ in 0..count {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        let uniform = (bits >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        match dtype {
            Dtype::F16 => bytes.extend(f16::from_f32(uniform).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(bf16::from_f32(uniform).to_le_bytes()),
            Dtype::F32 => bytes.extend(uniform.to_le_bytes()),
            Dtype::F64 => bytes.extend(f64::from(uniform).to_le_bytes()),
            Dtype::Bool => bytes.push((bits >> 63) as u8),
            _ => bytes.extend(&(((bits >> 32) * 100) >> 32).to_le_bytes()[..dtype.bytes()]),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Argument::parse(text).unwrap_or_else(|error| panic!("{error}")).value
    }

    #[test]
    fn every_form_is_parsed() {
        let buffer = |content, output: Option<&str>| Value::Buffer { content, output: output.map(PathBuf::from) };
        assert_eq!(value("in:a:b.npy"), buffer(Content::File("a:b.npy".into()), None));
        let unwritten = Content::Unwritten(Dtype::F32, vec![2, 3]);
        assert_eq!(value("out:f32[2,3]:y.npy"), buffer(unwritten.clone(), Some("y.npy")));
        assert_eq!(value("out:f32[2, 3]"), buffer(unwritten, None));
        assert_eq!(value("out:bf16[]:y.npy"), buffer(Content::Unwritten(Dtype::Bf16, vec![]), Some("y.npy")));
        assert_eq!(value("inout:x.npy:y.npy"), buffer(Content::File("x.npy".into()), Some("y.npy")));
        assert_eq!(value("zeros:u8[9]:y.npy"), buffer(Content::Zeros(Dtype::U8, vec![9]), Some("y.npy")));
        assert_eq!(value("random:f16[4]:7"), buffer(Content::Random(Dtype::F16, vec![4], 7), None));
        assert_eq!(value("bytes:05ff"), Value::Bytes(vec![5, 255]));
        assert_eq!(value("null"), Value::Null);
    }

    #[test]
    fn numbers_take_the_bytes_of_their_type() {
        let bytes = |text: &str| match value(text) {
            Value::Scalar { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        };
        assert_eq!(bytes("i32:-5"), (-5i32).to_le_bytes());
        assert_eq!(bytes("u64:18446744073709551615"), [255; 8]);
        assert_eq!(bytes("i64:-0x10"), (-16i64).to_le_bytes());
        assert_eq!(bytes("u8:0xfe"), [254]);
        assert_eq!(bytes("i16:-32768"), i16::MIN.to_le_bytes());
        assert_eq!(bytes("f32:1e-5"), 1e-5f32.to_le_bytes());
        assert_eq!(bytes("f64:-inf"), f64::NEG_INFINITY.to_le_bytes());
        assert_eq!(bytes("bf16:1"), [0x80, 0x3f]);
        assert_eq!(bytes("f16:-2"), [0, 0xc0]);
        assert_eq!(bytes("bool:true"), [1]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("x.npy", "in:FILE.npy"),
            ("in:", "missing"),
            ("out:f32:y.npy", "f32[2,3]"),
            ("out:f99[2]:y.npy", "unknown type 'f99'"),
            ("out:f32[2,x]:y.npy", "'x' in the shape"),
            ("out:f32[2,3]y.npy", "':' expected"),
            ("out:f32[99999999999,99999999999]", "more bytes than memory"),
            ("out:f32[4611686018427387904]", "more bytes than memory"),
            ("out:f32[-1]", "not a length"),
            ("inout:x.npy", "inout:IN.npy:OUT.npy"),
            ("inout:a:b:c", "inout:IN.npy:OUT.npy"),
            ("random:f32[2]:x", "seed"),
            ("i32:3000000000", "outside i32 (-2147483648 to 2147483647)"),
            ("u8:-1", "outside u8"),
            ("u32:0.5", "not a number of type u32"),
            ("i32:--5", "not a number"),
            ("u32:0x-5", "not a number"),
            ("i32:", "not a number"),
            ("f32:abc", "not a number of type f32"),
            ("int:5", "'int' is neither a form nor a type"),
            ("bytes:0", "two hexadecimal digits"),
            ("bytes:é1", "two hexadecimal digits"),
            ("", "not an argument"),
        ] {
            let message = Argument::parse(text).unwrap_err();
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn random_buffers_are_the_same_for_the_same_seed() {
        let load = |seed| Content::Random(Dtype::F32, vec![1000], seed).load().unwrap().data.unwrap();
        assert_eq!(load(1), load(1));
        assert_ne!(load(1), load(2));
        let values: Vec<f32> = load(3).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert!(values.iter().all(|value| (-1.0..1.0).contains(value)));
        assert!((values.iter().sum::<f32>() / 1000.0).abs() < 0.1);
        let integers = Content::Random(Dtype::U8, vec![1000], 3).load().unwrap().data.unwrap();
        assert!(integers.iter().all(|&value| value < 100) && integers.contains(&99) && integers.contains(&0));
    }
}
