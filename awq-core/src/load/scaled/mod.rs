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
pub(super) mod values;
mod weight;

use std::collections::{BTreeMap, BTreeSet};

use safetensors::Dtype;

use self::settings::Maker;
pub(crate) use self::settings::{Scheme, scheme};
use self::weight::{Weight, weight};
use super::restored::RestoredCheckpoint;
use super::safetensors::SafetensorsCheckpoint;
use super::{Checkpoint, LoadError};

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
pub(crate) type ScaledCheckpoint = RestoredCheckpoint<Weight>;

/// Whether a tensor holds scales of activations, keys or values.
pub(super) fn is_of_activations(name: &str) -> bool {
    OF_ACTIVATIONS.iter().any(|end| name.ends_with(end))
}

/// Finds the weights of `base` that `scheme` is about, from headers alone.
///
/// # Errors
/// Scales that are missing or misshapen, or no such weight.
pub(crate) fn open(base: SafetensorsCheckpoint, scheme: &Scheme) -> Result<ScaledCheckpoint, LoadError> {
    let mut weights = BTreeMap::new();
    let mut hidden = BTreeSet::new();
    for name in base.names() {
        if is_of_activations(&name) {
            hidden.insert(name);
        } else if let Some((restored, weight)) = weight(&base, &name, scheme)? {
            weights.insert(restored, weight);
        }
    }
    if weights.is_empty() {
        let (file, method) = (scheme.file.clone(), scheme.described.clone());
        return Err(LoadError::QuantizedByOthers { file, method });
    }
    let mut notes = Vec::new();
    if scheme.rounds_activations {
        notes.push(format!(
            "{}: programs that this file is made for round activations as well ({}); here they stay as they are",
            scheme.file.display(),
            scheme.described
        ));
    }
    Ok(RestoredCheckpoint::new(base, weights, hidden, notes))
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
