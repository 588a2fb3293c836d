//! Differential test: GPTQ on block 0 of SmolLM2-135M against vectors that the official code made. Skipped, with a line
//! saying so, where the folders of `AWQ_ASSETS` (a list as PATH is) lack the files.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU16;
use std::path::PathBuf;

use awq_core::backend::float_vec;
use awq_core::capture::BlockInputs;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::method::{BlockCtx, LinearMethod, Precision};
use awq_core::model::open_decoder;
use awq_core::open::open_model;
use awq_core::quantized::{QuantizedWeight, ZeroPoints};
use awq_core::transform::WeightTransform;
use baselines::gptq::{ColumnOrder, Gptq, GroupGrid, RangeSearch};
use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

const GRID: Grid = Grid {
    bits: Bits::new(3).unwrap(),
    granularity: Granularity::PerGroup(NonZeroU16::new(64).unwrap()),
    symmetry: Symmetry::Asymmetric,
    range_includes_zero: true,
    scale_dtype: ScaleDtype::F32,
    values: None,
};

/// Settings of the official code: 1% damping, blocks of 128 columns, everything in f32.
fn official(order: ColumnOrder, group_grid: GroupGrid) -> Gptq {
    Gptq {
        damp: 0.01,
        block_size: NonZeroU16::new(128).unwrap(),
        order,
        group_grid,
        range: RangeSearch::MinMax,
        hessian: Precision::F32,
    }
}

fn asset(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("AWQ_ASSETS").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        println!("skipped: no {name} in the folders of AWQ_ASSETS");
    }
    found
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::F32, "{name}");
    view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// `tr(D H D^T)` with `D` the error of a quantized weight.
fn loss(weight: &[f32], quantized: &[f32], gram: &[f64], n_in: usize) -> f64 {
    let row_loss = |(weight, quantized): (&[f32], &[f32])| -> f64 {
        let delta: Vec<f64> = weight.iter().zip(quantized).map(|(w, q)| f64::from(q - w)).collect();
        let product = |row: &[f64]| row.iter().zip(&delta).map(|(g, d)| g * d).sum::<f64>();
        gram.chunks(n_in).zip(&delta).map(|(row, d)| d * product(row)).sum()
    };
    weight.chunks(n_in).zip(quantized.chunks(n_in)).map(row_loss).sum()
}

#[test]
fn codes_agree_with_the_official_code() {
    let (Some(model), Some(vectors)) =
        (asset("SmolLM2-135M-Instruct.Q4_1.gguf"), asset("awq_gptq_b0_small_int3_g64.safetensors"))
    else {
        return;
    };
    let bytes = std::fs::read(vectors).unwrap();
    let oracle = SafeTensors::deserialize(&bytes).unwrap();
    let model = open_model(&model).unwrap();
    let decoder = open_decoder::<Flex>(model.config, model.checkpoint, &Default::default()).unwrap();
    let block = decoder.block(0).unwrap();
    let hidden = TensorData::new(floats(&oracle, "block0_input"), [2, 512, 576]);
    let hidden = Tensor::<Flex, 3>::from_data(hidden, &Default::default());
    let (inputs, _) = BlockInputs::capture(block.as_ref(), &[hidden]);
    let layout = block.layout();
    let (linears, grids) = (&layout.linears, &GRID.into());
    let ctx =
        BlockCtx { block_idx: 0, block: block.as_ref(), inputs: Some(&inputs), linears, grids, listener: &|_| {} };
    for linear in ["self_attn.q_proj", "mlp.down_proj"] {
        let facts = layout.linears.iter().find(|facts| facts.name.0 == linear).unwrap();
        let ctx = ctx.linear(facts);
        let [n_out, n_in] = ctx.weight.dims();
        let weight = float_vec(ctx.weight.clone());
        let gram = ctx.gram(Precision::F64).unwrap();
        // The official code sums over tokens and divides by half the two sequences.
        let expected = floats(&oracle, &format!("gptq_{linear}_H"));
        let largest = expected.iter().fold(0.0_f32, |max, h| max.max(h.abs()));
        for (found, expected) in gram.iter().zip(&expected) {
            assert!((found * 1024.0 - f64::from(*expected)).abs() < 1e-4 * f64::from(largest), "{linear}: H");
        }
        for (variant, order, group_grid) in [
            ("plain", ColumnOrder::Natural, GroupGrid::BlockStartWeights),
            ("act_static", ColumnOrder::Activation, GroupGrid::OriginalWeights),
        ] {
            let name = |part: &str| format!("gptq_{linear}_{variant}_{part}");
            let expected = QuantizedWeight {
                n_out,
                n_in,
                grid: GRID,
                codes: oracle.tensor(&name("codes_u8")).unwrap().data().to_vec(),
                scale: floats(&oracle, &name("qscale")),
                zero_point: ZeroPoints::Codes(floats(&oracle, &name("qzero")).iter().map(|&z| z as u8).collect()),
                transform: WeightTransform::Identity,
            };
            let (found, log) = official(order, group_grid).quantize_linear(&ctx).unwrap();
            let differing = found.codes.iter().zip(&expected.codes).filter(|(a, b)| a != b).count();
            let share = differing as f64 / found.codes.len() as f64;
            let losses = [&found, &expected].map(|q| loss(&weight, &q.dequantize(), &gram, n_in));
            println!("{linear} {variant}: {:.4}% of the codes differ, losses {losses:?}, {log:?}", 100.0 * share);
            assert!((losses[0] / losses[1] - 1.0).abs() < 0.02, "{linear} {variant}: losses {losses:?}");
            let logged = log.loss_after.unwrap() * n_out as f64;
            assert!((logged / losses[0] - 1.0).abs() < 1e-3, "{linear} {variant}: the log says {logged}");
            if variant == "act_static" {
                assert_eq!(found.scale, expected.scale);
                assert_eq!(found.zero_point, expected.zero_point);
            }
            assert!(share < 0.05, "{linear} {variant}: {:.2}% of the codes differ", 100.0 * share);
        }
    }
}
