//! Incoherence processing: scaling of the channels, then rotation of both sides (QuIP, section 4 and algorithm 1).

use std::sync::Arc;

use awq_core::backend::QuantBackend;
use awq_core::method::LinearCtx;
use awq_core::rotation::Rotation;
use awq_core::transform::{RotatedWeight, WeightTransform};

use super::IncoherenceSettings;
use crate::hessian::Hessian;

/// Bounds of the channel scale around its geometric mean: what f16 holds with room to spare.
const SCALE_BOUND: f64 = 1e4;
/// Smallest diagonal entry that a scale is computed from (the authors' constant).
const MIN_DIAGONAL: f64 = 1e-8;
/// Added to the diagonal before rotation, relative to its mean (the authors' constant).
const RIDGE: f64 = 1e-2;

/// A rounding problem, and how its solution becomes a weight again.
pub(super) struct Incoherent {
    /// Row-major `[out, in]`.
    pub(super) weight: Vec<f32>,
    pub(super) hessian: Hessian,
    pub(super) transform: WeightTransform,
}

impl IncoherenceSettings {
    /// Scales and rotates a row-major `[out, in]` weight and its Hessian.
    pub(super) fn process<B: QuantBackend>(
        &self,
        ctx: &LinearCtx<'_, B>,
        mut weight: Vec<f32>,
        hessian: &Hessian,
    ) -> Incoherent {
        let [n_out, n_in] = ctx.weight.dims();
        let input_scale = channel_scale(&weight, hessian).map(|scale| ctx.grid.scale_dtype.round(scale as f32));
        let input_scale: Vec<f32> = input_scale.collect();
        for row in weight.chunks_mut(n_in) {
            row.iter_mut().zip(&input_scale).for_each(|(w, scale)| *w *= scale);
        }
        let mut entries = hessian.matrix();
        for (row, row_scale) in entries.chunks_mut(n_in).zip(&input_scale) {
            row.iter_mut().zip(&input_scale).for_each(|(h, scale)| *h /= f64::from(row_scale * scale));
        }
        // To a mean diagonal of 1, plus the ridge.
        let mean = (0..n_in).map(|i| entries[i * n_in + i]).sum::<f64>() / n_in.max(1) as f64;
        entries.iter_mut().for_each(|h| *h /= mean);
        (0..n_in).for_each(|i| entries[i * n_in + i] += RIDGE);

        let output = Rotation::new(self.rotation, n_out, ctx.seed(self.seed, "output rotation"));
        let input = Rotation::new(self.rotation, n_in, ctx.seed(self.seed, "input rotation"));
        input.apply_rows(&mut weight);
        let weight = output.apply_columns(&weight, n_in);
        input.conjugate(&mut entries);
        let hessian = Hessian::without_dead(Arc::new(entries), n_in);
        let transform = WeightTransform::Rotated(Box::new(RotatedWeight { output, input, input_scale }));
        Incoherent { weight, hessian, transform }
    }
}

/// `(H_ii / (W^T W)_ii)^(1/4)`: after scaling the weight's columns by it and the inputs by its inverse, both have the same
/// diagonal. Normalised to a geometric mean of 1.
fn channel_scale(weight: &[f32], hessian: &Hessian) -> impl Iterator<Item = f64> {
    let mut squares = vec![0.0_f64; hessian.n];
    for row in weight.chunks(hessian.n) {
        squares.iter_mut().zip(row).for_each(|(square, &w)| *square += f64::from(w).powi(2));
    }
    // No entry of a matrix of squares is larger than the largest of its diagonal.
    let largest = hessian.diagonal.iter().fold(0.0_f64, |max, h| max.max(h.abs()));
    let ratio = |(h, square): (&f64, &f64)| (h / largest).max(MIN_DIAGONAL) / square.max(MIN_DIAGONAL);
    let scale: Vec<f64> = hessian.diagonal.iter().zip(&squares).map(|pair| ratio(pair).powf(0.25)).collect();
    let mean = (scale.iter().map(|scale| scale.ln()).sum::<f64>() / scale.len().max(1) as f64).exp();
    scale.into_iter().map(move |scale| (scale / mean).clamp(SCALE_BOUND.recip(), SCALE_BOUND))
}
