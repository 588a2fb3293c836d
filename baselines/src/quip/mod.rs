//! QuIP, Quantization with Incoherence Processing (Chee et al., NeurIPS 2023, arXiv 2307.13304).
//!
//! *What it does.* Rotates weight and Hessian by random orthogonal matrices, so that no weight and no direction of the inputs
//! stands out, then rounds column by column with linear feedback (LDLQ, from the LDL decomposition of the Hessian). LDLQ
//! without rotation is GPTQ from the last column to the first.
//!
//! *When it wins.* At 2 bits, and with a single scale a matrix; rotated weights have no outliers that a group's scale would have
//! to follow.
//!
//! *Cost.* As GPTQ, and two rotations of every weight whenever it is restored: an ordinary kernel cannot run it.
//!
//! *Grids.* The paper gives the whole matrix one symmetric scale, 2.4 times its root mean square, and zero lies
//! between two codes: `one_scale`, which takes only the bits of the experiment's grid. `grouped` rounds the rotated weight onto the experiment's own grid,
//! so that methods can be compared on the same number of stored bits.
//!
//! *Differences from the authors' code.* Rounding runs in units of weights, not codes, and nothing is rounded to f16 on the
//! way. The channel scale is normalised to a geometric mean of 1 and stored in the grid's scale type. A rotation's factors
//! and seeds are this project's own. Greedy passes stay on the grid at every step (there codes are clamped after each pass,
//! and the running error is not told). A dead column is treated before rotation, as in GPTQ: its weights are 0, its diagonal
//! is the mean over live columns (there it is found after rotation, which leaves none). The diagonal that a channel's scale
//! is computed from has the authors' floors: `1e-8` of the largest entry of the Hessian, and `1e-8` for the sum of squares
//! of the weights, which is in units of weights.

mod incoherence;
mod rounding;

use std::num::NonZeroU16;

use awq_core::awq::Nearest;
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::capture::{CaptureNeeds, GatheredOfBlock};
use awq_core::grid::{Granularity, Grid, GroupParams, RANGE_FLOOR, Symmetry};
use awq_core::grids::BlockGrids;
use awq_core::log::LinearLog;
use awq_core::method::{
    BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, MethodSettings, Precision, QuantMethod, WorkingShapes,
    gather_of_quantized, quantize_each_linear,
};
use awq_core::model::BlockLayout;
use awq_core::progress::Part;
use awq_core::quantized::{QuantizedWeight, StoredParts, ZeroPoints};
use awq_core::rotation::RotationKind;
use awq_core::transform::WeightTransform;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::incoherence::Incoherent;
use self::rounding::Rounding;
use crate::hessian::{Damped, Hessian};
use crate::linalg::{ldl_feedback, shares};

/// QuIP and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quip {
    /// What is done to weight and Hessian before rounding.
    pub incoherence: Incoherence,
    /// How columns are rounded.
    pub rounding: QuipRounding,
    /// Which codes exist.
    pub grid: QuipGrid,
    /// What is added to the diagonal of the Hessian, relative to its mean over live columns (the authors' code: 0.01).
    pub damp: f64,
}

/// What is done to weight and Hessian before rounding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Incoherence {
    /// Nothing: LDLQ alone.
    Off,
    /// Channels are scaled such that weight and Hessian have the same diagonal, then both sides are rotated.
    On(IncoherenceSettings),
}

/// See [`Incoherence::On`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IncoherenceSettings {
    /// The factors of the rotations: `kronecker` (QuIP) or `hadamard` (as in QuIP#).
    pub rotation: RotationKind,
    /// With block and linear, decides the rotations.
    pub seed: u64,
}

/// How columns are rounded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuipRounding {
    /// Linear feedback from the last column to the first.
    Ldlq,
    /// LDLQ in ascending order of the Hessian's diagonal (the largest is rounded first), then greedy passes: each column in
    /// turn goes to its best code, all others fixed.
    LdlqRg(GreedyPasses),
}

/// See [`QuipRounding::LdlqRg`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GreedyPasses {
    /// Most passes; they end where no code changes.
    pub n_passes: NonZeroU16,
}

/// Which codes exist; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuipGrid {
    /// One scale a matrix, zero between two codes.
    OneScale,
    /// The experiment's grid.
    Grouped,
}

