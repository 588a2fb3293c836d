//! bitsandbytes, as transformers saves it: tables of 16 values in blocks of a flat weight (NF4, FP4), or LLM.int8().

use rayon::prelude::*;
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value as Json;

use super::even::{Even, SIGNED_ZERO, of_signed};
use super::{Weight, bad, bits_of, check_len, check_type, floats_of, n_weights, torch_type, wrong_type};
use crate::load::safetensors::SafetensorsCheckpoint;
use crate::load::{Checkpoint, LoadError, StoredType};
use crate::numbers::Number;

/// How a weight of 4 bits was made: the JSON in `weight.quant_state.bitsandbytes__nf4`.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// `4 bit, nf4, with scales of 8 bit`.
pub(super) fn words(settings: &Json) -> String {
    if settings["load_in_8bit"] == true {
        return "8 bit".to_owned();
    }
    let kind = settings["bnb_4bit_quant_type"].as_str().unwrap_or("fp4");
    let nested = if settings["bnb_4bit_use_double_quant"] == true { ", with scales of 8 bit" } else { "" };
    format!("4 bit, {kind}{nested}")
}

/// The weight whose codes are the tensor `name`.
///
/// # Errors
/// Tensors of it that are missing, or that do not belong together.
pub(super) fn weight(base: &SafetensorsCheckpoint, name: &str) -> Result<Option<Weight>, LoadError> {
    let Some(linear) = name.strip_suffix(".weight") else { return Ok(None) };
    let has = |name: String| base.shape(&name).is_some();
    if has(format!("{name}.absmax")) {
        return of_four_bits(base, name).map(Some);
    }
    if has(format!("{linear}.SCB")) && base.raw(name)?.dtype == Dtype::I8 {
        return of_eight_bits(base, name, linear).map(Some);
    }
    Ok(None)
}

/// Where the scale of a block comes from.
struct Scales {
    absmax: String,
    n_blocks: usize,
    nested: Option<Nested>,
}

/// Scales that are codes of a table, with scales of their own.
struct Nested {
    absmax: String,
    map: String,
    block: usize,
    offset: f32,
}

