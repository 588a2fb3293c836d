//! The block loop: capture, method, apply, propagate. The only place where a model changes.
//!
//! Cells of a sweep that share model, calibration and propagation run in one pass: a block is read once, its activations are
//! captured once, and every job's edit of it is stored packed. In memory are one block, hidden states and captured inputs of all
//! calibration tokens (hidden states for each job, where blocks see quantized outputs), and the packed results.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backend::{QuantBackend, float_vec};
use crate::capture::BlockInputs;
use crate::fold::fold;
use crate::load::{Checkpoint, LoadError, QuantizedCheckpoint};
pub use crate::log::{BlockLog, LinearLog, ScaleSearchLog};
use crate::method::{BlockCtx, BlockEdit, MethodError, QuantMethod};
use crate::model::layers::{Linear, Norm};
use crate::model::wiring::Wiring;
use crate::model::{Block, BlockLayout, Decoder, LinearFacts, LinearName, NoTap, NormName, for_each_block};
use crate::pack::PackedWeight;
use crate::rule::ModelGrids;
use crate::scale_range::checked_edit;

mod decoder;
mod head;
mod share;
mod stored;

use decoder::QuantizedDecoder;
pub use share::FullPrecisionShare;

/// What the blocks after the first see during calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Outputs of the full-precision blocks (the AWQ code).
    FullPrecision,
    /// Outputs of the quantized blocks (the GPTQ code).
    Quantized,
    /// As `Quantized`, and inside a block the later linears see the earlier ones quantized (GPTQ's `--true-sequential`).
    QuantizedPerStage,
}

/// Calibration sequences of equal length and how they travel through the blocks.
#[derive(Clone, Copy, Debug)]
pub struct Calibration<'a> {
    /// Token ids, one sequence a row.
    pub sequences: &'a [Vec<u32>],
    /// What later blocks see.
    pub propagation: Propagation,
}

/// One method on one grid, or on several.
#[derive(Clone)]
pub struct Job<'a, B: QuantBackend> {
    /// The method.
    pub method: &'a dyn QuantMethod<B>,
    /// The grid of each linear.
    pub grids: ModelGrids,
}

/// A quantized model at its stored size: an edit of the checkpoint that it was made from. Copies share the codes.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedModel {
    blocks: Vec<StoredBlock>,
    head: Option<Arc<PackedWeight>>,
    /// What happened in each block.
    pub logs: Vec<BlockLog>,
}

/// The changed parts of one block in host memory.
#[derive(Clone, Debug, PartialEq)]
struct StoredBlock {
    /// Shared, for a copy of a model is not to hold its codes twice.
    weights: BTreeMap<LinearName, Arc<PackedWeight>>,
    /// Biases and norms, changed where a scale was folded in.
    biases: BTreeMap<LinearName, Vec<f32>>,
    /// Linears that no method quantizes, and those left in full precision into which a scale was folded.
    kept: BTreeMap<LinearName, Vec<f32>>,
    norms: BTreeMap<NormName, (Vec<f32>, Option<Vec<f32>>)>,
}

/// Result of one pass for all its jobs.
#[derive(Debug)]
pub struct Pass {
    /// One result a job, in the order of the jobs.
    pub models: Vec<Result<QuantizedModel, MethodError>>,
    /// Wall time spent on reading blocks and capturing, shared by all jobs.
    pub shared_seconds: f64,
}

/// Tokens of one forward batch during calibration: enough to fill the matrix kernels. The activations inside a module, of which
/// only one batch is in memory at a time, grow with it.
const TOKENS_PER_BATCH: usize = 4096;

