//! Target perplexity on a task: `exp` of the mean negative log-likelihood of the right answers, each a sum over its tokens. It is
//! lm-eval's `perplexity` of LAMBADA.

use super::metric::{Answers, Direction, Metric, Needs, OfItem, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct TargetPerplexity;

impl Metric for TargetPerplexity {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "target_perplexity",
            label: "target perplexity",
            unit: Unit::PerAnswer,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::ExpOfMean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Likelihoods
    }

    fn of_item(&self) -> OfItem {
        OfItem::Question(|answers: &Answers<'_>| answers.sums[answers.target])
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        scored.nll.to_vec()
    }
}
