//! MPT: scores that fall with the distance (ALiBi) in the place of positions, LayerNorms without a bias, a GELU without a gate, a tied
//! head, no bias anywhere.
//!
//! All queries, keys and values lie in one tensor, which is taken apart when it is read. Groups are those of the official AWQ code
//! (`auto_scale.py`, `mptblock`). What transformers' class does not look at (`expansion_ratio`, `no_bias`) must have the value that it
//! computes with.

use serde_json::{Value as Json, json};

use super::gpt_neox::{Names, layered, plain};
use super::layers::NormKind;
use super::layout::{reads, scales};
use super::wiring::{Alibi, AttentionWiring, BlockWiring, MlpWiring, Residual, Wiring};
use super::{BlockTable, Inspect, LinearName, NormName, PrevOp, bad_key, check_fixed, llama};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, Fused, InnerSize, KvHeads, LoadError, ModelConfig, Order, by_kind, layouts};

const Q: LinearName = LinearName("attn.Wqkv.q");
const K: LinearName = LinearName("attn.Wqkv.k");
const V: LinearName = LinearName("attn.Wqkv.v");
const O: LinearName = LinearName("attn.out_proj");
const UP: LinearName = LinearName("ffn.up_proj");
const DOWN: LinearName = LinearName("ffn.down_proj");
const ATTENTION_NORM: NormName = NormName("norm_1");
const MLP_NORM: NormName = NormName("norm_2");
const ACT: NormName = NormName("ffn.act");

const TABLE: BlockTable = BlockTable {
    linears: &[
        reads(Q, Q, false),
        reads(K, Q, false),
        reads(V, Q, true),
        reads(O, O, true),
        reads(UP, UP, true),
        reads(DOWN, DOWN, true),
    ],
    stages: &[&[K, V, Q], &[O], &[UP], &[DOWN]],
    scale_groups: &[
        scales(PrevOp::Norm(ATTENTION_NORM), &[Q, K, V], Inspect::Attention),
        scales(PrevOp::Linear(V), &[O], Inspect::Linear),
        scales(PrevOp::Norm(MLP_NORM), &[UP], Inspect::Mlp),
        scales(PrevOp::Norm(ACT), &[DOWN], Inspect::Linear),
    ],
};

/// MPT 7B and 30B.
pub(crate) const MPT: Class = Class {
    name: "MptForCausalLM",
    model_type: "mpt",
    hidden_size: (&["d_model", "hidden_size"], 2048),
    intermediate_size: InnerSize::FourTimes,
    n_blocks: (&["n_layers", "num_hidden_layers"], 24),
    n_heads: (&["n_heads", "num_attention_heads"], 16),
    n_kv_heads: KvHeads::AsQueries,
    vocab_size: 50_368,
    max_positions: (&["max_seq_len"], 2048),
    norm_eps: (Some("layer_norm_epsilon"), 1e-5),
    tied_head: true,
    attention_bias: (None, false),
    has_mlp_bias_key: false,
    eos_id: None,
    fused: &[Fused {
        name: "attn.Wqkv",
        order: Order::OutIn,
        parts: &[("q", by_kind::queries), ("k", by_kind::keys), ("v", by_kind::values)],
    }],
    gguf: layouts::MPT,
    ..llama::LLAMA
};

const ATTENTION: &str = "attn_config";

/// Wires an MPT model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    check_fixed(config, checkpoint, &[("expansion_ratio", json!(4)), ("no_bias", json!(true))])?;
    let keys = config.raw.get(ATTENTION).cloned().unwrap_or(Json::Null);
    let fixed = [
        ("attn_type", json!("multihead_attention")),
        ("clip_qkv", Json::Null),
        ("prefix_lm", json!(false)),
        ("qk_ln", json!(false)),
        ("alibi", json!(true)),
    ];
    for (key, expected) in fixed {
        if let Some(found) = keys.get(key).filter(|found| !found.is_null() && **found != expected) {
            let problem = format!("{found}, expected {expected}: other models of this class are not supported");
            return Err(bad_key(checkpoint, &format!("{ATTENTION}.{key}"), problem));
        }
    }
    let number = |key: &str, default: Option<f64>| match keys.get(key).filter(|value| !value.is_null()) {
        None => Ok(default),
        Some(value) => match value.as_f64().filter(|number| *number > 0.0 && number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(bad_key(checkpoint, &format!("{ATTENTION}.{key}"), format!("{value}, expected a positive number")))
            }
        },
    };
    let max = number("alibi_bias_max", Some(8.0))?.unwrap_or(8.0);
    let attention = AttentionWiring {
        rope: None,
        scale: number("softmax_scale", None)?,
        alibi: Some(Alibi::PowerAbove { max }),
        ..AttentionWiring::rotated(ATTENTION_NORM, [Q, K, V, O])
    };
    let block = BlockWiring {
        layout: TABLE.layout(0),
        attention,
        mlp: MlpWiring { norm: Some(MLP_NORM), module: plain(UP, Activation::Gelu, ACT, DOWN), norm_after: None },
        residual: Residual::PLAIN,
    };
    let names = Names {
        embedding: "transformer.wte.weight".into(),
        block_prefix: "transformer.blocks".into(),
        final_norm: "transformer.norm_f".into(),
        head: "lm_head.weight".into(),
    };
    let wiring = layered(config, names, block, Vec::new());
    Ok(Wiring { norm: NormKind::LayerNoBias, ropes: Vec::new(), ..wiring })
}
