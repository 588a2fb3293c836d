//! StableLM: Llama's linears under LayerNorms, heads that are rotated in part, biases on q, k and v where a key says so. In
//! models with a parallel residual both modules read the output of one norm, and so share a scale. StableLM 2 12B has a norm of its
//! own for each head of queries and keys.

use std::sync::Arc;

use serde_json::json;

use super::keys::activation;
use super::layers::NormKind;
use super::layout::{reads, scales};
use super::llama::{
    ATTENTION_NORM, DOWN, DOWN_GROUP, GATE, K, LLAMA, O, O_GROUP, Q, STAGES, UP, V, block, gated, named,
};
use super::wiring::{AttentionWiring, BlockWiring, FeedForward, MlpWiring, NormSpan, Order, QkNorms, Residual, Wiring};
use super::{BlockTable, GroupTable, Inspect, LinearFacts, NormName, PrevOp};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, InnerSize, KvHeads, LoadError, ModelConfig, layouts};

const PARALLEL: &str = "use_parallel_residual";
const QKV_BIAS: &str = "use_qkv_bias";
const QK_NORM: &str = "qk_layernorm";
const SHARE: &str = "partial_rotary_factor";

/// StableLM 3B, 2 1.6B and 2 12B.
pub(crate) const STABLELM: Class = Class {
    name: "StableLmForCausalLM",
    model_type: "stablelm",
    hidden_size: (&["hidden_size"], 2560),
    intermediate_size: InnerSize::Key("intermediate_size", 6912),
    n_kv_heads: KvHeads::Key(Some(32)),
    vocab_size: 50_304,
    max_positions: (&["max_position_embeddings"], 4096),
    rotary_share: Some((SHARE, 0.25)),
    norm_eps: (Some("layer_norm_eps"), 1e-5),
    attention_bias: (Some(QKV_BIAS), false),
    has_mlp_bias_key: false,
    eos_id: Some(0),
    own_keys: &[PARALLEL, QKV_BIAS, QK_NORM, SHARE],
    gguf: layouts::STABLELM,
    ..LLAMA
};

/// Of blocks whose modules stand side by side.
const LINEARS: &[LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(GATE, Q, true),
    reads(UP, Q, true),
    reads(DOWN, DOWN, true),
];
const ALL_INPUTS: GroupTable = scales(PrevOp::Norm(ATTENTION_NORM), &[Q, K, V, GATE, UP], Inspect::Both);
const TABLE_GQA: BlockTable = BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[ALL_INPUTS, DOWN_GROUP] };
const TABLE_MHA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[ALL_INPUTS, O_GROUP, DOWN_GROUP] };

/// Wires a StableLM model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let module = FeedForward::Dense(gated(activation(config, checkpoint, "hidden_act", Activation::Silu)?));
    let has_qk_norms = config.raw.get(QK_NORM) == Some(&json!(true));
    let qk_norms = has_qk_norms.then_some(QkNorms {
        q: NormName("self_attn.q_layernorm.norms.{}"),
        k: NormName("self_attn.k_layernorm.norms.{}"),
        span: NormSpan::OwnHead { n_q: config.n_heads, n_kv: config.n_kv_heads },
    });
    let plain = block(config);
    let plain = BlockWiring { attention: AttentionWiring { qk_norms, ..plain.attention }, ..plain };
    let block = if config.raw.get(PARALLEL) == Some(&json!(true)) {
        let table = if config.n_heads == config.n_kv_heads { TABLE_MHA } else { TABLE_GQA };
        BlockWiring {
            layout: table.layout(0),
            mlp: MlpWiring { norm: Some(ATTENTION_NORM), module, norm_after: None },
            residual: Residual { order: Order::SideBySide, scale: None },
            ..plain
        }
    } else {
        BlockWiring { mlp: MlpWiring { module, ..plain.mlp }, ..plain }
    };
    let biased = if config.attention_bias { vec![Q, K, V] } else { Vec::new() };
    let block = Arc::new(block);
    Ok(Wiring { norm: NormKind::Layer, ..named(config, vec![block; config.n_blocks], biased) })
}
