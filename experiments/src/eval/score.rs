//! [`score`]: one pass of a model over the windows of a text, for all metrics that are asked of it.

use std::sync::OnceLock;

use anyhow::ensure;
use awq_core::backend::{QuantBackend, float_vec};
use awq_core::model::{Decoder, Head, for_each_block};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::ScoringArithmetic;
use super::arithmetic::is_narrow;
use super::base_model::BaseModel;
use super::batch::{Batch, BatchStates};
use super::metric::{Metric, Needs, Scored};
use super::scores::Scores;
use super::windows::Windows;

/// Tokens of one forward batch. 1,024 tokens of a narrow model stay in cache; a wide one takes 2,048, so that its weights are read less often.
pub(super) const fn tokens_per_batch(hidden_size: usize) -> usize {
    if is_narrow(hidden_size) { 1024 } else { 2048 }
}

/// Hidden states of batches that pass through a block side by side, in bytes. What the block makes of them takes some ten times as much, and
/// batches of wide models keep all threads busy one by one.
const BYTES_AT_ONCE: usize = 16 << 20;
/// Hidden states held at once, in bytes: the blocks are read once for each such share of the windows.
const HIDDEN_BYTES: usize = 1 << 30;
/// Rows whose logits exist at once: with a vocabulary of 128k and f32, half a gigabyte would be 1024.
const LOGIT_ROWS: usize = 512;

/// Bytes of hidden states and of logits that a pass over a text holds at most, for a vocabulary of `vocab` tokens.
pub(crate) const fn most_bytes(vocab: usize) -> usize {
    HIDDEN_BYTES + LOGIT_ROWS * vocab * size_of::<f32>()
}

/// Scores windows block by block: one block's weights are in memory at a time, whatever the size of the model. The matrix
/// products of linears and of the head are computed in `arithmetic`, those of `base` in its own. The scores of each of `metrics`, in their order.
///
/// `base` is used only where a metric needs it, and serves one text alone. `progress` is called with the tokens passed through
/// one block, of either model.
///
/// # Errors
/// Windows that do not fit the model, a block that cannot be read, or values that are not finite.
pub fn score<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    windows: &Windows,
    arithmetic: ScoringArithmetic,
    metrics: &[&dyn Metric],
    base: &mut BaseModel<'_, B>,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Scores>> {
    let config = decoder.config();
    windows.check_fits(config)?;
    decoder.check_ids(&windows.windows)?;
    let needs = needs_of(metrics);
    let batches = windows.batches(tokens_per_batch(config.hidden_size));
    let largest = batches.iter().map(Batch::n_tokens).max().unwrap_or(1);
    let batches_per_share = (HIDDEN_BYTES / (4 * config.hidden_size * largest)).max(1);
    let mut per_window: Vec<Vec<Vec<f32>>> = vec![Vec::new(); metrics.len()];
    let shares = batches.chunks(batches_per_share);
    let is_whole = shares.len() == 1;
    for share in shares {
        let states = final_states(decoder, share, arithmetic, progress)?;
        let base_states = match needs {
            Needs::Nothing | Needs::Likelihoods | Needs::Logits => Vec::new(),
            Needs::BaseLogits => base.states(share, is_whole, progress)?,
        };
        // Read once a share: while blocks are passed, it would take the room of one.
        let head = decoder.head(arithmetic.of_floats())?;
        let base_head =
            if base_states.is_empty() { None } else { Some(base.decoder.head(base.arithmetic.of_floats())?) };
        let mut base_states = base_states.into_iter();
        for (states, batch) in states.into_iter().zip(share) {
            let base_rows = base_states
                .next()
                .zip(base_head.as_ref())
                .map(|(states, head)| Rows::new(base.decoder, head, states, batch));
            let values =
                Rows::new(decoder, &head, states, batch).score(&batch.targets(), metrics, base_rows.as_ref())?;
            for (per_window, values) in per_window.iter_mut().zip(values) {
                let mut values = values.into_iter();
                per_window.extend(batch.n_targets().map(|n| values.by_ref().take(n).collect::<Vec<f32>>()));
            }
        }
    }
    let scores = |(metric, per_window): (&&dyn Metric, _)| {
        Scores::of_windows(per_window, &windows.items, metric.of_item(), metric.quantity().estimator)
    };
    metrics.iter().zip(per_window).map(scores).collect()
}

