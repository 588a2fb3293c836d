//! MLX's mode `affine`: a matrix of 32-bit words, each row one string of bits, with a scale and the value of code 0 for each group. Scales
//! may be below zero, where a group counts down from its largest weight. The experts of a block lie one behind the other in one tensor.

use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value as Json;

use super::even::Even;
use super::experts::{MAX_EXPERTS, float_part};
use super::{Weight, bad, bits_of, floats_of, wrong_type};
use crate::load::safetensors::SafetensorsCheckpoint;
use crate::load::stored_dtype::float_type;
use crate::load::{LoadError, StoredType, floats};
use crate::numbers::Number;
use crate::quantized::QuantizedWeight;

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
    let mode = &settings[layer]["mode"];
    let (bits, group) = (number("bits")?, number("group_size")?);
    let is_affine = mode.is_null() || mode == "affine";
    (is_affine && (1..=8).contains(&bits) && group > 0).then_some((bits, group))
}

/// The weights whose codes are the tensor `name`: one, or a linear of each expert.
///
/// # Errors
/// Tensors that do not belong together.
pub(super) fn weights(base: &SafetensorsCheckpoint, name: &str, settings: &Json) -> Result<Vec<Weight>, LoadError> {
    let Some(layer) = name.strip_suffix(".weight").filter(|_| !settings.is_null()) else { return Ok(Vec::new()) };
    let raw = base.raw(name)?;
    let (n_weights, n_out, n_words) = match (raw.shape, layer.contains(SWITCH)) {
        (&[n_experts, n_out, n_words], true) if n_experts <= MAX_EXPERTS => (n_experts, n_out, n_words),
        (_, true) => return Err(bad(&raw, name, &format!("expected the matrices of up to {MAX_EXPERTS} experts"))),
        // Norms and linears in floats.
        _ if raw.dtype != Dtype::U32 => return Ok(Vec::new()),
        (&[n_out, n_words], false) => (1, n_out, n_words),
        _ => return Err(bad(&raw, name, "expected a matrix")),
    };
    // Sizes of what is empty are bounded by nothing.
    if raw.bytes.is_empty() {
        return Err(bad(&raw, name, "it is empty"));
    }
    let names = (0..n_weights).map(|expert| of_expert(layer, expert));
    if raw.dtype != Dtype::U32 {
        // A layer that is not quantized.
        let part = |(index, own)| float_part(&raw, name, own, (index, n_weights), [n_out, n_words]);
        return names.enumerate().map(part).collect();
    }
    let Some((bits, group)) = of_layer(settings, layer) else {
        return Err(bad(
            &raw,
            name,
            "config.json gives it no bits from 1 to 8, no group size, or another mode than affine",
        ));
    };
    let n_in = n_words * WORD / bits;
    if !(n_words * WORD).is_multiple_of(bits) || !n_in.is_multiple_of(group) {
        return Err(bad(&raw, name, &format!("{bits} bits in groups of {group} do not fill its rows")));
    }
    let (scale, bias) = (format!("{layer}.scales"), format!("{layer}.biases"));
    let n_groups = n_out * (n_in / group);
    for part in [&scale, &bias] {
        floats_of(base, part, n_weights * n_groups)?;
        let scales = base.raw(part)?;
        let is_of_rows = scales.shape.split_last() == Some((&(n_in / group), &raw.shape[..raw.shape.len() - 1]));
        if !is_of_rows {
            return Err(bad(&scales, part, &format!("expected {} a row of {name:?}", n_in / group)));
        }
    }
    let stored_type = StoredType {
        name: format!("MLX W{bits}"),
        bits_per_weight: bits_of(base, &[name, &scale, &bias], n_weights * n_out * n_in)?,
        group_size: (group < n_in).then_some(group),
    };
    let of = |(index, own): (usize, String)| {
        let packed = Packed {
            codes: name.to_owned(),
            scale: scale.clone(),
            bias: bias.clone(),
            index,
            n_out,
            n_words,
            bits,
            group,
        };
        let packed = Arc::new(packed);
        Weight {
            name: own,
            shape: vec![n_out, n_in],
            is_of_any_rows: false,
            rounds_inputs: false,
            is_turned: false,
            codes: name.to_owned(),
            others: vec![scale.clone(), bias.clone()],
            stored_type: stored_type.clone(),
            even: Some(Box::new({
                let packed = Arc::clone(&packed);
                move |base| packed.even(base)
            })),
            values: Box::new(move |base| packed.values(base)),
        }
    };
    Ok(names.enumerate().map(of).collect())
}

