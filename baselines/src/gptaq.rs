//! GPTAQ: GPTQ with asymmetric calibration (Li et al., ICML 2025, arXiv 2504.02692).
//!
//! *What it does.* Where a block sees the outputs of quantized blocks, GPTQ makes its output right *for those inputs*. GPTAQ asks
//! for the output of the full-precision model: what a column's input has lost on the way is added to the columns after it.
//!
//! *When it wins.* In deep models at few bits, where inputs drift; needs `propagation = "quantized"` or
//! `"quantized_per_stage"`.
//!
//! *Cost.* A second stream of activations, in full precision, and two more matrix products per input.
//!
//! *Differences from the authors' code.* Corrections follow from the unquantized weights, as the derivation has it, and so
//! are one product before any column is rounded (there: from weights that earlier corrections have changed already, column
//! by column). Groups take their grids from the corrected weights. The losses in the record are GPTQ's: output errors on
//! the inputs as they are.

use awq_core::backend::QuantBackend;
use awq_core::capture::CaptureNeeds;
use awq_core::log::LinearLog;
use awq_core::method::{
    BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, MethodSettings, QuantMethod, quantize_each_linear,
};
use awq_core::quantized::QuantizedWeight;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gptq::Gptq;
use crate::linalg::{ROWS_PER_TASK, strict_upper_through, subtract_product};

/// GPTAQ and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gptaq {
    /// How the corrected weight is rounded.
    pub gptq: Gptq,
    /// Share of the correction that is applied (the authors' code: 0.25; 0 is GPTQ).
    pub alpha: f64,
}

impl MethodSettings for Gptaq {
    /// `GPTAQ`, with the departures of GPTQ: `GPTAQ act-order`.
    fn label(&self) -> String {
        self.gptq.label().replacen("GPTQ", "GPTAQ", 1)
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: true, full_precision_inputs: true }
    }

    fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(format!("alpha = {} is outside 0 ..= 1; the authors' code has 0.25", self.alpha));
        }
        self.gptq.check().map_err(|problem| format!("gptq.{problem}"))
    }
}

impl<B: QuantBackend> LinearMethod<B> for Gptaq {
    fn quantize_linear(&self, ctx: &LinearCtx<'_, B>) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        if ctx.input.is_none() {
            return Err(MethodError::NoCalibration { block_idx: ctx.block_idx, linear: ctx.linear.0 });
        }
        let entries = ctx.drift().ok_or_else(|| {
            ctx.unsupported(
                "GPTAQ corrects for inputs that drift, and here they do not; set calibration.propagation = \"quantized\" or \"quantized_per_stage\"",
            )
        })?;
        if entries.iter().any(|entry| !entry.is_finite()) {
            return Err(ctx.not_finite("an activation"));
        }
        self.gptq.quantize_corrected(ctx, Some(Drift { entries, alpha: self.alpha }))
    }
}

impl<B: QuantBackend> QuantMethod<B> for Gptaq {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        quantize_each_linear(self, ctx)
    }
}

/// How far the inputs of a linear have drifted.
pub(crate) struct Drift {
    /// `(F - X)^T X / n_tokens`, row-major `[in, in]`, `F` being the full-precision inputs.
    entries: Vec<f64>,
    alpha: f64,
}

