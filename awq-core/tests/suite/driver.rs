//! The block loop: determined to the bit, failures kept apart, and the three kinds of propagation.

use std::cell::RefCell;
use std::sync::Arc;

use awq_core::arithmetic::Arithmetic;
use awq_core::awq::{Awq, ClipStep, ScaleFormula, ScaleStep};
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::driver::{
    BlockCodes, BlockSink, Calibration, Job, Pass, Propagation, QuantizedBlock, QuantizedModel, Room, quantize_blocks,
    quantize_model,
};
use awq_core::load::{Checkpoint, LoadError, MemoryCheckpoint, SafetensorsCheckpoint};
use awq_core::method::QuantMethod;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Decoder, NoTap, open_decoder, wiring_of};
use awq_core::pack::PackedWeight;

use crate::support::{Case, Cpu, grid, group, loss_error, no_search, official_awq, scale_search, with_threads};

fn open(spec: &TinySpec, checkpoint: MemoryCheckpoint) -> Box<dyn Decoder<Cpu>> {
    open_decoder(spec.config(), Arc::new(checkpoint), &Default::default()).unwrap()
}

fn jobs<'a>(methods: &[&'a dyn QuantMethod<Cpu>]) -> Vec<Job<'a, Cpu>> {
    methods.iter().map(|&method| Job { method, grids: grid(3, group(32)).into() }).collect()
}

fn pass(decoder: &dyn Decoder<Cpu>, propagation: Propagation, methods: &[&dyn QuantMethod<Cpu>]) -> Pass {
    let sequences = tiny::sequences(&TinySpec::GQA, 4, 24, 3);
    let calibration = Calibration { sequences: &sequences, propagation };
    quantize_model(decoder, Some(calibration), &jobs(methods), &mut |_| {}).unwrap()
}

fn awq_model(propagation: Propagation) -> QuantizedModel {
    let decoder = open(&TinySpec::GQA, tiny::checkpoint(&TinySpec::GQA, 7));
    pass(decoder.as_ref(), propagation, &[&official_awq()]).models.remove(0).unwrap()
}

#[test]
fn runs_and_thread_counts_give_the_same_bits() {
    for propagation in [Propagation::FullPrecision, Propagation::Quantized] {
        let one = with_threads(1, || awq_model(propagation));
        for other in [with_threads(1, || awq_model(propagation)), with_threads(2, || awq_model(propagation))] {
            assert_eq!(other.codes_sha256(), one.codes_sha256());
            for (log, expected) in other.logs.iter().zip(&one.logs) {
                assert_eq!((log.output_mse, &log.scale_searches), (expected.output_mse, &expected.scale_searches));
                assert_eq!(log.linears, expected.linears);
            }
        }
    }
}

/// Jobs of one pass share captures and searches and must not see each other.
#[test]
fn jobs_of_a_pass_give_what_they_give_alone() {
    let decoder = open(&TinySpec::GQA, tiny::checkpoint(&TinySpec::GQA, 7));
    let scale_only = Awq { clip: ClipStep::Off, ..official_awq() };
    let clip_only = Awq { scale: ScaleStep::Off, ..official_awq() };
    let duo = Awq { scale: scale_search(ScaleFormula::Duo, 20), ..official_awq() };
    let (awq, plain) = (official_awq(), no_search());
    let methods: [&dyn QuantMethod<Cpu>; 6] = [&plain, &awq, &scale_only, &clip_only, &duo, &plain];
    for propagation in [Propagation::FullPrecision, Propagation::Quantized] {
        let together = pass(decoder.as_ref(), propagation, &methods);
        let hashes: Vec<String> = together.models.into_iter().map(|model| model.unwrap().codes_sha256()).collect();
        let alone = |method| pass(decoder.as_ref(), propagation, &[method]).models.remove(0).unwrap().codes_sha256();
        assert_eq!(hashes, methods.map(alone));
        assert_ne!(hashes[0], hashes[1]);
    }
}

