//! Typed access to the keys of a JSON object, with errors that name the file and the key.

use std::path::Path;

use serde_json::Value as Json;

use super::LoadError;

/// No dimension of a real model comes near this; a larger one is a damaged file, and products of two stay in range.
const MAX_DIMENSION: u64 = 1 << 31;
/// Each block, head and rotated channel of a model takes memory before a tensor is read. Real models have some hundreds.
const MAX_COUNTED: usize = 1 << 14;

/// Keys of one JSON object, and errors that name the file and the key.
pub(crate) struct Keys<'a> {
    pub(crate) file: &'a Path,
    pub(crate) json: &'a Json,
}

impl Keys<'_> {
    pub(super) fn missing(&self, key: &str) -> LoadError {
        LoadError::MissingKey { file: self.file.to_owned(), key: key.to_owned() }
    }

    pub(super) fn bad(&self, key: &str, problem: String) -> LoadError {
        LoadError::BadKey { file: self.file.to_owned(), key: key.to_owned(), problem }
    }

    /// A present key that is not `null`.
    pub(super) fn get(&self, key: &str) -> Option<&Json> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong_type(&self, key: &str, value: &Json, expected: &str) -> LoadError {
        self.bad(key, format!("{value}, expected {expected}"))
    }

    /// The first of `keys` that is present; they are spellings of one fact.
    pub(super) fn dimension(&self, keys: &[&str]) -> Result<usize, LoadError> {
        for key in keys {
            if let Some(dimension) = self.optional_dimension(key)? {
                return Ok(dimension);
            }
        }
        Err(self.missing(keys[0]))
    }

    pub(super) fn optional_dimension(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(dimension) if (1..=MAX_DIMENSION).contains(&dimension) => Ok(Some(dimension as usize)),
            _ => Err(self.wrong_type(key, value, "a positive integer of at most 2^31")),
        }
    }

    /// A number of things that each take memory.
    pub(super) fn counted(&self, key: &str, n: usize) -> Result<usize, LoadError> {
        match n <= MAX_COUNTED {
            true => Ok(n),
            false => Err(self.bad(key, format!("{n}, expected at most {MAX_COUNTED}, which no model comes near"))),
        }
    }

    /// Absent keys stand for `default`; `null` does not.
    pub(super) fn dimension_or(&self, keys: &[&str], default: usize) -> Result<usize, LoadError> {
        match keys.iter().any(|key| self.json.get(key).is_some()) {
            false => Ok(default),
            true => self.dimension(keys),
        }
    }

    pub(super) fn optional_float(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(float) if float.is_finite() && float > 0.0 => Ok(Some(float)),
            _ => Err(self.wrong_type(key, value, "a positive number")),
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<f64, LoadError> {
        self.optional_float(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.get(key)
            .map(|value| value.as_bool().ok_or_else(|| self.wrong_type(key, value, "true or false")))
            .transpose()
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong_type(key, value, "a text"))).transpose()
    }

    /// # Errors
    /// Scores that are not divided by the root of the head width; 0 stands for that.
    pub(super) fn check_attention_scale(&self, key: &str, head_dim: usize) -> Result<(), LoadError> {
        let Some(value) = self.get(key) else { return Ok(()) };
        let expected = (head_dim as f64).sqrt().recip();
        match value.as_f64() {
            Some(scale) if scale == 0.0 || (scale / expected - 1.0).abs() < 1e-6 => Ok(()),
            _ => Err(self.bad(key, format!("{value}, expected 1 / sqrt({head_dim}): other scales are not supported"))),
        }
    }

    /// One id or a list of them.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let ids = match value {
            Json::Array(ids) => ids.as_slice(),
            id => std::slice::from_ref(id),
        };
        ids.iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong_type(key, value, "a token id or a list of them"))
    }
}
