//! Grids of tables of values, bit for bit beside the programs that they come from: NF4 beside bitsandbytes (`tests/data/nf4.json`,
//! `scripts/make-nf4-fixture.py`), NVFP4 beside compressed-tensors and ternary codes beside llama.cpp's (`nvfp4.json` and
//! `ternary.json`, `scripts/make-table-fixtures.py`).

use std::path::Path;

use awq_core::backend::{QuantBackend, float_vec};
use awq_core::codebook::Codebook;
use awq_core::grid::{Grid, ScaleDtype};
use awq_core::quantized::QuantizedWeight;
use burn::backend::NdArray;
use serde::Deserialize;

use crate::support::{Cpu, Definition, codebook_grids, group, numbers, tensor};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

/// Floats as the integers that their bits are.
#[derive(Deserialize)]
struct Case {
    shape: [usize; 2],
    group: u16,
    weight: Vec<i32>,
    codes: Vec<u8>,
    scales: Vec<i32>,
    restored: Vec<i32>,
}

fn cases() -> Vec<Case> {
    cases_of("nf4.json")
}

fn cases_of(file: &str) -> Vec<Case> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    let fixture: Fixture = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert!(fixture.cases.len() >= 3);
    fixture.cases
}

fn floats(bits: &[i32]) -> Vec<f32> {
    bits.iter().map(|bits| f32::from_bits(bits.cast_unsigned())).collect()
}

fn bits(values: &[f32]) -> Vec<i32> {
    values.iter().map(|value| value.to_bits().cast_signed()).collect()
}

fn grid_of(case: &Case) -> Grid {
    Grid::of_codebook(Codebook::Nf4, group(case.group), ScaleDtype::F32)
}

fn check<B: QuantBackend>(case: &Case, grid: &Grid) -> QuantizedWeight {
    let weight = || tensor::<B, 2>(&floats(&case.weight), case.shape);
    let quantized = B::quantize_weight(weight(), grid);
    assert_eq!(quantized.codes, case.codes);
    assert_eq!(bits(&quantized.scale), case.scales);
    assert_eq!(bits(&quantized.dequantize()), case.restored);
    assert_eq!(bits(&float_vec(B::fake_quant(weight(), grid))), case.restored);
    quantized
}

/// The same codes on every backend, with so many bits of scales for a group and for the matrix.
fn check_everywhere(case: &Case, grid: &Grid, bits_of_codes: f64, [of_group, of_matrix]: [f64; 2]) {
    let quantized = check::<Cpu>(case, grid);
    assert_eq!(check::<NdArray<f32>>(case, grid), quantized);
    assert_eq!(check::<NdArray<f32, i32>>(case, grid), quantized);
    let n_weights = quantized.codes.len() as f64;
    let bits = quantized.stored_bits() as f64 / n_weights;
    let expected = bits_of_codes + of_group / f64::from(case.group) + of_matrix / n_weights;
    assert!((bits - expected).abs() < 1e-12, "{bits}");
}

#[test]
fn codes_scales_and_weights_are_those_of_bitsandbytes() {
    for case in cases() {
        check_everywhere(&case, &grid_of(&case), 4.0, [32.0, 0.0]);
    }
}

/// A scale is what compressed-tensors stores for a group over what it stores for the matrix.
#[test]
fn nvfp4_is_that_of_compressed_tensors() {
    for case in cases_of("nvfp4.json") {
        let grid = Grid::of_codebook(Codebook::E2m1, group(case.group), ScaleDtype::E4m3);
        assert_eq!(grid.label(), "NVFP4 g16");
        check_everywhere(&case, &grid, 4.0, [8.0, 32.0]);
    }
}

#[test]
fn ternary_codes_are_those_of_llama_cpp() {
    for case in cases_of("ternary.json") {
        let grid = Grid::of_codebook(Codebook::Ternary, group(case.group), ScaleDtype::F32);
        check_everywhere(&case, &grid, 2.0, [32.0, 0.0]);
    }
}

