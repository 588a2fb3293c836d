//! `[export]`: which of an experiment's quantized models are kept as checkpoints.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, ensure};
use awq_core::formats::{self, Container, FORMATS, Format};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::ExperimentSpec;
use crate::plan::Plan;
use crate::plan::select::Selection;

/// A layout of checkpoints by its key: `packed`, this program's own, or one of [`FORMATS`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointFormat(Option<&'static dyn Format>);

impl CheckpointFormat {
    /// `awq`.
    pub fn key(self) -> &'static str {
        self.0.map_or(formats::PACKED, Format::key)
    }

    /// The format of other programs; `None` for this program's own.
    pub fn format(self) -> Option<&'static dyn Format> {
        self.0
    }

    /// What a model in it stands in.
    pub fn container(self) -> Container {
        self.0.map_or(Container::Folder, Format::container)
    }

    /// A sentence on it.
    pub fn about(self) -> &'static str {
        self.0.map_or("this program's own layout, which holds every grid and method", Format::about)
    }

    fn keys() -> impl Iterator<Item = &'static str> {
        std::iter::once(formats::PACKED).chain(FORMATS.iter().map(|format| format.key()))
    }
}

impl FromStr for CheckpointFormat {
    type Err = String;

    fn from_str(key: &str) -> Result<Self, String> {
        if key == formats::PACKED {
            return Ok(Self(None));
        }
        let found = formats::named(key).map(|format| Self(Some(format)));
        found.ok_or_else(|| {
            format!("no format is called `{key}`; choose one of {}", Self::keys().collect::<Vec<_>>().join(", "))
        })
    }
}

impl TryFrom<String> for CheckpointFormat {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        key.parse()
    }
}

impl From<CheckpointFormat> for String {
    fn from(format: CheckpointFormat) -> Self {
        format.key().to_owned()
    }
}

impl fmt::Debug for CheckpointFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

impl PartialEq for CheckpointFormat {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl JsonSchema for CheckpointFormat {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CheckpointFormat".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let keys: Vec<&str> = Self::keys().collect();
        json_schema!({ "description": "A layout of checkpoints; `experiments list formats` says what each holds.", "enum": keys })
    }
}

/// Quantized models that are written as checkpoints once they are measured, into `checkpoints/` of the output folder. A grid or a
/// method that a format does not hold is found before any work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportSpec {
    /// Formats, each model in every one.
    pub formats: Vec<CheckpointFormat>,
    /// Only these models, as of `--only`: `["method=awq,bits=4"]`; every quantized one when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<Selection>,
}

impl ExportSpec {
    /// A line of a plan: what is kept.
    pub fn describe(&self) -> String {
        let formats: Vec<&str> = self.formats.iter().map(|format| format.key()).collect();
        let only: Vec<String> = self.only.iter().map(Selection::to_string).collect();
        let of = if only.is_empty() { "of all".to_owned() } else { format!("of those with {}", only.join(" or ")) };
        format!("Checkpoints in checkpoints/: {} {of}.", formats.join(", "))
    }
}

impl ExperimentSpec {
    /// An export of something, as something.
    pub(super) fn check_export(&self) -> anyhow::Result<()> {
        let Some(export) = &self.export else { return Ok(()) };
        ensure!(
            !self.evaluations.is_empty(),
            "[export]: an experiment that only times models quantizes none; add evaluations, or remove the section"
        );
        ensure!(
            !export.formats.is_empty(),
            "key `export.formats` is an empty list; name a format (`experiments list formats`), or remove the section"
        );
        let mut seen = BTreeSet::new();
        if let Some(twice) = export.formats.iter().find(|format| !seen.insert(format.key())) {
            anyhow::bail!("key `export.formats` names `{}` twice; remove one", twice.key());
        }
        let selected = Plan::new(self).select(&export.only).map_err(anyhow::Error::msg).context("key `export.only`")?;
        ensure!(
            selected.cells().any(|cell| cell.quantization.is_some()),
            "key `export.only`: full precision alone is selected; name a method"
        );
        Ok(())
    }
}
