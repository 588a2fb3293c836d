//! Rotary frequencies, and the ways in which they were stretched for longer contexts.

use std::f64::consts::PI;

use super::LoadError;
use super::keys::Keys;

/// llama.cpp's default for models that do not say.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// A change of the rotary frequencies `theta^(-2j / head_dim)`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency is divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones are kept, those between are interpolated.
    Llama3 {
        /// The stretch of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are stretched whole.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before the stretch.
        original_max_positions: usize,
    },
    /// Each frequency has its own divisor: what GGUF stores in place of a formula.
    PerFrequency {
        /// `head_dim / 2` of them, highest frequency first.
        divisors: Vec<f32>,
    },
}

/// The facts of rotary embeddings.
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) scaling: Option<RopeScaling>,
}

impl Rope {
    /// From the keys of a Hugging Face `config.json`; `default_theta` is the base of a file that names none.
    pub(super) fn from_hugging_face(keys: &Keys<'_>, default_theta: f64) -> Result<Self, LoadError> {
        let theta = keys.optional_float("rope_theta")?;
        // transformers 5 has moved `rope_theta` and `rope_scaling` into `rope_parameters`; where both are there, it takes the
        // older key alone, and the base that `rope_parameters` names is lost.
        for key in ["rope_scaling", "rope_parameters"] {
            // An empty object stands for none, as in transformers.
            let Some(value) = keys.get(key).filter(|value| **value != serde_json::json!({})) else { continue };
            if !value.is_object() {
                return Err(keys.wrong_type(key, value, "an object"));
            }
            let inner = Keys { file: keys.file, json: value };
            let inner_theta = inner.optional_float("rope_theta")?;
            return Ok(Self {
                theta: inner_theta.or(theta).unwrap_or(default_theta),
                scaling: scaling_from_hugging_face(&inner, key, keys.optional_dimension("max_position_embeddings")?)?,
            });
        }
        Ok(Self { theta: theta.unwrap_or(default_theta), scaling: None })
    }

    /// From GGUF metadata, whose keys start with `prefix`, as llama.cpp reads them: the type is linear unless the file
    /// says otherwise, and the factor has an older key; a factor of 0 stands for none.
    pub(super) fn from_gguf(keys: &Keys<'_>, prefix: &str) -> Result<Self, LoadError> {
        let key = |name: &str| format!("{prefix}.rope.{name}");
        let theta = keys.optional_float(&key("freq_base"))?.unwrap_or(DEFAULT_ROPE_THETA);
        let scaling = match keys.optional_text(&key("scaling.type"))? {
            Some("none") => None,
            None | Some("linear") => {
                let factor_key = [key("scaling.factor"), key("scale_linear")];
                let factor_key = factor_key.iter().find(|key| keys.get(key).is_some());
                let is_given =
                    factor_key.and_then(|key| keys.get(key)).is_some_and(|factor| factor.as_f64() != Some(0.0));
                let factor = factor_key.filter(|_| is_given).map(|key| keys.float(key)).transpose()?;
                factor.filter(|factor| *factor != 1.0).map(|factor| RopeScaling::Linear { factor })
            }
            Some(other) => {
                return Err(keys.bad(&key("scaling.type"), format!("{other:?}, expected one of none, linear")));
            }
        };
        Ok(Self { theta, scaling })
    }
}

/// A key of our own: what GGUF has in place of a formula, which stands beside it (`ModelConfig::to_hugging_face`).
fn divisors(keys: &Keys<'_>, parent: &str) -> Result<Option<RopeScaling>, LoadError> {
    let Some(value) = keys.get("divisors") else { return Ok(None) };
    let divisor = |value: &serde_json::Value| {
        let divisor = value.as_f64()? as f32;
        (divisor.is_finite() && divisor > 0.0).then_some(divisor)
    };
    let divisors = value.as_array().and_then(|divisors| divisors.iter().map(divisor).collect::<Option<Vec<f32>>>());
    match divisors {
        Some(divisors) => Ok(Some(RopeScaling::PerFrequency { divisors })),
        None => Err(keys.wrong_type(&format!("{parent}.divisors"), value, "a list of positive numbers")),
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// The object under `parent`. Where it does not name the context before the stretch, transformers takes the model's positions.
fn scaling_from_hugging_face(
    keys: &Keys<'_>,
    parent: &str,
    max_positions: Option<usize>,
) -> Result<Option<RopeScaling>, LoadError> {
    if let Some(per_frequency) = divisors(keys, parent)? {
        return Ok(Some(per_frequency));
    }
    let kind = match keys.optional_text("rope_type")? {
        Some(kind) => kind,
        None => keys.optional_text("type")?.unwrap_or("default"),
    };
    check_rope_keys(keys, parent, kind)?;
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: keys.float("factor")? })),
        "llama3" => {
            let (low_freq_factor, high_freq_factor) = (keys.float("low_freq_factor")?, keys.float("high_freq_factor")?);
            if low_freq_factor >= high_freq_factor {
                let problem = format!("{low_freq_factor}, expected less than high_freq_factor, {high_freq_factor}");
                return Err(keys.bad(&format!("{parent}.low_freq_factor"), problem));
            }
            Ok(Some(RopeScaling::Llama3 {
                factor: keys.float("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_positions: match (keys.optional_dimension(ORIGINAL)?, max_positions) {
                    (Some(original), _) | (None, Some(original)) => original,
                    (None, None) => return Err(keys.missing(ORIGINAL)),
                },
            }))
        }
        other => {
            Err(keys.bad(&format!("{parent}.rope_type"), format!("{other:?}, expected one of default, linear, llama3")))
        }
    }
}

