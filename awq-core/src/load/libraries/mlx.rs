//! MLX's mode `affine`: a matrix of 32-bit words, each row one string of bits, with a scale and the value of code 0 for each group. Scales
//! may be below zero, where a group counts down from its largest weight.

use safetensors::Dtype;
use serde_json::Value as Json;

use super::even::Even;
use super::{Codes, Weight, bad, bits_of, floats_of};
use crate::load::safetensors::SafetensorsCheckpoint;
use crate::load::{LoadError, StoredType};

/// Bits of a word.
const WORD: usize = 32;

/// Whether settings without a method's name are MLX's: they stand under a key of its own, and under another's as well.
pub(super) fn wrote(key: &str, settings: &Json) -> bool {
    let is_nameless =
        settings["quant_method"].is_null() && settings["group_size"].is_u64() && settings["bits"].is_u64();
    // Its other modes are small floats.
    let is_affine = settings["mode"].as_str().is_none_or(|mode| mode == "affine");
    is_nameless && is_affine && (key == "quantization" || settings["mode"].is_string())
}

/// `bits 4, groups of 64`.
pub(super) fn words(settings: &Json) -> String {
    format!("bits {}, groups of {}", settings["bits"], settings["group_size"])
}

/// Bits and group size of a layer, which may have settings of its own.
fn of_layer(settings: &Json, layer: &str) -> Option<(usize, usize)> {
    let number = |name: &str| {
        let value = settings[layer].get(name).unwrap_or(&settings[name]);
        usize::try_from(value.as_u64()?).ok()
    };
    let (bits, group) = (number("bits")?, number("group_size")?);
    ((1..=8).contains(&bits) && group > 0).then_some((bits, group))
}

/// The weight whose codes are the tensor `name`.
///
/// # Errors
/// Tensors that do not belong together.
pub(super) fn weight(base: &SafetensorsCheckpoint, name: &str, settings: &Json) -> Result<Option<Weight>, LoadError> {
    let Some(layer) = name.strip_suffix(".weight") else { return Ok(None) };
    let codes = base.raw(name)?;
    if codes.dtype != Dtype::U32 || settings.is_null() {
        return Ok(None);
    }
    let Some((bits, group)) = of_layer(settings, layer) else {
        return Err(bad(&codes, name, "its settings name no bits from 1 to 8, or no group size"));
    };
    let &[n_out, n_words] = codes.shape else { return Err(bad(&codes, name, "expected a matrix")) };
    let n_in = n_words * WORD / bits;
    if !(n_words * WORD).is_multiple_of(bits) || !n_in.is_multiple_of(group) {
        return Err(bad(&codes, name, &format!("{bits} bits in groups of {group} do not fill its rows")));
    }
    let (scale, bias) = (format!("{layer}.scales"), format!("{layer}.biases"));
    let n_groups = n_out * (n_in / group);
    let ((_, number), _) = (floats_of(base, &scale, n_groups)?, floats_of(base, &bias, n_groups)?);
    let stored_type = StoredType {
        name: format!("MLX W{bits}"),
        bits_per_weight: bits_of(base, &[name, &scale, &bias], n_out * n_in)?,
        group_size: (group < n_in).then_some(group),
    };
    let read = {
        let name = name.to_owned();
        move |base: &SafetensorsCheckpoint| Ok::<_, LoadError>(unpacked(&base.read_bytes(&name)?, n_words, bits))
    };
    let of_groups = {
        let (scale, bias) = (scale.clone(), bias.clone());
        move |base: &SafetensorsCheckpoint| {
            Ok::<_, LoadError>((floats_of(base, &scale, n_groups)?.0, floats_of(base, &bias, n_groups)?.0))
        }
    };
    let even: Codes = Box::new({
        let (read, of_groups) = (read.clone(), of_groups.clone());
        move |base| {
            let (scales, biases) = of_groups(base)?;
            let zeros = scales.iter().zip(biases).map(|(scale, bias)| -bias / scale).collect();
            Ok(Even { shape: [n_out, n_in], bits, group, codes: read(base)?, scales, zeros }.into_weight())
        }
    });
    Ok(Some(Weight {
        name: name.to_owned(),
        shape: vec![n_out, n_in],
        is_of_any_rows: false,
        rounds_inputs: false,
        is_turned: false,
        codes: name.to_owned(),
        others: vec![scale, bias],
        stored_type,
        even: Some(even),
        values: Box::new(move |base| {
            let (scales, biases) = of_groups(base)?;
            let mut values = Vec::with_capacity(n_out * n_in);
            for (codes, (scale, bias)) in read(base)?.chunks_exact(group).zip(scales.into_iter().zip(biases)) {
                values.extend(codes.iter().map(|code| number.round(number.round(f32::from(*code) * scale) + bias)));
            }
            Ok(values)
        }),
    }))
}

/// The codes of rows of `n_words` words: a string of bits each, the lowest of each byte first.
fn unpacked(bytes: &[u8], n_words: usize, bits: usize) -> Vec<u8> {
    let row_bytes = (n_words * WORD / 8).max(1);
    let mask = ((1_u16 << bits) - 1) as u8;
    let mut codes = Vec::with_capacity(bytes.len() * 8 / bits);
    for row in bytes.chunks_exact(row_bytes) {
        codes.extend((0..row_bytes * 8 / bits).map(|index| {
            let (byte, shift) = (index * bits / 8, index * bits % 8);
            let next = row.get(byte + 1).copied().unwrap_or(0);
            (u16::from_le_bytes([row[byte], next]) >> shift) as u8 & mask
        }));
    }
    codes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_without_a_method_are_told_by_key_and_mode() {
        let plain = json!({ "group_size": 64, "bits": 4 });
        assert!(wrote("quantization", &plain) && !wrote("quantization_config", &plain));
        let named = json!({ "group_size": 64, "bits": 4, "mode": "affine" });
        assert!(wrote("quantization", &named) && wrote("quantization_config", &named));
        for other in [
            json!({ "group_size": 32, "bits": 4, "mode": "mxfp4" }),
            json!({ "group_size": 64, "bits": 4, "quant_method": "gptq" }),
            json!({ "bits": 4 }),
        ] {
            assert!(!wrote("quantization", &other), "{other}");
        }
    }

    #[test]
    fn a_layer_may_have_settings_of_its_own() {
        let settings = json!({ "group_size": 64, "bits": 4, "a.b": { "bits": 8 }, "c": { "bits": 9 }, "d": false });
        assert_eq!(of_layer(&settings, "x"), Some((4, 64)));
        assert_eq!(of_layer(&settings, "a.b"), Some((8, 64)));
        assert_eq!(of_layer(&settings, "d"), Some((4, 64)));
        assert_eq!(of_layer(&settings, "c"), None);
    }

    proptest! {
        #[test]
        fn codes_lie_in_a_string_of_bits(codes in prop::collection::vec(any::<u8>(), 64), bits in 1_usize..=8) {
            let codes: Vec<u8> = codes.into_iter().map(|code| (u16::from(code) & ((1 << bits) - 1)) as u8).collect();
            let mut bytes = vec![0_u8; codes.len() * bits / 8];
            for (index, code) in codes.iter().enumerate() {
                for bit in (0..bits).filter(|bit| code >> bit & 1 == 1) {
                    let at = index * bits + bit;
                    bytes[at / 8] |= 1 << (at % 8);
                }
            }
            prop_assert_eq!(unpacked(&bytes, bytes.len() / 4, bits), codes);
        }
    }
}
