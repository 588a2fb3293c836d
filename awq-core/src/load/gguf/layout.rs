//! How llama.cpp stores the classes that it does not store as it does Llama: the keys of `config.json` that the metadata stand
//! for, and which tensors of Hugging Face lie in a tensor of the file. The families' own facts: `layouts.rs`.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::entries::Entries;
use super::header::{Header, Value};
use super::tensor::Tensor;
use crate::load::LoadError;
use crate::load::class::{Class, InnerSize, KvHeads};
use crate::load::config::ModelConfig;
use crate::load::keys::Keys;
use crate::load::rope::{Rope, RopeScaling};

/// What of a class is stored otherwise than Llama.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Names outside the blocks: llama.cpp's, and those of Hugging Face.
    pub(super) model_parts: &'static [(&'static str, &'static str)],
    /// What the names of blocks begin with, up to their number.
    pub(super) blocks: &'static str,
    /// Names in a block, and what lies under them where that is more than a tensor of another name.
    pub(super) parts: &'static [(&'static str, Part)],
    /// Names in a block of tensors that are stored as they are.
    pub(super) plain_parts: &'static [(&'static str, &'static str)],
    /// Keys of the architecture that `config` reads, and that other architectures must not have.
    pub(super) keys: &'static [&'static str],
    /// Adds what only this class has to its `config.json`.
    pub(super) config: fn(&Metadata<'_>, &mut Map<String, Json>) -> Result<(), LoadError>,
    /// The other way round: adds what only this class has to the keys and tables of a file.
    pub(super) entries: fn(&mut Entries<'_>),
}

/// What lies under a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// One tensor.
    One(&'static str),
    /// A norm's weight with the one that it is short of.
    PlusOne(&'static str),
    /// A linear with one output, with or without that dimension.
    Row(&'static str),
    /// All queries, then all keys, then all values.
    Qkv([&'static str; 3]),
    /// Two linears with as many rows.
    Halves([&'static str; 2]),
    /// `[n_experts, out, in]`; `{}` is the number of an expert.
    Experts(&'static str),
    /// `[n_heads, channels]`, a vector for each head; `{}` is the number of a head.
    Heads(&'static str),
    /// The first name where the block has the tensor `beside` as well, else the second.
    With { beside: &'static str, name: &'static str, alone: &'static str },
}

impl Layout {
    /// Whether blocks have experts.
    pub(super) fn has_experts(&self) -> bool {
        self.parts.iter().any(|(_, part)| matches!(part, Part::Experts(_)))
    }

    /// The tensors that lie in the one called `gguf_name`, as Hugging Face names them. `None` where the name is not known.
    ///
    /// # Errors
    /// Another shape than `config` implies.
    pub(super) fn tensors(
        &self,
        gguf_name: &str,
        tensor: &Tensor,
        config: &ModelConfig,
        file: &Path,
        has: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Vec<(String, Tensor)>>, LoadError> {
        let Some((part, kind)) = gguf_name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))
        else {
            return Ok(None);
        };
        let (block, part, plain_parts) = match in_block(part) {
            Some((block, part)) => (Some(block), part, self.plain_parts),
            None => (None, part, self.model_parts),
        };
        let full = |name: &str| match block {
            Some(block) => format!("{}.{block}.{name}.{kind}", self.blocks),
            None => format!("{name}.{kind}"),
        };
        let Some((_, special)) = self.parts.iter().find(|(gguf, _)| *gguf == part) else {
            let plain = plain_parts.iter().find(|(gguf, _)| *gguf == part);
            return Ok(plain.map(|(_, name)| vec![(full(name), tensor.clone())]));
        };
        let rows = |parts: Vec<(String, usize)>| tensor.in_rows(gguf_name, parts, file).map(Some);
        let one = |name: &str| Ok(Some(vec![(full(name), tensor.clone())]));
        match *special {
            Part::One(name) => one(name),
            Part::PlusOne(name) => Ok(Some(vec![(full(name), tensor.clone().with_one_less())])),
            Part::With { beside, name, alone } => {
                let has_both = block.is_some_and(|block| has(&format!("blk.{block}.{beside}.{kind}")));
                one(if has_both { name } else { alone })
            }
            Part::Row(name) => {
                let len = tensor.info.shape.iter().product();
                Ok(Some(vec![(full(name), tensor.clone().shaped(vec![1, len]))]))
            }
            Part::Qkv(names) => {
                let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
                rows(names.iter().map(|name| full(name)).zip([q, kv, kv]).collect())
            }
            Part::Halves(names) => {
                let half = tensor.info.shape.first().map_or(0, |rows| rows / 2);
                rows(names.iter().map(|name| (full(name), half)).collect())
            }
            Part::Heads(name) => {
                let n_heads = tensor.info.shape.first().copied().unwrap_or(0).min(config.n_heads);
                let heads = (0..n_heads).map(|head| (full(&name.replace("{}", &head.to_string())), 1)).collect();
                let heads = tensor.in_rows(gguf_name, heads, file)?;
                let flat = |(name, head): (String, Tensor)| {
                    let len = head.info.shape.iter().product();
                    (name, head.shaped(vec![len]))
                };
                Ok(Some(heads.into_iter().map(flat).collect()))
            }
            Part::Experts(name) => {
                let named = |expert: usize| full(&name.replace("{}", &expert.to_string()));
                tensor.in_experts(gguf_name, named, file).map(Some)
            }
        }
    }
}

/// The number of a block, and the name in it.
fn in_block(part: &str) -> Option<(usize, &str)> {
    let (block, part) = part.strip_prefix("blk.")?.split_once('.')?;
    Some((block.parse().ok()?, part))
}

/// What a file says beside its tensors.
pub(crate) struct Metadata<'a> {
    /// Checked, without arrays.
    pub(super) keys: Keys<'a>,
    /// The architecture, which its own keys begin with.
    pub(super) prefix: &'a str,
    pub(super) header: &'a Header,
    /// The values of a tensor that is part of the configuration, where it is there.
    pub(super) tables: Tables<'a>,
}

/// The values of a small tensor by its name, where it is there.
pub(super) type Tables<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<f32>>, LoadError>;

impl Metadata<'_> {
    fn key(&self, own: &str) -> String {
        format!("{}.{own}", self.prefix)
    }

    pub(super) fn value(&self, own: &str) -> Option<&Json> {
        self.keys.get(&self.key(own))
    }

    pub(super) fn dimension(&self, own: &str) -> Result<usize, LoadError> {
        self.keys.dimension(&[&self.key(own)])
    }

    pub(super) fn optional_dimension(&self, own: &str) -> Result<Option<usize>, LoadError> {
        self.keys.optional_dimension(&self.key(own))
    }

    /// A number, where it is given and not 0, which stands for none.
    pub(super) fn optional_float(&self, own: &str) -> Result<Option<f64>, LoadError> {
        match self.value(own) {
            Some(value) if value.as_f64() == Some(0.0) => Ok(None),
            _ => self.keys.optional_float(&self.key(own)),
        }
    }

    pub(super) fn bad(&self, own: &str, problem: String) -> LoadError {
        self.keys.bad(&self.key(own), problem)
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// The values of a small tensor, where it is there.
    pub(super) fn table(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        (self.tables)(name)
    }

    /// Width of a head.
    pub(super) fn head_dim(&self) -> Result<usize, LoadError> {
        let (hidden, n_heads) = (self.dimension("embedding_length")?, self.dimension("attention.head_count")?);
        Ok(self.optional_dimension("attention.key_length")?.unwrap_or(hidden / n_heads))
    }

    pub(super) fn n_kv_heads(&self) -> Result<usize, LoadError> {
        let n_kv_heads = self.optional_dimension("attention.head_count_kv")?;
        n_kv_heads.map_or_else(|| self.dimension("attention.head_count"), Ok)
    }
}

/// The configuration that the metadata stand for, as `config.json` would have it.
///
/// # Errors
/// A key that is missing, or asks for what the class does not compute.
pub(super) fn config(
    class: &'static Class,
    layout: &Layout,
    metadata: &Metadata<'_>,
) -> Result<ModelConfig, LoadError> {
    let mut json = Map::new();
    let mut put = |key: &str, value: Json| json.insert(key.to_owned(), value);
    put("architectures", json!([class.name]));
    put("model_type", json!(class.model_type));
    let hidden_size = metadata.dimension("embedding_length")?;
    put(class.hidden_size.0[0], json!(hidden_size));
    put(class.n_blocks.0[0], json!(metadata.dimension("block_count")?));
    put(class.n_heads.0[0], json!(metadata.dimension("attention.head_count")?));
    put(class.max_positions.0[0], json!(metadata.dimension("context_length")?));
    put("vocab_size", json!(vocab_size(metadata)?));
    let inner = metadata.dimension("feed_forward_length")?;
    match class.intermediate_size {
        InnerSize::Key(key, _) | InnerSize::KeyOrFourTimes(key) => {
            put(key, json!(inner));
        }
        InnerSize::FourTimes if inner == 4 * hidden_size => {}
        InnerSize::FourTimes => {
            let problem = format!("{inner}, expected four times the width {hidden_size} of the residual stream");
            return Err(metadata.bad("feed_forward_length", problem));
        }
    }
    let n_kv_heads = metadata.n_kv_heads()?;
    match class.n_kv_heads {
        KvHeads::Key(_) => {
            put("num_key_value_heads", json!(n_kv_heads));
        }
        KvHeads::MultiQuery { .. } => {
            put("multi_query", json!(n_kv_heads == 1));
        }
        KvHeads::AsQueries if n_kv_heads == metadata.dimension("attention.head_count")? => {}
        KvHeads::AsQueries => {
            let problem = format!("{n_kv_heads}, expected as many as queries have: {} has no other models", class.name);
            return Err(metadata.bad("attention.head_count_kv", problem));
        }
    }
    if let (Some(key), _) = class.norm_eps {
        let of = if key.contains("rms") { "rms_epsilon" } else { "epsilon" };
        let own = format!("attention.layer_norm_{of}");
        put(key, json!(metadata.keys.float(&metadata.key(&own))?));
    }
    put("tie_word_embeddings", json!(!metadata.has_tensor("output.weight")));
    let has_bias = |parts: &[&str]| json!(parts.iter().any(|part| metadata.has_tensor(&format!("blk.0.{part}.bias"))));
    if let (Some(key), _) = class.attention_bias {
        put(key, has_bias(&["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"]));
    }
    if class.has_mlp_bias_key {
        put("mlp_bias", has_bias(&["ffn_gate", "ffn_up", "ffn_down"]));
    }
    let ids = |name: &str| metadata.keys.token_ids(&format!("tokenizer.ggml.{name}_token_id"));
    put("bos_token_id", json!(ids("bos")?.first()));
    let ends = [ids("eos")?, ids("eot")?, ids("eom")?].concat();
    put("eos_token_id", if ends.is_empty() { Json::Null } else { json!(ends) });
    heads(class, metadata, layout, &mut json)?;
    (layout.config)(metadata, &mut json)?;
    ModelConfig::from_json(metadata.keys.file, Json::Object(json), &[class])
}

fn vocab_size(metadata: &Metadata<'_>) -> Result<usize, LoadError> {
    match (metadata.optional_dimension("vocab_size")?, metadata.header.metadata.get("tokenizer.ggml.tokens")) {
        (Some(vocab_size), _) => Ok(vocab_size),
        (None, Some(Value::Texts(tokens))) => Ok(tokens.len()),
        (None, _) => metadata.dimension("vocab_size"),
    }
}

/// Width of heads, and how they are rotated and scaled.
fn heads(
    class: &Class,
    metadata: &Metadata<'_>,
    layout: &Layout,
    json: &mut Map<String, Json>,
) -> Result<(), LoadError> {
    let mut put = |key: &str, value: Json| json.insert(key.to_owned(), value);
    let head_dim = metadata.head_dim()?;
    if metadata.value("attention.key_length").is_some() {
        put("head_dim", json!(head_dim));
    }
    let value_dim = metadata.optional_dimension("attention.value_length")?.unwrap_or(head_dim);
    if value_dim != head_dim {
        let problem = format!("{value_dim}, expected the width of keys {head_dim}: others are not supported");
        return Err(metadata.bad("attention.value_length", problem));
    }
    if !layout.keys.contains(&"attention.scale") {
        metadata.keys.check_attention_scale(&metadata.key("attention.scale"), head_dim)?;
    }
    let n_rotated = metadata.optional_dimension("rope.dimension_count")?.unwrap_or(head_dim);
    match class.rotary_share {
        Some((key, _)) => {
            put(key, json!(share(n_rotated, head_dim)));
        }
        None if n_rotated == head_dim => {}
        None => {
            let problem =
                format!("{n_rotated}, expected the head width {head_dim}: partly rotated heads are not supported");
            return Err(metadata.bad("rope.dimension_count", problem));
        }
    }
    let scaling = match metadata.value("rope.scaling.type").and_then(Json::as_str) {
        Some("yarn") => {
            put(class.rope_theta.0, json!(metadata.optional_float("rope.freq_base")?.unwrap_or(10_000.0)));
            Some(yarn(metadata)?)
        }
        _ => {
            let rope = Rope::from_gguf(&metadata.keys, metadata.prefix, n_rotated)?;
            put(class.rope_theta.0, json!(rope.theta));
            match (metadata.table(super::ROPE_FREQS)?, rope.scaling) {
                (Some(divisors), formula) => {
                    let divisors = super::per_frequency(metadata.keys.file, divisors, formula.as_ref())?;
                    let RopeScaling::PerFrequency { divisors } = divisors else { return Ok(()) };
                    Some(json!({ "rope_type": "per_frequency", "divisors": divisors }))
                }
                (None, Some(RopeScaling::Linear { factor })) => {
                    Some(json!({ "rope_type": "linear", "factor": factor }))
                }
                (None, _) => None,
            }
        }
    };
    if let Some(scaling) = scaling {
        put("rope_scaling", scaling);
    }
    Ok(())
}

/// The share of a head, of which a class takes the whole channels.
fn share(n_channels: usize, head_dim: usize) -> f64 {
    let share = n_channels as f64 / head_dim as f64;
    if ((head_dim as f64 * share) as usize) < n_channels { share.next_up() } else { share }
}

/// As [`Rope::from_gguf`] has no such rule.
fn yarn(metadata: &Metadata<'_>) -> Result<Json, LoadError> {
    let factor = metadata.keys.float(&metadata.key("rope.scaling.factor"))?;
    let original = metadata.dimension("rope.scaling.original_context_length")?;
    let mut yarn = json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original });
    for bound in ["beta_fast", "beta_slow"] {
        if let Some(turns) = metadata.optional_float(&format!("rope.scaling.yarn_{bound}"))? {
            yarn[bound] = json!(turns);
        }
    }
    Ok(yarn)
}

#[cfg(test)]
mod tests {
    use super::share;

    /// As `Rope::from_hugging_face` counts them.
    #[test]
    fn a_share_gives_back_the_channels_that_it_is_made_of() {
        for head_dim in 1..=256 {
            for n_channels in 1..=head_dim {
                assert_eq!((head_dim as f64 * share(n_channels, head_dim)) as usize, n_channels, "of {head_dim}");
            }
        }
    }
}
