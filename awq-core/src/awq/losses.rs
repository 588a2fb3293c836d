//! The losses of candidate scales: how far the output of a module, or of a linear, moves when its weights are quantized under each.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::differences::RecordedPasses;
use crate::arithmetic::Arithmetic;
use crate::backend::{QuantBackend, Total};
use crate::capture::InputStats;
use crate::method::{BlockCtx, MethodError};
use crate::model::layers::Linear;
use crate::model::{Block, BlockParams, Inspect, LinearName, ScaleGroup};
use crate::progress::Part;

/// Tokens of a pass, or one sequence where that is longer: what lies between the linears stays in the cache.
const TOKENS_PER_PASS: usize = 512;
/// What recorded passes may take of the memory.
pub(super) const RECORDED_BYTES: usize = 1 << 29;
/// The share of a search that differences are, about; the rest settles which is the smallest.
const PART_OF_ALL: f64 = 0.8;

/// What decides the full-precision outputs of a module beside the block; every candidate is compared with them.
#[derive(PartialEq)]
struct AskedOutputs {
    module: Inspect,
    arithmetic: Arithmetic,
}

/// What decides recorded passes of a module beside the block.
#[derive(PartialEq)]
struct AskedPasses {
    module: Inspect,
}

/// What decides the size of a recorded pass beside the block.
#[derive(PartialEq)]
struct AskedBytes {
    module: Inspect,
}

/// Judges candidate scales of a group of linears.
pub(super) struct Judge<'a, B: QuantBackend> {
    pub(super) ctx: &'a BlockCtx<'a, B>,
    pub(super) group: &'a ScaleGroup,
    pub(super) input: &'a InputStats<B>,
    /// Bytes of recorded passes in memory at a time; one pass is there in any case.
    pub(super) recorded_bytes: usize,
    /// Hears how many of the scales are judged.
    pub(super) part: &'a Part<'a>,
}

