//! The GGUF header: metadata keys and the table of tensors (versions 2 and 3, little-endian).
//!
//! Nothing in the file is trusted: every length is checked against the bytes that are left before it is
//! followed, and nothing is allocated from a count alone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use crate::formats::gguf::GgmlType;
use crate::load::LoadError;

const MAGIC: &[u8; 4] = b"GGUF";
/// How other files begin that come under this name.
const OTHER_FILES: [([u8; 4], &str); 8] = [
    (*b"lmgg", "a GGML file of before GGUF"),
    (*b"fmgg", "a GGMF file of before GGUF"),
    (*b"tjgg", "a GGJT file of before GGUF"),
    (*b"algg", "an adapter (LoRA) of before GGUF"),
    (*b"vers", "a pointer of Git LFS in place of the file, which `git lfs pull` gets"),
    (*b"<!do", "a web page in place of the file"),
    (*b"<!DO", "a web page in place of the file"),
    (*b"<htm", "a web page in place of the file"),
];
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMS: u32 = 4;

/// A metadata value; the integer widths of the file are folded into one.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Value {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

/// One tensor of the table.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    /// Row-major: GGUF stores the dimensions fastest first, this is the reverse.
    pub(super) shape: Vec<usize>,
    pub(super) stored: Stored,
    /// The file that holds it, of those that make up a model.
    pub(super) part: usize,
}

/// How a tensor's bytes are stored.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    /// A type this reader knows, and the byte range in the file (checked to lie inside it).
    Known(GgmlType, Range<usize>),
    /// A type id this reader does not convert; its size is unknown too.
    Unknown(u32),
}

impl Stored {
    /// The bytes of some rows of `row_len` elements; `None` where they do not end with a block.
    pub(super) fn rows(&self, start: usize, n_rows: usize, row_len: usize) -> Option<Self> {
        let Self::Known(ggml_type, bytes) = self else { return Some(self.clone()) };
        if !row_len.is_multiple_of(ggml_type.block_len()) {
            return None;
        }
        let row_bytes = row_len / ggml_type.block_len() * ggml_type.block_bytes();
        let at = |row: usize| bytes.start + row * row_bytes;
        Some(Self::Known(*ggml_type, at(start)..at(start + n_rows)))
    }
}

/// Everything before the tensor data.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Parses the header of a whole file's `bytes`; `file` is for messages only.
    pub(in crate::load) fn parse(bytes: &[u8], file: &Path) -> Result<Self, LoadError> {
        let mut reader = Reader { bytes, position: 0, file };
        reader.magic_and_version()?;
        let n_tensors = reader.u64()?;
        let n_keys = reader.u64()?;
        let metadata = reader.metadata(n_keys)?;
        let alignment = alignment(&metadata, file)?;
        let table = reader.tensor_table(n_tensors)?;
        let data_start = (reader.position as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for row in table {
            let name = row.name.clone();
            if tensors.insert(row.name.clone(), row.place(data_start, alignment, bytes.len(), file)?).is_some() {
                return Err(bad_header(file, format!("tensor {name:?} stands twice in the table")));
            }
        }
        Ok(Self { metadata, tensors })
    }
}

/// Tensor data starts, and each tensor in it, at multiples of this.
fn alignment(metadata: &BTreeMap<String, Value>, file: &Path) -> Result<u64, LoadError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Int(bytes)) => u64::try_from(*bytes)
            .ok()
            .filter(|bytes| bytes.is_power_of_two() && *bytes <= 1 << 20)
            .ok_or_else(|| bad_header(file, format!("general.alignment is {bytes}, expected a power of two"))),
        Some(other) => Err(bad_header(file, format!("general.alignment is {other:?}, expected an integer"))),
    }
}

/// A row of the tensor table as it stands in the file.
struct Row {
    name: String,
    /// Fastest first.
    dims: Vec<u64>,
    type_id: u32,
    /// From the start of the tensor data.
    offset: u64,
}

impl Row {
    /// Turns the relative offset into a checked byte range of the file.
    fn place(&self, data_start: u64, alignment: u64, file_len: usize, file: &Path) -> Result<TensorInfo, LoadError> {
        let Row { name, dims, type_id, offset } = self;
        let overflow = || bad_header(file, format!("tensor {name:?}: dimensions {dims:?} or offset {offset} overflow"));
        let shape: Option<Vec<usize>> = dims.iter().rev().map(|dim| usize::try_from(*dim).ok()).collect();
        let shape = shape.ok_or_else(overflow)?;
        // A dimension of 0 counts as 1: products of some of them must not overflow either.
        let n_elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim.max(&1)));
        let n_elements = n_elements.filter(|n| usize::try_from(*n).is_ok()).ok_or_else(overflow)?;
        let n_elements = if dims.contains(&0) { 0 } else { n_elements };
        let Some(ggml_type) = GgmlType::from_id(*type_id) else {
            return Ok(TensorInfo { shape, stored: Stored::Unknown(*type_id), part: 0 });
        };
        if !offset.is_multiple_of(alignment) {
            return Err(bad_header(file, format!("tensor {name:?}: offset {offset} is not a multiple of {alignment}")));
        }
        let row_len = dims.first().copied().unwrap_or(1);
        if !row_len.is_multiple_of(ggml_type.block_len() as u64) {
            return Err(bad_header(
                file,
                format!("tensor {name:?}: rows of {row_len} do not divide into blocks of {ggml_type}"),
            ));
        }
        let n_bytes = (n_elements / ggml_type.block_len() as u64)
            .checked_mul(ggml_type.block_bytes() as u64)
            .ok_or_else(overflow)?;
        let start = data_start.checked_add(*offset).ok_or_else(overflow)?;
        let end = start.checked_add(n_bytes).ok_or_else(overflow)?;
        if end > file_len as u64 {
            return Err(LoadError::Truncated { file: file.to_owned(), expected: end, found: file_len as u64 });
        }
        // Both fit in usize: they are at most the length of a slice.
        Ok(TensorInfo { shape, stored: Stored::Known(ggml_type, start as usize..end as usize), part: 0 })
    }
}

