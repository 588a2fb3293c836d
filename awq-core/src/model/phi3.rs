//! Phi-3 and Phi-4-mini: Llama's block, with q, k and v in one tensor, and gate and up in another.
//!
//! They are taken apart when they are read, so that queries and keys are not clipped; AutoAWQ, which goes by names,
//! clips them here.

use std::sync::Arc;

use super::keys::activation;
use super::layout::{reads, scales};
use super::llama::{ATTENTION_NORM, DOWN, LLAMA, MLP_NORM, O, block, named};
use super::wiring::{AttentionWiring, BlockWiring, DenseWiring, FeedForward, InnerWiring, MlpWiring, Wiring};
use super::{BlockTable, GroupTable, Inspect, LinearFacts, LinearName, PrevOp};
use crate::activation::Activation;
use crate::load::{
    Checkpoint, Class, Fused, InnerSize, KvHeads, LoadError, ModelConfig, Order, Rows, Windows, by_kind, layouts,
};

const Q: LinearName = LinearName("self_attn.qkv_proj.q");
const K: LinearName = LinearName("self_attn.qkv_proj.k");
const V: LinearName = LinearName("self_attn.qkv_proj.v");
const GATE: LinearName = LinearName("mlp.gate_up_proj.gate");
const UP: LinearName = LinearName("mlp.gate_up_proj.up");

const LINEARS: &[LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(GATE, GATE, true),
    reads(UP, GATE, true),
    reads(DOWN, DOWN, true),
];
const STAGES: &[&[LinearName]] = &[&[K, V, Q], &[O], &[UP, GATE], &[DOWN]];
const QKV: GroupTable = scales(PrevOp::Norm(ATTENTION_NORM), &[Q, K, V], Inspect::Attention);
const O_GROUP: GroupTable = scales(PrevOp::Linear(V), &[O], Inspect::Linear);
const GATE_UP: GroupTable = scales(PrevOp::Norm(MLP_NORM), &[GATE, UP], Inspect::Mlp);
const DOWN_GROUP: GroupTable = scales(PrevOp::Linear(UP), &[DOWN], Inspect::Linear);
const TABLE_GQA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, GATE_UP, DOWN_GROUP] };
const TABLE_MHA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, O_GROUP, GATE_UP, DOWN_GROUP] };

const SHARE: &str = "partial_rotary_factor";

/// Phi-3 mini and medium, Phi-3.5 mini, Phi-4 and Phi-4-mini.
pub(crate) const PHI3: Class = Class {
    name: "Phi3ForCausalLM",
    model_type: "phi3",
    hidden_size: (&["hidden_size"], 3072),
    intermediate_size: InnerSize::Key("intermediate_size", 8192),
    n_kv_heads: KvHeads::Key(None),
    vocab_size: 32_064,
    max_positions: (&["max_position_embeddings"], 4096),
    rotary_share: Some((SHARE, 1.0)),
    original_positions: Some(4096),
    windows: Windows::EveryBlock(None),
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    attention_bias: (None, false),
    has_mlp_bias_key: false,
    eos_id: Some(32_000),
    own_keys: &[SHARE],
    fused: &[
        Fused {
            name: "self_attn.qkv_proj",
            order: Order::OutIn,
            parts: &[("q", by_kind::queries), ("k", by_kind::keys), ("v", by_kind::values)],
        },
        Fused { name: "mlp.gate_up_proj", order: Order::OutIn, parts: &[("gate", gates), ("up", ups)] },
    ],
    gguf: layouts::PHI3,
    ..LLAMA
};

fn gates(config: &ModelConfig) -> Rows {
    Rows::run(0, config.intermediate_size)
}

fn ups(config: &ModelConfig) -> Rows {
    Rows::run(config.intermediate_size, config.intermediate_size)
}

/// Wires a Phi-3 model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let table = if config.n_heads == config.n_kv_heads { TABLE_MHA } else { TABLE_GQA };
    let activation = activation(config, checkpoint, "hidden_act", Activation::Silu)?;
    let block = block(config);
    let block = Arc::new(BlockWiring {
        layout: table.layout(0),
        attention: AttentionWiring { q: Q, k: K, v: V, ..block.attention },
        mlp: MlpWiring {
            module: FeedForward::Dense(DenseWiring {
                inner: InnerWiring::Gated { gate: GATE, up: UP, activation },
                down: DOWN,
                width: None,
            }),
            ..block.mlp
        },
        ..block
    });
    Ok(named(config, vec![block; config.n_blocks], Vec::new()))
}
