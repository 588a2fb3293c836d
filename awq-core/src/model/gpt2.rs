//! GPT-2 and GPT-BigCode (StarCoder): learned positions, LayerNorms, a GELU without a gate, a bias on every linear, a tied head.
//!
//! GPT-2 stores its weights transposed, and queries, keys and values in one tensor; both are undone when it is read, so that its
//! linears are called `attn.c_attn.q` and `mlp.c_fc.transposed`. BigCode stores them as others do; it has one key head for all
//! queries, or as many as there are. Groups are those that the official AWQ code has for BigCode, and for the output projection of
//! GPT-2 what it has for OPT.

use super::gpt_neox::{Names, layered, plain};
use super::keys::activation;
use super::layout::{reads, scales};
use super::wiring::{AttentionWiring, BlockWiring, MlpWiring, Positions, Residual, Wiring};
use super::{BlockTable, GroupTable, Inspect, LinearFacts, LinearName, NormName, PrevOp, llama};
use crate::activation::Activation;
use crate::load::{
    Checkpoint, Class, Fused, InnerSize, KvHeads, LoadError, ModelConfig, Order, Rows, by_key_head, by_kind, layouts,
};

const Q: LinearName = LinearName("attn.c_attn.q");
const K: LinearName = LinearName("attn.c_attn.k");
const V: LinearName = LinearName("attn.c_attn.v");
const ATTENTION_NORM: NormName = NormName("ln_1");
const MLP_NORM: NormName = NormName("ln_2");
const ACT: NormName = NormName("mlp.act");

/// GPT-2's other linears.
const TURNED: [LinearName; 3] =
    [LinearName("attn.c_proj.transposed"), LinearName("mlp.c_fc.transposed"), LinearName("mlp.c_proj.transposed")];
/// BigCode's.
const AS_STORED: [LinearName; 3] = [LinearName("attn.c_proj"), LinearName("mlp.c_fc"), LinearName("mlp.c_proj")];

const fn linears([o, up, down]: [LinearName; 3]) -> [LinearFacts; 6] {
    [
        reads(Q, Q, false),
        reads(K, Q, false),
        reads(V, Q, true),
        reads(o, o, true),
        reads(up, up, true),
        reads(down, down, true),
    ]
}
const QKV: GroupTable = scales(PrevOp::Norm(ATTENTION_NORM), &[Q, K, V], Inspect::Attention);
const TABLE_GPT2: BlockTable = BlockTable {
    linears: &linears(TURNED),
    stages: &[&[K, V, Q], &[TURNED[0]], &[TURNED[1]], &[TURNED[2]]],
    scale_groups: &[
        QKV,
        scales(PrevOp::Linear(V), &[TURNED[0]], Inspect::Linear),
        scales(PrevOp::Norm(MLP_NORM), &[TURNED[1]], Inspect::Mlp),
        scales(PrevOp::Norm(ACT), &[TURNED[2]], Inspect::Linear),
    ],
};
const TABLE_BIGCODE: BlockTable = BlockTable {
    linears: &linears(AS_STORED),
    stages: &[&[K, V, Q], &[AS_STORED[0]], &[AS_STORED[1]], &[AS_STORED[2]]],
    scale_groups: &[
        QKV,
        scales(PrevOp::Norm(MLP_NORM), &[AS_STORED[1]], Inspect::Mlp),
        scales(PrevOp::Norm(ACT), &[AS_STORED[2]], Inspect::Linear),
    ],
};

fn outputs(config: &ModelConfig) -> Rows {
    Rows::run(0, config.hidden_size)
}

fn inner(config: &ModelConfig) -> Rows {
    Rows::run(0, config.intermediate_size)
}

/// GPT-2 of all sizes, and what copies it.
pub(crate) const GPT2: Class = Class {
    name: "GPT2LMHeadModel",
    model_type: "gpt2",
    hidden_size: (&["n_embd", "hidden_size"], 768),
    intermediate_size: InnerSize::KeyOrFourTimes("n_inner"),
    n_blocks: (&["n_layer", "num_hidden_layers"], 12),
    n_heads: (&["n_head", "num_attention_heads"], 12),
    n_kv_heads: KvHeads::AsQueries,
    vocab_size: 50_257,
    max_positions: (&["n_positions", "max_position_embeddings"], 1024),
    norm_eps: (Some("layer_norm_epsilon"), 1e-5),
    tied_head: true,
    attention_bias: (None, true),
    has_mlp_bias_key: false,
    eos_id: Some(50_256),
    fused: &[
        Fused {
            name: "attn.c_attn",
            order: Order::InOut,
            parts: &[("q", by_kind::queries), ("k", by_kind::keys), ("v", by_kind::values)],
        },
        Fused { name: "attn.c_proj", order: Order::InOut, parts: &[("transposed", outputs)] },
        Fused { name: "mlp.c_fc", order: Order::InOut, parts: &[("transposed", inner)] },
        Fused { name: "mlp.c_proj", order: Order::InOut, parts: &[("transposed", outputs)] },
    ],
    gguf: layouts::GPT2,
    ..llama::LLAMA
};

/// SantaCoder and StarCoder.
pub(crate) const BIGCODE: Class = Class {
    name: "GPTBigCodeForCausalLM",
    model_type: "gpt_bigcode",
    n_kv_heads: KvHeads::MultiQuery { grouped: None },
    // How the softmax is computed in half precision.
    own_keys: &["scale_attention_softmax_in_fp32"],
    fused: &[Fused {
        name: "attn.c_attn",
        order: Order::OutIn,
        parts: &[("q", by_key_head::queries), ("k", by_key_head::keys), ("v", by_key_head::values)],
    }],
    gguf: layouts::BIGCODE,
    ..GPT2
};

/// Wires a GPT-2 model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    decoder(config, checkpoint, TABLE_GPT2, TURNED)
}

/// Wires a BigCode model.
pub(super) fn bigcode_wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    decoder(config, checkpoint, TABLE_BIGCODE, AS_STORED)
}

fn decoder(
    config: &ModelConfig,
    checkpoint: &dyn Checkpoint,
    table: BlockTable,
    [o, up, down]: [LinearName; 3],
) -> Result<Wiring, LoadError> {
    let activation = activation(config, checkpoint, "activation_function", Activation::GeluTanh)?;
    let block = BlockWiring {
        layout: table.layout(0),
        attention: AttentionWiring { rope: None, ..AttentionWiring::rotated(ATTENTION_NORM, [Q, K, V, o]) },
        mlp: MlpWiring { norm: Some(MLP_NORM), module: plain(up, activation, ACT, down), norm_after: None },
        residual: Residual::PLAIN,
    };
    // Checkpoints saved without a head lack the name of the model around the blocks.
    let prefix = if checkpoint.shape("wte.weight").is_some() { "" } else { "transformer." };
    let names = Names {
        embedding: format!("{prefix}wte.weight"),
        block_prefix: format!("{prefix}h"),
        final_norm: format!("{prefix}ln_f"),
        head: "lm_head.weight".into(),
    };
    let wiring = layered(config, names, block, vec![Q, K, V, o, up, down]);
    let positions = Positions::Learned { tensor: format!("{prefix}wpe.weight"), first_row: 0 };
    Ok(Wiring { positions, ropes: Vec::new(), ..wiring })
}
