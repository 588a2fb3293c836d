//! Gemma 1, 2 and 3 (the language models): Llama's linears under norms that store one less than what they multiply by, a
//! scaled embedding that is the head as well, and a gate that goes through GELU.
//!
//! Gemma 2 and 3 also normalize what each module puts out, before it is added, and let every so many-th block see everything,
//! the others what lies in a window. Gemma 2 caps attention scores and logits. Gemma 3 normalizes the heads of queries and
//! keys, and rotates blocks with a window by another base than the others.
//!
//! Scale groups are AutoAWQ's (`awq/models/gemma2.py`, `awq/models/gemma3.py`). llm-compressor leaves q, k and v of Gemma 3
//! without one, since its smoothing lost to plain rounding there (llm-compressor#2522).

use std::sync::Arc;

use super::keys::{activation, factor, required_factor};
use super::layers::NormKind;
use super::layout::scales;
use super::llama::{DOWN_GROUP, GATE, LINEARS, LLAMA, O_GROUP, QKV, STAGES, UP, block, gated, may_be_biased, named};
use super::qwen3::HEAD_NORMS;
use super::wiring::{AttentionWiring, BlockWiring, FeedForward, LogitsWiring, MlpWiring, Residual, Wiring};
use super::{BlockTable, GroupTable, Inspect, NormName, PrevOp, bad_key};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, InnerSize, KvHeads, LoadError, ModelConfig, Windows, layouts};

/// In Llama a norm of this name comes before the feed-forward module, here one after attention.
const AFTER_ATTENTION: NormName = NormName("post_attention_layernorm");
const BEFORE_MLP: NormName = NormName("pre_feedforward_layernorm");
const AFTER_MLP: NormName = NormName("post_feedforward_layernorm");

const GATE_UP: GroupTable = scales(PrevOp::Norm(BEFORE_MLP), &[GATE, UP], Inspect::Mlp);
const TABLE_GQA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, GATE_UP, DOWN_GROUP] };
const TABLE_MHA: BlockTable =
    BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, O_GROUP, GATE_UP, DOWN_GROUP] };

const SCALAR: &str = "query_pre_attn_scalar";
const SCORE_CAP: &str = "attn_logit_softcapping";
const LOGIT_CAP: &str = "final_logit_softcapping";
const PERIOD: &str = "sliding_window_pattern";

/// Gemma 2B and 7B.
pub(crate) const GEMMA: Class = Class {
    name: "GemmaForCausalLM",
    model_type: "gemma",
    hidden_size: (&["hidden_size"], 3072),
    intermediate_size: InnerSize::Key("intermediate_size", 24_576),
    n_blocks: (&["num_hidden_layers"], 28),
    n_heads: (&["num_attention_heads"], 16),
    n_kv_heads: KvHeads::Key(Some(16)),
    vocab_size: 256_000,
    max_positions: (&["max_position_embeddings"], 8192),
    head_dim: Some(256),
    tied_head: true,
    has_mlp_bias_key: false,
    eos_id: Some(1),
    gguf: layouts::GEMMA,
    ..LLAMA
};

/// Gemma 2 of 2B to 27B.
pub(crate) const GEMMA2: Class = Class {
    name: "Gemma2ForCausalLM",
    model_type: "gemma2",
    hidden_size: (&["hidden_size"], 2304),
    intermediate_size: InnerSize::Key("intermediate_size", 9216),
    n_blocks: (&["num_hidden_layers"], 26),
    n_heads: (&["num_attention_heads"], 8),
    n_kv_heads: KvHeads::Key(Some(4)),
    windows: Windows::AllBut { period: 2, period_key: None },
    own_keys: &[SCALAR, SCORE_CAP, LOGIT_CAP],
    gguf: layouts::GEMMA2,
    ..GEMMA
};

