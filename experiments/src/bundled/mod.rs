//! The bundled language, its tokenizer and the small Llama-architecture model trained on it: what an experiment runs
//! on when it names no other asset, without any network.
//!
//! The true entropy of the language is known, so a perplexity can be printed beside the lowest possible one.

mod entropy;
mod facts;
mod grammar;
mod lexicon;
/// How the bundled model was made. Only whoever trains it anew needs automatic differentiation: a feature, for the build's sake.
#[cfg(any(test, feature = "train"))]
pub mod train;
mod walker;

pub use entropy::{Document, NotInLanguage, document_nats, generate_document};

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

/// The bundled model: the files of a Hugging Face folder and the report of its training, part of the executable.
pub mod assets {
    /// `config.json`.
    pub const CONFIG: &[u8] = include_bytes!("../../assets/bundled/config.json");
    /// `tokenizer.json`.
    pub const TOKENIZER: &[u8] = include_bytes!("../../assets/bundled/tokenizer.json");
    /// `model.safetensors`, f16.
    pub const WEIGHTS: &[u8] = include_bytes!("../../assets/bundled/model.safetensors");
    /// `train_report.json`, what the training run said about itself.
    pub const REPORT: &[u8] = include_bytes!("../../assets/bundled/train_report.json");
    /// What a loader needs, with file names.
    pub const MODEL_FILES: [(&str, &[u8]); 3] =
        [("config.json", CONFIG), ("tokenizer.json", TOKENIZER), ("model.safetensors", WEIGHTS)];
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use burn::backend::Flex;
    use sha2::{Digest, Sha256};
    use tokenizers::Tokenizer;

    use super::train::tokenizer::train_tokenizer;
    use super::train::weights::Weights;
    use super::train::{HeldOut, HeldOutText, TrainReport};
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

    fn bundled_weights() -> Weights {
        Weights::from_bytes(assets::CONFIG, assets::WEIGHTS).unwrap()
    }

    fn bundled_report() -> TrainReport {
        serde_json::from_slice(assets::REPORT).unwrap()
    }

    fn held_out_loss(weights: &Weights, n_documents: u32) -> HeldOut {
        let tokenizer = Tokenizer::from_bytes(assets::TOKENIZER).unwrap();
        let text = HeldOutText::new(&tokenizer, weights.config.bos_token_id, n_documents).unwrap();
        text.score::<Flex>(weights, &Default::default()).unwrap()
    }

    #[test]
    fn the_bundled_model_is_small_and_as_good_as_its_report_says() {
        let n_bytes: usize = assets::MODEL_FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(n_bytes < 12 << 20, "{n_bytes} bytes");
        let report = bundled_report();
        let now = held_out_loss(&bundled_weights(), report.options.n_held_out_documents);
        assert_eq!(now.n_tokens, report.held_out.n_tokens);
        assert!((now.floor - report.held_out.floor).abs() < 1e-9);
        assert!((now.loss - report.held_out.loss).abs() < 1e-3, "{now:?} against {:?}", report.held_out);
        assert!(now.loss > now.floor && now.loss < now.floor + 0.35, "{now:?}");
    }

    #[test]
    fn the_bundled_tokenizer_is_what_its_options_make() {
        let options = bundled_report().options;
        let text = bundled_text(Split::Train, options.n_tokenizer_documents);
        let made = train_tokenizer(&text, options.vocab_size).unwrap().to_string(true).unwrap();
        assert!(made.as_bytes() == assets::TOKENIZER);
    }

    /// Plain rounding to nearest in groups of 64 columns, asymmetric; the embedding stays.
    fn round_linears(weights: &Weights, bits: u32) -> Weights {
        let mut rounded = weights.clone();
        let linears = rounded.tensors.iter_mut().filter(|(name, _)| name.contains("_proj"));
        for group in linears.flat_map(|(_, tensor)| tensor.values.chunks_mut(64)) {
            let (low, high) = group.iter().fold((f32::MAX, f32::MIN), |(low, high), w| (low.min(*w), high.max(*w)));
            let step = ((high - low) / (2_u32.pow(bits) - 1) as f32).max(1e-8);
            group.iter_mut().for_each(|w| *w = low + ((*w - low) / step).round() * step);
        }
        rounded
    }

    /// The model is there to show what quantization does. It shows it faintly: it is large for what it has learned, and
    /// only 2 bits cost it more than a hundredth of a nat or so.
    #[test]
    fn fewer_bits_cost_more() {
        let weights = bundled_weights();
        let exact = held_out_loss(&weights, 12).loss;
        let [eight, four, three, two] =
            [8, 4, 3, 2].map(|bits| held_out_loss(&round_linears(&weights, bits), 12).loss - exact);
        println!("loss {exact:.4}; rounding to 8, 4, 3, 2 bits adds {eight:.4} {four:.4} {three:.4} {two:.4}");
        assert!(eight.abs() < 0.001, "8 bits add {eight}");
        assert!(four < three && 2.0 * three < two && 0.004 < two, "{four} {three} {two}");
    }
}