/// The clip search of AWQ rounds each group with the scale of the whole matrix: without a shrunken range nothing changes.
#[test]
fn a_clip_search_rounds_as_the_matrix_is_rounded() {
    let weight: Vec<f32> = numbers(8 * 64, 9).iter().enumerate().map(|(i, x)| x * (1.0 + (i % 64) as f32)).collect();
    let grid = Grid::of_codebook(Codebook::E2m1, group(16), ScaleDtype::E4m3);
    let gram = |seed| {
        let x = numbers(16 * 16, seed);
        let entry = |i: usize, j: usize| (0..16).map(|k| x[k * 16 + i] * x[k * 16 + j]).sum::<f32>();
        (0..256).map(|at| entry(at / 16, at % 16)).collect::<Vec<f32>>()
    };
    let grams: Vec<Vec<f32>> = (0..4).map(gram).collect();
    fn search<B: QuantBackend>(weight: &[f32], grams: &[Vec<f32>], grid: &Grid) -> (f64, Vec<f32>, f64) {
        let grams: Vec<_> = grams.iter().map(|gram| tensor::<B, 2>(gram, [16, 16])).collect();
        let found = B::clip_search(tensor(weight, [8, 64]), &grams, grid, &[1.0, 0.9, 0.8, 0.7]);
        (found.loss_before, float_vec(found.weight), found.loss_after)
    }
    let (before, clipped, after) = search::<Cpu>(&weight, &grams, &grid);
    let (before_too, clipped_too, after_too) = search::<Definition>(&weight, &grams, &grid);
    assert!((before / before_too - 1.0).abs() < 1e-5 && (after / after_too - 1.0).abs() < 1e-5);
    assert!(clipped == clipped_too && after < before);
    let restored = Cpu::quantize_weight(tensor(&weight, [8, 64]), &grid).dequantize();
    let mut expected = 0.0;
    for (w, q) in weight.chunks(64).zip(restored.chunks(64)) {
        for (part, gram) in grams.iter().enumerate() {
            let error = |i: usize| f64::from(q[part * 16 + i] - w[part * 16 + i]);
            let terms = (0..256).map(|at| error(at / 16) * f64::from(gram[at]) * error(at % 16));
            expected += terms.sum::<f64>() / 8.0;
        }
    }
    assert!((before / expected - 1.0).abs() < 1e-4, "{before} is not {expected}");
}

/// The fixture holds what tells conventions apart: weights on the middle of two values.
#[test]
fn the_fixture_has_ties() {
    let values = Codebook::Nf4.facts().values;
    let is_tie = |x: &f32| values.windows(2).any(|pair| f64::from(*x) == f64::from((pair[0] + pair[1]) / 2.0));
    let ties: usize = cases().iter().map(|case| floats(&case.weight).iter().filter(|x| is_tie(x)).count()).sum();
    assert!(ties >= 15, "{ties}");
}

/// OCP Microscaling Formats 1.0, 6.3: the scale is the power of two below the largest magnitude, over that below 6.
#[test]
fn mxfp4_is_as_its_standard_defines_it() {
    const N_IN: usize = 96;
    let weight: Vec<f32> =
        numbers(4 * N_IN, 3).iter().enumerate().map(|(i, x)| x * 4.0_f32.powi(i as i32 / 32 - 6)).collect();
    let grid = Grid::of_codebook(Codebook::E2m1, group(32), ScaleDtype::E8m0);
    assert_eq!(grid.label(), "MXFP4 g32");
    let quantized = Cpu::quantize_weight(tensor(&weight, [4, N_IN]), &grid);
    let restored = quantized.dequantize();
    for ((block, found), scale) in weight.chunks(32).zip(restored.chunks(32)).zip(&quantized.scale) {
        let largest = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        assert_eq!(f64::from(*scale), 2.0_f64.powi(f64::from(largest).log2().floor() as i32 - 2));
        for (x, found) in block.iter().zip(found) {
            let magnitudes = [0.0_f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            let scaled = x.abs() / scale;
            let nearest = magnitudes.into_iter().min_by(|a, b| (a - scaled).abs().total_cmp(&(b - scaled).abs()));
            assert_eq!(found.abs() / scale, nearest.unwrap(), "{x} in a block of scale {scale}");
        }
    }
    // A code of 4 bits, and a scale of 8 a block.
    assert_eq!(quantized.stored_bits(), weight.len() as u64 * 4 + quantized.scale.len() as u64 * 8);
}

#[test]
fn zeros_stay_zeros_on_every_grid() {
    for grid in codebook_grids() {
        let quantized = Cpu::quantize_weight(tensor(&[0.0; 3 * 64], [3, 64]), &grid);
        assert!(quantized.dequantize().iter().all(|w| *w == 0.0), "{}", grid.label());
    }
}

#[test]
fn no_kernel_takes_them() {
    use awq_core::kernel::{Activations, Kernel, KernelError};
    let quantized = Cpu::quantize_weight(tensor(&numbers(2 * 64, 1), [2, 64]), &grid_of(&cases()[0]));
    let refused = Kernel::best(Activations::F32).pack(&quantized).map(|_| ());
    assert_eq!(refused, Err(KernelError::Codebook("NF4")));
}

#[test]
fn a_grid_that_contradicts_itself_is_named() {
    let nf4 = grid_of(&cases()[0]);
    assert_eq!(nf4.check(), Ok(()));
    let bits = awq_core::grid::Bits::new(3).unwrap();
    let message = "values = \"nf4\" is a table of 4 bits without zero points, and other keys say otherwise";
    assert_eq!(Grid { bits, ..nf4 }.check().unwrap_err(), message);
    let even = Grid { scale_dtype: ScaleDtype::E8m0, ..crate::support::grid(4, group(32)) };
    assert!(even.check().unwrap_err().starts_with("scale_dtype = \"e8m0\" goes with `values` only"));
}
