//! The decode engine against transformers, against the blocks, and against itself.

use std::sync::Arc;

use awq_core::arithmetic::Arithmetic;
use awq_core::awq::{KeepSalient, SalientBy};
use awq_core::backend::float_vec;
use awq_core::codebook::Codebook;
use awq_core::decode::{Batch, DecodeError, DecodeModel, DecodeOptions, Session};
use awq_core::driver::{Calibration, Job, Propagation, codes_sha256, quantize_model};
use awq_core::grid::{Granularity, Grid, ScaleDtype};
use awq_core::kernel::Activations;
use awq_core::load::{Checkpoint, EditedCheckpoint, LoadError, ModelConfig};
use awq_core::method::QuantMethod;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{NoTap, open_decoder, wiring_of};
use awq_core::open::open_model;
use awq_core::rule::{GridOverride, GridRule};

use crate::fixture::{FAMILIES, Fixture};
use crate::oracle::asset;
use crate::support::{Cpu, check_close, grid, group, no_search, with_threads};

/// Logits after each of `ids`, by the blocks' own forward pass.
fn block_logits(config: &ModelConfig, checkpoint: Arc<dyn Checkpoint>, ids: &[u32]) -> Vec<f32> {
    let decoder = open_decoder::<Cpu>(config.clone(), checkpoint, &Default::default()).unwrap();
    let mut hidden = decoder.embedding().unwrap().embed(&[ids.to_vec()]);
    for block_idx in 0..config.n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    let normed = decoder.final_norm(hidden);
    let [_, seq, width] = normed.dims();
    float_vec(decoder.head(Arithmetic::F32).unwrap().logits(normed.reshape([seq, width])))
}

/// Feeds `ids` in pieces of these lengths, the last one repeated, and returns the logits after each token.
fn in_pieces(model: &DecodeModel, ids: &[u32], lengths: &[usize]) -> Vec<f32> {
    let mut session = Session::new(model, ids.len()).unwrap();
    let (mut logits, mut rest) = (Vec::new(), ids);
    let lengths = lengths.iter().chain(std::iter::repeat(lengths.last().unwrap()));
    for &len in lengths {
        let (piece, after) = rest.split_at(len.min(rest.len()));
        if piece.is_empty() {
            break;
        }
        logits.extend(session.feed_each(piece).unwrap());
        rest = after;
    }
    assert_eq!(session.len(), ids.len());
    logits
}

#[test]
fn every_family_decodes_as_transformers_does() {
    for family in FAMILIES {
        let fixture = Fixture::read(family);
        let model = DecodeModel::load(fixture.config.clone(), &fixture.checkpoint, &DecodeOptions::EXACT).unwrap();
        let rows = fixture.logits.chunks(fixture.logits.len() / fixture.ids.len());
        for (ids, expected) in fixture.ids.iter().zip(rows) {
            for lengths in [&[usize::MAX][..], &[1], &[3, 1], &[2, 4, 1]] {
                let found = in_pieces(&model, ids, lengths);
                check_close(&format!("{family} in pieces of {lengths:?}"), &found, expected, 1e-4);
            }
        }
    }
}

#[test]
fn a_long_prompt_decodes_as_its_blocks_do_at_any_number_of_threads() {
    for (name, spec) in [("gqa", TinySpec::GQA), ("mha", TinySpec::MHA)] {
        // Windows shorter and longer than what goes through the blocks at once, and beside blocks without.
        for windows in [[None, None], [Some(7), None], [Some(300), Some(40)]] {
            let config = ModelConfig { windows: windows.to_vec(), ..spec.config() };
            let checkpoint = tiny::checkpoint(&spec, 3);
            let model = DecodeModel::load(config.clone(), &checkpoint, &DecodeOptions::EXACT).unwrap();
            let ids = tiny::sequences(&spec, 1, 400, 5).remove(0);
            let expected = block_logits(&config, Arc::new(checkpoint), &ids);
            let decode = || in_pieces(&model, &ids, &[300, 1]);
            let one = with_threads(1, decode);
            check_close(&format!("{name}, {windows:?}"), &one, &expected, 1e-4);
            assert!(one == with_threads(2, decode) && one == with_threads(3, decode), "{name}: threads change a bit");
        }
    }
}

