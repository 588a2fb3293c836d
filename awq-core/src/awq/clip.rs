//! The clip search: a bound for each group of weights, judged by that group's own output error.

use std::num::{NonZeroU16, NonZeroUsize};

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::{QuantBackend, float_vec};
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

/// What a clip search found for one linear.
#[derive(Clone, Debug)]
pub struct ClipOutcome<B: QuantBackend> {
    /// The clipped weight, `[out, in]`.
    pub weight: Tensor<B, 2>,
    /// The bound of each group, `[out, n_groups]`.
    pub bound: Tensor<B, 2>,
    /// Mean over rows and tokens of the squared output error, groups taken alone and added, without clipping.
    pub loss_before: f64,
    /// The same with the bounds found.
    pub loss_after: f64,
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
        if ctx.grid.granularity == Granularity::PerTensor {
            return Err(MethodError::Unsupported {
                block_idx: ctx.block_idx,
                linear: linear.0.into(),
                what: "clip bounds belong to rows or groups; set clip = \"off\" for a per_tensor grid".into(),
            });
        }
        let outcome = B::clip_search(B::in_f32(weight), &group_grams(rows, ctx.grid), ctx.grid, &self.factors());
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
    let len = grid.granularity.group_len(n_in);
    let gram = |start: usize| {
        let x = rows.clone().narrow(1, start, len.min(n_in - start));
        x.clone().transpose().matmul(x) / n as f64
    };
    (0..n_in).step_by(len).map(gram).collect()
}

/// The search in tensor operations: the error of group `g` in a row is `d^T G_g d` with `d = Q(clamp(w)) - w`.
pub fn clip_search_tensor<B: QuantBackend>(
    weight: Tensor<B, 2>,
    grams: &[Tensor<B, 2>],
    grid: &Grid,
    factors: &[f64],
) -> ClipOutcome<B> {
    let [n_out, n_in] = weight.dims();
    let len = grid.granularity.group_len(n_in);
    let mean_over_rows =
        |errors: Tensor<B, 2>| float_vec(errors).into_iter().map(f64::from).sum::<f64>() / n_out as f64;
    let (mut weights, mut bounds) = (Vec::new(), Vec::new());
    let (mut loss_before, mut loss_after) = (0.0, 0.0);
    for (gram, start) in grams.iter().zip((0..n_in).step_by(len)) {
        let part = weight.clone().narrow(1, start, len.min(n_in - start));
        let full = part.clone().abs().max_dim(1);
        let clamped = |bound: &Tensor<B, 2>| part.clone().min_pair(bound.clone()).max_pair(bound.clone().neg());
        let error = |bound: &Tensor<B, 2>| {
            let delta = B::fake_quant(clamped(bound), grid) - part.clone();
            (delta.clone().matmul(gram.clone()) * delta).sum_dim(1)
        };
        let mut best_error = error(&full);
        let mut best = full.clone();
        loss_before += mean_over_rows(best_error.clone());
        for &factor in &factors[1..] {
            let bound = full.clone() * factor;
            let candidate = error(&bound);
            let wins = candidate.clone().lower(best_error.clone());
            best = best.mask_where(wins.clone(), bound);
            best_error = best_error.mask_where(wins, candidate);
        }
        loss_after += mean_over_rows(best_error);
        weights.push(clamped(&best));
        bounds.push(best);
    }
    ClipOutcome { weight: Tensor::cat(weights, 1), bound: Tensor::cat(bounds, 1), loss_before, loss_after }
}
