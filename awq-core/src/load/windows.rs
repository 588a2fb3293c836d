//! Sliding windows: how far back the attention of each block looks, as transformers 5.24 reads it from a `config.json`.
//!
//! | class | which blocks slide | width |
//! |---|---|---|
//! | Mistral | all | `sliding_window`; 4096 without the key, none for `null` |
//! | Mixtral | all | `sliding_window`; none without the key or for `null` |
//! | Qwen2, Qwen3 | with `use_sliding_window` those from `max_window_layers` (28) on, or as `layer_types` says | `sliding_window`; 4096 without the key |
//! | Qwen3-MoE | with `use_sliding_window` all | `sliding_window`; 4096 without the key |
//! | SmolLM3, Qwen2-MoE | with `use_sliding_window` those that `layer_types` says | `sliding_window` |
//! | Phi-3 | all | `sliding_window`; none without the key or for `null` |
//! | Gemma 2 | every other, from the first on, or as `layer_types` says | `sliding_window`; 4096 without the key |
//! | Gemma 3 | all but each `sliding_window_pattern`-th (6), or as `layer_types` says | `sliding_window`; 4096 without the key |
//! | others | none: their `sliding_window` is not looked at | |

use serde_json::{Map, Value as Json, json};

use super::LoadError;
use super::class::Class;
use super::keys::Keys;

const WINDOW: &str = "sliding_window";
const USE_WINDOW: &str = "use_sliding_window";
const LAYER_TYPES: &str = "layer_types";
const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// The width in a model with windows in some blocks whose file does not give it.
const DEFAULT_WINDOW: usize = 4096;
/// The first block that slides in such a model whose file does not give it.
const DEFAULT_FIRST_SLIDING: usize = 28;

/// Which blocks of a class have a window.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Windows {
    /// None: the keys are not looked at.
    Never,
    /// All: `sliding_window`, or this width where the file does not give it.
    EveryBlock(Option<usize>),
    /// Those that `use_sliding_window`, `max_window_layers` and `layer_types` say.
    SomeBlocks,
    /// Those that `layer_types` says, where `use_sliding_window` is on.
    Listed,
    /// All, where `use_sliding_window` is on: `sliding_window`, or 4096 where the file does not give it.
    EveryBlockIfUsed,
    /// All but each so many-th, or those that `layer_types` says, `sliding_window` wide.
    AllBut {
        /// Each so many-th block sees everything, if the key does not say otherwise.
        period: usize,
        /// The key.
        period_key: Option<&'static str>,
    },
}

/// The window of each block, `None` where it sees everything before it.
pub(super) fn from_hugging_face(
    keys: &Keys<'_>,
    class: &Class,
    n_blocks: usize,
) -> Result<Vec<Option<usize>>, LoadError> {
    match class.windows {
        Windows::Never => without(keys, class.name, n_blocks),
        Windows::EveryBlock(default) => every_block(keys, class.name, default, n_blocks),
        Windows::SomeBlocks => some_blocks(keys, n_blocks),
        Windows::Listed => listed(keys, n_blocks),
        Windows::EveryBlockIfUsed => {
            let is_on = keys.optional_bool(USE_WINDOW)?.unwrap_or(false);
            Ok(vec![if is_on { width(keys, Some(DEFAULT_WINDOW))? } else { None }; n_blocks])
        }
        Windows::AllBut { period, period_key } => all_but(keys, period, period_key, n_blocks),
    }
}

fn every_block(
    keys: &Keys<'_>,
    architecture: &str,
    default: Option<usize>,
    n_blocks: usize,
) -> Result<Vec<Option<usize>>, LoadError> {
    let window = width(keys, default)?;
    let family = architecture.trim_end_matches("ForCausalLM");
    // transformers warns of the key and does not look at it.
    let (expected, why) = match window {
        Some(_) => (SLIDING, format!("all blocks of a {family} model with a {WINDOW:?} slide")),
        None => (FULL, format!("no block of a {family} model without a {WINDOW:?} slides")),
    };
    all_blocks_are(keys, n_blocks, expected, &why)?;
    Ok(vec![window; n_blocks])
}