#[test]
fn a_session_forgets_what_it_is_told_to() {
    let spec = TinySpec::GQA;
    let model = DecodeModel::load(spec.config(), &tiny::checkpoint(&spec, 3), &DecodeOptions::EXACT).unwrap();
    let mut session = Session::new(&model, 20).unwrap();
    let fresh = session.feed(&[7, 8, 9]).unwrap().to_vec();
    session.feed(&[1, 2, 3]).unwrap();
    session.truncate(2);
    assert_eq!((session.len(), session.capacity()), (2, 20));
    // One row goes through another loop than three do.
    check_close("the third token again", session.feed(&[9]).unwrap(), &fresh, 1e-5);
    session.truncate(0);
    assert!(session.is_empty());
    assert_eq!(session.feed(&[7, 8, 9]).unwrap(), fresh);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let spec = TinySpec::GQA;
    let model = DecodeModel::load(spec.config(), &tiny::checkpoint(&spec, 3), &DecodeOptions::EXACT).unwrap();
    let too_long = Session::new(&model, 513).err().unwrap();
    assert_eq!(too_long, DecodeError::TooLong { asked: 513, longest: 512 });
    assert_eq!(
        too_long.to_string(),
        "a context of 513 tokens is longer than the 512 positions of the model's configuration; ask for less"
    );
    let mut session = Session::new(&model, 4).unwrap();
    let first = session.feed(&[1, 2]).unwrap().to_vec();
    let refused = |session: &mut Session<'_>, ids: &[u32]| session.feed(ids).err().unwrap();
    assert_eq!(refused(&mut session, &[]), DecodeError::Empty);
    assert_eq!(refused(&mut session, &[1, 2, 3]), DecodeError::Full { n_tokens: 3, used: 2, capacity: 4 });
    assert_eq!(refused(&mut session, &[3, 50]), DecodeError::UnknownToken { id: 50, vocab: 50 });
    session.truncate(0);
    assert_eq!(session.feed(&[1, 2]).unwrap(), first);
}

#[test]
fn what_no_family_computes_is_refused() {
    let spec = TinySpec::GQA;
    let config = ModelConfig { architecture: "OtherForCausalLM".into(), ..spec.config() };
    let error = DecodeModel::load(config, &tiny::checkpoint(&spec, 3), &DecodeOptions::EXACT).err().unwrap();
    assert!(matches!(error, LoadError::UnknownArchitecture { .. }), "{error}");
    let config = ModelConfig { n_blocks: 3, windows: vec![None; 3], ..spec.config() };
    let error = DecodeModel::load(config, &tiny::checkpoint(&spec, 3), &DecodeOptions::EXACT).err().unwrap();
    let LoadError::Several { first, .. } = &error else { panic!("{error}") };
    assert!(matches!(first.as_ref(), LoadError::MissingTensor { name, .. } if name.contains("layers.2")), "{error}");
}

