//! [`Class`]: what a transformers class takes for granted where its `config.json` is silent.

use super::LoadError;
use super::keys::Keys;

/// A class of transformers. Values of absent keys are those of transformers 5.24.
#[derive(Debug)]
pub(crate) struct Class {
    /// Its name, as `architectures` has it.
    pub(crate) name: &'static str,
    /// `model_type` of its configuration.
    pub(crate) model_type: &'static str,
    pub(crate) hidden_size: usize,
    /// The key of the width inside the MLP, and its value.
    pub(crate) intermediate_size: (&'static str, usize),
    pub(crate) n_blocks: usize,
    pub(crate) n_heads: usize,
    /// `None` for as many as query heads, which an explicit `null` stands for in every class.
    pub(crate) n_kv_heads: Option<usize>,
    pub(crate) vocab_size: usize,
    pub(crate) max_positions: usize,
    pub(crate) norm_eps: f64,
    pub(crate) tied_head: bool,
    /// The key that gives attention's linears a bias (in OPT all linears), and its value. Qwen2 has no such key.
    pub(crate) attention_bias: (Option<&'static str>, bool),
    pub(crate) eos_id: Option<u32>,
    /// Keys that only this class has and that change what it computes: each is read or checked in the family's file.
    pub(crate) own_keys: &'static [&'static str],
}

impl Class {
    /// Number of key and value heads.
    ///
    /// # Errors
    /// A value that is no positive integer.
    pub(super) fn kv_heads(&self, keys: &Keys<'_>, n_heads: usize) -> Result<usize, LoadError> {
        const KEY: &str = "num_key_value_heads";
        match (keys.json.get(KEY), self.n_kv_heads) {
            (None, Some(default)) => Ok(default),
            _ => Ok(keys.optional_dimension(KEY)?.unwrap_or(n_heads)),
        }
    }
}
