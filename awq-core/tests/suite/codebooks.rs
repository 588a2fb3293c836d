//! Grids of tables of values. NF4 stands beside bitsandbytes, bit for bit: `tests/data/nf4.json`, which
//! `scripts/make-nf4-fixture.py` made with it.

use std::path::Path;

use awq_core::backend::{QuantBackend, float_vec};
use awq_core::codebook::Codebook;
use awq_core::grid::{Grid, ScaleDtype};
use awq_core::quantized::QuantizedWeight;
use burn::backend::NdArray;
use serde::Deserialize;

use crate::support::{Cpu, codebook_grids, group, numbers, tensor};

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
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nf4.json");
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

fn check<B: QuantBackend>(case: &Case) -> QuantizedWeight {
    let weight = || tensor::<B, 2>(&floats(&case.weight), case.shape);
    let quantized = B::quantize_weight(weight(), &grid_of(case));
    assert_eq!(quantized.codes, case.codes);
    assert_eq!(bits(&quantized.scale), case.scales);
    assert_eq!(bits(&quantized.dequantize()), case.restored);
    assert_eq!(bits(&float_vec(B::fake_quant(weight(), &grid_of(case)))), case.restored);
    quantized
}

#[test]
fn codes_scales_and_weights_are_those_of_bitsandbytes() {
    for case in cases() {
        let quantized = check::<Cpu>(&case);
        assert_eq!(check::<NdArray<f32>>(&case), quantized);
        assert_eq!(check::<NdArray<f32, i32>>(&case), quantized);
        // A code of 4 bits, and a scale of 32 a group.
        let bits = quantized.stored_bits() as f64 / quantized.codes.len() as f64;
        assert!((bits - (4.0 + 32.0 / f64::from(case.group))).abs() < 1e-12, "{bits}");
    }
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
