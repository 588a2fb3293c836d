//! What AutoAWQ divides the result of an activation by (its `ScaledActivation`), where no norm or linear takes the inverse of a scale:
//! `mlp.act.scales`. Decoders here multiply, by `mlp.act.weight`.

use super::weight::wrong_type;
use crate::load::restored::Restored;
use crate::load::safetensors::SafetensorsCheckpoint;
use crate::load::stored_dtype::float_type;
use crate::load::{LoadError, StoredType, floats};

/// The divisors of an activation's channels.
pub(crate) struct Divisors {
    tensor: String,
    shape: Vec<usize>,
    stored_type: StoredType,
}

/// The divisors that the tensor `name` holds, and what their inverse is called; `None` of another tensor.
///
/// # Errors
/// Divisors that are no floats.
pub(super) fn divisors(base: &SafetensorsCheckpoint, name: &str) -> Result<Option<(String, Divisors)>, LoadError> {
    let Some(module) = name.strip_suffix(".scales") else { return Ok(None) };
    let raw = base.raw(name)?;
    // Those of a linear are a matrix, and stand beside its codes.
    if raw.shape.len() != 1 {
        return Ok(None);
    }
    if float_type(raw.dtype).is_none() {
        return Err(wrong_type(&raw, name, "F16, BF16, F32"));
    }
    let stored_type = StoredType::float(format!("{:?}", raw.dtype), raw.dtype.bitsize());
    Ok(Some((format!("{module}.weight"), Divisors { tensor: name.to_owned(), shape: raw.shape.to_vec(), stored_type })))
}

impl Restored for Divisors {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn codes(&self) -> &str {
        &self.tensor
    }

    fn others(&self) -> Vec<&str> {
        Vec::new()
    }

    fn stored_type(&self) -> StoredType {
        self.stored_type.clone()
    }

    fn read(&self, base: &SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError> {
        let raw = base.raw(&self.tensor)?;
        let float = float_type(raw.dtype).ok_or_else(|| wrong_type(&raw, &self.tensor, "F16, BF16, F32"))?;
        let divisors = floats::to_f32(float, raw.bytes);
        // An infinite one would silence a channel, and no model says so.
        match divisors.iter().position(|divisor| !divisor.is_finite() || !divisor.recip().is_finite()) {
            None => Ok(divisors.into_iter().map(f32::recip).collect()),
            Some(at) => Err(LoadError::BadHeader {
                file: raw.file.to_owned(),
                problem: format!(
                    "tensor {:?} divides by {} at element {at}; quantize the model again",
                    self.tensor, divisors[at]
                ),
            }),
        }
    }
}
