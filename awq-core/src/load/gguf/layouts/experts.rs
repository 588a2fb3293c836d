//! Classes with experts, each of whose linears lies in one tensor.

use serde_json::{Value as Json, json};

use super::super::entries::Entries;
use super::super::layout::{Layout, Metadata, Part};
use super::{Keys, LIKE_LLAMA, interleaved, stored};
use crate::load::{GgufArchitecture, LoadError};

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
        entries: |entries| {
            entries.int("expert_count", entries.n_experts);
            entries.int("expert_used_count", entries.whole("num_experts_per_tok", 2));
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
        entries: |entries| {
            qwen_entries(entries, 4);
            entries.rows_of("expert_shared_feed_forward_length", "mlp.shared_expert.up_proj.weight");
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
        entries: |entries| qwen_entries(entries, 8),
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

/// `n_active` is how many a token goes through where no key says.
fn qwen_entries(entries: &mut Entries<'_>, n_active: usize) {
    entries.int("expert_count", entries.n_experts);
    entries.int("expert_used_count", entries.whole("num_experts_per_tok", n_active));
    entries.rows_of("expert_feed_forward_length", "mlp.experts.0.up_proj.weight");
}

/// # Errors
/// Experts that are weighed otherwise than by a softmax.
fn softmax_of_experts(metadata: &Metadata<'_>) -> Result<(), LoadError> {
    match metadata.value("expert_gating_func").map(Json::as_f64) {
        None | Some(Some(0.0 | 1.0)) => Ok(()),
        Some(_) => Err(metadata.bad("expert_gating_func", "expected 1, a softmax; use another model".into())),
    }
}
