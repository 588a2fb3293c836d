//! SmolLM3: Llama with rotary positions in some blocks alone.

use std::sync::Arc;

use super::bad_key;
use super::keys::{activation, number};
use super::llama::{LLAMA, block, gated, may_be_biased, named};
use super::wiring::{AttentionWiring, BlockWiring, FeedForward, MlpWiring, Wiring};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, KvHeads, LoadError, ModelConfig, Windows, layouts};

const ROTATES: &str = "no_rope_layers";
const INTERVAL: &str = "no_rope_layer_interval";

/// SmolLM3 3B.
pub(crate) const SMOLLM3: Class = Class {
    name: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    hidden_size: (&["hidden_size"], 2048),
    n_blocks: (&["num_hidden_layers"], 36),
    n_heads: (&["num_attention_heads"], 16),
    n_kv_heads: KvHeads::Key(Some(4)),
    vocab_size: 128_256,
    max_positions: (&["max_position_embeddings"], 32_768),
    rope_theta: ("rope_theta", 2_000_000.0),
    windows: Windows::Listed,
    tied_head: true,
    eos_id: Some(128_001),
    own_keys: &[ROTATES, INTERVAL],
    gguf: layouts::SMOLLM3,
    ..LLAMA
};

/// Wires a SmolLM3 model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let module = FeedForward::Dense(gated(activation(config, checkpoint, "hidden_act", Activation::Silu)?));
    let block = block(config);
    let mlp = MlpWiring { module, ..block.mlp.clone() };
    let with_rope = |rope: Option<usize>| {
        let attention = AttentionWiring { rope, ..block.attention };
        Arc::new(BlockWiring { attention, mlp: mlp.clone(), ..block.clone() })
    };
    let (rotated, plain) = (with_rope(Some(0)), with_rope(None));
    let blocks = rotates(config, checkpoint)?.into_iter();
    let blocks = blocks.map(|rotates| if rotates { rotated.clone() } else { plain.clone() }).collect();
    Ok(named(config, blocks, may_be_biased(config)))
}

/// Which blocks have rotary positions: those with a 1 in the list (which may be too long), else all but each fourth.
fn rotates(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Vec<bool>, LoadError> {
    let Some(value) = config.raw.get(ROTATES).filter(|value| !value.is_null()) else {
        let interval = number(config, checkpoint, INTERVAL, 4)?;
        return Ok((1..=config.n_blocks).map(|block| !block.is_multiple_of(interval)).collect());
    };
    let flag = |flag: &serde_json::Value| match flag.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => None,
    };
    let flags = value.as_array().and_then(|flags| flags.iter().map(flag).collect::<Option<Vec<bool>>>());
    match flags {
        Some(mut flags) if flags.len() >= config.n_blocks => {
            flags.truncate(config.n_blocks);
            Ok(flags)
        }
        _ => Err(bad_key(
            checkpoint,
            ROTATES,
            format!("{value}, expected 0 or 1 for each of {} blocks", config.n_blocks),
        )),
    }
}