fn some_blocks(keys: &Keys<'_>, n_blocks: usize) -> Result<Vec<Option<usize>>, LoadError> {
    let window =
        if keys.optional_bool(USE_WINDOW)?.unwrap_or(false) { width(keys, Some(DEFAULT_WINDOW))? } else { None };
    let first_sliding = match keys.get("max_window_layers") {
        None => DEFAULT_FIRST_SLIDING,
        Some(value) => value
            .as_u64()
            .and_then(|first| usize::try_from(first).ok())
            .ok_or_else(|| keys.wrong_type("max_window_layers", value, "the number of blocks that do not slide"))?,
    };
    let Some(types) = layer_types(keys, n_blocks)? else {
        return Ok((0..n_blocks).map(|block_idx| window.filter(|_| block_idx >= first_sliding)).collect());
    };
    sliding(keys, types, window)
}

fn listed(keys: &Keys<'_>, n_blocks: usize) -> Result<Vec<Option<usize>>, LoadError> {
    let is_on = keys.optional_bool(USE_WINDOW)?.unwrap_or(false);
    let window = if is_on { width(keys, None)? } else { None };
    match (layer_types(keys, n_blocks)?, window) {
        (None, None) => Ok(vec![None; n_blocks]),
        (None, Some(_)) => {
            Err(keys.bad(USE_WINDOW, format!("true, but which blocks slide is not said; give {LAYER_TYPES:?}")))
        }
        (Some(types), window) => sliding(keys, types, window),
    }
}

/// The window in the blocks that slide.
fn sliding(keys: &Keys<'_>, types: Vec<&str>, window: Option<usize>) -> Result<Vec<Option<usize>>, LoadError> {
    if window.is_none() && types.contains(&SLIDING) {
        let problem = format!("{SLIDING:?} without a window; set {USE_WINDOW:?} to true and give {WINDOW:?}");
        return Err(keys.bad(LAYER_TYPES, problem));
    }
    Ok(types.into_iter().map(|layer_type| window.filter(|_| layer_type == SLIDING)).collect())
}

fn all_but(
    keys: &Keys<'_>,
    period: usize,
    period_key: Option<&str>,
    n_blocks: usize,
) -> Result<Vec<Option<usize>>, LoadError> {
    let window = width(keys, Some(DEFAULT_WINDOW))?;
    let period = period_key.map(|key| keys.optional_dimension(key)).transpose()?.flatten().unwrap_or(period);
    let slides: Vec<bool> = match layer_types(keys, n_blocks)? {
        Some(types) => types.into_iter().map(|layer_type| layer_type == SLIDING).collect(),
        None => (1..=n_blocks).map(|block| !block.is_multiple_of(period)).collect(),
    };
    if window.is_none() && slides.contains(&true) {
        return Err(
            keys.bad(WINDOW, format!("null, but some blocks slide; give it, or {LAYER_TYPES:?} without {SLIDING:?}"))
        );
    }
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// A class that has no windows. transformers looks at none of the keys, so whoever turns them on gets another model than they
/// ask for.
fn without(keys: &Keys<'_>, architecture: &str, n_blocks: usize) -> Result<Vec<Option<usize>>, LoadError> {
    if keys.optional_bool(USE_WINDOW)? == Some(true) {
        let problem =
            format!("true, but {architecture} has no sliding window; set it to false, or name the right class");
        return Err(keys.bad(USE_WINDOW, problem));
    }
    all_blocks_are(keys, n_blocks, FULL, &format!("{architecture} has no sliding window"))?;
    Ok(vec![None; n_blocks])
}

/// The width where windows are used: absent and `null` are two things.
fn width(keys: &Keys<'_>, default: Option<usize>) -> Result<Option<usize>, LoadError> {
    match keys.json.get(WINDOW) {
        None => Ok(default),
        Some(_) => keys.optional_dimension(WINDOW),
    }
}

fn all_blocks_are(keys: &Keys<'_>, n_blocks: usize, expected: &str, why: &str) -> Result<(), LoadError> {
    let types = layer_types(keys, n_blocks)?.unwrap_or_default();
    match types.into_iter().find(|layer_type| *layer_type != expected) {
        Some(other) => Err(keys.bad(LAYER_TYPES, format!("{other:?}, expected {expected:?} alone: {why}"))),
        None => Ok(()),
    }
}

/// The kind of each block, where the file lists them.
fn layer_types<'a>(keys: &Keys<'a>, n_blocks: usize) -> Result<Option<Vec<&'a str>>, LoadError> {
    let Some(value) = keys.json.get(LAYER_TYPES).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let known = [FULL, SLIDING];
    let types: Option<Vec<&str>> = value.as_array().and_then(|types| types.iter().map(Json::as_str).collect());
    let types = types.ok_or_else(|| keys.wrong_type(LAYER_TYPES, value, "a list of texts"))?;
    if let Some(other) = types.iter().find(|layer_type| !known.contains(layer_type)) {
        return Err(keys.bad(LAYER_TYPES, format!("{other:?}, expected one of {}", known.join(", "))));
    }
    if types.len() != n_blocks {
        let problem = format!("{} entries, expected one for each of the {n_blocks} blocks", types.len());
        return Err(keys.bad(LAYER_TYPES, problem));
    }
    Ok(Some(types))
}

