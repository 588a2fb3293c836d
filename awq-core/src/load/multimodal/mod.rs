//! Models of texts and images: the language model that they hold, which is all that is quantized and scored here, on texts. Towers for
//! images are left as they are.
//!
//! | class | where its language model's configuration is | names of its tensors begin with |
//! |---|---|---|
//! | Llava, Gemma 3 | `text_config` | `language_model.` (the hub, transformers 5), `model.language_model.` (4.52 on) |
//! | Qwen2-VL, Qwen2.5-VL | `text_config`, on the hub the file itself | `model.` (the hub, transformers 5), `model.language_model.` (4.52 on) |
//! | Idefics 3, SmolVLM | `text_config` | `model.text_model.` |
//!
//! Positions of Qwen2-VL are three numbers a token, which of a text are all its place: rotations are then the usual ones.

mod checkpoint;

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::LoadError;
use super::class::{Class, Classes};
use super::keys::Keys;

pub(crate) use self::checkpoint::language_checkpoint;

/// A class of models of texts and images.
#[derive(Debug)]
struct Multimodal {
    /// Its name, as `architectures` has it.
    name: &'static str,
    model_type: &'static str,
    /// Type of its language model where the file does not say.
    text_type: &'static str,
    tied: Tied,
}

/// Where it is said that the head is the embedding.
#[derive(Clone, Copy, Debug)]
enum Tied {
    /// By the model's key; absent, it has this value.
    Own(bool),
    /// By the model's key or by that of its language model.
    Either,
}

const MULTIMODAL: [Multimodal; 6] = [
    Multimodal {
        name: "Gemma3ForConditionalGeneration",
        model_type: "gemma3",
        text_type: "gemma3_text",
        tied: Tied::Own(true),
    },
    Multimodal {
        name: "Idefics3ForConditionalGeneration",
        model_type: "idefics3",
        text_type: "llama",
        tied: Tied::Own(false),
    },
    Multimodal { name: "LlavaForConditionalGeneration", model_type: "llava", text_type: "llama", tied: Tied::Either },
    Multimodal { name: QWEN2_VL, model_type: "qwen2_vl", text_type: "qwen2_vl_text", tied: Tied::Either },
    Multimodal { name: QWEN2_5_VL, model_type: "qwen2_5_vl", text_type: "qwen2_5_vl_text", tied: Tied::Either },
    Multimodal {
        name: "SmolVLMForConditionalGeneration",
        model_type: "smolvlm",
        text_type: "llama",
        tied: Tied::Own(false),
    },
];
const QWEN2_VL: &str = "Qwen2VLForConditionalGeneration";
const QWEN2_5_VL: &str = "Qwen2_5_VLForConditionalGeneration";

/// Types of language models that are no class of their own, and the type that they compute as.
const TEXT_TYPES: [(&str, &str); 4] =
    [("qwen2_vl_text", "qwen2"), ("qwen2_5_vl_text", "qwen2"), ("qwen2_vl", "qwen2"), ("qwen2_5_vl", "qwen2")];

const TEXT: &str = "text_config";
const TIED: &str = "tie_word_embeddings";
const ROPES: [&str; 2] = ["rope_parameters", "rope_scaling"];

/// The names of the classes that hold a language model, and their types.
pub(crate) fn multimodal_classes() -> impl Iterator<Item = (&'static str, &'static str)> {
    MULTIMODAL.iter().map(|class| (class.name, class.model_type))
}

