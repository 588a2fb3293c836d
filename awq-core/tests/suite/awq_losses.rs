//! The losses and scales of AWQ's search against the formulae of the paper and of AutoAWQ, written out.

use awq_core::awq::{Awq, ClipStep, ScaleFormula};
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::capture::BlockInputs;
use awq_core::grid::Grid;
use awq_core::log::ScaleSearchLog;
use awq_core::method::{BlockCtx, QuantMethod};
use awq_core::model::layers::Linear;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{LinearName, NoTap};
use burn::tensor::Tensor;

use crate::support::{Case, Cpu, Definition, check_close, grid, group, loss_error, scale_search, tensor};

const QKV: &str = "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj";
const GROUP_LEN: usize = 32;

fn scale_only(formula: ScaleFormula, n_ratios: u16) -> Awq {
    Awq { scale: scale_search(formula, n_ratios), clip: ClipStep::Off }
}

fn search_log<'a>(searches: &'a [ScaleSearchLog], group: &str) -> &'a ScaleSearchLog {
    searches.iter().find(|search| search.group == group).unwrap()
}

/// Inputs of a linear, a token a row.
fn rows(case: &Case, captured_as: LinearName) -> Vec<Vec<f32>> {
    let input = case.inputs.get(captured_as).unwrap();
    let n_in = input.n_in();
    input
        .batches()
        .iter()
        .flat_map(|x| float_vec(x.clone()).chunks(n_in).map(<[f32]>::to_vec).collect::<Vec<_>>())
        .collect()
}

fn mean_abs(rows: &[Vec<f32>]) -> Vec<f64> {
    (0..rows[0].len())
        .map(|c| rows.iter().map(|row| f64::from(row[c].abs())).sum::<f64>() / rows.len() as f64)
        .collect()
}

/// Divides by the geometric mean of the extremes.
fn normalized(scale: Vec<f64>) -> Vec<f32> {
    let scale: Vec<f64> = scale.into_iter().map(|s| s.max(1e-4)).collect();
    let max = scale.iter().copied().fold(0.0, f64::max);
    let min = scale.iter().copied().fold(f64::INFINITY, f64::min);
    scale.iter().map(|s| (s / (max * min).sqrt()) as f32).collect()
}

fn activation_scale(rows: &[Vec<f32>], ratio: f64) -> Vec<f32> {
    normalized(mean_abs(rows).iter().map(|x| x.powf(ratio)).collect())
}

/// The linear whose own output judges: every loss is the mean of `(x W^T - x Q(W s)^T / s)^2`, token by token.
#[test]
fn loss_of_a_linear_is_the_mean_squared_output_error() {
    const DOWN: LinearName = LinearName("mlp.down_proj");
    let case = Case::new(&TinySpec::GQA, &[2, 1]);
    let grid = grid(3, group(GROUP_LEN as u16));
    let edit = case.edit(&scale_only(ScaleFormula::Activation, 20), &grid);
    let log = search_log(&edit.log.scale_searches, DOWN.0);
    let rows = rows(&case, DOWN);
    let weight = case.block.params().linear(DOWN).weight.clone();
    let [n_out, n_in] = weight.dims();
    for (k, &loss) in log.losses.iter().enumerate() {
        let scale: Tensor<Cpu, 1> = tensor(&activation_scale(&rows, k as f64 / 20.0), [n_in]);
        let candidate =
            float_vec(Cpu::fake_quant(weight.clone() * scale.clone().unsqueeze::<2>(), &grid) / scale.unsqueeze::<2>());
        let delta: Vec<f32> = candidate.iter().zip(float_vec(weight.clone())).map(|(q, w)| q - w).collect();
        let error = |delta: &[f32], row: &[f32]| delta.iter().zip(row).map(|(d, x)| f64::from(d * x)).sum::<f64>();
        let squares = rows.iter().flat_map(|row| delta.chunks(n_in).map(move |delta| error(delta, row).powi(2)));
        let expected = squares.sum::<f64>() / (rows.len() * n_out) as f64;
        // A last bit of a scale may move a code over a tie: that is the width of the tolerance.
        let is_bound = log.bounds.contains(&k);
        assert!(!is_bound || loss > log.loss_after, "ratio {k}/20: {log:?}");
        let error = loss_error(log, k, expected);
        assert!(error < 2e-3, "ratio {k}/20: {loss} instead of {expected}, bounds {:?}", log.bounds);
    }
}