fn bad_header(file: &Path, problem: String) -> LoadError {
    LoadError::BadHeader { file: file.to_owned(), problem }
}

/// A cursor that cannot leave the file.
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    file: &'a Path,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n_bytes: u64) -> Result<&'a [u8], LoadError> {
        let left = &self.bytes[self.position..];
        let taken = usize::try_from(n_bytes).ok().and_then(|n_bytes| left.get(..n_bytes)).ok_or_else(|| {
            LoadError::Truncated {
                file: self.file.to_owned(),
                expected: (self.position as u64).saturating_add(n_bytes),
                found: self.bytes.len() as u64,
            }
        })?;
        self.position += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, LoadError> {
        let n_bytes = self.u64()?;
        let start = self.position;
        let bytes = self.take(n_bytes)?;
        let text = std::str::from_utf8(bytes)
            .map_err(|error| bad_header(self.file, format!("text at byte {start} is not UTF-8 ({error})")))?;
        Ok(text.to_owned())
    }

    fn magic_and_version(&mut self) -> Result<(), LoadError> {
        let magic = self.array::<4>()?;
        if &magic != MAGIC {
            let is = OTHER_FILES
                .iter()
                .find(|(start, _)| *start == magic)
                .map_or_else(String::new, |(_, is)| format!(": {is}"));
            return Err(bad_header(self.file, format!("it starts with {magic:?}, not with \"GGUF\"{is}")));
        }
        match self.u32()? {
            2 | 3 => Ok(()),
            version if version.swap_bytes() <= 3 => {
                Err(bad_header(self.file, "big-endian GGUF, expected little-endian".to_owned()))
            }
            version => Err(bad_header(self.file, format!("GGUF version {version}, expected 2 or 3"))),
        }
    }

    fn metadata(&mut self, n_keys: u64) -> Result<BTreeMap<String, Value>, LoadError> {
        let mut metadata = BTreeMap::new();
        for _ in 0..n_keys {
            let key = self.text()?;
            let type_id = self.u32()?;
            let value = self.value(&key, type_id)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(bad_header(self.file, format!("key {key:?} stands twice")));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str, type_id: u32) -> Result<Value, LoadError> {
        const ARRAY: u32 = 9;
        if type_id != ARRAY {
            return self.scalar(key, type_id);
        }
        let element_type = self.u32()?;
        let count = self.u64()?;
        let (mut ints, mut floats, mut bools, mut texts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            match self.scalar(key, element_type)? {
                Value::Int(int) => ints.push(int),
                Value::Float(float) => floats.push(float as f32),
                Value::Bool(bool) => bools.push(bool),
                Value::Text(text) => texts.push(text),
                // `scalar` makes none of these.
                Value::Ints(_) | Value::Floats(_) | Value::Bools(_) | Value::Texts(_) => {}
            }
        }
        Ok(match element_type {
            6 | 12 => Value::Floats(floats),
            7 => Value::Bools(bools),
            8 => Value::Texts(texts),
            _ => Value::Ints(ints),
        })
    }

    fn scalar(&mut self, key: &str, type_id: u32) -> Result<Value, LoadError> {
        Ok(match type_id {
            0 => Value::Int(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(bad_header(self.file, format!("key {key:?}: {other} is not a bool")));
                }
            },
            8 => Value::Text(self.text()?),
            10 => {
                let value = self.u64()?;
                Value::Int(
                    i64::try_from(value)
                        .map_err(|_| bad_header(self.file, format!("key {key:?}: {value} is too large")))?,
                )
            }
            11 => Value::Int(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            9 => {
                return Err(bad_header(self.file, format!("key {key:?}: an array of arrays")));
            }
            other => {
                return Err(bad_header(self.file, format!("key {key:?}: unknown value type {other}")));
            }
        })
    }

    fn tensor_table(&mut self, n_tensors: u64) -> Result<Vec<Row>, LoadError> {
        let mut table = Vec::new();
        for _ in 0..n_tensors {
            let name = self.text()?;
            let n_dims = self.u32()?;
            if n_dims > MAX_DIMS {
                return Err(bad_header(
                    self.file,
                    format!("tensor {name:?} has {n_dims} dimensions, at most {MAX_DIMS} are allowed"),
                ));
            }
            let dims = (0..n_dims).map(|_| self.u64()).collect::<Result<_, _>>()?;
            table.push(Row { name, dims, type_id: self.u32()?, offset: self.u64()? });
        }
        Ok(table)
    }
}
