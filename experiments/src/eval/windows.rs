//! A text cut into windows under a named protocol. Two numbers may be compared only if text, protocol and window length are the
//! same.
//!
//! | protocol | windows | scored | a perplexity is |
//! |---|---|---|---|
//! | `gptq` | non-overlapping windows of the joined text, tokenized once with the tokens that the tokenizer puts around a text, tail dropped | all but the first token of each | exp of the mean of the windows' means |
//! | `lm-eval` | each document apart: windows that score `max_len` tokens behind a prefix token (BOS, else EOS) or the token before; the last one reaches back as far | every token of a document, with a BOS of the tokenizer's own if `scores_bos` | exp of the sum over all documents, over all their tokens (words, bytes) |
//! | `lm-eval-task` | each answer to a question, behind its context; of what is longer than `max_len` tokens the end | the answer | see the metrics of tasks |
//! | `lm-eval-generation` | each problem of a task; of what leaves no room for the tokens that may be written the end | nothing: a model writes on it | see the metrics of texts |
//! | `llama-cpp` | chunks of the text, tokenized once with the tokens that the tokenizer puts in front; special tokens spelled out in it stay text; the first token of each chunk replaced by BOS if the tokenizer adds one; at least two | the second half: positions `n/2 .. n-2` predict the next | exp of the mean over tokens, and its standard error |

use anyhow::{bail, ensure};
use awq_core::load::{ModelConfig, Tokenizer};

use super::batch::Batch;
use super::documents::Document;
use crate::config::ProtocolSpec;
use crate::tasks::{Asked, Problem};

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
    /// Questions, which have a window for each answer. For each question there is:
    Questions {
        /// How many characters each answer has.
        n_chars: Vec<Vec<usize>>,
        /// Which answer is right.
        targets: Vec<usize>,
    },
    /// Problems, which have a window each, of which nothing is scored: a model writes behind it.
    Problems(Vec<Problem>),
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
            (ScoredAs::Asked(Asked::Questions(questions)), ProtocolSpec::LmEvalTask(task)) => {
                return Self::of_questions(questions, tokenizer, task, max_windows);
            }
            (ScoredAs::Asked(Asked::Problems(problems)), ProtocolSpec::LmEvalGeneration(task)) => {
                return Self::of_problems(problems, tokenizer, task, max_windows);
            }
            (ScoredAs::Asked(Asked::Problems(_)), ProtocolSpec::LmEvalTask(_)) => {
                bail!("the answers to this task are written; use protocol lm-eval-generation")
            }
            (ScoredAs::Asked(Asked::Questions(_)), ProtocolSpec::LmEvalGeneration(_)) => {
                bail!("this task has answers to choose from; use protocol lm-eval-task")
            }
            (ScoredAs::Documents(_) | ScoredAs::Asked(_), _) => {
                bail!("protocol {} scores a joined text", protocol.name_and_window().0)
            }
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
            ProtocolSpec::LmEvalTask(_) => bail!("protocol lm-eval-task scores the questions of a task"),
            ProtocolSpec::LmEvalGeneration(_) => bail!("protocol lm-eval-generation is of the problems of a task"),
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
        // The last token is not fed, but only the protocols of lm-eval rely on it: a window of the others is a context of its own.
        let fed = usize::from(!matches!(self.items, Items::Windows | Items::Problems(_)));
        let longest_window = self.windows.iter().map(|window| window.len() - fed).max().unwrap_or(1);
        match &self.items {
            Items::Problems(problems) => check_room(config, longest_window, problems)?,
            Items::Windows | Items::Documents { .. } | Items::Questions { .. } => {
                check_seq_len(config, longest_window)?
            }
        }
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

    /// Neighbouring windows, as many together as have at most `n_tokens` tokens, or one: those of one length and first target, or
    /// those of questions, packed.
    pub fn batches(&self, n_tokens: usize) -> Vec<Batch<'_>> {
        let is_packed = matches!(self.items, Items::Questions { .. });
        let alike = |a: usize, b: usize| {
            self.windows[a].len() == self.windows[b].len() && self.first_targets[a] == self.first_targets[b]
        };
        let mut batches = Vec::new();
        let mut start = 0;
        while start < self.windows.len() {
            let (mut end, mut n) = (start + 1, self.windows[start].len());
            while end < self.windows.len()
                && n + self.windows[end].len() <= n_tokens
                && (is_packed || alike(start, end))
            {
                n += self.windows[end].len();
                end += 1;
            }
            let (windows, first_targets) = (&self.windows[start..end], &self.first_targets[start..end]);
            batches.push(match is_packed {
                true => Batch::packed(windows, first_targets),
                false => Batch::alike(windows, first_targets),
            });
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
    /// What a task asks.
    Asked(Asked),
}

/// Checks that a model can write on prompts of at most `longest_prompt` tokens.
fn check_room(config: &ModelConfig, longest_prompt: usize, problems: &[Problem]) -> anyhow::Result<()> {
    let longest = config.longest_sequence();
    let n_new = problems.iter().map(|problem| problem.max_new_tokens).max().unwrap_or(0);
    ensure!(
        n_new < longest,
        "the task lets a model write {n_new} tokens, and this one has {longest} positions; leave the task out for it"
    );
    ensure!(
        longest_prompt + n_new <= longest,
        "a prompt and what is written on it take {} tokens, more than the {longest} positions of the model's configuration; set `max_len` to \
         {longest} or less",
        longest_prompt + n_new
    );
    Ok(())
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
