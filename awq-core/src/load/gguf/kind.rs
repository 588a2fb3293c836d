//! What a GGUF file is: a whole model, or something else that has the same format.

use std::collections::BTreeMap;
use std::path::Path;

use super::header::Value;
use crate::load::LoadError;

/// Kinds of file (`general.type`) that are no models.
const OTHER_KINDS: [(&str, &str); 4] = [
    ("adapter", "this is an adapter (LoRA), not a model; merge it into its base model, and convert that"),
    ("mmproj", "this is the image or audio encoder of a multimodal model (mmproj), not a model of text; give that"),
    ("imatrix", "this is an importance matrix, not a model; give the model that it was made from"),
    ("vocab", "this is a vocabulary without weights, not a model; give a whole model"),
];

/// # Errors
/// An adapter, an encoder of images, an importance matrix: each by its name.
pub(super) fn check(file: &Path, metadata: &BTreeMap<String, Value>) -> Result<(), LoadError> {
    let bad = |key: &str, problem| Err(LoadError::BadKey { file: file.to_owned(), key: key.to_owned(), problem });
    if let Some(Value::Text(kind)) = metadata.get("general.type") {
        if let Some((_, problem)) = OTHER_KINDS.iter().find(|(other, _)| other == kind) {
            return bad("general.type", format!("{kind:?}: {problem}"));
        }
        if kind != "model" {
            return bad("general.type", format!("{kind:?}: a kind of file that is not known, expected \"model\""));
        }
    }
    match metadata.get("general.architecture") {
        Some(Value::Text(architecture)) if architecture == "clip" => bad(
            "general.architecture",
            "\"clip\": this is the image or audio encoder of a multimodal model (mmproj), not a model of text; give that"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}
