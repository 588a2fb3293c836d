//! [`ReferenceValue`]: a published number, and which of our cells it may stand beside.

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TableValue;
use crate::eval::registry::MetricKey;

/// What was published of one cell. It stands only beside a cell of which every key given here is true.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferenceValue {
    /// Model name as in `models`.
    pub model: String,
    /// Method label as in our tables (`FP16`, `RTN`, `AWQ`, ...).
    pub method: String,
    /// Grid label as in our tables (`W4 g128`); absent for full precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
    /// Name of the calibration; any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Name of the text scored, as in our tables (`wikitext2-test`); any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Name of the protocol (`gptq`, `llama-cpp`); any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Tokens of a window; any number where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_len: Option<NonZeroUsize>,
    /// The published perplexity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// The metric that `value` is of, where a number other than a perplexity was published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricKey>,
    /// The published number of `metric`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The published share of quantization steps that a fixed scale changed, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_steps: Option<f64>,
    /// The published mean of a step after a fixed scale over the step before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_ratio: Option<f64>,
    /// The same divided by the scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_ratio_over_scale: Option<f64>,
    /// Where it was published.
    pub source: String,
    /// What to know about it (another protocol, a doubtful header).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl ReferenceValue {
    /// The metric that it is a number of.
    pub fn metric(&self) -> MetricKey {
        self.metric.unwrap_or(MetricKey::USUAL)
    }

    /// The published number of its metric.
    pub fn measured(&self) -> Option<f64> {
        if self.metric.is_some() { self.value } else { self.perplexity }
    }

    /// All that may be published of a cell.
    pub(super) fn numbers(&self) -> [Option<f64>; 4] {
        [self.measured(), self.changed_steps, self.step_ratio, self.step_ratio_over_scale]
    }

    /// A published number, if this is one of it.
    pub fn number(&self, value: TableValue) -> Option<f64> {
        match value {
            TableValue::Metric(metric) => self.measured().filter(|_| metric == self.metric()),
            TableValue::ChangedSteps => self.changed_steps,
            TableValue::StepRatio => self.step_ratio,
            TableValue::StepRatioOverScale => self.step_ratio_over_scale,
        }
    }

    /// `OPT-6.7B AWQ W3 g128`: how messages name it.
    pub fn label(&self) -> String {
        let parts = [Some(&self.model), Some(&self.method), self.grid.as_ref(), self.calibration.as_ref()];
        parts.into_iter().chain([self.dataset.as_ref()]).flatten().map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    /// What is wrong with it, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.metric.is_some() != self.value.is_some() || (self.metric.is_some() && self.perplexity.is_some()) {
            return Err("`metric` and `value` go together, and without `perplexity`; give the two or the one".into());
        }
        let values = self.numbers();
        if values.iter().all(Option::is_none) {
            return Err("it has no number; give `perplexity`".into());
        }
        if let Some(bad) = values.iter().flatten().find(|value| !value.is_finite()) {
            return Err(format!("it holds {bad}, which is no number that a paper prints; remove it"));
        }
        Ok(())
    }
}
