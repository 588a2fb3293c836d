//! Next-token accuracy: the share of scored tokens to which the model gives the highest logit of all. Of several equal logits
//! the first counts, as in greedy decoding.

use rayon::prelude::*;

use super::metric::{Direction, Metric, Needs, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct NextTokenAccuracy;

impl Metric for NextTokenAccuracy {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "next_token_accuracy",
            label: "next-token accuracy",
            unit: Unit::Fraction,
            direction: Direction::HigherIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Logits
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        let rows = scored.rows().zip(scored.targets);
        rows.map(|(logits, &target)| if first_of_the_highest(logits) == target as usize { 1.0 } else { 0.0 }).collect()
    }
}

pub(super) fn first_of_the_highest(logits: &[f32]) -> usize {
    let higher = |best: usize, id: usize| if logits[id] > logits[best] { id } else { best };
    (0..logits.len()).fold(0, higher)
}
