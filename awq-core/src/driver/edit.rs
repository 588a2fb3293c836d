//! One job on one block: what the method asks for, applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::hidden::HiddenStates;
use super::stream::{Seen, Stream, gathered};
use super::{BlockCodes, BlockLog, Job, Propagation};
use crate::backend::QuantBackend;
use crate::capture::BlockInputs;
use crate::fold::fold;
use crate::load::LoadError;
use crate::method::{BlockCtx, BlockEdit, MethodError, QuantMethod};
use crate::model::layers::Linear;
use crate::model::{Block, BlockLayout, LinearFacts, LinearName, NoTap};
use crate::pack::PackedWeight;
use crate::progress::Listener;
use crate::scale_range::checked_edit;

/// A quantized block and what it puts out.
pub(super) struct Edited<B: QuantBackend> {
    pub(super) codes: BlockCodes,
    pub(super) log: BlockLog,
    /// The job's own stream behind it; `None` where it has none.
    pub(super) behind: Option<Stream<B>>,
}

/// Why a block was not quantized.
#[derive(Debug)]
pub(super) enum EditError {
    /// What the method says: its job ends.
    Method(MethodError),
    /// Hidden states that cannot be kept or read back: the pass ends.
    HiddenStates(LoadError),
}

impl From<MethodError> for EditError {
    fn from(error: MethodError) -> Self {
        Self::Method(error)
    }
}

impl From<LoadError> for EditError {
    fn from(error: LoadError) -> Self {
        Self::HiddenStates(error)
    }
}

/// The method's share of the work on a block that is captured, about; the rest is what the block puts out afterwards.
const PART_OF_METHOD: f64 = 0.8;

/// The linears of a block that are quantized together.
pub(super) fn stages(propagation: Propagation, layout: &BlockLayout) -> Vec<Vec<LinearFacts>> {
    match propagation {
        Propagation::QuantizedPerStage => layout.stages.iter().map(|stage| stage_facts(layout, stage)).collect(),
        Propagation::FullPrecision | Propagation::Quantized => vec![layout.linears.clone()],
    }
}

/// Quantizes a block that sees `seen`: at once, or stage by stage where later linears are to see the earlier ones quantized.
/// `compared` is what its linears see in the full-precision model, for methods that ask for it; `listener` hears how far it is.
///
/// # Errors
/// What the method says, or hidden states that cannot be kept or read back.
pub(super) fn quantize_block<B: QuantBackend>(
    job: &Job<'_, B>,
    (block_idx, block): (usize, &dyn Block<B>),
    propagation: Propagation,
    seen: Seen<B>,
    compared: Option<&BlockInputs<B>>,
    listener: &Listener<'_>,
) -> Result<Edited<B>, EditError> {
    let (layout, grids) = (block.layout(), job.grids.block(block_idx));
    let stages = stages(propagation, layout);
    let Seen { stream, mut inputs, outputs: expected } = seen;
    let mut edited: Option<Box<dyn Block<B>>> = None;
    let mut log = BlockLog::default();
    let (mut weights, mut folded) = (BTreeMap::new(), BTreeSet::new());
    for (stage_idx, linears) in stages.iter().enumerate() {
        let linears = &grids.quantized(linears);
        if linears.is_empty() && stages.len() > 1 {
            continue;
        }
        let block = edited.as_deref().unwrap_or(block);
        if stage_idx > 0 {
            // What earlier stages saw is done with.
            drop(inputs);
            inputs = Arc::new(stream.inputs(block, gathered(job, block_idx, layout, linears), compared)?);
            inputs.look_for_the_last_time();
        }
        let of_stage = |share: f64| listener(PART_OF_METHOD * share / stages.len() as f64);
        let ctx = BlockCtx { block_idx, block, inputs: Some(inputs.as_ref()), linears, grids, listener: &of_stage };
        let applied = apply(block, decide(job.method, &ctx)?, !stream.hidden.is_empty());
        log.scale_searches.extend(applied.log.scale_searches);
        log.linears.extend(applied.log.linears);
        weights.extend(applied.weights);
        folded.extend(applied.folded);
        edited = Some(applied.block);
    }
    let block = edited.as_deref().unwrap_or(block);
    let of_outputs = |share: f64| listener((1.0 - PART_OF_METHOD) * share);
    let (log, behind) = run(block, (&stream, &expected), propagation != Propagation::FullPrecision, log, &of_outputs)?;
    Ok(Edited { codes: BlockCodes::new(weights, &folded, block), log, behind })
}

/// Runs a quantized block on what it sees. Adds the error of its output to the log, where there is calibration, and returns the
/// stream behind it, where that is to be kept.
fn run<B: QuantBackend>(
    block: &dyn Block<B>,
    (stream, expected): (&Stream<B>, &HiddenStates<B>),
    keeps: bool,
    log: BlockLog,
    listener: &Listener<'_>,
) -> Result<(BlockLog, Option<Stream<B>>), LoadError> {
    let mut behind = HiddenStates::new(&stream.room);
    let (mut error, mut total) = (0.0, 0.0);
    for (batch, expected) in stream.hidden.iter().zip(expected.iter()) {
        let (output, expected) = (block.forward(batch?, &mut NoTap), expected?);
        error += B::squared_distance(&expected, &output);
        total += B::squared_distance(&expected, &expected.zeros_like());
        if keeps {
            behind.push(output)?;
        }
        listener(1.0 / stream.hidden.n_batches() as f64);
    }
    let log = match expected.n_values() {
        0 => log,
        n => BlockLog { output_mse: Some(error / n as f64), output_mean_square: Some(total / n as f64), ..log },
    };
    Ok((log, keeps.then(|| Stream { hidden: Arc::new(behind), room: stream.room.clone() })))
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

struct Applied<B: QuantBackend> {
    block: Box<dyn Block<B>>,
    weights: BTreeMap<LinearName, Arc<PackedWeight>>,
    /// Linears into which a scale was folded.
    folded: BTreeSet<LinearName>,
    log: BlockLog,
}

/// The block that an edit asks for. Quantized weights are restored where it `runs`: without calibration nothing goes
/// through it, and they would take the room of a second block.
fn apply<B: QuantBackend>(block: &dyn Block<B>, edit: BlockEdit<B>, runs: bool) -> Applied<B> {
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
        let shape = [quantized.n_out, quantized.n_in];
        assert_eq!(shape, linear.weight.dims(), "{name}: a method must keep the shape of a weight");
        if runs {
            let weight = B::dequantize_weight(&quantized, &linear.weight.device());
            params.linears.insert(name, Linear { weight, bias: linear.bias });
        }
        weights.insert(name, Arc::new(PackedWeight::new(quantized)));
    }
    Applied { block: block.with_params(params), weights, folded, log: edit.log }
}
