//! Documents scored one by one, as lm-eval's rolling log-likelihood does: every token once, behind a prefix token or the tokens
//! before it. Right values: `get_rolling_token_windows` with a context of 1, and `make_disjoint_window`, of lm-eval 0.4.13.

use anyhow::{Context, ensure};
use awq_core::load::Tokenizer;

use super::windows::{Items, Windows};
use crate::config::LmEvalProtocol;

/// A document as a model reads it, and what its numbers are divided by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What is scored.
    pub text: String,
    /// Words of the document as its data set has it.
    pub n_words: usize,
    /// Its bytes in UTF-8.
    pub n_bytes: usize,
}

impl Document {
    /// A document that is scored as it is. Words are what white space separates, an empty one at either end among them, as lm-eval
    /// counts.
    pub fn new(text: String) -> Self {
        let (n_words, n_bytes) = (n_words(&text), text.len());
        Self { text, n_words, n_bytes }
    }
}

/// Pieces that runs of white space separate: one more than there are runs.
pub fn n_words(text: &str) -> usize {
    let is_space = || text.chars().map(char::is_whitespace);
    let before = std::iter::once(false).chain(is_space());
    is_space().zip(before).filter(|&(space, before)| space && !before).count() + 1
}

/// A window of a document, and the first position of it that is scored.
type Part = (Vec<u32>, usize);

impl Windows {
    /// The windows of each of `documents`.
    ///
    /// # Errors
    /// A tokenizer that has neither BOS nor EOS, or a document that cannot be tokenized or has no token.
    pub fn of_documents(
        documents: &[Document],
        tokenizer: &Tokenizer,
        protocol: &LmEvalProtocol,
        max_documents: Option<usize>,
    ) -> anyhow::Result<Self> {
        let prefix = tokenizer.bos().or_else(|| tokenizer.eos());
        let prefix = prefix.context("protocol lm-eval puts BOS or EOS in front, and this tokenizer has neither")?;
        let n_total = documents.len();
        ensure!(n_total > 0, "the text has no documents");
        let documents = &documents[..max_documents.map_or(n_total, |max| max.min(n_total))];
        let (mut windows, mut first_targets, mut n_windows) = (Vec::new(), Vec::new(), Vec::new());
        for (index, document) in documents.iter().enumerate() {
            let ids = match protocol.scores_bos {
                true => tokenizer.encode_with_special(&document.text)?,
                false => tokenizer.encode(&document.text)?,
            };
            ensure!(!ids.is_empty(), "document {index} has no token to score; leave it out");
            let parts = rolling(&ids, prefix, protocol.max_len.get().into());
            n_windows.push(parts.len());
            for (window, first_target) in parts {
                windows.push(window);
                first_targets.push(first_target);
            }
        }
        let (n_words, n_bytes) = documents.iter().map(|document| (document.n_words, document.n_bytes)).unzip();
        Ok(Self { windows, n_total, first_targets, items: Items::Documents { n_windows, n_words, n_bytes } })
    }
}

/// Windows of at most `max_len + 1` tokens that score each of `ids` once. The last window reaches back as far as it may.
fn rolling(ids: &[u32], prefix: u32, max_len: usize) -> Vec<Part> {
    let first_len = ids.len().min(max_len);
    let mut parts = vec![([&[prefix], &ids[..first_len]].concat(), 1)];
    let mut scored = first_len;
    while scored < ids.len() {
        let n_targets = (ids.len() - scored).min(max_len);
        let end = scored + n_targets;
        let window = ids[end - max_len - 1..end].to_vec();
        parts.push((window, max_len + 1 - n_targets));
        scored = end;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_counted_as_lm_eval_counts() {
        for (text, n) in [("", 1), ("a", 1), ("a b", 2), (" a\n\nb ", 4), ("a \u{a0} b", 2), ("  ", 2)] {
            assert_eq!(n_words(text), n, "{text:?}");
        }
    }

    #[test]
    fn windows_are_those_of_lm_eval() {
        let part = |ids: &[u32], first| (ids.to_vec(), first);
        assert_eq!(rolling(&[1, 2], 9, 4), [part(&[9, 1, 2], 1)]);
        assert_eq!(rolling(&[1, 2, 3, 4], 9, 4), [part(&[9, 1, 2, 3, 4], 1)]);
        // Two are left: their window reaches back to three that were scored before.
        let expected = [part(&[9, 1, 2, 3, 4], 1), part(&[2, 3, 4, 5, 6], 3)];
        assert_eq!(rolling(&[1, 2, 3, 4, 5, 6], 9, 4), expected);
        let expected = [part(&[9, 1, 2], 1), part(&[2, 3, 4], 1), part(&[3, 4, 5], 2)];
        assert_eq!(rolling(&[1, 2, 3, 4, 5], 9, 2), expected);
    }

    proptest! {
        #[test]
        fn every_token_is_scored_once(n in 1..40_u32, max_len in 1..12_usize) {
            let ids: Vec<u32> = (0..n).collect();
            let parts = rolling(&ids, 99, max_len);
            let scored: Vec<u32> = parts.iter().flat_map(|(window, first)| &window[*first..]).copied().collect();
            prop_assert_eq!(scored, ids);
            prop_assert!(parts.iter().all(|(window, first)| window.len() <= max_len + 1 && *first >= 1));
        }
    }
}
