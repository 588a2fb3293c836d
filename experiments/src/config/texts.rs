//! [`MeasuredText`]: a text by several metrics, which stands for an evaluation by each.

use std::num::NonZeroUsize;

use anyhow::ensure;
use awq_core::arithmetic::Arithmetic;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{DatasetSpec, EvaluationSpec, ProtocolSpec, ScoredText};
use crate::eval::registry::MetricKey;

/// A text, a protocol and what is measured in one pass over it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(from = "Fields")]
#[schemars(with = "Fields")]
pub struct MeasuredText {
    metrics: Vec<MetricKey>,
    text: ScoredText,
}

/// The keys of a [`MeasuredText`]: serde cannot refuse unknown keys of a flattened struct.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Fields {
    /// The metrics, in the order of tables.
    metrics: Vec<MetricKey>,
    /// The text.
    dataset: DatasetSpec,
    /// How it is cut, fed and scored.
    protocol: ProtocolSpec,
    /// Score only the first this many windows (documents with `lm-eval`); the whole text when absent.
    max_windows: Option<NonZeroUsize>,
    /// How the products of linears and of the head are computed; f32 when absent.
    #[serde(default)]
    arithmetic: Arithmetic,
}

impl From<Fields> for MeasuredText {
    fn from(fields: Fields) -> Self {
        let Fields { metrics, dataset, protocol, max_windows, arithmetic } = fields;
        Self { metrics, text: ScoredText { dataset, protocol, max_windows, arithmetic } }
    }
}

impl MeasuredText {
    /// The evaluations that it stands for.
    ///
    /// # Errors
    /// No metric, or one that is named twice.
    pub(super) fn evaluations(self) -> anyhow::Result<Vec<EvaluationSpec>> {
        ensure!(!self.metrics.is_empty(), "key `texts.metrics` is an empty list; give at least one entry");
        let twice = self.metrics.iter().enumerate().find(|(index, metric)| self.metrics[..*index].contains(metric));
        if let Some((_, metric)) = twice {
            anyhow::bail!("key `texts.metrics` has `{}` twice; remove one", metric.key());
        }
        Ok(self.metrics.iter().map(|metric| metric.of(self.text.clone())).collect())
    }
}
