//! A tokenizer from a SentencePiece model file, `tokenizer.model`: ids are those of SentencePiece, with the model's own settings.
//!
//! As in transformers, tokens that are spelled out in a text (`<s>`) become their ids, and the text on each side of one is a text
//! of its own. Two things are the library's (`tokenizers`) and not SentencePiece's: characters are replaced cluster by cluster, so
//! that a mark behind a character that it does not compose with may be lost, and a unigram model takes another one of two
//! segmentations that score the same.

use std::path::Path;

use tokenizers::AddedToken;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Prepend, Replace};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::super::tokenizer_error;
use super::charsmap;
use super::proto::{Algorithm, MAX_BYTES, Model, PieceKind};
use super::{Piece, SPACE, decoder, merges_by_score};
use crate::load::LoadError;

/// A model file, read.
pub(in crate::load::tokenizer) struct ModelFile<'a> {
    file: &'a Path,
    model: Model,
    /// The file's content.
    pub(in crate::load::tokenizer) bytes: Vec<u8>,
}

/// Where a space is put before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load::tokenizer) enum SpacePrefix {
    /// Before every text, those between special tokens included, and whether or not it begins with one.
    EveryText,
    /// Before the first alone, unless it begins with one: what transformers calls not legacy.
    FirstText,
    /// Nowhere, whatever the model says.
    Never,
}

impl<'a> ModelFile<'a> {
    /// # Errors
    /// A file that cannot be read, or is no SentencePiece model that is supported.
    pub(in crate::load::tokenizer) fn read(file: &'a Path) -> Result<Self, LoadError> {
        let opening = |source| LoadError::Open { file: file.to_owned(), source };
        let n_bytes = std::fs::metadata(file).map_err(opening)?.len();
        if n_bytes > MAX_BYTES {
            return Err(tokenizer_error(file, format!("{n_bytes} bytes, at most {MAX_BYTES} are read")));
        }
        let bytes = std::fs::read(file).map_err(opening)?;
        let model = Model::parse(&bytes).map_err(|problem| tokenizer_error(file, problem))?;
        if !model.charsmap.is_empty() && !charsmap::is_sound(&model.charsmap) {
            return Err(tokenizer_error(file, "its table of characters is damaged"));
        }
        Ok(Self { file, model, bytes })
    }

    /// The tokens that begin and end a text, and the one for what cannot be spelled, under the names of `tokenizer_config.json`.
    pub(in crate::load::tokenizer) fn named(&self) -> Vec<(&'static str, String)> {
        let ids = [
            ("bos_token", self.model.bos_id),
            ("eos_token", self.model.eos_id),
            ("unk_token", Some(self.model.unk_id)),
        ];
        ids.into_iter().filter_map(|(name, id)| Some((name, self.model.pieces[id?].text.clone()))).collect()
    }

    /// Tokens that no text becomes by its letters.
    pub(in crate::load::tokenizer) fn control(&self) -> impl Iterator<Item = AddedToken> {
        let control = self.model.pieces.iter().filter(|piece| piece.kind == PieceKind::Control);
        control.map(|piece| AddedToken::from(piece.text.as_str(), true))
    }

    /// Calls the piece `id` by another name, unless that is the name of a piece that keeps it (`others`: the ids that are named
    /// anew). Some models have places that `tokenizer_config.json` fills.
    pub(in crate::load::tokenizer) fn rename(&mut self, id: u32, name: &str, others: &dyn Fn(u32) -> bool) {
        let holder = self.model.pieces.iter().zip(0..).find(|(piece, _)| piece.text == name);
        if holder.is_some_and(|(_, holder)| !others(holder)) {
            return;
        }
        if let Some(piece) = self.model.pieces.get_mut(id as usize) {
            name.clone_into(&mut piece.text);
        }
    }

