//! The Llama family: RMSNorm, rotary positions (half-split pairing), grouped-query attention, SwiGLU.
//!
//! Also Mistral (the same block, with a sliding window) and Qwen2 (biases on q, k, v; windows in some blocks).
//! Llama's own `attention_bias` puts one on all four linears of the attention module, its `mlp_bias` on the other three.

use std::sync::Arc;

use serde_json::json;

use super::layers::NormKind;
use super::layout::{reads, scales};
use super::wiring::{
    AttentionWiring, BlockWiring, DenseWiring, FeedForward, InnerWiring, LogitsWiring, MlpWiring, Positions, Residual,
    Wiring,
};
use super::{BlockTable, GroupTable, Inspect, LinearName, NormName, PrevOp, check_fixed};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, GgufArchitecture, InnerSize, KvHeads, LoadError, ModelConfig, Windows};

pub(super) const Q: LinearName = LinearName("self_attn.q_proj");
pub(super) const K: LinearName = LinearName("self_attn.k_proj");
pub(super) const V: LinearName = LinearName("self_attn.v_proj");
pub(super) const O: LinearName = LinearName("self_attn.o_proj");
pub(super) const GATE: LinearName = LinearName("mlp.gate_proj");
pub(super) const UP: LinearName = LinearName("mlp.up_proj");
pub(super) const DOWN: LinearName = LinearName("mlp.down_proj");
pub(super) const ATTENTION_NORM: NormName = NormName("input_layernorm");
pub(super) const MLP_NORM: NormName = NormName("post_attention_layernorm");

/// `o_proj` is scaled only where `v_proj` has as many rows as `o_proj` has columns: with grouped queries one value
/// channel feeds several columns, and the official code leaves the pair out.
const TABLE_GQA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, GATE_UP, DOWN_GROUP] };
const TABLE_MHA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, O_GROUP, GATE_UP, DOWN_GROUP] };

pub(super) const LINEARS: &[super::LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(GATE, GATE, true),
    reads(UP, GATE, true),
    reads(DOWN, DOWN, true),
];
pub(super) const ATTENTION: AttentionWiring = AttentionWiring::rotated(ATTENTION_NORM, [Q, K, V, O]);
const DENSE: DenseWiring = gated(Activation::Silu);
pub(super) const STAGES: &[&[LinearName]] = &[&[K, V, Q], &[O], &[UP, GATE], &[DOWN]];
pub(super) const QKV: GroupTable = scales(PrevOp::Norm(ATTENTION_NORM), &[Q, K, V], Inspect::Attention);
pub(super) const O_GROUP: GroupTable = scales(PrevOp::Linear(V), &[O], Inspect::Linear);
const GATE_UP: GroupTable = scales(PrevOp::Norm(MLP_NORM), &[GATE, UP], Inspect::Mlp);
pub(super) const DOWN_GROUP: GroupTable = scales(PrevOp::Linear(UP), &[DOWN], Inspect::Linear);

/// The feed-forward module with another activation.
pub(super) const fn gated(activation: Activation) -> DenseWiring {
    DenseWiring { inner: InnerWiring::Gated { gate: GATE, up: UP, activation }, down: DOWN, width: None }
}

/// Llama 1 to 3 and what copies it.
pub(crate) const LLAMA: Class = Class {
    name: "LlamaForCausalLM",
    model_type: "llama",
    hidden_size: (&["hidden_size"], 4096),
    intermediate_size: InnerSize::Key("intermediate_size", 11_008),
    n_blocks: (&["num_hidden_layers"], 32),
    n_heads: (&["num_attention_heads"], 32),
    n_kv_heads: KvHeads::Key(None),
    vocab_size: 32_000,
    max_positions: (&["max_position_embeddings"], 2048),
    head_dim: None,
    rope_theta: ("rope_theta", 10_000.0),
    local_rope_theta: None,
    rotary_share: None,
    original_positions: None,
    windows: Windows::Never,
    norm_eps: (Some("rms_norm_eps"), 1e-6),
    tied_head: false,
    attention_bias: (Some("attention_bias"), false),
    has_mlp_bias_key: true,
    eos_id: Some(2),
    own_keys: &[],
    fused: &[],
    gguf: Some(GgufArchitecture { name: "llama", interleaved_rows: true, layout: None }),
};

