//! GPTAQ: GPTQ with asymmetric calibration (Li et al., ICML 2025, arXiv 2504.02692).
//!
//! *What it does.* Where a block sees the outputs of quantized blocks, GPTQ makes its output right *for those inputs*. GPTAQ asks
//! for the output of the full-precision model: what a column's input has lost on the way is added to the columns after it.
//!
//! *When it wins.* In deep models at few bits, where inputs drift; needs `propagation = "quantized"` or
//! `"quantized_per_stage"`.
//!
//! *Cost.* A second stream of activations, in full precision; two more matrix products for the corrections of a linear, and
//! in its column loop twice the multiplications.
//!
//! *Reference.* `fasterquant` of the authors' code: `P = alpha triu(D U^T, 1) U` with `D = (F - X)^T X`, and each column adds
//! its weight times its row of `P` to the columns after it. Inside a column block that is the weight before rounding, across
//! column blocks it is the rounded one (there, the block has been overwritten by then), so `block_size` changes the result.
//!
//! *Differences from the authors' code.* Those of GPTQ. Their code has GPTQ's `block_start_weights` and
//! `original_weights`; with `updated_weights` a column block ends where a group starts. The losses in the record are GPTQ's:
//! output errors on the inputs as they are.

use awq_core::backend::QuantBackend;
use awq_core::capture::CaptureNeeds;
use awq_core::log::LinearLog;
use awq_core::method::{
    BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, MethodSettings, QuantMethod, WorkingShapes,
    quantize_each_linear,
};
use awq_core::quantized::{QuantizedWeight, StoredParts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gptq::Gptq;
use crate::linalg::strict_upper_through;

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

    /// Beside what GPTQ holds: how far each input has drifted, twice while it is used, and the corrections that follow.
    fn working_bytes(&self, shapes: &WorkingShapes) -> u64 {
        let drifts: u64 = shapes.inputs.iter().map(|&n| 8 * (n * n) as u64).sum();
        self.gptq.working_bytes(shapes) + drifts + 12 * shapes.largest_gram()
    }

    fn stores(&self) -> StoredParts {
        self.gptq.stores()
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
        self.gptq.quantize_with_drift(ctx, Some(Drift { entries, alpha: self.alpha }))
    }
}

impl<B: QuantBackend> QuantMethod<B> for Gptaq {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        // Once inputs have drifted, the router sends other tokens to an expert than in the full-precision model.
        if let Some(facts) = ctx.linears.iter().find(|facts| facts.expert.is_some()) {
            return Err(ctx.linear(facts).unsupported(
                "GPTAQ compares what a linear sees with what it sees in the full-precision model, and an expert sees other \
                 tokens there; use gptq",
            ));
        }
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
    /// `P = alpha triu(D U^T, 1) U`, row-major `[in, in]`, in the order of rounding: `U` is GPTQ's inverse factor in that order.
    /// What a column's input has lost, spread over the columns after it as well as these can make up for it.
    pub(crate) fn corrections(&self, order: &[u32], factor: &[f32]) -> Vec<f32> {
        let n = order.len();
        let entry = |at: usize| self.alpha * self.entries[order[at / n] as usize * n + order[at % n] as usize];
        let drift: Vec<f32> = (0..n * n).map(|at| entry(at) as f32).collect();
        strict_upper_through(&drift, factor, n)
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

    fn product(n: usize, a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        (0..n * n).map(|at| (0..n).map(|k| a(at / n, k) * b(k, at % n)).sum()).collect()
    }

    /// The upper triangular `U` with `U^T U = H^-1`, by elimination and a textbook Cholesky factorisation of the inverse.
    fn upper_factor_of_the_inverse(h: &[f64], n: usize) -> Vec<f64> {
        let mut rows: Vec<Vec<f64>> = h.chunks(n).map(<[f64]>::to_vec).collect();
        for (i, row) in rows.iter_mut().enumerate() {
            row.extend((0..n).map(|j| if i == j { 1.0 } else { 0.0 }));
        }
        for pivot in 0..n {
            let scale = rows[pivot][pivot];
            rows[pivot].iter_mut().for_each(|x| *x /= scale);
            let pivot_row = rows[pivot].clone();
            for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
                let times = row[pivot];
                row.iter_mut().zip(&pivot_row).for_each(|(x, p)| *x -= times * p);
            }
        }
        let mut u = vec![0.0; n * n];
        for i in 0..n {
            for j in i..n {
                let rest = rows[i][n + j] - (0..i).map(|k| u[k * n + i] * u[k * n + j]).sum::<f64>();
                u[i * n + j] = if i == j { rest.sqrt() } else { rest / u[i * n + i] };
            }
        }
        u
    }