impl<B: QuantBackend> Judge<'_, B> {
    /// The mean squared change of the output under each scale, `[in]`, from differences with inputs in bf16: mostly within a
    /// thousandth of what f32 gives.
    pub(super) fn losses(&self, scales: &[Tensor<B, 1>]) -> Result<Vec<f64>, MethodError> {
        if self.group.inspect == Inspect::Linear {
            return Ok(self.linear_losses(scales, Arithmetic::Bf16));
        }
        let mut sums = vec![0.0; scales.len()];
        let n_values = self.on_passes(|passes, share| {
            for (sum, scale) in sums.iter_mut().zip(scales) {
                let changes = self.quantized_linears().map(|name| (name, self.change(name, scale)));
                *sum += passes.squared_change(self.ctx.block, changes);
                self.part.tell(PART_OF_ALL * share / scales.len() as f64);
            }
        })?;
        Ok(sums.into_iter().map(|sum| sum / n_values as f64).collect())
    }

    /// The mean squared change of the output under a scale, `[in]`, from outputs in f32.
    pub(super) fn loss_in_f32(&self, scale: &Tensor<B, 1>) -> Result<f64, MethodError> {
        if self.group.inspect == Inspect::Linear {
            return Ok(self.linear_losses(std::slice::from_ref(scale), Arithmetic::F32)[0]);
        }
        let (candidate, mut sum) = (self.candidate(self.ctx.block.params().clone(), scale), 0.0);
        let n_values = self.on_passes(|passes, _| sum += passes.squared_distance(candidate.as_ref()))?;
        Ok(sum / n_values as f64)
    }

    /// The mean squared difference of the outputs under each scale from those in full precision, both in `arithmetic`.
    pub(super) fn output_losses(
        &self,
        scales: &[Tensor<B, 1>],
        arithmetic: Arithmetic,
    ) -> Result<Vec<f64>, MethodError> {
        if self.group.inspect == Inspect::Linear {
            return Ok(self.linear_losses(scales, arithmetic));
        }
        self.check_inputs()?;
        let (module, batches) = (self.group.inspect, self.input.batches());
        let params = BlockParams { products: Arc::new(arithmetic), ..self.ctx.block.params().clone() };
        let outputs = |block: &dyn Block<B>| batches.iter().map(|x| module.run(block, x.clone())).collect::<Vec<_>>();
        let original = self.ctx.block.with_params(params.clone());
        let asked = AskedOutputs { module, arithmetic };
        let expected = self.input.shared().get::<_, _, MethodError>(asked, || Ok(outputs(original.as_ref())))?;
        let n_values: usize = expected.iter().map(|output| output.shape().num_elements()).sum();
        let squares = |scale| {
            let candidate = self.candidate(params.clone(), scale);
            let moved = |x: &Tensor<B, 3>| module.run(candidate.as_ref(), x.clone());
            let pairs = batches.iter().zip(expected.iter());
            let sums = pairs.map(|(x, expected)| B::squared_distance_later(&moved(x), expected)).collect();
            self.part.tell(1.0 / scales.len() as f64);
            sums
        };
        Ok(means(scales.iter().map(squares), n_values))
    }

    /// Calls `work` with all recorded passes of the module, as many at a time as [`Self::recorded_bytes`] holds, and which share of
    /// all they are. Returns the number of values that the module puts out.
    fn on_passes(&self, mut work: impl FnMut(&RecordedPasses<B>, f64)) -> Result<usize, MethodError> {
        self.check_inputs()?;
        let (block, module) = (self.ctx.block, self.group.inspect);
        let chunks = chunks(self.input.batches());
        let Some(first) = chunks.first() else { return Ok(0) };
        let bytes = || Ok::<_, MethodError>(RecordedPasses::bytes_of_pass(block, module, first));
        let bytes = self.input.shared().get(AskedBytes { module }, bytes)?;
        let at_once = (self.recorded_bytes / (*bytes).max(1)).max(1);
        let mut n_values = 0;
        for some in chunks.chunks(at_once) {
            let record = || Ok::<_, MethodError>(RecordedPasses::new(block, module, some));
            // All in one are kept for other grids of a sweep.
            let is_all = some.len() == chunks.len();
            let passes =
                if is_all { self.input.shared().get(AskedPasses { module }, record)? } else { Arc::new(record()?) };
            n_values += passes.n_values();
            work(&passes, some.len() as f64 / chunks.len() as f64);
        }
        Ok(n_values)
    }

    /// The block with its parameters but for the group's linears, which are quantized under `scale`.
    fn candidate(&self, mut params: BlockParams<B>, scale: &Tensor<B, 1>) -> Box<dyn Block<B>> {
        for name in self.quantized_linears() {
            let bias = params.linear(name).bias.clone();
            params.linears.insert(name, Linear { weight: self.quantized(name, scale), bias });
        }
        self.ctx.block.with_params(params)
    }

    fn check_inputs(&self) -> Result<(), MethodError> {
        let (block_idx, linear) = (self.ctx.block_idx, self.group.input.0);
        self.ctx.inputs.map(|_| ()).ok_or(MethodError::NoCalibration { block_idx, linear })
    }

    /// Those of the group's linears that have a grid: another computes the same whatever the scale.
    fn quantized_linears(&self) -> impl Iterator<Item = LinearName> + '_ {
        self.group.linears.iter().copied().filter(|&name| self.ctx.grids.of(name).is_some())
    }

    fn quantized(&self, name: LinearName, scale: &Tensor<B, 1>) -> Tensor<B, 2> {
        let weight = B::in_f32(self.ctx.block.params().linear(name).weight.clone());
        B::fake_quant_scaled(weight, scale.clone(), self.ctx.grid(name))
    }

    fn change(&self, name: LinearName, scale: &Tensor<B, 1>) -> Tensor<B, 2> {
        self.quantized(name, scale) - B::in_f32(self.ctx.block.params().linear(name).weight.clone())
    }

    /// Means over tokens and outputs of `(x dW^T)^2`, where `dW` is the change under each scale. From the inputs in `arithmetic` where
    /// they are fewer than channels, else from their Gram matrix in f32: whichever takes fewer operations.
    fn linear_losses(&self, scales: &[Tensor<B, 1>], arithmetic: Arithmetic) -> Vec<f64> {
        let name = self.group.linears[0];
        let [n_out, n_in] = self.ctx.block.params().linear(name).weight.dims();
        let n_tokens = self.input.n_tokens();
        if n_tokens >= n_in || n_tokens == 0 {
            let form = |scale| vec![B::quadratic_form_later(self.change(name, scale), self.input.gram())];
            return means(scales.iter().map(form), n_out);
        }
        let squares = |scale| {
            let linear = Linear { weight: self.change(name, scale), bias: None };
            let of_batch = |x: &Tensor<B, 3>| {
                let moved = linear.forward(B::in_f32(x.clone()), arithmetic);
                B::dot_product_later(moved.clone(), moved)
            };
            self.input.batches().iter().map(of_batch).collect()
        };
        means(scales.iter().map(squares), n_tokens * n_out)
    }
}

