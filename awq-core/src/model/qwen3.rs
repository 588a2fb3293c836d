//! Qwen3 (the dense models): Llama's block, with an RMS norm on each head of the queries and of the keys before they
//! are rotated.
//!
//! Heads are 128 wide unless the file says otherwise, whatever the width of the residual stream is.

use super::NormName;
use super::llama::{QWEN2, block, decoder, may_be_biased};
use super::wiring::{AttentionWiring, BlockWiring, NormSpan, QkNorms, Wiring};
use crate::load::{Checkpoint, Class, GgufArchitecture, LoadError, ModelConfig};

pub(super) const HEAD_NORMS: QkNorms =
    QkNorms { q: NormName("self_attn.q_norm"), k: NormName("self_attn.k_norm"), span: NormSpan::Head };

/// Qwen3 0.6B to 32B. `attention_bias` is about all four linears of the attention module.
pub(crate) const QWEN3: Class = Class {
    name: "Qwen3ForCausalLM",
    model_type: "qwen3",
    head_dim: Some(128),
    attention_bias: (Some("attention_bias"), false),
    gguf: Some(GgufArchitecture { name: "qwen3", interleaved_rows: false, layout: None }),
    ..QWEN2
};

/// Wires a Qwen3 model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let block = block(config);
    let attention = AttentionWiring { qk_norms: Some(HEAD_NORMS), ..block.attention };
    decoder(config, checkpoint, BlockWiring { attention, ..block }, may_be_biased(config))
}
