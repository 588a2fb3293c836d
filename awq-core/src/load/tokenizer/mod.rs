//! Text to token ids and back, from a `tokenizer.json`, from the files that came before it, or rebuilt from GGUF metadata.

mod byte_level;
mod from_gguf;
mod guard;
mod kind;
mod older_files;
mod sentence_piece;
mod settings;
#[cfg(test)]
mod tests;
mod to_gguf;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use tokenizers::processors::template::TemplateProcessing;

use self::guard::guarded;
pub use self::older_files::tokenizer_files;
use super::gguf::Value;
use super::{LoadError, ModelConfig, read_json, without_mark};

/// A model's tokenizer.
///
/// Ids are those of the reference implementation (Hugging Face `tokenizers`) with the `tokenizer.json` as it stands:
/// special tokens that are spelled out in a text (`<|endoftext|>`) become their ids, as there. For some tokenizer classes
/// `transformers` replaces parts of the file (its pre-tokenizer, say) when it loads it; that is not followed.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: PathBuf,
    special: SpecialTokens,
    sha256: String,
}

/// The tokens around a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SpecialTokens {
    bos: Option<u32>,
    eos: Option<u32>,
    around: Around,
}

/// What encoding with special tokens puts before and after the ids of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Around {
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a Hugging Face `folder`. The BOS and EOS tokens are those of
    /// `tokenizer_config.json` where it names them, else those of the model's configuration; but a token that the file's
    /// post-processor puts first is the BOS token, whatever the configuration files say.
    ///
    /// Without that file, `vocab.json` and `merges.txt` are read, or a SentencePiece `tokenizer.model`; ids are then those of
    /// transformers' class for it, and of SentencePiece.
    ///
    /// # Errors
    /// A missing or malformed file, or a named token that the vocabulary lacks.
    pub fn from_folder(folder: &Path, config: &ModelConfig) -> Result<Self, LoadError> {
        let file = folder.join("tokenizer.json");
        if !file.exists()
            && let Some(tokenizer) = older_files::read(folder, config)?
        {
            return tokenizer.with_plausible_ids();
        }
        let bytes = std::fs::read(&file).map_err(|source| LoadError::Open { file: file.clone(), source })?;
        let text = without_mark(&file, &bytes)?;
        let mut inner = guarded(&file, || tokenizers::Tokenizer::from_bytes(text))?;
        // Some files carry the truncation of their training script; a silently shortened text is never wanted here.
        inner.with_truncation(None).map_err(|error| tokenizer_error(&file, error))?;
        inner.with_padding(None);

        let config_file = folder.join("tokenizer_config.json");
        let names: Json = if config_file.exists() { read_json(&config_file)? } else { Json::Null };
        let named = |key: &str| named_token(&inner, &config_file, &names, key);
        let around = tokens_around(&inner, &file)?;
        let named_bos = named("bos_token")?;
        let bos = around.prefix.first().copied().or(named_bos).or(config.bos_id);
        let eos = named("eos_token")?.or(config.eos_ids.first().copied());
        let special = SpecialTokens { bos, eos, around };
        Self { inner, file, special, sha256: sha256_hex(&bytes) }.with_plausible_ids()
    }

    /// Refuses ids that no vocabulary reaches: the library counts up to the highest where it writes one.
    fn with_plausible_ids(self) -> Result<Self, LoadError> {
        match self.vocab_size() {
            size if size > MOST_TOKENS => {
                let problem = format!("a token has the id {}; ids below {MOST_TOKENS} are read", size - 1);
                Err(tokenizer_error(&self.file, problem))
            }
            _ => Ok(self),
        }
    }

    /// Rebuilds the tokenizer that `file` describes in its metadata.
    pub(crate) fn from_gguf(file: &Path, metadata: &BTreeMap<String, Value>) -> Result<Self, LoadError> {
        from_gguf::rebuild(file, metadata)
    }

    /// The ids of `text`. Adds no BOS or EOS.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] if the tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LoadError> {
        Ok(guarded(&self.file, || self.inner.encode_fast(text, false))?.get_ids().to_vec())
    }

    /// The ids of `text` with what the tokenizer puts around a text unless told otherwise: a BOS token before it, say.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>, LoadError> {
        Ok(self.surround(self.encode(text)?))
    }

    /// As [`Self::encode_with_special`], but special tokens that are spelled out in `text` stay text, as in llama.cpp with
    /// `add_special = true` and `parse_special = false`. Added tokens that are not special are still found there.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_literally_with_special(&self, text: &str) -> Result<Vec<u32>, LoadError> {
        let mut inner = self.inner.clone();
        inner.set_encode_special_tokens(true);
        let encoding = guarded(&self.file, || inner.encode_fast(text, false))?;
        Ok(self.surround(encoding.get_ids().to_vec()))
    }

    /// The ids of `text` as the beginning of a longer one: with what the tokenizer puts before a text, not after.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, LoadError> {
        Ok([self.special.around.prefix.clone(), self.encode(text)?].concat())
    }

    fn surround(&self, ids: Vec<u32>) -> Vec<u32> {
        let Around { prefix, suffix } = &self.special.around;
        [prefix.as_slice(), &ids, suffix].concat()
    }

    /// The text of `ids`, special tokens spelled out.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, LoadError> {
        guarded(&self.file, || self.inner.decode(ids, false))
    }

    /// The tokenizer as a `tokenizer.json`, which puts around a text what [`Self::encode_with_special`] does.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] if the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String, LoadError> {
        let mut inner = self.inner.clone();
        let around = &self.special.around;
        if tokens_around(&inner, &self.file)? != *around {
            let spelled = |ids: &[u32]| -> Vec<(String, u32)> {
                ids.iter().filter_map(|&id| Some((self.token(id)?, id))).collect()
            };
            let (before, after) = (spelled(&around.prefix), spelled(&around.suffix));
            let texts = |tokens: &[(String, u32)]| tokens.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
            let template = TemplateProcessing::builder()
                .try_single([texts(&before), vec!["$A".to_owned()], texts(&after)].concat())
                .map_err(|error| tokenizer_error(&self.file, error))?
                .special_tokens([before, after].concat())
                .build()
                .map_err(|error| tokenizer_error(&self.file, error))?;
            inner.with_post_processor(Some(template));
        }
        guarded(&self.file, || inner.to_string(false))
    }

    /// The spelling of a token in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token that is spelled so in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is a token that stands for itself in a text, as markers of turns do.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
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
        self.special.bos.is_some() && self.special.around.prefix.first().copied() == self.special.bos
    }

    /// Whether the reference implementation puts tokens (an EOS, say) after a text unless told otherwise.
    pub fn adds_suffix(&self) -> bool {
        !self.special.around.suffix.is_empty()
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

/// Ids end below this. The largest vocabularies have some 10^5 tokens.
const MOST_TOKENS: usize = 1 << 24;

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

/// The tokens that the post-processor puts around a text.
fn tokens_around(inner: &tokenizers::Tokenizer, file: &Path) -> Result<Around, LoadError> {
    let encode = |adds_special_tokens| guarded(file, || inner.encode_fast("a", adds_special_tokens));
    let (bare, dressed) = (encode(false)?, encode(true)?);
    let (bare, dressed) = (bare.get_ids(), dressed.get_ids());
    // A vocabulary that cannot spell the probe leaves nothing to look for: all there is stands before a text.
    let start = match bare {
        [] => dressed.len(),
        _ => dressed.windows(bare.len()).position(|ids| ids == bare).ok_or_else(|| {
            tokenizer_error(file, "its post-processor changes a text's own tokens, which is not supported")
        })?,
    };
    Ok(Around { prefix: dressed[..start].to_vec(), suffix: dressed[start + bare.len()..].to_vec() })
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
