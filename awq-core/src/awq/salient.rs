//! The paper's way to AWQ, as methods: some input channels kept in full precision (section 3.1, Table 1), or multiplied by
//! one fixed scale before rounding (section 3.2, Tables 2 and 3); everything else is rounded to nearest.
//!
//! *When they win.* Never as formats: kept channels need mixed-precision kernels. They show which channels matter
//! (activations tell, weights do not) and that a scale does what full precision does.
//!
//! *Differences from the paper.* Kept channels are stored in the grid's scale type and counted as stored, their unused codes
//! included. A group's scale is set by all its weights, kept ones too.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use burn::tensor::{DType, Tensor, TensorData};

use super::{Nearest, whole_block};
use crate::backend::{QuantBackend, float_vec};
use crate::capture::{CaptureNeeds, Gathered, GatheredOfBlock, Statistic};
use crate::fold::fold;
use crate::grid::{Grid, ScaleDtype};
use crate::grids::BlockGrids;
use crate::log::{BlockLog, LinearLog, StepChange};
use crate::method::{
    BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, MethodSettings, QuantMethod, gather_of_quantized,
    quantize_each_linear,
};
use crate::model::{BlockLayout, ScaleGroup};
use crate::quantized::{QuantizedWeight, StoredParts};
use crate::rotation::shuffle;
use crate::transform::{KeptInputs, WeightTransform};

/// Round to nearest, with a share of the input channels of every linear in full precision (Table 1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeepSalient {
    /// Share of the input channels that are kept, between 0 and 1; at least one channel is.
    pub fraction: f64,
    /// Which channels.
    pub by: SalientBy,
}

/// What makes an input channel salient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SalientBy {
    /// A large mean of `|x|`.
    Activation,
    /// A large Euclidean norm of its weights.
    WeightNorm,
    /// Chance.
    Random(RandomChannels),
}

/// See [`SalientBy::Random`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomChannels {
    /// With block and linear, decides the channels.
    pub seed: u64,
}

impl MethodSettings for KeepSalient {
    /// `FP 1% (activation)`.
    fn label(&self) -> String {
        let by = match self.by {
            SalientBy::Activation => "activation",
            SalientBy::WeightNorm => "weight norm",
            SalientBy::Random(_) => "random",
        };
        format!("FP {}% ({by})", percent(self.fraction))
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: self.by == SalientBy::Activation, ..CaptureNeeds::default() }
    }

    fn gathers(&self, layout: &BlockLayout, grids: &BlockGrids) -> GatheredOfBlock {
        gather_of_quantized(layout, grids, [Statistic::MeanAbs])
    }

    fn stores(&self) -> StoredParts {
        StoredParts { beside: Some("input channels in full precision"), ..StoredParts::default() }
    }

    fn supports(&self, grid: &Grid) -> Result<(), String> {
        match grid.scale_dtype {
            ScaleDtype::E8m0 | ScaleDtype::E4m3 => {
                Err("kept channels are stored in the type of scales; choose scale_dtype f16 or f32".into())
            }
            ScaleDtype::F16 | ScaleDtype::F32 => Ok(()),
        }
    }

    fn check(&self) -> Result<(), String> {
        check_fraction(self.fraction)
    }
}

impl<B: QuantBackend> LinearMethod<B> for KeepSalient {
    fn quantize_linear(&self, ctx: &LinearCtx<'_, B>) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        self.supports(ctx.grid).map_err(|problem| ctx.unsupported(problem))?;
        let (rounded, log) = Nearest.quantize_linear(ctx)?;
        let weight = float_vec(ctx.weight.clone());
        let channels = self.channels(ctx, &weight)?;
        let values = weight
            .chunks(rounded.n_in)
            .flat_map(|row| channels.iter().map(|&channel| ctx.grid.scale_dtype.round(row[channel as usize])))
            .collect();
        let transform = WeightTransform::KeptInputs(KeptInputs { channels, values });
        let quantized = QuantizedWeight { transform, ..rounded };
        let errors = weight.iter().zip(quantized.dequantize()).map(|(w, q)| f64::from(q - w).powi(2));
        let weight_mse = errors.sum::<f64>() / weight.len().max(1) as f64;
        Ok((quantized, LinearLog { weight_mse, ..log }))
    }
}

impl<B: QuantBackend> QuantMethod<B> for KeepSalient {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        quantize_each_linear(self, ctx)
    }
}

impl KeepSalient {
    /// The kept channels in ascending order.
    fn channels<B: QuantBackend>(&self, ctx: &LinearCtx<'_, B>, weight: &[f32]) -> Result<Vec<u32>, MethodError> {
        let [_, n_in] = ctx.weight.dims();
        match &self.by {
            SalientBy::Activation => {
                let missing = MethodError::NoCalibration { block_idx: ctx.block_idx, linear: ctx.linear.0 };
                let saliency = float_vec(ctx.input.ok_or(missing)?.mean_abs());
                if saliency.iter().any(|x| !x.is_finite()) {
                    return Err(ctx.not_finite("an activation"));
                }
                Ok(most_salient(&saliency, self.fraction))
            }
            SalientBy::WeightNorm => {
                let mut norms = vec![0.0_f32; n_in];
                for row in weight.chunks(n_in) {
                    norms.iter_mut().zip(row).for_each(|(norm, w)| *norm += w * w);
                }
                Ok(most_salient(&norms, self.fraction))
            }
            SalientBy::Random(RandomChannels { seed }) => {
                let mut channels: Vec<u32> = (0..n_in as u32).collect();
                shuffle(&mut channels, &mut ChaCha8Rng::seed_from_u64(ctx.seed(*seed, "kept channels")));
                channels.truncate(n_salient(n_in, self.fraction));
                channels.sort_unstable();
                Ok(channels)
            }
        }
    }
}

