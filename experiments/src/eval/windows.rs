//! A text cut into windows under a named protocol. Two numbers may be compared only if text, protocol and window length are the
//! same.
//!
//! | protocol | windows | scored | a perplexity is |
//! |---|---|---|---|
//! | `gptq` | non-overlapping windows of the joined text, tokenized once with the tokens that the tokenizer puts around a text, tail dropped | all but the first token of each | exp of the mean of the windows' means |
//! | `lm-eval` | each document apart: windows that score `max_len` tokens behind a prefix token (BOS, else EOS) or the token before; the last one reaches back as far | every token of a document, with a BOS of the tokenizer's own if `scores_bos` | exp of the sum over all documents, over all their tokens (words, bytes) |
//! | `llama-cpp` | chunks of the text, tokenized once with the tokens that the tokenizer puts in front; special tokens spelled out in it stay text; the first token of each chunk replaced by BOS if the tokenizer adds one; at least two | the second half: positions `n/2 .. n-2` predict the next | exp of the mean over tokens, and its standard error |

use anyhow::{bail, ensure};
use awq_core::load::{ModelConfig, Tokenizer};

use super::documents::Document;
use crate::config::ProtocolSpec;

/// Windows of one text under one protocol, ready to be scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    /// Token ids, one window a row.
    pub windows: Vec<Vec<u32>>,
    /// Windows (documents) of the whole text, before any limit.
    pub n_total: usize,
    /// First position of each window that is a target; all later ones are targets too.
    pub first_targets: Vec<usize>,
    /// What samples are of.
    pub items: Items,
}

/// What the samples of a text are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Items {
    /// Its windows, which are of one length.
    Windows,
    /// Documents, for each of which there is:
    Documents {
        /// How many windows it has.
        n_windows: Vec<usize>,
        /// How many words.
        n_words: Vec<usize>,
        /// How many bytes.
        n_bytes: Vec<usize>,
    },
}

/// Windows of one length, of which the same positions are scored: they pass through a model together.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Token ids.
    pub windows: &'a [Vec<u32>],
    /// First position that is a target.
    pub first_target: usize,
}

impl Batch<'_> {
    /// Tokens that a model is fed: the last one of a window predicts nothing that is scored.
    pub fn inputs(&self) -> Vec<Vec<u32>> {
        self.windows.iter().map(|window| window[..window.len() - 1].to_vec()).collect()
    }

    /// Tokens that are scored, window by window.
    pub fn targets(&self) -> Vec<u32> {
        self.windows.iter().flat_map(|window| &window[self.first_target..]).copied().collect()
    }

    /// Predictions scored in one window.
    pub fn targets_per_window(&self) -> usize {
        self.windows.first().map_or(0, |window| window.len() - self.first_target)
    }
}

impl Windows {
    /// Tokenizes the whole `text`, joined or in documents, and cuts it, both as `protocol` says.
    ///
    /// # Errors
    /// A text shorter than one window (two for `llama-cpp`), one that cannot be tokenized, or protocol `llama-cpp` with a
    /// tokenizer that puts tokens behind a text, which llama-perplexity refuses; also [`Self::of_documents`].
    pub fn cut(
        text: &ScoredAs,
        tokenizer: &Tokenizer,
        protocol: &ProtocolSpec,
        max_windows: Option<usize>,
    ) -> anyhow::Result<Self> {
        let text = match (text, protocol) {
            (ScoredAs::Documents(documents), ProtocolSpec::LmEval(rolling)) => {
                return Self::of_documents(documents, tokenizer, rolling, max_windows);
            }
            (ScoredAs::Joined(text), _) => text,
            (ScoredAs::Documents(_), _) => bail!("protocol {} scores a joined text", protocol.name_and_window().0),
        };
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
            ProtocolSpec::LmEval(_) => bail!("protocol lm-eval scores documents"),
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
        let first_targets = vec![first_target; windows.len()];
        Ok(Self { windows, n_total, first_targets, items: Items::Windows })
    }

    /// Checks that a model can score these windows.
    ///
    /// # Errors
    /// Windows that are too long for it, or a token outside its vocabulary.
    pub fn check_fits(&self, config: &ModelConfig) -> anyhow::Result<()> {
        // The last token is not fed, but only `lm-eval` relies on it: a window of the others is a context of its own.
        let fed = usize::from(matches!(self.items, Items::Documents { .. }));
        check_seq_len(config, self.windows.iter().map(|window| window.len() - fed).max().unwrap_or(1))?;
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

    /// Neighbouring windows of one length and first target, as many together as have at most `n_tokens` tokens, or one.
    pub fn batches(&self, n_tokens: usize) -> Vec<Batch<'_>> {
        let alike = |a: usize, b: usize| {
            self.windows[a].len() == self.windows[b].len() && self.first_targets[a] == self.first_targets[b]
        };
        let mut batches = Vec::new();
        let mut start = 0;
        while start < self.windows.len() {
            let most = (n_tokens / self.windows[start].len()).max(1);
            let mut end = start + 1;
            while end < self.windows.len() && end - start < most && alike(start, end) {
                end += 1;
            }
            batches.push(Batch { windows: &self.windows[start..end], first_target: self.first_targets[start] });
            start = end;
        }
        batches
    }
}

/// A text as a protocol reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScoredAs {
    /// In one piece.
    Joined(String),
    /// Document by document.
    Documents(Vec<Document>),
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
