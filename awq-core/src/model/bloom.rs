//! BLOOM: scores that fall with the distance (ALiBi) in the place of positions, normalized embeddings, LayerNorms, a GELU without a
//! gate, a bias on every linear, a tied head.
//!
//! Queries, keys and values of a head lie together in one tensor, which is taken apart when it is read. Groups are those of the
//! official AWQ code (`auto_scale.py`, `BloomBlock`), which leaves the output projection without a scale; it judges q, k, v and the
//! first linear by the block's output, here each by that of its module.

use super::gpt_neox::{Names, layered, plain};
use super::layout::{reads, scales};
use super::wiring::{Alibi, AttentionWiring, BlockWiring, MlpWiring, Residual, Wiring};
use super::{BlockTable, Inspect, LinearName, NormName, PrevOp, check_fixed, llama};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, Fused, InnerSize, KvHeads, LoadError, ModelConfig, Order, by_key_head, layouts};

const Q: LinearName = LinearName("self_attention.query_key_value.q");
const K: LinearName = LinearName("self_attention.query_key_value.k");
const V: LinearName = LinearName("self_attention.query_key_value.v");
const O: LinearName = LinearName("self_attention.dense");
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

/// BLOOM of all sizes, and BLOOMZ. No key bounds its positions; texts are as long as `seq_length` says.
pub(crate) const BLOOM: Class = Class {
    name: "BloomForCausalLM",
    model_type: "bloom",
    hidden_size: (&["n_embed", "hidden_size"], 64),
    intermediate_size: InnerSize::FourTimes,
    n_blocks: (&["n_layer", "num_hidden_layers"], 2),
    n_heads: (&["n_head", "num_attention_heads"], 8),
    n_kv_heads: KvHeads::AsQueries,
    vocab_size: 250_880,
    max_positions: (&["seq_length"], 2048),
    norm_eps: (Some("layer_norm_epsilon"), 1e-5),
    tied_head: true,
    attention_bias: (None, true),
    has_mlp_bias_key: false,
    fused: &[Fused {
        name: "self_attention.query_key_value",
        order: Order::OutIn,
        parts: &[("q", by_key_head::queries), ("k", by_key_head::keys), ("v", by_key_head::values)],
    }],
    gguf: layouts::BLOOM,
    ..llama::LLAMA
};

/// Wires a BLOOM model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    check_fixed(config, checkpoint, &[("apply_residual_connection_post_layernorm", false.into())])?;
    let attention = AttentionWiring {
        rope: None,
        alibi: Some(Alibi::PowerBelow),
        ..AttentionWiring::rotated(ATTENTION_NORM, [Q, K, V, O])
    };
    let module = plain(UP, Activation::GeluTanh, ACT, DOWN);
    let block = BlockWiring {
        layout: TABLE.layout(0),
        attention,
        mlp: MlpWiring { norm: Some(MLP_NORM), module, norm_after: None },
        residual: Residual::PLAIN,
    };
    // Checkpoints saved without a head lack the name of the model around the blocks.
    let prefix = if checkpoint.shape("word_embeddings.weight").is_some() { "" } else { "transformer." };
    let names = Names {
        embedding: format!("{prefix}word_embeddings.weight"),
        block_prefix: format!("{prefix}h"),
        final_norm: format!("{prefix}ln_f"),
        head: "lm_head.weight".into(),
    };
    let wiring = layered(config, names, block, vec![Q, K, V, O, UP, DOWN]);
    let embedding_norm = Some(format!("{prefix}word_embeddings_layernorm"));
    Ok(Wiring { embedding_norm, ropes: Vec::new(), ..wiring })
}
