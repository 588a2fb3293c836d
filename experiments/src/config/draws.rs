//! Several draws of a calibration: the same text and rule with other seeds, each a cell of its own, to tell what the choice
//! of sequences does to a method.

use std::num::{NonZeroU16, NonZeroUsize};

use anyhow::ensure;
use awq_core::driver::Propagation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CalibrationSpec, DatasetSpec, ExperimentSpec, SamplingSpec};

/// What activations are collected on, and how often it is drawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrawnCalibration {
    /// The text.
    pub dataset: DatasetSpec,
    /// How token sequences are taken from it.
    pub sampling: SamplingSpec,
    /// Tokens of one sequence.
    pub seq_len: NonZeroUsize,
    /// What the blocks after the first see: activations of the full-precision model or of the quantized one.
    pub propagation: Propagation,
    /// How often sequences are drawn, once when absent: with the sampling's `seed`, `seed + 1`, `seed + 2`, ... Each draw is a
    /// cell of every method that looks at activations; tables show the mean over draws and the spread.
    #[serde(default = "one_draw", skip_serializing_if = "is_one")]
    pub draws: NonZeroU16,
}

impl DrawnCalibration {
    /// The first draw.
    pub fn spec(&self) -> CalibrationSpec {
        CalibrationSpec {
            dataset: self.dataset.clone(),
            sampling: self.sampling.clone(),
            seq_len: self.seq_len,
            propagation: self.propagation,
        }
    }
}

pub(super) fn one_draw() -> NonZeroU16 {
    NonZeroU16::MIN
}

pub(super) fn is_one(draws: &NonZeroU16) -> bool {
    *draws == NonZeroU16::MIN
}

/// One of several draws of a calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Its number, from 0. The first one has the seed that the file gives.
    pub index: u16,
    /// How many there are.
    pub n_draws: NonZeroU16,
}

impl Draw {
    /// The draws of a calibration, in order.
    pub fn all(n_draws: NonZeroU16) -> impl Iterator<Item = Self> {
        (0..n_draws.get()).map(move |index| Self { index, n_draws })
    }

    /// Whether it is the only one.
    pub fn is_only(self) -> bool {
        is_one(&self.n_draws)
    }

    /// This draw of a calibration whose first draw is `first`.
    pub fn of(self, first: &CalibrationSpec) -> CalibrationSpec {
        self.shifted(first, u64::wrapping_add)
    }

    /// The first draw of a calibration of which `own` is this draw.
    pub fn first(self, own: &CalibrationSpec) -> CalibrationSpec {
        self.shifted(own, u64::wrapping_sub)
    }

    fn shifted(self, spec: &CalibrationSpec, shift: fn(u64, u64) -> u64) -> CalibrationSpec {
        let mut spec = spec.clone();
        if let Some(seed) = spec.sampling.seed_mut() {
            *seed = shift(*seed, self.index.into());
        }
        spec
    }
}

impl ExperimentSpec {
    /// Draws that could not differ, and draws that nobody would look at.
    pub(super) fn check_draws(&self) -> anyhow::Result<()> {
        let single = self
            .calibration
            .iter()
            .map(|calibration| ("[calibration]".to_owned(), &calibration.sampling, calibration.draws));
        let named = self.calibrations.iter();
        let named = named.map(|one| (format!("calibration `{}`", one.name), &one.sampling, one.draws));
        let looks = self.methods.iter().any(|entry| entry.method.settings().needs().inputs);
        for (place, sampling, draws) in single.chain(named).filter(|(_, _, draws)| !is_one(draws)) {
            ensure!(
                sampling.clone().seed_mut().is_some(),
                "{place}: key `draws` is {draws}, but `token_offsets` names its sequences one by one and can be drawn once \
                 only; remove `draws`, or take sequences by a rule with a seed (`random_crops`)"
            );
            ensure!(
                looks,
                "{place}: key `draws` has no effect, for no method of the experiment looks at activations; remove it"
            );
        }
        Ok(())
    }
}
