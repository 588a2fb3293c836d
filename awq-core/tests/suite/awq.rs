//! AWQ on a tiny block: identities, and what its searches promise.

use awq_core::awq::{Awq, ClipStep, ScaleFormula, ScaleStep};
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::method::{BlockCtx, MethodError, QuantMethod};
use awq_core::model::tiny::TinySpec;
use awq_core::model::{LinearName, NoTap};
use burn::tensor::Tensor;

use crate::support::{
    Case, Cpu, Definition, check_close, clip_search, grid, group, loss_error, no_search, numbers, official_awq,
    scale_search, tensor,
};

const SPECS: [TinySpec; 2] = [TinySpec::GQA, TinySpec::MHA];

#[test]
fn ratio_zero_without_clip_is_plain_rounding() {
    let only_ratio_zero = Awq { scale: scale_search(ScaleFormula::Activation, 1), clip: ClipStep::Off };
    for spec in &SPECS {
        let case = Case::new(spec, &[3]);
        let grid = grid(3, group(32));
        let (awq, plain) = (case.edit(&only_ratio_zero, &grid), case.edit(&no_search(), &grid));
        assert_eq!(awq.linears, plain.linears);
        assert_eq!(plain.scales.len(), 0);
        assert!(awq.scales.iter().all(|(_, scale)| float_vec(scale.clone()).iter().all(|&s| s == 1.0)));
    }
}

#[test]
fn searches_never_lose_on_their_own_losses() {
    for spec in &SPECS {
        let case = Case::new(spec, &[3]);
        let log = case.edit(&official_awq(), &grid(3, group(32))).log;
        assert_eq!(log.scale_searches.len(), case.block.layout().scale_groups.len());
        for search in &log.scale_searches {
            assert_eq!(search.losses.len(), 20, "{}", search.group);
            assert_eq!(search.losses[0], search.loss_before, "{}", search.group);
            let smallest = search.losses.iter().copied().fold(f64::INFINITY, f64::min);
            assert_eq!(search.loss_after, smallest, "{}", search.group);
            assert_eq!(search.losses[(search.ratio * 20.0).round() as usize], smallest, "{}", search.group);
        }
        // Inputs of these two have outliers: that is where a scale must pay.
        for group in ["self_attn.q_proj+self_attn.k_proj+self_attn.v_proj", "mlp.gate_proj+mlp.up_proj"] {
            let search = log.scale_searches.iter().find(|search| search.group == group).unwrap();
            assert!(search.loss_after < 0.8 * search.loss_before, "{search:?}");
        }
        for linear in &log.linears {
            let clips = !["self_attn.q_proj", "self_attn.k_proj"].contains(&linear.linear.as_str());
            assert_eq!(linear.clip.is_some(), clips, "{}", linear.linear);
            assert!(linear.clip.is_none_or(|clip| clip.loss_after <= clip.loss_before), "{linear:?}");
            assert_eq!((linear.loss_before, linear.loss_after), (None, None), "plain rounding has no losses");
        }
        let lowered =
            log.linears.iter().filter_map(|linear| linear.clip).any(|clip| clip.loss_after < clip.loss_before);
        assert!(lowered, "no bound was ever lowered");
    }
}

#[test]
fn block_output_is_closer_than_with_plain_rounding() {
    let scale_only = Awq { clip: ClipStep::Off, ..official_awq() };
    let clip_only = Awq { scale: ScaleStep::Off, ..official_awq() };
    for spec in &SPECS {
        let case = Case::new(spec, &[6]);
        let exact = float_vec(case.block.forward(case.hidden[0].clone(), &mut NoTap));
        let error = |method: &Awq| -> f32 {
            let found = case.output_after(&case.edit(method, &grid(3, group(32))));
            found.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum()
        };
        let plain = error(&no_search());
        assert!(error(&scale_only) < 0.8 * plain, "scale only: {} of {plain}", error(&scale_only));
        assert!(error(&official_awq()) < 0.8 * plain, "both: {} of {plain}", error(&official_awq()));
        assert!(error(&clip_only) < plain, "clip only: {} of {plain}", error(&clip_only));
    }
}

/// Sums run over batches in another order, so the last bits of scales may differ, and with them a code here and there.
#[test]
fn several_batches_give_what_one_batch_gives() {
    let scale_only = Awq { clip: ClipStep::Off, ..official_awq() };
    let grid = grid(3, group(32));
    let (one, three) = (Case::new(&TinySpec::GQA, &[6]), Case::new(&TinySpec::GQA, &[2, 3, 1]));
    assert_eq!((one.hidden.len(), three.hidden.len()), (1, 3));
    let (expected, found) = (one.edit(&scale_only, &grid), three.edit(&scale_only, &grid));
    for (found, expected) in found.log.scale_searches.iter().zip(&expected.log.scale_searches) {
        assert_eq!(found.ratio, expected.ratio, "{}", found.group);
        // One batch is one pass: nobody is out before its end.
        assert_eq!(expected.bounds, Vec::<usize>::new());
        assert_eq!(found.losses.len(), expected.losses.len());
        for (idx, &loss) in expected.losses.iter().enumerate() {
            let error = loss_error(found, idx, loss);
            assert!(error < 1e-4, "{}: {} instead of {loss}", found.group, found.losses[idx]);
        }
    }
    for ((_, found), (_, expected)) in found.scales.iter().zip(&expected.scales) {
        check_close("scale", &float_vec(found.clone()), &float_vec(expected.clone()), 1e-5);
    }
    for (name, weight) in &expected.linears {
        let differing = weight.codes.iter().zip(&found.linears[name].codes).filter(|(a, b)| a != b).count();
        assert!(differing * 500 <= weight.codes.len(), "{name}: {differing} of {} codes", weight.codes.len());
    }
    // A group that is clipped on both sides spans -m ..= m, and its zero point is the rounded (2^b - 1) / 2: a half, which
    // the last bit of a scale sends up or down. Codes of such groups are not comparable, losses are.
    let (expected, found) = (one.edit(&official_awq(), &grid), three.edit(&official_awq(), &grid));
    for (found, expected) in found.log.linears.iter().zip(&expected.log.linears) {
        assert_eq!(found.clip.is_some(), expected.clip.is_some(), "{}", found.linear);
        let (Some(a), Some(b)) = (found.clip, expected.clip) else { continue };
        let (a, b) = (a.loss_after, b.loss_after);
        assert!((a - b).abs() < 0.02 * b, "{}: {a} {b}", found.linear);
    }
}

