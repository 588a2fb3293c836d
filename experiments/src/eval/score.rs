//! [`score`]: one pass of a model over the windows of a text, for all metrics that are asked of it.

use anyhow::ensure;
use awq_core::arithmetic::Arithmetic;
use awq_core::backend::QuantBackend;
use awq_core::model::{Decoder, NoTap, for_each_block, in_arithmetic};
use burn::tensor::Tensor;

use super::metric::{Metric, Scored};
use super::scores::Scores;
use super::windows::Windows;

/// Tokens of one forward batch: fills the matrix kernels and keeps activations in the last-level cache.
const TOKENS_PER_BATCH: usize = 2048;
/// Hidden states held at once, in bytes: the blocks are read once for each such share of the windows.
const HIDDEN_BYTES: usize = 1 << 30;
/// Rows whose logits exist at once: with a vocabulary of 128k and f32, half a gigabyte would be 1024.
const LOGIT_ROWS: usize = 512;

/// Scores windows block by block: one block's weights are in memory at a time, whatever the size of the model. The matrix
/// products of linears and of the head are computed in `arithmetic`. The scores of each of `metrics`, in their order.
///
/// `progress` is called with the tokens passed through one block.
///
/// # Errors
/// Windows that do not fit the model, a block that cannot be read, or values that are not finite.
pub fn score<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    windows: &Windows,
    arithmetic: Arithmetic,
    metrics: &[&dyn Metric],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Scores>> {
    let config = decoder.config();
    windows.check_fits(config)?;
    decoder.check_ids(&windows.windows)?;
    let len = windows.windows.first().map_or(1, Vec::len);
    let windows_per_batch = (TOKENS_PER_BATCH / len).max(1);
    let batches_per_share = (HIDDEN_BYTES / (4 * config.hidden_size * len * windows_per_batch)).max(1);
    let mut scores: Vec<Scores> = metrics
        .iter()
        .map(|metric| Scores { per_window: Vec::new(), estimator: metric.quantity().estimator })
        .collect();
    for share in windows.windows.chunks(windows_per_batch * batches_per_share) {
        let batches: Vec<&[Vec<u32>]> = share.chunks(windows_per_batch).collect();
        let states = final_states(decoder, &batches, arithmetic, progress)?;
        for (states, ids) in states.into_iter().zip(batches) {
            let n_targets = windows.targets_per_window();
            let rows = Rows { decoder, states: predicting(decoder, states, windows.first_target), arithmetic };
            let targets: Vec<u32> = ids.iter().flat_map(|window| &window[windows.first_target..]).copied().collect();
            for (scores, values) in scores.iter_mut().zip(rows.score(&targets, metrics)?) {
                scores.per_window.extend(values.chunks(n_targets).map(<[f32]>::to_vec));
            }
        }
    }
    Ok(scores)
}

/// Hidden states `[batch, seq, hidden]` behind the last block, for each batch of windows.
fn final_states<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    batches: &[&[Vec<u32>]],
    arithmetic: Arithmetic,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Tensor<B, 3>>> {
    let mut states: Vec<Tensor<B, 3>> = batches.iter().map(|batch| decoder.embed(batch)).collect();
    for_each_block(decoder, |_, block| -> anyhow::Result<()> {
        let block = in_arithmetic(block.as_ref(), arithmetic);
        for batch in &mut states {
            // Hand the only reference over, so that the block can work in place.
            let input = std::mem::replace(batch, Tensor::empty([1, 1, 1], &batch.device()));
            progress(input.dims()[0] * input.dims()[1]);
            *batch = block.forward(input, &mut NoTap);
        }
        Ok(())
    })?;
    Ok(states)
}

/// The normed states that predict a target: those at position `p` predict the token at `p + 1`. `[targets, hidden]`.
fn predicting<B: QuantBackend>(decoder: &dyn Decoder<B>, states: Tensor<B, 3>, first_target: usize) -> Tensor<B, 2> {
    let [batch, len, width] = states.dims();
    let n_targets = len - first_target;
    let predicting = decoder.final_norm(states).narrow(1, first_target - 1, n_targets);
    predicting.reshape([batch * n_targets, width])
}

/// States of a model that predict tokens, a row each; logits exist for [`LOGIT_ROWS`] of them at a time.
struct Rows<'a, B: QuantBackend> {
    decoder: &'a dyn Decoder<B>,
    states: Tensor<B, 2>,
    arithmetic: Arithmetic,
}

impl<B: QuantBackend> Rows<'_, B> {
    /// One value a target for each metric.
    fn score(&self, targets: &[u32], metrics: &[&dyn Metric]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut values = vec![Vec::with_capacity(targets.len()); metrics.len()];
        for (chunk_idx, targets) in targets.chunks(LOGIT_ROWS).enumerate() {
            let logits = self.logits(chunk_idx * LOGIT_ROWS, targets.len());
            let nll = B::token_nll(logits, targets);
            let scored = Scored { targets, nll: &nll };
            let of_chunk: Vec<Vec<f32>> = metrics.iter().map(|metric| metric.score(&scored)).collect();
            let finite = of_chunk.iter().flatten().chain(&nll).all(|value| value.is_finite());
            ensure!(finite, "the model's likelihoods are not finite: it is broken, or overflows in this precision");
            values.iter_mut().zip(of_chunk).for_each(|(all, chunk)| all.extend(chunk));
        }
        Ok(values)
    }

    /// Logits `[n_rows, vocab]` of some of the rows.
    fn logits(&self, first: usize, n_rows: usize) -> Tensor<B, 2> {
        self.decoder.head(self.states.clone().narrow(0, first, n_rows), self.arithmetic)
    }
}
