//! AWQ, Activation-aware Weight Quantization (Lin et al., MLSys 2024, arXiv 2306.00978).
//!
//! *What it does.* About 1% of the input channels of a linear matter most, and the activations show which. For each group
//! of linears that share an input, a grid search over one exponent finds a scale per channel that is multiplied into the
//! weights before rounding and folded into the previous op (section 3.2); a second search clips each group of weights
//! (official code). The result is an ordinary low-bit model: nothing happens at run time.
//!
//! *When it wins.* 3 and 4 bits with groups; needs few calibration tokens and does not overfit them.
//!
//! *Cost.* One forward pass of a block and 20 of its modules, per block.
//!
//! *Differences from the official code.* What is searched and rounded is f32 (there f16). Losses of a linear alone are
//! computed from the Gram matrix of its inputs, clip losses from that of the sampled tokens: the same numbers in fewer
//! operations. On a CPU the outputs of a candidate are computed as differences from those in full precision, with bf16 products, and
//! those of the best in f32 (`differences.rs`); a candidate that is above another before all are computed is given up (`race.rs`).
//! Groups may be ragged, and fewer calibration tokens than the clip sample are allowed.
//!
//! *Units.* The official code's smallest scale of `1e-4` (before normalization) and smallest range of `1e-5` are in units of
//! activations and weights; so are, with `formula = "duo"`, AutoAWQ's `1e-4`, and the `1e-6` below which a group's largest weight
//! is not taken (there added to it).

use std::num::{NonZeroU16, NonZeroUsize};

use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::QuantBackend;
use crate::capture::{CaptureNeeds, Gathered, GatheredOfBlock, Statistic, gather_both};
use crate::fold::fold;
use crate::grid::Grid;
use crate::grids::BlockGrids;
use crate::log::{BlockLog, ClipLog, LinearLog};
use crate::method::{
    BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, MethodSettings, QuantMethod, WorkingShapes,
};
use crate::model::{BlockLayout, BlockParams, Inspect, LinearFacts, LinearName, ScaleGroup};
use crate::progress::Part;
use crate::quantized::{QuantizedWeight, StoredParts};

mod clip;
mod differences;
mod losses;
mod race;
mod salient;
mod scaled;
mod search;

pub use clip::ClipSearch;
pub use salient::{FixedScale, KeepSalient, RandomChannels, SalientBy};
pub use scaled::{InputSquares, Scaled};
pub use search::{ScaleFormula, ScaleSearch, SearchArithmetic};

/// What decides a scale search beside the block: AWQ with and without clipping share their scales.
#[derive(PartialEq)]
struct AskedSearch {
    group: String,
    /// Of each linear of the group; `None` for those in full precision.
    grids: Vec<Option<Grid>>,
    search: ScaleSearch,
}

/// AWQ and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Awq {
    /// The scale step.
    pub scale: ScaleStep,
    /// The clip step.
    pub clip: ClipStep,
}

/// Whether and how scales are searched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleStep {
    /// No scales.
    Off,
    /// A grid search over the exponent.
    Search(ScaleSearch),
}

/// Whether and how weights are clipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClipStep {
    /// No clipping.
    Off,
    /// A grid search over the clipping bound of each group of weights.
    Search(ClipSearch),
}

impl Awq {
    /// As the authors' code has it (mit-han-lab/llm-awq): 20 ratios; then ten clip bounds, a twentieth of the range apart, judged on
    /// 512 tokens.
    pub const LLM_AWQ: Self = Self::llm_awq(SearchArithmetic::F32);

    /// The same, with the outputs of the scale search computed in bf16. It may find another exponent where two are close.
    pub const LLM_AWQ_BF16: Self = Self::llm_awq(SearchArithmetic::Bf16);

    const fn llm_awq(arithmetic: SearchArithmetic) -> Self {
        let n_ratios = NonZeroU16::new(20).expect("20 is not 0");
        let n_tokens = NonZeroUsize::new(512).expect("512 is not 0");
        Self {
            scale: ScaleStep::Search(ScaleSearch { formula: ScaleFormula::Activation, n_ratios, arithmetic }),
            clip: ClipStep::Search(ClipSearch { n_steps: n_ratios, max_shrink: 0.5, n_tokens }),
        }
    }
}

