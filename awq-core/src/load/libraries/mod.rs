//! Folders that a quantization library has saved, a library a file: their weights, restored as they are read.
//!
//! | library | tensors of a linear `L` | a weight is |
//! |---|---|---|
//! | bitsandbytes, 4 bit | `L.weight` bytes, `.absmax`, `.quant_map`, `.quant_state.*` (JSON), nested `.absmax` of 8 bit | `map[code] * absmax` |
//! | bitsandbytes, 8 bit | `L.weight` I8, `L.SCB` F32 a row | `code * SCB / 127` |
//! | torchao | `L._weight_qdata` I8 or E4M3, `_weight_scale`, `_weight_zero_point` | `(code - zero) * scale` |
//! | quanto | `L.weight._data._data` packed, or `L.weight._data`; `._scale`, `._shift` | `code * scale - shift` |
//! | HQQ | `L.W_q` packed, `L.scale`, `L.zero`, and their settings as tensors | `(code - zero) * scale` |
//! | MLX, affine | `L.weight` U32 packed, `L.scales`, `L.biases` | `code * scale + bias` |
//!
//! Each step is rounded as the library rounds it: the values are, bit for bit, those that it restores itself
//! (`scripts/make-tool-fixtures.py`, `scripts/make-mlx-fixtures.py`). What its kernels do to activations is not done: the base model is these weights.

mod bitsandbytes;
mod even;
mod experts;
mod hqq;
mod mlx;
mod quanto;
mod strided;
#[cfg(test)]
mod tests;
mod torchao;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value as Json;

use super::restored::{Restored, RestoredCheckpoint};
use super::safetensors::{RawTensor, SafetensorsCheckpoint};
use super::scaled::values::E4M3;
use super::stored_dtype::float_type;
use super::{Checkpoint, LoadError, StoredType, floats};
use crate::numbers::Number;
use crate::quantized::QuantizedWeight;

/// The weights whose codes are a tensor, by the settings of `config.json`.
type Find = fn(&SafetensorsCheckpoint, &str, &Json) -> Result<Vec<Weight>, LoadError>;

/// A library: how `config.json` calls it, and its weights.
struct Library {
    /// Its `quant_method`.
    method: &'static str,
    /// What its settings come to in words.
    words: fn(&Json) -> String,
    /// The weights whose codes are this tensor.
    weights: Find,
}

const LIBRARIES: [Library; 5] = [
    Library {
        method: "bitsandbytes",
        words: bitsandbytes::words,
        weights: |base, name, _| Ok(bitsandbytes::weight(base, name)?.into_iter().collect()),
    },
    Library {
        method: "torchao",
        words: torchao::words,
        weights: |base, name, _| Ok(torchao::weight(base, name)?.into_iter().collect()),
    },
    Library {
        method: "quanto",
        words: |_| String::new(),
        weights: |base, name, _| Ok(quanto::weight(base, name)?.into_iter().collect()),
    },
    Library {
        method: "hqq",
        words: |_| String::new(),
        weights: |base, name, _| Ok(hqq::weight(base, name)?.into_iter().collect()),
    },
    Library { method: "mlx", words: mlx::words, weights: mlx::weights },
];

/// Which library stored the weights of a folder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scheme {
    file: PathBuf,
    method: &'static str,
    /// As they stand in the file; null where tensors alone tell.
    settings: Json,
    /// Method and settings in words.
    pub(crate) described: String,
}

/// The scheme of `settings`, which stand under `key` in `file`; `None` where they are no such library's.
pub(crate) fn scheme(file: &Path, key: &str, settings: &Json) -> Option<Scheme> {
    let named = match mlx::wrote(key, settings) {
        true => "mlx",
        false => settings["quant_method"].as_str()?,
    };
    let library = LIBRARIES.iter().find(|library| library.method == named)?;
    let words = (library.words)(settings);
    let colon = if words.is_empty() { "" } else { ": " };
    let described = format!("{named}{colon}{words}");
    Some(Scheme { file: file.to_owned(), method: library.method, settings: settings.clone(), described })
}

/// The scheme of tensors alone: what HQQ and quanto save says nothing in `config.json`.
///
/// # Errors
/// Tensors of a library that do not belong together.
pub(crate) fn scheme_of(base: &SafetensorsCheckpoint) -> Result<Option<Scheme>, LoadError> {
    for library in &LIBRARIES {
        for name in base.names() {
            if let Some(weight) = (library.weights)(base, &name, &Json::Null)?.first() {
                let described = format!("{}, to go by its tensors", weight.stored_type.name);
                let (file, method, settings) = (base.file_of(&name), library.method, Json::Null);
                return Ok(Some(Scheme { file, method, settings, described }));
            }
        }
    }
    Ok(None)
}

/// Finds the weights of `base`, from headers and small tensors.
///
/// # Errors
/// Tensors of a linear that are missing, misshapen or of another type, or no such linear.
pub(crate) fn open(base: SafetensorsCheckpoint, scheme: &Scheme) -> Result<RestoredCheckpoint<Weight>, LoadError> {
    let (mut weights, mut hidden, mut notes) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    let mut n_codes = 0;
    let Some(library) = LIBRARIES.iter().find(|library| library.method == scheme.method) else {
        return Err(none_found(scheme));
    };
    for name in base.names() {
        if quanto::is_of_activations(&name) {
            hidden.insert(name);
            continue;
        }
        for expert in experts::weights(&base, &name)? {
            weights.insert(expert.name.clone(), expert);
        }
        for weight in (library.weights)(&base, &name, &scheme.settings)? {
            n_codes += 1;
            if notes.is_empty() && weight.rounds_inputs {
                notes.push(format!(
                    "{}: the library's own products round their inputs as well; here they stay as they are",
                    scheme.file.display()
                ));
            }
            weights.insert(weight.name.clone(), weight);
        }
    }
    if n_codes == 0 {
        if base.names().iter().any(|name| !base.is_readable(name)) {
            return Err(none_found(scheme));
        }
        // torchao rounds what PyTorch calls a linear, and those of GPT-2 are called otherwise.
        notes.push(format!(
            "{}: says {}, and no tensor holds codes: nothing is quantized, and floats are read as they are",
            scheme.file.display(),
            scheme.described
        ));
    }
    Ok(RestoredCheckpoint::new(base, weights, hidden, notes))
}