impl MethodSettings for Quip {
    /// `QuIP`, with what makes it another method: `QuIP-RG (Hadamard, grouped grid)`. `LDLQ` without rotation.
    fn label(&self) -> String {
        let name = if self.incoherence == Incoherence::Off { "LDLQ" } else { "QuIP" };
        let rounding = if self.rounding == QuipRounding::Ldlq { "" } else { "-RG" };
        let mut departures = Vec::new();
        if let Incoherence::On(IncoherenceSettings { rotation: RotationKind::Hadamard, .. }) = self.incoherence {
            departures.push("Hadamard");
        }
        if self.grid == QuipGrid::Grouped {
            departures.push("grouped grid");
        }
        let departures = if departures.is_empty() { String::new() } else { format!(" ({})", departures.join(", ")) };
        format!("{name}{rounding}{departures}")
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: true, ..CaptureNeeds::default() }
    }

    fn gathers(&self, layout: &BlockLayout, grids: &BlockGrids) -> GatheredOfBlock {
        gather_of_quantized(layout, grids, [Precision::F64.gram()])
    }

    /// The matrix, rotated, and its factors, in f64, and five copies of a weight.
    fn working_bytes(&self, shapes: &WorkingShapes) -> u64 {
        32 * shapes.largest_gram() + 20 * shapes.largest_linear()
    }

    fn stores(&self) -> StoredParts {
        StoredParts {
            has_real_zero_points: self.grid == QuipGrid::OneScale,
            beside: (self.incoherence != Incoherence::Off).then_some("rotations"),
            ..StoredParts::default()
        }
    }

    fn supports(&self, grid: &Grid) -> Result<(), String> {
        match grid.values {
            Some(_) => Err("QuIP rounds onto evenly spaced codes; choose grids.bits, not a table of values".into()),
            None => Ok(()),
        }
    }

    fn check(&self) -> Result<(), String> {
        if (0.0..=1.0).contains(&self.damp) {
            return Ok(());
        }
        Err(format!("damp = {} is outside 0 ..= 1; the authors' code has 0.01", self.damp))
    }
}

impl<B: QuantBackend> LinearMethod<B> for Quip {
    fn quantize_linear(&self, ctx: &LinearCtx<'_, B>) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        self.supports(ctx.grid).map_err(|problem| ctx.unsupported(problem))?;
        let weight = float_vec(ctx.weight.clone());
        if weight.iter().any(|w| !w.is_finite()) {
            return Err(ctx.not_finite("a weight"));
        }
        if ctx.is_unreached() {
            return Nearest.quantize_linear(ctx);
        }
        let hessian = Hessian::of(ctx, Precision::F64)?;
        let mut notes: Vec<String> = hessian.dead_note().into_iter().collect();
        let mut alive = weight.clone();
        for row in alive.chunks_mut(hessian.n) {
            hessian.dead.iter().for_each(|&column| row[column] = 0.0);
        }
        let problem = match &self.incoherence {
            Incoherence::Off => {
                Incoherent { weight: alive, hessian: hessian.clone(), transform: WeightTransform::Identity }
            }
            Incoherence::On(settings) => settings.process(ctx, alive, &hessian),
        };
        let shares = self.shares(weight.len() / hessian.n.max(1), hessian.n);
        let quantized = self.round(ctx, problem, &mut notes, &shares)?;
        let rounded = B::quantize_weight(ctx.weight.clone(), ctx.grid);
        let losses = |share: f64| (ctx.listener)(shares.losses * share);
        let [loss_before, loss_after] = hessian.output_losses(&weight, [&rounded, &quantized], &losses);
        let log = LinearLog {
            linear: ctx.linear.0.into(),
            weight_mse: crate::weight_mse(&weight, &quantized),
            loss_before: Some(loss_before),
            loss_after: Some(loss_after),
            notes,
            ..LinearLog::default()
        };
        Ok((quantized, log))
    }
}

impl<B: QuantBackend> QuantMethod<B> for Quip {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        quantize_each_linear(self, ctx)
    }
}

/// Parts of the work on a linear, about.
struct Shares {
    factor: f64,
    round: f64,
    passes: f64,
    losses: f64,
}

impl Quip {
    /// In multiplications over `n_in^2`, those in f64 counted twice.
    fn shares(&self, n_out: usize, n_in: usize) -> Shares {
        let n_passes = match self.rounding {
            QuipRounding::Ldlq => 0,
            QuipRounding::LdlqRg(GreedyPasses { n_passes }) => n_passes.get(),
        };
        let (n_out, n_in) = (n_out as f64, n_in as f64);
        let parts = [n_in / 3.0, n_out / 2.0, f64::from(n_passes) * n_out, 2.0 * n_out];
        let [factor, round, passes, losses] = shares(parts);
        Shares { factor, round, passes, losses }
    }

