//! One safetensors file for reading: mapped, checked once, handed out in place.

use super::{Error, LONGEST_HEADER_BYTES, MOST_DIMENSIONS, one_line, show_shape};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use memmap2::{Advice, Mmap};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What [`TensorView::to_f32`] reads.
const FLOATS: &str = "F32, F16, BF16 or F64";

/// A safetensors file, mapped into memory and checked.
///
/// The map is private to this process but shows the file as it is: a file must not be shortened by others while it is
/// open. Files written by [`write`] never are: they are replaced as a whole.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    map: Mmap,
    tensors: Vec<Entry>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

/// One tensor of a file. The range counts from the start of the file.
#[derive(Debug)]
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// One tensor in a [`WeightFile`]: its bytes are read in place.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    path: &'a Path,
    name: &'a str,
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl WeightFile {
    /// Maps the file and checks all of its header against itself and against the file's length.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, [`Error::File`] and [`Error::Header`] for anything that is not a
    /// complete, self-consistent safetensors file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |action, source| Error::Io { action, path: path.to_owned(), source };
        let wrong = |what: String| Error::File { path: path.to_owned(), what };
        // Asked before opening, because opening a named pipe would wait for its writer.
        let kind = fs::metadata(path).map_err(|error| failed("open", error))?;
        if !kind.is_file() {
            return Err(wrong("not a regular file".into()));
        }
        let file = File::open(path).map_err(|error| failed("open", error))?;
        let length = file.metadata().map_err(|error| failed("read the length of", error))?.len();
        if length < 8 {
            return Err(wrong(format!("{length} bytes are too few for a safetensors file")));
        }
        // SAFETY: the map is read only. That nobody shortens the file meanwhile is the documented condition of use.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| failed("map", error))?;
        // A hint only: without it things work, slower.
        let _ = map.advise(Advice::WillNeed);

        let announced = u64::from_le_bytes(map[..8].try_into().expect("eight bytes"));
        if announced > LONGEST_HEADER_BYTES {
            return Err(wrong(format!("announces a header of {announced} bytes, at most 100 MB are allowed")));
        }
        let data_start = 8 + announced as usize;
        let Some(header) = map.get(8..data_start) else {
            return Err(wrong(format!("announces a header of {announced} bytes but holds {} more", length - 8)));
        };
        if header.first() != Some(&b'{') {
            return Err(wrong("the header does not begin with a brace".into()));
        }
        let header: Header = serde_json::from_slice(header)
            .map_err(|error| wrong(format!("header: {}", one_line(&error.to_string()))))?;
        let tensors = check_entries(path, header.tensors, data_start, map.len())?;
        let mut index = HashMap::with_capacity(tensors.len());
        for (position, tensor) in tensors.iter().enumerate() {
            if index.insert(tensor.name.clone(), position).is_some() {
                return Err(Error::Header {
                    path: path.to_owned(),
                    tensor: one_line(&tensor.name),
                    what: "described twice".into(),
                });
            }
        }
        Ok(Self { path: path.to_owned(), map, tensors, index, metadata: header.metadata })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free-form `__metadata__` of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True where the file holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The names of all tensors, in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`Error::Missing`] where there is none.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, Error> {
        let Some(&position) = self.index.get(name) else {
            return Err(Error::Missing { path: self.path.clone(), tensor: one_line(name), count: self.len() });
        };
        let Entry { name, dtype, shape, range } = &self.tensors[position];
        Ok(TensorView { path: &self.path, name, dtype: *dtype, shape, bytes: &self.map[range.clone()] })
    }
}

