//! A forecast of an experiment on the bundled model, at rates that are made up.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use insta::assert_snapshot;

use super::*;
use crate::assets::AssetSettings;
use crate::config::ExperimentSpec;

const EXPERIMENT: &str = r#"
question = "What will it take?"
methods = [{ rtn = {} }, { gptq = "act-order" }]

[run]
device = "flex"

[[models]]
name = "bundled"
source = { bundled = {} }

[calibration]
dataset = { bundled = { split = "calibration", n_documents = 2000 } }
sampling = { random_crops = { n_sequences = 8, seed = 0 } }
seq_len = 512
propagation = "full_precision"

[grids]
bits = [4, 3]
granularity = [{ per_group = 64 }]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f16"

[[evaluations]]
perplexity = { dataset = { bundled = { split = "test", n_documents = 100 } }, protocol = { gptq = { seq_len = 512 } } }

[[evaluations]]
kl_divergence = { dataset = { bundled = { split = "test", n_documents = 100 } }, protocol = { gptq = { seq_len = 512 } } }
"#;

fn forecast(experiment: &str, rates: &Rates) -> Forecast {
    let cache = tempfile::tempdir().unwrap();
    let mut settings = AssetSettings::from_env(&[], crate::assets::Progress::Quiet).unwrap();
    (settings.cache, settings.offline) = (cache.path().into(), true);
    let store = AssetStore::new(settings).unwrap();
    let file = cache.path().join("x.toml");
    std::fs::write(&file, experiment).unwrap();
    let spec = ExperimentSpec::read(&file).unwrap();
    Forecast::of(&Plan::new(&spec), rates, &store)
}

#[test]
fn a_forecast_is_a_table_of_methods() {
    let text = forecast(EXPERIMENT, &Rates::made_up()).describe();
    assert_snapshot!(text, @r"
    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    model         method          cells  quantizing  scoring   memory
    ─────────────────────────────────────────────────────────────────
    bundled       FP                  1           -    1.1 s  223 MiB
    bundled       RTN                 2       0.2 s    0.9 s  259 MiB
    bundled       GPTQ act-order      2       0.4 s    0.9 s  265 MiB
    ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌
    in all 3.5 s                      5       0.7 s    2.9 s  265 MiB
    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    About, at rates measured on some processor, 2 threads, 2026-11-30. Cells on record and stored codes take less.
    Memory includes hidden states, which lie in files where it ends.
    ");
}

/// A cell of GPTQ at 4 bits makes the factors that the one at 3 bits uses again.
#[test]
fn cells_of_a_pass_share_what_the_first_makes() {
    let rates = Rates::made_up();
    let quantize = |experiment: &str| {
        let lines = forecast(experiment, &rates).lines;
        lines.iter().find(|line| line.method.starts_with("GPTQ")).unwrap().quantize_seconds
    };
    let (both, one) = (quantize(EXPERIMENT), quantize(&EXPERIMENT.replace("bits = [4, 3]", "bits = [4]")));
    assert!(both < 2.0 * one && both > one, "{both}, {one}");
}

#[test]
fn a_model_that_is_not_at_hand_is_named() {
    let elsewhere = EXPERIMENT.replace(
        "source = { bundled = {} }",
        r#"source = { hub = { repo = "nobody/nothing", revision = "0123456789012345678901234567890123456789" } }"#,
    );
    let text = forecast(&elsewhere, &Rates::made_up()).describe();
    assert!(text.starts_with("not counted: bundled: "), "{text}");
}
