//! Byte perplexity: `exp` of the negative log-likelihood of a document over its bytes.

use super::metric::{Direction, Metric, Needs, OfItem, Per, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct BytePerplexity;

impl Metric for BytePerplexity {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "byte_perplexity",
            label: "byte perplexity",
            unit: Unit::PerByte,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::ExpOfMean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Likelihoods
    }

    fn of_item(&self) -> OfItem {
        OfItem::Sum(Per::Byte)
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        scored.nll.to_vec()
    }
}