/// Checks each tensor by itself, then that all of them together cover the data exactly once.
fn check_entries(
    path: &Path,
    described: Vec<(String, TensorInfo)>,
    data_start: usize,
    file_bytes: usize,
) -> Result<Vec<Entry>, Error> {
    let data_bytes = file_bytes - data_start;
    let wrong = |name: &str, what: String| Error::Header { path: path.to_owned(), tensor: one_line(name), what };
    let mut tensors = Vec::with_capacity(described.len());
    for (name, TensorInfo { dtype, shape, data_offsets: (start, end) }) in described {
        if shape.len() > MOST_DIMENSIONS {
            return Err(wrong(&name, format!("{} dimensions, at most {MOST_DIMENSIONS} are allowed", shape.len())));
        }
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let Some(bits) = elements.and_then(|elements| elements.checked_mul(dtype.bitsize())) else {
            return Err(wrong(&name, format!("the size of shape {} overflows", show_shape(&shape))));
        };
        if start > end {
            return Err(wrong(&name, format!("its bytes end at {end}, before they start at {start}")));
        }
        if bits % 8 != 0 {
            return Err(wrong(&name, format!("{dtype:?} {} is no whole number of bytes", show_shape(&shape))));
        }
        if bits / 8 != end - start {
            let shape = show_shape(&shape);
            return Err(wrong(
                &name,
                format!("{dtype:?} {shape} takes {} bytes, described as {}", bits / 8, end - start),
            ));
        }
        if end > data_bytes {
            return Err(wrong(&name, format!("ends at byte {end} of the data, which has only {data_bytes}")));
        }
        tensors.push(Entry { name, dtype, shape, range: start..end });
    }
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut covered = 0;
    for tensor in &mut tensors {
        let Range { start, end } = tensor.range;
        if start != covered {
            let problem = if start < covered { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(wrong(&tensor.name, format!("{problem}: starts at byte {start}, expected {covered}")));
        }
        covered = end;
        tensor.range = data_start + start..data_start + end;
    }
    if covered != data_bytes {
        let what = format!("{} bytes follow the last tensor", data_bytes - covered);
        return Err(Error::File { path: path.to_owned(), what });
    }
    Ok(tensors)
}

impl<'a> TensorView<'a> {
    /// Its name in the file.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The type of its values on disk.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its shape, slowest index first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its bytes, little-endian, row-major; not necessarily aligned for its dtype.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The values as f32: in place where they are that, converted from F16, BF16 and F64 otherwise.
    ///
    /// # Errors
    /// [`Error::Dtype`] for anything else.
    pub fn to_f32(&self) -> Result<Cow<'a, [f32]>, Error> {
        let bytes = self.bytes;
        Ok(match self.dtype {
            Dtype::F32 => match bytemuck::try_cast_slice(bytes) {
                Ok(values) => Cow::Borrowed(values),
                Err(_) => Cow::Owned(decode(bytes, f32::from_le_bytes)),
            },
            Dtype::F16 => Cow::Owned(match bytemuck::try_cast_slice::<u8, u16>(bytes) {
                // Eight at a time where the machine can.
                Ok(bits) => bits.reinterpret_cast::<half::f16>().to_f32_vec(),
                Err(_) => decode(bytes, |pair| half::f16::from_le_bytes(pair).to_f32()),
            }),
            Dtype::BF16 => Cow::Owned(decode(bytes, |pair| half::bf16::from_le_bytes(pair).to_f32())),
            Dtype::F64 => Cow::Owned(decode(bytes, |eight| f64::from_le_bytes(eight) as f32)),
            _ => return Err(self.refuse(FLOATS)),
        })
    }

    /// Whether [`TensorView::to_f32`] can read the values, at no cost.
    ///
    /// # Errors
    /// [`Error::Dtype`] where it cannot.
    pub fn check_float(&self) -> Result<(), Error> {
        match self.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64 => Ok(()),
            _ => Err(self.refuse(FLOATS)),
        }
    }

    /// The values as f64, from F64 or from what [`TensorView::to_f32`] reads.
    ///
    /// # Errors
    /// [`Error::Dtype`] for anything else.
    pub fn to_f64(&self) -> Result<Vec<f64>, Error> {
        match self.dtype {
            Dtype::F64 => Ok(decode(self.bytes, f64::from_le_bytes)),
            _ => Ok(self.to_f32()?.iter().map(|&value| f64::from(value)).collect()),
        }
    }

    /// The values as i64, from I64 or I32.
    ///
    /// # Errors
    /// [`Error::Dtype`] for anything else.
    pub fn to_i64(&self) -> Result<Vec<i64>, Error> {
        match self.dtype {
            Dtype::I64 => Ok(decode(self.bytes, i64::from_le_bytes)),
            Dtype::I32 => Ok(decode(self.bytes, |four| i64::from(i32::from_le_bytes(four)))),
            _ => Err(self.refuse("I64 or I32")),
        }
    }

    fn refuse(&self, wanted: &'static str) -> Error {
        Error::Dtype { path: self.path.to_owned(), tensor: one_line(self.name), found: self.dtype, wanted }
    }
}

/// Each group of `N` bytes through `convert`. That the length is a multiple of `N` was checked with the header.
fn decode<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| convert(chunk)).collect()
}

/// The JSON header of a file. Tensors stay in a list, so that a name that comes twice is noticed.
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object that describes tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { metadata: BTreeMap::new(), tensors: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    let named = |error: A::Error| A::Error::custom(format!("{}: {error}", one_line(&name)));
                    if name == "__metadata__" {
                        header.metadata = map.next_value().map_err(named)?;
                    } else {
                        let described = map.next_value().map_err(named)?;
                        header.tensors.push((name, described));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}
