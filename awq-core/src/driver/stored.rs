//! What a pass makes: the changed parts of each block in host memory, and a whole model of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{BlockLog, BlockSink, Calibration, Job, QuantizedBlock, quantize_blocks};
use crate::backend::{QuantBackend, float_vec};
use crate::load::{Checkpoint, EditedCheckpoint, EditedTensors, LoadError};
use crate::method::MethodError;
use crate::model::layers::{Linear, Norm};
use crate::model::wiring::Wiring;
use crate::model::{Block, Decoder, LinearName, NormName};
use crate::pack::PackedWeight;

/// The changed parts of one block in host memory. Copies share the codes.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockCodes {
    weights: BTreeMap<LinearName, Arc<PackedWeight>>,
    /// Biases and norms, changed where a scale was folded in.
    biases: BTreeMap<LinearName, Vec<f32>>,
    /// Linears that no method quantizes, and those left in full precision into which a scale was folded.
    kept: BTreeMap<LinearName, Vec<f32>>,
    norms: BTreeMap<NormName, (Vec<f32>, Option<Vec<f32>>)>,
}

impl BlockCodes {
    /// `folded`: linears into which a scale was folded. Those among them that are not quantized are no longer as the checkpoint
    /// has them.
    pub(super) fn new<B: QuantBackend>(
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

    /// Stored bits of the quantized weights, scales and zero points counted, and how many weights they are.
    pub fn stored_bits(&self) -> (u64, u64) {
        stored_bits(self.weights.values().map(Arc::as_ref))
    }

    /// The tensors under the names that block `block_idx` of `base` has them by.
    pub fn tensors(&self, wiring: &Wiring, block_idx: usize, base: &dyn Checkpoint) -> EditedTensors {
        let mut tensors = EditedTensors::default();
        let mut floats = |name: String, values: &Vec<f32>| {
            let shape = base.shape(&name).unwrap_or_else(|| vec![values.len()]);
            tensors.insert_floats(name, shape, values.clone());
        };
        for (name, values) in &self.kept {
            floats(format!("{}.weight", wiring.linear(block_idx, *name)), values);
        }
        for (name, bias) in &self.biases {
            floats(format!("{}.bias", wiring.linear(block_idx, *name)), bias);
        }
        for (name, (weight, bias)) in &self.norms {
            let name = wiring.block_norm(block_idx, *name);
            bias.iter().for_each(|bias| floats(format!("{name}.bias"), bias));
            floats(format!("{name}.weight"), weight);
        }
        for (name, weight) in &self.weights {
            tensors.insert_packed(format!("{}.weight", wiring.linear(block_idx, *name)), weight.clone());
        }
        tensors
    }
}

/// A quantized model in memory at its stored size: an edit of the checkpoint that it was made from. Copies share the codes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedModel {
    blocks: Vec<BlockCodes>,
    head: Option<Arc<PackedWeight>>,
    /// What happened in each block.
    pub logs: Vec<BlockLog>,
}

impl QuantizedModel {
    /// The changed parts of each block.
    pub fn blocks(&self) -> &[BlockCodes] {
        &self.blocks
    }

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
        let (bits, n) = stored_bits(self.weights());
        bits as f64 / n.max(1) as f64
    }

    /// The model as a checkpoint, over the one that it was made from: what runs it.
    pub fn into_checkpoint(self, wiring: &Wiring, base: Arc<dyn Checkpoint>) -> EditedCheckpoint {
        let blocks = self.blocks.iter().enumerate();
        let mut edits: Vec<Arc<dyn Checkpoint>> =
            blocks.map(|(idx, block)| Arc::new(block.tensors(wiring, idx, base.as_ref())) as _).collect();
        edits.extend(self.head.map(|head| Arc::new(head_tensors(wiring, head)) as _));
        EditedCheckpoint::new(base, edits)
    }
}

/// A quantized head under the name that a checkpoint has it by.
pub fn head_tensors(wiring: &Wiring, head: Arc<PackedWeight>) -> EditedTensors {
    let mut tensors = EditedTensors::default();
    tensors.insert_packed(wiring.head_name().to_owned(), head);
    tensors
}

fn stored_bits<'a>(weights: impl Iterator<Item = &'a PackedWeight>) -> (u64, u64) {
    let counted = weights.map(|weight| {
        let (n_out, n_in) = weight.shape();
        (weight.stored_bits(), (n_out * n_in) as u64)
    });
    counted.fold((0, 0), |(bits, n), (more_bits, more)| (bits + more_bits, n + more))
}

/// Result of one pass for all its jobs, in memory.
#[derive(Debug)]
pub struct Pass {
    /// One result a job, in the order of the jobs.
    pub models: Vec<Result<QuantizedModel, MethodError>>,
    /// Wall time spent on reading blocks and capturing, shared by all jobs.
    pub shared_seconds: f64,
}

/// [`quantize_blocks`] in memory. `progress` is called after each block with its index.
///
/// # Errors
/// A block that cannot be read.
pub fn quantize_model<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    calibration: Option<Calibration<'_>>,
    jobs: &[Job<'_, B>],
    progress: &mut dyn FnMut(usize),
) -> Result<Pass, LoadError> {
    let mut sink = InMemory { models: vec![QuantizedModel::default(); jobs.len()], shared_seconds: 0.0, progress };
    let results = quantize_blocks(decoder, calibration, jobs, &mut sink)?;
    let models = sink.models.into_iter().zip(results).map(|(model, result)| result.map(|()| model)).collect();
    Ok(Pass { models, shared_seconds: sink.shared_seconds })
}

struct InMemory<'a> {
    models: Vec<QuantizedModel>,
    shared_seconds: f64,
    progress: &'a mut dyn FnMut(usize),
}

impl BlockSink for InMemory<'_> {
    type Error = LoadError;

    fn keep(&mut self, job_idx: usize, block: QuantizedBlock) -> Result<(), LoadError> {
        let model = &mut self.models[job_idx];
        model.blocks.push(block.codes);
        model.logs.push(block.log);
        Ok(())
    }

    fn keep_head(&mut self, job_idx: usize, head: PackedWeight) -> Result<(), LoadError> {
        self.models[job_idx].head = Some(Arc::new(head));
        Ok(())
    }

    fn passed(&mut self, block_idx: usize, shared_seconds: f64) {
        self.shared_seconds += shared_seconds;
        (self.progress)(block_idx);
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
