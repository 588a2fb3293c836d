//! [`Class`]: what a transformers class takes for granted where its `config.json` is silent.

use super::LoadError;
use super::fused::Fused;
use super::gguf::Layout;
use super::keys::Keys;
use super::windows::Windows;

/// A class of transformers. Values of absent keys are those of transformers 5.24.
#[derive(Debug)]
pub(crate) struct Class {
    /// Its name, as `architectures` has it.
    pub(crate) name: &'static str,
    /// `model_type` of its configuration.
    pub(crate) model_type: &'static str,
    pub(crate) hidden_size: Dimension,
    pub(crate) intermediate_size: InnerSize,
    pub(crate) n_blocks: Dimension,
    pub(crate) n_heads: Dimension,
    pub(crate) n_kv_heads: KvHeads,
    pub(crate) vocab_size: usize,
    pub(crate) max_positions: Dimension,
    /// Width of a head; `None` for `hidden_size / n_heads`.
    pub(crate) head_dim: Option<usize>,
    /// The key of the base of the rotary frequencies, and its value.
    pub(crate) rope_theta: (&'static str, f64),
    /// That of blocks with a window, where they have one of their own.
    pub(crate) local_rope_theta: Option<f64>,
    /// The key of the share of a head's channels that is rotated, and its value; `None` where whole heads are.
    pub(crate) rotary_share: Option<(&'static str, f64)>,
    /// The context before a stretch, in a class that has a default for it.
    pub(crate) original_positions: Option<usize>,
    /// Which blocks have a sliding window.
    pub(crate) windows: Windows,
    /// The key of what norms add to the variance, if the class has one, and its value.
    pub(crate) norm_eps: (Option<&'static str>, f64),
    pub(crate) tied_head: bool,
    /// The key that gives attention's linears a bias (in OPT all linears), and its value. Qwen2 has no such key.
    pub(crate) attention_bias: (Option<&'static str>, bool),
    /// Whether a key gives the linears of the feed-forward module a bias.
    pub(crate) has_mlp_bias_key: bool,
    pub(crate) eos_id: Option<u32>,
    /// Keys that change what is computed and that the family reads itself; all others of that kind are refused.
    pub(crate) own_keys: &'static [&'static str],
    /// Tensors that hold the rows of several linears.
    pub(crate) fused: &'static [Fused],
    /// What it is in a GGUF file; `None` where such files are not read.
    pub(crate) gguf: Option<GgufArchitecture>,
}

/// The classes that are known.
pub(crate) type Classes<'a> = &'a [&'static Class];

/// Keys that stand for one number, the first of which counts, and its value.
pub(crate) type Dimension = (&'static [&'static str], usize);

/// Width inside the feed-forward module.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InnerSize {
    /// A key and its value.
    Key(&'static str, usize),
    /// Four times the width of the residual stream, whatever the file says.
    FourTimes,
    /// A key; where it is absent or `null`, four times the width of the residual stream.
    KeyOrFourTimes(&'static str),
}

/// A class as llama.cpp stores it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GgufArchitecture {
    /// `general.architecture`.
    pub(crate) name: &'static str,
    /// Whether the two rows of a rotary pair lie side by side in q and k.
    pub(crate) interleaved_rows: bool,
    /// What is stored otherwise than Llama's tensors and metadata; `None` for nothing.
    pub(crate) layout: Option<&'static Layout>,
}

/// Key and value heads of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KvHeads {
    /// As many as query heads: the class has no key for them.
    AsQueries,
    /// As many as the key says; where it is absent, this many, `None` for as many as query heads. An explicit `null` stands for
    /// that in every class.
    Key(Option<usize>),
    /// One for all query heads, or as many as these; with grouped queries as many as a key says.
    MultiQuery {
        /// A switch for grouped queries, and the key of the number of key heads.
        grouped: Option<(&'static str, &'static str)>,
    },
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
            (KvHeads::MultiQuery { grouped }, _) => {
                let is_on = |(switch, _): &(&'static str, &'static str)| keys.optional_bool(switch);
                match grouped {
                    Some(grouped) if is_on(&grouped)? == Some(true) => {
                        Ok(keys.optional_dimension(grouped.1)?.unwrap_or(n_heads))
                    }
                    _ if keys.optional_bool("multi_query")?.unwrap_or(true) => Ok(1),
                    _ => Ok(n_heads),
                }
            }
            (KvHeads::Key(Some(default)), None) => Ok(default),
            (KvHeads::Key(_), _) => Ok(keys.optional_dimension(KEY)?.unwrap_or(n_heads)),
        }
    }

    /// Width inside the feed-forward module.
    ///
    /// # Errors
    /// A value that is no positive integer.
    pub(super) fn inner_size(&self, keys: &Keys<'_>, hidden_size: usize) -> Result<usize, LoadError> {
        match self.intermediate_size {
            InnerSize::Key(key, default) => keys.dimension_or(&[key], default),
            InnerSize::FourTimes => Ok(4 * hidden_size),
            InnerSize::KeyOrFourTimes(key) => Ok(keys.optional_dimension(key)?.unwrap_or(4 * hidden_size)),
        }
    }

    /// Width of a head; `share` of the residual stream's width where neither the file nor the class says.
    ///
    /// # Errors
    /// A value that is no positive integer.
    pub(super) fn head_dim(&self, keys: &Keys<'_>, share: usize) -> Result<usize, LoadError> {
        const KEY: &str = "head_dim";
        match self.head_dim {
            Some(default) => keys.dimension_or(&[KEY], default),
            None => Ok(keys.optional_dimension(KEY)?.unwrap_or(share)),
        }
    }
}
