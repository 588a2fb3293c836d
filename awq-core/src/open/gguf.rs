//! A model as a GGUF file, outlined before any work: what the file would say is read back, and must be the same model.

use crate::load::{GgufOutline, ModelConfig, Rope};
use crate::model::wiring::Wiring;
use crate::model::wiring_of;

use super::{OpenedModel, class_of, known_classes};

/// The outline of a model's GGUF file. `quantizes_head` where the head is to be a tensor of its own; `about` are keys beside those of
/// the model, such as `general.name`.
///
/// # Errors
/// A family, a configuration or a tokenizer that no GGUF file holds, in words.
pub fn gguf_outline(
    opened: &OpenedModel,
    wiring: &Wiring,
    quantizes_head: bool,
    about: &[(&str, String)],
) -> Result<GgufOutline, String> {
    let config = &opened.config;
    if let Some(outer) = &config.outer {
        let class = outer["architectures"][0].as_str().unwrap_or("the model");
        return Err(format!("{class} is a model of texts and images, which llama.cpp has in two files"));
    }
    if wiring.scaled_activations {
        return Err(format!(
            "scales are folded into the activations of {}, where llama.cpp has none",
            config.architecture
        ));
    }
    let class = class_of(config).ok_or_else(|| format!("{} is no known class", config.architecture))?;
    let gguf = class.gguf.ok_or_else(|| format!("llama.cpp has no model of class {}", config.architecture))?;
    let mut shapes = wiring.tensors(config);
    if quantizes_head {
        let head = wiring.head_name();
        let head = format!("{}.weight", head.strip_suffix(".weight").unwrap_or(head));
        shapes.insert(head, vec![config.vocab_size, wiring.embedding_width(config)]);
    }
    let text = (&opened.tokenizer, opened.chat_template.as_deref());
    let outline = GgufOutline::new((class, gguf), config, &shapes, text, about)?;
    let read = outline.read_back(&known_classes()).map_err(|error| error.to_string())?;
    check_config(config, &read)?;
    // What is left of the configuration is what the wiring makes of it.
    let settled = ModelConfig {
        rope_scaling: config.rope_scaling.clone(),
        local_rope: config.local_rope.clone(),
        tie_word_embeddings: config.tie_word_embeddings,
        ..read
    };
    let other = |what: String| format!("a GGUF file of `{}` would be another model: {what}", gguf.name);
    let read = wiring_of(&settled, opened.checkpoint.as_ref()).map_err(|error| other(error.to_string()))?;
    let (found, expected) = (wires(&read), wires(wiring));
    match found.iter().zip(&expected).position(|(found, expected)| found != expected) {
        None if found.len() == expected.len() => Ok(outline),
        at => {
            // With the name of the field before it.
            let at = at.unwrap_or(found.len().min(expected.len()));
            let words = |words: &[String]| words[at.saturating_sub(1)..words.len().min(at + 1)].join(" ");
            Err(other(format!("{} in place of {}", words(&found), words(&expected))))
        }
    }
}

/// # Errors
/// The first fact that the file would tell otherwise.
fn check_config(config: &ModelConfig, read: &ModelConfig) -> Result<(), String> {
    // Without windows, a file has no positions that one would hide.
    let has_windows = read.windows.iter().any(Option::is_some);
    let reach = config.windows.iter().flatten().copied().min().filter(|_| !has_windows);
    let config = ModelConfig {
        max_positions: reach.map_or(config.max_positions, |reach| reach.min(config.max_positions)),
        windows: if reach.is_some() { read.windows.clone() } else { config.windows.clone() },
        ..config.clone()
    };
    let facts = |of: &ModelConfig| {
        [
            ("the width", of.hidden_size.to_string()),
            ("the width of the feed-forward module", of.intermediate_size.to_string()),
            ("the blocks", of.n_blocks.to_string()),
            ("the heads", format!("{} over {} of width {}", of.n_heads, of.n_kv_heads, of.head_dim)),
            ("the tokens", of.vocab_size.to_string()),
            ("the positions", of.max_positions.to_string()),
            ("the number in norms", (of.norm_eps as f32).to_string()),
            ("the windows", format!("{:?}", of.windows)),
        ]
    };
    for ((what, expected), (_, found)) in facts(&config).into_iter().zip(facts(read)) {
        if expected != found {
            return Err(format!("{what} would be {found} in a GGUF file, not {expected}"));
        }
    }
    let same_local = match (&config.local_rope, &read.local_rope) {
        (Some(expected), Some(found)) => is_same_rope(expected, found),
        (expected, found) => expected.is_none() && found.is_none(),
    };
    match is_same_rope(&config.rope(), &read.rope()) && same_local {
        true => Ok(()),
        false => Err("positions would be rotated otherwise by what a GGUF file says".into()),
    }
}

/// Whether frequencies and amplitude are the same in f32.
fn is_same_rope(expected: &Rope, found: &Rope) -> bool {
    let is_near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-6;
    let amplitude = |rope: &Rope| rope.angles(0..1).0.first().copied().map_or(1.0, f64::from);
    let (frequencies, others) = (expected.frequencies(), found.frequencies());
    expected.n_channels == found.n_channels
        && frequencies.iter().zip(&others).all(|(&a, &b)| is_near(a, b))
        && is_near(amplitude(expected), amplitude(found))
}

/// All that a wiring says, in words, with numbers as f32 has them.
fn wires(wiring: &Wiring) -> Vec<String> {
    let text = format!("{:?}", Wiring { notes: Vec::new(), ..wiring.clone() });
    let as_f32 = |word: &str| match word.parse::<f64>() {
        Ok(number) if word.contains('.') || word.contains('e') => (number as f32).to_string(),
        _ => word.to_owned(),
    };
    text.split([' ', ',', '(', ')', '{', '}', '[', ']']).filter(|word| !word.is_empty()).map(as_f32).collect()
}
