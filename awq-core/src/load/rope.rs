//! Rotary frequencies, and the ways in which they were stretched for longer contexts.

use std::f64::consts::PI;
use std::ops::Range;

use serde_json::Value as Json;

use super::LoadError;
use super::class::Class;
use super::keys::Keys;

/// llama.cpp's default for models that do not say.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// A change of the rotary frequencies `theta^(-2j / n_channels)`.
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
    /// YaRN (Peng et al. 2023): pairs that turn often in the original context are kept, those that turn seldom divided by
    /// `factor`, and cosines and sines are multiplied by `amplitude`.
    Yarn {
        /// The stretch of low frequencies.
        factor: f64,
        /// What cosines and sines are multiplied by.
        amplitude: f64,
        /// Turns from which on a pair is kept.
        beta_fast: f64,
        /// Turns up to which a pair is stretched whole.
        beta_slow: f64,
        /// Context length before the stretch.
        original_max_positions: usize,
        /// Whether the two bounds are rounded to whole pairs.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024) up to the original context: each frequency is divided by its short factor, and cosines and
    /// sines are multiplied by `amplitude`. Longer texts would have other factors in all positions; none is run.
    LongRope {
        /// `n_channels / 2` of them, highest frequency first.
        short_factors: Vec<f64>,
        /// What cosines and sines are multiplied by.
        amplitude: f64,
        /// Context length before the stretch.
        original_max_positions: usize,
    },
    /// Each frequency has its own divisor: what GGUF stores in place of a formula.
    PerFrequency {
        /// `n_channels / 2` of them, highest frequency first.
        divisors: Vec<f32>,
    },
}

/// How queries and keys are rotated: the first `n_channels` of each head, channel `c` with `c + n_channels / 2`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they were stretched, if they were.
    pub scaling: Option<RopeScaling>,
    /// Channels of a head that are rotated; even.
    pub n_channels: usize,
}

impl Rope {
    /// The `n_channels / 2` frequencies in radians a position, highest first, scaling applied.
    pub fn frequencies(&self) -> Vec<f64> {
        let n_channels = self.n_channels as f64;
        (0..self.n_channels / 2)
            .map(|pair| {
                let frequency = self.theta.powf(-2.0 * pair as f64 / n_channels);
                match &self.scaling {
                    None => frequency,
                    Some(scaling) => scaling.apply(self, frequency, pair),
                }
            })
            .collect()
    }

    /// Cosines and sines of the angles of some positions, each `[positions.len(), n_channels / 2]`, as they multiply channels.
    pub fn angles(&self, positions: Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.frequencies();
        let amplitude = match self.scaling {
            Some(RopeScaling::Yarn { amplitude, .. } | RopeScaling::LongRope { amplitude, .. }) => amplitude,
            _ => 1.0,
        };
        // In f64: an angle of thousands of radians has lost its fraction in a lower precision.
        let angles = |f: fn(f64) -> f64| {
            let value = move |position, frequency: &f64| (f(position as f64 * frequency) * amplitude) as f32;
            let of_position = |position| frequencies.iter().map(move |frequency| value(position, frequency));
            positions.clone().flat_map(of_position).collect()
        };
        (angles(f64::cos), angles(f64::sin))
    }

    /// From the keys of a Hugging Face `config.json`, for heads of `head_dim` channels: what most blocks do, and what those
    /// with a window do in a class where that differs.
    pub(super) fn from_hugging_face(
        keys: &Keys<'_>,
        class: &Class,
        head_dim: usize,
    ) -> Result<(Self, Option<Self>), LoadError> {
        let of = |theta: f64, object: Option<(&str, &Json)>| -> Result<Self, LoadError> {
            let (parent, json) = object.unwrap_or((PARAMETERS, &Json::Null));
            let inner = Keys { file: keys.file, json };
            let n_channels = n_rotated(keys, &inner, parent, class, head_dim)?;
            let plain = Self { theta: inner.optional_float("rope_theta")?.unwrap_or(theta), scaling: None, n_channels };
            let scaling = scaling_from_hugging_face(keys, &inner, parent, class)?;
            Ok(Self { scaling, ..plain })
        };
        let (theta_key, theta) = class.rope_theta;
        let theta = keys.optional_float(theta_key)?.unwrap_or(theta);
        // transformers 5 has moved `rope_theta` and `rope_scaling` into `rope_parameters`; where both are there, it takes the
        // older key alone, and the base that `rope_parameters` names is lost.
        let (old, new) = (object(keys, SCALING)?, object(keys, PARAMETERS)?);
        let Some(local_theta) = class.local_rope_theta else {
            return Ok((of(theta, old.or(new))?, None));
        };
        let of_kind = |kind: &'static str| -> Result<Option<(&str, &Json)>, LoadError> {
            let Some((parent, object)) = new else { return Ok(None) };
            for (other, value) in object.as_object().into_iter().flatten() {
                if !KINDS.contains(&other.as_str()) && !is_repeated(object, other, value) {
                    let problem = format!("{value}: expected {} alone, each with its own keys", KINDS.join(" and "));
                    return Err(keys.bad(&format!("{parent}.{other}"), problem));
                }
            }
            Ok(object.get(kind).filter(|value| !value.is_null()).map(|value| (kind, value)))
        };
        let [full, sliding] = KINDS;
        let local_theta = keys.optional_float("rope_local_base_freq")?.unwrap_or(local_theta);
        Ok((of(theta, old.or(of_kind(full)?))?, Some(of(local_theta, of_kind(sliding)?)?)))
    }

    /// From GGUF metadata, whose keys start with `prefix`, as llama.cpp reads them: the type is linear unless the file
    /// says otherwise, and the factor has an older key; a factor of 0 stands for none.
    pub(super) fn from_gguf(keys: &Keys<'_>, prefix: &str, n_channels: usize) -> Result<Self, LoadError> {
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
        Ok(Self { theta, scaling, n_channels })
    }
}

