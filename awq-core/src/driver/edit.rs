//! One job on one block: what the method asks for, applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::tensor::Tensor;

use super::stream::{Seen, run};
use super::{BlockCodes, BlockLog, Job, Propagation};
use crate::backend::QuantBackend;
use crate::capture::BlockInputs;
use crate::fold::fold;
use crate::method::{BlockCtx, BlockEdit, MethodError, QuantMethod};
use crate::model::layers::Linear;
use crate::model::{Block, BlockLayout, LinearFacts, LinearName};
use crate::pack::PackedWeight;
use crate::progress::Listener;
use crate::scale_range::checked_edit;

/// A quantized block and what it puts out.
pub(super) struct Edited<B: QuantBackend> {
    pub(super) codes: BlockCodes,
    pub(super) log: BlockLog,
    /// `[batch, seq, hidden]` each.
    pub(super) outputs: Vec<Tensor<B, 3>>,
}

/// Quantizes a block that sees `seen`: at once, or stage by stage where later linears are to see the earlier ones quantized.
/// `compared` is what its linears see in the full-precision model, for methods that ask for it; `listener` hears how far the method is.
pub(super) fn quantize_block<B: QuantBackend>(
    job: &Job<'_, B>,
    (block_idx, block): (usize, &dyn Block<B>),
    propagation: Propagation,
    seen: Seen<B>,
    compared: Option<&BlockInputs<B>>,
    listener: &Listener<'_>,
) -> Result<Edited<B>, MethodError> {
    let (layout, grids) = (block.layout(), job.grids.block(block_idx));
    let stages: Vec<Vec<LinearFacts>> = match propagation {
        Propagation::QuantizedPerStage => layout.stages.iter().map(|stage| stage_facts(layout, stage)).collect(),
        Propagation::FullPrecision | Propagation::Quantized => vec![layout.linears.clone()],
    };
    let Seen { hidden, mut inputs, outputs: expected } = seen;
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
            inputs = Seen::of(block, hidden.clone(), compared).inputs;
        }
        let of_stage = |share: f64| listener(share / stages.len() as f64);
        let ctx = BlockCtx { block_idx, block, inputs: Some(inputs.as_ref()), linears, grids, listener: &of_stage };
        let applied = apply(block, decide(job.method, &ctx)?, &hidden);
        log.scale_searches.extend(applied.log.scale_searches);
        log.linears.extend(applied.log.linears);
        weights.extend(applied.weights);
        folded.extend(applied.folded);
        edited = Some(applied.block);
    }
    let block = edited.as_deref().unwrap_or(block);
    let outputs = run(block, &hidden);
    let log = with_output_error(log, &expected, &outputs);
    Ok(Edited { codes: BlockCodes::new(weights, &folded, block), log, outputs })
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

/// The block that an edit asks for. Quantized weights are restored where `hidden` states are to go through it: without calibration
/// nothing runs it, and they would take the room of a second block.
fn apply<B: QuantBackend>(block: &dyn Block<B>, edit: BlockEdit<B>, hidden: &[Tensor<B, 3>]) -> Applied<B> {
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
        if !hidden.is_empty() {
            let weight = B::dequantize_weight(&quantized, &linear.weight.device());
            params.linears.insert(name, Linear { weight, bias: linear.bias });
        }
        weights.insert(name, Arc::new(PackedWeight::new(quantized)));
    }
    Applied { block: block.with_params(params), weights, folded, log: edit.log }
}
