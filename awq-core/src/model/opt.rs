//! OPT (Zhang et al. 2022): learned positions, LayerNorm before each module, ReLU, a bias on every linear, a tied head.
//!
//! OPT-350m normalizes the residual stream behind each module, and projects narrower embeddings into it: there a norm's output
//! also goes past the linears, so that no scale can be folded into it. (The AWQ code folds all the same, and so changes what
//! the model computes.)

use std::sync::Arc;

use serde_json::json;

use super::keys::number;
use super::layers::NormKind;
use super::layout::{reads, scales};
use super::wiring::{
    AttentionWiring, BlockWiring, DenseWiring, FeedForward, InnerWiring, LogitsWiring, MlpWiring, Order, Positions,
    Projections, Residual, Wiring,
};
use super::{BlockTable, Inspect, LinearName, NormName, PrevOp, bad_key, check_fixed};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, InnerSize, KvHeads, LoadError, ModelConfig, Windows};

const Q: LinearName = LinearName("self_attn.q_proj");
const K: LinearName = LinearName("self_attn.k_proj");
const V: LinearName = LinearName("self_attn.v_proj");
const O: LinearName = LinearName("self_attn.out_proj");
const FC1: LinearName = LinearName("fc1");
const FC2: LinearName = LinearName("fc2");
const ATTENTION_NORM: NormName = NormName("self_attn_layer_norm");
const MLP_NORM: NormName = NormName("final_layer_norm");

/// Groups as in the official AWQ code, where all but q, k and v are judged by their own output. `fc1` takes the inverse
/// scale of `fc2` although a ReLU lies between them: `relu(x / s) = relu(x) / s` for a positive `s`.
const TABLE: BlockTable = BlockTable {
    linears: &[
        reads(Q, Q, false),
        reads(K, Q, false),
        reads(V, Q, true),
        reads(O, O, true),
        reads(FC1, FC1, true),
        reads(FC2, FC2, true),
    ],
    stages: &[&[K, V, Q], &[O], &[FC1], &[FC2]],
    scale_groups: &[
        scales(PrevOp::Norm(ATTENTION_NORM), &[Q, K, V], Inspect::Attention),
        scales(PrevOp::Linear(V), &[O], Inspect::Linear),
        scales(PrevOp::Norm(MLP_NORM), &[FC1], Inspect::Linear),
        scales(PrevOp::Linear(FC1), &[FC2], Inspect::Linear),
    ],
};

/// The same where norms are part of the residual stream.
const NORMALIZED: BlockTable = BlockTable {
    scale_groups: &[
        scales(PrevOp::Linear(V), &[O], Inspect::Linear),
        scales(PrevOp::Linear(FC1), &[FC2], Inspect::Linear),
    ],
    ..TABLE
};

/// The position table begins with this many rows that no position uses: position `p` has row `p + 2`.
const POSITION_OFFSET: usize = 2;

/// Its norms have no key: torch's default. `enable_bias` is about all linears.
pub(crate) const OPT: Class = Class {
    name: "OPTForCausalLM",
    model_type: "opt",
    hidden_size: (&["hidden_size"], 768),
    intermediate_size: InnerSize::Key("ffn_dim", 3072),
    n_blocks: (&["num_hidden_layers"], 12),
    n_heads: (&["num_attention_heads"], 12),
    n_kv_heads: KvHeads::AsQueries,
    vocab_size: 50_272,
    max_positions: (&["max_position_embeddings"], 2048),
    head_dim: None,
    // Positions are learned.
    rope_theta: ("rope_theta", 10_000.0),
    local_rope_theta: None,
    rotary_share: None,
    original_positions: None,
    windows: Windows::Never,
    norm_eps: (None, 1e-5),
    tied_head: true,
    attention_bias: (Some("enable_bias"), true),
    has_mlp_bias_key: false,
    eos_id: Some(2),
    own_keys: &[],
    fused: &[],
    gguf: None,
};

/// Wires an OPT model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let (hidden, n_heads) = (config.hidden_size, config.n_heads);
    if n_heads * config.head_dim != hidden {
        let problem = format!("{n_heads}, expected a divisor of hidden_size, {hidden}");
        return Err(bad_key(checkpoint, "num_attention_heads", problem));
    }
    let fixed = [("activation_function", json!("relu")), ("layer_norm_elementwise_affine", json!(true))];
    check_fixed(config, checkpoint, &fixed)?;
    let prefix = prefix(checkpoint);
    let is_on = |key: &str, default: bool| config.raw.get(key).map_or(default, |value| *value == json!(true));
    let is_before = is_on("do_layer_norm_before", true);
    let width = number(config, checkpoint, "word_embed_proj_dim", hidden)?;
    let before = |norm: NormName| is_before.then_some(norm);
    let attention = AttentionWiring::rotated(ATTENTION_NORM, [Q, K, V, O]);
    let block = Arc::new(BlockWiring {
        layout: if is_before { TABLE } else { NORMALIZED }.layout(0),
        attention: AttentionWiring { norm: before(ATTENTION_NORM), rope: None, ..attention },
        mlp: MlpWiring {
            norm: before(MLP_NORM),
            module: FeedForward::Dense(DenseWiring {
                inner: InnerWiring::Plain { up: FC1, activation: Activation::Relu, scale: None },
                down: FC2,
                width: None,
            }),
            norm_after: None,
        },
        residual: match is_before {
            true => Residual::PLAIN,
            false => Residual {
                order: Order::Normalized { after_attention: ATTENTION_NORM, after_mlp: MLP_NORM },
                scale: None,
            },
        },
    });
    let has_last_norm = is_before && !is_on("_remove_final_layer_norm", false);
    Ok(Wiring {
        embedding: format!("{prefix}.embed_tokens.weight"),
        embedding_scale: None,
        embedding_norm: None,
        projections: (width != hidden).then(|| Projections {
            width,
            to_stream: format!("{prefix}.project_in.weight"),
            from_stream: format!("{prefix}.project_out.weight"),
        }),
        positions: Positions::Learned {
            tensor: format!("{prefix}.embed_positions.weight"),
            first_row: POSITION_OFFSET,
        },
        ropes: Vec::new(),
        block_prefix: format!("{prefix}.layers"),
        blocks: vec![block; config.n_blocks],
        norm: NormKind::Layer,
        scaled_activations: false,
        biased: if config.attention_bias { vec![Q, K, V, O, FC1, FC2] } else { Vec::new() },
        final_norm: has_last_norm.then(|| format!("{prefix}.final_layer_norm")),
        head: (!config.tie_word_embeddings).then(|| "lm_head.weight".into()),
        head_bias: None,
        logits: LogitsWiring::default(),
        notes: Vec::new(),
    })
}

/// Checkpoints saved without a head lack the leading `model.`.
fn prefix(source: &dyn Checkpoint) -> &'static str {
    const WITHOUT_HEAD: &str = "decoder";
    let is_bare = source.shape(&format!("{WITHOUT_HEAD}.embed_tokens.weight")).is_some();
    if is_bare { WITHOUT_HEAD } else { "model.decoder" }
}
