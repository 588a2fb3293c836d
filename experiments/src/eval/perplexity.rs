//! Perplexity under a named protocol. Two numbers may be compared only if text, protocol and window length are the same.
//!
//! | protocol | windows | scored | reported |
//! |---|---|---|---|
//! | `gptq` | non-overlapping windows of the joined text, tokenized once with the tokens that the tokenizer puts around a text, tail dropped | all but the first token of each | exp of the mean of the windows' means |
//! | `llama-cpp` | chunks of the text, tokenized once with the tokens that the tokenizer puts in front; special tokens spelled out in it stay text; the first token of each chunk replaced by BOS if the tokenizer adds one; at least two | the second half: positions `n/2 .. n-2` predict the next | exp of the mean over tokens, and its standard error |

use anyhow::{bail, ensure};
use awq_core::arithmetic::Arithmetic;
use awq_core::backend::QuantBackend;
use awq_core::load::{ModelConfig, Tokenizer};
use awq_core::model::{Decoder, NoTap, for_each_block, in_arithmetic};
use burn::tensor::Tensor;

use crate::config::ProtocolSpec;

/// Windows of one text under one protocol, ready to be scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// Token ids, one window a row, all of one length.
    pub windows: Vec<Vec<u32>>,
    /// Windows of the whole text, before any limit.
    pub n_total: usize,
    /// First position that is a target; all later ones are targets too.
    pub first_target: usize,
}

impl Windows {
    /// Tokenizes the whole `text` and cuts it, both as `protocol` says.
    ///
    /// # Errors
    /// A text shorter than one window (two for `llama-cpp`), one that cannot be tokenized, or protocol `llama-cpp` with a
    /// tokenizer that puts tokens behind a text, which llama-perplexity refuses.
    pub fn cut(
        text: &str,
        tokenizer: &Tokenizer,
        protocol: &ProtocolSpec,
        max_windows: Option<usize>,
    ) -> anyhow::Result<Self> {
        let (ids, len, first_target, at_least) = match protocol {
            ProtocolSpec::Gptq(gptq) => {
                (tokenizer.encode_with_special(text)?, usize::from(gptq.seq_len.get()), 1, "one window takes")
            }
            ProtocolSpec::LlamaCpp(chunks) => {
                ensure!(
                    !tokenizer.adds_suffix(),
                    "this tokenizer puts a token behind every text, which protocol llama-cpp has no rule for; use protocol gptq"
                );
                let len = usize::from(chunks.chunk_len.get());
                (tokenizer.encode_literally_with_special(text)?, len, len / 2 + 1, "two chunks take")
            }
        };
        let n_total = ids.len() / len;
        let n_least = if let ProtocolSpec::LlamaCpp(_) = protocol { 2 } else { 1 };
        ensure!(
            n_total >= n_least,
            "the text has {} tokens, {at_least} {}; use a longer text or a shorter window",
            ids.len(),
            n_least * len
        );
        let n = max_windows.map_or(n_total, |max| max.min(n_total));
        let mut windows: Vec<Vec<u32>> = ids.chunks_exact(len).take(n).map(<[u32]>::to_vec).collect();
        if let (ProtocolSpec::LlamaCpp(_), true, Some(bos)) = (protocol, tokenizer.adds_bos(), tokenizer.bos()) {
            windows.iter_mut().for_each(|window| window[0] = bos);
        }
        Ok(Self { windows, n_total, first_target })
    }

    /// Checks that a model can score these windows.
    ///
    /// # Errors
    /// Windows that are too long for it, or a token outside its vocabulary.
    pub fn check_fits(&self, config: &ModelConfig) -> anyhow::Result<()> {
        check_seq_len(config, self.windows.first().map_or(1, Vec::len))?;
        let vocab = config.vocab_size;
        match self.windows.iter().flatten().find(|&&id| id as usize >= vocab) {
            Some(id) => bail!(
                "token {id} is outside the model's vocabulary of {vocab}: model and tokenizer do not belong together"
            ),
            None => Ok(()),
        }
    }

    /// The windows as slices.
    pub fn slices(&self) -> Vec<&[u32]> {
        self.windows.iter().map(Vec::as_slice).collect()
    }

    /// Predictions scored in one window.
    pub fn targets_per_window(&self) -> usize {
        self.windows.first().map_or(0, |window| window.len() - self.first_target)
    }
}

/// Checks that a model can run sequences of `seq_len` tokens.
///
/// # Errors
/// Sequences longer than [`ModelConfig::longest_sequence`].
pub fn check_seq_len(config: &ModelConfig, seq_len: usize) -> anyhow::Result<()> {
    let longest = config.longest_sequence();
    ensure!(
        seq_len <= longest,
        "sequences of {seq_len} tokens are longer than the {longest} positions of the model's configuration; use a shorter seq_len"
    );
    Ok(())
}

/// Negative log-likelihoods in nats, one a scored token, window by window.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    per_window: Vec<Vec<f32>>,
}

