//! quanto, as `QuantizedModelForCausalLM.save_pretrained` of optimum-quanto writes it.
//!
//! Codes of 2 and 4 bits lie in groups, a group a row of a matrix whose rows are packed apart from each other; how many rows the weight
//! itself has stands nowhere in the file, and follows from the model. A weight of one row and no groups has a scale for each of its
//! values: quanto takes the extremes of a row of a matrix with one row along the other axis.

use safetensors::Dtype;

use super::even::{Even, SIGNED_ZERO, of_signed};
use super::strided::Strided;
use super::{Codes, Weight, bad, bits_of, floats_of, n_weights, of_byte, wrong_type};
use crate::load::safetensors::SafetensorsCheckpoint;
use crate::load::{LoadError, StoredType};

/// Whether a tensor holds the scales of a linear's inputs or outputs.
pub(super) fn is_of_activations(name: &str) -> bool {
    [".input_scale", ".output_scale"].iter().any(|end| name.ends_with(end))
}

/// The weight whose codes are the tensor `name`.
///
/// # Errors
/// Scales or shifts that are missing, or that do not belong to the codes.
pub(super) fn weight(base: &SafetensorsCheckpoint, name: &str) -> Result<Option<Weight>, LoadError> {
    if let Some(weight) = name.strip_suffix("._data._data") {
        return in_groups(base, name, weight).map(Some);
    }
    match name.strip_suffix("._data") {
        Some(weight) if weight.ends_with(".weight") => by_row(base, name, weight).map(Some),
        _ => Ok(None),
    }
}

fn in_groups(base: &SafetensorsCheckpoint, name: &str, weight: &str) -> Result<Weight, LoadError> {
    let [scale, shift] = ["_scale", "_shift"].map(|part| format!("{weight}.{part}"));
    let codes = base.raw(name)?;
    let &[n_words, group] = codes.shape else { return Err(bad(&codes, name, "expected a matrix of groups")) };
    if codes.dtype != Dtype::U8 {
        return Err(wrong_type(&codes, name, "U8"));
    }
    let of_scales = base.raw(&scale)?.shape;
    if n_words == 1 && group > 1 && of_scales == [1, group] {
        return of_one_row(base, name, weight, group);
    }
    let n_groups = n_weights(of_scales);
    let layouts = [4_usize, 2].map(|bits| Strided { bits, word_bytes: 1, per_word: 8 / bits, is_high_first: false });
    let fitting = layouts.into_iter().find(|layout| n_groups.div_ceil(layout.per_word) == n_words);
    let Some(layout) = fitting.filter(|_| n_groups > 0 && group > 0) else {
        return Err(bad(
            &codes,
            name,
            &format!("{n_groups} groups, as {scale:?} has scales, fill it with neither 4 nor 2 bits"),
        ));
    };
    let n = n_groups.saturating_mul(group);
    let stored_type = StoredType {
        name: format!("quanto W{}", layout.bits),
        bits_per_weight: bits_of(base, &[name, &scale, &shift], n)?,
        group_size: Some(group),
    };
    floats_of(base, &scale, n_groups)?;
    floats_of(base, &shift, n_groups)?;
    let (codes, others) = (name.to_owned(), vec![scale.clone(), shift.clone()]);
    Ok(Weight {
        name: weight.to_owned(),
        shape: vec![n_groups, group],
        is_of_any_rows: true,
        rounds_inputs: false,
        is_turned: false,
        codes: codes.clone(),
        others,
        stored_type,
        // Groups as rows: how many of them a row of the weight has, only the model knows.
        even: Some({
            let (codes, scale, shift) = (codes.clone(), scale.clone(), shift.clone());
            Box::new(move |base| {
                let (scales, _) = floats_of(base, &scale, n_groups)?;
                let (shifts, _) = floats_of(base, &shift, n_groups)?;
                // A group of zeros has neither; a shift without a scale is no zero point.
                let zero = |(shift, scale): (&f32, &f32)| if *shift == 0.0 { 0.0 } else { shift / scale };
                let zeros = shifts.iter().zip(&scales).map(zero).collect();
                let codes = layout.codes(&base.read_bytes(&codes)?, [n_groups, group]);
                let shape = [n_groups, group];
                Ok(Even { shape, bits: layout.bits, group, codes, scales, zeros }.into_weight())
            })
        }),
        values: Box::new(move |base| {
            let (scales, number) = floats_of(base, &scale, n_groups)?;
            let (shifts, _) = floats_of(base, &shift, n_groups)?;
            Ok(layout.map(&base.read_bytes(&codes)?, [n_groups, group], |code, row, _| {
                number.round(number.round(scales[row] * code as f32) - shifts[row])
            }))
        }),
    })
}

