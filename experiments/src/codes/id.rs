//! What decides the codes of a quantized model, and nothing that decides how they are scored.

use std::collections::BTreeMap;

use anyhow::Context;
use awq_core::arithmetic::FloatType;
use awq_core::driver::Propagation;
use awq_core::grid::Grid;
use awq_core::rule::{GridOverride, GridRule};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::assets::hex;
use crate::provenance::{build, machine};
use crate::registry::MethodSpec;

/// sha256 of a [`Question`]'s JSON.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QuantizationId(pub String);

/// Everything that codes depend on: two models quantized under the same question have the same codes, bit for bit.
#[derive(Clone, Debug, Serialize)]
pub struct Question<'a> {
    /// sha256 of each file of the model that decides a number, by name.
    model: BTreeMap<&'a str, &'a str>,
    pub(super) method: &'a MethodSpec,
    method_version: u32,
    pub(super) grid: &'a Grid,
    #[serde(skip_serializing_if = "<[GridOverride]>::is_empty")]
    pub(super) overrides: &'a [GridOverride],
    /// [`hash_of_sequences`]: of the tokens themselves, whatever text and sampling they come from.
    calibration: Option<&'a str>,
    propagation: Option<Propagation>,
    precision: FloatType,
    /// Sums are rounded otherwise on another backend, and on a processor with other instructions.
    backend: &'a str,
    cpu: String,
    /// Whoever changes a method while working on it must not get the codes of before.
    sources: &'static str,
}

impl<'a> Question<'a> {
    /// The question of one method on the grids of a rule. `calibration` is the hash of its sequences and how they travel, `device` as a
    /// run names it.
    pub fn new(
        model: &'a BTreeMap<String, String>,
        (method, rule): (&'a MethodSpec, &'a GridRule),
        calibration: Option<(&'a str, Propagation)>,
        (device, precision): (&'a str, FloatType),
    ) -> Self {
        Self {
            model: crate::inputs::deciding(model).collect(),
            method,
            method_version: method.version(),
            grid: &rule.grid,
            overrides: &rule.overrides,
            calibration: calibration.map(|(sequences, _)| sequences),
            propagation: calibration.map(|(_, propagation)| propagation),
            precision,
            backend: device.split(':').next().unwrap_or(device),
            cpu: machine::cpu(),
            sources: build::QUANTIZATION_SOURCES,
        }
    }

    /// Its hash.
    ///
    /// # Errors
    /// Settings that are no JSON.
    pub fn id(&self) -> anyhow::Result<QuantizationId> {
        let json = serde_json::to_vec(self).context("a question is JSON")?;
        Ok(QuantizationId(hex(Sha256::new_with_prefix(json))))
    }
}

/// sha256 over the lengths and tokens of calibration sequences, in their order.
pub fn hash_of_sequences(sequences: &[Vec<u32>]) -> String {
    let mut hasher = Sha256::new();
    for sequence in sequences {
        hasher.update((sequence.len() as u64).to_le_bytes());
        sequence.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    }
    hex(hasher)
}
