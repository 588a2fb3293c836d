//! What the tests share: numbers, grids, thread pools and a block with its captured inputs.

use std::num::NonZeroU16;

use awq_core::awq::{Awq, ClipSearch, ClipStep, ScaleFormula, ScaleSearch, ScaleStep, SearchArithmetic};
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::capture::BlockInputs;
use awq_core::codebook::Codebook;
use awq_core::fold::fold;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::log::ScaleSearchLog;
use awq_core::method::{BlockCtx, BlockEdit, QuantMethod};
use awq_core::model::layers::Linear;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Block, Decoder, NoTap};
use burn::tensor::{Tensor, TensorData};

/// The default CPU backend: single-pass loops.
pub(crate) type Cpu = burn::backend::Flex;
/// The other CPU backend: the same loops over other tensors.
pub(crate) type OtherCpu = burn::backend::NdArray<f32>;
/// Runs every definition in plain tensor operations.
pub(crate) type Definition = burn::backend::NdArray<f32, i32>;

/// Deterministic numbers in -1 .. 1, dense around zero as weights are.
pub(crate) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| (uniform() + uniform() + uniform()) / 3.0).collect()
}

pub(crate) fn tensor<B: QuantBackend, const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
}

pub(crate) fn with_threads<T: Send>(n_threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(run)
}

/// Largest difference, relative to the largest magnitude of `expected`.
#[track_caller]
pub(crate) fn check_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let (place, error) = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or_default();
    assert!(
        error <= tolerance * largest,
        "{what}: element {place} is {} instead of {}, off by {:e} of the largest magnitude {largest}",
        found[place],
        expected[place],
        error / largest
    );
}

/// How far the loss of a candidate is from what is expected, relative to that. The loss of one that was given up is a lower bound: it is
/// wrong only where it is above.
pub(crate) fn loss_error(search: &ScaleSearchLog, idx: usize, expected: f64) -> f64 {
    let error = search.losses[idx] / expected - 1.0;
    if search.bounds.contains(&idx) { error.max(0.0) } else { error.abs() }
}

pub(crate) fn grid(bits: u8, granularity: Granularity) -> Grid {
    Grid {
        bits: Bits::new(bits).unwrap(),
        granularity,
        symmetry: Symmetry::Asymmetric,
        range_includes_zero: false,
        scale_dtype: ScaleDtype::F32,
        values: None,
    }
}

pub(crate) fn group(size: u16) -> Granularity {
    Granularity::PerGroup(NonZeroU16::new(size).unwrap())
}

/// Every combination of the axes of a grid; groups that divide 576, leave a rest, and are larger than it.
pub(crate) fn all_grids() -> Vec<Grid> {
    let mut grids = Vec::new();
    for bits in 2..=8 {
        for granularity in [Granularity::PerTensor, Granularity::PerChannel, group(64), group(128), group(1000)] {
            for symmetry in [Symmetry::Asymmetric, Symmetry::SymmetricFullRange, Symmetry::SymmetricRestricted] {
                for range_includes_zero in [false, true] {
                    for scale_dtype in [ScaleDtype::F16, ScaleDtype::F32] {
                        grids.push(Grid { symmetry, range_includes_zero, scale_dtype, ..grid(bits, granularity) });
                    }
                }
            }
        }
    }
    grids
}

/// Tables of values, with groups that divide 576, leave a rest, and are larger than it.
pub(crate) fn codebook_grids() -> Vec<Grid> {
    let mut grids = Vec::new();
    for values in Codebook::ALL {
        for granularity in [Granularity::PerTensor, Granularity::PerChannel, group(64), group(128), group(1000)] {
            for scale_dtype in [ScaleDtype::F16, ScaleDtype::F32, ScaleDtype::E8m0, ScaleDtype::E4m3] {
                grids.push(Grid::of_codebook(values, granularity, scale_dtype));
            }
        }
    }
    grids
}

pub(crate) fn scale_search(formula: ScaleFormula, n_ratios: u16) -> ScaleStep {
    ScaleStep::Search(ScaleSearch {
        formula,
        n_ratios: NonZeroU16::new(n_ratios).unwrap(),
        arithmetic: SearchArithmetic::F32,
    })
}

pub(crate) fn clip_search(n_tokens: usize) -> ClipStep {
    ClipStep::Search(ClipSearch {
        n_steps: NonZeroU16::new(20).unwrap(),
        max_shrink: 0.5,
        n_tokens: n_tokens.try_into().unwrap(),
    })
}

/// The official code's settings.
pub(crate) fn official_awq() -> Awq {
    Awq { scale: scale_search(ScaleFormula::Activation, 20), clip: clip_search(512) }
}

/// Plain rounding, as AWQ without its searches.
pub(crate) fn no_search() -> Awq {
    Awq { scale: ScaleStep::Off, clip: ClipStep::Off }
}

/// The first block of a tiny decoder with what its linears see.
pub(crate) struct Case {
    pub(crate) block: Box<dyn Block<Cpu>>,
    pub(crate) inputs: BlockInputs<Cpu>,
    pub(crate) hidden: Vec<Tensor<Cpu, 3>>,
}

impl Case {
    /// `batches` of sequences of 24 tokens; the same sequences however they are cut into batches.
    pub(crate) fn new(spec: &TinySpec, batches: &[usize]) -> Self {
        let decoder: Box<dyn Decoder<Cpu>> = tiny::decoder(spec, 7, &Default::default()).unwrap();
        let sequences = tiny::sequences(spec, batches.iter().sum(), 24, 3);
        let mut rest = sequences.as_slice();
        let hidden: Vec<_> = batches
            .iter()
            .map(|&n| {
                let (batch, others) = rest.split_at(n);
                rest = others;
                decoder.embedding().unwrap().embed(batch)
            })
            .collect();
        let block = decoder.block(0).unwrap();
        let (inputs, _) = BlockInputs::capture(block.as_ref(), &hidden);
        Self { block, inputs, hidden }
    }

    pub(crate) fn edit(&self, method: &dyn QuantMethod<Cpu>, grid: &Grid) -> BlockEdit<Cpu> {
        let ctx = BlockCtx {
            block_idx: 0,
            block: self.block.as_ref(),
            inputs: Some(&self.inputs),
            linears: &self.block.layout().linears,
            grids: &(*grid).into(),
            listener: &|_| {},
        };
        method.quantize_block(&ctx).unwrap()
    }

    /// The output on the first batch of the block that an edit asks for, made by hand.
    pub(crate) fn output_after(&self, edit: &BlockEdit<Cpu>) -> Vec<f32> {
        let mut params = self.block.params().clone();
        for (group_idx, scale) in &edit.scales {
            params = fold(params, &self.block.layout().scale_groups[*group_idx], scale);
        }
        for (&name, quantized) in &edit.linears {
            let bias = params.linear(name).bias.clone();
            params.linears.insert(name, Linear { weight: quantized.to_tensor(&Default::default()), bias });
        }
        float_vec(self.block.with_params(params).forward(self.hidden[0].clone(), &mut NoTap))
    }
}
