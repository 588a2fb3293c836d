//! Negative log-likelihood of the right answers to the questions of a task: the mean of their sums over tokens, in nats. It sees changes
//! of a model that turn no answer.

use super::metric::{Answers, Direction, Metric, Needs, OfItem, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct TargetNll;

impl Metric for TargetNll {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "target_nll",
            label: "NLL of the right answer",
            unit: Unit::NatsPerAnswer,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::Mean,
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
