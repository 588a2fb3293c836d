//! torchao, as transformers 5 saves it: the parts of a tensor subclass as tensors of their own, and what they are in the file's metadata.

use safetensors::Dtype;
use serde_json::Value as Json;

use super::even::{Even, of_signed};
use super::{Codes, Weight, bad, bits_of, check_len, floats_of, n_weights, of_byte, torch_type, wrong_type};
use crate::load::safetensors::SafetensorsCheckpoint;
use crate::load::{Checkpoint, LoadError, StoredType};

/// Subclasses whose values are `(code - zero point) * scale`, and what they are called.
const KNOWN: [(&str, &str); 3] =
    [("Int8Tensor", "torchao W8"), ("IntxUnpackedToInt8Tensor", "torchao W"), ("Float8Tensor", "torchao FP8")];

/// `Int8WeightOnlyConfig`.
pub(super) fn words(settings: &Json) -> String {
    settings["quant_type"]["default"]["_type"].as_str().unwrap_or_default().to_owned()
}

/// The weight whose codes are the tensor `name`.
///
/// # Errors
/// A subclass that is not known, or tensors that do not belong together.
pub(super) fn weight(base: &SafetensorsCheckpoint, name: &str) -> Result<Option<Weight>, LoadError> {
    let Some(linear) = name.strip_suffix("._weight_qdata") else { return Ok(None) };
    let (weight, scale, zero) =
        (format!("{linear}.weight"), format!("{linear}._weight_scale"), format!("{linear}._weight_zero_point"));
    let codes = base.raw(name)?;
    let facts: Json = match base.metadata_of(name, &weight)?.map(|text| serde_json::from_str(&text)) {
        Some(Ok(facts)) => facts,
        _ => return Err(bad(&codes, name, &format!("the file's metadata says nothing of {weight:?}"))),
    };
    let (subclass, settings) = (facts["_type"].as_str().unwrap_or_default(), &facts["_data"]);
    let Some((_, label)) = KNOWN.iter().find(|(known, _)| *known == subclass) else {
        let known: Vec<&str> = KNOWN.iter().map(|(known, _)| *known).collect();
        return Err(bad(&codes, name, &format!("a {subclass:?} of torchao; known are {}", known.join(", "))));
    };
    let Some(number) = settings["dtype"]["_data"].as_str().and_then(torch_type) else {
        return Err(bad(&codes, name, "its metadata names no type of floats that is known"));
    };
    let code = of_byte(&codes, name)?;
    let &[n_out, n_in] = codes.shape else { return Err(bad(&codes, name, "expected a matrix")) };
    let [rows, columns] = block_of(settings, [n_out, n_in])
        .ok_or_else(|| bad(&codes, name, &format!("blocks of {} do not divide it", settings["block_size"])))?;
    let n_scales = n_out / rows * (n_in / columns);
    floats_of(base, &scale, n_scales)?;
    let has_zeros = base.shape(&zero).is_some();
    if has_zeros {
        let raw = base.raw(&zero)?;
        check_len(&raw, &zero, n_scales)?;
        if raw.dtype != Dtype::I8 {
            return Err(wrong_type(&raw, &zero, "I8"));
        }
    }
    let mut counted = vec![name, &scale];
    counted.extend(has_zeros.then_some(zero.as_str()));
    let bits = settings["target_dtype"]["_data"].as_str().and_then(|name| name.strip_prefix("int"));
    let stored_type = StoredType {
        name: bits.map_or_else(|| (*label).to_owned(), |bits| format!("{label}{bits} in bytes")),
        bits_per_weight: bits_of(base, &counted, n_weights(codes.shape))?,
        group_size: (columns < n_in).then_some(columns),
    };
    let others = counted[1..].iter().map(|name| (*name).to_owned()).collect();
    // Integers of few bits lie in bytes.
    let bits = bits.and_then(|bits| bits.parse().ok()).filter(|bits| (2..8).contains(bits)).unwrap_or(8_u32);
    let is_integer = codes.dtype == Dtype::I8;
    let codes = name.to_owned();
    Ok(Some(Weight {
        name: weight,
        shape: vec![n_out, n_in],
        is_of_any_rows: false,
        rounds_inputs: false,
        is_turned: false,
        codes: codes.clone(),
        others,
        stored_type,
        even: is_integer.then(|| -> Codes {
            let (codes, scale, zero) = (codes.clone(), scale.clone(), zero.clone());
            Box::new(move |base| {
                let (scales, _) = floats_of(base, &scale, n_scales)?;
                let zeros = zero_points(base, has_zeros.then_some(&zero), n_scales)?;
                // A block of several rows has a group in each of them.
                let per_row = n_in / columns;
                let of_groups = |values: &[f32]| -> Vec<f32> {
                    (0..n_out * per_row)
                        .map(|group| values[group / per_row / rows * per_row + group % per_row])
                        .collect()
                };
                let (codes, bits, middle) = narrowed(of_signed(&base.read_bytes(&codes)?), bits);
                let zeros = of_groups(&zeros).into_iter().map(|zero| zero + middle).collect();
                let (shape, scales) = ([n_out, n_in], of_groups(&scales));
                Ok(Even { shape, bits, group: columns, codes, scales, zeros }.into_weight())
            })
        }),
        values: Box::new(move |base| {
            let (scales, _) = floats_of(base, &scale, n_scales)?;
            let zeros = zero_points(base, has_zeros.then_some(&zero), n_scales)?;
            let codes = base.read_bytes(&codes)?;
            let mut values = Vec::with_capacity(codes.len());
            for (row, codes) in codes.chunks_exact(n_in).enumerate() {
                for (block, codes) in codes.chunks_exact(columns).enumerate() {
                    let at = row / rows * (n_in / columns) + block;
                    let (scale, zero) = (scales[at], zeros[at]);
                    values.extend(codes.iter().map(|byte| number.round(number.round(code(*byte) - zero) * scale)));
                }
            }
            Ok(values)
        }),
    }))
}

/// The zero points of blocks.
fn zero_points(base: &SafetensorsCheckpoint, name: Option<&String>, n: usize) -> Result<Vec<f32>, LoadError> {
    let Some(name) = name else { return Ok(vec![0.0; n]) };
    Ok(base.read_bytes(name)?.iter().map(|byte| f32::from(*byte as i8)).collect())
}

/// Codes of bytes, of which the middle one is 128, as those of so many bits, where all of them are: what is stored of each, and the middle
/// one.
fn narrowed(mut codes: Vec<u8>, bits: u32) -> (Vec<u8>, usize, f32) {
    let half = 1_u8 << (bits - 1);
    let lowest = 128 - half;
    if !codes.iter().all(|code| (lowest..=127 + half).contains(code)) {
        return (codes, 8, 128.0);
    }
    codes.iter_mut().for_each(|code| *code -= lowest);
    (codes, bits as usize, f32::from(half))
}

/// Rows and columns that share a scale, where they divide the matrix.
fn block_of(settings: &Json, [n_out, n_in]: [usize; 2]) -> Option<[usize; 2]> {
    let size = |value: &Json| usize::try_from(value.as_u64()?).ok();
    let block = settings["block_size"].as_array()?;
    let [rows, columns] = block.as_slice() else { return None };
    let [rows, columns] = [size(rows)?, size(columns)?];
    (n_in > 0 && rows > 0 && columns > 0 && n_out.is_multiple_of(rows) && n_in.is_multiple_of(columns))
        .then_some([rows, columns])
}