#[test]
fn a_trained_model_decodes_as_its_blocks_do() {
    let Some(file) = asset("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let opened = open_model(&file).unwrap();
    let ids = opened.tokenizer.encode("The capital of France is Paris, and the capital of Italy is").unwrap();
    let model = DecodeModel::load(opened.config.clone(), opened.checkpoint.as_ref(), &DecodeOptions::EXACT).unwrap();
    let expected = block_logits(&opened.config, opened.checkpoint, &ids);
    check_close("prompt at once", &in_pieces(&model, &ids, &[ids.len()]), &expected, 1e-4);
    check_close("token by token", &in_pieces(&model, &ids, &[1]), &expected, 1e-4);
}

/// A tiny model after `method`, which looks at nothing, as a checkpoint.
fn quantized(spec: &TinySpec, method: &dyn QuantMethod<Cpu>, rule: impl Into<GridRule>) -> Arc<EditedCheckpoint> {
    let base = Arc::new(tiny::checkpoint(spec, 3));
    let decoder = open_decoder::<Cpu>(spec.config(), base.clone(), &Default::default()).unwrap();
    let ids = tiny::sequences(spec, 2, 20, 1);
    let calibration = Calibration { sequences: &ids, propagation: Propagation::FullPrecision };
    let wiring = wiring_of(&spec.config(), base.as_ref()).unwrap();
    let jobs = [Job { method, grids: rule.into().resolve(&wiring).unwrap() }];
    let pass = quantize_model(decoder.as_ref(), Some(calibration), &jobs, &mut |_| ()).unwrap();
    let model = pass.models.into_iter().next().unwrap().unwrap();
    let expected = model.codes_sha256();
    let checkpoint = Arc::new(model.into_checkpoint(&wiring, base));
    assert_eq!(codes_sha256(&wiring, spec.n_blocks, checkpoint.as_ref()).unwrap(), expected);
    checkpoint
}

#[test]
fn packed_linears_decode_as_dequantized_blocks_do() {
    for (spec, granularity) in
        [(TinySpec::GQA, group(40)), (TinySpec::MHA, group(128)), (TinySpec::GQA, Granularity::PerTensor)]
    {
        let ids = tiny::sequences(&spec, 1, 30, 5).remove(0);
        for bits in [2, 3, 4, 8] {
            let checkpoint = quantized(&spec, &no_search(), grid(bits, granularity));
            let expected = block_logits(&spec.config(), checkpoint.clone(), &ids);
            for (activations, tolerance) in
                [(Activations::F32, 1e-5), (Activations::Int16, 1e-3), (Activations::Int8, 0.3)]
            {
                let options = DecodeOptions { activations, ..DecodeOptions::EXACT };
                let model = DecodeModel::load(spec.config(), checkpoint.as_ref(), &options).unwrap();
                let footprint = model.footprint();
                assert_eq!((footprint.n_packed, footprint.n_linears), (8, 8));
                for lengths in [&[30][..], &[7, 1]] {
                    let error = relative_error(&in_pieces(&model, &ids, lengths), &expected);
                    let what = format!("{bits} bit {granularity:?}, {activations:?}, in pieces of {lengths:?}");
                    assert!(error < tolerance, "{what}: off by {error:e}");
                }
            }
        }
    }
}

/// Root of the mean square of the differences, relative to that of `expected`: rounded inputs move single logits far.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let differences = sum(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    (differences / sum(&mut expected.iter().map(|v| f64::from(*v)))).sqrt()
}

/// q, k and v read one input, as gate and up do. What a kernel takes is packed all the same where they differ.
#[test]
fn linears_of_several_grids_decode_as_dequantized_blocks_do() {
    let nf4 = Some(Grid::of_codebook(Codebook::Nf4, group(32), ScaleDtype::F32));
    let eight = Some(grid(8, group(32)));
    // Packed, dequantized and all linears of a block.
    let cases = [
        (vec![("self_attn.k_proj", eight), ("mlp.gate_proj", None)], [6, 0, 7]),
        (vec![("self_attn.*", None)], [2, 0, 4]),
        (vec![("self_attn.v_proj", nf4), ("mlp.down_proj", nf4)], [4, 2, 6]),
        (vec![("*", nf4)], [0, 4, 4]),
    ];
    for spec in [TinySpec::GQA, TinySpec::MHA] {
        let ids = tiny::sequences(&spec, 1, 30, 5).remove(0);
        for (overrides, of_block) in &cases {
            let one = |(linears, grid): &(&str, Option<Grid>)| GridOverride { linears: (*linears).into(), grid: *grid };
            let rule = GridRule { grid: grid(4, group(32)), overrides: overrides.iter().map(one).collect() };
            let label = rule.label();
            let checkpoint = quantized(&spec, &no_search(), rule);
            let options = DecodeOptions::EXACT;
            let model = DecodeModel::load(spec.config(), checkpoint.as_ref(), &options).unwrap();
            let found = model.footprint();
            let found = [found.n_packed, found.n_dequantized, found.n_linears];
            assert_eq!(found, of_block.map(|n| n * spec.n_blocks), "{label}");
            let expected = block_logits(&spec.config(), checkpoint, &ids);
            for lengths in [&[30][..], &[7, 1]] {
                let error = relative_error(&in_pieces(&model, &ids, lengths), &expected);
                assert!(error < 1e-5, "{label}, in pieces of {lengths:?}: off by {error:e}");
            }
        }
    }
}

