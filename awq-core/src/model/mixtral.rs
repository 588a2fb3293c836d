//! Mixtral: Mistral's attention, and in the place of the feed-forward module experts, of which a router sends each
//! token through some.
//!
//! AutoAWQ's groups (`awq/models/mixtral.py`): one scale for the input of all experts, judged by the module's output,
//! and one for the inside of each. The router reads the scaled input as well, so its columns are multiplied here;
//! AutoAWQ's list leaves it out. The router stays in full precision.

use super::keys::n_experts;
use super::layout::{reads, scales};
use super::llama::{ATTENTION, K, LLAMA, MLP_NORM, O, O_GROUP, Q, QKV, V, decoder};
use super::wiring::{BlockWiring, DenseWiring, ExpertsWiring, FeedForward, InnerWiring, MlpWiring, Residual, Wiring};
use super::{BlockTable, GroupTable, Inspect, LinearFacts, LinearName, PrevOp};
use crate::activation::Activation;
use crate::host::routing::Weighting;
use crate::load::{Checkpoint, Class, InnerSize, KvHeads, LoadError, ModelConfig, Windows, layouts};

const ROUTER: LinearName = LinearName("block_sparse_moe.gate");
const W1: LinearName = LinearName("block_sparse_moe.experts.{}.w1");
const W2: LinearName = LinearName("block_sparse_moe.experts.{}.w2");
const W3: LinearName = LinearName("block_sparse_moe.experts.{}.w3");

/// As in Llama, `o_proj` is scaled only where a value channel feeds one of its columns.
const TABLE_GQA: BlockTable = BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, W1_W3, W2_GROUP] };
const TABLE_MHA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, O_GROUP, W1_W3, W2_GROUP] };

const LINEARS: &[LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(W1, W1, true),
    reads(W3, W1, true),
    reads(W2, W2, true),
];
const STAGES: &[&[LinearName]] = &[&[K, V, Q], &[O], &[W1, W3], &[W2]];
const W1_W3: GroupTable = GroupTable {
    prev_op: PrevOp::Norm(MLP_NORM),
    linears: &[W1, W3],
    input: ROUTER,
    followers: &[ROUTER],
    inspect: Inspect::Mlp,
};
const W2_GROUP: GroupTable = scales(PrevOp::Linear(W3), &[W2], Inspect::Linear);

const N_EXPERTS: &str = "num_local_experts";
const N_ACTIVE: &str = "num_experts_per_tok";

/// Mixtral 8x7B and 8x22B.
pub(crate) const MIXTRAL: Class = Class {
    name: "MixtralForCausalLM",
    model_type: "mixtral",
    intermediate_size: InnerSize::Key("intermediate_size", 14_336),
    n_kv_heads: KvHeads::Key(Some(8)),
    max_positions: (&["max_position_embeddings"], 4096 * 32),
    rope_theta: ("rope_theta", 1_000_000.0),
    windows: Windows::EveryBlock(None),
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    attention_bias: (None, false),
    has_mlp_bias_key: false,
    own_keys: &[N_EXPERTS, N_ACTIVE],
    gguf: layouts::MIXTRAL,
    ..LLAMA
};

/// Wires a Mixtral model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let (n_experts, n_active) = n_experts(config, checkpoint, [(N_EXPERTS, 8), (N_ACTIVE, 2)])?;
    let expert = |expert: usize| {
        let [gate, up, down] = [W1, W3, W2].map(|name| name.of_expert(expert));
        DenseWiring { inner: InnerWiring::Gated { gate, up, activation: Activation::Silu }, down, width: None }
    };
    let experts = ExpertsWiring {
        router: ROUTER,
        n_active,
        weighting: Weighting::OfActive,
        experts: (0..n_experts).map(expert).collect(),
        shared: None,
    };
    let table = if config.n_heads == config.n_kv_heads { TABLE_MHA } else { TABLE_GQA };
    let block = BlockWiring {
        layout: table.layout(n_experts),
        attention: ATTENTION,
        mlp: MlpWiring { norm: Some(MLP_NORM), module: FeedForward::Experts(experts), norm_after: None },
        residual: Residual::PLAIN,
    };
    decoder(config, checkpoint, block, Vec::new())
}
