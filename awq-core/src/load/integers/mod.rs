//! Weights that another tool has stored as integers, restored as they are read.
//!
//! | who wrote it | `quant_method` | tensors of a linear |
//! |---|---|---|
//! | AutoAWQ (GEMM), GPTQModel | `awq` | [`crate::formats::awq`] |
//! | GPTQModel, AutoGPTQ, of versions 1 and 2 | `gptq` | [`crate::formats::gptq`] |
//! | auto-round | `auto-round` | either of these, by `packing_format`; scales may be negative |
//! | llm-compressor, auto-round | `compressed-tensors` | [`crate::formats::compressed`], and of `int-quantized` an I8 `weight` |
//!
//! A weight is `(code - zero_point) * scale`, rounded to the type of the scales, as the makers' own kernels for the CPU have it. Groups
//! may end short, and their inputs lie in any order (`g_idx`). Of AutoAWQ there may be scales behind activations as well.

mod activations;
mod find;
mod settings;
#[cfg(test)]
mod tests;
mod weight;

use std::collections::{BTreeMap, BTreeSet};

use self::activations::divisors;
use self::find::{weight, zero_points_say};
use self::settings::Layout;
pub(crate) use self::settings::{Scheme, scheme};
use super::restored::{Restored, RestoredCheckpoint};
use super::safetensors::SafetensorsCheckpoint;
use super::scaled::is_of_activations;
use super::{Checkpoint, LoadError};
use crate::formats::gptq::Gptq;

/// A folder's tensors, with weights in the place of integers.
pub(crate) type IntegersCheckpoint = RestoredCheckpoint<Box<dyn Restored>>;

/// Finds the weights of `base` that `scheme` is about, from headers alone.
///
/// # Errors
/// Tensors of a linear that are missing, misshapen or of another type, or no such linear.
pub(crate) fn open(base: SafetensorsCheckpoint, scheme: &Scheme) -> Result<IntegersCheckpoint, LoadError> {
    let mut scheme = scheme.clone();
    let mut notes: Vec<String> = settle_version(&base, &mut scheme)?.into_iter().collect();
    let mut weights: BTreeMap<String, Box<dyn Restored>> = BTreeMap::new();
    let mut n_linears = 0;
    let mut hidden = BTreeSet::new();
    for name in base.names() {
        if is_of_activations(&name) {
            hidden.insert(name);
        } else if let Some((restored, weight)) = weight(&base, &name, &scheme)? {
            weights.insert(restored, Box::new(weight));
            n_linears += 1;
        } else if scheme.layout == Layout::Awq
            && let Some((restored, divisors)) = divisors(&base, &name)?
        {
            weights.insert(restored, Box::new(divisors));
        }
    }
    if n_linears == 0 {
        return Err(LoadError::QuantizedByOthers { file: scheme.file, method: scheme.described });
    }
    if scheme.rounds_activations {
        notes.push(format!(
            "{}: programs that this file is made for round activations as well; here they stay as they are",
            scheme.file.display()
        ));
    }
    Ok(RestoredCheckpoint::new(base, weights, hidden, notes))
}

/// Zero points of symmetric weights are the middle code: where the file says that they are stored less one and they are not, or the
/// other way round, it is the file's word that is wrong. Such files exist (vLLM's pull request 38966).
fn settle_version(base: &SafetensorsCheckpoint, scheme: &mut Scheme) -> Result<Option<String>, LoadError> {
    let Layout::Gptq { version, is_symmetric: true } = scheme.layout else { return Ok(None) };
    let Some(name) = base.names().into_iter().find(|name| name.ends_with(".qzeros")) else { return Ok(None) };
    let Some(found) = zero_points_say(base, &name, scheme)?.filter(|found| *found != version) else { return Ok(None) };
    scheme.layout = Layout::Gptq { version: found, is_symmetric: true };
    let what = match found {
        Gptq::V1 => "less one, as version 1 has them",
        Gptq::V2 => "as they are, as version 2 has them",
    };
    Ok(Some(format!(
        "{}: the zero points of symmetric weights are stored {what}, and the settings say otherwise; the tensors count",
        scheme.file.display()
    )))
}
