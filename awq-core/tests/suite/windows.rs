//! Long sequences and sliding windows: what attention sees, in scoring, in decoding and where methods judge by it.

use std::sync::Arc;

use awq_core::arithmetic::Arithmetic;
use awq_core::awq::{Awq, ClipStep};
use awq_core::backend::float_vec;
use awq_core::decode::{DecodeModel, DecodeOptions, Session};
use awq_core::driver::{Calibration, Job, Propagation, quantize_model};
use awq_core::load::ModelConfig;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Decoder, Inspect, NoTap, open_decoder};
use burn::tensor::Tensor;

use crate::fixture::Fixture;
use crate::support::{Cpu, Definition, check_close, grid, group, official_awq};

const SPEC: TinySpec = TinySpec { vocab_size: 40, hidden_size: 32, intermediate_size: 32, ..TinySpec::GQA };

fn decoder(windows: [Option<usize>; 2]) -> Box<dyn Decoder<Cpu>> {
    let config = ModelConfig { windows: windows.to_vec(), ..SPEC.config() };
    open_decoder(config, Arc::new(tiny::checkpoint(&SPEC, 3)), &Default::default()).unwrap()
}

fn hidden_states(decoder: &dyn Decoder<Cpu>, ids: &[u32]) -> Tensor<Cpu, 3> {
    let mut hidden = decoder.embedding().unwrap().embed(&[ids.to_vec()]);
    for block_idx in 0..decoder.config().n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    hidden
}

fn last_states(decoder: &dyn Decoder<Cpu>, ids: &[u32], n: usize) -> Vec<f32> {
    float_vec(hidden_states(decoder, ids).narrow(1, ids.len() - n, n))
}

/// The largest difference of two lists of numbers.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The fixtures' logits are those of windows (tested with the families), and not those of whole attention.
#[test]
fn windows_of_the_fixtures_matter_in_the_blocks_that_have_them() {
    for (name, windows) in [("mistral-window", [Some(5), Some(5)]), ("qwen2-window", [None, Some(7)])] {
        let mut fixture = Fixture::read(name);
        assert_eq!(fixture.config.windows, windows, "{name}");
        check_close(name, &fixture.run::<Definition>(), &fixture.logits, 1e-4);
        for wrong in [[None, None], windows.map(|window| window.map(|window| window + 1)), [windows[1], windows[0]]] {
            fixture.config.windows = wrong.to_vec();
            let is_other = wrong != windows;
            let found = difference(&fixture.run::<Cpu>(), &fixture.logits);
            assert_eq!(found > 0.1, is_other, "{name} with {wrong:?}: {found}");
        }
    }
}

/// With two blocks a token sees the tokens of two windows. Positions are relative, so that the rest of a text does not matter.
#[test]
fn a_token_sees_as_far_as_the_windows_of_its_blocks_reach() {
    let windowed = decoder([Some(9), Some(5)]);
    let ids = tiny::sequences(&SPEC, 1, 300, 1).remove(0);
    // The last token sees itself and 4 + 8 before it.
    let expected = last_states(windowed.as_ref(), &ids, 1);
    check_close("13 tokens", &last_states(windowed.as_ref(), &ids[300 - 13..], 1), &expected, 1e-4);
    let too_few = last_states(windowed.as_ref(), &ids[300 - 12..], 1);
    assert!(difference(&too_few, &expected) > 1e-2, "one token less changes the last state");
}

/// More than the 16,384 positions that were once the end: the last logits are those of a session that was fed piece by piece,
/// and a window makes the last state that of a short text.
#[test]
fn contexts_of_more_than_20_000_tokens_run() {
    const N: usize = 20_500;
    // Without outliers: softmax weights so small that their products are subnormal take ten times as long.
    const SPEC: TinySpec =
        TinySpec { n_blocks: 1, n_heads: 2, n_kv_heads: 1, hidden_size: 16, outlier_gain: 1.0, ..self::SPEC };
    let ids = tiny::sequences(&SPEC, 1, N, 2).remove(0);
    let checkpoint = tiny::checkpoint(&SPEC, 3);
    for window in [None, Some(4000)] {
        let config = ModelConfig { windows: vec![window], max_positions: 40_000, ..SPEC.config() };
        assert_eq!(config.longest_sequence(), 40_000);
        let decoder = open_decoder::<Cpu>(config.clone(), Arc::new(checkpoint.clone()), &Default::default()).unwrap();
        let states = hidden_states(decoder.as_ref(), &ids).narrow(1, N - 3, 3);
        let last = float_vec(states.clone().narrow(1, 2, 1));
        let rows = decoder.final_norm(states).reshape([3, SPEC.hidden_size]);
        let logits = float_vec(decoder.head(Arithmetic::F32).unwrap().logits(rows));

        let model = DecodeModel::load(config, &checkpoint, &DecodeOptions::EXACT).unwrap();
        let mut session = Session::new(&model, N).unwrap();
        session.feed(&ids[..N - 3]).unwrap();
        let decoded: Vec<f32> = ids[N - 3..].iter().flat_map(|&id| session.feed(&[id]).unwrap().to_vec()).collect();
        check_close(&format!("{window:?}"), &decoded, &logits, 1e-4);
        if let Some(window) = window {
            check_close("a short text", &last_states(decoder.as_ref(), &ids[N - window..], 1), &last, 1e-3);
        }
    }
}

/// The module that judges AWQ's scales is the windowed one, and so are the activations that it sees.
#[test]
fn calibration_and_scale_searches_see_through_windows() {
    let sequences = tiny::sequences(&SPEC, 3, 60, 7);
    let scale_only = Awq { clip: ClipStep::Off, ..official_awq() };
    let losses = |windows: [Option<usize>; 2]| {
        let decoder = decoder(windows);
        let calibration = Calibration { sequences: &sequences, propagation: Propagation::FullPrecision };
        let job = Job { method: &scale_only, grids: grid(3, group(16)).into() };
        let pass = quantize_model(decoder.as_ref(), Some(calibration), &[job], &mut |_| {}).unwrap();
        let logs = pass.models.into_iter().next().unwrap().unwrap().logs;
        logs.into_iter().flat_map(|log| log.scale_searches).map(|search| search.losses).collect::<Vec<_>>()
    };
    let (whole, wide, narrow) = (losses([None, None]), losses([Some(60), Some(60)]), losses([Some(6), Some(6)]));
    assert_eq!(whole, wide, "a window as long as the sequences hides nothing");
    // Block 0's first group is judged by the attention module: its inputs are the same, what it mixes is not.
    assert_ne!(whole[0], narrow[0]);

    let block = decoder([Some(6), None]).block(0).unwrap();
    let shape = [1, 60, SPEC.hidden_size];
    let values = crate::support::numbers(shape.iter().product(), 4);
    let input: Tensor<Cpu, 3> = crate::support::tensor(&values, shape);
    assert_eq!(block.layout().scale_groups[0].inspect, Inspect::Attention);
    let judged = block.attention(input.clone(), &mut NoTap).narrow(1, 59, 1);
    let alone = block.attention(input.narrow(1, 54, 6), &mut NoTap).narrow(1, 5, 1);
    check_close("the last token of a window", &float_vec(alone), &float_vec(judged), 1e-4);
}
