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
        at => Err(other(difference(&found, &expected, at.unwrap_or(found.len().min(expected.len()))))),
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
            ("the windows", windows(&of.windows)),
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

/// What two wirings say otherwise at a word, by the field that it stands in.
fn difference(found: &[String], expected: &[String], at: usize) -> String {
    let begun = |words: &[String]| words.iter().take(at + 1).rev().find(|word| word.ends_with(':')).cloned();
    let field = begun(expected).or_else(|| begun(found)).unwrap_or_default();
    let said = |words: &[String]| match words.get(at).map(String::as_str) {
        None | Some("None") => "nothing".to_owned(),
        Some("Some") => words.get(at + 1).map_or_else(String::new, |word| format!("`{word}`")),
        Some(word) => format!("`{word}`"),
    };
    format!("its `{}` would be {}, not {}", field.trim_end_matches(':'), said(found), said(expected))
}

/// `7 in 3 blocks, none in 1`.
fn windows(windows: &[Option<usize>]) -> String {
    let run = |run: &[Option<usize>]| {
        let reach = run[0].map_or_else(|| "none".to_owned(), |window| window.to_string());
        format!("{reach} in {}", run.len())
    };
    let runs: Vec<String> = windows.chunk_by(|one, next| one == next).map(run).collect();
    format!("{} blocks", runs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_would_tell_otherwise_is_said_in_words() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
        let check = |found: &str, expected: &str, said: &str| {
            let (found, expected) = (words(found), words(expected));
            let at = found.iter().zip(&expected).position(|(found, expected)| found != expected);
            assert_eq!(difference(&found, &expected, at.expect("they differ")), said);
        };
        check("Attention rope: Some Rope n: 4", "Attention rope: None", "its `rope` would be `Rope`, not nothing");
        check("scale: Some 0.25 x: 1", "scale: Some 0.5 x: 1", "its `scale` would be `0.25`, not `0.5`");
        assert_eq!(windows(&[Some(7), Some(7), None]), "7 in 2, none in 1 blocks");
        assert_ne!(windows(&[Some(7), None, Some(7)]), windows(&[Some(7), Some(7), None]));
    }
}
