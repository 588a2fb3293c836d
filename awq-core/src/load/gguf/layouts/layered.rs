//! Classes with LayerNorms, most of which have queries, keys and values in one tensor.

use serde_json::{Value as Json, json};

use super::super::layout::{Layout, Part};
use super::{LIKE_LLAMA, stored};
use crate::load::GgufArchitecture;

pub(crate) const GPT2: Option<GgufArchitecture> = stored(
    "gpt2",
    &Layout {
        parts: &[("attn_qkv", Part::Qkv(["attn.c_attn.q", "attn.c_attn.k", "attn.c_attn.v"]))],
        plain_parts: &[
            ("attn_norm", "ln_1"),
            ("attn_output", "attn.c_proj.transposed"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc.transposed"),
            ("ffn_down", "mlp.c_proj.transposed"),
        ],
        ..GPT
    },
);

const GPT: Layout = Layout {
    model_parts: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    blocks: "transformer.h",
    plain_parts: &[],
    ..LIKE_LLAMA
};

pub(crate) const BIGCODE: Option<GgufArchitecture> = stored(
    "starcoder",
    &Layout {
        parts: &[("attn_qkv", Part::Qkv(["attn.c_attn.q", "attn.c_attn.k", "attn.c_attn.v"]))],
        plain_parts: &[
            ("attn_norm", "ln_1"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ],
        ..GPT
    },
);

pub(crate) const GPT_NEOX: Option<GgufArchitecture> = stored(
    "gptneox",
    &Layout {
        model_parts: &[
            ("token_embd", "gpt_neox.embed_in"),
            ("output_norm", "gpt_neox.final_layer_norm"),
            ("output", "embed_out"),
        ],
        blocks: "gpt_neox.layers",
        parts: &[(
            "attn_qkv",
            Part::Qkv(["attention.query_key_value.q", "attention.query_key_value.k", "attention.query_key_value.v"]),
        )],
        plain_parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_output", "attention.dense"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        keys: &["use_parallel_residual"],
        config: |metadata, keys| {
            keys.insert("use_parallel_residual".into(), json!(metadata.value("use_parallel_residual")));
            Ok(())
        },
        entries: |entries| entries.bool("use_parallel_residual", entries.switch("use_parallel_residual", true)),
    },
);

const FALCON_QKV: Part = Part::Qkv([
    "self_attention.query_key_value.q",
    "self_attention.query_key_value.k",
    "self_attention.query_key_value.v",
]);

/// Modules side by side. A second norm is attention's; the first is then that of the feed-forward module.
pub(crate) const FALCON: Option<GgufArchitecture> = stored(
    "falcon",
    &Layout {
        model_parts: &[
            ("token_embd", "transformer.word_embeddings"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        blocks: "transformer.h",
        parts: &[
            ("attn_qkv", FALCON_QKV),
            ("attn_norm", Part::With { beside: "attn_norm_2", name: "ln_mlp", alone: "input_layernorm" }),
        ],
        plain_parts: &[
            ("attn_norm_2", "ln_attn"),
            ("attn_output", "self_attention.dense"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        keys: &["tensor_data_layout"],
        config: |metadata, keys| {
            match metadata.value("tensor_data_layout").map(Json::as_str) {
                None | Some(Some("jploski")) => {}
                Some(_) => {
                    let problem = "expected \"jploski\": another order of rows; convert the model again".to_owned();
                    return Err(metadata.bad("tensor_data_layout", problem));
                }
            }
            let has_two_norms = metadata.has_tensor("blk.0.attn_norm_2.weight");
            let n_kv_heads = metadata.n_kv_heads()?;
            if n_kv_heads > 1 || has_two_norms {
                keys.insert("new_decoder_architecture".into(), json!(true));
                keys.insert("num_kv_heads".into(), json!(n_kv_heads));
                keys.insert("num_ln_in_parallel_attn".into(), json!(if has_two_norms { 2 } else { 1 }));
            }
            Ok(())
        },
        entries: |entries| entries.text("tensor_data_layout", "jploski"),
    },
);

/// ALiBi with slopes up to 2^-8, whatever the file says.
pub(crate) const BLOOM: Option<GgufArchitecture> = stored(
    "bloom",
    &Layout {
        model_parts: &[
            ("token_embd", "transformer.word_embeddings"),
            ("token_embd_norm", "transformer.word_embeddings_layernorm"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        blocks: "transformer.h",
        parts: &[("attn_qkv", FALCON_QKV)],
        plain_parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_output", "self_attention.dense"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        ..LIKE_LLAMA
    },
);

pub(crate) const MPT: Option<GgufArchitecture> = stored(
    "mpt",
    &Layout {
        model_parts: &[("token_embd", "transformer.wte"), ("output_norm", "transformer.norm_f"), ("output", "lm_head")],
        blocks: "transformer.blocks",
        parts: &[("attn_qkv", Part::Qkv(["attn.Wqkv.q", "attn.Wqkv.k", "attn.Wqkv.v"]))],
        plain_parts: &[
            ("attn_norm", "norm_1"),
            ("attn_output", "attn.out_proj"),
            ("ffn_norm", "norm_2"),
            ("ffn_up", "ffn.up_proj"),
            ("ffn_down", "ffn.down_proj"),
        ],
        keys: &["attention.max_alibi_bias"],
        config: |metadata, keys| {
            let max = metadata.optional_float("attention.max_alibi_bias")?;
            keys.insert("attn_config".into(), json!({ "alibi": max.is_some(), "alibi_bias_max": max }));
            Ok(())
        },
        entries: |entries| {
            let attention = &entries.config.raw["attn_config"];
            // Where no key says otherwise, the class has slopes up to 2^-8.
            let max = match attention["alibi"].as_bool() {
                Some(false) => 0.0,
                _ => attention["alibi_bias_max"].as_f64().unwrap_or(8.0),
            };
            entries.float("attention.max_alibi_bias", max);
        },
    },
);

pub(crate) const PHI: Option<GgufArchitecture> = stored(
    "phi2",
    &Layout {
        model_parts: &[
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.final_layernorm"),
            ("output", "lm_head"),
        ],
        parts: &[("attn_qkv", Part::Qkv(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]))],
        plain_parts: &[
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.dense"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
        ],
        ..LIKE_LLAMA
    },
);

/// Modules stand side by side where the second has no norm. Heads of queries and keys may have a norm each.
pub(crate) const STABLELM: Option<GgufArchitecture> = stored(
    "stablelm",
    &Layout {
        parts: &[
            ("attn_q_norm", Part::Heads("self_attn.q_layernorm.norms.{}")),
            ("attn_k_norm", Part::Heads("self_attn.k_layernorm.norms.{}")),
        ],
        keys: &["use_parallel_residual"],
        config: |metadata, keys| {
            keys.insert("qk_layernorm".into(), json!(metadata.has_tensor("blk.0.attn_q_norm.weight")));
            keys.insert("use_parallel_residual".into(), json!(!metadata.has_tensor("blk.0.ffn_norm.weight")));
            Ok(())
        },
        entries: |entries| entries.bool("use_parallel_residual", entries.switch("use_parallel_residual", false)),
        ..LIKE_LLAMA
    },
);
