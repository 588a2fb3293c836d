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
    ("is_causal", Neutral::On, "which tokens a token sees"),
    ("use_rope", Neutral::On, "how positions enter"),
    ("use_rms_norm", Neutral::On, "the kind of norms"),
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

/// Words in names by which keys that nobody has listed look as if they changed the computation.
const SUSPECT: &[&str] = &[
    "multiplier",
    "scale",
    "scaling",
    "softcap",
    "softcapping",
    "cap",
    "clip",
    "clamp",
    "limit",
    "expert",
    "experts",
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
    "quant",
    "qk",
    "bidirectional",
];

/// Keys whose names look so, or that are switches, and that change nothing here: training, caches, other tools' notes, and keys
/// that are read elsewhere.
const HARMLESS: &[&str] = &[
    "use_cache",
    "use_return_dict",
    "use_bfloat16",
    "use_flash_attn",
    "use_flash_attn_2",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_sdpa",
    "use_xformers",
    "use_fast",
    "use_liger_kernel",
    "use_gradient_checkpointing",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "adapter_config",
    "layernorm_scale",
    "initializer_scale",
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
    for (key, value) in object {
        let changes = match SWITCHES.iter().find(|(name, ..)| name == key) {
            _ if class.own_keys.contains(&key.as_str()) => continue,
            Some((_, neutral, changes)) if !neutral.is(value) => *changes,
            Some(_) => continue,
            None if HARMLESS.contains(&key.as_str()) || !is_suspect(key) || is_idle(value) => continue,
            None => "what is computed, to go by its name",
        };
        return Err(keys.bad(
            key,
            format!(
                "{}: it changes {changes}. {} computes without it: if the model needs it, `architectures` names the wrong \
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
    !key.starts_with('_') && (key.starts_with("use_") || key.split('_').any(|word| SUSPECT.contains(&word)))
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::model::classes;

    fn message(json: &Json) -> Option<String> {
        message_of("llama", json)
    }

    fn message_of(model_type: &str, json: &Json) -> Option<String> {
        let keys = Keys { file: Path::new("config.json"), json };
        let class = classes().find(|class| class.model_type == model_type)?;
        check(&keys, class).err().map(|error| error.to_string())
    }

    /// Training's keys are idle; experts of another kind are not Mixtral's.
    #[test]
    fn a_class_reads_its_own_keys_and_no_others() {
        let own = json!({
            "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.0,
            "output_router_logits": false
        });
        assert_eq!(message_of("mixtral", &own), None);
        let shared = message_of("mixtral", &json!({ "n_shared_experts": 1 })).unwrap_or_default();
        assert!(shared.starts_with("config.json: key \"n_shared_experts\": 1: it changes experts"), "{shared}");
        let qwen3 = message_of("qwen3", &json!({ "num_experts": 128 })).unwrap_or_default();
        assert!(qwen3.starts_with("config.json: key \"num_experts\": 128: it changes experts"), "{qwen3}");
    }

    #[test]
    fn a_key_that_changes_the_model_is_named_with_what_it_changes() {
        for (json, expected) in [
            (
                json!({ "attention_multiplier": 0.5 }),
                "\"attention_multiplier\": 0.5: it changes the scale of attention scores",
            ),
            (json!({ "logits_scaling": 8 }), "\"logits_scaling\": 8: it changes the scale of logits"),
            (json!({ "is_causal": false }), "\"is_causal\": false: it changes which tokens a token sees"),
            (json!({ "num_local_experts": 8 }), "\"num_local_experts\": 8: it changes experts in place of"),
            (json!({ "use_qk_norm": true }), "\"use_qk_norm\": true: it changes what is computed, to go by its name"),
            (
                json!({ "rope_local_base_freq": 1e4 }),
                "\"rope_local_base_freq\": 10000.0: it changes what is computed, to go by its name",
            ),
            (
                json!({ "no_rope_layers": [1, 1, 0] }),
                "\"no_rope_layers\": [1,1,0]: it changes the blocks without rotary",
            ),
        ] {
            let message = message(&json).unwrap_or_default();
            assert!(message.starts_with(&format!("config.json: key {expected}")), "{json}: {message}");
            assert!(message.contains("LlamaForCausalLM computes without it: if the model needs it, `architectures`"));
        }
    }

    /// Keys that files of the ecosystem carry without effect on a model of these classes.
    #[test]
    fn idle_keys_and_notes_of_other_tools_are_let_through() {
        let idle = json!({
            "_attn_implementation_autoset": true, "_name_or_path": "somewhere", "architectures": ["LlamaForCausalLM"],
            "attention_bias": false, "attention_dropout": 0.0, "attention_multiplier": null, "auto_map": {}, "dtype": "bfloat16",
            "final_logit_softcapping": null, "head_dim": 64, "id2label": { "0": "LABEL_0" }, "initializer_range": 0.02,
            "is_llama_config": true, "layer_types": ["full_attention"], "logits_scaling": 1.0, "max_window_layers": 28,
            "mlp_bias": false, "model_type": "llama", "no_rope_layers": [1, 1], "num_experts": 0, "pad_token_id": null,
            "pretraining_tp": 1, "problem_type": null, "quantization_config": null, "residual_multiplier": 1,
            "rope_interleaved": false, "rope_parameters": { "rope_type": "default" }, "rope_scaling": null, "rope_theta": 1e5,
            "sliding_window": 4096, "task_specific_params": null, "torch_dtype": "float16", "transformers.js_config": {},
            "transformers_version": "5.24.0", "unsloth_fixed": true, "use_cache": true, "use_mrope": false,
            "use_sliding_window": false, "vocab_size": 32000
        });
        assert_eq!(message(&idle), None);
    }
}
