//! OLMo 2: Llama's linears without a norm before them. What each module puts out is normalized before it is added, and so are
//! all queries of a token together, and all keys.
//!
//! Linears that read the residual stream itself have no scale: there is nothing that its inverse could be folded into.

use std::sync::Arc;

use super::keys::activation;
use super::llama::{DOWN_GROUP, LINEARS, LLAMA, O_GROUP, STAGES, block, gated, may_be_biased, named};
use super::wiring::{AttentionWiring, BlockWiring, FeedForward, MlpWiring, NormSpan, QkNorms, Wiring};
use super::{BlockTable, NormName};
use crate::activation::Activation;
use crate::load::{Checkpoint, Class, LoadError, ModelConfig, layouts};

const AFTER_ATTENTION: NormName = NormName("post_attention_layernorm");
const AFTER_MLP: NormName = NormName("post_feedforward_layernorm");
const QK_NORMS: QkNorms =
    QkNorms { q: NormName("self_attn.q_norm"), k: NormName("self_attn.k_norm"), span: NormSpan::AllHeads };

const TABLE_GQA: BlockTable = BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[DOWN_GROUP] };
const TABLE_MHA: BlockTable = BlockTable { linears: LINEARS, stages: STAGES, scale_groups: &[O_GROUP, DOWN_GROUP] };

/// OLMo 2 of 1B to 32B.
pub(crate) const OLMO2: Class = Class {
    name: "Olmo2ForCausalLM",
    model_type: "olmo2",
    vocab_size: 50_304,
    norm_eps: (Some("rms_norm_eps"), 1e-5),
    has_mlp_bias_key: false,
    eos_id: Some(50_279),
    gguf: layouts::OLMO2,
    ..LLAMA
};

/// Wires an OLMo 2 model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let table = if config.n_heads == config.n_kv_heads { TABLE_MHA } else { TABLE_GQA };
    let module = FeedForward::Dense(gated(activation(config, checkpoint, "hidden_act", Activation::Silu)?));
    let block = block(config);
    let block = Arc::new(BlockWiring {
        layout: table.layout(0),
        attention: AttentionWiring {
            norm: None,
            qk_norms: Some(QK_NORMS),
            norm_after: Some(AFTER_ATTENTION),
            ..block.attention
        },
        mlp: MlpWiring { norm: None, module, norm_after: Some(AFTER_MLP) },
        ..block
    });
    Ok(named(config, vec![block; config.n_blocks], may_be_biased(config)))
}
