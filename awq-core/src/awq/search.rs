//! The scale search: one exponent per group of linears, judged by the output error of the module that they feed.

use std::num::NonZeroU16;
use std::ops::Range;

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::losses::{Judge, RECORDED_BYTES};
use super::race::{Field, Loss};
use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;
use crate::log::ScaleSearchLog;
use crate::method::{BlockCtx, MethodError};
use crate::model::{LinearName, ScaleGroup};
use crate::progress::Part;

/// Smallest scale before normalization (the official code's constant): a channel that is never active keeps a usable weight.
const MIN_SCALE: f64 = 1e-4;

/// A candidate's loss by differences is trusted within this part of it, or within [`MARGIN`] times the largest error that the search
/// has seen, where that is more.
const LEAST_ERROR: f64 = 4e-4;
const MARGIN: f64 = 4.0;

/// In what precision a search computes outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SearchArithmetic {
    /// f32, and bf16 where that finds the same on a CPU.
    #[default]
    F32,
    /// Activations and weights rounded half to even to bf16 (8 bits of mantissa), f32 sums.
    Bf16,
}

impl SearchArithmetic {
    /// Whether this is [`Self::F32`], which configurations and records leave out.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

impl From<SearchArithmetic> for Arithmetic {
    fn from(arithmetic: SearchArithmetic) -> Self {
        match arithmetic {
            SearchArithmetic::F32 => Self::F32,
            SearchArithmetic::Bf16 => Self::Bf16,
        }
    }
}

/// The search and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleSearch {
    /// How a candidate scale follows from the exponent.
    pub formula: ScaleFormula,
    /// Number of exponents `k / n_ratios`, `k = 0 .. n_ratios - 1` (the official code: 20, that is 0, 0.05 .. 0.95).
    pub n_ratios: NonZeroU16,
    /// How the outputs that judge a candidate are computed, the full-precision ones and the candidate's alike: rounding of
    /// the activations is the same in both and so cancels. The scale found is applied to weights in f32. In `f32` a CPU computes
    /// differences from the full-precision outputs in bf16 and settles in f32 which is the smallest, which takes no longer than `bf16`.
    #[serde(default, skip_serializing_if = "SearchArithmetic::is_f32")]
    pub arithmetic: SearchArithmetic,
}

/// How a candidate scale follows from the exponent `r`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleFormula {
    /// `mean|x|^r` (the paper, and the official code). At `r = 0` all scales are 1: the search cannot lose to plain rounding.
    Activation,
    /// `mean|x|^r / (mean|w|^(1 - r) + 1e-4)`, weights relative to their group's maximum: AutoAWQ's `duo_scaling`.
    /// No exponent gives the identity.
    Duo,
}

impl ScaleSearch {
    /// Finds the scale of one group on the original block, which is `part` of the work on it. Returns it, `[in]`, and what was seen.
    pub(super) fn run<B: QuantBackend>(
        &self,
        ctx: &BlockCtx<'_, B>,
        group: &ScaleGroup,
        part: &Part<'_>,
    ) -> Result<(Tensor<B, 1>, ScaleSearchLog), MethodError> {
        let input = ctx.input(group.input)?;
        let weight_mean = match self.formula {
            ScaleFormula::Activation => None,
            ScaleFormula::Duo => Some(relative_weight_mean(ctx, group)),
        };
        let n_ratios = self.n_ratios.get();
        let ratios: Vec<f64> = (0..n_ratios).map(|k| f64::from(k) / f64::from(n_ratios)).collect();
        let mut scales: Vec<_> =
            ratios.iter().map(|&ratio| candidate_scale(input.mean_abs(), weight_mean.clone(), ratio)).collect();
        let n_rivals = ratios.len();
        let stays = match self.formula {
            ScaleFormula::Activation => 0,
            ScaleFormula::Duo => {
                // No exponent stands for what there is without a scale.
                scales.push(input.mean_abs().ones_like());
                n_rivals
            }
        };
        let judge = Judge { ctx, group, input, recorded_bytes: RECORDED_BYTES, part };
        let mut found = self.losses(&judge, &scales, Field { n_rivals, stays })?;
        let loss_before = found[stays].value();
        found.truncate(n_rivals);
        let losses: Vec<f64> = found.iter().map(|loss| loss.value()).collect();
        let not_finite = || MethodError::NotFinite {
            block_idx: ctx.block_idx,
            linear: group.label(),
            what: "the loss of a candidate scale",
        };
        if !loss_before.is_finite() || losses.iter().any(|loss| !loss.is_finite()) {
            return Err(not_finite());
        }
        let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).ok_or_else(not_finite)?;
        let bounds = (0..losses.len()).filter(|&idx| found[idx].is_bound()).collect();
        let (group, ratio, loss_after) = (group.label(), ratios[best], losses[best]);
        let log = ScaleSearchLog { group, ratio, loss_before, loss_after, losses, bounds };
        Ok((scales.swap_remove(best), log))
    }

    /// The loss of each scale. The smallest of the rivals is f32's, and so is the scale that it belongs to.
    fn losses<B: QuantBackend>(
        &self,
        judge: &Judge<'_, B>,
        scales: &[Tensor<B, 1>],
        field: Field,
    ) -> Result<Vec<Loss>, MethodError> {
        if !B::FASTER_IN_BF16 || !self.arithmetic.is_f32() {
            let losses = judge.output_losses(scales, self.arithmetic.into())?;
            return Ok(losses.into_iter().map(Loss::InF32).collect());
        }
        let mut losses = judge.losses_by_differences(scales, field)?;
        let whole = |idx: usize| judge.loss_by_differences(&scales[idx]);
        settle(&mut losses[..field.n_rivals], whole, |idx| judge.loss_in_f32(&scales[idx]))?;
        Ok(losses)
    }
}

