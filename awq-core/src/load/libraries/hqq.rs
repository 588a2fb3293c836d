//! HQQ, as the library hqq and transformers 4 save it: codes, scales and zero points of a linear, and its settings as tensors of their own.
//!
//! The weights are laid out as a matrix whose rows (`axis` 1) or columns (`axis` 0) are groups, and the rows of that matrix are packed
//! apart from each other. Zero points are floats.

use safetensors::Dtype;

use super::even::Even;
use super::strided::Strided;
use super::{Codes, Weight, bad, bits_of, floats_of, n_weights, torch_type, wrong_type};
use crate::load::safetensors::SafetensorsCheckpoint;
use crate::load::{Checkpoint, LoadError, StoredType};
use crate::numbers::Number;

/// Names of packings, with their layout.
const PACKINGS: [(&str, Strided); 5] = [
    ("8bit_u8", Strided { bits: 8, word_bytes: 1, per_word: 1, is_high_first: true }),
    ("4bit_u8", Strided { bits: 4, word_bytes: 1, per_word: 2, is_high_first: true }),
    ("3bit_32", Strided { bits: 3, word_bytes: 4, per_word: 10, is_high_first: true }),
    ("2bit_u8", Strided { bits: 2, word_bytes: 1, per_word: 4, is_high_first: true }),
    ("1bit_u8", Strided { bits: 1, word_bytes: 1, per_word: 8, is_high_first: true }),
];

/// The settings of a linear, each a tensor: what is read, and what only says how the codes were chosen.
const SETTINGS: [&str; 18] = [
    "nbits",
    "group_size",
    "shape",
    "scale",
    "zero",
    "axis",
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
];

/// The weight whose codes are the tensor `name`.
///
/// # Errors
/// Settings or tensors of it that are missing, or that do not belong together.
pub(super) fn weight(base: &SafetensorsCheckpoint, name: &str) -> Result<Option<Weight>, LoadError> {
    let Some(linear) = name.strip_suffix(".W_q") else { return Ok(None) };
    let of = |part: &str| format!("{linear}.{part}");
    let packing = text(base, &of("packing"))?;
    let Some(&(_, layout)) = PACKINGS.iter().find(|(known, _)| *known == packing) else {
        let known: Vec<&str> = PACKINGS.iter().map(|(name, _)| *name).collect();
        return Err(bad(
            &base.raw(&of("packing"))?,
            &of("packing"),
            &format!("{packing:?}; known are {}", known.join(", ")),
        ));
    };
    for part in ["quant_scale", "quant_zero"] {
        if base.shape(&of(part)).is_some() && number(base, &of(part))? != 0 {
            return Err(bad(&base.raw(&of(part))?, &of(part), "scales or zero points that are quantized are not read"));
        }
    }
    let shape = sizes(base, &of("shape"))?;
    let (n, group) = (n_weights(&shape), number(base, &of("group_size"))?);
    let group = usize::try_from(group).ok().filter(|group| *group > 0 && n.is_multiple_of(*group) && n > 0);
    let Some(group) = group else {
        let problem = format!("groups of such a size do not fill {shape:?}");
        return Err(bad(&base.raw(&of("group_size"))?, &of("group_size"), &problem));
    };
    let is_by_row = match number(base, &of("axis"))? {
        0 => false,
        1 => true,
        other => return Err(bad(&base.raw(&of("axis"))?, &of("axis"), &format!("{other}, expected 0 or 1"))),
    };
    let matrix = if is_by_row { [n / group, group] } else { [group, n / group] };
    let codes = base.raw(name)?;
    if codes.bytes.len() != layout.n_bytes(matrix) {
        let problem =
            format!("{} bytes, and {packing} of {shape:?} fills {}", codes.bytes.len(), layout.n_bytes(matrix));
        return Err(bad(&codes, name, &problem));
    }
    let (scale, zero) = (of("scale"), of("zero"));
    for tensor in [&scale, &zero] {
        floats_of(base, tensor, n / group)?;
    }
    let number = computed_in(base, &of("compute_dtype"))?;
    let others: Vec<String> = SETTINGS.iter().map(|part| of(part)).collect();
    let stored_type = StoredType {
        name: format!("HQQ W{}", layout.bits),
        bits_per_weight: bits_of(base, &[name, &scale, &zero], n)?,
        group_size: Some(group),
    };
    let codes = name.to_owned();
    let params = Params { scale, zero, n_groups: n / group, number };
    let of_matrix = [shape[0], shape[1]];
    Ok(Some(Weight {
        name: of("weight"),
        shape,
        is_of_any_rows: false,
        rounds_inputs: false,
        is_turned: false,
        codes: codes.clone(),
        others: others.into_iter().filter(|name| base.shape(name).is_some()).collect(),
        stored_type,
        even: is_by_row.then(|| -> Codes {
            let (codes, params) = (codes.clone(), params.clone());
            Box::new(move |base| {
                let (scales, zeros) = params.read(base)?;
                let codes = layout.codes(&base.read_bytes(&codes)?, matrix);
                Ok(Even { shape: of_matrix, bits: layout.bits, group, codes, scales, zeros }.into_weight())
            })
        }),
        values: Box::new(move |base| {
            let (scales, zeros) = params.read(base)?;
            Ok(layout.map(&base.read_bytes(&codes)?, matrix, |code, row, column| {
                let group = if is_by_row { row } else { column };
                number.round(number.round(code as f32 - zeros[group]) * scales[group])
            }))
        }),
    }))
}

