//! Weights that a folder stores as small floats with scales, restored as they are read: 8-bit floats (E4M3) with a scale a tensor, a
//! row, a group or a block, MXFP8, MXFP4 and NVFP4.
//!
//! | who wrote it | tensors of a linear | a weight is |
//! |---|---|---|
//! | transformers `fp8` (DeepSeek-V3, Qwen3-FP8) | `weight` E4M3, `weight_scale_inv` f32, bf16 or E8M0 | `q * s` in f32 |
//! | AutoFP8 `fp8`, FBGEMM `fbgemm_fp8` | `weight` E4M3, `weight_scale` f32 | `q * s` in f32 |
//! | compressed-tensors `float-quantized`, `mxfp8-quantized` | `weight` E4M3, `weight_scale` float, or u8 of E8M0 | `q * s` in the type of `s`, bf16 of E8M0 |
//! | compressed-tensors `mxfp4-pack-quantized` | `weight_packed` u8, `weight_scale` u8 | `q * s` in bf16 |
//! | compressed-tensors `nvfp4-pack-quantized` | `weight_packed` u8, `weight_scale` E4M3, `weight_global_scale` f32 | `q * (s / g)` in f32, rounded to bf16 |
//! | gpt-oss `mxfp4`, experts alone | `NAME_blocks` u8, `NAME_scales` u8 | `q * s` |
//!
//! These are the values, bit for bit, of transformers 5.24 and compressed-tensors 0.20 in a model of f32
//! (`scripts/make-float-fixtures.py`). What they do to activations is not done: the base model is these weights.

mod settings;
#[cfg(test)]
mod tests;
mod values;
mod weight;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use self::settings::Maker;
pub(crate) use self::settings::{Scheme, scheme};
use self::weight::{Weight, weight};
use super::safetensors::SafetensorsCheckpoint;
use super::{Checkpoint, LoadError, StoredType};

/// Ends of names of scales of activations, keys and values.
const OF_ACTIVATIONS: [&str; 9] = [
    ".input_scale",
    ".input_scale_ub",
    ".input_global_scale",
    ".input_zero_point",
    ".activation_scale",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
];

/// A folder's tensors, with weights in the place of codes and scales.
pub(crate) struct ScaledCheckpoint {
    base: SafetensorsCheckpoint,
    /// By the name that the weight has.
    weights: BTreeMap<String, Weight>,
    names: Vec<String>,
    notes: Vec<String>,
}

impl ScaledCheckpoint {
    /// Finds the weights of `base` that `scheme` is about, from headers alone.
    ///
    /// # Errors
    /// Scales that are missing or misshapen, or no such weight.
    pub(crate) fn new(base: SafetensorsCheckpoint, scheme: &Scheme) -> Result<Self, LoadError> {
        let mut weights = BTreeMap::new();
        let mut hidden = BTreeSet::new();
        for name in base.names() {
            if OF_ACTIVATIONS.iter().any(|end| name.ends_with(end)) {
                hidden.insert(name);
            } else if let Some((restored, weight)) = weight(&base, &name, scheme)? {
                hidden.insert(name);
                hidden.extend(weight.scales().map(str::to_owned));
                weights.insert(restored, weight);
            }
        }
        if weights.is_empty() {
            let (file, method) = (scheme.file.clone(), scheme.described.clone());
            return Err(LoadError::QuantizedByOthers { file, method });
        }
        let others = base.names().into_iter().filter(|name| !hidden.contains(name));
        let names: BTreeSet<String> = others.chain(weights.keys().cloned()).collect();
        let mut notes = base.notes();
        if scheme.rounds_activations {
            notes.push(format!(
                "{}: programs that this file is made for round activations as well ({}); here they stay as they are",
                scheme.file.display(),
                scheme.described
            ));
        }
        Ok(Self { base, weights, names: names.into_iter().collect(), notes })
    }
}

impl Checkpoint for ScaledCheckpoint {
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.get(name).map_or_else(|| self.base.shape(name), |weight| Some(weight.shape.clone()))
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        self.weights.get(name).map_or_else(|| self.base.read_any_f32(name), |weight| weight.read(&self.base))
    }

    fn is_readable(&self, name: &str) -> bool {
        self.weights.contains_key(name) || self.base.is_readable(name)
    }

    fn is_integer(&self, name: &str) -> bool {
        !self.weights.contains_key(name) && self.base.is_integer(name)
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.weights.get(name).map_or_else(|| self.base.stored_type(name), |weight| Some(weight.stored_type()))
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.base.file_of(self.weights.get(name).map_or(name, |weight| &weight.codes))
    }

    fn source(&self) -> &Path {
        self.base.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.base.bytes_on_disk()
    }
}

/// The maker's type of products with scales of a stored type; `None` where the maker has no such scales.
fn products(maker: Maker, scales: Dtype) -> Option<crate::numbers::Number> {
    use crate::numbers::Number;
    match (maker, scales) {
        (Maker::Transformers, Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F8_E8M0 | Dtype::U8) => Some(Number::F32),
        (Maker::CompressedTensors, Dtype::F32) => Some(Number::F32),
        (Maker::CompressedTensors, Dtype::F16) => Some(Number::F16),
        (Maker::CompressedTensors, Dtype::BF16 | Dtype::U8) => Some(Number::Bf16),
        _ => None,
    }
}
