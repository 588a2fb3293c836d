//! Whole models in f16 and bf16. A device's float type is fixed by its first tensor in a process, where the other tests want
//! f32, so each of these runs itself again in a process of its own.

use std::process::Command;

use awq_core::arithmetic::FloatType;
use burn::tensor::backend::Backend;
use burn::tensor::{IntDType, set_default_dtypes};

use crate::fixture::{FAMILIES, Fixture};
use crate::{Gpu, has_device, model};

/// Set in the process of its own.
const IN_OWN_PROCESS: &str = "AWQ_GPU_TEST_IN_OWN_PROCESS";

/// Runs the models in `precision`; for `tolerance` see [`model::check_rms`]. The logits of transformers in the same types are
/// off by 0.003 (f16) and 0.03 (bf16) where they are worst, qwen2-tiny's.
fn check_models(test: &str, precision: FloatType, tolerance: f32) {
    if !has_device(test) {
        return;
    }
    if !Gpu::supports_dtype(&Default::default(), precision.dtype().into()) {
        eprintln!("{test}: skipped, the device has no {}", precision.name());
        return;
    }
    if std::env::var_os(IN_OWN_PROCESS).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", test, "--nocapture"]).env(IN_OWN_PROCESS, "1");
        let output = again.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    set_default_dtypes::<Gpu>(&Default::default(), precision.dtype(), IntDType::I32).unwrap();
    for name in FAMILIES {
        let fixture = Fixture::read(name);
        model::check_rms(name, &fixture.run::<Gpu>(), &fixture.logits, tolerance);
    }
    model::check_quantization(tolerance);
}

#[test]
fn models_run_and_are_quantized_in_f16() {
    check_models("half::models_run_and_are_quantized_in_f16", FloatType::F16, 1e-2);
}

#[test]
fn models_run_and_are_quantized_in_bf16() {
    check_models("half::models_run_and_are_quantized_in_bf16", FloatType::Bf16, 8e-2);
}
