//! The tensors of a language model in the checkpoint of a model of texts and images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::load::{Checkpoint, LoadError, StoredType};
use crate::quantized::QuantizedWeight;

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

/// A checkpoint in which the language model's tensors have the names of its class, and the others are beside them.
pub(crate) struct LanguageCheckpoint {
    base: Arc<dyn Checkpoint>,
    /// Names in the checkpoint by those of the class.
    names: BTreeMap<String, String>,
    beside: Vec<String>,
    note: String,
}

impl LanguageCheckpoint {
    /// Of the checkpoint of a model of class `architecture`. A second tensor of one name keeps its own, which no decoder knows.
    pub(crate) fn new(base: Arc<dyn Checkpoint>, architecture: &str) -> Self {
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
        Self { base, names, beside, note }
    }

    fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }

    /// Whether there is such a tensor: names of the checkpoint below are others.
    fn has(&self, name: &str) -> bool {
        self.names.contains_key(name) || self.beside.iter().any(|beside| beside == name)
    }
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

impl Checkpoint for LanguageCheckpoint {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn beside(&self) -> Vec<String> {
        self.beside.clone()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.base.shape(self.stored(name)).filter(|_| self.has(name))
    }

    fn fits(&self, name: &str, expected: &[usize]) -> bool {
        self.has(name) && self.base.fits(self.stored(name), expected)
    }

    fn read_any_f32(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        self.base.read_any_f32(self.stored(name))
    }

    fn read_quantized(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.base.read_quantized(self.stored(name))
    }

    fn read_codes(&self, name: &str) -> Result<Option<QuantizedWeight>, LoadError> {
        self.base.read_codes(self.stored(name))
    }

    fn is_readable(&self, name: &str) -> bool {
        self.base.is_readable(self.stored(name))
    }

    fn is_integer(&self, name: &str) -> bool {
        self.base.is_integer(self.stored(name))
    }

    fn is_copy(&self, name: &str, other: &str) -> Result<bool, LoadError> {
        self.base.is_copy(self.stored(name), self.stored(other))
    }

    fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.base.stored_type(self.stored(name))
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.base.notes();
        notes.push(self.note.clone());
        notes
    }

    fn file_of(&self, name: &str) -> PathBuf {
        self.base.file_of(self.stored(name))
    }

    fn source(&self) -> &Path {
        self.base.source()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.base.bytes_on_disk()
    }
}