impl MethodSettings for Awq {
    /// `AWQ`, with the departures from scale and clip search named: `AWQ (scale only)`.
    fn label(&self) -> String {
        let scale = match &self.scale {
            ScaleStep::Off => None,
            ScaleStep::Search(search) => Some(match (search.formula, search.arithmetic) {
                (ScaleFormula::Activation, SearchArithmetic::F32) => "scale",
                (ScaleFormula::Activation, SearchArithmetic::Bf16) => "bf16 scale",
                (ScaleFormula::Duo, SearchArithmetic::F32) => "duo scale",
                (ScaleFormula::Duo, SearchArithmetic::Bf16) => "bf16 duo scale",
            }),
        };
        match (scale, &self.clip) {
            (Some("scale"), ClipStep::Search(_)) => "AWQ".into(),
            (Some(scale), ClipStep::Search(_)) => format!("AWQ ({scale})"),
            (Some(scale), ClipStep::Off) => format!("AWQ ({scale} only)"),
            (None, ClipStep::Search(_)) => "AWQ (clip only)".into(),
            (None, ClipStep::Off) => "AWQ (no search)".into(),
        }
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: self.scale != ScaleStep::Off || self.clip != ClipStep::Off, ..CaptureNeeds::default() }
    }

    fn gathers(&self, layout: &BlockLayout, grids: &BlockGrids) -> GatheredOfBlock {
        let is_quantized = |name: &LinearName| grids.of(*name).is_some();
        let judged = |group: &ScaleGroup| {
            // A module runs again on what it saw; a linear alone is judged by its Gram matrix.
            let gathered = match group.inspect {
                Inspect::Linear => Gathered::of([Statistic::MeanAbs, Statistic::Gram]),
                Inspect::Attention | Inspect::Mlp | Inspect::Both => Gathered::whole(),
            };
            (group.input, gathered)
        };
        let groups = layout.scale_groups.iter().filter(|group| group.linears.iter().any(is_quantized));
        let of_scales = match &self.scale {
            ScaleStep::Search(_) => groups.map(judged).collect(),
            ScaleStep::Off => GatheredOfBlock::new(),
        };
        let of_clip = match &self.clip {
            ClipStep::Search(search) => {
                let clipped = layout.linears.iter().filter(|facts| facts.clips && is_quantized(&facts.name));
                let sampled = Statistic::SampledRows(search.n_tokens.get());
                // Of how many tokens an expert will see every so many are to be taken is known at the end.
                let rows = |facts: &LinearFacts| match facts.expert {
                    None => (facts.input, Gathered::of([sampled])),
                    Some(_) => (facts.input, Gathered::whole()),
                };
                clipped.map(rows).collect()
            }
            ClipStep::Off => GatheredOfBlock::new(),
        };
        gather_both(of_scales, of_clip)
    }

    /// Recorded passes and, for products in bf16, weights of a module and their changes: some three bytes a weight of the block.
    fn working_bytes(&self, shapes: &WorkingShapes) -> u64 {
        let all: u64 = shapes.linears.iter().map(|[n_out, n_in]| (n_out * n_in) as u64).sum();
        match &self.scale {
            ScaleStep::Search(_) => {
                let of_token: u64 = shapes.linears.iter().map(|[n_out, n_in]| 4 * (n_out + n_in) as u64).sum();
                (losses::RECORDED_BYTES as u64).min(shapes.n_tokens * of_token) + 3 * all
            }
            ScaleStep::Off => 4 * 4 * shapes.largest_linear(),
        }
    }

    fn stores(&self) -> StoredParts {
        StoredParts { scales_activations: self.scale != ScaleStep::Off, ..StoredParts::default() }
    }

    fn needs_whole_block(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), String> {
        match &self.clip {
            ClipStep::Search(search) if !(0.0..1.0).contains(&search.max_shrink) => Err(format!(
                "clip.search.max_shrink = {} is outside 0 .. 1; the official code has 0.5",
                search.max_shrink
            )),
            _ => Ok(()),
        }
    }
}

/// The scale search's share of the work on a block, about.
const PART_OF_SCALES: f64 = 0.8;

impl Awq {
    /// Searches scales and clips as configured, and hands the prepared weights to `rounding`.
    ///
    /// # Errors
    /// No calibration, activations that are not finite, or an error of `rounding`.
    pub fn quantize_block_with<B: QuantBackend>(
        &self,
        ctx: &BlockCtx<'_, B>,
        rounding: &dyn LinearMethod<B>,
    ) -> Result<BlockEdit<B>, MethodError> {
        let layout = ctx.block.layout();
        whole_block(ctx)?;
        let mut log = BlockLog::default();
        let scales = self.search_scales(ctx, &mut log)?;
        // Scales were all searched on the original block; only now are they folded, in the layout's order.
        let mut params = ctx.block.params().clone();
        for (group_idx, scale) in &scales {
            params = fold(params, &layout.scale_groups[*group_idx], scale);
        }
        let mut edit = BlockEdit { scales, linears: Default::default(), log };
        let after_scales = if self.scale == ScaleStep::Off { 1.0 } else { 1.0 - PART_OF_SCALES };
        for facts in ctx.linears {
            let (weight, linear_log) = self.quantize_linear(ctx, facts, &params, &edit.scales, rounding)?;
            edit.linears.insert(facts.name, weight);
            edit.log.linears.push(linear_log);
            (ctx.listener)(after_scales / ctx.linears.len() as f64);
        }
        Ok(edit)
    }