const SCALING: &str = "rope_scaling";
const PARAMETERS: &str = "rope_parameters";
/// What `rope_parameters` is split by in a class whose blocks with a window have another base.
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// Whether a key beside the two kinds says what both of them say: configurations that GPTQModel has saved keep the bases of both under
/// one key, and the type.
fn is_repeated(object: &Json, key: &str, value: &Json) -> bool {
    let of_kinds = KINDS.map(|kind| &object[kind][key]);
    match key {
        "rope_theta" => value.is_object() && [&value["global"], &value["local"]] == of_kinds,
        "rope_type" => [value; 2] == of_kinds,
        _ => false,
    }
}

/// The object under `key`, with the key; an empty one stands for none, as in transformers.
fn object<'a>(keys: &Keys<'a>, key: &'static str) -> Result<Option<(&'static str, &'a Json)>, LoadError> {
    match keys.json.get(key).filter(|value| !value.is_null() && **value != serde_json::json!({})) {
        Some(value) if !value.is_object() => Err(keys.wrong_type(key, value, "an object")),
        value => Ok(value.map(|value| (key, value))),
    }
}

/// Channels of a head that are rotated: a share of them, rounded down, in a class that has such a key.
fn n_rotated(
    keys: &Keys<'_>,
    inner: &Keys<'_>,
    parent: &str,
    class: &Class,
    head_dim: usize,
) -> Result<usize, LoadError> {
    let Some((key, default)) = class.rotary_share else { return Ok(head_dim) };
    let (place, share) = match (inner.optional_float(SHARE)?, keys.optional_float(key)?) {
        (Some(share), _) => (format!("{parent}.{SHARE}"), share),
        (None, share) => (key.to_owned(), share.unwrap_or(default)),
    };
    let n_channels = (head_dim as f64 * share) as usize;
    match share <= 1.0 && n_channels > 0 && n_channels.is_multiple_of(2) {
        true => Ok(n_channels),
        false => {
            Err(keys.bad(&place, format!("{share}: {n_channels} of {head_dim} channels, expected an even number")))
        }
    }
}

const SHARE: &str = "partial_rotary_factor";

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
const MAX_POSITIONS: &str = "max_position_embeddings";

/// The object under `parent`, `inner`. The context before the stretch may stand beside it; where nothing names it, transformers
/// takes the model's positions.
fn scaling_from_hugging_face(
    keys: &Keys<'_>,
    inner: &Keys<'_>,
    parent: &str,
    class: &Class,
) -> Result<Option<RopeScaling>, LoadError> {
    if let Some(per_frequency) = divisors(inner, parent)? {
        return Ok(Some(per_frequency));
    }
    let kind = match inner.optional_text("rope_type")? {
        Some(kind) => kind,
        None => inner.optional_text("type")?.unwrap_or("default"),
    };
    // Phi-3's first names.
    let kind = if class.original_positions.is_some() && ["su", "yarn"].contains(&kind) { "longrope" } else { kind };
    check_rope_keys(inner, parent, kind, class)?;
    let original = || -> Result<usize, LoadError> {
        let beside = keys.optional_dimension(ORIGINAL)?.or(class.original_positions);
        match (beside, inner.optional_dimension(ORIGINAL)?, keys.optional_dimension(MAX_POSITIONS)?) {
            (Some(original), ..) | (None, Some(original), _) | (None, None, Some(original)) => Ok(original),
            (None, None, None) => Err(keys.missing(ORIGINAL)),
        }
    };
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: inner.float("factor")? })),
        // Up to the model's positions it changes nothing, and longer texts are not run.
        "dynamic" => inner.float("factor").map(|_| None),
        "llama3" => {
            let (low_freq_factor, high_freq_factor) =
                (inner.float("low_freq_factor")?, inner.float("high_freq_factor")?);
            if low_freq_factor >= high_freq_factor {
                let problem = format!("{low_freq_factor}, expected less than high_freq_factor, {high_freq_factor}");
                return Err(keys.bad(&format!("{parent}.low_freq_factor"), problem));
            }
            let factor = inner.float("factor")?;
            let original_max_positions = original()?;
            Ok(Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions }))
        }
        "yarn" => yarn(inner, original()?).map(Some),
        "longrope" => long_rope(keys, inner, parent, class, original()?).map(Some),
        other => {
            let known = "default, linear, dynamic, llama3, yarn, longrope";
            Err(keys.bad(&format!("{parent}.rope_type"), format!("{other:?}, expected one of {known}")))
        }
    }
}

