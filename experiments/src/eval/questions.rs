//! Questions as lm-eval asks them: the log-likelihood of each answer behind its context. Right values: `loglikelihood` and
//! `_encode_pair` of lm-eval 0.4.13, and the truncation of its Hugging Face model.

use anyhow::{Context, ensure};
use awq_core::load::Tokenizer;

use super::windows::{Items, Windows};
use crate::config::LmEvalTaskProtocol;
use crate::tasks::{Answer, Question};

impl Windows {
    /// A window for each answer of each of `questions`.
    ///
    /// # Errors
    /// No questions, an answer that has no token of its own, one that is longer than the protocol allows, or a context of nothing with a
    /// tokenizer that has neither BOS nor EOS.
    pub fn of_questions(
        questions: &[Question],
        tokenizer: &Tokenizer,
        protocol: &LmEvalTaskProtocol,
        max_questions: Option<usize>,
    ) -> anyhow::Result<Self> {
        let n_total = questions.len();
        ensure!(n_total > 0, "the task has no questions");
        let questions = &questions[..max_questions.map_or(n_total, |max| max.min(n_total))];
        let (mut windows, mut first_targets) = (Vec::new(), Vec::new());
        for (index, question) in questions.iter().enumerate() {
            for answer in &question.answers {
                let part = encoded(answer, tokenizer).and_then(|ids| truncated(ids, protocol.max_len.get().into()));
                let (window, first_target) = part.with_context(|| format!("question {index}"))?;
                windows.push(window);
                first_targets.push(first_target);
            }
        }
        let n_chars = questions.iter().map(|question| question.answers.iter().map(|answer| answer.n_chars).collect());
        let items = Items::Questions {
            n_chars: n_chars.collect(),
            targets: questions.iter().map(|question| question.target).collect(),
        };
        Ok(Self { windows, n_total, first_targets, items })
    }
}

/// Tokens of context and answer, and how many are the context's. What the tokenizer puts around a text is put around both together.
fn encoded(answer: &Answer, tokenizer: &Tokenizer) -> anyhow::Result<(Vec<u32>, usize)> {
    if answer.context.is_empty() {
        let prefix = tokenizer.bos().or_else(|| tokenizer.eos());
        let prefix = prefix.context("nothing stands before the answer, and this tokenizer has neither BOS nor EOS")?;
        let ids = tokenizer.encode(&answer.continuation)?;
        // A prefix that the answer begins with stands for itself.
        let begins_with_it = ids.first() == Some(&prefix);
        return Ok((if begins_with_it { ids } else { [vec![prefix], ids].concat() }, 1));
    }
    // White space at the end of a context is a part of the answer's first token.
    let context = answer.context.trim_end();
    let whole = format!("{}{}", answer.context, answer.continuation);
    let n_context = tokenizer.encode_with_special(context)?.len();
    Ok((tokenizer.encode_with_special(&whole)?, n_context))
}

/// At most `max_len` tokens before the last one, and the first position that is scored: what is too long loses its beginning.
fn truncated((ids, n_context): (Vec<u32>, usize), max_len: usize) -> anyhow::Result<(Vec<u32>, usize)> {
    ensure!(n_context < ids.len(), "an answer has no token of its own behind its context");
    ensure!(
        ids.len() - n_context <= max_len,
        "an answer has {} tokens, more than `max_len`, which is {max_len}; raise it",
        ids.len() - n_context
    );
    let n_lost = ids.len().saturating_sub(max_len + 1);
    ensure!(
        n_context > n_lost,
        "no token of the context is left before an answer; raise `max_len`, which is {max_len}"
    );
    Ok((ids[n_lost..].to_vec(), n_context - n_lost))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_too_long_loses_its_beginning() {
        let cut = |n_context, max_len| truncated(((0..6).collect(), n_context), max_len);
        assert_eq!(cut(4, 5).unwrap(), (vec![0, 1, 2, 3, 4, 5], 4));
        assert_eq!(cut(4, 3).unwrap(), (vec![2, 3, 4, 5], 2));
        assert_eq!(cut(4, 2).unwrap(), (vec![3, 4, 5], 1));
        let error = |n_context, max_len| cut(n_context, max_len).unwrap_err().to_string();
        assert_eq!(error(6, 9), "an answer has no token of its own behind its context");
        assert_eq!(error(4, 1), "an answer has 2 tokens, more than `max_len`, which is 1; raise it");
    }
}
