//! GPT-NeoX (Pythia): LayerNorms, heads that are rotated in part, a GELU without a gate, and most often modules that stand side by
//! side, each behind a norm of its own.
//!
//! Queries, keys and values of a head lie together in one tensor, which is taken apart when it is read. Groups are those of the
//! official AWQ code (`auto_scale.py`, `neox`), which leaves the output projection without a scale. The inverse of the scale behind
//! the activation is stored, as its `ScaledActivation` does.

use std::sync::Arc;

use serde_json::json;

use super::keys::activation;
use super::layers::NormKind;
use super::layout::{reads, scales};
use super::wiring::{
    AttentionWiring, BlockWiring, DenseWiring, FeedForward, InnerWiring, LogitsWiring, MlpWiring, Order, Positions,
    Residual, Wiring,
};
use super::{BlockTable, Inspect, LinearName, NormName, PrevOp, llama};
use crate::activation::Activation;
use crate::load::{self, Checkpoint, Class, Fused, InnerSize, KvHeads, LoadError, ModelConfig, by_key_head, layouts};

const Q: LinearName = LinearName("attention.query_key_value.q");
const K: LinearName = LinearName("attention.query_key_value.k");
const V: LinearName = LinearName("attention.query_key_value.v");
const O: LinearName = LinearName("attention.dense");
const UP: LinearName = LinearName("mlp.dense_h_to_4h");
const DOWN: LinearName = LinearName("mlp.dense_4h_to_h");
const ATTENTION_NORM: NormName = NormName("input_layernorm");
const MLP_NORM: NormName = NormName("post_attention_layernorm");
const ACT: NormName = NormName("mlp.act");

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
        scales(PrevOp::Norm(MLP_NORM), &[UP], Inspect::Mlp),
        scales(PrevOp::Norm(ACT), &[DOWN], Inspect::Linear),
    ],
};

const PARALLEL: &str = "use_parallel_residual";
const SHARE: &str = "rotary_pct";

/// GPT-NeoX 20B and Pythia. The linears of the feed-forward module always have a bias.
pub(crate) const GPT_NEOX: Class = Class {
    name: "GPTNeoXForCausalLM",
    model_type: "gpt_neox",
    hidden_size: (&["hidden_size"], 6144),
    intermediate_size: InnerSize::Key("intermediate_size", 24_576),
    n_blocks: (&["num_hidden_layers"], 44),
    n_heads: (&["num_attention_heads"], 64),
    n_kv_heads: KvHeads::AsQueries,
    vocab_size: 50_432,
    rope_theta: ("rotary_emb_base", 10_000.0),
    rotary_share: Some((SHARE, 0.25)),
    norm_eps: (Some("layer_norm_eps"), 1e-5),
    attention_bias: (Some("attention_bias"), true),
    has_mlp_bias_key: false,
    own_keys: &[PARALLEL, SHARE, "rotary_emb_base"],
    fused: &[Fused {
        name: "attention.query_key_value",
        order: load::Order::OutIn,
        parts: &[("q", by_key_head::queries), ("k", by_key_head::keys), ("v", by_key_head::values)],
    }],
    gguf: layouts::GPT_NEOX,
    ..llama::LLAMA
};

/// What a decoder with LayerNorms calls its tensors.
pub(super) struct Names {
    pub(super) embedding: String,
    pub(super) block_prefix: String,
    pub(super) final_norm: String,
    pub(super) head: String,
}

/// A decoder with LayerNorms whose blocks are all alike, and whose positions enter through queries and keys.
pub(super) fn layered(config: &ModelConfig, names: Names, block: BlockWiring, biased: Vec<LinearName>) -> Wiring {
    let block = Arc::new(block);
    Wiring {
        embedding: names.embedding,
        embedding_scale: None,
        embedding_norm: None,
        projections: None,
        positions: Positions::Rotary,
        ropes: vec![config.rope()],
        block_prefix: names.block_prefix,
        blocks: vec![block; config.n_blocks],
        norm: NormKind::Layer,
        scaled_activations: false,
        biased,
        final_norm: Some(names.final_norm),
        head: (!config.tie_word_embeddings).then_some(names.head),
        head_bias: None,
        logits: LogitsWiring::default(),
        notes: Vec::new(),
    }
}

/// A feed-forward module without a gate, whose activation can take the inverse of a scale.
pub(super) fn plain(up: LinearName, activation: Activation, scale: NormName, down: LinearName) -> FeedForward {
    FeedForward::Dense(DenseWiring {
        inner: InnerWiring::Plain { up, activation, scale: Some(scale) },
        down,
        width: None,
    })
}

/// Wires a GPT-NeoX model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let is_parallel = config.raw.get(PARALLEL) != Some(&json!(false));
    let activation = activation(config, checkpoint, "hidden_act", Activation::Gelu)?;
    let block = BlockWiring {
        layout: TABLE.layout(0),
        attention: AttentionWiring::rotated(ATTENTION_NORM, [Q, K, V, O]),
        mlp: MlpWiring { norm: Some(MLP_NORM), module: plain(UP, activation, ACT, DOWN), norm_after: None },
        residual: Residual { order: if is_parallel { Order::SideBySide } else { Order::AttentionFirst }, scale: None },
    };
    let names = Names {
        embedding: "gpt_neox.embed_in.weight".into(),
        block_prefix: "gpt_neox.layers".into(),
        final_norm: "gpt_neox.final_layer_norm".into(),
        head: "embed_out.weight".into(),
    };
    let attention: &[LinearName] = if config.attention_bias { &[Q, K, V, O] } else { &[] };
    Ok(layered(config, names, block, [attention, &[UP, DOWN]].concat()))
}
