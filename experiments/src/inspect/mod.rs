//! What a model, a packed folder or a folder of results is. Facts are gathered from headers and records alone, then shown as text or
//! as JSON.

mod linears;
mod listing;
mod memory;
mod model;
mod parameters;
mod records;
mod sheet;
mod text;
mod unreadable;

use std::path::Path;

use anyhow::ensure;
use awq_core::grid::Grid;
use serde::Serialize;

pub use self::linears::{GridFacts, LinearRow};
pub use self::listing::{List, Listed};
pub use self::memory::Stage;
pub use self::model::{ModelFacts, PackedFacts, Shapes, TokenizerFacts};
pub use self::parameters::{Parameters, StoredAs};
pub use self::records::{FailedCell, RecordsFacts};
pub use self::unreadable::UnreadableFacts;
use crate::record::{Line as _, RESOLVED_CONFIG, StoredRecord};

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Inspected {
    /// A model that opens.
    Model(Box<ModelFacts>),
    /// Something that does not open as a model.
    Unreadable(UnreadableFacts),
    /// A folder that an experiment wrote.
    Results(RecordsFacts),
}

impl Inspected {
    /// Looks at `path`. Linears that are not quantized yet are held against `grid`. `name` is what the user calls it.
    ///
    /// # Errors
    /// A path that is not there, or records of a newer program.
    pub fn of(name: &str, path: &Path, grid: &Grid) -> anyhow::Result<Self> {
        ensure!(
            path.exists(),
            "{name}: no such model; give a folder, a .gguf file, `bundled`, owner/name of the hub, or a folder of results"
        );
        if [RESOLVED_CONFIG, StoredRecord::FILE].iter().any(|file| path.join(file).is_file()) {
            return RecordsFacts::of(name, path).map(Self::Results);
        }
        Ok(match ModelFacts::of(name, path, grid) {
            Ok(facts) => Self::Model(Box::new(facts)),
            Err(error) => Self::Unreadable(UnreadableFacts::of(name, path, error)),
        })
    }

    /// Whether it can be used.
    pub fn opens(&self) -> bool {
        !matches!(self, Self::Unreadable(_))
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        match self {
            Self::Model(facts) => facts.text(),
            Self::Unreadable(facts) => facts.text(),
            Self::Results(facts) => facts.text(),
        }
    }
}
