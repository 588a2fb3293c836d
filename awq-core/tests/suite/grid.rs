//! Rounding onto grids: the fast loops against the definition and against scalars, and what every grid promises.

use awq_core::backend::{QuantBackend, float_vec};
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::quantized::QuantizedWeight;
use burn::tensor::Tensor;

use crate::support::{Cpu, Definition, OtherCpu, all_grids, codebook_grids, grid, group, numbers, tensor};

const N_OUT: usize = 5;
const N_IN: usize = 576;

/// Rows of different spread, one of them away from zero.
fn weight() -> Vec<f32> {
    let mut weight = numbers(N_OUT * N_IN, 1);
    for (row_idx, row) in weight.chunks_mut(N_IN).enumerate() {
        let (gain, shift) = [(1.0, 0.0), (0.01, 0.0), (1.0, 2.0), (30.0, 0.0), (1e-7, 0.0)][row_idx];
        row.iter_mut().for_each(|w| *w = *w * gain + shift);
    }
    weight
}

fn quantize<B: QuantBackend>(weight: &[f32], n_in: usize, grid: &Grid) -> QuantizedWeight {
    B::quantize_weight(tensor(weight, [weight.len() / n_in, n_in]), grid)
}

fn fake_quant<B: QuantBackend>(weight: &[f32], n_in: usize, grid: &Grid) -> Vec<f32> {
    float_vec(B::fake_quant(tensor(weight, [weight.len() / n_in, n_in]), grid))
}

#[test]
fn backends_and_definition_agree_bit_for_bit() {
    for grid in all_grids().into_iter().chain(codebook_grids()) {
        let expected = quantize::<Definition>(&weight(), N_IN, &grid);
        assert_eq!(quantize::<Cpu>(&weight(), N_IN, &grid), expected, "{grid:?}");
        assert_eq!(quantize::<OtherCpu>(&weight(), N_IN, &grid), expected, "{grid:?}");
    }
}

#[test]
fn fake_quantization_is_quantization_and_back_bit_for_bit() {
    for grid in all_grids().into_iter().chain(codebook_grids()) {
        let expected = quantize::<Cpu>(&weight(), N_IN, &grid).dequantize();
        assert_eq!(fake_quant::<Cpu>(&weight(), N_IN, &grid), expected, "{grid:?}");
        assert_eq!(fake_quant::<Definition>(&weight(), N_IN, &grid), expected, "{grid:?}");
    }
}

/// The module's table, a group at a time.
#[test]
fn codes_are_those_of_the_table() {
    for grid in all_grids().into_iter().filter(|grid| grid.granularity != Granularity::PerTensor) {
        let found = quantize::<Cpu>(&weight(), N_IN, &grid);
        let len = grid.granularity.group_len(N_IN);
        let n_groups = grid.granularity.n_groups(N_IN);
        let weight = weight();
        assert_eq!(found.scale.len(), N_OUT * n_groups, "{grid:?}");
        for (row_idx, row) in weight.chunks(N_IN).enumerate() {
            for (group_idx, group) in row.chunks(len).enumerate() {
                let (scale, zero) = table_params(group, &grid);
                let place = row_idx * n_groups + group_idx;
                assert_eq!((found.scale[place], found.zero_point.get(place)), (scale, zero), "{grid:?}");
                for (column, w) in group.iter().enumerate() {
                    let code = ((w / scale).round_ties_even() + zero).clamp(lowest(&grid), highest(&grid));
                    let found = found.codes[row_idx * N_IN + group_idx * len + column];
                    assert_eq!(f32::from(found), code, "{grid:?}, row {row_idx}, group {group_idx}, column {column}");
                }
            }
        }
    }
}

fn lowest(grid: &Grid) -> f32 {
    if grid.symmetry == Symmetry::SymmetricRestricted { 1.0 } else { 0.0 }
}

fn highest(grid: &Grid) -> f32 {
    2_f32.powi(grid.bits.get().into()) - 1.0
}

fn table_params(group: &[f32], grid: &Grid) -> (f32, f32) {
    let mut min = group.iter().copied().fold(f32::INFINITY, f32::min);
    let mut max = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if grid.range_includes_zero {
        (min, max) = (min.min(0.0), max.max(0.0));
    }
    let amax = min.abs().max(max.abs());
    let half = 2_f32.powi(i32::from(grid.bits.get()) - 1);
    let scale = match grid.symmetry {
        Symmetry::Asymmetric => (max - min).max(1e-5) / highest(grid),
        Symmetry::SymmetricFullRange => (2.0 * amax).max(1e-5) / highest(grid),
        Symmetry::SymmetricRestricted => amax.max(1e-5) / (half - 1.0),
    };
    let scale = match grid.scale_dtype {
        ScaleDtype::F16 => half::f16::from_f32(scale).to_f32(),
        ScaleDtype::F32 => scale,
        ScaleDtype::E8m0 | ScaleDtype::E4m3 => unreachable!("evenly spaced codes have no such scales"),
    };
    match grid.symmetry {
        Symmetry::Asymmetric => (scale, (-min / scale).round_ties_even().clamp(0.0, highest(grid))),
        _ => (scale, half),
    }
}