/// Fewer tokens than the clip search samples are all used; sampling is by an even stride.
#[test]
fn clip_samples_tokens_by_an_even_stride() {
    let case = Case::new(&TinySpec::GQA, &[2, 1]);
    let input = case.inputs.get(LinearName("self_attn.q_proj")).unwrap();
    let all: Vec<f32> = input.batches().iter().flat_map(|batch| float_vec(batch.clone())).collect();
    assert_eq!(input.n_tokens(), 72);
    assert_eq!(float_vec(input.sampled_rows(512)), all);
    let every_third: Vec<f32> = all.chunks(64).step_by(3).flatten().copied().collect();
    assert_eq!(float_vec(input.sampled_rows(24)), every_third);
    assert_eq!(float_vec(input.sampled_rows(20)), every_third);
}

#[test]
fn clip_loops_agree_with_their_definition() {
    use awq_core::codebook::Codebook;
    use awq_core::grid::{Grid, ScaleDtype};
    const N_IN: usize = 80;
    let factors: Vec<f64> = (0..10).map(|i| 1.0 - f64::from(i) / 20.0).collect();
    let nf4 = Grid::of_codebook(Codebook::Nf4, group(32), ScaleDtype::F32);
    for grid in [grid(3, group(32)), grid(2, group(32)), grid(4, awq_core::grid::Granularity::PerChannel), nf4] {
        fn search<B: QuantBackend>(grid: &awq_core::grid::Grid, factors: &[f64]) -> (Vec<f32>, Vec<f32>, [f64; 2]) {
            let weight = tensor::<B, 2>(&numbers(70 * N_IN, 1), [70, N_IN]);
            let rows = tensor::<B, 2>(&numbers(50 * N_IN, 2), [50, N_IN]);
            let len = grid.granularity.group_len(N_IN);
            let grams: Vec<Tensor<B, 2>> = (0..N_IN)
                .step_by(len)
                .map(|start| rows.clone().narrow(1, start, len.min(N_IN - start)))
                .map(|x| x.clone().transpose().matmul(x) / 50.0)
                .collect();
            let found = B::clip_search(weight, &grams, grid, factors);
            (float_vec(found.bound), float_vec(found.weight), [found.loss_before, found.loss_after])
        }
        let (bounds, weight, losses) = search::<Cpu>(&grid, &factors);
        let (expected_bounds, expected_weight, expected_losses) = search::<Definition>(&grid, &factors);
        for (a, b) in losses.iter().zip(expected_losses) {
            assert!((a - b).abs() < 1e-4 * b, "{grid:?}: {a} {b}");
        }
        assert!(losses[1] < losses[0], "{grid:?}: no bound was lowered");
        // Two bounds may lose the same up to rounding.
        let differing = bounds.iter().zip(&expected_bounds).filter(|(a, b)| (*a - *b).abs() > 1e-6).count();
        assert!(differing * 100 <= bounds.len(), "{grid:?}: {differing} of {} bounds differ", bounds.len());
        let differing = weight.iter().zip(&expected_weight).filter(|(a, b)| (*a - *b).abs() > 1e-6).count();
        assert!(differing * 100 <= weight.len(), "{grid:?}: {differing} of {} weights differ", weight.len());
    }
}

#[test]
fn clip_factors_are_those_of_the_official_code() {
    let ClipStep::Search(search) = clip_search(512) else { unreachable!() };
    let expected: Vec<f64> = (0..10).map(|i| 1.0 - f64::from(i) / 20.0).collect();
    assert_eq!(search.factors(), expected);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    use awq_core::method::MethodSettings;
    let mut awq = official_awq();
    assert_eq!(awq.check(), Ok(()));
    let ClipStep::Search(search) = &mut awq.clip else { unreachable!() };
    search.max_shrink = 1.0;
    assert_eq!(awq.check().unwrap_err(), "clip.search.max_shrink = 1 is outside 0 .. 1; the official code has 0.5");

    let case = Case::new(&TinySpec::GQA, &[1]);
    let per_tensor = grid(4, awq_core::grid::Granularity::PerTensor);
    let error = error_of(&case, true, &per_tensor);
    assert_eq!(
        error.to_string(),
        "block 0, self_attn.v_proj: clip bounds belong to rows or groups; set clip = \"off\" for a per_tensor grid"
    );
    let error = error_of(&case, false, &grid(4, group(32)));
    assert_eq!(
        error.to_string(),
        "block 0, self_attn.q_proj: this method needs activations; add a [calibration] section to the experiment"
    );
}

fn error_of(case: &Case, calibrated: bool, grid: &awq_core::grid::Grid) -> MethodError {
    let ctx = BlockCtx {
        block_idx: 0,
        block: case.block.as_ref(),
        inputs: calibrated.then_some(&case.inputs),
        linears: &case.block.layout().linears,
        grids: &(*grid).into(),
        listener: &|_| {},
    };
    official_awq().quantize_block(&ctx).unwrap_err()
}