/// Tokens that pass through each block of a model in one pass over `windows`.
pub fn n_tokens_fed(windows: &Windows, hidden_size: usize) -> usize {
    windows.batches(tokens_per_batch(hidden_size)).iter().map(Batch::n_tokens).sum()
}

/// What the most demanding of `metrics` needs.
pub fn needs_of(metrics: &[&dyn Metric]) -> Needs {
    metrics.iter().map(|metric| metric.needs()).max().unwrap_or(Needs::Likelihoods)
}

/// Hidden states behind the last block, for each batch of windows.
pub(super) fn final_states<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    batches: &[Batch<'_>],
    arithmetic: ScoringArithmetic,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Tensor<B, 3>>> {
    let embedding = decoder.embedding()?;
    let mut states: Vec<BatchStates<B>> = batches.iter().map(|batch| batch.embed(&embedding)).collect();
    drop(embedding);
    let n_at_once = batches_at_once::<B>(batches, decoder.config().hidden_size);
    for_each_block(decoder, |block_idx, block| -> anyhow::Result<()> {
        let block = arithmetic.block(decoder, (block_idx, block.as_ref()))?;
        for (states, batches) in states.chunks_mut(n_at_once).zip(batches.chunks(n_at_once)) {
            progress(batches.iter().map(Batch::n_tokens).sum());
            states.par_iter_mut().with_max_len(1).for_each(|states| states.advance(block.as_ref()));
        }
        Ok(())
    })?;
    Ok(states.into_iter().map(|states| states.hidden).collect())
}

/// Batches that pass through a block side by side: where the host computes, one has work for threads that wait for another. No bit of one
/// depends on others.
fn batches_at_once<B: QuantBackend>(batches: &[Batch<'_>], hidden_size: usize) -> usize {
    let largest = batches.iter().map(Batch::n_tokens).max().unwrap_or(1);
    let fitting = BYTES_AT_ONCE / (size_of::<f32>() * largest * hidden_size).max(1);
    if B::BESIDE_HOST { 1 } else { fitting.clamp(1, rayon::current_num_threads()) }
}

/// States of a model that predict tokens, a row each; logits exist for [`LOGIT_ROWS`] of them at a time.
struct Rows<'a, B: QuantBackend> {
    head: &'a Head<B>,
    /// Normed, `[targets, hidden]`.
    states: Tensor<B, 2>,
}

impl<'a, B: QuantBackend> Rows<'a, B> {
    /// Of hidden states of a batch.
    fn new(decoder: &dyn Decoder<B>, head: &'a Head<B>, states: Tensor<B, 3>, batch: &Batch<'_>) -> Self {
        Self { head, states: batch.predicting(decoder.final_norm(states)) }
    }

    /// One value a target for each metric. `base` holds the same rows of the base model, where a metric needs them.
    fn score(&self, targets: &[u32], metrics: &[&dyn Metric], base: Option<&Self>) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut values = vec![Vec::with_capacity(targets.len()); metrics.len()];
        for (chunk_idx, targets) in targets.chunks(LOGIT_ROWS).enumerate() {
            let first = chunk_idx * LOGIT_ROWS;
            let tensor = self.logits(first, targets.len());
            let [_, vocab] = tensor.dims();
            let logits = match needs_of(metrics) {
                Needs::Nothing | Needs::Likelihoods => Vec::new(),
                Needs::Logits | Needs::BaseLogits => float_vec(tensor.clone()),
            };
            let base_logits = base.map_or_else(Vec::new, |base| float_vec(base.logits(first, targets.len())));
            let nll = B::token_nll(tensor, targets);
            let divergences = OnceLock::new();
            let scored = Scored { targets, nll: &nll, vocab, logits: &logits, base_logits: &base_logits, divergences };
            let of_chunk: Vec<Vec<f32>> = metrics.iter().map(|metric| metric.score(&scored)).collect();
            let finite = of_chunk.iter().flatten().chain(&nll).all(|value| value.is_finite());
            ensure!(finite, "the model's likelihoods are not finite: it is broken, or overflows in this precision");
            values.iter_mut().zip(of_chunk).for_each(|(all, chunk)| all.extend(chunk));
        }
        Ok(values)
    }

    /// Logits `[n_rows, vocab]` of some of the rows.
    fn logits(&self, first: usize, n_rows: usize) -> Tensor<B, 2> {
        self.head.logits(self.states.clone().narrow(0, first, n_rows))
    }
}