/// Where scales and zero points of a linear are.
#[derive(Clone)]
struct Params {
    scale: String,
    zero: String,
    n_groups: usize,
    number: Number,
}

impl Params {
    /// Both, rounded to the type that weights are restored in.
    fn read(&self, base: &SafetensorsCheckpoint) -> Result<(Vec<f32>, Vec<f32>), LoadError> {
        let rounded = |name| -> Result<Vec<f32>, LoadError> {
            let (values, _) = floats_of(base, name, self.n_groups)?;
            Ok(values.into_iter().map(|value| self.number.round(value)).collect())
        };
        Ok((rounded(&self.scale)?, rounded(&self.zero)?))
    }
}

/// A setting that is one number.
fn number(base: &SafetensorsCheckpoint, name: &str) -> Result<i64, LoadError> {
    let raw = base.raw(name)?;
    let value = match (raw.dtype, raw.bytes) {
        (Dtype::U8 | Dtype::BOOL, [byte]) => i64::from(*byte),
        (Dtype::I32, bytes) if bytes.len() == 4 => {
            i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        }
        (Dtype::I64, bytes) => match <[u8; 8]>::try_from(bytes) {
            Ok(bytes) => i64::from_le_bytes(bytes),
            Err(_) => return Err(bad(&raw, name, "expected one number")),
        },
        (Dtype::U8 | Dtype::BOOL | Dtype::I32, _) => return Err(bad(&raw, name, "expected one number")),
        _ => return Err(wrong_type(&raw, name, "U8, I32, I64")),
    };
    Ok(value)
}

/// A setting that is a text, a code point a byte.
fn text(base: &SafetensorsCheckpoint, name: &str) -> Result<String, LoadError> {
    let raw = base.raw(name)?;
    match raw.dtype {
        Dtype::U8 => Ok(raw.bytes.iter().map(|byte| char::from(*byte)).collect()),
        _ => Err(wrong_type(&raw, name, "U8")),
    }
}

/// The shape of a weight.
fn sizes(base: &SafetensorsCheckpoint, name: &str) -> Result<Vec<usize>, LoadError> {
    let raw = base.raw(name)?;
    if raw.dtype != Dtype::I64 {
        return Err(wrong_type(&raw, name, "I64"));
    }
    let values = raw.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
    let sizes: Option<Vec<usize>> = values.map(|value| u32::try_from(value).ok().map(|size| size as usize)).collect();
    match sizes {
        Some(sizes) if sizes.len() == 2 => Ok(sizes),
        _ => Err(bad(&raw, name, "expected two sizes")),
    }
}

/// The type in which weights are restored.
fn computed_in(base: &SafetensorsCheckpoint, name: &str) -> Result<Number, LoadError> {
    let raw = base.raw(name)?;
    torch_type(&text(base, name)?).ok_or_else(|| bad(&raw, name, "not a type of floats that is known"))
}
