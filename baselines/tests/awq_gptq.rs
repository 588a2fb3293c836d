//! AWQ with GPTQ's rounding on a whole block: what its log says, and which unit its inputs are in.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use awq_core::awq::{Awq, ClipSearch, ClipStep, ScaleFormula, ScaleSearch, ScaleStep, SearchArithmetic};
use awq_core::backend::float_vec;
use awq_core::capture::BlockInputs;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::log::{ClipLog, LinearLog};
use awq_core::method::{BlockCtx, BlockEdit, Precision, QuantMethod};
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Block, Inspect, LinearName};
use baselines::awq_gptq::AwqGptq;
use baselines::gptq::{ColumnOrder, Gptq, GroupGrid, RangeSearch};
use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};

const GRID: Grid = Grid {
    bits: Bits::new(3).unwrap(),
    granularity: Granularity::PerGroup(NonZeroU16::new(16).unwrap()),
    symmetry: Symmetry::Asymmetric,
    range_includes_zero: true,
    scale_dtype: ScaleDtype::F32,
    values: None,
};

fn gptq(order: ColumnOrder) -> Gptq {
    Gptq {
        damp: 0.01,
        block_size: NonZeroU16::new(16).unwrap(),
        order,
        group_grid: if order == ColumnOrder::Natural { GroupGrid::UpdatedWeights } else { GroupGrid::OriginalWeights },
        range: RangeSearch::MinMax,
        hessian: Precision::F64,
    }
}

/// A clip search that tries so many twentieths of the range; with 0 no weight is clipped.
fn clip(max_shrink: f64) -> ClipStep {
    ClipStep::Search(ClipSearch {
        n_steps: NonZeroU16::new(20).unwrap(),
        max_shrink,
        n_tokens: 512.try_into().unwrap(),
    })
}

/// The first block of a tiny model, and what its linears see times `unit`, channels with `dead(i)` zero.
fn block(unit: f32, dead: impl Fn(usize) -> bool) -> (Box<dyn Block<Flex>>, BlockInputs<Flex>) {
    let decoder = tiny::decoder::<Flex>(&TinySpec::MHA, 7, &Default::default()).unwrap();
    let block = decoder.block(0).unwrap();
    let hidden = decoder.embedding().unwrap().embed(&tiny::sequences(&TinySpec::MHA, 6, 24, 3));
    let (inputs, _) = BlockInputs::capture(block.as_ref(), &[hidden]);
    let scaled = |batch: &Tensor<Flex, 3>| {
        let dims = batch.dims();
        let channel = |at: usize| if dead(at % dims[2]) { 0.0 } else { unit };
        let values: Vec<f32> = float_vec(batch.clone()).iter().enumerate().map(|(at, x)| channel(at) * x).collect();
        Tensor::from_data(TensorData::new(values, dims), &Default::default())
    };
    let captured = |name: LinearName| (name, inputs.get(name).unwrap().batches().iter().map(scaled).collect());
    let seen: BTreeMap<_, _> = block.layout().linears.iter().map(|facts| captured(facts.input)).collect();
    (block, BlockInputs::from_batches(seen))
}

fn quantize(method: &dyn QuantMethod<Flex>, block: &dyn Block<Flex>, inputs: &BlockInputs<Flex>) -> BlockEdit<Flex> {
    let linears = &block.layout().linears;
    method
        .quantize_block(&BlockCtx {
            block_idx: 0,
            block,
            inputs: Some(inputs),
            linears,
            grids: &GRID.into(),
            listener: &|_| {},
        })
        .unwrap()
}

