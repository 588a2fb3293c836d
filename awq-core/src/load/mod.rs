//! Checkpoints from disk: Hugging Face folders and GGUF files, as named `f32` tensors with one configuration.
//!
//! Nothing here knows tensors of a backend: values are plain `Vec<f32>`, row-major, `[out, in]`. Files are
//! opened once and read one tensor at a time, so that a model larger than memory can be worked on block by block.

mod class;
pub mod config;
mod error;
mod floats;
mod folder;
pub(crate) mod foreign;
mod fused;
pub(crate) mod gguf;
mod integers;
mod keys;
mod libraries;
mod map;
mod memory;
mod multimodal;
mod overlay;
pub mod packed;
mod pickled;
mod renamed;
mod restored;
mod rope;
mod safetensors;
mod scaled;
mod shards;
mod slices;
mod storage;
mod stored_dtype;
mod switches;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokenizer;
mod weights;
mod windows;

use std::path::{Path, PathBuf};

pub(crate) use self::class::{Class, Classes, GgufArchitecture, InnerSize, KvHeads};
pub use self::config::ModelConfig;
pub use self::error::LoadError;
pub use self::folder::check_folder;
pub(crate) use self::fused::{Fused, Order, Rows, by_key_head, by_kind, in_parts};
pub(crate) use self::gguf::layouts;
pub use self::gguf::{Contents, GgufCheckpoint, GgufOutline, GgufTensor, Importance, Placed, gguf_parts, imatrix_file};
pub(crate) use self::keys::Keys;
pub use self::memory::MemoryCheckpoint;
pub(crate) use self::multimodal::{language_checkpoint, multimodal_classes};
pub use self::overlay::{EditedCheckpoint, EditedTensors};
pub use self::packed::{PackedCheckpoint, PackedHeader};
pub use self::pickled::PickledCheckpoint;
pub(crate) use self::renamed::with_written_names;
pub use self::rope::{Rope, RopeScaling};
pub use self::safetensors::SafetensorsCheckpoint;
pub(crate) use self::slices::check_values;
pub use self::slices::{Slices, weight_slices};
pub use self::storage::StoredType;
pub use self::tokenizer::{Tokenizer, tokenizer_files};
pub use self::weights::{WEIGHTS, open_weights};
pub(crate) use self::weights::{open_weights_of, scheme_of_tensors};
pub(crate) use self::windows::{Windows, put as put_windows};
use crate::quantized::QuantizedWeight;

/// A memory-mapped source of named tensors.
///
/// Names are those of Hugging Face (`model.layers.0.self_attn.q_proj.weight`), whatever the format; shapes are
/// row-major, `[out, in]` for a linear.
pub trait Checkpoint: Send + Sync {
    /// All names of the language model, sorted.
    fn names(&self) -> Vec<String>;

    /// Names of tensors that are no part of the language model and that what is written keeps, such as a tower for images.
    fn beside(&self) -> Vec<String> {
        Vec::new()
    }

    /// The shape, or `None` where there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Whether a tensor of this name can be read as one of shape `expected`.
    fn fits(&self, name: &str, expected: &[usize]) -> bool {
        self.shape(name).is_some_and(|found| found == expected)
    }

    /// The values in row-major order, converted or dequantized, NaN and infinity among them. Touches the bytes of this tensor
    /// only.
    ///
    /// # Errors
    /// No such tensor, or a storage type that cannot be converted.
    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError>;

