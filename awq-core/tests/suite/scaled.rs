//! AWQ's scales without rounding: the model computes what it did, and what linears see is what they see in the model that is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use awq_core::awq::{Awq, InputSquares, Scaled};
use awq_core::backend::float_vec;
use awq_core::driver::{Calibration, Job, Propagation, quantize_model};
use awq_core::load::{Checkpoint, MemoryCheckpoint};
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Decoder, LinearName, NoTap, open_decoder, wiring_of};

use crate::support::{Cpu, check_close, grid, group, official_awq};

const SPEC: TinySpec = TinySpec::GQA;

type Seen = BTreeMap<(usize, LinearName), InputSquares>;

fn open(checkpoint: Arc<dyn Checkpoint>) -> Box<dyn Decoder<Cpu>> {
    open_decoder(SPEC.config(), checkpoint, &Default::default()).unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    tiny::sequences(&SPEC, 4, 24, 3)
}

/// The model that comes of it, and what its linears see.
fn scaled(base: Arc<dyn Checkpoint>, awq: Option<Awq>) -> (Arc<dyn Checkpoint>, Seen) {
    let (sequences, scaled) = (sequences(), Scaled::new(awq));
    let calibration = Calibration { sequences: &sequences, propagation: Propagation::FullPrecision };
    let jobs = [Job { method: &scaled, grids: grid(3, group(32)).into() }];
    let decoder = open(base.clone());
    let model = quantize_model(decoder.as_ref(), Some(calibration), &jobs, &mut |_| {}).unwrap().models.remove(0);
    let wiring = wiring_of(&SPEC.config(), base.as_ref()).unwrap();
    (Arc::new(model.unwrap().into_checkpoint(&wiring, base)), scaled.into_seen())
}

fn base() -> Arc<MemoryCheckpoint> {
    Arc::new(tiny::checkpoint(&SPEC, 7))
}

/// Behind the last block.
fn hidden(checkpoint: Arc<dyn Checkpoint>) -> Vec<f32> {
    let decoder = open(checkpoint);
    let blocks = (0..SPEC.n_blocks).map(|block_idx| decoder.block(block_idx).unwrap());
    float_vec(
        blocks
            .fold(decoder.embedding().unwrap().embed(&sequences()), |hidden, block| block.forward(hidden, &mut NoTap)),
    )
}

#[test]
fn a_scaled_model_computes_what_it_did_and_its_linears_see_what_is_said() {
    let (plain, of_plain) = scaled(base(), None);
    assert_eq!(hidden(plain), hidden(base()));
    let (model, seen) = scaled(base(), Some(official_awq()));
    check_close("hidden states", &hidden(model.clone()), &hidden(base()), 1e-4);
    let (_, again) = scaled(model.clone(), None);
    assert_eq!(seen.len(), 7 * SPEC.n_blocks);
    let mut n_changed = 0;
    for ((place, found), (_, expected)) in seen.iter().zip(&again) {
        let in_f32 = |squares: &InputSquares| squares.sums.iter().map(|&sum| sum as f32).collect::<Vec<_>>();
        check_close(&format!("{place:?}"), &in_f32(found), &in_f32(expected), 1e-3);
        assert_eq!(found.n_tokens, 4 * 24);
        n_changed += usize::from(found != &of_plain[place]);
        let name = format!("model.layers.{}.{}.weight", place.0, place.1);
        assert!(model.read_quantized(&name).unwrap().is_none(), "{name}");
    }
    assert!(n_changed >= 5 * SPEC.n_blocks, "{n_changed} of {} are scaled", seen.len());
}

/// Sums of squares by hand.
#[test]
fn what_linears_see_is_summed_over_all_tokens() {
    let decoder = open(base());
    let block = decoder.block(0).unwrap();
    let (inputs, _) =
        awq_core::capture::BlockInputs::capture(block.as_ref(), &[decoder.embedding().unwrap().embed(&sequences())]);
    let (_, seen) = scaled(base(), None);
    for facts in &block.layout().linears {
        let stats = inputs.get(facts.input).unwrap();
        let mut sums = vec![0.0; stats.n_in()];
        for batch in stats.batches() {
            for token in float_vec(batch.clone()).chunks(stats.n_in()) {
                sums.iter_mut().zip(token).for_each(|(sum, x)| *sum += x * x);
            }
        }
        let found: Vec<f32> = seen[&(0, facts.name)].sums.iter().map(|&sum| sum as f32).collect();
        check_close(facts.name.0, &found, &sums, 1e-5);
    }
}