fn none_found(scheme: &Scheme) -> LoadError {
    LoadError::QuantizedByOthers { file: scheme.file.clone(), method: scheme.described.clone() }
}

/// How the codes of a weight come from its tensors, where they are spaced evenly along the inputs ([`even`]).
type Codes = Box<dyn Fn(&SafetensorsCheckpoint) -> Result<Option<QuantizedWeight>, LoadError> + Send + Sync>;

/// How the values of a weight come from its tensors.
type Values = Box<dyn Fn(&SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError> + Send + Sync>;

/// A weight, and the tensors that it is restored from.
pub(crate) struct Weight {
    name: String,
    shape: Vec<usize>,
    /// Whether the file knows the number of weights and their groups, and not the rows.
    is_of_any_rows: bool,
    /// Whether the library's own products round their inputs.
    rounds_inputs: bool,
    /// See [`Restored::is_turned`]: transformers gives bitsandbytes the weights of GPT-2 turned over.
    is_turned: bool,
    codes: String,
    others: Vec<String>,
    stored_type: StoredType,
    values: Values,
    /// See [`Restored::read_codes`].
    even: Option<Codes>,
}

impl Restored for Weight {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn fits(&self, expected: &[usize]) -> bool {
        let group = self.shape.last().copied().unwrap_or(1).max(1);
        let is_whole = expected.last().is_some_and(|n_in| n_in % group == 0);
        expected == self.shape || self.is_of_any_rows && is_whole && n_weights(expected) == n_weights(&self.shape)
    }

    fn is_turned(&self) -> bool {
        self.is_turned
    }

    fn codes(&self) -> &str {
        &self.codes
    }

    fn others(&self) -> Vec<&str> {
        self.others.iter().map(String::as_str).collect()
    }

    fn stored_type(&self) -> StoredType {
        self.stored_type.clone()
    }

    fn read(&self, base: &SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError> {
        (self.values)(base)
    }

    fn read_codes(&self, base: &SafetensorsCheckpoint) -> Result<Option<QuantizedWeight>, LoadError> {
        self.even.as_ref().map_or(Ok(None), |even| even(base))
    }
}

/// Weights of a tensor; more than can be counted are as many as no file holds.
fn n_weights(shape: &[usize]) -> usize {
    shape.iter().try_fold(1_usize, |n, size| n.checked_mul(*size)).unwrap_or(usize::MAX)
}

/// Bits a weight of what `tensors` hold.
fn bits_of(base: &SafetensorsCheckpoint, tensors: &[&str], n_weights: usize) -> Result<f64, LoadError> {
    let bytes = tensors.iter().map(|name| Ok(base.raw(name)?.bytes.len())).sum::<Result<usize, LoadError>>()?;
    Ok(8.0 * bytes as f64 / n_weights.max(1) as f64)
}

/// A tensor of floats with so many values.
fn floats_of(base: &SafetensorsCheckpoint, name: &str, n: usize) -> Result<(Vec<f32>, Number), LoadError> {
    let raw = base.raw(name)?;
    let float = float_type(raw.dtype).ok_or_else(|| wrong_type(&raw, name, "F32, F16, BF16"))?;
    check_len(&raw, name, n)?;
    Ok((floats::to_f32(float, raw.bytes), float.number()))
}

fn check_type(base: &SafetensorsCheckpoint, name: &str, dtype: Dtype) -> Result<(), LoadError> {
    let raw = base.raw(name)?;
    match raw.dtype == dtype {
        true => Ok(()),
        false => Err(wrong_type(&raw, name, &format!("{dtype:?}"))),
    }
}

fn check_len(raw: &RawTensor<'_>, name: &str, expected: usize) -> Result<(), LoadError> {
    let found = n_weights(raw.shape);
    match found == expected {
        true => Ok(()),
        false => Err(bad(raw, name, &format!("it holds {found} values, expected {expected}"))),
    }
}

fn bad(raw: &RawTensor<'_>, name: &str, problem: &str) -> LoadError {
    let problem = format!("tensor {name:?} of shape {:?}: {problem}", raw.shape);
    LoadError::BadHeader { file: raw.file.to_owned(), problem }
}

fn wrong_type(raw: &RawTensor<'_>, name: &str, known: &str) -> LoadError {
    LoadError::UnsupportedDtype {
        file: raw.file.to_owned(),
        name: name.to_owned(),
        dtype: format!("{:?}", raw.dtype),
        known: known.to_owned(),
    }
}

/// What a byte of codes stands for.
fn of_byte(codes: &RawTensor<'_>, name: &str) -> Result<fn(u8) -> f32, LoadError> {
    match codes.dtype {
        Dtype::I8 => Ok(|byte| f32::from(byte as i8)),
        Dtype::F8_E4M3 => Ok(|byte| E4M3[usize::from(byte)]),
        _ => Err(wrong_type(codes, name, "I8, F8_E4M3")),
    }
}

/// A type by PyTorch's name of it.
fn torch_type(name: &str) -> Option<Number> {
    match name.trim_start_matches("torch.") {
        "float32" => Some(Number::F32),
        "float16" => Some(Number::F16),
        "bfloat16" => Some(Number::Bf16),
        _ => None,
    }
}
