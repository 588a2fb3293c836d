//! GPTQ, Accurate Post-Training Quantization for Generative Pre-trained Transformers (Frantar et al., ICLR 2023,
//! arXiv 2210.17323).
//!
//! *What it does.* Rounds the columns of a weight one after the other and moves each column's rounding error onto the
//! columns that are still free, weighted by the inverse Hessian of the linear's output error (`H = X^T X`), so that later
//! columns make up for earlier ones.
//!
//! *When it wins.* At 2 and 3 bits, with `propagation = "quantized"` (each block sees what the quantized blocks before it
//! put out); in activation order it is the strongest of the methods that store nothing but codes.
//!
//! *Cost.* Per input one Gram matrix and one `in x in` factorisation, which linears with the same input and cells on other grids
//! share; per linear `out * in^2 / 2` multiplications. The losses in the record take four times as many again. In memory are at
//! most the Gram matrix, its factor (inverted in place) and a quarter of that, in f64.
//!
//! *Which weights set a group's grid.* [`GroupGrid`] names the three answers. `updated_weights` is the paper's algorithm and
//! what `GPTQ` means in our tables: a group's range is that of the weights about to be rounded. `block_start_weights` is
//! what the official code does: inside a column block, later groups do not see the errors of earlier ones; the two are the
//! same where the group is at least as long as the column block. `original_weights` fixes all grids beforehand (static groups), which
//! activation order needs if groups are to stay runs of neighbouring channels.
//!
//! *Differences from the official code.*
//!
//! - `H` is the mean over tokens, there twice the sum over tokens divided by the number of sequences. Damping is relative to
//!   the mean diagonal of live columns (inputs that are not always zero), and a dead column's diagonal is that mean, so the
//!   unit of the inputs does not matter. There a dead diagonal is 1 in whatever unit `H` is, and counts in the mean.
//! - Where the factorisation fails, damping is raised tenfold and the record says so. There it ends the run.
//! - One factorisation and the inverse of a triangular matrix in place of two factorisations and an explicit inverse.
//! - A dead column's weights are set to 0 before any range is taken. There the range of a whole row still sees them.
//! - On a symmetric grid an all-positive group gets a symmetric range, as every other. There its range begins at 0 and its
//!   zero point stays in the middle, which cuts off the upper half of its weights.
//! - A range narrower than `1e-5` is widened to it ([`awq_core::grid::RANGE_FLOOR`], from the AWQ code). There only a group
//!   of zeros is, to 2.
//! - With activation order and dynamic groups the order of the channels is stored and counted.
//! - An expert that no token reaches has an empty Hessian and is rounded to nearest; the record says so. With few
//!   tokens the damping alone makes the Hessian invertible, as everywhere.

mod columns;
mod range;
mod solver;

use std::num::NonZeroU16;
use std::sync::Arc;

use awq_core::awq::Nearest;
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::capture::{CaptureNeeds, GatheredOfBlock};
use awq_core::grid::{FittedGrid, Granularity, Grid, GroupParams};
use awq_core::grids::BlockGrids;
use awq_core::log::LinearLog;
use awq_core::method::{
    BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, MethodSettings, Precision, QuantMethod, WorkingShapes,
    gather_of_quantized, quantize_each_linear,
};
use awq_core::model::BlockLayout;
use awq_core::progress::{Listener, Part};
use awq_core::quantized::{QuantizedWeight, StoredParts, ZeroPoints};
use awq_core::transform::WeightTransform;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::range::{MseSearch, RangeSearch};
use self::solver::{Groups, Solver};
use crate::gptaq::Drift;
use crate::hessian::{Damped, Hessian};
use crate::linalg::{inverse_factor, shares};

/// GPTQ and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gptq {
    /// What is added to the diagonal of the Hessian, relative to its mean over live columns (the official code: 0.01).
    pub damp: f64,
    /// Columns whose errors are kept back and applied to the rest in one product (the official code: 128). With
    /// `block_start_weights`, and in GPTAQ, it changes the result, else only rounding noise.
    pub block_size: NonZeroU16,
    /// The order in which columns are rounded.
    pub order: ColumnOrder,
    /// Which weights set the scale and zero point of a group.
    pub group_grid: GroupGrid,
    /// How the range of a group is chosen.
    pub range: RangeSearch,
    /// In which type the Hessian is summed and factored.
    pub hessian: Precision,
}

