//! How the range of a group of weights is chosen.

use std::num::NonZeroU16;

use awq_core::grid::{FittedGrid, GroupParams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the range of a group is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RangeSearch {
    /// From minimum to maximum.
    MinMax,
    /// Both ends shrunk by one factor, the one that loses least in the weights themselves.
    Mse(MseSearch),
}

/// See [`RangeSearch::Mse`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MseSearch {
    /// Steps that the whole range is divided into (the official code: 100).
    pub n_steps: NonZeroU16,
    /// Share of the range that may be cut away (the official code: 0.8).
    pub max_shrink: f64,
    /// Exponent of the error that is summed (the official code: 2.4).
    pub exponent: f64,
}

impl RangeSearch {
    /// Scale and zero point of a group.
    pub(crate) fn params(&self, group: &[f32], grid: &FittedGrid) -> GroupParams {
        match self {
            Self::MinMax => grid.group_params_of(group),
            Self::Mse(search) => search.params(group, grid),
        }
    }

    /// What is wrong with the settings.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Mse(search) if !(0.0..1.0).contains(&search.max_shrink) => Err(format!(
                "range.mse.max_shrink = {} is outside 0 .. 1; the official code has 0.8",
                search.max_shrink
            )),
            Self::Mse(search) if !(search.exponent > 0.0 && search.exponent.is_finite()) => {
                Err(format!("range.mse.exponent = {} is not positive; the official code has 2.4", search.exponent))
            }
            Self::MinMax | Self::Mse(_) => Ok(()),
        }
    }
}

impl MseSearch {
    fn params(&self, group: &[f32], grid: &FittedGrid) -> GroupParams {
        let min = group.iter().fold(f32::INFINITY, |a, &b| a.min(b));
        let max = group.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let n_steps = f64::from(self.n_steps.get());
        let n_tried = ((self.max_shrink * n_steps) as usize).max(1);
        let mut best: Option<(f64, GroupParams)> = None;
        for i in 0..n_tried {
            let keep = (1.0 - i as f64 / n_steps) as f32;
            let params = grid.group_params(min * keep, max * keep);
            let error = |&w: &f32| {
                let error = (grid.grid.weight(grid.grid.nearest_code(w, &params), &params) - w).abs();
                f64::from(error.powf(self.exponent as f32))
            };
            let error: f64 = group.iter().map(error).sum();
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, params));
            }
        }
        best.map_or_else(|| grid.group_params_of(group), |(_, params)| params)
    }
}
