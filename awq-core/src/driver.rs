//! The block loop: capture, method, apply, propagate. The only place where a model changes.
//!
//! Cells of a sweep that share model, calibration and propagation run in one pass: a block is read once, its activations are
//! captured once, and every job's edit of it goes to a [`BlockSink`] at once. In memory are one block, what methods ask of its inputs
//! (statistics, or whole inputs of all calibration tokens), what the sink holds, and as many hidden states of all calibration tokens as
//! the sink has [`Room`] for (for each job its own, where blocks see quantized outputs).

use std::sync::Arc;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::QuantBackend;
use crate::capture::{GatheredOfBlock, gather_both};
use crate::grids::ModelGrids;
use crate::load::{Checkpoint, LoadError};
pub use crate::log::{BlockLog, LinearLog, ScaleSearchLog};
use crate::method::{MethodError, QuantMethod};
use crate::model::{Decoder, for_each_block};
use crate::pack::PackedWeight;

mod edit;
mod head;
mod hidden;
mod share;
mod stored;
mod stream;

use self::edit::{EditError, quantize_block, stages};
pub use self::hidden::Room;
pub use self::share::FullPrecisionShare;
pub use self::stored::{BlockCodes, Pass, QuantizedModel, codes_sha256, head_tensors, quantize_model};
pub use self::stream::TOKENS_PER_BATCH;
use self::stream::{Streams, compares, gathered};

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

/// One block of one job, quantized.
#[derive(Clone, Debug)]
pub struct QuantizedBlock {
    /// Its changed parts.
    pub codes: BlockCodes,
    /// What happened in it.
    pub log: BlockLog,
    /// Wall time spent on reading this block and capturing, shared by all jobs.
    pub shared_seconds: f64,
}

/// The first blocks of a job, which an earlier pass quantized before it was cut off.
#[derive(Clone)]
pub struct Begun {
    /// How many they are.
    pub n_blocks: usize,
    /// The model with these blocks in place of its own.
    pub checkpoint: Arc<dyn Checkpoint>,
}

/// Where a pass puts the blocks of its jobs, each as soon as it is quantized.
pub trait BlockSink {
    /// Why a block cannot be kept. It ends the pass.
    type Error: From<LoadError>;

    /// What is there of a job before the pass: it goes on behind these blocks, with the same result as an undisturbed one.
    fn begun(&self, _job_idx: usize) -> Option<Begun> {
        None
    }

    /// Room for hidden states.
    fn room(&self) -> Room {
        Room::unlimited()
    }

    /// A further share of a job's work on its next block is done; in all less than 1 until the block is kept.
    fn advance(&self, _job_idx: usize, _share: f64) {}

    /// Takes the next block of a job.
    ///
    /// # Errors
    /// Whatever keeps the sink from it.
    fn keep(&mut self, job_idx: usize, block: QuantizedBlock) -> Result<(), Self::Error>;

    /// Takes the head of a job whose rule asks for it, behind its last block.
    ///
    /// # Errors
    /// As [`BlockSink::keep`].
    fn keep_head(&mut self, job_idx: usize, head: PackedWeight) -> Result<(), Self::Error>;

    /// All jobs are done with a block, on which `shared_seconds` were spent for all of them.
    fn passed(&mut self, block_idx: usize, shared_seconds: f64);
}

/// The share of a job's work on a block that it is to capture what the block sees, about, and to quantize it; the rest is to keep it.
const PART_OF_CAPTURE: f64 = 0.2;
const PART_OF_EDIT: f64 = 0.75;

