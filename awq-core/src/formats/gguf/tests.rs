//! Blocks read again a weight at a time, as `ggml-quants.c` reads them.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::formats::tests::{grid, permuted, weight};
use crate::grid::Granularity;
use crate::quantized::ZeroPoints;

const SYMMETRIES: [Symmetry; 3] = [Symmetry::Asymmetric, Symmetry::SymmetricFullRange, Symmetry::SymmetricRestricted];

fn half(bytes: &[u8]) -> f64 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f64()
}

/// The weight at a place of a block.
fn value(ggml_type: &str, block: &[u8], at: usize) -> f64 {
    let nibble = |bytes: &[u8]| f64::from(bytes[at % 16] >> (at / 16 * 4) & 0xF);
    let fifth = |bytes: &[u8]| f64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) >> at & 1) * 16.0;
    match ggml_type {
        "Q4_0" => half(block) * (nibble(&block[2..]) - 8.0),
        "Q4_1" => half(block) * nibble(&block[4..]) + half(&block[2..]),
        "Q5_0" => half(block) * (nibble(&block[6..]) + fifth(&block[2..]) - 16.0),
        "Q5_1" => half(block) * (nibble(&block[8..]) + fifth(&block[4..])) + half(&block[2..]),
        "Q8_0" => half(block) * f64::from(block[2 + at].cast_signed()),
        "TQ2_0" => {
            let (part, place) = (at / 128, at % 128);
            half(&block[64..]) * (f64::from(block[part * 32 + place % 32] >> (place / 32 * 2) & 3) - 1.0)
        }
        "MXFP4" => {
            let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            let code = nibble(&block[1..]) as usize;
            let sign = if code < 8 { 1.0 } else { -1.0 };
            sign * e2m1[code % 8] * (f64::from(block[0]) - 127.0).exp2()
        }
        other => panic!("{other}"),
    }
}

fn type_of(weight: &QuantizedWeight) -> &'static str {
    Gguf.tensors(weight)[0].dtype
}

/// Every weight is what its code stands for, exactly.
#[track_caller]
fn check(weight: &QuantizedWeight, expected_type: &str) {
    let stored = StoredParts {
        has_input_order: weight.transform != crate::transform::WeightTransform::Identity,
        ..StoredParts::default()
    };
    let linear = PlannedLinear { grid: weight.grid, shape: [weight.n_out, weight.n_in] };
    assert_eq!(Gguf.holds(&linear, stored), Ok(()));
    let [tensor] = &Gguf.tensors(weight)[..] else { panic!("one tensor") };
    assert_eq!((tensor.dtype, &tensor.shape), (expected_type, &vec![weight.n_out, weight.n_in]), "{:?}", weight.grid);
    let (block_len, block_bytes) = match expected_type {
        "Q4_0" => (32, 18),
        "Q4_1" => (32, 20),
        "Q5_0" => (32, 22),
        "Q5_1" => (32, 24),
        "Q8_0" => (32, 34),
        "TQ2_0" => (256, 66),
        "MXFP4" => (32, 17),
        other => panic!("{other}"),
    };
    assert_eq!(tensor.bytes.len(), weight.codes.len() / block_len * block_bytes);
    for (index, expected) in weight.dequantize().into_iter().enumerate() {
        let block = &tensor.bytes[index / block_len * block_bytes..][..block_bytes];
        assert_eq!(value(expected_type, block, index % block_len), f64::from(expected), "{index} of {:?}", weight.grid);
    }
}

#[test]
fn every_grid_is_in_the_smallest_type_that_holds_it() {
    for (bits, asymmetric, symmetric) in [
        (2, "Q4_0", "Q4_0"),
        (3, "Q4_0", "Q4_0"),
        (4, "Q5_0", "Q4_0"),
        (5, "Q8_0", "Q5_0"),
        (6, "Q8_0", "Q8_0"),
        (7, "Q8_0", "Q8_0"),
    ] {
        for symmetry in SYMMETRIES {
            // A block, two and a half, more than the row, and the row.
            for group in [Some(32), Some(64), Some(500), None] {
                let weight = weight([3, 160], grid(bits, group, symmetry));
                check(&weight, if symmetry == Symmetry::Asymmetric { asymmetric } else { symmetric });
            }
        }
    }
    for symmetry in [Symmetry::SymmetricFullRange, Symmetry::SymmetricRestricted] {
        check(&weight([2, 64], grid(8, Some(32), symmetry)), "Q8_0");
    }
    let of_matrix = Grid { granularity: Granularity::PerTensor, ..grid(4, None, Symmetry::Asymmetric) };
    // Its one zero point is 0.
    check(&weight([4, 64], of_matrix), "Q4_1");
    // A group for the whole row knows no order.
    check(&permuted(weight([2, 64], grid(4, None, Symmetry::SymmetricFullRange))), "Q4_0");
}