#[test]
fn codes_and_zero_points_stay_in_range() {
    for grid in all_grids() {
        let found = quantize::<Cpu>(&weight(), N_IN, &grid);
        let range = grid.min_code()..=grid.bits.max_code();
        assert!(found.codes.iter().all(|code| range.contains(code)), "{grid:?}");
        let mut zeros = (0..found.scale.len()).map(|group_idx| found.zero_point.get(group_idx));
        assert!(zeros.all(|zero| zero <= highest(&grid)), "{grid:?}");
    }
}

#[test]
fn eight_bits_lose_little() {
    let weight = &weight()[..N_IN];
    for grid in all_grids().into_iter().filter(|grid| grid.bits.get() == 8) {
        let restored = fake_quant::<Cpu>(weight, N_IN, &grid);
        let error: f32 = weight.iter().zip(&restored).map(|(w, q)| (w - q).powi(2)).sum();
        let total: f32 = weight.iter().map(|w| w * w).sum();
        assert!((error / total).sqrt() < 0.01, "{grid:?}: relative error {}", (error / total).sqrt());
    }
}

/// A group that spans 0 ..= 15 has scale 1 at 4 bits: codes are the rounded weights.
#[test]
fn halves_go_to_the_even_code() {
    let weight = [0.0, 0.5, 1.5, 2.5, 3.5, 11.5, 12.5, 15.0];
    let expected = [0, 0, 2, 2, 4, 12, 12, 15];
    for found in [
        quantize::<Cpu>(&weight, 8, &grid(4, Granularity::PerChannel)),
        quantize::<Definition>(&weight, 8, &grid(4, Granularity::PerChannel)),
    ] {
        assert_eq!((found.codes.as_slice(), found.scale[0], found.zero_point.get(0)), (&expected[..], 1.0, 0.0));
    }
}

/// The AWQ grid need not hold zero: its zero point is clamped to 0, and what lies above the range of codes is clipped.
#[test]
fn groups_away_from_zero_clip_on_the_awq_grid_only() {
    let weight = [1.0, 1.25, 1.5, 2.0];
    let awq_grid = grid(4, Granularity::PerChannel);
    let found = quantize::<Cpu>(&weight, 4, &awq_grid);
    assert_eq!((found.zero_point.get(0), found.codes.as_slice()), (0.0, &[15; 4][..]));
    assert!(found.dequantize().iter().all(|w| (w - 1.0).abs() < 1e-6));

    let gptq_grid = Grid { range_includes_zero: true, ..awq_grid };
    let restored = quantize::<Cpu>(&weight, 4, &gptq_grid).dequantize();
    assert!(weight.iter().zip(&restored).all(|(w, q)| (w - q).abs() <= 1.0 / 15.0), "{restored:?}");

    let negative = weight.map(|w| -w);
    assert_eq!(quantize::<Cpu>(&negative, 4, &awq_grid).codes, [0; 4]);
    assert_eq!(quantize::<Cpu>(&negative, 4, &awq_grid).zero_point.get(0), 15.0);
}

#[test]
fn constant_groups_have_a_scale() {
    for symmetry in [Symmetry::Asymmetric, Symmetry::SymmetricFullRange, Symmetry::SymmetricRestricted] {
        for constant in [0.0, 0.3, -0.3] {
            let grid = Grid { symmetry, range_includes_zero: true, ..grid(4, group(4)) };
            let restored = fake_quant::<Cpu>(&[constant; 8], 8, &grid);
            assert!(restored.iter().all(|w| (w - constant).abs() < 0.3 / 14.0), "{grid:?}: {restored:?}");
        }
    }
    // Without zero in the range the width of the group is the floor, and 15 steps of it are all that can be stored.
    let restored = fake_quant::<Cpu>(&[0.3; 4], 4, &grid(4, group(4)));
    assert!(restored.iter().all(|w| (w - 1e-5).abs() < 1e-10), "{restored:?}");
}