/// Quantizes a model by every job in one pass over its blocks. `progress` is called after each block with its index.
///
/// A job that fails keeps its error and drops out; the others go on.
///
/// # Errors
/// A block that cannot be read.
pub fn quantize_model<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    calibration: Option<Calibration<'_>>,
    jobs: &[Job<'_, B>],
    progress: &mut dyn FnMut(usize),
) -> Result<Pass, LoadError> {
    let start = Instant::now();
    if let Some(calibration) = calibration {
        decoder.check_ids(calibration.sequences)?;
    }
    let hidden = calibration.map_or_else(Vec::new, |calibration| embed_batches(decoder, calibration.sequences));
    let propagation = calibration.map_or(Propagation::FullPrecision, |calibration| calibration.propagation);
    let mut shared_seconds = start.elapsed().as_secs_f64();
    let mut models: Vec<Result<QuantizedModel, MethodError>> =
        jobs.iter().map(|_| Ok(QuantizedModel { blocks: Vec::new(), head: None, logs: Vec::new() })).collect();
    // With full-precision propagation all jobs see the same stream; else each has its own.
    let n_streams = if propagation == Propagation::FullPrecision { 1 } else { jobs.len() };
    let compares = |job: &Job<'_, B>| job.method.needs().full_precision_inputs;
    let mut reference =
        (propagation != Propagation::FullPrecision && jobs.iter().any(compares)).then(|| hidden.clone());
    let mut streams: Vec<Vec<Tensor<B, 3>>> = vec![hidden; n_streams];
    let mut last = Instant::now();
    for_each_block(decoder, |block_idx, block| -> Result<(), LoadError> {
        let block = block.as_ref();
        let shared = (propagation == Propagation::FullPrecision).then(|| BlockInputs::capture(block, &streams[0]));
        let referenced = reference.as_ref().map(|hidden| BlockInputs::capture(block, hidden));
        // The time that was waited for the block counts, too.
        shared_seconds += last.elapsed().as_secs_f64();
        for (job_idx, job) in jobs.iter().enumerate() {
            let Ok(model) = &mut models[job_idx] else { continue };
            let start = Instant::now();
            let full_precision = referenced.as_ref().filter(|_| compares(job)).map(|(inputs, _)| inputs);
            let result = match (&shared, propagation) {
                (Some((inputs, outputs)), _) => quantize_shared(job, block_idx, block, &streams[0], inputs, outputs)
                    .map(|done| (done.stored, done.log)),
                (None, Propagation::QuantizedPerStage) => {
                    quantize_per_stage(job, block_idx, block, full_precision, &mut streams[job_idx])
                }
                (None, _) => quantize_own_stream(job, block_idx, block, full_precision, &mut streams[job_idx]),
            };
            match result {
                Ok((stored, log)) => {
                    model.blocks.push(stored);
                    model.logs.push(BlockLog { block_idx, seconds: start.elapsed().as_secs_f64(), ..log });
                }
                Err(error) => models[job_idx] = Err(error),
            }
        }
        if let Some((_, outputs)) = shared {
            streams[0] = outputs;
        }
        if let Some((_, outputs)) = referenced {
            reference = Some(outputs);
        }
        progress(block_idx);
        last = Instant::now();
        Ok(())
    })?;
    for (job, model) in jobs.iter().zip(&mut models) {
        let (Ok(quantized), Some(grid)) = (model.as_mut(), job.grids.head()) else { continue };
        match head::quantize_head(decoder, job.method, grid) {
            Ok(head) => quantized.head = Some(Arc::new(head)),
            Err(error) => *model = Err(error),
        }
    }
    Ok(Pass { models, shared_seconds })
}

/// Embedded calibration sequences in batches of about [`TOKENS_PER_BATCH`] tokens.
fn embed_batches<B: QuantBackend>(decoder: &dyn Decoder<B>, sequences: &[Vec<u32>]) -> Vec<Tensor<B, 3>> {
    let seq_len = sequences.first().map_or(1, |sequence| sequence.len().max(1));
    sequences.chunks((TOKENS_PER_BATCH / seq_len).max(1)).map(|batch| decoder.embed(batch)).collect()
}

/// A quantized block and what it puts out.
struct QuantizedBlock<B: QuantBackend> {
    stored: StoredBlock,
    log: BlockLog,
    outputs: Vec<Tensor<B, 3>>,
}

