//! HQQ, Half-Quadratic Quantization (Badri and Shaji, 2023, <https://mobiusml.github.io/hqq_blog/>).
//!
//! *What it does.* Keeps the scale of plain rounding and moves each group's zero point, a real number, such that the error of
//! the weights is small in an `lp` norm with `p < 1`: a few large errors are let be for the sake of many small ones.
//! Half-quadratic splitting alternates between a shrunken copy of the error and the zero point that fits it.
//!
//! *When it wins.* Where there is no calibration data: it looks at weights alone, and is the strongest baseline that does.
//!
//! *Cost.* Some passes over the weights.
//!
//! *Reference.* The optimiser of the authors' code (`optimize_weights_proximal`).
//!
//! *Differences from it* (package `hqq` 0.2.8.post1).
//!
//! - A group stops on its own when its mean absolute error no longer falls, there the whole matrix does.
//! - The best zero point seen is kept, that of plain rounding included. There it is the one after the last step, whose error
//!   nobody has looked at.
//! - `kappa` is applied; that version reads it and leaves `beta` as it is, as `kappa = 1` does here.
//! - At 4 bits the package rounds the zero point before the first step, here it does not.
//! - Zero points are rounded to the type they are stored in before they are judged.
//! - A range narrower than `1e-5` is widened to it. There the step of one below `1e-4` is 1, and no step is below `1/20000`.
//!
//! `beta` is in units of weights, here as there: weights times 2 are another problem.

mod group;
mod power;

use std::num::NonZeroU16;

use awq_core::backend::{QuantBackend, float_vec};
use awq_core::capture::CaptureNeeds;
use awq_core::grid::{Grid, GroupParams, Symmetry};
use awq_core::log::LinearLog;
use awq_core::method::{
    BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, MethodSettings, QuantMethod, quantize_each_linear,
};
use awq_core::quantized::{QuantizedWeight, StoredParts, ZeroPoints};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::group::{Group, Shrink};

/// HQQ and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hqq {
    /// The `p` of the norm (the authors' code: 0.7).
    pub lp_norm: f64,
    /// Weight of the splitting's penalty at the start (the authors' code: 10).
    pub beta: f64,
    /// Factor on `beta` after each iteration (the authors' code: 1.01).
    pub kappa: f64,
    /// Most iterations (the authors' code: 20).
    pub n_iterations: NonZeroU16,
    /// What a zero point may be.
    pub zero_points: HqqZeroPoints,
}

/// What a zero point may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HqqZeroPoints {
    /// Any number, stored like a scale (the authors' code).
    Real,
    /// A code, so that every kernel and checkpoint format can hold the result.
    Codes,
}

impl Hqq {
    /// The numbers of the authors' code.
    pub const AUTHORS: Self = Self {
        lp_norm: 0.7,
        beta: 10.0,
        kappa: 1.01,
        n_iterations: NonZeroU16::new(20).expect("20 is not 0"),
        zero_points: HqqZeroPoints::Real,
    };
}

impl MethodSettings for Hqq {
    fn label(&self) -> String {
        match self.zero_points {
            HqqZeroPoints::Real => "HQQ".into(),
            HqqZeroPoints::Codes => "HQQ (integer zero points)".into(),
        }
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: false, ..CaptureNeeds::default() }
    }

    fn stores(&self) -> StoredParts {
        StoredParts { has_real_zero_points: self.zero_points == HqqZeroPoints::Real, ..StoredParts::default() }
    }

    fn supports(&self, grid: &Grid) -> Result<(), String> {
        if grid.values.is_some() {
            return Err("HQQ moves zero points, and a table of values has none; choose grids.bits".into());
        }
        if grid.symmetry != Symmetry::Asymmetric {
            return Err("HQQ moves zero points; set grids.symmetry = \"asymmetric\"".into());
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if !(self.lp_norm > 0.0 && self.lp_norm <= 1.0) {
            return Err(format!("lp_norm = {} is outside 0 .. 1; the authors' code has 0.7", self.lp_norm));
        }
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(format!("beta = {} is not positive; the authors' code has 10", self.beta));
        }
        if !(self.kappa >= 1.0 && self.kappa.is_finite()) {
            return Err(format!("kappa = {} is below 1; the authors' code has 1.01", self.kappa));
        }
        Ok(())
    }

    fn quantizes_head(&self) -> bool {
        true
    }
}

