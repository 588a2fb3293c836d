//! Hugging Face folders: `model.safetensors`, or shards listed by `model.safetensors.index.json`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;

use super::map::MappedFile;
use super::shards::{FileNames, Shards};
use super::slices::slice_len;
use super::stored_dtype::{READABLE, float_type, is_integer};
use super::{Checkpoint, LoadError, Slices, StoredType, floats};
use crate::arithmetic::FloatType;

const FILES: FileNames = FileNames { single: "model.safetensors", index: "model.safetensors.index.json" };

/// The tensors of one or more memory-mapped safetensors files.
pub struct SafetensorsCheckpoint {
    shards: Shards<Entry>,
}

/// Where a tensor lies.
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in its file.
    range: Range<usize>,
}

/// A tensor as it is stored, and the file it is in.
pub(super) struct RawTensor<'a> {
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
    pub(super) file: &'a Path,
}

impl SafetensorsCheckpoint {
    /// Opens `model.safetensors` of `folder`, or else the shards that its index names. Maps the files and
    /// reads the headers only.
    ///
    /// # Errors
    /// A missing or unreadable file, a truncated shard, a header that contradicts itself, a shard or a tensor
    /// that the index promises and the folder lacks.
    pub fn open_folder(folder: &Path) -> Result<Self, LoadError> {
        Ok(Self { shards: Shards::open_folder(folder, &FILES, read_header)? })
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// As [`SafetensorsCheckpoint::open_folder`].
    pub fn open_file(file: &Path) -> Result<Self, LoadError> {
        Ok(Self { shards: Shards::open_file(file, read_header)? })
    }

    /// A tensor as it is stored.
    pub(super) fn raw(&self, name: &str) -> Result<RawTensor<'_>, LoadError> {
        let (entry, file) = self.shards.find(name)?;
        // In bounds: the header's ranges were checked against the file's length when the file was opened.
        let bytes = &file.bytes()[entry.range.clone()];
        Ok(RawTensor { dtype: entry.dtype, shape: &entry.shape, bytes, file: file.path() })
    }

    /// A tensor of floats: their type, where it lies, and in which file.
    fn floats(&self, name: &str) -> Result<(FloatType, &Entry, &MappedFile), LoadError> {
        let (entry, file) = self.shards.find(name)?;
        let float = float_type(entry.dtype).ok_or_else(|| LoadError::UnsupportedDtype {
            file: file.path().to_owned(),
            name: name.to_owned(),
            dtype: format!("{:?}", entry.dtype),
            known: READABLE.to_owned(),
        })?;
        Ok((float, entry, file))
    }

    /// A copy of a tensor's bytes.
    pub(super) fn read_bytes(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        let (entry, file) = self.shards.find(name)?;
        file.read(entry.range.clone())
    }

    /// What the metadata of the file that holds the tensor `name` says under `key`.
    pub(super) fn metadata_of(&self, name: &str, key: &str) -> Result<Option<String>, LoadError> {
        let (_, file) = self.shards.find(name)?;
        let header = SafeTensors::read_metadata(file.bytes());
        let (_, metadata) = header.map_err(|error| header_error(file.path(), file.bytes(), &error))?;
        Ok(metadata.metadata().as_ref().and_then(|all| all.get(key).cloned()))
    }
}

/// Every tensor of a file, and where it lies.
fn read_header(file: &MappedFile) -> Result<Vec<(String, Entry)>, LoadError> {
    let (header_bytes, metadata) =
        SafeTensors::read_metadata(file.bytes()).map_err(|error| header_error(file.path(), file.bytes(), &error))?;
    let data_start = 8 + header_bytes;
    let entry = |info: &TensorInfo| {
        let (start, end) = info.data_offsets;
        Entry { dtype: info.dtype, shape: info.shape.clone(), range: data_start + start..data_start + end }
    };
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect())
}

impl Checkpoint for SafetensorsCheckpoint {
    fn names(&self) -> Vec<String> {
        self.shards.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shards.place(name).map(|entry| entry.shape.clone())
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let (float, entry, file) = self.floats(name)?;
        floats::read_f32(float, file, entry.range.clone())
    }

    fn slices(&self, name: &str) -> Result<Slices<'_>, LoadError> {
        let (float, entry, file) = self.floats(name)?;
        Ok(floats::slices(float, file, entry.range.clone(), slice_len(&entry.shape)))
    }

    fn is_readable(&self, name: &str) -> bool {
        self.shards.place(name).is_some_and(|entry| float_type(entry.dtype).is_some())
    }

    fn is_integer(&self, name: &str) -> bool {
        self.shards.place(name).is_some_and(|entry| is_integer(entry.dtype))
    }

    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        let (one, other) = (self.raw(name)?, self.raw(other)?);
        Ok(one.dtype == other.dtype && one.shape == other.shape && one.bytes == other.bytes)
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        let dtype = self.shards.place(name)?.dtype;
        Some(StoredType::float(format!("{dtype:?}"), dtype.bitsize()))
    }

    fn notes(&self) -> Vec<String> {
        self.shards.notes()
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.shards.file_of(name)
    }

    fn source(&self) -> &Path {
        self.shards.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.shards.bytes_on_disk()
    }
}