impl Scores {
    /// Mean over the scored tokens of each window.
    pub fn window_means(&self) -> Vec<f64> {
        let mean = |nll: &Vec<f32>| nll.iter().map(|&v| f64::from(v)).sum::<f64>() / nll.len() as f64;
        self.per_window.iter().map(mean).collect()
    }

    /// Tokens scored.
    pub fn n_tokens(&self) -> u64 {
        self.per_window.iter().map(|window| window.len() as u64).sum()
    }

    /// `exp` of the mean of the windows' means: with windows of one length also the mean over tokens.
    pub fn perplexity(&self) -> f64 {
        let means = self.window_means();
        (means.iter().sum::<f64>() / means.len() as f64).exp()
    }

    /// Standard error of the perplexity when windows are taken as independent; `None` for a single window.
    pub fn window_standard_error(&self) -> Option<f64> {
        let means = self.window_means();
        let (n, center) = (means.len() as f64, means.iter().sum::<f64>() / means.len() as f64);
        let variance = means.iter().map(|nll| (nll - center).powi(2)).sum::<f64>() / (n - 1.0);
        (means.len() > 1).then(|| center.exp() * (variance / n).sqrt())
    }

    /// Standard error of the perplexity when tokens are taken as independent, as llama.cpp prints it.
    pub fn token_standard_error(&self) -> f64 {
        let n = self.n_tokens() as f64;
        let values = || self.per_window.iter().flatten().map(|&v| f64::from(v));
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        (variance / (n - 1.0).max(1.0)).sqrt() * self.perplexity()
    }
}

/// Tokens of one forward batch: fills the matrix kernels and keeps activations in the last-level cache.
const TOKENS_PER_BATCH: usize = 2048;
/// Hidden states held at once, in bytes: the blocks are read once for each such share of the windows.
const HIDDEN_BYTES: usize = 1 << 30;
/// Rows whose logits exist at once: with a vocabulary of 128k and f32, half a gigabyte would be 1024.
const LOGIT_ROWS: usize = 512;

/// Scores windows block by block: one block's weights are in memory at a time, whatever the size of the model. The matrix
/// products of linears and of the head are computed in `arithmetic`.
///
/// `progress` is called with the tokens passed through one block.
///
/// # Errors
/// Windows that do not fit the model, a block that cannot be read, or likelihoods that are not finite.
pub fn score<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    windows: &Windows,
    arithmetic: Arithmetic,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Scores> {
    let config = decoder.config();
    windows.check_fits(config)?;
    decoder.check_ids(&windows.windows)?;
    let len = windows.windows.first().map_or(1, Vec::len);
    let windows_per_batch = (TOKENS_PER_BATCH / len).max(1);
    let batches_per_share = (HIDDEN_BYTES / (4 * config.hidden_size * len * windows_per_batch)).max(1);
    let mut per_window = Vec::with_capacity(windows.windows.len());
    for share in windows.windows.chunks(windows_per_batch * batches_per_share) {
        let mut hidden: Vec<Tensor<B, 3>> = share.chunks(windows_per_batch).map(|batch| decoder.embed(batch)).collect();
        for_each_block(decoder, |_, block| -> anyhow::Result<()> {
            let block = in_arithmetic(block.as_ref(), arithmetic);
            for batch in &mut hidden {
                // Hand the only reference over, so that the block can work in place.
                let input = std::mem::replace(batch, Tensor::empty([1, 1, 1], &batch.device()));
                progress(input.dims()[0] * input.dims()[1]);
                *batch = block.forward(input, &mut NoTap);
            }
            Ok(())
        })?;
        for (batch, ids) in hidden.into_iter().zip(share.chunks(windows_per_batch)) {
            per_window.extend(batch_nll(decoder, batch, ids, windows.first_target, arithmetic));
        }
    }
    let finite = per_window.iter().flatten().all(|nll: &f32| nll.is_finite());
    ensure!(finite, "the model's likelihoods are not finite: it is broken, or overflows in this precision");
    Ok(Scores { per_window })
}

/// The negative log-likelihoods of a batch of windows; logits exist for [`LOGIT_ROWS`] rows at a time.
fn batch_nll<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    hidden: Tensor<B, 3>,
    ids: &[Vec<u32>],
    first_target: usize,
    arithmetic: Arithmetic,
) -> Vec<Vec<f32>> {
    let [batch, len, width] = hidden.dims();
    let n_targets = len - first_target;
    // The state at position p predicts the token at p + 1.
    let predicting = decoder.final_norm(hidden).narrow(1, first_target - 1, n_targets);
    let rows = predicting.reshape([batch * n_targets, width]);
    let targets: Vec<u32> = ids.iter().flat_map(|window| &window[first_target..]).copied().collect();
    let mut nll = Vec::with_capacity(targets.len());
    for (chunk_idx, targets) in targets.chunks(LOGIT_ROWS).enumerate() {
        let rows = rows.clone().narrow(0, chunk_idx * LOGIT_ROWS, targets.len());
        nll.extend(B::token_nll(decoder.head(rows, arithmetic), targets));
    }
    nll.chunks(n_targets).map(<[f32]>::to_vec).collect()
}
