//! The `tokenizer.ggml.*` keys of a GGUF file, made into a tokenizer again.

use std::collections::BTreeMap;
use std::path::Path;

use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use super::byte_level::{self, PreTokenizer};
use super::sentence_piece::{self, Piece};
use super::{Around, SpecialTokens, Tokenizer, sha256_hex, tokenizer_error};
use crate::load::LoadError;
use crate::load::gguf::Value;

/// `tokenizer.ggml.token_type`, as llama.cpp numbers them.
pub(super) mod token_type {
    pub(in super::super) const NORMAL: i64 = 1;
    pub(in super::super) const UNKNOWN: i64 = 2;
    pub(in super::super) const CONTROL: i64 = 3;
    pub(in super::super) const USER_DEFINED: i64 = 4;
    pub(in super::super) const UNUSED: i64 = 5;
    pub(in super::super) const BYTE: i64 = 6;
}

pub(super) fn rebuild(file: &Path, metadata: &BTreeMap<String, Value>) -> Result<Tokenizer, LoadError> {
    let keys = Keys { file, metadata };
    let tokens = keys.texts("tokenizer.ggml.tokens")?;
    let types = keys.token_types(tokens.len())?;
    let (mut inner, adds_bos_by_default) = match keys.text("tokenizer.ggml.model")? {
        "gpt2" => {
            let pre = keys.pre_tokenizer()?;
            let (vocab, merges) = (vocabulary(file, tokens)?, keys.texts("tokenizer.ggml.merges")?);
            (byte_level::build(file, pre, vocab, merges, false)?, pre.adds_bos)
        }
        "llama" => (keys.sentence_piece(tokens, &types)?, true),
        other => {
            return Err(keys.bad("tokenizer.ggml.model", format!("{other:?}, expected one of gpt2, llama")));
        }
    };
    let added = tokens.iter().zip(&types).filter_map(|(token, token_type)| match *token_type {
        token_type::CONTROL | token_type::UNKNOWN => Some(AddedToken::from(token.as_str(), true)),
        token_type::USER_DEFINED => Some(AddedToken::from(token.as_str(), false).normalized(false)),
        _ => None,
    });
    inner.add_tokens(added).map_err(|error| tokenizer_error(file, error))?;
    let bos = keys.token_id("tokenizer.ggml.bos_token_id", tokens.len())?;
    let eos = keys.token_id("tokenizer.ggml.eos_token_id", tokens.len())?;
    let adds_bos = keys.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos_by_default);
    let adds_eos = keys.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let around = Around {
        prefix: bos.filter(|_| adds_bos).into_iter().collect(),
        suffix: eos.filter(|_| adds_eos).into_iter().collect(),
    };
    let special = SpecialTokens { bos, eos, around };
    Ok(Tokenizer { inner, file: file.to_owned(), special, sha256: keys.digest()? })
}

/// Token to id; the index is the id.
pub(super) fn vocabulary(file: &Path, tokens: &[String]) -> Result<Vocab, LoadError> {
    let mut vocab = Vocab::default();
    for (id, token) in tokens.iter().enumerate() {
        let id = u32::try_from(id).map_err(|error| tokenizer_error(file, error))?;
        if let Some(twin) = vocab.insert(token.clone(), id) {
            return Err(tokenizer_error(file, format!("token {token:?} has two ids, {twin} and {id}")));
        }
    }
    Ok(vocab)
}

/// The keys of one file, and errors that name the file and the key.
struct Keys<'a> {
    file: &'a Path,
    metadata: &'a BTreeMap<String, Value>,
}

impl<'a> Keys<'a> {
    fn bad(&self, key: &str, problem: String) -> LoadError {
        LoadError::BadKey { file: self.file.to_owned(), key: key.to_owned(), problem }
    }

    fn require(&self, key: &str) -> Result<&'a Value, LoadError> {
        self.metadata.get(key).ok_or_else(|| LoadError::MissingKey { file: self.file.to_owned(), key: key.to_owned() })
    }

    fn text(&self, key: &str) -> Result<&'a str, LoadError> {
        match self.require(key)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.bad(key, "expected a text".to_owned())),
        }
    }

    fn texts(&self, key: &str) -> Result<&'a [String], LoadError> {
        match self.require(key)? {
            Value::Texts(texts) => Ok(texts),
            _ => Err(self.bad(key, "expected a list of texts".to_owned())),
        }
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(bool)) => Ok(Some(*bool)),
            Some(_) => Err(self.bad(key, "expected true or false".to_owned())),
        }
    }

    fn token_id(&self, key: &str, n_tokens: usize) -> Result<Option<u32>, LoadError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Int(id)) if usize::try_from(*id).is_ok_and(|id| id < n_tokens) => Ok(u32::try_from(*id).ok()),
            Some(value) => Err(self.bad(key, format!("{value:?}, expected the id of one of the {n_tokens} tokens"))),
        }
    }

    /// One type a token; without the key every token is a normal one.
    fn token_types(&self, n_tokens: usize) -> Result<Vec<i64>, LoadError> {
        const KEY: &str = "tokenizer.ggml.token_type";
        match self.metadata.get(KEY) {
            None => Ok(vec![token_type::NORMAL; n_tokens]),
            Some(Value::Ints(types)) if types.len() == n_tokens => Ok(types.clone()),
            Some(_) => Err(self.bad(KEY, format!("expected a list of {n_tokens} integers, one a token"))),
        }
    }

    fn pre_tokenizer(&self) -> Result<&'static PreTokenizer, LoadError> {
        const KEY: &str = "tokenizer.ggml.pre";
        let name = self.text(KEY)?;
        PreTokenizer::by_name(name)
            .ok_or_else(|| self.bad(KEY, format!("{name:?}, expected one of {}", PreTokenizer::known())))
    }

    fn sentence_piece(&self, tokens: &[String], types: &[i64]) -> Result<tokenizers::Tokenizer, LoadError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let scores = match self.require(SCORES)? {
            Value::Floats(scores) if scores.len() == tokens.len() => scores,
            _ => {
                return Err(self.bad(SCORES, format!("expected a list of {} numbers, one a token", tokens.len())));
            }
        };
        let pieces: Vec<Piece> = tokens
            .iter()
            .zip(scores)
            .zip(types)
            .map(|((text, score), token_type)| Piece {
                text: text.clone(),
                score: *score,
                mergeable: matches!(*token_type, token_type::NORMAL | token_type::USER_DEFINED),
            })
            .collect();
        let unknown = types.iter().position(|token_type| *token_type == token_type::UNKNOWN);
        let adds_space_prefix = self.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        sentence_piece::build(self.file, &pieces, unknown.map(|id| tokens[id].as_str()), adds_space_prefix)
    }

    /// Digest of every tokenizer key but the chat template, which changes no id; as JSON, so that it does not
    /// depend on how the file encodes numbers and texts.
    fn digest(&self) -> Result<String, LoadError> {
        let relevant: BTreeMap<&String, &Value> =
            self.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.ggml.")).collect();
        let json = serde_json::to_vec(&relevant).map_err(|error| tokenizer_error(self.file, error))?;
        Ok(sha256_hex(&json))
    }
}
