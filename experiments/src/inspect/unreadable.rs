//! [`UnreadableFacts`]: what is known of something that does not open as a model.

use std::path::Path;

use awq_core::load::LoadError;
use serde::Serialize;
use serde_json::Value as Json;

/// Something that does not open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadableFacts {
    /// What the user calls it.
    pub name: String,
    /// Class or architecture that its files name.
    pub architecture: Option<String>,
    /// `model_type` of its configuration.
    pub model_type: Option<String>,
    /// Method, settings and tool, where another tool quantized it.
    pub quantized_by: Option<String>,
    /// What the loader says, with the remedy.
    pub error: String,
}

impl UnreadableFacts {
    pub(super) fn of(name: &str, path: &Path, error: LoadError) -> Self {
        // What stands in its configuration may be of any shape.
        let config = std::fs::read(path.join("config.json")).unwrap_or_default();
        let config: Json = serde_json::from_slice(&config).unwrap_or_default();
        let text = |value: &Json| value.as_str().map(str::to_owned);
        let (named, quantized_by) = match &error {
            LoadError::UnknownArchitecture { architecture, .. } => (Some(architecture.clone()), None),
            LoadError::QuantizedByOthers { method, .. } => (None, Some(method.clone())),
            _ => (None, None),
        };
        Self {
            name: name.to_owned(),
            architecture: text(&config["architectures"][0]).or(named),
            model_type: text(&config["model_type"]),
            quantized_by,
            error: format!("{:#}", anyhow::Error::from(error)),
        }
    }
}