/// A row whose values have a scale and a shift each. Its codes are alone in their bytes, so that those of 2 bits read as those of 4.
fn of_one_row(base: &SafetensorsCheckpoint, name: &str, weight: &str, n: usize) -> Result<Weight, LoadError> {
    let [scale, shift] = ["_scale", "_shift"].map(|part| format!("{weight}.{part}"));
    floats_of(base, &scale, n)?;
    floats_of(base, &shift, n)?;
    let stored_type = StoredType {
        name: "quanto, a scale a weight".to_owned(),
        bits_per_weight: bits_of(base, &[name, &scale, &shift], n)?,
        group_size: None,
    };
    let (codes, others) = (name.to_owned(), vec![scale.clone(), shift.clone()]);
    Ok(Weight {
        name: weight.to_owned(),
        shape: vec![1, n],
        is_of_any_rows: false,
        rounds_inputs: false,
        is_turned: false,
        codes: codes.clone(),
        others,
        stored_type,
        even: None,
        values: Box::new(move |base| {
            let (scales, number) = floats_of(base, &scale, n)?;
            let (shifts, _) = floats_of(base, &shift, n)?;
            let bytes = base.read_bytes(&codes)?;
            if let Some(at) = bytes.iter().position(|byte| *byte > 15) {
                let problem = format!("byte {} at {at}, expected codes of 4 bits; quantize the model again", bytes[at]);
                return Err(bad(&base.raw(&codes)?, &codes, &problem));
            }
            let values = bytes.iter().zip(scales).zip(shifts);
            let value = |((byte, scale), shift): ((&u8, f32), f32)| {
                number.round(number.round(scale * f32::from(*byte)) - shift)
            };
            Ok(values.map(value).collect())
        }),
    })
}

/// Codes of 8 bits, integers or floats, with a scale a row.
fn by_row(base: &SafetensorsCheckpoint, name: &str, weight: &str) -> Result<Weight, LoadError> {
    let scale = format!("{weight}._scale");
    let codes = base.raw(name)?;
    let code = of_byte(&codes, name)?;
    let is_integer = codes.dtype == Dtype::I8;
    let label = if is_integer { "quanto W8" } else { "quanto FP8" };
    let &[n_out, n_in] = codes.shape else { return Err(bad(&codes, name, "expected a matrix")) };
    let n_scales = n_weights(base.raw(&scale)?.shape);
    if ![1, n_out].contains(&n_scales) || n_in == 0 {
        return Err(bad(&base.raw(&scale)?, &scale, &format!("expected a scale, or one for each of {n_out} rows")));
    }
    floats_of(base, &scale, n_scales)?;
    let stored_type = StoredType {
        name: label.to_owned(),
        bits_per_weight: bits_of(base, &[name, &scale], n_out * n_in)?,
        group_size: None,
    };
    let (codes, others) = (name.to_owned(), vec![scale.clone()]);
    Ok(Weight {
        name: weight.to_owned(),
        shape: vec![n_out, n_in],
        is_of_any_rows: false,
        rounds_inputs: false,
        is_turned: false,
        codes: codes.clone(),
        others,
        stored_type,
        even: is_integer.then(|| -> Codes {
            let (codes, scale) = (codes.clone(), scale.clone());
            Box::new(move |base| {
                let (scales, _) = floats_of(base, &scale, n_scales)?;
                let scales = if n_scales == 1 { vec![scales[0]; n_out] } else { scales };
                let (codes, zeros) = (of_signed(&base.read_bytes(&codes)?), vec![SIGNED_ZERO; n_out]);
                Ok(Even { shape: [n_out, n_in], bits: 8, group: n_in, codes, scales, zeros }.into_weight())
            })
        }),
        values: Box::new(move |base| {
            let (scales, number) = floats_of(base, &scale, n_scales)?;
            let bytes = base.read_bytes(&codes)?;
            let of_row = |row: usize| scales[if n_scales == 1 { 0 } else { row }];
            let value = |(index, byte): (usize, &u8)| number.round(of_row(index / n_in) * code(*byte));
            Ok(bytes.iter().enumerate().map(value).collect())
        }),
    })
}