/// Keys of the object, beside those of a kind, that change nothing here.
const ROPE_KEYS: &[&str] = &["rope_type", "type", "rope_theta", "divisors", "partial_rotary_factor", "finetuned"];

/// # Errors
/// Ropes that differ by the type of a layer, heads that are rotated in part, or a key that nothing here reads.
fn check_rope_keys(keys: &Keys<'_>, parent: &str, kind: &str) -> Result<(), LoadError> {
    let Some(object) = keys.json.as_object() else { return Ok(()) };
    let of_kind: &[&str] = match kind {
        "linear" => &["factor", "original_max_position_embeddings"],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
        // `default` ignores all of them, as transformers does; other kinds are refused by name.
        _ => return check_layer_types(keys, parent, object),
    };
    check_layer_types(keys, parent, object)?;
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        if !ROPE_KEYS.contains(&key.as_str()) && !of_kind.contains(&key.as_str()) {
            let problem =
                format!("{value}: rope type {kind:?} has no such key; check the file against the model's own");
            return Err(keys.bad(&format!("{parent}.{key}"), problem));
        }
    }
    Ok(())
}

fn check_layer_types(
    keys: &Keys<'_>,
    parent: &str,
    object: &serde_json::Map<String, serde_json::Value>,
) -> Result<(), LoadError> {
    if let Some((key, _)) = object.iter().find(|(_, value)| value.is_object()) {
        let problem = "rotary positions that differ by the type of a layer are not supported".to_owned();
        return Err(keys.bad(&format!("{parent}.{key}"), problem));
    }
    match object.get("partial_rotary_factor").filter(|share| !share.is_null() && share.as_f64() != Some(1.0)) {
        None => Ok(()),
        Some(share) => {
            let problem = format!("{share}, expected 1: heads that are rotated in part are not supported");
            Err(keys.bad(&format!("{parent}.partial_rotary_factor"), problem))
        }
    }
}

impl RopeScaling {
    /// The scaled frequency; `pair` is its index, highest frequency first.
    pub(super) fn apply(&self, frequency: f64, pair: usize) -> f64 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let turns = *original_max_positions as f64 * frequency / (2.0 * PI);
                // 0 where the whole context holds few turns (stretched), 1 where it holds many (kept).
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
            Self::PerFrequency { divisors } => frequency / f64::from(divisors[pair]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use serde_json::{Value as Json, json};

    use super::*;

    fn parse(json: &Json) -> Result<Rope, LoadError> {
        Rope::from_hugging_face(&Keys { file: Path::new("config.json"), json }, 10_000.0)
    }

    #[track_caller]
    fn check_error(json: &Json, expected: &str) {
        let message = parse(json).err().unwrap().to_string();
        assert!(message.starts_with("config.json: key "), "{message}");
        assert!(message.contains(expected), "{message}");
    }

    fn llama3() -> Json {
        json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        })
    }

    #[test]
    fn keys_read_in_both_places() {
        let linear = parse(&json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
        assert_eq!(linear.scaling, Some(RopeScaling::Linear { factor: 2.0 }));
        assert_eq!(linear.theta, DEFAULT_ROPE_THETA);

        let old = parse(&json!({"rope_theta": 5e5, "rope_scaling": llama3()})).unwrap();
        let mut inner = llama3();
        inner["rope_theta"] = json!(5e5);
        let new = parse(&json!({"rope_parameters": inner})).unwrap();
        assert_eq!((new.scaling, new.theta), (old.scaling, old.theta));

        let plain = parse(&json!({"rope_scaling": null, "rope_theta": 7.0})).unwrap();
        assert_eq!((plain.scaling, plain.theta), (None, 7.0));
    }

    #[test]
    fn bad_values_are_named() {
        let with = |key: &str, value: Json| {
            let mut scaling = llama3();
            scaling[key] = value;
            json!({"rope_scaling": scaling})
        };
        check_error(&with("rope_type", json!("yarn")), "\"yarn\", expected one of default, linear, llama3");
        check_error(&with("high_freq_factor", Json::Null), "key \"high_freq_factor\" is missing");
        check_error(&with("low_freq_factor", json!(4.0)), "4, expected less than high_freq_factor, 4");
        check_error(&with("factor", json!(-2.0)), "-2.0, expected a positive number");
        check_error(&json!({"rope_scaling": 2}), "2, expected an object");
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_stretches_low_ones() {
        let scaling = parse(&json!({"rope_scaling": llama3()})).unwrap().scaling.unwrap();
        for pair in 0..64 {
            let plain = 5e5_f64.powf(-f64::from(pair) / 64.0);
            let wavelength = 2.0 * PI / plain;
            let expected = if wavelength < 8192.0 / 4.0 {
                plain
            } else if wavelength > 8192.0 / 1.0 {
                plain / 8.0
            } else {
                // The interpolation as Meta's code writes it.
                let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
                (1.0 - smooth) * plain / 8.0 + smooth * plain
            };
            let scaled = scaling.apply(plain, pair as usize);
            assert!((scaled - expected).abs() <= 1e-15, "{plain}: {scaled} {expected}");
        }
    }
}
