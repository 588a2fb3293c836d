#![allow(clippy::unwrap_used)]

use awq_core::backend::float_vec;
use awq_core::grid::ScaleDtype;
use proptest::prelude::*;

use super::*;
use crate::gptq::{ColumnOrder, Gptq, GroupGrid, RangeSearch};
use crate::testing::{Case, check_units, grid, inputs, on_threads};

const KINDS: [RotationKind; 2] = [RotationKind::Kronecker, RotationKind::Hadamard];

fn quip(incoherence: Incoherence, grid: QuipGrid) -> Quip {
    Quip { incoherence, rounding: QuipRounding::Ldlq, grid, damp: 0.01 }
}

fn rotated(rotation: RotationKind, seed: u64) -> Incoherence {
    Incoherence::On(IncoherenceSettings { rotation, seed })
}

fn greedy(method: Quip) -> Quip {
    let passes = GreedyPasses { n_passes: NonZeroU16::new(5).unwrap() };
    Quip { rounding: QuipRounding::LdlqRg(passes), ..method }
}

/// Every combination of incoherence, grid and rounding.
fn variants() -> Vec<Quip> {
    let incoherences = [Incoherence::Off, rotated(KINDS[0], 1), rotated(KINDS[1], 1)];
    let grids = [QuipGrid::OneScale, QuipGrid::Grouped];
    let plain: Vec<Quip> =
        incoherences.iter().flat_map(|incoherence| grids.map(|grid| quip(incoherence.clone(), grid))).collect();
    plain.iter().cloned().chain(plain.iter().cloned().map(greedy)).collect()
}

#[track_caller]
fn quantize(method: &Quip, case: &Case) -> (QuantizedWeight, LinearLog) {
    method.quantize_linear(&case.ctx()).unwrap()
}

/// A case with the order of its input channels reversed.
fn reversed(case: &Case) -> Case {
    let reverse = |values: &[f32]| values.chunks(case.n_in).flat_map(|row| row.iter().rev().copied()).collect();
    Case {
        weight: reverse(&case.weight),
        n_in: case.n_in,
        input: inputs(reverse(&float_vec(case.input.batches()[0].clone())), case.n_in),
        grid: case.grid,
    }
}

#[test]
fn ldlq_is_gptq_from_the_last_column_on() {
    for bits in [2, 3, 4] {
        let case = Case::new(24, 150, 600, grid(bits, 0));
        let gptq = Gptq {
            damp: 0.01,
            block_size: NonZeroU16::new(32).unwrap(),
            order: ColumnOrder::Natural,
            group_grid: GroupGrid::OriginalWeights,
            range: RangeSearch::MinMax,
            hessian: Precision::F64,
        };
        let (expected, _) = gptq.quantize_linear(&reversed(&case).ctx()).unwrap();
        let (found, _) = quantize(&quip(Incoherence::Off, QuipGrid::Grouped), &case);
        assert_eq!(found.scale, expected.scale);
        let reversed_codes = expected.codes.chunks(150).flat_map(|row| row.iter().rev());
        let differing = found.codes.iter().zip(reversed_codes).filter(|(a, b)| a != b).count();
        // Both are right; a tie that rounding noise decides moves the rest of its row.
        assert!(differing <= found.codes.len() / 100, "{bits} bit: {differing} of {} codes differ", found.codes.len());
    }
}

#[test]
fn every_variant_loses_less_than_plain_rounding() {
    // Without rotation, one scale is too coarse for weights of such different size. At 4 bits what lies beyond 2.4 root mean
    // squares, and is cut off, costs more than all rounding.
    let hopeless = |method: &Quip, bits| {
        method.grid == QuipGrid::OneScale && (method.incoherence == Incoherence::Off || bits == 4)
    };
    for bits in [2, 3, 4] {
        let case = Case::new(48, 72, 600, grid(bits, 0));
        for method in variants().into_iter().filter(|method| !hopeless(method, bits)) {
            let (_, log) = quantize(&method, &case);
            let (before, after) = (log.loss_before.unwrap(), log.loss_after.unwrap());
            assert!(after < before, "{} {bits} bit: {after} is not below {before}", method.label());
        }
    }
}

#[test]
fn greedy_passes_do_not_raise_the_loss() {
    let case = Case::new(32, 96, 400, grid(2, 32));
    for method in variants().into_iter().filter(|method| method.rounding == QuipRounding::Ldlq) {
        let one_pass = GreedyPasses { n_passes: NonZeroU16::new(1).unwrap() };
        let one_pass = Quip { rounding: QuipRounding::LdlqRg(one_pass), ..method.clone() };
        let [one, five] = [&one_pass, &greedy(method)].map(|method| quantize(method, &case).1.loss_after.unwrap());
        // The passes see the damped Hessian, the log does not: hence the allowance.
        assert!(five <= one * 1.01, "{}: {one} after one pass, {five} after five", one_pass.label());
    }
}

#[test]
fn at_eight_bits_a_grouped_grid_restores_the_weight() {
    for granularity in [0, 24] {
        let case = Case::new(30, 60, 300, grid(8, granularity));
        let power = case.weight.iter().map(|w| f64::from(w * w)).sum::<f64>() / case.weight.len() as f64;
        for method in variants().into_iter().filter(|method| method.grid == QuipGrid::Grouped) {
            let (_, log) = quantize(&method, &case);
            assert!(log.weight_mse < 1e-3 * power, "{}: {} of {power}", method.label(), log.weight_mse);
        }
    }
}