/// The configuration of the language model that `raw`, read from `file`, is about; `None` where it is that of a language model
/// itself.
///
/// # Errors
/// A language model of a class that is not known, or keys of another type than theirs.
pub(super) fn language_model(file: &Path, raw: &Json, classes: Classes<'_>) -> Result<Option<Json>, LoadError> {
    let keys = Keys { file, json: raw };
    let names = raw["architectures"].as_array().into_iter().flatten().filter_map(Json::as_str);
    let by_name = names.clone().find_map(|name| MULTIMODAL.iter().find(|class| class.name == name));
    let by_type = || MULTIMODAL.iter().find(|class| raw["model_type"] == class.model_type);
    // A file that names no class is of the one that its type belongs to.
    let Some(class) = by_name.or_else(|| by_type().filter(|_| names.count() == 0)) else { return Ok(None) };
    let text = match keys.get(TEXT) {
        Some(Json::Object(text)) => text.clone(),
        Some(other) => return Err(keys.wrong_type(TEXT, other, "an object")),
        None if class.text_type.starts_with("qwen2") => flat(raw),
        None => Map::new(),
    };
    let text_keys = Keys { file, json: &Json::Object(text.clone()) };
    let text_type = text_keys.optional_text("model_type")?.unwrap_or(class.text_type).to_owned();
    let known = TEXT_TYPES.iter().find(|(name, _)| *name == text_type).map_or(text_type.as_str(), |(_, known)| known);
    let text_class = classes.iter().find(|class| class.model_type == known);
    let text_class = text_class.ok_or_else(|| LoadError::UnknownArchitecture {
        file: file.to_owned(),
        architecture: format!("{} with a language model of type {text_type}", class.name),
        known: classes.iter().map(|class| class.model_type.to_owned()).collect(),
    })?;
    let is_tied = match (class.tied, keys.optional_bool(TIED)?, text_keys.optional_bool(TIED)?) {
        (Tied::Own(default), own, _) => own.unwrap_or(default),
        (Tied::Either, own, of_text) => {
            own == Some(true) || of_text.unwrap_or(text_class.tied_head && text_type == text_class.model_type)
        }
    };
    Ok(Some(settled(text, &text_type, text_class, is_tied)))
}

