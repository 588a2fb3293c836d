//! What the metadata says of the computation: every key of the architecture's own (`llama.*`) is understood, has the one
//! value that changes nothing, or is an error. The names and what an absent key means are those of llama.cpp
//! (`llama-arch.cpp`, `llama-model.cpp`, build b10605).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::header::Value;
use crate::load::LoadError;
use crate::load::error::nearest_names;

/// What a key of a decoder's architecture means to this reader.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    /// Read by `ModelConfig::from_gguf` or `Rope::from_gguf`.
    Understood,
    /// Changes no computation of a known family.
    Harmless,
    /// Must have one of these values (`false` is 0, `true` is 1): any other asks for a computation that is not there.
    Only(&'static [f64], &'static str),
    /// Must be one of these texts.
    OnlyText(&'static [&'static str], &'static str),
}

use Meaning::{Harmless, Only, OnlyText, Understood};

const EXPERTS: &str = "experts, which this architecture does not have here; use the model's safetensors folder";
const SCALED: &str = "a scale that the known families do not have; use a model without";
const CAPPED: &str = "capped values, which the known families do not have; use a model without";
const YARN: &str = "part of YaRN scaling, which is not supported; use a model without";

/// Keys without their prefix, in the order of `llama-arch.cpp`.
const KEYS: &[(&str, Meaning)] = &[
    ("vocab_size", Understood),
    ("context_length", Understood),
    ("embedding_length", Understood),
    ("block_count", Understood),
    ("leading_dense_block_count", Only(&[0.0], EXPERTS)),
    ("feed_forward_length", Understood),
    ("use_parallel_residual", Only(&[0.0], "attention and MLP side by side are not supported; use another model")),
    // The order of the rows of q and k: Meta's, as in every GGUF file of architecture llama.
    (
        "tensor_data_layout",
        OnlyText(&["Meta AI original pth", "reference"], "another order of rows; convert the model again"),
    ),
    ("expert_count", Only(&[0.0], EXPERTS)),
    ("expert_used_count", Only(&[0.0], EXPERTS)),
    ("expert_shared_count", Only(&[0.0], EXPERTS)),
    ("expert_group_count", Only(&[0.0], EXPERTS)),
    ("expert_group_used_count", Only(&[0.0], EXPERTS)),
    ("expert_feed_forward_length", Only(&[0.0], EXPERTS)),
    ("expert_shared_feed_forward_length", Only(&[0.0], EXPERTS)),
    ("expert_weights_scale", Only(&[0.0, 1.0], EXPERTS)),
    ("expert_weights_norm", Only(&[0.0], EXPERTS)),
    ("expert_gating_func", Only(&[0.0], EXPERTS)),
    ("interleave_moe_layer_step", Only(&[0.0], EXPERTS)),
    ("moe_every_n_layers", Only(&[0.0], EXPERTS)),
    ("nextn_predict_layers", Only(&[0.0], "blocks that predict further tokens are not supported; use a model without")),
    ("hidden_activation", OnlyText(&["silu", "swish"], "another activation than silu; use another model")),
    ("pooling_type", Only(&[-1.0, 0.0], "an embedding model, which pools its outputs; use one that predicts text")),
    ("logit_scale", Only(&[0.0, 1.0], SCALED)),
    ("attn_logit_softcapping", Only(&[0.0], CAPPED)),
    ("router_logit_softcapping", Only(&[0.0], CAPPED)),
    ("final_logit_softcapping", Only(&[0.0], CAPPED)),
    ("residual_scale", Only(&[0.0, 1.0], SCALED)),
    ("embedding_scale", Only(&[0.0, 1.0], SCALED)),
    ("attention.head_count", Understood),
    ("attention.head_count_kv", Understood),
    ("attention.max_alibi_bias", Only(&[0.0], "ALiBi is not supported; use another model")),
    ("attention.clamp_kqv", Only(&[0.0], "clamped queries, keys and values are not supported; use a model without")),
    ("attention.key_length", Understood),
    ("attention.value_length", Understood),
    // Of a LayerNorm, which these families do not have.
    ("attention.layer_norm_epsilon", Harmless),
    ("attention.layer_norm_rms_epsilon", Understood),
    ("attention.causal", Only(&[1.0], "attention to later tokens; use a model that predicts text")),
    ("attention.sliding_window", Understood),
    ("attention.scale", Understood),
    ("attention.output_scale", Only(&[0.0, 1.0], SCALED)),
    ("attention.value_scale", Only(&[0.0, 1.0], SCALED)),
    ("attention.temperature_length", Only(&[0.0], SCALED)),
    ("attention.temperature_scale", Only(&[0.0], SCALED)),
    (
        "attention.shared_kv_layers",
        Only(&[0.0], "blocks that share keys and values are not supported; use a model without"),
    ),
    ("rope.dimension_count", Understood),
    ("rope.dimension_sections", Only(&[0.0], "positions of several kinds are not supported; use a model of text")),
    ("rope.freq_base", Understood),
    ("rope.scale_linear", Understood),
    ("rope.scaling.type", Understood),
    ("rope.scaling.factor", Understood),
    // llama.cpp multiplies cosines and sines by it, whatever the type.
    ("rope.scaling.attn_factor", Only(&[1.0], SCALED)),
    ("rope.scaling.alpha", Only(&[0.0, 1.0], "NTK scaling is not supported; use a model without")),
    // Read by llama.cpp for YaRN only.
    ("rope.scaling.original_context_length", Harmless),
    ("rope.scaling.finetuned", Harmless),
    ("rope.scaling.yarn_log_multiplier", Only(&[0.0], YARN)),
    ("rope.scaling.yarn_ext_factor", Only(&[-1.0, 0.0], YARN)),
    ("rope.scaling.yarn_attn_factor", Only(&[-1.0, 1.0], YARN)),
    ("rope.scaling.yarn_beta_fast", Harmless),
    ("rope.scaling.yarn_beta_slow", Harmless),
];

