//! Keys of a `config.json` that only some families read.

use super::bad_key;
use crate::activation::Activation;
use crate::load::{Checkpoint, LoadError, ModelConfig};

/// A number of things; `default` where the key is absent.
pub(super) fn number(
    config: &ModelConfig,
    checkpoint: &dyn Checkpoint,
    key: &str,
    default: usize,
) -> Result<usize, LoadError> {
    let Some(value) = config.raw.get(key) else { return Ok(default) };
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| *number > 0);
    number.ok_or_else(|| bad_key(checkpoint, key, format!("{value}, expected a positive integer")))
}

/// Experts, and those of them that a token goes through: keys with what they stand for where they are absent.
pub(super) fn n_experts(
    config: &ModelConfig,
    checkpoint: &dyn Checkpoint,
    [(all_key, all), (active_key, active)]: [(&str, usize); 2],
) -> Result<(usize, usize), LoadError> {
    let n_experts = number(config, checkpoint, all_key, all)?;
    let n_active = number(config, checkpoint, active_key, active)?;
    if n_active > n_experts {
        let problem = format!("{n_active}, expected at most the {n_experts} experts of {all_key:?}");
        return Err(bad_key(checkpoint, active_key, problem));
    }
    // A damaged number would take memory for each expert.
    let n_tensors = checkpoint.names().len();
    if n_experts > n_tensors {
        let problem = format!("{n_experts}, but the checkpoint has {n_tensors} tensors; correct the number");
        return Err(bad_key(checkpoint, all_key, problem));
    }
    Ok((n_experts, n_active))
}

/// A factor; `default` where the key is absent, `None` for `null`.
pub(super) fn factor(
    config: &ModelConfig,
    checkpoint: &dyn Checkpoint,
    key: &str,
    default: Option<f64>,
) -> Result<Option<f64>, LoadError> {
    match config.raw.get(key) {
        None => Ok(default),
        Some(value) if value.is_null() => Ok(None),
        Some(value) => match value.as_f64().filter(|factor| factor.is_finite() && *factor > 0.0) {
            Some(factor) => Ok(Some(factor)),
            None => Err(bad_key(checkpoint, key, format!("{value}, expected a positive number or null"))),
        },
    }
}

/// A factor that must not be `null`; `default` where the key is absent.
pub(super) fn required_factor(
    config: &ModelConfig,
    checkpoint: &dyn Checkpoint,
    key: &str,
    default: f64,
) -> Result<f64, LoadError> {
    let factor = factor(config, checkpoint, key, Some(default))?;
    factor.ok_or_else(|| bad_key(checkpoint, key, "null, expected a positive number".into()))
}

/// Names of transformers' activations; several stand for one function.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
];

/// An activation by the name that transformers knows it by; `default` where the key is absent.
pub(super) fn activation(
    config: &ModelConfig,
    checkpoint: &dyn Checkpoint,
    key: &str,
    default: Activation,
) -> Result<Activation, LoadError> {
    let Some(value) = config.raw.get(key) else { return Ok(default) };
    match ACTIVATIONS.iter().find(|(name, _)| value == name) {
        Some((_, activation)) => Ok(*activation),
        None => {
            let known: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            Err(bad_key(checkpoint, key, format!("{value}, expected one of {}", known.join(", "))))
        }
    }
}
