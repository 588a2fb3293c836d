//! The card of a model: what it is, how it was made and what was measured of it, for whoever finds the folder.

use awq_core::model::Storage;
use serde_json::Value as Json;

use super::{Quantized, Recipe};
use crate::config::CheckpointFormat;
use crate::provenance::Provenance;

/// What a card says.
pub struct Card<'a> {
    /// How the model was made.
    pub recipe: &'a Recipe,
    /// In what types the linears lay that it was made of, where that is known.
    pub base: Option<&'a Storage>,
    /// What came out.
    pub quantized: &'a Quantized,
    /// The layout of its folder.
    pub format: CheckpointFormat,
    /// What some loaders make of it.
    pub notes: &'a [String],
    /// What was measured of it, in Markdown; `None` where nothing was.
    pub measured: Option<&'a str>,
}

impl Card<'_> {
    /// Its name in the folder.
    pub const FILE: &'static str = "README.md";

    /// The card in Markdown.
    pub fn render(&self) -> String {
        let Self { recipe, base, quantized, format, notes, measured } = self;
        let notes: String = notes.iter().map(|note| format!("| note | {note} |\n")).collect();
        let base = base.map_or_else(|| "unknown types".to_owned(), stored_as);
        let Provenance { version, commit, command, .. } = Provenance::collect("", 0, Default::default());
        let json = |value: Option<Json>| value.map_or_else(|| "none".to_owned(), |value| format!("`{value}`"));
        let settings = json(serde_json::to_value(&recipe.method).ok());
        let calibration = json(recipe.calibration.as_ref().and_then(|spec| serde_json::to_value(spec).ok()));
        let measured = measured.map_or_else(String::new, |tables| format!("## Measured\n\n{}\n\n", tables.trim()));
        format!(
            "# {label}\n\n\
             | | |\n|---|---|\n\
             | format | `{format}`: {about} |\n\
             {notes}\
             | bits per quantized weight | {bits:.3} |\n\
             | method | {settings} |\n\
             | calibration | {calibration} |\n\
             | made of linears stored as | {base} |\n\
             | codes, sha256 | `{codes}` |\n\
             | written by | awq-rs {version}, commit {commit} |\n\n\
             {measured}```sh\n{command}\n```\n",
            label = recipe.label(),
            format = format.key(),
            about = format.about(),
            bits = quantized.bits_per_weight,
            codes = quantized.codes_sha256,
            command = shell(&command),
        )
    }
}

/// `GGUF Q4_1 in 5.000 bits each`: types of linears, and their mean.
pub fn stored_as(storage: &Storage) -> String {
    let types: Vec<&str> = storage.types.iter().map(|share| share.name.as_str()).collect();
    format!("{} in {:.3} bits each", types.join(" + "), storage.bits_per_weight)
}

/// A command as a shell takes it.
pub(super) fn shell(command: &[String]) -> String {
    command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