    fn round<B: QuantBackend>(
        &self,
        ctx: &LinearCtx<'_, B>,
        problem: Incoherent,
        notes: &mut Vec<String>,
        shares: &Shares,
    ) -> Result<QuantizedWeight, MethodError> {
        let Incoherent { weight, hessian, transform } = problem;
        let n_in = hessian.n;
        let order: Vec<u32> = match self.rounding {
            QuipRounding::Ldlq => (0..n_in as u32).collect(),
            QuipRounding::LdlqRg(_) => hessian.activation_order().into_iter().rev().collect(),
        };
        // Not kept for the other bit widths, as GPTQ's is: the rotated Hessian is this linear's own, so that a block would hold two matrices a
        // linear for about a tenth of the multiplications.
        let part = Part::new(ctx.listener, shares.factor);
        let factor = |h: &Damped<'_>| {
            let feedback = ldl_feedback(&|i, j| h.entry(i, j), n_in, &|share| part.tell(share));
            feedback.map(|feedback| (h.matrix(), feedback))
        };
        let (damped, feedback) = hessian.damped(ctx, &order, self.damp, notes, factor)?;
        part.finish();
        let (grid, params) = self.grid_params(&weight, n_in, ctx.grid);
        let groups = grid.granularity.groups(weight.len() / n_in, n_in);
        let weight = match self.grid {
            QuipGrid::OneScale => clamped_to_codes(weight, &params[0], &grid),
            QuipGrid::Grouped => weight,
        };
        let rounding = Rounding { grid: &grid, params: &params, groups, order: &order };
        let mut codes = rounding.ldlq(&weight, &feedback, &|share| (ctx.listener)(shares.round * share));
        if let QuipRounding::LdlqRg(GreedyPasses { n_passes }) = self.rounding {
            let passes = |share: f64| (ctx.listener)(shares.passes * share);
            rounding.greedy_passes(&weight, &mut codes, &damped, n_passes.get(), &passes);
        }
        let zero_points = params.iter().map(|params| params.zero_point);
        Ok(QuantizedWeight {
            n_out: weight.len() / n_in,
            n_in,
            grid,
            codes,
            scale: params.iter().map(|params| params.scale).collect(),
            zero_point: match self.grid {
                QuipGrid::OneScale => ZeroPoints::Real(zero_points.collect()),
                QuipGrid::Grouped => ZeroPoints::Codes(zero_points.map(|zero| zero as u8).collect()),
            },
            transform,
        })
    }

    /// The grid in use, and the parameters of its groups, row-major `[n_out, n_groups]` (one for a whole matrix).
    fn grid_params(&self, weight: &[f32], n_in: usize, grid: &Grid) -> (Grid, Vec<GroupParams>) {
        match self.grid {
            QuipGrid::OneScale => {
                let grid = Grid { granularity: Granularity::PerTensor, symmetry: Symmetry::Asymmetric, ..*grid };
                (grid, vec![one_scale(weight, &grid)])
            }
            QuipGrid::Grouped => {
                let groups = grid.granularity.groups(weight.len() / n_in, n_in);
                (*grid, groups.of(weight).map(|group| grid.group_params_of(group)).collect())
            }
        }
    }
}

/// Half the width of QuIP's grid, in root mean squares of the weight (the authors' constant for `qfn b`).
const HALF_WIDTH: f64 = 2.4;

/// Codes spread evenly from `-2.4` to `2.4` root mean squares.
fn one_scale(weight: &[f32], grid: &Grid) -> GroupParams {
    let mean_square = weight.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / weight.len().max(1) as f64;
    let max_code = f32::from(grid.bits.max_code());
    // As every range of a grid: a matrix of zeros keeps a step that f16 can hold.
    let width = ((2.0 * HALF_WIDTH * mean_square.sqrt()) as f32).max(RANGE_FLOOR);
    GroupParams { scale: grid.scale_dtype.round(width / max_code), zero_point: max_code / 2.0 }
}

/// Weights beyond the outermost codes moved onto them (algorithm 1, line 9): feedback does not make up for what is cut off.
fn clamped_to_codes(mut weight: Vec<f32>, params: &GroupParams, grid: &Grid) -> Vec<f32> {
    let (low, high) = (grid.weight(grid.min_code(), params), grid.weight(grid.bits.max_code(), params));
    weight.iter_mut().for_each(|w| *w = w.clamp(low, high));
    weight
}

#[cfg(test)]
mod tests;
