//! Word perplexity: `exp` of the negative log-likelihood of a document over its words, which lm-eval reports for WikiText.

use super::metric::{Direction, Metric, Needs, OfItem, Per, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct WordPerplexity;

impl Metric for WordPerplexity {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "word_perplexity",
            label: "word perplexity",
            unit: Unit::PerWord,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::ExpOfMean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Likelihoods
    }

    fn of_item(&self) -> OfItem {
        OfItem::Sum(Per::Word)
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        scored.nll.to_vec()
    }
}