#[test]
fn the_log_keeps_the_losses_of_gptq_beside_those_of_the_clip_search() {
    let (block, inputs) = block(1.0, |_| false);
    let alone = quantize(&gptq(ColumnOrder::Natural), block.as_ref(), &inputs);
    // Without scales, and with a clip search that clips nothing, the rounding problem is GPTQ's own.
    let awq = Awq { scale: ScaleStep::Off, clip: clip(0.0) };
    let both = quantize(&AwqGptq { awq, gptq: gptq(ColumnOrder::Natural) }, block.as_ref(), &inputs);
    assert!(both.log.linears.iter().any(|linear| linear.clip.is_some()), "no linear was clipped");
    for (both, alone) in both.log.linears.iter().zip(&alone.log.linears) {
        assert_eq!(LinearLog { clip: None, ..both.clone() }, *alone);
        assert!(both.loss_before.is_some() && both.clip.is_none_or(|clip| clip.loss_before == clip.loss_after));
    }
    let awq = Awq { scale: ScaleStep::Off, clip: clip(0.5) };
    let clipped = quantize(&AwqGptq { awq, gptq: gptq(ColumnOrder::Natural) }, block.as_ref(), &inputs);
    let searches: Vec<ClipLog> = clipped.log.linears.iter().filter_map(|linear| linear.clip).collect();
    assert!(searches.iter().any(|clip| clip.loss_after < clip.loss_before), "{searches:?}");
    assert!(clipped.log.linears.iter().all(|linear| linear.loss_after < linear.loss_before), "{:?}", clipped.log);
}

#[test]
fn the_unit_of_the_inputs_does_not_matter_to_clipping_and_rounding() {
    for order in [ColumnOrder::Natural, ColumnOrder::Activation] {
        let awq = Awq { scale: ScaleStep::Off, clip: clip(0.5) };
        let method = AwqGptq { awq, gptq: gptq(order) };
        let edit = |unit| {
            let (block, inputs) = block(unit, |i| i % 3 == 0);
            quantize(&method, block.as_ref(), &inputs)
        };
        let expected = edit(1.0);
        assert!(expected.log.linears.iter().all(|linear| linear.notes.len() == 1), "{:?}", expected.log);
        for unit in [1.0 / 128.0, 128.0] {
            let found = edit(unit);
            assert_eq!(found.linears, expected.linears, "{order:?}: inputs times {unit} change the codes");
        }
        for unit in [0.01, 100.0] {
            for (name, found) in edit(unit).linears {
                let expected = &expected.linears[&name];
                let differing = found.codes.iter().zip(&expected.codes).filter(|(a, b)| a != b).count();
                assert!(differing <= found.codes.len() / 50, "{order:?} {name}: {differing} codes at unit {unit}");
            }
        }
    }
}

/// A scale group that is judged by its own linear finds the same exponent in every unit, and then the same codes. Groups judged
/// by a module need not: softmax and activation functions know the size of what they see. Nor do dead channels, for
/// which the official code has a smallest scale of `1e-4`.
#[test]
fn the_unit_of_live_inputs_does_not_matter_to_scales_judged_by_a_linear() {
    let search = ScaleSearch {
        formula: ScaleFormula::Activation,
        n_ratios: NonZeroU16::new(20).unwrap(),
        arithmetic: SearchArithmetic::F32,
    };
    let awq = Awq { scale: ScaleStep::Search(search), clip: ClipStep::Off };
    let method = AwqGptq { awq, gptq: gptq(ColumnOrder::Natural) };
    let edit = |unit| {
        let (block, inputs) = block(unit, |_| false);
        let edit = quantize(&method, block.as_ref(), &inputs);
        let groups = &block.layout().scale_groups;
        let judged_alone = groups.iter().filter(|group| group.inspect == Inspect::Linear).map(|group| group.label());
        (edit, judged_alone.collect::<Vec<_>>())
    };
    let (expected, groups) = edit(1.0);
    assert!(!groups.is_empty());
    for unit in [0.01, 100.0] {
        let (found, _) = edit(unit);
        for group in &groups {
            let ratio = |edit: &BlockEdit<Flex>| {
                edit.log.scale_searches.iter().find(|search| search.group == *group).map(|search| search.ratio)
            };
            assert_eq!(ratio(&found), ratio(&expected), "{group} at unit {unit}");
        }
        for (name, expected) in expected.linears.iter().filter(|(name, _)| groups.contains(&name.0.to_owned())) {
            let codes = &found.linears[name].codes;
            let differing = codes.iter().zip(&expected.codes).filter(|(a, b)| a != b).count();
            assert!(differing <= codes.len() / 50, "{name}: {differing} codes at unit {unit}");
        }
    }
}