/// Gemma 3 of 270M and 1B, and what their multimodal relatives write.
pub(crate) const GEMMA3: Class = Class {
    name: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    vocab_size: 262_208,
    max_positions: (&["max_position_embeddings"], 131_072),
    rope_theta: ("rope_theta", 1_000_000.0),
    local_rope_theta: Some(10_000.0),
    windows: Windows::AllBut { period: 6, period_key: Some(PERIOD) },
    // A cap on scores is not among them: transformers does not look at it.
    own_keys: &[SCALAR, LOGIT_CAP, PERIOD, "rope_local_base_freq"],
    gguf: layouts::GEMMA3,
    ..GEMMA2
};

/// Wires a Gemma model of the first generation.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let first_name = "gelu";
    // What the first files called the formula with a tangent.
    let activation = match config.raw.get("hidden_act") {
        Some(name) if name == first_name => Activation::GeluTanh,
        _ => activation(config, checkpoint, "hidden_act", Activation::GeluTanh)?,
    };
    let newer = config.raw.get("hidden_activation").filter(|name| !name.is_null());
    if newer.is_some_and(|name| name != "gelu_pytorch_tanh") {
        let problem = "expected \"gelu_pytorch_tanh\" or null: transformers 5 does not look at it".to_owned();
        return Err(bad_key(checkpoint, "hidden_activation", problem));
    }
    let block = block(config);
    let mlp = MlpWiring { module: FeedForward::Dense(gated(activation)), ..block.mlp };
    let block = Arc::new(BlockWiring { mlp, ..block });
    Ok(decoder(config, vec![block; config.n_blocks]))
}

/// Wires a Gemma 2 model.
pub(super) fn gemma2_wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let cap = factor(config, checkpoint, SCORE_CAP, Some(50.0))?;
    let block = sandwiched(config, checkpoint)?;
    let attention = AttentionWiring { cap, ..block.attention };
    let block = Arc::new(BlockWiring { attention, ..block });
    let logits = LogitsWiring { cap: factor(config, checkpoint, LOGIT_CAP, Some(30.0))?, ..LogitsWiring::default() };
    Ok(Wiring { logits, ..decoder(config, vec![block; config.n_blocks]) })
}

/// Wires a Gemma 3 model.
pub(super) fn gemma3_wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let block = sandwiched(config, checkpoint)?;
    let rotated_by = |rope: usize| {
        let attention = AttentionWiring { qk_norms: Some(HEAD_NORMS), rope: Some(rope), ..block.attention };
        Arc::new(BlockWiring { attention, ..block.clone() })
    };
    let [full, sliding] = [0, 1].map(rotated_by);
    let blocks = config.windows.iter().map(|window| if window.is_some() { sliding.clone() } else { full.clone() });
    let logits = LogitsWiring { cap: factor(config, checkpoint, LOGIT_CAP, None)?, ..LogitsWiring::default() };
    let ropes = vec![config.rope(), config.local_rope.clone().unwrap_or_else(|| config.rope())];
    Ok(Wiring { logits, ropes, ..decoder(config, blocks.collect()) })
}

/// A block with a norm before and one after each module.
fn sandwiched(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<BlockWiring, LoadError> {
    let table = if config.n_heads == config.n_kv_heads { TABLE_MHA } else { TABLE_GQA };
    let scalar = required_factor(config, checkpoint, SCALAR, 256.0)?;
    let module = FeedForward::Dense(gated(activation(config, checkpoint, "hidden_activation", Activation::GeluTanh)?));
    let attention = AttentionWiring {
        scale: Some(scalar.sqrt().recip()),
        norm_after: Some(AFTER_ATTENTION),
        ..block(config).attention
    };
    let mlp = MlpWiring { norm: Some(BEFORE_MLP), module, norm_after: Some(AFTER_MLP) };
    Ok(BlockWiring { layout: table.layout(0), attention, mlp, residual: Residual::PLAIN })
}

fn decoder(config: &ModelConfig, blocks: Vec<Arc<BlockWiring>>) -> Wiring {
    Wiring {
        // Of a model in f32; transformers rounds it to the type that it runs a model in.
        embedding_scale: Some((config.hidden_size as f64).sqrt() as f32),
        norm: NormKind::RmsPlusOne,
        ..named(config, blocks, may_be_biased(config))
    }
}
