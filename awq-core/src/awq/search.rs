//! The scale search: one exponent per group of linears, judged by the output error of the module that they feed.

use std::num::NonZeroU16;
use std::ops::Range;

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;
use crate::capture::InputStats;
use crate::grid::Grid;
use crate::log::ScaleSearchLog;
use crate::method::{BlockCtx, MethodError};
use crate::model::layers::Linear;
use crate::model::{BlockParams, Inspect, LinearName, ScaleGroup};

/// Smallest scale before normalization (the official code's constant): a channel that is never active keeps a usable weight.
const MIN_SCALE: f64 = 1e-4;

/// What decides the full-precision outputs of a module beside the block; every candidate is compared with them.
#[derive(PartialEq)]
struct AskedOutputs {
    module: Inspect,
    arithmetic: Arithmetic,
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
    /// the activations is the same in both and so cancels. The scale found is applied to weights in f32.
    #[serde(default, skip_serializing_if = "Arithmetic::is_f32")]
    pub arithmetic: Arithmetic,
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
    /// Finds the scale of one group on the original block. Returns it, `[in]`, and what was seen.
    pub(super) fn run<B: QuantBackend>(
        &self,
        ctx: &BlockCtx<'_, B>,
        group: &ScaleGroup,
    ) -> Result<(Tensor<B, 1>, ScaleSearchLog), MethodError> {
        let input = ctx.input(group.input)?;
        let weight_mean = match self.formula {
            ScaleFormula::Activation => None,
            ScaleFormula::Duo => Some(relative_weight_mean(ctx, group)),
        };
        let n_ratios = self.n_ratios.get();
        let ratios: Vec<f64> = (0..n_ratios).map(|k| f64::from(k) / f64::from(n_ratios)).collect();
        let candidate = |ratio| candidate_scale(input.mean_abs(), weight_mean.clone(), ratio);
        // Every loss is complete, over all batches, before any two are compared.
        let losses: Vec<f64> = ratios
            .iter()
            .map(|&ratio| self.candidate_loss(ctx, group, input, &candidate(ratio)))
            .collect::<Result<_, _>>()?;
        let not_finite = || MethodError::NotFinite {
            block_idx: ctx.block_idx,
            linear: group.label(),
            what: "the loss of a candidate scale",
        };
        if losses.iter().any(|loss| !loss.is_finite()) {
            return Err(not_finite());
        }
        let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).ok_or_else(not_finite)?;
        let loss_before = match self.formula {
            ScaleFormula::Activation => losses[0],
            ScaleFormula::Duo => self.candidate_loss(ctx, group, input, &input.mean_abs().ones_like())?,
        };
        let log =
            ScaleSearchLog { group: group.label(), ratio: ratios[best], loss_before, loss_after: losses[best], losses };
        Ok((candidate(ratios[best]), log))
    }

    /// Mean squared error of the inspected output when the group's linears are quantized under `scale`.
    fn candidate_loss<B: QuantBackend>(
        &self,
        ctx: &BlockCtx<'_, B>,
        group: &ScaleGroup,
        input: &InputStats<B>,
        scale: &Tensor<B, 1>,
    ) -> Result<f64, MethodError> {
        let quantized = |name: LinearName, grid: &Grid| {
            B::fake_quant_scaled(B::in_f32(ctx.block.params().linear(name).weight.clone()), scale.clone(), grid)
        };
        if group.inspect == Inspect::Linear {
            let name = group.linears[0];
            let delta = quantized(name, ctx.grid(name)) - B::in_f32(ctx.block.params().linear(name).weight.clone());
            return Ok(linear_loss(delta, input.gram()));
        }
        let mut params = BlockParams { arithmetic: self.arithmetic, ..ctx.block.params().clone() };
        let original = ctx.block.with_params(params.clone());
        // A linear in full precision computes the same whatever the scale.
        let with_grid = |&name: &LinearName| Some((name, ctx.grids.of(name)?));
        for (name, grid) in group.linears.iter().filter_map(with_grid) {
            let bias = params.linear(name).bias.clone();
            params.linears.insert(name, Linear { weight: quantized(name, grid), bias });
        }
        let candidate = ctx.block.with_params(params);
        let inputs =
            ctx.inputs.ok_or(MethodError::NoCalibration { block_idx: ctx.block_idx, linear: group.input.0 })?;
        let asked = AskedOutputs { module: group.inspect, arithmetic: self.arithmetic };
        let outputs =
            || Ok(input.batches().iter().map(|x| group.inspect.run(original.as_ref(), x.clone())).collect::<Vec<_>>());
        let expected = inputs.shared().get::<_, _, MethodError>(asked, outputs)?;
        let (mut sum, mut n_values) = (0.0, 0);
        for (x, expected) in input.batches().iter().zip(expected.iter()) {
            let output = group.inspect.run(candidate.as_ref(), x.clone());
            n_values += output.shape().num_elements();
            sum += B::squared_distance(&output, expected);
        }
        Ok(sum / n_values as f64)
    }
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

/// Mean over tokens and outputs of `(x dW^T)^2`, from `G = X^T X / n_tokens`: `tr(dW G dW^T) / out`. As many operations as
/// one product with `in` tokens, however many tokens there are. `G` is its own transpose.
fn linear_loss<B: QuantBackend>(delta: Tensor<B, 2>, gram: Tensor<B, 2>) -> f64 {
    let [n_out, _] = delta.dims();
    B::dot_product(B::matmul_transposed(delta.clone(), gram), delta) / n_out as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::tensor::TensorData;

    use super::*;

    type Cpu = burn::backend::Flex;

    fn with_threads<T: Send>(n_threads: usize, run: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(run)
    }

    fn matrix(n: usize, seed: u32) -> Tensor<Cpu, 2> {
        let value = |i: usize| (((i as u32).wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        Tensor::from_data(TensorData::new((0..n * n).map(value).collect(), [n, n]), &Default::default())
    }

    /// Four times as many elements as burn-flex adds in one thread. 20 whole products a thread count would take minutes, so that
    /// the product is computed once at each.
    #[test]
    fn the_loss_of_a_real_weight_is_the_same_at_any_number_of_threads() {
        const N: usize = 4096;
        let (delta, gram) = (matrix(N, 1), matrix(N, 2));
        let whole = |threads| with_threads(threads, || linear_loss(delta.clone(), gram.clone())).to_bits();
        let expected = whole(1);
        assert_eq!(whole(2), expected);
        let product = Cpu::matmul_transposed(delta.clone(), gram);
        for n_threads in [1, 2] {
            let losses = with_threads(n_threads, || -> Vec<u64> {
                (0..20).map(|_| Cpu::dot_product(product.clone(), delta.clone()) / N as f64).map(f64::to_bits).collect()
            });
            assert!(losses.iter().all(|loss| *loss == expected), "{n_threads} threads: {losses:?}, {expected}");
        }
    }
}
