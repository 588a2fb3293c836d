//! What the files beside a vocabulary say of its tokens: `tokenizer_config.json`, `special_tokens_map.json` and
//! `added_tokens.json`, with the precedence that transformers gives them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tokenizers::AddedToken;

use super::tokenizer_error;
use crate::load::{LoadError, read_json};

/// Settings of a tokenizer that has no `tokenizer.json`.
pub(super) struct Settings {
    /// `tokenizer_config.json`, which may not be there.
    file: PathBuf,
    config: Json,
    /// `special_tokens_map.json`, which counts before the configuration where that does not list the added tokens itself.
    map: Json,
    /// Tokens beyond the vocabulary, or with a meaning of their own in it, by id.
    pub(super) added: BTreeMap<u32, AddedToken>,
    /// Whether all tokens are looked for in the text as it stands, before anything in it is replaced.
    is_literal: bool,
}

impl Settings {
    /// # Errors
    /// A file that is malformed.
    pub(super) fn read(folder: &Path) -> Result<Self, LoadError> {
        let optional = |name: &str| -> Result<Json, LoadError> {
            let file = folder.join(name);
            if file.exists() { read_json(&file) } else { Ok(Json::Null) }
        };
        let file = folder.join("tokenizer_config.json");
        let config = optional("tokenizer_config.json")?;
        let mut settings = Self { file, config, map: Json::Null, added: BTreeMap::new(), is_literal: false };
        if let Some(listed) = settings.config.get("added_tokens_decoder") {
            settings.added = settings.decoded(listed)?;
            return Ok(settings);
        }
        settings.map = optional("special_tokens_map.json")?;
        let file = folder.join("added_tokens.json");
        if file.exists() {
            let ids: BTreeMap<String, u32> = read_json(&file)?;
            let special: Vec<String> = settings.special().into_iter().map(|token| token.content).collect();
            let token = |(text, id): (String, u32)| (id, AddedToken::from(text.as_str(), special.contains(&text)));
            settings.added = ids.into_iter().map(token).collect();
        }
        Ok(settings)
    }

    /// The same tokens, looked for in the text as it stands: where a space is put before every text, a token would get one too.
    pub(super) fn literally(mut self) -> Self {
        self.is_literal = true;
        self.added.values_mut().for_each(|token| token.normalized = false);
        self
    }

    /// The key `added_tokens_decoder`: ids, as texts, and tokens.
    fn decoded(&self, listed: &Json) -> Result<BTreeMap<u32, AddedToken>, LoadError> {
        let wrong = || self.bad("added_tokens_decoder", "expected tokens by their ids".to_owned());
        let token = |(id, token): (&String, &Json)| {
            let special = token.get("special").and_then(Json::as_bool).unwrap_or(false);
            Ok((id.parse().map_err(|_| wrong())?, added_token(token, special).ok_or_else(wrong)?))
        };
        listed.as_object().ok_or_else(wrong)?.iter().map(token).collect()
    }

    /// The class of the tokenizer, without the `Fast` that some names end in.
    pub(super) fn class(&self) -> Option<&str> {
        self.config.get("tokenizer_class")?.as_str().map(|class| class.trim_end_matches("Fast"))
    }

    /// # Errors
    /// A key that is no truth value.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.config.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.bad(key, format!("{other}, expected true or false"))),
        }
    }

    /// The token of a name such as `bos_token`.
    pub(super) fn named(&self, name: &str) -> Option<AddedToken> {
        [&self.map, &self.config].into_iter().find_map(|json| self.special_token(json.get(name)?))
    }

    /// All tokens with a name, and those that are listed as special without one.
    pub(super) fn special(&self) -> Vec<AddedToken> {
        let names = [&self.map, &self.config].into_iter().filter_map(Json::as_object).flat_map(|object| object.keys());
        let mut named: Vec<&String> = names.filter(|name| name.ends_with("_token")).collect();
        named.sort();
        named.dedup();
        let mut tokens: Vec<AddedToken> = named.into_iter().filter_map(|name| self.named(name)).collect();
        for json in [&self.map, &self.config] {
            let lists = ["additional_special_tokens", "extra_special_tokens"].into_iter();
            let more = lists.filter_map(|key| json.get(key)?.as_array()).flatten();
            tokens.extend(more.filter_map(|token| self.special_token(token)));
        }
        tokens
    }

    fn special_token(&self, value: &Json) -> Option<AddedToken> {
        let token = added_token(value, true)?;
        Some(AddedToken { normalized: token.normalized && !self.is_literal, ..token })
    }

    /// Adds the tokens to a tokenizer: those with an id, and `special` ones that have none of their own.
    ///
    /// # Errors
    /// A token that gets another id than the one it is listed with.
    pub(super) fn add_to(
        &self,
        tokenizer: &mut tokenizers::Tokenizer,
        special: Vec<AddedToken>,
    ) -> Result<(), LoadError> {
        let adding = |error: tokenizers::Error| tokenizer_error(&self.file, error);
        let is_special = |token: &AddedToken| token.special || special.iter().any(|one| one.content == token.content);
        let listed = self.added.values().map(|token| AddedToken { special: is_special(token), ..token.clone() });
        tokenizer.add_tokens(listed).map_err(adding)?;
        let is_listed = |token: &AddedToken| self.added.values().any(|listed| listed.content == token.content);
        tokenizer.add_tokens(special.iter().filter(|token| !is_listed(token)).cloned()).map_err(adding)?;
        for (id, token) in &self.added {
            let found = tokenizer.token_to_id(&token.content);
            if found != Some(*id) {
                let found = found.map_or("none".to_owned(), |found| found.to_string());
                let problem =
                    format!("added token {:?} is listed with id {id}, the vocabulary gives it {found}", token.content);
                return Err(tokenizer_error(&self.file, problem));
            }
        }
        Ok(())
    }

    /// An error of a key of `tokenizer_config.json`.
    pub(super) fn bad(&self, key: &str, problem: String) -> LoadError {
        LoadError::BadKey { file: self.file.clone(), key: key.to_owned(), problem }
    }
}

/// A token that is a text, or an object with the text under `content` and how it is found.
fn added_token(value: &Json, special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, special));
    }
    let is_set = |key: &str, default: bool| value.get(key).and_then(Json::as_bool).unwrap_or(default);
    let token = AddedToken::from(value.get("content")?.as_str()?, special);
    Some(
        token
            .lstrip(is_set("lstrip", false))
            .rstrip(is_set("rstrip", false))
            .single_word(is_set("single_word", false))
            .normalized(is_set("normalized", !special)),
    )
}
