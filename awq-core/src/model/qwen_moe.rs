//! Qwen2-MoE and Qwen3-MoE: attention of Qwen2 and Qwen3, and in the place of the feed-forward module experts, in all blocks or in
//! some. Qwen2-MoE has an expert for all tokens beside them, behind a gate of its own.
//!
//! AutoAWQ's groups (`awq/models/qwen2_moe.py`, `awq/models/qwen3_moe.py`): one scale for the input of all experts, the shared one
//! among them, and one for the inside of each. The router and the gate read the scaled input as well, so their columns are
//! multiplied here; both stay in full precision.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::keys::{activation, n_experts, number};
use super::layout::{reads, scales};
use super::llama::{ATTENTION, K, LLAMA, MLP_NORM, O, O_GROUP, Q, QKV, V, block, gated, may_be_biased, named};
use super::qwen3::HEAD_NORMS;
use super::wiring::{
    AttentionWiring, BlockWiring, DenseWiring, ExpertsWiring, FeedForward, InnerWiring, MlpWiring, Residual,
    SharedExpert, Wiring,
};
use super::{BlockTable, GroupTable, Inspect, LinearFacts, LinearName, PrevOp, bad_key};
use crate::activation::Activation;
use crate::host::routing::Weighting;
use crate::load::{Checkpoint, Class, InnerSize, KvHeads, LoadError, ModelConfig, Windows, layouts};

const ROUTER: LinearName = LinearName("mlp.gate");
const GATE: LinearName = LinearName("mlp.experts.{}.gate_proj");
const UP: LinearName = LinearName("mlp.experts.{}.up_proj");
const DOWN: LinearName = LinearName("mlp.experts.{}.down_proj");
const SHARED_GATE: LinearName = LinearName("mlp.shared_expert.gate_proj");
const SHARED_UP: LinearName = LinearName("mlp.shared_expert.up_proj");
const SHARED_DOWN: LinearName = LinearName("mlp.shared_expert.down_proj");
/// Of the shared expert's output.
const OUTPUT_GATE: LinearName = LinearName("mlp.shared_expert_gate");

const ALONE: &[LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(GATE, GATE, true),
    reads(UP, GATE, true),
    reads(DOWN, DOWN, true),
];
const WITH_SHARED: &[LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(GATE, GATE, true),
    reads(UP, GATE, true),
    reads(DOWN, DOWN, true),
    reads(SHARED_GATE, SHARED_GATE, true),
    reads(SHARED_UP, SHARED_GATE, true),
    reads(SHARED_DOWN, SHARED_DOWN, true),
];
const STAGES: &[&[LinearName]] = &[&[K, V, Q], &[O], &[UP, GATE], &[DOWN]];
const STAGES_WITH_SHARED: &[&[LinearName]] =
    &[&[K, V, Q], &[O], &[UP, GATE, SHARED_UP, SHARED_GATE], &[DOWN, SHARED_DOWN]];

const GATE_UP: GroupTable = GroupTable {
    prev_op: PrevOp::Norm(MLP_NORM),
    linears: &[GATE, UP],
    input: ROUTER,
    followers: &[ROUTER],
    inspect: Inspect::Mlp,
};
const GATE_UP_WITH_SHARED: GroupTable =
    GroupTable { linears: &[GATE, UP, SHARED_GATE, SHARED_UP], followers: &[ROUTER, OUTPUT_GATE], ..GATE_UP };
const DOWN_GROUP: GroupTable = scales(PrevOp::Linear(UP), &[DOWN], Inspect::Linear);
const SHARED_DOWN_GROUP: GroupTable = scales(PrevOp::Linear(SHARED_UP), &[SHARED_DOWN], Inspect::Linear);

const TABLE_GQA: BlockTable = BlockTable { linears: ALONE, stages: STAGES, scale_groups: &[QKV, GATE_UP, DOWN_GROUP] };
const TABLE_MHA: BlockTable =
    BlockTable { linears: ALONE, stages: STAGES, scale_groups: &[QKV, O_GROUP, GATE_UP, DOWN_GROUP] };
const SHARED_GQA: BlockTable = BlockTable {
    linears: WITH_SHARED,
    stages: STAGES_WITH_SHARED,
    scale_groups: &[QKV, GATE_UP_WITH_SHARED, DOWN_GROUP, SHARED_DOWN_GROUP],
};
const SHARED_MHA: BlockTable = BlockTable {
    linears: WITH_SHARED,
    stages: STAGES_WITH_SHARED,
    scale_groups: &[QKV, O_GROUP, GATE_UP_WITH_SHARED, DOWN_GROUP, SHARED_DOWN_GROUP],
};

const N_EXPERTS: &str = "num_experts";
/// What transformers 5 writes in the place of Qwen3's.
const N_LOCAL_EXPERTS: &str = "num_local_experts";
const N_ACTIVE: &str = "num_experts_per_tok";
const WIDTH: &str = "moe_intermediate_size";
const SHARED_WIDTH: &str = "shared_expert_intermediate_size";
const STEP: &str = "decoder_sparse_step";
const DENSE: &str = "mlp_only_layers";
const NORMED: &str = "norm_topk_prob";

/// Qwen1.5-MoE and Qwen2 57B-A14B. `qkv_bias` is about q, k and v.
pub(crate) const QWEN2_MOE: Class = Class {
    name: "Qwen2MoeForCausalLM",
    model_type: "qwen2_moe",
    hidden_size: (&["hidden_size"], 2048),
    intermediate_size: InnerSize::Key("intermediate_size", 5632),
    n_blocks: (&["num_hidden_layers"], 24),
    n_heads: (&["num_attention_heads"], 16),
    n_kv_heads: KvHeads::Key(Some(16)),
    vocab_size: 151_936,
    max_positions: (&["max_position_embeddings"], 32_768),
    windows: Windows::Listed,
    attention_bias: (Some("qkv_bias"), true),
    has_mlp_bias_key: false,
    eos_id: None,
    own_keys: &[N_EXPERTS, N_ACTIVE, WIDTH, SHARED_WIDTH, STEP],
    gguf: layouts::QWEN2_MOE,
    ..LLAMA
};