/// The group judged by the attention module: its output over all batches with the candidate weights put in.
#[test]
fn loss_of_a_module_is_complete_over_all_batches() {
    const NAMES: [LinearName; 3] =
        [LinearName("self_attn.q_proj"), LinearName("self_attn.k_proj"), LinearName("self_attn.v_proj")];
    let case = Case::new(&TinySpec::MHA, &[1, 3, 2]);
    let grid = grid(3, group(GROUP_LEN as u16));
    let edit = case.edit(&scale_only(ScaleFormula::Activation, 20), &grid);
    let log = search_log(&edit.log.scale_searches, QKV);
    let input = case.inputs.get(NAMES[0]).unwrap();
    let mean_abs = mean_abs(&rows(&case, NAMES[0]));
    let best = (log.ratio * 20.0).round() as u32;
    for k in [0, 5, 10, 19, best] {
        let scale = normalized(mean_abs.iter().map(|x| x.powf(f64::from(k) / 20.0)).collect());
        let scale: Tensor<Cpu, 1> = tensor(&scale, [mean_abs.len()]);
        let mut params = case.block.params().clone();
        for name in NAMES {
            let Linear { weight, bias } = params.linear(name).clone();
            let scaled = weight * scale.clone().unsqueeze::<2>();
            let weight = Cpu::fake_quant(scaled, &grid) / scale.clone().unsqueeze::<2>();
            params.linears.insert(name, Linear { weight, bias });
        }
        let candidate = case.block.with_params(params);
        let (mut sum, mut n) = (0.0, 0);
        for x in input.batches() {
            let found = float_vec(candidate.attention(x.clone(), &mut NoTap));
            let exact = float_vec(case.block.attention(x.clone(), &mut NoTap));
            sum += found.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            n += found.len();
        }
        let idx = k as usize;
        let (loss, expected) = (log.losses[idx], sum / n as f64);
        let is_bound = log.bounds.contains(&idx);
        assert!(!is_bound || (k != 0 && k != best && loss > log.loss_after), "ratio {k}/20: {log:?}");
        let error = loss_error(log, idx, expected);
        assert!(error < 2e-3, "ratio {k}/20: {loss} instead of {expected}, bounds {:?}", log.bounds);
    }
}

/// AutoAWQ's scale: `x^r / (w^(1 - r) + 1e-4)`, `w` the mean over rows of a weight relative to its group's maximum.
#[test]
fn duo_scale_is_the_formula_of_autoawq() {
    let case = Case::new(&TinySpec::GQA, &[2]);
    let edit = case.edit(&scale_only(ScaleFormula::Duo, 20), &grid(3, group(GROUP_LEN as u16)));
    for ((group_idx, found), log) in edit.scales.iter().zip(&edit.log.scale_searches) {
        let linears = &case.block.layout().scale_groups[*group_idx].linears;
        let rows = rows(&case, linears[0]);
        let n_in = rows[0].len();
        let mut relative = vec![0.0; n_in];
        let mut n_rows = 0;
        for &name in linears {
            for row in float_vec(case.block.params().linear(name).weight.clone()).chunks(n_in) {
                n_rows += 1;
                for (group_idx, group) in row.chunks(GROUP_LEN).enumerate() {
                    let max = group.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
                    for (c, w) in group.iter().enumerate() {
                        relative[group_idx * GROUP_LEN + c] += f64::from(w.abs() / max);
                    }
                }
            }
        }
        let r = log.ratio;
        let duo = |(x, w): (&f64, &f64)| x.powf(r) / ((w / f64::from(n_rows)).powf(1.0 - r) + 1e-4);
        let expected = normalized(mean_abs(&rows).iter().zip(&relative).map(duo).collect());
        check_close(&log.group, &float_vec(found.clone()), &expected, 1e-5);
        assert_eq!(log.losses.len(), 20);
        assert_ne!(log.loss_before, log.losses[0], "{}: no exponent of this formula is the identity", log.group);
    }
}