/// The metadata as JSON without arrays, which only the tokenizer needs; an array of the architecture's whose values, one a
/// block, are all the same stands as that value. The architecture reads `own_keys` itself.
///
/// # Errors
/// A key that is unknown, differs between blocks, or asks for a computation that is not there.
pub(super) fn checked(
    file: &Path,
    metadata: &BTreeMap<String, Value>,
    prefix: &str,
    own_keys: &[&str],
) -> Result<Json, LoadError> {
    let mut checked = Map::new();
    for (key, value) in metadata {
        let own = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
        let value = match own {
            Some(_) => Some(scalar_of_blocks(file, key, value)?),
            None => scalar(value),
        };
        let Some(value) = value else { continue };
        if let Some(own) = own.filter(|own| !own_keys.contains(own)) {
            check(file, key, own, &value)?;
        }
        checked.insert(key.clone(), value);
    }
    Ok(Json::Object(checked))
}

fn check(file: &Path, key: &str, own: &str, value: &Json) -> Result<(), LoadError> {
    let bad = |problem| Err(LoadError::BadKey { file: file.to_owned(), key: key.to_owned(), problem });
    let Some((_, meaning)) = KEYS.iter().find(|(known, _)| *known == own) else {
        let nearest = nearest_names(own, KEYS.iter().map(|(known, _)| *known));
        let nearest = nearest.first().map(String::as_str).unwrap_or_default();
        return bad(format!(
            "{value}, a key that is not known (nearest: {nearest}) and may change what the model computes; use a model \
             without it"
        ));
    };
    let number = value.as_f64().or_else(|| value.as_bool().map(f64::from));
    match *meaning {
        Understood | Harmless => Ok(()),
        Only(neutral, _) if number.is_some_and(|number| neutral.contains(&number)) => Ok(()),
        OnlyText(neutral, _) if value.as_str().is_some_and(|text| neutral.contains(&text)) => Ok(()),
        Only(_, problem) | OnlyText(_, problem) => bad(format!("{value}: {problem}")),
    }
}

fn scalar(value: &Value) -> Option<Json> {
    match value {
        Value::Int(int) => Some(Json::from(*int)),
        Value::Float(float) => Some(Json::from(*float)),
        Value::Bool(bool) => Some(Json::from(*bool)),
        Value::Text(text) => Some(Json::from(text.as_str())),
        Value::Ints(_) | Value::Floats(_) | Value::Bools(_) | Value::Texts(_) => None,
    }
}