/// The order in which columns are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ColumnOrder {
    /// As stored.
    Natural,
    /// By descending diagonal of the Hessian: what matters most is rounded first, while every other column can still make
    /// up for it (`act_order`, `desc_act`; the AWQ paper's GPTQ-R).
    Activation,
}

/// Which weights set the scale and zero point of a group; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupGrid {
    /// The group's weights when its first column is reached, all earlier errors applied.
    UpdatedWeights,
    /// The group's weights when the column block of its first column is reached.
    BlockStartWeights,
    /// The unquantized weights; groups are runs of neighbouring channels whatever the order is (static groups).
    OriginalWeights,
}

impl Gptq {
    /// The paper's algorithm with the official code's numbers: columns as stored, 1% damping, blocks of 128 columns.
    pub const IN_ORDER: Self = Self {
        damp: 0.01,
        block_size: NonZeroU16::new(128).expect("128 is not 0"),
        order: ColumnOrder::Natural,
        group_grid: GroupGrid::UpdatedWeights,
        range: RangeSearch::MinMax,
        hessian: Precision::F64,
    };

    /// The same in activation order with static groups (the official code's `--act-order --static-groups`).
    pub const ACT_ORDER: Self =
        Self { order: ColumnOrder::Activation, group_grid: GroupGrid::OriginalWeights, ..Self::IN_ORDER };

    /// The same with groups formed in that order, each grid that of the weights about to be rounded (the official code's `--act-order`,
    /// `desc_act` of checkpoints).
    pub const ACT_ORDER_DYNAMIC: Self = Self { order: ColumnOrder::Activation, ..Self::IN_ORDER };
}

impl MethodSettings for Gptq {
    /// `GPTQ`, with what makes it another method: `GPTQ act-order`.
    fn label(&self) -> String {
        let order = match (self.order, self.group_grid) {
            (ColumnOrder::Natural, GroupGrid::OriginalWeights) => " static groups",
            (ColumnOrder::Natural, _) => "",
            (ColumnOrder::Activation, GroupGrid::OriginalWeights) => " act-order",
            (ColumnOrder::Activation, _) => " act-order, dynamic groups",
        };
        let mut departures = Vec::new();
        if self.group_grid == GroupGrid::BlockStartWeights {
            departures.push("block-start grid");
        }
        if self.range != RangeSearch::MinMax {
            departures.push("MSE range");
        }
        let departures = if departures.is_empty() { String::new() } else { format!(" ({})", departures.join(", ")) };
        format!("GPTQ{order}{departures}")
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: true, ..CaptureNeeds::default() }
    }

    fn gathers(&self, layout: &BlockLayout, grids: &BlockGrids) -> GatheredOfBlock {
        gather_of_quantized(layout, grids, [self.hessian.gram()])
    }

    /// The triangle that is inverted in place and its copy, the factor of every input, which later linears and cells use again, and four
    /// copies of a weight.
    fn working_bytes(&self, shapes: &WorkingShapes) -> u64 {
        let largest = shapes.largest_gram();
        let of_inverse = match self.hessian {
            Precision::F64 => 10 * largest,
            // The matrix in f64, beside the one in f32 that was gathered.
            Precision::F32 => 18 * largest,
        };
        let factors: u64 = shapes.inputs.iter().map(|&n| 4 * (n * n) as u64).sum();
        factors + of_inverse.max(12 * shapes.largest_linear()) + 4 * shapes.largest_linear()
    }

    fn stores(&self) -> StoredParts {
        let is_dynamic = self.group_grid != GroupGrid::OriginalWeights;
        StoredParts { has_input_order: self.order == ColumnOrder::Activation && is_dynamic, ..StoredParts::default() }
    }

    fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.damp) {
            return Err(format!("damp = {} is outside 0 ..= 1; the official code has 0.01", self.damp));
        }
        self.range.check()
    }
}

