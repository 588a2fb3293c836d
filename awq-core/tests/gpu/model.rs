//! A whole tiny model: logits, and quantization by RTN and AWQ.

use std::sync::Arc;

use awq_core::arithmetic::Arithmetic;
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::driver::{Calibration, Job, Propagation, QuantizedModel, quantize_model};
use awq_core::load::Checkpoint;
use awq_core::log::ScaleSearchLog;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Decoder, NoTap, wiring_of};

use crate::fixture::{FAMILIES, Fixture};
use crate::support::{Cpu, check_close, grid, group, no_search, official_awq};
use crate::{Gpu, PRODUCT_TOLERANCE, has_device};

fn logits<B: QuantBackend>(decoder: &dyn Decoder<B>) -> Vec<f32> {
    let mut hidden = decoder.embedding().unwrap().embed(&tiny::sequences(&TinySpec::GQA, 2, 24, 5));
    for block_idx in 0..decoder.config().n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    let normed = decoder.final_norm(hidden);
    let [batch, seq, width] = normed.dims();
    float_vec(decoder.head(Arithmetic::F32).unwrap().logits(normed.reshape([batch * seq, width])))
}

/// Logits of the full-precision model and of each quantized one, and what was seen on the way.
fn run<B: QuantBackend>() -> (Vec<Vec<f32>>, Vec<QuantizedModel>) {
    let decoder: Box<dyn Decoder<B>> = tiny::decoder(&TinySpec::GQA, 7, &Default::default()).unwrap();
    let sequences = tiny::sequences(&TinySpec::GQA, 4, 24, 3);
    let calibration = Calibration { sequences: &sequences, propagation: Propagation::FullPrecision };
    let (awq, plain) = (official_awq(), no_search());
    let jobs = [
        Job { method: &plain, grids: grid(3, group(32)).into() },
        Job { method: &awq, grids: grid(3, group(32)).into() },
    ];
    let pass = quantize_model(decoder.as_ref(), Some(calibration), &jobs, &mut |_| {}).unwrap();
    let models: Vec<QuantizedModel> = pass.models.into_iter().map(Result::unwrap).collect();
    let mut all = vec![logits(decoder.as_ref())];
    let base: Arc<dyn Checkpoint> = Arc::new(tiny::checkpoint(&TinySpec::GQA, 7));
    let wiring = wiring_of(decoder.config(), base.as_ref()).unwrap();
    let checkpoint = |model: &QuantizedModel| Arc::new(model.clone().into_checkpoint(&wiring, base.clone()));
    all.extend(models.iter().map(|model| logits(decoder.over(checkpoint(model)).unwrap().as_ref())));
    (all, models)
}

#[test]
fn every_family_gives_the_logits_of_transformers() {
    if !has_device("every_family_gives_the_logits_of_transformers") {
        return;
    }
    for name in FAMILIES {
        let fixture = Fixture::read(name);
        check_close(name, &fixture.run::<Gpu>(), &fixture.logits, 10.0 * PRODUCT_TOLERANCE);
    }
}

#[test]
fn a_model_is_run_and_quantized_as_on_the_cpu() {
    if has_device("a_model_is_run_and_quantized_as_on_the_cpu") {
        check_quantization(10.0 * PRODUCT_TOLERANCE);
    }
}

/// Root mean square of the differences, relative to that of `expected`. One row of attention that is nearly tied may be far
/// off in a 16-bit type, so it is not the largest difference that tells rounding from a mistake.
#[track_caller]
pub(crate) fn check_rms(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let sum = |terms: &mut dyn Iterator<Item = f32>| terms.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let errors = sum(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let relative = (errors / sum(&mut expected.iter().copied())).sqrt();
    assert!(relative <= f64::from(tolerance), "{what}: off by {relative:e}, more than {tolerance:e}");
}

/// Compares with the CPU in f32; for `tolerance`, that of logits, see [`check_rms`].
pub(crate) fn check_quantization(tolerance: f32) {
    let ((found, models), (expected, expected_models)) = (run::<Gpu>(), run::<Cpu>());
    check_rms("logits", &found[0], &expected[0], tolerance);
    // A code that is rounded the other way moves a logit a little.
    check_rms("logits after RTN", &found[1], &expected[1], 2e-2 + tolerance);
    // Of two nearly equal candidates another may win, so it is what the searches saw that must agree, and how good their
    // finds are.
    for (log, expected) in models[1].logs.iter().zip(&expected_models[1].logs) {
        for (search, expected) in log.scale_searches.iter().zip(&expected.scale_searches) {
            // The CPU's may be bounds.
            let is_whole = |idx: &usize| !expected.bounds.contains(idx);
            let losses = |search: &ScaleSearchLog| {
                (0..search.losses.len()).filter(is_whole).map(|idx| search.losses[idx] as f32).collect::<Vec<_>>()
            };
            check_rms(&search.group, &losses(search), &losses(expected), 1e-3 + 2.0 * tolerance);
        }
    }
    let errors = |models: &[QuantizedModel]| -> Vec<f32> {
        models.iter().flat_map(|model| &model.logs).map(|log| log.output_mse.unwrap() as f32).collect()
    };
    check_close("output errors", &errors(&models), &errors(&expected_models), 0.1);
}
