//! The tokenizer of the bundled model: byte-level BPE, so that every text has tokens, fitted to the bundled language.

use anyhow::{Context, anyhow};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    TokenizerBuilder,
};

/// Text of the token that stands before a text or a window; never part of a text.
pub const BOS: &str = "<|begin|>";

/// The line feed that ends each document also ends a generated text. In byte-level BPE's alphabet it is this letter.
pub(super) const EOS: &str = "Ċ";

/// Fits a tokenizer of at most `vocab_size` tokens to `text`. The same text gives the same tokenizer. It adds no
/// special token by itself.
///
/// # Errors
/// Where `vocab_size` has no room for the 256 bytes and [`BOS`].
pub fn train_tokenizer(text: &str, vocab_size: usize) -> anyhow::Result<Tokenizer> {
    anyhow::ensure!(
        vocab_size > 256,
        "a byte-level tokenizer needs a vocabulary of at least 257 tokens, not {vocab_size}"
    );
    // No space is put before the first word: decoding then gives back the exact text.
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer =
        TokenizerBuilder::<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(byte_level)))
            .with_post_processor(None)
            .with_decoder(Some(DecoderWrapper::ByteLevel(byte_level)))
            .build()
            .map_err(|error| anyhow!(error))
            .context("building the bundled tokenizer")?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(BOS, true)])
        .build();
    tokenizer
        .train(&mut trainer, text.lines().map(|line| format!("{line}\n")))
        .map_err(|error| anyhow!(error))
        .context("fitting the bundled tokenizer")?;
    let json = tokenizer.to_string(false).map_err(|error| anyhow!(error))?;
    json.parse::<Tokenizer>().map_err(|error| anyhow!(error)).context("reading the fitted tokenizer back")
}

/// Token ids of `text`, without any special token.
///
/// # Errors
/// What the tokenizer reports.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|error| anyhow!(error)).context("tokenizing")?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bundled::{Split, bundled_text};

    #[track_caller]
    fn check_round_trip(tokenizer: &Tokenizer, text: &str) -> usize {
        let ids = encode(tokenizer, text).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        ids.len()
    }

    #[test]
    fn texts_round_trip_and_words_are_mostly_one_token() {
        let tokenizer = train_tokenizer(&bundled_text(Split::Train, 400), 1024).unwrap();
        let text = bundled_text(Split::Test, 20);
        let n_tokens = check_round_trip(&tokenizer, &text);
        assert!(n_tokens < 2 * text.split_whitespace().count(), "{n_tokens} tokens");
        check_round_trip(&tokenizer, " Räksmörgås 7 \t\n\n  𝛼");
        check_round_trip(&tokenizer, "");
    }

    #[test]
    fn fitting_is_deterministic() {
        let text = bundled_text(Split::Train, 100);
        let json = |vocab_size| train_tokenizer(&text, vocab_size).unwrap().to_string(false).unwrap();
        assert_eq!(json(600), json(600));
        assert_eq!(
            train_tokenizer(&text, 256).unwrap_err().to_string(),
            "a byte-level tokenizer needs a vocabulary of at least 257 tokens, not 256"
        );
    }

    #[test]
    fn each_document_ends_with_the_end_token() {
        let tokenizer = train_tokenizer(&bundled_text(Split::Train, 100), 600).unwrap();
        let eos = tokenizer.token_to_id(EOS).unwrap();
        let ids = encode(&tokenizer, &bundled_text(Split::Test, 5)).unwrap();
        assert_eq!(ids.iter().filter(|id| **id == eos).count(), 5);
        assert_eq!(ids.last(), Some(&eos));
        assert_eq!(tokenizer.token_to_id(BOS), Some(0));
    }
}