/// The language model's keys in a file that has them beside those of the whole.
fn flat(raw: &Json) -> Map<String, Json> {
    let keys = raw.as_object().into_iter().flatten();
    let is_of_text = |key: &str| key != "vision_config" && key != "model_type" && !key.ends_with("_token_id");
    let of_text =
        |(key, _): &(&String, &Json)| is_of_text(key) || matches!(key.as_str(), "bos_token_id" | "eos_token_id");
    keys.filter(of_text).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// `text` as the `config.json` of a model of `class` would have it.
fn settled(mut text: Map<String, Json>, text_type: &str, class: &Class, is_tied: bool) -> Json {
    text.insert("architectures".into(), json!([class.name]));
    text.insert("model_type".into(), json!(class.model_type));
    text.insert(TIED.into(), json!(is_tied));
    if text_type != class.model_type {
        for (key, default) in qwen2_vl_defaults() {
            text.entry(key).or_insert(default);
        }
        for key in ROPES {
            if let Some(rope) = text.get_mut(key).and_then(Json::as_object_mut) {
                without_sections(rope);
            }
        }
    }
    Json::Object(text)
}

/// What absent keys stand for (transformers 5.24), where it is not what they stand for in Qwen2.
fn qwen2_vl_defaults() -> [(&'static str, Json); 11] {
    [
        ("vocab_size", json!(152_064)),
        ("hidden_size", json!(8192)),
        ("intermediate_size", json!(29_568)),
        ("num_hidden_layers", json!(80)),
        ("num_attention_heads", json!(64)),
        ("num_key_value_heads", json!(8)),
        ("max_position_embeddings", json!(32_768)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(1e6)),
        ("max_window_layers", json!(80)),
        ("eos_token_id", json!(151_645)),
    ]
}

/// How channels are shared out among the three positions of a token says nothing where these are one.
fn without_sections(rope: &mut Map<String, Json>) {
    rope.remove("mrope_section");
    for kind in ["type", "rope_type"] {
        if let Some(kind) = rope.get_mut(kind).filter(|kind| **kind == "mrope") {
            *kind = json!("default");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::load::ModelConfig;

    fn parse(json: &Json) -> Result<ModelConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, json.to_string()).unwrap();
        let parsed = ModelConfig::from_hugging_face(&file).map_err(|error| error.to_string());
        parsed.map_err(|error| error.replace(&file.display().to_string(), "config.json"))
    }

    /// As the hub's files are.
    #[test]
    fn configurations_of_the_hub_are_read() {
        let llava = parse(&json!({
            "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 32000,
            "text_config": {
                "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, "model_type": "llama",
                "rms_norm_eps": 1e-05, "vocab_size": 32064
            },
            "vision_config": { "hidden_size": 1024, "model_type": "clip_vision_model" }, "vision_feature_layer": -2
        }))
        .unwrap();
        assert_eq!(
            (llava.architecture.as_str(), llava.hidden_size, llava.vocab_size),
            ("LlamaForCausalLM", 4096, 32_064)
        );
        assert!(!llava.tie_word_embeddings && llava.outer.is_some());

        let qwen = parse(&json!({
            "architectures": [QWEN2_VL], "model_type": "qwen2_vl", "bos_token_id": 151643, "eos_token_id": 151645,
            "vision_start_token_id": 151652, "image_token_id": 151655, "hidden_act": "silu", "hidden_size": 1536,
            "intermediate_size": 8960, "max_position_embeddings": 32768, "max_window_layers": 28,
            "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "use_sliding_window": false,
            "vision_config": { "depth": 32, "embed_dim": 1280, "hidden_size": 1536 },
            "rope_scaling": { "type": "mrope", "mrope_section": [16, 24, 24] }, "vocab_size": 151936
        }))
        .unwrap();
        assert_eq!((qwen.architecture.as_str(), qwen.n_blocks, qwen.rope_theta), ("Qwen2ForCausalLM", 28, 1e6));
        assert_eq!((qwen.rope_scaling, qwen.tie_word_embeddings, qwen.eos_ids), (None, true, vec![151_645]));

        let gemma = parse(&json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "image_token_index": 262144,
            "text_config": {
                "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024
            },
            "vision_config": { "hidden_size": 1152, "model_type": "siglip_vision_model" }
        }))
        .unwrap();
        assert_eq!((gemma.architecture.as_str(), gemma.n_blocks, gemma.vocab_size), ("Gemma3ForCausalLM", 34, 262_208));
        assert!(gemma.tie_word_embeddings);
    }

    #[test]
    fn either_key_ties_the_head() {
        let tied = |own: Json, of_text: Json| {
            let mut json = json!({
                "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": {}
            });
            json[TIED] = own;
            json[TEXT][TIED] = of_text;
            parse(&json).unwrap().tie_word_embeddings
        };
        assert!(tied(json!(true), json!(null)) && tied(json!(false), json!(true)) && tied(json!(true), json!(false)));
        assert!(!tied(json!(null), json!(null)) && !tied(json!(false), json!(false)));
    }

    #[test]
    fn what_is_not_known_is_named() {
        let of = |text: Json| json!({ "architectures": ["LlavaForConditionalGeneration"], "text_config": text });
        let mamba = parse(&of(json!({ "model_type": "mamba" }))).unwrap_err();
        assert!(mamba.contains("LlavaForConditionalGeneration with a language model of type mamba"), "{mamba}");
        assert_eq!(parse(&of(json!(3))).unwrap_err(), "config.json: key \"text_config\": 3, expected an object");
        let other = parse(&json!({ "architectures": ["PaliGemmaForConditionalGeneration"], "text_config": {} }));
        assert!(other.unwrap_err().contains("PaliGemmaForConditionalGeneration (a multimodal model; its language"));
        // Keys of the language model are held against its class.
        let scaled = parse(&of(json!({ "attention_multiplier": 0.5 }))).unwrap_err();
        assert!(scaled.contains("key \"attention_multiplier\": 0.5: it changes"), "{scaled}");
    }
}