/// Products of these zero points and scales are numbers of f16.
#[test]
fn a_minimum_is_stored_where_it_is_exact() {
    for (bits, zeros, expected) in [(4, [0, 8, 4, 15], "Q4_1"), (5, [0, 16, 8, 31], "Q5_1")] {
        let mut weight = weight([2, 64], grid(bits, Some(32), Symmetry::Asymmetric));
        weight.zero_point = ZeroPoints::Codes(zeros.to_vec());
        weight.scale = vec![0.0625, 0.007_537_842, 0.007_537_842, 0.125];
        check(&weight, expected);
        // 15 times this has 15 bits.
        weight.scale[3] = 1.0 + 1.0 / 1024.0;
        weight.zero_point = ZeroPoints::Codes(vec![0, 8, 4, bits * 3]);
        assert_ne!(type_of(&weight), expected);
    }
}

#[test]
fn tables_have_types_of_their_own() {
    let table = |values, group, dtype| {
        let granularity = grid(4, group, Symmetry::Asymmetric).granularity;
        Grid::of_codebook(values, granularity, dtype)
    };
    let of = |shape, grid: Grid, n_codes: u8, scales: &[f32]| {
        let mut weight = weight(shape, grid);
        weight.codes.iter_mut().for_each(|code| *code %= n_codes);
        weight.scale.iter_mut().zip(scales.iter().cycle()).for_each(|(scale, &value)| *scale = value);
        weight.zero_point = ZeroPoints::Codes(vec![0; weight.scale.len()]);
        weight
    };
    let powers = [0.25, 2.0_f32.powi(-126), 2.0_f32.powi(-127), 2.0_f32.powi(100)];
    for group in [Some(32), Some(64)] {
        check(&of([2, 64], table(Codebook::E2m1, group, ScaleDtype::E8m0), 15, &powers), "MXFP4");
    }
    let halves = [0.25, 0.1_f32, 3.0].map(|scale| half::f16::from_f32(scale).to_f32());
    check(&of([2, 512], table(Codebook::Ternary, Some(256), ScaleDtype::F16), 3, &halves), "TQ2_0");
    check(&of([2, 512], table(Codebook::Ternary, Some(64), ScaleDtype::F16), 3, &halves), "Q4_0");
    check(&of([2, 96], table(Codebook::Ternary, None, ScaleDtype::F16), 3, &halves), "Q4_0");
}

/// Linears whose rows one tensor has are in one type.
#[test]
fn one_type_holds_several_linears() {
    let needs = |bits, symmetry| Needs::of(&weight([2, 64], grid(bits, Some(32), symmetry)));
    let small = needs(4, Symmetry::SymmetricFullRange);
    assert_eq!(small.and(small).smallest(), Some(GgmlType::Q4_0));
    assert_eq!(small.and(needs(4, Symmetry::Asymmetric)).smallest(), Some(GgmlType::Q5_0));
    let e2m1 = Grid::of_codebook(Codebook::E2m1, small_group(), ScaleDtype::E8m0);
    let mut weight = weight([2, 64], e2m1);
    weight.codes.iter_mut().for_each(|code| *code %= 15);
    let e2m1 = Needs::of(&weight);
    assert_eq!((e2m1.and(e2m1).smallest(), small.and(e2m1).smallest()), (Some(GgmlType::Mxfp4), None));
    assert_eq!(small.and(e2m1).and(small).smallest(), None);
}

fn small_group() -> Granularity {
    grid(4, Some(32), Symmetry::Asymmetric).granularity
}

#[test]
fn what_no_type_holds_is_refused() {
    let refused = |grid: Grid, n_in: usize, stored: StoredParts| {
        Gguf.holds(&PlannedLinear { grid, shape: [64, n_in] }, stored).unwrap_err()
    };
    let (plain, w4) = (StoredParts::default(), grid(4, Some(32), Symmetry::Asymmetric));
    let wide = refused(grid(8, Some(32), Symmetry::Asymmetric), 64, plain);
    assert!(wide.contains("8 bits with free zero points to 255"), "{wide}");
    assert_eq!(refused(w4, 72, plain), "its blocks are of 32 inputs, which do not divide 72");
    let group = refused(grid(4, Some(48), Symmetry::Asymmetric), 96, plain);
    assert_eq!(group, "groups of 48 are not made of blocks of 32 inputs (--group-size may)");
    assert_eq!(refused(Grid { scale_dtype: ScaleDtype::F32, ..w4 }, 64, plain), "its scales are f16, not f32");
    let table = |values, dtype| Grid::of_codebook(values, w4.granularity, dtype);
    assert!(refused(table(Codebook::Nf4, ScaleDtype::F16), 64, plain).contains("not those of the table NF4"));
    assert!(refused(table(Codebook::E2m1, ScaleDtype::E4m3), 64, plain).contains("e8m0"));
    let order = refused(w4, 64, StoredParts { has_input_order: true, ..plain });
    assert!(order.contains("follow an order of rounding"), "{order}");
    let real = refused(w4, 64, StoredParts { has_real_zero_points: true, ..plain });
    assert!(real.contains("its zero points are codes"), "{real}");
}