/// More tokens than one forward batch holds: the first block's losses are those of one single batch.
#[test]
fn long_calibration_is_cut_into_batches_without_effect() {
    let spec = TinySpec { n_blocks: 1, ..TinySpec::GQA };
    let decoder = open(&spec, tiny::checkpoint(&spec, 7));
    let sequences = tiny::sequences(&spec, 20, 500, 3);
    let calibration = Calibration { sequences: &sequences, propagation: Propagation::FullPrecision };
    let model = quantize_model(decoder.as_ref(), Some(calibration), &jobs(&[&official_awq()]), &mut |_| {}).unwrap();
    let found = &model.models[0].as_ref().unwrap().logs[0];

    let block = decoder.block(0).unwrap();
    let hidden = vec![decoder.embedding().unwrap().embed(&sequences)];
    let (inputs, _) = awq_core::capture::BlockInputs::capture(block.as_ref(), &hidden);
    let expected = Case { block, inputs, hidden }.edit(&official_awq(), &grid(3, group(32))).log;
    for (found, expected) in found.scale_searches.iter().zip(&expected.scale_searches) {
        assert_eq!(found.ratio, expected.ratio, "{}", found.group);
        assert_eq!(found.losses.len(), expected.losses.len());
        // Nothing follows from an expected loss that is a lower bound.
        let is_whole = |idx: &usize| !expected.bounds.contains(idx);
        for idx in (0..expected.losses.len()).filter(is_whole) {
            let error = loss_error(found, idx, expected.losses[idx]);
            assert!(error < 1e-3, "{}: {} instead of {}", found.group, found.losses[idx], expected.losses[idx]);
        }
    }
}

/// `up_proj` of block 1 is so large that the input of `down_proj` overflows when it is squared.
#[test]
fn a_failing_job_leaves_the_others() {
    let spec = TinySpec::GQA;
    let mut checkpoint = tiny::checkpoint(&spec, 7);
    let name = "model.layers.1.mlp.up_proj.weight";
    let huge = checkpoint.read_f32(name).unwrap().into_iter().map(|w| w * 1e18).collect();
    checkpoint.insert(name, &[spec.intermediate_size, spec.hidden_size], huge);
    let decoder = open(&spec, checkpoint);
    for propagation in [Propagation::FullPrecision, Propagation::Quantized] {
        let pass = pass(decoder.as_ref(), propagation, &[&no_search(), &official_awq(), &no_search()]);
        let [before, failed, after] = <[_; 3]>::try_from(pass.models).unwrap();
        assert_eq!(before.unwrap().codes_sha256(), after.unwrap().codes_sha256());
        let message = failed.unwrap_err().to_string();
        assert_eq!(
            message,
            "block 1, mlp.gate_proj+mlp.up_proj: the loss of a candidate scale is not finite; \
             the checkpoint is damaged or overflows in this precision (try f32)"
        );
    }
}

#[test]
fn propagation_changes_what_later_blocks_see() {
    let full = awq_model(Propagation::FullPrecision);
    let quantized = awq_model(Propagation::Quantized);
    assert_eq!(
        full.logs[0].scale_searches, quantized.logs[0].scale_searches,
        "the first block has no blocks before it"
    );
    assert_ne!(full.logs[1].scale_searches, quantized.logs[1].scale_searches);
    assert_ne!(full.codes_sha256(), quantized.codes_sha256());
}

#[test]
fn awq_refuses_to_work_in_stages() {
    let decoder = open(&TinySpec::GQA, tiny::checkpoint(&TinySpec::GQA, 7));
    let pass = pass(decoder.as_ref(), Propagation::QuantizedPerStage, &[&official_awq()]);
    assert_eq!(
        pass.models[0].as_ref().unwrap_err().to_string(),
        "block 0, block: AWQ folds scales across linears and so needs the whole block; \
         use propagation full_precision or quantized"
    );
}

#[test]
fn quantized_decoder_is_the_decoder_with_its_weights_replaced() {
    let spec = TinySpec::MHA;
    let original = tiny::checkpoint(&spec, 7);
    let decoder = open(&spec, original.clone());
    let model = quantize_model(decoder.as_ref(), None, &jobs(&[&no_search()]), &mut |_| {}).unwrap();
    let model = model.models.into_iter().next().unwrap().unwrap();

    let mut replaced = original.clone();
    for name in original.names().iter().filter(|name| name.ends_with("_proj.weight")) {
        let shape = original.shape(name).unwrap();
        let weight = crate::support::tensor::<Cpu, 2>(&original.read_f32(name).unwrap(), [shape[0], shape[1]]);
        replaced.insert(name, &shape, float_vec(Cpu::fake_quant(weight, &grid(3, group(32)))));
    }
    let expected = logits(open(&spec, replaced).as_ref(), &spec);
    let bits = model.bits_per_weight();
    assert_eq!(logits(over(decoder.as_ref(), model, Arc::new(original)).as_ref(), &spec), expected);
    assert_ne!(logits(decoder.as_ref(), &spec), expected);
    assert!((bits - 3.0 - 35.0 / 32.0).abs() < 1e-9, "{bits}");
}