/// Round to nearest after multiplying the most active input channels of each scale group by one fixed factor, which is folded
/// into the previous op (Tables 2 and 3). Linears that no previous op can be folded into stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FixedScale {
    /// Share of the input channels that are scaled, by mean `|x|`; at least one channel is.
    pub fraction: f64,
    /// The factor (the paper: 1, 1.25, 1.5, 2 and 4).
    pub scale: f64,
}

impl MethodSettings for FixedScale {
    /// `s=2 on 1%`.
    fn label(&self) -> String {
        format!("s={} on {}%", self.scale, percent(self.fraction))
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: true, ..CaptureNeeds::default() }
    }

    fn gathers(&self, layout: &BlockLayout, _: &BlockGrids) -> GatheredOfBlock {
        let of_group = |group: &ScaleGroup| (group.input, Gathered::of([Statistic::MeanAbs]));
        layout.scale_groups.iter().map(of_group).collect()
    }

    fn needs_whole_block(&self) -> bool {
        true
    }

    fn stores(&self) -> StoredParts {
        StoredParts { scales_activations: true, ..StoredParts::default() }
    }

    fn check(&self) -> Result<(), String> {
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(format!(
                "scale = {} is not a positive number; the paper has 1, 1.25, 1.5, 2 and 4",
                self.scale
            ));
        }
        check_fraction(self.fraction)
    }
}

impl<B: QuantBackend> QuantMethod<B> for FixedScale {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        whole_block(ctx)?;
        let layout = ctx.block.layout();
        let mut params = ctx.block.params().clone();
        let mut edit = BlockEdit { scales: Vec::new(), linears: Default::default(), log: BlockLog::default() };
        let is_quantized = |group: &ScaleGroup| group.linears.iter().any(|&linear| ctx.grids.of(linear).is_some());
        let groups = layout.scale_groups.iter().enumerate();
        for (group_idx, group) in groups.filter(|(_, group)| is_quantized(group)) {
            let scale = self.scale(ctx.input(group.input)?.mean_abs());
            params = fold(params, group, &scale);
            edit.scales.push((group_idx, scale));
        }
        for facts in ctx.linears {
            let scaled = LinearCtx { weight: params.linear(facts.name).weight.clone(), ..ctx.linear(facts) };
            let (quantized, mut log) = Nearest.quantize_linear(&scaled)?;
            let of_linear =
                |(group_idx, _): &&(usize, _)| layout.scale_groups[*group_idx].linears.contains(&facts.name);
            if let Some((_, scale)) = edit.scales.iter().find(of_linear) {
                let weight = ctx.block.params().linear(facts.name).weight.clone();
                log.step_change = Some(step_change(weight, scale.clone(), ctx.grid(facts.name)));
            }
            edit.linears.insert(facts.name, quantized);
            edit.log.linears.push(log);
            (ctx.listener)(1.0 / ctx.linears.len() as f64);
        }
        Ok(edit)
    }
}

impl FixedScale {
    /// `[in]`, from `mean |x|: [in]`.
    fn scale<B: QuantBackend>(&self, mean_abs: Tensor<B, 1>) -> Tensor<B, 1> {
        let device = mean_abs.device();
        let mean_abs = float_vec(mean_abs);
        let mut scale = vec![1.0_f32; mean_abs.len()];
        for channel in most_salient(&mean_abs, self.fraction) {
            scale[channel as usize] = self.scale as f32;
        }
        let n = scale.len();
        Tensor::from_data(TensorData::new(scale, [n]), (&device, DType::F32))
    }
}

/// Steps of the groups of `weight diag(scale)` against those of `weight`, before any folding of its rows.
fn step_change<B: QuantBackend>(weight: Tensor<B, 2>, scale: Tensor<B, 1>, grid: &Grid) -> StepChange {
    let weight = B::in_f32(weight);
    let before = B::quantize_weight(weight.clone(), grid).scale;
    let after = B::quantize_weight(weight * scale.unsqueeze::<2>(), grid).scale;
    let steps = || after.iter().zip(&before);
    StepChange {
        n_groups: before.len() as u64,
        n_changed: steps().filter(|(after, before)| after != before).count() as u64,
        mean_ratio: steps().map(|(after, before)| f64::from(*after) / f64::from(*before)).sum::<f64>()
            / before.len().max(1) as f64,
    }
}

/// The channels with the largest values, ascending; ties go to the earlier channel.
fn most_salient(saliency: &[f32], fraction: f64) -> Vec<u32> {
    let mut channels: Vec<u32> = (0..saliency.len() as u32).collect();
    channels.sort_by(|&a, &b| saliency[b as usize].total_cmp(&saliency[a as usize]));
    channels.truncate(n_salient(saliency.len(), fraction));
    channels.sort_unstable();
    channels
}

/// Channels that a share stands for: the nearest whole number, at least one.
fn n_salient(n_in: usize, fraction: f64) -> usize {
    ((n_in as f64 * fraction).round() as usize).clamp(1, n_in.max(1))
}

/// `1`, `0.1`, `3`: a share as a percentage without the noise of binary fractions.
fn percent(fraction: f64) -> f64 {
    (fraction * 1e8).round() / 1e6
}

fn check_fraction(fraction: f64) -> Result<(), String> {
    if fraction > 0.0 && fraction <= 1.0 {
        return Ok(());
    }
    Err(format!("fraction = {fraction} is outside 0 .. 1; 1% of the channels is 0.01"))
}
