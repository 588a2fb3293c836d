//! The clip search: a bound for each group of weights, judged by that group's own output error.

use std::num::{NonZeroU16, NonZeroUsize};
use std::ops::Range;

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::{ClipOutcome, QuantBackend};
use crate::grid::{Granularity, Grid};
use crate::method::{BlockCtx, MethodError};
use crate::model::LinearName;

/// The search and its settings. For each output row and group of weights the bounds `max|w| (1 - i / n_steps)`,
/// `i = 0 .. max_shrink * n_steps - 1`, are tried; weights are clamped to plus and minus the bound, with an asymmetric grid
/// too (as the official code does).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClipSearch {
    /// Steps that the whole range is divided into (the official code: 20).
    pub n_steps: NonZeroU16,
    /// Share of the range that may be clipped away (the official code: 0.5).
    pub max_shrink: f64,
    /// Calibration tokens that judge a bound, evenly spaced (the official code: 512).
    pub n_tokens: NonZeroUsize,
}

impl ClipSearch {
    /// The shrink factors that are tried, the first being 1 (no clipping).
    pub fn factors(&self) -> Vec<f64> {
        let n_steps = f64::from(self.n_steps.get());
        let n_tried = ((self.max_shrink * n_steps) as usize).max(1);
        (0..n_tried).map(|i| 1.0 - i as f64 / n_steps).collect()
    }

    /// Searches the bounds of one linear; `rows: [n, in]` are the (scaled) inputs that judge them.
    pub(super) fn run<B: QuantBackend>(
        &self,
        ctx: &BlockCtx<'_, B>,
        linear: LinearName,
        weight: Tensor<B, 2>,
        rows: Tensor<B, 2>,
    ) -> Result<ClipOutcome<B>, MethodError> {
        let grid = ctx.grid(linear);
        if grid.granularity == Granularity::PerTensor {
            return Err(MethodError::Unsupported {
                block_idx: ctx.block_idx,
                linear: linear.0.into(),
                what: "clip bounds belong to rows or groups; set clip = \"off\" for a per_tensor grid".into(),
            });
        }
        let outcome = B::clip_search(B::in_f32(weight), &group_grams(rows, grid), grid, &self.factors());
        if !outcome.loss_after.is_finite() {
            return Err(MethodError::NotFinite {
                block_idx: ctx.block_idx,
                linear: linear.0.into(),
                what: "the clip loss",
            });
        }
        Ok(outcome)
    }
}

/// `X_g^T X_g / n` of each group's columns of `rows: [n, in]`; the last may be smaller.
fn group_grams<B: QuantBackend>(rows: Tensor<B, 2>, grid: &Grid) -> Vec<Tensor<B, 2>> {
    let [n, n_in] = rows.dims();
    let gram = |columns: Range<usize>| {
        let x = rows.clone().narrow(1, columns.start, columns.len());
        B::matmul(x.clone().transpose(), x) / n as f64
    };
    grid.granularity.columns(n_in).map(gram).collect()
}