    /// The codes by the authors' formulas, natural order and grids of the unquantized weights, a row and a column at a time
    /// in f64.
    fn codes_by_the_formulas(case: &Case, method: &Gptaq) -> Vec<u8> {
        let (n, block) = (case.n_in, usize::from(method.gptq.block_size.get()));
        let (mut h, d) = (case.input.gram_f64().to_vec(), case.input.drift().unwrap());
        let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
        (0..n).for_each(|i| h[i * n + i] += method.gptq.damp * mean);
        let u = upper_factor_of_the_inverse(&h, n);
        let through = product(n, |i, k| d[i * n + k], |k, j| u[j * n + k]);
        let above = |i: usize, k: usize| if k > i { through[i * n + k] } else { 0.0 };
        let p = product(n, above, |k, j| method.alpha * u[k * n + j]);
        let mut codes = Vec::new();
        for row in case.weight.chunks(n) {
            let params: Vec<_> = row.chunks(16).map(|group| case.grid.group_params_of(group)).collect();
            let mut w: Vec<f64> = row.iter().map(|&w| f64::from(w)).collect();
            for start in (0..n).step_by(block) {
                let end = (start + block).min(n);
                let mut rounded = Vec::new();
                let mut errors = Vec::new();
                for i in start..end {
                    codes.push(case.grid.nearest_code(w[i] as f32, &params[i / 16]));
                    let (before, q) = (w[i], f64::from(case.grid.weight(codes[codes.len() - 1], &params[i / 16])));
                    let error = (before - q) / u[i * n + i];
                    (i..end).for_each(|j| w[j] += before * p[i * n + j] - error * u[i * n + j]);
                    rounded.push(q);
                    errors.push(error);
                }
                for (i, (q, error)) in (start..end).zip(rounded.iter().zip(&errors)) {
                    (end..n).for_each(|j| w[j] += q * p[i * n + j] - error * u[i * n + j]);
                }
            }
        }
        codes
    }

    #[test]
    fn codes_are_those_of_the_authors_formulas() {
        let (case, _) = drifted(24);
        for (block_size, alpha) in [(16, 0.25), (24, 1.0), (64, 0.25)] {
            let mut method = gptaq(ColumnOrder::Natural, alpha);
            method.gptq.block_size = NonZeroU16::new(block_size).unwrap();
            let expected = codes_by_the_formulas(&case, &method);
            let (found, _) = method.quantize_linear(&case.ctx()).unwrap();
            let differing = found.codes.iter().zip(&expected).filter(|(a, b)| a != b).count();
            // A tie that the last bit decides moves the rest of its row.
            assert!(differing <= expected.len() / 50, "{differing} of {} codes differ", expected.len());
            let (gptq, _) = method.gptq.quantize_linear(&case.ctx()).unwrap();
            let of_gptq = gptq.codes.iter().zip(&expected).filter(|(a, b)| a != b).count();
            assert!(of_gptq > expected.len() / 20, "GPTQ's own codes differ in {of_gptq} places only");
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
    fn the_unit_of_the_inputs_does_not_matter_whatever_is_dead() {
        for (order, n_dead) in [(ColumnOrder::Natural, 0), (ColumnOrder::Natural, 20), (ColumnOrder::Activation, 20)] {
            // A dead channel is zero in the inputs as they are; in full precision it need not be.
            let quantize = |unit: f32| {
                let (case, full) = drifted(8);
                let full: Vec<f32> = full.iter().map(|x| unit * x).collect();
                let full = inputs(full, 64).batches().to_vec();
                let case = case.in_unit(unit, |i| i * 29 % 64 < n_dead);
                let case = Case { input: case.input.with_full_precision(full), ..case };
                gptaq(order, 0.25).quantize_linear(&case.ctx()).unwrap()
            };
            let (expected, log) = quantize(1.0);
            for unit in [1.0 / 128.0, 128.0] {
                assert_eq!(quantize(unit).0, expected, "{order:?}, {n_dead} dead, inputs times {unit}");
            }
            for unit in [0.01, 100.0] {
                let (found, other) = quantize(unit);
                let differing = found.codes.iter().zip(&expected.codes).filter(|(a, b)| a != b).count();
                assert!(differing <= found.codes.len() / 100, "inputs times {unit}: {differing} codes differ");
                assert_eq!(other.notes, log.notes);
            }
            let weights = expected.dequantize();
            assert!((0..64).filter(|i| i * 29 % 64 < n_dead).all(|i| weights.chunks(64).all(|row| row[i] == 0.0)));
        }
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
