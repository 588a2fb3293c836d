//! One linear: where its integers are, and its values. [`super::find`] has held its tensors against each other.

use safetensors::Dtype;

use crate::formats::gptq::{self, Gptq};
use crate::formats::{Integers, awq, transposed};
use crate::grid::{Bits, ScaleDtype};
use crate::load::restored::Restored;
use crate::load::safetensors::{RawTensor, SafetensorsCheckpoint};
use crate::load::stored_dtype::float_type;
use crate::load::{Checkpoint, LoadError, StoredType, floats};
use crate::pack::PackLayout;
use crate::quantized::QuantizedWeight;

/// A linear that is stored as integers.
pub(crate) struct Weight {
    /// The tensor of its codes.
    pub(super) codes: String,
    /// `[n_out, n_in]`.
    pub(super) shape: [usize; 2],
    pub(super) bits: Bits,
    pub(super) tensors: Tensors,
    pub(super) scales: String,
    pub(super) zero_points: Option<String>,
    /// The group of each input, and what else only its size is read of.
    pub(super) groups: Option<String>,
    pub(super) shape_tensor: Option<String>,
    /// Inputs of a group where no tensor says it.
    pub(super) group_len: usize,
    /// `[n_out, n_groups]` of the scales, whichever way they lie; `[1, 1]` for a matrix.
    pub(super) scales_shape: [usize; 2],
    pub(super) stored_type: StoredType,
}

/// How its tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tensors {
    Awq,
    Gptq(Gptq),
    /// Codes in words along the inputs, zero points along the outputs.
    Packed(PackLayout),
    /// Signed bytes.
    Bytes,
}

impl Weight {
    /// What its tensors say.
    ///
    /// # Errors
    /// A tensor that cannot be read, or an input of a group that is not there.
    pub(super) fn integers(&self, base: &SafetensorsCheckpoint) -> Result<Integers, LoadError> {
        let ([n_out, n_in], bits, [_, n_groups]) = (self.shape, self.bits, self.scales_shape);
        let stored = base.raw(&self.scales)?;
        let float = float_type(stored.dtype).ok_or_else(|| wrong_type(&stored, &self.scales, "F16, BF16, F32"))?;
        let mut scales = floats::to_f32(float, stored.bytes);
        if matches!(self.tensors, Tensors::Awq | Tensors::Gptq(_)) {
            scales = transposed(&scales, n_out);
        }
        let mut zero_points = self.read_zero_points(base)?;
        if self.scales_shape[0] == 1 {
            scales = scales.repeat(n_out);
            zero_points = zero_points.repeat(n_out);
        }
        Ok(Integers {
            n_out,
            n_in,
            bits,
            codes: self.read_codes(base)?,
            scales,
            zero_points,
            group_of: self.read_groups(base, n_groups)?,
        })
    }

    /// Row-major `[n_out, n_in]`.
    fn read_codes(&self, base: &SafetensorsCheckpoint) -> Result<Vec<u8>, LoadError> {
        let [n_out, n_in] = self.shape;
        if self.tensors == Tensors::Bytes {
            return Ok(base.read_bytes(&self.codes)?.iter().map(|byte| byte ^ 0x80).collect());
        }
        let words = words_of(base, &self.codes)?;
        Ok(match self.tensors {
            Tensors::Awq => transposed(&awq::unpack(&words), n_out),
            Tensors::Gptq(_) => PackLayout::Stream.unpack(&transposed(&words, n_out), n_in, self.bits),
            Tensors::Packed(layout) => layout.unpack(&words, n_in, self.bits),
            Tensors::Bytes => Vec::new(),
        })
    }

    /// Shaped as the scales, `[n_out, n_groups]`.
    fn read_zero_points(&self, base: &SafetensorsCheckpoint) -> Result<Vec<u8>, LoadError> {
        let ([n_rows, n_groups], bits) = (self.scales_shape, self.bits);
        let middle = bits.max_code() / 2 + 1;
        let Some(name) = &self.zero_points else { return Ok(vec![middle; n_rows * n_groups]) };
        let raw = base.raw(name)?;
        if raw.dtype == Dtype::I8 {
            let codes = raw.bytes.iter().map(|&byte| (i16::from(byte as i8) + i16::from(middle)).clamp(0, 255) as u8);
            return Ok(codes.collect());
        }
        let mut words = words_of(base, name)?;
        Ok(match self.tensors {
            Tensors::Awq => transposed(&awq::unpack(&words), n_rows),
            Tensors::Gptq(version) => {
                if version == Gptq::V1 {
                    gptq::plus_one(&mut words, n_rows, bits);
                }
                transposed(&PackLayout::Stream.unpack(&words, n_rows, bits), n_rows)
            }
            Tensors::Packed(layout) => transposed(&layout.unpack(&transposed(&words, n_groups), n_rows, bits), n_rows),
            Tensors::Bytes => {
                transposed(&PackLayout::Stream.unpack(&transposed(&words, n_groups), n_rows, bits), n_rows)
            }
        })
    }

    /// The group of each input.
    fn read_groups(&self, base: &SafetensorsCheckpoint, n_groups: usize) -> Result<Vec<u32>, LoadError> {
        let n_in = self.shape[1];
        let Some(name) = &self.groups else { return Ok(Integers::runs(n_in, self.group_len)) };
        let groups = words_of(base, name)?;
        // As compressed-tensors leaves it where no order was taken.
        if groups.iter().all(|group| *group == u32::MAX) {
            return Ok(Integers::runs(n_in, self.group_len));
        }
        match groups.iter().position(|group| *group as usize >= n_groups) {
            None => Ok(groups),
            Some(at) => {
                let problem = format!("tensor {name:?}: input {at} is in group {}, of {n_groups}", groups[at] as i32);
                Err(LoadError::BadHeader { file: base.file_of(name), problem })
            }
        }
    }
}

impl Restored for Weight {
    fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// compressed-tensors keeps a weight as its module has it; the others turn it over.
    fn is_turned(&self) -> bool {
        matches!(self.tensors, Tensors::Awq | Tensors::Gptq(_))
    }

    fn codes(&self) -> &str {
        &self.codes
    }

    fn others(&self) -> Vec<&str> {
        let optional = [&self.zero_points, &self.groups, &self.shape_tensor];
        std::iter::once(self.scales.as_str()).chain(optional.into_iter().flatten().map(String::as_str)).collect()
    }

    fn stored_type(&self) -> StoredType {
        self.stored_type.clone()
    }

    fn read(&self, base: &SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError> {
        let stored = base.raw(&self.scales)?;
        let float = float_type(stored.dtype).ok_or_else(|| wrong_type(&stored, &self.scales, "F16, BF16, F32"))?;
        Ok(self.integers(base)?.restore(float.number()))
    }

    fn read_codes(&self, base: &SafetensorsCheckpoint) -> Result<Option<QuantizedWeight>, LoadError> {
        Ok(self.integers(base)?.to_weight(ScaleDtype::F32))
    }
}

/// The values of an I32 tensor, as words.
pub(super) fn words_of(base: &SafetensorsCheckpoint, name: &str) -> Result<Vec<u32>, LoadError> {
    let raw = base.raw(name)?;
    if raw.dtype != Dtype::I32 {
        return Err(wrong_type(&raw, name, "I32"));
    }
    Ok(base.read_bytes(name)?.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

pub(super) fn wrong_type(raw: &RawTensor<'_>, name: &str, known: &str) -> LoadError {
    LoadError::UnsupportedDtype {
        file: raw.file.to_owned(),
        name: name.to_owned(),
        dtype: format!("{:?}", raw.dtype),
        known: known.to_owned(),
    }
}