#[test]
fn what_is_stored_is_counted() {
    let mut case = Case::new(8, 24, 200, grid(2, 12));
    case.grid.scale_dtype = ScaleDtype::F16;
    let bits = |method: &Quip| quantize(method, &case).0.stored_bits();
    let codes = 8 * 24 * 2;
    assert_eq!(bits(&quip(Incoherence::Off, QuipGrid::OneScale)), codes + 16 + 16);
    assert_eq!(bits(&quip(Incoherence::Off, QuipGrid::Grouped)), codes + 8 * 2 * (16 + 2));
    let rotated = quip(rotated(RotationKind::Hadamard, 1), QuipGrid::OneScale);
    assert_eq!(bits(&rotated), codes + 16 + 16 + 24 * 16 + 2 * 64);
}

#[test]
fn the_seed_decides_and_threads_do_not() {
    let case = Case::new(40, 48, 200, grid(3, 16));
    for kind in KINDS {
        let with_seed = |seed| quantize(&quip(rotated(kind, seed), QuipGrid::Grouped), &case).0;
        assert_ne!(with_seed(1).codes, with_seed(2).codes);
    }
    for method in variants() {
        let on = |n| on_threads(n, || quantize(&method, &Case::new(40, 48, 200, grid(3, 16))).0);
        assert_eq!(on(1), on(2), "{}", method.label());
    }
}

#[test]
fn dead_columns_few_tokens_and_constant_weights_survive() {
    let mut case = Case::new(6, 36, 12, grid(3, 16));
    let mut rows = float_vec(case.input.batches()[0].clone());
    rows.chunks_mut(36).for_each(|row| row[7] = 0.0);
    case.input = inputs(rows, 36);
    case.weight[..36].fill(0.5);
    for method in variants() {
        let (quantized, log) = quantize(&method, &case);
        assert!(quantized.dequantize().iter().all(|w| w.is_finite()), "{}", method.label());
        assert_eq!(log.notes[0], "1 dead input channel(s), their weights set to 0");
    }
    case.weight.fill(0.0);
    for method in variants() {
        assert!(quantize(&method, &case).0.dequantize().iter().all(|w| w.abs() < 1e-3), "{}", method.label());
    }
}

#[test]
fn the_unit_of_the_inputs_does_not_matter_whatever_is_dead() {
    let case = Case::new(24, 36, 300, grid(3, 12));
    for n_dead in [0, 1, 12, 35] {
        for method in variants() {
            check_units(&method, &format!("{}, {n_dead} dead", method.label()), &case, |i| i * 29 % 36 < n_dead);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_share_of_dead_channels_makes_the_unit_matter(
        alive in proptest::collection::vec(proptest::bool::ANY, 36),
        exponent in -12..12_i32,
        variant in 0..12_usize,
    ) {
        let case = Case::new(8, 36, 120, grid(3, 12));
        let method = &variants()[variant];
        let [one, other] = [0, exponent].map(|exponent| {
            quantize(method, &case.in_unit(2.0_f32.powi(exponent), |i| !alive[i]))
        });
        prop_assert_eq!(one.0, other.0);
        prop_assert_eq!(one.1.notes, other.1.notes);
    }
}

/// The paper's algorithm 1, line 9: what lies beyond the outermost codes is moved onto them before rounding, so that no
/// other column makes up for it.
#[test]
fn one_scale_clamps_weights_before_they_are_rounded() {
    let mut case = Case::new(4, 32, 300, grid(2, 0));
    case.weight[31] = 2.0;
    let (found, _) = quantize(&quip(Incoherence::Off, QuipGrid::OneScale), &case);
    let params = one_scale(&case.weight, &found.grid);
    let (ctx, order) = (case.ctx(), Vec::from_iter(0..32));
    let hessian = Hessian::of(&ctx, Precision::F64).unwrap();
    let factor = |h: &Damped<'_>| ldl_feedback(&|i, j| h.entry(i, j), 32, &|_| {});
    let feedback = hessian.damped(&ctx, &order, 0.01, &mut Vec::new(), factor).unwrap();
    let order: Vec<u32> = (0..32).collect();
    let rounding =
        Rounding { grid: &found.grid, params: &[params], groups: found.grid.granularity.groups(4, 32), order: &order };
    let outermost = found.grid.weight(3, &params);
    assert!(case.weight[31] > 2.0 * outermost, "the weight is not beyond the grid");
    let clamped: Vec<f32> = case.weight.iter().map(|w| w.clamp(-outermost, outermost)).collect();
    assert_eq!(found.codes, rounding.ldlq(&clamped, &feedback, &|_| {}));
    assert_ne!(found.codes, rounding.ldlq(&case.weight, &feedback, &|_| {}), "this case does not tell the two apart");
}

#[test]
fn labels_name_what_makes_another_method() {
    let labels: Vec<String> = variants().iter().map(MethodSettings::label).collect();
    assert_eq!(
        labels[..7],
        [
            "LDLQ",
            "LDLQ (grouped grid)",
            "QuIP",
            "QuIP (grouped grid)",
            "QuIP (Hadamard)",
            "QuIP (Hadamard, grouped grid)",
            "LDLQ-RG",
        ]
    );
}