/// Tells a cut-off download, which the user can cure, from a header that contradicts itself.
fn header_error(file: &Path, bytes: &[u8], error: &SafeTensorError) -> LoadError {
    let found = bytes.len() as u64;
    let truncated = |expected| LoadError::Truncated { file: file.to_owned(), expected, found };
    let bad = || LoadError::BadHeader { file: file.to_owned(), problem: error.to_string() };
    match error {
        SafeTensorError::HeaderTooSmall => truncated(8),
        SafeTensorError::InvalidHeaderLength => declared_header_end(bytes).map_or_else(bad, truncated),
        SafeTensorError::MetadataIncompleteBuffer => match declared_data_end(bytes) {
            Some(expected) if expected > found => truncated(expected),
            Some(expected) => LoadError::BadHeader {
                file: file.to_owned(),
                problem: format!("the tensors end at byte {expected} but the file has {found}"),
            },
            None => bad(),
        },
        _ => bad(),
    }
}

/// The byte after the JSON header: its length stands in the first 8 bytes.
fn declared_header_end(bytes: &[u8]) -> Option<u64> {
    u64::from_le_bytes(*bytes.first_chunk()?).checked_add(8)
}

/// The byte after the last tensor.
fn declared_data_end(bytes: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Offsets {
        data_offsets: (u64, u64),
    }
    let data_start = declared_header_end(bytes)?;
    let json = bytes.get(8..usize::try_from(data_start).ok()?)?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(json).ok()?;
    let ends = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .filter_map(|(_, value)| serde_json::from_value::<Offsets>(value).ok().map(|offsets| offsets.data_offsets.1));
    data_start.checked_add(ends.max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::load::read_exact_shape;
    use crate::load::testing::{Stored, write_safetensors};
    use half::{bf16, f16};
    use proptest::prelude::*;

    const VALUES: [f32; 6] = [0.5, -1.25, 3.0, 0.0, -0.0078125, 96.0];

    fn stored(dtype: Dtype, values: &[f32]) -> Stored {
        let bytes = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => vec![0; values.len() * dtype.bitsize() / 8],
        };
        Stored { dtype, shape: vec![2, values.len() / 2], bytes }
    }

    fn folder_with(tensors: &[(&str, Stored)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(&folder.path().join(FILES.single), tensors);
        folder
    }

    fn two_shards() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(&folder.path().join("a.safetensors"), &[("x", stored(Dtype::F32, &VALUES))]);
        write_safetensors(&folder.path().join("b.safetensors"), &[("y", stored(Dtype::BF16, &VALUES))]);
        write_index(&folder, r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#);
        folder
    }

    fn write_index(folder: &tempfile::TempDir, json: &str) {
        std::fs::write(folder.path().join(FILES.index), json).unwrap();
    }

    fn open_error(folder: &tempfile::TempDir) -> String {
        let error = SafetensorsCheckpoint::open_folder(folder.path()).err().unwrap().to_string();
        error.replace(folder.path().to_str().unwrap(), "DIR")
    }

    #[test]
    fn all_three_float_types_read_exactly() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let folder = folder_with(&[("w", stored(dtype, &VALUES))]);
            let checkpoint = SafetensorsCheckpoint::open_folder(folder.path()).unwrap();
            assert_eq!(checkpoint.read_f32("w").unwrap(), VALUES, "{dtype:?}");
            assert_eq!(checkpoint.shape("w"), Some(vec![2, 3]));
            let bits = if dtype == Dtype::F32 { 32 } else { 16 };
            assert_eq!(checkpoint.stored_type("w"), Some(StoredType::float(format!("{dtype:?}"), bits)));
            assert_eq!(checkpoint.stored_type("v"), None);
        }
    }

    #[test]
    fn shards_join_under_one_index() {
        let folder = two_shards();
        let checkpoint = SafetensorsCheckpoint::open_folder(folder.path()).unwrap();
        assert_eq!(checkpoint.names(), ["x", "y"]);
        assert_eq!(checkpoint.read_f32("y").unwrap(), VALUES);
        let on_disk =
            ["a", "b"].map(|name| folder.path().join(format!("{name}.safetensors")).metadata().unwrap().len());
        assert_eq!(checkpoint.bytes_on_disk(), on_disk.iter().sum::<u64>());
    }

    #[test]
    fn missing_shard_is_named() {
        let folder = two_shards();
        std::fs::remove_file(folder.path().join("b.safetensors")).unwrap();
        assert_eq!(
            open_error(&folder),
            "DIR/model.safetensors.index.json: shard \"b.safetensors\", which holds \"y\", is not in the folder; \
             download the missing shard"
        );
    }

    #[test]
    fn a_tensor_is_read_from_where_it_is_and_one_that_is_nowhere_is_missing_from_its_shard() {
        let folder = two_shards();
        write_index(&folder, r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "yy": "a.safetensors"}}"#);
        let checkpoint = SafetensorsCheckpoint::open_folder(folder.path()).unwrap();
        assert_eq!(
            (checkpoint.read_f32("x").unwrap(), checkpoint.read_f32("y").unwrap()),
            (VALUES.into(), VALUES.into())
        );
        assert_eq!(checkpoint.names(), ["x", "y"]);
        let note = checkpoint.notes().remove(0);
        assert!(
            note.ends_with(
                "places \"x\" and 1 more tensor(s) in another shard than the one that has it, which is read"
            )
        );
        let message = checkpoint.read_f32("yy").unwrap_err().to_string();
        assert!(message.contains("a.safetensors: no tensor named \"yy\" (nearest: y, x)"), "{message}");
    }

    #[test]
    fn of_a_tensor_in_two_shards_the_one_counts_that_the_index_names() {
        let folder = two_shards();
        let other = VALUES.map(|value| value + 1.0);
        let tensors = [("x", stored(Dtype::F32, &other)), ("y", stored(Dtype::BF16, &VALUES))];
        write_safetensors(&folder.path().join("b.safetensors"), &tensors);
        // The index names `a` for `x`; where `a` is not among its shards, only `b` is opened.
        let checkpoint = SafetensorsCheckpoint::open_folder(folder.path()).unwrap();
        assert_eq!(checkpoint.read_f32("x").unwrap(), VALUES);
        let [note] = checkpoint.notes().try_into().unwrap();
        assert!(note.ends_with("\"x\" stand in several shards; the one that it names is read"), "{note}");
        write_index(&folder, r#"{"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}}"#);
        let checkpoint = SafetensorsCheckpoint::open_folder(folder.path()).unwrap();
        assert_eq!(checkpoint.read_f32("x").unwrap(), other);
    }

    #[test]
    fn index_that_is_not_json_is_named() {
        let folder = two_shards();
        write_index(&folder, "{");
        assert_eq!(open_error(&folder), "DIR/model.safetensors.index.json: not valid JSON; download it again");
    }

    #[test]
    fn every_truncation_is_an_error_that_says_so() {
        let folder = folder_with(&[("w", stored(Dtype::F32, &VALUES))]);
        let file = folder.path().join(FILES.single);
        let whole = std::fs::read(&file).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&file, &whole[..length]).unwrap();
            let message = open_error(&folder);
            assert!(message.contains("truncated: at least"), "{length}: {message}");
            assert!(message.ends_with(&format!("the file has {length}; download it again")), "{message}");
        }
    }

    #[test]
    fn trailing_bytes_and_hostile_header_length_are_errors() {
        let folder = folder_with(&[("w", stored(Dtype::F32, &VALUES))]);
        let file = folder.path().join(FILES.single);
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, [whole.as_slice(), b"extra"].concat()).unwrap();
        assert!(open_error(&folder).contains("bad header: the tensors end at byte"), "{}", open_error(&folder));

        std::fs::write(&file, [&u64::MAX.to_le_bytes(), &whole[8..]].concat()).unwrap();
        assert!(open_error(&folder).contains("bad header"), "{}", open_error(&folder));
    }

    #[test]
    fn nan_is_reported_with_its_place() {
        let mut values = VALUES;
        values[4] = f32::NAN;
        let folder = folder_with(&[("w", stored(Dtype::BF16, &values))]);
        let checkpoint = SafetensorsCheckpoint::open_folder(folder.path()).unwrap();
        let error = checkpoint.read_f32("w").unwrap_err();
        assert!(matches!(error, LoadError::NonFinite { index: 4, .. }), "{error}");
    }

    #[test]
    fn wrong_names_shapes_and_types_are_reported() {
        let folder =
            folder_with(&[("model.norm.weight", stored(Dtype::F32, &VALUES)), ("mask", stored(Dtype::I64, &VALUES))]);
        let checkpoint = SafetensorsCheckpoint::open_folder(folder.path()).unwrap();
        let missing = checkpoint.read_f32("model.norms.weight").unwrap_err();
        assert!(missing.to_string().contains("nearest: model.norm.weight"), "{missing}");
        let shape = read_exact_shape(&checkpoint, "model.norm.weight", &[3, 2]).unwrap_err();
        assert!(shape.to_string().contains("has shape [2, 3], expected [3, 2]"), "{shape}");
        let dtype = checkpoint.read_f32("mask").unwrap_err();
        assert!(dtype.to_string().contains("is stored as I64, expected one of F32, F16, BF16"), "{dtype}");
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(position in 0usize..200, byte: u8) {
            let folder = folder_with(&[("w", stored(Dtype::F16, &VALUES)), ("v", stored(Dtype::F32, &VALUES))]);
            let file = folder.path().join(FILES.single);
            let mut bytes = std::fs::read(&file).unwrap();
            let length = bytes.len();
            bytes[position % length] = byte;
            std::fs::write(&file, bytes).unwrap();
            if let Ok(checkpoint) = SafetensorsCheckpoint::open_folder(folder.path()) {
                for name in checkpoint.names() {
                    let _ = checkpoint.read_f32(&name);
                }
            }
        }
    }
}
