//! Phi-1, Phi-1.5 and Phi-2: both modules read the output of one LayerNorm, heads are rotated in part, a GELU without a gate, a
//! bias on every linear and on the head.
//!
//! The AWQ code does not have it: groups are as for Falcon 7B, where one norm feeds both modules. Heads of queries and keys may be
//! normalized.

use serde_json::json;

use super::gpt_neox::{Names, layered, plain};
use super::keys::activation;
use super::layout::{reads, scales};
use super::wiring::{AttentionWiring, BlockWiring, MlpWiring, NormSpan, Order, QkNorms, Residual, Wiring};
use super::{BlockTable, GroupTable, Inspect, LinearFacts, LinearName, NormName, PrevOp, llama};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, InnerSize, KvHeads, LoadError, ModelConfig, layouts};

const Q: LinearName = llama::Q;
const K: LinearName = llama::K;
const V: LinearName = llama::V;
const O: LinearName = LinearName("self_attn.dense");
const UP: LinearName = LinearName("mlp.fc1");
const DOWN: LinearName = LinearName("mlp.fc2");
const NORM: NormName = llama::ATTENTION_NORM;
const ACT: NormName = NormName("mlp.act");

const LINEARS: &[LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(UP, Q, true),
    reads(DOWN, DOWN, true),
];
const STAGES: &[&[LinearName]] = &[&[K, V, Q], &[O], &[UP], &[DOWN]];
const ALL_INPUTS: GroupTable = scales(PrevOp::Norm(NORM), &[Q, K, V, UP], Inspect::Both);
const O_GROUP: GroupTable = scales(PrevOp::Linear(V), &[O], Inspect::Linear);
const DOWN_GROUP: GroupTable = scales(PrevOp::Norm(ACT), &[DOWN], Inspect::Linear);
const TABLE_GQA: BlockTable = BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[ALL_INPUTS, DOWN_GROUP] };
const TABLE_MHA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[ALL_INPUTS, O_GROUP, DOWN_GROUP] };

const QK_NORM: &str = "qk_layernorm";
const SHARE: &str = "partial_rotary_factor";
const QK_NORMS: QkNorms =
    QkNorms { q: NormName("self_attn.q_layernorm"), k: NormName("self_attn.k_layernorm"), span: NormSpan::Head };

/// Phi-1 to Phi-2.
pub(crate) const PHI: Class = Class {
    name: "PhiForCausalLM",
    model_type: "phi",
    hidden_size: (&["hidden_size"], 2048),
    intermediate_size: InnerSize::Key("intermediate_size", 8192),
    n_blocks: (&["num_hidden_layers"], 24),
    n_kv_heads: KvHeads::Key(None),
    vocab_size: 51_200,
    rotary_share: Some((SHARE, 0.5)),
    norm_eps: (Some("layer_norm_eps"), 1e-5),
    attention_bias: (None, true),
    has_mlp_bias_key: false,
    own_keys: &[SHARE, QK_NORM],
    gguf: layouts::PHI,
    ..llama::LLAMA
};

/// Wires a Phi model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let table = if config.n_heads == config.n_kv_heads { TABLE_MHA } else { TABLE_GQA };
    let activation = activation(config, checkpoint, "hidden_act", Activation::GeluTanh)?;
    let block = BlockWiring {
        layout: table.layout(0),
        attention: AttentionWiring {
            qk_norms: (config.raw.get(QK_NORM) == Some(&json!(true))).then_some(QK_NORMS),
            ..AttentionWiring::rotated(NORM, [Q, K, V, O])
        },
        mlp: MlpWiring { norm: Some(NORM), module: plain(UP, activation, ACT, DOWN), norm_after: None },
        residual: Residual { order: Order::SideBySide, scale: None },
    };
    let names = Names {
        embedding: "model.embed_tokens.weight".into(),
        block_prefix: "model.layers".into(),
        final_norm: "model.final_layernorm".into(),
        head: "lm_head.weight".into(),
    };
    let wiring = layered(config, names, block, vec![Q, K, V, O, UP, DOWN]);
    Ok(Wiring { head_bias: Some("lm_head.bias".into()), ..wiring })
}
