//! `[[checkpoints]]`: models that other programs have quantized, to be scored beside ours.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ExperimentSpec, ModelSource, ModelSpec};

/// A quantized checkpoint of one of the models, of any kind that is read as a model. It is scored on the model's own windows, and
/// stands in its tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSpec {
    /// What tables call it, in place of a method: `AutoAWQ`.
    pub name: String,
    /// Name of the model that it was made of; may be absent where the experiment has one model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Where it comes from.
    pub source: ModelSource,
}

impl CheckpointSpec {
    /// Whether it is one of `model`, which is one of `n_models`.
    pub fn is_of(&self, model: &ModelSpec, n_models: usize) -> bool {
        self.model.as_ref().map_or(n_models == 1, |name| *name == model.name)
    }

    /// It as a model of its own.
    pub fn as_model(&self) -> ModelSpec {
        ModelSpec { name: self.name.clone(), source: self.source.clone() }
    }
}

impl ExperimentSpec {
    /// Checkpoints of models that there are, under names that tell them apart from each other and from the methods.
    pub(super) fn check_checkpoints(&self) -> anyhow::Result<()> {
        let mut names: BTreeSet<(Option<&str>, &str)> = BTreeSet::new();
        let methods: BTreeSet<String> = self.methods.iter().map(|entry| entry.method.label()).collect();
        for (index, checkpoint) in self.checkpoints.iter().enumerate() {
            let key = || format!("key `checkpoints[{index}]` ({})", checkpoint.name);
            ensure!(!checkpoint.name.trim().is_empty(), "key `checkpoints[{index}].name` is empty; give it a name");
            let known = || self.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
            let of: Vec<&ModelSpec> =
                self.models.iter().filter(|model| checkpoint.is_of(model, self.models.len())).collect();
            match &checkpoint.model {
                None => ensure!(!of.is_empty(), "{}: say which `model` it was made of: {}", key(), known()),
                Some(name) => ensure!(!of.is_empty(), "{}: no model is named `{name}`; use one of {}", key(), known()),
            }
            let is_new = names.insert((checkpoint.model.as_deref(), &checkpoint.name));
            ensure!(
                is_new && checkpoint.name != "FP" && !methods.contains(&checkpoint.name),
                "{}: a method or another checkpoint of this model has this name; give it another",
                key()
            );
            checkpoint.source.registry_files().iter().try_for_each(|file| file.check()).with_context(key)?;
        }
        Ok(())
    }
}