/// Qwen3 30B-A3B and 235B-A22B.
pub(crate) const QWEN3_MOE: Class = Class {
    name: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    intermediate_size: InnerSize::Key("intermediate_size", 6144),
    n_heads: (&["num_attention_heads"], 32),
    n_kv_heads: KvHeads::Key(Some(4)),
    windows: Windows::EveryBlockIfUsed,
    attention_bias: (Some("attention_bias"), false),
    own_keys: &[N_EXPERTS, N_LOCAL_EXPERTS, N_ACTIVE, WIDTH, STEP],
    gguf: layouts::QWEN3_MOE,
    ..QWEN2_MOE
};

/// Wires a Qwen2-MoE model.
pub(super) fn qwen2_wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let activation = activation(config, checkpoint, "hidden_act", Activation::Silu)?;
    let inner = InnerWiring::Gated { gate: SHARED_GATE, up: SHARED_UP, activation };
    let width = Some(number(config, checkpoint, SHARED_WIDTH, 5632)?);
    let shared = SharedExpert { module: DenseWiring { inner, down: SHARED_DOWN, width }, gate: OUTPUT_GATE };
    let table = if config.n_heads == config.n_kv_heads { SHARED_MHA } else { SHARED_GQA };
    let sparse = Sparse { table, attention: ATTENTION, sizes: [(N_EXPERTS, 60), (N_ACTIVE, 4), (WIDTH, 1408)] };
    let blocks = sparse.blocks(config, checkpoint, activation, Some(shared))?;
    let biased = if config.attention_bias { vec![Q, K, V] } else { Vec::new() };
    Ok(named(config, blocks, biased))
}

/// Wires a Qwen3-MoE model.
pub(super) fn qwen3_wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let activation = activation(config, checkpoint, "hidden_act", Activation::Silu)?;
    let all = if config.raw.get(N_LOCAL_EXPERTS).is_some() { N_LOCAL_EXPERTS } else { N_EXPERTS };
    let table = if config.n_heads == config.n_kv_heads { TABLE_MHA } else { TABLE_GQA };
    let attention = AttentionWiring { qk_norms: Some(HEAD_NORMS), ..ATTENTION };
    let sparse = Sparse { table, attention, sizes: [(all, 128), (N_ACTIVE, 8), (WIDTH, 768)] };
    Ok(named(config, sparse.blocks(config, checkpoint, activation, None)?, may_be_biased(config)))
}

/// What the two differ in.
struct Sparse {
    /// Of blocks with experts.
    table: BlockTable,
    attention: AttentionWiring,
    /// Keys and values of the number of experts, of those that a token goes through, and of the width of one.
    sizes: [(&'static str, usize); 3],
}

impl Sparse {
    /// Blocks with experts, and in their midst those without.
    fn blocks(
        &self,
        config: &ModelConfig,
        checkpoint: &dyn Checkpoint,
        activation: Activation,
        shared: Option<SharedExpert>,
    ) -> Result<Vec<Arc<BlockWiring>>, LoadError> {
        let [all, active, (width_key, width)] = self.sizes;
        let (n_experts, n_active) = n_experts(config, checkpoint, [all, active])?;
        let width = Some(number(config, checkpoint, width_key, width)?);
        let expert = |expert: usize| {
            let [gate, up, down] = [GATE, UP, DOWN].map(|name| name.of_expert(expert));
            DenseWiring { inner: InnerWiring::Gated { gate, up, activation }, down, width }
        };
        let is_normed = config.raw.get(NORMED) == Some(&json!(true));
        let module = FeedForward::Experts(ExpertsWiring {
            router: ROUTER,
            n_active,
            weighting: if is_normed { Weighting::OfActive } else { Weighting::OfAll },
            experts: (0..n_experts).map(expert).collect(),
            shared,
        });
        let sparse = Arc::new(BlockWiring {
            layout: self.table.layout(n_experts),
            attention: self.attention,
            mlp: MlpWiring { norm: Some(MLP_NORM), module, norm_after: None },
            residual: Residual::PLAIN,
        });
        let plain = block(config);
        let mlp = MlpWiring { module: FeedForward::Dense(gated(activation)), ..plain.mlp };
        let dense = Arc::new(BlockWiring { attention: self.attention, mlp, ..plain });
        let is_dense = dense_blocks(config, checkpoint)?;
        Ok(is_dense.into_iter().map(|is_dense| if is_dense { dense.clone() } else { sparse.clone() }).collect())
    }
}

/// Which blocks have one module for all tokens: those of a list, and all but each so many-th.
fn dense_blocks(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Vec<bool>, LoadError> {
    let step = number(config, checkpoint, STEP, 1)?;
    let listed = match config.raw.get(DENSE).filter(|value| !value.is_null()) {
        None => Vec::new(),
        Some(value) => {
            let indices = value.as_array().and_then(|list| list.iter().map(Json::as_u64).collect::<Option<Vec<u64>>>());
            indices.ok_or_else(|| bad_key(checkpoint, DENSE, format!("{value}, expected a list of block indices")))?
        }
    };
    let is_dense = |block_idx: usize| listed.contains(&(block_idx as u64)) || !(block_idx + 1).is_multiple_of(step);
    Ok((0..config.n_blocks).map(is_dense).collect())
}
