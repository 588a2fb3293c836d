//! Granite 3 (the dense models): Llama with four factors, of embeddings, scores, what modules add, and logits.

use std::sync::Arc;

use super::keys::{activation, required_factor};
use super::llama::{LLAMA, block, gated, may_be_biased, named};
use super::wiring::{AttentionWiring, BlockWiring, FeedForward, LogitsWiring, MlpWiring, Residual, Wiring};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, LoadError, ModelConfig, layouts};

const OF_EMBEDDING: &str = "embedding_multiplier";
const OF_SCORES: &str = "attention_multiplier";
const OF_RESIDUALS: &str = "residual_multiplier";
const OF_LOGITS: &str = "logits_scaling";

/// Granite 3 of 2B and 8B.
pub(crate) const GRANITE: Class = Class {
    name: "GraniteForCausalLM",
    model_type: "granite",
    own_keys: &[OF_EMBEDDING, OF_SCORES, OF_RESIDUALS, OF_LOGITS],
    gguf: layouts::GRANITE,
    ..LLAMA
};

/// Wires a Granite model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let factor = |key| required_factor(config, checkpoint, key, 1.0);
    let module = FeedForward::Dense(gated(activation(config, checkpoint, "hidden_act", Activation::Silu)?));
    let block = block(config);
    let block = Arc::new(BlockWiring {
        attention: AttentionWiring { scale: Some(factor(OF_SCORES)?), ..block.attention },
        mlp: MlpWiring { module, ..block.mlp },
        residual: Residual { scale: Some(factor(OF_RESIDUALS)?), ..block.residual },
        ..block
    });
    Ok(Wiring {
        embedding_scale: Some(factor(OF_EMBEDDING)? as f32),
        logits: LogitsWiring { divisor: Some(factor(OF_LOGITS)?), ..LogitsWiring::default() },
        ..named(config, vec![block; config.n_blocks], may_be_biased(config))
    })
}