/// The value that all blocks share.
fn scalar_of_blocks(file: &Path, key: &str, value: &Value) -> Result<Json, LoadError> {
    let of_blocks: Vec<Json> = match value {
        Value::Ints(ints) => ints.iter().copied().map(Json::from).collect(),
        Value::Floats(floats) => floats.iter().map(|float| Json::from(f64::from(*float))).collect(),
        Value::Bools(bools) => bools.iter().copied().map(Json::from).collect(),
        Value::Texts(texts) => texts.iter().map(|text| Json::from(text.as_str())).collect(),
        Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Text(_) => scalar(value).into_iter().collect(),
    };
    let bad = |problem| Err(LoadError::BadKey { file: file.to_owned(), key: key.to_owned(), problem });
    match of_blocks.split_first() {
        None => bad("an empty list, expected one value for all blocks".to_owned()),
        Some((first, others)) => match others.iter().position(|other| other != first) {
            None => Ok(first.clone()),
            Some(index) => bad(format!(
                "{first} in block 0 and {} in block {}: blocks that differ are not supported; use another model",
                others[index],
                index + 1
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(key: &str, value: Value) -> Result<Json, String> {
        let metadata = BTreeMap::from([(key.to_owned(), value)]);
        checked(Path::new("m.gguf"), &metadata, "llama", &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn what_changes_nothing_is_read() {
        for (key, value) in [
            ("llama.expert_count", Value::Int(0)),
            ("llama.use_parallel_residual", Value::Bool(false)),
            ("llama.attention.causal", Value::Bool(true)),
            ("llama.logit_scale", Value::Float(1.0)),
            ("llama.tensor_data_layout", Value::Text("Meta AI original pth".into())),
            ("llama.rope.scaling.finetuned", Value::Bool(true)),
            ("llama.rope.scaling.original_context_length", Value::Int(4096)),
            ("llama.rope.dimension_sections", Value::Ints(vec![0, 0, 0, 0])),
            // Of other architectures and of the file: not the model's.
            ("granite.logit_scale", Value::Float(8.0)),
            ("general.file_type", Value::Int(2)),
            ("quantize.imatrix.entries_count", Value::Int(9)),
        ] {
            assert!(read(key, value.clone()).is_ok(), "{key}: {:?}", read(key, value));
        }
    }

    #[test]
    fn what_changes_the_computation_is_refused() {
        for (key, value, expected) in [
            (
                "expert_count",
                Value::Int(8),
                "8: experts, which this architecture does not have here; use the model's safetensors folder",
            ),
            (
                "expert_used_count",
                Value::Int(2),
                "2: experts, which this architecture does not have here; use the model's safetensors folder",
            ),
            ("logit_scale", Value::Float(8.0), "8.0: a scale that the known families do not have; use a model without"),
            (
                "embedding_scale",
                Value::Float(12.0),
                "12.0: a scale that the known families do not have; use a model without",
            ),
            (
                "residual_scale",
                Value::Float(0.5),
                "0.5: a scale that the known families do not have; use a model without",
            ),
            (
                "attn_logit_softcapping",
                Value::Float(50.0),
                "50.0: capped values, which the known families do not have; use a model without",
            ),
            (
                "final_logit_softcapping",
                Value::Float(30.0),
                "30.0: capped values, which the known families do not have; use a model without",
            ),
            (
                "attention.clamp_kqv",
                Value::Float(8.0),
                "8.0: clamped queries, keys and values are not supported; use a model without",
            ),
            ("attention.max_alibi_bias", Value::Float(8.0), "8.0: ALiBi is not supported; use another model"),
            (
                "attention.causal",
                Value::Bool(false),
                "false: attention to later tokens; use a model that predicts text",
            ),
            (
                "use_parallel_residual",
                Value::Bool(true),
                "true: attention and MLP side by side are not supported; use another model",
            ),
            (
                "pooling_type",
                Value::Int(1),
                "1: an embedding model, which pools its outputs; use one that predicts text",
            ),
            (
                "leading_dense_block_count",
                Value::Int(1),
                "1: experts, which this architecture does not have here; use the model's safetensors folder",
            ),
            (
                "nextn_predict_layers",
                Value::Int(1),
                "1: blocks that predict further tokens are not supported; use a model without",
            ),
            (
                "tensor_data_layout",
                Value::Text("blocked".into()),
                "\"blocked\": another order of rows; convert the model again",
            ),
            (
                "rope.scaling.attn_factor",
                Value::Float(1.2),
                "1.2: a scale that the known families do not have; use a model without",
            ),
            (
                "attention.head_count_kv",
                Value::Ints(vec![4, 4, 2]),
                "4 in block 0 and 2 in block 2: blocks that differ are not supported; use another model",
            ),
            ("feed_forward_length", Value::Ints(vec![]), "an empty list, expected one value for all blocks"),
            (
                "atention.scale",
                Value::Float(2.0),
                "2.0, a key that is not known (nearest: attention.scale) and may change what the model computes; use a model \
                 without it",
            ),
        ] {
            let message = read(&format!("llama.{key}"), value).unwrap_err();
            assert_eq!(message, format!("m.gguf: key \"llama.{key}\": {expected}"));
        }
    }

    #[test]
    fn one_value_for_each_block_is_read_where_all_are_the_same() {
        let json = read("llama.attention.head_count_kv", Value::Ints(vec![4, 4, 4])).unwrap();
        assert_eq!(json["llama.attention.head_count_kv"], 4);
        assert!(
            read("tokenizer.ggml.tokens", Value::Texts(vec!["a".into()]))
                .unwrap()
                .get("tokenizer.ggml.tokens")
                .is_none()
        );
    }
}
