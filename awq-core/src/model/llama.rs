//! The Llama family: RMSNorm, rotary positions (half-split pairing), grouped-query attention, SwiGLU.
//!
//! Also Mistral (the same block, with a sliding window) and Qwen2 (biases on q, k, v; windows in some blocks).
//! Llama's own `attention_bias` puts one on all four linears of the attention module, its `mlp_bias` on the other three.

use serde_json::json;

use super::layers::NormKind;
use super::wiring::{AttentionWiring, InnerWiring, MlpWiring, Positions, Wiring};
use super::{BlockLayout, Inspect, LinearName, NormName, PrevOp, ScaleGroup, check_fixed, reads};
use crate::load::{Checkpoint, Class, KvHeads, LoadError, ModelConfig};

const Q: LinearName = LinearName("self_attn.q_proj");
const K: LinearName = LinearName("self_attn.k_proj");
const V: LinearName = LinearName("self_attn.v_proj");
const O: LinearName = LinearName("self_attn.o_proj");
const GATE: LinearName = LinearName("mlp.gate_proj");
const UP: LinearName = LinearName("mlp.up_proj");
const DOWN: LinearName = LinearName("mlp.down_proj");
const ATTENTION_NORM: NormName = NormName("input_layernorm");
const MLP_NORM: NormName = NormName("post_attention_layernorm");

/// `o_proj` is scaled only where `v_proj` has as many rows as `o_proj` has columns: with grouped queries one value
/// channel feeds several columns, and the official code leaves the pair out.
static LAYOUT_GQA: BlockLayout =
    BlockLayout { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, GATE_UP, DOWN_GROUP] };
static LAYOUT_MHA: BlockLayout =
    BlockLayout { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, O_GROUP, GATE_UP, DOWN_GROUP] };

const LINEARS: &[super::LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(GATE, GATE, true),
    reads(UP, GATE, true),
    reads(DOWN, DOWN, true),
];
const STAGES: &[&[LinearName]] = &[&[K, V, Q], &[O], &[UP, GATE], &[DOWN]];
const QKV: ScaleGroup =
    ScaleGroup { prev_op: PrevOp::Norm(ATTENTION_NORM), linears: &[Q, K, V], inspect: Inspect::Attention };
const O_GROUP: ScaleGroup = ScaleGroup { prev_op: PrevOp::Linear(V), linears: &[O], inspect: Inspect::Linear };
const GATE_UP: ScaleGroup = ScaleGroup { prev_op: PrevOp::Norm(MLP_NORM), linears: &[GATE, UP], inspect: Inspect::Mlp };
const DOWN_GROUP: ScaleGroup = ScaleGroup { prev_op: PrevOp::Linear(UP), linears: &[DOWN], inspect: Inspect::Linear };

/// Llama 1 to 3 and what copies it.
pub(crate) const LLAMA: Class = Class {
    name: "LlamaForCausalLM",
    model_type: "llama",
    hidden_size: 4096,
    intermediate_size: ("intermediate_size", 11_008),
    n_blocks: 32,
    n_heads: 32,
    n_kv_heads: KvHeads::Key(None),
    vocab_size: 32_000,
    max_positions: 2048,
    norm_eps: (Some("rms_norm_eps"), 1e-6),
    tied_head: false,
    attention_bias: (Some("attention_bias"), false),
    has_mlp_bias_key: true,
    eos_id: Some(2),
};

/// Mistral 7B.
pub(crate) const MISTRAL: Class = Class {
    name: "MistralForCausalLM",
    model_type: "mistral",
    intermediate_size: ("intermediate_size", 14_336),
    n_kv_heads: KvHeads::Key(Some(8)),
    max_positions: 4096 * 32,
    attention_bias: (None, false),
    has_mlp_bias_key: false,
    ..LLAMA
};

/// Qwen 2 and 2.5: q, k and v have a bias whatever the configuration says.
pub(crate) const QWEN2: Class = Class {
    name: "Qwen2ForCausalLM",
    model_type: "qwen2",
    intermediate_size: ("intermediate_size", 22_016),
    n_kv_heads: KvHeads::Key(Some(32)),
    vocab_size: 151_936,
    max_positions: 32_768,
    attention_bias: (None, true),
    has_mlp_bias_key: false,
    eos_id: None,
    ..LLAMA
};

/// Wires a Llama or Mistral model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let attention: &[LinearName] = if config.attention_bias { &[Q, K, V, O] } else { &[] };
    let mlp: &[LinearName] = if config.mlp_bias { &[GATE, UP, DOWN] } else { &[] };
    wire(config, checkpoint, [attention, mlp].concat())
}

/// Wires a Qwen2 model: q, k and v have biases whatever the configuration says.
pub(super) fn qwen2_wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    wire(config, checkpoint, vec![Q, K, V])
}

fn wire(config: &ModelConfig, checkpoint: &dyn Checkpoint, biased: Vec<LinearName>) -> Result<Wiring, LoadError> {
    // Two names of one function in transformers.
    let is_swish = config.raw.get("hidden_act").is_some_and(|name| *name == "swish");
    if !is_swish {
        check_fixed(config, checkpoint, &[("hidden_act", json!("silu"))])?;
    }
    Ok(Wiring {
        layout: if config.n_heads == config.n_kv_heads { &LAYOUT_MHA } else { &LAYOUT_GQA },
        embedding: "model.embed_tokens.weight".into(),
        positions: Positions::Rotary,
        blocks: "model.layers".into(),
        norm: NormKind::Rms,
        attention: AttentionWiring { norm: ATTENTION_NORM, q: Q, k: K, v: V, o: O },
        mlp: MlpWiring { norm: MLP_NORM, inner: InnerWiring::SwiGlu { gate: GATE, up: UP }, down: DOWN },
        biased,
        final_norm: "model.norm".into(),
        head: (!config.tie_word_embeddings).then(|| "lm_head.weight".into()),
        notes: Vec::new(),
    })
}