/// The sum of each candidate's totals, divided by `n`; a device is waited for once for all.
fn means<B: QuantBackend>(of_candidates: impl Iterator<Item = Vec<Total<B>>>, n: usize) -> Vec<f64> {
    let of_candidates: Vec<Vec<Total<B>>> = of_candidates.collect();
    let counts: Vec<usize> = of_candidates.iter().map(Vec::len).collect();
    let mut totals = Total::read(of_candidates.into_iter().flatten().collect()).into_iter();
    counts.into_iter().map(|count| totals.by_ref().take(count).sum::<f64>() / n as f64).collect()
}

/// Batches `[batch, seq, in]` in parts of whole sequences.
fn chunks<B: QuantBackend>(batches: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    let of_batch = |x: &Tensor<B, 3>| {
        let [batch, seq, _] = x.dims();
        let n = (TOKENS_PER_PASS / seq).clamp(1, batch);
        (0..batch).step_by(n).map(|first| x.clone().narrow(0, first, n.min(batch - first))).collect::<Vec<_>>()
    };
    batches.iter().flat_map(of_batch).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::capture::BlockInputs;
    use crate::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
    use crate::grids::BlockGrids;
    use crate::model::tiny::{self, TinySpec};

    type Cpu = burn::backend::Flex;

    const GRID: Grid = Grid {
        bits: Bits::new(3).unwrap(),
        granularity: Granularity::PerChannel,
        symmetry: Symmetry::Asymmetric,
        range_includes_zero: false,
        scale_dtype: ScaleDtype::F32,
        values: None,
    };

    /// Losses of three scales of each group of a tiny block that saw 40 sequences of 24 tokens, by differences and in f32.
    fn losses(recorded_bytes: usize, n_threads: usize) -> Vec<(String, Vec<f64>, Vec<f64>)> {
        let spec = TinySpec::MHA;
        let decoder = tiny::decoder::<Cpu>(&spec, 7, &Default::default()).unwrap();
        let hidden = decoder.embedding().unwrap().embed(&tiny::sequences(&spec, 40, 24, 3));
        let block = decoder.block(0).unwrap();
        let (inputs, _) = BlockInputs::capture(block.as_ref(), &[hidden]);
        let (linears, grids) = (&block.layout().linears, &BlockGrids::from(GRID));
        let of_group = |group: &ScaleGroup| {
            let ctx = BlockCtx {
                block_idx: 0,
                block: block.as_ref(),
                inputs: Some(&inputs),
                linears,
                grids,
                listener: &|_| {},
            };
            let input = inputs.get(group.input).unwrap();
            let part = Part::new(&|_| {}, 1.0);
            let judge = Judge { ctx: &ctx, group, input, recorded_bytes, part: &part };
            let scales: Vec<_> = [0.0, 0.5, 0.95].iter().map(|&ratio| input.mean_abs().powf_scalar(ratio)).collect();
            let in_f32 = scales.iter().map(|scale| judge.loss_in_f32(scale).unwrap()).collect();
            (group.label(), judge.losses(&scales).unwrap(), in_f32)
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| block.layout().scale_groups.iter().map(of_group).collect())
    }

    #[test]
    fn differences_lose_what_outputs_lose() {
        for (group, by_differences, in_f32) in losses(RECORDED_BYTES, 2) {
            assert_eq!(by_differences.len(), 3);
            for (found, expected) in by_differences.iter().zip(&in_f32) {
                assert!(*expected > 0.0 && (found / expected - 1.0).abs() < 5e-3, "{group}: {found}, {expected}");
            }
        }
    }

    /// One pass in memory at a time, in any number of threads.
    #[test]
    fn losses_depend_neither_on_what_is_kept_nor_on_threads() {
        let expected = losses(RECORDED_BYTES, 1);
        assert_eq!(losses(RECORDED_BYTES, 3), expected);
        for ((group, found, in_f32), (_, found_at_once, in_f32_at_once)) in losses(1, 2).iter().zip(&expected) {
            for (found, expected) in found.iter().chain(in_f32).zip(found_at_once.iter().chain(in_f32_at_once)) {
                assert!((found / expected - 1.0).abs() < 1e-12, "{group}: {found}, {expected}");
            }
        }
    }
}
