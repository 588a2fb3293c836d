//! Greedy accuracy on a task: the share of the questions whose right answer is what greedy decoding gives, token by token. It is
//! lm-eval's `acc` of tasks with one answer, such as LAMBADA.

use rayon::prelude::*;

use super::metric::{Answers, Direction, Metric, Needs, OfItem, Quantity, Scored, Unit};
use super::next_token_accuracy::first_of_the_highest;
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct GreedyAccuracy;

impl Metric for GreedyAccuracy {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "greedy_accuracy",
            label: "greedy accuracy",
            unit: Unit::FractionOfQuestions,
            direction: Direction::HigherIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Logits
    }

    fn of_item(&self) -> OfItem {
        OfItem::Question(|answers: &Answers<'_>| if answers.sums[answers.target] == 0.0 { 1.0 } else { 0.0 })
    }

    /// 1 where the token is another than the likeliest.
    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        let is_missed =
            |(row, &target): (&[f32], &u32)| f32::from(u8::from(first_of_the_highest(row) != target as usize));
        scored.rows().zip(scored.targets).map(is_missed).collect()
    }
}