    fn search_scales<B: QuantBackend>(
        &self,
        ctx: &BlockCtx<'_, B>,
        log: &mut BlockLog,
    ) -> Result<Vec<(usize, Tensor<B, 1>)>, MethodError> {
        let ScaleStep::Search(search) = &self.scale else { return Ok(Vec::new()) };
        let mut scales = Vec::new();
        let groups = &ctx.block.layout().scale_groups;
        for (group_idx, group) in groups.iter().enumerate() {
            let part = Part::new(ctx.listener, PART_OF_SCALES / groups.len() as f64);
            let grids: Vec<Option<Grid>> = group.linears.iter().map(|&linear| ctx.grids.of(linear).copied()).collect();
            if grids.iter().all(Option::is_none) {
                continue;
            }
            let run = || search.run(ctx, group, &part);
            let (scale, search_log) = match ctx.inputs {
                Some(inputs) => {
                    let asked = AskedSearch { group: group.label(), grids, search: search.clone() };
                    (*inputs.shared().get(asked, run)?).clone()
                }
                None => run()?,
            };
            scales.push((group_idx, scale));
            log.scale_searches.push(search_log);
            part.finish();
        }
        Ok(scales)
    }

    /// Clips and rounds one linear of the scaled block.
    fn quantize_linear<B: QuantBackend>(
        &self,
        ctx: &BlockCtx<'_, B>,
        facts: &LinearFacts,
        params: &BlockParams<B>,
        scales: &[(usize, Tensor<B, 1>)],
        rounding: &dyn LinearMethod<B>,
    ) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        let mut weight = params.linear(facts.name).weight.clone();
        let groups = &ctx.block.layout().scale_groups;
        let scales_linear = |(group_idx, _): &&(usize, Tensor<B, 1>)| groups[*group_idx].linears.contains(&facts.name);
        let input_scale = scales.iter().find(scales_linear).map(|(_, scale)| scale.clone());
        let mut clip = None;
        if let (ClipStep::Search(search), true) = (&self.clip, facts.clips && !ctx.linear(facts).is_unreached()) {
            let mut rows = ctx.input(facts.input)?.sampled_rows(search.n_tokens.get());
            if let Some(scale) = &input_scale {
                rows = rows / scale.clone().unsqueeze::<2>();
            }
            let outcome = search.run(ctx, facts.name, weight.clone(), rows)?;
            clip = Some(ClipLog { loss_before: outcome.loss_before, loss_after: outcome.loss_after });
            weight = outcome.weight;
        }
        let linear_ctx = LinearCtx { weight, input_scale, ..ctx.linear(facts) };
        let (quantized, log) = rounding.quantize_linear(&linear_ctx)?;
        Ok((quantized, LinearLog { clip, ..log }))
    }
}

impl<B: QuantBackend> QuantMethod<B> for Awq {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        self.quantize_block_with(ctx, &Nearest)
    }
}

/// Scales are folded across linears, so a method that has some needs the whole block at once.
fn whole_block<B: QuantBackend>(ctx: &BlockCtx<'_, B>) -> Result<(), MethodError> {
    if ctx.linears.len() == ctx.grids.quantized(&ctx.block.layout().linears).len() {
        return Ok(());
    }
    Err(MethodError::Unsupported {
        block_idx: ctx.block_idx,
        linear: "block".into(),
        what:
            "AWQ folds scales across linears and so needs the whole block; use propagation full_precision or quantized"
                .into(),
    })
}

/// AWQ's own rounding step: each weight to the nearest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nearest;

impl<B: QuantBackend> LinearMethod<B> for Nearest {
    fn quantize_linear(&self, ctx: &LinearCtx<'_, B>) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        let weight = B::in_f32(ctx.weight.clone());
        let quantized = B::quantize_weight(weight.clone(), ctx.grid);
        let rounded = B::in_f32(quantized.to_tensor(&ctx.weight.device()));
        let weight_mse = B::squared_distance(&weight, &rounded) / weight.shape().num_elements() as f64;
        if !weight_mse.is_finite() {
            return Err(MethodError::NotFinite {
                block_idx: ctx.block_idx,
                linear: ctx.linear.0.into(),
                what: "a weight",
            });
        }
        Ok((quantized, LinearLog { linear: ctx.linear.0.into(), weight_mse, ..LinearLog::default() }))
    }
}