/// Norms, biases and rows of previous linears that a scale was divided out of come back with the stored block.
#[test]
fn quantized_decoder_carries_what_was_folded() {
    for spec in [TinySpec::GQA, TinySpec::MHA] {
        let decoder = open(&spec, tiny::checkpoint(&spec, 7));
        let case = Case::new(&spec, &[4]);
        let sequences = tiny::sequences(&spec, 4, 24, 3);
        let calibration = Calibration { sequences: &sequences, propagation: Propagation::FullPrecision };
        let pass = quantize_model(decoder.as_ref(), Some(calibration), &jobs(&[&official_awq()]), &mut |_| {}).unwrap();
        let model = pass.models.into_iter().next().unwrap().unwrap();
        let base = Arc::new(tiny::checkpoint(&spec, 7));
        let stored = over(decoder.as_ref(), model, base).block(0).unwrap();
        let found = float_vec(stored.forward(case.hidden[0].clone(), &mut NoTap));
        assert_eq!(found, case.output_after(&case.edit(&official_awq(), &grid(3, group(32)))));
    }
}

/// A quantized model as it is run.
fn over(decoder: &dyn Decoder<Cpu>, model: QuantizedModel, base: Arc<dyn Checkpoint>) -> Box<dyn Decoder<Cpu>> {
    let wiring = wiring_of(decoder.config(), base.as_ref()).unwrap();
    decoder.over(Arc::new(model.into_checkpoint(&wiring, base))).unwrap()
}

fn logits(decoder: &dyn Decoder<Cpu>, spec: &TinySpec) -> Vec<f32> {
    let mut hidden = decoder.embedding().unwrap().embed(&tiny::sequences(spec, 2, 20, 11));
    for block_idx in 0..spec.n_blocks {
        hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
    }
    let rows = decoder.final_norm(hidden).reshape([40, spec.hidden_size]);
    float_vec(decoder.head(Arithmetic::F32).unwrap().logits(rows))
}

#[test]
fn progress_is_told_after_each_block() {
    let decoder = open(&TinySpec::GQA, tiny::checkpoint(&TinySpec::GQA, 7));
    let mut told = Vec::new();
    quantize_model(decoder.as_ref(), None, &jobs(&[&no_search()]), &mut |block_idx| told.push(block_idx)).unwrap();
    assert_eq!(told, [0, 1]);
}

const DAMAGED: &str = "model.layers.1.self_attn.o_proj.weight";

fn pass_error(decoder: &dyn Decoder<Cpu>) -> LoadError {
    quantize_model(decoder, None, &jobs(&[&no_search()]), &mut |_| {}).unwrap_err()
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let spec = TinySpec::GQA;
    let mut checkpoint = tiny::checkpoint(&spec, 7);
    let mut values = checkpoint.read_f32(DAMAGED).unwrap();
    values[77] = f32::NAN;
    checkpoint.insert(DAMAGED, &[64, 64], values.clone());
    let expected = format!(
        "checkpoint holds NaN or infinity in tensor \"{DAMAGED}\" at element 77; \
         download the file again, or choose another checkpoint"
    );
    assert_eq!(pass_error(open(&spec, checkpoint.clone()).as_ref()).to_string(), format!("memory: {expected}"));

    // The same through a file.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write_safetensors(&file, &tiny::checkpoint(&spec, 7), Some((DAMAGED, &values)));
    let on_disk = Arc::new(SafetensorsCheckpoint::open_file(&file).unwrap());
    let decoder: Box<dyn Decoder<Cpu>> = open_decoder(spec.config(), on_disk, &Default::default()).unwrap();
    assert_eq!(pass_error(decoder.as_ref()).to_string(), format!("{}: {expected}", file.display()));
}

/// Where a model is in memory or in a file makes no difference.
#[test]
fn a_file_gives_the_logits_of_its_tensors() {
    let spec = TinySpec::GQA;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let checkpoint = tiny::checkpoint(&spec, 7);
    write_safetensors(&file, &checkpoint, None);
    let on_disk = Arc::new(SafetensorsCheckpoint::open_file(&file).unwrap());
    let decoder: Box<dyn Decoder<Cpu>> = open_decoder(spec.config(), on_disk, &Default::default()).unwrap();
    assert_eq!(logits(decoder.as_ref(), &spec), logits(open(&spec, checkpoint).as_ref(), &spec));
}

