//! Accuracy on a task: the share of the questions of which the right answer has the highest log-likelihood, lm-eval's `acc`. Of answers
//! that are equally likely the first counts.

use super::metric::{Answers, Direction, Metric, Needs, OfItem, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct Accuracy;

impl Metric for Accuracy {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "accuracy",
            label: "accuracy",
            unit: Unit::FractionOfQuestions,
            direction: Direction::HigherIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Likelihoods
    }

    fn of_item(&self) -> OfItem {
        OfItem::Question(|answers: &Answers<'_>| answers.is_right(answers.sums.iter().copied()))
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        scored.nll.to_vec()
    }
}