impl<B: QuantBackend> LinearMethod<B> for Gptq {
    fn quantize_linear(&self, ctx: &LinearCtx<'_, B>) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        self.quantize_with_drift(ctx, None)
    }
}

impl<B: QuantBackend> QuantMethod<B> for Gptq {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        quantize_each_linear(self, ctx)
    }
}

/// Parts of the work on a linear, about.
struct Shares {
    factor: f64,
    corrections: f64,
    round: f64,
    losses: f64,
}

impl Shares {
    /// In multiplications over `n_in^2`: a factor in f64 takes as long as twice as many in f32, and is made once for linears that share
    /// their input; corrections are two products, and as much again while columns are rounded.
    fn of(n_out: usize, n_in: usize, has_corrections: bool) -> Self {
        let (n_out, n_in) = (n_out as f64, n_in as f64);
        let (corrections, times) = if has_corrections { (2.0 * n_in, 2.0) } else { (0.0, 1.0) };
        let [factor, corrections, round, losses] =
            shares([2.0 * n_in / 3.0, corrections, times * n_out / 2.0, 2.0 * n_out]);
        Self { factor, corrections, round, losses }
    }
}

/// All that a factor depends on beside the inputs.
#[derive(PartialEq)]
struct Question {
    damp: f64,
    order: ColumnOrder,
    precision: Precision,
}

/// A Hessian, factored.
struct Factored {
    /// See [`Ordered::order`].
    order: Vec<u32>,
    /// See [`Ordered::factor`].
    factor: Vec<f32>,
    /// How often damping was raised.
    notes: Vec<String>,
}

/// The order of rounding, and the matrices that belong to it.
struct Ordered<'a> {
    /// Column `j` in the order of rounding is input channel `order[j]`.
    order: &'a [u32],
    /// `U`, row-major `[in, in]`, with `U^T U = H^-1`.
    factor: &'a [f32],
    /// GPTAQ's `P`, strictly upper triangular, row-major `[in, in]`: a column adds its weight times its row of `P` to
    /// the columns after it.
    corrections: Option<&'a [f32]>,
}