/// One job on a block whose activations all jobs share.
fn quantize_shared<B: QuantBackend>(
    job: &Job<'_, B>,
    block_idx: usize,
    block: &dyn Block<B>,
    hidden: &[Tensor<B, 3>],
    inputs: &BlockInputs<B>,
    expected: &[Tensor<B, 3>],
) -> Result<QuantizedBlock<B>, MethodError> {
    let grids = job.grids.block(block_idx);
    let linears = &grids.quantized(&block.layout().linears);
    let ctx = BlockCtx { block_idx, block, inputs: Some(inputs), linears, grids };
    let applied = apply(block, decide(job.method, &ctx)?);
    let outputs = run(applied.block.as_ref(), hidden);
    let log = with_output_error(applied.log, expected, &outputs);
    let stored = StoredBlock::new(applied.weights, &applied.folded, applied.block.as_ref());
    Ok(QuantizedBlock { stored, log, outputs })
}

/// One job on a block that sees the outputs of the job's own quantized blocks.
fn quantize_own_stream<B: QuantBackend>(
    job: &Job<'_, B>,
    block_idx: usize,
    block: &dyn Block<B>,
    full_precision: Option<&BlockInputs<B>>,
    hidden: &mut Vec<Tensor<B, 3>>,
) -> Result<(StoredBlock, BlockLog), MethodError> {
    let (inputs, expected) = capture_beside(block, full_precision, hidden);
    let done = quantize_shared(job, block_idx, block, hidden, &inputs, &expected)?;
    *hidden = done.outputs;
    Ok((done.stored, done.log))
}

/// As [`quantize_own_stream`], capturing again after each stage of the block.
fn quantize_per_stage<B: QuantBackend>(
    job: &Job<'_, B>,
    block_idx: usize,
    block: &dyn Block<B>,
    full_precision: Option<&BlockInputs<B>>,
    hidden: &mut Vec<Tensor<B, 3>>,
) -> Result<(StoredBlock, BlockLog), MethodError> {
    let expected = run(block, hidden);
    let mut partial = block.with_params(block.params().clone());
    let mut log = BlockLog::default();
    let (mut weights, mut folded) = (BTreeMap::new(), BTreeSet::new());
    let grids = job.grids.block(block_idx);
    for stage in &block.layout().stages {
        let linears = grids.quantized(&stage_facts(block.layout(), stage));
        if linears.is_empty() {
            continue;
        }
        let (inputs, _) = capture_beside(partial.as_ref(), full_precision, hidden);
        let ctx = BlockCtx { block_idx, block: partial.as_ref(), inputs: Some(&inputs), linears: &linears, grids };
        let applied = apply(partial.as_ref(), decide(job.method, &ctx)?);
        log.scale_searches.extend(applied.log.scale_searches);
        log.linears.extend(applied.log.linears);
        weights.extend(applied.weights);
        folded.extend(applied.folded);
        partial = applied.block;
    }
    let outputs = run(partial.as_ref(), hidden);
    let log = with_output_error(log, &expected, &outputs);
    *hidden = outputs;
    Ok((StoredBlock::new(weights, &folded, partial.as_ref()), log))
}

/// [`BlockInputs::capture`], with what the same linears see in the full-precision model where a method asks for it.
fn capture_beside<B: QuantBackend>(
    block: &dyn Block<B>,
    full_precision: Option<&BlockInputs<B>>,
    hidden: &[Tensor<B, 3>],
) -> (BlockInputs<B>, Vec<Tensor<B, 3>>) {
    let (inputs, outputs) = BlockInputs::capture(block, hidden);
    match full_precision {
        Some(full_precision) => (inputs.with_full_precision(full_precision), outputs),
        None => (inputs, outputs),
    }
}

/// What the method asks for. The log says of which linears its activations say nothing.
fn decide<B: QuantBackend>(method: &dyn QuantMethod<B>, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
    let mut edit = checked_edit(method, ctx)?;
    if method.needs().inputs {
        let unreached = ctx.linears.iter().filter(|facts| ctx.linear(facts).is_unreached());
        for facts in unreached {
            let logs = edit.log.linears.iter_mut().filter(|log| log.linear == facts.name.0);
            logs.for_each(|log| log.notes.push(UNREACHED.to_owned()));
        }
    }
    Ok(edit)
}

const UNREACHED: &str = "no token of the calibration is sent to this expert: quantized without activations";

fn stage_facts(layout: &BlockLayout, stage: &[LinearName]) -> Vec<LinearFacts> {
    layout.linears.iter().filter(|facts| stage.contains(&facts.name)).copied().collect()
}