#[test]
fn weights_with_a_transform_decode_dense() {
    let spec = TinySpec::GQA;
    let ids = tiny::sequences(&spec, 1, 30, 5).remove(0);
    let method = KeepSalient { fraction: 0.05, by: SalientBy::Activation };
    let checkpoint = quantized(&spec, &method, grid(3, group(32)));
    let model = DecodeModel::load(spec.config(), checkpoint.as_ref(), &DecodeOptions::EXACT).unwrap();
    assert_eq!((model.footprint().n_packed, model.footprint().n_linears), (0, 8));
    let expected = block_logits(&spec.config(), checkpoint, &ids);
    check_close("kept inputs", &in_pieces(&model, &ids, &[10, 1]), &expected, 1e-4);
}

#[test]
fn a_rounded_head_is_smaller_and_nearly_as_good() {
    let spec = TinySpec::GQA;
    let checkpoint = tiny::checkpoint(&spec, 3);
    let ids = tiny::sequences(&spec, 1, 30, 5).remove(0);
    let load = |head| {
        let options = DecodeOptions { head, ..DecodeOptions::EXACT };
        DecodeModel::load(spec.config(), &checkpoint, &options).unwrap()
    };
    let (exact, rounded) = (load(None), load(Some(grid(8, group(32)))));
    assert!(rounded.footprint().step_bytes < exact.footprint().step_bytes - 2 * spec.vocab_size * spec.hidden_size);
    let (expected, found) = (in_pieces(&exact, &ids, &[30]), in_pieces(&rounded, &ids, &[30]));
    assert_ne!(found, expected, "the head was not rounded");
    check_close("head of 8 bits", &found, &expected, 0.02);
}

/// Logits after each token of `texts`, which take their steps together in the places of `order`; a place without a text idles.
pub(crate) fn together(
    model: &DecodeModel,
    texts: &[&[u32]],
    order: &[Option<usize>],
    n_prompt: usize,
) -> Vec<Vec<f32>> {
    let mut batch = Batch::new(model, order.len(), 60).unwrap();
    let mut logits = vec![Vec::new(); texts.len()];
    for (place, text) in order.iter().enumerate() {
        if let Some(text) = *text {
            logits[text].extend_from_slice(batch.feed(place, &texts[text][..n_prompt]).unwrap());
        }
    }
    let longest = order.iter().flatten().map(|&text| texts[text].len()).max().unwrap();
    for at in n_prompt..longest {
        let next: Vec<Option<u32>> = order.iter().map(|text| texts[(*text)?].get(at).copied()).collect();
        let rows = batch.step(&next).unwrap();
        let mut rows = rows.chunks_exact(model.config().vocab_size);
        for (text, _) in order.iter().zip(&next).filter(|(_, next)| next.is_some()) {
            logits[text.unwrap()].extend_from_slice(rows.next().unwrap());
        }
        assert!(rows.next().is_none());
    }
    logits
}

