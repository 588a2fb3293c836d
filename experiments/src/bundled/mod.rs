//! The bundled language, its tokenizer and the small Llama-architecture model trained on it: what an experiment runs
//! on when it names no other asset, without any network.
//!
//! The true entropy of the language is known, so a perplexity can be printed beside the lowest possible one.

mod adamw;
mod checkpoint;
mod entropy;
mod facts;
mod grammar;
mod lexicon;
mod network;
mod tokenizer;
pub mod train;
mod walker;
mod weights;

pub use entropy::{Document, NotInLanguage, document_nats, generate_document};
pub use network::{Network, reference_logits};
pub use tokenizer::{BOS, train_tokenizer};
pub use train::{HeldOut, TrainOptions, TrainProgress, TrainReport, train};
pub use weights::{NetworkConfig, Weights};

/// Seeds that share no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What the bundled model was trained on.
    Train,
    /// For calibration: neither trained nor evaluated on.
    Calibration,
    /// For evaluation: never trained on.
    Test,
}

impl Split {
    /// Seed of the split's document `document_idx`. A split has 2^32 documents, so the ranges cannot meet.
    fn seed(self, document_idx: u32) -> u64 {
        let range = match self {
            Split::Train => 0,
            Split::Calibration => 1,
            Split::Test => 2,
        };
        (range << 32) | u64::from(document_idx)
    }

    /// Document `document_idx` of this split.
    pub fn document(self, document_idx: u32) -> Document {
        generate_document(self.seed(document_idx))
    }
}

/// The first `n_documents` documents of `split`, each on a line of its own that ends with a line feed.
pub fn bundled_text(split: Split, n_documents: u32) -> String {
    (0..n_documents).flat_map(|document_idx| [split.document(document_idx).text, "\n".to_owned()]).collect()
}

/// True information content of [`bundled_text`] of the same arguments, in nats: what an ideal model loses in total
/// when it sees every document from its start. Where a document ends is no news, so line feeds cost nothing.
pub fn true_nats(split: Split, n_documents: u32) -> f64 {
    (0..n_documents).map(|document_idx| split.document(document_idx).nats).sum()
}

/// The lowest per-token perplexity of [`bundled_text`] that any model can reach, given the number of tokens that the
/// text has (line feeds included). Windows that begin in mid-document hide facts and have a somewhat higher floor.
pub fn floor_perplexity(split: Split, n_documents: u32, n_tokens: usize) -> f64 {
    (true_nats(split, n_documents) / n_tokens as f64).exp()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn splits_share_no_document() {
        let splits = [Split::Train, Split::Calibration, Split::Test];
        let seeds: BTreeSet<_> = splits.iter().flat_map(|split| [split.seed(0), split.seed(u32::MAX)]).collect();
        assert_eq!(seeds.len(), 6);
        assert!(Split::Train.seed(u32::MAX) < Split::Calibration.seed(0));
        assert!(Split::Calibration.seed(u32::MAX) < Split::Test.seed(0));
        let texts: BTreeSet<_> = splits.iter().flat_map(|split| (0..50).map(|i| split.document(i).text)).collect();
        assert_eq!(texts.len(), 150);
    }

    #[test]
    fn a_text_has_a_line_and_its_nats_for_each_document() {
        let text = bundled_text(Split::Test, 10);
        assert_eq!(text.lines().count(), 10);
        assert!(text.ends_with(".\n"));
        let nats: f64 = text.lines().map(|line| document_nats(line).unwrap_or(f64::NAN)).sum();
        assert!((nats - true_nats(Split::Test, 10)).abs() < 1e-7);
        assert!((floor_perplexity(Split::Test, 10, 1000).ln() * 1000.0 - nats).abs() < 1e-7);
    }

    /// The weights in the repository belong to this text: whoever changes the grammar trains anew.
    #[test]
    fn the_language_is_the_one_the_model_was_trained_on() {
        let text = bundled_text(Split::Train, 200) + &bundled_text(Split::Test, 200);
        assert_eq!(
            format!("{:x}", Sha256::digest(text)),
            "4439df209ea936bc2e451fd665eedd1cbd47936b5f346293f85854ae455ca310"
        );
    }
}