/// Holds where a quantized group has the extrema it was quantized with: not for a full symmetric range, which is a step
/// wider below zero than above.
#[test]
fn quantizing_twice_is_quantizing_once() {
    let weight = numbers(4 * N_IN, 9);
    let keeps_extrema =
        |grid: &Grid| grid.symmetry != Symmetry::SymmetricFullRange && grid.scale_dtype == ScaleDtype::F32;
    for grid in all_grids().into_iter().filter(keeps_extrema) {
        let once = fake_quant::<Cpu>(&weight, N_IN, &grid);
        let twice = fake_quant::<Cpu>(&once, N_IN, &grid);
        assert!(once.iter().zip(&twice).all(|(a, b)| (a - b).abs() < 1e-6), "{grid:?}");
    }
}

#[test]
fn scaling_by_one_is_no_scaling() {
    let weight: Tensor<Cpu, 2> = tensor(&weight(), [N_OUT, N_IN]);
    let grid = grid(3, group(128));
    let ones = Tensor::ones([N_IN], &Default::default());
    let scaled = float_vec(Cpu::fake_quant_scaled(weight.clone(), ones, &grid));
    assert_eq!(scaled, float_vec(Cpu::fake_quant(weight, &grid)));
}

/// Row by row as it is packed, and not by way of whole matrices.
#[test]
fn changes_for_products_in_bf16_are_those_of_fake_quantization() {
    fn products<B: QuantBackend>(change: &B::Bf16Weight) -> Vec<f32> {
        float_vec(B::matmul_bf16(tensor(&numbers(9 * N_IN, 5), [9, N_IN]), change))
    }
    fn check<B: QuantBackend>(grid: &Grid) {
        let weight: Tensor<B, 2> = tensor(&numbers(37 * N_IN, 3), [37, N_IN]);
        let scale: Tensor<B, 1> = tensor(&numbers(N_IN, 4).iter().map(|x| 1.0 + x / 2.0).collect::<Vec<_>>(), [N_IN]);
        let change = B::fake_quant_scaled(weight.clone(), scale.clone(), grid) - weight.clone();
        let expected = products::<B>(&B::bf16_weight(change));
        assert!(expected.iter().any(|&product| product != 0.0));
        assert_eq!(products::<B>(&B::bf16_change(weight, scale, grid)), expected, "{grid:?}");
    }
    for grid in all_grids().into_iter().chain(codebook_grids()) {
        check::<Cpu>(&grid);
        check::<OtherCpu>(&grid);
    }
}

#[test]
fn stored_bits_count_scales_and_zero_points() {
    let f16 = |bits, granularity| Grid { scale_dtype: ScaleDtype::F16, ..grid(bits, granularity) };
    let stored_bits = |grid: &Grid, n_in: usize| {
        let weight = (0..2 * n_in).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<_>>();
        Cpu::quantize_weight(tensor(&weight, [2, n_in]), grid).stored_bits()
    };
    // 4 bits, and 16 + 4 a group of 128: 4.15625 a weight. 576 has a fifth, ragged group.
    assert_eq!(stored_bits(&f16(4, group(128)), 256), 2 * 256 * 4 + 2 * 2 * 20);
    assert_eq!(stored_bits(&f16(4, group(128)), 576), 2 * 576 * 4 + 2 * 5 * 20);
    assert_eq!(stored_bits(&f16(3, Granularity::PerTensor), 64), 2 * 64 * 3 + 19);
    let symmetric = Grid { symmetry: Symmetry::SymmetricFullRange, ..f16(4, Granularity::PerChannel) };
    assert_eq!(stored_bits(&symmetric, 64), 2 * 64 * 4 + 2 * 16);
}

#[test]
fn impossible_grids_do_not_parse() {
    let error = |text: &str| serde_json::from_str::<Grid>(text).unwrap_err().to_string();
    let grid = |bits: u32, granularity: &str| {
        format!(
            r#"{{"bits": {bits}, "granularity": {granularity}, "symmetry": "asymmetric", "range_includes_zero": false, "scale_dtype": "f16"}}"#
        )
    };
    assert!(serde_json::from_str::<Grid>(&grid(4, r#"{"per_group": 128}"#)).is_ok());
    for bits in [0, 1, 9, 255] {
        let expected = format!("bits = {bits} is outside 2..=8; choose 2, 3, 4, 5, 6, 7 or 8");
        assert!(error(&grid(bits, r#""per_channel""#)).starts_with(&expected), "{bits}");
    }
    let message = error(&grid(4, r#"{"per_group": 0}"#));
    assert!(message.starts_with("invalid value: integer `0`, expected a nonzero u16"), "{message}");
    let message = error(&grid(4, r#"{"per_group": 65536}"#));
    assert!(message.starts_with("invalid value: integer `65536`, expected a nonzero u16"), "{message}");
    let message = error(&grid(4, r#""per_channel""#).replace("bits", "bit"));
    assert!(message.starts_with("unknown field `bit`, expected one of `bits`"), "{message}");
    assert_eq!((Bits::new(1), Bits::new(9)), (None, None));
}