/// Adds the keys from which [`from_hugging_face`] reads these windows again.
pub(crate) fn put(keys: &mut Map<String, Json>, class: &Class, windows: &[Option<usize>]) {
    let width = windows.iter().flatten().next();
    match class.windows {
        Windows::Never => {}
        Windows::EveryBlockIfUsed => {
            keys.insert(USE_WINDOW.into(), json!(width.is_some()));
            keys.insert(WINDOW.into(), json!(width));
        }
        Windows::EveryBlock(_) => {
            keys.insert(WINDOW.into(), json!(width));
        }
        Windows::SomeBlocks | Windows::Listed => {
            let types: Vec<&str> = windows.iter().map(|window| if window.is_some() { SLIDING } else { FULL }).collect();
            keys.insert(USE_WINDOW.into(), json!(width.is_some()));
            keys.insert(WINDOW.into(), json!(width));
            keys.insert(LAYER_TYPES.into(), json!(types));
        }
        Windows::AllBut { .. } => {
            let types: Vec<&str> = windows.iter().map(|window| if window.is_some() { SLIDING } else { FULL }).collect();
            keys.insert(WINDOW.into(), json!(width));
            keys.insert(LAYER_TYPES.into(), json!(types));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    fn read(class: &str, json: &Json) -> Result<Vec<Option<usize>>, LoadError> {
        let architecture = format!("{class}ForCausalLM");
        let class = crate::model::classes().find(|class| class.name == architecture).unwrap();
        from_hugging_face(&Keys { file: Path::new("config.json"), json }, class, 3)
    }

    /// Right values: `MistralConfig`, `MixtralConfig`, `Qwen2Config`, `Qwen3Config` and `LlamaConfig` of transformers
    /// 5.24.0, and what their models mask.
    #[test]
    fn every_spelling_gives_the_windows_of_transformers() {
        let none = [None; 3];
        let last = [None, None, Some(8)];
        for (class, json, expected) in [
            ("Mistral", json!({}), [Some(4096); 3]),
            ("Mistral", json!({ "sliding_window": null }), none),
            ("Mistral", json!({ "sliding_window": 8 }), [Some(8); 3]),
            ("Mistral", json!({ "sliding_window": 8, "use_sliding_window": false }), [Some(8); 3]),
            ("Mistral", json!({ "sliding_window": 8, "layer_types": vec![SLIDING; 3] }), [Some(8); 3]),
            ("Qwen2", json!({}), none),
            ("Qwen2", json!({ "sliding_window": 8 }), none),
            ("Qwen2", json!({ "sliding_window": 8, "use_sliding_window": false, "max_window_layers": 0 }), none),
            ("Qwen2", json!({ "sliding_window": 8, "use_sliding_window": true }), none),
            ("Qwen2", json!({ "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2 }), last),
            ("Qwen2", json!({ "sliding_window": null, "use_sliding_window": true, "max_window_layers": 0 }), none),
            ("Qwen2", json!({ "use_sliding_window": true, "max_window_layers": 0 }), [Some(4096); 3]),
            // The list wins over the number.
            (
                "Qwen2",
                json!({
                    "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 0,
                    "layer_types": [FULL, FULL, SLIDING]
                }),
                last,
            ),
            ("Mixtral", json!({}), none),
            ("Mixtral", json!({ "sliding_window": 8 }), [Some(8); 3]),
            ("Qwen3", json!({ "sliding_window": 8 }), none),
            ("Qwen3", json!({ "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2 }), last),
            ("Qwen3Moe", json!({ "sliding_window": 8 }), none),
            ("Qwen3Moe", json!({ "use_sliding_window": true, "sliding_window": 8 }), [Some(8); 3]),
            ("SmolLM3", json!({}), none),
            ("SmolLM3", json!({ "sliding_window": 8, "layer_types": vec![FULL; 3] }), none),
            (
                "SmolLM3",
                json!({ "use_sliding_window": true, "sliding_window": 8, "layer_types": [FULL, FULL, SLIDING] }),
                last,
            ),
            ("Phi3", json!({}), none),
            ("Phi3", json!({ "sliding_window": 8 }), [Some(8); 3]),
            ("Gemma2", json!({}), [Some(4096), None, Some(4096)]),
            ("Gemma2", json!({ "sliding_window": 8, "sliding_window_pattern": 3 }), [Some(8), None, Some(8)]),
            ("Gemma2", json!({ "sliding_window": 8, "layer_types": [FULL, FULL, SLIDING] }), last),
            ("Gemma3", json!({ "sliding_window": 8 }), [Some(8); 3]),
            ("Gemma3", json!({ "sliding_window": 8, "sliding_window_pattern": 3 }), [Some(8), Some(8), None]),
            ("Gemma3", json!({ "sliding_window": null, "layer_types": vec![FULL; 3] }), none),
            ("Llama", json!({ "sliding_window": 8 }), none),
            ("Llama", json!({ "sliding_window": 8, "use_sliding_window": false, "layer_types": vec![FULL; 3] }), none),
            ("OPT", json!({}), none),
        ] {
            assert_eq!(read(class, &json).unwrap(), expected, "{class} {json}");
        }
    }

    #[track_caller]
    fn check_error(class: &str, json: Json, expected: &str) {
        assert_eq!(read(class, &json).unwrap_err().to_string(), format!("config.json: key {expected}"));
    }

    #[test]
    fn contradictions_are_errors_that_name_the_key() {
        check_error(
            "Llama",
            json!({ "use_sliding_window": true, "sliding_window": 8 }),
            "\"use_sliding_window\": true, but LlamaForCausalLM has no sliding window; set it to false, or name the right class",
        );
        check_error(
            "Llama",
            json!({ "layer_types": [FULL, SLIDING, FULL] }),
            "\"layer_types\": \"sliding_attention\", expected \"full_attention\" alone: LlamaForCausalLM has no sliding window",
        );
        check_error(
            "Mistral",
            json!({ "layer_types": [FULL, SLIDING, FULL] }),
            "\"layer_types\": \"full_attention\", expected \"sliding_attention\" alone: all blocks of a Mistral model with a \
             \"sliding_window\" slide",
        );
        check_error(
            "Mistral",
            json!({ "sliding_window": 0 }),
            "\"sliding_window\": 0, expected a positive integer of at most 2^31",
        );
        check_error(
            "Qwen2",
            json!({ "layer_types": [FULL, SLIDING, FULL] }),
            "\"layer_types\": \"sliding_attention\" without a window; set \"use_sliding_window\" to true and give \
             \"sliding_window\"",
        );
        check_error(
            "SmolLM3",
            json!({ "use_sliding_window": true, "sliding_window": 8 }),
            "\"use_sliding_window\": true, but which blocks slide is not said; give \"layer_types\"",
        );
        check_error(
            "Gemma3",
            json!({ "sliding_window": null }),
            "\"sliding_window\": null, but some blocks slide; give it, or \"layer_types\" without \"sliding_attention\"",
        );
        check_error(
            "Qwen2",
            json!({ "layer_types": [FULL] }),
            "\"layer_types\": 1 entries, expected one for each of the 3 blocks",
        );
        check_error(
            "Qwen2",
            json!({ "layer_types": ["chunked_attention"] }),
            "\"layer_types\": \"chunked_attention\", expected one of full_attention, sliding_attention",
        );
        check_error("Qwen2", json!({ "layer_types": 2 }), "\"layer_types\": 2, expected a list of texts");
        check_error(
            "Qwen2",
            json!({ "max_window_layers": -1 }),
            "\"max_window_layers\": -1, expected the number of blocks that do not slide",
        );
    }
}