/// Quantizes a model by every job in one pass over its blocks.
///
/// A job that fails keeps its error and drops out; the others go on.
///
/// # Errors
/// A block that cannot be read, or kept.
pub fn quantize_blocks<B: QuantBackend, S: BlockSink>(
    decoder: &dyn Decoder<B>,
    calibration: Option<Calibration<'_>>,
    jobs: &[Job<'_, B>],
    sink: &mut S,
) -> Result<Vec<Result<(), MethodError>>, S::Error> {
    let mut last = Instant::now();
    let mut results: Vec<Result<(), MethodError>> = jobs.iter().map(|_| Ok(())).collect();
    let begun = (0..jobs.len()).map(|job_idx| match sink.begun(job_idx) {
        Some(Begun { n_blocks, checkpoint }) => Ok((n_blocks, Some(decoder.over(checkpoint)?))),
        None => Ok((0, None)),
    });
    let begun: Vec<_> = begun.collect::<Result<_, LoadError>>()?;
    let mut streams = Streams::start(decoder, calibration, jobs, sink.room())?;
    for_each_block(decoder, |block_idx, block| -> Result<(), S::Error> {
        let block = block.as_ref();
        let is_due = |job_idx: usize| block_idx >= begun[job_idx].0;
        let due = || jobs.iter().enumerate().filter(|(job_idx, _)| is_due(*job_idx) && results[*job_idx].is_ok());
        let layout = block.layout();
        let full_precision = match streams.full_precision.as_ref().filter(|_| due().next().is_some()) {
            Some(stream) => {
                // Where jobs have streams of their own, those look here that compare.
                let looking = due().map(|(_, job)| job).filter(|job| streams.own.is_empty() || compares(job));
                let asked = looking.map(|job| gathered(job, block_idx, layout, &layout.linears));
                let of_all = |share: f64| {
                    let shared = due().filter(|_| streams.own.is_empty());
                    shared.for_each(|(job_idx, _)| sink.advance(job_idx, PART_OF_CAPTURE * share));
                };
                Some(stream.see(block, asked.fold(GatheredOfBlock::new(), gather_both), None, &of_all)?)
            }
            None => None,
        };
        let last_due = due().next_back().map(|(job_idx, _)| job_idx);
        // The time that was waited for the block counts, too.
        let shared_seconds = last.elapsed().as_secs_f64();
        for (job_idx, job) in jobs.iter().enumerate() {
            if results[job_idx].is_err() {
                continue;
            }
            let start = Instant::now();
            let own = streams.own.get_mut(job_idx);
            if !is_due(job_idx) {
                if let (Some(stream), (_, Some(begun))) = (own, &begun[job_idx]) {
                    stream.pass_through(begun.block(block_idx)?.as_ref())?;
                }
                continue;
            }
            let compared = full_precision.as_ref().filter(|_| compares(job)).map(|seen| seen.inputs.as_ref());
            let seen = match (&own, &full_precision) {
                (Some(stream), _) => {
                    let first = stages(streams.propagation, layout).into_iter().next().unwrap_or_default();
                    let of_capture = |share: f64| sink.advance(job_idx, PART_OF_CAPTURE * share);
                    stream.see(block, gathered(job, block_idx, layout, &first), compared, &of_capture)?
                }
                (None, Some(seen)) => seen.clone(),
                (None, None) => unreachable!("jobs without streams of their own share one"),
            };
            if own.is_some() || last_due == Some(job_idx) {
                seen.inputs.look_for_the_last_time();
            }
            let listener = |share: f64| sink.advance(job_idx, PART_OF_EDIT * share);
            match quantize_block(job, (block_idx, block), streams.propagation, seen, compared, &listener) {
                Ok(edited) => {
                    if let (Some(stream), Some(behind)) = (own, edited.behind) {
                        *stream = behind;
                    }
                    let log = BlockLog { block_idx, seconds: start.elapsed().as_secs_f64(), ..edited.log };
                    sink.keep(job_idx, QuantizedBlock { codes: edited.codes, log, shared_seconds })?;
                }
                Err(EditError::Method(error)) => results[job_idx] = Err(error),
                Err(EditError::HiddenStates(error)) => return Err(error.into()),
            }
        }
        match (&mut streams.full_precision, full_precision) {
            (Some(stream), Some(seen)) => stream.hidden = seen.outputs,
            (Some(stream), None) => stream.pass_through(block)?,
            (None, _) => {}
        }
        sink.passed(block_idx, shared_seconds);
        last = Instant::now();
        Ok(())
    })?;
    for (job_idx, job) in jobs.iter().enumerate() {
        let (Ok(()), Some(grid)) = (&results[job_idx], job.grids.head()) else { continue };
        match head::quantize_head(decoder, job.method, grid)? {
            Ok(head) => sink.keep_head(job_idx, head)?,
            Err(error) => results[job_idx] = Err(error),
        }
    }
    Ok(results)
}
