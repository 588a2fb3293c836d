//! [`MeasuredText`]: a text by several metrics, which stands for an evaluation by each.

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::Deserialize;

use super::check::not_repeated;
use super::{DatasetSpec, EvaluationSpec, ProtocolSpec, ScoredText};
use crate::eval::ScoringArithmetic;
use crate::eval::registry::MetricKey;

/// A text, a protocol and what is measured in one pass over it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasuredText {
    /// The metrics, in the order of tables.
    pub metrics: Vec<MetricKey>,
    /// The text.
    pub dataset: DatasetSpec,
    /// How it is cut, fed and scored.
    pub protocol: ProtocolSpec,
    /// Score only the first this many windows (documents with `lm-eval`); the whole text when absent.
    pub max_windows: Option<NonZeroUsize>,
    /// How the products of linears and of the head are computed; f32 when absent.
    #[serde(default)]
    pub arithmetic: ScoringArithmetic,
}

impl MeasuredText {
    /// The evaluations that it stands for.
    ///
    /// # Errors
    /// No metric, or one that is named twice.
    pub(super) fn evaluations(self) -> anyhow::Result<Vec<EvaluationSpec>> {
        let Self { metrics, dataset, protocol, max_windows, arithmetic } = self;
        not_repeated("texts.metrics", &metrics, |metric| metric.key())?;
        let text = ScoredText { dataset, protocol, max_windows, arithmetic };
        Ok(metrics.iter().map(|metric| metric.of(text.clone())).collect())
    }
}
