//! The tensors of a language model in the checkpoint of a model of texts and images.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::load::Checkpoint;
use crate::load::renamed::RenamedCheckpoint;

/// What names of the language model begin with, and what they begin with in the class of their own.
const PREFIXES: [(&str, &str); 3] =
    [("language_model.", ""), ("model.language_model.", "model."), ("model.text_model.", "model.")];

/// What names of all else begin with.
const BESIDE: [&str; 9] = [
    "vision_tower.",
    "multi_modal_projector.",
    "visual.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.visual.",
    "model.vision_model.",
    "model.connector.",
    "model.image_newline",
];

/// The checkpoint of a model of class `architecture` in which the language model's tensors have the names of its class, and the others
/// are beside them. A second tensor of one name keeps its own, which no decoder knows.
pub(crate) fn language_checkpoint(base: Arc<dyn Checkpoint>, architecture: &str) -> RenamedCheckpoint {
    let (mut names, mut beside) = (BTreeMap::new(), Vec::new());
    for stored in base.names() {
        if BESIDE.iter().any(|prefix| stored.starts_with(prefix)) {
            beside.push(stored);
            continue;
        }
        let found = PREFIXES.iter().find_map(|(from, to)| Some(format!("{to}{}", stored.strip_prefix(from)?)));
        let name = found.filter(|name| !names.contains_key(name)).unwrap_or_else(|| stored.clone());
        names.insert(name, stored);
    }
    let note = note(base.as_ref(), architecture, &beside);
    RenamedCheckpoint::new(base, names, beside, note)
}

/// `PATH: the language model of LlavaForConditionalGeneration; multi_modal_projector (4 tensors) and vision_tower (24) are left as they
/// are`.
fn note(base: &dyn Checkpoint, architecture: &str, beside: &[String]) -> String {
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in beside {
        let inner = name.strip_prefix("model.").unwrap_or(name);
        *parts.entry(inner.split('.').next().unwrap_or(inner)).or_default() += 1;
    }
    let counted = |(part, n): (&str, usize)| format!("{part} ({n} tensor{})", if n == 1 { "" } else { "s" });
    let parts: Vec<String> = parts.into_iter().map(counted).collect();
    let parts = match parts.as_slice() {
        [] => "no tensors of other parts are there".to_owned(),
        parts => format!("left as they are: {}", parts.join(", ")),
    };
    format!("{}: the language model of {architecture}, for texts; {parts}", base.source().display())
}
