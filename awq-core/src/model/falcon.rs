//! Falcon: LayerNorms, a GELU without a gate, and one key head for all queries or for a group of them.
//!
//! In Falcon 7B one norm feeds both modules, in the newer architecture (40B) each module has its own; models whose modules stand
//! one after the other are read as well. Groups are those of the official AWQ code (`auto_scale.py`, `falcon`), which leaves the
//! output projection without a scale. Falcon-RW has ALiBi in the place of rotations.

use serde_json::json;

use super::gpt_neox::{Names, layered, plain};
use super::keys::activation;
use super::layout::{reads, scales};
use super::wiring::{Alibi, AttentionWiring, BlockWiring, MlpWiring, Order, Residual, Wiring};
use super::{BlockTable, GroupTable, Inspect, LinearFacts, LinearName, NormName, PrevOp, bad_key, llama};
use crate::activation::Activation;
use crate::load::{self, Checkpoint, Class, Fused, InnerSize, KvHeads, LoadError, ModelConfig, by_key_head, layouts};

const Q: LinearName = LinearName("self_attention.query_key_value.q");
const K: LinearName = LinearName("self_attention.query_key_value.k");
const V: LinearName = LinearName("self_attention.query_key_value.v");
const O: LinearName = LinearName("self_attention.dense");
const UP: LinearName = LinearName("mlp.dense_h_to_4h");
const DOWN: LinearName = LinearName("mlp.dense_4h_to_h");
const ACT: NormName = NormName("mlp.act");
/// Of models with one norm, or with modules one after the other.
const NORM: NormName = NormName("input_layernorm");
const AFTER_ATTENTION: NormName = NormName("post_attention_layernorm");
/// Of models with a norm for each module.
const ATTENTION_NORM: NormName = NormName("ln_attn");
const MLP_NORM: NormName = NormName("ln_mlp");

const STAGES: &[&[LinearName]] = &[&[K, V, Q], &[O], &[UP], &[DOWN]];
const fn linears(up_input: LinearName) -> [LinearFacts; 6] {
    [
        reads(Q, Q, false),
        reads(K, Q, false),
        reads(V, Q, true),
        reads(O, O, true),
        reads(UP, up_input, true),
        reads(DOWN, DOWN, true),
    ]
}
const DOWN_GROUP: GroupTable = scales(PrevOp::Norm(ACT), &[DOWN], Inspect::Linear);
/// One norm feeds both modules.
const SHARED: BlockTable = BlockTable {
    linears: &linears(Q),
    stages: STAGES,
    scale_groups: &[scales(PrevOp::Norm(NORM), &[Q, K, V, UP], Inspect::Both), DOWN_GROUP],
};
/// A norm for each, side by side.
const SEPARATE: BlockTable = BlockTable {
    linears: &linears(UP),
    stages: STAGES,
    scale_groups: &[
        scales(PrevOp::Norm(ATTENTION_NORM), &[Q, K, V], Inspect::Attention),
        scales(PrevOp::Norm(MLP_NORM), &[UP], Inspect::Mlp),
        DOWN_GROUP,
    ],
};
/// One after the other.
const IN_TURN: BlockTable = BlockTable {
    linears: &linears(UP),
    stages: STAGES,
    scale_groups: &[
        scales(PrevOp::Norm(NORM), &[Q, K, V], Inspect::Attention),
        scales(PrevOp::Norm(AFTER_ATTENTION), &[UP], Inspect::Mlp),
        DOWN_GROUP,
    ],
};

const NEW: &str = "new_decoder_architecture";
const PARALLEL: &str = "parallel_attn";
const ALIBI: &str = "alibi";
const N_NORMS: &str = "num_ln_in_parallel_attn";

/// Falcon 1B to 180B. `bias` is about all linears.
pub(crate) const FALCON: Class = Class {
    name: "FalconForCausalLM",
    model_type: "falcon",
    hidden_size: (&["n_embed", "hidden_size"], 4544),
    intermediate_size: InnerSize::KeyOrFourTimes("ffn_hidden_size"),
    n_heads: (&["num_attention_heads"], 71),
    n_kv_heads: KvHeads::MultiQuery { grouped: Some((NEW, "num_kv_heads")) },
    vocab_size: 65_024,
    norm_eps: (Some("layer_norm_epsilon"), 1e-5),
    tied_head: true,
    attention_bias: (Some("bias"), false),
    has_mlp_bias_key: false,
    eos_id: Some(11),
    own_keys: &[PARALLEL, ALIBI],
    fused: &[Fused {
        name: "self_attention.query_key_value",
        order: load::Order::OutIn,
        parts: &[("q", by_key_head::queries), ("k", by_key_head::keys), ("v", by_key_head::values)],
    }],
    gguf: layouts::FALCON,
    ..llama::LLAMA
};

/// Wires a Falcon model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let is = |key: &str, default: bool| config.raw.get(key).map_or(default, |value| *value == json!(true));
    let (is_new, is_parallel) = (is(NEW, false), is(PARALLEL, true));
    let n_norms = config.raw.get(N_NORMS).filter(|value| !value.is_null());
    let is_separate = match n_norms {
        None => is_new,
        Some(value) if *value == 1 => false,
        Some(value) if *value == 2 && is_new => true,
        Some(value) => {
            let problem = format!("{value}, expected 1, or 2 with {NEW:?}: others do not run in transformers");
            return Err(bad_key(checkpoint, N_NORMS, problem));
        }
    };
    if is_new && !is_parallel {
        let problem = format!("false, but models with {NEW:?} have modules side by side; set it to true");
        return Err(bad_key(checkpoint, PARALLEL, problem));
    }
    let (table, norm, mlp_norm) = match (is_parallel, is_separate) {
        (true, false) => (SHARED, NORM, NORM),
        (true, true) => (SEPARATE, ATTENTION_NORM, MLP_NORM),
        (false, _) => (IN_TURN, NORM, AFTER_ATTENTION),
    };
    let activation = activation(config, checkpoint, "activation", Activation::Gelu)?;
    let has_alibi = is(ALIBI, false);
    let attention = AttentionWiring::rotated(norm, [Q, K, V, O]);
    let attention = match has_alibi {
        true => AttentionWiring { rope: None, alibi: Some(Alibi::Bf16), ..attention },
        false => attention,
    };
    let block = BlockWiring {
        layout: table.layout(0),
        attention,
        mlp: MlpWiring { norm: Some(mlp_norm), module: plain(UP, activation, ACT, DOWN), norm_after: None },
        residual: Residual { order: if is_parallel { Order::SideBySide } else { Order::AttentionFirst }, scale: None },
    };
    let names = Names {
        embedding: "transformer.word_embeddings.weight".into(),
        block_prefix: "transformer.h".into(),
        final_norm: "transformer.ln_f".into(),
        head: "lm_head.weight".into(),
    };
    let biased = if config.attention_bias { vec![Q, K, V, O, UP, DOWN] } else { Vec::new() };
    let wiring = layered(config, names, block, biased);
    Ok(if has_alibi { Wiring { ropes: Vec::new(), ..wiring } } else { wiring })
}