fn yarn(inner: &Keys<'_>, original_max_positions: usize) -> Result<RopeScaling, LoadError> {
    let factor = inner.float("factor")?;
    let of_scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let amplitude = match (
        inner.optional_float("attention_factor")?,
        inner.optional_float("mscale")?,
        inner.optional_float("mscale_all_dim")?,
    ) {
        (Some(amplitude), ..) => amplitude,
        (None, Some(mscale), Some(all)) => of_scale(mscale) / of_scale(all),
        _ => of_scale(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        amplitude,
        beta_fast: inner.optional_float("beta_fast")?.unwrap_or(32.0),
        beta_slow: inner.optional_float("beta_slow")?.unwrap_or(1.0),
        original_max_positions,
        truncate: inner.optional_bool("truncate")?.unwrap_or(true),
    })
}

fn long_rope(
    keys: &Keys<'_>,
    inner: &Keys<'_>,
    parent: &str,
    class: &Class,
    original_max_positions: usize,
) -> Result<RopeScaling, LoadError> {
    let factors = |key: &str| -> Result<Vec<f64>, LoadError> {
        let value = inner.get(key).ok_or_else(|| keys.missing(&format!("{parent}.{key}")))?;
        let factor = |value: &Json| value.as_f64().filter(|factor| factor.is_finite() && *factor > 0.0);
        let factors = value.as_array().and_then(|all| all.iter().map(factor).collect::<Option<Vec<f64>>>());
        factors.ok_or_else(|| keys.wrong_type(&format!("{parent}.{key}"), value, "a list of positive numbers"))
    };
    let short_factors = factors("short_factor")?;
    // Not used, but a file without them is damaged.
    factors("long_factor")?;
    let original = original_max_positions as f64;
    let factor = match inner.optional_float("factor")? {
        Some(factor) => factor,
        None => keys.dimension_or(class.max_positions.0, class.max_positions.1)? as f64 / original,
    };
    let amplitude = match inner.optional_float("attention_factor")? {
        Some(amplitude) => amplitude,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    Ok(RopeScaling::LongRope { short_factors, amplitude, original_max_positions })
}

/// Keys of the object, beside those of a kind, that change nothing here.
const ROPE_KEYS: &[&str] = &["rope_type", "type", "rope_theta", "divisors", "partial_rotary_factor", "finetuned"];

/// # Errors
/// Ropes that differ by the type of a layer, heads that are rotated in part, or a key that nothing here reads.
fn check_rope_keys(keys: &Keys<'_>, parent: &str, kind: &str, class: &Class) -> Result<(), LoadError> {
    let Some(object) = keys.json.as_object() else { return Ok(()) };
    let of_kind: &[&str] = match kind {
        "linear" | "dynamic" => &["factor", ORIGINAL],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor", ORIGINAL],
        "yarn" => {
            &["factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", ORIGINAL]
        }
        "longrope" => &["factor", "attention_factor", "short_factor", "long_factor", ORIGINAL],
        // `default` ignores all of them, as transformers does; other kinds are refused by name.
        _ => return check_layer_types(keys, parent, object, class),
    };
    check_layer_types(keys, parent, object, class)?;
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
    class: &Class,
) -> Result<(), LoadError> {
    if let Some((key, _)) = object.iter().find(|(_, value)| value.is_object()) {
        let problem = "rotary positions that differ by the type of a layer are not supported".to_owned();
        return Err(keys.bad(&format!("{parent}.{key}"), problem));
    }
    match object.get(SHARE).filter(|share| !share.is_null() && share.as_f64() != Some(1.0)) {
        None => Ok(()),
        Some(_) if class.rotary_share.is_some() => Ok(()),
        Some(share) => {
            let problem = format!("{share}, expected 1: heads that are rotated in part are not supported");
            Err(keys.bad(&format!("{parent}.partial_rotary_factor"), problem))
        }
    }
}

impl RopeScaling {
    /// The scaled frequency; `pair` is its index, highest frequency first.
    pub(crate) fn apply(&self, rope: &Rope, frequency: f64, pair: usize) -> f64 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let turns = *original_max_positions as f64 * frequency / (2.0 * PI);
                // 0 where the whole context holds few turns (stretched), 1 where it holds many (kept).
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
            Self::Yarn { factor, beta_fast, beta_slow, original_max_positions, truncate, .. } => {
                let n_channels = rope.n_channels as f64;
                // The pair that turns so often in the original context.
                let pair_of = |turns: f64| {
                    let positions = *original_max_positions as f64;
                    n_channels * (positions / (turns * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
                };
                let (low, high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(n_channels - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                let stretched = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                stretched * frequency / factor + (1.0 - stretched) * frequency
            }
            Self::LongRope { short_factors, .. } => frequency / short_factors[pair],
            Self::PerFrequency { divisors } => frequency / f64::from(divisors[pair]),
        }
    }
}

#[cfg(test)]
mod tests;
