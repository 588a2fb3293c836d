//! Normalized accuracy on a task: the share of the questions of which the right answer has the highest log-likelihood a character,
//! lm-eval's `acc_norm`. Long answers are unlikely for being long; this makes up for it.

use super::metric::{Answers, Direction, Metric, Needs, OfItem, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct NormalizedAccuracy;

impl Metric for NormalizedAccuracy {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "normalized_accuracy",
            label: "normalized accuracy",
            unit: Unit::FractionOfQuestions,
            direction: Direction::HigherIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Likelihoods
    }

    fn of_item(&self) -> OfItem {
        OfItem::Question(|answers: &Answers<'_>| {
            let of_character = answers.sums.iter().zip(answers.n_chars).map(|(sum, &n)| sum / n as f64);
            answers.is_right(of_character)
        })
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        scored.nll.to_vec()
    }
}