/// What a layer of experts has in its name, whose matrices lie one behind the other.
const SWITCH: &str = ".switch_mlp.";

/// The name of a weight; that of an expert's linear as its family has it.
fn of_expert(layer: &str, expert: usize) -> String {
    let Some((before, linear)) = layer.split_once(SWITCH) else { return format!("{layer}.weight") };
    let linear = match linear {
        "gate_proj" if before.ends_with(MIXTRALS) => "w1",
        "down_proj" if before.ends_with(MIXTRALS) => "w2",
        "up_proj" if before.ends_with(MIXTRALS) => "w3",
        other => other,
    };
    format!("{before}.experts.{expert}.{linear}.weight")
}

const MIXTRALS: &str = "block_sparse_moe";

/// One matrix of codes.
struct Packed {
    codes: String,
    scale: String,
    bias: String,
    /// Which of those that lie one behind the other.
    index: usize,
    n_out: usize,
    n_words: usize,
    bits: usize,
    group: usize,
}

impl Packed {
    fn n_in(&self) -> usize {
        self.n_words * WORD / self.bits
    }

    fn codes(&self, base: &SafetensorsCheckpoint) -> Result<Vec<u8>, LoadError> {
        let n_bytes = self.n_out * self.n_words * WORD / 8;
        Ok(unpacked(&base.raw(&self.codes)?.bytes[self.index * n_bytes..][..n_bytes], self.n_words, self.bits))
    }

    /// One number a group, and the type in which MLX computes with it.
    fn of_groups(&self, base: &SafetensorsCheckpoint, name: &str) -> Result<(Vec<f32>, Number), LoadError> {
        let n_groups = self.n_out * (self.n_in() / self.group);
        let raw = base.raw(name)?;
        let float = float_type(raw.dtype).ok_or_else(|| wrong_type(&raw, name, "F32, F16, BF16"))?;
        let n_bytes = n_groups * raw.dtype.bitsize() / 8;
        Ok((floats::to_f32(float, &raw.bytes[self.index * n_bytes..][..n_bytes]), float.number()))
    }

    fn values(&self, base: &SafetensorsCheckpoint) -> Result<Vec<f32>, LoadError> {
        let (codes, (scales, number), (biases, _)) =
            (self.codes(base)?, self.of_groups(base, &self.scale)?, self.of_groups(base, &self.bias)?);
        let mut values = Vec::with_capacity(codes.len());
        for (codes, (scale, bias)) in codes.chunks_exact(self.group).zip(scales.into_iter().zip(biases)) {
            values.extend(codes.iter().map(|code| number.round(number.round(f32::from(*code) * scale) + bias)));
        }
        Ok(values)
    }

    fn even(&self, base: &SafetensorsCheckpoint) -> Result<Option<QuantizedWeight>, LoadError> {
        let ((scales, _), (biases, _)) = (self.of_groups(base, &self.scale)?, self.of_groups(base, &self.bias)?);
        let zeros = scales.iter().zip(biases).map(|(scale, bias)| -bias / scale).collect();
        let (shape, bits, group) = ([self.n_out, self.n_in()], self.bits, self.group);
        Ok(Even { shape, bits, group, codes: self.codes(base)?, scales, zeros }.into_weight())
    }
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