impl Scales {
    fn read(&self, base: &SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError> {
        let Some(nested) = &self.nested else { return Ok(floats_of(base, &self.absmax, self.n_blocks)?.0) };
        let (map, _) = floats_of(base, &nested.map, 256)?;
        let (absmax, _) = floats_of(base, &nested.absmax, self.n_blocks.div_ceil(nested.block))?;
        let codes = base.raw(&self.absmax)?.bytes.iter().enumerate();
        Ok(codes.map(|(at, code)| map[usize::from(*code)] * absmax[at / nested.block] + nested.offset).collect())
    }
}

fn of_four_bits(base: &SafetensorsCheckpoint, name: &str) -> Result<Weight, LoadError> {
    let of = |part: &str| format!("{name}.{part}");
    let (absmax, map) = (of("absmax"), of("quant_map"));
    let (state_name, state) = quant_state(base, name)?;
    let of_state = base.raw(&state_name)?;
    let Some(number) = torch_type(&state.dtype) else {
        return Err(bad(
            &of_state,
            &state_name,
            &format!("dtype {:?} is not a type of floats that is known", state.dtype),
        ));
    };
    let (n, block) = (n_weights(&state.shape), state.blocksize);
    let codes = base.raw(name)?;
    if block == 0 || n == 0 || codes.bytes.len() != n.div_ceil(2) {
        let problem = format!(
            "{} bytes, and \"quant_state\" says shape {:?} in blocks of {block}",
            codes.bytes.len(),
            state.shape
        );
        return Err(bad(&codes, name, &problem));
    }
    check_type(base, &map, Dtype::F32)?;
    check_len(&base.raw(&map)?, &map, 16)?;
    let n_blocks = n.div_ceil(block);
    check_len(&base.raw(&absmax)?, &absmax, n_blocks)?;
    let nested = match (state.nested_blocksize, state.nested_offset) {
        (Some(block), Some(offset)) if block > 0 => {
            check_type(base, &absmax, Dtype::U8)?;
            Some(Nested { absmax: of("nested_absmax"), map: of("nested_quant_map"), block, offset })
        }
        _ => None,
    };
    let mut others = vec![absmax.clone(), map.clone(), state_name];
    others.extend(nested.iter().flat_map(|nested| [nested.absmax.clone(), nested.map.clone()]));
    let scales = Scales { absmax, n_blocks, nested };
    scales.read(base)?;
    // The tables are the same for all weights of a type: they are not counted.
    let mut counted = vec![name, &scales.absmax];
    counted.extend(scales.nested.iter().map(|nested| nested.absmax.as_str()));
    let stored_type = StoredType {
        name: format!("bitsandbytes {}", state.quant_type.to_uppercase()),
        bits_per_weight: bits_of(base, &counted, n)?,
        group_size: Some(block),
    };
    let codes = name.to_owned();
    Ok(Weight {
        name: codes.clone(),
        shape: state.shape,
        is_of_any_rows: false,
        rounds_inputs: false,
        is_turned: true,
        codes: codes.clone(),
        others,
        stored_type,
        // Its values are a table's, and blocks do not end with rows.
        even: None,
        values: Box::new(move |base| {
            let ((map, _), scales) = (floats_of(base, &map, 16)?, scales.read(base)?);
            Ok(restore(&base.read_bytes(&codes)?, n, block, &map, &scales, number))
        }),
    })
}

/// The first of two weights is in the high half of a byte.
fn restore(bytes: &[u8], n: usize, block: usize, map: &[f32], scales: &[f32], number: Number) -> Vec<f32> {
    let mut values = vec![0.0; n];
    values.par_chunks_mut(block).zip(scales).enumerate().for_each(|(at, (values, scale))| {
        for (offset, value) in values.iter_mut().enumerate() {
            let index = at * block + offset;
            let code = if index.is_multiple_of(2) { bytes[index / 2] >> 4 } else { bytes[index / 2] & 15 };
            *value = number.round(map[usize::from(code)] * scale);
        }
    });
    values
}

/// The tensor of a weight's settings, and what it says.
fn quant_state(base: &SafetensorsCheckpoint, name: &str) -> Result<(String, QuantState), LoadError> {
    let names = ["nf4", "fp4"].map(|kind| format!("{name}.quant_state.bitsandbytes__{kind}"));
    // Missing, the first is named, beside what there is.
    let name = names.iter().find(|name| base.shape(name).is_some()).unwrap_or(&names[0]);
    let raw = base.raw(name)?;
    match serde_json::from_slice(raw.bytes) {
        Ok(state) if raw.dtype == Dtype::U8 => Ok((name.clone(), state)),
        Ok(_) => Err(wrong_type(&raw, name, "U8")),
        Err(error) => Err(bad(&raw, name, &format!("not the settings of a weight ({error})"))),
    }
}

fn of_eight_bits(base: &SafetensorsCheckpoint, name: &str, linear: &str) -> Result<Weight, LoadError> {
    let (scale, layout) = (format!("{linear}.SCB"), format!("{linear}.weight_format"));
    let codes = base.raw(name)?;
    let &[n_out, n_in] = codes.shape else { return Err(bad(&codes, name, "expected a matrix")) };
    check_type(base, &scale, Dtype::F32)?;
    check_len(&base.raw(&scale)?, &scale, n_out)?;
    if base.shape(&layout).is_some() && base.raw(&layout)?.bytes.iter().any(|byte| *byte != 0) {
        return Err(bad(&base.raw(&layout)?, &layout, "only weights that lie by rows (0) are read"));
    }
    let stored_type = StoredType {
        name: "bitsandbytes W8".to_owned(),
        bits_per_weight: bits_of(base, &[name, &scale], n_out * n_in)?,
        group_size: None,
    };
    let codes = name.to_owned();
    Ok(Weight {
        name: codes.clone(),
        shape: vec![n_out, n_in],
        is_of_any_rows: false,
        rounds_inputs: true,
        is_turned: true,
        codes: codes.clone(),
        others: [scale.clone(), layout].into_iter().filter(|name| base.shape(name).is_some()).collect(),
        stored_type,
        even: Some({
            let (codes, scale) = (codes.clone(), scale.clone());
            Box::new(move |base| {
                let (scales, _) = floats_of(base, &scale, n_out)?;
                let scales = scales.into_iter().map(|scale| scale * (1.0 / 127.0)).collect();
                let (codes, zeros) = (of_signed(&base.read_bytes(&codes)?), vec![SIGNED_ZERO; n_out]);
                Ok(Even { shape: [n_out, n_in], bits: 8, group: n_in, codes, scales, zeros }.into_weight())
            })
        }),
        values: Box::new(move |base| {
            let (scales, _) = floats_of(base, &scale, n_out)?;
            let bytes = base.read_bytes(&codes)?;
            let rows = bytes.chunks_exact(n_in.max(1)).zip(scales);
            let value = |byte: u8, scale: f32| f32::from(byte as i8) * scale * (1.0 / 127.0);
            Ok(rows.flat_map(|(codes, scale)| codes.iter().map(move |byte| value(*byte, scale))).collect())
        }),
    })
}
