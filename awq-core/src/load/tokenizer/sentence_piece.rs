//! SentencePiece: pieces with scores in place of merges, spaces spelled `▁`, and bytes as a last resort.

mod charsmap;
mod model;
mod proto;
#[cfg(test)]
mod tests;

use std::path::Path;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace};

pub(super) use self::model::{ModelFile, SpacePrefix};
use super::tokenizer_error;
use crate::load::LoadError;

/// How SentencePiece spells a space.
const SPACE: &str = "\u{2581}";

/// A piece, in the order of ids.
pub(super) struct Piece {
    pub(super) text: String,
    /// The higher, the earlier two neighbours are merged into this piece.
    pub(super) score: f32,
    /// Whether text can become this piece: not a control token, not a byte.
    pub(super) mergeable: bool,
}

/// A SentencePiece tokenizer over `pieces`. `unknown` stands for characters that neither pieces nor byte tokens cover.
pub(super) fn build(
    file: &Path,
    pieces: &[Piece],
    unknown: Option<&str>,
    adds_space_prefix: bool,
) -> Result<tokenizers::Tokenizer, LoadError> {
    let texts: Vec<String> = pieces.iter().map(|piece| piece.text.clone()).collect();
    let vocab = super::from_gguf::vocabulary(file, &texts)?;
    let merges = merges_by_score(pieces, &vocab);
    let building = |error: tokenizers::Error| tokenizer_error(file, error);

    let mut model = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown.to_owned());
    }
    let mut tokenizer = tokenizers::Tokenizer::new(model.build().map_err(building)?);

    let mut normalizers: Vec<NormalizerWrapper> = vec![Replace::new(" ", SPACE).map_err(building)?.into()];
    if adds_space_prefix {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(building)?;
    tokenizer.with_decoder(Some(decoder(adds_space_prefix).map_err(building)?));
    Ok(tokenizer)
}

/// Spaces and bytes again, without the space that was put before the text.
fn decoder(adds_space_prefix: bool) -> Result<DecoderWrapper, tokenizers::Error> {
    let mut decoders = vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if adds_space_prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    Ok(Decoders::new(decoders).into())
}

/// SentencePiece merges whichever neighbours make the piece of the highest score; as ranked merges these are all
/// the ways to split each piece into two, in order of falling score.
fn merges_by_score(pieces: &[Piece], vocab: &Vocab) -> Vec<(String, String)> {
    let mut ranked = Vec::new();
    for (id, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.mergeable) {
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if vocab.contains_key(left) && vocab.contains_key(right) {
                ranked.push((piece.score, id, left, right));
            }
        }
    }
    // Ties as in the transformers converter: the longer left part first; then by id, so that the order is total.
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.2.len().cmp(&a.2.len())).then(a.1.cmp(&b.1)));
    ranked.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}
