//! What activations are collected on: once for all methods, or several calibrations to compare; and what a method's entry
//! may ask of them.

use std::num::{NonZeroU16, NonZeroUsize};

use anyhow::{bail, ensure};
use awq_core::driver::Propagation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draws::{Draw, DrawnCalibration, is_one, one_draw};
use super::{DatasetSpec, ExperimentSpec, SamplingSpec};
use crate::registry::{MethodSpec, MethodTable};

/// What activations are collected on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CalibrationSpec {
    /// The text.
    pub dataset: DatasetSpec,
    /// How token sequences are taken from it.
    pub sampling: SamplingSpec,
    /// Tokens of one sequence.
    pub seq_len: NonZeroUsize,
    /// What the blocks after the first see: activations of the full-precision model or of the quantized one.
    pub propagation: Propagation,
}

impl CalibrationSpec {
    /// Sequences that it takes.
    pub fn n_sequences(&self) -> usize {
        match &self.sampling {
            SamplingSpec::JoinedDocuments(rule) => rule.n_documents.get(),
            SamplingSpec::RandomCrops(rule) => rule.n_sequences.get(),
            SamplingSpec::DocumentCrops(rule) => rule.n_sequences.get(),
            SamplingSpec::TokenOffsets(rule) => rule.starts.len(),
        }
    }
}

/// One of several calibrations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedCalibration {
    /// Name in tables, e.g. `16 sequences`. Like a label, it is no part of a cell's identity.
    pub name: String,
    /// The text.
    pub dataset: DatasetSpec,
    /// How token sequences are taken from it.
    pub sampling: SamplingSpec,
    /// Tokens of one sequence.
    pub seq_len: NonZeroUsize,
    /// What the blocks after the first see, unless a method's entry says otherwise.
    pub propagation: Propagation,
    /// As in `calibration`.
    #[serde(default = "one_draw", skip_serializing_if = "is_one")]
    pub draws: NonZeroU16,
}

impl NamedCalibration {
    /// The calibration itself.
    pub fn spec(&self) -> CalibrationSpec {
        CalibrationSpec {
            dataset: self.dataset.clone(),
            sampling: self.sampling.clone(),
            seq_len: self.seq_len,
            propagation: self.propagation,
        }
    }
}

/// One method of an experiment and what it departs in from the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "MethodTable", into = "MethodTable")]
pub struct MethodEntry {
    /// The method and its settings.
    pub method: MethodSpec,
    /// What the blocks after the first see for this method, in place of what the calibration says: GPTQ is made for
    /// quantized inputs, AWQ for those of the full-precision model.
    pub propagation: Option<Propagation>,
    /// The calibrations it runs under, by name; all where absent.
    pub calibrations: Option<Vec<String>>,
}

/// A calibration as one method sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationUse {
    /// Its name, where the experiment has several and the method looks at activations.
    pub name: Option<String>,
    /// The calibration, with the method's own propagation; `None` where the experiment has none.
    pub spec: Option<CalibrationSpec>,
    /// Which draw it is, where the method looks at activations.
    pub draw: Option<Draw>,
}

impl ExperimentSpec {
    /// The calibrations that a method runs under, each draw of each, in the order of the file. A method that looks at no
    /// activations is the same under all of them: it runs once, and the output error of its blocks is measured on the first.
    pub fn calibrations_of(&self, entry: &MethodEntry) -> Vec<CalibrationUse> {
        let for_method = |spec: CalibrationSpec| CalibrationSpec {
            propagation: entry.propagation.unwrap_or(spec.propagation),
            ..spec
        };
        let single = self.calibration.as_ref();
        if !entry.method.settings().needs().inputs {
            let first = single.map(DrawnCalibration::spec).or(self.calibrations.first().map(NamedCalibration::spec));
            return vec![CalibrationUse { name: None, spec: first.map(for_method), draw: None }];
        }
        let draws = |name: Option<&String>, spec: CalibrationSpec, n_draws: NonZeroU16| {
            let spec = for_method(spec);
            let draw =
                |draw: Draw| CalibrationUse { name: name.cloned(), spec: Some(draw.of(&spec)), draw: Some(draw) };
            Draw::all(n_draws).map(draw).collect::<Vec<_>>()
        };
        if self.calibrations.is_empty() {
            return single.map_or_else(Vec::new, |calibration| draws(None, calibration.spec(), calibration.draws));
        }
        let is_chosen = |calibration: &&NamedCalibration| {
            entry.calibrations.as_ref().is_none_or(|names| names.contains(&calibration.name))
        };
        let as_used =
            |calibration: &NamedCalibration| draws(Some(&calibration.name), calibration.spec(), calibration.draws);
        self.calibrations.iter().filter(is_chosen).flat_map(as_used).collect()
    }

    /// Names that do not exist, and keys that would have no effect.
    pub(super) fn check_calibrations(&self) -> anyhow::Result<()> {
        ensure!(
            self.calibration.is_none() || self.calibrations.is_empty(),
            "the experiment has [calibration] and [[calibrations]]; give one calibration or a list of named ones, not both"
        );
        let mut names: Vec<&str> = self.calibrations.iter().map(|calibration| calibration.name.as_str()).collect();
        let known = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two calibrations are named `{}`; tables could not tell them apart", twice[0]);
        }
        ensure!(names.iter().all(|name| !name.trim().is_empty()), "a calibration has an empty name; give it one");
        self.check_draws()?;
        let of_all = self.calibrations.iter().map(|one| &one.dataset);
        let datasets = of_all.chain(self.calibration.iter().map(|one| &one.dataset));
        if let Some(DatasetSpec::Task(task)) = datasets.into_iter().find(|one| matches!(one, DatasetSpec::Task(_))) {
            bail!(
                "key `calibration.dataset` is the task {}, which has no text to calibrate on; name a text",
                task.name()
            );
        }
        let has_none = self.calibration.is_none() && self.calibrations.is_empty();
        for entry in &self.methods {
            let key = entry.method.key();
            let looks = entry.method.settings().needs().inputs;
            ensure!(
                !(looks && has_none),
                "method `{key}` needs activations, the experiment has no [calibration] section; add one"
            );
            ensure!(
                entry.propagation.is_none() || !has_none,
                "method `{key}`: key `propagation` has no effect without a calibration; remove it"
            );
            let per_stage = |used: &CalibrationUse| {
                used.spec.as_ref().is_some_and(|spec| spec.propagation == Propagation::QuantizedPerStage)
            };
            ensure!(
                !(entry.method.settings().needs_whole_block() && self.calibrations_of(entry).iter().any(per_stage)),
                "method `{key}` decides on whole blocks: propagation `quantized_per_stage` cannot be; give its entry \
                 `propagation = \"full_precision\"` or `\"quantized\"`"
            );
            let Some(chosen) = &entry.calibrations else { continue };
            ensure!(looks, "method `{key}` looks at no activations: key `calibrations` has no effect; remove it");
            ensure!(
                !chosen.is_empty(),
                "method `{key}`: key `calibrations` is an empty list; name at least one, or remove it"
            );
            if let Some(unknown) = chosen.iter().find(|name| !names.contains(&name.as_str())) {
                let known = if known.is_empty() { "the experiment has no [[calibrations]]" } else { known.as_str() };
                bail!("method `{key}`: no calibration is named `{unknown}`; known: {known}");
            }
        }
        Ok(())
    }
}