/// The plain formula, and the floor of channels that are never active.
#[test]
fn activation_scale_is_the_formula_of_the_paper() {
    let case = Case::new(&TinySpec::MHA, &[2]);
    let edit = case.edit(&scale_only(ScaleFormula::Activation, 20), &grid(3, group(GROUP_LEN as u16)));
    for ((group_idx, found), log) in edit.scales.iter().zip(&edit.log.scale_searches) {
        let rows = rows(&case, case.block.layout().scale_groups[*group_idx].linears[0]);
        check_close(&log.group, &float_vec(found.clone()), &activation_scale(&rows, log.ratio), 1e-5);
    }
}

/// What a search in plain tensor operations and f32 finds, differences in bf16 find: every ratio, and the loss that it has. Three batches
/// are three passes, so that candidates are given up; with AutoAWQ's formula also where no scale at all is the best.
#[test]
fn every_search_finds_what_f32_finds() {
    let (mut n_bounds, mut n_best_without) = (0, 0);
    let searches = [(ScaleFormula::Activation, 20), (ScaleFormula::Duo, 20), (ScaleFormula::Duo, 1)];
    let cases = [(TinySpec::GQA, 3), (TinySpec::MHA, 4), (TinySpec::MHA, 2)];
    for ((formula, n_ratios), (spec, bits)) in searches.into_iter().flat_map(|search| cases.map(|case| (search, case)))
    {
        let grid = grid(bits, group(GROUP_LEN as u16));
        let method = scale_only(formula, n_ratios);
        let found = Case::new(&spec, &[2, 2, 1]).edit(&method, &grid).log.scale_searches;
        let expected = searches_by_definition(&spec, &method, &grid);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.group, found.ratio), (&expected.group, expected.ratio), "{spec:?}, {bits} bits");
            assert_eq!(found.losses.len(), expected.losses.len());
            for (idx, &expected) in expected.losses.iter().enumerate() {
                let error = loss_error(found, idx, expected);
                assert!(error < 0.01, "{}: {} instead of {expected}", found.group, found.losses[idx]);
            }
            // The winner's is f32's, and not by differences.
            let error = (found.loss_after / expected.loss_after - 1.0).abs();
            assert!(error < 1e-5, "{}: {error:e}", found.group);
            assert!((found.loss_before / expected.loss_before - 1.0).abs() < 0.01, "{}", found.group);
            n_bounds += found.bounds.len();
            n_best_without += usize::from(found.loss_before < found.loss_after);
        }
    }
    assert!(n_bounds > 100 && n_best_without > 0, "{n_bounds} bounds, {n_best_without} best without a scale");
}

fn searches_by_definition(spec: &TinySpec, method: &Awq, grid: &Grid) -> Vec<ScaleSearchLog> {
    let decoder = tiny::decoder::<Definition>(spec, 7, &Default::default()).unwrap();
    let hidden = decoder.embedding().unwrap().embed(&tiny::sequences(spec, 5, 24, 3));
    let block = decoder.block(0).unwrap();
    let (inputs, _) = BlockInputs::capture(block.as_ref(), &[hidden]);
    let (linears, grids) = (&block.layout().linears, &(*grid).into());
    let ctx =
        BlockCtx { block_idx: 0, block: block.as_ref(), inputs: Some(&inputs), linears, grids, listener: &|_| {} };
    method.quantize_block(&ctx).unwrap().log.scale_searches
}