/// Mistral 7B.
pub(crate) const MISTRAL: Class = Class {
    name: "MistralForCausalLM",
    model_type: "mistral",
    intermediate_size: InnerSize::Key("intermediate_size", 14_336),
    n_kv_heads: KvHeads::Key(Some(8)),
    max_positions: (&["max_position_embeddings"], 4096 * 32),
    windows: Windows::EveryBlock(Some(4096)),
    attention_bias: (None, false),
    has_mlp_bias_key: false,
    ..LLAMA
};

/// Qwen 2 and 2.5: q, k and v have a bias whatever the configuration says.
pub(crate) const QWEN2: Class = Class {
    name: "Qwen2ForCausalLM",
    model_type: "qwen2",
    intermediate_size: InnerSize::Key("intermediate_size", 22_016),
    n_kv_heads: KvHeads::Key(Some(32)),
    vocab_size: 151_936,
    max_positions: (&["max_position_embeddings"], 32_768),
    windows: Windows::SomeBlocks,
    attention_bias: (None, true),
    has_mlp_bias_key: false,
    eos_id: None,
    gguf: Some(GgufArchitecture { name: "qwen2", interleaved_rows: false, layout: None }),
    ..LLAMA
};

/// Wires a Llama or Mistral model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    decoder(config, checkpoint, block(config), may_be_biased(config))
}

/// Wires a Qwen2 model: q, k and v have biases whatever the configuration says.
pub(super) fn qwen2_wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    decoder(config, checkpoint, block(config), vec![Q, K, V])
}

/// The linears that the keys of the configuration give a bias.
pub(super) fn may_be_biased(config: &ModelConfig) -> Vec<LinearName> {
    let attention: &[LinearName] = if config.attention_bias { &[Q, K, V, O] } else { &[] };
    let mlp: &[LinearName] = if config.mlp_bias { &[GATE, UP, DOWN] } else { &[] };
    [attention, mlp].concat()
}

/// Llama's block.
pub(super) fn block(config: &ModelConfig) -> BlockWiring {
    let table = if config.n_heads == config.n_kv_heads { TABLE_MHA } else { TABLE_GQA };
    BlockWiring {
        layout: table.layout(0),
        attention: ATTENTION,
        mlp: MlpWiring { norm: Some(MLP_NORM), module: FeedForward::Dense(DENSE), norm_after: None },
        residual: Residual::PLAIN,
    }
}

/// A decoder of blocks that are all alike.
pub(super) fn decoder(
    config: &ModelConfig,
    checkpoint: &dyn Checkpoint,
    block: BlockWiring,
    biased: Vec<LinearName>,
) -> Result<Wiring, LoadError> {
    // Two names of one function in transformers.
    let is_swish = config.raw.get("hidden_act").is_some_and(|name| *name == "swish");
    if !is_swish {
        check_fixed(config, checkpoint, &[("hidden_act", json!("silu"))])?;
    }
    let block = Arc::new(block);
    Ok(named(config, vec![block; config.n_blocks], biased))
}

/// A decoder whose tensors have Llama's names.
pub(super) fn named(config: &ModelConfig, blocks: Vec<Arc<BlockWiring>>, biased: Vec<LinearName>) -> Wiring {
    Wiring {
        embedding: "model.embed_tokens.weight".into(),
        embedding_scale: None,
        embedding_norm: None,
        projections: None,
        positions: Positions::Rotary,
        ropes: vec![config.rope()],
        block_prefix: "model.layers".into(),
        blocks,
        norm: NormKind::Rms,
        scaled_activations: false,
        biased,
        final_norm: Some("model.norm".into()),
        head: (!config.tie_word_embeddings).then(|| "lm_head.weight".into()),
        head_bias: None,
        logits: LogitsWiring::default(),
        notes: Vec::new(),
    }
}
