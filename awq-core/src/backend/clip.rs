//! AWQ's clip search in plain tensor operations: the definition that [`crate::host::clip`] is tested against, and what GPU
//! backends run.

use burn::tensor::Tensor;

use super::{QuantBackend, float_vec};
use crate::grid::Grid;

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

/// The search in tensor operations: the error of group `g` in a row is `d^T G_g d` with `d = Q(clamp(w)) - w`.
pub(super) fn clip_search<B: QuantBackend>(
    weight: Tensor<B, 2>,
    grams: &[Tensor<B, 2>],
    grid: &Grid,
    factors: &[f64],
) -> ClipOutcome<B> {
    let [n_out, n_in] = weight.dims();
    let mean_over_rows =
        |errors: Tensor<B, 2>| float_vec(errors).into_iter().map(f64::from).sum::<f64>() / n_out as f64;
    // Parts are rounded with the scale of the whole matrix, where there is one.
    let fitted = grid.values.is_some().then(|| grid.fitted(&float_vec(weight.clone())));
    let fake_quant = |part: Tensor<B, 2>| match &fitted {
        None => B::fake_quant(part, grid),
        Some(fitted) => super::quantize::fake_quant_fitted(part, fitted),
    };
    let (mut weights, mut bounds) = (Vec::new(), Vec::new());
    let (mut loss_before, mut loss_after) = (0.0, 0.0);
    let groups: Vec<_> = grid.granularity.columns(n_in).zip(grams).collect();
    // Groups of one size are searched at once, each in rows of its own: `[n_groups, out, group]`.
    for groups in groups.chunk_by(|(a, _), (b, _)| a.len() == b.len()) {
        let (first, n_groups, len) = (groups[0].0.start, groups.len(), groups[0].0.len());
        let part = weight.clone().narrow(1, first, n_groups * len);
        let part = part.reshape([n_out, n_groups, len]).swap_dims(0, 1).reshape([n_groups * n_out, len]);
        let gram: Tensor<B, 3> = Tensor::stack(groups.iter().map(|(_, gram)| (*gram).clone()).collect(), 0);
        let full = part.clone().abs().max_dim(1);
        let clamped = |bound: &Tensor<B, 2>| part.clone().min_pair(bound.clone()).max_pair(bound.clone().neg());
        let error = |bound: &Tensor<B, 2>| {
            let delta = fake_quant(clamped(bound)) - part.clone();
            let product = B::matmul(delta.clone().reshape([n_groups, n_out, len]), gram.clone());
            (product.reshape([n_groups * n_out, len]) * delta).sum_dim(1)
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
        let in_rows = |part: Tensor<B, 2>, len: usize| {
            part.reshape([n_groups, n_out, len]).swap_dims(0, 1).reshape([n_out, n_groups * len])
        };
        weights.push(in_rows(clamped(&best), len));
        bounds.push(in_rows(best, 1));
    }
    ClipOutcome { weight: Tensor::cat(weights, 1), bound: Tensor::cat(bounds, 1), loss_before, loss_after }
}