impl<B: QuantBackend> LinearMethod<B> for Hqq {
    fn quantize_linear(&self, ctx: &LinearCtx<'_, B>) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        self.supports(ctx.grid).map_err(|problem| ctx.unsupported(problem))?;
        let weight = float_vec(ctx.weight.clone());
        if weight.iter().any(|w| !w.is_finite()) {
            return Err(ctx.not_finite("a weight"));
        }
        let [n_out, n_in] = ctx.weight.dims();
        let groups: Vec<&[f32]> = ctx.grid.granularity.groups(n_out, n_in).of(&weight).collect();
        let solved: Vec<Solved> = groups.par_iter().map(|group| self.solve(group, ctx.grid)).collect();
        let codes = groups.iter().zip(&solved).flat_map(|(group, solved)| {
            let params = GroupParams { scale: solved.scale, zero_point: solved.zero_point };
            group.iter().map(move |&w| ctx.grid.nearest_code_of_real_zero(w, &params))
        });
        let zero_points = solved.iter().map(|solved| solved.zero_point);
        let quantized = QuantizedWeight {
            n_out,
            n_in,
            grid: *ctx.grid,
            codes: codes.collect(),
            scale: solved.iter().map(|solved| solved.scale).collect(),
            zero_point: match self.zero_points {
                HqqZeroPoints::Real => ZeroPoints::Real(zero_points.collect()),
                HqqZeroPoints::Codes => ZeroPoints::Codes(zero_points.map(|zero| zero as u8).collect()),
            },
            transform: awq_core::transform::WeightTransform::Identity,
        };
        let mean = |sum: fn(&Solved) -> f64| Some(solved.iter().map(sum).sum::<f64>() / weight.len().max(1) as f64);
        let log = LinearLog {
            linear: ctx.linear.0.into(),
            weight_mse: crate::weight_mse(&weight, &quantized),
            loss_before: mean(|solved| solved.error_before),
            loss_after: mean(|solved| solved.error_after),
            ..LinearLog::default()
        };
        Ok((quantized, log))
    }
}

impl<B: QuantBackend> QuantMethod<B> for Hqq {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        quantize_each_linear(self, ctx)
    }

    fn of_head(&self) -> Option<&dyn LinearMethod<B>> {
        Some(self)
    }
}

/// What was found for one group. Errors are sums of absolute values.
struct Solved {
    scale: f32,
    zero_point: f32,
    error_before: f64,
    error_after: f64,
}

impl Hqq {
    fn solve(&self, weights: &[f32], grid: &Grid) -> Solved {
        let plain = grid.group_params_of(weights);
        let scale = plain.scale;
        let group = Group { weights, scale, codes: grid.code_range() };
        let error_before = group.absolute_error(plain.zero_point);
        let mut best = Solved { scale, zero_point: plain.zero_point, error_before, error_after: error_before };
        let mut shrink = Shrink { power: self.lp_norm - 1.0, beta: self.beta };
        let mut zero_point = self.stored(start(weights, scale, grid), grid);
        let mut last_error = f64::INFINITY;
        for _ in 0..self.n_iterations.get() {
            let error = group.absolute_error(zero_point);
            if error < best.error_after {
                (best.zero_point, best.error_after) = (zero_point, error);
            }
            if error >= last_error {
                break;
            }
            last_error = error;
            zero_point = self.stored(group.next(zero_point, shrink), grid);
            shrink.beta *= self.kappa;
        }
        best
    }

    /// The nearest zero point that can be stored.
    fn stored(&self, zero_point: f32, grid: &Grid) -> f32 {
        match self.zero_points {
            HqqZeroPoints::Real => grid.scale_dtype.round(zero_point),
            HqqZeroPoints::Codes => zero_point.round_ties_even().clamp(0.0, f32::from(grid.bits.max_code())),
        }
    }
}