#[test]
fn texts_in_a_batch_change_no_bit_of_each_other() {
    for spec in [TinySpec::GQA, TinySpec::MHA] {
        let dense: Arc<dyn Checkpoint> = Arc::new(tiny::checkpoint(&spec, 3));
        let packed: Arc<dyn Checkpoint> = quantized(&spec, &no_search(), grid(4, group(32)));
        let sequences = tiny::sequences(&spec, 16, 40, 5);
        // They end one after the other, so that steps are taken by every number of texts.
        let texts: Vec<&[u32]> = sequences.iter().enumerate().map(|(i, text)| &text[..22 + i * 7 % 16]).collect();
        let in_order: Vec<Option<usize>> = (0..16).map(Some).collect();
        for (name, checkpoint) in [("dense", dense), ("packed", packed)] {
            let model = DecodeModel::load(spec.config(), checkpoint.as_ref(), &DecodeOptions::EXACT).unwrap();
            let all = together(&model, &texts, &in_order, 20);
            let some = together(&model, &texts, &[Some(3), None, Some(0), Some(14), None, Some(2), Some(1)], 20);
            assert!([0, 1, 2, 3, 14].iter().all(|&text| all[text] == some[text]), "{name}: places change bits");
            for (text, expected) in all.iter().enumerate() {
                let alone = together(&model, &texts[text..=text], &[Some(0)], 20);
                assert!(alone[0] == *expected, "{name}: texts beside text {text} change its bits");
                let in_session = in_pieces(&model, texts[text], &[20, 1]);
                check_close(&format!("{name}, text {text}"), expected, &in_session[19 * spec.vocab_size..], 1e-5);
                // One row of packed weights goes through another loop than several do, and so do the logits of a prompt.
                let steps = (&expected[spec.vocab_size..], &in_session[20 * spec.vocab_size..]);
                assert!(name == "packed" || steps.0 == steps.1, "text {text} in a session");
            }
        }
    }
}

#[test]
fn a_batch_refuses_what_a_session_does_and_stays_as_it_was() {
    let spec = TinySpec::GQA;
    let model = DecodeModel::load(spec.config(), &tiny::checkpoint(&spec, 3), &DecodeOptions::EXACT).unwrap();
    assert!(matches!(Batch::new(&model, 2, 513).err(), Some(DecodeError::TooLong { .. })));
    let mut batch = Batch::new(&model, 2, 4).unwrap();
    let first = batch.feed(0, &[1, 2]).unwrap().to_vec();
    assert_eq!(batch.feed(1, &[]).err(), Some(DecodeError::Empty));
    assert_eq!(batch.step(&[None, None]).err(), Some(DecodeError::Empty));
    assert_eq!(batch.step(&[Some(3), Some(50)]).err(), Some(DecodeError::UnknownToken { id: 50, vocab: 50 }));
    assert_eq!((batch.len_of(0), batch.len_of(1)), (2, 0));
    batch.feed(1, &[1, 2, 3, 4]).unwrap();
    let full = DecodeError::Full { n_tokens: 1, used: 4, capacity: 4 };
    assert_eq!(batch.step(&[Some(3), Some(5)]).err(), Some(full));
    batch.truncate(0, 0);
    assert_eq!(batch.feed(0, &[1, 2]).unwrap(), first);
}

#[test]
fn pieces_of_a_prompt_that_were_kept_give_the_bits_of_a_fresh_one() {
    let spec = TinySpec::GQA;
    let config = ModelConfig { windows: vec![Some(40), None], ..spec.config() };
    let model = DecodeModel::load(config, &tiny::checkpoint(&spec, 3), &DecodeOptions::EXACT).unwrap();
    let (first, other) = (tiny::sequences(&spec, 1, 400, 5).remove(0), tiny::sequences(&spec, 1, 300, 6).remove(0));
    let second: Vec<u32> = first[..290].iter().chain(&other[..70]).copied().collect();
    let mut batch = Batch::new(&model, 2, 420).unwrap();
    batch.feed(0, &first).unwrap();
    batch.truncate(0, Batch::PROMPT_PIECE);
    let kept = batch.feed(0, &second[Batch::PROMPT_PIECE..]).unwrap().to_vec();
    assert!(kept == batch.feed(1, &second).unwrap());
    assert!(batch.step(&[Some(7), None]).unwrap().to_vec() == batch.step(&[None, Some(7)]).unwrap());
}