fn run<B: QuantBackend>(block: &dyn Block<B>, hidden: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    hidden.iter().map(|batch| block.forward(batch.clone(), &mut NoTap)).collect()
}

/// Adds the error of the block's output, where there was calibration.
fn with_output_error<B: QuantBackend>(log: BlockLog, expected: &[Tensor<B, 3>], found: &[Tensor<B, 3>]) -> BlockLog {
    let n_values: usize = expected.iter().map(|batch| batch.shape().num_elements()).sum();
    if n_values == 0 {
        return log;
    }
    let error: f64 = expected.iter().zip(found).map(|(a, b)| B::squared_distance(a, b)).sum();
    let total: f64 = expected.iter().map(|batch| B::squared_distance(batch, &batch.zeros_like())).sum();
    BlockLog { output_mse: Some(error / n_values as f64), output_mean_square: Some(total / n_values as f64), ..log }
}

struct Applied<B: QuantBackend> {
    block: Box<dyn Block<B>>,
    weights: BTreeMap<LinearName, Arc<PackedWeight>>,
    /// Linears into which a scale was folded.
    folded: BTreeSet<LinearName>,
    log: BlockLog,
}

/// The block that an edit asks for.
fn apply<B: QuantBackend>(block: &dyn Block<B>, edit: BlockEdit<B>) -> Applied<B> {
    let mut params = block.params().clone();
    let mut folded = BTreeSet::new();
    for (group_idx, scale) in &edit.scales {
        let group = &block.layout().scale_groups[*group_idx];
        params = fold(params, group, scale);
        folded.extend(group.folded_linears());
    }
    let mut weights = BTreeMap::new();
    for (name, quantized) in edit.linears {
        let linear = params.linear(name).clone();
        let weight = B::dequantize_weight(&quantized, &linear.weight.device());
        assert_eq!(weight.dims(), linear.weight.dims(), "{name}: a method must keep the shape of a weight");
        params.linears.insert(name, Linear { weight, bias: linear.bias });
        weights.insert(name, Arc::new(PackedWeight::new(quantized)));
    }
    Applied { block: block.with_params(params), weights, folded, log: edit.log }
}

impl StoredBlock {
    /// `folded`: linears into which a scale was folded. Those among them that are not quantized are no longer as the checkpoint
    /// has them.
    fn new<B: QuantBackend>(
        weights: BTreeMap<LinearName, Arc<PackedWeight>>,
        folded: &BTreeSet<LinearName>,
        block: &dyn Block<B>,
    ) -> Self {
        let params = block.params();
        let is_left = |name: &LinearName| !weights.contains_key(name) && folded.contains(name);
        let is_kept =
            |name: &LinearName| is_left(name) || !block.layout().linears.iter().any(|facts| facts.name == *name);
        let bias = |(name, linear): (&LinearName, &Linear<B>)| linear.bias.clone().map(|bias| (*name, float_vec(bias)));
        let norm = |(name, norm): (&NormName, &Norm<B>)| {
            (*name, (float_vec(norm.weight.clone()), norm.bias.clone().map(float_vec)))
        };
        let kept = (params.linears.iter())
            .filter(|(name, _)| is_kept(name))
            .map(|(name, linear)| (*name, float_vec(linear.weight.clone())))
            .collect();
        let is_stored = |name: &LinearName| weights.contains_key(name) || is_kept(name);
        let biases = params.linears.iter().filter(|(name, _)| is_stored(name)).filter_map(bias).collect();
        Self { weights, biases, kept, norms: params.norms.iter().map(norm).collect() }
    }

    /// The quantized block, from the block as the checkpoint has it.
    fn onto<B: QuantBackend>(&self, block: &dyn Block<B>) -> Box<dyn Block<B>> {
        let mut params = block.params().clone();
        for (name, packed) in &self.weights {
            let device = params.linear(*name).weight.device();
            let bias = self.biases.get(name).map(|values| vector(values, &device));
            params.linears.insert(*name, Linear { weight: B::dequantize_weight(&packed.unpack(), &device), bias });
        }
        for (name, values) in &self.kept {
            let Linear { weight, bias } = params.linear(*name).clone();
            let values = TensorData::new(values.clone(), weight.dims());
            let bias = self.biases.get(name).map(|values| vector(values, &weight.device())).or(bias);
            params.linears.insert(*name, Linear { weight: Tensor::from_data(values, &weight.device()), bias });
        }
        for (name, (weight, bias)) in &self.norms {
            let norm = params.norm(*name).clone();
            let device = norm.weight.device();
            let bias = bias.as_ref().map(|values| vector(values, &device));
            params.norms.insert(*name, Norm { weight: vector(weight, &device), bias, ..norm });
        }
        block.with_params(params)
    }
}

