//! Hidden states on their way through the blocks.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::{Calibration, Job, Propagation};
use crate::backend::QuantBackend;
use crate::capture::BlockInputs;
use crate::load::LoadError;
use crate::model::{Block, Decoder, NoTap};

/// Tokens of one forward batch during calibration: enough to fill the matrix kernels. The activations inside a module, of which
/// only one batch is in memory at a time, grow with it.
const TOKENS_PER_BATCH: usize = 4096;

/// The hidden states of all calibration sequences before a block, in batches of `[batch, seq, hidden]`; none without calibration.
#[derive(Clone)]
pub(super) struct Stream<B: QuantBackend> {
    pub(super) hidden: Vec<Tensor<B, 3>>,
}

impl<B: QuantBackend> Stream<B> {
    /// What `block` sees of it; `compared` is what its linears see in the full-precision model.
    pub(super) fn see(&self, block: &dyn Block<B>, compared: Option<&BlockInputs<B>>) -> Seen<B> {
        Seen::of(block, self.hidden.clone(), compared)
    }

    /// Goes through `block`, of which nothing is asked.
    pub(super) fn pass_through(&mut self, block: &dyn Block<B>) {
        self.hidden = run(block, &self.hidden);
    }
}

/// A stream before, inside and behind a full-precision block. Copies share the tensors.
#[derive(Clone)]
pub(super) struct Seen<B: QuantBackend> {
    pub(super) hidden: Vec<Tensor<B, 3>>,
    pub(super) inputs: Arc<BlockInputs<B>>,
    pub(super) outputs: Vec<Tensor<B, 3>>,
}

impl<B: QuantBackend> Seen<B> {
    pub(super) fn of(block: &dyn Block<B>, hidden: Vec<Tensor<B, 3>>, compared: Option<&BlockInputs<B>>) -> Self {
        let (inputs, outputs) = BlockInputs::capture(block, &hidden);
        let inputs = match compared {
            Some(compared) => inputs.with_full_precision(compared),
            None => inputs,
        };
        Self { hidden, inputs: Arc::new(inputs), outputs }
    }
}

/// The streams of a pass.
pub(super) struct Streams<B: QuantBackend> {
    pub(super) propagation: Propagation,
    /// Through full-precision blocks: what all jobs see where propagation says so, and what methods compare with elsewhere.
    pub(super) full_precision: Option<Stream<B>>,
    /// Through each job's own quantized blocks; none where all share.
    pub(super) own: Vec<Stream<B>>,
}

impl<B: QuantBackend> Streams<B> {
    /// The streams before the first block.
    ///
    /// # Errors
    /// An id whose embedding is not finite.
    pub(super) fn start(
        decoder: &dyn Decoder<B>,
        calibration: Option<Calibration<'_>>,
        jobs: &[Job<'_, B>],
    ) -> Result<Self, LoadError> {
        if let Some(calibration) = calibration {
            decoder.check_ids(calibration.sequences)?;
        }
        let hidden = calibration.map_or_else(Vec::new, |calibration| embed_batches(decoder, calibration.sequences));
        let propagation = calibration.map_or(Propagation::FullPrecision, |calibration| calibration.propagation);
        let stream = Stream { hidden };
        Ok(if propagation == Propagation::FullPrecision {
            Self { propagation, full_precision: Some(stream), own: Vec::new() }
        } else {
            let full_precision = jobs.iter().any(compares).then(|| stream.clone());
            Self { propagation, full_precision, own: vec![stream; jobs.len()] }
        })
    }
}

/// Whether a job's method looks at the full-precision model beside the quantized one.
pub(super) fn compares<B: QuantBackend>(job: &Job<'_, B>) -> bool {
    job.method.needs().full_precision_inputs
}

/// Embedded calibration sequences in batches of about [`TOKENS_PER_BATCH`] tokens.
fn embed_batches<B: QuantBackend>(decoder: &dyn Decoder<B>, sequences: &[Vec<u32>]) -> Vec<Tensor<B, 3>> {
    let seq_len = sequences.first().map_or(1, |sequence| sequence.len().max(1));
    sequences.chunks((TOKENS_PER_BATCH / seq_len).max(1)).map(|batch| decoder.embed(batch)).collect()
}

/// What `block` puts out.
pub(super) fn run<B: QuantBackend>(block: &dyn Block<B>, hidden: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    hidden.iter().map(|batch| block.forward(batch.clone(), &mut NoTap)).collect()
}