impl Drift {
    /// `W + W P` for a row-major `W: [out, in]`, with `P = alpha triu(D U^T, 1) U` in the order of rounding and `U` GPTQ's
    /// inverse factor in that order: what each column's input has lost is added to the columns after it, as well as
    /// these can make up for it.
    pub(crate) fn correct(&self, weight: &[f32], order: &[u32], factor: &[f32]) -> Vec<f32> {
        let n = order.len();
        let entry = |at: usize| -self.alpha * self.entries[order[at / n] as usize * n + order[at % n] as usize];
        let negated: Vec<f32> = (0..n * n).map(|at| entry(at) as f32).collect();
        let correction = strict_upper_through(&negated, factor, n);
        let mut corrected = weight.to_vec();
        corrected.par_chunks_mut(ROWS_PER_TASK * n).for_each(|rows| {
            let ordered: Vec<f32> =
                rows.chunks(n).flat_map(|row| order.iter().map(|&column| row[column as usize])).collect();
            let mut sum = ordered.clone();
            subtract_product(&mut sum, &ordered, &correction, n, 0..n);
            for (row, sum) in rows.chunks_mut(n).zip(sum.chunks(n)) {
                order.iter().zip(sum).for_each(|(&column, &value)| row[column as usize] = value);
            }
        });
        corrected
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZeroU16;

    use awq_core::backend::float_vec;
    use awq_core::method::Precision;

    use super::*;
    use crate::gptq::{ColumnOrder, GroupGrid, RangeSearch};
    use crate::testing::{Case, grid, inputs, noise, on_threads};

    fn gptaq(order: ColumnOrder, alpha: f64) -> Gptaq {
        let gptq = Gptq {
            damp: 0.01,
            block_size: NonZeroU16::new(16).unwrap(),
            order,
            group_grid: GroupGrid::OriginalWeights,
            range: RangeSearch::MinMax,
            hessian: Precision::F64,
        };
        Gptaq { gptq, alpha }
    }

    /// A case whose inputs have drifted: what the linear sees is a smaller, noisy copy of the full-precision inputs.
    /// Returns the full-precision inputs too.
    fn drifted(n_out: usize) -> (Case, Vec<f32>) {
        let mut case = Case::new(n_out, 64, 400, grid(3, 16));
        let full_precision = case.input.batches().to_vec();
        let mut noise = noise(11);
        let full = float_vec(full_precision[0].clone());
        let rows = full.iter().map(|x| 0.8 * x + noise()).collect();
        case.input = inputs(rows, 64).with_full_precision(full_precision);
        (case, full)
    }

    /// Sum of squares of `F W^T - X Q^T`: the output error against the full-precision model.
    fn error_against_full_precision(case: &Case, full: &[f32], quantized: &QuantizedWeight) -> f64 {
        let (seen, restored) = (float_vec(case.input.batches()[0].clone()), quantized.dequantize());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let tokens = full.chunks(64).zip(seen.chunks(64));
        let error = |(full, seen): (&[f32], &[f32])| -> f64 {
            let rows = case.weight.chunks(64).zip(restored.chunks(64));
            rows.map(|(w, q)| (dot(full, w) - dot(seen, q)).powi(2)).sum()
        };
        tokens.map(error).sum()
    }

    #[test]
    fn it_comes_closer_to_the_full_precision_model_than_gptq() {
        let (case, full) = drifted(24);
        for order in [ColumnOrder::Natural, ColumnOrder::Activation] {
            let errors = [0.0, 0.25, 1.0].map(|alpha| {
                let (quantized, _) = gptaq(order, alpha).quantize_linear(&case.ctx()).unwrap();
                error_against_full_precision(&case, &full, &quantized)
            });
            assert!(errors[1] < errors[0] && errors[2] < errors[1], "{order:?}: {errors:?}");
        }
    }

    #[test]
    fn without_correction_or_drift_it_is_gptq() {
        let (case, _) = drifted(8);
        let (expected, _) = gptaq(ColumnOrder::Natural, 0.0).gptq.quantize_linear(&case.ctx()).unwrap();
        let (found, _) = gptaq(ColumnOrder::Natural, 0.0).quantize_linear(&case.ctx()).unwrap();
        assert_eq!(found, expected);
        let same = case.input.batches().to_vec();
        let case = Case { input: inputs(float_vec(same[0].clone()), 64).with_full_precision(same), ..case };
        let (found, _) = gptaq(ColumnOrder::Natural, 1.0).quantize_linear(&case.ctx()).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn threads_do_not_matter() {
        let on =
            |n| on_threads(n, || gptaq(ColumnOrder::Activation, 0.25).quantize_linear(&drifted(40).0.ctx()).unwrap().0);
        assert_eq!(on(1), on(2));
    }

    #[test]
    fn inputs_that_cannot_drift_are_an_error() {
        let case = Case::new(4, 32, 50, grid(3, 16));
        assert_eq!(
            gptaq(ColumnOrder::Natural, 0.25).quantize_linear(&case.ctx()).unwrap_err().to_string(),
            "block 3, mlp.down_proj: GPTAQ corrects for inputs that drift, and here they do not; set calibration.propagation = \"quantized\" or \"quantized_per_stage\""
        );
        let problem = gptaq(ColumnOrder::Natural, 2.0).check().unwrap_err();
        assert_eq!(problem, "alpha = 2 is outside 0 ..= 1; the authors' code has 0.25");
        assert_eq!(gptaq(ColumnOrder::Activation, 0.25).label(), "GPTAQ act-order");
    }
}
