//! A whole tiny model: logits, and quantization by RTN and AWQ.

use awq_core::arithmetic::Arithmetic;
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::driver::{Calibration, Job, Propagation, QuantizedModel, quantize_model};
use awq_core::log::ScaleSearchLog;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Decoder, NoTap};

use crate::support::{Cpu, check_close, grid, group, no_search, official_awq};
use crate::{Gpu, PRODUCT_TOLERANCE, has_device};

fn logits<B: QuantBackend>(decoder: &dyn Decoder<B>) -> Vec<f32> {
    let mut hidden = decoder.embed(&tiny::sequences(&TinySpec::GQA, 2, 24, 5));
    for block_idx in 0..decoder.config().n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    let normed = decoder.final_norm(hidden);
    let [batch, seq, width] = normed.dims();
    float_vec(decoder.head(normed.reshape([batch * seq, width]), Arithmetic::F32))
}

/// Logits of the full-precision model and of each quantized one, and what was seen on the way.
fn run<B: QuantBackend>() -> (Vec<Vec<f32>>, Vec<QuantizedModel>) {
    let decoder: Box<dyn Decoder<B>> = tiny::decoder(&TinySpec::GQA, 7, &Default::default()).unwrap();
    let sequences = tiny::sequences(&TinySpec::GQA, 4, 24, 3);
    let calibration = Calibration { sequences: &sequences, propagation: Propagation::FullPrecision };
    let (awq, plain) = (official_awq(), no_search());
    let jobs = [Job { method: &plain, grid: grid(3, group(32)) }, Job { method: &awq, grid: grid(3, group(32)) }];
    let pass = quantize_model(decoder.as_ref(), Some(calibration), &jobs, &mut |_| {}).unwrap();
    let models: Vec<QuantizedModel> = pass.models.into_iter().map(Result::unwrap).collect();
    let mut all = vec![logits(decoder.as_ref())];
    all.extend(models.iter().map(|model| logits(&model.decoder(decoder.as_ref()))));
    (all, models)
}

#[test]
fn a_model_is_run_and_quantized_as_on_the_cpu() {
    if !has_device("a_model_is_run_and_quantized_as_on_the_cpu") {
        return;
    }
    let ((found, models), (expected, expected_models)) = (run::<Gpu>(), run::<Cpu>());
    check_close("logits", &found[0], &expected[0], 10.0 * PRODUCT_TOLERANCE);
    // A code that is rounded the other way moves a logit a little.
    check_close("logits after RTN", &found[1], &expected[1], 2e-2 + 10.0 * PRODUCT_TOLERANCE);
    // Of two nearly equal candidates another may win, so it is what the searches saw that must agree, and how good their
    // finds are.
    for (log, expected) in models[1].logs.iter().zip(&expected_models[1].logs) {
        for (search, expected) in log.scale_searches.iter().zip(&expected.scale_searches) {
            let losses = |search: &ScaleSearchLog| search.losses.iter().map(|&loss| loss as f32).collect::<Vec<_>>();
            check_close(&search.group, &losses(search), &losses(expected), 1e-3 + 10.0 * PRODUCT_TOLERANCE);
        }
    }
    let errors = |models: &[QuantizedModel]| -> Vec<f32> {
        models.iter().flat_map(|model| &model.logs).map(|log| log.output_mse.unwrap() as f32).collect()
    };
    check_close("output errors", &errors(&models), &errors(&expected_models), 0.1);
}