    /// The values of [`Checkpoint::read_any_f32`] a slice at a time. What is no float on disk may be in memory whole meanwhile.
    ///
    /// # Errors
    /// As [`Checkpoint::read_any_f32`], at once or with a slice.
    fn slices(&self, name: &str) -> Result<Slices<'_>, LoadError> {
        let shape = self.shape(name).unwrap_or_default();
        Ok(slices::in_memory(self.read_any_f32(name)?, &shape))
    }

    /// [`Checkpoint::read_any_f32`] of a tensor whose values are all used.
    ///
    /// # Errors
    /// As there, or a value that is NaN or infinite.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let values = self.read_any_f32(name)?;
        match floats::first_non_finite(&values) {
            None => Ok(values),
            Some(index) => Err(LoadError::NonFinite { file: self.file_of(name), name: name.to_owned(), index }),
        }
    }

    /// Whether a weight lies `[out, in]` where its class has it the other way round: GPT-2 keeps floats `[in, out]`, and tools that make
    /// codes of them turn them over first.
    fn is_turned(&self, _name: &str) -> bool {
        false
    }

    /// Whether the tensor's storage type can be converted.
    fn is_readable(&self, _name: &str) -> bool {
        true
    }

    /// Whether a tensor holds integers or booleans, as buffers do and no weight.
    fn is_integer(&self, _name: &str) -> bool {
        false
    }

    /// Whether two tensors of one shape hold the same values.
    ///
    /// # Errors
    /// As [`Checkpoint::read_any_f32`].
    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        let bits = |name| -> Result<Vec<u32>, LoadError> {
            Ok(self.read_any_f32(name)?.into_iter().map(f32::to_bits).collect())
        };
        Ok(bits(name)? == bits(other)?)
    }

    /// How a tensor is stored, from the headers; `None` where there is no such tensor, or its type is not known.
    fn stored_type(&self, name: &str) -> Option<StoredType>;

    /// What a user should know of the files, a sentence each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The file that holds a tensor, for messages.
    fn file_of(&self, _name: &str) -> PathBuf {
        self.source().to_owned()
    }

    /// The codes of a weight that is stored quantized; `None` for every other tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    fn read_quantized(&self, _name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        Ok(None)
    }

    /// Codes that stand for a weight closely enough to decode with: those of [`Checkpoint::read_quantized`], and of what other tools
    /// have stored, whose weights ([`Checkpoint::read_any_f32`]) are products that are rounded to 16 bits. `None` for a weight
    /// without such codes.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    fn read_codes(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.read_quantized(name)
    }

    /// The file that stands for the checkpoint in messages: the weights' file, or the index of the shards.
    fn source(&self) -> &Path;

    /// Size of all files together.
    fn bytes_on_disk(&self) -> u64;
}

/// Reads a tensor whose shape must be `expected`.
///
/// # Errors
/// As [`Checkpoint::read_f32`], and [`LoadError::WrongShape`] before any byte of the tensor is touched.
pub fn read_exact_shape(checkpoint: &dyn Checkpoint, name: &str, expected: &[usize]) -> Result<Vec<f32>, LoadError> {
    check_shape(checkpoint, name, expected)?;
    checkpoint.read_f32(name)
}

/// The same of a tensor of which not every value is used.
///
/// # Errors
/// As [`Checkpoint::read_any_f32`], and [`LoadError::WrongShape`].
pub(crate) fn read_any_exact_shape(
    checkpoint: &dyn Checkpoint,
    name: &str,
    expected: &[usize],
) -> Result<Vec<f32>, LoadError> {
    check_shape(checkpoint, name, expected)?;
    checkpoint.read_any_f32(name)
}

/// A missing tensor is an error of reading, which knows the nearest names.
pub(crate) fn check_shape(checkpoint: &dyn Checkpoint, name: &str, expected: &[usize]) -> Result<(), LoadError> {
    match checkpoint.shape(name) {
        Some(found) if !checkpoint.fits(name, expected) => Err(LoadError::WrongShape {
            file: checkpoint.file_of(name),
            name: name.to_owned(),
            expected: expected.to_vec(),
            found,
        }),
        _ => Ok(()),
    }
}

/// Parses a JSON file.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, LoadError> {
    let bytes = std::fs::read(file).map_err(|source| LoadError::Open { file: file.to_owned(), source })?;
    serde_json::from_slice(without_mark(file, &bytes)?)
        .map_err(|source| LoadError::Json { file: file.to_owned(), source })
}

/// The text of a JSON file without the byte order mark that some editors put in front.
fn without_mark<'a>(file: &Path, bytes: &'a [u8]) -> Result<&'a [u8], LoadError> {
    match bytes {
        [0xEF, 0xBB, 0xBF, text @ ..] => Ok(text),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Err(LoadError::Encoding { file: file.to_owned(), encoding: "UTF-16" }),
        text => Ok(text),
    }
}
