//! Hidden states on their way through the blocks.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::hidden::{HiddenStates, Room};
use super::{Calibration, Job, Propagation};
use crate::backend::QuantBackend;
use crate::capture::{BlockInputs, Capture, GatheredOfBlock, gather_both, whole_inputs};
use crate::load::LoadError;
use crate::method::gather_of_quantized;
use crate::model::{Block, BlockLayout, Decoder, LinearFacts, NoTap};
use crate::progress::Listener;

/// Tokens of one forward batch during calibration: enough to fill the matrix kernels. The activations inside a module, of which
/// only one batch is in memory at a time, grow with it.
pub const TOKENS_PER_BATCH: usize = 4096;

/// The hidden states of all calibration sequences before a block; none without calibration. Copies share them.
#[derive(Clone)]
pub(super) struct Stream<B: QuantBackend> {
    pub(super) hidden: Arc<HiddenStates<B>>,
    pub(super) room: Room,
}

impl<B: QuantBackend> Stream<B> {
    /// What `block` sees of it, `gathered`, and puts out; `compared` is what its linears see in the full-precision model. `listener`
    /// hears which share of it went through.
    ///
    /// # Errors
    /// Hidden states that cannot be kept or read back.
    pub(super) fn see(
        &self,
        block: &dyn Block<B>,
        gathered: GatheredOfBlock,
        compared: Option<&BlockInputs<B>>,
        listener: &Listener<'_>,
    ) -> Result<Seen<B>, LoadError> {
        let mut outputs = HiddenStates::new(&self.room);
        let keep = |output| {
            outputs.push(output)?;
            listener(1.0 / self.hidden.n_batches() as f64);
            Ok(())
        };
        let inputs = Arc::new(self.gather(block, gathered, compared, keep)?);
        Ok(Seen { stream: self.clone(), inputs, outputs: Arc::new(outputs) })
    }

    /// What `block` sees of it alone.
    ///
    /// # Errors
    /// Hidden states that cannot be read back.
    pub(super) fn inputs(
        &self,
        block: &dyn Block<B>,
        gathered: GatheredOfBlock,
        compared: Option<&BlockInputs<B>>,
    ) -> Result<BlockInputs<B>, LoadError> {
        self.gather(block, gathered, compared, |_| Ok(()))
    }

    fn gather(
        &self,
        block: &dyn Block<B>,
        gathered: GatheredOfBlock,
        compared: Option<&BlockInputs<B>>,
        mut output: impl FnMut(Tensor<B, 3>) -> Result<(), LoadError>,
    ) -> Result<BlockInputs<B>, LoadError> {
        let mut capture = Capture::new(block, gathered, self.hidden.n_tokens());
        for batch in self.hidden.iter() {
            output(capture.run(batch?))?;
        }
        let inputs = capture.finish();
        Ok(match compared {
            Some(compared) => inputs.with_full_precision(compared),
            None => inputs,
        })
    }

    /// Goes through `block`, of which nothing is asked.
    ///
    /// # Errors
    /// Hidden states that cannot be kept or read back.
    pub(super) fn pass_through(&mut self, block: &dyn Block<B>) -> Result<(), LoadError> {
        let mut outputs = HiddenStates::new(&self.room);
        for batch in self.hidden.iter() {
            outputs.push(block.forward(batch?, &mut NoTap))?;
        }
        self.hidden = Arc::new(outputs);
        Ok(())
    }
}

/// A stream before, inside and behind a full-precision block. Copies share the tensors.
#[derive(Clone)]
pub(super) struct Seen<B: QuantBackend> {
    pub(super) stream: Stream<B>,
    pub(super) inputs: Arc<BlockInputs<B>>,
    pub(super) outputs: Arc<HiddenStates<B>>,
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
    /// An id whose embedding is not finite, hidden states that cannot be kept.
    pub(super) fn start(
        decoder: &dyn Decoder<B>,
        calibration: Option<Calibration<'_>>,
        jobs: &[Job<'_, B>],
        room: Room,
    ) -> Result<Self, LoadError> {
        if let Some(calibration) = calibration {
            decoder.check_ids(calibration.sequences)?;
        }
        let sequences = calibration.map_or(&[][..], |calibration| calibration.sequences);
        let propagation = calibration.map_or(Propagation::FullPrecision, |calibration| calibration.propagation);
        let stream = Stream { hidden: Arc::new(embed_batches(decoder, sequences, &room)?), room };
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

/// What a job asks of the inputs of a block while it quantizes `linears`, a stage or all of it. Tokens are counted in any case.
pub(super) fn gathered<B: QuantBackend>(
    job: &Job<'_, B>,
    block_idx: usize,
    layout: &BlockLayout,
    linears: &[LinearFacts],
) -> GatheredOfBlock {
    let grids = job.grids.block(block_idx);
    let needs = job.method.needs();
    if !needs.inputs {
        return GatheredOfBlock::new();
    }
    let asked = match needs.full_precision_inputs {
        true => whole_inputs(layout),
        false => gather_both(job.method.gathers(layout, grids), gather_of_quantized(layout, grids, [])),
    };
    let is_due = |linear: &LinearFacts| linears.iter().any(|due| due.name == linear.name);
    let later: Vec<_> = layout.linears.iter().filter(|linear| !is_due(linear)).map(|linear| linear.input).collect();
    let now = |input| linears.iter().any(|due| due.input == input);
    asked.into_iter().filter(|(input, _)| !later.contains(input) || now(*input)).collect()
}

/// Embedded calibration sequences in batches of about [`TOKENS_PER_BATCH`] tokens.
fn embed_batches<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    sequences: &[Vec<u32>],
    room: &Room,
) -> Result<HiddenStates<B>, LoadError> {
    let seq_len = sequences.first().map_or(1, |sequence| sequence.len().max(1));
    let mut hidden = HiddenStates::new(room);
    if sequences.is_empty() {
        return Ok(hidden);
    }
    let embedding = decoder.embedding()?;
    for batch in sequences.chunks((TOKENS_PER_BATCH / seq_len).max(1)) {
        hidden.push(embedding.embed(batch))?;
    }
    Ok(hidden)
}