/// The zero point that puts code 0 on the group's minimum.
fn start(group: &[f32], scale: f32, grid: &Grid) -> f32 {
    let min = group.iter().fold(f32::INFINITY, |a, &b| a.min(b));
    let min = if grid.range_includes_zero { min.min(0.0) } else { min };
    -min / scale
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use awq_core::grid::{Granularity, ScaleDtype};

    use super::*;
    use crate::rtn::Rtn;
    use crate::testing::{Case, grid, noise, on_threads};

    fn hqq(zero_points: HqqZeroPoints) -> Hqq {
        Hqq { lp_norm: 0.7, beta: 10.0, kappa: 1.01, n_iterations: NonZeroU16::new(20).unwrap(), zero_points }
    }

    #[test]
    fn never_worse_than_plain_rounding_in_its_own_error_and_often_better() {
        for bits in [2, 3, 4, 8] {
            for group_size in [0, 16, 24] {
                let case = Case::new(16, 64, 1, grid(bits, group_size));
                for zero_points in [HqqZeroPoints::Real, HqqZeroPoints::Codes] {
                    let (quantized, log) = hqq(zero_points).quantize_linear(&case.ctx()).unwrap();
                    let (before, after) = (log.loss_before.unwrap(), log.loss_after.unwrap());
                    assert!(after <= before, "{zero_points:?} {bits} bit g{group_size}: {after} above {before}");
                    let restored = quantized.dequantize();
                    let n = case.weight.len() as f64;
                    let error: f64 = restored.iter().zip(&case.weight).map(|(a, b)| f64::from((a - b).abs())).sum();
                    assert!((error / n - after).abs() < 1e-6 * after.max(1e-6), "the log does not tell the error");
                    if zero_points == HqqZeroPoints::Real && bits <= 4 {
                        assert!(after < before, "{bits} bit g{group_size}: {after} is not below {before}");
                    }
                }
            }
        }
    }

    #[test]
    fn weights_on_a_shifted_grid_are_restored_exactly() {
        // Steps of 1 from -2.5: plain rounding cannot hit them with a zero point that is a code, a real one can.
        let mut noise = noise(3);
        let mut case = Case::new(2, 64, 1, grid(3, 64));
        case.weight.iter_mut().for_each(|w| *w = ((noise() + 1.0) * 3.999).floor() - 2.5);
        case.weight[..8].copy_from_slice(&[-2.5, 4.5, -1.5, 3.5, 0.5, 1.5, 2.5, -0.5]);
        case.weight[64..66].copy_from_slice(&[-2.5, 4.5]);
        let (found, log) = hqq(HqqZeroPoints::Real).quantize_linear(&case.ctx()).unwrap();
        assert_eq!(found.zero_point, ZeroPoints::Real(vec![2.5, 2.5]));
        assert_eq!((found.dequantize(), log.loss_after), (case.weight.clone(), Some(0.0)));
        let (plain, _) = Rtn {}.quantize_linear(&case.ctx()).unwrap();
        assert_ne!(plain.dequantize(), case.weight);
    }

    #[test]
    fn zero_points_are_stored_in_the_type_of_the_scales() {
        let mut case = Case::new(4, 64, 1, grid(4, 32));
        let bits = |case: &Case, zero_points| {
            hqq(zero_points).quantize_linear(&case.ctx()).unwrap().0.stored_bits() - 4 * 64 * 4
        };
        assert_eq!(bits(&case, HqqZeroPoints::Real), 8 * (32 + 32));
        case.grid.scale_dtype = ScaleDtype::F16;
        assert_eq!(bits(&case, HqqZeroPoints::Real), 8 * (16 + 16));
        assert_eq!(bits(&case, HqqZeroPoints::Codes), 8 * (16 + 4));
        let (found, _) = hqq(HqqZeroPoints::Real).quantize_linear(&case.ctx()).unwrap();
        let ZeroPoints::Real(zero_points) = &found.zero_point else { panic!("{:?}", found.zero_point) };
        assert!(zero_points.iter().all(|&zero| case.grid.scale_dtype.round(zero) == zero));
    }

    #[test]
    fn one_group_for_the_matrix_constant_groups_and_threads() {
        let mut case = Case::new(40, 48, 1, grid(3, 16));
        case.weight[..16].fill(0.25);
        case.weight[16..32].fill(0.0);
        let quantize = |n| on_threads(n, || hqq(HqqZeroPoints::Real).quantize_linear(&case.ctx()).unwrap().0);
        let found = quantize(1);
        assert_eq!(found, quantize(2));
        assert!(found.dequantize()[..32].iter().all(|w| w.is_finite()));
        case.grid.granularity = Granularity::PerTensor;
        let (found, log) = hqq(HqqZeroPoints::Real).quantize_linear(&case.ctx()).unwrap();
        assert_eq!(found.scale.len(), 1);
        assert!(log.loss_after <= log.loss_before);
    }

    #[test]
    fn settings_and_grids_that_make_no_sense_are_refused() {
        let mut case = Case::new(4, 32, 1, grid(4, 16));
        case.grid.symmetry = Symmetry::SymmetricFullRange;
        assert_eq!(
            hqq(HqqZeroPoints::Real).quantize_linear(&case.ctx()).unwrap_err().to_string(),
            "block 3, mlp.down_proj: HQQ moves zero points; set grids.symmetry = \"asymmetric\""
        );
        let problem = |hqq: Hqq| hqq.check().unwrap_err();
        let good = hqq(HqqZeroPoints::Codes);
        assert_eq!(good.check(), Ok(()));
        assert!(problem(Hqq { lp_norm: 1.5, ..good.clone() }).starts_with("lp_norm = 1.5 is outside 0 .. 1"));
        assert!(problem(Hqq { beta: 0.0, ..good.clone() }).starts_with("beta = 0 is not positive"));
        assert!(problem(Hqq { kappa: f64::NAN, ..good }).starts_with("kappa = NaN is below 1"));
    }
}
