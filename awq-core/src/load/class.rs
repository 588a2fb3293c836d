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
    pub(crate) n_kv_heads: KvHeads,
    pub(crate) vocab_size: usize,
    pub(crate) max_positions: usize,
    /// The key of what norms add to the variance, if the class has one, and its value.
    pub(crate) norm_eps: (Option<&'static str>, f64),
    pub(crate) tied_head: bool,
    /// The key that gives attention's linears a bias (in OPT all linears), and its value. Qwen2 has no such key.
    pub(crate) attention_bias: (Option<&'static str>, bool),
    /// Whether a key gives the linears of the feed-forward module a bias.
    pub(crate) has_mlp_bias_key: bool,
    pub(crate) eos_id: Option<u32>,
}

/// Key and value heads of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvHeads {
    /// As many as query heads: the class has no key for them.
    AsQueries,
    /// As many as the key says; where it is absent, this many, `None` for as many as query heads. An explicit `null` stands for
    /// that in every class.
    Key(Option<usize>),
}

impl Class {
    /// Number of key and value heads.
    ///
    /// # Errors
    /// A value that is no positive integer.
    pub(super) fn kv_heads(&self, keys: &Keys<'_>, n_heads: usize) -> Result<usize, LoadError> {
        const KEY: &str = "num_key_value_heads";
        match (self.n_kv_heads, keys.json.get(KEY)) {
            (KvHeads::AsQueries, _) => Ok(n_heads),
            (KvHeads::Key(Some(default)), None) => Ok(default),
            (KvHeads::Key(_), _) => Ok(keys.optional_dimension(KEY)?.unwrap_or(n_heads)),
        }
    }
}
