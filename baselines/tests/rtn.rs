//! RTN through the driver: the same code path as every method, under each propagation, and what AWQ must beat.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU16;

use awq_core::awq::{Awq, ClipSearch, ClipStep, ScaleFormula, ScaleSearch, ScaleStep, SearchArithmetic};
use awq_core::driver::{Calibration, Job, Pass, Propagation, quantize_model};
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::method::QuantMethod;
use awq_core::model::tiny::{self, TinySpec};
use baselines::rtn::Rtn;
use burn::backend::Flex;

fn grid(bits: u8) -> Grid {
    Grid {
        bits: Bits::new(bits).unwrap(),
        granularity: Granularity::PerGroup(NonZeroU16::new(32).unwrap()),
        symmetry: Symmetry::Asymmetric,
        range_includes_zero: false,
        scale_dtype: ScaleDtype::F16,
        values: None,
    }
}

fn number<T: TryFrom<u16>>(value: u16) -> T
where
    T::Error: std::fmt::Debug,
{
    T::try_from(value).unwrap()
}

fn awq() -> Awq {
    let formula = ScaleFormula::Activation;
    Awq {
        scale: ScaleStep::Search(ScaleSearch { formula, n_ratios: number(20), arithmetic: SearchArithmetic::F32 }),
        clip: ClipStep::Search(ClipSearch { n_steps: number(20), max_shrink: 0.5, n_tokens: 512.try_into().unwrap() }),
    }
}

fn pass(spec: &TinySpec, propagation: Propagation, bits: u8, methods: &[&dyn QuantMethod<Flex>]) -> Pass {
    let decoder = tiny::decoder::<Flex>(spec, 7, &Default::default()).unwrap();
    let sequences = tiny::sequences(spec, 6, 24, 3);
    let jobs: Vec<Job<'_, Flex>> = methods.iter().map(|&method| Job { method, grids: grid(bits).into() }).collect();
    let calibration = Calibration { sequences: &sequences, propagation };
    quantize_model(decoder.as_ref(), Some(calibration), &jobs, &mut |_| {}).unwrap()
}

const EVERY: [Propagation; 3] = [Propagation::FullPrecision, Propagation::Quantized, Propagation::QuantizedPerStage];

/// RTN looks at no activation: propagation changes the errors that are reported, never the codes.
#[test]
fn propagation_leaves_the_codes_alone() {
    let models = EVERY.map(|propagation| pass(&TinySpec::MHA, propagation, 3, &[&Rtn {}]).models.remove(0).unwrap());
    let hash = models[0].codes_sha256();
    assert!(models.iter().all(|model| model.codes_sha256() == hash));
    let [full, quantized, per_stage] =
        models.map(|model| model.logs.iter().map(|log| log.output_mse.unwrap()).collect::<Vec<_>>());
    assert!((full[0] - quantized[0]).abs() <= 1e-6 * full[0], "the first block has no blocks before it");
    assert!((full[1] - quantized[1]).abs() > 1e-6 * full[1], "{full:?} {quantized:?}");
    for (a, b) in quantized.iter().zip(&per_stage) {
        assert!(
            (a - b).abs() <= 1e-4 * a,
            "whatever the stages, the quantized block is one: {quantized:?} {per_stage:?}"
        );
    }
}

#[test]
fn awq_without_its_searches_is_rtn() {
    let no_search = Awq { scale: ScaleStep::Off, clip: ClipStep::Off };
    let only_ratio_zero =
        ScaleSearch { formula: ScaleFormula::Activation, n_ratios: number(1), arithmetic: SearchArithmetic::F32 };
    let only_ratio_zero = Awq { scale: ScaleStep::Search(only_ratio_zero), clip: ClipStep::Off };
    for spec in [TinySpec::GQA, TinySpec::MHA] {
        let pass = pass(&spec, Propagation::FullPrecision, 4, &[&Rtn {}, &no_search, &only_ratio_zero, &awq()]);
        let hashes: Vec<String> = pass.models.into_iter().map(|model| model.unwrap().codes_sha256()).collect();
        assert_eq!((&hashes[1], &hashes[2]), (&hashes[0], &hashes[0]));
        assert_ne!(hashes[3], hashes[0]);
    }
}

#[test]
fn awq_beats_rtn_where_activations_have_outliers() {
    for spec in [TinySpec::GQA, TinySpec::MHA] {
        for bits in [3, 4] {
            let pass = pass(&spec, Propagation::FullPrecision, bits, &[&Rtn {}, &awq()]);
            let [rtn, awq] = <[_; 2]>::try_from(pass.models).unwrap().map(Result::unwrap);
            assert_eq!(rtn.bits_per_weight(), awq.bits_per_weight());
            for (rtn, awq) in rtn.logs.iter().zip(&awq.logs) {
                let (rtn_mse, awq_mse) = (rtn.output_mse.unwrap(), awq.output_mse.unwrap());
                assert!(awq_mse < 0.9 * rtn_mse, "{bits} bit, block {}: {awq_mse} of {rtn_mse}", rtn.block_idx);
            }
        }
    }
}

/// One row per linear of the family, and no claim to a loss that RTN does not have.
#[test]
fn every_linear_is_logged() {
    let model = pass(&TinySpec::GQA, Propagation::QuantizedPerStage, 3, &[&Rtn {}]).models.remove(0).unwrap();
    for log in &model.logs {
        let mut linears: Vec<&str> = log.linears.iter().map(|linear| linear.linear.as_str()).collect();
        linears.sort_unstable();
        let expected = [
            "mlp.down_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "self_attn.k_proj",
            "self_attn.o_proj",
            "self_attn.q_proj",
            "self_attn.v_proj",
        ];
        assert_eq!(linears, expected);
        assert!(log.linears.iter().all(|linear| linear.weight_mse > 0.0 && linear.loss_before.is_none()));
    }
}

#[test]
fn settings_have_no_keys() {
    assert_eq!(toml::from_str::<Rtn>("").unwrap(), Rtn {});
    let message = toml::from_str::<Rtn>("bits = 4").unwrap_err().to_string();
    assert!(message.contains("unknown field `bits`"), "{message}");
}