fn vector<B: QuantBackend>(values: &[f32], device: &B::Device) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

impl QuantizedModel {
    /// Every quantized weight, in the order of blocks and linears.
    fn weights(&self) -> impl Iterator<Item = &PackedWeight> {
        self.blocks.iter().flat_map(|block| block.weights.values()).chain(&self.head).map(Arc::as_ref)
    }

    /// sha256 over all codes, scales and zero points, in the order of blocks and linears: equal means bit for bit the same.
    pub fn codes_sha256(&self) -> String {
        let mut hasher = Sha256::new();
        for weight in self.weights() {
            weight.unpack().hash_into(&mut hasher);
        }
        hex(hasher)
    }

    /// Stored bits per quantized weight, scales and zero points counted.
    pub fn bits_per_weight(&self) -> f64 {
        let (mut bits, mut weights) = (0_u64, 0_u64);
        for weight in self.weights() {
            let (n_out, n_in) = weight.shape();
            bits += weight.stored_bits();
            weights += (n_out * n_in) as u64;
        }
        bits as f64 / weights.max(1) as f64
    }

    /// The model as a checkpoint, over the one that it was made from. Packed weights are shared, not copied.
    pub fn into_checkpoint(self, wiring: &Wiring, base: Arc<dyn Checkpoint>) -> QuantizedCheckpoint {
        let mut checkpoint = QuantizedCheckpoint::new(base);
        checkpoint.packed.extend(self.head.map(|head| (wiring.head_name().to_owned(), head)));
        for (block_idx, block) in self.blocks.into_iter().enumerate() {
            for (name, weight) in block.weights {
                checkpoint.packed.insert(format!("{}.weight", wiring.linear(block_idx, name)), weight);
            }
            for (name, weight) in block.kept {
                checkpoint.changed.insert(format!("{}.weight", wiring.linear(block_idx, name)), weight);
            }
            for (name, bias) in block.biases {
                checkpoint.changed.insert(format!("{}.bias", wiring.linear(block_idx, name)), bias);
            }
            for (name, (weight, bias)) in block.norms {
                let name = wiring.block_norm(block_idx, name);
                checkpoint.changed.extend(bias.map(|bias| (format!("{name}.bias"), bias)));
                checkpoint.changed.insert(format!("{name}.weight"), weight);
            }
        }
        checkpoint
    }

    /// The model as a decoder that hands out quantized blocks, over the decoder it was made from.
    pub fn decoder<'a, B: QuantBackend>(&'a self, base: &'a dyn Decoder<B>) -> impl Decoder<B> + 'a {
        QuantizedDecoder { base, model: self, head: OnceLock::new() }
    }
}

/// [`QuantizedModel::codes_sha256`] of a checkpoint that holds such a model.
///
/// # Errors
/// A quantized weight that cannot be read.
pub fn codes_sha256(wiring: &Wiring, n_blocks: usize, checkpoint: &dyn Checkpoint) -> Result<String, LoadError> {
    let mut hasher = Sha256::new();
    for (block_idx, block) in wiring.blocks.iter().enumerate().take(n_blocks) {
        let linears: BTreeSet<LinearName> = block.layout.linears.iter().map(|facts| facts.name).collect();
        for linear in linears {
            let name = format!("{}.weight", wiring.linear(block_idx, linear));
            if let Some(weight) = checkpoint.read_quantized(&name)? {
                weight.hash_into(&mut hasher);
            }
        }
    }
    if let Some(head) = checkpoint.read_quantized(wiring.head_name())? {
        head.hash_into(&mut hasher);
    }
    Ok(hex(hasher))
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
