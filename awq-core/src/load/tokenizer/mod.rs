//! Text to token ids and back, from a `tokenizer.json` or rebuilt from GGUF metadata.

mod byte_level;
mod from_gguf;
mod sentence_piece;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokenizers::processors::template::TemplateProcessing;

use super::gguf::Value;
use super::{LoadError, ModelConfig, read_json};

/// A model's tokenizer.
///
/// Ids are those of the reference implementation (Hugging Face `tokenizers`): special tokens that are spelled out
/// in a text (`<|endoftext|>`) become their ids, as there.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: PathBuf,
    special: SpecialTokens,
    sha256: String,
}

/// The tokens around a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SpecialTokens {
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a Hugging Face `folder`. The BOS and EOS tokens are those of
    /// `tokenizer_config.json` where it names them, else those of the model's configuration.
    ///
    /// # Errors
    /// A missing or malformed file, or a named token that the vocabulary lacks.
    pub fn from_folder(folder: &Path, config: &ModelConfig) -> Result<Self, LoadError> {
        let file = folder.join("tokenizer.json");
        let bytes = std::fs::read(&file).map_err(|source| LoadError::Open { file: file.clone(), source })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| tokenizer_error(&file, error))?;
        // Some files carry the truncation of their training script; a silently shortened text is never wanted here.
        inner.with_truncation(None).map_err(|error| tokenizer_error(&file, error))?;
        inner.with_padding(None);

        let config_file = folder.join("tokenizer_config.json");
        let names: Json = if config_file.exists() { read_json(&config_file)? } else { Json::Null };
        let named = |key: &str| named_token(&inner, &config_file, &names, key);
        let bos = named("bos_token")?.or(config.bos_id);
        let eos = named("eos_token")?.or(config.eos_ids.first().copied());
        let adds_bos = bos.is_some() && prepended_token(&inner, &file)? == bos;
        Ok(Self { inner, file, special: SpecialTokens { bos, eos, adds_bos }, sha256: sha256_hex(&bytes) })
    }

    /// Rebuilds the tokenizer that `file` describes in its metadata.
    pub(super) fn from_gguf(file: &Path, metadata: &BTreeMap<String, Value>) -> Result<Self, LoadError> {
        from_gguf::rebuild(file, metadata)
    }

    /// The ids of `text`. Adds no BOS or EOS.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LoadError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| tokenizer_error(&self.file, error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens spelled out.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, LoadError> {
        self.inner.decode(ids, false).map_err(|error| tokenizer_error(&self.file, error))
    }

    /// The tokenizer as a `tokenizer.json`, which puts BOS before a text where [`Self::adds_bos`] says so.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] if the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String, LoadError> {
        let mut inner = self.inner.clone();
        if let Some(bos) = self.special.bos.filter(|_| self.special.adds_bos)
            && prepended_token(&inner, &self.file)? != Some(bos)
        {
            let text = self.token(bos).unwrap_or_default();
            let template = TemplateProcessing::builder()
                .try_single(vec![text.clone(), "$A".to_owned()])
                .map_err(|error| tokenizer_error(&self.file, error))?
                .special_tokens(vec![(text, bos)])
                .build()
                .map_err(|error| tokenizer_error(&self.file, error))?;
            inner.with_post_processor(Some(template));
        }
        inner.to_string(false).map_err(|error| tokenizer_error(&self.file, error))
    }

    /// The spelling of a token in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token that is spelled so in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The beginning-of-sequence token, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The end-of-sequence token, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// Whether the reference implementation puts BOS before a text unless told otherwise.
    pub fn adds_bos(&self) -> bool {
        self.special.adds_bos
    }

    /// Highest token id + 1.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The file that describes the tokenizer.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Hex digest of what determines the ids: the bytes of `tokenizer.json`, or the tokenizer keys of a GGUF file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// The id of the token that `names[key]` spells: a text, or an object with the text under `content`.
fn named_token(inner: &tokenizers::Tokenizer, file: &Path, names: &Json, key: &str) -> Result<Option<u32>, LoadError> {
    let Some(token) = names.get(key).map(|value| value.get("content").unwrap_or(value)).and_then(Json::as_str) else {
        return Ok(None);
    };
    inner.token_to_id(token).map(Some).ok_or_else(|| LoadError::BadKey {
        file: file.to_owned(),
        key: key.to_owned(),
        problem: format!("{token:?}, expected a token of tokenizer.json"),
    })
}

/// The token that the post-processor puts before a text, if it puts one there.
fn prepended_token(inner: &tokenizers::Tokenizer, file: &Path) -> Result<Option<u32>, LoadError> {
    let encode =
        |add_special_tokens| inner.encode_fast("a", add_special_tokens).map_err(|error| tokenizer_error(file, error));
    let (bare, dressed) = (encode(false)?, encode(true)?);
    let first = dressed.get_ids().first();
    Ok(if first == bare.get_ids().first() { None } else { first.copied() })
}

fn tokenizer_error(file: &Path, error: impl std::fmt::Display) -> LoadError {
    LoadError::Tokenizer { file: file.to_owned(), problem: error.to_string() }
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
