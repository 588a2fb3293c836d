//! Keys of a `config.json` that change what a model computes and that no class here reads. A class of transformers that does not
//! know a key ignores it without a word; then either the key is idle or the file names the wrong class, and only the second would
//! give wrong numbers. So such a key must have the value at which it changes nothing.

use serde_json::Value as Json;

use super::LoadError;
use super::class::Class;
use super::keys::Keys;

/// Keys, the value at which each changes nothing (beside `null`, and `false` for switches), and what it changes.
const SWITCHES: &[(&str, Neutral, &str)] = &[
    ("attention_multiplier", Neutral::Nothing, "the scale of attention scores"),
    ("query_pre_attn_scalar", Neutral::Nothing, "the scale of attention scores"),
    ("scale_attn_by_inverse_layer_idx", Neutral::Off, "the scale of attention scores"),
    ("scale_attn_weights", Neutral::On, "the scale of attention scores"),
    ("embedding_multiplier", Neutral::One, "the scale of embeddings"),
    ("scale_embedding", Neutral::Off, "the scale of embeddings"),
    ("residual_multiplier", Neutral::One, "the scale of residuals"),
    ("scale_depth", Neutral::Nothing, "the scale of residuals"),
    ("scale_emb", Neutral::One, "the scale of embeddings"),
    ("dim_model_base", Neutral::Nothing, "the scale of logits"),
    ("logits_scaling", Neutral::One, "the scale of logits"),
    ("logit_scale", Neutral::One, "the scale of logits"),
    ("mup_width_multiplier", Neutral::One, "the scale of logits"),
    ("final_logit_softcapping", Neutral::Nothing, "a cap on logits"),
    ("attn_logit_softcapping", Neutral::Nothing, "a cap on attention scores"),
    ("clip_qkv", Neutral::Nothing, "a cap on queries, keys and values"),
    ("num_local_experts", Neutral::Zero, "experts in place of a feed-forward module"),
    ("num_experts", Neutral::Zero, "experts in place of a feed-forward module"),
    ("n_routed_experts", Neutral::Zero, "experts in place of a feed-forward module"),
    ("n_shared_experts", Neutral::Zero, "experts in place of a feed-forward module"),
    ("num_experts_per_tok", Neutral::Zero, "experts in place of a feed-forward module"),
    ("moe_intermediate_size", Neutral::Zero, "experts in place of a feed-forward module"),
    ("partial_rotary_factor", Neutral::One, "the share of a head that is rotated"),
    ("rotary_pct", Neutral::One, "the share of a head that is rotated"),
    ("rope_interleaved", Neutral::Off, "which channels are rotated together"),
    ("no_rope_layers", Neutral::AllOnes, "the blocks without rotary positions"),
    ("no_rope_layer_interval", Neutral::Zero, "the blocks without rotary positions"),
    ("attention_chunk_size", Neutral::Nothing, "which tokens a token sees"),
    ("use_bidirectional_attention", Neutral::Off, "which tokens a token sees"),
    ("is_decoder", Neutral::Anything, ""),
    ("alibi", Neutral::Off, "how positions enter"),
    ("qk_layernorm", Neutral::Off, "norms of queries and keys"),
    ("qk_norm", Neutral::Off, "norms of queries and keys"),
    ("parallel_attn", Neutral::Off, "the order of attention and feed-forward module"),
    ("use_parallel_residual", Neutral::Off, "the order of attention and feed-forward module"),
    ("add_cross_attention", Neutral::Off, "attention to another input"),
    ("kv_lora_rank", Neutral::Nothing, "compressed keys and values"),
    ("q_lora_rank", Neutral::Nothing, "compressed queries"),
    ("cross_layer_sharing", Neutral::Off, "keys and values of other blocks"),
    ("num_kv_shared_layers", Neutral::Zero, "keys and values of other blocks"),
    ("use_mrope", Neutral::Off, "positions of images"),
    ("num_nextn_predict_layers", Neutral::Zero, "blocks that predict further tokens"),
];

/// Parts of names by which keys that nobody has listed look as if they changed the computation.
const SUSPECT: &[&str] = &[
    "multiplier",
    "softcap",
    "expert",
    "moe",
    "rope",
    "rotary",
    "alibi",
    "window",
    "lora",
    "adapter",
    "sparse",
    "ssm",
    "mamba",
];

/// Keys whose names look so, or that are switches, and that change nothing here: training, caches, other tools' notes, and keys
/// that are read elsewhere.
const HARMLESS: &[&str] = &[
    "use_cache",
    "use_return_dict",
    "use_bfloat16",
    "use_flash_attn",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "router_aux_loss_coef",
    "adapter_config",
];

/// The value at which a key changes nothing.
#[derive(Clone, Copy, Debug)]
enum Neutral {
    Nothing,
    Off,
    On,
    Zero,
    One,
    AllOnes,
    Anything,
}

impl Neutral {
    fn is(self, value: &Json) -> bool {
        if value.is_null() || *value == Json::Bool(false) && !matches!(self, Self::On) {
            return true;
        }
        match self {
            Self::Nothing | Self::Off => false,
            Self::On => *value == Json::Bool(true),
            Self::Zero => value.as_f64() == Some(0.0),
            Self::One => value.as_f64() == Some(1.0),
            Self::AllOnes => value.as_array().is_some_and(|all| all.iter().all(|one| one.as_f64() == Some(1.0))),
            Self::Anything => true,
        }
    }
}

/// Refuses a configuration with a key that is no matter of `class` and would change the computation.
///
/// # Errors
/// The first such key.
pub(super) fn check(keys: &Keys<'_>, class: &Class) -> Result<(), LoadError> {
    let Some(object) = keys.json.as_object() else { return Ok(()) };
    for (key, value) in object.iter().filter(|(key, _)| !class.own_keys.contains(&key.as_str())) {
        let changes = match SWITCHES.iter().find(|(name, ..)| name == key) {
            Some((_, neutral, changes)) if !neutral.is(value) => *changes,
            Some(_) => continue,
            None if HARMLESS.contains(&key.as_str()) || !is_suspect(key) || is_idle(value) => continue,
            None => "by its name, what is computed",
        };
        return Err(keys.bad(
            key,
            format!(
                "{}: it changes {changes}, and {} computes without it; if the model needs it, `architectures` names the wrong \
                 class, else remove the key",
                shortened(value),
                class.name
            ),
        ));
    }
    Ok(())
}

fn is_suspect(key: &str) -> bool {
    // What begins with an underscore is a note of the library that wrote the file.
    !key.starts_with('_') && (key.starts_with("use_") || SUSPECT.iter().any(|part| key.contains(part)))
}

/// What stands for "not used".
fn is_idle(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(on) => !on,
        Json::Number(number) => number.as_f64() == Some(0.0),
        Json::String(text) => text.is_empty(),
        Json::Array(all) => all.is_empty(),
        Json::Object(keys) => keys.is_empty(),
    }
}

fn shortened(value: &Json) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