/// Computes whatever may be the smallest by differences again in f32, the smallest first; bounds are made `whole` before.
fn settle<E>(
    losses: &mut [Loss],
    mut whole: impl FnMut(usize) -> Result<Loss, E>,
    mut in_f32: impl FnMut(usize) -> Result<f64, E>,
) -> Result<(), E> {
    let settled = losses.iter().filter(|loss| loss.is_in_f32()).map(|loss| loss.value());
    let (mut smallest, mut error) = (settled.fold(f64::INFINITY, f64::min), LEAST_ERROR / MARGIN);
    let next = |losses: &[Loss]| {
        let unsettled = (0..losses.len()).filter(|&idx| !losses[idx].is_in_f32());
        unsettled.min_by(|&a, &b| losses[a].value().total_cmp(&losses[b].value()))
    };
    while let Some(idx) = next(losses) {
        let by_differences = losses[idx].value();
        if by_differences > smallest * (1.0 + MARGIN * error) {
            break;
        }
        if losses[idx].is_bound() {
            // It was given up by less than differences turn out to be off.
            losses[idx] = whole(idx)?;
            continue;
        }
        let exact = in_f32(idx)?;
        if exact > 0.0 {
            error = error.max((by_differences / exact - 1.0).abs());
        }
        (losses[idx], smallest) = (Loss::InF32(exact), smallest.min(exact));
    }
    Ok(())
}

/// The scale that an exponent stands for, normalized so that the geometric mean of its extremes is 1, `[in]`.
fn candidate_scale<B: QuantBackend>(
    mean_abs: Tensor<B, 1>,
    weight_mean: Option<Tensor<B, 1>>,
    ratio: f64,
) -> Tensor<B, 1> {
    let mut scale = mean_abs.powf_scalar(ratio);
    if let Some(weight_mean) = weight_mean {
        scale = scale / (weight_mean.powf_scalar(1.0 - ratio) + 1e-4);
    }
    let scale = scale.clamp_min(MIN_SCALE);
    let norm = (scale.clone().max() * scale.clone().min()).sqrt();
    scale / norm
}

/// Mean over all rows of the group's quantized linears of `|w| / max|w of its quantization group|`, `[in]`.
fn relative_weight_mean<B: QuantBackend>(ctx: &BlockCtx<'_, B>, group: &ScaleGroup) -> Tensor<B, 1> {
    let relative = |&name: &LinearName| {
        let granularity = ctx.grids.of(name)?.granularity;
        let weight = B::in_f32(ctx.block.params().linear(name).weight.clone()).abs();
        let [_, n_in] = weight.dims();
        let of_group = |columns: Range<usize>| {
            let part = weight.clone().narrow(1, columns.start, columns.len());
            let max = part.clone().max_dim(1).clamp_min(1e-6);
            part / max
        };
        Some(Tensor::cat(granularity.columns(n_in).map(of_group).collect(), 1))
    };
    let relative = Tensor::cat(group.linears.iter().filter_map(relative).collect(), 0);
    let [n_out, _] = relative.dims();
    relative.sum_dim(0).squeeze::<1>() / n_out as f64
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// What is known after [`settle`], of candidates with these losses by differences and in f32.
    fn settled(mut losses: Vec<Loss>, by_differences: &[f64], in_f32: &[f64]) -> Vec<Loss> {
        let whole = |idx: usize| Ok::<_, Infallible>(Loss::Nearly(by_differences[idx]));
        let Ok(()) = settle(&mut losses, whole, |idx| Ok(in_f32[idx]));
        losses
    }

    #[test]
    fn what_may_be_the_smallest_is_settled() {
        // The best by differences is not that of f32; a third is too far off for its error.
        let by_differences = [1.0, 1.0003, 1.2];
        let losses = settled(by_differences.map(Loss::Nearly).to_vec(), &by_differences, &[1.0002, 1.0001, 0.5]);
        assert_eq!(losses, [Loss::InF32(1.0002), Loss::InF32(1.0001), Loss::Nearly(1.2)]);
    }

    #[test]
    fn a_bound_within_the_error_is_made_whole() {
        // The first is off by a hundredth, so that one who was given up at 1.005 may be better: it is. Another is not.
        let losses = vec![Loss::Nearly(1.0), Loss::AtLeast(1.005), Loss::AtLeast(1.006), Loss::AtLeast(1.2)];
        let losses = settled(losses, &[1.0, 1.01, 1.1, 1.3], &[1.01, 1.002, 1.0, 1.0]);
        assert_eq!(losses, [Loss::InF32(1.01), Loss::InF32(1.002), Loss::Nearly(1.1), Loss::AtLeast(1.2)]);
    }

    #[test]
    fn what_is_in_f32_already_stays() {
        let losses = settled(vec![Loss::InF32(2.0), Loss::InF32(1.0)], &[], &[]);
        assert_eq!(losses, [Loss::InF32(2.0), Loss::InF32(1.0)]);
    }
}