impl Gptq {
    /// Quantizes one linear; columns also make up for the `drift` of those before them where that is given (GPTAQ).
    pub(crate) fn quantize_with_drift<B: QuantBackend>(
        &self,
        ctx: &LinearCtx<'_, B>,
        drift: Option<Drift>,
    ) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        let weight = float_vec(ctx.weight.clone());
        if weight.iter().any(|w| !w.is_finite()) {
            return Err(ctx.not_finite("a weight"));
        }
        if ctx.is_unreached() {
            return Nearest.quantize_linear(ctx);
        }
        let hessian = Hessian::of(ctx, self.hessian)?;
        let shares = Shares::of(weight.len() / hessian.n.max(1), hessian.n, drift.is_some());
        let part = Part::new(ctx.listener, shares.factor);
        let factored = self.factored(ctx, &hessian, &|share| part.tell(share))?;
        part.finish();
        let Factored { order, factor, .. } = factored.as_ref();
        let corrections = drift.map(|drift| drift.corrections(order, factor));
        (ctx.listener)(shares.corrections);
        let ordered = Ordered { order, factor, corrections: corrections.as_deref() };
        let round = |share: f64| (ctx.listener)(shares.round * share);
        let quantized = self.round(&weight, &hessian, &ordered, ctx.grid, &round);
        let rounded = B::quantize_weight(ctx.weight.clone(), ctx.grid);
        let losses = |share: f64| (ctx.listener)(shares.losses * share);
        let [loss_before, loss_after] = hessian.output_losses(&weight, [&rounded, &quantized], &losses);
        let log = LinearLog {
            linear: ctx.linear.0.into(),
            weight_mse: crate::weight_mse(&weight, &quantized),
            loss_before: Some(loss_before),
            loss_after: Some(loss_after),
            notes: hessian.dead_note().into_iter().chain(factored.notes.clone()).collect(),
            ..LinearLog::default()
        };
        Ok((quantized, log))
    }

    /// The factor of a Hessian, computed once for all linears that see the same inputs, whatever their grids.
    fn factored<B: QuantBackend>(
        &self,
        ctx: &LinearCtx<'_, B>,
        hessian: &Hessian,
        listener: &Listener<'_>,
    ) -> Result<Arc<Factored>, MethodError> {
        let factor = || {
            let mut notes = Vec::new();
            let order = match self.order {
                ColumnOrder::Natural => (0..hessian.n as u32).collect(),
                ColumnOrder::Activation => hessian.activation_order(),
            };
            let inverse = |h: &Damped<'_>| inverse_factor(&|i, j| h.entry(i, j), h.n(), self.hessian, listener);
            let factor = hessian.damped(ctx, &order, self.damp, &mut notes, inverse)?;
            Ok(Factored { order, factor, notes })
        };
        match (ctx.input, &ctx.input_scale) {
            (Some(input), None) => {
                let question = Question { damp: self.damp, order: self.order, precision: self.hessian };
                input.shared().get(question, factor)
            }
            _ => factor().map(Arc::new),
        }
    }

    /// Rounds a row-major `[out, in]` weight.
    fn round(
        &self,
        weight: &[f32],
        hessian: &Hessian,
        ordered: &Ordered<'_>,
        grid: &Grid,
        listener: &Listener<'_>,
    ) -> QuantizedWeight {
        let (n_in, order) = (hessian.n, ordered.order);
        let n_out = weight.len() / n_in;
        let mut alive = weight.to_vec();
        for row in alive.chunks_mut(n_in) {
            hessian.dead.iter().for_each(|&column| row[column] = 0.0);
        }
        let fitted = grid.fitted(&alive);
        let groups = self.groups(&alive, n_in, order, &fitted);
        let working = gather_columns(&alive, n_in, order);
        let solver = Solver::new(self, &fitted, ordered, n_in, groups);
        let (codes, params) = solver.solve(working, listener);
        let keeps_order = self.order == ColumnOrder::Natural;
        let (codes, transform) = if keeps_order || self.fixes_groups(grid) {
            (scatter_columns(&codes, n_in, order), WeightTransform::Identity)
        } else {
            (codes, WeightTransform::PermutedInputs(order.to_vec()))
        };
        let scale = params.iter().map(|params| params.scale).collect();
        let zero_point = ZeroPoints::Codes(params.iter().map(|params| params.zero_point as u8).collect());
        QuantizedWeight { n_out, n_in, grid: *grid, codes, scale, zero_point, transform }
    }

    /// Whether grids are known before the first column: a scale for the whole matrix cannot follow single rows.
    fn fixes_groups(&self, grid: &Grid) -> bool {
        self.group_grid == GroupGrid::OriginalWeights || grid.granularity == Granularity::PerTensor
    }

    /// The groups of a weight, `[out, in]` in natural order.
    fn groups(&self, weight: &[f32], n_in: usize, order: &[u32], fitted: &FittedGrid) -> Groups {
        let grid = &fitted.grid;
        if grid.granularity == Granularity::PerTensor {
            return Groups::WholeMatrix(self.range.params(weight, fitted));
        }
        let len = grid.granularity.group_len(n_in);
        if !self.fixes_groups(grid) {
            return Groups::Following { len };
        }
        let groups: Vec<&[f32]> = grid.granularity.groups(weight.len() / n_in, n_in).of(weight).collect();
        let params: Vec<GroupParams> = groups.par_iter().map(|group| self.range.params(group, fitted)).collect();
        Groups::Fixed { of_column: order.iter().map(|&channel| channel as usize / len).collect(), params }
    }
}

/// Column `j` of the result is column `order[j]`.
fn gather_columns(matrix: &[f32], n_in: usize, order: &[u32]) -> Vec<f32> {
    matrix.chunks(n_in).flat_map(|row| order.iter().map(|&channel| row[channel as usize])).collect()
}

/// Column `order[j]` of the result is column `j`.
fn scatter_columns(matrix: &[u8], n_in: usize, order: &[u32]) -> Vec<u8> {
    let mut out = vec![0; matrix.len()];
    for (out, row) in out.chunks_mut(n_in).zip(matrix.chunks(n_in)) {
        order.iter().zip(row).for_each(|(&channel, &code)| out[channel as usize] = code);
    }
    out
}

#[cfg(test)]
mod tests;