/// Writes a checkpoint to a file, one tensor replaced.
fn write_safetensors(file: &std::path::Path, checkpoint: &MemoryCheckpoint, replaced: Option<(&str, &[f32])>) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = checkpoint
        .names()
        .into_iter()
        .map(|name| {
            let values = match replaced {
                Some((other, values)) if other == name => values.to_vec(),
                _ => checkpoint.read_f32(&name).unwrap(),
            };
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name.clone(), checkpoint.shape(&name).unwrap(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, file).unwrap();
}

/// Keeps what a pass makes, with room for so many hidden states, and what it hears of each block before that.
struct Kept {
    room: Room,
    blocks: Vec<(BlockCodes, Option<f64>)>,
    heard: RefCell<[Vec<f64>; 2]>,
    shares: Vec<Vec<f64>>,
}

impl Kept {
    fn new(room: Room) -> Self {
        Self { room, blocks: Vec::new(), heard: RefCell::default(), shares: Vec::new() }
    }
}

impl BlockSink for Kept {
    type Error = LoadError;

    fn room(&self) -> Room {
        self.room.clone()
    }

    fn advance(&self, job_idx: usize, share: f64) {
        self.heard.borrow_mut()[job_idx].push(share);
    }

    fn keep(&mut self, job_idx: usize, block: QuantizedBlock) -> Result<(), LoadError> {
        self.blocks.push((block.codes, block.log.output_mse));
        self.shares.push(std::mem::take(&mut self.heard.get_mut()[job_idx]));
        Ok(())
    }

    fn keep_head(&mut self, _: usize, _: PackedWeight) -> Result<(), LoadError> {
        Ok(())
    }

    fn passed(&mut self, _: usize, _: f64) {}
}

/// 20 sequences of 500 tokens are three batches, of 2 MB before a block and behind it.
#[test]
fn hidden_states_in_files_change_no_bit() {
    let decoder = open(&TinySpec::GQA, tiny::checkpoint(&TinySpec::GQA, 7));
    let sequences = tiny::sequences(&TinySpec::GQA, 20, 500, 3);
    let folder = tempfile::tempdir().unwrap();
    for propagation in [Propagation::FullPrecision, Propagation::Quantized] {
        let calibration = Calibration { sequences: &sequences, propagation };
        let in_room = |room: Room| {
            let mut sink = Kept::new(room.clone());
            let (plain, awq) = (no_search(), official_awq());
            let results =
                quantize_blocks(decoder.as_ref(), Some(calibration), &jobs(&[&plain, &awq]), &mut sink).unwrap();
            assert!(results.iter().all(Result::is_ok));
            (sink.blocks, room.most_in_files())
        };
        let (expected, in_no_file) = in_room(Room::unlimited());
        let (found, in_files) = in_room(Room::new(3 << 20, folder.path().into()));
        assert!(found == expected, "{propagation:?}");
        assert_eq!(in_no_file, 0);
        assert!(in_files > 1 << 20, "{in_files}");
    }
}

/// Every batch that goes through a block is heard of, before the method and behind it: a large calibration takes minutes.
#[test]
fn a_block_is_heard_of_while_batches_go_through_it() {
    let decoder = open(&TinySpec::GQA, tiny::checkpoint(&TinySpec::GQA, 7));
    let sequences = tiny::sequences(&TinySpec::GQA, 20, 500, 3);
    const N_BATCHES: usize = 3;
    for propagation in [Propagation::FullPrecision, Propagation::Quantized] {
        let mut sink = Kept::new(Room::unlimited());
        let (plain, awq) = (no_search(), official_awq());
        let calibration = Calibration { sequences: &sequences, propagation };
        quantize_blocks(decoder.as_ref(), Some(calibration), &jobs(&[&plain, &awq]), &mut sink).unwrap();
        assert_eq!(sink.shares.len(), 2 * TinySpec::GQA.n_blocks);
        for shares in &sink.shares {
            let heard: f64 = shares.iter().sum();
            assert!(shares.len() > 2 * N_BATCHES && (0.9..1.0).contains(&heard), "{propagation:?}: {shares:?}");
        }
    }
}