    /// The tokenizer, without added tokens.
    ///
    /// # Errors
    /// A vocabulary that contradicts itself.
    pub(in crate::load::tokenizer) fn build(&self, prefix: SpacePrefix) -> Result<tokenizers::Tokenizer, LoadError> {
        let building = |error: tokenizers::Error| tokenizer_error(self.file, error);
        let prefix = if self.model.add_dummy_prefix { prefix } else { SpacePrefix::Never };
        let mut tokenizer = tokenizers::Tokenizer::new(self.pieces()?);
        let normalizers = Normalizers::new(self.normalizers(prefix).map_err(building)?);
        tokenizer.with_normalizer(Some(normalizers)).map_err(building)?;
        let mut splits: Vec<PreTokenizerWrapper> = Vec::new();
        if prefix == SpacePrefix::FirstText {
            splits.push(Metaspace::new(SPACE_CHAR, PrependScheme::First, false).into());
        }
        if let Some(pattern) = self.user_defined() {
            let whole = Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false);
            splits.push(whole.map_err(building)?.into());
        }
        if !splits.is_empty() {
            tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(splits)));
        }
        let decoder: DecoderWrapper = decoder(prefix != SpacePrefix::Never).map_err(building)?;
        tokenizer.with_decoder(Some(decoder));
        Ok(tokenizer)
    }

    fn pieces(&self) -> Result<ModelWrapper, LoadError> {
        let building = |error: tokenizers::Error| tokenizer_error(self.file, error);
        let model = &self.model;
        let texts: Vec<String> = model.pieces.iter().map(|piece| piece.text.clone()).collect();
        // Refuses a piece that is there twice.
        let vocab = super::super::from_gguf::vocabulary(self.file, &texts)?;
        if model.algorithm == Algorithm::Unigram {
            let scored = model.pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score))).collect();
            return Ok(Unigram::from(scored, Some(model.unk_id), model.byte_fallback).map_err(building)?.into());
        }
        let pieces: Vec<Piece> = model
            .pieces
            .iter()
            .map(|piece| Piece {
                text: piece.text.clone(),
                score: piece.score,
                mergeable: piece.kind == PieceKind::Normal,
            })
            .collect();
        let merges = merges_by_score(&pieces, &vocab);
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .unk_token(texts[model.unk_id].clone())
            .fuse_unk(true)
            .byte_fallback(model.byte_fallback)
            // What is split off as a user-defined piece is that piece, which no merge makes.
            .ignore_merges(self.user_defined().is_some());
        Ok(bpe.build().map_err(building)?.into())
    }

    /// In SentencePiece's order.
    fn normalizers(&self, prefix: SpacePrefix) -> Result<Vec<NormalizerWrapper>, tokenizers::Error> {
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        if !self.model.charsmap.is_empty() {
            normalizers.push(Precompiled::from(&self.model.charsmap)?.into());
        }
        if self.model.remove_extra_whitespaces {
            // Spaces alone: SentencePiece leaves line breaks as they are.
            let at_ends = ReplacePattern::Regex(r"\A +| +\z".to_owned());
            let several = ReplacePattern::Regex(" {2,}".to_owned());
            normalizers.push(Replace::new(at_ends, "")?.into());
            normalizers.push(Replace::new(several, " ")?.into());
        }
        if self.model.escape_whitespaces {
            normalizers.push(Replace::new(" ", SPACE)?.into());
        }
        if prefix == SpacePrefix::EveryText {
            normalizers.push(Prepend::new(SPACE.to_owned()).into());
        }
        Ok(normalizers)
    }

    /// A regular expression of the pieces that a text is cut at before all else, the longest first; `None` without any.
    fn user_defined(&self) -> Option<String> {
        let defined = self.model.pieces.iter().filter(|piece| piece.kind == PieceKind::UserDefined);
        let mut texts: Vec<&str> = defined.map(|piece| piece.text.as_str()).collect();
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let escaped: Vec<String> = texts.into_iter().map(escape).collect();
        (!escaped.is_empty()).then(|| escaped.join("|"))
    }
}

const SPACE_CHAR: char = '\u{2581}';

/// `text` as a regular expression.
fn escape(text: &str) -> String {
    let special = |letter: char| r"\.+*?()|[]{}^$".contains(letter);
    text.chars().flat_map(|letter| special(letter).then_some('\\').into_iter().chain([letter])).collect()
}
