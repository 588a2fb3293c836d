//! A text cut into windows under a named protocol. Two numbers may be compared only if text, protocol and window length are the
//! same.
//!
//! | protocol | windows | scored | a perplexity is |
//! |---|---|---|---|
//! | `gptq` | non-overlapping windows of the joined text, tokenized once with the tokens that the tokenizer puts around a text, tail dropped | all but the first token of each | exp of the mean of the windows' means |
//! | `llama-cpp` | chunks of the text, tokenized once with the tokens that the tokenizer puts in front; special tokens spelled out in it stay text; the first token of each chunk replaced by BOS if the tokenizer adds one; at least two | the second half: positions `n/2 .. n-2` predict the next | exp of the mean over tokens, and its standard error |

use anyhow::{bail, ensure};
use awq_core::load::{ModelConfig, Tokenizer};

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
