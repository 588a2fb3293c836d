//! The losses of candidate scales: how far the output of a module, or of a linear, moves when its weights are quantized under each.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::differences::RecordedPasses;
use super::race::{Field, Loss, Race};
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
pub(super) const RECORDED_BYTES: usize = 1 << 30;
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
    changing: Vec<LinearName>,
}

/// Some of the recorded passes of a module.
struct Round<'a, B: QuantBackend> {
    passes: &'a RecordedPasses<B>,
    /// Of all passes.
    share: f64,
    is_last: bool,
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
    /// The mean squared change of the output under each scale of `field`, `[in]`. From differences with inputs in bf16, mostly within a
    /// thousandth of what f32 gives, but for that of a linear with a Gram matrix, which is in f32. Of a scale that is no match for the
    /// best rival it is a lower bound.
    pub(super) fn losses_by_differences(
        &self,
        scales: &[Tensor<B, 1>],
        field: Field,
    ) -> Result<Vec<Loss>, MethodError> {
        assert_eq!(scales.len(), field.n_candidates(), "a scale a candidate");
        let mut race = Race::new(field);
        if self.group.inspect != Inspect::Linear {
            let n_values = self.in_rounds(|Round { passes, share, is_last }| {
                race.start_round(passes.passes().len(), is_last);
                self.run_all(&mut race, share, |race, idx| {
                    let changes = self.quantized_linears().map(|name| (name, self.bf16_change(name, &scales[idx])));
                    let changes = Arc::new(changes.collect());
                    race.run(idx, passes.passes(), |some| passes.squared_changes(self.ctx.block, &changes, some));
                });
            })?;
            return Ok(race.losses(n_values));
        }
        let Some(n_values) = self.n_values_of_tokens() else {
            return Ok(self.linear_losses(scales, Arithmetic::F32).into_iter().map(Loss::InF32).collect());
        };
        let parts = chunks(self.input.batches());
        race.start_round(parts.len(), true);
        self.run_all(&mut race, 1.0, |race, idx| {
            let change = self.bf16_change(self.group.linears[0], &scales[idx]);
            let squares = |x: &Tensor<B, 3>| {
                let [batch, seq, n_in] = x.dims();
                let moved = B::matmul_bf16(B::in_f32(x.clone()).reshape([batch * seq, n_in]), &change);
                B::dot_product_later(moved.clone(), moved)
            };
            race.run(idx, &parts, |some| Total::read(some.iter().map(squares).collect()));
        });
        Ok(race.losses(n_values))
    }

    /// A round of a race, which is a share of all parts.
    fn run_all(&self, race: &mut Race, share: f64, mut run: impl FnMut(&mut Race, usize)) {
        let of_one = PART_OF_ALL * share / race.n_candidates() as f64;
        let mut n_left = race.n_candidates();
        while let Some(idx) = race.next() {
            run(race, idx);
            n_left -= 1;
            self.part.tell(of_one);
        }
        self.part.tell(of_one * n_left as f64);
    }

    /// [`Self::losses_by_differences`] of a scale alone, which is whole: more work than what is told of.
    pub(super) fn loss_by_differences(&self, scale: &Tensor<B, 1>) -> Result<Loss, MethodError> {
        let alone = Judge { part: &Part::new(&|_| {}, 0.0), ..*self };
        Ok(alone.losses_by_differences(std::slice::from_ref(scale), Field { n_rivals: 1, stays: 0 })?[0])
    }

    /// The mean squared change of the output under a scale, `[in]`, from outputs in f32.
    pub(super) fn loss_in_f32(&self, scale: &Tensor<B, 1>) -> Result<f64, MethodError> {
        if self.group.inspect == Inspect::Linear {
            return Ok(self.linear_losses(std::slice::from_ref(scale), Arithmetic::F32)[0]);
        }
        let (candidate, mut sum) = (self.candidate(self.ctx.block.params().clone(), scale), 0.0);
        let n_values = self.in_rounds(|round| sum += round.passes.squared_distance(candidate.as_ref()))?;
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

    /// Calls `work` with all recorded passes of the module, as many at a time as [`Self::recorded_bytes`] holds. Returns the number of values
    /// that the module puts out.
    fn in_rounds(&self, mut work: impl FnMut(Round<'_, B>)) -> Result<usize, MethodError> {
        self.check_inputs()?;
        let (block, module, changing) = (self.ctx.block, self.group.inspect, &self.group.linears);
        let chunks = chunks(self.input.batches());
        let Some(first) = chunks.first() else { return Ok(0) };
        let bytes = RecordedPasses::bytes_of_pass(block, module, changing, first);
        let at_once = (self.recorded_bytes / bytes.max(1)).max(1);
        let (mut n_values, n_rounds) = (0, chunks.len().div_ceil(at_once));
        for (round, some) in chunks.chunks(at_once).enumerate() {
            let record = || Ok::<_, MethodError>(RecordedPasses::new(block, module, changing, some));
            // All in one are kept for other grids of a sweep.
            let asked = || AskedPasses { module, changing: changing.clone() };
            let passes = if n_rounds == 1 { self.input.shared().get(asked(), record)? } else { Arc::new(record()?) };
            n_values += passes.n_values();
            let share = some.len() as f64 / chunks.len() as f64;
            work(Round { passes: &passes, share, is_last: round + 1 == n_rounds });
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

    fn bf16_change(&self, name: LinearName, scale: &Tensor<B, 1>) -> B::Bf16Weight {
        let weight = B::in_f32(self.ctx.block.params().linear(name).weight.clone());
        B::bf16_change(weight, scale.clone(), self.ctx.grid(name))
    }

    /// Number of values that the linear of a group of one puts out. `None` where its inputs are no fewer than its channels: then their
    /// Gram matrix takes fewer operations than they do.
    fn n_values_of_tokens(&self) -> Option<usize> {
        let [n_out, n_in] = self.ctx.block.params().linear(self.group.linears[0]).weight.dims();
        let n_tokens = self.input.n_tokens();
        (0 < n_tokens && n_tokens <= n_in).then_some(n_tokens * n_out)
    }

    /// The linear of a group of one with its change under a scale for its weight: it puts out by how much its output moves.
    fn moving_linear(&self, scale: &Tensor<B, 1>) -> Linear<B> {
        Linear { weight: self.change(self.group.linears[0], scale), bias: None }
    }

    /// Means over tokens and outputs of `(x dW^T)^2`, where `dW` is the change under each scale. From the inputs in `arithmetic` where
    /// they are no more than channels, else from their Gram matrix in f32.
    fn linear_losses(&self, scales: &[Tensor<B, 1>], arithmetic: Arithmetic) -> Vec<f64> {
        let name = self.group.linears[0];
        let Some(n_values) = self.n_values_of_tokens() else {
            let [n_out, _] = self.ctx.block.params().linear(name).weight.dims();
            let form = |scale| vec![B::quadratic_form_later(self.change(name, scale), self.input.gram())];
            return means(scales.iter().map(form), n_out);
        };
        let squares = |scale| {
            let linear = self.moving_linear(scale);
            self.input.batches().iter().map(|x| squares_of_outputs(&linear, x, arithmetic)).collect()
        };
        means(scales.iter().map(squares), n_values)
    }
}

/// The sum of the squares of what a linear puts out.
fn squares_of_outputs<B: QuantBackend>(linear: &Linear<B>, x: &Tensor<B, 3>, arithmetic: Arithmetic) -> Total<B> {
    let moved = linear.forward(B::in_f32(x.clone()), arithmetic);
    B::dot_product_later(moved.clone(), moved)
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

    /// Calls `check` with a judge of each group of a tiny block that saw 120 sequences of 24 tokens, which is six passes, and with scales.
    fn judge_each(recorded_bytes: usize, mut check: impl FnMut(&Judge<'_, Cpu>, &[Tensor<Cpu, 1>])) {
        let spec = TinySpec::MHA;
        let decoder = tiny::decoder::<Cpu>(&spec, 7, &Default::default()).unwrap();
        let hidden = decoder.embedding().unwrap().embed(&tiny::sequences(&spec, 120, 24, 3));
        let block = decoder.block(0).unwrap();
        let (inputs, _) = BlockInputs::capture(block.as_ref(), &[hidden]);
        let (linears, grids) = (&block.layout().linears, &BlockGrids::from(GRID));
        for group in &block.layout().scale_groups {
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
            check(&judge, &scales);
        }
    }

    /// Losses of three scales of each group, each alone, by differences and in f32.
    fn losses(recorded_bytes: usize, n_threads: usize) -> Vec<(String, Vec<f64>, Vec<f64>)> {
        let mut found = Vec::new();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| {
            judge_each(recorded_bytes, |judge, scales| {
                let by_differences =
                    scales.iter().map(|scale| judge.loss_by_differences(scale).unwrap().value()).collect();
                let in_f32 = scales.iter().map(|scale| judge.loss_in_f32(scale).unwrap()).collect();
                found.push((judge.group.label(), by_differences, in_f32));
            });
        });
        found
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

    /// All passes at once, and one at a time: then who is out is told before the last.
    #[test]
    fn who_is_out_has_lost_more_than_the_best() {
        for recorded_bytes in [RECORDED_BYTES, 1] {
            let (mut alone, mut n_out) = (losses(recorded_bytes, 2).into_iter(), 0);
            judge_each(recorded_bytes, |judge, scales| {
                let (group, wholes, _) = alone.next().unwrap();
                let found = judge.losses_by_differences(scales, Field { n_rivals: 3, stays: 1 }).unwrap();
                let smallest = wholes.iter().copied().fold(f64::INFINITY, f64::min);
                for (found, whole) in found.iter().zip(&wholes) {
                    match found.is_bound() {
                        true => {
                            assert!(found.value() > smallest && found.value() < *whole, "{group}: {found:?}, {whole}")
                        }
                        false => assert_eq!(found.value(), *whole, "{group}"),
                    }
                }
                n_out += found.iter().filter(|loss| loss.is_bound()).count();
            });
            // One of three in each of four groups.
            assert_eq!(n_out, 4, "{recorded_bytes}");
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
